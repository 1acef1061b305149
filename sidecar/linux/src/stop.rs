//! Holding threads of a target still, for a bounded time, and letting them go on every path out.
//!
//! A ptrace attachment belongs to one thread of the tracer, so every stop has a thread of its own. The end of that
//! thread detaches whatever it still holds, also a thread in uninterruptible sleep that never stopped, and the end of
//! the whole sidecar does the same: <https://man7.org/linux/man-pages/man2/ptrace.2.html>.

#![expect(
    unsafe_code,
    reason = "nix's waitpid loses the status of a real-time signal, and its detach cannot send one"
)]

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::unistd::Pid;

use crate::turns::{Turn, Turns};
use crate::{Error, Process, procfs};

/// How long a thread may take to stop before it is given up: only one in uninterruptible sleep needs longer.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// `PTRACE_EVENT_STOP` as it stands in a wait status.
const EVENT_STOP: i32 = 128;

/// How long a stop waits for another one of this sidecar on the same process to end: stops are short and bounded.
const MAX_TURN: Duration = Duration::from_millis(1500);

/// The processes that this sidecar holds. A process has one tracer at a time, so two of our own requests take turns
/// instead of taking each other for a foreign debugger.
static HELD: Turns = Turns::new();

/// Why threads were not stopped. None of them is held any more.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// Somebody else traces the process.
    #[error("process {pid} is traced by {}: end that debugger or tracer first",
        if *tracer == 0 { "a process that cannot be seen from here".to_owned() } else { format!("process {tracer}") })]
    Traced {
        /// The process.
        pid: i32,
        /// Who traces it, 0 where that cannot be seen.
        tracer: i32,
    },
    /// A signal has stopped it, and it stays stopped.
    #[error("process {pid} is stopped by a signal: send it SIGCONT first")]
    StoppedBySignal {
        /// The process.
        pid: i32,
    },
    /// A thread did not stop in time: it is in uninterruptible sleep, or got no processor to stop on.
    #[error("thread {tid} of process {pid} did not stop: {}",
        if *uninterruptible { "it is in uninterruptible sleep (state D)" } else { "it got no processor for half a second" })]
    Unstoppable {
        /// The process.
        pid: i32,
        /// The thread.
        tid: u64,
        /// Whether it was in uninterruptible sleep when it was given up.
        uninterruptible: bool,
    },
    /// It may not be traced, or has ended.
    #[error(transparent)]
    Process(#[from] Error),
}

/// Threads of a target that stand still. They go on when this is dropped or [`StopGuard::release`]d, and in any case
/// when the limit is over.
#[derive(Debug)]
pub struct StopGuard {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    tids: Vec<u64>,
    // Last, so that the next turn begins after this one's detach.
    _turn: Turn,
}

/// What became of a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// From the first interrupt to the last detach.
    pub paused: Duration,
    /// The limit was over before the owner let go: what was read meanwhile may be torn.
    pub expired: bool,
}

#[derive(Debug)]
enum Command {
    Hold(Vec<u64>, Sender<Result<Vec<u64>, Failure>>),
    At(u64, Work),
    Release,
}

/// Something done to a thread that stands still, `None` when it does not: it has ended, was never held, or is about to
/// get a signal.
struct Work(Box<dyn FnOnce(Option<Pid>) + Send>);

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work")
    }
}

#[derive(Debug, Default)]
struct Shared {
    expired: AtomicBool,
    times: Mutex<(Option<Instant>, Option<Instant>)>,
}

#[derive(Debug)]
enum Failure {
    Refused(u64, Errno),
    GroupStop,
    Unstoppable(u64),
}

/// How long somebody else who traces the process is waited for: another sidecar lets go within milliseconds.
const OTHERS: Duration = Duration::from_millis(200);
/// How long it is before it is tried again.
const OTHERS_PAUSE: Duration = Duration::from_millis(5);

/// Stops these threads of the process, for at most `limit`. Threads that have ended are left out of
/// [`StopGuard::tids`].
///
/// # Errors
/// [`StopError`]; no thread is held then.
pub fn stop(process: &Process, tids: &[u64], limit: Duration) -> Result<StopGuard, StopError> {
    let until = Instant::now() + OTHERS;
    let mut denied = false;
    loop {
        let error = match attempt(process, tids, limit) {
            Ok(guard) => return Ok(guard),
            Err(error) => error,
        };
        let again = match &error {
            StopError::Traced { .. } => Instant::now() < until,
            // Whoever traced it when this was tried may have let go before that was looked up: ptrace(2) says EPERM.
            StopError::Process(Error::Denied { .. }) => !std::mem::replace(&mut denied, true),
            _ => false,
        };
        if !again {
            return Err(error);
        }
        std::thread::sleep(OTHERS_PAUSE);
    }
}

fn attempt(process: &Process, tids: &[u64], limit: Duration) -> Result<StopGuard, StopError> {
    let turn = HELD
        .take(process.pid(), MAX_TURN)
        .ok_or_else(|| StopError::Traced {
            pid: process.pid(),
            tracer: i32::try_from(std::process::id()).unwrap_or_default(),
        })?;
    left_alone(process)?;
    let (commands, inbox) = channel();
    let shared = Arc::new(Shared::default());
    let in_thread = Arc::clone(&shared);
    let thread = std::thread::Builder::new()
        .name("tracer".to_owned())
        .stack_size(64 << 10)
        .spawn(move || trace(&inbox, Instant::now() + limit, &in_thread))
        .map_err(|e| process.io("start a thread to stop", e))?;
    let mut guard = StopGuard {
        commands,
        thread: Some(thread),
        shared,
        tids: Vec::new(),
        _turn: turn,
    };
    guard.hold(process, tids)?;
    Ok(guard)
}

/// Whether nobody else has the process: no tracer, and no signal that has stopped it.
///
/// # Errors
/// [`StopError::Traced`] and [`StopError::StoppedBySignal`] when somebody has.
pub(crate) fn left_alone(process: &Process) -> Result<(), StopError> {
    let pid = process.pid();
    let tracer = process.status()?.tracer;
    if tracer != 0 {
        return Err(traced(pid, tracer));
    }
    if process.stopped_by_signal()? {
        return Err(StopError::StoppedBySignal { pid });
    }
    Ok(())
}

/// Stops every thread of the process, also those started meanwhile, for at most `limit`.
///
/// # Errors
/// [`StopError`]; no thread is held then.
pub fn stop_all(process: &Process, limit: Duration) -> Result<StopGuard, StopError> {
    let mut guard = stop(process, &process.tids()?, limit)?;
    // A thread can only be started by one that runs, so this ends once a list holds nothing new.
    loop {
        let new: Vec<u64> = process
            .tids()?
            .into_iter()
            .filter(|tid| !guard.tids.contains(tid))
            // One that is ending is still listed but cannot be held.
            .filter(|tid| {
                process
                    .thread_stat(*tid)
                    .is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
            })
            .collect();
        if new.is_empty() || !guard.holds() {
            return Ok(guard);
        }
        guard.hold(process, &new)?;
    }
}

impl StopGuard {
    /// The threads that stand still.
    pub fn tids(&self) -> &[u64] {
        &self.tids
    }

    /// Whether they still do: false once the limit is over.
    pub fn holds(&self) -> bool {
        !self.shared.expired.load(Ordering::Acquire)
    }

    /// Stops more threads of the same process, under the same limit.
    ///
    /// # Errors
    /// [`StopError`]; the guard holds nothing then.
    pub fn hold(&mut self, process: &Process, tids: &[u64]) -> Result<(), StopError> {
        let pid = process.pid();
        let (reply, answer) = channel();
        let sent = self.commands.send(Command::Hold(tids.to_vec(), reply));
        let answer = match sent {
            Ok(()) => answer.recv().ok(),
            Err(_) => None,
        };
        let held = match answer {
            Some(Ok(held)) => held,
            // The limit was over before these could be stopped.
            None => {
                let tid = tids.first().copied().unwrap_or_default();
                return Err(unstoppable(process, tid));
            }
            Some(Err(failure)) => {
                self.end();
                return Err(match failure {
                    Failure::GroupStop => StopError::StoppedBySignal { pid },
                    Failure::Unstoppable(tid) => unstoppable(process, tid),
                    Failure::Refused(tid, errno) => refused(process, tid, errno),
                });
            }
        };
        // The numbers could have been taken by somebody else since they were listed.
        if held.iter().any(|tid| process.thread_stat(*tid).is_none()) && !process.alive() {
            self.end();
            return Err(Error::Gone { pid }.into());
        }
        self.tids.extend(held);
        Ok(())
    }

    /// Does something to a thread that stands still in its own course, not before a signal. It is done by the thread that
    /// holds it, which is the only one that the kernel lets at its registers, and which lets nothing go meanwhile; so it
    /// has to be short.
    pub(crate) fn at<R: Send + 'static>(
        &self,
        tid: u64,
        work: impl FnOnce(Pid) -> R + Send + 'static,
    ) -> Option<R> {
        let (reply, answer) = channel();
        let work = Work(Box::new(move |thread| {
            // Whoever asked waits for it.
            let _ = reply.send(thread.map(work));
        }));
        self.commands.send(Command::At(tid, work)).ok()?;
        answer.recv().ok().flatten()
    }

    /// Lets them go and says how long they stood still.
    pub fn release(mut self) -> Released {
        self.end();
        let times = self
            .shared
            .times
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let paused = match *times {
            (Some(first), Some(last)) => last.duration_since(first),
            _ => Duration::ZERO,
        };
        Released {
            paused,
            expired: self.shared.expired.load(Ordering::Acquire),
        }
    }

    fn end(&mut self) {
        // It fails when the thread has ended by itself, which is what is wanted.
        let _ = self.commands.send(Command::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for StopGuard {
    fn drop(&mut self) {
        self.end();
    }
}

fn unstoppable(process: &Process, tid: u64) -> StopError {
    let state = process.thread_stat(tid).map(|stat| stat.state);
    StopError::Unstoppable {
        pid: process.pid(),
        tid,
        uninterruptible: state == Some('D'),
    }
}

/// What to say of a process that the thread `tracer` traces, whose process is looked for under its own number.
fn traced(pid: i32, tracer: i32) -> StopError {
    let status = std::fs::read(format!("/proc/{tracer}/status")).ok();
    let tracer = status
        .and_then(|text| procfs::status(&text))
        .map_or(tracer, |status| status.tgid);
    StopError::Traced { pid, tracer }
}

fn refused(process: &Process, tid: u64, errno: Errno) -> StopError {
    if errno == Errno::EPERM
        && let Some(status) = process.thread_status(tid)
        && status.tracer != 0
    {
        return traced(process.pid(), status.tracer);
    }
    if errno == Errno::EPERM
        && process
            .thread_stat(tid)
            .is_some_and(|stat| stat.state == 't')
    {
        return StopError::Traced {
            pid: process.pid(),
            tracer: 0,
        };
    }
    process.refused("attach to", errno).into()
}

/// A thread that is attached, and the signal it was about to get when it stopped.
struct Held {
    tid: libc::pid_t,
    stopped: bool,
    signal: i32,
}

fn trace(inbox: &Receiver<Command>, deadline: Instant, shared: &Shared) {
    let mut held = Vec::new();
    loop {
        match inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Command::Hold(tids, reply)) => {
                let result = hold(&tids, deadline, &mut held, shared);
                let failed = result.is_err();
                if failed {
                    let_go(&held, shared);
                    held.clear();
                }
                let _ = reply.send(result);
                if failed {
                    return;
                }
            }
            Ok(Command::At(tid, Work(work))) => {
                let thread = held
                    .iter()
                    .find(|thread: &&Held| u64::from(thread.tid.unsigned_abs()) == tid)
                    .filter(|thread| thread.stopped && thread.signal == 0);
                work(thread.map(|thread| Pid::from_raw(thread.tid)));
            }
            Ok(Command::Release) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                shared.expired.store(true, Ordering::Release);
                break;
            }
        }
    }
    let_go(&held, shared);
}

fn hold(
    tids: &[u64],
    deadline: Instant,
    held: &mut Vec<Held>,
    shared: &Shared,
) -> Result<Vec<u64>, Failure> {
    let from = held.len();
    for tid in tids {
        let pid = i32::try_from(*tid).map_err(|_| Failure::Refused(*tid, Errno::ESRCH))?;
        match ptrace::seize(Pid::from_raw(pid), ptrace::Options::empty()) {
            Ok(()) => {}
            Err(Errno::ESRCH) => continue,
            // What the kernel says of one that has ended and is still listed.
            Err(Errno::EPERM) if has_ended(pid) => continue,
            Err(errno) => return Err(Failure::Refused(*tid, errno)),
        }
        held.push(Held {
            tid: pid,
            stopped: false,
            signal: 0,
        });
        shared
            .times
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .get_or_insert_with(Instant::now);
        // It fails only for a thread that has just ended, which the wait below finds.
        let _ = ptrace::interrupt(Pid::from_raw(pid));
    }
    let patience = deadline.min(Instant::now() + MAX_WAIT);
    let mut stopped = Vec::new();
    for thread in held.iter_mut().skip(from) {
        if wait(thread, patience)? {
            stopped.push(u64::from(thread.tid.unsigned_abs()));
        }
    }
    held.retain(|thread| thread.stopped);
    Ok(stopped)
}

/// Whether a thread has ended, whether or not it is still listed.
fn has_ended(tid: libc::pid_t) -> bool {
    match std::fs::read(format!("/proc/{tid}/stat")) {
        Ok(text) => procfs::stat(&text).is_some_and(|stat| matches!(stat.state, 'Z' | 'X')),
        Err(error) => matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
    }
}

/// What a wait status means for somebody who waits for a stop.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Stopped { signal: i32 },
    GroupStop,
    Ended,
}

fn event(status: i32) -> Event {
    if !libc::WIFSTOPPED(status) {
        return Event::Ended;
    }
    let signal = libc::WSTOPSIG(status);
    match (status >> 16, signal) {
        (EVENT_STOP, libc::SIGTRAP) => Event::Stopped { signal: 0 },
        (EVENT_STOP, _) => Event::GroupStop,
        // A signal came first; the thread stands still before it, and gets it when it is let go.
        (0, signal) => Event::Stopped { signal },
        _ => Event::Stopped { signal: 0 },
    }
}

/// Waits until the thread stands still; false when it has ended.
fn wait(thread: &mut Held, patience: Instant) -> Result<bool, Failure> {
    let mut tries = 0_u32;
    loop {
        let mut status = 0;
        // SAFETY: `status` lives for the call, which writes nothing else.
        let got = unsafe {
            libc::waitpid(
                thread.tid,
                &raw mut status,
                libc::WNOHANG | libc::__WALL | libc::__WNOTHREAD,
            )
        };
        if got == thread.tid {
            match event(status) {
                Event::Stopped { signal } => {
                    thread.stopped = true;
                    thread.signal = signal;
                    return Ok(true);
                }
                Event::GroupStop => return Err(Failure::GroupStop),
                Event::Ended => return Ok(false),
            }
        }
        if got == -1 && Errno::last() != Errno::EINTR {
            return Ok(false);
        }
        if Instant::now() >= patience {
            return Err(Failure::Unstoppable(u64::from(thread.tid.unsigned_abs())));
        }
        // Most stops take some tens of microseconds.
        tries += 1;
        match tries {
            0..64 => std::thread::yield_now(),
            64..128 => std::thread::sleep(Duration::from_micros(50)),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn let_go(held: &[Held], shared: &Shared) {
    for thread in held.iter().filter(|thread| thread.stopped) {
        // SAFETY: PTRACE_DETACH reads no memory of ours; its data is the signal's number.
        unsafe {
            libc::ptrace(
                libc::PTRACE_DETACH,
                thread.tid,
                std::ptr::null_mut::<libc::c_void>(),
                std::ptr::without_provenance_mut::<libc::c_void>(
                    usize::try_from(thread.signal).unwrap_or_default(),
                ),
            );
        }
    }
    shared
        .times
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .1 = Some(Instant::now());
}

#[cfg(test)]
mod tests {
    use super::{Event, event, has_ended};
    use nix::libc;

    #[test]
    fn a_process_that_is_listed_until_its_parent_asks_has_ended() {
        assert!(!has_ended(
            libc::pid_t::try_from(std::process::id()).unwrap()
        ));
        let mut child = std::process::Command::new("/proc/self/exe")
            .arg("--list")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let pid = libc::pid_t::try_from(child.id()).unwrap();
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !has_ended(pid) {
            assert!(std::time::Instant::now() < limit);
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(has_ended(pid));
    }

    #[test]
    fn a_stop_a_signal_and_a_group_stop_are_told_apart() {
        let stopped = |signal: i32, event: i32| 0x7f | (signal << 8) | (event << 16);
        assert_eq!(
            event(stopped(libc::SIGTRAP, 128)),
            Event::Stopped { signal: 0 }
        );
        assert_eq!(event(stopped(libc::SIGSTOP, 128)), Event::GroupStop);
        assert_eq!(event(stopped(libc::SIGTTIN, 128)), Event::GroupStop);
        assert_eq!(
            event(stopped(libc::SIGUSR1, 0)),
            Event::Stopped {
                signal: libc::SIGUSR1
            }
        );
        let real_time = libc::SIGRTMIN() + 3;
        assert_eq!(
            event(stopped(real_time, 0)),
            Event::Stopped { signal: real_time }
        );
        assert_eq!(event(9), Event::Ended);
        assert_eq!(event(3 << 8), Event::Ended);
    }
}
