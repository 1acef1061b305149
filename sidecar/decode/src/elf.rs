//! What the ELF files mapped into a process say about Python in it.
//!
//! The runtime is found by its section, whatever the file is called: embedders and renamed executables have no
//! `python` in their names. Nothing here opens a file; whoever does the I/O hands one in.

pub(crate) mod loaded;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io::{Read, Seek};

use object::LittleEndian;
use object::elf::{self, FileHeader64};
use object::read::elf::{
    FileHeader as _, GnuHashTable, ProgramHeader as _, SectionHeader as _, SectionTable, Sym as _,
    SymbolTable, VersionTable,
};
use object::read::{ReadCache, ReadRef};

use crate::offsets::COOKIE;
use crate::os::Mapping;

/// No file has more loaded segments than that; the rest is ignored.
pub(crate) const MAX_SEGMENTS: usize = 64;
/// No library has more dynamic symbols than that; the rest is ignored.
const MAX_SYMBOLS: usize = 1 << 20;
/// No linked file has more sections than that; the rest is ignored.
const MAX_SECTIONS: usize = 4096;
/// The largest table read from a file, in bytes.
const MAX_TABLE: u64 = 32 << 20;
/// The most that is read from a file in all, in bytes.
const MAX_BYTES: u64 = 128 << 20;
/// The largest page of any machine that runs Linux: no mapping begins further before what is mapped.
const MAX_PAGE: u64 = 64 << 10;
/// The most ranges that are read from a file.
const MAX_RANGES: usize = 4096;
/// Names are read in pieces of this many bytes: a file may have a million of them.
const WINDOW: u64 = 64 << 10;
/// No name that is looked for is longer, in bytes with its end.
const MAX_NAME: u64 = 64;

/// Opens the files behind a target's mappings.
///
/// An implementation verifies that what it opened is the mapped inode, since after an upgrade the path holds another
/// build, and passes it to [`ElfFacts::read`].
pub trait Files {
    /// What the file behind the mapping says; `None` where it cannot be had or is no ELF file.
    fn elf(&self, mapping: &Mapping) -> Option<ElfFacts>;
}

impl<F: Files + ?Sized> Files for &F {
    fn elf(&self, mapping: &Mapping) -> Option<ElfFacts> {
        (**self).elf(mapping)
    }
}

/// No files: everything has to be found in memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFiles;

impl Files for NoFiles {
    fn elf(&self, _: &Mapping) -> Option<ElfFacts> {
        None
    }
}

/// What one ELF file says; all addresses are link-time ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElfFacts {
    /// The loaded segments.
    pub segments: Vec<Segment>,
    /// Section `.PyRuntime`, else the dynamic symbol `_PyRuntime`.
    pub runtime: Option<u64>,
    /// Section `.AsyncioDebug`.
    pub asyncio: Option<u64>,
    /// The dynamic symbol `Py_Version`, a 32-bit `PY_VERSION_HEX`, in a file whose runtime has no table of offsets:
    /// 3.11 and 3.12.
    pub version: Option<u64>,
}

/// A loaded segment of an ELF file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file.
    pub offset: u64,
    /// Where it was linked to begin.
    pub address: u64,
    /// How long it is in the file.
    pub file_size: u64,
}

/// Why a file was not understood.
#[derive(Debug, thiserror::Error)]
#[error("not a 64-bit little-endian ELF file that can be read")]
pub struct ElfError(#[source] object::Error);

impl ElfFacts {
    /// Reads the headers of a file and what they point at; the rest of the file is not read.
    ///
    /// # Errors
    /// [`ElfError`] when the file is no 64-bit little-endian ELF file or cannot be read.
    pub fn read(file: impl Read + Seek) -> Result<Self, ElfError> {
        let cache = ReadCache::new(file);
        let spent = Spent::default();
        let data = Bounded {
            cache: &cache,
            spent: &spent,
        };
        let header = FileHeader64::<LittleEndian>::parse(data).map_err(ElfError)?;
        let endian = header.endian().map_err(ElfError)?;
        let segments = header
            .program_headers(endian, data)
            .map_err(ElfError)?
            .iter()
            .filter(|header| header.p_type(endian) == elf::PT_LOAD)
            .take(MAX_SEGMENTS)
            .map(|header| Segment {
                offset: header.p_offset(endian),
                address: header.p_vaddr(endian),
                file_size: header.p_filesz(endian),
            })
            .collect();
        let mut facts = Self {
            segments,
            ..Self::default()
        };
        // Stripped of its sections, a file can be searched in memory only.
        let Ok(sections) = header.sections(endian, data) else {
            return Ok(facts);
        };
        let section = |name: &[u8]| {
            let mut sections_to_look_at = sections.iter().take(MAX_SECTIONS);
            sections_to_look_at.find(|section| sections.section_name(endian, section) == Ok(name))
        };
        facts.asyncio = section(b".AsyncioDebug").map(|section| section.sh_addr(endian));
        let section = section(b".PyRuntime");
        facts.runtime = section.map(|section| section.sh_addr(endian));
        // The table is initialised in the file, and where it is nothing else is needed: reading symbols takes longer
        // than all the rest.
        let table = section.map(|section| data.read_bytes_at(section.sh_offset(endian), 8));
        if table != Some(Ok(COOKIE.as_slice()))
            && let Ok(symbols) = sections.symbols(endian, data, elf::SHT_DYNSYM)
        {
            let hash = gnu_hash(&sections, data);
            let find = |name| symbol(name, &symbols, hash.as_ref());
            facts.runtime = facts.runtime.or_else(|| find(b"_PyRuntime"));
            facts.version = facts.runtime.and_then(|_| find(b"Py_Version"));
        }
        Ok(facts)
    }

    /// What has to be added to a link-time address where the file is mapped like this.
    pub(crate) fn bias(&self, mapping: &Mapping) -> Option<u64> {
        // A mapping begins at the page of its segment's first byte, wherever in the segment before that may lie.
        let begins = |segment: &&Segment| {
            segment
                .offset
                .checked_sub(mapping.offset)
                .is_some_and(|before| before < MAX_PAGE)
        };
        // Unmapping the beginning of a segment leaves a mapping that begins inside.
        let inside = |segment: &&Segment| {
            let end = segment.offset.saturating_add(segment.file_size);
            (segment.offset..end).contains(&mapping.offset)
        };
        let segment = self
            .segments
            .iter()
            .find(begins)
            .or_else(|| self.segments.iter().find(inside))?;
        // Wrapping: an executable linked to a fixed address has a bias of zero, and prelinked ones a "negative" one.
        Some(
            mapping
                .start
                .wrapping_sub(mapping.offset)
                .wrapping_sub(segment.address)
                .wrapping_add(segment.offset),
        )
    }
}

/// The file's table of hashes, where it has a sound one.
fn gnu_hash<'data, R: ReadRef<'data>>(
    sections: &SectionTable<'data, FileHeader64<LittleEndian>, R>,
    data: R,
) -> Option<GnuHashTable<'data, FileHeader64<LittleEndian>>> {
    let mut sections_to_look_at = sections.iter().take(MAX_SECTIONS);
    let section =
        sections_to_look_at.find(|section| section.sh_type(LittleEndian) == elf::SHT_GNU_HASH)?;
    let bytes = section.data(LittleEndian, data).ok()?;
    // The library shifts a hash of 32 bits by the header's fourth word, whatever that is.
    let shift = bytes.get(12..16)?.try_into().ok()?;
    if u32::from_le_bytes(shift) >= 32 {
        return None;
    }
    GnuHashTable::parse(LittleEndian, bytes).ok()
}

/// The link-time address of a dynamic symbol that the file defines, by the hash table where there is one: libraries can
/// have a great many symbols.
fn symbol<'data, R: ReadRef<'data>>(
    name: &[u8],
    symbols: &SymbolTable<'data, FileHeader64<LittleEndian>, R>,
    hash: Option<&GnuHashTable<'data, FileHeader64<LittleEndian>>>,
) -> Option<u64> {
    let symbol = match hash {
        Some(hash) => {
            let wanted = elf::gnu_hash(name);
            hash.find(
                LittleEndian,
                name,
                wanted,
                None,
                symbols,
                &VersionTable::default(),
            )?
            .1
        }
        None => symbols
            .iter()
            .take(MAX_SYMBOLS)
            .find(|symbol| symbol.name(LittleEndian, symbols.strings()) == Ok(name))?,
    };
    (!symbol.is_undefined(LittleEndian)).then(|| symbol.st_value(LittleEndian))
}

/// A file of which no more is read than a sound file's tables need: a sparse one can claim any size, and its names can
/// be as many and as long as it likes.
struct Bounded<'a, R: Read + Seek> {
    cache: &'a ReadCache<R>,
    spent: &'a Spent,
}

/// What was read of a file so far.
#[derive(Default)]
struct Spent {
    ranges: RefCell<HashSet<(u64, u64)>>,
    bytes: Cell<u64>,
}

impl<R: Read + Seek> Clone for Bounded<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: Read + Seek> Copy for Bounded<'_, R> {}

impl<'a, R: Read + Seek> ReadRef<'a> for Bounded<'a, R> {
    fn len(self) -> Result<u64, ()> {
        self.cache.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        if size > MAX_TABLE {
            return Err(());
        }
        let mut ranges = self.spent.ranges.borrow_mut();
        // What was read before is in the cache.
        if !ranges.contains(&(offset, size)) {
            let bytes = self.spent.bytes.get().saturating_add(size);
            if bytes > MAX_BYTES || ranges.len() >= MAX_RANGES {
                return Err(());
            }
            ranges.insert((offset, size));
            self.spent.bytes.set(bytes);
        }
        self.cache.read_bytes_at(offset, size)
    }

    /// Names: those that begin in the same window are read together. Longer ones than any that is looked for are none.
    fn read_bytes_at_until(
        self,
        range: std::ops::Range<u64>,
        delimiter: u8,
    ) -> Result<&'a [u8], ()> {
        let skip = range.start % WINDOW;
        let window = range.start.saturating_sub(skip);
        let len = self.len()?.saturating_sub(window).min(WINDOW + MAX_NAME);
        let bytes = self.read_bytes_at(window, len)?;
        let from = usize::try_from(skip).map_err(drop)?;
        let room = range.end.saturating_sub(window).min(len);
        let room = room.min(skip.saturating_add(MAX_NAME));
        let to = usize::try_from(room).map_err(drop)?;
        let bytes = bytes.get(from..to).ok_or(())?;
        let end = bytes.iter().position(|b| *b == delimiter).ok_or(())?;
        bytes.get(..end).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// This test's own program.
    fn program() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn a_program_without_python_says_so() {
        let facts = ElfFacts::read(Cursor::new(program())).unwrap();
        assert!(!facts.segments.is_empty());
        assert_eq!(
            (facts.runtime, facts.asyncio, facts.version),
            (None, None, None)
        );
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in [
            &b""[..],
            b"#!/bin/sh\n",
            b"\x7fELF\x01\x01\x01",
            &program()[..40],
        ] {
            assert!(ElfFacts::read(Cursor::new(bytes)).is_err());
        }
    }

    #[test]
    fn a_mapping_of_any_segment_tells_where_the_file_lies() {
        let facts = ElfFacts {
            segments: vec![
                Segment {
                    offset: 0,
                    address: 0x40_0000,
                    file_size: 0x1800,
                },
                Segment {
                    offset: 0x1800,
                    address: 0x40_3800,
                    file_size: 0x1000,
                },
            ],
            ..ElfFacts::default()
        };
        let mapped = |start, offset| {
            facts.bias(&Mapping {
                start,
                offset,
                ..Mapping::default()
            })
        };
        assert_eq!(mapped(0x40_0000, 0), Some(0));
        assert_eq!(mapped(0x7f00_0040_0000, 0), Some(0x7f00_0000_0000));
        assert_eq!(mapped(0x7f00_0040_4000, 0x2000), Some(0x7f00_0000_0000));
        assert_eq!(mapped(0x7f00_0040_3000, 0x1000), Some(0x7f00_0000_0000));
        assert_eq!(mapped(0, 0x9000), None);
    }
}
