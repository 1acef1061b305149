//! An agent without a cluster: its socket lies in a mount namespace of its own, and a relay leads to it as an exec would.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest as _, Sha256};
use sidewinder_linux::carrier::LEAST_DESCRIPTOR;
use sidewinder_model::wire::{HEADER_BYTES, Header};
use sidewinder_model::{
    Action, Data, ExecOutcome, ExecRequest, Outcome, PROTOCOL, ProcessSelector, Reason, Request,
    TargetOutcome, ThreadChoice, ToAgent, ToOperator, WakePolicy,
};

use crate::live::{LIMIT, sidecar};

/// The agent's process.
pub(crate) struct Agent {
    process: Child,
    /// As whom it and its relays run: what executes them, as its last arguments.
    through: Vec<String>,
}

/// Executes its arguments with the sidecar's binary open: where that lies, another user may not go.
const WITH_BINARY: &str = "exec 9<\"$0\"; exec \"$@\"";

impl Agent {
    pub(crate) fn start() -> Self {
        Self::start_with(600)
    }

    pub(crate) fn start_with(idle_seconds: u32) -> Self {
        Self::start_as(&[], idle_seconds)
    }

    /// Under `through`, which executes the rest of its arguments as somebody.
    pub(crate) fn start_as(through: &[&str], idle_seconds: u32) -> Self {
        let shell =
            format!("mount -t tmpfs none /run && mkdir -m 1777 /run/sidewinder && {WITH_BINARY}");
        let process = Command::new("unshare")
            .args(["--mount", "sh", "-c", &shell])
            .arg(sidecar())
            .args(through)
            .args(["/proc/self/fd/9", "agent", "--idle-seconds"])
            .arg(idle_seconds.to_string())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self {
            process,
            through: through.iter().copied().map(str::to_owned).collect(),
        };
        // Until it is what it is to be, its namespace is that of the machine.
        until("the agent has its program", || {
            let program = std::fs::read_link(format!("/proc/{}/exe", agent.pid()));
            program.is_ok_and(|program| program == sidecar())
        });
        agent
    }

    /// How it ended; `None` while it runs.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// A relay to it, which has not said anything yet. What executes it comes first in `before`.
    pub(crate) fn relay(&self, before: &[&str]) -> Child {
        Command::new("nsenter")
            .arg(format!("--mount=/proc/{}/ns/mnt", self.pid()))
            .args(before)
            .args(["sh", "-c", WITH_BINARY])
            .arg(sidecar())
            .args(&self.through)
            .args(["/proc/self/fd/9", "relay"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    /// How much memory of it is there.
    pub(crate) fn resident_kilobytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        line.and_then(|line| line.split_whitespace().nth(1))
            .unwrap()
            .parse()
            .unwrap()
    }

    /// How many threads it has.
    pub(crate) fn threads(&self) -> usize {
        self.thread_names().len()
    }

    /// How many threads of this name it has.
    pub(crate) fn threads_named(&self, name: &str) -> usize {
        self.thread_names()
            .iter()
            .filter(|other| *other == name)
            .count()
    }

    fn thread_names(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let names = tasks
            .flatten()
            .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        names.map(|name| name.trim().to_owned()).collect()
    }

    /// Kills it, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Waits until it has left by itself.
    pub(crate) fn left(&mut self, limit: Duration) -> bool {
        let limit = Instant::now() + limit;
        while Instant::now() < limit {
            if self.process.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    /// A relay to it that has shaken hands.
    pub(crate) fn connect(&self) -> Relay {
        let mut process = self.relay(&[]);
        let stdin = process.stdin.take().unwrap();
        let mut stdout = process.stdout.take().unwrap();
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut header = [0; HEADER_BYTES];
            while stdout.read_exact(&mut header).is_ok() {
                let header = Header::decode(&header).unwrap();
                let mut payload = vec![0; header.length];
                if stdout.read_exact(&mut payload).is_err() {
                    return;
                }
                assert_eq!(<[u8; 32]>::from(Sha256::digest(&payload)), header.digest);
                let message: ToOperator = serde_json::from_slice(&payload).unwrap();
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut relay = Relay {
            process,
            stdin,
            messages,
            instance: String::new(),
        };
        assert!(relay.send(&ToAgent::Hello { protocol: PROTOCOL }));
        let Some(ToOperator::Hello { instance, .. }) = relay.next(LIMIT) else {
            panic!("the agent said no hello")
        };
        relay.instance = instance;
        relay
    }

    /// The children of it that carry scripts.
    pub(crate) fn carriers(&self) -> Vec<i32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid()));
        let children =
            tasks.into_iter().flatten().flatten().map(|task| {
                std::fs::read_to_string(task.path().join("children")).unwrap_or_default()
            });
        let children: Vec<i32> = children
            .flat_map(|text| {
                let pids = text.split_whitespace().map(|pid| pid.parse().unwrap());
                pids.collect::<Vec<i32>>()
            })
            .collect();
        let carries = |pid: &i32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.split(|byte| *byte == 0).nth(1) == Some(b"carrier".as_slice())
        };
        children.into_iter().filter(carries).collect()
    }

    /// Kills the child that carries the script, once it does: before that another way would be taken.
    pub(crate) fn kill_carrier(&self) {
        let ready = |pid: &i32| {
            let held = std::fs::read_dir(format!("/proc/{pid}/fd"));
            let mut high = held.into_iter().flatten().flatten().filter(|fd| {
                let number = fd.file_name().to_string_lossy().parse::<u32>();
                number.is_ok_and(|number| number >= LEAST_DESCRIPTOR)
            });
            high.any(|fd| {
                let text = std::fs::read(fd.path()).unwrap_or_default();
                text.first().is_some_and(|byte| *byte != 0)
            })
        };
        until(
            "a script is carried",
            || matches!(self.carriers().as_slice(), [one] if ready(one)),
        );
        for carrier in self.carriers() {
            kill(Pid::from_raw(carrier), Signal::SIGKILL).unwrap();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A stream to an agent.
pub(crate) struct Relay {
    process: Child,
    stdin: ChildStdin,
    messages: Receiver<ToOperator>,
    /// Of the agent that shook hands.
    pub(crate) instance: String,
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Relay {
    /// Whether it went out.
    pub(crate) fn send(&mut self, message: &ToAgent) -> bool {
        let payload = serde_json::to_vec(message).unwrap();
        let header = Header {
            length: payload.len(),
            digest: Sha256::digest(&payload).into(),
        };
        let mut frame = header.encode().unwrap().to_vec();
        frame.extend(payload);
        self.stdin.write_all(&frame).is_ok() && self.stdin.flush().is_ok()
    }

    /// The next message; `None` when the stream has ended.
    pub(crate) fn next(&self, limit: Duration) -> Option<ToOperator> {
        match self.messages.recv_timeout(limit) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the agent said nothing for {limit:?}"),
        }
    }

    /// Whether nothing is said for so long.
    pub(crate) fn is_silent(&self, limit: Duration) -> bool {
        matches!(
            self.messages.recv_timeout(limit),
            Err(RecvTimeoutError::Timeout)
        )
    }

    /// Kills the relay, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Asks for a script under an intent that names the agent at the other end.
    pub(crate) fn ask(&mut self, script: &Script) {
        let instance = self.instance.clone();
        self.ask_of(script, &instance);
    }

    pub(crate) fn ask_of(&mut self, script: &Script, instance: &str) {
        let request = script.request(instance);
        assert!(self.send(&ToAgent::Run { request }), "the relay has ended");
    }

    /// Asks, and waits until the agent has taken it.
    pub(crate) fn begin(&mut self, script: &Script) {
        self.ask(script);
        self.accepted(script);
    }

    /// Waits until the agent has taken it.
    pub(crate) fn accepted(&self, script: &Script) {
        let accepted = self.next(LIMIT);
        assert!(
            matches!(&accepted, Some(ToOperator::Accepted { id }) if *id == script.id),
            "{accepted:?}"
        );
    }

    /// Says that an outcome is safe, and waits until that has arrived.
    pub(crate) fn acknowledge(&mut self, id: &str) {
        assert!(self.send(&ToAgent::Acknowledge { id: id.into() }));
        assert!(self.send(&ToAgent::Ping));
        assert_eq!(self.next(LIMIT), Some(ToOperator::Pong));
    }

    /// The end of a request; those of others are passed over.
    pub(crate) fn end(&self, id: &str) -> End {
        loop {
            match self.next_end() {
                (ended, end) if ended == id || matches!(end, End::Cut) => return end,
                _ => {}
            }
        }
    }

    /// The next end of whichever request.
    pub(crate) fn any_end(&self) -> End {
        self.next_end().1
    }

    fn next_end(&self) -> (String, End) {
        loop {
            match self.next(LIMIT) {
                Some(ToOperator::Finished { outcome }) => {
                    let outcome = Outcome::clone(&outcome);
                    return (outcome.id.clone(), End::Finished(Box::new(outcome)));
                }
                Some(ToOperator::Refused {
                    id,
                    reason,
                    message,
                }) => return (id, End::Refused(reason, message)),
                Some(_) => {}
                None => return (String::new(), End::Cut),
            }
        }
    }
}

/// How a request ended.
#[derive(Debug)]
pub(crate) enum End {
    Finished(Box<Outcome>),
    Refused(Reason, String),
    /// The stream did.
    Cut,
}

impl End {
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Finished(outcome) => outcome.targets[0].reason,
            Self::Refused(reason, _) => *reason,
            Self::Cut => panic!("the stream has ended"),
        }
    }

    pub(crate) fn target(&self) -> &TargetOutcome {
        match self {
            Self::Finished(outcome) => &outcome.targets[0],
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn exec(&self) -> &ExecOutcome {
        match &self.target().data {
            Some(Data::Exec(exec)) => exec,
            other => panic!("{other:?}: {}", self.target().message),
        }
    }
}

/// A script for one process, as the operator would ask for it.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) id: String,
    pub(crate) pid: i32,
    pub(crate) text: String,
    pub(crate) thread: ThreadChoice,
    pub(crate) wake: WakePolicy,
    pub(crate) start: Duration,
    pub(crate) timeout: Duration,
}

impl Script {
    pub(crate) fn new(id: impl Into<String>, pid: i32, text: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            pid,
            text: text.into(),
            thread: ThreadChoice::default(),
            wake: WakePolicy::default(),
            start: Duration::from_secs(20),
            timeout: Duration::from_mins(1),
        }
    }

    fn request(&self, instance: &str) -> Request {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap();
        Request {
            id: self.id.clone(),
            name: Some(format!("session-{}", self.id)),
            instance: Some(instance.to_owned()),
            action: Action::Exec(ExecRequest {
                script: self.text.clone(),
                thread: self.thread,
                wake: self.wake,
                interpreter: 0,
                start_milliseconds: milliseconds(self.start),
            }),
            process: Some(ProcessSelector::Pid(self.pid)),
            container_id: None,
            timeout_milliseconds: milliseconds(self.timeout),
        }
    }
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut so: impl FnMut() -> bool) {
    let limit = Instant::now() + LIMIT;
    while !so() {
        assert!(Instant::now() < limit, "{what}: did not come to be");
        std::thread::sleep(Duration::from_millis(2));
    }
}
