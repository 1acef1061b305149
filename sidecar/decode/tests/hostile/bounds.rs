//! What every decode keeps to, whatever it is shown: counted, not timed. The fuzz targets hold it to the same.

use std::cell::Cell;
use std::collections::HashSet;

use sidewinder_decode::{
    Addr, Image, Limits, Memory, ReadError, Runtime, remote_exec, stacks, tasks,
};
use sidewinder_model::{Frame, Local, Locals, Stacks, Task, Tasks, Thread};

/// Reads that the search for a runtime takes at most: what `search` allows itself, and the tables of a few candidates.
pub const LOCATE_READS: u64 = 3 * (1 << 20) + 200_000;
/// Bytes that it reads at most: two scans of memory, and as much again in small reads.
pub const LOCATE_BYTES: u64 = 4 * (256 << 20);
/// Reads that the addresses for scripts take at most, for 256 interpreters and 32 768 threads.
const SUPPORT_READS: u64 = 300_000;

/// Reads that the queues of 256 interpreters take at most, and the table of signals.
const WAKING_READS: u64 = 256 * 64;
const WAKING_BYTES: u64 = 256 * (128 << 10);

/// Counts what is read.
pub struct Counting<M> {
    inner: M,
    reads: Cell<u64>,
    bytes: Cell<u64>,
}

impl<M: Memory> Counting<M> {
    pub fn new(inner: M) -> Self {
        Self {
            inner,
            reads: Cell::new(0),
            bytes: Cell::new(0),
        }
    }

    /// Reads and bytes since the last call.
    pub fn take(&self) -> (u64, u64) {
        (self.reads.take(), self.bytes.take())
    }
}

impl<M: Memory> Memory for Counting<M> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        self.reads.set(self.reads.get() + 1);
        self.bytes.set(self.bytes.get() + buf.len() as u64);
        self.inner.read(at, buf)
    }
}

/// Small enough that a test reaches them.
pub fn small() -> Limits {
    Limits {
        reads: 60_000,
        read_bytes: 16 << 20,
        text_bytes: 1 << 20,
        result_bytes: 1 << 20,
        interpreters: 16,
        threads: 64,
        frames: 500,
        coroutines: 64,
        tasks: 200,
        awaiters: 100,
        dict_entries: 500,
        locals: 64,
        string_bytes: 1024,
        linetable_bytes: 1 << 16,
        problems: 16,
        ..Limits::default()
    }
}

/// What came of it all.
#[derive(Default)]
pub struct Outcome {
    pub located: bool,
    pub problems: Vec<String>,
    pub frames: usize,
}

/// Everything there is, on a target that was located while it was sound, or is located now. Panics where a bound is
/// not kept to.
pub fn decode_all(
    memory: impl Memory,
    image: &Image,
    located: Option<&Runtime>,
    limits: &Limits,
) -> Outcome {
    let memory = Counting::new(memory);
    let found;
    let runtime = if let Some(runtime) = located {
        runtime
    } else {
        let runtime = Runtime::locate(&memory, &image.mappings, image);
        let (reads, bytes) = memory.take();
        assert!(
            reads <= LOCATE_READS && bytes <= LOCATE_BYTES,
            "locating took {reads} reads of {bytes} bytes"
        );
        let Ok(runtime) = runtime else {
            return Outcome::default();
        };
        found = runtime;
        &found
    };
    // What says nothing of reads that failed comes first.
    let _ = runtime.gil(&memory);
    let support = remote_exec::support(&memory, runtime, &image.threads);
    let (reads, _) = memory.take();
    assert!(
        reads <= SUPPORT_READS,
        "addresses for scripts took {reads} reads"
    );
    for interpreter in &support.interpreters {
        let _ = remote_exec::Hooks::of(&memory, runtime, interpreter.address);
        if let Some(calls) = remote_exec::pending_calls(&memory, runtime, interpreter.address) {
            // It may be another one by now.
            let queue = calls.read(&memory);
            assert!(queue.is_none_or(|queue| queue.npending <= 300 && queue.next < 300));
        }
    }
    let _ = remote_exec::Signals::locate(&memory, runtime);
    let _ = remote_exec::finalizing(&memory, runtime);
    let (reads, bytes) = memory.take();
    assert!(
        reads <= WAKING_READS && bytes <= WAKING_BYTES,
        "queues and signals took {reads} reads of {bytes} bytes"
    );
    let most = Limits::default();
    let threads: usize = support.interpreters.iter().map(|i| i.threads.len()).sum();
    assert!(support.interpreters.len() <= most.interpreters && threads <= most.threads);
    check_problems(&support.problems, &most);
    let stacks = stacks(&memory, runtime, &image.threads, Locals::Values, limits);
    within(&memory, limits, "stacks");
    check_stacks(&stacks, limits);
    let tasks = tasks(&memory, runtime, &image.threads, limits);
    within(&memory, limits, "tasks");
    check_tasks(&tasks, limits);
    let threads = stacks.interpreters.iter().flat_map(|i| &i.threads);
    Outcome {
        located: true,
        frames: threads.map(|t| t.frames.len()).sum(),
        problems: [stacks.problems, tasks.problems, support.problems].concat(),
    }
}

fn within<M: Memory>(memory: &Counting<M>, limits: &Limits, what: &str) {
    let (reads, bytes) = memory.take();
    assert!(reads <= limits.reads, "{what}: {reads} reads");
    assert!(bytes <= limits.read_bytes, "{what}: {bytes} bytes read");
}

pub fn check_problems(problems: &[String], limits: &Limits) {
    // One more counts those that were left out.
    assert!(problems.len() <= limits.problems + 1);
    for problem in problems {
        assert!(!problem.is_empty());
        // A few names may stand in one.
        assert!(
            problem.len() <= 4 * limits.string_bytes + 5_000,
            "{problem}"
        );
    }
}

pub fn check_stacks(stacks: &Stacks, limits: &Limits) {
    check_problems(&stacks.problems, limits);
    assert!(stacks.interpreters.len() <= limits.interpreters);
    let threads = || stacks.interpreters.iter().flat_map(|i| &i.threads);
    assert!(threads().count() <= limits.threads);
    for frames in threads().map(|t| &t.frames) {
        assert!(frames.len() <= limits.frames);
        for locals in frames.iter().filter_map(|f| f.locals.as_ref()) {
            assert!(locals.len() <= limits.locals);
        }
    }
    let weight = Weight::default().stacks(stacks);
    assert!(
        weight <= heaviest(limits),
        "stacks: {weight} bytes in memory"
    );
}

pub fn check_tasks(tasks: &Tasks, limits: &Limits) {
    check_problems(&tasks.problems, limits);
    assert!(tasks.tasks.len() <= limits.tasks);
    assert!(tasks.loops.len() <= limits.tasks + limits.threads);
    for task in &tasks.tasks {
        assert!(task.awaited_by.len() <= limits.awaiters);
        assert!(task.coroutine.len() <= limits.coroutines + limits.frames);
    }
    let weight = Weight::default().tasks(tasks);
    assert!(
        weight <= heaviest(limits),
        "tasks: {weight} bytes in memory"
    );
}

/// What a result may take in memory: what the limits allow in text and in entries that are counted one by one.
fn heaviest(limits: &Limits) -> usize {
    let kept = usize::try_from(limits.text_bytes + limits.result_bytes).unwrap();
    let thread = size_of::<Thread>() + 2 * limits.string_bytes;
    let task = size_of::<Task>();
    2 * kept + limits.threads * thread + limits.tasks * task + limits.problems * 10_000
}

/// Bytes that a result takes; text and slices that are shared count once.
#[derive(Default)]
struct Weight {
    seen: HashSet<(usize, usize)>,
}

impl Weight {
    fn text(&mut self, text: &str) -> usize {
        if self.seen.insert((text.as_ptr() as usize, text.len())) {
            text.len()
        } else {
            0
        }
    }

    fn frames(&mut self, frames: &[Frame]) -> usize {
        if !self.seen.insert((frames.as_ptr() as usize, frames.len())) {
            return 0;
        }
        frames
            .iter()
            .map(|frame| {
                let locals = frame.locals.iter().flatten().map(|local| {
                    size_of::<Local>()
                        + self.text(&local.name)
                        + self.text(&local.type_name)
                        + local.value.as_deref().map_or(0, |value| self.text(value))
                });
                let locals: usize = locals.sum();
                size_of::<Frame>() + locals + self.text(&frame.function) + self.text(&frame.file)
            })
            .sum()
    }

    fn stacks(mut self, stacks: &Stacks) -> usize {
        let threads = stacks.interpreters.iter().flat_map(|i| &i.threads);
        threads
            .map(|t| size_of::<Thread>() + self.text(&t.name) + self.frames(&t.frames))
            .sum()
    }

    fn tasks(mut self, tasks: &Tasks) -> usize {
        let one = |task: &Task| {
            let mut weight = size_of::<Task>() + self.text(&task.name);
            weight += self.frames(&task.coroutine);
            weight += size_of_val(task.awaited_by.as_slice());
            if let Some(waiting) = &task.waiting_for {
                weight += self.text(&waiting.kind);
                weight += waiting.detail.as_deref().map_or(0, |d| self.text(d));
                let held_by = waiting.held_by.as_deref().unwrap_or_default();
                if self.seen.insert((held_by.as_ptr() as usize, held_by.len())) {
                    weight += size_of_val(held_by);
                }
            }
            weight
        };
        let cycles = tasks.cycles.iter().map(|c| size_of_val(c.as_slice()));
        let groups = tasks.groups.iter().map(|g| size_of_val(g.tasks.as_slice()));
        let shared = cycles.sum::<usize>() + groups.sum::<usize>();
        shared + tasks.tasks.iter().map(one).sum::<usize>()
    }
}
