//! Which containers the operator may add.

use serde_json::{Value, json};
use sidewinder_crds::names;

use crate::fixture::{
    Fixture, OPERATOR, is_accepted, is_let_through, is_refused, merge, operator, refused_by, until,
};

#[tokio::test]
async fn the_operator_may_add_its_own_sidecar_and_no_other_container() {
    Fixture::run("policy-sidecar", async |fixture| {
        let account = operator();
        let try_to = async |pod: &str, containers: &[Value]| fixture.add(Some(&account), pod, containers, true).await;
        until("sidewinder-operator is in force", async || {
            refused_by(&try_to("web", &[fixture.sidecar(&json!({"name": "debug"}))]).await, OPERATOR)
        })
        .await;

        let as_user = json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 2000, "runAsNonRoot": true, "capabilities": {"add": null}}});
        let as_root = json!({"securityContext": {"capabilities": {"add": null, "drop": ["NET_RAW"]}}});
        let targets_own = json!({"securityContext": {"capabilities": {"add": ["NET_ADMIN"], "drop": null}}});
        let every = json!({"securityContext": {"capabilities": {"add": ["ALL"], "drop": null}}});
        let profiles = json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}, "seLinuxOptions": {"level": "s0:c1,c2"}}});
        for (what, pod, change) in [
            ("with ptrace", "web", json!({})),
            ("with fewer capabilities", "web", json!({"securityContext": {"capabilities": {"add": ["SYS_PTRACE"]}}})),
            ("as its target's user", "user", as_user.clone()),
            ("as root like its target", "root", as_root.clone()),
            ("with its target's capability", "admin-of-the-network", targets_own.clone()),
            ("as its privileged target", "privileged", every.clone()),
            ("with its target's profiles", "profiled", profiles.clone()),
        ] {
            is_accepted(what, try_to(pod, &[fixture.sidecar(&change)]).await);
        }
        for (what, pod, change) in [
            ("as a user that is not known", "web", as_user.clone()),
            ("as another user", "root", as_user.clone()),
            ("as its target's user in another group", "user", json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 0, "capabilities": {"add": null}}})),
            ("as its target's user with a capability", "user", json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 2000, "capabilities": {"add": ["SYS_PTRACE"]}}})),
            ("as its target's user with the default capabilities", "user", json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 2000, "capabilities": null}})),
            ("as root with the default capabilities, unlike its target", "user", json!({"securityContext": {"capabilities": null}})),
            ("with what its target dropped", "root", json!({"securityContext": {"capabilities": null}})),
            ("with ptrace as another user", "web", json!({"securityContext": {"runAsUser": 1000}})),
            ("with ptrace in another group", "web", json!({"securityContext": {"runAsGroup": 1000}})),
            ("with ptrace as the image's user", "web", json!({"securityContext": {"runAsUser": null}})),
            ("without its target's profiles", "profiled", json!({})),
            ("with other profiles than its target", "web", profiles),
            ("with another SELinux level", "web", json!({"securityContext": {"seLinuxOptions": {"level": "s0:c1,c2"}}})),
            ("with a capability of another target", "root", targets_own.clone()),
            ("with every capability of an unprivileged target", "root", every.clone()),
        ] {
            is_refused(what, &try_to(pod, &[fixture.sidecar(&change)]).await, OPERATOR);
        }
        for (what, change) in [
            ("another image", json!({"image": "localhost/other:1"})),
            ("another tag", json!({"image": format!("{}-2", fixture.image)})),
            ("another program", json!({"command": ["/bin/sh"]})),
            ("the image's own program", json!({"command": null})),
            ("another task", json!({"args": ["exec", "--pid", "1"]})),
            ("no arguments", json!({"args": null})),
            ("a path", json!({"args": ["agent", "/etc/passwd"]})),
            ("a script", json!({"args": ["agent", "import os"]})),
            ("env", json!({"env": [{"name": "A", "value": "b"}]})),
            ("envFrom", json!({"envFrom": [{"secretRef": {"name": "a"}}]})),
            ("a volume of the pod", json!({"volumeMounts": [{"name": "folder", "mountPath": "/a"}]})),
            ("a disk of the pod", json!({"volumeDevices": [{"name": "disk", "devicePath": "/dev/a"}]})),
            ("a folder", json!({"workingDir": "/proc"})),
            ("an input", json!({"stdin": true})),
            ("an input once", json!({"stdin": true, "stdinOnce": true})),
            ("a terminal", json!({"stdin": true, "tty": true})),
            ("another termination message", json!({"terminationMessagePath": "/etc/passwd"})),
            ("its log as termination message", json!({"terminationMessagePolicy": "FallbackToLogsOnError"})),
            ("no target", json!({"targetContainerName": null})),
            ("privileged", json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": true, "capabilities": null}})),
            ("escalation", json!({"securityContext": {"allowPrivilegeEscalation": true, "capabilities": null}})),
            ("escalation by default", json!({"securityContext": {"allowPrivilegeEscalation": null}})),
            ("another capability", json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}})),
            ("ptrace on top of the default", json!({"securityContext": {"capabilities": {"drop": null}}})),
            ("a capability of another target", targets_own),
            ("every capability", every),
            ("no seccomp", json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}})),
            ("no securityContext", json!({"securityContext": null})),
        ] {
            is_refused(what, &try_to("web", &[fixture.sidecar(&change)]).await, OPERATOR);
        }
        // These the API server refuses of any ephemeral container.
        for (what, change) in [
            ("resources", json!({"resources": {"limits": {"memory": "1Gi"}}})),
            ("a hook", json!({"lifecycle": {"preStop": {"exec": {"command": ["a"]}}}})),
            ("a probe", json!({"livenessProbe": {"exec": {"command": ["a"]}}})),
            ("a port", json!({"ports": [{"containerPort": 80}]})),
            ("an unmasked /proc", json!({"securityContext": {"procMount": "Unmasked"}})),
            ("a mount of nothing", json!({"volumeMounts": [{"name": "none", "mountPath": "/a"}]})),
            ("another's target", json!({"targetContainerName": "none"})),
        ] {
            let found = try_to("web", &[fixture.sidecar(&change)]).await;
            assert!(
                matches!(&found, Err(kube::Error::Api(status)) if matches!(status.code, 403 | 422)),
                "{what}: {found:?}"
            );
        }
        let second = fixture.sidecar(&json!({"name": "sidewinder-app-2"}));
        let both = [fixture.sidecar(&json!({})), second.clone()];
        is_refused("two at a time", &try_to("web", &both).await, OPERATOR);

        is_accepted("for real", fixture.add(Some(&account), "web", &both[..1], false).await);
        is_accepted("the same again", try_to("web", &both[..1]).await);
        is_accepted("a second one", try_to("web", &[second]).await);
    })
    .await;
}

#[tokio::test]
async fn the_operator_leaves_other_peoples_ephemeral_containers_alone() {
    Fixture::run("policy-others", async |fixture| {
        let account = operator();
        let theirs = json!({"name": "debugger", "image": "localhost/other:1", "command": ["sh"], "targetContainerName": "app"});
        let ours = fixture.sidecar(&json!({}));
        is_accepted(
            "somebody's",
            fixture.add(None, "web", std::slice::from_ref(&theirs), false).await,
        );
        let try_to = async |container: Value| fixture.add(Some(&account), "web", &[container], true).await;
        until("sidewinder-operator is in force", async || {
            refused_by(&try_to(fixture.sidecar(&json!({"name": "debug"}))).await, OPERATOR)
        })
        .await;
        is_accepted("ours beside theirs", try_to(ours.clone()).await);
        is_accepted("ours beside theirs, named", fixture.add(Some(&account), "web", &[theirs.clone(), ours], true).await);
        // The API server lets nobody change or remove one, whoever added it.
        for (what, change) in [
            ("its image", json!({"image": fixture.image})),
            ("its command", json!({"command": ["/sidewinder-sidecar"]})),
            ("its rights", json!({"securityContext": {"privileged": true}})),
        ] {
            let mut changed = theirs.clone();
            merge(&mut changed, &change);
            let found = try_to(changed).await;
            assert!(
                matches!(&found, Err(kube::Error::Api(status)) if matches!(status.code, 403 | 422)),
                "{what}: {found:?}"
            );
        }
        let replaced = fixture.add(Some(&account), "web", &[json!({"$patch": "delete", "name": "debugger"})], true).await;
        assert!(
            matches!(&replaced, Err(kube::Error::Api(status)) if matches!(status.code, 403 | 422)),
            "removed: {replaced:?}"
        );
        // And the policy keeps the operator out of it.
        let relay = [names::SIDECAR_BINARY, names::RELAY_SUBCOMMAND];
        for command in [&relay[..], &["sh"]] {
            is_refused("theirs", &fixture.exec(Some(&account), Some("debugger"), command).await, OPERATOR);
        }
        is_refused("attach to theirs", &fixture.attach(Some(&account), "debugger").await, OPERATOR);
        is_let_through("its owner", &fixture.exec(None, Some("debugger"), &["sh"]).await);
    })
    .await;
}
