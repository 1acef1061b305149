//! Applying sessions and waiting for what becomes of them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use sidewinder_crds::conditions::{self, COMPLETE, FAILED};
use sidewinder_crds::{
    AsyncioSnapshot, DebugSession, DebugSessionSpec, DebugSessionStatus, Processes, RemoteExec,
    StacksAction, TargetStatus,
};
use sidewinder_model::Reason;

use crate::{deploy, watch};

/// How much longer than its own limits a session may take: a minute for getting the sidecar in, and what the
/// reconciliation takes on a busy machine.
const GRACE: Duration = Duration::from_secs(90);

/// A session called `name` on the pod `pod` with no action yet.
pub fn session(name: &str, pod: &str) -> DebugSession {
    DebugSession::new(name, DebugSessionSpec::for_pod(pod))
}

/// A session that lists the Python processes.
pub fn processes(name: &str, pod: &str) -> DebugSession {
    let mut session = session(name, pod);
    session.spec.processes = Some(Processes::default());
    session
}

/// A session that reads every asyncio task.
pub fn tasks(name: &str, pod: &str) -> DebugSession {
    let mut session = session(name, pod);
    session.spec.asyncio_snapshot = Some(AsyncioSnapshot::default());
    session
}

/// A session that reads the stack of every thread.
pub fn stacks(name: &str, pod: &str) -> DebugSession {
    let mut session = session(name, pod);
    session.spec.stacks = Some(StacksAction::default());
    session
}

/// A session that runs `script`.
pub fn exec(name: &str, pod: &str, script: &str) -> DebugSession {
    let mut session = session(name, pod);
    session.spec.remote_exec = Some(RemoteExec {
        script: Some(script.to_owned()),
        ..RemoteExec::default()
    });
    session
}

/// Creates the session.
///
/// # Errors
/// When the API server refuses it, in its own words.
pub async fn create(sessions: &Api<DebugSession>, session: &DebugSession) -> Result<DebugSession> {
    sessions
        .create(&PostParams::default(), session)
        .await
        .with_context(|| format!("cannot create the DebugSession {}", session.name_any()))
}

/// Creates the session and waits for its end, one way or the other.
///
/// # Errors
/// When the API server refuses it, or it has not ended at its own limits and then some.
pub async fn run(sessions: &Api<DebugSession>, session: &DebugSession) -> Result<DebugSession> {
    create(sessions, session).await?;
    ended(sessions, session).await
}

/// Waits for the session's end, one way or the other.
///
/// # Errors
/// When it has not ended at its own limits and then some.
pub async fn ended(sessions: &Api<DebugSession>, session: &DebugSession) -> Result<DebugSession> {
    let limit = Duration::from_secs(session.spec.timeout_seconds.unsigned_abs().into())
        .saturating_add(GRACE);
    let name = session.name_any();
    watch::until_object(sessions, &name, limit, "its end", |session| {
        session
            .status
            .as_ref()
            .is_some_and(|status| conditions::has_ended(&status.conditions))
    })
    .await
    .map_err(|error| with_log(&error))
}

/// Waits until the session's status is as `reached` wants it.
///
/// # Errors
/// When it is not within `limit`.
pub async fn status(
    sessions: &Api<DebugSession>,
    name: &str,
    limit: Duration,
    what: &str,
    reached: impl Fn(&DebugSessionStatus) -> bool,
) -> Result<DebugSession> {
    watch::until_object(sessions, name, limit, what, |session| {
        session.status.as_ref().is_some_and(&reached)
    })
    .await
    .map_err(|error| with_log(&error))
}

/// Sets `cancel`.
///
/// # Errors
/// When the API server refuses.
pub async fn cancel(sessions: &Api<DebugSession>, name: &str) -> Result<()> {
    sessions
        .patch(
            name,
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"cancel": true}})),
        )
        .await
        .with_context(|| format!("cannot cancel the DebugSession {name}"))?;
    Ok(())
}

/// Deletes the session and waits until it is gone.
///
/// # Errors
/// When it is not gone within `limit`.
pub async fn delete(sessions: &Api<DebugSession>, name: &str, limit: Duration) -> Result<()> {
    sessions
        .delete(name, &DeleteParams::default())
        .await
        .with_context(|| format!("cannot delete the DebugSession {name}"))?;
    watch::until(sessions, name, limit, "it to be gone", |session| {
        session.is_none()
    })
    .await
    .map_err(|error| with_log(&error))?;
    Ok(())
}

/// Adds where to look: what a session waits for, the operator does.
fn with_log(error: &anyhow::Error) -> anyhow::Error {
    anyhow::anyhow!(
        "{error:#}\nthe operator's log may say why: {}",
        deploy::OPERATOR_LOG
    )
}

/// The status of a session that has one.
///
/// # Errors
/// When it has none.
pub fn status_of(session: &DebugSession) -> Result<&DebugSessionStatus> {
    session
        .status
        .as_ref()
        .with_context(|| format!("{} has no status", session.name_any()))
}

/// The one target of a session.
///
/// # Errors
/// When there are none or several.
pub fn target_of(session: &DebugSession) -> Result<&TargetStatus> {
    match status_of(session)?.targets.as_slice() {
        [target] => Ok(target),
        other => anyhow::bail!(
            "{} has {} targets, not one",
            session.name_any(),
            other.len()
        ),
    }
}

/// The reason of the condition that ended the session, and whether it is Complete.
///
/// # Errors
/// When the session has not ended, both conditions hold, or a reason is not one of the closed list.
pub fn end_of(session: &DebugSession) -> Result<(bool, Reason)> {
    let status = status_of(session)?;
    let find = |name| {
        conditions::find(&status.conditions, name).with_context(|| {
            format!(
                "{} has ended without the condition {name}",
                session.name_any()
            )
        })
    };
    let (complete, failed) = (find(COMPLETE)?, find(FAILED)?);
    let ended = match (complete.status.as_str(), failed.status.as_str()) {
        ("True", "False") => complete,
        ("False", "True") => failed,
        both => anyhow::bail!("{}: Complete and Failed are {both:?}", session.name_any()),
    };
    let reason = ended
        .reason
        .parse()
        .map_err(|_| anyhow::anyhow!("the reason {} is not in the list", ended.reason))?;
    Ok((ended.type_ == COMPLETE, reason))
}
