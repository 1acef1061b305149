//! ELF files, and ELF images in memory: what is mapped is the target's to choose.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};

use proptest::prelude::*;
use sidewinder_decode::{Addr, Mapping, Memory, NoFiles, ReadError, Runtime};

use crate::bounds::{Counting, LOCATE_BYTES, LOCATE_READS};
use crate::cases;
use crate::elf_file::{ASYNCIO, Hash, LINKED_AT, RUNTIME, VERSION, file, read, read_from};

#[test]
fn a_sound_file_says_where_everything_lies() {
    for (hash, stripped) in [
        (Hash::Gnu, false),
        (Hash::Gnu, true),
        (Hash::None, false),
        (Hash::None, true),
    ] {
        let facts = read(&file(hash, stripped).0).unwrap();
        assert_eq!(facts.runtime, Some(RUNTIME));
        assert_eq!(facts.asyncio, (!stripped).then_some(ASYNCIO));
        assert_eq!(facts.version, Some(VERSION));
        assert_eq!(facts.segments.len(), 1);
    }
}

/// The `object` library shifts a hash by this word: <https://github.com/gimli-rs/object>, `GnuHashTable::find`.
#[test]
fn a_hash_table_with_an_impossible_shift_is_not_used() {
    for shift in [32_u32, 64, u32::MAX] {
        let (mut bytes, layout) = file(Hash::Gnu, true);
        bytes[layout.hash + 12..layout.hash + 16].copy_from_slice(&shift.to_le_bytes());
        assert_eq!(read(&bytes).unwrap().version, Some(VERSION));
    }
}

/// A file of any size that costs its owner nothing: what was written, then the same byte for ever.
struct Sparse {
    head: Vec<u8>,
    filler: u8,
    len: u64,
    at: u64,
}

impl Read for Sparse {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap();
        let len = buf.len().min(left);
        for (n, byte) in (self.at..).zip(&mut buf[..len]) {
            let n = usize::try_from(n).unwrap();
            *byte = self.head.get(n).copied().unwrap_or(self.filler);
        }
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Sparse {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::End(by) => self.len.saturating_add_signed(by),
            SeekFrom::Current(by) => self.at.saturating_add_signed(by),
        };
        Ok(self.at)
    }
}

#[test]
fn tables_of_any_size_cost_no_more_than_a_file_may() {
    // Sections beyond the header's 16 bits are counted in the first section's size: here half a million of them, each
    // with a name of its own that never ends, and as many symbols.
    for (count, filler) in [(500_000_u64, 0x41), (500_000, 0), (u64::MAX, 0x41)] {
        let (mut head, layout) = file(Hash::None, false);
        head[60..62].fill(0);
        let size = layout.sections + 32;
        head[size..size + 8].copy_from_slice(&count.to_le_bytes());
        // The symbols' section is four further: size and strings.
        let symbols = layout.sections + 3 * 64 + 32;
        head[symbols..symbols + 8].copy_from_slice(&(24 * count.min(1_000_000)).to_le_bytes());
        let strings = layout.sections + 4 * 64 + 32;
        head[strings..strings + 8].copy_from_slice(&(1_u64 << 36).to_le_bytes());
        let _ = read_from(Sparse {
            head,
            filler,
            len: 1 << 40,
            at: 0,
        });
    }
}

/// One file, mapped at as many addresses as there are mappings.
struct Mapped {
    bytes: Vec<u8>,
    at: Vec<u64>,
}

impl Memory for Mapped {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let fault = ReadError::Fault { at, len: buf.len() };
        let n = self.at.partition_point(|start| *start <= at.0);
        let start = *n.checked_sub(1).and_then(|n| self.at.get(n)).ok_or(fault)?;
        for (n, byte) in (at.0 - start..).zip(buf) {
            let n = usize::try_from(n).unwrap();
            *byte = self.bytes.get(n).copied().unwrap_or(0x41);
        }
        Ok(())
    }
}

#[test]
fn a_file_with_a_million_symbols_that_is_mapped_a_thousand_times() {
    let at: Vec<u64> = (1..=1000).map(|n| n << 32).collect();
    let mappings: Vec<Mapping> = at
        .iter()
        .map(|start| Mapping {
            start: *start,
            end: start + (1 << 28),
            readable: true,
            writable: true,
            inode: 7,
            path: "/tmp/file".to_owned(),
            ..Mapping::default()
        })
        .collect();
    let (mut bytes, layout) = file(Hash::Count(u32::MAX), true);
    // Not the one that is looked for.
    bytes[layout.strings + 1] = b'x';
    let memory = Counting::new(Mapped { bytes, at });
    let found = Runtime::locate(&memory, &mappings[..600], &NoFiles);
    assert!(found.is_err());
    let (reads, bytes) = memory.take();
    // Each was looked at, and of each no more symbols than have the name's hash.
    assert!((600..600_000).contains(&reads), "{reads} reads");
    assert!(
        reads <= LOCATE_READS && bytes <= LOCATE_BYTES,
        "{reads} reads of {bytes} bytes"
    );
}

#[test]
fn symbols_in_memory_are_found_by_either_table() {
    for hash in [Hash::Gnu, Hash::Count(3)] {
        let (mut bytes, _) = file(hash, true);
        bytes.resize(0x2000, 0);
        // A table of a version that is not known, so that the error names what was found.
        bytes[0x1000..0x1008].copy_from_slice(b"xdebugpy");
        bytes[0x1008..0x1010].copy_from_slice(&0x0363_00f0_u64.to_le_bytes());
        for start in [LINKED_AT, 0x7f00_0000_0000] {
            let mapping = Mapping {
                start,
                end: start + 0x2000,
                readable: true,
                inode: 7,
                ..Mapping::default()
            };
            let memory = Mapped {
                bytes: bytes.clone(),
                at: vec![start],
            };
            let error = Runtime::locate(&memory, &[mapping], &NoFiles).unwrap_err();
            assert!(error.to_string().contains("3.99.0"), "{error}");
        }
    }
}

proptest! {
    #![proptest_config(cases(1024))]

    #[test]
    fn words_of_a_file_may_be_any(
        kind in 0..3_u8,
        stripped: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u32>(), 0_u32..2000, Just(u32::MAX)]), 0..8),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let hash = [Hash::None, Hash::Gnu, Hash::Count(3)][usize::from(kind)];
        let (mut bytes, _) = file(hash, stripped);
        let changes: BTreeMap<usize, u32> = changes.into_iter().map(|(n, v)| (n.index(bytes.len() / 4), v)).collect();
        for (n, value) in changes {
            bytes[4 * n..4 * n + 4].copy_from_slice(&value.to_le_bytes());
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = read(&bytes);
        // The same as an image in memory.
        let mapping = Mapping { start: 1 << 32, end: (1 << 32) + 8192, readable: true, inode: 7, ..Mapping::default() };
        let memory = Counting::new(Mapped { bytes, at: vec![1 << 32] });
        let _ = Runtime::locate(&memory, &[mapping], &NoFiles);
        let (reads, _) = memory.take();
        prop_assert!(reads <= LOCATE_READS);
    }
}
