//! What a decoder needs of a target: its bytes.

/// An address in the target, never a pointer here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(pub u64);

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

/// A target's memory. Live processes and recorded images are the same to the decoder.
pub trait Memory {
    /// Fills the whole of `buf` from `at`, or fails.
    ///
    /// # Errors
    /// [`ReadError::Fault`] when any byte of the range is not mapped, else what the kernel said.
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError>;
}

impl<M: Memory + ?Sized> Memory for &M {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        (**self).read(at, buf)
    }
}
