//! A little memory that claims to be a lot: structures that overlap, and lists that are shared. What comes of it is held
//! to the limits by `bounds`: its reads, and the bytes that the result takes.

use sidewinder_decode::offsets::Field as F;
use sidewinder_decode::{
    Addr, Image, Limits, Memory, ReadError, Runtime, remote_exec, stacks, tasks,
};
use sidewinder_model::Locals;

use crate::bounds::{Counting, check_stacks, check_tasks, decode_all};
use crate::made::Made;

/// Large counts, and little text: what is not counted shows.
fn limits() -> Limits {
    Limits {
        reads: 2_000_000,
        read_bytes: 64 << 20,
        text_bytes: 256 << 10,
        result_bytes: 256 << 10,
        threads: 64,
        tasks: 4_000,
        ..Limits::default()
    }
}

fn says(problems: &[String], what: &str) {
    assert!(
        problems.iter().any(|problem| problem.contains(what)),
        "{problems:?}"
    );
}

/// Threads that share all their frames.
fn threads_in(made: &mut Made, count: u64, frame: u64) {
    let threads: Vec<u64> = (0..count).map(|n| made.thread(11 + n, frame)).collect();
    let interpreter = made.main_interpreter();
    made.threads(interpreter, &threads);
}

#[test]
fn many_threads_in_the_same_frames() {
    let mut made = Made::new();
    let lines = made.bytes(&[0x80, 0]);
    // A function without a name costs nothing but its frames.
    let code = made.code("", &[], lines);
    let mut frame = 0;
    for _ in 0..2_000 {
        frame = made.frame(frame, code, &[]);
    }
    threads_in(&mut made, 40, frame);
    let stacks = stacks(&made, &made.runtime, &[], Locals::None, &limits());
    check_stacks(&stacks, &limits());
    says(&stacks.problems, "limit reached");
}

#[test]
fn many_frames_with_the_same_unbound_variables() {
    let mut made = Made::new();
    let (name, lines) = (made.text(&"n".repeat(1000)), made.bytes(&[0x80, 0]));
    let code = made.code("function", &[name; 500], lines);
    let mut frame = 0;
    for _ in 0..50 {
        frame = made.frame(frame, code, &[0; 500]);
    }
    threads_in(&mut made, 1, frame);
    for locals in [Locals::Types, Locals::Values] {
        let stacks = stacks(&made, &made.runtime, &[], locals, &limits());
        check_stacks(&stacks, &limits());
        says(&stacks.problems, "limit reached");
    }
}

/// Each word of an array is at once a type's type, its name and its flags.
#[test]
fn as_many_types_as_objects() {
    let mut made = Made::new();
    let kind = made.kind("type", 1 << 31);
    let count = 20_000;
    let types = made.room(8 * count + 1024);
    for at in (types..types + 8 * count + 1024).step_by(8) {
        made.word(at, kind);
    }
    let objects: Vec<u64> = (0..1000)
        .map(|n| {
            let object = made.room(16);
            made.word(object + 8, types + 8 * n);
            object
        })
        .collect();
    // The name: as long as one may be.
    made.put(kind, &[b'x'; 8]);
    let (name, lines) = (made.text("n"), made.bytes(&[0x80, 0]));
    let code = made.code("function", &vec![name; 1000], lines);
    let frame = made.frame(0, code, &objects);
    threads_in(&mut made, 1, frame);
    let limits = Limits {
        result_bytes: 40 << 10,
        ..limits()
    };
    let stacks = stacks(&made, &made.runtime, &[], Locals::Types, &limits);
    check_stacks(&stacks, &limits);
    says(&stacks.problems, "limit reached");
}

#[test]
fn many_code_objects_with_the_same_long_table() {
    let mut made = Made::new();
    let lines = made.bytes(&vec![0xf0; 1 << 16]);
    let mut frame = 0;
    for _ in 0..300 {
        let code = made.code("f", &[], lines);
        frame = made.frame(frame, code, &[]);
    }
    threads_in(&mut made, 1, frame);
    // What is remembered is counted, else a megabyte of the target's could fill any memory.
    let limits = Limits {
        result_bytes: 4 << 20,
        ..limits()
    };
    let stacks = stacks(&made, &made.runtime, &[], Locals::None, &limits);
    check_stacks(&stacks, &limits);
    says(&stacks.problems, "limit reached");
}

#[test]
fn many_instructions_of_one_long_table() {
    let mut made = Made::new();
    let lines = made.bytes(&[0x80, 0].repeat(1 << 19));
    let code = made.code("f", &[], lines);
    let begin = code + made.offset(F::code_object_co_code_adaptive);
    let mut frame = 0;
    for n in 0..200 {
        frame = made.frame(frame, code, &[]);
        made.set(
            frame,
            F::interpreter_frame_instr_ptr,
            begin + 2 * ((1 << 19) - n),
        );
    }
    threads_in(&mut made, 1, frame);
    // Each needs its own walk through a megabyte.
    let limits = Limits {
        result_bytes: 4 << 20,
        read_bytes: 20 << 20,
        ..limits()
    };
    let stacks = stacks(&made, &made.runtime, &[], Locals::None, &limits);
    says(
        &stacks.problems,
        "limit reached: bytes of the target's memory",
    );
    let known = stacks.interpreters[0].threads[0]
        .frames
        .iter()
        .filter(|f| f.line.is_some());
    assert!((1..25).contains(&known.count()));
}

/// A thread with so many tasks that share a chain of coroutines.
fn tasks_of(made: &mut Made, count: usize, chain: usize, name: u64) -> Vec<u64> {
    let lines = made.bytes(&[0x80, 0]);
    let code = made.code("", &[], lines);
    let mut coroutine = 0;
    for _ in 0..chain {
        coroutine = made.coroutine(code, coroutine);
    }
    let tasks: Vec<u64> = (0..count).map(|_| made.task(name, coroutine)).collect();
    threads_in(made, 1, 0);
    let mut thread = [0; 8];
    let head = made.main_interpreter() + made.offset(F::interpreter_state_threads_head);
    made.read(Addr(head), &mut thread).unwrap();
    made.tasks(u64::from_le_bytes(thread), &tasks);
    tasks
}

#[test]
fn many_tasks_with_the_same_coroutines() {
    let mut made = Made::new();
    let name = made.text("");
    tasks_of(&mut made, 500, 100, name);
    let tasks = tasks(&made, &made.runtime, &[], &limits());
    check_tasks(&tasks, &limits());
    assert_eq!(tasks.tasks.len(), 500);
}

#[test]
fn many_tasks_that_all_wait_for_each_other() {
    let mut made = Made::new();
    let name = made.text("");
    let all = tasks_of(&mut made, 700, 1, name);
    let set = made.set_of(&all, 1024);
    for task in &all {
        made.awaited_by(*task, set);
    }
    let tasks = tasks(&made, &made.runtime, &[], &limits());
    check_tasks(&tasks, &limits());
    assert!(!tasks.tasks.is_empty());
    says(&tasks.problems, "limit reached");
}

#[test]
fn many_tasks_with_a_number_of_a_thousand_digits_for_a_name() {
    let mut made = Made::new();
    let int = made.int();
    made.set(int, F::long_object_lv_tag, 128 << 3);
    made.room(512);
    let digits = int + made.offset(F::long_object_ob_digit);
    made.put(digits, &[0xff, 0xff, 0xff, 0x3f].repeat(128));
    tasks_of(&mut made, 1_000, 1, int);
    let tasks = tasks(&made, &made.runtime, &[], &limits());
    check_tasks(&tasks, &limits());
    assert!(tasks.tasks[0].name.len() > 1000);
}

#[test]
fn one_empty_table_for_every_set() {
    let mut made = Made::new();
    let name = made.text("");
    let all = tasks_of(&mut made, 200, 1, name);
    // Sixteen mebibytes that hold nothing, for each task again.
    let set = made.set_of(&[], 1 << 16);
    made.set(set, F::set_object_used, 1 << 16);
    for task in &all {
        made.awaited_by(*task, set);
    }
    let counting = Counting::new(&made);
    let tasks = tasks(&counting, &made.runtime, &[], &limits());
    let (_, bytes) = counting.take();
    assert!(bytes <= limits().read_bytes, "{bytes}");
    check_tasks(&tasks, &limits());
    says(
        &tasks.problems,
        "limit reached: bytes of the target's memory",
    );
}

/// Thread states that overlap, in two interpreters that share them.
#[test]
fn more_thread_states_than_there_are_threads() {
    let mut made = Made::new();
    let count = 40_000;
    let states = made.room(16 * count + 4096);
    for at in (states..states + 16 * count).step_by(16) {
        made.word(at + made.offset(F::thread_state_next), at + 16);
    }
    let (first, second) = (made.main_interpreter(), made.interpreter());
    made.interpreters(&[first, second]);
    for interpreter in [first, second] {
        made.set(interpreter, F::interpreter_state_threads_head, states);
    }
    let support = remote_exec::support(&made, &made.runtime, &[]);
    let threads: usize = support.interpreters.iter().map(|i| i.threads.len()).sum();
    assert!(threads <= Limits::default().threads, "{threads}");
    says(&support.problems, "more than 32768 threads");
    let limits = Limits {
        threads: 500,
        ..limits()
    };
    decode_all(&made, &made.image, Some(&made.runtime), &limits);
}

/// Every address modulo 2^44.
struct Folded<'a>(&'a Image);
impl Memory for Folded<'_> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let bits = (1 << 44) - 1;
        let high = self
            .0
            .mappings
            .iter()
            .map(|m| m.start & !bits)
            .find(|high| {
                let at = Addr(at.0 & bits | high);
                self.0.read(at, &mut [0]).is_ok()
            });
        self.0.read(Addr(at.0 & bits | high.unwrap_or(0)), buf)
    }
}

/// A file mapped a great many times, each time with a table that says it is Python.
#[test]
fn a_thousand_pythons() {
    let image = crate::image("3.14/ended");
    let runtime = crate::located(&image);
    let mut mappings = image.mappings.clone();
    let python: Vec<_> = image
        .mappings
        .iter()
        .filter(|m| m.path == runtime.path())
        .cloned()
        .collect();
    for n in 1..1000 {
        mappings.extend(python.iter().cloned().map(|mut m| {
            m.start += n << 44;
            m.end += n << 44;
            m
        }));
    }
    let found = Runtime::locate(&Folded(&image), &mappings, &image).unwrap();
    assert!(found.problems().len() < 20, "{}", found.problems().len());
    assert!(
        found
            .problems()
            .iter()
            .any(|problem| problem.contains("second Python"))
    );
}
