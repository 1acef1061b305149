//! The container images, made without Docker.

pub mod archive;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::images::archive::{Config, Layer};
use crate::tools::Module;
use crate::{cache, checkout, command, python};

/// A cold build of the operator on two cores takes about four minutes.
const BUILD_LIMIT: Duration = Duration::from_mins(30);
/// Longer than cargo takes to see that there is nothing to build.
const SOON: Duration = Duration::from_secs(3);

/// One image as a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The repository: `localhost/sidewinder-sidecar`.
    pub repository: String,
    /// The tag: the version and 12 digits of the content's digest, so that a changed image has another name.
    pub tag: String,
    /// The tar, an OCI layout that is also a `docker save` archive.
    pub archive: PathBuf,
}

impl Image {
    /// `repository:tag`.
    pub fn name(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }
}

/// What the chart installs.
#[derive(Clone, Debug)]
pub struct Images {
    /// The operator.
    pub operator: Image,
    /// The sidecar.
    pub sidecar: Image,
}

/// Builds the operator's and the sidecar's images from the checkout.
pub fn build() -> Result<Images> {
    Ok(Images {
        operator: operator()?,
        sidecar: sidecar()?,
    })
}

/// The sidecar's static binary, as it is in its image.
pub fn sidecar_binary() -> Result<PathBuf> {
    static_binary(
        "sidewinder-sidecar",
        "sidecar",
        &["--bin", "sidewinder-sidecar"],
    )
}

/// One of the sidecar's examples, built as the sidecar itself is.
pub fn sidecar_example(name: &str) -> Result<PathBuf> {
    static_binary("sidewinder-sidecar", "sidecar", &["--example", name])
}

/// The sidecar's image: its static binary and the folder for the agent's socket.
pub fn sidecar() -> Result<Image> {
    let binary = sidecar_binary()?;
    let mut layer = Layer::new();
    layer.file("sidewinder-sidecar", 0o755, &read(&binary)?)?;
    layer.folder("run", 0o755)?;
    // The agent runs as the target's user, whoever that is.
    layer.folder("run/sidewinder", 0o1777)?;
    let config = Config {
        entrypoint: vec!["/sidewinder-sidecar".to_owned()],
        ..Config::default()
    };
    write("sidewinder-sidecar", &[layer.finish()?], &config)
}

/// The operator's static binary, as it is in its image.
pub fn operator_binary() -> Result<PathBuf> {
    static_binary(
        "sidewinder-operator",
        "release",
        &["--bin", "sidewinder-operator"],
    )
}

/// The operator's image: its static binary alone.
pub fn operator() -> Result<Image> {
    let binary = operator_binary()?;
    let mut layer = Layer::new();
    layer.file("sidewinder-operator", 0o755, &read(&binary)?)?;
    let config = Config {
        entrypoint: vec!["/sidewinder-operator".to_owned()],
        user: "65532:65532".to_owned(),
        ..Config::default()
    };
    write("sidewinder-operator", &[layer.finish()?], &config)
}

/// Python `version` with the programs of `e2e/workloads` in `/workloads`. It starts as root unless the pod says otherwise.
pub fn workloads(version: &str) -> Result<Image> {
    let root = python::root(version)?;
    let key = root
        .file_name()
        .map(|name| format!("{}-without-temporary", name.to_string_lossy()))
        .context("a Python's root folder has no name")?;
    let base = cache::entry("layers", &key, |folder| {
        let mut layer = Layer::new();
        layer.tree(&root)?;
        layer.finish()?.save(&folder.join("layer.tar"))
    })?;
    let base = Layer::load(&base.join("layer.tar"))?;
    let folder = checkout().join("e2e/workloads");
    let mut programs = Layer::new();
    programs.folder("workloads", 0o755)?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "py"));
    files.sort();
    for file in files {
        let name = file
            .file_name()
            .and_then(|name| name.to_str())
            .context("a workload's name is not UTF-8")?
            .to_owned();
        programs.file(&format!("workloads/{name}"), 0o644, &read(&file)?)?;
    }
    let config = Config {
        entrypoint: vec![format!("/usr/bin/python{version}")],
        environment: vec![
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            "PYTHONUNBUFFERED=1".to_owned(),
            format!("PYTHONPATH={}", python::PACKAGES),
        ],
        ..Config::default()
    };
    write(
        &format!("sidewinder-workloads-{version}"),
        &[base, programs.finish()?],
        &config,
    )
}

/// The pods' sandbox image of the embedded cluster, always under `name`.
pub(crate) fn pause(name: &str) -> Result<Vec<u8>> {
    let mut layer = Layer::new();
    layer.file("pause", 0o755, &read(&Module::Pause.binary("pause")?)?)?;
    let config = Config {
        entrypoint: vec!["/pause".to_owned()],
        user: "65535:65535".to_owned(),
        ..Config::default()
    };
    archive::image(&[layer.finish()?], &config, |_| name.to_owned()).map(|(_, bytes)| bytes)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Writes an image into the cache, under a name that its content determines.
fn write(name: &str, layers: &[Layer], config: &Config) -> Result<Image> {
    let repository = format!("localhost/{name}");
    let tag = |digest: &str| {
        format!(
            "{}-{}",
            env!("CARGO_PKG_VERSION"),
            digest.get(..12).unwrap_or(digest)
        )
    };
    let (digest, bytes) = archive::image(layers, config, |digest| {
        format!("{repository}:{}", tag(digest))
    })?;
    let tag = tag(&digest);
    let folder = cache::entry("images", &format!("{name}-{tag}"), |folder| {
        let file = folder.join("image.tar");
        std::fs::write(&file, &bytes).with_context(|| format!("cannot write {}", file.display()))
    })?;
    Ok(Image {
        repository,
        tag,
        archive: folder.join("image.tar"),
    })
}

/// The line of `cargo build --message-format=json` that names a program.
#[derive(Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
}

/// Builds a program of `package` as a static binary and returns its path.
fn static_binary(package: &str, profile: &str, program: &[&str]) -> Result<PathBuf> {
    let target = static_target(std::env::consts::ARCH, &installed_targets());
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(checkout())
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args([
            "build",
            "--quiet",
            "--message-format=json-render-diagnostics",
            "--profile",
            profile,
            "--target",
            &target,
        ])
        .args(["--package", package])
        .args(program);
    let messages = slow(
        || command::text(&mut cargo, BUILD_LIMIT),
        SOON,
        || eprintln!("building {package} for {target}"),
    )?;
    executable(&messages).with_context(|| format!("cargo built no program for {package}"))
}

/// Runs `work`, and `announce` beside it if it takes longer than `soon`.
fn slow<T>(work: impl FnOnce() -> T, soon: Duration, announce: impl FnOnce() + Send) -> T {
    let (done, waiting) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(soon) == Err(mpsc::RecvTimeoutError::Timeout) {
                announce();
            }
        });
        let result = work();
        drop(done);
        result
    })
}

fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Artifact>(line).ok())
        .filter_map(|artifact| artifact.executable)
        .next_back()
}

/// musl where rustup has it, else glibc, which is static with crt-static too.
fn static_target(arch: &str, installed: &str) -> String {
    let musl = format!("{arch}-unknown-linux-musl");
    if installed.lines().any(|line| line.trim() == musl) {
        musl
    } else {
        format!("{arch}-unknown-linux-gnu")
    }
}

fn installed_targets() -> String {
    // Without rustup there is only the machine's own target.
    command::text(
        Command::new("rustup")
            .args(["target", "list", "--installed"])
            .current_dir(checkout()),
        Duration::from_secs(30),
    )
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_that_takes_long_is_announced() {
        let announced = |work: fn(), soon| {
            let mut announced = false;
            slow(work, soon, || announced = true);
            announced
        };
        assert!(!announced(|| (), Duration::from_mins(1)));
        assert!(announced(
            || std::thread::sleep(Duration::from_millis(200)),
            Duration::ZERO
        ));
    }

    #[test]
    fn musl_is_taken_where_it_is_installed() {
        assert_eq!(
            static_target("x86_64", "x86_64-unknown-linux-gnu\n"),
            "x86_64-unknown-linux-gnu"
        );
        assert_eq!(
            static_target(
                "x86_64",
                "x86_64-unknown-linux-gnu\nx86_64-unknown-linux-musl\n"
            ),
            "x86_64-unknown-linux-musl"
        );
    }

    #[test]
    fn the_program_is_found_among_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\nnot json\n{\"reason\":\"compiler-artifact\",\"executable\":\"/t/x\"}\n{\"reason\":\"build-finished\",\"success\":true}";
        assert_eq!(executable(messages), Some(PathBuf::from("/t/x")));
        assert_eq!(
            executable("{\"reason\":\"build-finished\",\"success\":true}"),
            None
        );
    }
}
