//! What is asked of an agent and what it answers.

use serde::{Deserialize, Serialize};

use crate::{ExecOutcome, ProcessList, Reason, Stacks, Tasks};

/// One piece of work for an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// The session's UID. Asking again with the same id attaches to the running request or returns its outcome.
    pub id: String,
    /// What the session is called, for the messages of others that wait for the same process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The agent instance (from its `Hello`) that the intent in the session's status names. Code-running actions
    /// are refused without it and by any other instance; read-only ones ignore it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// What to do.
    pub action: Action,
    /// Which processes; `None` takes the default of the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessSelector>,
    /// The runtime's id of the target container, without the `containerd://` prefix. Where the PID namespace holds
    /// several containers (`shareProcessNamespace`), only this one's processes count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// How long the action may take in all, in milliseconds.
    pub timeout_milliseconds: u64,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Which Python processes there are.
    Processes,
    /// The stacks of every thread.
    Stacks {
        /// Whether local variables are read too.
        #[serde(default)]
        locals: Locals,
    },
    /// Every asyncio task.
    Tasks {
        /// How the text looks.
        #[serde(default)]
        format: TaskFormat,
    },
    /// Run a script inside the target.
    Exec(ExecRequest),
}

impl Action {
    /// Whether the action runs code in the target, or shows values that need the same right.
    pub fn runs_code(&self) -> bool {
        match self {
            Self::Processes | Self::Tasks { .. } => false,
            Self::Stacks { locals } => *locals == Locals::Values,
            Self::Exec(_) => true,
        }
    }

    /// Whether repeating the action could have a second effect, so that it needs a written intent.
    pub fn at_most_once(&self) -> bool {
        matches!(self, Self::Exec(_))
    }
}

/// Which local variables a stack dump shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Locals {
    /// None.
    #[default]
    None,
    /// Names and types.
    Types,
    /// Names, types and clipped values.
    Values,
}

/// How the text of a task snapshot looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskFormat {
    /// The await graph as a tree.
    #[default]
    Tree,
    /// One row per task.
    Table,
}

/// A script and how it is to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExecRequest {
    /// The source text.
    pub script: String,
    /// Which thread runs it.
    pub thread: ThreadChoice,
    /// How far the sidecar may go to make a blocked thread answer.
    pub wake: WakePolicy,
    /// The interpreter by id.
    pub interpreter: i64,
    /// Not started by then: disarm, and answer `TargetBlocked` with the stacks. Milliseconds.
    pub start_milliseconds: u64,
}

/// Which thread runs a script.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThreadChoice {
    /// The main thread; another one only where the wake policy and the implementation allow it.
    #[default]
    Auto,
    /// The interpreter's main thread and no other.
    Main,
    /// Whichever answers.
    Any,
    /// The thread with this kernel id, in the agent's PID namespace.
    Tid(u64),
}

/// How far the sidecar may go to make a blocked thread answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WakePolicy {
    /// Whatever is known to be safe for the state the thread is in.
    #[default]
    Auto,
    /// Only the interrupt step.
    Interrupt,
    /// Nothing: wait for the thread to come by.
    Never,
}

/// Which processes of a container are meant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ProcessSelector {
    /// The process with this id in the target's PID namespace.
    Pid(i32),
    /// Processes whose arguments, joined by blanks, match an unanchored regular expression.
    Command {
        /// The expression.
        pattern: String,
        /// Whether several matches are an error for code-running actions.
        #[serde(default)]
        mode: ProcessMode,
    },
}

/// What several matching processes mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessMode {
    /// Read-only actions take all, code-running ones fail.
    #[default]
    One,
    /// Every action takes all.
    All,
}

/// Everything one agent answered to one request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outcome {
    /// The request's id.
    pub id: String,
    /// The instance that did the work.
    pub instance: String,
    /// One entry per process, by pid; exactly one without a pid when the request failed before a process was chosen
    /// and for `Processes`.
    pub targets: Vec<TargetOutcome>,
}

/// What one process answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetOutcome {
    /// The process id in the target's own PID namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// Its arguments, joined by blanks and clipped.
    #[serde(default)]
    pub command: String,
    /// Its Python's version.
    #[serde(default)]
    pub python: String,
    /// How it ended.
    pub reason: Reason,
    /// The reason in a sentence about this target, with what to do.
    #[serde(default)]
    pub message: String,
    /// One line, at most [`crate::MAX_SUMMARY_CHARS`] characters.
    #[serde(default)]
    pub summary: String,
    /// How long a thread of the target was held still, summed, in microseconds.
    #[serde(default)]
    pub paused_microseconds: u64,
    /// From the start of the work on this target to its end.
    #[serde(default)]
    pub duration_milliseconds: u64,
    /// Whether nothing of ours is armed in the target any more; `None` when nothing was ever armed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disarmed: Option<bool>,
    /// What a person reads.
    #[serde(default)]
    pub text: String,
    /// The structured answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
}

impl TargetOutcome {
    /// An entry that failed, with nothing but the reason and its message.
    pub fn failed(reason: Reason, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            pid: None,
            command: String::new(),
            python: String::new(),
            reason,
            summary: match message
                .char_indices()
                .nth(crate::MAX_SUMMARY_CHARS.saturating_sub(1))
            {
                Some((end, last)) if message.len() > end + last.len_utf8() => {
                    format!("{}…", message.get(..end).unwrap_or_default())
                }
                _ => message.clone(),
            },
            message,
            paused_microseconds: 0,
            duration_milliseconds: 0,
            disarmed: None,
            text: String::new(),
            data: None,
        }
    }
}

/// The structured answer of an action, in the shape its command prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Data {
    /// Of `Processes`.
    Processes(ProcessList),
    /// Of `Stacks`.
    Stacks(Stacks),
    /// Of `Tasks`.
    Tasks(Tasks),
    /// Of `Exec`.
    Exec(Box<ExecOutcome>),
}
