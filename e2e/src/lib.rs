//! The harness: the embedded Kubernetes, the images, Pythons to look into, and what installs the operator into a cluster.
//!
//! The commands of `cargo e2e` are thin over this library, so that the tests, the demo and the benchmarks do exactly what a person does by hand.

pub mod aarch64;
pub mod answer;
pub mod bench;
pub mod cache;

pub mod check;
pub mod cluster;
pub mod command;

pub mod demo;
pub mod deploy;
pub mod fuzz;
pub mod images;
pub mod namespace;
pub mod operator;
pub mod packages;
pub mod people;
pub mod python;
pub mod session_client;
pub mod tools;
pub mod watch;
pub mod workload;

use std::path::{Path, PathBuf};

/// The root of the checkout.
///
/// # Panics
/// Never: the manifest folder is one below the root.
pub fn checkout() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}
