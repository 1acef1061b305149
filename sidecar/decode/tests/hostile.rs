//! Targets that change under the reader, end, or lie: a decode always ends within its limits and never panics.

#![expect(
    clippy::unwrap_used,
    reason = "a test states what must hold; a panic is its report"
)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;
use sidewinder_decode::{
    Addr, Image, Limits, Memory, ReadError, Recorder, Runtime, remote_exec, stacks, tasks,
};
use sidewinder_model::Locals;

fn image(name: &str) -> Image {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/images")
        .join(name);
    Image::from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

fn limits() -> Limits {
    Limits {
        reads: 60_000,
        text_bytes: 1 << 20,
        frames: 500,
        tasks: 200,
        awaiters: 100,
        dict_entries: 500,
        locals: 64,
        ..Limits::default()
    }
}

/// Counts the reads, so that a test sees whether they were bounded.
struct Counting<M> {
    inner: M,
    reads: Cell<u64>,
}

impl<M: Memory> Memory for Counting<M> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        self.reads.set(self.reads.get() + 1);
        self.inner.read(at, buf)
    }
}

/// Everything there is, on a target that was located while it was sound, or is located now.
fn decode_all(memory: impl Memory, image: &Image, located: Option<&Runtime>) -> usize {
    let memory = Counting {
        inner: memory,
        reads: Cell::new(0),
    };
    let found;
    let runtime = match located {
        Some(runtime) => runtime,
        None => match Runtime::locate(&memory, &image.mappings, image) {
            Ok(runtime) => {
                found = runtime;
                &found
            }
            Err(_) => return 0,
        },
    };
    let limits = limits();
    let mut problems = 0;
    let before = memory.reads.get();
    let stacks = stacks(&memory, runtime, &image.threads, Locals::Values, &limits);
    assert!(memory.reads.get() - before <= limits.reads);
    problems += stacks.problems.len();
    assert!(stacks.problems.len() <= limits.problems + 1);
    for frames in stacks
        .interpreters
        .iter()
        .flat_map(|i| &i.threads)
        .map(|t| &t.frames)
    {
        assert!(frames.len() <= limits.frames);
    }
    let before = memory.reads.get();
    let tasks = tasks(&memory, runtime, &image.threads, &limits);
    assert!(memory.reads.get() - before <= limits.reads);
    assert!(tasks.tasks.len() <= limits.tasks);
    problems += tasks.problems.len();
    let _ = runtime.gil(&memory);
    let _ = remote_exec::support(&memory, runtime, &image.threads);
    problems
}

fn located(image: &Image) -> Runtime {
    Runtime::locate(image, &image.mappings, image).unwrap()
}

/// Fails one read, or all from it on.
struct Faulty<'a> {
    image: &'a Image,
    left: Cell<u64>,
    for_good: bool,
}

impl Memory for Faulty<'_> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        match left {
            0 if self.for_good => Err(ReadError::Gone),
            1 => Err(ReadError::Fault { at, len: buf.len() }),
            _ => self.image.read(at, buf),
        }
    }
}

/// Answers from two targets in turn, as memory does that changes while it is read.
struct Torn<'a> {
    images: [&'a Image; 2],
    reads: Cell<usize>,
    pattern: u64,
}

impl Memory for Torn<'_> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let n = self.reads.get();
        self.reads.set(n + 1);
        let first = usize::from(self.pattern >> (n % 64) & 1 == 1);
        self.images[first]
            .read(at, buf)
            .or_else(|_| self.images[1 - first].read(at, buf))
    }
}

/// Some words of the target hold something else.
struct Lying<'a> {
    image: &'a Image,
    words: BTreeMap<u64, u64>,
}

impl Memory for Lying<'_> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        self.image.read(at, buf)?;
        let end = at.0 + buf.len() as u64;
        for (&word, value) in self.words.range(at.0.saturating_sub(7)..end) {
            for (n, byte) in value.to_le_bytes().into_iter().enumerate() {
                let position = word + n as u64;
                if (at.0..end).contains(&position) {
                    buf[usize::try_from(position - at.0).unwrap()] = byte;
                }
            }
        }
        Ok(())
    }
}

/// The addresses of all words that a decode looks at and that are not zero, those of the offsets' table included.
fn words(image: &Image) -> Vec<u64> {
    let recorder = Recorder::new(image, usize::MAX);
    decode_all(&recorder, image, None);
    let mut found = Vec::new();
    for (page, bytes) in recorder.into_touched() {
        for (n, word) in bytes.chunks(8).enumerate() {
            if word != [0; 8] {
                found.push(page + 8 * n as u64);
            }
        }
    }
    found
}

/// What a damaged word may hold: near to what was there, another word's address, or anything.
#[derive(Clone, Debug)]
enum Damage {
    Bit(u32),
    Address(prop::sample::Index),
    Small(u64),
    Any(u64),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (0_u32..64).prop_map(Damage::Bit),
        any::<prop::sample::Index>().prop_map(Damage::Address),
        (0_u64..1024).prop_map(Damage::Small),
        any::<u64>().prop_map(Damage::Any),
        Just(Damage::Any(u64::MAX)),
        Just(Damage::Any(i64::MAX as u64)),
    ]
}

#[test]
fn nothing_ends_with_a_sound_target_that_is_left_alone() {
    for name in [
        "tasks.img",
        "threads.img",
        "subinterpreters.img",
        "contended.img",
    ] {
        let image = image(name);
        assert_eq!(decode_all(&image, &image, None), 0, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_read_that_fails(n in 1_u64..12_000, for_good: bool, which in 0..3_usize) {
        let image = image(["tasks.img", "threads.img", "subinterpreters.img"][which]);
        let runtime = located(&image);
        decode_all(Faulty { image: &image, left: Cell::new(n), for_good }, &image, Some(&runtime));
        decode_all(Faulty { image: &image, left: Cell::new(n % 200), for_good }, &image, None);
    }

    #[test]
    fn a_target_that_changes_meanwhile(pattern: u64, which in 0..2_usize) {
        let (first, second) = (image("tasks.img"), image(["subinterpreters.img", "threads.img"][which]));
        let runtime = located(&first);
        decode_all(Torn { images: [&first, &second], reads: Cell::new(0), pattern }, &first, Some(&runtime));
        decode_all(Torn { images: [&first, &second], reads: Cell::new(0), pattern }, &first, None);
    }

    #[test]
    fn images_that_are_damaged(at: prop::sample::Index, byte: u8) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/images/ended.img");
        let mut bytes = std::fs::read(path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(image) = Image::from_bytes(&bytes) {
            decode_all(&image, &image, None);
        }
    }
}

#[test]
fn words_that_lie() {
    for name in ["tasks.img", "threads.img"] {
        let image = image(name);
        let runtime = located(&image);
        let words = words(&image);
        let lies = prop::collection::vec((any::<prop::sample::Index>(), damage()), 1..12);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 192,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        runner
            .run(&lies, |lies| {
                let words = lies
                    .iter()
                    .map(|(at, damage)| {
                        let at = *at.get(&words);
                        let mut was = [0; 8];
                        image.read(Addr(at), &mut was).unwrap();
                        let was = u64::from_le_bytes(was);
                        let value = match damage {
                            Damage::Bit(bit) => was ^ (1 << bit),
                            Damage::Address(other) => *other.get(&words),
                            Damage::Small(value) | Damage::Any(value) => *value,
                        };
                        (at, value)
                    })
                    .collect();
                let lying = Lying {
                    image: &image,
                    words,
                };
                decode_all(&lying, &image, Some(&runtime));
                decode_all(&lying, &image, None);
                Ok(())
            })
            .unwrap();
    }
}
