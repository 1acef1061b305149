//! What recorded tasks wait for, against what their programs say of it.
//!
//! `tests/images/VERSION/NAME.img` was recorded with `sidewinder-sidecar record` of a process that ran
//! `tests/programs/NAME.py`; `NAME.target.json` is the line that it printed before.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test states what must hold; a panic is its report"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;
use sidewinder_decode::{Image, Limits, PageCache, Runtime, tasks};
use sidewinder_model::{Task, TaskState, Tasks};

const VERSIONS: [&str; 2] = ["3.14", "3.15"];

fn file(version: &str, name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/images")
        .join(version)
        .join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn decode(version: &str, name: &str) -> Tasks {
    let image = Image::from_bytes(&file(version, &format!("{name}.img"))).unwrap();
    let runtime = Runtime::locate(&image, &image.mappings, &image).unwrap();
    let limits = Limits::default();
    let found = tasks(&image, &runtime, &image.threads, &limits);
    let cache = PageCache::new(&image, 24 << 20);
    assert_eq!(found, tasks(&cache, &runtime, &image.threads, &limits));
    assert_eq!(found.problems, [""; 0], "{version} {name}");
    found
}

/// By the name of each task the kind, the address (where the program holds the object) and parts of the description of
/// what it waits for; null for one that runs.
fn said(version: &str, name: &str) -> BTreeMap<String, Value> {
    serde_json::from_slice(&file(version, &format!("{name}.target.json"))).unwrap()
}

fn task<'a>(tasks: &'a Tasks, name: &str) -> &'a Task {
    let task = tasks.tasks.iter().find(|task| &*task.name == name);
    task.unwrap_or_else(|| panic!("no task {name}"))
}

/// Everything that a program says holds, and how many tasks it spoke of.
fn agrees(version: &str, name: &str) -> (Tasks, usize) {
    let tasks = decode(version, name);
    let said = said(version, name);
    for (name, said) in &said {
        let task = task(&tasks, name);
        if said.is_null() {
            assert_eq!(task.state, TaskState::Running, "{name}");
            continue;
        }
        let found = task.waiting_for.as_ref().unwrap();
        assert_eq!(said["kind"], *found.kind, "{version} {name}");
        if let Some(id) = said["id"].as_str() {
            assert_eq!(found.id.to_string(), id, "{version} {name}");
        }
        let detail = found.detail.as_deref().unwrap_or_default();
        for part in said["detail"].as_array().unwrap() {
            let part = part.as_str().unwrap();
            assert!(detail.contains(part), "{version} {name}: {detail}");
        }
    }
    (tasks, said.len())
}

#[test]
fn every_wait_is_what_the_program_says() {
    for version in VERSIONS {
        let (tasks, count) = agrees(version, "waits");
        assert!(count > 45, "{count}");
        // A primitive makes a future of its own for each that waits.
        let futures: Vec<_> = ["lock 0", "lock 1", "lock 2"]
            .map(|name| {
                task(&tasks, name)
                    .waiting_for
                    .as_ref()
                    .unwrap()
                    .future
                    .unwrap()
            })
            .into();
        assert!(futures[0] != futures[1] && futures[1] != futures[2] && futures[0] != futures[2]);
    }
}

#[test]
fn tasks_that_wait_for_one_thing_are_a_group_the_largest_first() {
    for version in VERSIONS {
        let tasks = decode(version, "waits");
        let groups: Vec<_> = tasks
            .groups
            .iter()
            .map(|group| (&*group.kind, group.tasks.len()))
            .collect();
        assert_eq!(groups[..2], [("Future", 6), ("Lock", 3)], "{version}");
        let mut rest = groups[2..].to_vec();
        rest.sort_unstable();
        assert_eq!(rest, [("Barrier", 2), ("Event", 2), ("Queue", 2)]);
        let members = |kind: &str| {
            let group = tasks.groups.iter().find(|group| &*group.kind == kind);
            let group = group.unwrap();
            let mut names: Vec<_> = tasks
                .tasks
                .iter()
                .filter(|task| group.tasks.contains(&task.id))
                .map(|task| &*task.name)
                .collect();
            names.sort_unstable();
            (names, group.detail.as_deref())
        };
        assert_eq!(
            members("Lock"),
            (
                vec!["lock 0", "lock 1", "lock 2"],
                Some("locked, 3 waiting, held by holds lock")
            )
        );
        // One puts, the other one joins: no description holds for both.
        assert_eq!(members("Queue"), (vec!["join", "put"], None));
    }
}

#[test]
fn a_task_of_another_loop_is_waited_for_as_a_task() {
    for version in VERSIONS {
        let tasks = decode(version, "waits");
        let waiter = task(&tasks, "threadsafe");
        let awaited = waiter.waiting_for.as_ref().unwrap().id;
        let far = tasks.tasks.iter().find(|task| task.id == awaited).unwrap();
        assert_ne!(far.loop_id, waiter.loop_id);
        assert_eq!(
            far.waiting_for.as_ref().unwrap().id,
            task(&tasks, "in the other loop").id
        );
    }
}

#[test]
fn who_entered_a_lock_holds_it_and_may_close_a_circle() {
    for version in VERSIONS {
        let tasks = decode(version, "waits");
        let holders = |name: &str| {
            let on = task(&tasks, name).waiting_for.as_ref().unwrap();
            let held_by = on.held_by.as_deref().unwrap_or_default();
            let holders = tasks.tasks.iter().filter(|task| held_by.contains(&task.id));
            holders.map(|task| &*task.name).collect::<Vec<_>>()
        };
        assert_eq!(holders("lock 1"), ["holds lock"]);
        assert_eq!(holders("own lock"), ["holds own lock"]);
        assert_eq!(holders("bounded"), ["holds bounded"]);
        assert_eq!(holders("twice"), ["twice"]);
        // Who waits for the condition has released its lock.
        assert_eq!(holders("back to the lock"), ["holds the condition"]);
        // Acquired by a call, by a task that says nothing of it.
        assert_eq!(holders("nobody knows"), [""; 0]);
        let mut cycles: Vec<Vec<&str>> = tasks
            .cycles
            .iter()
            .map(|members| {
                let members = tasks.tasks.iter().filter(|task| members.contains(&task.id));
                let mut names: Vec<_> = members.map(|task| &*task.name).collect();
                names.sort_unstable();
                names
            })
            .collect();
        cycles.sort_unstable();
        assert_eq!(
            cycles,
            [vec!["left then right", "right then left"], vec!["twice"]]
        );
    }
}

#[test]
fn tasks_written_in_python_are_tasks_like_any_other() {
    for version in VERSIONS {
        let (tasks, count) = agrees(version, "python_tasks");
        // And the one that runs them all.
        assert_eq!(tasks.tasks.len(), count + 1, "{version}");
        let chain = |name: &str| -> Vec<&str> {
            let frames = &task(&tasks, name).coroutine;
            frames.iter().map(|frame| &*frame.function).collect()
        };
        assert_eq!(chain("python"), ["middle", "leaf"]);
        assert_eq!(chain("busy"), ["busy", "says_while_running"]);
        let main = &tasks.loops[0];
        for task in &tasks.tasks {
            assert_eq!(task.loop_id, Some(main.id), "{}", task.name);
            assert_eq!(task.tid, main.tid, "{}", task.name);
        }
    }
}
