//! Finding the runtime without its file: deleted, unreadable, or without section headers.

use std::cell::Cell;
use std::collections::BTreeSet;

use crate::limits::Limits;
use crate::memory::{Addr, Memory, PAGE, ReadError};
use crate::offsets::{AsyncioOffsets, COOKIE, Field as F, Offsets};
use crate::os::Mapping;

/// Bytes read at a time.
const CHUNK: usize = 16 * PAGE;
/// Symbols looked at in one file: libraries of compiled code have some hundred thousand.
const MAX_SYMBOLS: u64 = 1 << 20;
/// Entries of a program header table or dynamic section looked at.
const MAX_ENTRIES: u64 = 256;
/// Reads of one search: a target may map a file with a million symbols a thousand times.
const MAX_READS: u64 = 1 << 20;

/// Memory that can be read only so often.
struct Bounded<'a, M: ?Sized> {
    memory: &'a M,
    left: Cell<u64>,
}

impl<'a, M: Memory + ?Sized> Bounded<'a, M> {
    fn new(memory: &'a M) -> Self {
        Self {
            memory,
            left: Cell::new(MAX_READS),
        }
    }
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

/// Addresses that may hold the runtime, with the path of the mapping they were found by.
pub(crate) fn runtimes<'a, M: Memory + ?Sized>(
    memory: &M,
    mappings: &'a [Mapping],
    limits: &Limits,
) -> Result<Vec<(Addr, &'a str)>, ReadError> {
    let mut found = Vec::new();
    let bounded = Bounded::new(memory);
    for mapping in mappings
        .iter()
        .filter(|m| m.readable && m.inode != 0 && m.offset == 0)
    {
        if let Some(at) = dynamic_symbol(&bounded, Addr(mapping.start), b"_PyRuntime") {
            found.push((at, mapping.path.as_str()));
        }
    }
    if found.is_empty() {
        let bounded = Bounded::new(memory);
        scan(&bounded, mappings, limits, COOKIE, &mut |at, path| {
            found.push((at, path));
            // More than a few are copies of the table in somebody's buffers.
            found.len() < 16
        })?;
    }
    Ok(found)
}

/// The address of asyncio's table, by the one value it shares with the interpreter's.
pub(crate) fn asyncio<M: Memory + ?Sized>(
    memory: &M,
    mappings: &[Mapping],
    offsets: &Offsets,
    limits: &Limits,
) -> Option<Addr> {
    let memory = &Bounded::new(memory);
    let size = offsets.get(F::interpreter_state_size).to_le_bytes();
    let mut found = None;
    let _ = scan(memory, mappings, limits, size, &mut |at, _| {
        let table = at.minus(AsyncioOffsets::INTERPRETER_SIZE_AT);
        let mut bytes = [0; AsyncioOffsets::BYTES];
        if memory.read(table, &mut bytes).is_ok()
            && AsyncioOffsets::parse(&bytes, offsets).is_some()
        {
            found = Some(table);
        }
        found.is_none()
    });
    found
}

/// Looks for an aligned word in the writable data of mapped files and in the anonymous memory right behind it, where
/// uninitialised data lies. `hit` says whether to go on.
fn scan<'a, M: Memory + ?Sized>(
    memory: &M,
    mappings: &'a [Mapping],
    limits: &Limits,
    word: [u8; 8],
    hit: &mut impl FnMut(Addr, &'a str) -> bool,
) -> Result<(), ReadError> {
    let mut left = limits.scanned_bytes;
    let mut behind: Option<&Mapping> = None;
    let mut buffer = vec![0; CHUNK];
    for mapping in mappings {
        let file = mapping.inode != 0;
        let data = mapping.readable
            && mapping.writable
            && (file || behind.is_some_and(|b| b.end == mapping.start));
        let path = if file {
            mapping.path.as_str()
        } else {
            behind.map_or("", |b| b.path.as_str())
        };
        behind = file.then_some(mapping);
        if !data {
            continue;
        }
        let mut at = mapping.start;
        while at < mapping.end && left > 0 {
            let len = mapping.end.saturating_sub(at).min(CHUNK as u64).min(left);
            left = left.saturating_sub(len);
            let Some(chunk) = usize::try_from(len)
                .ok()
                .and_then(|len| buffer.get_mut(..len))
            else {
                break;
            };
            match memory.read(Addr(at), chunk) {
                Ok(()) => {
                    for (n, candidate) in chunk.as_chunks::<8>().0.iter().enumerate() {
                        if *candidate == word {
                            let offset = u64::try_from(n).unwrap_or(u64::MAX).saturating_mul(8);
                            if !hit(Addr(at).plus(offset), path) {
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

fn word<M: Memory + ?Sized, const N: usize>(memory: &M, at: Addr) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    memory.read(at, &mut bytes).ok()?;
    Some(bytes)
}

fn u64_at<M: Memory + ?Sized>(memory: &M, at: Addr) -> Option<u64> {
    word(memory, at).map(u64::from_le_bytes)
}

/// Looks a name up in the dynamic symbols of an ELF image that is loaded at `base`, with nothing but its memory.
/// The structures are those of elf(5).
fn dynamic_symbol<M: Memory + ?Sized>(memory: &M, base: Addr, name: &[u8]) -> Option<Addr> {
    const PT_LOAD: u32 = 1;
    const PT_DYNAMIC: u32 = 2;
    const DT_HASH: u64 = 4;
    const DT_STRTAB: u64 = 5;
    const DT_SYMTAB: u64 = 6;
    const DT_GNU_HASH: u64 = 0x6fff_fef5;

    let ident: [u8; 6] = word(memory, base)?;
    if ident != [0x7f, b'E', b'L', b'F', 2, 1] {
        return None;
    }
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
    if let Some(table) = gnu_hash {
        return gnu_chain(memory, table, name)?.into_iter().find_map(is_it);
    }
    let count = u64::from(u32::from_le_bytes(word(memory, hash?.plus(4))?)).min(MAX_SYMBOLS);
    (0..u32::try_from(count).ok()?).find_map(is_it)
}

/// The symbols whose hash is the name's, by the `GNU_HASH` table.
fn gnu_chain<M: Memory + ?Sized>(memory: &M, table: Addr, name: &[u8]) -> Option<BTreeSet<u32>> {
    let hash = name.iter().fold(5381_u32, |h, b| {
        h.wrapping_mul(33).wrapping_add(u32::from(*b))
    });
    let u32_at = |at: Addr| word(memory, at).map(u32::from_le_bytes);
    let (buckets, first) = (u32_at(table)?, u32_at(table.plus(4))?);
    let bloom = u64::from(u32_at(table.plus(8))?).saturating_mul(8);
    let bucket = u64::from(hash.checked_rem(buckets)?);
    let bucket_at = table.plus(16).plus(bloom);
    let chains = bucket_at.plus(u64::from(buckets).saturating_mul(4));
    let mut symbol = u32_at(bucket_at.plus(bucket.saturating_mul(4)))?;
    let mut matching = BTreeSet::new();
    for _ in 0..MAX_SYMBOLS {
        let Some(index) = symbol.checked_sub(first) else {
            break;
        };
        let link = u32_at(chains.plus(u64::from(index).saturating_mul(4)))?;
        if link | 1 == hash | 1 {
            matching.insert(symbol);
        }
        if link & 1 == 1 {
            break;
        }
        symbol = symbol.checked_add(1)?;
    }
    Some(matching)
}
