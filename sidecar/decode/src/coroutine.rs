//! Coroutines, generators and async generators, and the chain in which they await each other.

use std::fmt::Display;

use sidewinder_model::{Frame, Locals};

use crate::decoder::{Decoder, Fault};
use crate::memory::{Addr, Memory};
use crate::offsets::Field as F;

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

/// The coroutines of one task, innermost last.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) frames: Vec<Frame>,
    /// Where the outermost stands; `None` when it is no coroutine that Python knows, for example Cython's.
    pub(crate) state: Option<CoroutineState>,
    /// The frame of the innermost coroutine when it is being executed: plain frames go on beneath it.
    pub(crate) executing: Option<Addr>,
}

impl<M: Memory + ?Sized> Decoder<'_, M> {
    /// Where a generator, coroutine or async generator stands. They share one layout.
    fn coroutine_state(&self, coroutine: Addr) -> Result<CoroutineState, Fault> {
        let state = self
            .u8(self.member(coroutine, F::gen_object_gi_frame_state))?
            .cast_signed();
        let known = &self.runtime.version.generator;
        Ok(if state == known.created {
            CoroutineState::Created
        } else if state == known.suspended {
            CoroutineState::Suspended
        } else if known.awaiting.contains(&state) {
            CoroutineState::Awaiting
        } else if state == known.executing {
            CoroutineState::Executing
        } else {
            CoroutineState::Finished
        })
    }

    /// Follows the awaits from a task's coroutine inwards.
    pub(crate) fn chain(&self, whose: impl Display + Copy, coroutine: Addr) -> Chain {
        let mut chain = Chain {
            frames: Vec::new(),
            state: None,
            executing: None,
        };
        let mut seen = Vec::new();
        let mut next = Some(coroutine);
        while let Some(at) = next {
            if seen.contains(&at) {
                self.problem(format_args!("{whose}: its coroutines form a circle"));
                break;
            }
            seen.push(at);
            if seen.len() > self.limits.coroutines {
                self.problem(format_args!(
                    "{whose}: more than {} coroutines",
                    self.limits.coroutines
                ));
                break;
            }
            next = match self.link(at, &mut chain) {
                Ok(next) => next,
                Err(fault) => {
                    self.problem(format_args!("{whose}: coroutine at {at}: {fault}"));
                    None
                }
            };
        }
        chain
    }

    /// One object of the chain: its frame, where it has one, and what it awaits.
    fn link(&self, at: Addr, chain: &mut Chain) -> Result<Option<Addr>, Fault> {
        let kind = self.type_of(at)?;
        match kind.name.as_str() {
            "coroutine" | "generator" | "async_generator" => {}
            // Awaitables that wrap another: the wrapped one is their first member.
            "async_generator_asend"
            | "async_generator_athrow"
            | "coroutine_wrapper"
            | "anext_awaitable" => {
                return self.pointer(self.member(at, F::pyobject_size)).map(Some);
            }
            // A future's iterator, which is the usual end, or an iterator written in C.
            _ => return Ok(None),
        }
        let state = self.coroutine_state(at)?;
        chain.state.get_or_insert(state);
        if state == CoroutineState::Finished {
            return Ok(None);
        }
        let frame = self.raw_frame(self.member(at, F::gen_object_gi_iframe))?;
        if frame.executable.is_null() {
            return Ok(None);
        }
        chain.frames.push(self.frame(&frame, Locals::None)?);
        match state {
            CoroutineState::Awaiting => {
                let below = self.runtime.version.awaited_below_stackpointer;
                let awaited = self.pointer(frame.stack_pointer.minus(below))?.untagged();
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
}
