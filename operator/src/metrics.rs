//! What Prometheus sees. Labels are closed sets: no pod, no namespace, no user.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Bytes over the relays.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// To agents.
    pub sent: Counter,
    /// From agents.
    pub received: Counter,
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

/// Labels of the running version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabel {
    version: String,
}

/// Every metric of the operator. Clones share the numbers.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// Ended sessions.
    pub sessions: Family<Ended, Counter>,
    /// Sessions that are being worked on or wait for it.
    pub active: Gauge<i64, AtomicI64>,
    /// Ended sessions whose scripts are still running and are watched.
    pub watched: Gauge<i64, AtomicI64>,
    /// From the creation of a session to its end.
    pub session_duration: Histogram,
    /// How long each step took.
    pub step_duration: Family<StepLabel, Histogram, fn() -> Histogram>,
    /// How long targets stood still.
    pub pause: Histogram,
    /// Whole outcomes, before compression.
    pub result_bytes: Histogram,
    /// Injected ephemeral containers.
    pub sidecars: Family<SidecarLabel, Counter>,
    /// Failed reads and writes of the API, and sessions that cannot be read.
    pub errors: Counter,
    /// Whether this replica leads.
    pub leader: Gauge<i64, AtomicI64>,
    /// Bytes over the relays.
    pub traffic: Traffic,
}

fn step_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("sidewinder");
        let sessions = Family::<Ended, Counter>::default();
        registry.register("sessions", "Sessions that ended", sessions.clone());
        let active = Gauge::default();
        registry.register(
            "sessions_active",
            "Sessions that are being worked on or wait for it",
            active.clone(),
        );
        let watched = Gauge::default();
        registry.register(
            "sessions_watched",
            "Sessions that have ended and whose scripts are still running",
            watched.clone(),
        );
        let session_duration = Histogram::new(exponential_buckets(0.01, 2.0, 20));
        registry.register_with_unit(
            "session_duration",
            "From a session's creation to its end",
            Unit::Seconds,
            session_duration.clone(),
        );
        let step_duration =
            Family::<StepLabel, Histogram, fn() -> Histogram>::new_with_constructor(step_histogram);
        registry.register_with_unit(
            "step_duration",
            "How long each step of a session took",
            Unit::Seconds,
            step_duration.clone(),
        );
        let pause = Histogram::new(exponential_buckets(0.000_01, 2.0, 20));
        registry.register_with_unit(
            "target_pause",
            "How long a target stood still for one session",
            Unit::Seconds,
            pause.clone(),
        );
        let result_bytes = Histogram::new(exponential_buckets(256.0, 4.0, 10));
        registry.register_with_unit(
            "result",
            "Size of whole outcomes before compression",
            Unit::Bytes,
            result_bytes.clone(),
        );
        let sidecars = Family::<SidecarLabel, Counter>::default();
        registry.register(
            "sidecars_injected",
            "Ephemeral containers that were added to pods",
            sidecars.clone(),
        );
        let errors = Counter::default();
        registry.register(
            "errors",
            "Failed calls of the API server, and sessions that cannot be read",
            errors.clone(),
        );
        let leader = Gauge::default();
        registry.register("leader", "1 when this replica leads", leader.clone());
        let traffic = Traffic::default();
        registry.register_with_unit(
            "relay_sent",
            "Bytes sent to agents",
            Unit::Bytes,
            traffic.sent.clone(),
        );
        registry.register_with_unit(
            "relay_received",
            "Bytes received from agents",
            Unit::Bytes,
            traffic.received.clone(),
        );
        let build = Family::<BuildLabel, Gauge<i64, AtomicI64>>::default();
        build
            .get_or_create(&BuildLabel {
                version: env!("CARGO_PKG_VERSION").to_owned(),
            })
            .set(1);
        registry.register("build_info", "The running version", build);
        Self {
            registry: Arc::new(registry),
            sessions,
            active,
            watched,
            session_duration,
            step_duration,
            pause,
            result_bytes,
            sidecars,
            errors,
            leader,
            traffic,
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_has_the_names_and_labels_that_dashboards_use() {
        let metrics = Metrics::new();
        metrics
            .sessions
            .get_or_create(&Ended {
                action: "stacks".into(),
                result: "Complete".into(),
                reason: "Succeeded".into(),
            })
            .inc();
        metrics.step("attach", 0.004);
        metrics.traffic.sent.inc_by(12);
        let text = metrics.encode().unwrap();
        for line in [
            "sidewinder_sessions_total{action=\"stacks\",result=\"Complete\",reason=\"Succeeded\"} 1",
            "sidewinder_sessions_active 0",
            "sidewinder_relay_sent_bytes_total 12",
            "sidewinder_step_duration_seconds_count{step=\"attach\"} 1",
            "sidewinder_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
