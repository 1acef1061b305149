//! What a session answers.

#![expect(
    clippy::doc_markdown,
    reason = "docstrings become the schema's descriptions, which `kubectl explain` prints as they stand"
)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What came of the session. Written by the operator alone.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DebugSessionStatus {
    /// The metadata.generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// How far the session is, in one word for people. Programs read the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,

    /// The answer, or why there is none, in one line of at most 160 characters. Always set at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,

    /// SHA-256 in hexadecimal digits of the script that was accepted; no other script runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script_sha256: Option<String>,

    /// When the operator took the session up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,

    /// When the session ended, one way or the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,

    /// What is known for sure: Accepted, Attached, Disarmed (code-running actions only), ResultStored, and at the end
    /// Complete and Failed, of which one is True and the other False. Their reasons are listed in docs/reasons.md.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// The target in short, for the table: pod, and container where one was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,

    /// The action's name, for the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,

    /// Why the session ended: the reason of the condition that is True, for the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,

    /// How many pods are done of how many, for the table, for example `3/5`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<String>,

    /// From startTime to completionTime, for the table, for example `1.2s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,

    /// One entry for each pod, container and process, sorted by pod, then by pid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "atomic"))]
    pub targets: Vec<TargetStatus>,
}

/// How far a session or one of its targets is.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Phase {
    /// It was taken up.
    #[default]
    Pending,
    /// The sidecar is getting into the pod.
    Attaching,
    /// The action runs.
    Running,
    /// The action was carried out; a script that raised counts too.
    Succeeded,
    /// The action was not carried out.
    Failed,
    /// It was ended early, as asked.
    Cancelled,
}

/// What one process answered.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// The pod's name.
    #[serde(default)]
    pub pod_name: String,

    /// The pod's uid: a pod of the same name that came later is another one.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,

    /// The node that the pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,

    /// The container's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,

    /// The runtime's id of the container, for example `containerd://3f…`.
    #[serde(
        default,
        rename = "containerID",
        skip_serializing_if = "Option::is_none"
    )]
    pub container_id: Option<String>,

    /// The ephemeral container that holds the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<String>,

    /// The run of the agent that the action was given to: a random id. Written before code runs; no other run of the
    /// agent takes the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,

    /// The process id as the container sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,

    /// The process's arguments joined by blanks, clipped. Chosen by the target: data, not truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,

    /// The process's Python version, for example `3.14.8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,

    /// How the sidecar got its right to read the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach: Option<AttachedAs>,

    /// How far this target is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,

    /// Why it ended, one of the reasons in docs/reasons.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,

    /// The reason in a sentence about this target, with what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,

    /// The answer of this target in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,

    /// How long the target stood still, from the first interrupt to the last detach, summed, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_microseconds: Option<i64>,

    /// How long the work on this target took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_milliseconds: Option<i64>,

    /// Whether anything of ours is still armed in this target; only with code-running actions. Disarmed: it was, and
    /// was taken back or has run. NotArmed: it never was. StillArmed: it could not be taken back and may still run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disarmed: Option<DisarmState>,

    /// What a person reads: the dump, the tree or the output. At most 16 KiB; the middle is left out when it is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,

    /// What became of the script, with the action remoteExec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecStatus>,

    /// The structured answer, in the shape that the sidecar's own command prints with `-o json`. Left out above 16 KiB
    /// and when the status is full; then `result` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub data: Option<Value>,

    /// The full size in bytes of each field of this entry that was cut, by its path, for example `exec.stdout`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub clipped: BTreeMap<String, i64>,

    /// Where the whole answer is, when something was left out or cut here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultRef>,
}

/// How the sidecar got its right to read a target.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum AttachedAs {
    /// As root with the capability SYS_PTRACE.
    Ptrace,
    /// As the target's own user.
    SameUser,
}

/// Whether anything of ours is still armed in a target.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum DisarmState {
    /// It was armed, and was taken back or has run.
    Disarmed,
    /// It never was armed.
    NotArmed,
    /// It could not be taken back and may still run.
    StillArmed,
}

/// What became of a script.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExecStatus {
    /// What the script's own thread wrote to sys.stdout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,

    /// What the script's own thread wrote to sys.stderr.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,

    /// The repr() of the last statement's value; absent when the last statement is no expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,

    /// The same value as JSON text, where it can be expressed.
    #[serde(default, rename = "valueJSON", skip_serializing_if = "Option::is_none")]
    pub value_json: Option<String>,

    /// The exception that ended the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exception: Option<ScriptException>,

    /// The kernel's id of the thread that was asked to run the script.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread: Option<i64>,

    /// How the thread was made to answer: None (it came by itself), Interrupt, ForcedReturn, PendingCall, InPlace or OtherThread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<String>,

    /// From arming the request to the script's first statement, in milliseconds; absent when it never started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_after_milliseconds: Option<i64>,

    /// From the script's first statement to its end or to the deadline, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_milliseconds: Option<i64>,

    /// Whether the script had started and not ended when the answer was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub still_running: Option<bool>,

    /// True when the sidecar goes on to watch a script that is still running. Until its end the thread takes no other
    /// script (TargetBusy); the end becomes an Event, and stands in `afterwards`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watched: Option<bool>,

    /// What became of a script that was still running when the session ended. Written once, after the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub afterwards: Option<Afterwards>,

    /// Modules that the script imported and that stay imported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub imported: Vec<String>,

    /// Signals that the script consumed and that were sent again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signals: Vec<String>,

    /// The full size in bytes of each stream that was cut inside the target already.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub clipped: BTreeMap<String, i64>,

    /// True when nothing of ours is armed in the target any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disarmed: Option<bool>,

    /// How it ended, one of the reasons in docs/reasons.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,

    /// Where every thread stood, with TargetBlocked and ScriptTimeout: the document of the action stacks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub stacks: Option<Value>,
}

/// What became of a script that was still running when its session ended.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Afterwards {
    /// When that was noticed.
    pub time: Time,

    /// One of the reasons in docs/reasons.md: ScriptEnded when the script has ended.
    #[serde(default)]
    pub reason: String,

    /// The reason in a sentence.
    #[serde(default)]
    pub message: String,
}

/// An exception as data.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScriptException {
    /// Its type, with the module except for builtins.
    #[serde(default, rename = "type")]
    pub type_name: String,

    /// Its str().
    #[serde(default)]
    pub message: String,

    /// The traceback as Python prints it.
    #[serde(default)]
    pub traceback: String,
}

/// Where a whole answer is kept.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResultRef {
    /// The size of the JSON document before compression, in bytes.
    #[serde(default)]
    pub size_bytes: i64,

    /// SHA-256 in hexadecimal digits of the JSON document before compression.
    #[serde(default)]
    pub sha256: String,

    /// How the parts, one after the other, are compressed: zstd.
    #[serde(default)]
    pub encoding: String,

    /// True when the document itself was cut at the hard limit.
    #[serde(default)]
    pub truncated: bool,

    /// The parts in order. Concatenated, they are one compressed stream.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<ResultPart>,
}

/// One part of a whole answer: a key of a Secret that the session owns.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResultPart {
    /// The Secret's name.
    #[serde(default)]
    pub secret_name: String,

    /// The key in its data.
    #[serde(default)]
    pub key: String,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
    })
}
