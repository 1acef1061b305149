//! Which entries stand in a status, where there are more than it may have. That is decided before anything is made to fit
//! or stored: what is left out takes no room from what stays, and no Secret is made that no status names.

use std::collections::BTreeMap;

use sidewinder_crds::TargetStatus;
use sidewinder_model::Reason;

use super::entry::{drop_data, drop_text};
use super::{Entry, MAX_TARGETS};

/// Chooses at most [`MAX_TARGETS`] of the entries of `pods`. Every pod keeps one, which may be an intent; those of later
/// pods are left out first, and of each pod those that answered before those that failed. What is left out is counted by
/// its reason, in front of the message of the pod's first entry.
///
/// Once there are more entries, at least what was left out before is again: its outcome is let go.
pub fn choose(pods: &mut [&mut [Entry]]) {
    let all: usize = pods.iter().map(|pod| pod.len()).sum();
    let mut excess = all.saturating_sub(MAX_TARGETS);
    for entry in pods.iter_mut().flat_map(|pod| pod.iter_mut()) {
        entry.left_out = false;
        entry.others = None;
    }
    for failed_too in [false, true] {
        for pod in pods.iter_mut().rev() {
            let kept = pod.iter().filter(|entry| !entry.left_out).count();
            let fewer = excess.min(kept.saturating_sub(1));
            let may =
                |entry: &&mut Entry| !entry.left_out && (failed_too || answered(&entry.status));
            for entry in pod.iter_mut().rev().filter(may).take(fewer) {
                entry.left_out = true;
                excess -= 1;
            }
        }
    }
    for pod in pods {
        count(pod);
    }
}

/// Says of a pod what is left out, and lets go of it.
fn count(pod: &mut [Entry]) {
    let mut left_out: BTreeMap<String, usize> = BTreeMap::new();
    for entry in pod.iter_mut().filter(|entry| entry.left_out) {
        let reason = entry.status.reason.clone();
        *left_out
            .entry(reason.unwrap_or_else(|| "not ended".to_owned()))
            .or_default() += 1;
        entry.outcome = None;
        entry.to_store = false;
        drop_data(&mut entry.status);
        drop_text(&mut entry.status);
    }
    let fewer: usize = left_out.values().sum();
    let first = pod.iter_mut().find(|entry| !entry.left_out);
    let Some(first) = first.filter(|_| fewer > 0) else {
        return;
    };
    let kinds: Vec<_> = left_out
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    first.others = Some(format!(
        "{fewer} more processes of this pod are left out ({}): a status has at most {MAX_TARGETS} entries",
        kinds.join(", ")
    ));
}

/// Whether the action was carried out in a process.
fn answered(target: &TargetStatus) -> bool {
    let reason = target.reason.as_deref().and_then(|it| it.parse().ok());
    reason.is_some_and(|reason: Reason| reason.is_complete())
}
