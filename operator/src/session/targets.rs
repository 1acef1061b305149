//! Which pods a session is for: those that match its selector, in the order in which they are asked. Pure.
//!
//! Whoever looks for what is wrong wants the pods first in which something is: those that are not Ready, then those
//! that restarted most.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::core::{Expression, Selector};
use sidewinder_crds::{LabelOperator, PodCount, PodMode, PodSelector};
use sidewinder_model::Reason;

use super::result::MAX_TARGETS;
use crate::inject::Refusal;

/// What choosing among pods needs to know of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its node.
    pub node: Option<String>,
    /// Whether it is Ready.
    pub ready: bool,
    /// How often its containers were restarted.
    pub restarts: i32,
    /// Whether its containers have ended for good, or are being ended.
    pub over: bool,
}

impl Candidate {
    /// What is known of `pod`.
    pub fn of(pod: &Pod) -> Self {
        let status = pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref());
        let ready = conditions
            .unwrap_or_default()
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let restarts = [
            status.and_then(|status| status.container_statuses.as_deref()),
            status.and_then(|status| status.init_container_statuses.as_deref()),
        ]
        .into_iter()
        .flatten()
        .flatten()
        .fold(0_i32, |sum, container| {
            sum.saturating_add(container.restart_count)
        });
        let phase = status.and_then(|status| status.phase.as_deref());
        Self {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            ready,
            restarts,
            over: pod.metadata.deletion_timestamp.is_some()
                || matches!(phase, Some("Succeeded" | "Failed")),
        }
    }
}

/// The selector as the API server takes it.
pub fn label_selector(selector: &PodSelector) -> Selector {
    let equal = selector
        .match_labels
        .iter()
        .map(|(key, value)| Expression::Equal(key.clone(), value.clone()));
    let others = selector.match_expressions.iter().map(|requirement| {
        let key = requirement.key.clone();
        let values = || requirement.values.iter().cloned().collect();
        match requirement.operator {
            LabelOperator::In => Expression::In(key, values()),
            LabelOperator::NotIn => Expression::NotIn(key, values()),
            LabelOperator::Exists => Expression::Exists(key),
            LabelOperator::DoesNotExist => Expression::DoesNotExist(key),
        }
    });
    equal.chain(others).collect()
}

/// The pods to ask, in the order in which they are asked.
///
/// # Errors
/// When there is none, or more than one session may have.
pub fn choose(
    mut found: Vec<Candidate>,
    count: &PodCount,
    selector: &str,
    namespace: &str,
) -> Result<Vec<Candidate>, Refusal> {
    let all = found.len();
    found.retain(|pod| !pod.over);
    if found.is_empty() {
        let what = if all == 0 {
            format!("no pod in namespace {namespace} matches {selector}")
        } else {
            format!(
                "every pod in namespace {namespace} that matches {selector} has ended or is being deleted ({all} of them)"
            )
        };
        return Err(Refusal::new(Reason::PodNotFound, what));
    }
    let matching = found.len();
    let value = usize::try_from(count.value.unwrap_or(1))
        .unwrap_or(1)
        .max(1);
    let wanted = match count.mode {
        PodMode::One => 1,
        PodMode::All => matching,
        PodMode::Fixed => value.min(matching),
        PodMode::Percent => matching.saturating_mul(value.min(100)).div_ceil(100).max(1),
    };
    if wanted > MAX_TARGETS {
        return Err(Refusal::new(
            Reason::TooManyTargets,
            format!(
                "{wanted} pods match {selector}, more than the {MAX_TARGETS} that one session may ask: narrow the selector, or use pods.mode Fixed or Percent"
            ),
        ));
    }
    found.sort_by(|one, other| {
        (one.ready, -i64::from(one.restarts), &one.name).cmp(&(
            other.ready,
            -i64::from(other.restarts),
            &other.name,
        ))
    });
    found.truncate(wanted);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ready: bool, restarts: i32) -> Candidate {
        Candidate {
            name: name.into(),
            uid: format!("uid-{name}"),
            node: None,
            ready,
            restarts,
            over: false,
        }
    }

    fn chosen(found: &[Candidate], mode: PodMode, value: Option<i32>) -> Vec<String> {
        let count = PodCount {
            mode,
            value,
            ..PodCount::default()
        };
        choose(found.to_vec(), &count, "app=web", "shop")
            .unwrap()
            .into_iter()
            .map(|pod| pod.name)
            .collect()
    }

    #[test]
    fn the_pods_in_which_something_is_wrong_come_first() {
        let found = [
            pod("c", true, 0),
            pod("a", true, 0),
            pod("d", true, 3),
            pod("b", false, 0),
            pod("e", false, 7),
        ];
        assert_eq!(
            chosen(&found, PodMode::All, None),
            ["e", "b", "d", "a", "c"]
        );
        assert_eq!(chosen(&found, PodMode::One, None), ["e"]);
        assert_eq!(chosen(&found, PodMode::Fixed, Some(2)), ["e", "b"]);
        assert_eq!(chosen(&found, PodMode::Fixed, Some(200)).len(), 5);
        for (percent, pods) in [(1, 1), (20, 1), (21, 2), (50, 3), (99, 5), (100, 5)] {
            assert_eq!(
                chosen(&found, PodMode::Percent, Some(percent)).len(),
                pods,
                "{percent}"
            );
        }
    }

    #[test]
    fn pods_that_have_ended_are_not_asked_and_are_counted_where_no_other_is_there() {
        let mut over = pod("a", false, 9);
        over.over = true;
        assert_eq!(
            chosen(&[over.clone(), pod("b", true, 0)], PodMode::All, None),
            ["b"]
        );
        let count = PodCount::default();
        for (found, words) in [
            (vec![], "no pod in namespace shop matches app=web"),
            (vec![over], "has ended or is being deleted (1 of them)"),
        ] {
            let refusal = choose(found, &count, "app=web", "shop").unwrap_err();
            assert_eq!(refusal.reason, Reason::PodNotFound);
            assert!(refusal.message.contains(words), "{}", refusal.message);
        }
    }

    #[test]
    fn more_pods_than_a_session_may_ask_are_asked_nothing() {
        let found: Vec<_> = (0..257).map(|n| pod(&n.to_string(), true, 0)).collect();
        let all = PodCount {
            mode: PodMode::All,
            ..PodCount::default()
        };
        let refusal = choose(found.clone(), &all, "app=web", "shop").unwrap_err();
        assert_eq!(refusal.reason, Reason::TooManyTargets);
        assert_eq!(
            choose(found[1..].to_vec(), &all, "", "").unwrap().len(),
            256
        );
    }

    #[test]
    fn what_is_known_of_a_pod_is_read_from_its_status() {
        let pod = crate::testing::pod(json!({"status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "app", "ready": true, "restartCount": 2, "image": "", "imageID": ""}],
            "initContainerStatuses": [{"name": "init", "ready": true, "restartCount": 1, "image": "", "imageID": ""}],
        }}));
        let candidate = Candidate::of(&pod);
        assert!(candidate.ready && !candidate.over);
        assert_eq!(candidate.restarts, 3);
        let ended = crate::testing::pod(json!({"status": {"phase": "Failed"}}));
        assert!(Candidate::of(&ended).over);
    }

    #[test]
    fn a_selector_is_written_as_the_api_server_reads_it() {
        let selector: PodSelector = serde_json::from_value(json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "canary", "operator": "DoesNotExist"},
                {"key": "zone", "operator": "NotIn", "values": ["z"]},
                {"key": "on", "operator": "Exists"},
            ],
        }))
        .unwrap();
        assert_eq!(
            label_selector(&selector).to_string(),
            "app=web,tier in (a,b),!canary,zone notin (z),on"
        );
    }
}
