//! Conditions: their types, and how one is set.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The session was accepted: its targets are known.
pub const ACCEPTED: &str = "Accepted";
/// Every target's agent answered.
pub const ATTACHED: &str = "Attached";
/// Nothing of ours is armed in any target; only on sessions that run code.
pub const DISARMED: &str = "Disarmed";
/// The whole result can be read, from the status or from Secrets.
pub const RESULT_STORED: &str = "ResultStored";
/// The action was carried out. Absent until the session has ended.
pub const COMPLETE: &str = "Complete";
/// The action was not carried out. Absent until the session has ended.
pub const FAILED: &str = "Failed";

/// The longest message of a condition, in characters; metav1.Condition allows 32768 bytes.
pub const MAX_MESSAGE_CHARS: usize = 4096;

/// What is known about one condition now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The condition's type, one of this module's constants.
    pub condition: &'static str,
    /// Whether it holds.
    pub status: bool,
    /// A name of `sidewinder_model::Reason`.
    pub reason: String,
    /// A sentence for people; cut at [`MAX_MESSAGE_CHARS`].
    pub message: String,
}

/// Writes what was observed into `conditions`, keeping one entry per type and the order of the list.
///
/// `lastTransitionTime` is `now` in whole seconds (the API carries no fractions) when the status changed or the
/// condition is new, and stays as it was otherwise, so that setting the same thing again changes nothing.
pub fn set(
    conditions: &mut Vec<Condition>,
    observation: Observation,
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = if observation.status { "True" } else { "False" };
    let mut wanted = Condition {
        type_: observation.condition.to_owned(),
        status: status.to_owned(),
        reason: observation.reason,
        message: observation
            .message
            .chars()
            .take(MAX_MESSAGE_CHARS)
            .collect(),
        observed_generation: generation,
        last_transition_time: Time(whole_seconds(now)),
    };
    match conditions
        .iter_mut()
        .find(|condition| condition.type_ == wanted.type_)
    {
        Some(existing) => {
            if existing.status == wanted.status {
                wanted.last_transition_time = existing.last_transition_time.clone();
            }
            *existing = wanted;
        }
        None => conditions.push(wanted),
    }
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], condition: &str) -> Option<&'a Condition> {
    conditions.iter().find(|entry| entry.type_ == condition)
}

/// Whether the condition of a type is there and True.
pub fn is_true(conditions: &[Condition], condition: &str) -> bool {
    find(conditions, condition).is_some_and(|entry| entry.status == "True")
}

/// Whether a session with these conditions has ended, one way or the other.
pub fn has_ended(conditions: &[Condition]) -> bool {
    is_true(conditions, COMPLETE) || is_true(conditions, FAILED)
}

/// `time` without its fraction of a second, as the API server would store it.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(status: bool, message: &str) -> Observation {
        Observation {
            condition: ATTACHED,
            status,
            reason: "Attached".into(),
            message: message.into(),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::new(second, 987_654_321).unwrap()
    }

    #[test]
    fn setting_the_same_again_changes_nothing() {
        let mut conditions = Vec::new();
        set(&mut conditions, observed(true, "here"), Some(1), at(100));
        let first = conditions.clone();
        set(&mut conditions, observed(true, "here"), Some(1), at(200));
        assert_eq!(conditions, first);
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut conditions = Vec::new();
        set(
            &mut conditions,
            observed(false, "waiting"),
            Some(1),
            at(100),
        );
        set(
            &mut conditions,
            observed(false, "still waiting"),
            Some(2),
            at(200),
        );
        let held = conditions[0].clone();
        assert_eq!(held.last_transition_time.0.as_second(), 100);
        assert_eq!(held.message, "still waiting");
        assert_eq!(held.observed_generation, Some(2));
        set(&mut conditions, observed(true, "here"), Some(2), at(300));
        assert_eq!(conditions[0].last_transition_time.0.as_second(), 300);
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn times_are_whole_seconds() {
        let mut conditions = Vec::new();
        set(&mut conditions, observed(true, ""), None, at(100));
        assert_eq!(conditions[0].last_transition_time.0.subsec_nanosecond(), 0);
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let mut conditions = Vec::new();
        let long = "ü".repeat(MAX_MESSAGE_CHARS + 5);
        set(&mut conditions, observed(true, &long), None, at(1));
        assert_eq!(conditions[0].message.chars().count(), MAX_MESSAGE_CHARS);
    }

    #[test]
    fn only_a_true_complete_or_failed_ends_a_session() {
        let mut conditions = Vec::new();
        assert!(!has_ended(&conditions));
        let mut end = observed(false, "");
        end.condition = COMPLETE;
        set(&mut conditions, end.clone(), None, at(1));
        assert!(!has_ended(&conditions));
        end.status = true;
        end.condition = FAILED;
        set(&mut conditions, end, None, at(1));
        assert!(has_ended(&conditions));
    }
}
