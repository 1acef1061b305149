//! What must hold of every session, whatever was done to the operator.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt};
use sha2::{Digest as _, Sha256};
use sidewinder_crds::names::{EVENT_CONTROLLER, SESSION_UID_LABEL};
use sidewinder_crds::{DebugSession, Phase, conditions};
use sidewinder_e2e::operator::Operator;
use sidewinder_e2e::{answer, cache, session_client as sessions};
use sidewinder_model::{ExecOutcome, Reason};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use crate::flows::{Case, Flow};
use crate::stage::World;
use crate::targets::{self, SOON};

/// So many things are looked at at the same time.
const AT_ONCE: usize = 8;

/// What sessions ended as, from the first to the last word about each.
pub(crate) struct Ends {
    seen: Arc<Mutex<BTreeMap<String, Vec<String>>>>,
    task: JoinHandle<()>,
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a session has ended, in words that do not change any more.
fn end(session: &DebugSession) -> Option<String> {
    let status = session.status.as_ref()?;
    if !conditions::has_ended(&status.conditions) && status.completion_time.is_none() {
        return None;
    }
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .map(|condition| (&condition.type_, &condition.status, &condition.reason))
        .collect();
    Some(format!(
        "{:?} {:?} {:?} {conditions:?}",
        status.phase, status.reason, status.completion_time
    ))
}

impl Ends {
    pub(crate) fn watch(all: Api<DebugSession>) -> Self {
        let seen = Arc::<Mutex<BTreeMap<String, Vec<String>>>>::default();
        let task = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                let mut changes = std::pin::pin!(
                    watcher(all, watcher::Config::default())
                        .default_backoff()
                        .applied_objects()
                );
                while let Some(change) = changes.next().await {
                    let Ok(session) = change else { continue };
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    let ends = seen.entry(session.name_any()).or_default();
                    let end = end(&session);
                    if end.as_ref() != ends.last() && (end.is_some() || !ends.is_empty()) {
                        ends.push(end.unwrap_or_else(|| "none after all".to_owned()));
                    }
                }
            }
        });
        Self { seen, task }
    }

    fn of(&self, session: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(session).cloned().unwrap_or_default()
    }
}

/// Whether a session may fail, and with what.
pub(crate) type MayFail = fn(&Case) -> &'static [Reason];

/// Waits for the end of every session and checks all that must hold.
pub(crate) async fn check(
    world: &World<'_>,
    operator: &mut Operator,
    round: &str,
    cases: &[Case],
    pods: &[String],
    may_fail: MayFail,
) -> Result<()> {
    let mut wrong = Vec::new();
    let ended: Vec<Result<Option<DebugSession>>> = stream::iter(cases)
        .map(|case| ended(world, case))
        .buffered(cases.len().max(1))
        .collect()
        .await;
    let mut runs = BTreeMap::new();
    let waiting = cases.iter().filter(|case| case.flow == Flow::Waiting);
    let pods: Vec<String> = pods
        .iter()
        .cloned()
        .chain(waiting.map(|case| case.pod().to_owned()))
        .collect();
    for pod in &pods {
        runs.insert(pod.clone(), targets::runs(world.namespace, pod).await?);
    }
    for (case, session) in cases.iter().zip(ended) {
        let checked = match session {
            Ok(Some(session)) => one(world, case, &session, &runs, may_fail(case)).await,
            Ok(None) => never_ended(world, case, &runs),
            Err(error) => Err(error),
        };
        if let Err(error) = checked {
            wrong.push(format!("{}: {error:#}", case.name));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{round}: {} of {} sessions did not keep their word:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
    nothing_is_left(world, operator, round, cases, &pods).await?;
    told_once(world, cases).await
}

/// Waits for the end of a session, and of a script that is to end with it. `None`: it was deleted before.
async fn ended(world: &World<'_>, case: &Case) -> Result<Option<DebugSession>> {
    let all = world.namespace.sessions();
    if case.flow == Flow::Deleted {
        sidewinder_e2e::watch::until(&all, &case.name, SOON, "it to be gone", |it| it.is_none())
            .await?;
        case.stopped(world.namespace).await?;
        return Ok(None);
    }
    let (session, ()) =
        tokio::try_join!(ended_by_itself(world, case), case.stopped(world.namespace))?;
    Ok(Some(session))
}

async fn ended_by_itself(world: &World<'_>, case: &Case) -> Result<DebugSession> {
    let outlives = case.flow == Flow::Outliving;
    let limit = SOON + Duration::from_secs(45);
    sessions::status(
        &world.namespace.sessions(),
        &case.name,
        limit,
        "its end",
        |status| {
            let told = |status: &sidewinder_crds::DebugSessionStatus| {
                let exec = status
                    .targets
                    .first()
                    .and_then(|target| target.exec.as_ref());
                exec.is_some_and(|exec| exec.afterwards.is_some())
            };
            conditions::has_ended(&status.conditions) && (!outlives || told(status))
        },
    )
    .await
}

/// How often the script of a case ran in a pod.
fn count(runs: &BTreeMap<String, BTreeMap<String, usize>>, pod: &str, case: &Case) -> usize {
    let runs = runs.get(pod).and_then(|runs| runs.get(&case.name));
    runs.copied().unwrap_or_default()
}

/// What must hold of a session that was deleted while its script ran.
fn never_ended(
    world: &World<'_>,
    case: &Case,
    runs: &BTreeMap<String, BTreeMap<String, usize>>,
) -> Result<()> {
    let ends = world.ends.of(&case.name);
    ensure!(ends.is_empty(), "it was deleted, and ended: {ends:#?}");
    let count = count(runs, case.pod(), case);
    ensure!(count == 1, "its script ran {count} times");
    Ok(())
}

async fn one(
    world: &World<'_>,
    case: &Case,
    session: &DebugSession,
    runs: &BTreeMap<String, BTreeMap<String, usize>>,
    may_fail: &[Reason],
) -> Result<()> {
    let (complete, reason) = sessions::end_of(session)?;
    let status = sessions::status_of(session)?;
    let expected = match case.flow {
        Flow::Outliving => !complete && reason == Reason::ScriptTimeout,
        Flow::Cancelled => {
            let disarmed = conditions::find(&status.conditions, conditions::DISARMED);
            !complete
                && reason == Reason::Cancelled
                && disarmed.is_some_and(|condition| condition.status == "True")
        }
        _ => complete && reason == Reason::Succeeded || may_fail.contains(&reason),
    };
    ensure!(
        expected,
        "it ended with {reason}, Complete: {complete}: {:?} {:?}",
        status.summary,
        status.conditions
    );
    // That is another watch, which may hear of it later.
    until(SOON, "the other watch to tell of its end", async || {
        let heard = !world.ends.of(&case.name).is_empty();
        Ok((!heard).then(|| case.name.clone()).into_iter().collect())
    })
    .await?;
    let ends = world.ends.of(&case.name);
    let last: Vec<String> = end(session).into_iter().collect();
    ensure!(
        ends == last,
        "it ended more than once: {ends:#?}, then {last:#?}"
    );
    for pod in &case.pods {
        let count = count(runs, pod, case);
        ensure!(
            count == 1 || !case.flow.is_long(),
            "its script ran {count} times in {pod}"
        );
        ensure!(count <= 1, "its script ran {count} times in {pod}");
        let target = status.targets.iter().find(|it| it.pod_name == *pod);
        let succeeded = target.is_some_and(|it| it.phase == Some(Phase::Succeeded));
        ensure!(
            succeeded || reason != Reason::Succeeded,
            "it has succeeded without an answer of {pod}"
        );
        ensure!(
            count == usize::from(case.flow.counts()) || !succeeded,
            "it has succeeded in {pod}, and its script ran {count} times there"
        );
    }
    let succeeded = status
        .targets
        .iter()
        .filter(|it| it.phase == Some(Phase::Succeeded));
    for target in succeeded {
        let data = answer::data(&world.namespace.client, session, target)
            .await
            .context("its result is lost")?;
        if !case.flow.counts() {
            continue;
        }
        let outcome: ExecOutcome = serde_json::from_value(data)?;
        let value = if case.flow == Flow::Large {
            cache::hex(&Sha256::digest(outcome.stdout.as_bytes()))
        } else {
            case.name.clone()
        };
        ensure!(
            outcome.value == Some(format!("'{value}'")),
            "it answers {:?}",
            outcome.value
        );
    }
    Ok(())
}

/// Nobody was told of an end twice.
async fn told_once(world: &World<'_>, cases: &[Case]) -> Result<()> {
    let events = world.namespace.api::<Event>();
    let events = events.list(&ListParams::default()).await?;
    let told = told(&events.items);
    ensure!(
        told.keys()
            .any(|(_, session)| cases.iter().any(|case| case.name == *session)),
        "no Event tells of any end"
    );
    let twice: Vec<_> = told.iter().filter(|(_, count)| **count > 1).collect();
    ensure!(twice.is_empty(), "told more than once: {twice:?}");
    Ok(())
}

/// How often Events tell of a session's end: by the object that they are about, and the session.
fn told(events: &[Event]) -> BTreeMap<(String, String), i32> {
    let mut told = BTreeMap::new();
    for event in events {
        let ours = event.reporting_controller.as_deref() == Some(EVENT_CONTROLLER);
        // What is told under a name of its own is no end, and is there once at most.
        if !ours || event.name_any().starts_with("sidewinder-") {
            continue;
        }
        let about = event.regarding.clone().unwrap_or_default();
        let (kind, name) = (
            about.kind.unwrap_or_default(),
            about.name.unwrap_or_default(),
        );
        let note = event.note.as_deref().unwrap_or_default();
        let session = note
            .strip_prefix("DebugSession ")
            .and_then(|note| note.split(':').next())
            .unwrap_or(&name)
            .to_owned();
        let count = event.series.as_ref().map_or(1, |series| series.count);
        *told.entry((format!("{kind} {name}"), session)).or_default() += count;
    }
    told
}

/// Deletes the sessions, and looks for what they left.
async fn nothing_is_left(
    world: &World<'_>,
    operator: &mut Operator,
    round: &str,
    cases: &[Case],
    pods: &[String],
) -> Result<()> {
    let all = world.namespace.sessions();
    all.delete_collection(&DeleteParams::default(), &ListParams::default())
        .await?;
    for case in cases {
        sidewinder_e2e::watch::until(&all, &case.name, SOON, "it to be gone", |it| it.is_none())
            .await?;
    }
    stream::iter(pods)
        .map(|pod| targets::check(world, pod, round))
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    until(SOON, "the results' Secrets to be gone", async || {
        let secrets = world.namespace.api::<Secret>();
        let left = secrets
            .list_metadata(&ListParams::default().labels(SESSION_UID_LABEL))
            .await?;
        let names: Vec<String> = left.iter().map(ResourceExt::name_any).collect();
        Ok(names)
    })
    .await?;
    let port = operator.port();
    until(SOON, "the operator to have nothing to do", async || {
        idle(&metrics(port).await?, pods.len())
    })
    .await?;
    operator.check()
}

/// Waits until `look` finds nothing.
pub(crate) async fn until(
    limit: Duration,
    what: &str,
    look: impl AsyncFn() -> Result<Vec<String>>,
) -> Result<()> {
    let until = Instant::now() + limit;
    loop {
        let found = look().await?;
        if found.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "waited {} s for {what}: {found:?}",
            limit.as_secs()
        );
        // Neither the garbage collector nor the metrics tell of a change.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What an operator without sessions still has to do. A stream stays open for each sidecar, of which a pod has two at most.
fn idle(metrics: &str, pods: usize) -> Result<Vec<String>> {
    let most = [
        ("sidewinder_sessions_active", 0),
        ("sidewinder_sessions_queued", 0),
        ("sidewinder_sessions_watched", 0),
        ("sidewinder_relay_streams", 2 * pods),
    ];
    let mut left = Vec::new();
    for (name, most) in most {
        let value = gauge(metrics, name)?;
        if value > most {
            left.push(format!("{name} {value}"));
        }
    }
    Ok(left)
}

/// The value of a metric without labels.
pub(crate) fn gauge(metrics: &str, name: &str) -> Result<usize> {
    let mut lines = metrics.lines();
    lines
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        .with_context(|| format!("there is no metric {name}"))
}

pub(crate) async fn metrics(port: u16) -> Result<String> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[test]
fn an_end_that_is_told_twice_is_seen() {
    let event = |name: &str, kind: &str, of: &str, note: &str, series: Option<i32>| -> Event {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name}, "reportingController": EVENT_CONTROLLER, "note": note,
            "regarding": {"kind": kind, "name": of}, "series": series.map(|count| {
                serde_json::json!({"count": count, "lastObservedTime": "2026-01-01T00:00:00.000000Z"})
            }),
        }))
        .unwrap()
    };
    let events = [
        event("a.1", "DebugSession", "a", "stacks: Done.", None),
        event("x.1", "Pod", "x", "DebugSession a: stacks: Done.", None),
        event("x.2", "Pod", "x", "DebugSession b: stacks: Done.", None),
        event("x.3", "Pod", "x", "DebugSession b: stacks: Lost.", None),
        event("c.1", "DebugSession", "c", "stacks: Done.", Some(2)),
        event(
            "sidewinder-x-added",
            "Pod",
            "x",
            "DebugSession a added y",
            None,
        ),
        event(
            "sidewinder-a-1-session",
            "DebugSession",
            "a",
            "The script has ended",
            None,
        ),
    ];
    let told = told(&events);
    let count = |about: &str, session: &str| told[&(about.to_owned(), session.to_owned())];
    assert_eq!(told.len(), 4);
    assert_eq!(count("DebugSession a", "a"), 1);
    assert_eq!(count("Pod x", "a"), 1);
    assert_eq!(count("Pod x", "b"), 2);
    assert_eq!(count("DebugSession c", "c"), 2);
}

#[test]
fn what_is_left_to_do_is_seen() {
    let metrics = |active: usize| {
        format!(
            "# HELP sidewinder_sessions_active x\nsidewinder_sessions_active {active}\nsidewinder_sessions_queued 0\nsidewinder_sessions_watched 0\nsidewinder_relay_streams 2\n"
        )
    };
    assert!(idle(&metrics(0), 1).unwrap().is_empty());
    assert_eq!(
        idle(&metrics(3), 1).unwrap(),
        ["sidewinder_sessions_active 3"]
    );
    assert!(!idle(&metrics(0), 0).unwrap().is_empty());
    assert!(idle("", 1).is_err());
}
