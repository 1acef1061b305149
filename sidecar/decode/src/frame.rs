//! Frames: of a thread, and of a suspended coroutine.

use std::fmt::Display;

use sidewinder_model::{Frame, Locals};

use crate::decoder::{Decoder, Fault, HashSet, word_in};
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;

/// `enum _frameowner`: who owns a frame's memory. Entry frames of the interpreter, one for each call from C into
/// Python, have 3 (and 4, which 3.14 defines and never uses).
const OWNED_BY_INTERPRETER: u8 = 3;
/// No version's frame structure is larger.
const MAX_FRAME: usize = 256;

/// A frame's own words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawFrame {
    pub(crate) address: Addr,
    pub(crate) previous: Addr,
    pub(crate) executable: Addr,
    pub(crate) instruction: Addr,
    pub(crate) stack_pointer: Addr,
    owner: u8,
    pub(crate) bytecode_copy: u64,
}

impl RawFrame {
    /// Whether it is a Python function's, not an entry from C.
    pub(crate) fn is_python(&self) -> bool {
        self.owner < OWNED_BY_INTERPRETER && !self.executable.is_null()
    }
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    pub(crate) fn raw_frame(&self, address: Addr) -> Result<RawFrame, Fault> {
        let size =
            usize::try_from(self.offsets().get(F::interpreter_frame_size)).unwrap_or(usize::MAX);
        let mut buffer = [0; MAX_FRAME];
        let bytes = buffer
            .get_mut(..size)
            .ok_or(Fault::Invalid("frames of impossible size"))?;
        self.read(address, bytes)?;
        self.raw_frame_in(address, bytes)
    }

    /// A frame whose bytes were read already.
    pub(crate) fn raw_frame_in(&self, address: Addr, bytes: &[u8]) -> Result<RawFrame, Fault> {
        let word = |field| word_in(bytes, self.offsets().get(field)).map(Addr);
        let truncated = || Fault::Invalid("frame offsets outside the frame");
        let owner = usize::try_from(self.offsets().get(F::interpreter_frame_owner)).ok();
        Ok(RawFrame {
            address,
            previous: word(F::interpreter_frame_previous).ok_or_else(truncated)?,
            executable: word(F::interpreter_frame_executable)
                .ok_or_else(truncated)?
                .untagged(),
            instruction: word(F::interpreter_frame_instr_ptr).ok_or_else(truncated)?,
            stack_pointer: word(F::interpreter_frame_stackpointer).ok_or_else(truncated)?,
            owner: owner
                .and_then(|at| bytes.get(at))
                .copied()
                .ok_or_else(truncated)?,
            // GIL builds have one copy of the bytecode and no such member.
            bytecode_copy: match self.offsets().get(F::interpreter_frame_tlbc_index) {
                0 => 0,
                _ => u64::from(self.u32(self.member(address, F::interpreter_frame_tlbc_index))?),
            },
        })
    }

    /// Whether the interpreter put the frame there on its own account: no function of the program runs in it.
    fn is_init_cleanup(&self, raw: &RawFrame) -> bool {
        self.code(raw.executable)
            .is_ok_and(|code| code.init_cleanup)
    }

    /// Decodes one frame. What cannot be read is left open and becomes a problem.
    pub(crate) fn frame(&self, raw: &RawFrame, locals: Locals) -> Result<Frame, Fault> {
        let code = self.code(raw.executable)?;
        self.take_text(code.function.len().saturating_add(code.file.len()))?;
        self.take_result(size_of::<Frame>())?;
        Ok(Frame {
            function: code.function.clone(),
            file: code.file.clone(),
            line: self.line(&code, raw.instruction, raw.bytecode_copy),
            locals: match locals {
                Locals::None => None,
                Locals::Types | Locals::Values => Some(self.locals(raw, &code, locals)),
            },
        })
    }

    /// The Python frames from `first` outwards, across calls through C, innermost last. Ends before the frame at
    /// `until`, where one is given; the flag says whether it was met.
    pub(crate) fn frames(
        &self,
        whose: impl Display + Copy,
        first: Addr,
        until: Option<Addr>,
        locals: Locals,
    ) -> (Vec<Frame>, bool) {
        let mut frames = Vec::new();
        let mut seen = HashSet::default();
        let mut next = first;
        let mut met = false;
        while !next.is_null() {
            if Some(next) == until {
                met = true;
                break;
            }
            if !seen.insert(next) {
                self.problem(format_args!("{whose}: its frames form a circle"));
                break;
            }
            // Entry frames are not shown and count all the same, else a chain of them would be walked for long.
            if frames.len() >= self.limits.frames
                || seen.len() > self.limits.frames.saturating_mul(4)
            {
                self.problem(format_args!(
                    "{whose}: more than {} frames, the outermost are left out",
                    frames.len()
                ));
                break;
            }
            let raw = match self.raw_frame(next) {
                Ok(raw) => raw,
                Err(fault) => {
                    self.problem(format_args!("{whose}: frame at {next}: {fault}"));
                    break;
                }
            };
            if raw.is_python() && !self.is_init_cleanup(&raw) {
                match self.frame(&raw, locals) {
                    Ok(frame) => frames.push(frame),
                    Err(fault @ Fault::Limit(_)) => {
                        self.problem(format_args!("{whose}: {fault}"));
                        break;
                    }
                    Err(fault) => self.problem(format_args!("{whose}: frame at {next}: {fault}")),
                }
            }
            next = raw.previous;
        }
        frames.reverse();
        (frames, met)
    }
}
