//! The messages that the operator and an agent exchange over the relay.
//!
//! The operator sends [`ToAgent::Hello`], the agent answers [`ToOperator::Hello`]; then requests may overlap, each
//! told apart by its id. The agent keeps an outcome until [`ToAgent::Acknowledge`].
//!
//! A script that could not be stopped outlives its request: [`crate::ExecOutcome::watched`] says that the agent watches it,
//! and [`ToAgent::Watch`] asks for its end. An older operator does not know that field and never asks; an older agent never
//! sets it, and is never asked.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Outcome, Reason, Request, ScriptEnd};

/// From the operator to an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum ToAgent {
    /// First on every stream.
    Hello {
        /// [`crate::PROTOCOL`] of the operator.
        protocol: u32,
    },
    /// Start a request, or attach to it.
    Run {
        /// The request.
        request: Request,
    },
    /// End a request early: disarm or stop its script.
    Cancel {
        /// The request's id.
        id: String,
    },
    /// The outcome is safe; the agent may forget it.
    Acknowledge {
        /// The request's id.
        id: String,
    },
    /// Tell when the scripts that were still running at the end of a request have ended.
    Watch {
        /// The request's id.
        id: String,
    },
    /// Are you there?
    Ping,
    /// A message of a newer operator.
    #[serde(other)]
    Unknown,
}

/// From an agent to the operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum ToOperator {
    /// The answer to `Hello`.
    Hello {
        /// [`crate::PROTOCOL`] of the agent.
        protocol: u32,
        /// The sidecar's version.
        version: String,
        /// A random id of this run of the agent; another run refuses requests that name it.
        instance: String,
    },
    /// The request is known and running.
    Accepted {
        /// The request's id.
        id: String,
    },
    /// The request has ended. Repeated until acknowledged, whenever it is asked for again.
    Finished {
        /// What came of it.
        outcome: Arc<Outcome>,
    },
    /// The request was not begun and will not be.
    Refused {
        /// The request's id; empty for a message that could not be understood.
        id: String,
        /// Why.
        reason: Reason,
        /// Why, in a sentence.
        message: String,
    },
    /// A script that was still running at the end of its request runs no more. Sent once for each of the request's
    /// processes to everybody who asked with `Watch`; at once for those that ended before. `Refused` is the answer where
    /// this run of the agent knows of no such script.
    ScriptEnded {
        /// The request's id.
        id: String,
        /// How it ended, and in which process.
        end: ScriptEnd,
    },
    /// The answer to `Ping`.
    Pong,
    /// A message of a newer agent.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ExecOutcome;

    #[test]
    fn what_an_older_side_does_not_say_is_not_so_and_what_a_newer_one_says_is_passed_over() {
        let older = json!({"stdout": "", "stillRunning": true});
        let outcome: ExecOutcome = serde_json::from_value(older).unwrap();
        assert!(outcome.still_running && !outcome.watched);
        assert!(
            !serde_json::to_string(&outcome).unwrap().contains("watched"),
            "it is said where it is so"
        );
        for newer in [
            json!({"type": "dance"}),
            json!({"type": "dance", "id": "a", "steps": [1, 2]}),
        ] {
            assert_eq!(
                serde_json::from_value::<ToAgent>(newer.clone()).unwrap(),
                ToAgent::Unknown
            );
            assert_eq!(
                serde_json::from_value::<ToOperator>(newer).unwrap(),
                ToOperator::Unknown
            );
        }
    }

    #[test]
    fn the_words_of_a_watch_stay_as_they_are() {
        let watch = ToAgent::Watch { id: "a".into() };
        assert_eq!(
            serde_json::to_value(watch).unwrap(),
            json!({"type": "watch", "id": "a"})
        );
        let ended =
            json!({"type": "scriptEnded", "id": "a", "end": {"pid": 7, "reason": "ScriptEnded"}});
        let ToOperator::ScriptEnded { id, end } = serde_json::from_value(ended).unwrap() else {
            panic!("it is something else")
        };
        assert_eq!((id.as_str(), end.pid, end.after_milliseconds), ("a", 7, 0));
    }
}
