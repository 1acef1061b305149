//! What is printed of scripts in a row.

use super::Runs;
use crate::bench::figures::{Samples, verdict};
use crate::bench::milliseconds;
use crate::bench::read::row;

/// How many of those that went wrong are named.
const SHOWN: usize = 3;

impl Runs {
    pub(super) fn rows(
        &self,
        scripts: usize,
        before: f64,
        during: f64,
        after: f64,
    ) -> Vec<Vec<String>> {
        let asked = self.whole.len();
        let undisturbed = f64::midpoint(before, after);
        let wakes: Vec<String> = self
            .wakes
            .iter()
            .map(|(wake, count)| format!("{wake} {count}"))
            .collect();
        vec![
            row(["", "", "required", ""]),
            wrong("scripts lost", &self.lost, asked),
            wrong("scripts run twice or out of turn", &self.twice, asked),
            row([
                "scripts that ran, as the process counts",
                &scripts.to_string(),
                &asked.to_string(),
                &verdict(scripts == asked),
            ]),
            row(["how the thread came to answer", &wakes.join(", "), "", ""]),
            row([
                "from request to started script, p50, p95, p99, max",
                &percentiles(&self.started),
                "",
                "",
            ]),
            row([
                "the whole request, p50, p95, p99, max",
                &percentiles(&self.whole),
                "",
                "",
            ]),
            row([
                "the thread stood still, p50, p95, p99, max",
                &percentiles(&self.paused),
                "",
                "",
            ]),
            row([
                "the program's work per second, before and after",
                &format!("{before:.0}, {after:.0}"),
                "",
                "",
            ]),
            row([
                "the program's work per second meanwhile",
                &format!("{during:.0}: {:.0} %", 100.0 * during / undisturbed),
                "",
                "",
            ]),
        ]
    }
}

fn wrong(what: &str, which: &[String], asked: usize) -> Vec<String> {
    for one in which.iter().take(SHOWN) {
        println!("  {one}");
    }
    row([
        what,
        &format!("{} of {asked}", which.len()),
        "0",
        &verdict(which.is_empty()),
    ])
}

pub(super) fn percentiles(samples: &Samples) -> String {
    [50, 95, 99, 100]
        .map(|percent| milliseconds(samples.percentile(percent)))
        .join(", ")
}
