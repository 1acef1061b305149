use http::Method;
use serde_json::{Value, json};

use super::*;
use crate::testing::{self, FakeApi};

const CLUSTER: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const LOCAL: &str = "/apis/authorization.k8s.io/v1/namespaces/shop/localsubjectaccessreviews";

fn ann() -> Requester {
    Requester {
        username: "ann".to_owned(),
        groups: ["dev".to_owned()].into(),
    }
}

fn script() -> DebugSession {
    testing::session(json!({"remoteExec": {"script": "1"}}))
}

fn from_config_map() -> DebugSession {
    testing::session(
        json!({"remoteExec": {"scriptFrom": {"configMapKeyRef": {"name": "scripts", "key": "a.py"}}}}),
    )
}

fn answer(api: &FakeApi, local: bool, status: &Value) {
    let kind = if local {
        "LocalSubjectAccessReview"
    } else {
        "SubjectAccessReview"
    };
    api.answer_next(
        Method::POST,
        "subjectaccessreviews",
        201,
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": {}, "spec": {}, "status": status}),
    );
}

async fn review(
    local: bool,
    session: &DebugSession,
    answers: &[Value],
) -> (Result<(), Refusal>, FakeApi) {
    let (client, api) = FakeApi::new();
    for status in answers {
        answer(&api, local, status);
    }
    let found = Reviewer::new(client, local)
        .review(session, &ann())
        .await
        .unwrap();
    (found, api)
}

#[tokio::test]
async fn the_requesters_right_to_exec_is_asked_for() {
    let (found, api) = review(false, &script(), &[json!({"allowed": true})]).await;
    found.unwrap();
    let made = api.made(&Method::POST, "subjectaccessreviews");
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].path, CLUSTER);
    assert_eq!(
        made[0].body["spec"],
        json!({"user": "ann", "groups": ["dev"], "resourceAttributes": {
            "namespace": "shop", "verb": "create", "resource": "pods", "subresource": "exec", "name": "web-0",
        }})
    );
}

#[tokio::test]
async fn an_install_for_one_namespace_asks_of_that_namespace() {
    let (found, api) = review(true, &script(), &[json!({"allowed": true})]).await;
    found.unwrap();
    assert_eq!(
        api.made(&Method::POST, "subjectaccessreviews")[0].path,
        LOCAL
    );
}

#[tokio::test]
async fn a_selector_needs_the_right_without_a_name_and_a_config_map_its_own() {
    let selector = testing::session(json!({
        "target": {"podName": null, "selector": {"matchLabels": {"app": "web"}}},
        "stacks": {"locals": "Values"},
    }));
    let needed = super::needed(&selector);
    assert_eq!(needed.len(), 1);
    assert_eq!(needed[0].name, None);

    let yes = json!({"allowed": true});
    let (found, api) = review(
        false,
        &from_config_map(),
        &[yes.clone(), json!({"allowed": false})],
    )
    .await;
    let refusal = found.unwrap_err();
    assert_eq!(refusal.reason, Reason::PolicyDenied);
    assert!(
        refusal.message.contains("may not get ConfigMap scripts"),
        "{}",
        refusal.message
    );
    let made = api.made(&Method::POST, "subjectaccessreviews");
    assert_eq!(
        made[1].body["spec"]["resourceAttributes"],
        json!({"namespace": "shop", "verb": "get", "resource": "configmaps", "name": "scripts"})
    );
    let (found, _) = review(false, &from_config_map(), &[yes.clone(), yes]).await;
    found.unwrap();
}

#[tokio::test]
async fn anything_but_a_clear_yes_refuses() {
    for status in [
        json!({"allowed": false}),
        json!({"allowed": false, "denied": true, "reason": "not on\u{7}call"}),
        json!({"allowed": true, "denied": true}),
        json!({"allowed": false, "evaluationError": "the webhook is away"}),
        Value::Null,
    ] {
        let (found, _) = review(false, &script(), std::slice::from_ref(&status)).await;
        let refusal = found.unwrap_err();
        assert_eq!(refusal.reason, Reason::PolicyDenied, "{status}");
        assert!(
            refusal.message.contains("user ann, who asked for this session with 1 groups, may not create pods/exec on pod web-0 in namespace shop now"),
            "{}",
            refusal.message
        );
        for key in ["evaluationError"] {
            if let Some(words) = status[key].as_str() {
                assert!(refusal.message.contains(words), "{}", refusal.message);
            }
        }
        assert!(!refusal.message.contains('\u{7}'));
    }
}

#[tokio::test]
async fn an_operator_that_may_not_ask_refuses() {
    let (client, api) = FakeApi::new();
    api.refuse(Method::POST, "subjectaccessreviews", "", 403, "no");
    let refusal = Reviewer::new(client, false)
        .review(&script(), &ann())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(refusal.reason, Reason::PolicyDenied);
    assert!(
        refusal
            .message
            .contains("needs create on subjectaccessreviews"),
        "{}",
        refusal.message
    );
}

#[tokio::test]
async fn another_error_is_no_answer() {
    let (client, api) = FakeApi::new();
    api.refuse(Method::POST, "subjectaccessreviews", "", 500, "a bug");
    let found = Reviewer::new(client, false).review(&script(), &ann()).await;
    assert_eq!(found.unwrap_err().code(), Some(500));
}
