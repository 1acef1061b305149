//! An ELF file as the dynamic loader has put it into memory, read from there alone: the file may be deleted, replaced or
//! out of reach. The structures are those of elf(5).

use std::ops::Range;

use object::elf;

use crate::memory::{Addr, Memory, ReadError};

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
/// `e_machine` of x86-64.
pub(crate) const X86_64: u16 = 62;

/// Symbols of one bucket looked at: linkers make a bucket for every few symbols.
const MAX_CHAIN: usize = 1024;
/// Entries of a program header table or dynamic section looked at.
const MAX_ENTRIES: u64 = 256;

/// What the headers of a loaded file say.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    base: Addr,
    /// What has to be added to a link-time address.
    bias: u64,
    /// For what machine it is, `EM_*`.
    pub(crate) machine: u16,
    dynamic: Option<Addr>,
    /// Where `.eh_frame_hdr` lies.
    pub(crate) unwind_table: Option<Range<u64>>,
}

/// The tables of a file's dynamic symbols.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbols {
    bias: u64,
    table: Addr,
    strings: Addr,
    hash: Option<Addr>,
    gnu_hash: Option<Addr>,
}

fn word<M: Memory + ?Sized, const N: usize>(memory: &M, at: Addr) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    memory.read(at, &mut bytes).ok()?;
    Some(bytes)
}

fn u64_at<M: Memory + ?Sized>(memory: &M, at: Addr) -> Option<u64> {
    word(memory, at).map(u64::from_le_bytes)
}

fn u32_at<M: Memory + ?Sized>(memory: &M, at: Addr) -> Option<u32> {
    word(memory, at).map(u32::from_le_bytes)
}

/// Whether a 64-bit little-endian ELF file begins there.
///
/// # Errors
/// That the memory may not be read at all.
pub(crate) fn begins<M: Memory + ?Sized>(memory: &M, base: Addr) -> Result<bool, ReadError> {
    let mut magic = [0; 6];
    match memory.read(base, &mut magic) {
        Ok(()) => Ok(magic == *b"\x7fELF\x02\x01"),
        Err(ReadError::Fault { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Loaded {
    /// The headers of the file that is loaded at `base` and [`begins`] there.
    pub(crate) fn read<M: Memory + ?Sized>(memory: &M, base: Addr) -> Option<Self> {
        let headers = base.plus(u64_at(memory, base.plus(32))?);
        let count = u64::from(u16::from_le_bytes(word(memory, base.plus(56))?)).min(MAX_ENTRIES);
        let (mut linked, mut dynamic, mut unwind) = (None, None, None);
        for n in 0..count {
            let header = headers.plus(n.saturating_mul(56));
            let kind = u32_at(memory, header)?;
            let offset = u64_at(memory, header.plus(8))?;
            let address = u64_at(memory, header.plus(16))?;
            if kind == PT_LOAD && linked.is_none() {
                linked = Some(address.wrapping_sub(offset));
            } else if kind == PT_DYNAMIC {
                dynamic = Some(address);
            } else if kind == PT_GNU_EH_FRAME {
                unwind = Some((address, u64_at(memory, header.plus(40))?));
            }
        }
        // Wrapping: an executable linked to a fixed address has a bias of zero, and prelinked ones a "negative" one.
        let bias = base.0.wrapping_sub(linked?);
        Some(Self {
            base,
            bias,
            machine: u16::from_le_bytes(word(memory, base.plus(18))?),
            dynamic: dynamic.map(|at| Addr(at.wrapping_add(bias))),
            unwind_table: unwind.map(|(at, size)| {
                let at = at.wrapping_add(bias);
                at..at.saturating_add(size)
            }),
        })
    }

    /// Where its dynamic symbols are.
    pub(crate) fn symbols<M: Memory + ?Sized>(&self, memory: &M) -> Option<Symbols> {
        let dynamic = self.dynamic?;
        let (mut symbols, mut strings, mut hash, mut gnu_hash) = (None, None, None, None);
        for n in 0..MAX_ENTRIES {
            let entry = dynamic.plus(n.saturating_mul(16));
            let value = u64_at(memory, entry.plus(8))?;
            // glibc leaves relocated addresses here, musl those of the file.
            let address = Addr(if value < self.base.0 {
                value.wrapping_add(self.bias)
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
        Some(Symbols {
            bias: self.bias,
            table: symbols?,
            strings: strings?,
            hash,
            gnu_hash,
        })
    }
}

impl Symbols {
    /// Where a symbol of this name lies that the file defines.
    pub(crate) fn find<M: Memory + ?Sized>(&self, memory: &M, name: &[u8]) -> Option<Addr> {
        let matching = match self.gnu_hash {
            Some(table) => gnu_chain(memory, table, name)?,
            None => sysv_chain(memory, self.hash?, name)?,
        };
        matching
            .into_iter()
            .find_map(|n| self.is_it(memory, n, name))
    }

    fn is_it<M: Memory + ?Sized>(&self, memory: &M, n: u32, name: &[u8]) -> Option<Addr> {
        let symbol = self.table.plus(u64::from(n).saturating_mul(24));
        let at = u32_at(memory, symbol)?;
        let mut text = vec![0; name.len().saturating_add(1)];
        let strings = self.strings.plus(u64::from(at));
        memory.read(strings, &mut text).ok()?;
        if text.strip_suffix(&[0]) != Some(name) {
            return None;
        }
        let section = u16::from_le_bytes(word(memory, symbol.plus(6))?);
        let value = u64_at(memory, symbol.plus(8))?;
        (section != 0).then(|| Addr(value.wrapping_add(self.bias)))
    }
}

/// The symbols whose hash is the name's, by the `GNU_HASH` table.
fn gnu_chain<M: Memory + ?Sized>(memory: &M, table: Addr, name: &[u8]) -> Option<Vec<u32>> {
    let hash = elf::gnu_hash(name);
    let (buckets, first) = (u32_at(memory, table)?, u32_at(memory, table.plus(4))?);
    let bloom = u64::from(u32_at(memory, table.plus(8))?).saturating_mul(8);
    let bucket = u64::from(hash.checked_rem(buckets)?);
    let bucket_at = table.plus(16).plus(bloom);
    let chains = bucket_at.plus(u64::from(buckets).saturating_mul(4));
    let mut symbol = u32_at(memory, bucket_at.plus(bucket.saturating_mul(4)))?;
    let mut matching = Vec::new();
    for _ in 0..MAX_CHAIN {
        let Some(index) = symbol.checked_sub(first) else {
            break;
        };
        let link = u32_at(memory, chains.plus(u64::from(index).saturating_mul(4)))?;
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
    let buckets = u32_at(memory, table)?;
    let entry = |n: u32| table.plus(8).plus(u64::from(n).saturating_mul(4));
    let mut symbol = u32_at(memory, entry(hash.checked_rem(buckets)?))?;
    let mut chain = Vec::new();
    while symbol != 0 && chain.len() < MAX_CHAIN {
        chain.push(symbol);
        symbol = u32_at(memory, entry(buckets.checked_add(symbol)?))?;
    }
    Some(chain)
}
