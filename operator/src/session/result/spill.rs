//! Whole outcomes as compressed documents in Secrets that the session owns.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use kube::{Resource, ResourceExt};
use sha2::{Digest, Sha256};
use sidewinder_crds::names::{
    APP, APP_LABEL, RESULT_SECRET_KEY, RESULT_SECRET_TYPE, SESSION_UID_LABEL,
};
use sidewinder_crds::{DebugSession, ResultPart, ResultRef};
use sidewinder_model::{Data, TargetOutcome};

use super::FIELD_BYTES;
use super::clip::clip_text;

/// The largest document of one target, in bytes of JSON.
pub const DOCUMENT_BYTES: usize = 16 * 1024 * 1024;
/// The most bytes in one Secret.
pub const PART_BYTES: usize = 768 * 1024;
/// zstd's default: results are text, and the operator is in a hurry.
const LEVEL: i32 = 3;

/// One target's whole outcome as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The JSON.
    pub json: Vec<u8>,
    /// Whether it had to be cut at [`DOCUMENT_BYTES`].
    pub truncated: bool,
}

impl Document {
    /// The whole outcome, or as much of it as [`DOCUMENT_BYTES`] hold.
    pub fn of(outcome: &TargetOutcome) -> Self {
        Self::within(outcome, DOCUMENT_BYTES)
    }

    pub(super) fn within(outcome: &TargetOutcome, limit: usize) -> Self {
        let encode = |outcome: &TargetOutcome| serde_json::to_vec(outcome).unwrap_or_default();
        let json = encode(outcome);
        if json.len() <= limit {
            return Self {
                json,
                truncated: false,
            };
        }
        let mut outcome = outcome.clone();
        if let Some(Data::Exec(_)) = &outcome.data {
            // It repeats the output that stands in the data: without it nothing is lost.
            outcome.text = clip_text(&outcome.text, FIELD_BYTES);
            let json = encode(&outcome);
            if json.len() <= limit {
                return Self {
                    json,
                    truncated: false,
                };
            }
        }
        for text in [
            &mut outcome.message,
            &mut outcome.command,
            &mut outcome.summary,
            &mut outcome.python,
        ] {
            *text = clip_text(text, limit / 64);
        }
        // JSON writes a byte as up to six, and there are several texts: each round keeps of them what the last one showed
        // to fit, and at least a quarter less than before.
        let mut field = limit / 8 * 7;
        loop {
            outcome.text = clip_text(&outcome.text, field);
            if let Some(Data::Exec(exec)) = &mut outcome.data {
                exec.stdout = clip_text(&exec.stdout, field);
                exec.stderr = clip_text(&exec.stderr, field);
                exec.value = exec.value.take().map(|text| clip_text(&text, field));
                // Half of a JSON text is none.
                exec.value_json = exec.value_json.take().filter(|text| text.len() <= field);
                if let Some(exception) = &mut exec.exception {
                    exception.message = clip_text(&exception.message, field);
                    exception.traceback = clip_text(&exception.traceback, field);
                }
            }
            let json = encode(&outcome);
            if json.len() <= limit {
                return Self {
                    json,
                    truncated: true,
                };
            }
            let fits = field as u128 * limit as u128 / (json.len() as u128).max(1);
            field = usize::try_from(fits).unwrap_or(field).min(field / 4 * 3);
            if field < limit / 64 {
                outcome.data = None;
            }
        }
    }

    /// The Secrets that hold the document, and the reference to them.
    ///
    /// # Errors
    /// When the document cannot be compressed.
    pub fn secrets(&self, session: &DebugSession) -> std::io::Result<(Vec<Secret>, ResultRef)> {
        let compressed = zstd::bulk::compress(&self.json, LEVEL)?;
        let digest = hex(&Sha256::digest(&compressed));
        let mut secrets = Vec::new();
        let mut parts = Vec::new();
        for (number, part) in compressed.chunks(PART_BYTES).enumerate() {
            let name = secret_name(session, &digest, number);
            secrets.push(secret(session, &name, part));
            parts.push(ResultPart {
                secret_name: name,
                key: RESULT_SECRET_KEY.to_owned(),
            });
        }
        let reference = ResultRef {
            size_bytes: i64::try_from(self.json.len()).unwrap_or(i64::MAX),
            sha256: hex(&Sha256::digest(&self.json)),
            encoding: "zstd".to_owned(),
            truncated: self.truncated,
            parts,
        };
        Ok((secrets, reference))
    }
}

/// The name says what is inside, so that storing twice is storing once. It also says whose it is: a session of the
/// same name that came later must not take over what is being removed with the earlier one.
fn secret_name(session: &DebugSession, digest: &str, number: usize) -> String {
    let uid: String = session
        .uid()
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(8)
        .collect();
    let digest = digest.get(..16).unwrap_or(digest);
    let tail = format!("-{uid}-{digest}-{number}");
    let name = session.name_any();
    // An object's name is ASCII and at most 253 bytes long.
    let head: String = name
        .chars()
        .take(253_usize.saturating_sub(tail.len()))
        .collect();
    format!("{}{tail}", head.trim_end_matches(['-', '.']))
}

fn secret(session: &DebugSession, name: &str, part: &[u8]) -> Secret {
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
            ByteString(part.to_vec()),
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
