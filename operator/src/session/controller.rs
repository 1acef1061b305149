//! The watches: sessions that have not ended, whose tasks are started and told of changes, and the names of all others,
//! to hear which were deleted and which were changed after their end.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, ListParams};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::Controller;
use kube::runtime::controller::{self, Action};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use sidewinder_crds::DebugSession;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::finished::{PAGE, UNFINISHED, expiries};
use super::light::Light;
use super::supervisor::Supervisor;
use super::{Context, plan};
use crate::error::{Error, describe, patiently};
use crate::relay::connect::Connect;

/// How often unused streams are looked for.
const SWEEP: Duration = Duration::from_secs(15);

async fn reconcile<C: Connect>(
    session: Arc<DeserializeGuard<Light>>,
    supervisor: Arc<Supervisor<C>>,
) -> Result<Action, Infallible> {
    let session = match &session.0 {
        Ok(Light(session)) => session,
        Err(invalid) => {
            supervisor.context.metrics.errors.inc();
            warn!(
                namespace = session.meta().namespace,
                name = session.meta().name,
                error = %invalid.error,
                "a session cannot be read by this version"
            );
            return Ok(Action::await_change());
        }
    };
    let Some(uid) = session.uid() else {
        return Ok(Action::await_change());
    };
    if session.metadata.deletion_timestamp.is_some() {
        supervisor.deleted(|running| running == uid);
    } else if !plan::has_ended(session) {
        supervisor.hand_over(&Arc::new(session.clone()), &uid);
    }
    Ok(Action::await_change())
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature is the controller's"
)]
fn error_policy<C: Connect>(
    _: Arc<DeserializeGuard<Light>>,
    never: &Infallible,
    _: Arc<Supervisor<C>>,
) -> Action {
    match *never {}
}

/// Tells the running tasks of deleted sessions, and notes what changed in sessions that have ended. The controller is
/// not told: its own watch passes on what is there, and of that only what has not ended. Metadata is enough to know.
async fn news<C: Connect>(supervisor: Arc<Supervisor<C>>, namespace: Option<String>) {
    let sessions: Api<PartialObjectMeta<DebugSession>> =
        api(&supervisor.context.client, namespace.as_deref());
    // After a gap in the watch: what ran before the new list was asked for and is not on it is gone.
    let mut missing = HashSet::new();
    let mut events = watcher(sessions, paged()).default_backoff().boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => missing = supervisor.known(),
            Ok(watcher::Event::InitApply(session)) => {
                missing.remove(&session.uid().unwrap_or_default());
            }
            Ok(watcher::Event::InitDone) => {
                supervisor.deleted(|running| missing.contains(running));
                missing.clear();
            }
            // Only `cancel` can change, and only once; while a session runs its task is told.
            Ok(watcher::Event::Apply(session)) => {
                let changed = session.metadata.generation.is_some_and(|count| count > 1);
                let uid = session.uid().unwrap_or_default();
                if changed && !supervisor.known().contains(&uid) {
                    let namespace = session.namespace().unwrap_or_default();
                    let name = session.name_any();
                    if let Err(failed) = supervisor.look_after(&namespace, &name).await {
                        warn!(error = %describe(&failed), "a session that has ended cannot be looked after");
                    }
                }
            }
            Ok(watcher::Event::Delete(session)) => {
                let gone = session.uid().unwrap_or_default();
                supervisor.deleted(|running| running == gone);
            }
            // The watcher starts again by itself, after a pause.
            Err(failed) => debug!(error = %describe(&failed), "the watch of deletions failed"),
        }
    }
}

/// A watch that begins with a list of small pages: a page is in memory as a whole before anything of it can be left out.
/// A streaming list would come one by one, but not every Kubernetes has it (KEP-3157: by default from 1.34 on).
fn paged() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Whether the API server can tell sessions that have ended from others.
async fn selects_by_phase(client: &Client, namespace: Option<&str>) -> Result<bool, Error> {
    let sessions: Api<PartialObjectMeta<DebugSession>> = api(client, namespace);
    let params = ListParams::default().fields(UNFINISHED).limit(1);
    let answer = patiently(
        || "list the sessions that have not ended".to_owned(),
        || sessions.list_metadata(&params),
    )
    .await;
    match answer {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some(400) => {
            info!(error = %describe(&error), "the API server does not select by status.phase; every session is cached");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Runs the controller until `stop` is cancelled. Sessions that are under way then are left as they are: their agents
/// go on, and whoever leads next takes them up from their status.
pub async fn run<C: Connect>(
    context: Arc<Context<C>>,
    namespace: Option<String>,
    stop: CancellationToken,
) {
    let client = context.client.clone();
    let by_phase = loop {
        tokio::select! {
            answer = selects_by_phase(&client, namespace.as_deref()) => match answer {
                Ok(by_phase) => break by_phase,
                Err(failed) => {
                    context.metrics.errors.inc();
                    warn!(error = %describe(&failed), "the sessions cannot be listed");
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
            },
            () = stop.cancelled() => return,
        }
    };
    let sessions: Api<DeserializeGuard<Light>> = match &namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let (sender, receiver) = expiries();
    let supervisor = Arc::new(Supervisor::new(context, stop.clone(), sender, by_phase));
    let sweeping = {
        let supervisor = Arc::clone(&supervisor);
        async move {
            let mut ticks = tokio::time::interval(SWEEP);
            loop {
                ticks.tick().await;
                supervisor.context.pool.sweep();
            }
        }
    };
    let news = news(Arc::clone(&supervisor), namespace.clone());
    let config = if by_phase {
        paged().fields(UNFINISHED)
    } else {
        paged()
    };
    let controller = Controller::new(sessions, config)
        .with_config(controller::Config::default().concurrency(32))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(reconcile, error_policy, Arc::clone(&supervisor))
        .for_each(|result| {
            match result {
                // An object that is not found has ended or was deleted meanwhile.
                Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
                Err(failed) => warn!(error = %describe(&failed), "the watch of sessions failed"),
            }
            std::future::ready(())
        });
    tokio::select! {
        () = controller => {}
        () = sweeping => {}
        () = news => {}
        () = supervisor.go_round(namespace) => {}
        () = supervisor.delete_due(receiver) => {}
    }
    stop.cancel();
    supervisor.tasks.close();
    supervisor.tasks.wait().await;
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};
    use sidewinder_model::{Reason, ToAgent};

    use super::*;
    use crate::events::Events;
    use crate::metrics::{Metrics, Traffic};
    use crate::relay::pool::Pool;
    use crate::session::result::Sensitive;
    use crate::session::{Refusals, Settings};
    use crate::testing::{Agents, FakeApi, merge, pod, session, sidecar};

    const SESSIONS: &str = "/apis/sidewinder.dev/v1alpha1/namespaces/shop/debugsessions";

    fn context(client: &Client) -> Arc<Context<Agents>> {
        with_agents(client, Agents::new("i1", Some(Reason::Succeeded)))
    }

    fn with_agents(client: &Client, agents: Agents) -> Arc<Context<Agents>> {
        Arc::new(Context {
            client: client.clone(),
            pool: Pool::new(agents, Traffic::default()),
            settings: Settings {
                sidecar: sidecar(),
                sensitive: Sensitive::Secret,
                result_max_bytes: crate::session::result::spill::DOCUMENT_BYTES,
                max_concurrent: 4,
            },
            metrics: Metrics::new(),
            events: Events::new(client.clone(), "test"),
            fences: crate::testing::fences(client),
            refusals: Refusals::default(),
        })
    }

    /// Puts a session called `name` there.
    fn put(api: &FakeApi, name: &str, patch: Value) -> String {
        let mut object = serde_json::to_value(session(json!({"stacks": {}}))).unwrap();
        merge(
            &mut object,
            json!({"metadata": {"name": name, "uid": format!("uid-{name}")}}),
        );
        merge(&mut object, patch);
        let place = format!("{SESSIONS}/{name}");
        api.put(&place, &object);
        place
    }

    fn finished(generation: i64) -> Value {
        json!({
            "metadata": {"generation": generation},
            "status": {
                "phase": "Succeeded", "observedGeneration": 1,
                "completionTime": "2026-01-01T00:00:00Z", "targets": [],
                "conditions": [
                    {"type": "Complete", "status": "True", "reason": "Succeeded", "message": "",
                     "lastTransitionTime": "2026-01-01T00:00:00Z"}
                ]
            }
        })
    }

    #[tokio::test]
    async fn sessions_are_worked_on_and_those_that_have_ended_are_looked_after() {
        let (client, api) = FakeApi::new();
        api.put("/api/v1/namespaces/shop/pods/web-0", &pod(json!({})));
        let new = put(&api, "new", json!({}));
        let kept = put(&api, "kept", finished(1));
        let mut due = finished(1);
        merge(&mut due, json!({"spec": {"ttlSecondsAfterFinished": 1}}));
        let due = put(&api, "due", due);
        let cancelled = put(&api, "cancelled", finished(2));
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(context(&client), Some("shop".to_owned()), stop.clone()));
        api.until(&new, |session| session["status"]["phase"] == "Succeeded")
            .await;
        api.until(&cancelled, |session| {
            session["status"]["observedGeneration"] == 2
        })
        .await;
        api.until_gone(&due).await;
        // A change after the end, which the cache of what is under way does not hold.
        api.change(
            &kept,
            json!({"metadata": {"generation": 2}, "spec": {"cancel": true}}),
        );
        api.until(&kept, |session| {
            session["status"]["observedGeneration"] == 2
        })
        .await;
        assert_eq!(api.get(&kept).unwrap()["status"]["phase"], "Succeeded");
        // Whoever lists sessions holds a page of them at once, scripts and all.
        let lists = api.made(&Method::GET, "/debugsessions");
        let lists: Vec<_> = lists
            .iter()
            .filter(|made| !made.query.contains("watch=true"))
            .collect();
        assert!(lists.len() >= 4, "{lists:?}");
        for list in lists {
            let limit = list
                .query
                .split('&')
                .find_map(|it| it.strip_prefix("limit="));
            let limit: u32 = limit.unwrap().parse().unwrap();
            assert!(limit <= PAGE, "{list:?}");
        }
        // One that comes later, with a time to live that ends while the operator runs.
        let brief = put(
            &api,
            "brief",
            json!({"spec": {"ttlSecondsAfterFinished": 0}}),
        );
        api.until_gone(&brief).await;
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_another_operator_wrote_and_left_is_brought_to_its_end() {
        let (client, api) = FakeApi::new();
        api.put("/api/v1/namespaces/shop/pods/web-0", &pod(json!({})));
        let script = json!({"spec": {"stacks": null, "remoteExec": {"script": "print(1)"}}});
        let session = put(&api, "script", script);
        let stop = CancellationToken::new();
        let context = with_agents(&client, Agents::new("i1", None));
        let running = tokio::spawn(run(context, Some("shop".to_owned()), stop.clone()));
        api.until(&session, |session| session["status"]["phase"] == "Running")
            .await;
        // The other one's last write, which this one's next write meets.
        api.change(
            &session,
            json!({"status": {"summary": "written by another"}}),
        );
        api.change(
            &session,
            json!({"spec": {"cancel": true}, "metadata": {"generation": 2}}),
        );
        let ended = api
            .until(&session, |session| {
                session["status"]["completionTime"].is_string()
            })
            .await;
        assert_eq!(ended["status"]["reason"], "Cancelled");
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_is_given_up_has_its_script_stopped_and_says_so() {
        let (client, api) = FakeApi::new();
        let given = json!({
            "spec": {"stacks": null, "remoteExec": {"script": "print(1)"}},
            "status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "targets": [{
                "podName": "web-0", "podUID": "pod-uid-1", "container": "app", "containerID": "containerd://c1",
                "sidecar": "sidewinder-app-1", "attach": "Ptrace", "agent": "i1", "phase": "Running"
            }]}
        });
        for _ in 0..50 {
            api.refuse(http::Method::GET, "pods/web-0", "", 500, "boom");
        }
        let script = put(&api, "script", given);
        let stop = CancellationToken::new();
        let agents = Agents::new("i1", None);
        let context = with_agents(&client, agents.clone());
        let running = tokio::spawn(run(context, Some("shop".to_owned()), stop.clone()));
        let ended = api
            .until(&script, |session| {
                session["status"]["completionTime"].is_string()
            })
            .await;
        let target = &ended["status"]["targets"][0];
        let message = target["message"].as_str().unwrap();
        assert!(message.contains("boom"), "{message}");
        assert!(message.contains("told to stop"), "{message}");
        assert_eq!(target["disarmed"], "NotArmed");
        let id = "uid-script".to_owned();
        let heard = agents.heard().clone();
        assert!(heard.contains(&ToAgent::Cancel { id }), "{heard:?}");
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_long_script_is_read_when_its_turn_comes_and_runs_whole() {
        let (client, api) = FakeApi::new();
        api.put("/api/v1/namespaces/shop/pods/web-0", &pod(json!({})));
        let text = "print(1)\n".repeat(1000);
        let long = json!({"spec": {"stacks": null, "remoteExec": {"script": text}}});
        let long = put(&api, "long", long);
        let stop = CancellationToken::new();
        let agents = Agents::new("i1", Some(Reason::Succeeded));
        let context = with_agents(&client, agents.clone());
        let running = tokio::spawn(run(context, Some("shop".to_owned()), stop.clone()));
        api.until(&long, |session| session["status"]["phase"] == "Succeeded")
            .await;
        let asked = agents.heard().iter().find_map(|message| match message {
            ToAgent::Run { request } => Some(request.action.clone()),
            _ => None,
        });
        let Some(sidewinder_model::Action::Exec(asked)) = asked else {
            panic!("{asked:?}")
        };
        assert_eq!(asked.script, text);
        assert_eq!(api.made(&http::Method::GET, "debugsessions/long").len(), 1);
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_session_that_is_gone_when_its_turn_comes_has_its_script_stopped() {
        let (client, api) = FakeApi::new();
        api.put("/api/v1/namespaces/shop/pods/web-0", &pod(json!({})));
        let given = json!({
            "spec": {"stacks": null, "remoteExec": {"script": "print(1)\n".repeat(1000)}},
            "status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "targets": [{
                "podName": "web-0", "podUID": "pod-uid-1", "container": "app", "containerID": "containerd://c1",
                "sidecar": "sidewinder-app-1", "attach": "Ptrace", "agent": "i1", "phase": "Running"
            }]}
        });
        // The watch has not told of it yet.
        let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound"});
        api.answer_next(http::Method::GET, "debugsessions/script", 404, gone);
        put(&api, "script", given);
        let stop = CancellationToken::new();
        let agents = Agents::new("i1", None);
        let context = with_agents(&client, agents.clone());
        let running = tokio::spawn(run(context, Some("shop".to_owned()), stop.clone()));
        let id = "uid-script".to_owned();
        let cancelled = async {
            while !agents.heard().contains(&ToAgent::Cancel { id: id.clone() }) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), cancelled)
            .await
            .expect("its script runs on");
        assert!(agents.runs().is_empty());
        stop.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn where_sessions_cannot_be_selected_by_phase_all_of_them_are_watched() {
        let (client, api) = FakeApi::new();
        api.put("/api/v1/namespaces/shop/pods/web-0", &pod(json!({})));
        api.refuse(
            http::Method::GET,
            "debugsessions",
            "fieldSelector",
            400,
            "field label not supported: status.phase",
        );
        let new = put(&api, "new", json!({}));
        let cancelled = put(&api, "cancelled", finished(2));
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(context(&client), Some("shop".to_owned()), stop.clone()));
        api.until(&new, |session| session["status"]["phase"] == "Succeeded")
            .await;
        api.until(&cancelled, |session| {
            session["status"]["observedGeneration"] == 2
        })
        .await;
        let watches = api.made(&http::Method::GET, "debugsessions");
        let filtered = watches
            .iter()
            .filter(|made| made.query.contains("status.phase"));
        assert_eq!(filtered.count(), 1, "the question alone");
        stop.cancel();
        running.await.unwrap();
    }
}
