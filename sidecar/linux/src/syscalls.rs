//! Names of the system calls a thread can be blocked in, and which of their arguments says what it waits for.
//! Numbers: `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h` of Linux.

/// Which argument is worth showing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// None.
    Nothing,
    /// The first is a descriptor.
    Descriptor,
    /// The first is the address of a futex.
    Futex,
    /// The first is a child's pid, -1 for any.
    Child,
    /// `waitid`: the first says what the second is.
    IdType,
    /// The first points to the second many `struct pollfd`.
    PollSet,
}

use Subject::{Child, Descriptor, Futex, IdType, Nothing, PollSet};

/// The call with this number on the machine this is built for.
pub(crate) fn lookup(number: u64) -> Option<(&'static str, Subject)> {
    TABLE
        .iter()
        .find(|(known, _, _)| *known == number)
        .map(|(_, name, subject)| (*name, *subject))
}

#[cfg(target_arch = "x86_64")]
const TABLE: &[(u64, &str, Subject)] = &[
    (0, "read", Descriptor),
    (1, "write", Descriptor),
    (3, "close", Descriptor),
    (7, "poll", PollSet),
    (16, "ioctl", Descriptor),
    (17, "pread64", Descriptor),
    (18, "pwrite64", Descriptor),
    (19, "readv", Descriptor),
    (20, "writev", Descriptor),
    (23, "select", Nothing),
    (34, "pause", Nothing),
    (35, "nanosleep", Nothing),
    (40, "sendfile", Descriptor),
    (42, "connect", Descriptor),
    (43, "accept", Descriptor),
    (44, "sendto", Descriptor),
    (45, "recvfrom", Descriptor),
    (46, "sendmsg", Descriptor),
    (47, "recvmsg", Descriptor),
    (58, "vfork", Nothing),
    (61, "wait4", Child),
    (65, "semop", Nothing),
    (69, "msgsnd", Nothing),
    (70, "msgrcv", Nothing),
    (72, "fcntl", Descriptor),
    (73, "flock", Descriptor),
    (74, "fsync", Descriptor),
    (75, "fdatasync", Descriptor),
    (128, "rt_sigtimedwait", Nothing),
    (130, "rt_sigsuspend", Nothing),
    (202, "futex", Futex),
    (208, "io_getevents", Nothing),
    (219, "restart_syscall", Nothing),
    (220, "semtimedop", Nothing),
    (230, "clock_nanosleep", Nothing),
    (232, "epoll_wait", Descriptor),
    (242, "mq_timedsend", Descriptor),
    (243, "mq_timedreceive", Descriptor),
    (247, "waitid", IdType),
    (257, "openat", Nothing),
    (270, "pselect6", Nothing),
    (271, "ppoll", PollSet),
    (275, "splice", Descriptor),
    (277, "sync_file_range", Descriptor),
    (281, "epoll_pwait", Descriptor),
    (288, "accept4", Descriptor),
    (295, "preadv", Descriptor),
    (296, "pwritev", Descriptor),
    (299, "recvmmsg", Descriptor),
    (307, "sendmmsg", Descriptor),
    (318, "getrandom", Nothing),
    (426, "io_uring_enter", Descriptor),
    (441, "epoll_pwait2", Descriptor),
    (449, "futex_waitv", Nothing),
];

#[cfg(target_arch = "aarch64")]
const TABLE: &[(u64, &str, Subject)] = &[
    (4, "io_getevents", Nothing),
    (22, "epoll_pwait", Descriptor),
    (25, "fcntl", Descriptor),
    (29, "ioctl", Descriptor),
    (32, "flock", Descriptor),
    (56, "openat", Nothing),
    (57, "close", Descriptor),
    (63, "read", Descriptor),
    (64, "write", Descriptor),
    (65, "readv", Descriptor),
    (66, "writev", Descriptor),
    (67, "pread64", Descriptor),
    (68, "pwrite64", Descriptor),
    (69, "preadv", Descriptor),
    (70, "pwritev", Descriptor),
    (71, "sendfile", Descriptor),
    (72, "pselect6", Nothing),
    (73, "ppoll", PollSet),
    (76, "splice", Descriptor),
    (82, "fsync", Descriptor),
    (83, "fdatasync", Descriptor),
    (84, "sync_file_range", Descriptor),
    (95, "waitid", IdType),
    (98, "futex", Futex),
    (101, "nanosleep", Nothing),
    (115, "clock_nanosleep", Nothing),
    (128, "restart_syscall", Nothing),
    (133, "rt_sigsuspend", Nothing),
    (137, "rt_sigtimedwait", Nothing),
    (182, "mq_timedsend", Descriptor),
    (183, "mq_timedreceive", Descriptor),
    (188, "msgrcv", Nothing),
    (189, "msgsnd", Nothing),
    (192, "semtimedop", Nothing),
    (193, "semop", Nothing),
    (202, "accept", Descriptor),
    (203, "connect", Descriptor),
    (206, "sendto", Descriptor),
    (207, "recvfrom", Descriptor),
    (211, "sendmsg", Descriptor),
    (212, "recvmsg", Descriptor),
    (242, "accept4", Descriptor),
    (243, "recvmmsg", Descriptor),
    (260, "wait4", Child),
    (269, "sendmmsg", Descriptor),
    (278, "getrandom", Nothing),
    (426, "io_uring_enter", Descriptor),
    (441, "epoll_pwait2", Descriptor),
    (449, "futex_waitv", Nothing),
];

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const TABLE: &[(u64, &str, Subject)] = &[];

#[cfg(test)]
mod tests {
    use super::{TABLE, lookup};

    #[test]
    fn the_table_agrees_with_the_headers() {
        use nix::libc;
        for (name, number) in [
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
            ("rt_sigtimedwait", libc::SYS_rt_sigtimedwait),
            ("mq_timedreceive", libc::SYS_mq_timedreceive),
            ("recvmmsg", libc::SYS_recvmmsg),
            ("waitid", libc::SYS_waitid),
            ("fdatasync", libc::SYS_fdatasync),
            ("io_uring_enter", libc::SYS_io_uring_enter),
        ] {
            let number = u64::try_from(number).unwrap();
            assert_eq!(lookup(number).map(|(name, _)| name), Some(name));
        }
    }

    #[test]
    fn ascending_so_no_number_stands_twice() {
        assert!(TABLE.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(lookup(99_999), None);
    }
}
