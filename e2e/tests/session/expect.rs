//! What tests ask of a session, with errors that show what was there instead.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kube::{Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use sidewinder_crds::{DebugSession, DebugSessionStatus, Phase, TargetStatus, conditions};
use sidewinder_e2e::namespace::TestNamespace;
use sidewinder_e2e::{answer, session_client};
use sidewinder_model::{Frame, MAX_SUMMARY_CHARS, Reason, Stacks, Task, Tasks, Thread};

/// Checks that this cluster cannot stamp who asks, where a session was not stamped. From Kubernetes 1.36 on every cluster
/// can: there it is a defect.
pub(crate) async fn cannot_stamp(client: &Client) -> Result<()> {
    let version = client.apiserver_version().await?;
    ensure!(
        !stamps(&version.major, &version.minor),
        "nobody is stamped, and {} has MutatingAdmissionPolicy in v1",
        version.git_version
    );
    eprintln!("{} stamps nobody", version.git_version);
    Ok(())
}

/// Whether an API server of this version has `MutatingAdmissionPolicy` in v1 (KEP-3962). Some say `36+`.
fn stamps(major: &str, minor: &str) -> bool {
    let number = |text: &str| text.trim_end_matches('+').parse::<u32>();
    match (number(major), number(minor)) {
        (Ok(major), Ok(minor)) => (major, minor) >= (1, 36),
        // A version that nobody can read excuses nothing.
        _ => true,
    }
}

/// The status of a session that must be Complete for this reason.
pub(crate) fn complete(session: &DebugSession, reason: Reason) -> Result<&DebugSessionStatus> {
    ended(session, true, reason)
}

/// The status of a session that must have Failed for this reason.
pub(crate) fn failed(session: &DebugSession, reason: Reason) -> Result<&DebugSessionStatus> {
    ended(session, false, reason)
}

fn ended(session: &DebugSession, complete: bool, reason: Reason) -> Result<&DebugSessionStatus> {
    let status = session_client::status_of(session)?;
    let end = session_client::end_of(session)?;
    if end != (complete, reason) {
        bail!(
            "wanted Complete={complete} for {reason:?}, got {end:?}:\n{}",
            serde_yaml::to_string(status)?
        );
    }
    let phase = match (complete, reason) {
        (true, _) => Phase::Succeeded,
        (false, Reason::Cancelled) => Phase::Cancelled,
        (false, _) => Phase::Failed,
    };
    ensure!(
        status.phase == Some(phase),
        "the phase is {:?}, not {phase:?}",
        status.phase
    );
    ensure!(
        status.reason.as_deref() == Some(reason.as_str()),
        "status.reason is {:?}",
        status.reason
    );
    ensure!(
        status.completion_time.is_some(),
        "a session that has ended has no completionTime"
    );
    let summary = status
        .summary
        .as_deref()
        .context("a session that has ended has no summary")?;
    let length = summary.chars().count();
    ensure!(
        (1..=MAX_SUMMARY_CHARS).contains(&length) && !summary.contains('\n'),
        "the summary is {summary:?}"
    );
    Ok(status)
}

/// How long what the operator saw of policies and namespaces may hold on, and how long it waits for what is missing.
const SEEN: Duration = Duration::from_secs(15);
/// The operator says nowhere since when it sees a change.
const ASKED_AGAIN: Duration = Duration::from_millis(200);

/// Waits until a session like this one is let through the fences, or is refused there. Asked by dry runs, which meet the
/// same fences and touch no pod.
pub(crate) async fn until_fences(
    namespace: &TestNamespace,
    like: &DebugSession,
    let_through: bool,
) -> Result<()> {
    let asked = async {
        for number in 0.. {
            if number > 0 {
                tokio::time::sleep(ASKED_AGAIN).await;
            }
            let mut session = like.clone();
            session.metadata.name = Some(format!("{}-{let_through}-{number}", like.name_any()));
            session.spec.dry_run = true;
            let ended = namespace.run(&session).await?;
            match session_client::end_of(&ended)? {
                (true, Reason::DryRun) if let_through => break,
                (false, Reason::PolicyDenied) if !let_through => break,
                (true, Reason::DryRun) | (false, Reason::PolicyDenied) => {}
                other => bail!("{other:?}"),
            }
        }
        Ok(())
    };
    match tokio::time::timeout(SEEN, asked).await {
        Ok(asked) => asked,
        Err(_) => bail!(
            "{}: waited {} s until it is let through: {let_through}",
            like.name_any(),
            SEEN.as_secs()
        ),
    }
}

/// The message of the condition Failed.
pub(crate) fn message(status: &DebugSessionStatus) -> Result<&str> {
    let failed = conditions::find(&status.conditions, conditions::FAILED)
        .context("there is no condition Failed")?;
    Ok(&failed.message)
}

/// Checks a condition's status and that its reason is one of these.
pub(crate) fn condition(
    status: &DebugSessionStatus,
    name: &str,
    value: &str,
    reasons: &[Reason],
) -> Result<()> {
    let found = conditions::find(&status.conditions, name)
        .with_context(|| format!("there is no condition {name}: {:?}", status.conditions))?;
    ensure!(
        found.status == value,
        "{name} is {}: {}",
        found.status,
        found.message
    );
    ensure!(
        reasons.iter().any(|reason| reason.as_str() == found.reason),
        "{name} has the reason {}",
        found.reason
    );
    Ok(())
}

/// The only target.
pub(crate) fn one(status: &DebugSessionStatus) -> Result<&TargetStatus> {
    match status.targets.as_slice() {
        [target] => Ok(target),
        other => bail!("{} targets, not one: {other:?}", other.len()),
    }
}

/// The structured answer of a target.
pub(crate) async fn data<T: DeserializeOwned>(
    namespace: &TestNamespace,
    session: &DebugSession,
    target: &TargetStatus,
) -> Result<T> {
    let data = answer::data(&namespace.client, session, target).await?;
    serde_json::from_value(data.clone())
        .with_context(|| format!("the answer has another shape: {data}"))
}

/// The task of this name.
pub(crate) fn task<'a>(tasks: &'a Tasks, name: &str) -> Result<&'a Task> {
    tasks
        .tasks
        .iter()
        .find(|task| &*task.name == name)
        .with_context(|| format!("there is no task {name}"))
}

/// The thread of this name.
pub(crate) fn thread<'a>(stacks: &'a Stacks, name: &str) -> Result<&'a Thread> {
    let mut threads = stacks
        .interpreters
        .iter()
        .flat_map(|interpreter| &interpreter.threads);
    let names: Vec<&str> = threads.clone().map(|thread| thread.name.as_str()).collect();
    threads
        .find(|thread| thread.name == name)
        .with_context(|| format!("there is no thread {name} among {names:?}"))
}

/// Checks that a stack has a frame of this function in a file of this name, at this line if one is given.
pub(crate) fn frame(
    frames: &[Frame],
    function: &str,
    file: &str,
    line: impl Into<Option<i64>>,
) -> Result<()> {
    let line = line.into();
    let found = frames
        .iter()
        .find(|frame| &*frame.function == function)
        .with_context(|| format!("no frame is of {function}: {frames:#?}"))?;
    ensure!(
        found.file.rsplit('/').next() == Some(file),
        "{function} is in {}, not in {file}",
        found.file
    );
    ensure!(found.line.is_some(), "{function} has no line");
    ensure!(
        line.is_none() || found.line == line,
        "{function} is at line {:?}, not at {line:?}",
        found.line
    );
    Ok(())
}

#[test]
fn clusters_from_1_36_on_stamp() {
    for (major, minor, expected) in [
        ("1", "35", false),
        ("1", "35+", false),
        ("1", "36", true),
        ("1", "36+", true),
        ("2", "0", true),
        ("", "", true),
    ] {
        assert_eq!(stamps(major, minor), expected, "{major}.{minor}");
    }
}
