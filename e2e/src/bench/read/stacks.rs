//! The stacks of every thread, as whole commands: ours, py-spy's and pystack's.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::figures::{table, verdict};
use super::rounds::{self, Bounds, Contender};
use super::target::Target;
use super::{Bench, ratio, row};
use crate::bench::milliseconds;
use crate::command;

/// How many threads, and what they do.
const TARGETS: [(usize, &str); 4] = [(10, "idle"), (100, "idle"), (500, "idle"), (100, "busy")];
const BOUNDS: Bounds = Bounds {
    runs: 20,
    limit: Duration::from_mins(1),
    all: Duration::from_secs(10),
};
const TIMES: f64 = 5.0;

pub(super) fn run(bench: &Bench) -> Result<()> {
    bench.heading("whole `stacks` commands, output discarded, of e2e/workloads/many_threads.py");
    let mut rows = vec![row([
        "threads", "they", "command", "runs", "p50", "p95", "to ours", "required", "", "shows",
    ])];
    for (count, mode) in TARGETS {
        measure(bench, count, mode, &mut rows)?;
    }
    print!("{}", table(&rows));
    Ok(())
}

fn measure(bench: &Bench, count: usize, mode: &str, rows: &mut Vec<Vec<String>>) -> Result<()> {
    let target = Target::start(
        &bench.python,
        &["many_threads.py", &count.to_string(), mode],
    )?;
    let pid = target.pid;
    let mut contenders = [
        Contender::new("ours", || bench.ours("stacks", pid, "text")),
        Contender::new("ours, -o json", || bench.ours("stacks", pid, "json")),
        Contender::new("py-spy dump", || bench.python.py_spy(pid)),
        Contender::new("pystack remote", || bench.python.pystack(pid)),
    ];
    rounds::run(&mut contenders, BOUNDS)?;
    let ours = ours_shows(bench, pid, count)?;
    let shows = [
        ours.clone(),
        ours,
        shows(&mut bench.python.py_spy(pid), "Thread ", count),
        shows(
            &mut bench.python.pystack(pid),
            "Traceback for thread ",
            count,
        ),
    ];
    let [ours, ..] = &contenders;
    let base = ours.took.percentile(50);
    for (contender, shows) in contenders.iter().zip(shows) {
        let took = &contender.took;
        let times = (!took.is_empty() && !base.is_zero()).then(|| ratio(base, took.percentile(50)));
        let (required, met) = match times {
            _ if contender.name.starts_with("ours") => Default::default(),
            Some(times) => (format!("at least {TIMES:.0} ×"), verdict(times >= TIMES)),
            None => (String::new(), "not comparable".to_owned()),
        };
        rows.push(vec![
            count.to_string(),
            mode.to_owned(),
            contender.name.clone(),
            took.len().to_string(),
            took.shown(50, milliseconds),
            took.shown(95, milliseconds),
            times
                .map(|times| format!("{times:.1} ×"))
                .unwrap_or_default(),
            required,
            met,
            contender.failures.last().map_or(shows, |failure| {
                format!("failed {} times: {failure}", contender.failures.len())
            }),
        ]);
    }
    Ok(())
}

/// How many threads a peer shows: the lines of its output that begin with `head`.
fn shows(command: &mut Command, head: &str, count: usize) -> String {
    match command::text(command, BOUNDS.limit) {
        Ok(text) => of(
            text.lines().filter(|line| line.starts_with(head)).count(),
            count,
        ),
        Err(error) => {
            let error = error.to_string();
            error.lines().last().unwrap_or_default().to_owned()
        }
    }
}

fn of(shown: usize, count: usize) -> String {
    if shown == count {
        "all".to_owned()
    } else {
        format!("{shown} of {count}")
    }
}

/// As much of the `stacks` document as is checked here.
#[derive(Deserialize)]
struct Document {
    interpreters: Vec<Interpreter>,
    problems: Vec<String>,
}

#[derive(Deserialize)]
struct Interpreter {
    threads: Vec<IgnoredAny>,
}

fn ours_shows(bench: &Bench, pid: u32, count: usize) -> Result<String> {
    let json = command::output(&mut bench.ours("stacks", pid, "json"), BOUNDS.limit)?;
    let document: Document =
        serde_json::from_slice(&json).context("`stacks -o json` printed something else")?;
    let interpreters = document.interpreters.iter();
    let shown = interpreters
        .map(|interpreter| interpreter.threads.len())
        .sum();
    let mut text = of(shown, count);
    if !document.problems.is_empty() {
        text = format!("{text}: {}", document.problems.join("; "));
    }
    Ok(text)
}
