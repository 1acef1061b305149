//! What a script, or its end, could do to a program by accident.
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

fn waits_in(target: &Target, tid: u64, call: &str) {
    target.until(call, |target| {
        let thread = target.process().thread(tid).unwrap();
        thread.syscall.is_some_and(|found| found.name == call)
    });
}

fn main_of(target: &Target) -> u64 {
    u64::from(target.pid.unsigned_abs())
}

/// What a script of ours is written to must not be written into a program that came later: at the same addresses it may
/// have anything.
fn a_script_that_executes_another_program_is_not_followed_into_it(python: Python) {
    let target = python.run("print('ready', flush=True)\nwhile True: pass");
    let script = "import os, sys\nprint('first', flush=True)\nos.execv(sys.executable, [sys.executable, '-c', 'import time; print(\"another\", flush=True); time.sleep(3600)'])";
    // Not the time that it takes to build.
    live::sidecar();
    let began = std::time::Instant::now();
    let (code, answer) = target.exec(script, &["--timeout", "20s"]);
    assert_eq!(
        (code, &answer["reason"], &answer["stillRunning"]),
        (4, &"TargetExited".into(), &false.into()),
        "{answer}"
    );
    assert!(
        began.elapsed().as_secs() < 15,
        "{:?}: {answer}",
        began.elapsed()
    );
    assert_eq!(target.line(), "another");
    waits_in(&target, main_of(&target), "clock_nanosleep");
    // It is a Python as good as any, and nothing of the last script is in it.
    assert!(!target.armed());
    let (_, answer) = target.exec("1", &[]);
    assert_eq!(answer["value"], "1", "{answer}");
}

/// A stream's buffer has a lock that C code waits for, which takes any end of the wait for the lock.
fn a_script_that_waits_for_a_streams_lock_does_not_get_it_by_being_stopped(python: Python) {
    let target = python.run(
        r#"
import os, signal, threading, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
end, into = os.pipe()
stream = os.fdopen(into, "wb", buffering=1 << 20)
def writes():
    stream.write(b"x" * 300_000)
    stream.flush()
    print("written\n", end="", flush=True)
def idles():
    while True:
        time.sleep(3600)
def reads():
    signal.sigwait([signal.SIGUSR1])
    got = 0
    while got < 300_000: got += len(os.read(end, 65536))
    print(f"read {got}\n", end="", flush=True)
threads = [threading.Thread(target=one, daemon=True) for one in (writes, idles, reads)]
for thread in threads: thread.start()
print("ready", flush=True)
print(*(thread.native_id for thread in threads), flush=True)
while True: time.sleep(0.01)
"#,
    );
    let ids: Vec<u64> = target
        .line()
        .split(' ')
        .map(|id| id.parse().unwrap())
        .collect();
    waits_in(&target, ids[0], "write");
    let script = "import sys\nstream = sys.modules['__main__'].stream\nprint('first', flush=True)\nstream.flush()\nprint('flushed')";
    let (_, answer) = target.exec(
        script,
        &["--timeout", "1s", "--thread", &ids[1].to_string()],
    );
    assert_eq!(
        (&answer["stdout"], &answer["stillRunning"]),
        (&"first\n".into(), &true.into()),
        "{answer}"
    );
    kill(Pid::from_raw(target.pid), Signal::SIGUSR1).unwrap();
    let mut lines = [target.line(), target.line()];
    lines.sort();
    assert_eq!(lines, ["read 300000", "written"]);
    // With the lock it went on, and ended as it was told to.
    target.until("free again", |target| {
        let (code, _) = target.exec("1", &["--timeout", "2s", "--thread", &ids[1].to_string()]);
        code == 0
    });
}

/// A thread may be on a stack that lies in the midst of the application's memory.
fn a_thread_on_another_stack_than_its_own_is_left_alone(python: Python) {
    let target = python.run(
        r#"
import ctypes, mmap, os, signal, threading
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
libc = ctypes.CDLL(None)
memory = mmap.mmap(-1, 4 << 20)
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
memory[:] = b"\xaa" * len(memory)
top, stack = 2 << 20, 64 << 10
context, back = ctypes.create_string_buffer(4096), ctypes.create_string_buffer(4096)
end, into = os.pipe()
buffer = ctypes.create_string_buffer(16)
libc.getcontext(context)
word = ctypes.c_uint64
word.from_buffer(context, 8).value = ctypes.addressof(back)
word.from_buffer(context, 16).value = base + top - stack
word.from_buffer(context, 32).value = stack
libc.makecontext(context, libc.read, 3, ctypes.c_int(end), buffer, ctypes.c_size_t(16))
def release():
    signal.sigwait([signal.SIGUSR1])
    os.write(into, b"hello")
threading.Thread(target=release, daemon=True).start()
print("ready", flush=True)
libc.swapcontext(back, context)
below = memory[:top - stack]
print(buffer.value, len(below) - below.count(b"\xaa"), flush=True)
"#,
    );
    waits_in(&target, main_of(&target), "read");
    let (code, answer) = target.exec("1", &["--thread", "main", "--start", "500ms"]);
    assert_eq!(
        (code, &answer["reason"], &answer["disarmed"]),
        (5, &"TargetBlocked".into(), &true.into()),
        "{answer}"
    );
    kill(Pid::from_raw(target.pid), Signal::SIGUSR1).unwrap();
    assert_eq!(target.line(), "b'hello' 0");
}

fn a_script_that_closes_its_streams_keeps_what_it_wrote(python: Python) {
    let target = python.run("print('ready', flush=True)\nwhile True: pass");
    let script = "import sys\nfor i in range(400): print(i)\nprint('x', end='')\nprint('err', end='', file=sys.stderr)\nsys.stdout.close()";
    let (code, answer) = target.exec(script, &[]);
    let lines: Vec<String> = (0..400).map(|i| format!("{i}\n")).collect();
    assert_eq!(
        (code, &answer["stdout"], &answer["stderr"]),
        (0, &format!("{}x", lines.concat()).into(), &"err".into()),
        "{answer}"
    );
    let (_, answer) = target.exec(
        "import sys\nsys.stdout is sys.__stdout__ or print('captured')",
        &[],
    );
    assert_eq!(answer["stdout"], "captured\n", "{answer}");
}

fn a_script_that_leaves_no_descriptor_free_is_not_said_to_run(python: Python) {
    let target = python.run(
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\nprint('ready', flush=True)\nwhile True: pass",
    );
    let script = "import os, sys\nkept = sys.modules['__main__'].kept = []\ntry:\n    while True: kept.append(os.dup(1))\nexcept OSError: pass";
    let (_, answer) = target.exec(script, &["--timeout", "2s"]);
    assert_eq!(answer["stillRunning"], false, "{answer}");
    assert_eq!(answer["disarmed"], true, "{answer}");
}

on_each_python!(
    a_script_that_executes_another_program_is_not_followed_into_it,
    a_script_that_waits_for_a_streams_lock_does_not_get_it_by_being_stopped,
    a_thread_on_another_stack_than_its_own_is_left_alone,
    a_script_that_closes_its_streams_keeps_what_it_wrote,
    a_script_that_leaves_no_descriptor_free_is_not_said_to_run,
);
