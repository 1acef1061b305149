//! `cargo e2e bench`: the numbers of docs/performance.md, each beside what it has to be compared with.

mod exec;
mod figures;
mod max_rss;
pub mod operator;
mod read;
mod session;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;

pub use self::max_rss::max_rss;
pub use self::session::Where;

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// From applying a DebugSession to its end: warm, warm without an open relay, cold; beside a bare ephemeral container
    Session,
    /// Many sessions at once: requests, memory, and what is left when the operator is killed; one of its parts can be named
    Operator,
    /// All of the following: what reading a process costs us and it
    Read,
    /// Whole `tasks` commands at up to 100 000 tasks beside `python -m asyncio ps` and the C core beneath it
    Tasks,
    /// How long a process stands still while its tasks or its threads are read
    Pauses,
    /// Whole `stacks` commands at up to 500 threads beside py-spy and pystack
    Stacks,
    /// 10 000 snapshots in a row of a process that computes, each checked against its call graph
    Snapshots,
    /// The most memory that `tasks` takes at 100 000 tasks
    Memory,
    /// From request to started script beside `sys.remote_exec`, and 10 000 scripts in a row in a busy process and in one
    /// whose threads wait
    Exec,
}

/// Runs `name`, or all, and prints the tables.
///
/// # Errors
/// When something that is measured does not work: a number is never printed for it then.
pub fn run(name: Option<Name>, operator: &operator::Options, on: &Where) -> Result<()> {
    if name != Some(Name::Operator) && !operator.parts.is_empty() {
        bail!("only `bench operator` has parts that can be named");
    }
    println!("{}", machine());
    match name {
        None => {
            session::run(on)?;
            self::operator::run(on, operator)?;
            read::run(&read::Part::ALL)?;
            exec::run()
        }
        Some(Name::Session) => session::run(on),
        Some(Name::Operator) => self::operator::run(on, operator),
        Some(Name::Read) => read::run(&read::Part::ALL),
        Some(Name::Tasks) => read::run(&[read::Part::Tasks]),
        Some(Name::Pauses) => read::run(&[read::Part::Pauses]),
        Some(Name::Stacks) => read::run(&[read::Part::Stacks]),
        Some(Name::Snapshots) => read::run(&[read::Part::Snapshots]),
        Some(Name::Memory) => read::run(&[read::Part::Memory]),
        Some(Name::Exec) => exec::run(),
    }
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
        load(),
    );
    text
}

/// How many processes ran or wanted to, on average over the last minute.
fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// `12.3 ms`.
fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
