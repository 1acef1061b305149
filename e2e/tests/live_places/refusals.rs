//! Targets that do not let a script in: which of them refused is said.

use crate::live::compiled::{Folder, compile, library, root_of};
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
    for (event, condition, says) in [
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
        (
            "exec",
            "args[0].co_filename == '<string>'",
            "at the event exec",
        ),
    ] {
        let target = start(python, &format!("{}{LOOP}", hook(event, condition)));
        let said = refused(&target, "AuditHookRefused", 3);
        assert!(
            said.contains(says) && !said.contains("open_code"),
            "{event}: {said}"
        );
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
    for (audit, open_code, reason) in [
        ("none", "none", None),
        ("watches", "opens", None),
        ("refuses", "none", Some("AuditHookRefused")),
        ("none", "name", Some("OpenCodeRefused")),
        ("none", "read", Some("OpenCodeRefused")),
        ("refuses", "opens", Some("AuditHookRefused")),
        ("watches", "read", Some("OpenCodeRefused")),
    ] {
        let target = Start {
            python,
            command: &[&program, audit, open_code, LOOP],
            proc: true,
            ..Start::default()
        }
        .start();
        let Some(reason) = reason else {
            runs(&target);
            continue;
        };
        let said = refused(&target, reason, 3);
        assert_eq!(said.contains("audit hook"), audit != "none", "{said}");
        assert_eq!(
            said.contains("open_code hook"),
            open_code != "none",
            "{said}"
        );
    }
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

live::on_each_python! {
    an_audit_hook_refuses,
    an_audit_hook_that_refuses_what_a_script_does_is_its_exception,
    hooks_that_are_set_before_python_starts,
    a_hook_to_open_code_that_python_sets,
    a_target_without_another_descriptor,
}
