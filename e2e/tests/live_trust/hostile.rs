//! Somebody in the pod who means no good.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use sidewinder_model::ToAgent;

use crate::agent::{Agent, until};
use crate::live::{LIMIT, Python, Start, Target, root_of};

/// As `attach: SameUser` has it.
const SAME_USER: [&str; 6] = [
    "setpriv",
    "--reuid=4711",
    "--regid=4711",
    "--clear-groups",
    "--inh-caps=-all",
    "--bounding-set=-all",
];

/// Tries what there is to get into a process, and prints what came of each: null where it worked, else the error number.
const ATTACK: &str = r#"
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
def tried(work):
    try:
        return work()
    except OSError as error:
        return error.errno
def read(path):
    with open(path, "rb", 0) as file:
        file.read(1) if not path.endswith("mem") else None
def call(*numbers):
    if libc.syscall(*[ctypes.c_long(number) for number in numbers]) < 0:
        return ctypes.get_errno()
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
def vectors(pid, number):
    buffer = ctypes.create_string_buffer(8)
    own, other = Vector(ctypes.addressof(buffer), 8), Vector(4096, 8)
    return call(number, pid, ctypes.addressof(own), 1, ctypes.addressof(other), 1, 0)
def attack(pid):
    proc = f"/proc/{pid}"
    results = {name: tried(lambda: read(f"{proc}/{name}")) for name in
        ["mem", "environ", "maps", "smaps", "auxv", "io", "syscall", f"task/{pid}/mem", f"task/{pid}/environ"]}
    results |= {name: tried(lambda: (os.listdir(f"{proc}/{name}"), None)[1]) for name in ["fd", "fdinfo", "map_files", "root", "cwd"]}
    results |= {name: tried(lambda: (os.readlink(f"{proc}/{name}"), None)[1]) for name in ["exe", "ns/mnt", "fd/0"]}
    results["the socket"] = tried(lambda: os.stat(f"{proc}/root/run/sidewinder/agent.sock") and None)
    results["oom_score_adj"] = tried(lambda: open(f"{proc}/oom_score_adj", "w").close())
    results["process_vm_readv"] = vectors(pid, 310)
    results["process_vm_writev"] = vectors(pid, 311)
    results["ptrace"] = call(101, 0x4206, pid, 0, 0)
    results["pidfd_getfd"] = call(438, os.pidfd_open(pid), 0, 0)
    results["kcmp"] = call(312, pid, os.getpid(), 1, 0, 0)
    return results
print("ready", flush=True)
print(json.dumps(attack(PID)), flush=True)
print(json.dumps(attack(os.fork() or os.execv("/bin/sleep", ["sleep", "1000"]))), flush=True)
"#;

fn of_the_same_user(program: &str) -> Target {
    Start {
        program,
        user: Some((4711, 4711, 4711)),
        proc: true,
        ..Start::default()
    }
    .start()
}

#[test]
fn a_process_of_its_own_user_gets_into_no_agent() {
    let agent = Agent::start_as(&SAME_USER, 600);
    let mut relay = agent.connect();
    let attacker = of_the_same_user(&ATTACK.replace("PID", &agent.pid().to_string()));
    let results: Value = serde_json::from_str(&attacker.line()).unwrap();
    let control: Value = serde_json::from_str(&attacker.line()).unwrap();
    for (what, came) in results.as_object().unwrap() {
        assert!(
            matches!(came.as_i64(), Some(1 | 13)),
            "{what} of the agent: {came}"
        );
    }
    // It is not the attack that fails.
    for what in ["environ", "fd", "root", "exe", "mem", "ns/mnt"] {
        assert_eq!(control[what], Value::Null, "{what} of another process");
    }
    assert!(relay.send(&ToAgent::Ping));
    assert!(relay.next(LIMIT).is_some());
}

/// Connects again and again, says hello, and prints how many were answered.
const CONNECT: &str = r#"
import hashlib, json, socket, struct, sys
answered = 0
for _ in range(COUNT):
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(20)
    peer.connect("/mnt/agent.sock")
    try:
        peer.sendall(bytes.fromhex("HELLO"))
        answered += len(peer.recv(1))
    except (BrokenPipeError, ConnectionResetError):
        pass
    peer.close()
print(answered, flush=True)
"#;

fn frame(message: &ToAgent) -> Vec<u8> {
    use sha2::Digest as _;
    let payload = serde_json::to_vec(message).unwrap();
    let header = sidewinder_model::wire::Header {
        length: payload.len(),
        digest: sha2::Sha256::digest(&payload).into(),
    };
    let mut frame = header.encode().unwrap().to_vec();
    frame.extend(payload);
    frame
}

fn hello() -> Vec<u8> {
    frame(&ToAgent::Hello {
        protocol: sidewinder_model::PROTOCOL,
    })
}

/// How many of so many connections of another program were answered.
fn answered(agent: &Agent, user: u32, count: u32) -> u32 {
    let hex = |text: String, byte: &u8| format!("{text}{byte:02x}");
    let text = hello().iter().fold(String::new(), hex);
    let program = CONNECT
        .replace("COUNT", &count.to_string())
        .replace("HELLO", &text);
    let root = root_of(Python::default());
    // In the agent's own mount namespace, to which the socket could not be brought otherwise.
    let shell = "mount --bind /run/sidewinder \"$0/mnt\" && exec chroot --userspec=\"$1:$1\" \"$0\" /usr/bin/python3.14 -c \"$2\"";
    let output = Command::new("nsenter")
        .arg(format!("--mount=/proc/{}/ns/mnt", agent.pid()))
        .args(["unshare", "--mount", "sh", "-c", shell])
        .arg(root)
        .args([&user.to_string(), &program])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().parse().unwrap()
}

#[test]
fn no_other_program_and_no_other_user_is_answered_and_a_flood_of_them_costs_nothing() {
    let agent = Agent::start_as(&SAME_USER, 600);
    drop(agent.connect());
    let before = agent.resident_kilobytes();
    assert_eq!(answered(&agent, 0, 3), 0);
    assert_eq!(answered(&agent, 4711, 3000), 0);
    let mut relay = agent.connect();
    assert!(relay.send(&ToAgent::Ping));
    assert!(relay.next(LIMIT).is_some());
    assert!(agent.threads() < 10, "{} threads", agent.threads());
    let after = agent.resident_kilobytes();
    assert!(
        after < before + 4096,
        "{before} kB before, {after} kB after"
    );
}

/// A cgroup of its own, as every container has one.
struct Cgroup(std::path::PathBuf);

impl Cgroup {
    fn new(name: &str) -> Self {
        let pids = std::path::Path::new("/sys/fs/cgroup/pids");
        let above = if pids.is_dir() {
            pids
        } else {
            std::path::Path::new("/sys/fs/cgroup")
        };
        let folder = above.join(format!("sidewinder-{name}-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    /// What executes its arguments in it.
    fn through(&self) -> [String; 4] {
        let shell = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.0.display());
        ["sh".into(), "-c".into(), shell, "sh".into()]
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Who was in it may take a moment to be gone.
        for _ in 0..500 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn its_own_program_in_another_container_is_not_answered() {
    let agent = Agent::start_as(&SAME_USER, 600);
    let cgroup = Cgroup::new("other");
    let through = cgroup.through();
    let through: Vec<&str> = through.iter().map(String::as_str).collect();
    for (before, expected) in [(&[][..], true), (&through, false)] {
        let mut relay = agent.relay(before);
        let _ = relay.stdin.as_mut().unwrap().write_all(&hello());
        let mut first = [0];
        let answered = relay.stdout.as_mut().unwrap().read(&mut first).unwrap() == 1;
        relay.kill().unwrap();
        relay.wait().unwrap();
        assert_eq!(answered, expected, "{before:?}");
    }
}

#[test]
fn relays_that_say_nothing_take_the_seats_there_are_and_give_them_back() {
    let agent = Agent::start_as(&SAME_USER, 600);
    let mut silent: Vec<_> = (0..32).map(|_| agent.relay(&[])).collect();
    until("all seats are taken", || {
        agent.threads_named("connection") == 32
    });
    // The next one is told at once, and waits for nothing.
    let mut refused = agent.relay(&[]);
    let mut answer = Vec::new();
    refused
        .stdout
        .as_mut()
        .unwrap()
        .read_to_end(&mut answer)
        .unwrap();
    refused.kill().unwrap();
    refused.wait().unwrap();
    assert!(answer.is_empty());
    assert!(agent.threads() < 80, "{} threads", agent.threads());
    for relay in &mut silent {
        relay.kill().unwrap();
        relay.wait().unwrap();
    }
    until("the seats are given back", || {
        agent.threads_named("connection") == 0
    });
    drop(agent.connect());
    until("no thread is left", || agent.threads_named("answers") == 0);
}

#[test]
fn a_hundred_thousand_requests_of_one_relay_are_answered_and_cost_little() {
    let agent = Agent::start_as(&SAME_USER, 600);
    let mut relay = agent.connect();
    assert!(relay.send(&ToAgent::Ping));
    assert!(relay.next(LIMIT).is_some());
    let before = agent.resident_kilobytes();
    for number in 0..50_000_u32 {
        assert!(relay.send(&ToAgent::Acknowledge {
            id: format!("never-asked-{number}")
        }));
        assert!(relay.send(&ToAgent::Cancel {
            id: format!("never-asked-{number}")
        }));
        if number % 200 == 0 {
            assert!(relay.send(&ToAgent::Ping));
            assert!(relay.next(LIMIT).is_some());
        }
    }
    let after = agent.resident_kilobytes();
    assert!(
        after < before + 4096,
        "{before} kB before, {after} kB after"
    );
    assert!(agent.threads() < 10, "{} threads", agent.threads());
}

#[test]
fn an_endless_frame_ends_its_connection_and_takes_no_memory() {
    let agent = Agent::start_as(&SAME_USER, 600);
    drop(agent.connect());
    let before = agent.resident_kilobytes();
    let mut relay = agent.relay(&[]);
    let mut stdin = relay.stdin.take().unwrap();
    stdin.write_all(&hello()).unwrap();
    let zeros = vec![0; 1 << 20];
    let mut sent = 0;
    // The relay ends when the agent has closed the socket.
    while stdin.write_all(&zeros).is_ok() {
        sent += 1;
        assert!(sent < 64, "it reads on and on");
    }
    relay.kill().unwrap();
    relay.wait().unwrap();
    let after = agent.resident_kilobytes();
    assert!(
        after < before + 4096,
        "{before} kB before, {after} kB after"
    );
    drop(agent.connect());
}

/// A target of three hundred processes, each of which has a name that would do something to a terminal.
const CROWD: &str = r#"
import os, signal, time
for _ in range(300):
    if not os.fork():
        with open("/proc/self/comm", "w") as comm:
            comm.write("\x1b[31m\n")
        signal.pause()
print("ready", flush=True)
signal.pause()
"#;

#[test]
fn a_crowd_is_listed_where_few_descriptors_are_given() {
    let target = Start {
        program: CROWD,
        proc: true,
        pid_namespace: true,
        ..Start::default()
    }
    .start();
    let output = Command::new("nsenter")
        .args(["--pid", "--target", &target.pid.to_string()])
        .args(["unshare", "--mount-proc", "prlimit", "--nofile=64:4096"])
        .arg(crate::live::sidecar())
        .args(["ps", "-o", "json"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!text.contains('\x1b'));
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list["processes"].as_array().unwrap().len(), 301);
    assert_eq!(
        list["problems"].as_array().unwrap().len(),
        0,
        "{}",
        list["problems"]
    );
}
