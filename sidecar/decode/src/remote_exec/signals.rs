//! Which signals have come and were not handled yet: `_PyRuntime.signals`.
//!
//! No table of offsets has it (`_signals_runtime_state` in `pycore_signal.h`):
//! ```text
//! struct {int tripped; PyObject *func;} handlers[65];
//! struct {int fd; int warn_on_full_buffer;} wakeup;
//! int is_tripped;
//! PyObject *default_handler, *ignore_handler;
//! ```
//! It is found by its handlers: most signals have the default one, which stands behind them once more.

use std::collections::BTreeMap;

use crate::decoder::word_in;
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;
use crate::runtime::Runtime;

/// `NSIG` of Linux on all machines but MIPS.
const SIGNALS: usize = 65;
/// The bytes of one signal's entry.
const ENTRY: usize = 16;
/// Bytes from the first entry to the wakeup descriptor, `is_tripped` and the default handler.
const WAKEUP: usize = SIGNALS * ENTRY;
const IS_TRIPPED: usize = WAKEUP + 8;
const DEFAULT: usize = WAKEUP + 16;
/// All of it, in bytes.
const SIZE: usize = DEFAULT + 16;
/// How many signals have the default handler at least: Python handles two, ignores two, and programs a few.
const LEAST: usize = 33;
/// The bytes of the runtime that are searched: the structure begins within the first 2 KiB.
const SEARCHED: u64 = 16 << 10;

/// The runtime's table of signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals {
    /// The first entry, that of signal 0; see [`Self::tripped`].
    pub handlers: Addr,
    /// Whether any signal has come that was not handled yet, a 32-bit int.
    pub is_tripped: Addr,
    /// `signal.set_wakeup_fd`: a byte is written there for every signal; −1 where there is none.
    pub wakeup_fd: i32,
}

impl Signals {
    /// Finds the table; `None` where there is not exactly one place that looks like it.
    pub fn locate<M: Memory + ?Sized>(memory: &M, runtime: &Runtime) -> Option<Self> {
        let size = runtime.offsets().get(F::runtime_state_size).min(SEARCHED);
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        memory.read(runtime.address(), &mut bytes).ok()?;
        let mut places = (0..bytes.len()).step_by(8).filter_map(|at| {
            let wakeup_fd = table(bytes.get(at..)?.first_chunk::<SIZE>()?)?;
            let handlers = runtime.address().plus(u64::try_from(at).ok()?);
            Some(Self {
                handlers,
                is_tripped: handlers.plus(u64::try_from(IS_TRIPPED).ok()?),
                wakeup_fd,
            })
        });
        let found = places.next()?;
        places.next().is_none().then_some(found)
    }

    /// Where it says whether this signal has come, a 32-bit int; `None` where there is no such signal.
    pub fn tripped(&self, signal: u32) -> Option<Addr> {
        let signal = usize::try_from(signal).ok()?;
        let offset = (1..SIGNALS)
            .contains(&signal)
            .then(|| signal.saturating_mul(ENTRY))?;
        Some(self.handlers.plus(u64::try_from(offset).ok()?))
    }
}

/// The wakeup descriptor, if this is the table.
fn table(bytes: &[u8; SIZE]) -> Option<i32> {
    let i32_at = |at: usize| {
        let word = bytes.get(at..)?.first_chunk::<4>()?;
        Some(i32::from_le_bytes(*word))
    };
    let pointer = |at: usize| word_in(bytes, u64::try_from(at).ok()?);
    let default = pointer(DEFAULT)?;
    let (fd, is_tripped) = (i32_at(WAKEUP)?, i32_at(IS_TRIPPED)?);
    // Checked in this order, all but a few of the places are out at once.
    if default == 0 || fd < -1 || !(0..=1).contains(&is_tripped) {
        return None;
    }
    let mut handlers: BTreeMap<u64, usize> = BTreeMap::new();
    for at in (0..WAKEUP).step_by(ENTRY) {
        if !(0..=1).contains(&i32_at(at)?) {
            return None;
        }
        let count = handlers.entry(pointer(at.checked_add(8)?)?).or_default();
        *count = count.saturating_add(1);
    }
    let common = handlers.get(&default).copied().unwrap_or_default();
    (common >= LEAST).then_some(fd)
}
