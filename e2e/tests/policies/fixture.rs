//! A namespace with pods that run nowhere, users with few rights, and how long what they try is asked again.
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{AttachParams, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, Client, Config, Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use sidewinder_crds::{DebugSession, names};

/// How long a policy, a binding or a role may take until the API server acts on it.
const IN_FORCE: Duration = Duration::from_mins(1);
pub(crate) const CODE_RUNNING: &str = "sidewinder-code-running";
pub(crate) const OPERATOR: &str = "sidewinder-operator";
pub(crate) const CONTAINERS: &str = "sidewinder-containers";

pub(crate) fn operator() -> String {
    format!(
        "system:serviceaccount:{}:{}",
        names::NAMESPACE,
        names::OPERATOR
    )
}

pub(crate) fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

/// A namespace with pods that are never scheduled, so that what is admitted goes no further.
pub(crate) struct Fixture {
    pub(crate) admin: Client,
    config: Config,
    pub(crate) namespace: String,
    pub(crate) image: String,
}

impl Fixture {
    pub(crate) async fn run(test: &str, body: impl AsyncFnOnce(&Self)) {
        assert!(
            std::env::var_os("KUBECONFIG").is_some(),
            "KUBECONFIG must name a cluster for tests: the one that kubectl would take by itself may be anybody's"
        );
        let config = Config::infer().await.unwrap();
        let admin = Client::try_from(config.clone()).unwrap();
        let namespaces = Api::<Namespace>::all(admin.clone());
        let namespace =
            serde_json::from_value(json!({"metadata": {"generateName": format!("{test}-")}}))
                .unwrap();
        let namespace = namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap()
            .name_any();
        let image = sidecar_image(&admin).await;
        let fixture = Self {
            admin,
            config,
            namespace,
            image,
        };
        fixture.prepare().await;
        body(&fixture).await;
        namespaces
            .delete(&fixture.namespace, &DeleteParams::default())
            .await
            .unwrap();
    }

    async fn prepare(&self) {
        for (name, security) in [
            ("web", json!({})),
            ("other", json!({})),
            ("user", json!({"runAsUser": 1000, "runAsGroup": 2000})),
            (
                "root",
                json!({"runAsUser": 0, "capabilities": {"drop": ["NET_RAW"]}}),
            ),
            (
                "admin-of-the-network",
                json!({"runAsUser": 0, "capabilities": {"add": ["NET_ADMIN"]}}),
            ),
            ("privileged", json!({"runAsUser": 0, "privileged": true})),
            (
                "profiled",
                json!({"appArmorProfile": {"type": "Unconfined"}, "seLinuxOptions": {"level": "s0:c1,c2"}}),
            ),
        ] {
            let pod = json!({
                "metadata": {"name": name},
                "spec": {
                    "automountServiceAccountToken": false,
                    "schedulingGates": [{"name": "sidewinder.dev/never"}],
                    "containers": [{"name": "app", "image": "localhost/none:0", "securityContext": security}],
                    // What a container of the pod could mount.
                    "volumes": [
                        {"name": "folder", "emptyDir": {}},
                        {"name": "disk", "persistentVolumeClaim": {"claimName": "none"}},
                    ],
                },
            });
            let pods = Api::<Pod>::namespaced(self.admin.clone(), &self.namespace);
            let pod = serde_json::from_value(pod).unwrap();
            // The namespace's default service account is made a moment after the namespace.
            until("a pod can be created", async || {
                match pods.create(&PostParams::default(), &pod).await {
                    Ok(_) => true,
                    Err(kube::Error::Api(status)) if status.message.contains("service account") => {
                        false
                    }
                    Err(error) => panic!("{error}"),
                }
            })
            .await;
        }
        let sessions =
            json!({"apiGroups": [names::GROUP], "resources": [names::PLURAL], "verbs": ["create"]});
        let exec = json!({"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]});
        let exec_in_web = json!({"apiGroups": [""], "resources": ["pods/exec"], "resourceNames": ["web"], "verbs": ["create"]});
        let read_scripts = json!({"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["scripts"], "verbs": ["get"]});
        let everything = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]});
        self.grant("reader", json!([sessions])).await;
        self.grant("runner", json!([sessions, exec_in_web])).await;
        self.grant("author", json!([sessions, exec, read_scripts]))
            .await;
        // What the policies forbid must not be forbidden by RBAC before.
        self.grant(&operator(), json!([everything])).await;
    }

    pub(crate) async fn grant(&self, user: &str, rules: Value) {
        let name = user.replace(':', "-");
        let group = "rbac.authorization.k8s.io";
        let role = json!({"metadata": {"name": name}, "rules": rules});
        Api::<Role>::namespaced(self.admin.clone(), &self.namespace)
            .create(
                &PostParams::default(),
                &serde_json::from_value(role).unwrap(),
            )
            .await
            .unwrap();
        let binding = json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        });
        Api::<RoleBinding>::namespaced(self.admin.clone(), &self.namespace)
            .create(
                &PostParams::default(),
                &serde_json::from_value(binding).unwrap(),
            )
            .await
            .unwrap();
        let last = rules.as_array().unwrap().last().unwrap().clone();
        let whole = last["resources"][0].as_str().unwrap();
        let (resource, subresource) = whole.split_once('/').unwrap_or((whole, ""));
        let review = json!({"spec": {"user": user, "resourceAttributes": {
            "namespace": self.namespace,
            "group": last["apiGroups"][0],
            "resource": resource,
            "subresource": subresource,
            "name": last["resourceNames"][0],
            "verb": last["verbs"][0],
        }}});
        let review: SubjectAccessReview = serde_json::from_value(review).unwrap();
        until("the role is in force", async || {
            Api::<SubjectAccessReview>::all(self.admin.clone())
                .create(&PostParams::default(), &review)
                .await
                .unwrap()
                .status
                .is_some_and(|status| status.allowed)
        })
        .await;
    }

    pub(crate) fn client(&self, user: Option<&str>) -> Client {
        self.client_in(user, &[])
    }

    pub(crate) fn client_in(&self, user: Option<&str>, groups: &[&str]) -> Client {
        let mut config = self.config.clone();
        config.auth_info.impersonate = user.map(str::to_owned);
        config.auth_info.impersonate_groups =
            (!groups.is_empty()).then(|| groups.iter().map(|group| (*group).to_owned()).collect());
        Client::try_from(config).unwrap()
    }

    pub(crate) fn pods(&self, user: Option<&str>) -> Api<Pod> {
        Api::namespaced(self.client(user), &self.namespace)
    }

    pub(crate) fn sessions(&self, user: &str, groups: &[&str]) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<DebugSession>(&());
        let client = self.client_in(Some(user), groups);
        Api::namespaced_with(client, &self.namespace, &resource)
    }

    /// Creates a session, or would.
    pub(crate) async fn create(
        &self,
        user: &str,
        groups: &[&str],
        parameters: &PostParams,
        spec: &Value,
    ) -> Result<DynamicObject, kube::Error> {
        let object = json!({
            "apiVersion": DebugSession::api_version(&()),
            "kind": DebugSession::kind(&()),
            "metadata": {"name": "a"},
            "spec": spec,
        });
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        self.sessions(user, groups)
            .create(parameters, &object)
            .await
    }

    /// Would create a session for a pod.
    pub(crate) async fn create_session(
        &self,
        user: &str,
        pod: &str,
        action: Value,
    ) -> Result<(), kube::Error> {
        let mut spec = action;
        spec["target"] = json!({"podName": pod});
        self.create(user, &[], &dry_run(), &spec).await.map(drop)
    }

    pub(crate) async fn add(
        &self,
        user: Option<&str>,
        pod: &str,
        containers: &[Value],
        dry_run: bool,
    ) -> Result<(), kube::Error> {
        let patch = json!({"spec": {"ephemeralContainers": containers}});
        let parameters = PatchParams {
            dry_run,
            ..PatchParams::default()
        };
        self.pods(user)
            .patch_ephemeral_containers(pod, &parameters, &Patch::Strategic(patch))
            .await
            .map(drop)
    }

    /// The sidecar as the operator adds it, with the fields of `change` in place of its own.
    pub(crate) fn sidecar(&self, change: &Value) -> Value {
        let mut sidecar = json!({
            "name": "sidewinder-app-1",
            "image": self.image,
            "command": [names::SIDECAR_BINARY],
            "args": [names::AGENT_SUBCOMMAND, "--idle-seconds", "1800"],
            "targetContainerName": "app",
            "securityContext": {
                "runAsUser": 0,
                "runAsGroup": 0,
                "runAsNonRoot": false,
                "allowPrivilegeEscalation": false,
                "privileged": false,
                "capabilities": {"add": ["SYS_PTRACE", "DAC_READ_SEARCH", "SETUID", "SETGID"], "drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        });
        merge(&mut sidecar, change);
        sidecar
    }

    pub(crate) async fn exec(
        &self,
        user: Option<&str>,
        container: Option<&str>,
        command: &[&str],
    ) -> Result<(), kube::Error> {
        let parameters = AttachParams {
            container: container.map(str::to_owned),
            ..AttachParams::default()
        };
        self.pods(user)
            .exec("web", command.iter().copied(), &parameters)
            .await
            .map(drop)
    }

    pub(crate) async fn exec_on_a_terminal(
        &self,
        user: &str,
        container: &str,
        command: &[&str],
    ) -> Result<(), kube::Error> {
        let parameters = AttachParams::interactive_tty().container(container);
        self.pods(Some(user))
            .exec("web", command.iter().copied(), &parameters)
            .await
            .map(drop)
    }

    pub(crate) async fn attach(
        &self,
        user: Option<&str>,
        container: &str,
    ) -> Result<(), kube::Error> {
        let parameters = AttachParams::default().container(container);
        self.pods(user).attach("web", &parameters).await.map(drop)
    }
}

/// A JSON merge patch: null removes.
pub(crate) fn merge(object: &mut Value, change: &Value) {
    for (key, value) in change.as_object().unwrap() {
        match value {
            Value::Null => drop(object.as_object_mut().unwrap().remove(key)),
            Value::Object(_) if object[key].is_object() => merge(&mut object[key], value),
            _ => object[key] = value.clone(),
        }
    }
}

/// The image that the installed operator uses, which its policy pins.
async fn sidecar_image(client: &Client) -> String {
    let deployments = Api::<Deployment>::namespaced(client.clone(), names::NAMESPACE);
    let deployment = serde_json::to_value(deployments.get(names::OPERATOR).await.unwrap()).unwrap();
    deployment["spec"]["template"]["spec"]["containers"][0]["env"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["name"] == names::env::SIDECAR_IMAGE)
        .unwrap()["value"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Asks again until it is so; the API server says nowhere since when it enforces a policy or a role.
pub(crate) async fn until(what: &str, asked: impl AsyncFn() -> bool) {
    let reached = tokio::time::timeout(IN_FORCE, async {
        while !asked().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(
        reached.is_ok(),
        "waited {} s until {what}",
        IN_FORCE.as_secs()
    );
}

pub(crate) fn refused_by(found: &Result<(), kube::Error>, policy: &str) -> bool {
    // A policy that cannot be evaluated refuses, too, and would prove nothing.
    matches!(found, Err(kube::Error::Api(status))
        if status.code == 403
            && status.message.contains(&format!("ValidatingAdmissionPolicy '{policy}'"))
            && !status.message.contains("resulted in error"))
}

pub(crate) fn is_refused(what: &str, found: &Result<(), kube::Error>, policy: &str) {
    assert!(refused_by(found, policy), "{what}: {found:?}");
}

pub(crate) fn is_accepted(what: &str, found: Result<(), kube::Error>) {
    found.unwrap_or_else(|error| panic!("{what}: {error}"));
}

/// Admitted, and then not done because the pod is on no node.
pub(crate) fn is_let_through(what: &str, found: &Result<(), kube::Error>) {
    let message = match found {
        Err(kube::Error::Api(status)) => &status.message,
        other => panic!("{what}: {other:?}"),
    };
    assert!(
        message.contains("does not have a host assigned"),
        "{what}: {message}"
    );
}
