//! What came of a session, as its status: caps, what is kept from the status, and what goes to Secrets. Pure.

mod choose;
pub mod clip;
mod entry;
mod fit;
mod fleet;
pub mod spill;

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use sidewinder_crds::conditions::{self, Observation, whole_seconds};
use sidewinder_crds::{
    DebugSession, DebugSessionStatus, DisarmState, Phase, SessionAction, TargetStatus,
};
use sidewinder_model::{MAX_SUMMARY_CHARS, Outcome, Reason, TargetOutcome};

pub use self::choose::choose;
use self::clip::one_line;
use self::entry::entry;
pub use self::fit::{fit, fit_stored};
use super::plan::{End, Intent};
use crate::inject::Refusal;
use crate::relay::budget::Delivered;

/// The largest `text`, `stdout`, `stderr` or `data` in a status, in bytes.
pub const FIELD_BYTES: usize = 16 * 1024;
/// The largest status, in bytes of JSON.
pub const STATUS_BYTES: usize = 256 * 1024;
/// The most entries of `targets`.
pub const MAX_TARGETS: usize = 256;
/// The longest `message` and `command` of a target, in characters.
const MESSAGE_CHARS: usize = 1024;

/// Where script output and values of local variables may appear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sensitive {
    /// Only in Secrets.
    #[default]
    Secret,
    /// Also in the status.
    Status,
}

/// One process's entry, and its whole outcome for as long as that may have to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What stands in the status.
    pub status: TargetStatus,
    /// The whole outcome; gone when it has been stored, and for what was read from a status.
    pub outcome: Option<Whole>,
    /// Whether something was cut or kept from `status` that is not stored yet.
    pub to_store: bool,
    /// Why the outcome could not be stored.
    pub not_stored: Option<String>,
    /// Whether there is no room for it in the status, where it is counted.
    pub left_out: bool,
    /// What is said in front of its message about others of its pod that are left out.
    pub others: Option<String>,
}

/// The whole outcome of one process, for as long as it may have to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Whole {
    /// What the agent answered.
    pub outcome: Delivered,
    /// Which of its answers it is.
    pub place: usize,
}

impl Entry {
    /// An entry without an outcome: what stands in the status is all there is.
    pub fn written(status: TargetStatus) -> Self {
        Self {
            status,
            outcome: None,
            to_store: false,
            not_stored: None,
            left_out: false,
            others: None,
        }
    }

    /// What stands in the status; nothing where it is left out.
    pub fn shown(&self) -> Option<TargetStatus> {
        if self.left_out {
            return None;
        }
        let mut shown = self.status.clone();
        if let Some(others) = &self.others {
            let whole = match &shown.message {
                Some(said) => format!("{others}; {said}"),
                None => others.clone(),
            };
            shown.message = Some(one_line(&whole, MESSAGE_CHARS));
        }
        Some(shown)
    }
}

impl Whole {
    /// The answer at `place`. One that stands in the status as it is does not hold the memory that a large message took,
    /// which is given back once the others of the message are stored.
    fn new(outcome: &Delivered, place: usize, target: &TargetOutcome, cut: bool) -> Self {
        if cut || !outcome.is_large() {
            return Self {
                outcome: outcome.clone(),
                place,
            };
        }
        Self {
            outcome: Delivered::from(Outcome {
                targets: vec![target.clone()],
                ..Outcome::default()
            }),
            place: 0,
        }
    }

    fn reason(&self) -> Option<Reason> {
        self.outcome
            .targets
            .get(self.place)
            .map(|target| target.reason)
    }
}

/// How far the work on a pod got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// No agent was there.
    Nothing,
    /// An agent was there.
    Agent,
    /// The agent was, or may have been, asked.
    Request,
    /// The agent answered.
    Answer,
}

impl Reached {
    fn of(answered: bool, agent: bool) -> Self {
        match (answered, agent) {
            (true, _) => Self::Answer,
            (false, true) => Self::Agent,
            (false, false) => Self::Nothing,
        }
    }
}

/// What the work on one pod came to.
#[derive(Clone, Debug, PartialEq)]
pub struct PodEnd {
    /// One entry for each process, by pid; none where nothing is known of the pod.
    pub entries: Vec<Entry>,
    /// Why it ended, of all its processes.
    pub reason: Reason,
    /// The reason in a sentence.
    pub message: String,
    /// Whether the action was carried out, in one process at least.
    pub complete: bool,
    /// How far the work got.
    pub reached: Reached,
    /// What else is said about how the sidecar got in.
    pub notes: String,
}

impl PodEnd {
    /// The end of one pod's part in `session`.
    ///
    /// `known` is the entry that holds what is known of pod, container and sidecar; `notes` is said in the `Attached`
    /// condition, for example which way was refused first.
    pub fn new(
        session: &DebugSession,
        end: End,
        known: &TargetStatus,
        notes: String,
        sensitive: Sensitive,
    ) -> Self {
        let runs_code = session.spec.action().is_some_and(SessionAction::runs_code);
        let delivered = end.outcome.unwrap_or_else(|| Outcome::default().into());
        let answered = !delivered.targets.is_empty();
        let mut entries = Vec::new();
        for (place, outcome) in delivered.targets.iter().enumerate() {
            let (status, cut) = entry(known, outcome, runs_code, sensitive);
            entries.push(Entry {
                outcome: Some(Whole::new(&delivered, place, outcome, cut)),
                to_store: cut,
                ..Entry::written(status)
            });
        }
        let reasons: Vec<_> = entries
            .iter()
            .filter_map(|entry| Some((entry.status.pid, entry.outcome.as_ref()?.reason()?)))
            .collect();
        let first = entries
            .first()
            .and_then(|entry| entry.status.message.clone());
        let (reason, message) = match of_processes(&reasons, first.as_deref()) {
            Some(verdict) => verdict,
            None => (end.reason, one_line(&end.message, MESSAGE_CHARS)),
        };
        // All failed, for different reasons, is `PartiallyFailed` too, and not complete.
        let complete = if answered {
            reasons.iter().any(|(_, reason)| reason.is_complete())
        } else {
            reason.is_complete()
        };
        if !answered && known.pod_uid.is_some() {
            entries.push(Entry::written(TargetStatus {
                phase: Some(phase(reason, complete)),
                reason: Some(reason.to_string()),
                message: Some(message.clone()),
                summary: Some(one_line(&message, MAX_SUMMARY_CHARS)),
                disarmed: runs_code.then_some(if end.maybe_armed {
                    DisarmState::StillArmed
                } else if went_with_its_target(reason, known) {
                    DisarmState::Disarmed
                } else {
                    DisarmState::NotArmed
                }),
                ..known.clone()
            }));
        }
        Self {
            entries,
            reason,
            message,
            complete,
            reached: Reached::of(answered, known.agent.is_some()),
            notes,
        }
    }

    /// What stands in the status about a pod whose part has ended; `None` while it goes on.
    pub fn read(targets: &[TargetStatus]) -> Option<Self> {
        let mut reasons = Vec::new();
        for target in targets {
            match target.phase {
                Some(Phase::Succeeded | Phase::Failed | Phase::Cancelled) => {}
                _ => return None,
            }
            // The phase decides that it has ended, also where another version wrote a reason that this one does not know.
            let reason = target.reason.as_deref().and_then(|it| it.parse().ok());
            reasons.push((target.pid, reason.unwrap_or(Reason::InternalError)));
        }
        let first = targets.first()?.message.clone();
        let (reason, message) = of_processes(&reasons, first.as_deref())?;
        let answered = targets
            .iter()
            .any(|target| target.duration_milliseconds.is_some());
        Some(Self {
            reason,
            message,
            complete: reasons.iter().any(|(_, reason)| reason.is_complete()),
            reached: Reached::of(answered, targets.iter().any(|it| it.agent.is_some())),
            notes: String::new(),
            entries: targets
                .iter()
                .map(|target| Entry {
                    not_stored: (!target.clipped.is_empty() && target.result.is_none())
                        .then(|| "an operator that is gone could not store it".to_owned()),
                    ..Entry::written(target.clone())
                })
                .collect(),
        })
    }

    /// The ends of a session whose work is given up: those that stand in its status, and for every other pod the end
    /// that `words` explain.
    /// `withdrawn` says what is known of what was given to a pod's agent: words, and the answer where there is one.
    pub fn give_up(
        session: &DebugSession,
        words: &str,
        withdrawn: impl Fn(&TargetStatus) -> Option<(String, Option<Delivered>)>,
        sensitive: Sensitive,
    ) -> Vec<Self> {
        let targets = session
            .status
            .as_ref()
            .map(|status| status.targets.as_slice())
            .unwrap_or_default();
        let mut ends: Vec<_> = by_pod(targets)
            .into_iter()
            .map(|entries| {
                Self::read(&entries).unwrap_or_else(|| {
                    let known = entries.into_iter().next().unwrap_or_default();
                    let withdrawn = withdrawn(&known);
                    let why = Refusal::new(Reason::InternalError, words);
                    Self::gave_up(session, &known, why, withdrawn, sensitive)
                })
            })
            .collect();
        if ends.is_empty() {
            let nothing = TargetStatus::default();
            let why = Refusal::new(Reason::InternalError, words);
            ends.push(Self::gave_up(session, &nothing, why, None, sensitive));
        }
        ends
    }

    /// The end of a pod whose work is given up for the reason `why`. `withdrawn` is what is known of what was given to its
    /// agent.
    pub fn gave_up(
        session: &DebugSession,
        known: &TargetStatus,
        why: Refusal,
        withdrawn: Option<(String, Option<Delivered>)>,
        sensitive: Sensitive,
    ) -> Self {
        let Refusal {
            reason,
            message: said,
        } = why;
        let given = Intent::read(std::slice::from_ref(known)).is_some();
        let (words, outcome) = withdrawn.unwrap_or_default();
        let message = if words.is_empty() {
            said
        } else {
            format!("{said}; {words}")
        };
        let answered = outcome
            .as_ref()
            .is_some_and(|outcome| !outcome.targets.is_empty());
        let end = End {
            reason,
            message: message.clone(),
            maybe_armed: given && !answered,
            outcome,
        };
        let mut end = Self::new(session, end, known, String::new(), sensitive);
        if given {
            end.reached = end.reached.max(Reached::Request);
        }
        if answered {
            if !session.spec.cancel {
                end.was_not_cancelled(reason);
            }
            end.explain(&format!("the operator gave up: {message}"));
        }
        end
    }

    /// What the operator had stopped ended for the operator's own reason: nobody cancelled it.
    fn was_not_cancelled(&mut self, why: Reason) {
        let cancelled = Reason::Cancelled.to_string();
        for entry in &mut self.entries {
            if entry.status.reason.as_ref() == Some(&cancelled) {
                entry.status.reason = Some(why.to_string());
                entry.status.phase = Some(phase(why, why.is_complete()));
            }
        }
        let reasons: Vec<_> = self
            .entries
            .iter()
            .filter_map(|entry| {
                let reason = entry.status.reason.as_ref()?.parse().ok()?;
                Some((entry.status.pid, reason))
            })
            .collect();
        let first = self
            .entries
            .first()
            .and_then(|entry| entry.status.message.clone());
        if let Some((reason, message)) = of_processes(&reasons, first.as_deref()) {
            self.reason = reason;
            self.message = message;
        }
    }

    /// Says something else about the pod, beside what each of its processes answered.
    pub fn note(&mut self, words: &str) {
        for entry in &mut self.entries {
            let said = entry.status.message.take();
            let whole = said.map_or_else(|| words.to_owned(), |said| format!("{said}; {words}"));
            entry.status.message = Some(one_line(&whole, MESSAGE_CHARS));
        }
    }

    /// Says why, of the pod and of each of its processes.
    pub fn explain(&mut self, words: &str) {
        self.message = one_line(&format!("{}; {words}", self.message), MESSAGE_CHARS);
        self.note(words);
    }

    /// The pod's name, where one is known.
    pub fn pod(&self) -> &str {
        self.entries
            .first()
            .map_or("", |entry| entry.status.pod_name.as_str())
    }
}

/// Whether the script was given to an agent, may have been armed, and is gone with the process that had it.
fn went_with_its_target(reason: Reason, known: &TargetStatus) -> bool {
    let gone = matches!(
        reason,
        Reason::TargetRestarted | Reason::TargetExited | Reason::Cancelled
    );
    gone && Intent::read(std::slice::from_ref(known)).is_some()
}

/// The entries of a status, those of each pod together.
pub fn by_pod(targets: &[TargetStatus]) -> Vec<Vec<TargetStatus>> {
    let mut pods: BTreeMap<(&str, Option<&str>), Vec<TargetStatus>> = BTreeMap::new();
    for target in targets {
        pods.entry((&target.pod_name, target.pod_uid.as_deref()))
            .or_default()
            .push(target.clone());
    }
    pods.into_values().collect()
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// The status; [`seal`] adds the entries and says where the results are.
    pub status: DebugSessionStatus,
    /// Why the session ended.
    pub reason: Reason,
    /// Whether the action was carried out.
    pub complete: bool,
}

/// The end of `session`, whose pods came to `pods`, as its status.
pub fn finish(
    session: &DebugSession,
    pods: &[PodEnd],
    elapsed: Duration,
    now: Timestamp,
) -> Finished {
    let runs_code = session.spec.action().is_some_and(SessionAction::runs_code);
    let (reason, message, complete) = of_pods(pods);
    let mut status = session.status.clone().unwrap_or_default();
    status.observed_generation = session.metadata.generation;
    status.phase = Some(phase(reason, complete));
    status.reason = Some(reason.to_string());
    status.summary = Some(fleet::summary(pods, &message));
    status.start_time.get_or_insert(Time(whole_seconds(now)));
    status.completion_time = Some(Time(whole_seconds(now)));
    status.duration = Some(readable(elapsed));
    let known = pods.iter().filter(|pod| !pod.entries.is_empty()).count();
    status.pods = Some(format!("{known}/{known}"));
    status.targets = Vec::new();
    let mut set = |condition, holds: bool, reason: Reason, message: String| {
        conditions::set(
            &mut status.conditions,
            Observation {
                condition,
                status: holds,
                reason: reason.to_string(),
                message,
            },
            session.metadata.generation,
            now,
        );
    };
    if is_rejection(reason) {
        set(conditions::ACCEPTED, false, reason, message.clone());
    } else {
        set(
            conditions::ACCEPTED,
            true,
            Reason::Accepted,
            Reason::Accepted.sentence().to_owned(),
        );
    }
    match pods.iter().find(|pod| pod.reached < Reached::Agent) {
        // Nothing was to be attached.
        _ if session.spec.dry_run => {}
        None => {
            let notes = pods
                .iter()
                .map(|pod| pod.notes.as_str())
                .find(|notes| !notes.is_empty());
            set(
                conditions::ATTACHED,
                true,
                Reason::Attached,
                format!(
                    "{}{}",
                    Reason::Attached.sentence(),
                    notes.unwrap_or_default()
                ),
            );
        }
        Some(outside) => set(
            conditions::ATTACHED,
            false,
            outside.reason,
            if pods.len() > 1 {
                one_line(
                    &format!("pod {}: {}", outside.pod(), outside.message),
                    MESSAGE_CHARS,
                )
            } else {
                outside.message.clone()
            },
        ),
    }
    if runs_code {
        let (holds, state, sentence) = disarmed(pods);
        set(conditions::DISARMED, holds, state, sentence);
    }
    set(conditions::COMPLETE, complete, reason, message.clone());
    set(conditions::FAILED, !complete, reason, message);
    Finished {
        status,
        reason,
        complete,
    }
}

/// Whether anything is armed in any of the targets.
fn disarmed(pods: &[PodEnd]) -> (bool, Reason, String) {
    let entries = || pods.iter().flat_map(|pod| &pod.entries);
    let any = |state| entries().any(|entry| entry.status.disarmed == Some(state));
    let unknown = entries().any(|entry| {
        entry.status.disarmed == Some(DisarmState::StillArmed) && entry.status.exec.is_none()
    });
    let state = if any(DisarmState::StillArmed) {
        Reason::StillArmed
    } else if any(DisarmState::Disarmed) {
        Reason::Disarmed
    } else {
        Reason::NotArmed
    };
    let sentence = if unknown {
        "it could not be confirmed that nothing is armed in the target; whatever carries the script ends at the session's deadline"
    } else {
        state.sentence()
    };
    (state != Reason::StillArmed, state, sentence.to_owned())
}

/// Adds the entries that were chosen, and where the results are.
pub fn seal(
    mut status: DebugSessionStatus,
    pods: &[PodEnd],
    generation: Option<i64>,
    now: Timestamp,
) -> DebugSessionStatus {
    let entries = || pods.iter().flat_map(|pod| &pod.entries);
    let not_stored = entries().find_map(|entry| entry.not_stored.as_deref());
    let stored = entries().any(|entry| entry.status.result.is_some());
    let (holds, reason, message) = match not_stored {
        Some(why) => (
            false,
            Reason::ResultNotStored,
            one_line(
                &format!("{}: {why}", Reason::ResultNotStored.sentence()),
                MESSAGE_CHARS,
            ),
        ),
        None if stored => (true, Reason::Stored, Reason::Stored.sentence().to_owned()),
        None => (true, Reason::Inline, Reason::Inline.sentence().to_owned()),
    };
    if pods.iter().any(|pod| pod.reached == Reached::Answer) {
        conditions::set(
            &mut status.conditions,
            Observation {
                condition: conditions::RESULT_STORED,
                status: holds,
                reason: reason.to_string(),
                message,
            },
            generation,
            now,
        );
    }
    status.targets = entries().filter_map(Entry::shown).collect();
    status
}

/// Reasons that say what was asked for cannot be done at all.
fn is_rejection(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::PodNotFound
            | Reason::ContainerNotFound
            | Reason::StaticPod
            | Reason::HostPID
            | Reason::UnsupportedPlatform
            | Reason::ScriptNotFound
            | Reason::PolicyDenied
            | Reason::RequesterUnknown
            | Reason::TooManyTargets
            | Reason::UnknownRecipe
    )
}

fn phase(reason: Reason, complete: bool) -> Phase {
    if complete {
        Phase::Succeeded
    } else if reason == Reason::Cancelled {
        Phase::Cancelled
    } else {
        Phase::Failed
    }
}

/// What several processes of one pod came to, as one reason and sentence; `first` is the first one's own. `None` without
/// any.
fn of_processes(
    reasons: &[(Option<i32>, Reason)],
    first: Option<&str>,
) -> Option<(Reason, String)> {
    let (_, reason) = *reasons.first()?;
    // Of the entry, from which everything is left out that is not for the status.
    let sentence = first.unwrap_or_else(|| reason.sentence());
    let done = reasons
        .iter()
        .filter(|(_, reason)| reason.is_complete())
        .count();
    let same = reasons.iter().all(|(_, other)| *other == reason);
    let (reason, message) = if same && reasons.len() == 1 {
        (reason, sentence.to_owned())
    } else if same {
        (
            reason,
            format!("all {} processes: {sentence}", reasons.len()),
        )
    } else if done == reasons.len() {
        (
            Reason::ScriptError,
            Reason::ScriptError.sentence().to_owned(),
        )
    } else {
        let failed: Vec<_> = reasons
            .iter()
            .filter(|(_, reason)| !reason.is_complete())
            .map(|(pid, reason)| match pid {
                Some(pid) => format!("pid {pid}: {reason}"),
                None => reason.to_string(),
            })
            .collect();
        (
            Reason::PartiallyFailed,
            format!(
                "{done} of {} processes answered; {}",
                reasons.len(),
                failed.join(", ")
            ),
        )
    };
    Some((reason, one_line(&message, MESSAGE_CHARS)))
}

/// Why the session ended, of all its pods, and whether the action was carried out.
fn of_pods(pods: &[PodEnd]) -> (Reason, String, bool) {
    let complete = pods.iter().any(|pod| pod.complete);
    let Some(first) = pods.first() else {
        let reason = Reason::InternalError;
        return (reason, reason.sentence().to_owned(), false);
    };
    if pods.len() == 1 {
        return (first.reason, first.message.clone(), complete);
    }
    let done = pods.iter().filter(|pod| pod.complete).count();
    let whole = |pod: &PodEnd| pod.complete && pod.reason != Reason::PartiallyFailed;
    let (reason, message) = if pods.iter().all(|pod| pod.reason == first.reason) {
        (
            first.reason,
            format!("all {} pods: {}", pods.len(), first.message),
        )
    } else if pods.iter().all(whole) {
        (
            Reason::ScriptError,
            Reason::ScriptError.sentence().to_owned(),
        )
    } else {
        let failed: Vec<_> = pods
            .iter()
            .filter(|pod| !whole(pod))
            .map(|pod| format!("{}: {}", pod.pod(), pod.reason))
            .collect();
        (
            Reason::PartiallyFailed,
            format!(
                "{done} of {} pods answered; {}",
                pods.len(),
                failed.join(", ")
            ),
        )
    };
    (reason, one_line(&message, MESSAGE_CHARS), complete)
}

/// A duration for people.
pub fn readable(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds < 1000 {
        format!("{milliseconds}ms")
    } else if milliseconds < 60_000 {
        format!("{}.{}s", milliseconds / 1000, milliseconds % 1000 / 100)
    } else {
        format!(
            "{}m{}s",
            milliseconds / 60_000,
            milliseconds % 60_000 / 1000
        )
    }
}

#[cfg(test)]
mod tests;
