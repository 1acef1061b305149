use http::Method;
use serde_json::json;

use super::*;
use crate::testing::FakeApi;

pub(in crate::fences) fn own() -> Own {
    Own::new("shop", "registry.example/sidecar@sha256:00")
}

/// A policy as an API server returns it: with the lists of two installs, the defaults filled in, and words.
fn live(expected: &Expected) -> Value {
    let text = serde_json::to_string(&expected.spec)
        .unwrap()
        .replace(
            OPERATORS,
            "['system:serviceaccount:bank:sidewinder-operator', 'system:serviceaccount:shop:sidewinder-operator']",
        )
        .replace(IMAGES, "['registry.example/sidecar@sha256:00']");
    let mut spec: Value = serde_json::from_str(&text).unwrap();
    let constraints = &mut spec["matchConstraints"];
    constraints["matchPolicy"] = json!("Equivalent");
    constraints["namespaceSelector"] = json!({});
    constraints["objectSelector"] = json!({});
    constraints["resourceRules"][0]["scope"] = json!("*");
    for validation in spec["validations"].as_array_mut().unwrap() {
        validation["message"] = json!("no");
        validation["reason"] = json!("Forbidden");
    }
    spec
}

fn binding(name: &str) -> Value {
    json!({"policyName": name, "validationActions": ["Deny"]})
}

fn named(name: &str) -> Expected {
    expected()
        .into_iter()
        .find(|policy| policy.name == name)
        .unwrap()
}

#[test]
fn what_the_chart_renders_is_what_it_should_be() {
    let names: Vec<_> = expected().into_iter().map(|policy| policy.name).collect();
    assert_eq!(
        names,
        [
            "sidewinder-code-running",
            "sidewinder-operator",
            "sidewinder-containers"
        ]
    );
    for policy in expected() {
        assert_eq!(
            weaker(&policy.spec, &live(&policy), &own()),
            None,
            "{}",
            policy.name
        );
        assert_eq!(loose(&policy.name, &binding(&policy.name)), None);
    }
}

#[test]
fn a_stricter_policy_and_another_opt_in_are_no_weaker() {
    let policy = named("sidewinder-operator");
    let mut found = live(&policy);
    found["validations"]
        .as_array_mut()
        .unwrap()
        .push(json!({"expression": "false"}));
    let variables = found["variables"].as_array_mut().unwrap();
    variables.push(json!({"name": "more", "expression": "1"}));
    for variable in variables {
        if variable["name"] == "optIn" {
            variable["expression"] = json!("'Pod'");
        }
    }
    assert_eq!(weaker(&policy.spec, &found, &own()), None);
}

/// Each thing that makes a policy hold less, one at a time, on every policy that has it.
#[test]
fn whatever_makes_a_policy_weaker_is_seen() {
    type Change = fn(&mut Value);
    let changes: Vec<(&str, Change)> = vec![
        ("failurePolicy", |spec| {
            spec["failurePolicy"] = json!("Ignore");
        }),
        ("paramKind", |spec| {
            spec["paramKind"] = json!({"apiVersion": "v1", "kind": "ConfigMap"});
        }),
        ("matchConstraints", |spec| {
            spec["matchConstraints"]["resourceRules"] = json!([]);
        }),
        ("matchConstraints", |spec| {
            spec["matchConstraints"]["resourceRules"][0]["operations"] = json!(["DELETE"]);
        }),
        ("matchConstraints", |spec| {
            spec["matchConstraints"]["resourceRules"][0]["resourceNames"] = json!(["a"]);
        }),
        ("matchConstraints", |spec| {
            spec["matchConstraints"]["resourceRules"][0]["scope"] = json!("Cluster");
        }),
        ("matchConstraints", |spec| {
            spec["matchConstraints"]["matchPolicy"] = json!("Exact");
        }),
        ("matchConstraints", |spec| {
            spec["matchConstraints"]["namespaceSelector"] = json!({"matchLabels": {"a": "b"}});
        }),
        ("matchConstraints", |spec| {
            spec["matchConstraints"]["objectSelector"] =
                json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]});
        }),
        ("matchConstraints", |spec| {
            spec["matchConstraints"]["excludeResourceRules"] = json!([{"resources": ["*"]}]);
        }),
        ("matchConditions", |spec| {
            let mut conditions = spec["matchConditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            conditions.push(json!({"name": "never", "expression": "false"}));
            spec["matchConditions"] = json!(conditions);
        }),
        ("validations", |spec| {
            drop(spec["validations"].as_array_mut().unwrap().remove(0));
        }),
        ("validations", |spec| {
            let validations = spec["validations"].as_array_mut().unwrap();
            let last = validations.last_mut().unwrap();
            last["expression"] = json!(format!("true || {}", last["expression"].as_str().unwrap()));
        }),
        ("validations", |spec| spec["validations"] = json!(null)),
    ];
    for policy in expected() {
        for (words, change) in &changes {
            let mut found = live(&policy);
            change(&mut found);
            let what = weaker(&policy.spec, &found, &own());
            assert!(
                what.as_deref().is_some_and(|what| what.contains(words)),
                "{}, {words}: {what:?}",
                policy.name
            );
        }
    }
    for name in ["sidewinder-code-running", "sidewinder-operator"] {
        let policy = named(name);
        let mut found = live(&policy);
        found["variables"][1]["expression"] = json!("true");
        assert!(
            weaker(&policy.spec, &found, &own())
                .unwrap()
                .contains("variables")
        );
        found["variables"].as_array_mut().unwrap().remove(1);
        assert!(
            weaker(&policy.spec, &found, &own())
                .unwrap()
                .contains("has no variable")
        );
    }
    assert!(weaker(&named("sidewinder-operator").spec, &Value::Null, &own()).is_some());
}

#[test]
fn a_policy_for_other_operators_or_images_does_not_hold_this_one() {
    let policy = named("sidewinder-operator");
    for other in [
        Own::new("elsewhere", &own().image),
        Own::new("sho", &own().image),
        Own::new("shop", "registry.example/sidecar"),
    ] {
        assert!(
            weaker(&policy.spec, &live(&policy), &other).is_some(),
            "{other:?}"
        );
    }
}

#[test]
fn a_list_is_a_list_of_plain_words() {
    let own = Own {
        username: "a".to_owned(),
        image: "b:1".to_owned(),
    };
    let expected = format!("x in {OPERATORS} && y in {IMAGES} && z");
    for (found, right) in [
        ("x in ['a'] && y in ['b:1'] && z", true),
        ("x in ['c', 'a'] && y in ['b:1', 'd'] && z", true),
        ("x in ['a'] && y in ['b:1']", false),
        ("x in ['c'] && y in ['b:1'] && z", false),
        ("x in [] && y in ['b:1'] && z", false),
        ("x in ['a', x] && y in ['b:1'] && z", false),
        ("x in ['a'] || true && y in ['b:1'] && z", false),
        ("x in ['a'].map(n, x) && y in ['b:1'] && z", false),
        ("x in ['a', 'b\\'c'] && y in ['b:1'] && z", false),
    ] {
        assert_eq!(same(&expected, found, &own), right, "{found}");
    }
}

#[test]
fn whatever_makes_a_binding_looser_is_seen() {
    let looser = |change: Value| {
        let mut found = binding("a");
        crate::testing::merge(&mut found, change);
        loose("a", &found)
    };
    let everything = json!({"matchResources": {"matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {}}});
    assert_eq!(looser(everything), None);
    assert_eq!(
        looser(json!({"validationActions": ["Deny", "Audit"]})),
        None
    );
    for change in [
        json!({"policyName": "b"}),
        json!({"validationActions": ["Audit"]}),
        json!({"validationActions": ["Warn", "Audit"]}),
        json!({"validationActions": null}),
        json!({"paramRef": {"name": "a"}}),
        json!({"matchResources": {"namespaceSelector": {"matchLabels": {"a": "b"}}}}),
        json!({"matchResources": {"objectSelector": {"matchLabels": {"a": "b"}}}}),
        json!({"matchResources": {"excludeResourceRules": [{"resources": ["*"]}]}}),
        json!({"matchResources": {"resourceRules": [{"resources": ["nodes"]}]}}),
        json!({"matchResources": {"matchPolicy": "Exact"}}),
    ] {
        assert!(looser(change.clone()).is_some(), "{change}");
    }
}

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";

pub(in crate::fences) fn install(api: &FakeApi) {
    for policy in expected() {
        let name = &policy.name;
        let object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/version": "9.9.9"}}, "spec": live(&policy),
        });
        api.put(&format!("{POLICIES}/{name}"), &object);
        let object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name}, "spec": binding(name),
        });
        api.put(&format!("{BINDINGS}/{name}"), &object);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_named_and_what_comes_back_is_seen() {
    let (client, api) = FakeApi::new();
    install(&api);
    let policies = Policies::new(client, own());
    policies.in_place().await.unwrap().unwrap();
    // Believed for a moment, by however many ask.
    let looks = api.made(&Method::GET, "").len();
    policies.in_place().await.unwrap().unwrap();
    assert_eq!(api.made(&Method::GET, "").len(), looks);

    let path = format!("{BINDINGS}/sidewinder-operator");
    let kept = api.get(&path).unwrap();
    api.remove(&path);
    tokio::time::advance(BELIEVED).await;
    let refusal = policies.in_place().await.unwrap().unwrap_err();
    assert_eq!(refusal.reason, Reason::PolicyDenied);
    assert!(
        refusal
            .message
            .contains("there is no ValidatingAdmissionPolicyBinding sidewinder-operator")
            && refusal.message.contains("sidewinder-cluster"),
        "{}",
        refusal.message
    );
    api.put(&path, &kept);
    tokio::time::advance(BELIEVED).await;
    policies.in_place().await.unwrap().unwrap();

    api.change(
        &format!("{POLICIES}/sidewinder-containers"),
        json!({"spec": {"failurePolicy": "Ignore"}}),
    );
    tokio::time::advance(BELIEVED).await;
    let refusal = policies.in_place().await.unwrap().unwrap_err();
    assert!(
        refusal
            .message
            .contains("ValidatingAdmissionPolicy sidewinder-containers (of version 9.9.9;"),
        "{}",
        refusal.message
    );
}

#[tokio::test(start_paused = true)]
async fn a_look_that_took_long_is_not_believed_for_longer() {
    let (client, api) = FakeApi::new();
    install(&api);
    for _ in 0..8 {
        api.refuse(
            Method::GET,
            "validatingadmissionpolicies/sidewinder-operator",
            "",
            503,
            "away",
        );
    }
    let policies = Policies::new(client, own());
    let began = Instant::now();
    policies.in_place().await.unwrap().unwrap();
    assert!(began.elapsed() >= BELIEVED);
    // What else was read at its beginning may have changed since.
    api.remove(&format!("{POLICIES}/sidewinder-containers"));
    policies.in_place().await.unwrap().unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn policies_that_come_a_moment_later_are_waited_for() {
    let (client, api) = FakeApi::new();
    let policies = Policies::new(client, own());
    let installed = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        install(&api);
    };
    let (found, ()) = tokio::join!(policies.in_place(), installed);
    found.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn policies_that_may_not_be_read_are_not_in_place() {
    let (client, api) = FakeApi::new();
    install(&api);
    // As often as it looks before it gives up.
    for _ in 0..20 {
        api.refuse(
            Method::GET,
            "validatingadmissionpolicies/sidewinder-operator",
            "",
            403,
            "cannot get resource",
        );
    }
    let policies = Policies::new(client, own());
    let refusal = policies.in_place().await.unwrap().unwrap_err();
    assert!(
        refusal
            .message
            .contains("may not be read (cannot get resource)"),
        "{}",
        refusal.message
    );
}
