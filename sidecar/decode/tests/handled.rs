//! Recorded threads that handle exceptions, and one that collects garbage, against what the program said of itself
//! (`tests/programs/handled.py`, `tests/images/VERSION/handled.*`).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test states what must hold; a panic is its report"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use sidewinder_decode::{Image, Limits, Runtime, stacks};
use sidewinder_model::{Interpreter, Locals, Thread};

#[derive(Deserialize)]
struct Said {
    #[serde(rename = "type")]
    type_name: String,
    message: Option<String>,
}

fn read(version: &str, file: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/images")
        .join(version)
        .join(file);
    std::fs::read(path).unwrap()
}

fn decoded(version: &str) -> Interpreter {
    let image = Image::from_bytes(&read(version, "handled.img")).unwrap();
    let runtime = Runtime::locate(&image, &image.mappings, &image).unwrap();
    let limits = Limits::default();
    let stacks = stacks(&image, &runtime, &image.threads, Locals::None, &limits);
    assert_eq!(stacks.problems, [""; 0]);
    stacks.interpreters.into_iter().next().unwrap()
}

fn named<'a>(interpreter: &'a Interpreter, name: &str) -> &'a Thread {
    let mut threads = interpreter.threads.iter();
    threads
        .find(|thread| thread.name == name)
        .unwrap_or_else(|| panic!("no thread {name}"))
}

#[test]
fn each_thread_handles_what_it_says() {
    for version in ["3.14", "3.15"] {
        let interpreter = decoded(version);
        let said: BTreeMap<String, Option<Said>> =
            serde_json::from_slice(&read(version, "handled.target.json")).unwrap();
        assert_eq!(interpreter.threads.len(), said.len());
        for (name, said) in said {
            let found = named(&interpreter, &name).exception.clone();
            assert_eq!(found.is_some(), said.is_some(), "{version} {name}");
            let (Some(found), Some(said)) = (found, said) else {
                continue;
            };
            assert_eq!(found.type_name, said.type_name, "{version} {name}");
            match (found.message, said.message) {
                (Some(found), Some(said)) if said.len() > 200 => {
                    let kept = found.strip_suffix('…').unwrap();
                    assert!(said.starts_with(kept), "{found}");
                    assert!((190..=204).contains(&found.len()), "{}", found.len());
                }
                (found, said) => assert_eq!(found, said, "{version} {name}"),
            }
        }
    }
}

#[test]
fn a_collection_is_seen_and_from_3_15_on_where_it_was_begun() {
    let old = decoded("3.14");
    assert!(old.collecting_garbage);
    assert_eq!(old.collection, None);
    let new = decoded("3.15");
    assert!(new.collecting_garbage);
    let (collection, thread) = (new.collection.unwrap(), named(&new, "collects"));
    assert_eq!(collection.tid, thread.tid);
    assert_eq!(&*thread.frames[collection.frame].function, "collects");
    assert!(collection.frame + 1 < thread.frames.len());
}
