//! The only crate that talks to the kernel: processes, ptrace, memory, namespaces, credentials, memfds.

#![cfg(target_os = "linux")]

mod error;
mod memory;
pub mod process;
pub mod procfs;
mod syscalls;
mod threads;

pub use error::Error;
pub use process::Process;
pub use threads::{MAX_THREADS, SchedStat};
