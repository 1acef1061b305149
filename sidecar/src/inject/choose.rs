//! Which thread is asked to run a script, and whether the interpreter takes scripts at all.

use sidewinder_decode::remote_exec::{self, InterpreterSupport, ThreadSupport};
use sidewinder_decode::still::Any;
use sidewinder_decode::{Addr, Limits, OsThread, Runtime};
use sidewinder_linux::Process;
use sidewinder_linux::write::in_use;
use sidewinder_model::{ExecRequest, Locals, Reason, ThreadChoice, ThreadState};

use super::watch::runs_a_script;
use super::{Refusal, refuse, slot};
use crate::discover;

/// Most threads that are asked one after another.
const MAX_CANDIDATES: usize = 16;

/// A thread that may be asked.
pub(super) struct Candidate {
    pub(super) tid: u64,
    pub(super) support: ThreadSupport,
    pub(super) os: Option<OsThread>,
    /// The address of the interpreter that is to run the script, and whether it is the main one.
    pub(super) interpreter: Addr,
    pub(super) main_interpreter: bool,
    /// How many other threads that interpreter has.
    pub(super) siblings: usize,
    /// Where the state of each of its thread states stands: inside another interpreter it has several.
    pub(super) statuses: Vec<Addr>,
}

impl Candidate {
    /// Whether it is the thread that runs signal handlers and pending calls.
    pub(super) fn is_main(&self) -> bool {
        self.main_interpreter && self.support.main
    }
}

/// The threads to ask, in order.
#[derive(Default)]
pub(super) struct Chosen {
    /// Those in which no script of ours runs and no request of another sidecar waits.
    pub(super) free: Vec<Candidate>,
    /// The ids of the others, with what is there.
    pub(super) busy: Vec<(u64, Occupied)>,
}

/// What a thread is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occupied {
    /// A script of ours runs there: a second one would run inside the first, at its next check.
    Script,
    /// A request of another sidecar waits there.
    Request,
}

/// Which threads are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Those that the request names; `Auto` is the main thread.
    Chosen,
    /// All but this one, the main thread, which did not answer: a script that needs it says so.
    StandIns(u64),
}

/// The threads to ask. At least one.
pub(super) fn candidates(
    process: &Process,
    runtime: &Runtime,
    request: &ExecRequest,
    wanted: Wanted,
) -> Result<Chosen, Refusal> {
    let ended = || {
        refuse(
            Reason::TargetExited,
            format!("process {} has ended", process.ns_pid()),
        )
    };
    let threads = process.threads().map_err(|error| match error {
        sidewinder_linux::Error::Gone { .. } => ended(),
        error => refuse(discover::reason(&error), discover::sentence(&error)),
    })?;
    let support = remote_exec::support::<Any>(process, runtime, &threads);
    if support.interpreters.is_empty() {
        if !process.alive() {
            return Err(ended());
        }
        if let Err(error) = process.check_access() {
            return Err(refuse(discover::reason(&error), discover::sentence(&error)));
        }
    }
    if support.finalizing {
        return Err(refuse(
            Reason::InterpreterFinalizing,
            format!(
                "the Python in process {} is shutting down and runs no more scripts",
                process.ns_pid()
            ),
        ));
    }
    let Some(interpreter) = support
        .interpreters
        .iter()
        .find(|one| one.id == request.interpreter)
    else {
        let ids: Vec<String> = support
            .interpreters
            .iter()
            .map(|one| one.id.to_string())
            .collect();
        return Err(refuse(
            Reason::NoPythonProcess,
            format!(
                "process {} has no interpreter {}; it has {}",
                process.ns_pid(),
                request.interpreter,
                if ids.is_empty() {
                    "none that can be read".to_owned()
                } else {
                    ids.join(", ")
                }
            ),
        ));
    };
    if !interpreter.enabled {
        return Err(refuse(
            Reason::RemoteDebugDisabled,
            format!(
                "process {} was started with remote debugging disabled (PYTHON_DISABLE_REMOTE_DEBUG, -X \
                 disable-remote-debug, or a build without it); stacks and tasks can be read all the same",
                process.ns_pid()
            ),
        ));
    }
    let mut chosen = chosen(process, request, wanted, interpreter, &threads)?;
    let states = support.interpreters.iter().flat_map(|one| &one.threads);
    for state in states {
        for candidate in chosen
            .iter_mut()
            .filter(|candidate| Some(candidate.tid) == state.tid)
        {
            candidate.statuses.push(state.status_at);
        }
    }
    Ok(apart(process, runtime, &threads, chosen))
}

/// The threads that the request names.
fn chosen(
    process: &Process,
    request: &ExecRequest,
    wanted: Wanted,
    interpreter: &InterpreterSupport,
    threads: &[OsThread],
) -> Result<Vec<Candidate>, Refusal> {
    let siblings = interpreter.threads.len().saturating_sub(1);
    let mut all: Vec<Candidate> = interpreter
        .threads
        .iter()
        .filter_map(|support| {
            let os = threads
                .iter()
                .find(|os| Some(os.tid) == support.tid)
                .cloned();
            support.tid.map(|tid| Candidate {
                tid,
                support: *support,
                os,
                interpreter: interpreter.address,
                main_interpreter: interpreter.id == 0,
                siblings,
                statuses: Vec::new(),
            })
        })
        .collect();
    let chosen = match request.thread {
        _ if let Wanted::StandIns(main) = wanted => {
            all.retain(|one| one.tid != main);
            Some(by_eagerness(all))
        }
        ThreadChoice::Auto | ThreadChoice::Main => {
            let ns_pid = u64::from(process.ns_pid().unsigned_abs());
            // After the main script has ended the interpreter names no main thread, but its state is still there.
            let main = all
                .iter()
                .position(|one| one.support.main)
                .or_else(|| all.iter().position(|one| one.support.ns_tid == ns_pid));
            main.map(|index| vec![all.swap_remove(index)])
        }
        ThreadChoice::Any => Some(by_eagerness(all)),
        ThreadChoice::Tid(tid) => all
            .iter()
            .position(|one| one.tid == tid)
            .map(|index| vec![all.swap_remove(index)]),
    };
    chosen.filter(|chosen| !chosen.is_empty()).ok_or_else(|| {
        refuse(
            Reason::NoPythonProcess,
            match request.thread {
                ThreadChoice::Tid(tid) => format!(
                    "interpreter {} of process {} has no Python thread {tid}; `stacks` lists them",
                    request.interpreter,
                    process.ns_pid()
                ),
                _ if !interpreter.threads.is_empty() => format!(
                    "process {} has none of the threads that its interpreter {} knows: it is a copy that was forked \
                     without telling Python, so which thread is which cannot be told",
                    process.ns_pid(),
                    request.interpreter,
                ),
                _ => format!(
                    "interpreter {} of process {} has no thread",
                    request.interpreter,
                    process.ns_pid()
                ),
            },
        )
    })
}

fn by_eagerness(mut all: Vec<Candidate>) -> Vec<Candidate> {
    all.sort_by_key(eagerness);
    all.truncate(MAX_CANDIDATES);
    all
}

/// Who is likely to come by soonest: threads that run, then waits that an interrupt ends, then those that can be made
/// to return; the main thread last of its kind, since it is the one the application would miss most. Last of all those
/// that wait for a lock: a script that waits for the same one would be handed what they wait for. The main thread's wait
/// for a lock is left before the script runs.
fn eagerness(candidate: &Candidate) -> (u8, bool) {
    let kind = match &candidate.os {
        Some(os) if os.state != ThreadState::Blocked => 0,
        Some(OsThread {
            syscall: Some(syscall),
            ..
        }) => match syscall.name.as_str() {
            name if name.starts_with("epoll_") => 1,
            "futex" if !candidate.is_main() => 3,
            _ => 2,
        },
        _ => 2,
    };
    (kind, candidate.support.main)
}

/// Sets the threads apart that somebody of ours uses: this sidecar or another one of the pod.
fn apart(
    process: &Process,
    runtime: &Runtime,
    threads: &[OsThread],
    chosen: Vec<Candidate>,
) -> Chosen {
    let stacks =
        sidewinder_decode::stacks(process, runtime, threads, Locals::None, &Limits::default());
    let mut apart = Chosen::default();
    for one in chosen {
        if runs_a_script(&stacks, one.tid) {
            apart.busy.push((one.tid, Occupied::Script));
        } else if one.support.is_pending && in_use(process, slot(&one.support)).unwrap_or(false) {
            apart.busy.push((one.tid, Occupied::Request));
        } else {
            apart.free.push(one);
        }
    }
    apart
}
