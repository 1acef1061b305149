//! The files that are mapped into a target, each with its mappings.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::elf::ElfFacts;
use crate::memory::Addr;
use crate::os::Mapping;

/// Files of one process that are looked at: a target can map as many as it likes.
pub(crate) const MAX_FILES: usize = 4096;
/// The runtime's structure has been larger since the table of offsets is in it, and it is initialised in the file.
const MIN_RUNTIME: u64 = 64 << 10;
/// Anonymous memory looked at behind a file's data, in bytes.
const MAX_BEHIND: u64 = 16 << 20;

/// A mapped file.
#[derive(Debug)]
pub(crate) struct MappedFile<'a> {
    pub(crate) path: &'a str,
    pub(crate) mappings: Vec<&'a Mapping>,
    /// Its writable mappings, where its initialised data is.
    pub(crate) data: Vec<Range<u64>>,
    /// The anonymous memory right behind each, where the other data is: some loaders put all of it there.
    pub(crate) behind: Vec<Range<u64>>,
}

impl<'a> MappedFile<'a> {
    /// Whether its data has room for a runtime, or its name claims one.
    pub(crate) fn may_hold_runtime(&self) -> bool {
        self.name().contains("python")
            || self
                .data
                .iter()
                .any(|data| data.end.saturating_sub(data.start) >= MIN_RUNTIME)
    }

    /// Whether its name is that of asyncio's extension module.
    pub(crate) fn is_asyncio(&self) -> bool {
        self.name().contains("_asyncio")
    }

    fn name(&self) -> &'a str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }

    /// The mappings of its beginning: one for each time it is loaded.
    pub(crate) fn beginnings(&self) -> impl Iterator<Item = &'a Mapping> {
        let first = self.mappings.iter().map(|mapping| mapping.offset).min();
        self.mappings
            .iter()
            .copied()
            .filter(move |mapping| Some(mapping.offset) == first)
    }

    /// Where an address that the file was linked with lies in the target, for each time the file is loaded. Only where
    /// data is: a file that is mapped to be read as a file is not loaded.
    pub(crate) fn data_addresses(&self, facts: &ElfFacts, linked: u64) -> Vec<Addr> {
        self.addresses(facts, linked)
            .filter(|address| {
                let mut data = self.data.iter().chain(&self.behind);
                data.any(|data| data.contains(&address.0))
            })
            .collect()
    }

    /// The same for any address.
    pub(crate) fn addresses(&self, facts: &ElfFacts, linked: u64) -> impl Iterator<Item = Addr> {
        let biases = self.beginnings().filter_map(|mapping| facts.bias(mapping));
        biases.map(move |bias| Addr(linked.wrapping_add(bias)))
    }
}

/// The mapped files in the order of their first mappings, and whether there are more than are looked into.
pub(crate) fn files(mappings: &[Mapping]) -> (Vec<MappedFile<'_>>, bool) {
    let mut index = BTreeMap::new();
    let mut files: Vec<MappedFile<'_>> = Vec::new();
    // The file whose data ended last, and where.
    let mut behind: Option<(usize, u64)> = None;
    for mapping in mappings {
        if !mapping.is_file() {
            if let Some((file, end)) = behind.take()
                && end == mapping.start
                && mapping.path.is_empty()
                && mapping.readable
                && mapping.writable
                && let Some(file) = files.get_mut(file)
            {
                let last = mapping.end.min(end.saturating_add(MAX_BEHIND));
                file.behind.push(mapping.start..last);
            }
            continue;
        }
        let key = (&mapping.device, mapping.inode, &mapping.path);
        let at = *index.entry(key).or_insert(files.len());
        if at == files.len() {
            if at >= MAX_FILES {
                return (files, true);
            }
            files.push(MappedFile {
                path: &mapping.path,
                mappings: Vec::new(),
                data: Vec::new(),
                behind: Vec::new(),
            });
        }
        let Some(file) = files.get_mut(at) else {
            continue;
        };
        file.mappings.push(mapping);
        behind = None;
        if mapping.readable && mapping.writable {
            file.data.push(mapping.start..mapping.end);
            behind = Some((at, mapping.end));
        }
    }
    (files, false)
}
