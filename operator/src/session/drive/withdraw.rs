//! Work on a pod that is given up: the script that was given to its agent is told to stop, and what came of it is fetched
//! where that can be had. What is not known is said.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sidewinder_crds::{DebugSession, TargetStatus};
use sidewinder_model::Reason;

use super::at_most_once;
use crate::error::{Error, describe};
use crate::fences::words::way_out;
use crate::inject::Refusal;
use crate::relay::budget::Delivered;
use crate::relay::connect::{Connect, Endpoint};
use crate::relay::{Agent, RelayError, Reply};
use crate::session::Context;
use crate::session::plan::{self, Intent};

/// What is known of a script that was given away, after its agent was told to stop it.
#[derive(Debug)]
pub(in crate::session) struct Withdrawn {
    /// In words.
    pub(in crate::session) words: String,
    /// What the agent answered.
    pub(in crate::session) outcome: Option<Delivered>,
    /// Who keeps that until it is written.
    pub(in crate::session) keeper: Option<Arc<Agent>>,
}

impl Withdrawn {
    fn unknown(why: &str) -> Self {
        Self {
            words: format!(
                "whether its script ran, or still runs, is not known: {why}; the sidecar ends it at its deadline"
            ),
            outcome: None,
            keeper: None,
        }
    }
}

/// Stops what was given to the agent of `entry`, within [`plan::CANCEL_LIMIT`]. `None` where nothing was.
pub(in crate::session) async fn withdraw<C: Connect>(
    context: &Context<C>,
    session: &DebugSession,
    entry: &TargetStatus,
) -> Option<Withdrawn> {
    let intent = Intent::read(std::slice::from_ref(entry)).filter(|_| at_most_once(session))?;
    let endpoint = Endpoint {
        namespace: session.namespace().unwrap_or_default(),
        pod: entry.pod_name.clone(),
        pod_uid: intent.pod_uid.clone(),
        container: intent.sidecar.clone(),
    };
    let stop = stop(context, session, &endpoint, &intent);
    Some(match tokio::time::timeout(plan::CANCEL_LIMIT, stop).await {
        Ok(Ok(withdrawn)) => withdrawn,
        Ok(Err(error)) => Withdrawn::unknown(&error.to_string()),
        Err(_) => Withdrawn::unknown(&format!(
            "sidecar {} did not confirm within {} s that it stopped",
            intent.sidecar,
            plan::CANCEL_LIMIT.as_secs()
        )),
    })
}

async fn stop<C: Connect>(
    context: &Context<C>,
    session: &DebugSession,
    endpoint: &Endpoint,
    intent: &Intent,
) -> Result<Withdrawn, RelayError> {
    let agent = context.pool.agent(endpoint).await?;
    if agent.instance != intent.instance {
        let words = format!("sidecar {} was started again", intent.sidecar);
        return Ok(Withdrawn::unknown(&words));
    }
    let Some(request) = plan::fetch(session, intent, Timestamp::now()) else {
        return Ok(Withdrawn::unknown("this version cannot ask for it"));
    };
    // Before, so that what runs is stopped; after, so that what was on its way is.
    agent.cancel(&request.id).await?;
    let mut replies = agent.ask(&request).await?;
    agent.cancel(&request.id).await?;
    loop {
        match replies.next().await? {
            Reply::Finished(outcome) => {
                return Ok(Withdrawn {
                    words: "its script was told to stop, and the sidecar answered".to_owned(),
                    outcome: Some(outcome),
                    keeper: Some(agent),
                });
            }
            Reply::Refused { message, .. }
            | Reply::Unreadable { message, .. }
            | Reply::Slow { message } => {
                return Ok(Withdrawn::unknown(&message));
            }
            Reply::Accepted | Reply::ScriptEnded(_) => {}
        }
    }
}

/// Why the work on a pod is given up, as the reason and the words of its end.
pub(in crate::session) fn why(error: &Error) -> Refusal {
    let (reason, words) = match error.api() {
        Some(status) if status.code == 403 => {
            let reason = Reason::AdmissionForbidden;
            (reason, way_out(reason, &status.message))
        }
        _ => (Reason::InternalError, describe(error)),
    };
    Refusal::new(reason, words)
}

/// How often the work on one pod of several is begun anew after the API server refused something, and the pauses between.
pub(super) const RETRIES: u32 = 4;
pub(super) const PAUSE: Duration = Duration::from_millis(250);
