//! Reading a target's memory.

use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use rustix::fs::OFlags;
use sidewinder_decode::{Addr, ElfFacts, Files, Mapping, Memory, ReadError, ReadRange};

use crate::Process;
use crate::blocks::Blocks;

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
            .get_or_init(|| self.open_memory(OFlags::RDONLY).ok());
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

    fn read_ranges(&self, ranges: &mut [ReadRange<'_>]) {
        let mut rest = ranges;
        while !rest.is_empty() {
            let (batch, after) = rest.split_at_mut(rest.len().min(MAX_RANGES));
            self.read_batch(batch);
            rest = after;
        }
    }
}

/// Ranges of one system call: `UIO_MAXIOV` of the kernel, `process_vm_readv(2)`.
const MAX_RANGES: usize = 1024;

impl Process {
    /// As many ranges as one system call takes.
    fn read_batch(&self, ranges: &mut [ReadRange<'_>]) {
        let mut rest = ranges;
        while !rest.is_empty() {
            let mut remote = Vec::with_capacity(rest.len());
            let mut local = Vec::with_capacity(rest.len());
            for range in rest.iter_mut() {
                remote.push(RemoteIoVec {
                    // An address that is none is not mapped either.
                    base: usize::try_from(range.at.0).unwrap_or(0),
                    len: range.buf.len(),
                });
                local.push(IoSliceMut::new(range.buf));
            }
            let got = process_vm_readv(Pid::from_raw(self.pid()), &mut local, &remote);
            let Ok(mut left) = got else {
                // The first range is not mapped, or the call is not to be had.
                let Some((first, after)) = rest.split_first_mut() else {
                    return;
                };
                first.filled = self.read(first.at, first.buf).is_ok();
                rest = after;
                continue;
            };
            // The kernel copies in order and stops within the first range that it cannot copy as a whole.
            let mut done = 0;
            for range in rest.iter_mut() {
                done += 1;
                range.filled = left >= range.buf.len();
                if !range.filled {
                    break;
                }
                left -= range.buf.len();
            }
            rest = rest.get_mut(done..).unwrap_or_default();
        }
    }
}

impl Files for Process {
    fn elf(&self, mapping: &Mapping) -> Option<ElfFacts> {
        ElfFacts::read(Blocks::new(self.open_mapping(mapping)?).ok()?).ok()
    }
}
