//! How a thread is written in a session: a name, or a kernel thread id as a number or its digits.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The largest thread id the kernel gives out (`PID_MAX_LIMIT`, proc(5)).
const MAX_TID: i32 = 4_194_304;

/// Which thread runs a script: a name or a kernel thread id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThreadSelector {
    /// The main thread, or another one where the main thread cannot answer.
    #[default]
    Auto,
    /// The main thread and no other.
    Main,
    /// Whichever answers first.
    Any,
    /// The thread with this kernel id, in the container's PID namespace; 1 to 4194304.
    Tid(i32),
}

/// A text or number that names no thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidThread;

impl fmt::Display for InvalidThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("thread must be Auto, Main, Any or a thread id from 1 to 4194304")
    }
}

impl std::error::Error for InvalidThread {}

impl TryFrom<i64> for ThreadSelector {
    type Error = InvalidThread;

    fn try_from(tid: i64) -> Result<Self, InvalidThread> {
        i32::try_from(tid)
            .ok()
            .filter(|tid| (1..=MAX_TID).contains(tid))
            .map(Self::Tid)
            .ok_or(InvalidThread)
    }
}

impl FromStr for ThreadSelector {
    type Err = InvalidThread;

    fn from_str(text: &str) -> Result<Self, InvalidThread> {
        match text {
            "Auto" => Ok(Self::Auto),
            "Main" => Ok(Self::Main),
            "Any" => Ok(Self::Any),
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits
                .parse::<i64>()
                .map_err(|_| InvalidThread)
                .and_then(Self::try_from),
            _ => Err(InvalidThread),
        }
    }
}

impl Serialize for ThreadSelector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("Auto"),
            Self::Main => serializer.serialize_str("Main"),
            Self::Any => serializer.serialize_str("Any"),
            Self::Tid(tid) => serializer.serialize_i32(*tid),
        }
    }
}

impl<'de> Deserialize<'de> for ThreadSelector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrNumber;

        impl Visitor<'_> for NameOrNumber {
            type Value = ThreadSelector;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("Auto, Main, Any or a thread id")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ThreadSelector, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: Error>(self, tid: i64) -> Result<ThreadSelector, E> {
                tid.try_into().map_err(E::custom)
            }

            fn visit_u64<E: Error>(self, tid: u64) -> Result<ThreadSelector, E> {
                i64::try_from(tid)
                    .map_err(|_| InvalidThread)
                    .and_then(ThreadSelector::try_from)
                    .map_err(E::custom)
            }
        }

        deserializer.deserialize_any(NameOrNumber)
    }
}

impl JsonSchema for ThreadSelector {
    fn schema_name() -> Cow<'static, str> {
        "ThreadSelector".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "x-kubernetes-validations": [{
                "rule": "self in ['Auto', 'Main', 'Any'] || (string(self).matches('^[0-9]{1,7}$') && int(self) >= 1 && int(self) <= 4194304)",
                "message": InvalidThread.to_string(),
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;

    #[test]
    fn a_thread_is_a_name_a_number_or_its_digits() {
        for (written, meant) in [
            (json!("Auto"), ThreadSelector::Auto),
            (json!("Main"), ThreadSelector::Main),
            (json!("Any"), ThreadSelector::Any),
            (json!(1), ThreadSelector::Tid(1)),
            (json!("4194304"), ThreadSelector::Tid(MAX_TID)),
        ] {
            assert_eq!(from_value::<ThreadSelector>(written).unwrap(), meant);
            let again = to_value(meant).unwrap();
            assert_eq!(from_value::<ThreadSelector>(again).unwrap(), meant);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for written in [
            json!("auto"),
            json!(""),
            json!(0),
            json!(-1),
            json!(4_194_305),
            json!("4194305"),
            json!("+7"),
            json!(u64::MAX),
            json!(1.5),
            json!(null),
        ] {
            assert!(
                from_value::<ThreadSelector>(written.clone()).is_err(),
                "{written}"
            );
        }
    }
}
