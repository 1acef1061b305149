//! Whether a script that outlived its session can still be asked about.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use sidewinder_model::Reason;

use super::target::restarts;
use crate::inject::{self, ResidentState};

/// Where a script was left running, and who watches it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The pod's UID.
    pub pod_uid: &'a str,
    /// The target container.
    pub container: &'a str,
    /// The runtime's id of the target container.
    pub container_id: &'a str,
    /// Our ephemeral container.
    pub sidecar: &'a str,
}

/// Why nobody will ever tell the script's end, as far as the pod shows it: the script's process has ended with its
/// container, or the sidecar is gone.
pub fn out_of_reach(pod: Option<&Pod>, place: &Place<'_>) -> Option<(Reason, String)> {
    let Some(pod) = pod else {
        return Some((Reason::TargetExited, "the pod is gone".to_owned()));
    };
    if pod.uid().as_deref() != Some(place.pod_uid) {
        let words = "the pod was replaced by another of its name";
        return Some((Reason::TargetExited, words.to_owned()));
    }
    let status = inject::container_status(pod, place.container);
    let state = status.and_then(|status| status.state.as_ref());
    let ended = state.and_then(|state| state.terminated.as_ref());
    let restarted = status
        .and_then(|status| status.container_id.as_deref())
        .is_some_and(|id| id != place.container_id)
        || state.is_some_and(|state| state.waiting.is_some())
        || ended.is_some_and(|ended| restarts(pod, place.container, ended.exit_code));
    if restarted {
        let words = format!("container {} was started again", place.container);
        return Some((Reason::TargetRestarted, words));
    }
    if ended.is_some() {
        let words = format!("container {} has ended", place.container);
        return Some((Reason::TargetExited, words));
    }
    match inject::resident_state(pod, place.sidecar) {
        ResidentState::Ended { code, .. } => Some((
            Reason::SidecarLost,
            format!("sidecar {} ended (exit code {code})", place.sidecar),
        )),
        ResidentState::Stuck { reason, .. } => Some((
            Reason::SidecarLost,
            format!("sidecar {} does not run ({reason})", place.sidecar),
        )),
        ResidentState::Starting | ResidentState::Running => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing;

    #[test]
    fn a_script_ends_with_its_container_and_is_not_known_of_without_its_sidecar() {
        let place = Place {
            pod_uid: "pod-uid-1",
            container: "app",
            container_id: "containerd://c1",
            sidecar: "sidewinder-app-1",
        };
        let container = |state, id: &str| {
            json!({"status": {"containerStatuses": [{
                "name": "app", "ready": true, "restartCount": 0, "image": "app:1", "imageID": "app",
                "containerID": id, "state": state
            }]}})
        };
        let running = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
        let ended = json!({"terminated": {"exitCode": 3}});
        let sidecar = |state| {
            json!({"status": {"ephemeralContainerStatuses": [{
                "name": "sidewinder-app-1", "ready": false, "restartCount": 0, "image": "s", "imageID": "s",
                "state": state
            }]}})
        };
        for (patch, reason) in [
            (json!({}), None),
            (
                json!({"metadata": {"uid": "pod-uid-2"}}),
                Some(Reason::TargetExited),
            ),
            (
                container(running, "containerd://c2"),
                Some(Reason::TargetRestarted),
            ),
            (
                container(ended.clone(), "containerd://c1"),
                Some(Reason::TargetRestarted),
            ),
            (sidecar(json!({"running": {}})), None),
            (sidecar(ended.clone()), Some(Reason::SidecarLost)),
            (
                sidecar(json!({"waiting": {"reason": "CreateContainerError"}})),
                Some(Reason::SidecarLost),
            ),
        ] {
            let pod = testing::pod(patch.clone());
            let found = out_of_reach(Some(&pod), &place).map(|(reason, _)| reason);
            assert_eq!(found, reason, "{patch}");
        }
        let mut never = container(ended, "containerd://c1");
        never["spec"] = json!({"restartPolicy": "Never"});
        let found = out_of_reach(Some(&testing::pod(never)), &place);
        assert_eq!(found.map(|(reason, _)| reason), Some(Reason::TargetExited));
        assert!(out_of_reach(None, &place).is_some());
    }
}
