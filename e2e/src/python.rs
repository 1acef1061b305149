//! Pythons to look into: Debian's own packages in a root folder, because the machine's Python may be older than CPython 3.14.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::{cache, command, packages};

/// Where the test packages are, seen from inside the root folder.
pub const PACKAGES: &str = "/opt/packages";
/// What the workloads import beyond the standard library.
const REQUIREMENTS: [&str; 3] = ["gevent==26.9.0", "greenlet==3.5.6", "uvloop==0.23.0"];
const VERSIONS: [&str; 2] = ["3.14", "3.15"];

/// The root folder of Python `version`, made on first use. Its C library may be newer than the machine's: enter it with `chroot`.
pub fn root(version: &str) -> Result<PathBuf> {
    if !VERSIONS.contains(&version) {
        bail!(
            "there is no Python {version} here: {}",
            VERSIONS.join(" or ")
        );
    }
    let recipe = format!("{version} {} {PACKAGES}", REQUIREMENTS.join(" "));
    let key = cache::key([("recipe", recipe.as_bytes())]);
    cache::entry("python", &format!("{version}-{key}"), |folder| {
        make(version, folder)
    })
}

fn make(version: &str, folder: &Path) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("making a Python's root folder needs root: it is a whole Debian");
    }
    packages::ensure(packages::PYTHON)?;
    packages::ensure_pip()?;
    eprintln!("making a root folder with Python {version} (once)");
    let mut debian = Command::new("mmdebstrap");
    debian
        .args([
            "--variant=essential",
            &format!("--include=python{version},libstdc++6"),
        ])
        // A mirror may lag behind.
        .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
        .args([
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
        ])
        .arg("forky")
        .arg(folder);
    command::visible(&mut debian, Duration::from_mins(10))
        .with_context(|| format!("cannot make a Debian with Python {version}"))?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ])
    .args([
        "--root-user-action=ignore",
        "--only-binary=:all:",
        "--implementation=cp",
    ])
    .arg(format!("--python-version={version}"))
    .arg("--target")
    .arg(folder.join(PACKAGES.trim_start_matches('/')));
    for libc in [
        "manylinux_2_28",
        "manylinux_2_24",
        "manylinux_2_17",
        "manylinux2014",
    ] {
        pip.arg(format!("--platform={libc}_{}", std::env::consts::ARCH));
    }
    pip.args(REQUIREMENTS);
    command::visible(&mut pip, Duration::from_mins(5))
        .with_context(|| format!("cannot install the test packages for Python {version}"))
}
