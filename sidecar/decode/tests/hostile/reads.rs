//! Reads that fail, and targets that are another one from a read on.

use std::cell::Cell;

use proptest::prelude::*;
use sidewinder_decode::{Addr, Image, Limits, Memory, ReadError};

use crate::bounds::{Outcome, decode_all, small};
use crate::{IMAGES, cases, image, located};

/// Fails one read, or all from it on.
struct Faulty<'a> {
    image: &'a Image,
    left: Cell<u64>,
    error: fn(Addr, usize) -> ReadError,
    for_good: bool,
}

impl Memory for Faulty<'_> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        if left == 1 || left == 0 && self.for_good {
            // What was written before a read failed is nothing to rely on.
            buf.fill(0xa5);
            return Err((self.error)(at, buf.len()));
        }
        self.image.read(at, buf)
    }
}

const ERRORS: [fn(Addr, usize) -> ReadError; 3] = [
    |at, len| ReadError::Fault { at, len },
    |_, _| ReadError::Gone,
    |_, _| ReadError::Denied,
];

/// Answers from one of two targets, as memory does that changes while it is read.
struct Torn<'a> {
    images: [&'a Image; 2],
    reads: Cell<u64>,
    /// Which one answers the n-th read.
    second: &'a dyn Fn(u64) -> bool,
}

impl Memory for Torn<'_> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let n = self.reads.get();
        self.reads.set(n + 1);
        let [first, other] = self.images;
        let [first, other] = if (self.second)(n) {
            [other, first]
        } else {
            [first, other]
        };
        first.read(at, buf).or_else(|_| other.read(at, buf))
    }
}

fn torn(images: [&Image; 2], find: bool, second: &dyn Fn(u64) -> bool) -> Outcome {
    let memory = Torn {
        images,
        reads: Cell::new(0),
        second,
    };
    let runtime = (!find).then(|| located(images[0]));
    decode_all(memory, images[0], runtime.as_ref(), &small())
}

/// How many reads everything takes.
fn reads(image: &Image) -> u64 {
    let faulty = Faulty {
        image,
        left: Cell::new(u64::MAX),
        error: ERRORS[0],
        for_good: false,
    };
    decode_all(&faulty, image, None, &Limits::default());
    u64::MAX - faulty.left.get()
}

/// The first two hundred reads are the search and the tables; of the later ones every so manieth is failed.
#[test]
fn every_read_may_fail() {
    for (name, every) in [("3.14/ended", 1), ("3.15/contended", 3), ("3.14/tasks", 23)] {
        let image = image(name);
        let all = reads(&image);
        assert!(all > 200, "{name}: {all} reads");
        for n in (1..200_u64).step_by(3).chain((200..all).step_by(every)) {
            let (error, for_good) = (ERRORS[usize::try_from(n % 3).unwrap()], n % 2 == 0);
            let memory = Faulty {
                image: &image,
                left: Cell::new(n),
                error,
                for_good,
            };
            let outcome = decode_all(memory, &image, None, &Limits::default());
            assert!(
                !for_good || !outcome.located || !outcome.problems.is_empty(),
                "{name}: nothing was said of the reads that failed from {n} of {all} on"
            );
        }
    }
}

#[test]
fn a_target_that_is_another_from_a_read_on() {
    for (first, second) in [
        ("3.14/tasks", "3.15/subinterpreters"),
        ("3.15/ended", "3.15/tasks"),
    ] {
        let (first, second) = (image(first), image(second));
        let all = reads(&first);
        for n in (0..150)
            .step_by(5)
            .chain((150..all).step_by(usize::try_from(all / 25).unwrap()))
        {
            torn([&first, &second], true, &|read| read >= n);
        }
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_read_that_fails(n in 1_u64..12_000, error in 0..3_usize, for_good: bool, which in 0..IMAGES.len()) {
        let image = image(IMAGES[which]);
        let runtime = located(&image);
        let memory = Faulty { image: &image, left: Cell::new(n), error: ERRORS[error], for_good };
        decode_all(memory, &image, Some(&runtime), &small());
    }

    #[test]
    fn two_targets_in_turn(pattern: u64, find: bool, first in 0..IMAGES.len(), second in 0..IMAGES.len()) {
        let (first, second) = (image(IMAGES[first]), image(IMAGES[second]));
        torn([&first, &second], find, &|read| pattern >> (read % 64) & 1 == 1);
    }
}
