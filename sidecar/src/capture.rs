//! Reading a target that stands still.
//!
//! In a build with a GIL no Python frame can change while the thread that holds the GIL is stopped, so only that one
//! is stopped, and confirmed to be the holder once it stands. When nobody holds the GIL nothing is stopped; what was
//! read counts only if no Python thread ran meanwhile. What fits neither is read with every Python thread stopped.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use sidewinder_decode::memory::PageCache;
use sidewinder_decode::remote_exec;
use sidewinder_decode::runtime::{GilState, Runtime};
use sidewinder_decode::{Addr, Memory, OsThread, ReadError};
use sidewinder_linux::stop::{StopError, StopGuard, stop};
use sidewinder_linux::{Process, SchedStat};

/// How long a target may be held still for one reading. The guard lets go by itself when it has passed.
pub const STOP_LIMIT: Duration = Duration::from_secs(1);

/// How often a reading is begun again because the target moved, before every Python thread is stopped.
const ATTEMPTS: u32 = 8;

/// What was read, and what it cost the target.
#[derive(Debug)]
pub struct Capture<T> {
    /// What was read.
    pub value: T,
    /// How long a thread of the target was held still, over all attempts.
    pub paused: Duration,
    /// Why what was read may be torn: the target could not be held still, or not long enough.
    pub torn: Option<Torn>,
}

/// Why a reading may be torn.
#[derive(Debug)]
pub enum Torn {
    /// The target could not be stopped.
    NotStopped(StopError),
    /// The target was let go before the reading was over.
    Overran,
}

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The target's memory could not be read.
    #[error("failed to read the process")]
    Read(#[from] ReadError),
    /// What the kernel knows of the target could not be read.
    #[error(transparent)]
    Process(#[from] sidewinder_linux::Error),
}

/// The memory of a target that stands still, each page read once.
pub type Still<'a> = PageCache<InTime<'a>>;

/// A target's memory until a moment: a walk through hostile memory ends by counts, which may still be long.
#[derive(Debug)]
pub struct InTime<'a> {
    process: &'a Process,
    until: Instant,
}

impl Memory for InTime<'_> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        if Instant::now() >= self.until {
            return Err(ReadError::Fault { at, len: buf.len() });
        }
        self.process.read(at, buf)
    }
}

/// What must not change while nobody is stopped.
#[derive(PartialEq)]
struct Activity {
    gils: Vec<GilState>,
    /// The time every Python thread has spent on a CPU; a thread that ran has another one.
    ran: Vec<(u64, Option<SchedStat>)>,
}

struct Reader<'a> {
    process: &'a Process,
    runtime: &'a Runtime,
    until: Instant,
    paused: Duration,
}

impl<'a> Reader<'a> {
    fn still(&self) -> Still<'a> {
        PageCache::new(InTime {
            process: self.process,
            until: self.until,
        })
    }

    fn gils(&self) -> Result<Vec<GilState>, ReadError> {
        self.runtime.gil(self.process)
    }

    /// The threads among these that have a Python thread state.
    fn python_threads(&self, threads: &[OsThread]) -> Vec<u64> {
        let support = remote_exec::support(self.process, self.runtime, threads);
        let mut tids: Vec<u64> = support
            .interpreters
            .iter()
            .flat_map(|interpreter| &interpreter.threads)
            .filter_map(|thread| thread.tid)
            .collect();
        // A thread inside a subinterpreter has a state in both.
        tids.sort_unstable();
        tids.dedup();
        tids
    }

    fn activity(&self, tids: &[u64]) -> Result<Activity, ReadError> {
        let ran = tids
            .iter()
            .map(|tid| (*tid, self.process.schedstat(*tid)))
            .collect();
        Ok(Activity {
            gils: self.gils()?,
            ran,
        })
    }

    /// Lets go; whether the target stood still all the time.
    fn release(&mut self, guard: StopGuard) -> bool {
        let released = guard.release();
        self.paused = self.paused.saturating_add(released.paused);
        !released.expired
    }
}

/// The ids, as we see them, of the threads with these ids in the target's own PID namespace.
fn tids_of(threads: &[OsThread], ns_tids: &HashSet<u64>) -> Vec<u64> {
    threads
        .iter()
        .filter(|thread| ns_tids.contains(&thread.ns_tid))
        .map(|thread| thread.tid)
        .collect()
}

/// The thread ids, in the target's namespace, of the holders of every GIL that is held.
fn holders(gils: &[GilState]) -> HashSet<u64> {
    gils.iter()
        .filter(|gil| gil.locked)
        .filter_map(|gil| gil.holder_tid)
        .collect()
}

/// Reads while the target stands still, as briefly as can be.
///
/// `read` may be called several times; the last result counts. A target that cannot be stopped is read all the same,
/// and the capture says why it may be torn.
///
/// # Errors
/// When the target's memory or threads cannot be read at all.
pub fn capture<T>(
    process: &Process,
    runtime: &Runtime,
    deadline: Instant,
    mut read: impl FnMut(&Still<'_>, &[OsThread]) -> T,
) -> Result<Capture<T>, CaptureError> {
    let mut reader = Reader {
        process,
        runtime,
        until: deadline,
        paused: Duration::ZERO,
    };
    for _ in 0..ATTEMPTS {
        if runtime.free_threaded() || Instant::now() >= deadline {
            break;
        }
        let threads = process.threads()?;
        let gils = reader.gils()?;
        let holding = tids_of(&threads, &holders(&gils));
        if holding.is_empty() {
            if !holders(&gils).is_empty() {
                // The holder started after its threads were listed, or has just ended.
                continue;
            }
            let python = reader.python_threads(&threads);
            let before = reader.activity(&python)?;
            if before.gils.iter().any(|gil| gil.locked) {
                continue;
            }
            let value = read(&reader.still(), &threads);
            if reader.activity(&python)? == before {
                return Ok(Capture {
                    value,
                    paused: reader.paused,
                    torn: None,
                });
            }
            continue;
        }
        let guard = match stop(process, &holding, STOP_LIMIT) {
            Ok(guard) => guard,
            // It may have let go of the GIL before it went to sleep.
            Err(StopError::Unstoppable { .. }) => continue,
            Err(error) => return torn(&reader, error, &mut read),
        };
        let still_holding = reader.gils();
        let all_held = holding.iter().all(|tid| guard.tids().contains(tid));
        if !all_held || !matches!(&still_holding, Ok(now) if holders(now) == holders(&gils)) {
            reader.release(guard);
            still_holding?;
            continue;
        }
        let value = read(&reader.still(), &threads);
        if reader.release(guard) {
            return Ok(Capture {
                value,
                paused: reader.paused,
                torn: None,
            });
        }
    }
    all_stopped(reader, &mut read)
}

/// Reads with every Python thread stopped.
fn all_stopped<T>(
    mut reader: Reader<'_>,
    read: &mut impl FnMut(&Still<'_>, &[OsThread]) -> T,
) -> Result<Capture<T>, CaptureError> {
    let mut failure = None;
    for _ in 0..3 {
        let threads = reader.process.threads()?;
        let tids = reader.python_threads(&threads);
        let guard = match stop(reader.process, &tids, STOP_LIMIT) {
            Ok(guard) => guard,
            Err(error @ StopError::Unstoppable { .. }) => {
                failure = Some(error);
                continue;
            }
            Err(error) => return torn(&reader, error, read),
        };
        let value = read(&reader.still(), &threads);
        let held = reader.release(guard);
        return Ok(Capture {
            value,
            paused: reader.paused,
            torn: (!held).then_some(Torn::Overran),
        });
    }
    match failure {
        Some(error) => torn(&reader, error, read),
        None => Err(ReadError::Gone.into()),
    }
}

/// Reads a target that moves, and says so.
fn torn<T>(
    reader: &Reader<'_>,
    error: StopError,
    read: &mut impl FnMut(&Still<'_>, &[OsThread]) -> T,
) -> Result<Capture<T>, CaptureError> {
    let threads = reader.process.threads()?;
    let value = read(&reader.still(), &threads);
    Ok(Capture {
        value,
        paused: reader.paused,
        torn: Some(Torn::NotStopped(error)),
    })
}
