//! A small ELF file with everything that is looked for in one, and what reading any file keeps to.

use std::cell::Cell;
use std::io::{Cursor, Read, Seek, SeekFrom};

use sidewinder_decode::{ElfError, ElfFacts};

/// Bytes that one file may cost: its largest tables, and no more than some of them.
const MOST_BYTES: u64 = 192 << 20;
/// Reads that one file may cost.
const MOST_READS: u64 = 10_000;

/// Link-time addresses are offsets in the file plus this.
pub const LINKED_AT: u64 = 0x40_0000;
/// Where the file says that `.PyRuntime` lies.
pub const RUNTIME: u64 = LINKED_AT + 0x1000;
/// Where it says that `.AsyncioDebug` lies.
pub const ASYNCIO: u64 = LINKED_AT + 0x1800;
/// Where it says that `Py_Version` lies.
pub const VERSION: u64 = LINKED_AT + 0x1900;

/// Which table of hashes a file has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    None,
    Gnu,
    /// That of System V, which says how many symbols there are.
    Count(u32),
}

/// Where the parts of [`file`] lie in it.
pub struct Layout {
    pub strings: usize,
    pub hash: usize,
    pub sections: usize,
}

fn words(out: &mut Vec<u8>, values: &[u64]) {
    out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
}

fn halves(out: &mut Vec<u8>, values: &[u32]) {
    out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
}

fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381, |h: u32, b| {
        h.wrapping_mul(33).wrapping_add(u32::from(*b))
    })
}

/// An ELF file with the sections and symbols of a Python, or without its sections' names where `stripped`.
pub fn file(hash: Hash, stripped: bool) -> (Vec<u8>, Layout) {
    let names: [&[u8]; 2] = [b"_PyRuntime", b"Py_Version"];
    let mut out = vec![0; 64 + 2 * 56];

    let symbols = out.len();
    words(&mut out, &[0; 3]);
    let mut strings_table = vec![0];
    for (name, value) in names.iter().zip([RUNTIME, VERSION]) {
        let name_at = u32::try_from(strings_table.len()).unwrap();
        strings_table.extend_from_slice(name);
        strings_table.push(0);
        // A global object in section 1.
        halves(&mut out, &[name_at, 0x11 | 1 << 16]);
        words(&mut out, &[value, 8]);
    }
    let strings = out.len();
    let strings_len = strings_table.len();
    out.extend(strings_table);
    out.resize(out.len().next_multiple_of(8), 0);

    let hash_at = out.len();
    match hash {
        Hash::None => {}
        Hash::Gnu => {
            // One bucket, symbols from 1 on, one word of a filter that lets everything pass.
            halves(&mut out, &[1, 1, 1, 6]);
            words(&mut out, &[u64::MAX]);
            halves(
                &mut out,
                &[1, gnu_hash(names[0]) & !1, gnu_hash(names[1]) | 1],
            );
        }
        Hash::Count(count) => halves(&mut out, &[1, count, 1, 0, 2, 0]),
    }
    let hash_len = out.len() - hash_at;
    out.resize(out.len().next_multiple_of(8), 0);

    let dynamic = out.len();
    let linked = |at: usize| LINKED_AT + at as u64;
    // DT_STRTAB, DT_SYMTAB, and DT_GNU_HASH or DT_HASH.
    words(&mut out, &[5, linked(strings), 6, linked(symbols)]);
    match hash {
        Hash::None => {}
        Hash::Gnu => words(&mut out, &[0x6fff_fef5, linked(hash_at)]),
        Hash::Count(_) => words(&mut out, &[4, linked(hash_at)]),
    }
    words(&mut out, &[0, 0]);
    let dynamic_len = out.len() - dynamic;

    let section_names = out.len();
    let names_of_sections: &[u8] = if stripped {
        b"\0.q\0.q\0"
    } else {
        b"\0.PyRuntime\0.AsyncioDebug\0"
    };
    out.extend_from_slice(names_of_sections);
    let second = names_of_sections
        .iter()
        .skip(1)
        .position(|b| *b == 0)
        .unwrap()
        + 2;
    out.resize(out.len().next_multiple_of(8), 0);

    let sections = out.len();
    let mut section = |name: usize, kind: u32, address, at: usize, len: usize, link: u32, entry| {
        halves(&mut out, &[u32::try_from(name).unwrap(), kind]);
        words(&mut out, &[2, address, at as u64, len as u64]);
        halves(&mut out, &[link, 1]);
        words(&mut out, &[8, entry]);
    };
    section(0, 0, 0, 0, 0, 0, 0);
    section(1, 1, RUNTIME, 0x1000, 0, 0, 0);
    section(second, 1, ASYNCIO, 0x1800, 0, 0, 0);
    // Symbols, their strings, their hashes, the sections' names.
    section(0, 11, linked(symbols), symbols, strings - symbols, 4, 24);
    section(0, 3, linked(strings), strings, strings_len, 0, 0);
    let kind = if hash == Hash::Gnu { 0x6fff_fff6 } else { 0 };
    section(0, kind, linked(hash_at), hash_at, hash_len, 3, 0);
    section(0, 3, 0, section_names, names_of_sections.len(), 0, 0);

    let len = out.len() as u64;
    let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    halves(&mut head, &[3 | 62 << 16, 1]);
    words(&mut head, &[0, 64, sections as u64]);
    halves(&mut head, &[0, 64 | 56 << 16, 2 | 64 << 16, 7 | 6 << 16]);
    // All of it is loaded; then the dynamic section.
    halves(&mut head, &[1, 4]);
    words(&mut head, &[0, LINKED_AT, LINKED_AT, len, len, 4096]);
    halves(&mut head, &[2, 4]);
    let at = linked(dynamic);
    let dynamic_len = dynamic_len as u64;
    words(
        &mut head,
        &[dynamic as u64, at, at, dynamic_len, dynamic_len, 8],
    );
    out[..head.len()].copy_from_slice(&head);
    let layout = Layout {
        strings,
        hash: hash_at,
        sections,
    };
    (out, layout)
}

/// Files that a fuzzer begins with.
#[allow(dead_code, reason = "the fuzz targets use it and the tests do not")]
pub fn sound() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("hashed", file(Hash::Gnu, false).0),
        ("unhashed", file(Hash::None, false).0),
        ("stripped", file(Hash::Gnu, true).0),
        ("stripped-unhashed", file(Hash::None, true).0),
    ]
}

/// Reads a file and panics if that cost more than a file may.
pub fn read(bytes: &[u8]) -> Result<ElfFacts, ElfError> {
    read_from(Cursor::new(bytes))
}

/// The same of anything that is like a file.
pub fn read_from(file: impl Read + Seek) -> Result<ElfFacts, ElfError> {
    let (reads, bytes) = (Cell::new(0), Cell::new(0));
    let facts = ElfFacts::read(Counted {
        file,
        reads: &reads,
        bytes: &bytes,
    });
    assert!(reads.get() <= MOST_READS, "{} reads", reads.get());
    assert!(bytes.get() <= MOST_BYTES, "{} bytes read", bytes.get());
    if let Ok(facts) = &facts {
        assert!(facts.segments.len() <= 64);
    }
    facts
}

struct Counted<'a, F> {
    file: F,
    reads: &'a Cell<u64>,
    bytes: &'a Cell<u64>,
}

impl<F: Read> Read for Counted<'_, F> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = self.file.read(buf)?;
        self.reads.set(self.reads.get() + 1);
        self.bytes.set(self.bytes.get() + len as u64);
        Ok(len)
    }
}

impl<F: Seek> Seek for Counted<'_, F> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(to)
    }
}
