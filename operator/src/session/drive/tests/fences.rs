//! What the fences refuse is not begun, and what they end is stopped.

use super::*;
use crate::fences::policies::{Own, Policies};
use crate::fences::review::Reviewer;
use crate::fences::settings::{self, KillSwitch};
use crate::fences::slots::Slots;
use crate::fences::{Demands, Fences};

/// A world whose settings can be changed, and that demands a requester or not.
fn fenced(
    agents: &Agents,
    pod: &Pod,
    session: &DebugSession,
    requester: bool,
) -> (World, watch::Sender<settings::Settings>) {
    let mut world = world(agents, pod, session);
    let client = &world.context.client;
    let (sender, settings) = watch::channel(settings::Settings::default());
    let demands = Demands {
        policies: false,
        requester,
    };
    world.context.fences = Fences::new(
        client.clone(),
        demands,
        settings,
        Policies::new(client.clone(), Own::new("sidewinder-system", "sidecar:1")),
        Reviewer::new(client.clone(), false),
        || Slots::new(1, 8),
    );
    (world, sender)
}

fn asked_by_ann() -> DebugSession {
    session(json!({"remoteExec": {"script": "print(1)"}, "requestedBy": {"username": "ann"}}))
}

fn says(world: &World, allowed: bool) {
    world.api.answer_next(
        Method::POST,
        "subjectaccessreviews",
        201,
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": {}, "status": {"allowed": allowed}}),
    );
}

fn is_untouched(world: &World) {
    assert!(
        world
            .api
            .made(&Method::PATCH, "ephemeralcontainers")
            .is_empty()
    );
    assert!(world.agents.heard().is_empty());
}

#[tokio::test]
async fn a_requester_who_may_no_longer_exec_runs_nothing_and_touches_no_pod() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let (world, _settings) = fenced(&agents, &pod(json!({})), &asked_by_ann(), true);
    says(&world, false);
    assert_eq!(world.drive().await, ENDED);
    let status = world.status();
    assert_eq!(status["reason"], "PolicyDenied");
    assert_eq!(status["phase"], "Failed");
    is_untouched(&world);
}

#[tokio::test]
async fn a_requester_who_may_costs_one_question() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let (world, _settings) = fenced(&agents, &pod(json!({})), &asked_by_ann(), true);
    says(&world, true);
    assert_eq!(world.drive().await, ENDED);
    assert_eq!(world.status()["reason"], "Succeeded");
    assert_eq!(
        world.api.made(&Method::POST, "subjectaccessreviews").len(),
        1
    );
    // Nothing that only reads asks.
    world.api.put(SESSION, &session(json!({"stacks": {}})));
    assert_eq!(world.drive().await, ENDED);
    assert_eq!(
        world.api.made(&Method::POST, "subjectaccessreviews").len(),
        1
    );
}

#[tokio::test]
async fn a_script_of_nobody_is_refused_where_a_requester_is_demanded() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let (world, _settings) = fenced(&agents, &pod(json!({})), &exec(), true);
    assert_eq!(world.drive().await, ENDED);
    assert_eq!(world.status()["reason"], "RequesterUnknown");
    is_untouched(&world);
}

#[tokio::test]
async fn a_pod_that_keeps_sessions_out_is_left_alone_also_by_a_dry_run() {
    let closed = pod(json!({"metadata": {"labels": {"sidewinder.dev/deny": "true"}}}));
    for spec in [json!({"stacks": {}}), json!({"stacks": {}, "dryRun": true})] {
        let agents = Agents::new("i1", Some(Reason::Succeeded));
        let (world, _settings) = fenced(&agents, &closed, &session(spec), true);
        assert_eq!(world.drive().await, ENDED);
        let status = world.status();
        assert_eq!(status["reason"], "PolicyDenied");
        assert!(
            status["targets"][0]["message"]
                .as_str()
                .unwrap()
                .contains("sidewinder.dev/deny"),
            "{status}"
        );
        is_untouched(&world);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pods_label_counts_although_it_was_read_long_before() {
    for (closed, reason) in [(true, "PolicyDenied"), (false, "Succeeded")] {
        let agents = Agents::new("i1", Some(Reason::Succeeded));
        let (world, _settings) = fenced(&agents, &carrying(), &asked_by_ann(), true);
        // The API server takes its time to say that ann may.
        for _ in 0..8 {
            let reviews = "subjectaccessreviews";
            world.api.refuse(Method::POST, reviews, "", 503, "away");
        }
        says(&world, true);
        let close = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if closed {
                let labels = json!({"metadata": {"labels": {"sidewinder.dev/deny": "true"}}});
                world.api.change(POD, labels);
            }
        };
        let (outcome, ()) = tokio::join!(world.drive(), close);
        assert_eq!(outcome, ENDED);
        assert_eq!(world.status()["reason"], reason);
        if closed {
            is_untouched(&world);
        }
        // Once at first, and once when the answer came.
        assert_eq!(world.api.made(&Method::GET, POD).len(), 2);
    }
}

#[tokio::test]
async fn the_kill_switch_refuses_what_comes_and_stops_what_runs() {
    let agents = Agents::new("i1", None);
    let (world, settings) = fenced(&agents, &pod(json!({})), &exec(), false);
    let kill = async {
        world
            .api
            .until(SESSION, |session| session["status"]["phase"] == "Running")
            .await;
        settings.send_modify(|settings| settings.kill_switch = KillSwitch::CodeRunning);
    };
    let (outcome, ()) = tokio::join!(world.drive(), kill);
    assert_eq!(outcome, ENDED);
    let status = world.status();
    assert_eq!(status["reason"], "Cancelled");
    // Nobody who reads it cancelled it.
    for said in [&status["conditions"], &status["targets"][0]["message"]] {
        assert!(said.to_string().contains("kill switch"), "{status}");
    }
    let cancels = |message: &&ToAgent| matches!(message, ToAgent::Cancel { .. });
    assert!(world.agents.heard().iter().any(|message| cancels(&message)));

    let before = world.agents.runs().len();
    world.api.put(SESSION, &exec());
    assert_eq!(world.drive().await, ENDED);
    assert_eq!(world.status()["reason"], "PolicyDenied");
    assert_eq!(world.agents.runs().len(), before);
}

#[tokio::test(start_paused = true)]
async fn while_the_settings_are_not_known_nothing_ends_but_what_is_told_to_stop() {
    let minutes = Duration::from_mins(5);
    for spec in [
        json!({"stacks": {}}),
        json!({"stacks": {}, "dryRun": true}),
        json!({"remoteExec": {"script": "print(1)"}}),
    ] {
        for (told, expected) in [("nothing", ENDED), ("cancel", ENDED), ("gone", GONE)] {
            let agents = Agents::new("i1", Some(Reason::Succeeded));
            let (world, settings) = fenced(&agents, &pod(json!({})), &session(spec.clone()), false);
            settings.send_replace(settings::Settings::unread("nobody answered yet"));
            let began = Instant::now();
            let tell = async {
                tokio::time::sleep(minutes).await;
                assert!(world.status()["completionTime"].is_null());
                is_untouched(&world);
                match told {
                    "nothing" => {
                        settings.send_replace(settings::Settings::default());
                    }
                    "cancel" => world.cancel(),
                    _ => world.signals.send_modify(|signal| signal.gone = true),
                }
            };
            let (outcome, ()) = tokio::join!(world.drive(), tell);
            assert_eq!(outcome, expected, "{spec} {told}");
            assert!(began.elapsed() < minutes + Duration::from_secs(10));
            let reason = &world.status()["reason"];
            match told {
                "nothing" if spec["dryRun"] == true => assert_eq!(reason, "DryRun"),
                "nothing" => assert_eq!(reason, "Succeeded"),
                "cancel" => assert_eq!(reason, "Cancelled"),
                _ => assert!(reason.is_null()),
            }
            if told != "nothing" {
                is_untouched(&world);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_never_comes_ends_the_session_and_a_cancelled_wait_ends_at_once() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let (world, _settings) = fenced(&agents, &pod(json!({})), &exec(), false);
    let held = world.context.fences.slots(&exec());
    let held = held.acquire(Some("node-1"), "pod-uid-1").await;
    assert_eq!(world.drive().await, ENDED);
    assert_eq!(world.status()["reason"], "QueueFull");
    is_untouched(&world);

    // What only reads has turns of its own.
    world.api.put(SESSION, &session(json!({"stacks": {}})));
    assert_eq!(world.drive().await, ENDED);
    assert_eq!(world.status()["reason"], "Succeeded");

    world.api.put(SESSION, &exec());
    let mut cancelled = exec();
    cancelled.spec.cancel = true;
    world
        .signals
        .send_modify(|signal| signal.latest = Some(Arc::new(cancelled)));
    let began = Instant::now();
    assert_eq!(world.drive().await, ENDED);
    assert_eq!(world.status()["reason"], "Cancelled");
    assert!(began.elapsed() < Duration::from_secs(1));
    drop(held);
    assert_eq!(world.context.fences.slots(&exec()).in_use(), (0, 0));
}

#[tokio::test]
async fn a_script_that_was_recorded_and_not_sent_begins_only_for_whoever_may_still_run_it() {
    for (allowed, sent_before, reason, disarmed) in [
        (true, false, "Succeeded", "NotArmed"),
        (false, false, "PolicyDenied", "NotArmed"),
        // What runs already is past the gate: its answer is fetched.
        (false, true, "Succeeded", "NotArmed"),
    ] {
        let agents = Agents::new("i1", Some(Reason::Succeeded));
        let mut session = asked_by_ann();
        session.status = interrupted("i1").status;
        let (world, _settings) = fenced(&agents, &carrying(), &session, true);
        if sent_before {
            let request = request_of("5e55-1");
            world.agents.heard().push(ToAgent::Run { request });
        }
        says(&world, allowed);
        assert_eq!(world.drive().await, ENDED);
        let status = world.status();
        assert_eq!(status["reason"], reason, "{status:#}");
        assert_eq!(status["targets"][0]["disarmed"], disarmed);
        let heard = world.agents.heard();
        let asked = heard.iter().rev().find_map(|message| match message {
            ToAgent::Run { request } => Some(request.clone()),
            _ => None,
        });
        let asked = asked.unwrap();
        let sidewinder_model::Action::Exec(exec) = asked.action else {
            panic!("{:?}", asked.action);
        };
        assert_eq!(asked.timeout_milliseconds > 0, allowed);
        assert_eq!(exec.script.is_empty(), !allowed);
        drop(heard);
        if reason == "PolicyDenied" {
            let message = status["targets"][0]["message"].as_str().unwrap();
            assert!(message.contains("was not begun"), "{message}");
        }
    }
}

fn request_of(id: &str) -> sidewinder_model::Request {
    sidewinder_model::Request {
        id: id.to_owned(),
        name: None,
        instance: Some("i1".to_owned()),
        action: sidewinder_model::Action::Exec(sidewinder_model::ExecRequest::default()),
        process: None,
        container_id: None,
        timeout_milliseconds: 30_000,
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_read_once_and_again_only_after_a_wait_for_a_turn() {
    let stacks = || session(json!({"stacks": {}}));
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let (world, _settings) = fenced(&agents, &carrying(), &stacks(), false);
    for (wait, reads) in [
        (None, 1),
        (Some(Duration::ZERO), 1),
        (Some(Duration::from_secs(5)), 2),
    ] {
        world.api.put(SESSION, &stacks());
        let before = world.api.made(&Method::GET, POD).len();
        let slots = world.context.fences.slots(&stacks());
        let held = match wait {
            Some(_) => Some(slots.acquire(Some("node-1"), "pod-uid-1").await),
            None => None,
        };
        let leave = async {
            // Until the session waits, too.
            tokio::time::sleep(Duration::from_millis(1)).await;
            tokio::time::sleep(wait.unwrap_or_default()).await;
            drop(held);
        };
        let (outcome, ()) = tokio::join!(world.drive(), leave);
        assert_eq!(outcome, ENDED);
        assert_eq!(world.status()["reason"], "Succeeded");
        let read = world.api.made(&Method::GET, POD).len() - before;
        assert_eq!(read, reads, "after {wait:?}");
    }
}
