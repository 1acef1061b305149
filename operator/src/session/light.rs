//! A session as the watch keeps it until its turn comes: without its script. A thousand sessions that wait would otherwise
//! hold a thousand scripts of up to 256 KiB, and as many again in what `kubectl apply` keeps of them in an annotation.
//!
//! What is left out is read again when the session is worked on. Its spec cannot change meanwhile, but for `cancel`.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer};
use sidewinder_crds::DebugSession;

/// The longest script that stays, in bytes: a short one costs less than to read it again.
const SHORT: usize = 1024;
/// Where `kubectl apply` keeps a copy of the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A session without what is large in it.
#[derive(Clone, Debug)]
pub(super) struct Light(pub(super) DebugSession);

impl From<DebugSession> for Light {
    fn from(mut session: DebugSession) -> Self {
        session.metadata.managed_fields = None;
        if let Some(annotations) = &mut session.metadata.annotations {
            annotations.remove(LAST_APPLIED);
        }
        if let Some(exec) = &mut session.spec.remote_exec {
            exec.script.take_if(|script| script.len() > SHORT);
        }
        Self(session)
    }
}

impl<'de> Deserialize<'de> for Light {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DebugSession::deserialize(deserializer).map(Self::from)
    }
}

/// Whether the script was left out. The schema lets no session in that names none: forgotten, it is refused and not run
/// without its words.
pub(super) fn lacks_its_script(session: &DebugSession) -> bool {
    let exec = session.spec.remote_exec.as_ref();
    exec.is_some_and(|exec| exec.script.is_none() && exec.script_from.is_none())
}

impl Resource for Light {
    type DynamicType = <DebugSession as Resource>::DynamicType;
    type Scope = <DebugSession as Resource>::Scope;

    fn kind(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        DebugSession::kind(dynamic)
    }

    fn group(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        DebugSession::group(dynamic)
    }

    fn version(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        DebugSession::version(dynamic)
    }

    fn plural(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        DebugSession::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::session;

    #[test]
    fn what_waits_keeps_no_long_script_and_says_that_it_lacks_one() {
        for (script, kept) in [("1".repeat(SHORT), true), ("1".repeat(SHORT + 1), false)] {
            let mut whole = session(json!({"remoteExec": {"script": script}, "cancel": true}));
            whole.metadata.annotations = Some([(LAST_APPLIED.to_owned(), script)].into());
            let text = serde_json::to_string(&whole).unwrap();
            let Light(light) = serde_json::from_str(&text).unwrap();
            assert_eq!(lacks_its_script(&light), !kept);
            assert!(
                !light
                    .metadata
                    .annotations
                    .unwrap()
                    .contains_key(LAST_APPLIED)
            );
            assert_eq!(light.metadata.uid, whole.metadata.uid);
            assert!(light.spec.cancel);
        }
        for other in [
            json!({"stacks": {}}),
            json!({"remoteExec": {"scriptFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}}),
        ] {
            let Light(light) = session(other.clone()).into();
            assert!(!lacks_its_script(&light), "{other}");
        }
    }
}
