//! Scripts in live Python processes: what they answer, what is refused, and that nothing is left behind.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

mod live;

use live::{Python, Start, Target};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const IDLE: &str = r#"
import asyncio, signal, sys
async def main():
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    def state():
        print(len(sys.modules), sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__, flush=True)
    loop.add_signal_handler(signal.SIGUSR1, state)
    print("ready", flush=True)
    while True:
        await event.wait()
        event.clear()
        print("event", flush=True)
asyncio.run(main())
"#;
const BUSY: &str = "print('ready', flush=True)\nx = 0\nwhile True: x += 1";
/// In C with the GIL: nothing makes it answer.
const STUCK: &str = "import ctypes\nprint('ready', flush=True)\nctypes.PyDLL(None).sleep(100000)";

fn stuck(target: &Target) {
    let main = u64::from(target.pid.unsigned_abs());
    target.until("stuck", |target| {
        let thread = target.process().thread(main).unwrap();
        thread
            .syscall
            .is_some_and(|syscall| syscall.name == "clock_nanosleep")
    });
}

fn an_idle_event_loop_answers_and_keeps_no_trace(python: Python) {
    let target = python.run(IDLE);
    let state = || {
        kill(Pid::from_raw(target.pid), Signal::SIGUSR1).unwrap();
        target.line()
    };
    let (before, seen) = (target.traces(), state());
    assert!(seen.ends_with("True True"), "{seen}");
    let (code, answer) = target.exec(
        "print('hello')\nimport sys\nprint('err', file=sys.stderr)\n{'a': [1, 2.5, None]}",
        &[],
    );
    assert_eq!(code, 0, "{answer}");
    assert_eq!(answer["reason"], "Succeeded");
    assert_eq!(answer["stdout"], "hello\n");
    assert_eq!(answer["stderr"], "err\n");
    assert_eq!(answer["value"], "{'a': [1, 2.5, None]}");
    assert_eq!(answer["valueJSON"], r#"{"a": [1, 2.5, null]}"#);
    assert_eq!(answer["wake"], "Interrupt");
    assert_eq!(answer["disarmed"], true);
    assert_eq!(target.traces(), before);
    assert_eq!(state(), seen);
}

fn what_a_script_schedules_is_noticed_at_once(python: Python) {
    let target = python.run(IDLE);
    let (_, answer) = target.exec("while frame.f_code.co_name != 'main' and frame.f_back: frame = frame.f_back\nimport gc, asyncio\nfor o in gc.get_objects():\n    if type(o) is asyncio.Event: o.set()\n", &[]);
    assert_eq!(answer["reason"], "Succeeded", "{answer}");
    assert_eq!(target.line(), "event");
}

fn a_busy_loop_answers_by_itself(python: Python) {
    let target = python.run(BUSY);
    let (code, answer) = target.exec(
        "frame.f_globals['x'] > 0, frame.f_code.co_name",
        &["--wake", "never"],
    );
    assert_eq!(
        (code, &answer["value"]),
        (0, &"(True, '<module>')".into()),
        "{answer}"
    );
    assert_eq!(answer["wake"], "None");
}

fn a_main_thread_that_keeps_the_gil_is_said_to_be_blocked_and_left_disarmed(python: Python) {
    let target = python.run(STUCK);
    stuck(&target);
    let before = target.traces();
    let (code, answer) = target.exec("1", &["--start", "400ms"]);
    assert_eq!(code, 5, "{answer}");
    assert_eq!(answer["reason"], "TargetBlocked");
    assert_eq!(answer["disarmed"], true);
    let main = &answer["stacks"]["interpreters"][0]["threads"][0];
    assert_eq!(main["syscall"]["name"], "clock_nanosleep", "{main}");
    assert_eq!(
        main["frames"].as_array().unwrap().last().unwrap()["line"],
        3,
        "{main}"
    );
    assert_eq!(target.traces(), before);
}

fn every_exception_is_data(python: Python) {
    let target = python.run(BUSY);
    for (script, kind, message, traceback) in [
        (
            "def f():\n    1 / 0\nf()",
            "ZeroDivisionError",
            "division by zero",
            "line 2, in f\n    1 / 0\n",
        ),
        (
            "raise SystemExit(3)",
            "SystemExit",
            "3",
            "raise SystemExit(3)",
        ),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", "", "line 1"),
        (
            "a = (",
            "SyntaxError",
            "'(' was never closed (<sidewinder>, line 1)",
            "    a = (\n        ^\n",
        ),
        (
            "print(1)\0print(2)",
            "SyntaxError",
            "source code string cannot contain null bytes",
            "null bytes",
        ),
        (
            "class E(Exception): pass\nraise E('é')",
            "__main__.E",
            "é",
            "__main__.E: é",
        ),
        (
            "try:\n    1/0\nexcept Exception as e:\n    raise OSError('x') from e",
            "OSError",
            "x",
            "direct cause",
        ),
    ] {
        let (code, answer) = target.exec(script, &[]);
        assert_eq!(
            (code, &answer["reason"]),
            (1, &"ScriptError".into()),
            "{script}: {answer}"
        );
        assert_eq!(answer["exception"]["type"], kind);
        assert_eq!(answer["exception"]["message"], message);
        let shown = answer["exception"]["traceback"].as_str().unwrap();
        assert!(shown.contains(traceback), "{shown}");
        assert_eq!(answer["signals"].as_array().unwrap().len(), 0, "{answer}");
    }
}

fn ten_megabytes_come_whole_and_forty_come_cut(python: Python) {
    let target = python.run(BUSY);
    let (_, answer) = target.exec("for i in range(100_000): print('x' * 99)", &[]);
    assert_eq!(answer["stdout"].as_str().unwrap().len(), 10_000_000);
    assert_eq!(answer["clipped"], serde_json::json!({}));
    let (_, answer) = target.exec("print('a' + 'x' * (40 << 20) + 'z')", &[]);
    let stdout = answer["stdout"].as_str().unwrap();
    assert!(stdout.starts_with("axx") && stdout.ends_with("xz\n"));
    assert!(stdout.len() <= (16 << 20) + 64, "{}", stdout.len());
    assert_eq!(answer["clipped"]["stdout"], (40 << 20) + 3);
}

fn other_threads_keep_their_output(python: Python) {
    let target = python.run(
        "import threading, time\ndef other():\n    n = 0\n    while True:\n        n += 1\n        print('other', n, flush=True)\n        time.sleep(0.001)\nprint('ready', flush=True)\nthreading.Thread(target=other, daemon=True).start()\nwhile True: time.sleep(0.001)",
    );
    let (_, answer) = target.exec(
        "import time\nfor i in range(50):\n    print('mine', i)\n    time.sleep(0.002)",
        &["--thread", "any"],
    );
    let mine: Vec<String> = (0..50).map(|i| format!("mine {i}\n")).collect();
    assert_eq!(answer["stdout"], mine.concat(), "{answer}");
    for n in 1..100 {
        assert_eq!(target.line(), format!("other {n}"));
    }
}

/// After a script was stopped: its events are off, its tool is free, and the next script runs.
fn answers_as_before(target: &Target) {
    let (code, answer) = target.exec(
        "import sys\n[sys.monitoring.get_tool(tool) for tool in range(6)], frame.f_code.co_name",
        &[],
    );
    assert_eq!(
        (code, &answer["value"]),
        (
            0,
            &"([None, None, None, None, None, None], '<module>')".into()
        ),
        "{answer}"
    );
}

fn a_script_that_never_ends_is_stopped_and_has_its_output_so_far(python: Python) {
    for script in [
        "print('first')\nwhile True: pass",
        "print('first')\ndef f(n):\n    if n: f(n - 1); f(n - 1)\nf(64)",
        "print('first')\nsum(1 for _ in iter(int, 1))",
        "print('first')\nwhile True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "print('first')\ntry: pass\nfinally:\n    while True: pass",
        "print('first')\nexec('while True: pass')",
        "print('first')\nimport asyncio\nasync def main():\n    while True: await asyncio.sleep(0)\nasyncio.run(main())",
        "print('first')\nimport time\nwhile True: time.sleep(0.01)",
    ] {
        let target = python.run(BUSY);
        let before = target.traces();
        let (code, answer) = target.exec(script, &["--timeout", "1s"]);
        assert_eq!(
            (code, &answer["reason"]),
            (5, &"ScriptTimeout".into()),
            "{answer}"
        );
        assert_eq!(answer["stdout"], "first\n");
        assert_eq!(answer["stillRunning"], false, "{script}: {answer}");
        assert_eq!(answer["disarmed"], true);
        assert_eq!(answer["exception"]["type"], "SystemExit", "{answer}");
        assert!(
            answer["stacks"].to_string().contains("<sidewinder>"),
            "{answer}"
        );
        assert_eq!(target.traces(), before);
        answers_as_before(&target);
    }
}

fn what_a_stopped_script_has_to_undo_is_undone(python: Python) {
    let target = python.run(BUSY);
    let (_, answer) = target.exec(
        "try:\n    while True: pass\nfinally:\n    for i in range(3): print('undone', i)",
        &["--timeout", "1s"],
    );
    assert_eq!(
        (&answer["stdout"], &answer["stillRunning"]),
        (&"undone 0\nundone 1\nundone 2\n".into(), &false.into()),
        "{answer}"
    );
}

fn an_interrupted_command_stops_its_script(python: Python) {
    let target = python.run(BUSY);
    let folder = target.path("/tmp");
    let name = format!("sidewinder-test-{}", target.pid);
    let script = format!("open('/tmp/{name}', 'w').close()\nwhile True: pass");
    let exec = target.exec_start(&script, &[]);
    target.until("running", |_| folder.join(&name).exists());
    std::fs::remove_file(folder.join(&name)).unwrap();
    kill(
        Pid::from_raw(i32::try_from(exec.id()).unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    let output = exec.wait_with_output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(130), "{answer}");
    assert_eq!(
        (&answer["reason"], &answer["stillRunning"]),
        (&"Cancelled".into(), &false.into()),
        "{answer}"
    );
    answers_as_before(&target);
}

fn a_script_that_cannot_be_stopped_is_said_to_run_and_blocks_the_next(python: Python) {
    let target = python.run(BUSY);
    let (code, answer) = target.exec(
        "print('first')\nimport ctypes\nctypes.PyDLL(None).sleep(1000)",
        &["--timeout", "1s"],
    );
    assert_eq!(
        (code, &answer["reason"], &answer["stillRunning"]),
        (5, &"ScriptTimeout".into(), &true.into()),
        "{answer}"
    );
    assert_eq!(
        (&answer["stdout"], &answer["disarmed"]),
        (&"first\n".into(), &true.into()),
        "{answer}"
    );
    assert!(!target.armed());
    let (code, answer) = target.exec("1", &["--timeout", "1s"]);
    assert_eq!(
        (code, &answer["reason"]),
        (5, &"TargetBusy".into()),
        "{answer}"
    );
}

fn a_script_that_ends_the_process_is_told_from_one_that_fails(python: Python) {
    let target = python.run(BUSY);
    let (code, answer) = target.exec("import os\nprint('bye')\nos._exit(3)", &[]);
    assert_eq!(
        (code, &answer["reason"], &answer["stdout"]),
        (4, &"TargetExited".into(), &"bye\n".into()),
        "{answer}"
    );
}

fn a_forked_copy_ends_with_the_script(python: Python) {
    let target = python.run(BUSY);
    let (_, answer) = target.exec(
        "import os\npid = os.fork()\nif pid: print(os.waitpid(pid, 0)[1])",
        &[],
    );
    assert_eq!(
        (&answer["reason"], &answer["stdout"]),
        (&"Succeeded".into(), &"0\n".into()),
        "{answer}"
    );
}

fn a_signal_that_a_script_consumed_reaches_the_application(python: Python) {
    for proc in [false, true] {
        let target = Start {
            python,
            program: "print('ready', flush=True)\ntry:\n    while True: pass\nexcept KeyboardInterrupt: print('application', flush=True)\nwhile True: pass",
            proc,
            ..Start::default()
        }
        .start();
        let (_, answer) = target.exec(
            "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(10)",
            &[],
        );
        assert_eq!(answer["exception"]["type"], "KeyboardInterrupt", "{answer}");
        assert_eq!(answer["signals"], serde_json::json!(["SIGINT"]));
        assert_eq!(target.line(), "application");
    }
}

fn a_missing_thread_or_interpreter_is_named(python: Python) {
    let target = python.run(BUSY);
    let (code, answer) = target.exec("1", &["--thread", "1"]);
    assert_eq!(code, 4, "{answer}");
    let (code, answer) = target.exec("1", &["--interpreter", "7"]);
    assert_eq!(code, 4, "{answer}");
    assert!(!target.armed());
}

fn commands_side_by_side_take_turns_at_the_target(python: Python) {
    let target =
        python.run("import time\nprint('ready', flush=True)\nwhile True: time.sleep(0.001)");
    let before = target.traces();
    for round in 0..6 {
        let started: Vec<_> = (0..4)
            .map(|each| target.exec_start(&format!("{round}, {each}"), &[]))
            .collect();
        for (each, command) in started.into_iter().enumerate() {
            let output = command.wait_with_output().unwrap();
            let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(
                (output.status.code(), &answer["value"]),
                (Some(0), &format!("({round}, {each})").into()),
                "{answer}"
            );
        }
    }
    assert_eq!(target.traces(), before);
}

live::on_each_python! {
    an_idle_event_loop_answers_and_keeps_no_trace,
    what_a_script_schedules_is_noticed_at_once,
    a_busy_loop_answers_by_itself,
    a_main_thread_that_keeps_the_gil_is_said_to_be_blocked_and_left_disarmed,
    every_exception_is_data,
    ten_megabytes_come_whole_and_forty_come_cut,
    other_threads_keep_their_output,
    a_script_that_never_ends_is_stopped_and_has_its_output_so_far,
    what_a_stopped_script_has_to_undo_is_undone,
    an_interrupted_command_stops_its_script,
    a_script_that_cannot_be_stopped_is_said_to_run_and_blocks_the_next,
    a_script_that_ends_the_process_is_told_from_one_that_fails,
    a_forked_copy_ends_with_the_script,
    a_signal_that_a_script_consumed_reaches_the_application,
    a_missing_thread_or_interpreter_is_named,
    commands_side_by_side_take_turns_at_the_target,
}
