//! The operator's memory beside sessions that have ended.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use sidewinder_crds::DebugSession;

use super::super::figures::{table, verdict};
use super::load::Watch;
use super::sessions::warm_up;
use super::{Stage, heading, load_average, mebibytes, pods};
use crate::namespace::{self, PodSecurity, TestNamespace};
use crate::operator::Operator;
use crate::session_client as sessions;

const FINISHED: u32 = 10_000;
const RUN: usize = 200;
const PODS: usize = 10;
const OUTSTANDING: usize = 32;
/// Without an end for so long, what is left is lost.
const LIMIT: Duration = Duration::from_mins(4);
/// So many requests of ours are under way at most.
const REQUESTS: usize = 32;
/// What is asked for, in KiB.
const PEAK: u64 = 64 * 1024;
/// A page of a list.
const PAGE: u32 = 500;

pub(super) async fn run(stage: &Stage) -> Result<()> {
    namespace::with_namespace(
        stage.client.clone(),
        &stage.python,
        "bench_operator_memory",
        PodSecurity::Privileged,
        async |namespace| measure(stage, namespace).await,
    )
    .await
}

async fn measure(stage: &Stage, namespace: &TestNamespace) -> Result<()> {
    let pods = pods::start(namespace, PODS).await?;
    let count = stage.scaled(FINISHED);
    heading(
        "memory",
        &format!("the operator's largest resident set beside {count} sessions that have ended"),
    );
    let mut rows = vec![
        ["", "peak memory", "at most 64 MiB", "load"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut add = |what: String, peak: u64| {
        rows.push(vec![
            what,
            mebibytes(peak),
            verdict(peak <= PEAK),
            load_average(),
        ]);
    };

    let mut watch = Watch::of(namespace.sessions());
    let mut operator = stage.program.start()?;
    let ended = warm_up(&mut watch, &pods).await?;
    let peak = more(&mut operator, &mut watch, &pods, "none").await?;
    add(format!("{RUN} run, none but their like have ended"), peak);
    operator.kill()?;
    // Otherwise every one of ours would be on this watch, too.
    drop(watch);

    let example = ended.last.context("no session has ended")?;
    let made = make(namespace, &example, count).await?;
    let mut watch = Watch::of(namespace.sessions());
    let mut operator = stage.program.start()?;
    let mut first = pods
        .iter()
        .map(|pod| sessions::stacks(&format!("again-{pod}"), pod));
    let ends = watch.run(|| first.next(), usize::MAX, LIMIT).await?;
    ensure!(ends.all_succeeded(), "the first ended: {}", ends.shown());
    add(
        format!("started beside {count}, until its first sessions ended"),
        operator.peak()?,
    );
    let peak = more(&mut operator, &mut watch, &pods, "beside").await?;
    add(format!("{RUN} run, {count} have ended before"), peak);
    print!("{}", table(&rows));
    println!("each that has ended holds {made} bytes of JSON");
    drop(operator);
    drop(watch);
    delete(namespace).await
}

/// The largest resident set while so many sessions run.
async fn more(
    operator: &mut Operator,
    watch: &mut Watch,
    pods: &[String],
    label: &str,
) -> Result<u64> {
    operator.forget_peak()?;
    let mut numbers = 0..RUN;
    let mut turns = pods.iter().cycle();
    let next = || {
        let (number, pod) = (numbers.next()?, turns.next()?);
        Some(sessions::stacks(&format!("{label}-{number:04}"), pod))
    };
    let ends = watch.run(next, OUTSTANDING, LIMIT).await?;
    ensure!(
        ends.all_succeeded(),
        "{RUN} sessions ended: {}; lost: {:?}",
        ends.shown(),
        ends.lost
    );
    operator.peak()
}

/// Makes sessions that have ended as `example` has, which nobody ever worked on; how large each is.
async fn make(namespace: &TestNamespace, example: &DebugSession, count: usize) -> Result<usize> {
    let api: Api<DebugSession> = namespace.sessions();
    let pod = example.spec.pod_name();
    let status = Patch::Merge(json!({"status": example.status}));
    let (api, status) = (&api, &status);
    stream::iter(0..count)
        .map(|number| async move {
            let name = format!("ended-{number:05}");
            api.create(&PostParams::default(), &sessions::stacks(&name, pod))
                .await?;
            api.patch_status(&name, &PatchParams::default(), status)
                .await
                .with_context(|| format!("cannot end {name}"))?;
            anyhow::Ok(())
        })
        .buffer_unordered(REQUESTS)
        .try_collect::<()>()
        .await?;
    Ok(serde_json::to_vec(example)?.len())
}

/// Deletes every session of the namespace, page by page: the namespace's own deletion would take minutes.
async fn delete(namespace: &TestNamespace) -> Result<()> {
    let sessions: Api<PartialObjectMeta<DebugSession>> = namespace.api();
    let api = &namespace.sessions();
    loop {
        let page = sessions
            .list(&ListParams::default().limit(PAGE))
            .await
            .context("cannot list the sessions")?;
        if page.items.is_empty() {
            return Ok(());
        }
        stream::iter(page.items)
            .map(|session| async move {
                match api
                    .delete(&session.name_any(), &DeleteParams::default())
                    .await
                {
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                    deleted => deleted.map(drop).context("cannot delete a session"),
                }
            })
            .buffer_unordered(REQUESTS)
            .try_collect::<()>()
            .await?;
    }
}
