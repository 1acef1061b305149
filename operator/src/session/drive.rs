//! One session from its start to its end: its pods are chosen, each is worked on by a run of its own, and what they came
//! to becomes one status.
//!
//! Here stands what the pods have in common; [`run`] goes round in observe, plan and apply for one of them. Which pods a
//! selector meant is decided once and written down with their UIDs before any of them is touched.

mod ask;
mod board;
mod end;
mod enter;
mod preflight;
mod run;
mod withdraw;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sidewinder_crds::conditions::whole_seconds;
use sidewinder_crds::{DebugSession, DebugSessionStatus, Phase, SessionAction, TargetStatus};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{Instrument, warn};

use self::board::{Board, SHOW_EVERY};
pub(super) use self::end::report;
use self::run::{Ended, Run, told_to_end};
pub(super) use self::withdraw::{Withdrawn, withdraw};
use super::result::{PodEnd, by_pod};
use super::targets::{self, Candidate};
use super::{Context, observe, plan};
use crate::error::{Error, describe};
use crate::fences::Gate;
use crate::inject::Refusal;
use crate::relay::connect::Connect;
use crate::telemetry;

/// What the outside tells a running session.
#[derive(Clone, Debug, Default)]
pub struct Signal {
    /// The session as it was last seen.
    pub latest: Option<Arc<DebugSession>>,
    /// It was deleted.
    pub gone: bool,
    /// The kill switch ends it.
    pub killed: bool,
}

/// How work on a session stopped.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Its end is written; the session as it is now.
    Ended(Box<DebugSession>),
    /// It is gone.
    Gone,
    /// Another writer took it over.
    Superseded,
}

/// The targets of a session as its work last wrote them: however an attempt ends, what it gave to agents is known.
#[derive(Debug, Default)]
pub struct Given(Mutex<Vec<TargetStatus>>);

impl Given {
    fn lock(&self) -> MutexGuard<'_, Vec<TargetStatus>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what stands in a session's status. Only a script is given away for good.
    pub(super) fn note(&self, session: &DebugSession) {
        if at_most_once(session) {
            let status = session.status.as_ref();
            *self.lock() = status.map_or_else(Vec::new, |status| status.targets.clone());
        }
    }

    /// What was noted last.
    pub(super) fn take(&self) -> Vec<TargetStatus> {
        std::mem::take(&mut *self.lock())
    }
}

enum Flow {
    Continue,
    Stop(Outcome),
}

/// One pod of a session.
struct Target {
    /// As it stands in the status while nothing else is known.
    entry: TargetStatus,
    /// Whether no other pod of its name counts.
    pinned: bool,
    /// Its end, where that stands in the status.
    end: Option<PodEnd>,
}

/// Works on `session` until its end, and notes in `given` what it writes.
///
/// # Errors
/// When the API server refuses something that cannot be worked around, or stays away.
pub async fn drive<C: Connect>(
    context: &Context<C>,
    session: DebugSession,
    mut signals: watch::Receiver<Signal>,
    given: &Given,
) -> Result<Outcome, Error> {
    let began = Instant::now();
    let (signal, _) = watch::channel(signals.borrow_and_update().clone());
    let (script, chosen) = tokio::join!(
        observe::script(&context.client, &session),
        choose(context, &session)
    );
    let (script, chosen) = (script?, chosen?);
    let status = take_up(
        &session,
        script.as_ref().and_then(|script| script.as_ref().ok()),
    );
    let view = DebugSession {
        status: Some(status.clone()),
        ..session.clone()
    };
    telemetry::session_started(&view, session.status.is_some());
    let board = Board::new(context, &signal, given, session.clone(), status.clone());
    let view = without_script(view);
    let gate = context
        .fences
        .gate(view.clone(), status.script_sha256.clone());
    // What was given to an agent, or has ended, is past every fence.
    let known = session.status.as_ref().map(|status| &status.targets);
    let fresh = known.is_none_or(Vec::is_empty);
    let chosen = match chosen {
        Ok(targets) if fresh => {
            let answer = tokio::select! {
                answer = gate.begin() => answer?,
                // The runs hear of it before they do anything.
                () = told_to_end(signals.clone()) => Ok(()),
            };
            pass(&signals, &signal);
            answer.map(|()| targets)
        }
        chosen => chosen,
    };
    let mut lone = None;
    let mut targets = match chosen {
        Ok(targets) => targets,
        Err(refusal) => {
            lone = Some(refused(context, &session, refusal));
            Vec::new()
        }
    };
    let places = places(&targets);
    board.add(&mut targets, &places);
    let work = async {
        if session.spec.target.selector.is_some()
            && fresh
            && !targets.is_empty()
            && let Flow::Stop(outcome) = board.write_all().await?
        {
            return Ok(outcome);
        }
        let todo: Vec<(usize, usize)> = places
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, place)| !board.has_ended(*place))
            .collect();
        let mut runs = futures::stream::iter(todo)
            .map(|(chosen, place)| {
                let (board, view, gate) = (&board, &view, &gate);
                let (script, target) = (script.as_ref(), targets.get(chosen));
                let several = targets.len() > 1;
                async move {
                    let Some(target) = target else {
                        return (place, Ok(Ended::Stopped(Outcome::Superseded)));
                    };
                    let ended = work_on(board, place, view, target, script, gate, several);
                    (place, ended.await)
                }
            })
            .buffer_unordered(parallel(&session));
        let mut gone = false;
        while let Some((place, ended)) = runs.next().await {
            match ended? {
                Ended::Pod { end, keeper } => board.settle(place, *end, keeper),
                // The others hear of it, too, and stop what runs for them.
                Ended::Stopped(Outcome::Gone) => gone = true,
                Ended::Stopped(outcome) => return Ok(outcome),
            }
        }
        drop(runs);
        if gone {
            return Ok(Outcome::Gone);
        }
        self::end::end(context, &board, lone, began).await
    };
    let several = targets.len() > 1;
    tokio::select! {
        outcome = work => outcome,
        outcome = keep_showing(&board), if several => outcome,
        never = pass_on(&mut signals, &signal) => match never {},
        never = listen_for_the_switch(context, &session, &signal) => match never {},
    }
}

/// Works on one pod until its part has ended. What fails in one of several is begun anew a few times and then ends that
/// pod alone; a status that cannot be written is everybody's.
async fn work_on<C: Connect>(
    board: &Board<'_, C>,
    place: usize,
    session: &DebugSession,
    target: &Target,
    script: Option<&Result<Arc<str>, Refusal>>,
    gate: &Gate<'_>,
    several: bool,
) -> Result<Ended, Error> {
    let attempt = |entry| {
        let target = Target {
            entry,
            pinned: target.pinned,
            end: None,
        };
        let run = Run::new(board, place, session, &target, script, gate);
        let span = telemetry::pod_span(run.session.spec.pod_name());
        Box::pin(run.drive()).instrument(span)
    };
    let mut ended = attempt(target.entry.clone()).await;
    let mut pause = withdraw::PAUSE;
    for _ in 0..withdraw::RETRIES {
        let Err(error) = &ended else { return ended };
        if !several || board.has_failed() {
            return ended;
        }
        warn!(error = %describe(error), "the work on one pod failed; it is begun anew");
        tokio::time::sleep(pause).await;
        pause *= 2;
        // As it stands: what was given to an agent is asked for again and nothing else.
        ended = attempt(board.entry(place)).await;
    }
    match ended {
        Err(error) if several && !board.has_failed() => {
            Ok(give_up(board, place, session, &error).await)
        }
        ended => ended,
    }
}

/// The end of one pod of several in which the API server refuses something again and again. The others go on.
async fn give_up<C: Connect>(
    board: &Board<'_, C>,
    place: usize,
    session: &DebugSession,
    error: &Error,
) -> Ended {
    warn!(error = %describe(error), "the work on one pod is given up");
    let context = board.context();
    let entry = board.entry(place);
    let withdrawn = withdraw(context, session, &entry).await;
    let (known, keeper) =
        withdrawn.map_or((None, None), |it| (Some((it.words, it.outcome)), it.keeper));
    let sensitive = context.settings.sensitive;
    let end = PodEnd::gave_up(session, &entry, withdraw::why(error), known, sensitive);
    Ended::Pod {
        end: Box::new(end),
        keeper,
    }
}

/// Writes what several pods show, from time to time, until the session is another's.
async fn keep_showing<C>(board: &Board<'_, C>) -> Result<Outcome, Error> {
    let mut ticks = tokio::time::interval(SHOW_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Flow::Stop(Outcome::Superseded) = board.write_all().await? {
            return Ok(Outcome::Superseded);
        }
    }
}

/// The session with an empty script in place of its own: each pod would keep that.
fn without_script(mut session: DebugSession) -> DebugSession {
    if let Some(exec) = &mut session.spec.remote_exec {
        exec.script = exec.script.take().map(|_| String::new());
    }
    session
}

/// Tells the runs when the kill switch concerns them.
async fn listen_for_the_switch<C>(
    context: &Context<C>,
    session: &DebugSession,
    signal: &watch::Sender<Signal>,
) -> Infallible {
    let refusal = context.fences.killed(session).await;
    warn!("{}", refusal.message);
    signal.send_modify(|signal| signal.killed = true);
    std::future::pending().await
}

/// Tells the runs what the outside says.
async fn pass_on(from: &mut watch::Receiver<Signal>, to: &watch::Sender<Signal>) -> Infallible {
    loop {
        let closed = from.changed().await.is_err();
        pass(from, to);
        if closed {
            return std::future::pending().await;
        }
    }
}

/// Tells the runs what the outside has said so far.
fn pass(from: &watch::Receiver<Signal>, to: &watch::Sender<Signal>) {
    let closed = from.has_changed().is_err();
    let news = from.borrow().clone();
    to.send_modify(|signal| {
        signal.gone |= news.gone || closed;
        if news.latest.is_some() {
            signal.latest = news.latest;
        }
    });
}

/// Where each pod stands in the status, which is sorted by name; they are worked on in the order in which they were
/// chosen.
fn places(targets: &[Target]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..targets.len()).collect();
    order.sort_by(|one, other| pod_name(targets, *one).cmp(pod_name(targets, *other)));
    let mut places = vec![0; targets.len()];
    for (place, chosen) in order.into_iter().enumerate() {
        if let Some(slot) = places.get_mut(chosen) {
            *slot = place;
        }
    }
    places
}

fn pod_name(targets: &[Target], place: usize) -> &str {
    targets
        .get(place)
        .map_or("", |target| target.entry.pod_name.as_str())
}

/// How many pods are worked on at once.
fn parallel(session: &DebugSession) -> usize {
    let count = session.spec.target.pods.clone().unwrap_or_default();
    usize::try_from(count.max_parallel).unwrap_or(1).max(1)
}

/// The pods of a session in the order in which they are asked: those that stand in its status, else those that its
/// selector means now, else the one that it names.
async fn choose<C: Connect>(
    context: &Context<C>,
    session: &DebugSession,
) -> Result<Result<Vec<Target>, Refusal>, Error> {
    let spec = &session.spec;
    let pinned = spec.target.selector.is_some();
    let known = session
        .status
        .as_ref()
        .map(|status| status.targets.as_slice())
        .unwrap_or_default();
    if !known.is_empty() {
        let targets = by_pod(known).into_iter().filter_map(|entries| {
            Some(Target {
                end: PodEnd::read(&entries),
                entry: entries.into_iter().next()?,
                pinned,
            })
        });
        return Ok(Ok(targets.collect()));
    }
    let Some(selector) = &spec.target.selector else {
        return Ok(Ok(vec![Target {
            entry: TargetStatus {
                pod_name: spec.pod_name().to_owned(),
                ..TargetStatus::default()
            },
            pinned,
            end: None,
        }]));
    };
    let namespace = session.namespace().unwrap_or_default();
    let selector = targets::label_selector(selector);
    let found = match observe::candidates(&context.client, &namespace, &selector).await? {
        Ok(found) => found,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let count = spec.target.pods.clone().unwrap_or_default();
    let chosen = targets::choose(found, &count, &selector.to_string(), &namespace);
    Ok(chosen.map(|chosen| chosen.into_iter().map(chosen_target).collect()))
}

fn chosen_target(pod: Candidate) -> Target {
    Target {
        entry: TargetStatus {
            pod_name: pod.name,
            pod_uid: Some(pod.uid),
            node: pod.node,
            phase: Some(Phase::Pending),
            ..TargetStatus::default()
        },
        pinned: true,
        end: None,
    }
}

/// The end of a session that has no pod to work on.
fn refused<C>(context: &Context<C>, session: &DebugSession, refusal: Refusal) -> PodEnd {
    PodEnd::new(
        session,
        plan::End {
            reason: refusal.reason,
            message: refusal.message,
            outcome: None,
            maybe_armed: false,
        },
        &TargetStatus::default(),
        String::new(),
        context.settings.sensitive,
    )
}

/// The first words about the session; they reach the API server with whatever is written first.
fn take_up(session: &DebugSession, script: Option<&Arc<str>>) -> DebugSessionStatus {
    let spec = &session.spec;
    let mut status = session.status.clone().unwrap_or_default();
    status
        .start_time
        .get_or_insert(Time(whole_seconds(Timestamp::now())));
    status.phase.get_or_insert(Phase::Pending);
    status.observed_generation = session.metadata.generation;
    status.action = spec.action().map(|action| action.name().to_owned());
    if let Some(script) = script {
        status.script_sha256 = Some(observe::digest(script));
    }
    status
}

/// The target in short, for the table.
fn target_words(session: &DebugSession, chosen: Option<&str>) -> String {
    let target = &session.spec.target;
    let pods = match &target.selector {
        Some(selector) => targets::label_selector(selector).to_string(),
        None => session.spec.pod_name().to_owned(),
    };
    let container = target.container.as_deref().or(chosen);
    match container {
        Some(container) => format!("{pods}/{container}"),
        None => pods,
    }
}

/// From the session's start to now. What stands in the status is cut to whole seconds: a start that is a second or
/// more before this run's own was another run's, and then only whole seconds are known.
fn elapsed(session: &DebugSession, began: Instant, now: Timestamp) -> Duration {
    let started = plan::started(session, now);
    let whole = Duration::try_from(now.duration_since(started)).unwrap_or_default();
    let here = began.elapsed();
    if whole > here + Duration::from_secs(1) {
        whole
    } else {
        here
    }
}

fn at_most_once(session: &DebugSession) -> bool {
    matches!(session.spec.action(), Some(SessionAction::RemoteExec(_)))
}

#[cfg(test)]
mod tests;
