//! A namespace of its own for each test: what the test leaves behind is gone with it, and what was in it when the test
//! failed is printed first.

use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Event, Namespace, Pod, ServiceAccount};
use kube::api::{AttachParams, DeleteParams, ListParams, LogParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt as _};
use serde::Serialize;
use serde_json::json;
use sidewinder_crds::{DebugSession, names};
use tokio::io::AsyncReadExt as _;

use crate::workload::{self, Workload};
use crate::{session_client, watch};

/// How long the namespace's own service account may take to appear: a pod needs it.
const SERVICE_ACCOUNT: Duration = Duration::from_secs(30);
/// How long an ephemeral container may take to start and end.
const EPHEMERAL: Duration = Duration::from_mins(1);
/// How long a command in a container may take.
const COMMAND: Duration = Duration::from_secs(20);
/// How many of the last lines of each log are printed after a failure.
const LOG_LINES: i64 = 60;

/// Which Pod Security Standard a namespace enforces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodSecurity {
    /// Everything is admitted.
    #[default]
    Privileged,
    /// No added capability beyond the runtime's default.
    Baseline,
    /// Not root, no capability, no privilege escalation.
    Restricted,
}

impl PodSecurity {
    fn level(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// A client for the cluster of a kubeconfig file.
///
/// # Errors
/// When the file cannot be read or used.
pub async fn client(kubeconfig: &std::path::Path) -> Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("cannot read the kubeconfig {}", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("cannot use the kubeconfig {}", kubeconfig.display()))?;
    Client::try_from(config).context("cannot make a client")
}

/// A namespace that one test has for itself.
pub struct TestNamespace {
    /// Its name.
    pub name: String,
    /// A client for the cluster.
    pub client: Client,
    /// The image of pods that run the programs.
    pub image: String,
}

/// Makes a namespace with the programs in it, runs `body` in it, and deletes it again; when `body` fails or panics,
/// everything in it is printed first.
///
/// With `SIDEWINDER_KEEP_NAMESPACES` in the environment the namespace of a test that failed stays.
///
/// # Errors
/// Those of `body`, and those of making the namespace.
///
/// # Panics
/// When `body` does.
pub async fn with_namespace<T>(
    client: Client,
    image: &str,
    test: &str,
    pod_security: PodSecurity,
    body: impl AsyncFnOnce(&TestNamespace) -> Result<T>,
) -> Result<T> {
    let namespace = TestNamespace::create(client, image, test, pod_security).await?;
    let outcome = AssertUnwindSafe(body(&namespace)).catch_unwind().await;
    let failed = !matches!(outcome, Ok(Ok(_)));
    if failed {
        eprintln!("{}", namespace.dump().await);
    }
    if !failed || std::env::var_os("SIDEWINDER_KEEP_NAMESPACES").is_none() {
        namespace.delete().await?;
    }
    match outcome {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

impl TestNamespace {
    async fn create(
        client: Client,
        image: &str,
        test: &str,
        pod_security: PodSecurity,
    ) -> Result<Self> {
        // A label's value has at most 63 characters and ends with a letter or digit.
        let label: String = test.chars().take(63).collect();
        let namespace: Namespace = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {
                "generateName": "e2e-",
                "labels": {
                    "sidewinder.dev/test": label.trim_end_matches('_'),
                    "pod-security.kubernetes.io/enforce": pod_security.level(),
                },
            },
        }))?;
        let created = Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .context("cannot create a namespace")?;
        let namespace = Self {
            name: created.name_any(),
            client,
            image: image.to_owned(),
        };
        // Without it a pod is refused: "error looking up service account …/default".
        let accounts: Api<ServiceAccount> =
            Api::namespaced(namespace.client.clone(), &namespace.name);
        watch::until_object(
            &accounts,
            "default",
            SERVICE_ACCOUNT,
            "it to be created",
            |_| true,
        )
        .await?;
        workload::write_programs(&namespace.client, &namespace.name).await?;
        Ok(namespace)
    }

    async fn delete(&self) -> Result<()> {
        Api::<Namespace>::all(self.client.clone())
            .delete(&self.name, &DeleteParams::default())
            .await
            .with_context(|| format!("cannot delete the namespace {}", self.name))?;
        Ok(())
    }

    /// The objects of one kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// The pods of this namespace.
    pub fn pods(&self) -> Api<Pod> {
        self.api()
    }

    /// The sessions of this namespace.
    pub fn sessions(&self) -> Api<DebugSession> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// A pod called `name` that runs the program `file`; see [`Workload`].
    pub fn python(&self, name: &str, file: &str) -> Workload {
        Workload::python(name, &self.image, file)
    }

    /// A pod called `name` that runs a shell command.
    pub fn shell(&self, name: &str, command: &str) -> Workload {
        Workload::command(name, &self.image, &["/bin/sh", "-c", command])
    }

    /// Creates the pod and waits until its program says `ready`.
    ///
    /// # Errors
    /// See [`workload::start`].
    pub async fn start(&self, workload: &Workload) -> Result<Target> {
        let before = workload::start(&self.pods(), workload).await?;
        Ok(Target {
            name: before.name_any(),
            before,
        })
    }

    /// Creates the session and waits for its end.
    ///
    /// # Errors
    /// See [`session_client::run`].
    pub async fn run(&self, session: &DebugSession) -> Result<DebugSession> {
        session_client::run(&self.sessions(), session).await
    }

    /// Creates a ConfigMap of these keys and texts.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn write_configmap(&self, name: &str, data: &[(&str, &str)]) -> Result<()> {
        workload::write_configmap(&self.client, &self.name, name, data).await
    }

    /// Runs a shell command in the container `app` of a pod and returns what it printed.
    ///
    /// # Errors
    /// When it cannot be started, fails, or takes more than 20 s.
    pub async fn shell_in(&self, pod: &str, command: &str) -> Result<String> {
        let run = async {
            let parameters = AttachParams::default().container("app").stderr(true);
            let mut process = self
                .pods()
                .exec(pod, ["/bin/sh", "-c", command], &parameters)
                .await?;
            let status = process
                .take_status()
                .context("the exec stream has no status")?;
            let (mut stdout, mut stderr) = (String::new(), String::new());
            let (mut out, mut err) = (
                process.stdout().context("the exec stream has no stdout")?,
                process.stderr().context("the exec stream has no stderr")?,
            );
            tokio::try_join!(
                out.read_to_string(&mut stdout),
                err.read_to_string(&mut stderr)
            )?;
            let status = status
                .await
                .context("the exec stream ended without a status")?;
            anyhow::ensure!(
                status.status.as_deref() == Some("Success"),
                "{:?} {stdout}{stderr}",
                status.message
            );
            Ok(stdout)
        };
        tokio::time::timeout(COMMAND, run)
            .await
            .with_context(|| {
                format!(
                    "{command:?} in {pod} took more than {} s",
                    COMMAND.as_secs()
                )
            })?
            .with_context(|| format!("{command:?} in {pod} failed"))
    }

    /// Everything that a container printed; of an ephemeral container, once it has ended.
    ///
    /// # Errors
    /// When the ephemeral container has not ended within a minute, or did not succeed.
    pub async fn printed_by(&self, pod: &str, container: &str) -> Result<String> {
        let pods = self.pods();
        let parameters = LogParams {
            container: Some(container.to_owned()),
            ..Default::default()
        };
        let exit_code = |pod: &Pod| {
            let statuses = pod.status.as_ref()?.ephemeral_container_statuses.as_ref()?;
            let status = statuses.iter().find(|status| status.name == container)?;
            Some(status.state.as_ref()?.terminated.as_ref()?.exit_code)
        };
        if workload::ephemeral_containers(&pods.get(pod).await?)
            .iter()
            .any(|name| name == container)
        {
            let what = format!("the end of the ephemeral container {container}");
            let ended =
                watch::until_object(&pods, pod, EPHEMERAL, &what, |pod| exit_code(pod).is_some())
                    .await?;
            if exit_code(&ended) != Some(0) {
                let log = pods
                    .logs(pod, &parameters)
                    .await
                    .unwrap_or_else(|error| error.to_string());
                anyhow::bail!("{container} ended with {:?}: {log}", exit_code(&ended));
            }
        }
        pods.logs(pod, &parameters)
            .await
            .with_context(|| format!("cannot read the log of {pod}, container {container}"))
    }

    /// Everything there is to know about this namespace, as text.
    async fn dump(&self) -> String {
        let mut out = format!(
            "──── the namespace {} as it was when the test failed ────\n",
            self.name
        );
        let everything = ListParams::default();
        match self.sessions().list(&everything).await {
            Ok(sessions) => sessions
                .iter()
                .for_each(|session| yaml(&mut out, "session", session)),
            Err(error) => {
                let _ = writeln!(out, "cannot list the sessions: {error}");
            }
        }
        match self.api::<Event>().list(&everything).await {
            Ok(events) => {
                for event in events {
                    let _ = writeln!(
                        out,
                        "event {}/{}: {} {}",
                        event.involved_object.kind.unwrap_or_default(),
                        event.involved_object.name.unwrap_or_default(),
                        event.reason.unwrap_or_default(),
                        event.message.unwrap_or_default()
                    );
                }
            }
            Err(error) => {
                let _ = writeln!(out, "cannot list the events: {error}");
            }
        }
        dump_pods(&mut out, &self.pods(), &everything, true).await;
        let operator =
            ListParams::default().labels(&format!("{}={}", names::APP_LABEL, names::APP));
        dump_pods(
            &mut out,
            &Api::namespaced(self.client.clone(), names::NAMESPACE),
            &operator,
            false,
        )
        .await;
        out
    }
}

async fn dump_pods(out: &mut String, pods: &Api<Pod>, which: &ListParams, with_status: bool) {
    let list = match pods.list(which).await {
        Ok(list) => list,
        Err(error) => {
            let _ = writeln!(out, "cannot list the pods: {error}");
            return;
        }
    };
    for pod in list {
        let name = pod.name_any();
        if with_status {
            yaml(out, &format!("status of the pod {name}"), &pod.status);
        }
        let spec = pod.spec.unwrap_or_default();
        let ephemeral = spec.ephemeral_containers.unwrap_or_default();
        let containers = spec.containers.into_iter().map(|container| container.name);
        for container in containers.chain(ephemeral.into_iter().map(|container| container.name)) {
            let parameters = LogParams {
                container: Some(container.clone()),
                tail_lines: Some(LOG_LINES),
                ..Default::default()
            };
            let log = pods
                .logs(&name, &parameters)
                .await
                .unwrap_or_else(|error| error.to_string());
            let _ = writeln!(out, "──── log of {name}, container {container} ────\n{log}");
        }
    }
}

fn yaml(out: &mut String, what: &str, object: &impl Serialize) {
    let text = serde_yaml::to_string(object).unwrap_or_else(|error| error.to_string());
    let _ = writeln!(out, "──── {what} ────\n{text}");
}

/// A pod that runs a program, and what it was like before anybody looked into it.
pub struct Target {
    /// The pod's name.
    pub name: String,
    /// The pod as it was when its program was ready.
    pub before: Pod,
}

impl Target {
    /// Checks that the container was not started again, that nothing but ephemeral containers was added to the pod, and
    /// that the program goes on.
    ///
    /// # Errors
    /// When one of these does not hold.
    pub async fn check_untouched(&self, namespace: &TestNamespace) -> Result<()> {
        let pods = namespace.pods();
        let now = pods
            .get(&self.name)
            .await
            .with_context(|| format!("the pod {} is gone", self.name))?;
        anyhow::ensure!(
            now.uid() == self.before.uid(),
            "{} is another pod now",
            self.name
        );
        let (before, after) = (workload::restarts(&self.before), workload::restarts(&now));
        anyhow::ensure!(
            before == after,
            "{} was started again: {before} restarts before, {after} now",
            self.name
        );
        anyhow::ensure!(
            workload::spec_apart_from_ephemeral(&self.before)
                == workload::spec_apart_from_ephemeral(&now),
            "the spec of {} changed:\n{:#?}\n{:#?}",
            self.name,
            self.before.spec,
            now.spec
        );
        workload::goes_on(&pods, &self.name)
            .await
            .with_context(|| format!("{} does not go on", self.name))
    }
}
