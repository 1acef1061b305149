//! Programs in which a script has it harder.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{BUSY, Python, Target, VERSIONS, answer, assert_same, inventory, program, value};
use crate::live::Start;
use crate::stopping::stopped_with;

fn plain(python: Python, program: &str) -> Target {
    Start {
        python,
        program,
        ..Start::default()
    }
    .start()
}

#[test]
fn a_bare_interpreter() {
    for python in VERSIONS {
        let path = format!("/usr/bin/python{}", python.version());
        for options in [
            &["-S", "-E", "-I"][..],
            &["-B", "-OO"],
            &["-X", "dev"],
            &["-W", "error"],
        ] {
            let program = [
                "-u",
                "-c",
                "import sys\nprint('ready', flush=True)\nwhile True: pass",
            ];
            let command = [&[path.as_str()][..], options, &program].concat();
            let target = Start {
                python,
                command: &command,
                env: &[("PYTHONDONTWRITEBYTECODE", "1")],
                ..Start::default()
            }
            .start();
            let modules = value(&target, "import sys\nlen(sys.modules)");
            let answer = answer(&target, "print('out')\nx = [1]\nx", &[]);
            assert_eq!(
                (&answer["stdout"], &answer["valueJSON"], &answer["stderr"]),
                (&json!("out\n"), &json!("[1]"), &json!("")),
                "{answer:#}"
            );
            let (_, answer) = target.exec("assert 1 / 0", &[]);
            let raised = if options.contains(&"-OO") {
                json!(null)
            } else {
                json!("ZeroDivisionError")
            };
            assert_eq!(
                answer["exception"]["type"], raised,
                "-O is for the program's asserts and the script's: {answer:#}"
            );
            assert_eq!(value(&target, "import sys\nlen(sys.modules)"), modules);
        }
    }
}

#[test]
fn where_context_variables_are_an_extension_that_is_not_loaded() {
    for python in VERSIONS {
        let target = plain(
            python,
            "import _imp, sys\nis_builtin = _imp.is_builtin\n_imp.is_builtin = lambda name: 0 if name == '_contextvars' else is_builtin(name)\nassert '_contextvars' not in sys.modules\nprint('ready', flush=True)\nwhile True: pass",
        );
        for _ in 0..2 {
            let answer = answer(
                &target,
                "import sys\nprint('out')\nprint('err', file=sys.stderr)\n'_contextvars' in sys.modules",
                &[],
            );
            assert_eq!(
                (&answer["stdout"], &answer["stderr"], &answer["value"]),
                (&json!("out\n"), &json!("err\n"), &json!("False")),
                "{answer:#}"
            );
            assert_eq!(
                value(
                    &target,
                    "import sys\nsys.__stdout__ is frame.f_globals['sys'].__stdout__"
                ),
                "True"
            );
        }
        let (_, answer) = target.exec("while True: pass", &["--timeout", "1s"]);
        assert_eq!(
            (&answer["reason"], &answer["stillRunning"]),
            (&json!("ScriptTimeout"), &json!(false)),
            "{answer:#}"
        );
    }
}

#[test]
fn inside_another_interpreter() {
    for python in VERSIONS {
        let inside = "import asyncio, os, sys\nsame = sys.stdout, sys.stderr\nasync def main():\n    os.write({ready}, b'1')\n    while True: await asyncio.sleep(0.001)\nasyncio.run(main())";
        let target = program(
            python,
            &format!(
                "import concurrent.interpreters as interpreters\nreads, ready = os.pipe()\none = interpreters.create()\nthreading.Thread(target=one.exec, args=({inside:?}.format(ready=ready),)).start()\nos.read(reads, 1)\nprint('ready', flush=True)\nwhile True: pass"
            ),
        );
        let before = inventory(&target);
        let script = "import sys\nfrom concurrent import interpreters\nprint('inside')\ninterpreters.get_current().id, sys.modules['__main__'].same[0] is sys.__stdout__";
        for (wake, script) in [
            ("", script.to_owned()),
            (
                "await ",
                script.replace(
                    "print('inside')",
                    "import asyncio\nawait asyncio.sleep(0.01)\nprint('inside')",
                ),
            ),
        ] {
            let answer = answer(&target, &script, &["--interpreter", "1"]);
            assert_eq!(
                (&answer["value"], &answer["stdout"]),
                (&json!("(1, True)"), &json!("inside\n")),
                "{wake}{answer:#}"
            );
        }
        let state = answer(
            &target,
            "import sys\nm = sys.modules['__main__']\n[sys.monitoring.get_tool(t) for t in range(6)]",
            &["--interpreter", "1"],
        );
        assert_eq!(state["value"], "[None, None, None, None, None, None]");
        for script in [
            "while True: pass",
            "import asyncio\nawait asyncio.sleep(3600)",
        ] {
            let (_, answer) = target.exec(script, &["--interpreter", "1", "--timeout", "1s"]);
            assert_eq!(
                (&answer["reason"], &answer["stillRunning"]),
                (&json!("ScriptTimeout"), &json!(false)),
                "{answer:#}"
            );
            let state = super::answer(
                &target,
                "import sys, _imp\n[sys.monitoring.get_tool(t) for t in range(6)], [n for n in vars(_imp) if 'sidewinder ' in n and len(n) < 12]",
                &["--interpreter", "1"],
            );
            assert_eq!(state["value"], "([None, None, None, None, None, None], [])");
        }
        assert_same(&target, &before, &[], "");
    }
}

#[test]
fn a_program_without_streams_and_one_that_replaces_them() {
    for python in VERSIONS {
        let report = "def report(): print([getattr(sys, name, 'absent') for name in ('stdout', 'stderr')], file=sys.__stdout__, flush=True)\n";
        for (set, shown) in [
            ("sys.stdout = sys.stderr = None", "[None, None]"),
            ("del sys.stdout, sys.stderr", "['absent', 'absent']"),
        ] {
            let target = plain(
                python,
                &format!(
                    "import signal, sys, threading\n{report}signal.signal(signal.SIGUSR1, lambda *_: report())\ndef other():\n    while True: print('nothing', flush=True)\n{set}\nif {}: threading.Thread(target=other, daemon=True).start()\nprint('ready', file=sys.__stdout__, flush=True)\nwhile True: pass",
                    if set.contains("None") {
                        "True"
                    } else {
                        "False"
                    }
                ),
            );
            let answer = answer(
                &target,
                "import sys, time\nprint('out', flush=True)\nprint('err', file=sys.stderr)\nfor _ in range(20):\n    time.sleep(0.001)\nfor _ in range(9): print('more')",
                &[],
            );
            assert_eq!(
                (answer["stdout"].as_str().unwrap().len(), &answer["stderr"]),
                (49, &json!("err\n")),
                "{answer:#}"
            );
            kill(Pid::from_raw(target.pid), Signal::SIGUSR1).unwrap();
            assert_eq!(target.line(), shown);
        }
        let target = program(
            python,
            "import io\nprint('ready', flush=True)\nwhile True: pass",
        );
        // By the script, to stay; and by another thread, which puts back what it found.
        value(
            &target,
            "import io, sys\nsys.stdout = io.StringIO()\nprint('into the new one')\n0",
        );
        assert_eq!(
            value(
                &target,
                "import sys\nsys.__stdout__.write(frame.f_globals['sys'].modules['sys'].stdout.original.getvalue()) if hasattr(sys.stdout, 'original') else 0"
            ),
            "0"
        );
        let answer = super::answer(
            &target,
            "import sys\nprint('mine')\nsys.stdout = sys.__stdout__\nprint('application', flush=True)",
            &[],
        );
        assert_eq!(answer["stdout"], "mine\n", "{answer:#}");
        assert_eq!(target.line(), "application");
        let before = inventory(&target);
        let answer = super::answer(
            &target,
            "import contextlib, io, sys, threading\nentered, leave = threading.Event(), threading.Event()\ndef other():\n    with contextlib.redirect_stdout(io.StringIO()):\n        entered.set()\n        leave.wait()\nt = threading.Thread(target=other)\nt.start()\nentered.wait()\nprint('not mine')\nleave.set()\nt.join()\nprint('mine')",
            &[],
        );
        assert_eq!(answer["stdout"], "mine\n", "{answer:#}");
        assert_same(&target, &before, &["modules", "importers"], "");
    }
}

#[test]
fn a_traced_and_a_profiled_program() {
    let traced = "
files = set()
def tracing(frame, event, arg):
    files.add(frame.f_code.co_filename)
    return tracing if frame.f_code.co_name == 'work' else None
def profiling(frame, event, arg): files.add(frame.f_code.co_filename)
def work():
    while True: time.sleep(0.0005)
import time
print('ready', flush=True)
SET(TRACE)
work()
";
    for python in VERSIONS {
        for (set, trace) in [("sys.settrace", "tracing"), ("sys.setprofile", "profiling")] {
            let target = program(python, &traced.replace("SET", set).replace("TRACE", trace));
            let before = inventory(&target);
            let answer = answer(&target, "def f():\n    return 1 + 1\nprint(f())\nf()", &[]);
            assert_eq!(
                (&answer["stdout"], &answer["value"], &answer["stderr"]),
                (&json!("2\n"), &json!("2"), &json!("")),
                "{answer:#}"
            );
            // It may be in the function that traces, where no tool is called.
            stopped_with(&target, Signal::SIGURG, "while True: pass");
            assert_same(&target, &before, &[], set);
            // Whatever collects coverage sees only names that it leaves out.
            let seen = value(
                &target,
                "f = frame\nwhile 'files' not in f.f_globals: f = f.f_back\nsorted(name for name in f.f_globals['files'] if not name.startswith('<') and not name.startswith('/usr/'))",
            );
            assert_eq!(seen, "[]");
        }
        // A tool that watches all code keeps its events and its callbacks.
        let target = program(
            python,
            "lines = [0]\ndef line(code, number): lines[0] += 1\nevents = sys.monitoring.events\nsys.monitoring.use_tool_id(1, 'coverage')\nsys.monitoring.register_callback(1, events.LINE, line)\nsys.monitoring.set_events(1, events.LINE)\nimport time\nprint('ready', flush=True)\nwhile True: time.sleep(0.0005)",
        );
        let before = inventory(&target);
        // It may be in the function that traces, where no tool is called.
        stopped_with(&target, Signal::SIGURG, "while True: pass");
        assert_same(&target, &before, &[], "");
        let seen = |target: &Target| {
            value(target, "frame.f_globals['lines'][0]")
                .parse::<u64>()
                .unwrap()
        };
        let first = seen(&target);
        target.until("counting lines", |target| seen(target) > first);
    }
}

#[test]
fn a_recursion_that_has_few_frames_left() {
    for python in VERSIONS {
        for left in [0, 1, 2, 5, 20, 100, 160] {
            let target = program(
                python,
                &format!(
                    "def deep(calls):\n    if calls: return deep(calls - 1)\n    print('ready', flush=True)\n    x = 0\n    while True: x += 1\ndef measure(calls):\n    try: return measure(calls + 1)\n    except RecursionError: return calls\ndeep(measure(0) - {left})"
                ),
            );
            let (_, answer) = target.exec("def f(n):\n    if n: return f(n - 1)\n    return len(thread_frames()) > 700, frame.f_code.co_name\nf(30)", &[]);
            if left == 0 && answer["reason"] == "TargetBlocked" {
                // There is no frame even for the interpreter's own attempt, and it says so on the program's stderr.
                continue;
            }
            match answer["exception"]["type"].as_str() {
                None => assert_eq!(answer["value"], "(True, 'deep')", "{left}: {answer:#}"),
                // None for the wrapper: it is said.
                Some(kind) => assert_eq!((kind, left < 2), ("RecursionError", true), "{answer:#}"),
            }
            if left > 5 {
                // A script's own recursion ends as it does elsewhere.
                let (_, answer) = target.exec("def f(): f()\nf()", &[]);
                assert_eq!(answer["exception"]["type"], "RecursionError", "{answer:#}");
                let (_, answer) = target.exec("while True: pass", &["--timeout", "1s"]);
                assert_eq!(
                    (&answer["reason"], &answer["stillRunning"]),
                    (&json!("ScriptTimeout"), &json!(false)),
                    "{answer:#}"
                );
                assert_eq!(
                    value(
                        &target,
                        "import sys\nsys.getrecursionlimit() in (1000, 1500)"
                    ),
                    "True"
                );
            }
        }
    }
}

#[test]
fn names_that_mean_something_else() {
    for python in VERSIONS {
        for replaced in ["print", "open", "__import__", "repr", "input", "sum"] {
            let target = program(
                python,
                &format!(
                    "def other(*args, **kwargs): raise SystemError('replaced')\nprint('ready', flush=True)\nbuiltins.{replaced} = other\nwhile True: pass"
                ),
            );
            let (_, answer) = target.exec("frame.f_code.co_name", &[]);
            let value = &answer["value"];
            match replaced {
                // The interpreter itself imports, to open the script.
                "__import__" => assert_eq!(answer["reason"], "PermissionDenied", "{answer:#}"),
                "repr" => assert_eq!(
                    value, "<str object whose repr() raised SystemError>",
                    "{answer:#}"
                ),
                _ => assert_eq!(value, "'<module>'", "{replaced}: {answer:#}"),
            }
            let (_, answer) = target.exec("print(1)\nopen('/')", &[]);
            match replaced {
                "__import__" => assert_eq!(answer["reason"], "PermissionDenied", "{answer:#}"),
                "print" | "open" => {
                    assert_eq!(answer["exception"]["type"], "SystemError", "{answer:#}");
                }
                _ => assert_eq!(
                    answer["exception"]["type"], "IsADirectoryError",
                    "{replaced}: {answer:#}"
                ),
            }
        }
        // Code with builtins of its own, as templates and sandboxes have, does not take the script's (but the interpreter's
        // import, which opens it).
        let target = program(
            python,
            "print('ready', flush=True)\nexec('while True: pass', {'__builtins__': {'__import__': __import__}})",
        );
        assert_eq!(
            value(&target, "len([1]), list(frame.f_builtins)"),
            "(1, ['__import__'])"
        );
    }
}

#[test]
fn a_script_that_takes_things_away() {
    for python in VERSIONS {
        let target = program(python, BUSY);
        let before = inventory(&target);
        for script in [
            "import sys\nfor name in ('posix', 'time', '_io', '_signal', '_thread', '_imp', '_contextvars', 'builtins', '_frozen_importlib'):\n    frame.f_globals.setdefault('taken', {})[name] = sys.modules.pop(name, None)\nprint('done')\n1 / 0",
            "import sys\nsys.modules.update(frame.f_globals['taken'])\ndel frame.f_globals['taken']\nprint('done')\n1 / 0",
            "import sys\ndel sys.stdout, sys.stderr\n1 / 0",
            "import sys\nsys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__\n1 / 0",
            "globals().clear()\n1 / 0",
            "import sys\nf = sys._getframe().f_back\ndel f\n1 / 0",
        ] {
            let (_, answer) = target.exec(script, &[]);
            assert_eq!(
                answer["exception"]["type"], "ZeroDivisionError",
                "{script}: {answer:#}"
            );
            if script.contains("done") {
                assert_eq!(answer["stdout"], "done\n");
            }
        }
        assert_same(&target, &before, &[], "");
        // Its descriptors, all of them.
        let target = program(python, BUSY);
        let answer = answer(
            &target,
            "import os\nprint('before')\nos.closerange(0, 65536)\nprint('after')\n7",
            &[],
        );
        assert_eq!(
            (&answer["stdout"], &answer["value"]),
            (&json!("before\nafter\n"), &json!("7")),
            "{answer:#}"
        );
        let answer = super::answer(
            &target,
            "import os\nprint('again')\nos.listdir('/dev/shm') and 0",
            &[],
        );
        assert_eq!(answer["stdout"], "again\n", "{answer:#}");
        assert_eq!(target.traces().fds, []);
    }
}

#[test]
fn no_memory_left() {
    for python in VERSIONS {
        let target = program(
            python,
            "import resource\nresource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))\nprint('ready', flush=True)\nwhile True: pass",
        );
        // CPython 3.15.0 itself ends by a segmentation fault when its small pieces run out.
        let pieces = (python == Python::V3_14)
            .then_some("print('out')\nx = []\nwhile True: x.append([None] * 50)");
        for script in [
            "print('out')\nx = bytearray(1 << 30)",
            "print('out')\nx = []\nwhile True: x.append(bytearray(1 << 20))",
        ]
        .into_iter()
        .chain(pieces)
        {
            let (_, answer) = target.exec(script, &[]);
            assert_eq!(
                (&answer["reason"], &answer["exception"]["type"]),
                (&json!("ScriptError"), &json!("MemoryError")),
                "{script}: {answer:#}"
            );
            assert_eq!(answer["stdout"], "out\n");
            // What the script held is given back.
            assert_eq!(value(&target, "len(bytearray(100 << 20))"), "104857600");
        }
    }
}

#[test]
fn a_program_that_never_collects_garbage() {
    for python in VERSIONS {
        let target = program(
            python,
            "gc.disable()\nprint('ready', flush=True)\nwhile True: pass",
        );
        let blocks = |target: &Target| {
            value(target, "import sys\nsys.getallocatedblocks()")
                .parse::<i64>()
                .unwrap()
        };
        for script in [
            "print(1)\n{'a': [1]}",
            "1 / 0",
            "thread_frame()\nNone",
            "x = (",
            "import asyncio\nawait x",
        ] {
            for _ in 0..3 {
                target.exec(script, &[]);
            }
            let before = blocks(&target);
            for _ in 0..10 {
                target.exec(script, &[]);
            }
            let each = (blocks(&target) - before) / 10;
            assert!(each < 60, "{script} leaves {each} blocks behind each time");
        }
    }
}

#[test]
fn a_result_that_an_audit_hook_keeps_closed() {
    for python in VERSIONS {
        let target = program(
            python,
            "def hook(event, args):\n    if event == 'open' and 'sidewinder' in str(args[0]) and str(args[0]).endswith('.out'): raise RuntimeError('closed')\nsys.addaudithook(hook)\nran = []\nprint('ready', flush=True)\nwhile True: pass",
        );
        let before = inventory(&target);
        let (code, answer) = target.exec("frame.f_globals['ran'].append(1)", &[]);
        assert_eq!(
            (code, &answer["reason"]),
            (3, &json!("AuditHookRefused")),
            "{answer:#}"
        );
        // What could not say that it starts did not.
        assert_eq!(inventory(&target).0, before.0);
        assert_same(&target, &before, &[], "");
    }
}
