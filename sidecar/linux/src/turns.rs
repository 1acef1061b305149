//! Turns at a process, among the requests of one sidecar.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Who may do something to a process that only one at a time may do. For a `static`.
#[derive(Debug)]
pub struct Turns {
    taken: Mutex<BTreeSet<i32>>,
    given_back: Condvar,
}

/// The right to it, until dropped.
#[derive(Debug)]
pub struct Turn {
    turns: &'static Turns,
    pid: i32,
}

impl Default for Turns {
    fn default() -> Self {
        Self::new()
    }
}

impl Turns {
    /// Nobody has a turn.
    pub const fn new() -> Self {
        Self {
            taken: Mutex::new(BTreeSet::new()),
            given_back: Condvar::new(),
        }
    }

    /// The turn at process `pid`; `None` when whoever has it does not give it back within `limit`.
    pub fn take(&'static self, pid: i32, limit: Duration) -> Option<Turn> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut taken, _) = self
            .given_back
            .wait_timeout_while(taken, limit, |taken| taken.contains(&pid))
            .unwrap_or_else(PoisonError::into_inner);
        // One that is made and dropped would give back what somebody else has.
        if taken.insert(pid) {
            Some(Turn { turns: self, pid })
        } else {
            None
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.pid);
        self.turns.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_given_to_one_at_a_time_and_to_each_process() {
        static TURNS: Turns = Turns::new();
        let first = TURNS.take(1, Duration::ZERO);
        assert!(first.is_some());
        assert!(TURNS.take(1, Duration::ZERO).is_none());
        // Whoever was refused gives nothing back.
        assert!(TURNS.take(1, Duration::ZERO).is_none());
        assert!(TURNS.take(2, Duration::ZERO).is_some());
        drop(first);
        assert!(TURNS.take(1, Duration::ZERO).is_some());
    }

    #[test]
    fn whoever_waits_is_woken_by_the_end_of_the_turn() {
        static TURNS: Turns = Turns::new();
        let first = TURNS.take(1, Duration::ZERO);
        let second = std::thread::spawn(|| TURNS.take(1, Duration::from_mins(1)).is_some());
        drop(first);
        assert!(second.join().unwrap());
    }
}
