//! Which Python processes there are.

use sidewinder_decode::runtime::{LocateError, Runtime};
use sidewinder_decode::still::Any;
use sidewinder_decode::{ReadError, remote_exec};
use sidewinder_diagnose::escape::{clip, line};
use sidewinder_linux::{Error, Process, process};
use sidewinder_model::{
    Action, ProcessInfo, ProcessList, ProcessSelector, Reason, RemoteExec, Request,
};

use crate::select::{Candidate, is_multiprocessing_service};

/// A process that carries a Python.
#[derive(Debug)]
pub struct Found {
    /// The process, pinned.
    pub process: Process,
    /// Its arguments.
    pub command: Vec<String>,
    /// Its interpreter, or why it is not supported, in words.
    pub python: Result<Runtime, String>,
}

/// A process that could not be looked into.
#[derive(Debug)]
pub struct Closed {
    /// Its id in its own PID namespace.
    pub ns_pid: i32,
    /// Why, in the closed list's terms.
    pub reason: Reason,
    /// Why, in a sentence.
    pub message: String,
}

/// What there is.
#[derive(Debug, Default)]
pub struct Discovery {
    /// Processes that carry a Python, by pid.
    pub found: Vec<Found>,
    /// Processes that could not be looked into.
    pub closed: Vec<Closed>,
    /// The first few processes that carry no Python, in words.
    others: Vec<String>,
    /// How many those are.
    foreign: usize,
}

/// How many processes without a Python a message lists.
const LISTED: usize = 8;

/// Whether this is an agent, a relay or a carrier of ours.
fn is_ours(command: &[String]) -> bool {
    command
        .first()
        .is_some_and(|program| program.rsplit('/').next() == Some("sidewinder-sidecar"))
}

/// What one process is.
enum Kind {
    Python(Box<Found>),
    Closed(Closed),
    /// No Python; its arguments.
    Foreign(Vec<String>),
    /// Ended meanwhile.
    Gone,
}

/// The reason for which something about a process could not be done.
pub fn reason(error: &Error) -> Reason {
    match error {
        Error::NoSuchProcess { .. } => Reason::NoPythonProcess,
        Error::Gone { .. } | Error::Replaced { .. } => Reason::TargetExited,
        Error::Yama { .. } => Reason::YamaForbidden,
        Error::Denied { .. } => Reason::PermissionDenied,
        Error::Io { .. } => Reason::InternalError,
    }
}

/// An error and what caused it, on one line.
pub fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The reason and the sentence for a process whose memory may not be read.
pub fn denied(process: &Process) -> (Reason, String) {
    match process.check_access() {
        Err(error) => (reason(&error), sentence(&error)),
        Ok(()) => (
            Reason::PermissionDenied,
            format!("not permitted to read process {}", process.ns_pid()),
        ),
    }
}

fn look(process: Process) -> Kind {
    let command = process.command();
    let mappings = match process.mappings() {
        Ok(mappings) => mappings,
        Err(error @ (Error::Denied { .. } | Error::Yama { .. })) => {
            let (reason, message) = (reason(&error), sentence(&error));
            return Kind::Closed(Closed {
                ns_pid: process.ns_pid(),
                reason,
                message,
            });
        }
        Err(_) => return Kind::Gone,
    };
    match Runtime::locate::<Any>(&process, &mappings, &process) {
        Ok(runtime) => Kind::Python(Box::new(Found {
            process,
            command,
            python: Ok(runtime),
        })),
        Err(LocateError::NotPython) => Kind::Foreign(command),
        Err(LocateError::Read(ReadError::Gone)) => Kind::Gone,
        Err(LocateError::Read(ReadError::Fault { .. })) if !process.alive() => Kind::Gone,
        Err(LocateError::Read(ReadError::Denied)) => {
            let (reason, message) = denied(&process);
            Kind::Closed(Closed {
                ns_pid: process.ns_pid(),
                reason,
                message,
            })
        }
        Err(error) => Kind::Python(Box::new(Found {
            process,
            command,
            python: Err(sentence(&error)),
        })),
    }
}

impl Discovery {
    fn add(&mut self, process: Process) {
        let process_id = process.ns_pid();
        match look(process) {
            Kind::Python(found) => self.found.push(*found),
            Kind::Closed(closed) => self.closed.push(closed),
            Kind::Foreign(command) => {
                if !is_ours(&command) {
                    self.foreign = self.foreign.saturating_add(1);
                    if self.others.len() < LISTED {
                        let command = command.join(" ");
                        let command = line(&command);
                        self.others
                            .push(format!("{} ({})", process_id, clip(&command, 80)));
                    }
                }
            }
            Kind::Gone => {}
        }
    }

    /// The processes that a request may mean: the one it names by its id, where that is a Python that can be read, else
    /// every one, so that whoever named another sees what there is.
    ///
    /// # Errors
    /// When `/proc` cannot be listed.
    pub fn wanted(request: &Request) -> std::io::Result<Self> {
        let container = request.container_id.as_deref();
        if let Some(ProcessSelector::Pid(pid)) = request.process
            && request.action != Action::Processes
            && let Ok(process) = Process::open(pid)
            && process.ns_pid() == pid
            && !is_elsewhere(&process, container, &own_cgroup())
        {
            let mut discovery = Self::default();
            discovery.add(process);
            if discovery.found.iter().any(|found| found.python.is_ok()) {
                return Ok(discovery);
            }
        }
        Self::all(container)
    }

    /// Every process that can be seen, but for this one and those of other containers.
    ///
    /// # Errors
    /// When `/proc` cannot be listed.
    pub fn all(container_id: Option<&str>) -> std::io::Result<Self> {
        let mut discovery = Self::default();
        let own = i32::try_from(std::process::id()).unwrap_or_default();
        let own_cgroup = own_cgroup();
        for pid in process::list()? {
            if pid == own {
                continue;
            }
            let Ok(process) = Process::open(pid) else {
                continue;
            };
            if !is_elsewhere(&process, container_id, &own_cgroup) {
                discovery.add(process);
            }
        }
        discovery.found.sort_by_key(|found| found.process.pid());
        Ok(discovery)
    }

    /// One process.
    ///
    /// # Errors
    /// When there is none of that id.
    pub fn one(pid: i32) -> Result<Self, Error> {
        let mut discovery = Self::default();
        discovery.add(Process::open(pid)?);
        Ok(discovery)
    }

    /// What runs here instead of a Python, in words, so that whoever named the wrong container sees it.
    pub fn instead(&self) -> Option<String> {
        let more = match self.foreign.saturating_sub(self.others.len()) {
            0 => String::new(),
            more => format!(", {more} more"),
        };
        (!self.others.is_empty()).then(|| format!("there are: {}{more}", self.others.join(", ")))
    }

    /// What [`crate::select::select`] needs to know.
    pub fn candidates(&self) -> Vec<Candidate> {
        self.found
            .iter()
            .map(|found| Candidate {
                ns_pid: found.process.ns_pid(),
                command: found.command.clone(),
                python: match &found.python {
                    Ok(runtime) => Ok(runtime.version()),
                    Err(why) => Err(why.clone()),
                },
            })
            .collect()
    }

    /// The document of `ps`.
    pub fn list(&self) -> ProcessList {
        let mut list = ProcessList::default();
        for found in &self.found {
            match &found.python {
                Ok(runtime) if !is_multiprocessing_service(&found.command) => {
                    list.processes.push(describe(found, runtime));
                }
                Ok(_) => {}
                Err(why) => list.problems.push(format!(
                    "process {} ({}): {why}",
                    found.process.ns_pid(),
                    clip(&line(&found.command.join(" ")), 80)
                )),
            }
        }
        match self.closed.as_slice() {
            [] => {}
            [one] => list.problems.push(format!(
                "process {} could not be looked into: {}",
                one.ns_pid, one.message
            )),
            [first, ..] => list.problems.push(format!(
                "{} processes could not be looked into, the first is {}: {}",
                self.closed.len(),
                first.ns_pid,
                first.message
            )),
        }
        list
    }
}

fn own_cgroup() -> String {
    std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

fn is_elsewhere(process: &Process, container_id: Option<&str>, own_cgroup: &str) -> bool {
    container_id
        .is_some_and(|id| belongs_elsewhere(&process.cgroup().unwrap_or_default(), id, own_cgroup))
}

/// Whether a process is known to belong to another container than the target or this one.
///
/// A private cgroup namespace hides the container's id; then nothing is known, and nothing is left out.
fn belongs_elsewhere(cgroup: &str, container_id: &str, own: &str) -> bool {
    !container_id.is_empty()
        && own.contains("kubepods")
        && cgroup.contains("kubepods")
        && !cgroup.contains(container_id)
}

fn describe(found: &Found, runtime: &Runtime) -> ProcessInfo {
    let support = remote_exec::support::<Any>(&found.process, runtime, &[]);
    let refusal = if support.finalizing {
        Some("the interpreter is shutting down")
    } else if support
        .interpreters
        .iter()
        .all(|interpreter| !interpreter.enabled)
    {
        Some("the target was started with remote debugging disabled")
    } else {
        None
    };
    ProcessInfo {
        pid: found.process.pid(),
        ns_pid: found.process.ns_pid(),
        python: runtime.version(),
        threads: u32::try_from(found.process.tids().map_or(0, |tids| tids.len()))
            .unwrap_or(u32::MAX),
        command: found
            .command
            .iter()
            .map(|argument| clip(argument, 256).into_owned())
            .collect(),
        remote_exec: RemoteExec {
            enabled: refusal.is_none(),
            reason: refusal.map(str::to_owned),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cgroup_that_names_another_container_is_elsewhere() {
        let own = "5:pids:/kubepods/besteffort/pod1/bbbb";
        assert!(!belongs_elsewhere(
            "5:pids:/kubepods/besteffort/pod1/aaaa",
            "aaaa",
            own
        ));
        assert!(belongs_elsewhere(
            "5:pids:/kubepods/besteffort/pod1/cccc",
            "aaaa",
            own
        ));
        assert!(!belongs_elsewhere("0::/", "aaaa", "0::/"));
        assert!(!belongs_elsewhere("0::/../x", "aaaa", "0::/"));
    }

    #[test]
    fn what_runs_instead_of_a_python_is_listed_up_to_a_few() {
        let mut discovery = Discovery::default();
        assert_eq!(discovery.instead(), None);
        discovery.others = vec!["1 (sleep infinity)".to_owned()];
        discovery.foreign = 3;
        assert_eq!(
            discovery.instead().as_deref(),
            Some("there are: 1 (sleep infinity), 2 more")
        );
    }

    #[test]
    fn our_own_processes_are_not_what_runs_there() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(is_ours(&words("/sidewinder-sidecar relay")));
        assert!(!is_ours(&words("/bin/sh -c /sidewinder-sidecar")));
        assert!(!is_ours(&[]));
    }
}
