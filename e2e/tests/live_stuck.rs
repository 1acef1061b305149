//! Scripts that wait in a call when their time is up: they end, and what the application waits for stays what it was.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

mod live;

use live::{Python, Target, on_each_python};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A main thread that sleeps again and again, one that sleeps for long, and one that waits for a lock, which is handed
/// over when SIGUSR1 comes. It prints the threads' ids first.
const PROGRAM: &str = r#"
import signal, sys, threading, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
held = threading.Lock()
held.acquire()
def sleeps():
    while True:
        time.sleep(3600)
def waits():
    held.acquire()
    print("has the lock", flush=True)
    held.release()
    while True:
        time.sleep(3600)
def hands_over():
    signal.sigwait([signal.SIGUSR1])
    held.release()
threads = [threading.Thread(target=one, daemon=True) for one in (sleeps, waits, hands_over)]
for thread in threads: thread.start()
print("ready", flush=True)
print(*(thread.native_id for thread in threads), flush=True)
while True:
    time.sleep(0.01)
"#;

/// Scripts that wait in a call of Python's own for ever.
const WAITS: [&str; 9] = [
    "import time\ntime.sleep(1000)",
    "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "import threading\nthreading.Event().wait()",
    "import queue\nqueue.Queue().get()",
    "import socket\na, b = socket.socketpair()\na.recv(1)",
    "import socket\na, b = socket.socketpair()\na.settimeout(1000)\na.recv(1)",
    "import os\na, b = os.pipe()\ntry: os.read(a, 1)\nfinally: os.close(a); os.close(b)",
    "import select\nselect.select([], [], [], 1000)",
    "import time\nfor _ in range(5):\n    try: time.sleep(1000)\n    except BaseException: pass",
];

struct Threads {
    target: Target,
    sleeps: u64,
    waits: u64,
}

fn start(python: Python) -> Threads {
    let target = python.run(PROGRAM);
    let line = target.line();
    let ids: Vec<u64> = line.split(' ').map(|id| id.parse().unwrap()).collect();
    let threads = Threads {
        sleeps: ids[0],
        waits: ids[1],
        target,
    };
    threads.blocked(threads.sleeps, "clock_nanosleep");
    threads.blocked(threads.waits, "futex");
    threads
}

impl Threads {
    fn blocked(&self, tid: u64, call: &str) {
        self.target.until("waiting", |target| {
            let thread = target.process().thread(tid).unwrap();
            thread.syscall.is_some_and(|found| found.name == call)
        });
    }

    /// Nothing of a script's end is left, and the thread takes the next one.
    fn answers(&self, thread: &str) {
        let (_, answer) = self.target.exec(
            "import signal, sys\n[sys.monitoring.get_tool(tool) for tool in range(6)], signal.getsignal(23), signal.getsignal(28)",
            &["--thread", thread],
        );
        assert_eq!(
            answer["value"],
            "([None, None, None, None, None, None], <Handlers.SIG_DFL: 0>, <Handlers.SIG_DFL: 0>)",
            "{answer}"
        );
    }
}

fn ends(threads: &Threads, thread: &str, script: &str) {
    let before = threads.target.traces();
    let script = format!("print('first')\n{script}");
    let (code, answer) = threads
        .target
        .exec(&script, &["--timeout", "700ms", "--thread", thread]);
    assert_eq!(
        (code, &answer["reason"], &answer["stillRunning"]),
        (5, &"ScriptTimeout".into(), &false.into()),
        "{thread}: {script}: {answer}"
    );
    assert_eq!(answer["stdout"], "first\n", "{answer}");
    assert_eq!(answer["disarmed"], true, "{answer}");
    let mut after = threads.target.traces();
    // What the script opened and the collector has not closed yet is the script's.
    after.fds.retain(|fd| before.fds.contains(fd));
    assert_eq!(after, before, "{thread}: {script}");
}

fn a_script_that_waits_in_the_main_thread_ends(python: Python) {
    let threads = start(python);
    for script in WAITS.into_iter().chain([
        "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
        "import subprocess\nsubprocess.run(['sleep', '600'])",
    ]) {
        ends(&threads, "main", script);
        threads.answers("main");
    }
}

fn a_script_that_waits_in_another_thread_ends(python: Python) {
    let threads = start(python);
    let tid = threads.sleeps.to_string();
    for script in WAITS {
        ends(&threads, &tid, script);
        threads.answers(&tid);
    }
    threads.blocked(threads.sleeps, "clock_nanosleep");
}

/// A script that is called where a thread waits for a lock, and waits for the same lock: what the application hands over
/// goes to the application's wait, and the script is made to give up.
fn a_script_that_wants_the_lock_that_its_thread_waits_for_gives_it_back(python: Python) {
    let threads = start(python);
    let tid = threads.waits.to_string();
    let script = "import sys\nlock = sys.modules['__main__'].held\nprint('asks', flush=True)\nlock.acquire()\nlock.release()";
    let exec = threads
        .target
        .exec_start(script, &["--timeout", "2s", "--thread", &tid]);
    threads.target.until("asking for the lock", |target| {
        let stacks = target.stacks();
        let threads = &stacks.interpreters[0].threads;
        let thread = threads.iter().find(|one| one.tid.to_string() == tid);
        let frames = &thread.unwrap().frames;
        let inside = frames.iter().any(|frame| &*frame.file == "<sidewinder>");
        inside && thread.unwrap().syscall.is_some()
    });
    kill(Pid::from_raw(threads.target.pid), Signal::SIGUSR1).unwrap();
    let output = exec.wait_with_output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["stillRunning"], false, "{answer}");
    assert_eq!(threads.target.line(), "has the lock");
    threads.answers(&tid);
}

on_each_python!(
    a_script_that_waits_in_the_main_thread_ends,
    a_script_that_waits_in_another_thread_ends,
    a_script_that_wants_the_lock_that_its_thread_waits_for_gives_it_back,
);
