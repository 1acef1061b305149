//! The scheduler's priority of a thread that a target waits for.

use rustix::process::{getpriority_process, setpriority_process};

/// Above everything of normal priority, and below what a machine keeps for itself.
const URGENT: i32 = -15;

/// While this lives, the calling thread goes before others, and so do the threads it starts: a target that stands still
/// on a busy machine would otherwise wait for our turn, for tens of milliseconds. Raising the priority needs
/// `CAP_SYS_NICE`, see `setpriority(2)`; without it nothing changes.
#[derive(Debug)]
pub struct Urgent {
    before: Option<i32>,
}

impl Urgent {
    /// Raises the priority of the calling thread, where that is allowed.
    #[must_use]
    pub fn begin() -> Self {
        let before = getpriority_process(None).ok();
        let raised = before.filter(|before| *before > URGENT);
        Self {
            before: raised.filter(|_| setpriority_process(None, URGENT).is_ok()),
        }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // Lowering it again is always allowed.
            let _ = setpriority_process(None, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_priority_is_as_before_afterwards() {
        let before = getpriority_process(None).unwrap();
        let urgent = Urgent::begin();
        let during = getpriority_process(None).unwrap();
        assert!(during == before || during == URGENT);
        drop(urgent);
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}
