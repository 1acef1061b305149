//! Whole sessions, against an API server and agents in memory.

use http::Method;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use sidewinder_model::{Reason, ToAgent};

use super::*;
use crate::events::Events;
use crate::inject;
use crate::metrics::{Metrics, Traffic};
use crate::relay::pool::Pool;
use crate::session::plan::Way;
use crate::session::result::Sensitive;
use crate::session::{Refusals, Settings};
use crate::testing::{Agents, FakeApi, pod, session, sidecar};

mod fences;

const POD: &str = "/api/v1/namespaces/shop/pods/web-0";
const SESSION: &str = "/apis/sidewinder.dev/v1alpha1/namespaces/shop/debugsessions/why";

const ENDED: &str = "Ended";
const GONE: &str = "Gone";

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
            result_max_bytes: 16 << 20,
            max_concurrent: 1,
        },
        metrics: Metrics::new(),
        events: Events::new(client.clone(), "test"),
        fences: crate::testing::fences(&client),
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
    /// How the work stopped: `Ended` of whatever session.
    async fn drive(&self) -> &'static str {
        let session = serde_json::from_value(self.api.get(SESSION).unwrap()).unwrap();
        let given = Given::default();
        let signals = self.signals.subscribe();
        let work = Box::pin(drive(&self.context, session, signals, &given));
        let outcome = tokio::time::timeout(Duration::from_mins(10), work)
            .await
            .expect("never ends")
            .unwrap();
        match outcome {
            Outcome::Ended(_) => ENDED,
            Outcome::Gone => GONE,
            Outcome::Superseded => "Superseded",
        }
    }

    /// Sets `cancel`, as the watch would tell.
    fn cancel(&self) {
        self.api.change(
            SESSION,
            json!({"spec": {"cancel": true}, "metadata": {"generation": 2}}),
        );
        let latest = serde_json::from_value(self.api.get(SESSION).unwrap()).unwrap();
        self.signals
            .send_modify(|signal| signal.latest = Some(Arc::new(latest)));
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

/// The pod with a sidecar.
fn carrying() -> Pod {
    let plain = pod(json!({}));
    let container = inject::ephemeral_container(
        &plain,
        "app",
        Way::Ptrace.into(),
        &sidecar(),
        "sidewinder-app-1",
    )
    .unwrap();
    pod(json!({"spec": {"ephemeralContainers": [container]}}))
}

#[tokio::test]
async fn a_first_session_adds_a_sidecar_and_a_second_one_uses_it() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let world = world(&agents, &pod(json!({})), &session(json!({"stacks": {}})));
    assert_eq!(world.drive().await, ENDED);
    let status = world.status();
    assert_eq!(status["phase"], "Succeeded");
    assert_eq!(status["targets"][0]["sidecar"], "sidewinder-app-1");
    assert_eq!(status["targets"][0]["attach"], "Ptrace");
    world.api.put(SESSION, &session(json!({"stacks": {}})));
    assert_eq!(world.drive().await, ENDED);
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
    assert_eq!(world.drive().await, ENDED);
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
        let world = world(&agents, &carrying(), &interrupted("i1"));
        assert_eq!(world.drive().await, ENDED);
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
    assert_eq!(world.drive().await, ENDED);
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
        assert_eq!(world.drive().await, ENDED);
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
    assert_eq!(outcome, GONE);
    assert!(world.agents.heard().contains(&ToAgent::Cancel {
        id: "5e55-1".into()
    }));
}

#[tokio::test(start_paused = true)]
async fn an_answer_over_a_line_that_is_too_slow_is_not_waited_for_until_the_time_is_over() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    agents.stall();
    let spec = json!({"remoteExec": {"script": "print(1)"}, "timeoutSeconds": 600});
    let world = world(&agents, &pod(json!({})), &session(spec));
    assert_eq!(world.drive().await, ENDED);
    assert_eq!(world.agents.runs().len(), 2, "once more, and no more");
    let status = world.status();
    assert_eq!(status["reason"], "ResultNotStored");
    let target = &status["targets"][0];
    let message = target["message"].as_str().unwrap();
    assert!(message.contains("the line to it is too slow"), "{message}");
    assert_eq!(target["disarmed"], "StillArmed");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_session_stops_what_runs_for_it_when_its_agent_can_be_reached_again() {
    let agents = Agents::new("i1", None);
    agents.away(3);
    let world = world(&agents, &carrying(), &interrupted("i1"));
    world.signals.send_modify(|signal| signal.gone = true);
    assert_eq!(world.drive().await, GONE);
    // What was sent last may still be on its way.
    let id = "5e55-1".to_owned();
    while !agents.heard().contains(&ToAgent::Cancel { id: id.clone() }) {
        tokio::task::yield_now().await;
    }
    assert!(agents.runs().is_empty());
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
        world.cancel();
    };
    let (outcome, ()) = tokio::join!(world.drive(), cancel);
    assert_eq!(outcome, ENDED);
    let status = world.status();
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Cancelled"), &json!("Cancelled"))
    );
    assert_eq!(status["observedGeneration"], 2);
}

/// A session for every pod of the application, and `count` of these.
fn fleet(agents: &Agents, spec: Value, count: usize) -> World {
    let target = json!({"target": {"podName": null, "selector": {"matchLabels": {"app": "web"}}, "pods": {"mode": "All"}}});
    let mut whole = target;
    crate::testing::merge(&mut whole, spec);
    let mut session = session(json!({}));
    let mut value = serde_json::to_value(&session).unwrap();
    crate::testing::merge(&mut value["spec"], whole);
    session = serde_json::from_value(value).unwrap();
    let world = world(agents, &pod(json!({})), &session);
    world.api.remove(POD);
    for number in 0..count {
        let name = format!("web-{number}");
        let one = pod(json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {"app": "web"}},
            "status": {"conditions": [{"type": "Ready", "status": if number == 2 { "False" } else { "True" }}]},
        }));
        world
            .api
            .put(&format!("/api/v1/namespaces/shop/pods/{name}"), &one);
    }
    world
}

fn pods_of(status: &Value, field: &str) -> Vec<String> {
    let targets = status["targets"].as_array().unwrap();
    targets
        .iter()
        .map(|target| target[field].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[tokio::test]
async fn every_pod_of_a_selector_has_its_entry_and_the_fleet_one_line() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let world = fleet(&agents, json!({"stacks": {}}), 4);
    assert_eq!(world.drive().await, ENDED);
    let status = world.status();
    assert_eq!(status["reason"], "Succeeded");
    assert_eq!(status["pods"], "4/4");
    assert_eq!(status["target"], "app=web/app");
    assert_eq!(
        pods_of(&status, "podName"),
        ["web-0", "web-1", "web-2", "web-3"]
    );
    assert_eq!(
        pods_of(&status, "podUID"),
        ["uid-web-0", "uid-web-1", "uid-web-2", "uid-web-3"]
    );
    let summary = status["summary"].as_str().unwrap();
    assert!(summary.starts_with("all 4 pods: "), "{summary}");
    // The pods are pinned before any of them is touched.
    let made = world.api.made(&Method::PATCH, "");
    assert!(made[0].path.ends_with("/status"), "{}", made[0].path);
    assert_eq!(made[0].body["status"]["targets"][3]["podUID"], "uid-web-3");
    assert_eq!(made[0].body["status"]["pods"], "0/4");
}

#[tokio::test]
async fn who_comes_late_to_show_how_far_the_pods_are_does_not_take_the_end_back() {
    let world = world(&Agents::new("run-1", None), &pod(json!({})), &exec());
    let session: DebugSession = serde_json::from_value(world.api.get(SESSION).unwrap()).unwrap();
    let given = Given::default();
    let board = Board::new(
        &world.context,
        &world.signals,
        &given,
        session.clone(),
        take_up(&session, None),
    );
    board.add(
        &mut [Target {
            entry: TargetStatus::default(),
            pinned: false,
            end: None,
        }],
        &[0],
    );
    let refusal = Refusal::new(Reason::QueueFull, String::new());
    board.settle(0, refused(&world.context, &session, refusal), None);
    board.finish(None, |_, _| Duration::ZERO).await.unwrap();
    let end = world.api.get(SESSION).unwrap();
    assert_eq!(end["status"]["phase"], "Failed");
    assert!(matches!(board.write_all().await.unwrap(), Flow::Continue));
    assert_eq!(world.api.get(SESSION).unwrap(), end);
}

#[tokio::test]
async fn one_pod_of_a_selector_is_the_one_in_which_something_is_wrong() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let spec = json!({"stacks": {}, "target": {"pods": null}});
    let world = fleet(&agents, spec, 4);
    assert_eq!(world.drive().await, ENDED);
    assert_eq!(pods_of(&world.status(), "podName"), ["web-2"]);
}

#[tokio::test]
async fn a_script_for_a_fleet_is_sent_to_each_pod_after_its_intent_and_to_none_twice() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let spec =
        json!({"remoteExec": {"script": "print(1)"}, "target": {"pods": {"maxParallel": 2}}});
    let world = fleet(&agents, spec, 5);
    assert_eq!(world.drive().await, ENDED);
    assert_eq!(world.status()["reason"], "Succeeded");
    assert_eq!(world.agents.runs().len(), 5);
    let acknowledged = || {
        let heard = world.agents.heard();
        let done = |message: &&ToAgent| matches!(message, ToAgent::Acknowledge { .. });
        heard.iter().filter(done).count()
    };
    // Each agent may forget its outcome.
    while acknowledged() < 5 {
        tokio::task::yield_now().await;
    }
    // No more than two are on their way at once: a third intent stands only beside an end.
    for write in world.api.made(&Method::PATCH, "status") {
        let targets = write.body["status"]["targets"].as_array().unwrap();
        let going = |target: &&Value| target["phase"] == "Running";
        assert!(targets.iter().filter(going).count() <= 2, "{targets:#?}");
    }
}

#[tokio::test]
async fn a_pod_that_was_replaced_is_not_the_target_and_the_others_answer() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let world = fleet(&agents, json!({"remoteExec": {"script": "1"}}), 3);
    world.api.change(
        SESSION,
        json!({"status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "targets": [
            {"podName": "web-0", "podUID": "uid-web-0", "phase": "Succeeded", "reason": "Succeeded",
             "summary": "done before", "durationMilliseconds": 3, "agent": "i0", "disarmed": "Disarmed"},
            {"podName": "web-1", "podUID": "uid-of-an-earlier-web-1", "phase": "Pending"},
            {"podName": "web-2", "podUID": "uid-web-2", "phase": "Pending"},
        ]}}),
    );
    assert_eq!(world.drive().await, ENDED);
    let status = world.status();
    assert_eq!(status["reason"], "PartiallyFailed");
    assert_eq!(
        pods_of(&status, "reason"),
        ["Succeeded", "PodNotFound", "Succeeded"]
    );
    assert_eq!(status["targets"][0]["summary"], "done before");
    assert_eq!(world.agents.runs().len(), 1, "only web-2 is left to ask");
}

#[tokio::test]
async fn a_selector_without_pods_and_one_with_too_many_touch_nothing() {
    for (count, reason) in [(0, "PodNotFound"), (257, "TooManyTargets")] {
        let agents = Agents::new("i1", Some(Reason::Succeeded));
        let world = fleet(&agents, json!({"stacks": {}}), count);
        assert_eq!(world.drive().await, ENDED);
        let status = world.status();
        assert_eq!(status["reason"], reason);
        assert_eq!(status["pods"], "0/0");
        assert!(status["targets"].as_array().is_none_or(Vec::is_empty));
        assert_eq!(world.api.made(&Method::PATCH, "").len(), 1);
    }
}

#[tokio::test]
async fn a_fleet_that_is_cancelled_stops_every_script_and_begins_no_more() {
    let agents = Agents::new("i1", None);
    let spec = json!({"remoteExec": {"script": "1"}, "target": {"pods": {"maxParallel": 2}}});
    let world = fleet(&agents, spec, 4);
    let cancel = async {
        while world.agents.runs().len() < 2 {
            tokio::task::yield_now().await;
        }
        world.cancel();
    };
    let (outcome, ()) = tokio::join!(world.drive(), cancel);
    assert_eq!(outcome, ENDED);
    let status = world.status();
    assert_eq!(status["phase"], "Cancelled");
    assert_eq!(pods_of(&status, "reason"), ["Cancelled"; 4]);
    assert_eq!(world.agents.runs().len(), 2);
}

#[tokio::test]
async fn a_dry_run_says_what_would_happen_and_touches_no_pod() {
    let words = "pods \"web-0\" is forbidden: violates PodSecurity \"restricted:latest\": no";
    for (refusals, attach, phase, reason, said) in [
        (
            0,
            "Auto",
            "Succeeded",
            "DryRun",
            "it would add ephemeral container sidewinder-app-1 as root",
        ),
        (
            1,
            "Auto",
            "Succeeded",
            "DryRun",
            "as user 1000 of group 2000",
        ),
        (
            1,
            "Ptrace",
            "Failed",
            "PodSecurityForbidden",
            "violates PodSecurity",
        ),
        (
            2,
            "Auto",
            "Failed",
            "PodSecurityForbidden",
            "refused as SameUser",
        ),
    ] {
        let agents = Agents::new("i1", Some(Reason::Succeeded));
        let spec = json!({"remoteExec": {"script": "print(1)"}, "dryRun": true, "attach": attach});
        let world = world(&agents, &pod(json!({})), &session(spec));
        for _ in 0..refusals {
            world.api.refuse(
                Method::PATCH,
                "ephemeralcontainers",
                "dryRun=All",
                403,
                words,
            );
        }
        assert_eq!(world.drive().await, ENDED);
        let status = world.status();
        assert_eq!(
            (&status["phase"], &status["reason"]),
            (&json!(phase), &json!(reason))
        );
        let message = status["targets"][0]["message"].as_str().unwrap();
        assert!(message.contains(said), "{message}");
        let patches = world.api.made(&Method::PATCH, "ephemeralcontainers");
        assert!(
            patches
                .iter()
                .all(|patch| patch.query.contains("dryRun=All"))
        );
        assert!(world.agents.heard().is_empty());
        let conditions = status["conditions"].to_string();
        assert!(!conditions.contains("\"Attached\""), "{conditions}");
        assert!(conditions.contains("NotArmed"), "{conditions}");
    }
}

#[tokio::test]
async fn a_dry_run_for_a_pod_that_does_not_run_says_so_at_once() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let pending = pod(
        json!({"status": {"phase": "Pending", "containerStatuses": null,
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]}}),
    );
    let world = world(
        &agents,
        &pending,
        &session(json!({"stacks": {}, "dryRun": true})),
    );
    assert_eq!(world.drive().await, ENDED);
    let status = world.status();
    assert_eq!(status["reason"], "PodNotRunning");
    let message = status["targets"][0]["message"].as_str().unwrap();
    assert!(message.contains("0/1 nodes are available"), "{message}");
}

#[tokio::test]
async fn an_answer_from_a_pod_that_will_soon_take_no_more_sidecars_says_so() {
    let ended: Vec<Value> = (0..23)
        .map(|number| json!({"name": format!("sidewinder-old-{number}"), "image": "x"}))
        .collect();
    for (others, warned) in [(22, false), (23, true)] {
        let agents = Agents::new("i1", Some(Reason::Succeeded));
        let carrying = pod(json!({"spec": {"ephemeralContainers": &ended[..others]}}));
        let world = world(&agents, &carrying, &session(json!({"stacks": {}})));
        assert_eq!(world.drive().await, ENDED);
        let status = world.status();
        let message = status["targets"][0]["message"].as_str().unwrap_or_default();
        assert_eq!(
            message.contains("24 of at most 32 sidecars"),
            warned,
            "{message}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_api_server_refuses_is_tried_again_and_then_ends_alone() {
    for (refusals, reasons, reason) in [
        (3, ["Succeeded"; 3], "Succeeded"),
        (
            50,
            ["Succeeded", "InternalError", "Succeeded"],
            "PartiallyFailed",
        ),
    ] {
        let agents = Agents::new("i1", Some(Reason::Succeeded));
        let world = fleet(&agents, json!({"remoteExec": {"script": "1"}}), 3);
        for _ in 0..refusals {
            world.api.refuse(Method::GET, "pods/web-1", "", 500, "boom");
        }
        assert_eq!(world.drive().await, ENDED);
        let status = world.status();
        assert_eq!(status["reason"], reason);
        assert_eq!(pods_of(&status, "reason"), reasons);
        if refusals == 50 {
            let message = status["targets"][1]["message"].as_str().unwrap();
            assert!(message.contains("boom"), "{message}");
            assert_eq!(status["targets"][1]["disarmed"], "NotArmed");
            assert_eq!(world.agents.runs().len(), 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_given_up_has_its_script_stopped() {
    let agents = Agents::new("i1", None);
    agents.cut(1);
    let world = fleet(&agents, json!({"remoteExec": {"script": "1"}}), 2);
    let refuse = async {
        while world.agents.runs().is_empty() {
            tokio::task::yield_now().await;
        }
        for _ in 0..50 {
            world.api.refuse(Method::GET, "pods/web-0", "", 500, "boom");
            world.api.refuse(Method::GET, "pods/web-1", "", 500, "boom");
        }
        // The other one's script runs until somebody ends it.
        world
            .api
            .until(SESSION, |session| session["status"]["pods"] == "1/2")
            .await;
        world.cancel();
    };
    let (outcome, ()) = tokio::join!(world.drive(), refuse);
    assert_eq!(outcome, ENDED);
    let status = world.status();
    let messages = pods_of(&status, "message");
    let given_up: Vec<_> = messages
        .iter()
        .filter(|message| message.contains("boom"))
        .collect();
    assert_eq!(given_up.len(), 1, "{messages:#?}");
    assert!(
        given_up[0].contains("told to stop, and the sidecar answered"),
        "{given_up:?}"
    );
    let cancels = |message: &&ToAgent| matches!(message, ToAgent::Cancel { .. });
    assert!(world.agents.heard().iter().filter(cancels).count() >= 2);
}
