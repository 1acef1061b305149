//! Budgets: what one decode may cost, whatever the target's memory says.

/// Upper bounds of one decode. Where one is reached, the result holds what was read so far and a problem says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Reads of the target's memory.
    pub reads: u64,
    /// Bytes of the target's memory that those reads fetch.
    pub read_bytes: u64,
    /// Bytes of names, values and file names shown by the result, in all. What several places share counts for each.
    pub text_bytes: u64,
    /// Bytes of memory that a result takes, and what is remembered while it is decoded, in all. What several share
    /// counts once.
    pub result_bytes: u64,
    /// Bytes of the target's memory held at a time.
    pub cache_bytes: usize,
    /// Bytes searched for a cookie where no file tells where the runtime lies.
    pub scanned_bytes: u64,
    /// Interpreters of one process.
    pub interpreters: usize,
    /// Thread states of one process.
    pub threads: usize,
    /// Frames of one thread; the innermost are kept.
    pub frames: usize,
    /// Coroutines of one task's chain; the outermost are kept.
    pub coroutines: usize,
    /// Tasks of one process.
    pub tasks: usize,
    /// Tasks that wait for one task.
    pub awaiters: usize,
    /// Entries of one dict.
    pub dict_entries: usize,
    /// Local variables of one frame.
    pub locals: usize,
    /// Local variables whose values are shown, in all; of the others the types are. The target stands still meanwhile.
    pub values: usize,
    /// Bytes of one string in a result, UTF-8 encoded.
    pub string_bytes: usize,
    /// Bytes of the name of a function, a file or a thread, UTF-8 encoded: what two of them differ in may come late.
    pub name_bytes: usize,
    /// Bytes of one code object's location table.
    pub linetable_bytes: usize,
    /// Problems kept in words; the others are counted.
    pub problems: usize,
    /// The memory that is left to the process that decodes, in bytes, where these limits were lowered to fit into it.
    pub headroom: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            reads: 100_000_000,
            read_bytes: 16 << 30,
            text_bytes: 256 << 20,
            result_bytes: 256 << 20,
            cache_bytes: 24 << 20,
            scanned_bytes: 256 << 20,
            interpreters: 256,
            threads: 32_768,
            frames: 131_072,
            coroutines: 4_096,
            tasks: 1_000_000,
            awaiters: 1_000_000,
            dict_entries: 100_000,
            locals: 1_024,
            values: 20_000,
            string_bytes: 1_024,
            name_bytes: 65_536,
            linetable_bytes: 4 << 20,
            problems: 64,
            headroom: None,
        }
    }
}

/// Memory of a process that decodes, apart from what limits bound, in bytes.
const FIXED: u64 = 4 << 20;
/// What a snapshot always gets: enough for the stacks of some hundred threads.
const LEAST_CACHE: u64 = 1 << 20;
const LEAST_RESULT: u64 = 1 << 20;
const LEAST_TEXT: u64 = 2 << 20;
/// No task takes less of a result, in bytes.
const TASK: u64 = 100;

impl Limits {
    /// The memory that a decode within these limits takes at most, about, in bytes: the target's pages, the result, and
    /// the result once more as text.
    pub fn need(&self) -> u64 {
        let cache = u64::try_from(self.cache_bytes).unwrap_or(u64::MAX);
        FIXED
            .saturating_add(cache)
            .saturating_add(self.result_bytes)
            .saturating_add(self.text_bytes)
    }

    /// These limits, lowered to a need of at most half of the memory that is left. What is needed for stacks is kept,
    /// however little that is: the kernel takes the process that decodes before the target.
    #[must_use]
    pub fn within(self, headroom: u64) -> Self {
        if self.need() <= headroom / 2 {
            return self;
        }
        let budget = (headroom / 2).saturating_sub(FIXED);
        let cache = u64::try_from(self.cache_bytes).unwrap_or(u64::MAX);
        // Pages that do not fit are read again, which takes time; what does not fit into the result is lost.
        let cache = cache.min((budget / 4).max(LEAST_CACHE));
        let rest = budget.saturating_sub(cache);
        let result = self.result_bytes.min((rest / 2).max(LEAST_RESULT));
        let text = self
            .text_bytes
            .min(rest.saturating_sub(result).max(LEAST_TEXT));
        Self {
            cache_bytes: usize::try_from(cache).unwrap_or(self.cache_bytes),
            result_bytes: result,
            text_bytes: text,
            tasks: usize::try_from(result / TASK).map_or(self.tasks, |fit| self.tasks.min(fit)),
            headroom: Some(headroom),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn with_room_for_all_nothing_is_lowered() {
        let all = Limits::default();
        assert_eq!(all.within(all.need() * 2), all);
        assert_eq!(all.within(u64::MAX), all);
        assert_ne!(all.within(all.need() * 2 - 1), all);
    }

    #[test]
    fn a_snapshot_takes_half_of_what_is_left() {
        for left in [32, 64, 100, 256, 512, 1000] {
            let limits = Limits::default().within(left * MIB);
            assert!(
                limits.need() <= left * MIB / 2,
                "{left} MiB: {}",
                limits.need()
            );
            // And does not waste it.
            assert!(
                limits.need() >= left * MIB / 3,
                "{left} MiB: {}",
                limits.need()
            );
            assert_eq!(limits.headroom, Some(left * MIB));
        }
        let limits = Limits::default().within(128 * MIB);
        assert!(limits.tasks >= 100_000, "{}", limits.tasks);
    }

    #[test]
    fn stacks_are_always_had() {
        for left in [0, 1, MIB, 10 * MIB] {
            let limits = Limits::default().within(left);
            assert_eq!(
                (limits.result_bytes, limits.text_bytes),
                (LEAST_RESULT, LEAST_TEXT)
            );
            assert!(limits.cache_bytes as u64 >= LEAST_CACHE);
            assert_eq!(limits.threads, Limits::default().threads);
            assert!(limits.need() <= 10 * MIB);
        }
    }
}
