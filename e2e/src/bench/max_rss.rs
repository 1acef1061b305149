//! How much memory a command takes, for a process of its own.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};

/// Runs a command, its output discarded, and returns its largest resident set in KiB.
///
/// # Errors
/// When it fails, or took no more than this process, which is all that can be said then.
pub fn max_rss(command: &[OsString]) -> Result<i64> {
    let Some((program, arguments)) = command.split_first() else {
        bail!("no command to measure")
    };
    let status = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(status.success(), "{} failed: {status}", program.display());
    let theirs = getrusage(UsageWho::RUSAGE_CHILDREN)
        .context("the kernel does not say what was used")?
        .max_rss();
    // The child began as a copy of us, and the kernel counts that, too.
    let own = own_peak()?;
    ensure!(
        theirs > own,
        "{theirs} KiB are no more than the {own} KiB of who measures"
    );
    Ok(theirs)
}

/// Our own largest resident set in KiB, since this program began: getrusage(2) has that of whoever started it, too.
fn own_peak() -> Result<i64> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next())
        .and_then(|peak| peak.parse().ok())
        .context("/proc/self/status without VmHWM")
}
