//! CPython's memory into snapshots, with no I/O.
//!
//! A target's memory is hostile input: every walk is bounded, every address is checked by the read itself, and what
//! cannot be read becomes a problem in the result, never a panic and never the failure of the whole.

#![forbid(unsafe_code)]
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

pub mod memory;
pub mod os;

pub use memory::{Addr, Memory, ReadError};
pub use os::{Mapping, OsThread};
