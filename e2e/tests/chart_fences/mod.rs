//! What the charts render of policies, settings and roles for people, and which chart renders it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sidewinder_crds::names;
use sidewinder_e2e::checkout;

use crate::{
    POLICIES, RELEASE_NAMESPACE, are_refused_by_name, chart, env, helm_of, names_of, notes,
    objects, objects_of, of_kind, only, operator_container, succeeded,
};

const PEOPLE: [&str; 3] = ["sidewinder-view", "sidewinder-read-only", "sidewinder-exec"];
const TWO_OPERATORS: [&str; 4] = [
    "operators[0].namespace=shop",
    "operators[0].serviceAccount=sidewinder-operator",
    "operators[1].namespace=bank",
    "operators[1].serviceAccount=sidewinder-operator",
];

pub(crate) fn cluster_chart() -> PathBuf {
    checkout().join("charts/sidewinder-cluster")
}

/// What a policy enforces: not what it says when it refuses.
fn enforced(policy: &Value) -> Value {
    let mut spec = policy["spec"].clone();
    let map = spec.as_object_mut().unwrap();
    map.remove("auditAnnotations");
    for validation in map["validations"].as_array_mut().unwrap() {
        *validation = json!({"expression": validation["expression"]});
    }
    spec
}

/// The operator compares the policies that it finds with these.
#[test]
fn the_operator_knows_the_policies_as_the_chart_renders_them() {
    let objects = objects(&[]);
    let found = of_kind(&objects, "ValidatingAdmissionPolicy");
    let policies: Vec<_> = POLICIES
        .iter()
        .map(|name| {
            let policy = found
                .iter()
                .find(|policy| policy["metadata"]["name"] == *name)
                .unwrap();
            json!({"name": name, "spec": enforced(policy)})
        })
        .collect();
    let image = env(&operator_container(&objects), names::env::SIDECAR_IMAGE);
    let account = format!(
        "system:serviceaccount:{RELEASE_NAMESPACE}:{}",
        names::OPERATOR
    );
    let wanted = serde_json::to_string_pretty(&policies)
        .unwrap()
        .replace(&format!("['{account}']"), "@OPERATORS@")
        .replace(&format!("['{image}']"), "@IMAGES@")
        + "\n";
    assert!(!wanted.contains(&account) && !wanted.contains(&image));
    let path = "operator/src/fences/policies.json";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(checkout().join(path), &wanted).unwrap();
    }
    assert!(
        std::fs::read_to_string(checkout().join(path)).unwrap_or_default() == wanted,
        "{path} is not what the chart renders: run `UPDATE=1 cargo test -p sidewinder-e2e --features cluster --test chart`"
    );
}

#[test]
fn both_charts_have_the_same_policies_and_roles() {
    for file in ["policies.yaml", "roles.yaml"] {
        let text =
            |chart: &Path| std::fs::read_to_string(chart.join("templates").join(file)).unwrap();
        assert!(
            text(&chart()) == text(&cluster_chart()),
            "{file} differs: copy it from charts/sidewinder to charts/sidewinder-cluster"
        );
    }
}

#[test]
fn an_install_for_one_namespace_makes_nothing_of_the_clusters() {
    let namespaced = [
        "ServiceAccount",
        "ConfigMap",
        "Role",
        "RoleBinding",
        "Deployment",
        "Service",
        "ServiceMonitor",
        "PrometheusRule",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "DaemonSet",
    ];
    for settings in [
        &["watchNamespace=shop"][..],
        &[
            "watchNamespace=shop",
            "admissionPolicies.stampRequester=Always",
            "roles.aggregateToDefaults=true",
        ],
    ] {
        for object in objects(settings) {
            let kind = object["kind"].as_str().unwrap();
            assert!(namespaced.contains(&kind), "{kind}");
            let namespace = &object["metadata"]["namespace"];
            assert!(
                namespace == "shop" || namespace == RELEASE_NAMESPACE,
                "{kind}: {namespace}"
            );
        }
    }
}

#[test]
fn the_cluster_chart_makes_what_is_the_clusters_and_nothing_else() {
    succeeded(&helm_of(&cluster_chart(), &["lint", "--strict"]));
    let objects = objects_of(&cluster_chart(), &TWO_OPERATORS);
    for kind in [
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ] {
        let mut names = names_of(&of_kind(&objects, kind));
        names.sort();
        let mut wanted = POLICIES;
        wanted.sort_unstable();
        assert_eq!(names, wanted);
    }
    let crd = only(&objects, "CustomResourceDefinition");
    assert_eq!(crd["metadata"]["name"], "debugsessions.sidewinder.dev");
    for object in &objects {
        assert!(object["metadata"]["namespace"].is_null(), "{object}");
    }
    let accounts = "['system:serviceaccount:shop:sidewinder-operator', 'system:serviceaccount:bank:sidewinder-operator']";
    let text = json!(of_kind(&objects, "ValidatingAdmissionPolicy")).to_string();
    assert_eq!(text.matches(accounts).count(), 2);

    // The one right that the operators have in the whole cluster.
    let roles = of_kind(&objects, "ClusterRole");
    let reader = roles
        .iter()
        .find(|role| role["metadata"]["name"] == "sidewinder-policy-reader")
        .unwrap();
    assert_eq!(
        reader["rules"],
        json!([{
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["validatingadmissionpolicies", "validatingadmissionpolicybindings"],
            "resourceNames": POLICIES,
            "verbs": ["get"],
        }])
    );
    let subject = |namespace: &str| json!({"kind": "ServiceAccount", "name": names::OPERATOR, "namespace": namespace});
    assert_eq!(
        only(&objects, "ClusterRoleBinding")["subjects"],
        json!([subject("shop"), subject("bank")])
    );
    // Without operators nobody gets it.
    assert!(of_kind(&objects_of(&cluster_chart(), &[]), "ClusterRoleBinding").is_empty());
}

/// What both charts have and check.
const WRONG_IN_BOTH: [(&str, &str); 2] = [
    (
        "admissionPolicies.stampRequester=yes",
        "/admissionPolicies/stampRequester",
    ),
    ("fences.optIn=Label", "/fences/optIn"),
];

#[test]
fn wrong_fences_are_refused_by_name() {
    let of_the_operator = [
        ("admissionPolicies.enable=false", "enable"),
        ("fences.killSwitch=Off", "/fences/killSwitch"),
        ("fences.maxTimeoutSeconds=3601", "/fences/maxTimeoutSeconds"),
        ("fences.requireReason=maybe", "/fences/requireReason"),
        ("fences.scripts.mode=None", "/fences/scripts/mode"),
        (
            "fences.scripts.allowedSha256[0]=abc",
            "/fences/scripts/allowedSha256/0",
        ),
        ("fences.requirePolicies=maybe", "/fences/requirePolicies"),
        ("fences.requireRequester=true", "/fences/requireRequester"),
        ("fences.maxPerPod=0", "/fences/maxPerPod"),
        ("fences.maxPerNode=0", "/fences/maxPerNode"),
    ];
    are_refused_by_name(&chart(), &of_the_operator);
    are_refused_by_name(&chart(), &WRONG_IN_BOTH);
    let of_the_cluster = [
        ("operators[0].namespace=shop", "serviceAccount"),
        ("operators[0].namespace=a'b", "/operators/0/namespace"),
        (
            "sidecar.images[0]=registry.example/sidecar",
            "/sidecar/images/0",
        ),
        ("sidecar.images[0]=a'b:1", "/sidecar/images/0"),
        ("watchNamespace=shop", "watchNamespace"),
    ];
    are_refused_by_name(&cluster_chart(), &of_the_cluster);
    are_refused_by_name(&cluster_chart(), &WRONG_IN_BOTH);
}

#[test]
fn the_requester_is_stamped_where_the_cluster_can_or_as_told() {
    let kinds = ["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"];
    let rendered = |chart: &Path, can: bool, setting: &str| {
        let mut arguments = vec!["template", "--kube-version", "1.36.0", "--set", setting];
        if can {
            arguments.extend([
                "--api-versions",
                "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy",
            ]);
        }
        arguments.push("a-release");
        succeeded(&helm_of(chart, &arguments))
    };
    for chart in [chart(), cluster_chart()] {
        for (can, told, stamps) in [
            (true, "Auto", true),
            (false, "Auto", false),
            (false, "Always", true),
            (true, "Never", false),
        ] {
            let text = rendered(
                &chart,
                can,
                &format!("admissionPolicies.stampRequester={told}"),
            );
            for kind in kinds {
                assert_eq!(
                    text.contains(&format!("kind: {kind}\n")),
                    stamps,
                    "{can} {told}"
                );
            }
        }
    }
    // Where it is stamped, a session that runs code needs it.
    for (can, told, needed) in [
        (true, "Auto", "true"),
        (false, "Auto", "false"),
        (false, "Always", "true"),
        (true, "Never", "false"),
    ] {
        let text = rendered(&chart(), can, &format!("fences.requireRequester={told}"));
        let line = format!(
            "{}\n          value: {needed:?}",
            names::env::REQUIRE_REQUESTER
        );
        assert!(text.contains(&line), "{can} {told}");
    }
}

#[test]
fn the_settings_stand_in_their_config_map() {
    let digest = "ab".repeat(32);
    let objects = objects(&[
        "fences.killSwitch=CodeRunning",
        "fences.optIn=Pod",
        "fences.maxTimeoutSeconds=600",
        "fences.requireReason=true",
        "fences.scripts.mode=AllowList",
        &format!("fences.scripts.allowedSha256[0]={digest}"),
    ]);
    let map = only(&objects, "ConfigMap");
    assert_eq!(map["metadata"]["name"], "sidewinder-settings");
    assert_eq!(
        map["data"],
        json!({
            "killSwitch": "CodeRunning",
            "optIn": "Pod",
            "maxTimeoutSeconds": "600",
            "requireReason": "true",
            "scriptsMode": "AllowList",
            "scriptsAllowedSha256": digest,
        })
    );
    let policies = of_kind(&objects, "ValidatingAdmissionPolicy");
    let text = json!(policies).to_string();
    assert!(text.contains("\"'Pod'\""), "the policy has the setting too");
}

#[test]
fn roles_for_people_are_part_of_the_clusters_own_only_when_told() {
    let labels = |settings: &[&str]| -> Vec<(String, Vec<String>)> {
        let objects = objects(settings);
        PEOPLE
            .iter()
            .map(|name| {
                let roles = of_kind(&objects, "ClusterRole");
                let role = roles
                    .iter()
                    .find(|role| role["metadata"]["name"] == *name)
                    .unwrap();
                let labels = role["metadata"]["labels"].as_object().unwrap();
                let aggregated = labels.keys().filter(|key| key.contains("aggregate-to"));
                ((*name).to_owned(), aggregated.cloned().collect())
            })
            .collect()
    };
    for (_, aggregated) in labels(&[]) {
        assert!(aggregated.is_empty(), "{aggregated:?}");
    }
    let label = |role: &str| vec![format!("rbac.authorization.k8s.io/aggregate-to-{role}")];
    let found: Vec<_> = labels(&["roles.aggregateToDefaults=true"])
        .into_iter()
        .map(|(_, found)| found)
        .collect();
    assert_eq!(found, [label("view"), label("edit"), label("admin")]);
    let none = objects(&["roles.create=false"]);
    assert_eq!(names_of(&of_kind(&none, "ClusterRole")), [names::OPERATOR]);
}

#[test]
fn to_do_without_policies_is_loud() {
    assert!(!notes(&[]).contains("WARNING"));
    assert!(
        notes(&["fences.requirePolicies=false"])
            .contains("WARNING: fences.requirePolicies is false")
    );
    let without = &["admissionPolicies.enabled=false"];
    let refusing = notes(without);
    assert!(
        refusing.contains("WARNING: admissionPolicies.enabled is false")
            && refusing.contains("end with PolicyDenied")
            && !refusing.contains("requirePolicies is false. The operator"),
        "{refusing}"
    );
    assert!(of_kind(&objects(without), "ValidatingAdmissionPolicy").is_empty());
    assert!(notes(&["watchNamespace=shop"]).contains("chart sidewinder-cluster"));
    assert!(notes(&["fences.killSwitch=All"]).contains("kill switch is on"));
}
