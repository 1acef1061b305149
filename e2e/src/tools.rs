//! The binaries of the embedded cluster: built from pinned Go modules (`e2e/cluster/tools`), once, into the cache.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::{cache, checkout, command, packages};

/// Kubernetes alone takes five minutes on two cores.
const BUILD_LIMIT: Duration = Duration::from_mins(50);

/// One Go module below `e2e/cluster/tools`: its tools are built together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// kube-apiserver, kube-controller-manager, kube-scheduler, kubelet and kubectl.
    Kubernetes,
    /// etcd, whose binary installs as `server`.
    Etcd,
    /// containerd, its shim for runc, and ctr.
    Containerd,
    /// runc.
    Runc,
    /// The network plugins bridge and host-local.
    Cni,
    /// helm.
    Helm,
    /// The pod sandbox's program.
    Pause,
    /// Prometheus' checker of rules.
    Promtool,
    /// kwok, which simulates nodes and pods.
    Kwok,
}

impl Module {
    /// What a running cluster needs.
    pub const CLUSTER: [Self; 6] = [
        Self::Kubernetes,
        Self::Etcd,
        Self::Containerd,
        Self::Runc,
        Self::Cni,
        Self::Pause,
    ];

    /// The name of its folder, in the checkout as in the cache.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Etcd => "etcd",
            Self::Containerd => "containerd",
            Self::Runc => "runc",
            Self::Cni => "cni",
            Self::Helm => "helm",
            Self::Pause => "pause",
            Self::Promtool => "promtool",
            Self::Kwok => "kwok",
        }
    }

    /// The arguments of `go install`, after the flags all modules share.
    fn arguments(self, go_mod: &str) -> Result<Vec<String>> {
        let mut arguments = Vec::new();
        let mut ldflags = String::from("-s -w");
        match self {
            Self::Kubernetes => {
                // Without a version the binaries report v0.0.0, which clients fail to parse.
                let version = version_of(go_mod, "k8s.io/kubernetes")
                    .context("k8s.io/kubernetes has no version in its go.mod")?;
                let (major, rest) = version
                    .trim_start_matches('v')
                    .split_once('.')
                    .context("not a version")?;
                let minor = rest.split('.').next().unwrap_or_default();
                for (name, value) in [
                    ("gitVersion", version),
                    ("gitMajor", major),
                    ("gitMinor", minor),
                ] {
                    write!(ldflags, " -X k8s.io/component-base/version.{name}={value}")?;
                }
            }
            Self::Runc => arguments.push("-tags=seccomp".to_owned()),
            // No client of any cloud, which is most of its code.
            Self::Promtool => arguments.push("-tags=remove_all_sd".to_owned()),
            _ => {}
        }
        arguments.push(format!("-ldflags={ldflags}"));
        arguments.push(if self == Self::Pause { "." } else { "tool" }.to_owned());
        Ok(arguments)
    }

    /// runc reaches libseccomp through cgo; everything else is static.
    fn cgo(self) -> &'static str {
        if self == Self::Runc { "1" } else { "0" }
    }

    /// The folder with its binaries; builds them on first use.
    pub fn folder(self) -> Result<PathBuf> {
        let source = checkout().join("e2e/cluster/tools").join(self.name());
        let read = |name: &str| {
            std::fs::read(source.join(name))
                .with_context(|| format!("cannot read {}", source.join(name).display()))
        };
        let go_mod = read("go.mod")?;
        let content = read(if self == Self::Pause {
            "main.go"
        } else {
            "go.sum"
        })?;
        let arguments = self.arguments(&String::from_utf8_lossy(&go_mod))?;
        let flags = format!("{} {}", arguments.join(" "), self.cgo());
        let key = cache::key([
            ("go.mod", go_mod.as_slice()),
            ("content", &content),
            ("flags", flags.as_bytes()),
        ]);
        cache::entry("tools", &format!("{}-{key}", self.name()), |folder| {
            self.build(&source, &arguments, folder)
        })
    }

    fn build(self, source: &Path, arguments: &[String], folder: &Path) -> Result<()> {
        packages::ensure_go()?;
        packages::ensure(packages::BUILD)?;
        eprintln!("building {} (once)", self.name());
        let mut go = Command::new("go");
        go.current_dir(source)
            .env("GOBIN", folder)
            .env("GOFLAGS", "-mod=readonly -trimpath -buildvcs=false")
            .env("GOWORK", "off")
            .env("CGO_ENABLED", self.cgo())
            .env_remove("GOOS")
            .env_remove("GOARCH")
            .arg("install")
            .args(arguments);
        command::visible(&mut go, BUILD_LIMIT)
    }

    /// The path of one of its binaries.
    pub fn binary(self, name: &str) -> Result<PathBuf> {
        let file = self.folder()?.join(name);
        if !file.exists() {
            bail!(
                "{} is not there: remove its folder to have it built again",
                file.display()
            );
        }
        Ok(file)
    }
}

/// The folder of Kubernetes' own binaries.
pub fn bin_dir() -> Result<PathBuf> {
    Module::Kubernetes.folder()
}

/// The version that a go.mod requires of `module`.
fn version_of<'a>(go_mod: &'a str, module: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| {
        let mut words = line
            .split_whitespace()
            .skip_while(|word| *word == "require");
        (words.next() == Some(module))
            .then(|| words.next())
            .flatten()
            .filter(|version| version.starts_with('v'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_required_one_not_a_replacement() {
        let go_mod = "module x\ntool (\n\tk8s.io/kubernetes/cmd/kubelet\n)\nrequire k8s.io/kubernetes v1.36.3\nreplace (\n\tk8s.io/api => k8s.io/api v0.36.3\n)\n";
        assert_eq!(version_of(go_mod, "k8s.io/kubernetes"), Some("v1.36.3"));
        assert_eq!(
            version_of(
                "require (\n\tk8s.io/kubernetes v1.2.3 // why\n)",
                "k8s.io/kubernetes"
            ),
            Some("v1.2.3")
        );
        assert_eq!(version_of(go_mod, "k8s.io/api"), None);
    }

    #[test]
    fn kubernetes_is_told_its_version() {
        let arguments = Module::Kubernetes
            .arguments("require k8s.io/kubernetes v1.36.3")
            .unwrap();
        let flags = arguments.first().unwrap();
        for flag in [
            "version.gitVersion=v1.36.3",
            "version.gitMajor=1",
            "version.gitMinor=36",
        ] {
            assert!(flags.contains(flag), "{flags}");
        }
        assert!(Module::Kubernetes.arguments("module x").is_err());
    }
}
