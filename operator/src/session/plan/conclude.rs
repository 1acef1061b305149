//! What an answer means: the session's end, or, where the kernel refused and nothing was begun, the other way into the
//! pod.

use sidewinder_crds::DebugSessionSpec;
use sidewinder_model::{Outcome, Reason, TargetOutcome};

use super::way::{Way, way};
use super::{ANSWER_GRACE, Answer, CANCEL_LIMIT, End, Observed, Step, end};
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
            if let Some(step) = never_begun(observed, outcome) {
                return step;
            }
            // Nothing was begun where every process refused, so the other way may be tried.
            let untouched = |target: &TargetOutcome| {
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
            let Refusal { reason, message } = refusal.clone();
            // Another run of the agent cannot know what the one before did.
            Step::End(Box::new(End {
                maybe_armed: once && reason == Reason::SidecarLost,
                reason,
                message,
                outcome: None,
            }))
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

/// The end of a script that was barred before its agent knew it: it had no time to begin. Of one that the agent knew the
/// answer counts, unless nothing was armed for it either.
fn never_begun(observed: &Observed, outcome: &Outcome) -> Option<Step> {
    let refusal = observed.barred.as_ref()?;
    let begun = |target: &TargetOutcome| {
        target.disarmed.is_some()
            || target.reason.is_complete()
            || target.reason == Reason::SidecarLost
    };
    let nothing = !outcome.targets.is_empty() && !outcome.targets.iter().any(begun);
    nothing.then(|| {
        end(
            refusal.reason,
            format!(
                "{}; the script was not begun, and will not be",
                refusal.message
            ),
        )
    })
}
