//! A process made up byte by byte, with machine code in it; only its [`Runtime`] is a recorded target's.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::LazyLock;

use sidewinder_decode::native::Registers;
use sidewinder_decode::{Addr, Image, Mapping, Memory, ReadError, Runtime};

const PAGE: u64 = 4096;

/// The interpreter's file: its headers and symbols, then its code. Its data is where the recorded target had it.
pub(crate) const PYTHON: u64 = 0x20_0000;
pub(crate) const PYTHON_FILE: &str = "/usr/bin/python3.14";
pub(crate) const TEXT: u64 = PYTHON + 0x1000;
/// Calls in it, by where they return.
pub(crate) const PYTHON_CALL: u64 = TEXT + 0x405;
pub(crate) const PYTHON_CALL_BY_SLOT: u64 = TEXT + 0x446;
pub(crate) const PYTHON_CALL_OF_REGISTER: u64 = TEXT + 0x483;
/// A module of the standard library, someone else's library, and code that was made at run time.
pub(crate) const DYNLOAD_FILE: &str =
    "/usr/lib/python3.14/lib-dynload/_queue.cpython-314-x86_64-linux-gnu.so";
const DYNLOAD: u64 = 0x7f20_0000_0000;
pub(crate) const DYNLOAD_CALL: u64 = DYNLOAD + 0x1405;
pub(crate) const FOREIGN_FILE: &str = "/usr/lib/libffi.so.8";
pub(crate) const FOREIGN: u64 = 0x7f10_0000_0000;
pub(crate) const FOREIGN_CALL: u64 = FOREIGN + 0x1405;
const ANONYMOUS: u64 = 0x7f30_0000_0000;
pub(crate) const ANONYMOUS_CALL: u64 = ANONYMOUS + 0x405;

/// libc: headers, code, tables for unwinding.
pub(crate) const LIBC: u64 = 0x7f00_0000_0000;
pub(crate) const LIBC_TEXT: u64 = LIBC + 0x1000;
pub(crate) const LIBC_TEXT_SIZE: u64 = 0x1_2000;
pub(crate) const SIGRETURN: u64 = LIBC_TEXT + 0x1_0500;
pub(crate) const SIGRETURN_BYTES: [u8; 9] = *b"\x48\xc7\xc0\x0f\0\0\0\x0f\x05";
pub(crate) const EH_FRAME_HDR: u64 = LIBC_TEXT + LIBC_TEXT_SIZE;
pub(crate) const EH_FRAME: u64 = EH_FRAME_HDR + 0x100;
/// Functions of it: one that makes a system call, one with a frame pointer, one with 256 bytes of stack and `rbx` in
/// them, one that nobody called.
const WRAPPER: u64 = LIBC_TEXT + 0x100;
const POINTED: u64 = LIBC_TEXT + 0x200;
const SPACIOUS: u64 = LIBC_TEXT + 0x300;
pub(crate) const ENTRY_POINT: u64 = LIBC_TEXT + 0x400;
const FUNCTION_SIZE: u32 = 0x100;
/// A second one, which is like the first one and further up.
const SECOND: u64 = LIBC + (1 << 24);

pub(crate) const STACK: u64 = 0x7ffd_0000_0000;
pub(crate) const STACK_SIZE: u64 = 0x4000;

/// A recorded target's.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/images/3.14/threads.img");
    let image = Image::from_bytes(&std::fs::read(path).unwrap()).unwrap();
    Runtime::locate(&image, &image.mappings, &image).unwrap()
});

/// Which table of hashes the interpreter's symbols have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hash {
    Gnu,
    SystemV,
}

pub(crate) struct Machine {
    pages: RefCell<HashMap<u64, Box<[u8]>>>,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) runtime: Runtime,
    counted: Cell<(u64, u64)>,
}

impl Memory for Machine {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let (reads, bytes) = self.counted.get();
        self.counted.set((reads + 1, bytes + buf.len() as u64));
        let fault = ReadError::Fault { at, len: buf.len() };
        let mut rest = buf;
        let mut at = at.0;
        let pages = self.pages.borrow();
        while !rest.is_empty() {
            let page = pages.get(&(at / PAGE)).ok_or(fault.clone())?;
            let bytes = &page[usize::try_from(at % PAGE).unwrap()..];
            let (now, after) = rest.split_at_mut(bytes.len().min(rest.len()));
            now.copy_from_slice(&bytes[..now.len()]);
            at = at.checked_add(now.len() as u64).ok_or(fault.clone())?;
            rest = after;
        }
        Ok(())
    }
}

fn words(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn halves(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// The header of an ELF file and its program headers: kind, address, size.
fn headers(segments: &[(u32, u64, u64)]) -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // A shared object for x86-64 whose program headers follow.
    out.extend(halves(&[3 | 62 << 16, 1]));
    out.extend(words(&[0, 64, 0]));
    let count = u32::try_from(segments.len()).unwrap();
    out.extend(halves(&[0, 64 | 56 << 16, count, 0]));
    for (kind, at, size) in segments {
        out.extend(halves(&[*kind, 4]));
        out.extend(words(&[*at, *at, *at, *size, *size, 8]));
    }
    out
}

fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381, |hash: u32, byte| {
        hash.wrapping_mul(33).wrapping_add(u32::from(*byte))
    })
}

const SYMBOLS: [(&[u8], u64); 3] = [
    (b"PyEval_RestoreThread", TEXT + 0x100),
    (b"PyErr_CheckSignals", TEXT + 0x200),
    (b"PyEval_SaveThread", TEXT + 0x300),
];
const SYMBOLS_AT: u64 = PYTHON + 0x200;
const STRINGS_AT: u64 = PYTHON + 0x300;
const HASH_AT: u64 = PYTHON + 0x400;
const DYNAMIC_AT: u64 = PYTHON + 0x500;

impl Machine {
    pub(crate) fn new() -> Self {
        Self::with(Hash::Gnu, false)
    }

    /// With this table of hashes, and addresses in the dynamic section as glibc leaves them, or as musl does.
    pub(crate) fn with(hash: Hash, relocated: bool) -> Self {
        let mut machine = Self {
            pages: RefCell::default(),
            mappings: Vec::new(),
            runtime: RUNTIME.clone(),
            counted: Cell::default(),
        };
        machine.python(hash, relocated);
        machine.libc(LIBC, "/lib/x86_64-linux-gnu/libc.so.6");
        machine.put(SIGRETURN, &SIGRETURN_BYTES);
        machine.library(DYNLOAD, DYNLOAD_FILE);
        machine.library(FOREIGN, FOREIGN_FILE);
        machine.map(ANONYMOUS, 0x1000, 0, "r-x", "");
        machine.call(ANONYMOUS_CALL, ANONYMOUS);
        machine.map(STACK, STACK_SIZE, 0, "rw-", "[stack]");
        machine
    }

    fn python(&mut self, hash: Hash, relocated: bool) {
        self.map(PYTHON, 0x1000, 0, "r--", PYTHON_FILE);
        self.map(TEXT, 0x1000, 0x1000, "r-x", PYTHON_FILE);
        let data = self.runtime.address().0 / PAGE * PAGE;
        self.map(data, 0x10_0000, 0x3000, "rw-", PYTHON_FILE);
        let dynamic = DYNAMIC_AT - PYTHON;
        self.put(PYTHON, &headers(&[(1, 0, 0x2000), (2, dynamic, 0x100)]));
        let mut strings = vec![0];
        let mut symbols = vec![0; 24];
        for (name, at) in SYMBOLS {
            // A global function in section 1.
            symbols.extend(halves(&[
                u32::try_from(strings.len()).unwrap(),
                0x12 | 1 << 16,
            ]));
            symbols.extend(words(&[at - PYTHON, 8]));
            strings.extend_from_slice(name);
            strings.push(0);
        }
        self.put(SYMBOLS_AT, &symbols);
        self.put(STRINGS_AT, &strings);
        let hashes = if hash == Hash::Gnu {
            // One bucket, symbols from 1 on, one word of a filter; the last hash has its lowest bit set.
            let mut table = halves(&[1, 1, 1, 6]);
            table.extend(words(&[u64::MAX]));
            let hashes = SYMBOLS.map(|(name, _)| gnu_hash(name));
            table.extend(halves(&[1, hashes[0] & !1, hashes[1] & !1, hashes[2] | 1]));
            table
        } else {
            halves(&[1, 4, 1, 0, 2, 3, 0])
        };
        self.put(HASH_AT, &hashes);
        let kind = if hash == Hash::Gnu { 0x6fff_fef5 } else { 4 };
        let at = |address: u64| if relocated { address } else { address - PYTHON };
        let dynamic = [
            5,
            at(STRINGS_AT),
            6,
            at(SYMBOLS_AT),
            kind,
            at(HASH_AT),
            0,
            0,
        ];
        self.put(DYNAMIC_AT, &words(&dynamic));
        // The first `ret` after the beginning of the first function.
        self.put(TEXT + 0x123, &[0xc3]);
        self.call(PYTHON_CALL, TEXT + 0x10);
        let slot = i32::try_from(PYTHON.wrapping_sub(PYTHON_CALL_BY_SLOT).cast_signed()).unwrap();
        self.put(PYTHON_CALL_BY_SLOT - 6, &[0xff, 0x15]);
        self.put(PYTHON_CALL_BY_SLOT - 4, &slot.to_le_bytes());
        // call *%r11
        self.put(PYTHON_CALL_OF_REGISTER - 3, &[0x41, 0xff, 0xd3]);
    }

    /// `call rel32`.
    fn call(&self, returns_to: u64, to: u64) {
        let distance = i32::try_from(to.wrapping_sub(returns_to).cast_signed()).unwrap();
        self.put(returns_to - 5, &[0xe8]);
        self.put(returns_to - 4, &distance.to_le_bytes());
    }

    fn library(&mut self, at: u64, path: &str) {
        self.map(at, 0x1000, 0, "r--", path);
        self.map(at + 0x1000, 0x1000, 0x1000, "r-x", path);
        self.put(at, &headers(&[(1, 0, 0x2000)]));
        self.call(at + 0x1405, at + 0x1010);
    }

    fn libc(&mut self, at: u64, path: &str) {
        let there = |address: u64| address - LIBC;
        self.map(at, 0x1000, 0, "r--", path);
        self.map(at + 0x1000, LIBC_TEXT_SIZE, 0x1000, "r-x", path);
        let tables = there(EH_FRAME_HDR);
        self.map(at + tables, 0x1000, tables, "r--", path);
        let segments = [(1, 0, tables + 0x1000), (0x6474_e550, tables, 0x100)];
        self.put(at, &headers(&segments));
        // Version 1, "zR", alignments 1 and -8, return address in 16, addresses relative to where they stand; the
        // frame is 8 above the stack pointer, the return address right below.
        let mut entries = entry(0, b"\x01zR\0\x01\x78\x10\x01\x1b\x0c\x07\x08\x90\x01");
        let mut index = Vec::new();
        for (function, rules) in [
            (WRAPPER, &b""[..]),
            // def_cfa_offset 16, rbp at -16, def_cfa_register rbp.
            (POINTED, b"\x0e\x10\x86\x02\x0d\x06"),
            // def_cfa_offset 0x100, rbx at -16.
            (SPACIOUS, b"\x0e\x80\x02\x83\x02"),
            // undefined rip.
            (ENTRY_POINT, b"\x07\x10"),
        ] {
            let place = entries.len() as u64;
            let from_here = |to: u64, here: u64| {
                u32::from_le_bytes(
                    i32::try_from(to.cast_signed() - here.cast_signed())
                        .unwrap()
                        .to_le_bytes(),
                )
            };
            let mut rest = halves(&[from_here(function, EH_FRAME + place + 8), FUNCTION_SIZE]);
            rest.push(0);
            rest.extend_from_slice(rules);
            // The distance back to the first entry.
            entries.extend(entry(u32::try_from(place).unwrap() + 4, &rest));
            index.extend([
                from_here(function, EH_FRAME_HDR),
                from_here(EH_FRAME + place, EH_FRAME_HDR),
            ]);
        }
        entries.extend([0; 4]);
        self.put(at + there(EH_FRAME), &entries);
        let mut header = vec![1, 0x1b, 0x03, 0x3b];
        header.extend(halves(&[
            u32::try_from(EH_FRAME - EH_FRAME_HDR).unwrap() - 4,
            4,
        ]));
        header.extend(halves(&index));
        self.put(at + there(EH_FRAME_HDR), &header);
    }

    /// One more file that is like libc, but for the call of `rt_sigreturn`.
    pub(crate) fn second_libc(&mut self, path: &str) {
        self.libc(SECOND, path);
    }

    fn map(&mut self, start: u64, size: u64, offset: u64, protection: &str, path: &str) {
        for page in start / PAGE..(start + size) / PAGE {
            let mut pages = self.pages.borrow_mut();
            pages.entry(page).or_insert_with(|| vec![0; 4096].into());
        }
        let has = |letter| protection.contains(letter);
        let at = self
            .mappings
            .partition_point(|mapping| mapping.start < start);
        let mapping = Mapping {
            start,
            end: start + size,
            readable: has('r'),
            writable: has('w'),
            executable: has('x'),
            offset,
            device: "08:01".to_owned(),
            inode: if path.starts_with('/') { 7 } else { 0 },
            path: path.to_owned(),
        };
        self.mappings.insert(at, mapping);
    }

    // Changes.

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        let mut pages = self.pages.borrow_mut();
        for (at, byte) in (at..).zip(bytes) {
            let page = pages.get_mut(&(at / PAGE)).unwrap();
            page[usize::try_from(at % PAGE).unwrap()] = *byte;
        }
    }

    pub(crate) fn fill(&self, at: u64, len: usize, byte: u8) {
        self.put(at, &vec![byte; len]);
    }

    fn put_word(&self, at: u64, word: u64) {
        self.put(at, &word.to_le_bytes());
    }

    pub(crate) fn erase_sigreturn(&self) {
        self.fill(SIGRETURN, 9, 0);
    }

    pub(crate) fn rename_symbol(&self, from: &[u8], to: &[u8]) {
        let strings: Vec<u8> = SYMBOLS
            .iter()
            .flat_map(|(name, _)| [&[0], *name].concat())
            .collect();
        let at = strings
            .windows(from.len())
            .position(|name| name == from)
            .unwrap();
        self.put(STRINGS_AT + at as u64, to);
    }

    /// The mapping that begins there.
    pub(crate) fn mapping(&self, start: u64) -> Mapping {
        let mut mappings = self.mappings.iter();
        mappings
            .find(|mapping| mapping.start == start)
            .unwrap()
            .clone()
    }

    /// Gives the file that begins there another name.
    pub(crate) fn rename(&mut self, start: u64, path: &str) {
        let old = self.mapping(start).path;
        for mapping in self
            .mappings
            .iter_mut()
            .filter(|mapping| mapping.path == old)
        {
            path.clone_into(&mut mapping.path);
        }
    }

    pub(crate) fn not_executable(&mut self, start: u64) {
        let mut mappings = self.mappings.iter_mut();
        mappings
            .find(|mapping| mapping.start == start)
            .unwrap()
            .executable = false;
    }

    /// Makes the entry of the first function so long, by what does nothing.
    pub(crate) fn long_entry(&self, len: u32) {
        let at = EH_FRAME + 0x200;
        let function = i32::try_from(WRAPPER.cast_signed() - (at + 8).cast_signed()).unwrap();
        self.put(at, &halves(&[len, 0x204]));
        self.put(at + 8, &function.to_le_bytes());
        self.put(at + 12, &FUNCTION_SIZE.to_le_bytes());
        self.put(EH_FRAME_HDR + 16, &halves(&[0x300]));
    }

    /// Reads and bytes since the last call.
    pub(crate) fn counted(&self) -> (u64, u64) {
        self.counted.take()
    }

    // Threads.

    /// A thread that is blocked in a wrapper, which a function with a frame pointer called, which one with 256 bytes of
    /// stack called, which was called by what returns there.
    pub(crate) fn wait_of(&self, returns_to: u64) -> Registers {
        let rsp = STACK + 0x1000;
        let rbp = rsp + 0x40;
        self.put_word(rsp, POINTED + 0x20);
        self.put_word(rbp + 8, SPACIOUS + 0x20);
        self.put_word(rbp + 16 + 0x100 - 8, returns_to);
        Registers {
            rip: WRAPPER + 0x20,
            rsp,
            rbp,
            ..Registers::default()
        }
    }

    /// One that is blocked below so many wrappers, which what returns there called.
    pub(crate) fn wait_through(&self, wrappers: u32, returns_to: u64) -> Registers {
        let rsp = STACK + 0x1000;
        for n in 1..u64::from(wrappers) {
            self.put_word(rsp + 8 * (n - 1), WRAPPER + 0x20);
        }
        self.put_word(rsp + 8 * u64::from(wrappers - 1), returns_to);
        Registers {
            rip: WRAPPER + 0x20,
            rsp,
            ..Registers::default()
        }
    }

    /// One that is blocked in libc, which the second one called, which the interpreter called.
    pub(crate) fn wait_through_second_libc(&self) -> Registers {
        let rsp = STACK + 0x1000;
        self.put_word(rsp, WRAPPER - LIBC + SECOND + 0x20);
        self.put_word(rsp + 8, PYTHON_CALL);
        Registers {
            rip: WRAPPER + 0x20,
            rsp,
            ..Registers::default()
        }
    }
}

fn entry(id: u32, rest: &[u8]) -> Vec<u8> {
    let mut out = halves(&[id]);
    out.extend_from_slice(rest);
    // DW_CFA_nop.
    out.resize(out.len().next_multiple_of(4), 0);
    [halves(&[u32::try_from(out.len()).unwrap()]), out].concat()
}
