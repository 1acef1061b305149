//! The interpreter's runtime in a process: where it lies, which version it is, who holds its locks.

mod locate;

use std::collections::HashSet;
use std::ops::Range;

use crate::decoder::{Decoder, Fault};
use crate::elf::Files;
use crate::limits::Limits;
use crate::memory::{Addr, Memory, ReadError};
use crate::offsets::{AsyncioOffsets, Field as F, Offsets, OffsetsError, Version};
use crate::os::Mapping;

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

impl Runtime {
    /// Finds the runtime among everything that is mapped.
    ///
    /// Every file that is mapped with enough data is looked at, not only those called python. Where a file cannot be
    /// had, its dynamic symbols in memory are searched, and at last its data for the cookie of the table.
    ///
    /// # Errors
    /// [`LocateError`] says whether there is no Python, one that cannot be read, or memory that cannot be read.
    pub fn locate<M: Memory + ?Sized>(
        memory: &M,
        mappings: &[Mapping],
        files: &impl Files,
    ) -> Result<Self, LocateError> {
        locate::locate(memory, mappings, files)
    }

    /// The address of `_PyRuntime`.
    pub fn address(&self) -> Addr {
        self.address
    }

    /// The version, for example `3.14.8`.
    pub fn version(&self) -> String {
        locate::version_text(self.hex)
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

impl Runtime {
    /// Where each GIL lies: a thread that sleeps on a futex in there waits for it.
    pub fn gil_ranges<M: Memory + ?Sized>(&self, memory: &M) -> Vec<Range<u64>> {
        let limits = Limits::default();
        let bytes = Decoder::new(memory, self, &limits).gil_bytes();
        let gils = self.gil(memory).unwrap_or_default();
        gils.iter()
            .map(|state| state.gil.0..state.gil.plus(bytes).0)
            .collect()
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

#[cfg(test)]
mod tests;
