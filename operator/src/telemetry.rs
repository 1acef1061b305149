//! Logs and traces. They carry a session's name, UID and pod, and never a script or what it printed.
//!
//! Logs: one line per event, on stderr. In JSON a line is one flat object; what a session's span knows (`namespace`,
//! `name`, `uid`, `pod`, `action`) stands in each of its lines. Two lines of a session are documented and stay as they
//! are: [`session_started`] and [`session_ended`].
//!
//! Traces: where an OTLP endpoint is given, the session's span and those of its steps and requests are sent there.

mod json;
pub mod traces;

use std::time::Duration;

use kube::ResourceExt;
use sidewinder_crds::DebugSession;
use sidewinder_model::Reason;
use tokio::runtime::Handle;
use tracing::{Metadata, Span, info, info_span};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use self::traces::{TraceArgs, Traces};
use crate::args::LogFormat;

/// The target of spans that are for traces alone: in logs they would say nothing that the session's span does not.
const TRACES_ONLY: &str = "sidewinder_traces";
/// How many UIDs of pods a line names; the rest is counted.
const MAX_POD_UIDS: usize = 64;

/// Starts logging to stderr, and tracing where `args` say so. What is returned sends the last traces when it is told to
/// [`finish`](Telemetry::finish).
///
/// # Errors
/// When `filter` is not a filter, traces cannot be set up, or logging was started before.
pub fn start(
    filter: &str,
    format: LogFormat,
    args: &TraceArgs,
    runtime: &Handle,
) -> anyhow::Result<Telemetry> {
    let filter = log_filter(filter)?;
    let traces = Traces::start(args, runtime)?;
    let layer = fmt::layer().with_writer(std::io::stderr);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Json => layer
            .fmt_fields(fmt::format::JsonFields::new())
            .event_format(json::Flat)
            .with_filter(filter)
            .boxed(),
        LogFormat::Text => layer.with_ansi(false).with_filter(filter).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines)
        .with(traces.as_ref().map(Traces::layer))
        .try_init()
        .map_err(|error| anyhow::anyhow!("logging cannot be started: {error}"))?;
    if let Some(traces) = &traces {
        info!(endpoint = traces.endpoint(), "traces are sent");
    }
    Ok(Telemetry { traces })
}

fn log_filter(filter: &str) -> anyhow::Result<EnvFilter> {
    let mut words = format!("{filter},{TRACES_ONLY}=off");
    // kube logs every refused request as an error; a container that is not there yet is refused many times, and what
    // matters about a refusal is logged where it is handled.
    if !filter.contains("kube_client") {
        words.push_str(",kube_client::client::builder=off");
    }
    // What the exporter says of each batch would be sent as the next one.
    if !filter.contains("opentelemetry") {
        words.push_str(",opentelemetry=warn,opentelemetry_sdk=warn,opentelemetry_otlp=warn");
    }
    EnvFilter::try_new(words)
        .map_err(|error| anyhow::anyhow!("the log filter {filter:?} cannot be used: {error}"))
}

/// What has to be ended.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<Traces>,
}

impl Telemetry {
    /// Sends what was not sent yet, within a limit. The runtime has to be there still.
    pub fn finish(self) {
        if let Some(traces) = self.traces {
            traces.finish();
        }
    }
}

/// The span of all work for a session: its fields stand in every line that is logged within.
pub fn session_span(session: &DebugSession) -> Span {
    info_span!(
        parent: None,
        "session",
        namespace = session.namespace().unwrap_or_default(),
        name = session.name_any(),
        uid = session.uid().unwrap_or_default(),
        pod = session.spec.target.pod_name,
        action = action(session),
        result = tracing::field::Empty,
        reason = tracing::field::Empty,
        otel.status_code = tracing::field::Empty,
    )
}

/// The span of the work on one pod of a session: its lines name that pod.
pub fn pod_span(pod: &str) -> Span {
    info_span!("pod", pod)
}

/// The span of one step of a session, for traces.
pub fn step_span(step: &'static str) -> Span {
    info_span!(
        target: TRACES_ONLY,
        "step",
        otel.name = step,
        step,
        result = tracing::field::Empty,
        reason = tracing::field::Empty,
        otel.status_code = tracing::field::Empty,
    )
}

/// Whether a span is one of ours.
fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target() == TRACES_ONLY || metadata.target().starts_with("sidewinder_operator")
}

/// The span of one request of the API server, for traces, where it belongs to a session: watches and renewals of the
/// Lease would be a trace each. The path stays out: it says no more than the session's span.
pub fn api_span(verb: &'static str, resource: &'static str) -> Span {
    if !Span::current().metadata().is_some_and(is_ours) {
        return Span::none();
    }
    info_span!(
        target: TRACES_ONLY,
        "api",
        otel.kind = "client",
        verb,
        resource,
        code = tracing::field::Empty,
    )
}

fn action(session: &DebugSession) -> &'static str {
    session.spec.action().map_or("none", |action| action.name())
}

fn requester(session: &DebugSession) -> Option<&str> {
    let requester = session.spec.requested_by.as_ref();
    requester.map(|requester| requester.username.as_str())
}

fn script(session: &DebugSession) -> Option<&str> {
    session.status.as_ref()?.script_sha256.as_deref()
}

/// The UIDs of the pods that a session is about, each once, with a comma between.
fn pod_uids(session: &DebugSession) -> String {
    let targets = session.status.iter().flat_map(|status| &status.targets);
    let mut uids: Vec<&str> = targets
        .filter_map(|target| target.pod_uid.as_deref())
        .collect();
    uids.sort_unstable();
    uids.dedup();
    let more = uids.len().saturating_sub(MAX_POD_UIDS);
    uids.truncate(MAX_POD_UIDS);
    let rest = format!("+{more}");
    if more > 0 {
        uids.push(&rest);
    }
    uids.join(",")
}

/// The line that says that work on a session begins, or goes on in this replica. Documented in `docs/operations.md`.
pub fn session_started(session: &DebugSession, resumed: bool) {
    info!(
        requester = requester(session),
        purpose = session.spec.reason,
        script_sha256 = script(session),
        pod_uids = pod_uids(session),
        resumed,
        "session started"
    );
}

/// The line that says that a session has ended, with its final status. Documented in `docs/operations.md`.
pub fn session_ended(session: &DebugSession, reason: Reason, complete: bool, elapsed: Duration) {
    let result = result(complete);
    let span = Span::current();
    span.record("result", result);
    span.record("reason", reason.as_str());
    if !complete {
        span.record("otel.status_code", "ERROR");
    }
    info!(
        requester = requester(session),
        purpose = session.spec.reason,
        script_sha256 = script(session),
        pod_uids = pod_uids(session),
        result,
        reason = reason.as_str(),
        targets = session
            .status
            .as_ref()
            .map_or(0, |status| status.targets.len()),
        duration_seconds = elapsed.as_secs_f64(),
        "session ended"
    );
}

/// How metrics and logs call an end.
pub(crate) fn result(complete: bool) -> &'static str {
    if complete { "Complete" } else { "Failed" }
}

#[cfg(test)]
mod tests;
