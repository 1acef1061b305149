//! What the real API server says to sessions that are well or badly written.

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::{Api, discovery::ApiResource};
use serde::Deserialize;
use serde_json::{Value, json};
use sidewinder_crds::DebugSession;
use sidewinder_e2e::session_client as sessions;

use crate::stage::test;

#[derive(Deserialize)]
struct Table {
    create: Vec<Create>,
    update: Vec<Update>,
}

#[derive(Deserialize)]
struct Create {
    name: String,
    spec: Value,
    script: Option<Repeated>,
    refused: Option<String>,
}

#[derive(Deserialize)]
struct Repeated {
    repeat: String,
    times: usize,
}

#[derive(Deserialize)]
struct Update {
    name: String,
    old: Value,
    new: Value,
    refused: Option<String>,
}

fn object(name: &str, spec: &Value) -> Result<DynamicObject> {
    let session = json!({
        "apiVersion": "sidewinder.dev/v1alpha1", "kind": "DebugSession",
        "metadata": {"name": name}, "spec": spec,
    });
    Ok(serde_json::from_value(session)?)
}

fn compare(
    case: &str,
    answer: Result<DynamicObject, kube::Error>,
    refused: Option<&str>,
) -> Result<Option<DynamicObject>> {
    match (answer, refused) {
        (Ok(object), None) => Ok(Some(object)),
        (Err(kube::Error::Api(status)), Some(words)) => {
            ensure!(
                status.message.contains(words),
                "{case}: refused with {:?}, not with {words:?}",
                status.message
            );
            Ok(None)
        }
        (Ok(_), Some(words)) => bail!("{case}: accepted, but should be refused with {words:?}"),
        (Err(error), _) => Err(error).with_context(|| case.to_owned()),
    }
}

#[test]
fn the_api_server_accepts_and_refuses_what_the_table_says() {
    test("schema_table", async |namespace| {
        let table: Table = serde_yaml::from_str(include_str!("../../../crds/tests/sessions.yaml"))?;
        let resource = ApiResource::erase::<DebugSession>(&());
        let api: Api<DynamicObject> =
            Api::namespaced_with(namespace.client.clone(), &namespace.name, &resource);
        let try_only = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        ensure!(!table.create.is_empty() && !table.update.is_empty());
        for case in table.create {
            let mut spec = case.spec;
            if let Some(script) = case.script {
                *spec
                    .pointer_mut("/remoteExec")
                    .context("a script without remoteExec")? =
                    json!({"script": script.repeat.repeat(script.times)});
            }
            let answer = api.create(&try_only, &object("table", &spec)?).await;
            compare(&case.name, answer, case.refused.as_deref())?;
        }
        for (number, case) in table.update.into_iter().enumerate() {
            let name = format!("update-{number}");
            let old = api
                .create(&PostParams::default(), &object(&name, &case.old)?)
                .await;
            let old =
                compare(&case.name, old, None)?.context("the first version was not accepted")?;
            let mut new = object(&name, &case.new)?;
            // The operator writes the status meanwhile, so no version is named: only the spec is compared.
            new.metadata.uid = old.metadata.uid;
            let patch = json!({"spec": replace(&case.old, &case.new)});
            let try_only = PatchParams {
                dry_run: true,
                ..PatchParams::default()
            };
            let answer = api.patch(&name, &try_only, &Patch::Merge(patch)).await;
            compare(&case.name, answer, case.refused.as_deref())?;
            api.delete(&name, &DeleteParams::default()).await?;
        }
        Ok(())
    });
}

/// The merge patch (RFC 7386) that makes `old` into `new`: what `new` lacks is null.
fn replace(old: &Value, new: &Value) -> Value {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let gone = old
                .keys()
                .filter(|key| !new.contains_key(*key))
                .map(|key| (key.clone(), Value::Null));
            let kept = new.iter().map(|(key, value)| {
                (
                    key.clone(),
                    old.get(key)
                        .map_or_else(|| value.clone(), |old| replace(old, value)),
                )
            });
            Value::Object(gone.chain(kept).collect())
        }
        _ => new.clone(),
    }
}

#[test]
fn a_session_with_an_unknown_field_is_refused_by_strict_clients() {
    test("unknown_field", async |namespace| {
        let resource = ApiResource::erase::<DebugSession>(&());
        let api: Api<DynamicObject> =
            Api::namespaced_with(namespace.client.clone(), &namespace.name, &resource);
        let typo = object("typo", &json!({"target": {"podname": "a"}, "stacks": {}}))?;
        compare(
            "a typo",
            api.create(&PostParams::default(), &typo).await,
            Some("podName"),
        )?;
        Ok(())
    });
}

#[test]
fn the_spec_of_a_session_that_has_ended_cannot_be_changed() {
    test("spec_is_immutable", async |namespace| {
        let ended = namespace.run(&sessions::stacks("stacks", "nobody")).await?;
        for patch in [
            json!({"spec": {"timeoutSeconds": 31}}),
            json!({"spec": {"stacks": null, "processes": {}}}),
            json!({"spec": {"target": {"podName": "somebody"}}}),
        ] {
            let answer = namespace
                .sessions()
                .patch("stacks", &PatchParams::default(), &Patch::Merge(&patch))
                .await;
            let Err(kube::Error::Api(status)) = answer else {
                bail!("{patch} was accepted")
            };
            ensure!(
                status.code == 422 && status.message.contains("the spec cannot be changed"),
                "{}",
                status.message
            );
        }
        let now = namespace.sessions().get("stacks").await?;
        ensure!(now.spec == ended.spec);
        Ok(())
    });
}
