//! Scripts that outlive their sessions, against an API server and agents in memory.

use http::Method;
use serde_json::{Value, json};
use sidewinder_model::ToAgent;

use super::*;
use crate::events::Events;
use crate::metrics::{Metrics, Traffic};
use crate::relay::pool::Pool;
use crate::session::result::Sensitive;
use crate::session::{Refusals, Settings};
use crate::testing::{self, Agents, FakeApi, pod, sidecar};

const POD: &str = "/api/v1/namespaces/shop/pods/web-0";
const SESSION: &str = "/apis/sidewinder.dev/v1alpha1/namespaces/shop/debugsessions/why";

struct World {
    api: FakeApi,
    context: Context<Agents>,
}

/// A session that has ended, and whose scripts in these processes have not.
fn world(agents: &Agents, pids: &[i32]) -> World {
    let mut session =
        testing::session(json!({"remoteExec": {"script": "1"}, "reason": "INC-4711"}));
    let target = |pid: &i32| {
        json!({
            "podName": "web-0", "podUID": "pod-uid-1", "container": "app", "containerID": "containerd://c1",
            "sidecar": "sidewinder-app-1", "attach": "Ptrace", "agent": "i1", "pid": pid, "phase": "Failed",
            "exec": {"stillRunning": true, "watched": true}
        })
    };
    let ended = Time(whole_seconds(Timestamp::now()));
    session.status = Some(
        serde_json::from_value(json!({
            "phase": "Failed", "reason": "ScriptTimeout", "completionTime": ended,
            "targets": pids.iter().map(target).collect::<Vec<_>>()
        }))
        .unwrap(),
    );
    let (client, api) = FakeApi::new();
    api.put(POD, &pod(json!({})));
    api.put(SESSION, &session);
    World {
        api,
        context: Context {
            client: client.clone(),
            pool: Pool::new(agents.clone(), Traffic::default()),
            settings: Settings {
                sidecar: sidecar(),
                sensitive: Sensitive::Secret,
                result_max_bytes: 16 << 20,
                max_concurrent: 1,
            },
            metrics: Metrics::new(),
            events: Events::new(client.clone(), "test"),
            fences: crate::testing::fences(&client),
            refusals: Refusals::default(),
        },
    }
}

impl World {
    fn session(&self) -> DebugSession {
        serde_json::from_value(self.api.get(SESSION).unwrap()).unwrap()
    }

    async fn watch(&self) {
        let session = self.session();
        tokio::time::timeout(Duration::from_hours(48), watch(&self.context, &session))
            .await
            .expect("never ends")
            .unwrap();
    }

    /// What is noted of each process.
    fn reasons(&self) -> Vec<Value> {
        let session = self.api.get(SESSION).unwrap();
        let targets = session["status"]["targets"].as_array().unwrap();
        let reasons = targets
            .iter()
            .map(|target| target["exec"]["afterwards"]["reason"].clone());
        reasons.collect()
    }

    /// The reason, the kind of object, and the words of every Event there is.
    fn events(&self) -> Vec<(String, String, String)> {
        let tried = self.api.made(&Method::POST, "/events");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut names = BTreeSet::new();
        let first = tried.iter().filter(|one| {
            assert_eq!(one.path, "/apis/events.k8s.io/v1/namespaces/shop/events");
            names.insert(text(&one.body["metadata"]["name"]))
        });
        first
            .map(|one| {
                let body = &one.body;
                (
                    text(&body["reason"]),
                    text(&body["regarding"]["kind"]),
                    text(&body["note"]),
                )
            })
            .collect()
    }
}

fn ends(pids: &[i32]) -> Vec<ScriptEnd> {
    let end = |pid: &i32| ScriptEnd {
        pid: *pid,
        reason: Reason::ScriptEnded,
        after_milliseconds: 72_400,
    };
    pids.iter().map(end).collect()
}

#[tokio::test]
async fn the_end_of_a_script_is_told_once_and_noted() {
    let agents = Agents::new("i1", None);
    agents.tell(ends(&[7]));
    let world = world(&agents, &[7]);
    let ended = world.session();
    assert!(is_needed(&ended));
    world.watch().await;
    assert_eq!(world.reasons(), ["ScriptEnded"]);
    let words = "the script of this session has ended by itself, 73 s after it started";
    assert_eq!(
        world.events(),
        [
            (
                "ScriptEnded".into(),
                "DebugSession".into(),
                format!("{words} (pid 7) (asked for: INC-4711)"),
            ),
            (
                "ScriptEnded".into(),
                "Pod".into(),
                format!("DebugSession why: {words} (pid 7) (asked for: INC-4711)"),
            ),
        ]
    );
    assert!(!is_needed(&world.session()));
    // Another operator that knows the session as it was before changes nothing.
    let before = world.api.get(SESSION);
    watch(&world.context, &ended).await.unwrap();
    assert_eq!(world.api.get(SESSION), before);
    assert_eq!(world.events().len(), 2);
    let status = world.session().status.unwrap();
    assert_eq!(status.reason.as_deref(), Some("ScriptTimeout"));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_cut_is_opened_again_and_each_process_is_noted() {
    let agents = Agents::new("i1", None);
    agents.tell(ends(&[7, 9]));
    agents.cut(3);
    let world = world(&agents, &[7, 9]);
    world.watch().await;
    assert_eq!(world.reasons(), ["ScriptEnded", "ScriptEnded"]);
    assert_eq!(world.events().len(), 4);
    let asked = ToAgent::Watch {
        id: "5e55-1".into(),
    };
    let times = agents
        .heard()
        .iter()
        .filter(|message| **message == asked)
        .count();
    assert_eq!(times, 4);
}

#[tokio::test]
async fn what_nobody_knows_any_more_is_said_not_to_be_known() {
    for instance in ["i1", "i2"] {
        let agents = Agents::new(instance, None);
        let world = world(&agents, &[7]);
        world.watch().await;
        assert_eq!(world.reasons(), ["SidecarLost"]);
        let (reason, _, note) = world.events().remove(0);
        assert_eq!(reason, "SidecarLost");
        assert!(note.contains("whether it has ended is not known"), "{note}");
    }
}

#[tokio::test]
async fn a_pod_that_is_gone_took_the_script_along() {
    let agents = Agents::new("i1", None);
    let world = world(&agents, &[7]);
    world.api.remove(POD);
    world.watch().await;
    assert_eq!(world.reasons(), ["TargetExited"]);
    // There is no pod to say it of.
    assert_eq!(world.events().len(), 1);
    assert!(agents.heard().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_script_that_never_ends_is_let_go_of_after_a_day() {
    let agents = Agents::new("i1", None);
    agents.tell(Vec::new());
    let world = world(&agents, &[7]);
    // The clock of the status is that of the machine, which does not stand still.
    let long_ago = Timestamp::now() - k8s_openapi::jiff::SignedDuration::from_hours(26);
    world.api.change(
        SESSION,
        json!({"status": {"completionTime": Time(whole_seconds(long_ago))}}),
    );
    world.watch().await;
    assert_eq!(world.reasons(), ["Timeout"]);
}

#[tokio::test]
async fn a_session_that_is_deleted_meanwhile_ends_the_watch() {
    let agents = Agents::new("i1", None);
    agents.tell(ends(&[7]));
    let world = world(&agents, &[7]);
    let session = world.session();
    world.api.remove(SESSION);
    watch(&world.context, &session).await.unwrap();
    assert!(world.api.get(SESSION).is_none());
}

#[tokio::test]
async fn a_refused_event_does_not_keep_the_end_from_the_status() {
    let agents = Agents::new("i1", None);
    agents.tell(ends(&[7]));
    let world = world(&agents, &[7]);
    world.api.refuse(Method::POST, "/events", "", 403, "no");
    world.watch().await;
    assert_eq!(world.reasons(), ["ScriptEnded"]);
}
