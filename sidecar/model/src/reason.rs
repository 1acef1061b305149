//! Why something ended: one closed list for conditions, Events, metrics, exit codes and `docs/reasons.md`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why something ended. The name is what stands in a condition's `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// The session was accepted.
    Accepted,
    /// Every target's agent answered.
    Attached,
    /// The action was carried out.
    Succeeded,
    /// The script raised an exception.
    ScriptError,
    /// Some targets answered and some did not.
    PartiallyFailed,
    /// Nothing was done, as asked.
    DryRun,
    /// The whole result stands in the status.
    Inline,
    /// The whole result stands in Secrets owned by the session.
    Stored,
    /// Nothing of ours is armed in the target.
    Disarmed,
    /// Nothing was ever armed in the target.
    NotArmed,
    /// A script that outlived its session has ended.
    ScriptEnded,
    /// There is no such pod.
    PodNotFound,
    /// The pod is not running.
    PodNotRunning,
    /// The pod has no such container.
    ContainerNotFound,
    /// The pod is a static pod, which takes no ephemeral container.
    StaticPod,
    /// The pod's platform is not supported.
    UnsupportedPlatform,
    /// The pod shares the node's PID namespace.
    HostPID,
    /// No supported Python process was found where the session looked.
    NoPythonProcess,
    /// Several Python processes match.
    AmbiguousProcess,
    /// The process runs a Python that is not supported.
    UnsupportedPython,
    /// The target was started with remote debugging disabled.
    RemoteDebugDisabled,
    /// The ConfigMap or its key does not exist.
    ScriptNotFound,
    /// Pod Security admission refused the sidecar.
    PodSecurityForbidden,
    /// An admission webhook or policy refused the sidecar.
    AdmissionForbidden,
    /// The operator's policy does not allow this session.
    PolicyDenied,
    /// It is not known who asked for this session.
    RequesterUnknown,
    /// The node's `yama.ptrace_scope` forbids attaching.
    YamaForbidden,
    /// The kernel refused to attach to the process.
    PermissionDenied,
    /// The sidecar's image cannot be pulled.
    ImagePullFailed,
    /// The sidecar did not start or did not answer.
    SidecarFailed,
    /// The sidecar went away while it worked.
    SidecarLost,
    /// The sidecar speaks another protocol than the operator.
    SidecarVersion,
    /// The sidecar does not see the target's processes.
    PidNamespaceNotShared,
    /// The pod's node does not answer.
    NodeLost,
    /// The target container restarted meanwhile.
    TargetRestarted,
    /// The process ended meanwhile.
    TargetExited,
    /// No thread that may run the script came to a safe point in time.
    TargetBlocked,
    /// Somebody else traces the process, or a signal has stopped it, or a script still runs in that thread.
    TargetBusy,
    /// Too many sessions wait for this process.
    QueueFull,
    /// The interpreter is shutting down.
    InterpreterFinalizing,
    /// An audit hook in the target refused the script.
    AuditHookRefused,
    /// The target's `open_code` hook refused the script.
    OpenCodeRefused,
    /// The script started and did not end in time.
    ScriptTimeout,
    /// The action did not end in time.
    Timeout,
    /// The session was cancelled.
    Cancelled,
    /// More than 256 targets match.
    TooManyTargets,
    /// The pod already carries as many sidecars as it may.
    TooManySidecars,
    /// A request could not be taken back and may still run.
    StillArmed,
    /// Something went wrong inside Sidewinder.
    InternalError,
    /// There is no such recipe.
    UnknownRecipe,
    /// The process selector cannot be used.
    InvalidProcessSelector,
    /// The result could not be stored in a Secret.
    ResultNotStored,
}

impl Reason {
    /// Every reason, in the order of the documentation.
    pub const ALL: &'static [Self] = &[
        Self::Accepted,
        Self::Attached,
        Self::Succeeded,
        Self::ScriptError,
        Self::PartiallyFailed,
        Self::DryRun,
        Self::Inline,
        Self::Stored,
        Self::Disarmed,
        Self::NotArmed,
        Self::ScriptEnded,
        Self::PodNotFound,
        Self::PodNotRunning,
        Self::ContainerNotFound,
        Self::StaticPod,
        Self::UnsupportedPlatform,
        Self::HostPID,
        Self::NoPythonProcess,
        Self::AmbiguousProcess,
        Self::UnsupportedPython,
        Self::RemoteDebugDisabled,
        Self::ScriptNotFound,
        Self::PodSecurityForbidden,
        Self::AdmissionForbidden,
        Self::PolicyDenied,
        Self::RequesterUnknown,
        Self::YamaForbidden,
        Self::PermissionDenied,
        Self::ImagePullFailed,
        Self::SidecarFailed,
        Self::SidecarLost,
        Self::SidecarVersion,
        Self::PidNamespaceNotShared,
        Self::NodeLost,
        Self::TargetRestarted,
        Self::TargetExited,
        Self::TargetBlocked,
        Self::TargetBusy,
        Self::QueueFull,
        Self::InterpreterFinalizing,
        Self::AuditHookRefused,
        Self::OpenCodeRefused,
        Self::ScriptTimeout,
        Self::Timeout,
        Self::Cancelled,
        Self::TooManyTargets,
        Self::TooManySidecars,
        Self::StillArmed,
        Self::InternalError,
        Self::UnknownRecipe,
        Self::InvalidProcessSelector,
        Self::ResultNotStored,
    ];

    /// The name, as in a condition's `reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Attached => "Attached",
            Self::Succeeded => "Succeeded",
            Self::ScriptError => "ScriptError",
            Self::PartiallyFailed => "PartiallyFailed",
            Self::DryRun => "DryRun",
            Self::Inline => "Inline",
            Self::Stored => "Stored",
            Self::Disarmed => "Disarmed",
            Self::NotArmed => "NotArmed",
            Self::ScriptEnded => "ScriptEnded",
            Self::PodNotFound => "PodNotFound",
            Self::PodNotRunning => "PodNotRunning",
            Self::ContainerNotFound => "ContainerNotFound",
            Self::StaticPod => "StaticPod",
            Self::UnsupportedPlatform => "UnsupportedPlatform",
            Self::HostPID => "HostPID",
            Self::NoPythonProcess => "NoPythonProcess",
            Self::AmbiguousProcess => "AmbiguousProcess",
            Self::UnsupportedPython => "UnsupportedPython",
            Self::RemoteDebugDisabled => "RemoteDebugDisabled",
            Self::ScriptNotFound => "ScriptNotFound",
            Self::PodSecurityForbidden => "PodSecurityForbidden",
            Self::AdmissionForbidden => "AdmissionForbidden",
            Self::PolicyDenied => "PolicyDenied",
            Self::RequesterUnknown => "RequesterUnknown",
            Self::YamaForbidden => "YamaForbidden",
            Self::PermissionDenied => "PermissionDenied",
            Self::ImagePullFailed => "ImagePullFailed",
            Self::SidecarFailed => "SidecarFailed",
            Self::SidecarLost => "SidecarLost",
            Self::SidecarVersion => "SidecarVersion",
            Self::PidNamespaceNotShared => "PidNamespaceNotShared",
            Self::NodeLost => "NodeLost",
            Self::TargetRestarted => "TargetRestarted",
            Self::TargetExited => "TargetExited",
            Self::TargetBlocked => "TargetBlocked",
            Self::TargetBusy => "TargetBusy",
            Self::QueueFull => "QueueFull",
            Self::InterpreterFinalizing => "InterpreterFinalizing",
            Self::AuditHookRefused => "AuditHookRefused",
            Self::OpenCodeRefused => "OpenCodeRefused",
            Self::ScriptTimeout => "ScriptTimeout",
            Self::Timeout => "Timeout",
            Self::Cancelled => "Cancelled",
            Self::TooManyTargets => "TooManyTargets",
            Self::TooManySidecars => "TooManySidecars",
            Self::StillArmed => "StillArmed",
            Self::InternalError => "InternalError",
            Self::UnknownRecipe => "UnknownRecipe",
            Self::InvalidProcessSelector => "InvalidProcessSelector",
            Self::ResultNotStored => "ResultNotStored",
        }
    }

    /// What it means, as a sentence without its full stop.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Accepted => "the session was accepted",
            Self::Attached => "every target's agent answered",
            Self::Succeeded => "the action was carried out",
            Self::ScriptError => "the script raised an exception",
            Self::PartiallyFailed => "some targets answered and some did not",
            Self::DryRun => "nothing was done, as asked",
            Self::Inline => "the whole result stands in the status",
            Self::Stored => "the whole result stands in Secrets owned by the session",
            Self::Disarmed => "nothing of ours is armed in the target",
            Self::NotArmed => "nothing was ever armed in the target",
            Self::ScriptEnded => "a script that outlived its session has ended",
            Self::PodNotFound => "there is no such pod",
            Self::PodNotRunning => "the pod is not running",
            Self::ContainerNotFound => "the pod has no such container",
            Self::StaticPod => "the pod is a static pod, which takes no ephemeral container",
            Self::UnsupportedPlatform => "the pod's platform is not supported",
            Self::HostPID => "the pod shares the node's PID namespace",
            Self::NoPythonProcess => {
                "no supported Python process was found where the session looked"
            }
            Self::AmbiguousProcess => "several Python processes match",
            Self::UnsupportedPython => "the process runs a Python that is not supported",
            Self::RemoteDebugDisabled => "the target was started with remote debugging disabled",
            Self::ScriptNotFound => "the ConfigMap or its key does not exist",
            Self::PodSecurityForbidden => "Pod Security admission refused the sidecar",
            Self::AdmissionForbidden => "an admission webhook or policy refused the sidecar",
            Self::PolicyDenied => "the operator's policy does not allow this session",
            Self::RequesterUnknown => "it is not known who asked for this session",
            Self::YamaForbidden => "the node's yama.ptrace_scope forbids attaching",
            Self::PermissionDenied => "the kernel refused to attach to the process",
            Self::ImagePullFailed => "the sidecar's image cannot be pulled",
            Self::SidecarFailed => "the sidecar did not start or did not answer",
            Self::SidecarLost => "the sidecar went away while it worked",
            Self::SidecarVersion => "the sidecar speaks another protocol than the operator",
            Self::PidNamespaceNotShared => "the sidecar does not see the target's processes",
            Self::NodeLost => "the pod's node does not answer",
            Self::TargetRestarted => "the target container restarted meanwhile",
            Self::TargetExited => "the process ended meanwhile",
            Self::TargetBlocked => "no thread that may run the script came to a safe point in time",
            Self::TargetBusy => {
                "somebody else traces the process, or a signal has stopped it, or a script still runs in that thread"
            }
            Self::QueueFull => "too many sessions wait for this process",
            Self::InterpreterFinalizing => "the interpreter is shutting down",
            Self::AuditHookRefused => "an audit hook in the target refused the script",
            Self::OpenCodeRefused => "the target's open_code hook refused the script",
            Self::ScriptTimeout => "the script started and did not end in time",
            Self::Timeout => "the action did not end in time",
            Self::Cancelled => "the session was cancelled",
            Self::TooManyTargets => "more than 256 targets match",
            Self::TooManySidecars => "the pod already carries as many sidecars as it may",
            Self::StillArmed => "a request could not be taken back and may still run",
            Self::InternalError => "something went wrong inside Sidewinder",
            Self::UnknownRecipe => "there is no such recipe",
            Self::InvalidProcessSelector => "the process selector cannot be used",
            Self::ResultNotStored => "the result could not be stored in a Secret",
        }
    }

    /// What to do about it.
    #[expect(clippy::too_many_lines, reason = "one arm for each reason")]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Accepted
            | Self::Attached
            | Self::Succeeded
            | Self::DryRun
            | Self::Inline
            | Self::Disarmed
            | Self::NotArmed
            | Self::Cancelled => "Nothing to do.",
            Self::ScriptError => {
                "Read `exec.exception` of the target: a script that raises is an answer. A syntax error and a NUL byte in the script are reported here too."
            }
            Self::PartiallyFailed => "Look at the reason of each entry in `status.targets`.",
            Self::Stored => {
                "Read the Secrets that the target's `result.parts` names, in that order: together they are one zstd stream of JSON."
            }
            Self::PodNotFound => {
                "Check the pod's name and the session's namespace: a session reaches only pods of its own namespace."
            }
            Self::PodNotRunning => {
                "Wait until the pod runs. A pod that is Pending is waited for 60 seconds."
            }
            Self::ContainerNotFound => "Name one of the containers that the message lists.",
            Self::StaticPod => "Use the sidecar by hand on the node.",
            Self::UnsupportedPlatform => {
                "Sidewinder needs a Linux node and a runtime that shares the target's PID namespace."
            }
            Self::HostPID => {
                "Use the sidecar by hand on the node: in such a pod a sidecar would see every process of the node."
            }
            Self::NoPythonProcess => {
                "Name the right container; the message lists what runs there. CPython 3.14 and 3.15 are supported."
            }
            Self::AmbiguousProcess => {
                "Choose one of the processes that the message lists with `process: {pid: …}`, or take all with `process: {command: …, mode: All}`."
            }
            Self::UnsupportedPython => {
                "CPython 3.14 and 3.15 are supported, final releases only. The message names the version that was found."
            }
            Self::RemoteDebugDisabled => {
                "This is its owner's decision and is not worked around. Reading (`stacks`, `tasks`) works all the same."
            }
            Self::ScriptNotFound => {
                "Create the ConfigMap in the session's namespace, or correct `scriptFrom`."
            }
            Self::PodSecurityForbidden => {
                "The message carries the server's own words. `attach: Auto` and `attach: SameUser` pass *baseline* and *restricted*, on nodes whose `yama.ptrace_scope` is 0; `attach: Ptrace` needs a namespace that admits SYS_PTRACE."
            }
            Self::AdmissionForbidden => {
                "The message carries the server's own words. Ask whoever owns that webhook or policy to admit the sidecar's image."
            }
            Self::PolicyDenied => "The message names the setting.",
            Self::RequesterUnknown => "Install the chart with `admissionPolicies.enabled: true`.",
            Self::YamaForbidden => {
                "The message names the value. Scope 1 and 2 need `attach: Ptrace` (a namespace that admits SYS_PTRACE); scope 3 forbids every debugger until the node restarts."
            }
            Self::PermissionDenied => {
                "Try `attach: Ptrace`. By hand, run as root or as the target's own user. A process that changed its user after start admits only `Ptrace`."
            }
            Self::ImagePullFailed => {
                "The message carries the kubelet's own words. The image must be pullable with the node's or the pod's own credentials."
            }
            Self::SidecarFailed => {
                "The message says how it ended. See the sidecar's container status in the pod."
            }
            Self::SidecarLost => {
                "Make a new session. A script that had started ran at most once; whether it finished is not known."
            }
            Self::SidecarVersion => {
                "Upgrade operator and sidecar together; an old sidecar leaves after 30 idle minutes."
            }
            Self::PidNamespaceNotShared => {
                "The container runtime did not honour `targetContainerName`; containerd 1.5 or CRI-O 1.23 and newer do."
            }
            Self::NodeLost => {
                "Look at the node (`kubectl describe node`), and make a new session when it answers again."
            }
            Self::TargetRestarted | Self::TargetExited => {
                "Make a new session: it looks at the process that runs now."
            }
            Self::TargetBlocked => {
                "The stacks that come with it show where it is blocked. Whether the request was taken back is in `Disarmed`."
            }
            Self::TargetBusy => {
                "Wait for the other debugger or script to finish, or continue the process."
            }
            Self::QueueFull => "Try again when the sessions before it have ended.",
            Self::InterpreterFinalizing => "The process ends by itself; read its stacks instead.",
            Self::AuditHookRefused | Self::OpenCodeRefused => {
                "This is its owner's decision and is not worked around."
            }
            Self::ScriptTimeout => {
                "Raise `timeoutSeconds`, or make the script shorter. The output so far is kept. Where `exec.stillRunning` is true it could not be stopped; with `exec.watched` an Event will tell its end."
            }
            Self::Timeout => "Raise `timeoutSeconds`. What was read until then is kept.",
            Self::TooManyTargets => "Narrow the selector.",
            Self::TooManySidecars => {
                "Ephemeral containers cannot be removed: restart the pod when it suits you."
            }
            Self::ScriptEnded => {
                "Nothing to do: the thread in which it ran takes scripts again. Only an Event and `exec.afterwards` have this reason."
            }
            Self::StillArmed => {
                "The script may still run when its thread comes to a safe point; only that, or the end of the process, clears the request."
            }
            Self::InternalError => "Please report it, with the message.",
            Self::UnknownRecipe => "This version has no recipes.",
            Self::InvalidProcessSelector => {
                "The message says what is wrong with the regular expression."
            }
            Self::ResultNotStored => {
                "What fits into the status is kept. The message carries the server's own words."
            }
        }
    }

    /// The exit code of a command that ends for this reason.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Accepted
            | Self::Attached
            | Self::Succeeded
            | Self::DryRun
            | Self::Inline
            | Self::Stored
            | Self::Disarmed
            | Self::NotArmed
            | Self::ScriptEnded => 0,
            Self::ScriptError => 1,
            Self::UnknownRecipe | Self::InvalidProcessSelector => 2,
            Self::RemoteDebugDisabled
            | Self::PodSecurityForbidden
            | Self::AdmissionForbidden
            | Self::PolicyDenied
            | Self::RequesterUnknown
            | Self::YamaForbidden
            | Self::PermissionDenied
            | Self::AuditHookRefused
            | Self::OpenCodeRefused => 3,
            Self::PodNotFound
            | Self::PodNotRunning
            | Self::ContainerNotFound
            | Self::NoPythonProcess
            | Self::AmbiguousProcess
            | Self::UnsupportedPython
            | Self::ScriptNotFound
            | Self::TargetRestarted
            | Self::TargetExited
            | Self::InterpreterFinalizing => 4,
            Self::TargetBlocked | Self::TargetBusy | Self::ScriptTimeout | Self::Timeout => 5,
            Self::PartiallyFailed
            | Self::StaticPod
            | Self::UnsupportedPlatform
            | Self::HostPID
            | Self::ImagePullFailed
            | Self::SidecarFailed
            | Self::SidecarLost
            | Self::SidecarVersion
            | Self::PidNamespaceNotShared
            | Self::NodeLost
            | Self::QueueFull
            | Self::TooManyTargets
            | Self::TooManySidecars
            | Self::StillArmed
            | Self::InternalError
            | Self::ResultNotStored => 6,
            Self::Cancelled => 130,
        }
    }

    /// Whether the action was carried out, so that the session is `Complete` and not `Failed`.
    pub fn is_complete(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::ScriptError | Self::PartiallyFailed | Self::DryRun
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no reason of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownReason;

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a reason of this version")
    }
}

impl std::error::Error for UnknownReason {}

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == text)
            .ok_or(UnknownReason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_complete_and_has_no_repeats() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        // `ALL` is by hand; the last variant's discriminant counts the enum.
        assert_eq!(count, Reason::ResultNotStored as usize + 1);
    }

    #[test]
    fn a_reason_is_written_by_its_name() {
        for reason in Reason::ALL {
            assert_eq!(
                serde_json::to_string(reason).unwrap(),
                format!("\"{reason}\"")
            );
            assert_eq!(reason.as_str().parse(), Ok(*reason));
        }
    }
}
