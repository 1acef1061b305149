//! What came of a session, as its status: caps, what is kept from the status, and what goes to Secrets. Pure.

pub mod clip;
mod entry;
pub mod spill;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use sidewinder_crds::conditions::{self, Observation, whole_seconds};
use sidewinder_crds::{
    DebugSession, DebugSessionStatus, DisarmState, Phase, ResultRef, SessionAction, TargetStatus,
};
use sidewinder_model::{MAX_SUMMARY_CHARS, Reason, TargetOutcome};

use self::clip::one_line;
use self::entry::{drop_data, drop_text, entry};
use self::spill::Document;
use super::plan::End;

/// The largest `text`, `stdout`, `stderr` or `data` in a status, in bytes.
pub const FIELD_BYTES: usize = 16 * 1024;
/// The largest status, in bytes of JSON.
pub const STATUS_BYTES: usize = 256 * 1024;
/// What a `result` with its parts adds to an entry that has none yet, in bytes of JSON.
const RESULT_BYTES: usize = 700;
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

/// A status to be written, and the documents that must be stored first.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// The status; [`Finished::store`] adds the results.
    pub status: DebugSessionStatus,
    /// Whole outcomes, by the place of their entry in `status.targets`.
    pub documents: Vec<(usize, Document)>,
    /// Why the session ended.
    pub reason: Reason,
    /// Whether the action was carried out.
    pub complete: bool,
}

/// The end of `session` as its status.
///
/// `target` is the entry that holds what is known of pod, container and sidecar; `notes` is said in the `Attached`
/// condition, for example which way was refused first.
#[expect(
    clippy::too_many_lines,
    reason = "one field and one condition after the other"
)]
pub fn finish(
    session: &DebugSession,
    end: &End,
    target: &TargetStatus,
    notes: &str,
    sensitive: Sensitive,
    elapsed: Duration,
    now: Timestamp,
) -> Finished {
    let action = session.spec.action();
    let runs_code = action.is_some_and(SessionAction::runs_code);
    let outcomes = end
        .outcome
        .as_ref()
        .map(|outcome| outcome.targets.as_slice())
        .unwrap_or_default();
    let mut documents = Vec::new();
    let mut targets = Vec::new();
    for outcome in outcomes.iter().take(MAX_TARGETS) {
        let (entry, cut) = entry(target, outcome, runs_code, sensitive);
        if cut {
            documents.push((targets.len(), Document::of(outcome)));
        }
        targets.push(entry);
    }
    let (reason, message) = verdict(end, outcomes, &targets);
    // All failed, for different reasons, is `PartiallyFailed` too, and not complete.
    let complete = if outcomes.is_empty() {
        reason.is_complete()
    } else {
        outcomes.iter().any(|target| target.reason.is_complete())
    };
    let phase = phase(reason, complete);
    if targets.is_empty() && target.pod_uid.is_some() {
        targets.push(TargetStatus {
            phase: Some(phase),
            reason: Some(reason.to_string()),
            message: Some(one_line(&message, MESSAGE_CHARS)),
            summary: Some(one_line(&message, MAX_SUMMARY_CHARS)),
            disarmed: runs_code.then_some(if end.maybe_armed {
                DisarmState::StillArmed
            } else {
                DisarmState::NotArmed
            }),
            ..target.clone()
        });
    }
    let summary = summary(&targets, &message);
    let mut status = session.status.clone().unwrap_or_default();
    let answered = !outcomes.is_empty();
    status.observed_generation = session.metadata.generation;
    status.phase = Some(phase);
    status.reason = Some(reason.to_string());
    status.summary = Some(summary);
    status.start_time.get_or_insert(Time(whole_seconds(now)));
    status.completion_time = Some(Time(whole_seconds(now)));
    status.duration = Some(readable(elapsed));
    let pods = u8::from(target.pod_uid.is_some());
    status.pods = Some(format!("{pods}/{pods}"));
    status.targets = targets;
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
    if answered || target.agent.is_some() {
        set(
            conditions::ATTACHED,
            true,
            Reason::Attached,
            format!("{}{notes}", Reason::Attached.sentence()),
        );
    } else {
        set(conditions::ATTACHED, false, reason, message.clone());
    }
    if runs_code {
        let armed = || status.targets.iter().filter_map(|target| target.disarmed);
        let state = if armed().any(|state| state == DisarmState::StillArmed) {
            Reason::StillArmed
        } else if armed().any(|state| state == DisarmState::Disarmed) {
            Reason::Disarmed
        } else {
            Reason::NotArmed
        };
        let sentence = if end.maybe_armed {
            "it could not be confirmed that nothing is armed in the target; whatever carries the script ends at the session's deadline".to_owned()
        } else {
            state.sentence().to_owned()
        };
        set(
            conditions::DISARMED,
            state != Reason::StillArmed,
            state,
            sentence,
        );
    }
    if answered {
        let (reason, sentence) = if documents.is_empty() {
            (Reason::Inline, Reason::Inline.sentence())
        } else {
            (Reason::Stored, Reason::Stored.sentence())
        };
        set(conditions::RESULT_STORED, true, reason, sentence.to_owned());
    }
    set(conditions::COMPLETE, complete, reason, message.clone());
    set(conditions::FAILED, !complete, reason, message);
    let mut finished = Finished {
        status,
        documents,
        reason,
        complete,
    };
    finished.fit(outcomes, session, now);
    finished
}

impl Finished {
    /// Makes the status fit: later targets lose `data`, then `text`.
    fn fit(&mut self, outcomes: &[TargetOutcome], session: &DebugSession, now: Timestamp) {
        let mut size = json_bytes(&self.status) + RESULT_BYTES * self.documents.len();
        for field in ["data", "text"] {
            let mut place = self.status.targets.len();
            while size > STATUS_BYTES && place > 0 {
                place -= 1;
                let Some(target) = self.status.targets.get_mut(place) else {
                    break;
                };
                let before = json_bytes(target);
                if field == "data" {
                    drop_data(target);
                } else {
                    drop_text(target);
                }
                size = size.saturating_sub(before.saturating_sub(json_bytes(target)));
                if before != json_bytes(target)
                    && !self.documents.iter().any(|(known, _)| *known == place)
                    && let Some(outcome) = outcomes.get(place)
                {
                    self.documents.push((place, Document::of(outcome)));
                    size += RESULT_BYTES;
                    conditions::set(
                        &mut self.status.conditions,
                        Observation {
                            condition: conditions::RESULT_STORED,
                            status: true,
                            reason: Reason::Stored.to_string(),
                            message: Reason::Stored.sentence().to_owned(),
                        },
                        session.metadata.generation,
                        now,
                    );
                }
            }
        }
        // Many processes with long words: what remains is cut short, so that reason and summary stay.
        for chars in [256, 64] {
            if size <= STATUS_BYTES {
                return;
            }
            for target in &mut self.status.targets {
                target.message = target.message.take().map(|text| one_line(&text, chars));
                target.command = target.command.take().map(|text| one_line(&text, chars));
            }
            size = json_bytes(&self.status) + RESULT_BYTES * self.documents.len();
        }
    }

    /// Notes where the document of the entry at `place` is kept.
    pub fn store(&mut self, place: usize, result: ResultRef) {
        if let Some(target) = self.status.targets.get_mut(place) {
            target.result = Some(result);
        }
    }

    /// Notes that a document could not be kept; what fits inline stays.
    pub fn not_stored(&mut self, why: &str, generation: Option<i64>, now: Timestamp) {
        conditions::set(
            &mut self.status.conditions,
            Observation {
                condition: conditions::RESULT_STORED,
                status: false,
                reason: Reason::ResultNotStored.to_string(),
                message: one_line(
                    &format!("{}: {why}", Reason::ResultNotStored.sentence()),
                    MESSAGE_CHARS,
                ),
            },
            generation,
            now,
        );
    }
}

fn json_bytes<T: Serialize>(value: &T) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |bytes| bytes.len())
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

/// Why the session ended, of all its targets.
fn verdict(end: &End, outcomes: &[TargetOutcome], entries: &[TargetStatus]) -> (Reason, String) {
    let Some(first) = outcomes.first() else {
        return (end.reason, one_line(&end.message, MESSAGE_CHARS));
    };
    // Of the entry, from which everything is left out that is not for the status.
    let sentence = |target: &TargetOutcome| {
        entries
            .first()
            .and_then(|entry| entry.message.clone())
            .unwrap_or_else(|| target.reason.sentence().to_owned())
    };
    let done = outcomes
        .iter()
        .filter(|target| target.reason.is_complete())
        .count();
    let same = outcomes.iter().all(|target| target.reason == first.reason);
    let (reason, message) = if same && outcomes.len() == 1 {
        (first.reason, sentence(first))
    } else if same {
        (
            first.reason,
            format!("all {} processes: {}", outcomes.len(), sentence(first)),
        )
    } else if done == outcomes.len() {
        (
            Reason::ScriptError,
            Reason::ScriptError.sentence().to_owned(),
        )
    } else {
        let failed: Vec<_> = outcomes
            .iter()
            .filter(|target| !target.reason.is_complete())
            .map(|target| match target.pid {
                Some(pid) => format!("pid {pid}: {}", target.reason),
                None => target.reason.to_string(),
            })
            .collect();
        (
            Reason::PartiallyFailed,
            format!(
                "{done} of {} processes answered; {}",
                outcomes.len(),
                failed.join(", ")
            ),
        )
    };
    (reason, one_line(&message, MESSAGE_CHARS))
}

fn summary(targets: &[TargetStatus], message: &str) -> String {
    let text = match targets {
        [] => message.to_owned(),
        [one] => one.summary.clone().unwrap_or_default(),
        many => many
            .iter()
            .map(|target| {
                let pid = target
                    .pid
                    .map_or_else(|| "?".to_owned(), |pid| pid.to_string());
                format!("{pid}: {}", target.summary.as_deref().unwrap_or_default())
            })
            .collect::<Vec<_>>()
            .join("; "),
    };
    let text = if text.trim().is_empty() {
        message
    } else {
        &text
    };
    one_line(text, MAX_SUMMARY_CHARS)
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
