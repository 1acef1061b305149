//! The labels with which a pod or a namespace lets sidecars in or keeps them out.

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::fixture::{Fixture, OPERATOR, is_accepted, is_refused, operator, refused_by, until};

async fn label_pod(fixture: &Fixture, pod: &str, labels: Value) {
    let change = Patch::Merge(json!({"metadata": {"labels": labels}}));
    let pods = Api::<Pod>::namespaced(fixture.admin.clone(), &fixture.namespace);
    pods.patch(pod, &PatchParams::default(), &change)
        .await
        .unwrap();
}

async fn label_namespace(fixture: &Fixture, labels: Value) {
    let change = Patch::Merge(json!({"metadata": {"labels": labels}}));
    Api::<Namespace>::all(fixture.admin.clone())
        .patch(&fixture.namespace, &PatchParams::default(), &change)
        .await
        .unwrap();
}

#[tokio::test]
async fn deny_on_the_pod_or_its_namespace_keeps_every_sidecar_out() {
    Fixture::run("policy-deny", async |fixture| {
        let account = operator();
        let try_to = async |pod: &str| {
            let sidecar = [fixture.sidecar(&json!({}))];
            fixture.add(Some(&account), pod, &sidecar, true).await
        };
        label_pod(fixture, "other", json!({"sidewinder.dev/deny": "true"})).await;
        until("sidewinder-operator is in force", async || {
            refused_by(&try_to("other").await, OPERATOR)
        })
        .await;
        is_accepted("a pod without the label", try_to("web").await);
        label_pod(fixture, "other", json!({"sidewinder.dev/deny": "false"})).await;
        is_accepted("deny=false", try_to("other").await);
        label_pod(
            fixture,
            "other",
            json!({"sidewinder.dev/deny": "yes", "sidewinder.dev/allow": "true"}),
        )
        .await;
        is_refused("deny=yes beside allow", &try_to("other").await, OPERATOR);

        label_namespace(fixture, json!({"sidewinder.dev/deny": "true"})).await;
        // The namespace's labels reach the policy through a cache.
        until("the namespace's label holds", async || {
            refused_by(&try_to("web").await, OPERATOR)
        })
        .await;
        label_namespace(fixture, json!({"sidewinder.dev/deny": null})).await;
        until("the namespace's label is gone", async || {
            try_to("web").await.is_ok()
        })
        .await;
    })
    .await;
}

/// The installed policy under another name, for another account, with another `optIn`.
struct Copy<'a> {
    fixture: &'a Fixture,
    name: String,
    account: String,
}

impl<'a> Copy<'a> {
    async fn new(fixture: &'a Fixture, opt_in: &str) -> Self {
        let name = format!("{}-{}", fixture.namespace, opt_in.to_lowercase());
        let account = format!("system:serviceaccount:{}:{opt_in}", fixture.namespace);
        fixture
            .grant(
                &account,
                json!([{"apiGroups": [""], "resources": ["pods/ephemeralcontainers"], "verbs": ["patch"]}]),
            )
            .await;
        let policies = Api::<ValidatingAdmissionPolicy>::all(fixture.admin.clone());
        let mut policy = policies.get(OPERATOR).await.unwrap();
        policy.metadata = serde_json::from_value(json!({"name": name})).unwrap();
        policy.status = None;
        let spec = policy.spec.as_mut().unwrap();
        spec.match_conditions.as_mut().unwrap()[0].expression =
            format!("request.userInfo.username == '{account}'");
        let variables = spec.variables.as_mut().unwrap();
        let setting = variables
            .iter_mut()
            .find(|variable| variable.name == "optIn")
            .unwrap();
        setting.expression = format!("'{opt_in}'");
        policies
            .create(&PostParams::default(), &policy)
            .await
            .unwrap();
        let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
        Api::<ValidatingAdmissionPolicyBinding>::all(fixture.admin.clone())
            .create(
                &PostParams::default(),
                &serde_json::from_value(binding).unwrap(),
            )
            .await
            .unwrap();
        Self {
            fixture,
            name,
            account,
        }
    }

    async fn try_to(&self, pod: &str) -> Result<(), kube::Error> {
        let sidecar = [self.fixture.sidecar(&json!({}))];
        self.fixture
            .add(Some(&self.account), pod, &sidecar, true)
            .await
    }

    async fn is_in_force(&self) {
        until("the copy is in force", async || {
            refused_by(&self.try_to("other").await, &self.name)
        })
        .await;
    }

    async fn delete(self) {
        let admin = &self.fixture.admin;
        let parameters = DeleteParams::default();
        Api::<ValidatingAdmissionPolicyBinding>::all(admin.clone())
            .delete(&self.name, &parameters)
            .await
            .unwrap();
        Api::<ValidatingAdmissionPolicy>::all(admin.clone())
            .delete(&self.name, &parameters)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn opt_in_demands_the_label_where_it_says() {
    Fixture::run("policy-allow", async |fixture| {
        let by_pod = Copy::new(fixture, "Pod").await;
        by_pod.is_in_force().await;
        is_refused("no label", &by_pod.try_to("web").await, &by_pod.name);
        label_pod(fixture, "web", json!({"sidewinder.dev/allow": "yes"})).await;
        is_refused("another value", &by_pod.try_to("web").await, &by_pod.name);
        label_pod(fixture, "web", json!({"sidewinder.dev/allow": "true"})).await;
        is_accepted("the label", by_pod.try_to("web").await);
        is_refused("another pod", &by_pod.try_to("user").await, &by_pod.name);

        let by_namespace = Copy::new(fixture, "Namespace").await;
        by_namespace.is_in_force().await;
        is_refused(
            "the pod's label",
            &by_namespace.try_to("web").await,
            &by_namespace.name,
        );
        label_namespace(fixture, json!({"sidewinder.dev/allow": "true"})).await;
        until("the namespace's label holds", async || {
            by_namespace.try_to("web").await.is_ok()
        })
        .await;
        is_refused(
            "the namespace's label, where the pod's is demanded",
            &by_pod.try_to("user").await,
            &by_pod.name,
        );
        label_pod(fixture, "web", json!({"sidewinder.dev/deny": "true"})).await;
        is_refused(
            "deny beside allow",
            &by_namespace.try_to("web").await,
            &by_namespace.name,
        );
        is_refused(
            "deny beside allow",
            &by_pod.try_to("web").await,
            &by_pod.name,
        );
        by_pod.delete().await;
        by_namespace.delete().await;
    })
    .await;
}
