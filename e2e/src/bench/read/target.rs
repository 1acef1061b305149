//! A process to read.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::python::Python;

/// How long a program may take until it is ready, and for each answer.
const LIMIT: Duration = Duration::from_mins(1);

/// A running program of e2e/workloads; ends when it is dropped.
pub(in crate::bench) struct Target {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
    pub(in crate::bench) pid: u32,
}

impl Target {
    /// Starts a program and waits until it says `ready`.
    pub(in crate::bench) fn start(python: &Python, arguments: &[&str]) -> Result<Self> {
        let mut child = python
            .workload(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {arguments:?}"))?;
        let stdin = child.stdin.take().context("a program without input")?;
        let stdout = child.stdout.take().context("a program without output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let pid = child.id();
        let target = Self {
            child,
            stdin,
            lines,
            pid,
        };
        let line = target.line()?;
        ensure!(line == "ready", "{arguments:?} says {line:?}, not ready");
        Ok(target)
    }

    /// The next line it prints.
    pub(in crate::bench) fn line(&self) -> Result<String> {
        self.lines
            .recv_timeout(LIMIT)
            .with_context(|| format!("process {} prints nothing", self.pid))
    }

    /// The lines it has printed and nobody has asked for.
    pub(in crate::bench) fn waiting_lines(&self) -> impl Iterator<Item = String> {
        self.lines.try_iter()
    }

    /// Writes a line to it and returns the one that it answers.
    pub(in crate::bench) fn ask(&mut self) -> Result<String> {
        self.stdin
            .write_all(b"\n")
            .with_context(|| format!("process {} takes no input", self.pid))?;
        self.line()
    }

    /// Tells it that this was all, and returns its last line.
    pub(in crate::bench) fn end(&mut self) -> Result<String> {
        self.stdin
            .write_all(b"end\n")
            .with_context(|| format!("process {} takes no input", self.pid))?;
        self.line()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
