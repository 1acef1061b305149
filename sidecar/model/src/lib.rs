//! The contract between the sidecar, the operator and the command line.
//!
//! Everything that one process writes and another reads is defined here: the requests and outcomes that travel over
//! the relay, the JSON documents that commands print, the closed list of reasons, and the framing of messages.
//! The crate depends on serde alone and does no I/O.
//!
//! # Compatibility
//!
//! [`PROTOCOL`] is exchanged first. Within one protocol number fields are only added, always with a default, and
//! unknown fields are ignored, so an older and a newer side understand each other. A change that cannot be made that
//! way raises the number, and the sides say `SidecarVersion` to each other instead of guessing.

#![forbid(unsafe_code)]

pub mod exec;
pub mod message;
pub mod process;
pub mod reason;
pub mod request;
pub mod snapshot;
pub mod wire;

pub use exec::{ExecOutcome, ScriptEnd, ScriptException, Wake};
pub use message::{ToAgent, ToOperator};
pub use process::{ProcessInfo, ProcessList, RemoteExec};
pub use reason::Reason;
pub use request::{
    Action, Data, ExecRequest, Locals, Outcome, ProcessMode, ProcessSelector, Request,
    TargetOutcome, TaskFormat, ThreadChoice, WakePolicy,
};
pub use snapshot::{
    Collection, CurrentException, Frame, Id, Interpreter, Local, Loop, Stacks, Stopped, Syscall,
    Task, TaskState, Tasks, Thread, ThreadState, WaitingFor, WaitingGroup,
};

/// The number of the protocol spoken over the relay.
pub const PROTOCOL: u32 = 1;

/// At most this many bytes of script, UTF-8 encoded.
pub const MAX_SCRIPT_BYTES: usize = 256 * 1024;

/// The longest one-line summary, in characters.
pub const MAX_SUMMARY_CHARS: usize = 160;
