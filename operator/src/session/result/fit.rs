//! A status that is too full is emptied from its last entry on: of each kind of thing every later entry loses it before
//! an earlier one does. Reason and summary stay. Whatever is taken out is named in `clipped`, and is in the result.

use sidewinder_crds::{DebugSessionStatus, TargetStatus};
use sidewinder_model::MAX_SUMMARY_CHARS;

use super::clip::one_line;
use super::entry::{drop_data, drop_lists, drop_text, shorten};
use super::spill::json_bytes;
use super::{Entry, STATUS_BYTES};

/// What a `result` with one part adds to an entry, in bytes of JSON: most results have one.
const RESULT_BYTES: usize = 350;
/// What a `message` takes beside its words.
const MESSAGE_BYTES: usize = 16;

/// What an entry loses, the dearest last.
const LOSSES: [fn(&mut TargetStatus); 7] = [
    drop_data,
    drop_text,
    drop_lists,
    |target| shorten(target, 256),
    |target| shorten(target, 64),
    |target| {
        shorten(target, 0);
        target.exec.take_if(|exec| exec.watched != Some(true));
    },
    // Half of the entries' share of the status, with the characters that JSON writes as six bytes.
    |target| {
        let summary = target.summary.take();
        target.summary = summary.map(|text| one_line(&text, MAX_SUMMARY_CHARS / 4));
    },
];

/// Makes a status with `entries`, those that were chosen, fit: later targets lose `data`, then `text`, and are to be stored. `base` is the status
/// without its targets.
pub fn fit(base: &DebugSessionStatus, entries: &mut [&mut Entry]) {
    // What was read from a status has nothing beside it: it loses what the others cannot make room for.
    let whole = |entry: &Entry| entry.outcome.is_some() || entry.status.result.is_some();
    empty(base, entries, whole);
    empty(base, entries, |_| true);
}

/// Makes room for references that are longer than was expected, those of large results. Only entries whose whole outcome
/// is stored lose anything now.
pub fn fit_stored(base: &DebugSessionStatus, entries: &mut [&mut Entry]) {
    empty(base, entries, |entry| entry.status.result.is_some());
}

fn empty(base: &DebugSessionStatus, entries: &mut [&mut Entry], may: impl Fn(&Entry) -> bool) {
    let bytes = |entry: &Entry| {
        let result = usize::from(entry.to_store) * RESULT_BYTES;
        // As a text of its own, with the field's name.
        let others = entry.others.as_ref();
        let others = others.map_or(0, |words| json_bytes(words) + MESSAGE_BYTES);
        json_bytes(&entry.status) + result + others + 1
    };
    let targets: usize = entries.iter().map(|entry| bytes(entry)).sum();
    let mut size = json_bytes(base).saturating_add(targets);
    for lose in LOSSES {
        for entry in entries.iter_mut().rev() {
            if size <= STATUS_BYTES {
                return;
            }
            if !may(entry) {
                continue;
            }
            let before = bytes(entry);
            let known = entry.status.clipped.len();
            lose(&mut entry.status);
            if entry.status.clipped.len() > known && entry.outcome.is_some() {
                entry.to_store = true;
            }
            size = (size + bytes(entry)).saturating_sub(before);
        }
    }
}
