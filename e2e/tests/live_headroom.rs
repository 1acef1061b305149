//! A snapshot in a container that has little memory left.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a panic is the report of a test"
)]

mod live;

use std::path::{Path, PathBuf};
use std::process::Command;

use live::{Start, Target, sidecar};
use serde_json::Value;

const TASKS: usize = 20_000;
const MANY: &str = "import asyncio\nasync def waits(event):\n    await event.wait()\nasync def main():\n    event = asyncio.Event()\n    tasks = [asyncio.create_task(waits(event)) for _ in range(20_000)]\n    await asyncio.sleep(0)\n    print('ready', flush=True)\n    await event.wait()\nasyncio.run(main())";

/// A cgroup of the memory controller, removed when it is dropped.
struct Cgroup {
    folder: PathBuf,
    limit: &'static str,
    usage: &'static str,
}

impl Cgroup {
    fn new(name: &str) -> Self {
        let old = Path::new("/sys/fs/cgroup/memory");
        let (parent, limit, usage) = if old.join("memory.limit_in_bytes").exists() {
            (old, "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else {
            let parent = Path::new("/sys/fs/cgroup");
            std::fs::write(parent.join("cgroup.subtree_control"), "+memory").unwrap();
            (parent, "memory.max", "memory.current")
        };
        let folder = parent.join(format!("sidewinder-{name}-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        Self {
            folder,
            limit,
            usage,
        }
    }

    fn add(&self, pid: i32) {
        std::fs::write(self.folder.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// Leaves so many bytes to whoever is in it.
    fn leave(&self, bytes: u64) {
        let usage = std::fs::read_to_string(self.folder.join(self.usage)).unwrap();
        let limit = usage.trim().parse::<u64>().unwrap() + bytes;
        std::fs::write(self.folder.join(self.limit), limit.to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whoever was in it may take a moment to go.
        for _ in 0..1000 {
            if std::fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

/// What `tasks` answers from inside a cgroup.
fn tasks_in(cgroup: &Cgroup, target: &Target) -> Value {
    let output = Command::new("sh")
        .args([
            "-c",
            "echo $$ > \"$1\"/cgroup.procs && shift && exec \"$@\"",
            "sh",
        ])
        .arg(&cgroup.folder)
        .arg(sidecar())
        .args(["tasks", "--pid", &target.pid.to_string(), "-o", "json"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn count(tasks: &Value) -> usize {
    tasks["tasks"].as_array().unwrap().len()
}

fn is_cut(tasks: &Value) -> bool {
    let problems = tasks["problems"].as_array();
    problems.into_iter().flatten().any(|problem| {
        problem
            .as_str()
            .unwrap()
            .starts_with("the snapshot is cut: ")
    })
}

#[test]
fn a_snapshot_that_would_take_more_than_half_of_what_is_left_is_cut_and_says_so() {
    let target = Start {
        program: MANY,
        ..Start::default()
    }
    .start();
    let cgroup = Cgroup::new("cut");
    cgroup.leave(2 << 30);
    let all = tasks_in(&cgroup, &target);
    assert_eq!((count(&all), is_cut(&all)), (TASKS + 1, false));
    cgroup.leave(12 << 20);
    let some = tasks_in(&cgroup, &target);
    assert!(
        is_cut(&some) && (1000..TASKS).contains(&count(&some)),
        "{} tasks, {:?}",
        count(&some),
        some["problems"]
    );
}

#[test]
fn stacks_are_shown_however_little_is_left() {
    let target = Target::start("import time\nprint('ready', flush=True)\ntime.sleep(100000)");
    let cgroup = Cgroup::new("little");
    cgroup.add(target.pid);
    cgroup.leave(0);
    // Not in the cgroup itself: the kernel would end it for lack of memory, as it should.
    let output = Command::new(sidecar())
        .args(["stacks", "--pid", &target.pid.to_string(), "-o", "json"])
        .output()
        .unwrap();
    let stacks: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        stacks["interpreters"][0]["threads"][0]["frames"][0]["function"],
        "<module>"
    );
    assert_eq!(stacks["problems"].as_array().map_or(0, Vec::len), 0);
    drop(target);
}

#[test]
fn the_kernel_takes_a_sidecar_before_its_target() {
    let target = Target::start("import time\nprint('ready', flush=True)\ntime.sleep(100000)");
    // It waits for its script.
    let mut sidecar = Command::new(sidecar())
        .args(["exec", "--pid", &target.pid.to_string(), "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let score = |pid| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    target.until("first to go", |_| score(sidecar.id()) == "1000\n");
    assert_ne!(score(target.pid.unsigned_abs()), "1000\n");
    sidecar.kill().unwrap();
    sidecar.wait().unwrap();
}
