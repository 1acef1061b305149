//! What became of a script: the document of `exec`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Reason, Stacks};

/// What became of a script that was to run inside the target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExecOutcome {
    /// What the script's own thread wrote to `sys.stdout`.
    pub stdout: String,
    /// What the script's own thread wrote to `sys.stderr`.
    pub stderr: String,
    /// `repr()` of the last statement's value when it is an expression (`"None"` included), otherwise null.
    pub value: Option<String>,
    /// The same value as JSON where it can be expressed.
    #[serde(rename = "valueJSON")]
    pub value_json: Option<String>,
    /// The exception that ended the script.
    pub exception: Option<ScriptException>,
    /// The kernel's id of the thread that was asked to run the script.
    pub thread: Option<u64>,
    /// How the thread was made to answer.
    pub wake: Wake,
    /// From arming the request until the script's first statement; null when it never started.
    pub started_after_milliseconds: Option<u64>,
    /// From the script's first statement to its end, or to the deadline.
    pub duration_milliseconds: u64,
    /// The script started and had not ended when the answer was given.
    pub still_running: bool,
    /// The agent watches the script that is still running, and will tell its end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub watched: bool,
    /// Modules that the script imported and that stay imported.
    pub imported: Vec<String>,
    /// Signals that the script consumed and that were sent again.
    pub signals: Vec<String>,
    /// Full size in bytes of each field that was cut.
    pub clipped: BTreeMap<String, u64>,
    /// Nothing of ours is armed in the target any more.
    pub disarmed: bool,
    /// How it ended.
    pub reason: Option<Reason>,
    /// Where every thread stood, with `TargetBlocked` and `ScriptTimeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stacks: Option<Stacks>,
}

/// The end of a script that was still running when its request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScriptEnd {
    /// The process id in the target's own PID namespace.
    pub pid: i32,
    /// `ScriptEnded`; `TargetExited` when the process has ended; `Timeout` when it is no longer watched.
    pub reason: Reason,
    /// How long the script had run by then.
    #[serde(default)]
    pub after_milliseconds: u64,
}

/// An exception as data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptException {
    /// Its type, module-qualified except for builtins.
    #[serde(rename = "type")]
    pub type_name: String,
    /// `str()` of it.
    pub message: String,
    /// The traceback as Python prints it.
    pub traceback: String,
}

/// How a thread was made to answer a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wake {
    /// It came by itself.
    #[default]
    None,
    /// A ptrace interrupt, which no signal and no parent sees, ended its wait.
    Interrupt,
    /// Its system call was made to return EINTR.
    ForcedReturn,
    /// A pending call was queued.
    PendingCall,
    /// It was called at its blocked point.
    InPlace,
    /// Another thread answered.
    OtherThread,
}
