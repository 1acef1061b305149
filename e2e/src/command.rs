//! Other programs, each with a limit on its time and an error that says what it said.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How many bytes of a program's own words go into an error.
const SHOWN: usize = 4000;

/// Runs `command`, which must succeed within `limit`, and returns its standard output.
pub fn output(command: &mut Command, limit: Duration) -> Result<Vec<u8>> {
    output_of(command.stdin(Stdio::null()), limit)
}

fn output_of(command: &mut Command, limit: Duration) -> Result<Vec<u8>> {
    let finished = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()), limit)?;
    if !finished.success {
        bail!(
            "{} failed ({}): {}",
            finished.shown,
            finished.status,
            tail(&finished.stderr)
        );
    }
    Ok(finished.stdout)
}

/// Like [`output`], as text without the last line's end.
pub fn text(command: &mut Command, limit: Duration) -> Result<String> {
    let output = output(command, limit);
    decode(command, output)
}

/// Like [`text`], with `input` as standard input.
pub fn text_from(command: &mut Command, input: File, limit: Duration) -> Result<String> {
    let output = output_of(command.stdin(input), limit);
    decode(command, output)
}

fn decode(command: &Command, output: Result<Vec<u8>>) -> Result<String> {
    let bytes = output?;
    let text = String::from_utf8(bytes)
        .with_context(|| format!("{} printed something that is not UTF-8", shown(command)))?;
    Ok(text.trim_end().to_owned())
}

/// Runs `command`, whose output goes where ours goes (its standard output too goes to our standard error: ours is for the answer).
pub fn visible(command: &mut Command, limit: Duration) -> Result<()> {
    let finished = finish(
        command
            .stdout(std::io::stderr())
            .stderr(Stdio::inherit())
            .stdin(Stdio::null()),
        limit,
    )?;
    if !finished.success {
        bail!("{} failed ({})", finished.shown, finished.status);
    }
    Ok(())
}

struct Finished {
    shown: String,
    success: bool,
    status: std::process::ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

fn finish(command: &mut Command, limit: Duration) -> Result<Finished> {
    use std::os::unix::process::CommandExt as _;
    let shown = shown(command);
    // A group of its own, so that what it started ends with it when it takes too long.
    let mut child = command
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let group = Pid::from_raw(child.id().cast_signed());
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let (sender, ended) = mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let status = child.wait();
        let _ = sender.send(());
        status
    });
    let late = ended.recv_timeout(limit).is_err();
    if late {
        let _ = killpg(group, Signal::SIGKILL);
    }
    let status = waiter
        .join()
        .ok()
        .context("the waiting thread ended")?
        .with_context(|| format!("cannot wait for {shown}"))?;
    let (stdout, stderr) = (stdout.collect(), stderr.collect());
    if late {
        bail!(
            "{shown} took more than {} s and was ended: {}",
            limit.as_secs(),
            tail(&stderr)
        );
    }
    Ok(Finished {
        shown,
        success: status.success(),
        status,
        stdout,
        stderr,
    })
}

/// What a pipe carried. A daemon that the program left behind may hold the other end, so the end of the pipe is not waited for without a limit.
struct Drained(Option<mpsc::Receiver<Vec<u8>>>);

impl Drained {
    fn collect(self) -> Vec<u8> {
        self.0
            .and_then(|bytes| bytes.recv_timeout(Duration::from_secs(5)).ok())
            .unwrap_or_default()
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> Drained {
    Drained(pipe.map(|mut pipe| {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            let _ = sender.send(bytes);
        });
        receiver
    }))
}

/// The command line as one would type it.
pub fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(
        command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned()),
    );
    words.join(" ")
}

/// The last bytes of a program's output, as text.
pub fn tail(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(SHOWN);
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default())
        .trim()
        .to_owned()
}

/// Whether `child` has not ended yet.
pub fn is_running(child: &mut Child) -> bool {
    matches!(child.try_wait(), Ok(None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_carries_what_the_program_said() {
        let error = output(
            &mut shell("echo no such thing >&2; exit 3"),
            Duration::from_secs(10),
        )
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("no such thing") && error.contains('3'),
            "{error}"
        );
        assert_eq!(
            text(
                &mut shell("echo out; echo err >&2"),
                Duration::from_secs(10)
            )
            .unwrap(),
            "out"
        );
    }

    #[test]
    fn a_program_that_takes_too_long_ends_with_all_it_started() {
        let start = Instant::now();
        let error = output(
            &mut shell("sleep 60 & sleep 60"),
            Duration::from_millis(100),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("took more than"), "{error}");
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "the pipe of the background process was waited for"
        );
    }
}
