//! One target's entry: what of its outcome stands in the status, what is kept from there because it may be sensitive,
//! and what is cut because it is long. Output and documents that are missing or cut are named in `clipped` with their
//! full size.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sidewinder_crds::{DisarmState, ExecStatus, ScriptException, TargetStatus};
use sidewinder_model::{
    Data, ExecOutcome, Frame, MAX_SUMMARY_CHARS, ProcessList, Reason, Stacks, TargetOutcome, Tasks,
};

use super::clip::{clip_text, one_line};
use super::spill::json_bytes;
use super::{FIELD_BYTES, MESSAGE_CHARS, Sensitive, phase, readable};

/// The largest document that is looked at without the values that are not for the status.
const WITHOUT_VALUES_BYTES: usize = 16 * FIELD_BYTES;
/// How many names a list has at most, and how many characters each of them.
const MAX_NAMES: usize = 64;
const NAME_CHARS: usize = 128;

/// One target's entry, and whether anything was cut or kept from it.
pub(super) fn entry(
    known: &TargetStatus,
    outcome: &TargetOutcome,
    runs_code: bool,
    sensitive: Sensitive,
) -> (TargetStatus, bool) {
    // A script that never started said nothing: where the threads stood is the answer, as for anybody who reads stacks.
    let silent = outcome.reason == Reason::TargetBlocked
        && matches!(&outcome.data, Some(Data::Exec(exec)) if exec.stdout.is_empty()
            && exec.stderr.is_empty()
            && exec.value.is_none()
            && exec.exception.is_none());
    let withhold = runs_code && sensitive == Sensitive::Secret && !silent;
    let mut fields = Fields {
        clipped: BTreeMap::new(),
        withhold,
    };
    let mut target = TargetStatus {
        pid: outcome.pid,
        command: some_text(&fields.line("command", &outcome.command, MESSAGE_CHARS)),
        python: some_text(&fields.line("python", &outcome.python, 64)),
        phase: Some(phase(outcome.reason, outcome.reason.is_complete())),
        reason: Some(outcome.reason.to_string()),
        message: some_text(&fields.line("message", &outcome.message, MESSAGE_CHARS)),
        summary: Some(fields.line("summary", &outcome.summary, MAX_SUMMARY_CHARS)),
        paused_microseconds: Some(signed(outcome.paused_microseconds)),
        duration_milliseconds: Some(signed(outcome.duration_milliseconds)),
        disarmed: runs_code.then_some(match outcome.disarmed {
            Some(true) => DisarmState::Disarmed,
            Some(false) => DisarmState::StillArmed,
            // The agent had dropped the outcome, and what it said of this.
            None if outcome.reason == Reason::SidecarLost => DisarmState::StillArmed,
            None => DisarmState::NotArmed,
        }),
        clipped: BTreeMap::new(),
        text: None,
        exec: None,
        data: None,
        result: None,
        ..known.clone()
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
        Some(data) => target.data = public_data(data, &mut fields),
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
#[derive(Serialize)]
#[serde(untagged)]
enum Inner<'a> {
    Processes(&'a ProcessList),
    Stacks(&'a Stacks),
    Tasks(&'a Tasks),
    Exec(&'a ExecOutcome),
}

impl<'a> From<&'a Data> for Inner<'a> {
    fn from(data: &'a Data) -> Self {
        match data {
            Data::Processes(document) => Self::Processes(document),
            Data::Stacks(document) => Self::Stacks(document),
            Data::Tasks(document) => Self::Tasks(document),
            Data::Exec(document) => Self::Exec(document),
        }
    }
}

/// The document, where it fits, with the values of local variables left out where they are not for the status. What is
/// left out of it is cut from it like anything else.
fn public_data(data: &Data, fields: &mut Fields) -> Option<serde_json::Value> {
    let whole = json_bytes(&Inner::from(data));
    if !fields.withhold {
        return fields.document("data", &Inner::from(data));
    }
    // Without its values it is looked at as a copy, which nobody makes of an outcome of megabytes.
    if whole > WITHOUT_VALUES_BYTES {
        fields.cut("data", whole);
        return None;
    }
    let mut public = data.clone();
    match &mut public {
        Data::Stacks(stacks) => leave_out(frames(stacks)),
        // `make_mut` gives each task frames of its own where several share them.
        Data::Tasks(tasks) => leave_out(
            tasks
                .tasks
                .iter_mut()
                .flat_map(|task| Arc::make_mut(&mut task.coroutine)),
        ),
        Data::Processes(_) | Data::Exec(_) => {}
    }
    let shown = fields.document("data", &Inner::from(&public));
    if public != *data {
        fields.cut("data", whole);
    }
    shown
}

fn frames(stacks: &mut Stacks) -> impl Iterator<Item = &mut Frame> {
    stacks
        .interpreters
        .iter_mut()
        .flat_map(|interpreter| &mut interpreter.threads)
        .flat_map(|thread| &mut thread.frames)
}

fn leave_out<'a>(frames: impl Iterator<Item = &'a mut Frame>) {
    for local in frames.filter_map(|frame| frame.locals.as_mut()).flatten() {
        local.value = None;
    }
}

/// Where the threads stood while a script ran, without its own words: an exception that it was raising or handling is
/// its output.
fn public_stacks(stacks: &Stacks, fields: &mut Fields) -> Option<serde_json::Value> {
    let path = "exec.stacks";
    let whole = json_bytes(stacks);
    if !fields.withhold {
        return fields.document(path, stacks);
    }
    if whole > WITHOUT_VALUES_BYTES {
        fields.cut(path, whole);
        return None;
    }
    let mut public = stacks.clone();
    leave_out(frames(&mut public));
    let threads = public
        .interpreters
        .iter_mut()
        .flat_map(|interpreter| &mut interpreter.threads);
    for exception in threads.filter_map(|thread| thread.exception.as_mut()) {
        exception.message = None;
    }
    let shown = fields.document(path, &public);
    if public != *stacks {
        fields.cut(path, whole);
    }
    shown
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

    /// One line of at most so many characters.
    fn line(&mut self, path: &str, text: &str, chars: usize) -> String {
        if text.trim().chars().nth(chars).is_some() {
            self.cut(path, text.len());
        }
        one_line(text, chars)
    }

    /// A document that fits, or nothing. It becomes a tree only then: a tree takes many times its JSON.
    fn document<T: Serialize>(&mut self, path: &str, document: &T) -> Option<serde_json::Value> {
        let bytes = json_bytes(document);
        if bytes > FIELD_BYTES {
            self.cut(path, bytes);
            return None;
        }
        serde_json::to_value(document).ok()
    }

    /// Names chosen by the target, a bounded number of bounded ones.
    fn names(&mut self, path: &str, list: &[String]) -> Vec<String> {
        let fits = |name: &String| name.trim().chars().nth(NAME_CHARS).is_none();
        if list.len() > MAX_NAMES || !list.iter().all(fits) {
            self.cut(path, json_bytes(list));
        }
        list.iter()
            .take(MAX_NAMES)
            .map(|name| one_line(name, NAME_CHARS))
            .collect()
    }
}

fn exec_status(exec: &ExecOutcome, fields: &mut Fields) -> ExecStatus {
    let stacks = exec
        .stacks
        .as_ref()
        .and_then(|stacks| public_stacks(stacks, fields));
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
            type_name: fields.line("exec.exception.type", &exception.type_name, 256),
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
        imported: fields.names("exec.imported", &exec.imported),
        signals: fields.names("exec.signals", &exec.signals),
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
        note(target, "data", json_bytes(&data));
    }
    let stacks = target.exec.as_mut().and_then(|exec| exec.stacks.take());
    if let Some(stacks) = stacks {
        note(target, "exec.stacks", json_bytes(&stacks));
    }
}

pub(super) fn drop_text(target: &mut TargetStatus) {
    let mut taken = vec![("text", target.text.take())];
    if let Some(exec) = &mut target.exec {
        taken.extend([
            ("exec.stdout", exec.stdout.take()),
            ("exec.stderr", exec.stderr.take()),
            ("exec.value", exec.value.take()),
            ("exec.valueJSON", exec.value_json.take()),
        ]);
        if let Some(exception) = &mut exec.exception {
            taken.extend([
                (
                    "exec.exception.message",
                    Some(std::mem::take(&mut exception.message)),
                ),
                (
                    "exec.exception.traceback",
                    Some(std::mem::take(&mut exception.traceback)),
                ),
            ]);
        }
    }
    for (path, text) in taken {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            note(target, path, text.len());
        }
    }
}

pub(super) fn drop_lists(target: &mut TargetStatus) {
    let Some(exec) = &mut target.exec else {
        return;
    };
    exec.clipped.clear();
    let taken = [
        ("exec.imported", std::mem::take(&mut exec.imported)),
        ("exec.signals", std::mem::take(&mut exec.signals)),
    ];
    for (path, list) in taken {
        if !list.is_empty() {
            note(target, path, json_bytes(&list));
        }
    }
}

/// Leaves so many characters of the words that are not the summary.
pub(super) fn shorten(target: &mut TargetStatus, chars: usize) {
    for path in ["message", "command"] {
        let field = if path == "message" {
            &mut target.message
        } else {
            &mut target.command
        };
        let Some(text) = field.take() else {
            continue;
        };
        if text.chars().nth(chars).is_none() {
            *field = Some(text);
            continue;
        }
        if chars > 0 {
            *field = Some(one_line(&text, chars));
        }
        note(target, path, text.len());
    }
}

/// Notes the size of what was taken out; what was cut before has its full size already.
fn note(target: &mut TargetStatus, path: &str, bytes: usize) {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    target.clipped.entry(path.to_owned()).or_insert(bytes);
}
