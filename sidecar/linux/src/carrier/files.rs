//! The way of a script where no child can hold it: two files of random names in a folder of the target.
//!
//! They are locked (flock(2)) for as long as their sidecar lives, so that whoever comes after a killed one can tell its
//! files from those in use. They are made, and taken away, as the target's own user.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags};

use super::folders::folders;
use super::random;
use crate::Process;
use crate::identity::Identity;
use crate::procfs::Status;

/// How the names begin.
const PREFIX: &str = ".sidewinder-";
/// How old a file is that nobody locks before it counts as left behind: long after its maker has locked it.
const SETTLED: Duration = Duration::from_secs(5);
/// The most entries of a folder that are looked at. The target can make as many as it likes.
const MAX_ENTRIES: usize = 10_000;
/// Room that is made sure of for a result, in bytes: enough for most, and little of a container's memory.
const RESULT_ROOM: u64 = 256 << 10;
/// Room for all that a result can be, in bytes: a folder that has it is preferred.
const AMPLE_ROOM: u64 = 48 << 20;

/// Two files in the target, unlinked on drop.
#[derive(Debug)]
pub(super) struct Files {
    dir: OwnedFd,
    id: u64,
    owner: Identity,
    room: u64,
}

/// The names of a script and its result.
pub(super) fn names(id: u64) -> [String; 2] {
    [
        format!("{PREFIX}{id:016x}.py"),
        format!("{PREFIX}{id:016x}.out"),
    ]
}

/// Unlinks both.
pub(super) fn unlink(dir: impl AsFd, id: u64) {
    for name in names(id) {
        let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
    }
}

impl Files {
    /// Where they lie, and the number in their names.
    pub(super) fn folder(&self) -> (BorrowedFd<'_>, u64) {
        (self.dir.as_fd(), self.id)
    }

    /// How many bytes the result may have: there were so many, and nobody else is to miss all of them.
    pub(super) fn room(&self) -> u64 {
        RESULT_ROOM.max(self.room / 2)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = self.owner.act(|| unlink(&self.dir, self.id));
    }
}

/// What [`make`] made.
pub(super) struct Made {
    pub(super) files: Files,
    pub(super) script: File,
    pub(super) result: File,
    /// Of the script and the result, as the target sees them.
    pub(super) paths: (String, String),
}

/// A folder that did not take the files, and why.
pub(super) type Closed = (String, io::Error);

/// Makes the two files in the first folder that takes them, with room for a script of `size` bytes, and removes what
/// killed sidecars left there.
pub(super) fn make(process: &Process, status: &Status, size: u64) -> Result<Made, Vec<Closed>> {
    let owner = Identity::of(status);
    let mut closed = Vec::new();
    let mut narrow = Vec::new();
    for folder in folders(process) {
        let opened = owner.act(|| {
            let dir = process.in_root(&folder, OFlags::RDONLY | OFlags::DIRECTORY)?;
            sweep_folder(&dir);
            let space = rustix::fs::fstatvfs(&dir)?;
            Ok((dir, space.f_bavail.saturating_mul(space.f_frsize)))
        });
        match opened.flatten() {
            Ok((dir, room)) if room < AMPLE_ROOM => narrow.push((folder, dir, room)),
            Ok((dir, room)) => match make_in(&folder, dir.into(), &owner, size, room) {
                Ok(made) => return Ok(made),
                Err(error) => closed.push((folder, error)),
            },
            Err(error) => closed.push((folder, error)),
        }
    }
    for (folder, dir, room) in narrow {
        match make_in(&folder, dir.into(), &owner, size, room) {
            Ok(made) => return Ok(made),
            Err(error) => closed.push((folder, error)),
        }
    }
    Err(closed)
}

fn make_in(folder: &str, dir: OwnedFd, owner: &Identity, size: u64, room: u64) -> io::Result<Made> {
    let id = u64::from(random()?) << 32 | u64::from(random()?);
    let folder = folder.trim_end_matches('/');
    let [script, result] = names(id);
    let paths = (format!("{folder}/{script}"), format!("{folder}/{result}"));
    // From here on whatever was made is unlinked when something fails.
    let files = Files {
        dir,
        id,
        owner: owner.clone(),
        room: room.saturating_sub(size),
    };
    let (script, result) = owner.act(|| {
        let script = create(files.dir.as_fd(), &script, 0o444, size)?;
        let result = create(files.dir.as_fd(), &result, 0o600, RESULT_ROOM)?;
        Ok::<_, io::Error>((script, result))
    })??;
    let uid = rustix::fs::Uid::from_raw(owner.uid());
    if rustix::fs::fstat(&result)?.st_uid != owner.uid()
        && rustix::fs::fchown(&result, Some(uid), None).is_err()
    {
        // Neither could it be made as the target's user nor given to it.
        rustix::fs::fchmod(&result, Mode::from_raw_mode(0o622))?;
    }
    Ok(Made {
        files,
        script,
        result,
        paths,
    })
}

fn create(dir: impl AsFd, name: &str, mode: u32, room: u64) -> io::Result<File> {
    let fd = rustix::fs::openat(
        dir,
        name,
        OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o600),
    )?;
    rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
    // The umask does not count here.
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
    match rustix::fs::fallocate(&fd, FallocateFlags::KEEP_SIZE, 0, room) {
        // A file system that cannot set room aside may have it all the same.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(File::from(fd)),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a path is one that [`make`] gives.
pub(crate) fn is_ours(path: &str) -> bool {
    path.starts_with('/')
        && path
            .rsplit_once('/')
            .is_some_and(|(_, name)| is_our_name(name))
        && !path.split('/').any(|part| part == "..")
}

fn is_our_name(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_suffix(".py").or(rest.strip_suffix(".out")))
        .is_some_and(|id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether a sidecar that lives holds the file at this path of the target. When it cannot be told, it may.
pub(crate) fn in_use(process: &Process, path: &str) -> bool {
    // Not to wait for the writer of a FIFO that the target put there.
    match process.in_root(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK) {
        Ok(file) => locked(&file),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn locked(file: &File) -> bool {
    let lock = rustix::fs::flock(file, FlockOperation::NonBlockingLockShared);
    let _ = rustix::fs::flock(file, FlockOperation::Unlock);
    lock.is_err()
}

/// Removes a script that nobody holds any more, and its result.
pub(crate) fn remove(process: &Process, script: &str) {
    let Some((folder, name)) = script.rsplit_once('/') else {
        return;
    };
    let folder = if folder.is_empty() { "/" } else { folder };
    let id = name.strip_suffix(".py").unwrap_or(name);
    as_target(process, || {
        if let Ok(dir) = process.in_root(folder, OFlags::RDONLY | OFlags::DIRECTORY) {
            for name in [name.to_owned(), format!("{id}.out")] {
                let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
            }
        }
    });
}

fn as_target(process: &Process, work: impl FnOnce() + Send) {
    if let Ok(status) = process.status() {
        let _ = Identity::of(&status).act(work);
    }
}

/// Removes the files of sidecars that were killed.
pub fn sweep(process: &Process) {
    as_target(process, || {
        for folder in folders(process) {
            if let Ok(dir) = process.in_root(&folder, OFlags::RDONLY | OFlags::DIRECTORY) {
                sweep_folder(&dir);
            }
        }
    });
}

fn sweep_folder(dir: &File) {
    let Ok(entries) = rustix::fs::Dir::read_from(dir) else {
        return;
    };
    for entry in entries.take(MAX_ENTRIES).flatten() {
        let Some(name) = entry.file_name().to_str().ok().filter(|n| is_our_name(n)) else {
            continue;
        };
        let opened = rustix::fs::openat(
            dir,
            name,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let Ok(file) = opened.map(File::from) else {
            continue;
        };
        let settled = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| {
                SystemTime::now()
                    .duration_since(modified)
                    .is_ok_and(|age| age >= SETTLED)
            });
        if settled && !locked(&file) {
            let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_form_are_ours() {
        assert!(is_ours("/dev/shm/.sidewinder-0a1b2c3d4e5f6071.py"));
        assert!(is_ours("/tmp/.sidewinder-0a1b2c3d4e5f6071.out"));
        assert!(is_ours("/.sidewinder-0a1b2c3d4e5f6071.py"));
        assert!(!is_ours("srv/.sidewinder-0a1b2c3d4e5f6071.py"));
        assert!(!is_ours("/srv/../.sidewinder-0a1b2c3d4e5f6071.py"));
        assert!(!is_ours("/tmp/.sidewinder-0a1b2c3d4e5f607.py"));
        assert!(!is_ours("/tmp/.sidewinder-0a1b2c3d4e5f607/.py"));
        assert!(!is_ours("/tmp/.sidewinder-"));
    }
}
