//! Carries a script into a target and its result out, with nothing on the target's file system.
//!
//! A child with exactly the target's identity and no capability holds two memfds; the target opens them as
//! `/proc/<child>/fd/<n>`. It outlives a killed sidecar until the deadline, takes the request back where it may, and
//! ends. Where no such child can be had (another user namespace, no `/proc` in the target's root), two files of random
//! names in the target's `/dev/shm` take its place, and are unlinked with the guard.

#![expect(
    unsafe_code,
    reason = "descriptors are handed through an exec, which std has no safe way to do"
)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags};
use rustix::thread::{CapabilitySet, CapabilitySets};
use sidewinder_decode::Addr;

use crate::procfs::Status;
use crate::write::{RequestSlot, remaining};
use crate::{Error, Process};

/// The least number a carrier's descriptor has, so that a stale request meets no other file.
pub const LEAST_DESCRIPTOR: u32 = 256;
/// Numbers below this cost a descriptor table of at most 512 KiB.
const MOST_DESCRIPTOR: u32 = 65_536;
/// How the names of our files begin, where files it has to be.
pub(crate) const FILE_PREFIX: &str = ".sidewinder-";
/// Where files may lie in the target, in the order they are tried.
const FOLDERS: [&str; 3] = ["/dev/shm", "/tmp", "/var/tmp"];
/// How long a carrier may take to say that it is there.
const START: Duration = Duration::from_secs(5);
/// What a carrier is told when nothing is armed any more.
const GOODBYE: [u8; 24] = [0; 24];
/// What a carrier is told when the target is to get the `SIGINT` that a script consumed.
const INTERRUPT: [u8; 24] = [0xff; 24];
/// How a result ends: the record that says so. The wrapper writes it last.
pub const END_RECORD: [u8; 9] = *b"F\0\0\0\0\0\0\0\0";

/// Why no script can be carried into the target.
#[derive(Debug, thiserror::Error)]
pub enum CarrierError {
    /// The kernel refused something.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The child could not take the target's identity.
    #[error(
        "the carrier could not take the identity of uid {uid}, gid {gid}: it needs CAP_SETUID and CAP_SETGID, or to run as that user and group"
    )]
    Identity {
        /// The target's file system uid.
        uid: u32,
        /// The target's file system gid.
        gid: u32,
    },
    /// Neither way is open.
    #[error(
        "no way to hand a script to process {pid}: {child}; and no folder in it can be written: {source}"
    )]
    NoWay {
        /// The process.
        pid: i32,
        /// Why there is no child.
        child: String,
        /// Why there is no file.
        source: io::Error,
    },
    /// The target could not be looked at.
    #[error(transparent)]
    Process(#[from] Error),
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> CarrierError {
    move |source| CarrierError::Io { what, source }
}

/// A script on its way into a target, and the place for its result. Dropping it takes both away.
#[derive(Debug)]
pub struct Carrier {
    script: File,
    result: File,
    script_path: String,
    result_path: String,
    holder: Holder,
}

#[derive(Debug)]
enum Holder {
    Child { child: Child, control: UnixStream },
    Files { dir: OwnedFd, names: [String; 2] },
}

impl Carrier {
    /// Prepares a script's way into the process. The carrier lives until `deadline` should this process be killed.
    ///
    /// # Errors
    /// [`CarrierError`]; nothing is left behind.
    pub fn start(process: &Process, deadline: Instant) -> Result<Self, CarrierError> {
        let status = process.status()?;
        let refused = match child_possible(process) {
            Ok(nested) => match Self::child(process, &status, nested, deadline) {
                Ok(carrier) => return Ok(carrier),
                Err(error) => error.to_string(),
            },
            Err(why) => why.to_owned(),
        };
        Self::files(process, &status).map_err(|source| CarrierError::NoWay {
            pid: process.pid(),
            child: refused,
            source,
        })
    }

    fn child(
        process: &Process,
        status: &Status,
        nested: bool,
        deadline: Instant,
    ) -> Result<Self, CarrierError> {
        let script = memfd("sidewinder-script")?;
        let result = memfd("sidewinder-result")?;
        let (control, theirs) = UnixStream::pair().map_err(io_error("make a socket pair"))?;
        control
            .set_read_timeout(Some(START))
            .and_then(|()| control.set_write_timeout(Some(START)))
            .map_err(io_error("set up a socket"))?;
        let (uid, gid) = (status.uids[3], status.gids[3]);
        let groups: Vec<String> = status.groups.iter().map(u32::to_string).collect();
        // The right to use this is decided when it is opened, so a carrier without capabilities can still take a
        // request back from a target that has some. Where it cannot be opened, the target's own user may.
        let memory = process.openat("mem", OFlags::RDWR).ok();
        let inherited = [
            script.as_raw_fd(),
            result.as_raw_fd(),
            theirs.as_raw_fd(),
            process.pidfd().as_raw_fd(),
            memory.as_ref().unwrap_or(&script).as_raw_fd(),
        ];
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("carrier")
            .args(inherited.iter().take(4).map(RawFd::to_string))
            .arg(
                memory
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), |file| file.as_raw_fd().to_string()),
            )
            .args([
                uid.to_string(),
                gid.to_string(),
                format!("[{}]", groups.join(",")),
            ])
            .arg(remaining(deadline).as_millis().to_string())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: fcntl is async-signal-safe, and the array was copied into the closure.
        unsafe {
            command.pre_exec(move || {
                for fd in inherited {
                    if libc::fcntl(fd, libc::F_SETFD, 0) == -1 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let mut child = if nested {
            let namespace = process
                .openat("ns/pid", OFlags::RDONLY)
                .map_err(io_error("open the target's PID namespace"))?;
            // Where children are born is a property of the thread, which ends at once.
            std::thread::scope(|scope| {
                scope
                    .spawn(|| {
                        nix::sched::setns(&namespace, CloneFlags::CLONE_NEWPID)
                            .map_err(io::Error::from)?;
                        command.spawn()
                    })
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
            })
            .map_err(io_error("start a carrier in the target's PID namespace"))?
        } else {
            command.spawn().map_err(io_error("start a carrier"))?
        };
        drop(theirs);
        let mut hello = [0; 24];
        if let Err(source) = (&control).read_exact(&mut hello) {
            end(&mut child, &control);
            return Err(if source.kind() == io::ErrorKind::UnexpectedEof {
                CarrierError::Identity { uid, gid }
            } else {
                io_error("hear from the carrier")(source)
            });
        }
        let [pid, script_fd, result_fd] = words(&hello);
        Ok(Self {
            script,
            result,
            script_path: format!("/proc/{pid}/fd/{script_fd}"),
            result_path: format!("/proc/{pid}/fd/{result_fd}"),
            holder: Holder::Child { child, control },
        })
    }

    fn files(process: &Process, status: &Status) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for folder in FOLDERS {
            let made = process
                .in_root(folder, OFlags::RDONLY | OFlags::DIRECTORY)
                .and_then(|dir| Self::files_in(folder, dir.into(), status));
            match made {
                Ok(carrier) => return Ok(carrier),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn files_in(folder: &str, dir: OwnedFd, status: &Status) -> io::Result<Self> {
        let id = u64::from(random()?) << 32 | u64::from(random()?);
        let names = [
            format!("{FILE_PREFIX}{id:016x}.py"),
            format!("{FILE_PREFIX}{id:016x}.out"),
        ];
        let create = |name: &str, mode: u32| -> io::Result<File> {
            let fd = rustix::fs::openat(
                &dir,
                name,
                OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o600),
            )?;
            // The umask does not count here.
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
            Ok(File::from(fd))
        };
        let [script_name, result_name] = &names;
        let script = create(script_name, 0o444)?;
        let made = create(result_name, 0o600).and_then(|result| {
            let owner = rustix::fs::Uid::from_raw(status.uids[3]);
            if rustix::process::geteuid() != owner
                && rustix::fs::fchown(&result, Some(owner), None).is_err()
            {
                rustix::fs::fchmod(&result, Mode::from_raw_mode(0o622))?;
            }
            Ok(result)
        });
        let unlink = || {
            for name in &names {
                let _ = rustix::fs::unlinkat(&dir, name.as_str(), AtFlags::empty());
            }
        };
        let result = made.inspect_err(|_| unlink())?;
        Ok(Self {
            script,
            result,
            script_path: format!("{folder}/{script_name}"),
            result_path: format!("{folder}/{result_name}"),
            holder: Holder::Files { dir, names },
        })
    }

    /// The script's path as the target sees it.
    pub fn script_path(&self) -> &str {
        &self.script_path
    }

    /// The result's path as the target sees it.
    pub fn result_path(&self) -> &str {
        &self.result_path
    }

    /// The result as far as it has been written. The target can write anything into it.
    pub fn result(&self) -> &File {
        &self.result
    }

    /// Puts the text that the target will run in its place.
    ///
    /// # Errors
    /// What the kernel said, for example that memory is short.
    pub fn load(&self, text: &[u8]) -> io::Result<()> {
        self.script.set_len(0)?;
        self.script.write_all_at(text, 0)
    }

    /// Sends the target the `SIGINT` that it should have had and that a script consumed. As its own user: the sidecar
    /// may lack `CAP_KILL`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn interrupt(&self, process: &Process) -> io::Result<()> {
        match &self.holder {
            Holder::Child { control, .. } => (&*control).write_all(&INTERRUPT),
            Holder::Files { .. } => process.interrupt(),
        }
    }

    /// Tells the carrier what to take back should this process be killed.
    ///
    /// # Errors
    /// When the carrier has ended.
    pub fn will_arm(&self, process: &Process, slot: RequestSlot) -> io::Result<()> {
        let Holder::Child { control, .. } = &self.holder else {
            return Ok(());
        };
        let pid = u64::from(process.ns_pid().unsigned_abs());
        let mut message = [0; 24];
        for (place, word) in message
            .chunks_exact_mut(8)
            .zip([pid, slot.pending.0, slot.path.0])
        {
            place.copy_from_slice(&word.to_le_bytes());
        }
        (&*control).write_all(&message)
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        match &mut self.holder {
            Holder::Child { child, control } => end(child, control),
            Holder::Files { dir, names } => {
                for name in names {
                    let _ = rustix::fs::unlinkat(&*dir, name.as_str(), AtFlags::empty());
                }
            }
        }
    }
}

/// Ends a child of ours and reaps it, so that no zombie is left to the target's pid 1. It is asked to end: without
/// `CAP_KILL` nobody may kill a process of another user, its parent included.
fn end(child: &mut Child, control: &UnixStream) {
    let _ = (&*control).write_all(&GOODBYE);
    let limit = Instant::now() + START;
    let mut pause = Duration::from_micros(100);
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > limit {
            let _ = child.kill();
            return;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// Whether a child can stand where the target looks; if so, whether it has to be born in another PID namespace.
fn child_possible(process: &Process) -> Result<bool, &'static str> {
    let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).ok();
    let same = |kind: &str| {
        let target = process.namespace(kind).map(std::path::PathBuf::from);
        target.is_some() && target == own(kind)
    };
    if !same("user") {
        return Err("the target is in another user namespace");
    }
    // The target looks its files up in the /proc of its own root, which must be that of its own PID namespace.
    let mut text = Vec::new();
    let seen = process
        .in_root(&format!("/proc/{}/stat", process.ns_pid()), OFlags::RDONLY)
        .and_then(|file| file.take(4096).read_to_end(&mut text))
        .ok()
        .and_then(|_| crate::procfs::stat(&text));
    if seen.is_none_or(|stat| stat.start_time != process.start_time()) {
        return Err("no /proc of its PID namespace is mounted in the target's root");
    }
    Ok(!same("pid"))
}

fn memfd(name: &str) -> Result<File, CarrierError> {
    // Without MFD_NOEXEC_SEAL a node with vm.memfd_noexec=2 refuses; before Linux 6.3 the flag is unknown.
    rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC))
        .map(File::from)
        .map_err(|errno| io_error("make a memfd")(errno.into()))
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if got != bytes.len() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    Ok(u32::from_le_bytes(bytes))
}

fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut out = [0; N];
    for (word, bytes) in out.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.try_into().map_or(0, u64::from_le_bytes);
    }
    out
}

/// What the hidden `carrier` command is told; everything is a number.
#[derive(Debug, PartialEq, Eq)]
struct Orders {
    descriptors: [RawFd; 4],
    memory: Option<RawFd>,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    lifetime: Duration,
}

fn orders(args: &[String]) -> Option<Orders> {
    let [
        script,
        result,
        control,
        pidfd,
        memory,
        uid,
        gid,
        groups,
        lifetime,
    ] = args
    else {
        return None;
    };
    let groups = groups.strip_prefix('[')?.strip_suffix(']')?;
    Some(Orders {
        descriptors: [
            script.parse().ok()?,
            result.parse().ok()?,
            control.parse().ok()?,
            pidfd.parse().ok()?,
        ],
        memory: match memory.as_str() {
            "-" => None,
            number => Some(number.parse().ok()?),
        },
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        groups: groups
            .split(',')
            .filter(|group| !group.is_empty())
            .map(str::parse)
            .collect::<Result<_, _>>()
            .ok()?,
        lifetime: Duration::from_millis(lifetime.parse().ok()?),
    })
    .filter(|orders| {
        orders
            .descriptors
            .iter()
            .chain(&orders.memory)
            .all(|fd| *fd > 2)
    })
}

/// The hidden `carrier` command. It takes nothing but what [`Carrier::start`] passes on.
pub fn carrier_main(args: &[String]) -> ExitCode {
    let Some(orders) = orders(args) else {
        return ExitCode::from(2);
    };
    match carry(&orders) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(6),
    }
}

fn carry(orders: &Orders) -> io::Result<()> {
    let end_of_life = Instant::now() + orders.lifetime;
    for fd in orders.descriptors.into_iter().chain(orders.memory) {
        // Whoever runs this by hand with other numbers gets an error instead of somebody's descriptor.
        // SAFETY: asking about a descriptor changes nothing, whatever the number.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the four numbers are open, were inherited for this purpose, and nothing else in this process owns them.
    let [script, result, control, pidfd] = orders
        .descriptors
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: as above.
    let memory = orders
        .memory
        .map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
    take_identity(orders)?;
    let script = move_high(&script)?;
    let result = File::from(move_high(&result)?);
    let mut control = UnixStream::from(control);
    let mut hello = Vec::with_capacity(24);
    for word in [
        u64::from(std::process::id()),
        u64::try_from(script.as_raw_fd()).unwrap_or_default(),
        u64::try_from(result.as_raw_fd()).unwrap_or_default(),
    ] {
        hello.extend_from_slice(&word.to_le_bytes());
    }
    control.write_all(&hello)?;
    let mut request = None;
    let mut message = [0; 24];
    while control.read_exact(&mut message).is_ok() {
        if message == GOODBYE {
            return Ok(());
        }
        if message == INTERRUPT {
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::INT);
            continue;
        }
        request = Some(words::<3>(&message));
    }
    // The sidecar is gone: whoever ends a carrier in good order says goodbye.
    while !ended(&pidfd) && !finished(&result) && Instant::now() < end_of_life {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let _ = rustix::event::poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            }),
        );
    }
    if let Some([pid, pending, path]) = request
        && let Ok(pid) = i32::try_from(pid)
        && !ended(&pidfd)
    {
        let ours = format!("/proc/{}/fd/{}\0", std::process::id(), script.as_raw_fd());
        let target = Memory {
            pid: Pid::from_raw(pid),
            file: memory,
        };
        target.take_back(Addr(pending), Addr(path), ours.as_bytes());
    }
    Ok(())
}

/// The target's user, groups and nothing else: its own check of us asks that its capabilities cover ours.
fn take_identity(orders: &Orders) -> io::Result<()> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let (uid, gid) = (Uid::from_raw(orders.uid), Gid::from_raw(orders.gid));
    let groups: Vec<Gid> = orders.groups.iter().copied().map(Gid::from_raw).collect();
    // Without CAP_SETGID the groups stay as they are; only the ids decide who may look at us.
    let _ = setgroups(&groups);
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    // Changing the user made it undumpable, and then nobody may open its descriptors.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
    Ok(())
}

/// A copy of the descriptor at a random high number; the old one closes with the caller's.
fn move_high(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    let most = u32::try_from(hard).unwrap_or(u32::MAX).min(MOST_DESCRIPTOR);
    let _ = nix::sys::resource::setrlimit(
        nix::sys::resource::Resource::RLIMIT_NOFILE,
        u64::from(most),
        u64::from(most),
    );
    let least = (most / 2).max(LEAST_DESCRIPTOR);
    let span = most.saturating_sub(least).saturating_sub(64).max(1);
    let number = least + random()? % span;
    let number = i32::try_from(number).map_err(io::Error::other)?;
    // The lowest free number from there on.
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(number))?;
    // SAFETY: fcntl has just made it, and nothing else knows of it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    debug_assert_eq!(
        fcntl(&copy, FcntlArg::F_GETFD),
        Ok(FdFlag::FD_CLOEXEC.bits())
    );
    Ok(copy)
}

fn ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    !matches!(
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

fn finished(result: &File) -> bool {
    let mut tail = [0; END_RECORD.len()];
    let Some(at) = result
        .metadata()
        .ok()
        .and_then(|meta| meta.len().checked_sub(tail.len() as u64))
    else {
        return false;
    };
    result.read_exact_at(&mut tail, at).is_ok() && tail == END_RECORD
}

/// The target's memory, through the file where there is one.
struct Memory {
    pid: Pid,
    file: Option<File>,
}

impl Memory {
    fn remote(at: Addr, len: usize) -> nix::sys::uio::RemoteIoVec {
        nix::sys::uio::RemoteIoVec {
            base: usize::try_from(at.0).unwrap_or_default(),
            len,
        }
    }

    fn read(&self, at: Addr, buf: &mut [u8]) -> bool {
        if let Some(file) = &self.file {
            return file.read_exact_at(buf, at.0).is_ok();
        }
        let remote = Self::remote(at, buf.len());
        let len = buf.len();
        nix::sys::uio::process_vm_readv(self.pid, &mut [io::IoSliceMut::new(buf)], &[remote])
            == Ok(len)
    }

    /// As the sidecar would have done it; without the right to, nothing happens.
    fn take_back(&self, pending: Addr, path: Addr, ours: &[u8]) {
        let mut flag = [0; 4];
        let mut there = vec![0; ours.len()];
        if !self.read(pending, &mut flag)
            || flag == [0; 4]
            || !self.read(path, &mut there)
            || there != ours
        {
            return;
        }
        let none = [0; 4];
        if let Some(file) = &self.file {
            let _ = file.write_all_at(&none, pending.0);
        } else {
            let remote = Self::remote(pending, none.len());
            let _ =
                nix::sys::uio::process_vm_writev(self.pid, &[io::IoSlice::new(&none)], &[remote]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn orders_are_numbers_or_refused() {
        let read = orders(&args("5 6 7 8 - 1000 1001 [4,27] 30000")).unwrap();
        assert_eq!((read.descriptors, read.memory), ([5, 6, 7, 8], None));
        assert_eq!((read.uid, read.gid, read.groups), (1000, 1001, vec![4, 27]));
        assert_eq!(read.lifetime, Duration::from_secs(30));
        assert_eq!(
            orders(&args("5 6 7 8 9 0 0 [] 1")).unwrap().groups,
            Vec::<u32>::new()
        );
        assert_eq!(orders(&args("0 6 7 8 - 0 0 [] 1")), None);
        assert_eq!(orders(&args("5 6 7 8 - root 0 [] 1")), None);
        assert_eq!(orders(&args("5 6 7 8 9 0 0 [x] 1")), None);
        assert_eq!(orders(&args("5 6 7")), None);
    }

    #[test]
    fn a_result_is_finished_when_its_last_record_says_so() {
        let file = memfd("test").unwrap();
        assert!(!finished(&file));
        file.write_all_at(b"o\x01\0\0\0\0\0\0\0xS\0\0\0\0\0\0\0\0", 0)
            .unwrap();
        assert!(!finished(&file));
        file.write_all_at(&END_RECORD, 19).unwrap();
        assert!(finished(&file));
    }

    #[test]
    fn a_descriptor_moves_to_a_high_number_and_stays_the_same_file() {
        let file = memfd("test").unwrap();
        file.write_all_at(b"sidewinder", 0).unwrap();
        let (soft, _) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        let moved = move_high(&OwnedFd::from(file)).unwrap();
        assert!(soft <= 512 || moved.as_raw_fd() >= 256, "{moved:?}");
        let mut back = [0; 10];
        File::from(moved).read_exact_at(&mut back, 0).unwrap();
        assert_eq!(&back, b"sidewinder");
    }
}
