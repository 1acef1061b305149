//! Which way leads into the pod: the first that the session allows and that neither admission nor the kernel refused,
//! and what is said when none is left.

use std::collections::BTreeMap;

use sidewinder_crds::{AttachMode, AttachedAs, DebugSessionSpec};
use sidewinder_model::Reason;

use super::{Step, end};
use crate::inject::Refusal;

/// [`AttachedAs`] with an order: the preferred one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// With the capability.
    Ptrace,
    /// As the target's user.
    SameUser,
}

impl From<Way> for AttachedAs {
    fn from(way: Way) -> Self {
        match way {
            Way::Ptrace => Self::Ptrace,
            Way::SameUser => Self::SameUser,
        }
    }
}

impl From<AttachedAs> for Way {
    fn from(attach: AttachedAs) -> Self {
        match attach {
            AttachedAs::Ptrace => Self::Ptrace,
            AttachedAs::SameUser => Self::SameUser,
        }
    }
}

impl Way {
    /// As it stands in the resource.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ptrace => "Ptrace",
            Self::SameUser => "SameUser",
        }
    }
}

/// The ways that the session allows and that were not refused, the preferred one first.
pub(super) fn allowed(spec: &DebugSessionSpec, refused: &BTreeMap<Way, Refusal>) -> Vec<Way> {
    let allowed: &[Way] = match spec.attach {
        AttachMode::Auto => &[Way::Ptrace, Way::SameUser],
        AttachMode::Ptrace => &[Way::Ptrace],
        AttachMode::SameUser => &[Way::SameUser],
    };
    let open = allowed.iter().copied();
    open.filter(|way| !refused.contains_key(way)).collect()
}

/// The way to go: the first that the session allows and that was not refused.
pub(super) fn way(spec: &DebugSessionSpec, refused: &BTreeMap<Way, Refusal>) -> Option<Way> {
    allowed(spec, refused).first().copied()
}

/// Every way was refused: the last one's reason, and what each was refused by.
pub(super) fn refused_everywhere(refused: &BTreeMap<Way, Refusal>) -> Step {
    // Where policy refused both ways, the first is the one that says most; the kernel's word counts more than policy's.
    let reason = refused
        .values()
        .rev()
        .map(|refusal| refusal.reason)
        .find(|reason| matches!(reason, Reason::PermissionDenied | Reason::YamaForbidden))
        .or_else(|| refused.values().next_back().map(|refusal| refusal.reason))
        .unwrap_or(Reason::InternalError);
    end(reason, refusals(refused))
}

/// What each way was refused by; of the only one its reason stands beside it.
fn refusals(refused: &BTreeMap<Way, Refusal>) -> String {
    match refused.len() {
        1 => refused
            .values()
            .map(|refusal| refusal.message.clone())
            .collect(),
        _ => refused_ways(refused),
    }
}

/// Which ways were refused, and by what.
pub fn refused_ways(refused: &BTreeMap<Way, Refusal>) -> String {
    refused
        .iter()
        .map(|(way, refusal)| {
            format!(
                "refused as {}: {}: {}",
                way.name(),
                refusal.reason,
                refusal.message
            )
        })
        .collect::<Vec<_>>()
        .join("; ")
}
