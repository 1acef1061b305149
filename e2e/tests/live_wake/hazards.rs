//! What a script can do to the wait of its own thread, and what may be done to a thread at most.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::live::{Python, Start, Target};

/// Starts a program of which one thread, which it says, is about to be in a system call; returns when it is.
fn blocked(python: Python, program: &str, call: &str) -> (Target, u64) {
    let target = Start {
        python,
        program,
        ..Start::default()
    }
    .start();
    let tid = target.line().parse().unwrap();
    target.until("blocked", |target| {
        let thread = target.process().thread(tid).unwrap();
        thread.syscall.is_some_and(|syscall| syscall.name == call)
    });
    (target, tid)
}

/// Everywhere: what ends the wait is done on SIGUSR1, by the main thread or by one that waits for the signal.
const RELEASED_BY_A_THREAD: &str = "
import os, signal, sys, threading
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
def releases():
    signal.sigwait({signal.SIGUSR1})
    release()
threading.Thread(target=releases, daemon=True).start()
def waits(wait):
    print('ready', threading.get_native_id(), sep='\\n', flush=True)
    print(wait(), flush=True)
";

fn release(target: &Target) {
    kill(Pid::from_raw(target.pid), Signal::SIGUSR1).unwrap();
}

fn each(test: impl Fn(Python)) {
    [Python::V3_14, Python::V3_15].into_iter().for_each(test);
}

#[test]
fn a_script_that_waits_for_what_its_thread_waits_for_is_ended_and_the_wait_goes_on() {
    each(|python| {
        let program = format!(
            "{RELEASED_BY_A_THREAD}
lock = threading.Lock()
lock.acquire()
release = lock.release
thread = threading.Thread(target=waits, args=(lock.acquire,))
thread.start()
thread.join()
"
        );
        let (target, tid) = blocked(python, &program, "futex");
        let script = "print('here')\nframe.f_globals['lock'].acquire()";
        let thread = tid.to_string();
        let exec = target.exec_start(script, &["--thread", &thread, "--timeout", "3s"]);
        let running = |target: &Target| {
            let stacks = serde_json::to_string(&target.stacks()).unwrap();
            stacks.contains("<sidewinder>")
        };
        target.until("in the script", running);
        // The lock is handed to the thread's own wait, which the script is in the way of.
        release(&target);
        let output = exec.wait_with_output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["wake"], "InPlace", "{answer}");
        assert_eq!(answer["reason"], "ScriptTimeout", "{answer}");
        assert_eq!(answer["stillRunning"], false, "{answer}");
        assert_eq!(answer["stdout"], "here\n", "{answer}");
        assert_eq!(target.line(), "True");
    });
}

#[test]
fn a_script_in_the_main_thread_may_take_what_that_thread_waits_for() {
    each(|python| {
        let program = format!(
            "{RELEASED_BY_A_THREAD}
lock = threading.Lock()
lock.acquire()
release = lock.release
waits(lock.acquire)
"
        );
        let (target, tid) = blocked(python, &program, "futex");
        let script =
            "lock = frame.f_globals['lock']\nprint('here')\nlock.acquire(), lock.release()";
        let exec = target.exec_start(script, &["--thread", &tid.to_string()]);
        let running = |target: &Target| {
            let stacks = serde_json::to_string(&target.stacks()).unwrap();
            stacks.contains("<sidewinder>")
        };
        target.until("in the script", running);
        release(&target);
        let output = exec.wait_with_output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["wake"], "PendingCall", "{answer}");
        assert_eq!(answer["value"], "(True, None)", "{answer}");
        assert_eq!(target.line(), "True");
    });
}

#[test]
fn a_script_cannot_use_a_stream_in_the_middle_of_which_its_thread_is() {
    each(|python| {
        let program = format!(
            "{RELEASED_BY_A_THREAD}
end, other_end = os.pipe()
stream = open(end)
release = lambda: os.write(other_end, b'line\\n')
waits(stream.readline)
"
        );
        let (target, tid) = blocked(python, &program, "read");
        let (code, answer) = target.exec(
            "frame.f_globals['stream'].readline()",
            &["--thread", &tid.to_string()],
        );
        assert_eq!((code, &answer["reason"]), (1, &"ScriptError".into()));
        assert_eq!(answer["exception"]["type"], "RuntimeError", "{answer}");
        release(&target);
        assert_eq!(target.line(), "line");
    });
}

#[test]
fn no_more_is_done_than_is_allowed() {
    for (wake, wait, call) in [
        ("interrupt", "lock.acquire", "futex"),
        ("interrupt", "lambda: os.read(end, 10)", "read"),
        ("never", "lambda: os.read(end, 10)", "read"),
        ("never", "epoll.poll", "epoll_wait"),
    ] {
        let program = format!(
            "{RELEASED_BY_A_THREAD}
import select
lock = threading.Lock()
lock.acquire()
end, other_end = os.pipe()
epoll = select.epoll()
epoll.register(end, select.EPOLLIN)
def release():
    lock.release()
    os.write(other_end, b'data')
waits({wait})
"
        );
        let (target, tid) = blocked(Python::V3_14, &program, call);
        let before = target.traces();
        let (code, answer) = target.exec(
            "1",
            &[
                "--thread",
                &tid.to_string(),
                "--wake",
                wake,
                "--start",
                "400ms",
            ],
        );
        assert_eq!(
            (code, &answer["reason"], &answer["disarmed"]),
            (5, &"TargetBlocked".into(), &true.into()),
            "{wake} {wait}: {answer}"
        );
        assert_eq!(target.traces(), before);
        let call_now = target.process().thread(tid).unwrap().syscall;
        assert_eq!(call_now.map(|call| call.name).as_deref(), Some(call));
        release(&target);
        target.line();
    }
}
