//! The decoders for the one kind of memory that has to be fast: a live target's, block by block.
//!
//! The decoders are generic over their memory, and what is generic is compiled where it is used: in the sidecar, which is
//! compiled for size. These are not, so they are compiled here, for speed: a third of the time of a snapshot.

use sidewinder_model::{Locals, Stacks, Tasks};

use crate::limits::Limits;
use crate::memory::{Memory, PageCache};
use crate::os::OsThread;
use crate::runtime::Runtime;

/// The memory of a live target, each block read once.
pub type Still<'a> = PageCache<&'a dyn Memory>;

/// Any other memory, for which one copy of the decoders in the sidecar is enough.
pub type Any<'a> = dyn Memory + 'a;

/// [`crate::stacks`] of a live target.
pub fn stacks(
    memory: &Still<'_>,
    runtime: &Runtime,
    os_threads: &[OsThread],
    locals: Locals,
    limits: &Limits,
) -> Stacks {
    crate::stacks(memory, runtime, os_threads, locals, limits)
}

/// [`crate::tasks`] of a live target.
pub fn tasks(
    memory: &Still<'_>,
    runtime: &Runtime,
    os_threads: &[OsThread],
    limits: &Limits,
) -> Tasks {
    crate::tasks(memory, runtime, os_threads, limits)
}
