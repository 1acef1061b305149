//! The addresses for a call in place, in the memory of the target alone.

use std::ops::Range;

use super::code::{Code, File};
use crate::elf::loaded::{self, Loaded};
use crate::memory::{Addr, Memory, PageCache};
use crate::runtime::Runtime;

/// Bytes of the target kept while symbols are looked up.
const CACHE: usize = 1 << 20;
/// Bytes of code read at a time.
const PIECE: u64 = 64 << 10;
/// Bytes of code searched, in all: libc has 1.5 MiB of it, and a static Python as much as it likes.
const MAX_SEARCHED: u64 = 64 << 20;
/// `mov $15, %rax; syscall`, as glibc and musl have it: their `sa_restorer`.
/// <https://man7.org/linux/man-pages/man2/sigreturn.2.html>
const SIGRETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
/// `ret`.
const RET: u8 = 0xc3;

/// Addresses in the target's code for a call in place. The target has checked none of them: they are where its symbols
/// and its bytes say, inside code of the right file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `PyEval_RestoreThread`, of the runtime that was located.
    pub restore_thread: Addr,
    /// `PyErr_CheckSignals`.
    pub check_signals: Addr,
    /// `PyEval_SaveThread`.
    pub save_thread: Addr,
    /// A `ret` instruction.
    pub ret: Addr,
    /// The system call `rt_sigreturn`.
    pub sigreturn: Addr,
}

/// Why there is nothing to call in place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NativeError {
    /// The runtime's file has no ELF header in memory.
    #[error("the headers of Python's file cannot be read in memory")]
    NoFile,
    /// The target runs on another processor.
    #[error("calls in place are made on x86-64 only")]
    Machine,
    /// A function is not among the dynamic symbols of the runtime's file.
    #[error("Python does not export {0}")]
    Symbol(&'static str),
    /// A symbol does not lie in the code of the runtime's file.
    #[error("{0} does not lie in Python's code")]
    NotCode(&'static str),
    /// There is no `ret` in the runtime's code.
    #[error("no return instruction in Python's code")]
    NoReturn,
    /// No code that is mapped makes the system call `rt_sigreturn` as libc does.
    #[error("no call of rt_sigreturn in the code of libc")]
    NoSigreturn,
}

/// The addresses, and in which file the call of `rt_sigreturn` was found.
pub(super) fn entry<M: Memory + ?Sized>(
    memory: &M,
    code: &Code,
    runtime: &Runtime,
) -> (Result<Entry, NativeError>, Option<usize>) {
    let functions = match functions(memory, code, runtime) {
        Ok(functions) => functions,
        Err(error) => return (Err(error), None),
    };
    let Some((sigreturn, file)) = sigreturn(memory, code) else {
        return (Err(NativeError::NoSigreturn), None);
    };
    (
        Ok(Entry {
            sigreturn,
            ..functions
        }),
        Some(file),
    )
}

/// All but `sigreturn`.
fn functions<M: Memory + ?Sized>(
    memory: &M,
    code: &Code,
    runtime: &Runtime,
) -> Result<Entry, NativeError> {
    let (_, file) = code.runtime().ok_or(NativeError::NoFile)?;
    // Dozens of reads of some bytes each become a few.
    let cache = &PageCache::new(memory, CACHE);
    let loaded = file
        .base_of(runtime.address())
        .filter(|base| loaded::begins(cache, *base).unwrap_or_default())
        .and_then(|base| Loaded::read(cache, base))
        .ok_or(NativeError::NoFile)?;
    if loaded.machine != loaded::X86_64 {
        return Err(NativeError::Machine);
    }
    let symbols = loaded.symbols(cache);
    let find = |name: &'static str| {
        let at = symbols
            .and_then(|symbols| symbols.find(cache, name.as_bytes()))
            .ok_or(NativeError::Symbol(name))?;
        file.has_text(at)
            .then_some(at)
            .ok_or(NativeError::NotCode(name))
    };
    let restore_thread = find("PyEval_RestoreThread")?;
    Ok(Entry {
        restore_thread,
        check_signals: find("PyErr_CheckSignals")?,
        save_thread: find("PyEval_SaveThread")?,
        ret: ret(memory, file, restore_thread).ok_or(NativeError::NoReturn)?,
        sigreturn: Addr(0),
    })
}

/// The first `ret` after the beginning of a function, or that of all the file's code. Any such byte will do: whatever
/// the instruction is that it is a part of, executed by itself it returns.
fn ret<M: Memory + ?Sized>(memory: &M, file: &File, function: Addr) -> Option<Addr> {
    let near = file
        .text
        .iter()
        .filter(|text| text.contains(&function.0))
        .map(|text| function.0..text.end.min(function.plus(PIECE).0));
    let first = file.text.iter().map(|text| text.start..text.end);
    near.chain(first)
        .find_map(|text| find(memory, &text, &[RET], &mut PIECE.clone()))
}

/// The call of `rt_sigreturn` and the file it is in: libc by its name, else whatever file has it, which is the
/// executable where that is static.
fn sigreturn<M: Memory + ?Sized>(memory: &M, code: &Code) -> Option<(Addr, usize)> {
    let mut budget = MAX_SEARCHED;
    let runtime = code.runtime().map(|(n, _)| n);
    let files = || code.files().iter().enumerate();
    let by_name = files().filter(|(_, file)| is_libc(file.name()));
    let own = files().filter(|(n, _)| Some(*n) == runtime);
    let others = files().filter(|(n, file)| Some(*n) != runtime && !is_libc(file.name()));
    by_name.chain(own).chain(others).find_map(|(n, file)| {
        let mut text = file.text.iter();
        let at = text.find_map(|text| find(memory, text, &SIGRETURN, &mut budget))?;
        Some((at, n))
    })
}

/// Whether a file of this name is libc: glibc's (with that of threads, which was another before 2.34), or musl's, which
/// is its dynamic loader as well.
pub(super) fn is_libc(name: &str) -> bool {
    let versioned = |stem: &str| {
        name.strip_prefix(stem)
            .is_some_and(|rest| rest.strip_suffix(".so").is_some())
    };
    matches!(name, "libc.so.6" | "libc.so" | "libpthread.so.0")
        || versioned("libc-2.")
        || versioned("libpthread-2.")
        || name.starts_with("libc.musl-")
        || name.starts_with("ld-musl-")
}

/// Where these bytes first stand in a range, read piece by piece as long as the budget lasts.
fn find<M: Memory + ?Sized, const N: usize>(
    memory: &M,
    range: &Range<u64>,
    bytes: &[u8; N],
    budget: &mut u64,
) -> Option<Addr> {
    let overlap = u64::try_from(N).ok()?.saturating_sub(1);
    let mut buffer = Vec::new();
    let mut at = range.start;
    while at.saturating_add(overlap) < range.end && *budget > 0 {
        let len = range.end.saturating_sub(at).min(PIECE);
        *budget = budget.saturating_sub(len);
        buffer.resize(usize::try_from(len).ok()?, 0);
        if memory.read(Addr(at), &mut buffer).is_ok()
            && let Some(n) = position(&buffer, bytes)
        {
            return Some(Addr(at).plus(n));
        }
        at = at.saturating_add(len).saturating_sub(overlap);
        if len <= overlap {
            break;
        }
    }
    None
}

fn position<const N: usize>(buffer: &[u8], bytes: &[u8; N]) -> Option<u64> {
    let n = buffer
        .array_windows::<N>()
        .position(|window| window == bytes)?;
    u64::try_from(n).ok()
}
