//! From a request to the script's first statement, for a main thread that runs or waits in each of several ways, beside the
//! standard library's `sys.remote_exec`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::rows::percentiles;
use super::{Bench, Target};
use crate::bench::figures::{Samples, table};
use crate::bench::milliseconds;
use crate::command;

/// The ways of `waiting_in.py`.
const WAYS: [&str; 12] = [
    "running",
    "asyncio_idle",
    "uvloop_idle",
    "gevent_idle",
    "sleep",
    "recv",
    "recv_with_timeout",
    "lock",
    "queue_with_timeout",
    "child",
    "c_sleep",
    "c_poll",
];
const COUNT: usize = 50;
/// How long `sys.remote_exec` may take to be counted as having started a script at all.
const STOCK_LIMIT: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_mins(2);

impl Bench {
    /// The scripts of this table count nothing: the first one is asked of a thread that has just begun to wait.
    pub(super) fn starts(&self) -> Result<()> {
        self.heading(&format!(
            "from request to started script in the main thread, {COUNT} in a row, beside sys.remote_exec"
        ));
        let mut rows = vec![
            [
                "the main thread",
                "how it came",
                "p50, p95, p99, max",
                "sys.remote_exec, p50",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        for way in WAYS {
            let target = self.waiting(way)?;
            let runs = self.runs(target.pid, COUNT, &["main".to_owned()])?;
            if let Some(lost) = runs.lost.first() {
                bail!("{way}: {lost}");
            }
            let wakes: Vec<&str> = runs.wakes.keys().map(String::as_str).collect();
            // A request of theirs stays armed, so it gets a process of its own.
            let stock = self.stock(&self.waiting(way)?)?;
            rows.push(vec![
                way.to_owned(),
                wakes.join(", "),
                percentiles(&runs.started),
                stock,
            ]);
        }
        print!("{}", table(&rows));
        Ok(())
    }

    /// A process that has begun to wait, or runs for good.
    fn waiting(&self, way: &str) -> Result<Target> {
        let target = Target::start(&self.python, &["waiting_in.py", way])?;
        let begun = Instant::now();
        let path = format!("/proc/{0}/task/{0}/syscall", target.pid);
        let mut same = String::new();
        let mut since = Instant::now();
        loop {
            let now =
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            if now != same {
                (same, since) = (now, Instant::now());
            }
            // Importing takes longer than any one call in it.
            if since.elapsed() >= Duration::from_millis(300) {
                return Ok(target);
            }
            if begun.elapsed() >= LIMIT {
                bail!("{way} does not come to rest");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stock(&self, target: &Target) -> Result<String> {
        let mut stock = self.python.stock_exec(target.pid, COUNT, STOCK_LIMIT);
        let text =
            command::text(&mut stock, LIMIT).context("sys.remote_exec cannot be measured")?;
        let mut started = Samples::default();
        for line in text.lines() {
            match line.parse() {
                Ok(microseconds) => started.push(Duration::from_micros(microseconds)),
                Err(_) if line == "never" => return Ok("not within 1 s".to_owned()),
                Err(_) => bail!("stock_exec.py prints {line:?}"),
            }
        }
        Ok(milliseconds(started.percentile(50)))
    }
}
