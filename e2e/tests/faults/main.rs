//! The operator is killed, and what it needs is taken away, at every moment of a session, on a real cluster.
//!
//! Every flow that a session can take is held at, or killed at, each of its points (`operator/src/faults.rs`). Afterwards
//! each session has exactly one end, a script ran at most once and exactly once where that end is Complete, what was
//! answered can be fetched, and nothing is left of any of it: no request, stream, task, process or Secret.
//!
//! `KUBECONFIG` names a cluster with the chart installed, as `cargo e2e test` sets it. Without it a cluster of its own is
//! started. The chart's operator rests meanwhile.

mod checks;
mod cuts;
mod flows;
mod kills;
mod points;
mod proxy;
mod stage;
mod targets;
