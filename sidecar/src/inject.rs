//! Having the target run a script at a safe point of one of its threads (PEP 768), and taking the request back when no
//! thread comes by.

mod ask;
mod choose;
mod finish;
mod payload;
mod result;
mod wake;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sidewinder_decode::Runtime;
use sidewinder_decode::remote_exec::{self, ThreadSupport};
use sidewinder_decode::still::Any;
use sidewinder_linux::Process;
use sidewinder_linux::carrier::{self, Carrier, CarrierError};
use sidewinder_linux::turns::{Turn, Turns};
use sidewinder_linux::write::{RequestSlot, disarm_stale};
use sidewinder_model::{ExecOutcome, ExecRequest, Reason, Stacks, ThreadChoice, Wake, WakePolicy};

use crate::discover;
use ask::Asked;
use choose::{Candidate, candidates};
use result::Answer;
use wake::Waker;

/// Two scripts of this sidecar are not asked for in one process at the same time: each would take the other's request for
/// somebody else's. The turn ends when the script has started.
static STARTING: Turns = Turns::new();
/// How often somebody who waits for a turn looks whether it is still wanted.
const TURN_CHECK: Duration = Duration::from_millis(100);
/// Between two of these the target runs.
const ARM_PAUSE: Duration = Duration::from_millis(50);
/// The most that is read of a result.
const MAX_RESULT: u64 = 160 << 20;

/// What became of a script.
#[derive(Debug)]
pub struct Injected {
    /// The document; its `reason` is left to the caller, and its `stacks` unless the script had to be stopped.
    pub outcome: ExecOutcome,
    /// How it ended.
    pub reason: Reason,
    /// The reason in a sentence about this target; empty when there is nothing to add.
    pub message: String,
    /// How long a thread was held still, summed.
    pub paused: Duration,
    /// Whether a request was ever written.
    pub armed: bool,
}

/// Why a script did not run to its end.
struct Refusal {
    reason: Reason,
    message: String,
}

fn refuse(reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal {
        reason,
        message: message.into(),
    }
}

/// Runs a script in the target. Returns when the script has ended, did not start in time, or time is up; a request that
/// was not accepted is taken back on every path, and a script that runs when time is up is made to end where it can be.
/// `look` reads the stacks before that.
pub fn exec(
    process: &Process,
    runtime: &Runtime,
    request: &ExecRequest,
    deadline: Instant,
    cancel: &AtomicBool,
    look: &dyn Fn() -> Option<Stacks>,
) -> Injected {
    let mut run = Run {
        process,
        runtime,
        policy: request.wake,
        deadline,
        cancel,
        look,
        answer: Answer::default(),
        read: 0,
        outcome: ExecOutcome {
            disarmed: true,
            ..ExecOutcome::default()
        },
        paused: Duration::ZERO,
        armed: false,
    };
    let (reason, message) = match run.exec(request) {
        Ok(()) if run.answer.failed() => (Reason::ScriptError, run.answer.exception_line()),
        Ok(()) => (Reason::Succeeded, String::new()),
        Err(refusal) => (refusal.reason, refusal.message),
    };
    let Run {
        answer,
        mut outcome,
        paused,
        armed,
        ..
    } = run;
    answer.into_outcome(&mut outcome);
    Injected {
        outcome,
        reason,
        message,
        paused,
        armed,
    }
}

/// Takes back requests that an ended sidecar left armed in any thread, and removes its files.
pub fn sweep(process: &Process, runtime: &Runtime) {
    sweep_requests(process, runtime);
    carrier::sweep(process);
}

fn sweep_requests(process: &Process, runtime: &Runtime) {
    let Ok(threads) = process.threads() else {
        return;
    };
    let support = remote_exec::support::<Any>(process, runtime, &threads);
    for thread in support
        .interpreters
        .iter()
        .flat_map(|interpreter| &interpreter.threads)
    {
        if thread.is_pending {
            // The kernel's refusal will be heard by whoever wants something of this process.
            let _ = disarm_stale(process, slot(thread));
        }
    }
}

fn slot(thread: &ThreadSupport) -> RequestSlot {
    RequestSlot {
        pending: thread.pending,
        path: thread.path,
        path_size: thread.path_size,
        eval_breaker: thread.eval_breaker,
    }
}

struct Run<'a> {
    process: &'a Process,
    runtime: &'a Runtime,
    policy: WakePolicy,
    deadline: Instant,
    cancel: &'a AtomicBool,
    look: &'a dyn Fn() -> Option<Stacks>,
    answer: Answer,
    read: u64,
    outcome: ExecOutcome,
    paused: Duration,
    armed: bool,
}

impl Run<'_> {
    fn exec(&mut self, request: &ExecRequest) -> Result<(), Refusal> {
        let (turn, candidates) = self.turn(request)?;
        let start = self
            .deadline
            .min(Instant::now() + Duration::from_millis(request.start_milliseconds));
        let carrier =
            Carrier::start(self.process, self.deadline).map_err(|error| carrier_refusal(&error))?;
        carrier
            .load(&payload::text(&request.script, carrier.result_path()))
            .map_err(|error| {
                refuse(
                    Reason::InternalError,
                    format!("cannot write the script's memfd: {error}"),
                )
            })?;
        let mut busy = None;
        let mut obstacles = Vec::new();
        let count = u32::try_from(candidates.len()).unwrap_or(1);
        for (index, thread) in (0..count).zip(&candidates) {
            // Every thread that is left gets the same share of what time is left; the main one half of it, where others
            // are only to stand in for it.
            let left = start.saturating_duration_since(Instant::now());
            let shares = match (request.thread, index) {
                (ThreadChoice::Auto, 0) => count.min(2),
                _ => count - index,
            };
            let until = Instant::now() + left / shares.max(1);
            let mut waker = Waker::new(self.process, self.runtime, thread, self.policy);
            match self.ask(&carrier, &mut waker, thread, until) {
                Ok(Asked::Started) => {
                    if index > 0 {
                        self.outcome.wake = Wake::OtherThread;
                    }
                    drop(turn);
                    self.finish(&carrier, thread)?;
                    return Ok(());
                }
                Ok(Asked::NotInTime) => {
                    obstacles.extend(waker.obstacle().map(|why| (thread.tid, why)));
                }
                // Another thread may still do: this one is somebody else's, does not stop, or has ended.
                Err(refusal)
                    if count > 1
                        && matches!(
                            refusal.reason,
                            Reason::TargetBusy | Reason::TargetBlocked | Reason::NoPythonProcess
                        ) =>
                {
                    busy = Some(refusal);
                }
                Err(refusal) => return Err(refusal),
            }
        }
        if let Some(busy) = busy {
            return Err(busy);
        }
        Err(self.not_started(&candidates, &obstacles))
    }

    /// Waits for a turn, and for scripts that run where this one is to run: for the latter not longer than the script may
    /// take to start.
    fn turn(&self, request: &ExecRequest) -> Result<(Turn, Vec<Candidate>), Refusal> {
        let patience = self
            .deadline
            .min(Instant::now() + Duration::from_millis(request.start_milliseconds));
        loop {
            if let Some(turn) = STARTING.take(self.process.pid(), TURN_CHECK) {
                match candidates(self.process, self.runtime, request) {
                    Err(refusal)
                        if refusal.reason == Reason::TargetBusy && Instant::now() < patience => {}
                    found => return Ok((turn, found?)),
                }
            } else if Instant::now() >= self.deadline {
                return Err(refuse(
                    Reason::TargetBusy,
                    format!(
                        "other scripts were waiting to start in process {} until the time was over; this one was not begun",
                        self.process.ns_pid()
                    ),
                ));
            }
            self.still_wanted()?;
            if self.process.wait_exit(ARM_PAUSE) {
                return Err(self.exited());
            }
        }
    }

    fn still_wanted(&self) -> Result<(), Refusal> {
        if self.cancel.load(Ordering::SeqCst) {
            return Err(refuse(
                Reason::Cancelled,
                "cancelled before the script started; it did not and will not run",
            ));
        }
        Ok(())
    }

    fn exited(&self) -> Refusal {
        refuse(
            Reason::TargetExited,
            format!("process {} has ended", self.process.ns_pid()),
        )
    }

    /// Reads what has been added to the result.
    fn update(&mut self, result: &File) {
        let Ok(size) = result
            .metadata()
            .map(|metadata| metadata.len().min(MAX_RESULT))
        else {
            return;
        };
        let mut buffer = vec![0; 1 << 16];
        while self.read < size {
            let want = usize::try_from(size - self.read)
                .unwrap_or(buffer.len())
                .min(buffer.len());
            let Some(part) = buffer.get_mut(..want) else {
                return;
            };
            match result.read_at(part, self.read) {
                Ok(0) | Err(_) => return,
                Ok(got) => {
                    self.answer.feed(part.get(..got).unwrap_or_default());
                    self.read += got as u64;
                }
            }
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn carrier_refusal(error: &CarrierError) -> Refusal {
    let reason = match error {
        CarrierError::Process(error) => discover::reason(error),
        CarrierError::Identity { .. } | CarrierError::NoWay { .. } => Reason::PermissionDenied,
        CarrierError::Io { .. } => Reason::InternalError,
    };
    refuse(reason, discover::sentence(error))
}

/// How long to wait before looking again: often at first, then rarely.
fn pace(elapsed: Duration) -> Duration {
    match elapsed.as_millis() {
        0..100 => Duration::from_millis(1),
        100..2000 => Duration::from_millis(5),
        _ => Duration::from_millis(20),
    }
}
