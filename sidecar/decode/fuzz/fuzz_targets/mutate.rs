//! A recorded target of which some words lie, before it is located or from a read on.

#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use sidewinder_decode_fuzz::TARGETS;
use sidewinder_decode_fuzz::bounds::{decode_all, small};
use sidewinder_decode_fuzz::lies::{Lie, Lying};

#[derive(Debug, arbitrary::Arbitrary)]
struct Case {
    target: u8,
    located: bool,
    truthful_reads: u16,
    /// Which word, which lie, and its parameter.
    lies: Vec<(u16, u8, u64)>,
}

fuzz_target!(|case: Case| {
    let target = &TARGETS[usize::from(case.target) % TARGETS.len()];
    let lies = case.lies.iter();
    let words = lies.map(|&(n, kind, value)| target.words.lie(n.into(), Lie::of(kind, value)));
    let memory = Lying::new(&target.image, words.collect(), case.truthful_reads.into());
    let runtime = case.located.then_some(&target.runtime);
    decode_all(memory, &target.image, runtime, &small());
});
