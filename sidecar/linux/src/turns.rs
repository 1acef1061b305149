//! Turns at a process, among the requests of one sidecar: first come, first served.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Who may do something to a process that only one at a time may do. For a `static`.
#[derive(Debug)]
pub struct Turns {
    lines: Mutex<Lines>,
    given_back: Condvar,
}

#[derive(Debug)]
struct Lines {
    /// The next number that is given out.
    number: u64,
    /// By process: the numbers of those who wait, in order. The first of them has the turn.
    waiting: BTreeMap<i32, VecDeque<u64>>,
}

impl Lines {
    fn first(&self, pid: i32) -> Option<u64> {
        self.waiting.get(&pid)?.front().copied()
    }

    fn leave(&mut self, pid: i32, number: u64) {
        if let Some(line) = self.waiting.get_mut(&pid) {
            line.retain(|other| *other != number);
            if line.is_empty() {
                self.waiting.remove(&pid);
            }
        }
    }
}

/// The right to it, until dropped.
#[derive(Debug)]
pub struct Turn {
    turns: &'static Turns,
    pid: i32,
    number: u64,
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
            lines: Mutex::new(Lines {
                number: 0,
                waiting: BTreeMap::new(),
            }),
            given_back: Condvar::new(),
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn at process `pid`, after everybody who asked for it before; `None` when it has not come within `limit`.
    pub fn take(&'static self, pid: i32, limit: Duration) -> Option<Turn> {
        let mut lines = self.lines();
        let number = lines.number;
        lines.number = lines.number.wrapping_add(1);
        lines.waiting.entry(pid).or_default().push_back(number);
        let (mut lines, _) = self
            .given_back
            .wait_timeout_while(lines, limit, |lines| lines.first(pid) != Some(number))
            .unwrap_or_else(PoisonError::into_inner);
        if lines.first(pid) == Some(number) {
            return Some(Turn {
                turns: self,
                pid,
                number,
            });
        }
        lines.leave(pid, number);
        None
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.lines().leave(self.pid, self.number);
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
        assert!(TURNS.lines().waiting.is_empty());
    }

    #[test]
    fn whoever_waits_is_woken_by_the_end_of_the_turn() {
        static TURNS: Turns = Turns::new();
        let first = TURNS.take(1, Duration::ZERO);
        let second = std::thread::spawn(|| TURNS.take(1, Duration::from_mins(1)).is_some());
        drop(first);
        assert!(second.join().unwrap());
    }

    #[test]
    fn whoever_asks_first_has_the_turn_first() {
        static TURNS: Turns = Turns::new();
        let mut turn = TURNS.take(1, Duration::ZERO);
        let (sender, order) = std::sync::mpsc::channel();
        let mut threads = Vec::new();
        for number in 0..8 {
            let sender = sender.clone();
            threads.push(std::thread::spawn(move || {
                let turn = TURNS.take(1, Duration::from_mins(1)).unwrap();
                sender.send(number).unwrap();
                drop(turn);
            }));
            // Who comes next comes later.
            while TURNS.lines().waiting[&1].len() < number + 2 {
                std::thread::yield_now();
            }
        }
        // One that gives up leaves the others where they are.
        assert!(TURNS.take(1, Duration::ZERO).is_none());
        turn.take();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(
            order.try_iter().collect::<Vec<_>>(),
            (0..8).collect::<Vec<_>>()
        );
    }
}
