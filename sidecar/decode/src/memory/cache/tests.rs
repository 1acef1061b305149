//! The cache against memory that changes beneath it.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "the numbers are the tests' own"
)]

use std::cell::Cell;
use std::rc::Rc;

use super::*;

/// Memory from `START` to `END` in which every word holds its own address plus what was added last.
struct Words {
    added: Rc<Cell<u64>>,
    reads: Rc<Cell<usize>>,
}

const START: u64 = 0x10_0000 + PAGE as u64;
const END: u64 = 0x4000_0000;

impl Memory for Words {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        self.reads.set(self.reads.get() + 1);
        let end = at.0.checked_add(buf.len() as u64);
        if at.0 < START || end.is_none_or(|end| end > END) {
            return Err(ReadError::Fault { at, len: buf.len() });
        }
        for (n, byte) in buf.iter_mut().enumerate() {
            let at = at.0 + n as u64;
            let word = (at & !7) + self.added.get();
            *byte = word.to_le_bytes()[(at & 7) as usize];
        }
        Ok(())
    }
}

fn cache(bytes: usize) -> (PageCache<Words>, Rc<Cell<u64>>, Rc<Cell<usize>>) {
    let (added, reads) = (Rc::default(), Rc::default());
    let words = Words {
        added: Rc::clone(&added),
        reads: Rc::clone(&reads),
    };
    (PageCache::new(words, bytes), added, reads)
}

fn word(cache: &PageCache<Words>, at: u64) -> Option<u64> {
    let mut word = [0; 8];
    cache.read(Addr(at), &mut word).ok()?;
    Some(u64::from_le_bytes(word))
}

#[test]
fn a_block_is_read_once_until_it_is_forgotten() {
    let (cache, added, reads) = cache(1 << 20);
    assert_eq!(word(&cache, 0x20_0000), Some(0x20_0000));
    let once = reads.get();
    added.set(1 << 40);
    assert_eq!(word(&cache, 0x20_0008), Some(0x20_0008));
    assert_eq!(reads.get(), once);
    cache.clear();
    assert_eq!(word(&cache, 0x20_0008), Some(0x20_0008 + (1 << 40)));
}

#[test]
fn pages_beside_what_is_not_mapped_can_be_read() {
    let (cache, _, _) = cache(1 << 20);
    assert_eq!(word(&cache, START), Some(START));
    assert_eq!(word(&cache, START - 8), None);
    assert_eq!(word(&cache, END - 8), Some(END - 8));
    assert_eq!(word(&cache, END), None);
    assert_eq!(word(&cache, u64::MAX - 8), None);
    // Across the end of a block.
    let mut bytes = vec![0; 3 * BLOCK];
    cache.read(Addr(0x30_0010), &mut bytes).unwrap();
    assert_eq!(
        &bytes[BLOCK..BLOCK + 8],
        &(0x30_0010 + BLOCK_U64).to_le_bytes()
    );
}

#[test]
fn a_plan_is_read_at_once_and_holds_what_it_read() {
    let (cache, added, _) = cache(1 << 20);
    for at in [0x20_0000, 0x50_0000, START] {
        word(&cache, at);
    }
    assert!(cache.make_room());
    added.set(1 << 40);
    cache.refill();
    added.set(2 << 40);
    assert_eq!(word(&cache, 0x50_0000), Some(0x50_0000 + (1 << 40)));
    assert_eq!(word(&cache, START), Some(START + (1 << 40)));
    assert_eq!(cache.missed(), 0, "what is not mapped is no miss");
    assert_eq!(word(&cache, 0x60_0000), None);
    assert_eq!(word(&cache, 0x60_0008), None);
    assert_eq!(cache.missed(), 1);
    // The next time it is planned.
    assert!(cache.make_room());
    cache.refill();
    assert_eq!(word(&cache, 0x60_0000), Some(0x60_0000 + (2 << 40)));
    // While the target stands still the rest can be read too.
    cache.thaw();
    assert_eq!(word(&cache, 0x70_0000), Some(0x70_0000 + (2 << 40)));
    assert_eq!(cache.missed(), 0);
}

#[test]
fn more_memory_than_there_is_room_for_is_read_again_and_is_no_plan() {
    let (cache, _, _) = cache(1 << 20);
    for round in 0..3 {
        for block in 0..400 {
            let at = 0x20_0000 + block * BLOCK_U64 + round;
            let aligned = at & !7;
            assert_eq!(word(&cache, aligned), Some(aligned));
        }
    }
    let held: usize = cache.state.borrow().segments.iter().map(|s| s.len()).sum();
    assert!(held <= 2 << 20, "{held}");
    assert!(!cache.make_room());
    cache.clear();
    assert_eq!(word(&cache, 0x20_0000), Some(0x20_0000));
}

#[test]
fn a_plan_holds_the_pages_that_were_asked_for_and_no_others() {
    let (cache, added, _) = cache(1 << 20);
    let page = |n: u64| 0x20_0000 + n * PAGE as u64;
    for n in [0, 2, 3] {
        word(&cache, page(n) + 8);
    }
    assert!(cache.make_room());
    cache.refill();
    for n in [0, 2, 3] {
        assert_eq!(word(&cache, page(n)), Some(page(n)));
    }
    assert_eq!(cache.missed(), 0);
    assert_eq!(word(&cache, page(1)), None);
    assert_eq!(word(&cache, page(1) + 8), None);
    assert_eq!(cache.missed(), 1);
    // A read across two pages needs both.
    assert_eq!(word(&cache, page(1) - 4), None);
    cache.thaw();
    assert_eq!(word(&cache, page(5)), Some(page(5)));
    assert!(cache.make_room());
    added.set(1 << 40);
    cache.refill();
    assert_eq!(word(&cache, page(1)), Some(page(1) + (1 << 40)));
    assert_eq!(word(&cache, page(5)), Some(page(5) + (1 << 40)));
    cache.thaw();
    assert_eq!(word(&cache, page(6)), Some(page(6) + (1 << 40)));
    assert_eq!(cache.missed(), 0);
}

#[test]
fn pages_that_are_not_mapped_are_planned_once() {
    let (cache, _, _) = cache(1 << 20);
    word(&cache, START);
    word(&cache, START - 8);
    assert!(cache.make_room());
    cache.refill();
    assert_eq!(word(&cache, START), Some(START));
    assert_eq!(word(&cache, START - 8), None);
    assert_eq!(cache.missed(), 0);
}

/// Memory of a process that ends after some reads.
struct Mortal(Cell<usize>);

impl Memory for Mortal {
    fn read(&self, _: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let Some(left) = self.0.get().checked_sub(1) else {
            return Err(ReadError::Gone);
        };
        self.0.set(left);
        buf.fill(1);
        Ok(())
    }
}

#[test]
fn a_process_that_ends_while_it_is_read_is_told_from_memory_that_is_not_mapped() {
    // Read on demand.
    let cache = PageCache::new(Mortal(Cell::new(1)), 1 << 20);
    let mut word = [0; 8];
    assert!(cache.read(Addr(0x20_0000), &mut word).is_ok());
    assert!(!cache.gone());
    assert!(cache.read(Addr(0x30_0000), &mut word).is_err());
    assert!(cache.gone());
    // Copied at once: the second of two blocks comes too late.
    let cache = PageCache::new(Mortal(Cell::new(3)), 1 << 20);
    for at in [0x20_0000, 0x30_0000] {
        cache.read(Addr(at), &mut word).unwrap();
    }
    assert!(cache.make_room());
    cache.refill();
    assert!(cache.gone());
    // What was copied before the end counts.
    let cache = PageCache::new(Mortal(Cell::new(2)), 1 << 20);
    cache.read(Addr(0x20_0000), &mut word).unwrap();
    assert!(cache.make_room());
    cache.refill();
    assert!(cache.read(Addr(0x20_0000), &mut word).is_ok());
    assert!(!cache.gone());
    // Nor is memory that is not mapped a process that ended.
    let (cache, _, _) = self::cache(1 << 20);
    assert_eq!(self::word(&cache, END), None);
    assert!(!cache.gone());
}
