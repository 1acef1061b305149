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
        }
    }
}
