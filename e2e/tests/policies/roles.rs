//! The roles for people, as RBAC and the policies together understand them.

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use crate::fixture::{CODE_RUNNING, Fixture, is_accepted, is_refused, refused_by, until};

async fn give(fixture: &Fixture, user: &str, role: &str) {
    let group = "rbac.authorization.k8s.io";
    let binding = json!({
        "metadata": {"name": user},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    });
    Api::<RoleBinding>::namespaced(fixture.admin.clone(), &fixture.namespace)
        .create(
            &PostParams::default(),
            &serde_json::from_value(binding).unwrap(),
        )
        .await
        .unwrap();
    until("the role is in force", async || {
        may(fixture, user, "debugsessions", "get").await
    })
    .await;
}

async fn may(fixture: &Fixture, user: &str, resource: &str, verb: &str) -> bool {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let group = if resource == "debugsessions" {
        "sidewinder.dev"
    } else {
        ""
    };
    let review = json!({"spec": {"user": user, "resourceAttributes": {
        "namespace": fixture.namespace, "group": group, "resource": resource, "subresource": subresource, "verb": verb,
    }}});
    let review: SubjectAccessReview = serde_json::from_value(review).unwrap();
    Api::<SubjectAccessReview>::all(fixture.admin.clone())
        .create(&PostParams::default(), &review)
        .await
        .unwrap()
        .status
        .unwrap()
        .allowed
}

#[tokio::test]
async fn each_role_is_what_its_name_says() {
    Fixture::run("policy-roles", async |fixture| {
        let roles = ["sidewinder-view", "sidewinder-read-only", "sidewinder-exec"];
        let users = ["ann", "ben", "cleo"];
        for (user, role) in users.into_iter().zip(roles) {
            give(fixture, user, role).await;
        }
        for (resource, verb, allowed) in [
            ("debugsessions", "list", [true, true, true]),
            ("debugsessions", "watch", [true, true, true]),
            ("debugsessions", "create", [false, true, true]),
            ("debugsessions", "delete", [false, true, true]),
            ("debugsessions", "patch", [false, true, true]),
            ("debugsessions", "deletecollection", [false, false, false]),
            ("debugsessions/status", "patch", [false, false, false]),
            ("pods/exec", "create", [false, false, true]),
            ("pods/ephemeralcontainers", "patch", [false, false, false]),
            ("secrets", "get", [false, false, false]),
            ("configmaps", "get", [false, false, false]),
        ] {
            for (user, allowed) in users.into_iter().zip(allowed) {
                let found = may(fixture, user, resource, verb).await;
                assert_eq!(found, allowed, "{user}: {verb} {resource}");
            }
        }
        let script = json!({"remoteExec": {"script": "1"}});
        until("sidewinder-code-running is in force", async || {
            refused_by(
                &fixture.create_session("ben", "web", script.clone()).await,
                CODE_RUNNING,
            )
        })
        .await;
        is_accepted(
            "a reader's stacks",
            fixture
                .create_session("ben", "web", json!({"stacks": {}}))
                .await,
        );
        let values = json!({"stacks": {"locals": "Values"}});
        is_refused(
            "a reader's values",
            &fixture.create_session("ben", "web", values.clone()).await,
            CODE_RUNNING,
        );
        is_accepted(
            "a script",
            fixture.create_session("cleo", "web", script).await,
        );
        is_accepted(
            "values",
            fixture.create_session("cleo", "web", values).await,
        );
    })
    .await;
}
