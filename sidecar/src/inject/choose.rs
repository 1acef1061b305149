//! Which thread is asked to run a script, and whether the interpreter takes scripts at all.

use sidewinder_decode::remote_exec::{self, InterpreterSupport, ThreadSupport};
use sidewinder_decode::still::Any;
use sidewinder_decode::{Addr, Limits, OsThread, Runtime};
use sidewinder_linux::Process;
use sidewinder_model::{ExecRequest, Locals, Reason, Stacks, ThreadChoice, ThreadState};

use super::{Refusal, payload, refuse};
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
pub(super) fn candidates(
    process: &Process,
    runtime: &Runtime,
    request: &ExecRequest,
) -> Result<Vec<Candidate>, Refusal> {
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
    let mut chosen = chosen(process, request, interpreter, &threads)?;
    let states = support.interpreters.iter().flat_map(|one| &one.threads);
    for state in states {
        for candidate in chosen
            .iter_mut()
            .filter(|candidate| Some(candidate.tid) == state.tid)
        {
            candidate.statuses.push(state.status_at);
        }
    }
    without_running_scripts(process, runtime, &threads, request.thread, chosen)
}

/// The threads that the request names.
fn chosen(
    process: &Process,
    request: &ExecRequest,
    interpreter: &InterpreterSupport,
    threads: &[OsThread],
) -> Result<Vec<Candidate>, Refusal> {
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
                statuses: Vec::new(),
            })
        })
        .collect();
    let chosen = match request.thread {
        ThreadChoice::Auto | ThreadChoice::Main => {
            let ns_pid = u64::from(process.ns_pid().unsigned_abs());
            // After the main script has ended the interpreter names no main thread, but its state is still there.
            let main = all
                .iter()
                .position(|one| one.support.main)
                .or_else(|| all.iter().position(|one| one.support.ns_tid == ns_pid));
            main.map(|index| {
                let main = all.swap_remove(index);
                let mut chosen = vec![main];
                if request.thread == ThreadChoice::Auto {
                    // A script that needs the main thread says so.
                    all.sort_by_key(eagerness);
                    chosen.append(&mut all);
                    chosen.truncate(MAX_CANDIDATES);
                }
                chosen
            })
        }
        ThreadChoice::Any => {
            all.sort_by_key(eagerness);
            all.truncate(MAX_CANDIDATES);
            Some(all)
        }
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
                _ => format!(
                    "interpreter {} of process {} has no thread",
                    request.interpreter,
                    process.ns_pid()
                ),
            },
        )
    })
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

/// A second script would run inside the first, at its next check.
fn without_running_scripts(
    process: &Process,
    runtime: &Runtime,
    threads: &[OsThread],
    choice: ThreadChoice,
    chosen: Vec<Candidate>,
) -> Result<Vec<Candidate>, Refusal> {
    let stacks = stacks(process, runtime, threads);
    let first = chosen.first().map(|one| one.tid);
    let (busy, free): (Vec<Candidate>, Vec<Candidate>) =
        chosen.into_iter().partition(|one| runs(&stacks, one.tid));
    match busy.first() {
        // Whoever asks for the main thread if possible waits for it while it runs a script.
        Some(one)
            if free.is_empty() || (choice == ThreadChoice::Auto && first == Some(one.tid)) =>
        {
            Err(refuse(
                Reason::TargetBusy,
                format!(
                    "an earlier script still runs in thread {}: wait for it to end, or use another thread",
                    one.tid
                ),
            ))
        }
        _ => Ok(free),
    }
}

fn stacks(process: &Process, runtime: &Runtime, threads: &[OsThread]) -> Stacks {
    sidewinder_decode::stacks(process, runtime, threads, Locals::None, &Limits::default())
}

fn runs(stacks: &Stacks, tid: u64) -> bool {
    stacks
        .interpreters
        .iter()
        .flat_map(|interpreter| &interpreter.threads)
        .filter(|thread| thread.tid == tid)
        .flat_map(|thread| &thread.frames)
        .any(|frame| &*frame.function == payload::FUNCTION)
}
