//! After a session's end: a script that could not be stopped is watched by its agent, and here its end is waited for.
//!
//! What must survive stands in the status: `exec.watched` until `exec.afterwards` is written, so that whoever leads next
//! goes on. The end is told by one Event on the session and one on the pod, whose names follow from the session: written
//! first, and at most once however often this is begun. Nothing waits for a watch: a session that is deleted is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt};
use sidewinder_crds::conditions::whole_seconds;
use sidewinder_crds::{Afterwards, DebugSession, TargetStatus};
use sidewinder_model::{Reason, ScriptEnd};
use tracing::{debug, info, warn};

use super::apply::{self, Written};
use super::plan::{Place, after, out_of_reach};
use super::{Context, observe};
use crate::error::{Error, describe};
use crate::faults::{self, Point};
use crate::relay::connect::{Connect, Endpoint};
use crate::relay::{RelayError, Reply};

/// How long after its session's end a script is waited for. Agents watch for a day.
const WATCH_LIMIT: Duration = Duration::from_hours(25);
/// The first and the longest pause before a stream that was lost is opened again.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// An agent that watches scripts of a session, and the processes in which they run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Watched {
    endpoint: Endpoint,
    instance: String,
    container: String,
    container_id: String,
    pids: BTreeSet<i32>,
}

fn waits(target: &TargetStatus) -> bool {
    let exec = target.exec.as_ref();
    exec.is_some_and(|exec| exec.watched == Some(true) && exec.afterwards.is_none())
}

/// Whether anything of a session that has ended is still watched.
pub fn is_needed(session: &DebugSession) -> bool {
    !watched(session).is_empty()
}

/// Who watches what.
fn watched(session: &DebugSession) -> Vec<Watched> {
    let targets = session.status.iter().flat_map(|status| &status.targets);
    let mut all: Vec<Watched> = Vec::new();
    for target in targets.filter(|target| waits(target)) {
        let (Some(pid), Some(sidecar), Some(instance)) =
            (target.pid, &target.sidecar, &target.agent)
        else {
            continue;
        };
        let one = Watched {
            endpoint: Endpoint {
                namespace: session.namespace().unwrap_or_default(),
                pod: target.pod_name.clone(),
                pod_uid: target.pod_uid.clone().unwrap_or_default(),
                container: sidecar.clone(),
            },
            instance: instance.clone(),
            container: target.container.clone().unwrap_or_default(),
            container_id: target.container_id.clone().unwrap_or_default(),
            pids: BTreeSet::new(),
        };
        let known = all
            .iter_mut()
            .find(|known| known.endpoint == one.endpoint && known.instance == one.instance);
        match known {
            Some(known) => _ = known.pids.insert(pid),
            None => all.push(Watched {
                pids: BTreeSet::from([pid]),
                ..one
            }),
        }
    }
    all
}

/// Waits for the end of everything that is watched for a session that has ended.
///
/// # Errors
/// When the API server refuses something, or stays away.
pub async fn watch<C: Connect>(context: &Context<C>, session: &DebugSession) -> Result<(), Error> {
    faults::at(Point::Watch).await;
    let ends = watched(session).into_iter().map(|one| {
        let mut watch = Watch {
            context,
            session,
            watched: one,
        };
        async move { watch.run().await }
    });
    futures::future::try_join_all(ends).await.map(drop)
}

struct Watch<'a, C> {
    context: &'a Context<C>,
    session: &'a DebugSession,
    /// What is still running.
    watched: Watched,
}

impl<C: Connect> Watch<'_, C> {
    async fn run(&mut self) -> Result<(), Error> {
        let status = self.session.status.as_ref();
        let ended = status.and_then(|status| status.completion_time.as_ref());
        let until = after(
            ended.map_or_else(Timestamp::now, |time| time.0),
            WATCH_LIMIT,
        );
        let mut pause = PAUSES.0;
        loop {
            let pod = observe::pod(
                &self.context.client,
                &self.watched.endpoint.namespace,
                &self.watched.endpoint.pod,
            )
            .await?;
            let place = Place {
                pod_uid: &self.watched.endpoint.pod_uid,
                container: &self.watched.container,
                container_id: &self.watched.container_id,
                sidecar: &self.watched.endpoint.container,
            };
            if let Some((reason, words)) = out_of_reach(pod.as_ref(), &place) {
                return self.lost(reason, &words, pod.as_ref()).await;
            }
            let left =
                Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
            if left.is_zero() {
                return self
                    .lost(Reason::Timeout, "it was watched for a day", pod.as_ref())
                    .await;
            }
            match tokio::time::timeout(left, self.listen(pod.as_ref())).await {
                // The time is over.
                Err(_) => {}
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(error @ (RelayError::Version { .. } | RelayError::Forbidden(_))))) => {
                    return self
                        .lost(Reason::SidecarLost, &error.to_string(), pod.as_ref())
                        .await;
                }
                Ok(Ok(Some(error))) => {
                    debug!(%error, "the stream to the sidecar that watches was lost");
                    tokio::time::sleep(pause.min(left)).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// Listens until everything has ended, or why that was not heard.
    async fn listen(&mut self, pod: Option<&Pod>) -> Result<Option<RelayError>, Error> {
        let agent = match self.context.pool.agent(&self.watched.endpoint).await {
            Ok(agent) => agent,
            Err(error) => return Ok(Some(error)),
        };
        if agent.instance != self.watched.instance {
            let words = "the sidecar that watched it was started again";
            self.lost(Reason::SidecarLost, words, pod).await?;
            return Ok(None);
        }
        let id = self.session.uid().unwrap_or_default();
        let mut replies = match agent.watch(&id).await {
            Ok(replies) => replies,
            Err(error) => return Ok(Some(error)),
        };
        while !self.watched.pids.is_empty() {
            match replies.next().await {
                Ok(Reply::ScriptEnded(end)) => self.told(&end, pod).await?,
                Ok(Reply::Refused { message, .. }) => {
                    self.lost(Reason::SidecarLost, &message, pod).await?;
                }
                Ok(
                    Reply::Accepted
                    | Reply::Finished(_)
                    | Reply::Unreadable { .. }
                    | Reply::Slow { .. },
                ) => {}
                Err(error) => return Ok(Some(error)),
            }
        }
        Ok(None)
    }

    async fn told(&mut self, end: &ScriptEnd, pod: Option<&Pod>) -> Result<(), Error> {
        // Those that ended before are told again on each stream.
        if !self.watched.pids.remove(&end.pid) {
            return Ok(());
        }
        let seconds = end.after_milliseconds.div_ceil(1000);
        let words = match end.reason {
            Reason::ScriptEnded => {
                format!(
                    "the script of this session has ended by itself, {seconds} s after it started"
                )
            }
            Reason::TargetExited => {
                format!(
                    "the process has ended, {seconds} s after the script of this session started in it"
                )
            }
            Reason::Timeout => {
                format!(
                    "the script of this session is still running, {seconds} s after it started, and is no longer watched"
                )
            }
            other => format!(
                "the script of this session is no longer watched: {}",
                other.sentence()
            ),
        };
        self.record(end.pid, end.reason, &words, pod).await
    }

    /// Nobody will ever tell the end of what is still running.
    async fn lost(&mut self, reason: Reason, why: &str, pod: Option<&Pod>) -> Result<(), Error> {
        let words = match reason {
            Reason::TargetExited | Reason::TargetRestarted => {
                format!("{why}, and the script of this session, which was still running, with it")
            }
            _ => format!(
                "the script of this session is no longer watched, and whether it has ended is not known: {why}"
            ),
        };
        while let Some(pid) = self.watched.pids.pop_first() {
            self.record(pid, reason, &words, pod).await?;
        }
        Ok(())
    }

    /// Tells the end of the script in one process: by Events, then in the status.
    async fn record(
        &self,
        pid: i32,
        reason: Reason,
        words: &str,
        pod: Option<&Pod>,
    ) -> Result<(), Error> {
        info!(pid, %reason, "the end of a script that outlived its session");
        faults::at(Point::ScriptEnded).await;
        self.publish(pid, "session", self.session.object_ref(&()), reason, words)
            .await;
        let uid = Some(self.watched.endpoint.pod_uid.as_str());
        if let Some(pod) = pod.filter(|pod| pod.uid().as_deref() == uid) {
            let words = format!("DebugSession {}: {words}", self.session.name_any());
            self.publish(pid, "pod", pod.object_ref(&()), reason, &words)
                .await;
        }
        faults::at(Point::Told).await;
        self.write(
            pid,
            &Afterwards {
                time: Time(whole_seconds(Timestamp::now())),
                reason: reason.to_string(),
                message: words.to_owned(),
            },
        )
        .await?;
        faults::at(Point::Noted).await;
        Ok(())
    }

    /// One Event, with a name that only this end has.
    async fn publish(
        &self,
        pid: i32,
        kind: &str,
        regarding: ObjectReference,
        reason: Reason,
        words: &str,
    ) {
        let uid = self.session.uid().unwrap_or_default();
        let told = self
            .context
            .events
            .publish_once(
                &format!("sidewinder-{uid}-{pid}-{kind}"),
                regarding,
                self.session,
                reason,
                reason == Reason::ScriptEnded,
                &format!("{words} (pid {pid})"),
            )
            .await;
        // It explains; what counts is the status.
        if let Err(error) = told {
            warn!(error = %describe(&error), "an Event could not be published");
        }
    }

    /// Notes the end in the status as it is now, unless it stands there.
    async fn write(&self, pid: i32, end: &Afterwards) -> Result<(), Error> {
        let client = &self.context.client;
        loop {
            let Some(fresh) = observe::session(client, self.session).await? else {
                return Ok(());
            };
            let mut status = fresh.status.clone().unwrap_or_default();
            let place = status.targets.iter_mut().find(|target| {
                target.pid == Some(pid)
                    && target.pod_uid.as_deref() == Some(&self.watched.endpoint.pod_uid)
                    && waits(target)
            });
            let Some(exec) = place.and_then(|target| target.exec.as_mut()) else {
                return Ok(());
            };
            exec.afterwards = Some(end.clone());
            match apply::status(client, &fresh, &status).await? {
                Written::Done(_) | Written::Gone => return Ok(()),
                Written::Conflict => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
