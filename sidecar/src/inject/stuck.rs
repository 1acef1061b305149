//! What is done about a script that waits in a call and is not to run any longer, and about signals that came meanwhile.

use std::time::Instant;

use sidewinder_decode::Limits;
use sidewinder_linux::carrier::{Carrier, Gone};
use sidewinder_linux::write::{Disarmed, hold};
use sidewinder_model::{Locals, WakePolicy};

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
            failed = self.runs_script(candidate) && waker.fail_wait(stopped);
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

    /// Whether a script runs in the candidate's thread.
    fn runs_script(&self, candidate: &Candidate) -> bool {
        let Some(thread) = self.process.thread(candidate.tid) else {
            return false;
        };
        let limits = Limits::default();
        let (process, runtime) = (self.process, self.runtime);
        let stacks = sidewinder_decode::stacks(process, runtime, &[thread], Locals::None, &limits);
        runs_a_script(&stacks, candidate.tid)
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
