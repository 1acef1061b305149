//! What only reads: from a request to what every process answered.
//!
//! It runs in a thread that the kernel lets change no other process ([`fenced`]), and nothing here, nor in what it calls,
//! knows of the modules that write.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sidewinder_decode::ReadError;
use sidewinder_decode::runtime::Runtime;
use sidewinder_decode::still;
use sidewinder_diagnose::escape::{clip, line};
use sidewinder_diagnose::summary;
use sidewinder_linux::fence::{self, FenceError};
use sidewinder_linux::stop::StopError;
use sidewinder_linux::{Error, Process, hardening, headroom};
use sidewinder_model::{Action, Data, Locals, Reason, Request, Stacks, TargetOutcome};

use crate::capture::{Capture, CaptureError, Torn, capture};
use crate::discover::{self, Discovery, Found};
use crate::select::select;

/// Tasks from which on the memory of the decode is given back before that of the text is taken.
const MANY_TASKS: usize = 50_000;

/// The longest command line in an outcome, in characters.
const COMMAND_CHARS: usize = 256;

/// Whether what this program does was measured on this machine's architecture. Elsewhere it compiles, reads with a
/// warning, and runs no scripts.
pub(crate) const MEASURED: bool = cfg!(target_arch = "x86_64");

/// The bounds within which work is done.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// When it has to be over.
    pub deadline: Instant,
    /// Set when nobody wants it any more.
    pub cancel: Arc<AtomicBool>,
}

impl Bounds {
    /// Of work that nobody cancels.
    pub fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            cancel: Arc::default(),
        }
    }

    fn ended(&self) -> Option<(Reason, &'static str)> {
        if self.cancel.load(Ordering::SeqCst) {
            Some((
                Reason::Cancelled,
                "cancelled before this process was looked at",
            ))
        } else if Instant::now() >= self.deadline {
            Some((
                Reason::Timeout,
                "the time was up before this process was looked at; raise timeoutSeconds",
            ))
        } else {
            None
        }
    }
}

/// Does work that only reads where the kernel lets it do no more than that.
///
/// # Errors
/// An outcome that says why there can be no such place. Without it nothing is read: that a request which only reads
/// changes nothing is promised to people who did not ask for it, and a kernel without the means is rare.
pub fn fenced<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Box<TargetOutcome>> {
    fence::read_only(work).map_err(|error| {
        let reason = match error {
            FenceError::Thread => Reason::InternalError,
            FenceError::Build(_) | FenceError::Install(_) => Reason::UnsupportedPlatform,
        };
        Box::new(TargetOutcome::failed(reason, discover::sentence(&error)))
    })
}

/// Carries out a request on every process that it means, one after the other.
pub fn targets(
    request: &Request,
    bounds: &Bounds,
    act: &dyn Fn(&Found) -> TargetOutcome,
) -> Vec<TargetOutcome> {
    let discovery = match Discovery::wanted(request) {
        Ok(discovery) => discovery,
        Err(error) => {
            return vec![TargetOutcome::failed(
                Reason::InternalError,
                error.to_string(),
            )];
        }
    };
    if let Some(why) = discovery.not_shared(request.container_id.as_deref()) {
        return vec![TargetOutcome::failed(Reason::PidNamespaceNotShared, why)];
    }
    if request.action == Action::Processes {
        return vec![processes(&discovery)];
    }
    if discovery.found.is_empty()
        && let Some(closed) = discovery.closed.first()
    {
        return vec![TargetOutcome {
            pid: Some(closed.ns_pid),
            ..TargetOutcome::failed(closed.reason, &closed.message)
        }];
    }
    let chosen = match select(
        &discovery.candidates(),
        request.process.as_ref(),
        request.action.runs_code(),
    ) {
        Ok(chosen) => chosen,
        Err(refusal) => {
            let instead = discovery
                .instead()
                .filter(|_| discovery.found.is_empty())
                .unwrap_or_default();
            let message = join(&refusal.message, &instead);
            let message = join(&message, &discovery.left_out().unwrap_or_default());
            return vec![TargetOutcome::failed(refusal.reason, message)];
        }
    };
    chosen
        .indices
        .iter()
        .filter_map(|index| discovery.found.get(*index))
        .map(|found| {
            let mut outcome = match bounds.ended() {
                Some((reason, message)) => TargetOutcome {
                    pid: Some(found.process.ns_pid()),
                    ..TargetOutcome::failed(reason, message)
                },
                None => act(found),
            };
            if let Some(left_out) = discovery.left_out() {
                outcome.message = join(&outcome.message, &left_out);
            }
            if let Some(note) = &chosen.note {
                outcome.message = join(&outcome.message, note);
            }
            outcome
        })
        .collect()
}

fn join(first: &str, second: &str) -> String {
    if first.is_empty() || second.is_empty() {
        format!("{first}{second}")
    } else {
        format!("{first}; {second}")
    }
}

/// `Processes`: what there is, with or without any.
pub fn processes(discovery: &Discovery) -> TargetOutcome {
    let list = discovery.list();
    let mut outcome = if list.processes.is_empty() {
        match (discovery.closed.first(), list.problems.first()) {
            (Some(closed), _) => TargetOutcome::failed(closed.reason, &closed.message),
            (None, Some(problem)) => TargetOutcome::failed(Reason::UnsupportedPython, problem),
            (None, None) => TargetOutcome::failed(
                Reason::NoPythonProcess,
                "no Python process runs in this container",
            ),
        }
    } else {
        TargetOutcome {
            summary: summary::processes(&list),
            ..TargetOutcome::failed(Reason::Succeeded, String::new())
        }
    };
    outcome.data = Some(Data::Processes(list));
    outcome
}

/// Reads one process. The text is left to whoever shows it, since it may be as large as the data, and so is the summary
/// of tasks, which looks at each of them.
pub fn act(found: &Found, action: &Action, bounds: &Bounds) -> TargetOutcome {
    on_process(found, |runtime| match action {
        Action::Stacks { locals } => stacks(&found.process, runtime, *locals, bounds),
        Action::Tasks { .. } => tasks(&found.process, runtime, bounds),
        Action::Processes | Action::Exec(_) => TargetOutcome::failed(
            Reason::InternalError,
            "not an action that reads one process",
        ),
    })
}

/// Does something to one process whose Python is known, and says which it was.
pub fn on_process(found: &Found, work: impl FnOnce(&Runtime) -> TargetOutcome) -> TargetOutcome {
    let started = Instant::now();
    let runtime = match &found.python {
        Ok(runtime) => runtime,
        Err(why) => {
            return TargetOutcome {
                pid: Some(found.process.ns_pid()),
                ..TargetOutcome::failed(Reason::UnsupportedPython, why.clone())
            };
        }
    };
    let mut outcome = work(runtime);
    outcome.pid = Some(found.process.ns_pid());
    outcome.command = clip(&line(&found.command.join(" ")), COMMAND_CHARS).into_owned();
    outcome.python = runtime.version();
    outcome.duration_milliseconds = milliseconds(started.elapsed());
    outcome
}

/// What a reading comes to when the target could not be held still.
fn judge<T>(captured: &Capture<T>, problems: &mut Vec<String>) -> (Reason, String) {
    if !MEASURED {
        problems.push(format!(
            "reading was never measured on {}: look twice before you believe it",
            std::env::consts::ARCH
        ));
    }
    match &captured.torn {
        None => (Reason::Succeeded, String::new()),
        Some(Torn::Overran) => {
            problems.push(
                "the target was let go before the reading was over, since it may be held for one second: what is \
                 shown may not be of one instant"
                    .to_owned(),
            );
            (Reason::Succeeded, String::new())
        }
        // It stands still by itself, and stays so.
        Some(Torn::NotStopped {
            error: error @ StopError::StoppedBySignal { .. },
            ..
        }) => {
            problems.push(error.to_string());
            (not_stopped(error), error.to_string())
        }
        Some(Torn::NotStopped { error, stood_still }) => {
            problems.push(if *stood_still {
                format!(
                    "the target was not held still: {error}; no Python thread ran while it was read, so what is shown is \
                     of one instant all the same"
                )
            } else {
                format!(
                    "the target was not held still: {error}; what is shown may not be of one instant"
                )
            });
            (not_stopped(error), error.to_string())
        }
    }
}

/// The reason for which a target could not be held still.
fn not_stopped(error: &StopError) -> Reason {
    match error {
        StopError::Traced { .. } | StopError::StoppedBySignal { .. } => Reason::TargetBusy,
        // What was read is an answer all the same.
        StopError::Unstoppable { .. } => Reason::Succeeded,
        StopError::Process(error) => discover::reason(error),
    }
}

fn unreadable(process: &Process, error: &CaptureError) -> TargetOutcome {
    let (reason, message) = match error {
        CaptureError::Read(ReadError::Denied) => discover::denied(process),
        CaptureError::Read(ReadError::Gone) | CaptureError::Process(Error::Gone { .. }) => (
            Reason::TargetExited,
            format!("process {} has ended", process.ns_pid()),
        ),
        CaptureError::Process(error) => (discover::reason(error), discover::sentence(error)),
        CaptureError::Read(ReadError::Fault { .. }) => {
            (Reason::InternalError, discover::sentence(error))
        }
    };
    TargetOutcome::failed(reason, message)
}

/// The stacks of every thread, with what is wrong with them.
///
/// # Errors
/// When the target cannot be read at all.
pub fn read_stacks(
    process: &Process,
    runtime: &Runtime,
    locals: Locals,
    deadline: Instant,
) -> Result<(Stacks, Reason, String), CaptureError> {
    let limits = headroom::limits_for(process);
    let captured = capture(
        process,
        runtime,
        deadline,
        limits.cache_bytes,
        |memory, threads| {
            let stacks = still::stacks(memory, runtime, threads, locals, &limits);
            let arguments: HashMap<u64, [u64; 6]> = threads
                .iter()
                .filter_map(|thread| Some((thread.tid, thread.arguments?)))
                .collect();
            (stacks, arguments)
        },
    )?;
    let mut problems = Vec::new();
    let (reason, message) = judge(&captured, &mut problems);
    let (mut stacks, arguments) = captured.value;
    // What a thread waits for is looked up when nothing stands still any more.
    let threads = stacks.interpreters.iter_mut().flat_map(|i| &mut i.threads);
    process.describe(threads.filter_map(|thread| {
        let arguments = arguments.get(&thread.tid)?;
        Some((thread.tid, *arguments, thread.syscall.as_mut()?))
    }));
    stacks.paused_microseconds = microseconds(captured.paused);
    stacks.stopped = captured.stopped;
    stacks.problems.splice(0..0, problems);
    Ok((stacks, reason, message))
}

fn stacks(process: &Process, runtime: &Runtime, locals: Locals, bounds: &Bounds) -> TargetOutcome {
    match read_stacks(process, runtime, locals, bounds.deadline) {
        Ok((stacks, reason, message)) => TargetOutcome {
            summary: if reason == Reason::Succeeded {
                summary::stacks(&stacks)
            } else {
                summary::failure(&message)
            },
            paused_microseconds: stacks.paused_microseconds,
            data: Some(Data::Stacks(stacks)),
            ..TargetOutcome::failed(reason, message)
        },
        Err(error) => unreadable(process, &error),
    }
}

fn tasks(process: &Process, runtime: &Runtime, bounds: &Bounds) -> TargetOutcome {
    let limits = headroom::limits_for(process);
    let deadline = bounds.deadline;
    let captured = capture(
        process,
        runtime,
        deadline,
        limits.cache_bytes,
        |memory, threads| still::tasks(memory, runtime, threads, &limits),
    );
    let captured = match captured {
        Ok(captured) => captured,
        Err(error) => return unreadable(process, &error),
    };
    let mut problems = Vec::new();
    let (reason, message) = judge(&captured, &mut problems);
    let mut tasks = captured.value;
    if tasks.tasks.len() >= MANY_TASKS {
        // What the decode needed is freed, and the text is yet to be made.
        hardening::give_back_memory();
    }
    tasks.paused_microseconds = microseconds(captured.paused);
    tasks.stopped = captured.stopped;
    tasks.problems.splice(0..0, problems);
    TargetOutcome {
        summary: if reason == Reason::Succeeded {
            String::new()
        } else {
            summary::failure(&message)
        },
        paused_microseconds: tasks.paused_microseconds,
        data: Some(Data::Tasks(tasks)),
        ..TargetOutcome::failed(reason, message)
    }
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
