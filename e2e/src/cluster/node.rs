//! The inside of a cluster: the first process of its namespaces. It starts everything and takes everything with it when it ends, because the
//! kernel ends a PID namespace with its first process and drops mounts and interfaces with the last one that sees them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::cluster::config::{self, INSIDE, NODE, Process, TOOLS};
use crate::cluster::network::{self, Link};
use crate::cluster::{IMAGE_NAMESPACE, PAUSE_ARCHIVE, cgroups};
use crate::command;

/// Everything starts in 6 to 8 s on two idle cores.
const START_LIMIT: Duration = Duration::from_secs(110);
const STEP: Duration = Duration::from_mins(1);

/// What the supervisor says and hears, one line each.
pub(crate) const HERE: &str = "here";
pub(crate) const READY: &str = "ready";
pub(crate) const ERROR: &str = "error ";

/// Runs the inside of cluster `id`; returns when it is to end, with everything ended. `tools` are folders of binaries.
pub fn run(id: &str, dir: &Path, tools: &[PathBuf]) -> Result<()> {
    if std::process::id() != 1 {
        bail!(
            "this command is the first process of a cluster's PID namespace; `cluster up` starts it"
        );
    }
    let outcome = live(id, dir, tools);
    if let Err(error) = &outcome {
        eprintln!("{error:#}");
        say(&error_line(error));
    }
    end_all()?;
    cgroups::remove(id)?;
    outcome
}

fn live(id: &str, dir: &Path, tools: &[PathBuf]) -> Result<()> {
    say(HERE);
    let stopping = Arc::new(AtomicBool::new(false));
    let link = orders(&stopping)?;
    mounts(dir, tools)?;
    network::set_up_inside(id, link)?;
    config::write(Path::new(INSIDE), id, link.cluster)?;
    kernel_settings()?;
    let mut processes = Processes::default();
    start(&mut processes)?;
    say(READY);
    processes.watch(&stopping)
}

/// An error as the one line that says it.
pub(crate) fn error_line(error: &anyhow::Error) -> String {
    format!("{ERROR}{}", format!("{error:#}").replace('\n', " "))
}

/// Says a line; whoever listened may have ended.
pub(crate) fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{line}").and_then(|()| output.flush());
}

/// Reads the one line of orders; afterwards the supervisor's end of the pipe stands for its life: when it closes, everything here ends.
fn orders(stopping: &Arc<AtomicBool>) -> Result<Link> {
    let mut input = std::io::BufReader::new(std::io::stdin());
    let mut line = String::new();
    input
        .read_line(&mut line)
        .context("cannot read the orders")?;
    let mut addresses = line.split_whitespace().map(str::parse::<Ipv4Addr>);
    let (Some(Ok(machine)), Some(Ok(cluster))) = (addresses.next(), addresses.next()) else {
        bail!("the supervisor ended before it gave its orders");
    };
    let stopping = Arc::clone(stopping);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut input, &mut std::io::sink());
        stopping.store(true, Ordering::SeqCst);
        // Main, which waits for its children, sees all of them end.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    });
    Ok(Link { machine, cluster })
}

/// Empties, for us alone, the folders that Kubernetes and containerd write to wherever they run, and shows our own folders at fixed paths.
fn mounts(dir: &Path, tools: &[PathBuf]) -> Result<()> {
    let open =
        |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let data = open(dir)?;
    let tools: Vec<(String, File)> = tools
        .iter()
        .map(|folder| {
            let name = folder
                .file_name()
                .and_then(|name| name.to_str())
                .context("a tool folder without a name")?;
            // kubernetes-0123456789abcdef is seen as kubernetes.
            Ok((
                name.rsplit_once('-')
                    .map_or(name, |(module, _)| module)
                    .to_owned(),
                open(folder)?,
            ))
        })
        .collect::<Result<_>>()?;
    for folder in ["/run", "/var/log", "/var/lib"] {
        attach(
            Path::new("tmpfs"),
            Path::new(folder),
            Some("tmpfs"),
            MsFlags::empty(),
        )?;
    }
    for folder in [
        "/run/netns",
        "/run/lock",
        "/var/log/containers",
        "/var/lib/kubelet",
        "/var/lib/cni",
    ] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {folder}"))?;
    }
    let show = |from: &File, at: PathBuf| {
        std::fs::create_dir_all(&at).with_context(|| format!("cannot make {}", at.display()))?;
        attach(
            Path::new(&format!("/proc/self/fd/{}", from.as_raw_fd())),
            &at,
            None,
            MsFlags::MS_BIND,
        )
    };
    show(&data, PathBuf::from(INSIDE))?;
    for (name, folder) in &tools {
        show(folder, Path::new(TOOLS).join(name))?;
    }
    // The kubelet shares mounts with containers; ours end here, because the namespace was made private.
    mount(
        None::<&Path>,
        "/",
        None::<&Path>,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        None::<&Path>,
    )
    .context("cannot make the mounts shared")
}

fn attach(source: &Path, target: &Path, kind: Option<&str>, flags: MsFlags) -> Result<()> {
    mount(Some(source), target, kind, flags, None::<&Path>)
        .with_context(|| format!("cannot mount {} on {}", source.display(), target.display()))
}

fn kernel_settings() -> Result<()> {
    let folder = Path::new("/run/sidewinder-kernel");
    std::fs::create_dir_all(folder)?;
    for (name, value) in config::KERNEL_SETTINGS {
        let (file, setting) = (
            folder.join(name.replace('/', ".")),
            Path::new("/proc/sys").join(name),
        );
        std::fs::write(&file, format!("{value}\n"))?;
        if setting.exists() {
            attach(&file, &setting, None, MsFlags::MS_BIND)?;
        }
    }
    Ok(())
}

fn start(processes: &mut Processes) -> Result<()> {
    let limit = Instant::now() + START_LIMIT;
    for process in config::first() {
        processes.start(&process)?;
    }
    processes.until("containerd answers", limit, || ctr(&["version"]).is_ok())?;
    ctr(&["images", "import", &format!("{INSIDE}/{PAUSE_ARCHIVE}")])?;
    processes.until("the API server is ready", limit, || {
        kubectl(&["get", "--raw=/readyz"]).is_ok()
    })?;
    for process in config::second() {
        processes.start(&process)?;
    }
    let node = format!("node/{NODE}");
    for what in [
        ["--for=create", node.as_str()],
        ["--for=condition=Ready", node.as_str()],
        ["--for=create", "serviceaccount/default"],
    ] {
        // In slices, so that a process that ended is noticed.
        processes.until(&format!("{} {}", what[1], what[0]), limit, || {
            kubectl(&[
                "wait",
                "--namespace=default",
                "--timeout=2s",
                what[0],
                what[1],
            ])
            .is_ok()
        })?;
    }
    Ok(())
}

fn ctr(arguments: &[&str]) -> Result<String> {
    let mut ctr = Command::new(format!("{TOOLS}/containerd/ctr"));
    ctr.arg(format!("--address={INSIDE}/containerd.sock"))
        .arg(format!("--namespace={IMAGE_NAMESPACE}"))
        .args(arguments);
    command::text(&mut ctr, STEP)
}

fn kubectl(arguments: &[&str]) -> Result<String> {
    let mut kubectl = Command::new(format!("{TOOLS}/kubernetes/kubectl"));
    kubectl
        .env_clear()
        // Without a home its discovery cache lands in the working folder.
        .env("HOME", "/run")
        .arg(format!("--kubeconfig={INSIDE}/admin.kubeconfig"))
        .arg("--request-timeout=5s")
        .args(arguments);
    command::text(&mut kubectl, STEP)
}

#[derive(Default)]
struct Processes(BTreeMap<&'static str, Child>);

impl Processes {
    fn start(&mut self, process: &Process) -> Result<()> {
        let log = Path::new(INSIDE)
            .join("logs")
            .join(format!("{}.log", process.name));
        let log = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let child = Command::new(&process.program)
            .args(&process.arguments)
            .current_dir("/")
            // Nothing of the caller's: a proxy it uses would be asked for the cluster's own addresses.
            .env_clear()
            .env("PATH", format!("{TOOLS}/containerd:{TOOLS}/runc:{TOOLS}/kubernetes:/usr/sbin:/usr/bin:/sbin:/bin"))
            .env("HOME", "/run")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", process.program.display()))?;
        self.0.insert(process.name, child);
        Ok(())
    }

    /// Waits until `done`, which says so itself in a short time, or a process ended, or `limit` has come.
    fn until(&mut self, what: &str, limit: Instant, mut done: impl FnMut() -> bool) -> Result<()> {
        while !done() {
            for (name, child) in &mut self.0 {
                if let Some(status) = child.try_wait()? {
                    bail!("{name} ended ({status}): {}", last_words(name));
                }
            }
            if Instant::now() > limit {
                bail!(
                    "waited {} s until {what}; the logs are in the cluster's folder, below logs",
                    START_LIMIT.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Takes in whatever ends in the cluster, until one of its own processes does.
    fn watch(self, stopping: &AtomicBool) -> Result<()> {
        let names: BTreeMap<u32, &str> = self
            .0
            .iter()
            .map(|(name, child)| (child.id(), *name))
            .collect();
        loop {
            match waitpid(None, None) {
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => {
                    if stopping.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                    if let Some(name) = names.get(&pid.as_raw().cast_unsigned()) {
                        bail!("{name} ended: {}", last_words(name));
                    }
                }
                Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for the cluster's processes"),
            }
        }
    }
}

fn last_words(name: &str) -> String {
    std::fs::read(Path::new(INSIDE).join("logs").join(format!("{name}.log")))
        .map(|log| command::tail(&log))
        .unwrap_or_default()
}

/// Ends every other process of the namespace and takes it in.
fn end_all() -> Result<()> {
    loop {
        // Again and again: one that forks while it is killed leaves a child.
        match kill(Pid::from_raw(-1), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).context("cannot end the cluster's processes"),
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error).context("cannot wait for the cluster's processes"),
        }
    }
}
