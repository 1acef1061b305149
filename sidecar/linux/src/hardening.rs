//! What keeps the agent from being a way into the pod, and from taking the application's memory.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// Asks the kernel to end this process before any other when memory is short: an ephemeral container's memory counts
/// against its pod, and in a Guaranteed pod its score would be the application's.
/// <https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html>
///
/// Raising the score needs no privilege; where it is refused all the same the process goes on.
pub fn be_first_to_go() {
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
}

/// Room for descriptors: a target may have a thousand Python processes, each of which takes two, and containerd 2 starts
/// containers with a soft limit of 1024.
const DESCRIPTORS: u64 = 1 << 16;

/// Raises the soft limit of open files as far as is needed and allowed. A target may be more processes than that; those
/// are then not all looked at.
pub fn allow_descriptors() {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    if soft < DESCRIPTORS.min(hard) {
        // Below the hard limit it is always allowed.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS.min(hard), hard);
    }
}

/// Has every large piece of memory mapped by itself, so that it goes back to the kernel when it is freed and grows
/// without a copy. Otherwise the allocator begins to keep pieces as large as the largest one that was ever freed:
/// `M_MMAP_THRESHOLD`, `mallopt(3)`.
#[cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "no crate wraps mallopt")
)]
pub fn map_large_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and is called before there is a second thread.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

/// Gives memory that is no longer used back to the kernel: after a large answer the allocator would keep tens of
/// megabytes, which count against the pod. `malloc_trim(3)`; elsewhere than on glibc nothing is kept.
#[cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "no crate wraps malloc_trim")
)]
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and may be called by any thread at any time.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Makes this process closed to ptrace and to `/proc/PID/{mem,fd,root}` of everybody without `CAP_SYS_PTRACE`, so that
/// a process of the same uid in the pod cannot enter it. `PR_SET_DUMPABLE`, prctl(2).
///
/// # Errors
/// What prctl(2) says.
pub fn refuse_inspection() -> io::Result<()> {
    Ok(nix::sys::prctl::set_dumpable(false)?)
}

/// Why a peer of the agent's socket is refused.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The kernel would not say who it is.
    #[error("failed to learn who connected")]
    Io(#[from] io::Error),
    /// It runs as somebody else.
    #[error("the peer runs as uid {0}, not as ours")]
    Uid(u32),
    /// It runs in another container.
    #[error("process {0} runs in another container")]
    Container(i32),
    /// It runs another program.
    #[error("process {0} runs another program")]
    Program(i32),
}

/// Accepts a peer only when it runs as our uid, in our container (the same cgroup) and is our executable.
///
/// A peer that has closed itself to inspection hides its executable from an agent without `CAP_SYS_PTRACE`; it is then
/// known by uid and container, into which nothing but the operator's exec leads.
///
/// # Errors
/// [`PeerError`] says what did not match.
pub fn check_peer(stream: &UnixStream) -> Result<(), PeerError> {
    let peer = getsockopt(stream, PeerCredentials).map_err(io::Error::from)?;
    if peer.uid() != nix::unistd::geteuid().as_raw() {
        return Err(PeerError::Uid(peer.uid()));
    }
    let pid = peer.pid();
    if fs::read(format!("/proc/{pid}/cgroup"))? != fs::read("/proc/self/cgroup")? {
        return Err(PeerError::Container(pid));
    }
    let own = fs::metadata("/proc/self/exe")?;
    match fs::metadata(format!("/proc/{pid}/exe")) {
        Ok(theirs) if (theirs.dev(), theirs.ino()) == (own.dev(), own.ino()) => Ok(()),
        Ok(_) => Err(PeerError::Program(pid)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_to_take_this_process_first() {
        // The kernel refuses to lower it again without a capability, so this is the only test that may change it.
        be_first_to_go();
        let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        assert_eq!(score.trim(), "1000");
    }
}
