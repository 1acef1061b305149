//! The cluster that all tests of this program share.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client};
use sidewinder_crds::names;
use sidewinder_e2e::cluster::{self, Cluster};
use sidewinder_e2e::deploy::{self, Destination};
use sidewinder_e2e::namespace::{self, PodSecurity, TestNamespace};
use sidewinder_e2e::{command, images};

/// How long kubectl may take.
const KUBECTL: Duration = Duration::from_mins(2);

/// A cluster with the operator in it.
pub(crate) struct Stage {
    /// Where it is; a cluster of our own ends with this process, since the supervisor is linked to it.
    pub(crate) destination: Destination,
    /// The image of pods that run the programs.
    pub(crate) python_image: String,
    /// The image that the operator puts into pods.
    pub(crate) sidecar_image: String,
    _folder: Option<tempfile::TempDir>,
}

/// The cluster, made by whichever test comes first.
pub(crate) fn stage() -> Result<&'static Stage> {
    static STAGE: OnceLock<Result<Stage, String>> = OnceLock::new();
    STAGE
        .get_or_init(|| set_up().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("there is no cluster to test on: {error}"))
}

fn set_up() -> Result<Stage> {
    let own = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty());
    let (destination, folder) = if let Some(kubeconfig) = own {
        let load = std::env::var("SIDEWINDER_LOAD").ok();
        (Destination::of(Path::new(&kubeconfig), load)?, None)
    } else {
        let folder = tempfile::tempdir().context("cannot make a folder for the cluster")?;
        let destination = Destination::Embedded(Cluster::up_linked(folder.path())?);
        deploy::deploy(&destination)?;
        (destination, Some(folder))
    };
    let python = images::workloads("3.14")?;
    destination.load(&python)?;
    let sidecar_image = runtime()?.block_on(sidecar_image(&destination.kubeconfig()))?;
    Ok(Stage {
        destination,
        python_image: python.name(),
        sidecar_image,
        _folder: folder,
    })
}

async fn sidecar_image(kubeconfig: &Path) -> Result<String> {
    let client = namespace::client(kubeconfig).await?;
    let operator = Api::<Deployment>::namespaced(client, names::NAMESPACE)
        .get(names::OPERATOR)
        .await
        .context("the chart is not installed")?;
    let pod = operator
        .spec
        .and_then(|spec| spec.template.spec)
        .unwrap_or_default();
    let mut environment = pod
        .containers
        .into_iter()
        .flat_map(|container| container.env.unwrap_or_default());
    environment
        .find(|variable| variable.name == names::env::SIDECAR_IMAGE)
        .and_then(|variable| variable.value)
        .with_context(|| format!("the operator has no {}", names::env::SIDECAR_IMAGE))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")
}

/// Most tests run side by side. Those that take the operator or the API server away run alone.
static ALONE: RwLock<()> = RwLock::new(());

/// Runs a test in a namespace that admits everything.
pub(crate) fn test(name: &str, body: impl AsyncFnOnce(&TestNamespace) -> Result<()>) {
    test_in(name, PodSecurity::Privileged, body);
}

/// Runs a test in a namespace of its own.
pub(crate) fn test_in(
    name: &str,
    pod_security: PodSecurity,
    body: impl AsyncFnOnce(&TestNamespace) -> Result<()>,
) {
    let _beside_others = ALONE.read().unwrap_or_else(PoisonError::into_inner);
    run(name, pod_security, body);
}

/// Runs a test while no other runs.
pub(crate) fn alone(name: &str, body: impl AsyncFnOnce(&TestNamespace) -> Result<()>) {
    let _alone = ALONE.write().unwrap_or_else(PoisonError::into_inner);
    run(name, PodSecurity::Privileged, body);
}

#[expect(clippy::panic, reason = "in a test a panic is the report")]
fn run(
    name: &str,
    pod_security: PodSecurity,
    body: impl AsyncFnOnce(&TestNamespace) -> Result<()>,
) {
    let outcome = stage().and_then(|stage| {
        runtime()?.block_on(async {
            let client: Client = namespace::client(&stage.destination.kubeconfig()).await?;
            namespace::with_namespace(client, &stage.python_image, name, pod_security, body).await
        })
    });
    if let Err(error) = outcome {
        panic!("{error:#}");
    }
}

/// Runs kubectl, which must succeed, and returns what it printed.
pub(crate) async fn kubectl(arguments: &[&str]) -> Result<String> {
    let kubeconfig: PathBuf = stage()?.destination.kubeconfig();
    let arguments: Vec<OsString> = arguments.iter().map(Into::into).collect();
    tokio::task::spawn_blocking(move || {
        command::text(
            cluster::kubectl_command(&kubeconfig)?.args(arguments),
            KUBECTL,
        )
    })
    .await
    .context("kubectl's thread ended")?
}
