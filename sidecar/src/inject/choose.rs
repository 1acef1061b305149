//! Which thread is asked to run a script, and whether the interpreter takes scripts at all.

use sidewinder_decode::remote_exec::{self, InterpreterSupport, ThreadSupport};
use sidewinder_decode::still::Any;
use sidewinder_decode::{Limits, OsThread, Runtime};
use sidewinder_linux::Process;
use sidewinder_model::{ExecRequest, Locals, Reason, ThreadChoice, ThreadState};

use super::{Refusal, payload, refuse};
use crate::discover;

/// Most threads that are asked one after another.
const MAX_CANDIDATES: usize = 16;

/// A thread that may be asked.
pub(super) struct Candidate {
    pub(super) tid: u64,
    pub(super) support: ThreadSupport,
    pub(super) os: Option<OsThread>,
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
    let chosen = chosen(process, request, interpreter, &threads)?;
    without_running_scripts(process, runtime, &threads, chosen)
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
            main.map(|index| vec![all.swap_remove(index)])
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

/// Who is likely to come by soonest: threads that run, then waits that an interrupt ends, then the rest; the main
/// thread last of its kind, since it is the one the application would miss most.
fn eagerness(candidate: &Candidate) -> (u8, bool) {
    let kind = match &candidate.os {
        Some(os) if os.state != ThreadState::Blocked => 0,
        Some(OsThread {
            syscall: Some(syscall),
            ..
        }) if syscall.name.starts_with("epoll_") => 1,
        _ => 2,
    };
    (kind, candidate.support.main)
}

/// A second script would run inside the first, at its next check.
fn without_running_scripts(
    process: &Process,
    runtime: &Runtime,
    threads: &[OsThread],
    chosen: Vec<Candidate>,
) -> Result<Vec<Candidate>, Refusal> {
    let stacks =
        sidewinder_decode::stacks(process, runtime, threads, Locals::None, &Limits::default());
    let runs = |tid: u64| {
        stacks
            .interpreters
            .iter()
            .flat_map(|interpreter| &interpreter.threads)
            .filter(|thread| thread.tid == tid)
            .flat_map(|thread| &thread.frames)
            .any(|frame| &*frame.function == payload::FUNCTION)
    };
    let (busy, free): (Vec<Candidate>, Vec<Candidate>) =
        chosen.into_iter().partition(|one| runs(one.tid));
    match (free.is_empty(), busy.first()) {
        (true, Some(one)) => Err(refuse(
            Reason::TargetBusy,
            format!(
                "an earlier script still runs in thread {}: wait for it to end, or use another thread",
                one.tid
            ),
        )),
        _ => Ok(free),
    }
}
