//! Whether the admission policies that hold requesters and this operator are in place: there, bound, and no weaker than
//! the chart of this version makes them.
//!
//! An annotation with a digest would prove nothing, since it stays when the policy is changed: what is compared is what
//! the API server enforces. `policies.json` is what the chart renders; a test of the chart keeps it so.

use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::{Client, ResourceExt};
use serde::Deserialize;
use serde_json::Value;
use sidewinder_crds::names::OPERATOR;
use sidewinder_model::Reason;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::{Error, patiently};
use crate::inject::Refusal;

/// How long a look is believed, from before it was begun. The API server itself takes about a second to enforce what changed.
const BELIEVED: Duration = Duration::from_secs(2);
/// How long policies that are not there are waited for, since an install may make them after the operator.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between looks while they are waited for.
const PAUSE: Duration = Duration::from_millis(500);

/// Stands in the expected expressions for a list of operators' user names.
const OPERATORS: &str = "@OPERATORS@";
/// Stands in the expected expressions for a list of images.
const IMAGES: &str = "@IMAGES@";
/// A variable that is a setting of the chart.
const SETTING: &str = "optIn";

/// A policy as it should be.
#[derive(Clone, Debug, Deserialize)]
struct Expected {
    name: String,
    spec: Value,
}

/// The policies of this version.
#[expect(
    clippy::expect_used,
    reason = "the file is part of the program and read by its tests; without it nothing may run code"
)]
fn expected() -> Vec<Expected> {
    serde_json::from_str(include_str!("policies.json"))
        .expect("the committed file is what a test wrote")
}

/// What a policy must know of this operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// The user name of its service account.
    pub username: String,
    /// The sidecar's image.
    pub image: String,
}

impl Own {
    /// The operator that is installed in `namespace`.
    pub fn new(namespace: &str, image: &str) -> Self {
        Self {
            username: format!("system:serviceaccount:{namespace}:{OPERATOR}"),
            image: image.to_owned(),
        }
    }
}

/// Looks after the policies.
pub struct Policies {
    client: Client,
    own: Own,
    expected: Vec<Expected>,
    /// The last look, and when it was begun.
    known: Mutex<Option<(Instant, Result<(), Refusal>)>>,
}

impl Policies {
    /// Of an operator that is `own`.
    pub fn new(client: Client, own: Own) -> Self {
        Self {
            client,
            own,
            expected: expected(),
            known: Mutex::new(None),
        }
    }

    /// Whether they are all in place, as of a moment ago; when not, they are waited for, for a moment.
    ///
    /// # Errors
    /// When the API server does not answer. What is not in place is the inner error.
    pub async fn in_place(&self) -> Result<Result<(), Refusal>, Error> {
        let came = Instant::now();
        let mut known = self.known.lock().await;
        // One that was begun since is as good as a look of one's own, however long it took.
        if let Some((asked, answer)) = known.as_ref()
            && (*asked >= came || asked.elapsed() < BELIEVED)
        {
            return Ok(answer.clone());
        }
        let began = Instant::now();
        loop {
            let asked = Instant::now();
            let answer = self.look().await?.map_err(|missing| refusal(&missing));
            if answer.is_ok() || began.elapsed() >= PATIENCE {
                *known = Some((asked, answer.clone()));
                return Ok(answer);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn look(&self) -> Result<Result<(), String>, Error> {
        let policies = ApiResource::erase::<ValidatingAdmissionPolicy>(&());
        let bindings = ApiResource::erase::<ValidatingAdmissionPolicyBinding>(&());
        let pairs = self.expected.iter().map(async |expected| {
            tokio::try_join!(
                self.read(&policies, &expected.name),
                self.read(&bindings, &expected.name)
            )
        });
        let found = futures::future::try_join_all(pairs).await?;
        for (expected, (policy, binding)) in self.expected.iter().zip(found) {
            let name = &expected.name;
            let wrong = match (policy, binding) {
                (Err(wrong), _) | (_, Err(wrong)) => Some(wrong),
                (Ok(policy), Ok(binding)) => weaker(&expected.spec, &policy.data["spec"], &self.own)
                    .map(|what| {
                        let version = policy.labels().get("app.kubernetes.io/version").cloned();
                        let version = version.unwrap_or_else(|| "unknown".to_owned());
                        format!(
                            "ValidatingAdmissionPolicy {name} (of version {version}; this operator is {}) is not what it should be: {what}",
                            env!("CARGO_PKG_VERSION")
                        )
                    })
                    .or_else(|| {
                        loose(name, &binding.data["spec"]).map(|what| {
                            format!("ValidatingAdmissionPolicyBinding {name} is not what it should be: {what}")
                        })
                    }),
            };
            if let Some(wrong) = wrong {
                return Ok(Err(wrong));
            }
        }
        Ok(Ok(()))
    }

    async fn read(
        &self,
        resource: &ApiResource,
        name: &str,
    ) -> Result<Result<DynamicObject, String>, Error> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), resource);
        let kind = &resource.kind;
        match patiently(|| format!("read {kind} {name}"), || api.get_opt(name)).await {
            Ok(Some(found)) if found.metadata.deletion_timestamp.is_none() => Ok(Ok(found)),
            Ok(_) => Ok(Err(format!("there is no {kind} {name}"))),
            Err(error) if error.code() == Some(403) => Ok(Err(format!(
                "{kind} {name} may not be read ({})",
                error.api().map_or("", |status| status.message.as_str())
            ))),
            Err(error) => Err(error),
        }
    }
}

fn refusal(missing: &str) -> Refusal {
    Refusal::new(
        Reason::PolicyDenied,
        format!(
            "the operator runs no code while the policies that hold requesters and itself are not in place: {missing}. Install or \
             upgrade the chart sidewinder with admissionPolicies.enabled, or, where an operator serves one namespace, the chart \
             sidewinder-cluster with that operator in `operators`; fences.requirePolicies=false does without"
        ),
    )
}

fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Absent, null, `{}`, `[]` and selectors that select everything.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_empty),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// In what a policy's spec holds less than it should. More validations, and more variables, hold no less; another
/// condition or selector might.
fn weaker(expected: &Value, found: &Value, own: &Own) -> Option<String> {
    if text(found, "failurePolicy") != "Fail" {
        return Some("failurePolicy is not Fail".to_owned());
    }
    if !is_empty(&found["paramKind"]) {
        return Some("it has a paramKind".to_owned());
    }
    let (wanted, matched) = (&expected["matchConstraints"], &found["matchConstraints"]);
    if rules(wanted) != rules(matched) || has_exceptions(matched) {
        return Some("matchConstraints match something else".to_owned());
    }
    let conditions = items(found, "matchConditions");
    if conditions.len() != items(expected, "matchConditions").len() {
        return Some("it has other matchConditions".to_owned());
    }
    let part = |list: &str, wanted: &Value, found: &[Value]| -> Option<String> {
        let wanted = text(wanted, "expression");
        let there = found
            .iter()
            .any(|found| same(wanted, text(found, "expression"), own));
        (!there).then(|| {
            format!(
                "its {list} lack `{}`",
                wanted
                    .replace(OPERATORS, &format!("[… '{}']", own.username))
                    .replace(IMAGES, &format!("[… '{}']", own.image))
            )
        })
    };
    for wanted in items(expected, "matchConditions") {
        if let Some(what) = part("matchConditions", wanted, conditions) {
            return Some(what);
        }
    }
    for wanted in items(expected, "variables") {
        let name = text(wanted, "name");
        let found: Vec<_> = items(found, "variables")
            .iter()
            .filter(|found| text(found, "name") == name)
            .cloned()
            .collect();
        if found.len() != 1 {
            return Some(format!("it has no variable {name}"));
        }
        if name != SETTING
            && let Some(what) = part("variables", wanted, &found)
        {
            return Some(what);
        }
    }
    items(expected, "validations")
        .iter()
        .find_map(|wanted| part("validations", wanted, items(found, "validations")))
}

/// What resource rules match, in an order of their own.
fn rules(constraints: &Value) -> Vec<String> {
    let mut rules: Vec<String> = items(constraints, "resourceRules")
        .iter()
        .map(|rule| {
            let list = |key: &str| {
                let mut words: Vec<_> = items(rule, key).iter().filter_map(Value::as_str).collect();
                words.sort_unstable();
                words.join(",")
            };
            let keys = [
                "apiGroups",
                "apiVersions",
                "operations",
                "resources",
                "resourceNames",
            ];
            let scope = rule["scope"].as_str().unwrap_or("*");
            format!("{} {scope}", keys.map(list).join(" "))
        })
        .collect();
    rules.sort_unstable();
    rules
}

/// Whether what rules match is narrowed by anything else.
fn has_exceptions(constraints: &Value) -> bool {
    let exact = !matches!(text(constraints, "matchPolicy"), "" | "Equivalent");
    let narrowed = [
        "excludeResourceRules",
        "namespaceSelector",
        "objectSelector",
    ]
    .iter()
    .any(|key| !is_empty(&constraints[*key]));
    exact || narrowed
}

/// In what a binding binds less than it should.
fn loose(policy: &str, binding: &Value) -> Option<String> {
    if text(binding, "policyName") != policy {
        return Some("it binds another policy".to_owned());
    }
    if !items(binding, "validationActions").contains(&Value::from("Deny")) {
        return Some("validationActions lack Deny".to_owned());
    }
    if !is_empty(&binding["paramRef"]) {
        return Some("it has a paramRef".to_owned());
    }
    let narrowed = &binding["matchResources"];
    if !items(narrowed, "resourceRules").is_empty() || has_exceptions(narrowed) {
        return Some("matchResources make exceptions".to_owned());
    }
    None
}

/// Whether an expression is the expected one, with lists in the places of [`OPERATORS`] and [`IMAGES`] that have ours.
fn same(expected: &str, found: &str, own: &Own) -> bool {
    let first = [(OPERATORS, &own.username), (IMAGES, &own.image)]
        .into_iter()
        .filter_map(|(place, ours)| Some((expected.find(place)?, place, ours)))
        .min();
    let Some((at, place, ours)) = first else {
        return expected == found;
    };
    let (before, after) = (&expected[..at], &expected[at + place.len()..]);
    let Some(rest) = found.strip_prefix(before) else {
        return false;
    };
    let Some((list, rest)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return false;
    };
    let words: Option<Vec<&str>> = list
        .split(", ")
        .map(|word| word.strip_prefix('\'')?.strip_suffix('\''))
        .collect();
    let plain = |word: &&str| {
        word.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._:/@".contains(&byte))
    };
    words.is_some_and(|words| words.iter().all(plain) && words.contains(&ours.as_str()))
        && same(after, rest, own)
}

#[cfg(test)]
pub(super) mod tests;
