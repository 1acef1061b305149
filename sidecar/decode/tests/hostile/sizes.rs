//! Sizes that no object has.

use sidewinder_decode::offsets::Field as F;
use sidewinder_decode::{Addr, Limits, Memory as _, stacks, tasks};
use sidewinder_model::Locals;

use crate::bounds::{Counting, decode_all, small};
use crate::made::Made;

const SIZES: [u64; 8] = [
    1025,
    1 << 17,
    u32::MAX as u64,
    1 << 40,
    1 << 61,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Decodes all, which must fetch next to nothing.
fn cheap(made: &Made, what: &str) {
    let counting = Counting::new(made);
    decode_all(
        &counting,
        &made.image,
        Some(&made.runtime),
        &Limits::default(),
    );
    let (reads, bytes) = counting.take();
    assert!(
        reads < 5_000 && bytes < 1 << 20,
        "{what}: {reads} reads of {bytes} bytes"
    );
}

/// A thread in a function with one variable, which holds this.
fn with_variable(made: &mut Made, value: u64) -> u64 {
    let (name, lines) = (made.text("variable"), made.bytes(&[0x80, 0]));
    let code = made.code("function", &[name], lines);
    let frame = made.frame(0, code, &[value]);
    let thread = made.thread(11, frame);
    let interpreter = made.main_interpreter();
    made.threads(interpreter, &[thread]);
    code
}

fn shown(made: &Made) -> Option<String> {
    let limits = Limits::default();
    let stacks = stacks(made, &made.runtime, &[], Locals::Values, &limits);
    let frame = stacks.interpreters[0].threads[0].frames.first()?;
    frame.locals.as_ref()?.first()?.value.clone()
}

#[test]
fn of_values() {
    for size in SIZES {
        let mut made = Made::new();
        let objects = [
            (made.text("short"), F::unicode_object_length),
            (made.bytes(b"short"), F::bytes_object_ob_size),
            (made.tuple(&[]), F::tuple_object_ob_size),
            (made.list(), F::list_object_ob_size),
            (made.dict(), F::pyobject_size),
            (made.set_of(&[], 8), F::set_object_used),
            (made.int(), F::long_object_lv_tag),
        ];
        for (object, field) in objects {
            with_variable(&mut made, object);
            made.set(object, field, size);
            let what = format!("{field:?} of {size:#x}");
            cheap(&made, &what);
            if let Some(value) = shown(&made) {
                assert!(value.len() <= 2 * Limits::default().string_bytes, "{what}");
            }
        }
    }
}

#[test]
fn of_a_code_objects_tables() {
    for size in SIZES {
        for field in [
            F::code_object_linetable,
            F::code_object_localspluskinds,
            F::code_object_localsplusnames,
        ] {
            let mut made = Made::new();
            let value = made.text("value");
            let code = with_variable(&mut made, value);
            let mut object = [0; 8];
            made.read(Addr(code + made.offset(field)), &mut object)
                .unwrap();
            let object = u64::from_le_bytes(object);
            made.set(object, F::bytes_object_ob_size, size);
            cheap(&made, &format!("{field:?} of {size:#x}"));
            let limits = Limits::default();
            let stacks = stacks(&made, &made.runtime, &[], Locals::Values, &limits);
            assert!(
                !stacks.problems.is_empty(),
                "{field:?} of {size:#x}: nothing was said"
            );
            assert_eq!(
                stacks.interpreters[0].threads[0].frames.len(),
                1,
                "{:?}",
                stacks.problems
            );
        }
    }
}

#[test]
fn of_dicts_and_of_sets_of_awaiters() {
    for size in SIZES {
        let mut made = Made::new();
        let value = made.text("value");
        let code = with_variable(&mut made, value);
        let (name, coroutine) = (made.text("name"), made.coroutine(code, 0));
        let task = made.task(name, coroutine);
        let interpreter = made.main_interpreter();
        let thread = made.thread(12, 0);
        made.threads(interpreter, &[thread]);
        made.tasks(thread, &[task]);
        for (used, mask) in [(size, 7), (1, size), (size, size)] {
            let set = made.set_of(&[task], 8);
            made.set(set, F::set_object_used, used);
            made.set(set, F::set_object_mask, mask);
            made.awaited_by(task, set);
            cheap(&made, &format!("a set of {used:#x} in {mask:#x}"));
            let tasks = tasks(&made, &made.runtime, &[], &Limits::default());
            assert_eq!(tasks.tasks.len(), 1);
        }
        // The dict of modules: in the header of its keys, the number of entries and the size of the index.
        let modules = made.dict();
        made.set(interpreter, F::interpreter_state_imports_modules, modules);
        let keys = made.room(64);
        made.set(modules, F::dict_object_ma_keys, keys);
        for index in [3_u8, 40, 63, 64, 255] {
            made.put(keys + 9, &[index]);
            made.word(keys + 24, size);
            cheap(
                &made,
                &format!("a dict of {size:#x} entries, index {index}"),
            );
        }
    }
}

#[test]
fn everything_at_once() {
    // One page on which every word has the same value, and everything is there.
    for value in SIZES
        .into_iter()
        .chain([0x1000_0000, 0x1000_0008, 0x1000_0001])
    {
        let mut made = Made::new();
        let interpreter = made.main_interpreter();
        let page = made.room(2 << 20);
        for at in (page..page + (64 << 10)).step_by(8) {
            made.word(at, value);
        }
        for field in [
            F::interpreter_state_threads_head,
            F::interpreter_state_imports_modules,
            F::interpreter_state_ceval_gil,
        ] {
            made.set(interpreter, field, page);
        }
        decode_all(&made, &made.image, Some(&made.runtime), &small());
    }
}
