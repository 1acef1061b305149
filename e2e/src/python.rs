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
/// What the benchmarks compare with; the tests need none of them.
const PEERS: [&str; 2] = ["py-spy==0.4.3", "pystack==1.7.2"];
/// The Pythons there are.
pub const VERSIONS: [&str; 2] = ["3.14", "3.15"];

/// The root folder of Python `version`, made on first use. Its C library may be newer than the machine's: enter it with `chroot`.
pub fn root(version: &str) -> Result<PathBuf> {
    if !VERSIONS.contains(&version) {
        bail!(
            "there is no Python {version} here: {}",
            VERSIONS.join(" or ")
        );
    }
    let recipe = [debian(version), pip(version, &REQUIREMENTS)]
        .concat()
        .join("\n");
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
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(debian(version)).arg("forky").arg(folder);
    command::visible(&mut mmdebstrap, Duration::from_mins(10))
        .with_context(|| format!("cannot make a Debian with Python {version}"))?;
    let packages = folder.join(PACKAGES.trim_start_matches('/'));
    install(version, &REQUIREMENTS, &packages)
        .with_context(|| format!("cannot install the test packages for Python {version}"))
}

/// A folder with the peers of the benchmarks for Python `version`, made on first use: packages, and programs in `bin`.
pub fn peers(version: &str) -> Result<PathBuf> {
    let recipe = pip(version, &PEERS).join("\n");
    let key = cache::key([("recipe", recipe.as_bytes())]);
    cache::entry("peers", &format!("{version}-{key}"), |folder| {
        packages::ensure(packages::PYTHON)?;
        packages::ensure_pip()?;
        eprintln!(
            "installing {} for Python {version} (once)",
            PEERS.join(" and ")
        );
        install(version, &PEERS, folder)
            .with_context(|| format!("cannot install the peers for Python {version}"))
    })
}

fn install(version: &str, requirements: &[&str], folder: &Path) -> Result<()> {
    let mut command = Command::new("python3");
    command
        .args(["-m", "pip", "install"])
        .args(pip(version, requirements))
        .arg("--target")
        .arg(folder);
    command::visible(&mut command, Duration::from_mins(5))
}

/// What mmdebstrap is told, but for the suite and the folder.
fn debian(version: &str) -> Vec<String> {
    let mut arguments = vec![
        "--variant=essential".to_owned(),
        // The library is for programs that embed Python; Debian's own executable is linked with none.
        format!("--include=python{version},libpython{version},libstdc++6"),
    ];
    // A mirror may lag behind.
    arguments.push("--aptopt=Acquire::Check-Valid-Until \"false\"".to_owned());
    arguments.extend(
        ["doc", "man", "locale"]
            .map(|folder| format!("--dpkgopt=path-exclude=/usr/share/{folder}/*")),
    );
    arguments
}

/// What `pip install` is told, but for the folder: wheels for that Python, which is not the one that runs pip.
fn pip(version: &str, requirements: &[&str]) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--quiet",
        "--disable-pip-version-check",
        "--root-user-action=ignore",
        "--only-binary=:all:",
        "--implementation=cp",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push(format!("--python-version={version}"));
    let tags = [
        "manylinux_2_28",
        "manylinux_2_24",
        "manylinux_2_17",
        "manylinux2014",
    ];
    arguments.extend(tags.map(|tag| format!("--platform={tag}_{}", std::env::consts::ARCH)));
    arguments.extend(requirements.iter().copied().map(str::to_owned));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_not_made_here_is_refused_with_those_that_are() {
        let error = root("3.9").unwrap_err().to_string();
        assert!(error.contains("3.14 or 3.15"), "{error}");
    }
}
