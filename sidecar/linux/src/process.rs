//! One process, pinned: every later look is at the same process, whatever happens to its number.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use sidewinder_decode::Mapping;

use crate::Error;
use crate::error::{Refusal, differs};
use crate::identity::Identity;
use crate::in_root;
use crate::pinned::Pinned;
use crate::procfs::{self, Stat, Status};

/// Most bytes of `/proc/PID/maps` that are read.
const MAX_MAPS_BYTES: u64 = 64 << 20;
/// Most bytes of any other file in `/proc/PID` that are read.
const MAX_PROC_BYTES: u64 = 256 << 10;
/// Room for most files in `/proc/PID`: a page, which is what the kernel gives out at a time, and what shows the end.
const PROC_BUFFER: usize = 8 << 10;
/// Room for the mappings of a process with some hundred libraries.
const MAPS_BUFFER: usize = 64 << 10;
/// Most arguments of a command line, and most bytes of each.
const MAX_ARGUMENTS: (usize, usize) = (256, 4096);

/// Most descriptors of a process that are counted: `fs.nr_open`, unless somebody raised it.
const MAX_DESCRIPTORS: usize = 1 << 20;

/// How long a process whose memory cannot be reached any more may take to end.
const ENDING: Duration = Duration::from_millis(200);

const CAP_SYS_PTRACE: u64 = 1 << 19;

/// A process, pinned by a pidfd, its start time and an open `/proc/PID`.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    ns_pid: i32,
    start_time: u64,
    /// Files below it answer ESRCH once the process is gone, also when its number has been taken again.
    dir: OwnedFd,
    pidfd: OwnedFd,
    pub(crate) mem: OnceLock<Option<File>>,
    pinned: OnceLock<Option<Arc<File>>>,
}

/// The ids of every process that `/proc` shows, in ascending order.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn list() -> io::Result<Vec<i32>> {
    let mut pids: Vec<i32> = std::fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

impl Process {
    /// Pins the process with this id.
    ///
    /// # Errors
    /// [`Error::NoSuchProcess`] also when the id is that of a thread other than the first, or of a process that has
    /// ended and was not reaped.
    pub fn open(pid: i32) -> Result<Self, Error> {
        let none = || Error::NoSuchProcess { pid };
        let raw = (pid > 0)
            .then(|| rustix::process::Pid::from_raw(pid))
            .flatten()
            .ok_or_else(none)?;
        let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())
            .map_err(|errno| match errno {
                // EINVAL, or ENOENT since Linux 6.9: the id of a thread that leads no thread group.
                rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT => {
                    none()
                }
                other => Error::Io {
                    pid,
                    what: "open",
                    source: other.into(),
                },
            })?;
        let dir = rustix::fs::open(
            format!("/proc/{pid}"),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| match errno {
            rustix::io::Errno::NOENT | rustix::io::Errno::SRCH => none(),
            other => Error::Io {
                pid,
                what: "open /proc of",
                source: other.into(),
            },
        })?;
        let mut process = Self {
            pid,
            ns_pid: pid,
            start_time: 0,
            dir,
            pidfd,
            mem: OnceLock::new(),
            pinned: OnceLock::new(),
        };
        process.start_time = process.stat().map_err(|_| none())?.start_time;
        let status = process.status().map_err(|_| none())?;
        process.ns_pid = status.ns_pids.last().copied().unwrap_or(pid);
        // The pidfd was opened first: if its process still lives, /proc/PID was its own.
        if process.alive() {
            Ok(process)
        } else {
            Err(none())
        }
    }

    /// Its id in the PID namespace of whoever reads.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its id in its own PID namespace.
    pub fn ns_pid(&self) -> i32 {
        self.ns_pid
    }

    /// When it started, in clock ticks since boot.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Whether it has not ended. A process that has ended and was not reaped is not alive.
    pub fn alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(
            rustix::event::poll(
                &mut fds,
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 0
                })
            ),
            Ok(0)
        )
    }

    /// Waits until it has ended, at most so long; whether it has.
    pub fn wait_exit(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        matches!(rustix::event::poll(&mut fds, Some(&limit)), Ok(1..))
    }

    /// The pidfd: readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its folder in `/proc`.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub(crate) fn openat(&self, path: impl AsRef<Path>, flags: OFlags) -> io::Result<File> {
        let fd = rustix::fs::openat(
            &self.dir,
            path.as_ref(),
            flags | OFlags::CLOEXEC | OFlags::NOCTTY,
            Mode::empty(),
        )?;
        Ok(File::from(fd))
    }

    /// Its `mem` file. Whoever has a right to the process but not to that file, root without `CAP_DAC_OVERRIDE`, opens it
    /// as its owner.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn open_memory(&self, flags: OFlags) -> io::Result<File> {
        let refused = match self.openat("mem", flags) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EACCES) => error,
            opened => return opened,
        };
        let Ok(stat) = rustix::fs::statat(&self.dir, "mem", rustix::fs::AtFlags::empty()) else {
            return Err(refused);
        };
        Identity::user(stat.st_uid).act(|| self.openat("mem", flags))?
    }

    /// Its memory, to be read and written, as it is when this is called first. What another program has that the process
    /// executes later is not reached through it: the addresses of the one are anything in the other.
    /// <https://man7.org/linux/man-pages/man5/proc_pid_mem.5.html>
    pub(crate) fn pinned_memory(&self) -> Pinned {
        let file = self
            .pinned
            .get_or_init(|| self.open_memory(OFlags::RDWR).ok().map(Arc::new));
        Pinned::new(self.pid, file.clone())
    }

    /// Whether it has ended, or does in a moment: the memory of a process that is being killed goes before the process.
    pub fn is_ending(&self) -> bool {
        self.wait_exit(ENDING)
    }

    pub(crate) fn proc_file(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        self.read_bounded(path, PROC_BUFFER, MAX_PROC_BYTES)
    }

    /// A file that is shorter than a page, which the kernel gives in one piece.
    pub(crate) fn short_file(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let mut buffer = [0; 4096];
        let len = self.openat(path, OFlags::RDONLY)?.read(&mut buffer)?;
        Ok(buffer.get(..len).unwrap_or_default().to_vec())
    }

    pub(crate) fn read_bounded(
        &self,
        path: impl AsRef<Path>,
        expected: usize,
        limit: u64,
    ) -> io::Result<Vec<u8>> {
        // Without room to begin with, the standard library probes with 32 bytes, and each read has the kernel write
        // the file anew.
        let mut bytes = Vec::with_capacity(expected);
        self.openat(path, OFlags::RDONLY)?
            .take(limit)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn readlink(&self, path: impl AsRef<Path>) -> io::Result<OsString> {
        use std::os::unix::ffi::OsStringExt;
        let target = rustix::fs::readlinkat(&self.dir, path.as_ref(), Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Whether a descriptor of it is an eventfd.
    pub fn is_eventfd(&self, fd: u64) -> bool {
        self.readlink(format!("fd/{fd}"))
            .is_ok_and(|link| link == "anon_inode:[eventfd]")
    }

    /// The names in one of the folders of `/proc/PID` that are numbers, at most `limit`.
    pub(crate) fn numbers(&self, path: &str, limit: usize) -> io::Result<Vec<u64>> {
        let dir = self.openat(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut numbers: Vec<u64> = rustix::fs::Dir::read_from(&dir)?
            .filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok())
            .take(limit)
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// `/proc/PID/stat` of the process.
    ///
    /// # Errors
    /// [`Error::Gone`], or what the kernel said.
    pub fn stat(&self) -> Result<Stat, Error> {
        let bytes = self
            .proc_file("stat")
            .map_err(|e| self.io("read the state of", e))?;
        procfs::stat(&bytes).ok_or(Error::Gone { pid: self.pid })
    }

    /// `/proc/PID/status` of the process: its ids, groups, capabilities and tracer.
    ///
    /// # Errors
    /// [`Error::Gone`], or what the kernel said.
    pub fn status(&self) -> Result<Status, Error> {
        let bytes = self
            .proc_file("status")
            .map_err(|e| self.io("read the status of", e))?;
        procfs::status(&bytes).ok_or(Error::Gone { pid: self.pid })
    }

    /// Whether a signal has stopped it (`SIGSTOP`, a terminal), as far as its first thread tells.
    ///
    /// # Errors
    /// As [`Self::stat`].
    pub fn stopped_by_signal(&self) -> Result<bool, Error> {
        Ok(self.stat()?.state == 'T')
    }

    /// Its arguments, at most 256 of at most 4096 bytes; empty for a kernel thread.
    pub fn command(&self) -> Vec<String> {
        let (count, bytes) = MAX_ARGUMENTS;
        self.proc_file("cmdline")
            .map(|text| procfs::command(&text, count, bytes))
            .unwrap_or_default()
    }

    /// The text of `/proc/PID/cgroup`, at most 256 KiB.
    ///
    /// # Errors
    /// [`Error::Gone`], or what the kernel said.
    pub fn cgroup(&self) -> Result<String, Error> {
        let bytes = self
            .proc_file("cgroup")
            .map_err(|e| self.io("read the cgroup of", e))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What identifies one of its namespaces (`pid`, `user`, `mnt`), where it may be seen.
    pub fn namespace(&self, kind: &str) -> Option<OsString> {
        self.readlink(format!("ns/{kind}")).ok()
    }

    /// What it has mapped.
    ///
    /// # Errors
    /// [`Error::Denied`] without the right to look into it; [`Error::Gone`].
    pub fn mappings(&self) -> Result<Vec<Mapping>, Error> {
        let bytes = self
            .read_bounded("maps", MAPS_BUFFER, MAX_MAPS_BYTES)
            .map_err(|e| self.io("read the mappings of", e))?;
        if bytes.is_empty() {
            // A process without memory is a kernel thread or has ended.
            return Err(Error::Gone { pid: self.pid });
        }
        Ok(procfs::mappings(&bytes))
    }

    /// The soft limit of the size of its first thread's stack, in bytes; 8 MiB, the kernel's default, where it may not be
    /// seen.
    pub fn stack_limit(&self) -> u64 {
        self.limit("Max stack size").unwrap_or(8 << 20)
    }

    /// Whether it has as many descriptors as it may and can open nothing; false where that may not be seen.
    pub fn is_out_of_descriptors(&self) -> bool {
        let Some(limit) = self.limit("Max open files") else {
            return false;
        };
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        // Those that it got before the limit was lowered have higher numbers.
        self.numbers("fd", most.saturating_add(1).min(MAX_DESCRIPTORS))
            .is_ok_and(|open| open.iter().filter(|fd| **fd < limit).count() >= most)
    }

    fn limit(&self, name: &str) -> Option<u64> {
        procfs::soft_limit(&self.proc_file("limits").ok()?, name)
    }

    /// Opens the very file that is mapped there, deleted or replaced on disk as it may be.
    ///
    /// `None` when no way leads to exactly that file: reading another build's offsets would be worse than reading none.
    pub fn open_mapping(&self, mapping: &Mapping) -> Option<File> {
        if mapping.inode == 0 {
            return None;
        }
        // The kernel's own link to the mapped file; needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
        let link = format!("map_files/{:x}-{:x}", mapping.start, mapping.end);
        if let Some(file) = regular(self.openat(&link, OFlags::PATH).ok()) {
            return Some(file);
        }
        if self.readlink("exe").is_ok_and(|exe| *exe == *mapping.path)
            && let Some(file) = regular(self.openat("exe", OFlags::PATH).ok())
        {
            return Some(file);
        }
        let root = self.readlink("root").ok();
        // Where the target's root is a folder of its mount namespace (chroot), the path begins with that folder.
        let beneath = root
            .as_ref()
            .and_then(|root| mapping.path.strip_prefix(root.to_str()?))
            .filter(|path| path.starts_with('/'));
        [beneath, Some(mapping.path.as_str())]
            .into_iter()
            .flatten()
            .find_map(|path| {
                let path = self.in_root(path, OFlags::PATH).ok()?;
                let same = is_inode(&path, mapping);
                regular(Some(path)).filter(|file| same || self.begins_like(file, mapping))
            })
    }

    /// Whether the mapping shows the file's first bytes. Of an ELF file those are its headers and, right behind them,
    /// its build ID, so that no other build has the same. Overlay file systems and btrfs give out other device numbers
    /// in `stat` than in `maps`.
    fn begins_like(&self, file: &File, mapping: &Mapping) -> bool {
        let (mut on_disk, mut in_memory) = ([0; 4096], [0; 4096]);
        mapping.offset == 0
            && file.read_exact_at(&mut on_disk, 0).is_ok()
            && on_disk.starts_with(b"\x7fELF")
            && self.read_memory(mapping.start, &mut in_memory).is_ok()
            && on_disk == in_memory
    }

    /// Opens a path as the target sees it, never leaving the target's root through a link that it planted.
    pub(crate) fn in_root(&self, path: &str, flags: OFlags) -> io::Result<File> {
        let root = self.openat("root", OFlags::PATH | OFlags::DIRECTORY)?;
        in_root::open(&root, path, flags)
    }

    /// An error of the kernel about this process.
    pub(crate) fn io(&self, what: &'static str, source: io::Error) -> Error {
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ESRCH) => Error::Gone { pid: self.pid },
            Some(Errno::ENOENT) if !self.alive() => Error::Gone { pid: self.pid },
            Some(errno @ (Errno::EPERM | Errno::EACCES)) => Error::Denied {
                pid: self.pid,
                what,
                closed: self.is_closed(self.refusal()),
                differs: self.differs(),
                source: errno,
            },
            _ => Error::Io {
                pid: self.pid,
                what,
                source,
            },
        }
    }

    /// A refusal of something that Yama watches over: attaching, and access to memory.
    pub(crate) fn refused(&self, what: &'static str, source: Errno) -> Error {
        let pid = self.pid;
        match source {
            Errno::ESRCH => Error::Gone { pid },
            Errno::EPERM | Errno::EACCES => {
                let refusal = self.refusal();
                let closed = self.is_closed(refusal);
                match refusal.yama() {
                    // It comes last in the kernel's order.
                    Some(scope) if !closed => Error::Yama { pid, scope, what },
                    _ => Error::Denied {
                        pid,
                        what,
                        closed,
                        differs: self.differs(),
                        source,
                    },
                }
            }
            other => Error::Io {
                pid,
                what,
                source: other.into(),
            },
        }
    }

    /// Whether it is not dumpable and that alone is in the way: its files belong to root then.
    fn is_closed(&self, refusal: Refusal) -> bool {
        let owner = rustix::fs::statat(&self.dir, "mem", rustix::fs::AtFlags::empty());
        refusal.covered
            && !refusal.capable
            && owner.is_ok_and(|owner| owner.st_uid != nix::unistd::geteuid().as_raw())
    }

    fn differs(&self) -> String {
        match (own_status(), self.status()) {
            (Some(own), Ok(target)) => differs(&target, &own),
            _ => "what stands in the way cannot be seen".to_owned(),
        }
    }

    fn refusal(&self) -> Refusal {
        let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let (Some(own), Ok(target)) = (own_status(), self.status()) else {
            return Refusal {
                scope,
                ..Refusal::default()
            };
        };
        let same = |ids: &[u32; 4], id: u32| ids.iter().take(3).all(|other| *other == id);
        Refusal {
            scope,
            capable: own.effective & CAP_SYS_PTRACE != 0,
            covered: same(&target.uids, own.uids[0])
                && same(&target.gids, own.gids[0])
                && target.permitted & !own.permitted == 0,
        }
    }

    /// Whether its memory may be read, tried on the spot.
    ///
    /// # Errors
    /// [`Error::Yama`] or [`Error::Denied`] when it may not, [`Error::Gone`].
    pub fn check_access(&self) -> Result<(), Error> {
        let readable = self
            .mappings()?
            .into_iter()
            .find(|mapping| mapping.readable && !mapping.path.starts_with("[v"));
        let Some(mapping) = readable else {
            return Err(Error::Gone { pid: self.pid });
        };
        let mut byte = [0];
        match self.read_memory(mapping.start, &mut byte) {
            Ok(()) | Err(Errno::EFAULT) => Ok(()),
            Err(errno) => Err(self.refused("read the memory of", errno)),
        }
    }
}

/// What this thread may.
fn own_status() -> Option<Status> {
    procfs::status(&std::fs::read("/proc/thread-self/status").ok()?)
}

/// Whether it is the inode that is mapped.
fn is_inode(file: &File, mapping: &Mapping) -> bool {
    let Ok(stat) = rustix::fs::fstat(file) else {
        return false;
    };
    let (major, minor) = (
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev),
    );
    stat.st_ino == mapping.inode && format!("{major:02x}:{minor:02x}") == mapping.device
}

/// Reopens a file that was opened by path only, if it is a regular one: opening anything else can block or act.
fn regular(path: Option<File>) -> Option<File> {
    use std::os::fd::AsRawFd;
    let path = path?;
    let stat = rustix::fs::fstat(&path).ok()?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return None;
    }
    File::open(format!("/proc/self/fd/{}", path.as_raw_fd())).ok()
}
