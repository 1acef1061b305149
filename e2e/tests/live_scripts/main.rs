//! What a script sees and may do in a live Python process, on every version that takes scripts, and that nothing of it is
//! left behind.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

mod awaiting;
mod frames;
#[path = "../live/mod.rs"]
mod live;
mod places;
mod recipes;
mod seeing;
mod signals;
mod stopping;

use live::{Python, Start, Target, Traces};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const VERSIONS: [Python; 2] = [Python::V3_14, Python::V3_15];

/// What every program begins with: `SIGUSR1` has it say what must be the same before and after a script.
const INVENTORY: &str = r#"
import _imp, builtins, gc, json, os, signal, sys, threading
def inventory(*_):
    handlers = [str(signal.getsignal(number)) if isinstance(signal.getsignal(number), int) else hex(id(signal.getsignal(number))) for number in sorted(signal.valid_signals())]
    print(json.dumps({
        "modules": sorted(sys.modules), "handlers": handlers, "builtins": sorted(vars(builtins)),
        "streams": [sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__, hex(id(sys.stdin))],
        "tools": [sys.monitoring.get_tool(tool) for tool in range(6)], "threads": threading.active_count(),
        "tracing": [repr(sys.gettrace()), repr(sys.getprofile()), sys.getrecursionlimit()],
        "hidden": [name for name in vars(_imp) if "sidewinder" in name], "imports": [len(sys.path), len(sys.meta_path)],
        "importers": len(sys.path_importer_cache), "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "environment": len(os.environ), "collecting": gc.isenabled(),
    }), flush=True)
signal.signal(signal.SIGUSR1, inventory)
"#;
/// A main thread that computes.
const BUSY: &str = "print('ready', flush=True)\nx = 0\nwhile True: x += 1";
/// An event loop that waits.
const LOOP: &str = r#"
import asyncio
async def worker(number):
    marker = f"marker {number}"
    await asyncio.Event().wait()
async def main():
    tasks = [asyncio.create_task(worker(number), name=f"worker-{number}") for number in range(3)]
    print("ready", flush=True)
    while True:
        await asyncio.sleep(3600)
asyncio.run(main())
"#;

/// A program after [`INVENTORY`].
fn program(python: Python, program: &str) -> Target {
    Start {
        python,
        program: &format!("{INVENTORY}\n{program}"),
        ..Start::default()
    }
    .start()
}

/// What is the same before and after.
fn inventory(target: &Target) -> (Traces, Value) {
    kill(Pid::from_raw(target.pid), Signal::SIGUSR1).unwrap();
    let said = target.line();
    let said = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error} in {said}"));
    (target.traces(), said)
}

/// Says what is not the same as before, `but` for some of what the program says.
fn assert_same(target: &Target, before: &(Traces, Value), but: &[&str], what: &str) {
    let (traces, said) = inventory(target);
    assert_eq!(traces, before.0, "{what}");
    for (name, was) in before.1.as_object().unwrap() {
        assert!(
            but.contains(&name.as_str()) || &said[name] == was,
            "{what}: {name} was {was}, is {}",
            said[name]
        );
    }
}

/// Runs a script that must succeed, and gives its answer.
fn answer(target: &Target, script: &str, args: &[&str]) -> Value {
    let (code, answer) = target.exec(script, args);
    assert_eq!(code, 0, "{script}: {answer:#}");
    answer
}

/// The `repr` of a script's last expression.
fn value(target: &Target, script: &str) -> String {
    let answer = answer(target, script, &[]);
    answer["value"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer:#}"))
        .to_owned()
}
