//! The end of a script that has started: by itself, or made to end when it is not to run any longer.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sidewinder_linux::Process;
use sidewinder_linux::carrier::{Carrier, Gone};
use sidewinder_model::{Reason, WakePolicy};

use super::choose::Candidate;
use super::result::signal_name;
use super::{ARM_PAUSE, Refusal, Run, milliseconds, pace, payload, refuse, slot};
use crate::discover;

/// How long a script that is not to run any longer has to end, in all.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// How often it is told to: at first its own code ends, then what it called in libraries as well, as it stands then and
/// as it stands later.
const TIMES: u8 = 3;
/// How long each time may take until it shows: a quarter of a second for what the script undoes itself, and the rest for
/// a machine without a free CPU.
const EACH_TIME: Duration = Duration::from_millis(600);
/// How long after it was told to end a script's call is made to return, and again after that: longer than the quarter
/// of a second that it has to undo things.
const PUSH: Duration = Duration::from_millis(280);

impl Run<'_> {
    /// Waits for the end of a script that has started, and has it end when time is up.
    pub(super) fn finish(
        &mut self,
        carrier: &Carrier,
        candidate: &Candidate,
    ) -> Result<(), Refusal> {
        let began = Instant::now();
        let ended = loop {
            let gone = carrier.wait(self.process, pace(began.elapsed()));
            self.update(carrier.result());
            if self.answer.finished() {
                break Ok(());
            }
            match gone {
                Gone::Nobody => {}
                Gone::Process => break Err(self.exited_meanwhile()),
                Gone::Carrier => break Err(self.carrier_lost(candidate.tid)),
            }
            if let Some(refusal) = self.replaced() {
                break Err(refusal);
            }
            if self.answer.withdrawn() {
                return Err(self.loop_does_not_turn(began.elapsed()));
            }
            let reason = if self.cancel.load(Ordering::SeqCst) {
                Reason::Cancelled
            } else if Instant::now() >= self.deadline {
                self.outcome.stacks = (self.look)();
                Reason::ScriptTimeout
            } else {
                continue;
            };
            let message = self.stop(carrier, candidate, reason);
            break Err(refuse(reason, message));
        };
        self.outcome.duration_milliseconds = milliseconds(began.elapsed());
        let signals = self.answer.signals();
        if !signals.is_empty() {
            // One that came while the thread is still on its way out of a call in place would be handled in there, and its
            // exception meet foreign code.
            self.settle(candidate.tid);
        }
        for signal in signals {
            // The application never saw it, since its handler raised while the script ran.
            if let Err(error) = give_back(self.process, carrier, signal) {
                self.answer.note(&format!(
                    "{} came while the script ran and was not sent again: {error}",
                    signal_name(signal)
                ));
            }
        }
        if self.answer.finished() {
            self.hand_over_signals(candidate);
        }
        ended
    }

    /// Has a script end that is not to run any longer. Says what came of it.
    fn stop(&mut self, carrier: &Carrier, candidate: &Candidate, reason: Reason) -> String {
        let why = if reason == Reason::Cancelled {
            "cancelled while the script ran"
        } else {
            "the script started and did not end in time"
        };
        if self.is_mute(candidate) {
            self.outcome.still_running = false;
            return format!(
                "{why}; it has ended and could not say so: the process has as many files open as it may (RLIMIT_NOFILE)"
            );
        }
        let until = Instant::now() + STOP_LIMIT;
        let mut failure = None;
        for times in 1..=TIMES {
            if self.over(carrier) {
                break;
            }
            let until = until.min(if times == TIMES {
                until
            } else {
                Instant::now() + EACH_TIME
            });
            // What did not go this time may go the next: the machine may be busy.
            failure = self.tell_to_end(carrier, candidate, times, until).err();
        }
        self.outcome.still_running = !self.over(carrier);
        let what = match (&failure, self.outcome.still_running) {
            (Some(error), true) => format!("it is still running and could not be stopped: {error}"),
            (None, true) if self.answer.told_to_end() > 0 => {
                "it was told to end and is still running: it waits in a call or computes in C"
                    .to_owned()
            }
            (None, true) => "it is still running: it waits in a call or computes in C".to_owned(),
            (_, false) if !self.process.alive() => "the process has ended".to_owned(),
            (_, false) if self.answer.told_to_end() > 0 => "it was stopped".to_owned(),
            (_, false) => "it has ended by itself since".to_owned(),
        };
        let advice = if reason == Reason::Cancelled {
            ""
        } else {
            ". Its output so far stands here, and the stacks show where it was. Raise timeoutSeconds, or have the script \
             end by itself"
        };
        format!("{why}; {what}{advice}")
    }

    /// Whether the script has ended, as its result says now.
    fn over(&mut self, carrier: &Carrier) -> bool {
        self.update(carrier.result());
        self.answer.finished() || !self.process.alive() || self.program.is_over()
    }

    /// Asks the script's thread a second time: nested in the script, or wherever the loop is that the script waits at, its
    /// own code is made to raise. Waits until that shows, and takes the request back if nobody came by.
    fn tell_to_end(
        &mut self,
        carrier: &Carrier,
        candidate: &Candidate,
        times: u8,
        until: Instant,
    ) -> Result<(), String> {
        // The target has read and closed the script's file before it compiled it.
        carrier
            .load(&payload::stop(
                carrier.result_path(),
                self.process.ns_pid(),
                times,
            ))
            .map_err(|error| format!("cannot write the memfd: {error}"))?;
        carrier
            .will_arm(slot(&candidate.support))
            .map_err(|error| format!("the script's carrier has ended: {error}"))?;
        if !self.nest(carrier, candidate, until)? {
            return Ok(());
        }
        let began = Instant::now();
        let mut push = began + PUSH;
        while Instant::now() < until {
            let gone = carrier.wait(self.process, Duration::from_millis(2));
            if gone != Gone::Nobody || self.over(carrier) {
                break;
            }
            // It executes no code of its own that could raise: it waits in a call.
            if self.policy == WakePolicy::Auto && Instant::now() >= push {
                push = Instant::now() + PUSH;
                if !self.trip(carrier, candidate) {
                    self.fail_wait(candidate);
                }
            }
        }
        Ok(())
    }

    /// Whether the script has ended and cannot write its answer, for want of a descriptor. What awaits, or yields to other
    /// greenlets, is not on the thread's stack and runs all the same, so this is asked only where nothing can be opened.
    fn is_mute(&self, candidate: &Candidate) -> bool {
        self.process.is_out_of_descriptors()
            && !self.answer.queued()
            && self.innermost(candidate).is_none()
            && !self.process.wait_exit(ARM_PAUSE)
            && self.innermost(candidate).is_none()
    }

    fn exited_meanwhile(&self) -> Refusal {
        refuse(
            Reason::TargetExited,
            format!(
                "process {} ended while the script ran",
                self.process.ns_pid()
            ),
        )
    }
}

/// Sends the application a signal that a script consumed. Not one that it has no handler for any more: it would end the
/// process, as it would not have when it came.
pub(super) fn give_back(process: &Process, carrier: &Carrier, signal: u8) -> Result<(), String> {
    let status = process.status().map_err(|e| discover::sentence(&e))?;
    if !status.catches(signal) {
        return Err("its handler is gone since".to_owned());
    }
    carrier
        .signal(process, signal)
        .map_err(|error| error.to_string())
}
