//! The operator for one namespace, as a bank would have it: the cluster's administrator installs the chart
//! `sidewinder-cluster`, the namespace's owner installs the chart `sidewinder` with no right outside, and both go away
//! again. On a cluster of its own, since policies have one name in the whole cluster.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{AttachParams, DeleteParams, ListParams, LogParams, ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use sidewinder_crds::{DebugSession, conditions, names};
use sidewinder_e2e::cluster::Cluster;
use sidewinder_e2e::deploy::{self, NAMESPACE, RELEASE};
use sidewinder_e2e::images::{self, Images};
use sidewinder_e2e::namespace::{self, PodSecurity, TestNamespace, with_namespace};
use sidewinder_e2e::people::{self, rule};
use sidewinder_e2e::tools::Module;
use sidewinder_e2e::workload::{self, ephemeral_containers};
use sidewinder_e2e::{answer, checkout, command, session_client as sessions, watch};
use sidewinder_model::Reason;

/// Who installs the operator: everything in two namespaces, and nothing outside.
const OWNER: &str = "owner";
const OPERATOR: &str = "system:serviceaccount:sidewinder-system:sidewinder-operator";
/// The release of the administrator's chart, and its namespace.
const CLUSTER_RELEASE: &str = "sidewinder-cluster";
/// Stands in a script.
const IN_THE_SCRIPT: &str = "tulip-8e41";
/// What that script prints: it has it in two pieces.
const IN_THE_OUTPUT: &str = "narcissus-57c0";
const HELM: Duration = Duration::from_mins(2);
const SOON: Duration = Duration::from_secs(30);

struct Stage {
    cluster: Cluster,
    images: Images,
}

impl Stage {
    /// Runs helm, as `user` or as the administrator.
    async fn helm(&self, user: Option<&str>, arguments: &[&str]) -> Result<()> {
        let mut helm = Command::new(Module::Helm.binary("helm")?);
        helm.env("KUBECONFIG", self.cluster.kubeconfig())
            .args(arguments);
        if let Some(user) = user {
            helm.args(["--kube-as-user", user]);
        }
        tokio::task::spawn_blocking(move || command::output(&mut helm, HELM).map(drop)).await?
    }

    /// The administrator's part; `operators` is the value of that name.
    async fn install_for_the_cluster(&self, operators: &Value) -> Result<()> {
        let chart = checkout().join("charts/sidewinder-cluster");
        let operators = format!("operators={operators}");
        let images = format!("sidecar.images={}", json!([self.images.sidecar.name()]));
        self.helm(
            None,
            &[
                "upgrade",
                "--install",
                CLUSTER_RELEASE,
                text(&chart)?,
                "--namespace=kube-system",
                "--set-json",
                &operators,
                "--set-json",
                &images,
            ],
        )
        .await
    }

    /// The owner's part, for the namespace `served`.
    async fn install_for(&self, served: &str) -> Result<()> {
        let chart = checkout().join("charts/sidewinder");
        let mut arguments = vec![
            "install".to_owned(),
            RELEASE.to_owned(),
            text(&chart)?.to_owned(),
            format!("--namespace={NAMESPACE}"),
            format!("--set=watchNamespace={served}"),
            // So that whatever it may say is said.
            "--set=log.filter=trace".to_owned(),
            "--wait".to_owned(),
            "--timeout=90s".to_owned(),
        ];
        arguments.extend(deploy::values_as_arguments(&self.images, true));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.helm(Some(OWNER), &arguments).await
    }

    async fn client(&self) -> Result<Client> {
        namespace::client(&self.cluster.kubeconfig()).await
    }

    /// A client with the operator's own token.
    async fn operator(&self) -> Result<Client> {
        let mut kubectl = self.cluster.kubectl_command()?;
        let namespace = format!("--namespace={NAMESPACE}");
        kubectl.args([&namespace, "create", "token", names::OPERATOR]);
        let token = command::text(&mut kubectl, SOON)?;
        people::client_with(&self.cluster.kubeconfig(), &token).await
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the checkout's name is not UTF-8")
}

/// How the session ended: whether Complete, why, and in which words.
fn end(session: &DebugSession) -> Result<(bool, Reason, String)> {
    let (complete, reason) = sessions::end_of(session)?;
    let status = sessions::status_of(session)?;
    let failed = conditions::find(&status.conditions, conditions::FAILED);
    let message = failed.map(|failed| failed.message.clone());
    Ok((complete, reason, message.unwrap_or_default()))
}

fn succeeded(session: &DebugSession) -> Result<()> {
    let found = end(session)?;
    ensure!(
        (found.0, found.1) == (true, Reason::Succeeded),
        "{}: {found:?}",
        session.name_any()
    );
    Ok(())
}

fn denied(session: &DebugSession, words: &str) -> Result<()> {
    let found = end(session)?;
    ensure!(
        (found.0, found.1) == (false, Reason::PolicyDenied) && found.2.contains(words),
        "{}: {found:?}",
        session.name_any()
    );
    Ok(())
}

#[tokio::test]
async fn an_operator_for_one_namespace_serves_it_and_reaches_nothing_else() -> Result<()> {
    let images = images::build()?;
    let python = images::workloads("3.14")?;
    let folder = tempfile::tempdir()?;
    let cluster = Cluster::up_linked(&folder.path().join("cluster"))?;
    for image in [&images.operator, &images.sidecar, &python] {
        cluster.load_image(image)?;
    }
    let stage = Stage { cluster, images };
    let client = stage.client().await?;
    let own: Namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
    Api::<Namespace>::all(client.clone())
        .create(&PostParams::default(), &own)
        .await?;
    let image = python.name();
    let open = PodSecurity::Privileged;
    with_namespace(client.clone(), &image, "served", open, async |shop| {
        with_namespace(client.clone(), &image, "not_served", open, async |other| {
            for namespace in [NAMESPACE, shop.name.as_str()] {
                let everything = rule("*", "*", &["*"]);
                people::grant(&client, namespace, OWNER, OWNER, &[everything]).await?;
            }
            Box::pin(installed(&stage, shop, other)).await?;
            requesters(&stage, shop).await?;
            confined(&stage, shop, other).await?;
            uninstalled(&stage, shop).await
        })
        .await
    })
    .await
}

/// The install, in the order in which it is done, and what works after each step.
async fn installed(stage: &Stage, shop: &TestNamespace, other: &TestNamespace) -> Result<()> {
    stage.install_for_the_cluster(&json!([])).await?;
    stage.install_for(&shop.name).await?;
    for namespace in [shop, other] {
        namespace
            .start(&namespace.python("idle", "idle_server.py"))
            .await?;
    }
    // Before the operator is known to the administrator's chart, nothing runs code.
    let early = sessions::exec("early", "idle", "'early'");
    let words = "with that operator in `operators`";
    denied(&shop.run(&early).await?, words)?;
    let accounts = json!([{"namespace": NAMESPACE, "serviceAccount": names::OPERATOR}]);
    stage.install_for_the_cluster(&accounts).await?;
    known(stage, shop).await?;
    let_through(shop, &early).await?;

    // First the one that nobody serves, so that it was there all the time.
    let ignored = sessions::stacks("ignored", "idle");
    sessions::create(&other.sessions(), &ignored).await?;
    let stacks = shop.run(&sessions::stacks("stacks", "idle")).await?;
    succeeded(&stacks)?;
    let exec = format!("word = '{IN_THE_SCRIPT}'\nprint('narcissus-' + '57c0')");
    let exec = sessions::exec("exec", "idle", &exec);
    let exec = shop.run(&exec).await?;
    succeeded(&exec)?;
    let answer = answer::data(&shop.client, &exec, sessions::target_of(&exec)?).await?;
    ensure!(answer.to_string().contains(IN_THE_OUTPUT), "{answer}");
    let ignored = other.sessions().get("ignored").await?;
    ensure!(ignored.status.is_none(), "{:?}", ignored.status);
    let now = other.pods().get("idle").await?;
    ensure!(ephemeral_containers(&now).is_empty());
    Ok(())
}

/// Waits until the operator lets a session like this one through: what it saw of the policies it believes for a moment,
/// which nothing tells. Asked by dry runs.
async fn let_through(shop: &TestNamespace, like: &DebugSession) -> Result<()> {
    let asked = async {
        let mut number = 0;
        loop {
            let mut session = like.clone();
            session.metadata.name = Some(format!("{}-again-{number}", like.name_any()));
            session.spec.dry_run = true;
            let ended = shop.run(&session).await?;
            match sessions::end_of(&ended)? {
                (true, Reason::DryRun) => return Ok(()),
                (false, Reason::PolicyDenied) => {}
                other => bail!("{other:?}"),
            }
            number += 1;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let asked = tokio::time::timeout(SOON, asked).await;
    asked.context("nothing is let through")?
}

/// Waits until the API server holds the operator's account as the policies now say, and nobody else for it.
async fn known(stage: &Stage, shop: &TestNamespace) -> Result<()> {
    let account = stage.operator().await?;
    let pods: Api<Pod> = Api::namespaced(account.clone(), &shop.name);
    let relay = [names::SIDECAR_BINARY, names::RELAY_SUBCOMMAND];
    let nowhere = AttachParams::default().container("sidewinder-nowhere");
    let enters = async || match pods.exec("idle", relay, &nowhere).await {
        Err(error) => !error.to_string().contains("sidewinder-containers"),
        Ok(_) => true,
    };
    let is_held = async || !is_held(&account, &shop.name).await.is_empty();
    let both = async {
        while !enters().await || !is_held().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(SOON, both)
        .await
        .context("waited 30 s until the policies know the operator")
}

/// What `sidewinder-operator` says of a Secret that the account would create and that RBAC lets it; empty where it says
/// nothing.
async fn is_held(account: &Client, namespace: &str) -> String {
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some("a".to_owned()),
            ..ObjectMeta::default()
        },
        ..Secret::default()
    };
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let secrets: Api<Secret> = Api::namespaced(account.clone(), namespace);
    match secrets.create(&dry_run, &secret).await {
        Err(kube::Error::Api(status))
            if status
                .message
                .contains("ValidatingAdmissionPolicy 'sidewinder-operator'") =>
        {
            status.message.clone()
        }
        _ => String::new(),
    }
}

/// The requester's rights are asked for by a `LocalSubjectAccessReview` right before anything runs.
async fn requesters(stage: &Stage, shop: &TestNamespace) -> Result<()> {
    let late = shop.python("late", "idle_server.py").held();
    workload::create(&shop.pods(), &late).await?;
    let sessions_rule = rule("sidewinder.dev", "debugsessions", &["create"]);
    let exec = rule("", "pods/exec", &["create"]);
    for user in ["keeper", "loser"] {
        let name = format!("{user}-exec");
        people::grant(
            &shop.client,
            &shop.name,
            user,
            user,
            std::slice::from_ref(&sessions_rule),
        )
        .await?;
        people::grant(
            &shop.client,
            &shop.name,
            &name,
            user,
            std::slice::from_ref(&exec),
        )
        .await?;
        let client = people::client_as(&stage.cluster.kubeconfig(), user).await?;
        let session = sessions::exec(user, "late", "open('/tmp/ran', 'a').write('run\\n')");
        sessions::create(&Api::namespaced(client, &shop.name), &session).await?;
        sessions::status(
            &shop.sessions(),
            user,
            SOON,
            "it to be taken up",
            |status| status.phase.is_some(),
        )
        .await?;
    }
    people::revoke(&shop.client, &shop.name, "loser-exec", "loser").await?;
    workload::let_go(&shop.pods(), "late").await?;
    let ended = async |user: &str| -> Result<DebugSession> {
        let session = shop.sessions().get(user).await?;
        sessions::ended(&shop.sessions(), &session).await
    };
    succeeded(&ended("keeper").await?)?;
    denied(&ended("loser").await?, "pods/exec on pod late")?;
    let runs = shop.shell_in("late", "cat /tmp/ran").await?;
    ensure!(runs == "run\n", "{runs}");
    Ok(())
}

/// What the operator's account may do, and what it has done.
async fn confined(stage: &Stage, shop: &TestNamespace, other: &TestNamespace) -> Result<()> {
    let may = async |namespace: &str, group: &str, resource: &str, verb: &str| {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let attributes = ResourceAttributes {
            namespace: Some(namespace.to_owned()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource: Some(subresource.to_owned()),
            verb: Some(verb.to_owned()),
            ..ResourceAttributes::default()
        };
        people::may(&shop.client, OPERATOR, &attributes).await
    };
    for (group, resource, verb) in [
        ("sidewinder.dev", "debugsessions", "list"),
        ("sidewinder.dev", "debugsessions/status", "patch"),
        ("", "pods", "list"),
        ("", "pods/ephemeralcontainers", "patch"),
        ("", "pods/exec", "create"),
        ("", "configmaps", "get"),
        ("", "secrets", "create"),
        ("events.k8s.io", "events", "create"),
        (
            "authorization.k8s.io",
            "localsubjectaccessreviews",
            "create",
        ),
    ] {
        let what = format!("{verb} {resource}");
        ensure!(may(&shop.name, group, resource, verb).await?, "{what}");
        // "" is every namespace.
        for outside in [other.name.as_str(), "kube-system", ""] {
            ensure!(
                !may(outside, group, resource, verb).await?,
                "{what} in {outside:?}"
            );
        }
    }
    ensure!(!may("", "authorization.k8s.io", "subjectaccessreviews", "create").await?);
    ensure!(!may("", "", "namespaces", "list").await?);

    // The same with its token, for real.
    let account = stage.operator().await?;
    let read = async |namespace: &str| {
        let sessions: Api<DebugSession> = Api::namespaced(account.clone(), namespace);
        sessions.list(&ListParams::default()).await.map(drop)
    };
    read(&shop.name).await?;
    for outside in [other.name.as_str(), NAMESPACE] {
        ensure!(is_forbidden(&read(outside).await), "sessions of {outside}");
    }
    let everywhere: Api<DebugSession> = Api::all(account.clone());
    let listed = everywhere.list(&ListParams::default()).await.map(drop);
    ensure!(is_forbidden(&listed), "{listed:?}");

    // RBAC lets it create Secrets in the one namespace, the administrator's policy only its own results.
    let held = is_held(&account, &shop.name).await;
    ensure!(held.contains("sidewinder.dev/result"), "{held}");

    // Nothing of the release is the cluster's.
    let label = format!("app.kubernetes.io/instance={RELEASE}");
    let of_release = ListParams::default().labels(&label);
    let roles: Api<ClusterRole> = Api::all(shop.client.clone());
    ensure!(roles.list(&of_release).await?.items.is_empty());
    let bindings: Api<ClusterRoleBinding> = Api::all(shop.client.clone());
    ensure!(bindings.list(&of_release).await?.items.is_empty());
    requests(stage, &shop.name).await?;
    silent(shop).await
}

/// The operator's log at its most talkative: also then no script stands in it, nor what one prints.
async fn silent(shop: &TestNamespace) -> Result<()> {
    let operators: Api<Pod> = Api::namespaced(shop.client.clone(), NAMESPACE);
    let label = format!("{}={}", names::APP_LABEL, names::APP);
    let mut log = String::new();
    for pod in operators
        .list(&ListParams::default().labels(&label))
        .await?
    {
        log += &operators
            .logs(&pod.name_any(), &LogParams::default())
            .await?;
    }
    ensure!(log.contains(r#""level":"TRACE""#), "nothing is traced");
    ensure!(log.contains(r#""message":"session ended""#));
    for word in [IN_THE_SCRIPT, IN_THE_OUTPUT] {
        let line = log.lines().find(|line| line.contains(word));
        ensure!(line.is_none(), "{word}: {line:?}");
    }
    Ok(())
}

fn is_forbidden(found: &Result<(), kube::Error>) -> bool {
    matches!(found, Err(kube::Error::Api(status)) if status.code == 403)
}

/// What the operator asked of the API server, as the audit log has it: nothing of another namespace, and of the cluster
/// only the policies that hold it, by name.
async fn requests(stage: &Stage, served: &str) -> Result<()> {
    let label = format!("{}={}", names::APP_LABEL, names::APP);
    let operators: Api<Pod> = Api::namespaced(stage.client().await?, NAMESPACE);
    let operators = operators
        .list(&ListParams::default().labels(&label))
        .await?;
    let address = operators
        .iter()
        .find_map(|pod| pod.status.as_ref()?.pod_ip.clone())
        .context("the operator has no address")?;
    let log = std::fs::read_to_string(stage.cluster.dir().join("logs/audit.log"))?;
    let mut seen = BTreeSet::new();
    for line in log.lines() {
        let entry: Value = serde_json::from_str(line)?;
        // What is asked here with the operator's token comes from another address.
        if entry["user"]["username"] != OPERATOR || entry["sourceIPs"] != json!([address]) {
            continue;
        }
        let word = |key: &str| entry["objectRef"][key].as_str().unwrap_or_default();
        let (namespace, resource) = (word("namespace"), word("resource"));
        let known = match resource {
            "leases" | "configmaps" if namespace == NAMESPACE => true,
            "validatingadmissionpolicies" | "validatingadmissionpolicybindings" => {
                entry["verb"] == "get"
            }
            // The labels of its own.
            "namespaces" => word("name") == served && entry["verb"] == "get",
            "" => entry["requestURI"]
                .as_str()
                .is_some_and(|uri| uri.starts_with("/version") || uri.starts_with("/api")),
            _ => namespace == served,
        };
        ensure!(known, "the operator asked for {line}");
        seen.insert(resource.to_owned());
    }
    for resource in [
        "debugsessions",
        "pods",
        "localsubjectaccessreviews",
        "secrets",
    ] {
        ensure!(seen.contains(resource), "{resource} is not among {seen:?}");
    }
    ensure!(!seen.contains("subjectaccessreviews"), "{seen:?}");
    Ok(())
}

/// What goes with the releases, and what stays behind: docs/operations.md.
async fn uninstalled(stage: &Stage, shop: &TestNamespace) -> Result<()> {
    let uninstall = format!("--namespace={NAMESPACE}");
    stage
        .helm(Some(OWNER), &["uninstall", RELEASE, &uninstall, "--wait"])
        .await?;
    let system = "--namespace=kube-system";
    stage
        .helm(None, &["uninstall", CLUSTER_RELEASE, system, "--wait"])
        .await?;
    let left = |what: &[&str]| {
        let mut kubectl = stage.cluster.kubectl_command()?;
        kubectl
            .args(["get", "--all-namespaces", "--output=name", "--selector"])
            .arg(format!("{}={}", names::APP_LABEL, names::APP))
            .args(what);
        command::text(&mut kubectl, SOON)
    };
    let of_the_cluster = "validatingadmissionpolicies,validatingadmissionpolicybindings,mutatingadmissionpolicies,mutatingadmissionpolicybindings,clusterroles,clusterrolebindings";
    ensure!(
        left(&[of_the_cluster])?.is_empty(),
        "{}",
        left(&[of_the_cluster])?
    );
    // The Deployment goes before its pods.
    let operators = format!("--selector={}={}", names::APP_LABEL, names::APP);
    let mut gone = stage.cluster.kubectl_command()?;
    gone.args([&uninstall, "wait", "pods", &operators, "--for=delete"])
        .arg("--timeout=50s");
    command::text(&mut gone, HELM)?;
    let of_the_owner =
        "deployments,services,serviceaccounts,configmaps,roles,rolebindings,networkpolicies,pods";
    ensure!(
        left(&[of_the_owner])?.is_empty(),
        "{}",
        left(&[of_the_owner])?
    );
    // The definition, and with it sessions and results; the Lease; the entries in the pods.
    let session = shop.sessions().get("exec").await?;
    succeeded(&session)?;
    let secrets: Api<Secret> = shop.api();
    let results = ListParams::default().fields(&format!("type={}", names::RESULT_SECRET_TYPE));
    ensure!(!secrets.list(&results).await?.items.is_empty());
    let leases: Api<Lease> = Api::namespaced(shop.client.clone(), NAMESPACE);
    leases.get(names::LEASE).await?;
    let pod = shop.pods().get("idle").await?;
    ensure!(ephemeral_containers(&pod).len() == 1);
    ensure!(workload::restarts(&pod) == 0);
    // No finalizer: sessions, and their results with them, go without the operator.
    shop.sessions()
        .delete_collection(&DeleteParams::default(), &ListParams::default())
        .await?;
    watch::until(&shop.sessions(), "exec", SOON, "it to be gone", |found| {
        found.is_none()
    })
    .await?;
    let uid = session.uid().unwrap_or_default();
    let owned = ListParams::default().labels(&format!("{}={uid}", names::SESSION_UID_LABEL));
    let gone = async {
        while !secrets.list(&owned).await?.items.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(SOON, gone)
        .await
        .context("waited 30 s until the session's Secrets are gone")??;
    // The definition that was kept is taken up by the next install.
    stage.install_for_the_cluster(&json!([])).await
}
