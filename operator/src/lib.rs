//! The controller's parts.
//!
//! A session goes round in `observe` (read what a decision needs), `plan` (decide; pure) and `apply` (act; everything
//! may happen twice) until the plan says that it has ended. What must survive a restart stands in the session's status
//! or waits in the agent.

#![forbid(unsafe_code)]

pub mod app;
pub mod args;
pub mod error;
pub mod events;
pub mod faults;
pub mod fences;
pub mod http;
pub mod inject;
pub mod leader;
pub mod metrics;
pub mod relay;
pub mod session;
pub mod telemetry;
pub mod throttle;

#[cfg(test)]
mod testing;
