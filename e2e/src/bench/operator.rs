//! What the operator costs with many sessions, and that it loses none and runs no script twice.
//!
//! The operator that is measured is the binary of its image, as a child of ours under the service account of the chart.
//! What it asks of the API server is counted in the API server's audit log, and what it uses is what the kernel says.

mod audit;
mod cpu;
mod fanout;
mod kills;
mod load;
mod memory;
mod pods;
mod sessions;
mod simulated;

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use kube::Client;
use kube::config::Kubeconfig;
use sidewinder_crds::names;

use self::audit::Audit;
use super::load as load_average;
use super::session::Where;
use crate::deploy::{self, Destination};
use crate::operator::{self, Program};
use crate::{images, namespace};

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// 2 000 sessions on 20 pods, of each of two actions
    Sessions,
    /// The operator's memory beside 10 000 finished sessions
    Memory,
    /// One session over 100 pods
    Fanout,
    /// 50 kills of the operator while scripts that count themselves run
    Kills,
    /// 1 000 simulated pods, none of which ever starts a sidecar
    Kwok,
}

impl Part {
    const ALL: [Self; 5] = [
        Self::Sessions,
        Self::Memory,
        Self::Fanout,
        Self::Kills,
        Self::Kwok,
    ];
}

/// What of `bench operator` is run, and how much of it.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Parts of `operator`; all of them otherwise
    #[arg(value_name = "PART")]
    pub parts: Vec<Part>,
    /// How much of every number of sessions, pods and kills, between 0 and 1: a first look takes 0.05
    #[arg(long, default_value_t = 1.0, value_parser = scale)]
    pub scale: f64,
    /// What the moments of the kills are drawn from; the process's id otherwise
    #[arg(long)]
    pub seed: Option<u32>,
}

fn scale(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|scale| *scale > 0.0 && *scale <= 1.0)
        .ok_or_else(|| "a number above 0, and at most 1".to_owned())
}

/// The cluster with the chart in it, and without the chart's own operator.
struct Stage {
    client: Client,
    kubeconfig: PathBuf,
    python: String,
    audit: Audit,
    program: Program,
    scale: f64,
    seed: u32,
}

/// Prints the tables of what `options` names.
pub(super) fn run(on: &Where, options: &Options) -> Result<()> {
    let folder = tempfile::tempdir().context("cannot make a folder for the cluster")?;
    let destination = on.destination(folder.path())?;
    let Destination::Embedded(cluster) = &destination else {
        bail!(
            "`bench operator` counts requests in the API server's audit log and starts the operator itself: it needs the embedded cluster"
        );
    };
    let images = deploy::deploy(&destination)?;
    let python = images::workloads("3.14")?;
    destination.load(&python)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    // Its image's name is in the Deployment, its binary beside.
    drop(images);
    operator::replicas(&cluster.kubeconfig(), 0)?;
    let parts = if options.parts.is_empty() {
        &Part::ALL[..]
    } else {
        &options.parts
    };
    let outcome = runtime.block_on(async {
        let client = namespace::client(&destination.kubeconfig()).await?;
        let stage = Stage {
            program: operator::program(
                &client,
                &cluster.kubeconfig(),
                images::operator_binary()?,
                folder.path(),
                cluster.dir().join("logs/operator.log"),
            )
            .await?,
            kubeconfig: destination.kubeconfig(),
            python: python.name(),
            audit: Audit {
                folder: cluster.dir().join("logs"),
                user: format!(
                    "system:serviceaccount:{}:{}",
                    names::NAMESPACE,
                    names::OPERATOR
                ),
            },
            scale: options.scale,
            seed: options.seed.unwrap_or_else(std::process::id),
            client,
        };
        let mut failed = Vec::new();
        for part in parts {
            if let Err(error) = measure(*part, &stage).await {
                // What was measured before is on the screen, and the others may still say something.
                eprintln!("error: {part:?}: {error:#}");
                failed.push(part);
            }
        }
        ensure!(failed.is_empty(), "not everything worked: {failed:?}");
        Ok(())
    });
    // A cluster that goes on has its operator again.
    operator::replicas(&cluster.kubeconfig(), 1)?;
    outcome
}

async fn measure(part: Part, stage: &Stage) -> Result<()> {
    match part {
        Part::Sessions => sessions::run(stage).await,
        Part::Memory => memory::run(stage).await,
        Part::Fanout => fanout::run(stage).await,
        Part::Kills => kills::run(stage).await,
        Part::Kwok => simulated::run(stage).await,
    }
}

impl Stage {
    /// So many of `count`, at least one.
    fn scaled(&self, count: u32) -> usize {
        let scaled = (f64::from(count) * self.scale).ceil();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it lies between 1 and count"
        )]
        let scaled = scaled.max(1.0) as usize;
        scaled
    }

    /// The address of this machine as the cluster sees it: the other end of the pair, whose subnet has two.
    fn machine(&self) -> Result<Ipv4Addr> {
        let config = Kubeconfig::read_from(&self.kubeconfig)
            .with_context(|| format!("cannot read {}", self.kubeconfig.display()))?;
        let server = config
            .clusters
            .into_iter()
            .find_map(|cluster| cluster.cluster?.server)
            .context("the kubeconfig names no API server")?;
        other_end(&server).with_context(|| format!("{server} is no address of the cluster's"))
    }
}

/// Begins the output of a part.
fn heading(part: &str, title: &str) {
    println!(
        "\n# cargo e2e bench operator {part}: {title} (load {})",
        load_average()
    );
}

/// The address before that of an API server's URL.
fn other_end(server: &str) -> Option<Ipv4Addr> {
    let (host, _) = server.strip_prefix("https://")?.split_once(':')?;
    let cluster: Ipv4Addr = host.parse().ok()?;
    Some(Ipv4Addr::from(u32::from(cluster).checked_sub(1)?))
}

/// `12.3 MiB` of KiB.
fn mebibytes(kibibytes: u64) -> String {
    let kibibytes = f64::from(u32::try_from(kibibytes).unwrap_or(u32::MAX));
    format!("{:.1} MiB", kibibytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_a_part_of_the_whole() {
        assert_eq!(scale("0.05"), Ok(0.05));
        assert_eq!(scale("1"), Ok(1.0));
        for wrong in ["0", "-1", "1.5", "NaN", "all"] {
            assert!(scale(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_machine_is_the_other_end_of_the_pair() {
        let end = other_end("https://198.18.0.2:6443");
        assert_eq!(end, Some(Ipv4Addr::new(198, 18, 0, 1)));
        assert_eq!(other_end("https://kubernetes:6443"), None);
    }
}
