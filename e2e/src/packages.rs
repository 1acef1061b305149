//! What has to be on the machine. On a Debian as root it is installed, except Go, whose package is too old; elsewhere the error names it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::{checkout, command};

/// The oldest Go, major and minor, that builds the cluster's binaries.
const GO: (u32, u32) = (1, 26);

/// A program the harness runs and the Debian package that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// A program's name, or the absolute path of a file.
    pub file: &'static str,
    /// The Debian package.
    pub package: &'static str,
}

const fn need(file: &'static str, package: &'static str) -> Need {
    Need { file, package }
}

/// To build the cluster's binaries, besides [Go](ensure_go).
pub const BUILD: &[Need] = &[
    need("gcc", "gcc"),
    need("pkg-config", "pkgconf"),
    need("/usr/include/seccomp.h", "libseccomp-dev"),
];
/// To build the fuzz targets: libFuzzer is C++.
pub const FUZZ: &[Need] = &[need("g++", "g++")];
/// To build programs that tests look into.
pub const COMPILER: &[Need] = &[
    need("gcc", "gcc"),
    need("/usr/include/stdio.h", "libc6-dev"),
];
/// To trace programs that tests look into.
pub const TRACERS: &[Need] = &[need("gdb", "gdb"), need("strace", "strace")];
/// To run the cluster.
pub const CLUSTER: &[Need] = &[
    need("ip", "iproute2"),
    need("nsenter", "util-linux"),
    need("unshare", "util-linux"),
];
/// To make a Python's root folder.
pub const PYTHON: &[Need] = &[
    need("mmdebstrap", "mmdebstrap"),
    need("python3", "python3"),
    need(
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
];

/// Sees to it that all `needs` are there.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing = missing(needs, &search_path());
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let list = packages.join(" ");
    if !may_install() {
        let files: Vec<&str> = missing.iter().map(|need| need.file).collect();
        bail!(
            "missing on this machine: {}. Install them (on Debian: apt-get install {list})",
            files.join(", ")
        );
    }
    install(&packages)?;
    let still = self::missing(needs, &search_path());
    if let Some(need) = still.first() {
        bail!(
            "{} is not there although the package {} was installed",
            need.file,
            need.package
        );
    }
    Ok(())
}

/// Checks that Go is there and new enough.
pub fn ensure_go() -> Result<()> {
    // Below a go.mod: a Go that fetches the version its module asks for is as good.
    let found = command::text(
        Command::new("go")
            .arg("version")
            .env("GOWORK", "off")
            .current_dir(checkout().join("e2e/cluster/tools/kubernetes")),
        Duration::from_mins(5),
    );
    let found = match found {
        Ok(found) if go_version(&found).is_some_and(|version| version >= GO) => return Ok(()),
        Ok(found) => format!("`go version` says \"{found}\""),
        Err(error) if is_not_found(&error) => "there is no `go` on PATH".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    bail!(
        "the cluster's binaries are built with Go {}.{} or newer, but {found}. Get it from https://go.dev/dl and put its `bin` on PATH",
        GO.0,
        GO.1
    )
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Major and minor from what `go version` prints.
fn go_version(printed: &str) -> Option<(u32, u32)> {
    printed.split_whitespace().find_map(|word| {
        let (major, rest) = word.strip_prefix("go")?.split_once('.')?;
        let minor = rest
            .split(|character: char| !character.is_ascii_digit())
            .next()?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

/// Sees to it that the machine's Python has pip.
pub fn ensure_pip() -> Result<()> {
    let works = || {
        command::output(
            Command::new("python3").args(["-m", "pip", "--version"]),
            Duration::from_mins(1),
        )
    };
    let Err(error) = works() else { return Ok(()) };
    if !may_install() {
        return Err(error.context(
            "the machine's Python has no pip. Install it (on Debian: apt-get install python3-pip)",
        ));
    }
    install(&["python3-pip"])?;
    works().map(|_| ())
}

fn may_install() -> bool {
    nix::unistd::geteuid().is_root() && Path::new("/usr/bin/apt-get").exists()
}

fn install(packages: &[&str]) -> Result<()> {
    eprintln!("installing {}", packages.join(" "));
    let install = || {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages);
        command::visible(&mut command, Duration::from_mins(10))
    };
    if install().is_err() {
        // The usual reason on a fresh machine: there are no package lists yet.
        command::visible(
            Command::new("apt-get").arg("update"),
            Duration::from_mins(5),
        )?;
        install()?;
    }
    Ok(())
}

/// The folders to look for programs in: `PATH`, and where a system's own tools are even if a shell leaves them out.
fn search_path() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect())
        .unwrap_or_default();
    folders.extend(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    folders
}

fn missing(needs: &[Need], folders: &[PathBuf]) -> Vec<Need> {
    let is_there = |need: &Need| folders.iter().any(|folder| folder.join(need.file).exists());
    let mut missing: Vec<Need> = needs
        .iter()
        .copied()
        .filter(|need| !is_there(need))
        .collect();
    missing.dedup_by_key(|need| need.package);
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_go_is_read_from_what_it_prints() {
        for (printed, version) in [
            ("go version go1.26.8 linux/amd64", Some((1, 26))),
            ("go version go1.19 linux/amd64", Some((1, 19))),
            ("go version go1.27rc1 linux/arm64", Some((1, 27))),
            ("go version go1.26.1 X:nodwarf5 linux/amd64", Some((1, 26))),
            (
                "go version devel go1.28-2f5e1c0 Mon Nov 2 10:00:00 2026 +0000 linux/amd64",
                Some((1, 28)),
            ),
            ("go version devel +a1b2c3 linux/amd64", None),
            ("", None),
        ] {
            assert_eq!(go_version(printed), version, "{printed}");
        }
        assert!(go_version("go version go1.9.2 linux/amd64") < Some(GO));
    }

    #[test]
    fn a_program_that_is_not_there_is_told_from_one_that_fails() {
        let failure = |program: &str| {
            command::text(&mut Command::new(program), Duration::from_secs(10)).unwrap_err()
        };
        assert!(is_not_found(&failure("no-such-program-anywhere")));
        assert!(!is_not_found(&failure("false")));
    }

    #[test]
    fn go_is_not_a_package_to_install() {
        assert!(BUILD.iter().all(|need| need.file != "go"));
    }

    #[test]
    fn a_program_and_a_file_are_looked_for_and_a_package_is_named_once() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("here"), "").unwrap();
        let needs = [
            need("here", "a"),
            need("x", "b"),
            need("y", "b"),
            need("/no/such/file", "c"),
            need("/proc/self/stat", "d"),
        ];
        let packages: Vec<&str> = missing(&needs, &[folder.path().to_path_buf()])
            .iter()
            .map(|need| need.package)
            .collect();
        assert_eq!(packages, ["b", "c"]);
    }
}
