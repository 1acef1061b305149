//! Finding the interpreter in live processes, wherever it lies and whatever became of its files.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

mod live;

use std::path::Path;
use std::process::Command;

use live::compiled::{Folder, compile, embedder, library, root_of};
use live::{Python, Start, Target, sidecar};
use serde_json::Value;
use sidewinder_decode::native::{Entry, Native, NativeError};
use sidewinder_decode::runtime::LocateError;
use sidewinder_decode::still::Any;
use sidewinder_decode::{
    Addr, ElfFacts, Files, Limits, Mapping, Memory, NoFiles, ReadError, Runtime,
};
use sidewinder_linux::Process;

const VERSIONS: [&str; 2] = ["3.14", "3.15"];
/// A task that waits, in a function whose name says that the right memory was read.
const WAITS: &str = "import asyncio\nasync def waits_here():\n    print('ready', flush=True)\n    await asyncio.sleep(100000)\nasyncio.run(waits_here())";

fn start(version: &str, command: &[&str]) -> Target {
    Start {
        python: Python::of(version),
        command,
        ..Start::default()
    }
    .start()
}

fn locate(
    target: &Target,
    memory: &impl Memory,
    files: &impl Files,
) -> Result<Runtime, LocateError> {
    Runtime::locate(memory, &target.process().mappings().unwrap(), files)
}

/// Where the symbol table of the runtime's file says that this is, by another program.
fn symbol(file: &Path, name: &str) -> u64 {
    let listed = Command::new("nm")
        .args(["--dynamic", "--defined-only"])
        .arg(file)
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let line = listed
        .lines()
        .find(|line| line.split(' ').next_back() == Some(name))
        .unwrap();
    u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
}

/// The sidecar's answer, and the exit code.
fn ask(arguments: &[&str]) -> (i32, Value, String) {
    run(Command::new(sidecar()).args(arguments))
}

fn run(command: &mut Command) -> (i32, Value, String) {
    let output = command.args(["-o", "json"]).output().unwrap();
    (
        output.status.code().unwrap(),
        serde_json::from_slice(&output.stdout).unwrap_or_default(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// What `ps` says is wrong with a process.
fn problem(pid: i32) -> String {
    let (_, list, _) = ask(&["ps"]);
    let about = format!("process {pid} ");
    let problems = list["problems"].as_array().unwrap();
    problems
        .iter()
        .filter_map(Value::as_str)
        .find_map(|problem| problem.strip_prefix(&about))
        .unwrap_or_else(|| panic!("nothing about process {pid} in {list}"))
        .to_owned()
}

/// The waiting task is found by the sidecar as it is run by hand.
fn is_read(target: &Target) {
    let (code, tasks, said) = ask(&["tasks", "--pid", &target.pid.to_string()]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        tasks["problems"].as_array().map_or(0, Vec::len),
        0,
        "{tasks}"
    );
    assert!(shows_the_task(&tasks), "{tasks}");
    let process = target.process();
    let runtime = locate(target, &process, &process).unwrap();
    let expected = cfg!(target_arch = "x86_64");
    assert_eq!(functions(target, &runtime).is_ok(), expected);
}

/// The functions for a call in place are where another program says that they are in the file, whose first address is
/// `base`.
fn has_functions(target: &Target, runtime: &Runtime, base: u64, file: &Path) {
    if cfg!(target_arch = "x86_64") {
        let entry = functions(target, runtime).unwrap();
        for (at, name) in [
            (entry.restore_thread, "PyEval_RestoreThread"),
            (entry.check_signals, "PyErr_CheckSignals"),
            (entry.save_thread, "PyEval_SaveThread"),
        ] {
            assert_eq!(at.0, base + symbol(file, name), "{name}");
        }
    }
}

fn functions(target: &Target, runtime: &Runtime) -> Result<Entry, NativeError> {
    let process = target.process();
    let mappings = process.mappings().unwrap();
    Native::prepare::<Any>(&process, &mappings, runtime).entry
}

fn shows_the_task(tasks: &Value) -> bool {
    tasks["tasks"].as_array().is_some_and(|t| t.len() == 1)
        && tasks.to_string().contains("waits_here")
}

/// The waiting task is found with nothing but this memory and these files.
fn is_read_with(target: &Target, memory: &impl Memory, files: &impl Files) -> Runtime {
    let process = target.process();
    let runtime = locate(target, memory, files).unwrap();
    assert_eq!(runtime.problems(), [""; 0]);
    let threads = process.threads().unwrap();
    let tasks = sidewinder_decode::tasks(memory, &runtime, &threads, &Limits::default());
    let tasks = serde_json::to_value(&tasks).unwrap();
    assert!(shows_the_task(&tasks), "{tasks}");
    runtime
}

/// A target's memory whose ELF headers are gone: there are no symbols to be had.
struct WithoutHeaders<'a> {
    process: &'a Process,
    headers: Vec<u64>,
}

impl<'a> WithoutHeaders<'a> {
    fn new(process: &'a Process) -> Self {
        let mappings = process.mappings().unwrap();
        let begins = mappings.iter().filter(|m| m.is_file() && m.offset == 0);
        Self {
            process,
            headers: begins.map(|m| m.start).collect(),
        }
    }
}

impl Memory for WithoutHeaders<'_> {
    fn read(&self, at: Addr, buf: &mut [u8]) -> Result<(), ReadError> {
        if self.headers.contains(&at.0) {
            return Err(ReadError::Fault { at, len: buf.len() });
        }
        self.process.read(at, buf)
    }
}

#[test]
fn debians_static_executable_that_lies_at_a_fixed_address() {
    for version in VERSIONS {
        let python = format!("/usr/bin/python{version}");
        let target = start(version, &[&python, "-c", WAITS]);
        is_read(&target);
        let process = target.process();
        let runtime = is_read_with(&target, &process, &process);
        let file = root_of(version).join(python.trim_start_matches('/'));
        assert_eq!(runtime.address().0, symbol(&file, "_PyRuntime"));
        has_functions(&target, &runtime, 0, &file);
        assert!(runtime.version().starts_with(version));
        // The same address with less and less help.
        for found in [
            is_read_with(&target, &process, &NoFiles),
            is_read_with(&target, &WithoutHeaders::new(&process), &NoFiles),
        ] {
            assert_eq!(found.address(), runtime.address());
        }
    }
}

#[test]
fn an_embedder_of_any_name_with_pythons_library() {
    for version in VERSIONS {
        let folder = Folder::new(version, "embed");
        for kind in ["-pie", "-no-pie"] {
            let program = embedder(version, &folder, "myapp", kind);
            let target = start(version, &[&program, "run", WAITS]);
            is_read(&target);
            let process = target.process();
            let runtime = is_read_with(&target, &process, &process);
            let library = library(version);
            assert!(runtime.path().ends_with(&library), "{}", runtime.path());
            let mappings = process.mappings().unwrap();
            let base = mappings.iter().find(|m| m.path == runtime.path()).unwrap();
            let file = root_of(version).join(library.trim_start_matches('/'));
            assert_eq!(
                runtime.address().0,
                base.start + symbol(&file, "_PyRuntime")
            );
            has_functions(&target, &runtime, base.start, &file);
            for found in [
                is_read_with(&target, &process, &NoFiles),
                is_read_with(&target, &WithoutHeaders::new(&process), &NoFiles),
            ] {
                assert_eq!(found.address(), runtime.address());
                assert_eq!(found.path(), runtime.path());
            }
        }
    }
}

#[test]
fn an_executable_that_is_renamed_deleted_and_replaced_while_it_runs() {
    let other = |version| VERSIONS.into_iter().find(|v| *v != version).unwrap();
    for version in VERSIONS {
        let folder = Folder::new(version, "replaced");
        let python = |version| format!("/usr/bin/python{version}");
        let program = folder.copy(version, &python(version), "application");
        let target = start(version, &[&program, "-c", WAITS]);
        is_read(&target);
        let file = folder.outside.join("application");
        std::fs::rename(&file, folder.outside.join("moved")).unwrap();
        is_read(&target);
        // An upgrade: the path holds another build.
        let new = root_of(other(version)).join(python(other(version)).trim_start_matches('/'));
        std::fs::copy(new, &file).unwrap();
        is_read(&target);
        std::fs::remove_file(folder.outside.join("moved")).unwrap();
        is_read(&target);
        let process = target.process();
        let runtime = is_read_with(&target, &process, &process);
        assert!(runtime.path().ends_with(" (deleted)"), "{}", runtime.path());
        assert!(runtime.version().starts_with(version));
    }
}

#[test]
fn a_library_that_an_upgrade_replaced() {
    for version in VERSIONS {
        let folder = Folder::new(version, "upgraded");
        let program = embedder(version, &folder, "myapp", "-pie");
        let name = format!("libpython{version}.so.1.0");
        folder.copy(version, &library(version), &name);
        let path = ("LD_LIBRARY_PATH", folder.inside.as_str());
        let target = Start {
            python: Python::of(version),
            command: &[&program, "run", WAITS],
            env: &[path],
            ..Start::default()
        }
        .start();
        is_read(&target);
        let file = folder.outside.join(&name);
        std::fs::remove_file(&file).unwrap();
        is_read(&target);
        // Another build: as long, with its sections elsewhere.
        let mut bytes = std::fs::read(root_of(version).join(&library(version)[1..])).unwrap();
        bytes[0x28..0x30].fill(0);
        std::fs::write(&file, bytes).unwrap();
        is_read(&target);
        // Without the kernel's own links to the mapped files only memory is left.
        let (code, tasks, said) =
            run(confined(sidecar()).args(["tasks", "--pid", &target.pid.to_string()]));
        assert_eq!(code, 0, "{said}");
        assert!(shows_the_task(&tasks), "{tasks}");
    }
}

/// A command with no more capabilities than the sidecar has in a pod: the links in `map_files` are closed to it.
fn confined(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set", "-all,+sys_ptrace,+dac_read_search"])
        .args(["--inh-caps", "-all"])
        .arg(program);
    command
}

/// Set for this very test to be run once more, with less capabilities: the process to look at.
const LOOK_AT: &str = "LIVE_FIND_LOOK_AT";

#[test]
fn files_of_other_mount_namespaces_are_opened_by_path_where_links_are_closed() {
    if let Ok(pid) = std::env::var(LOOK_AT) {
        let process = Process::open(pid.parse().unwrap()).unwrap();
        let mappings = process.mappings().unwrap();
        let libraries: Vec<&Mapping> = mappings
            .iter()
            .filter(|m| m.offset == 0 && m.path.contains("/libpython"))
            .collect();
        assert!(!libraries.is_empty());
        for mapping in libraries {
            let link = format!(
                "/proc/{pid}/map_files/{:x}-{:x}",
                mapping.start, mapping.end
            );
            assert!(std::fs::File::open(link).is_err(), "the links are open");
            let file = process.open_mapping(mapping).unwrap();
            assert!(ElfFacts::read(file).unwrap().runtime.is_some());
        }
        return;
    }
    for (version, overlay) in VERSIONS.into_iter().zip([false, true]) {
        let folder = Folder::new(version, "namespaces");
        let program = embedder(version, &folder, "myapp", "-pie");
        let target = Start {
            python: Python::of(version),
            command: &[&program, "run", WAITS],
            overlay,
            proc: true,
            pid_namespace: true,
            ..Start::default()
        }
        .start();
        is_read(&target);
        let (code, tasks, said) =
            run(confined(sidecar()).args(["tasks", "--pid", &target.pid.to_string()]));
        assert_eq!(code, 0, "{said}");
        assert!(shows_the_task(&tasks), "{tasks}");
        let again = confined(&std::env::current_exe().unwrap())
            .args([
                "--exact",
                "files_of_other_mount_namespaces_are_opened_by_path_where_links_are_closed",
            ])
            .env(LOOK_AT, target.pid.to_string())
            .output()
            .unwrap();
        assert!(
            again.status.success(),
            "{}",
            String::from_utf8_lossy(&again.stdout)
        );
    }
}

#[test]
fn of_two_pythons_the_one_that_was_started_is_read_and_two_are_reported() {
    for version in VERSIONS {
        let folder = Folder::new(version, "two");
        compile("embed.c", &folder.outside.join("two"), &[]);
        let (program, library) = (folder.path("two"), library(version));
        is_read(&start(version, &[&program, &library, WAITS]));
        let target = start(version, &[&program, &library, WAITS, "started = True"]);
        let process = target.process();
        let runtime = locate(&target, &process, &process).unwrap();
        let [problem] = runtime.problems() else {
            panic!("{:?}", runtime.problems());
        };
        assert!(
            problem.starts_with(&format!("the process runs a second Python, {version}.")),
            "{problem}"
        );
    }
}

#[test]
fn a_python_that_is_not_started_or_was_shut_down_is_said_to_be_so() {
    for version in VERSIONS {
        let folder = Folder::new(version, "ends");
        let program = embedder(version, &folder, "myapp", "-pie");
        for when in ["before", "after"] {
            let target = start(version, &[&program, when, "pass"]);
            let says = problem(target.pid);
            assert!(
                says.contains(&format!("Python {version}."))
                    && says.ends_with("has no interpreter (not started yet, or shut down)"),
                "{says}"
            );
            let (code, _, said) = ask(&["stacks", "--pid", &target.pid.to_string()]);
            assert_eq!(code, 4, "{said}");
            assert!(said.contains(&format!("Python {version}.")), "{said}");
        }
    }
}

#[test]
fn a_python_in_the_middle_of_its_start_and_of_its_end() {
    // The first thing that is imported, before there is a `sys.path` to speak of.
    const IMPORT: &str = "import posix\nposix.write(1, b'ready\\n')\ndef at_start(): posix.read(posix.pipe()[0], 1)\nat_start()";
    // Modules are torn down once the runtime has said that it ends.
    const END: &str = "import os\nclass AtEnd:\n    def __del__(self, write=os.write, read=os.read, fd=os.pipe()[0]):\n        write(1, b'ready\\n')\n        read(fd, 1)\nat_end = AtEnd()";
    for version in VERSIONS {
        let folder = Folder::new(version, "middle");
        let encodings = folder.outside.join("encodings");
        std::fs::create_dir_all(&encodings).unwrap();
        std::fs::write(encodings.join("__init__.py"), IMPORT).unwrap();
        let python = format!("/usr/bin/python{version}");
        let starting = Start {
            python: Python::of(version),
            command: &[&python, "-c", "pass"],
            env: &[("PYTHONPATH", &folder.inside)],
            ..Start::default()
        }
        .start();
        let ending = start(version, &[&python, "-c", END]);
        for (target, function) in [(&starting, "at_start"), (&ending, "AtEnd.__del__")] {
            let (code, stacks, said) = ask(&["stacks", "--pid", &target.pid.to_string()]);
            assert_eq!(code, 0, "{said}");
            let threads = stacks["interpreters"][0]["threads"].as_array().unwrap();
            assert_eq!(threads.len(), 1, "{stacks}");
            let frames = threads[0]["frames"].as_array().unwrap();
            assert_eq!(frames.last().unwrap()["function"], function, "{stacks}");
        }
        let (_, list, _) = ask(&["ps"]);
        let listed = list["processes"].as_array().unwrap();
        let listed = listed.iter().find(|p| p["pid"] == ending.pid).unwrap();
        assert_eq!(
            listed["remoteExec"]["reason"],
            "the interpreter is shutting down"
        );
    }
}

#[test]
fn versions_that_cannot_be_read_are_named() {
    let folder = Folder::new("3.14", "versions");
    for (word, version) in [
        ("0x030d01f0", "3.13.1"),
        ("0x030e00a7", "3.14.0a7"),
        ("0x030e00c3", "3.14.0rc3"),
        ("0x030f00b4", "3.15.0b4"),
        ("0x030f00c1", "3.15.0rc1"),
        ("0x031000f0", "3.16.0"),
        ("0x040000a1", "4.0.0a1"),
        // Without the cookie: older than the table, as its name says.
        ("0x030c07f0", "3.12"),
    ] {
        let name = if version == "3.12" {
            "libpython3.12.so.1.0"
        } else {
            "application"
        };
        let mut options = vec![format!("-DVERSION_WORD={word}")];
        if version == "3.12" {
            options.push("-DCOOKIE=0".to_owned());
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        compile("pretend.c", &folder.outside.join(name), &options);
        let target = start("3.14", &[&folder.path(name)]);
        let says = problem(target.pid);
        assert!(
            says.contains(&format!("Python {version} is not supported: ")),
            "{says}"
        );
        let (code, _, said) = ask(&["tasks", "--pid", &target.pid.to_string()]);
        assert_eq!(code, 4, "{said}");
        assert!(
            said.starts_with(&format!(
                "UnsupportedPython: Python {version} is not supported: "
            )),
            "{said}"
        );
    }
}
