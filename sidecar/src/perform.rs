//! A request carried out: from the action to what every process answered.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use sidewinder_decode::runtime::Runtime;
use sidewinder_diagnose::escape::{clip, line};
use sidewinder_diagnose::{summary, text};
use sidewinder_linux::Process;
use sidewinder_model::{
    Action, Data, ExecRequest, Locals, Outcome, Reason, Request, TargetOutcome, TaskFormat,
};

use crate::discover::{Discovery, Found};
use crate::inject::{self, Asker, LeftRunning};
use crate::read::{self, Bounds, MEASURED, microseconds, milliseconds, read_stacks};

/// The longest name of a session in a message, in characters: Kubernetes allows no longer one.
const NAME_CHARS: usize = 253;

/// Whose scripts are run, and where those go that are still running at the end; without a place they are let go of.
#[derive(Clone, Debug, Default)]
pub struct Scripts {
    /// Whose.
    pub asker: Asker,
    /// Where to.
    pub left: Option<Sender<LeftRunning>>,
}

/// Whose request it is, and that it comes after all that came before.
pub fn asker(request: &Request) -> Asker {
    Asker::new(match &request.name {
        Some(name) => format!("the script of session {}", clip(&line(name), NAME_CHARS)),
        None => "the script of another request".to_owned(),
    })
}

/// Carries out a request on the processes that can be seen. Scripts that are still running come with the outcome.
pub fn perform(
    request: &Request,
    instance: &str,
    cancel: &Arc<AtomicBool>,
    asker: Asker,
) -> (Outcome, Vec<LeftRunning>) {
    let started = Instant::now();
    let (left, running) = channel();
    let bounds = Bounds {
        deadline: started + Duration::from_millis(request.timeout_milliseconds),
        cancel: cancel.clone(),
    };
    let mut targets = if let Action::Exec(script) = &request.action {
        let scripts = Scripts {
            asker,
            left: Some(left),
        };
        read::targets(request, &bounds, &|found| {
            exec(found, script, &bounds, &scripts)
        })
    } else {
        let (request, bounds) = (request.clone(), bounds.clone());
        read::fenced(move || {
            read::targets(&request, &bounds, &|found| {
                read::act(found, &request.action, &bounds)
            })
        })
        .unwrap_or_else(|refused| vec![*refused])
    };
    for target in &mut targets {
        describe(target, &request.action);
        if target.duration_milliseconds == 0 {
            target.duration_milliseconds = milliseconds(started.elapsed());
        }
    }
    let outcome = Outcome {
        id: request.id.clone(),
        instance: instance.to_owned(),
        targets,
    };
    (outcome, running.try_iter().collect())
}

/// What a person reads of an outcome's data.
///
/// # Errors
/// Those of the writer.
pub fn write_text(out: &mut impl fmt::Write, data: &Data, action: &Action) -> fmt::Result {
    match data {
        Data::Processes(list) => out.write_str(&text::processes(list)),
        Data::Stacks(stacks) => out.write_str(&text::stacks(stacks)),
        Data::Tasks(tasks) => {
            let format = match action {
                Action::Tasks { format } => *format,
                _ => TaskFormat::default(),
            };
            text::write_tasks(out, tasks, format)
        }
        Data::Exec(outcome) => out.write_str(&text::exec(outcome)),
    }
}

/// Adds what people read: the text, and the summary where it is not there yet.
fn describe(outcome: &mut TargetOutcome, action: &Action) {
    let Some(data) = &outcome.data else {
        return;
    };
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_text(&mut text, data, action);
    outcome.text = text;
    if let Data::Tasks(tasks) = data
        && outcome.summary.is_empty()
    {
        outcome.summary = summary::tasks(tasks);
    }
}

/// Runs a script in one process.
pub fn exec(
    found: &Found,
    request: &ExecRequest,
    bounds: &Bounds,
    scripts: &Scripts,
) -> TargetOutcome {
    read::on_process(found, |runtime| {
        exec_in(&found.process, runtime, request, bounds, scripts)
    })
}

fn exec_in(
    process: &Process,
    runtime: &Runtime,
    request: &ExecRequest,
    bounds: &Bounds,
    scripts: &Scripts,
) -> TargetOutcome {
    if !MEASURED {
        let message = format!(
            "running scripts was never measured on {} and is off; stacks and tasks can be read",
            std::env::consts::ARCH
        );
        return TargetOutcome::failed(Reason::UnsupportedPlatform, message);
    }
    let look = || {
        let deadline = Instant::now() + Duration::from_secs(2);
        let read = read_stacks(process, runtime, Locals::None, deadline);
        read.ok().map(|(stacks, _, _)| stacks)
    };
    let injected = inject::exec(
        process,
        runtime,
        request,
        &scripts.asker,
        bounds.deadline,
        &bounds.cancel,
        &look,
    );
    if let (Some(left), Some(watcher)) = (injected.left, &scripts.left) {
        // Nobody listens where it is dropped again, which lets go of it.
        let _ = watcher.send(left);
    }
    let mut outcome = injected.outcome;
    let mut paused = microseconds(injected.paused);
    let reason = injected.reason;
    // Where it stands is the answer when it does not come.
    if reason == Reason::TargetBlocked {
        outcome.stacks = look();
    }
    if let Some(stacks) = &outcome.stacks {
        paused = paused.saturating_add(stacks.paused_microseconds);
    }
    outcome.reason = Some(reason);
    let summary = match reason {
        Reason::Succeeded | Reason::ScriptError => summary::exec(&outcome),
        Reason::TargetBlocked => match &outcome.stacks {
            Some(stacks) => summary::failure(&format!(
                "the script did not start: {}",
                summary::stacks(stacks)
            )),
            None => summary::failure(&injected.message),
        },
        _ => summary::failure(&injected.message),
    };
    TargetOutcome {
        summary,
        paused_microseconds: paused,
        disarmed: injected.armed.then_some(outcome.disarmed),
        data: Some(Data::Exec(Box::new(outcome))),
        ..TargetOutcome::failed(reason, injected.message)
    }
}

/// Looks for requests that an earlier agent left armed and takes them back.
pub fn sweep() {
    let Ok(discovery) = Discovery::all(None) else {
        return;
    };
    for found in &discovery.found {
        if let Ok(runtime) = &found.python {
            inject::sweep(&found.process, runtime);
        }
    }
}
