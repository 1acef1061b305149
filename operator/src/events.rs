//! Events on sessions and on the pods they look into. They explain; nothing depends on them.

use std::sync::Arc;

use k8s_controller::events::{Event, EventRecorder, EventType, Reporter};
use kube::Resource;
use sidewinder_crds::DebugSession;
use sidewinder_crds::names::EVENT_CONTROLLER;
use sidewinder_model::Reason;
use tokio_util::task::TaskTracker;
use tracing::debug;

/// Publishes in the background, so that no session waits for its Events.
#[derive(Clone)]
pub struct Events {
    recorder: Arc<EventRecorder>,
    tasks: TaskTracker,
}

impl Events {
    /// Events in the name of the replica `identity`.
    pub fn new(client: kube::Client, identity: &str) -> Self {
        let reporter = Reporter {
            controller: EVENT_CONTROLLER.to_owned(),
            instance: Some(identity.to_owned()),
        };
        Self {
            recorder: Arc::new(EventRecorder::new(client, reporter)),
            tasks: TaskTracker::new(),
        }
    }

    /// Says `note` of `object`. `note` must not carry anything that a script printed.
    pub fn publish<K>(
        &self,
        object: &K,
        session: &DebugSession,
        reason: Reason,
        good: bool,
        note: &str,
    ) where
        K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    {
        let note = match session.spec.reason.as_deref() {
            Some(why) if !why.is_empty() => format!("{note} (asked for: {why})"),
            _ => note.to_owned(),
        };
        let event = Event {
            type_: if good {
                EventType::Normal
            } else {
                EventType::Warning
            },
            reason: reason.to_string(),
            action: "Debug".to_owned(),
            note: Some(note),
            related: None,
        };
        let recorder = Arc::clone(&self.recorder);
        let object = object.clone();
        self.tasks.spawn(async move {
            if let Err(error) = recorder.publish(&object, &event).await {
                debug!(%error, "an Event could not be published");
            }
        });
    }

    /// Waits until what was published is out; each Event takes 5 s at most.
    pub async fn flush(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }
}
