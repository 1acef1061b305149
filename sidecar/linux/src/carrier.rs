//! Carries a script into a target and its result out, with nothing on the target's file system.
//!
//! A child with exactly the target's identity and no capability holds two memfds; the target opens them as
//! `/proc/<child>/fd/<n>`. When its sidecar is killed it takes the request back at once where it may, and stays for a
//! script that runs already, until the deadline at most. Where no such child can be had (namespaces that may not be
//! entered, no `/proc` in the target's root), two files of random names in a folder of the target take the memfds' place, and
//! are unlinked with the guard, or by the child.

#![expect(
    unsafe_code,
    reason = "descriptors are handed through an exec, which std has no safe way to do"
)]

mod birth;
mod child;
mod error;
mod files;
mod folders;
mod keeper;
mod sight;
mod withdraw;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;

use birth::{Birth, seen_by};
pub use child::carrier_main;
pub use error::CarrierError;
use error::{io_error, listed, told};
use files::Files;
pub use files::sweep;
pub(crate) use files::{in_use, is_ours, remove};
use keeper::{Keeper, Kept};
pub use sight::Reached;
use sight::Sight;

use crate::procfs::Status;
use crate::signals::{is_consumable, send_back};
use crate::write::RequestSlot;
use crate::{Error, Process};

/// The least number a carrier's descriptor has, so that a stale request meets no other file.
pub const LEAST_DESCRIPTOR: u32 = 256;
/// Numbers below this cost a descriptor table of at most 512 KiB.
const MOST_DESCRIPTOR: u32 = 65_536;
/// What a carrier is told when nothing is armed any more.
const GOODBYE: [u8; 24] = [0; 24];
/// How it begins what a carrier is told when the target is to get a signal that a script consumed: no process id. The
/// signal's number follows.
const SIGNAL: u64 = u64::MAX;
/// How a result ends: the record that says so. The wrapper writes it last.
const END_RECORD: [u8; 9] = *b"F\0\0\0\0\0\0\0\0";

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
    /// The script is in the child.
    Child(Keeper),
    /// The script is in files. Without a child they are left to the next sidecar when this one is killed.
    Files {
        // Before the files, which it would unlink.
        keeper: Option<Keeper>,
        files: Files,
    },
}

impl Carrier {
    /// Prepares the way of a script of at most `size` bytes into the process, which is asked for only where room has to be
    /// set aside. The carrier lives until `deadline` should this process be killed.
    ///
    /// # Errors
    /// [`CarrierError`]; nothing is left behind.
    pub fn start(
        process: &Process,
        deadline: Instant,
        size: impl FnOnce() -> u64,
    ) -> Result<Self, CarrierError> {
        let status = process.status()?;
        let refused = match Self::child(process, &status, deadline) {
            Ok(carrier) => return Ok(carrier),
            Err(error @ CarrierError::Process(Error::Gone { .. })) => return Err(error),
            Err(error) => error,
        };
        Self::in_folder_or(process, &status, deadline, size(), &told(&refused))
    }

    /// The same with files in a folder of the target, for one that may not open the memory of another process.
    ///
    /// # Errors
    /// [`CarrierError`]; nothing is left behind.
    pub fn start_in_folder(
        process: &Process,
        deadline: Instant,
        size: u64,
    ) -> Result<Self, CarrierError> {
        let status = process.status()?;
        let refused = "the target could not open it";
        Self::in_folder_or(process, &status, deadline, size, refused)
    }

    fn in_folder_or(
        process: &Process,
        status: &Status,
        deadline: Instant,
        size: u64,
        refused: &str,
    ) -> Result<Self, CarrierError> {
        let made = match files::make(process, status, size) {
            Ok(made) => made,
            Err(_) if !process.alive() => {
                return Err(Error::Gone { pid: process.pid() }.into());
            }
            Err(closed) => {
                return Err(CarrierError::NoWay {
                    pid: process.ns_pid(),
                    child: refused.to_owned(),
                    folders: listed(&closed),
                });
            }
        };
        let kept = Kept {
            script: &made.script,
            result: &made.result,
            folder: Some(made.files.folder()),
        };
        let keeper = Keeper::start(process, status, deadline, &Birth::default(), &kept);
        Ok(Self {
            sight: Sight::of(&made.script),
            script: made.script,
            result: made.result,
            script_path: made.paths.0,
            result_path: made.paths.1,
            holder: Holder::Files {
                keeper: keeper.ok().map(|(keeper, _)| keeper),
                files: made.files,
            },
        })
    }

    /// How many bytes the result may have, where that is not as many as there is memory.
    pub fn room(&self) -> Option<u64> {
        match &self.holder {
            Holder::Child(_) => None,
            Holder::Files { files, .. } => Some(files.room()),
        }
    }

    /// Whether it is files in a folder of the target.
    pub fn is_in_folder(&self) -> bool {
        matches!(self.holder, Holder::Files { .. })
    }

    fn child(process: &Process, status: &Status, deadline: Instant) -> Result<Self, CarrierError> {
        let birth = Birth::beside(process)?;
        let script = memfd("sidewinder-script")?;
        let result = memfd("sidewinder-result")?;
        let kept = Kept {
            script: &script,
            result: &result,
            folder: None,
        };
        let (keeper, greeting) = Keeper::start(process, status, deadline, &birth, &kept)?;
        seen_by(process, greeting.pid, keeper.child())?;
        let path = |fd: u64| format!("/proc/{}/fd/{fd}", greeting.pid);
        Ok(Self {
            sight: Sight::of(&script),
            script,
            result,
            script_path: path(greeting.script),
            result_path: path(greeting.result),
            holder: Holder::Child(keeper),
        })
    }

    fn keeper(&self) -> Option<&Keeper> {
        match &self.holder {
            Holder::Child(keeper) => Some(keeper),
            Holder::Files { keeper, .. } => keeper.as_ref(),
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

    /// Whether the script has written the last record of its result.
    pub fn is_finished(&self) -> bool {
        child::finished(&self.result)
    }

    /// Waits until the process has ended, or the child that carries the script, at most for `limit`.
    ///
    /// Without that child a thread that accepts a request finds no file, and a script cannot write its result.
    pub fn wait(&self, process: &Process, limit: Duration) -> Gone {
        let Holder::Child(keeper) = &self.holder else {
            return if process.wait_exit(limit) {
                Gone::Process
            } else {
                Gone::Nobody
            };
        };
        let pidfd = process.pidfd();
        let mut fds = [
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::new(keeper.control(), PollFlags::empty()),
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
        match self.keeper() {
            Some(keeper) if is_consumable(number) => keeper.signal(number),
            _ => send_back(process.pidfd(), number),
        }
    }

    /// Tells the carrier what to take back should this process be killed.
    ///
    /// # Errors
    /// When the carrier has ended.
    pub fn will_arm(&self, slot: RequestSlot) -> io::Result<()> {
        match &self.holder {
            Holder::Child(keeper) => keeper.will_arm(slot),
            Holder::Files { keeper, .. } => {
                // The target finds its script without it.
                let _ = keeper.as_ref().map(|keeper| keeper.will_arm(slot));
                Ok(())
            }
        }
    }
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
