//! A message of an agent, parsed without a copy in between.
//!
//! serde reads an internally tagged enum into a tree of its own first and only then into the variant
//! (<https://serde.rs/enum-representations.html#internally-tagged>), so that an outcome would be held twice, once in a
//! form that takes many times its JSON. Here its fields are read as they come.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use sidewinder_model::{Outcome, Reason, ScriptEnd, TargetOutcome, ToOperator};

/// The most processes that one agent may answer for: one more than a status has entries, so that a surplus shows.
const MAX_ANSWERS: usize = 257;

/// A message of an agent.
#[derive(Debug, PartialEq)]
pub(super) struct Incoming(pub(super) ToOperator);

impl<'de> Deserialize<'de> for Incoming {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Message)
    }
}

struct Message;

impl<'de> Visitor<'de> for Message {
    type Value = Incoming;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Incoming, A::Error> {
        let mut fields = Fields::default();
        let mut kind: Option<String> = None;
        while let Some(key) = map.next_key::<String>()? {
            // The kind comes first. Of a kind that is not known the fields may be anything.
            let known = kind.as_deref().is_none_or(|kind| KINDS.contains(&kind));
            match key.as_str() {
                "type" => kind = Some(map.next_value()?),
                "protocol" if known => fields.protocol = Some(map.next_value()?),
                "version" if known => fields.version = Some(map.next_value()?),
                "instance" if known => fields.instance = Some(map.next_value()?),
                "id" if known => fields.id = Some(map.next_value()?),
                "outcome" if known => fields.outcome = Some(map.next_value()?),
                "reason" if known => fields.reason = Some(map.next_value()?),
                "message" if known => fields.message = Some(map.next_value()?),
                "end" if known => fields.end = Some(map.next_value()?),
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        let kind = needed(kind, "type")?;
        Ok(Incoming(match kind.as_str() {
            "hello" => ToOperator::Hello {
                protocol: needed(fields.protocol, "protocol")?,
                version: needed(fields.version, "version")?,
                instance: needed(fields.instance, "instance")?,
            },
            "accepted" => ToOperator::Accepted {
                id: needed(fields.id, "id")?,
            },
            "finished" => ToOperator::Finished {
                outcome: Arc::new(needed(fields.outcome, "outcome")?.0),
            },
            "refused" => ToOperator::Refused {
                id: needed(fields.id, "id")?,
                reason: needed(fields.reason, "reason")?,
                message: needed(fields.message, "message")?,
            },
            "scriptEnded" => ToOperator::ScriptEnded {
                id: needed(fields.id, "id")?,
                end: needed(fields.end, "end")?,
            },
            "pong" => ToOperator::Pong,
            _ => ToOperator::Unknown,
        }))
    }
}

/// The kinds of message whose fields are known.
const KINDS: [&str; 6] = [
    "hello",
    "accepted",
    "finished",
    "refused",
    "scriptEnded",
    "pong",
];

#[derive(Default)]
struct Fields {
    protocol: Option<u32>,
    version: Option<String>,
    instance: Option<String>,
    id: Option<String>,
    outcome: Option<Answers>,
    reason: Option<Reason>,
    message: Option<String>,
    end: Option<ScriptEnd>,
}

fn needed<T, E: Error>(field: Option<T>, name: &'static str) -> Result<T, E> {
    field.ok_or_else(|| E::missing_field(name))
}

/// An outcome that speaks of a bounded number of processes: an entry takes ten times its JSON at its shortest.
struct Answers(Outcome);

impl<'de> Deserialize<'de> for Answers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// [`Outcome`] with its list bounded.
        #[derive(Default, serde::Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Bounded {
            id: String,
            instance: String,
            #[serde(deserialize_with = "few")]
            targets: Vec<TargetOutcome>,
        }
        let Bounded {
            id,
            instance,
            targets,
        } = Bounded::deserialize(deserializer)?;
        Ok(Self(Outcome {
            id,
            instance,
            targets,
        }))
    }
}

fn few<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TargetOutcome>, D::Error> {
    struct Few;

    impl<'de> Visitor<'de> for Few {
        type Value = Vec<TargetOutcome>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the answers of processes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut targets = Vec::new();
            while targets.len() < MAX_ANSWERS {
                match list.next_element()? {
                    Some(target) => targets.push(target),
                    None => return Ok(targets),
                }
            }
            match list.next_element::<IgnoredAny>()? {
                None => Ok(targets),
                Some(_) => Err(A::Error::invalid_length(
                    MAX_ANSWERS + 1,
                    &"the answers of at most 257 processes",
                )),
            }
        }
    }

    deserializer.deserialize_seq(Few)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(message: &Value) -> Result<ToOperator, serde_json::Error> {
        serde_json::from_value::<Incoming>(message.clone()).map(|incoming| incoming.0)
    }

    #[test]
    fn every_message_is_read_as_it_was_sent() {
        let outcome = Outcome {
            id: "a".into(),
            instance: "i".into(),
            targets: vec![TargetOutcome::failed(
                Reason::TargetBlocked,
                "it is blocked",
            )],
        };
        for message in [
            ToOperator::Hello {
                protocol: 1,
                version: "0.1.0".into(),
                instance: "i".into(),
            },
            ToOperator::Accepted { id: "a".into() },
            ToOperator::Finished {
                outcome: outcome.into(),
            },
            ToOperator::Refused {
                id: "a".into(),
                reason: Reason::QueueFull,
                message: "32 requests run".into(),
            },
            ToOperator::ScriptEnded {
                id: "a".into(),
                end: ScriptEnd {
                    pid: 7,
                    reason: Reason::ScriptEnded,
                    after_milliseconds: 3,
                },
            },
            ToOperator::Pong,
            ToOperator::Unknown,
        ] {
            // A new kind of message needs a line above: this does not compile without.
            match &message {
                ToOperator::Hello { .. }
                | ToOperator::Accepted { .. }
                | ToOperator::Finished { .. }
                | ToOperator::Refused { .. }
                | ToOperator::ScriptEnded { .. }
                | ToOperator::Pong
                | ToOperator::Unknown => {}
            }
            let json = serde_json::to_value(&message).unwrap();
            assert_eq!(parsed(&json).unwrap(), message);
        }
    }

    #[test]
    fn what_a_newer_agent_says_is_passed_over_and_what_is_missing_is_named() {
        for (newer, known) in [
            (
                r#"{"type": "dance", "id": 7, "outcome": "well", "reason": ["x"]}"#,
                ToOperator::Unknown,
            ),
            (
                r#"{"type": "pong", "steps": [1, {"a": 2}]}"#,
                ToOperator::Pong,
            ),
        ] {
            let incoming: Incoming = serde_json::from_str(newer).unwrap();
            assert_eq!(incoming.0, known);
        }
        for (wrong, word) in [
            (json!({"id": "a"}), "type"),
            (json!({"type": "accepted"}), "id"),
            (json!({"type": "finished"}), "outcome"),
        ] {
            let error = parsed(&wrong).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn an_agent_answers_for_a_bounded_number_of_processes() {
        let answer = |count: usize| {
            let one = json!({"reason": "Succeeded"});
            json!({"type": "finished", "outcome": {"targets": vec![one; count]}})
        };
        assert!(parsed(&answer(MAX_ANSWERS)).is_ok());
        assert!(parsed(&answer(MAX_ANSWERS + 1)).is_err());
    }
}
