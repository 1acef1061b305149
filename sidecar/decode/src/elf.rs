//! What the ELF files mapped into a process say about Python in it.
//!
//! The runtime is found by its section, whatever the file is called: embedders and renamed executables have no
//! `python` in their names. Nothing here opens a file; whoever does the I/O hands one in.

use std::io::{Read, Seek};

use object::LittleEndian;
use object::elf::{self, FileHeader64};
use object::read::elf::{
    FileHeader as _, GnuHashTable, ProgramHeader as _, SectionHeader as _, Sym as _, SymbolTable,
    VersionTable,
};
use object::read::{ReadCache, ReadRef};

use crate::os::Mapping;

/// No file has more loaded segments than that; the rest is ignored.
const MAX_SEGMENTS: usize = 64;
/// No library has more dynamic symbols than that; the rest is ignored.
const MAX_SYMBOLS: usize = 1 << 20;
/// The largest table read from a file, in bytes.
const MAX_TABLE: u64 = 32 << 20;

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
    /// The dynamic symbol `Py_Version`, a 32-bit `PY_VERSION_HEX` (3.11 and newer).
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
        let data = Bounded(&cache);
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
        let sections = header.sections(endian, data).map_err(ElfError)?;
        let section = |name: &[u8]| {
            let (_, section) = sections.section_by_name(endian, name)?;
            Some(section.sh_addr(endian))
        };
        let mut facts = Self {
            segments,
            runtime: section(b".PyRuntime"),
            asyncio: section(b".AsyncioDebug"),
            version: None,
        };
        // Files without usable symbols may have the sections all the same.
        if let Ok(symbols) = sections.symbols(endian, data, elf::SHT_DYNSYM) {
            let hash = sections
                .gnu_hash(endian, data)
                .ok()
                .flatten()
                .map(|(hash, _)| hash);
            let find = |name| symbol(name, &symbols, hash.as_ref());
            facts.runtime = facts.runtime.or_else(|| find(b"_PyRuntime"));
            facts.version = find(b"Py_Version");
        }
        Ok(facts)
    }

    /// What has to be added to a link-time address where the file is mapped like this.
    pub(crate) fn bias(&self, mapping: &Mapping) -> Option<u64> {
        let page = 0xfff;
        let segment = self.segments.iter().find(|segment| {
            let begin = segment.offset & !page;
            let end = segment.offset.saturating_add(segment.file_size);
            (begin..end).contains(&mapping.offset)
        })?;
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

/// A file of which no more is read at once than a sound file's tables need: a sparse one can claim any size.
struct Bounded<'a, R: Read + Seek>(&'a ReadCache<R>);

impl<R: Read + Seek> Clone for Bounded<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: Read + Seek> Copy for Bounded<'_, R> {}

impl<'a, R: Read + Seek> ReadRef<'a> for Bounded<'a, R> {
    fn len(self) -> Result<u64, ()> {
        self.0.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        if size > MAX_TABLE {
            return Err(());
        }
        self.0.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(
        self,
        range: std::ops::Range<u64>,
        delimiter: u8,
    ) -> Result<&'a [u8], ()> {
        self.0.read_bytes_at_until(range, delimiter)
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
        assert_eq!(mapped(0, 0x9000), None);
    }
}
