//! The table of `crds/tests/sessions.yaml`, evaluated without a cluster: the rules by kube's CEL, the bounds by the
//! few keywords the schema uses.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{DebugSession, manifest, names};

#[derive(Deserialize)]
struct Table {
    create: Vec<Create>,
    update: Vec<Update>,
}

#[derive(Deserialize)]
struct Create {
    name: String,
    spec: Value,
    script: Option<Repeated>,
    refused: Option<String>,
}

#[derive(Deserialize)]
struct Repeated {
    repeat: String,
    times: usize,
}

#[derive(Deserialize)]
struct Update {
    name: String,
    old: Value,
    new: Value,
    refused: Option<String>,
}

fn table() -> Table {
    serde_yaml::from_str(include_str!("../../tests/sessions.yaml")).unwrap()
}

/// The object as the API server would look at it: without nulls.
fn session(spec: &Value) -> Value {
    fn without_nulls(value: &Value) -> Value {
        match value {
            Value::Object(map) => map
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key.clone(), without_nulls(value)))
                .collect(),
            other => other.clone(),
        }
    }
    json!({
        "apiVersion": format!("{}/{}", names::GROUP, names::VERSION),
        "kind": names::KIND,
        "metadata": {"name": "a", "namespace": "b"},
        "spec": without_nulls(spec),
    })
}

/// Every complaint about `value`, each with the path it is about.
fn out_of_bounds(path: &str, value: &Value, schema: &Value, complaints: &mut Vec<String>) {
    let mut complain = |what: String| complaints.push(format!("{path}: {what}"));
    let number = |keyword: &str| schema.get(keyword).and_then(Value::as_f64);
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => {
            let Some(map) = value.as_object() else {
                return complain("must be an object".into());
            };
            for name in schema
                .get("required")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                if !map.contains_key(name.as_str().unwrap()) {
                    complain(format!("{name} is required"));
                }
            }
            let properties = schema.get("properties").unwrap_or(&Value::Null);
            for (name, property) in map {
                if let Some(schema) = properties.get(name) {
                    out_of_bounds(&format!("{path}.{name}"), property, schema, complaints);
                }
            }
        }
        Some("string") => {
            let Some(text) = value.as_str() else {
                return complain("must be a string".into());
            };
            #[expect(clippy::cast_precision_loss, reason = "lengths here are small")]
            let length = text.chars().count() as f64;
            if number("minLength").is_some_and(|least| length < least)
                || number("maxLength").is_some_and(|most| length > most)
            {
                complain(format!(
                    "{length} characters, at most {:?} bytes",
                    number("maxLength")
                ));
            }
            if let Some(values) = schema.get("enum").and_then(Value::as_array)
                && !values.contains(value)
            {
                complain(format!("must be one of {values:?}"));
            }
        }
        Some("integer") => match value.as_i64() {
            #[expect(clippy::cast_precision_loss, reason = "numbers here are small")]
            Some(given) => {
                if number("minimum").is_some_and(|least| (given as f64) < least)
                    || number("maximum").is_some_and(|most| given as f64 > most)
                {
                    complain(format!("{given} is out of bounds"));
                }
            }
            None => complain("must be an integer".into()),
        },
        Some("boolean") if !value.is_boolean() => complain("must be true or false".into()),
        _ => {}
    }
}

/// Everything that is wrong with a session of this spec, as one text; empty when it is accepted.
fn complaints(new: &Value, old: Option<&Value>) -> String {
    let crd = manifest::debug_sessions();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut complaints = Vec::new();
    let object = session(new);
    out_of_bounds("", &object, schema, &mut complaints);
    let Ok(typed) = serde_json::from_value::<DebugSession>(object) else {
        // The types take whatever the bounds take; what they refuse beyond that, the rules must refuse too.
        let error = serde_json::from_value::<DebugSession>(session(new)).unwrap_err();
        complaints.push(error.to_string());
        return complaints.join("\n");
    };
    let result = match old {
        None => typed.validate_cel(),
        Some(old) => typed.validate_cel_update(&serde_json::from_value(session(old)).unwrap()),
    };
    if let Err(errors) = result {
        complaints.push(errors.to_string());
    }
    complaints.join("\n")
}

fn check(name: &str, found: &str, refused: Option<&String>) {
    match refused {
        None => assert!(found.is_empty(), "{name}: {found}"),
        Some(part) => assert!(
            found.contains(part),
            "{name}: expected {part:?}, got {found:?}"
        ),
    }
}

#[test]
fn sessions_are_accepted_and_refused_as_the_table_says() {
    for case in table().create {
        let mut spec = case.spec;
        if let Some(script) = case.script {
            spec["remoteExec"]["script"] = script.repeat.repeat(script.times).into();
        }
        check(&case.name, &complaints(&spec, None), case.refused.as_ref());
    }
}

#[test]
fn changes_are_accepted_and_refused_as_the_table_says() {
    for case in table().update {
        check(
            &case.name,
            &complaints(&case.new, Some(&case.old)),
            case.refused.as_ref(),
        );
    }
}
