//! Reads whole pages once, for as long as a target stands still.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use super::{Addr, Memory, PAGE, ReadError};

/// Pages read in one go: a system call costs more than copying its neighbours.
const BLOCK: u64 = 4 * PAGE as u64;
/// Blocks kept: 32 MiB. When full they are dropped, since while the target stands still they can be read again.
const BLOCKS: usize = 2048;

/// Memory whose blocks of pages are read once. Valid for one stop: it never sees a later change.
#[derive(Debug)]
pub struct PageCache<M> {
    inner: M,
    blocks: RefCell<HashMap<u64, usize>>,
    data: RefCell<Vec<Option<Box<[u8]>>>>,
    last: Cell<Option<(u64, usize)>>,
}

impl<M: Memory> PageCache<M> {
    /// An empty cache.
    pub fn new(inner: M) -> Self {
        Self {
            inner,
            blocks: RefCell::default(),
            data: RefCell::default(),
            last: Cell::new(None),
        }
    }

    /// The memory beneath.
    pub fn inner(&self) -> &M {
        &self.inner
    }

    /// Forgets everything, for a target that has run meanwhile.
    pub fn clear(&self) {
        self.blocks.borrow_mut().clear();
        self.data.borrow_mut().clear();
        self.last.set(None);
    }

    /// The slot of a block, read if need be.
    fn slot(&self, block: u64) -> usize {
        if let Some((at, slot)) = self.last.get()
            && at == block
        {
            return slot;
        }
        if let Some(&slot) = self.blocks.borrow().get(&block) {
            self.last.set(Some((block, slot)));
            return slot;
        }
        if self.data.borrow().len() >= BLOCKS {
            self.clear();
        }
        let bytes = usize::try_from(BLOCK).ok().and_then(|len| {
            let mut bytes = vec![0; len].into_boxed_slice();
            self.inner
                .read(Addr(block), &mut bytes)
                .ok()
                .map(|()| bytes)
        });
        let mut data = self.data.borrow_mut();
        let slot = data.len();
        data.push(bytes);
        self.blocks.borrow_mut().insert(block, slot);
        self.last.set(Some((block, slot)));
        slot
    }
}

impl<M: Memory> Memory for PageCache<M> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            let skip = at.0 % BLOCK;
            let block = at.0.saturating_sub(skip);
            let room = usize::try_from(BLOCK.saturating_sub(skip)).unwrap_or(usize::MAX);
            let len = room.min(rest.len());
            let Some((piece, after)) = rest.split_at_mut_checked(len) else {
                break;
            };
            let slot = self.slot(block);
            let data = self.data.borrow();
            let cached = data.get(slot).and_then(Option::as_deref).and_then(|bytes| {
                let skip = usize::try_from(skip).ok()?;
                bytes.get(skip..skip.checked_add(len)?)
            });
            match cached {
                Some(bytes) => piece.copy_from_slice(bytes),
                // A neighbour of the wanted bytes is not mapped.
                None => self.inner.read(at, piece)?,
            }
            at = at.plus(u64::try_from(len).unwrap_or(u64::MAX));
            rest = after;
        }
        Ok(())
    }
}
