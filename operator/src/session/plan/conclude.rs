//! What an answer means: the session's end, or, where the kernel refused and nothing was begun, the other way into the
//! pod.

use sidewinder_crds::DebugSessionSpec;
use sidewinder_model::Reason;

use super::way::{Way, way};
use super::{ANSWER_GRACE, Answer, CANCEL_LIMIT, End, Observed, Step, end, refuse};
use crate::inject::Refusal;

/// What an answer means.
pub(super) fn conclude(
    spec: &DebugSessionSpec,
    observed: &Observed,
    answer: &Answer,
    once: bool,
) -> Step {
    let link_way = observed
        .link
        .as_ref()
        .map(|link| Way::from(link.attach))
        .or_else(|| {
            observed
                .intent
                .as_ref()
                .map(|intent| Way::from(intent.attach))
        });
    let fall_back = |refusal: Refusal| {
        let way = link_way?;
        let denied = matches!(
            refusal.reason,
            Reason::PermissionDenied | Reason::YamaForbidden
        );
        let mut refused = observed.refused.clone();
        refused.insert(way, refusal.clone());
        let other =
            denied && observed.cancelled_since.is_none() && self::way(spec, &refused).is_some();
        other.then_some(Step::FallBack { way, refusal })
    };
    match answer {
        Answer::Finished(outcome) => {
            // What the agent did not know had no time to begin, and of what it knew nothing was armed.
            let begun = |target: &sidewinder_model::TargetOutcome| {
                target.disarmed.is_some()
                    || target.reason.is_complete()
                    || target.reason == Reason::SidecarLost
            };
            if let Some(refusal) = &observed.barred
                && !outcome.targets.is_empty()
                && !outcome.targets.iter().any(begun)
            {
                return end(
                    refusal.reason,
                    format!(
                        "{}; the script was not begun, and will not be",
                        refusal.message
                    ),
                );
            }
            // Nothing was begun where every process refused, so the other way may be tried.
            let untouched = |target: &sidewinder_model::TargetOutcome| {
                matches!(
                    target.reason,
                    Reason::PermissionDenied | Reason::YamaForbidden
                ) && target.disarmed.is_none()
            };
            if let Some(first) = outcome.targets.first()
                && outcome.targets.iter().all(untouched)
                && let Some(step) = fall_back(Refusal::new(first.reason, first.message.clone()))
            {
                return step;
            }
            Step::End(Box::new(End {
                reason: Reason::InternalError,
                message: "the agent answered for no process".into(),
                outcome: Some(outcome.clone()),
                maybe_armed: false,
            }))
        }
        Answer::Refused(refusal) => {
            if let Some(step) = fall_back(refusal.clone()) {
                return step;
            }
            refuse(refusal.clone())
        }
        Answer::Unreadable(refusal) => Step::End(Box::new(End {
            reason: refusal.reason,
            message: refusal.message.clone(),
            outcome: None,
            maybe_armed: once,
        })),
        Answer::Silent => Step::End(Box::new(if observed.cancelled_since.is_some() {
            End {
                reason: Reason::Cancelled,
                message: format!(
                    "cancelled; the sidecar did not confirm it within {} s",
                    CANCEL_LIMIT.as_secs()
                ),
                outcome: None,
                maybe_armed: once,
            }
        } else {
            End {
                reason: Reason::Timeout,
                message: format!(
                    "the sidecar did not answer within {} s (timeoutSeconds) and {} s more",
                    spec.timeout_seconds,
                    ANSWER_GRACE.as_secs()
                ),
                outcome: None,
                maybe_armed: once,
            }
        })),
    }
}
