//! Who waits for which threads of a process to run a script, among the requests of one sidecar.
//!
//! A thread runs one script at a time, from the first word asked of it to the script's end: a second one would run inside
//! the first, and where the first waits for a lock that the second takes as well, the thread would wait for itself. Who
//! asks first for a thread gets it first; who asks for another thread does not wait; processes know nothing of each
//! other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many requests wait for one process at most. With 30 s each, the last of them would wait for four minutes.
pub(crate) const MAX_WAITING: usize = 8;

/// Who asks, and when: places in a line are in this order, however long each took to find its process.
#[derive(Clone, Debug, Default)]
pub struct Asker {
    /// Whose script, in words for others that wait for the same thread.
    who: String,
    order: u64,
}

impl Asker {
    /// One who comes after everybody who came before.
    pub fn new(who: impl Into<String>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            who: who.into(),
            order: NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// A process: its id, and when it started, since the id may be given out again.
pub(super) type Key = (i32, u64);

/// Every process's line. For a `static`.
#[derive(Debug)]
pub(super) struct Queue {
    lines: Mutex<BTreeMap<Key, Line>>,
    changed: Condvar,
}

/// What is known of one process.
#[derive(Debug, Default)]
struct Line {
    changes: u64,
    /// Those who have no thread yet, by the order in which they came. `None` while it is not known what they want.
    waiting: BTreeMap<u64, Option<BTreeSet<u64>>>,
    /// By thread.
    held: BTreeMap<u64, Holder>,
}

/// Who has a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    number: u64,
    /// The thread.
    pub(super) tid: u64,
    /// Whose script, in words.
    pub(super) who: String,
    /// How far it is.
    pub(super) stage: Stage,
    /// Since when it is there.
    pub(super) since: Instant,
}

/// How far a script is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The thread is asked to run it.
    Starting,
    /// It runs.
    Running,
    /// It runs although its request has ended: it could not be stopped.
    LeftRunning,
}

/// What comes of asking for threads.
#[derive(Debug)]
pub(super) enum Answer {
    /// These, until the claim is dropped.
    Yours(Claim),
    /// Somebody has all of them, or wants them and came before.
    Wait {
        /// One who has some, where there is one.
        holder: Option<Holder>,
        /// How often the line had changed: for [`Place::wait`].
        changes: u64,
    },
    /// In all of them runs a script that its own request could not stop.
    LeftRunning(Holder),
    /// So many wait already.
    Full(usize),
}

impl Queue {
    pub(super) const fn new() -> Self {
        Self {
            lines: Mutex::new(BTreeMap::new()),
            changed: Condvar::new(),
        }
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<Key, Line>> {
        // Every change is whole before anything that could panic.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place in the process's line. Whoever comes after waits until [`Place::ask`] has said what is wanted.
    pub(super) fn enter(&'static self, key: Key, asker: &Asker) -> Place {
        let mut lines = self.lines();
        let line = lines.entry(key).or_default();
        line.waiting.insert(asker.order, None);
        Place {
            queue: self,
            key,
            asker: asker.clone(),
        }
    }

    /// Changes a line, tells everybody, and forgets the line when nobody is in it.
    fn change(&self, key: Key, change: impl FnOnce(&mut Line)) {
        let mut lines = self.lines();
        let line = lines.entry(key).or_default();
        change(line);
        line.changes = line.changes.wrapping_add(1);
        if line.waiting.is_empty() && line.held.is_empty() {
            lines.remove(&key);
        }
        drop(lines);
        self.changed.notify_all();
    }
}

/// A place in a process's line, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    queue: &'static Queue,
    key: Key,
    asker: Asker,
}

impl Place {
    /// Asks for those of the threads `free` that nobody has and nobody wants who came before. `busy` are threads that
    /// are wanted as well and that, for a reason that is not known here, cannot be had now.
    pub(super) fn ask(&self, free: &[u64], busy: &[u64]) -> Answer {
        let number = self.asker.order;
        let mut lines = self.queue.lines();
        let line = lines.entry(self.key).or_default();
        let earlier = line.waiting.range(..number).map(|(_, wants)| wants);
        if earlier.clone().any(Option::is_none) {
            return Answer::Wait {
                holder: None,
                changes: line.changes,
            };
        }
        let tids: Vec<u64> = free
            .iter()
            .copied()
            .filter(|tid| !line.held.contains_key(tid))
            .filter(|tid| !earlier.clone().flatten().any(|wants| wants.contains(tid)))
            .collect();
        if !tids.is_empty() {
            line.waiting.remove(&number);
            line.held.extend(tids.iter().map(|tid| {
                let holder = Holder {
                    number,
                    tid: *tid,
                    who: self.asker.who.clone(),
                    stage: Stage::Starting,
                    since: Instant::now(),
                };
                (*tid, holder)
            }));
            line.changes = line.changes.wrapping_add(1);
            self.queue.changed.notify_all();
            return Answer::Yours(Claim {
                queue: self.queue,
                key: self.key,
                number,
                tids,
            });
        }
        let wanted: BTreeSet<u64> = free.iter().chain(busy).copied().collect();
        let mut holders = wanted.iter().filter_map(|tid| line.held.get(tid));
        let left = |holder: &&Holder| holder.stage == Stage::LeftRunning;
        if let Some(first) = holders.clone().find(left)
            && holders.clone().filter(left).count() == wanted.len()
        {
            return Answer::LeftRunning(first.clone());
        }
        let holder = holders.find(|holder| !left(holder)).cloned();
        let others = line.waiting.iter().filter(|(other, _)| **other != number);
        let others = others.filter(|(_, wants)| wants.is_some()).count();
        let known = line.waiting.get(&number).is_some_and(Option::is_some);
        if !known && others >= MAX_WAITING {
            line.waiting.remove(&number);
            return Answer::Full(others);
        }
        // Asking again for the same is no change: those who wait would wake each other for ever.
        if line.waiting.get(&number) != Some(&Some(wanted.clone())) {
            line.waiting.insert(number, Some(wanted));
            line.changes = line.changes.wrapping_add(1);
            self.queue.changed.notify_all();
        }
        Answer::Wait {
            holder,
            changes: line.changes,
        }
    }

    /// Waits until the line has changed since `changes`, at most for `limit`; whether it has.
    pub(super) fn wait(&self, changes: u64, limit: Duration) -> bool {
        let now = |lines: &BTreeMap<Key, Line>| lines.get(&self.key).map_or(0, |line| line.changes);
        let (lines, _) = self
            .queue
            .changed
            .wait_timeout_while(self.queue.lines(), limit, |lines| now(lines) == changes)
            .unwrap_or_else(PoisonError::into_inner);
        now(&lines) != changes
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.change(self.key, |line| {
            line.waiting.remove(&self.asker.order);
        });
    }
}

/// Threads that run nobody else's script, until dropped.
#[derive(Debug)]
pub(super) struct Claim {
    queue: &'static Queue,
    key: Key,
    number: u64,
    tids: Vec<u64>,
}

impl Claim {
    /// The threads, in the order in which they were asked for.
    pub(super) fn tids(&self) -> &[u64] {
        &self.tids
    }

    /// The script runs in this one; the others are given back.
    pub(super) fn runs_in(&mut self, tid: u64) {
        self.tids.retain(|one| *one == tid);
        self.to(Stage::Running, Some(Instant::now()));
    }

    /// Its request has ended, and the script has not.
    pub(super) fn left_running(&mut self) {
        self.to(Stage::LeftRunning, None);
    }

    fn to(&self, stage: Stage, since: Option<Instant>) {
        self.queue.change(self.key, |line| {
            line.held
                .retain(|tid, holder| holder.number != self.number || self.tids.contains(tid));
            for holder in line.held.values_mut() {
                if holder.number == self.number {
                    holder.stage = stage;
                    holder.since = since.unwrap_or(holder.since);
                }
            }
        });
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.queue.change(self.key, |line| {
            line.held.retain(|_, holder| holder.number != self.number);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: Key = (7, 1);

    fn claim(answer: Answer) -> Claim {
        match answer {
            Answer::Yours(claim) => claim,
            other => panic!("{other:?}"),
        }
    }

    fn waits(answer: &Answer) -> bool {
        matches!(answer, Answer::Wait { .. })
    }

    #[test]
    fn one_thread_is_had_by_one_and_by_those_who_wait_in_their_order() {
        static QUEUE: Queue = Queue::new();
        let first = claim(QUEUE.enter(PROCESS, &Asker::new("a")).ask(&[1], &[]));
        let second = QUEUE.enter(PROCESS, &Asker::new("b"));
        let third = QUEUE.enter(PROCESS, &Asker::new("c"));
        assert!(waits(&third.ask(&[1], &[])), "b has not said what it wants");
        let Answer::Wait {
            holder: Some(holder),
            ..
        } = second.ask(&[1], &[])
        else {
            panic!("b has what a has")
        };
        assert_eq!((holder.tid, holder.who.as_str()), (1, "a"));
        assert!(waits(&third.ask(&[1], &[])));
        drop(first);
        assert!(waits(&third.ask(&[1], &[])), "b came before");
        drop(claim(second.ask(&[1], &[])));
        drop(second);
        drop(claim(third.ask(&[1], &[])));
        drop(third);
        assert!(QUEUE.lines().is_empty());
    }

    #[test]
    fn who_asked_first_is_first_also_when_it_took_longer_to_find_the_process() {
        static QUEUE: Queue = Queue::new();
        let (first, second) = (Asker::new("a"), Asker::new("b"));
        let second = QUEUE.enter(PROCESS, &second);
        let first = QUEUE.enter(PROCESS, &first);
        assert!(waits(&second.ask(&[1], &[])));
        assert_eq!(claim(first.ask(&[1], &[])).tids(), [1]);
    }

    #[test]
    fn other_threads_and_other_processes_are_free_meanwhile() {
        static QUEUE: Queue = Queue::new();
        let mut main = claim(QUEUE.enter(PROCESS, &Asker::new("a")).ask(&[1], &[]));
        main.runs_in(1);
        let waiting = QUEUE.enter(PROCESS, &Asker::new("b"));
        assert!(waits(&waiting.ask(&[1], &[])));
        let mut any = claim(QUEUE.enter(PROCESS, &Asker::new("c")).ask(&[3, 1, 2], &[]));
        assert_eq!(any.tids(), [3, 2]);
        any.runs_in(2);
        let third = claim(QUEUE.enter(PROCESS, &Asker::new("d")).ask(&[3], &[]));
        let other = claim(QUEUE.enter((8, 1), &Asker::new("e")).ask(&[1], &[]));
        let again = claim(QUEUE.enter((7, 2), &Asker::new("f")).ask(&[1], &[]));
        drop((main, any, third, other, again));
        assert_eq!(claim(waiting.ask(&[1], &[])).tids(), [1]);
    }

    #[test]
    fn a_thread_that_somebody_wants_who_came_before_is_not_given_to_the_next() {
        static QUEUE: Queue = Queue::new();
        let first = QUEUE.enter(PROCESS, &Asker::new("a"));
        // Another sidecar's script runs in both.
        assert!(waits(&first.ask(&[], &[1, 2])));
        let second = QUEUE.enter(PROCESS, &Asker::new("b"));
        assert!(waits(&second.ask(&[2], &[])));
        assert_eq!(
            claim(QUEUE.enter(PROCESS, &Asker::new("c")).ask(&[2, 3], &[])).tids(),
            [3]
        );
        drop(first);
        assert_eq!(claim(second.ask(&[2], &[])).tids(), [2]);
    }

    #[test]
    fn the_line_is_bounded_and_who_need_not_wait_is_let_through() {
        static QUEUE: Queue = Queue::new();
        let held = claim(QUEUE.enter(PROCESS, &Asker::new("a")).ask(&[1], &[]));
        let line: Vec<Place> = (0..MAX_WAITING)
            .map(|_| {
                let place = QUEUE.enter(PROCESS, &Asker::new("b"));
                assert!(waits(&place.ask(&[1], &[])));
                place
            })
            .collect();
        let late = QUEUE.enter(PROCESS, &Asker::new("c"));
        assert!(matches!(late.ask(&[1], &[]), Answer::Full(MAX_WAITING)));
        drop(claim(QUEUE.enter(PROCESS, &Asker::new("d")).ask(&[2], &[])));
        // Who waits is not sent away by asking again.
        assert!(line.iter().all(|place| waits(&place.ask(&[1], &[]))));
        drop(held);
        drop(claim(line[0].ask(&[1], &[])));
        drop(line);
        drop(late);
        assert!(QUEUE.lines().is_empty());
    }

    #[test]
    fn a_script_that_outlives_its_request_is_not_waited_for() {
        static QUEUE: Queue = Queue::new();
        let mut left = claim(QUEUE.enter(PROCESS, &Asker::new("a")).ask(&[1], &[]));
        left.runs_in(1);
        let waiting = QUEUE.enter(PROCESS, &Asker::new("b"));
        assert!(waits(&waiting.ask(&[1], &[])));
        left.left_running();
        let Answer::LeftRunning(holder) = waiting.ask(&[1], &[]) else {
            panic!("it is waited for")
        };
        assert_eq!(
            (holder.who.as_str(), holder.stage),
            ("a", Stage::LeftRunning)
        );
        assert_eq!(
            claim(QUEUE.enter(PROCESS, &Asker::new("c")).ask(&[1, 2], &[])).tids(),
            [2]
        );
        drop(left);
        drop(claim(waiting.ask(&[1], &[])));
    }

    #[test]
    fn whoever_waits_is_told_of_a_change_and_of_nothing_else() {
        static QUEUE: Queue = Queue::new();
        let held = claim(QUEUE.enter(PROCESS, &Asker::new("a")).ask(&[1], &[]));
        let place = QUEUE.enter(PROCESS, &Asker::new("b"));
        let Answer::Wait { changes, .. } = place.ask(&[1], &[]) else {
            panic!("a has it")
        };
        assert!(!place.wait(changes, Duration::from_millis(1)));
        // Asking again, and what happens to other processes, is no change.
        assert!(waits(&place.ask(&[1], &[])));
        drop(claim(QUEUE.enter((8, 1), &Asker::new("c")).ask(&[1], &[])));
        assert!(!place.wait(changes, Duration::from_millis(1)));
        let waiter = std::thread::spawn(move || place.wait(changes, Duration::from_mins(1)));
        drop(held);
        assert!(waiter.join().unwrap());
    }
}
