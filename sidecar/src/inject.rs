//! Having the target run a script at a safe point of one of its threads (PEP 768), and taking the request back when no
//! thread comes by.

mod ask;
mod choose;
mod finish;
mod payload;
mod queue;
mod refused;
mod result;
mod stuck;
mod turn;
mod wake;
mod watch;
mod withdraw;

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sidewinder_decode::Runtime;
use sidewinder_decode::remote_exec::{self, ThreadSupport};
use sidewinder_decode::still::Any;
use sidewinder_linux::Process;
use sidewinder_linux::carrier::{self, Carrier, CarrierError};
use sidewinder_linux::program::Program;
use sidewinder_linux::write::{RequestSlot, disarm_stale};
use sidewinder_model::{ExecOutcome, ExecRequest, Reason, Stacks, ThreadChoice, Wake, WakePolicy};

use crate::discover;
use ask::Asked;
use choose::{Candidate, Wanted};
pub use queue::Asker;
use queue::Claim;
use result::Answer;
use wake::Waker;
pub use watch::LeftRunning;

/// Between two of these the target runs.
const ARM_PAUSE: Duration = Duration::from_millis(50);
/// How long a script may take at least to start on the second way to its target.
const SECOND_WAY: Duration = Duration::from_secs(1);
/// The longest path there is, `PATH_MAX`.
const MAX_PATH: usize = 4096;

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
    /// The script, where it is still running. Dropping it lets go of it.
    pub left: Option<LeftRunning>,
}

/// Why a script did not run to its end.
struct Refusal {
    reason: Reason,
    message: String,
    /// The target may not open the script where it lies; in another place it may.
    unopened: bool,
}

fn refuse(reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal {
        reason,
        message: message.into(),
        unopened: false,
    }
}

/// Runs a script in the target. Returns when the script has ended, did not start in time, or time is up; a request that
/// was not accepted is taken back on every path, and a script that runs when time is up is made to end where it can be.
/// `look` reads the stacks before that. `asker` says who comes before whom.
pub fn exec(
    process: &Process,
    runtime: &Runtime,
    request: &ExecRequest,
    asker: &Asker,
    deadline: Instant,
    cancel: &AtomicBool,
    look: &dyn Fn() -> Option<Stacks>,
) -> Injected {
    let mut run = Run {
        process,
        runtime,
        script: &request.script,
        policy: request.wake,
        asker,
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
        left: None,
        unseen: false,
        program: process.program(),
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
        left,
        ..
    } = run;
    answer.into_outcome(&mut outcome);
    Injected {
        outcome,
        reason,
        message,
        paused,
        armed,
        left,
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
    script: &'a str,
    policy: WakePolicy,
    asker: &'a Asker,
    deadline: Instant,
    cancel: &'a AtomicBool,
    look: &'a dyn Fn() -> Option<Stacks>,
    answer: Answer,
    read: u64,
    outcome: ExecOutcome,
    paused: Duration,
    armed: bool,
    left: Option<LeftRunning>,
    /// Nothing will show the end of a script that is still running.
    unseen: bool,
    program: Program,
}

/// What came of asking threads that did not answer.
#[derive(Default)]
struct AskedInVain {
    /// The last that could not be asked.
    busy: Option<Refusal>,
    /// Why a thread does not come, where that is known.
    obstacles: Vec<(u64, String)>,
}

impl Run<'_> {
    fn exec(&mut self, request: &ExecRequest) -> Result<(), Refusal> {
        let (claim, mut candidates) = self.turn(request, Wanted::Chosen, self.deadline)?;
        let start = self
            .deadline
            .min(Instant::now() + Duration::from_millis(request.start_milliseconds));
        let carrier = Carrier::start(self.process, self.deadline, || size(request));
        let mut carrier = self.loaded(carrier, request)?;
        let stand_in = match candidates.as_slice() {
            [main] if request.thread == ThreadChoice::Auto && main.siblings > 0 => Some(main.tid),
            _ => None,
        };
        let mut asked = AskedInVain::default();
        // Where others may stand in for the main thread, it has half of the time.
        let until = match stand_in {
            Some(_) => Instant::now() + start.saturating_duration_since(Instant::now()) / 2,
            None => start,
        };
        if let Some(index) = self.ask_each(&mut carrier, request, &candidates, until, &mut asked)? {
            return self.run_in(carrier, claim, &candidates.swap_remove(index));
        }
        drop(claim);
        if let Some(main) = stand_in {
            match self.turn(request, Wanted::StandIns(main), start) {
                Ok((claim, mut others)) => {
                    if let Some(index) =
                        self.ask_each(&mut carrier, request, &others, start, &mut asked)?
                    {
                        self.outcome.wake = Wake::OtherThread;
                        return self.run_in(carrier, claim, &others.swap_remove(index));
                    }
                    candidates.append(&mut others);
                }
                // That nobody can stand in is not why there is no answer.
                Err(Refusal {
                    reason: Reason::TargetBusy | Reason::QueueFull | Reason::NoPythonProcess,
                    ..
                }) => {}
                Err(refusal) => return Err(refusal),
            }
        }
        match asked.busy {
            Some(busy) => Err(busy),
            None => Err(self.not_started(&candidates, &asked.obstacles)),
        }
    }

    /// Asks one thread after the other; the index of the one in which the script has started.
    fn ask_each(
        &mut self,
        carrier: &mut Carrier,
        request: &ExecRequest,
        candidates: &[Candidate],
        until: Instant,
        asked: &mut AskedInVain,
    ) -> Result<Option<usize>, Refusal> {
        let mut left = u32::try_from(candidates.len()).unwrap_or(1);
        for (index, thread) in candidates.iter().enumerate() {
            // Every thread that is left gets the same share of what time is left.
            let share = until.saturating_duration_since(Instant::now()) / left.max(1);
            left = left.saturating_sub(1);
            let until = Instant::now() + share;
            let mut waker = Waker::new(self.process, self.runtime, thread, self.policy);
            let mut answer = self.ask(carrier, &mut waker, thread, until);
            if let Err(refusal) = &answer
                && refusal.unopened
                && !carrier.is_in_folder()
                && carrier.take_away()
            {
                *carrier = self.loaded(
                    Carrier::start_in_folder(self.process, self.deadline, size(request)),
                    request,
                )?;
                // Its result is another one.
                (self.answer, self.read) = (Answer::default(), 0);
                let until = self.deadline.min(until.max(Instant::now() + SECOND_WAY));
                waker = Waker::new(self.process, self.runtime, thread, self.policy);
                answer = self.ask(carrier, &mut waker, thread, until);
            }
            match answer {
                Ok(Asked::Started) => return Ok(Some(index)),
                Ok(Asked::NotInTime) => {
                    let obstacle = waker.obstacle().map(|why| (thread.tid, why));
                    asked.obstacles.extend(obstacle);
                }
                // Another thread may still do: this one is somebody else's, does not stop, or has ended.
                Err(refusal)
                    if matches!(
                        refusal.reason,
                        Reason::TargetBusy | Reason::TargetBlocked | Reason::NoPythonProcess
                    ) =>
                {
                    asked.busy = Some(refusal);
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(None)
    }

    /// The script has started in this thread: waits for its end, and keeps what one that does not end needs.
    fn run_in(
        &mut self,
        carrier: Carrier,
        mut claim: Claim,
        thread: &Candidate,
    ) -> Result<(), Refusal> {
        claim.runs_in(thread.tid);
        let began = Instant::now();
        let ended = self.finish(&carrier, thread);
        self.leave(carrier, claim, thread.tid, began);
        ended
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

    /// A carrier with the text that runs a script.
    fn loaded(
        &self,
        carrier: Result<Carrier, CarrierError>,
        request: &ExecRequest,
    ) -> Result<Carrier, Refusal> {
        let carrier = carrier.map_err(|error| carrier_refusal(&error))?;
        carrier
            .load(&payload::text(
                &request.script,
                carrier.result_path(),
                self.process.ns_pid(),
                carrier.room(),
            ))
            .map_err(|error| {
                refuse(
                    Reason::InternalError,
                    format!(
                        "cannot write the script to {}: {error}",
                        carrier.script_path()
                    ),
                )
            })?;
        Ok(carrier)
    }

    /// Reads what has been added to the result.
    fn update(&mut self, result: &File) {
        self.answer.read(result, &mut self.read);
    }
}

/// The bytes that a script may take at its place, whose path is not known before.
fn size(request: &ExecRequest) -> u64 {
    let longest = "x".repeat(MAX_PATH);
    payload::text(&request.script, &longest, i32::MAX, None).len() as u64
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn carrier_refusal(error: &CarrierError) -> Refusal {
    let reason = match error {
        CarrierError::Process(error) => discover::reason(error),
        CarrierError::Identity { .. } | CarrierError::Unseen(_) | CarrierError::NoWay { .. } => {
            Reason::PermissionDenied
        }
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
