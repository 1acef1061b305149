//! Having the target run a script at a safe point of one of its threads (PEP 768), and taking the request back when no
//! thread comes by.

mod choose;
mod finish;
mod payload;
mod result;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sidewinder_decode::Runtime;
use sidewinder_decode::remote_exec::{self, ThreadSupport};
use sidewinder_decode::still::Any;
use sidewinder_linux::Process;
use sidewinder_linux::carrier::{self, Carrier, CarrierError};
use sidewinder_linux::stop::StopError;
use sidewinder_linux::turns::{Turn, Turns};
use sidewinder_linux::write::{ArmError, Armed, Disarmed, RequestSlot, arm, disarm_stale};
use sidewinder_model::{ExecOutcome, ExecRequest, Reason, Stacks, ThreadState, Wake, WakePolicy};

use crate::discover;
use choose::{Candidate, candidates};
use result::Answer;

/// When a thread that has not come by itself is interrupted, counted from arming. More than once, since it may have
/// been between two waits.
const INTERRUPTS: [Duration; 4] = [
    Duration::from_millis(25),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
];
/// How often a thread is held to write a request. On a machine without a free CPU the sidecar, which counts for little
/// in the scheduler, may not get its turn before the thread has to be let go; nothing is armed then.
const ARM_ATTEMPTS: u32 = 3;
/// Two scripts of this sidecar are not asked for in one process at the same time: each would take the other's request for
/// somebody else's. The turn ends when the script has started.
static STARTING: Turns = Turns::new();
/// How often somebody who waits for a turn looks whether it is still wanted.
const TURN_CHECK: Duration = Duration::from_millis(100);
/// Between two of these the target runs.
const ARM_PAUSE: Duration = Duration::from_millis(50);
/// Between a thread's accepting a request and the script's first sign of life lie an audit event, the opening and the
/// compilation of the file, and whatever else holds the GIL meanwhile.
const FIRST_SIGN: Duration = Duration::from_secs(2);
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
    let (reason, message) = match run.exec(runtime, request) {
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

/// What came of asking one thread.
enum Asked {
    Started,
    NotInTime,
}

impl Run<'_> {
    fn exec(&mut self, runtime: &Runtime, request: &ExecRequest) -> Result<(), Refusal> {
        let (turn, candidates) = self.turn(runtime, request)?;
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
        let count = u32::try_from(candidates.len()).unwrap_or(1);
        for (index, thread) in (0..count).zip(&candidates) {
            // Every thread that is left gets the same share of what time is left.
            let left = start.saturating_duration_since(Instant::now());
            let until = Instant::now() + left / (count - index).max(1);
            match self.ask(&carrier, thread, until) {
                Ok(Asked::Started) => {
                    drop(turn);
                    self.finish(&carrier, thread)?;
                    return Ok(());
                }
                Ok(Asked::NotInTime) => {}
                // Another thread may still do.
                Err(refusal) if refusal.reason == Reason::TargetBusy && count > 1 => {
                    busy = Some(refusal);
                }
                Err(refusal) => return Err(refusal),
            }
        }
        if let Some(busy) = busy {
            return Err(busy);
        }
        Err(self.not_started(&candidates))
    }

    /// Waits for a turn, and for scripts that run where this one is to run: for the latter not longer than the script may
    /// take to start.
    fn turn(
        &self,
        runtime: &Runtime,
        request: &ExecRequest,
    ) -> Result<(Turn, Vec<Candidate>), Refusal> {
        let patience = self
            .deadline
            .min(Instant::now() + Duration::from_millis(request.start_milliseconds));
        loop {
            if let Some(turn) = STARTING.take(self.process.pid(), TURN_CHECK) {
                match candidates(self.process, runtime, request) {
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

    fn not_started(&self, candidates: &[Candidate]) -> Refusal {
        let place = match candidates {
            [only] => match only
                .os
                .as_ref()
                .map(|os| (os.name.as_str(), os.syscall.as_ref()))
            {
                Some((name, Some(syscall))) => {
                    format!(
                        "thread {} ({name}) is blocked in {}",
                        only.tid, syscall.name
                    )
                }
                _ => format!("thread {} did not come to a safe point", only.tid),
            },
            several => format!("none of {} threads came to a safe point", several.len()),
        };
        let wake = match self.policy {
            WakePolicy::Never => "; wake: Auto would interrupt its wait",
            WakePolicy::Auto | WakePolicy::Interrupt => "",
        };
        refuse(
            Reason::TargetBlocked,
            format!(
                "{place}, so the script did not start in time and the request was taken back; the stacks show where{wake}"
            ),
        )
    }

    /// Asks one thread and waits until the script has started, or takes the request back.
    fn ask(
        &mut self,
        carrier: &Carrier,
        candidate: &Candidate,
        until: Instant,
    ) -> Result<Asked, Refusal> {
        let thread = &candidate.support;
        // It fails when the carrier has died, and then the target could not open the script.
        carrier
            .will_arm(self.process, slot(thread))
            .map_err(|error| {
                refuse(
                    Reason::SidecarFailed,
                    format!("the script's carrier has ended: {error}"),
                )
            })?;
        self.outcome.thread = Some(candidate.tid);
        // Holding the thread still to write the request ends a wait in epoll_wait.
        let hold = self.policy != WakePolicy::Never;
        let blocked = candidate
            .os
            .as_ref()
            .is_some_and(|os| os.state == ThreadState::Blocked);
        let mut attempts = ARM_ATTEMPTS;
        let mut request = loop {
            attempts = attempts.saturating_sub(1);
            match arm(
                self.process,
                candidate.tid,
                slot(thread),
                carrier.script_path(),
                hold,
            ) {
                Ok(armed) => break armed,
                // A killed sidecar may have left it there.
                Err(ArmError::Outstanding { .. })
                    if Instant::now() < until
                        && disarm_stale(self.process, slot(thread)).unwrap_or_default() => {}
                Err(error) if passes(&error, attempts) && Instant::now() < until => {
                    self.still_wanted()?;
                    if self.process.wait_exit(ARM_PAUSE) {
                        return Err(self.exited());
                    }
                }
                Err(error) => return Err(arm_refusal(&error)),
            }
        };
        self.armed = true;
        self.outcome.wake = if hold && blocked {
            Wake::Interrupt
        } else {
            Wake::None
        };
        let began = Instant::now();
        match self.wait_for_start(carrier, &mut request, began, until) {
            Ok(true) => {
                self.paused += request.accepted();
                self.outcome.started_after_milliseconds = Some(milliseconds(began.elapsed()));
                Ok(Asked::Started)
            }
            ended => {
                let (disarmed, paused) = request.disarm();
                self.paused += paused;
                match disarmed {
                    Disarmed::TakenBack => ended.map(|_| Asked::NotInTime),
                    Disarmed::Gone => Err(self.exited()),
                    Disarmed::StillArmed(error) => {
                        self.outcome.disarmed = false;
                        Err(refuse(
                            Reason::StillArmed,
                            format!(
                                "the request in thread {} could not be taken back and may still run: {}",
                                candidate.tid,
                                discover::sentence(&error)
                            ),
                        ))
                    }
                    // It was accepted in the last moment: what it started is answered for.
                    Disarmed::Accepted => match ended {
                        Err(refusal) if refusal.reason != Reason::Cancelled => Err(refusal),
                        _ if self.first_sign(carrier)? => {
                            self.outcome.started_after_milliseconds =
                                Some(milliseconds(began.elapsed()));
                            Ok(Asked::Started)
                        }
                        Err(refusal) => Err(refusal),
                        Ok(_) => Err(refused_by_target(carrier.script_path())),
                    },
                }
            }
        }
    }

    /// True once the script has started; false when it has not by `until`.
    fn wait_for_start(
        &mut self,
        carrier: &Carrier,
        request: &mut Armed<'_>,
        began: Instant,
        until: Instant,
    ) -> Result<bool, Refusal> {
        let mut interrupts = INTERRUPTS.iter().map(|after| began + *after).peekable();
        loop {
            self.update(carrier.result());
            if self.answer.started() {
                return Ok(true);
            }
            self.still_wanted()?;
            match request.waits() {
                Ok(true) => {}
                Ok(false) => {
                    return if self.first_sign(carrier)? {
                        Ok(true)
                    } else {
                        Err(refused_by_target(carrier.script_path()))
                    };
                }
                Err(_) if !self.process.alive() => return Err(self.exited()),
                Err(error) => {
                    return Err(refuse(discover::reason(&error), discover::sentence(&error)));
                }
            }
            let now = Instant::now();
            if now >= until {
                return Ok(false);
            }
            if interrupts.next_if(|at| now >= *at).is_some() {
                let step = if self.policy == WakePolicy::Never {
                    request.remind().map_err(StopError::Process)
                } else {
                    request.interrupt()
                };
                match step {
                    Ok(()) if self.policy == WakePolicy::Never => {}
                    Ok(()) => self.outcome.wake = Wake::Interrupt,
                    // In uninterruptible sleep it may yet come back in time, and another sidecar holds it for
                    // milliseconds.
                    Err(StopError::Unstoppable { .. } | StopError::Traced { .. }) => {}
                    Err(error) => return Err(stop_refusal(&error)),
                }
            }
            let next = interrupts.peek().map_or(until, |at| (*at).min(until));
            let pause = next
                .saturating_duration_since(now)
                .min(pace(began.elapsed()));
            if self.process.wait_exit(pause) {
                return Err(self.exited());
            }
        }
    }

    /// After the thread has accepted the request: whether the script gave a sign of life.
    fn first_sign(&mut self, carrier: &Carrier) -> Result<bool, Refusal> {
        let until = Instant::now() + FIRST_SIGN;
        loop {
            let gone = self.process.wait_exit(Duration::from_millis(1));
            self.update(carrier.result());
            if self.answer.started() {
                return Ok(true);
            }
            if gone {
                return Err(self.exited());
            }
            if Instant::now() >= until {
                return Ok(false);
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

/// How long to wait before looking again: often at first, then rarely.
fn pace(elapsed: Duration) -> Duration {
    match elapsed.as_millis() {
        0..100 => Duration::from_millis(1),
        100..2000 => Duration::from_millis(5),
        _ => Duration::from_millis(20),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn refused_by_target(path: &str) -> Refusal {
    refuse(
        Reason::AuditHookRefused,
        format!(
            "the target accepted the request and did not run the script: an audit hook refused the event \
             cpython.remote_debugger_script, or its open_code hook refused {path}; the target's stderr says which"
        ),
    )
}

fn carrier_refusal(error: &CarrierError) -> Refusal {
    let reason = match error {
        CarrierError::Process(error) => discover::reason(error),
        CarrierError::Identity { .. } | CarrierError::NoWay { .. } => Reason::PermissionDenied,
        CarrierError::Io { .. } => Reason::InternalError,
    };
    refuse(reason, discover::sentence(error))
}

fn stop_refusal(error: &StopError) -> Refusal {
    let reason = match error {
        StopError::Traced { .. } | StopError::StoppedBySignal { .. } => Reason::TargetBusy,
        StopError::Unstoppable { .. } => Reason::TargetBlocked,
        StopError::Process(sidewinder_linux::Error::Gone { .. }) => Reason::TargetExited,
        StopError::Process(error) => discover::reason(error),
    };
    refuse(reason, discover::sentence(error))
}

/// Whether asking again may do: `attempts` are left for a thread that was let go too early, and somebody else's request is
/// waited for.
fn passes(error: &ArmError, attempts: u32) -> bool {
    match error {
        ArmError::Expired { .. } => attempts > 0,
        ArmError::Outstanding { .. } => true,
        _ => false,
    }
}

fn arm_refusal(error: &ArmError) -> Refusal {
    match error {
        ArmError::Stop(error) => stop_refusal(error),
        ArmError::Process(sidewinder_linux::Error::Gone { .. }) => {
            refuse(Reason::TargetExited, discover::sentence(error))
        }
        ArmError::Process(source) => refuse(discover::reason(source), discover::sentence(error)),
        ArmError::Outstanding { .. } | ArmError::Expired { .. } => {
            refuse(Reason::TargetBusy, discover::sentence(error))
        }
        ArmError::ThreadGone { .. } => refuse(Reason::NoPythonProcess, discover::sentence(error)),
        ArmError::PathTooLong { .. } => refuse(Reason::InternalError, discover::sentence(error)),
    }
}
