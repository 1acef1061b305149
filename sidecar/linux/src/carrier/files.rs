//! The way of a script where no child can hold it: two files of random names in a folder of the target.
//!
//! They are locked (flock(2)) for as long as their sidecar lives, so that whoever comes after a killed one can tell its
//! files from those in use.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

use super::random;
use crate::Process;
use crate::procfs::Status;

/// How the names begin.
const PREFIX: &str = ".sidewinder-";
/// Where files may lie in the target, in the order they are tried.
const FOLDERS: [&str; 3] = ["/dev/shm", "/tmp", "/var/tmp"];
/// How old a file is that nobody locks before it counts as left behind: long after its maker has locked it.
const SETTLED: Duration = Duration::from_secs(5);
/// The most entries of a folder that are looked at. The target can make as many as it likes.
const MAX_ENTRIES: usize = 10_000;

/// Two files in the target, unlinked on drop.
#[derive(Debug)]
pub(super) struct Files {
    dir: OwnedFd,
    names: [String; 2],
}

impl Drop for Files {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = rustix::fs::unlinkat(&self.dir, name.as_str(), AtFlags::empty());
        }
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

/// Makes the two files in the first folder that takes them, and removes what killed sidecars left there.
pub(super) fn make(process: &Process, status: &Status) -> io::Result<Made> {
    sweep(process);
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for folder in FOLDERS {
        let made = process
            .in_root(folder, OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(|dir| make_in(folder, dir.into(), status));
        match made {
            Ok(made) => return Ok(made),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn make_in(folder: &str, dir: OwnedFd, status: &Status) -> io::Result<Made> {
    let id = u64::from(random()?) << 32 | u64::from(random()?);
    let names = [
        format!("{PREFIX}{id:016x}.py"),
        format!("{PREFIX}{id:016x}.out"),
    ];
    let paths = (
        format!("{folder}/{}", names[0]),
        format!("{folder}/{}", names[1]),
    );
    let create = |name: &str, mode: u32| -> io::Result<File> {
        let fd = rustix::fs::openat(
            &dir,
            name,
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        )?;
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
        // The umask does not count here.
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
        Ok(File::from(fd))
    };
    let script = create(&names[0], 0o444);
    let result = script
        .as_ref()
        .map_err(|error| io::Error::from(error.kind()))
        .and_then(|_| create(&names[1], 0o600))
        .and_then(|result| {
            let owner = rustix::fs::Uid::from_raw(status.uids[3]);
            if rustix::process::geteuid() != owner
                && rustix::fs::fchown(&result, Some(owner), None).is_err()
            {
                rustix::fs::fchmod(&result, Mode::from_raw_mode(0o622))?;
            }
            Ok(result)
        });
    // From here on whatever was made is unlinked when something fails.
    let files = Files { dir, names };
    Ok(Made {
        files,
        script: script?,
        result: result?,
        paths,
    })
}

/// Whether a path is one that [`make`] gives.
pub(crate) fn is_ours(path: &str) -> bool {
    FOLDERS.iter().any(|folder| {
        path.strip_prefix(folder)
            .and_then(|rest| rest.strip_prefix('/'))
            .is_some_and(is_our_name)
    })
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
    let Ok(dir) = process.in_root(folder, OFlags::RDONLY | OFlags::DIRECTORY) else {
        return;
    };
    let id = name.strip_suffix(".py").unwrap_or(name);
    for name in [name.to_owned(), format!("{id}.out")] {
        let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
    }
}

/// Removes the files of sidecars that were killed.
pub fn sweep(process: &Process) {
    for folder in FOLDERS {
        if let Ok(dir) = process.in_root(folder, OFlags::RDONLY | OFlags::DIRECTORY) {
            sweep_folder(&dir);
        }
    }
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
        assert!(!is_ours("/srv/.sidewinder-0a1b2c3d4e5f6071.py"));
        assert!(!is_ours("/tmp/x/.sidewinder-0a1b2c3d4e5f6071.py"));
        assert!(!is_ours("/tmp/.sidewinder-0a1b2c3d4e5f607.py"));
        assert!(!is_ours("/tmp/.sidewinder-0a1b2c3d4e5f607/.py"));
        assert!(!is_ours("/tmp/.sidewinder-"));
    }
}
