//! A target's memory, to be read and written: through one file, where it could be opened.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use sidewinder_decode::Addr;

/// The memory of a process as it was when the file was opened; without a file, as it is.
#[derive(Clone, Debug)]
pub(crate) struct Pinned {
    pid: Pid,
    file: Option<Arc<File>>,
}

impl Pinned {
    pub(crate) fn new(pid: i32, file: Option<Arc<File>>) -> Self {
        Self {
            pid: Pid::from_raw(pid),
            file,
        }
    }

    pub(crate) fn file(&self) -> Option<&File> {
        self.file.as_deref()
    }

    /// Fills `bytes` from there. Without an error number when the file is at its end.
    pub(crate) fn read(&self, at: Addr, bytes: &mut [u8]) -> io::Result<()> {
        if let Some(file) = &self.file {
            return file.read_exact_at(bytes, at.0);
        }
        let (remote, wanted) = (remote(at, bytes.len()), bytes.len());
        whole(
            process_vm_readv(self.pid, &mut [IoSliceMut::new(bytes)], &[remote])?,
            wanted,
        )
    }

    /// Writes all of `bytes` there; part of them may have been written when it fails.
    pub(crate) fn write(&self, at: Addr, bytes: &[u8]) -> io::Result<()> {
        if let Some(file) = &self.file {
            // It extends the stack where process_vm_writev(2) finds nothing mapped.
            return file.write_all_at(bytes, at.0);
        }
        let remote = remote(at, bytes.len());
        whole(
            process_vm_writev(self.pid, &[IoSlice::new(bytes)], &[remote])?,
            bytes.len(),
        )
    }

    /// Sets bits in the byte there, in which other threads set others at any time: it is read and written at once.
    pub(crate) fn set_bits(&self, at: Addr, bits: u8) -> io::Result<()> {
        let mut byte = [0];
        self.read(at, &mut byte)?;
        if byte[0] & bits == bits {
            return Ok(());
        }
        self.write(at, &[byte[0] | bits])
    }
}

fn remote(at: Addr, len: usize) -> RemoteIoVec {
    RemoteIoVec {
        base: usize::try_from(at.0).unwrap_or_default(),
        len,
    }
}

fn whole(done: usize, wanted: usize) -> io::Result<()> {
    if done == wanted {
        Ok(())
    } else {
        Err(Errno::EFAULT.into())
    }
}
