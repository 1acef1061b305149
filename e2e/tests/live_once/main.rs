//! Scripts run at most once and in their order, whatever dies: the agent, its relay, the child that carries a script.
//!
//! The agent is the real one, without a cluster; the tests play the operator.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

mod agent;
mod kills;
#[path = "../live/mod.rs"]
mod live;
mod queue;
mod random;
mod watch;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use agent::{Script, until};
use live::{Python, Start, Target};
use sidewinder_model::WakePolicy;

/// Waits in its main thread for a lock until the file `go` appears; then its main thread comes by every few milliseconds.
const PROGRAM: &str = r#"
import os, threading, time
lock = threading.Lock()
lock.acquire()
def release():
    while not os.path.exists("/mnt/go"):
        time.sleep(0.005)
    lock.release()
threading.Thread(target=release, daemon=True).start()
threading.Thread(target=lambda: [time.sleep(0.005) for _ in iter(int, 1)], daemon=True, name="other").start()
print("ready", flush=True)
lock.acquire()
print("released", flush=True)
while True:
    time.sleep(0.005)
"#;

/// A target, and the folder that it and the test share.
struct World {
    target: Target,
    folder: Rc<tempfile::TempDir>,
}

impl World {
    /// One whose main thread is blocked.
    fn blocked(python: Python) -> Self {
        Self::of(python, PROGRAM)
    }

    /// One that runs another program.
    fn of(python: Python, program: &str) -> Self {
        Self::in_folder(python, program, Rc::new(tempfile::tempdir().unwrap()))
    }

    fn in_folder(python: Python, program: &str, folder: Rc<tempfile::TempDir>) -> Self {
        let target = Start {
            python,
            program,
            proc: true,
            mnt: Some(folder.path().to_owned()),
            ..Start::default()
        }
        .start();
        Self { target, folder }
    }

    /// One whose main thread comes by.
    fn new(python: Python) -> Self {
        let world = Self::blocked(python);
        world.release();
        world
    }

    /// One more that shares the folder of another one, and comes by as that one does.
    fn beside(other: &Self, python: Python) -> Self {
        let world = Self::in_folder(python, PROGRAM, Rc::clone(&other.folder));
        assert_eq!(world.target.line(), "released");
        world
    }

    fn release(&self) {
        self.touch("go");
        assert_eq!(self.target.line(), "released");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn touch(&self, name: &str) {
        std::fs::write(self.path(name), "").unwrap();
    }

    /// How often the script with this id has run, by its own word.
    fn runs(&self, id: &str) -> usize {
        std::fs::read_to_string(self.path(&format!("runs-{id}")))
            .map_or(0, |runs| runs.lines().count())
    }

    fn until_armed(&self) {
        self.target.until("armed", Target::armed);
    }

    fn until_it_runs(&self, id: &str) {
        until("the script's first line", || self.runs(id) > 0);
    }

    fn until_it_is_done(&self, id: &str) {
        until("the script's last line", || {
            self.path(&format!("done-{id}")).exists()
        });
    }

    /// A script that counts itself, and goes on until it is stopped or the file `enough-ID` appears.
    fn long(&self, id: &str) -> Script {
        let text = format!(
            "import os, time\nprint('begun')\nwith open('/mnt/runs-{id}', 'a') as runs: runs.write('run\\n')\nwhile not \
             os.path.exists('/mnt/enough-{id}'): time.sleep(0.005)\nopen('/mnt/done-{id}', 'w').close()\n'{id}'"
        );
        Script::new(id, self.target.pid, text)
    }

    /// A script that counts itself.
    fn short(&self, id: &str) -> Script {
        let text =
            format!("with open('/mnt/runs-{id}', 'a') as runs: runs.write('run\\n')\n'{id}'");
        Script::new(id, self.target.pid, text)
    }

    /// A request that is armed and does not start as long as the main thread is blocked.
    fn armed(&self, id: &str) -> Script {
        Script {
            wake: WakePolicy::Never,
            ..self.short(id)
        }
    }

    fn enough(&self, id: &str) {
        self.touch(&format!("enough-{id}"));
    }

    /// The target goes on as if nothing had been, and takes scripts.
    fn goes_on(&self) {
        self.target.until("nothing armed", |target| !target.armed());
        let traces = self.target.traces();
        assert_eq!((traces.tracer, traces.stopped), (0, false));
        let (code, answer) = self.target.exec("'alive'", &["--start", "20s"]);
        assert_eq!((code, &answer["value"]), (0, &"'alive'".into()), "{answer}");
    }
}

const PYTHONS: [Python; 2] = [Python::V3_14, Python::V3_15];

/// Long enough for something that must not happen.
const A_WHILE: Duration = Duration::from_millis(300);
