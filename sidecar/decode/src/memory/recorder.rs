//! Remembers which pages of a target a decode touched.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::{Addr, Memory, PAGE, PAGE_U64, ReadError};

/// The unit in which touched memory is told from its neighbours, in bytes; a page has 128 of them.
const LINE: u64 = 32;

/// Memory that keeps every page that was read through it.
#[derive(Debug)]
pub struct Recorder<M> {
    inner: M,
    pages: RefCell<BTreeMap<u64, Page>>,
    max_pages: usize,
}

#[derive(Debug)]
struct Page {
    bytes: Box<[u8]>,
    /// One bit for each line that was read.
    touched: u128,
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

    /// The pages by address, whole.
    pub fn into_pages(self) -> BTreeMap<u64, Box<[u8]>> {
        self.pages
            .into_inner()
            .into_iter()
            .map(|(at, page)| (at, page.bytes))
            .collect()
    }

    /// The pages by address with zeros in place of all that was not read: small, and with nothing of the target that
    /// the decode did not look at.
    pub fn into_touched(self) -> BTreeMap<u64, Box<[u8]>> {
        let line = usize::try_from(LINE).unwrap_or(PAGE);
        let mut pages = self.pages.into_inner();
        for page in pages.values_mut() {
            for (n, bytes) in page.bytes.chunks_mut(line).enumerate() {
                let touched = u32::try_from(n)
                    .ok()
                    .and_then(|n| page.touched.checked_shr(n));
                if touched.is_none_or(|touched| touched & 1 == 0) {
                    bytes.fill(0);
                }
            }
        }
        pages
            .into_iter()
            .map(|(at, page)| (at, page.bytes))
            .collect()
    }

    /// Whether pages had to be left out.
    pub fn is_full(&self) -> bool {
        self.pages.borrow().len() >= self.max_pages
    }

    /// Notes one read within one page.
    fn note(&self, at: Addr, len: u64) {
        let start = at.minus(at.page_offset());
        if !self.pages.borrow().contains_key(&start.0) {
            let mut bytes = vec![0; PAGE].into_boxed_slice();
            if self.is_full() || self.inner.read(start, &mut bytes).is_err() {
                return;
            }
            self.pages
                .borrow_mut()
                .insert(start.0, Page { bytes, touched: 0 });
        }
        let first = at.page_offset() / LINE;
        let last = at.page_offset().saturating_add(len.saturating_sub(1)) / LINE;
        if let Some(page) = self.pages.borrow_mut().get_mut(&start.0) {
            for line in first..=last {
                page.touched |= u32::try_from(line)
                    .ok()
                    .and_then(|line| 1_u128.checked_shl(line))
                    .unwrap_or(0);
            }
        }
    }
}

impl<M: Memory> Memory for Recorder<M> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        self.inner.read(at, buf)?;
        let mut at = at;
        let mut left = u64::try_from(buf.len()).unwrap_or(u64::MAX);
        while left > 0 {
            let len = PAGE_U64.saturating_sub(at.page_offset()).min(left);
            self.note(at, len);
            at = at.plus(len);
            left = left.saturating_sub(len);
        }
        Ok(())
    }
}
