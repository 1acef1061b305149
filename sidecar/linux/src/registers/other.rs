//! Architectures on which threads are not redirected.

use std::io;

use nix::errno::Errno;
use nix::unistd::Pid;
use sidewinder_decode::native::{self, Entry};

use super::Interrupted;

/// Unused.
pub const CALL_STACK: u64 = 0;

/// There are none.
#[derive(Clone, Copy, Debug)]
pub enum Registers {}

impl Registers {
    /// The system call's number.
    pub fn call(&self) -> Option<u64> {
        match *self {}
    }

    /// Its arguments.
    pub fn arguments(&self) -> [u64; 6] {
        match *self {}
    }

    /// How it was interrupted.
    pub fn interrupted(&self) -> Option<Interrupted> {
        match *self {}
    }

    /// The stack pointer.
    pub fn stack_pointer(&self) -> u64 {
        match *self {}
    }

    /// Where the C library keeps what belongs to the thread.
    pub fn thread_pointer(&self) -> u64 {
        match *self {}
    }

    /// What unwinding begins with.
    pub fn unwind(&self) -> native::Registers {
        match *self {}
    }

    pub(super) fn with_call(self, _: u64) -> Self {
        match self {}
    }

    pub(crate) fn returning(&self, _: Errno) -> Self {
        match *self {}
    }

    pub(crate) fn again(&self) -> Self {
        match *self {}
    }
}

pub(crate) fn read(_: Pid) -> Result<Registers, Errno> {
    Err(Errno::ENOSYS)
}

pub(crate) fn set(_: Pid, registers: &Registers) -> Result<(), Errno> {
    match *registers {}
}

pub(crate) fn call(
    _: Pid,
    then: &Registers,
    _: &Entry,
    _: u64,
    _: impl FnOnce(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    match *then {}
}
