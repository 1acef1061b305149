//! `cargo demo`: a stuck service in a real Kubernetes, one DebugSession for each action, and the answers.

mod page;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use sidewinder_crds::DebugSession;
use tokio::signal::unix::{SignalKind, signal};

use self::page::Page;
use crate::cluster::{self, Cluster};
use crate::deploy::{self, Destination};
use crate::images::{self, Image, Images};
use crate::tools::Module;
use crate::workload::{self, Workload};
use crate::{answer, cache, command, namespace, session_client, watch};

/// Where the stuck service and the sessions live.
const NAMESPACE: &str = "sidewinder-demo";
const POD: &str = "payments";
/// How many customers wait: few enough to read the answer.
const REQUESTS: &str = "5";
/// What is applied, one session for each action.
const SESSIONS: [(&str, &str); 4] = [
    (
        "e2e/demo/processes.yaml",
        include_str!("../demo/processes.yaml"),
    ),
    ("e2e/demo/tasks.yaml", include_str!("../demo/tasks.yaml")),
    ("e2e/demo/stacks.yaml", include_str!("../demo/stacks.yaml")),
    ("e2e/demo/script.yaml", include_str!("../demo/script.yaml")),
];
const DELETION: Duration = Duration::from_mins(1);
const HELM: Duration = Duration::from_mins(1);

/// What the caller chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// The embedded cluster's folder; one that runs there is used and stays. Absent: a new cluster in a folder of its own.
    pub dir: Option<PathBuf>,
    /// A cluster of the caller's in its place, and how images get to its nodes.
    pub own: Option<(PathBuf, Option<String>)>,
    /// Whether everything stays when the demo is over.
    pub keep: bool,
}

/// Runs the demo and cleans up after it, also when it is interrupted.
///
/// # Errors
/// Those of the first step that failed.
pub fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let outcome = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut stage = Stage::default();
        let outcome = tokio::select! {
            outcome = play(options, &mut stage) => outcome,
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        };
        let cleaned = if options.keep && outcome.is_ok() {
            stage.explain();
            Ok(())
        } else {
            stage.clean_up().await
        };
        outcome.and(cleaned)
    });
    // What a step still does in the background must not hold up the end.
    runtime.shutdown_background();
    outcome
}

/// What the demo has made so far.
#[derive(Default)]
struct Stage {
    destination: Option<Arc<Destination>>,
    /// The cluster outlives the demo, so what was put into it is removed one by one.
    outlives: bool,
    /// Only a release that was not there before is removed.
    installed: bool,
    /// A cluster that this demo started to stay.
    started: Option<PathBuf>,
    /// The folder of a cluster that ends with this demo.
    folder: Option<PathBuf>,
}

async fn play(options: &Options, stage: &mut Stage) -> Result<()> {
    let mut page = Page::new();
    page.title("Why is this Python process stuck?");

    // While the cluster starts.
    let building =
        tokio::task::spawn_blocking(|| Ok((images::build()?, images::workloads("3.14")?)));
    page.heading("Kubernetes");
    let destination = Arc::new(find_cluster(options, stage, &mut page).await?);
    stage.destination = Some(Arc::clone(&destination));
    let client = namespace::client(&destination.kubeconfig()).await?;
    let version = client
        .apiserver_version()
        .await
        .context("the API server does not answer")?;
    page.line(&format!(
        "{} at {}",
        version.git_version,
        destination.kubeconfig().display()
    ));

    page.heading("The operator, from charts/sidewinder");
    page.begin("building the images (the first time: minutes)");
    let (images, python): (Images, Image) = building
        .await
        .context("building the images ended")
        .flatten()?;
    page.done();
    install(&destination, &images, &python, stage, &mut page).await?;

    page.heading("A payment service whose bank does not answer (e2e/workloads/stuck_service.py)");
    start_service(&client, &python, &mut page).await?;

    page.heading("One DebugSession for each question");
    let sessions: Api<DebugSession> = Api::namespaced(client.clone(), NAMESPACE);
    let mut answered = Vec::new();
    for (file, yaml) in SESSIONS {
        answered.push((file, ask(&sessions, file, yaml, &mut page).await?));
    }

    page.heading("What people see");
    let kubeconfig = destination.kubeconfig();
    let get = ["--namespace", NAMESPACE, "get", "debugsessions"];
    let table =
        blocking(move || command::text(cluster::kubectl_command(&kubeconfig)?.args(get), HELM))
            .await?;
    page.command(&format!(
        "kubectl --namespace {NAMESPACE} get debugsessions"
    ));
    page.text(&table, usize::MAX);

    for (_, session) in &answered {
        let target = session_client::target_of(session)?;
        page.heading(&format!("The answer of {}", session.name_any()));
        if target.result.is_some() && target.text.is_none() {
            page.line("(from the session's Secret: what a script prints may be confidential)");
        }
        page.text(&answer::text(&client, session, target).await?, 80);
    }

    page.heading("And the service");
    let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
    workload::goes_on(&pods, POD).await?;
    let pod = pods.get(POD).await?;
    page.line(&format!(
        "{POD} was restarted {} times, carries {} and goes on ticking.",
        workload::restarts(&pod),
        workload::ephemeral_containers(&pod).join(", "),
    ));
    page.end();
    Ok(())
}

/// The caller's cluster, the one that runs in the folder, or a new one.
async fn find_cluster(
    options: &Options,
    stage: &mut Stage,
    page: &mut Page,
) -> Result<Destination> {
    if let Some((kubeconfig, load)) = options.own.clone() {
        stage.outlives = true;
        return blocking(move || Destination::of(&kubeconfig, load)).await;
    }
    let demos = cache::root()?.join("demo");
    let dir = match (&options.dir, options.keep) {
        (Some(dir), _) => dir.clone(),
        (None, true) => demos.join("kept"),
        // Of its own, so that demos run side by side.
        (None, false) => demos.join(std::process::id().to_string()),
    };
    if let Ok(cluster) = Cluster::running(&dir) {
        stage.outlives = true;
        page.line("it runs already");
        return Ok(Destination::Embedded(cluster));
    }
    page.begin("starting etcd, kube-apiserver, kubelet, containerd … (the first time they are built: minutes)");
    let keep = options.keep;
    if keep {
        stage.started = Some(dir.clone());
    } else if options.dir.is_none() {
        stage.folder = Some(dir.clone());
    }
    let cluster = blocking(move || {
        remove_leftovers(&demos)?;
        if keep {
            Cluster::up(&dir)
        } else {
            Cluster::up_linked(&dir)
        }
    })
    .await?;
    page.done();
    Ok(Destination::Embedded(cluster))
}

/// Removes the folders of demos that were killed: their clusters ended with them.
fn remove_leftovers(demos: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(demos) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let ended = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
            .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if ended {
            cluster::down(&entry.path())?;
            cache::remove_all(&entry.path())?;
        }
    }
    Ok(())
}

/// Installs the operator and brings the service's image to the nodes.
async fn install(
    destination: &Arc<Destination>,
    images: &Images,
    python: &Image,
    stage: &mut Stage,
    page: &mut Page,
) -> Result<()> {
    for image in [&images.operator, &images.sidecar] {
        let size = std::fs::metadata(&image.archive).map_or(0, |metadata| metadata.len() / 1024);
        page.line(&format!("{} ({size} KiB)", image.name()));
    }
    let kubeconfig = destination.kubeconfig();
    let there = blocking(move || {
        let mut helm = helm(&kubeconfig)?;
        Ok(command::output(helm.args(["status", deploy::RELEASE]), HELM).is_ok())
    })
    .await?;
    stage.installed = !there;
    page.begin("loading them into the node and installing the chart");
    let (to, images, python) = (Arc::clone(destination), images.clone(), python.clone());
    blocking(move || {
        std::thread::scope(|scope| {
            let loading = scope.spawn(|| to.load(&python));
            deploy::install(&to, &images)?;
            loading
                .join()
                .map_err(|_| anyhow::anyhow!("loading the service's image ended"))?
        })
    })
    .await?;
    page.done();
    Ok(())
}

async fn start_service(client: &Client, python: &Image, page: &mut Page) -> Result<()> {
    remove_namespace(client).await?;
    let namespace: Namespace = serde_json::from_value(serde_json::json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE},
    }))?;
    Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await
        .with_context(|| format!("cannot create the namespace {NAMESPACE}"))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    watch::until_object(&accounts, "default", DELETION, "it to be created", |_| true).await?;
    workload::write_programs(client, NAMESPACE).await?;
    page.begin(&format!("starting the pod {NAMESPACE}/{POD}"));
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let service = Workload::python(POD, &python.name(), "stuck_service.py").arg(REQUESTS);
    workload::start(&pods, &service).await?;
    page.done();
    page.line(&format!(
        "{REQUESTS} requests came in; none was answered, no CPU is used, and its log says nothing."
    ));
    Ok(())
}

/// Applies one session and waits for its end.
async fn ask(
    sessions: &Api<DebugSession>,
    file: &str,
    yaml: &str,
    page: &mut Page,
) -> Result<DebugSession> {
    page.command(&format!("kubectl --namespace {NAMESPACE} apply -f {file}"));
    page.text(yaml, usize::MAX);
    let session: DebugSession =
        serde_yaml::from_str(yaml).with_context(|| format!("{file} is no DebugSession"))?;
    let start = Instant::now();
    let ended = session_client::run(sessions, &session).await?;
    let (complete, reason) = session_client::end_of(&ended)?;
    let summary = session_client::status_of(&ended)?
        .summary
        .clone()
        .unwrap_or_default();
    ensure!(
        complete,
        "{} failed with {reason}: {summary}",
        ended.name_any()
    );
    page.line(&format!(
        "→ {summary}  ({:.2} s)",
        start.elapsed().as_secs_f64()
    ));
    page.line("");
    Ok(ended)
}

async fn remove_namespace(client: &Client) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    if namespaces.get_opt(NAMESPACE).await?.is_none() {
        return Ok(());
    }
    namespaces
        .delete(NAMESPACE, &DeleteParams::default())
        .await?;
    watch::until(&namespaces, NAMESPACE, DELETION, "it to be gone", |found| {
        found.is_none()
    })
    .await?;
    Ok(())
}

impl Stage {
    /// Removes what the demo made. An embedded cluster of our own takes everything with it.
    async fn clean_up(self) -> Result<()> {
        if let Some(dir) = self.started {
            drop(self.destination);
            return blocking(move || cluster::down(&dir)).await;
        }
        let Some(destination) = self.destination else {
            return Ok(());
        };
        if !self.outlives {
            return blocking(move || {
                drop(destination);
                self.folder
                    .map_or(Ok(()), |folder| cache::remove_all(&folder))
            })
            .await;
        }
        let client = namespace::client(&destination.kubeconfig()).await?;
        remove_namespace(&client).await?;
        if self.installed {
            blocking(move || {
                let mut helm = helm(&destination.kubeconfig())?;
                command::output(helm.args(["uninstall", deploy::RELEASE]), HELM).map(|_| ())
            })
            .await?;
        }
        Ok(())
    }

    /// Says how to use what stays.
    fn explain(&self) {
        let mut page = Page::new();
        let Some(destination) = &self.destination else {
            return;
        };
        page.heading("It stays");
        page.line(&format!(
            "export KUBECONFIG={}",
            destination.kubeconfig().display()
        ));
        page.line(
            "export PATH=\"$(cargo e2e cluster bin):$PATH\"    # for a kubectl of its version",
        );
        page.line(&format!(
            "kubectl --namespace {NAMESPACE} get debugsessions"
        ));
        match &self.started {
            Some(dir) => page.line(&format!(
                "cargo e2e cluster down --dir {}    # the end of it",
                dir.display()
            )),
            None => page.line(&format!(
                "kubectl delete namespace {NAMESPACE}    # the end of it"
            )),
        }
        page.end();
    }
}

fn helm(kubeconfig: &Path) -> Result<Command> {
    let mut helm = Command::new(Module::Helm.binary("helm")?);
    helm.env("KUBECONFIG", kubeconfig)
        .args(["--namespace", deploy::NAMESPACE]);
    Ok(helm)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("a step of the demo ended")?
}
