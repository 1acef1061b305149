//! The decisions, as tables, and what must hold whatever happens.
#![expect(clippy::needless_pass_by_value, reason = "json! makes values")]

use proptest::prelude::*;
use serde_json::{Value, json};
use sidewinder_model::{Action, Outcome, TargetOutcome};

use super::*;
use crate::inject;
use crate::testing::{merge, pod, session, sidecar};

fn now() -> Timestamp {
    "2026-01-01T00:10:00Z".parse().unwrap()
}

fn seconds(count: i64) -> SignedDuration {
    SignedDuration::from_secs(count)
}

fn decide(session: &DebugSession, observed: &Observed) -> Step {
    plan(session, observed, &sidecar(), now())
}

fn stacks() -> DebugSession {
    session(json!({"stacks": {}}))
}

fn exec() -> DebugSession {
    session(json!({"remoteExec": {"script": "print(1)"}}))
}

fn seeing(pod: Pod) -> Observed {
    Observed {
        pod: Some(pod),
        script: None,
        ..Observed::default()
    }
}

fn scripted(pod: Pod) -> Observed {
    Observed {
        script: Some(Ok("print(1)".into())),
        ..seeing(pod)
    }
}

fn link(attach: AttachedAs, instance: &str) -> Link {
    Link {
        sidecar: "sidewinder-app-1".into(),
        attach,
        instance: instance.into(),
    }
}

fn intent(instance: &str) -> Intent {
    Intent {
        pod_uid: "pod-uid-1".into(),
        container: "app".into(),
        container_id: "containerd://c1".into(),
        sidecar: "sidewinder-app-1".into(),
        attach: AttachedAs::Ptrace,
        instance: instance.into(),
    }
}

/// The pod with our sidecar in `state` (a kubelet's container state), for each of the given ways.
fn carrying(ways: &[(AttachedAs, Value)], patch: Value) -> Pod {
    let plain = pod(patch.clone());
    let mut containers = Vec::new();
    let mut statuses = Vec::new();
    for (number, (attach, state)) in ways.iter().enumerate() {
        let name = format!("sidewinder-app-{}", number + 1);
        let container =
            inject::ephemeral_container(&plain, "app", *attach, &sidecar(), &name).unwrap();
        containers.push(serde_json::to_value(container).unwrap());
        if !state.is_null() {
            statuses.push(json!({"name": name, "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": state}));
        }
    }
    let mut whole = json!({
        "spec": {"ephemeralContainers": containers},
        "status": {"ephemeralContainerStatuses": statuses}
    });
    merge(&mut whole, patch);
    pod(whole)
}

fn running() -> Value {
    json!({"running": {}})
}

fn app(state: Value, id: &str) -> Value {
    json!({"status": {"containerStatuses": [{
        "name": "app", "ready": false, "restartCount": 1, "image": "app:1", "imageID": "app",
        "containerID": id, "state": state, "user": {"linux": {"uid": 1000, "gid": 2000}}
    }]}})
}

fn reason_of(step: &Step) -> Reason {
    match step {
        Step::End(end) => end.reason,
        other => panic!("not an end: {other:?}"),
    }
}

fn words_of(step: &Step) -> &str {
    match step {
        Step::End(end) => &end.message,
        other => panic!("not an end: {other:?}"),
    }
}

#[test]
fn pods_that_cannot_be_entered_end_the_session_at_once() {
    for (patch, reason, words) in [
        (
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            Reason::PodNotRunning,
            "being deleted",
        ),
        (
            json!({"status": {"phase": "Succeeded"}}),
            Reason::PodNotRunning,
            "Succeeded",
        ),
        (
            json!({"status": {"phase": "Failed"}}),
            Reason::PodNotRunning,
            "Failed",
        ),
        (
            json!({"spec": {"hostPID": true}}),
            Reason::HostPID,
            "hostPID",
        ),
        (
            json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}),
            Reason::StaticPod,
            "static",
        ),
        (
            json!({"spec": {"os": {"name": "windows"}}}),
            Reason::UnsupportedPlatform,
            "Linux",
        ),
    ] {
        let step = decide(&stacks(), &seeing(pod(patch)));
        assert_eq!(reason_of(&step), reason);
        assert!(words_of(&step).contains(words), "{}", words_of(&step));
    }
    let missing = decide(&stacks(), &Observed::default());
    assert_eq!(reason_of(&missing), Reason::PodNotFound);
    let wrong = decide(
        &session(json!({"stacks": {}, "target": {"container": "db"}})),
        &seeing(pod(json!({}))),
    );
    assert_eq!(reason_of(&wrong), Reason::ContainerNotFound);
    assert!(words_of(&wrong).contains("app"));
    let mut never = app(json!({"terminated": {"exitCode": 0}}), "containerd://c1");
    never["spec"] = json!({"restartPolicy": "Never"});
    let step = decide(&stacks(), &seeing(pod(never)));
    assert_eq!(reason_of(&step), Reason::PodNotRunning);
}

#[test]
fn what_may_still_start_is_waited_for_and_not_for_ever() {
    for patch in [
        json!({"status": {"phase": "Pending", "containerStatuses": null}}),
        app(
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}),
            "containerd://c1",
        ),
        app(json!({"terminated": {"exitCode": 1}}), "containerd://c1"),
    ] {
        let observed = seeing(pod(patch));
        let Step::AwaitPod { until, .. } = decide(&stacks(), &observed) else {
            panic!("not waited for")
        };
        assert_eq!(until, after(now(), POD_LIMIT));
        let mut late = stacks();
        late.status.get_or_insert_default().start_time = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now() - seconds(60)),
        );
        assert_eq!(reason_of(&decide(&late, &observed)), Reason::PodNotRunning);
    }
}

#[test]
fn the_first_use_adds_a_sidecar_in_the_way_that_is_allowed() {
    let refusal = Refusal::new(Reason::PodSecurityForbidden, "violates PodSecurity");
    let refused = |ways: &[Way]| {
        ways.iter()
            .map(|way| (*way, refusal.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    for (attach, refused, expected) in [
        ("Auto", refused(&[]), Some(Way::Ptrace)),
        ("Auto", refused(&[Way::Ptrace]), Some(Way::SameUser)),
        ("Auto", refused(&[Way::Ptrace, Way::SameUser]), None),
        ("Ptrace", refused(&[]), Some(Way::Ptrace)),
        ("Ptrace", refused(&[Way::Ptrace]), None),
        ("SameUser", refused(&[]), Some(Way::SameUser)),
        ("SameUser", refused(&[Way::SameUser]), None),
    ] {
        let observed = Observed {
            refused,
            ..seeing(pod(json!({})))
        };
        let step = decide(&session(json!({"stacks": {}, "attach": attach})), &observed);
        if let Some(wanted) = expected {
            let Step::Inject { way, container } = step else {
                panic!("{attach}: {step:?}")
            };
            assert_eq!(way, wanted, "{attach}");
            assert_eq!(container.name, "sidewinder-app-1");
        } else {
            assert_eq!(reason_of(&step), Reason::PodSecurityForbidden);
            assert!(words_of(&step).contains("violates PodSecurity"));
        }
    }
}

#[test]
fn a_sidecar_that_is_there_is_used_again_and_one_that_ended_is_not() {
    use AttachedAs::{Ptrace, SameUser};
    let ended = json!({"terminated": {"exitCode": 0}});
    for (ways, expected) in [
        (vec![(Ptrace, running())], Ok("sidewinder-app-1")),
        (vec![(Ptrace, Value::Null)], Ok("sidewinder-app-1")),
        (
            vec![(Ptrace, ended.clone()), (Ptrace, running())],
            Ok("sidewinder-app-2"),
        ),
        (vec![(Ptrace, ended.clone())], Err("sidewinder-app-2")),
        (vec![(SameUser, ended.clone())], Err("sidewinder-app-2")),
    ] {
        let observed = seeing(carrying(&ways, json!({})));
        match (decide(&stacks(), &observed), expected) {
            (Step::Open { sidecar, way, .. }, Ok(name)) => {
                assert_eq!((sidecar.as_str(), way), (name, Way::Ptrace));
            }
            (Step::Inject { container, .. }, Err(name)) => assert_eq!(container.name, name),
            (step, _) => panic!("{ways:?}: {step:?}"),
        }
    }
}

#[test]
fn the_kubelets_words_end_getting_in() {
    use AttachedAs::Ptrace;
    for reason in [
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
    ] {
        let state = json!({"waiting": {"reason": reason, "message": "no such image"}});
        let step = decide(&stacks(), &seeing(carrying(&[(Ptrace, state)], json!({}))));
        assert_eq!(reason_of(&step), Reason::ImagePullFailed);
        assert!(words_of(&step).contains("no such image"));
    }
    let creating = json!({"waiting": {"reason": "CreateContainerError", "message": "mounts"}});
    let mut observed = seeing(carrying(&[(Ptrace, creating)], json!({})));
    assert!(matches!(decide(&stacks(), &observed), Step::Open { .. }));
    observed.entering_since = Some(now() - seconds(60));
    let step = decide(&stacks(), &observed);
    assert_eq!(reason_of(&step), Reason::SidecarFailed);
    assert!(words_of(&step).contains("CreateContainerError: mounts"));

    let broken = json!({"terminated": {"exitCode": 128, "reason": "StartError", "message": "exec format error"}});
    let mut observed = seeing(carrying(&[(Ptrace, broken)], json!({})));
    observed
        .injected
        .insert("sidewinder-app-1".into(), "containerd://c1".into());
    let step = decide(&stacks(), &observed);
    assert_eq!(reason_of(&step), Reason::SidecarFailed);
    assert!(words_of(&step).contains("exec format error"));
    // The target restarted and took its sidecar along: another one goes in.
    observed
        .injected
        .insert("sidewinder-app-1".into(), "containerd://c0".into());
    assert!(matches!(decide(&stacks(), &observed), Step::Inject { .. }));
}

#[test]
fn errors_of_the_stream_that_trying_again_does_not_mend_end_the_session() {
    for (error, reason) in [
        (
            RelayError::Forbidden("no".into()),
            Reason::AdmissionForbidden,
        ),
        (
            RelayError::Version {
                theirs: 9,
                version: "9".into(),
            },
            Reason::SidecarVersion,
        ),
    ] {
        let observed = Observed {
            link_error: Some(error),
            ..seeing(carrying(&[(AttachedAs::Ptrace, running())], json!({})))
        };
        assert_eq!(reason_of(&decide(&stacks(), &observed)), reason);
    }
    let observed = Observed {
        link_error: Some(RelayError::NodeUnreachable("dial tcp".into())),
        entering_since: Some(now() - seconds(61)),
        ..seeing(carrying(&[(AttachedAs::Ptrace, running())], json!({})))
    };
    assert_eq!(reason_of(&decide(&stacks(), &observed)), Reason::NodeLost);
}

#[test]
fn a_read_only_action_is_asked_at_once_and_a_script_only_after_its_intent() {
    let there = carrying(&[(AttachedAs::Ptrace, running())], json!({}));
    let linked = Observed {
        link: Some(link(AttachedAs::Ptrace, "i1")),
        ..scripted(there)
    };
    let Step::Ask {
        request,
        until,
        cancel,
    } = decide(&stacks(), &linked)
    else {
        panic!("not asked")
    };
    assert_eq!(request.instance, None);
    assert_eq!(request.container_id.as_deref(), Some("c1"));
    assert_eq!(request.id, "5e55-1");
    assert!(!cancel);
    assert_eq!(until, after(now(), Duration::from_secs(30) + ANSWER_GRACE));

    assert_eq!(decide(&exec(), &linked), Step::Record(intent("i1")));
    let recorded = Observed {
        intent: Some(intent("i1")),
        ..linked
    };
    let Step::Ask { request, .. } = decide(&exec(), &recorded) else {
        panic!("not asked")
    };
    assert_eq!(request.instance.as_deref(), Some("i1"));
    let Action::Exec(exec) = request.action else {
        panic!("no script")
    };
    assert_eq!(
        (exec.script.as_str(), exec.start_milliseconds),
        ("print(1)", 3000)
    );
}

#[test]
fn a_given_script_is_never_given_to_another_agent() {
    let ended = json!({"terminated": {"exitCode": 137}});
    let there = |state, patch| carrying(&[(AttachedAs::Ptrace, state)], patch);
    let mut replaced = json!({});
    replaced["metadata"] = json!({"uid": "another"});
    for (pod, instance, reason, armed) in [
        (
            Some(there(running(), json!({}))),
            Some("i2"),
            Reason::SidecarLost,
            true,
        ),
        (
            Some(there(ended.clone(), json!({}))),
            None,
            Reason::SidecarLost,
            true,
        ),
        (
            Some(there(ended.clone(), app(running(), "containerd://c2"))),
            None,
            Reason::TargetRestarted,
            false,
        ),
        (
            Some(there(
                ended.clone(),
                app(json!({"terminated": {"exitCode": 1}}), "containerd://c1"),
            )),
            None,
            Reason::TargetRestarted,
            false,
        ),
        (
            Some(there(
                ended,
                app(
                    json!({"waiting": {"reason": "CrashLoopBackOff"}}),
                    "containerd://c1",
                ),
            )),
            None,
            Reason::TargetRestarted,
            false,
        ),
        (
            Some(there(running(), replaced)),
            None,
            Reason::TargetExited,
            false,
        ),
        (None, None, Reason::TargetExited, false),
    ] {
        let observed = Observed {
            pod,
            intent: Some(intent("i1")),
            link: instance.map(|instance| link(AttachedAs::Ptrace, instance)),
            script: Some(Ok("print(1)".into())),
            ..Observed::default()
        };
        let step = decide(&exec(), &observed);
        let Step::End(end) = &step else {
            panic!("{step:?}")
        };
        assert_eq!(
            (end.reason, end.maybe_armed),
            (reason, armed),
            "{}",
            end.message
        );
    }
    let mut never = app(json!({"terminated": {"exitCode": 0}}), "containerd://c1");
    never["spec"] = json!({"restartPolicy": "Never"});
    let observed = Observed {
        intent: Some(intent("i1")),
        ..scripted(there(running(), never))
    };
    assert_eq!(reason_of(&decide(&exec(), &observed)), Reason::TargetExited);
}

#[test]
fn a_script_in_a_pod_that_is_over_ends_with_its_target() {
    let there = |state, patch| carrying(&[(AttachedAs::Ptrace, state)], patch);
    // A pod that is deleted takes the sidecar along, often before its own containers.
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let observed = Observed {
        intent: Some(intent("i1")),
        ..scripted(there(
            json!({"terminated": {"exitCode": 0}}),
            deleted.clone(),
        ))
    };
    let step = decide(&exec(), &observed);
    assert_eq!(reason_of(&step), Reason::TargetExited);
    assert!(matches!(step, Step::End(end) if end.maybe_armed));
    // Whatever its restart policy says, a pod that is over starts nothing again: a container that waits for its restart
    // has ended like any other, and nothing is armed in it.
    let evicted = json!({"status": {"phase": "Failed"}});
    for over in [&deleted, &evicted] {
        for state in [
            json!({"terminated": {"exitCode": 137}}),
            json!({"waiting": {"reason": "CrashLoopBackOff"}}),
        ] {
            let mut pod = app(state, "containerd://c1");
            merge(&mut pod, over.clone());
            for sidecar in [running(), json!({"terminated": {"exitCode": 137}})] {
                let observed = Observed {
                    intent: Some(intent("i1")),
                    ..scripted(there(sidecar, pod.clone()))
                };
                let step = decide(&exec(), &observed);
                assert_eq!(reason_of(&step), Reason::TargetExited);
                assert!(matches!(step, Step::End(end) if !end.maybe_armed));
            }
        }
    }
    // Also where its containers are not yet known to have ended.
    let observed = Observed {
        intent: Some(intent("i1")),
        ..scripted(there(json!({"terminated": {"exitCode": 137}}), evicted))
    };
    let step = decide(&exec(), &observed);
    assert_eq!(reason_of(&step), Reason::TargetExited);
    assert!(matches!(step, Step::End(end) if end.maybe_armed));
}

#[test]
fn a_resumed_script_goes_back_to_its_own_sidecar() {
    let observed = Observed {
        intent: Some(intent("i1")),
        ..scripted(carrying(
            &[
                (AttachedAs::Ptrace, running()),
                (AttachedAs::Ptrace, running()),
            ],
            json!({}),
        ))
    };
    let Step::Open { sidecar, .. } = decide(&exec(), &observed) else {
        panic!("not opened")
    };
    assert_eq!(sidecar, "sidewinder-app-1");
}

#[test]
fn a_read_only_action_is_repeated_once_when_its_agent_goes_away() {
    let ended = json!({"terminated": {"exitCode": 137, "reason": "Error"}});
    let mut observed = Observed {
        asked_since: Some(now()),
        asked: BTreeSet::from(["sidewinder-app-1".into()]),
        ..seeing(carrying(&[(AttachedAs::Ptrace, ended.clone())], json!({})))
    };
    assert!(matches!(decide(&stacks(), &observed), Step::Inject { .. }));
    observed.asked.insert("sidewinder-app-2".into());
    observed.pod = Some(carrying(
        &[
            (AttachedAs::Ptrace, ended.clone()),
            (AttachedAs::Ptrace, ended),
        ],
        json!({}),
    ));
    let step = decide(&stacks(), &observed);
    assert_eq!(reason_of(&step), Reason::SidecarLost);
    assert!(words_of(&step).contains("137"), "{}", words_of(&step));
}

#[test]
fn cancelling_ends_what_was_not_begun_and_stops_what_was() {
    let cancelled = |observed: Observed| Observed {
        cancelled_since: Some(now() - seconds(1)),
        ..observed
    };
    let there = || carrying(&[(AttachedAs::Ptrace, running())], json!({}));
    for session in [stacks(), exec()] {
        for observed in [
            Observed::default(),
            seeing(pod(json!({}))),
            scripted(there()),
        ] {
            assert_eq!(
                reason_of(&decide(&session, &cancelled(observed))),
                Reason::Cancelled
            );
        }
    }
    let begun = cancelled(Observed {
        intent: Some(intent("i1")),
        link: Some(link(AttachedAs::Ptrace, "i1")),
        asked_since: Some(now() - seconds(5)),
        ..scripted(there())
    });
    let Step::Ask {
        request,
        until,
        cancel,
    } = decide(&exec(), &begun)
    else {
        panic!("not stopped")
    };
    assert!(cancel);
    assert_eq!(
        request.timeout_milliseconds, 0,
        "a request that never arrived must not begin"
    );
    assert_eq!(until, after(now() - seconds(1), CANCEL_LIMIT));
    // The agent cannot be reached any more.
    let unreachable = Observed {
        link: None,
        cancelled_since: Some(now() - seconds(10)),
        ..begun
    };
    let Step::End(end) = decide(&exec(), &unreachable) else {
        panic!("never ends")
    };
    assert_eq!((end.reason, end.maybe_armed), (Reason::Cancelled, true));
}

fn denied(reason: Reason, disarmed: Option<bool>) -> Answer {
    Answer::Finished(Delivered::from(Outcome {
        targets: vec![TargetOutcome {
            disarmed,
            ..TargetOutcome::failed(reason, "yama.ptrace_scope is 1")
        }],
        ..Outcome::default()
    }))
}

#[test]
fn one_fallback_at_most_after_a_refused_attach() {
    let asked = |answer| Observed {
        link: Some(link(AttachedAs::Ptrace, "i1")),
        intent: Some(intent("i1")),
        answer: Some(answer),
        ..scripted(carrying(&[(AttachedAs::Ptrace, running())], json!({})))
    };
    for reason in [Reason::PermissionDenied, Reason::YamaForbidden] {
        for session in [stacks(), exec()] {
            let first = asked(denied(reason, None));
            let Step::FallBack { way, refusal } = decide(&session, &first) else {
                panic!("{reason}: no fallback")
            };
            assert_eq!((way, refusal.reason), (Way::Ptrace, reason));
            // The other way was refused before: no third try.
            let mut second = first;
            second.refused.insert(
                Way::SameUser,
                Refusal::new(Reason::PodSecurityForbidden, "no"),
            );
            assert!(matches!(decide(&session, &second), Step::End(_)));
        }
    }
    // Something was armed: it may have run.
    for armed in [true, false] {
        let step = decide(
            &exec(),
            &asked(denied(Reason::PermissionDenied, Some(armed))),
        );
        assert!(matches!(step, Step::End(_)), "{step:?}");
    }
    let only = session(json!({"remoteExec": {"script": "x"}, "attach": "Ptrace"}));
    let step = decide(&only, &asked(denied(Reason::YamaForbidden, None)));
    assert!(matches!(step, Step::End(_)), "{step:?}");
    let refused = Answer::Refused(Refusal::new(Reason::QueueFull, "32 requests run"));
    assert_eq!(
        reason_of(&decide(&exec(), &asked(refused))),
        Reason::QueueFull
    );
}

#[test]
fn the_intent_is_read_back_from_the_status_it_was_written_to() {
    let target = TargetStatus {
        pod_name: "web-0".into(),
        pod_uid: Some("pod-uid-1".into()),
        container: Some("app".into()),
        container_id: Some("containerd://c1".into()),
        sidecar: Some("sidewinder-app-1".into()),
        attach: Some(AttachedAs::Ptrace),
        agent: Some("i1".into()),
        phase: Some(Phase::Running),
        ..TargetStatus::default()
    };
    assert_eq!(
        Intent::read(std::slice::from_ref(&target)),
        Some(intent("i1"))
    );
    for unfinished in [
        TargetStatus {
            agent: None,
            ..target.clone()
        },
        TargetStatus {
            phase: Some(Phase::Attaching),
            ..target
        },
    ] {
        assert_eq!(Intent::read(&[unfinished]), None);
    }
}

/// What may happen to a session from outside between two steps.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The operator is killed; the next one starts with what stands in the status.
    OperatorRestart,
    /// The stream breaks; the agent lives.
    StreamLost,
    /// The agent is killed.
    AgentKilled,
    /// The target container restarts.
    TargetRestart,
    /// The pod is replaced by another of its name.
    PodReplaced,
    /// The session is cancelled.
    Cancel,
    /// Attaching is refused.
    Denied,
    /// Time passes.
    Wait,
    /// Whatever was begun succeeds.
    Proceed,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => Just(Event::OperatorRestart),
        1 => Just(Event::StreamLost),
        1 => Just(Event::AgentKilled),
        1 => Just(Event::TargetRestart),
        1 => Just(Event::PodReplaced),
        1 => Just(Event::Cancel),
        1 => Just(Event::Denied),
        1 => Just(Event::Wait),
        6 => Just(Event::Proceed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_script_is_never_asked_of_two_agents_and_never_without_its_intent(
        events in proptest::collection::vec(event(), 1..40),
    ) {
        let session = exec();
        let mut at = now();
        let mut observed = scripted(pod(json!({})));
        let mut written: Option<Intent> = None;
        let mut sidecars: Vec<(AttachedAs, Value)> = Vec::new();
        let mut container_id = 1;
        let mut pod_uid = 1;
        let mut instances = 0;
        let mut asked: Vec<String> = Vec::new();
        // Instances that answered that they did nothing.
        let mut innocent: BTreeSet<String> = BTreeSet::new();
        let world = |sidecars: &[(AttachedAs, Value)], container_id: u32, pod_uid: u32| {
            let mut patch = app(running(), &format!("containerd://c{container_id}"));
            patch["metadata"] = json!({"uid": format!("pod-uid-{pod_uid}")});
            carrying(sidecars, patch)
        };
        for event in events {
            match event {
                Event::OperatorRestart => {
                    observed = Observed {
                        intent: written.clone(),
                        cancelled_since: observed.cancelled_since,
                        ..scripted(world(&sidecars, container_id, pod_uid))
                    };
                }
                Event::StreamLost => observed.link = None,
                Event::AgentKilled => {
                    for sidecar in &mut sidecars {
                        sidecar.1 = json!({"terminated": {"exitCode": 137}});
                    }
                    observed.link = None;
                }
                Event::TargetRestart => {
                    container_id += 1;
                    for sidecar in &mut sidecars {
                        sidecar.1 = json!({"terminated": {"exitCode": 137}});
                    }
                    observed.link = None;
                }
                Event::PodReplaced => {
                    pod_uid += 1;
                    container_id += 1;
                    sidecars.clear();
                    observed.link = None;
                }
                Event::Cancel => { observed.cancelled_since.get_or_insert(at); }
                Event::Wait => at += seconds(20),
                Event::Denied | Event::Proceed => {}
            }
            observed.pod = Some(world(&sidecars, container_id, pod_uid));
            match plan(&session, &observed, &sidecar(), at) {
                Step::End(_) => break,
                Step::AwaitPod { until, .. } => at = until,
                Step::Inject { way, .. } => {
                    if sidecars.len() < 9 {
                        sidecars.push((way.into(), running()));
                    } else {
                        break;
                    }
                }
                Step::Open { sidecar, way, .. } => {
                    observed.entering_since.get_or_insert(at);
                    instances += 1;
                    // The agent that the intent names answers with its own instance, as long as it lives.
                    let instance = match &observed.intent {
                        Some(intent) if intent.sidecar == sidecar => intent.instance.clone(),
                        _ => format!("i{instances}"),
                    };
                    observed.link = Some(Link { sidecar, attach: way.into(), instance });
                }
                Step::Record(intent) => {
                    written = Some(intent.clone());
                    observed.intent = Some(intent);
                }
                Step::Ask { request, cancel, .. } => {
                    let instance = request.instance.clone().unwrap();
                    prop_assert_eq!(
                        Some(&instance),
                        written.as_ref().map(|intent| &intent.instance),
                        "asked without its intent"
                    );
                    if !cancel {
                        for before in &asked {
                            prop_assert!(
                                *before == instance || innocent.contains(before),
                                "asked {} after {}", instance, before
                            );
                        }
                        asked.push(instance.clone());
                    }
                    observed.asked_since.get_or_insert(at);
                    observed.answer = match event {
                        Event::Denied => {
                            innocent.insert(instance);
                            Some(denied(Reason::PermissionDenied, None))
                        }
                        _ => None,
                    };
                }
                Step::FallBack { way, refusal } => {
                    observed.refused.insert(way, refusal);
                    observed.answer = None;
                    observed.link = None;
                    observed.intent = None;
                    observed.asked_since = None;
                    observed.entering_since = None;
                }
            }
        }
    }
}

#[test]
fn a_script_that_was_given_away_is_asked_for_although_its_source_is_gone() {
    let gone = Refusal::new(Reason::ScriptNotFound, "there is no ConfigMap scripts");
    let carrying = carrying(&[(AttachedAs::Ptrace, json!({"running": {}}))], json!({}));
    let mut observed = Observed {
        script: Some(Err(gone)),
        ..seeing(carrying)
    };
    let Step::End(end) = decide(&exec(), &observed) else {
        panic!("it is begun without its script");
    };
    assert_eq!(
        (end.reason, end.maybe_armed),
        (Reason::ScriptNotFound, false)
    );
    observed.intent = Some(intent("i1"));
    assert!(matches!(decide(&exec(), &observed), Step::Open { .. }));
    observed.link = Some(Link {
        sidecar: "sidewinder-app-1".into(),
        attach: AttachedAs::Ptrace,
        instance: "i1".into(),
    });
    let Step::Ask {
        request,
        until,
        cancel,
    } = decide(&exec(), &observed)
    else {
        panic!("what it came to is not fetched");
    };
    // One that never arrived has no time to begin, and one that runs has all of its own.
    assert_eq!(request.timeout_milliseconds, 0);
    assert!(!cancel && until > after(now(), Duration::from_secs(30)));
    let sidewinder_model::Action::Exec(asked) = request.action else {
        panic!("{:?}", request.action);
    };
    assert_eq!(asked.start_milliseconds, 0);
}

#[test]
fn an_answer_that_cannot_be_received_ends_the_session_and_leaves_open_what_is_armed() {
    for (session, armed) in [(exec(), true), (stacks(), false)] {
        let refusal = Refusal::new(Reason::ResultNotStored, "too dense");
        let observed = Observed {
            answer: Some(Answer::Unreadable(refusal)),
            ..scripted(pod(json!({})))
        };
        let Step::End(end) = decide(&session, &observed) else {
            panic!("it is asked for again");
        };
        assert_eq!(
            (end.reason, end.maybe_armed),
            (Reason::ResultNotStored, armed)
        );
    }
}

#[test]
fn a_pod_that_is_deleted_while_its_node_is_silent_leaves_open_what_is_armed() {
    let unreachable = RelayError::NodeUnreachable("dial tcp".into());
    let silent = RelayError::Silent(Duration::from_secs(35));
    for (error, once, reason, armed) in [
        (Some(unreachable.clone()), true, Reason::NodeLost, true),
        (Some(silent), true, Reason::NodeLost, true),
        (Some(unreachable), false, Reason::NodeLost, false),
        (
            Some(RelayError::Ended(String::new())),
            true,
            Reason::TargetExited,
            false,
        ),
        (None, true, Reason::TargetExited, false),
    ] {
        let observed = Observed {
            pod: None,
            intent: once.then(|| intent("i1")),
            asked_since: Some(now()),
            link_error: error.clone(),
            ..scripted(pod(json!({})))
        };
        let session = if once { exec() } else { stacks() };
        let Step::End(end) = decide(&session, &observed) else {
            panic!("{error:?}")
        };
        assert_eq!((end.reason, end.maybe_armed), (reason, armed), "{error:?}");
    }
}

#[test]
fn a_refusal_of_another_run_of_the_agent_leaves_open_what_is_armed() {
    for (reason, armed) in [(Reason::SidecarLost, true), (Reason::QueueFull, false)] {
        let observed = Observed {
            intent: Some(intent("i1")),
            answer: Some(Answer::Refused(Refusal::new(reason, "no"))),
            ..scripted(pod(json!({})))
        };
        let Step::End(end) = decide(&exec(), &observed) else {
            panic!("{reason}")
        };
        assert_eq!((end.reason, end.maybe_armed), (reason, armed));
    }
}
