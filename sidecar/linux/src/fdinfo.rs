//! What a descriptor without a path of its own is: the kind its link names, and the lines of `/proc/PID/fdinfo/N`.
//! <https://man7.org/linux/man-pages/man5/proc_pid_fdinfo.5.html>

use std::fmt::Write as _;

use nix::sys::signal::Signal;

/// Descriptors that are listed by number; the others are counted.
const LISTED: usize = 16;

/// What stands in `/proc/PID/fd/N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link<'a> {
    /// A socket, by inode.
    Socket(u64),
    /// A pipe without a name, by inode.
    Pipe(u64),
    /// Something that only a descriptor stands for: `eventpoll`, `eventfd`, …
    Anonymous(&'a str),
    /// Anything in a file system.
    Path(&'a str),
}

impl<'a> Link<'a> {
    /// The kernel prints paths from the root on; the others have a type and a colon.
    pub(crate) fn parse(text: &'a str) -> Self {
        let inode = |kind: &str| {
            let number = text.strip_prefix(kind)?.strip_suffix(']')?;
            number.parse().ok()
        };
        if let Some(inode) = inode("socket:[") {
            Self::Socket(inode)
        } else if let Some(inode) = inode("pipe:[") {
            Self::Pipe(inode)
        } else if inode("pidfd:[").is_some() {
            Self::Anonymous("pidfd")
        } else if let Some(name) = text.strip_prefix("anon_inode:") {
            Self::Anonymous(name.trim_start_matches('[').trim_end_matches(']'))
        } else {
            Self::Path(text)
        }
    }
}

/// What an anonymous descriptor is, with what its `fdinfo` says.
pub(crate) fn anonymous(name: &str, info: &str) -> String {
    let value = |key| {
        info.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .map(str::trim)
    };
    let hexadecimal = |key| value(key).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    match name {
        "eventpoll" => format!("epoll on {}", counted(&watched(info))),
        "eventfd" => match hexadecimal("eventfd-count") {
            Some(count) => format!("eventfd, count {count}"),
            None => name.to_owned(),
        },
        "timerfd" => match value("it_value").and_then(timer) {
            Some((0, 0)) => "timerfd, not armed".to_owned(),
            Some((seconds, nanoseconds)) => {
                format!("timerfd, {}.{:03} s left", seconds, nanoseconds / 1_000_000)
            }
            None => name.to_owned(),
        },
        "signalfd" => match hexadecimal("sigmask") {
            Some(mask) => format!("signalfd for {}", signals(mask)),
            None => name.to_owned(),
        },
        "pidfd" => match value("Pid").and_then(|pid| pid.parse::<i64>().ok()) {
            Some(-1) => "pidfd of a process that has ended".to_owned(),
            Some(pid) => format!("pidfd of process {pid}"),
            None => name.to_owned(),
        },
        "inotify" => {
            let watches = info
                .lines()
                .filter(|line| line.starts_with("inotify wd:"))
                .count();
            format!("inotify, {watches} watches")
        }
        _ => name.chars().take(64).collect(),
    }
}

/// The descriptors that an epoll watches.
pub(crate) fn watched(info: &str) -> Vec<u32> {
    info.lines()
        .filter_map(|line| line.strip_prefix("tfd:"))
        .filter_map(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
        .collect()
}

/// `3 descriptors (fd 4, fd 5, fd 6)`.
pub(crate) fn counted(descriptors: &[u32]) -> String {
    let mut text = match descriptors.len() {
        0 => return "no descriptor".to_owned(),
        1 => "1 descriptor (".to_owned(),
        count => format!("{count} descriptors ("),
    };
    for (at, number) in descriptors.iter().take(LISTED).enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}fd {number}");
    }
    if descriptors.len() > LISTED {
        text.push_str(", …");
    }
    text.push(')');
    text
}

/// `(12, 345)`: seconds and nanoseconds.
fn timer(text: &str) -> Option<(u64, u64)> {
    let (seconds, nanoseconds) = text
        .strip_prefix('(')?
        .strip_suffix(')')?
        .split_once(", ")?;
    Some((seconds.parse().ok()?, nanoseconds.parse().ok()?))
}

/// The names of a set of signals, signal n in bit n - 1.
pub(crate) fn signals(mask: u64) -> String {
    let names: Vec<String> = (1..=64)
        .filter(|number| mask >> (number - 1) & 1 == 1)
        .map(|number| match Signal::try_from(number) {
            Ok(signal) => signal.as_str().to_owned(),
            Err(_) => format!("signal {number}"),
        })
        .collect();
    match names.len() {
        0 => "no signal".to_owned(),
        // Most programs that wait for signals wait for a few.
        1..=8 => names.join(", "),
        count => format!("{count} signals"),
    }
}

/// The process that holds the file lock that `waiter` waits for, by `/proc/locks`. `inode` chooses where it waits for
/// several. <https://man7.org/linux/man-pages/man5/proc_locks.5.html>
pub(crate) fn lock_holder(locks: &str, waiter: i32, inode: Option<u64>) -> Option<i32> {
    let mut found = Vec::new();
    let mut holder = None;
    for line in locks.lines() {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let mut first = fields.next();
        let waits = first == Some("->");
        if waits {
            first = fields.next();
        }
        // The class, then how strictly and for what.
        let (Some(_), Some(_), Some(_)) = (first, fields.next(), fields.next()) else {
            continue;
        };
        let pid = fields.next().and_then(|pid| pid.parse::<i32>().ok());
        let at = fields
            .next()
            .and_then(|file| file.rsplit(':').next()?.parse::<u64>().ok());
        if !waits {
            holder = pid;
        } else if pid == Some(waiter)
            && let Some(holder) = holder
        {
            found.push((at, holder));
        }
    }
    let exact = found.iter().find(|(at, _)| inode.is_some() && *at == inode);
    let only = match found.as_slice() {
        [only] => Some(only),
        _ => None,
    };
    // The lock of an open file description has no holder, and one of another namespace has none that we know.
    exact.or(only).map(|(_, pid)| *pid).filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_told_apart() {
        for (text, link) in [
            ("socket:[12]", Link::Socket(12)),
            ("pipe:[7]", Link::Pipe(7)),
            ("anon_inode:[eventpoll]", Link::Anonymous("eventpoll")),
            ("anon_inode:inotify", Link::Anonymous("inotify")),
            ("pidfd:[33]", Link::Anonymous("pidfd")),
            ("/tmp/socket:[12]", Link::Path("/tmp/socket:[12]")),
            ("socket:[x]", Link::Path("socket:[x]")),
            ("", Link::Path("")),
        ] {
            assert_eq!(Link::parse(text), link);
        }
    }

    #[test]
    fn anonymous_descriptors_say_what_they_are() {
        for (name, info, text) in [
            (
                "eventpoll",
                "pos:\t0\nflags:\t02\ntfd:        5 events:       19 data:                5  pos:0\ntfd:        7 events:        1 data: 7\n",
                "epoll on 2 descriptors (fd 5, fd 7)",
            ),
            ("eventpoll", "pos:\t0\n", "epoll on no descriptor"),
            (
                "eventfd",
                "eventfd-count:               1f\n",
                "eventfd, count 31",
            ),
            (
                "timerfd",
                "it_value: (12, 345678901)\n",
                "timerfd, 12.345 s left",
            ),
            ("timerfd", "it_value: (0, 0)\n", "timerfd, not armed"),
            ("timerfd", "it_value: (x", "timerfd"),
            (
                "signalfd",
                "sigmask:\t0000000000004002\n",
                "signalfd for SIGINT, SIGTERM",
            ),
            ("pidfd", "Pid:\t42\nNSpid:\t42\n", "pidfd of process 42"),
            ("pidfd", "Pid:\t-1\n", "pidfd of a process that has ended"),
            (
                "inotify",
                "inotify wd:2 ino:1\ninotify wd:1 ino:2\n",
                "inotify, 2 watches",
            ),
            ("userfaultfd", "", "userfaultfd"),
        ] {
            assert_eq!(anonymous(name, info), text);
        }
    }

    #[test]
    fn many_descriptors_are_counted() {
        let all: Vec<u32> = (0..100).collect();
        let text = counted(&all);
        assert!(text.starts_with("100 descriptors (fd 0, fd 1, "), "{text}");
        assert!(text.ends_with("fd 15, …)"), "{text}");
    }

    #[test]
    fn signals_have_names() {
        assert_eq!(signals(1 << 14), "SIGTERM");
        assert_eq!(signals(1 << 63), "signal 64");
        assert_eq!(signals(u64::MAX), "64 signals");
        assert_eq!(signals(0), "no signal");
    }

    #[test]
    fn the_holder_of_a_lock_is_the_head_of_its_group() {
        let locks = "1: FLOCK  ADVISORY  WRITE 345 fe:00:1234 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 346 fe:00:1234 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 347 fe:00:99 0 EOF\n\
                     2: -> POSIX  ADVISORY  WRITE 348 fe:00:99 0 EOF\n\
                     2: -> POSIX  ADVISORY  WRITE 346 fe:00:99 0 EOF\n\
                     3: OFDLCK ADVISORY  WRITE -1 fe:00:5 0 EOF\n\
                     3: -> OFDLCK ADVISORY  WRITE 400 fe:00:5 0 EOF\n";
        assert_eq!(lock_holder(locks, 348, None), Some(347));
        assert_eq!(lock_holder(locks, 348, Some(4711)), Some(347));
        assert_eq!(lock_holder(locks, 346, Some(1234)), Some(345));
        assert_eq!(lock_holder(locks, 346, Some(99)), Some(347));
        assert_eq!(lock_holder(locks, 346, None), None);
        assert_eq!(lock_holder(locks, 400, Some(5)), None);
        assert_eq!(lock_holder(locks, 1, None), None);
        assert_eq!(lock_holder("1: ->\n2:\n\n", 1, None), None);
    }
}
