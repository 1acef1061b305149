//! Whole outcomes as compressed documents in Secrets that the session owns.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use sidewinder_crds::names::{
    APP, APP_LABEL, RESULT_SECRET_KEY, RESULT_SECRET_TYPE, SESSION_UID_LABEL,
};
use sidewinder_crds::{DebugSession, ResultPart, ResultRef};
use sidewinder_model::{Data, ExecOutcome, Reason, Stacks, TargetOutcome, Wake};

use super::FIELD_BYTES;
use super::clip::Clipped;

/// The largest document of one target unless a setting says otherwise, in bytes of JSON.
pub const DOCUMENT_BYTES: usize = 16 * 1024 * 1024;
/// The smallest that the setting may ask for: a document that is cut keeps its entry's other fields.
pub const MIN_DOCUMENT_BYTES: usize = 64 * 1024;
/// The most bytes in one Secret.
pub const PART_BYTES: usize = 768 * 1024;
/// zstd's default: results are text, and the operator is in a hurry.
const LEVEL: i32 = 3;
/// How much JSON is handed to the compressor at a time.
const PIECE_BYTES: usize = 64 * 1024;
/// How much of the session's name begins the names of its Secrets: the status repeats them, and holds many.
const HEAD_BYTES: usize = 63;

/// What was written of one target's outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of JSON before compression.
    pub size: u64,
    /// SHA-256 of that JSON.
    pub sha256: String,
    /// Whether it had to be cut at the limit.
    pub truncated: bool,
}

/// Writes the whole outcome as compressed JSON, or as much of it as `limit` bytes of JSON hold. `part` is given one
/// piece of at most [`PART_BYTES`] after the other, as soon as it is full: nothing else of the document is in memory.
///
/// The same outcome gives the same parts, as long as zstd is the same. Where an operator of another release stores it
/// again after a crash, a second set of parts may appear beside the first; both are the session's and go with it.
///
/// # Errors
/// When `part` fails, or the document cannot be compressed.
pub fn write(
    outcome: &TargetOutcome,
    limit: usize,
    part: impl FnMut(Vec<u8>) -> io::Result<()>,
) -> io::Result<Written> {
    let (cut, size) = fitting(outcome, limit)?;
    let parts = Parts {
        part,
        bytes: Vec::new(),
    };
    let mut compressor = zstd::stream::write::Encoder::new(parts, LEVEL)?;
    // A small document needs a small compressor, and a reader learns how much memory to have ready.
    compressor.set_pledged_src_size(Some(size))?;
    let mut json = Digesting {
        inner: BufWriter::with_capacity(PIECE_BYTES, compressor),
        digest: Sha256::new(),
        size: 0,
    };
    serde_json::to_writer(&mut json, &Cut { outcome, cut })?;
    let (digest, size) = (json.digest, json.size);
    let compressor = json.inner.into_inner().map_err(io::Error::from)?;
    compressor.finish()?.finish()?;
    Ok(Written {
        size,
        sha256: hex(&digest.finalize()),
        truncated: cut.loses(),
    })
}

/// Bytes of `value` as JSON, without having them.
pub(super) fn json_bytes<T: Serialize + ?Sized>(value: &T) -> usize {
    let mut counted = Counting(0);
    match serde_json::to_writer(&mut counted, value) {
        Ok(()) => counted.0,
        Err(_) => usize::MAX,
    }
}

/// How much of an outcome fits into `limit`, and its size.
fn fitting(outcome: &TargetOutcome, limit: usize) -> io::Result<(Keep, u64)> {
    let size = |cut: Keep| json_bytes(&Cut { outcome, cut });
    let fits = |cut: Keep, size: usize| (cut, size as u64);
    let whole = size(Keep::Everything);
    if whole == usize::MAX {
        return Err(io::Error::other("the outcome cannot be written as JSON"));
    }
    if whole <= limit {
        return Ok(fits(Keep::Everything, whole));
    }
    if matches!(outcome.data, Some(Data::Exec(_))) {
        let once = size(Keep::Once);
        if once <= limit {
            return Ok(fits(Keep::Once, once));
        }
    }
    // A document that does not fit beside texts that are cut as far as they ever are is left out, and the texts stay.
    let line = limit / 64;
    let ends = |field: usize, data: bool| Keep::Ends { field, line, data };
    let data = size(ends(line, true)) <= limit;
    // JSON writes a byte as up to six, and there are several texts: each round keeps of them what the last one showed to
    // fit, and at least a quarter less than before.
    let mut field = limit / 8 * 7;
    loop {
        let cut = ends(field, data);
        let bytes = size(cut);
        if bytes <= limit || field == 0 {
            return Ok(fits(cut, bytes));
        }
        let fitting = field as u128 * limit as u128 / (bytes as u128).max(1);
        field = usize::try_from(fitting).unwrap_or(field).min(field / 4 * 3);
        if data {
            field = field.max(line);
        }
    }
}

/// How much of an outcome is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    Everything,
    /// Output only in the data, which the text repeats: nothing is lost.
    Once,
    /// Of each text its ends.
    Ends {
        field: usize,
        line: usize,
        data: bool,
    },
}

impl Keep {
    fn loses(self) -> bool {
        matches!(self, Self::Ends { .. })
    }
}

/// An outcome as it is written, without a copy of it.
struct Cut<'a> {
    outcome: &'a TargetOutcome,
    cut: Keep,
}

impl Serialize for Cut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (text, field, line, data) = match self.cut {
            Keep::Everything => return self.outcome.serialize(serializer),
            Keep::Once => (FIELD_BYTES, usize::MAX, usize::MAX, true),
            Keep::Ends { field, line, data } => (field, field, line, data),
        };
        // A new field of the model does not compile without a word about how it is cut.
        let TargetOutcome {
            pid,
            command,
            python,
            reason,
            message,
            summary,
            paused_microseconds,
            duration_milliseconds,
            disarmed,
            text: whole,
            data: document,
        } = self.outcome;
        CutTarget {
            pid: *pid,
            command: Clipped::new(command, line),
            python: Clipped::new(python, line),
            reason: *reason,
            message: Clipped::new(message, line),
            summary: Clipped::new(summary, line),
            paused_microseconds: *paused_microseconds,
            duration_milliseconds: *duration_milliseconds,
            disarmed: *disarmed,
            text: Clipped::new(whole, text),
            data: document
                .as_ref()
                .filter(|_| data)
                .map(|document| match document {
                    Data::Exec(exec) => CutData::Exec(Box::new(CutExec::new(exec, field))),
                    other => CutData::Other(other),
                }),
        }
        .serialize(serializer)
    }
}

/// [`TargetOutcome`] with its texts cut.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CutTarget<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    command: Clipped<'a>,
    python: Clipped<'a>,
    reason: Reason,
    message: Clipped<'a>,
    summary: Clipped<'a>,
    paused_microseconds: u64,
    duration_milliseconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    disarmed: Option<bool>,
    text: Clipped<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<CutData<'a>>,
}

/// [`Data`] with its texts cut.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum CutData<'a> {
    Exec(Box<CutExec<'a>>),
    #[serde(untagged)]
    Other(&'a Data),
}

/// [`ExecOutcome`] with its texts cut.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CutExec<'a> {
    stdout: Clipped<'a>,
    stderr: Clipped<'a>,
    value: Option<Clipped<'a>>,
    #[serde(rename = "valueJSON")]
    value_json: Option<&'a str>,
    exception: Option<CutException<'a>>,
    thread: Option<u64>,
    wake: Wake,
    started_after_milliseconds: Option<u64>,
    duration_milliseconds: u64,
    still_running: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    watched: bool,
    imported: &'a [String],
    signals: &'a [String],
    clipped: &'a BTreeMap<String, u64>,
    disarmed: bool,
    reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stacks: Option<&'a Stacks>,
}

/// [`sidewinder_model::ScriptException`] with its texts cut.
#[derive(Serialize)]
struct CutException<'a> {
    #[serde(rename = "type")]
    type_name: Clipped<'a>,
    message: Clipped<'a>,
    traceback: Clipped<'a>,
}

impl<'a> CutExec<'a> {
    fn new(exec: &'a ExecOutcome, field: usize) -> Self {
        let ExecOutcome {
            stdout,
            stderr,
            value,
            value_json,
            exception,
            thread,
            wake,
            started_after_milliseconds,
            duration_milliseconds,
            still_running,
            watched,
            imported,
            signals,
            clipped,
            disarmed,
            reason,
            stacks,
        } = exec;
        Self {
            stdout: Clipped::new(stdout, field),
            stderr: Clipped::new(stderr, field),
            value: value.as_deref().map(|value| Clipped::new(value, field)),
            // Half of a JSON text is none.
            value_json: value_json.as_deref().filter(|text| text.len() <= field),
            exception: exception.as_ref().map(|exception| CutException {
                type_name: Clipped::new(&exception.type_name, field),
                message: Clipped::new(&exception.message, field),
                traceback: Clipped::new(&exception.traceback, field),
            }),
            thread: *thread,
            wake: *wake,
            started_after_milliseconds: *started_after_milliseconds,
            duration_milliseconds: *duration_milliseconds,
            still_running: *still_running,
            watched: *watched,
            imported,
            signals,
            clipped,
            disarmed: *disarmed,
            reason: *reason,
            stacks: stacks.as_ref(),
        }
    }
}

/// Counts what is written.
struct Counting(usize);

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Digests and counts what is written.
struct Digesting<W> {
    inner: W,
    digest: Sha256,
    size: u64,
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.digest.update(bytes.get(..count).unwrap_or_default());
        self.size = self.size.saturating_add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Cuts what is written into parts.
struct Parts<F> {
    part: F,
    bytes: Vec<u8>,
}

impl<F: FnMut(Vec<u8>) -> io::Result<()>> Parts<F> {
    fn finish(mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        (self.part)(self.bytes)
    }
}

impl<F: FnMut(Vec<u8>) -> io::Result<()>> Write for Parts<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PART_BYTES.saturating_sub(self.bytes.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.bytes.extend_from_slice(taken);
        if self.bytes.len() >= PART_BYTES {
            (self.part)(std::mem::take(&mut self.bytes))?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The Secret that holds one part, by its number, and the reference to it.
pub fn part(session: &DebugSession, number: usize, bytes: Vec<u8>) -> (Secret, ResultPart) {
    let name = secret_name(session, &hex(&Sha256::digest(&bytes)), number);
    let secret = secret(session, &name, bytes);
    let reference = ResultPart {
        secret_name: name,
        key: RESULT_SECRET_KEY.to_owned(),
    };
    (secret, reference)
}

/// The reference to a document that was written, for the status.
pub fn reference(written: Written, parts: Vec<ResultPart>) -> ResultRef {
    ResultRef {
        size_bytes: i64::try_from(written.size).unwrap_or(i64::MAX),
        sha256: written.sha256,
        encoding: "zstd".to_owned(),
        truncated: written.truncated,
        parts,
    }
}

/// The name says what is inside, so that storing twice is storing once and a name that is taken needs no look at what
/// has it: the operator has no right to read Secrets. It also says whose it is: a session of the same name that came
/// later must not take over what is being removed with the earlier one.
///
/// Who may create Secrets in the namespace could take the name first, but would have to know the digest of bytes that
/// nobody has seen, durations and addresses among them. If they do, nothing of theirs is believed: the status says the
/// digest of the whole, and whoever reads a result compares it.
fn secret_name(session: &DebugSession, digest: &str, number: usize) -> String {
    let uid: String = session
        .uid()
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(8)
        .collect();
    let digest = digest.get(..16).unwrap_or(digest);
    // An object's name is ASCII.
    let head: String = session.name_any().chars().take(HEAD_BYTES).collect();
    let head = head.trim_end_matches(['-', '.']);
    format!("{head}-{uid}-{digest}-{number}")
}

fn secret(session: &DebugSession, name: &str, part: Vec<u8>) -> Secret {
    let labels = BTreeMap::from([
        (APP_LABEL.to_owned(), APP.to_owned()),
        (
            SESSION_UID_LABEL.to_owned(),
            session.uid().unwrap_or_default(),
        ),
    ]);
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: session.namespace(),
            labels: Some(labels),
            owner_references: Some(vec![OwnerReference {
                api_version: DebugSession::api_version(&()).into_owned(),
                kind: DebugSession::kind(&()).into_owned(),
                name: session.name_any(),
                uid: session.uid().unwrap_or_default(),
                controller: Some(true),
                // Setting it needs the right to update the session's finalizers (OwnerReferencesPermissionEnforcement).
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        type_: Some(RESULT_SECRET_TYPE.to_owned()),
        immutable: Some(true),
        data: Some(BTreeMap::from([(
            RESULT_SECRET_KEY.to_owned(),
            ByteString(part),
        )])),
        ..Secret::default()
    }
}

/// Hexadecimal digits, lower case.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
