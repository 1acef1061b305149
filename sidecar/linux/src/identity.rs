//! Acting on files as somebody else.
//!
//! A sidecar with `attach: Ptrace` is root without `CAP_DAC_OVERRIDE`: what only the target's user may open or make, it
//! opens and makes as that user. Such an identity belongs to one thread:
//! <https://man7.org/linux/man-pages/man7/credentials.7.html>.

use std::io;

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::procfs::Status;

/// Whose rights count when files are opened and made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Identity {
    /// That of a process.
    pub(crate) fn of(status: &Status) -> Self {
        Self {
            uid: status.uids[3],
            gid: status.gids[3],
            groups: status.groups.clone(),
        }
    }

    /// That of a user alone.
    pub(crate) fn user(uid: u32) -> Self {
        Self {
            uid,
            gid: nix::unistd::getegid().as_raw(),
            groups: Vec::new(),
        }
    }

    /// The user id.
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// Does something to files as this user, as far as that may be done: without `CAP_SETUID` it is done as ourselves.
    /// Takes no other right away than those over files.
    ///
    /// # Errors
    /// When there can be no thread to do it in.
    pub(crate) fn act<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let ours = nix::unistd::geteuid().as_raw() == self.uid
            && nix::unistd::getegid().as_raw() == self.gid;
        if ours {
            return Ok(work());
        }
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("as another".to_owned())
                .spawn_scoped(scope, || {
                    let groups: Vec<_> = self
                        .groups
                        .iter()
                        .map(|group| rustix::thread::Gid::from_raw(*group))
                        .collect();
                    // These say nothing of failing; what cannot be done then says so itself.
                    let _ = rustix::thread::set_thread_groups(&groups);
                    setfsgid(Gid::from_raw(self.gid));
                    setfsuid(Uid::from_raw(self.uid));
                    work()
                })?
                .join()
                .map_err(|_| io::Error::other("the thread ended"))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_file_is_made_as_another_user_where_that_may_be() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(
            folder.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o1777),
        )
        .unwrap();
        let identity = Identity {
            uid: 4711,
            gid: 4712,
            groups: vec![4713],
        };
        let made = identity
            .act(|| std::fs::File::create(folder.path().join("file")))
            .unwrap()
            .unwrap();
        let owner = made.metadata().unwrap();
        if nix::unistd::geteuid().is_root() {
            assert_eq!((owner.uid(), owner.gid()), (4711, 4712));
        } else {
            assert_eq!(owner.uid(), nix::unistd::geteuid().as_raw());
        }
        // Nobody else has become that user.
        let made = std::fs::File::create(folder.path().join("other")).unwrap();
        assert_eq!(
            made.metadata().unwrap().uid(),
            nix::unistd::geteuid().as_raw()
        );
    }
}
