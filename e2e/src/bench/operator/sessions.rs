//! Many sessions on a few pods.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use sidewinder_crds::DebugSession;

use super::super::figures::{table, verdict};
use super::super::milliseconds;
use super::audit::per;
use super::cpu::{self, Use};
use super::load::{Ends, Watch};
use super::{Stage, heading, load_average, mebibytes, pods};
use crate::namespace::{self, PodSecurity, TestNamespace};
use crate::operator::Operator;
use crate::session_client as sessions;

const SESSIONS: u32 = 2000;
const PODS: u32 = 20;
/// As many as the operator works on at once, unless it is told otherwise; of a part of the pods, as large a part of them.
const OUTSTANDING: u32 = 64;
/// Without an end for so long, what is left is lost.
const LIMIT: Duration = Duration::from_mins(4);
/// What is asked for.
const RATE: f64 = 40.0;
const WRITES: f64 = 5.0;

/// What is asked of the pods.
#[derive(Clone, Copy, Debug)]
enum Action {
    Stacks,
    Exec,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Stacks => "stacks",
            Self::Exec => "remoteExec `1+1`",
        }
    }

    fn session(self, name: &str, pod: &str) -> DebugSession {
        match self {
            Self::Stacks => sessions::stacks(name, pod),
            Self::Exec => sessions::exec(name, pod, "1+1"),
        }
    }
}

pub(super) async fn run(stage: &Stage) -> Result<()> {
    namespace::with_namespace(
        stage.client.clone(),
        &stage.python,
        "bench_operator_sessions",
        PodSecurity::Privileged,
        async |namespace| measure(stage, namespace).await,
    )
    .await
}

async fn measure(stage: &Stage, namespace: &TestNamespace) -> Result<()> {
    let pods = pods::start(namespace, stage.scaled(PODS)).await?;
    let count = stage.scaled(SESSIONS);
    heading(
        "sessions",
        &format!("{count} sessions on {} pods", pods.len()),
    );
    let mut operator = stage.program.start()?;
    let mut watch = Watch::of(namespace.sessions());
    warm_up(&mut watch, &pods).await?;
    let mut rows = vec![Row::HEADINGS.map(str::to_owned).to_vec()];
    let mut details = String::new();
    let outstanding = stage.scaled(OUTSTANDING);
    for (label, action, outstanding) in [
        ("stacks", Action::Stacks, outstanding),
        ("exec", Action::Exec, outstanding),
        ("burst", Action::Stacks, usize::MAX),
    ] {
        let (row, detail) = one(
            stage,
            &mut operator,
            &mut watch,
            &pods,
            &Run {
                label,
                action,
                count,
                outstanding,
            },
        )
        .await?;
        rows.push(row);
        details.push_str(&detail);
    }
    print!("{}{details}", table(&rows));
    operator.check()
}

/// Gets the sidecars in, so that every session that is measured is a warm one.
pub(super) async fn warm_up(watch: &mut Watch, pods: &[String]) -> Result<Ends> {
    let mut sessions = pods
        .iter()
        .map(|pod| sessions::stacks(&format!("warm-up-{pod}"), pod));
    let ends = watch.run(|| sessions.next(), usize::MAX, LIMIT).await?;
    ensure!(
        ends.all_succeeded(),
        "the sessions that get the sidecars in ended otherwise: {}; lost: {:?}",
        ends.shown(),
        ends.lost
    );
    Ok(ends)
}

struct Run<'a> {
    label: &'a str,
    action: Action,
    count: usize,
    outstanding: usize,
}

struct Row;

impl Row {
    const HEADINGS: [&'static str; 13] = [
        "action",
        "at a time",
        "sessions",
        "per second",
        "at least 40",
        "p50",
        "p99",
        "requests each",
        "writes each",
        "at most 5",
        "CPU each",
        "peak memory",
        "lost",
    ];
}

async fn one(
    stage: &Stage,
    operator: &mut Operator,
    watch: &mut Watch,
    pods: &[String],
    run: &Run<'_>,
) -> Result<(Vec<String>, String)> {
    let mark = stage.audit.mark()?;
    operator.forget_peak()?;
    let (before, processes) = (cpu::of_operator(operator)?, Use::now());
    let mut numbers = 0..run.count;
    let mut turns = pods.iter().cycle();
    let next = || {
        let (number, pod) = (numbers.next()?, turns.next()?);
        Some(
            run.action
                .session(&format!("{}-{number:05}", run.label), pod),
        )
    };
    let ends = watch.run(next, run.outstanding, LIMIT).await?;
    let cpu = cpu::of_operator(operator)?.saturating_sub(before);
    let used = Use::now().since(&processes);
    let peak = operator.peak()?;
    let load = load_average();
    let requests = stage.audit.since(mark).await?;
    let each = |time: Duration| time / u32::try_from(ends.count().max(1)).unwrap_or(u32::MAX);
    let writes = per(requests.writes(), run.count);
    let row = vec![
        run.action.name().to_owned(),
        if run.outstanding == usize::MAX {
            "all".to_owned()
        } else {
            run.outstanding.to_string()
        },
        run.count.to_string(),
        format!("{:.1}", ends.rate()),
        verdict(ends.rate() >= RATE),
        milliseconds(ends.took.percentile(50)),
        milliseconds(ends.took.percentile(99)),
        format!("{:.2}", per(requests.all(), run.count)),
        format!("{writes:.2}"),
        verdict(writes <= WRITES),
        milliseconds(each(cpu)),
        mebibytes(peak),
        ends.lost.len().to_string(),
    ];
    let mut detail = format!(
        "\n{} ({}), load {load}: {}\n{}",
        run.action.name(),
        run.label,
        ends.shown(),
        requests.shown(run.count)
    );
    detail.push_str("processor time for each session:");
    for (name, time) in used.iter().filter(|(_, time)| !time.is_zero()).take(10) {
        let _ = write!(detail, " {name} {};", milliseconds(each(*time)));
    }
    detail.push('\n');
    ensure!(
        ends.lost.is_empty(),
        "sessions without an end: {:?}",
        ends.lost
    );
    Ok((row, detail))
}
