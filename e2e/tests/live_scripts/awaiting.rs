//! Scripts that await.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{BUSY, LOOP, VERSIONS, answer, assert_same, inventory, program, value};
use crate::live::{Start, Target, root_of};

#[test]
fn a_script_that_awaits_is_a_task_of_the_loop() {
    for python in VERSIONS {
        let target = program(python, LOOP);
        let before = inventory(&target);
        let answer = answer(
            &target,
            "import asyncio, sys\nprint('out')\nawait asyncio.sleep(0.05)\nprint('err', file=sys.stderr)\n\
             task = asyncio.current_task()\n(await asyncio.sleep(0.01, task.get_name()), frame.f_code.co_name)",
            &[],
        );
        assert_eq!(answer["value"], "('sidewinder', 'select')", "{answer:#}");
        assert_eq!(answer["valueJSON"], r#"["sidewinder", "select"]"#);
        assert_eq!(
            (&answer["stdout"], &answer["stderr"]),
            (&json!("out\n"), &json!("err\n"))
        );
        assert!(
            answer["durationMilliseconds"].as_u64().unwrap() >= 60,
            "{answer:#}"
        );
        assert_same(&target, &before, &[], "");
    }
}

#[test]
fn every_kind_of_top_level_await() {
    let target = program(VERSIONS[0], LOOP);
    for (script, expected) in [
        ("import asyncio\nawait asyncio.sleep(0, 1)", "1"),
        ("import asyncio\nx = await asyncio.sleep(0, 2)\nx", "2"),
        (
            "async def g():\n    yield 3\nasync for x in g(): pass\nx",
            "3",
        ),
        (
            "class C:\n    async def __aenter__(self): return 4\n    async def __aexit__(self, *a): pass\nasync with C() as x: pass\nx",
            "4",
        ),
        ("async def g():\n    yield 5\n[x async for x in g()]", "[5]"),
        (
            "from __future__ import annotations\nimport asyncio\nawait asyncio.sleep(0)\nx: undefined = 6\nx",
            "6",
        ),
    ] {
        assert_eq!(value(&target, script), expected, "{script}");
    }
    let (code, answer) = target.exec(
        "import asyncio\nawait asyncio.sleep(0)\ndef f():\n    raise KeyError(1)\nf()",
        &[],
    );
    assert_eq!(
        (code, &answer["reason"]),
        (1, &json!("ScriptError")),
        "{answer:#}"
    );
    let shown = answer["exception"]["traceback"].as_str().unwrap();
    assert!(
        shown.ends_with("line 5, in <module>\n    f()\n  File \"<sidewinder>\", line 4, in f\n    raise KeyError(1)\nKeyError: 1\n"),
        "{shown}"
    );
    for (raised, kind) in [
        ("SystemExit(3)", "SystemExit"),
        ("KeyboardInterrupt", "KeyboardInterrupt"),
        (
            "asyncio.CancelledError",
            "asyncio.exceptions.CancelledError",
        ),
    ] {
        let (code, answer) = target.exec(
            &format!("import asyncio\nawait asyncio.sleep(0)\nraise {raised}"),
            &[],
        );
        assert_eq!(
            (code, &answer["exception"]["type"]),
            (1, &json!(kind)),
            "{answer:#}"
        );
        assert_eq!(answer["signals"], json!([]));
    }
    // The loop goes on.
    assert_eq!(
        value(&target, "import asyncio\nawait asyncio.sleep(0, 7)"),
        "7"
    );
}

#[test]
fn a_loop_of_uvloop_and_one_in_another_thread() {
    for python in VERSIONS {
        let target = Start {
            python,
            program: "import asyncio, threading, uvloop\nasync def main():\n    print('ready', flush=True)\n    while True: await asyncio.sleep(0.005)\nthreading.Thread(target=uvloop.run, args=(main(),), name='looping').start()",
            env: &[("PYTHONPATH", sidewinder_e2e::python::PACKAGES)],
            ..Start::default()
        }
        .start();
        let tid = value(
            &target,
            "import threading\n[t.native_id for t in threading.enumerate() if t.name == 'looping'][0]",
        );
        let answer = answer(
            &target,
            "import asyncio\nprint(type(asyncio.get_running_loop()).__module__)\nawait asyncio.sleep(0.01, 'slept')",
            &["--thread", &tid],
        );
        assert_eq!(
            (&answer["value"], &answer["stdout"]),
            (&json!("'slept'"), &json!("uvloop\n")),
            "{answer:#}"
        );
        let (code, answer) = target.exec(
            "import asyncio\nprint('first')\nawait asyncio.sleep(3600)",
            &["--thread", &tid, "--timeout", "1s"],
        );
        assert_eq!(
            (
                code,
                &answer["reason"],
                &answer["stillRunning"],
                &answer["stdout"]
            ),
            (5, &json!("ScriptTimeout"), &json!(false), &json!("first\n")),
            "{answer:#}"
        );
    }
}

#[test]
fn without_a_loop_there_is_a_clear_answer() {
    for python in VERSIONS {
        let target = program(python, BUSY);
        let before = inventory(&target);
        let (code, answer) = target.exec("print(1)\nawait something()", &[]);
        assert_eq!(
            (code, &answer["exception"]["type"]),
            (1, &json!("RuntimeError")),
            "{answer:#}"
        );
        let message = answer["exception"]["message"].as_str().unwrap();
        assert!(
            message.contains("no asyncio event loop runs in this thread")
                && message.contains("`tasks` shows"),
            "{message}"
        );
        assert_eq!(answer["stdout"], "");
        assert_same(&target, &before, &[], "");
    }
}

/// An event loop whose task blocks it until a file exists.
const STUCK: &str = r#"
import asyncio, os, threading, time
async def main():
    print("ready", flush=True)
    ready = asyncio.get_running_loop()._ready
    while not ready and not os.path.exists("/tmp/NAME"): time.sleep(0.001)
    print("queued", flush=True)
    while not os.path.exists("/tmp/NAME"): time.sleep(0.01)
    os.unlink("/tmp/NAME")
    print("turns", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"#;

#[test]
fn a_loop_that_does_not_turn_never_begins_the_script() {
    for python in VERSIONS {
        let name = format!(
            "sidewinder-turn-{}-{}",
            std::process::id(),
            python.version()
        );
        let target = program(python, &STUCK.replace("NAME", &name));
        let before = inventory(&target);
        let script = format!("import os\nopen('/tmp/{name}-ran', 'w').close()\nawait os");
        let (code, answer) = target.exec(&script, &["--start", "500ms"]);
        assert_eq!(
            (code, &answer["reason"]),
            (5, &json!("TargetBlocked")),
            "{answer:#}"
        );
        assert_eq!(
            (&answer["disarmed"], &answer["stillRunning"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(answer["startedAfterMilliseconds"], json!(null));
        assert!(
            answer["stacks"].to_string().contains("\"main\""),
            "{answer:#}"
        );
        assert_eq!(target.line(), "queued");
        // Nothing stands in for the streams of a script that never began.
        assert_same(&target, &before, &[], "");
        let folder = root_of(python).join("tmp");
        std::fs::write(folder.join(&name), "").unwrap();
        assert_eq!(target.line(), "turns");
        // The loop has come by what it was given, and the script has not run.
        assert_eq!(
            value(
                &target,
                "import asyncio\nawait asyncio.sleep(0)\nlen(asyncio.all_tasks())"
            ),
            "2"
        );
        assert!(!folder.join(format!("{name}-ran")).exists());
        assert_same(&target, &before, &[], "");
    }
}

#[test]
fn a_command_that_is_interrupted_before_the_loop_turns_never_begins_it() {
    for python in VERSIONS {
        let name = format!(
            "sidewinder-cancel-{}-{}",
            std::process::id(),
            python.version()
        );
        let target = program(python, &STUCK.replace("NAME", &name));
        let folder = root_of(python).join("tmp");
        let script = format!("import os\nopen('/tmp/{name}-ran', 'w').close()\nawait os");
        let mut command = target.exec_start(&script, &["--start", "20s"]);
        assert_eq!(target.line(), "queued");
        kill(
            Pid::from_raw(i32::try_from(command.id()).unwrap()),
            Signal::SIGINT,
        )
        .unwrap();
        let code = command.wait().unwrap().code();
        let answer: serde_json::Value =
            serde_json::from_reader(command.stdout.take().unwrap()).unwrap();
        assert_eq!(
            (code, &answer["reason"], &answer["disarmed"]),
            (Some(130), &json!("Cancelled"), &json!(true)),
            "{answer:#}"
        );
        std::fs::write(folder.join(&name), "").unwrap();
        assert_eq!(target.line(), "turns");
        assert_eq!(
            value(
                &target,
                "import asyncio\nawait asyncio.sleep(0)\nlen(asyncio.all_tasks())"
            ),
            "2"
        );
        assert!(!folder.join(format!("{name}-ran")).exists());
    }
}

#[test]
fn a_loop_that_turns_late_but_in_time_runs_it() {
    let target = program(
        VERSIONS[0],
        "import asyncio, time\nasync def main():\n    print('ready', flush=True)\n    while True:\n        time.sleep(0.4)\n        await asyncio.sleep(0)\nasyncio.run(main())",
    );
    assert_eq!(
        value(&target, "import asyncio\nawait asyncio.sleep(0, 'ran')"),
        "'ran'"
    );
}

#[test]
fn others_run_while_it_waits() {
    for python in VERSIONS {
        let target = program(python, LOOP);
        let before = inventory(&target);
        let waiting = target.exec_start(
            "import asyncio, builtins\nbuiltins.gate = asyncio.Event()\nprint('begun')\nawait builtins.gate.wait()\ndel builtins.gate\nprint('over')",
            &[],
        );
        target.until("waiting", |target| {
            value(target, "import builtins\nhasattr(builtins, 'gate')") == "True"
        });
        // The application's own output passes through both, and each script has its own.
        let plain = answer(
            &target,
            "import asyncio, builtins, sys\nprint('mine')\nasyncio.get_running_loop().call_soon(print, 'scheduled')\n\
             sys.__stdout__.write('direct\\n')\nsys.stdout.flush()\nbuiltins.gate.set()",
            &[],
        );
        assert_eq!(plain["stdout"], "mine\n", "{plain:#}");
        let output = waiting.wait_with_output().unwrap();
        let waiting: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&waiting["stdout"], &waiting["reason"]),
            (&json!("begun\nover\n"), &json!("Succeeded")),
            "{waiting:#}"
        );
        assert_eq!(
            (target.line(), target.line()),
            ("direct".to_owned(), "scheduled".to_owned())
        );
        assert_same(&target, &before, &[], "");
    }
}

/// After a script was stopped: the loop turns, and nothing of the script is left.
fn turns(target: &Target, tasks: &str, script: &str) {
    assert_eq!(
        value(
            target,
            "import asyncio\nawait asyncio.sleep(0)\nlen(asyncio.all_tasks())"
        ),
        tasks,
        "{script}"
    );
}

#[test]
fn the_deadline_cancels_it() {
    for python in VERSIONS {
        let target = program(python, LOOP);
        value(
            &target,
            "import asyncio, contextlib\nawait asyncio.sleep(0)\n0",
        );
        let before = inventory(&target);
        for (script, undone) in [
            ("await asyncio.sleep(3600)", ""),
            ("await asyncio.Event().wait()", ""),
            (
                "try:\n    await asyncio.Event().wait()\nfinally:\n    await asyncio.sleep(0.01)\n    print('undone')",
                "undone\n",
            ),
            (
                "while True:\n    try: await asyncio.sleep(0.01)\n    except BaseException: pass",
                "",
            ),
            (
                "while True:\n    try: await asyncio.Event().wait()\n    except BaseException: pass",
                "",
            ),
            ("while True: await asyncio.sleep(0)", ""),
            ("await asyncio.sleep(0)\nwhile True: pass", ""),
            (
                "await asyncio.sleep(0)\nwhile True:\n    try:\n        while True: pass\n    except BaseException: pass",
                "",
            ),
            (
                "await asyncio.gather(*[asyncio.sleep(3600) for _ in range(3)])",
                "",
            ),
            (
                "task = asyncio.create_task(asyncio.sleep(3600))\nawait asyncio.shield(task)",
                "",
            ),
            (
                "async def f():\n    while True: await asyncio.sleep(0)\nasyncio.create_task(f())\nawait asyncio.sleep(3600)",
                "",
            ),
        ] {
            let script = format!("import asyncio, contextlib\nprint('first')\n{script}");
            let (code, answer) = target.exec(&script, &["--timeout", "1s"]);
            assert_eq!(
                (code, &answer["reason"]),
                (5, &json!("ScriptTimeout")),
                "{script}: {answer:#}"
            );
            assert_eq!(
                answer["stdout"],
                format!("first\n{undone}"),
                "{script}: {answer:#}"
            );
            assert_eq!(
                (&answer["stillRunning"], &answer["disarmed"]),
                (&json!(false), &json!(true)),
                "{script}: {answer:#}"
            );
            assert_eq!(
                answer["exception"]["type"], "asyncio.exceptions.CancelledError",
                "{script}: {answer:#}"
            );
            turns(&target, "5", &script);
            assert_same(&target, &before, &[], &script);
        }
    }
}
