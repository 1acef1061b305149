//! Live Python processes to look into, and the sidecar by hand.
#![allow(
    dead_code,
    unused_macros,
    unused_imports,
    reason = "each test binary uses a part of it"
)]

pub(crate) mod compiled;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use sidewinder_decode::Runtime;
use sidewinder_decode::remote_exec::{Support, support};
use sidewinder_linux::Process;
use sidewinder_model::Stacks;

/// The longest a test waits for anything.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A Python to run a target with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Python {
    #[default]
    V3_14,
    V3_15,
}

impl Python {
    /// The one of this version.
    pub(crate) fn of(version: &str) -> Self {
        match version {
            "3.15" => Self::V3_15,
            _ => Self::V3_14,
        }
    }

    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::V3_14 => "3.14",
            Self::V3_15 => "3.15",
        }
    }
}

impl Python {
    /// Starts a program with it and waits for its line `ready`.
    pub(crate) fn run(self, program: &str) -> Target {
        Start {
            python: self,
            program,
            ..Start::default()
        }
        .start()
    }
}

/// Makes a test with each Python of every function that is named.
macro_rules! on_each_python {
    ($($name:ident),* $(,)?) => {
        mod on_3_14 {
            $(#[test] fn $name() { super::$name(super::Python::V3_14); })*
        }
        mod on_3_15 {
            $(#[test] fn $name() { super::$name(super::Python::V3_15); })*
        }
    };
}
pub(crate) use on_each_python;

/// The root folder of a Python.
pub(crate) fn root_of(python: Python) -> &'static Path {
    static ROOTS: [OnceLock<PathBuf>; 2] = [OnceLock::new(), OnceLock::new()];
    ROOTS[python as usize].get_or_init(|| sidewinder_e2e::python::root(python.version()).unwrap())
}

/// The programs that say what they know of themselves, which the decoder's recorded images come from as well.
pub(crate) fn programs() -> PathBuf {
    sidewinder_e2e::checkout().join("sidecar/decode/tests/programs")
}

/// The sidecar's binary, built from what is checked out.
pub(crate) fn sidecar() -> &'static Path {
    static SIDECAR: OnceLock<PathBuf> = OnceLock::new();
    SIDECAR.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "sidewinder-sidecar"])
            .current_dir(sidewinder_e2e::checkout())
            .status()
            .unwrap();
        assert!(built.success(), "the sidecar does not build");
        // This test is in target/debug/deps.
        let folder = std::env::current_exe().unwrap();
        folder
            .ancestors()
            .nth(2)
            .unwrap()
            .join("sidewinder-sidecar")
    })
}

/// How a target comes into its root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Enter {
    #[default]
    Chroot,
    /// As a container does: the root, which `setup` has made a mount point, is that of its mount namespace. A process that
    /// has changed its root may make no user namespace.
    Pivot,
}

/// How a target is started.
#[derive(Default)]
pub(crate) struct Start<'a> {
    pub(crate) python: Python,
    /// Python text to run.
    pub(crate) program: &'a str,
    /// What is executed in the root, with its arguments; Python with the program otherwise.
    pub(crate) command: &'a [&'a str],
    pub(crate) env: &'a [(&'a str, &'a str)],
    /// uid, gid and one supplementary group; root otherwise.
    pub(crate) user: Option<(u32, u32, u32)>,
    /// Whether `/proc` is mounted in its root.
    pub(crate) proc: bool,
    /// Whether its root is an overlay whose layers lie on several file systems, as a container's may be.
    pub(crate) overlay: bool,
    /// Whether it is alone in a PID namespace of its own.
    pub(crate) pid_namespace: bool,
    /// A folder that is mounted on `/mnt` in its root.
    pub(crate) mnt: Option<PathBuf>,
    /// Shell text that prepares its mount namespace, in which `$root` is its root.
    pub(crate) setup: &'a str,
    /// How it comes into its root.
    pub(crate) enter: Enter,
    /// What is executed in the root with Python, or the command, as its last arguments: `unshare`, `setpriv`.
    pub(crate) through: &'a [&'a str],
}

/// A Python process that runs until it is dropped.
pub(crate) struct Target {
    outer: Child,
    pub(crate) pid: i32,
    lines: Receiver<String>,
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.pid),
            nix::sys::signal::Signal::SIGKILL,
        );
        // With what it started, which would live on: it is not waited for yet, so the number is still its group's.
        if let Ok(group) = i32::try_from(self.outer.id()) {
            let _ = nix::sys::signal::killpg(
                nix::unistd::Pid::from_raw(group),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

impl Target {
    /// The process that was started with its output in a pipe, or the one that this one waits for. Waits for its line
    /// `ready`.
    pub(crate) fn of(mut outer: Child) -> Self {
        let (sender, lines) = channel();
        let stdout = BufReader::new(outer.stdout.take().unwrap());
        std::thread::spawn(move || {
            stdout
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        let mut target = Target {
            pid: i32::try_from(outer.id()).unwrap(),
            outer,
            lines,
        };
        assert_eq!(target.line(), "ready");
        // What makes a PID namespace waits for its child.
        let name = |pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        while ["unshare\n", "nsenter\n"].contains(&name(target.pid).as_str()) {
            let outer = target.pid;
            let children =
                std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
            target.pid = children.trim().parse().unwrap();
        }
        target
    }

    /// Starts a program and waits for its line `ready`.
    pub(crate) fn start(program: &str) -> Self {
        Python::default().run(program)
    }

    /// Starts one of the [`programs`], by its name without `.py`.
    pub(crate) fn of_program(name: &str, version: &str) -> Self {
        Start {
            python: Python::of(version),
            command: &[
                &format!("/usr/bin/python{version}"),
                "-u",
                // Nothing is written to the checkout.
                "-B",
                &format!("/mnt/{name}.py"),
            ],
            env: &[("PYTHONPATH", sidewinder_e2e::python::PACKAGES)],
            proc: true,
            mnt: Some(programs()),
            ..Start::default()
        }
        .start()
    }

    /// The next line of its output.
    pub(crate) fn line(&self) -> String {
        self.lines
            .recv_timeout(LIMIT)
            .expect("no more output of the target")
    }

    /// A path that it sees, as this test opens it while the target lives.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.pid))
    }

    pub(crate) fn process(&self) -> Process {
        Process::open(self.pid).unwrap()
    }

    /// What the interpreter says of its request slots.
    pub(crate) fn support(&self) -> Support {
        let process = self.process();
        let runtime = Runtime::locate(&process, &process.mappings().unwrap(), &process).unwrap();
        support(&process, &runtime, &process.threads().unwrap())
    }

    /// Whether a request waits in any thread.
    pub(crate) fn armed(&self) -> bool {
        self.support()
            .interpreters
            .iter()
            .flat_map(|interpreter| &interpreter.threads)
            .any(|thread| thread.is_pending)
    }

    /// What can be seen of it from outside and must not change.
    pub(crate) fn traces(&self) -> Traces {
        let process = self.process();
        let mut fds: Vec<(String, PathBuf)> = std::fs::read_dir(format!("/proc/{}/fd", self.pid))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (
                    entry.file_name().to_string_lossy().into_owned(),
                    std::fs::read_link(entry.path()).unwrap(),
                )
            })
            .collect();
        fds.sort();
        Traces {
            fds,
            tids: process.tids().unwrap(),
            tracer: process.status().unwrap().tracer,
            stopped: process.stopped_by_signal().unwrap(),
            armed: self.armed(),
        }
    }

    /// Runs `exec` on it: the exit code and the document.
    pub(crate) fn exec(&self, script: &str, args: &[&str]) -> (i32, Value) {
        let mut child = self.exec_start(script, args);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut text).unwrap();
        let code = child.wait().unwrap().code().unwrap();
        (
            code,
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in: {text}")),
        )
    }

    /// The threads of it that the sidecar sees.
    pub(crate) fn stacks(&self) -> Stacks {
        let output = Command::new(sidecar())
            .args(["stacks", "--pid", &self.pid.to_string(), "-o", "json"])
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in: {text}"))
    }

    /// Starts `exec` on it.
    pub(crate) fn exec_start(&self, script: &str, args: &[&str]) -> Child {
        let mut child = Command::new(sidecar())
            .args(["exec", "--pid", &self.pid.to_string(), "-", "-o", "json"])
            .args(args)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        child
    }
}

/// What can be seen of a target from outside.
#[derive(Debug, PartialEq)]
pub(crate) struct Traces {
    pub(crate) fds: Vec<(String, PathBuf)>,
    pub(crate) tids: Vec<u64>,
    pub(crate) tracer: i32,
    pub(crate) stopped: bool,
    pub(crate) armed: bool,
}

impl Start<'_> {
    pub(crate) fn start(&self) -> Target {
        let mut shell = String::from("root=$1; shift; ");
        if self.overlay {
            shell.push_str(
                "mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work /mnt/merged && mount -t overlay overlay -o \
                 \"lowerdir=$root,upperdir=/mnt/upper,workdir=/mnt/work\" /mnt/merged && root=/mnt/merged && ",
            );
        }
        if !self.setup.is_empty() {
            shell.push_str(self.setup);
            shell.push_str(" && ");
        }
        if self.proc {
            shell.push_str("mount -t proc proc \"$root/proc\" && ");
        }
        if self.mnt.is_some() {
            shell.push_str("mount --bind \"$MNT\" \"$root/mnt\" && ");
        }
        if self.enter == Enter::Pivot {
            // There is no umount in it.
            let detach = format!(
                "cd \"$root\" && pivot_root . . && python{} -c 'import ctypes; ctypes.CDLL(None).umount2(b\".\", 2)' && root=/ && ",
                self.python.version()
            );
            shell.push_str(&detach);
        }
        shell.push_str("exec chroot ");
        if let Some((uid, gid, group)) = self.user {
            let user = format!("--userspec={uid}:{gid} --groups={group} ");
            shell.push_str(&user);
        }
        shell.push_str("\"$root\" \"$@\"");
        let mut command = Command::new("unshare");
        command.arg("--mount");
        if self.pid_namespace {
            command.args(["--pid", "--fork", "--kill-child"]);
        }
        let python = format!("/usr/bin/python{}", self.python.version());
        let python = [python.as_str(), "-u", "-c", self.program];
        let executed = if self.command.is_empty() {
            &python
        } else {
            self.command
        };
        let outer = command
            .args(["sh", "-c", &shell, "sh"])
            .arg(root_of(self.python))
            .args(self.through)
            .args(executed)
            .envs(self.mnt.iter().map(|folder| ("MNT", folder)))
            .envs(self.env.iter().copied())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Target::of(outer)
    }
}

impl Target {
    /// Waits until something about it is so.
    pub(crate) fn until(&self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let limit = Instant::now() + LIMIT;
        while !so(self) {
            assert!(Instant::now() < limit, "{what} did not come to be");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
