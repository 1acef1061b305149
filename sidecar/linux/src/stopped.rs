//! What can be done to a thread that stands still, so that it answers when it goes on.
//!
//! Each of these is done as one piece while the thread is held; afterwards nothing of the tracer is needed: a sidecar
//! that is killed leaves a thread that goes on with the registers it has.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use sidewinder_decode::Addr;
use sidewinder_decode::native::Entry;

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
        let memory = self.memory();
        let returning = registers.returning(failure.errno());
        self.change(move |thread| {
            memory.write(&also)?;
            Ok(registers::set(thread, &returning)?)
        })
    }

    /// Writes into the target's memory while the thread is held.
    ///
    /// # Errors
    /// As for [`Stopped::fail_call`].
    pub fn write(&self, parts: Vec<Change>) -> Result<(), Error> {
        let memory = self.memory();
        self.change(move |_| memory.write(&parts))
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
        let memory = self.memory();
        let then = match resume {
            Resume::Again => registers.again(),
            Resume::Interrupted => registers.returning(Errno::EINTR),
        };
        let entry = *entry;
        self.change(move |thread| {
            registers::call(thread, &then, &entry, thread_state.0, |at, bytes| {
                memory.write(&[Change::Bytes(Addr(at), bytes.to_vec())])
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

    fn memory(&self) -> Memory {
        Memory {
            pid: Pid::from_raw(self.process.pid()),
            file: self.process.pinned_memory(),
        }
    }
}

/// A target's memory, to be written by the thread that holds it.
struct Memory {
    pid: Pid,
    file: Option<Arc<File>>,
}

impl Memory {
    fn write(&self, changes: &[Change]) -> io::Result<()> {
        for change in changes {
            match change {
                Change::Bytes(at, bytes) => self.put(*at, bytes)?,
                Change::Bits(at, bits) => {
                    let mut byte = [0];
                    self.get(*at, &mut byte)?;
                    if byte[0] & bits != *bits {
                        self.put(*at, &[byte[0] | bits])?;
                    }
                }
            }
        }
        Ok(())
    }

    fn get(&self, at: Addr, bytes: &mut [u8]) -> io::Result<()> {
        if let Some(file) = &self.file {
            return file.read_exact_at(bytes, at.0);
        }
        let (remote, wanted) = (remote(at, bytes.len()), bytes.len());
        whole(
            process_vm_readv(self.pid, &mut [IoSliceMut::new(bytes)], &[remote])?,
            wanted,
        )
    }

    fn put(&self, at: Addr, bytes: &[u8]) -> io::Result<()> {
        if let Some(file) = &self.file {
            // It extends the stack where process_vm_writev(2) finds nothing mapped.
            return file.write_all_at(bytes, at.0);
        }
        let remote = remote(at, bytes.len());
        whole(
            process_vm_writev(self.pid, &[IoSlice::new(bytes)], &[remote])?,
            bytes.len(),
        )
    }
}

fn remote(at: Addr, len: usize) -> RemoteIoVec {
    RemoteIoVec {
        base: usize::try_from(at.0).unwrap_or_default(),
        len,
    }
}

fn whole(done: usize, wanted: usize) -> io::Result<()> {
    if done == wanted {
        Ok(())
    } else {
        Err(Errno::EFAULT.into())
    }
}
