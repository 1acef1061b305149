//! Writes. Each may happen twice.

use axum::http::HeaderValue;
use axum::http::header::ACCEPT;
use k8s_openapi::api::core::v1::{EphemeralContainer, Pod, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{PartialObjectMeta, Request, Status};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use sidewinder_crds::names::FIELD_MANAGER;
use sidewinder_crds::{DebugSession, DebugSessionStatus};
use sidewinder_model::Reason;

use crate::error::{Error, patiently};
use crate::faults::{self, Point};
use crate::fences::words::way_out;
use crate::inject::{self, Refusal};

/// What came of adding a container.
#[derive(Debug)]
pub enum Injected {
    /// It stands in the pod.
    Added {
        /// The pod as it is now.
        pod: Box<Pod>,
        /// Whether this call added it: somebody may have done so since the pod was looked at.
        new: bool,
    },
    /// Somebody or something does not let it in.
    Refused(Refusal),
    /// The pod is not the one that was looked at any more: look again.
    Changed,
}

/// Adds `container` to `pod`, after a dry-run that tells whether it would be let in.
///
/// # Errors
/// When the API server does not answer, or answers something that is neither yes nor no.
pub async fn inject(
    client: &Client,
    pod: &Pod,
    container: &EphemeralContainer,
) -> Result<Injected, Error> {
    // A patch that changes nothing leaves the version as it is.
    let before = match dry_run(client, pod, container).await? {
        (Admission::Admitted, version) => version,
        (Admission::Unknown(_), _) => pod.resource_version(),
        (Admission::Refused(refusal), _) => return Ok(Injected::Refused(refusal)),
        (Admission::Changed, _) => return Ok(Injected::Changed),
    };
    faults::at(Point::Admitted).await;
    let patched = patch(client, pod, container, false).await;
    faults::at(Point::Patched).await;
    match patched {
        Ok(pod) => Ok(Injected::Added {
            new: before.is_none() || before != pod.resource_version(),
            pod: Box::new(pod),
        }),
        Err(error) => match error.api().map(judge) {
            Some(Verdict::Changed) => Ok(Injected::Changed),
            Some(Verdict::Refused(refusal)) => Ok(Injected::Refused(refusal)),
            Some(Verdict::NoDryRun) | None => Err(error),
        },
    }
}

/// What a dry-run says about adding a container.
#[derive(Debug)]
pub enum Admission {
    /// It would stand in the pod as it is.
    Admitted,
    /// A webhook cannot say, in the server's words: only trying tells.
    Unknown(String),
    /// Somebody or something would not let it in.
    Refused(Refusal),
    /// The pod is not the one that was looked at any more: look again.
    Changed,
}

/// Asks whether `container` would be let into `pod`. Changes nothing.
///
/// # Errors
/// When the API server does not answer, or answers something that is neither yes nor no.
pub async fn admits(
    client: &Client,
    pod: &Pod,
    container: &EphemeralContainer,
) -> Result<Admission, Error> {
    Ok(dry_run(client, pod, container).await?.0)
}

/// What a dry-run says, and the version of the pod that it was made on.
async fn dry_run(
    client: &Client,
    pod: &Pod,
    container: &EphemeralContainer,
) -> Result<(Admission, Option<String>), Error> {
    let admission = match patch(client, pod, container, true).await {
        Ok(would_be) => {
            let kept = find(&would_be, &container.name);
            if kept.is_some_and(|kept| inject::same_spec(kept, container)) {
                return Ok((Admission::Admitted, would_be.resource_version()));
            }
            Ok(Admission::Refused(Refusal::new(
                Reason::AdmissionForbidden,
                "an admission webhook or policy would change the sidecar's container, which is then not used; except ephemeral containers named sidewinder-* from it",
            )))
        }
        Err(error) => match error.api().map(|status| (judge(status), status)) {
            Some((Verdict::NoDryRun, status)) => Ok(Admission::Unknown(status.message.clone())),
            Some((Verdict::Changed, _)) => Ok(Admission::Changed),
            Some((Verdict::Refused(refusal), _)) => Ok(Admission::Refused(refusal)),
            None => Err(error),
        },
    };
    Ok((admission?, None))
}

fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a EphemeralContainer> {
    pod.spec
        .as_ref()?
        .ephemeral_containers
        .as_ref()?
        .iter()
        .find(|container| container.name == name)
}

/// A strategic merge patch adds by name without knowing the others, and a repeat is no change. The UID keeps it from
/// a pod of the same name that came later.
async fn patch(
    client: &Client,
    pod: &Pod,
    container: &EphemeralContainer,
    dry_run: bool,
) -> Result<Pod, Error> {
    let namespace = pod.namespace().unwrap_or_default();
    let name = pod.name_any();
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let params = PatchParams {
        dry_run,
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let body = Patch::Strategic(json!({
        "metadata": {"uid": pod.uid()},
        "spec": {"ephemeralContainers": [container]},
    }));
    patiently(
        || {
            format!(
                "add ephemeral container {} to pod {namespace}/{name}",
                container.name
            )
        },
        || api.patch_ephemeral_containers(&name, &params, &body),
    )
    .await
}

/// What a refused patch means.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Refused(Refusal),
    Changed,
    NoDryRun,
}

fn judge(status: &Status) -> Verdict {
    let words = &status.message;
    let refused = |reason| Verdict::Refused(Refusal::new(reason, way_out(reason, words)));
    if words.contains("does not support dry run") {
        return Verdict::NoDryRun;
    }
    if words.contains("violates PodSecurity") {
        return refused(Reason::PodSecurityForbidden);
    }
    if words.contains("static pods do not support") {
        return refused(Reason::StaticPod);
    }
    match status.code {
        404 | 409 => Verdict::Changed,
        422 if words.contains("may not be changed")
            || words.contains("may not be removed")
            || words.contains("Precondition failed")
            || words.contains("metadata.uid") =>
        {
            Verdict::Changed
        }
        403 => refused(Reason::AdmissionForbidden),
        _ if words.contains("admission webhook")
            || words.contains("calling webhook")
            || words.contains("ValidatingAdmissionPolicy") =>
        {
            refused(Reason::AdmissionForbidden)
        }
        _ => refused(Reason::SidecarFailed),
    }
}

/// What came of a write of the status.
#[derive(Debug)]
pub enum Written {
    /// It stands; the session as it is now.
    Done(Box<DebugSession>),
    /// Somebody else wrote meanwhile.
    Conflict,
    /// The session is gone.
    Gone,
}

/// Writes the status, if the session still is as `session` says (UID and resource version).
///
/// # Errors
/// When the API server does not take it.
pub async fn status(
    client: &Client,
    session: &DebugSession,
    status: &DebugSessionStatus,
) -> Result<Written, Error> {
    let namespace = session.namespace().unwrap_or_default();
    let name = session.name_any();
    let api: Api<DebugSession> = Api::namespaced(client.clone(), &namespace);
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let body = Patch::Merge(json!({
        "metadata": {"uid": session.uid(), "resourceVersion": session.resource_version()},
        "status": status,
    }));
    let answer = patiently(
        || format!("write the status of session {namespace}/{name}"),
        || api.patch_status(&name, &params, &body),
    )
    .await;
    match answer {
        Ok(written) => Ok(Written::Done(Box::new(written))),
        Err(error) => match error.code() {
            Some(404) => Ok(Written::Gone),
            Some(409) => Ok(Written::Conflict),
            _ => Err(error),
        },
    }
}

/// The answer to a create, without what was sent.
const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// Creates a Secret whose name says what is in it: one that exists already is the same.
///
/// # Errors
/// When the API server refuses it.
pub async fn secret(client: &Client, secret: Secret) -> Result<(), Error> {
    let namespace = secret.namespace().unwrap_or_default();
    let name = secret.name_any();
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let url = Secret::url_path(&(), Some(&namespace));
    let body = serde_json::to_vec(&secret)
        .map_err(kube::Error::SerdeError)
        .map_err(|source| Error::Kube {
            what: format!("write Secret {namespace}/{name} as JSON"),
            source: Box::new(source),
        })?;
    // A part is up to 768 KiB, and stands in the body already.
    drop(secret);
    faults::at(Point::Secret).await;
    let answer = patiently(
        || format!("create Secret {namespace}/{name}"),
        || async {
            let mut request = Request::new(&url)
                .create(&params, body.clone())
                .map_err(kube::Error::BuildRequest)?;
            request
                .headers_mut()
                .insert(ACCEPT, HeaderValue::from_static(METADATA_ONLY));
            client.request::<PartialObjectMeta<Secret>>(request).await
        },
    )
    .await;
    faults::at(Point::SecretStored).await;
    match answer {
        Ok(_) => Ok(()),
        Err(error)
            if error
                .api()
                .is_some_and(|status| status.code == 409 && status.reason == "AlreadyExists") =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Deletes a session whose time is up, and not one of its name that came later.
///
/// # Errors
/// When the API server refuses it.
pub async fn delete(
    client: &Client,
    namespace: &str,
    name: &str,
    uid: Option<&str>,
) -> Result<(), Error> {
    let api: Api<DebugSession> = Api::namespaced(client.clone(), namespace);
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: uid.map(str::to_owned),
            resource_version: None,
        }),
        ..DeleteParams::background()
    };
    let answer = patiently(
        || format!("delete session {namespace}/{name}"),
        || async { api.delete(name, &params).await.map(|_| ()) },
    )
    .await;
    match answer {
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
