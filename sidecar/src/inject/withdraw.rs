//! Scripts that a target has accepted and not begun: what awaits needs a turn of its event loop.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sidewinder_linux::carrier::Carrier;
use sidewinder_model::Reason;

use super::{Refusal, Run, pace, refuse};

impl Run<'_> {
    /// Waits until the loop that an awaiting script is queued at begins it. When it has not by `until`, the script is
    /// withdrawn. False when it never will begin, since it is not wanted any more.
    pub(super) fn wait_for_loop(
        &mut self,
        carrier: &Carrier,
        until: Instant,
    ) -> Result<bool, Refusal> {
        let began = Instant::now();
        loop {
            let gone = self.process.wait_exit(pace(began.elapsed()));
            self.update(carrier.result());
            if self.answer.started() {
                return Ok(true);
            }
            if gone {
                return Err(self.exited());
            }
            let cancelled = self.cancel.load(Ordering::SeqCst);
            if !cancelled && Instant::now() < until {
                continue;
            }
            return match (self.withdraw(carrier)?, cancelled) {
                (false, _) => Ok(true),
                (true, true) => Ok(false),
                (true, false) => Err(self.loop_does_not_turn(began.elapsed())),
            };
        }
    }

    /// Has a script not begin that was accepted. False when it has begun already.
    pub(super) fn withdraw(&mut self, carrier: &Carrier) -> Result<bool, Refusal> {
        if let Err(error) = carrier.withdraw() {
            self.outcome.disarmed = false;
            return Err(refuse(
                Reason::StillArmed,
                format!("the script could not be withdrawn and may still run: {error}"),
            ));
        }
        self.update(carrier.result());
        Ok(!self.answer.started())
    }

    /// Why an awaiting script was withdrawn.
    pub(super) fn loop_does_not_turn(&self, waited: Duration) -> Refusal {
        refuse(
            Reason::TargetBlocked,
            format!(
                "the script awaits, and the event loop of thread {} did not turn within {:.1} s: a task or a callback \
                 blocks it. The script was withdrawn and will not run; the stacks show where the loop is",
                self.outcome.thread.unwrap_or_default(),
                waited.as_secs_f64()
            ),
        )
    }
}
