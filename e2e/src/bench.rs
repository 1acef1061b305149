//! `cargo e2e bench`: the numbers of docs/performance.md, each beside what it has to be compared with.

mod figures;
mod session;
mod tasks;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

pub use self::session::Where;

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// From applying a DebugSession to its end: warm, warm without an open relay, cold; beside a bare ephemeral container
    Session,
    /// `sidewinder-sidecar tasks` beside `python -m asyncio ps`
    Tasks,
}

/// Runs `name`, or all, and prints the tables.
///
/// # Errors
/// When something that is measured does not work: a number is never printed for it then.
pub fn run(name: Option<Name>, on: &Where) -> Result<()> {
    println!("{}", machine());
    for each in Name::value_variants()
        .iter()
        .filter(|each| name.is_none_or(|name| name == **each))
    {
        match each {
            Name::Session => session::run(on)?,
            Name::Tasks => tasks::run()?,
        }
    }
    Ok(())
}

/// What was measured on.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let first = |text: &str, key: &str| -> String {
        let line = text
            .lines()
            .find(|line| line.starts_with(key))
            .unwrap_or_default();
        line.split_once(':')
            .map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let mut text = String::from("# ");
    let _ = write!(
        text,
        "{cores} × {}, {} memory, Linux {}, load {}",
        first(&read("/proc/cpuinfo"), "model name"),
        first(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg")
            .split_whitespace()
            .next()
            .unwrap_or_default(),
    );
    text
}

/// `12.3 ms`.
fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
