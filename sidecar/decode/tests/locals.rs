//! Local variables of recorded targets, against what the targets said of themselves.
//!
//! The images are of `tests/programs/locals.py` on CPython 3.14.8 and 3.15.0 (x86-64), recorded with
//! `sidewinder-sidecar record --locals values` while every thread waited; `locals.target.json` is what the program had
//! printed: each variable's type and text, written by `repr` or by hand, and where some objects are.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test states what must hold; a panic is its report"
)]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::Value;
use sidewinder_decode::{Addr, Image, Limits, Memory, ReadError, Recorder, Runtime, stacks};
use sidewinder_model::{Local, Locals, Stacks};

const VERSIONS: [&str; 2] = ["3.14", "3.15"];

fn path(version: &str, file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/images")
        .join(version)
        .join(file)
}

fn image(version: &str) -> Image {
    Image::from_bytes(&std::fs::read(path(version, "locals.img")).unwrap()).unwrap()
}

fn says(version: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(version, "locals.target.json")).unwrap()).unwrap()
}

fn decode(memory: &impl Memory, image: &Image, locals: Locals, limits: &Limits) -> Stacks {
    let runtime = Runtime::locate(image, &image.mappings, image).unwrap();
    stacks(memory, &runtime, &image.threads, locals, limits)
}

fn sound(version: &str, locals: Locals) -> Stacks {
    let image = image(version);
    decode(&image, &image, locals, &Limits::default())
}

/// The variables of every frame, by thread and function.
fn frames(stacks: &Stacks) -> BTreeMap<String, &[Local]> {
    let mut found = BTreeMap::new();
    for thread in stacks.interpreters.iter().flat_map(|i| &i.threads) {
        for frame in &thread.frames {
            let name = format!("{}/{}", thread.name, frame.function);
            found.insert(name, frame.locals.as_deref().unwrap_or_default());
        }
    }
    found
}

fn local<'a>(stacks: &'a Stacks, frame: &str, name: &str) -> &'a Local {
    frames(stacks)[frame]
        .iter()
        .find(|local| local.name == name)
        .unwrap_or_else(|| panic!("no {name} in {frame}"))
}

#[test]
fn every_variable_is_what_the_target_says() {
    for version in VERSIONS {
        let stacks = sound(version, Locals::Values);
        assert_eq!(stacks.problems, [""; 0], "{version}");
        let found = frames(&stacks);
        let said = says(version);
        let said = said["frames"].as_object().unwrap();
        assert!(said.len() > 20, "{version}: {} frames", said.len());
        for (frame, said) in said {
            let found: BTreeMap<&str, (&str, Option<&str>)> = found[frame]
                .iter()
                .map(|l| (l.name.as_str(), (l.type_name.as_str(), l.value.as_deref())))
                .collect();
            let said: BTreeMap<&str, (&str, Option<&str>)> = said
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, of)| (name.as_str(), (of[0].as_str().unwrap(), of[1].as_str())))
                .collect();
            for (name, said) in &said {
                assert_eq!(found.get(name), Some(said), "{version}: {name} of {frame}");
            }
            let names = |of: &BTreeMap<&str, _>| of.keys().map(ToString::to_string).collect();
            let (found, said): (BTreeSet<String>, BTreeSet<String>) = (names(&found), names(&said));
            assert_eq!(found, said, "{version}: {frame}");
        }
    }
}

#[test]
fn a_module_has_its_names_and_those_of_its_comprehension() {
    for version in VERSIONS {
        let stacks = sound(version, Locals::Values);
        let of = |name| {
            let local = local(&stacks, "MainThread/<module>", name);
            (local.type_name.as_str(), local.value.as_deref().unwrap())
        };
        assert_eq!(of("module_level"), ("list", "[1, 2]"));
        assert_eq!(of("module_password"), ("str", "'***' (len 7)"));
        assert_eq!(of("element"), ("list", "[7, 8]"));
        assert_eq!(of("inlined"), ("int", "7"));
        assert_eq!(of("Plain"), ("type", "<class '__main__.Plain'>"));
        assert_eq!(of("Color"), ("enum.EnumType", "<class '__main__.Color'>"));
        assert_eq!(of("json"), ("module", "<module 'json'>"));
        let all = frames(&stacks)["MainThread/<module>"];
        assert!(all.iter().all(|l| !l.name.starts_with("__")));
    }
}

#[test]
fn no_secret_is_shown_anywhere() {
    for version in VERSIONS {
        let stacks = sound(version, Locals::Values);
        let all = serde_json::to_string(&stacks).unwrap();
        assert!(all.contains("***"));
        for secret in ["hunter2", "AKIA", "eyJ", "PRIVATE KEY"] {
            assert!(!all.contains(secret), "{version}: {secret}");
        }
    }
}

#[test]
fn types_are_the_same_without_values() {
    for version in VERSIONS {
        let (values, types) = (
            sound(version, Locals::Values),
            sound(version, Locals::Types),
        );
        let (values, types) = (frames(&values), frames(&types));
        assert_eq!(values.len(), types.len());
        for (frame, values) in values {
            let names = |of: &[Local]| -> Vec<_> {
                of.iter()
                    .map(|l| (l.name.clone(), l.type_name.clone()))
                    .collect()
            };
            assert_eq!(names(values), names(types[&frame]), "{version}: {frame}");
            assert!(types[&frame].iter().all(|l| l.value.is_none()));
        }
        let none = sound(version, Locals::None);
        assert!(frames(&none).values().all(|locals| locals.is_empty()));
    }
}

/// Some words of the target hold something else; counts the reads and their bytes.
struct Lying<'a> {
    image: &'a Image,
    words: BTreeMap<u64, u64>,
    reads: Cell<u64>,
    bytes: Cell<usize>,
}

impl<'a> Lying<'a> {
    fn new(image: &'a Image, words: impl IntoIterator<Item = (u64, u64)>) -> Self {
        Self {
            image,
            words: words.into_iter().collect(),
            reads: Cell::new(0),
            bytes: Cell::new(0),
        }
    }
}

impl Memory for Lying<'_> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        self.reads.set(self.reads.get() + 1);
        self.bytes.set(self.bytes.get() + buf.len());
        self.image.read(at, buf)?;
        let end = at.0 + buf.len() as u64;
        for (&word, value) in self.words.range(at.0.saturating_sub(7)..end) {
            for (n, byte) in value.to_le_bytes().into_iter().enumerate() {
                let position = word + n as u64;
                if (at.0..end).contains(&position) {
                    buf[usize::try_from(position - at.0).unwrap()] = byte;
                }
            }
        }
        Ok(())
    }
}

/// Where an object of the target is.
fn id(says: &Value, name: &str) -> u64 {
    let id = says["ids"][name].as_str().unwrap();
    u64::from_str_radix(id.strip_prefix("0x").unwrap(), 16).unwrap()
}

fn word(image: &Image, at: u64) -> u64 {
    let mut bytes = [0; 8];
    image.read(Addr(at), &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// The layouts are those of GIL builds on x86-64, which the images are of.
#[test]
fn an_impossible_size_costs_nothing() {
    const HUGE: u64 = 1 << 60;
    for version in VERSIONS {
        let (image, says) = (image(version), says(version));
        let at = |name| id(&says, name);
        let sizes = [
            ("containers", "numbers", at("numbers") + 16),
            ("containers", "words", at("words") + 16),
            ("containers", "pairs", at("pairs") + 16),
            ("containers", "group", at("group") + 24),
            ("containers", "digits", at("digits") + 16),
            ("scalars", "long", at("long") + 16),
            ("scalars", "raw_long", at("raw_long") + 16),
            ("scalars", "mutable", at("mutable") + 16),
        ];
        let honest = Lying::new(&image, []);
        decode(&honest, &image, Locals::Values, &Limits::default());
        // Beyond the sizes, the tables behind a dict, a set and an int of as many digits.
        let keys = word(&image, at("pairs") + 32);
        let tables = [
            (keys + 24, HUGE),
            (at("group") + 32, u64::MAX),
            (at("large_int") + 16, HUGE << 3),
        ];
        let lies = sizes.iter().map(|(_, _, at)| (*at, HUGE)).chain(tables);
        let lying = Lying::new(&image, lies);
        let stacks = decode(&lying, &image, Locals::Values, &Limits::default());
        for (function, name, _) in sizes {
            let local = local(&stacks, &format!("{function}/{function}"), name);
            // What lies behind the object's end may not be mapped.
            let value = local.value.as_deref().unwrap();
            assert!(
                value.starts_with("<unreadable at ") || value.contains(&format!("(len {HUGE})")),
                "{version}: {local:?}"
            );
        }
        assert!(
            lying.reads.get() < honest.reads.get() + 1000,
            "{version}: {} reads, {} of the same target without lies",
            lying.reads.get(),
            honest.reads.get()
        );
        assert!(
            lying.bytes.get() < honest.bytes.get() + 200_000,
            "{version}"
        );
    }
}

#[test]
fn a_secret_of_impossible_size_is_masked() {
    for version in VERSIONS {
        let (image, says) = (image(version), says(version));
        let lying = Lying::new(&image, [(id(&says, "password") + 16, 1 << 60)]);
        let stacks = decode(&lying, &image, Locals::Values, &Limits::default());
        assert_eq!(
            local(&stacks, "secrets/secrets", "password")
                .value
                .as_deref(),
            Some("'***' (len 1152921504606846976)"),
        );
    }
}

/// Where a variable of a frame refers to this object, in whatever way a reference may be marked.
fn references(image: &Image, object: u64) -> Vec<u64> {
    let recorder = Recorder::new(image, usize::MAX);
    decode(&recorder, image, Locals::Types, &Limits::default());
    let mut found = Vec::new();
    for (page, bytes) in recorder.into_touched() {
        for (n, word) in bytes.chunks(8).enumerate() {
            if u64::from_le_bytes(word.try_into().unwrap()) & !3 == object {
                found.push(page + 8 * n as u64);
            }
        }
    }
    found
}

#[test]
fn ints_in_place_and_marked_references_are_read() {
    for version in VERSIONS {
        let (image, says) = (image(version), says(version));
        let value_with = |function: &str, name: &str, change: fn(u64) -> u64| {
            let object = id(&says, name);
            let places = references(&image, object);
            assert!(!places.is_empty(), "{version}: {name}");
            let lies = places.into_iter().map(|at| (at, change(object)));
            let lying = Lying::new(&image, lies);
            let stacks = decode(&lying, &image, Locals::Values, &Limits::default());
            let local = local(&stacks, function, name).clone();
            (local.type_name, local.value.unwrap())
        };
        let int = |value: &str| ("int".to_owned(), value.to_owned());
        let tagged = |object: u64| object | 1;
        assert_eq!(
            value_with("scalars/scalars", "large", tagged),
            int(&(1_u128 << 97).to_string())
        );
        let minus_seven = |_| (-7_i64 << 2).cast_unsigned() | 3;
        assert_eq!(
            value_with("scalars/scalars", "large", minus_seven),
            int("-7")
        );
        assert_eq!(
            value_with("secrets/secrets", "password", minus_seven),
            int("***")
        );
    }
}

#[test]
fn the_number_of_variables_is_bounded() {
    for version in VERSIONS {
        let image = image(version);
        let limits = Limits {
            locals: 5,
            ..Limits::default()
        };
        let stacks = decode(&image, &image, Locals::Values, &limits);
        for (frame, locals) in frames(&stacks) {
            // A module has a comprehension's variable besides.
            assert!(locals.len() <= 6, "{version}: {frame}");
        }
        assert!(
            stacks
                .problems
                .iter()
                .any(|p| p == "scalars has more than 5 variables"),
            "{:?}",
            stacks.problems
        );
    }
}

#[test]
fn the_number_of_values_is_bounded_and_types_remain() {
    for version in VERSIONS {
        let image = image(version);
        let limits = Limits {
            values: 50,
            ..Limits::default()
        };
        let stacks = decode(&image, &image, Locals::Values, &limits);
        let all = frames(&stacks);
        let all: Vec<&Local> = all.values().flat_map(|locals| locals.iter()).collect();
        assert!(all.len() > 200);
        assert_eq!(all.iter().filter(|l| l.value.is_some()).count(), 50);
        assert_eq!(
            stacks.problems,
            ["more than 50 variables: of the others only the types are shown"]
        );
    }
}

/// The addresses of all words that a decode looks at and that are not zero.
fn words(image: &Image) -> Vec<u64> {
    let recorder = Recorder::new(image, usize::MAX);
    decode(&recorder, image, Locals::Values, &Limits::default());
    let mut found = Vec::new();
    for (page, bytes) in recorder.into_touched() {
        for (n, word) in bytes.chunks(8).enumerate() {
            if word != [0; 8] {
                found.push(page + 8 * n as u64);
            }
        }
    }
    found
}

/// Whatever the target's words are: it ends, within its limits, and every text is short.
#[test]
fn words_that_lie() {
    for version in VERSIONS {
        let image = image(version);
        let words = words(&image);
        let value = prop_oneof![
            (0_u32..64).prop_map(|bit| (true, 1_u64 << bit)),
            any::<prop::sample::Index>().prop_map({
                let words = words.clone();
                move |at| (false, *at.get(&words))
            }),
            (0_u64..1024).prop_map(|small| (false, small)),
            any::<u64>().prop_map(|any| (false, any)),
            Just((false, i64::MAX as u64)),
        ];
        let lies = prop::collection::vec((any::<prop::sample::Index>(), value), 1..400);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 64,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let limits = Limits {
            reads: 200_000,
            text_bytes: 4 << 20,
            frames: 500,
            dict_entries: 1000,
            ..Limits::default()
        };
        let runtime = Runtime::locate(&image, &image.mappings, &image).unwrap();
        runner
            .run(&lies, |lies| {
                let lies = lies.into_iter().map(|(at, (flip, value))| {
                    let at = *at.get(&words);
                    (
                        at,
                        if flip {
                            word(&image, at) ^ value
                        } else {
                            value
                        },
                    )
                });
                let lying = Lying::new(&image, lies);
                let stacks = stacks(&lying, &runtime, &image.threads, Locals::Values, &limits);
                assert!(lying.reads.get() <= limits.reads);
                for locals in frames(&stacks).values() {
                    for local in *locals {
                        let value = local.value.as_deref().unwrap_or_default();
                        assert!(value.len() <= 4096, "{local:?}");
                        assert!(!value.contains(char::is_control), "{local:?}");
                    }
                }
                Ok(())
            })
            .unwrap();
    }
}
