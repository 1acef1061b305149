//! Recorded targets, decoded as live ones are.
//!
//! `tests/images/VERSION/NAME.img` is what a decode touched of a stopped process that ran `tests/programs/NAME.py`
//! (x86-64, GIL build), with zeros in place of all else. `NAME.json` is what must come out of it, and
//! `NAME.target.json` what the program said of itself just before (`tests/programs/truth.py`).
//!
//! An image holds only what the decode of its day read. When that reads more, or a program changes, record it again,
//! as root, by name or all of them; the second command rewrites `NAME.json`: read the difference before committing it.
//! ```text
//! cargo run --package sidewinder-e2e --features live --example record_images [NAME…]
//! UPDATE=1 cargo test --package sidewinder-decode --test images
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test states what must hold; a panic is its report"
)]

mod agreement;

use std::path::PathBuf;

use serde_json::{Value, json};
use sidewinder_decode::{
    Image, ImageError, Limits, Memory, PageCache, Runtime, remote_exec, stacks, tasks,
};
use sidewinder_model::{Locals, Stacks, Tasks, Thread};

const VERSIONS: [&str; 2] = ["3.14", "3.15"];
const IMAGES: [&str; 9] = [
    "awaits",
    "contended",
    "eager",
    "ended",
    "libraries",
    "loops",
    "subinterpreters",
    "tasks",
    "threads",
];

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/images")
        .join(file)
}

/// Every image, as `VERSION/NAME`.
fn all() -> impl Iterator<Item = String> {
    IMAGES.into_iter().flat_map(on_all)
}

/// One program's image of every version.
fn on_all(name: &str) -> impl Iterator<Item = String> {
    VERSIONS
        .into_iter()
        .map(move |version| format!("{version}/{name}"))
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

/// What the program said of itself, where it did.
fn target_says(name: &str) -> Option<Value> {
    let said = std::fs::read(path(&format!("{name}.target.json"))).ok()?;
    Some(serde_json::from_slice(&said).unwrap())
}

fn thread<'a>(stacks: &'a Stacks, name: &str) -> &'a Thread {
    let mut threads = stacks.interpreters.iter().flat_map(|i| &i.threads);
    threads
        .find(|t| &*t.name == name)
        .unwrap_or_else(|| panic!("no thread {name}"))
}

#[test]
fn images_decode_to_what_stands_beside_them() {
    for name in all() {
        let image = image(&name);
        let (_, mut stacks, tasks) = decode(&image, &image);
        assert_eq!(stacks.problems, [""; 0], "{name}");
        assert_eq!(tasks.problems, [""; 0], "{name}");
        // One program has locals of every kind; those of the others are the standard library's.
        if !name.ends_with("/threads") {
            for thread in stacks.interpreters.iter_mut().flat_map(|i| &mut i.threads) {
                for frame in &mut thread.frames {
                    frame.locals = None;
                }
            }
        }
        let found = format!("{:#}\n", json!({"stacks": stacks, "tasks": tasks}));
        let file = path(&format!("{name}.json"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&file).unwrap();
        let lines = found.lines().zip(expected.lines());
        for (n, (found, expected)) in lines.enumerate() {
            assert_eq!(found, expected, "line {} of {}", n + 1, file.display());
        }
        assert_eq!(found.len(), expected.len(), "{}", file.display());
    }
}

#[test]
fn a_page_cache_changes_nothing() {
    for name in all() {
        let image = image(&name);
        let (_, stacks, tasks) = decode(&image, &image);
        let (_, cached_stacks, cached_tasks) = decode(&PageCache::new(&image, 24 << 20), &image);
        assert_eq!(stacks, cached_stacks, "{name}");
        assert_eq!(tasks, cached_tasks, "{name}");
    }
}

#[test]
fn every_thread_and_task_is_as_the_target_says() {
    let mut said = 0;
    for name in all() {
        let Some(says) = target_says(&name) else {
            continue;
        };
        said += 1;
        let image = image(&name);
        let (_, stacks, tasks) = decode(&image, &image);
        let differences = agreement::differences(&json!(stacks), &json!(tasks), &says);
        assert!(
            differences.is_empty(),
            "{name}:\n{}",
            differences.join("\n")
        );
    }
    assert_eq!(said, 7 * VERSIONS.len());
}

#[test]
fn a_comparison_notices_everything() {
    let image = image("3.14/tasks");
    let says = target_says("3.14/tasks").unwrap();
    let (_, stacks, tasks) = decode(&image, &image);
    let (stacks, tasks) = (json!(stacks), json!(tasks));
    assert!(agreement::differences(&stacks, &tasks, &says).is_empty());
    let waits = tasks["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .position(|task| task["name"] == "consumer")
        .unwrap();
    for changed in [
        "/interpreters/0/threads/1/name",
        "/interpreters/0/threads/1/tid",
        "/interpreters/0/threads/0/main",
        "/interpreters/0/threads/0/frames",
        "/interpreters/0/threads/0/frames/0",
        "/interpreters/0/threads/1/frames/2/function",
        "/interpreters/0/threads/1/frames/2/file",
        "/interpreters/0/threads/1/frames/2/line",
        "/interpreters/0/threads/1",
        "/interpreters/0",
    ] {
        let mut damaged = stacks.clone();
        *damaged.pointer_mut(changed).unwrap() = Value::Null;
        let differences = agreement::differences(&damaged, &tasks, &says);
        assert!(!differences.is_empty(), "{changed}");
    }
    for changed in [
        "name",
        "loop",
        "tid",
        "interpreter",
        "state",
        "coroutine",
        "awaitedBy/0",
    ] {
        let mut damaged = tasks.clone();
        let changed = format!("/tasks/{waits}/{changed}");
        *damaged.pointer_mut(&changed).unwrap() = Value::Null;
        let differences = agreement::differences(&stacks, &damaged, &says);
        assert!(!differences.is_empty(), "{changed}");
    }
    for changed in [
        "/tasks/0",
        "/loops/0",
        "/loops/1/running",
        "/cycles/0",
        "/cycles",
    ] {
        let mut damaged = tasks.clone();
        *damaged.pointer_mut(changed).unwrap() = Value::Null;
        let differences = agreement::differences(&stacks, &damaged, &says);
        assert!(!differences.is_empty(), "{changed}");
    }
}

#[test]
fn chains_go_through_everything_that_can_be_awaited() {
    for name in on_all("tasks") {
        let image = image(&name);
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
            [
                "busy",
                "below",
                "below.<locals>.<lambda>",
                "lowest",
                "stand_still"
            ]
        );
    }
}

#[test]
fn circles_of_waiting_are_found() {
    for name in on_all("tasks") {
        let image = image(&name);
        let (_, _, tasks) = decode(&image, &image);
        let id = |name: &str| tasks.tasks.iter().find(|t| &*t.name == name).unwrap().id;
        let mut circle = vec![id("first"), id("second")];
        circle.sort();
        let mut found = tasks.cycles.clone();
        for members in &mut found {
            members.sort();
        }
        assert_eq!(found, [circle]);
    }
}

#[test]
fn threads_that_wait_for_the_gil_are_told_from_its_holder() {
    for name in on_all("contended") {
        let image = image(&name);
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
}

#[test]
fn the_main_thread_is_known_after_the_main_script_has_ended() {
    for name in on_all("ended") {
        let image = image(&name);
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
}

#[test]
fn subinterpreters_have_their_own_gil_threads_and_tasks() {
    for name in on_all("subinterpreters") {
        let image = image(&name);
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
}

#[test]
fn a_target_says_where_it_takes_scripts() {
    for name in on_all("threads") {
        let image = image(&name);
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
}

#[test]
fn images_are_read_as_they_were_written() {
    for name in all() {
        let bytes = std::fs::read(path(&format!("{name}.img"))).unwrap();
        let image = Image::from_bytes(&bytes).unwrap();
        assert_eq!(image.to_bytes(), bytes, "{name}");
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let bytes = std::fs::read(path("3.14/ended.img")).unwrap();
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
