//! A real Kubernetes of one node on this machine: etcd, API server, controller manager, scheduler, kubelet, containerd and runc.
//!
//! Each cluster has a folder and, below one supervising process, namespaces of its own for processes, mounts and network, so that several run
//! side by side and all of one ends together:
//!
//! ```text
//! cargo e2e … ── supervisor (machine) ── unshare ── node (PID 1 of the cluster) ── etcd, kube-apiserver, containerd, kubelet, …
//! ```

pub(crate) mod cgroups;
pub mod config;
pub mod network;
pub mod node;
mod pki;
pub mod stopped;
pub mod supervisor;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::tools::Module;
use crate::{cache, command, images, packages};

/// containerd's name for Kubernetes' images.
pub(crate) const IMAGE_NAMESPACE: &str = "k8s.io";
/// The file of the pods' sandbox image in a cluster's folder.
pub(crate) const PAUSE_ARCHIVE: &str = "pause.tar";
/// Marks a folder as a cluster's, so that no other folder is ever emptied.
const MARKER: &str = "sidewinder-cluster";
/// Held by the supervisor as long as it lives; its content is the supervisor's pid.
const SUPERVISOR_LOCK: &str = "supervisor.lock";
/// Held by whoever starts or ends the cluster.
const CHANGE_LOCK: &str = "change.lock";
/// Exists once the node is Ready.
const READY: &str = "ready";
/// How long a cluster may take to start; usually 8 s.
const START_LIMIT: Duration = Duration::from_mins(2);
/// How long it may take to end; usually less than 1 s.
const STOP_LIMIT: Duration = Duration::from_mins(1);
const LOAD_LIMIT: Duration = Duration::from_mins(5);

/// A running cluster, known by its folder.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    /// With a link, the cluster ends with this value and with this process.
    link: Option<(Child, ChildStdin)>,
}

/// The folder of the cluster that commands without `--dir` mean.
pub fn default_dir() -> Result<PathBuf> {
    Ok(cache::root()?.join("cluster"))
}

impl Cluster {
    /// Starts the cluster of `dir` if it does not run, and returns when its node is Ready. It stays until [`down`](Self::down).
    pub fn up(dir: &Path) -> Result<Self> {
        let dir = prepare(dir)?;
        let _lock = cache::lock(&dir.join(CHANGE_LOCK), START_LIMIT + STOP_LIMIT)?;
        if !is_up(&dir)? {
            start(&dir, false)?;
        }
        Ok(Self { dir, link: None })
    }

    /// Starts a cluster in `dir` that ends with the returned value, and also when this process is killed; the folder goes with it.
    pub fn up_linked(dir: &Path) -> Result<Self> {
        let dir = prepare(dir)?;
        let _lock = cache::lock(&dir.join(CHANGE_LOCK), START_LIMIT + STOP_LIMIT)?;
        if cache::is_locked(&dir.join(SUPERVISOR_LOCK))? {
            bail!(
                "a cluster already runs in {}: take another folder, or end it with `cargo e2e cluster down --dir {0}`",
                dir.display()
            );
        }
        let link = start(&dir, true)?;
        Ok(Self { dir, link })
    }

    /// The cluster that runs in `dir`.
    pub fn running(dir: &Path) -> Result<Self> {
        let found = dir
            .canonicalize()
            .ok()
            .filter(|dir| is_up(dir).unwrap_or(false));
        let Some(dir) = found else {
            bail!(
                "no cluster runs in {0}: start one with `cargo e2e cluster up --dir {0}`",
                dir.display()
            );
        };
        Ok(Self { dir, link: None })
    }

    /// Its folder: `logs` below it has what its processes and its pods (`logs/pods`) said.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file that works for any kubectl on this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// A kubectl for this cluster, to which arguments can be added.
    pub fn kubectl_command(&self) -> Result<Command> {
        kubectl_command(&self.kubeconfig())
    }

    /// Runs kubectl, which must succeed within a minute, and returns what it printed.
    pub fn kubectl<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        command::text(
            self.kubectl_command()?.args(arguments),
            Duration::from_mins(1),
        )
    }

    /// Loads the images of a tar (`docker save` or OCI) into the node and returns their names.
    pub fn load(&self, archive: &Path) -> Result<Vec<String>> {
        let file = File::open(archive)
            .with_context(|| format!("cannot open the image {}", archive.display()))?;
        if !file.metadata()?.is_file() {
            bail!(
                "{} is not a file: an image is a tar as `docker save` or `cargo e2e images` writes it",
                archive.display()
            );
        }
        // Through standard input: inside, the file may be hidden.
        command::text_from(
            self.ctr()?.args(["images", "import", "-"]),
            file,
            LOAD_LIMIT,
        )
        .with_context(|| format!("cannot load {}", archive.display()))?;
        // What ctr prints is a progress display, which clips names.
        let again = File::open(archive)
            .with_context(|| format!("cannot open the image {}", archive.display()))?;
        Ok(images::archive::names(again))
    }

    /// Loads an image unless the node has it: its name determines its content.
    pub fn load_image(&self, image: &images::Image) -> Result<()> {
        let mut ctr = self.ctr()?;
        ctr.args(["images", "list", "--quiet"])
            .arg(format!("name=={}", image.name()));
        if command::text(&mut ctr, Duration::from_mins(1))?.is_empty() {
            self.load(&image.archive)?;
        }
        Ok(())
    }

    fn ctr(&self) -> Result<Command> {
        let mut ctr = Command::new("nsenter");
        // Only inside is the socket's path short enough for any folder (unix(7): 107 bytes).
        ctr.arg(format!(
            "--mount=/proc/{}/ns/mnt",
            supervisor::node_pid(&self.dir)?
        ))
        .arg(format!("{}/containerd/ctr", config::TOOLS))
        .arg(format!("--address={}/containerd.sock", config::INSIDE))
        .arg(format!("--namespace={IMAGE_NAMESPACE}"));
        Ok(ctr)
    }

    /// Ends the cluster and removes its data; the logs stay.
    pub fn down(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if let Some((mut supervisor, link)) = self.link.take() {
            drop(link);
            let _ = supervisor.wait();
        }
        down(&self.dir)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.link.is_some()
            && let Err(error) = self.end()
        {
            eprintln!(
                "the cluster in {} did not end well: {error:#}",
                self.dir.display()
            );
        }
    }
}

/// A kubectl of the cluster's version that uses `kubeconfig`, to which arguments can be added.
pub fn kubectl_command(kubeconfig: &Path) -> Result<Command> {
    let mut kubectl = Command::new(Module::Kubernetes.binary("kubectl")?);
    kubectl.env("KUBECONFIG", kubeconfig);
    Ok(kubectl)
}

/// The running embedded cluster whose API server `kubeconfig` names, if it is one.
pub fn embedded(kubeconfig: &Path) -> Result<Option<Cluster>> {
    let text = command::text(
        kubectl_command(kubeconfig)?.args([
            "config",
            "view",
            "--minify",
            "--output=jsonpath={.clusters[0].cluster.server}",
        ]),
        Duration::from_secs(30),
    )
    .with_context(|| format!("cannot read the kubeconfig {}", kubeconfig.display()))?;
    for dir in supervisor::known()? {
        let ours = std::fs::read_to_string(dir.join("kubeconfig")).unwrap_or_default();
        if server(&ours).is_some_and(|server| server == text) && is_up(&dir)? {
            return Ok(Some(Cluster { dir, link: None }));
        }
    }
    Ok(None)
}

/// The API server of the embedded cluster that `kubeconfig` was written for. kubectl writes a file it changes anew, as YAML.
fn server(kubeconfig: &str) -> Option<String> {
    let file: kube::config::Kubeconfig = serde_yaml::from_str(kubeconfig).ok()?;
    file.clusters
        .into_iter()
        .find(|cluster| cluster.name == config::NAME)?
        .cluster?
        .server
}

/// Ends the cluster of `dir`, if it runs, and removes its data; the logs stay.
pub fn down(dir: &Path) -> Result<()> {
    let Ok(dir) = dir.canonicalize() else {
        return Ok(());
    };
    if !dir.join(MARKER).exists() {
        bail!("{} is not the folder of a cluster", dir.display());
    }
    let _lock = cache::lock(&dir.join(CHANGE_LOCK), START_LIMIT + STOP_LIMIT)?;
    stop(&dir)
}

fn stop(dir: &Path) -> Result<()> {
    supervisor::stop(dir, STOP_LIMIT)?;
    supervisor::clean(&id(dir), dir)
}

fn is_up(dir: &Path) -> Result<bool> {
    Ok(dir.join(READY).exists() && cache::is_locked(&dir.join(SUPERVISOR_LOCK))?)
}

/// Makes `dir` and marks it; refuses one that holds something else.
fn prepare(dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot make the cluster's folder {}", dir.display()))?;
    let dir = dir
        .canonicalize()
        .with_context(|| format!("cannot resolve {}", dir.display()))?;
    let marker = dir.join(MARKER);
    if !marker.exists() {
        let mut entries =
            std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        if entries.next().is_some() {
            bail!(
                "{} is not empty and not the folder of a cluster: name an empty or a new one",
                dir.display()
            );
        }
        std::fs::write(
            &marker,
            "The folder of an embedded cluster of `cargo e2e cluster`.\n",
        )
        .with_context(|| format!("cannot write {}", marker.display()))?;
    }
    Ok(dir)
}

/// Eight hexadecimal digits that tell clusters apart on one machine.
fn id(dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let mut text = cache::hex(&Sha256::digest(dir.as_os_str().as_bytes()));
    text.truncate(8);
    text
}

/// Starts the supervisor and waits for the node.
fn start(dir: &Path, linked: bool) -> Result<Option<(Child, ChildStdin)>> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the embedded cluster needs root (namespaces, cgroups): run as root, or name a cluster of your own with --kubeconfig"
        );
    }
    packages::ensure(packages::CLUSTER)?;
    for module in Module::CLUSTER {
        module.folder()?;
    }
    // What a cluster that was killed left behind.
    stop(dir)?;
    supervisor::sweep()?;
    std::fs::write(dir.join(PAUSE_ARCHIVE), images::pause(config::PAUSE_IMAGE)?)
        .context("cannot write the pods' sandbox image")?;
    let logs = dir.join("logs");
    cache::remove_all(&logs)?;
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let log = File::create(logs.join("supervisor.log"))?;
    let mut supervisor = Command::new(supervisor::program()?)
        .args(["cluster", "supervise", "--dir"])
        .arg(dir)
        .args(linked.then_some("--linked"))
        .stdin(if linked {
            Stdio::piped()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("cannot start the cluster's supervisor")?;
    let link = supervisor.stdin.take();
    let ready = wait_ready(&mut supervisor);
    if let Err(error) = ready {
        drop(link);
        stop(dir)?;
        let _ = supervisor.wait();
        return Err(error.context(format!("the cluster did not start; see {}", logs.display())));
    }
    std::fs::write(dir.join(READY), "")?;
    Ok(link.map(|link| (supervisor, link)))
}

fn wait_ready(supervisor: &mut Child) -> Result<()> {
    let output = supervisor
        .stdout
        .take()
        .context("the supervisor has no output")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output)
            .lines()
            .map_while(std::io::Result::ok)
        {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let limit = Instant::now() + START_LIMIT;
    loop {
        match lines.recv_timeout(limit.saturating_duration_since(Instant::now())) {
            Ok(line) if line == node::READY => return Ok(()),
            Ok(line) => {
                if let Some(error) = line.strip_prefix(node::ERROR) {
                    bail!("{error}");
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("the node was not Ready within {} s", START_LIMIT.as_secs())
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the supervisor ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_something_else_in_it_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(prepare(&folder.path().join("new")).is_ok());
        assert!(
            prepare(&folder.path().join("new")).is_ok(),
            "its own folder is taken again"
        );
        let error = prepare(folder.path()).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
        assert!(
            down(folder.path())
                .unwrap_err()
                .to_string()
                .contains("not the folder of a cluster")
        );
    }

    #[test]
    fn the_server_is_found_in_a_kubeconfig_as_written_and_as_kubectl_rewrites_it() {
        let written = r#"{"apiVersion": "v1", "kind": "Config", "clusters": [{"name": "sidewinder", "cluster": {"server": "https://10.1.2.3:6443"}}]}"#;
        let rewritten = "apiVersion: v1
clusters:
- cluster:
    server: https://192.0.2.1:6443
  name: another
- cluster:
    server: https://10.1.2.3:6443
  name: sidewinder
contexts:
- context:
    cluster: sidewinder
    namespace: x
    user: admin
  name: sidewinder
current-context: sidewinder
kind: Config
preferences: {}
users: null
";
        for text in [written, rewritten] {
            assert_eq!(
                server(text).as_deref(),
                Some("https://10.1.2.3:6443"),
                "{text}"
            );
        }
        assert_eq!(server(""), None);
        assert_eq!(server("clusters: ["), None);
    }

    #[test]
    fn clusters_are_told_apart_by_their_folders() {
        assert_eq!(id(Path::new("/a")).len(), 8);
        assert_ne!(id(Path::new("/a")), id(Path::new("/b")));
    }

    #[test]
    fn a_cluster_that_does_not_run_is_named_with_the_way_to_start_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = Cluster::running(folder.path()).unwrap_err().to_string();
        assert!(error.contains("cluster up --dir"), "{error}");
    }
}
