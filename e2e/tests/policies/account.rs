//! What the operator's account is worth besides.

use http::Request;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use sidewinder_crds::names;

use crate::fixture::{
    Fixture, OPERATOR, dry_run, is_accepted, is_refused, merge, operator, refused_by, until,
};

#[tokio::test]
async fn the_operators_account_is_worth_nothing_else_on_pods_and_secrets() {
    Fixture::run("policy-account", async |fixture| {
        let account = operator();
        let pods = fixture.pods(Some(&account));
        let secrets = Api::<Secret>::namespaced(fixture.client(Some(&account)), &fixture.namespace);
        let create = async |secret: Value| {
            let secret = serde_json::from_value(secret).unwrap();
            secrets.create(&dry_run(), &secret).await.map(drop)
        };
        until("sidewinder-operator is in force", async || {
            refused_by(&create(json!({"metadata": {"name": "a"}})).await, OPERATOR)
        })
        .await;
        let token = json!({
            "metadata": {"name": "a", "annotations": {"kubernetes.io/service-account.name": "default"}},
            "type": "kubernetes.io/service-account-token",
        });
        is_refused("a token", &create(token).await, OPERATOR);
        let result = |change: Value| {
            let mut secret = json!({
                "metadata": {
                    "name": "a",
                    "labels": {names::APP_LABEL: names::APP, names::SESSION_UID_LABEL: "1-2"},
                    "ownerReferences": [{"apiVersion": "sidewinder.dev/v1alpha1", "kind": "DebugSession", "name": "a", "uid": "1-2", "controller": true}],
                },
                "type": names::RESULT_SECRET_TYPE,
                "immutable": true,
                "data": {names::RESULT_SECRET_KEY: "YQ=="},
            });
            merge(&mut secret, &change);
            secret
        };
        is_accepted("a result", create(result(json!({}))).await);
        let owner = |api: &str, kind: &str, uid: &str| json!({"apiVersion": api, "kind": kind, "name": "a", "uid": uid});
        let ours = owner("sidewinder.dev/v1alpha1", "DebugSession", "1-2");
        for (what, change) in [
            ("an opaque one", json!({"type": "Opaque"})),
            ("a pull secret", json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}})),
            ("one that can change", json!({"immutable": null})),
            ("one with another key", json!({"data": {"token": "YQ=="}})),
            ("one with text", json!({"stringData": {"password": "a"}})),
            ("one with an annotation", json!({"metadata": {"annotations": {"a": "b"}}})),
            ("one with another label", json!({"metadata": {"labels": {"a": "b"}}})),
            ("one without its session's label", json!({"metadata": {"labels": {names::SESSION_UID_LABEL: null}}})),
            ("one of another session by its label", json!({"metadata": {"labels": {names::SESSION_UID_LABEL: "3"}}})),
            ("nobody's", json!({"metadata": {"ownerReferences": null}})),
            ("a pod's", json!({"metadata": {"ownerReferences": [owner("v1", "Pod", "1-2")]}})),
            ("two owners'", json!({"metadata": {"ownerReferences": [ours, owner("v1", "Pod", "3")]}})),
            ("one with a finalizer", json!({"metadata": {"finalizers": ["example.com/a"]}})),
        ] {
            is_refused(what, &create(result(change)).await, OPERATOR);
        }

        let label = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
        let labelled = pods.patch("web", &PatchParams { dry_run: true, ..PatchParams::default() }, &label).await;
        is_refused("a label", &labelled.map(drop), OPERATOR);
        let deleted = pods.delete("web", &DeleteParams { dry_run: true, ..DeleteParams::default() }).await;
        is_refused("a deletion", &deleted.map(drop), OPERATOR);
        let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "localhost/none:0"}]}});
        let created = pods.create(&dry_run(), &serde_json::from_value(pod).unwrap()).await;
        is_refused("a pod", &created.map(drop), OPERATOR);

        // Everything else that RBAC might give it by mistake. A refusal of the policy comes before the object is looked for.
        let account = fixture.client(Some(&account));
        let namespace = &fixture.namespace;
        let core = format!("/api/v1/namespaces/{namespace}");
        for (what, path, body) in [
            ("an eviction", format!("{core}/pods/web/eviction"), json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "web"}})),
            ("a binding", format!("{core}/pods/web/binding"), json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "web"}, "target": {"kind": "Node", "name": "a"}})),
            ("a port", format!("{core}/pods/web/portforward?ports=80"), json!({})),
            ("a proxy", format!("{core}/pods/web/proxy/"), json!({})),
            ("a service's proxy", format!("{core}/services/a/proxy/"), json!({})),
            ("a token", format!("{core}/serviceaccounts/default/token"), json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})),
            ("a service account", format!("{core}/serviceaccounts"), json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}})),
            ("a ConfigMap", format!("{core}/configmaps"), json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})),
            ("a job", format!("/apis/batch/v1/namespaces/{namespace}/jobs"), json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}}}})),
            ("a session", format!("/apis/sidewinder.dev/v1alpha1/namespaces/{namespace}/debugsessions"), json!({"apiVersion": "sidewinder.dev/v1alpha1", "kind": "DebugSession", "metadata": {"name": "a"}, "spec": {"target": {"podName": "web"}, "processes": {}}})),
            ("another's Event", format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"), json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "a"}, "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "kubelet", "reportingInstance": "a", "action": "a", "reason": "a", "type": "Normal", "regarding": {"kind": "Pod", "namespace": namespace, "name": "web"}})),
            ("another's Lease", format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"), json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "a"}, "spec": {}})),
        ] {
            is_refused(what, &post(&account, &path, &body).await, OPERATOR);
        }
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "a"}, "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": names::EVENT_CONTROLLER, "reportingInstance": "a", "action": "a", "reason": "a", "type": "Normal", "regarding": {"kind": "Pod", "namespace": namespace, "name": "web"}});
        is_accepted("its own Event", post(&account, &format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events?dryRun=All"), &event).await);
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": names::LEASE}, "spec": {}});
        is_accepted("its own Lease", post(&account, &format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases?dryRun=All"), &lease).await);
    })
    .await;
}

async fn post(client: &Client, path: &str, body: &Value) -> Result<(), kube::Error> {
    let request = Request::post(path)
        .header("content-type", "application/json")
        .body(serde_json::to_vec(body).unwrap())
        .unwrap();
    client.request_text(request).await.map(drop)
}

/// What the installed account may do by RBAC, in a namespace that the chart says nothing of: the chart's roles, and not
/// what a test granted.
#[tokio::test]
async fn the_installed_account_may_do_nothing_that_it_does_not_use() {
    Fixture::run("policy-rights", async |fixture| {
        let account = operator();
        let may = async |group: &str, resource: &str, name: &str, verb: &str| {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let review = json!({"spec": {"user": account, "resourceAttributes": {
                "namespace": "default", "group": group, "resource": resource,
                "subresource": subresource, "name": name, "verb": verb,
            }}});
            let review: SubjectAccessReview = serde_json::from_value(review).unwrap();
            Api::<SubjectAccessReview>::all(fixture.admin.clone())
                .create(&PostParams::default(), &review)
                .await
                .unwrap()
                .status
                .unwrap()
                .allowed
        };
        let policies = "admissionregistration.k8s.io";
        for (group, resource, name, verb) in [
            ("", "pods/exec", "", "create"),
            ("", "pods/ephemeralcontainers", "", "patch"),
            ("", "secrets", "", "create"),
            ("", "namespaces", "default", "get"),
            ("authorization.k8s.io", "subjectaccessreviews", "", "create"),
            (policies, "validatingadmissionpolicies", OPERATOR, "get"),
            (
                policies,
                "validatingadmissionpolicybindings",
                OPERATOR,
                "get",
            ),
        ] {
            assert!(
                may(group, resource, name, verb).await,
                "{verb} {resource} {name}"
            );
        }
        for (group, resource, name, verb) in [
            ("", "secrets", "", "get"),
            ("", "secrets", "", "list"),
            ("", "secrets", "", "delete"),
            ("", "configmaps", "", "list"),
            ("", "configmaps", "", "update"),
            ("", "pods", "", "patch"),
            ("", "pods", "", "delete"),
            ("", "pods", "", "create"),
            ("", "pods/log", "", "get"),
            ("", "pods/attach", "", "create"),
            ("", "pods/attach", "", "get"),
            ("", "pods/portforward", "", "create"),
            ("", "pods/proxy", "", "get"),
            ("", "pods/eviction", "", "create"),
            ("", "pods/binding", "", "create"),
            ("", "pods/ephemeralcontainers", "", "update"),
            ("", "namespaces", "", "list"),
            ("", "nodes", "", "get"),
            ("", "nodes/proxy", "", "get"),
            ("", "nodes/proxy", "", "create"),
            ("", "serviceaccounts/token", "", "create"),
            ("", "users", "", "impersonate"),
            ("sidewinder.dev", "debugsessions", "", "create"),
            ("sidewinder.dev", "debugsessions", "", "update"),
            ("sidewinder.dev", "debugsessions", "", "patch"),
            (policies, "validatingadmissionpolicies", "", "list"),
            (policies, "validatingadmissionpolicies", "another", "get"),
            (policies, "validatingadmissionpolicies", OPERATOR, "update"),
            (policies, "validatingadmissionpolicies", OPERATOR, "delete"),
            (
                policies,
                "validatingadmissionpolicybindings",
                OPERATOR,
                "delete",
            ),
            ("rbac.authorization.k8s.io", "clusterroles", "", "bind"),
        ] {
            assert!(
                !may(group, resource, name, verb).await,
                "{verb} {resource} {name}"
            );
        }
    })
    .await;
}
