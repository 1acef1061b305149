//! The operator is killed again and again while scripts run that count themselves.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sidewinder_crds::DebugSession;

use super::super::figures::{table, verdict};
use super::load::{Ends, Watch};
use super::sessions::warm_up;
use super::{Stage, heading, load_average, pods};
use crate::namespace::{self, PodSecurity, TestNamespace};
use crate::operator::{Operator, Program};
use crate::session_client as sessions;

const KILLS: u32 = 50;
const PODS: usize = 10;
const OUTSTANDING: usize = 30;
/// It lives at most so long between two kills, in milliseconds.
const LIFE: u64 = 3000;
/// A script takes at most so long, in milliseconds.
const SCRIPT: u64 = 300;
/// Without an end for so long, what is left has none.
const LIMIT: Duration = Duration::from_mins(5);
/// Where scripts count themselves, in their pods.
const COUNT: &str = "/tmp/runs";

/// Numbers that look random; <https://en.wikipedia.org/wiki/Xorshift>.
struct Random(u64);

impl Random {
    fn of(seed: u32) -> Self {
        Self((u64::from(seed) << 16) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

pub(super) async fn run(stage: &Stage) -> Result<()> {
    namespace::with_namespace(
        stage.client.clone(),
        &stage.python,
        "bench_operator_kills",
        PodSecurity::Privileged,
        async |namespace| measure(stage, namespace).await,
    )
    .await
}

async fn measure(stage: &Stage, namespace: &TestNamespace) -> Result<()> {
    let pods = pods::start(namespace, PODS).await?;
    let kills = stage.scaled(KILLS);
    heading(
        "kills",
        &format!(
            "{kills} times SIGKILL to the operator at random moments while scripts run in {PODS} pods (--seed {})",
            stage.seed
        ),
    );
    let mut watch = Watch::of(namespace.sessions());
    let operator = stage.program.start()?;
    warm_up(&mut watch, &pods).await?;
    let enough = AtomicBool::new(false);
    let (mut number, mut turns) = (0_usize, pods.iter().cycle());
    let mut scripts = Random::of(stage.seed.wrapping_add(1));
    let next = || {
        if enough.load(Ordering::Relaxed) {
            return None;
        }
        number += 1;
        let pod = turns.next()?;
        Some(counted(
            &format!("script-{number:05}"),
            pod,
            scripts.below(SCRIPT),
        ))
    };
    let killing = kill(&stage.program, operator, kills, stage.seed, &enough);
    let (ends, operator) = tokio::join!(watch.run(next, OUTSTANDING, LIMIT), killing);
    let (ends, mut operator) = (ends?, operator?);
    let mut runs = BTreeMap::new();
    for pod in &pods {
        let read = format!("cat {COUNT} 2>/dev/null || true");
        for name in namespace.shell_in(pod, &read).await?.lines() {
            *runs.entry(name.to_owned()).or_insert(0_usize) += 1;
        }
    }
    operator.check()?;
    report(&ends, &runs, kills)
}

/// Kills the operator so many times, each a random while after its start, and returns the one after the last.
async fn kill(
    program: &Program,
    mut operator: Operator,
    kills: usize,
    seed: u32,
    enough: &AtomicBool,
) -> Result<Operator> {
    let mut random = Random::of(seed);
    for number in 0..kills {
        tokio::time::sleep(Duration::from_millis(random.below(LIFE))).await;
        let again = operator
            .kill()
            .with_context(|| format!("before kill {number}"))
            .and_then(|()| program.start());
        operator = match again {
            Ok(operator) => operator,
            Err(error) => {
                enough.store(true, Ordering::Relaxed);
                return Err(error);
            }
        };
    }
    enough.store(true, Ordering::Relaxed);
    Ok(operator)
}

/// A script that adds its session's name to a file: one short write at the end of a file is whole, write(2).
fn counted(name: &str, pod: &str, milliseconds: u64) -> DebugSession {
    let script = format!(
        "import os, time\nruns = os.open('{COUNT}', os.O_WRONLY | os.O_APPEND | os.O_CREAT)\nos.write(runs, b'{name}\\n')\nos.close(runs)\ntime.sleep({milliseconds} / 1000)\n'{name}'"
    );
    sessions::exec(name, pod, &script)
}

fn report(ends: &Ends, runs: &BTreeMap<String, usize>, kills: usize) -> Result<()> {
    let mut rows = vec![
        ["ended", "sessions", "never ran", "ran once", "ran again"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut by_end = BTreeMap::<String, [usize; 3]>::new();
    let (mut twice, mut untrue) = (0_usize, 0_usize);
    let lost = ends.lost.iter().map(|name| (name, None));
    for (name, end) in ends
        .each
        .iter()
        .map(|(name, end)| (name, Some(end)))
        .chain(lost)
    {
        let times = runs.get(name).copied().unwrap_or_default();
        let shown = match end {
            None => "not at all".to_owned(),
            Some((true, reason)) => format!("Complete, {reason}"),
            Some((false, reason)) => format!("Failed, {reason}"),
        };
        if let Some(count) = by_end.entry(shown).or_default().get_mut(times.min(2)) {
            *count += 1;
        }
        twice += usize::from(times > 1);
        let complete = end.is_some_and(|(complete, _)| *complete);
        untrue += usize::from(complete && times != 1);
    }
    for (end, count) in by_end {
        let [none, once, again] = count;
        rows.push(vec![
            end,
            (none + once + again).to_string(),
            none.to_string(),
            once.to_string(),
            again.to_string(),
        ]);
    }
    print!("{}", table(&rows));
    let unknown: Vec<&String> = runs
        .keys()
        .filter(|name| !ends.each.contains_key(*name) && !ends.lost.contains(*name))
        .collect();
    let figures = [
        ("scripts that ran more than once", twice),
        ("sessions without an end", ends.lost.len()),
        ("Complete, and not run exactly once", untrue),
        ("runs of no session", unknown.len()),
    ];
    for (what, count) in figures {
        println!("{what}: {count} ({})", verdict(count == 0));
    }
    println!(
        "{kills} kills, {} sessions in {:.0} s, load {}",
        ends.count(),
        ends.whole.as_secs_f64(),
        load_average()
    );
    ensure!(
        figures.iter().all(|(_, count)| *count == 0),
        "not every session kept its word; without an end: {:?}",
        ends.lost
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(each: &[(&str, bool)], lost: &[&str]) -> Ends {
        Ends {
            each: each
                .iter()
                .map(|&(name, complete)| (name.to_owned(), (complete, "Succeeded".to_owned())))
                .collect(),
            lost: lost.iter().map(|&name| name.to_owned()).collect(),
            ..Ends::default()
        }
    }

    fn runs(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
        counts
            .iter()
            .map(|&(name, count)| (name.to_owned(), count))
            .collect()
    }

    #[test]
    fn what_ran_twice_or_not_although_complete_or_never_ended_fails() {
        let good = [("a", true), ("b", false)];
        assert!(report(&ends(&good, &[]), &runs(&[("a", 1)]), 1).is_ok());
        assert!(report(&ends(&good, &[]), &runs(&[("a", 1), ("b", 1)]), 1).is_ok());
        for (ends, runs) in [
            (ends(&good, &[]), runs(&[("a", 2)])),
            (ends(&good, &[]), runs(&[("a", 1), ("b", 2)])),
            (ends(&good, &[]), runs(&[])),
            (ends(&good, &["c"]), runs(&[("a", 1)])),
            (ends(&good, &[]), runs(&[("a", 1), ("d", 1)])),
        ] {
            assert!(report(&ends, &runs, 1).is_err(), "{ends:?} {runs:?}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_moments() {
        let moments = |seed| {
            let mut random = Random::of(seed);
            [(); 5].map(|()| random.below(LIFE))
        };
        assert_eq!(moments(7), moments(7));
        assert_ne!(moments(7), moments(8));
    }
}
