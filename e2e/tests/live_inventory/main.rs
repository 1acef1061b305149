//! What is in a target before and after everything that can be done to it: the same.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

#[path = "../live/mod.rs"]
mod live;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use live::{Python, Start, Target};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PROGRAM: &str = include_str!("target.py");
/// How the main thread waits, and how a script comes to run there.
const WAYS: [(&str, &str); 5] = [
    ("running", "None"),
    ("loop", ""),
    ("lock", "PendingCall"),
    ("sleep", "ForcedReturn"),
    ("foreign", "InPlace"),
];

const NOTHING: [&str; 0] = [];

/// What can be seen of a target, from within and from outside.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "compared as it is printed")]
struct Inventory {
    within: Value,
    descriptors: Vec<(String, String)>,
    threads: Vec<u64>,
    children: String,
    /// The files that are mapped, once each.
    mapped: BTreeSet<String>,
    /// What `/proc/PID/status` says of signals, tracers and credentials.
    status: Vec<String>,
    timers: String,
    limits: String,
    folder: String,
    /// What is in the folders of its root that anybody may write to.
    files: BTreeSet<PathBuf>,
    armed: bool,
}

impl Inventory {
    fn of(target: &Target, python: Python) -> Self {
        kill(Pid::from_raw(target.pid), Signal::SIGUSR1).unwrap();
        let within = serde_json::from_str(&target.line()).unwrap();
        // It was in the midst of printing.
        target.until("waiting for its signal", |target| {
            target.process().tids().unwrap().iter().any(|tid| {
                let thread = target.process().thread(*tid);
                thread
                    .and_then(|thread| thread.syscall)
                    .is_some_and(|call| call.name == "rt_sigtimedwait")
            })
        });
        let read = |file: &str| {
            std::fs::read_to_string(format!("/proc/{}/{file}", target.pid)).unwrap_or_default()
        };
        let traces = target.traces();
        let mapped = read("maps")
            .lines()
            .filter_map(|line| line.split_ascii_whitespace().nth(5).map(str::to_owned))
            .filter(|path| path.starts_with('/'))
            .collect();
        let status = read("status");
        let told = [
            "Sig",
            "Shd",
            "TracerPid",
            "Uid",
            "Gid",
            "Groups",
            "Cap",
            "NoNewPrivs",
            "Seccomp",
            "Umask",
            "Threads",
        ];
        // What lies in the layer beneath its own is other targets'.
        let files = ["tmp", "dev/shm", "var/tmp", "run"]
            .iter()
            .flat_map(|folder| {
                let path = format!("/proc/{}/root/{folder}", target.pid);
                let entries = std::fs::read_dir(path).into_iter().flatten();
                entries.map(move |entry| PathBuf::from(folder).join(entry.unwrap().file_name()))
            })
            .filter(|path| !live::root_of(python).join(path).exists())
            .filter(|path| path.to_string_lossy().contains("sidewinder"))
            .collect();
        Self {
            within,
            descriptors: traces
                .fds
                .into_iter()
                .map(|(number, path)| (number, path.to_string_lossy().into_owned()))
                .collect(),
            threads: traces.tids,
            children: read(&format!("task/{}/children", target.pid)),
            mapped,
            status: status
                .lines()
                // SigQ counts for all of a user's processes.
                .filter(|line| {
                    told.iter().any(|key| line.starts_with(key)) && !line.starts_with("SigQ")
                })
                .map(str::to_owned)
                .collect(),
            timers: read("timers"),
            limits: read("limits"),
            folder: std::fs::read_link(format!("/proc/{}/cwd", target.pid))
                .unwrap()
                .to_string_lossy()
                .into_owned(),
            files,
            armed: traces.armed,
        }
    }

    /// What is not as it was before.
    fn since(&self, before: &Self) -> Vec<String> {
        let mut changed: Vec<String> = before
            .within
            .as_object()
            .unwrap()
            .iter()
            .filter(|(key, was)| self.within[key] != **was)
            .map(|(key, was)| format!("{key}: {was} became {}", self.within[key]))
            .collect();
        let outside = |inventory: &Self| {
            format!(
                "{:#?}",
                Self {
                    within: Value::Null,
                    ..inventory.clone()
                }
            )
        };
        let (was, is) = (outside(before), outside(self));
        for (from, to, sign) in [(&was, &is, '-'), (&is, &was, '+')] {
            let gone = from
                .lines()
                .filter(|line| !to.lines().any(|other| other == *line));
            changed.extend(gone.map(|line| format!("{sign} {}", line.trim())));
        }
        changed
    }

    fn modules(&self) -> BTreeSet<String> {
        let modules = self.within["modules"].as_array().unwrap();
        modules
            .iter()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    }
}

fn start(python: Python, way: &str) -> Target {
    let target = Start {
        python,
        program: PROGRAM,
        env: &[("WAY", way)],
        // Nobody else's files.
        overlay: true,
        setup: "mount -t tmpfs none \"$root/dev/shm\"",
        proc: true,
        ..Start::default()
    }
    .start();
    let main = u64::from(target.pid.unsigned_abs());
    if !matches!(way, "running" | "loop") {
        target.until("waiting", |target| {
            let thread = target.process().thread(main).unwrap();
            thread.syscall.is_some()
        });
    }
    target
}

fn sidecar(target: &Target, arguments: &[&str]) -> Value {
    let output = Command::new(live::sidecar())
        .args(arguments)
        .args(["--pid", &target.pid.to_string(), "-o", "json"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {told}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Scripts that end in every way there is, without importing anything that the program has not.
const SCRIPTS: [(&str, &[&str], &str); 12] = [
    ("1", &[], "Succeeded"),
    ("print('x' * 3_000_000)", &[], "Succeeded"),
    (
        "import sys\nprint('e', file=sys.stderr)\nsys.stdout.flush()",
        &[],
        "Succeeded",
    ),
    ("1 / 0", &[], "ScriptError"),
    ("raise SystemExit(3)", &[], "ScriptError"),
    ("raise KeyboardInterrupt", &[], "ScriptError"),
    ("a = (", &[], "ScriptError"),
    (
        "class E(BaseException):\n    def __str__(self): 1 / 0\nraise E",
        &[],
        "ScriptError",
    ),
    ("while True: pass", &["--timeout", "1s"], "ScriptTimeout"),
    (
        "try:\n    while True: pass\nfinally:\n    print('undone')",
        &["--timeout", "1s"],
        "ScriptTimeout",
    ),
    (
        "print('first')\nimport os\npid = os.fork()\nif pid: os.waitpid(pid, 0)",
        &[],
        "Succeeded",
    ),
    (
        "import threading\nthread = threading.Thread(target=lambda: sum(range(1000)))\nthread.start()\nthread.join()",
        &[],
        "Succeeded",
    ),
];

fn nothing_is_left(python: Python, way: &str, wake: &str) {
    let target = start(python, way);
    let before = Inventory::of(&target, python);
    for arguments in [
        &["stacks"][..],
        &["stacks", "--locals", "types"],
        &["stacks", "--locals", "values"],
        &["tasks"],
    ] {
        sidecar(&target, arguments);
        assert_eq!(
            Inventory::of(&target, python).since(&before),
            NOTHING,
            "{way}: {arguments:?}"
        );
    }
    for (script, arguments, reason) in SCRIPTS {
        let main = [&["--thread", "main"][..], arguments].concat();
        let (_, answer) = target.exec(script, &main);
        assert_eq!(answer["reason"], reason, "{way}: {script}: {answer}");
        if !wake.is_empty() {
            assert_eq!(answer["wake"], wake, "{way}: {script}: {answer}");
        }
        assert_eq!(
            (&answer["disarmed"], &answer["stillRunning"]),
            (&true.into(), &false.into()),
            "{way}: {script}: {answer}"
        );
        assert_eq!(answer["imported"], serde_json::json!([]), "{way}: {script}");
        assert_eq!(
            Inventory::of(&target, python).since(&before),
            NOTHING,
            "{way}: {script}"
        );
    }
    let (_, answer) = target.exec(
        "1",
        &["--thread", "main", "--wake", "never", "--start", "50ms"],
    );
    let disarmed = &answer["disarmed"];
    assert_eq!(disarmed, true, "{way}: {answer}");
    assert_eq!(
        Inventory::of(&target, python).since(&before),
        NOTHING,
        "{way}: not started"
    );
}

fn what_is_imported_is_listed(python: Python) {
    let target = start(python, "sleep");
    let before = Inventory::of(&target, python);
    let (_, answer) = target.exec("import colorsys, xml.etree.ElementTree, _zoneinfo", &[]);
    assert_eq!(answer["reason"], "Succeeded", "{answer}");
    let imported: BTreeSet<String> = answer["imported"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap().to_owned())
        .collect();
    assert!(imported.contains("xml.etree.ElementTree"), "{imported:?}");
    let mut after = Inventory::of(&target, python);
    let new: BTreeSet<String> = after
        .modules()
        .difference(&before.modules())
        .cloned()
        .collect();
    assert_eq!(new, imported);
    for path in after.mapped.difference(&before.mapped) {
        let name = path.rsplit('/').next().unwrap();
        // An extension module, or a library that one of them needs.
        let module = name.split('.').next().unwrap();
        assert!(
            imported.iter().any(|name| name.ends_with(module)) || name.starts_with("lib"),
            "{path} was mapped, {imported:?} imported"
        );
    }
    // Everything else is as it was.
    for key in ["modules", "importers"] {
        after.within[key] = before.within[key].clone();
    }
    after.mapped.clone_from(&before.mapped);
    assert_eq!(after.since(&before), NOTHING);
}

macro_rules! on_each_python_and_way {
    ($($python:ident $module:ident),* $(,)?) => {$(
        mod $module {
            use super::{Python, WAYS};

            #[test]
            fn nothing_is_left_in_a_target() {
                std::thread::scope(|scope| {
                    for (way, wake) in WAYS {
                        scope.spawn(move || super::nothing_is_left(Python::$python, way, wake));
                    }
                });
            }

            #[test]
            fn what_is_imported_is_listed() {
                super::what_is_imported_is_listed(Python::$python);
            }
        }
    )*};
}

on_each_python_and_way!(V3_14 on_3_14, V3_15 on_3_15);
