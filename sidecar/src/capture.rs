//! Reading a target that stands still.
//!
//! In a build with a GIL no Python frame can change while the thread that holds the GIL is stopped, so only that one
//! is stopped, and confirmed to be the holder once it stands. When nobody holds the GIL nothing is stopped; what was
//! read counts only if no Python thread ran meanwhile. What fits neither is read with every Python thread stopped.
//!
//! Before anything is stopped, a first decode of the moving target finds out which memory is needed. While the target
//! stands still that is copied at once and the target is let go; the decode that counts works on the copy. Only where
//! the copy lacks something, time and again, the decode is done while the target stands.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use sidewinder_decode::remote_exec;
use sidewinder_decode::runtime::{GilState, Runtime};
use sidewinder_decode::still::{Any, Still};
use sidewinder_decode::{Addr, Memory, OsThread, ReadError, ReadRange};
use sidewinder_linux::priority::Urgent;
use sidewinder_linux::stop::{StopError, StopGuard, stop};
use sidewinder_linux::{Process, SchedStat, hardening};
use sidewinder_model::Stopped;

/// How long a target may be held still for one reading. The guard lets go by itself when it has passed.
pub const STOP_LIMIT: Duration = Duration::from_secs(1);

/// How often a reading is begun again because the target moved, before every Python thread is stopped.
const ATTEMPTS: u32 = 8;
/// How often it is begun again with every Python thread stopped.
const ATTEMPTS_OF_ALL: u32 = 4;
/// A decode that takes no longer is done while the target stands still, which saves stopping it again for memory that
/// was not foreseen.
const BRIEF: Duration = Duration::from_micros(200);
/// Stops for copies that lacked something, before the decode is done while the target stands.
const COPIES: u32 = 2;
/// How often threads that were started meanwhile are stopped too.
const ROUNDS: u32 = 8;
/// How often a target that cannot be stopped is read in the hope that it does not run meanwhile.
const VERIFIED_READS: u32 = 5;
/// How often a thread that does not stop is waited for: in uninterruptible sleep it may be for good.
const UNSTOPPABLE: u32 = 2;

/// What was read, and what it cost the target.
#[derive(Debug)]
pub struct Capture<T> {
    /// What was read.
    pub value: T,
    /// How long a thread of the target was held still, over all attempts.
    pub paused: Duration,
    /// Which threads were held still for what was read.
    pub stopped: Stopped,
    /// Why what was read may be torn: the target could not be held still, or not long enough.
    pub torn: Option<Torn>,
}

/// Why a reading may be torn.
#[derive(Debug)]
pub enum Torn {
    /// The target could not be stopped.
    NotStopped {
        /// Why not.
        error: StopError,
        /// Whether no Python thread ran while it was read, so that it is of one instant all the same.
        stood_still: bool,
    },
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

    fn read_ranges(&self, ranges: &mut [ReadRange<'_>]) {
        if Instant::now() < self.until {
            self.process.read_ranges(ranges);
        }
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
    memory: Still<'a>,
    /// How long the decode of the moving target took, once there was one: its memory is known since then.
    planned: Option<Duration>,
    paused: Duration,
    stops: u32,
}

/// How a target is kept from changing.
enum Hold {
    /// It is not: what was read counts if it did not run.
    Watch,
    /// These threads are stopped, and are the holders of all GILs, every one of which is held.
    Holders(Vec<u64>),
    /// Every Python thread is stopped.
    All,
}

/// What became of one attempt.
enum Attempt<T> {
    Done(Capture<T>),
    /// The target moved.
    Again,
    NotStopped(StopError),
}

impl Reader<'_> {
    fn gils(&self) -> Result<Vec<GilState>, ReadError> {
        self.runtime.gil::<Any>(self.process)
    }

    /// The threads among these that have a Python thread state.
    fn python_threads(&self, threads: &[OsThread]) -> Vec<u64> {
        // The target may run: what is listed wrongly shows as activity, or as a thread that has ended.
        let memory = Still::new(self.process, 0);
        let support = remote_exec::support::<Any>(&memory, self.runtime, threads);
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

    /// Whether none of these threads was on a CPU once `before` was taken, so that a later count tells whether one ran.
    /// A thread that is on a CPU all along is counted only now and then.
    fn resting(&self, before: &Activity) -> bool {
        before.ran.iter().all(|(tid, counted)| {
            // A thread without any time slice so far runs where the kernel does not count.
            counted.is_some_and(|counted| counted.timeslices > 0) && self.process.off_cpu(*tid)
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
/// and the capture says why it may be torn. At most about `cache_bytes` of the target's memory are held at a time.
///
/// # Errors
/// When the target's memory or threads cannot be read at all.
pub fn capture<T>(
    process: &Process,
    runtime: &Runtime,
    deadline: Instant,
    cache_bytes: usize,
    mut read: impl FnMut(&Still<'_>, &[OsThread]) -> T,
) -> Result<Capture<T>, CaptureError> {
    let memory = InTime {
        process,
        until: deadline,
    };
    let mut reader = Reader {
        process,
        runtime,
        memory: Still::new(&memory, cache_bytes),
        planned: None,
        paused: Duration::ZERO,
        stops: 0,
    };
    let mut failure = None;
    let mut unstoppable = 0;
    for attempt in 0..ATTEMPTS + ATTEMPTS_OF_ALL {
        let threads = process.threads()?;
        let hold = if runtime.free_threaded() || attempt >= ATTEMPTS || Instant::now() >= deadline {
            Hold::All
        } else {
            let gils = reader.gils()?;
            let holding = tids_of(&threads, &holders(&gils));
            if !holding.is_empty() && holding.len() == gils.len() {
                Hold::Holders(holding)
            } else if !holding.is_empty() {
                // Interpreters with GILs of their own: the threads of one whose GIL is free could take it meanwhile.
                Hold::All
            } else if holders(&gils).is_empty() {
                Hold::Watch
            } else {
                // The holder started after its threads were listed, or has just ended.
                continue;
            }
        };
        let outcome = match hold {
            Hold::Watch => reader.watched(&threads, &mut read)?,
            Hold::Holders(tids) => {
                reader.stopped(Stopped::GilHolder, &tids, &threads, &mut read)?
            }
            Hold::All => {
                let tids = reader.python_threads(&threads);
                reader.stopped(Stopped::AllThreads, &tids, &threads, &mut read)?
            }
        };
        match outcome {
            Attempt::Done(capture) => return Ok(capture),
            Attempt::Again => {}
            // It may have let go of the GIL before it went to sleep, or wake in time for the next attempt.
            Attempt::NotStopped(error @ StopError::Unstoppable { .. }) => {
                failure = Some(error);
                unstoppable += 1;
                if unstoppable == UNSTOPPABLE {
                    break;
                }
            }
            Attempt::NotStopped(error) => return reader.not_stopped(error, &mut read),
        }
    }
    match failure {
        Some(error) => reader.not_stopped(error, &mut read),
        None => Err(ReadError::Gone.into()),
    }
}

impl Reader<'_> {
    /// A target that ended while it was read answers nothing, which is not the same as having nothing.
    fn still_there(&self) -> Result<(), ReadError> {
        if self.memory.gone() {
            return Err(ReadError::Gone);
        }
        Ok(())
    }

    fn done<T>(&self, value: T, stopped: Stopped, torn: Option<Torn>) -> Attempt<T> {
        Attempt::Done(Capture {
            value,
            paused: self.paused,
            stopped,
            torn,
        })
    }

    /// Decodes what the target is doing now, for what it needs or for what it says.
    fn decode<T>(
        &mut self,
        threads: &[OsThread],
        read: &mut impl FnMut(&Still<'_>, &[OsThread]) -> T,
    ) -> T {
        let start = Instant::now();
        let value = read(&self.memory, threads);
        self.planned = Some(start.elapsed());
        value
    }

    /// Makes room for all that a decode was found to need. Where there is not enough, everything is forgotten, to be read
    /// on demand.
    fn room_for_a_copy(&self) -> bool {
        let room = self.memory.make_room();
        if !room {
            self.memory.clear();
            // So many tasks were decoded for nothing that their memory must not lie beside that of the next ones.
            hardening::give_back_memory();
        }
        room
    }

    /// Reads a target whose GILs are free, and believes it if no Python thread ran meanwhile.
    fn watched<T>(
        &mut self,
        threads: &[OsThread],
        read: &mut impl FnMut(&Still<'_>, &[OsThread]) -> T,
    ) -> Result<Attempt<T>, CaptureError> {
        let python = self.python_threads(threads);
        // The copy takes much less time than the decode, for a target that is never quiet for long.
        let copy = self.planned.is_some() && self.room_for_a_copy();
        let before = self.activity(&python)?;
        if before.gils.iter().any(|gil| gil.locked) || !self.resting(&before) {
            return Ok(Attempt::Again);
        }
        let value = if copy {
            self.memory.refill();
            None
        } else {
            Some(self.decode(threads, read))
        };
        if self.activity(&python)? != before {
            return Ok(Attempt::Again);
        }
        let value = value.unwrap_or_else(|| self.decode(threads, read));
        self.still_there()?;
        if self.memory.missed() > 0 {
            return Ok(Attempt::Again);
        }
        // It rests because a signal has stopped it, which is the first thing to know about it.
        let torn = self.process.stopped_by_signal()?.then(|| {
            let pid = self.process.pid();
            Torn::NotStopped {
                error: StopError::StoppedBySignal { pid },
                stood_still: true,
            }
        });
        Ok(self.done(value, Stopped::Nothing, torn))
    }

    /// Stops the threads that hold a GIL at this moment. Whoever held it when the decode of the moving target began
    /// mostly does no more, and to start a tracer takes long enough for another change.
    fn stop_holders(&self, threads: &[OsThread], before: &[u64]) -> Result<StopGuard, StopError> {
        let mut guard = stop(self.process, &[], STOP_LIMIT)?;
        let tids = match self.gils() {
            Ok(gils) => tids_of(threads, &holders(&gils)),
            Err(_) => Vec::new(),
        };
        match guard.hold(self.process, &tids) {
            Ok(()) => Ok(guard),
            // Another tracer mostly lets go soon, for which `stop` waits.
            Err(StopError::Traced { .. }) => {
                drop(guard);
                stop(self.process, before, STOP_LIMIT)
            }
            Err(error) => Err(error),
        }
    }

    /// Reads with these threads stopped.
    fn stopped<T>(
        &mut self,
        stopped: Stopped,
        tids: &[u64],
        threads: &[OsThread],
        read: &mut impl FnMut(&Still<'_>, &[OsThread]) -> T,
    ) -> Result<Attempt<T>, CaptureError> {
        if self.planned.is_none() {
            self.decode(threads, read);
        }
        let room = self.room_for_a_copy();
        let at_once =
            !room || self.stops >= COPIES || self.planned.is_none_or(|took| took <= BRIEF);
        let urgent = Urgent::begin();
        let guard = if stopped == Stopped::GilHolder {
            self.stop_holders(threads, tids)
        } else {
            stop(self.process, tids, STOP_LIMIT)
        };
        let mut guard = match guard {
            Ok(guard) => guard,
            Err(error) => return Ok(Attempt::NotStopped(error)),
        };
        let mut now = None;
        if stopped == Stopped::AllThreads {
            // One that still ran may have started another one. The last one that is stopped starts none.
            for _ in 0..ROUNDS {
                let before = now.as_deref().unwrap_or(threads);
                let known: HashSet<u64> = before.iter().map(|thread| thread.tid).collect();
                // To list them with what they do takes long, and mostly there is none that is new.
                if !self.process.tids()?.iter().all(|tid| known.contains(tid)) {
                    now = Some(self.process.threads()?);
                }
                let mut new = self.python_threads(now.as_deref().unwrap_or(threads));
                new.retain(|tid| !guard.tids().contains(tid));
                if new.is_empty() {
                    break;
                }
                if let Err(error) = guard.hold(self.process, &new) {
                    return Ok(Attempt::NotStopped(error));
                }
            }
        }
        let threads = now.as_deref().unwrap_or(threads);
        if stopped == Stopped::GilHolder {
            let holding = self.gils();
            let confirmed = holding.as_ref().is_ok_and(|gils| {
                let now: HashSet<u64> = tids_of(threads, &holders(gils)).into_iter().collect();
                now.len() == gils.len() && now == guard.tids().iter().copied().collect()
            });
            if !confirmed {
                self.release(guard);
                holding?;
                return Ok(Attempt::Again);
            }
        }
        self.stops += 1;
        if room {
            self.memory.refill();
        }
        if at_once {
            self.memory.thaw();
            let value = self.decode(threads, read);
            let held = self.release(guard);
            self.still_there()?;
            if !held && stopped == Stopped::GilHolder {
                return Ok(Attempt::Again);
            }
            return Ok(self.done(value, stopped, (!held).then_some(Torn::Overran)));
        }
        if !self.release(guard) {
            return Ok(Attempt::Again);
        }
        drop(urgent);
        let value = self.decode(threads, read);
        self.still_there()?;
        if self.memory.missed() > 0 {
            return Ok(Attempt::Again);
        }
        Ok(self.done(value, stopped, None))
    }

    /// Reads a target that cannot be stopped, and says so, and whether it happened to stand still.
    fn not_stopped<T>(
        mut self,
        error: StopError,
        read: &mut impl FnMut(&Still<'_>, &[OsThread]) -> T,
    ) -> Result<Capture<T>, CaptureError> {
        let mut last = None;
        for _ in 0..VERIFIED_READS {
            let threads = self.process.threads()?;
            let python = self.python_threads(&threads);
            self.memory.clear();
            let before = self.activity(&python)?;
            let resting = self.resting(&before);
            let value = self.decode(&threads, read);
            let stood_still = resting && self.activity(&python)? == before;
            self.still_there()?;
            last = Some((value, stood_still));
            if stood_still {
                break;
            }
        }
        let Some((value, stood_still)) = last else {
            return Err(ReadError::Gone.into());
        };
        Ok(Capture {
            value,
            paused: self.paused,
            stopped: Stopped::Nothing,
            torn: Some(Torn::NotStopped { error, stood_still }),
        })
    }
}
