//! Somebody else's debugger: neither breaks the other.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::live::{self, LIMIT, Python, Start, Target};
use crate::sidecars::{Answered, Sidecar};

const LOOP: &str = "print('ready', flush=True)\nimport time\nwhile True: time.sleep(0.01)";
/// In C with the GIL, until a byte comes: nothing makes it answer.
const STUCK: &str = "import ctypes, os, time\ngo, goes = os.pipe()\nprint('ready', flush=True)\nprint(goes, flush=True)\nctypes.PyDLL(None).read(go, ctypes.create_string_buffer(1), 1)\nprint('on', flush=True)\nwhile True: time.sleep(0.01)";

fn start(python: Python, program: &str) -> Target {
    Start {
        python,
        program,
        proc: true,
        ..Start::default()
    }
    .start()
}

/// Has a target that is [`STUCK`] go on.
fn go_on(target: &Target, goes: &str) {
    std::fs::write(format!("/proc/{}/fd/{goes}", target.pid), "x").unwrap();
    assert_eq!(target.line(), "on");
}

fn main_thread(target: &Target) -> Pid {
    Pid::from_raw(target.pid)
}

fn tracer(target: &Target) -> i32 {
    target.process().status().unwrap().tracer
}

fn runs(target: &Target) {
    let answered = Sidecar::ptrace().exec(target, "6 * 7", &[]);
    assert_eq!(answered.document["value"], "42", "{}", answered.said);
}

/// A script is refused since somebody else has the target, which stays as it is.
fn busy(target: &Target, says: &str) {
    let before = target.traces();
    for wake in ["auto", "interrupt", "never"] {
        let Answered {
            code,
            document,
            said,
        } = Sidecar::ptrace().exec(target, "print('ran')", &["--wake", wake]);
        assert_eq!(
            (code, &document["reason"], &document["disarmed"]),
            (5, &"TargetBusy".into(), &true.into()),
            "{said}"
        );
        assert!(said.contains(says), "no {says}: {said}");
        assert_eq!(target.traces(), before);
    }
}

fn a_traced_target_is_left_to_its_tracer(python: Python) {
    let target = start(python, LOOP);
    let pid = main_thread(&target);
    ptrace::seize(pid, Options::empty()).unwrap();
    let says = format!("is traced by process {}", std::process::id());
    // It runs, and then it stands still.
    busy(&target, &says);
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
    busy(&target, &says);
    ptrace::detach(pid, None).unwrap();
    runs(&target);
}

fn one_thread_of_a_target_may_be_somebody_elses(python: Python) {
    let target = start(
        python,
        "import threading, time\nthread = threading.Thread(target=time.sleep, args=(100000,), daemon=True)\nthread.start()\nprint('ready', flush=True)\nprint(thread.native_id, flush=True)\nwhile True: time.sleep(0.01)",
    );
    let tid = target.line();
    let traced = Pid::from_raw(tid.parse().unwrap());
    ptrace::seize(traced, Options::empty()).unwrap();
    runs(&target);
    let answered = Sidecar::ptrace().exec(&target, "1", &["--thread", &tid]);
    assert_eq!(
        answered.document["reason"], "TargetBusy",
        "{}",
        answered.said
    );
    // The tracer has it still.
    ptrace::interrupt(traced).unwrap();
    waitpid(traced, Some(WaitPidFlag::__WALL)).unwrap();
    ptrace::detach(traced, None).unwrap();
    runs(&target);
}

/// Asks for a script in a target that is stuck, and waits until it is armed.
fn armed(target: &Target, start: &str) -> Child {
    let exec = target.exec_start("print('ran')", &["--start", start]);
    target.until("armed", Target::armed);
    exec
}

fn answered(exec: Child) -> (i32, Value) {
    let output = exec.wait_with_output().unwrap();
    (
        output.status.code().unwrap(),
        serde_json::from_slice(&output.stdout).unwrap(),
    )
}

fn a_tracer_that_comes_while_a_request_waits(python: Python) {
    let target = start(python, STUCK);
    let goes = target.line();
    let pid = main_thread(&target);
    // It stays until the script is not to start any longer.
    let exec = armed(&target, "1s");
    seize(pid);
    let (code, document) = answered(exec);
    assert_eq!(
        (code, &document["reason"], &document["disarmed"]),
        (5, &"TargetBusy".into(), &true.into()),
        "{document}"
    );
    assert!(!target.armed());
    assert_eq!(tracer(&target), nix::unistd::gettid().as_raw());
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
    ptrace::detach(pid, None).unwrap();
    // It goes before: the script runs.
    let exec = armed(&target, "20s");
    seize(pid);
    ptrace::interrupt(pid).unwrap();
    waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
    ptrace::detach(pid, None).unwrap();
    go_on(&target, &goes);
    let (code, document) = answered(exec);
    assert_eq!(
        (code, &document["stdout"]),
        (0, &"ran\n".into()),
        "{document}"
    );
}

/// As a debugger does it that finds another one there for a moment: a sidecar holds its target for a moment now and then.
fn seize(pid: Pid) {
    let limit = Instant::now() + LIMIT;
    while let Err(error) = ptrace::seize(pid, Options::empty()) {
        assert!(Instant::now() < limit, "{error}");
        std::thread::yield_now();
    }
}

/// A program that is ended and waited for with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn attach(target: &Target, mut command: Command) -> Running {
    sidewinder_e2e::packages::ensure(sidewinder_e2e::packages::TRACERS).unwrap();
    let running = Running(
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    target.until("attached", |target| {
        tracer(target).unsigned_abs() == running.0.id()
    });
    running
}

fn gdb_goes_on(python: Python) {
    let target = start(python, LOOP);
    let mut command = Command::new("gdb");
    command.args(["-nx", "-quiet", "-p", &target.pid.to_string()]);
    let mut gdb = attach(&target, command);
    target.until("stopped", |target| {
        target.process().stat().unwrap().state == 't'
    });
    busy(&target, &format!("is traced by process {}", gdb.0.id()));
    // It is asked something of its target, and lets go.
    let mut commands = gdb.0.stdin.take().unwrap();
    commands
        .write_all(b"info registers\ndetach\nquit\n")
        .unwrap();
    drop(commands);
    assert!(gdb.0.wait().unwrap().success());
    runs(&target);
}

fn strace_goes_on(python: Python) {
    let target = start(python, LOOP);
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", "-p", &target.pid.to_string()]);
    let mut strace = attach(&target, command);
    busy(&target, &format!("is traced by process {}", strace.0.id()));
    assert!(strace.0.try_wait().unwrap().is_none());
    let pid = Pid::from_raw(i32::try_from(strace.0.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    strace.0.wait().unwrap();
    runs(&target);
}

fn py_spy_samples_meanwhile(python: Python) {
    let target = start(python, LOOP);
    let py_spy = sidewinder_e2e::python::peers(python.version())
        .unwrap()
        .join("bin/py-spy");
    let folder = tempfile::tempdir().unwrap();
    let mut record = Command::new(py_spy)
        .args([
            "record",
            "--rate",
            "50",
            "--duration",
            "3",
            "--format",
            "raw",
        ])
        .args(["--pid", &target.pid.to_string()])
        .arg("--output")
        .arg(folder.path().join("samples"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut ran, mut refused) = (0, 0);
    while record.try_wait().unwrap().is_none() {
        let answered = Sidecar::ptrace().exec(&target, "6 * 7", &[]);
        match answered.document["reason"].as_str().unwrap() {
            "Succeeded" => ran += 1,
            "TargetBusy" => refused += 1,
            other => panic!("{other}: {}", answered.said),
        }
    }
    let output = record.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let samples = std::fs::read_to_string(folder.path().join("samples")).unwrap();
    assert!(samples.contains("<module>"), "{samples}");
    assert!(ran > refused, "{ran} ran, {refused} were refused");
    runs(&target);
}

fn a_target_that_a_signal_has_stopped_stays_stopped(python: Python) {
    let target = start(python, LOOP);
    kill(main_thread(&target), Signal::SIGSTOP).unwrap();
    target.until("stopped", |target| {
        target.process().stopped_by_signal().unwrap()
    });
    busy(&target, "is stopped by a signal");
    kill(main_thread(&target), Signal::SIGCONT).unwrap();
    runs(&target);
}

fn a_target_that_a_signal_stops_while_a_request_waits(python: Python) {
    let target = start(python, STUCK);
    let goes = target.line();
    let exec = armed(&target, "5s");
    kill(main_thread(&target), Signal::SIGSTOP).unwrap();
    let (code, document) = answered(exec);
    assert_eq!(
        (code, &document["reason"], &document["disarmed"]),
        (5, &"TargetBusy".into(), &true.into()),
        "{document}"
    );
    assert!(!target.armed());
    assert!(target.process().stopped_by_signal().unwrap());
    kill(main_thread(&target), Signal::SIGCONT).unwrap();
    go_on(&target, &goes);
    runs(&target);
}

fn another_request_is_not_touched_and_runs(python: Python) {
    let target = start(python, STUCK);
    let goes = target.line();
    let name = format!("/tmp/foreign-{}.py", target.pid);
    std::fs::write(target.path(&name), "print('foreign', flush=True)").unwrap();
    // Python's own way, in the target's root.
    let sender = format!("import sys\nsys.remote_exec({}, '{name}')", target.pid);
    let sent = Command::new("nsenter")
        .args(["--mount", "--root", "--target", &target.pid.to_string()])
        .args([
            &format!("/usr/bin/python{}", python.version()),
            "-c",
            &sender,
        ])
        .status()
        .unwrap();
    assert!(sent.success() && target.armed());
    for args in [
        ["--start", "300ms", "--wake", "auto"],
        ["--start", "300ms", "--wake", "never"],
    ] {
        let before = target.traces();
        let answered = Sidecar::ptrace().exec(&target, "print('ran')", &args);
        assert_eq!(
            (answered.code, &answered.document["reason"]),
            (5, &"TargetBusy".into()),
            "{}",
            answered.said
        );
        assert!(
            answered.said.contains("another remote execution request"),
            "{}",
            answered.said
        );
        assert_eq!(target.traces(), before);
    }
    std::fs::write(format!("/proc/{}/fd/{goes}", target.pid), "x").unwrap();
    let mut lines = [target.line(), target.line()];
    lines.sort();
    assert_eq!(lines, ["foreign", "on"]);
    std::fs::remove_file(target.path(&name)).unwrap();
    runs(&target);
}

live::on_each_python! {
    a_traced_target_is_left_to_its_tracer,
    one_thread_of_a_target_may_be_somebody_elses,
    a_tracer_that_comes_while_a_request_waits,
    gdb_goes_on,
    strace_goes_on,
    py_spy_samples_meanwhile,
    a_target_that_a_signal_has_stopped_stays_stopped,
    a_target_that_a_signal_stops_while_a_request_waits,
    another_request_is_not_touched_and_runs,
}
