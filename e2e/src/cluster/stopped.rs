//! Parts of a cluster that are away for a while.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Cluster, SUPERVISOR_LOCK, supervisor};
use crate::command;

/// The port on which kubelets serve the API server.
const KUBELET_PORT: u16 = 10250;

/// One of the cluster's processes, stopped; it continues when this is dropped.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Cluster {
    /// Stops the process of this name: it answers nothing, and its connections stay.
    ///
    /// # Errors
    /// When there is none.
    pub fn stop(&self, name: &str) -> Result<Stopped> {
        let supervisor = std::fs::read_to_string(self.dir.join(SUPERVISOR_LOCK))?
            .trim()
            .parse()?;
        let process =
            descendant(supervisor, name).with_context(|| format!("the cluster has no {name}"))?;
        let process = Pid::from_raw(process);
        kill(process, Signal::SIGSTOP)?;
        Ok(Stopped(process))
    }

    /// Stops the kubelet and ends every connection to it, and so every stream into a pod.
    ///
    /// # Errors
    /// When there is none, or the kernel does not end connections (`CONFIG_INET_DIAG_DESTROY`).
    pub fn stop_kubelet(&self) -> Result<Stopped> {
        let stopped = self.stop("kubelet")?;
        let network = format!("--net=/proc/{}/ns/net", supervisor::node_pid(&self.dir)?);
        let mut kill = Command::new("nsenter");
        kill.arg(network)
            .args([
                "ss",
                "--kill",
                "--tcp",
                "--no-header",
                "state",
                "established",
            ])
            .arg(format!("( sport = :{KUBELET_PORT} )"));
        let killed = command::text(&mut kill, Duration::from_secs(10))?;
        anyhow::ensure!(!killed.is_empty(), "no connection to the kubelet was ended");
        Ok(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// The process called `name` below the process `ancestor`.
fn descendant(ancestor: i32, name: &str) -> Option<i32> {
    let mut parents = BTreeMap::new();
    let mut named = Vec::new();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|text| text.parse::<i32>().ok())
        else {
            continue;
        };
        // proc(5): pid (comm) state ppid …
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let Some((head, tail)) = stat.rsplit_once(')') else {
            continue;
        };
        let parent = tail
            .split_whitespace()
            .nth(1)
            .and_then(|text| text.parse::<i32>().ok());
        parents.insert(pid, parent.unwrap_or_default());
        if head.split_once('(').is_some_and(|(_, comm)| comm == name) {
            named.push(pid);
        }
    }
    named.into_iter().find(|&pid| {
        let mut at = pid;
        for _ in 0..parents.len() {
            match parents.get(&at) {
                Some(&parent) if parent == ancestor => return true,
                Some(&parent) if parent > 1 => at = parent,
                _ => return false,
            }
        }
        false
    })
}
