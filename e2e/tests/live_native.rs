//! What is known of the machine code of live processes, on both versions: whose a blocked system call is, and where the
//! functions are that a thread is made to call in place.
#![cfg(target_arch = "x86_64")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

mod live;

use std::collections::BTreeMap;
use std::time::Instant;

use live::{Python, Start, Target};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::Deserialize;
use sidewinder_decode::native::{Caller, Native, Registers};
use sidewinder_decode::remote_exec::{PendingCalls, Queue, Signals, pending_calls, support};
use sidewinder_decode::still::Any;
use sidewinder_decode::{Addr, Memory as _, Runtime};
use sidewinder_linux::Process;

fn start(python: Python, program: &str) -> Target {
    Start {
        python,
        program,
        env: &[("PYTHONPATH", sidewinder_e2e::python::PACKAGES)],
        proc: true,
        ..Start::default()
    }
    .start()
}

fn locate(process: &Process) -> Runtime {
    Runtime::locate(process, &process.mappings().unwrap(), process).unwrap()
}

fn prepare(process: &Process) -> Native {
    Native::prepare::<Any>(process, &process.mappings().unwrap(), &locate(process))
}

/// Waits until a thread is blocked in one of these system calls, and holds it still: who made the call.
fn caller(target: &Target, native: &Native, tid: u64, calls: &[String]) -> Option<Caller> {
    let process = target.process();
    let mut last = None;
    let limit = Instant::now() + live::LIMIT;
    loop {
        let thread = process.thread(tid);
        let thread = thread.unwrap_or_else(|| panic!("{tid}, to be in {calls:?}, has ended"));
        let call = thread.syscall;
        if call.as_ref().is_some_and(|call| calls.contains(&call.name)) {
            break;
        }
        last = call.or(last);
        assert!(
            Instant::now() < limit,
            "{tid} is in {last:?}, not {calls:?}"
        );
    }
    let tid = Pid::from_raw(i32::try_from(tid).unwrap());
    ptrace::seize(tid, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(tid).unwrap();
    waitpid(tid, Some(WaitPidFlag::__WALL)).unwrap();
    let all = ptrace::getregs(tid).unwrap();
    let registers = Registers {
        rip: all.rip,
        rsp: all.rsp,
        rbp: all.rbp,
        rbx: all.rbx,
        r12: all.r12,
        r13: all.r13,
        r14: all.r14,
        r15: all.r15,
    };
    let caller = native.caller::<Any>(&process, &registers);
    ptrace::detach(tid, None).unwrap();
    caller
}

/// What a program says of one of its threads.
#[derive(Deserialize)]
struct Said {
    tid: u64,
    /// The system calls it may be in.
    calls: Vec<String>,
    /// Whether that is Python's own.
    own: bool,
    /// A part of the path of the file that libc was called from.
    file: String,
}

fn every_caller_is_what_the_target_says(python: Python) {
    let target = start(python, include_str!("live/callers.py"));
    let said: BTreeMap<String, Said> = serde_json::from_str(&target.line()).unwrap();
    let native = prepare(&target.process());
    let mut wrong = Vec::new();
    for (name, said) in &said {
        let caller = caller(&target, &native, said.tid, &said.calls);
        let right = caller.as_ref().is_some_and(|caller| {
            caller.own == said.own && caller.file.contains(&said.file) && caller.libc_frames > 0
        });
        if !right {
            wrong.push(format!(
                "{name}: {caller:?}, not own {} of {}",
                said.own, said.file
            ));
        }
    }
    assert_eq!(wrong, [""; 0]);
    assert!(said.len() > 30);
}

#[test]
fn every_caller_on_3_14_is_what_the_target_says() {
    every_caller_is_what_the_target_says(Python::V3_14);
}

#[test]
fn every_caller_on_3_15_is_what_the_target_says() {
    every_caller_is_what_the_target_says(Python::V3_15);
}

/// What a program says of its own functions, which are asked for with dlsym(3).
#[derive(Deserialize)]
struct Functions {
    restore: u64,
    check: u64,
    save: u64,
}

const FUNCTIONS: &str = r"
import ctypes, json, threading
def address(name):
    return ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
print('ready', flush=True)
print(json.dumps({'restore': address('PyEval_RestoreThread'), 'check': address('PyErr_CheckSignals'), 'save': address('PyEval_SaveThread')}), flush=True)
threading.Lock().acquire()
threading.Event().wait()
";

fn the_functions_are_where_the_target_says(python: Python) {
    let target = start(python, FUNCTIONS);
    let said: Functions = serde_json::from_str(&target.line()).unwrap();
    let process = target.process();
    let entry = prepare(&process).entry.unwrap();
    assert_eq!(
        [entry.restore_thread, entry.check_signals, entry.save_thread],
        [said.restore, said.check, said.save].map(Addr)
    );
    let mut ret = [0; 1];
    process.read(entry.ret, &mut ret).unwrap();
    assert_eq!(ret, [0xc3]);
    let mut call = [0; 9];
    process.read(entry.sigreturn, &mut call).unwrap();
    assert_eq!(call, *b"\x48\xc7\xc0\x0f\0\0\0\x0f\x05");
    let mappings = process.mappings().unwrap();
    let holds = |at: Addr| mappings.iter().find(|m| (m.start..m.end).contains(&at.0));
    assert!(holds(entry.sigreturn).unwrap().path.ends_with("/libc.so.6"));
    assert!(holds(entry.sigreturn).unwrap().executable && holds(entry.ret).unwrap().executable);
}

#[test]
fn the_functions_of_3_14_are_where_the_target_says() {
    the_functions_are_where_the_target_says(Python::V3_14);
}

#[test]
fn the_functions_of_3_15_are_where_the_target_says() {
    the_functions_are_where_the_target_says(Python::V3_15);
}

/// Puts calls into its own queue, of which the last one puts some more there and does not return.
const QUEUE: &str = r"
import ctypes, os, threading
from concurrent import interpreters
def says():
    print('ready', flush=True)
    print(ctypes.cast(call, ctypes.c_void_p).value, flush=True)
    threading.Event().wait()
made = []
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
def call(argument):
    made.append(argument)
    if argument == 1000:
        for n in range(5): add(interpreter, call, 2000 + n, 0)
        says()
    return 0
api = ctypes.pythonapi
api.PyInterpreterState_Get.restype = ctypes.c_void_p
interpreter = api.PyInterpreterState_Get()
add = api._PyEval_AddPendingCall
add.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int
other = interpreters.create()
for n in range(1, 299):
    assert add(interpreter, call, n, 0) == 0
    while len(made) < n: pass
if os.environ.get('HANDLED'): add(interpreter, call, 1000, 0)
says()
";

/// The queue of each interpreter, where the target's own function is.
fn queues(python: Python, env: &[(&str, &str)]) -> (Target, u64, Vec<(PendingCalls, Queue)>) {
    let target = Start {
        python,
        program: QUEUE,
        env,
        ..Start::default()
    }
    .start();
    let function = target.line().parse().unwrap();
    let process = target.process();
    let runtime = locate(&process);
    let queues = support::<Any>(&process, &runtime, &process.threads().unwrap())
        .interpreters
        .iter()
        .map(|each| {
            let calls = pending_calls::<Any>(&process, &runtime, each.address).unwrap();
            (calls, calls.read::<Any>(&process).unwrap())
        })
        .collect();
    (target, function, queues)
}

fn the_queue_holds_what_the_target_put_there(python: Python) {
    let (_target, _, queues) = queues(python, &[]);
    let [(calls, queue), (_, other)] = queues[..] else {
        panic!("{queues:?}");
    };
    assert!(queue.takes_one() && !queue.locked && !queue.handled);
    assert_eq!(
        (queue.npending, queue.first, queue.next, queue.after),
        (0, 298, 298, 299)
    );
    assert_eq!(queue.entry, calls.calls.plus(298 * 24));
    assert_eq!((other.npending, other.next), (0, 0));
    assert!(other.takes_one());

    let (target, function, queues) = self::queues(python, &[("HANDLED", "1")]);
    let (calls, queue) = queues[0];
    assert!(queue.handled && !queue.locked && !queue.takes_one());
    assert_eq!(
        (queue.npending, queue.first, queue.next, queue.after),
        (5, 299, 4, 5)
    );
    let process = target.process();
    for (n, entry) in [(0, 299), (1, 0), (4, 3)] {
        let mut words = [0; 16];
        process
            .read(calls.calls.plus(entry * 24), &mut words)
            .unwrap();
        let words = words.as_chunks::<8>().0;
        assert_eq!(u64::from_le_bytes(words[0]), function);
        assert_eq!(u64::from_le_bytes(words[1]), 2000 + n);
    }
}

#[test]
fn the_queue_of_3_14_holds_what_the_target_put_there() {
    the_queue_holds_what_the_target_put_there(Python::V3_14);
}

#[test]
fn the_queue_of_3_15_holds_what_the_target_put_there() {
    the_queue_holds_what_the_target_put_there(Python::V3_15);
}

/// Its main thread is in a call that no signal ends, so what has come stays unhandled.
const SIGNALS: &str = "
import os, signal
ends = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(ends[1])
signal.signal(signal.SIGUSR1, lambda *_: None)
print('ready', flush=True)
print(ends[1], flush=True)
os.system('sleep 3600')
";

fn a_signal_that_was_not_handled_is_seen(python: Python) {
    let target = start(python, SIGNALS);
    let fd: i32 = target.line().parse().unwrap();
    let process = target.process();
    let signals = Signals::locate::<Any>(&process, &locate(&process)).unwrap();
    assert_eq!(signals.wakeup_fd, fd);
    let int = |at: Addr| {
        let mut word = [0; 4];
        process.read(at, &mut word).unwrap();
        i32::from_le_bytes(word)
    };
    let tripped = |signals: &Signals| -> Vec<u32> {
        (1..=64)
            .filter(|n| int(signals.tripped(*n).unwrap()) != 0)
            .collect()
    };
    let tid = u64::from(target.pid.unsigned_abs());
    target.until("in system", |_| {
        process
            .thread(tid)
            .unwrap()
            .syscall
            .is_some_and(|call| call.name == "wait4")
    });
    assert_eq!((int(signals.is_tripped), tripped(&signals)), (0, vec![]));
    nix::sys::signal::kill(Pid::from_raw(target.pid), Signal::SIGUSR1).unwrap();
    target.until("come", |_| int(signals.is_tripped) == 1);
    assert_eq!(tripped(&signals), [10]);
    // Found as well while one waits.
    assert_eq!(
        Signals::locate::<Any>(&process, &locate(&process)),
        Some(signals)
    );
    assert_eq!((signals.tripped(0), signals.tripped(65)), (None, None));
}

#[test]
fn a_signal_that_was_not_handled_is_seen_on_3_14() {
    a_signal_that_was_not_handled_is_seen(Python::V3_14);
}

#[test]
fn a_signal_that_was_not_handled_is_seen_on_3_15() {
    a_signal_that_was_not_handled_is_seen(Python::V3_15);
}

/// Whose wait the main thread of an event loop is in that sleeps.
fn loop_caller(python: Python, program: &str, calls: &[&str]) -> Caller {
    let target = start(python, program);
    let native = prepare(&target.process());
    let calls: Vec<String> = calls.iter().map(|&call| call.to_owned()).collect();
    caller(&target, &native, target.pid.unsigned_abs().into(), &calls).unwrap()
}

#[test]
fn event_loops_of_other_people_are_not_pythons_own() {
    let epoll = ["epoll_wait", "epoll_pwait"];
    for python in [Python::V3_14, Python::V3_15] {
        let gevent = "import gevent\nprint('ready', flush=True)\ngevent.sleep(3600)";
        let gevent = loop_caller(python, gevent, &epoll);
        assert!(
            !gevent.own && gevent.file.contains("/gevent/"),
            "{gevent:?}"
        );
        let uvloop =
            "import asyncio, uvloop\nprint('ready', flush=True)\nuvloop.run(asyncio.sleep(3600))";
        let uvloop = loop_caller(python, uvloop, &epoll);
        assert!(
            !uvloop.own && uvloop.file.contains("/uvloop/"),
            "{uvloop:?}"
        );
        let asyncio =
            "import asyncio\nprint('ready', flush=True)\nasyncio.run(asyncio.sleep(3600))";
        let asyncio = loop_caller(python, asyncio, &epoll);
        assert!(asyncio.own, "{asyncio:?}");
    }
}

fn who_waits_for_the_gil_is_seen(python: Python) {
    let target = start(
        python,
        "import threading\ndef spin():\n    while True: pass\nfor _ in range(3): threading.Thread(target=spin, daemon=True).start()\nthreading.Thread(target=threading.Event().wait).start()\nprint('ready', flush=True)\nspin()",
    );
    target.until("three wait", |target| {
        let support = target.support();
        let threads = &support.interpreters[0].threads;
        assert_eq!(threads.len(), 5);
        // Started last.
        assert!(!threads[4].wants_gil);
        threads.iter().filter(|thread| thread.wants_gil).count() == 3
    });
}

#[test]
fn who_waits_for_the_gil_is_seen_on_3_14() {
    who_waits_for_the_gil_is_seen(Python::V3_14);
}

#[test]
fn who_waits_for_the_gil_is_seen_on_3_15() {
    who_waits_for_the_gil_is_seen(Python::V3_15);
}
