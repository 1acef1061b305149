//! What to do next for one session: a pure function of the session, of what was observed, and of the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{EphemeralContainer, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use sidewinder_crds::{
    AsyncioFormat, AttachMode, AttachedAs, DebugSession, DebugSessionSpec, LocalsMode, Phase,
    SelectMode, SessionAction, TargetStatus, ThreadSelector, WakePolicy, conditions,
};
use sidewinder_model::request::{ProcessMode, ProcessSelector};
use sidewinder_model::{
    Action, ExecRequest, Locals, Outcome, Reason, Request, TaskFormat, ThreadChoice,
};

use crate::inject::{self, Refusal, Resident, ResidentState, SidecarImage};
use crate::relay::RelayError;

/// How long a pod or container that does not run yet is waited for, from the session's start.
pub const POD_LIMIT: Duration = Duration::from_mins(1);
/// How long getting the sidecar in, or back to it, may take.
pub const ENTER_LIMIT: Duration = Duration::from_mins(1);
/// How much longer than the action's own timeout an answer is waited for: the agent ends the action itself and
/// reports where the threads stood.
pub const ANSWER_GRACE: Duration = Duration::from_secs(20);
/// How long a cancelled request may take to end.
pub const CANCEL_LIMIT: Duration = Duration::from_secs(10);
/// How many agents a read-only action is given to, one after the other, because the one before went away.
pub const MAX_ASKED: usize = 2;
/// How many sidecars one session may add to a pod.
pub const MAX_INJECTIONS: usize = 3;

/// Whom an action that may happen at most once was given to. Stands in the status before anything is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The pod's UID.
    pub pod_uid: String,
    /// The target container.
    pub container: String,
    /// The runtime's id of the target container.
    pub container_id: String,
    /// Our ephemeral container.
    pub sidecar: String,
    /// How it got in.
    pub attach: AttachedAs,
    /// The run of the agent.
    pub instance: String,
}

impl Intent {
    /// The intent that a status carries.
    pub fn read(targets: &[TargetStatus]) -> Option<Self> {
        let [target] = targets else { return None };
        Some(Self {
            pod_uid: target.pod_uid.clone()?,
            container: target.container.clone()?,
            container_id: target.container_id.clone()?,
            sidecar: target.sidecar.clone()?,
            attach: target.attach?,
            instance: target
                .agent
                .clone()
                .filter(|_| target.phase == Some(Phase::Running))?,
        })
    }
}

/// A stream that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Our ephemeral container.
    pub sidecar: String,
    /// How it got in.
    pub attach: AttachedAs,
    /// The run of the agent that shook hands.
    pub instance: String,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The agent finished it.
    Finished(Box<Outcome>),
    /// The agent did not begin it.
    Refused(Refusal),
    /// The agent did not answer in time, or did not confirm a cancellation.
    Silent,
}

/// Everything a decision needs: what was read, and what this run of the operator went through with the session.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The pod; `None` when there is none.
    pub pod: Option<Pod>,
    /// The script of a `remoteExec`, or why there is none.
    pub script: Option<Result<String, Refusal>>,
    /// The ways that were refused, by admission or by the kernel.
    pub refused: BTreeMap<Way, Refusal>,
    /// The intent that stands in the status.
    pub intent: Option<Intent>,
    /// The open stream.
    pub link: Option<Link>,
    /// Why the last stream could not be opened.
    pub link_error: Option<RelayError>,
    /// How the request ended.
    pub answer: Option<Answer>,
    /// The sidecars that this session added, and the runtime's id of the target container at that time.
    pub injected: BTreeMap<String, String>,
    /// The sidecars that were asked.
    pub asked: BTreeSet<String>,
    /// Since when getting in, or back, is tried.
    pub entering_since: Option<Timestamp>,
    /// Since when the request is out.
    pub asked_since: Option<Timestamp>,
    /// Since when the session is to be cancelled.
    pub cancelled_since: Option<Timestamp>,
}

/// [`AttachedAs`] with an order: the preferred one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// With the capability.
    Ptrace,
    /// As the target's user.
    SameUser,
}

impl From<Way> for AttachedAs {
    fn from(way: Way) -> Self {
        match way {
            Way::Ptrace => Self::Ptrace,
            Way::SameUser => Self::SameUser,
        }
    }
}

impl From<AttachedAs> for Way {
    fn from(attach: AttachedAs) -> Self {
        match attach {
            AttachedAs::Ptrace => Self::Ptrace,
            AttachedAs::SameUser => Self::SameUser,
        }
    }
}

impl Way {
    /// As it stands in the resource.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ptrace => "Ptrace",
            Self::SameUser => "SameUser",
        }
    }
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Write the end.
    End(Box<End>),
    /// Look again when the pod changes, or at `until`.
    AwaitPod {
        /// When waiting ends.
        until: Timestamp,
    },
    /// Add the container, after a dry-run.
    Inject {
        /// How it gets in.
        way: Way,
        /// The container.
        container: Box<EphemeralContainer>,
    },
    /// Open a stream to a sidecar.
    Open {
        /// The ephemeral container.
        sidecar: String,
        /// How it got in.
        way: Way,
        /// When trying ends.
        until: Timestamp,
    },
    /// Write the intent.
    Record(Intent),
    /// Send the request, or attach to it, and wait for its end.
    Ask {
        /// The request.
        request: Box<Request>,
        /// When waiting ends.
        until: Timestamp,
        /// Whether it is to be ended early.
        cancel: bool,
    },
    /// A way was refused by the kernel: forget the answer and go the other way.
    FallBack {
        /// The way that was refused.
        way: Way,
        /// By what.
        refusal: Refusal,
    },
}

/// How a session ends.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// Why, where no outcome says it.
    pub reason: Reason,
    /// The reason in a sentence.
    pub message: String,
    /// What the agent answered.
    pub outcome: Option<Outcome>,
    /// Whether code may have been armed in the target and nobody can tell.
    pub maybe_armed: bool,
}

fn end(reason: Reason, message: impl Into<String>) -> Step {
    Step::End(Box::new(End {
        reason,
        message: message.into(),
        outcome: None,
        maybe_armed: false,
    }))
}

fn refuse(refusal: Refusal) -> Step {
    end(refusal.reason, refusal.message)
}

/// `time` later by `limit`.
pub fn after(time: Timestamp, limit: Duration) -> Timestamp {
    SignedDuration::try_from(limit)
        .ok()
        .and_then(|limit| time.checked_add(limit).ok())
        .unwrap_or(Timestamp::MAX)
}

/// When the session was taken up.
pub fn started(session: &DebugSession, now: Timestamp) -> Timestamp {
    session
        .status
        .as_ref()
        .and_then(|status| status.start_time.as_ref())
        .map_or(now, |time| time.0)
}

/// Whether the session has ended.
pub fn has_ended(session: &DebugSession) -> bool {
    session
        .status
        .as_ref()
        .is_some_and(|status| conditions::has_ended(&status.conditions))
}

/// The action in the agent's words. `None` for a session whose spec names no or several actions, which the schema
/// does not let in.
pub fn action(spec: &DebugSessionSpec, script: Option<&str>) -> Option<Action> {
    Some(match spec.action()? {
        SessionAction::Processes(_) => Action::Processes,
        SessionAction::AsyncioSnapshot(snapshot) => Action::Tasks {
            format: match snapshot.format {
                AsyncioFormat::Tree => TaskFormat::Tree,
                AsyncioFormat::Table => TaskFormat::Table,
            },
        },
        SessionAction::Stacks(stacks) => Action::Stacks {
            locals: match stacks.locals {
                LocalsMode::None => Locals::None,
                LocalsMode::Types => Locals::Types,
                LocalsMode::Values => Locals::Values,
            },
        },
        SessionAction::RemoteExec(exec) => Action::Exec(ExecRequest {
            script: script.unwrap_or_default().to_owned(),
            thread: match exec.thread {
                ThreadSelector::Auto => ThreadChoice::Auto,
                ThreadSelector::Main => ThreadChoice::Main,
                ThreadSelector::Any => ThreadChoice::Any,
                ThreadSelector::Tid(tid) => ThreadChoice::Tid(u64::from(tid.unsigned_abs())),
            },
            wake: match exec.wake {
                WakePolicy::Auto => sidewinder_model::WakePolicy::Auto,
                WakePolicy::Interrupt => sidewinder_model::WakePolicy::Interrupt,
                WakePolicy::Never => sidewinder_model::WakePolicy::Never,
            },
            interpreter: exec.interpreter,
            start_milliseconds: milliseconds(exec.start_seconds),
        }),
    })
}

fn milliseconds(seconds: i32) -> u64 {
    u64::from(seconds.unsigned_abs()) * 1000
}

/// How long the action may take.
pub fn timeout(spec: &DebugSessionSpec) -> Duration {
    Duration::from_millis(milliseconds(spec.timeout_seconds))
}

/// Decides the next step of a session that has not ended.
pub fn plan(
    session: &DebugSession,
    observed: &Observed,
    sidecar: &SidecarImage,
    now: Timestamp,
) -> Step {
    let spec = &session.spec;
    let Some(wanted) = action(spec, None) else {
        return end(
            Reason::InternalError,
            "the session names no action that this version knows",
        );
    };
    let once = wanted.at_most_once();
    if let Some(answer) = &observed.answer {
        return conclude(spec, observed, answer, once);
    }
    let out = observed.intent.is_some() || observed.asked_since.is_some();
    if observed.cancelled_since.is_some() && !out {
        return end(Reason::Cancelled, "cancelled before it was begun");
    }
    if observed.cancelled_since.is_some() && !once && observed.link.is_none() {
        return end(Reason::Cancelled, "cancelled; there was no answer yet");
    }
    let script = match &observed.script {
        Some(Err(refusal)) => {
            return Step::End(Box::new(End {
                reason: refusal.reason,
                message: refusal.message.clone(),
                outcome: None,
                maybe_armed: out,
            }));
        }
        Some(Ok(script)) => Some(script.as_str()),
        None => None,
    };
    let name = &spec.target.pod_name;
    let Some(pod) = &observed.pod else {
        return if out {
            lost_pod(observed, name, once, "was deleted")
        } else {
            end(
                Reason::PodNotFound,
                format!(
                    "there is no pod {name} in namespace {}",
                    session.namespace().unwrap_or_default()
                ),
            )
        };
    };
    if let Some(intent) = observed.intent.as_ref().filter(|_| once) {
        return resume(session, observed, pod, intent, script, now);
    }
    let target = match enterable(session, pod, now) {
        Ok(target) => target,
        Err(step) => return *step,
    };
    let ask = |link: &Link| {
        if once {
            Step::Record(Intent {
                pod_uid: pod.uid().unwrap_or_default(),
                container: target.name.to_owned(),
                container_id: target.id.to_owned(),
                sidecar: link.sidecar.clone(),
                attach: link.attach,
                instance: link.instance.clone(),
            })
        } else {
            ask(session, observed, script, target.id, None, now)
        }
    };
    match &observed.link {
        Some(link) => ask(link),
        None => enter(spec, observed, pod, &target, sidecar, now),
    }
}

/// A target container that runs.
struct Running<'a> {
    name: &'a str,
    id: &'a str,
}

/// Whether the pod can be entered now, later, or never.
fn enterable<'a>(
    session: &DebugSession,
    pod: &'a Pod,
    now: Timestamp,
) -> Result<Running<'a>, Box<Step>> {
    let spec = &session.spec;
    let name = pod.name_any();
    let refuse = |refusal| Box::new(self::refuse(refusal));
    let not_running =
        |what: String| Box::new(end(Reason::PodNotRunning, format!("pod {name} {what}")));
    if pod.metadata.deletion_timestamp.is_some() {
        return Err(not_running("is being deleted".into()));
    }
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or("Pending");
    if let "Succeeded" | "Failed" = phase {
        return Err(not_running(format!("has ended (phase {phase})")));
    }
    inject::check_kind(pod).map_err(refuse)?;
    let container =
        inject::choose_container(pod, spec.target.container.as_deref()).map_err(refuse)?;
    let until = after(started(session, now), POD_LIMIT);
    let wait = |what: String| {
        if now < until {
            Box::new(Step::AwaitPod { until })
        } else {
            not_running(format!("{what}; waited {} s", POD_LIMIT.as_secs()))
        }
    };
    let status = inject::container_status(pod, container);
    let state = status.and_then(|status| status.state.as_ref());
    if let Some(ended) = state.and_then(|state| state.terminated.as_ref()) {
        let what = format!(
            "has no running container {container}: it ended with exit code {} ({})",
            ended.exit_code,
            ended.reason.as_deref().unwrap_or("no reason given")
        );
        return Err(if restarts(pod, container, ended.exit_code) {
            wait(what)
        } else {
            not_running(what)
        });
    }
    if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
        return Err(wait(format!(
            "has no running container {container}: it waits ({}{})",
            waiting.reason.as_deref().unwrap_or("no reason given"),
            waiting
                .message
                .as_deref()
                .map(|message| format!(": {message}"))
                .unwrap_or_default()
        )));
    }
    let id = status
        .and_then(|status| status.container_id.as_deref())
        .filter(|_| state.is_some_and(|state| state.running.is_some()));
    match id {
        Some(id) => Ok(Running {
            name: container,
            id,
        }),
        None => Err(wait(format!("is {}", unscheduled(pod, phase)))),
    }
}

/// Why a pod is still pending, in the scheduler's words where it has some.
fn unscheduled(pod: &Pod, phase: &str) -> String {
    let words = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .and_then(|conditions| {
            conditions
                .iter()
                .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
        })
        .and_then(|condition| condition.message.as_deref());
    match words {
        Some(words) => format!("{phase}: {words}"),
        None => phase.to_owned(),
    }
}

/// Whether nothing of the pod is started any more: it is being deleted, was evicted, or has ended.
fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether the kubelet will start the container again.
fn restarts(pod: &Pod, container: &str, code: i32) -> bool {
    let Some(spec) = &pod.spec else { return false };
    if is_over(pod) {
        return false;
    }
    let init = spec
        .init_containers
        .iter()
        .flatten()
        .any(|init| init.name == container);
    init || match spec.restart_policy.as_deref() {
        Some("Never") => false,
        Some("OnFailure") => code != 0,
        _ => true,
    }
}

/// The way to go: the first that the session allows and that was not refused.
fn way(spec: &DebugSessionSpec, refused: &BTreeMap<Way, Refusal>) -> Option<Way> {
    let allowed: &[Way] = match spec.attach {
        AttachMode::Auto => &[Way::Ptrace, Way::SameUser],
        AttachMode::Ptrace => &[Way::Ptrace],
        AttachMode::SameUser => &[Way::SameUser],
    };
    allowed
        .iter()
        .copied()
        .find(|way| !refused.contains_key(way))
}

/// Every way was refused: the last one's reason, and what each was refused by.
fn refused_everywhere(refused: &BTreeMap<Way, Refusal>) -> Step {
    // Where policy refused both ways, the first is the one that says most; the kernel's word counts more than policy's.
    let reason = refused
        .values()
        .rev()
        .map(|refusal| refusal.reason)
        .find(|reason| matches!(reason, Reason::PermissionDenied | Reason::YamaForbidden))
        .or_else(|| refused.values().next_back().map(|refusal| refusal.reason))
        .unwrap_or(Reason::InternalError);
    end(reason, refusals(refused))
}

/// What each way was refused by; of the only one its reason stands beside it.
fn refusals(refused: &BTreeMap<Way, Refusal>) -> String {
    match refused.len() {
        1 => refused
            .values()
            .map(|refusal| refusal.message.clone())
            .collect(),
        _ => refused_ways(refused),
    }
}

/// Which ways were refused, and by what.
pub fn refused_ways(refused: &BTreeMap<Way, Refusal>) -> String {
    refused
        .iter()
        .map(|(way, refusal)| {
            format!(
                "refused as {}: {}: {}",
                way.name(),
                refusal.reason,
                refusal.message
            )
        })
        .collect::<Vec<_>>()
        .join("; ")
}

fn enter(
    spec: &DebugSessionSpec,
    observed: &Observed,
    pod: &Pod,
    target: &Running<'_>,
    sidecar: &SidecarImage,
    now: Timestamp,
) -> Step {
    let Running {
        name: target,
        id: target_id,
    } = *target;
    let since = observed.entering_since.unwrap_or(now);
    let until = after(since, ENTER_LIMIT);
    let Some(way) = way(spec, &observed.refused) else {
        return refused_everywhere(&observed.refused);
    };
    let residents = inject::residents(pod, target, sidecar);
    let alive = residents
        .iter()
        .rev()
        .filter(|resident| resident.attach == Some(way.into()))
        .find(|resident| !matches!(resident.state, ResidentState::Ended { .. }));
    if let Some(resident) = alive {
        return open(observed, resident, way, until, now);
    }
    let words = |resident: &Resident| match &resident.state {
        ResidentState::Ended { code, message } if message.is_empty() => {
            format!("sidecar {} ended with exit code {code}", resident.name)
        }
        ResidentState::Ended { code, message } => format!(
            "sidecar {} ended with exit code {code} ({message})",
            resident.name
        ),
        _ => format!("sidecar {} went away", resident.name),
    };
    // What this session added and what ended beside a target that lives would end again. A target that restarted
    // takes every process of its PID namespace along; a sidecar that was idle for long ends with code 0.
    let failed = residents.iter().find(|resident| {
        matches!(resident.state, ResidentState::Ended { code, .. } if code != 0)
            && !observed.asked.contains(&resident.name)
            && observed
                .injected
                .get(&resident.name)
                .is_some_and(|id| id == target_id)
    });
    if let Some(failed) = failed {
        return end(
            Reason::SidecarFailed,
            format!("{}{}", words(failed), words_of(observed)),
        );
    }
    if observed.asked.len() >= MAX_ASKED {
        let last = residents
            .iter()
            .rev()
            .find(|resident| observed.asked.contains(&resident.name));
        return end(
            Reason::SidecarLost,
            format!(
                "{} while it worked, as did the one before",
                last.map_or_else(|| "the sidecar went away".to_owned(), words)
            ),
        );
    }
    if observed.injected.len() >= MAX_INJECTIONS || now >= until {
        return end(
            Reason::SidecarFailed,
            format!(
                "no sidecar stayed: this session added {}{}",
                observed.injected.len(),
                words_of(observed)
            ),
        );
    }
    match inject::next_name(pod, target)
        .and_then(|name| inject::ephemeral_container(pod, target, way.into(), sidecar, &name))
    {
        Ok(container) => Step::Inject {
            way,
            container: Box::new(container),
        },
        Err(refusal) if refusal.reason == Reason::PermissionDenied => {
            Step::FallBack { way, refusal }
        }
        Err(refusal) => refuse(refusal),
    }
}

/// The last thing that was heard about the stream.
fn words_of(observed: &Observed) -> String {
    observed
        .link_error
        .as_ref()
        .map(|error| format!(": {error}"))
        .unwrap_or_default()
}

fn open(
    observed: &Observed,
    resident: &Resident,
    way: Way,
    until: Timestamp,
    now: Timestamp,
) -> Step {
    if let ResidentState::Stuck { reason, message } = &resident.state
        && inject::is_pull_failure(reason)
    {
        return end(
            Reason::ImagePullFailed,
            format!(
                "the sidecar's image cannot be pulled: {reason}: {message}; make the image available to the node, or set another one"
            ),
        );
    }
    if let Some(step) = unusable(observed.link_error.as_ref()) {
        return step;
    }
    if now < until {
        return Step::Open {
            sidecar: resident.name.clone(),
            way,
            until,
        };
    }
    let limit = ENTER_LIMIT.as_secs();
    match (&resident.state, &observed.link_error) {
        (ResidentState::Stuck { reason, message }, _) => end(
            Reason::SidecarFailed,
            format!(
                "sidecar {} did not start within {limit} s: {reason}: {message}",
                resident.name
            ),
        ),
        (_, Some(error @ RelayError::NodeUnreachable(_))) => {
            end(Reason::NodeLost, format!("{error}; tried for {limit} s"))
        }
        _ => end(
            Reason::SidecarFailed,
            format!(
                "sidecar {} did not answer within {limit} s{}",
                resident.name,
                words_of(observed)
            ),
        ),
    }
}

/// Errors of the stream that trying again does not mend.
fn unusable(error: Option<&RelayError>) -> Option<Step> {
    match error? {
        error @ RelayError::Forbidden(_) => {
            Some(end(Reason::AdmissionForbidden, error.to_string()))
        }
        error @ RelayError::Version { .. } => Some(end(Reason::SidecarVersion, error.to_string())),
        _ => None,
    }
}

fn ask(
    session: &DebugSession,
    observed: &Observed,
    script: Option<&str>,
    container_id: &str,
    instance: Option<&str>,
    now: Timestamp,
) -> Step {
    let spec = &session.spec;
    let Some(mut action) = action(spec, script) else {
        return end(Reason::InternalError, "the session names no action");
    };
    let cancel = observed.cancelled_since.is_some();
    let mut limit = timeout(spec);
    let until = if let Some(cancelled) = observed.cancelled_since {
        after(cancelled, CANCEL_LIMIT)
    } else {
        after(
            observed.asked_since.unwrap_or(now),
            limit.saturating_add(ANSWER_GRACE),
        )
    };
    if cancel {
        // Asking is how an outcome is fetched; a request that never arrived must not begin now.
        limit = Duration::ZERO;
        if let Action::Exec(exec) = &mut action {
            exec.start_milliseconds = 0;
        }
    }
    // The stream may have been down when the action's own time ran out; the agent keeps its outcome.
    let back = observed
        .entering_since
        .map_or(until, |since| after(since, ENTER_LIMIT));
    Step::Ask {
        request: Box::new(Request {
            id: session.uid().unwrap_or_default(),
            instance: instance.map(str::to_owned),
            action,
            process: spec.target.process.as_ref().and_then(|process| {
                match (process.pid, &process.command) {
                    (Some(pid), _) => Some(ProcessSelector::Pid(pid)),
                    (None, Some(pattern)) => Some(ProcessSelector::Command {
                        pattern: pattern.clone(),
                        mode: match process.mode.unwrap_or_default() {
                            SelectMode::One => ProcessMode::One,
                            SelectMode::All => ProcessMode::All,
                        },
                    }),
                    (None, None) => None,
                }
            }),
            container_id: Some(bare_id(container_id).to_owned()),
            timeout_milliseconds: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        }),
        until: if cancel { until } else { until.max(back) },
        cancel,
    }
}

/// The runtime's id without the runtime's name.
fn bare_id(container_id: &str) -> &str {
    container_id
        .split_once("://")
        .map_or(container_id, |(_, id)| id)
}

/// The action was, or may have been, given to an agent and must not begin anywhere else.
#[expect(clippy::too_many_lines, reason = "one case after the other")]
fn resume(
    session: &DebugSession,
    observed: &Observed,
    pod: &Pod,
    intent: &Intent,
    script: Option<&str>,
    now: Timestamp,
) -> Step {
    let name = pod.name_any();
    let lost = |reason, message: String, maybe_armed| {
        Step::End(Box::new(End {
            reason,
            message,
            outcome: None,
            maybe_armed,
        }))
    };
    if pod.uid().as_deref() != Some(intent.pod_uid.as_str()) {
        return lost_pod(observed, &name, true, "was replaced by another of its name");
    }
    let status = inject::container_status(pod, &intent.container);
    let state = status.and_then(|status| status.state.as_ref());
    let id = status.and_then(|status| status.container_id.as_deref());
    let restarted = id.is_some_and(|id| id != intent.container_id);
    let ended = state.and_then(|state| state.terminated.as_ref());
    let waiting = state.is_some_and(|state| state.waiting.is_some()) && !is_over(pod);
    let what = format!("container {} of pod {name}", intent.container);
    if restarted
        || waiting
        || ended.is_some_and(|ended| restarts(pod, &intent.container, ended.exit_code))
    {
        return lost(
            Reason::TargetRestarted,
            format!(
                "{what} restarted while the script was asked for; it is not run again, since it may have run already"
            ),
            false,
        );
    }
    if let Some(ended) = ended {
        return lost(
            Reason::TargetExited,
            format!(
                "{what} ended with exit code {} while the script was asked for{}",
                ended.exit_code,
                if pod.metadata.deletion_timestamp.is_some() {
                    "; the pod is being deleted"
                } else {
                    ""
                }
            ),
            false,
        );
    }
    let gone = |how: String| {
        // A pod that is deleted takes the sidecar along, often before its own containers.
        let (reason, cause) = if pod.metadata.deletion_timestamp.is_some() {
            (
                Reason::TargetExited,
                format!("pod {name} is being deleted: "),
            )
        } else {
            (Reason::SidecarLost, String::new())
        };
        lost(
            reason,
            format!(
                "{cause}sidecar {} {how} after the script was given to it; it is not run again, since it may have run already",
                intent.sidecar
            ),
            true,
        )
    };
    match inject::resident_state(pod, &intent.sidecar) {
        ResidentState::Ended { code, message } => {
            return gone(format!(
                "ended (exit code {code}{}{message})",
                if message.is_empty() { "" } else { ", " }
            ));
        }
        ResidentState::Stuck { reason, message } => {
            return gone(format!("does not run ({reason}: {message})"));
        }
        ResidentState::Running | ResidentState::Starting => {}
    }
    if let Some(link) = &observed.link {
        if link.instance != intent.instance {
            return gone("was started again".into());
        }
        return ask(
            session,
            observed,
            script,
            &intent.container_id,
            Some(&intent.instance),
            now,
        );
    }
    if let Some(Step::End(mut end)) = unusable(observed.link_error.as_ref()) {
        end.maybe_armed = true;
        return Step::End(end);
    }
    let since = observed.entering_since.unwrap_or(now);
    let mut until = after(since, ENTER_LIMIT);
    if let Some(cancelled) = observed.cancelled_since {
        until = until.min(after(cancelled, CANCEL_LIMIT));
    } else if let Some(asked) = observed.asked_since {
        until = until.max(after(
            asked,
            timeout(&session.spec).saturating_add(ANSWER_GRACE),
        ));
    }
    if now < until {
        return Step::Open {
            sidecar: intent.sidecar.clone(),
            way: intent.attach.into(),
            until,
        };
    }
    if observed.cancelled_since.is_some() {
        return lost(
            Reason::Cancelled,
            format!(
                "cancelled; the sidecar could not be reached to confirm it{}",
                words_of(observed)
            ),
            true,
        );
    }
    match &observed.link_error {
        Some(error @ RelayError::NodeUnreachable(_)) => {
            lost(Reason::NodeLost, error.to_string(), true)
        }
        _ => gone(format!("does not answer{}", words_of(observed))),
    }
}

/// The pod went away while something was asked of it.
fn lost_pod(observed: &Observed, name: &str, once: bool, how: &str) -> Step {
    let cancelled = observed.cancelled_since.is_some();
    end(
        if cancelled {
            Reason::Cancelled
        } else {
            Reason::TargetExited
        },
        format!(
            "pod {name} {how} while {} asked for",
            if once {
                "the script was"
            } else {
                "the answer was"
            }
        ),
    )
}

/// What an answer means.
fn conclude(spec: &DebugSessionSpec, observed: &Observed, answer: &Answer, once: bool) -> Step {
    let link_way = observed
        .link
        .as_ref()
        .map(|link| Way::from(link.attach))
        .or_else(|| {
            observed
                .intent
                .as_ref()
                .map(|intent| Way::from(intent.attach))
        });
    let fall_back = |refusal: Refusal| {
        let way = link_way?;
        let denied = matches!(
            refusal.reason,
            Reason::PermissionDenied | Reason::YamaForbidden
        );
        let mut refused = observed.refused.clone();
        refused.insert(way, refusal.clone());
        let other =
            denied && observed.cancelled_since.is_none() && self::way(spec, &refused).is_some();
        other.then_some(Step::FallBack { way, refusal })
    };
    match answer {
        Answer::Finished(outcome) => {
            // Nothing was begun where every process refused, so the other way may be tried.
            let untouched = |target: &sidewinder_model::TargetOutcome| {
                matches!(
                    target.reason,
                    Reason::PermissionDenied | Reason::YamaForbidden
                ) && target.disarmed.is_none()
            };
            if let Some(first) = outcome.targets.first()
                && outcome.targets.iter().all(untouched)
                && let Some(step) = fall_back(Refusal::new(first.reason, first.message.clone()))
            {
                return step;
            }
            Step::End(Box::new(End {
                reason: Reason::InternalError,
                message: "the agent answered for no process".into(),
                outcome: Some(outcome.as_ref().clone()),
                maybe_armed: false,
            }))
        }
        Answer::Refused(refusal) => {
            if let Some(step) = fall_back(refusal.clone()) {
                return step;
            }
            refuse(refusal.clone())
        }
        Answer::Silent => Step::End(Box::new(if observed.cancelled_since.is_some() {
            End {
                reason: Reason::Cancelled,
                message: format!(
                    "cancelled; the sidecar did not confirm it within {} s",
                    CANCEL_LIMIT.as_secs()
                ),
                outcome: None,
                maybe_armed: once,
            }
        } else {
            End {
                reason: Reason::Timeout,
                message: format!(
                    "the sidecar did not answer within {} s (timeoutSeconds) and {} s more",
                    spec.timeout_seconds,
                    ANSWER_GRACE.as_secs()
                ),
                outcome: None,
                maybe_armed: once,
            }
        })),
    }
}

#[cfg(test)]
mod tests;
