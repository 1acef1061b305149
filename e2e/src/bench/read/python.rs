//! A Python's root folder with the programs, the peers and `/proc` in it, seen by this process alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::{checkout, command, python};

/// Where e2e/workloads is, seen from inside.
const PROGRAMS: &str = "/media";
/// Where the peers are, seen from inside.
const PEERS: &str = "/mnt";
const LIMIT: Duration = Duration::from_mins(1);

/// Gives this thread and all it starts mounts of their own: they end with it, however it ends, and nobody else who uses
/// the same root folder sees them.
pub(in crate::bench) fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context(
        "a mount namespace is needed for the root folders of the Pythons, and that needs root",
    )?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .context("cannot keep mounts to ourselves")
}

/// A Python and the peers that belong to it.
pub(in crate::bench) struct Python {
    root: PathBuf,
    peers: PathBuf,
    /// The name of its program.
    program: String,
    /// The version to the last digit.
    pub(in crate::bench) release: String,
}

impl Python {
    pub(in crate::bench) fn open(version: &str) -> Result<Self> {
        let (root, peers) = (python::root(version)?, python::peers(version)?);
        bind(&checkout().join("e2e/workloads"), &root, PROGRAMS)?;
        bind(&peers, &root, PEERS)?;
        let proc = root.join("proc");
        mount(
            Some("proc"),
            &proc,
            Some("proc"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("cannot mount {}", proc.display()))?;
        let mut python = Self {
            root,
            peers,
            program: format!("python{version}"),
            release: String::new(),
        };
        let ask = ["-c", "import platform; print(platform.python_version())"];
        python.release = command::text(python.command().args(ask), LIMIT)?;
        Ok(python)
    }

    /// The interpreter, which still has to be told what to run.
    pub(in crate::bench) fn command(&self) -> Command {
        let mut command = Command::new("chroot");
        command
            .arg(&self.root)
            .arg(&self.program)
            .env("PYTHONPATH", PEERS);
        command
    }

    /// A program of e2e/workloads with its arguments. chroot(1) becomes the program, so the pid stays.
    pub(in crate::bench) fn workload(&self, arguments: &[&str]) -> Command {
        let mut command = self.command();
        if let Some((file, arguments)) = arguments.split_first() {
            command.arg(format!("{PROGRAMS}/{file}")).args(arguments);
        }
        command
    }

    /// The standard library's list of tasks.
    pub(in crate::bench) fn asyncio_ps(&self, pid: u32) -> Command {
        let mut command = self.command();
        command.args(["-m", "asyncio", "ps", &pid.to_string()]);
        command
    }

    /// The standard library's way to run a script in another process, again and again.
    pub(in crate::bench) fn stock_exec(&self, pid: u32, count: usize, limit: Duration) -> Command {
        self.workload(&[
            "stock_exec.py",
            &pid.to_string(),
            &count.to_string(),
            &limit.as_secs_f64().to_string(),
        ])
    }

    pub(in crate::bench) fn pystack(&self, pid: u32) -> Command {
        let mut command = self.command();
        command.args(["-m", "pystack", "remote", &pid.to_string()]);
        command
    }

    /// A static binary: it needs no Python.
    pub(in crate::bench) fn py_spy(&self, pid: u32) -> Command {
        let mut command = Command::new(self.peers.join("bin/py-spy"));
        command.args(["dump", "--pid", &pid.to_string()]);
        command
    }

    /// The path from outside of a file inside.
    pub(in crate::bench) fn outside(&self, file: &str) -> PathBuf {
        self.root.join(file.trim_start_matches('/'))
    }
}

fn bind(folder: &Path, root: &Path, inside: &str) -> Result<()> {
    let place = root.join(inside.trim_start_matches('/'));
    mount(
        Some(folder),
        &place,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("cannot show {} as {}", folder.display(), place.display()))
}
