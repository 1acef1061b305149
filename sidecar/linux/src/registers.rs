//! Where a thread that stands still is: the registers that tell what it waits for and that decide how it goes on.
//!
//! x86-64 only, as all that runs scripts: elsewhere no registers are to be had, and nothing is done to a thread that does
//! not come by itself.

#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "nix has neither PTRACE_GETSIGMASK nor NT_X86_XSTATE"
    )
)]

#[cfg_attr(target_arch = "x86_64", path = "registers/x86_64.rs")]
#[cfg_attr(not(target_arch = "x86_64"), path = "registers/other.rs")]
mod machine;

impl Registers {
    /// The name of the system call that it is in.
    pub fn call_name(&self) -> Option<&'static str> {
        crate::syscalls::lookup(self.call()?).name
    }

    /// The same where a wait that is being resumed stands as what it was, given what the thread waited in before it was
    /// stopped ([`crate::Process::wait_of`]). `None` when that was another wait: made again as it stands, it would return
    /// `EINTR`, since the kernel keeps what it needs to resume a wait only until the next one.
    pub fn resumed(self, wait: Option<(u64, [u64; 6])>) -> Option<Self> {
        if self.call_name() != Some(crate::syscalls::RESTART) {
            return Some(self);
        }
        let (number, arguments) = wait?;
        (arguments == self.arguments()).then(|| self.with_call(number))
    }
}

pub use machine::{CALL_STACK, Registers};
pub(crate) use machine::{call, read, set};

/// What a system call that a stop has interrupted is about to return. The first four are seen by tracers only: the kernel
/// replaces them when the thread goes on (`include/linux/errno.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// `ERESTARTSYS`, `ERESTARTNOINTR` or `ERESTARTNOHAND`: without a signal's handler it is begun again, and it keeps
    /// its own account of time where it has one.
    Restarts,
    /// `ERESTART_RESTARTBLOCK`: it is resumed with the time that was left.
    Resumes,
    /// `EINTR`, whatever interrupts it: `epoll_wait`, `sigtimedwait`, sockets with a timeout of their own.
    Returns,
}
