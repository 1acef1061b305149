//! The chart's admission policies and roles as a real API server enforces them. `KUBECONFIG` names a cluster, with the
//! right to impersonate; the chart is installed in it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in a test a panic is the report; clippy exempts only functions marked as tests, not what they call"
)]

mod account;
mod entering;
mod fixture;
mod labels;
mod requester;
mod roles;
mod sidecar;
