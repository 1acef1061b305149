//! What a session asks for.

#![expect(
    clippy::doc_markdown,
    reason = "docstrings become the schema's descriptions, which `kubectl explain` prints as they stand"
)]
#![expect(
    unreachable_pub,
    reason = "KubeSchema repeats each type inside a function, where its `pub` reaches nobody"
)]
#![expect(
    clippy::duplicated_attributes,
    reason = "each printcolumn names its own type and priority"
)]

use std::collections::{BTreeMap, BTreeSet};

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DebugSessionStatus, ThreadSelector};

/// What to ask, and of which process. It cannot be changed afterwards, but for `cancel`.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "sidewinder.dev",
    version = "v1alpha1",
    kind = "DebugSession",
    plural = "debugsessions",
    shortname = "pyds",
    category = "debug",
    namespaced,
    status = "DebugSessionStatus",
    derive = "PartialEq",
    selectable = ".spec.target.podName",
    selectable = ".status.phase",
    doc = "A DebugSession asks one question of the Python processes in one running pod: which there are, what their asyncio tasks wait for, where their threads stand, or what a script prints inside them. It runs once; the answer stands in its status. The pod is not restarted and its image is not changed.",
    printcolumn(
        name = "Target",
        type_ = "string",
        json_path = ".status.target",
        description = "The pod and container"
    ),
    printcolumn(
        name = "Action",
        type_ = "string",
        json_path = ".status.action",
        description = "What was asked for"
    ),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "How far it is"
    ),
    printcolumn(
        name = "Summary",
        type_ = "string",
        json_path = ".status.summary",
        description = "The answer in one line"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Since when the session exists"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.reason",
        priority = 1,
        description = "Why it ended"
    ),
    printcolumn(
        name = "Pods",
        type_ = "string",
        json_path = ".status.pods",
        priority = 1,
        description = "Pods that are done, of all"
    ),
    printcolumn(
        name = "Node",
        type_ = "string",
        json_path = ".status.targets[0].node",
        priority = 1,
        description = "The first target's node"
    ),
    printcolumn(
        name = "Python",
        type_ = "string",
        json_path = ".status.targets[0].python",
        priority = 1,
        description = "The first target's Python"
    ),
    printcolumn(
        name = "Duration",
        type_ = "string",
        json_path = ".status.duration",
        priority = 1,
        description = "From its start to its end"
    )
)]
#[cfg_attr(test, kube(cel))]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.processes), has(self.asyncioSnapshot), has(self.stacks), has(self.remoteExec)].filter(chosen, chosen).size() == 1").message("choose exactly one action: `processes: {}`, `asyncioSnapshot: {}`, `stacks: {}` or `remoteExec: {script: …}`"),
    validation = Rule::new(unchanged()).message("the spec cannot be changed, since a session runs once: create a new DebugSession (only `cancel` may be set, to true)"),
    validation = Rule::new("!(has(oldSelf.cancel) && oldSelf.cancel) || (has(self.cancel) && self.cancel)").message("`cancel` cannot be taken back: create a new DebugSession")
)]
pub struct DebugSessionSpec {
    /// The pod, and the container and process in it, that the question is for.
    pub target: Target,

    /// Action: list the Python processes in the container, with versions, threads and commands. Write `processes: {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Processes>,

    /// Action: read every asyncio task of every event loop, thread and interpreter, with what it waits for. Nothing
    /// runs inside the target. Write `asyncioSnapshot: {}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asyncio_snapshot: Option<AsyncioSnapshot>,

    /// Action: read the Python stack of every thread. Nothing runs inside the target. Write `stacks: {}`. With
    /// `locals: Values` it needs the same right as running code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stacks: Option<StacksAction>,

    /// Action: run a script inside the target process, at a point that its interpreter calls safe (PEP 768,
    /// CPython 3.14 and newer). Needs the requester's own right to create pods/exec on the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_exec: Option<RemoteExec>,

    /// How the sidecar gets its right to read the target. Auto: with the capability SYS_PTRACE where the namespace
    /// admits it, otherwise as the target's own user. Ptrace: only the first. SameUser: only the second.
    #[serde(default)]
    pub attach: AttachMode,

    /// How long the action may take for each target, in seconds. Getting the sidecar into the pod has a limit of its own.
    #[serde(default = "default_timeout_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: i32,

    /// How long after its end the session is deleted, in seconds. Absent: it is kept until somebody deletes it. Leave
    /// it out when the session is applied by Argo CD or Flux, which would create and run a deleted one again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<i32>,

    /// Why this is done, for people: an incident's number, for example. Copied to Events and the audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub reason: Option<String>,

    /// Who asks. Where the cluster can (MutatingAdmissionPolicy, Kubernetes 1.36 and newer) it is stamped when the
    /// session is created; a client that gives it itself must give its own name and groups, or is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<Requester>,

    /// Set to true to be told what would happen: the targets are looked up, and whether the cluster would let the
    /// sidecar in and the requester run code is asked; no pod is touched and nothing is read or run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,

    /// Set to true to end the session early. The only field that may change, and only to true.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
}

/// The rule that nothing but `cancel` changes. It stands on the spec as a whole: a transition rule on an optional field
/// itself does not run when the field is set or removed.
fn unchanged() -> String {
    let always = ["target", "attach", "timeoutSeconds"]
        .map(|field| format!("self.{field} == oldSelf.{field}"));
    let optional = [
        "processes",
        "asyncioSnapshot",
        "stacks",
        "remoteExec",
        "ttlSecondsAfterFinished",
        "reason",
        "requestedBy",
    ]
    .map(|field| {
        format!("(has(self.{field}) ? has(oldSelf.{field}) && self.{field} == oldSelf.{field} : !has(oldSelf.{field}))")
    });
    // False and absent are the same.
    let dry_run = [
        "(has(self.dryRun) && self.dryRun) == (has(oldSelf.dryRun) && oldSelf.dryRun)".to_owned(),
    ];
    [always.as_slice(), optional.as_slice(), &dry_run]
        .concat()
        .join(" && ")
}

fn default_timeout_seconds() -> i32 {
    30
}

/// The pods, container and process that a session is for.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.podName) != has(self.selector)").message("target needs exactly one of `podName` and `selector`"),
    validation = Rule::new("!has(self.pods) || has(self.selector)").message("target.pods needs `selector`: podName is one pod already")
)]
pub struct Target {
    /// The pod, in the session's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(r"self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("podName must be the name of one pod: lower case letters, digits, '-' and '.', for example `web-0`"))]
    pub pod_name: Option<String>,

    /// The pods with these labels, in the session's own namespace, instead of one by its name. Which of them, and how
    /// many at once, says `pods`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<PodSelector>,

    /// How many of the pods that match `selector` are asked. Absent: one. Pods that are not Ready come first, then
    /// those that restarted most, then by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodCount>,

    /// The container. Absent: the one that the annotation kubectl.kubernetes.io/default-container names, else the
    /// only one, else the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("container must be the name of a container: lower case letters, digits and '-'"))]
    pub container: Option<String>,

    /// The process. Absent: read-only actions take every Python process of the container; code-running ones take pid
    /// 1 if it is Python, else the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessSelector>,
}

/// Chooses pods by their labels. Every requirement must hold.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.matchLabels) && self.matchLabels.size() > 0) || (has(self.matchExpressions) && self.matchExpressions.size() > 0)").message("the selector must not be empty: an empty one would mean every pod of the namespace")
)]
pub struct PodSelector {
    /// Labels that a pod must have, with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub match_labels: BTreeMap<String, String>,

    /// Requirements on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub match_expressions: Vec<LabelRequirement>,
}

/// One requirement on a label.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)").message("In and NotIn need `values`; Exists and DoesNotExist have none")
)]
pub struct LabelRequirement {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,

    /// How the label and the values compare.
    pub operator: LabelOperator,

    /// The values, with In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub values: Vec<String>,
}

/// How a label and values compare.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum LabelOperator {
    /// The label has one of the values.
    #[default]
    In,
    /// The label has none of the values, or is not there.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

/// How many of the pods that match a selector are asked, and how many of them at once.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.value) == (has(self.mode) && self.mode in ['Fixed', 'Percent'])").message("pods.value is needed with the modes Fixed and Percent, and only there"),
    validation = Rule::new("!(has(self.mode) && self.mode == 'Percent') || !has(self.value) || self.value <= 100").message("pods.value is at most 100 with the mode Percent")
)]
pub struct PodCount {
    /// One: the first in order. All: every one, at most 256. Fixed: `value` of them. Percent: `value` percent of them,
    /// rounded up.
    #[serde(default)]
    pub mode: PodMode,

    /// With Fixed a number of pods, with Percent a percentage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub value: Option<i32>,

    /// How many pods are asked at the same time.
    #[serde(default = "default_max_parallel")]
    #[schemars(range(min = 1, max = 256))]
    pub max_parallel: i32,
}

fn default_max_parallel() -> i32 {
    10
}

impl Default for PodCount {
    fn default() -> Self {
        Self {
            mode: PodMode::default(),
            value: None,
            max_parallel: default_max_parallel(),
        }
    }
}

/// Which of several pods.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum PodMode {
    /// The first in order.
    #[default]
    One,
    /// Every one.
    All,
    /// A number of them.
    Fixed,
    /// A part of them, rounded up.
    Percent,
}

/// Who asks for a session.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Requester {
    /// The user's name as the API server knows it.
    #[schemars(length(min = 1, max = 1024))]
    pub username: String,

    /// The user's groups.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = 1024), extend("x-kubernetes-list-type" = "set"))]
    pub groups: BTreeSet<String>,
}

/// Chooses among the Python processes of a container, by pid or by command.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.pid) != has(self.command)").message("process needs exactly one of `pid` and `command`"),
    validation = Rule::new("!has(self.mode) || has(self.command)").message("process.mode needs `command`: a pid is one process already")
)]
pub struct ProcessSelector {
    /// The process id as the container sees it, for example 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_194_304))]
    pub pid: Option<i32>,

    /// A regular expression that is looked for anywhere in the process's arguments joined by blanks, for example `celery.*worker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub command: Option<String>,

    /// What happens when several processes match `command`. One: read-only actions take all, code-running ones fail
    /// with AmbiguousProcess. All: every action takes all. Absent: One.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<SelectMode>,
}

/// What several matching processes mean.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum SelectMode {
    /// A code-running action must match one process.
    #[default]
    One,
    /// Every match is a target.
    All,
}

/// Lists the Python processes; it has no options.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Processes {}

/// Reads every asyncio task.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AsyncioSnapshot {
    /// How the text looks. Tree: who waits for whom. Table: one row per task.
    #[serde(default)]
    pub format: AsyncioFormat,
}

/// How the text of a task snapshot looks.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum AsyncioFormat {
    /// The await graph as a tree.
    #[default]
    Tree,
    /// One row per task.
    Table,
}

/// Reads the Python stack of every thread.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StacksAction {
    /// Whether local variables are read too. None: no. Types: names and types. Values: also short values, which may
    /// be secrets and therefore need the requester's own right to create pods/exec on the pod.
    #[serde(default)]
    pub locals: LocalsMode,
}

/// Which local variables a stack dump shows.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum LocalsMode {
    /// None.
    #[default]
    None,
    /// Names and types.
    Types,
    /// Names, types and short values.
    Values,
}

/// Runs a script inside the target process.
//
// The rules about the script stand here and not on its field, so that a refusal does not repeat the whole script.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.script) != has(self.scriptFrom)").message("remoteExec needs exactly one of `script` and `scriptFrom`"),
    validation = Rule::new(r"!has(self.script) || self.script.matches('[^ \\t\\r\\n]')").message("the script must not be empty"),
    validation = Rule::new("!has(self.script) || bytes(self.script).size() <= 262144").message("the script must be at most 256 KiB (262144 bytes of UTF-8)")
)]
pub struct RemoteExec {
    /// The script: Python source, at most 256 KiB in UTF-8. When its last statement is an expression, the answer has
    /// its value. What it prints, and the exception it raises, are part of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262_144))]
    pub script: Option<String>,

    /// Where the script is, instead of writing it here. It is read once, when the session is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script_from: Option<ScriptSource>,

    /// The thread that runs the script. Auto: the main thread, or another one where the main thread cannot answer.
    /// Main: the main thread and no other. Any: whichever answers first. A number: the thread with this kernel id.
    #[serde(default)]
    pub thread: ThreadSelector,

    /// How far the sidecar may go to make a blocked thread answer. Auto: whatever is known to be safe for where it is
    /// blocked. Interrupt: only the step that no Python code can notice. Never: wait until it comes by itself.
    #[serde(default)]
    pub wake: WakePolicy,

    /// The interpreter, by id; 0 is the main one.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub interpreter: i64,

    /// How long to wait for the script to start, in seconds (timeoutSeconds, when that is less). Not started by then,
    /// it is taken back and the session fails with TargetBlocked and the stacks.
    #[serde(default = "default_start_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub start_seconds: i32,
}

fn default_start_seconds() -> i32 {
    3
}

impl Default for RemoteExec {
    fn default() -> Self {
        Self {
            script: None,
            script_from: None,
            thread: ThreadSelector::default(),
            wake: WakePolicy::default(),
            interpreter: 0,
            start_seconds: default_start_seconds(),
        }
    }
}

/// Where a script is kept.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScriptSource {
    /// A key of a ConfigMap in the session's namespace. The requester needs the right to get that ConfigMap.
    pub config_map_key_ref: ConfigMapKey,
}

/// A key of a ConfigMap.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKey {
    /// The ConfigMap's name.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(r"self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message("name must be the name of a ConfigMap: lower case letters, digits, '-' and '.'"))]
    pub name: String,

    /// The key in its `data`.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')").message("key must be a key of a ConfigMap: letters, digits, '-', '_' and '.'"))]
    pub key: String,
}

/// How far the sidecar may go to make a blocked thread answer.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum WakePolicy {
    /// Whatever is known to be safe for where the thread is blocked.
    #[default]
    Auto,
    /// Only a ptrace interrupt, which no Python code can notice.
    Interrupt,
    /// Wait until the thread comes by itself.
    Never,
}

/// How the sidecar gets its right to read the target.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum AttachMode {
    /// Ptrace where the namespace admits it, otherwise SameUser.
    #[default]
    Auto,
    /// As root with the capability SYS_PTRACE.
    Ptrace,
    /// As the target's own user, without any capability the target has not.
    SameUser,
}

/// What a session asks for, told apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SessionAction<'a> {
    /// `spec.processes`.
    Processes(&'a Processes),
    /// `spec.asyncioSnapshot`.
    AsyncioSnapshot(&'a AsyncioSnapshot),
    /// `spec.stacks`.
    Stacks(&'a StacksAction),
    /// `spec.remoteExec`.
    RemoteExec(&'a RemoteExec),
}

impl SessionAction<'_> {
    /// The action's name, which is the name of its field.
    pub fn name(self) -> &'static str {
        match self {
            Self::Processes(_) => "processes",
            Self::AsyncioSnapshot(_) => "asyncioSnapshot",
            Self::Stacks(_) => "stacks",
            Self::RemoteExec(_) => "remoteExec",
        }
    }

    /// Whether it needs the requester's own right to run code in the pod. The admission policy of the chart decides
    /// the same from the same fields.
    pub fn runs_code(self) -> bool {
        match self {
            Self::Processes(_) | Self::AsyncioSnapshot(_) => false,
            Self::Stacks(stacks) => stacks.locals == LocalsMode::Values,
            Self::RemoteExec(_) => true,
        }
    }
}

impl DebugSessionSpec {
    /// The one action. `None` when there is none or more than one, which the schema refuses: an object that was
    /// stored under another schema may still have it.
    pub fn action(&self) -> Option<SessionAction<'_>> {
        match (
            &self.processes,
            &self.asyncio_snapshot,
            &self.stacks,
            &self.remote_exec,
        ) {
            (Some(action), None, None, None) => Some(SessionAction::Processes(action)),
            (None, Some(action), None, None) => Some(SessionAction::AsyncioSnapshot(action)),
            (None, None, Some(action), None) => Some(SessionAction::Stacks(action)),
            (None, None, None, Some(action)) => Some(SessionAction::RemoteExec(action)),
            _ => None,
        }
    }

    /// The pod that the session names; empty where it has a selector.
    pub fn pod_name(&self) -> &str {
        self.target.pod_name.as_deref().unwrap_or_default()
    }

    /// A spec for the pod of a name, with every default and no action yet.
    pub fn for_pod(pod_name: impl Into<String>) -> Self {
        Self {
            target: Target {
                pod_name: Some(pod_name.into()),
                ..Target::default()
            },
            processes: None,
            asyncio_snapshot: None,
            stacks: None,
            remote_exec: None,
            attach: AttachMode::default(),
            timeout_seconds: default_timeout_seconds(),
            ttl_seconds_after_finished: None,
            reason: None,
            requested_by: None,
            dry_run: false,
            cancel: false,
        }
    }
}
