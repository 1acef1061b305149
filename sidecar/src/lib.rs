//! Reads a Python process and runs scripts in it: agent, relay, and the same actions by hand.

#![forbid(unsafe_code)]

pub mod agent;
pub mod args;
pub mod capture;
pub mod discover;
pub mod framing;
pub mod hand;
pub mod inject;
pub mod perform;
pub mod read;
pub mod relay;
pub mod select;
