//! The `DebugSession` API: its types, its rules, and the YAML that is generated from them.
//!
//! There is no client here and nothing that does I/O: the operator, the command line and the tests all depend on this
//! crate for what a session looks like and for the names they share.

#![forbid(unsafe_code)]

pub mod conditions;
pub mod manifest;
pub mod names;
pub mod v1alpha1;

pub use v1alpha1::{
    Afterwards, AsyncioFormat, AsyncioSnapshot, AttachMode, AttachedAs, ConfigMapKey, DebugSession,
    DebugSessionSpec, DebugSessionStatus, DisarmState, ExecStatus, LabelOperator, LabelRequirement,
    LocalsMode, Phase, PodCount, PodMode, PodSelector, ProcessSelector, Processes, RemoteExec,
    Requester, ResultPart, ResultRef, ScriptException, ScriptSource, SelectMode, SessionAction,
    StacksAction, Target, TargetStatus, ThreadSelector, WakePolicy,
};
