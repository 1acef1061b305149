//! The operator as a child of ours: its release binary, told what the chart tells it, under its own service account.
//!
//! Outside of a pod it can be ended and started again at any moment, without the kubelet's growing pause between two
//! starts, and the kernel says what it used.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sidewinder_crds::names::env;

use super::cpu;
use crate::command;

/// How much of its log is shown when it ends by itself.
const SHOWN: usize = 4000;

/// How to start it.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// The static binary of its image.
    pub(super) binary: PathBuf,
    /// A kubeconfig with its service account's token.
    pub(super) kubeconfig: PathBuf,
    /// What the chart's Deployment sets.
    pub(super) environment: Vec<(String, String)>,
    /// What it says goes here.
    pub(super) log: PathBuf,
}

/// It, running.
#[derive(Debug)]
pub(super) struct Operator {
    child: Child,
    log: PathBuf,
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl Program {
    /// The same with one more setting.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(&self) -> Result<Operator> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot open {}", self.log.display()))?;
        // It ends with us, however we end: prctl(2), PR_SET_PDEATHSIG.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(&self.binary)
            .env_clear()
            .env("KUBECONFIG", &self.kubeconfig)
            // The lease is its own again after a restart, as it is for a container that is started again in its pod.
            .env(env::POD_NAME, "bench")
            .envs(self.environment.iter().cloned())
            .env(env::HTTP_ADDRESS, format!("127.0.0.1:{}", free_port()?))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start the operator")?;
        Ok(Operator {
            child,
            log: self.log.clone(),
        })
    }
}

impl Operator {
    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The processor time that it has used.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn cpu(&mut self) -> Result<Duration> {
        self.check()?;
        cpu::of(self.pid()).context("the operator has ended")
    }

    /// Its largest resident set since its start, or since [`Self::forget_peak`], in KiB.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn peak(&mut self) -> Result<u64> {
        self.check()?;
        let file = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&file).context("the operator has ended")?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next())
            .and_then(|peak| peak.parse().ok())
            .with_context(|| format!("{file} without VmHWM"))
    }

    /// Its largest resident set is what it holds now: proc(5), `clear_refs`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn forget_peak(&mut self) -> Result<()> {
        self.check()?;
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5")
            .context("the kernel does not forget the operator's peak memory")
    }

    /// Fails if it has ended by itself.
    ///
    /// # Errors
    /// With the end of its log.
    pub(super) fn check(&mut self) -> Result<()> {
        if command::is_running(&mut self.child) {
            return Ok(());
        }
        let log = std::fs::read(&self.log).unwrap_or_default();
        let from = log.len().saturating_sub(SHOWN);
        let words = String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned();
        bail!("the operator has ended by itself: {words}")
    }

    /// SIGKILL, and taken in.
    ///
    /// # Errors
    /// When it had ended before, by itself.
    pub(super) fn kill(mut self) -> Result<()> {
        self.check()?;
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        // One that has ended cannot be killed any more, and is taken in all the same.
        let _ = self.child.kill();
        self.child
            .wait()
            .map(drop)
            .context("cannot wait for the operator")
    }
}

/// A port that nobody listens on.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    fn program(folder: &Path, script: &str) -> Program {
        let binary = folder.join("program");
        std::fs::write(&binary, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        Program {
            binary,
            kubeconfig: folder.join("kubeconfig"),
            environment: vec![("SETTING".to_owned(), "chart".to_owned())],
            log: folder.join("log"),
        }
    }

    #[test]
    fn it_is_measured_while_it_runs_and_gone_when_it_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut operator = program(folder.path(), "exec sleep 60").start().unwrap();
        let pid = operator.pid();
        assert!(operator.peak().unwrap() > 0);
        operator.forget_peak().unwrap();
        assert!(operator.peak().unwrap() > 0);
        assert!(operator.cpu().unwrap() < Duration::from_secs(30));
        operator.kill().unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn one_that_ends_by_itself_is_an_error_with_its_own_words() {
        let folder = tempfile::tempdir().unwrap();
        let said = "echo \"$KUBECONFIG $SETTING $POD_NAME\" >&2; exit 3";
        let mut operator = program(folder.path(), said)
            .with("SETTING", "ours")
            .start()
            .unwrap();
        operator.child.wait().unwrap();
        let error = operator.check().unwrap_err().to_string();
        assert!(error.contains("kubeconfig ours bench"), "{error}");
        assert!(operator.kill().is_err());
    }
}
