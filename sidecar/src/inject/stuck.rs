//! What is done about a script that waits in a call and is not to run any longer, and about signals that came meanwhile.

use std::time::Instant;

use sidewinder_decode::Limits;
use sidewinder_linux::carrier::{Carrier, Gone};
use sidewinder_linux::write::{Disarmed, hold};
use sidewinder_model::{Frame, Locals, WakePolicy};

use super::ask::STEPS;
use super::choose::Candidate;
use super::wake::{Waker, signal_waits};
use super::watch::runs_a_script;
use super::{Run, pace};
use crate::discover;

impl<'a> Run<'a> {
    /// Has the script's thread run what the carrier holds, nested in the script, wherever it waits. False when it has not
    /// come by `until`; nothing is armed then.
    pub(super) fn nest(
        &mut self,
        carrier: &Carrier,
        candidate: &Candidate,
        until: Instant,
    ) -> Result<bool, String> {
        let mut waker = Waker::new(self.process, self.runtime, candidate, self.policy);
        waker.prepare();
        let mut request = self
            .arm(carrier, &mut waker, candidate, until, false)
            .map_err(|refusal| refusal.message)?;
        let began = Instant::now();
        let mut steps = STEPS.iter().map(|after| began + *after).peekable();
        while matches!(request.waits(), Ok(true)) && Instant::now() < until {
            if carrier.wait(self.process, pace(began.elapsed())) != Gone::Nobody {
                break;
            }
            if self.policy != WakePolicy::Never
                && steps.next_if(|at| Instant::now() >= *at).is_some()
            {
                waker.prepare();
                // It is tried again at the next step.
                let _ = request.interrupt(&mut |stopped| waker.act(stopped));
            }
        }
        let (disarmed, paused) = request.disarm(&mut |stopped| waker.undo(stopped));
        self.paused += paused;
        match disarmed {
            Disarmed::Accepted | Disarmed::Gone => Ok(true),
            Disarmed::TakenBack => Ok(false),
            Disarmed::StillArmed(error) => {
                self.outcome.disarmed = false;
                Err(discover::sentence(&error))
            }
        }
    }

    /// Has the handler run that the stop script has put there, for which no signal is sent: the main thread is told that
    /// one has come, and a wait of Python's own is interrupted. Only while that handler stands.
    pub(super) fn trip(&mut self, carrier: &Carrier, candidate: &Candidate) -> bool {
        let waker = self.waker(candidate);
        let mut tripped = false;
        let held = hold(self.process, candidate.tid, &mut |stopped| {
            // The result is looked at while the thread stands still: nobody takes the handler away meanwhile.
            self.update(carrier.result());
            if let Some(signal) = self.answer.handler() {
                tripped = waker.trip(stopped, signal);
            }
            if tripped {
                // Foreign code looks when it looks.
                waker.interrupt_wait(stopped);
            }
        });
        self.paused += held.unwrap_or_default();
        tripped
    }

    /// Has the call fail in which the script waits, if it does.
    pub(super) fn fail_wait(&mut self, candidate: &Candidate) -> bool {
        let waker = self.waker(candidate);
        let mut failed = false;
        let held = hold(self.process, candidate.tid, &mut |stopped| {
            // Not one of the application's, should the script have ended.
            if let Some(innermost) = self.innermost(candidate) {
                failed = waker.fail_wait(stopped, self.waits_for_a_lock(&innermost));
            }
        });
        self.paused += held.unwrap_or_default();
        failed
    }

    /// A signal that came in the last moments of a script waits for its handler until the main thread returns from its
    /// wait: the wait is interrupted once.
    pub(super) fn hand_over_signals(&mut self, candidate: &Candidate) {
        if !candidate.is_main() || self.policy != WakePolicy::Auto {
            return;
        }
        if signal_waits(self.process, self.runtime) {
            let waker = self.waker(candidate);
            let held = hold(self.process, candidate.tid, &mut |stopped| {
                waker.interrupt_wait(stopped);
            });
            self.paused += held.unwrap_or_default();
        }
    }

    /// The innermost frame of the candidate's thread, if a script runs there.
    pub(super) fn innermost(&self, candidate: &Candidate) -> Option<Frame> {
        let thread = self.process.thread(candidate.tid)?;
        let limits = Limits::default();
        let (process, runtime) = (self.process, self.runtime);
        let stacks = sidewinder_decode::stacks(process, runtime, &[thread], Locals::None, &limits);
        if !runs_a_script(&stacks, candidate.tid) {
            return None;
        }
        let mut threads = stacks.interpreters.into_iter().flat_map(|one| one.threads);
        let thread = threads.find(|thread| thread.tid == candidate.tid)?;
        thread.frames.into_iter().next_back()
    }

    /// Whether what a frame calls is `acquire` of a lock, which can fail, and not C code that takes a lock of its own on
    /// the way, which goes on as if it had it: a stream's buffer does.
    fn waits_for_a_lock(&self, frame: &Frame) -> bool {
        match (&*frame.file, &*frame.function) {
            ("<sidewinder>", _) => frame
                .line
                .and_then(|line| usize::try_from(line).ok()?.checked_sub(1))
                .and_then(|line| self.script.lines().nth(line))
                .is_some_and(asks_for_a_lock),
            (file, "Condition.wait") => file.ends_with("/threading.py"),
            _ => false,
        }
    }

    fn waker<'b>(&self, candidate: &'b Candidate) -> Waker<'b>
    where
        'a: 'b,
    {
        let mut waker = Waker::new(self.process, self.runtime, candidate, self.policy);
        waker.prepare();
        waker
    }
}

/// Whether a line of a script asks for a lock and does nothing else that could wait.
fn asks_for_a_lock(line: &str) -> bool {
    let line = line.trim();
    line.contains(".acquire(")
        || (line.starts_with("with ") && line.ends_with(':') && !line.contains('('))
}

#[cfg(test)]
mod tests {
    use super::asks_for_a_lock;

    #[test]
    fn a_line_that_asks_for_a_lock_is_told_from_one_that_may_wait_elsewhere() {
        for (line, asks) in [
            ("    lock.acquire()", true),
            ("if app.lock.acquire(timeout=5):", true),
            ("with app.lock:", true),
            ("with open(path) as file:", false),
            ("with lock: stream.flush()", false),
            ("stream.flush()", false),
            ("queue.SimpleQueue().get()", false),
            ("", false),
        ] {
            assert_eq!(asks_for_a_lock(line), asks, "{line}");
        }
    }
}
