//! Getting into a pod whose target runs: through a sidecar that is there already, else through one that is added, and
//! when it is time to stop trying, because a sidecar failed, too many went away, or the limit has passed.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use sidewinder_crds::DebugSessionSpec;
use sidewinder_model::Reason;

use super::target::Running;
use super::way::{Way, allowed, refused_everywhere, way};
use super::{ENTER_LIMIT, MAX_ASKED, MAX_INJECTIONS, Observed, Step, after, end, refuse};
use crate::inject::{self, Refusal, Resident, ResidentState, SidecarImage};
use crate::relay::RelayError;

pub(super) fn enter(
    spec: &DebugSessionSpec,
    observed: &Observed,
    pod: &Pod,
    target: &Running<'_>,
    sidecar: &SidecarImage,
    now: Timestamp,
) -> Step {
    let Running {
        name: target,
        id: target_id,
    } = *target;
    let since = observed.entering_since.unwrap_or(now);
    let until = after(since, ENTER_LIMIT);
    let Some(way) = way(spec, &observed.refused) else {
        return refused_everywhere(&observed.refused);
    };
    let residents = inject::residents(pod, target, sidecar);
    // An agent of another release that speaks another protocol is passed over: one of ours may be added beside it.
    let outdated = matches!(observed.link_error, Some(RelayError::Version { .. }));
    let living = |way: Way| {
        residents
            .iter()
            .rev()
            .filter(move |resident| resident.attach == Some(way.into()))
            .find(|resident| {
                // Another release's is used where it runs; one that does not start may be why there is another release.
                let running = resident.state == ResidentState::Running;
                resident.may_live() && (resident.current || running && !outdated)
            })
    };
    // What lives comes before what would be added, which nobody could remove again.
    let alive = living(way).map(|resident| (way, resident)).or_else(|| {
        let others = allowed(spec, &observed.refused).into_iter();
        others
            .filter_map(|other| Some((other, living(other)?)))
            .find(|(_, resident)| resident.state == ResidentState::Running)
    });
    if let Some((way, resident)) = alive {
        return open(observed, resident, way, until, now);
    }
    let words = |resident: &Resident| match &resident.state {
        ResidentState::Ended { code, message } if message.is_empty() => {
            format!("sidecar {} ended with exit code {code}", resident.name)
        }
        ResidentState::Ended { code, message } => format!(
            "sidecar {} ended with exit code {code} ({message})",
            resident.name
        ),
        _ => format!("sidecar {} went away", resident.name),
    };
    // What this session added and what ended beside a target that lives would end again. A target that restarted
    // takes every process of its PID namespace along; a sidecar that was idle for long ends with code 0.
    let failed = residents.iter().find(|resident| {
        matches!(resident.state, ResidentState::Ended { code, .. } if code != 0)
            && !observed.asked.contains(&resident.name)
            && observed
                .injected
                .get(&resident.name)
                .is_some_and(|id| id == target_id)
    });
    if let Some(failed) = failed {
        return end(
            Reason::SidecarFailed,
            format!("{}{}", words(failed), words_of(observed)),
        );
    }
    if observed.asked.len() >= MAX_ASKED {
        let last = residents
            .iter()
            .rev()
            .find(|resident| observed.asked.contains(&resident.name));
        return end(
            Reason::SidecarLost,
            format!(
                "{} while it worked, as did the one before",
                last.map_or_else(|| "the sidecar went away".to_owned(), words)
            ),
        );
    }
    if observed.injected.len() >= MAX_INJECTIONS || now >= until {
        return end(
            Reason::SidecarFailed,
            format!(
                "no sidecar stayed: this session added {}{}",
                observed.injected.len(),
                words_of(observed)
            ),
        );
    }
    match inject::next_name(pod, target, sidecar)
        .map_err(|refusal| {
            // Why what is there was not enough.
            let message = format!("{}{}", refusal.message, words_of(observed));
            Refusal::new(refusal.reason, message)
        })
        .and_then(|name| inject::ephemeral_container(pod, target, way.into(), sidecar, &name))
    {
        Ok(container) => Step::Inject {
            way,
            container: Box::new(container),
        },
        Err(refusal) if refusal.reason == Reason::PermissionDenied => {
            Step::FallBack { way, refusal }
        }
        Err(refusal) => refuse(refusal),
    }
}

fn open(
    observed: &Observed,
    resident: &Resident,
    way: Way,
    until: Timestamp,
    now: Timestamp,
) -> Step {
    if let ResidentState::Stuck { reason, message } = &resident.state
        && inject::is_pull_failure(reason)
    {
        return end(
            Reason::ImagePullFailed,
            format!(
                "the sidecar's image cannot be pulled: {reason}: {message}; make the image available to the node, or set another one"
            ),
        );
    }
    if let Some(step) = unusable(observed.link_error.as_ref()) {
        return step;
    }
    if now < until {
        return Step::Open {
            sidecar: resident.name.clone(),
            way,
            until,
        };
    }
    let limit = ENTER_LIMIT.as_secs();
    match (&resident.state, &observed.link_error) {
        (ResidentState::Stuck { reason, message }, _) => end(
            Reason::SidecarFailed,
            format!(
                "sidecar {} did not start within {limit} s: {reason}: {message}",
                resident.name
            ),
        ),
        (_, Some(error @ RelayError::NodeUnreachable(_))) => {
            end(Reason::NodeLost, format!("{error}; tried for {limit} s"))
        }
        (ResidentState::Starting, _) => end(
            Reason::SidecarFailed,
            format!(
                "sidecar {} did not start within {limit} s: its node's kubelet has not said that the container runs, nor why not{}",
                resident.name,
                words_of(observed)
            ),
        ),
        _ => end(
            Reason::SidecarFailed,
            format!(
                "sidecar {} did not answer within {limit} s{}",
                resident.name,
                words_of(observed)
            ),
        ),
    }
}

/// The last thing that was heard about the stream.
pub(super) fn words_of(observed: &Observed) -> String {
    observed
        .link_error
        .as_ref()
        .map(|error| format!(": {error}"))
        .unwrap_or_default()
}

/// Errors of the stream that trying again does not mend.
pub(super) fn unusable(error: Option<&RelayError>) -> Option<Step> {
    match error? {
        error @ RelayError::Forbidden(_) => {
            Some(end(Reason::AdmissionForbidden, error.to_string()))
        }
        error @ RelayError::Version { .. } => Some(end(Reason::SidecarVersion, error.to_string())),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
