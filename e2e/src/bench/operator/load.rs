//! Sessions, so many at a time, and what became of each: seen on one watch that is open before the first is created.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use sidewinder_crds::{DebugSession, conditions};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;

use super::super::figures::Samples;
use crate::session_client as sessions;

/// So many requests that create sessions are under way at most.
const CREATING: usize = 32;

/// A watch on all sessions of a namespace.
pub(super) struct Watch {
    sessions: Api<DebugSession>,
    ended: UnboundedReceiver<(DebugSession, Instant)>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What became of sessions.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends {
    /// From the request that creates a session to the event that says it has ended.
    pub(super) took: Samples,
    /// From the first request to the last end.
    pub(super) whole: Duration,
    /// How many ended with a reason, and whether that is Complete.
    pub(super) reasons: BTreeMap<(bool, String), usize>,
    /// How each ended.
    pub(super) each: BTreeMap<String, (bool, String)>,
    /// Those that have not ended.
    pub(super) lost: BTreeSet<String>,
    /// The last that ended.
    pub(super) last: Option<DebugSession>,
}

impl Watch {
    pub(super) fn of(sessions: Api<DebugSession>) -> Self {
        let (sender, ended) = unbounded_channel();
        let watched = sessions.clone();
        let task = tokio::spawn(async move {
            let mut changes = std::pin::pin!(
                watcher(watched, watcher::Config::default())
                    .default_backoff()
                    .applied_objects()
            );
            while let Some(change) = changes.next().await {
                let Ok(session) = change else { continue };
                if has_ended(&session) && sender.send((session, Instant::now())).is_err() {
                    return;
                }
            }
        });
        Self {
            sessions,
            ended,
            task,
        }
    }

    /// Creates what `next` gives, at most `outstanding` that have not ended at a time, and waits for the end of all.
    ///
    /// What has not ended `limit` after the last end that was seen, or the last creation, is lost.
    ///
    /// # Errors
    /// When the API server refuses a session.
    pub(super) async fn run(
        &mut self,
        mut next: impl FnMut() -> Option<DebugSession>,
        outstanding: usize,
        limit: Duration,
    ) -> Result<Ends> {
        let mut ends = Ends::default();
        let mut begun: HashMap<String, Instant> = HashMap::new();
        let mut creating = FuturesUnordered::new();
        let start = Instant::now();
        let mut more = true;
        loop {
            while more && begun.len() < outstanding && creating.len() < CREATING {
                let Some(session) = next() else {
                    more = false;
                    break;
                };
                begun.insert(session.name_any(), Instant::now());
                let api = self.sessions.clone();
                creating.push(async move { sessions::create(&api, &session).await }.boxed());
            }
            if begun.is_empty() && creating.is_empty() {
                break;
            }
            let event = tokio::select! {
                Some(created) = creating.next(), if !creating.is_empty() => {
                    created?;
                    continue;
                }
                ended = self.ended.recv() => Some(ended.context("the watch of sessions ended")?),
                () = tokio::time::sleep(limit) => None,
            };
            let Some((session, at)) = event else {
                ends.lost = begun.into_keys().collect();
                break;
            };
            let name = session.name_any();
            // An ended session may change once more, and be listed again.
            let Some(created) = begun.remove(&name) else {
                continue;
            };
            ends.took.push(at.duration_since(created));
            ends.whole = at.duration_since(start);
            let (complete, reason) = sessions::end_of(&session)?;
            let end = (complete, reason.to_string());
            *ends.reasons.entry(end.clone()).or_default() += 1;
            ends.each.insert(name, end);
            ends.last = Some(session);
        }
        Ok(ends)
    }
}

impl Ends {
    /// How many ended.
    pub(super) fn count(&self) -> usize {
        self.each.len()
    }

    /// How many ended each second.
    pub(super) fn rate(&self) -> f64 {
        let count = f64::from(u32::try_from(self.count()).unwrap_or(u32::MAX));
        count / self.whole.as_secs_f64().max(f64::EPSILON)
    }

    /// `Succeeded 1990, Timeout 10`: those that are no success with `Failed` before them.
    pub(super) fn shown(&self) -> String {
        let shown: Vec<String> = self
            .reasons
            .iter()
            .rev()
            .map(|((complete, reason), count)| {
                let failed = if *complete { "" } else { "Failed " };
                format!("{failed}{reason} {count}")
            })
            .collect();
        shown.join(", ")
    }

    /// Whether every session is `Complete` with `Succeeded`.
    pub(super) fn all_succeeded(&self) -> bool {
        let good = (true, "Succeeded".to_owned());
        self.lost.is_empty() && self.each.values().all(|end| *end == good)
    }
}

fn has_ended(session: &DebugSession) -> bool {
    let status = session.status.as_ref();
    status.is_some_and(|status| conditions::has_ended(&status.conditions))
}
