//! Every asyncio task of a process, as whole commands: ours and the standard library's, which needs the same Python.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sidewinder_model::Tasks;

use super::figures::{Samples, table};
use super::milliseconds;
use crate::{command, images, python, workload};

/// How many tasks the processes have.
const SIZES: [usize; 2] = [1_000, 10_000];
const RUNS: usize = 20;
const LIMIT: Duration = Duration::from_mins(1);

pub(super) fn run() -> Result<()> {
    let root = python::root("3.14")?;
    let sidecar = images::sidecar_binary()?;
    println!(
        "\n# cargo e2e bench tasks: {RUNS} runs of each whole command, output discarded, process of e2e/workloads/many_tasks.py"
    );
    let mut rows = vec![
        [
            "tasks",
            "command",
            "p50",
            "p95",
            "to ours",
            "target held still",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for size in SIZES {
        let target = Target::start(&root, size)?;
        let held = target.check(&sidecar, &root, size)?;
        let held = format!(
            "{} (p95 {})",
            milliseconds(held.percentile(50)),
            milliseconds(held.percentile(95))
        );
        let pid = target.pid.to_string();
        let ours = measure(|| {
            let mut ours = Command::new(&sidecar);
            ours.args(["tasks", "--pid", &pid, "-o", "table"]);
            ours
        })?;
        let theirs = measure(|| asyncio_ps(&root, &pid))?;
        let ratio = |samples: &Samples| {
            format!(
                "{:.1} ×",
                samples.percentile(50).as_secs_f64() / ours.percentile(50).as_secs_f64()
            )
        };
        for (name, samples, still) in [
            ("sidewinder-sidecar tasks -o table", &ours, held),
            (
                "python3.14 -m asyncio ps",
                &theirs,
                "not at all: what it reads may tear".to_owned(),
            ),
        ] {
            rows.push(vec![
                size.to_string(),
                name.to_owned(),
                milliseconds(samples.percentile(50)),
                milliseconds(samples.percentile(95)),
                ratio(samples),
                still,
            ]);
        }
    }
    print!("{}", table(&rows));
    Ok(())
}

fn measure(command: impl Fn() -> Command) -> Result<Samples> {
    let mut samples = Samples::default();
    for _ in 0..RUNS {
        let mut command = command();
        let start = Instant::now();
        let status = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .context("cannot start the command")?;
        let took = start.elapsed();
        ensure!(
            status.status.success(),
            "{command:?} failed: {}",
            String::from_utf8_lossy(&status.stderr)
        );
        samples.push(took);
    }
    Ok(samples)
}

/// The peer, in the root folder of its Python, with the machine's processes in sight.
fn asyncio_ps(root: &Path, pid: &str) -> Command {
    let mut command = Command::new("chroot");
    command
        .arg(root)
        .args(["python3.14", "-m", "asyncio", "ps", pid]);
    command
}

/// A process with many tasks; ends when it is dropped.
struct Target {
    child: Child,
    pid: u32,
    /// The root folder's `/proc`, which the peer needs.
    proc: PathBuf,
}

impl Target {
    fn start(root: &Path, size: usize) -> Result<Self> {
        let proc = root.join("proc");
        command::output(
            Command::new("mount")
                .args(["-t", "proc", "proc"])
                .arg(&proc),
            LIMIT,
        )
        .context("the peer needs /proc in the root folder of its Python")?;
        let child = Command::new("chroot")
            .arg(root)
            .args([
                "python3.14",
                "-c",
                workload::source("many_tasks.py")?,
                &size.to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a Python");
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                unmount(&proc);
                return Err(error);
            }
        };
        // chroot(1) becomes the program, so the pid stays.
        let pid = child.id();
        let mut target = Self { child, pid, proc };
        let output = target
            .child
            .stdout
            .take()
            .context("the program has no output")?;
        let (sender, ready) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(output).read_line(&mut line);
            let _ = sender.send(line);
        });
        match ready.recv_timeout(LIMIT) {
            Ok(line) if line == "ready\n" => Ok(target),
            other => bail!("the program with {size} tasks is not ready: {other:?}"),
        }
    }

    /// Both must see every task before their times are worth anything. Returns how long ours held the process still.
    fn check(&self, sidecar: &Path, root: &Path, size: usize) -> Result<Samples> {
        let pid = self.pid.to_string();
        let mut held = Samples::default();
        for _ in 0..RUNS {
            let json = command::output(
                Command::new(sidecar).args(["tasks", "--pid", &pid, "-o", "json"]),
                LIMIT,
            )?;
            let tasks: Tasks =
                serde_json::from_slice(&json).context("`tasks -o json` printed something else")?;
            ensure!(
                tasks.tasks.len() == size && tasks.problems.is_empty(),
                "`tasks` shows {} tasks of {size}: {:?}",
                tasks.tasks.len(),
                tasks.problems
            );
            held.push(Duration::from_micros(tasks.paused_microseconds));
        }
        let rows = command::text(&mut asyncio_ps(root, &pid), LIMIT)?;
        let rows = rows.lines().filter(|line| line.contains("0x")).count();
        ensure!(rows == size, "`asyncio ps` shows {rows} tasks of {size}");
        Ok(held)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.pid) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.wait();
        unmount(&self.proc);
    }
}

fn unmount(proc: &Path) {
    if let Err(error) = command::output(Command::new("umount").arg(proc), LIMIT) {
        eprintln!("{} stays mounted: {error:#}", proc.display());
    }
}
