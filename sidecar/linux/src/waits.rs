//! What a blocked thread waits for: the arguments of its system call, in words.

use nix::libc;
use sidewinder_model::Syscall;

use crate::Process;
use crate::descriptors::{Descriptors, named_pid};
use crate::fdinfo;
use crate::sockets;
use crate::syscalls::{self, Subject};

/// How many descriptors of a poll or an epoll are said in full.
const DESCRIBED: usize = 4;
/// How many `struct pollfd` are read.
const MAX_POLL: usize = 64;
/// The largest set of a select that is read, in descriptors.
const MAX_SELECT: u64 = 4096;
/// The longest path that is read, in bytes.
const MAX_PATH: usize = 256;
/// No detail is longer, in characters.
const MAX_DETAIL: usize = 1024;

impl Process {
    /// Says of each of these system calls, given with its thread and its arguments, what it waits for, where it does not
    /// say so yet. Reads what the kernel knows of descriptors, sockets and other processes, so it is for a moment when
    /// nothing stands still for it.
    pub fn describe<'t>(&self, calls: impl IntoIterator<Item = (u64, [u64; 6], &'t mut Syscall)>) {
        let mut descriptors = Descriptors::new(self);
        for (tid, args, call) in calls {
            if call.detail.is_some() {
                continue;
            }
            let subject = syscalls::subject(&call.name);
            let detail = self.detail(args, subject, &mut descriptors);
            // Memory is its call's only while the call lasts. One that was interrupted may be on its way back.
            if subject.is_in_memory()
                && let Some((line, now)) = self.call(tid)
                && (now.name != Some(call.name.as_str()) || line.args != args)
            {
                continue;
            }
            call.detail = detail.map(|detail| detail.chars().take(MAX_DETAIL).collect());
        }
    }

    fn detail(
        &self,
        args: [u64; 6],
        subject: Subject,
        descriptors: &mut Descriptors<'_>,
    ) -> Option<String> {
        let [first, second, third, fourth, ..] = args;
        let number = int(first);
        match subject {
            Subject::Nothing => None,
            Subject::Descriptor => Some(descriptors.describe(number)),
            Subject::Connect => {
                let mut text = descriptors.describe(number);
                let len = usize::try_from(third).unwrap_or(0).min(128);
                let mut bytes = vec![0; len];
                if self.read_memory(second, &mut bytes).is_ok()
                    && let Some(address) = sockets::sockaddr(&bytes)
                    && !text.contains(&address)
                {
                    text = format!("{text}, to {address}");
                }
                Some(text)
            }
            Subject::Flock => {
                let kind = match int(second).cast_signed() & !libc::LOCK_NB {
                    libc::LOCK_SH => "shared lock",
                    libc::LOCK_EX => "exclusive lock",
                    _ => "unlock",
                };
                Some(lock(descriptors, number, kind))
            }
            Subject::Fcntl => Some(match int(second).cast_signed() {
                libc::F_SETLKW | libc::F_OFD_SETLKW => lock(descriptors, number, "record lock"),
                _ => descriptors.describe(number),
            }),
            Subject::Epoll => {
                let watched = descriptors.watched(number);
                let mut text = descriptors.describe(number);
                if (1..=DESCRIBED).contains(&watched.len()) {
                    let each: Vec<_> = watched.iter().map(|fd| descriptors.describe(*fd)).collect();
                    text = format!("{text}: {}", each.join("; "));
                }
                Some(with_limit(text, fourth))
            }
            Subject::Path(at) => self.path(*args.get(at)?),
            Subject::Futex => Some(syscalls::futex(&args)),
            Subject::Child => Some(self.child(first)),
            Subject::IdType => Some(match first {
                1 => self.child(second),
                2 => format!("any child of process group {}", int(second)),
                3 => descriptors.describe(int(second)),
                _ => "any child".to_owned(),
            }),
            Subject::Poll => self
                .poll_set(first, second)
                .map(|set| with_limit(several(descriptors, &set, second), third)),
            Subject::Ppoll => self
                .poll_set(first, second)
                .map(|set| several(descriptors, &set, second)),
            Subject::Select => {
                let set = self.select_sets(first, [second, third, fourth])?;
                let count = u64::try_from(set.len()).unwrap_or(u64::MAX);
                Some(several(descriptors, &set, count))
            }
            Subject::Nanosleep => self.time(first).map(|time| format!("for {}", span(time))),
            Subject::ClockNanosleep => {
                let time = self.time(third)?;
                if second & 1 == 0 {
                    return Some(format!("for {}", span(time)));
                }
                // TIMER_ABSTIME: how long still, where it is a clock that we share.
                let clock = match int(first).cast_signed() {
                    libc::CLOCK_REALTIME => rustix::time::ClockId::Realtime,
                    libc::CLOCK_MONOTONIC => rustix::time::ClockId::Monotonic,
                    _ => return None,
                };
                let now = rustix::time::clock_gettime(clock);
                let now = i128::from(now.tv_sec) * NANOSECONDS + i128::from(now.tv_nsec);
                Some(format!("{} left", span((time - now).max(0))))
            }
            Subject::SignalSet => {
                let mut set = [0; 8];
                self.read_memory(first, &mut set).ok()?;
                Some(fdinfo::signals(u64::from_ne_bytes(set)))
            }
            Subject::SystemV => Some(format!("id {}", number.cast_signed())),
        }
    }

    /// A child of the target, whose ids are those of its own PID namespace.
    fn child(&self, pid: u64) -> String {
        let pid = int(pid).cast_signed();
        match pid {
            1.. if self.pid() == self.ns_pid() => format!("child {}", named_pid(pid)),
            1.. => format!("child {pid}"),
            -1 => "any child".to_owned(),
            0 => "any child of its process group".to_owned(),
            group => format!("any child of process group {}", group.unsigned_abs()),
        }
    }

    /// `struct pollfd` is an int and two shorts; a negative number is skipped by the kernel.
    fn poll_set(&self, at: u64, count: u64) -> Option<Vec<u32>> {
        let read = usize::try_from(count).unwrap_or(MAX_POLL).min(MAX_POLL);
        let mut bytes = vec![0; read * 8];
        self.read_memory(at, &mut bytes).ok()?;
        Some(polled(&bytes))
    }

    fn select_sets(&self, below: u64, sets: [u64; 3]) -> Option<Vec<u32>> {
        let below = u64::from(int(below)).min(MAX_SELECT);
        let len = usize::try_from(below.div_ceil(64)).ok()? * 8;
        let mut all = vec![0; len];
        for at in sets.into_iter().filter(|at| *at != 0) {
            let mut bytes = vec![0; len];
            self.read_memory(at, &mut bytes).ok()?;
            for (all, byte) in all.iter_mut().zip(bytes) {
                *all |= byte;
            }
        }
        Some(selected(&all, below))
    }

    /// The path at an address, without control over where it ends.
    fn path(&self, at: u64) -> Option<String> {
        let mut bytes = vec![0; MAX_PATH];
        if self.read_memory(at, &mut bytes).is_err() {
            // Behind the page nothing may be mapped.
            bytes.truncate(usize::try_from(4096 - at % 4096).ok()?.min(MAX_PATH));
            self.read_memory(at, &mut bytes).ok()?;
        }
        let end = bytes.iter().position(|byte| *byte == 0)?;
        Some(format!(
            "path {}",
            String::from_utf8_lossy(bytes.get(..end)?)
        ))
    }

    /// A `struct timespec`, in nanoseconds.
    fn time(&self, at: u64) -> Option<i128> {
        let mut bytes = [0; 16];
        self.read_memory(at, &mut bytes).ok()?;
        timespec(&bytes)
    }
}

const NANOSECONDS: i128 = 1_000_000_000;

fn timespec(bytes: &[u8; 16]) -> Option<i128> {
    let (seconds, nanoseconds) = bytes.split_first_chunk::<8>()?;
    let seconds = i64::from_ne_bytes(*seconds);
    let nanoseconds = i64::from_ne_bytes(*nanoseconds.first_chunk::<8>()?);
    ((0..1_000_000_000).contains(&nanoseconds) && seconds >= 0)
        .then(|| i128::from(seconds) * NANOSECONDS + i128::from(nanoseconds))
}

fn span(nanoseconds: i128) -> String {
    format!(
        "{}.{:03} s",
        nanoseconds / NANOSECONDS,
        nanoseconds % NANOSECONDS / 1_000_000
    )
}

/// An int or unsigned int argument: the upper half of the register means nothing.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel looks at the lower half only"
)]
fn int(register: u64) -> u32 {
    register as u32
}

fn polled(bytes: &[u8]) -> Vec<u32> {
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .filter_map(|entry| {
            let number = i32::from_ne_bytes(*entry.first_chunk::<4>()?);
            u32::try_from(number).ok()
        })
        .collect()
}

fn selected(set: &[u8], below: u64) -> Vec<u32> {
    set.iter()
        .zip(0_u32..)
        .flat_map(|(byte, at)| {
            (0..8_u32)
                .filter(move |bit| byte >> bit & 1 == 1)
                .map(move |bit| at * 8 + bit)
        })
        .filter(|number| u64::from(*number) < below)
        .collect()
}

/// A few descriptors in full, many by number. `count` may be more than were read.
fn several(descriptors: &mut Descriptors<'_>, set: &[u32], count: u64) -> String {
    match set {
        [] if count == 0 => "no descriptor".to_owned(),
        [only] => descriptors.describe(*only),
        few if few.len() <= DESCRIBED => {
            let each: Vec<_> = few.iter().map(|fd| descriptors.describe(*fd)).collect();
            format!("{} descriptors: {}", few.len(), each.join("; "))
        }
        _ if usize::try_from(count).is_ok_and(|count| count <= MAX_POLL) => fdinfo::counted(set),
        _ => format!("{count} descriptors"),
    }
}

fn lock(descriptors: &mut Descriptors<'_>, number: u32, kind: &str) -> String {
    let what = descriptors.describe(number);
    match descriptors.lock_holder(number) {
        Some(holder) => format!("{what}, {kind} held by {holder}"),
        None => format!("{what}, {kind}"),
    }
}

/// With the limit of the wait, in milliseconds as the call has it: an int, negative for none.
fn with_limit(text: String, milliseconds: u64) -> String {
    match int(milliseconds).cast_signed() {
        limit @ 1.. => format!("{text}, at most {}", span(i128::from(limit) * 1_000_000)),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_and_selects_name_their_descriptors() {
        let mut bytes = Vec::new();
        for number in [7_i32, -1, 9] {
            bytes.extend(number.to_ne_bytes());
            bytes.extend([1, 0, 0, 0]);
        }
        assert_eq!(polled(&bytes), [7, 9]);
        assert_eq!(polled(&bytes[..12]), [7]);
        assert_eq!(selected(&[0b1000_0001, 0b10], 16), [0, 7, 9]);
        assert_eq!(selected(&[0b1000_0001, 0b10], 9), [0, 7]);
        assert_eq!(selected(&[], 0), [0; 0]);
    }

    #[test]
    fn times_are_read_as_the_kernel_does() {
        let bytes = |seconds: i64, nanoseconds: i64| {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&seconds.to_ne_bytes());
            bytes[8..].copy_from_slice(&nanoseconds.to_ne_bytes());
            bytes
        };
        assert_eq!(
            timespec(&bytes(12, 345_000_000)).map(span).as_deref(),
            Some("12.345 s")
        );
        assert_eq!(
            timespec(&bytes(i64::MAX, 0)).map(span).map(|s| s.len()),
            Some(25)
        );
        assert_eq!(timespec(&bytes(1, 1_000_000_000)), None);
        assert_eq!(timespec(&bytes(-1, 0)), None);
        assert_eq!(with_limit("x".into(), 5000), "x, at most 5.000 s");
        assert_eq!(with_limit("x".into(), u64::from(u32::MAX)), "x");
    }
}
