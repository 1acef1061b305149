//! Taking a script back that the target has already read.

use std::io::{self, Write};

use rustix::fs::OFlags;

use super::Carrier;

/// The record after which the wrapper begins nothing.
const WITHDRAWN: [u8; 9] = *b"W\0\0\0\0\0\0\0\0";

impl Carrier {
    /// Has a script not start that has not started yet. The wrapper says that it starts before it does; both are appended
    /// to the result, and whichever stands first there decides. So the result has to be read afterwards.
    ///
    /// # Errors
    /// What the kernel said; the script may still start.
    pub fn withdraw(&self) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.result)?;
        rustix::fs::fcntl_setfl(&self.result, flags | OFlags::APPEND)?;
        (&self.result).write_all(&WITHDRAWN)
    }
}
