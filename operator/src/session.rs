//! The controller of sessions: watches them, and keeps one task at work on each that has not ended.
//!
//! The controller's own reconciler only hands over: it starts a session's task, tells a running task what changed,
//! and deletes sessions whose time is up. A task lasts until its session's end, so nothing is polled.

pub mod afterwards;
pub mod apply;
pub mod drive;
pub mod observe;
pub mod plan;
pub mod result;
pub mod targets;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::Controller;
use kube::runtime::controller::{self, Action};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use sidewinder_crds::{DebugSession, DebugSessionStatus};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, error, info_span, warn};

use self::drive::{Outcome, Signal};
use self::result::{PodEnd, Sensitive};
use crate::error::{Error, describe};
use crate::events::Events;
use crate::inject::{Refusal, SidecarImage};
use crate::metrics::Metrics;
use crate::relay::connect::Connect;
use crate::relay::pool::Pool;

/// How long a refusal by admission is believed before it is tried again.
const REFUSAL_LIMIT: Duration = Duration::from_mins(1);
/// How many refusals are remembered.
const MAX_REFUSALS: usize = 4096;
/// The pause before a session whose task failed is taken up again, and the longest one.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// After how many failures in a row a session ends with `InternalError`.
const MAX_FAILURES: u32 = 8;
/// How many sessions are watched at once whose scripts are still running: each keeps a stream open.
const MAX_WATCHED: usize = 64;
/// When a session is looked at again that could not be watched, or whose watch failed.
const WATCH_AGAIN: Duration = Duration::from_mins(1);

/// What the operator's configuration says about sessions.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The sidecar.
    pub sidecar: SidecarImage,
    /// Where script output and values may appear.
    pub sensitive: Sensitive,
    /// How many sessions are worked on at once.
    pub max_concurrent: usize,
}

/// What every session's task needs.
pub struct Context<C> {
    /// The API server.
    pub client: Client,
    /// Open streams.
    pub pool: Pool<C>,
    /// Settings.
    pub settings: Settings,
    /// Metrics.
    pub metrics: Metrics,
    /// Events.
    pub events: Events,
    /// Recent refusals.
    pub refusals: Refusals,
}

/// Pods in which admission refused the preferred way a moment ago.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<HashMap<String, (Refusal, Instant)>>);

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Refusal, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a refusal for the pod with this UID.
    pub fn remember(&self, pod_uid: &str, refusal: &Refusal) {
        let mut known = self.lock();
        if known.len() >= MAX_REFUSALS {
            known.retain(|_, (_, since)| since.elapsed() < REFUSAL_LIMIT);
        }
        if known.len() < MAX_REFUSALS {
            known.insert(pod_uid.to_owned(), (refusal.clone(), Instant::now()));
        }
    }

    /// The refusal for the pod with this UID, where it is fresh.
    pub fn recall(&self, pod_uid: &str) -> Option<Refusal> {
        self.lock()
            .get(pod_uid)
            .filter(|(_, since)| since.elapsed() < REFUSAL_LIMIT)
            .map(|(refusal, _)| refusal.clone())
    }
}

/// The running tasks, by the session's UID.
struct Supervisor<C> {
    context: Arc<Context<C>>,
    running: Mutex<HashMap<String, watch::Sender<Signal>>>,
    /// Ended sessions whose scripts are still running, by their UID.
    watched: Mutex<HashMap<String, CancellationToken>>,
    permits: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl<C: Connect> Supervisor<C> {
    fn running(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Signal>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the session's task, or tells it what changed.
    fn hand_over(self: &Arc<Self>, session: &Arc<DebugSession>, uid: &str) {
        let mut running = self.running();
        if let Some(signal) = running.get(uid) {
            signal.send_modify(|signal| signal.latest = Some(Arc::clone(session)));
            return;
        }
        if self.stop.is_cancelled() {
            return;
        }
        let (sender, receiver) = watch::channel(Signal::default());
        running.insert(uid.to_owned(), sender);
        self.context.metrics.active.inc();
        let supervisor = Arc::clone(self);
        let session = Arc::clone(session);
        let uid = uid.to_owned();
        let span = info_span!(
            parent: None,
            "session",
            namespace = session.namespace().unwrap_or_default(),
            name = session.name_any(),
            uid,
            pod = session.spec.pod_name(),
            action = session.spec.action().map_or("none", |action| action.name()),
        );
        self.tasks.spawn(
            async move {
                let work = supervisor.work(&session, receiver);
                tokio::select! {
                    () = work => {}
                    () = supervisor.stop.cancelled() => debug!("left to the next leader"),
                }
                supervisor.running().remove(&uid);
                supervisor.context.metrics.active.dec();
            }
            .instrument(span),
        );
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to wait for the end of scripts that outlived their session; whether somebody does.
    fn watch_on(self: &Arc<Self>, session: &DebugSession, uid: &str) -> bool {
        let mut watched = self.watched();
        if watched.contains_key(uid) {
            return true;
        }
        if watched.len() >= MAX_WATCHED || self.stop.is_cancelled() {
            return false;
        }
        let gone = self.stop.child_token();
        watched.insert(uid.to_owned(), gone.clone());
        self.context.metrics.watched.inc();
        let supervisor = Arc::clone(self);
        let session = session.clone();
        let uid = uid.to_owned();
        let span = info_span!(
            parent: None,
            "watch",
            namespace = session.namespace().unwrap_or_default(),
            name = session.name_any(),
            uid,
            pod = session.spec.pod_name(),
        );
        self.tasks.spawn(
            async move {
                tokio::select! {
                    result = afterwards::watch(&supervisor.context, &session) => if let Err(failed) = result {
                        supervisor.context.metrics.errors.inc();
                        warn!(error = %describe(&failed), "a script that is still running cannot be watched");
                    },
                    () = gone.cancelled() => debug!("deleted, or left to the next leader"),
                }
                supervisor.watched().remove(&uid);
                supervisor.context.metrics.watched.dec();
            }
            .instrument(span),
        );
        true
    }

    /// Tells a task that its session was deleted.
    fn deleted(&self, matches: impl Fn(&str) -> bool) {
        for (uid, gone) in self.watched().iter() {
            if matches(uid) {
                gone.cancel();
            }
        }
        for (uid, signal) in self.running().iter() {
            if matches(uid) {
                signal.send_modify(|signal| signal.gone = true);
            }
        }
    }

    /// Works on a session until its end, whatever fails in between.
    async fn work(self: &Arc<Self>, session: &DebugSession, mut signals: watch::Receiver<Signal>) {
        let permit = loop {
            tokio::select! {
                permit = self.permits.acquire() => break permit.ok(),
                changed = signals.changed() => {
                    let signal = signals.borrow_and_update().clone();
                    let cancel = signal.latest.is_some_and(|latest| latest.spec.cancel);
                    // Ending a session needs no place in the queue.
                    if changed.is_err() || signal.gone || cancel {
                        break None;
                    }
                }
            }
        };
        // What was seen while waiting is seen again.
        signals.mark_changed();
        let mut session = session.clone();
        let mut pause = RETRY.0;
        let mut failures = 0;
        loop {
            // In a task of its own, so that a bug in one session ends that session and nothing else.
            let attempt = {
                let context = Arc::clone(&self.context);
                let session = session.clone();
                let signals = signals.clone();
                let stop = self.stop.clone();
                tokio::spawn(
                    async move {
                        tokio::select! {
                            result = drive::drive(&context, session, signals) => result,
                            () = stop.cancelled() => Ok(Outcome::Superseded),
                        }
                    }
                    .in_current_span(),
                )
                .await
            };
            let words = match attempt {
                Ok(Ok(outcome)) => {
                    debug!(?outcome, "left");
                    break;
                }
                Ok(Err(failed)) => {
                    self.context.metrics.errors.inc();
                    warn!(error = %describe(&failed), "a session's work failed");
                    describe(&failed)
                }
                Err(panic) => {
                    self.context.metrics.errors.inc();
                    error!(%panic, "a session's work was ended by a bug");
                    failures = MAX_FAILURES;
                    "the operator met a bug; its log has the details".to_owned()
                }
            };
            failures += 1;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = async { while !signals.borrow_and_update().gone {
                    if signals.changed().await.is_err() { break; }
                } } => break,
            }
            pause = (pause * 2).min(RETRY.1);
            match observe::session(&self.context.client, &session).await {
                Ok(Some(fresh)) if plan::has_ended(&fresh) => break,
                Ok(Some(fresh)) => session = fresh,
                Ok(None) => break,
                Err(failed) => warn!(error = %describe(&failed), "a session cannot be read"),
            }
            if failures >= MAX_FAILURES {
                self.give_up(&session, &words).await;
                break;
            }
        }
        drop(permit);
    }

    /// Ends a session that cannot be worked on.
    async fn give_up(&self, session: &DebugSession, words: &str) {
        let now = Timestamp::now();
        let elapsed = now.duration_since(plan::started(session, now));
        let elapsed = Duration::try_from(elapsed).unwrap_or_default();
        let ends = PodEnd::give_up(session, words, self.context.settings.sensitive);
        let finished = result::finish(session, &ends, elapsed, now);
        let status = result::seal(finished, &ends, session.metadata.generation, now);
        if let Err(failed) = apply::status(&self.context.client, session, &status).await {
            error!(error = %describe(&failed), "a session's end cannot be written");
        }
    }

    /// What to do with a session that has ended.
    async fn after_the_end(
        self: &Arc<Self>,
        session: &DebugSession,
        uid: &str,
    ) -> Result<Action, Error> {
        let status = session.status.clone().unwrap_or_default();
        if status.observed_generation != session.metadata.generation {
            let seen = DebugSessionStatus {
                observed_generation: session.metadata.generation,
                ..status.clone()
            };
            // The write triggers another round; a conflict does, too.
            apply::status(&self.context.client, session, &seen).await?;
        }
        // A watch that fails, or finds no room, is begun again.
        let watched = afterwards::is_needed(session).then(|| {
            self.watch_on(session, uid);
            WATCH_AGAIN
        });
        let again = |left: Option<Duration>| {
            let soonest = left.into_iter().chain(watched).min();
            soonest.map_or_else(Action::await_change, Action::requeue)
        };
        let (Some(kept), Some(ended)) = (
            session.spec.ttl_seconds_after_finished,
            &status.completion_time,
        ) else {
            return Ok(again(None));
        };
        let kept = Duration::from_secs(u64::from(kept.unsigned_abs()));
        let due = plan::after(ended.0, kept);
        let left = Duration::try_from(due.duration_since(Timestamp::now())).unwrap_or_default();
        if left.is_zero() {
            apply::delete(&self.context.client, session).await?;
            return Ok(Action::await_change());
        }
        Ok(again(Some(left)))
    }
}

async fn reconcile<C: Connect>(
    session: Arc<DeserializeGuard<DebugSession>>,
    supervisor: Arc<Supervisor<C>>,
) -> Result<Action, Error> {
    let session = match &session.0 {
        Ok(session) => session,
        Err(invalid) => {
            supervisor.context.metrics.errors.inc();
            warn!(
                namespace = session.meta().namespace,
                name = session.meta().name,
                error = %invalid.error,
                "a session cannot be read by this version"
            );
            return Ok(Action::await_change());
        }
    };
    let Some(uid) = session.uid() else {
        return Ok(Action::await_change());
    };
    if session.metadata.deletion_timestamp.is_some() {
        supervisor.deleted(|running| running == uid);
        return Ok(Action::await_change());
    }
    if plan::has_ended(session) {
        return supervisor.after_the_end(session, &uid).await;
    }
    supervisor.hand_over(&Arc::new(session.clone()), &uid);
    Ok(Action::await_change())
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the signature is the controller's"
)]
fn error_policy<C: Connect>(
    _: Arc<DeserializeGuard<DebugSession>>,
    failed: &Error,
    supervisor: Arc<Supervisor<C>>,
) -> Action {
    supervisor.context.metrics.errors.inc();
    warn!(error = %describe(failed), "a session could not be reconciled");
    Action::requeue(Duration::from_secs(5))
}

/// Tells the running tasks of deleted sessions. The controller itself is not told: its own watch passes on what is
/// there, not what went. Metadata is enough to know.
async fn deletions<C: Connect>(supervisor: Arc<Supervisor<C>>, namespace: Option<String>) {
    let client = supervisor.context.client.clone();
    let sessions: Api<PartialObjectMeta<DebugSession>> = match &namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    // After a gap in the watch: what ran before the new list was asked for and is not on it is gone.
    let mut missing = HashSet::new();
    let mut events = watcher(sessions, watcher::Config::default())
        .default_backoff()
        .boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                missing = supervisor.running().keys().cloned().collect();
                missing.extend(supervisor.watched().keys().cloned());
            }
            Ok(watcher::Event::InitApply(session)) => {
                missing.remove(&session.uid().unwrap_or_default());
            }
            Ok(watcher::Event::InitDone) => {
                supervisor.deleted(|running| missing.contains(running));
                missing.clear();
            }
            Ok(watcher::Event::Apply(_)) => {}
            Ok(watcher::Event::Delete(session)) => {
                let gone = session.uid().unwrap_or_default();
                supervisor.deleted(|running| running == gone);
            }
            // The watcher starts again by itself, after a pause.
            Err(failed) => debug!(error = %describe(&failed), "the watch of deletions failed"),
        }
    }
}

/// Runs the controller until `stop` is cancelled. Sessions that are under way then are left as they are: their agents
/// go on, and whoever leads next takes them up from their status.
pub async fn run<C: Connect>(
    context: Arc<Context<C>>,
    namespace: Option<String>,
    stop: CancellationToken,
) {
    let client = context.client.clone();
    let sessions: Api<DeserializeGuard<DebugSession>> = match &namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let supervisor = Arc::new(Supervisor {
        permits: Semaphore::new(context.settings.max_concurrent.max(1)),
        running: Mutex::default(),
        watched: Mutex::default(),
        tasks: TaskTracker::new(),
        stop: stop.clone(),
        context,
    });
    let sweeping = {
        let supervisor = Arc::clone(&supervisor);
        async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(15));
            loop {
                ticks.tick().await;
                supervisor.context.pool.sweep();
            }
        }
    };
    let deletions = deletions(Arc::clone(&supervisor), namespace);
    let controller = Controller::new(sessions, watcher::Config::default())
        .with_config(controller::Config::default().concurrency(32))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(reconcile, error_policy, Arc::clone(&supervisor))
        .for_each(|result| {
            match result {
                // Failures were logged by the error policy; an object that is not found was deleted meanwhile.
                Ok(_)
                | Err(
                    controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_),
                ) => {}
                Err(failed) => warn!(error = %describe(&failed), "the watch of sessions failed"),
            }
            std::future::ready(())
        });
    tokio::select! {
        () = controller => {}
        () = sweeping => {}
        () = deletions => {}
    }
    stop.cancel();
    supervisor.tasks.close();
    supervisor.tasks.wait().await;
}
