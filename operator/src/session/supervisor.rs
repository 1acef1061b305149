//! The tasks of sessions: one for each that has not ended, and one for each whose script outlived it. A task that fails is
//! begun anew after a pause; what goes wrong with one session touches no other.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sidewinder_crds::{DebugSession, TargetStatus};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, error, info, info_span, warn};

use super::apply::{self, Written};
use super::drive::{self, Given, Outcome, Signal, Withdrawn, report};
use super::finished::Expiry;
use super::light::lacks_its_script;
use super::result::{self, PodEnd};
use super::store::{Silence, fit_and_store};
use super::{Context, afterwards, observe, plan};
use crate::error::{Error, describe};
use crate::faults::{self, Point};
use crate::fences;
use crate::relay::connect::Connect;
use crate::telemetry;

/// The pause before a session whose task failed is taken up again, and the longest one.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// After how many failures in a row a session ends with `InternalError`.
const MAX_FAILURES: u32 = 8;
/// How many sessions are watched at once whose scripts are still running: each keeps a stream open.
const MAX_WATCHED: usize = 64;

/// How many agents are told at once to stop what a session gave them.
const MAX_WITHDRAWN: usize = 32;

/// The running tasks, by the session's UID.
pub(super) struct Supervisor<C> {
    pub(super) context: Arc<Context<C>>,
    running: Mutex<HashMap<String, watch::Sender<Signal>>>,
    /// Ended sessions whose scripts are still running, by their UID.
    watched: Mutex<HashMap<String, CancellationToken>>,
    /// For what runs code, which may wait long for its turn in a pod.
    running_code: Semaphore,
    /// For what only reads, which must not wait for that.
    reading: Semaphore,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) expiries: mpsc::Sender<Expiry>,
    /// Whether the API server can tell sessions that have ended from others (selectable fields of custom resources are
    /// on by default from Kubernetes 1.31).
    by_phase: bool,
}

impl<C> Supervisor<C> {
    pub(super) fn new(
        context: Arc<Context<C>>,
        stop: CancellationToken,
        expiries: mpsc::Sender<Expiry>,
        by_phase: bool,
    ) -> Self {
        Self {
            running_code: Semaphore::new(context.settings.max_concurrent.max(1)),
            reading: Semaphore::new(context.settings.max_concurrent.max(1)),
            running: Mutex::default(),
            watched: Mutex::default(),
            tasks: TaskTracker::new(),
            stop,
            expiries,
            by_phase,
            context,
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Signal>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn by_phase(&self) -> bool {
        self.by_phase
    }

    /// The UIDs of the sessions that are worked on, and of those that are watched after their end.
    pub(super) fn known(&self) -> HashSet<String> {
        let mut known: HashSet<_> = self.running().keys().cloned().collect();
        known.extend(self.watched().keys().cloned());
        known
    }
}

impl<C: Connect> Supervisor<C> {
    /// Starts the session's task, or tells it what changed.
    pub(super) fn hand_over(self: &Arc<Self>, session: &Arc<DebugSession>, uid: &str) {
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
        let span = telemetry::session_span(&session);
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

    /// Begins to wait for the end of scripts that outlived their session; whether somebody does.
    pub(super) fn watch_on(self: &Arc<Self>, session: &DebugSession, uid: &str) -> bool {
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
        self.tasks.spawn(faults::of(
            &session.clone(),
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
        ));
        true
    }

    /// Tells a task that its session was deleted.
    pub(super) fn deleted(&self, matches: impl Fn(&str) -> bool) {
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

    /// Waits for a place among those that are worked on; `None` where the session ends without one.
    async fn take_turn(
        &self,
        session: &DebugSession,
        signals: &mut watch::Receiver<Signal>,
    ) -> Option<SemaphorePermit<'_>> {
        let permits = if fences::runs_code(session) {
            &self.running_code
        } else {
            &self.reading
        };
        let _queued = self.context.metrics.queued();
        let mut killed = std::pin::pin!(self.context.fences.killed(session));
        loop {
            tokio::select! {
                permit = permits.acquire() => return permit.ok(),
                // The gate refuses it, which takes no place either.
                _ = &mut killed => return None,
                changed = signals.changed() => {
                    let signal = signals.borrow_and_update().clone();
                    let cancel = signal.latest.is_some_and(|latest| latest.spec.cancel);
                    // Ending a session needs no place in the queue.
                    if changed.is_err() || signal.gone || cancel {
                        return None;
                    }
                }
            }
        }
    }

    /// Works on a session until its end, whatever fails in between.
    async fn work(self: &Arc<Self>, session: &DebugSession, mut signals: watch::Receiver<Signal>) {
        let Some((permit, whole)) = self.begin(session, &mut signals).await else {
            return;
        };
        let mut pause = RETRY.0;
        let mut failures = 0;
        let given = Arc::new(Given::default());
        let mut session = session.clone();
        // Only now, that it has its turn, is its script held.
        if let Some(whole) = whole {
            session = whole;
        } else {
            // Whatever runs for it is stopped, and no script is needed for that.
            signals = watch::channel(Signal {
                gone: true,
                ..Signal::default()
            })
            .1;
        }
        given.note(&session);
        loop {
            let began = Instant::now();
            let attempt = self.attempt(&session, &signals, &given).await;
            if began.elapsed() > RETRY.1 {
                // It worked for a while: what fails now fails anew.
                failures = 0;
                pause = RETRY.0;
            }
            let words = match attempt {
                Ok(Ok(Outcome::Ended(session))) => {
                    if let Err(failed) = self.after_the_end(&session).await {
                        // A later round sees to it.
                        warn!(error = %describe(&failed), "what follows a session's end failed");
                    }
                    break;
                }
                // Who wrote may be an operator that is going. Its write was this task's news, so nobody would hand the
                // session over again: here it is looked at again until it has ended.
                Ok(Ok(Outcome::Superseded)) if !self.stop.is_cancelled() => None,
                Ok(Ok(outcome)) => {
                    debug!(?outcome, "left");
                    break;
                }
                Ok(Err(failed)) => {
                    self.context.metrics.errors.inc();
                    warn!(error = %describe(&failed), "a session's work failed");
                    failures += 1;
                    Some(describe(&failed))
                }
                Err(panic) => {
                    self.context.metrics.errors.inc();
                    error!(%panic, "a session's work was ended by a bug");
                    failures = MAX_FAILURES;
                    Some("the operator met a bug; its log has the details".to_owned())
                }
            };
            self.context.metrics.session_retried();
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => {}
                () = async { while !signals.borrow_and_update().gone {
                    if signals.changed().await.is_err() { break; }
                } } => {
                    self.abandon(&session, given.take()).await;
                    break;
                }
            }
            pause = (pause * 2).min(RETRY.1);
            match observe::session(&self.context.client, &session).await {
                Ok(Some(fresh)) if plan::has_ended(&fresh) => break,
                Ok(Some(fresh)) => {
                    given.note(&fresh);
                    session = fresh;
                }
                Ok(None) => {
                    self.abandon(&session, given.take()).await;
                    break;
                }
                Err(failed) => warn!(error = %describe(&failed), "a session cannot be read"),
            }
            if failures >= MAX_FAILURES
                && let Some(words) = words
                && self.give_up(&session, &words).await
            {
                break;
            }
        }
        drop(permit);
    }

    /// One attempt, in a task of its own, so that a bug in one session ends that session and nothing else.
    async fn attempt(
        &self,
        session: &DebugSession,
        signals: &watch::Receiver<Signal>,
        given: &Arc<Given>,
    ) -> Result<Result<Outcome, Error>, JoinError> {
        let context = Arc::clone(&self.context);
        let work = session.clone();
        let (signals, given) = (signals.clone(), Arc::clone(given));
        let stop = self.stop.clone();
        tokio::spawn(faults::of(
            session,
            async move {
                faults::at(Point::TakenUp).await;
                tokio::select! {
                    result = drive::drive(&context, work, signals, &given) => result,
                    () = stop.cancelled() => Ok(Outcome::Superseded),
                }
            }
            .in_current_span(),
        ))
        .await
    }

    /// Waits for the session's turn, and only then reads its script, where that was left out. `None` where nothing is left
    /// to do.
    async fn begin(
        &self,
        session: &DebugSession,
        signals: &mut watch::Receiver<Signal>,
    ) -> Option<Begun<'_>> {
        let mut pause = RETRY.0;
        let mut failures = 0;
        loop {
            let permit = self.take_turn(session, signals).await;
            // What was seen while waiting is seen again.
            signals.mark_changed();
            if !lacks_its_script(session) {
                return Some((permit, Some(session.clone())));
            }
            let failed = match observe::session(&self.context.client, session).await {
                Ok(Some(whole)) if plan::has_ended(&whole) => return None,
                Ok(whole) => return Some((permit, whole)),
                Err(failed) => failed,
            };
            // Others work while this one waits.
            drop(permit);
            self.context.metrics.errors.inc();
            warn!(error = %describe(&failed), "a session cannot be read");
            failures += 1;
            if failures >= MAX_FAILURES && self.give_up(session, &describe(&failed)).await {
                return None;
            }
            let heard = signals.borrow_and_update().clone();
            if heard.gone {
                self.abandon(session, targets_of(session)).await;
                return None;
            }
            // What is new, that it is cancelled for example, is acted upon at once.
            tokio::select! {
                () = tokio::time::sleep(jittered(pause)) => {}
                _ = signals.changed() => {}
            }
            signals.mark_changed();
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Stops what was given to the agents of `targets`; what is known of each, by the pod's UID.
    async fn withdraw(
        &self,
        session: &DebugSession,
        targets: Vec<TargetStatus>,
    ) -> HashMap<String, Withdrawn> {
        futures::stream::iter(targets)
            .map(|target| async move {
                let withdrawn = drive::withdraw(&self.context, session, &target).await?;
                Some((target.pod_uid?, withdrawn))
            })
            .buffer_unordered(MAX_WITHDRAWN)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    /// The session was deleted while nobody worked on it: what an attempt gave to agents is told to stop, as the attempt
    /// itself would have done.
    async fn abandon(&self, session: &DebugSession, given: Vec<TargetStatus>) {
        let withdrawn = self.withdraw(session, given).await;
        info!(told = withdrawn.len(), "deleted between two attempts");
        acknowledge(session, withdrawn.values()).await;
    }

    /// Ends a session that cannot be worked on. Whether that is written; where it is not, it is tried again.
    async fn give_up(&self, session: &DebugSession, words: &str) -> bool {
        let now = Timestamp::now();
        let elapsed = now.duration_since(plan::started(session, now));
        let elapsed = Duration::try_from(elapsed).unwrap_or_default();
        let withdrawn = self.withdraw(session, targets_of(session)).await;
        let known = |target: &TargetStatus| {
            let one = withdrawn.get(target.pod_uid.as_deref()?)?;
            Some((one.words.clone(), one.outcome.clone()))
        };
        let sensitive = self.context.settings.sensitive;
        let mut ends = PodEnd::give_up(session, words, known, sensitive);
        let finished = result::finish(session, &ends, elapsed, now);
        let pods = ends.iter_mut().map(|end| end.entries.as_mut_slice());
        let pods = pods.collect();
        // Its attempts waited for the API server; what this one does not store is lost, and its status says so.
        let base = &finished.status;
        if let Err(failed) =
            fit_and_store(&self.context, session, base, pods, Silence::IsSaid).await
        {
            error!(error = %describe(&failed), "a session's results cannot be stored");
            return false;
        }
        let generation = session.metadata.generation;
        let status = result::seal(finished.status.clone(), &ends, generation, now);
        match apply::status(&self.context.client, session, &status).await {
            Ok(Written::Done(session)) => {
                acknowledge(&session, withdrawn.values()).await;
                report(&self.context, &session, &finished, &ends, elapsed);
                true
            }
            Ok(Written::Gone) => {
                acknowledge(session, withdrawn.values()).await;
                true
            }
            Ok(Written::Conflict) => false,
            Err(failed) => {
                error!(error = %describe(&failed), "a session's end cannot be written");
                false
            }
        }
    }
}

/// A place among those that are worked on, where one is needed, and the session with its script; without one where it
/// is gone.
type Begun<'a> = (Option<SemaphorePermit<'a>>, Option<DebugSession>);

fn targets_of(session: &DebugSession) -> Vec<TargetStatus> {
    let status = session.status.as_ref();
    status.map_or_else(Vec::new, |status| status.targets.clone())
}

/// Tells the agents that nobody needs what they keep any more. One that does not hear it forgets it by itself.
async fn acknowledge(session: &DebugSession, withdrawn: impl Iterator<Item = &Withdrawn>) {
    let id = session.uid().unwrap_or_default();
    for keeper in withdrawn.filter_map(|one| one.keeper.as_ref()) {
        let _ = keeper.acknowledge(&id).await;
    }
}

/// A pause between a half and the whole of `pause`, so that what failed together does not come back together.
fn jittered(pause: Duration) -> Duration {
    // The standard library's only source of chance.
    let chance = RandomState::new().hash_one(0_u8) % 512;
    pause / 2 + pause * u32::try_from(chance).unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests;
