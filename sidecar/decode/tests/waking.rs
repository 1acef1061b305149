//! What waking a main thread that waits for a lock needs, in interpreters that were never run: the queue of pending
//! calls, the table of signals, and who waits for the GIL. Laid out as in CPython's headers.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test states what must hold; a panic is its report"
)]

#[allow(dead_code, reason = "each test binary uses a part of it")]
mod synthetic;

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use sidewinder_decode::remote_exec::{Hooks, PendingCalls, Queue, Signals, pending_calls, support};
use sidewinder_decode::{Addr, Memory, ReadError, Runtime};
use synthetic::{Layout, Process};

/// The two constants of a queue, 300 and 100.
const LIMITS: u64 = 0x64_0000_012c;
/// Where the queue's `handling_thread` lies in an interpreter of 3.14 and 3.15.
const QUEUE: u64 = 0x20;
const NPENDING: u64 = QUEUE + 12;
const CALLS: u64 = NPENDING + 12;
const FIRST: u64 = CALLS + 300 * 24;

/// What stands in a queue.
#[derive(Clone, Copy, Default)]
struct Filled {
    handler: u64,
    mutex: u8,
    npending: u32,
    first: u32,
}

/// A queue in which so many calls wait, `at` bytes into the interpreter.
fn fill(process: &mut Process, at: u64, filled: Filled) {
    let at = process.interpreter + at;
    let half = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    process.put(at, filled.handler);
    process.put(at + 8, half(filled.mutex.into(), filled.npending));
    process.put(at + 16, LIMITS);
    for n in 0..filled.npending {
        let entry = at + 24 + 24 * u64::from((filled.first + n) % 300);
        process.put(entry, 0x1000 + u64::from(n));
    }
    let next = (filled.first + filled.npending) % 300;
    process.put(at + 24 + 300 * 24, half(filled.first, next));
}

fn locate(process: &Process) -> Runtime {
    Runtime::locate(process, &Process::mappings(), process).unwrap()
}

fn found(process: &Process) -> Option<(PendingCalls, Queue)> {
    let calls = pending_calls(process, &locate(process), Addr(process.interpreter))?;
    Some((calls, calls.read(process)?))
}

#[test]
fn a_queue_is_found_with_whatever_is_in_it() {
    for layout in Layout::ALL {
        for (npending, first) in [
            (0, 0),
            (1, 0),
            (0, 299),
            (5, 297),
            (299, 1),
            (300, 0),
            (300, 7),
        ] {
            let mut process = Process::new(layout);
            fill(
                &mut process,
                QUEUE,
                Filled {
                    npending,
                    first,
                    ..Filled::default()
                },
            );
            let (calls, queue) = found(&process).unwrap();
            let at = |offset| Addr(process.interpreter + offset);
            assert_eq!(
                [
                    calls.mutex,
                    calls.npending,
                    calls.calls,
                    calls.first,
                    calls.next
                ],
                [NPENDING - 4, NPENDING, CALLS, FIRST, FIRST + 4].map(at)
            );
            let next = (first + npending) % 300;
            let expected = Queue {
                locked: false,
                handled: false,
                npending,
                first,
                next,
                entry: at(CALLS + 24 * u64::from(next)),
                after: (next + 1) % 300,
            };
            assert_eq!(queue, expected);
            assert_eq!(queue.takes_one(), npending < 300);
        }
    }
}

#[test]
fn a_queue_that_somebody_is_at_takes_nothing() {
    let mut process = Process::new(Layout::ALL[0]);
    fill(
        &mut process,
        QUEUE,
        Filled {
            mutex: 1,
            ..Filled::default()
        },
    );
    let (calls, queue) = found(&process).unwrap();
    assert!(queue.locked && !queue.handled && !queue.takes_one());
    fill(
        &mut process,
        QUEUE,
        Filled {
            handler: 0x7f00,
            npending: 3,
            ..Filled::default()
        },
    );
    let queue = calls.read(&process).unwrap();
    assert!(queue.handled && !queue.locked && !queue.takes_one());
}

#[test]
fn a_queue_that_contradicts_itself_is_none() {
    let half = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let sound = Filled {
        npending: 2,
        first: 3,
        ..Filled::default()
    };
    for (at, word) in [
        // More than fit, none of what there is, other limits.
        (QUEUE + 8, half(0, 301)),
        (QUEUE + 8, half(0, u32::MAX)),
        (QUEUE + 16, half(301, 100)),
        (QUEUE + 16, half(300, 99)),
        // As many as lie between the two ends.
        (FIRST, half(3, 6)),
        (FIRST, half(3, 305)),
        (FIRST, half(303, 5)),
        (FIRST, half(u32::MAX, 1)),
        // Something where nothing is to be.
        (CALLS + 24 * 5, 1),
        (CALLS + 24 * 5 + 16, 1),
    ] {
        let mut process = Process::new(Layout::ALL[0]);
        fill(&mut process, QUEUE, sound);
        let (calls, _) = found(&process).unwrap();
        process.put(process.interpreter + at, word);
        assert_eq!(found(&process), None, "{at:#x}: {word:#x}");
        // Nor when it has come to that since it was found.
        assert_eq!(calls.read(&process), None, "{at:#x}: {word:#x}");
    }
}

#[test]
fn of_two_queues_none_is_believed() {
    for second in [0x2000, 0x8000, 0xffe8] {
        let mut process = Process::new(Layout::ALL[0]);
        fill(
            &mut process,
            second,
            Filled {
                npending: 1,
                ..Filled::default()
            },
        );
        let (calls, _) = found(&process).unwrap();
        assert_eq!(calls.npending, Addr(process.interpreter + second + 12));
        fill(&mut process, QUEUE, Filled::default());
        assert_eq!(found(&process), None);
    }
    // Far behind the interpreter's beginning it is something else.
    let mut process = Process::new(Layout::ALL[0]);
    for at in [QUEUE, 0x1_0000] {
        fill(&mut process, at, Filled::default());
    }
    assert_eq!(
        found(&process).unwrap().0.npending,
        Addr(process.interpreter + NPENDING)
    );
}

// Signals.

const DEFAULT: u64 = 0x7f00_1000;
const IGNORE: u64 = 0x7f00_2000;
const OWN: u64 = 0x7f00_3000;

/// A table `at` bytes into the runtime: most signals have the default handler, two are ignored, some are the program's.
fn table(process: &mut Process, base: u64, at: u64, own: u64, fd: i32, tripped: &[u64]) {
    for signal in 1..65 {
        let handler = match signal {
            13 | 25 => IGNORE,
            n if n > 64 - own => OWN + n,
            _ => DEFAULT,
        };
        process.put(
            base + at + 16 * signal,
            u64::from(tripped.contains(&signal)),
        );
        process.put(base + at + 16 * signal + 8, handler);
    }
    let wakeup = base + at + 65 * 16;
    process.put(wakeup, u64::from(fd.cast_unsigned()) | 1 << 32);
    process.put(wakeup + 8, u64::from(!tripped.is_empty()));
    process.put(wakeup + 16, DEFAULT);
    process.put(wakeup + 24, IGNORE);
}

/// Behind the table of offsets, which the runtime begins with.
const PLACES: [u64; 3] = [0x4e8, 0x568, 0x3000];

#[test]
fn the_table_of_signals_is_found_with_whatever_has_come() {
    for layout in Layout::ALL {
        for at in PLACES {
            for (own, fd, tripped) in [(0, -1, &[][..]), (5, 7, &[2]), (29, 0, &[1, 15, 64])] {
                let mut process = Process::new(layout);
                let runtime = locate(&process);
                let base = runtime.address().0;
                assert_eq!(Signals::locate(&process, &runtime), None);
                table(&mut process, base, at, own, fd, tripped);
                let signals = Signals::locate(&process, &runtime).unwrap();
                let expected = Signals {
                    handlers: Addr(base + at),
                    is_tripped: Addr(base + at + 0x418),
                    wakeup_fd: fd,
                };
                assert_eq!(signals, expected);
                assert_eq!(signals.tripped(2), Some(Addr(base + at + 32)));
                assert_eq!(signals.tripped(64), Some(Addr(base + at + 1024)));
                for none in [0, 65, u32::MAX] {
                    assert_eq!(signals.tripped(none), None);
                }
            }
        }
    }
}

#[test]
fn a_table_of_signals_that_contradicts_itself_is_none() {
    let at = PLACES[0];
    for (offset, word) in [
        // Neither come nor not; another default; most signals have another.
        (16 * 5, 2),
        (65 * 16, u64::from((-2_i32).cast_unsigned())),
        (65 * 16 + 8, 3),
        (65 * 16 + 16, 0),
        (65 * 16 + 16, OWN),
        (65 * 16 + 16, IGNORE),
    ] {
        let mut process = Process::new(Layout::ALL[0]);
        let runtime = locate(&process);
        let base = runtime.address().0;
        table(&mut process, base, at, 0, -1, &[]);
        assert!(Signals::locate(&process, &runtime).is_some());
        process.put(base + at + offset, word);
        assert_eq!(Signals::locate(&process, &runtime), None, "{offset:#x}");
    }
    // Two of them.
    let mut process = Process::new(Layout::ALL[0]);
    let runtime = locate(&process);
    let base = runtime.address().0;
    for at in [PLACES[0], PLACES[2]] {
        table(&mut process, base, at, 0, -1, &[]);
    }
    assert_eq!(Signals::locate(&process, &runtime), None);
}

// The GIL.

#[test]
fn a_thread_that_sleeps_for_the_gil_or_asks_for_it_wants_it() {
    for layout in Layout::ALL {
        let mut p = Process::new(layout);
        let gil = p.interpreter + layout.get("interpreter_state.gil_runtime_state");
        let threads: Vec<u64> = (10..14).map(|tid| p.thread(tid, tid, 0, 0)).collect();
        let within = |name| p.interpreter + layout.get(name);
        let holder = within("interpreter_state.gil_runtime_state_holder");
        let locked = within("interpreter_state.gil_runtime_state_locked");
        p.put(holder, threads[0]);
        p.put(locked, 1);
        for (os, futex) in
            p.os_threads
                .iter_mut()
                .zip([Some(gil + 16), Some(gil + 24), Some(1 << 40), None])
        {
            os.futex = futex;
        }
        let wants = |p: &Process| -> Vec<bool> {
            let support = support(p, &locate(p), &p.os_threads);
            assert_eq!(support.problems, [""; 0]);
            support.interpreters[0]
                .threads
                .iter()
                .map(|thread| thread.wants_gil)
                .collect()
        };
        // Whoever has it wants it no more, wherever the kernel saw it asleep.
        assert_eq!(wants(&p), [false, !layout.free_threaded, false, false]);
        if layout.minor == 15 {
            let requested = layout.get("thread_state.gil_requested");
            p.put(threads[3] + requested, 1);
            assert_eq!(wants(&p)[3], !layout.free_threaded);
        }
    }
}

/// Changes words of a process, and counts what is read of it.
struct Lying {
    process: Process,
    words: BTreeMap<u64, u64>,
    reads: Cell<u64>,
}

impl Memory for Lying {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        self.reads.set(self.reads.get() + 1);
        self.process.read(at, buf)?;
        for (n, byte) in (at.0..).zip(buf) {
            if let Some(word) = self.words.get(&(n & !7)) {
                *byte = word.to_le_bytes()[usize::try_from(n % 8).unwrap()];
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn words_of_both_may_be_any(
        words in prop::collection::vec((0..400_u64, prop_oneof![any::<u64>(), 0..302_u64, Just(LIMITS), Just(DEFAULT)]), 0..60),
        interpreter in prop_oneof![Just(None), any::<u64>().prop_map(Some)],
    ) {
        let mut process = Process::new(Layout::ALL[0]);
        fill(&mut process, QUEUE, Filled { npending: 3, ..Filled::default() });
        let runtime = locate(&process);
        let base = runtime.address().0;
        table(&mut process, base, PLACES[0], 0, -1, &[]);
        let (queue, ends) = (process.interpreter, process.interpreter + FIRST);
        let words = words
            .into_iter()
            .map(|(n, word)| match n {
                0..100 => (queue + 8 * (n % 20), word),
                100..120 => (ends & !7, word),
                _ => (base + PLACES[0] + 8 * (n - 120), word),
            })
            .collect();
        let at = Addr(interpreter.unwrap_or(process.interpreter));
        let memory = Lying { process, words, reads: Cell::default() };
        if let Some(calls) = pending_calls(&memory, &runtime, at) {
            let queue = calls.read(&memory).unwrap();
            prop_assert!(queue.npending <= 300 && queue.next < 300 && queue.after < 300);
            prop_assert!(queue.entry >= calls.calls && queue.entry < calls.first);
        }
        let _ = Signals::locate(&memory, &runtime);
        let _ = Hooks::of(&memory, &runtime, at);
        prop_assert!(memory.reads.get() < 1000, "{} reads", memory.reads.get());
    }
}
