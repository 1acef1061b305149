//! The committed YAML is what the types say.

#![expect(
    clippy::unwrap_used,
    reason = "in a test a panic is the report; clippy exempts only functions marked as tests, not what they call"
)]

use std::path::{Path, PathBuf};
use std::{env, fs};

use serde_json::{Value, json};
use sidewinder_crds::{ExecStatus, manifest, names};
use sidewinder_model::{ExecOutcome, Stacks};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Compares a committed file with what it should hold; with `UPDATE=1` in the environment it is written instead.
fn committed(path: &str, wanted: &str) {
    let file = root().join(path);
    if env::var_os("UPDATE").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, wanted).unwrap();
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == wanted,
        "{path} is not what the types say: run `UPDATE=1 cargo test -p sidewinder-crds --test manifest`"
    );
}

const GENERATED: &str =
    "Generated from crds/src by `UPDATE=1 cargo test -p sidewinder-crds --test manifest`.";

fn manifest_yaml() -> String {
    let mut crd = manifest::debug_sessions();
    crd["metadata"]["labels"] = json!({names::APP_LABEL: names::APP});
    format!("# {GENERATED}\n{}", serde_yaml::to_string(&crd).unwrap())
}

/// The same as a template, for both charts: an install for one namespace leaves it to the cluster's administrator.
/// Upgraded with the chart, and kept when the chart is uninstalled unless told otherwise.
fn chart_template() -> String {
    let crd = manifest::debug_sessions();
    let spec = serde_yaml::to_string(&json!({"spec": crd["spec"]})).unwrap();
    assert!(!spec.contains("{{"), "helm would take this for a template");
    format!(
        r#"{{{{- /* {GENERATED} */ -}}}}
{{{{- if and .Values.crds.install (not .Values.watchNamespace) }}}}
apiVersion: {api_version}
kind: {kind}
metadata:
  name: {name}
  labels:
    {{{{- include "sidewinder.labels" . | nindent 4 }}}}
  {{{{- if .Values.crds.keep }}}}
  annotations:
    helm.sh/resource-policy: keep
  {{{{- end }}}}
{spec}{{{{- end }}}}
"#,
        api_version = crd["apiVersion"].as_str().unwrap(),
        kind = crd["kind"].as_str().unwrap(),
        name = crd["metadata"]["name"].as_str().unwrap(),
    )
}

#[test]
fn the_manifest_is_generated_from_the_types() {
    committed("crds/manifests/debugsessions.yaml", &manifest_yaml());
}

#[test]
fn the_charts_copies_are_generated_from_the_types() {
    for chart in ["sidewinder", "sidewinder-cluster"] {
        let path = format!("charts/{chart}/templates/crd.yaml");
        committed(&path, &chart_template());
    }
}

#[test]
fn the_shared_names_are_the_types_own() {
    let crd = manifest::debug_sessions();
    assert_eq!(crd["spec"]["group"], names::GROUP);
    assert_eq!(crd["spec"]["versions"][0]["name"], names::VERSION);
    assert_eq!(crd["spec"]["names"]["kind"], names::KIND);
    assert_eq!(crd["spec"]["names"]["plural"], names::PLURAL);
    assert_eq!(crd["spec"]["names"]["shortNames"], json!(["pyds"]));
    assert_eq!(crd["spec"]["names"]["categories"], json!(["debug"]));
    assert_eq!(
        crd["spec"]["versions"][0]["selectableFields"],
        json!([{"jsonPath": ".spec.target.podName"}, {"jsonPath": ".status.phase"}])
    );
}

#[test]
fn every_field_but_cancel_is_immutable() {
    let crd = manifest::debug_sessions();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let rule = spec["x-kubernetes-validations"]
        .as_array()
        .unwrap()
        .iter()
        .find(|rule| {
            rule["message"]
                .as_str()
                .unwrap()
                .contains("cannot be changed")
        })
        .unwrap()["rule"]
        .as_str()
        .unwrap();
    for field in spec["properties"].as_object().unwrap().keys() {
        let equal = format!("self.{field} == oldSelf.{field}");
        let compared = rule.split(" && ").any(|part| part == equal)
            || rule.contains(&format!(
                "(has(self.{field}) ? has(oldSelf.{field}) && {equal} : !has(oldSelf.{field}))"
            ))
            // False and absent are the same.
            || rule.contains(&format!(
                "(has(self.{field}) && self.{field}) == (has(oldSelf.{field}) && oldSelf.{field})"
            ));
        assert_eq!(compared, field != "cancel", "{field}");
    }
}

#[test]
fn the_table_shows_the_answer_first_and_the_rest_when_wide() {
    let crd = manifest::debug_sessions();
    let columns = |wide: bool| -> Vec<String> {
        crd["spec"]["versions"][0]["additionalPrinterColumns"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|column| (column["priority"].as_i64() == Some(1)) == wide)
            .map(|column| column["name"].as_str().unwrap().to_uppercase())
            .collect()
    };
    assert_eq!(
        columns(false),
        ["TARGET", "ACTION", "PHASE", "SUMMARY", "AGE"]
    );
    assert_eq!(
        columns(true),
        ["REASON", "PODS", "NODE", "PYTHON", "DURATION"]
    );
}

/// Whatever the sidecar says about a script has a field in the status: the operator copies by name.
#[test]
fn the_status_has_every_field_of_an_exec_outcome() {
    let outcome = serde_json::to_value(ExecOutcome {
        stacks: Some(Stacks::default()),
        watched: true,
        ..ExecOutcome::default()
    })
    .unwrap();
    let crd = manifest::debug_sessions();
    let targets = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
        ["properties"]["targets"];
    let fields = &targets["items"]["properties"]["exec"]["properties"];
    for name in outcome.as_object().unwrap().keys() {
        assert!(fields.get(name).is_some(), "{name}");
    }
    // What became of it after the session's end is the operator's own.
    let own = |name: &&String| name.as_str() != "afterwards";
    assert_eq!(
        fields.as_object().unwrap().keys().filter(own).count(),
        outcome.as_object().unwrap().len()
    );
    serde_json::from_value::<ExecStatus>(outcome).unwrap();
}

/// What the API server refuses in a structural schema, or would answer with surprises.
#[test]
fn the_schema_is_structural() {
    fn check(path: &str, schema: &Value) {
        let Some(map) = schema.as_object() else {
            panic!("{path} is no schema: {schema}");
        };
        for word in ["oneOf", "anyOf", "allOf", "not", "nullable", "$ref"] {
            assert!(!map.contains_key(word), "{path} has {word}");
        }
        if map.get("x-kubernetes-int-or-string").is_none() {
            assert!(map["type"].is_string(), "{path} has no single type");
        }
        if let Some(format) = map.get("format") {
            let format = format.as_str().unwrap();
            assert!(
                ["int32", "int64", "date-time"].contains(&format),
                "{path} has the format {format}"
            );
        }
        if let Some(values) = map.get("enum") {
            let values = values.as_array().unwrap();
            assert!(values.iter().all(Value::is_string), "{path}: {values:?}");
        }
        if !path.is_empty() {
            assert!(
                map.get("description").is_some_and(Value::is_string),
                "{path} has no description"
            );
        }
        for (name, property) in map
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            check(&format!("{path}.{name}"), property);
        }
        if let Some(items) = map.get("items") {
            described_by_its_list(&format!("{path}[]"), items, check);
        }
        if let Some(values) = map.get("additionalProperties") {
            described_by_its_list(&format!("{path}{{}}"), values, check);
        }
    }

    fn described_by_its_list(path: &str, schema: &Value, check: fn(&str, &Value)) {
        let mut schema = schema.clone();
        schema
            .as_object_mut()
            .unwrap()
            .entry("description")
            .or_insert_with(|| "of its list".into());
        check(path, &schema);
    }

    check(
        "",
        &manifest::debug_sessions()["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
    );
}
