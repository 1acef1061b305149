//! Coroutines, generators and async generators, and the chain in which they await each other.

use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;

use sidewinder_model::Frame;

use crate::code::Code;
use crate::decoder::{Decoder, Fault, HashMap, HashSet, word_in};
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;

/// No version's coroutine is larger, up to the end of the frame in it.
const MAX_COROUTINE: usize = 512;
/// Bytes of variables and stack read with it.
const STACK: usize = 64;

/// What an object is to a chain of awaits, by its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaitable {
    /// A coroutine, generator or async generator: they share one layout, with a frame in it.
    Coroutine,
    /// An object around another one, which is its first member.
    Wrapper,
    /// A future's iterator, which is the usual end of a chain, or an iterator that is nobody's frame.
    Other,
}

impl Awaitable {
    pub(crate) fn of(type_name: &str) -> Self {
        match type_name {
            "coroutine" | "generator" | "async_generator" => Self::Coroutine,
            "async_generator_asend"
            | "async_generator_athrow"
            | "coroutine_wrapper"
            | "anext_awaitable" => Self::Wrapper,
            _ => Self::Other,
        }
    }
}

/// Where a coroutine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CoroutineState {
    Created,
    /// Suspended without awaiting anything: between two steps.
    Suspended,
    Awaiting,
    Executing,
    /// Finished; there is no frame any more.
    Finished,
}

/// One coroutine of a chain.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) code: Rc<Code>,
    pub(crate) line: Option<i64>,
    /// Its frame, where its variables stand.
    pub(crate) frame: Addr,
    /// The end of the frame's stack, while it is suspended.
    pub(crate) stack_pointer: Addr,
}

/// The coroutines of one task, innermost last.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub(crate) links: Vec<Link>,
    /// Where the outermost stands; `None` when it is no coroutine that Python knows, for example Cython's.
    pub(crate) state: Option<CoroutineState>,
    /// The frame of the innermost coroutine when it is being executed: plain frames go on beneath it.
    pub(crate) executing: Option<Addr>,
    seen: Seen,
}

/// Objects met, to tell a circle. Chains are short, so the first are looked through one by one.
#[derive(Debug, Default)]
struct Seen {
    first: Vec<Addr>,
    others: HashSet<Addr>,
}

impl Seen {
    /// Looked through one by one.
    const FIRST: usize = 32;

    fn clear(&mut self) {
        self.first.clear();
        self.others.clear();
    }

    /// Whether it was not met before.
    fn insert(&mut self, at: Addr) -> bool {
        if self.first.contains(&at) {
            return false;
        }
        if self.first.len() < Self::FIRST {
            self.first.push(at);
            return true;
        }
        self.others.insert(at)
    }

    fn len(&self) -> usize {
        self.first.len().saturating_add(self.others.len())
    }
}

/// The frames of chains that several tasks have in common.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    known: HashMap<Box<[Place]>, Arc<[Frame]>>,
    /// The chain that is being looked up.
    places: Vec<Place>,
}

/// A line of a code object.
type Place = (Addr, Option<i64>);

impl<M: Memory + ?Sized> Decoder<'_, M> {
    fn coroutine_state(&self, state: u8) -> CoroutineState {
        let state = state.cast_signed();
        let known = &self.runtime.version.generator;
        if state == known.created {
            CoroutineState::Created
        } else if state == known.suspended {
            CoroutineState::Suspended
        } else if known.awaiting.contains(&state) {
            CoroutineState::Awaiting
        } else if state == known.executing {
            CoroutineState::Executing
        } else {
            CoroutineState::Finished
        }
    }

    /// Follows the awaits from a task's coroutine inwards.
    pub(crate) fn chain(&self, whose: impl Display + Copy, coroutine: Addr, chain: &mut Chain) {
        chain.links.clear();
        chain.seen.clear();
        chain.state = None;
        chain.executing = None;
        let mut next = Some(coroutine);
        while let Some(at) = next {
            if !chain.seen.insert(at) {
                self.problem(format_args!("{whose}: its coroutines form a circle"));
                break;
            }
            if chain.seen.len() > self.limits.coroutines {
                self.problem(format_args!(
                    "{whose}: more than {} coroutines",
                    self.limits.coroutines
                ));
                break;
            }
            next = match self.link(at, chain) {
                Ok(next) => next,
                Err(fault) => {
                    self.problem(format_args!("{whose}: coroutine at {at}: {fault}"));
                    None
                }
            };
        }
    }

    /// One object of the chain: its frame, where it has one, and what it awaits.
    fn link(&self, at: Addr, chain: &mut Chain) -> Result<Option<Addr>, Fault> {
        match self.type_of(at)?.awaitable {
            Awaitable::Coroutine => {}
            Awaitable::Wrapper => return self.pointer(self.member(at, F::pyobject_size)).map(Some),
            Awaitable::Other => return Ok(None),
        }
        let invalid = || Fault::Invalid("coroutines of impossible size");
        let offset = |field| usize::try_from(self.offsets().get(field)).map_err(|_| invalid());
        let frame_at = offset(F::gen_object_gi_iframe)?;
        let end = frame_at
            .checked_add(offset(F::interpreter_frame_size)?)
            .ok_or_else(invalid)?;
        // With the first words of its stack, where what it awaits mostly stands.
        let mut buffer = [0; MAX_COROUTINE];
        let mut len = end.saturating_add(STACK);
        let whole = buffer.get_mut(..len).map(|bytes| self.read(at, bytes));
        if !matches!(whole, Some(Ok(()))) {
            len = end;
            self.read(at, buffer.get_mut(..len).ok_or_else(invalid)?)?;
        }
        let bytes = buffer.get(..len).ok_or_else(invalid)?;
        let state = *bytes
            .get(offset(F::gen_object_gi_frame_state)?)
            .ok_or_else(invalid)?;
        let state = self.coroutine_state(state);
        chain.state.get_or_insert(state);
        if state == CoroutineState::Finished {
            return Ok(None);
        }
        let frame = self.raw_frame_in(
            self.member(at, F::gen_object_gi_iframe),
            bytes.get(frame_at..).unwrap_or_default(),
        )?;
        if frame.executable.is_null() {
            return Ok(None);
        }
        let code = self.code(frame.executable)?;
        let line = self.line(&code, frame.instruction, frame.bytecode_copy);
        chain.links.push(Link {
            code,
            line,
            frame: frame.address,
            stack_pointer: frame.stack_pointer,
        });
        match state {
            CoroutineState::Awaiting => {
                let below = self.runtime.version.awaited_below_stackpointer;
                let awaited_at = frame.stack_pointer.minus(below);
                let offset = awaited_at.0.checked_sub(at.0);
                let awaited = match offset.and_then(|offset| word_in(bytes, offset)) {
                    Some(awaited) => Addr(awaited),
                    None => self.pointer(awaited_at)?,
                }
                .untagged();
                Ok(Some(awaited).filter(|awaited| !awaited.is_null()))
            }
            CoroutineState::Executing => {
                chain.executing = Some(frame.address);
                Ok(None)
            }
            CoroutineState::Created | CoroutineState::Suspended | CoroutineState::Finished => {
                Ok(None)
            }
        }
    }

    /// The frames of a chain as they are shown, the same ones for tasks that stand at the same place.
    pub(crate) fn chain_frames(&self, chain: &Chain) -> Result<Arc<[Frame]>, Fault> {
        // A result holds the text once for each task that shows it.
        self.take_text(chain.links.iter().fold(0_usize, |sum, link| {
            sum.saturating_add(link.code.function.len())
                .saturating_add(link.code.file.len())
        }))?;
        let mut chains = self.chains.borrow_mut();
        let Chains { known, places } = &mut *chains;
        places.clear();
        places.extend(
            chain
                .links
                .iter()
                .map(|link| (link.code.address, link.line)),
        );
        if let Some(frames) = known.get(places.as_slice()) {
            return Ok(Arc::clone(frames));
        }
        self.take_result(
            places
                .len()
                .saturating_mul(size_of::<Frame>().saturating_add(size_of::<Place>())),
        )?;
        let frames: Arc<[Frame]> = chain
            .links
            .iter()
            .map(|link| Frame {
                function: Arc::clone(&link.code.function),
                file: Arc::clone(&link.code.file),
                line: link.line,
                locals: None,
            })
            .collect();
        known.insert(places.as_slice().into(), Arc::clone(&frames));
        Ok(frames)
    }
}
