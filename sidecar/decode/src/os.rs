//! What the kernel knows of a target and its memory does not say. Filled by whoever does the I/O.

use sidewinder_model::{Syscall, ThreadState};

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Whether it may be read.
    pub readable: bool,
    /// Whether it may be written.
    pub writable: bool,
    /// Whether it may be executed.
    pub executable: bool,
    /// Offset in the file.
    pub offset: u64,
    /// The device number as `major:minor`, hexadecimal as in the line.
    pub device: String,
    /// The inode, 0 for anonymous memory.
    pub inode: u64,
    /// The path as the target sees it, possibly with ` (deleted)`; empty for anonymous memory.
    pub path: String,
}

impl Mapping {
    /// Whether a file is mapped there, deleted as it may be.
    pub fn is_file(&self) -> bool {
        self.inode != 0 || self.path.starts_with('/')
    }
}

/// One thread as the kernel sees it. In lists the leader, whose id is the process's, comes first, as in
/// `/proc/PID/task`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OsThread {
    /// Its id in the PID namespace of whoever reads.
    pub tid: u64,
    /// Its id in the target's own PID namespace, which is what CPython stores as `native_thread_id`.
    pub ns_tid: u64,
    /// Its name, at most 15 bytes.
    pub name: String,
    /// What it was doing; never [`ThreadState::Runnable`], which needs the interpreter's word.
    pub state: ThreadState,
    /// The system call it was blocked in.
    pub syscall: Option<Syscall>,
    /// The address of the futex it was blocked on, the first argument of that system call: it tells a thread that
    /// waits for the GIL from one that waits for a lock.
    pub futex: Option<u64>,
    /// The arguments of that system call, from which more can be found out as long as the process lives. Images do not
    /// keep them.
    pub arguments: Option<[u64; 6]>,
}
