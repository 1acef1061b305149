//! The threads of live processes against what the processes say of themselves, on both versions.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

mod live;

use std::collections::BTreeMap;
use std::time::Duration;

use live::{Python, Start, Target};
use serde::Deserialize;
use sidewinder_linux::stop::stop;
use sidewinder_model::{CurrentException, Interpreter, Stacks, Syscall, Thread, ThreadState};

fn start(python: Python, program: &str, env: &[(&str, &str)]) -> Target {
    Start {
        python,
        program,
        env,
        ..Start::default()
    }
    .start()
}

fn main_interpreter(stacks: &Stacks) -> &Interpreter {
    assert_eq!(stacks.problems, [""; 0]);
    &stacks.interpreters[0]
}

fn named<'a>(interpreter: &'a Interpreter, name: &str) -> &'a Thread {
    let mut threads = interpreter.threads.iter();
    threads
        .find(|thread| thread.name == name)
        .unwrap_or_else(|| panic!("no thread {name}"))
}

/// What a program says of one of its threads.
#[derive(Deserialize)]
struct Said {
    name: String,
    /// `co_qualname`, `co_filename` and `f_lineno` of each frame, outermost first.
    stack: Vec<(String, String, Option<i64>)>,
    exception: Option<CurrentException>,
}

fn every_thread_is_what_the_target_says(python: Python, env: &[(&str, &str)]) -> Stacks {
    let target = start(python, include_str!("live/truth.py"), env);
    let said: BTreeMap<String, Said> = serde_json::from_str(&target.line()).unwrap();
    // It has said so; the thread that did is on its way into the lock.
    let reporter = |stacks: &Stacks| {
        let reporter = named(main_interpreter(stacks), "reporter").clone();
        reporter.syscall.is_some_and(|call| call.name == "futex")
    };
    let mut stacks = target.stacks();
    target.until("at rest", |target| {
        stacks = target.stacks();
        reporter(&stacks)
    });
    let threads = &main_interpreter(&stacks).threads;
    assert_eq!(threads.len(), said.len() + 1);
    for thread in threads.iter().filter(|thread| thread.name != "reporter") {
        let said = &said[&thread.ident];
        assert_eq!(thread.name, said.name);
        let name = &thread.name;
        for (place, (frame, said)) in thread.frames.iter().zip(&said.stack).enumerate() {
            let frame = (&*frame.function, &*frame.file, frame.line);
            let said = (&*said.0, &*said.1, said.2);
            assert_eq!(frame, said, "frame {place} of {name}");
        }
        assert_eq!(thread.frames.len(), said.stack.len(), "{name}");
        assert_eq!(thread.exception, said.exception, "{name}");
        assert_eq!(thread.state, ThreadState::Blocked, "{name}");
        assert_eq!(thread.syscall.as_ref().unwrap().name, "futex", "{name}");
        assert_eq!(thread.holds_gil, Some(false), "{name}");
        assert_eq!(thread.wants_gil, Some(false), "{name}");
    }
    assert_eq!(
        threads.iter().filter(|thread| thread.main).count(),
        1,
        "one main thread"
    );
    assert!(threads[0].main);
    stacks
}

#[test]
fn every_thread_of_3_14_is_what_the_target_says() {
    let stacks = every_thread_is_what_the_target_says(Python::V3_14, &[]);
    assert!(!stacks.interpreters[0].collecting_garbage);
}

#[test]
fn every_thread_of_3_15_is_what_the_target_says() {
    let stacks = every_thread_is_what_the_target_says(Python::V3_15, &[]);
    assert!(!stacks.interpreters[0].collecting_garbage);
    assert_eq!(stacks.interpreters[0].collection, None);
}

#[test]
fn a_collection_of_garbage_is_seen_on_3_14() {
    let env = [("COLLECT", "1")];
    let stacks = every_thread_is_what_the_target_says(Python::V3_14, &env);
    assert!(stacks.interpreters[0].collecting_garbage);
    assert_eq!(stacks.interpreters[0].collection, None);
}

#[test]
fn a_collection_of_garbage_is_seen_on_3_15_with_where_it_was_begun() {
    let env = [("COLLECT", "1")];
    let stacks = every_thread_is_what_the_target_says(Python::V3_15, &env);
    let interpreter = &stacks.interpreters[0];
    assert!(interpreter.collecting_garbage);
    let thread = named(interpreter, "collecting");
    let collection = interpreter.collection.unwrap();
    assert_eq!(collection.tid, thread.tid);
    assert_eq!(&*thread.frames[collection.frame].function, "collecting");
}

/// What a program says of what one of its threads waits for.
#[derive(Deserialize)]
struct Waits {
    /// The system calls it may be in: libraries choose among several.
    calls: Vec<String>,
    /// What its detail must hold.
    detail: Vec<String>,
}

fn every_thread_says_what_it_waits_for(python: Python) {
    let target = start(python, include_str!("live/waits.py"), &[]);
    let said: BTreeMap<String, Waits> = serde_json::from_str(&target.line()).unwrap();
    let wrong = |stacks: &Stacks| -> Option<String> {
        let interpreter = main_interpreter(stacks);
        said.iter().find_map(|(name, waits)| {
            let thread = named(interpreter, name);
            let syscall = thread.syscall.clone().unwrap_or_default();
            let detail = syscall.detail.unwrap_or_default();
            let right = thread.state == ThreadState::Blocked
                && waits.calls.contains(&syscall.name)
                && waits.detail.iter().all(|part| detail.contains(part));
            (!right).then(|| {
                format!(
                    "{name}: {:?} in {} ({detail}), not in {:?} ({:?})",
                    thread.state, syscall.name, waits.calls, waits.detail
                )
            })
        })
    };
    // The last threads are on their way; what has arrived stays.
    let limit = std::time::Instant::now() + live::LIMIT;
    while let Some(wrong) = wrong(&target.stacks()) {
        assert!(std::time::Instant::now() < limit, "{wrong}");
    }
    let folder = format!("tmp/waits-{}", target.pid);
    std::fs::remove_dir_all(live::root_of(python).join(folder)).unwrap();
}

#[test]
fn every_thread_of_3_14_says_what_it_waits_for() {
    every_thread_says_what_it_waits_for(Python::V3_14);
}

#[test]
fn every_thread_of_3_15_says_what_it_waits_for() {
    every_thread_says_what_it_waits_for(Python::V3_15);
}

/// Which call a main thread is in and what for, before a stop and after it, when the kernel goes on with it.
fn restarted(program: &str, name: &str) -> [Syscall; 2] {
    let target = start(Python::V3_14, program, &[]);
    let (process, tid) = (target.process(), u64::from(target.pid.unsigned_abs()));
    let waits = || {
        let thread = process.thread(tid).unwrap();
        let mut call = thread.syscall.filter(|call| call.name == name)?;
        process.describe([(tid, thread.arguments.unwrap(), &mut call)]);
        Some(call)
    };
    target.until("blocked", |_| waits().is_some());
    let before = waits().unwrap();
    stop(&process, &[tid], Duration::from_secs(10))
        .unwrap()
        .release();
    let line =
        || std::fs::read_to_string(format!("/proc/{0}/task/{0}/syscall", target.pid)).unwrap();
    let restart = format!("{} ", nix::libc::SYS_restart_syscall);
    target.until("restarted", |_| line().starts_with(&restart));
    [before, waits().unwrap()]
}

#[test]
fn a_timed_wait_that_a_stop_interrupted_is_still_known() {
    let [before, after] = restarted(
        "import threading\nlock = threading.Lock()\nlock.acquire()\nprint('ready', flush=True)\nlock.acquire(timeout=3600)",
        "futex",
    );
    assert!(
        before
            .detail
            .as_ref()
            .unwrap()
            .ends_with(", private, timed")
    );
    assert_eq!(after, before);
    let [before, after] = restarted(
        "import os, select\nends = os.pipe()\npoll = select.poll()\npoll.register(ends[0])\nprint('ready', flush=True)\npoll.poll(3600000)",
        "poll",
    );
    let detail = before.detail.as_ref().unwrap();
    assert!(
        detail.starts_with("fd 3: pipe:[") && detail.ends_with(", at most 3600.000 s"),
        "{detail}"
    );
    assert_eq!(after, before);
    let [before, after] = restarted(
        "import ctypes\nprint('ready', flush=True)\nctypes.CDLL(None).sleep(3600)",
        "clock_nanosleep",
    );
    assert_eq!(before.detail.as_deref(), Some("for 3600.000 s"));
    // The call was told where to say how long was left.
    assert!(
        after.detail.as_ref().unwrap().starts_with("for 3"),
        "{after:?}"
    );
}

fn contended(python: Python) {
    let target = start(
        python,
        "import threading\ndef spin():\n    while True: pass\nfor _ in range(3): threading.Thread(target=spin, daemon=True).start()\nprint('ready', flush=True)\nspin()",
        &[],
    );
    // Whoever neither has nor waits for it was seen between the two.
    target.until("contended", |target| {
        let stacks = target.stacks();
        let threads = &main_interpreter(&stacks).threads;
        let holders = threads.iter().filter(|t| t.holds_gil == Some(true)).count();
        assert!(holders <= 1, "{threads:?}");
        for thread in threads {
            let waits = thread.wants_gil == Some(true);
            assert_eq!(waits, thread.state == ThreadState::Runnable, "{thread:?}");
            assert!(!(waits && thread.holds_gil == Some(true)), "{thread:?}");
        }
        holders == 1 && threads.iter().filter(|t| t.wants_gil == Some(true)).count() == 3
    });
}

#[test]
fn who_wants_the_gil_is_seen_on_3_14() {
    contended(Python::V3_14);
}

#[test]
fn who_wants_the_gil_is_seen_on_3_15() {
    contended(Python::V3_15);
}

#[test]
fn names_inside_subinterpreters_are_those_of_their_own_threading() {
    for python in [Python::V3_14, Python::V3_15] {
        let target = start(python, include_str!("live/subinterpreters.py"), &[]);
        let stacks = target.stacks();
        main_interpreter(&stacks);
        let names: Vec<Vec<&str>> = stacks
            .interpreters
            .iter()
            .map(|each| each.threads.iter().map(|t| t.name.as_str()).collect())
            .collect();
        let (plain, renaming) = ("comes from outside, näm", "comes from outside as well");
        assert_eq!(
            names,
            [
                vec!["MainThread", plain, renaming],
                // No `threading` in there.
                vec![plain],
                vec![
                    "renamed inside the interpreter",
                    "started inside, with a long name"
                ],
            ]
        );
    }
}

#[test]
fn the_main_thread_of_gevent_has_its_name() {
    for python in [Python::V3_14, Python::V3_15] {
        let target = start(
            python,
            "import gevent.monkey\ngevent.monkey.patch_all()\nimport threading, time\nthreading.main_thread().name = 'main, with hubs and greenlets'\nfor n in range(3): threading.Thread(target=time.sleep, args=(3600,), name=f'greenlet {n}').start()\nprint('ready', flush=True)\ntime.sleep(3600)",
            &[("PYTHONPATH", "/opt/packages")],
        );
        let stacks = target.stacks();
        let threads = &main_interpreter(&stacks).threads;
        assert_eq!(threads[0].name, "main, with hubs and greenlets");
    }
}
