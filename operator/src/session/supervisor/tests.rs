//! What a session's task does beside its attempts, against an API server and agents in memory.

use http::Method;
use serde_json::{Value, json};
use sidewinder_model::{Reason, ToAgent};
use tokio::task::JoinHandle;

use super::*;
use crate::events::Events;
use crate::fences::policies::{Own, Policies};
use crate::fences::review::Reviewer;
use crate::fences::settings::{self, KillSwitch};
use crate::fences::slots::Slots;
use crate::fences::{Demands, Fences};
use crate::metrics::{Metrics, Traffic};
use crate::relay::pool::Pool;
use crate::session::result::Sensitive;
use crate::session::{Refusals, Settings, run};
use crate::testing::{Agents, FakeApi, merge, pod, session, sidecar};

const SESSIONS: &str = "/apis/sidewinder.dev/v1alpha1/namespaces/shop/debugsessions";
const POD: &str = "/api/v1/namespaces/shop/pods/web-0";

fn context(agents: &Agents) -> (Context<Agents>, FakeApi) {
    let (client, api) = FakeApi::new();
    api.put(POD, &pod(json!({})));
    let context = Context {
        client: client.clone(),
        pool: Pool::new(agents.clone(), Traffic::default()),
        settings: Settings {
            sidecar: sidecar(),
            sensitive: Sensitive::Secret,
            result_max_bytes: crate::session::result::spill::DOCUMENT_BYTES,
            max_concurrent: 1,
        },
        metrics: Metrics::new(),
        events: Events::new(client.clone(), "test"),
        fences: crate::testing::fences(&client),
        refusals: Refusals::default(),
    };
    (context, api)
}

/// Puts a session called `name` there, which runs a script.
fn put(api: &FakeApi, name: &str, patch: Value) -> String {
    let script = session(json!({"remoteExec": {"script": "print(1)"}}));
    let mut object = serde_json::to_value(script).unwrap();
    merge(
        &mut object,
        json!({"metadata": {"name": name, "uid": format!("uid-{name}")}}),
    );
    merge(&mut object, patch);
    let place = format!("{SESSIONS}/{name}");
    api.put(&place, &object);
    place
}

/// A status that says that the script was given to the agent `i1`.
fn given() -> Value {
    json!({"status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "targets": [{
        "podName": "web-0", "podUID": "pod-uid-1", "container": "app", "containerID": "containerd://c1",
        "sidecar": "sidewinder-app-1", "attach": "Ptrace", "agent": "i1", "phase": "Running"
    }]}})
}

/// The controller at work, until it is told to stop.
fn start(context: Context<Agents>) -> (CancellationToken, JoinHandle<()>) {
    let stop = CancellationToken::new();
    let working = run(Arc::new(context), Some("shop".to_owned()), stop.clone());
    (stop, tokio::spawn(working))
}

/// Looks, on a clock that goes only while everybody waits, until something is true.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_mins(10), wait).await;
    assert!(waited.is_ok(), "never came true: {what}");
}

fn cancelled(agents: &Agents, name: &str) -> bool {
    let id = format!("uid-{name}");
    agents.heard().contains(&ToAgent::Cancel { id })
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_deleted_between_two_attempts_has_its_script_stopped() {
    let agents = Agents::new("i1", None);
    let (context, api) = context(&agents);
    let place = put(&api, "script", json!({}));
    let (stop, running) = start(context);
    until("the script is given", || !agents.runs().is_empty()).await;
    for _ in 0..50 {
        api.refuse(Method::GET, "pods/web-0", "", 500, "boom");
    }
    let asked = api.made(&Method::GET, "pods/web-0").len();
    agents.hang_up();
    until("the attempt fails", || {
        api.made(&Method::GET, "pods/web-0").len() > asked
    })
    .await;
    api.remove(&place);
    until("the script is stopped", || cancelled(&agents, "script")).await;
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_gone_after_a_failure_has_its_script_stopped() {
    let agents = Agents::new("i1", None);
    let (context, api) = context(&agents);
    for _ in 0..50 {
        api.refuse(Method::GET, "pods/web-0", "", 500, "boom");
    }
    // The watch has not told of it yet.
    let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound"});
    api.answer_next(Method::GET, "debugsessions/script", 404, gone);
    put(&api, "script", given());
    let (stop, running) = start(context);
    until("the script is stopped", || cancelled(&agents, "script")).await;
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_script_said_before_its_session_was_given_up_is_stored_and_let_go() {
    let agents = Agents::new("i1", None);
    agents.say("the words of a script");
    let (context, api) = context(&agents);
    for _ in 0..50 {
        api.refuse(Method::GET, "pods/web-0", "", 500, "boom");
    }
    let place = put(&api, "script", given());
    let (stop, running) = start(context);
    let ended = api
        .until(&place, |session| {
            session["status"]["completionTime"].is_string()
        })
        .await;
    let status = &ended["status"];
    let target = &status["targets"][0];
    let part = &target["result"]["parts"][0]["secretName"];
    let secret = format!(
        "/api/v1/namespaces/shop/secrets/{}",
        part.as_str().unwrap_or_default()
    );
    assert!(api.get(&secret).is_some(), "{status:#}");
    // Nobody cancelled it.
    for reason in [&status["reason"], &target["reason"]] {
        assert_eq!(reason, "InternalError", "{status:#}");
    }
    assert_eq!(status["phase"], "Failed");
    assert!(target["message"].as_str().unwrap().contains("boom"));
    let id = "uid-script".to_owned();
    until("the agent may forget it", || {
        agents
            .heard()
            .contains(&ToAgent::Acknowledge { id: id.clone() })
    })
    .await;
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_script_cannot_be_read_holds_nobody_up_and_ends() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let (context, api) = context(&agents);
    for _ in 0..100 {
        api.refuse(Method::GET, "debugsessions/long", "", 500, "no such luck");
    }
    let script = "print(1)\n".repeat(1000);
    let long = put(
        &api,
        "long",
        json!({"spec": {"remoteExec": {"script": script}}}),
    );
    let (stop, running) = start(context);
    until("it is read", || {
        !api.made(&Method::GET, "debugsessions/long").is_empty()
    })
    .await;
    let short = put(&api, "short", json!({}));
    let ended = |session: &Value| session["status"]["completionTime"].is_string();
    api.until(&short, ended).await;
    assert!(!ended(&api.get(&long).unwrap()));
    let ended = api.until(&long, ended).await;
    assert_eq!(ended["status"]["reason"], "InternalError");
    assert!(ended["status"].to_string().contains("no such luck"));
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_deleted_while_its_script_cannot_be_read_is_left() {
    let agents = Agents::new("i1", None);
    let (context, api) = context(&agents);
    for _ in 0..100 {
        api.refuse(Method::GET, "debugsessions/long", "", 500, "no such luck");
    }
    let mut long = json!({"spec": {"remoteExec": {"script": "print(1)\n".repeat(1000)}}});
    merge(&mut long, given());
    let place = put(&api, "long", long);
    let active = context.metrics.active.clone();
    let (stop, running) = start(context);
    let reads = || api.made(&Method::GET, "debugsessions/long").len();
    until("it is read", || reads() > 0).await;
    api.remove(&place);
    until("its script is stopped", || cancelled(&agents, "long")).await;
    until("nobody works on it", || active.get() == 0).await;
    assert!(reads() < 100);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_that_waits_for_its_turn_is_refused_as_soon_as_the_kill_switch_is_on() {
    let agents = Agents::new("i1", Some(Reason::Succeeded));
    let (mut context, api) = context(&agents);
    let (switch, settings) = watch::channel(settings::Settings::default());
    let client = &context.client;
    context.fences = Fences::new(
        client.clone(),
        Demands {
            policies: false,
            requester: false,
        },
        settings,
        Policies::new(client.clone(), Own::new("sidewinder-system", "sidecar:1")),
        Reviewer::new(client.clone(), false),
        || Slots::new(4, 8),
    );
    let stop = CancellationToken::new();
    let (expiries, _due) = mpsc::channel(1);
    let supervisor = Supervisor::new(Arc::new(context), stop.clone(), expiries, true);
    let supervisor = Arc::new(supervisor);
    // Somebody is at work for as long as this test lasts.
    let _place = supervisor.running_code.acquire().await.unwrap();
    let place = put(&api, "waits", json!({}));
    let waits: DebugSession = serde_json::from_value(api.get(&place).unwrap()).unwrap();
    supervisor.hand_over(&Arc::new(waits), "uid-waits");
    until("it waits", || {
        let metrics = supervisor.context.metrics.encode().unwrap();
        metrics.contains("sidewinder_sessions_queued 1")
    })
    .await;
    assert!(api.get(&place).unwrap()["status"].is_null());
    switch.send_modify(|settings| settings.kill_switch = KillSwitch::CodeRunning);
    let ended = api
        .until(&place, |session| {
            session["status"]["completionTime"].is_string()
        })
        .await;
    assert_eq!(ended["status"]["reason"], "PolicyDenied");
    assert!(agents.heard().is_empty());
    supervisor.tasks.close();
    supervisor.tasks.wait().await;
}
