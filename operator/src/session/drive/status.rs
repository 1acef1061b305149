//! How far the session is, in its status: what is shown on the way, and to whom the status belongs. A write that meets
//! another one goes on where nobody else works on the session, and leaves it where somebody does.

use k8s_openapi::jiff::Timestamp;
use sidewinder_crds::conditions::{self, Observation};
use sidewinder_crds::{Phase, TargetStatus};
use sidewinder_model::Reason;
use tracing::warn;

use super::{Flow, Outcome, Run};
use crate::error::Error;
use crate::relay::connect::Connect;
use crate::session::apply::{self, Written};
use crate::session::observe;

impl<C: Connect> Run<'_, C> {
    pub(super) fn mark_running(&mut self) {
        let now = Timestamp::now();
        let generation = self.session.metadata.generation;
        self.status.phase = Some(Phase::Running);
        self.status.targets = vec![TargetStatus {
            phase: Some(Phase::Running),
            ..self.entry.clone()
        }];
        self.status.pods = Some("0/1".to_owned());
        for (condition, reason) in [
            (conditions::ACCEPTED, Reason::Accepted),
            (conditions::ATTACHED, Reason::Attached),
        ] {
            conditions::set(
                &mut self.status.conditions,
                Observation {
                    condition,
                    status: true,
                    reason: reason.to_string(),
                    message: reason.sentence().to_owned(),
                },
                generation,
                now,
            );
        }
    }

    /// Shows how far the session is, where that changed.
    pub(super) async fn progress(&mut self, phase: Phase) -> Result<Flow, Error> {
        let before = self.status.clone();
        // An intent stands as it was written until the end.
        if self.observed.intent.is_none() {
            if phase == Phase::Running {
                self.mark_running();
            } else {
                self.status.phase = Some(phase);
                self.status.pods = Some("0/1".to_owned());
                self.status.targets = vec![TargetStatus {
                    phase: Some(phase),
                    agent: None,
                    ..self.entry.clone()
                }];
                conditions::set(
                    &mut self.status.conditions,
                    Observation {
                        condition: conditions::ACCEPTED,
                        status: true,
                        reason: Reason::Accepted.to_string(),
                        message: Reason::Accepted.sentence().to_owned(),
                    },
                    self.session.metadata.generation,
                    Timestamp::now(),
                );
            }
        }
        if before == self.status && self.session.status.as_ref() == Some(&self.status) {
            return Ok(Flow::Continue);
        }
        self.save().await
    }

    /// Writes `self.status`, unless somebody else wrote a status meanwhile.
    pub(super) async fn save(&mut self) -> Result<Flow, Error> {
        loop {
            self.status.observed_generation = self.session.metadata.generation;
            match apply::status(&self.context.client, &self.session, &self.status).await? {
                Written::Done(session) => {
                    self.session = *session;
                    self.status = self.session.status.clone().unwrap_or_default();
                    return Ok(Flow::Continue);
                }
                Written::Gone => return self.session_gone().await,
                Written::Conflict => {
                    let Some(fresh) = observe::session(&self.context.client, &self.session).await?
                    else {
                        return self.session_gone().await;
                    };
                    let known = self.session.status.as_ref();
                    let theirs = fresh.status.as_ref();
                    if theirs == Some(&self.status) {
                        // The write arrived and its answer did not.
                        self.session = fresh;
                        return Ok(Flow::Continue);
                    }
                    let untouched = theirs.is_none_or(|theirs| theirs.phase.is_none());
                    if theirs != known && !untouched {
                        warn!("another operator wrote the status; leaving the session to it");
                        return Ok(Flow::Stop(Outcome::Superseded));
                    }
                    self.note_signal(fresh.spec.cancel);
                    self.session = fresh;
                }
            }
        }
    }

    async fn session_gone(&mut self) -> Result<Flow, Error> {
        self.gone = true;
        self.abandon().await;
        Ok(Flow::Stop(Outcome::Gone))
    }
}
