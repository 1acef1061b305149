//! The signals that end a command or an agent, taken off every thread and waited for by one; and those that a target is
//! given back.

#![expect(
    unsafe_code,
    reason = "rustix and nix have no safe way to name a real-time signal"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigSet, Signal};

/// SIGINT, SIGTERM and SIGHUP, blocked.
#[derive(Debug)]
pub struct Blocked(SigSet);

/// Blocks SIGINT, SIGTERM and SIGHUP in this thread and in every thread it starts from now on.
///
/// Call it before any thread is started: a thread that existed before still dies of them.
///
/// # Errors
/// What `pthread_sigmask(3)` says.
pub fn block() -> io::Result<Blocked> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(Blocked(set))
}

impl Blocked {
    /// Waits for one of them.
    ///
    /// # Errors
    /// What sigwait(3) says.
    pub fn wait(&self) -> io::Result<Signal> {
        Ok(self.0.wait()?)
    }
}

/// Whether a program can have consumed the signal of this number: those that no handler ever sees are `SIGKILL` and
/// `SIGSTOP`, signal(7).
pub fn is_consumable(number: u8) -> bool {
    matches!(number, 1..=64) && !matches!(i32::from(number), libc::SIGKILL | libc::SIGSTOP)
}

/// Sends a process a signal that it should have had.
pub(crate) fn send_back(pidfd: impl AsFd, number: u8) -> io::Result<()> {
    if !is_consumable(number) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{number} is no signal that a script can consume"),
        ));
    }
    // SAFETY: pidfd_send_signal(2) takes three numbers, and reads nothing where there is no information.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            libc::c_int::from(number),
            std::ptr::null::<libc::siginfo_t>(),
            0_u32,
        )
    };
    Errno::result(sent)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::{is_consumable, send_back};
    use crate::Process;

    #[test]
    fn what_no_handler_sees_is_not_consumed() {
        let not: Vec<u8> = (0..=u8::MAX)
            .filter(|number| !is_consumable(*number))
            .collect();
        assert_eq!(not[..3], [0, 9, 19]);
        assert_eq!(not[3..], (65..=u8::MAX).collect::<Vec<_>>());
    }

    #[test]
    fn every_kind_of_signal_is_sent() {
        let real_time = 40;
        for number in [2, 15, real_time] {
            let mut child = std::process::Command::new("sleep")
                .arg("60")
                .spawn()
                .unwrap();
            let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
            assert!(send_back(process.pidfd(), 9).is_err());
            send_back(process.pidfd(), number).unwrap();
            assert_eq!(child.wait().unwrap().signal(), Some(i32::from(number)));
        }
    }
}
