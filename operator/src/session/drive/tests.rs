//! Whole sessions, against an API server and agents in memory.

use http::Method;
use serde_json::{Value, json};
use sidewinder_model::{Reason, ToAgent};

use super::*;
use crate::events::Events;
use crate::metrics::{Metrics, Traffic};
use crate::relay::pool::Pool;
use crate::session::plan::Way;
use crate::session::result::Sensitive;
use crate::session::{Refusals, Settings};
use crate::testing::{Agents, FakeApi, pod, session, sidecar};

const POD: &str = "/api/v1/namespaces/shop/pods/web-0";
const SESSION: &str = "/apis/sidewinder.dev/v1alpha1/namespaces/shop/debugsessions/why";

struct World {
    api: FakeApi,
    context: Context<Agents>,
    agents: Agents,
    signals: watch::Sender<Signal>,
}

fn world(agents: &Agents, pod: &Pod, session: &DebugSession) -> World {
    let (client, api) = FakeApi::new();
    api.put(POD, pod);
    api.put(SESSION, session);
    let context = Context {
        client: client.clone(),
        pool: Pool::new(agents.clone(), Traffic::default()),
        settings: Settings {
            sidecar: sidecar(),
            sensitive: Sensitive::Secret,
            max_concurrent: 1,
        },
        metrics: Metrics::new(),
        events: Events::new(client, "test"),
        refusals: Refusals::default(),
    };
    World {
        api,
        context,
        agents: agents.clone(),
        signals: watch::channel(Signal::default()).0,
    }
}

impl World {
    async fn drive(&self) -> Outcome {
        let session = serde_json::from_value(self.api.get(SESSION).unwrap()).unwrap();
        let work = drive(&self.context, session, self.signals.subscribe());
        tokio::time::timeout(Duration::from_mins(10), work)
            .await
            .expect("never ends")
            .unwrap()
    }

    fn status(&self) -> Value {
        self.api.get(SESSION).unwrap()["status"].clone()
    }
}

fn exec() -> DebugSession {
    session(json!({"remoteExec": {"script": "print(1)"}}))
}

/// A session whose script was given to `instance` by an operator that is gone.
fn interrupted(instance: &str) -> DebugSession {
    let mut session = exec();
    session.status = Some(
        serde_json::from_value(json!({
            "phase": "Running", "startTime": "2026-01-01T00:00:00Z",
            "targets": [{
                "podName": "web-0", "podUID": "pod-uid-1", "container": "app", "containerID": "containerd://c1",
                "sidecar": "sidewinder-app-1", "attach": "Ptrace", "agent": instance, "phase": "Running"
            }]
        }))
        .unwrap(),
    );
    session
}

#[tokio::test]
async fn a_first_session_adds_a_sidecar_and_a_second_one_uses_it() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let world = world(&agents, &pod(json!({})), &session(json!({"stacks": {}})));
    assert_eq!(world.drive().await, Outcome::Ended);
    let status = world.status();
    assert_eq!(status["phase"], "Succeeded");
    assert_eq!(status["targets"][0]["sidecar"], "sidewinder-app-1");
    assert_eq!(status["targets"][0]["attach"], "Ptrace");
    world.api.put(SESSION, &session(json!({"stacks": {}})));
    assert_eq!(world.drive().await, Outcome::Ended);
    let patches = world.api.made(&Method::PATCH, "ephemeralcontainers");
    assert_eq!(patches.len(), 2, "a dry-run and one patch in all");
    let hellos = |message: &&ToAgent| matches!(message, ToAgent::Hello { .. });
    assert_eq!(world.agents.heard().iter().filter(hellos).count(), 1);
    // One write per session: nothing took long enough for people to watch.
    assert_eq!(world.api.made(&Method::PATCH, "status").len(), 2);
}

#[tokio::test]
async fn a_script_is_sent_only_after_its_intent_stands_in_the_status() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let world = world(&agents, &pod(json!({})), &exec());
    assert_eq!(world.drive().await, Outcome::Ended);
    let writes = world.api.made(&Method::PATCH, "status");
    assert_eq!(writes[0].body["status"]["targets"][0]["agent"], "i1");
    assert_eq!(writes[0].body["status"]["phase"], "Running");
    assert!(writes[0].body["metadata"]["resourceVersion"].is_string());
    assert_eq!(world.agents.runs(), [Some("i1".to_owned())]);
    assert!(matches!(
        world.agents.heard().last(),
        Some(ToAgent::Run { .. } | ToAgent::Acknowledge { .. })
    ));
}

#[tokio::test]
async fn a_restarted_operator_fetches_the_outcome_from_the_same_run_and_asks_no_other() {
    for (instance, phase, reason, runs) in [
        ("i1", "Succeeded", "Succeeded", 1),
        ("i2", "Failed", "SidecarLost", 0),
    ] {
        let agents = Agents::new(instance, Some(Reason::Succeeded));
        let plain = pod(json!({}));
        let container = inject::ephemeral_container(
            &plain,
            "app",
            Way::Ptrace.into(),
            &sidecar(),
            "sidewinder-app-1",
        )
        .unwrap();
        let carrying = pod(json!({"spec": {"ephemeralContainers": [container]}}));
        let world = world(&agents, &carrying, &interrupted("i1"));
        assert_eq!(world.drive().await, Outcome::Ended);
        assert_eq!(world.status()["phase"], phase);
        assert_eq!(world.status()["reason"], reason);
        assert_eq!(world.agents.runs().len(), runs);
        assert!(
            world
                .api
                .made(&Method::PATCH, "ephemeralcontainers")
                .is_empty()
        );
    }
}

#[tokio::test]
async fn a_cut_stream_is_opened_again_and_the_same_request_asked() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    agents.cut(1);
    let world = world(&agents, &pod(json!({})), &exec());
    assert_eq!(world.drive().await, Outcome::Ended);
    assert_eq!(world.status()["reason"], "Succeeded");
    let same = Some("i1".to_owned());
    assert_eq!(world.agents.runs(), [same.clone(), same]);
}

#[tokio::test]
async fn pod_security_leaves_the_other_way_and_its_words_in_the_status() {
    let words = "pods \"web-0\" is forbidden: violates PodSecurity \"restricted:latest\": no";
    for (spec, reason, attach) in [
        (json!({"stacks": {}}), "Succeeded", json!("SameUser")),
        (
            json!({"stacks": {}, "attach": "Ptrace"}),
            "PodSecurityForbidden",
            Value::Null,
        ),
    ] {
        let agents = Agents::new("i1", Some(Reason::Succeeded));
        let world = world(&agents, &pod(json!({})), &session(spec));
        world.api.refuse(
            Method::PATCH,
            "ephemeralcontainers",
            "dryRun=All",
            403,
            words,
        );
        assert_eq!(world.drive().await, Outcome::Ended);
        let status = world.status();
        assert_eq!(status["reason"], reason);
        assert_eq!(status["targets"][0]["attach"], attach);
        assert!(
            status["conditions"]
                .to_string()
                .contains("violates PodSecurity")
        );
    }
}

#[tokio::test]
async fn a_deleted_session_stops_what_runs_for_it() {
    let agents = Agents::new("i1", None);
    let world = world(&agents, &pod(json!({})), &exec());
    let delete = async {
        world
            .api
            .until(SESSION, |session| session["status"]["phase"] == "Running")
            .await;
        while world.agents.runs().is_empty() {
            tokio::task::yield_now().await;
        }
        world.api.remove(SESSION);
        world.signals.send_modify(|signal| signal.gone = true);
    };
    let (outcome, ()) = tokio::join!(world.drive(), delete);
    assert_eq!(outcome, Outcome::Gone);
    assert!(world.agents.heard().contains(&ToAgent::Cancel {
        id: "5e55-1".into()
    }));
}

#[tokio::test]
async fn a_cancelled_script_is_stopped_and_its_session_says_so() {
    let agents = Agents::new("i1", None);
    let world = world(&agents, &pod(json!({})), &exec());
    let cancel = async {
        world
            .api
            .until(SESSION, |session| session["status"]["phase"] == "Running")
            .await;
        world.api.change(
            SESSION,
            json!({"spec": {"cancel": true}, "metadata": {"generation": 2}}),
        );
        let latest = serde_json::from_value(world.api.get(SESSION).unwrap()).unwrap();
        world
            .signals
            .send_modify(|signal| signal.latest = Some(Arc::new(latest)));
    };
    let (outcome, ()) = tokio::join!(world.drive(), cancel);
    assert_eq!(outcome, Outcome::Ended);
    let status = world.status();
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Cancelled"), &json!("Cancelled"))
    );
    assert_eq!(status["observedGeneration"], 2);
}
