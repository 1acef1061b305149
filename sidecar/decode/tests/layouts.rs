//! Every layout that CPython 3.14 and 3.15 can be built with, free-threaded ones included, of which no live build was
//! at hand: a process is laid out from the headers' figures and must be read as what was put there. That the builds
//! with a GIL are read so as well, and that their figures are those of a recorded image, says that it is laid out as
//! CPython does.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test states what must hold; a panic is its report"
)]

mod synthetic;

use std::path::PathBuf;

use serde_json::{Value, json};
use sidewinder_decode::{Image, Limits, Memory, NoFiles, Runtime, stacks, tasks};
use sidewinder_model::Locals;
use synthetic::{Generator, Layout, Process};

/// A process with two threads, the first of which runs a task, and four more tasks that wait.
fn process(layout: Layout) -> Process {
    let mut p = Process::new(layout);
    let module = p.code("<module>", "/app/main.py", 1);
    let step = p.code("step", "/app/main.py", 40);
    let latin = p.code("Klasse.größe", "/app/größe.py", 100);
    let wide = p.code("日本語", "/app/日本.py", 200);
    let run = p.code("Thread.run", "/usr/lib/python3/threading.py", 1000);
    let outer = p.code("outer", "/app/main.py", 60);
    let inner = p.code("inner", "/app/main.py", 80);

    let running = p.coroutine(step, 1, Generator::Executing, 0);
    let base = p.entry_frame(0);
    let frame = p.frame(base, module, 2, true);
    let entry = p.entry_frame(frame);
    let within = p.frame_of(running);
    p.link(within, entry);
    let frame = p.frame(within, latin, 0, true);
    let frame = p.frame(frame, wide, 1, true);
    let main = p.thread(10, 4001, base, frame);
    let base = p.entry_frame(0);
    let frame = p.frame(base, run, 2, false);
    let worker = p.thread(11, 4002, base, frame);
    p.name_threads(&[(4001, "MainThread"), (4002, "wörker")]);

    let name = p.int(7);
    let task = p.task(main, name, running, 0);
    p.runs(main, task);

    let future = p.future();
    let end = p.future_iter(future);
    let leaf = p.coroutine(inner, 2, Generator::Awaiting, end);
    let coroutine = p.coroutine(outer, 1, Generator::Awaiting, leaf);
    let name = p.string("wartet");
    let waits = p.task(worker, name, coroutine, future);
    let mut awaiting = |name: &str, on: u64| {
        let (name, end) = (p.string(name), p.future_iter(on));
        let coroutine = p.coroutine(outer, 0, Generator::Awaiting, end);
        p.task(worker, name, coroutine, on)
    };
    let first = awaiting("première", waits);
    let second = awaiting("第二", waits);
    p.awaited_by(waits, &[first, second]);
    let name = p.string("new");
    let coroutine = p.coroutine(outer, 0, Generator::Created, 0);
    let new = p.task(worker, name, coroutine, 0);
    p.awaited_by(new, &[first]);
    p
}

fn frames(of: &Value) -> Vec<(String, String, i64)> {
    of.as_array()
        .unwrap()
        .iter()
        .map(|frame| {
            (
                frame["function"].as_str().unwrap().to_owned(),
                frame["file"].as_str().unwrap().to_owned(),
                frame["line"].as_i64().unwrap(),
            )
        })
        .collect()
}

fn frame(function: &str, file: &str, line: i64) -> (String, String, i64) {
    (function.to_owned(), file.to_owned(), line)
}

#[test]
fn stacks_with_copies_of_bytecode_and_names_of_every_width() {
    for layout in Layout::ALL {
        let p = process(layout);
        let runtime = Runtime::locate(&p, &Process::mappings(), &p).unwrap();
        assert_eq!(runtime.free_threaded(), layout.free_threaded);
        let stacks = stacks(
            &p,
            &runtime,
            &p.os_threads,
            Locals::None,
            &Limits::default(),
        );
        let stacks = serde_json::to_value(&stacks).unwrap();
        assert_eq!(
            stacks["problems"].as_array().map_or(0, Vec::len),
            0,
            "{stacks}"
        );
        let threads = &stacks["interpreters"][0]["threads"];
        assert_eq!(threads.as_array().unwrap().len(), 2, "{layout:?}");
        let [main, worker] = [&threads[0], &threads[1]];
        assert_eq!(
            (&main["name"], &main["main"]),
            (&json!("MainThread"), &json!(true))
        );
        assert_eq!(
            (&worker["name"], &worker["tid"]),
            (&json!("wörker"), &json!(1011))
        );
        assert_eq!(
            frames(&main["frames"]),
            [
                frame("<module>", "/app/main.py", 21),
                frame("step", "/app/main.py", 50),
                frame("Klasse.größe", "/app/größe.py", 100),
                frame("日本語", "/app/日本.py", 210),
            ],
            "{layout:?}"
        );
        assert_eq!(
            frames(&worker["frames"]),
            [frame("Thread.run", "/usr/lib/python3/threading.py", 1020)],
            "{layout:?}"
        );
        // Without the GIL nobody holds it.
        assert_eq!(
            main.get("holdsGIL")
                .or_else(|| main.get("holdsGil"))
                .is_some_and(Value::is_boolean),
            !layout.free_threaded,
            "{main}"
        );
    }
}

#[test]
fn tasks_with_one_waiter_and_with_several() {
    for layout in Layout::ALL {
        let p = process(layout);
        let runtime = Runtime::locate(&p, &Process::mappings(), &p).unwrap();
        let tasks = tasks(&p, &runtime, &p.os_threads, &Limits::default());
        let tasks = serde_json::to_value(&tasks).unwrap();
        assert_eq!(
            tasks["problems"].as_array().map_or(0, Vec::len),
            0,
            "{tasks}"
        );
        let list = tasks["tasks"].as_array().unwrap();
        assert_eq!(list.len(), 5, "{layout:?}: {tasks}");
        let task = |name: &str| {
            let found = list.iter().find(|task| task["name"] == name);
            found.unwrap_or_else(|| panic!("{layout:?}: no task {name} in {tasks}"))
        };
        let waiters = |name: &str| {
            let mut waiters: Vec<&str> = task(name)["awaitedBy"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|id| {
                    let waiter = list.iter().find(|task| task["id"] == *id).unwrap();
                    waiter["name"].as_str().unwrap()
                })
                .collect();
            waiters.sort_unstable();
            waiters
        };
        assert_eq!(waiters("wartet"), ["première", "第二"], "{layout:?}");
        assert_eq!(waiters("new"), ["première"], "{layout:?}");
        assert_eq!(waiters("Task-7"), [""; 0], "{layout:?}");
        assert_eq!(
            frames(&task("wartet")["coroutine"]),
            [
                frame("outer", "/app/main.py", 70),
                frame("inner", "/app/main.py", 100)
            ],
            "{layout:?}"
        );
        // The task that runs goes on in the frames of its thread.
        assert_eq!(
            frames(&task("Task-7")["coroutine"]),
            [
                frame("step", "/app/main.py", 50),
                frame("Klasse.größe", "/app/größe.py", 100),
                frame("日本語", "/app/日本.py", 210),
            ],
            "{layout:?}"
        );
        for (name, state) in [
            ("Task-7", "Running"),
            ("wartet", "Waiting"),
            ("première", "Waiting"),
        ] {
            assert_eq!(task(name)["state"], state, "{layout:?}: {name}");
        }
        assert_ne!(task("new")["state"], "Waiting", "{layout:?}");
    }
}

#[test]
fn each_layout_is_found_without_its_file() {
    for layout in Layout::ALL {
        let p = process(layout);
        let runtime = Runtime::locate(&p, &Process::mappings(), &NoFiles).unwrap();
        assert_eq!(runtime.free_threaded(), layout.free_threaded);
        assert!(runtime.has_asyncio(), "{layout:?}");
    }
}

#[test]
fn the_figures_of_a_build_with_a_gil_are_those_of_a_recorded_one() {
    let image = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/images/3.14/tasks.img");
    let image = Image::from_bytes(&std::fs::read(image).unwrap()).unwrap();
    let runtime = Runtime::locate(&image, &image.mappings, &image).unwrap();
    let [layout, ..] = Layout::ALL;
    let expected = layout.table();
    let mut bytes = vec![0; expected.len() * 8];
    image.read(runtime.address(), &mut bytes).unwrap();
    let recorded: Vec<u64> = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .collect();
    assert_eq!(recorded, expected);
}
