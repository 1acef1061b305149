//! A child that takes a request back when its sidecar is killed, as its parent sees it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sched::CloneFlags;
use rustix::fs::OFlags;

use super::birth::Birth;
use super::child::Stage;
use super::error::{CarrierError, io_error};
use super::{GOODBYE, SIGNAL, message, words};
use crate::Process;
use crate::procfs::Status;
use crate::write::{RequestSlot, remaining};

/// How long a child may take to say that it is there, and to end.
const START: Duration = Duration::from_secs(5);

/// What a child is to keep.
pub(super) struct Kept<'a> {
    pub(super) script: &'a File,
    pub(super) result: &'a File,
    /// The folder that they lie in, and the number in their names.
    pub(super) folder: Option<(BorrowedFd<'a>, u64)>,
}

/// The child; dropped, it ends and leaves everything as it is.
#[derive(Debug)]
pub(super) struct Keeper {
    child: Child,
    control: UnixStream,
    /// The target's number where the child was born.
    target: i32,
}

/// What a child says when it is there.
pub(super) struct Greeting {
    /// Its number where it was born.
    pub(super) pid: i32,
    /// The numbers of its descriptors.
    pub(super) script: u64,
    pub(super) result: u64,
}

impl Keeper {
    /// Starts a child that lives until `deadline` should this process be killed.
    pub(super) fn start(
        process: &Process,
        status: &Status,
        deadline: Instant,
        birth: &Birth,
        kept: &Kept<'_>,
    ) -> Result<(Self, Greeting), CarrierError> {
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
            Some(kept.script.as_raw_fd()),
            Some(kept.result.as_raw_fd()),
            Some(theirs.as_raw_fd()),
            Some(process.pidfd().as_raw_fd()),
            memory.as_ref().map(AsRawFd::as_raw_fd),
            birth.user.as_ref().map(AsRawFd::as_raw_fd),
            kept.folder.map(|(folder, _)| folder.as_raw_fd()),
        ];
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("carrier")
            .args(inherited.map(|fd| fd.map_or_else(|| "-".to_owned(), |fd| fd.to_string())))
            .arg(kept.folder.map_or(0, |(_, id)| id).to_string())
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
        let child = match &birth.pid {
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
        let keeper = Self {
            child,
            control,
            target: match birth.pid {
                Some(_) => process.ns_pid(),
                None => process.pid(),
            },
        };
        let greeting = keeper.greeting((uid, gid))?;
        Ok((keeper, greeting))
    }

    fn greeting(&self, ids: (u32, u32)) -> Result<Greeting, CarrierError> {
        let mut hello = [0; 24];
        (&self.control)
            .read_exact(&mut hello)
            .map_err(io_error("hear from it"))?;
        let [pid, script, result] = words(&hello);
        match i32::try_from(pid) {
            Ok(0) => Err(Stage::error(script, result, ids)),
            Ok(pid) => Ok(Greeting {
                pid,
                script,
                result,
            }),
            Err(error) => Err(io_error("hear from it")(io::Error::other(error))),
        }
    }

    /// The process.
    pub(super) fn child(&self) -> &Child {
        &self.child
    }

    /// Never says a word after its first: only the end of its side is waited for.
    pub(super) fn control(&self) -> &UnixStream {
        &self.control
    }

    /// Tells it what to take back should this process be killed.
    pub(super) fn will_arm(&self, slot: RequestSlot) -> io::Result<()> {
        let target = u64::from(self.target.unsigned_abs());
        self.tell([target, slot.pending.0, slot.path.0])
    }

    /// Has it send the target a signal.
    pub(super) fn signal(&self, number: u8) -> io::Result<()> {
        self.tell([SIGNAL, u64::from(number), 0])
    }

    fn tell(&self, words: [u64; 3]) -> io::Result<()> {
        (&self.control).write_all(&message(words))
    }
}

impl Drop for Keeper {
    /// Reaps it, so that no zombie is left to the target's pid 1. It is asked to end: without `CAP_KILL` nobody may kill a
    /// process of another user, its parent included.
    fn drop(&mut self) {
        let _ = (&self.control).write_all(&GOODBYE);
        let limit = Instant::now() + START;
        let mut pause = Duration::from_micros(100);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > limit {
                let _ = self.child.kill();
                return;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        }
    }
}
