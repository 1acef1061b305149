//! What a decoder needs of a target: its bytes.

pub mod cache;
pub mod image;
pub mod recorder;

pub use cache::PageCache;
pub use image::{Image, ImageError};
pub use recorder::Recorder;

/// The unit in which memory is recorded and cached, in bytes. A target's real page may be larger, never smaller.
pub(crate) const PAGE: usize = 4096;
const PAGE_U64: u64 = 4096;

/// An address in the target, never a pointer here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(pub u64);

impl Addr {
    /// The address so many bytes further. At the end of the address space it stays there, where nothing is mapped.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// The address so many bytes earlier, or 0, where nothing is mapped.
    #[must_use]
    pub const fn minus(self, bytes: u64) -> Self {
        Self(self.0.saturating_sub(bytes))
    }

    /// How far into its page it lies, in bytes.
    pub(crate) const fn page_offset(self) -> u64 {
        self.0 % PAGE_U64
    }

    /// Whether it is the null pointer.
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }

    /// The object that a tagged reference of the interpreter points at: its two low bits are flags.
    #[must_use]
    pub(crate) const fn untagged(self) -> Self {
        Self(self.0 & !3)
    }
}

impl std::fmt::Display for Addr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Why bytes of a target could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The range is not mapped, or not readable.
    #[error("{len} bytes at {at} are not mapped")]
    Fault {
        /// Where the read began.
        at: Addr,
        /// How many bytes were asked for.
        len: usize,
    },
    /// The process has ended.
    #[error("the target is gone")]
    Gone,
    /// The kernel refused.
    #[error("not permitted to read the target")]
    Denied,
}

/// One of several reads that are made at once.
#[derive(Debug)]
pub struct ReadRange<'a> {
    /// Where it begins.
    pub at: Addr,
    /// Filled as a whole, or of no meaning.
    pub buf: &'a mut [u8],
    /// Whether it was filled.
    pub filled: bool,
}

/// A target's memory. Live processes and recorded images are the same to the decoder.
pub trait Memory {
    /// Fills the whole of `buf` from `at`, or fails.
    ///
    /// # Errors
    /// [`ReadError::Fault`] when any byte of the range is not mapped, else what the kernel said.
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError>;

    /// Fills several ranges, in as few steps as can be, and marks those that were filled.
    fn read_ranges(&self, ranges: &mut [ReadRange<'_>]) {
        for range in ranges {
            range.filled = self.read(range.at, range.buf).is_ok();
        }
    }
}

impl<M: Memory + ?Sized> Memory for &M {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        (**self).read(at, buf)
    }

    fn read_ranges(&self, ranges: &mut [ReadRange<'_>]) {
        (**self).read_ranges(ranges);
    }
}
