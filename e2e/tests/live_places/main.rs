//! Scripts in processes of every identity and place: who may, which way a script takes, what is said when there is none,
//! and that nothing is left behind.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

mod debuggers;
mod forks;
mod left_armed;
#[path = "../live/mod.rs"]
mod live;
mod places;
mod reading;
mod refusals;
mod seccomp;
mod sidecars;
