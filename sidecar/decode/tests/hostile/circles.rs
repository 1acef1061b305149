//! Lists that never end.

use sidewinder_decode::offsets::Field as F;
use sidewinder_decode::{Limits, stacks, tasks};
use sidewinder_model::{Locals, Tasks};

use crate::bounds::{Counting, decode_all};
use crate::made::Made;

/// All of it takes a few reads and says so.
fn ends(made: &Made, says: &str) {
    let counting = Counting::new(made);
    let outcome = decode_all(
        &counting,
        &made.image,
        Some(&made.runtime),
        &Limits::default(),
    );
    let (reads, _) = counting.take();
    assert!(reads < 5_000, "{says}: {reads} reads");
    assert!(
        outcome
            .problems
            .iter()
            .any(|problem| problem.contains(says)),
        "{says}: {:?}",
        outcome.problems
    );
}

/// A function, a thread that runs it, and the thread's frame.
fn one_thread(made: &mut Made) -> (u64, u64, u64) {
    let lines = made.bytes(&[0x80, 0]);
    let code = made.code("function", &[], lines);
    let frame = made.frame(0, code, &[]);
    let thread = made.thread(11, frame);
    let interpreter = made.main_interpreter();
    made.threads(interpreter, &[thread]);
    (code, thread, frame)
}

fn decoded(made: &Made) -> Tasks {
    tasks(made, &made.runtime, &made.image.threads, &Limits::default())
}

#[test]
fn what_is_made_up_is_decoded() {
    let mut made = Made::new();
    let (code, thread, _) = one_thread(&mut made);
    let (inner, name) = (made.coroutine(code, 0), made.text("name"));
    let outer = made.coroutine(code, inner);
    let task = made.task(name, outer);
    made.tasks(thread, &[task]);
    let stacks = stacks(
        &made,
        &made.runtime,
        &[],
        Locals::Values,
        &Limits::default(),
    );
    let frames = &stacks.interpreters[0].threads[0].frames;
    assert_eq!(frames.len(), 1);
    assert_eq!(&*frames[0].function, "function");
    let tasks = decoded(&made);
    assert_eq!(tasks.problems, [""; 0]);
    assert_eq!(&*tasks.tasks[0].name, "name");
    assert_eq!(tasks.tasks[0].coroutine.len(), 2);
}

#[test]
fn interpreters() {
    let mut made = Made::new();
    let (first, second) = (made.main_interpreter(), made.interpreter());
    made.interpreters(&[first, second]);
    made.set(second, F::interpreter_state_next, first);
    ends(&made, "a circle of them");
    made.set(first, F::interpreter_state_next, first);
    ends(&made, "a circle of them");
}

#[test]
fn threads() {
    let mut made = Made::new();
    let (_, thread, _) = one_thread(&mut made);
    made.set(thread, F::thread_state_next, thread);
    ends(&made, "a circle of them");
    let second = made.thread(12, 0);
    made.set(thread, F::thread_state_next, second);
    made.set(second, F::thread_state_next, thread);
    ends(&made, "a circle of them");
}

#[test]
fn frames() {
    let mut made = Made::new();
    let (code, _, frame) = one_thread(&mut made);
    made.set(frame, F::interpreter_frame_previous, frame);
    ends(&made, "its frames form a circle");
    let outer = made.frame(frame, code, &[]);
    made.set(frame, F::interpreter_frame_previous, outer);
    ends(&made, "its frames form a circle");
    // Entries from C are not shown and must not be walked for ever either.
    let entry = made.frame(0, 0, &[]);
    made.set(entry, F::interpreter_frame_previous, entry);
    made.set(frame, F::interpreter_frame_previous, entry);
    ends(&made, "its frames form a circle");
}

#[test]
fn lists_of_tasks() {
    let mut made = Made::new();
    let (code, thread, _) = one_thread(&mut made);
    let name = made.text("name");
    let list: Vec<u64> = (0..3)
        .map(|_| {
            let coroutine = made.coroutine(code, 0);
            made.task(name, coroutine)
        })
        .collect();
    made.tasks(thread, &list);
    assert_eq!(decoded(&made).tasks.len(), 3);
    let next = made.offset(F::llist_node_next);
    let node = made.asyncio.node;
    // The last one leads to the second, then to itself; the head is never met again.
    for back in [list[1], list[2]] {
        made.word(list[2] + node + next, back + node);
        ends(&made, "twice");
        assert_eq!(decoded(&made).tasks.len(), 3);
    }
}

#[test]
fn coroutines() {
    let mut made = Made::new();
    let (code, thread, _) = one_thread(&mut made);
    let inner = made.coroutine(code, 0);
    let outer = made.coroutine(code, inner);
    let name = made.text("name");
    let task = made.task(name, outer);
    made.tasks(thread, &[task]);
    for back in [inner, outer] {
        made.awaits(inner, back);
        ends(&made, "its coroutines form a circle");
        assert_eq!(decoded(&made).tasks[0].coroutine.len(), 2);
    }
    // A wrapper has no frame of its own.
    let wrapper = made.object("coroutine_wrapper", 0, 64);
    made.set(wrapper, F::pyobject_size, wrapper);
    made.awaits(inner, wrapper);
    ends(&made, "its coroutines form a circle");
}

#[test]
fn awaiters() {
    let mut made = Made::new();
    let (code, thread, _) = one_thread(&mut made);
    let name = made.text("name");
    let list: Vec<u64> = (0..4)
        .map(|_| {
            let coroutine = made.coroutine(code, 0);
            made.task(name, coroutine)
        })
        .collect();
    made.tasks(thread, &list);
    // Two wait for each other, one for itself, one for a set that holds everything and a stranger.
    let sets = [
        made.set_of(&[list[1]], 8),
        made.set_of(&[list[0]], 8),
        made.set_of(&[list[2]], 8),
        made.set_of(&[list[0], list[1], list[2], list[3], 0x99], 8),
    ];
    for (task, set) in list.iter().zip(sets) {
        made.awaited_by(*task, set);
    }
    let tasks = decoded(&made);
    assert_eq!(tasks.problems, [""; 0]);
    let sizes: Vec<usize> = tasks.cycles.iter().map(Vec::len).collect();
    assert_eq!(sizes, [2, 1, 1]);
    assert_eq!(tasks.tasks[3].awaited_by.len(), 4);
}
