//! Reading a target's memory.

use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use rustix::fs::OFlags;
use sidewinder_decode::{Addr, ElfFacts, Files, Mapping, Memory, ReadError};

use crate::Process;

impl Process {
    /// Fills `buf` from `at` in the target.
    pub(crate) fn read_memory(&self, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
        if buf.is_empty() {
            return Ok(());
        }
        let remote = RemoteIoVec {
            base: usize::try_from(at).map_err(|_| Errno::EFAULT)?,
            len: buf.len(),
        };
        let wanted = buf.len();
        match process_vm_readv(
            Pid::from_raw(self.pid()),
            &mut [IoSliceMut::new(buf)],
            &[remote],
        ) {
            Ok(got) if got == wanted => Ok(()),
            // The range ends in, or begins before, something that is not mapped.
            Ok(_) => Err(Errno::EFAULT),
            // No CONFIG_CROSS_MEMORY_ATTACH, or a seccomp profile that knows only the file.
            Err(refused @ (Errno::ENOSYS | Errno::EPERM)) => self.read_mem_file(at, buf, refused),
            Err(errno) => Err(errno),
        }
    }

    fn read_mem_file(&self, at: u64, buf: &mut [u8], refused: Errno) -> Result<(), Errno> {
        let mem = self
            .mem
            .get_or_init(|| self.openat("mem", OFlags::RDONLY).ok());
        let Some(mem) = mem else {
            return Err(refused);
        };
        if at > i64::MAX as u64 {
            return Err(Errno::EFAULT);
        }
        mem.read_exact_at(buf, at)
            .map_err(|error| match error.raw_os_error() {
                None => Errno::ESRCH, // an end of file: the address space is gone
                Some(nix::libc::EIO) => Errno::EFAULT,
                Some(errno) => Errno::from_raw(errno),
            })
    }
}

impl Memory for Process {
    /// Whoever reads a process that is not stopped asks [`Process::alive`] afterwards: only then was it this process
    /// that answered.
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let len = buf.len();
        self.read_memory(at.0, buf).map_err(|errno| match errno {
            Errno::ESRCH => ReadError::Gone,
            Errno::EPERM | Errno::EACCES | Errno::ENOSYS => ReadError::Denied,
            _ => ReadError::Fault { at, len },
        })
    }
}

impl Files for Process {
    fn elf(&self, mapping: &Mapping) -> Option<ElfFacts> {
        ElfFacts::read(self.open_mapping(mapping)?).ok()
    }
}
