//! The standard library's reader of other processes, `_remote_debugging`, as a second opinion on the same targets.
//!
//! Where it differs from what a target said of itself, the difference is of a [`Kind`] that
//! `docs/decisions/0005-differences-from-the-standard-library.md` explains, or the test fails.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::Rest;
use crate::live::{Python, root_of};

/// A way in which the standard library's reader departs from the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A stack begins only after the last call from C.
    CallFromC,
    /// Threads of all interpreters but the newest are missing.
    ThreadsOfOtherInterpreters,
    /// Tasks of all interpreters but the newest are missing.
    TasksOfOtherInterpreters,
    /// Tasks of all threads but the main one are missing.
    TasksOfOtherThreads,
    /// A coroutine stack ends before an async generator, a generator, or what `__await__` of a coroutine gives.
    NotLookedThrough,
    /// A running task is its coroutine alone.
    RunningTask,
    /// Text beyond ASCII is zeros, or the whole call fails.
    BeyondAscii,
    /// A name ends after 255 characters.
    LongName,
    /// A member that was removed from a set of waiters is shown in place of one that is in it.
    RemovedWaiter,
    /// Futures that are no tasks are among the waiters.
    FutureAsWaiter,
    /// No line is -1.
    NoLine,
    /// Half of a surrogate pair is handed on; no JSON document can hold it.
    Surrogate,
    /// The whole call fails at a deep stack.
    DeepStack,
    /// The whole call fails at a long location table.
    LongLineTable,
    /// The whole call fails at a stack that a greenlet begins.
    Greenlet,
    /// The call for tasks fails where nobody has imported asyncio.
    NoAsyncio,
}

/// How the second opinion on a target differs from what it said.
pub(crate) fn kinds(rest: &Rest, version: &str) -> BTreeSet<Kind> {
    let found = ask(rest.target.pid, version);
    let mut opinion = Opinion {
        is_3_14: version == "3.14",
        newest: rest.interpreters().map(|i| number(&i["id"])).max().unwrap(),
        kinds: BTreeSet::new(),
    };
    match found["threads"]["error"].as_str() {
        Some(error) => opinion.refused(error, rest),
        None => opinion.threads(&found["threads"]["found"], rest),
    }
    match found["tasks"]["error"].as_str() {
        Some(error) => opinion.refused(error, rest),
        None => opinion.tasks(&found["tasks"]["found"], rest),
    }
    opinion.kinds
}

/// What the reader says on stderr when it sees the same files through another mount namespace.
pub(crate) fn from_another_namespace(pid: i32, version: &str) -> String {
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c"])
        .arg("mount -t proc proc \"$0/proc\" && exec chroot \"$0\" \"$@\"")
        .arg(root_of(Python::of(version)))
        .arg(format!("/usr/bin/python{version}"))
        .args(["-c", include_str!("standard_library.py"), &pid.to_string()])
        .output()
        .unwrap();
    assert!(!output.status.success(), "it could be read");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the reader with the target's own Python, in the target's own mount namespace and root.
fn ask(pid: i32, version: &str) -> Value {
    let output = Command::new("nsenter")
        .args(["--target", &pid.to_string(), "--mount", "--root", "--wd=/"])
        .arg(format!("/usr/bin/python{version}"))
        .args(["-c", include_str!("standard_library.py"), &pid.to_string()])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

struct Opinion {
    is_3_14: bool,
    /// The only interpreter whose tasks are shown, and in 3.14 the only one at all.
    newest: u64,
    kinds: BTreeSet<Kind>,
}

impl Opinion {
    /// Notes a difference of a kind that only 3.14 has.
    fn only_on_3_14(&mut self, kind: Kind, what: &dyn Fn() -> String) {
        assert!(self.is_3_14, "{kind:?}: {}", what());
        self.kinds.insert(kind);
    }

    fn refused(&mut self, error: &str, rest: &Rest) {
        let what = || error.to_owned();
        if error.contains("Too many stack frames") {
            self.kinds.insert(Kind::DeepStack);
        } else if error.contains("did not reach base frame") {
            assert!(!self.is_3_14, "{error}");
            self.kinds.insert(Kind::Greenlet);
        } else if error.contains("Invalid bytes length") {
            self.kinds.insert(Kind::LongLineTable);
        } else if error.contains("UnicodeDecodeError") {
            self.only_on_3_14(Kind::BeyondAscii, &what);
        } else if error.contains("AsyncioDebug section not available") && rest.count("tasks") == 0 {
            self.only_on_3_14(Kind::NoAsyncio, &what);
        } else {
            panic!("unexplained: {error}");
        }
    }

    fn threads(&mut self, found: &Value, rest: &Rest) {
        let mut found: BTreeMap<(u64, u64), &Value> = found
            .as_array()
            .unwrap()
            .iter()
            .map(|thread| {
                // 3.14 does not say which interpreter it is.
                let interpreter = if self.is_3_14 {
                    self.newest
                } else {
                    number(&thread[0])
                };
                ((interpreter, number(&thread[1])), &thread[2])
            })
            .collect();
        for interpreter in rest.interpreters() {
            let id = number(&interpreter["id"]);
            for said in interpreter["threads"].as_object().unwrap().values() {
                let whose = format!("thread {} of interpreter {id}", said["name"]);
                if let Some(found) = found.remove(&(id, number(&said["tid"]))) {
                    self.stack(&whose, found, &said["frames"]);
                } else {
                    assert_ne!(id, self.newest, "unexplained: no {whose}");
                    self.only_on_3_14(Kind::ThreadsOfOtherInterpreters, &|| whose.clone());
                }
            }
        }
        assert!(found.is_empty(), "unexplained: threads {found:?}");
    }

    /// A thread's stack, which may lack its outermost frames.
    fn stack(&mut self, whose: &str, found: &Value, said: &Value) {
        let (found, said) = (found.as_array().unwrap(), said.as_array().unwrap());
        let missing = said
            .len()
            .checked_sub(found.len())
            .unwrap_or_else(|| panic!("unexplained: {whose}: {found:?} where {said:?} was said"));
        if missing > 0 {
            self.only_on_3_14(Kind::CallFromC, &|| whose.to_owned());
        }
        for (found, said) in found.iter().zip(&said[missing..]) {
            self.frame(whose, found, said);
        }
    }

    fn frame(&mut self, whose: &str, found: &Value, said: &Value) {
        for part in 0..2 {
            self.text(whose, &found[part], &said[part]);
        }
        if found[2] == -1 && said[2].is_null() {
            self.kinds.insert(Kind::NoLine);
        } else {
            assert_eq!(found[2], said[2], "unexplained: {whose}: {found} {said}");
        }
    }

    fn text(&mut self, whose: &str, found: &Value, said: &Value) {
        if found == said {
            return;
        }
        let (found, said) = (found.as_str().unwrap(), said.as_str().unwrap());
        let unexplained = || format!("{whose}: {found:?} where {said:?} was said");
        let cut: String = said.chars().take(255).collect();
        if found == cut {
            self.kinds.insert(Kind::LongName);
        } else if said.contains('\u{fffd}') && found == said.replace('\u{fffd}', "?") {
            self.kinds.insert(Kind::Surrogate);
        } else {
            assert!(!said.is_ascii(), "unexplained: {}", unexplained());
            self.only_on_3_14(Kind::BeyondAscii, &unexplained);
        }
    }

    fn tasks(&mut self, found: &Value, rest: &Rest) {
        let mut found: BTreeMap<&String, &Value> = found.as_object().unwrap().iter().collect();
        for interpreter in rest.interpreters() {
            let id = number(&interpreter["id"]);
            let main = interpreter["threads"]
                .as_object()
                .unwrap()
                .values()
                .find(|thread| thread["main"] == true)
                .map(|thread| &thread["tid"]);
            for (address, said) in interpreter["tasks"].as_object().unwrap() {
                let whose = format!("task {} of interpreter {id}", said["name"]);
                if let Some(found) = found.remove(address) {
                    self.task(&whose, found, said);
                } else if id == self.newest {
                    assert_ne!(main, Some(&said["tid"]), "unexplained: no {whose}");
                    self.only_on_3_14(Kind::TasksOfOtherThreads, &|| whose.clone());
                } else {
                    self.kinds.insert(Kind::TasksOfOtherInterpreters);
                }
            }
        }
        assert!(found.is_empty(), "unexplained: tasks {found:?}");
    }

    fn task(&mut self, whose: &str, found: &Value, said: &Value) {
        self.text(whose, &found["name"], &said["name"]);
        let (shown, all) = (array(&found["coroutine"]), array(&said["coroutine"]));
        assert!(shown.len() <= all.len(), "unexplained: {whose}: {found}");
        for (found, said) in shown.iter().zip(all) {
            self.frame(whose, found, said);
        }
        if shown.len() < all.len() {
            self.kinds.insert(if said["state"] == "Running" {
                Kind::RunningTask
            } else {
                Kind::NotLookedThrough
            });
        }
        let ids = |of: &Value| -> BTreeSet<String> {
            array(of)
                .iter()
                .map(|id| id.as_str().unwrap().to_owned())
                .collect()
        };
        let (found, said) = (ids(&found["awaitedBy"]), ids(&said["awaitedBy"]));
        if found.len() == said.len() && found != said {
            self.kinds.insert(Kind::RemovedWaiter);
        } else if found != said {
            assert!(found.is_superset(&said), "unexplained: {whose}: {found:?}");
            self.kinds.insert(Kind::FutureAsWaiter);
        }
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}
