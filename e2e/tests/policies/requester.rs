//! Who may ask for what, and must say who asks.

use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use sidewinder_e2e::cluster;

use crate::fixture::{CODE_RUNNING, Fixture, dry_run, is_accepted, is_refused, refused_by, until};

#[tokio::test]
async fn running_code_needs_the_requesters_own_right_to_exec() {
    Fixture::run("policy-code", async |fixture| {
        let script = json!({"remoteExec": {"script": "1"}});
        let values = json!({"stacks": {"locals": "Values"}});
        let from = json!({"remoteExec": {"scriptFrom": {"configMapKeyRef": {"name": "scripts", "key": "a.py"}}}});
        until("sidewinder-code-running is in force", async || {
            refused_by(&fixture.create_session("reader", "web", script.clone()).await, CODE_RUNNING)
        })
        .await;
        for action in [
            json!({"processes": {}}),
            json!({"asyncioSnapshot": {}}),
            json!({"stacks": {}}),
            json!({"stacks": {"locals": "Types"}}),
        ] {
            let found = fixture.create_session("reader", "web", action.clone()).await;
            is_accepted(&format!("reader, {action}"), found);
        }
        for (user, pod, action, allowed) in [
            ("reader", "web", &values, false),
            ("reader", "web", &script, false),
            ("reader", "web", &from, false),
            ("runner", "web", &script, true),
            ("runner", "web", &values, true),
            ("runner", "other", &script, false),
            ("runner", "web", &from, false),
            ("author", "other", &script, true),
            ("author", "web", &from, true),
        ] {
            let found = fixture.create_session(user, pod, action.clone()).await;
            let what = format!("{user} in {pod}, {action}");
            if allowed {
                is_accepted(&what, found);
            } else {
                is_refused(&what, &found, CODE_RUNNING);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_selector_needs_the_right_to_exec_into_every_pod() {
    Fixture::run("policy-selector", async |fixture| {
        let spec = |action: Value| {
            let mut spec = action;
            spec["target"] = json!({"selector": {"matchLabels": {"app": "web"}}});
            spec
        };
        let script = spec(json!({"remoteExec": {"script": "1"}}));
        let values = spec(json!({"stacks": {"locals": "Values"}}));
        let stacks = spec(json!({"stacks": {}}));
        let ask = async |user: &str, spec: &Value| {
            fixture.create(user, &[], &dry_run(), spec).await.map(drop)
        };
        until("sidewinder-code-running is in force", async || {
            refused_by(&ask("reader", &script).await, CODE_RUNNING)
        })
        .await;
        is_accepted("a reader's stacks", ask("reader", &stacks).await);
        for (user, spec, allowed) in [
            ("reader", &values, false),
            ("runner", &script, false),
            ("runner", &values, false),
            ("author", &script, true),
            ("author", &values, true),
        ] {
            let found = ask(user, spec).await;
            if allowed {
                is_accepted(user, found);
            } else {
                is_refused(user, &found, CODE_RUNNING);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn whoever_says_who_asks_says_the_truth() {
    Fixture::run("policy-requester", async |fixture| {
        let groups = ["developers", "system:authenticated"];
        let ask = async |requester: Value| {
            let spec =
                json!({"target": {"podName": "web"}, "processes": {}, "requestedBy": requester});
            fixture
                .create("reader", &groups, &dry_run(), &spec)
                .await
                .map(drop)
        };
        until("sidewinder-code-running is in force", async || {
            refused_by(&ask(json!({"username": "author"})).await, CODE_RUNNING)
        })
        .await;
        for (what, requester) in [
            ("nothing but the name", json!({"username": "reader"})),
            (
                "a group",
                json!({"username": "reader", "groups": ["developers"]}),
            ),
            (
                "every group",
                json!({"username": "reader", "groups": groups}),
            ),
        ] {
            is_accepted(what, ask(requester).await);
        }
        for (what, requester) in [
            (
                "another's name",
                json!({"username": "author", "groups": groups}),
            ),
            ("a name that begins so", json!({"username": "reader2"})),
            (
                "masters",
                json!({"username": "reader", "groups": ["system:masters"]}),
            ),
            (
                "one group too many",
                json!({"username": "reader", "groups": ["developers", "admins"]}),
            ),
        ] {
            is_refused(what, &ask(requester).await, CODE_RUNNING);
        }
    })
    .await;
}

/// On clusters that can (Kubernetes 1.36 and newer, where the chart installs the policy).
#[tokio::test]
async fn the_requester_is_stamped_and_stays() {
    Fixture::run("policy-stamp", async |fixture| {
        let spec = json!({"target": {"podName": "web"}, "processes": {}});
        let groups = ["developers", "system:authenticated"];
        let create = async |parameters: PostParams| {
            fixture
                .create("reader", &groups, &parameters, &spec)
                .await
                .unwrap()
        };
        until("sidewinder-requester is in force", async || {
            create(dry_run()).await.data["spec"]["requestedBy"].is_object()
        })
        .await;
        let session = create(PostParams::default()).await;
        let mut stamped = session.data["spec"]["requestedBy"].clone();
        assert_eq!(stamped["username"], "reader");
        let list = stamped["groups"].as_array_mut().unwrap();
        list.sort_by_key(ToString::to_string);
        assert_eq!(*list, groups.map(Value::from));

        fixture
            .grant(
                "changer",
                json!([{"apiGroups": ["sidewinder.dev"], "resources": ["debugsessions"], "verbs": ["patch"]}]),
            )
            .await;
        let change = async |spec: Value| {
            fixture
                .sessions("changer", &[])
                .patch(
                    "a",
                    &PatchParams::default(),
                    &Patch::Merge(json!({"spec": spec})),
                )
                .await
        };
        for other in [
            json!({"requestedBy": {"username": "changer"}}),
            json!({"requestedBy": {"groups": ["system:masters"]}}),
            json!({"requestedBy": null}),
            json!({"remoteExec": {"script": "1"}, "processes": null}),
        ] {
            let error = change(other.clone()).await.unwrap_err();
            let kube::Error::Api(status) = &error else {
                panic!("{other}: {error}");
            };
            assert!(matches!(status.code, 403 | 422), "{other}: {error}");
        }
        // Whoever may write sessions may end them, and is not taken for who asked.
        let cancelled = change(json!({"cancel": true})).await.unwrap();
        assert_eq!(cancelled.data["spec"]["requestedBy"]["username"], "reader");
    })
    .await;
}

/// What the API server's audit log says of a session: who, what, where and why, and nothing of the script.
#[tokio::test]
async fn the_audit_log_has_the_session_and_not_its_script() {
    let kubeconfig = std::env::var_os("KUBECONFIG").unwrap();
    let Some(cluster) = cluster::embedded(std::path::Path::new(&kubeconfig)).unwrap() else {
        eprintln!("another cluster's audit log cannot be read");
        return;
    };
    Fixture::run("policy-audit", async |fixture| {
        let script = "print('a-word-that-stands-nowhere-else')";
        let spec = json!({
            "target": {"podName": "web"},
            "remoteExec": {"script": script},
            "reason": "INC-4711",
        });
        until("runner may", async || {
            fixture
                .create("runner", &[], &dry_run(), &spec)
                .await
                .is_ok()
        })
        .await;
        let line = async || -> Option<String> {
            let text = std::fs::read_to_string(cluster.dir().join("logs/audit.log")).unwrap();
            text.lines()
                .find(|line| {
                    line.contains(&format!("namespaces/{}/debugsessions", fixture.namespace))
                        && line.contains("INC-4711")
                })
                .map(str::to_owned)
        };
        until("the audit log has it", async || line().await.is_some()).await;
        let line = line().await.unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        let annotations = &event["annotations"];
        for (key, value) in [
            ("requester", "runner"),
            ("action", "remoteExec (code-running)"),
            ("target", &format!("{}/web", fixture.namespace)),
            ("reason", "INC-4711"),
            ("script", "inline"),
        ] {
            assert_eq!(
                annotations[format!("{CODE_RUNNING}/{key}")],
                value,
                "{line}"
            );
        }
        assert!(!line.contains("a-word-that-stands-nowhere-else"), "{line}");
    })
    .await;
}
