//! Recorded targets, decoded as live ones are.
//!
//! An image is what a decode touched of a stopped process that ran `tests/programs/NAME.py` (CPython 3.14.8, x86-64).
//! `NAME.json` is what must come out of it, and `NAME.target.json` what the program said of itself just before.
//! `UPDATE=1` rewrites `NAME.json`: read the difference before committing it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test states what must hold; a panic is its report"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use sidewinder_decode::{
    Image, ImageError, Limits, Memory, PageCache, Runtime, remote_exec, stacks, tasks,
};
use sidewinder_model::{Locals, Stacks, Tasks, Thread};

const IMAGES: [&str; 5] = ["contended", "ended", "subinterpreters", "tasks", "threads"];

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/images")
        .join(file)
}

fn image(name: &str) -> Image {
    Image::from_bytes(&std::fs::read(path(&format!("{name}.img"))).unwrap()).unwrap()
}

fn decode(memory: &impl Memory, image: &Image) -> (Runtime, Stacks, Tasks) {
    let limits = Limits::default();
    let runtime = Runtime::locate(memory, &image.mappings, image).unwrap();
    // Values of locals are `locals.rs`'s.
    let stacks = stacks(memory, &runtime, &image.threads, Locals::Types, &limits);
    let tasks = tasks(memory, &runtime, &image.threads, &limits);
    (runtime, stacks, tasks)
}

fn target_says(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(&format!("{name}.target.json"))).unwrap()).unwrap()
}

fn thread<'a>(stacks: &'a Stacks, name: &str) -> &'a Thread {
    let mut threads = stacks.interpreters.iter().flat_map(|i| &i.threads);
    threads
        .find(|t| t.name == name)
        .unwrap_or_else(|| panic!("no thread {name}"))
}

#[test]
fn images_decode_to_what_stands_beside_them() {
    for name in IMAGES {
        let image = image(name);
        let (_, stacks, tasks) = decode(&image, &image);
        let found = json!({"stacks": stacks, "tasks": tasks});
        let file = path(&format!("{name}.json"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, format!("{found:#}\n")).unwrap();
        }
        let expected: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(found, expected, "{name}");
        assert_eq!(stacks.problems, [""; 0], "{name}");
        assert_eq!(tasks.problems, [""; 0], "{name}");
    }
}

#[test]
fn a_page_cache_changes_nothing() {
    for name in IMAGES {
        let image = image(name);
        let (_, stacks, tasks) = decode(&image, &image);
        let (_, cached_stacks, cached_tasks) = decode(&PageCache::new(&image, 24 << 20), &image);
        assert_eq!(stacks, cached_stacks, "{name}");
        assert_eq!(tasks, cached_tasks, "{name}");
    }
}

#[test]
fn every_thread_has_the_stack_that_the_interpreter_says() {
    let image = image("threads");
    let (_, stacks, _) = decode(&image, &image);
    let says = target_says("threads");
    let says = says["threads"].as_object().unwrap();
    let threads = &stacks.interpreters[0].threads;
    assert_eq!(threads.len(), says.len());
    for thread in threads {
        let said = &says[&thread.ident];
        assert_eq!(said["name"], thread.name);
        let stack: Vec<Value> = thread
            .frames
            .iter()
            .map(|f| json!([f.function, f.file, f.line]))
            .collect();
        let said = said["stack"].as_array().unwrap();
        if thread.main {
            // It was in frames() when it spoke and has gone two lines further since.
            assert_eq!(stack[..2], said[..2]);
            assert_eq!(
                stack[2],
                json!(["wait_in_callback", "/tmp/decode/threads.py", 93])
            );
        } else {
            assert_eq!(stack, *said, "{}", thread.name);
        }
    }
    assert_eq!(
        thread(&stacks, "deep")
            .frames
            .iter()
            .filter(|f| &*f.function == "deep")
            .count(),
        201
    );
}

#[test]
fn every_task_is_as_asyncio_says() {
    let image = image("tasks");
    let (_, _, tasks) = decode(&image, &image);
    let says = target_says("tasks");
    let found: BTreeMap<String, _> = tasks.tasks.iter().map(|t| (t.id.to_string(), t)).collect();
    for (id, said) in says["tasks"].as_object().unwrap() {
        let task = found[id];
        let name = said["name"].as_str().unwrap();
        if name.len() > 1024 {
            assert!(
                task.name.ends_with('…') && task.name.len() <= 1024,
                "{}",
                task.name
            );
        } else {
            assert_eq!(&*task.name, name);
        }
        assert_eq!(json!(task.awaited_by), said["awaitedBy"], "{name}");
        let stack: Vec<Value> = task
            .coroutine
            .iter()
            .map(|f| json!([f.function, f.line]))
            .collect();
        let said = said["stack"].as_array().unwrap();
        // The interpreter cannot look through async generators and `__await__`; see the next test.
        assert_eq!(stack[..said.len()], said[..], "{name}");
    }
    assert_eq!(
        found.len(),
        says["tasks"].as_object().unwrap().len() + 4,
        "four more in the other thread's loop"
    );
}

#[test]
fn chains_go_through_everything_that_can_be_awaited() {
    let image = image("tasks");
    let (_, _, tasks) = decode(&image, &image);
    let chain = |name: &str| -> Vec<&str> {
        let task = tasks.tasks.iter().find(|t| &*t.name == name).unwrap();
        task.coroutine.iter().map(|f| &*f.function).collect()
    };
    assert_eq!(chain("Task-3"), ["middle", "leaf"]);
    assert_eq!(chain("consumer"), ["consumer", "generator"]);
    assert_eq!(chain("wrapped"), ["wrapped", "leaf"]);
    assert_eq!(chain("on generator"), ["on_generator", "by_generator"]);
    assert_eq!(
        chain("grouping"),
        ["grouping", "TaskGroup.__aexit__", "TaskGroup._aexit"]
    );
    assert_eq!(
        chain("busy"),
        ["busy", "below", "below.<locals>.<lambda>", "lowest"]
    );
}

#[test]
fn circles_of_waiting_are_found() {
    let image = image("tasks");
    let (_, _, tasks) = decode(&image, &image);
    let id = |name: &str| {
        let task = tasks.tasks.iter().find(|t| &*t.name == name);
        task.unwrap().id
    };
    let mut circle = vec![id("first"), id("second")];
    circle.sort();
    let mut found = tasks.cycles.clone();
    for members in &mut found {
        members.sort();
    }
    assert_eq!(found, [circle]);
}

#[test]
fn threads_that_wait_for_the_gil_are_told_from_its_holder() {
    let image = image("contended");
    let (runtime, stacks, _) = decode(&image, &image);
    let gil = runtime.gil(&image).unwrap();
    assert_eq!(gil.len(), 1);
    assert!(gil[0].locked);
    let threads = &stacks.interpreters[0].threads;
    let holders: Vec<_> = threads
        .iter()
        .filter(|t| t.holds_gil == Some(true))
        .collect();
    assert_eq!(holders.len(), 1);
    assert_eq!(Some(holders[0].tid), gil[0].holder_tid);
    let runnable = threads
        .iter()
        .filter(|t| t.state == sidewinder_model::ThreadState::Runnable)
        .count();
    assert_eq!(runnable, threads.len() - 1);
}

#[test]
fn the_main_thread_is_known_after_the_main_script_has_ended() {
    let image = image("ended");
    let (_, stacks, _) = decode(&image, &image);
    let threads = &stacks.interpreters[0].threads;
    assert_eq!(
        threads
            .iter()
            .map(|t| (t.name.as_str(), t.main))
            .collect::<Vec<_>>(),
        [("MainThread", true), ("keeps it alive", false)]
    );
    let runtime = Runtime::locate(&image, &image.mappings, &image).unwrap();
    let support = remote_exec::support(&image, &runtime, &image.threads);
    assert!(support.interpreters[0].threads[0].main);
    assert_eq!(support.interpreters[0].threads[0].tid, Some(threads[0].tid));
}

#[test]
fn subinterpreters_have_their_own_gil_threads_and_tasks() {
    let image = image("subinterpreters");
    let (runtime, stacks, tasks) = decode(&image, &image);
    assert_eq!(
        stacks.interpreters.iter().map(|i| i.id).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    assert_eq!(
        runtime
            .gil(&image)
            .unwrap()
            .iter()
            .map(|g| g.interpreter)
            .collect::<Vec<_>>(),
        [0, 1, 2]
    );
    assert_eq!(
        tasks
            .tasks
            .iter()
            .filter(|t| t.name.starts_with("sub-") && t.interpreter == 1)
            .count(),
        3
    );
    // One kernel thread, in the main interpreter and inside the other.
    assert_eq!(
        thread(&stacks, "inside").tid,
        stacks.interpreters[1].threads[0].tid
    );
}

#[test]
fn a_target_says_where_it_takes_scripts() {
    let image = image("threads");
    let runtime = Runtime::locate(&image, &image.mappings, &image).unwrap();
    let support = remote_exec::support(&image, &runtime, &image.threads);
    assert!(!support.finalizing);
    let main = &support.interpreters[0];
    assert!(main.enabled && main.threads[0].main && main.threads[0].status.bound());
    for thread in &main.threads {
        assert_eq!(thread.path_size, 512);
        assert_eq!(thread.path, thread.pending.plus(4));
        assert!(!thread.is_pending);
    }
}

#[test]
fn images_are_read_as_they_were_written() {
    for name in IMAGES {
        let bytes = std::fs::read(path(&format!("{name}.img"))).unwrap();
        let image = Image::from_bytes(&bytes).unwrap();
        assert_eq!(image.to_bytes(), bytes, "{name}");
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let bytes = std::fs::read(path("ended.img")).unwrap();
    assert_eq!(Image::from_bytes(b""), Err(ImageError::NotAnImage));
    assert_eq!(
        Image::from_bytes(b"\x7fELF\x02\x01\x01\x00"),
        Err(ImageError::NotAnImage)
    );
    let mut newer = bytes.clone();
    newer[8] = 9;
    assert_eq!(
        Image::from_bytes(&newer),
        Err(ImageError::Format { found: 9 })
    );
    for len in (12..bytes.len()).step_by(97) {
        assert!(
            matches!(
                Image::from_bytes(&bytes[..len]),
                Err(ImageError::Damaged { .. })
            ),
            "{len} bytes"
        );
    }
}
