//! Whether the sidecar builds for aarch64, checked where no such machine is at hand.
//!
//! The toolchain of this machine may lack the other architecture's standard library; Debian has both as packages of
//! one version, so the check runs in a root folder made of them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{cache, checkout, command, packages};

/// What is checked: everything that runs beside a target.
const CRATES: [&str; 5] = [
    "sidewinder-model",
    "sidewinder-decode",
    "sidewinder-diagnose",
    "sidewinder-linux",
    "sidewinder-sidecar",
];

/// A cold check of the sidecar's tree takes about a minute on two cores.
const LIMIT: Duration = Duration::from_mins(15);

/// The release whose compiler is new enough for the workspace.
const RELEASE: &str = "forky";

/// Type-checks the sidecar and its crates for aarch64.
///
/// # Errors
/// When a crate does not compile there, or the toolchain cannot be had.
pub fn check() -> Result<()> {
    packages::ensure(packages::PYTHON)?;
    let root = cache::entry("aarch64", RELEASE, |folder| {
        let mut make = Command::new("mmdebstrap");
        make.args([
            "--architectures=amd64,arm64",
            "--variant=essential",
            "--include=rustc,cargo,libstd-rust-dev:arm64",
            // A mirror may lag behind the dates in its own index.
            r#"--aptopt=Acquire::Check-Valid-Until "false""#,
            RELEASE,
        ]);
        command::text(make.arg(folder), LIMIT).map(drop)
    })?;
    // Fetched by this machine's cargo, so that the other one needs no network.
    let mut fetch = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command::visible(
        fetch
            .current_dir(checkout())
            .args(["fetch", "--locked", "--quiet"]),
        LIMIT,
    )?;
    let home = cargo_home().context("no place for cargo's registry: set CARGO_HOME or HOME")?;
    let mut check = Command::new("unshare");
    check
        .args([
            "--mount",
            "--propagation=private",
            "sh",
            "-euc",
            SCRIPT,
            "sh",
        ])
        .args([root.as_path(), checkout().as_path(), Path::new(&home)])
        .args(CRATES.iter().flat_map(|name| ["--package", name]));
    command::visible(&mut check, LIMIT)
}

/// Mounts live and die with the mount namespace; the checkout is read-only.
const SCRIPT: &str = r#"
root=$1 source=$2 home=$3
shift 3
mkdir -p "$root/source" "$root/cargo" "$root/proc" "$root/tmp/target"
mount --bind -o ro "$source" "$root/source"
mount --bind "$home" "$root/cargo"
mount -t proc proc "$root/proc"
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp CARGO_HOME=/cargo CARGO_TARGET_DIR=/tmp/target \
  sh -euc 'cd /source && exec cargo check --quiet --offline --locked --target aarch64-unknown-linux-gnu "$@"' sh "$@"
"#;

fn cargo_home() -> Option<std::ffi::OsString> {
    std::env::var_os("CARGO_HOME").or_else(|| {
        let mut home = std::env::var_os("HOME")?;
        home.push("/.cargo");
        Some(home)
    })
}
