//! What a decision needs, read from the API server.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, ListParams};
use kube::core::Selector;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use sha2::{Digest, Sha256};
use sidewinder_crds::{DebugSession, RemoteExec};
use sidewinder_model::{MAX_SCRIPT_BYTES, Reason};

use super::result::spill::hex;
use super::targets::Candidate;
use crate::error::{Error, patiently};
use crate::inject::Refusal;

/// How many pods are read at a time: whole ones, of which only a few words are kept.
const PAGE: u32 = 100;

/// The session of a name.
pub async fn session_named(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<DebugSession>, Error> {
    let api: Api<DebugSession> = Api::namespaced(client.clone(), namespace);
    patiently(
        || format!("read session {namespace}/{name}"),
        || api.get_opt(name),
    )
    .await
}

/// The session as it is now; `None` when it is gone or another one of its name.
pub async fn session(client: &Client, known: &DebugSession) -> Result<Option<DebugSession>, Error> {
    let namespace = known.namespace().unwrap_or_default();
    let found = session_named(client, &namespace, &known.name_any()).await?;
    Ok(found.filter(|found| found.uid() == known.uid()))
}

/// The pod of a name.
pub async fn pod(client: &Client, namespace: &str, name: &str) -> Result<Option<Pod>, Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    patiently(
        || format!("read pod {namespace}/{name}"),
        || api.get_opt(name),
    )
    .await
}

/// What choosing needs to know of the pods that match `selector`, or why the API server does not take it.
pub async fn candidates(
    client: &Client,
    namespace: &str,
    selector: &Selector,
) -> Result<Result<Vec<Candidate>, Refusal>, Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut params = ListParams::default().labels_from(selector).limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = patiently(
            || format!("list the pods of {selector} in namespace {namespace}"),
            || api.list(&params),
        )
        .await;
        let page = match page {
            Ok(page) => page,
            Err(error) if error.code() == Some(400) => {
                let words = error.api().map_or("", |status| status.message.as_str());
                return Ok(Err(Refusal::new(
                    Reason::PodNotFound,
                    format!("the selector cannot be used: {words}"),
                )));
            }
            // The list is older than the API server remembers: begin anew.
            Err(error) if error.code() == Some(410) && params.continue_token.is_some() => {
                params.continue_token = None;
                found.clear();
                continue;
            }
            Err(error) => return Err(error),
        };
        found.extend(page.items.iter().map(Candidate::of));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(Ok(found)),
        }
    }
}

/// The pod that a session names, now and after each change. Watches this one pod and no other.
pub fn pod_changes(client: &Client, session: &DebugSession) -> BoxStream<'static, Option<Pod>> {
    let namespace = session.namespace().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let fields = format!("metadata.name={}", session.spec.pod_name());
    watcher(api, watcher::Config::default().fields(&fields))
        .default_backoff()
        .scan(false, |seen, event| {
            let change = match event {
                Ok(watcher::Event::Init) => {
                    *seen = false;
                    None
                }
                Ok(watcher::Event::InitApply(pod) | watcher::Event::Apply(pod)) => {
                    *seen = true;
                    Some(Some(pod))
                }
                Ok(watcher::Event::Delete(_)) => Some(None),
                Ok(watcher::Event::InitDone) if !*seen => Some(None),
                // After an error the watcher starts again by itself, after a pause.
                Ok(watcher::Event::InitDone) | Err(_) => None,
            };
            std::future::ready(Some(change))
        })
        .filter_map(std::future::ready)
        .boxed()
}

/// The script of a `remoteExec`: its text, or why there is none. `None` for every other action.
///
/// A ConfigMap is read once, when the session is taken up: the digest goes into the status, and other bytes than
/// those never run.
pub async fn script(
    client: &Client,
    session: &DebugSession,
) -> Result<Option<Result<Arc<str>, Refusal>>, Error> {
    let Some(exec) = &session.spec.remote_exec else {
        return Ok(None);
    };
    let refused = |message: String| Some(Err(Refusal::new(Reason::ScriptNotFound, message)));
    let script = match exec {
        RemoteExec {
            script: Some(script),
            ..
        } => script.clone(),
        RemoteExec {
            script_from: Some(source),
            ..
        } => {
            let key = &source.config_map_key_ref;
            let namespace = session.namespace().unwrap_or_default();
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
            let found = patiently(
                || format!("read ConfigMap {namespace}/{}", key.name),
                || api.get_opt(&key.name),
            )
            .await;
            let map = match found {
                Ok(Some(map)) => map,
                Ok(None) => {
                    return Ok(refused(format!(
                        "there is no ConfigMap {} in namespace {namespace}",
                        key.name
                    )));
                }
                Err(error) if error.code() == Some(403) => {
                    return Ok(refused(format!(
                        "the operator may not read ConfigMap {} in namespace {namespace}: {}",
                        key.name,
                        error.api().map_or("", |status| status.message.as_str())
                    )));
                }
                Err(error) => return Err(error),
            };
            let data = map.data.unwrap_or_default();
            if map.binary_data.unwrap_or_default().contains_key(&key.key) {
                return Ok(refused(format!(
                    "key {} of ConfigMap {} holds binary data: a script is UTF-8 text",
                    key.key, key.name
                )));
            }
            let Some(script) = data.get(&key.key) else {
                let keys: Vec<_> = data.keys().map(String::as_str).collect();
                return Ok(refused(format!(
                    "ConfigMap {} has no key {} (it has: {})",
                    key.name,
                    key.key,
                    if keys.is_empty() {
                        "none".to_owned()
                    } else {
                        keys.join(", ")
                    }
                )));
            };
            script.clone()
        }
        _ => return Ok(refused("the session names no script".to_owned())),
    };
    if script.len() > MAX_SCRIPT_BYTES {
        return Ok(refused(format!(
            "the script has {} bytes, more than {MAX_SCRIPT_BYTES}",
            script.len()
        )));
    }
    let accepted = session
        .status
        .as_ref()
        .and_then(|status| status.script_sha256.as_deref());
    if accepted.is_some_and(|accepted| accepted != digest(&script)) {
        return Ok(refused(
            "the ConfigMap changed after the session was accepted; only the accepted script may run: create a new DebugSession"
                .to_owned(),
        ));
    }
    Ok(Some(Ok(script.into())))
}

/// SHA-256 of a script, as it stands in the status.
pub fn digest(script: &str) -> String {
    hex(&Sha256::digest(script.as_bytes()))
}
