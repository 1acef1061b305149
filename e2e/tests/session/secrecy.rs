//! A script and what it prints are where they belong, and nowhere else.

use std::path::Path;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use sidewinder_crds::{DebugSession, names};
use sidewinder_e2e::answer::sha256;
use sidewinder_e2e::deploy::Destination;
use sidewinder_e2e::namespace::TestNamespace;
use sidewinder_e2e::session_client as sessions;
use sidewinder_e2e::workload::ephemeral_containers;
use sidewinder_model::{ExecOutcome, Reason};

use crate::expect::{complete, data, one};
use crate::stage::{stage, test};
use crate::table::event;

/// Stands in each script.
const IN_THE_SCRIPT: &str = "tulip-8e41";
/// What a script prints, and what it raises: no script has it as one word.
const IN_THE_OUTPUT: &str = "narcissus-57c0";
/// What may be read about each session, so that a search that finds nothing was made where something is.
const PURPOSE: &str = "INC-90210";

/// The whole log of each container of a pod, by the container's name.
async fn logs(pods: &Api<Pod>, pod: &Pod) -> Result<Vec<(String, String)>> {
    let spec = pod.spec.clone().unwrap_or_default();
    let containers = spec.containers.into_iter().map(|container| container.name);
    let mut logs = Vec::new();
    for container in containers.chain(ephemeral_containers(pod)) {
        let parameters = LogParams {
            container: Some(container.clone()),
            ..LogParams::default()
        };
        let log = pods.logs(&pod.name_any(), &parameters).await?;
        logs.push((format!("the log of {container}"), log));
    }
    Ok(logs)
}

/// What the cluster's own processes write: the API server's audit log, and the logs of the API server, of the kubelet, and
/// of the others.
fn logs_of_the_cluster(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut logs = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            logs.push((path.display().to_string(), text));
        }
    }
    Ok(logs)
}

/// Everything that was said about the sessions: where, and the text.
async fn everything(
    namespace: &TestNamespace,
    ended: &[DebugSession],
) -> Result<Vec<(String, String)>> {
    let mut said = Vec::new();
    let pod = namespace.pods().get("idle").await?;
    said.push(("the pod".to_owned(), serde_json::to_string(&pod)?));
    said.extend(logs(&namespace.pods(), &pod).await?);
    let operators: Api<Pod> = Api::namespaced(namespace.client.clone(), names::NAMESPACE);
    let label = format!("{}={}", names::APP_LABEL, names::APP);
    for operator in operators
        .list(&ListParams::default().labels(&label))
        .await?
    {
        said.extend(logs(&operators, &operator).await?);
    }
    let events = namespace
        .api::<Event>()
        .list(&ListParams::default())
        .await?;
    said.push(("the Events".to_owned(), serde_json::to_string(&events)?));
    for session in ended {
        let name = session.name_any();
        let status = serde_json::to_string(&session.status)?;
        said.push((format!("the status of {name}"), status));
    }
    if let Destination::Embedded(cluster) = &stage()?.destination {
        said.extend(logs_of_the_cluster(&cluster.dir().join("logs"))?);
    }
    Ok(said)
}

fn from_config_map(name: &str) -> Result<DebugSession> {
    let mut session = sessions::exec(name, "idle", "");
    session.spec.remote_exec = Some(serde_json::from_value(json!({
        "scriptFrom": {"configMapKeyRef": {"name": "scripts", "key": name}},
    }))?);
    Ok(session)
}

#[test]
fn a_script_and_its_output_stand_in_no_log_event_or_pod() {
    test("secrecy", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let prints = format!(
            "word = '{IN_THE_SCRIPT}'\nflower = 'narcissus-' + '57c0'\nprint(flower)\nflower"
        );
        let raises = format!(
            "word = '{IN_THE_SCRIPT}'\nprint('narcissus-' + '57c0')\nraise ValueError('narcissus-' + '57c0')"
        );
        let broken = format!("word = '{IN_THE_SCRIPT}'\nprint(");
        namespace
            .write_configmap("scripts", &[("from-a-map", &prints)])
            .await?;
        let mut ended = Vec::new();
        for (mut session, reason, marked) in [
            (
                sessions::exec("prints", "idle", &prints),
                Reason::Succeeded,
                true,
            ),
            (
                sessions::exec("raises", "idle", &raises),
                Reason::ScriptError,
                true,
            ),
            (
                sessions::exec("broken", "idle", &broken),
                Reason::ScriptError,
                false,
            ),
            (from_config_map("from-a-map")?, Reason::Succeeded, true),
        ] {
            session.spec.reason = Some(PURPOSE.to_owned());
            let session = namespace.run(&session).await?;
            let target = one(complete(&session, reason)?)?;
            let outcome: ExecOutcome = data(namespace, &session, target).await?;
            let answer = format!("{outcome:?}");
            ensure!(answer.contains(IN_THE_OUTPUT) == marked, "{answer}");
            ended.push(session);
        }
        // The last of what is said about a session are its Events.
        let last = ended.last().and_then(ResourceExt::uid).unwrap_or_default();
        event(namespace, "about the last session", |event| {
            let about = event.regarding.as_ref();
            about.and_then(|about| about.uid.as_deref()) == Some(&last)
        })
        .await?;

        // Nothing comes in beside the stream: no variable, no volume, and so no token either.
        let now = namespace.pods().get("idle").await?;
        let spec = now.spec.unwrap_or_default();
        let sidecars = spec.ephemeral_containers.unwrap_or_default();
        ensure!(sidecars.len() == 1, "{sidecars:?}");
        for sidecar in sidecars {
            ensure!(
                sidecar.env.is_none()
                    && sidecar.env_from.is_none()
                    && sidecar.volume_mounts.is_none(),
                "{sidecar:?}"
            );
        }

        let said = everything(namespace, &ended).await?;
        for (place, text) in &said {
            for word in [IN_THE_SCRIPT, IN_THE_OUTPUT] {
                if let Some(at) = text.find(word) {
                    let around: String = text
                        .chars()
                        .skip(text[..at].chars().count().saturating_sub(200))
                        .take(400)
                        .collect();
                    anyhow::bail!("{place} has {word}: …{around}…");
                }
            }
        }
        // What is to be found there was looked for in the right places.
        let digest = sha256(prints.as_bytes());
        let named = |place: &str, word: &str| {
            let mut texts = said.iter().filter(|(name, _)| name.ends_with(place));
            ensure!(
                texts.any(|(_, text)| text.contains(word)),
                "{place} does not have {word}"
            );
            Ok(())
        };
        named("the log of operator", &digest)?;
        named("the log of operator", PURPOSE)?;
        named("the Events", &digest)?;
        named("the pod", names::SIDECAR_BINARY)?;
        if let Destination::Embedded(_) = stage()?.destination {
            named("audit.log", PURPOSE)?;
            named("audit.log", "/pods/idle/exec?")?;
            named("kubelet.log", &namespace.name)?;
        }
        pod.check_untouched(namespace).await
    });
}
