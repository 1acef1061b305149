//! Scripts that outlived their requests, and who wants to know of their end. Pure, given the ends.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use super::requests::MAX_WATCHERS;
use sidewinder_model::{Reason, ScriptEnd, ToOperator};

/// How many such scripts are watched side by side: each has a thread, and a process that carries it.
pub const MAX_WATCHED: usize = 16;

/// How long a script is watched, and the agent kept for it.
pub const WATCH_LIMIT: Duration = Duration::from_hours(24);

/// How many requests are remembered whose scripts have all ended.
const REMEMBERED: usize = 1024;

#[derive(Default)]
struct Watched {
    /// How many of its scripts are still running.
    running: usize,
    ends: Vec<ScriptEnd>,
    watchers: Vec<SyncSender<ToOperator>>,
}

/// Every script of this run of the agent that outlived its request.
#[derive(Default)]
pub struct Watches {
    requests: HashMap<String, Watched>,
    /// Requests of which nothing is running any more, the oldest first.
    over: VecDeque<String>,
}

impl Watches {
    /// How many scripts are still running.
    pub fn running(&self) -> usize {
        self.requests.values().map(|request| request.running).sum()
    }

    /// A script of the request goes on; false when too many do, and this one is not to be watched.
    pub fn begin(&mut self, id: &str) -> bool {
        if self.running() >= MAX_WATCHED {
            return false;
        }
        self.requests.entry(id.to_owned()).or_default().running += 1;
        true
    }

    /// A script of the request runs no more. Tells everybody who asked.
    pub fn end(&mut self, id: &str, end: ScriptEnd) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.running = request.running.saturating_sub(1);
        request.watchers.retain(|watcher| {
            let end = end.clone();
            let id = id.to_owned();
            // A connection that has gone asks again on its next one.
            watcher
                .try_send(ToOperator::ScriptEnded { id, end })
                .is_ok()
        });
        request.ends.push(end);
        if request.running > 0 {
            return;
        }
        request.watchers.clear();
        self.over.push_back(id.to_owned());
        if self.over.len() > REMEMBERED
            && let Some(oldest) = self.over.pop_front()
        {
            self.requests.remove(&oldest);
        }
    }

    /// Somebody wants to know: of what has ended at once, of the rest when it ends.
    pub fn watch(&mut self, id: &str, watcher: &SyncSender<ToOperator>) {
        let tell = |message| {
            // Who does not listen any more asks again on the next connection.
            let _ = watcher.try_send(message);
        };
        let Some(request) = self.requests.get_mut(id) else {
            tell(ToOperator::Refused {
                id: id.to_owned(),
                reason: Reason::SidecarLost,
                message:
                    "this run of the sidecar knows of no script of that request that outlived it"
                        .to_owned(),
            });
            return;
        };
        for end in &request.ends {
            tell(ToOperator::ScriptEnded {
                id: id.to_owned(),
                end: end.clone(),
            });
        }
        if request.running > 0 {
            // As with requests.
            if request.watchers.len() >= MAX_WATCHERS {
                request.watchers.remove(0);
            }
            request.watchers.push(watcher.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;

    fn end(pid: i32) -> ScriptEnd {
        ScriptEnd {
            pid,
            reason: Reason::ScriptEnded,
            after_milliseconds: 73_000,
        }
    }

    fn told(receiver: &Receiver<ToOperator>) -> Vec<i32> {
        receiver
            .try_iter()
            .map(|message| match message {
                ToOperator::ScriptEnded { end, .. } => end.pid,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn whoever_asks_is_told_each_end_once_before_and_after() {
        let mut watches = Watches::default();
        assert!(watches.begin("a") && watches.begin("a") && watches.begin("b"));
        let (early, before) = sync_channel(8);
        watches.watch("a", &early);
        watches.end("a", end(1));
        watches.end("b", end(7));
        let (late, after) = sync_channel(8);
        watches.watch("a", &late);
        assert_eq!((told(&before), told(&after)), (vec![1], vec![1]));
        watches.end("a", end(2));
        assert_eq!((told(&before), told(&after)), (vec![2], vec![2]));
        assert_eq!(watches.running(), 0);
        // Its connection was cut before it heard.
        watches.watch("a", &late);
        assert_eq!(told(&after), [1, 2]);
    }

    #[test]
    fn what_is_not_known_is_said_not_to_be() {
        let mut watches = Watches::default();
        let (sender, receiver) = sync_channel(8);
        watches.watch("a", &sender);
        watches.end("a", end(1));
        assert!(matches!(
            receiver.try_iter().collect::<Vec<_>>().as_slice(),
            [ToOperator::Refused { id, reason: Reason::SidecarLost, .. }] if id == "a"
        ));
    }

    #[test]
    fn what_is_watched_and_what_is_remembered_is_bounded() {
        let mut watches = Watches::default();
        for _ in 0..MAX_WATCHED {
            assert!(watches.begin("a"));
        }
        assert!(!watches.begin("b"));
        watches.end("a", end(1));
        for number in 0..REMEMBERED + 8 {
            let id = format!("c{number}");
            assert!(watches.begin(&id));
            watches.end(&id, end(1));
        }
        assert_eq!(watches.requests.len(), REMEMBERED + 1);
        assert_eq!(watches.running(), MAX_WATCHED - 1);
    }
}
