//! The whole answer of a session: from its status, or from the Secrets that hold what is too large or too sensitive.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sidewinder_crds::names::RESULT_SECRET_TYPE;
use sidewinder_crds::{DebugSession, ResultRef, TargetStatus};
use sidewinder_model::{Data, TargetOutcome};

use crate::cache;

/// The structured answer of a target, in the shape that the sidecar's own commands print.
///
/// # Errors
/// When there is none, or the Secrets do not hold what the status says.
pub async fn data(client: &Client, session: &DebugSession, target: &TargetStatus) -> Result<Value> {
    if let Some(data) = &target.data {
        return Ok(data.clone());
    }
    let Some(result) = &target.result else {
        let exec = target
            .exec
            .as_ref()
            .context("the target has no data, no exec and no result")?;
        return Ok(serde_json::to_value(exec)?);
    };
    let document = match whole(client, session, result)
        .await?
        .data
        .context("the result has no data")?
    {
        Data::Processes(document) => serde_json::to_value(document),
        Data::Stacks(document) => serde_json::to_value(document),
        Data::Tasks(document) => serde_json::to_value(document),
        Data::Exec(document) => serde_json::to_value(document),
    };
    document.context("cannot write the answer as JSON")
}

/// What a person reads of a target's answer, whole.
///
/// # Errors
/// When the Secrets do not hold what the status says.
pub async fn text(
    client: &Client,
    session: &DebugSession,
    target: &TargetStatus,
) -> Result<String> {
    match (&target.text, &target.result) {
        (Some(text), _) if !target.clipped.contains_key("text") => Ok(text.clone()),
        (_, Some(result)) => Ok(whole(client, session, result).await?.text),
        (text, None) => text
            .clone()
            .context("the target has neither text nor result"),
    }
}

/// The outcome that a target's `result` refers to, checked against its size and digest.
///
/// # Errors
/// When a Secret is missing, of another type, mutable or not owned by the session, or the document is not what the
/// status says.
pub async fn whole(
    client: &Client,
    session: &DebugSession,
    result: &ResultRef,
) -> Result<TargetOutcome> {
    let namespace = session
        .namespace()
        .context("the session has no namespace")?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let mut compressed = Vec::new();
    for part in &result.parts {
        let secret = secrets
            .get(&part.secret_name)
            .await
            .with_context(|| format!("cannot read {part:?}"))?;
        ensure!(
            secret.type_.as_deref() == Some(RESULT_SECRET_TYPE),
            "{part:?} is of type {:?}",
            secret.type_
        );
        ensure!(secret.immutable == Some(true), "{part:?} is not immutable");
        let owned = secret
            .owner_references()
            .iter()
            .any(|owner| Some(&owner.uid) == session.metadata.uid.as_ref());
        ensure!(owned, "{part:?} is not owned by the session");
        let bytes = secret.data.as_ref().and_then(|data| data.get(&part.key));
        compressed.extend_from_slice(
            &bytes
                .with_context(|| format!("{part:?} has no such key"))?
                .0,
        );
    }
    ensure!(
        result.encoding == "zstd",
        "the encoding is {}",
        result.encoding
    );
    let bytes =
        zstd::stream::decode_all(compressed.as_slice()).context("the parts are no zstd stream")?;
    let size = i64::try_from(bytes.len())?;
    ensure!(
        size == result.size_bytes,
        "the result has {size} bytes, the status says {}",
        result.size_bytes
    );
    let digest = sha256(&bytes);
    ensure!(
        digest == result.sha256,
        "the result's digest is {digest}, the status says {}",
        result.sha256
    );
    serde_json::from_slice(&bytes).context("the result is no outcome")
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    cache::hex(&Sha256::digest(bytes))
}
