//! CPython's memory into snapshots, with no I/O.
//!
//! A target's memory is hostile input: every walk is bounded, every address is checked by the read itself, and what
//! cannot be read becomes a problem in the result, never a panic and never the failure of the whole.
//!
//! [`Runtime::locate`] finds the interpreter in a process; [`stacks`] and [`tasks`] decode what it is doing. Wrap the
//! memory of a target that stands still into a [`PageCache`] first: it makes thousands of small reads a few large ones.

#![forbid(unsafe_code)]
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod code;
mod coroutine;
mod decoder;
pub mod elf;
mod exception;
mod frame;
mod graph;
pub mod limits;
mod linetable;
mod local;
mod mapped;
pub mod memory;
pub mod native;
mod object;
pub mod offsets;
pub mod os;
mod python_task;
pub mod remote_exec;
pub mod runtime;
mod search;
pub mod still;
mod task;
mod text;
mod thread;
mod thread_name;
mod waiting;

pub use elf::{ElfError, ElfFacts, Files, NoFiles};
pub use limits::Limits;
pub use memory::{Addr, Image, ImageError, Memory, PageCache, ReadError, ReadRange, Recorder};
pub use native::Native;
pub use os::{Mapping, OsThread};
pub use runtime::{GilState, LocateError, Runtime};
pub use task::tasks;
pub use thread::stacks;
