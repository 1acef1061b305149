//! What Prometheus sees. Labels are closed sets: no pod, no namespace, no user, no image.

mod api;
mod process;

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use sidewinder_crds::SessionAction;
use sidewinder_model::Reason;

pub use self::api::Api;
use crate::telemetry;

/// How long a target may stand still, in seconds: from what is usual to the limit, with a bound at each size that an
/// alert or an objective may name.
const PAUSES: [f64; 15] = [
    0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
    0.5, 1.0,
];

/// The actions whose failures are there as zero before the first one.
const ACTIONS: [&str; 4] = ["processes", "asyncioSnapshot", "stacks", "remoteExec"];

/// Bytes over the relays, and how many there are.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// To agents.
    pub sent: Counter,
    /// From agents.
    pub received: Counter,
    streams: Gauge<i64, AtomicI64>,
}

impl Traffic {
    /// A stream was opened; it counts until what is returned is dropped.
    pub fn opened(&self) -> OpenStream {
        self.streams.inc();
        OpenStream(self.streams.clone())
    }
}

/// A stream that is open.
#[derive(Debug)]
pub struct OpenStream(Gauge<i64, AtomicI64>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Labels of an ended session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ended {
    /// The action's name.
    pub action: String,
    /// `Complete` or `Failed`.
    pub result: String,
    /// One of the closed list of reasons.
    pub reason: String,
}

/// Labels of a step's duration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StepLabel {
    /// The step's name.
    pub step: String,
}

/// Labels of an injected sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SidecarLabel {
    /// `Ptrace` or `SameUser`.
    pub attach: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ActionLabel {
    action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyLabel {
    policy: &'static str,
}

/// Labels of the running version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabel {
    version: &'static str,
}

/// How long sessions took, by their action.
#[derive(Clone, Debug)]
struct SessionDuration(Family<ActionLabel, Histogram, fn() -> Histogram>);

impl SessionDuration {
    fn of(&self, action: &'static str, seconds: f64) {
        self.0
            .get_or_create(&ActionLabel { action })
            .observe(seconds);
    }
}

/// Every metric of the operator. Clones share the numbers.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Ended sessions.
    sessions: Family<Ended, Counter>,
    /// Sessions that are being worked on or wait for it.
    pub active: Gauge<i64, AtomicI64>,
    /// Ended sessions whose scripts are still running and are watched.
    pub watched: Gauge<i64, AtomicI64>,
    queued: Gauge<i64, AtomicI64>,
    queue_wait: Histogram,
    /// From the start of a session to its end.
    session_duration: SessionDuration,
    /// How long each step took.
    pub step_duration: Family<StepLabel, Histogram, fn() -> Histogram>,
    targets: Family<ReasonLabel, Counter>,
    /// How long targets stood still.
    pause: Histogram,
    /// Whole outcomes, before compression.
    pub result_bytes: Histogram,
    /// Injected ephemeral containers.
    pub sidecars: Family<SidecarLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    /// Failed reads and writes of the API, and sessions that cannot be read.
    pub errors: Counter,
    retries: Counter,
    /// Whether this replica leads.
    pub leader: Gauge<i64, AtomicI64>,
    policies: Family<PolicyLabel, Gauge<i64, AtomicI64>>,
    /// Bytes over the relays.
    pub traffic: Traffic,
    /// Requests of the API server.
    pub api: Api,
}

fn step_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

fn session_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 20))
}

/// Registers what needs no unit.
fn plain<M: prometheus_client::registry::Metric + Clone + Default>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// Registers `metric`, whose unit ends its name.
fn with_unit<M: prometheus_client::registry::Metric + Clone>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Unit,
    metric: M,
) -> M {
    registry.register_with_unit(name, help, unit, metric.clone());
    metric
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    #[expect(
        clippy::too_many_lines,
        reason = "a list, to be read from top to bottom"
    )]
    pub fn new() -> Self {
        let mut root = Registry::default();
        root.register_collector(Box::new(process::Process));
        let registry = root.sub_registry_with_prefix("sidewinder");
        let build: Family<BuildLabel, Gauge<i64, AtomicI64>> =
            plain(registry, "build_info", "The running version");
        build
            .get_or_create(&BuildLabel {
                version: env!("CARGO_PKG_VERSION"),
            })
            .set(1);
        let traffic = Traffic {
            sent: with_unit(
                registry,
                "relay_sent",
                "Bytes sent to agents",
                Unit::Bytes,
                Counter::default(),
            ),
            received: with_unit(
                registry,
                "relay_received",
                "Bytes received from agents",
                Unit::Bytes,
                Counter::default(),
            ),
            streams: plain(registry, "relay_streams", "Streams to agents that are open"),
        };
        let sessions: Family<Ended, Counter> = plain(registry, "sessions", "Sessions that ended");
        for action in ACTIONS {
            // An increase from nothing to one is none: what is alerted on has to be there before it happens.
            _ = sessions.get_or_create(&Ended {
                action: action.to_owned(),
                result: telemetry::result(false).to_owned(),
                reason: Reason::InternalError.to_string(),
            });
        }
        let api = Api::register(registry);
        Self {
            sessions,
            active: plain(
                registry,
                "sessions_active",
                "Sessions that are being worked on or wait for it",
            ),
            watched: plain(
                registry,
                "sessions_watched",
                "Sessions that have ended and whose scripts are still running",
            ),
            queued: plain(
                registry,
                "sessions_queued",
                "Sessions that wait until they may be worked on",
            ),
            queue_wait: with_unit(
                registry,
                "session_queue",
                "How long sessions waited until they might be worked on",
                Unit::Seconds,
                step_histogram(),
            ),
            session_duration: SessionDuration(with_unit(
                registry,
                "session_duration",
                "From a session's start to its end",
                Unit::Seconds,
                Family::new_with_constructor(session_histogram as fn() -> Histogram),
            )),
            step_duration: with_unit(
                registry,
                "step_duration",
                "How long each step of a session took",
                Unit::Seconds,
                Family::new_with_constructor(step_histogram as fn() -> Histogram),
            ),
            targets: plain(
                registry,
                "targets",
                "Targets (processes, or pods in which none was found) of ended sessions by their reason",
            ),
            pause: with_unit(
                registry,
                "target_pause",
                "How long a target stood still for one session",
                Unit::Seconds,
                Histogram::new(PAUSES),
            ),
            result_bytes: with_unit(
                registry,
                "result",
                "Size of whole outcomes before compression",
                Unit::Bytes,
                Histogram::new(exponential_buckets(256.0, 4.0, 10)),
            ),
            sidecars: plain(
                registry,
                "sidecars_injected",
                "Ephemeral containers that were added to pods",
            ),
            refused: plain(
                registry,
                "sidecars_refused",
                "Ephemeral containers that were not let into a pod, or did not start there",
            ),
            errors: plain(
                registry,
                "errors",
                "Failed calls of the API server, and sessions that cannot be read",
            ),
            retries: plain(
                registry,
                "session_retries",
                "Sessions whose work failed and was begun again",
            ),
            leader: plain(registry, "leader", "1 when this replica leads"),
            policies: plain(
                registry,
                "policy_in_place",
                "1 when the admission policy and its binding are in place",
            ),
            traffic,
            api,
            registry: Arc::new(root),
        }
    }

    /// Every metric in the OpenMetrics text format.
    ///
    /// # Errors
    /// When the text cannot be written.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Notes how long a step took.
    pub fn step(&self, step: &'static str, seconds: f64) {
        self.step_duration
            .get_or_create(&StepLabel {
                step: step.to_owned(),
            })
            .observe(seconds);
    }

    /// Notes the end of a session.
    pub fn session_ended(
        &self,
        action: Option<SessionAction<'_>>,
        complete: bool,
        reason: Reason,
        took: Duration,
    ) {
        let action = action.map_or("none", SessionAction::name);
        self.sessions
            .get_or_create(&Ended {
                action: action.to_owned(),
                result: telemetry::result(complete).to_owned(),
                reason: reason.to_string(),
            })
            .inc();
        self.session_duration.of(action, took.as_secs_f64());
    }

    /// Notes what one target of an ended session answered, and how long it stood still where it did.
    pub fn target_ended(&self, reason: Reason, paused: Option<Duration>) {
        self.targets
            .get_or_create(&ReasonLabel {
                reason: reason.as_str(),
            })
            .inc();
        if let Some(paused) = paused {
            self.pause.observe(paused.as_secs_f64());
        }
    }

    /// Notes that an ephemeral container was not let in, or did not start.
    pub fn sidecar_refused(&self, reason: Reason) {
        self.refused
            .get_or_create(&ReasonLabel {
                reason: reason.as_str(),
            })
            .inc();
    }

    /// A session begins to wait for its place; what is returned ends the wait when it is dropped, and notes how long
    /// it was.
    pub fn queued(&self) -> Queued {
        self.queued.inc();
        Queued {
            waiting: self.queued.clone(),
            wait: self.queue_wait.clone(),
            since: tokio::time::Instant::now(),
        }
    }

    /// Notes that a session's work failed and is begun again.
    pub fn session_retried(&self) {
        self.retries.inc();
    }

    /// Notes whether an admission policy and its binding are in place. `policy` is one of the chart's names.
    pub fn policy_in_place(&self, policy: &'static str, in_place: bool) {
        self.policies
            .get_or_create(&PolicyLabel { policy })
            .set(i64::from(in_place));
    }
}

/// A session that waits for its place.
#[derive(Debug)]
pub struct Queued {
    waiting: Gauge<i64, AtomicI64>,
    wait: Histogram,
    since: tokio::time::Instant,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.waiting.dec();
        self.wait.observe(self.since.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests;
