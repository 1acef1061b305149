//! Whether a target has come as far as its script's file: inotify(7) tells of every file, also of one without a name.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

/// A watch over one file.
#[derive(Debug)]
pub(super) struct Sight {
    inotify: OwnedFd,
    seen: AtomicU8,
}

/// How far anybody came with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reached {
    /// Nobody has opened it.
    Nothing,
    /// It was opened and not read.
    Opened,
    /// It was read.
    Read,
}

impl Sight {
    /// Watches a file; `None` where the kernel has no watch left for us.
    pub(super) fn of(file: &File) -> Option<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
        // Nothing is opened by this.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        inotify::add_watch(&inotify, path, WatchFlags::OPEN | WatchFlags::ACCESS).ok()?;
        Some(Self {
            inotify,
            seen: AtomicU8::new(0),
        })
    }

    /// How far anybody has come so far.
    pub(super) fn reached(&self) -> Reached {
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut events = Reader::new(&self.inotify, &mut buffer);
        // Equal events that follow each other are one; a target that makes more of them has read it.
        for _ in 0..256 {
            let Ok(event) = events.next() else {
                break;
            };
            let events = event.events();
            let far = if events.contains(ReadFlags::ACCESS) {
                2
            } else {
                u8::from(events.contains(ReadFlags::OPEN))
            };
            self.seen.fetch_max(far, Ordering::Relaxed);
        }
        match self.seen.load(Ordering::Relaxed) {
            0 => Reached::Nothing,
            1 => Reached::Opened,
            _ => Reached::Read,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn whoever_opens_and_reads_is_seen_and_whoever_writes_is_not() {
        let file = super::super::memfd("test").unwrap();
        let sight = Sight::of(&file).unwrap();
        file.write_all_at(b"print()", 0).unwrap();
        assert_eq!(sight.reached(), Reached::Nothing);
        let mut other = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        assert_eq!(sight.reached(), Reached::Opened);
        other.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(sight.reached(), Reached::Read);
        drop(other);
        assert_eq!(sight.reached(), Reached::Read);
    }
}
