//! Who asked for what, where, and what came of it: for the log and for Events. Never the script, never its output. Pure.

use sidewinder_crds::DebugSession;
use sidewinder_model::Reason;
use tracing::info;

use super::words::escaped;

/// What is written down of one target's end, or of a whole session's where `pod` is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The requester's name as the session says it; `unknown` where it says none.
    pub requester: String,
    /// The action's name.
    pub action: &'static str,
    /// Whether it needed the right to run code.
    pub runs_code: bool,
    /// The digest of the script that was accepted.
    pub script_sha256: Option<String>,
    /// The session.
    pub session: String,
    /// The session's UID.
    pub session_uid: String,
    /// The pod.
    pub pod: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// How it ended.
    pub outcome: Reason,
    /// Why it was done, in the requester's words.
    pub purpose: String,
}

/// The record of `session` on a pod, by the pod's name and UID.
pub fn record(
    session: &DebugSession,
    script_sha256: Option<&str>,
    pod: Option<(&str, &str)>,
    outcome: Reason,
) -> Record {
    let metadata = &session.metadata;
    let (pod, pod_uid) = pod.unwrap_or_default();
    let requester = session.spec.requested_by.as_ref();
    Record {
        requester: requester.map_or_else(
            || "unknown".to_owned(),
            |requester| escaped(&requester.username),
        ),
        action: session.spec.action().map_or("none", |action| action.name()),
        runs_code: super::runs_code(session),
        script_sha256: script_sha256.map(str::to_owned),
        session: format!(
            "{}/{}",
            metadata.namespace.as_deref().unwrap_or_default(),
            metadata.name.as_deref().unwrap_or_default()
        ),
        session_uid: metadata.uid.clone().unwrap_or_default(),
        pod: pod.to_owned(),
        pod_uid: pod_uid.to_owned(),
        outcome,
        purpose: escaped(session.spec.reason.as_deref().unwrap_or_default()),
    }
}

impl Record {
    /// One line for an Event, beside the Event's own reason and object. The purpose is left to the Event, which has it
    /// from the session.
    pub fn note(&self) -> String {
        let mut note = format!("{} by {}", self.action, self.requester);
        if let Some(digest) = &self.script_sha256 {
            note.push_str(", script sha256:");
            note.push_str(digest);
        }
        if !self.pod_uid.is_empty() {
            note.push_str(", pod uid ");
            note.push_str(&self.pod_uid);
        }
        note.push_str(": ");
        note.push_str(&self.outcome.to_string());
        note
    }

    /// One line in the log, under the target `audit`, which a log filter can single out.
    pub fn log(&self) {
        info!(
            target: "audit",
            requester = self.requester,
            action = self.action,
            runs_code = self.runs_code,
            script_sha256 = self.script_sha256.as_deref().unwrap_or_default(),
            session = self.session,
            session_uid = self.session_uid,
            pod = self.pod,
            pod_uid = self.pod_uid,
            outcome = %self.outcome,
            purpose = self.purpose,
            "audit"
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing;

    #[test]
    fn the_record_has_who_what_where_and_how_and_nothing_of_the_script() {
        let session = testing::session(json!({
            "remoteExec": {"script": "print('hunter2')"},
            "requestedBy": {"username": "ann\nroot", "groups": ["dev"]},
            "reason": "INC-4711",
        }));
        let digest = "ab".repeat(32);
        let record = record(
            &session,
            Some(&digest),
            Some(("web-0", "pod-uid-1")),
            Reason::Succeeded,
        );
        assert_eq!(
            record.note(),
            format!(
                "remoteExec by ann\\nroot, script sha256:{digest}, pod uid pod-uid-1: Succeeded"
            )
        );
        assert!(record.runs_code);
        assert_eq!(record.session, "shop/why");
        assert_eq!(record.purpose, "INC-4711");
        assert!(!format!("{record:?}").contains("hunter2"));
    }

    #[test]
    fn a_session_of_nobody_on_no_pod_is_written_down_too() {
        let session = testing::session(json!({"stacks": {}}));
        let record = record(&session, None, None, Reason::PolicyDenied);
        assert_eq!(record.note(), "stacks by unknown: PolicyDenied");
        assert!(!record.runs_code);
    }
}
