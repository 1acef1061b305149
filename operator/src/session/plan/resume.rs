//! A script that was, or may have been, given to an agent: it is asked for from that run of that agent and from no
//! other, and where that run is gone the session ends, in words that leave open whether the script ran.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sidewinder_crds::DebugSession;
use sidewinder_model::Reason;

use super::enter::{unusable, words_of};
use super::request::{ask, timeout};
use super::target::{is_over, restarts};
use super::{ANSWER_GRACE, CANCEL_LIMIT, ENTER_LIMIT, End, Intent, Observed, Step, after};
use crate::inject::{self, ResidentState};
use crate::relay::RelayError;

/// The action was, or may have been, given to an agent and must not begin anywhere else.
#[expect(clippy::too_many_lines, reason = "one case after the other")]
pub(super) fn resume(
    session: &DebugSession,
    observed: &Observed,
    pod: &Pod,
    intent: &Intent,
    script: Option<&str>,
    now: Timestamp,
) -> Step {
    let name = pod.name_any();
    let lost = |reason, message: String, maybe_armed| {
        Step::End(Box::new(End {
            reason,
            message,
            outcome: None,
            maybe_armed,
        }))
    };
    if pod.uid().as_deref() != Some(intent.pod_uid.as_str()) {
        return lost_pod(observed, &name, true, "was replaced by another of its name");
    }
    let status = inject::container_status(pod, &intent.container);
    let state = status.and_then(|status| status.state.as_ref());
    let id = status.and_then(|status| status.container_id.as_deref());
    let restarted = id.is_some_and(|id| id != intent.container_id);
    let ended = state.and_then(|state| state.terminated.as_ref());
    let waiting = state.is_some_and(|state| state.waiting.is_some());
    let over = is_over(pod).then(|| {
        if pod.metadata.deletion_timestamp.is_some() {
            "is being deleted"
        } else {
            "has ended"
        }
    });
    let what = format!("container {} of pod {name}", intent.container);
    if restarted
        || (waiting && over.is_none())
        || ended.is_some_and(|ended| restarts(pod, &intent.container, ended.exit_code))
    {
        return lost(
            Reason::TargetRestarted,
            format!(
                "{what} restarted while the script was asked for; it is not run again, since it may have run already"
            ),
            false,
        );
    }
    if ended.is_some() || waiting {
        let code = ended
            .map(|ended| format!(" with exit code {}", ended.exit_code))
            .unwrap_or_default();
        let over = over
            .map(|over| format!("; the pod {over}"))
            .unwrap_or_default();
        return lost(
            Reason::TargetExited,
            format!("{what} ended{code} while the script was asked for{over}"),
            false,
        );
    }
    let gone = |how: String| {
        // A pod that is over takes the sidecar along, often before its own containers.
        let (reason, cause) = match over {
            Some(over) => (Reason::TargetExited, format!("pod {name} {over}: ")),
            None => (Reason::SidecarLost, String::new()),
        };
        lost(
            reason,
            format!(
                "{cause}sidecar {} {how} after the script was given to it; it is not run again, since it may have run already",
                intent.sidecar
            ),
            true,
        )
    };
    match inject::resident_state(pod, &intent.sidecar) {
        ResidentState::Ended { code, message } => {
            return gone(format!(
                "ended (exit code {code}{}{message})",
                if message.is_empty() { "" } else { ", " }
            ));
        }
        ResidentState::Stuck { reason, message } => {
            return gone(format!("does not run ({reason}: {message})"));
        }
        ResidentState::Running | ResidentState::Starting => {}
    }
    if let Some(link) = &observed.link {
        if link.instance != intent.instance {
            return gone("was started again".into());
        }
        return ask(
            session,
            observed,
            script,
            &intent.container_id,
            Some(&intent.instance),
            now,
        );
    }
    if let Some(Step::End(mut end)) = unusable(observed.link_error.as_ref()) {
        end.maybe_armed = true;
        return Step::End(end);
    }
    let since = observed.entering_since.unwrap_or(now);
    let mut until = after(since, ENTER_LIMIT);
    if let Some(cancelled) = observed.cancelled_since {
        until = until.min(after(cancelled, CANCEL_LIMIT));
    } else if let Some(asked) = observed.asked_since {
        until = until.max(after(
            asked,
            timeout(&session.spec).saturating_add(ANSWER_GRACE),
        ));
    }
    if now < until {
        return Step::Open {
            sidecar: intent.sidecar.clone(),
            way: intent.attach.into(),
            until,
        };
    }
    if observed.cancelled_since.is_some() {
        return lost(
            Reason::Cancelled,
            format!(
                "cancelled; the sidecar could not be reached to confirm it{}",
                words_of(observed)
            ),
            true,
        );
    }
    match &observed.link_error {
        Some(error @ RelayError::NodeUnreachable(_)) => {
            lost(Reason::NodeLost, error.to_string(), true)
        }
        _ => gone(format!("does not answer{}", words_of(observed))),
    }
}

/// The pod went away while something was asked of it.
pub(super) fn lost_pod(observed: &Observed, name: &str, once: bool, how: &str) -> Step {
    let cancelled = observed.cancelled_since.is_some();
    // An object that is deleted while its node is silent says nothing about the processes there
    // (https://kubernetes.io/docs/tasks/run-application/force-delete-stateful-set-pod/#force-deletion).
    let silent = observed.link_error.as_ref().filter(|error| {
        matches!(
            error,
            RelayError::NodeUnreachable(_) | RelayError::Silent(_)
        )
    });
    let asked = if once {
        "the script was"
    } else {
        "the answer was"
    };
    let mut message = format!("pod {name} {how} while {asked} asked for");
    if let Some(error) = silent {
        message = format!("{message}; whether its processes ended with it is not known: {error}");
    }
    Step::End(Box::new(End {
        reason: if cancelled {
            Reason::Cancelled
        } else if silent.is_some() {
            Reason::NodeLost
        } else {
            Reason::TargetExited
        },
        message,
        outcome: None,
        maybe_armed: once && silent.is_some(),
    }))
}
