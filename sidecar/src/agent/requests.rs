//! The agent's requests: each runs at most once, and its outcome waits until it is acknowledged. Pure, given the time.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use sidewinder_model::{Outcome, Reason, TargetOutcome, ToOperator};

/// How long an outcome waits to be fetched.
pub const KEEP: Duration = Duration::from_hours(1);

/// How many bytes of outcomes wait at most, as encoded.
pub const KEEP_BYTES: usize = 32 * 1024 * 1024;

/// How many requests run side by side.
pub const MAX_RUNNING: usize = 32;

/// How many are told of the end of one request, or script: one for each connection that there may be.
pub const MAX_WATCHERS: usize = 32;

/// How many finished requests are remembered by id, so that none runs twice.
const REMEMBERED: usize = 65_536;

/// What is to be done with a request that came in.
#[derive(Debug)]
pub enum Begin {
    /// It is new: run it, and look at the flag.
    Start(Arc<AtomicBool>),
    /// It runs already; whoever asked will be told.
    Attached,
    /// It has ended.
    Finished(Arc<Outcome>),
    /// Too many run.
    Full,
}

enum Entry {
    Running {
        cancel: Arc<AtomicBool>,
        watchers: Vec<SyncSender<ToOperator>>,
    },
    Finished {
        outcome: Arc<Outcome>,
        bytes: usize,
        at: Instant,
    },
}

/// Every request of this run of the agent.
pub struct Requests {
    instance: String,
    entries: HashMap<String, Entry>,
    waiting_bytes: usize,
    /// Ids whose outcome is no longer held, or that were turned away, with what to say if they are asked for again.
    forgotten: VecDeque<(String, Reason, &'static str)>,
    last_use: Instant,
}

impl Requests {
    /// Nothing yet.
    pub fn new(instance: String, now: Instant) -> Self {
        Self {
            instance,
            entries: HashMap::new(),
            waiting_bytes: 0,
            forgotten: VecDeque::new(),
            last_use: now,
        }
    }

    fn running(&self) -> usize {
        self.entries
            .values()
            .filter(|entry| matches!(entry, Entry::Running { .. }))
            .count()
    }

    /// A request came in; `watcher` will be told its outcome.
    pub fn begin(&mut self, id: &str, watcher: &SyncSender<ToOperator>, now: Instant) -> Begin {
        self.last_use = now;
        let running = self.running();
        match self.entries.get_mut(id) {
            Some(Entry::Running { watchers, .. }) => {
                // Whoever came first has most likely gone: there are not so many connections.
                if watchers.len() >= MAX_WATCHERS {
                    watchers.remove(0);
                }
                watchers.push(watcher.clone());
                return Begin::Attached;
            }
            Some(Entry::Finished { outcome, .. }) => return Begin::Finished(Arc::clone(outcome)),
            None => {}
        }
        if let Some((_, reason, why)) = self.forgotten.iter().find(|(known, ..)| known == id) {
            let outcome = Outcome {
                id: id.to_owned(),
                instance: self.instance.clone(),
                targets: vec![TargetOutcome::failed(*reason, *why)],
            };
            return Begin::Finished(Arc::new(outcome));
        }
        if running >= MAX_RUNNING {
            // Whoever asked ends its session with that answer: a copy of the request that was on its way through a
            // stream that broke must not begin afterwards.
            self.remember(
                id,
                Reason::QueueFull,
                "the request was turned away before: too many ran in this sidecar",
            );
            return Begin::Full;
        }
        let cancel = Arc::new(AtomicBool::new(false));
        self.entries.insert(
            id.to_owned(),
            Entry::Running {
                cancel: cancel.clone(),
                watchers: vec![watcher.clone()],
            },
        );
        Begin::Start(cancel)
    }

    /// A request has ended. Tells everybody who asked.
    pub fn finish(&mut self, outcome: Outcome, bytes: usize, now: Instant) {
        self.last_use = now;
        let id = outcome.id.clone();
        let outcome = Arc::new(outcome);
        if let Some(Entry::Running { watchers, .. }) = self.entries.remove(&id) {
            for watcher in watchers {
                // A connection that has gone asks again on its next one.
                let _ = watcher.try_send(ToOperator::Finished {
                    outcome: Arc::clone(&outcome),
                });
            }
        }
        self.waiting_bytes = self.waiting_bytes.saturating_add(bytes);
        self.entries.insert(
            id,
            Entry::Finished {
                outcome,
                bytes,
                at: now,
            },
        );
        while self.waiting_bytes > KEEP_BYTES && self.drop_oldest() {}
    }

    fn drop_oldest(&mut self) -> bool {
        let oldest = self
            .entries
            .iter()
            .filter_map(|(id, entry)| match entry {
                Entry::Finished { at, .. } => Some((*at, id.clone())),
                Entry::Running { .. } => None,
            })
            .min();
        match oldest {
            Some((_, id)) => {
                self.forget(
                    &id,
                    "the outcome was dropped: more than 32 MiB of outcomes waited to be fetched",
                );
                true
            }
            None => false,
        }
    }

    fn forget(&mut self, id: &str, why: &'static str) {
        if let Some(Entry::Finished { bytes, .. }) = self.entries.remove(id) {
            self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
            self.remember(id, Reason::SidecarLost, why);
        }
    }

    fn remember(&mut self, id: &str, reason: Reason, why: &'static str) {
        if self.forgotten.len() >= REMEMBERED {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back((id.to_owned(), reason, why));
    }

    /// The outcome is safe elsewhere.
    ///
    /// Returns how many bytes it had, as encoded.
    pub fn acknowledge(&mut self, id: &str, now: Instant) -> usize {
        self.last_use = now;
        let before = self.waiting_bytes;
        self.forget(id, "the outcome was fetched and acknowledged before");
        before.saturating_sub(self.waiting_bytes)
    }

    /// Ends a request early.
    pub fn cancel(&mut self, id: &str) {
        if let Some(Entry::Running { cancel, .. }) = self.entries.get(id) {
            cancel.store(true, Ordering::SeqCst);
        }
    }

    /// Ends every request early; returns how many run.
    pub fn cancel_all(&mut self) -> usize {
        for entry in self.entries.values() {
            if let Entry::Running { cancel, .. } = entry {
                cancel.store(true, Ordering::SeqCst);
            }
        }
        self.running()
    }

    /// How many outcomes wait to be acknowledged.
    pub fn waiting(&self) -> usize {
        self.entries.len().saturating_sub(self.running())
    }

    /// Something happened that keeps the agent for a while.
    pub fn used(&mut self, now: Instant) {
        self.last_use = now;
    }

    /// Drops outcomes that nobody fetched in time.
    pub fn expire(&mut self, now: Instant) {
        let old: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, entry)| matches!(entry, Entry::Finished { at, .. } if now.duration_since(*at) >= KEEP))
            .map(|(id, _)| id.clone())
            .collect();
        for id in old {
            self.forget(
                &id,
                "the outcome was dropped: nobody fetched it within an hour",
            );
        }
    }

    /// How long nothing ran and nothing was asked.
    pub fn idle(&self, now: Instant) -> Duration {
        if self.running() > 0 {
            Duration::ZERO
        } else {
            now.duration_since(self.last_use)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn outcome(id: &str) -> Outcome {
        Outcome {
            id: id.into(),
            instance: "i".into(),
            targets: vec![],
        }
    }

    #[test]
    fn a_request_asked_for_twice_runs_once_and_tells_both() {
        let now = Instant::now();
        let mut requests = Requests::new("i".into(), now);
        let (first, told_first) = sync_channel(8);
        let (second, told_second) = sync_channel(8);
        assert!(matches!(requests.begin("a", &first, now), Begin::Start(_)));
        assert!(matches!(requests.begin("a", &second, now), Begin::Attached));
        requests.finish(outcome("a"), 10, now);
        assert!(matches!(
            told_first.try_recv(),
            Ok(ToOperator::Finished { .. })
        ));
        assert!(matches!(
            told_second.try_recv(),
            Ok(ToOperator::Finished { .. })
        ));
        assert!(matches!(
            requests.begin("a", &first, now),
            Begin::Finished(_)
        ));
    }

    #[test]
    fn an_acknowledged_or_dropped_request_never_runs_again() {
        let now = Instant::now();
        let mut requests = Requests::new("i".into(), now);
        let (watcher, _told) = sync_channel(8);
        for id in ["a", "b"] {
            assert!(matches!(requests.begin(id, &watcher, now), Begin::Start(_)));
            requests.finish(outcome(id), 10, now);
        }
        requests.acknowledge("a", now);
        requests.expire(now + KEEP);
        for id in ["a", "b"] {
            let Begin::Finished(outcome) = requests.begin(id, &watcher, now) else {
                panic!("{id} would run again")
            };
            assert_eq!(outcome.targets[0].reason, Reason::SidecarLost);
        }
    }

    #[test]
    fn outcomes_are_bounded_and_the_oldest_goes_first() {
        let now = Instant::now();
        let mut requests = Requests::new("i".into(), now);
        let (watcher, _told) = sync_channel(8);
        for (index, id) in ["a", "b", "c"].into_iter().enumerate() {
            assert!(matches!(requests.begin(id, &watcher, now), Begin::Start(_)));
            requests.finish(
                outcome(id),
                KEEP_BYTES / 2,
                now + Duration::from_secs(index as u64),
            );
        }
        let Begin::Finished(gone) = requests.begin("a", &watcher, now) else {
            panic!("a would run again")
        };
        assert_eq!(gone.targets[0].reason, Reason::SidecarLost);
        let Begin::Finished(kept) = requests.begin("c", &watcher, now) else {
            panic!("c would run again")
        };
        assert!(kept.targets.is_empty());
    }

    #[test]
    fn too_many_at_once_are_refused() {
        let now = Instant::now();
        let mut requests = Requests::new("i".into(), now);
        let (watcher, _told) = sync_channel(8);
        for index in 0..MAX_RUNNING {
            assert!(matches!(
                requests.begin(&index.to_string(), &watcher, now),
                Begin::Start(_)
            ));
        }
        assert!(matches!(
            requests.begin("one more", &watcher, now),
            Begin::Full
        ));
        // Nor does it begin later, when there is room: its session has ended with that answer.
        requests.finish(outcome("0"), 10, now);
        let Begin::Finished(answer) = requests.begin("one more", &watcher, now) else {
            panic!("it would begin after all")
        };
        assert_eq!(answer.targets[0].reason, Reason::QueueFull);
        assert!(matches!(
            requests.begin("another", &watcher, now),
            Begin::Start(_)
        ));
    }

    #[test]
    fn a_running_request_is_never_idle_and_can_be_cancelled() {
        let now = Instant::now();
        let later = now + Duration::from_secs(100);
        let mut requests = Requests::new("i".into(), now);
        let (watcher, _told) = sync_channel(8);
        assert_eq!(requests.idle(later), Duration::from_secs(100));
        let Begin::Start(cancel) = requests.begin("a", &watcher, now) else {
            panic!("not started")
        };
        assert_eq!(requests.idle(later), Duration::ZERO);
        requests.cancel("a");
        assert!(cancel.load(Ordering::SeqCst));
    }
}
