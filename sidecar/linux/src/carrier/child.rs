//! The child that holds a script for its target: the hidden `carrier` command.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::thread::{CapabilitySet, CapabilitySets};
use sidewinder_decode::Addr;

use super::error::CarrierError;
use super::files::{names, unlink};
use super::{
    END_RECORD, GOODBYE, LEAST_DESCRIPTOR, MOST_DESCRIPTOR, SIGNAL, message, random, words,
};
use crate::pinned::Pinned;
use crate::signals::send_back;

/// How long after its sidecar was killed a carrier waits for a script's first word: the thread may have accepted the
/// request and wait for the GIL.
const FIRST_SIGN: Duration = Duration::from_secs(10);

/// The room that an interpreter has for a path, `MAX_SCRIPT_PATH_SIZE`.
const PATH_BYTES: usize = 512;

/// What the hidden `carrier` command is told; everything is a number.
#[derive(Debug, PartialEq, Eq)]
struct Orders {
    descriptors: [RawFd; 4],
    memory: Option<RawFd>,
    user_namespace: Option<RawFd>,
    /// Where script and result lie as files, and the number in their names.
    folder: Option<RawFd>,
    id: u64,
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
        user_namespace,
        folder,
        id,
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
        memory: optional(memory).ok()?,
        user_namespace: optional(user_namespace).ok()?,
        folder: optional(folder).ok()?,
        id: id.parse().ok()?,
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
            .chain(&orders.user_namespace)
            .chain(&orders.folder)
            .all(|fd| *fd > 2)
    })
}

/// A number, or `-` for none.
fn optional(text: &str) -> Result<Option<RawFd>, std::num::ParseIntError> {
    match text {
        "-" => Ok(None),
        number => number.parse().map(Some),
    }
}

/// How far a child has come on its way to its target's identity.
#[derive(Clone, Copy)]
pub(super) enum Stage {
    Identity = 1,
    Namespace,
    Descriptors,
}

impl Stage {
    /// What a child says in place of its greeting: no process id, where it failed and what the kernel said.
    fn farewell(self, error: &io::Error) -> [u8; 24] {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        message([0, self as u64, u64::from(errno.unsigned_abs())])
    }

    /// What it said.
    pub(super) fn error(stage: u64, errno: u64, (uid, gid): (u32, u32)) -> CarrierError {
        let source = io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(libc::EIO));
        let what = if stage == Self::Identity as u64 {
            return CarrierError::Identity { uid, gid };
        } else if stage == Self::Namespace as u64 {
            "have it enter the target's user namespace"
        } else {
            "have it hold the script"
        };
        CarrierError::Io { what, source }
    }
}

/// The hidden `carrier` command. It takes nothing but what [`super::Carrier::start`] passes on.
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
    for fd in orders
        .descriptors
        .into_iter()
        .chain(orders.memory)
        .chain(orders.user_namespace)
        .chain(orders.folder)
    {
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
    let [memory, user_namespace, folder] = [orders.memory, orders.user_namespace, orders.folder]
        .map(|fd| fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
    let memory = memory.map(|memory| Arc::new(File::from(memory)));
    let mut control = UnixStream::from(control);
    let settled = take_identity(orders)
        // Files are found whoever we are.
        .or_else(|error| folder.as_ref().map(|_| ()).ok_or(error))
        .map_err(|error| (Stage::Identity, error))
        .and_then(|()| enter(user_namespace.as_ref()).map_err(|error| (Stage::Namespace, error)))
        .and_then(|()| {
            let moved = move_high(&script).and_then(|script| Ok((script, move_high(&result)?)));
            moved.map_err(|error| (Stage::Descriptors, error))
        });
    let (script, result) = match settled {
        Ok((script, result)) => (script, File::from(result)),
        Err((stage, error)) => {
            control.write_all(&stage.farewell(&error))?;
            return Err(error);
        }
    };
    let mut message = message([
        u64::from(std::process::id()),
        u64::try_from(script.as_raw_fd()).unwrap_or_default(),
        u64::try_from(result.as_raw_fd()).unwrap_or_default(),
    ]);
    control.write_all(&message)?;
    let mut request: Option<[u64; 3]> = None;
    while control.read_exact(&mut message).is_ok() {
        if message == GOODBYE {
            return Ok(());
        }
        match words(&message) {
            [SIGNAL, number, _] => {
                let _ = u8::try_from(number).map(|number| send_back(&pidfd, number));
            }
            words => request = Some(words),
        }
    }
    // The sidecar is gone: whoever ends a carrier in good order says goodbye. Nobody waits for what would start now.
    let ours = match folder {
        Some(_) => format!("/{}", names(orders.id)[0]),
        None => format!("/proc/{}/fd/{}", std::process::id(), script.as_raw_fd()),
    };
    let is_ours = |path: &[u8]| match folder {
        Some(_) => path.ends_with(ours.as_bytes()),
        None => path == ours.as_bytes(),
    };
    let withdraw = || {
        if let Some([pid, pending, path]) = request
            && let Ok(pid) = i32::try_from(pid)
            && !ended(&pidfd)
        {
            let target = Pinned::new(pid, memory.clone());
            return take_back(&target, Addr(pending), Addr(path), is_ours);
        }
        false
    };
    let mut taken = withdraw();
    // What the thread had accepted by then finds its file, and has a place for its result.
    let accepted = Instant::now() + FIRST_SIGN;
    while request.is_some()
        && !taken
        && !ended(&pidfd)
        && !finished(&result)
        && Instant::now() < end_of_life
        && (Instant::now() < accepted || result.metadata().is_ok_and(|meta| meta.len() > 0))
    {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        let _ = rustix::event::poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            }),
        );
        taken = withdraw();
    }
    if let Some(folder) = folder {
        unlink(folder, orders.id);
    }
    Ok(())
}

/// The target's user and groups.
fn take_identity(orders: &Orders) -> io::Result<()> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let (uid, gid) = (Uid::from_raw(orders.uid), Gid::from_raw(orders.gid));
    let groups: Vec<Gid> = orders.groups.iter().copied().map(Gid::from_raw).collect();
    // Without CAP_SETGID the groups stay as they are; only the ids decide who may look at us.
    let _ = setgroups(&groups);
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}

/// Enters the target's user namespace where that is another one, which its owner may do (`user_namespaces(7)`), and gives
/// up every capability.
fn enter(user_namespace: Option<&OwnedFd>) -> io::Result<()> {
    if let Some(namespace) = user_namespace {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWUSER)?;
    }
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

/// Whether the result's last record says that the script has ended.
pub(super) fn finished(result: &File) -> bool {
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

/// Takes a request back as the sidecar would have done it; whether one that is ours waited there, and does not any more.
/// Without the right to, nothing happens.
fn take_back(target: &Pinned, pending: Addr, path: Addr, is_ours: impl Fn(&[u8]) -> bool) -> bool {
    let mut flag = [0; 4];
    let mut there = [0; PATH_BYTES];
    if target.read(pending, &mut flag).is_err()
        || flag == [0; 4]
        || target.read(path, &mut there).is_err()
    {
        return false;
    }
    let text = there.split(|byte| *byte == 0).next();
    text.is_some_and(is_ours) && target.write(pending, &[0; 4]).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::memfd;
    use super::*;

    fn args(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn orders_are_numbers_or_refused() {
        let read = orders(&args("5 6 7 8 - - - 0 1000 1001 [4,27] 30000")).unwrap();
        assert_eq!((read.descriptors, read.memory), ([5, 6, 7, 8], None));
        assert_eq!((read.uid, read.gid, read.groups), (1000, 1001, vec![4, 27]));
        assert_eq!(read.lifetime, Duration::from_secs(30));
        assert_eq!(
            orders(&args("5 6 7 8 9 10 11 77 0 0 [] 1")).unwrap().groups,
            Vec::<u32>::new()
        );
        assert_eq!(orders(&args("0 6 7 8 - - - 0 0 0 [] 1")), None);
        assert_eq!(orders(&args("5 6 7 8 - - - 0 root 0 [] 1")), None);
        assert_eq!(orders(&args("5 6 7 8 9 - - 0 0 0 [x] 1")), None);
        assert_eq!(orders(&args("5 6 7 8 9 - 2 0 0 0 [] 1")), None);
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
