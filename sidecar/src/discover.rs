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
    /// How many processes of other containers were passed over.
    elsewhere: usize,
    /// How many were not looked at, since there were too many before them.
    left_out: usize,
}

/// How many processes are looked at, and how many of them may be a Python: a target may start as many as its cgroup
/// lets it, each with a command line of its own, while our memory counts against its pod.
const MAX_PROCESSES: usize = 8192;
const MAX_PYTHONS: usize = 1024;

/// How many characters of a command line are kept.
const COMMAND_CHARS: usize = 8 << 10;

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

/// The arguments up to [`COMMAND_CHARS`].
fn within_bounds(command: Vec<String>) -> Vec<String> {
    let mut room = COMMAND_CHARS;
    let mut kept = Vec::new();
    for argument in command {
        let clipped = clip(&argument, room).into_owned();
        // One more for each, as in /proc/PID/cmdline.
        room = room.saturating_sub(clipped.chars().count().saturating_add(1));
        kept.push(clipped);
        if room == 0 {
            break;
        }
    }
    kept
}

fn look(process: Process) -> Kind {
    let command = within_bounds(process.command());
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
        let mut looked = 0;
        for pid in process::list()? {
            if pid == own {
                continue;
            }
            // The first ones are the oldest: what the container was made for.
            if looked >= MAX_PROCESSES || discovery.found.len() >= MAX_PYTHONS {
                discovery.left_out = discovery.left_out.saturating_add(1);
                continue;
            }
            looked += 1;
            let Ok(process) = Process::open(pid) else {
                continue;
            };
            if is_elsewhere(&process, container_id, &own_cgroup) {
                discovery.elsewhere = discovery.elsewhere.saturating_add(1);
            } else {
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

    /// That not every process was looked at, in words.
    pub fn left_out(&self) -> Option<String> {
        (self.left_out > 0).then(|| {
            format!(
                "{} more processes were not looked at: the first {MAX_PROCESSES} are, and {MAX_PYTHONS} with a Python; \
                 process.pid names any",
                self.left_out
            )
        })
    }

    /// Why the target's processes cannot be seen from here, where none can: a container that runs has one at least.
    ///
    /// The runtime may have given us a PID namespace of our own all the same, in which there is nobody but us: a kubelet
    /// or runtime that does not know `targetContainerName` says so nowhere, see
    /// <https://kubernetes.io/docs/tasks/debug/debug-application/debug-running-pod/#ephemeral-container>.
    pub fn not_shared(&self, container_id: Option<&str>) -> Option<String> {
        let id = container_id.filter(|id| !id.is_empty())?;
        if !self.found.is_empty() || !self.closed.is_empty() || self.foreign > 0 {
            return None;
        }
        Some(if self.elsewhere == 0 {
            "the sidecar sees no process but its own: the container runtime did not put it into the target's PID \
             namespace (targetContainerName), or the target has just ended"
                .to_owned()
        } else {
            format!(
                "none of the {} processes that the sidecar sees is in container {}: the target was started again, or the \
                 sidecar is in another PID namespace",
                self.elsewhere,
                clip(&line(id), 64)
            )
        })
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
        list.problems.extend(self.left_out());
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
    container_id.is_some_and(|id| {
        place(&process.cgroup().unwrap_or_default(), id, own_cgroup) == Place::Elsewhere
    })
}

/// Which container a process is in, as far as its cgroup tells: cgroups(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The target.
    Target,
    /// Another one.
    Elsewhere,
    /// Nothing is known, and nothing is left out.
    Unknown,
}

/// The path of a cgroup ends with the container's id, also seen from a cgroup namespace of our own, where what is outside
/// of it begins with `/..`: <https://man7.org/linux/man-pages/man7/cgroup_namespaces.7.html>. Our own is then `/`.
fn place(cgroup: &str, container_id: &str, own: &str) -> Place {
    let pod = own.contains("kubepods") && cgroup.contains("kubepods");
    if container_id.is_empty() {
        Place::Unknown
    } else if cgroup.contains(container_id) {
        Place::Target
    } else if cgroup != own && (pod || names_a_container(cgroup)) {
        // Where containers have no cgroups of their own, all are in ours.
        Place::Elsewhere
    } else {
        Place::Unknown
    }
}

/// Whether a cgroup's path has the id of a container in it: 64 hexadecimal digits with every runtime of Kubernetes.
fn names_a_container(cgroup: &str) -> bool {
    cgroup
        .split(|letter: char| !letter.is_ascii_hexdigit())
        .any(|word| word.len() == 64)
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
        let (target, other) = ("a".repeat(64), "c".repeat(64));
        let own_v1 = format!("5:pids:/kubepods/besteffort/pod1/{}\n", "b".repeat(64));
        for (cgroup, own, expected) in [
            (
                format!("5:pids:/kubepods/besteffort/pod1/{target}\n"),
                own_v1.as_str(),
                Place::Target,
            ),
            (
                format!("5:pids:/kubepods/besteffort/pod1/{other}\n"),
                &own_v1,
                Place::Elsewhere,
            ),
            // What a container does to its own cgroup stays below it.
            (
                format!("0::/kubepods.slice/cri-containerd-{target}.scope/inner\n"),
                "0::/\n",
                Place::Target,
            ),
            // cgroup v2 with a namespace of our own.
            (
                format!("0::/../cri-containerd-{target}.scope\n"),
                "0::/\n",
                Place::Target,
            ),
            (
                format!("0::/../crio-{other}.scope\n"),
                "0::/\n",
                Place::Elsewhere,
            ),
            (
                format!("0::/docker/{other}\n"),
                &format!("0::/docker/{other}\n"),
                Place::Unknown,
            ),
            (
                "0::/../../kubepods/pause\n".to_owned(),
                "0::/\n",
                Place::Unknown,
            ),
            ("0::/\n".to_owned(), "0::/\n", Place::Unknown),
            ("0::/../x\n".to_owned(), "0::/\n", Place::Unknown),
            (String::new(), "", Place::Unknown),
        ] {
            assert_eq!(place(&cgroup, &target, own), expected, "{cgroup}");
            assert_eq!(place(&cgroup, "", own), Place::Unknown);
        }
    }

    #[test]
    fn a_command_line_is_kept_up_to_a_length() {
        let short = vec!["python".to_owned(), String::new(), "-c".to_owned()];
        assert_eq!(within_bounds(short.clone()), short);
        let long = within_bounds(vec!["x".repeat(5000); 256]);
        assert_eq!(long.len(), 2);
        assert!(long.iter().map(|text| text.chars().count()).sum::<usize>() <= COMMAND_CHARS);
        assert!(within_bounds(vec![String::new(); 1 << 20]).len() <= COMMAND_CHARS);
    }

    #[test]
    fn what_was_not_looked_at_is_said() {
        assert_eq!(Discovery::default().left_out(), None);
        let many = Discovery {
            left_out: 7,
            ..Discovery::default()
        };
        assert!(many.left_out().unwrap().starts_with("7 more"));
        assert_eq!(many.list().problems.len(), 1);
    }

    #[test]
    fn a_namespace_without_any_process_of_the_target_is_not_shared() {
        let alone = Discovery::default();
        let said = alone.not_shared(Some("aaaa")).unwrap();
        assert!(said.contains("no process but its own"), "{said}");
        assert_eq!(alone.not_shared(None), None);
        assert_eq!(alone.not_shared(Some("")), None);
        let astray = Discovery {
            elsewhere: 3,
            ..Discovery::default()
        };
        let said = astray.not_shared(Some("aaaa")).unwrap();
        assert!(
            said.contains("none of the 3") && said.contains("aaaa"),
            "{said}"
        );
        let seen = Discovery {
            foreign: 1,
            ..Discovery::default()
        };
        assert_eq!(seen.not_shared(Some("aaaa")), None);
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
