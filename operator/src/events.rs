//! Events on sessions and on the pods they look into. They explain; nothing depends on them.

use std::sync::Arc;
use std::time::Duration;

use k8s_controller::events::{Event, EventRecorder, EventType, MAX_NOTE_BYTES, Reporter};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as Published;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, Resource};
use sidewinder_crds::DebugSession;
use sidewinder_crds::names::EVENT_CONTROLLER;
use sidewinder_model::Reason;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::error::{Error, patiently};

/// How long an Event may take: nothing depends on it.
const PUBLISH_LIMIT: Duration = Duration::from_secs(5);
/// The `action` of every Event.
const ACTION: &str = "Debug";

fn with_purpose(session: &DebugSession, note: &str) -> String {
    match session.spec.reason.as_deref() {
        Some(why) if !why.is_empty() => format!("{note} (asked for: {why})"),
        _ => note.to_owned(),
    }
}

/// The API server takes no longer note.
fn within_limit(mut note: String) -> String {
    note.truncate(note.floor_char_boundary(MAX_NOTE_BYTES));
    note
}

/// Publishes in the background, so that no session waits for its Events.
#[derive(Clone)]
pub struct Events {
    client: Client,
    recorder: Arc<EventRecorder>,
    tasks: TaskTracker,
}

impl Events {
    /// Events in the name of the replica `identity`.
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter {
            controller: EVENT_CONTROLLER.to_owned(),
            instance: Some(identity.to_owned()),
        };
        Self {
            recorder: Arc::new(EventRecorder::new(client.clone(), reporter)),
            client,
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
        let note = with_purpose(session, note);
        let event = Event {
            type_: if good {
                EventType::Normal
            } else {
                EventType::Warning
            },
            reason: reason.to_string(),
            action: ACTION.to_owned(),
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

    /// As [`Self::publish`], and once only, whoever does it how often: the Event has this name.
    ///
    /// # Errors
    /// When the API server does not take it.
    pub async fn publish_once(
        &self,
        name: &str,
        regarding: ObjectReference,
        session: &DebugSession,
        reason: Reason,
        good: bool,
        note: &str,
    ) -> Result<(), Error> {
        let reporter = self.recorder.reporter();
        let namespace = regarding.namespace.clone().unwrap_or_default();
        let event = Published {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some(ACTION.to_owned()),
            reason: Some(reason.to_string()),
            note: Some(within_limit(with_purpose(session, note))),
            type_: Some(if good { "Normal" } else { "Warning" }.to_owned()),
            event_time: Some(MicroTime(Timestamp::now())),
            regarding: Some(regarding),
            reporting_controller: Some(reporter.controller.clone()),
            reporting_instance: reporter.instance.clone(),
            ..Published::default()
        };
        let api: Api<Published> = Api::namespaced(self.client.clone(), &namespace);
        let params = PostParams::default();
        let answer = patiently(
            || format!("create Event {namespace}/{name}"),
            || api.create(&params, &event),
        )
        .await;
        match answer {
            Err(error) if error.code() == Some(409) => Ok(()),
            other => other.map(drop),
        }
    }

    /// As [`Self::publish_once`], in the background.
    pub fn publish_named(
        &self,
        name: String,
        regarding: ObjectReference,
        session: &DebugSession,
        reason: Reason,
        good: bool,
        note: String,
    ) {
        let (events, session) = (self.clone(), session.clone());
        self.tasks.spawn(async move {
            let told = events.publish_once(&name, regarding, &session, reason, good, &note);
            match tokio::time::timeout(PUBLISH_LIMIT, told).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "an Event could not be published"),
                Err(_) => debug!("an Event could not be published in time"),
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
