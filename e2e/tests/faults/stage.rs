//! The cluster, with an operator of ours in place of the chart's.

use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client};
use serde_json::{Value, json};
use sidewinder_crds::names;
use sidewinder_crds::names::env;
use sidewinder_e2e::cluster::Cluster;
use sidewinder_e2e::deploy::{self, Destination};
use sidewinder_e2e::namespace::{self, PodSecurity, TestNamespace};
use sidewinder_e2e::operator::{self, Operator, Program};
use sidewinder_e2e::{checkout, images};
use sidewinder_operator::faults::SOCKET;

use crate::checks::Ends;
use crate::points::Points;
use crate::proxy::Proxy;

/// How long an operator may take to end on its own.
const END: Duration = Duration::from_secs(20);

struct Stage {
    destination: Destination,
    python: String,
    _folder: Option<tempfile::TempDir>,
}

/// What a test works with.
pub(crate) struct World<'a> {
    pub(crate) destination: &'a Destination,
    pub(crate) namespace: &'a TestNamespace,
    pub(crate) points: Points,
    pub(crate) proxy: Proxy,
    pub(crate) ends: Ends,
    program: Program,
}

impl World<'_> {
    /// Starts an operator, whose way to the API server is the proxy, and whose points are the points.
    pub(crate) fn operator(&self) -> Result<Operator> {
        self.program.start()
    }

    /// Ends it as the kubelet does.
    pub(crate) async fn end(&self, operator: Operator) -> Result<()> {
        operator.terminate(END).await
    }
}

fn stage() -> Result<&'static Stage> {
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
    Ok(Stage {
        destination,
        python: python.name(),
        _folder: folder,
    })
}

/// The chart's operator, which rests until this is dropped.
struct Resting<'a> {
    destination: &'a Destination,
    replicas: u8,
}

impl<'a> Resting<'a> {
    fn begin(destination: &'a Destination, replicas: u8) -> Result<Self> {
        operator::replicas(&destination.kubeconfig(), 0)?;
        Ok(Self {
            destination,
            replicas,
        })
    }
}

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        if let Err(error) = operator::replicas(&self.destination.kubeconfig(), self.replicas) {
            eprintln!("the chart's operator does not run again: {error:#}");
        }
    }
}

/// Runs a test in a namespace of its own, while no other of this program runs.
#[expect(clippy::panic, reason = "in a test a panic is the report")]
pub(crate) fn test(name: &str, body: impl AsyncFnOnce(&World<'_>) -> Result<()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = run(name, body) {
        panic!("{error:#}");
    }
}

fn run(name: &str, body: impl AsyncFnOnce(&World<'_>) -> Result<()>) -> Result<()> {
    let stage = stage()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let kubeconfig = stage.destination.kubeconfig();
    let client = runtime.block_on(namespace::client(&kubeconfig))?;
    let replicas = runtime.block_on(replicas(&client))?;
    let _resting = Resting::begin(&stage.destination, replicas)?;
    runtime.block_on(async {
        let logs = match &stage.destination {
            Destination::Embedded(cluster) => cluster.dir().join("logs"),
            Destination::Own { .. } => checkout().join("target/e2e-logs"),
        };
        let log = logs.join(format!("operator-{name}.log"));
        std::fs::create_dir_all(&logs)
            .and_then(|()| std::fs::write(&log, ""))
            .with_context(|| format!("cannot write {}", log.display()))?;
        eprintln!("the operator's log is {}", log.display());
        let binary = env!("CARGO_BIN_EXE_operator-with-failpoints").into();
        let points = Points::listen(folder.path())?;
        let program = operator::program(&client, &kubeconfig, binary, folder.path(), log).await?;
        let proxy = through_a_proxy(&program.kubeconfig).await?;
        let socket = points.socket().to_string_lossy().into_owned();
        // Sessions that are held keep their places.
        let many = "250";
        let program = program
            .with(SOCKET, &socket)
            .with(env::MAX_CONCURRENT, many)
            .with(env::MAX_PER_NODE, many)
            .with(env::MAX_PER_POD, many);
        namespace::with_namespace(
            client.clone(),
            &stage.python,
            name,
            PodSecurity::Privileged,
            async |namespace| {
                let world = World {
                    destination: &stage.destination,
                    namespace,
                    points,
                    proxy,
                    ends: Ends::watch(namespace.sessions()),
                    program,
                };
                body(&world).await
            },
        )
        .await
    })
}

async fn replicas(client: &Client) -> Result<u8> {
    let deployment = Api::<Deployment>::namespaced(client.clone(), names::NAMESPACE)
        .get(names::OPERATOR)
        .await
        .context("the chart is not installed")?;
    let replicas = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
    // What a test that was killed left at rest is to run again.
    Ok(u8::try_from(replicas).unwrap_or(1).max(1))
}

/// Puts a proxy before the API server of a kubeconfig.
async fn through_a_proxy(kubeconfig: &Path) -> Result<Proxy> {
    let text = std::fs::read_to_string(kubeconfig)?;
    let mut config: Value = serde_yaml::from_str(&text)?;
    let server = config
        .pointer_mut("/clusters/0/cluster/server")
        .context("the kubeconfig names no API server")?;
    let address = server
        .as_str()
        .and_then(|server| server.strip_prefix("https://"))
        .with_context(|| format!("{server} is no address"))?
        .to_owned();
    let proxy = Proxy::before(address).await?;
    *server = json!(format!("https://{}", proxy.address));
    std::fs::write(kubeconfig, config.to_string())?;
    Ok(proxy)
}

/// Nobody can hold or kill the operator that is installed.
#[test]
fn the_images_operator_has_no_points() {
    let has = |binary: &Path| {
        let bytes = std::fs::read(binary).unwrap();
        bytes
            .windows(SOCKET.len())
            .any(|window| window == SOCKET.as_bytes())
    };
    assert!(has(Path::new(env!(
        "CARGO_BIN_EXE_operator-with-failpoints"
    ))));
    assert!(!has(&images::operator_binary().unwrap()));
}
