//! The search for a runtime: in the files that are mapped, then in memory.

use std::collections::BTreeSet;

use super::{LocateError, Runtime};
use crate::elf::{ElfFacts, Files};
use crate::limits::Limits;
use crate::mapped::{self, MAX_FILES, MappedFile};
use crate::memory::{Addr, Memory, ReadError};
use crate::offsets::{AsyncioOffsets, COOKIE, Field, Offsets, OffsetsError, Version};
use crate::os::Mapping;
use crate::search::{self, Budget};

/// Tables with the cookie that are looked at: more than a few are copies in somebody's buffers.
const MAX_CANDIDATES: usize = 16;

/// A table that carries the cookie, found but not yet believed.
struct Candidate {
    address: Addr,
    hex: u32,
    free_threaded: bool,
    /// Which file it is in.
    file: usize,
}

/// What is known of a mapped file.
enum Known {
    /// It was not opened.
    Unread,
    /// It cannot be had, or is no ELF file.
    Unreadable,
    Facts(ElfFacts),
}

struct Search<'a, M: ?Sized, F> {
    memory: &'a M,
    files: &'a F,
    mapped: Vec<MappedFile<'a>>,
    known: Vec<Known>,
    candidates: Vec<Candidate>,
    seen: BTreeSet<Addr>,
    /// The version of a Python without a table, as far as it is known.
    old: Option<String>,
    /// The kernel's refusal to read what holds a runtime, or may hold one.
    refused: Option<ReadError>,
    budget: Budget,
}

pub(super) fn locate<M: Memory + ?Sized>(
    memory: &M,
    mappings: &[Mapping],
    files: &impl Files,
) -> Result<Runtime, LocateError> {
    let (mapped, more) = mapped::files(mappings);
    let mut search = Search {
        memory,
        files,
        known: mapped.iter().map(|_| Known::Unread).collect(),
        mapped,
        candidates: Vec::new(),
        seen: BTreeSet::new(),
        old: None,
        refused: None,
        budget: Budget::new(&Limits::default()),
    };
    search.likely();
    if search.candidates.is_empty() && search.old.is_none() {
        search.unlikely();
    }
    if search.candidates.is_empty() {
        if let Some(error) = search.refused {
            return Err(error.into());
        }
        return Err(match search.old.or_else(|| named_python(mappings)) {
            Some(version) => too_old(version),
            None => LocateError::NotPython,
        });
    }
    let mut runtime = search.choose()?;
    if more {
        runtime.problems.push(format!(
            "more than {MAX_FILES} files are mapped: the others were not looked into"
        ));
    }
    Ok(runtime)
}

impl<M: Memory + ?Sized, F: Files> Search<'_, M, F> {
    /// The files that have room for a runtime: their section, and where they cannot be read their memory.
    fn likely(&mut self) {
        for n in 0..self.mapped.len() {
            if !self.mapped.get(n).is_some_and(MappedFile::may_hold_runtime) {
                continue;
            }
            self.read_facts(n);
            match (self.mapped.get(n), self.known.get(n)) {
                (Some(file), Some(Known::Facts(facts))) => {
                    let Some(linked) = facts.runtime else {
                        continue;
                    };
                    let version = facts.version;
                    let places = file.data_addresses(facts, linked);
                    let version = version.and_then(|at| file.addresses(facts, at).next());
                    for at in places {
                        self.try_runtime(n, at, version);
                    }
                }
                (Some(_), Some(Known::Unreadable)) => {
                    self.by_symbol(n, true);
                    if !self.candidates.iter().any(|found| found.file == n) {
                        self.by_cookie(n);
                    }
                }
                _ => {}
            }
        }
    }

    /// Everything else: files without section headers, and small ones.
    fn unlikely(&mut self) {
        for n in 0..self.mapped.len() {
            if !matches!(self.known.get(n), Some(Known::Unreadable)) {
                self.by_symbol(n, false);
            }
        }
        if self.candidates.is_empty() && self.old.is_none() {
            for n in 0..self.mapped.len() {
                if matches!(self.known.get(n), Some(Known::Facts(_))) {
                    self.by_cookie(n);
                }
            }
        }
    }

    fn read_facts(&mut self, n: usize) {
        let (Some(file), Some(known @ Known::Unread)) = (self.mapped.get(n), self.known.get_mut(n))
        else {
            return;
        };
        // Any mapping leads to the file; that of its beginning is there for good.
        let facts = file.beginnings().next().and_then(|m| self.files.elf(m));
        *known = facts.map_or(Known::Unreadable, Known::Facts);
    }

    /// A place where `_PyRuntime` is: with the cookie a candidate, without it an older Python.
    fn try_runtime(&mut self, n: usize, at: Addr, version: Option<Addr>) {
        match head(self.memory, at) {
            Ok(Some((hex, free_threaded))) => self.add(n, at, hex, free_threaded),
            Ok(None) => {
                let path = self.mapped.get(n).map_or("", |file| file.path);
                let version = version
                    .or_else(|| self.symbol(n, b"Py_Version"))
                    .and_then(|at| version_word(self.memory, at));
                self.old.get_or_insert_with(|| {
                    version
                        .or_else(|| version_in_name(path))
                        .unwrap_or_else(|| "3.12 or older".to_owned())
                });
            }
            Err(error @ (ReadError::Gone | ReadError::Denied)) => self.refused = Some(error),
            Err(ReadError::Fault { .. }) => {}
        }
    }

    fn add(&mut self, file: usize, address: Addr, hex: u32, free_threaded: bool) {
        if self.candidates.len() < MAX_CANDIDATES && self.seen.insert(address) {
            self.candidates.push(Candidate {
                address,
                hex,
                free_threaded,
                file,
            });
        }
    }

    /// A dynamic symbol of a file, by its memory alone.
    fn symbol(&self, n: usize, name: &[u8]) -> Option<Addr> {
        self.mapped
            .get(n)?
            .beginnings()
            .filter(|mapping| mapping.readable && mapping.offset == 0)
            .find_map(|m| {
                search::dynamic_symbol(self.memory, Addr(m.start), name, &self.budget).ok()?
            })
    }

    fn by_symbol(&mut self, n: usize, expected: bool) {
        let Some(file) = self.mapped.get(n) else {
            return;
        };
        let mut found = Vec::new();
        for mapping in file.beginnings().filter(|m| m.readable && m.offset == 0) {
            let symbol = search::dynamic_symbol(
                self.memory,
                Addr(mapping.start),
                b"_PyRuntime",
                &self.budget,
            );
            match symbol {
                Ok(at) => found.extend(at),
                Err(error @ ReadError::Gone) => self.refused = Some(error),
                Err(error @ ReadError::Denied) if expected => self.refused = Some(error),
                Err(ReadError::Denied | ReadError::Fault { .. }) => {}
            }
        }
        for at in found {
            self.try_runtime(n, at, None);
        }
    }

    fn by_cookie(&mut self, n: usize) {
        let Some(file) = self.mapped.get(n) else {
            return;
        };
        let mut found = Vec::new();
        for ranges in [&file.data, &file.behind] {
            let scanned = search::scan(self.memory, ranges, &mut self.budget, COOKIE, |at| {
                found.push(at);
                found.len() < MAX_CANDIDATES
            });
            if let Err(error) = scanned {
                self.refused = Some(error);
            }
            if !found.is_empty() {
                break;
            }
        }
        for at in found {
            if let Ok(Some((hex, free_threaded))) = head(self.memory, at) {
                self.add(n, at, hex, free_threaded);
            }
        }
    }

    /// Believes the first candidate with an interpreter, and says what else there is.
    fn choose(mut self) -> Result<Runtime, LocateError> {
        let mut failure = None;
        let mut chosen: Option<(usize, Runtime)> = None;
        let mut problems = Vec::new();
        for (n, candidate) in self.candidates.iter().enumerate() {
            let path = self.mapped.get(candidate.file).map_or("", |file| file.path);
            match believe(self.memory, candidate, path) {
                Ok(runtime) if chosen.is_none() => chosen = Some((n, runtime)),
                Ok(runtime) => problems.push(format!(
                    "the process runs a second Python, {} at {}, which is not shown",
                    runtime.version(),
                    runtime.address
                )),
                // Loaded and not started: nothing is missing.
                Err(error @ LocateError::NoInterpreter { .. }) => {
                    failure.get_or_insert(error);
                }
                Err(error) => {
                    problems.push(format!("the process holds a second Python: {error}"));
                    // An unsupported one matters more than one that was never started.
                    if !matches!(failure, Some(LocateError::Unsupported { .. })) {
                        failure = Some(error);
                    }
                }
            }
        }
        let Some((n, mut runtime)) = chosen else {
            return Err(failure.unwrap_or(LocateError::NotPython));
        };
        if let Some(version) = self.old.take() {
            problems.push(format!(
                "the process holds a second Python: {}",
                too_old(version)
            ));
        }
        runtime.problems = problems;
        let file = self.candidates.get(n).map_or(0, |found| found.file);
        self.find_asyncio(&mut runtime, file);
        Ok(runtime)
    }

    /// Finds asyncio's table: in the runtime's own file, where asyncio is linked into it, then in the extension module,
    /// then in the data of every file whose sections are not known.
    fn find_asyncio(&mut self, runtime: &mut Runtime, own: usize) {
        for n in 0..self.mapped.len() {
            if self.mapped.get(n).is_some_and(MappedFile::is_asyncio) {
                self.read_facts(n);
            }
        }
        let order = std::iter::once(own).chain((0..self.mapped.len()).filter(|n| *n != own));
        let mut tables = Vec::new();
        for n in order {
            if let (Some(file), Some(Known::Facts(facts))) = (self.mapped.get(n), self.known.get(n))
                && let Some(linked) = facts.asyncio
            {
                tables.extend(file.data_addresses(facts, linked));
            }
        }
        let expected = !tables.is_empty() || self.mapped.iter().any(MappedFile::is_asyncio);
        let believe = |at: Addr| {
            let mut bytes = [0; AsyncioOffsets::BYTES];
            self.memory.read(at, &mut bytes).ok()?;
            AsyncioOffsets::parse(&bytes, &runtime.offsets)
        };
        let mut found = tables.into_iter().find_map(believe);
        if found.is_none() {
            let size = runtime
                .offsets
                .get(Field::interpreter_state_size)
                .to_le_bytes();
            for (file, known) in self.mapped.iter().zip(&self.known) {
                // A file with one of the sections would have had the other.
                if found.is_some()
                    || matches!(known, Known::Facts(f) if f.runtime.is_some() || f.asyncio.is_some())
                {
                    continue;
                }
                let scanned = search::scan(self.memory, &file.data, &mut self.budget, size, |at| {
                    found = believe(at.minus(AsyncioOffsets::INTERPRETER_SIZE_AT));
                    found.is_none()
                });
                if scanned.is_err() {
                    break;
                }
            }
        }
        if found.is_none() && expected {
            runtime
                .problems
                .push("asyncio is loaded and its debug table could not be read".to_owned());
        }
        runtime.asyncio = found;
    }
}

/// The version and the free-threaded flag of the table at this address; `None` where there is no cookie.
fn head<M: Memory + ?Sized>(memory: &M, at: Addr) -> Result<Option<(u32, bool)>, ReadError> {
    let mut bytes = [0; 24];
    memory.read(at, &mut bytes)?;
    let (words, _) = bytes.as_chunks::<8>();
    let [cookie, version, free_threaded] = words else {
        return Ok(None);
    };
    if *cookie != COOKIE {
        return Ok(None);
    }
    Ok(u32::try_from(u64::from_le_bytes(*version))
        .ok()
        .map(|hex| (hex, u64::from_le_bytes(*free_threaded) != 0)))
}

/// `Py_Version`.
fn version_word<M: Memory + ?Sized>(memory: &M, at: Addr) -> Option<String> {
    let mut hex = [0; 4];
    memory.read(at, &mut hex).ok()?;
    (hex.last() == Some(&3)).then(|| version_text(u32::from_le_bytes(hex)))
}

/// Python's name for a version word.
pub(super) fn version_text(hex: u32) -> String {
    let [major, minor, micro, level] = hex.to_be_bytes();
    let serial = level & 0xf;
    let kind = match level >> 4 {
        0xa => "a",
        0xb => "b",
        0xc => "rc",
        _ => return format!("{major}.{minor}.{micro}"),
    };
    format!("{major}.{minor}.{micro}{kind}{serial}")
}

fn too_old(version: String) -> LocateError {
    LocateError::Unsupported {
        version,
        why: "its memory can be read from 3.14 on".to_owned(),
    }
}

/// The version in a file name such as `libpython3.9.so.1.0` or `python2.7`.
fn version_in_name(path: &str) -> Option<String> {
    let name = path.rsplit('/').next()?;
    let (_, after) = name.split_once("python")?;
    let version: String = after
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let version = version.trim_end_matches('.');
    let (major, minor) = version.split_once('.')?;
    let minor = minor.split('.').next()?;
    (!major.is_empty() && !minor.is_empty()).then(|| format!("{major}.{minor}"))
}

/// The version of a Python that only its file names betray.
fn named_python(mappings: &[Mapping]) -> Option<String> {
    mappings.iter().find_map(|mapping| {
        let name = mapping.path.rsplit('/').next()?;
        if !name.starts_with("python") && !name.starts_with("libpython") {
            return None;
        }
        let version = version_in_name(&mapping.path)?;
        // A newer one has a table: this is a data file or a launcher.
        let minor = version
            .strip_prefix("3.")
            .and_then(|m| m.parse::<u32>().ok());
        (version.starts_with("2.") || minor.is_some_and(|m| m < 13)).then_some(version)
    })
}

fn believe<M: Memory + ?Sized>(
    memory: &M,
    candidate: &Candidate,
    path: &str,
) -> Result<Runtime, LocateError> {
    let [major, minor, _, level] = candidate.hex.to_be_bytes();
    let text = version_text(candidate.hex);
    let unsupported = |why: &str| LocateError::Unsupported {
        version: text.clone(),
        why: why.to_owned(),
    };
    let minor = u32::from(minor);
    if (major, minor) < (3, 14) {
        return Err(too_old(text));
    }
    let version = Version::known(minor).filter(|_| major == 3);
    let Some(version) = version else {
        return Err(unsupported(
            "this program knows 3.14 and 3.15; a newer one is needed",
        ));
    };
    if level >> 4 != 0xf {
        return Err(unsupported(
            "pre-releases have layouts of their own; final releases can be read",
        ));
    }
    let offsets =
        Offsets::read(memory, candidate.address, version).map_err(|error| match error {
            OffsetsError::Read(error) => LocateError::Read(error),
            source => LocateError::Damaged {
                version: text.clone(),
                source,
            },
        })?;
    let mut head = [0; 8];
    memory.read(
        candidate
            .address
            .plus(offsets.get(Field::runtime_state_interpreters_head)),
        &mut head,
    )?;
    if u64::from_le_bytes(head) == 0 {
        return Err(LocateError::NoInterpreter { version: text });
    }
    Ok(Runtime {
        address: candidate.address,
        hex: candidate.hex,
        free_threaded: candidate.free_threaded,
        offsets,
        version,
        asyncio: None,
        path: path.to_owned(),
        problems: Vec::new(),
    })
}
