//! Which sidecar is used, and when one is added.

use serde_json::{Value, json};
use sidewinder_crds::AttachedAs;

use super::super::plan;
use super::*;
use crate::testing::{pod, session, sidecar};

const OLD: &str = "registry.example/sidewinder-sidecar:0.0.9";

/// A pod with sidecars: how each got in, its image and its state.
fn carrying(sidecars: &[(AttachedAs, &str, Value)]) -> Pod {
    let plain = pod(json!({}));
    let containers: Vec<_> = (1..)
        .zip(sidecars)
        .map(|(number, (attach, image, _))| {
            let name = format!("sidewinder-app-{number}");
            let mut release = sidecar();
            (*image).clone_into(&mut release.image);
            inject::ephemeral_container(&plain, "app", *attach, &release, &name).unwrap()
        })
        .collect();
    let statuses: Vec<_> = (1..)
        .zip(sidecars)
        .map(|(number, (_, _, state))| {
            json!({"name": format!("sidewinder-app-{number}"), "ready": false, "restartCount": 0, "image": "",
                "imageID": "", "state": state})
        })
        .collect();
    pod(json!({
        "spec": {"ephemeralContainers": containers},
        "status": {"ephemeralContainerStatuses": statuses}
    }))
}

fn running() -> Value {
    json!({"running": {}})
}

fn waiting() -> Value {
    json!({"waiting": {"reason": "ContainerCreating"}})
}

fn ended(code: i32) -> Value {
    json!({"terminated": {"exitCode": code}})
}

fn decide(attach: &str, observed: &Observed) -> Step {
    let session = session(json!({"stacks": {}, "attach": attach}));
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    plan(&session, observed, &sidecar(), now)
}

/// What is opened, or added.
fn decided(attach: &str, observed: &Observed) -> (&'static str, String, Way) {
    match decide(attach, observed) {
        Step::Open { sidecar, way, .. } => ("open", sidecar, way),
        Step::Inject { container, way } => ("add", container.name, way),
        step => panic!("{step:?}"),
    }
}

fn seeing(sidecars: &[(AttachedAs, &str, Value)]) -> Observed {
    Observed {
        pod: Some(carrying(sidecars)),
        ..Observed::default()
    }
}

#[test]
fn what_lives_is_used_before_anything_is_added() {
    use AttachedAs::{Ptrace, SameUser};
    let current = sidecar().image;
    let current = current.as_str();
    for (sidecars, attach, expected) in [
        (
            vec![(SameUser, current, running())],
            "Auto",
            ("open", 1, Way::SameUser),
        ),
        (
            vec![(SameUser, current, running())],
            "Ptrace",
            ("add", 2, Way::Ptrace),
        ),
        (
            vec![(Ptrace, current, running())],
            "SameUser",
            ("add", 2, Way::SameUser),
        ),
        (
            vec![(SameUser, current, ended(0))],
            "Auto",
            ("add", 2, Way::Ptrace),
        ),
        (
            vec![(SameUser, current, waiting())],
            "Auto",
            ("add", 2, Way::Ptrace),
        ),
        (
            vec![(Ptrace, current, running()), (SameUser, current, running())],
            "Auto",
            ("open", 1, Way::Ptrace),
        ),
        // The one that was just added is waited for.
        (
            vec![(SameUser, current, ended(0)), (Ptrace, current, waiting())],
            "Auto",
            ("open", 2, Way::Ptrace),
        ),
        (
            vec![(Ptrace, OLD, running())],
            "Auto",
            ("open", 1, Way::Ptrace),
        ),
        (
            vec![(Ptrace, "elsewhere/sidecar:1", running())],
            "Auto",
            ("add", 2, Way::Ptrace),
        ),
    ] {
        let (what, number, way) = expected;
        assert_eq!(
            decided(attach, &seeing(&sidecars)),
            (what, format!("sidewinder-app-{number}"), way),
            "{sidecars:?} with {attach}"
        );
    }
}

#[test]
fn what_lives_but_was_refused_by_the_kernel_is_not_used_again() {
    let mut observed = seeing(&[(AttachedAs::SameUser, &sidecar().image, running())]);
    let refusal = Refusal::new(Reason::YamaForbidden, "1");
    observed.refused.insert(Way::SameUser, refusal);
    assert_eq!(
        decided("Auto", &observed),
        ("add", "sidewinder-app-2".to_owned(), Way::Ptrace)
    );
}

#[test]
fn an_agent_that_speaks_another_protocol_gets_one_of_ours_beside_it_and_not_more() {
    let version = || {
        Some(RelayError::Version {
            theirs: 0,
            version: "0.0.9".into(),
        })
    };
    let mut observed = seeing(&[(AttachedAs::Ptrace, OLD, running())]);
    observed.link_error = version();
    assert_eq!(
        decided("Auto", &observed),
        ("add", "sidewinder-app-2".to_owned(), Way::Ptrace)
    );
    // It was added: what is heard of the old one counts no more.
    let both = [
        (AttachedAs::Ptrace, OLD, running()),
        (AttachedAs::Ptrace, &*sidecar().image, waiting()),
    ];
    let mut observed = seeing(&both);
    assert_eq!(
        decided("Auto", &observed),
        ("open", "sidewinder-app-2".to_owned(), Way::Ptrace)
    );
    observed.link_error = version();
    let Step::End(end) = decide("Auto", &observed) else {
        panic!("one of ours that speaks another protocol is no reason for a third")
    };
    assert_eq!(end.reason, Reason::SidecarVersion);
    assert!(
        end.message.contains("of the same release"),
        "{}",
        end.message
    );
}

#[test]
fn a_full_pod_says_why_what_it_carries_was_not_enough() {
    let full: Vec<_> = (0..32)
        .map(|_| (AttachedAs::Ptrace, OLD, running()))
        .collect();
    let mut observed = seeing(&full);
    assert_eq!(decided("Auto", &observed).0, "open");
    observed.link_error = Some(RelayError::Version {
        theirs: 0,
        version: "0.0.9".into(),
    });
    let Step::End(end) = decide("Auto", &observed) else {
        panic!("there is no room")
    };
    assert_eq!(end.reason, Reason::TooManySidecars);
    for words in ["32 sidecars", "version \"0.0.9\""] {
        assert!(end.message.contains(words), "{}", end.message);
    }
}

#[test]
fn a_sandbox_that_was_made_again_gets_a_new_sidecar() {
    let mut observed = seeing(&[(AttachedAs::Ptrace, &sidecar().image, ended(137))]);
    observed
        .injected
        .insert("sidewinder-app-1".into(), "containerd://before".into());
    assert_eq!(
        decided("Auto", &observed),
        ("add", "sidewinder-app-2".to_owned(), Way::Ptrace)
    );
}

#[test]
fn a_sidecar_of_another_release_that_does_not_start_is_not_waited_for() {
    let stuck = || json!({"waiting": {"reason": "ImagePullBackOff", "message": "not there"}});
    for state in [stuck(), waiting()] {
        let observed = seeing(&[(AttachedAs::Ptrace, OLD, state)]);
        let (what, name, _) = decided("Auto", &observed);
        assert_eq!((what, name.as_str()), ("add", "sidewinder-app-2"));
    }
    // One of this release that cannot be pulled says so.
    let ours = sidecar().image;
    let observed = seeing(&[(AttachedAs::Ptrace, &ours, stuck())]);
    let Step::End(end) = decide("Auto", &observed) else {
        panic!("it is waited for");
    };
    assert_eq!(end.reason, Reason::ImagePullFailed);
}
