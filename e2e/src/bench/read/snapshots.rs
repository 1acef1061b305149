//! Snapshots in a row of a process that computes: each checked against what the process can do, what they cost the
//! process, and what they leave behind in ours.

mod call_graph;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use self::call_graph::{CallGraph, Thread};
use super::figures::{Samples, table, verdict};
use super::target::Target;
use super::{Bench, precise, row};
use crate::images;

const SNAPSHOTS: usize = 10_000;
const WORKERS: usize = 8;
/// How long the process is left alone before and after, to see what it does then.
const ALONE: Duration = Duration::from_secs(5);
/// What settles in our process first: caches that fill, and the allocator.
const SETTLED: usize = 1_000;
/// How much more our process may hold at the end than once it has settled: less than an empty allocation per snapshot.
const LEAK_BYTES: u64 = 128 * 1024;
/// How many of the stacks that are wrong are printed.
const SHOWN: usize = 5;

pub(super) fn run(bench: &Bench) -> Result<()> {
    bench.heading(&format!(
        "{SNAPSHOTS} `stacks` in a row by one process of ours, of e2e/workloads/known_calls.py with {WORKERS} threads that compute"
    ));
    let program = images::sidecar_example("repeated_stacks")?;
    let statement = format!("/tmp/known-calls-{}.json", std::process::id());
    let target = Target::start(
        &bench.python,
        &["known_calls.py", &WORKERS.to_string(), &statement],
    )?;
    let file = bench.python.outside(&statement);
    let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    let graph = serde_json::from_slice(&text).context("known_calls.py states something else")?;

    let before = Work::alone(&target)?;
    let begin = Work::next(&target)?;
    let run = Run::of(&program, target.pid, &graph)?;
    let during = Work::next(&target)?.since(&begin);
    let after = Work::alone(&target)?;
    print!("{}", table(&run.rows(before, during, after)));
    for wrong in run.wrong.iter().take(SHOWN) {
        println!("  {wrong}");
    }
    Ok(())
}

/// How much the process has done at one moment, as it says.
struct Work {
    done: f64,
    at: Duration,
}

impl Work {
    /// The next statement that is not older than the call.
    fn next(target: &Target) -> Result<Self> {
        target.waiting_lines().for_each(drop);
        let line = target.line()?;
        let words: Vec<&str> = line.split(' ').collect();
        let ["work", done, at] = words.as_slice() else {
            bail!("known_calls.py prints {line:?}")
        };
        Ok(Self {
            done: done.parse().context("no count")?,
            at: Duration::from_nanos(at.parse().context("no time")?),
        })
    }

    /// Rounds per second since an earlier moment.
    fn since(&self, earlier: &Self) -> f64 {
        (self.done - earlier.done) / self.at.saturating_sub(earlier.at).as_secs_f64()
    }

    /// Rounds per second while nobody reads.
    fn alone(target: &Target) -> Result<f64> {
        let begin = Self::next(target)?;
        loop {
            let now = Self::next(target)?;
            if now.at.saturating_sub(begin.at) >= ALONE {
                return Ok(now.since(&begin));
            }
        }
    }
}

/// A line of `repeated_stacks`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    stacks: Stacks,
    resident_bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stacks {
    interpreters: Vec<Interpreter>,
    paused_microseconds: u64,
    problems: Vec<String>,
}

#[derive(Deserialize)]
struct Interpreter {
    threads: Vec<Thread>,
}

/// What was seen.
#[derive(Default)]
struct Run {
    took: Duration,
    snapshots: usize,
    stacks: usize,
    frames: usize,
    wrong: Vec<String>,
    problems: usize,
    paused: Samples,
    /// The largest once it has settled: in the snapshots just after that, and in as many at the end.
    settled_bytes: u64,
    last_bytes: u64,
}

impl Run {
    fn of(program: &Path, pid: u32, graph: &CallGraph) -> Result<Self> {
        let mut run = Self::default();
        let begin = Instant::now();
        let mut child = Command::new(program)
            .args([pid.to_string(), SNAPSHOTS.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take().context("a program without output")?;
        for line in BufReader::new(output).lines() {
            let line = line.context("repeated_stacks broke off")?;
            let line = serde_json::from_str(&line).context("repeated_stacks prints no answer")?;
            run.add(&line, graph);
        }
        let status = child.wait().context("cannot wait for repeated_stacks")?;
        ensure!(status.success(), "repeated_stacks failed: {status}");
        run.took = begin.elapsed();
        ensure!(
            run.snapshots == SNAPSHOTS,
            "repeated_stacks took {} snapshots",
            run.snapshots
        );
        Ok(run)
    }

    fn add(&mut self, line: &Line, graph: &CallGraph) {
        self.snapshots += 1;
        if (SETTLED..2 * SETTLED).contains(&self.snapshots) {
            self.settled_bytes = self.settled_bytes.max(line.resident_bytes);
        } else if self.snapshots > SNAPSHOTS - SETTLED {
            self.last_bytes = self.last_bytes.max(line.resident_bytes);
        }
        let stacks = &line.stacks;
        self.paused
            .push(Duration::from_micros(stacks.paused_microseconds));
        self.problems += usize::from(!stacks.problems.is_empty());
        let threads: Vec<&Thread> = stacks
            .interpreters
            .iter()
            .flat_map(|interpreter| &interpreter.threads)
            .collect();
        let mut names: Vec<&str> = threads.iter().map(|thread| thread.name.as_str()).collect();
        names.sort_unstable();
        if names != expected_names() {
            self.wrong.push(format!("the threads are {names:?}"));
        }
        for thread in threads {
            self.stacks += 1;
            self.frames += thread.frames.len();
            if let Err(wrong) = graph.check(thread) {
                self.wrong.push(wrong);
            }
        }
    }

    fn rows(&self, before: f64, during: f64, after: f64) -> Vec<Vec<String>> {
        let percentiles = [50, 95, 99, 100].map(|percent| precise(self.paused.percentile(percent)));
        let leaked = self.last_bytes.saturating_sub(self.settled_bytes);
        let undisturbed = f64::midpoint(before, after);
        vec![
            row(["", "", "required", ""]),
            vec![
                "stacks that the call graph does not allow".to_owned(),
                format!(
                    "{} of {} with {} frames",
                    self.wrong.len(),
                    self.stacks,
                    self.frames
                ),
                "0".to_owned(),
                verdict(self.wrong.is_empty()),
            ],
            vec![
                "snapshots with problems".to_owned(),
                format!("{} of {}", self.problems, self.snapshots),
                "0".to_owned(),
                verdict(self.problems == 0),
            ],
            vec![
                "resident, once settled and at the end".to_owned(),
                format!(
                    "{} KiB, {} KiB",
                    self.settled_bytes / 1024,
                    self.last_bytes / 1024
                ),
                format!("at most {} KiB more", LEAK_BYTES / 1024),
                verdict(leaked <= LEAK_BYTES),
            ],
            vec![
                "the process stood still, p50, p95, p99, max".to_owned(),
                percentiles.join(", "),
            ],
            vec![
                "snapshots per second".to_owned(),
                format!("{:.0}", rate(self.snapshots, self.took)),
            ],
            vec![
                "rounds per second of the process, before and after".to_owned(),
                format!("{before:.0}, {after:.0}"),
            ],
            vec![
                "rounds per second of the process meanwhile".to_owned(),
                format!("{during:.0}: {:.0} %", 100.0 * during / undisturbed),
            ],
        ]
    }
}

fn rate(count: usize, took: Duration) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from) / took.as_secs_f64()
}

/// The threads of `known_calls.py`, sorted.
fn expected_names() -> Vec<String> {
    let mut names: Vec<String> = (0..WORKERS)
        .map(|number| format!("worker-{number}"))
        .collect();
    names.extend(["MainThread", "parked"].map(str::to_owned));
    names.sort_unstable();
    names
}
