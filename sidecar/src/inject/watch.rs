//! What outlives its keeper: a script that is still running when its request ends, and a request whose carrier was killed.

use std::time::{Duration, Instant};

use sidewinder_decode::{Limits, Runtime};
use sidewinder_linux::Process;
use sidewinder_linux::carrier::{Carrier, Gone};
use sidewinder_linux::program::Program;
use sidewinder_model::{Locals, Reason, ScriptEnd, Stacks};

use super::finish::give_back;
use super::queue::Claim;
use super::result::Answer;
use super::{Refusal, Run, milliseconds, payload, refuse};

/// How often the result is looked at: at first, and later on.
const LOOKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));
/// How long it is looked at often.
const AT_FIRST: Duration = Duration::from_secs(5);
/// How often the stack is looked at where no result can be written any more.
const STACK_LOOKS: Duration = Duration::from_secs(1);

/// A script that could not be stopped and is still running. Nobody gets the thread for another one until this is dropped.
#[derive(Debug)]
pub struct LeftRunning {
    process: Process,
    runtime: Runtime,
    program: Program,
    carrier: Carrier,
    tid: u64,
    began: Instant,
    _claim: Claim,
}

impl LeftRunning {
    /// The process in which it runs, by its id in its own PID namespace.
    pub fn pid(&self) -> i32 {
        self.process.ns_pid()
    }

    /// Waits for its end, at most for `limit`.
    pub fn wait(self, limit: Duration) -> ScriptEnd {
        let began = Instant::now();
        let mut next_stack = began + STACK_LOOKS;
        let reason = loop {
            let elapsed = began.elapsed();
            let pause = if elapsed < AT_FIRST { LOOKS.0 } else { LOOKS.1 };
            let gone = match self.carrier.wait(&self.process, pause) {
                // Nothing to wait for there any more.
                Gone::Carrier if self.process.wait_exit(pause) => Gone::Process,
                gone => gone,
            };
            // As long as its result can be written it says its end itself.
            let look = Instant::now() >= next_stack
                && (gone == Gone::Carrier || self.process.is_out_of_descriptors());
            if look {
                next_stack = Instant::now() + STACK_LOOKS;
            }
            if self.carrier.is_finished() {
                self.give_back_signals();
                break Reason::ScriptEnded;
            } else if gone == Gone::Process || self.program.is_over() {
                break Reason::TargetExited;
            } else if self.process.thread_stat(self.tid).is_none() || look && !self.on_the_stack() {
                // A thread may end without the script's last word: `pthread_exit`.
                break Reason::ScriptEnded;
            } else if elapsed >= limit {
                break Reason::Timeout;
            }
        };
        ScriptEnd {
            pid: self.pid(),
            reason,
            after_milliseconds: milliseconds(self.began.elapsed()),
        }
    }

    fn on_the_stack(&self) -> bool {
        let Ok(threads) = self.process.threads() else {
            return self.process.alive();
        };
        let stacks = sidewinder_decode::stacks(
            &self.process,
            &self.runtime,
            &threads,
            Locals::None,
            &Limits::default(),
        );
        runs_a_script(&stacks, self.tid)
    }

    /// What the script consumed while nobody waited for its answer any more belongs to the application all the same.
    fn give_back_signals(&self) {
        let mut answer = Answer::default();
        answer.read(self.carrier.result(), &mut 0);
        for signal in answer.signals() {
            // What cannot be given back any more is not.
            let _ = give_back(&self.process, &self.carrier, signal);
        }
    }
}

/// Whether the wrapper is on the thread's stack.
pub(super) fn runs_a_script(stacks: &Stacks, tid: u64) -> bool {
    stacks
        .interpreters
        .iter()
        .flat_map(|interpreter| &interpreter.threads)
        .filter(|thread| thread.tid == tid)
        .flat_map(|thread| &thread.frames)
        .any(|frame| &*frame.function == payload::FUNCTION)
}

impl Run<'_> {
    /// A script that is still running keeps its thread, and what carries it stays.
    pub(super) fn leave(&mut self, carrier: Carrier, mut claim: Claim, tid: u64, began: Instant) {
        if !self.outcome.still_running || self.unseen {
            return;
        }
        let Ok(process) = Process::open(self.process.pid()) else {
            return;
        };
        if process.start_time() != self.process.start_time() {
            return;
        }
        claim.left_running();
        self.left = Some(LeftRunning {
            runtime: self.runtime.clone(),
            program: process.program(),
            process,
            carrier,
            tid,
            began,
            _claim: claim,
        });
    }

    /// Waits a moment before a script has started; an error when the process, or what carries the script, has ended.
    pub(super) fn rest(&self, carrier: &Carrier, limit: Duration) -> Result<(), Refusal> {
        match carrier.wait(self.process, limit) {
            Gone::Nobody => Ok(()),
            Gone::Process => Err(self.exited()),
            Gone::Carrier => Err(refuse(
                Reason::SidecarFailed,
                "the child process that carries the script was killed before the script gave a sign of life: the script \
                 ran once at most, and is not run again",
            )),
        }
    }

    /// That the process executes another program, with which the script is gone.
    pub(super) fn replaced(&self) -> Option<Refusal> {
        if !self.program.is_over() || self.process.is_ending() {
            return None;
        }
        Some(refuse(
            Reason::TargetExited,
            format!(
                "process {} executed another program while the script ran",
                self.process.ns_pid()
            ),
        ))
    }

    /// Whatever a script writes after its carrier was killed is lost, its end included.
    pub(super) fn carrier_lost(&mut self, tid: u64) -> Refusal {
        let now = if self.answer.awaits() {
            // It stands on no stack while it waits, so its end will not be seen either.
            self.unseen = true;
            self.outcome.still_running = self.process.alive();
            "whether it has ended is not known"
        } else {
            let stacks = (self.look)();
            let runs = stacks
                .as_ref()
                .map_or_else(|| self.process.alive(), |stacks| runs_a_script(stacks, tid));
            self.outcome.still_running = runs;
            if runs {
                "it is still running"
            } else {
                "it has ended"
            }
        };
        refuse(
            Reason::SidecarFailed,
            format!(
                "the child process that carries the script was killed while the script ran: the script ran once, {now}, \
                 and what it answers from here on is lost"
            ),
        )
    }
}
