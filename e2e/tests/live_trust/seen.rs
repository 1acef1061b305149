//! What can be seen of a sidecar from outside: nothing of a script, and nobody is kept waiting by an idle one.

use std::time::Duration;

use sidewinder_model::{Reason, ToAgent};

use crate::agent::{Agent, Script};
use crate::live::Target;

const SECRET: &str = "wolpertinger";

/// Every argument and environment variable of the agent, its threads and its children.
fn told_to_everybody(agent: &Agent) -> Vec<(String, Vec<u8>)> {
    let mut pids = agent.carriers();
    pids.push(agent.pid());
    let mut seen = Vec::new();
    for pid in pids {
        for file in ["cmdline", "environ", "comm", "stat", "limits", "cgroup"] {
            let path = format!("/proc/{pid}/{file}");
            if let Ok(bytes) = std::fs::read(&path) {
                seen.push((path, bytes));
            }
        }
    }
    seen
}

#[test]
fn no_script_stands_in_an_argument_or_the_environment_of_anybody() {
    let target =
        Target::start("import time\nprint('ready', flush=True)\nwhile True: time.sleep(0.01)");
    let agent = Agent::start();
    let mut relay = agent.connect();
    let script = Script::new(
        SECRET,
        target.pid,
        format!("import time\nprint('begun', flush=True)\ntime.sleep(1)\n'{SECRET}'"),
    );
    relay.begin(&script);
    crate::agent::until("a script is carried", || !agent.carriers().is_empty());
    let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", agent.pid())).unwrap();
    let arguments: Vec<&str> = arguments.split_terminator('\0').collect();
    assert_eq!(arguments[1..], ["agent", "--idle-seconds", "600"]);
    let seen = told_to_everybody(&agent);
    assert!(seen.len() > 8, "{seen:?}");
    for (path, bytes) in seen {
        let found = bytes
            .windows(SECRET.len())
            .any(|part| part == SECRET.as_bytes());
        assert!(!found, "{path}");
    }
    assert_eq!(relay.end(SECRET).reason(), Reason::Succeeded);
}

#[test]
fn an_idle_agent_leaves_with_code_0_also_while_somebody_is_connected() {
    let mut agent = Agent::start_with(1);
    let mut relay = agent.connect();
    assert!(relay.send(&ToAgent::Ping));
    assert!(agent.left(Duration::from_secs(20)));
    assert_eq!(agent.ended().and_then(|status| status.code()), Some(0));
}

#[test]
fn an_agent_does_not_leave_while_a_script_runs_longer_than_it_may_be_idle() {
    let target =
        Target::start("import time\nprint('ready', flush=True)\nwhile True: time.sleep(0.01)");
    let mut agent = Agent::start_with(1);
    let mut relay = agent.connect();
    let script = Script::new("long", target.pid, "import time\ntime.sleep(4)\n7");
    relay.begin(&script);
    assert_eq!(relay.end("long").reason(), Reason::Succeeded);
    assert_eq!(agent.ended(), None);
    relay.acknowledge("long");
    assert!(agent.left(Duration::from_secs(20)));
    assert_eq!(agent.ended().and_then(|status| status.code()), Some(0));
}
