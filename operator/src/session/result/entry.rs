//! One target's entry: what of its outcome stands in the status, what is kept from there because it may be sensitive,
//! and what is cut because it is long. Output and documents that are missing or cut are named in `clipped` with their
//! full size.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sidewinder_crds::{DisarmState, ExecStatus, ScriptException, TargetStatus};
use sidewinder_model::{Data, ExecOutcome, MAX_SUMMARY_CHARS, Reason, TargetOutcome};

use super::clip::{clip_text, one_line};
use super::{FIELD_BYTES, MESSAGE_CHARS, Sensitive, json_bytes, phase, readable};

/// One target's entry, and whether anything was cut or kept from it.
pub(super) fn entry(
    known: &TargetStatus,
    outcome: &TargetOutcome,
    runs_code: bool,
    sensitive: Sensitive,
) -> (TargetStatus, bool) {
    // A script that never started said nothing: where the threads stood is the answer, as for anybody who reads stacks.
    let silent =
        matches!(outcome.data, Some(Data::Exec(_))) && outcome.reason == Reason::TargetBlocked;
    let withhold = runs_code && sensitive == Sensitive::Secret && !silent;
    let mut target = TargetStatus {
        pid: outcome.pid,
        command: some_text(&one_line(&outcome.command, MESSAGE_CHARS)),
        python: some_text(&one_line(&outcome.python, 64)),
        phase: Some(phase(outcome.reason, outcome.reason.is_complete())),
        reason: Some(outcome.reason.to_string()),
        message: some_text(&one_line(&outcome.message, MESSAGE_CHARS)),
        summary: Some(one_line(&outcome.summary, MAX_SUMMARY_CHARS)),
        paused_microseconds: Some(signed(outcome.paused_microseconds)),
        duration_milliseconds: Some(signed(outcome.duration_milliseconds)),
        disarmed: runs_code.then_some(match outcome.disarmed {
            Some(true) => DisarmState::Disarmed,
            Some(false) => DisarmState::StillArmed,
            None => DisarmState::NotArmed,
        }),
        clipped: BTreeMap::new(),
        text: None,
        exec: None,
        data: None,
        result: None,
        ..known.clone()
    };
    let mut fields = Fields {
        clipped: BTreeMap::new(),
        withhold,
    };
    match &outcome.data {
        Some(Data::Exec(exec)) => {
            target.exec = Some(exec_status(exec, &mut fields));
            // What the agent had cut before is part of the full size.
            for field in ["stdout", "stderr"] {
                if let Some(bytes) = exec.clipped.get(field) {
                    fields.cut(&format!("exec.{field}"), saturated(*bytes));
                }
            }
            if withhold && outcome.reason.is_complete() {
                let words = withheld_summary(exec);
                target.summary = Some(words.clone());
                // Of a success the message says at most which processes a default passed over.
                let note = Some(outcome.message.as_str())
                    .filter(|note| outcome.reason == Reason::Succeeded && !note.is_empty());
                target.message = Some(match note {
                    Some(note) => one_line(&format!("{words}; {note}"), MESSAGE_CHARS),
                    None => words,
                });
            }
        }
        Some(data) => {
            target.data = fields.document("data", &public_data(data, withhold));
            // Values that were left out of `data` are cut from it like anything else.
            if withhold && target.data.is_some() && public_data(data, true) != inner(data) {
                fields.cut("data", json_bytes(&inner(data)));
            }
        }
        None => {}
    }
    target.text = fields.text("text", &outcome.text);
    let cut = !fields.clipped.is_empty();
    target.clipped = fields.clipped;
    (target, cut)
}

fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn saturated(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The JSON document inside of `data`, in the shape its command prints.
fn inner(data: &Data) -> serde_json::Value {
    match data {
        Data::Processes(document) => serde_json::to_value(document),
        Data::Stacks(document) => serde_json::to_value(document),
        Data::Tasks(document) => serde_json::to_value(document),
        Data::Exec(document) => serde_json::to_value(document),
    }
    .unwrap_or_default()
}

/// The document with the values of local variables left out where they are not for the status.
fn public_data(data: &Data, withhold: bool) -> serde_json::Value {
    if !withhold {
        return inner(data);
    }
    let mut data = data.clone();
    let frames: Vec<&mut sidewinder_model::Frame> = match &mut data {
        Data::Stacks(stacks) => stacks
            .interpreters
            .iter_mut()
            .flat_map(|interpreter| &mut interpreter.threads)
            .flat_map(|thread| &mut thread.frames)
            .collect(),
        // `make_mut` gives each task frames of its own where several share them.
        Data::Tasks(tasks) => tasks
            .tasks
            .iter_mut()
            .flat_map(|task| Arc::make_mut(&mut task.coroutine))
            .collect(),
        Data::Processes(_) | Data::Exec(_) => Vec::new(),
    };
    for local in frames
        .into_iter()
        .filter_map(|frame| frame.locals.as_mut())
        .flatten()
    {
        local.value = None;
    }
    inner(&data)
}

/// The fields of one entry while they are being cut.
struct Fields {
    clipped: BTreeMap<String, i64>,
    withhold: bool,
}

impl Fields {
    fn cut(&mut self, path: &str, bytes: usize) {
        self.clipped
            .insert(path.to_owned(), i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Text that may be sensitive: nothing, the whole, or its ends.
    fn text(&mut self, path: &str, text: &str) -> Option<String> {
        if text.is_empty() {
            return None;
        }
        if self.withhold {
            self.cut(path, text.len());
            return None;
        }
        if text.len() > FIELD_BYTES {
            self.cut(path, text.len());
        }
        Some(clip_text(text, FIELD_BYTES))
    }

    /// A document that fits, or nothing.
    fn document(&mut self, path: &str, document: &serde_json::Value) -> Option<serde_json::Value> {
        let bytes = json_bytes(document);
        if bytes > FIELD_BYTES {
            self.cut(path, bytes);
            return None;
        }
        Some(document.clone())
    }
}

fn exec_status(exec: &ExecOutcome, fields: &mut Fields) -> ExecStatus {
    let stacks = exec
        .stacks
        .as_ref()
        .and_then(|stacks| serde_json::to_value(stacks).ok())
        .and_then(|stacks| fields.document("exec.stacks", &stacks));
    ExecStatus {
        stdout: fields.text("exec.stdout", &exec.stdout),
        stderr: fields.text("exec.stderr", &exec.stderr),
        value: exec
            .value
            .as_deref()
            .and_then(|value| fields.text("exec.value", value)),
        value_json: exec
            .value_json
            .as_deref()
            .and_then(|value| fields.text("exec.valueJSON", value)),
        exception: exec.exception.as_ref().map(|exception| ScriptException {
            type_name: one_line(&exception.type_name, 256),
            message: fields
                .text("exec.exception.message", &exception.message)
                .unwrap_or_default(),
            traceback: fields
                .text("exec.exception.traceback", &exception.traceback)
                .unwrap_or_default(),
        }),
        thread: exec.thread.map(signed),
        wake: Some(format!("{:?}", exec.wake)),
        started_after_milliseconds: exec.started_after_milliseconds.map(signed),
        duration_milliseconds: Some(signed(exec.duration_milliseconds)),
        still_running: Some(exec.still_running),
        watched: exec.watched.then_some(true),
        afterwards: None,
        imported: names(&exec.imported),
        signals: names(&exec.signals),
        clipped: exec
            .clipped
            .iter()
            .take(16)
            .map(|(field, bytes)| (one_line(field, 64), signed(*bytes)))
            .collect(),
        disarmed: Some(exec.disarmed),
        reason: exec.reason.map(|reason| reason.to_string()),
        stacks,
    }
}

/// Names chosen by the target, bounded: the whole list is in the result.
fn names(list: &[String]) -> Vec<String> {
    list.iter()
        .take(64)
        .map(|name| one_line(name, 128))
        .collect()
}

/// What can be said of a script without its words.
fn withheld_summary(exec: &ExecOutcome) -> String {
    let took = readable(Duration::from_millis(exec.duration_milliseconds));
    if let Some(exception) = &exec.exception {
        return one_line(
            &format!(
                "the script raised {} after {took}; its words are in the result's Secret",
                exception.type_name
            ),
            MAX_SUMMARY_CHARS,
        );
    }
    let whole = |field: &str, kept: &str| {
        exec.clipped
            .get(field)
            .map_or(kept.len(), |bytes| saturated(*bytes))
    };
    let output = whole("stdout", &exec.stdout).saturating_add(whole("stderr", &exec.stderr));
    // An expression that is None says nothing that is worth a look.
    let value = exec.value.as_deref().filter(|value| *value != "None");
    let what = match (output, value) {
        (0, None) => return format!("the script ended after {took} without output"),
        (0, Some(_)) => "its value is".to_owned(),
        (bytes, None) => format!("{bytes} bytes of output are"),
        (bytes, Some(_)) => format!("its value and {bytes} bytes of output are"),
    };
    format!("the script ended after {took}; {what} in the result's Secret")
}

pub(super) fn drop_data(target: &mut TargetStatus) {
    if let Some(data) = target.data.take() {
        target
            .clipped
            .insert("data".into(), signed(json_bytes(&data) as u64));
    }
    if let Some(stacks) = target.exec.as_mut().and_then(|exec| exec.stacks.take()) {
        target
            .clipped
            .insert("exec.stacks".into(), signed(json_bytes(&stacks) as u64));
    }
}

pub(super) fn drop_text(target: &mut TargetStatus) {
    let mut cut = |path: &str, text: Option<String>| {
        if let Some(text) = text {
            // An earlier entry has the full size already.
            target
                .clipped
                .entry(path.to_owned())
                .or_insert(signed(text.len() as u64));
        }
    };
    cut("text", target.text.take());
    if let Some(exec) = &mut target.exec {
        cut("exec.stdout", exec.stdout.take());
        cut("exec.stderr", exec.stderr.take());
        cut("exec.value", exec.value.take());
        cut("exec.valueJSON", exec.value_json.take());
    }
}
