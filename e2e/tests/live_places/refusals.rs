//! Targets that do not let a script in: which of them refused is said.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sidewinder_decode::Memory as _;

use crate::live::compiled::{Folder, compile, library, root_of, shared};
use crate::live::{self, Python, Start, Target};
use crate::sidecars::{Answered, Sidecar};

const LOOP: &str = "print('ready', flush=True)\nimport time\nwhile True: time.sleep(0.01)";

/// A script is refused for this reason; what is said of it, without its name.
fn refused(target: &Target, reason: &str, code: i32) -> String {
    let before = target.traces();
    let answered = Sidecar::ptrace().exec(target, "print('ran', flush=True)", &[]);
    let Answered {
        code: got,
        document,
        said,
    } = answered;
    assert_eq!(document["reason"], reason, "{said}");
    assert_eq!(got, code, "{said}");
    assert_eq!(
        (&document["stdout"], &document["disarmed"]),
        (&"".into(), &true.into())
    );
    assert_eq!(target.traces(), before);
    said.strip_prefix(&format!("{reason}: "))
        .unwrap()
        .to_owned()
}

fn runs(target: &Target) {
    let answered = Sidecar::ptrace().exec(target, "6 * 7", &[]);
    assert_eq!(answered.document["value"], "42", "{}", answered.said);
}

fn start(python: Python, program: &str) -> Target {
    Start {
        python,
        program,
        proc: true,
        ..Start::default()
    }
    .start()
}

/// An audit hook that refuses one event, as far as a condition holds.
fn hook(event: &str, condition: &str) -> String {
    format!(
        "import sys\nsys.unraisablehook = lambda *a: None\ndef hook(event, args):\n    if event == '{event}' and {condition}: raise RuntimeError('not here')\nsys.addaudithook(hook)\n"
    )
}

fn an_audit_hook_refuses(python: Python) {
    let cases = [
        (
            "cpython.remote_debugger_script",
            "True",
            "cpython.remote_debugger_script or open",
        ),
        (
            "open",
            "'/proc/' in str(args[0])",
            "cpython.remote_debugger_script or open",
        ),
        // Of the text that runs the script.
        ("compile", "True", "at the event compile or exec"),
        (
            "exec",
            "args[0].co_filename == '<string>'",
            "at the event compile or exec",
        ),
        // Of its result.
        (
            "open",
            "str(args[0]).startswith('/proc/') and args[2] & 1",
            "open of its result",
        ),
    ];
    // Each takes as long as a script may take to give a sign of life.
    std::thread::scope(|scope| {
        for (event, condition, says) in cases {
            scope.spawn(move || {
                let target = start(python, &format!("{}{LOOP}", hook(event, condition)));
                let said = refused(&target, "AuditHookRefused", 3);
                assert!(
                    said.contains(says) && !said.contains("open_code"),
                    "{event}: {said}"
                );
            });
        }
    });
}

/// What runs before the script's own statements.
fn an_audit_hook_that_refuses_what_runs_a_script_is_told(python: Python) {
    for (event, condition) in [
        ("sys._getframe", "True"),
        ("exec", "'sidewinder wrapper' in args[0].co_filename"),
        ("exec", "args[0].co_filename == '<sidewinder>'"),
    ] {
        let target = start(python, &format!("{}{LOOP}", hook(event, condition)));
        let answered = Sidecar::ptrace().exec(&target, "6 * 7", &[]);
        assert_eq!(
            answered.document["reason"], "ScriptError",
            "{event}: {}",
            answered.said
        );
        let exception = &answered.document["exception"];
        assert_eq!(exception["type"], "RuntimeError");
        let message = exception["message"].as_str().unwrap();
        assert!(message.ends_with("not here"), "{message}");
    }
}

fn an_audit_hook_that_refuses_what_a_script_does_is_its_exception(python: Python) {
    let target = start(python, &format!("{}{LOOP}", hook("os.listdir", "True")));
    let answered = Sidecar::ptrace().exec(&target, "import os\nos.listdir('/')", &[]);
    assert_eq!(answered.document["reason"], "ScriptError");
    assert_eq!(answered.document["exception"]["type"], "RuntimeError");
    assert_eq!(answered.document["exception"]["message"], "not here");
}

fn hooks_that_are_set_before_python_starts(python: Python) {
    let version = python.version();
    let folder = Folder::new(version, "hooks");
    let library = root_of(version).join(library(version).trim_start_matches('/'));
    let options = [library.to_str().unwrap(), "-Wl,--allow-shlib-undefined"];
    compile("hooks.c", &folder.outside.join("hooks"), &options);
    let program = folder.path("hooks");
    let program = &program;
    let cases = [
        ("none", "none", None),
        ("watches", "opens", None),
        ("refuses", "none", Some("AuditHookRefused")),
        ("none", "name", Some("OpenCodeRefused")),
        ("none", "read", Some("OpenCodeRefused")),
        ("refuses", "opens", Some("AuditHookRefused")),
        ("watches", "read", Some("OpenCodeRefused")),
    ];
    let case = move |audit: &str, open_code: &str, reason: Option<&str>| {
        let target = Start {
            python,
            command: &[program, audit, open_code, LOOP],
            proc: true,
            ..Start::default()
        }
        .start();
        let Some(reason) = reason else {
            runs(&target);
            return;
        };
        let said = refused(&target, reason, 3);
        assert_eq!(said.contains("audit hook"), audit != "none", "{said}");
        assert_eq!(
            said.contains("open_code hook"),
            open_code != "none",
            "{said}"
        );
    };
    std::thread::scope(|scope| {
        for (audit, open_code, reason) in cases {
            scope.spawn(move || case(audit, open_code, reason));
        }
    });
}

/// Not one that raises: what a callback of `ctypes` raises does not reach whoever called it.
fn a_hook_to_open_code_that_python_sets(python: Python) {
    let target = start(
        python,
        &format!(
            "import ctypes, io\nseen = []\n@ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.c_void_p)\ndef opened(path, data):\n    seen.append(path)\n    return io.BytesIO(b'raise SystemExit')\nctypes.pythonapi.PyFile_SetOpenCodeHook(opened, None)\n{LOOP}"
        ),
    );
    let said = refused(&target, "OpenCodeRefused", 3);
    assert!(!said.contains("audit"), "{said}");
}

fn a_target_without_another_descriptor(python: Python) {
    let program = format!(
        "import os, resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\nopen_files = []\ntry:\n    while True: open_files.append(os.open('/', os.O_RDONLY))\nexcept OSError: pass\n{LOOP}"
    );
    let target = start(python, &program);
    let said = refused(&target, "TargetBlocked", 5);
    assert!(said.contains("RLIMIT_NOFILE"), "{said}");
}

/// What closes these rights over files to a program (landlock(7)), and to look into other processes with them.
fn landlock(rights: u64) -> String {
    format!(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nruleset = libc.syscall(444, ctypes.byref(ctypes.c_uint64({rights})), 8, 0)\nassert ruleset >= 0, 'this kernel has no Landlock'\nassert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.syscall(446, ruleset, 0) == 0\n"
    )
}

fn a_target_that_may_not_look_into_other_processes(python: Python) {
    const MAKE_SOCK: u64 = 1 << 9;
    const READ_FILE: u64 = 1 << 2;
    let target = start(python, &format!("{}{LOOP}", landlock(MAKE_SOCK)));
    let answered = Sidecar::ptrace().exec(&target, "6 * 7", &[]);
    assert_eq!(answered.document["value"], "42", "{}", answered.said);
    // Nor open any file.
    let target = start(python, &format!("{}{LOOP}", landlock(READ_FILE)));
    let said = refused(&target, "PermissionDenied", 3);
    assert!(said.contains("Landlock"), "{said}");
}

/// What stands in the place of a request in each thread.
fn slots(target: &Target) -> Vec<(bool, Vec<u8>)> {
    let process = target.process();
    target
        .support()
        .interpreters
        .iter()
        .flat_map(|interpreter| &interpreter.threads)
        .map(|thread| {
            let mut path = vec![0; thread.path_size];
            process.read(thread.path, &mut path).unwrap();
            (thread.is_pending, path)
        })
        .collect()
}

fn a_disabled_interpreter_is_never_written_to(python: Python) {
    let executable = format!("/usr/bin/python{}", python.version());
    let by_option = [
        executable.as_str(),
        "-X",
        "disable-remote-debug",
        "-c",
        LOOP,
    ];
    for (env, command) in [
        (&[("PYTHON_DISABLE_REMOTE_DEBUG", "1")][..], &[][..]),
        (&[("PYTHON_DISABLE_REMOTE_DEBUG", "")], &[]),
        (&[], &by_option),
    ] {
        let target = Start {
            python,
            program: LOOP,
            command,
            env,
            proc: true,
            ..Start::default()
        }
        .start();
        let said = refused(&target, "RemoteDebugDisabled", 3);
        assert!(said.contains("PYTHON_DISABLE_REMOTE_DEBUG"), "{said}");
        for (pending, path) in slots(&target) {
            assert!(!pending && path.iter().all(|byte| *byte == 0));
        }
    }
}

/// Ends, and stands still once the runtime has said so.
const ENDS: &str = "import os\nclass AtEnd:\n    def __del__(self, write=os.write, read=os.read, fd=os.pipe()[0]):\n        write(1, b'ending\\n')\n        read(fd, 1)\nat_end = AtEnd()\n";

fn an_interpreter_that_shuts_down_takes_no_script(python: Python) {
    let target = start(python, &format!("{ENDS}print('ready', flush=True)"));
    assert_eq!(target.line(), "ending");
    let said = refused(&target, "InterpreterFinalizing", 4);
    assert!(said.contains("shutting down"), "{said}");
}

fn an_interpreter_that_begins_to_shut_down_is_not_waited_for(python: Python) {
    // In a thread that never comes by, so that the request stays.
    let folder = Folder::new(python.version(), "shutdown");
    let library = shared("stubborn.c", &folder);
    let program = format!(
        "{ENDS}import ctypes, threading, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\nthread = threading.Thread(target=ctypes.CDLL('{library}').spin, daemon=True)\nthread.start()\nprint('ready', flush=True)\nprint(thread.native_id, flush=True)\nsignal.sigwait([signal.SIGUSR1])"
    );
    let target = start(python, &program);
    let thread = target.line();
    let exec = target.exec_start("1", &["--thread", &thread, "--start", "25s"]);
    target.until("armed", Target::armed);
    let began = Instant::now();
    kill(Pid::from_raw(target.pid), Signal::SIGUSR1).unwrap();
    assert_eq!(target.line(), "ending");
    let output = exec.wait_with_output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (
            output.status.code(),
            &document["reason"],
            &document["disarmed"]
        ),
        (Some(4), &"InterpreterFinalizing".into(), &true.into()),
        "{document}"
    );
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(!target.armed());
}

live::on_each_python! {
    a_target_that_may_not_look_into_other_processes,
    a_disabled_interpreter_is_never_written_to,
    an_interpreter_that_shuts_down_takes_no_script,
    an_interpreter_that_begins_to_shut_down_is_not_waited_for,
    an_audit_hook_refuses,
    an_audit_hook_that_refuses_what_runs_a_script_is_told,
    an_audit_hook_that_refuses_what_a_script_does_is_its_exception,
    hooks_that_are_set_before_python_starts,
    a_hook_to_open_code_that_python_sets,
    a_target_without_another_descriptor,
}
