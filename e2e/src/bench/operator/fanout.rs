//! One session that asks every pod of a label.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use sidewinder_crds::DebugSession;

use super::super::figures::table;
use super::super::milliseconds;
use super::audit::per;
use super::load::Watch;
use super::{Stage, heading, load_average, mebibytes, pods};
use crate::namespace::{self, PodSecurity, TestNamespace};
use crate::session_client as sessions;

const PODS: u32 = 100;
const PARALLEL: usize = 50;
const LIMIT: Duration = Duration::from_mins(10);

pub(super) async fn run(stage: &Stage) -> Result<()> {
    namespace::with_namespace(
        stage.client.clone(),
        &stage.python,
        "bench_operator_fanout",
        PodSecurity::Privileged,
        async |namespace| measure(stage, namespace).await,
    )
    .await
}

/// A session on all pods of the benchmark's label, `parallel` of them at a time.
pub(super) fn session(
    name: &str,
    pods: &serde_json::Value,
    action: &serde_json::Value,
) -> Result<DebugSession> {
    let mut session = json!({
        "apiVersion": "sidewinder.dev/v1alpha1", "kind": "DebugSession", "metadata": {"name": name},
        "spec": {"target": {"selector": {"matchLabels": {pods::LABEL.0: pods::LABEL.1}}, "pods": pods}},
    });
    if let (Some(spec), Some(action)) = (
        session
            .pointer_mut("/spec")
            .and_then(|spec| spec.as_object_mut()),
        action.as_object(),
    ) {
        spec.extend(action.clone());
    }
    serde_json::from_value(session).context("cannot write a session")
}

async fn measure(stage: &Stage, namespace: &TestNamespace) -> Result<()> {
    let pods = pods::start(namespace, stage.scaled(PODS)).await?;
    let count = pods.len();
    heading(
        "fanout",
        &format!("one session over {count} pods, {PARALLEL} at a time"),
    );
    let mut operator = stage.program.start()?;
    let mut watch = Watch::of(namespace.sessions());
    let mut rows = vec![
        [
            "",
            "until its end",
            "pods that answered",
            "status",
            "requests",
            "writes",
            "writes per pod",
            "peak memory",
            "load",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let mut details = String::new();
    let all = json!({"mode": "All", "maxParallel": PARALLEL});
    for (name, what, action) in [
        ("cold", "stacks, the sidecars get in", json!({"stacks": {}})),
        ("warm", "stacks, the sidecars are in", json!({"stacks": {}})),
        (
            "exec",
            "remoteExec, the sidecars are in",
            json!({"remoteExec": {"script": "1+1"}}),
        ),
    ] {
        let mark = stage.audit.mark()?;
        operator.forget_peak()?;
        let mut one = Some(session(name, &all, &action)?);
        let ends = watch.run(|| one.take(), 1, LIMIT).await?;
        let peak = operator.peak()?;
        let load = load_average();
        let requests = stage.audit.since(mark).await?;
        let ended = ends
            .last
            .as_ref()
            .with_context(|| format!("{name} has not ended"))?;
        let status = sessions::status_of(ended)?;
        let good = status
            .targets
            .iter()
            .filter(|target| target.reason.as_deref() == Some("Succeeded"))
            .count();
        rows.push(vec![
            what.to_owned(),
            milliseconds(ends.took.percentile(100)),
            format!("{good} of {count}"),
            format!("{} B", serde_json::to_vec(status)?.len()),
            requests.all().to_string(),
            requests.writes().to_string(),
            format!("{:.2}", per(requests.writes(), count)),
            mebibytes(peak),
            load,
        ]);
        let _ = writeln!(
            details,
            "\n{what}: {}: {}\n{}",
            ends.shown(),
            status.summary.as_deref().unwrap_or_default(),
            requests
                .shown(count)
                .replace("per session", "per pod")
                .trim_end()
        );
        ensure!(
            good == count,
            "{good} of {count} pods answered:\n{}{details}",
            table(&rows)
        );
    }
    print!("{}{details}", table(&rows));
    operator.check()
}
