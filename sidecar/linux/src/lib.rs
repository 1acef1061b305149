//! The only crate that talks to the kernel: processes, ptrace, memory, namespaces, credentials, memfds.

#![cfg(target_os = "linux")]

mod blocks;
pub mod carrier;
mod descriptors;
mod error;
mod fdinfo;
pub mod fence;
pub mod hardening;
pub mod headroom;
mod identity;
mod in_root;
mod memory;
mod pinned;
pub mod priority;
pub mod process;
pub mod procfs;
pub mod program;
pub mod registers;
pub mod signals;
mod sockets;
pub mod stop;
pub mod stopped;
mod syscalls;
mod threads;
pub mod turns;
mod waits;
pub mod write;

pub use error::Error;
pub use process::Process;
pub use threads::{MAX_THREADS, SchedStat};
