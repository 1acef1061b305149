//! Pods that run the programs of `e2e/workloads`, with nothing in them that knows of Sidewinder.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::{AsyncBufReadExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Pod, PodSpec};
use kube::api::{LogParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::watch;

/// How long a pod with an image that is there may take until its program says `ready`.
const START: Duration = Duration::from_secs(90);
/// How long a program that ticks every second may take for two ticks.
const TICKS: Duration = Duration::from_secs(15);

/// The ConfigMap that carries the programs into a namespace.
const PROGRAMS: &str = "programs";

/// The Python programs, by file name.
const SOURCES: &[(&str, &str)] = &[
    (
        "blocked_main.py",
        include_str!("../workloads/blocked_main.py"),
    ),
    ("busy.py", include_str!("../workloads/busy.py")),
    (
        "deadlocked_threads.py",
        include_str!("../workloads/deadlocked_threads.py"),
    ),
    (
        "idle_server.py",
        include_str!("../workloads/idle_server.py"),
    ),
    (
        "known_calls.py",
        include_str!("../workloads/known_calls.py"),
    ),
    ("many_tasks.py", include_str!("../workloads/many_tasks.py")),
    (
        "many_threads.py",
        include_str!("../workloads/many_threads.py"),
    ),
    (
        "stuck_service.py",
        include_str!("../workloads/stuck_service.py"),
    ),
    (
        "two_workers.py",
        include_str!("../workloads/two_workers.py"),
    ),
    ("worker.py", include_str!("../workloads/worker.py")),
];

/// The source of a program, for example of `stuck_service.py`.
///
/// # Errors
/// When there is no such program.
pub fn source(file: &str) -> Result<&'static str> {
    SOURCES
        .iter()
        .find(|(name, _)| *name == file)
        .map(|(_, source)| *source)
        .with_context(|| format!("there is no program {file} in e2e/workloads"))
}

/// The number, counted from 1, of the one line of `file` that contains `text`.
///
/// # Errors
/// When there is no such program or not exactly one such line: a test that asks would otherwise compare with a wrong one.
pub fn line_of(file: &str, text: &str) -> Result<i64> {
    let lines: Vec<usize> = source(file)?
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains(text))
        .map(|(index, _)| index.saturating_add(1))
        .collect();
    match lines.as_slice() {
        [line] => Ok(i64::try_from(*line)?),
        other => bail!("{file} has {} lines with {text:?}, not one", other.len()),
    }
}

/// As whom a program runs and what it may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Confinement {
    /// Root with the runtime's default capabilities.
    #[default]
    Root,
    /// User 1000, no capability, read-only root filesystem: what Pod Security's *restricted* demands, and more.
    Restricted,
}

/// A pod with one container, `app`, that runs a program.
#[derive(Clone, Debug)]
pub struct Workload {
    name: String,
    image: String,
    command: Vec<String>,
    environment: BTreeMap<String, String>,
    confinement: Confinement,
    restart: &'static str,
    node_selector: Option<BTreeMap<String, String>>,
    held: bool,
}

impl Workload {
    /// The Python program `file` of `e2e/workloads` as process 1 of a pod called `name`.
    pub fn python(name: &str, image: &str, file: &str) -> Self {
        Self::command(name, image, &["python3.14", &format!("/app/{file}")])
    }

    /// Any command. The programs stand below `/app`.
    pub fn command(name: &str, image: &str, command: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            environment: BTreeMap::new(),
            confinement: Confinement::default(),
            restart: "Always",
            node_selector: None,
            held: false,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.command.push(argument.to_owned());
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// As whom it runs.
    #[must_use]
    pub fn confined(mut self, confinement: Confinement) -> Self {
        self.confinement = confinement;
        self
    }

    /// The container is not started again when it ends.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.restart = "Never";
        self
    }

    /// No node has the label, so the pod stays Pending.
    #[must_use]
    pub fn on_no_node(mut self) -> Self {
        self.node_selector = Some(BTreeMap::from([(
            "example.com/nowhere".to_owned(),
            "true".to_owned(),
        )]));
        self
    }

    /// No node is asked for before [`let_go`], so the pod stays Pending until then.
    #[must_use]
    pub fn held(mut self) -> Self {
        self.held = true;
        self
    }

    /// The pod as it is applied.
    ///
    /// # Errors
    /// When it does not fit the API's types.
    pub fn pod(&self) -> Result<Pod> {
        let (pod_security, container_security) = match self.confinement {
            Confinement::Root => (Value::Null, Value::Null),
            Confinement::Restricted => (
                json!({
                    "runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true,
                    "seccompProfile": {"type": "RuntimeDefault"},
                }),
                json!({
                    "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]},
                }),
            ),
        };
        let environment: Vec<Value> = self
            .environment
            .iter()
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect();
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "labels": {"app": self.name}},
            "spec": {
                "restartPolicy": self.restart,
                // Python as process 1 ignores SIGTERM, like much of what runs in production.
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                "nodeSelector": self.node_selector,
                "schedulingGates": self.held.then(|| json!([{"name": "example.com/held"}])),
                "securityContext": pod_security,
                "containers": [{
                    "name": "app", "image": self.image, "imagePullPolicy": "IfNotPresent",
                    "command": self.command, "env": environment,
                    "securityContext": container_security,
                    "volumeMounts": [{"name": "programs", "mountPath": "/app", "readOnly": true}],
                }],
                "volumes": [{"name": "programs", "configMap": {"name": PROGRAMS}}],
            },
        }))
        .with_context(|| format!("cannot write the pod {}", self.name))
    }
}

/// Writes the programs into a namespace, which pods of [`Workload`] need.
///
/// # Errors
/// When the API server refuses.
pub async fn write_programs(client: &Client, namespace: &str) -> Result<()> {
    write_configmap(client, namespace, PROGRAMS, SOURCES).await
}

/// Creates a ConfigMap of these keys and texts.
///
/// # Errors
/// When the API server refuses.
pub async fn write_configmap(
    client: &Client,
    namespace: &str,
    name: &str,
    data: &[(&str, &str)],
) -> Result<()> {
    let map = ConfigMap {
        metadata: kube::api::ObjectMeta {
            name: Some(name.to_owned()),
            ..Default::default()
        },
        data: Some(
            data.iter()
                .map(|(key, text)| ((*key).to_owned(), (*text).to_owned()))
                .collect(),
        ),
        ..Default::default()
    };
    Api::<ConfigMap>::namespaced(client.clone(), namespace)
        .create(&PostParams::default(), &map)
        .await
        .with_context(|| format!("cannot create the ConfigMap {name}"))?;
    Ok(())
}

/// Creates the pod.
///
/// # Errors
/// When the API server refuses.
pub async fn create(pods: &Api<Pod>, workload: &Workload) -> Result<Pod> {
    pods.create(&PostParams::default(), &workload.pod()?)
        .await
        .with_context(|| format!("cannot create the pod {}", workload.name))
}

/// Creates the pod and waits until its program says `ready`.
///
/// # Errors
/// When the API server refuses, or the program is not ready within 90 s.
pub async fn start(pods: &Api<Pod>, workload: &Workload) -> Result<Pod> {
    create(pods, workload).await?;
    ready(pods, &workload.name).await
}

/// Lets a pod that was [held](Workload::held) go to a node, and waits until its program says `ready`.
///
/// # Errors
/// See [`start`].
pub async fn let_go(pods: &Api<Pod>, name: &str) -> Result<Pod> {
    let free = Patch::Merge(json!({"spec": {"schedulingGates": null}}));
    pods.patch(name, &PatchParams::default(), &free)
        .await
        .with_context(|| format!("cannot let the pod {name} go"))?;
    ready(pods, name).await
}

/// Waits until the program of a pod that was created says `ready`.
///
/// # Errors
/// When it does not within 90 s, or its container does not run within another 90 s.
pub async fn ready(pods: &Api<Pod>, name: &str) -> Result<Pod> {
    let pod = running(pods, name).await?;
    lines(pods, name, START, false, 1, |line| line == "ready").await?;
    Ok(pod)
}

/// Waits until the pod's container runs.
///
/// # Errors
/// When it does not within 90 s.
pub async fn running(pods: &Api<Pod>, name: &str) -> Result<Pod> {
    watch::until_object(pods, name, START, "its container to run", |pod| {
        app_status(pod).is_some_and(|status| {
            status
                .state
                .as_ref()
                .is_some_and(|state| state.running.is_some())
        })
    })
    .await
}

/// Waits until the program has ticked twice from now on.
///
/// # Errors
/// When it has not within 15 s: it no longer goes on.
pub async fn goes_on(pods: &Api<Pod>, name: &str) -> Result<()> {
    lines(pods, name, TICKS, true, 2, |line| line.starts_with("tick ")).await
}

/// Follows the log of the container `app` until `count` lines are `wanted`; `fresh` leaves out what is there already.
async fn lines(
    pods: &Api<Pod>,
    name: &str,
    limit: Duration,
    fresh: bool,
    count: usize,
    wanted: impl Fn(&str) -> bool,
) -> Result<()> {
    let parameters = LogParams {
        container: Some("app".to_owned()),
        follow: true,
        tail_lines: fresh.then_some(0),
        ..Default::default()
    };
    let mut seen = Vec::new();
    let followed = tokio::time::timeout(limit, async {
        let log = pods
            .log_stream(name, &parameters)
            .await
            .with_context(|| format!("cannot follow the log of {name}"))?;
        let mut log = pin!(log.lines());
        let mut found = 0_usize;
        while let Some(line) = log.next().await {
            let line = line.with_context(|| format!("the log of {name} broke off"))?;
            if wanted(&line) {
                found = found.saturating_add(1);
            }
            seen.push(line);
            if found == count {
                return Ok(());
            }
        }
        bail!("the log of {name} ended")
    })
    .await;
    match followed {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.context(format!("the program printed {seen:?}"))),
        Err(_) => bail!(
            "{name}: waited {} s for {count} lines of its log; it printed {seen:?}",
            limit.as_secs()
        ),
    }
}

/// The status of the container `app`.
pub fn app_status(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status
        .as_ref()?
        .container_statuses
        .as_ref()?
        .iter()
        .find(|status| status.name == "app")
}

/// How often the container `app` was started again.
pub fn restarts(pod: &Pod) -> i32 {
    app_status(pod).map_or(0, |status| status.restart_count)
}

/// The pod's spec without its ephemeral containers: what a session must leave as it was.
pub fn spec_apart_from_ephemeral(pod: &Pod) -> PodSpec {
    let mut spec = pod.spec.clone().unwrap_or_default();
    spec.ephemeral_containers = None;
    spec
}

/// The names of the pod's ephemeral containers.
pub fn ephemeral_containers(pod: &Pod) -> Vec<String> {
    let spec = pod.spec.as_ref();
    let containers = spec.and_then(|spec| spec.ephemeral_containers.as_ref());
    containers
        .into_iter()
        .flatten()
        .map(|container| container.name.clone())
        .collect()
}
