//! What waking a blocked thread needs to know of a target's machine code: where the functions are that it is made to
//! call in place, and whose code made the system call that it is blocked in.
//!
//! All of it is looked up while the target runs ([`Native::prepare`]); of a thread that stands still only words of its
//! stack are read, and six bytes of code. It is for x86-64: on any other machine there is nothing to call
//! ([`NativeError::Machine`]) and nobody is known as caller.

mod code;
mod symbols;
mod unwind;

pub use symbols::{Entry, NativeError};

use crate::memory::{Addr, Memory};
use crate::os::Mapping;
use crate::runtime::Runtime;
use code::Code;
use unwind::{Frame, Libc, Stack};

/// The most frames of libc that are followed: `getaddrinfo` has 9.
const MAX_LIBC_FRAMES: u32 = 32;
/// The most frames of libc between a system call and the code that it was made for, where that is nothing but a wrapper
/// of the system call: `sleep` is 3 of them away, a cancellable call 3, a timed lock 5. What takes more has a loop of its
/// own around it.
const MAX_WRAPPER_FRAMES: u32 = 5;

/// What is known of a target's machine code before anything stands still. Valid until it loads or unloads a library;
/// a thread in a library that came later has no [`Caller`].
#[derive(Debug)]
pub struct Native {
    /// The functions for a call in place.
    pub entry: Result<Entry, NativeError>,
    code: Code,
    libc: Vec<Libc>,
}

/// The registers of a thread that are needed to unwind its stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are the processor's own names")]
pub struct Registers {
    pub rip: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

/// Whose wait a system call is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whether it is Python's own, which goes on with the wait when the call is interrupted (PEP 475): the code that
    /// libc was called from belongs to the interpreter or to a module of the standard library, calls libc by name, and
    /// no more than a wrapper lies between. Not every call of Python's own goes on: `connect` on a unix socket and
    /// `pause` do not.
    pub own: bool,
    /// How many frames of libc lie between.
    pub libc_frames: u32,
    /// Where libc returns to.
    pub at: Addr,
    /// The file that this is mapped from, as the target sees it; empty for code that was made at run time.
    pub file: String,
}

impl Native {
    /// Looks everything up. The target may run meanwhile.
    pub fn prepare<M: Memory + ?Sized>(
        memory: &M,
        mappings: &[Mapping],
        runtime: &Runtime,
    ) -> Self {
        let code = Code::of(mappings, runtime);
        let (entry, has_sigreturn) = symbols::entry(memory, &code, runtime);
        let libc = Libc::all(memory, &code, has_sigreturn);
        Self { entry, code, libc }
    }

    /// Who made the system call that a thread with these registers is blocked in. `None` where that cannot be told:
    /// libc has no tables for unwinding (musl has none), or the stack is not what they say.
    pub fn caller<M: Memory + ?Sized>(&self, memory: &M, registers: &Registers) -> Option<Caller> {
        let stack = Stack::read(memory, Addr(registers.rsp));
        let mut frame = Frame::innermost(registers);
        for libc_frames in 0..=MAX_LIBC_FRAMES {
            let mut libc = self.libc.iter();
            let Some(libc) = libc.find(|libc| libc.contains(frame.within())) else {
                return self.caller_at(memory, frame.pc(), libc_frames);
            };
            frame = libc.caller(&stack, &frame)?;
        }
        None
    }

    fn caller_at<M: Memory + ?Sized>(
        &self,
        memory: &M,
        at: Addr,
        libc_frames: u32,
    ) -> Option<Caller> {
        let place = self.code.at(at.minus(1))?;
        let own = (1..=MAX_WRAPPER_FRAMES).contains(&libc_frames)
            && place.is_pythons()
            && place.called_by_name(memory, at);
        Some(Caller {
            own,
            libc_frames,
            at,
            file: place.path().to_owned(),
        })
    }
}
