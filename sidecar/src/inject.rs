//! Has a target run a script.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use sidewinder_decode::Runtime;
use sidewinder_linux::Process;
use sidewinder_model::{ExecOutcome, ExecRequest, Reason};

/// What became of a script.
#[derive(Debug)]
pub struct Injected {
    /// The document of `exec`.
    pub outcome: ExecOutcome,
    /// How it ended.
    pub reason: Reason,
    /// How it ended, in a sentence.
    pub message: String,
    /// How long a thread of the target was held still.
    pub paused: Duration,
    /// Whether a request was ever armed.
    pub armed: bool,
}

/// Runs a script in the target. Not part of this commit's build yet: it says so.
pub fn exec(
    _: &Process,
    _: &Runtime,
    _: &ExecRequest,
    _: Instant,
    _: &Arc<AtomicBool>,
) -> Injected {
    Injected {
        outcome: ExecOutcome::default(),
        reason: Reason::InternalError,
        message: "this build cannot run scripts".to_owned(),
        paused: Duration::ZERO,
        armed: false,
    }
}

/// Takes back requests that an earlier agent left armed.
pub fn sweep(_: &Process, _: &Runtime) {}
