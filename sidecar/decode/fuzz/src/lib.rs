//! What the fuzz targets have in common. What holds for every decode is stated once, beside the property tests.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use sidewinder_decode::{Image, Runtime};

#[path = "../../tests/hostile/bounds.rs"]
pub mod bounds;
#[path = "../../tests/hostile/elf_file.rs"]
pub mod elf_file;
#[path = "../../tests/hostile/lies.rs"]
pub mod lies;

/// A recorded target, with what a decode finds in it.
pub struct Target {
    pub image: Image,
    pub runtime: Runtime,
    pub words: lies::Words,
}

/// Every recorded target, in the order of their names.
pub static TARGETS: LazyLock<Vec<Target>> = LazyLock::new(|| {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/images");
    let paths = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    // One folder for each version.
    let mut files: Vec<PathBuf> = paths(&folder)
        .iter()
        .flat_map(|version| paths(version))
        .collect();
    files.retain(|file| file.extension().is_some_and(|e| e == "img"));
    files.sort();
    let targets: Vec<Target> = files
        .iter()
        .map(|file| {
            let image = Image::from_bytes(&std::fs::read(file).unwrap()).unwrap();
            let runtime = Runtime::locate(&image, &image.mappings, &image).unwrap();
            let words = lies::Words::of(&image);
            Target {
                image,
                runtime,
                words,
            }
        })
        .collect();
    assert!(!targets.is_empty());
    targets
});
