//! One session from its start to its end: observe, plan, apply, until the plan says that it is over.
//!
//! Here stand the loop and what a run knows; how each step is carried out is in a file of its own. Nothing here decides
//! what comes next: a step changes what was observed, and the plan is asked again.

mod ask;
mod end;
mod enter;
mod status;

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sidewinder_crds::conditions::whole_seconds;
use sidewinder_crds::{DebugSession, DebugSessionStatus, Phase, SessionAction, TargetStatus};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info};

use super::Context;
use super::observe;
use super::plan::{Intent, Observed, Step, plan};
use crate::error::Error;
use crate::inject;
use crate::relay::connect::{Connect, Endpoint};
use crate::relay::{Agent, Replies};

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
            spec.pod_name(),
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
            pod_name: self.session.spec.pod_name().to_owned(),
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
            pod: self.session.spec.pod_name().to_owned(),
            pod_uid: self.entry.pod_uid.clone().unwrap_or_default(),
            container: sidecar.to_owned(),
        }
    }
}

fn deadline(until: Timestamp) -> Instant {
    let left = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
    Instant::now() + left
}

#[cfg(test)]
mod tests;
