//! What goes away while a session runs: the target, the agent, the operator, the API server, the session itself.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use sidewinder_crds::{DebugSession, Phase, names};
use sidewinder_e2e::namespace::TestNamespace;
use sidewinder_e2e::session_client as sessions;
use sidewinder_e2e::watch;
use sidewinder_e2e::workload::{self, ephemeral_containers, restarts};
use sidewinder_model::{ExecOutcome, Reason};

use crate::expect::{complete, condition, data, failed, one};
use crate::stage::{alone, test};

/// Says that it runs, once for each run, and goes on until it is stopped from outside or the file `enough` appears.
pub(crate) const LONG_SCRIPT: &str = "\
import os, time
with open('/tmp/runs', 'a') as runs:
    runs.write('run\\n')
print('begun')
try:
    while not os.path.exists('/tmp/enough'):
        time.sleep(0.05)
finally:
    open('/tmp/ended', 'w').close()
'enough'";

pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Waits inside the target until a shell's test holds.
pub(crate) async fn until(namespace: &TestNamespace, pod: &str, test: &str) -> Result<()> {
    let wait = format!("for i in $(seq 300); do [ {test} ] && exit 0; sleep 0.05; done; exit 1");
    let waited = namespace.shell_in(pod, &wait).await;
    waited
        .map(drop)
        .with_context(|| format!("{pod}: waited 15 s for {test}"))
}

/// Starts the session and waits until its script runs.
pub(crate) async fn begin(
    namespace: &TestNamespace,
    session: &DebugSession,
) -> Result<DebugSession> {
    let created = sessions::create(&namespace.sessions(), session).await?;
    until(namespace, session.spec.pod_name(), "-s /tmp/runs").await?;
    Ok(created)
}

/// After a session on the pod `idle` was ended early: its script is stopped between two of its own steps, what is said about that is true,
/// and the next script runs.
pub(crate) async fn check_stopped(
    namespace: &TestNamespace,
    still_running: Option<bool>,
) -> Result<()> {
    until(namespace, "idle", "-e /tmp/ended").await?;
    ensure!(
        still_running != Some(true),
        "stillRunning is true, but the script has ended"
    );
    let after = namespace
        .run(&sessions::exec("after", "idle", "'free'"))
        .await?;
    complete(&after, Reason::Succeeded)?;
    ensure!(
        runs(namespace, "idle").await? == 1,
        "the script ran more than once"
    );
    Ok(())
}

pub(crate) fn long(name: &str, pod: &str) -> DebugSession {
    let mut session = sessions::exec(name, pod, LONG_SCRIPT);
    session.spec.timeout_seconds = 120;
    session
}

pub(crate) async fn runs(namespace: &TestNamespace, pod: &str) -> Result<usize> {
    Ok(namespace
        .shell_in(pod, "cat /tmp/runs")
        .await?
        .lines()
        .count())
}

#[test]
fn a_session_that_is_cancelled_before_it_begins_never_runs() {
    test("cancelled_before", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let mut session = sessions::exec("exec", "idle", LONG_SCRIPT);
        session.spec.cancel = true;
        let session = namespace.run(&session).await?;
        let status = failed(&session, Reason::Cancelled)?;
        ensure!(status.phase == Some(Phase::Cancelled));
        let now = namespace.pods().get("idle").await?;
        ensure!(
            ephemeral_containers(&now).is_empty(),
            "{:?}",
            ephemeral_containers(&now)
        );
        ensure!(namespace.shell_in("idle", "ls /tmp").await?.is_empty());
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_session_that_is_cancelled_stops_its_script() {
    test("cancelled_during", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let session = begin(namespace, &long("exec", "idle")).await?;
        sessions::cancel(&namespace.sessions(), "exec").await?;
        sessions::status(
            &namespace.sessions(),
            "exec",
            Duration::from_secs(12),
            "its end",
            |status| status.completion_time.is_some(),
        )
        .await?;
        let ended = sessions::ended(&namespace.sessions(), &session).await?;
        let status = failed(&ended, Reason::Cancelled)?;
        condition(status, "Disarmed", "True", &[Reason::Disarmed])?;
        let outcome: ExecOutcome = data(namespace, &ended, one(status)?).await?;
        ensure!(outcome.stdout == "begun\n", "{outcome:?}");
        check_stopped(namespace, Some(outcome.still_running)).await?;
        pod.check_untouched(namespace).await
    });
}

#[test]
fn cancelling_a_session_that_has_ended_changes_nothing() {
    test("cancelled_after", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let ended = namespace.run(&sessions::stacks("stacks", "idle")).await?;
        complete(&ended, Reason::Succeeded)?;
        sessions::cancel(&namespace.sessions(), "stacks").await?;
        let followed = sessions::status(
            &namespace.sessions(),
            "stacks",
            SOON,
            "the generation to be seen",
            |status| status.observed_generation > ended.metadata.generation,
        )
        .await?;
        let status = complete(&followed, Reason::Succeeded)?;
        ensure!(status.targets == sessions::status_of(&ended)?.targets);
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_session_that_is_deleted_is_gone_at_once_and_its_script_stops() {
    test("deleted_during", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        begin(namespace, &long("exec", "idle")).await?;
        sessions::delete(&namespace.sessions(), "exec", Duration::from_secs(10)).await?;
        check_stopped(namespace, None).await?;
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_target_that_restarts_while_its_script_runs() {
    test("target_restarts", async |namespace| {
        namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let session = namespace
            .run(&sessions::exec("exec", "idle", "import os\nos._exit(3)"))
            .await?;
        failed(&session, Reason::TargetRestarted)?;
        watch::until_object(
            &namespace.pods(),
            "idle",
            Duration::from_secs(90),
            "the second start",
            |pod| {
                let state = workload::app_status(pod).and_then(|status| status.state.as_ref());
                restarts(pod) == 1 && state.is_some_and(|state| state.running.is_some())
            },
        )
        .await?;
        workload::goes_on(&namespace.pods(), "idle").await?;
        // The old sidecar died with the old process 1; the next session brings a new one.
        let session = namespace.run(&sessions::stacks("stacks", "idle")).await?;
        complete(&session, Reason::Succeeded)?;
        ensure!(ephemeral_containers(&namespace.pods().get("idle").await?).len() == 2);
        Ok(())
    });
}

#[test]
fn a_process_that_ends_while_its_script_runs() {
    test("process_ends", async |namespace| {
        let shell = namespace.shell("worker", "python3.14 /app/worker.py; exec sleep infinity");
        let pod = namespace.start(&shell).await?;
        let session = namespace
            .run(&sessions::exec("exec", "worker", "import os\nos._exit(3)"))
            .await?;
        failed(&session, Reason::TargetExited)?;
        let now = namespace.pods().get(&pod.name).await?;
        ensure!(restarts(&now) == 0);
        failed(
            &namespace.run(&sessions::stacks("stacks", "worker")).await?,
            Reason::NoPythonProcess,
        )?;
        Ok(())
    });
}

#[test]
fn an_agent_that_is_killed_never_runs_a_script_again() {
    test("agent_killed", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let session = begin(namespace, &long("exec", "idle")).await?;
        let kill = "for process in /proc/[0-9]*; do case $(cat $process/comm 2>/dev/null) in sidewinder-side*) kill -9 ${process#/proc/};; esac; done";
        namespace.shell_in("idle", kill).await?;
        let ended = sessions::ended(&namespace.sessions(), &session).await?;
        failed(&ended, Reason::SidecarLost)?;
        namespace.shell_in("idle", "touch /tmp/enough").await?;
        let after = namespace
            .run(&sessions::exec("after", "idle", "'free'"))
            .await?;
        complete(&after, Reason::Succeeded)?;
        ensure!(runs(namespace, "idle").await? == 1, "the script ran again");
        pod.check_untouched(namespace).await
    });
}

/// Kills the operator without a chance to tidy up, and waits until its successor is ready.
pub(crate) async fn kill_the_operator(namespace: &TestNamespace) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(namespace.client.clone(), names::NAMESPACE);
    let label = format!("{}={}", names::APP_LABEL, names::APP);
    let killed = pods.list(&ListParams::default().labels(&label)).await?;
    ensure!(!killed.items.is_empty(), "no operator runs");
    for pod in &killed {
        pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0))
            .await
            .context("cannot kill the operator")?;
    }
    let gone: Vec<String> = killed.iter().filter_map(ResourceExt::uid).collect();
    for pod in &killed {
        watch::until(
            &pods,
            &pod.name_any(),
            SOON,
            "the operator's pod to be gone",
            |pod| {
                pod.and_then(ResourceExt::uid)
                    .is_none_or(|uid| !gone.contains(&uid))
            },
        )
        .await?;
    }
    operator_is_ready(namespace).await
}

async fn operator_is_ready(namespace: &TestNamespace) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(namespace.client.clone(), names::NAMESPACE);
    watch::until_object(
        &deployments,
        names::OPERATOR,
        Duration::from_secs(90),
        "the operator to be ready",
        |deployment| {
            let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas);
            let status = deployment.status.as_ref();
            status.and_then(|status| status.ready_replicas) == wanted
                && status
                    .and_then(|status| status.unavailable_replicas)
                    .is_none()
        },
    )
    .await?;
    Ok(())
}

#[test]
fn an_operator_that_is_killed_during_a_run_fetches_the_result_afterwards() {
    alone("operator_killed", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let session = begin(namespace, &long("exec", "idle")).await?;
        kill_the_operator(namespace).await?;
        namespace.shell_in("idle", "touch /tmp/enough").await?;
        let ended = sessions::ended(&namespace.sessions(), &session).await?;
        let status = complete(&ended, Reason::Succeeded)?;
        let outcome: ExecOutcome = data(namespace, &ended, one(status)?).await?;
        ensure!(outcome.value.as_deref() == Some("'enough'"), "{outcome:?}");
        ensure!(runs(namespace, "idle").await? == 1, "the script ran again");
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_result_that_was_ready_while_no_operator_ran_is_fetched() {
    alone("result_waits_for_the_operator", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let session = begin(namespace, &long("exec", "idle")).await?;
        let deployments: Api<Deployment> =
            Api::namespaced(namespace.client.clone(), names::NAMESPACE);
        let replicas = |count: i32| serde_json::json!({"spec": {"replicas": count}});
        let before = deployments
            .get(names::OPERATOR)
            .await?
            .spec
            .and_then(|spec| spec.replicas)
            .unwrap_or(1);
        let merge = kube::api::PatchParams::default();
        deployments
            .patch(
                names::OPERATOR,
                &merge,
                &kube::api::Patch::Merge(replicas(0)),
            )
            .await?;
        let outcome = async {
            let pods: Api<Pod> = Api::namespaced(namespace.client.clone(), names::NAMESPACE);
            let label = format!("{}={}", names::APP_LABEL, names::APP);
            for old in pods.list(&ListParams::default().labels(&label)).await? {
                watch::until(
                    &pods,
                    &old.name_any(),
                    Duration::from_mins(1),
                    "the operator to end",
                    |pod| pod.is_none(),
                )
                .await?;
            }
            namespace.shell_in("idle", "touch /tmp/enough").await?;
            workload::goes_on(&namespace.pods(), "idle").await
        }
        .await;
        deployments
            .patch(
                names::OPERATOR,
                &merge,
                &kube::api::Patch::Merge(replicas(before)),
            )
            .await?;
        operator_is_ready(namespace).await?;
        outcome?;
        let ended = sessions::ended(&namespace.sessions(), &session).await?;
        let status = complete(&ended, Reason::Succeeded)?;
        let outcome: ExecOutcome = data(namespace, &ended, one(status)?).await?;
        ensure!(outcome.value.as_deref() == Some("'enough'"), "{outcome:?}");
        ensure!(runs(namespace, "idle").await? == 1, "the script ran again");
        pod.check_untouched(namespace).await
    });
}

#[test]
fn a_session_is_deleted_when_its_time_to_live_is_over() {
    test("time_to_live", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let mut session = sessions::stacks("short-lived", "idle");
        session.spec.ttl_seconds_after_finished = Some(2);
        let session = namespace.run(&session).await?;
        complete(&session, Reason::Succeeded)?;
        let uid = session.uid().unwrap_or_default();
        let gone = |found: Option<&DebugSession>| {
            found.is_none_or(|found| found.uid().as_deref() != Some(&uid))
        };
        watch::until(
            &namespace.sessions(),
            "short-lived",
            SOON,
            "its deletion",
            gone,
        )
        .await?;
        pod.check_untouched(namespace).await
    });
}
