//! The chart as helm renders it, without a cluster.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "in a test a panic is the report; clippy exempts only functions marked as tests, not what they call"
)]

mod chart_fences;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize as _;
use serde_json::{Value, json};
use sidewinder_crds::{manifest, names};
use sidewinder_e2e::{checkout, tools};

const RELEASE_NAMESPACE: &str = "debugging";
const POLICIES: [&str; 3] = [
    "sidewinder-code-running",
    "sidewinder-operator",
    "sidewinder-containers",
];

fn chart() -> PathBuf {
    checkout().join("charts/sidewinder")
}

fn helm(arguments: &[&str]) -> Output {
    helm_of(&chart(), arguments)
}

fn helm_of(chart: &Path, arguments: &[&str]) -> Output {
    Command::new(tools::Module::Helm.binary("helm").unwrap())
        .args(arguments)
        .arg(chart)
        .output()
        .unwrap()
}

fn succeeded(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// `helm template` with these settings, each `name=value`.
fn template(settings: &[&str]) -> Output {
    template_of(&chart(), settings)
}

fn template_of(chart: &Path, settings: &[&str]) -> Output {
    let mut arguments = vec![
        "template",
        "--namespace",
        RELEASE_NAMESPACE,
        "--kube-version",
        "1.30.0",
    ];
    for setting in settings {
        arguments.extend(["--set", *setting]);
    }
    arguments.push("a-release");
    helm_of(chart, &arguments)
}

/// Every object that the chart makes.
fn objects(settings: &[&str]) -> Vec<Value> {
    objects_of(&chart(), settings)
}

fn objects_of(chart: &Path, settings: &[&str]) -> Vec<Value> {
    let text = succeeded(&template_of(chart, settings));
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|object| !object.is_null())
        .collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .collect()
}

fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = of_kind(objects, kind);
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

fn names_of(objects: &[&Value]) -> Vec<String> {
    objects
        .iter()
        .map(|object| object["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

fn operator_container(objects: &[Value]) -> Value {
    only(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0].clone()
}

fn env(container: &Value, name: &str) -> String {
    container["env"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["name"] == name)
        .unwrap_or_else(|| panic!("{name} is not set"))["value"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// What helm says after an install with these settings.
fn notes(settings: &[&str]) -> String {
    let mut arguments = vec!["install", "--dry-run=client", "a-release"];
    for setting in settings {
        arguments.extend(["--set", *setting]);
    }
    let text = succeeded(&helm(&arguments));
    text.split_once("NOTES:").unwrap().1.to_owned()
}

/// Checks that each of these settings is refused with words that name it.
fn are_refused_by_name(chart: &Path, wrong: &[(&str, &str)]) {
    for (setting, named) in wrong {
        let output = template_of(chart, &[setting]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{setting} was accepted");
        assert!(error.contains(named), "{setting}: {error}");
    }
}

#[test]
fn lint_has_nothing_to_say() {
    succeeded(&helm(&["lint", "--strict"]));
}

#[test]
fn the_crd_is_the_generated_one() {
    let objects = objects(&[]);
    let crd = only(&objects, "CustomResourceDefinition");
    assert_eq!(crd["spec"], manifest::debug_sessions()["spec"]);
    assert_eq!(
        crd["metadata"]["annotations"]["helm.sh/resource-policy"],
        "keep"
    );
}

#[test]
fn the_crd_can_be_left_out_and_let_go() {
    assert!(
        of_kind(
            &objects(&["crds.install=false"]),
            "CustomResourceDefinition"
        )
        .is_empty()
    );
    let objects = objects(&["crds.keep=false"]);
    assert!(
        only(&objects, "CustomResourceDefinition")["metadata"]
            .get("annotations")
            .is_none()
    );
}

/// Each rule of the operator, in order. A right is added here and in the chart together, with the call that needs it.
#[test]
fn the_operators_rights_are_these_and_no_others() {
    let cluster = json!([
        {"apiGroups": ["sidewinder.dev"], "resources": ["debugsessions"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": ["sidewinder.dev"], "resources": ["debugsessions"], "verbs": ["delete"]},
        {"apiGroups": ["sidewinder.dev"], "resources": ["debugsessions/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["pods/ephemeralcontainers"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create", "get"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]},
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
        {"apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["validatingadmissionpolicies", "validatingadmissionpolicybindings"],
            "resourceNames": POLICIES,
            "verbs": ["get"]},
    ]);
    let own_namespace = json!([
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": [names::LEASE], "verbs": ["get", "update"]},
    ]);
    let settings = json!([
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["sidewinder-settings"], "verbs": ["get", "list", "watch"]},
    ]);
    let everywhere = objects(&[]);
    let own = |role: &&&Value| role["metadata"]["name"] == names::OPERATOR;
    let cluster_roles = of_kind(&everywhere, "ClusterRole");
    assert_eq!(cluster_roles.iter().find(own).unwrap()["rules"], cluster);
    for (name, rules) in [
        ("sidewinder-leader-election", own_namespace),
        ("sidewinder-settings", settings),
    ] {
        let roles = of_kind(&everywhere, "Role");
        let role = roles
            .iter()
            .find(|role| role["metadata"]["name"] == name)
            .unwrap();
        assert_eq!(role["rules"], rules);
        assert_eq!(role["metadata"]["namespace"], RELEASE_NAMESPACE);
        assert_eq!(roles.len(), 2);
    }

    let one_namespace = objects(&["watchNamespace=shop"]);
    assert!(of_kind(&one_namespace, "ClusterRole").is_empty());
    assert!(of_kind(&one_namespace, "ClusterRoleBinding").is_empty());
    let roles = of_kind(&one_namespace, "Role");
    let served = roles
        .iter()
        .find(|role| role["metadata"]["namespace"] == "shop")
        .unwrap();
    let mut local = cluster;
    let granted = local.as_array_mut().unwrap();
    // The policies are no namespace's.
    granted.pop();
    granted.last_mut().unwrap()["resources"] = json!(["localsubjectaccessreviews"]);
    assert_eq!(served["rules"], local);
}

#[test]
fn every_binding_gives_to_the_operators_account_alone() {
    for objects in [objects(&[]), objects(&["watchNamespace=shop"])] {
        let bindings: Vec<_> = of_kind(&objects, "ClusterRoleBinding")
            .into_iter()
            .chain(of_kind(&objects, "RoleBinding"))
            .collect();
        assert_eq!(bindings.len(), 3);
        for binding in bindings {
            assert_eq!(
                binding["subjects"],
                json!([{"kind": "ServiceAccount", "name": names::OPERATOR, "namespace": RELEASE_NAMESPACE}])
            );
        }
    }
}

#[test]
fn every_right_says_which_call_needs_it() {
    for file in [
        "templates/rbac.yaml",
        "templates/roles.yaml",
        "../sidewinder-cluster/templates/policy-readers.yaml",
    ] {
        let text = std::fs::read_to_string(chart().join(file)).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let rules = lines
            .iter()
            .enumerate()
            .filter(|(_, line)| line.starts_with("- apiGroups:"));
        for (number, line) in rules {
            assert!(
                lines[number - 1].starts_with("# "),
                "line {} of {file} has no comment: {line}",
                number + 1
            );
        }
    }
}

/// What Pod Security's level *restricted* demands, and what it does not demand but a cautious cluster does.
#[test]
fn the_operator_passes_restricted() {
    let objects = objects(&[]);
    let pod = &only(&objects, "Deployment")["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["runAsUser"], 65532);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    assert!(pod.get("volumes").is_none() && pod.get("hostNetwork").is_none());
    let container = operator_container(&objects);
    assert_eq!(
        container["securityContext"],
        json!({
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": true,
        })
    );
    assert_eq!(
        container["ports"],
        json!([{"name": "http", "containerPort": 8080, "protocol": "TCP"}])
    );
    assert_eq!(
        container["livenessProbe"]["httpGet"],
        json!({"path": "/healthz", "port": "http"})
    );
    assert_eq!(
        container["readinessProbe"]["httpGet"],
        json!({"path": "/readyz", "port": "http"})
    );
}

#[test]
fn the_operator_is_told_every_setting_by_its_name() {
    use names::env as of;
    let told = [
        ("results.sensitive=Status", of::RESULTS_SENSITIVE, "Status"),
        ("results.maxBytes=1048576", of::RESULT_MAX_BYTES, "1048576"),
        (
            "results.memoryBytes=268435456",
            of::RESULT_MEMORY_BYTES,
            "268435456",
        ),
        (
            "sidecar.agentIdleSeconds=86400",
            of::AGENT_IDLE_SECONDS,
            "86400",
        ),
        ("sidecar.maxPerPod=9", of::SIDECARS_PER_POD, "9"),
        ("sidecar.warnPerPod=7", of::SIDECARS_WARNING, "7"),
        (
            "sidecar.image.pullPolicy=Never",
            of::SIDECAR_PULL_POLICY,
            "Never",
        ),
        ("maxConcurrent=1000", of::MAX_CONCURRENT, "1000"),
        (
            "api.requestsPerSecond=50",
            of::API_REQUESTS_PER_SECOND,
            "50",
        ),
        ("api.burst=60", of::API_BURST, "60"),
        ("watchNamespace=shop", of::WATCH_NAMESPACE, "shop"),
        ("leaderElection.enabled=false", of::LEADER_ELECTION, "false"),
        ("log.filter=debug", of::LOG, "debug"),
        ("log.format=text", of::LOG_FORMAT, "text"),
        (
            "fences.requirePolicies=false",
            of::REQUIRE_POLICIES,
            "false",
        ),
        (
            "fences.requireRequester=Always",
            of::REQUIRE_REQUESTER,
            "true",
        ),
        ("fences.maxPerPod=2", of::MAX_PER_POD, "2"),
        ("fences.maxPerNode=1000", of::MAX_PER_NODE, "1000"),
        (
            "extraEnv[0].value=10.0.0.1",
            "KUBERNETES_SERVICE_HOST",
            "10.0.0.1",
        ),
    ];
    let mut settings: Vec<_> = told.iter().map(|(setting, ..)| *setting).collect();
    settings.push("extraEnv[0].name=KUBERNETES_SERVICE_HOST");
    let container = operator_container(&objects(&settings));
    let fixed = [
        ("", of::HTTP_ADDRESS, "0.0.0.0:8080"),
        ("", of::SETTINGS, "sidewinder-settings"),
    ];
    for (_, name, value) in told.into_iter().chain(fixed) {
        assert_eq!(env(&container, name), value, "{name}");
    }
    let given: BTreeSet<_> = container["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].as_str().unwrap())
        .collect();
    assert!(given.contains(names::env::POD_NAME) && given.contains(names::env::POD_NAMESPACE));
    // Besides: the sidecar's image.
    assert_eq!(given.len(), told.len() + fixed.len() + 3, "{given:?}");
    assert!(!given.contains("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let traced = objects(&["tracing.endpoint=http://collector:4318"]);
    assert_eq!(
        env(&operator_container(&traced), "OTEL_EXPORTER_OTLP_ENDPOINT"),
        "http://collector:4318"
    );
}

#[test]
fn a_digest_wins_over_a_tag_in_the_pod_and_in_the_policy() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let objects = objects(&[
        "image.repository=registry.example/operator",
        "image.tag=v1",
        &format!("image.digest={digest}"),
        "sidecar.image.repository=registry.example/sidecar",
        "sidecar.image.tag=v1",
        &format!("sidecar.image.digest={digest}"),
        "imagePullSecrets[0].name=pull",
    ]);
    let container = operator_container(&objects);
    let sidecar = format!("registry.example/sidecar@{digest}");
    assert_eq!(
        container["image"],
        format!("registry.example/operator@{digest}")
    );
    assert_eq!(env(&container, names::env::SIDECAR_IMAGE), sidecar);
    assert_eq!(
        only(&objects, "Deployment")["spec"]["template"]["spec"]["imagePullSecrets"],
        json!([{"name": "pull"}])
    );
    let policies = of_kind(&objects, "ValidatingAdmissionPolicy");
    let fence = policies
        .iter()
        .find(|policy| policy["metadata"]["name"] == names::OPERATOR)
        .unwrap();
    let expressions = fence["spec"]["validations"].to_string();
    assert!(
        expressions.contains(&format!("in ['{sidecar}']")),
        "{expressions}"
    );
}

#[test]
fn a_policy_refuses_with_403_when_in_doubt_and_has_its_binding() {
    let objects = objects(&[]);
    let policies = of_kind(&objects, "ValidatingAdmissionPolicy");
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    let expected = sorted(POLICIES.map(str::to_owned).to_vec());
    assert_eq!(sorted(names_of(&policies)), expected);
    for policy in &policies {
        assert_eq!(policy["spec"]["failurePolicy"], "Fail");
        for validation in policy["spec"]["validations"].as_array().unwrap() {
            // Without a reason a refusal is a 422, which reads like a mistake in the object.
            assert_eq!(validation["reason"], "Forbidden", "{validation}");
            assert!(validation["message"].is_string(), "{validation}");
        }
    }
    let bindings = of_kind(&objects, "ValidatingAdmissionPolicyBinding");
    assert_eq!(sorted(names_of(&bindings)), expected);
    for binding in bindings {
        assert_eq!(binding["spec"]["policyName"], binding["metadata"]["name"]);
        assert_eq!(binding["spec"]["validationActions"], json!(["Deny"]));
    }
}

#[test]
fn the_policies_speak_of_the_releases_own_account_and_the_shared_names() {
    let objects = objects(&[]);
    let text = json!(of_kind(&objects, "ValidatingAdmissionPolicy")).to_string();
    let account = format!(
        "'system:serviceaccount:{RELEASE_NAMESPACE}:{}'",
        names::OPERATOR
    );
    for shared in [
        account.as_str(),
        &format!("startsWith('{}')", names::SIDECAR_PREFIX),
        &format!("'{}'", names::SIDECAR_BINARY),
        &format!("'{}'", names::AGENT_SUBCOMMAND),
        &format!("'{}'", names::RELAY_SUBCOMMAND),
        &format!("'{}'", names::RESULT_SECRET_TYPE),
    ] {
        assert!(text.contains(shared), "{shared}");
    }
}

#[test]
fn wrong_values_are_refused_by_name() {
    let wrong = [
        ("results.sensitive=Nowhere", "/results/sensitive"),
        ("results.maxBytes=1000", "/results/maxBytes"),
        ("results.memoryBytes=1000", "/results/memoryBytes"),
        ("maxConcurrent=0", "/maxConcurrent"),
        ("api.requestsPerSecond=19", "/api/requestsPerSecond"),
        ("api.burst=0", "/api/burst"),
        ("api.burst=19", "/api/burst"),
        (
            "sidecar.agentIdleSeconds=86401",
            "/sidecar/agentIdleSeconds",
        ),
        ("sidecar.image.digest=sha256:abc", "/sidecar/image/digest"),
        ("sidecar.image.repository=a'b", "/sidecar/image/repository"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("log.format=xml", "/log/format"),
        ("watchNamespace=Shop", "/watchNamespace"),
        ("replica=2", "replica"),
        ("monitoring.rules.create=Maybe", "/monitoring/rules/create"),
        (
            "monitoring.serviceMonitor.interval=often",
            "/monitoring/serviceMonitor/interval",
        ),
        ("tracing.endpoint=collector:4318", "/tracing/endpoint"),
        ("networkPolicy.egress=all", "/networkPolicy/egress"),
        ("prepull.maxUnavailable=0", "/prepull/maxUnavailable"),
    ];
    are_refused_by_name(&chart(), &wrong);
}

/// What only a cluster with Prometheus' operator understands.
const MONITORING: [&str; 2] = ["ServiceMonitor", "PrometheusRule"];

/// Every object where the cluster has Prometheus' operator.
fn monitored(settings: &[&str]) -> Vec<Value> {
    let mut arguments = vec!["template", "--namespace", RELEASE_NAMESPACE];
    arguments.extend(["--api-versions", "monitoring.coreos.com/v1"]);
    for setting in settings {
        arguments.extend(["--set", *setting]);
    }
    arguments.push("a-release");
    let text = succeeded(&helm(&arguments));
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|object| !object.is_null())
        .collect()
}

fn dashboards(objects: &[Value]) -> Vec<&Value> {
    of_kind(objects, "ConfigMap")
        .into_iter()
        .filter(|map| map["metadata"]["name"] != "sidewinder-settings")
        .collect()
}

#[test]
fn objects_of_prometheus_are_made_where_it_is_or_where_they_are_demanded() {
    let without = objects(&[]);
    for kind in MONITORING {
        assert!(of_kind(&without, kind).is_empty(), "{kind}");
        only(&monitored(&[]), kind);
    }
    assert!(dashboards(&without).is_empty());
    assert_eq!(dashboards(&monitored(&[])).len(), 1);

    let demanded = objects(&[
        "monitoring.serviceMonitor.create=Always",
        "monitoring.rules.create=Always",
        "monitoring.dashboard.create=Always",
        "monitoring.rules.labels.release=prometheus",
    ]);
    for kind in MONITORING {
        only(&demanded, kind);
    }
    assert_eq!(
        only(&demanded, "PrometheusRule")["metadata"]["labels"]["release"],
        "prometheus"
    );
    assert_eq!(dashboards(&demanded).len(), 1);

    let refused = monitored(&[
        "monitoring.serviceMonitor.create=Never",
        "monitoring.rules.create=Never",
        "monitoring.dashboard.create=Never",
    ]);
    for kind in MONITORING {
        assert!(of_kind(&refused, kind).is_empty(), "{kind}");
    }
    assert!(dashboards(&refused).is_empty());
}

#[test]
fn the_rules_and_the_dashboard_are_those_of_their_files() {
    let objects = monitored(&[]);
    let file = |name: &str| std::fs::read_to_string(chart().join(name)).unwrap();
    let rules: Value = serde_yaml::from_str(&file("rules/alerts.yaml")).unwrap();
    assert_eq!(only(&objects, "PrometheusRule")["spec"], rules);
    let dashboard = dashboards(&objects)[0];
    assert_eq!(
        dashboard["data"]["sidewinder.json"],
        file("dashboards/sidewinder.json")
    );
    assert_eq!(dashboard["metadata"]["labels"]["grafana_dashboard"], "1");
}

#[test]
fn what_is_scraped_is_the_operators_own_service_and_port() {
    let objects = monitored(&[]);
    let service = only(&objects, "Service");
    let pod = &only(&objects, "Deployment")["spec"]["template"];
    let is_part = |selector: &Value, labels: &Value| {
        let selector = selector.as_object().unwrap();
        !selector.is_empty() && selector.iter().all(|(key, value)| labels[key] == *value)
    };
    assert!(is_part(
        &service["spec"]["selector"],
        &pod["metadata"]["labels"]
    ));
    let monitor = only(&objects, "ServiceMonitor");
    assert!(is_part(
        &monitor["spec"]["selector"]["matchLabels"],
        &service["metadata"]["labels"]
    ));
    let port = &service["spec"]["ports"][0];
    assert_eq!(
        port["targetPort"],
        operator_container(&objects)["ports"][0]["name"]
    );
    assert_eq!(monitor["spec"]["endpoints"][0]["port"], port["name"]);
    assert_eq!(
        monitor["spec"]["namespaceSelector"]["matchNames"],
        json!([RELEASE_NAMESPACE])
    );
}

/// The rules as Prometheus itself reads them, and each alert with series that make it fire and series that do not.
#[test]
fn the_alerts_are_valid_and_fire_when_they_should() {
    let promtool = tools::Module::Promtool.binary("promtool").unwrap();
    let run = |arguments: &[&str], file: PathBuf| {
        let output = Command::new(&promtool)
            .args(arguments)
            .arg(file)
            .output()
            .unwrap();
        succeeded(&output)
    };
    run(
        &["check", "rules", "--lint=all", "--lint-fatal"],
        chart().join("rules/alerts.yaml"),
    );
    run(
        &["test", "rules"],
        checkout().join("e2e/tests/chart/alerts.yaml"),
    );
}

fn alerts(file: PathBuf) -> String {
    std::fs::read_to_string(file).unwrap()
}

#[test]
fn each_alert_is_tried_and_says_what_to_do() {
    let rules: Value = serde_yaml::from_str(&alerts(chart().join("rules/alerts.yaml"))).unwrap();
    let tried = alerts(checkout().join("e2e/tests/chart/alerts.yaml"));
    let page = alerts(checkout().join("docs/operations.md"));
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    assert!(!rules.is_empty());
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        // Once that it fires and once that it does not.
        let times = tried.matches(&format!("alertname: {name}")).count();
        assert!(times >= 2, "{name} is tried {times} times");
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
}

/// The values below `name` that a page does not name: as they are, or by what they are below of.
fn unnamed(page: &str, name: &str, value: &Value) -> Vec<String> {
    if page.contains(&format!("`{name}`")) {
        return Vec::new();
    }
    match value.as_object() {
        Some(below) if !below.is_empty() => below
            .iter()
            .flat_map(|(key, value)| unnamed(page, &format!("{name}.{key}"), value))
            .collect(),
        _ => vec![name.to_owned()],
    }
}

#[test]
fn every_value_stands_on_the_operations_page() {
    // Those of the fences have a page of their own, where a row's second name begins with its dot.
    let page = alerts(checkout().join("docs/operations.md"))
        + &alerts(checkout().join("docs/security.md")).replace("`.", "`fences.scripts.");
    for chart in [chart(), chart_fences::cluster_chart()] {
        let values: Value = serde_yaml::from_str(&alerts(chart.join("values.yaml"))).unwrap();
        let missing: Vec<_> = values
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(key, value)| unnamed(&page, key, value))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
    let values = json!({"a": {"b": 1, "c": {"d": 2}}, "e": {}});
    assert_eq!(unnamed("`e` and `a.b`", "a", &values["a"]), ["a.c.d"]);
    assert_eq!(unnamed("`a.c`", "e", &values["e"]), ["e"]);
}

/// The page says what stays behind: helm removes whatever does not ask to be kept, and no hook leaves anything.
#[test]
fn nothing_but_the_definition_stays_when_a_chart_is_uninstalled() {
    let charts = [
        (chart(), &["prepull.enabled=true", "replicas=2"][..]),
        (chart_fences::cluster_chart(), &[]),
    ];
    for (chart, settings) in charts {
        for (keep, kept) in [
            ("true", vec!["CustomResourceDefinition"]),
            ("false", vec![]),
        ] {
            let keep = format!("crds.keep={keep}");
            let all = objects_of(&chart, &[settings, &[keep.as_str()]].concat());
            let annotated = |name: &str| -> Vec<_> {
                all.iter()
                    .filter(|object| object["metadata"]["annotations"].get(name).is_some())
                    .map(|object| object["kind"].as_str().unwrap())
                    .collect()
            };
            assert_eq!(annotated("helm.sh/resource-policy"), kept);
            assert!(annotated("helm.sh/hook").is_empty());
        }
        let text = std::fs::read_dir(chart.join("templates"))
            .unwrap()
            .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap());
        assert!(text.into_iter().all(|text| !text.contains("finalizers:")));
    }
}

#[test]
fn nothing_reaches_the_operator_but_its_one_port() {
    let by_default = objects(&[]);
    let policy = only(&by_default, "NetworkPolicy");
    assert_eq!(
        policy["spec"],
        json!({
            "podSelector": {"matchLabels": only(&by_default, "Deployment")["spec"]["selector"]["matchLabels"]},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"port": "http", "protocol": "TCP"}]}],
        })
    );
    let narrow = objects(&[
        "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name=monitoring",
        "networkPolicy.egress[0].ports[0].port=443",
    ]);
    let spec = &only(&narrow, "NetworkPolicy")["spec"];
    assert_eq!(
        spec["ingress"][0]["from"],
        json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}])
    );
    assert_eq!(spec["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(spec["egress"], json!([{"ports": [{"port": 443}]}]));
    assert!(of_kind(&objects(&["networkPolicy.enabled=false"]), "NetworkPolicy").is_empty());
}

#[test]
fn certificates_can_be_mounted() {
    let objects = objects(&[
        "extraVolumes[0].name=roots",
        "extraVolumes[0].configMap.name=roots",
        "extraVolumeMounts[0].name=roots",
        "extraVolumeMounts[0].mountPath=/roots",
    ]);
    let pod = &only(&objects, "Deployment")["spec"]["template"]["spec"];
    assert_eq!(
        pod["volumes"],
        json!([{"name": "roots", "configMap": {"name": "roots"}}])
    );
    assert_eq!(
        pod["containers"][0]["volumeMounts"],
        json!([{"name": "roots", "mountPath": "/roots"}])
    );
}

#[test]
fn a_disruption_budget_needs_a_second_replica() {
    assert!(of_kind(&objects(&[]), "PodDisruptionBudget").is_empty());
    let two = objects(&["replicas=2"]);
    let budget = only(&two, "PodDisruptionBudget");
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
    assert_eq!(
        budget["spec"]["selector"],
        only(&two, "Deployment")["spec"]["selector"]
    );
    let off = objects(&["replicas=2", "podDisruptionBudget.enabled=false"]);
    assert!(of_kind(&off, "PodDisruptionBudget").is_empty());
}

#[test]
fn the_prepull_holds_the_sidecars_image_with_nothing_else() {
    assert!(of_kind(&objects(&[]), "DaemonSet").is_empty());
    let objects = objects(&[
        "prepull.enabled=true",
        "sidecar.image.repository=registry.example/sidecar",
        "sidecar.image.tag=v1",
        "imagePullSecrets[0].name=pull",
    ]);
    let set = only(&objects, "DaemonSet");
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(
        set["spec"]["selector"]["matchLabels"],
        json!({"app.kubernetes.io/name": names::APP, "app.kubernetes.io/component": "prepull"})
    );
    // It would hide on the nodes that debugged pods need one.
    assert!(pod.get("imagePullSecrets").is_none());
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "registry.example/sidecar:v1");
    assert_eq!(container["command"], json!([names::SIDECAR_BINARY, "hold"]));
    assert!(
        !container["name"]
            .as_str()
            .unwrap()
            .starts_with(names::SIDECAR_PREFIX)
    );
    assert_eq!(
        container["securityContext"],
        json!({
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": true,
        })
    );
    // Neither the Service nor the NetworkPolicy is about its pods.
    for selector in [
        &only(&objects, "Service")["spec"]["selector"],
        &only(&objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ] {
        assert_eq!(selector["app.kubernetes.io/component"], "operator");
    }
}

#[test]
fn a_prepull_that_may_not_pull_is_refused() {
    let output = template(&["prepull.enabled=true", "sidecar.image.pullPolicy=Never"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        error.contains("sidecar.image.pullPolicy is Never"),
        "{error}"
    );
}
