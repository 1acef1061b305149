//! Every asyncio task of a process, as whole commands: ours, the standard library's, and the C core beneath that.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::figures::{Samples, table, verdict};
use super::rounds::{self, Bounds, Contender};
use super::target::Target;
use super::{Bench, ratio, row};
use crate::bench::milliseconds;
use crate::command;

/// How many tasks, and what they do.
const TARGETS: [(usize, &str); 6] = [
    (1, "idle"),
    (1_000, "idle"),
    (10_000, "idle"),
    (10_000, "busy"),
    (10_000, "churn"),
    (100_000, "idle"),
];
/// The sizes between which growth is measured; what one task takes is what any number takes.
const GROWTH: [usize; 4] = [1, 1_000, 10_000, 100_000];
const BOUNDS: Bounds = Bounds {
    runs: 20,
    limit: Duration::from_mins(1),
    all: Duration::from_secs(10),
};
/// How long all calls of the C core may take.
const CORE_LIMIT: Duration = Duration::from_mins(2);
const TIMES_PS: f64 = 20.0;
const TIMES_CORE: f64 = 1.0;
const EXPONENT: f64 = 1.1;

const TABLE: &str = "ours, -o table";
const PS: &str = "python -m asyncio ps";
const CONSTRUCTION: &str = "RemoteUnwinder(pid) alone";
const CORE: &str = "get_all_awaited_by() alone";

pub(super) fn run(bench: &Bench) -> Result<()> {
    bench.heading("whole `tasks` commands, output discarded, of e2e/workloads/many_tasks.py");
    let mut rows = vec![row([
        "tasks", "they", "command", "runs", "p50", "p95", "to ours", "required", "", "lists",
    ])];
    let mut grown: Vec<Growth> = Vec::new();
    for (count, mode) in TARGETS {
        for measured in measure(bench, count, mode)? {
            if mode == "idle" {
                Growth::add(&mut grown, &measured, count);
            }
            rows.push(measured.row(count, mode));
        }
    }
    print!("{}", table(&rows));
    bench.heading("growth of those medians: the exponent of the number of tasks");
    print!("{}", table(&growth(&grown)));
    Ok(())
}

/// A command's figures beside those of ours.
struct Measured {
    name: String,
    took: Samples,
    to_ours: Option<f64>,
    lists: String,
}

impl Measured {
    fn row(&self, count: usize, mode: &str) -> Vec<String> {
        let bar = match self.name.as_str() {
            PS => Some((TIMES_PS, format!("at least {TIMES_PS:.0} ×"))),
            CORE => Some((TIMES_CORE, "more than 1 ×".to_owned())),
            _ => None,
        };
        let judged = (count == 10_000 && mode == "idle").then_some(bar).flatten();
        let (required, met) = match (judged, self.to_ours) {
            (Some((bar, text)), Some(times)) => (text, verdict(times >= bar)),
            (Some((_, text)), None) => (text, "not comparable".to_owned()),
            (None, _) => Default::default(),
        };
        vec![
            count.to_string(),
            mode.to_owned(),
            self.name.clone(),
            self.took.len().to_string(),
            self.took.shown(50, milliseconds),
            self.took.shown(95, milliseconds),
            self.to_ours
                .map(|times| format!("{times:.1} ×"))
                .unwrap_or_default(),
            required,
            met,
            self.lists.clone(),
        ]
    }
}

fn measure(bench: &Bench, count: usize, mode: &str) -> Result<Vec<Measured>> {
    let target = Target::start(&bench.python, &["many_tasks.py", &count.to_string(), mode])?;
    let pid = target.pid;
    let mut contenders = [
        Contender::new(TABLE, || bench.ours("tasks", pid, "table")),
        Contender::new("ours, -o tree", || bench.ours("tasks", pid, "tree")),
        Contender::new("ours, -o json", || bench.ours("tasks", pid, "json")),
        Contender::new(PS, || bench.python.asyncio_ps(pid)),
    ];
    rounds::run(&mut contenders, BOUNDS)?;
    let (construction, core) = core(bench, pid, count)?;
    let ours = ours_lists(bench, pid, count)?;
    let theirs = ps_lists(bench, pid, count);
    let mut measured: Vec<Measured> = contenders
        .into_iter()
        .map(|contender| {
            let listed = if contender.name == PS { &theirs } else { &ours };
            let lists =
                failed(&contender.failures, contender.took.len()).unwrap_or_else(|| listed.clone());
            Measured {
                name: contender.name,
                took: contender.took,
                to_ours: None,
                lists,
            }
        })
        .collect();
    measured.extend([construction, core]);
    let ours = measured
        .first()
        .map(|ours| ours.took.percentile(50))
        .filter(|ours| !ours.is_zero());
    if let Some(ours) = ours {
        let comparable = |each: &&mut Measured| !each.took.is_empty() && each.name != CONSTRUCTION;
        for each in measured.iter_mut().filter(comparable) {
            each.to_ours = Some(ratio(ours, each.took.percentile(50)));
        }
    }
    Ok(measured)
}

/// What is said in place of a listing.
fn failed(failures: &[String], worked: usize) -> Option<String> {
    let last = failures.last()?;
    let runs = failures.len().saturating_add(worked);
    Some(format!("failed {} of {runs}: {last}", failures.len()))
}

/// What a listing of `listed` tasks is worth.
fn complete(listed: usize, count: usize, problems: &str) -> String {
    match (listed, problems) {
        (listed, "") if listed == count => "all".to_owned(),
        // A task of `churn` that ends has its successor for a moment.
        (listed, "") if listed == count.saturating_add(1) => "all and one's successor".to_owned(),
        (listed, "") => format!("{listed} of {count}"),
        (listed, problems) => format!("{listed} of {count}: {problems}"),
    }
}

/// As much of the `tasks` document as is checked here.
#[derive(Deserialize)]
struct Document {
    tasks: Vec<IgnoredAny>,
    problems: Vec<String>,
}

fn ours_lists(bench: &Bench, pid: u32, count: usize) -> Result<String> {
    let json = command::output(&mut bench.ours("tasks", pid, "json"), BOUNDS.limit)?;
    let document: Document =
        serde_json::from_slice(&json).context("`tasks -o json` printed something else")?;
    Ok(complete(
        document.tasks.len(),
        count,
        &document.problems.join("; "),
    ))
}

fn ps_lists(bench: &Bench, pid: u32, count: usize) -> String {
    match command::text(&mut bench.python.asyncio_ps(pid), BOUNDS.limit) {
        Ok(text) => complete(
            text.lines().filter(|line| line.contains("0x")).count(),
            count,
            "",
        ),
        Err(error) => {
            let error = error.to_string();
            error.lines().last().unwrap_or_default().to_owned()
        }
    }
}

/// What `awaited_by.py` prints, in nanoseconds.
#[derive(Deserialize)]
struct Core {
    made: Vec<u64>,
    called: Vec<u64>,
    failures: Vec<String>,
    tasks: usize,
}

fn samples(nanoseconds: &[u64]) -> Samples {
    let mut samples = Samples::default();
    for nanoseconds in nanoseconds {
        samples.push(Duration::from_nanos(*nanoseconds));
    }
    samples
}

/// The construction of the C core's reader and its call, each without the start of the Python around it.
fn core(bench: &Bench, pid: u32, count: usize) -> Result<(Measured, Measured)> {
    let mut python = bench.python.command();
    python.args(["-c", include_str!("awaited_by.py"), &pid.to_string()]);
    python.args([BOUNDS.runs.to_string(), BOUNDS.all.as_secs().to_string()]);
    let (core, lists) = match command::text(&mut python, CORE_LIMIT) {
        Ok(text) => {
            let core: Core =
                serde_json::from_str(&text).context("awaited_by.py printed something else")?;
            let lists = failed(&core.failures, core.called.len())
                .unwrap_or_else(|| complete(core.tasks, count, ""));
            (core, lists)
        }
        Err(error) => {
            let error = error.to_string();
            let core = Core {
                made: Vec::new(),
                called: Vec::new(),
                failures: Vec::new(),
                tasks: 0,
            };
            // The program is in the command that the message begins with.
            (core, error.lines().last().unwrap_or_default().to_owned())
        }
    };
    let measured = |name: &str, took, lists| Measured {
        name: name.to_owned(),
        took,
        to_ours: None,
        lists,
    };
    Ok((
        measured(CONSTRUCTION, samples(&core.made), String::new()),
        measured(CORE, samples(&core.called), lists),
    ))
}

/// The medians of one command at the sizes of [`GROWTH`], as far as there are any.
struct Growth {
    name: String,
    medians: Vec<(usize, Duration)>,
}

impl Growth {
    fn add(grown: &mut Vec<Self>, measured: &Measured, count: usize) {
        if measured.took.is_empty() {
            return;
        }
        let median = (count, measured.took.percentile(50));
        match grown.iter_mut().find(|each| each.name == measured.name) {
            Some(growth) => growth.medians.push(median),
            None => grown.push(Self {
                name: measured.name.clone(),
                medians: vec![median],
            }),
        }
    }

    fn at(&self, count: usize) -> Option<Duration> {
        let median = self.medians.iter().find(|(size, _)| *size == count);
        median.map(|(_, median)| *median)
    }

    /// The exponent between two sizes, of the time less `fixed`.
    fn exponent(&self, sizes: (usize, usize), fixed: Duration) -> Option<f64> {
        let at = |count| Some(self.at(count)?.saturating_sub(fixed).as_secs_f64());
        exponent((sizes.0, at(sizes.0)?), (sizes.1, at(sizes.1)?))
    }
}

/// The slope of the line through two points in a plot with logarithmic axes.
fn exponent(small: (usize, f64), large: (usize, f64)) -> Option<f64> {
    let log = |count: usize| u32::try_from(count).map(|count| f64::from(count).ln()).ok();
    let slope = (large.1.ln() - small.1.ln()) / (log(large.0)? - log(small.0)?);
    slope.is_finite().then_some(slope)
}

fn growth(grown: &[Growth]) -> Vec<Vec<String>> {
    let mut rows = vec![row([
        "command",
        "at 1 task",
        "1000 to 10000",
        "10000 to 100000",
        "less the time at 1 task: 1000 to 10000",
        "10000 to 100000",
        "required",
        "",
    ])];
    let [one, small, middle, large] = GROWTH;
    for growth in grown {
        let fixed = growth.at(one).unwrap_or_default();
        let exponents = [
            growth.exponent((small, middle), Duration::ZERO),
            growth.exponent((middle, large), Duration::ZERO),
            growth.exponent((small, middle), fixed),
            growth.exponent((middle, large), fixed),
        ];
        let mut cells = vec![growth.name.clone(), milliseconds(fixed)];
        cells.extend(exponents.map(|exponent| {
            exponent
                .map(|exponent| format!("{exponent:.2}"))
                .unwrap_or_default()
        }));
        if growth.name.starts_with("ours") {
            let met = exponents
                .iter()
                .all(|exponent| exponent.is_some_and(|exponent| exponent <= EXPONENT));
            cells.extend([format!("at most {EXPONENT}"), verdict(met)]);
        }
        rows.push(cells);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_is_that_of_the_power() {
        let growth = Growth {
            name: "ours".to_owned(),
            medians: [(1, 2), (1_000, 3), (10_000, 12), (100_000, 1002)]
                .map(|(count, took)| (count, Duration::from_millis(took)))
                .to_vec(),
        };
        let less = |sizes| growth.exponent(sizes, Duration::from_millis(2)).unwrap();
        assert!((less((1_000, 10_000)) - 1.0).abs() < 1e-9);
        assert!((less((10_000, 100_000)) - 2.0).abs() < 1e-9);
        let plain = growth.exponent((1_000, 10_000), Duration::ZERO).unwrap();
        assert!((plain - 4_f64.log10()).abs() < 1e-9);
        // The fixed part is all there is.
        assert_eq!(
            growth.exponent((1_000, 10_000), Duration::from_millis(3)),
            None
        );
        assert_eq!(growth.exponent((1_000, 77), Duration::ZERO), None);
    }

    #[test]
    fn a_listing_that_lacks_something_says_so() {
        assert_eq!(complete(10, 10, ""), "all");
        assert_eq!(complete(9, 10, ""), "9 of 10");
        assert_eq!(complete(10, 10, "torn"), "10 of 10: torn");
        assert_eq!(
            failed(&["why".to_owned()], 2).as_deref(),
            Some("failed 1 of 3: why")
        );
        assert_eq!(failed(&[], 2), None);
    }
}
