//! Flags and environment variables.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use clap::{ArgAction, Parser, ValueEnum};
use kube::Client;
use prometheus_client::metrics::counter::Counter;
use sidewinder_crds::names::{NAMESPACE, env};
use sidewinder_model::wire::MAX_PAYLOAD_BYTES;

use crate::fences::policies::{Own, Policies};
use crate::fences::review::Reviewer;
use crate::fences::slots::Slots;
use crate::fences::{self, Demands, Fences};
use crate::inject::{MAX_SIDECARS, SidecarImage, WARN_SIDECARS};
use crate::relay::budget::{Budget, DEFAULT_BYTES};
use crate::session::Settings;
use crate::session::result::Sensitive;
use crate::session::result::spill::{DOCUMENT_BYTES, MIN_DOCUMENT_BYTES};
use crate::telemetry::traces::TraceArgs;
use crate::throttle::{FEWEST, Throttle};

/// The controller of `DebugSession`s.
#[derive(Clone, Debug, Parser)]
#[command(name = "sidewinder-operator", version)]
pub struct Args {
    /// The sidecar's image, as it is written into pods.
    #[arg(long, env = env::SIDECAR_IMAGE)]
    pub sidecar_image: String,
    /// When nodes pull the sidecar's image.
    #[arg(long, env = env::SIDECAR_PULL_POLICY, default_value = "IfNotPresent")]
    pub sidecar_pull_policy: PullPolicy,
    /// Where script output and values of local variables may appear.
    #[arg(long, env = env::RESULTS_SENSITIVE, default_value = "Secret")]
    pub results_sensitive: SensitiveResults,
    /// The largest result of one process, in bytes of JSON; what is larger is cut.
    #[arg(long, env = env::RESULT_MAX_BYTES, default_value_t = DOCUMENT_BYTES as u64, value_parser = clap::value_parser!(u64).range(MIN_DOCUMENT_BYTES as u64..=MAX_PAYLOAD_BYTES as u64))]
    pub result_max_bytes: u64,
    /// What results may take of the operator's memory, all sessions together, in bytes; large ones wait for each other.
    #[arg(long, env = env::RESULT_MEMORY_BYTES, default_value_t = DEFAULT_BYTES as u64, value_parser = clap::value_parser!(u64).range(MAX_PAYLOAD_BYTES as u64..=1 << 40))]
    pub result_memory_bytes: u64,
    /// After how many idle seconds an agent exits.
    #[arg(long, env = env::AGENT_IDLE_SECONDS, default_value_t = 1800, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub agent_idle_seconds: u32,
    /// How many sidecars one pod may carry; Kubernetes never removes one.
    #[arg(long, env = env::SIDECARS_PER_POD, default_value_t = MAX_SIDECARS, value_parser = sidecars)]
    pub sidecars_per_pod: usize,
    /// From how many sidecars in a pod on outcomes warn of it.
    #[arg(long, env = env::SIDECARS_WARNING, default_value_t = WARN_SIDECARS, value_parser = sidecars)]
    pub sidecars_warning: usize,
    /// The log filter, for example `info` or `sidewinder_operator=debug`.
    #[arg(long, env = env::LOG, default_value = "info")]
    pub log: String,
    /// How log lines look.
    #[arg(long, env = env::LOG_FORMAT, default_value = "json")]
    pub log_format: LogFormat,
    /// Whether replicas elect a leader.
    #[arg(long, env = env::LEADER_ELECTION, default_value_t = true, action = ArgAction::Set)]
    pub leader_election: bool,
    /// The one namespace whose sessions are served; empty for all.
    #[arg(long, env = env::WATCH_NAMESPACE, default_value = "")]
    pub watch_namespace: String,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    #[arg(long, env = env::HTTP_ADDRESS, default_value = "0.0.0.0:8080")]
    pub http_address: SocketAddr,
    /// How many sessions are worked on at once.
    #[arg(long, env = env::MAX_CONCURRENT, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_concurrent: u16,
    /// The ConfigMap, in the operator's own namespace, with the settings that are in force as soon as they change; empty
    /// for none.
    #[arg(long, env = env::SETTINGS, default_value = "")]
    pub settings_config_map: String,
    /// Whether code runs only while the admission policies are in place.
    #[arg(long, env = env::REQUIRE_POLICIES, default_value_t = true, action = ArgAction::Set)]
    pub require_policies: bool,
    /// Whether code runs only for a requester that the session names.
    #[arg(long, env = env::REQUIRE_REQUESTER, default_value_t = true, action = ArgAction::Set)]
    pub require_requester: bool,
    /// How many targets of one pod are worked on at once.
    #[arg(long, env = env::MAX_PER_POD, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_per_pod: u16,
    /// How many targets on one node are worked on at once.
    #[arg(long, env = env::MAX_PER_NODE, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_per_node: u16,
    /// How many requests of the API server are made each second for long.
    #[arg(long, env = env::API_REQUESTS_PER_SECOND, default_value = "500", value_parser = requests)]
    pub api_requests_per_second: NonZeroU32,
    /// How many requests of the API server may be made at once.
    #[arg(long, env = env::API_BURST, default_value = "1000", value_parser = requests)]
    pub api_burst: NonZeroU32,
    /// The operator's own pod: its identity among the replicas.
    #[arg(long, env = env::POD_NAME, default_value = "")]
    pub pod_name: String,
    /// The operator's own namespace: where the lease is.
    #[arg(long, env = env::POD_NAMESPACE, default_value = NAMESPACE)]
    pub pod_namespace: String,
    /// Traces.
    #[command(flatten)]
    pub traces: TraceArgs,
}

/// When nodes pull an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// Before each start.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

/// Where sensitive results may appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum SensitiveResults {
    /// Only in Secrets.
    Secret,
    /// Also in the status.
    Status,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// A number of sidecars: names have three places for it.
fn sidecars(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=999) => Ok(count),
        _ => Err("must be a number from 1 to 999".to_owned()),
    }
}

/// A number of requests.
fn requests(text: &str) -> Result<NonZeroU32, String> {
    match text.parse::<NonZeroU32>() {
        Ok(count) if count.get() >= FEWEST => Ok(count),
        _ => Err(format!("must be a number of at least {FEWEST}")),
    }
}

impl Args {
    /// What sessions need of it.
    pub fn settings(&self) -> Settings {
        Settings {
            sidecar: SidecarImage {
                image: self.sidecar_image.clone(),
                pull_policy: match self.sidecar_pull_policy {
                    PullPolicy::Always => "Always",
                    PullPolicy::IfNotPresent => "IfNotPresent",
                    PullPolicy::Never => "Never",
                }
                .to_owned(),
                idle_seconds: self.agent_idle_seconds,
                max_per_pod: self.sidecars_per_pod,
                warn_per_pod: self.sidecars_warning,
            },
            sensitive: match self.results_sensitive {
                SensitiveResults::Secret => Sensitive::Secret,
                SensitiveResults::Status => Sensitive::Status,
            },
            result_max_bytes: usize::try_from(self.result_max_bytes).unwrap_or(usize::MAX),
            max_concurrent: usize::from(self.max_concurrent),
        }
    }

    /// How often the API server is asked. `waited` counts the requests that were held back.
    pub fn throttle(&self, waited: Counter) -> Throttle {
        Throttle::new(self.api_requests_per_second, self.api_burst, waited)
    }

    /// The memory that is there for results.
    pub fn budget(&self) -> Budget {
        Budget::new(usize::try_from(self.result_memory_bytes).unwrap_or(usize::MAX))
    }

    /// What refuses sessions. Watches the settings from now on.
    pub async fn fences(&self, client: &Client) -> Fences {
        let own = Own::new(&self.pod_namespace, &self.sidecar_image);
        let demands = Demands {
            policies: self.require_policies,
            requester: self.require_requester,
        };
        Fences::new(
            client.clone(),
            demands,
            fences::settings::watched(
                client.clone(),
                &self.pod_namespace,
                &self.settings_config_map,
            )
            .await,
            Policies::new(client.clone(), own),
            Reviewer::new(client.clone(), !self.watch_namespace.is_empty()),
            || Slots::new(self.max_per_pod.into(), self.max_per_node.into()),
        )
    }

    /// What this replica is called. Two replicas of one name would both lead.
    pub fn identity(&self) -> String {
        if self.pod_name.is_empty() {
            format!("sidewinder-operator-{}", std::process::id())
        } else {
            self.pod_name.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["sidewinder-operator"], args].concat())
    }

    #[test]
    fn only_the_image_must_be_given() {
        let args = parse(&["--sidecar-image", "registry.example/sidewinder-sidecar:1"]).unwrap();
        let settings = args.settings();
        assert_eq!(settings.sidecar.pull_policy, "IfNotPresent");
        assert_eq!(settings.sidecar.idle_seconds, 1800);
        assert_eq!(settings.sidecar.max_per_pod, 32);
        assert_eq!(settings.sidecar.warn_per_pod, 24);
        assert_eq!(settings.sensitive, Sensitive::Secret);
        assert_eq!(settings.max_concurrent, 64);
        assert_eq!(settings.result_max_bytes, 16 * 1024 * 1024);
        assert_eq!(args.budget().bytes(), 128 * 1024 * 1024);
        assert!(args.leader_election);
        // Whoever leaves these out gets the careful ones.
        assert!(args.require_policies && args.require_requester);
        assert_eq!((args.max_per_pod, args.max_per_node), (16, 64));
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn values_out_of_the_closed_lists_are_refused() {
        for wrong in [
            ["--sidecar-pull-policy", "Sometimes"],
            ["--results-sensitive", "Log"],
            ["--agent-idle-seconds", "0"],
            ["--sidecars-per-pod", "0"],
            ["--sidecars-per-pod", "1000"],
            ["--sidecars-warning", "many"],
            ["--max-concurrent", "0"],
            ["--result-max-bytes", "65535"],
            ["--result-memory-bytes", "1048576"],
            ["--max-per-pod", "0"],
            ["--max-per-node", "0"],
            ["--api-requests-per-second", "19"],
            ["--api-burst", "0"],
            ["--api-burst", "many"],
            ["--require-policies", "maybe"],
            ["--http-address", "8080"],
            ["--leader-election", "perhaps"],
        ] {
            let args = [&["--sidecar-image", "x"][..], &wrong].concat();
            assert!(parse(&args).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_fewest_requests_are_enough() {
        let few = ["--api-requests-per-second", "20", "--api-burst", "20"];
        let args = parse(&[&["--sidecar-image", "x"][..], &few].concat()).unwrap();
        assert_eq!(args.api_requests_per_second.get(), FEWEST);
        assert_eq!(args.api_burst.get(), FEWEST);
    }

    #[test]
    fn leader_election_can_be_turned_off() {
        let args = parse(&["--sidecar-image", "x", "--leader-election", "false"]).unwrap();
        assert!(!args.leader_election);
    }
}
