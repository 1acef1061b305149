//! The end: the results are stored before the status names them, the status is written before the agent may forget the
//! outcome, and only then metrics, logs and Events tell of it. A session that was deleted has only its work stopped.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sidewinder_crds::{DebugSession, SessionAction, conditions};
use sidewinder_model::Reason;
use tracing::{info, warn};

use super::{Flow, Outcome, Run};
use crate::error::Error;
use crate::metrics::Ended;
use crate::relay::Reply;
use crate::relay::connect::Connect;
use crate::session::apply;
use crate::session::plan::{self, Answer, End};
use crate::session::result::{finish, readable};

impl<C: Connect> Run<'_, C> {
    /// The session was deleted: whatever runs for it is stopped, within [`plan::CANCEL_LIMIT`].
    pub(super) async fn abandon(&mut self) {
        let out = self.observed.asked_since.is_some() || self.observed.intent.is_some();
        if !out || self.observed.answer.is_some() {
            info!("deleted");
            return;
        }
        let id = self.session.uid().unwrap_or_default();
        let stop = async {
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
        };
        match tokio::time::timeout(plan::CANCEL_LIMIT, stop).await {
            Ok(Ok(())) => info!("deleted while it ran; what ran was stopped"),
            Ok(Err(error)) => {
                warn!(%error, "deleted while it ran; the agent could not be told and ends it at its deadline");
            }
            Err(_) => warn!("deleted while it ran; the agent did not confirm in time"),
        }
    }

    pub(super) async fn end(&mut self, end: &End) -> Result<Flow, Error> {
        let notes = if self.observed.refused.is_empty() {
            String::new()
        } else {
            format!("; {}", plan::refused_ways(&self.observed.refused))
        };
        let now = Timestamp::now();
        let base = DebugSession {
            status: Some(self.status.clone()),
            ..self.session.clone()
        };
        let elapsed = self.elapsed(now);
        let mut finished = finish(
            &base,
            end,
            &self.entry,
            &notes,
            self.context.settings.sensitive,
            elapsed,
            now,
        );
        let documents = std::mem::take(&mut finished.documents);
        for (place, document) in &documents {
            self.context.metrics.result_bytes.observe(f64::from(
                u32::try_from(document.json.len()).unwrap_or(u32::MAX),
            ));
            let (secrets, reference) = match document.secrets(&self.session) {
                Ok(stored) => stored,
                Err(error) => {
                    finished.not_stored(&error.to_string(), self.session.metadata.generation, now);
                    continue;
                }
            };
            let mut refused = None;
            for secret in &secrets {
                if let Err(error) = apply::secret(&self.context.client, secret).await {
                    refused = Some(error);
                    break;
                }
            }
            match refused {
                None => finished.store(*place, reference),
                Some(error) => {
                    warn!(%error, "a result could not be stored");
                    let words = error
                        .api()
                        .map_or_else(|| error.to_string(), |status| status.message.clone());
                    finished.not_stored(&words, self.session.metadata.generation, now);
                }
            }
        }
        self.status = finished.status;
        if let Flow::Stop(outcome) = self.save().await? {
            return Ok(Flow::Stop(outcome));
        }
        if let (Some(agent), Some(Answer::Finished(_))) = (&self.agent, &self.observed.answer) {
            // An agent that does not hear it forgets the outcome by itself.
            let _ = agent
                .acknowledge(&self.session.uid().unwrap_or_default())
                .await;
        }
        self.report(finished.reason, finished.complete, elapsed);
        Ok(Flow::Stop(Outcome::Ended))
    }

    /// From the session's start to now. What stands in the status is cut to whole seconds: a start that is a second or
    /// more before this run's own was another run's, and then only whole seconds are known.
    fn elapsed(&self, now: Timestamp) -> Duration {
        let started = plan::started(&self.session, now);
        let whole = Duration::try_from(now.duration_since(started)).unwrap_or_default();
        let here = self.began.elapsed();
        if whole > here + Duration::from_secs(1) {
            whole
        } else {
            here
        }
    }

    fn report(&self, reason: Reason, complete: bool, elapsed: Duration) {
        let context = self.context;
        let action = self
            .session
            .spec
            .action()
            .map_or("none", SessionAction::name);
        context
            .metrics
            .sessions
            .get_or_create(&Ended {
                action: action.to_owned(),
                result: if complete { "Complete" } else { "Failed" }.to_owned(),
                reason: reason.to_string(),
            })
            .inc();
        context
            .metrics
            .session_duration
            .observe(elapsed.as_secs_f64());
        for target in &self.status.targets {
            if let Some(paused) = target.paused_microseconds {
                context
                    .metrics
                    .pause
                    .observe(Duration::from_micros(paused.unsigned_abs()).as_secs_f64());
            }
        }
        // What the target or the script said stays out of Events and logs.
        let words = if complete {
            reason.sentence().to_owned()
        } else {
            conditions::find(&self.status.conditions, conditions::FAILED)
                .map(|condition| condition.message.clone())
                .unwrap_or_default()
        };
        info!(%reason, complete, duration = readable(elapsed), "ended");
        context.events.publish(
            &self.session,
            &self.session,
            reason,
            complete,
            &format!("{action}: {words}"),
        );
        if let Some(pod) = &self.observed.pod
            && (self.observed.asked_since.is_some() || self.observed.intent.is_some())
        {
            context.events.publish(
                pod,
                &self.session,
                reason,
                complete,
                &format!(
                    "DebugSession {}: {action}: {}",
                    self.session.name_any(),
                    reason.sentence()
                ),
            );
        }
    }
}
