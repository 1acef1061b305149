//! Sessions that have ended: they are in nobody's cache, so that the operator's memory does not grow with them. What
//! they still need, to be deleted when their time is up, to have a late change of their spec noted, to have a script
//! that outlived them watched, is seen to when they end and, for those that ended before, in rounds that read them page
//! by page and keep only a few words of each.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams};
use kube::core::Object;
use kube::{CustomResourceExt, ResourceExt};
use serde::Deserialize;
use sidewinder_crds::{DebugSession, DebugSessionStatus};
use tokio::sync::mpsc;
use tokio_util::time::DelayQueue;
use tracing::{debug, warn};

use super::supervisor::Supervisor;
use super::{afterwards, apply, observe, plan};
use crate::error::{Error, describe, patiently};
use crate::relay::connect::Connect;

/// How often the sessions that have ended are read.
const ROUND: Duration = Duration::from_mins(5);
/// How many are read at a time. A session has at most 256 KiB of status, a script of as much, and a copy of that which
/// `kubectl apply` keeps.
pub(super) const PAGE: u32 = 50;
/// How many deletions wait for their moment; the others are found by a later round.
const MAX_WAITING: usize = 4096;
/// The phases of sessions that have ended.
const PHASES: [&str; 3] = ["Succeeded", "Failed", "Cancelled"];
/// What lists and watches only sessions that have not ended.
pub(super) const UNFINISHED: &str =
    "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Cancelled";

/// The few words of a session that matter after its end.
type Slim = Object<SlimSpec, SlimStatus>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SlimSpec {
    ttl_seconds_after_finished: Option<i32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SlimStatus {
    observed_generation: Option<i64>,
    completion_time: Option<Time>,
    targets: Vec<SlimTarget>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct SlimTarget {
    exec: Option<SlimExec>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct SlimExec {
    watched: Option<bool>,
    afterwards: Option<serde::de::IgnoredAny>,
}

/// A session that is to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expiry {
    namespace: String,
    name: String,
    uid: Option<String>,
    /// From now.
    after: Duration,
}

/// When a session that ended at `ended` is to be deleted, from `now`. `None`: it is kept.
fn time_left(kept: Option<i32>, ended: Option<&Time>, now: Timestamp) -> Option<Duration> {
    let kept = Duration::from_secs(u64::from(kept?.unsigned_abs()));
    let due = plan::after(ended?.0, kept);
    Some(Duration::try_from(due.duration_since(now)).unwrap_or_default())
}

impl<C: Connect> Supervisor<C> {
    /// Sees to a session that has ended.
    pub(super) async fn after_the_end(
        self: &Arc<Self>,
        session: &DebugSession,
    ) -> Result<(), Error> {
        let Some(uid) = session.uid() else {
            return Ok(());
        };
        let status = session.status.clone().unwrap_or_default();
        if status.observed_generation != session.metadata.generation {
            let seen = DebugSessionStatus {
                observed_generation: session.metadata.generation,
                ..status.clone()
            };
            apply::status(&self.context.client, session, &seen).await?;
        }
        if afterwards::is_needed(session) {
            self.watch_on(session, &uid);
        }
        let kept = session.spec.ttl_seconds_after_finished;
        if let Some(after) = time_left(kept, status.completion_time.as_ref(), Timestamp::now()) {
            self.expire(Expiry {
                namespace: session.namespace().unwrap_or_default(),
                name: session.name_any(),
                uid: Some(uid),
                after,
            });
        }
        Ok(())
    }

    /// As [`Self::after_the_end`], for one that is not at hand.
    pub(super) async fn look_after(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
    ) -> Result<(), Error> {
        match observe::session_named(&self.context.client, namespace, name).await? {
            Some(session) if plan::has_ended(&session) => self.after_the_end(&session).await,
            _ => Ok(()),
        }
    }

    fn expire(&self, expiry: Expiry) {
        // A later round finds those that are due later, and those that find no room now.
        if expiry.after >= 2 * ROUND {
            return;
        }
        if self.expiries.try_send(expiry).is_err() {
            debug!("too many sessions wait to be deleted; a later round finds this one");
        }
    }

    /// Deletes sessions when their time is up.
    pub(super) async fn delete_due(self: &Arc<Self>, mut expiries: mpsc::Receiver<Expiry>) {
        let mut waiting = DelayQueue::new();
        loop {
            tokio::select! {
                expiry = expiries.recv(), if waiting.len() < MAX_WAITING => {
                    let Some(expiry) = expiry else { return };
                    let after = expiry.after;
                    waiting.insert(expiry, after);
                }
                Some(due) = waiting.next() => {
                    let due = due.into_inner();
                    let deleted = apply::delete(
                        &self.context.client,
                        &due.namespace,
                        &due.name,
                        due.uid.as_deref(),
                    );
                    if let Err(failed) = deleted.await {
                        self.context.metrics.errors.inc();
                        warn!(error = %describe(&failed), "a session whose time is up could not be deleted");
                    }
                }
            }
        }
    }

    /// Reads the sessions that have ended, again and again.
    pub(super) async fn go_round(self: &Arc<Self>, namespace: Option<String>) {
        let mut ticks = tokio::time::interval(ROUND);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(failed) = self.round(namespace.as_deref()).await {
                self.context.metrics.errors.inc();
                warn!(error = %describe(&failed), "the sessions that have ended cannot be read");
            }
        }
    }

    /// Reads the sessions that have ended once.
    pub(super) async fn round(self: &Arc<Self>, namespace: Option<&str>) -> Result<(), Error> {
        let client = self.context.client.clone();
        let resource = DebugSession::api_resource();
        let api: Api<Slim> = match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        for phase in PHASES {
            let mut params = ListParams::default().limit(PAGE);
            if self.by_phase() {
                params = params.fields(&format!("status.phase={phase}"));
            }
            loop {
                let page = patiently(
                    || format!("list the sessions of phase {phase}"),
                    || api.list(&params),
                )
                .await;
                let page = match page {
                    Ok(page) => page,
                    // The list is older than the API server remembers; what is left comes in the next round.
                    Err(error) if error.code() == Some(410) => break,
                    Err(error) => return Err(error),
                };
                for session in &page.items {
                    // One that cannot be seen to keeps no other waiting.
                    if let Err(failed) = self.see_to(session).await {
                        self.context.metrics.errors.inc();
                        warn!(error = %describe(&failed), "a session that has ended cannot be looked after");
                    }
                }
                match page.metadata.continue_.filter(|token| !token.is_empty()) {
                    Some(token) => params.continue_token = Some(token),
                    None => break,
                }
            }
            if !self.by_phase() {
                break;
            }
        }
        Ok(())
    }

    async fn see_to(self: &Arc<Self>, session: &Slim) -> Result<(), Error> {
        let Some(status) = &session.status else {
            return Ok(());
        };
        if status.completion_time.is_none() {
            return Ok(());
        }
        let watched = status.targets.iter().any(|target| {
            let exec = target.exec.as_ref();
            exec.is_some_and(|exec| exec.watched == Some(true) && exec.afterwards.is_none())
        });
        let changed = status.observed_generation != session.metadata.generation;
        let namespace = session.namespace().unwrap_or_default();
        if watched || changed {
            return self.look_after(&namespace, &session.name_any()).await;
        }
        let kept = session.spec.ttl_seconds_after_finished;
        let left = time_left(kept, status.completion_time.as_ref(), Timestamp::now());
        if let Some(after) = left {
            self.expire(Expiry {
                namespace,
                name: session.name_any(),
                uid: session.uid(),
                after,
            });
        }
        Ok(())
    }
}

/// The room for sessions that are to be deleted.
pub(super) fn expiries() -> (mpsc::Sender<Expiry>, mpsc::Receiver<Expiry>) {
    mpsc::channel(MAX_WAITING)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_session_is_kept_for_ever_or_for_its_time() {
        let at = |text: &str| Time(text.parse().unwrap());
        let ended = at("2026-01-01T00:00:00Z");
        let now = at("2026-01-01T00:01:00Z").0;
        for (kept, ended, left) in [
            (None, Some(&ended), None),
            (Some(90), None, None),
            (Some(90), Some(&ended), Some(30)),
            (Some(60), Some(&ended), Some(0)),
            (Some(0), Some(&ended), Some(0)),
        ] {
            assert_eq!(time_left(kept, ended, now), left.map(Duration::from_secs));
        }
    }

    #[test]
    fn of_a_session_that_has_ended_a_few_words_are_read() {
        let slim: Slim = serde_json::from_value(json!({
            "apiVersion": "sidewinder.dev/v1alpha1", "kind": "DebugSession",
            "metadata": {"name": "a", "generation": 2},
            "spec": {"target": {"podName": "x"}, "ttlSecondsAfterFinished": 5, "remoteExec": {"script": "1"}},
            "status": {"completionTime": "2026-01-01T00:00:00Z", "targets": [
                {"podName": "x", "text": "long", "exec": {"watched": true, "afterwards": {"reason": "ScriptEnded"}}}
            ]},
        }))
        .unwrap();
        let status = slim.status.unwrap();
        assert_eq!(slim.spec.ttl_seconds_after_finished, Some(5));
        let exec = status.targets[0].exec.as_ref().unwrap();
        assert!(exec.watched == Some(true) && exec.afterwards.is_some());
    }
}
