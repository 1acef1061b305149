//! What is read of a live process against what the process says of itself, on every version of Python that is read.
//!
//! Each program of `sidecar/decode/tests/programs` brings itself to rest, prints one document of all its threads, frames,
//! tasks, loops and edges (`truth.py`), and stands still; `stacks` and `tasks` must find the same, no more and no less.
//! The standard library's own reader is asked as well: it must differ from the truth in just the ways that are known.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

#[path = "../../../sidecar/decode/tests/agreement/mod.rs"]
mod agreement;
#[path = "../live/mod.rs"]
mod live;
mod second_opinion;

use std::collections::BTreeSet;
use std::process::Command;

use live::{Target, sidecar};
use second_opinion::Kind;
use serde_json::Value;

/// A program at rest, and what it said.
struct Rest {
    target: Target,
    said: Value,
}

impl Rest {
    fn of(file: &str, version: &str) -> Self {
        let target = Target::of_program(file, version);
        let said = serde_json::from_str(&target.line()).unwrap();
        Self { target, said }
    }

    fn read(&self, action: &str) -> Value {
        let output = Command::new(sidecar())
            .args([action, "--pid", &self.target.pid.to_string(), "-o", "json"])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{action}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn interpreters(&self) -> impl Iterator<Item = &Value> {
        self.said["interpreters"].as_array().unwrap().iter()
    }

    /// How many of these it said there are, in all its interpreters.
    fn count(&self, what: &str) -> usize {
        if what == "interpreters" {
            return self.interpreters().count();
        }
        self.interpreters()
            .map(|interpreter| match &interpreter[what] {
                Value::Object(members) => members.len(),
                Value::Array(members) => members.len(),
                other => panic!("{what} is {other}"),
            })
            .sum()
    }
}

/// Reads a program that says at least so much of itself.
fn agrees(file: &str, version: &str, least: &[(&str, usize)]) {
    let rest = Rest::of(file, version);
    for (what, least) in least {
        let count = rest.count(what);
        assert!(
            count >= *least,
            "{file}, Python {version}: it has {count} {what}, it should have {least}"
        );
    }
    let differences = agreement::differences(&rest.read("stacks"), &rest.read("tasks"), &rest.said);
    assert!(
        differences.is_empty(),
        "{file}, Python {version}:\n{}",
        differences.join("\n")
    );
}

/// Asks the standard library's reader of the same program.
fn differs(file: &str, version: &str, expected: &[Kind]) {
    let found = second_opinion::kinds(&Rest::of(file, version), version);
    assert_eq!(
        found,
        expected.iter().copied().collect::<BTreeSet<_>>(),
        "{file}, Python {version}"
    );
}

macro_rules! programs {
    ($($name:ident: $file:literal { $($what:ident: $least:literal),* }
        differs on 3.14 [$($on_3_14:ident),*] on 3.15 [$($on_3_15:ident),*])*) => {
        mod on_3_14 { $(#[test] fn $name() {
            super::agrees($file, "3.14", &[$((stringify!($what), $least)),*]);
        })* }
        mod on_3_15 { $(#[test] fn $name() {
            super::agrees($file, "3.15", &[$((stringify!($what), $least)),*]);
        })* }
        mod second_opinion_on_3_14 { $(#[test] fn $name() {
            super::differs($file, "3.14", &[$(super::Kind::$on_3_14),*]);
        })* }
        mod second_opinion_on_3_15 { $(#[test] fn $name() {
            super::differs($file, "3.15", &[$(super::Kind::$on_3_15),*]);
        })* }
    };
}

programs! {
    every_kind_of_blocking_thread: "threads" { threads: 7 }
        differs on 3.14 [CallFromC, BeyondAscii, NoAsyncio] on 3.15 []
    the_main_thread_after_its_script: "ended" { threads: 2 }
        differs on 3.14 [CallFromC, NoAsyncio] on 3.15 []
    python_called_by_c_in_every_way: "callbacks" { threads: 84 }
        differs on 3.14 [CallFromC, NoAsyncio] on 3.15 []
    recursion_of_every_kind: "recursion" { threads: 10 }
        differs on 3.14 [DeepStack, NoAsyncio] on 3.15 [DeepStack]
    lines_of_every_shape: "line_tables" { threads: 24 }
        differs on 3.14 [LongLineTable, NoAsyncio] on 3.15 [LongLineTable]
    code_of_every_origin_and_name: "code_objects" { threads: 34 }
        differs on 3.14 [BeyondAscii, NoAsyncio] on 3.15 [NoLine, Surrogate]
    hundreds_of_threads: "crowd" { threads: 301 }
        differs on 3.14 [CallFromC, NoAsyncio] on 3.15 []
    tasks_of_two_threads: "tasks" { loops: 2, tasks: 30, cycles: 1 }
        differs on 3.14 [CallFromC, TasksOfOtherThreads, NotLookedThrough, RunningTask, BeyondAscii, LongName]
        on 3.15 [NotLookedThrough, RunningTask, LongName]
    everything_that_can_be_awaited: "awaits" { tasks: 125 }
        differs on 3.14 [CallFromC, BeyondAscii] on 3.15 [NotLookedThrough, RunningTask, LongName, Surrogate]
    shared_awaits_and_circles: "graphs" { tasks: 900, cycles: 7 }
        differs on 3.14 [CallFromC, RunningTask, RemovedWaiter, FutureAsWaiter]
        on 3.15 [RunningTask, RemovedWaiter, FutureAsWaiter]
    loops_in_every_state: "loops" { loops: 17, tasks: 65 }
        differs on 3.14 [CallFromC, TasksOfOtherThreads, RunningTask] on 3.15 [RunningTask]
    tasks_that_begin_at_once: "eager" { loops: 2, tasks: 12 }
        differs on 3.14 [CallFromC, TasksOfOtherThreads, RunningTask] on 3.15 [RunningTask]
    interpreters_with_threads_and_loops: "interpreters" { interpreters: 6, threads: 31, tasks: 15 }
        differs on 3.14 [CallFromC, ThreadsOfOtherInterpreters, TasksOfOtherInterpreters]
        on 3.15 [TasksOfOtherInterpreters]
    libraries_that_switch_stacks: "libraries" { loops: 2, tasks: 14 }
        differs on 3.14 [CallFromC, TasksOfOtherThreads, RunningTask] on 3.15 [RunningTask, Greenlet]
}

#[test]
fn the_standard_library_needs_to_stand_in_the_targets_mount_namespace() {
    for version in ["3.14", "3.15"] {
        let rest = Rest::of("threads", version);
        let error = second_opinion::from_another_namespace(rest.target.pid, version);
        assert!(error.contains("PyRuntime"), "{error}");
        assert!(
            rest.read("stacks")["problems"]
                .as_array()
                .unwrap()
                .is_empty()
        );
    }
}
