//! Reading, as every sidecar that there may be, under what its container may be under. It goes on behind a filter of
//! system calls of its own, in which nothing that it needs may be missing.

use serde_json::Value;

use crate::live::{Python, Start, Target, on_each_python};
use crate::places::USER;
use crate::seccomp::Filter;
use crate::sidecars::{Answered, Sidecar};

/// Threads in a lock, a socket, a poll and a sleep, one that runs, and tasks.
const PROGRAM: &str = r#"
import asyncio, select, socket, threading, time
one, other = socket.socketpair()
lock = threading.Lock()
lock.acquire()
def poll():
    word = "in a local"
    watch = select.poll()
    watch.register(other, select.POLLIN)
    watch.poll()
def run():
    while True: pass
for name, work in [("locked", lock.acquire), ("received", lambda: one.recv(1)), ("polled", poll), ("busy", run)]:
    threading.Thread(target=work, daemon=True, name=name).start()
async def main():
    waiting = asyncio.create_task(asyncio.sleep(1000), name="waiting")
    asyncio.get_running_loop().call_later(0.3, print, "ready")
    await waiting
asyncio.run(main())
"#;

fn target(python: Python) -> Target {
    Start {
        python,
        program: PROGRAM,
        user: Some(USER),
        pid_namespace: true,
        proc: true,
        ..Start::default()
    }
    .start()
}

fn read(sidecar: &Sidecar, args: &[&str]) -> Answered {
    let output = sidecar
        .command()
        .args(args)
        .args(["-o", "json"])
        .output()
        .unwrap();
    Answered {
        code: output.status.code().unwrap(),
        document: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
        said: String::from_utf8(output.stderr).unwrap(),
    }
}

fn everybody_reads_under_what_a_container_is_under(python: Python) {
    let target = target(python);
    let runtime = Filter::runtime_default();
    for sidecar in [
        Sidecar::root(),
        Sidecar::ptrace(),
        Sidecar::same_user(USER),
        Sidecar::ptrace().filtered(&runtime),
        Sidecar::same_user(USER).filtered(&runtime),
        Sidecar::same_user(USER).filtered(&runtime).beside(&target),
        // What was there before the filter of our own has openat2 only since Linux 5.6.
        Sidecar::ptrace().filtered(&Filter::refusing(&["openat2", "process_vm_readv"])),
    ] {
        let pid = if sidecar.is_beside() { 1 } else { target.pid };
        let pid = pid.to_string();
        let stacks = read(&sidecar, &["stacks", "--pid", &pid, "--locals", "values"]);
        assert_eq!(stacks.code, 0, "{}", stacks.said);
        let text = stacks.document.to_string();
        for words in ["locked", "received", "polled", "busy", "in a local"] {
            assert!(text.contains(words), "{words} is not shown");
        }
        let problems: Vec<&Value> = stacks.document["problems"]
            .as_array()
            .into_iter()
            .flatten()
            .collect();
        assert!(problems.is_empty(), "{problems:?}");
        let tasks = read(&sidecar, &["tasks", "--pid", &pid]);
        assert_eq!(tasks.code, 0, "{}", tasks.said);
        assert!(tasks.document.to_string().contains("waiting"));
        let processes = read(&sidecar, &["ps"]);
        assert_eq!(processes.code, 0, "{}", processes.said);
        let listed = processes.document["processes"].as_array().unwrap().iter();
        assert!(
            listed
                .into_iter()
                .any(|process| process["pid"].as_i64() == pid.parse().ok()),
            "{}",
            processes.document
        );
    }
}

fn without_the_fence_nothing_is_read_and_scripts_run(python: Python) {
    let target = target(python);
    let sidecar = Sidecar::ptrace().filtered(&Filter::refusing(&["seccomp"]));
    let pid = target.pid.to_string();
    for command in ["stacks", "tasks"] {
        let refused = read(&sidecar, &[command, "--pid", &pid]);
        assert_ne!(refused.code, 0);
        assert!(
            refused.said.contains("UnsupportedPlatform"),
            "{}",
            refused.said
        );
        assert!(refused.said.contains("seccomp(2)"), "{}", refused.said);
        assert_eq!(refused.document, Value::Null);
    }
    let listed = read(&sidecar, &["ps"]);
    assert_ne!(listed.code, 0);
    let ran = sidecar.exec(&target, "7", &[]);
    assert_eq!(ran.code, 0, "{}", ran.said);
}

on_each_python!(
    everybody_reads_under_what_a_container_is_under,
    without_the_fence_nothing_is_read_and_scripts_run,
);
