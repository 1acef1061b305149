//! Structured logs. They carry a session's name, UID and pod, and never a script or what it printed.

use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;

/// Starts logging to stderr.
///
/// # Errors
/// When `filter` is not a filter, or logging was started before.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    // kube logs every refused request as an error; a container that is not there yet is refused many times, and what
    // matters about a refusal is logged where it is handled.
    let words = if filter.contains("kube_client") {
        filter.to_owned()
    } else {
        format!("{filter},kube_client::client::builder=off")
    };
    let filter = EnvFilter::try_new(words)
        .map_err(|error| anyhow::anyhow!("the log filter {filter:?} cannot be used: {error}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            // A session has one span, which stands in `span` already.
            .with_span_list(false)
            .try_init(),
        LogFormat::Text => builder.with_ansi(false).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging cannot be started: {error}"))
}
