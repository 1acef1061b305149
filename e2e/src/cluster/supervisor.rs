//! The outside of a cluster: the process on the machine that makes its namespaces, ties them to the machine's network, and removes what
//! namespaces do not take with them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use crate::cluster::{MARKER, READY, SUPERVISOR_LOCK, cgroups, id, network, node};
use crate::tools::Module;
use crate::{cache, command};

/// Ends what is inside: a second, unless the machine is very busy.
const END_LIMIT: Duration = Duration::from_secs(40);

/// Runs the cluster of `dir` until it is told to end (SIGTERM), its inside ends, or, with a link, whoever started it ends.
pub fn run(dir: &Path, linked: bool) -> Result<()> {
    // Away from the caller's terminal, so that an interrupt there does not reach the cluster but through its caller.
    nix::unistd::setsid().context("cannot leave the caller's session")?;
    let id = id(dir);
    let mut lock = cache::lock(&dir.join(SUPERVISOR_LOCK), Duration::from_secs(5))?;
    lock.set_len(0)?;
    write!(lock, "{}", std::process::id())?;
    register(&id, dir)?;
    let signals = SigSet::from_iter([
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGCHLD,
    ]);
    signals.thread_block().context("cannot block signals")?;
    let signals = SignalFd::new(&signals).context("cannot make a descriptor of signals")?;

    let outcome = enclose(dir, &id, linked, &signals);
    if let Err(error) = &outcome {
        node::say(&node::error_line(error));
    }
    let was_ready = dir.join(READY).exists();
    let cleaned = clean(&id, dir);
    if linked && was_ready && outcome.is_ok() && cleaned.is_ok() {
        // Nobody is left who wants to read its logs. If it never started or fell over, they stay.
        cache::remove_all(dir)?;
    }
    drop(lock);
    outcome.and(cleaned)
}

fn enclose(dir: &Path, id: &str, linked: bool, signals: &SignalFd) -> Result<()> {
    cgroups::make(id)?;
    network::remove_link(id)?;
    let link = network::make_link(id)?;
    let mut inside = Command::new("unshare");
    inside
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--kill-child=SIGKILL",
            "--propagation=private",
            "--mount-proc",
            "--",
        ])
        .arg(program()?)
        .args(["cluster", "node", "--id", id, "--dir"])
        .arg(dir)
        .args(
            Module::CLUSTER
                .iter()
                .map(|module| module.folder())
                .collect::<Result<Vec<_>>>()?,
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut inside = inside
        .spawn()
        .context("cannot start the cluster's namespaces with unshare")?;
    let outcome = tie(&mut inside, id, link).and_then(|()| watch(&mut inside, linked, signals));
    // With its end of the pipe closed, the inside ends everything and then itself.
    drop(inside.stdin.take());
    end(&mut inside)?;
    outcome
}

/// Hands over the network and passes on what the inside says.
fn tie(inside: &mut Child, id: &str, link: network::Link) -> Result<()> {
    let output = inside.stdout.take().context("the inside has no output")?;
    let mut orders = inside.stdin.as_ref().context("the inside has no input")?;
    let (sender, here) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output)
            .lines()
            .map_while(std::io::Result::ok)
        {
            if line == node::HERE {
                let _ = sender.send(());
            } else {
                node::say(&line);
            }
        }
    });
    here.recv_timeout(Duration::from_secs(10))
        .ok()
        .context("the cluster's namespaces could not be made")?;
    network::hand_over(id, inside.id())?;
    writeln!(orders, "{} {}", link.machine, link.cluster)
        .context("cannot give the inside its orders")
}

/// Waits for a reason to end.
fn watch(inside: &mut Child, linked: bool, signals: &SignalFd) -> Result<()> {
    let caller = std::io::stdin();
    loop {
        let mut descriptors = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if linked {
            descriptors.push(PollFd::new(caller.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut descriptors, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for signals"),
        }
        let told =
            |descriptor: Option<&PollFd<'_>>| descriptor.and_then(PollFd::any).unwrap_or(false);
        let (signalled, caller_ended) = (told(descriptors.first()), told(descriptors.get(1)));
        if caller_ended {
            return Ok(());
        }
        if signalled && let Some(signal) = signals.read_signal().context("cannot read a signal")? {
            if signal.ssi_signo != (Signal::SIGCHLD as i32).cast_unsigned() {
                return Ok(());
            }
            if let Some(status) = inside.try_wait()? {
                bail!("the inside of the cluster ended ({status}); see supervisor.log");
            }
        }
    }
}

fn end(inside: &mut Child) -> Result<()> {
    let start = Instant::now();
    while command::is_running(inside) {
        if start.elapsed() > END_LIMIT {
            // unshare ends its child, and with it the namespace.
            inside
                .kill()
                .context("cannot kill the inside of the cluster")?;
            inside.wait()?;
            bail!(
                "the inside of the cluster did not end within {} s and was killed",
                END_LIMIT.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The binary that has the commands `cluster supervise` and `cluster node`: this one, or the one built beside this test.
pub(crate) fn program() -> Result<PathBuf> {
    const NAME: &str = "sidewinder-e2e";
    let current = std::env::current_exe().context("cannot find this program's own file")?;
    if current.file_name().is_some_and(|name| name == NAME) {
        return Ok(current);
    }
    let folders = current.ancestors().skip(1).take(2);
    let found = folders
        .map(|folder| folder.join(NAME))
        .find(|file| file.exists());
    found.with_context(|| {
        format!(
            "{NAME} is not beside {}: build it with `cargo build --package sidewinder-e2e`",
            current.display()
        )
    })
}

fn supervisor_pid(dir: &Path) -> Result<Option<Pid>> {
    let file = dir.join(SUPERVISOR_LOCK);
    if !cache::is_locked(&file)? {
        return Ok(None);
    }
    let mut text = String::new();
    let mut file = File::open(&file)?;
    let limit = Instant::now() + Duration::from_secs(5);
    // It locks first and writes then.
    while text.is_empty() && Instant::now() < limit {
        file.rewind()?;
        file.read_to_string(&mut text)?;
    }
    Ok(Some(Pid::from_raw(
        text.trim()
            .parse()
            .context("the supervisor's lock holds no pid")?,
    )))
}

/// The pid, on the machine, of the cluster's first process.
pub(crate) fn node_pid(dir: &Path) -> Result<u32> {
    let supervisor =
        supervisor_pid(dir)?.with_context(|| format!("no cluster runs in {}", dir.display()))?;
    let child = |pid: u32| -> Result<u32> {
        let file = format!("/proc/{pid}/task/{pid}/children");
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
        text.split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok())
            .with_context(|| format!("process {pid} of the cluster has no child"))
    };
    child(child(supervisor.as_raw().cast_unsigned())?)
}

/// Asks the supervisor of `dir`, if there is one, to end the cluster, and waits until it has.
pub(crate) fn stop(dir: &Path, limit: Duration) -> Result<()> {
    let Some(supervisor) = supervisor_pid(dir)? else {
        return Ok(());
    };
    let _ = kill(supervisor, Signal::SIGTERM);
    let start = Instant::now();
    while cache::is_locked(&dir.join(SUPERVISOR_LOCK))? {
        if start.elapsed() > limit {
            bail!(
                "the cluster's supervisor (pid {supervisor}) did not end within {} s",
                limit.as_secs()
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Removes what the cluster `id` left on the machine and in its folder, but for its logs.
pub(crate) fn clean(id: &str, dir: &Path) -> Result<()> {
    cgroups::remove(id)?;
    network::remove_link(id)?;
    let keep = [MARKER, SUPERVISOR_LOCK, super::CHANGE_LOCK, "logs"];
    // First what says that it is up.
    let _ = std::fs::remove_file(dir.join(READY));
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| !keep.iter().any(|name| entry.file_name() == *name)) {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            cache::remove_all(&path)?;
        } else {
            std::fs::remove_file(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    match std::fs::remove_file(registry()?.join(id)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("cannot forget the cluster")
        }
        _ => Ok(()),
    }
}

fn registry() -> Result<PathBuf> {
    Ok(cache::root()?.join("clusters"))
}

/// Notes the cluster's folder where every later command finds it, also if this one is killed.
fn register(id: &str, dir: &Path) -> Result<()> {
    let registry = registry()?;
    std::fs::create_dir_all(&registry)
        .with_context(|| format!("cannot make {}", registry.display()))?;
    let link = registry.join(id);
    if link.symlink_metadata().is_ok() {
        std::fs::remove_file(&link)?;
    }
    std::os::unix::fs::symlink(dir, &link)
        .with_context(|| format!("cannot make {}", link.display()))
}

/// The folders of the clusters that were started and not ended in order.
pub(crate) fn known() -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(registry()?)
        .into_iter()
        .flatten()
        .flatten();
    Ok(entries
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .collect())
}

/// Removes what clusters whose supervisor was killed left behind. What cannot be removed is said and does not keep others from starting.
pub(crate) fn sweep() -> Result<()> {
    for dir in known()? {
        if [SUPERVISOR_LOCK, super::CHANGE_LOCK]
            .iter()
            .any(|name| cache::is_locked(&dir.join(name)).unwrap_or(true))
        {
            continue;
        }
        if let Err(error) = clean(&id(&dir), &dir) {
            eprintln!(
                "what a cluster in {} left cannot be removed: {error:#}",
                dir.display()
            );
        }
    }
    Ok(())
}
