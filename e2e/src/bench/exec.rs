//! What running scripts in a process costs, and that none is lost or run twice.

mod rows;
mod starts;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::figures::{Samples, table};
use super::read::python::{self, Python};
use super::read::target::Target;
use crate::{images, python as pythons};

const RUNS: usize = 10_000;
/// How long a process is left alone before and after, to see what it does then.
const ALONE: Duration = Duration::from_secs(5);
/// A script that says when it began and how many have run.
const SCRIPT: &str = "import time\nat = time.monotonic_ns()\nmain = __import__('sys').modules['__main__']\nmain.runs += 1\n[at, main.runs]\n";

/// Prints the tables for every Python.
pub(super) fn run() -> Result<()> {
    python::own_mounts()?;
    let program = images::sidecar_example("repeated_exec")?;
    let mut script = tempfile::NamedTempFile::new().context("cannot make a file")?;
    script
        .write_all(SCRIPT.as_bytes())
        .context("cannot write the script")?;
    for version in pythons::VERSIONS {
        let bench = Bench {
            python: Python::open(version)?,
            program: program.clone(),
            script: script.path().to_owned(),
        };
        bench.starts()?;
        bench.contended()?;
        bench.blocked()?;
    }
    Ok(())
}

/// A Python, and the program of ours that runs scripts in it.
struct Bench {
    python: Python,
    program: PathBuf,
    script: PathBuf,
}

/// A line of `repeated_exec`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    reason: String,
    message: String,
    wake: Option<String>,
    started_microseconds: Option<u64>,
    total_microseconds: u64,
    paused_microseconds: u64,
    value: Vec<u64>,
}

/// What came of scripts in a row.
#[derive(Default)]
struct Runs {
    started: Samples,
    whole: Samples,
    paused: Samples,
    wakes: std::collections::BTreeMap<String, usize>,
    /// Scripts that were not answered for, with what was said, and those whose count was not the next.
    lost: Vec<String>,
    twice: Vec<String>,
}

/// How much a program has done at one moment, as it says.
struct Work {
    done: f64,
    at: Duration,
    scripts: usize,
    rest: Vec<String>,
}

impl Work {
    fn ask(target: &mut Target) -> Result<Self> {
        Self::read(&target.ask()?)
    }

    fn read(line: &str) -> Result<Self> {
        let mut words = line.split(' ').map(str::to_owned);
        let mut word = || words.next().with_context(|| format!("it prints {line:?}"));
        let _kind = word()?;
        Ok(Self {
            done: word()?.parse().context("no count")?,
            at: Duration::from_nanos(word()?.parse().context("no time")?),
            scripts: word()?.parse().context("no number of scripts")?,
            rest: words.collect(),
        })
    }

    /// Per second since an earlier moment.
    fn since(&self, earlier: &Self) -> f64 {
        (self.done - earlier.done) / self.at.saturating_sub(earlier.at).as_secs_f64()
    }

    /// Per second while nobody runs a script.
    fn alone(target: &mut Target) -> Result<f64> {
        let begin = Self::ask(target)?;
        std::thread::sleep(ALONE);
        Ok(Self::ask(target)?.since(&begin))
    }
}

impl Bench {
    fn heading(&self, text: &str) {
        println!(
            "\n## Python {}, load {}: {text}\n",
            self.python.release,
            super::load()
        );
    }

    fn contended(&self) -> Result<()> {
        self.heading(&format!(
            "{RUNS} scripts in a row in the main thread of four that compute, garbage being collected without end"
        ));
        let mut target = Target::start(&self.python, &["contended.py"])?;
        self.in_a_row(&mut target, |_| Ok(vec!["main".to_owned()]))
    }

    fn blocked(&self) -> Result<()> {
        self.heading(&format!(
            "{RUNS} scripts in a row in threads that wait in eleven ways, chosen at random, while the main thread lets them go"
        ));
        let mut target = Target::start(&self.python, &["blocked_threads.py"])?;
        self.in_a_row(&mut target, |work| {
            let ids = work.rest.first().context("it names no threads")?;
            Ok(ids.split(',').map(str::to_owned).collect())
        })?;
        let end = target.end()?;
        let problem = Work::read(&end)?.rest[1..].join(" ");
        println!("waits that were lost, wrong or stuck: {problem}");
        ensure!(problem == "none", "a wait was harmed: {problem}");
        Ok(())
    }

    fn in_a_row(
        &self,
        target: &mut Target,
        threads: impl FnOnce(&Work) -> Result<Vec<String>>,
    ) -> Result<()> {
        let before = Work::alone(target)?;
        let begin = Work::ask(target)?;
        let runs = self.runs(target.pid, RUNS, &threads(&begin)?)?;
        let end = Work::ask(target)?;
        let during = end.since(&begin);
        let after = Work::alone(target)?;
        print!("{}", table(&runs.rows(end.scripts, before, during, after)));
        ensure!(
            runs.lost.is_empty() && runs.twice.is_empty() && end.scripts == RUNS,
            "scripts were lost or run twice"
        );
        Ok(())
    }

    fn runs(&self, pid: u32, count: usize, threads: &[String]) -> Result<Runs> {
        let mut child = Command::new(&self.program)
            .args([pid.to_string(), count.to_string()])
            .arg(&self.script)
            .args(threads)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let output = child.stdout.take().context("a program without output")?;
        let mut runs = Runs::default();
        for (number, line) in (1_u64..).zip(BufReader::new(output).lines()) {
            let line = line.context("repeated_exec broke off")?;
            runs.add(
                number,
                &serde_json::from_str(&line).context("repeated_exec prints no answer")?,
            );
        }
        let status = child.wait().context("cannot wait for repeated_exec")?;
        ensure!(status.success(), "repeated_exec failed: {status}");
        if runs.whole.len() != count {
            bail!("repeated_exec ran {} scripts", runs.whole.len());
        }
        Ok(runs)
    }
}

impl Runs {
    fn add(&mut self, number: u64, line: &Line) {
        self.whole
            .push(Duration::from_micros(line.total_microseconds));
        self.paused
            .push(Duration::from_micros(line.paused_microseconds));
        let Some((started, wake)) = line.started_microseconds.zip(line.wake.clone()) else {
            self.lost.push(format!("{}: {}", line.reason, line.message));
            return;
        };
        self.started.push(Duration::from_micros(started));
        *self.wakes.entry(wake).or_default() += 1;
        let count = line.value.get(1).copied().unwrap_or_default();
        // One that was lost and ran all the same would count here.
        if count != number {
            self.twice
                .push(format!("script {number} was the {count}th to run"));
        }
    }
}
