//! The most memory that the sidecar takes for the largest snapshot: it counts against the pod's limit.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::figures::{table, verdict};
use super::target::Target;
use super::{Bench, row};
use crate::command;

const TASKS: &str = "100000";
const LIMIT: Duration = Duration::from_mins(5);
const REQUIRED_MIB: u64 = 64;

pub(super) fn run(bench: &Bench) -> Result<()> {
    bench.heading("the most memory of `tasks` of e2e/workloads/many_tasks.py 100000 (ru_maxrss)");
    let mut rows = vec![row(["command", "resident at most", "required", ""])];
    let target = Target::start(&bench.python, &["many_tasks.py", TASKS])?;
    for output in ["table", "tree", "json"] {
        let most = most_memory(&bench.ours("tasks", target.pid, output))?;
        rows.push(vec![
            format!("ours, -o {output}"),
            format!("{:.1} MiB", mib(most)),
            format!("at most {REQUIRED_MIB} MiB"),
            verdict(most <= REQUIRED_MIB.saturating_mul(1024)),
        ]);
    }
    print!("{}", table(&rows));
    Ok(())
}

fn mib(kib: u64) -> f64 {
    u32::try_from(kib).map_or(f64::INFINITY, f64::from) / 1024.0
}

/// The kernel's own count, in KiB. A process inherits that of whoever starts it, and this one has held whole answers: a
/// new copy of this program, which holds next to nothing, starts it.
fn most_memory(measured: &Command) -> Result<u64> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command
        .args(["max-rss", "--"])
        .arg(measured.get_program())
        .args(measured.get_args());
    let text = command::text(&mut command, LIMIT)?;
    text.parse()
        .with_context(|| format!("max-rss printed {text:?}"))
}
