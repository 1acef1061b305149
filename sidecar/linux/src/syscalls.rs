//! Names of the system calls a thread can be blocked in, and which of their arguments says what it waits for.

use nix::libc;
use syscalls::Sysno;

use crate::procfs::SyscallLine;

/// Which arguments are worth showing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// None.
    Nothing,
    /// The first is a descriptor.
    Descriptor,
    /// The first is a descriptor that is connected to the address at the second, as long as the third says.
    Connect,
    /// The first is a descriptor, the second says which lock on it is wanted.
    Flock,
    /// The first is a descriptor, the second a command that may want a lock on it.
    Fcntl,
    /// The first is an epoll descriptor, the fourth how many milliseconds to wait, -1 without limit.
    Epoll,
    /// The argument with this index points to a path.
    Path(usize),
    /// The first is the address of a futex.
    Futex,
    /// The first is a child's pid, -1 for any.
    Child,
    /// `waitid`: the first says what the second is.
    IdType,
    /// The first points to the second many `struct pollfd`, the third is how many milliseconds to wait.
    Poll,
    /// As [`Self::Poll`], but the third points to a time.
    Ppoll,
    /// Three sets of the second, third and fourth argument, of descriptors below the first.
    Select,
    /// The first points to how long.
    Nanosleep,
    /// A clock, flags, and a pointer to how long or until when.
    ClockNanosleep,
    /// The first points to a set of signals.
    SignalSet,
    /// The first is an id of System V.
    SystemV,
}

impl Subject {
    /// Whether what is shown stands in the target's memory.
    pub(crate) fn is_in_memory(self) -> bool {
        match self {
            Self::Connect
            | Self::Path(_)
            | Self::Poll
            | Self::Ppoll
            | Self::Select
            | Self::Nanosleep
            | Self::ClockNanosleep
            | Self::SignalSet => true,
            Self::Nothing
            | Self::Descriptor
            | Self::Flock
            | Self::Fcntl
            | Self::Epoll
            | Self::Futex
            | Self::Child
            | Self::IdType
            | Self::SystemV => false,
        }
    }
}

/// A system call by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// Its name; `None` where this program knows no such number.
    pub(crate) name: Option<&'static str>,
    pub(crate) subject: Subject,
}

/// How a wait goes on that was interrupted.
pub(crate) const RESTART: &str = "restart_syscall";

impl Call {
    /// What the registers alone say.
    pub(crate) fn detail(&self, line: &SyscallLine) -> Option<String> {
        match self.subject {
            Subject::Futex => Some(futex(&line.args)),
            _ if self.name == Some(RESTART) => {
                Some("a timed wait that was interrupted and goes on".to_owned())
            }
            _ => None,
        }
    }
}

/// The call with this number on the machine this is built for.
pub(crate) fn lookup(number: u64) -> Call {
    let name = usize::try_from(number)
        .ok()
        .and_then(Sysno::new)
        .map(|call| call.name());
    Call {
        name,
        subject: name.map_or(Subject::Nothing, subject),
    }
}

/// The number of the call of this name.
pub(crate) fn number(name: &str) -> Option<u64> {
    let call: Sysno = name.parse().ok()?;
    u64::try_from(call.id()).ok()
}

/// What is worth showing of the call of this name.
pub(crate) fn subject(name: &str) -> Subject {
    match name {
        "read" | "write" | "close" | "ioctl" | "pread64" | "pwrite64" | "readv" | "writev"
        | "preadv" | "pwritev" | "preadv2" | "pwritev2" | "sendfile" | "accept" | "accept4"
        | "sendto" | "recvfrom" | "sendmsg" | "recvmsg" | "sendmmsg" | "recvmmsg" | "fsync"
        | "fdatasync" | "sync_file_range" | "syncfs" | "fallocate" | "ftruncate" | "fstat"
        | "getdents64" | "splice" | "tee" | "vmsplice" | "copy_file_range" | "mq_timedsend"
        | "mq_timedreceive" | "io_uring_enter" | "shutdown" => Subject::Descriptor,
        "connect" => Subject::Connect,
        "flock" => Subject::Flock,
        "fcntl" => Subject::Fcntl,
        "epoll_wait" | "epoll_pwait" | "epoll_pwait2" => Subject::Epoll,
        "open" | "stat" | "lstat" | "access" | "unlink" | "rmdir" | "mkdir" | "rename"
        | "readlink" | "statfs" | "truncate" | "chdir" | "execve" => Subject::Path(0),
        "openat" | "openat2" | "newfstatat" | "statx" | "faccessat" | "faccessat2" | "unlinkat"
        | "mkdirat" | "readlinkat" | "renameat" | "renameat2" | "execveat" => Subject::Path(1),
        "futex" => Subject::Futex,
        "wait4" => Subject::Child,
        "waitid" => Subject::IdType,
        "poll" => Subject::Poll,
        "ppoll" => Subject::Ppoll,
        "select" | "pselect6" => Subject::Select,
        "nanosleep" => Subject::Nanosleep,
        "clock_nanosleep" => Subject::ClockNanosleep,
        "rt_sigtimedwait" => Subject::SignalSet,
        "semop" | "semtimedop" | "msgsnd" | "msgrcv" => Subject::SystemV,
        _ => Subject::Nothing,
    }
}

/// The call that a `restart_syscall` goes on with, as far as its registers and `wchan` tell.
///
/// A relative wait that a signal or a tracer interrupted is continued by this call, which finds what it needs in the
/// kernel; the registers still hold the arguments of the first one. Only four calls do so:
/// <https://man7.org/linux/man-pages/man2/restart_syscall.2.html>.
pub(crate) fn restarted(line: &SyscallLine, wchan: &str) -> Option<Call> {
    let [first, second, third, fourth, _, sixth] = line.args;
    // A pointer is beyond the page at zero, which nobody may map.
    let pointer = |word: u64| word >= 4096;
    // FUTEX_WAIT_BITSET for any bit, perhaps private, perhaps by the clock of the day: what a wait with a time limit is.
    let waits_on_bits = pointer(first)
        && first.is_multiple_of(4)
        && pointer(fourth)
        && matches!(second, 0x9 | 0x89 | 0x109 | 0x189)
        && sixth == 0xffff_ffff;
    let name = if wchan.contains("futex") || waits_on_bits {
        "futex"
    } else if wchan.contains("poll") {
        "poll"
    } else if first < 16 && second == 0 && pointer(third) {
        "clock_nanosleep"
    } else if !wchan.is_empty() && wchan != "0" {
        // The functions that sleep are left out of `wchan` like the scheduler's own, so it names whatever called them.
        "nanosleep"
    } else {
        return None;
    };
    Some(Call {
        name: Some(name),
        subject: subject(name),
    })
}

/// What a wait on a futex says by itself: <https://man7.org/linux/man-pages/man2/futex.2.html>.
pub(crate) fn futex(args: &[u64; 6]) -> String {
    let [address, operation, _, timeout, ..] = args;
    let private = u64::from(libc::FUTEX_PRIVATE_FLAG.cast_unsigned());
    let shared = if operation & private == 0 {
        ", shared"
    } else {
        ", private"
    };
    // FUTEX_WAIT and FUTEX_LOCK_PI and their kin take a time; for those that wake, the argument is a number.
    let timed = match operation & 0x7f {
        0 | 6 | 9 | 11 | 13 => *timeout != 0,
        _ => false,
    };
    let timed = if timed { ", timed" } else { "" };
    format!("futex {address:#x}{shared}{timed}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: libc::c_long) -> u64 {
        u64::try_from(number).unwrap()
    }

    #[test]
    fn a_name_has_the_number_that_has_the_name() {
        for known in [libc::SYS_read, libc::SYS_futex, libc::SYS_clock_nanosleep] {
            let known = number(known);
            assert_eq!(super::number(lookup(known).name.unwrap()), Some(known));
        }
        assert_eq!(super::number("no such call"), None);
    }

    #[test]
    fn the_numbers_are_those_of_the_headers() {
        for (name, constant) in [
            ("read", libc::SYS_read),
            ("futex", libc::SYS_futex),
            ("wait4", libc::SYS_wait4),
            ("recvfrom", libc::SYS_recvfrom),
            ("clock_nanosleep", libc::SYS_clock_nanosleep),
            ("epoll_pwait", libc::SYS_epoll_pwait),
            ("ppoll", libc::SYS_ppoll),
            ("accept4", libc::SYS_accept4),
            ("semtimedop", libc::SYS_semtimedop),
            ("restart_syscall", libc::SYS_restart_syscall),
            ("mq_timedreceive", libc::SYS_mq_timedreceive),
            ("waitid", libc::SYS_waitid),
            ("io_uring_enter", libc::SYS_io_uring_enter),
            ("epoll_pwait2", libc::SYS_epoll_pwait2),
            ("futex_waitv", libc::SYS_futex_waitv),
        ] {
            assert_eq!(lookup(number(constant)).name, Some(name));
        }
        assert_eq!(
            lookup(99_999),
            Call {
                name: None,
                subject: Subject::Nothing
            }
        );
        assert_eq!(lookup(u64::MAX).name, None);
    }

    #[test]
    fn each_argument_is_taken_for_what_it_is() {
        for (constant, subject) in [
            (libc::SYS_recvfrom, Subject::Descriptor),
            (libc::SYS_connect, Subject::Connect),
            (libc::SYS_openat, Subject::Path(1)),
            (libc::SYS_futex, Subject::Futex),
            (libc::SYS_wait4, Subject::Child),
            (libc::SYS_waitid, Subject::IdType),
            (libc::SYS_ppoll, Subject::Ppoll),
            (libc::SYS_pselect6, Subject::Select),
            (libc::SYS_epoll_pwait, Subject::Epoll),
            (libc::SYS_clock_nanosleep, Subject::ClockNanosleep),
            (libc::SYS_flock, Subject::Flock),
            (libc::SYS_fcntl, Subject::Fcntl),
            (libc::SYS_rt_sigtimedwait, Subject::SignalSet),
            (libc::SYS_getpid, Subject::Nothing),
        ] {
            assert_eq!(lookup(number(constant)).subject, subject);
        }
    }

    fn line(args: [u64; 6]) -> SyscallLine {
        SyscallLine { number: 219, args }
    }

    #[test]
    fn a_restarted_wait_is_known_by_where_it_sleeps_or_by_its_registers() {
        const AT: u64 = 0x7f00_0000_1000;
        let name = |args, wchan| restarted(&line(args), wchan).and_then(|call| call.name);
        let lock = [AT, 0x189, 0, AT, 0, 0xffff_ffff];
        assert_eq!(name(lock, "futex_do_wait"), Some("futex"));
        assert_eq!(name(lock, "0"), Some("futex"));
        assert_eq!(name(lock, ""), Some("futex"));
        let sleep = [0, 0, AT, AT, 0, 0];
        assert_eq!(name(sleep, "hrtimer_nanosleep"), Some("clock_nanosleep"));
        assert_eq!(name(sleep, "do_syscall_64"), Some("clock_nanosleep"));
        assert_eq!(name(sleep, "0"), Some("clock_nanosleep"));
        let old_sleep = [AT, 0, 0, 0, 0, 0];
        assert_eq!(name(old_sleep, "hrtimer_nanosleep"), Some("nanosleep"));
        assert_eq!(name(old_sleep, "do_syscall_64"), Some("nanosleep"));
        let poll = [AT, 1, 5000, 0, 0, 0];
        assert_eq!(
            name(poll, "poll_schedule_timeout.constprop.0"),
            Some("poll")
        );
        // It could be nanosleep as well.
        assert_eq!(name(poll, "0"), None);
        assert_eq!(name(lock, "do_syscall_64"), Some("futex"));
    }

    #[test]
    fn a_futex_says_whether_it_is_shared_and_timed() {
        assert_eq!(
            futex(&[0x10, 0x189, 0, 0x7f00, 0, 0]),
            "futex 0x10, private, timed"
        );
        assert_eq!(futex(&[0x10, 0x80, 2, 0, 0, 0]), "futex 0x10, private");
        assert_eq!(futex(&[0x10, 0, 2, 0, 0, 0]), "futex 0x10, shared");
        // FUTEX_WAKE has a count there.
        assert_eq!(futex(&[0x10, 0x81, 1, 7, 0, 0]), "futex 0x10, private");
    }
}
