//! Admission policies that are gone or weaker than they should be: nothing runs code until they are back, and what only
//! reads goes on. Each test has the cluster for itself.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use kube::api::{DeleteParams, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use sidewinder_crds::{DebugSession, Requester};
use sidewinder_e2e::namespace::TestNamespace;
use sidewinder_e2e::session_client as sessions;
use sidewinder_model::Reason;

use crate::expect::{cannot_stamp, complete, failed, message, until_fences};
use crate::stage::alone;

/// How long a policy's binding may take until the API server acts on it.
const IN_FORCE: Duration = Duration::from_secs(30);

/// The object as it may be created again.
fn fresh<K: Resource + Clone>(object: &K) -> K {
    let mut fresh = object.clone();
    let meta = fresh.meta_mut();
    meta.resource_version = None;
    meta.uid = None;
    meta.managed_fields = None;
    fresh
}

/// Runs `body` while the object is gone, and puts it back however that ends.
async fn without<K, T>(api: &Api<K>, name: &str, body: impl AsyncFnOnce() -> Result<T>) -> Result<T>
where
    K: Resource + Clone + DeserializeOwned + Serialize + Debug,
{
    let object = api.get(name).await?;
    api.delete(name, &DeleteParams::default()).await?;
    let outcome = body().await;
    api.create(&PostParams::default(), &fresh(&object))
        .await
        .with_context(|| format!("cannot put {name} back"))?;
    outcome
}

/// Runs `body` while the object is as `change` makes it, and puts it back however that ends.
async fn changed<K>(
    api: &Api<K>,
    name: &str,
    change: impl FnOnce(&mut K),
    body: impl AsyncFnOnce() -> Result<()>,
) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + Serialize + Debug,
{
    let object = api.get(name).await?;
    let mut other = object.clone();
    change(&mut other);
    api.replace(name, &PostParams::default(), &other).await?;
    let outcome = body().await;
    let mut back = fresh(&object);
    // Its status may have been written since.
    back.meta_mut().resource_version = api.get(name).await?.resource_version();
    api.replace(name, &PostParams::default(), &back)
        .await
        .with_context(|| format!("cannot put {name} back"))?;
    outcome
}

fn script(name: &str) -> DebugSession {
    let script = format!("open('/tmp/{name}', 'w').close()");
    sessions::exec(name, "idle", &script)
}

/// Checks that what runs code is refused with these words, and that what only reads is not.
async fn only_reading_goes_on(namespace: &TestNamespace, name: &str, words: &str) -> Result<()> {
    let refused = script(&format!("{name}-script"));
    until_fences(namespace, &refused, false).await?;
    let refused = namespace.run(&refused).await?;
    let said = message(failed(&refused, Reason::PolicyDenied)?)?;
    ensure!(
        said.contains(words) && said.contains("sidewinder-cluster"),
        "{said}"
    );
    let mut values = sessions::stacks(&format!("{name}-values"), "idle");
    values.spec.stacks = Some(serde_json::from_value(json!({"locals": "Values"}))?);
    failed(&namespace.run(&values).await?, Reason::PolicyDenied)?;
    let stacks = sessions::stacks(&format!("{name}-stacks"), "idle");
    complete(&namespace.run(&stacks).await?, Reason::Succeeded)?;
    Ok(())
}

async fn code_runs(namespace: &TestNamespace, name: &str) -> Result<()> {
    until_fences(namespace, &script(name), true).await?;
    complete(&namespace.run(&script(name)).await?, Reason::Succeeded)?;
    Ok(())
}

#[test]
fn nothing_runs_code_while_a_policy_is_gone_or_weaker() {
    alone("policies_away", async |namespace| {
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let policies: Api<ValidatingAdmissionPolicy> = Api::all(namespace.client.clone());
        let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(namespace.client.clone());
        code_runs(namespace, "before").await?;

        without(&bindings, "sidewinder-operator", async || {
            let words = "there is no ValidatingAdmissionPolicyBinding sidewinder-operator";
            only_reading_goes_on(namespace, "unbound", words).await
        })
        .await?;
        code_runs(namespace, "bound").await?;

        let forgets = |policy: &mut ValidatingAdmissionPolicy| {
            if let Some(validations) = policy
                .spec
                .as_mut()
                .and_then(|spec| spec.validations.as_mut())
            {
                validations.remove(0);
            }
        };
        changed(&policies, "sidewinder-code-running", forgets, async || {
            let words = "sidewinder-code-running (of version";
            only_reading_goes_on(namespace, "weaker", words).await
        })
        .await?;
        code_runs(namespace, "after").await?;

        let files = namespace.shell_in("idle", "ls /tmp").await?;
        ensure!(files == "after\nbefore\nbound\n", "{files}");
        pod.check_untouched(namespace).await
    });
}

#[test]
fn nothing_runs_code_for_nobody() {
    alone("requester_unknown", async |namespace| {
        let stamp = GroupVersionKind::gvk(
            "admissionregistration.k8s.io",
            "v1",
            "MutatingAdmissionPolicyBinding",
        );
        let bindings: Api<DynamicObject> =
            Api::all_with(namespace.client.clone(), &ApiResource::from_gvk(&stamp));
        let stamped = async || -> Result<Option<Requester>> {
            let dry_run = PostParams {
                dry_run: true,
                ..PostParams::default()
            };
            let session = namespace.sessions().create(&dry_run, &script("a")).await?;
            Ok(session.spec.requested_by)
        };
        if stamped().await?.is_none() {
            // Before Kubernetes 1.36 nobody is stamped, and no requester is demanded.
            return cannot_stamp(&namespace.client).await;
        }
        let pod = namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
        let is_stamped = async |wanted: bool| {
            let asked = async {
                while stamped().await?.is_some() != wanted {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(())
            };
            match tokio::time::timeout(IN_FORCE, asked).await {
                Ok(asked) => asked,
                Err(_) => bail!("waited 30 s until sessions are stamped: {wanted}"),
            }
        };
        let me = stamped().await?;
        without(&bindings, "sidewinder-requester", async || {
            is_stamped(false).await?;
            let nobodys = namespace.run(&script("nobodys")).await?;
            let words = message(failed(&nobodys, Reason::RequesterUnknown)?)?;
            ensure!(words.contains("spec.requestedBy"), "{words}");
            let stacks = namespace.run(&sessions::stacks("stacks", "idle")).await?;
            complete(&stacks, Reason::Succeeded)?;
            // Whoever says the truth needs no stamp.
            let mut mine = script("mine");
            mine.spec.requested_by = me;
            complete(&namespace.run(&mine).await?, Reason::Succeeded)?;
            Ok(())
        })
        .await?;
        is_stamped(true).await?;
        let files = namespace.shell_in("idle", "ls /tmp").await?;
        ensure!(files == "mine\n", "{files}");
        pod.check_untouched(namespace).await
    });
}
