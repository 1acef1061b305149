use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use super::*;
use crate::testing::{self, FakeApi, NAMESPACE};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn script() -> DebugSession {
    testing::session(json!({"remoteExec": {"script": "1"}}))
}

fn values() -> DebugSession {
    testing::session(json!({"stacks": {"locals": "Values"}}))
}

fn stacks() -> DebugSession {
    testing::session(json!({"stacks": {}}))
}

fn is_denied(found: Result<(), Refusal>, words: &str) {
    let refusal = found.unwrap_err();
    assert_eq!(refusal.reason, Reason::PolicyDenied);
    assert!(refusal.message.contains(words), "{}", refusal.message);
}

#[test]
fn by_default_everything_is_allowed() {
    let none = Labels::new();
    let facts = Facts {
        namespace: Some(&none),
        pod: Some(("web-0", &none)),
        script_sha256: Some("00"),
    };
    for session in [script(), values(), stacks()] {
        allow(&session, &facts, &Settings::default()).unwrap();
    }
}

#[test]
fn the_kill_switch_refuses_what_it_names() {
    let with = |kill_switch| Settings {
        kill_switch,
        ..Settings::default()
    };
    let facts = Facts::default();
    for (session, code) in [(script(), true), (values(), true), (stacks(), false)] {
        let found = allow(&session, &facts, &with(KillSwitch::CodeRunning));
        if code {
            is_denied(found, "killSwitch is CodeRunning");
        } else {
            found.unwrap();
        }
        is_denied(
            allow(&session, &facts, &with(KillSwitch::All)),
            "killSwitch is All",
        );
    }
    // An action of a later version might run code.
    let unknown = testing::session(json!({}));
    is_denied(
        allow(&unknown, &facts, &with(KillSwitch::CodeRunning)),
        "killSwitch",
    );
}

#[test]
fn settings_that_cannot_be_read_refuse_what_runs_code_alone() {
    let settings = Settings::unreadable("killSwitch is `x`");
    for session in [script(), values()] {
        is_denied(
            allow(&session, &Facts::default(), &settings),
            "killSwitch is `x`",
        );
    }
    allow(&stacks(), &Facts::default(), &settings).unwrap();
}

#[tokio::test(start_paused = true)]
async fn settings_that_were_never_read_are_waited_for_and_then_refuse_every_session() {
    let (fences, api, settings) = fences(EVERYTHING);
    let unread = Settings::unread("ConfigMap a/b was not read yet");
    settings.send_replace(unread.without("there is no ConfigMap a/b"));
    let began = Instant::now();
    for session in [stacks(), script()] {
        is_denied(
            fences.session(&session, None).await.unwrap(),
            "there is no ConfigMap a/b",
        );
    }
    let pod = testing::pod(json!({}));
    let gate = fences.gate(stacks(), None);
    is_denied(gate.act(&pod).await.unwrap(), "never read");
    assert!(began.elapsed() <= 4 * FIRST_SETTINGS);
    assert!(api.made(&Method::POST, "").is_empty());
    // Whoever waits goes on as soon as they are there.
    let stacks = stacks();
    let mut waits = Box::pin(fences.session(&stacks, None));
    assert!(futures::poll!(waits.as_mut()).is_pending());
    settings.send_replace(Settings::default());
    let before = Instant::now();
    waits.await.unwrap().unwrap();
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_has_not_said_what_the_settings_are_refuses_nobody() {
    let (fences, _api, settings) = fences(EVERYTHING);
    let unread = Settings::unread("ConfigMap a/b was not read yet");
    settings.send_replace(unread.clone());
    let stacks = stacks();
    let began = Instant::now();
    let mut waits = Box::pin(fences.session(&stacks, None));
    let most = OUTAGE_LIMIT.checked_sub(Duration::from_secs(1)).unwrap();
    assert!(
        tokio::time::timeout(most, waits.as_mut()).await.is_err(),
        "it was refused while nothing was known"
    );
    settings.send_replace(Settings::default());
    waits.await.unwrap().unwrap();
    assert!(began.elapsed() <= OUTAGE_LIMIT);
    // It is waited for as long as for any other answer, and no longer.
    settings.send_replace(unread);
    let began = Instant::now();
    let refused = fences.session(&stacks, None).await.unwrap();
    is_denied(refused, "ConfigMap a/b was not read yet");
    assert!(began.elapsed() <= OUTAGE_LIMIT + FIRST_SETTINGS);
}

#[test]
fn timeouts_and_purposes_are_demanded_of_every_action() {
    let settings = Settings {
        max_timeout_seconds: 60,
        require_reason: true,
        ..Settings::default()
    };
    let session = |spec: Value| testing::session(spec);
    let ok = session(json!({"stacks": {}, "timeoutSeconds": 60, "reason": "INC-4711"}));
    allow(&ok, &Facts::default(), &settings).unwrap();
    let long = session(json!({"stacks": {}, "timeoutSeconds": 61, "reason": "INC-4711"}));
    is_denied(
        allow(&long, &Facts::default(), &settings),
        "maxTimeoutSeconds allows 60",
    );
    for spec in [json!({"stacks": {}}), json!({"stacks": {}, "reason": "  "})] {
        is_denied(
            allow(&session(spec), &Facts::default(), &settings),
            "requireReason",
        );
    }
}

#[test]
fn labels_let_sessions_in_and_keep_them_out() {
    let session = stacks();
    let with = |opt_in| Settings {
        opt_in,
        ..Settings::default()
    };
    let ask = |namespace: &[(&str, &str)], pod: &[(&str, &str)], opt_in| {
        let (namespace, pod) = (labels(namespace), labels(pod));
        let facts = Facts {
            namespace: Some(&namespace),
            pod: Some(("web-0", &pod)),
            ..Facts::default()
        };
        allow(&session, &facts, &with(opt_in))
    };
    let allow = ("sidewinder.dev/allow", "true");
    for deny in ["true", "yes", "", "True"] {
        let deny = ("sidewinder.dev/deny", deny);
        for opt_in in [OptIn::None, OptIn::Namespace, OptIn::Pod] {
            is_denied(
                ask(&[deny, allow], &[allow], opt_in),
                "namespace shop has the label sidewinder.dev/deny=",
            );
            is_denied(
                ask(&[allow], &[deny, allow], opt_in),
                "pod web-0 has the label sidewinder.dev/deny=",
            );
        }
    }
    ask(&[("sidewinder.dev/deny", "false")], &[], OptIn::None).unwrap();
    ask(&[allow], &[], OptIn::Namespace).unwrap();
    is_denied(ask(&[], &[allow], OptIn::Namespace), "optIn: Namespace");
    ask(&[], &[allow], OptIn::Pod).unwrap();
    is_denied(ask(&[allow], &[], OptIn::Pod), "optIn: Pod");
    is_denied(
        ask(&[], &[("sidewinder.dev/allow", "yes")], OptIn::Pod),
        "sidewinder.dev/allow=true",
    );
}

#[test]
fn scripts_are_known_by_their_digest() {
    let good = "ab".repeat(32);
    let with = |scripts| Settings {
        scripts,
        ..Settings::default()
    };
    let list = with(Scripts::AllowList(BTreeSet::from([good.clone()])));
    let known = |digest| Facts {
        script_sha256: digest,
        ..Facts::default()
    };
    allow(&script(), &known(Some(&good)), &list).unwrap();
    // Before the script is read there is nothing to judge; its end is judged with the digest.
    allow(&script(), &known(None), &list).unwrap();
    is_denied(
        allow(&script(), &known(Some("cd")), &list),
        "scriptsAllowedSha256",
    );
    for session in [values(), stacks()] {
        allow(&session, &known(None), &list).unwrap();
        allow(&session, &known(None), &with(Scripts::RecipesOnly)).unwrap();
    }
    is_denied(
        allow(&script(), &known(Some(&good)), &with(Scripts::RecipesOnly)),
        "RecipesOnly",
    );
}

/// Fences with everything demanded, whose settings the test changes.
fn fences(demands: Demands) -> (Fences, FakeApi, watch::Sender<Settings>) {
    let (client, api) = FakeApi::new();
    let (sender, settings) = watch::channel(Settings::default());
    let own = policies::tests::own();
    let fences = Fences::new(
        client.clone(),
        demands,
        settings,
        Policies::new(client.clone(), own),
        Reviewer::new(client, false),
        || Slots::new(4, 8),
    );
    (fences, api, sender)
}

fn with_namespace(api: &FakeApi, labels: &Value) {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}});
    api.put(&format!("/api/v1/namespaces/{NAMESPACE}"), &namespace);
}

const EVERYTHING: Demands = Demands {
    policies: true,
    requester: true,
};

#[tokio::test(start_paused = true)]
async fn without_policies_code_does_not_run_and_stacks_are_read() {
    let (fences, api, _settings) = fences(EVERYTHING);
    with_namespace(&api, &json!({}));
    fences.session(&stacks(), None).await.unwrap().unwrap();
    let refusal = fences.session(&script(), None).await.unwrap().unwrap_err();
    assert_eq!(refusal.reason, Reason::PolicyDenied);
    assert!(
        refusal
            .message
            .contains("there is no ValidatingAdmissionPolicy sidewinder-code-running"),
        "{}",
        refusal.message
    );
    // A read-only session costs one look at the namespace and no write.
    assert!(api.made(&Method::POST, "").is_empty());
}

#[tokio::test]
async fn a_requester_is_demanded_where_the_setting_says_so() {
    let demands = |requester| Demands {
        policies: false,
        requester,
    };
    let (strict, api, _settings) = fences(demands(true));
    with_namespace(&api, &json!({}));
    let refusal = strict.session(&script(), None).await.unwrap().unwrap_err();
    assert_eq!(refusal.reason, Reason::RequesterUnknown);
    strict.session(&stacks(), None).await.unwrap().unwrap();

    let (lax, api, _settings) = fences(demands(false));
    with_namespace(&api, &json!({}));
    lax.session(&script(), None).await.unwrap().unwrap();
    // Whoever is named is asked for all the same.
    let gate = lax.gate(named(), None);
    gate.begin().await.unwrap().unwrap();
    let pod = testing::pod(json!({}));
    let refusal = gate.act(&pod).await.unwrap().unwrap_err();
    assert_eq!(refusal.reason, Reason::PolicyDenied);
    assert_eq!(api.made(&Method::POST, "/subjectaccessreviews").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_namespaces_label_holds_within_seconds_and_what_cannot_be_read_refuses() {
    let (fences, api, _settings) = fences(EVERYTHING);
    let pod = testing::pod(json!({}));
    let later = || tokio::time::advance(namespaces::LIFE);
    with_namespace(&api, &json!({"sidewinder.dev/deny": "true"}));
    is_denied(
        fences.session(&stacks(), None).await.unwrap(),
        "namespace shop has the label",
    );
    later().await;
    with_namespace(&api, &json!({}));
    fences.session(&stacks(), None).await.unwrap().unwrap();
    // A session that was taken up before, also by another operator, is asked for again at each step.
    let gate = fences.gate(stacks(), None);
    gate.act(&pod).await.unwrap().unwrap();
    with_namespace(&api, &json!({"sidewinder.dev/deny": "true"}));
    later().await;
    is_denied(
        gate.act(&pod).await.unwrap(),
        "namespace shop has the label",
    );
    api.remove(&format!("/api/v1/namespaces/{NAMESPACE}"));
    later().await;
    is_denied(
        fences.session(&stacks(), None).await.unwrap(),
        "cannot be read",
    );
    is_denied(gate.act(&pod).await.unwrap(), "cannot be read");
}

#[tokio::test]
async fn the_kill_switch_reaches_those_that_run() {
    let (fences, _api, settings) = fences(EVERYTHING);
    let (code, reading) = (script(), stacks());
    let mut code = Box::pin(fences.killed(&code));
    let mut reading = Box::pin(fences.killed(&reading));
    assert!(futures::poll!(code.as_mut()).is_pending());
    settings.send_modify(|settings| settings.kill_switch = KillSwitch::CodeRunning);
    assert!(code.await.message.contains("CodeRunning"));
    assert!(futures::poll!(reading.as_mut()).is_pending());
    settings.send_modify(|settings| settings.kill_switch = KillSwitch::All);
    assert!(reading.await.message.contains("All"));
}

#[tokio::test]
async fn the_pods_label_is_judged_by_the_pod() {
    let (fences, _api, settings) = fences(EVERYTHING);
    let gate = fences.gate(stacks(), None);
    let pod = testing::pod(json!({}));
    gate.act(&pod).await.unwrap().unwrap();
    settings.send_modify(|settings| settings.opt_in = OptIn::Pod);
    is_denied(gate.act(&pod).await.unwrap(), "pod web-0");
    let allowed = testing::pod(json!({"metadata": {"labels": {"sidewinder.dev/allow": "true"}}}));
    gate.act(&allowed).await.unwrap().unwrap();
}

fn named() -> DebugSession {
    testing::session(json!({"remoteExec": {"script": "1"}, "requestedBy": {"username": "ann"}}))
}

#[tokio::test(start_paused = true)]
async fn rights_are_asked_for_once_for_pods_that_come_together_and_again_later() {
    let (fences, api, _settings) = fences(Demands {
        policies: false,
        requester: true,
    });
    let gate = fences.gate(named(), None);
    let pod = testing::pod(json!({}));
    let yes = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": {}, "status": {"allowed": true}});
    api.answer_next(Method::POST, "subjectaccessreviews", 201, yes);
    let (one, other) = tokio::join!(gate.act(&pod), gate.act(&pod));
    one.unwrap().unwrap();
    other.unwrap().unwrap();
    assert_eq!(api.made(&Method::POST, "subjectaccessreviews").len(), 1);
    // Taken away meanwhile.
    tokio::time::advance(REVIEWED).await;
    let refusal = gate.act(&pod).await.unwrap().unwrap_err();
    assert_eq!(refusal.reason, Reason::PolicyDenied);
    // A refusal is not remembered.
    gate.act(&pod).await.unwrap().unwrap_err();
    assert_eq!(api.made(&Method::POST, "subjectaccessreviews").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn policies_that_are_gone_are_noticed_although_the_requesters_rights_still_hold() {
    let (fences, api, _settings) = fences(EVERYTHING);
    policies::tests::install(&api);
    let gate = fences.gate(named(), None);
    let pod = testing::pod(json!({}));
    let yes = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": {}, "status": {"allowed": true}});
    api.answer_next(Method::POST, "subjectaccessreviews", 201, yes);
    gate.begin().await.unwrap().unwrap();
    gate.act(&pod).await.unwrap().unwrap();
    let policy =
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/sidewinder-code-running";
    api.remove(policy);
    tokio::time::advance(Duration::from_secs(2)).await;
    is_denied(
        gate.act(&pod).await.unwrap(),
        "there is no ValidatingAdmissionPolicy sidewinder-code-running",
    );
    assert_eq!(api.made(&Method::POST, "subjectaccessreviews").len(), 1);
}
