//! What the agent is asked, in its own words, and how long its answer is waited for. A cancelled session asks, too,
//! with no time to begin anything: that is how the outcome of what ran already is fetched.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use sidewinder_crds::{
    AsyncioFormat, DebugSession, DebugSessionSpec, LocalsMode, SelectMode, SessionAction,
    ThreadSelector, WakePolicy,
};
use sidewinder_model::request::{ProcessMode, ProcessSelector};
use sidewinder_model::{Action, ExecRequest, Locals, Reason, Request, TaskFormat, ThreadChoice};

use super::{ANSWER_GRACE, CANCEL_LIMIT, ENTER_LIMIT, Intent, Observed, Step, after, end};

/// The action in the agent's words. `None` for a session whose spec names no or several actions, which the schema
/// does not let in.
pub fn action(spec: &DebugSessionSpec, script: Option<&str>) -> Option<Action> {
    Some(match spec.action()? {
        SessionAction::Processes(_) => Action::Processes,
        SessionAction::AsyncioSnapshot(snapshot) => Action::Tasks {
            format: match snapshot.format {
                AsyncioFormat::Tree => TaskFormat::Tree,
                AsyncioFormat::Table => TaskFormat::Table,
            },
        },
        SessionAction::Stacks(stacks) => Action::Stacks {
            locals: match stacks.locals {
                LocalsMode::None => Locals::None,
                LocalsMode::Types => Locals::Types,
                LocalsMode::Values => Locals::Values,
            },
        },
        SessionAction::RemoteExec(exec) => Action::Exec(ExecRequest {
            script: script.unwrap_or_default().to_owned(),
            thread: match exec.thread {
                ThreadSelector::Auto => ThreadChoice::Auto,
                ThreadSelector::Main => ThreadChoice::Main,
                ThreadSelector::Any => ThreadChoice::Any,
                ThreadSelector::Tid(tid) => ThreadChoice::Tid(u64::from(tid.unsigned_abs())),
            },
            wake: match exec.wake {
                WakePolicy::Auto => sidewinder_model::WakePolicy::Auto,
                WakePolicy::Interrupt => sidewinder_model::WakePolicy::Interrupt,
                WakePolicy::Never => sidewinder_model::WakePolicy::Never,
            },
            interpreter: exec.interpreter,
            start_milliseconds: milliseconds(exec.start_seconds),
        }),
    })
}

fn milliseconds(seconds: i32) -> u64 {
    u64::from(seconds.unsigned_abs()) * 1000
}

/// How long the action may take.
pub fn timeout(spec: &DebugSessionSpec) -> Duration {
    Duration::from_millis(milliseconds(spec.timeout_seconds))
}

pub(super) fn ask(
    session: &DebugSession,
    observed: &Observed,
    script: Option<&str>,
    container_id: &str,
    instance: Option<&str>,
    now: Timestamp,
) -> Step {
    let spec = &session.spec;
    let Some(mut action) = action(spec, script) else {
        return end(Reason::InternalError, "the session names no action");
    };
    let cancel = observed.cancelled_since.is_some();
    let mut limit = timeout(spec);
    let until = if let Some(cancelled) = observed.cancelled_since {
        after(cancelled, CANCEL_LIMIT)
    } else {
        after(
            observed.asked_since.unwrap_or(now),
            limit.saturating_add(ANSWER_GRACE),
        )
    };
    let unknown = script.is_none() && action.at_most_once();
    let barred = observed.barred.is_some();
    if cancel || unknown || barred {
        // Asking is how an outcome is fetched; a request that never arrived must not begin now.
        limit = Duration::ZERO;
        if let Action::Exec(exec) = &mut action {
            exec.start_milliseconds = 0;
            if barred {
                exec.script.clear();
            }
        }
    }
    // The stream may have been down when the action's own time ran out; the agent keeps its outcome.
    let back = observed
        .entering_since
        .map_or(until, |since| after(since, ENTER_LIMIT));
    Step::Ask {
        request: Box::new(Request {
            id: session.uid().unwrap_or_default(),
            name: Some(session.name_any()),
            instance: instance.map(str::to_owned),
            action,
            process: spec.target.process.as_ref().and_then(|process| {
                match (process.pid, &process.command) {
                    (Some(pid), _) => Some(ProcessSelector::Pid(pid)),
                    (None, Some(pattern)) => Some(ProcessSelector::Command {
                        pattern: pattern.clone(),
                        mode: match process.mode.unwrap_or_default() {
                            SelectMode::One => ProcessMode::One,
                            SelectMode::All => ProcessMode::All,
                        },
                    }),
                    (None, None) => None,
                }
            }),
            container_id: Some(bare_id(container_id).to_owned()),
            timeout_milliseconds: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        }),
        until: if cancel { until } else { until.max(back) },
        cancel,
    }
}

/// The request that fetches what became of a script that was given away, and begins nothing.
pub fn fetch(session: &DebugSession, intent: &Intent, now: Timestamp) -> Option<Request> {
    let observed = Observed {
        cancelled_since: Some(now),
        ..Observed::default()
    };
    let (id, instance) = (&intent.container_id, Some(intent.instance.as_str()));
    match ask(session, &observed, None, id, instance, now) {
        Step::Ask { request, .. } => Some(*request),
        _ => None,
    }
}

/// The runtime's id without the runtime's name.
fn bare_id(container_id: &str) -> &str {
    container_id
        .split_once("://")
        .map_or(container_id, |(_, id)| id)
}
