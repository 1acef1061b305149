//! The chart's three admission policies as a real API server enforces them. `KUBECONFIG` names a cluster, with the
//! right to impersonate; the chart is installed in it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in a test a panic is the report; clippy exempts only functions marked as tests, not what they call"
)]

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{AttachParams, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, Client, Config, Resource as _, ResourceExt as _};
use serde_json::{Value, json};
use sidewinder_crds::{DebugSession, names};

/// How long a policy, a binding or a role may take until the API server acts on it.
const IN_FORCE: Duration = Duration::from_mins(1);
const CODE_RUNNING: &str = "sidewinder-code-running";
const OPERATOR: &str = "sidewinder-operator";
const CONTAINERS: &str = "sidewinder-containers";

fn operator() -> String {
    format!(
        "system:serviceaccount:{}:{}",
        names::NAMESPACE,
        names::OPERATOR
    )
}

fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

/// A namespace with pods that are never scheduled, so that what is admitted goes no further.
struct Fixture {
    admin: Client,
    config: Config,
    namespace: String,
    image: String,
}

impl Fixture {
    async fn run(test: &str, body: impl AsyncFnOnce(&Self)) {
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
            (
                "admin-of-the-network",
                json!({"capabilities": {"add": ["NET_ADMIN"]}}),
            ),
            ("privileged", json!({"privileged": true})),
        ] {
            let pod = json!({
                "metadata": {"name": name},
                "spec": {
                    "automountServiceAccountToken": false,
                    "schedulingGates": [{"name": "sidewinder.dev/never"}],
                    "containers": [{"name": "app", "image": "localhost/none:0", "securityContext": security}],
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

    async fn grant(&self, user: &str, rules: Value) {
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

    fn client(&self, user: Option<&str>) -> Client {
        let mut config = self.config.clone();
        config.auth_info.impersonate = user.map(str::to_owned);
        Client::try_from(config).unwrap()
    }

    fn pods(&self, user: Option<&str>) -> Api<Pod> {
        Api::namespaced(self.client(user), &self.namespace)
    }

    async fn create_session(
        &self,
        user: &str,
        pod: &str,
        action: Value,
    ) -> Result<(), kube::Error> {
        let mut object = json!({
            "apiVersion": DebugSession::api_version(&()),
            "kind": DebugSession::kind(&()),
            "metadata": {"name": "a"},
            "spec": action,
        });
        object["spec"]["target"] = json!({"podName": pod});
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let resource = ApiResource::erase::<DebugSession>(&());
        Api::<DynamicObject>::namespaced_with(self.client(Some(user)), &self.namespace, &resource)
            .create(&dry_run(), &object)
            .await
            .map(drop)
    }

    async fn add(
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
    fn sidecar(&self, change: &Value) -> Value {
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

    async fn exec(
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

    async fn attach(&self, user: Option<&str>, container: &str) -> Result<(), kube::Error> {
        let parameters = AttachParams::default().container(container);
        self.pods(user).attach("web", &parameters).await.map(drop)
    }
}

/// A JSON merge patch: null removes.
fn merge(object: &mut Value, change: &Value) {
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
async fn until(what: &str, asked: impl AsyncFn() -> bool) {
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

fn refused_by(found: &Result<(), kube::Error>, policy: &str) -> bool {
    matches!(found, Err(kube::Error::Api(status))
        if status.code == 403 && status.message.contains(&format!("ValidatingAdmissionPolicy '{policy}'")))
}

fn is_refused(what: &str, found: &Result<(), kube::Error>, policy: &str) {
    assert!(refused_by(found, policy), "{what}: {found:?}");
}

fn is_accepted(what: &str, found: Result<(), kube::Error>) {
    found.unwrap_or_else(|error| panic!("{what}: {error}"));
}

/// Admitted, and then not done because the pod is on no node.
fn is_let_through(what: &str, found: &Result<(), kube::Error>) {
    let message = match found {
        Err(kube::Error::Api(status)) => &status.message,
        other => panic!("{what}: {other:?}"),
    };
    assert!(
        message.contains("does not have a host assigned"),
        "{what}: {message}"
    );
}

#[tokio::test]
async fn running_code_needs_the_requesters_own_right_to_exec() {
    Fixture::run("policy-code", async |fixture| {
        let script = json!({"remoteExec": {"script": "1"}});
        let values = json!({"stacks": {"locals": "Values"}});
        let from = json!({"remoteExec": {"scriptFrom": {"configMapKeyRef": {"name": "scripts", "key": "a.py"}}}});
        until("sidewinder-code-running is in force", async || {
            refused_by(&fixture.create_session("reader", "web", script.clone()).await, CODE_RUNNING)
        })
        .await;
        for action in [
            json!({"processes": {}}),
            json!({"asyncioSnapshot": {}}),
            json!({"stacks": {}}),
            json!({"stacks": {"locals": "Types"}}),
        ] {
            let found = fixture.create_session("reader", "web", action.clone()).await;
            is_accepted(&format!("reader, {action}"), found);
        }
        for (user, pod, action, allowed) in [
            ("reader", "web", &values, false),
            ("reader", "web", &script, false),
            ("reader", "web", &from, false),
            ("runner", "web", &script, true),
            ("runner", "web", &values, true),
            ("runner", "other", &script, false),
            ("runner", "web", &from, false),
            ("author", "other", &script, true),
            ("author", "web", &from, true),
        ] {
            let found = fixture.create_session(user, pod, action.clone()).await;
            let what = format!("{user} in {pod}, {action}");
            if allowed {
                is_accepted(&what, found);
            } else {
                is_refused(&what, &found, CODE_RUNNING);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_operator_may_add_its_own_sidecar_and_no_other_container() {
    Fixture::run("policy-sidecar", async |fixture| {
        let account = operator();
        let try_to = async |pod: &str, containers: &[Value]| fixture.add(Some(&account), pod, containers, true).await;
        until("sidewinder-operator is in force", async || {
            refused_by(&try_to("web", &[fixture.sidecar(&json!({"name": "debug"}))]).await, OPERATOR)
        })
        .await;

        let no_capability = json!({"securityContext": {"runAsUser": 1000, "runAsNonRoot": true, "capabilities": {"add": null}}});
        let targets_own = json!({"securityContext": {"capabilities": {"add": ["NET_ADMIN"], "drop": null}}});
        let every = json!({"securityContext": {"capabilities": {"add": ["ALL"], "drop": null}}});
        for (what, pod, change) in [
            ("with ptrace", "web", json!({})),
            ("as a user", "web", no_capability),
            ("as root like its target", "web", json!({"securityContext": {"capabilities": null}})),
            ("with its target's capability", "admin-of-the-network", targets_own.clone()),
            ("as its privileged target", "privileged", every.clone()),
        ] {
            is_accepted(what, try_to(pod, &[fixture.sidecar(&change)]).await);
        }
        for (what, change) in [
            ("another image", json!({"image": "localhost/other:1"})),
            ("another tag", json!({"image": format!("{}-2", fixture.image)})),
            ("another program", json!({"command": ["/bin/sh"]})),
            ("the image's own program", json!({"command": null})),
            ("another task", json!({"args": ["exec", "--pid", "1"]})),
            ("no arguments", json!({"args": null})),
            ("a path", json!({"args": ["agent", "/etc/passwd"]})),
            ("a script", json!({"args": ["agent", "import os"]})),
            ("env", json!({"env": [{"name": "A", "value": "b"}]})),
            ("envFrom", json!({"envFrom": [{"secretRef": {"name": "a"}}]})),
            ("a folder", json!({"workingDir": "/proc"})),
            ("no target", json!({"targetContainerName": null})),
            ("privileged", json!({"securityContext": {"privileged": true, "allowPrivilegeEscalation": true, "capabilities": null}})),
            ("escalation", json!({"securityContext": {"allowPrivilegeEscalation": true, "capabilities": null}})),
            ("escalation by default", json!({"securityContext": {"allowPrivilegeEscalation": null}})),
            ("another capability", json!({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}})),
            ("ptrace on top of the default", json!({"securityContext": {"capabilities": {"drop": null}}})),
            ("a capability of another target", targets_own),
            ("every capability", every),
            ("no seccomp", json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}})),
            ("no securityContext", json!({"securityContext": null})),
        ] {
            is_refused(what, &try_to("web", &[fixture.sidecar(&change)]).await, OPERATOR);
        }
        let second = fixture.sidecar(&json!({"name": "sidewinder-app-2"}));
        let both = [fixture.sidecar(&json!({})), second.clone()];
        is_refused("two at a time", &try_to("web", &both).await, OPERATOR);

        is_accepted("for real", fixture.add(Some(&account), "web", &both[..1], false).await);
        is_accepted("the same again", try_to("web", &both[..1]).await);
        is_accepted("a second one", try_to("web", &[second]).await);

        let theirs = json!({"name": "debugger", "image": "localhost/other:1", "command": ["sh"]});
        is_accepted("somebody else's", fixture.add(None, "web", &[theirs], true).await);
    })
    .await;
}

#[tokio::test]
async fn only_the_relay_may_be_started_in_a_sidecar_and_only_by_the_operator() {
    Fixture::run("policy-exec", async |fixture| {
        let account = operator();
        let relay = [names::SIDECAR_BINARY, names::RELAY_SUBCOMMAND];
        let ours = Some("sidewinder-app-1");
        // In force first: an exec that is admitted cannot be told from one that was not looked at.
        until("sidewinder-containers is in force", async || {
            refused_by(&fixture.exec(None, ours, &["sh"]).await, CONTAINERS)
        })
        .await;
        until("sidewinder-operator is in force", async || {
            refused_by(
                &fixture.exec(Some(&account), Some("app"), &relay).await,
                OPERATOR,
            )
        })
        .await;
        fixture
            .add(Some(&account), "web", &[fixture.sidecar(&json!({}))], false)
            .await
            .unwrap();

        is_let_through(
            "the relay",
            &fixture.exec(Some(&account), ours, &relay).await,
        );
        for (what, container, command) in [
            ("a shell", ours, vec!["/bin/sh", "relay"]),
            (
                "another task",
                ours,
                vec![names::SIDECAR_BINARY, "exec", "--pid", "1"],
            ),
            ("no task", ours, vec![names::SIDECAR_BINARY]),
            (
                "a path",
                ours,
                vec![names::SIDECAR_BINARY, "relay", "/etc/passwd"],
            ),
            ("in the application", Some("app"), relay.to_vec()),
            ("in the default container", None, relay.to_vec()),
        ] {
            is_refused(
                what,
                &fixture.exec(Some(&account), container, &command).await,
                OPERATOR,
            );
        }
        is_refused(
            "attach",
            &fixture.attach(Some(&account), "sidewinder-app-1").await,
            OPERATOR,
        );

        is_refused(
            "an admin's relay",
            &fixture.exec(None, ours, &relay).await,
            CONTAINERS,
        );
        is_refused(
            "an admin's attach",
            &fixture.attach(None, "sidewinder-app-1").await,
            CONTAINERS,
        );
        is_let_through(
            "an admin in the application",
            &fixture.exec(None, Some("app"), &["sh"]).await,
        );
        is_let_through(
            "an admin in the default container",
            &fixture.exec(None, None, &["sh"]).await,
        );
    })
    .await;
}

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
        let result = json!({"metadata": {"name": "a"}, "type": names::RESULT_SECRET_TYPE});
        is_accepted("a result", create(result).await);

        let label = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
        let labelled = pods.patch("web", &PatchParams { dry_run: true, ..PatchParams::default() }, &label).await;
        is_refused("a label", &labelled.map(drop), OPERATOR);
        let deleted = pods.delete("web", &DeleteParams { dry_run: true, ..DeleteParams::default() }).await;
        is_refused("a deletion", &deleted.map(drop), OPERATOR);
        let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "localhost/none:0"}]}});
        let created = pods.create(&dry_run(), &serde_json::from_value(pod).unwrap()).await;
        is_refused("a pod", &created.map(drop), OPERATOR);
    })
    .await;
}
