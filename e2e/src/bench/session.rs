//! From applying a DebugSession until it is Complete, as its user sees it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, DeleteParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use sidewinder_crds::{DebugSession, conditions};
use sidewinder_model::Reason;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;

use super::figures::{Samples, table};
use super::milliseconds;
use crate::cluster::Cluster;
use crate::deploy::{self, Destination};
use crate::images::{self, Images};
use crate::namespace::{self, PodSecurity, TestNamespace};
use crate::session_client as sessions;

const WARM: usize = 50;
const REOPENED: usize = 20;
const COLD: usize = 20;
/// How long a bare ephemeral container may take to start.
const START: Duration = Duration::from_mins(1);
/// How long one session may take.
const SESSION: Duration = Duration::from_mins(2);
/// How often an exec into a container that does not run yet is tried, like the operator does.
const RETRY: Duration = Duration::from_millis(20);

/// The cluster to measure on.
#[derive(Clone, Debug, Default)]
pub struct Where {
    /// The kubeconfig of a cluster, and how images get to its nodes; absent: one of our own.
    pub own: Option<(PathBuf, Option<String>)>,
}

impl Where {
    /// It, or a cluster in `folder` that ends with the returned value.
    pub(super) fn destination(&self, folder: &Path) -> Result<Destination> {
        match self.own.clone() {
            Some((kubeconfig, load)) => Destination::of(&kubeconfig, load),
            None => Ok(Destination::Embedded(Cluster::up_linked(
                &folder.join("cluster"),
            )?)),
        }
    }
}

pub(super) fn run(on: &Where) -> Result<()> {
    let folder = tempfile::tempdir().context("cannot make a folder for the cluster")?;
    let destination = on.destination(folder.path())?;
    let images = deploy::deploy(&destination)?;
    let python = images::workloads("3.14")?;
    destination.load(&python)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    runtime.block_on(async {
        let client: Client = namespace::client(&destination.kubeconfig()).await?;
        namespace::with_namespace(
            client,
            &python.name(),
            "bench_session",
            PodSecurity::Privileged,
            async |namespace| measure(namespace, &images).await,
        )
        .await
    })
}

async fn measure(namespace: &TestNamespace, images: &Images) -> Result<()> {
    println!(
        "\n# cargo e2e bench session: `stacks` of e2e/workloads/idle_server.py, one session after the other"
    );
    let mut ends = Ends::of(namespace.sessions());
    namespace
        .start(&namespace.python("warm", "idle_server.py"))
        .await?;
    ends.time("first", "warm").await?;
    let mut warm = Samples::default();
    for number in 0..WARM {
        warm.push(ends.time(&format!("warm-{number}"), "warm").await?);
    }
    let mut reopened = Samples::default();
    for number in 0..REOPENED {
        end_relay(namespace, "warm").await?;
        reopened.push(ends.time(&format!("reopened-{number}"), "warm").await?);
    }

    let (mut bare_exec, mut bare_status, mut cold) =
        (Samples::default(), Samples::default(), Samples::default());
    let pods = namespace.pods();
    for number in 0..COLD {
        let name = format!("bare-{number}");
        namespace
            .start(&namespace.python(&name, "idle_server.py"))
            .await?;
        let (exec, status) = bare(&pods, &name, &images.sidecar.name()).await?;
        bare_exec.push(exec);
        bare_status.push(status);
        pods.delete(&name, &DeleteParams::default()).await?;
        let name = format!("cold-{number}");
        namespace
            .start(&namespace.python(&name, "idle_server.py"))
            .await?;
        cold.push(ends.time(&name, &name).await?);
        pods.delete(&name, &DeleteParams::default()).await?;
    }

    let mut rows = vec![
        ["", "runs", "p50", "p95", "target"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let over = cold.percentile(50).saturating_sub(bare_exec.percentile(50));
    for (name, samples, target) in [
        ("warm, relay open", &warm, "60.0 ms".to_owned()),
        ("warm, relay opened again", &reopened, "150.0 ms".to_owned()),
        (
            "cold, a pod never entered",
            &cold,
            format!("bare + 150.0 ms; is bare + {}", milliseconds(over)),
        ),
        (
            "bare ephemeral container, until an exec opens",
            &bare_exec,
            String::new(),
        ),
        (
            "bare ephemeral container, until its status says so",
            &bare_status,
            String::new(),
        ),
    ] {
        rows.push(vec![
            name.to_owned(),
            samples.len().to_string(),
            milliseconds(samples.percentile(50)),
            milliseconds(samples.percentile(95)),
            target,
        ]);
    }
    print!("{}", table(&rows));
    Ok(())
}

/// The ends of all sessions of a namespace as they arrive on one watch that is open before the first one is created.
struct Ends {
    sessions: Api<DebugSession>,
    ended: UnboundedReceiver<(DebugSession, Instant)>,
    watch: JoinHandle<()>,
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Ends {
    fn of(sessions: Api<DebugSession>) -> Self {
        let (sender, ended) = unbounded_channel();
        let watched = sessions.clone();
        let watch = tokio::spawn(async move {
            let mut changes = std::pin::pin!(
                watcher(watched, watcher::Config::default())
                    .default_backoff()
                    .applied_objects()
            );
            while let Some(change) = changes.next().await {
                let Ok(session) = change else { continue };
                let conditions = session.status.as_ref().map(|status| &status.conditions);
                if conditions.is_some_and(|conditions| conditions::has_ended(conditions))
                    && sender.send((session, Instant::now())).is_err()
                {
                    return;
                }
            }
        });
        Self {
            sessions,
            ended,
            watch,
        }
    }

    /// From the request that creates the session to the event that says it is Complete.
    async fn time(&mut self, name: &str, pod: &str) -> Result<Duration> {
        let session = sessions::stacks(name, pod);
        let start = Instant::now();
        sessions::create(&self.sessions, &session).await?;
        let (ended, at) = tokio::time::timeout(SESSION, async {
            loop {
                match self.ended.recv().await {
                    Some((ended, _)) if ended.name_any() != name => {}
                    found => return found,
                }
            }
        })
        .await
        .with_context(|| format!("{name} has not ended within {} s", SESSION.as_secs()))?
        .context("the watch ended")?;
        let end = sessions::end_of(&ended)?;
        ensure!(
            end == (true, Reason::Succeeded),
            "{name} ended with {end:?}"
        );
        Ok(at.duration_since(start))
    }
}

/// Ends the relay's process in the sidecar, so that the next session has to open a stream.
async fn end_relay(namespace: &TestNamespace, pod: &str) -> Result<()> {
    let end = "found=1; for process in /proc/[0-9]*; do case $(tr '\\0' ' ' < $process/cmdline 2>/dev/null) in '/sidewinder-sidecar relay'*) kill ${process#/proc/} && found=0;; esac; done; exit $found";
    namespace
        .shell_in(pod, end)
        .await
        .context("no relay could be ended")
        .map(drop)
}

/// What Kubernetes alone needs: the time until an exec into a new ephemeral container opens, and until the pod's status shows that it runs.
async fn bare(pods: &Api<Pod>, pod: &str, image: &str) -> Result<(Duration, Duration)> {
    let container = json!({
        "name": "bare", "image": image, "imagePullPolicy": "IfNotPresent", "targetContainerName": "app",
        "command": ["/sidewinder-sidecar", "agent", "--idle-seconds", "600"],
    });
    let patch = Patch::Strategic(json!({"spec": {"ephemeralContainers": [container]}}));
    let start = Instant::now();
    pods.patch_ephemeral_containers(pod, &PatchParams::default(), &patch)
        .await
        .context("cannot add an ephemeral container")?;
    let exec = async {
        let parameters = AttachParams::default().container("bare");
        loop {
            match pods
                .exec(pod, ["/sidewinder-sidecar", "--version"], &parameters)
                .await
            {
                Ok(_) => return start.elapsed(),
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    };
    let status = async {
        crate::watch::until_object(pods, pod, START, "the ephemeral container to run", |pod| {
            let statuses = pod
                .status
                .as_ref()
                .and_then(|status| status.ephemeral_container_statuses.as_ref());
            statuses.into_iter().flatten().any(|status| {
                status.name == "bare"
                    && status
                        .state
                        .as_ref()
                        .is_some_and(|state| state.running.is_some() || state.terminated.is_some())
            })
        })
        .await
        .map(|_| start.elapsed())
    };
    let (exec, status) = tokio::join!(tokio::time::timeout(START, exec), status);
    Ok((
        exec.context("no exec into the bare ephemeral container opened")?,
        status?,
    ))
}
