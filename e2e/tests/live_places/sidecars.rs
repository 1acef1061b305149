//! The sidecar as whom it may run in a pod, and with what it may not do.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::live::{Target, sidecar};
use crate::seccomp::{self, Filter};

/// What the container of a sidecar is given.
pub(crate) struct Sidecar {
    /// What executes it, with it and its arguments as the last ones.
    through: Vec<String>,
}

/// What a sidecar answered.
pub(crate) struct Answered {
    pub(crate) code: i32,
    pub(crate) document: Value,
    pub(crate) said: String,
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

impl Sidecar {
    /// Root, with every capability.
    pub(crate) fn root() -> Self {
        Self {
            through: Vec::new(),
        }
    }

    /// As `attach: Ptrace` has it.
    pub(crate) fn ptrace() -> Self {
        Self {
            through: words(
                "setpriv --inh-caps=-all --bounding-set=-all,+sys_ptrace,+dac_read_search,+setuid,+setgid",
            ),
        }
    }

    /// As `attach: SameUser` has it for a target of this user, group and supplementary group with no capability.
    pub(crate) fn same_user((uid, gid, group): (u32, u32, u32)) -> Self {
        Self {
            through: words(&format!(
                "setpriv --reuid={uid} --regid={gid} --groups={group} --inh-caps=-all --bounding-set=-all"
            )),
        }
    }

    /// As `attach: SameUser` has it for a target that is root with these capabilities.
    pub(crate) fn same_root(capabilities: &str) -> Self {
        Self {
            through: words(&format!(
                "setpriv --inh-caps=-all --bounding-set=-all{capabilities}"
            )),
        }
    }

    /// Under a filter of system calls as well.
    pub(crate) fn filtered(&self, filter: &Filter) -> Self {
        let mut through = seccomp::through("python3", filter);
        through.extend(self.through.iter().cloned());
        Self { through }
    }

    /// In the PID namespace of a target with a `/proc` of its own, as in a pod.
    pub(crate) fn beside(&self, target: &Target) -> Self {
        let mut through = words(&format!(
            "nsenter --pid --target {} unshare --mount-proc",
            target.pid
        ));
        through.extend(self.through.iter().cloned());
        Self { through }
    }

    /// Whether it is in the PID namespace of its target.
    pub(crate) fn is_beside(&self) -> bool {
        self.through.first().is_some_and(|word| word == "nsenter")
    }

    /// The command, with its binary open: where that lies, another user may not go.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec 9<\"$0\"; exec \"$@\""])
            .arg(sidecar())
            .args(&self.through)
            .arg("/proc/self/fd/9");
        command
    }

    /// Runs a script in a target.
    pub(crate) fn exec(&self, target: &Target, script: &str, args: &[&str]) -> Answered {
        self.exec_in(target.pid, script, args)
    }

    /// Runs a script in a process.
    pub(crate) fn exec_in(&self, pid: i32, script: &str, args: &[&str]) -> Answered {
        let output = self.start(pid, script, args).wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        Answered {
            code: output.status.code().unwrap(),
            document: if text.is_empty() {
                Value::Null
            } else {
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in: {text}"))
            },
            said,
        }
    }

    /// Begins to run a script in a process.
    pub(crate) fn start(&self, pid: i32, script: &str, args: &[&str]) -> Child {
        let mut child = self
            .command()
            .args(["exec", "--pid", &pid.to_string(), "-", "-o", "json"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(script.as_bytes()).unwrap();
        child
    }
}
