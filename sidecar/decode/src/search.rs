//! Finding the runtime without its file: deleted, unreadable, or without section headers.

use std::cell::Cell;
use std::ops::Range;

use object::elf;

use crate::limits::Limits;
use crate::memory::{Addr, Memory, PAGE, PageCache, ReadError};

/// Bytes read at a time.
const CHUNK: usize = 16 * PAGE;
/// Bytes of the target kept while a symbol is looked up.
const CACHE: usize = 1 << 20;
/// Reads of symbols, each of some KiB: a sound file takes about five.
const MAX_READS: u64 = 1 << 16;
/// Symbols of one bucket looked at: linkers make a bucket for every few symbols.
const MAX_CHAIN: usize = 1024;
/// Entries of a program header table or dynamic section looked at.
const MAX_ENTRIES: u64 = 256;

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
    let mut magic = [0; 6];
    match memory.read(base, &mut magic) {
        Ok(()) if magic == *b"\x7fELF\x02\x01" => {}
        Ok(()) | Err(ReadError::Fault { .. }) => return Ok(None),
        Err(error) => return Err(error),
    }
    // Hundreds of reads of some bytes each become a few.
    Ok(defined_symbol(&PageCache::new(memory, CACHE), base, name))
}

fn word<M: Memory + ?Sized, const N: usize>(memory: &M, at: Addr) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    memory.read(at, &mut bytes).ok()?;
    Some(bytes)
}

fn u64_at<M: Memory + ?Sized>(memory: &M, at: Addr) -> Option<u64> {
    word(memory, at).map(u64::from_le_bytes)
}

/// The structures are those of elf(5).
fn defined_symbol<M: Memory + ?Sized>(memory: &M, base: Addr, name: &[u8]) -> Option<Addr> {
    const PT_LOAD: u32 = 1;
    const PT_DYNAMIC: u32 = 2;
    const DT_HASH: u64 = 4;
    const DT_STRTAB: u64 = 5;
    const DT_SYMTAB: u64 = 6;
    const DT_GNU_HASH: u64 = 0x6fff_fef5;

    let headers = base.plus(u64_at(memory, base.plus(32))?);
    let count = u64::from(u16::from_le_bytes(word(memory, base.plus(56))?)).min(MAX_ENTRIES);
    let (mut linked, mut dynamic) = (None, None);
    for n in 0..count {
        let header = headers.plus(n.saturating_mul(56));
        let kind = u32::from_le_bytes(word(memory, header)?);
        let offset = u64_at(memory, header.plus(8))?;
        let address = u64_at(memory, header.plus(16))?;
        if kind == PT_LOAD && linked.is_none() {
            linked = Some(address.wrapping_sub(offset));
        } else if kind == PT_DYNAMIC {
            dynamic = Some(address);
        }
    }
    let bias = base.0.wrapping_sub(linked?);
    let dynamic = Addr(dynamic?.wrapping_add(bias));
    let (mut symbols, mut strings, mut hash, mut gnu_hash) = (None, None, None, None);
    for n in 0..MAX_ENTRIES {
        let entry = dynamic.plus(n.saturating_mul(16));
        let value = u64_at(memory, entry.plus(8))?;
        // glibc leaves relocated addresses here, musl those of the file.
        let address = Addr(if value < base.0 {
            value.wrapping_add(bias)
        } else {
            value
        });
        match u64_at(memory, entry)? {
            0 => break,
            DT_STRTAB => strings = Some(address),
            DT_SYMTAB => symbols = Some(address),
            DT_HASH => hash = Some(address),
            DT_GNU_HASH => gnu_hash = Some(address),
            _ => {}
        }
    }
    let (symbols, strings) = (symbols?, strings?);
    let is_it = |n: u32| {
        let symbol = symbols.plus(u64::from(n).saturating_mul(24));
        let at = u32::from_le_bytes(word(memory, symbol)?);
        let mut text = vec![0; name.len().saturating_add(1)];
        memory.read(strings.plus(u64::from(at)), &mut text).ok()?;
        if text.strip_suffix(&[0]) != Some(name) {
            return None;
        }
        let section = u16::from_le_bytes(word(memory, symbol.plus(6))?);
        let value = u64_at(memory, symbol.plus(8))?;
        (section != 0).then(|| Addr(value.wrapping_add(bias)))
    };
    let matching = match gnu_hash {
        Some(table) => gnu_chain(memory, table, name)?,
        None => sysv_chain(memory, hash?, name)?,
    };
    matching.into_iter().find_map(is_it)
}

/// The symbols whose hash is the name's, by the `GNU_HASH` table.
fn gnu_chain<M: Memory + ?Sized>(memory: &M, table: Addr, name: &[u8]) -> Option<Vec<u32>> {
    let hash = elf::gnu_hash(name);
    let u32_at = |at: Addr| word(memory, at).map(u32::from_le_bytes);
    let (buckets, first) = (u32_at(table)?, u32_at(table.plus(4))?);
    let bloom = u64::from(u32_at(table.plus(8))?).saturating_mul(8);
    let bucket = u64::from(hash.checked_rem(buckets)?);
    let bucket_at = table.plus(16).plus(bloom);
    let chains = bucket_at.plus(u64::from(buckets).saturating_mul(4));
    let mut symbol = u32_at(bucket_at.plus(bucket.saturating_mul(4)))?;
    let mut matching = Vec::new();
    for _ in 0..MAX_CHAIN {
        let Some(index) = symbol.checked_sub(first) else {
            break;
        };
        let link = u32_at(chains.plus(u64::from(index).saturating_mul(4)))?;
        if link | 1 == hash | 1 {
            matching.push(symbol);
        }
        if link & 1 == 1 {
            break;
        }
        symbol = symbol.checked_add(1)?;
    }
    Some(matching)
}

/// The symbols in the name's bucket, by the older `HASH` table.
fn sysv_chain<M: Memory + ?Sized>(memory: &M, table: Addr, name: &[u8]) -> Option<Vec<u32>> {
    let hash = elf::hash(name);
    let u32_at = |at: Addr| word(memory, at).map(u32::from_le_bytes);
    let buckets = u32_at(table)?;
    let entry = |n: u32| table.plus(8).plus(u64::from(n).saturating_mul(4));
    let mut symbol = u32_at(entry(hash.checked_rem(buckets)?))?;
    let mut chain = Vec::new();
    while symbol != 0 && chain.len() < MAX_CHAIN {
        chain.push(symbol);
        symbol = u32_at(entry(buckets.checked_add(symbol)?))?;
    }
    Some(chain)
}
