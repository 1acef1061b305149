//! One blocked thread, one script, and what became of both.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, mkfifo};
use serde::Deserialize;
use serde_json::Value;
use sidewinder_linux::Process;
use sidewinder_model::{Stacks, ThreadState};

use crate::live::{LIMIT, Python, Start, Target};

/// What has been unchanged for so long is at rest.
const REST: Duration = Duration::from_millis(20);
/// How much later than its time a timed wait may end on a machine that is busy. One that had begun again would be later
/// by what was over of it, which is a third of it at least.
const LATE: Duration = Duration::from_millis(750);
/// How soon after its release a wait must be over: a connection that is asked for again and again needs seconds.
const SOON: Duration = Duration::from_secs(10);
/// Says in which thread it runs. It imports, prints and has a value, as any script may.
const SCRIPT: &str = "import threading\nprint('here')\nthreading.get_native_id()";

/// Which thread is blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Main,
    Other,
}

impl Kind {
    /// As the programs call it.
    fn word(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Other => "thread",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.pad(self.word())
    }
}

/// What is expected of the answer: words that are alternatives, for both versions or by version.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Expected {
    Both(String),
    Each(BTreeMap<String, String>),
}

/// A state as `states/__init__.py` describes it.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says one thing about a state, in any combination"
)]
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct State {
    pub(crate) name: String,
    pub(crate) title: String,
    calls: Vec<String>,
    expected: BTreeMap<String, Expected>,
    pub(crate) seconds: Option<f64>,
    again: bool,
    ends: bool,
    elsewhere: bool,
    alone: bool,
    arguments: Vec<String>,
    pub(crate) note: Option<String>,
}

impl State {
    /// The threads in which it can be.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = Kind> {
        [Kind::Main, Kind::Other]
            .into_iter()
            .filter(|kind| self.expected.contains_key(kind.word()))
    }

    /// Whether it takes a CPU.
    pub(crate) fn computes(&self) -> bool {
        self.calls.is_empty()
    }

    /// The words of which one has to be the answer's; none: any will do.
    pub(crate) fn expected(&self, kind: Kind, version: &str) -> Vec<&str> {
        let words = match &self.expected[kind.word()] {
            Expected::Both(words) => words,
            Expected::Each(by_version) => &by_version[version],
        };
        words.split_whitespace().collect()
    }
}

/// Every state.
pub(crate) fn states() -> Vec<State> {
    let folder = Folder::new();
    let target = start(Python::V3_14, folder.path(), &["list"]);
    serde_json::from_str(&target.line()).unwrap()
}

/// A folder with the programs and all they need.
struct Folder {
    folder: tempfile::TempDir,
    /// Both ends of each FIFO, so that none has to be waited for.
    fifos: Vec<File>,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let programs = sidewinder_e2e::checkout().join("e2e/tests/live_wake");
        let states = folder.path().join("states");
        std::fs::create_dir(&states).unwrap();
        std::fs::copy(programs.join("run.py"), folder.path().join("run.py")).unwrap();
        for file in std::fs::read_dir(programs.join("states")).unwrap() {
            let file = file.unwrap();
            if file.path().extension().is_some_and(|kind| kind == "py") {
                std::fs::copy(file.path(), states.join(file.file_name())).unwrap();
            }
        }
        for name in ["release", "byte", "gate"] {
            mkfifo(&folder.path().join(name), Mode::S_IRWXU).unwrap();
        }
        std::fs::write(folder.path().join("word"), [0; 4096]).unwrap();
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let pem = certified.cert.pem() + &certified.signing_key.serialize_pem();
        std::fs::write(folder.path().join("tls.pem"), pem).unwrap();
        let mut made = Self {
            folder,
            fifos: Vec::new(),
        };
        made.open(&["release", "byte"]);
        made
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn open(&mut self, names: &[&str]) {
        let paths = names.iter().map(|name| self.folder.path().join(name));
        let opened = paths.map(|path| File::options().read(true).write(true).open(path).unwrap());
        self.fifos.extend(opened);
    }

    /// Ends the wait.
    fn release(&mut self) {
        self.open(&["gate"]);
        for fifo in &mut self.fifos {
            fifo.write_all(b"x").unwrap();
        }
        // Not cut: it is mapped.
        let word = File::options().write(true).open(self.path().join("word"));
        word.unwrap().write_all(&[1]).unwrap();
    }
}

fn start(python: Python, folder: &Path, arguments: &[&str]) -> Target {
    let executable = format!("/usr/bin/python{}", python.version());
    // It forks although it has threads, which is what this warning is about.
    let ignored = "ignore::DeprecationWarning";
    let command = [
        executable.as_str(),
        "-u",
        "-B",
        "-W",
        ignored,
        "/mnt/run.py",
    ];
    Start {
        python,
        command: &[&command[..], arguments].concat(),
        env: &[
            ("PYTHONPATH", sidewinder_e2e::python::PACKAGES),
            ("TMPDIR", "/mnt"),
        ],
        proc: true,
        mnt: Some(folder.to_owned()),
        ..Start::default()
    }
    .start()
}

/// What a program says of its wait.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ended {
    /// Whether it returned, or raised, what it should.
    same: bool,
    got: String,
    expected: String,
    /// In seconds.
    took: f64,
    /// How long after the release it was over, in seconds.
    after_release: f64,
}

/// What came of a case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Saw {
    /// The system call the thread was blocked in; empty when it computed.
    pub(crate) call: String,
    /// The answer's `wake`, or its `reason` when the script did not run.
    pub(crate) came: String,
    /// What was wrong.
    pub(crate) problems: Vec<String>,
}

/// One thread in one state.
pub(crate) struct Case {
    pub(crate) state: State,
    pub(crate) kind: Kind,
    pub(crate) python: Python,
}

impl Case {
    pub(crate) fn run(&self) -> Saw {
        let mut folder = Folder::new();
        let target = start(
            self.python,
            folder.path(),
            &[&self.state.name, self.kind.word()],
        );
        let mut saw = Saw::default();
        self.with(&target, &mut folder, &mut saw);
        let stderr = std::fs::read_to_string(folder.path().join("stderr")).unwrap_or_default();
        if !stderr.is_empty() {
            saw.problems.push(format!("it wrote: {stderr}"));
        }
        saw
    }

    fn expected(&self) -> Vec<&str> {
        self.state.expected(self.kind, self.python.version())
    }

    fn with(&self, target: &Target, folder: &mut Folder, saw: &mut Saw) {
        let began = Instant::now();
        let said: Value = serde_json::from_str(&target.line()).unwrap();
        let tid = said["tid"].as_u64().unwrap();
        let process = target.process();
        let Some(call) = self.rests(&process, tid) else {
            let thread = process.thread(tid);
            saw.problems.push(format!("it is not blocked: {thread:?}"));
            return;
        };
        saw.call = call;
        if let Some(seconds) = self.state.seconds {
            let third = Duration::from_secs_f64(seconds / 3.0);
            sleep(third.saturating_sub(began.elapsed()));
        }
        let before = outside(target, tid);
        self.ask(target, tid, saw);
        let over = began.elapsed();
        let rests = self.state.ends || self.rests(&process, tid).is_some();
        if !rests {
            let thread = process.thread(tid);
            saw.problems.push(format!("it waits no more: {thread:?}"));
        }
        let after = outside(target, tid);
        let mut changed: Vec<&String> = before.symmetric_difference(&after).collect();
        if !rests || self.state.ends {
            // It went on, or is gone.
            changed.retain(|each| each.starts_with("armed"));
        }
        if !changed.is_empty() {
            saw.problems.push(format!("it changed: {changed:?}"));
        }
        folder.release();
        let ended: Ended = serde_json::from_str(&target.line()).unwrap();
        self.judge(&ended, over, saw);
        if !process.wait_exit(LIMIT) {
            saw.problems.push("it does not end".to_owned());
            return;
        }
        let exit = waitid(
            Id::Pid(Pid::from_raw(target.pid)),
            WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT,
        );
        if !matches!(exit, Ok(WaitStatus::Exited(_, 0))) {
            saw.problems.push(format!("its end: {exit:?}"));
        }
    }

    /// Has the thread run the script.
    fn ask(&self, target: &Target, tid: u64, saw: &mut Saw) {
        let asked = tid.to_string();
        // One that may not run is given the less, and its wait has to be there still.
        let blocks = self.expected().contains(&"TargetBlocked");
        let patience = if blocks || self.state.seconds.is_some() {
            "1s"
        } else {
            "3s"
        };
        let thread = if self.state.elsewhere { "auto" } else { &asked };
        let mut arguments = vec!["--thread", thread, "--start", patience];
        arguments.extend(self.state.arguments.iter().map(String::as_str));
        let (code, answer) = target.exec(SCRIPT, &arguments);
        let reason = answer["reason"].as_str().unwrap_or_default();
        let right = if reason == "Succeeded" {
            let wake = answer["wake"].as_str().unwrap_or_default();
            wake.clone_into(&mut saw.came);
            let answered = answer["thread"].to_string();
            code == 0
                && answer["stdout"] == "here\n"
                && answer["value"] == answered.as_str()
                && (answered == asked) != self.state.elsewhere
                && answer["signals"] == serde_json::json!([])
        } else {
            reason.clone_into(&mut saw.came);
            reason == "TargetBlocked" && code == 5 && self.shown(&answer["stacks"], tid)
        };
        if !right || answer["disarmed"] != true || answer["stillRunning"] != false {
            saw.problems
                .push(format!("the answer {code}: {}", brief(answer, tid)));
        }
        let expected = self.expected();
        if !expected.is_empty() && !expected.contains(&saw.came.as_str()) {
            let came = &saw.came;
            saw.problems
                .push(format!("expected {}, was {came}", expected.join(" or ")));
        }
    }

    /// Whether the stacks show where the thread is blocked.
    fn shown(&self, stacks: &Value, tid: u64) -> bool {
        let Ok(stacks) = Stacks::deserialize(stacks) else {
            return false;
        };
        stacks
            .interpreters
            .iter()
            .flat_map(|interpreter| &interpreter.threads)
            .any(|thread| {
                let call = thread.syscall.as_ref();
                let call = call.is_some_and(|call| self.state.calls.contains(&call.name));
                thread.tid == tid
                    && !thread.frames.is_empty()
                    && (call || self.state.computes() && thread.state != ThreadState::Blocked)
            })
    }

    /// Waits until the thread is blocked as it should be, or computes, and returns the name of its system call.
    fn rests(&self, process: &Process, tid: u64) -> Option<String> {
        let look = || {
            let thread = process.thread(tid)?;
            let call = thread.syscall.map(|call| call.name);
            let right = match &call {
                Some(call) => self.state.calls.contains(call),
                None => self.state.computes() && thread.state == ThreadState::Running,
            };
            // One that is blocked does not run meanwhile.
            let ran = process.schedstat(tid).filter(|_| call.is_some());
            right.then(|| (call.unwrap_or_default(), thread.arguments, ran))
        };
        let limit = Instant::now() + LIMIT;
        while Instant::now() < limit && process.alive() {
            let first = look();
            if process.wait_exit(REST) {
                return None;
            }
            if first.is_some() && look() == first {
                return first.map(|(call, ..)| call);
            }
        }
        None
    }

    /// Whether the wait was over when it should be, with what it should return. The script had run `over` after it began.
    fn judge(&self, ended: &Ended, over: Duration, saw: &mut Saw) {
        if !ended.same {
            let Ended { got, expected, .. } = ended;
            saw.problems
                .push(format!("the wait returned {got}, not {expected}"));
        }
        if let Some(seconds) = self.state.seconds {
            let late = LATE.as_secs_f64()
                + if self.state.again {
                    over.as_secs_f64()
                } else {
                    0.0
                };
            if !(seconds - 0.01..seconds + late).contains(&ended.took) {
                let took = ended.took;
                saw.problems
                    .push(format!("the wait took {took:.3} s, not {seconds} s"));
            }
        } else if !self.state.ends && !self.state.alone {
            let after = ended.after_release;
            if !(0.0..SOON.as_secs_f64()).contains(&after) {
                saw.problems
                    .push(format!("the wait was over {after:.3} s after its release"));
            }
        }
    }
}

/// What can be seen of a target from outside and must not change, one of its threads' signals among it.
fn outside(target: &Target, tid: u64) -> BTreeSet<String> {
    let traces = target.traces();
    let status = format!("/proc/{}/task/{tid}/status", target.pid);
    let status = std::fs::read_to_string(status).unwrap_or_default();
    // Pending, blocked, ignored and caught ones.
    let signals = status
        .lines()
        .filter(|line| line.starts_with("Sig") && !line.starts_with("SigQ"));
    let fds = traces.fds.iter().map(|fd| format!("fd {fd:?}"));
    let tids = traces.tids.iter().map(|tid| format!("thread {tid}"));
    fds.chain(tids)
        .chain(signals.map(str::to_owned))
        .chain([
            format!("tracer {}", traces.tracer),
            format!("stopped {}", traces.stopped),
            format!("armed {}", traces.armed),
        ])
        .collect()
}

/// An answer with no other stack than that of the thread.
fn brief(mut answer: Value, tid: u64) -> Value {
    let mut stacks = answer["stacks"].take();
    let interpreters = stacks["interpreters"].as_array_mut().into_iter().flatten();
    answer["stacks"] = interpreters
        .flat_map(|each| each["threads"].as_array_mut().into_iter().flatten())
        .filter(|thread| thread["tid"] == tid)
        .map(Value::take)
        .collect();
    answer
}

/// What a panic said.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_default()
}
