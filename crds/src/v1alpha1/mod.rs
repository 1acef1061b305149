//! `sidewinder.dev/v1alpha1`.

pub mod spec;
pub mod status;
pub mod thread_selector;

#[cfg(test)]
mod rules_tests;

pub use spec::{
    AsyncioFormat, AsyncioSnapshot, AttachMode, ConfigMapKey, DebugSession, DebugSessionSpec,
    LabelOperator, LabelRequirement, LocalsMode, PodCount, PodMode, PodSelector, ProcessSelector,
    Processes, RemoteExec, Requester, ScriptSource, SelectMode, SessionAction, StacksAction,
    Target, WakePolicy,
};
pub use status::{
    Afterwards, AttachedAs, DebugSessionStatus, DisarmState, ExecStatus, Phase, ResultPart,
    ResultRef, ScriptException, TargetStatus,
};
pub use thread_selector::{InvalidThread, ThreadSelector};
