//! The commands by hand: data on stdout as one document, everything else on stderr, the reason as exit code.

use std::fmt::Write as _;
use std::io::{BufWriter, IsTerminal as _, Read as _, StdoutLock, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Serialize;
use sidewinder_decode::Limits;
use sidewinder_decode::memory::{Image, Recorder};
use sidewinder_decode::runtime::Runtime;
use sidewinder_decode::still::Any;
use sidewinder_diagnose::text;
use sidewinder_linux::{Process, signals};
use sidewinder_model::{
    Action, Data, ExecRequest, Locals, MAX_SCRIPT_BYTES, Reason, TargetOutcome, TaskFormat,
};

use crate::args::{Command, Source, TextOrJson, TreeTableOrJson};
use crate::capture::{Capture, capture};
use crate::discover::{self, Discovery, Found};
use crate::perform::{self, Scripts};
use crate::read::{self, Bounds};

/// The exit code of a command that cannot be carried out as it was given, as clap has it.
const WRONG_USAGE: u8 = 2;

/// How long `stacks`, `tasks` and `record` may take.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// The largest image file that is read.
const IMAGE_BYTES: u64 = 1 << 30;

/// How many pages of 4 KiB a recording keeps: 256 MiB.
const IMAGE_PAGES: usize = Image::MAX_PAGES;

/// Carries out one command; `None` for those that are not by hand.
pub fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Ps { output } => ps(output),
        Command::Stacks {
            source,
            output,
            locals,
        } => snapshot(
            &source,
            &Action::Stacks {
                locals: locals.into(),
            },
            output == TextOrJson::Json,
        ),
        Command::Tasks { source, output } => {
            let format = if output == TreeTableOrJson::Table {
                TaskFormat::Table
            } else {
                TaskFormat::Tree
            };
            snapshot(
                &source,
                &Action::Tasks { format },
                output == TreeTableOrJson::Json,
            )
        }
        Command::Exec {
            pid,
            file,
            code,
            thread,
            interpreter,
            wake,
            start,
            timeout,
            output,
        } => {
            let deadline = Instant::now() + timeout;
            let script = match code.map_or_else(|| read_script(&file, deadline), within_size) {
                Ok(script) => script,
                Err(error) => return Ok(wrong_usage(&error)),
            };
            let request = ExecRequest {
                script,
                thread,
                wake: wake.into(),
                interpreter,
                start_milliseconds: u64::try_from(start.as_millis()).unwrap_or(u64::MAX),
            };
            exec(pid, request, deadline, output)
        }
        Command::Record { pid, out, locals } => record(pid, &out, locals.into()),
        Command::Agent { .. } | Command::Relay | Command::Hold | Command::Carrier { .. } => {
            bail!("not a command by hand")
        }
    }
}

fn code(reason: Reason) -> ExitCode {
    ExitCode::from(reason.exit_code())
}

/// Says what is wrong with a file that the command names.
fn wrong_usage(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(WRONG_USAGE)
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut printer = Printer::new();
    // What fails is in the printer.
    let _ = printer.write_str(text);
    printer.end()
}

/// Standard output as a writer of text, in large pieces: an answer may be larger than the memory there is.
struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    /// Why it stopped: the trait has no room for it.
    failed: Option<std::io::Error>,
}

impl Printer {
    fn new() -> Self {
        Self {
            out: BufWriter::with_capacity(64 << 10, std::io::stdout().lock()),
            failed: None,
        }
    }

    /// A reader that has gone away is no error.
    fn end(mut self) -> anyhow::Result<()> {
        let failed = self.failed.take().map_or_else(|| self.out.flush(), Err);
        match failed {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(error).context("failed to write the answer")
            }
            _ => Ok(()),
        }
    }
}

impl std::fmt::Write for Printer {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.out.write_all(text.as_bytes()).map_err(|error| {
            self.failed = Some(error);
            std::fmt::Error
        })
    }
}

fn print_text(data: &Data, action: &Action) -> anyhow::Result<()> {
    let mut printer = Printer::new();
    // What fails is in the printer.
    let _ = perform::write_text(&mut printer, data, action);
    printer.end()
}

fn print_json(document: &impl Serialize) -> anyhow::Result<()> {
    let mut printer = Printer::new();
    if let Err(error) = serde_json::to_writer_pretty(&mut printer.out, document) {
        match error.io_error_kind() {
            Some(_) => printer.failed = Some(error.into()),
            None => return Err(error).context("failed to encode the answer"),
        }
    }
    if printer.failed.is_none() {
        // What fails is in the printer.
        let _ = printer.write_str("\n");
    }
    printer.end()
}

fn ps(output: TextOrJson) -> anyhow::Result<ExitCode> {
    let list = match read::fenced(|| Discovery::all(None).map(|found| found.list())) {
        Ok(list) => list?,
        Err(refused) => return answer(&refused, &Action::Processes, output == TextOrJson::Json),
    };
    match output {
        TextOrJson::Json => print_json(&list)?,
        TextOrJson::Text => print(&text::processes(&list))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn find(pid: i32) -> Result<Found, Box<TargetOutcome>> {
    let failed = |reason, message| Err(Box::new(TargetOutcome::failed(reason, message)));
    let mut discovery = match Discovery::one(pid) {
        Ok(discovery) => discovery,
        Err(error) => return failed(discover::reason(&error), discover::sentence(&error)),
    };
    match (discovery.found.pop(), discovery.closed.pop()) {
        (Some(found), _) => Ok(found),
        (None, Some(closed)) => failed(closed.reason, closed.message),
        (None, None) => failed(
            Reason::NoPythonProcess,
            format!("process {pid} is no Python process"),
        ),
    }
}

/// Prints an outcome and returns its exit code.
fn answer(outcome: &TargetOutcome, action: &Action, json: bool) -> anyhow::Result<ExitCode> {
    match (&outcome.data, json) {
        (Some(Data::Stacks(document)), true) => print_json(document)?,
        (Some(Data::Tasks(document)), true) => print_json(document)?,
        (Some(Data::Exec(document)), true) => print_json(document)?,
        (Some(Data::Processes(document)), true) => print_json(document)?,
        (Some(data), false) => print_text(data, action)?,
        (None, false) => print(&outcome.text)?,
        (None, true) => {}
    }
    if !matches!(outcome.reason, Reason::Succeeded | Reason::ScriptError) {
        eprintln!("{}: {}", outcome.reason, outcome.message);
        let colour = std::io::stderr().is_terminal();
        let (dim, plain) = if colour {
            ("\x1b[2m", "\x1b[0m")
        } else {
            ("", "")
        };
        if let Some(advice) = advice(outcome.reason) {
            eprintln!("{dim}{advice}{plain}");
        }
    }
    Ok(code(outcome.reason))
}

/// What to do about it on a command line; the documentation's advice speaks of sessions.
fn advice(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::NoPythonProcess => Some("`sidewinder-sidecar ps` lists the Python processes."),
        Reason::TargetBlocked => {
            Some("`--thread any` lets another thread answer; `--start` waits longer.")
        }
        Reason::ScriptTimeout | Reason::Timeout => Some("`--timeout` gives it longer."),
        Reason::RemoteDebugDisabled | Reason::StillArmed => Some(reason.advice()),
        _ => None,
    }
}

fn snapshot(source: &Source, action: &Action, json: bool) -> anyhow::Result<ExitCode> {
    if let Some(file) = &source.image {
        return match from_image(file, action) {
            Ok(outcome) => answer(&outcome, action, json),
            Err(error) => Ok(wrong_usage(&error)),
        };
    }
    let pid = source.pid.context("either --pid or --image is needed")?;
    let bounds = Bounds::until(Instant::now() + READ_LIMIT);
    let read = {
        let action = action.clone();
        read::fenced(move || Ok(read::act(&find(pid)?, &action, &bounds)))
    };
    let outcome = read.flatten().unwrap_or_else(|refused| *refused);
    let code = answer(&outcome, action, json);
    // The process ends here, and with it a hundred thousand pieces that need not be freed one by one.
    std::mem::forget(outcome);
    code
}

/// The same functions as for a live process, on a recording.
fn from_image(file: &Path, action: &Action) -> anyhow::Result<TargetOutcome> {
    let name = || format!("failed to read the image {}", file.display());
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).with_context(name)?;
    opened
        .take(IMAGE_BYTES)
        .read_to_end(&mut bytes)
        .with_context(name)?;
    let image = Image::from_bytes(&bytes).with_context(name)?;
    let runtime = Runtime::locate::<Any>(&image, &image.mappings, &image).with_context(name)?;
    let limits = Limits::default();
    let threads = &image.threads;
    let data = match action {
        Action::Tasks { .. } => Data::Tasks(sidewinder_decode::tasks::<Any>(
            &image, &runtime, threads, &limits,
        )),
        Action::Stacks { locals } => Data::Stacks(sidewinder_decode::stacks::<Any>(
            &image, &runtime, threads, *locals, &limits,
        )),
        Action::Processes | Action::Exec(_) => bail!("an image holds stacks and tasks only"),
    };
    Ok(TargetOutcome {
        data: Some(data),
        ..TargetOutcome::failed(Reason::Succeeded, String::new())
    })
}

fn read_script(file: &Path, deadline: Instant) -> anyhow::Result<String> {
    let limit = u64::try_from(MAX_SCRIPT_BYTES)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    let bytes = if file == Path::new("-") {
        // A container's standard input may stay open for ever, and a read of it cannot be ended.
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .spawn(move || {
                let mut bytes = Vec::new();
                let read = std::io::stdin().lock().take(limit).read_to_end(&mut bytes);
                // Nobody listens any more when the time is up.
                let _ = sender.send(read.map(|_| bytes));
            })
            .context("failed to start a thread")?;
        receiver
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            .context(
                "standard input did not end before --timeout: close it, name a file, or give the script with --code",
            )?
            .context("failed to read the script from stdin")?
    } else {
        let name = || format!("failed to read the script {}", file.display());
        let mut bytes = Vec::new();
        std::fs::File::open(file)
            .with_context(name)?
            .take(limit)
            .read_to_end(&mut bytes)
            .with_context(name)?;
        bytes
    };
    within_size(String::from_utf8(bytes).context("the script is not UTF-8")?)
}

fn within_size(script: String) -> anyhow::Result<String> {
    if script.len() > MAX_SCRIPT_BYTES {
        bail!("the script is longer than {MAX_SCRIPT_BYTES} bytes");
    }
    Ok(script)
}

fn exec(
    pid: i32,
    request: ExecRequest,
    deadline: Instant,
    output: TextOrJson,
) -> anyhow::Result<ExitCode> {
    let cancel = Arc::new(AtomicBool::new(false));
    let blocked = signals::block().context("failed to block the signals that end a command")?;
    let interrupted = cancel.clone();
    // Disarms before the process ends.
    std::thread::Builder::new()
        .spawn(move || {
            if blocked.wait().is_ok() {
                interrupted.store(true, Ordering::SeqCst);
            }
        })
        .context("failed to start a thread")?;
    let bounds = Bounds { deadline, cancel };
    let outcome = match find(pid) {
        Ok(found) => perform::exec(&found, &request, &bounds, &Scripts::default()),
        Err(outcome) => *outcome,
    };
    answer(&outcome, &Action::Exec(request), output == TextOrJson::Json)
}

fn record(pid: i32, out: &Path, locals: Locals) -> anyhow::Result<ExitCode> {
    let read = read::fenced(move || {
        let found = find(pid)?;
        let runtime = found
            .python
            .clone()
            .map_err(|why| Box::new(TargetOutcome::failed(Reason::UnsupportedPython, why)))?;
        Ok(image(&found.process, &runtime, locals))
    });
    let captured = match read.flatten() {
        Ok(captured) => captured?,
        Err(refused) => return answer(&refused, &Action::Processes, false),
    };
    let bytes = captured.value.to_bytes();
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .open(out)
        .with_context(|| format!("failed to create {}", out.display()))?;
    file.write_all(&bytes)
        .with_context(|| format!("failed to write {}", out.display()))?;
    eprintln!(
        "{}: {} pages of process {pid}, {} bytes; the target stood still for {} µs",
        out.display(),
        captured.value.pages(),
        bytes.len(),
        captured.paused.as_micros()
    );
    Ok(ExitCode::SUCCESS)
}

/// What was read of a process, so that it can be read again.
fn image(process: &Process, runtime: &Runtime, locals: Locals) -> anyhow::Result<Capture<Image>> {
    let mappings = process.mappings()?;
    let limits = Limits::default();
    let mut captured = capture(
        process,
        runtime,
        Instant::now() + READ_LIMIT,
        limits.cache_bytes,
        |still, threads| {
            let recorder = Recorder::new(still, IMAGE_PAGES);
            // What a reader of the image will ask for: the search, then both snapshots. Values of locals are left out
            // unless they are asked for: a recording travels in bug reports.
            let _ = Runtime::locate::<Any>(&recorder, &mappings, process);
            let _ = sidewinder_decode::stacks::<Any>(&recorder, runtime, threads, locals, &limits);
            let _ = sidewinder_decode::tasks::<Any>(&recorder, runtime, threads, &limits);
            Image::new(
                mappings.clone(),
                threads.to_vec(),
                process,
                recorder.into_touched(),
            )
        },
    )?;
    let threads = captured.value.threads.iter_mut();
    process.describe(
        threads
            .filter_map(|thread| Some((thread.tid, thread.arguments?, thread.syscall.as_mut()?))),
    );
    Ok(captured)
}
