//! Processes that forked: a copy takes scripts as any process, and never the one that was meant for its parent.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sidewinder_decode::Runtime;
use sidewinder_decode::remote_exec::support;
use sidewinder_linux::Process;

use crate::live::compiled::{Folder, shared};
use crate::live::{self, Python, Start, Target};
use crate::sidecars::Sidecar;

/// Forks in a thread other than the first; the copy says who it is and goes on, and so does its parent.
const FORKS: &str = r#"
import os, sys, threading, time
def forks():
    global child
    child = fork()
    if child == 0:
        print(os.getpid(), flush=True)
    while True: time.sleep(0.01)
def idle():
    while True: time.sleep(1)
threading.Thread(target=idle, daemon=True).start()
print("ready", flush=True)
thread = threading.Thread(target=forks)
"#;

/// A process of which no test is the parent, ended with this.
struct Copy(i32);

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0), Signal::SIGKILL);
    }
}

fn a_copy_takes_scripts(python: Python) {
    let folder = Folder::new(python.version(), "copies");
    let library = shared("forks.c", &folder);
    for (fork, told) in [
        ("fork = os.fork".to_owned(), true),
        (
            format!("import ctypes; fork = ctypes.PyDLL('{library}').bare_fork"),
            false,
        ),
    ] {
        let target = Start {
            python,
            program: &format!("{FORKS}{fork}\nthread.start()"),
            proc: true,
            ..Start::default()
        }
        .start();
        let copy = Copy(target.line().parse().unwrap());
        let answered = Sidecar::ptrace().exec_in(copy.0, "import os\nos.getpid()", &[]);
        if told {
            assert_eq!(
                answered.document["value"],
                copy.0.to_string(),
                "{}",
                answered.said
            );
        } else {
            assert_eq!(answered.document["reason"], "NoPythonProcess");
            assert!(
                answered.said.contains("forked without telling Python"),
                "{}",
                answered.said
            );
        }
        let answered = Sidecar::ptrace().exec(&target, "import os\nos.getpid()", &[]);
        assert_eq!(
            answered.document["value"],
            target.pid.to_string(),
            "{}",
            answered.said
        );
    }
}

/// Forks in the thread that has the request, while it waits there.
fn forks_with_a_request(python: Python, fork: &str) {
    let folder = Folder::new(python.version(), "armed");
    let library = shared("forks.c", &folder);
    let program = format!(
        "import ctypes, os, time\nlibrary = ctypes.PyDLL('{library}')\ngo, goes = os.pipe()\nlibrary.pause_before_forks(go)\nprint('ready', flush=True)\nprint(goes, flush=True)\nif {fork}() == 0: print(os.getpid(), flush=True)\nwhile True: time.sleep(0.01)"
    );
    let target = Start {
        python,
        program: &program,
        proc: true,
        ..Start::default()
    }
    .start();
    let goes = target.line();
    assert_eq!(target.line(), "forking");
    let script = format!(
        "import os\nwith open('{}', 'a') as file: print(os.getpid(), file=file)",
        folder.path("ran")
    );
    let exec = target.exec_start(&script, &["--start", "20s"]);
    target.until("armed", Target::armed);
    let goes = format!("/proc/{}/fd/{goes}", target.pid);
    std::fs::write(goes, "x").unwrap();
    let copy = Copy(target.line().parse().unwrap());
    let output = exec.wait_with_output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["reason"], "Succeeded", "{fork}: {document}");
    // The copy is not armed, and lives.
    let copied = Process::open(copy.0).unwrap();
    target.until("disarmed", |_| !armed(&copied));
    assert!(copied.alive());
    let ran = folder.outside.join("ran");
    assert_eq!(
        std::fs::read_to_string(&ran).unwrap(),
        format!("{}\n", target.pid),
        "{fork}"
    );
}

fn a_request_that_waits_while_its_thread_forks(python: Python) {
    forks_with_a_request(python, "os.fork");
    forks_with_a_request(python, "library.bare_fork");
}

fn armed(process: &Process) -> bool {
    let runtime = Runtime::locate(process, &process.mappings().unwrap(), process).unwrap();
    support(process, &runtime, &process.threads().unwrap())
        .interpreters
        .iter()
        .flat_map(|interpreter| &interpreter.threads)
        .any(|thread| thread.is_pending)
}

live::on_each_python! {
    a_request_that_waits_while_its_thread_forks,
    a_copy_takes_scripts,
}
