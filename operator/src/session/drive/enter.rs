//! Getting into the pod: waiting for it, adding the sidecar, opening the stream to its agent. Which of them is the
//! plan's word; here it is decided how often to try and what ends an attempt early: news of the pod that change the
//! plan, a signal or the time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{EphemeralContainer, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use sidewinder_crds::{AttachMode, DebugSession, Phase};
use sidewinder_model::Reason;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info};

use super::Flow;
use super::run::{Run, STALE, deadline, told_to_end};
use crate::error::Error;
use crate::inject::{self, Refusal, ResidentState};
use crate::metrics::SidecarLabel;
use crate::relay::RelayError;
use crate::relay::connect::Connect;
use crate::session::Context;
use crate::session::apply::{self, Injected};
use crate::session::observe;
use crate::session::plan::{Link, Step, Way};

/// How long a sidecar waits for its turn to be brought up on a node: some forty times one that comes up in seconds.
const PLACE_LIMIT: Duration = Duration::from_mins(5);
/// An open that takes longer than this is worth watching the pod for what the kubelet says.
const WATCH_AFTER: Duration = Duration::from_millis(100);

impl<C: Connect> Run<'_, C> {
    /// A way that was just refused in this pod is not tried again where the other one is there already.
    pub(super) fn recall_refusals(&mut self) {
        let Some(pod) = &self.observed.pod else {
            return;
        };
        if self.session.spec.attach != AttachMode::Auto {
            return;
        }
        let Some(refusal) = self.context.refusals.recall(&pod.uid().unwrap_or_default()) else {
            return;
        };
        let Ok(target) =
            inject::choose_container(pod, self.session.spec.target.container.as_deref())
        else {
            return;
        };
        let there = inject::residents(pod, target, &self.context.settings.sidecar)
            .iter()
            .any(|resident| {
                resident.attach == Some(Way::SameUser.into())
                    && resident.state == ResidentState::Running
            });
        if there {
            self.observed.refused.insert(Way::Ptrace, refusal);
        }
    }

    pub(super) async fn await_pod(&mut self, step: &Step, until: Timestamp) -> Result<Flow, Error> {
        if let Flow::Stop(outcome) = self.progress(Phase::Pending).await? {
            return Ok(Flow::Stop(outcome));
        }
        let deadline = deadline(until);
        loop {
            let mut signals = self.signals.clone();
            tokio::select! {
                change = self.pod_changes().next() => {
                    self.set_pod(change.unwrap_or_default());
                    if self.plan() != *step {
                        return Ok(Flow::Continue);
                    }
                }
                () = tokio::time::sleep_until(deadline) => return Ok(Flow::Continue),
                changed = signals.changed() => {
                    if changed.is_err() {
                        self.gone = true;
                    }
                    return Ok(Flow::Continue);
                }
            }
        }
    }

    pub(super) async fn inject(
        &mut self,
        way: Way,
        container: &EphemeralContainer,
    ) -> Result<Flow, Error> {
        if self.entering.is_none() && !self.take_place().await? {
            return Ok(Flow::Continue);
        }
        self.observed
            .entering_since
            .get_or_insert_with(Timestamp::now);
        let Some(pod) = self.observed.pod.clone() else {
            return Ok(Flow::Continue);
        };
        match apply::inject(&self.context.client, &pod, container).await? {
            Injected::Added { pod, new } => {
                if new {
                    self.tell_added(&pod, way, &container.name);
                }
                self.observed.injected.insert(
                    container.name.clone(),
                    self.entry.container_id.clone().unwrap_or_default(),
                );
                self.observed.link_error = None;
                self.set_pod(Some(*pod));
            }
            Injected::Refused(refusal) => {
                debug!(attach = way.name(), reason = %refusal.reason, "sidecar refused");
                if way == Way::Ptrace {
                    self.context
                        .refusals
                        .remember(&pod.uid().unwrap_or_default(), &refusal);
                }
                self.context.metrics.sidecar_refused(refusal.reason);
                self.observed.refused.insert(way, refusal);
            }
            Injected::Changed => {
                let pod = self.read_pod().await?;
                self.set_pod(pod);
                // Two that add at the same time look again at different moments.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(Flow::Continue)
    }

    /// Says on the pod that it has a sidecar now. Of several that add the same one at the same time one says so.
    fn tell_added(&self, pod: &Pod, way: Way, container: &str) {
        info!(pod = %pod.name_any(), sidecar = container, attach = way.name(), "sidecar added");
        let label = SidecarLabel {
            attach: way.name().to_owned(),
        };
        self.context.metrics.sidecars.get_or_create(&label).inc();
        let uid = pod.uid().unwrap_or_default();
        self.context.events.publish_named(
            format!("sidewinder-{uid}-{container}-added"),
            pod.object_ref(&()),
            &self.session,
            Reason::Attached,
            true,
            format!(
                "DebugSession {} added ephemeral container {container} ({})",
                self.session.name_any(),
                way.name()
            ),
        );
    }

    /// Waits until one more sidecar may be brought up on the pod's node. Whether nothing has changed meanwhile.
    async fn take_place(&mut self) -> Result<bool, Error> {
        let pod = self.observed.pod.as_ref();
        let node = pod.and_then(|pod| pod.spec.as_ref()?.node_name.clone());
        let Some(node) = node else {
            return Ok(true);
        };
        let slots = self.context.fences.slots(&self.session);
        let waited = Instant::now();
        let place = tokio::select! {
            place = slots.enter(&node) => Some(place),
            () = told_to_end(self.signals.clone()) => return Ok(false),
            // Those before it may wait for an image that never comes: it is no worse off without a place.
            () = tokio::time::sleep(PLACE_LIMIT) => None,
        };
        self.entering = place;
        if waited.elapsed() < STALE {
            return Ok(true);
        }
        // Somebody else may have added one meanwhile.
        let pod = self.read_pod().await?;
        self.set_pod(pod);
        Ok(self.entering.is_none())
    }

    #[expect(
        clippy::too_many_lines,
        reason = "everything that can end one attempt, side by side"
    )]
    pub(super) async fn open(
        &mut self,
        step: &Step,
        sidecar: String,
        way: Way,
        until: Timestamp,
    ) -> Result<Flow, Error> {
        self.observed
            .entering_since
            .get_or_insert_with(Timestamp::now);
        self.entry.sidecar = Some(sidecar.clone());
        self.entry.attach = Some(way.into());
        let endpoint = self.endpoint(&sidecar);
        let last = Arc::new(Mutex::new(None));
        let context = self.context;
        let news = Arc::new(Notify::new());
        let attempt = {
            let last = Arc::clone(&last);
            let news = Arc::clone(&news);
            async move {
                let began = Instant::now();
                loop {
                    let error = match context.pool.agent(&endpoint).await {
                        Ok(agent) => return Ok(agent),
                        Err(error) => error,
                    };
                    if matches!(
                        error,
                        RelayError::Forbidden(_)
                            | RelayError::Version { .. }
                            | RelayError::PodGone(_)
                    ) {
                        return Err(error);
                    }
                    let pause = pause(&error, began.elapsed());
                    last.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .replace(error);
                    let _ = tokio::time::timeout(pause, news.notified()).await;
                }
            }
        };
        let mut attempt = Box::pin(attempt);
        let deadline = deadline(until);
        let since = Instant::now();
        // After a loss the pod's own news decide; at first they are not needed.
        let mut watching = self.observed.link_error.is_some();
        let opened = loop {
            let mut signals = self.signals.clone();
            tokio::select! {
                opened = &mut attempt => break Some(opened),
                () = tokio::time::sleep_until(since + WATCH_AFTER), if !watching => watching = true,
                change = next_change(watching, self.context, &self.session, &mut self.pod_changes) => {
                    self.set_pod(change.unwrap_or_default());
                    self.entry.sidecar = Some(sidecar.clone());
                    self.observed.link_error = last
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .clone()
                        .or(self.observed.link_error.take());
                    if self.plan() != *step {
                        break None;
                    }
                    if self.runs(&sidecar) {
                        news.notify_one();
                    }
                    if let Flow::Stop(outcome) = self.progress(Phase::Attaching).await? {
                        return Ok(Flow::Stop(outcome));
                    }
                }
                () = tokio::time::sleep_until(deadline) => break None,
                changed = signals.changed() => {
                    if changed.is_err() {
                        self.gone = true;
                    }
                    break None;
                }
            }
        };
        match opened {
            Some(Ok(agent)) => {
                debug!(
                    sidecar,
                    instance = agent.instance,
                    version = agent.version,
                    "stream open"
                );
                self.observed.link = Some(Link {
                    sidecar,
                    attach: way.into(),
                    instance: agent.instance.clone(),
                });
                self.entry.agent = Some(agent.instance.clone());
                self.observed.link_error = None;
                self.observed.entering_since = None;
                self.entering = None;
                self.agent = Some(agent);
                self.replies = None;
                self.cancel_sent = false;
                self.pod_changes = None;
            }
            Some(Err(error)) => {
                if matches!(error, RelayError::PodGone(_)) {
                    let pod = self.read_pod().await?;
                    self.set_pod(pod);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                // That the object is gone says nothing about a node that was silent before.
                let silent = matches!(
                    self.observed.link_error,
                    Some(RelayError::NodeUnreachable(_) | RelayError::Silent(_))
                );
                if !(silent && matches!(error, RelayError::PodGone(_))) {
                    self.observed.link_error = Some(error);
                }
            }
            None => {
                let error = last.lock().unwrap_or_else(PoisonError::into_inner).take();
                if error.is_some() {
                    self.observed.link_error = error;
                }
            }
        }
        Ok(Flow::Continue)
    }

    /// Whether the pod's status says that this sidecar runs.
    fn runs(&self, sidecar: &str) -> bool {
        let Some(pod) = &self.observed.pod else {
            return false;
        };
        let target = self.session.spec.target.container.as_deref();
        inject::choose_container(pod, target).is_ok_and(|target| {
            inject::residents(pod, target, &self.context.settings.sidecar)
                .iter()
                .any(|it| it.name == sidecar && it.state == ResidentState::Running)
        })
    }

    pub(super) fn fall_back(&mut self, way: Way, refusal: Refusal) {
        info!(attach = way.name(), reason = %refusal.reason, "refused; trying the other way");
        self.observed.refused.insert(way, refusal);
        // The refused agent did nothing and will do nothing; the next intent names another one.
        self.observed.answer = None;
        self.observed.link = None;
        self.observed.intent = None;
        self.observed.asked_since = None;
        self.observed.entering_since = None;
        self.agent = None;
        self.replies = None;
        self.entry.agent = None;
        self.entry.sidecar = None;
        self.entry.attach = None;
    }
}

async fn next_change<C>(
    watching: bool,
    context: &Context<C>,
    session: &DebugSession,
    changes: &mut Option<BoxStream<'static, Option<Pod>>>,
) -> Option<Option<Pod>>
where
    C: Connect,
{
    if !watching {
        return std::future::pending().await;
    }
    changes
        .get_or_insert_with(|| observe::pod_changes(&context.client, session))
        .next()
        .await
}

/// How long to wait before the stream is tried again. A container that was just added is there within a fraction of a
/// second; each try is a request of the API server, a call of a kubelet and a line in the audit log, so a container that
/// takes long to start is asked for ever less often.
fn pause(error: &RelayError, elapsed: Duration) -> Duration {
    let first = if matches!(error, RelayError::NotRunning(_)) {
        Duration::from_millis(20)
    } else {
        Duration::from_millis(100)
    };
    // What takes longer than that is seen in the pod's status, too.
    let part = if elapsed > Duration::from_secs(1) {
        2
    } else {
        5
    };
    (elapsed / part).clamp(first, Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_never_starts_is_asked_for_ever_less_often() {
        for (error, most) in [
            (RelayError::NotRunning(String::new()), 50),
            (RelayError::Ended(String::new()), 40),
        ] {
            let mut elapsed = Duration::ZERO;
            let mut tries = 0;
            while elapsed < Duration::from_mins(1) {
                tries += 1;
                elapsed += pause(&error, elapsed);
            }
            assert!(tries <= most, "{tries} tries within a minute");
            // One that comes up after a second is found within a fifth of it, and a later one by the pod's status.
            assert!(pause(&error, Duration::from_secs(1)) <= Duration::from_millis(200));
        }
    }
}
