//! Writes against an API server in memory.

use http::Method;
use serde_json::json;
use sidewinder_crds::{AttachedAs, Phase};

use super::*;
use crate::testing::{FakeApi, pod, session, sidecar};

const POD: &str = "/api/v1/namespaces/shop/pods/web-0";
const SESSION: &str = "/apis/sidewinder.dev/v1alpha1/namespaces/shop/debugsessions/why";

fn container() -> EphemeralContainer {
    inject::ephemeral_container(
        &pod(json!({})),
        "app",
        AttachedAs::Ptrace,
        &sidecar(),
        "sidewinder-app-1",
    )
    .unwrap()
}

#[tokio::test]
async fn adding_a_sidecar_is_tried_first_and_twice_is_once() {
    let (client, api) = FakeApi::new();
    api.put(POD, &pod(json!({})));
    for first in [true, false] {
        let added = inject(&client, &pod(json!({})), &container())
            .await
            .unwrap();
        let Injected::Added { pod, new } = added else {
            panic!("{added:?}")
        };
        assert_eq!(new, first, "who adds it says so");
        assert_eq!(pod.spec.unwrap().ephemeral_containers.unwrap().len(), 1);
    }
    let made = api.made(&Method::PATCH, "ephemeralcontainers");
    assert_eq!(made.len(), 4);
    for (number, request) in made.iter().enumerate() {
        assert_eq!(request.query.contains("dryRun=All"), number % 2 == 0);
        assert_eq!(request.body["metadata"]["uid"], "pod-uid-1");
        assert_eq!(request.body["spec"].as_object().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn refusals_carry_the_servers_own_words() {
    let pod_security = "pods \"web-0\" is forbidden: violates PodSecurity \"restricted:latest\": unrestricted capabilities (container \"sidewinder-app-1\" must not include \"SYS_PTRACE\")";
    for (code, message, reason) in [
        (403, pod_security, Reason::PodSecurityForbidden),
        (
            403,
            "ValidatingAdmissionPolicy 'x' with binding 'y' denied request: no",
            Reason::AdmissionForbidden,
        ),
        (
            400,
            "admission webhook \"v.example\" denied the request: unsigned image",
            Reason::AdmissionForbidden,
        ),
        (
            422,
            "static pods do not support ephemeral containers",
            Reason::StaticPod,
        ),
        (
            403,
            "pods \"web-0\" is forbidden: User \"op\" cannot patch resource \"pods/ephemeralcontainers\"",
            Reason::AdmissionForbidden,
        ),
    ] {
        let (client, api) = FakeApi::new();
        api.put(POD, &pod(json!({})));
        api.refuse(
            Method::PATCH,
            "ephemeralcontainers",
            "dryRun=All",
            code,
            message,
        );
        let answer = inject(&client, &pod(json!({})), &container())
            .await
            .unwrap();
        let Injected::Refused(refusal) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(refusal.reason, reason);
        // And after them what can be done, where something can.
        assert!(refusal.message.starts_with(message), "{}", refusal.message);
        assert_eq!(api.made(&Method::PATCH, "ephemeralcontainers").len(), 1);
    }
}

#[tokio::test]
async fn a_webhook_that_knows_no_dry_run_means_trying_for_real() {
    let (client, api) = FakeApi::new();
    api.put(POD, &pod(json!({})));
    api.refuse(
        Method::PATCH,
        "ephemeralcontainers",
        "dryRun=All",
        400,
        "admission webhook \"m.example\" does not support dry run",
    );
    let answer = inject(&client, &pod(json!({})), &container())
        .await
        .unwrap();
    assert!(
        matches!(answer, Injected::Added { new: true, .. }),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_taken_name_or_another_pod_means_looking_again() {
    let (client, api) = FakeApi::new();
    let foreign =
        json!({"spec": {"ephemeralContainers": [{"name": "sidewinder-app-1", "image": "evil"}]}});
    api.put(POD, &pod(foreign));
    let answer = inject(&client, &pod(json!({})), &container())
        .await
        .unwrap();
    assert!(matches!(answer, Injected::Changed), "{answer:?}");

    api.put(POD, &pod(json!({"metadata": {"uid": "another"}})));
    let answer = inject(&client, &pod(json!({})), &container())
        .await
        .unwrap();
    assert!(matches!(answer, Injected::Changed), "{answer:?}");
    api.remove(POD);
    let answer = inject(&client, &pod(json!({})), &container())
        .await
        .unwrap();
    assert!(matches!(answer, Injected::Changed), "{answer:?}");
}

#[tokio::test]
async fn a_status_is_written_only_over_the_one_that_was_seen() {
    let (client, api) = FakeApi::new();
    api.put(SESSION, &session(json!({"stacks": {}})));
    let seen: DebugSession = serde_json::from_value(api.get(SESSION).unwrap()).unwrap();
    let wanted = DebugSessionStatus {
        phase: Some(Phase::Running),
        ..DebugSessionStatus::default()
    };
    let written = status(&client, &seen, &wanted).await.unwrap();
    let Written::Done(now) = written else {
        panic!("{written:?}")
    };
    assert_eq!(now.status, Some(wanted.clone()));
    let stale = status(&client, &seen, &wanted).await.unwrap();
    assert!(matches!(stale, Written::Conflict), "{stale:?}");
    api.remove(SESSION);
    let gone = status(&client, &seen, &wanted).await.unwrap();
    assert!(matches!(gone, Written::Gone), "{gone:?}");
}

#[tokio::test]
async fn only_the_session_that_was_meant_is_deleted() {
    let (client, api) = FakeApi::new();
    let mut other = session(json!({"stacks": {}}));
    other.metadata.uid = Some("another".into());
    api.put(SESSION, &other);
    delete(&client, "shop", "why", Some("5e55-1"))
        .await
        .unwrap();
    assert!(api.get(SESSION).is_some());
    for _ in 0..2 {
        delete(&client, "shop", "why", Some("another"))
            .await
            .unwrap();
        assert!(api.get(SESSION).is_none());
    }
}

#[tokio::test]
async fn a_secret_stored_twice_is_stored_once_and_a_refusal_is_told() {
    let (client, api) = FakeApi::new();
    let mut wanted = Secret::default();
    wanted.metadata.name = Some("why-1".into());
    wanted.metadata.namespace = Some("shop".into());
    secret(&client, wanted.clone()).await.unwrap();
    secret(&client, wanted.clone()).await.unwrap();
    api.refuse(Method::POST, "secrets", "", 403, "quota exceeded");
    let error = secret(&client, wanted).await.unwrap_err();
    assert_eq!(error.api().unwrap().message, "quota exceeded");
}
