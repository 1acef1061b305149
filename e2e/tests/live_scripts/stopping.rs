//! Scripts that are not to run any longer: what ends them, and that nothing of it is left.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{BUSY, Target, VERSIONS, assert_same, inventory, program, value};
use crate::live::Start;

/// Runs a script over its time, which must end it; gives the answer.
fn stopped(target: &Target, script: &str) -> Value {
    let script = format!("print('first')\n{script}");
    let (code, answer) = target.exec(&script, &["--timeout", "1s"]);
    assert_eq!(
        (
            code,
            &answer["reason"],
            &answer["stillRunning"],
            &answer["disarmed"]
        ),
        (5, &json!("ScriptTimeout"), &json!(false), &json!(true)),
        "{script}: {answer:#}"
    );
    assert!(
        answer["stdout"].as_str().unwrap().starts_with("first\n"),
        "{answer:#}"
    );
    assert!(
        answer["stacks"].to_string().contains("<sidewinder>"),
        "{answer:#}"
    );
    answer
}

#[test]
fn a_scripts_own_code_ends_at_once() {
    for python in VERSIONS {
        let target = program(python, BUSY);
        value(
            &target,
            "import contextlib, functools, threading, asyncio\n0",
        );
        let before = inventory(&target);
        for script in [
            "while True: pass",
            "def f():\n    def g():\n        while True: pass\n    g()\nf()",
            "def g():\n    while True: yield 1\nfor _ in g(): pass",
            "def g():\n    while True:\n        try: yield 1\n        except BaseException: pass\nfor _ in g(): pass",
            "[x for x in iter(int, 1)]",
            "{x: [y for y in range(10)] for x in iter(int, 1)}",
            "def f(n):\n    if n: f(n - 1); f(n - 1)\nf(64)",
            "class C:\n    while True: pass",
            "class C:\n    def __eq__(self, other): return False\n1 in iter(C, None)",
            "sorted([1, 2] * 10**6, key=lambda x: [0 for _ in range(100)])",
            "sum(map(lambda x: 1, iter(int, 1)))",
            "try:\n    while True: pass\nfinally:\n    while True: pass",
            "while True:\n    try:\n        while True:\n            try:\n                while True: pass\n            except BaseException: pass\n    except BaseException: pass",
            "import contextlib\nwhile True:\n    with contextlib.suppress(BaseException):\n        while True: pass",
            "import functools\nfunctools.reduce(lambda a, b: 0, iter(int, 1))",
            "import threading\nt = threading.Thread(target=lambda: [x for x in iter(int, 1)])\nt.start()\nwhile t.is_alive(): pass",
            "import threading\ndef f():\n    try:\n        while True: pass\n    finally: print('over', flush=True)\nt = threading.Thread(target=f)\nt.start()\nwhile True: pass",
            "def g():\n    try: yield\n    finally:\n        while True: pass\ng = g()\nnext(g)\nwhile True: pass",
            "exec('while True: pass')",
            "exec('def f():\\n    while True: pass\\nf()')",
            "eval('[x for x in iter(int, 1)]')",
            "import asyncio\nasync def main():\n    while True: await asyncio.sleep(0)\nasyncio.run(main())",
            "import asyncio\nasync def main():\n    while True:\n        try: await asyncio.sleep(0)\n        except BaseException: pass\nasyncio.run(main())",
        ] {
            let answer = stopped(&target, script);
            assert_eq!(
                answer["exception"]["type"], "SystemExit",
                "{script}: {answer:#}"
            );
            if script.contains("print('over'") {
                assert_eq!(target.line(), "over");
            }
            // What a script leaves may be wrong in ways of which Python makes a word.
            assert_same(&target, &before, &["modules", "importers"], script);
        }
    }
}

#[test]
fn what_is_asked_of_its_objects_ends_too() {
    for python in VERSIONS {
        let target = program(python, BUSY);
        let before = inventory(&target);
        for (script, kind) in [
            (
                "class C(Exception):\n    def __str__(self):\n        while True: pass\nraise C",
                json!("__main__.C"),
            ),
            // What it prints there is the script's as well.
            (
                "class C(Exception):\n    def __str__(self):\n        print('asked')\n        while True: pass\nraise C",
                json!("__main__.C"),
            ),
            (
                "class C:\n    def __repr__(self):\n        while True: pass\nC()",
                json!("SystemExit"),
            ),
        ] {
            let answer = stopped(&target, script);
            assert_eq!(
                answer["exception"].get("type").unwrap_or(&json!(null)),
                &kind,
                "{script}: {answer:#}"
            );
            assert_eq!(
                answer["stdout"].as_str().unwrap().contains("asked"),
                script.contains("asked"),
                "{script}: {answer:#}"
            );
            assert_same(&target, &before, &["modules", "importers"], script);
        }
    }
}

#[test]
fn a_library_that_does_not_end_ends_too() {
    for python in VERSIONS {
        // Another thread is in the same functions all the time.
        let target = program(
            python,
            "import difflib, textwrap\ndef compare(size): return difflib.SequenceMatcher(None, 'ab' * size, 'ab' * size, autojunk=False).ratio()\ndef other():\n    try:\n        while True: rounds.append(compare(20))\n    except BaseException as error: print('the other thread ended by', repr(error), flush=True)\nrounds = []\nthreading.Thread(target=other, daemon=True).start()\nprint('ready', flush=True)\nwhile True: pass",
        );
        let before = inventory(&target);
        for script in [
            "frame.f_globals['difflib'].SequenceMatcher(None, 'ab' * 10**5, 'ab' * 10**5, autojunk=False).ratio()",
            "f = frame.f_globals['compare']\nf(10**5)",
            "try:\n    frame.f_globals['compare'](10**5)\nfinally:\n    frame.f_globals['compare'](10**5)",
        ] {
            let answer = stopped(&target, script);
            assert_eq!(
                answer["exception"]["type"], "SystemExit",
                "{script}: {answer:#}"
            );
            assert_same(&target, &before, &["modules"], script);
        }
        let rounds: usize = value(&target, "len(frame.f_globals['rounds'])")
            .parse()
            .unwrap();
        target.until("still comparing", |target| {
            value(target, "len(frame.f_globals['rounds'])")
                .parse::<usize>()
                .unwrap()
                > rounds
        });
    }
}

#[test]
fn the_programs_own_threads_are_spared_in_functions_of_the_script() {
    for python in VERSIONS {
        let target = program(
            python,
            "def hook(): pass\ndef other():\n    try:\n        while True: hook(); calls.append(1)\n    except BaseException as error: print('the other thread ended by', repr(error), flush=True)\ncalls = []\nthreading.Thread(target=other, daemon=True).start()\nprint('ready', flush=True)\nwhile True: pass",
        );
        let answer = stopped(
            &target,
            "calls = []\ndef hook():\n    for _ in range(10): calls.append(1)\nframe.f_globals['hook'] = hook\nwhile True: pass",
        );
        assert_eq!(answer["exception"]["type"], "SystemExit", "{answer:#}");
        let calls: usize = value(&target, "len(frame.f_globals['calls'])")
            .parse()
            .unwrap();
        target.until("still calling", |target| {
            value(target, "len(frame.f_globals['calls'])")
                .parse::<usize>()
                .unwrap()
                > calls
        });
        let (_, answer) = target.exec("1", &[]);
        assert_eq!(answer["reason"], "Succeeded");
    }
}

/// Like [`stopped`], with a signal sent all the time that is ignored while nobody wants it. (The sidecar sets the flag that
/// the signal would set.)
pub(super) fn stopped_with(target: &Target, signal: Signal, script: &str) {
    let mut command = target.exec_start(&format!("print('first')\n{script}"), &["--timeout", "1s"]);
    while command.try_wait().unwrap().is_none() {
        kill(Pid::from_raw(target.pid), signal).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = command.wait_with_output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (
            &answer["reason"],
            &answer["stillRunning"],
            &answer["exception"]["type"]
        ),
        (&json!("ScriptTimeout"), &json!(false), &json!("SystemExit")),
        "{signal}: {script}: {answer:#}"
    );
    assert_eq!(
        (&answer["stdout"], &answer["stderr"], &answer["signals"]),
        (&json!("first\n"), &json!(""), &json!([]))
    );
}

#[test]
fn a_blocked_call_of_the_main_thread_ends_by_a_handler() {
    for python in VERSIONS {
        for (taken, signal) in [
            ("", Signal::SIGURG),
            (
                "signal.signal(signal.SIGURG, lambda *_: None)\n",
                Signal::SIGWINCH,
            ),
        ] {
            let target = program(python, &format!("{taken}{BUSY}"));
            value(&target, "import asyncio, re, select\n0");
            let before = inventory(&target);
            for script in [
                "import select\nselect.epoll().poll()",
                "import select\nwhile True:\n    try: select.epoll().poll()\n    except BaseException: pass",
                "import re\nre.match('(a+)+b', 'a' * 60)",
                "import asyncio\nasyncio.run(asyncio.Event().wait())",
                "class C:\n    def __repr__(self): select.epoll().poll()\nimport select\nC()",
            ] {
                stopped_with(&target, signal, script);
                assert_same(&target, &before, &["modules", "importers"], script);
            }
        }
    }
}

#[test]
fn without_a_free_tool_a_handler_ends_it() {
    for python in VERSIONS {
        let taken = "for tool in range(6): sys.monitoring.use_tool_id(tool, 'taken')\n";
        let target = program(python, &format!("{taken}{BUSY}"));
        let before = inventory(&target);
        stopped_with(&target, Signal::SIGURG, "while True: pass");
        assert_same(&target, &before, &[], "");
        // Inside a trace function, where the interpreter calls no tool.
        let target = program(
            python,
            "def tracing(*args):\n    print('ready', flush=True)\n    while True: pass\nsys.settrace(tracing)\n(lambda: 0)()",
        );
        let before = inventory(&target);
        stopped_with(&target, Signal::SIGURG, "while True: pass");
        assert_same(&target, &before, &[], "");
        // Handlers of others stay.
        let target = program(
            python,
            &format!(
                "{taken}for number in (signal.SIGURG, signal.SIGWINCH): signal.signal(number, signal.SIG_IGN)\n{BUSY}"
            ),
        );
        let (_, answer) = target.exec("while True: pass", &["--timeout", "1s"]);
        assert_eq!(
            (&answer["reason"], &answer["stillRunning"]),
            (&json!("ScriptTimeout"), &json!(true)),
            "{answer:#}"
        );
    }
}

#[test]
fn a_handler_that_is_tripped_late_does_nothing() {
    for python in VERSIONS {
        let target = program(python, BUSY);
        let before = inventory(&target);
        // While the handler stands, the application's part of the thread is none of its business: not in the wrapper, not
        // after the script.
        let answer = stopped(
            &target,
            "import os, signal\ntry:\n    while True: pass\nfinally:\n    handler = signal.getsignal(signal.SIGURG)\n    print(handler.__name__, handler(23, None), handler(23, thread_frame()))",
        );
        assert_eq!(answer["stdout"], "first\ntripped None None\n", "{answer:#}");
        assert_same(&target, &before, &[], "");
    }
}

#[test]
fn a_greenlet_that_switches_is_found() {
    for python in VERSIONS {
        let target = Start {
            python,
            program: "import gevent.monkey\ngevent.monkey.patch_all()\nimport gevent, sys\ndef other():\n    number = 0\n    while True:\n        number += 1\n        print('other', number, flush=True)\n        gevent.sleep(0.01)\ngevent.spawn(other)\nprint('ready', flush=True)\nwhile True: gevent.sleep(0)",
            env: &[("PYTHONPATH", sidewinder_e2e::python::PACKAGES)],
            ..Start::default()
        }
        .start();
        // The hub runs no script that switches, so the thread is asked until another greenlet has it.
        let script = "import gevent, sys\nif gevent.getcurrent() is gevent.get_hub(): sys.exit('hub')\nprint('first')\nfor i in range(3):\n    gevent.sleep(0.02)\n    print('mine', i)\nwhile True: gevent.sleep(0.001)";
        let answer = (0..50)
            .map(|_| target.exec(script, &["--timeout", "1s"]).1)
            .find(|answer| answer["exception"]["message"] != "hub")
            .expect("it was always the hub");
        assert_eq!(
            answer["stdout"], "first\nmine 0\nmine 1\nmine 2\n",
            "{answer:#}"
        );
        assert_eq!(
            (&answer["reason"], &answer["stillRunning"]),
            (&json!("ScriptTimeout"), &json!(false)),
            "{answer:#}"
        );
        for number in 1..50 {
            assert_eq!(target.line(), format!("other {number}"));
        }
    }
}
