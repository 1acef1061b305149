//! Reads blocks of pages once, for as long as a target stands still, and remembers which ones a decode needs.
//!
//! A reading of a target that runs goes in two steps. The first decode reads on demand while the target goes on; what it
//! finds is worth nothing, but the blocks it touched are the plan. Then the target is stopped, [`PageCache::refill`]
//! reads the whole plan with a few system calls, the target is let go, and the second decode works on what was taken
//! while it stood. Where that one needs a block that was not planned, [`PageCache::missed`] says so.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::{Addr, Memory, PAGE, ReadError, ReadRange};

/// Pages of one block. A pool of CPython's allocator has as many, and a system call costs more than copying them.
const PAGES: usize = 4;
/// Bytes of one block.
const BLOCK: usize = PAGES * PAGE;
const BLOCK_U64: u64 = BLOCK as u64;
/// A block all of whose pages were read, one bit for each.
const WHOLE: u8 = (1 << PAGES) - 1;
/// Blocks of one allocation.
const SEGMENT_BLOCKS: usize = 64;
/// Blocks a cache begins with: 2 MiB stay in a processor's own cache, and cost few page faults of ours.
const FIRST_BLOCKS: usize = 128;
/// Entries of the table of blocks used last.
const RECENT: usize = 128;
/// The slot of a block that was read and has been given up for another.
const NONE: u32 = u32::MAX;
/// Blocks remembered, 4 GiB of the target: a target that leads us through all its memory must not fill ours.
const KNOWN_BLOCKS: usize = 1 << 18;

/// Memory whose blocks of pages are read once. Valid for one stop: it never sees a later change.
#[derive(Debug)]
pub struct PageCache<M> {
    inner: M,
    state: RefCell<State>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    slot: u32,
    /// The pages that could be read, one bit for each.
    pages: u8,
    /// The pages that were asked for: they are the plan.
    asked: u8,
}

#[derive(Debug)]
struct State {
    /// Every block that was ever asked for.
    blocks: HashMap<u64, Held, RandomState>,
    /// Blocks used last, by the low bits of their number.
    recent: [(u64, Held); RECENT],
    segments: Vec<Box<[u8]>>,
    /// Which block each slot holds.
    slots: Vec<u64>,
    /// Whether each slot was used since the hand passed it.
    used: Vec<Cell<bool>>,
    /// The slot that is looked at next when one has to be given up: the clock of page replacement.
    hand: usize,
    /// Slots used before one is given up.
    capacity: usize,
    max_blocks: usize,
    /// Blocks that had been given up and were asked for again, since the capacity was last raised.
    refaults: usize,
    /// Whether blocks that had been asked for were forgotten.
    forgot: bool,
    /// Whether blocks that are not there are left unread.
    frozen: bool,
    missed: usize,
    /// Whether the process that the memory belongs to was found to have ended.
    gone: bool,
}

/// A block of which nothing was read.
const UNREAD: Held = Held {
    slot: NONE,
    pages: 0,
    asked: 0,
};
const NOTHING: (u64, Held) = (u64::MAX, UNREAD);

impl State {
    /// The bytes of a slot.
    fn slot(&self, slot: u32) -> Option<&[u8]> {
        let (segment, start) = place(slot)?;
        self.segments
            .get(segment)?
            .get(start..start.checked_add(BLOCK)?)
    }

    /// A slot for one more block, which may have belonged to another.
    fn take_slot(&mut self, block: u64) -> u32 {
        if self.slots.len() < self.capacity {
            self.slots.push(block);
            self.used.push(Cell::new(true));
            while self.segments.len().saturating_mul(SEGMENT_BLOCKS) < self.slots.len() {
                let bytes = SEGMENT_BLOCKS.saturating_mul(BLOCK);
                self.segments.push(vec![0; bytes].into_boxed_slice());
            }
            return u32::try_from(self.slots.len().saturating_sub(1)).unwrap_or(NONE);
        }
        // A block that was used since the hand passed last stays for another round: some are needed for each task.
        while let Some(used) = self.used.get(self.hand)
            && used.replace(false)
        {
            self.hand = self.after(self.hand);
        }
        let slot = self.hand;
        self.hand = self.after(slot);
        if let Some(used) = self.used.get(slot) {
            used.set(true);
        }
        if let Some(owner) = self.slots.get_mut(slot) {
            let before = std::mem::replace(owner, block);
            self.forget(before);
        }
        u32::try_from(slot).unwrap_or(NONE)
    }

    /// The slot after this one, round and round.
    fn after(&self, slot: usize) -> usize {
        slot.checked_add(1)
            .filter(|next| *next < self.slots.len())
            .unwrap_or(0)
    }

    /// A block's slot is somebody else's now.
    fn forget(&mut self, block: u64) {
        if let Some(held) = self.blocks.get_mut(&block) {
            held.slot = NONE;
        }
        if let Some(recent) = self.recent.get_mut(recent_index(block))
            && recent.0 == block
        {
            *recent = NOTHING;
        }
    }

    fn know(&mut self, block: u64, held: Held) {
        if self.blocks.len() >= KNOWN_BLOCKS {
            self.blocks.retain(|_, held| held.slot != NONE);
            self.forgot = true;
        }
        self.blocks.insert(block, held);
    }

    fn remember(&mut self, block: u64, held: Held) {
        self.know(block, held);
        if let Some(recent) = self.recent.get_mut(recent_index(block)) {
            *recent = (block, held);
        }
    }
}

/// The segment of a slot and where it begins in there.
fn place(slot: u32) -> Option<(usize, usize)> {
    let slot = usize::try_from(slot).ok()?;
    Some((
        slot.checked_div(SEGMENT_BLOCKS)?,
        slot.checked_rem(SEGMENT_BLOCKS)?.checked_mul(BLOCK)?,
    ))
}

fn recent_index(block: u64) -> usize {
    // Objects of different kinds lie far apart, mostly at distances that are powers of two.
    let number = block / BLOCK_U64;
    usize::try_from((number ^ (number >> 7)) & 127).unwrap_or(0)
}

/// Which pages of a block the bytes `skip..skip + len` lie on.
fn pages(skip: usize, len: usize) -> u8 {
    let first = skip / PAGE;
    let last = skip.saturating_add(len.saturating_sub(1)) / PAGE;
    (first..=last).fold(0, |bits, page| {
        bits | u32::try_from(page)
            .ok()
            .and_then(|page| 1_u8.checked_shl(page))
            .unwrap_or(0)
    })
}

impl<M: Memory> PageCache<M> {
    /// An empty cache that takes at most about so many bytes.
    pub fn new(inner: M, max_bytes: usize) -> Self {
        let max_blocks = max_bytes
            .checked_div(BLOCK)
            .unwrap_or(0)
            .max(SEGMENT_BLOCKS);
        Self {
            inner,
            state: RefCell::new(State {
                blocks: HashMap::default(),
                recent: [NOTHING; RECENT],
                segments: Vec::new(),
                slots: Vec::new(),
                used: Vec::new(),
                hand: 0,
                capacity: FIRST_BLOCKS.min(max_blocks),
                max_blocks,
                refaults: 0,
                forgot: false,
                frozen: false,
                missed: 0,
                gone: false,
            }),
        }
    }

    /// Forgets everything, for a target that has run meanwhile.
    pub fn clear(&self) {
        let mut state = self.state.borrow_mut();
        state.blocks.clear();
        state.recent = [NOTHING; RECENT];
        state.slots.clear();
        state.used.clear();
        state.hand = 0;
        state.forgot = false;
        state.frozen = false;
        state.missed = 0;
    }

    /// Makes room for every block that was ever asked for, so that [`Self::refill`] only has to copy. Returns whether
    /// there is room for all.
    pub fn make_room(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if state.forgot || state.blocks.len() > state.max_blocks {
            return false;
        }
        // In the order of their addresses, so that neighbours lie side by side.
        let mut blocks: Vec<u64> = state.blocks.keys().copied().collect();
        blocks.sort_unstable();
        let segments = blocks.len().div_ceil(SEGMENT_BLOCKS);
        while state.segments.len() < segments {
            // Not zero, so that our own pages are there before the target stands still.
            state
                .segments
                .push(vec![0xff; SEGMENT_BLOCKS.saturating_mul(BLOCK)].into_boxed_slice());
        }
        state.used = vec![Cell::new(true); blocks.len()];
        state.slots = blocks;
        state.capacity = state.max_blocks;
        state.hand = 0;
        true
    }

    /// Reads every block there is room for again, with a few system calls, and holds what it reads: from now on blocks
    /// that are not there are not read. Call [`Self::make_room`] first.
    pub fn refill(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let chunks = state
            .segments
            .iter_mut()
            .flat_map(|segment| segment.chunks_exact_mut(BLOCK));
        let mut ranges = Vec::with_capacity(state.slots.len());
        let mut runs = Vec::with_capacity(state.slots.len());
        for ((slot, block), bytes) in (0_u32..).zip(&state.slots).zip(chunks) {
            let asked = state.blocks.get(block).map_or(0, |held| held.asked);
            let held = Held {
                slot,
                pages: 0,
                asked,
            };
            state.blocks.insert(*block, held);
            for (run, at, buf) in runs_of(asked, Addr(*block), bytes) {
                runs.push((*block, run));
                ranges.push(ReadRange {
                    at,
                    buf,
                    filled: false,
                });
            }
        }
        self.inner.read_ranges(&mut ranges);
        state.recent = [NOTHING; RECENT];
        for ((block, run), range) in runs.into_iter().zip(&mut ranges) {
            let read = if range.filled {
                run
            } else {
                // One bit for each page of the run, which begins with its first.
                read_pages(&self.inner, range.at, range.buf, &mut state.gone)
                    << run.trailing_zeros()
            };
            if let Some(held) = state.blocks.get_mut(&block) {
                held.pages |= read;
            }
        }
        state.frozen = true;
        state.missed = 0;
    }

    /// Reads on demand again what is not there: for a target that stands still.
    pub fn thaw(&self) {
        self.state.borrow_mut().frozen = false;
    }

    /// How often a block was asked for that is not there, since the last [`Self::refill`]. They are planned now.
    pub fn missed(&self) -> usize {
        self.state.borrow().missed
    }

    /// Whether the process ended before everything that was asked for was read. It stays so.
    pub fn gone(&self) -> bool {
        self.state.borrow().gone
    }

    /// A block that was not among those used last.
    fn find(&self, block: u64) -> Held {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let known = state.blocks.get(&block).copied();
        if let Some(held) = known
            && held.slot != NONE
        {
            if let Some(recent) = state.recent.get_mut(recent_index(block)) {
                *recent = (block, held);
            }
            return held;
        }
        if state.frozen {
            if known.is_none() {
                state.know(block, UNREAD);
            }
            return known.unwrap_or(UNREAD);
        }
        if known.is_some() {
            state.refaults = state.refaults.saturating_add(1);
            // Reading a block again costs no more than the page faults of one more block of ours.
            if state.refaults > state.capacity.saturating_mul(2) {
                state.refaults = 0;
                // A plan may take all the room there is; what is read on demand leaves most of it to the result.
                let most = (state.max_blocks / 3).max(state.capacity);
                state.capacity = state.capacity.saturating_mul(2).min(most);
            }
        }
        let slot = state.take_slot(block);
        let bytes = place(slot).and_then(|(segment, start)| {
            state
                .segments
                .get_mut(segment)?
                .get_mut(start..start.checked_add(BLOCK)?)
        });
        let pages = match bytes {
            None => 0,
            Some(bytes) => match self.inner.read(Addr(block), bytes) {
                Ok(()) => WHOLE,
                // A neighbour is not mapped.
                Err(ReadError::Fault { .. }) => {
                    read_pages(&self.inner, Addr(block), bytes, &mut state.gone)
                }
                Err(ReadError::Gone) => {
                    state.gone = true;
                    0
                }
                Err(ReadError::Denied) => 0,
            },
        };
        let held = Held {
            slot,
            pages,
            asked: known.map_or(0, |held| held.asked),
        };
        state.remember(block, held);
        held
    }

    /// Pages that were not asked for before. Of a copy they are missing; where they are not in a block that was planned
    /// without them, they are read.
    fn ask(&self, block: u64, wanted: u8, held: Held) -> Held {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut held = held;
        let new = wanted & !held.asked;
        held.asked |= new;
        if state.frozen {
            state.missed = state.missed.saturating_add(1);
        } else if let Some((segment, start)) = place(held.slot)
            && new & !held.pages != 0
        {
            let bytes = state
                .segments
                .get_mut(segment)
                .and_then(|segment| segment.get_mut(start..start.checked_add(BLOCK)?));
            let missing = new & !held.pages;
            for (run, at, buf) in runs_of(missing, Addr(block), bytes.unwrap_or_default()) {
                held.pages |=
                    read_pages(&self.inner, at, buf, &mut state.gone) << run.trailing_zeros();
            }
        }
        state.remember(block, held);
        held
    }

    /// One piece within one block.
    fn piece(&self, block: u64, skip: usize, buf: &mut [u8]) -> Option<()> {
        let recent = {
            let state = self.state.borrow();
            let recent = state.recent.get(recent_index(block)).copied();
            recent.filter(|(at, _)| *at == block)
        };
        let mut held = match recent {
            Some((_, held)) => held,
            None => self.find(block),
        };
        let wanted = pages(skip, buf.len());
        if wanted & !held.asked != 0 {
            held = self.ask(block, wanted, held);
        }
        if held.pages & wanted != wanted {
            return None;
        }
        let state = self.state.borrow();
        if let Some(used) = usize::try_from(held.slot)
            .ok()
            .and_then(|n| state.used.get(n))
        {
            used.set(true);
        }
        let bytes = state.slot(held.slot)?;
        buf.copy_from_slice(bytes.get(skip..skip.checked_add(buf.len())?)?);
        Some(())
    }
}

/// The pages of a block among these, neighbours together: their bits, where they begin, and their bytes.
fn runs_of(pages: u8, block: Addr, bytes: &mut [u8]) -> Vec<(u8, Addr, &mut [u8])> {
    let mut runs: Vec<(u8, Addr, &mut [u8])> = Vec::with_capacity(2);
    let mut rest = bytes;
    let mut page = 0_u32;
    while let Some(bit) = 1_u8.checked_shl(page).filter(|bit| *bit <= WHOLE) {
        let mut run = 0_u8;
        let mut len = 0_u32;
        while let Some(next) = bit.checked_shl(len).filter(|next| pages & *next != 0) {
            run |= next;
            len = len.saturating_add(1);
        }
        let taken = len.max(1);
        let count = usize::try_from(taken).unwrap_or(PAGES).saturating_mul(PAGE);
        let Some((piece, after)) = std::mem::take(&mut rest).split_at_mut_checked(count) else {
            break;
        };
        if run != 0 {
            let at = u64::from(page).saturating_mul(PAGE as u64);
            runs.push((run, block.plus(at), piece));
        }
        rest = after;
        page = page.saturating_add(taken);
    }
    runs
}

/// Reads a block page by page; one bit for each that could be read. Says when the process was found to have ended.
fn read_pages(memory: &impl Memory, block: Addr, bytes: &mut [u8], gone: &mut bool) -> u8 {
    let mut read = 0;
    let mut at = block;
    for (n, page) in bytes.chunks_exact_mut(PAGE).enumerate() {
        match memory.read(at, page) {
            Ok(()) => read |= pages(n.saturating_mul(PAGE), 1),
            Err(ReadError::Gone) => {
                *gone = true;
                break;
            }
            Err(ReadError::Fault { .. } | ReadError::Denied) => {}
        }
        at = at.plus(PAGE as u64);
    }
    read
}

impl<M: Memory> Memory for PageCache<M> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let wanted = buf.len();
        let mut from = at;
        let mut rest = buf;
        while !rest.is_empty() {
            let skip = from.0 % BLOCK_U64;
            let block = from.0.saturating_sub(skip);
            let skip = usize::try_from(skip).unwrap_or(0);
            let len = BLOCK.saturating_sub(skip).min(rest.len());
            let Some((piece, after)) = rest.split_at_mut_checked(len) else {
                break;
            };
            if self.piece(block, skip, piece).is_none() {
                return Err(ReadError::Fault { at, len: wanted });
            }
            from = from.plus(u64::try_from(len).unwrap_or(u64::MAX));
            rest = after;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
