//! Debug sessions on a real cluster: what each answers, what it leaves as it was, and how it ends when something is wrong.
//!
//! `KUBECONFIG` names a cluster with the chart installed, as `cargo e2e test` sets it. Without it a cluster of its own is started,
//! which ends with the tests. Each test has a namespace for itself.

mod actions;
mod confinement;
mod expect;
mod fleet;
mod interruptions;
mod once;
mod outages;
mod policies_away;
mod refusals;
mod requester;
mod schema;
mod secrecy;
mod settings;
mod stage;
mod table;
