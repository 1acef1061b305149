//! Whether the target container can be entered now, later or never, and whether the kubelet will start it again.
//! Waiting has a limit that counts from the session's start; what will not change by itself is not waited for.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sidewinder_crds::DebugSession;
use sidewinder_model::Reason;

use super::{POD_LIMIT, Step, after, end, started};
use crate::inject;

/// A target container that runs.
pub(super) struct Running<'a> {
    pub(super) name: &'a str,
    pub(super) id: &'a str,
}

/// Whether the pod can be entered now, later, or never.
pub(super) fn enterable<'a>(
    session: &DebugSession,
    pod: &'a Pod,
    now: Timestamp,
) -> Result<Running<'a>, Box<Step>> {
    let spec = &session.spec;
    let name = pod.name_any();
    let refuse = |refusal| Box::new(super::refuse(refusal));
    let not_running =
        |what: String| Box::new(end(Reason::PodNotRunning, format!("pod {name} {what}")));
    if pod.metadata.deletion_timestamp.is_some() {
        return Err(not_running("is being deleted".into()));
    }
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("Pending");
    if let "Succeeded" | "Failed" = phase {
        return Err(not_running(format!("has ended (phase {phase})")));
    }
    inject::check_kind(pod).map_err(refuse)?;
    let container =
        inject::choose_container(pod, spec.target.container.as_deref()).map_err(refuse)?;
    let until = after(started(session, now), POD_LIMIT);
    let wait = |what: String| {
        if now < until {
            Box::new(Step::AwaitPod { until, what })
        } else {
            not_running(format!("{what}; waited {} s", POD_LIMIT.as_secs()))
        }
    };
    let status = inject::container_status(pod, container);
    let state = status.and_then(|status| status.state.as_ref());
    if let Some(ended) = state.and_then(|state| state.terminated.as_ref()) {
        let what = format!(
            "has no running container {container}: it ended with exit code {} ({})",
            ended.exit_code,
            ended.reason.as_deref().unwrap_or("no reason given")
        );
        return Err(if restarts(pod, container, ended.exit_code) {
            wait(what)
        } else {
            not_running(what)
        });
    }
    if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
        return Err(wait(format!(
            "has no running container {container}: it waits ({}{})",
            waiting.reason.as_deref().unwrap_or("no reason given"),
            waiting
                .message
                .as_deref()
                .map(|message| format!(": {message}"))
                .unwrap_or_default()
        )));
    }
    let id = status
        .and_then(|status| status.container_id.as_deref())
        .filter(|_| state.is_some_and(|state| state.running.is_some()));
    match id {
        Some(id) => Ok(Running {
            name: container,
            id,
        }),
        None => Err(wait(format!("is {}", unscheduled(pod, phase)))),
    }
}

/// Why a pod is still pending, in the scheduler's words where it has some.
fn unscheduled(pod: &Pod, phase: &str) -> String {
    let words = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .and_then(|conditions| {
            conditions
                .iter()
                .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
        })
        .and_then(|condition| condition.message.as_deref());
    match words {
        Some(words) => format!("{phase}: {words}"),
        None => phase.to_owned(),
    }
}

/// Whether nothing of the pod is started any more: it is being deleted, was evicted, or has ended.
pub(super) fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether the kubelet will start the container again.
pub(super) fn restarts(pod: &Pod, container: &str, code: i32) -> bool {
    let Some(spec) = &pod.spec else { return false };
    if is_over(pod) {
        return false;
    }
    let init = spec
        .init_containers
        .iter()
        .flatten()
        .any(|init| init.name == container);
    init || match spec.restart_policy.as_deref() {
        Some("Never") => false,
        Some("OnFailure") => code != 0,
        _ => true,
    }
}
