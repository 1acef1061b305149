//! Snapshots into what a person reads: text and one-line summaries. No I/O.
//!
//! Everything that comes from a target is data: it is clipped, and control characters are escaped, so that a thread's
//! name cannot move the cursor of whoever reads it.

#![forbid(unsafe_code)]
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

pub mod escape;
pub mod summary;
pub mod text;

#[cfg(test)]
mod samples;
