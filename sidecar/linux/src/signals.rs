//! The signals that end a command or an agent, taken off every thread and waited for by one.

use std::io;

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
