//! Whole commands, one run of each after the other and round again, so that whatever else the machine does meets all.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::figures::Samples;
use crate::command::tail;

/// A command that did not work that often is not tried again.
const FAILURES: usize = 3;
/// A command is run at least that often, however long it takes.
const AT_LEAST: usize = 3;

/// How long, how often and with what bounds commands are run.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    pub(super) runs: usize,
    /// Of one run.
    pub(super) limit: Duration,
    /// Of all runs of one command.
    pub(super) all: Duration,
}

/// A command that is measured beside others.
pub(super) struct Contender<'a> {
    pub(super) name: String,
    command: Box<dyn Fn() -> Command + 'a>,
    pub(super) took: Samples,
    /// What it said when it did not work.
    pub(super) failures: Vec<String>,
    given_up: bool,
}

impl<'a> Contender<'a> {
    pub(super) fn new(name: &str, command: impl Fn() -> Command + 'a) -> Self {
        Self {
            name: name.to_owned(),
            command: Box::new(command),
            took: Samples::default(),
            failures: Vec::new(),
            given_up: false,
        }
    }
}

/// Runs all of them, their output discarded.
pub(super) fn run(contenders: &mut [Contender<'_>], bounds: Bounds) -> Result<()> {
    let mut spent = vec![Duration::ZERO; contenders.len()];
    for round in 0..bounds.runs {
        for (contender, spent) in contenders.iter_mut().zip(&mut spent) {
            let tired = *spent >= bounds.all && round >= AT_LEAST;
            if tired || contender.given_up {
                continue;
            }
            let begin = Instant::now();
            match time((contender.command)(), bounds.limit, Stdio::null())? {
                Ok(took) => contender.took.push(took),
                Err(failure) if failure.ends_with(": ") => {
                    let said = said_on_stdout((contender.command)(), bounds.limit)?;
                    contender.failures.push(failure + &said);
                }
                Err(failure) => contender.failures.push(failure),
            }
            let took = begin.elapsed();
            contender.given_up = contender.failures.len() >= FAILURES || took >= bounds.limit;
            *spent += took;
        }
    }
    Ok(())
}

/// From the start of `command` to its end, or why there is no such figure.
fn time(mut command: Command, limit: Duration, stdout: Stdio) -> Result<Result<Duration, String>> {
    let mut stderr = tempfile::tempfile().context("cannot make a temporary file")?;
    let handle = stderr.try_clone().context("cannot share a file")?;
    command
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(handle)
        // A group of its own, so that what it started ends with it when it takes too long.
        .process_group(0);
    let (started, group) = mpsc::channel::<u32>();
    let (finished, end) = mpsc::channel::<()>();
    let (took, status, late) = std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let Ok(group) = group.recv() else {
                return false;
            };
            let late = end.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
            if late {
                let _ = killpg(Pid::from_raw(group.cast_signed()), Signal::SIGKILL);
            }
            late
        });
        let start = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let _ = started.send(child.id());
        let status = child
            .wait()
            .with_context(|| format!("cannot wait for {command:?}"))?;
        let took = start.elapsed();
        drop(finished);
        let late = watch.join().unwrap_or_default();
        anyhow::Ok((took, status, late))
    })?;
    if late {
        return Ok(Err(format!("ended after {} s", limit.as_secs())));
    }
    if status.success() {
        return Ok(Ok(took));
    }
    Ok(Err(format!("{status}: {}", last_line(&mut stderr)?)))
}

/// The last line of a program that says on its standard output why it fails, as `asyncio ps` does: run once more for that.
fn said_on_stdout(command: Command, limit: Duration) -> Result<String> {
    let mut output = tempfile::tempfile().context("cannot make a temporary file")?;
    let handle = output.try_clone().context("cannot share a file")?;
    let _ = time(command, limit, handle.into())?;
    last_line(&mut output)
}

/// What a program said last.
fn last_line(output: &mut File) -> Result<String> {
    let mut said = Vec::new();
    output.rewind().context("cannot rewind a file")?;
    output
        .read_to_end(&mut said)
        .context("cannot read what a program said")?;
    Ok(tail(&said).lines().last().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn only_what_worked_has_a_time() {
        let mut contenders = [
            Contender::new("works", || shell("echo much")),
            Contender::new("fails", || shell("echo first >&2; echo why >&2; exit 3")),
            Contender::new("says it aloud", || shell("echo why; exit 1")),
            Contender::new("hangs", || shell("sleep 1000 & wait")),
        ];
        let bounds = Bounds {
            runs: 5,
            limit: Duration::from_millis(200),
            all: Duration::from_mins(1),
        };
        run(&mut contenders, bounds).unwrap();
        let [works, fails, aloud, hangs] = &contenders;
        assert_eq!((works.took.len(), works.failures.len()), (5, 0));
        assert_eq!((fails.took.len(), fails.failures.len()), (0, FAILURES));
        assert_eq!(fails.failures.first().unwrap(), "exit status: 3: why");
        assert_eq!(aloud.failures.first().unwrap(), "exit status: 1: why");
        assert_eq!(hangs.failures, ["ended after 0 s"]);
    }
}
