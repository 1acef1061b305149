//! `cargo e2e test`: every test there is, in the order in which a failure costs least.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::cluster::Cluster;
use crate::deploy::{self, Destination};
use crate::tools::Module;
use crate::{aarch64, checkout, command, fuzz, images, packages, python};

/// One step, a cold build included.
const STEP_LIMIT: Duration = Duration::from_hours(1);

/// Runs everything; `own` is a cluster of the caller's in place of the embedded one. All steps are run, and the error names those that failed.
pub fn run(own: Option<Destination>) -> Result<()> {
    packages::ensure_go()?;
    packages::ensure(packages::BUILD)?;
    packages::ensure(packages::CLUSTER)?;
    packages::ensure(packages::PYTHON)?;
    let mut report = Report::default();
    report.cargo("formatting", &["fmt", "--all", "--check"]);
    report.cargo(
        "lints",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--",
            "--deny",
            "warnings",
        ],
    );
    report.cargo("unit and property tests", &["test", "--workspace"]);
    report.step("fuzzing", fuzz::run);
    report.step("the sidecar on aarch64 (type check)", aarch64::check);
    report.step("live processes", live);
    report.step("the cluster", || cluster(own));
    report.end()
}

#[derive(Default)]
struct Report {
    failed: Vec<String>,
}

impl Report {
    fn cargo(&mut self, name: &str, arguments: &[&str]) {
        self.step(name, || command::visible(&mut cargo(arguments), STEP_LIMIT));
    }

    fn step(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        eprintln!("── {name}");
        let start = Instant::now();
        match step() {
            Ok(()) => eprintln!(
                "── {name}: passed in {:.0} s",
                start.elapsed().as_secs_f64()
            ),
            Err(error) => {
                eprintln!("── {name}: FAILED: {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }

    fn end(self) -> Result<()> {
        if self.failed.is_empty() {
            return Ok(());
        }
        bail!("failed: {}", self.failed.join(", "))
    }
}

fn cargo(arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(checkout()).args(arguments);
    cargo
}

/// Live Python processes on this machine.
fn live() -> Result<()> {
    for version in ["3.14", "3.15"] {
        python::root(version)?;
    }
    command::visible(
        &mut cargo(&[
            "test",
            "--package",
            "sidewinder-e2e",
            "--features",
            "live",
            "--test",
            "live_*",
        ]),
        STEP_LIMIT,
    )
}

/// The tests that need a cluster, with the chart of this checkout installed in it.
fn cluster(own: Option<Destination>) -> Result<()> {
    Module::Helm.folder()?;
    Module::Promtool.folder()?;
    let images = images::build()?;
    let folder = tempfile::tempdir().context("cannot make a folder for the cluster")?;
    let destination = match own {
        Some(own) => own,
        None => Destination::Embedded(Cluster::up_linked(&folder.path().join("cluster"))?),
    };
    deploy::install(&destination, &images)?;
    let tests = tests_with_feature(
        &std::fs::read_to_string(checkout().join("e2e/Cargo.toml"))?,
        "cluster",
    );
    let mut arguments: Vec<String> = [
        "test",
        "--package",
        "sidewinder-e2e",
        "--features",
        "cluster",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.extend(
        tests
            .into_iter()
            .flat_map(|test| ["--test".to_owned(), test]),
    );
    let mut tests = cargo(&arguments);
    tests.env("KUBECONFIG", destination.kubeconfig());
    // They wait for the cluster more than they compute.
    tests.env("RUST_TEST_THREADS", "6");
    if let Destination::Own {
        load: Some(load), ..
    } = &destination
    {
        tests.env("SIDEWINDER_LOAD", load);
    }
    let outcome = command::visible(&mut tests, STEP_LIMIT);
    if outcome.is_err()
        && let Destination::Embedded(cluster) = &destination
    {
        keep_logs(&cluster.dir().join("logs"));
    }
    outcome
}

/// Copies the cluster's logs to where they outlive it.
fn keep_logs(logs: &Path) {
    let kept = checkout().join("target/e2e-logs");
    let mut copy = Command::new("cp");
    copy.args(["--recursive", "--no-target-directory"])
        .arg(logs)
        .arg(&kept);
    match crate::cache::remove_all(&kept)
        .and_then(|()| command::output(&mut copy, Duration::from_mins(1)))
    {
        Ok(_) => eprintln!("the cluster's logs are in {}", kept.display()),
        Err(error) => eprintln!("the cluster's logs could not be kept: {error:#}"),
    }
}

/// The names of the integration tests whose `required-features` are `feature` alone, from the package's manifest.
fn tests_with_feature(manifest: &str, feature: &str) -> Vec<String> {
    let sections = manifest.split("[[test]]").skip(1);
    let wanted = format!("required-features = [\"{feature}\"]");
    sections
        .map(|section| section.split("\n[").next().unwrap_or_default())
        .filter(|section| section.lines().any(|line| line.trim() == wanted))
        .filter_map(|section| {
            let name = section
                .lines()
                .find_map(|line| line.trim().strip_prefix("name = \""))?;
            Some(name.trim_end_matches('"').to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_of_a_feature_are_found_in_the_manifest() {
        let manifest = "[features]\ncluster = []\n\n[[test]]\nname = \"a\"\nrequired-features = [\"cluster\"]\n\n[[test]]\nname = \"b\"\nrequired-features = [\"live\"]\n\n[lints]\nname = \"c\"\n";
        assert_eq!(tests_with_feature(manifest, "cluster"), ["a"]);
        assert_eq!(tests_with_feature(manifest, "live"), ["b"]);
    }

    #[test]
    fn every_failed_step_is_named_and_the_later_ones_run() {
        let mut report = Report::default();
        report.step("one", || bail!("no"));
        report.step("two", || Ok(()));
        report.step("three", || bail!("no"));
        assert_eq!(report.end().unwrap_err().to_string(), "failed: one, three");
    }
}
