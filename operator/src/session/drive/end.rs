//! The end: the results are stored before the status names them, the status is written before the agents may forget the
//! outcomes, and only then metrics, logs and Events tell of it. A session that was deleted has only its work stopped.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::ObjectMeta;
use sidewinder_crds::{DebugSession, SessionAction, conditions};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::board::Board;
use super::run::Run;
use super::{Flow, Outcome, elapsed};
use crate::error::Error;
use crate::faults::{self, Point};
use crate::fences::audit;
use crate::relay::connect::Connect;
use crate::relay::{RelayError, Reply};
use crate::session::result::{Finished, PodEnd, Reached};
use crate::session::{Context, plan};
use crate::telemetry;

/// The pause before an agent that could not be told to stop is told again.
const AGAIN: Duration = Duration::from_millis(500);

impl<C: Connect> Run<'_, C> {
    /// The session was deleted: whatever runs for it is stopped, within [`plan::CANCEL_LIMIT`].
    pub(super) async fn abandon(&mut self) {
        let out = self.observed.asked_since.is_some() || self.observed.intent.is_some();
        if !out || self.observed.answer.is_some() {
            info!("deleted");
            return;
        }
        faults::at(Point::Abandon).await;
        // Nobody comes after this task: the session that named the script is gone.
        let stop = async {
            loop {
                match self.stop().await {
                    Err(error) if passes(&error) => {
                        debug!(%error, "the agent cannot be told yet");
                        self.agent = None;
                        self.replies = None;
                        tokio::time::sleep(AGAIN).await;
                    }
                    told => return told,
                }
            }
        };
        match tokio::time::timeout(plan::CANCEL_LIMIT, stop).await {
            Ok(Ok(())) => info!("deleted while it ran; what ran was stopped"),
            Ok(Err(error)) => {
                warn!(%error, "deleted while it ran; the agent could not be told and ends it at its deadline");
            }
            Err(_) => warn!("deleted while it ran; the agent did not confirm in time"),
        }
    }

    /// Tells the agent to stop what runs, and to forget it.
    async fn stop(&mut self) -> Result<(), RelayError> {
        let id = self.session.uid().unwrap_or_default();
        let agent = match (&self.agent, &self.entry.sidecar) {
            (Some(agent), _) if !agent.is_closed() => Arc::clone(agent),
            (_, Some(sidecar)) => self.context.pool.agent(&self.endpoint(sidecar)).await?,
            _ => return Ok(()),
        };
        agent.cancel(&id).await?;
        if let Some(replies) = &mut self.replies {
            while replies.next().await? == Reply::Accepted {}
        }
        agent.acknowledge(&id).await
    }
}

/// Whether another attempt at the same agent may go better.
fn passes(error: &RelayError) -> bool {
    matches!(
        error,
        RelayError::NodeUnreachable(_)
            | RelayError::Unavailable(_)
            | RelayError::Ended(_)
            | RelayError::Silent(_)
    )
}

/// Writes the end of the session and tells of it. `lone` is the end of a session without pods.
pub(super) async fn end<C: Connect>(
    context: &Context<C>,
    board: &Board<'_, C>,
    lone: Option<PodEnd>,
    began: Instant,
) -> Result<Outcome, Error> {
    let mut took = Duration::ZERO;
    let (flow, finished, ends) = board
        .finish(lone, |session, now| {
            took = elapsed(session, began, now);
            took
        })
        .await?;
    if let Flow::Stop(outcome) = flow {
        return Ok(outcome);
    }
    let session = board.session().await;
    faults::at(Point::Report).await;
    report(context, &session, &finished, &ends, took);
    faults::at(Point::Reported).await;
    Ok(Outcome::Ended(Box::new(session)))
}

/// Tells of a session's end in metrics, logs and Events.
pub(in crate::session) fn report<C>(
    context: &Context<C>,
    session: &DebugSession,
    finished: &Finished,
    ends: &[PodEnd],
    took: Duration,
) {
    let Finished {
        status,
        reason,
        complete,
    } = finished;
    let metrics = &context.metrics;
    metrics.session_ended(session.spec.action(), *complete, *reason, took);
    for target in ends.iter().flat_map(|end| &end.entries) {
        let target = &target.status;
        let reason = target
            .reason
            .as_deref()
            .and_then(|reason| reason.parse().ok());
        let paused = target
            .paused_microseconds
            .map(|paused| Duration::from_micros(paused.unsigned_abs()));
        metrics.target_ended(reason.unwrap_or(finished.reason), paused);
    }
    let action = session.spec.action().map_or("none", SessionAction::name);
    // What the target or the script said stays out of Events and logs.
    let words = if *complete {
        reason.sentence().to_owned()
    } else {
        conditions::find(&status.conditions, conditions::FAILED)
            .map(|condition| condition.message.clone())
            .unwrap_or_default()
    };
    let digest = status.script_sha256.as_deref();
    let record_of = |end: &PodEnd| {
        let entry = end.entries.first().map(|entry| &entry.status);
        let pod = entry.map(|entry| {
            let uid = entry.pod_uid.as_deref().unwrap_or_default();
            (entry.pod_name.as_str(), uid)
        });
        audit::record(session, digest, pod, end.reason)
    };
    for end in ends {
        record_of(end).log();
    }
    let whole = match ends {
        [end] => record_of(end),
        _ => audit::record(session, digest, None, *reason),
    };
    telemetry::session_ended(session, *reason, *complete, took);
    context.events.publish(
        session,
        session,
        *reason,
        *complete,
        &format!("{action}: {words} [{}]", whole.note()),
    );
    for end in ends.iter().filter(|end| end.reached >= Reached::Request) {
        let Some(entry) = end.entries.first() else {
            continue;
        };
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some(entry.status.pod_name.clone()),
                namespace: session.namespace(),
                uid: entry.status.pod_uid.clone(),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        };
        context.events.publish(
            &pod,
            session,
            end.reason,
            end.complete,
            &format!(
                "DebugSession {}: {action}: {} [{}]",
                session.name_any(),
                end.reason.sentence(),
                record_of(end).note()
            ),
        );
    }
}
