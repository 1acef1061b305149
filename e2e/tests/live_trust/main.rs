//! What the agent lets nobody do, tried from where somebody might: another container of its pod, a process of its own
//! user, a relay that means no good; and what can be seen of it from outside.
//!
//! A process of the same user in the same PID namespace may kill or stop the agent. That cannot be prevented, and is
//! what it may do to the application as well.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

#[path = "../live_once/agent.rs"]
mod agent;
mod hostile;
#[path = "../live/mod.rs"]
mod live;
mod namespace;
mod seen;
