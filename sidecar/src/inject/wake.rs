//! Making a blocked thread answer: what is looked at while it stands still, and what is done then.

mod choose;

use std::fmt::Write as _;
use std::ops::Range;

use sidewinder_decode::native::{Entry, Native};
use sidewinder_decode::remote_exec::queue::Writes;
use sidewinder_decode::remote_exec::{
    CALLS_TO_DO, PendingCalls, Queue, SIGNALS_PENDING, Signals, Status, pending_calls,
};
use sidewinder_decode::{Addr, Mapping, Memory as _, Runtime};
use sidewinder_linux::registers::{CALL_STACK, Interrupted, Registers};
use sidewinder_linux::stopped::{Change, Failure, Stopped};
use sidewinder_linux::{Process, procfs};
use sidewinder_model::{Wake, WakePolicy};

use super::choose::Candidate;
use choose::{Call, Obstacle, Seen, Step, Tried, step};

/// Has one thread answer one request.
pub(super) struct Waker<'a> {
    process: &'a Process,
    runtime: &'a Runtime,
    candidate: &'a Candidate,
    policy: WakePolicy,
    prepared: Option<Prepared>,
    /// What it waited in before it was stopped.
    wait: Option<(u64, [u64; 6])>,
    tried: Tried,
    wake: Wake,
    obstacle: Option<(Obstacle, Option<&'static str>)>,
}

/// What is looked up before the thread stands still.
struct Prepared {
    native: Native,
    mappings: Vec<Mapping>,
    stack_limit: u64,
    shadow_stack: bool,
    gils: Vec<Range<u64>>,
    queue: Option<PendingCalls>,
    signals: Option<Signals>,
}

impl<'a> Waker<'a> {
    pub(super) fn new(
        process: &'a Process,
        runtime: &'a Runtime,
        candidate: &'a Candidate,
        policy: WakePolicy,
    ) -> Self {
        Self {
            process,
            runtime,
            candidate,
            policy,
            prepared: None,
            wait: None,
            tried: Tried::default(),
            wake: Wake::None,
            obstacle: None,
        }
    }

    /// The address of the interpreter that is to run the script.
    pub(super) fn interpreter(&self) -> Addr {
        self.candidate.interpreter
    }

    /// How the thread has been made to answer so far.
    pub(super) fn wake(&self) -> Wake {
        self.wake
    }

    /// Why it has not answered, as far as it was seen.
    pub(super) fn obstacle(&self) -> Option<String> {
        let (obstacle, call) = self.obstacle?;
        let mut text = String::new();
        if let Some(call) = call {
            // Writing to a string does not fail.
            let _ = write!(text, "in {call}: ");
        }
        let _ = write!(text, "{obstacle}");
        Some(text)
    }

    /// Looks up what a step may need, before the thread stands still. The first time costs about a millisecond, so this is
    /// not for a thread that comes by itself.
    pub(super) fn prepare(&mut self) {
        if self.policy != WakePolicy::Auto {
            return;
        }
        self.wait = self.process.wait_of(self.candidate.tid);
        if self.prepared.is_some() {
            return;
        }
        let Ok(mappings) = self.process.mappings() else {
            return;
        };
        let main = self.candidate.is_main();
        self.prepared = Some(Prepared {
            native: Native::prepare(self.process, &mappings, self.runtime),
            mappings,
            stack_limit: self.process.stack_limit(),
            shadow_stack: self
                .process
                .thread_status(self.candidate.tid)
                .is_none_or(|status| status.shadow_stack),
            gils: self.runtime.gil_ranges(self.process),
            queue: main
                .then(|| pending_calls(self.process, self.runtime, self.candidate.interpreter))
                .flatten(),
            signals: main
                .then(|| Signals::locate(self.process, self.runtime))
                .flatten(),
        });
    }

    /// Does to the thread what fits what it is in.
    pub(super) fn act(&mut self, stopped: &Stopped<'_>) {
        // About to get a signal, it comes by; in another wait than before, it is looked at again.
        let Some(registers) = stopped
            .registers()
            .and_then(|registers| registers.resumed(self.wait))
        else {
            return;
        };
        let step = self.decide(&registers);
        let done = match step {
            Step::LetGo | Step::Cannot(_) => true,
            Step::ForceReturn => fail(stopped, &registers, Failure::Interrupted),
            Step::QueueCall => self.queue(stopped, &registers),
            Step::InPlace(resume) => self.entry().is_some_and(|entry| {
                let state = self.candidate.support.thread_state;
                stopped
                    .call_in_place(&registers, resume, entry, state)
                    .is_ok()
            }),
        };
        let blocked = registers.interrupted().is_some();
        self.tried.stopped |= blocked;
        if !done {
            return;
        }
        self.obstacle = None;
        match step {
            Step::LetGo if !blocked && !self.returned(&registers) => {}
            Step::Cannot(obstacle) => self.obstacle = Some((obstacle, registers.call_name())),
            _ => self.wake = step.wake(),
        }
        self.tried.forced |= step == Step::ForceReturn;
        self.tried.queued |= step == Step::QueueCall;
    }

    /// Has a wait of Python's own return, so that it looks for what has come: a signal's handler, for example. Not one
    /// that then returns to the application.
    pub(super) fn interrupt_wait(&self, stopped: &Stopped<'_>) -> bool {
        self.own_wait(stopped).is_some_and(|(registers, call)| {
            !call.returns_to_application() && fail(stopped, &registers, Failure::Interrupted)
        })
    }

    /// Has the call fail in which a script waits. Only one of Python's own, which makes an exception of it. A lock is told
    /// that its time is over, if `lock` says that it was asked for in a way that can fail: C code that waits for a lock
    /// takes anything but the lock for it, or ends the process.
    pub(super) fn fail_wait(&self, stopped: &Stopped<'_>, lock: bool) -> bool {
        self.own_wait(stopped).is_some_and(|(registers, call)| {
            if call.name == "futex" {
                lock && fail(stopped, &registers, Failure::TimedOut)
            } else {
                fail(stopped, &registers, Failure::Cancelled)
            }
        })
    }

    /// The registers of a thread that waits in a call of Python's own without the GIL, and the call.
    fn own_wait(&self, stopped: &Stopped<'_>) -> Option<(Registers, Call<'static>)> {
        let registers = stopped.registers()?.resumed(self.wait)?;
        let call = self.call(&registers, registers.interrupted()?, registers.call_name()?);
        let waits = call.own == Some(true) && !call.for_gil && !self.attached();
        waits.then_some((registers, call))
    }

    fn waits_for_gil(&self, registers: &Registers, name: &str) -> bool {
        let [first, ..] = registers.arguments();
        let mut gils = self.prepared.iter().flat_map(|prepared| &prepared.gils);
        name == "futex" && gils.any(|gil| gil.contains(&first))
    }

    /// Marks a signal as come, which is what its C handler does, and says so to the main thread.
    pub(super) fn trip(&self, stopped: &Stopped<'_>, signal: u8) -> bool {
        let changes = || {
            let signals = self.prepared.as_ref()?.signals.as_ref()?;
            let one = 1_i32.to_le_bytes().to_vec();
            Some(vec![
                Change::Bytes(signals.tripped(signal.into())?, one.clone()),
                Change::Bytes(signals.is_tripped, one),
                Change::Bits(self.candidate.support.eval_breaker, SIGNALS_PENDING),
            ])
        };
        changes().is_some_and(|changes| stopped.write(changes).is_ok())
    }

    /// Whether the stop has ended its wait with what was done by then: part of what is to be sent, for example.
    fn returned(&self, registers: &Registers) -> bool {
        registers.interrupted().is_none() && registers.call().is_some() && self.wait.is_some()
    }

    /// Whether a signal waits for its Python handler.
    pub(super) fn tripped(&self) -> bool {
        self.prepared
            .as_ref()
            .and_then(|p| p.signals.as_ref())
            .is_some_and(|signals| self.word(signals.is_tripped).is_none_or(|word| word != 0))
    }

    /// Whether the GIL is with any of its thread states. What cannot be read is taken for the worst.
    fn attached(&self) -> bool {
        let mut statuses = self.candidate.statuses.iter();
        statuses.any(|at| self.word(*at).is_none_or(|status| Status(status).active()))
    }

    fn word(&self, at: Addr) -> Option<u32> {
        let mut word = [0; 4];
        self.process.read(at, &mut word).ok()?;
        Some(u32::from_le_bytes(word))
    }

    /// Takes back what was done for a request that was not accepted.
    pub(super) fn undo(&self, stopped: &Stopped<'_>) {
        let writes = || {
            let (calls, queue) = self.prepared.as_ref()?.queue(self.process)?;
            queue.without_last(self.process, calls, self.entry()?.check_signals)
        };
        if self.tried.queued
            && let Some(writes) = writes()
        {
            // Left there, it would be a call that finds nothing to do.
            let _ = stopped.write(bytes(writes));
        }
    }

    fn queue(&self, stopped: &Stopped<'_>, registers: &Registers) -> bool {
        let writes = || {
            let (calls, queue) = self.prepared.as_ref()?.queue(self.process)?;
            let writes = queue.with(calls, self.entry()?.check_signals)?;
            let mut changes = bytes(writes);
            let eval_breaker = self.candidate.support.eval_breaker;
            changes.push(Change::Bits(eval_breaker, CALLS_TO_DO));
            Some(changes)
        };
        writes().is_some_and(|writes| {
            stopped
                .fail_call(registers, Failure::Interrupted, writes)
                .is_ok()
        })
    }

    fn entry(&self) -> Option<&Entry> {
        self.prepared.as_ref()?.native.entry.as_ref().ok()
    }

    fn decide(&self, registers: &Registers) -> Step {
        let Some(prepared) = &self.prepared else {
            return Step::LetGo;
        };
        let statuses = &self.candidate.statuses;
        let name = registers.call_name().unwrap_or("a system call");
        let interrupted = registers.interrupted();
        let call = interrupted.map(|interrupted| self.call(registers, interrupted, name));
        step(&Seen {
            policy: self.policy,
            call,
            returned: self.returned(registers),
            attached: self.attached(),
            main: self.candidate.is_main(),
            tripped: self.tripped(),
            innermost: statuses.len() <= 1
                || self
                    .word(self.candidate.support.status_at)
                    .is_some_and(|status| Status(status).bound_gilstate()),
            queue: prepared.native.entry.is_ok()
                && prepared
                    .queue(self.process)
                    .is_some_and(|(_, queue)| queue.takes_one()),
            not_in_place: prepared.not_in_place(registers),
            tried: self.tried,
        })
    }

    /// What is known of the system call that a thread waits in.
    fn call<'b>(&self, registers: &Registers, interrupted: Interrupted, name: &'b str) -> Call<'b> {
        let [first, second, ..] = registers.arguments();
        let native = self.prepared.as_ref().map(|prepared| &prepared.native);
        Call {
            name,
            interrupted,
            own: native
                .and_then(|native| native.caller(self.process, &registers.unwind()))
                .map(|caller| caller.own),
            for_gil: self.waits_for_gil(registers, name),
            unix_connect: name == "connect" && self.unix_address(second),
            eventfd: matches!(name, "read" | "write") && self.process.is_eventfd(first),
        }
    }

    /// Whether a `struct sockaddr` of the target is that of a Unix socket.
    fn unix_address(&self, at: u64) -> bool {
        let mut family = [0; 2];
        self.process.read(Addr(at), &mut family).is_ok() && u16::from_le_bytes(family) == 1
    }
}

fn fail(stopped: &Stopped<'_>, registers: &Registers, failure: Failure) -> bool {
    stopped.fail_call(registers, failure, Vec::new()).is_ok()
}

fn bytes(writes: Writes) -> Vec<Change> {
    let changes = writes.into_iter();
    changes
        .map(|(at, bytes)| Change::Bytes(at, bytes))
        .collect()
}

/// Whether a signal has come that the main thread has not handled.
pub(super) fn signal_waits(process: &Process, runtime: &Runtime) -> bool {
    let mut word = [0; 4];
    Signals::locate(process, runtime)
        .is_some_and(|signals| process.read(signals.is_tripped, &mut word).is_ok())
        && word != [0; 4]
}

impl Prepared {
    fn queue(&self, process: &Process) -> Option<(&PendingCalls, Queue)> {
        let calls = self.queue.as_ref()?;
        Some((calls, calls.read(process)?))
    }

    fn not_in_place(&self, registers: &Registers) -> Option<Obstacle> {
        if self.native.entry.is_err() {
            return Some(Obstacle::NoEntry);
        }
        if self.shadow_stack {
            return Some(Obstacle::ShadowStack);
        }
        let at = registers.stack_pointer();
        let pointer = registers.thread_pointer();
        let room = procfs::stack_room(&self.mappings, self.stack_limit, at, pointer);
        (room < CALL_STACK).then_some(Obstacle::Stack)
    }
}
