//! Which Python processes there are: the document of `ps`.

use serde::{Deserialize, Serialize};

/// The Python processes that could be seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessList {
    /// One entry per process, by pid.
    pub processes: Vec<ProcessInfo>,
    /// What could not be read, and other Pythons that are there but not supported, in words.
    pub problems: Vec<String>,
}

/// One Python process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessInfo {
    /// The process id in the PID namespace of whoever reads.
    pub pid: i32,
    /// The process id in its own PID namespace.
    pub ns_pid: i32,
    /// The interpreter's version, for example `3.14.8`.
    pub python: String,
    /// How many threads the kernel sees.
    pub threads: u32,
    /// Its arguments, each clipped.
    pub command: Vec<String>,
    /// Whether scripts may run in it.
    pub remote_exec: RemoteExec,
}

/// Whether PEP 768 remote execution is possible.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteExec {
    /// Whether the interpreter accepts requests.
    pub enabled: bool,
    /// Why not, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
