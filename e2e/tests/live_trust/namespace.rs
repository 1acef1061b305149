//! Whether the agent sees the target's processes.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use sidewinder_model::wire::{HEADER_BYTES, Header};
use sidewinder_model::{Action, PROTOCOL, Reason, Request, ToAgent, ToOperator};

use crate::agent::until;
use crate::live::sidecar;

/// An agent in a PID namespace of its own, as a runtime that ignores `targetContainerName` would start it.
struct Alone(Child);

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Alone {
    fn start() -> Self {
        let shell = "mount -t tmpfs none /run && mkdir -m 1777 /run/sidewinder && exec \"$0\" agent --idle-seconds 600";
        let outer = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                shell,
            ])
            .arg(sidecar())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self(outer)
    }

    /// The agent itself.
    fn pid(&self) -> i32 {
        let outer = self.0.id();
        let mut inner = 0;
        until("the agent has its program", || {
            let path = format!("/proc/{outer}/task/{outer}/children");
            let children = std::fs::read_to_string(path).unwrap_or_default();
            inner = children.trim().parse().unwrap_or_default();
            std::fs::read_link(format!("/proc/{inner}/exe")).is_ok_and(|exe| exe == sidecar())
        });
        inner
    }

    fn ask(&self, container_id: Option<String>) -> (Reason, String) {
        let mut relay = Command::new("nsenter")
            .args(["--mount", "--pid", "--target", &self.pid().to_string()])
            .arg(sidecar())
            .arg("relay")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = relay.stdin.take().unwrap();
        let request = Request {
            id: format!("{container_id:?}"),
            name: None,
            instance: None,
            action: Action::Processes,
            process: None,
            container_id,
            timeout_milliseconds: 20_000,
        };
        for message in [
            ToAgent::Hello { protocol: PROTOCOL },
            ToAgent::Run { request },
        ] {
            use sha2::Digest as _;
            let payload = serde_json::to_vec(&message).unwrap();
            let header = Header {
                length: payload.len(),
                digest: sha2::Sha256::digest(&payload).into(),
            };
            stdin.write_all(&header.encode().unwrap()).unwrap();
            stdin.write_all(&payload).unwrap();
        }
        let mut stdout = relay.stdout.take().unwrap();
        let outcome = loop {
            let mut header = [0; HEADER_BYTES];
            stdout.read_exact(&mut header).unwrap();
            let mut payload = vec![0; Header::decode(&header).unwrap().length];
            stdout.read_exact(&mut payload).unwrap();
            if let ToOperator::Finished { outcome } = serde_json::from_slice(&payload).unwrap() {
                break outcome;
            }
        };
        relay.kill().unwrap();
        relay.wait().unwrap();
        let target = &outcome.targets[0];
        (target.reason, target.message.clone())
    }
}

#[test]
fn a_runtime_that_gave_it_a_pid_namespace_of_its_own_is_found_out() {
    let agent = Alone::start();
    let (reason, message) = agent.ask(Some("a".repeat(64)));
    assert_eq!(reason, Reason::PidNamespaceNotShared, "{message}");
    assert!(message.contains("targetContainerName"), "{message}");
    // By hand nothing is claimed of a container.
    assert_eq!(agent.ask(None).0, Reason::NoPythonProcess);
}
