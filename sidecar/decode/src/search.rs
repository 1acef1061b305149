//! Finding the runtime without its file: deleted, unreadable, or without section headers.

use std::cell::Cell;
use std::ops::Range;

use crate::elf::loaded::{self, Loaded};
use crate::limits::Limits;
use crate::memory::{Addr, Memory, PAGE, PageCache, ReadError};

/// Bytes read at a time.
const CHUNK: usize = 16 * PAGE;
/// Bytes of the target kept while a symbol is looked up.
const CACHE: usize = 1 << 20;
/// Reads of symbols, each of some KiB: a sound file takes about five.
const MAX_READS: u64 = 1 << 16;

/// How much of the target may be searched, in all: it may map a file with a great many symbols a thousand times.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Bytes of its data.
    bytes: u64,
    /// Reads of its symbols.
    reads: Cell<u64>,
}

impl Budget {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            bytes: limits.scanned_bytes,
            reads: Cell::new(MAX_READS),
        }
    }
}

/// Memory that can be read only so often.
struct Bounded<'a, M: ?Sized> {
    memory: &'a M,
    left: &'a Cell<u64>,
}

impl<M: Memory + ?Sized> Memory for Bounded<'_, M> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(ReadError::Fault { at, len: buf.len() });
        };
        self.left.set(left);
        self.memory.read(at, buf)
    }
}

/// Looks for an aligned word in these ranges. `hit` says whether to go on.
///
/// # Errors
/// What the kernel said, unless it is that something is not mapped.
pub(crate) fn scan<M: Memory + ?Sized>(
    memory: &M,
    ranges: &[Range<u64>],
    budget: &mut Budget,
    word: [u8; 8],
    mut hit: impl FnMut(Addr) -> bool,
) -> Result<(), ReadError> {
    let mut buffer = Vec::new();
    for range in ranges {
        let mut at = range.start;
        while at < range.end && budget.bytes > 0 {
            let len = range
                .end
                .saturating_sub(at)
                .min(CHUNK as u64)
                .min(budget.bytes);
            budget.bytes = budget.bytes.saturating_sub(len);
            buffer.resize(usize::try_from(len).unwrap_or(CHUNK), 0);
            match memory.read(Addr(at), &mut buffer) {
                Ok(()) => {
                    for (n, candidate) in buffer.as_chunks::<8>().0.iter().enumerate() {
                        if *candidate == word {
                            let offset = u64::try_from(n).unwrap_or(u64::MAX).saturating_mul(8);
                            if !hit(Addr(at).plus(offset)) {
                                return Ok(());
                            }
                        }
                    }
                }
                Err(ReadError::Fault { .. }) => {}
                Err(error) => return Err(error),
            }
            at = at.saturating_add(len);
        }
    }
    Ok(())
}

/// Looks a name up in the dynamic symbols of an ELF image that is loaded at `base`, with nothing but its memory.
///
/// # Errors
/// That the memory may not be read at all.
pub(crate) fn dynamic_symbol<M: Memory + ?Sized>(
    memory: &M,
    base: Addr,
    name: &[u8],
    budget: &Budget,
) -> Result<Option<Addr>, ReadError> {
    let memory = &Bounded {
        memory,
        left: &budget.reads,
    };
    if !loaded::begins(memory, base)? {
        return Ok(None);
    }
    // Hundreds of reads of some bytes each become a few.
    let memory = &PageCache::new(memory, CACHE);
    let symbols = Loaded::read(memory, base).and_then(|file| file.symbols(memory));
    Ok(symbols.and_then(|symbols| symbols.find(memory, name)))
}
