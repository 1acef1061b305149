//! The interpreter's runtime in a process: where it lies, which version it is, who holds its locks.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::decoder::{Decoder, Fault};
use crate::elf::{ElfFacts, Files};
use crate::limits::Limits;
use crate::memory::{Addr, Memory, ReadError};
use crate::offsets::{AsyncioOffsets, COOKIE, Field as F, Offsets, OffsetsError, Version};
use crate::os::Mapping;
use crate::search;

/// Mapped files that are looked into. Processes have some hundred, and a target may map one under many names.
const MAX_FILES: usize = 4096;
/// Tables that are looked at. One process has one, seldom two.
const MAX_CANDIDATES: usize = 16;

/// A located runtime: the address and layout of `_PyRuntime`. Valid as long as the process does not exec; the place of
/// asyncio's tables is that of the moment, so a later import needs a new search.
#[derive(Clone, Debug)]
pub struct Runtime {
    address: Addr,
    hex: u32,
    free_threaded: bool,
    offsets: Offsets,
    pub(crate) version: &'static Version,
    asyncio: Option<AsyncioOffsets>,
    path: String,
    problems: Vec<String>,
}

/// Why no runtime was located.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// Nothing in the process looks like CPython.
    #[error("no Python interpreter is mapped into the process")]
    NotPython,
    /// It is a Python that cannot be read.
    #[error("Python {version} is not supported: {why}")]
    Unsupported {
        /// The version as far as it is known, for example `3.12.1`.
        version: String,
        /// Why not, and what would be.
        why: String,
    },
    /// Python is there and has no interpreter: it has not been started yet, or has been shut down.
    #[error("Python {version} is loaded and has no interpreter (not started yet, or shut down)")]
    NoInterpreter {
        /// The version.
        version: String,
    },
    /// The table of offsets contradicts itself.
    #[error("Python {version} has damaged debug offsets")]
    Damaged {
        /// The version.
        version: String,
        /// What is wrong with them.
        #[source]
        source: OffsetsError,
    },
    /// The process could not be read.
    #[error("cannot read the process")]
    Read(#[from] ReadError),
}

/// The state of one GIL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GilState {
    /// The id of the first interpreter that uses it.
    pub interpreter: i64,
    /// The lock itself. Interpreters that share one have the same.
    pub gil: Addr,
    /// Whether it is held.
    pub locked: bool,
    /// The thread state that holds it, or held it last when it is not locked; null when nobody has.
    pub holder: Addr,
    /// That thread's id in the target's own PID namespace; `None` when it could not be read.
    pub holder_tid: Option<u64>,
    /// How often it went from one thread to another.
    pub switch_number: u64,
}

/// A table that carries the cookie, found but not yet believed.
struct Candidate<'a> {
    address: Addr,
    hex: u32,
    free_threaded: bool,
    path: &'a str,
    /// Where `.AsyncioDebug` of the same file lies.
    asyncio: Option<Addr>,
}

/// A Python without a table: its address in memory, and its file.
struct Old {
    version: String,
}

impl Runtime {
    /// Finds the runtime among everything that is mapped.
    ///
    /// Every mapped ELF file is looked at, not only those called python; where no file can be had, the dynamic symbols
    /// in memory and at last the cookie itself are searched for.
    ///
    /// # Errors
    /// [`LocateError`] says whether there is no Python, one that cannot be read, or memory that cannot be read.
    pub fn locate<M: Memory + ?Sized>(
        memory: &M,
        mappings: &[Mapping],
        files: &impl Files,
    ) -> Result<Self, LocateError> {
        let limits = Limits::default();
        let (places, more) = places(mappings, files);
        let mut seen = BTreeSet::new();
        let mut candidates = Vec::new();
        let mut old = None;
        let mut denied = None;
        for place in &places {
            let Some(runtime) = place.facts.runtime else {
                continue;
            };
            let address = place.address(runtime);
            match head(memory, address) {
                Ok(Some((hex, free_threaded))) => {
                    if seen.insert(address) {
                        candidates.push(Candidate {
                            address,
                            hex,
                            free_threaded,
                            path: place.path,
                            asyncio: place.facts.asyncio.map(|a| place.address(a)),
                        });
                    }
                }
                Ok(None) => old = old.or_else(|| Some(old_version(memory, place))),
                Err(error @ (ReadError::Gone | ReadError::Denied)) => denied = Some(error),
                Err(ReadError::Fault { .. }) => {}
            }
        }
        if candidates.is_empty() && old.is_none() {
            for (address, path) in search::runtimes(memory, mappings, &limits)? {
                if let Ok(Some((hex, free_threaded))) = head(memory, address)
                    && seen.insert(address)
                {
                    candidates.push(Candidate {
                        address,
                        hex,
                        free_threaded,
                        path,
                        asyncio: None,
                    });
                }
            }
        }
        if candidates.is_empty() {
            if let Some(error) = denied {
                return Err(error.into());
            }
            return Err(match old.or_else(|| named_python(mappings)) {
                Some(old) => too_old(old.version),
                None => LocateError::NotPython,
            });
        }
        candidates.truncate(MAX_CANDIDATES);
        let mut runtime = choose(memory, mappings, &places, &candidates, &limits)?;
        if more {
            runtime.problems.push(format!(
                "more than {MAX_FILES} files are mapped: the others were not looked into"
            ));
        }
        Ok(runtime)
    }

    /// The address of `_PyRuntime`.
    pub fn address(&self) -> Addr {
        self.address
    }

    /// The version, for example `3.14.8`.
    pub fn version(&self) -> String {
        version_text(self.hex)
    }

    /// `PY_VERSION_HEX`.
    pub fn version_hex(&self) -> u32 {
        self.hex
    }

    /// Whether the build can run without the GIL.
    pub fn free_threaded(&self) -> bool {
        self.free_threaded
    }

    /// The path of the mapped file that holds the runtime, as the target sees it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether asyncio's C implementation is loaded and its tables were found.
    pub fn has_asyncio(&self) -> bool {
        self.asyncio.is_some()
    }

    /// What was odd about the search, in words.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The offsets of the interpreter's structures.
    pub fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    pub(crate) fn asyncio(&self) -> Option<&AsyncioOffsets> {
        self.asyncio.as_ref()
    }

    /// Every GIL once, the main interpreter's first. Interpreters that share a GIL count as one.
    ///
    /// # Errors
    /// The first read that failed.
    pub fn gil<M: Memory + ?Sized>(&self, memory: &M) -> Result<Vec<GilState>, ReadError> {
        let limits = Limits::default();
        let decoder = Decoder::new(memory, self, &limits);
        let mut states: Vec<GilState> = Vec::new();
        let mut seen = HashSet::new();
        for interpreter in decoder.interpreters() {
            match decoder.gil(interpreter.address, interpreter.id) {
                Ok(Some(state)) => {
                    if seen.insert(state.gil) {
                        states.push(state);
                    }
                }
                Ok(None) | Err(Fault::Invalid(_) | Fault::Limit(_)) => {}
                Err(Fault::Read(error)) => return Err(error),
            }
        }
        Ok(states)
    }
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// The GIL of the interpreter at this address; `None` before it has one.
    pub(crate) fn gil(&self, interpreter: Addr, id: i64) -> Result<Option<GilState>, Fault> {
        let gil = self.pointer(self.member(interpreter, F::interpreter_state_ceval_gil))?;
        if gil.is_null() {
            return Ok(None);
        }
        // The table gives these relative to an interpreter that owns its GIL; the lock itself may be another's.
        let start = self.offsets().get(F::interpreter_state_gil_runtime_state);
        let within = |field| gil.plus(self.offsets().get(field).saturating_sub(start));
        let locked_at = within(F::interpreter_state_gil_runtime_state_locked);
        let holder = self.pointer(within(F::interpreter_state_gil_runtime_state_holder))?;
        let locked = self.i32(locked_at)? == 1;
        Ok(Some(GilState {
            interpreter: id,
            gil,
            locked,
            holder,
            holder_tid: if holder.is_null() {
                None
            } else {
                self.u64(self.member(holder, F::thread_state_native_thread_id))
                    .ok()
                    .filter(|tid| *tid != 0)
            },
            switch_number: self.u64(locked_at.plus(8))?,
        }))
    }

    /// The bytes that a GIL takes in an interpreter: waiting for it is waiting on a futex in there.
    pub(crate) fn gil_bytes(&self) -> u64 {
        let start = self.offsets().get(F::interpreter_state_gil_runtime_state);
        let next = self
            .offsets()
            .get(F::interpreter_state_code_object_generation);
        next.saturating_sub(start).min(1024)
    }
}

/// A mapped file that was read, with one way it is loaded.
struct Place<'a> {
    facts: ElfFacts,
    bias: u64,
    path: &'a str,
}

impl Place<'_> {
    fn address(&self, linked: u64) -> Addr {
        Addr(linked.wrapping_add(self.bias))
    }
}

/// Every mapped ELF file with each address it is loaded at, and whether there are more than are looked into.
fn places<'a>(mappings: &'a [Mapping], files: &impl Files) -> (Vec<Place<'a>>, bool) {
    let mut read: BTreeMap<(&str, u64, &str), Option<ElfFacts>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut places = Vec::new();
    let mut more = false;
    for mapping in mappings.iter().filter(|m| m.inode != 0) {
        let key = (
            mapping.device.as_str(),
            mapping.inode,
            mapping.path.as_str(),
        );
        if places.len() >= MAX_FILES || read.len() >= MAX_FILES && !read.contains_key(&key) {
            more = true;
            continue;
        }
        let facts = read.entry(key).or_insert_with(|| files.elf(mapping));
        let Some(facts) = facts else { continue };
        if let Some(bias) = facts.bias(mapping)
            && seen.insert((key, bias))
        {
            places.push(Place {
                facts: facts.clone(),
                bias,
                path: &mapping.path,
            });
        }
    }
    (places, more)
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

/// Python's name for a version word.
fn version_text(hex: u32) -> String {
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

/// A runtime without a table of offsets: 3.12 or older.
fn old_version<M: Memory + ?Sized>(memory: &M, place: &Place<'_>) -> Old {
    let mut hex = [0; 4];
    let version = match place.facts.version {
        Some(at) if memory.read(place.address(at), &mut hex).is_ok() && hex.last() == Some(&3) => {
            version_text(u32::from_le_bytes(hex))
        }
        _ => version_in_name(place.path).unwrap_or_else(|| "3.12 or older".to_owned()),
    };
    Old { version }
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

/// A Python that only its file names betray.
fn named_python(mappings: &[Mapping]) -> Option<Old> {
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
        (version.starts_with("2.") || minor.is_some_and(|m| m < 13)).then_some(Old { version })
    })
}

/// Believes the best candidate: one with an interpreter.
fn choose<M: Memory + ?Sized>(
    memory: &M,
    mappings: &[Mapping],
    places: &[Place<'_>],
    candidates: &[Candidate<'_>],
    limits: &Limits,
) -> Result<Runtime, LocateError> {
    let mut failure = None;
    let mut found: Option<Runtime> = None;
    for candidate in candidates {
        match believe(memory, candidate) {
            Ok(mut runtime) => {
                if let Some(first) = &mut found {
                    first.problems.push(format!(
                        "the process runs a second Python, {} at {}, which is not shown",
                        runtime.version(),
                        runtime.address
                    ));
                } else {
                    runtime.find_asyncio(memory, mappings, places, candidate, limits);
                    found = Some(runtime);
                }
            }
            // An unsupported one matters more than one that was never started.
            Err(error @ LocateError::NoInterpreter { .. }) => failure = failure.or(Some(error)),
            Err(error) => failure = Some(error),
        }
    }
    found.ok_or_else(|| failure.unwrap_or(LocateError::NotPython))
}

fn believe<M: Memory + ?Sized>(
    memory: &M,
    candidate: &Candidate<'_>,
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
            .plus(offsets.get(F::runtime_state_interpreters_head)),
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
        path: candidate.path.to_owned(),
        problems: Vec::new(),
    })
}

impl Runtime {
    /// Finds asyncio's table: in the runtime's own file first, then in any other, then in memory.
    fn find_asyncio<M: Memory + ?Sized>(
        &mut self,
        memory: &M,
        mappings: &[Mapping],
        places: &[Place<'_>],
        candidate: &Candidate<'_>,
        limits: &Limits,
    ) {
        let tables = candidate.asyncio.into_iter().chain(
            places
                .iter()
                .filter_map(|place| Some(place.address(place.facts.asyncio?))),
        );
        let believe = |at: Addr| {
            let mut bytes = [0; AsyncioOffsets::BYTES];
            memory.read(at, &mut bytes).ok()?;
            AsyncioOffsets::parse(&bytes, &self.offsets)
        };
        let mut tables = tables.peekable();
        let named = mappings.iter().any(|m| m.path.contains("_asyncio"));
        let expected = tables.peek().is_some() || named;
        // Statically linked modules have no file of their own, so a runtime found without its file may hold one.
        let search = expected || candidate.asyncio.is_none() && self.offsets_only_in_memory(places);
        let found = tables.find_map(believe).or_else(|| {
            search
                .then(|| search::asyncio(memory, mappings, &self.offsets, limits))
                .flatten()
                .and_then(believe)
        });
        if found.is_none() && expected {
            self.problems
                .push("asyncio is loaded and its debug table could not be read".to_owned());
        }
        self.asyncio = found;
    }

    /// Whether the file that holds the runtime could not be read.
    fn offsets_only_in_memory(&self, places: &[Place<'_>]) -> bool {
        !places
            .iter()
            .any(|place| place.facts.runtime.is_some() && place.path == self.path)
    }
}

#[cfg(test)]
mod tests;
