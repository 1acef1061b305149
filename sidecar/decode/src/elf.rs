//! What the ELF files mapped into a process say about Python in it.
//!
//! The runtime is found by its section, whatever the file is called: embedders and renamed executables have no
//! `python` in their names. Nothing here opens a file; whoever does the I/O hands one in.

use std::io::{Read, Seek};

use object::elf::{self, FileHeader64};
use object::read::elf::{
    ElfFile64, FileHeader as _, GnuHashTable, ProgramHeader as _, Sym as _, SymbolTable,
    VersionTable,
};
use object::read::{ReadCache, ReadRef};
use object::{LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::os::Mapping;

/// No file has more loaded segments than that; the rest is ignored.
const MAX_SEGMENTS: usize = 64;
/// No library has more dynamic symbols than that; the rest is ignored.
const MAX_SYMBOLS: usize = 1 << 20;

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
        let file: ElfFile64<'_, LittleEndian, _> = ElfFile64::parse(&cache).map_err(ElfError)?;
        let endian = file.endian();
        let segments = file
            .elf_header()
            .program_headers(endian, file.data())
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
        let section = |name: &str| file.section_by_name(name).map(|section| section.address());
        let mut facts = Self {
            segments,
            runtime: section(".PyRuntime"),
            asyncio: section(".AsyncioDebug"),
            version: None,
        };
        let symbols = Symbols::of(&file)?;
        if facts.runtime.is_none() {
            facts.runtime = symbols.find(b"_PyRuntime");
        }
        facts.version = symbols.find(b"Py_Version");
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

/// The dynamic symbols of a file, looked up by its hash table where it has one: there can be a great many.
struct Symbols<'data, 'file, R: ReadRef<'data>> {
    file: &'file ElfFile64<'data, LittleEndian, R>,
    table: SymbolTable<'data, FileHeader64<LittleEndian>, R>,
    hash: Option<GnuHashTable<'data, FileHeader64<LittleEndian>>>,
}

impl<'data, 'file, R: ReadRef<'data>> Symbols<'data, 'file, R> {
    fn of(file: &'file ElfFile64<'data, LittleEndian, R>) -> Result<Self, ElfError> {
        let sections = file.elf_section_table();
        let table = sections
            .symbols(LittleEndian, file.data(), elf::SHT_DYNSYM)
            .map_err(ElfError)?;
        // A damaged hash table is no reason to give up: the symbols can be read one by one.
        let hash = sections
            .gnu_hash(LittleEndian, file.data())
            .ok()
            .flatten()
            .map(|(hash, _)| hash);
        Ok(Self { file, table, hash })
    }

    /// The link-time address of a symbol that the file defines.
    fn find(&self, name: &[u8]) -> Option<u64> {
        if let Some(hash) = &self.hash {
            let versions = VersionTable::default();
            let wanted = elf::gnu_hash(name);
            let (_, symbol) =
                hash.find(LittleEndian, name, wanted, None, &self.table, &versions)?;
            return (!symbol.is_undefined(LittleEndian)).then(|| symbol.st_value(LittleEndian));
        }
        self.file
            .dynamic_symbols()
            .take(MAX_SYMBOLS)
            .find(|symbol| !symbol.is_undefined() && symbol.name_bytes() == Ok(name))
            .map(|symbol| symbol.address())
    }
}
