//! Writing into a target. Nothing that only reads has a reason to name this module.

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::fs::OFlags;
use sidewinder_decode::Addr;
use sidewinder_decode::remote_exec::PLEASE_STOP;

use crate::pinned::Pinned;
use crate::stop::{StopError, StopGuard, left_alone, stop};
use crate::stopped::Stopped;
use crate::{Error, Process};

/// The longest a thread is held to write a request or to take it back.
const MAX_STOP: Duration = Duration::from_millis(100);

/// The right to write into one target.
#[derive(Debug)]
pub struct Writer<'a> {
    process: &'a Process,
    /// Its memory as it was at first: the right to it stays when the target becomes somebody else's or closes itself, and
    /// it ends when the target executes another program.
    memory: Pinned,
}

impl<'a> Writer<'a> {
    /// A writer for this target.
    pub fn new(process: &'a Process) -> Self {
        Self {
            process,
            memory: process.pinned_memory(),
        }
    }

    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), Error> {
        let what = "read the memory of";
        if self.memory.file().is_some() {
            let read = self.memory.read(at, buf);
            return read.map_err(|error| self.failed(what, &error));
        }
        self.process
            .read_memory(at.0, buf)
            .map_err(|errno| self.process.refused(what, errno))
    }

    /// Writes all of `bytes` at `at`.
    ///
    /// # Errors
    /// What the kernel said; part of the bytes may have been written.
    pub fn write(&self, at: Addr, bytes: &[u8]) -> Result<(), Error> {
        self.memory
            .write(at, bytes)
            .map_err(|error| self.failed("write the memory of", &error))
    }

    /// What became of the file.
    fn failed(&self, what: &'static str, error: &io::Error) -> Error {
        let pid = self.process.pid();
        match error.raw_os_error() {
            Some(code) => self.process.refused(what, Errno::from_raw(code)),
            // It ends at its beginning.
            None if self.process.is_ending() => Error::Gone { pid },
            None => Error::Replaced { pid },
        }
    }
}

/// Where one thread's remote debugger request stands in the target (PEP 768).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestSlot {
    /// `debugger_pending_call`, an `int32_t`.
    pub pending: Addr,
    /// `debugger_script_path`.
    pub path: Addr,
    /// Its size in bytes, the terminating NUL included.
    pub path_size: usize,
    /// The low byte of the thread's `eval_breaker`.
    pub eval_breaker: Addr,
}

/// Why no request was written.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// Somebody's request is outstanding on this thread.
    #[error("another remote execution request waits for thread {tid}")]
    Outstanding {
        /// The thread.
        tid: u64,
    },
    /// The path does not fit.
    #[error("the script's path is longer than the {limit} bytes the interpreter has for it")]
    PathTooLong {
        /// How much fits.
        limit: usize,
    },
    /// The thread has ended.
    #[error("thread {tid} has ended")]
    ThreadGone {
        /// The thread.
        tid: u64,
    },
    /// The thread did not stay stopped while the request was written; nothing is armed.
    #[error("thread {tid} was not held long enough to write the request")]
    Expired {
        /// The thread.
        tid: u64,
    },
    /// The thread could not be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The memory could not be read or written.
    #[error(transparent)]
    Process(#[from] Error),
}

/// What became of a request that was taken back.
#[derive(Debug)]
pub enum Disarmed {
    /// It was still waiting, and nothing of ours is armed any more.
    TakenBack,
    /// The thread had accepted it already.
    Accepted,
    /// The process has ended, or runs another program.
    Gone,
    /// It could not be taken back and may still run.
    StillArmed(Error),
}

/// A request that waits for its thread. Dropping it takes it back.
#[derive(Debug)]
pub struct Armed<'a> {
    writer: Writer<'a>,
    tid: u64,
    slot: RequestSlot,
    path: Vec<u8>,
    paused: Duration,
    finished: bool,
}

/// What is done to a thread while it stands still, after its request was written.
pub type Wake<'a> = &'a mut dyn FnMut(&Stopped<'_>);

/// Writes a request for the thread to run the file at `path` (as the target sees it).
///
/// With `wake` the thread stands still meanwhile, which ends some waits (`epoll_wait`), and is looked at before it goes
/// on; without, the writes race with the thread as CPython's own `sys.remote_exec` does, and whoever waits sets the bit
/// again.
///
/// # Errors
/// [`ArmError`]; nothing is armed then.
pub fn arm<'a>(
    process: &'a Process,
    tid: u64,
    slot: RequestSlot,
    path: &str,
    wake: Option<Wake<'_>>,
) -> Result<Armed<'a>, ArmError> {
    let mut path = path.as_bytes().to_vec();
    path.push(0);
    if path.len() > slot.path_size || path.len() > 4096 {
        return Err(ArmError::PathTooLong {
            limit: slot.path_size.saturating_sub(1),
        });
    }
    let guard = if wake.is_some() {
        Some(stop(process, &[tid], MAX_STOP)?)
    } else {
        left_alone(process)?;
        None
    };
    let gone = match &guard {
        Some(guard) => guard.tids().is_empty(),
        None => process.thread_stat(tid).is_none(),
    };
    if gone {
        return Err(ArmError::ThreadGone { tid });
    }
    let mut armed = Armed {
        writer: Writer::new(process),
        tid,
        slot,
        path,
        paused: Duration::ZERO,
        finished: true,
    };
    if armed.pending()? != 0 {
        return Err(ArmError::Outstanding { tid });
    }
    // CPython's own order: the path first, then the request, then the bit.
    armed.writer.write(slot.path, &armed.path)?;
    if guard.as_ref().is_some_and(|guard| !guard.holds()) {
        return Err(ArmError::Expired { tid });
    }
    armed.finished = false;
    let written = armed
        .writer
        .write(slot.pending, &1_i32.to_le_bytes())
        .and_then(|()| armed.set_bit());
    if let Err(error) = written {
        // While it is held, not by a stop of its own that would wait for this one.
        if let Ok(true) = take_back(&armed.writer, slot, &armed.path) {
            armed.finished = true;
        }
        drop(guard);
        return Err(error.into());
    }
    if let (Some(guard), Some(wake)) = (guard, wake) {
        wake(&armed.stopped(&guard));
        armed.paused = guard.release().paused;
    }
    Ok(armed)
}

/// Holds one thread still, does something to it, and says how long that took.
///
/// # Errors
/// [`StopError`]; nothing was done then.
pub fn hold(process: &Process, tid: u64, wake: Wake<'_>) -> Result<Duration, StopError> {
    let guard = stop(process, &[tid], MAX_STOP)?;
    wake(&Stopped::new(process, &guard, tid));
    Ok(guard.release().paused)
}

impl Armed<'_> {
    /// The thread that was asked.
    pub fn tid(&self) -> u64 {
        self.tid
    }

    /// How long the thread was held still for this request so far.
    pub fn paused(&self) -> Duration {
        self.paused
    }

    fn pending(&self) -> Result<i32, Error> {
        let mut bytes = [0; 4];
        self.writer.read(self.slot.pending, &mut bytes)?;
        Ok(i32::from_le_bytes(bytes))
    }

    /// Whether the request still waits.
    ///
    /// # Errors
    /// [`Error::Gone`], or what the kernel said.
    pub fn waits(&self) -> Result<bool, Error> {
        Ok(self.pending()? != 0)
    }

    /// Only the low byte: the others are the instrumentation version, which the target changes.
    fn set_bit(&self) -> Result<(), Error> {
        let set = self
            .writer
            .memory
            .set_bits(self.slot.eval_breaker, PLEASE_STOP);
        set.map_err(|error| self.writer.failed("write the memory of", &error))
    }

    /// Sets the bit again, for a request that was written to a thread that ran.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn remind(&self) -> Result<(), Error> {
        if self.waits()? {
            self.set_bit()
        } else {
            Ok(())
        }
    }

    /// Interrupts whatever the thread waits for, with no signal that it or its parent could see, and looks at it before it
    /// goes on. Where the wait is one that returns EINTR after a stop (`epoll_wait`), that is enough for Python to run the
    /// request. The bit is set again where a signal handler that raised made the interpreter clear it without looking.
    ///
    /// # Errors
    /// [`StopError`]; the request still waits then.
    pub fn interrupt(&mut self, wake: Wake<'_>) -> Result<(), StopError> {
        let guard = stop(self.writer.process, &[self.tid], MAX_STOP)?;
        let result = match self.pending() {
            Ok(0) => Ok(()),
            Ok(_) => self.set_bit().map(|()| wake(&self.stopped(&guard))),
            Err(error) => Err(error),
        };
        self.paused += guard.release().paused;
        Ok(result?)
    }

    /// Takes the request back, with the thread held still where it can be; `undo` is done to it then, if the request had
    /// not been accepted.
    pub fn disarm(mut self, undo: Wake<'_>) -> (Disarmed, Duration) {
        let outcome = self.take_back(undo);
        (outcome, self.paused)
    }

    fn stopped<'b>(&'b self, guard: &'b StopGuard) -> Stopped<'b> {
        Stopped::new(self.writer.process, guard, self.tid)
    }

    /// Ends the guard of a request that the thread has accepted.
    pub fn accepted(mut self) -> Duration {
        self.finished = true;
        self.paused
    }

    fn take_back(&mut self, undo: Wake<'_>) -> Disarmed {
        if self.finished {
            return Disarmed::Accepted;
        }
        // A thread that cannot be stopped is in uninterruptible sleep, stopped by a signal, or traced by somebody else,
        // and mostly executes no Python; the write is the same four bytes. Should it accept the request in that instant
        // all the same, its script begins only if nobody has withdrawn it.
        let guard = stop(self.writer.process, &[self.tid], MAX_STOP).ok();
        let result = take_back(&self.writer, self.slot, &self.path);
        if let Some(guard) = guard {
            if let Ok(true) = result {
                undo(&self.stopped(&guard));
            }
            self.paused += guard.release().paused;
        }
        match result {
            Ok(true) => {
                self.finished = true;
                Disarmed::TakenBack
            }
            Ok(false) => {
                self.finished = true;
                Disarmed::Accepted
            }
            Err(error)
                if matches!(error, Error::Replaced { .. }) || self.writer.process.is_ending() =>
            {
                self.finished = true;
                Disarmed::Gone
            }
            Err(error) => Disarmed::StillArmed(error),
        }
    }
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.take_back(&mut |_| {});
        }
    }
}

/// Withdraws a request for `path` (with its NUL); false when it does not wait there.
pub(crate) fn take_back(
    writer: &Writer<'_>,
    slot: RequestSlot,
    path: &[u8],
) -> Result<bool, Error> {
    let mut pending = [0; 4];
    writer.read(slot.pending, &mut pending)?;
    if pending == [0; 4] {
        return Ok(false);
    }
    let mut there = vec![0; path.len()];
    writer.read(slot.path, &mut there)?;
    if there != path {
        // Somebody else's request has replaced ours.
        return Ok(false);
    }
    writer.write(slot.pending, &[0; 4])?;
    writer.read(slot.pending, &mut pending)?;
    if pending == [0; 4] {
        Ok(true)
    } else {
        Err(Error::Io {
            pid: writer.process.pid(),
            what: "take a request back from",
            source: std::io::Error::other("the request is still there after the write"),
        })
    }
}

/// Whether a path has the form of one of our requests.
pub fn is_ours(path: &str) -> bool {
    if crate::carrier::is_ours(path) {
        return true;
    }
    let number = |text: &str, least: u32| text.parse::<u32>().is_ok_and(|n| n >= least);
    path.strip_prefix("/proc/")
        .and_then(|rest| rest.split_once("/fd/"))
        .is_some_and(|(pid, fd)| number(pid, 1) && number(fd, crate::carrier::LEAST_DESCRIPTOR))
}

/// A request of our form that waits in a target.
struct Ours {
    path: String,
    /// Whether a sidecar that lives holds its file. When it cannot be told, one may.
    in_use: bool,
}

/// The request of our form that waits there, if one does.
fn ours(process: &Process, slot: RequestSlot) -> Result<Option<Ours>, Error> {
    let writer = Writer::new(process);
    let mut pending = [0; 4];
    writer.read(slot.pending, &mut pending)?;
    if pending == [0; 4] {
        return Ok(None);
    }
    let mut path = vec![0; slot.path_size.min(4096)];
    writer.read(slot.path, &mut path)?;
    let end = path.iter().position(|byte| *byte == 0).unwrap_or(0);
    path.truncate(end);
    let Some(path) = String::from_utf8(path).ok().filter(|text| is_ours(text)) else {
        return Ok(None);
    };
    let in_use = if crate::carrier::is_ours(&path) {
        crate::carrier::in_use(process, &path)
    } else {
        // The links in /proc are magic ones; it is enough to see whether the entry exists.
        let dir = path.rsplit_once('/').map_or("/", |(dir, _)| dir);
        let name = path
            .rsplit_once('/')
            .map_or(path.as_str(), |(_, name)| name);
        let seen = process
            .in_root(dir, OFlags::PATH | OFlags::DIRECTORY)
            .and_then(|dir| {
                let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::statat(&dir, name, flags).map_err(std::io::Error::from)
            });
        // It is there, or it is not ours to see.
        !matches!(seen, Err(error) if error.kind() == std::io::ErrorKind::NotFound)
    };
    Ok(Some(Ours { path, in_use }))
}

/// Whether a request of a sidecar that lives waits there.
///
/// # Errors
/// What the kernel said.
pub fn in_use(process: &Process, slot: RequestSlot) -> Result<bool, Error> {
    Ok(ours(process, slot)?.is_some_and(|ours| ours.in_use))
}

/// Takes back a request of our form that an ended sidecar left behind: true when there was one. A request whose file
/// is still held belongs to a sidecar that lives, and is left alone.
///
/// # Errors
/// What the kernel said.
pub fn disarm_stale(process: &Process, slot: RequestSlot) -> Result<bool, Error> {
    let Some(Ours {
        path,
        in_use: false,
    }) = ours(process, slot)?
    else {
        return Ok(false);
    };
    let mut there = path.clone().into_bytes();
    there.push(0);
    let taken = take_back(&Writer::new(process), slot, &there)?;
    if crate::carrier::is_ours(&path) {
        crate::carrier::remove(process, &path);
    }
    Ok(taken)
}

/// Takes a request for the script at `path` back from the processes that its thread has forked: where nobody told Python
/// of the fork, they have a copy of it. <https://docs.python.org/3/c-api/sys.html#c.PyOS_AfterFork_Child>
pub fn disarm_copies(process: &Process, tid: u64, slot: RequestSlot, path: &str) {
    let mut path = path.as_bytes().to_vec();
    path.push(0);
    for pid in process.children(tid) {
        // One that has ended, or runs another program by now, has no request.
        if let Ok(copy) = Process::open(pid) {
            let _ = take_back(&Writer::new(&copy), slot, &path);
        }
    }
}

/// How long it is until `deadline`, never negative.
pub(crate) fn remaining(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests {
    use super::is_ours;

    #[test]
    fn only_paths_of_our_form_are_ours() {
        assert!(is_ours("/proc/17/fd/40213"));
        assert!(is_ours("/dev/shm/.sidewinder-0a1b2c3d4e5f6071.py"));
        assert!(!is_ours("/proc/17/fd/3"));
        assert!(!is_ours("/proc/self/fd/40213"));
        assert!(!is_ours("/tmp/debug.py"));
        assert!(!is_ours(""));
    }
}
