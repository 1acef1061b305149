#![expect(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "the numbers are the test's own"
)]

use super::*;
use crate::elf::{ElfFacts, NoFiles, Segment};
use crate::offsets::tests::{WORDS_3_14_8, bytes};

const BASE: u64 = 0x40_0000;
const RUNTIME: u64 = 0x2000;
/// Enough data for a runtime.
const SIZE: usize = 0x2_0000;
/// Another file, with a runtime of its own.
const SECOND: u64 = 8;
const RUNTIME_2: u64 = 0x6000;

/// A process with one mapped file, whose memory is one piece.
struct Target {
    memory: Vec<u8>,
    facts: Option<ElfFacts>,
    path: &'static str,
}

impl Memory for Target {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        let fault = ReadError::Fault { at, len: buf.len() };
        let start =
            at.0.checked_sub(BASE)
                .and_then(|start| usize::try_from(start).ok());
        let bytes = start.and_then(|start| self.memory.get(start..start.checked_add(buf.len())?));
        buf.copy_from_slice(bytes.ok_or(fault)?);
        Ok(())
    }
}

impl Files for Target {
    fn elf(&self, mapping: &Mapping) -> Option<ElfFacts> {
        let mut facts = self.facts.clone()?;
        if mapping.inode == SECOND {
            facts.runtime = Some(RUNTIME_2);
        }
        Some(facts)
    }
}

impl Target {
    /// A file with a runtime that begins with these words.
    fn new(words: &[u64]) -> Self {
        let mut memory = vec![0; SIZE];
        let table = bytes(words);
        memory[RUNTIME as usize..][..table.len()].copy_from_slice(&table);
        Self {
            memory,
            facts: Some(ElfFacts {
                segments: vec![Segment {
                    offset: 0,
                    address: 0,
                    file_size: SIZE as u64,
                }],
                runtime: Some(RUNTIME),
                asyncio: None,
                version: None,
            }),
            path: "/opt/app/server",
        }
    }

    fn with_word(mut self, at: u64, word: u64) -> Self {
        self.memory[at as usize..][..8].copy_from_slice(&word.to_le_bytes());
        self
    }

    fn mappings(&self) -> Vec<Mapping> {
        vec![Mapping {
            start: BASE,
            end: BASE + self.memory.len() as u64,
            readable: true,
            writable: true,
            executable: false,
            offset: 0,
            device: "08:01".to_owned(),
            inode: 7,
            path: self.path.to_owned(),
        }]
    }

    fn locate(&self) -> Result<Runtime, LocateError> {
        Runtime::locate(self, &self.mappings(), self)
    }
}

/// The table of a 3.14.8 with this version word, and an interpreter.
fn python(hex: u64) -> Target {
    let mut words = WORDS_3_14_8;
    words[1] = hex;
    Target::new(&words).with_word(RUNTIME + words[5], BASE + 0x4000)
}

fn unsupported(target: &Target) -> String {
    match target.locate() {
        Err(LocateError::Unsupported { version, .. }) => version,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_runtime_is_found_in_a_file_of_any_name() {
    let runtime = python(0x030e_08f0).locate().unwrap();
    assert_eq!(runtime.version(), "3.14.8");
    assert_eq!(runtime.address(), Addr(BASE + RUNTIME));
    assert_eq!(runtime.path(), "/opt/app/server");
    assert!(runtime.problems().is_empty());
}

#[test]
fn without_files_the_cookie_is_searched_for() {
    let target = python(0x030e_08f0);
    let runtime = Runtime::locate(&target, &target.mappings(), &NoFiles).unwrap();
    assert_eq!(runtime.address(), Addr(BASE + RUNTIME));
}

#[test]
fn other_versions_are_refused_by_name() {
    assert_eq!(unsupported(&python(0x030d_01f0)), "3.13.1");
    assert_eq!(unsupported(&python(0x030e_00c2)), "3.14.0rc2");
    assert_eq!(unsupported(&python(0x0310_00f0)), "3.16.0");
    assert_eq!(unsupported(&python(0x0400_00f0)), "4.0.0");
}

#[test]
fn a_runtime_without_a_table_is_an_older_python() {
    let mut target = Target::new(&[]);
    assert_eq!(unsupported(&target), "3.12 or older");
    target.path = "/usr/lib/libpython3.9.so.1.0 (deleted)";
    assert_eq!(unsupported(&target), "3.9");
    let mut target = target.with_word(0x100, 0x030c_01f0);
    target.facts.as_mut().unwrap().version = Some(0x100);
    assert_eq!(unsupported(&target), "3.12.1");
}

#[test]
fn a_python_that_only_its_name_betrays_is_an_older_one() {
    let mut target = Target::new(&[]);
    target.facts = None;
    assert_eq!(target.locate().unwrap_err(), LocateError::NotPython);
    target.path = "/usr/bin/python2.7";
    assert_eq!(unsupported(&target), "2.7");
    target.path = "/usr/bin/python-launcher";
    assert_eq!(target.locate().unwrap_err(), LocateError::NotPython);
}

#[test]
fn a_python_that_was_not_started_is_said_to_be_so() {
    let words = WORDS_3_14_8;
    assert_eq!(
        Target::new(&words).locate().unwrap_err(),
        LocateError::NoInterpreter {
            version: "3.14.8".to_owned()
        }
    );
}

#[test]
fn a_damaged_table_is_not_believed() {
    let mut words = WORDS_3_14_8;
    words[40] = 1 << 50;
    let target = Target::new(&words).with_word(RUNTIME + words[5], BASE + 0x4000);
    assert!(
        matches!(target.locate(), Err(LocateError::Damaged { version, .. }) if version == "3.14.8")
    );
}

#[test]
fn a_second_python_is_mentioned() {
    let mut target = python(0x030e_08f0);
    let first = RUNTIME as usize;
    let table = target.memory[first..first + 0x1000].to_vec();
    target.memory[RUNTIME_2 as usize..][..0x1000].copy_from_slice(&table);
    let mut mappings = target.mappings();
    mappings.push(Mapping {
        inode: SECOND,
        ..mappings[0].clone()
    });
    let runtime = Runtime::locate(&target, &mappings, &target).unwrap();
    assert_eq!(runtime.address(), Addr(BASE + RUNTIME));
    assert!(
        runtime.problems()[0].contains("second Python, 3.14.8 at 0x406000"),
        "{:?}",
        runtime.problems()
    );
}

#[test]
fn the_same_python_mapped_twice_is_one() {
    let target = python(0x030e_08f0);
    let mut mappings = target.mappings();
    mappings.push(Mapping {
        inode: 9,
        ..mappings[0].clone()
    });
    let runtime = Runtime::locate(&target, &mappings, &target).unwrap();
    assert!(runtime.problems().is_empty());
}

#[test]
fn a_target_that_ends_is_not_taken_for_something_else() {
    struct Gone;
    impl Memory for Gone {
        fn read(&self, _: Addr, _: &mut [u8]) -> Result<(), ReadError> {
            Err(ReadError::Gone)
        }
    }
    let target = python(0x030e_08f0);
    assert_eq!(
        Runtime::locate(&Gone, &target.mappings(), &target).unwrap_err(),
        LocateError::Read(ReadError::Gone)
    );
}

#[test]
fn a_second_python_that_cannot_be_read_is_named() {
    let mut target = python(0x030e_08f0);
    let mut words = WORDS_3_14_8;
    words[1] = 0x030d_02f0;
    let table = bytes(&words);
    target.memory[RUNTIME_2 as usize..][..table.len()].copy_from_slice(&table);
    let mut mappings = target.mappings();
    mappings.insert(
        0,
        Mapping {
            inode: SECOND,
            ..mappings[0].clone()
        },
    );
    let runtime = Runtime::locate(&target, &mappings, &target).unwrap();
    assert_eq!(runtime.version(), "3.14.8");
    assert_eq!(
        runtime.problems(),
        [
            "the process holds a second Python: Python 3.13.2 is not supported: its memory can be read from 3.14 on"
        ]
    );
}

#[test]
fn the_python_that_was_started_is_chosen_and_another_that_was_not_is_no_problem() {
    let mut target = Target::new(&WORDS_3_14_8);
    let table = bytes(&WORDS_3_14_8);
    let second = RUNTIME_2 as usize;
    target.memory[second..][..table.len()].copy_from_slice(&table);
    let head = (RUNTIME_2 + WORDS_3_14_8[5]) as usize;
    target.memory[head..][..8].copy_from_slice(&(BASE + 0x4000).to_le_bytes());
    let mut mappings = target.mappings();
    mappings.push(Mapping {
        inode: SECOND,
        path: "/usr/lib/libpython3.14.so.1.0".to_owned(),
        ..mappings[0].clone()
    });
    let runtime = Runtime::locate(&target, &mappings, &target).unwrap();
    assert_eq!(runtime.address(), Addr(BASE + RUNTIME_2));
    assert_eq!(runtime.path(), "/usr/lib/libpython3.14.so.1.0");
    assert!(runtime.problems().is_empty());
}

#[test]
fn a_file_that_cannot_be_read_is_searched_although_others_can_be() {
    struct Second(Target);
    impl Files for Second {
        fn elf(&self, mapping: &Mapping) -> Option<ElfFacts> {
            (mapping.inode == SECOND).then(|| ElfFacts {
                runtime: None,
                ..self.0.facts.clone().unwrap()
            })
        }
    }
    let files = Second(python(0x030e_08f0));
    let target = python(0x030e_08f0);
    let mut mappings = target.mappings();
    let other = Mapping {
        start: BASE + SIZE as u64,
        end: BASE + 2 * SIZE as u64,
        inode: SECOND,
        ..mappings[0].clone()
    };
    mappings.insert(0, other);
    let runtime = Runtime::locate(&target, &mappings, &files).unwrap();
    assert_eq!(runtime.address(), Addr(BASE + RUNTIME));
}

#[test]
fn a_python_that_is_mapped_to_be_read_as_a_file_runs_nothing() {
    let target = python(0x030e_08f0);
    let mut mappings = target.mappings();
    mappings[0].writable = false;
    assert_eq!(
        Runtime::locate(&target, &mappings, &target).unwrap_err(),
        LocateError::NotPython
    );
}

#[test]
fn files_without_room_for_a_runtime_are_not_opened() {
    struct Counted<'a>(&'a Target, std::cell::RefCell<Vec<String>>);
    impl Files for Counted<'_> {
        fn elf(&self, mapping: &Mapping) -> Option<ElfFacts> {
            self.1.borrow_mut().push(mapping.path.clone());
            self.0.elf(mapping)
        }
    }
    let target = python(0x030e_08f0);
    let mut mappings = target.mappings();
    for (n, path) in ["/lib/libc.so.6", "/usr/lib/_asyncio.cpython-314.so"]
        .into_iter()
        .enumerate()
    {
        let start = BASE + (1 + n as u64) * SIZE as u64;
        mappings.push(Mapping {
            start,
            end: start + 0x1000,
            inode: 100 + n as u64,
            path: path.to_owned(),
            ..mappings[0].clone()
        });
    }
    let files = Counted(&target, std::cell::RefCell::default());
    Runtime::locate(&target, &mappings, &files).unwrap();
    assert_eq!(
        *files.1.borrow(),
        ["/opt/app/server", "/usr/lib/_asyncio.cpython-314.so"]
    );
}

#[test]
fn asyncio_that_is_linked_into_the_runtimes_file_is_found_with_files_and_without() {
    // The table of a live 3.14.8, as python-build-standalone links it into its executable.
    let asyncio: [u64; 13] = [
        168, 136, 96, 108, 109, 128, 152, 225_864, 10_880, 936, 864, 872, 880,
    ];
    let at = 0x7000;
    let mut target = python(0x030e_08f0);
    target.memory[at..][..13 * 8].copy_from_slice(&bytes(&asyncio));
    assert!(
        Runtime::locate(&target, &target.mappings(), &NoFiles)
            .unwrap()
            .has_asyncio()
    );
    assert!(!target.locate().unwrap().has_asyncio());
    target.facts.as_mut().unwrap().asyncio = Some(at as u64);
    let runtime = target.locate().unwrap();
    assert!(runtime.has_asyncio() && runtime.problems().is_empty());
    // One of another build is not believed.
    target.memory[at + 56] ^= 8;
    let runtime = target.locate().unwrap();
    assert!(!runtime.has_asyncio());
    assert_eq!(
        runtime.problems(),
        ["asyncio is loaded and its debug table could not be read"]
    );
}
