//! Requests that cannot be taken back, or whose sidecar is gone.

use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::live::compiled::{Folder, shared};
use crate::live::{self, Python, Start, Target, sidecar};
use crate::places::{PRIVATE, USER, files};
use crate::sidecars::Sidecar;

/// In C with the GIL, until a byte comes: nothing makes it answer.
const STUCK: &str = "import ctypes, os, time\ngo, goes = os.pipe()\nprint('ready', flush=True)\nprint(goes, flush=True)\nctypes.PyDLL(None).read(go, ctypes.create_string_buffer(1), 1)\nprint('on', flush=True)\nwhile True: time.sleep(0.01)";

fn start(python: Python, program: &str) -> Target {
    start_with(python, program, true)
}

/// Without `/proc` in its root a script is put into files.
fn start_with(python: Python, program: &str, proc: bool) -> Target {
    Start {
        python,
        program,
        proc,
        setup: PRIVATE,
        pid_namespace: true,
        user: Some(USER),
        ..Start::default()
    }
    .start()
}

/// Writes a byte to a pipe of the target.
fn tell(target: &Target, fd: &str) {
    std::fs::write(format!("/proc/{}/fd/{fd}", target.pid), "x").unwrap();
}

fn answered(exec: Child) -> (i32, Value) {
    let output = exec.wait_with_output().unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code().unwrap(), document)
}

fn children(pid: u32) -> Vec<i32> {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|task| task.unwrap().path().join("children"))
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .map(|pid| pid.parse().unwrap())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Whether a signal has stopped every thread of a process.
fn all_stopped(pid: u32) -> bool {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .map(|task| task.unwrap().path().join("stat"))
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .all(|stat| stat.contains(") T "))
}

/// Arms a request whose sidecar is killed with the child that carries the script, so that nobody takes it back.
fn left_by_the_dead(target: &Target) {
    let mut exec = target.exec_start("print('ran', flush=True)", &["--start", "20s"]);
    target.until("armed", Target::armed);
    let pid = Pid::from_raw(i32::try_from(exec.id()).unwrap());
    // It would see that its child ends.
    kill(pid, Signal::SIGSTOP).unwrap();
    target.until("its sidecar stopped", |_| all_stopped(exec.id()));
    let carriers = children(exec.id());
    assert_eq!(carriers.len(), 1);
    for carrier in &carriers {
        kill(Pid::from_raw(*carrier), Signal::SIGKILL).unwrap();
        let ended = format!("/proc/{carrier}/stat");
        target.until("the carrier's end", |_| {
            std::fs::read_to_string(&ended).is_ok_and(|stat| stat.contains(") Z "))
        });
    }
    exec.kill().unwrap();
    exec.wait().unwrap();
    assert!(target.armed());
}

/// The target never ran what was left there.
fn goes_on(target: &Target, goes: &str) {
    tell(target, goes);
    assert_eq!(target.line(), "on");
    let (_, document) = target.exec("6 * 7", &[]);
    assert_eq!(document["value"], "42", "{document}");
}

fn a_request_goes_with_its_sidecar(python: Python) {
    for (proc, way) in [(true, 0), (false, 2)] {
        let target = start_with(python, STUCK, proc);
        let goes = target.line();
        // Long before its deadline.
        let mut exec = target.exec_start(
            "print('ran', flush=True)",
            &["--start", "90s", "--timeout", "90s"],
        );
        target.until("armed", Target::armed);
        assert_eq!(files(&target).len(), way);
        // With all that is in its process group, as a terminal does it.
        let group = Pid::from_raw(i32::try_from(exec.id()).unwrap());
        nix::sys::signal::killpg(group, Signal::SIGKILL).unwrap();
        exec.wait().unwrap();
        target.until("disarmed", |target| !target.armed());
        target.until("clean", |target| files(target).is_empty());
        goes_on(&target, &goes);
    }
}

fn what_a_killed_sidecar_and_its_carrier_left_is_taken_away_by_the_next(python: Python) {
    for (proc, way) in [(true, 0), (false, 2)] {
        let target = start_with(python, STUCK, proc);
        let goes = target.line();
        left_by_the_dead(&target);
        assert_eq!(files(&target).len(), way);
        let (code, document) = target.exec("1", &["--start", "300ms"]);
        assert_eq!(
            (code, &document["reason"], &document["disarmed"]),
            (5, &"TargetBlocked".into(), &true.into()),
            "{document}"
        );
        assert!(!target.armed() && files(&target).is_empty());
        goes_on(&target, &goes);
    }
}

fn a_request_of_a_sidecar_that_lives_is_waited_for(python: Python) {
    for proc in [true, false] {
        let target = start_with(python, STUCK, proc);
        let goes = target.line();
        let first = target.exec_start("print('first')", &["--start", "25s"]);
        target.until("armed", Target::armed);
        let (code, document) = target.exec("print('second')", &["--timeout", "300ms"]);
        assert_eq!(
            (code, &document["reason"]),
            (5, &"TargetBusy".into()),
            "{document}"
        );
        assert!(target.armed());
        tell(&target, &goes);
        assert_eq!(target.line(), "on");
        let (code, document) = answered(first);
        assert_eq!(
            (code, &document["stdout"]),
            (0, &"first\n".into()),
            "{document}"
        );
    }
}

/// An agent in the PID namespace of a target, ended with this.
struct Agent(Child);

impl Agent {
    fn start(target: &Target) -> Self {
        let shell = "mount -t tmpfs none /run && mkdir -m 1777 /run/sidewinder && exec \"$@\"";
        let agent = Command::new("nsenter")
            .args(["--pid", "--target", &target.pid.to_string()])
            .args(["unshare", "--mount-proc", "sh", "-c", shell, "sh"])
            .arg(sidecar())
            .args(["agent", "--idle-seconds", "600"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        for pid in children(self.0.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn an_agent_takes_away_what_the_dead_left_and_nothing_else(python: Python) {
    let target = start(python, STUCK);
    let goes = target.line();
    // That of a sidecar which lives.
    let exec = target.exec_start("print('ran')", &["--start", "25s"]);
    target.until("armed", Target::armed);
    // And a second process in the namespace, in which one was left.
    let inside = Command::new("nsenter")
        .args([
            "--pid",
            "--mount",
            "--root",
            "--target",
            &target.pid.to_string(),
        ])
        .args([
            &format!("/usr/bin/python{}", python.version()),
            "-u",
            "-c",
            STUCK,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let other = Target::of(inside);
    let others = other.line();
    left_by_the_dead(&other);
    let _agent = Agent::start(&target);
    // The lower number was looked at first.
    other.until("disarmed", |other| !other.armed());
    assert!(target.armed());
    tell(&target, &goes);
    assert_eq!(target.line(), "on");
    let (code, document) = answered(exec);
    assert_eq!(
        (code, &document["stdout"]),
        (0, &"ran\n".into()),
        "{document}"
    );
    goes_on(&other, &others);
}

/// A program that has a thread of [`stubborn.c`](../live/stubborn.c) change the process once it is told to. It prints where
/// that is told, and where [`STUCK`] is.
fn changed_by(library: &str, change: &str) -> String {
    format!(
        "import ctypes, os\nchange, changes = os.pipe()\nlibrary = ctypes.CDLL('{library}')\n{change}\n{STUCK}"
    )
    .replace("print(goes", "print(changes, goes")
}

fn a_request_is_taken_back_from_a_target_that_has_closed_itself(python: Python) {
    let folder = Folder::new(python.version(), "closes");
    let program = changed_by(
        &shared("stubborn.c", &folder),
        "library.undumpable_after(change)",
    );
    let target = Start {
        python,
        program: &program,
        proc: true,
        user: Some(USER),
        ..Start::default()
    }
    .start();
    let said = target.line();
    let (changes, goes) = said.split_once(' ').unwrap();
    let exec =
        Sidecar::same_user(USER).start(target.pid, "print('ran', flush=True)", &["--start", "20s"]);
    target.until("armed", Target::armed);
    tell(&target, changes);
    let (code, document) = answered(exec);
    assert_eq!(
        (code, &document["reason"], &document["disarmed"]),
        (3, &"PermissionDenied".into(), &true.into()),
        "{document}"
    );
    assert!(!target.armed());
    tell(&target, goes);
    assert_eq!(target.line(), "on");
    let answered = Sidecar::ptrace().exec(&target, "6 * 7", &[]);
    assert_eq!(answered.document["value"], "42", "{}", answered.said);
}

fn a_request_that_cannot_be_taken_back_is_still_armed(python: Python) {
    let folder = Folder::new(python.version(), "still");
    let library = shared("stubborn.c", &folder);
    let program = changed_by(
        &library,
        "slot, slots = os.pipe()\nprint('ready', flush=True)\nprint(slots, flush=True)\nlibrary.frozen_after(change, ctypes.c_void_p(int(os.read(slot, 100))))",
    );
    let target = Start {
        python,
        program: &program,
        proc: true,
        ..Start::default()
    }
    .start();
    let slots = target.line();
    let slot = target.support().interpreters[0].threads[0].pending.0;
    std::fs::write(format!("/proc/{}/fd/{slots}", target.pid), slot.to_string()).unwrap();
    assert_eq!(target.line(), "ready");
    let said = target.line();
    let (changes, _) = said.split_once(' ').unwrap();
    let exec = Sidecar::ptrace().start(target.pid, "print('ran')", &["--start", "3s"]);
    target.until("armed", Target::armed);
    tell(&target, changes);
    let output = exec.wait_with_output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (
            output.status.code(),
            &document["reason"],
            &document["disarmed"]
        ),
        (Some(6), &"StillArmed".into(), &false.into()),
        "{document}"
    );
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("its script is gone"), "{said}");
    assert!(target.armed());
}

fn a_target_that_executes_another_program_while_a_request_waits(python: Python) {
    let folder = Folder::new(python.version(), "other");
    let library = shared("stubborn.c", &folder);
    let executable = format!("/usr/bin/python{}", python.version());
    let target = Start {
        python,
        proc: true,
        program: &format!(
            "import ctypes, os, sys\nchange, changes = os.pipe()\nprogram = [b'{executable}', b'-u', b'-c', b'print(\"another\")\\nimport time\\nwhile True: time.sleep(0.01)', None]\narguments = (ctypes.c_char_p * 5)(*program)\nctypes.CDLL('{library}').other_program_after(change, arguments)\nprint('ready', flush=True)\nprint(changes, flush=True)\nctypes.PyDLL(None).sleep(100000)"
        ),
        ..Start::default()
    }
    .start();
    let changes = target.line();
    let exec = target.exec_start("print('ran', flush=True)", &["--start", "25s"]);
    target.until("armed", Target::armed);
    tell(&target, &changes);
    assert_eq!(target.line(), "another");
    let (code, document) = answered(exec);
    assert_eq!(
        (code, &document["reason"], &document["disarmed"]),
        (4, &"TargetExited".into(), &true.into()),
        "{document}"
    );
    assert!(!target.armed());
    let (_, document) = target.exec("6 * 7", &[]);
    assert_eq!(document["value"], "42", "{document}");
}

live::on_each_python! {
    a_request_goes_with_its_sidecar,
    a_request_of_a_sidecar_that_lives_is_waited_for,
    what_a_killed_sidecar_and_its_carrier_left_is_taken_away_by_the_next,
    an_agent_takes_away_what_the_dead_left_and_nothing_else,
    a_request_is_taken_back_from_a_target_that_has_closed_itself,
    a_request_that_cannot_be_taken_back_is_still_armed,
    a_target_that_executes_another_program_while_a_request_waits,
}
