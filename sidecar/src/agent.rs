//! The agent: the resident main process of our container. It serves requests on a unix socket, one thread each.
//!
//! It trusts nobody in the pod: it cannot be traced or inspected by processes of its own uid, speaks only to its own
//! executable in its own container, and takes nothing from its arguments but numbers. An operator that goes away and
//! comes back finds its requests running or their outcomes waiting.

pub mod requests;
#[cfg(test)]
mod tests;
pub mod watches;

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use requests::{Begin, Requests};
use sidewinder_linux::{hardening, signals};
use sidewinder_model::{
    Data, MAX_SCRIPT_BYTES, Outcome, PROTOCOL, Reason, Request, ScriptEnd, TargetOutcome, ToAgent,
    ToOperator,
};
use watches::{WATCH_LIMIT, Watches};

use crate::inject::{Asker, LeftRunning};
use crate::{framing, perform};

/// Where the agent listens. The folder is part of the image.
pub const SOCKET: &str = "/run/sidewinder/agent.sock";

/// The largest message from the operator: a script of the largest size, of which each byte may take six in JSON.
const REQUEST_BYTES: usize = 2 * 1024 * 1024;

/// The longest id of a request; the operator's are UIDs.
const ID_BYTES: usize = 253;

/// How long a peer may take over a message, from its first byte, and over accepting one of ours.
const PEER_LIMIT: Duration = Duration::from_mins(1);

/// How long a peer may say nothing: the operator pings every ten seconds. An exec stream that was cut where nobody is told
/// of it would otherwise keep its seat for ever.
const SILENCE: Duration = Duration::from_mins(2);

/// How many answers wait for a peer that does not read them. One that asks for more meanwhile is let go. An operator has
/// some tens of requests out, and a ping every ten seconds.
const ANSWERS: usize = 1024;

/// How many connections are served side by side.
const MAX_CONNECTIONS: usize = 32;

/// Answers from which on unused memory is given back, in bytes as encoded: it takes a millisecond.
const LARGE_ANSWER: usize = 1 << 20;

/// How long running requests have to undo what they did when the agent is told to leave.
const FAREWELL: Duration = Duration::from_secs(8);

/// How long an operator that is connected then has to acknowledge their outcomes, which end with the agent.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

struct Agent {
    instance: String,
    requests: Mutex<Requests>,
    watches: Mutex<Watches>,
    /// Told when a request ends and when the agent is to leave.
    changed: Condvar,
    leaving: AtomicBool,
    connections: Mutex<usize>,
}

impl Agent {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        // Every change of the table is a single call, so it is whole even after a panic.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watches(&self) -> MutexGuard<'_, Watches> {
        // As above.
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self) -> bool {
        *self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            > 0
    }
}

/// One of the [`MAX_CONNECTIONS`], given back when dropped: also by a connection that panics or never began.
struct Seat(Arc<Agent>);

impl Seat {
    /// `None` when all are taken.
    fn take(agent: &Arc<Agent>) -> Option<Self> {
        let mut connections = agent
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *connections >= MAX_CONNECTIONS {
            return None;
        }
        *connections += 1;
        Some(Self(agent.clone()))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut connections = self
            .0
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *connections = connections.saturating_sub(1);
        drop(connections);
        self.0.changed.notify_all();
    }
}

/// A random id for this run of the agent.
fn new_instance() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow::anyhow!("failed to draw an instance id: {error}"))?;
    Ok(bytes
        .iter()
        .fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
}

/// Binds the socket, taking the place of an agent that is gone.
fn bind(socket: &Path) -> anyhow::Result<UnixListener> {
    match UnixListener::bind(socket) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(socket).is_ok() {
                bail!("another agent already listens at {}", socket.display());
            }
            std::fs::remove_file(socket)
                .with_context(|| format!("failed to remove the old socket {}", socket.display()))?;
            UnixListener::bind(socket)
        }
        result => result,
    }
    .with_context(|| format!("failed to listen at {}", socket.display()))
}

/// Serves until idle for `idle`, or until told to leave by SIGTERM, SIGINT or SIGHUP.
pub fn run(socket: &Path, idle: Duration) -> anyhow::Result<()> {
    // First of all, so that every thread inherits the mask and the signals reach only the waiting thread.
    let signals = signals::block().context("failed to block the signals that end an agent")?;
    hardening::be_first_to_go();
    hardening::allow_descriptors();
    hardening::refuse_inspection().context("failed to close the agent to inspection")?;
    let listener = bind(socket)?;
    let instance = new_instance()?;
    let agent = Arc::new(Agent {
        requests: Mutex::new(Requests::new(instance.clone(), Instant::now())),
        watches: Mutex::default(),
        instance,
        changed: Condvar::new(),
        leaving: AtomicBool::new(false),
        connections: Mutex::new(0),
    });
    let waiter = agent.clone();
    spawn("signals", move || {
        let _ = signals.wait();
        leave(&waiter);
    })?;
    let acceptor = agent.clone();
    spawn("accept", move || {
        accept(&acceptor, &listener);
        leave(&acceptor);
    })?;
    // It looks into folders of the target, which may answer late or never.
    spawn("sweep", perform::sweep)?;
    let mut requests = agent.requests();
    loop {
        let now = Instant::now();
        requests.expire(now);
        // Who watches a script is not idle.
        let idle_for = match agent.watches().running() {
            0 => requests.idle(now),
            _ => Duration::ZERO,
        };
        if idle_for >= idle || agent.leaving.load(Ordering::SeqCst) {
            break;
        }
        let nap = (idle.saturating_sub(idle_for)).min(Duration::from_mins(1));
        requests = agent
            .changed
            .wait_timeout(requests, nap)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
    drop(requests);
    farewell(&agent);
    let _ = std::fs::remove_file(socket);
    Ok(())
}

/// Running requests disarm and let go before the process ends, and whoever is connected gets their outcomes.
fn farewell(agent: &Agent) {
    let mut requests = agent.requests();
    let deadline = Instant::now() + FAREWELL;
    while requests.cancel_all() > 0 && Instant::now() < deadline {
        let rest = deadline.saturating_duration_since(Instant::now());
        requests = agent
            .changed
            .wait_timeout(requests, rest)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
    let deadline = Instant::now() + LAST_ANSWERS;
    while requests.waiting() > 0 && agent.connected() && Instant::now() < deadline {
        let rest = deadline.saturating_duration_since(Instant::now());
        requests = agent
            .changed
            .wait_timeout(requests, rest)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .with_context(|| format!("failed to start the {name} thread"))
}

fn leave(agent: &Agent) {
    let _requests = agent.requests();
    agent.leaving.store(true, Ordering::SeqCst);
    agent.changed.notify_all();
}

fn accept(agent: &Arc<Agent>, listener: &UnixListener) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if let Err(error) = hardening::check_peer(&stream) {
            eprintln!("refused a connection: {error}");
            continue;
        }
        let Some(seat) = Seat::take(agent) else {
            eprintln!("refused a connection: {MAX_CONNECTIONS} are open");
            continue;
        };
        let started = spawn("connection", move || {
            if let Err(error) = serve(&seat.0, &stream) {
                eprintln!("a connection ended: {error:#}");
            }
            let _ = stream.shutdown(Shutdown::Both);
        });
        if let Err(error) = started {
            eprintln!("refused a connection: {error:#}");
        }
    }
}

/// What a peer says, within the time that it has: from its first byte a message has to arrive as a whole.
struct Incoming<'a> {
    stream: &'a UnixStream,
    /// How long it may say nothing before that.
    patience: Duration,
    /// How long it may take from then on.
    limit: Duration,
    /// When the message that has begun has to be there.
    until: Option<Instant>,
}

impl Incoming<'_> {
    fn next(&mut self, patience: Duration) -> Result<Option<ToAgent>, framing::FrameError> {
        self.patience = patience;
        self.until = None;
        framing::read(self, REQUEST_BYTES)
    }
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = match self.until {
            None => self.patience,
            Some(until) => until.saturating_duration_since(Instant::now()),
        };
        if limit.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(limit))?;
        let mut stream = self.stream;
        let count = stream.read(buffer)?;
        self.until
            .get_or_insert_with(|| Instant::now() + self.limit);
        Ok(count)
    }
}

fn serve(agent: &Arc<Agent>, stream: &UnixStream) -> anyhow::Result<()> {
    stream
        .set_write_timeout(Some(PEER_LIMIT))
        .context("failed to set a write limit")?;
    let (answers, queue) = sync_channel::<ToOperator>(ANSWERS);
    let writer = stream.try_clone().context("failed to share a connection")?;
    spawn("answers", move || write_answers(writer, &queue))?;
    let served = converse(agent, stream, &answers);
    let _ = stream.shutdown(Shutdown::Both);
    // Requests that still run know of the queue; whoever empties it learns here that there is nobody any more.
    let _ = answers.try_send(ToOperator::Pong);
    served
}

fn converse(
    agent: &Arc<Agent>,
    stream: &UnixStream,
    answers: &SyncSender<ToOperator>,
) -> anyhow::Result<()> {
    let mut incoming = Incoming {
        stream,
        patience: PEER_LIMIT,
        limit: PEER_LIMIT,
        until: None,
    };
    let Some(ToAgent::Hello { protocol }) = incoming.next(PEER_LIMIT)? else {
        bail!("the peer did not introduce itself");
    };
    tell(
        answers,
        ToOperator::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: agent.instance.clone(),
        },
    )?;
    while let Some(message) = incoming.next(SILENCE)? {
        match message {
            ToAgent::Run { request } => start(agent, protocol, request, answers)?,
            ToAgent::Cancel { id } => agent.requests().cancel(&id),
            ToAgent::Acknowledge { id } => {
                let freed = agent.requests().acknowledge(&id, Instant::now());
                agent.changed.notify_all();
                give_back(freed);
            }
            ToAgent::Watch { id } => agent.watches().watch(&id, answers),
            ToAgent::Ping => tell(answers, ToOperator::Pong)?,
            ToAgent::Hello { .. } | ToAgent::Unknown => {}
        }
    }
    Ok(())
}

/// Answers a peer.
///
/// # Errors
/// When it has gone, or does not read its answers.
fn tell(answers: &SyncSender<ToOperator>, answer: ToOperator) -> anyhow::Result<()> {
    answers.try_send(answer).map_err(|error| match error {
        TrySendError::Full(_) => anyhow::anyhow!("the peer left {ANSWERS} answers unread"),
        TrySendError::Disconnected(_) => anyhow::anyhow!("the peer has gone"),
    })
}

fn write_answers(mut stream: UnixStream, queue: &Receiver<ToOperator>) {
    while let Ok(message) = queue.recv() {
        if let Err(error) = framing::write(&mut stream, &message) {
            let ended = matches!(&error, framing::FrameError::Io(error) if error.kind() == io::ErrorKind::BrokenPipe);
            if !ended {
                eprintln!("failed to answer: {error}");
            }
            // Ends the reading half too; the operator connects again and asks again.
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// Why a request is not begun at all.
fn objection(agent: &Agent, protocol: u32, request: &Request) -> Option<(Reason, String)> {
    if protocol != PROTOCOL {
        let message =
            format!("the sidecar speaks protocol {PROTOCOL}, the operator protocol {protocol}");
        return Some((Reason::SidecarVersion, message));
    }
    if request.action.at_most_once() && request.instance.as_deref() != Some(agent.instance.as_str())
    {
        let message = "the request was meant for an earlier run of the sidecar, which is gone; whether its script ran is \
                       not known, and it is not run again";
        return Some((Reason::SidecarLost, message.to_owned()));
    }
    if let sidewinder_model::Action::Exec(exec) = &request.action
        && exec.script.len() > MAX_SCRIPT_BYTES
    {
        let message = format!(
            "the script has {} bytes; at most {MAX_SCRIPT_BYTES} are allowed",
            exec.script.len()
        );
        return Some((Reason::InternalError, message));
    }
    None
}

fn start(
    agent: &Arc<Agent>,
    protocol: u32,
    request: Request,
    answers: &SyncSender<ToOperator>,
) -> anyhow::Result<()> {
    let id = request.id.clone();
    if id.len() > ID_BYTES {
        bail!(
            "the id of a request has {} bytes; at most {ID_BYTES} are allowed",
            id.len()
        );
    }
    if let Some((reason, message)) = objection(agent, protocol, &request) {
        let refused = ToOperator::Refused {
            id,
            reason,
            message,
        };
        return tell(answers, refused);
    }
    let begun = agent.requests().begin(&id, answers, Instant::now());
    match begun {
        Begin::Start(cancel) => {
            tell(answers, ToOperator::Accepted { id: id.clone() })?;
            let worker = agent.clone();
            // Here, where requests come one after the other.
            let asker = perform::asker(&request);
            let started = spawn("request", move || {
                let (mut outcome, left) = carry_out(&worker.instance, &request, &cancel, asker);
                for script in left {
                    watch_on(&worker, &mut outcome, script);
                }
                finish(&worker, outcome);
            });
            if let Err(error) = started {
                finish(agent, failed(&agent.instance, id, format!("{error:#}")));
            }
        }
        Begin::Attached => tell(answers, ToOperator::Accepted { id })?,
        Begin::Finished(outcome) => tell(answers, ToOperator::Finished { outcome })?,
        Begin::Full => {
            let message = format!(
                "{} requests already run in this sidecar",
                requests::MAX_RUNNING
            );
            let reason = Reason::QueueFull;
            tell(
                answers,
                ToOperator::Refused {
                    id,
                    reason,
                    message,
                },
            )?;
        }
    }
    Ok(())
}

fn finish(agent: &Agent, outcome: Outcome) {
    let (outcome, bytes) = fit(outcome, requests::KEEP_BYTES);
    agent.requests().finish(outcome, bytes, Instant::now());
    agent.changed.notify_all();
    give_back(bytes);
}

/// After an answer of so many bytes was made or let go.
fn give_back(bytes: usize) {
    if bytes >= LARGE_ANSWER {
        hardening::give_back_memory();
    }
}

fn failed(instance: &str, id: String, message: String) -> Outcome {
    Outcome {
        id,
        instance: instance.to_owned(),
        targets: vec![TargetOutcome::failed(Reason::InternalError, message)],
    }
}

/// Does the work. A defect of ours becomes an answer, not a silent end.
fn carry_out(
    instance: &str,
    request: &Request,
    cancel: &Arc<AtomicBool>,
    asker: Asker,
) -> (Outcome, Vec<LeftRunning>) {
    match catch_unwind(AssertUnwindSafe(|| {
        perform::perform(request, instance, cancel, asker)
    })) {
        Ok(performed) => performed,
        Err(_) => (
            failed(
                instance,
                request.id.clone(),
                "the sidecar panicked; its log has the place".to_owned(),
            ),
            Vec::new(),
        ),
    }
}

/// Watches a script whose request has ended, and says so in the outcome. Until its end nobody else gets its thread.
fn watch_on(agent: &Arc<Agent>, outcome: &mut Outcome, script: LeftRunning) {
    let pid = Some(script.pid());
    let Some(target) = outcome.targets.iter_mut().find(|target| target.pid == pid) else {
        return;
    };
    let Some(Data::Exec(exec)) = &mut target.data else {
        return;
    };
    let id = outcome.id.clone();
    if !agent.watches().begin(&id) {
        return;
    }
    let (watcher, pid) = (agent.clone(), script.pid());
    let given_up = move |reason| ScriptEnd {
        pid,
        reason,
        after_milliseconds: 0,
    };
    let watching = spawn("watch", {
        let id = id.clone();
        move || {
            let end = catch_unwind(AssertUnwindSafe(|| script.wait(WATCH_LIMIT)))
                .unwrap_or_else(|_| given_up(Reason::InternalError));
            // First of all: the operator has as long to ask for the end as for an outcome.
            watcher.requests().used(Instant::now());
            watcher.watches().end(&id, end);
            watcher.changed.notify_all();
        }
    });
    match watching {
        Ok(()) => {
            exec.watched = true;
            target
                .message
                .push_str("; it is watched, and its end will be told");
        }
        Err(error) => {
            eprintln!("a script that is still running is not watched: {error:#}");
            agent.watches().end(&id, given_up(Reason::InternalError));
        }
    }
}

/// Makes an outcome small enough to send: structured data goes first, then text.
fn fit(mut outcome: Outcome, limit: usize) -> (Outcome, usize) {
    let mut bytes = framing::length(&outcome);
    while bytes > limit {
        let weight = |target: &TargetOutcome| {
            let data = target.data.as_ref().map_or(0, framing::length);
            target.text.len().saturating_add(data)
        };
        let Some(largest) = outcome
            .targets
            .iter_mut()
            .max_by_key(|target| weight(target))
        else {
            break;
        };
        if largest.data.take().is_some() {
            largest
                .message
                .push_str(" (the structured answer was too large and was left out)");
        } else if largest.text.is_empty() {
            break;
        } else {
            largest.text = String::new();
        }
        bytes = framing::length(&outcome);
    }
    (outcome, bytes)
}
