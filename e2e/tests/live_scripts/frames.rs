//! The frames of threads and tasks that a script asks for.

use serde_json::json;

use super::{BUSY, LOOP, VERSIONS, answer, program, value};
use crate::live::Start;

/// Threads and tasks with something to look at.
const SCENE: &str = r#"
import asyncio, threading, time
def holder(release):
    marker = "in a thread"
    inner(release)
def inner(release):
    depth = 2
    release.wait()
class Source:
    async def __aiter__(self):
        marker = "in a generator"
        while True:
            await asyncio.sleep(3600)
            yield 1
    def __await__(self):
        marker = "in an awaitable"
        yield from asyncio.sleep(3600).__await__()
async def read():
    marker = "in a reader"
    async for _ in Source(): pass
async def deep():
    marker = "in a task"
    await Source()
async def spin():
    marker = "running"
    while True:
        spinning()
        await asyncio.sleep(0)
def spinning():
    marker = "called by a task"
    for _ in range(1000): pass
async def main():
    marker = "in main"
    tasks = [asyncio.create_task(read(), name="reader"), asyncio.create_task(deep(), name="twin"), asyncio.create_task(deep(), name="twin")]
    await asyncio.sleep(3600)
release = threading.Event()
threading.Thread(target=holder, args=(release,), name="holder", daemon=True).start()
for _ in range(2): threading.Thread(target=holder, args=(release,), name="same name", daemon=True).start()
def other_loop():
    asyncio.run(spin())
threading.Thread(target=other_loop, name="looping", daemon=True).start()
async def begin():
    task = asyncio.create_task(main(), name="main")
    await asyncio.sleep(0.05)
    print("ready", flush=True)
    await task
asyncio.run(begin())
"#;

#[test]
fn the_frames_of_threads_and_tasks() {
    for python in VERSIONS {
        let target = program(python, SCENE);
        for (script, expected) in [
            // The interrupted frame, with its callers.
            (
                "frame.f_code.co_name, thread_frame() is frame",
                "('select', True)",
            ),
            (
                "[f.f_code.co_qualname for f in thread_frames()][:2]",
                "['<module>', 'run']",
            ),
            // By name, by ident, by the kernel's id, as `stacks` shows them.
            ("thread_frame('holder', 'inner').f_locals['depth']", "2"),
            (
                "thread_frame('holder', 'holder').f_locals['marker']",
                "'in a thread'",
            ),
            (
                "import threading\nt = [t for t in threading.enumerate() if t.name == 'holder'][0]\n\
              [thread_frame(which, 'inner') is thread_frame('holder', 'inner') for which in (t, t.ident, hex(t.ident), t.native_id, str(t.native_id))]",
                "[True, True, True, True, True]",
            ),
            ("thread_frame('MainThread') is frame", "True"),
            // Of a task: innermost, by function, all; through generators and awaitables.
            ("task_frame('main', 'main').f_locals['marker']", "'in main'"),
            ("task_frame('main').f_code.co_qualname", "'sleep'"),
            (
                "[f.f_code.co_qualname for f in task_frames('reader')]",
                "['read', 'Source.__aiter__', 'sleep']",
            ),
            (
                "task_frame('reader', 'Source.__aiter__').f_locals['marker']",
                "'in a generator'",
            ),
            (
                "task = [t for t in task_frame('main', 'main').f_locals['tasks'] if t.get_name() == 'twin'][1]\n\
              [task_frame(which, 'deep') is task.get_coro().cr_frame for which in (task, id(task), hex(id(task)))]",
                "[True, True, True]",
            ),
            (
                "task = task_frame('main', 'main').f_locals['tasks'][1]\n[f.f_code.co_qualname for f in task_frames(task)]",
                "['deep', 'Source.__await__', 'sleep']",
            ),
            // What is written to a frame's variables is in the function at once.
            (
                "f = thread_frame('holder', 'inner')\nf.f_locals['depth'] = 3\nf.f_locals['depth'], thread_frame('holder', 'inner').f_locals['depth']",
                "(3, 3)",
            ),
            (
                "task_frame('main', 'main').f_globals is frame.f_globals",
                "False",
            ),
            (
                "thread_frame('holder', 'inner').f_globals['SCENE' if False else 'release'].is_set()",
                "False",
            ),
        ] {
            assert_eq!(value(&target, script), expected, "{script}");
        }
        // A task that runs goes on with what it calls, in another thread's loop too.
        let script = "import sys, time\nsys.setswitchinterval(1e-5)\nfor _ in range(100_000):\n    names = [f.f_code.co_qualname for f in task_frames('Task-2')]\n    if names[-1] == 'spinning': break\n    time.sleep(0.0001)\nsys.setswitchinterval(0.005)\nnames, task_frame('Task-2', 'spin').f_locals['marker']";
        let script = script.replace("Task-2", &running_task(&target));
        assert_eq!(value(&target, &script), "(['spin', 'spinning'], 'running')");
    }
}

#[test]
fn what_is_not_there_is_answered_with_what_there_is() {
    for python in VERSIONS {
        let target = program(python, SCENE);
        for (script, needles) in [
            (
                "thread_frame('nobody')",
                &["no thread is 'nobody'", "MainThread", "holder", "tid "][..],
            ),
            (
                "thread_frame('same name')",
                &["2 threads are 'same name'", "0x"],
            ),
            (
                "thread_frame('holder', 'nothing')",
                &[
                    "thread 'holder' has no frame of 'nothing'; it has",
                    "holder, inner, Event.wait",
                ],
            ),
            ("thread_frame(1)", &["no thread is 1"]),
            (
                "task_frame('nobody')",
                &["no task is 'nobody'", "reader (read)", "main (main)"],
            ),
            (
                "task_frame('twin')",
                &["2 tasks are 'twin'", "twin (deep); 0x"],
            ),
            (
                "task_frame()",
                &["no task was interrupted", "reader (read)"],
            ),
            (
                "task_frame('reader', 'nothing')",
                &["has no frame of 'nothing'; it has read, Source.__aiter__, sleep"],
            ),
        ] {
            let (_, answer) = target.exec(script, &[]);
            assert_eq!(
                answer["exception"]["type"], "LookupError",
                "{script}: {answer:#}"
            );
            let message = answer["exception"]["message"].as_str().unwrap();
            for needle in needles {
                assert!(message.contains(needle), "{script}: {message}");
            }
            // The wrapper's own frames are not in it.
            let shown = answer["exception"]["traceback"].as_str().unwrap();
            assert_eq!(shown.matches("File ").count(), 1, "{shown}");
        }
    }
}

/// The name of the task of the program's other loop.
fn running_task(target: &super::Target) -> String {
    let all = value(
        target,
        "import gc, asyncio\n[t.get_name() for t in gc.get_objects() if type(t) is asyncio.Task and t.get_coro().__qualname__ == 'spin']",
    );
    all.trim_matches(['[', ']', '\'']).to_owned()
}

#[test]
fn from_within_a_task_and_a_thread_of_its_own() {
    for python in VERSIONS {
        let target = program(python, LOOP);
        for (script, expected) in [
            // The task that awaits is not what it looks at.
            (
                "import asyncio\nawait asyncio.sleep(0)\nthread_frame().f_code.co_qualname",
                "'Handle._run'",
            ),
            (
                "import asyncio\nawait asyncio.sleep(0)\ntask_frame('worker-1', 'worker').f_locals['marker']",
                "'marker 1'",
            ),
            (
                "import threading\nfound = []\nt = threading.Thread(target=lambda: found.append(thread_frame('MainThread') is frame))\nt.start()\nt.join()\nfound",
                "[True]",
            ),
        ] {
            assert_eq!(value(&target, script), expected, "{script}");
        }
        let (_, raised) = target.exec("import asyncio\nawait asyncio.sleep(0)\ntask_frames()", &[]);
        let message = raised["exception"]["message"].as_str().unwrap();
        assert!(
            message.starts_with("no task was interrupted: give") && !message.contains("sidewinder"),
            "{message}"
        );
        let target = program(
            python,
            "import asyncio\nasync def main():\n    marker = 1\n    print('ready', flush=True)\n    while True: pass\nasyncio.run(main())",
        );
        assert_eq!(
            value(
                &target,
                "task_frame() is frame, task_frame().f_locals['marker'], [f.f_code.co_name for f in task_frames()]"
            ),
            "(True, 1, ['main'])"
        );
        let (_, blocked) = target.exec(
            "import asyncio\nawait asyncio.sleep(0)",
            &["--start", "300ms"],
        );
        assert_eq!(blocked["reason"], "TargetBlocked", "{blocked:#}");
        // Without asyncio and threading, nothing is imported for it.
        let target = Start {
            python,
            program: BUSY,
            ..Start::default()
        }
        .start();
        let answer = answer(&target, "thread_frame('MainThread') is frame", &[]);
        assert_eq!(
            (&answer["value"], &answer["imported"]),
            (&json!("True"), &json!([])),
            "{answer:#}"
        );
        let (_, answer) = target.exec("task_frame('x')", &[]);
        assert!(
            answer["exception"]["message"]
                .as_str()
                .unwrap()
                .ends_with("there are no tasks"),
            "{answer:#}"
        );
    }
}
