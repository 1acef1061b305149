//! Asking one thread: the request is written, the thread is made to answer where it does not come by itself, and what was
//! not accepted in time is taken back.

use std::time::{Duration, Instant};

use sidewinder_decode::{OsThread, remote_exec};
use sidewinder_linux::carrier::Carrier;
use sidewinder_linux::stop::StopError;
use sidewinder_linux::stopped::Stopped;
use sidewinder_linux::write::{ArmError, Armed, Disarmed, arm, disarm_copies, disarm_stale};
use sidewinder_model::{Reason, ThreadState, WakePolicy};

use super::choose::Candidate;
use super::wake::Waker;
use super::{ARM_PAUSE, Refusal, Run, milliseconds, pace, refuse, slot};
use crate::discover;

/// When a thread that has not come is held again and made to, counted from arming. More than once, since it may have been
/// between two waits, and since what was done first may not have helped.
pub(super) const STEPS: [Duration; 6] = [
    Duration::from_millis(25),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// How long a thread that was let go may take to be back in its wait, so that the stacks show that.
const SETTLE: Duration = Duration::from_millis(100);
/// How often a thread is held to write a request. On a machine without a free CPU the sidecar, which counts for little
/// in the scheduler, may not get its turn before the thread has to be let go; nothing is armed then.
const ARM_ATTEMPTS: u32 = 10;
/// Between a thread's accepting a request and the script's first sign of life lie an audit event, the opening and the
/// compilation of the file, and whatever else holds the GIL meanwhile.
const FIRST_SIGN: Duration = Duration::from_secs(2);
/// A thread that wants to run and had less time on a CPU than this has not come so far yet, however long ago it accepted:
/// its pod has used up its CPU limit, or the node has too much to do.
const FIRST_STEPS: Duration = Duration::from_millis(500);

/// What came of asking one thread.
pub(super) enum Asked {
    Started,
    NotInTime,
}

impl Run<'_> {
    /// `obstacles` are those of the threads for which there was one.
    pub(super) fn not_started(
        &self,
        candidates: &[Candidate],
        obstacles: &[(u64, String)],
    ) -> Refusal {
        let thread = |candidate: &Candidate| {
            let name = candidate.os.as_ref().map(|os| os.name.as_str());
            format!("thread {} ({})", candidate.tid, name.unwrap_or("?"))
        };
        let why = |candidate: &Candidate| {
            let obstacle = obstacles.iter().find(|(tid, _)| *tid == candidate.tid);
            match (obstacle, &candidate.os) {
                (Some((_, obstacle)), _) => format!(" ({obstacle})"),
                (
                    None,
                    Some(OsThread {
                        syscall: Some(syscall),
                        ..
                    }),
                ) => format!(" (it was blocked in {})", syscall.name),
                (None, _) => String::new(),
            }
        };
        let place = match candidates {
            [] => "no thread was asked".to_owned(),
            [only] => format!("{} did not come to a safe point{}", thread(only), why(only)),
            [first, others @ ..] => format!(
                "{}{} and {} others did not come to a safe point",
                thread(first),
                why(first),
                others.len()
            ),
        };
        let advice = match self.policy {
            WakePolicy::Never => "; wake: Auto would interrupt its wait",
            WakePolicy::Interrupt => "; wake: Auto would do more",
            WakePolicy::Auto => "",
        };
        refuse(
            Reason::TargetBlocked,
            format!(
                "{place}, so the script did not start in time and the request was taken back; the stacks show \
                 where{advice}"
            ),
        )
    }

    /// Asks one thread and waits until the script has started, or takes the request back.
    pub(super) fn ask(
        &mut self,
        carrier: &Carrier,
        waker: &mut Waker<'_>,
        candidate: &Candidate,
        until: Instant,
    ) -> Result<Asked, Refusal> {
        let thread = &candidate.support;
        // It fails when the carrier has died, and then the target could not open the script.
        carrier.will_arm(slot(thread)).map_err(|error| {
            refuse(
                Reason::SidecarFailed,
                format!("the script's carrier has ended: {error}"),
            )
        })?;
        self.outcome.thread = Some(candidate.tid);
        if candidate
            .os
            .as_ref()
            .is_some_and(|os| os.state == ThreadState::Blocked)
        {
            waker.prepare();
        }
        let began = Instant::now();
        let mut request = self.arm(carrier, waker, candidate, until, true)?;
        self.armed = true;
        let started =
            self.wait_for_start(carrier, &mut request, waker, candidate.tid, began, until);
        self.outcome.wake = waker.wake();
        let copies = || {
            disarm_copies(
                self.process,
                candidate.tid,
                slot(thread),
                carrier.script_path(),
            );
        };
        if let Ok(true) = started {
            self.paused += request.accepted();
            copies();
            self.outcome.started_after_milliseconds = Some(milliseconds(began.elapsed()));
            return Ok(Asked::Started);
        }
        let (disarmed, paused) = request.disarm(&mut |stopped| waker.undo(stopped));
        self.paused += paused;
        copies();
        match disarmed {
            Disarmed::TakenBack => {
                self.settle(candidate.tid);
                started.map(|_| Asked::NotInTime)
            }
            Disarmed::Gone => match started {
                Err(refusal) if refusal.reason == Reason::TargetExited => Err(refusal),
                _ => Err(self.exited()),
            },
            Disarmed::StillArmed(error) => {
                self.outcome.disarmed = false;
                let what = if carrier.take_away() {
                    "its script is gone, so the target will find nothing to run and say so on its stderr"
                } else {
                    "it may still run"
                };
                Err(refuse(
                    Reason::StillArmed,
                    format!(
                        "the request in thread {} could not be taken back; {what}: {}",
                        candidate.tid,
                        discover::sentence(&error)
                    ),
                ))
            }
            // It was accepted in the last moment: what it started is answered for.
            Disarmed::Accepted => match started {
                Err(refusal)
                    if !matches!(
                        refusal.reason,
                        Reason::Cancelled | Reason::TargetBusy | Reason::InterpreterFinalizing
                    ) =>
                {
                    Err(refusal)
                }
                _ if self.first_sign(carrier, candidate.tid, until)? => {
                    self.outcome.started_after_milliseconds = Some(milliseconds(began.elapsed()));
                    Ok(Asked::Started)
                }
                Err(refusal) => Err(refusal),
                Ok(_) => Err(self.refused(carrier, candidate.interpreter)),
            },
        }
    }

    /// Waits until a thread that was held is in its wait again, if it waits.
    pub(super) fn settle(&self, tid: u64) {
        let until = Instant::now() + SETTLE;
        while Instant::now() < until && !self.process.off_cpu(tid) {
            if self.process.wait_exit(Duration::from_millis(1)) {
                return;
            }
        }
    }

    /// Writes the request, more than once where that may help; `cancellable` unless it is to end what was cancelled.
    pub(super) fn arm<'p>(
        &self,
        carrier: &Carrier,
        waker: &mut Waker<'_>,
        candidate: &Candidate,
        until: Instant,
        cancellable: bool,
    ) -> Result<Armed<'p>, Refusal>
    where
        Self: 'p,
    {
        let slot = slot(&candidate.support);
        let mut attempts = ARM_ATTEMPTS;
        loop {
            attempts = attempts.saturating_sub(1);
            let mut act = |stopped: &Stopped<'_>| waker.act(stopped);
            // Holding the thread still to write the request ends a wait in epoll_wait.
            let wake = (self.policy != WakePolicy::Never).then_some(&mut act as _);
            let error = match arm(
                self.process,
                candidate.tid,
                slot,
                carrier.script_path(),
                wake,
            ) {
                Ok(armed) => return Ok(armed),
                Err(error) => error,
            };
            let in_time = Instant::now() < until;
            // A killed sidecar may have left it there.
            if in_time
                && matches!(error, ArmError::Outstanding { .. })
                && disarm_stale(self.process, slot).unwrap_or_default()
            {
                continue;
            }
            if !in_time || !passes(&error, attempts) {
                return Err(arm_refusal(&error));
            }
            if cancellable {
                self.still_wanted()?;
            }
            self.rest(carrier, ARM_PAUSE)?;
        }
    }

    /// True once the script has started; false when it has not by `until`.
    fn wait_for_start(
        &mut self,
        carrier: &Carrier,
        request: &mut Armed<'_>,
        waker: &mut Waker<'_>,
        tid: u64,
        began: Instant,
        until: Instant,
    ) -> Result<bool, Refusal> {
        let mut steps = STEPS.iter().map(|after| began + *after).peekable();
        let mut traced = None;
        loop {
            self.update(carrier.result());
            if self.answer.started() {
                return Ok(true);
            }
            self.still_wanted()?;
            match request.waits() {
                Ok(true) if remote_exec::finalizing(self.process, self.runtime) == Some(true) => {
                    return Err(refuse(
                        Reason::InterpreterFinalizing,
                        format!(
                            "the Python in process {} began to shut down before the script had started; the request was \
                             taken back",
                            self.process.ns_pid()
                        ),
                    ));
                }
                Ok(true) => {}
                Ok(false) => {
                    return if self.first_sign(carrier, tid, until)? {
                        Ok(true)
                    } else {
                        Err(self.refused(carrier, waker.interpreter()))
                    };
                }
                Err(_) if !self.process.alive() => return Err(self.exited()),
                Err(error) => {
                    return Err(refuse(discover::reason(&error), discover::sentence(&error)));
                }
            }
            let now = Instant::now();
            if now >= until {
                return traced.map_or(Ok(false), |error| Err(stop_refusal(&error)));
            }
            if steps.next_if(|at| now >= *at).is_some() {
                let step = if self.policy == WakePolicy::Never {
                    request.remind().map_err(StopError::Process)
                } else {
                    waker.prepare();
                    request.interrupt(&mut |stopped| waker.act(stopped))
                };
                match step {
                    // In uninterruptible sleep it may yet come back in time, and another sidecar holds it for
                    // milliseconds.
                    Ok(()) | Err(StopError::Unstoppable { .. }) => traced = None,
                    Err(error @ StopError::Traced { .. }) => traced = Some(error),
                    Err(error) => return Err(stop_refusal(&error)),
                }
            }
            let next = steps.peek().map_or(until, |at| (*at).min(until));
            let pause = next
                .saturating_duration_since(now)
                .min(pace(began.elapsed()));
            self.rest(carrier, pause)?;
        }
    }

    /// After the thread has accepted the request: whether the script gave a sign of life. One that did not will not run
    /// any more.
    fn first_sign(&mut self, carrier: &Carrier, tid: u64, start: Instant) -> Result<bool, Refusal> {
        let until = Instant::now() + FIRST_SIGN;
        let before = self.ran(tid);
        loop {
            let rested = self.rest(carrier, Duration::from_millis(1));
            self.update(carrier.result());
            if self.answer.started() {
                return Ok(true);
            }
            rested?;
            if self.answer.queued() {
                return self.wait_for_loop(carrier, start).map(|()| true);
            }
            if self.answer.withdrawn() {
                return Ok(false);
            }
            let now = Instant::now();
            if now < until || (now < start && self.starved(tid, before)) {
                continue;
            }
            return Ok(!self.withdraw(carrier)?);
        }
    }

    /// Whether a thread wants to run, and has hardly been on a CPU since it had run for so long.
    fn starved(&self, tid: u64, before: Option<Duration>) -> bool {
        let Some((before, now)) = before.zip(self.ran(tid)) else {
            return false;
        };
        now.saturating_sub(before) < FIRST_STEPS && !self.process.off_cpu(tid)
    }

    fn ran(&self, tid: u64) -> Option<Duration> {
        let counted = self.process.schedstat(tid)?;
        Some(Duration::from_nanos(counted.run_nanoseconds))
    }
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

/// Whether asking again may do: `attempts` are left for a thread that was let go too early; somebody else's request is
/// waited for, and so is a thread that did not stop.
fn passes(error: &ArmError, attempts: u32) -> bool {
    match error {
        ArmError::Expired { .. } => attempts > 0,
        ArmError::Outstanding { .. } | ArmError::Stop(StopError::Unstoppable { .. }) => true,
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
