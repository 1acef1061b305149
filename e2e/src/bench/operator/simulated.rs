//! Pods that exist in the API server alone: <https://kwok.sigs.k8s.io>. No sidecar ever starts in one, so what is seen
//! is what sessions cost that wait for their pods until their limit, and what choosing among many pods costs.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use sidewinder_crds::{DebugSession, names::env};

use super::super::figures::table;
use super::super::milliseconds;
use super::audit::per;
use super::fanout::session;
use super::load::Watch;
use super::{Stage, cpu, heading, load_average, mebibytes, pods};
use crate::checkout;
use crate::namespace::{self, PodSecurity, TestNamespace};
use crate::operator::Operator;
use crate::session_client as sessions;
use crate::tools::Module;

const PODS: u32 = 1000;
const NODES: u32 = 50;
/// So many sessions wait at once.
const WAITING: u32 = 500;
/// What the operator works on at once unless it is told otherwise.
const PERMITS: usize = 64;
/// The most pods that one session may ask.
const TARGETS: usize = 256;
/// So many requests of ours are under way at most.
const REQUESTS: usize = 32;
const START: Duration = Duration::from_mins(5);
const LIMIT: Duration = Duration::from_mins(5);
/// Tells our nodes from others.
const NODE_LABEL: (&str, &str) = ("example.com/simulated", "true");

/// kwok, for as long as this lives.
struct Kwok(Child);

impl Drop for Kwok {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) async fn run(stage: &Stage) -> Result<()> {
    let log = stage.program.log.with_file_name("kwok.log");
    let _kwok = start(stage, &log)?;
    let outcome = namespace::with_namespace(
        stage.client.clone(),
        &stage.python,
        "bench_operator_kwok",
        PodSecurity::Privileged,
        async |namespace| {
            let measured = match populate(stage, namespace).await {
                Ok(pods) => measure(stage, namespace, &pods).await,
                Err(error) => Err(error),
            };
            // Nobody but kwok takes them away, and it ends with us.
            let now = DeleteParams::default().grace_period(0);
            let ours =
                ListParams::default().labels(&format!("{}={}", pods::LABEL.0, pods::LABEL.1));
            namespace.pods().delete_collection(&now, &ours).await?;
            measured
        },
    )
    .await;
    let ours = ListParams::default().labels(&format!("{}={}", NODE_LABEL.0, NODE_LABEL.1));
    Api::<Node>::all(stage.client.clone())
        .delete_collection(&DeleteParams::default(), &ours)
        .await
        .context("cannot delete the simulated nodes")?;
    outcome.with_context(|| format!("kwok's log is {}", log.display()))
}

/// Starts kwok. It is its nodes' kubelet, too, which refuses whatever is asked of their pods.
fn start(stage: &Stage, log: &Path) -> Result<Kwok> {
    let port = "10347";
    let log = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(Module::Kwok.binary("kwok")?)
        .arg("--kubeconfig")
        .arg(&stage.kubeconfig)
        .arg("--config")
        .arg(checkout().join("e2e/cluster/tools/kwok/stages.yaml"))
        .arg(format!(
            "--manage-nodes-with-label-selector={}={}",
            NODE_LABEL.0, NODE_LABEL.1
        ))
        .arg("--node-lease-duration-seconds=120")
        .arg(format!("--node-ip={}", stage.machine()?))
        .arg(format!("--node-port={port}"))
        .arg(format!("--server-address=0.0.0.0:{port}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start kwok")?;
    Ok(Kwok(child))
}

/// Makes nodes and pods, and returns the pods' names once all run.
async fn populate(stage: &Stage, namespace: &TestNamespace) -> Result<Vec<String>> {
    // However few are asked for, they are more than one session may ask.
    let count = stage.scaled(PODS).max(TARGETS + 1);
    let nodes = stage.scaled(NODES);
    let api: &Api<Node> = &Api::all(stage.client.clone());
    stream::iter(0..nodes)
        .map(|number| async move {
            let node = serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": node_name(number), "labels": {NODE_LABEL.0: NODE_LABEL.1}},
                // Nothing real is scheduled there.
                "spec": {"taints": [{"key": NODE_LABEL.0, "value": NODE_LABEL.1, "effect": "NoSchedule"}]},
            }))?;
            match api.create(&PostParams::default(), &node).await {
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                created => created.map(drop).context("cannot create a node"),
            }
        })
        .buffer_unordered(REQUESTS)
        .try_collect::<()>()
        .await?;
    let pods = &namespace.pods();
    let names = stream::iter(0..count)
        .map(|number| async move {
            let name = format!("simulated-{number:04}");
            let pod: Pod = serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "labels": {pods::LABEL.0: pods::LABEL.1}},
                "spec": {
                    "nodeName": node_name(number % nodes), "automountServiceAccountToken": false,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "app", "image": "localhost/nothing:1"}],
                },
            }))?;
            pods.create(&PostParams::default(), &pod)
                .await
                .context("cannot create a pod")?;
            anyhow::Ok(name)
        })
        .buffered(REQUESTS)
        .try_collect::<Vec<String>>()
        .await?;
    let running = async {
        let mut seen = std::collections::BTreeSet::new();
        let mut changes = std::pin::pin!(
            watcher(pods.clone(), watcher::Config::default())
                .default_backoff()
                .applied_objects()
        );
        while let Some(change) = changes.next().await {
            let Ok(pod) = change else { continue };
            let status = pod.status.as_ref();
            if status.and_then(|status| status.phase.as_deref()) == Some("Running") {
                seen.insert(pod.name_any());
            }
            if seen.len() == count {
                return;
            }
        }
    };
    tokio::time::timeout(START, running)
        .await
        .with_context(|| format!("not all simulated pods run after {} s", START.as_secs()))?;
    Ok(names)
}

fn node_name(number: usize) -> String {
    format!("simulated-{number:02}")
}

async fn measure(stage: &Stage, namespace: &TestNamespace, pods: &[String]) -> Result<()> {
    let count = pods.len();
    heading(
        "kwok",
        &format!(
            "{count} simulated pods on {} nodes, in which no sidecar ever starts",
            stage.scaled(NODES)
        ),
    );
    let mut bench = Bench {
        stage,
        watch: Watch::of(namespace.sessions()),
        rows: vec![
            [
                "",
                "sessions",
                "p50 until the end",
                "all ended in",
                "ended",
                "requests each",
                "writes each",
                "CPU each",
                "peak memory",
                "load",
            ]
            .map(str::to_owned)
            .to_vec(),
        ],
        details: String::new(),
    };
    let stacks = json!({"stacks": {}});
    let mut operator = stage.program.start()?;
    // The first session also waits until the operator leads.
    bench
        .one(
            &mut operator,
            "One of all pods",
            false,
            vec![session(
                "first",
                &json!({"mode": "One"}),
                &json!({"stacks": {}, "cancel": true}),
            )?],
        )
        .await?;
    bench
        .one(
            &mut operator,
            "All pods",
            false,
            vec![session("too-many", &json!({"mode": "All"}), &stacks)?],
        )
        .await?;
    let fixed = TARGETS.min(count);
    bench
        .one(
            &mut operator,
            &format!("Fixed {fixed} of all pods at once"),
            true,
            vec![session(
                "fixed",
                &json!({"mode": "Fixed", "value": fixed, "maxParallel": fixed}),
                &stacks,
            )?],
        )
        .await?;
    bench.behind(&mut operator, namespace, pods).await?;
    operator.kill()?;

    let waiting = stage.scaled(WAITING).min(count);
    let mut operator = stage
        .program
        .clone()
        .with(env::MAX_CONCURRENT, &waiting.max(PERMITS).to_string())
        .with(env::MAX_PER_NODE, &waiting.max(PERMITS).to_string())
        .start()?;
    let sessions = pods
        .iter()
        .take(waiting)
        .map(|pod| sessions::stacks(&format!("waits-{pod}"), pod))
        .collect();
    bench
        .one(
            &mut operator,
            &format!("{waiting} sessions, one pod each, all worked on at once"),
            true,
            sessions,
        )
        .await?;
    print!("{}{}", table(&bench.rows), bench.details);
    operator.check()
}

struct Bench<'a> {
    stage: &'a Stage,
    watch: Watch,
    rows: Vec<Vec<String>>,
    details: String,
}

impl Bench<'_> {
    async fn one(
        &mut self,
        operator: &mut Operator,
        what: &str,
        detailed: bool,
        sessions: Vec<DebugSession>,
    ) -> Result<()> {
        let count = sessions.len();
        let mark = self.stage.audit.mark()?;
        operator.forget_peak()?;
        let before = cpu::of_operator(operator)?;
        let mut sessions = sessions.into_iter();
        let ends = self
            .watch
            .run(|| sessions.next(), usize::MAX, LIMIT)
            .await?;
        let cpu = cpu::of_operator(operator)?.saturating_sub(before);
        let peak = operator.peak()?;
        let load = load_average();
        let requests = self.stage.audit.since(mark).await?;
        self.rows.push(vec![
            what.to_owned(),
            count.to_string(),
            milliseconds(ends.took.percentile(50)),
            milliseconds(ends.whole),
            ends.shown(),
            format!("{:.1}", per(requests.all(), count)),
            format!("{:.1}", per(requests.writes(), count)),
            milliseconds(cpu / u32::try_from(count.max(1)).unwrap_or(u32::MAX)),
            mebibytes(peak),
            load,
        ]);
        if detailed {
            let _ = write!(self.details, "\n{what}:\n{}", requests.shown(count));
        }
        ensure!(
            ends.lost.is_empty(),
            "{what}: sessions without an end: {:?}\n{}",
            ends.lost,
            table(&self.rows)
        );
        Ok(())
    }

    /// A session on a healthy pod while as many as the operator works on at once wait for pods that never answer.
    async fn behind(
        &mut self,
        operator: &mut Operator,
        namespace: &TestNamespace,
        pods: &[String],
    ) -> Result<()> {
        namespace
            .start(&namespace.python("healthy", pods::PROGRAM))
            .await?;
        let mut first = Some(sessions::stacks("healthy-alone", "healthy"));
        let ends = self.watch.run(|| first.take(), 1, LIMIT).await?;
        let alone = ends.took.percentile(100);
        let waiting = PERMITS.min(pods.len());
        let mut stuck = pods
            .iter()
            .rev()
            .take(waiting)
            .map(|pod| sessions::stacks(&format!("stuck-{pod}"), pod));
        let api = namespace.sessions();
        for session in stuck.by_ref() {
            sessions::create(&api, &session).await?;
        }
        let began = Instant::now();
        let mut behind = Some(sessions::stacks("healthy-behind", "healthy"));
        let mut ended = None;
        // The others end on the same watch and are left out.
        let ends = self.watch.run(|| behind.take(), 1, LIMIT).await?;
        if let Some(session) = ends.last {
            ended = Some(sessions::end_of(&session)?);
        }
        let took = began.elapsed();
        operator.check()?;
        let _ = writeln!(
            self.details,
            "\na session on a healthy pod: {} alone (its sidecar gets in), {} behind {waiting} that wait for their pods ({ended:?})",
            milliseconds(alone),
            milliseconds(took),
        );
        // What waited ends before anything else is measured.
        for pod in pods.iter().rev().take(waiting) {
            let session = sessions::stacks(&format!("stuck-{pod}"), pod);
            sessions::ended(&api, &session).await?;
        }
        Ok(())
    }
}
