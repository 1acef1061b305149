//! An API server in memory, and the objects that tests put into it.

mod agents;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body as Answer;
use http::{Method, Request, Response};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use sidewinder_crds::DebugSession;
use tokio::sync::watch;

pub(crate) use self::agents::Agents;
use crate::fences::policies::{Own, Policies};
use crate::fences::review::Reviewer;
use crate::fences::settings::Settings;
use crate::fences::slots::Slots;
use crate::fences::{Demands, Fences};
use crate::inject::SidecarImage;

/// The namespace of every test.
pub(crate) const NAMESPACE: &str = "shop";

/// The sidecar of every test.
pub(crate) fn sidecar() -> SidecarImage {
    SidecarImage {
        image: "registry.example/sidewinder-sidecar@sha256:00".into(),
        pull_policy: "IfNotPresent".into(),
        idle_seconds: 1800,
        max_per_pod: 32,
        warn_per_pod: 24,
    }
}

/// Fences that demand neither policies nor a requester.
pub(crate) fn fences(client: &Client) -> Fences {
    let demands = Demands {
        policies: false,
        requester: false,
    };
    Fences::new(
        client.clone(),
        demands,
        watch::channel(Settings::default()).1,
        Policies::new(client.clone(), Own::new("sidewinder-system", "sidecar:1")),
        Reviewer::new(client.clone(), false),
        || Slots::new(4, 8),
    )
}

/// A running pod `web-0` with one container `app`, changed by `patch`.
pub(crate) fn pod(patch: Value) -> Pod {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": NAMESPACE, "uid": "pod-uid-1", "resourceVersion": "1"},
        "spec": {"nodeName": "node-1", "restartPolicy": "Always", "containers": [{"name": "app", "image": "app:1"}]},
        "status": {"phase": "Running", "containerStatuses": [{
            "name": "app", "ready": true, "restartCount": 0, "image": "app:1", "imageID": "app",
            "containerID": "containerd://c1",
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            "user": {"linux": {"uid": 1000, "gid": 2000}}
        }]}
    });
    merge(&mut pod, patch);
    serde_json::from_value(pod).unwrap()
}

/// A session for `web-0` with `spec` beside the target.
pub(crate) fn session(spec: Value) -> DebugSession {
    let mut session = json!({
        "apiVersion": "sidewinder.dev/v1alpha1", "kind": "DebugSession",
        "metadata": {"name": "why", "namespace": NAMESPACE, "uid": "5e55-1", "generation": 1, "resourceVersion": "1"},
        "spec": {"target": {"podName": "web-0"}}
    });
    merge(&mut session["spec"], spec);
    serde_json::from_value(session).unwrap()
}

/// A JSON merge patch (RFC 7386).
pub(crate) fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(&key);
                } else {
                    merge(target.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (target, patch) => *target = patch,
    }
}

/// One request that was made.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

#[derive(Default)]
struct Store {
    objects: BTreeMap<String, Value>,
    version: u64,
    made: Vec<Made>,
    /// Answers to the next requests whose method, path ending and query contain the given words.
    scripted: VecDeque<(Method, &'static str, &'static str, u16, Value)>,
}

/// The API server. Objects are kept under their URL path.
#[derive(Clone)]
pub(crate) struct FakeApi {
    store: Arc<Mutex<Store>>,
    changed: watch::Sender<u64>,
}

impl FakeApi {
    pub(crate) fn new() -> (Client, Self) {
        let api = Self {
            store: Arc::default(),
            changed: watch::channel(0).0,
        };
        api.put(
            &format!("/api/v1/namespaces/{NAMESPACE}"),
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        );
        let server = api.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        (Client::new(service, NAMESPACE), api)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put<K: serde::Serialize>(&self, path: &str, object: &K) {
        let mut store = self.store();
        store.version += 1;
        let version = store.version;
        let mut object = serde_json::to_value(object).unwrap();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        store.objects.insert(path.to_owned(), object);
        drop(store);
        self.changed.send_replace(version);
    }

    pub(crate) fn change(&self, path: &str, difference: Value) {
        let mut object = self.get(path).expect("no such object");
        merge(&mut object, difference);
        self.put(path, &object);
    }

    pub(crate) fn remove(&self, path: &str) {
        let mut store = self.store();
        store.objects.remove(path);
        store.version += 1;
        let version = store.version;
        drop(store);
        self.changed.send_replace(version);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.store().objects.get(path).cloned()
    }

    pub(crate) fn made(&self, method: &Method, ending: &str) -> Vec<Made> {
        self.store()
            .made
            .iter()
            .filter(|made| made.method == *method && made.path.ends_with(ending))
            .cloned()
            .collect()
    }

    /// How many requests of any method named this path's last word.
    pub(crate) fn requests_of(&self, kind: &str) -> usize {
        let store = self.store();
        let named = |made: &&Made| made.path.split('/').any(|word| word == kind);
        store.made.iter().filter(named).count()
    }

    /// Refuses the next request of this kind.
    pub(crate) fn refuse(
        &self,
        method: Method,
        ending: &'static str,
        query: &'static str,
        code: u16,
        message: &str,
    ) {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "reason": if code == 403 { "Forbidden" } else { "Invalid" }, "message": message});
        self.store()
            .scripted
            .push_back((method, ending, query, code, status));
    }

    /// Answers the next request of this kind.
    pub(crate) fn answer_next(&self, method: Method, ending: &'static str, code: u16, body: Value) {
        let answer = (method, ending, "", code, body);
        self.store().scripted.push_back(answer);
    }

    /// Waits until `holds` is true of the object at `path`.
    pub(crate) async fn until(&self, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut changes = self.changed.subscribe();
        let wait = async {
            loop {
                if let Some(object) = self.get(path).filter(|object| holds(object)) {
                    return object;
                }
                changes.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(std::time::Duration::from_mins(5), wait).await {
            Ok(object) => object,
            Err(late) => panic!("{late}: never came true of {path}: {:#?}", self.get(path)),
        }
    }

    /// Waits until there is nothing at `path`.
    pub(crate) async fn until_gone(&self, path: &str) {
        let mut changes = self.changed.subscribe();
        let wait = async {
            while self.get(path).is_some() {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(std::time::Duration::from_mins(5), wait)
            .await
            .unwrap_or_else(|late| panic!("{late}: {path} stays"));
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let mut store = self.store();
        store.made.push(Made {
            method: parts.method.clone(),
            path: path.clone(),
            query: query.clone(),
            body: body.clone(),
        });
        let scripted = store
            .scripted
            .iter()
            .position(|(method, ending, words, ..)| {
                *method == parts.method && path.ends_with(ending) && query.contains(words)
            });
        if let Some((_, _, _, code, status)) =
            scripted.and_then(|place| store.scripted.remove(place))
        {
            return respond(code, &status);
        }
        drop(store);
        match parts.method {
            Method::GET if query.contains("watch=true") => self.watch(&path, &query),
            Method::GET => self.read(&path, &query),
            Method::POST => self.create(&path, &body),
            Method::PATCH => self.patch(&path, &query, &body),
            Method::DELETE => self.delete(&path, &body),
            other => panic!("{other} {path}"),
        }
    }

    fn read(&self, path: &str, query: &str) -> Response<Answer> {
        if let Some(object) = self.get(path) {
            return respond(200, &object);
        }
        let kind = path.rsplit('/').next().unwrap_or_default();
        if matches!(kind, "pods" | "debugsessions" | "configmaps") {
            let items = self.list(path, query);
            let version = self.store().version.to_string();
            return respond(
                200,
                &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
            );
        }
        refusal(404, "NotFound", &format!("{path} not found"))
    }

    fn list(&self, path: &str, query: &str) -> Vec<Value> {
        let fields = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("fieldSelector="))
            .unwrap_or_default()
            .replace("%21", "!")
            .replace("%3D", "=")
            .replace("%2C", ",");
        let field = |object: &Value, path: &str| {
            let pointer = format!("/{}", path.replace('.', "/"));
            let text = object.pointer(&pointer).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let selected = |object: &Value| {
            fields.split(',').filter(|one| !one.is_empty()).all(|one| {
                if let Some((path, value)) = one.split_once("!=") {
                    return field(object, path) != value;
                }
                let (path, value) = one.split_once('=').unwrap();
                field(object, path) == value
            })
        };
        self.store()
            .objects
            .iter()
            .filter(|(key, object)| {
                let inside = key
                    .strip_prefix(path)
                    .and_then(|rest| rest.strip_prefix('/'));
                inside.is_some() && selected(object)
            })
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Sends what is newer than the version that the list had, and then every change.
    fn watch(&self, path: &str, query: &str) -> Response<Answer> {
        let since: u64 = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("resourceVersion="))
            .and_then(|version| version.parse().ok())
            .unwrap_or_default();
        let list = {
            let (api, path, query) = (self.clone(), path.to_owned(), query.to_owned());
            move || -> BTreeMap<String, Value> {
                api.list(&path, &query)
                    .into_iter()
                    .map(|object| (object["metadata"]["uid"].to_string(), object))
                    .collect()
            }
        };
        let known: BTreeMap<String, Value> = list()
            .into_iter()
            .filter(|(_, object)| version_of(object) <= since)
            .collect();
        let changes = self.changed.subscribe();
        let events = futures::stream::unfold(
            (changes, known, list),
            |(mut changes, known, list)| async move {
                loop {
                    changes.borrow_and_update();
                    let now = list();
                    let mut lines = String::new();
                    for (uid, object) in &now {
                        let kind = match known.get(uid) {
                            None => "ADDED",
                            Some(before) if before != object => "MODIFIED",
                            Some(_) => continue,
                        };
                        lines.push_str(&json!({"type": kind, "object": object}).to_string());
                        lines.push('\n');
                    }
                    for (uid, object) in &known {
                        if !now.contains_key(uid) {
                            lines.push_str(
                                &json!({"type": "DELETED", "object": object}).to_string(),
                            );
                            lines.push('\n');
                        }
                    }
                    if !lines.is_empty() {
                        return Some((Ok::<_, Infallible>(lines), (changes, now, list)));
                    }
                    if changes.changed().await.is_err() {
                        return None;
                    }
                }
            },
        );
        Response::new(Answer::from_stream(events))
    }

    fn create(&self, path: &str, object: &Value) -> Response<Answer> {
        let name = object["metadata"]["name"].as_str().map_or_else(
            || format!("generated-{}", self.store().version),
            str::to_owned,
        );
        let key = format!("{path}/{name}");
        if self.get(&key).is_some() {
            return refusal(409, "AlreadyExists", &format!("{key} already exists"));
        }
        self.put(&key, object);
        respond(201, object)
    }

    fn patch(&self, path: &str, query: &str, body: &Value) -> Response<Answer> {
        let (key, subresource) = path.rsplit_once('/').unwrap();
        let Some(mut object) = self.get(key) else {
            return refusal(404, "NotFound", &format!("{key} not found"));
        };
        for field in ["uid", "resourceVersion"] {
            let wanted = &body["metadata"][field];
            if !wanted.is_null() && *wanted != object["metadata"][field] {
                return refusal(409, "Conflict", &format!("{field} differs"));
            }
        }
        match subresource {
            "status" => merge(&mut object["status"], body["status"].clone()),
            "ephemeralcontainers" => {
                let mut all = object["spec"]["ephemeralContainers"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                for added in body["spec"]["ephemeralContainers"].as_array().unwrap() {
                    match all.iter().find(|known| known["name"] == added["name"]) {
                        Some(known) if known == added => {}
                        Some(_) => {
                            return refusal(
                                422,
                                "Invalid",
                                "spec.ephemeralContainers: Forbidden: existing ephemeral containers may not be changed",
                            );
                        }
                        None => all.push(added.clone()),
                    }
                }
                object["spec"]["ephemeralContainers"] = Value::Array(all);
            }
            other => panic!("patch of {other}"),
        }
        // As the real one: what changes nothing leaves the version as it is.
        if query.contains("dryRun=All") || self.get(key).as_ref() == Some(&object) {
            return respond(200, &object);
        }
        self.put(key, &object);
        respond(200, &self.get(key).unwrap())
    }

    fn delete(&self, path: &str, body: &Value) -> Response<Answer> {
        let Some(object) = self.get(path) else {
            return refusal(404, "NotFound", "not found");
        };
        let wanted = &body["preconditions"]["uid"];
        if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
            return refusal(409, "Conflict", "uid differs");
        }
        self.remove(path);
        respond(200, &json!({"kind": "Status", "status": "Success"}))
    }
}

fn version_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|version| version.parse().ok())
        .unwrap_or_default()
}

fn refusal(code: u16, reason: &str, message: &str) -> Response<Answer> {
    respond(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "reason": reason, "message": message, "metadata": {}}),
    )
}

fn respond(code: u16, body: &Value) -> Response<Answer> {
    Response::builder()
        .status(code)
        .body(Answer::from(serde_json::to_vec(body).unwrap()))
        .unwrap()
}
