//! One pod of a session from its start to its end: observe, plan, apply, until the plan says that it is over.
//!
//! Here stand the loop and what a run knows; how each step is carried out is in a file of its own. Nothing here decides
//! what comes next: a step changes what was observed, and the plan is asked again.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sidewinder_crds::{DebugSession, Phase, TargetStatus};
use sidewinder_model::Reason;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{Instrument, debug, info};

use super::board::Board;
use super::{Flow, Outcome, Signal, Target, at_most_once};
use crate::error::Error;
use crate::faults::{self, Point};
use crate::fences::slots::{Entering, Permit};
use crate::fences::{Gate, namespaces};
use crate::inject::{self, Refusal};
use crate::relay::connect::{Connect, Endpoint};
use crate::relay::{Agent, Replies};
use crate::session::plan::{self, Answer, Intent, Observed, Step, plan};
use crate::session::result::{PodEnd, Reached};
use crate::session::{Context, observe};
use crate::telemetry;

/// How long a pod may wait for a turn before it is looked at again.
pub(super) const STALE: Duration = Duration::from_secs(1);
/// What whoever asked did not do and reads at the end.
const KILLED: &str = "the kill switch ended it (killSwitch in the operator's settings)";

/// How a run stopped.
pub(super) enum Ended {
    /// The pod's part has ended.
    Pod {
        /// What it came to.
        end: Box<PodEnd>,
        /// Who keeps the outcome until it is written.
        keeper: Option<Arc<Agent>>,
    },
    /// The whole session is not to be worked on any more.
    Stopped(Outcome),
}

/// What the gate says of a step.
enum Said {
    /// It may be done.
    Go,
    /// It may not.
    No(Refusal),
    /// What it was asked about has changed: it is to be planned again.
    LookAgain,
}

/// The work on one pod.
pub(super) struct Run<'a, C> {
    pub(super) context: &'a Context<C>,
    pub(super) board: &'a Board<'a, C>,
    pub(super) place: usize,
    /// The session as if it named this pod alone.
    pub(super) session: DebugSession,
    pub(super) signals: watch::Receiver<Signal>,
    pub(super) gone: bool,
    pub(super) observed: Observed,
    pub(super) agent: Option<Arc<Agent>>,
    pub(super) replies: Option<Replies>,
    pub(super) cancel_sent: bool,
    /// How often the answer came too slowly.
    pub(super) slow: u32,
    /// The sidecar that the session goes through, for the status.
    pub(super) entry: TargetStatus,
    pub(super) pod_changes: Option<BoxStream<'static, Option<Pod>>>,
    /// While the sidecar is brought up.
    pub(super) entering: Option<Entering>,
    /// When the pod was read, or its watch said something.
    pod_read: Instant,
    gate: &'a Gate<'a>,
}

impl<'a, C: Connect> Run<'a, C> {
    pub(super) fn new(
        board: &'a Board<'a, C>,
        place: usize,
        session: &DebugSession,
        target: &Target,
        script: Option<&Result<Arc<str>, Refusal>>,
        gate: &'a Gate<'a>,
    ) -> Self {
        let mut session = session.clone();
        session.spec.target.pod_name = Some(target.entry.pod_name.clone());
        session.spec.target.selector = None;
        session.spec.target.pods = None;
        let observed = Observed {
            script: script.cloned(),
            intent: at_most_once(&session)
                .then(|| Intent::read(std::slice::from_ref(&target.entry)))
                .flatten(),
            pinned: target
                .pinned
                .then(|| target.entry.pod_uid.clone())
                .flatten(),
            ..Observed::default()
        };
        Self {
            context: board.context(),
            board,
            place,
            session,
            signals: board.signals(),
            gone: false,
            observed,
            agent: None,
            replies: None,
            cancel_sent: false,
            slow: 0,
            entry: target.entry.clone(),
            pod_changes: None,
            entering: None,
            pod_read: Instant::now(),
            gate,
        }
    }

    /// Works on the pod until its part has ended.
    pub(super) async fn drive(mut self) -> Result<Ended, Error> {
        if self.observed.pinned.is_some() {
            // A pod that waited for its turn has its own time to begin.
            let status = self.session.status.get_or_insert_default();
            status.start_time = Some(Time(Timestamp::now()));
        }
        self.observed.pod = self.read_pod().await?;
        let _permit = match self.take_turn().await? {
            Ok(permit) => permit,
            Err(end) => return Ok(self.ended(end)),
        };
        self.take_up();
        self.recall_refusals();
        if self.session.spec.dry_run {
            return Box::pin(self.dry_run()).await;
        }
        loop {
            self.take_signal();
            if self.gone {
                self.abandon().await;
                return Ok(Ended::Stopped(Outcome::Gone));
            }
            let step = self.plan();
            debug!(step = step_name(&step), "next");
            faults::at(Point::before(&step)).await;
            if self.touches(&step) {
                faults::at(Point::Gate).await;
                match self.at_the_gate().await? {
                    Said::Go => {}
                    Said::No(refusal) => return Ok(self.ended(end_of(refusal))),
                    Said::LookAgain => continue,
                }
            }
            if self.may_begin(&step) {
                faults::at(Point::Begin).await;
                match self.at_the_gate().await? {
                    Said::Go => {}
                    Said::No(refusal) => {
                        info!(reason = %refusal.reason, "what its agent does not know is not begun any more");
                        self.observed.barred = Some(refusal);
                        continue;
                    }
                    Said::LookAgain => continue,
                }
            }
            let began = Instant::now();
            if let Step::End(end) = step {
                return Ok(self.ended(*end));
            }
            let flow = self
                .carry_out(&step)
                .instrument(telemetry::step_span(step_name(&step)))
                .await?;
            faults::at(Point::after(&step)).await;
            self.context
                .metrics
                .step(step_name(&step), began.elapsed().as_secs_f64());
            match flow {
                Flow::Continue => {}
                Flow::Stop(Outcome::Gone) => {
                    self.abandon().await;
                    return Ok(Ended::Stopped(Outcome::Gone));
                }
                Flow::Stop(outcome) => return Ok(Ended::Stopped(outcome)),
            }
        }
    }

    async fn carry_out(&mut self, step: &Step) -> Result<Flow, Error> {
        match step.clone() {
            Step::End(_) => Ok(Flow::Continue),
            Step::AwaitPod { until, .. } => self.await_pod(step, until).await,
            Step::Inject { way, container } => self.inject(way, &container).await,
            Step::Open {
                sidecar,
                way,
                until,
            } => self.open(step, sidecar, way, until).await,
            Step::Record(intent) => self.record(intent).await,
            Step::Ask {
                request,
                until,
                cancel,
            } => self.ask(&request, until, cancel).await,
            Step::FallBack { way, refusal } => {
                self.fall_back(way, refusal);
                Ok(Flow::Continue)
            }
        }
    }

    /// Waits for a place in the pod and on its node. What was given to an agent before had one.
    async fn take_turn(&mut self) -> Result<Result<Option<Permit>, plan::End>, Error> {
        let Some(pod) = &self.observed.pod else {
            return Ok(Ok(None));
        };
        if self.session.spec.dry_run || self.observed.intent.is_some() {
            return Ok(Ok(None));
        }
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let uid = pod.uid().unwrap_or_default();
        let slots = self.context.fences.slots(&self.session);
        let place = slots.acquire(node.as_deref(), &uid);
        tokio::pin!(place);
        if let Some(permit) = place.as_mut().now_or_never() {
            return Ok(Ok(Some(permit)));
        }
        let limit = plan::POD_LIMIT + plan::timeout(&self.session.spec);
        let waited = Instant::now();
        let permit = tokio::select! {
            permit = place => permit,
            () = told_to_end(self.signals.clone()) => return Ok(Ok(None)),
            () = tokio::time::sleep(limit) => {
                let message = format!(
                    "as many sessions as may work on pod {} or its node at once did not end within {} s (fences.maxPerPod, fences.maxPerNode)",
                    self.session.spec.pod_name(),
                    limit.as_secs()
                );
                return Ok(Err(end_of(Refusal::new(Reason::QueueFull, message))));
            }
        };
        // Since then the pod may have changed, and its time begins now. After a moment it is as fresh as any that was read.
        if waited.elapsed() >= STALE {
            self.observed.pod = self.read_pod().await?;
        }
        let status = self.session.status.get_or_insert_default();
        status.start_time = Some(Time(Timestamp::now()));
        Ok(Ok(Some(permit)))
    }

    /// Whether a step does something in the pod that was not begun yet.
    fn touches(&self, step: &Step) -> bool {
        let begun = self.observed.intent.is_some() || self.observed.asked_since.is_some();
        let acts = matches!(
            step,
            Step::Inject { .. } | Step::Open { .. } | Step::Record(_) | Step::Ask { .. }
        );
        acts && !begun && self.observed.cancelled_since.is_none()
    }

    /// Whether a script whose intent stands would begin with this request, were its agent not to know it: whoever wrote
    /// the intent may have died, or lost the stream, before it was sent.
    fn may_begin(&self, step: &Step) -> bool {
        let asks = matches!(step, Step::Ask { cancel: false, .. });
        asks && self.observed.intent.is_some()
            && self.replies.is_none()
            && self.observed.barred.is_none()
    }

    /// What the gate says of the pod, whose labels are no older than it believes those of a namespace. Where that takes
    /// long, because the API server is away, a session that is told to stop meanwhile does not wait for it.
    async fn at_the_gate(&mut self) -> Result<Said, Error> {
        // An answer that was long in coming was given to labels that may have changed since: it is asked for once more.
        for last in [false, true] {
            if self.is_stale() && self.pod_has_changed().await? {
                return Ok(Said::LookAgain);
            }
            let Some(pod) = &self.observed.pod else { break };
            let cancelled = self.observed.cancelled_since.is_some();
            let said = tokio::select! {
                said = self.gate.act(pod) => said?,
                () = told_to_end(self.signals.clone()), if !cancelled => {
                    self.gone |= self.signals.has_changed().is_err();
                    return Ok(Said::LookAgain);
                }
            };
            match said {
                Err(refusal) => return Ok(Said::No(refusal)),
                Ok(()) if last || !self.is_stale() => break,
                Ok(()) => {}
            }
        }
        Ok(Said::Go)
    }

    fn is_stale(&self) -> bool {
        self.observed.pod.is_some() && self.pod_read.elapsed() >= namespaces::LIFE
    }

    /// Reads the pod again. Whether it is another than it was.
    async fn pod_has_changed(&mut self) -> Result<bool, Error> {
        let version = |pod: Option<&Pod>| pod.and_then(ResourceExt::resource_version);
        let pod = self.read_pod().await?;
        let changed = version(pod.as_ref()) != version(self.observed.pod.as_ref());
        self.set_pod(pod);
        Ok(changed)
    }

    async fn dry_run(mut self) -> Result<Ended, Error> {
        while self.observed.cancelled_since.is_none() {
            faults::at(Point::Gate).await;
            match self.at_the_gate().await? {
                Said::Go => break,
                Said::No(refusal) => return Ok(self.ended(end_of(refusal))),
                Said::LookAgain => self.take_signal(),
            }
            if self.gone {
                return Ok(Ended::Stopped(Outcome::Gone));
            }
        }
        let end = self.preflight().await?;
        Ok(self.ended(end))
    }

    fn ended(mut self, end: plan::End) -> Ended {
        let notes = if self.observed.refused.is_empty() {
            String::new()
        } else {
            format!("; {}", plan::refused_ways(&self.observed.refused))
        };
        let asked = self.observed.asked_since.is_some() || self.observed.intent.is_some();
        let answered = matches!(self.observed.answer, Some(Answer::Finished(_)));
        let known = std::mem::take(&mut self.entry);
        let sensitive = self.context.settings.sensitive;
        let mut end = PodEnd::new(&self.session, end, &known, notes, sensitive);
        if asked {
            end.reached = end.reached.max(Reached::Request);
        }
        if end.reason == Reason::Cancelled && self.signals.borrow().killed {
            end.explain(KILLED);
        }
        let pod = self.observed.pod.as_ref();
        let warning =
            pod.and_then(|pod| inject::sidecars_warning(pod, &self.context.settings.sidecar));
        if let Some(warning) = warning {
            end.note(&warning);
        }
        Ended::Pod {
            end: Box::new(end),
            keeper: self.agent.take().filter(|_| answered),
        }
    }

    pub(super) fn plan(&self) -> Step {
        plan(
            &self.session,
            &self.observed,
            &self.context.settings.sidecar,
            Timestamp::now(),
        )
    }

    fn take_up(&mut self) {
        if self.observed.intent.is_some() {
            info!("resumed: the action was given to an agent before");
        }
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
        // Another pod of the same name is not the target.
        if self.observed.pinned.is_some() && self.observed.pinned != pod.uid() {
            return;
        }
        let container =
            inject::choose_container(pod, self.session.spec.target.container.as_deref()).ok();
        self.board.name_container(container);
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

    /// The pod as it is now.
    pub(super) async fn read_pod(&mut self) -> Result<Option<Pod>, Error> {
        let namespace = self.session.namespace().unwrap_or_default();
        let pod = observe::pod(
            &self.context.client,
            &namespace,
            self.session.spec.pod_name(),
        )
        .await;
        self.pod_read = Instant::now();
        pod
    }

    pub(super) fn set_pod(&mut self, pod: Option<Pod>) {
        self.observed.pod = pod;
        self.pod_read = Instant::now();
        self.note_pod();
    }

    pub(super) fn note_signal(&mut self, cancel: bool) {
        if cancel && self.observed.cancelled_since.is_none() {
            info!("cancelled");
            self.observed.cancelled_since = Some(Timestamp::now());
        }
    }

    pub(super) fn take_signal(&mut self) {
        let signal = self.signals.borrow_and_update().clone();
        self.gone |= signal.gone;
        if let Some(latest) = signal.latest {
            self.note_signal(latest.spec.cancel);
        }
        self.note_signal(signal.killed);
    }

    /// Shows how far the pod's part is, where that changed.
    pub(super) async fn progress(&mut self, phase: Phase) -> Result<Flow, Error> {
        // An intent stands as it was written until the end.
        if self.observed.intent.is_some() {
            return Ok(Flow::Continue);
        }
        let entry = TargetStatus {
            phase: Some(phase),
            agent: self.entry.agent.clone().filter(|_| phase == Phase::Running),
            ..self.entry.clone()
        };
        self.board.show(self.place, entry).await
    }

    /// The pod's changes, watched from the first call on.
    pub(super) fn pod_changes(&mut self) -> &mut BoxStream<'static, Option<Pod>> {
        self.pod_changes
            .get_or_insert_with(|| observe::pod_changes(&self.context.client, &self.session))
    }

    pub(super) fn endpoint(&self, sidecar: &str) -> Endpoint {
        Endpoint {
            namespace: self.session.namespace().unwrap_or_default(),
            pod: self.session.spec.pod_name().to_owned(),
            pod_uid: self.entry.pod_uid.clone().unwrap_or_default(),
            container: sidecar.to_owned(),
        }
    }
}

/// Until the session is gone, cancelled or killed.
pub(super) async fn told_to_end(mut signals: watch::Receiver<Signal>) {
    loop {
        {
            let signal = signals.borrow_and_update();
            let latest = signal.latest.as_ref();
            if signal.gone || signal.killed || latest.is_some_and(|it| it.spec.cancel) {
                return;
            }
        }
        if signals.changed().await.is_err() {
            return;
        }
    }
}

fn end_of(refusal: Refusal) -> plan::End {
    plan::End {
        reason: refusal.reason,
        message: refusal.message,
        outcome: None,
        maybe_armed: false,
    }
}

pub(super) fn step_name(step: &Step) -> &'static str {
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

pub(super) fn deadline(until: Timestamp) -> Instant {
    let left = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
    Instant::now() + left
}
