//! Targets that change under the reader, end, or lie: a decode never panics, always ends within a stated number of
//! reads, and keeps to its limits. `PROPTEST_CASES` raises the number of cases.

#![expect(
    clippy::unwrap_used,
    reason = "a test states what must hold; a panic is its report"
)]
#![expect(
    unreachable_pub,
    reason = "the fuzz targets share some of these modules"
)]

mod amplification;
mod bounds;
mod circles;
mod elf;
mod elf_file;
mod image_files;
mod lies;
mod made;
mod reads;
mod sizes;
mod words;

use std::path::PathBuf;

use proptest::prelude::*;
use sidewinder_decode::{Image, Limits, Runtime};

/// Recorded targets of every kind, of either version.
const IMAGES: [&str; 14] = [
    "3.14/contended",
    "3.14/ended",
    "3.14/python_tasks",
    "3.14/subinterpreters",
    "3.14/tasks",
    "3.14/threads",
    "3.14/waits",
    "3.15/contended",
    "3.15/ended",
    "3.15/python_tasks",
    "3.15/subinterpreters",
    "3.15/tasks",
    "3.15/threads",
    "3.15/waits",
];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/images/{name}.img"))
}

fn image(name: &str) -> Image {
    Image::from_bytes(&std::fs::read(path(name)).unwrap()).unwrap()
}

fn located(image: &Image) -> Runtime {
    Runtime::locate(image, &image.mappings, image).unwrap()
}

/// So many cases, unless `PROPTEST_CASES` says how many.
fn cases(cases: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() {
        default.cases
    } else {
        cases
    };
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..default
    }
}

#[test]
fn a_sound_target_has_no_problems() {
    for name in IMAGES {
        let image = image(name);
        let outcome = bounds::decode_all(&image, &image, None, &Limits::default());
        assert!(outcome.located && outcome.frames > 0, "{name}");
        assert_eq!(outcome.problems, [""; 0], "{name}");
    }
}
