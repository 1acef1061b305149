//! From a system call out of libc, by libc's own tables for unwinding. They were copied before; of a thread that stands
//! still only its stack is read.
//!
//! The tables are the target's: a lying one leads to a wrong caller or to none, never further than that.

use std::ops::Range;

use gimli::{
    BaseAddresses, CfaRule, EhFrame, LittleEndian, Register, RegisterRule, UnwindContext,
    UnwindSection,
};

use super::Registers;
use super::code::{Code, File};
use super::symbols::is_libc;
use crate::elf::loaded::{self, Loaded};
use crate::memory::{Addr, Memory};

/// Loads of libc that are looked at: more than one is odd already.
const MAX_LOADS: usize = 4;
/// The most that is read of an `.eh_frame_hdr`, in bytes: 8 for each function, of which glibc has 4 000.
const MAX_HEADER: u64 = 256 << 10;
/// The most that is read of an `.eh_frame`, in bytes: glibc's has 150 KiB.
const MAX_FRAMES: u64 = 1 << 20;
/// The longest entry of it, in bytes: they are worked through while a thread stands still. glibc's longest has 220.
const MAX_ENTRY: usize = 2 << 10;
/// The one form in which linkers write `.eh_frame_hdr`: version 1, where `.eh_frame` begins as distance from there, the
/// number of entries, and entries that are distances from the table, sorted.
const HEADER: [u8; 4] = [1, 0x1b, 0x03, 0x3b];
/// The bytes of the stack that are read at once: the frames of libc around a system call are small.
const STACK: usize = 2048;

/// The numbers that DWARF has for the registers of x86-64 (System V ABI, figure 3.36).
const RBX: u16 = 3;
const RBP: u16 = 6;
const RSP: u16 = 7;
const R12: u16 = 12;
const R13: u16 = 13;
const R14: u16 = 14;
const R15: u16 = 15;
const RIP: u16 = 16;
/// What a function leaves to its caller as it was.
const KEPT: [u16; 6] = [RBX, RBP, R12, R13, R14, R15];

/// A loaded libc.
#[derive(Debug)]
pub(super) struct Libc {
    text: Vec<Range<u64>>,
    tables: Option<Tables>,
}

/// Its tables for unwinding.
#[derive(Debug)]
struct Tables {
    /// Where the header lies.
    header: u64,
    /// Pairs of distances from the header: where a function begins, and where its entry lies.
    index: Vec<(i32, i32)>,
    /// Where the entries begin.
    at: u64,
    bytes: Vec<u8>,
}

/// The registers in one frame, by DWARF's numbers, as far as they are known.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    registers: [Option<u64>; 17],
    innermost: bool,
}

/// A stack of which the innermost bytes were read.
pub(super) struct Stack<'a, M: ?Sized> {
    memory: &'a M,
    at: Addr,
    bytes: Box<[u8]>,
}

impl Libc {
    /// Every libc that is loaded: by name, and the file in which the call of `rt_sigreturn` was found. Never the file
    /// with the runtime: where that holds libc as well, the two cannot be told apart.
    pub(super) fn all<M: Memory + ?Sized>(
        memory: &M,
        code: &Code,
        has_sigreturn: Option<usize>,
    ) -> Vec<Self> {
        let runtime = code.runtime().map(|(n, _)| n);
        code.files()
            .iter()
            .enumerate()
            .filter(|(n, file)| {
                Some(*n) != runtime && (is_libc(file.name()) || Some(*n) == has_sigreturn)
            })
            .flat_map(|(_, file)| file.loads.iter().map(move |load| (file, load)))
            .map(|(file, load)| {
                let text = file.text.iter().filter(|text| load.contains(&text.start));
                (file, load, text.cloned().collect::<Vec<_>>())
            })
            // It may be mapped to be read as well.
            .filter(|(_, _, text)| !text.is_empty())
            .take(MAX_LOADS)
            .map(|(file, load, text)| Self {
                text,
                tables: Tables::copy(memory, file, Addr(load.start)),
            })
            .collect()
    }

    pub(super) fn contains(&self, at: Addr) -> bool {
        self.text.iter().any(|text| text.contains(&at.0))
    }

    /// The frame that called this one.
    pub(super) fn caller<M: Memory + ?Sized>(
        &self,
        stack: &Stack<'_, M>,
        frame: &Frame,
    ) -> Option<Frame> {
        self.tables.as_ref()?.caller(stack, frame)
    }
}

impl Tables {
    fn copy<M: Memory + ?Sized>(memory: &M, file: &File, base: Addr) -> Option<Self> {
        if !loaded::begins(memory, base).ok()? {
            return None;
        }
        let loaded = Loaded::read(memory, base)?;
        if loaded.machine != loaded::X86_64 {
            return None;
        }
        let header = loaded.unwind_table?;
        let len = header.end.saturating_sub(header.start);
        let header = file.readable_from(Addr(header.start), len.min(MAX_HEADER))?;
        let bytes = read(memory, &header)?;
        let (head, index) = bytes.split_at_checked(12)?;
        let (form, words) = head.split_at_checked(4)?;
        let (words, _) = words.as_chunks::<4>();
        let [distance, count] = words else {
            return None;
        };
        if form != HEADER {
            return None;
        }
        let at = header
            .start
            .wrapping_add(4)
            .wrapping_add_signed(i32::from_le_bytes(*distance).into());
        let frames = file.readable_from(Addr(at), MAX_FRAMES)?;
        let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
        let (pairs, _) = index.as_chunks::<8>();
        Some(Self {
            header: header.start,
            index: pairs
                .iter()
                .take(count)
                .filter_map(|bytes| pair(*bytes))
                .collect(),
            at,
            bytes: read(memory, &frames)?,
        })
    }

    /// How far into the entries that of the function lies which holds this address, or the last one before it.
    fn entry_of(&self, at: Addr) -> Option<usize> {
        let address = |distance: i32| self.header.wrapping_add_signed(distance.into());
        let after = self
            .index
            .partition_point(|(function, _)| address(*function) <= at.0);
        let (_, entry) = self.index.get(after.checked_sub(1)?)?;
        usize::try_from(address(*entry).checked_sub(self.at)?).ok()
    }

    fn caller<M: Memory + ?Sized>(&self, stack: &Stack<'_, M>, frame: &Frame) -> Option<Frame> {
        let within = frame.within();
        let entry = self.entry_of(within)?;
        let frames = EhFrame::new(&self.bytes, LittleEndian);
        let bases = BaseAddresses::default().set_eh_frame(self.at);
        let entry = frames
            .fde_from_offset(&bases, entry.into(), EhFrame::cie_from_offset)
            .ok()?;
        let sound = entry.contains(within.0)
            && entry.entry_len() <= MAX_ENTRY
            && entry.cie().entry_len() <= MAX_ENTRY
            && entry.cie().return_address_register() == Register(RIP);
        if !sound {
            return None;
        }
        let mut context = UnwindContext::new();
        let row = entry
            .unwind_info_for_address(&frames, &bases, &mut context, within.0)
            .ok()?;
        let CfaRule::RegisterAndOffset { register, offset } = row.cfa() else {
            return None;
        };
        let top = frame.get(*register)?.checked_add_signed(*offset)?;
        let value = |register, kept: Option<u64>| match row.register(Register(register)) {
            None | Some(RegisterRule::SameValue) => kept,
            Some(RegisterRule::Offset(offset)) => stack.word(Addr(top.checked_add_signed(offset)?)),
            Some(RegisterRule::ValOffset(offset)) => top.checked_add_signed(offset),
            Some(RegisterRule::Register(other)) => frame.get(other),
            // Undefined: there is no caller, or nobody needs the register. Expressions occur in the frame of a signal
            // handler's return alone, which is further out than the code that a handler was called in.
            Some(_) => None,
        };
        // A stack grows down: the caller's frame is above, or the tables lead in a circle.
        if top <= frame.get(Register(RSP))? {
            return None;
        }
        let mut caller = Frame {
            registers: [None; 17],
            innermost: false,
        };
        caller.set(RIP, value(RIP, None).filter(|rip| *rip != 0));
        caller.get(Register(RIP))?;
        caller.set(RSP, Some(top));
        for register in KEPT {
            caller.set(register, value(register, frame.get(Register(register))));
        }
        Some(caller)
    }
}

fn pair(bytes: [u8; 8]) -> Option<(i32, i32)> {
    let (words, _) = bytes.as_chunks::<4>();
    let [function, entry] = words else {
        return None;
    };
    Some((i32::from_le_bytes(*function), i32::from_le_bytes(*entry)))
}

fn read<M: Memory + ?Sized>(memory: &M, range: &Range<u64>) -> Option<Vec<u8>> {
    let len = range.end.saturating_sub(range.start);
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    memory.read(Addr(range.start), &mut bytes).ok()?;
    Some(bytes)
}

impl Frame {
    /// That of a thread that stands still.
    pub(super) fn innermost(registers: &Registers) -> Self {
        let mut frame = Self {
            registers: [None; 17],
            innermost: true,
        };
        for (number, value) in [
            (RBX, registers.rbx),
            (RBP, registers.rbp),
            (RSP, registers.rsp),
            (R12, registers.r12),
            (R13, registers.r13),
            (R14, registers.r14),
            (R15, registers.r15),
            (RIP, registers.rip),
        ] {
            frame.set(number, Some(value));
        }
        frame
    }

    /// What is executed next in it.
    pub(super) fn pc(&self) -> Addr {
        Addr(self.get(Register(RIP)).unwrap_or_default())
    }

    /// An address in the instruction that is being executed: what follows a call may belong to the next function.
    pub(super) fn within(&self) -> Addr {
        if self.innermost {
            self.pc()
        } else {
            self.pc().minus(1)
        }
    }

    fn get(&self, register: Register) -> Option<u64> {
        *self.registers.get(usize::from(register.0))?
    }

    fn set(&mut self, register: u16, value: Option<u64>) {
        if let Some(slot) = self.registers.get_mut(usize::from(register)) {
            *slot = value;
        }
    }
}

impl<'a, M: Memory + ?Sized> Stack<'a, M> {
    pub(super) fn read(memory: &'a M, at: Addr) -> Self {
        let mut bytes = vec![0; STACK].into_boxed_slice();
        // At its outer end there is less than that: then every word is read by itself.
        if memory.read(at, &mut bytes).is_err() {
            bytes = Box::default();
        }
        Self { memory, at, bytes }
    }

    fn word(&self, at: Addr) -> Option<u64> {
        let known =
            at.0.checked_sub(self.at.0)
                .and_then(|from| usize::try_from(from).ok())
                .and_then(|from| self.bytes.get(from..)?.first_chunk::<8>().copied());
        if let Some(word) = known {
            return Some(u64::from_le_bytes(word));
        }
        let mut word = [0; 8];
        self.memory.read(at, &mut word).ok()?;
        Some(u64::from_le_bytes(word))
    }
}
