//! How long a process stands still while it is read: as our answers have it, and as the process itself sees it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};

use super::figures::{Samples, table, verdict};
use super::target::Target;
use super::{Bench, field, paused, precise, row};
use crate::command;

const RUNS: usize = 200;
const LIMIT: Duration = Duration::from_mins(1);

/// A reading of a program.
struct Condition {
    action: &'static str,
    program: [&'static str; 3],
    /// The longest median.
    required: Option<Duration>,
}

const CONDITIONS: [Condition; 6] = [
    Condition {
        action: "tasks",
        program: ["many_tasks.py", "10000", "idle"],
        required: Some(Duration::from_millis(5)),
    },
    Condition {
        action: "tasks",
        program: ["many_tasks.py", "10000", "busy"],
        required: Some(Duration::from_millis(5)),
    },
    Condition {
        action: "tasks",
        program: ["many_tasks.py", "10000", "churn"],
        required: Some(Duration::from_millis(5)),
    },
    Condition {
        action: "stacks",
        program: ["many_threads.py", "100", "idle"],
        required: Some(Duration::from_millis(1)),
    },
    Condition {
        action: "stacks",
        program: ["many_threads.py", "100", "busy"],
        required: Some(Duration::from_millis(1)),
    },
    Condition {
        action: "stacks",
        program: ["many_threads.py", "100", "handover"],
        required: None,
    },
];

pub(super) fn run(bench: &Bench) -> Result<()> {
    bench.heading("how long the process stood still, as the answer has it");
    let mut rows = vec![row([
        "action",
        "of",
        "stopped",
        "runs",
        "p50",
        "p95",
        "p99",
        "max",
        "required of p50",
        "",
        "problems",
    ])];
    for condition in &CONDITIONS {
        rows.extend(measure(bench, condition)?.rows(condition));
    }
    print!("{}", table(&rows));
    bench.heading(
        "the same as a thread of many_tasks.py 10000 busy sees it: its largest gap between two looks at the clock",
    );
    print!("{}", table(&from_outside(bench)?));
    Ok(())
}

/// What the runs of one condition said, by what had to be stopped.
#[derive(Default)]
struct Pauses {
    by_stopped: Vec<(String, Samples)>,
    problems: usize,
}

/// What an answer that does not say what was stopped counts as.
const NOT_TOLD: &str = "the answer does not say";
const ALL_THREADS: &str = "AllThreads";

impl Pauses {
    fn add(&mut self, document: &str) -> Result<Duration> {
        let paused = paused(document).context("an answer without pausedMicroseconds")?;
        let stopped =
            field(document, "stopped").map_or(NOT_TOLD, |stopped| stopped.trim_matches('"'));
        let known = self.by_stopped.iter_mut().find(|(name, _)| name == stopped);
        if let Some((_, samples)) = known {
            samples.push(paused);
        } else {
            let mut samples = Samples::default();
            samples.push(paused);
            self.by_stopped.push((stopped.to_owned(), samples));
        }
        if field(document, "problems") != Some("[]") {
            self.problems = self.problems.saturating_add(1);
        }
        Ok(paused)
    }

    /// One row for each that had to be stopped; those in which that was every thread are not what the bar is for.
    fn rows(&self, condition: &Condition) -> Vec<Vec<String>> {
        let row = |(stopped, samples): &(String, Samples)| {
            let required = condition
                .required
                .filter(|_| stopped != ALL_THREADS)
                .map(|bar| (precise(bar), verdict(samples.percentile(50) <= bar)));
            let (required, met) = required.unwrap_or_default();
            let mut cells = vec![
                condition.action.to_owned(),
                condition.program.join(" "),
                stopped.clone(),
                samples.len().to_string(),
            ];
            cells.extend([50, 95, 99, 100].map(|percent| samples.shown(percent, precise)));
            cells.extend([required, met, self.problems.to_string()]);
            cells
        };
        self.by_stopped.iter().map(row).collect()
    }
}

fn measure(bench: &Bench, condition: &Condition) -> Result<Pauses> {
    let target = Target::start(&bench.python, &condition.program)?;
    let mut pauses = Pauses::default();
    for _ in 0..RUNS {
        let mut ours = bench.ours(condition.action, target.pid, "json");
        pauses.add(&command::text(&mut ours, LIMIT)?)?;
    }
    Ok(pauses)
}

/// Nanoseconds of the clock that the program looks at.
fn now() -> Result<i64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("no clock")?;
    let now = Duration::from(now).as_nanos();
    i64::try_from(now).context("a clock out of range")
}

/// The largest part of a gap that lies between `begin` and `end`.
fn largest(gaps: &[(i64, i64)], begin: i64, end: i64) -> Duration {
    let within = |&(from, to): &(i64, i64)| to.min(end).saturating_sub(from.max(begin));
    let largest = gaps.iter().map(within).max().unwrap_or_default();
    Duration::from_nanos(u64::try_from(largest).unwrap_or_default())
}

fn from_outside(bench: &Bench) -> Result<Vec<Vec<String>>> {
    let mut target = Target::start(&bench.python, &["many_tasks.py", "10000", "busy"])?;
    let (mut reported, mut seen, mut undisturbed, mut beyond, mut less) = (
        Samples::default(),
        Samples::default(),
        Samples::default(),
        Samples::default(),
        Samples::default(),
    );
    let gaps = |target: &mut Target| -> Result<Vec<(i64, i64)>> {
        serde_json::from_str(&target.ask()?).context("many_tasks.py answers something else")
    };
    for _ in 0..RUNS {
        let begin = now()?;
        let document = command::text(&mut bench.ours("tasks", target.pid, "json"), LIMIT)?;
        let end = now()?;
        let gap = largest(&gaps(&mut target)?, begin, end);
        let paused = paused(&document).context("an answer without pausedMicroseconds")?;
        reported.push(paused);
        seen.push(gap);
        if gap > paused {
            beyond.push(gap.saturating_sub(paused));
        } else {
            less.push(paused.saturating_sub(gap));
        }
        let as_long = end.saturating_sub(begin);
        let begin = now()?;
        // Nothing is waited for: this is the time that passes without us.
        std::thread::sleep(Duration::from_nanos(u64::try_from(as_long)?));
        let end = now()?;
        undisturbed.push(largest(&gaps(&mut target)?, begin, end));
    }
    let mut rows = vec![row(["", "runs", "p50", "p95", "p99", "max"])];
    for (name, samples) in [
        ("reported by our answer", &reported),
        ("seen by the process", &seen),
        ("seen when nobody reads, in as long a time", &undisturbed),
        ("how much more the process saw than was reported", &beyond),
        ("how much less it saw than was reported", &less),
    ] {
        let mut cells = vec![name.to_owned(), samples.len().to_string()];
        cells.extend([50, 95, 99, 100].map(|percent| samples.shown(percent, precise)));
        rows.push(cells);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_within_the_time_counts() {
        let gaps = [(0, 100), (110, 115), (190, 300)];
        assert_eq!(largest(&gaps, 95, 200), Duration::from_nanos(10));
        assert_eq!(largest(&gaps, 105, 191), Duration::from_nanos(5));
        assert_eq!(largest(&gaps, 120, 180), Duration::ZERO);
        assert_eq!(largest(&[], 0, 10), Duration::ZERO);
    }

    #[test]
    fn runs_that_stopped_every_thread_are_apart_and_not_judged() {
        let mut pauses = Pauses::default();
        for (stopped, paused) in [
            ("GilHolder", 900),
            ("AllThreads", 5_000),
            ("GilHolder", 800),
        ] {
            let document = format!(
                "{{\n  \"stopped\": \"{stopped}\",\n  \"pausedMicroseconds\": {paused},\n  \"problems\": []\n}}"
            );
            pauses.add(&document).unwrap();
        }
        let condition = &CONDITIONS[3];
        let rows = pauses.rows(condition);
        let column =
            |index: usize| -> Vec<&str> { rows.iter().map(|row| row[index].as_str()).collect() };
        assert_eq!(column(2), ["GilHolder", "AllThreads"]);
        assert_eq!(column(3), ["2", "1"]);
        assert_eq!(column(9), ["met", ""]);
    }
}
