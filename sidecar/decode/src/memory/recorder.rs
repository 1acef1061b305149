//! Remembers which pages of a target a decode touched.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::{Addr, Memory, PAGE, ReadError};

/// Memory that keeps every page that was read through it.
#[derive(Debug)]
pub struct Recorder<M> {
    inner: M,
    pages: RefCell<BTreeMap<u64, Box<[u8]>>>,
    max_pages: usize,
}

impl<M: Memory> Recorder<M> {
    /// Records at most `max_pages` pages of 4 KiB; pages beyond are read and not kept.
    pub fn new(inner: M, max_pages: usize) -> Self {
        Self {
            inner,
            pages: RefCell::default(),
            max_pages,
        }
    }

    /// The pages by address.
    pub fn into_pages(self) -> BTreeMap<u64, Box<[u8]>> {
        self.pages.into_inner()
    }

    /// Whether pages had to be left out.
    pub fn is_full(&self) -> bool {
        self.pages.borrow().len() >= self.max_pages
    }
}

impl<M: Memory> Memory for Recorder<M> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        self.inner.read(at, buf)?;
        let page = PAGE as u64;
        let mut next = at.0.saturating_sub(at.0 % page);
        let end = at.plus(u64::try_from(buf.len()).unwrap_or(u64::MAX)).0;
        while next < end {
            if !self.pages.borrow().contains_key(&next) && !self.is_full() {
                let mut bytes = vec![0; PAGE].into_boxed_slice();
                if self.inner.read(Addr(next), &mut bytes).is_ok() {
                    self.pages.borrow_mut().insert(next, bytes);
                }
            }
            let Some(after) = next.checked_add(page) else {
                break;
            };
            next = after;
        }
        Ok(())
    }
}
