//! The settings that are in force as soon as they change: what each refuses and what it lets through. Each test has the
//! operator for itself.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{ListParams, LogParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use sidewinder_crds::{DebugSession, names};
use sidewinder_e2e::answer::sha256;
use sidewinder_e2e::namespace::TestNamespace;
use sidewinder_e2e::session_client as sessions;
use sidewinder_model::{ExecOutcome, Reason};

use crate::expect::{complete, condition, data, failed, message, one, until_fences};
use crate::interruptions::{begin, check_stopped, long};
use crate::stage::alone;

const CONFIG_MAP: &str = "sidewinder-settings";
/// How long a change may take until the operator says that it has it.
const HEARD: Duration = Duration::from_secs(20);
/// How soon a session that the kill switch concerns has ended.
const KILLED: Duration = Duration::from_secs(12);

fn config_maps(namespace: &TestNamespace) -> Api<ConfigMap> {
    Api::namespaced(namespace.client.clone(), names::NAMESPACE)
}

/// The settings that the operator said it read last, of all that it said.
async fn last_heard(namespace: &TestNamespace) -> Result<Option<String>> {
    let pods: Api<Pod> = Api::namespaced(namespace.client.clone(), names::NAMESPACE);
    let operator = ListParams::default().labels(&format!("{}={}", names::APP_LABEL, names::APP));
    let mut last = None;
    for pod in pods.list(&operator).await? {
        let log = pods.logs(&pod.name_any(), &LogParams::default()).await?;
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            if line.get("settings").is_some() {
                last = last.max(line["timestamp"].as_str().map(str::to_owned));
            }
        }
    }
    Ok(last)
}

/// Changes the settings, and waits until the operator has said that it read them.
async fn set(namespace: &TestNamespace, data: Value) -> Result<()> {
    let before = last_heard(namespace).await?;
    config_maps(namespace)
        .patch(
            CONFIG_MAP,
            &PatchParams::default(),
            &Patch::Merge(json!({"data": data})),
        )
        .await
        .with_context(|| format!("cannot change the ConfigMap {CONFIG_MAP}"))?;
    let heard = async {
        while last_heard(namespace).await? == before {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    };
    match tokio::time::timeout(HEARD, heard).await {
        Ok(heard) => heard,
        Err(_) => bail!("the operator did not say within 20 s that it read {data}"),
    }
}

/// Runs `body`, and puts the settings back however it ends.
async fn changing(namespace: &TestNamespace, body: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let before = config_maps(namespace).get(CONFIG_MAP).await?.data;
    let outcome = body().await;
    let now = config_maps(namespace).get(CONFIG_MAP).await?.data;
    if now != before {
        // A merge removes what it names with null.
        let mut back = json!(before);
        for key in now.unwrap_or_default().into_keys() {
            if back.get(&key).is_none() {
                back[key] = Value::Null;
            }
        }
        set(namespace, back).await?;
    }
    outcome
}

/// Checks that the session runs to its end.
async fn is_let_through(namespace: &TestNamespace, session: &DebugSession) -> Result<()> {
    let ended = namespace.run(session).await?;
    complete(&ended, Reason::Succeeded)
        .map(drop)
        .with_context(|| session.name_any())
}

/// Checks that the session is refused for a reason that has these words.
async fn is_refused(namespace: &TestNamespace, session: &DebugSession, words: &str) -> Result<()> {
    let ended = namespace.run(session).await?;
    let said = failed(&ended, Reason::PolicyDenied)
        .and_then(message)
        .with_context(|| session.name_any())?;
    ensure!(said.contains(words), "{}: {said}", session.name_any());
    Ok(())
}

fn stacks(name: &str) -> DebugSession {
    sessions::stacks(name, "idle")
}

fn script(name: &str) -> DebugSession {
    sessions::exec(name, "idle", "'listed'")
}

#[test]
fn the_kill_switch_stops_what_runs_and_refuses_what_comes_until_it_is_off() {
    alone("kill_switch", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        changing(namespace, async || {
            let session = begin(namespace, &long("exec", "idle")).await?;
            set(namespace, json!({"killSwitch": "CodeRunning"})).await?;
            let ended = sessions::status(
                &namespace.sessions(),
                &session.name_any(),
                KILLED,
                "its end",
                |status| status.completion_time.is_some(),
            )
            .await?;
            let status = failed(&ended, Reason::Cancelled)?;
            ensure!(message(status)?.contains("kill switch"), "{status:?}");
            condition(status, "Disarmed", "True", &[Reason::Disarmed])?;
            let outcome: ExecOutcome = data(namespace, &ended, one(status)?).await?;
            ensure!(outcome.stdout == "begun\n", "{outcome:?}");
            ensure!(!outcome.still_running, "{outcome:?}");

            let on = "killSwitch is CodeRunning";
            is_refused(namespace, &script("refused-script"), on).await?;
            is_let_through(namespace, &stacks("stacks")).await?;
            set(namespace, json!({"killSwitch": "All"})).await?;
            let on = "killSwitch is All";
            is_refused(namespace, &script("refused-by-all"), on).await?;
            is_refused(namespace, &stacks("refused-stacks"), on).await?;
            set(namespace, json!({"killSwitch": "None"})).await?;
            is_let_through(namespace, &stacks("stacks-again")).await?;
            check_stopped(namespace, Some(outcome.still_running)).await
        })
        .await?;
        pod.check_untouched(namespace).await
    });
}

#[test]
fn each_setting_refuses_what_it_says_and_nothing_else() {
    alone("settings", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        changing(namespace, async || {
            labels(namespace).await?;
            limits(namespace).await?;
            scripts(namespace).await?;
            unreadable(namespace).await
        })
        .await?;
        // A pod that is labelled has another resource version and nothing else.
        pod.check_untouched(namespace).await
    });
}

/// `optIn`, and the label that keeps out whatever the setting is.
async fn labels(namespace: &TestNamespace) -> Result<()> {
    let label_pod = async |labels: Value| {
        let change = Patch::Merge(json!({"metadata": {"labels": labels}}));
        let pods = namespace.pods();
        pods.patch("idle", &PatchParams::default(), &change).await
    };
    let label_namespace = async |labels: Value| {
        let change = Patch::Merge(json!({"metadata": {"labels": labels}}));
        Api::<Namespace>::all(namespace.client.clone())
            .patch(&namespace.name, &PatchParams::default(), &change)
            .await
    };
    let demanded = format!("no label {}=true", names::ALLOW_LABEL);
    let allow = json!({names::ALLOW_LABEL: "true"});
    let denied = format!("label {}=yes", names::DENY_LABEL);
    let deny = json!({names::DENY_LABEL: "yes"});
    let no_deny = json!({names::DENY_LABEL: null});

    // What the operator saw of a namespace it may believe for a moment, of a pod not.
    set(namespace, json!({"optIn": "Namespace"})).await?;
    is_refused(namespace, &stacks("namespace-without"), &demanded).await?;
    label_namespace(allow.clone()).await?;
    until_fences(namespace, &stacks("namespace-with"), true).await?;
    is_let_through(namespace, &stacks("namespace-with")).await?;

    set(namespace, json!({"optIn": "Pod"})).await?;
    is_refused(namespace, &stacks("pod-without"), &demanded).await?;
    label_pod(allow).await?;
    is_let_through(namespace, &stacks("pod-with")).await?;
    set(namespace, json!({"optIn": "None"})).await?;

    label_pod(deny.clone()).await?;
    is_refused(namespace, &stacks("pod-denies"), &denied).await?;
    label_pod(no_deny.clone()).await?;
    is_let_through(namespace, &stacks("pod-denies-no-more")).await?;
    label_namespace(deny).await?;
    until_fences(namespace, &stacks("namespace-denies"), false).await?;
    is_refused(namespace, &stacks("namespace-denies"), &denied).await?;
    label_namespace(no_deny).await?;
    until_fences(namespace, &stacks("nobody-denies"), true).await?;
    is_let_through(namespace, &stacks("nobody-denies")).await
}

/// `maxTimeoutSeconds` and `requireReason`.
async fn limits(namespace: &TestNamespace) -> Result<()> {
    let with_timeout = |name: &str, seconds: i32| {
        let mut session = stacks(name);
        session.spec.timeout_seconds = seconds;
        session
    };
    set(namespace, json!({"maxTimeoutSeconds": "31"})).await?;
    let words = "timeoutSeconds is 32, and the setting maxTimeoutSeconds allows 31";
    is_refused(namespace, &with_timeout("too-long", 32), words).await?;
    is_let_through(namespace, &with_timeout("as-long-as-may-be", 31)).await?;

    set(namespace, json!({"requireReason": "true"})).await?;
    is_refused(namespace, &stacks("without-reason"), "requireReason").await?;
    let mut reasoned = stacks("with-reason");
    reasoned.spec.reason = Some("INC-4711".to_owned());
    is_let_through(namespace, &reasoned).await?;
    set(namespace, json!({"requireReason": "false"})).await
}

/// `scriptsMode` and `scriptsAllowedSha256`.
async fn scripts(namespace: &TestNamespace) -> Result<()> {
    let listed = sha256(b"'listed'");
    let list = json!({"scriptsMode": "AllowList", "scriptsAllowedSha256": listed});
    set(namespace, list).await?;
    is_let_through(namespace, &script("listed")).await?;
    let other = sessions::exec("not-listed", "idle", "'listed' ");
    let digest = sha256(b"'listed' ");
    is_refused(namespace, &other, &digest).await?;
    // The bytes count, wherever they are from.
    namespace
        .write_configmap("scripts", &[("listed", "'listed'"), ("other", "'other'")])
        .await?;
    let from = |name: &str, key: &str| -> Result<DebugSession> {
        let mut session = sessions::exec(name, "idle", "");
        session.spec.remote_exec = Some(serde_json::from_value(json!({
            "scriptFrom": {"configMapKeyRef": {"name": "scripts", "key": key}},
        }))?);
        Ok(session)
    };
    is_let_through(namespace, &from("listed-from-a-map", "listed")?).await?;
    let words = "scriptsAllowedSha256";
    is_refused(namespace, &from("other-from-a-map", "other")?, words).await?;

    set(namespace, json!({"scriptsMode": "RecipesOnly"})).await?;
    is_refused(namespace, &script("no-recipe"), "RecipesOnly").await?;
    is_let_through(namespace, &stacks("no-script")).await?;
    set(
        namespace,
        json!({"scriptsMode": "Any", "scriptsAllowedSha256": ""}),
    )
    .await?;
    is_let_through(namespace, &script("any")).await
}

/// Settings that nobody can read.
async fn unreadable(namespace: &TestNamespace) -> Result<()> {
    set(namespace, json!({"killswitch": "All"})).await?;
    let words = "there is no setting killswitch";
    is_refused(namespace, &script("unreadable"), words).await?;
    is_let_through(namespace, &stacks("read-all-the-same")).await?;
    set(namespace, json!({"killswitch": null, "killSwitch": "all"})).await?;
    is_refused(namespace, &stacks("unreadable-switch"), "kill switch").await
}
