//! What to do next for one session: a pure function of the session, of what was observed, and of the time.
//!
//! Here stand the words in which that is said (what was observed, the steps, the limits) and the order of the
//! questions: has it been answered, is it cancelled, is there a script, is there a pod, was the script given away
//! already, can the target be entered. Each answer is decided in a file of its own.

mod conclude;
mod enter;
mod reach;
mod request;
mod resume;
mod target;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{EphemeralContainer, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use sidewinder_crds::{AttachedAs, DebugSession, Phase, TargetStatus, conditions};
use sidewinder_model::{Reason, Request};

use self::conclude::conclude;
use self::enter::enter;
pub use self::reach::{Place, out_of_reach};
use self::request::ask;
pub use self::request::{action, fetch, timeout};
use self::resume::{lost_pod, resume};
use self::target::enterable;
pub use self::way::{Way, refused_ways};
use crate::inject::{Refusal, SidecarImage};
use crate::relay::RelayError;
use crate::relay::budget::Delivered;

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
    Finished(Delivered),
    /// The agent did not begin it.
    Refused(Refusal),
    /// The agent finished it, and its answer can never be received.
    Unreadable(Refusal),
    /// The agent did not answer in time, or did not confirm a cancellation.
    Silent,
}

/// Everything a decision needs: what was read, and what this run of the operator went through with the session.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The pod; `None` when there is none.
    pub pod: Option<Pod>,
    /// The UID of the pod that a selector meant when the session was taken up: no other pod of its name counts.
    pub pinned: Option<String>,
    /// The script of a `remoteExec`, or why there is none.
    pub script: Option<Result<Arc<str>, Refusal>>,
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
    /// Why a request that its agent does not know must not begin any more.
    pub barred: Option<Refusal>,
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

/// The next thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Write the end.
    End(Box<End>),
    /// Look again when the pod changes, or at `until`.
    AwaitPod {
        /// When waiting ends.
        until: Timestamp,
        /// What is waited for to change.
        what: String,
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
    pub outcome: Option<Delivered>,
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
        Some(Err(refusal)) if !out => return refuse(refusal.clone()),
        Some(Ok(script)) => Some(script.as_ref()),
        // What was given away is asked for by its id, whatever became of the ConfigMap since.
        _ => None,
    };
    let name = spec.pod_name();
    let ours = |pod: &&Pod| observed.pinned.is_none() || observed.pinned == pod.uid();
    let Some(pod) = observed.pod.as_ref().filter(ours) else {
        return if observed.pinned.is_some() && !out {
            end(
                Reason::PodNotFound,
                format!(
                    "pod {name} was deleted, or replaced by another of its name, after it was chosen"
                ),
            )
        } else if out {
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

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod tests;
