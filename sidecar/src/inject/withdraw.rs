//! Scripts that a target has accepted and not begun: what awaits needs a turn of its event loop.

use std::time::{Duration, Instant};

use sidewinder_linux::carrier::{Carrier, Gone};
use sidewinder_model::Reason;

use super::{Refusal, Run, pace, refuse};

impl Run<'_> {
    /// Waits until the loop that an awaiting script is queued at begins it. When it has not by `until`, or is not wanted
    /// any more, the script is withdrawn.
    pub(super) fn wait_for_loop(
        &mut self,
        carrier: &Carrier,
        until: Instant,
    ) -> Result<(), Refusal> {
        let began = Instant::now();
        loop {
            let gone = carrier.wait(self.process, pace(began.elapsed()));
            self.update(carrier.result());
            if self.answer.started() {
                return Ok(());
            }
            match gone {
                Gone::Nobody => {}
                Gone::Process => return Err(self.exited()),
                // Nothing begins that cannot say so.
                Gone::Carrier => {
                    return Err(refuse(
                        Reason::SidecarFailed,
                        "the script's carrier was killed before the event loop began the script, which will not run",
                    ));
                }
            }
            let unwanted = self.still_wanted().err();
            if unwanted.is_none() && Instant::now() < until {
                continue;
            }
            return if self.withdraw(carrier)? {
                Err(unwanted.unwrap_or_else(|| self.loop_does_not_turn(began.elapsed())))
            } else {
                Ok(())
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
