//! Programs that are built for a test, in a Python's root.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Python;

/// A folder in a Python's root, removed with what is in it.
pub(crate) struct Folder {
    pub(crate) outside: PathBuf,
    /// Its path as a process in the root sees it.
    pub(crate) inside: String,
}

impl Folder {
    pub(crate) fn new(version: &str, name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let inside = format!("/tmp/test-{}-{count}-{name}", std::process::id());
        let outside = root_of(version).join(inside.trim_start_matches('/'));
        std::fs::create_dir_all(&outside).unwrap();
        Self { outside, inside }
    }

    /// A copy of one of the root's files, by its path in the root.
    pub(crate) fn copy(&self, version: &str, from: &str, name: &str) -> String {
        let from = root_of(version).join(from.trim_start_matches('/'));
        std::fs::copy(from, self.outside.join(name)).unwrap();
        self.path(name)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.inside)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.outside);
    }
}

pub(crate) fn root_of(version: &str) -> &'static Path {
    super::root_of(Python::of(version))
}

pub(crate) fn library(version: &str) -> String {
    let machine = std::env::consts::ARCH;
    format!("/usr/lib/{machine}-linux-gnu/libpython{version}.so.1.0")
}

/// Builds one of the programs beside this file.
pub(crate) fn compile(source: &str, to: &Path, options: &[&str]) {
    static COMPILER: OnceLock<()> = OnceLock::new();
    COMPILER.get_or_init(|| {
        sidewinder_e2e::packages::ensure(sidewinder_e2e::packages::COMPILER).unwrap();
    });
    let source = sidewinder_e2e::checkout()
        .join("e2e/tests/live")
        .join(source);
    let built = Command::new("gcc")
        .arg("-o")
        .args([to, &source])
        .args(options)
        .status()
        .unwrap();
    assert!(built.success());
}

/// Builds the program that embeds Python, linked with its library.
pub(crate) fn embedder(version: &str, folder: &Folder, name: &str, kind: &str) -> String {
    let library = root_of(version).join(library(version).trim_start_matches('/'));
    compile(
        "embed.c",
        &folder.outside.join(name),
        &[
            "-DEMBED",
            kind,
            library.to_str().unwrap(),
            // The library's own C library may be newer than the machine's.
            "-Wl,--allow-shlib-undefined",
        ],
    );
    folder.path(name)
}

/// Builds a library that a program loads with ctypes: its path in the root.
pub(crate) fn shared(source: &str, folder: &Folder) -> String {
    let name = source.replace(".c", ".so");
    compile(source, &folder.outside.join(&name), &["-shared", "-fPIC"]);
    folder.path(&name)
}
