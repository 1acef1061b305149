//! One session from its start to its end: observe, plan, apply, until the plan says that it is over.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{EphemeralContainer, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sidewinder_crds::conditions::{self, Observation, whole_seconds};
use sidewinder_crds::{
    AttachMode, DebugSession, DebugSessionStatus, Phase, SessionAction, TargetStatus,
};
use sidewinder_model::{Reason, Request};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Context;
use super::apply::{self, Injected, Written};
use super::observe;
use super::plan::{self, Answer, End, Intent, Link, Observed, Step, Way, plan};
use super::result::{finish, readable};
use crate::error::Error;
use crate::inject::{self, Refusal, ResidentState};
use crate::metrics::{Ended, SidecarLabel};
use crate::relay::connect::{Connect, Endpoint};
use crate::relay::{Agent, RelayError, Replies, Reply};

/// Waiting longer than this is worth a write, so that people see how far a session is.
const PROGRESS_AFTER: Duration = Duration::from_millis(250);
/// An open that takes longer than this is worth watching the pod for what the kubelet says.
const WATCH_AFTER: Duration = Duration::from_millis(100);
/// How long an agent that let its deadline pass may take to answer after all when it is told to stop.
const LAST_CALL: Duration = Duration::from_secs(5);

/// What the outside tells a running session.
#[derive(Clone, Debug, Default)]
pub struct Signal {
    /// The session as it was last seen.
    pub latest: Option<Arc<DebugSession>>,
    /// It was deleted.
    pub gone: bool,
}

/// How work on a session stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its end is written.
    Ended,
    /// It is gone.
    Gone,
    /// Another writer took it over.
    Superseded,
}

enum Flow {
    Continue,
    Stop(Outcome),
}

/// Works on `session` until its end.
///
/// # Errors
/// When the API server refuses something that cannot be worked around, or stays away.
pub async fn drive<C: Connect>(
    context: &Context<C>,
    session: DebugSession,
    signals: watch::Receiver<Signal>,
) -> Result<Outcome, Error> {
    let mut run = Run::new(context, session, signals);
    let (pod, script) = tokio::join!(
        observe::pod(&context.client, &run.session),
        observe::script(&context.client, &run.session)
    );
    run.observed.pod = pod?;
    run.observed.script = script?;
    run.take_up();
    run.recall_refusals();
    loop {
        run.take_signal();
        if run.gone {
            run.abandon().await;
            return Ok(Outcome::Gone);
        }
        let step = run.plan();
        debug!(step = step_name(&step), "next");
        let began = Instant::now();
        let flow = match step.clone() {
            Step::End(end) => run.end(&end).await?,
            Step::AwaitPod { until } => run.await_pod(&step, until).await?,
            Step::Inject { way, container } => run.inject(way, &container).await?,
            Step::Open {
                sidecar,
                way,
                until,
            } => run.open(&step, sidecar, way, until).await?,
            Step::Record(intent) => run.record(intent).await?,
            Step::Ask {
                request,
                until,
                cancel,
            } => run.ask(&request, until, cancel).await?,
            Step::FallBack { way, refusal } => {
                run.fall_back(way, refusal);
                Flow::Continue
            }
        };
        context
            .metrics
            .step(step_name(&step), began.elapsed().as_secs_f64());
        if let Flow::Stop(outcome) = flow {
            return Ok(outcome);
        }
    }
}

fn step_name(step: &Step) -> &'static str {
    match step {
        Step::End(_) => "end",
        Step::AwaitPod { .. } => "await_pod",
        Step::Inject { .. } => "inject",
        Step::Open { .. } => "open",
        Step::Record(_) => "record",
        Step::Ask { .. } => "ask",
        Step::FallBack { .. } => "fall_back",
    }
}

struct Run<'a, C> {
    context: &'a Context<C>,
    /// As it stands in the API server, as far as is known.
    session: DebugSession,
    /// As it should stand there.
    status: DebugSessionStatus,
    signals: watch::Receiver<Signal>,
    gone: bool,
    observed: Observed,
    agent: Option<Arc<Agent>>,
    replies: Option<Replies>,
    cancel_sent: bool,
    /// The sidecar that the session goes through, for the status.
    entry: TargetStatus,
    pod_changes: Option<BoxStream<'static, Option<Pod>>>,
    began: Instant,
}

impl<'a, C: Connect> Run<'a, C> {
    fn new(
        context: &'a Context<C>,
        session: DebugSession,
        signals: watch::Receiver<Signal>,
    ) -> Self {
        let status = session.status.clone().unwrap_or_default();
        Self {
            context,
            status,
            session,
            signals,
            gone: false,
            observed: Observed::default(),
            agent: None,
            replies: None,
            cancel_sent: false,
            entry: TargetStatus::default(),
            pod_changes: None,
            began: Instant::now(),
        }
    }

    fn plan(&self) -> Step {
        plan(
            &self.session,
            &self.observed,
            &self.context.settings.sidecar,
            Timestamp::now(),
        )
    }

    fn at_most_once(&self) -> bool {
        matches!(
            self.session.spec.action(),
            Some(SessionAction::RemoteExec(_))
        )
    }

    /// The first words about the session; they reach the API server with whatever is written first.
    fn take_up(&mut self) {
        let now = Timestamp::now();
        let spec = &self.session.spec;
        if self.at_most_once() {
            self.observed.intent = Intent::read(&self.status.targets);
            if self.observed.intent.is_some() {
                info!("resumed: the action was given to an agent before");
                self.entry = self.status.targets.first().cloned().unwrap_or_default();
            }
        }
        let status = &mut self.status;
        status.start_time.get_or_insert(Time(whole_seconds(now)));
        status.phase.get_or_insert(Phase::Pending);
        status.observed_generation = self.session.metadata.generation;
        status.action = spec.action().map(|action| action.name().to_owned());
        let container = spec
            .target
            .container
            .as_deref()
            .or_else(|| {
                self.observed
                    .pod
                    .as_ref()
                    .and_then(|pod| inject::choose_container(pod, None).ok())
            })
            .map(|container| format!("/{container}"));
        status.target = Some(format!(
            "{}{}",
            spec.target.pod_name,
            container.unwrap_or_default()
        ));
        if let Some(Ok(script)) = &self.observed.script {
            status.script_sha256 = Some(observe::digest(script));
        }
        let started = status.start_time.clone();
        // The plan counts from here, also before anything is written.
        self.session
            .status
            .get_or_insert_default()
            .start_time
            .get_or_insert_with(|| started.unwrap_or(Time(now)));
        self.note_pod();
        self.note_signal(self.session.spec.cancel);
    }

    /// A way that was just refused in this pod is not tried again where the other one is there already.
    fn recall_refusals(&mut self) {
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

    /// Copies what the status says about the pod.
    fn note_pod(&mut self) {
        let Some(pod) = &self.observed.pod else {
            return;
        };
        if self.observed.intent.is_some() {
            return;
        }
        let container =
            inject::choose_container(pod, self.session.spec.target.container.as_deref()).ok();
        self.entry = TargetStatus {
            pod_name: self.session.spec.target.pod_name.clone(),
            pod_uid: pod.uid(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            container: container.map(str::to_owned),
            container_id: container
                .and_then(|container| inject::container_status(pod, container))
                .and_then(|status| status.container_id.clone()),
            sidecar: self.entry.sidecar.clone(),
            attach: self.entry.attach,
            agent: self.entry.agent.clone(),
            ..TargetStatus::default()
        };
    }

    fn set_pod(&mut self, pod: Option<Pod>) {
        self.observed.pod = pod;
        self.note_pod();
    }

    fn note_signal(&mut self, cancel: bool) {
        if cancel && self.observed.cancelled_since.is_none() {
            info!("cancelled");
            self.observed.cancelled_since = Some(Timestamp::now());
        }
    }

    fn take_signal(&mut self) {
        let signal = self.signals.borrow_and_update().clone();
        self.gone |= signal.gone;
        if let Some(latest) = signal.latest {
            self.note_signal(latest.spec.cancel);
        }
    }

    /// The pod's changes, watched from the first call on.
    fn pod_changes(&mut self) -> &mut BoxStream<'static, Option<Pod>> {
        self.pod_changes
            .get_or_insert_with(|| observe::pod_changes(&self.context.client, &self.session))
    }

    fn endpoint(&self, sidecar: &str) -> Endpoint {
        Endpoint {
            namespace: self.session.namespace().unwrap_or_default(),
            pod: self.session.spec.target.pod_name.clone(),
            pod_uid: self.entry.pod_uid.clone().unwrap_or_default(),
            container: sidecar.to_owned(),
        }
    }

    async fn await_pod(&mut self, step: &Step, until: Timestamp) -> Result<Flow, Error> {
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

    async fn inject(&mut self, way: Way, container: &EphemeralContainer) -> Result<Flow, Error> {
        self.observed
            .entering_since
            .get_or_insert_with(Timestamp::now);
        let Some(pod) = self.observed.pod.clone() else {
            return Ok(Flow::Continue);
        };
        match apply::inject(&self.context.client, &pod, container).await? {
            Injected::Added(pod) => {
                info!(pod = %pod.name_any(), sidecar = container.name, attach = way.name(), "sidecar added");
                self.context
                    .metrics
                    .sidecars
                    .get_or_create(&SidecarLabel {
                        attach: way.name().to_owned(),
                    })
                    .inc();
                self.context.events.publish(
                    pod.as_ref(),
                    &self.session,
                    Reason::Attached,
                    true,
                    &format!(
                        "DebugSession {} added ephemeral container {} ({})",
                        self.session.name_any(),
                        container.name,
                        way.name()
                    ),
                );
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
                self.observed.refused.insert(way, refusal);
            }
            Injected::Changed => {
                let pod = observe::pod(&self.context.client, &self.session).await?;
                self.set_pod(pod);
                // Two that add at the same time look again at different moments.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(Flow::Continue)
    }

    #[expect(
        clippy::too_many_lines,
        reason = "everything that can end one attempt, side by side"
    )]
    async fn open(
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
        let attempt = {
            let last = Arc::clone(&last);
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
                    tokio::time::sleep(pause).await;
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
                self.agent = Some(agent);
                self.replies = None;
                self.cancel_sent = false;
                self.pod_changes = None;
            }
            Some(Err(error)) => {
                if matches!(error, RelayError::PodGone(_)) {
                    let pod = observe::pod(&self.context.client, &self.session).await?;
                    self.set_pod(pod);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                self.observed.link_error = Some(error);
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

    async fn record(&mut self, intent: Intent) -> Result<Flow, Error> {
        self.entry.sidecar = Some(intent.sidecar.clone());
        self.entry.attach = Some(intent.attach);
        self.entry.agent = Some(intent.instance.clone());
        self.entry.container_id = Some(intent.container_id.clone());
        self.mark_running();
        let cancelled = self.observed.cancelled_since;
        match self.save().await? {
            Flow::Stop(outcome) => return Ok(Flow::Stop(outcome)),
            Flow::Continue => {}
        }
        self.observed.intent = Some(intent);
        if cancelled.is_none() && self.session.spec.cancel {
            self.note_signal(true);
        }
        Ok(Flow::Continue)
    }

    fn mark_running(&mut self) {
        let now = Timestamp::now();
        let generation = self.session.metadata.generation;
        self.status.phase = Some(Phase::Running);
        self.status.targets = vec![TargetStatus {
            phase: Some(Phase::Running),
            ..self.entry.clone()
        }];
        self.status.pods = Some("0/1".to_owned());
        for (condition, reason) in [
            (conditions::ACCEPTED, Reason::Accepted),
            (conditions::ATTACHED, Reason::Attached),
        ] {
            conditions::set(
                &mut self.status.conditions,
                Observation {
                    condition,
                    status: true,
                    reason: reason.to_string(),
                    message: reason.sentence().to_owned(),
                },
                generation,
                now,
            );
        }
    }

    async fn ask(
        &mut self,
        request: &Request,
        until: Timestamp,
        cancel: bool,
    ) -> Result<Flow, Error> {
        let Some(agent) = self.agent.clone() else {
            self.observed.link = None;
            return Ok(Flow::Continue);
        };
        if let Err(error) = self.send(&agent, request, cancel).await {
            return self.lose(error).await;
        }
        let deadline = deadline(until);
        let mut last_call: Option<Instant> = None;
        let mut progress = Some(Instant::now() + PROGRESS_AFTER);
        loop {
            let mut signals = self.signals.clone();
            let Some(replies) = &mut self.replies else {
                return Ok(Flow::Continue);
            };
            tokio::select! {
                reply = replies.next() => match reply {
                    Ok(Reply::Accepted) => {}
                    Ok(Reply::Finished(outcome)) => {
                        self.observed.answer = Some(Answer::Finished(outcome));
                        return Ok(Flow::Continue);
                    }
                    Ok(Reply::Refused { reason, message }) => {
                        self.observed.answer = Some(Answer::Refused(Refusal::new(reason, message)));
                        return Ok(Flow::Continue);
                    }
                    Err(error) => return self.lose(error).await,
                },
                () = tokio::time::sleep_until(last_call.unwrap_or(deadline)) => {
                    if cancel || last_call.is_some() {
                        self.observed.answer = Some(Answer::Silent);
                        return Ok(Flow::Continue);
                    }
                    warn!("the agent let the deadline pass; it is told to stop");
                    // A lost stream shows in the replies.
                    let _ = agent.cancel(&request.id).await;
                    last_call = Some(Instant::now() + LAST_CALL);
                }
                () = tokio::time::sleep_until(progress.unwrap_or(deadline)), if progress.is_some() => {
                    progress = None;
                    if let Flow::Stop(outcome) = self.progress(Phase::Running).await? {
                        return Ok(Flow::Stop(outcome));
                    }
                }
                changed = signals.changed() => {
                    if changed.is_err() {
                        self.gone = true;
                    }
                    let before = (self.gone, self.observed.cancelled_since);
                    self.take_signal();
                    if before != (self.gone, self.observed.cancelled_since) {
                        return Ok(Flow::Continue);
                    }
                }
            }
        }
    }

    /// Sends the request once per stream, and its cancellation once per stream. A cancellation goes before and after
    /// the request that fetches the outcome: before, so that what runs is stopped; after, so that a request which
    /// never arrived does not begin.
    async fn send(
        &mut self,
        agent: &Agent,
        request: &Request,
        cancel: bool,
    ) -> Result<(), RelayError> {
        if self.replies.is_none() {
            if cancel {
                agent.cancel(&request.id).await?;
            }
            let now = Timestamp::now();
            self.observed.asked_since.get_or_insert(now);
            if let Some(link) = &self.observed.link {
                self.observed.asked.insert(link.sidecar.clone());
            }
            self.replies = Some(agent.ask(request).await?);
        }
        if cancel && !self.cancel_sent {
            agent.cancel(&request.id).await?;
            self.cancel_sent = true;
        }
        Ok(())
    }

    /// The stream broke: look at the pod, and let the plan decide where to go.
    async fn lose(&mut self, error: RelayError) -> Result<Flow, Error> {
        info!(%error, "the stream to the sidecar was lost");
        if let Some(link) = self.observed.link.take() {
            let endpoint = self.endpoint(&link.sidecar);
            self.context.pool.forget(&endpoint);
        }
        self.agent = None;
        self.replies = None;
        self.observed.link_error = Some(error);
        self.observed.entering_since = Some(Timestamp::now());
        let pod = observe::pod(&self.context.client, &self.session).await?;
        self.set_pod(pod);
        Ok(Flow::Continue)
    }

    fn fall_back(&mut self, way: Way, refusal: Refusal) {
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

    /// Shows how far the session is, where that changed.
    async fn progress(&mut self, phase: Phase) -> Result<Flow, Error> {
        let before = self.status.clone();
        // An intent stands as it was written until the end.
        if self.observed.intent.is_none() {
            if phase == Phase::Running {
                self.mark_running();
            } else {
                self.status.phase = Some(phase);
                self.status.pods = Some("0/1".to_owned());
                self.status.targets = vec![TargetStatus {
                    phase: Some(phase),
                    agent: None,
                    ..self.entry.clone()
                }];
                conditions::set(
                    &mut self.status.conditions,
                    Observation {
                        condition: conditions::ACCEPTED,
                        status: true,
                        reason: Reason::Accepted.to_string(),
                        message: Reason::Accepted.sentence().to_owned(),
                    },
                    self.session.metadata.generation,
                    Timestamp::now(),
                );
            }
        }
        if before == self.status && self.session.status.as_ref() == Some(&self.status) {
            return Ok(Flow::Continue);
        }
        self.save().await
    }

    /// Writes `self.status`, unless somebody else wrote a status meanwhile.
    async fn save(&mut self) -> Result<Flow, Error> {
        loop {
            self.status.observed_generation = self.session.metadata.generation;
            match apply::status(&self.context.client, &self.session, &self.status).await? {
                Written::Done(session) => {
                    self.session = *session;
                    self.status = self.session.status.clone().unwrap_or_default();
                    return Ok(Flow::Continue);
                }
                Written::Gone => return self.session_gone().await,
                Written::Conflict => {
                    let Some(fresh) = observe::session(&self.context.client, &self.session).await?
                    else {
                        return self.session_gone().await;
                    };
                    let known = self.session.status.as_ref();
                    let theirs = fresh.status.as_ref();
                    if theirs == Some(&self.status) {
                        // The write arrived and its answer did not.
                        self.session = fresh;
                        return Ok(Flow::Continue);
                    }
                    let untouched = theirs.is_none_or(|theirs| theirs.phase.is_none());
                    if theirs != known && !untouched {
                        warn!("another operator wrote the status; leaving the session to it");
                        return Ok(Flow::Stop(Outcome::Superseded));
                    }
                    self.note_signal(fresh.spec.cancel);
                    self.session = fresh;
                }
            }
        }
    }

    async fn session_gone(&mut self) -> Result<Flow, Error> {
        self.gone = true;
        self.abandon().await;
        Ok(Flow::Stop(Outcome::Gone))
    }

    /// The session was deleted: whatever runs for it is stopped, within [`plan::CANCEL_LIMIT`].
    async fn abandon(&mut self) {
        let out = self.observed.asked_since.is_some() || self.observed.intent.is_some();
        if !out || self.observed.answer.is_some() {
            info!("deleted");
            return;
        }
        let id = self.session.uid().unwrap_or_default();
        let stop = async {
            let agent = match (&self.agent, &self.entry.sidecar) {
                (Some(agent), _) if !agent.is_closed() => Arc::clone(agent),
                (_, Some(sidecar)) => self.context.pool.agent(&self.endpoint(sidecar)).await?,
                _ => return Ok(()),
            };
            agent.cancel(&id).await?;
            if let Some(replies) = &mut self.replies {
                while replies.next().await? == Reply::Accepted {}
            }
            agent.acknowledge(&id).await
        };
        match tokio::time::timeout(plan::CANCEL_LIMIT, stop).await {
            Ok(Ok(())) => info!("deleted while it ran; what ran was stopped"),
            Ok(Err(error)) => {
                warn!(%error, "deleted while it ran; the agent could not be told and ends it at its deadline");
            }
            Err(_) => warn!("deleted while it ran; the agent did not confirm in time"),
        }
    }

    async fn end(&mut self, end: &End) -> Result<Flow, Error> {
        let notes = if self.observed.refused.is_empty() {
            String::new()
        } else {
            format!("; {}", plan::refused_ways(&self.observed.refused))
        };
        let now = Timestamp::now();
        let base = DebugSession {
            status: Some(self.status.clone()),
            ..self.session.clone()
        };
        let elapsed = self.elapsed(now);
        let mut finished = finish(
            &base,
            end,
            &self.entry,
            &notes,
            self.context.settings.sensitive,
            elapsed,
            now,
        );
        let documents = std::mem::take(&mut finished.documents);
        for (place, document) in &documents {
            self.context.metrics.result_bytes.observe(f64::from(
                u32::try_from(document.json.len()).unwrap_or(u32::MAX),
            ));
            let (secrets, reference) = match document.secrets(&self.session) {
                Ok(stored) => stored,
                Err(error) => {
                    finished.not_stored(&error.to_string(), self.session.metadata.generation, now);
                    continue;
                }
            };
            let mut refused = None;
            for secret in &secrets {
                if let Err(error) = apply::secret(&self.context.client, secret).await {
                    refused = Some(error);
                    break;
                }
            }
            match refused {
                None => finished.store(*place, reference),
                Some(error) => {
                    warn!(%error, "a result could not be stored");
                    let words = error
                        .api()
                        .map_or_else(|| error.to_string(), |status| status.message.clone());
                    finished.not_stored(&words, self.session.metadata.generation, now);
                }
            }
        }
        self.status = finished.status;
        if let Flow::Stop(outcome) = self.save().await? {
            return Ok(Flow::Stop(outcome));
        }
        if let (Some(agent), Some(Answer::Finished(_))) = (&self.agent, &self.observed.answer) {
            // An agent that does not hear it forgets the outcome by itself.
            let _ = agent
                .acknowledge(&self.session.uid().unwrap_or_default())
                .await;
        }
        self.report(finished.reason, finished.complete, elapsed);
        Ok(Flow::Stop(Outcome::Ended))
    }

    /// From the session's start to now. What stands in the status is cut to whole seconds: a start that is a second or
    /// more before this run's own was another run's, and then only whole seconds are known.
    fn elapsed(&self, now: Timestamp) -> Duration {
        let started = plan::started(&self.session, now);
        let whole = Duration::try_from(now.duration_since(started)).unwrap_or_default();
        let here = self.began.elapsed();
        if whole > here + Duration::from_secs(1) {
            whole
        } else {
            here
        }
    }

    fn report(&self, reason: Reason, complete: bool, elapsed: Duration) {
        let context = self.context;
        let action = self
            .session
            .spec
            .action()
            .map_or("none", SessionAction::name);
        context
            .metrics
            .sessions
            .get_or_create(&Ended {
                action: action.to_owned(),
                result: if complete { "Complete" } else { "Failed" }.to_owned(),
                reason: reason.to_string(),
            })
            .inc();
        context
            .metrics
            .session_duration
            .observe(elapsed.as_secs_f64());
        for target in &self.status.targets {
            if let Some(paused) = target.paused_microseconds {
                context
                    .metrics
                    .pause
                    .observe(Duration::from_micros(paused.unsigned_abs()).as_secs_f64());
            }
        }
        // What the target or the script said stays out of Events and logs.
        let words = if complete {
            reason.sentence().to_owned()
        } else {
            conditions::find(&self.status.conditions, conditions::FAILED)
                .map(|condition| condition.message.clone())
                .unwrap_or_default()
        };
        info!(%reason, complete, duration = readable(elapsed), "ended");
        context.events.publish(
            &self.session,
            &self.session,
            reason,
            complete,
            &format!("{action}: {words}"),
        );
        if let Some(pod) = &self.observed.pod
            && (self.observed.asked_since.is_some() || self.observed.intent.is_some())
        {
            context.events.publish(
                pod,
                &self.session,
                reason,
                complete,
                &format!(
                    "DebugSession {}: {action}: {}",
                    self.session.name_any(),
                    reason.sentence()
                ),
            );
        }
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

fn deadline(until: Timestamp) -> Instant {
    let left = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
    Instant::now() + left
}

/// How long to wait before the stream is tried again. A container that was just added is there within a fraction of a
/// second; each try is a request of the API server and a line in its audit log.
fn pause(error: &RelayError, elapsed: Duration) -> Duration {
    let quick = matches!(error, RelayError::NotRunning(_));
    Duration::from_millis(match elapsed.as_millis() {
        0..2000 if quick => 20,
        0..10_000 => 100,
        _ => 500,
    })
}

#[cfg(test)]
mod tests;
