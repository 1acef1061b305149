//! What can be done to a thread that stands still, so that it answers when it goes on.
//!
//! Each of these is done as one piece while the thread is held; afterwards nothing of the tracer is needed: a sidecar
//! that is killed leaves a thread that goes on with the registers it has.

use std::io;

use nix::errno::Errno;
use nix::unistd::Pid;
use sidewinder_decode::Addr;
use sidewinder_decode::native::Entry;

use crate::pinned::Pinned;
use crate::registers::{self, Registers};
use crate::stop::StopGuard;
use crate::{Error, Process};

/// Something to be written into a target's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These bytes there.
    Bytes(Addr, Vec<u8>),
    /// These bits set in the byte there, in which other threads set others at any time: it is read and written at once.
    Bits(Addr, u8),
}

/// One thread of a target that stands still, and the right to change how it goes on.
#[derive(Debug)]
pub struct Stopped<'a> {
    process: &'a Process,
    guard: &'a StopGuard,
    tid: u64,
}

/// What a system call that is not to go on returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// `EINTR`: Python's own code looks what waits for it, and waits on.
    Interrupted,
    /// `ETIMEDOUT`, for a wait for a lock: anything else but an interruption is fatal to Python there.
    TimedOut,
    /// `ECANCELED`: the call fails.
    Cancelled,
}

impl Failure {
    fn errno(self) -> Errno {
        match self {
            Self::Interrupted => Errno::EINTR,
            Self::TimedOut => Errno::ETIMEDOUT,
            Self::Cancelled => Errno::ECANCELED,
        }
    }
}

/// How a wait goes on after a call in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Its system call is made again as it was. A timeout that is an amount of time begins anew; one that is a point in
    /// time does not.
    Again,
    /// It returns `EINTR` to Python's own code, which works out what time is left and waits on.
    Interrupted,
}

impl<'a> Stopped<'a> {
    pub(crate) fn new(process: &'a Process, guard: &'a StopGuard, tid: u64) -> Self {
        Self {
            process,
            guard,
            tid,
        }
    }

    /// The kernel's id of the thread.
    pub fn tid(&self) -> u64 {
        self.tid
    }

    /// Where it is; `None` when it has ended, is about to get a signal, or is not held any more.
    pub fn registers(&self) -> Option<Registers> {
        self.guard.at(self.tid, registers::read)?.ok()
    }

    /// Has the system call that it is in return an error in place of going on. `also` is written first.
    ///
    /// # Errors
    /// What the kernel said, or that it is not held any more: nothing is changed then but for what was written of `also`.
    pub fn fail_call(
        &self,
        registers: &Registers,
        failure: Failure,
        also: Vec<Change>,
    ) -> Result<(), Error> {
        let memory = self.process.pinned_memory();
        let returning = registers.returning(failure.errno());
        self.change(move |thread| {
            write(&memory, &also)?;
            Ok(registers::set(thread, &returning)?)
        })
    }

    /// Writes into the target's memory while the thread is held.
    ///
    /// # Errors
    /// As for [`Stopped::fail_call`].
    pub fn write(&self, parts: Vec<Change>) -> Result<(), Error> {
        let memory = self.process.pinned_memory();
        self.change(move |_| write(&memory, &parts))
    }

    /// Has it run what waits for it right where it is (facts of the call: [`Entry`]), and wait on.
    ///
    /// # Errors
    /// As for [`Stopped::fail_call`]; what was written is below its stack, where nothing is.
    pub fn call_in_place(
        &self,
        registers: &Registers,
        resume: Resume,
        entry: &Entry,
        thread_state: Addr,
    ) -> Result<(), Error> {
        let memory = self.process.pinned_memory();
        let then = match resume {
            Resume::Again => registers.again(),
            Resume::Interrupted => registers.returning(Errno::EINTR),
        };
        let entry = *entry;
        self.change(move |thread| {
            registers::call(thread, &then, &entry, thread_state.0, |at, bytes| {
                memory.write(Addr(at), bytes)
            })
        })
    }

    fn change(
        &self,
        work: impl FnOnce(Pid) -> io::Result<()> + Send + 'static,
    ) -> Result<(), Error> {
        let what = "change a thread of";
        match self.guard.at(self.tid, work) {
            Some(result) => result.map_err(|error| self.process.io(what, error)),
            None => Err(self
                .process
                .io(what, io::Error::other("the thread did not stay stopped"))),
        }
    }
}

fn write(memory: &Pinned, changes: &[Change]) -> io::Result<()> {
    changes.iter().try_for_each(|change| match change {
        Change::Bytes(at, bytes) => memory.write(*at, bytes),
        Change::Bits(at, bits) => memory.set_bits(*at, *bits),
    })
}
