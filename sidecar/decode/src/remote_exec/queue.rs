//! The queue of calls that an interpreter makes at its next check: the way into a main thread that waits for a lock.
//!
//! No table of offsets has it. It is found by the two constants in it (`_pending_calls` in `pycore_interp_structs.h`):
//! ```text
//! PyThreadState *handling_thread;
//! PyMutex mutex;                    one byte
//! int32_t npending, max, maxloop;   max 300, maxloop 100
//! struct {func, arg, int flags} calls[300];
//! int first, next;
//! ```

use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;
use crate::runtime::Runtime;

/// How many calls fit into the queue.
pub const CAPACITY: u32 = 300;
/// How many are made at one check.
const AT_ONCE: u32 = 100;
/// The bytes of one call: a function, its argument, 32 bits of flags.
pub const ENTRY: u64 = 24;
/// The bytes of an interpreter that are searched: the queue begins within its first hundred.
const SEARCHED: u64 = 64 << 10;
/// Places with the two constants that are looked at: a sound interpreter has one.
const MAX_PLACES: usize = 16;
/// Bytes from `handling_thread` to the number of calls, and from there to the calls.
const HEAD: u64 = 12;
const TO_CALLS: u64 = 12;
/// Bytes from the number of calls to `first`, behind the calls.
const TO_FIRST: u64 = TO_CALLS + CAPACITY as u64 * ENTRY;

/// Where an interpreter's queue of pending calls lies. It stays there as long as the interpreter lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingCalls {
    /// The mutex, one byte; 0 while nobody has it.
    pub mutex: Addr,
    /// How many calls are in it, a 32-bit int.
    pub npending: Addr,
    /// The first of [`CAPACITY`] entries of [`ENTRY`] bytes.
    pub calls: Addr,
    /// The index of the entry that is called next, a 32-bit int.
    pub first: Addr,
    /// The index of the entry that is written next, a 32-bit int.
    pub next: Addr,
}

/// What is in the queue at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Whether somebody is changing it: it must not be touched.
    pub locked: bool,
    /// Whether its calls are being made, which is not begun anew before that has ended.
    pub handled: bool,
    /// How many calls are in it, at most [`CAPACITY`].
    pub npending: u32,
    /// The index of the entry that is called next, below [`CAPACITY`].
    pub first: u32,
    /// The index of the entry that is written next, below [`CAPACITY`].
    pub next: u32,
    /// The entry that is written next.
    pub entry: Addr,
    /// What `next` is to be after that.
    pub after: u32,
}

impl Queue {
    /// Whether one more call may be written and will be made.
    pub fn takes_one(&self) -> bool {
        !self.locked && !self.handled && self.npending < CAPACITY
    }
}

/// Finds the queue of the interpreter at this address and checks what is in it; `None` where there is not exactly one
/// place that looks like it.
pub fn pending_calls<M: Memory + ?Sized>(
    memory: &M,
    runtime: &Runtime,
    interpreter: Addr,
) -> Option<PendingCalls> {
    let size = runtime.offsets().get(F::interpreter_state_size);
    let mut bytes = vec![0; usize::try_from(size.min(SEARCHED)).ok()?];
    memory.read(interpreter, &mut bytes).ok()?;
    // The two constants are one word: the structure begins with a pointer, 16 bytes before.
    let (words, _) = bytes.as_chunks::<8>();
    let limits = u64::from(CAPACITY) | u64::from(AT_ONCE) << 32;
    let mut places = words
        .iter()
        .enumerate()
        .filter(|(_, word)| u64::from_le_bytes(**word) == limits)
        .take(MAX_PLACES)
        .filter_map(|(n, _)| {
            let limits = interpreter.plus(u64::try_from(n).ok()?.saturating_mul(8));
            let calls = PendingCalls::at(limits.minus(4));
            calls.read(memory).and(Some(calls))
        });
    let found = places.next()?;
    places.next().is_none().then_some(found)
}

impl PendingCalls {
    fn at(npending: Addr) -> Self {
        Self {
            mutex: npending.minus(4),
            npending,
            calls: npending.plus(TO_CALLS),
            first: npending.plus(TO_FIRST),
            next: npending.plus(TO_FIRST).plus(4),
        }
    }

    /// What is in it: three short reads. `None` where that contradicts itself, or cannot be read.
    pub fn read<M: Memory + ?Sized>(&self, memory: &M) -> Option<Queue> {
        let mut head = [0; 24];
        memory.read(self.npending.minus(HEAD), &mut head).ok()?;
        let (words, _) = head.as_chunks::<4>();
        let [handler_low, handler_high, mutex, npending, max, at_once] = words else {
            return None;
        };
        let mut ends = [0; 8];
        memory.read(self.first, &mut ends).ok()?;
        let (ends, _) = ends.as_chunks::<4>();
        let [first, next] = ends else {
            return None;
        };
        let [npending, max, at_once, first, next] =
            [npending, max, at_once, first, next].map(|word| u32::from_le_bytes(*word));
        let sound = [max, at_once] == [CAPACITY, AT_ONCE]
            && npending <= CAPACITY
            && first < CAPACITY
            && next < CAPACITY
            && first.checked_add(npending)?.checked_rem(CAPACITY)? == next;
        if !sound {
            return None;
        }
        let entry = self.calls.plus(u64::from(next).saturating_mul(ENTRY));
        if npending < CAPACITY {
            // What was called is cleared.
            let mut old = [0; 24];
            memory.read(entry, &mut old).ok()?;
            if old != [0; 24] {
                return None;
            }
        }
        Some(Queue {
            locked: mutex.first() != Some(&0),
            handled: (handler_low, handler_high) != (&[0; 4], &[0; 4]),
            npending,
            first,
            next,
            entry,
            after: next.checked_add(1)?.checked_rem(CAPACITY)?,
        })
    }
}

/// Bytes to be written, and where.
pub type Writes = Vec<(Addr, Vec<u8>)>;

impl Queue {
    /// What to write so that the interpreter calls `function(0)`: the entry, the place of the one after it, how many there
    /// are. The thread that makes the calls stands still meanwhile.
    pub fn with(&self, calls: &PendingCalls, function: Addr) -> Option<Writes> {
        if !self.takes_one() {
            return None;
        }
        let mut entry = function.0.to_le_bytes().to_vec();
        entry.resize(usize::try_from(ENTRY).ok()?, 0);
        Some(vec![
            (self.entry, entry),
            (calls.next, self.after.to_le_bytes().to_vec()),
            (
                calls.npending,
                self.npending.checked_add(1)?.to_le_bytes().to_vec(),
            ),
        ])
    }

    /// What to write so that the last call is not made, if it is `function(0)` and nobody is at the queue.
    pub fn without_last<M: Memory + ?Sized>(
        &self,
        memory: &M,
        calls: &PendingCalls,
        function: Addr,
    ) -> Option<Writes> {
        if self.locked || self.handled {
            return None;
        }
        let left = self.npending.checked_sub(1)?;
        let last = self
            .next
            .checked_add(CAPACITY.checked_sub(1)?)?
            .checked_rem(CAPACITY)?;
        let at = calls.calls.plus(u64::from(last).saturating_mul(ENTRY));
        let mut there = [0; 24];
        memory.read(at, &mut there).ok()?;
        let mut ours = [0; 24];
        ours.get_mut(..8)?
            .copy_from_slice(&function.0.to_le_bytes());
        (there == ours).then(|| {
            vec![
                (calls.npending, left.to_le_bytes().to_vec()),
                (calls.next, last.to_le_bytes().to_vec()),
                (at, vec![0; 24]),
            ]
        })
    }
}
