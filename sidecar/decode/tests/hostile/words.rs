//! Words that lie: those of the tables, every pointer, and anything.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sidewinder_decode::Runtime;

use crate::bounds::{decode_all, small};
use crate::lies::{Lie, Lying, Words};
use crate::made::asyncio_table;
use crate::{IMAGES, cases, image, located};

/// What a slot of a table may hold that no sound one does.
fn extremes(size: u64) -> [u64; 9] {
    [
        0,
        1,
        7,
        size - 1,
        size,
        size + 1,
        1 << 32,
        i64::MAX as u64,
        u64::MAX,
    ]
}

#[test]
fn every_slot_of_the_tables_may_hold_anything() {
    // The longest table of any version has 111 words.
    for (name, table, words) in [
        ("3.15/ended", None, 111_u64),
        ("3.14/tasks", Some(asyncio_table(&image("3.14/tasks"))), 13),
    ] {
        let image = image(name);
        let at = table.unwrap_or_else(|| located(&image).address().0);
        let mut located = 0;
        for (n, value) in (0..words).flat_map(|n| extremes(0x340).map(|value| (n, value))) {
            let lie = BTreeMap::from([(at + 8 * n, value)]);
            let memory = Lying::new(&image, lie, 0);
            located += usize::from(decode_all(memory, &image, None, &small()).located);
        }
        assert!(located > 0, "{name}: no slot's lie was believed");
    }
}

/// Each pointer in turn becomes null, its own address, another object's, one that is not aligned, and the end of memory.
#[test]
fn every_pointer_may_lead_anywhere() {
    for (name, cases_here) in [
        ("3.15/ended", 500),
        ("3.14/subinterpreters", 200),
        ("3.15/tasks", 600),
        ("3.14/threads", 150),
    ] {
        let image = image(name);
        let runtime = located(&image);
        let words = Words::of(&image);
        let pointers = words.pointers();
        assert!(pointers.len() > 200, "{name}: {}", pointers.len());
        let step = (pointers.len() / cases_here).max(1);
        for (turn, n) in pointers.iter().step_by(step).enumerate() {
            let other = u16::try_from(pointers[(turn * 7919) % pointers.len()]).unwrap_or(u16::MAX);
            let lie = match turn % 6 {
                0 => Lie::Null,
                1 => Lie::Itself,
                2 => Lie::Address(other, 0),
                3 => Lie::Other(other),
                4 => Lie::Near(3),
                _ => Lie::Top(u8::try_from(turn % 16).unwrap()),
            };
            let lie = BTreeMap::from([words.lie(*n, lie)]);
            decode_all(Lying::new(&image, lie, 0), &image, Some(&runtime), &small());
        }
    }
}

#[test]
fn words_that_lie() {
    for name in IMAGES {
        let image = image(name);
        let runtime = located(&image);
        let words = Words::of(&image);
        let lies = prop::collection::vec(any::<(prop::sample::Index, u8, u64)>(), 1..12);
        let mut runner = TestRunner::new(cases(256));
        runner
            .run(
                &(lies, 0_u64..3000, any::<bool>()),
                |(lies, truthful, find)| {
                    let lies = lies.iter();
                    let lies = lies.map(|(n, kind, value)| {
                        words.lie(n.index(usize::MAX), Lie::of(*kind, *value))
                    });
                    let memory = Lying::new(&image, lies.collect(), truthful);
                    let runtime = (!find).then_some(&runtime);
                    decode_all(memory, &image, runtime, &small());
                    Ok(())
                },
            )
            .unwrap();
    }
}

proptest! {
    #![proptest_config(cases(256))]

    /// `/proc/PID/maps` is the target's to choose.
    #[test]
    fn mappings_may_be_any(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), any::<u64>(), any::<u64>(), 0..8_u8), 1..20)) {
        let mut image = image("3.14/ended");
        for (at, start, end, offset, what) in changes {
            let mapping = &mut image.mappings[at.index(usize::MAX) % 8];
            if what & 1 != 0 {
                mapping.start = start;
            }
            if what & 2 != 0 {
                mapping.end = end;
            }
            if what & 4 != 0 {
                mapping.offset = offset;
            }
        }
        let _ = Runtime::locate(&image, &image.mappings, &image);
        decode_all(&image, &image, None, &small());
    }

    /// Limits of any size are kept to.
    #[test]
    fn limits_may_be_any(sizes in prop::array::uniform8(0_usize..40), which in 0..IMAGES.len()) {
        let image = image(IMAGES[which]);
        let runtime = located(&image);
        let [interpreters, threads, frames, coroutines, tasks, awaiters, locals, text] = sizes;
        let limits = sidewinder_decode::Limits {
            interpreters,
            threads,
            frames,
            coroutines,
            tasks,
            // A single one needs no set, and is always there.
            awaiters: awaiters + 1,
            locals,
            text_bytes: 1024 * text as u64,
            result_bytes: 2048 * text as u64,
            string_bytes: 2 * text,
            reads: 200 * text as u64,
            read_bytes: 4000 * text as u64,
            problems: frames,
            ..small()
        };
        decode_all(&image, &image, Some(&runtime), &limits);
    }
}
