//! Which containers come out, and which pods are refused.
#![expect(clippy::needless_pass_by_value, reason = "json! makes values")]

use serde_json::{Value, json};

use super::*;
use crate::testing::{pod, sidecar};

fn built(patch: Value, attach: AttachedAs) -> Value {
    let container =
        ephemeral_container(&pod(patch), "app", attach, &sidecar(), "sidewinder-app-1").unwrap();
    serde_json::to_value(container).unwrap()
}

fn with_security(security: Value) -> Value {
    json!({"spec": {"containers": [{"name": "app", "image": "app:1", "securityContext": security}]}})
}

fn root() -> Value {
    json!({"containerStatuses": [{
        "name": "app", "ready": true, "restartCount": 0, "image": "app:1", "imageID": "app",
        "containerID": "containerd://c1", "state": {"running": {}},
        "user": {"linux": {"uid": 0, "gid": 0}}
    }]})
}

#[test]
fn ptrace_is_root_with_four_capabilities_and_nothing_else() {
    let container = built(json!({}), AttachedAs::Ptrace);
    assert_eq!(
        container,
        json!({
            "name": "sidewinder-app-1",
            "image": sidecar().image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["/sidewinder-sidecar"],
            "args": ["agent", "--idle-seconds", "1800"],
            "targetContainerName": "app",
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "securityContext": {
                "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false,
                "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": false,
                "capabilities": {"add": ["SYS_PTRACE", "DAC_READ_SEARCH", "SETUID", "SETGID"], "drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"}
            }
        })
    );
}

#[test]
fn same_user_of_a_non_root_target_is_what_restricted_admits() {
    let security = &built(json!({}), AttachedAs::SameUser)["securityContext"];
    assert_eq!(
        *security,
        json!({
            "runAsUser": 1000, "runAsGroup": 2000, "runAsNonRoot": true,
            "allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": false,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"}
        })
    );
}

#[test]
fn same_user_of_a_root_target_has_the_capabilities_of_the_target() {
    for (own, expected) in [
        (json!({}), json!({})),
        (
            json!({"capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["MKNOD"]}}),
            json!({"add": ["NET_BIND_SERVICE"], "drop": ["MKNOD"]}),
        ),
        (json!({"privileged": true}), json!({"add": ["ALL"]})),
    ] {
        let mut patch = with_security(own);
        patch["status"] = root();
        let security = &built(patch, AttachedAs::SameUser)["securityContext"];
        assert_eq!(security["runAsUser"], 0);
        assert_eq!(security["runAsNonRoot"], false);
        assert_eq!(security["capabilities"], expected);
        assert_eq!(security["privileged"], false);
    }
}

#[test]
fn without_the_kubelets_word_the_spec_says_who_the_target_is() {
    let statuses = json!({"containerStatuses": [{
        "name": "app", "ready": true, "restartCount": 0, "image": "app:1", "imageID": "app",
        "containerID": "containerd://c1", "state": {"running": {}}
    }]});
    for (own, shared, expected) in [
        (
            json!({"runAsUser": 5, "runAsGroup": 6}),
            json!({"runAsUser": 7}),
            (5, 6),
        ),
        (json!({}), json!({"runAsUser": 7, "runAsGroup": 8}), (7, 8)),
        (json!({"runAsUser": 5}), json!({"runAsGroup": 8}), (5, 8)),
        (json!({"runAsUser": 5}), json!({}), (5, 0)),
    ] {
        let mut patch = with_security(own);
        patch["spec"]["securityContext"] = shared;
        patch["status"] = statuses.clone();
        let security = &built(patch, AttachedAs::SameUser)["securityContext"];
        assert_eq!(
            (
                security["runAsUser"].as_i64(),
                security["runAsGroup"].as_i64()
            ),
            (Some(expected.0), Some(expected.1))
        );
    }
    let unknown = pod(json!({"status": statuses}));
    let refusal =
        ephemeral_container(&unknown, "app", AttachedAs::SameUser, &sidecar(), "n").unwrap_err();
    assert_eq!(refusal.reason, Reason::PermissionDenied);
    assert!(refusal.message.contains("runAsUser"), "{}", refusal.message);
}

#[test]
fn profiles_of_the_target_are_copied_and_a_pods_own_seccomp_is_not() {
    let mut patch = with_security(json!({"seLinuxOptions": {"level": "s0:c1,c2"}}));
    patch["spec"]["securityContext"] = json!({
        "appArmorProfile": {"type": "Localhost", "localhostProfile": "python"},
        "seLinuxOptions": {"level": "s0:c9"},
        "seccompProfile": {"type": "Localhost", "localhostProfile": "x.json"}
    });
    for attach in [AttachedAs::Ptrace, AttachedAs::SameUser] {
        let security = &built(patch.clone(), attach)["securityContext"];
        assert_eq!(security["appArmorProfile"]["localhostProfile"], "python");
        assert_eq!(security["seLinuxOptions"]["level"], "s0:c1,c2");
        assert_eq!(
            security["seccompProfile"],
            json!({"type": "RuntimeDefault"})
        );
    }
}

#[test]
fn pods_that_take_no_sidecar_are_told_apart() {
    for (patch, reason) in [
        (
            json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}),
            Reason::StaticPod,
        ),
        (json!({"spec": {"hostPID": true}}), Reason::HostPID),
        (
            json!({"spec": {"os": {"name": "windows"}}}),
            Reason::UnsupportedPlatform,
        ),
        (
            json!({"spec": {"nodeSelector": {"kubernetes.io/os": "windows"}}}),
            Reason::UnsupportedPlatform,
        ),
        (
            json!({"spec": {"securityContext": {"windowsOptions": {"runAsUserName": "x"}}}}),
            Reason::UnsupportedPlatform,
        ),
    ] {
        assert_eq!(check_kind(&pod(patch)).unwrap_err().reason, reason);
    }
    for fine in [
        json!({}),
        json!({"spec": {"os": {"name": "linux"}}}),
        json!({"spec": {"shareProcessNamespace": true}}),
        json!({"spec": {"hostPID": false, "hostNetwork": true}}),
    ] {
        assert_eq!(check_kind(&pod(fine)), Ok(()));
    }
}

#[test]
fn the_container_is_the_one_asked_for_or_the_default_one_or_the_first() {
    let two = json!({"spec": {
        "containers": [{"name": "proxy", "image": "p"}, {"name": "app", "image": "a"}],
        "initContainers": [
            {"name": "setup", "image": "s"},
            {"name": "helper", "image": "h", "restartPolicy": "Always"}
        ]
    }});
    let mut annotated = two.clone();
    annotated["metadata"] = json!({"annotations": {DEFAULT_CONTAINER_ANNOTATION: "app"}});
    let mut astray = two.clone();
    astray["metadata"] = json!({"annotations": {DEFAULT_CONTAINER_ANNOTATION: "gone"}});
    for (patch, wanted, expected) in [
        (&two, None, "proxy"),
        (&two, Some("app"), "app"),
        (&two, Some("helper"), "helper"),
        (&annotated, None, "app"),
        (&annotated, Some("proxy"), "proxy"),
        (&astray, None, "proxy"),
    ] {
        assert_eq!(
            choose_container(&pod(patch.clone()), wanted),
            Ok(expected),
            "{wanted:?}"
        );
    }
    for wrong in ["gone", "setup"] {
        let refusal = choose_container(&pod(two.clone()), Some(wrong)).unwrap_err();
        assert_eq!(refusal.reason, Reason::ContainerNotFound);
        assert!(
            refusal.message.contains("proxy, app, helper"),
            "{}",
            refusal.message
        );
    }
}

fn placed(containers: Vec<Value>, statuses: Value) -> Pod {
    pod(json!({
        "spec": {"ephemeralContainers": containers},
        "status": {"ephemeralContainerStatuses": statuses}
    }))
}

#[test]
fn a_container_with_our_name_counts_only_when_it_is_ours() {
    let ours = built(json!({}), AttachedAs::Ptrace);
    let spoilt = |path: &str, value: Value| {
        let mut container = ours.clone();
        *container.pointer_mut(path).unwrap() = value;
        container
    };
    let with = |key: &str, value: Value| {
        let mut container = ours.clone();
        container[key] = value;
        container
    };
    assert_eq!(
        residents(&placed(vec![ours.clone()], json!([])), "app", &sidecar())[0].attach,
        Some(AttachedAs::Ptrace)
    );
    for tampered in [
        spoilt("/image", json!("evil")),
        spoilt("/command", json!(["/bin/sh"])),
        spoilt("/args", json!(["agent", "--idle-seconds", "1"])),
        spoilt("/securityContext/privileged", json!(true)),
        spoilt("/securityContext/capabilities/drop", json!([])),
        with("env", json!([{"name": "LD_PRELOAD", "value": "/x.so"}])),
        with("volumeMounts", json!([{"name": "v", "mountPath": "/run"}])),
        with("stdin", json!(true)),
        with("workingDir", json!("/tmp")),
    ] {
        let found = residents(
            &placed(vec![tampered.clone()], json!([])),
            "app",
            &sidecar(),
        );
        assert_eq!(found[0].attach, None, "{tampered}");
    }
    // What the API server adds or a cluster forces changes nothing about what runs.
    for harmless in [
        spoilt("/imagePullPolicy", json!("Always")),
        with("resources", json!({})),
        with("stdin", json!(false)),
    ] {
        let found = residents(
            &placed(vec![harmless.clone()], json!([])),
            "app",
            &sidecar(),
        );
        assert_eq!(found[0].attach, Some(AttachedAs::Ptrace), "{harmless}");
    }
}

#[test]
fn the_kubelets_words_on_a_sidecar_are_read() {
    let status = |state: Value| {
        placed(
            vec![built(json!({}), AttachedAs::Ptrace)],
            json!([{"name": "sidewinder-app-1", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": state}]),
        )
    };
    for (state, expected) in [
        (json!({}), ResidentState::Starting),
        (
            json!({"waiting": {"reason": "ContainerCreating"}}),
            ResidentState::Starting,
        ),
        (json!({"running": {}}), ResidentState::Running),
        (
            json!({"waiting": {"reason": "ErrImagePull", "message": "not found"}}),
            ResidentState::Stuck {
                reason: "ErrImagePull".into(),
                message: "not found".into(),
            },
        ),
        (
            json!({"terminated": {"exitCode": 128, "reason": "StartError", "message": "exec format error"}}),
            ResidentState::Ended {
                code: 128,
                message: "StartError: exec format error".into(),
            },
        ),
    ] {
        assert_eq!(resident_state(&status(state), "sidewinder-app-1"), expected);
    }
}

#[test]
fn the_next_name_is_the_first_free_one_and_has_an_end() {
    let named = |name: &str| json!({"name": name, "image": "x", "targetContainerName": "app"});
    assert_eq!(
        next_name(&pod(json!({})), "app", &sidecar()).unwrap(),
        "sidewinder-app-1"
    );
    let two = placed(
        vec![named("sidewinder-app-1"), named("debugger-abc")],
        json!([]),
    );
    assert_eq!(
        next_name(&two, "app", &sidecar()).unwrap(),
        "sidewinder-app-2"
    );
    assert_eq!(
        next_name(&two, "proxy", &sidecar()).unwrap(),
        "sidewinder-proxy-1"
    );
    let long = next_name(&pod(json!({})), &"c".repeat(63), &sidecar()).unwrap();
    assert!(long.len() <= 63, "{long}");
}

#[test]
fn a_pod_takes_so_many_sidecars_and_the_last_ones_with_a_warning() {
    // Those of every target count, and those that have our name alone; other people's do not.
    let carrying = |count: usize| {
        let mut containers: Vec<Value> = (1..=count)
            .map(|number| {
                let target = if number % 2 == 0 { "app" } else { "proxy" };
                json!({"name": format!("sidewinder-{target}-{number}"), "image": "x", "targetContainerName": target})
            })
            .collect();
        containers
            .push(json!({"name": "debugger-abc", "image": "x", "targetContainerName": "app"}));
        placed(containers, json!([]))
    };
    for (count, warned, taken) in [
        (23, false, true),
        (24, true, true),
        (31, true, true),
        (32, true, false),
        (40, true, false),
    ] {
        let pod = carrying(count);
        let warning = sidecars_warning(&pod, &sidecar());
        assert_eq!(warning.is_some(), warned, "{count}");
        if let Some(warning) = warning {
            assert!(
                warning.contains(&format!("carries {count} of at most 32")),
                "{warning}"
            );
        }
        let named = next_name(&pod, "app", &sidecar());
        assert_eq!(named.is_ok(), taken, "{count}");
        if let Err(refusal) = named {
            assert_eq!(refusal.reason, Reason::TooManySidecars);
            assert!(
                refusal
                    .message
                    .contains(&format!("{count} sidecars, at most 32")),
                "{}",
                refusal.message
            );
            assert!(
                refusal.message.contains("delete the pod"),
                "{}",
                refusal.message
            );
        }
    }
    let few = SidecarImage {
        max_per_pod: 2,
        warn_per_pod: 1,
        ..sidecar()
    };
    assert!(sidecars_warning(&carrying(1), &few).is_some());
    assert!(next_name(&carrying(1), "app", &few).is_ok());
    assert!(next_name(&carrying(2), "app", &few).is_err());
}

#[test]
fn a_sidecar_of_another_release_is_ours_and_one_of_another_repository_is_not() {
    let ours = built(json!({}), AttachedAs::SameUser);
    for (image, attach, current) in [
        (
            "registry.example/sidewinder-sidecar@sha256:00",
            Some(AttachedAs::SameUser),
            true,
        ),
        (
            "registry.example/sidewinder-sidecar@sha256:01",
            Some(AttachedAs::SameUser),
            false,
        ),
        (
            "registry.example/sidewinder-sidecar:0.1.0",
            Some(AttachedAs::SameUser),
            false,
        ),
        (
            "registry.example/sidewinder-sidecar:0.1.0@sha256:01",
            Some(AttachedAs::SameUser),
            false,
        ),
        (
            "registry.example/sidewinder-sidecar",
            Some(AttachedAs::SameUser),
            false,
        ),
        (
            "registry.example:5000/sidewinder-sidecar@sha256:00",
            None,
            false,
        ),
        ("registry.example/sidewinder-sidecar-x:0.1.0", None, false),
        (
            "registry.example/evil/sidewinder-sidecar@sha256:00",
            None,
            false,
        ),
        ("sidewinder-sidecar@sha256:00", None, false),
        ("", None, false),
    ] {
        let mut container = ours.clone();
        container["image"] = json!(image);
        let found = residents(&placed(vec![container], json!([])), "app", &sidecar());
        assert_eq!(
            (found[0].attach, found[0].current),
            (attach, current),
            "{image}"
        );
    }
    // Whatever its image, the rest has to be ours.
    let mut other = ours;
    other["image"] = json!("registry.example/sidewinder-sidecar:0.1.0");
    other["env"] = json!([{"name": "LD_PRELOAD", "value": "/x.so"}]);
    assert_eq!(
        residents(&placed(vec![other], json!([])), "app", &sidecar())[0].attach,
        None
    );
}
