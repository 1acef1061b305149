//! Carries a script into a target and its result out, with nothing on the target's file system.
//!
//! A child with exactly the target's identity and no capability holds two memfds; the target opens them as
//! `/proc/<child>/fd/<n>`. When its sidecar is killed it takes the request back at once where it may, and stays for a
//! script that runs already, until the deadline at most. Where no such child can be had (namespaces that may not be
//! entered, no `/proc` in the target's root), two files of random names in a folder of the target take its place, and are
//! unlinked with the guard.

#![expect(
    unsafe_code,
    reason = "descriptors are handed through an exec, which std has no safe way to do"
)]

mod child;
mod files;
mod folders;
mod sight;
mod withdraw;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sched::CloneFlags;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, OFlags};

pub use child::carrier_main;
use files::Files;
pub use files::sweep;
pub(crate) use files::{in_use, is_ours, remove};
pub use sight::Reached;
use sight::Sight;

use crate::procfs::Status;
use crate::signals::{is_consumable, send_back};
use crate::write::{RequestSlot, remaining};
use crate::{Error, Process};

/// The least number a carrier's descriptor has, so that a stale request meets no other file.
pub const LEAST_DESCRIPTOR: u32 = 256;
/// Numbers below this cost a descriptor table of at most 512 KiB.
const MOST_DESCRIPTOR: u32 = 65_536;
/// How long a carrier may take to say that it is there.
const START: Duration = Duration::from_secs(5);
/// What a carrier is told when nothing is armed any more.
const GOODBYE: [u8; 24] = [0; 24];
/// How it begins what a carrier is told when the target is to get a signal that a script consumed: no process id. The
/// signal's number follows.
const SIGNAL: u64 = u64::MAX;
/// The most folders that a message names.
const MOST_TOLD: usize = 8;
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
        "it cannot become uid {uid}, gid {gid}, which needs CAP_SETUID and CAP_SETGID or a sidecar that runs as them"
    )]
    Identity {
        /// The target's file system uid.
        uid: u32,
        /// The target's file system gid.
        gid: u32,
    },
    /// The child cannot stand where the target looks.
    #[error("{0}")]
    Unseen(&'static str),
    /// Neither way is open.
    #[error(
        "no way to hand a script to process {pid}. Memory of a process beside it: {child}. A file in the target: {folders}. \
         Mount a folder into its container that its user can write, for example an emptyDir volume on /tmp"
    )]
    NoWay {
        /// The process.
        pid: i32,
        /// Why there is no child.
        child: String,
        /// Why there is no file, for each folder.
        folders: String,
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
    sight: Option<Sight>,
    holder: Holder,
}

/// Who has ended, of a target and the child that carries a script into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// Neither.
    Nobody,
    /// The target.
    Process,
    /// The child.
    Carrier,
}

#[derive(Debug)]
enum Holder {
    Child { child: Child, control: UnixStream },
    Files(Files),
}

impl Carrier {
    /// Prepares the way of a script of at most `size` bytes into the process. The carrier lives until `deadline` should
    /// this process be killed.
    ///
    /// # Errors
    /// [`CarrierError`]; nothing is left behind.
    pub fn start(process: &Process, deadline: Instant, size: u64) -> Result<Self, CarrierError> {
        let status = process.status()?;
        let refused = match Self::child(process, &status, deadline) {
            Ok(carrier) => return Ok(carrier),
            Err(error @ CarrierError::Process(Error::Gone { .. })) => return Err(error),
            Err(error) => error,
        };
        Self::in_folder_or(process, &status, size, &told(&refused))
    }

    /// The same with files in a folder of the target, for one that may not open the memory of another process.
    ///
    /// # Errors
    /// [`CarrierError`]; nothing is left behind.
    pub fn start_in_folder(process: &Process, size: u64) -> Result<Self, CarrierError> {
        let status = process.status()?;
        Self::in_folder_or(process, &status, size, "the target could not open it")
    }

    fn in_folder_or(
        process: &Process,
        status: &Status,
        size: u64,
        refused: &str,
    ) -> Result<Self, CarrierError> {
        match files::make(process, status, size) {
            Ok(made) => Ok(Self {
                sight: Sight::of(&made.script),
                script: made.script,
                result: made.result,
                script_path: made.paths.0,
                result_path: made.paths.1,
                holder: Holder::Files(made.files),
            }),
            Err(_) if !process.alive() => Err(Error::Gone { pid: process.pid() }.into()),
            Err(closed) => Err(CarrierError::NoWay {
                pid: process.ns_pid(),
                child: refused.to_owned(),
                folders: listed(&closed),
            }),
        }
    }

    /// How many bytes the result may have, where that is not as many as there is memory.
    pub fn room(&self) -> Option<u64> {
        match &self.holder {
            Holder::Child { .. } => None,
            Holder::Files(files) => Some(files.room()),
        }
    }

    /// Whether it is files in a folder of the target.
    pub fn is_in_folder(&self) -> bool {
        matches!(self.holder, Holder::Files(_))
    }

    fn child(process: &Process, status: &Status, deadline: Instant) -> Result<Self, CarrierError> {
        let birth = Birth::beside(process)?;
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
        let memory = process.open_memory(OFlags::RDWR).ok();
        let inherited = [
            Some(script.as_raw_fd()),
            Some(result.as_raw_fd()),
            Some(theirs.as_raw_fd()),
            Some(process.pidfd().as_raw_fd()),
            memory.as_ref().map(AsRawFd::as_raw_fd),
            birth.user.as_ref().map(AsRawFd::as_raw_fd),
        ];
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("carrier")
            .args(inherited.map(|fd| fd.map_or_else(|| "-".to_owned(), |fd| fd.to_string())))
            .args([
                uid.to_string(),
                gid.to_string(),
                format!("[{}]", groups.join(",")),
            ])
            .arg(remaining(deadline).as_millis().to_string())
            .env_clear()
            .current_dir("/")
            // What is typed at the sidecar's terminal is not for it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: fcntl is async-signal-safe, and the array was copied into the closure.
        unsafe {
            command.pre_exec(move || {
                for fd in inherited.into_iter().flatten() {
                    if libc::fcntl(fd, libc::F_SETFD, 0) == -1 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let mut child = match &birth.pid {
            // Where children are born is a property of the thread, which ends at once.
            Some(namespace) => std::thread::scope(|scope| {
                scope
                    .spawn(|| {
                        nix::sched::setns(namespace, CloneFlags::CLONE_NEWPID)
                            .map_err(io::Error::from)?;
                        command.spawn()
                    })
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
            })
            .map_err(io_error("start it in the target's PID namespace"))?,
            None => command.spawn().map_err(io_error("start it"))?,
        };
        drop(theirs);
        match greeting(&control, (uid, gid)).and_then(|(pid, script_fd, result_fd)| {
            seen_by(process, pid, &child)?;
            Ok((
                format!("/proc/{pid}/fd/{script_fd}"),
                format!("/proc/{pid}/fd/{result_fd}"),
            ))
        }) {
            Ok((script_path, result_path)) => Ok(Self {
                sight: Sight::of(&script),
                script,
                result,
                script_path,
                result_path,
                holder: Holder::Child { child, control },
            }),
            Err(error) => {
                end(&mut child, &control);
                Err(error)
            }
        }
    }

    /// The script's path as the target sees it.
    pub fn script_path(&self) -> &str {
        &self.script_path
    }

    /// The result's path as the target sees it.
    pub fn result_path(&self) -> &str {
        &self.result_path
    }

    /// Takes the script's text away; whether nobody had opened it by then, so that it has not run and will not.
    pub fn take_away(&self) -> bool {
        self.load(&[]).is_ok() && self.reached() == Some(Reached::Nothing)
    }

    /// How far anybody has come with the script's file, which is the target; `None` where that could not be watched.
    pub fn reached(&self) -> Option<Reached> {
        self.sight.as_ref().map(Sight::reached)
    }

    /// The result as far as it has been written. The target can write anything into it.
    pub fn result(&self) -> &File {
        &self.result
    }

    /// Waits until the process has ended, or the child that carries the script, at most for `limit`.
    ///
    /// Without that child a thread that accepts a request finds no file, and a script cannot write its result.
    pub fn wait(&self, process: &Process, limit: Duration) -> Gone {
        let Holder::Child { control, .. } = &self.holder else {
            return if process.wait_exit(limit) {
                Gone::Process
            } else {
                Gone::Nobody
            };
        };
        let pidfd = process.pidfd();
        // It never says a word after its first: only the end of its side is waited for.
        let mut fds = [
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::new(control, PollFlags::empty()),
        ];
        let limit = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let _ = rustix::event::poll(&mut fds, Some(&limit));
        let [process, carrier] = fds.map(|fd| !fd.revents().is_empty());
        match (process, carrier) {
            (true, _) => Gone::Process,
            (false, true) => Gone::Carrier,
            (false, false) => Gone::Nobody,
        }
    }

    /// Puts the text that the target will run in its place.
    ///
    /// # Errors
    /// What the kernel said, for example that memory is short.
    pub fn load(&self, text: &[u8]) -> io::Result<()> {
        self.script.write_all_at(text, 0)?;
        // What was there may have been longer, and more room may have been set aside.
        self.script.set_len(text.len() as u64)
    }

    /// Sends the target a signal that it should have had and that a script consumed. As its own user: the sidecar may
    /// lack `CAP_KILL`.
    ///
    /// # Errors
    /// What the kernel said; `InvalidInput` for a number that is none, and for signals that nobody can consume
    /// ([`is_consumable`]).
    pub fn signal(&self, process: &Process, number: u8) -> io::Result<()> {
        match &self.holder {
            Holder::Child { control, .. } if is_consumable(number) => {
                (&*control).write_all(&message([SIGNAL, u64::from(number), 0]))
            }
            _ => send_back(process.pidfd(), number),
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
        (&*control).write_all(&message([pid, slot.pending.0, slot.path.0]))
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        match &mut self.holder {
            Holder::Child { child, control } => end(child, control),
            // They go with their own guard.
            Holder::Files(_) => {}
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

/// Where a child has to be born to stand where the target looks.
struct Birth {
    /// The PID namespace, where it is another one.
    pid: Option<File>,
    /// The user namespace to enter, where it is another one: a process may look into those of its own alone.
    user: Option<File>,
}

impl Birth {
    fn beside(process: &Process) -> Result<Self, CarrierError> {
        let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).ok();
        let same = |kind: &str| {
            let target = process.namespace(kind).map(std::path::PathBuf::from);
            target.is_some() && target == own(kind)
        };
        let open = |path: &str, what: &'static str| {
            process
                .openat(path, OFlags::RDONLY)
                .map_err(io_error(what))
                .map(Some)
        };
        // The target looks its files up in the /proc of its own root: that of its PID namespace, or of ours.
        let shows = |pid: i32| {
            started_at(process, pid).is_some_and(|started| started == process.start_time())
        };
        let pid = if shows(process.pid()) {
            None
        } else if shows(process.ns_pid()) && !same("pid") {
            open("ns/pid", "open the target's PID namespace")?
        } else {
            return Err(CarrierError::Unseen(
                "no /proc of its PID namespace is mounted in the target's root",
            ));
        };
        let user = if same("user") {
            None
        } else {
            open("ns/user", "open the target's user namespace")?
        };
        Ok(Self { pid, user })
    }
}

/// When a process of this number started, in the `/proc` of the target's root.
fn started_at(process: &Process, pid: i32) -> Option<u64> {
    let mut text = Vec::new();
    process
        .in_root(&format!("/proc/{pid}/stat"), OFlags::RDONLY)
        .and_then(|file| file.take(4096).read_to_end(&mut text))
        .ok()?;
    Some(crate::procfs::stat(&text)?.start_time)
}

/// The child's number in its own namespace and those of its two descriptors.
fn greeting(control: &UnixStream, ids: (u32, u32)) -> Result<(i32, u64, u64), CarrierError> {
    let mut hello = [0; 24];
    let mut control = control;
    control
        .read_exact(&mut hello)
        .map_err(io_error("hear from it"))?;
    let [pid, script, result] = words(&hello);
    match i32::try_from(pid) {
        Ok(0) => Err(child::Stage::error(script, result, ids)),
        Ok(pid) => Ok((pid, script, result)),
        Err(error) => Err(io_error("hear from it")(io::Error::other(error))),
    }
}

/// Whether the `/proc` in the target's root shows this child of ours under that number.
fn seen_by(process: &Process, pid: i32, child: &Child) -> Result<(), CarrierError> {
    let started = i32::try_from(child.id())
        .ok()
        .and_then(|id| Process::open(id).ok())
        .map(|child| child.start_time());
    if started.is_some() && started_at(process, pid) == started {
        Ok(())
    } else {
        Err(CarrierError::Unseen(
            "the /proc in the target's root does not show it",
        ))
    }
}

/// An error and what caused it.
fn told(error: &CarrierError) -> String {
    match error {
        CarrierError::Io { what, source } => format!("cannot {what}: {}", plain(source)),
        other => other.to_string(),
    }
}

/// Why each folder was of no use, but for those that are not there under a name that only some have.
fn listed(closed: &[files::Closed]) -> String {
    let mut told: Vec<String> = closed
        .iter()
        .filter(|(_, error)| error.kind() != io::ErrorKind::NotADirectory)
        .map(|(folder, error)| format!("{folder}: {}", plain(error)))
        .collect();
    let more = told.len().saturating_sub(MOST_TOLD);
    told.truncate(MOST_TOLD);
    if more > 0 {
        told.push(format!("{more} more folders"));
    }
    told.join(", ")
}

/// What the kernel said, in the middle of a sentence.
fn plain(error: &io::Error) -> String {
    let text = match error.raw_os_error() {
        Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_owned(),
        None => error.to_string(),
    };
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(letters).collect()
    })
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

/// What is said between a sidecar and its carrier: three words.
fn message(words: [u64; 3]) -> [u8; 24] {
    let mut bytes = [0; 24];
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut out = [0; N];
    for (word, bytes) in out.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = bytes.try_into().map_or(0, u64::from_le_bytes);
    }
    out
}
