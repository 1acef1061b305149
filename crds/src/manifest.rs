//! The `CustomResourceDefinition` as it is installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::DebugSession;

/// The `CustomResourceDefinition` of `debugsessions.sidewinder.dev` as JSON, ready to be applied.
///
/// It is what the types say, except that nothing is `nullable`: the API server then drops an explicit `null` before
/// its rules look at the object, so `stacks: null` is an absent action and not a present one. And a description is one
/// line for each paragraph: `kubectl explain` breaks lines itself.
pub fn debug_sessions() -> Value {
    let crd: CustomResourceDefinition = DebugSession::crd();
    let mut value = serde_json::to_value(crd).unwrap_or_default();
    adapt(&mut value);
    value
}

fn adapt(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("nullable") == Some(&Value::Bool(true)) {
                map.remove("nullable");
            }
            if let Some(Value::String(description)) = map.get_mut("description") {
                *description = one_line_per_paragraph(description);
            }
            map.values_mut().for_each(adapt);
        }
        Value::Array(items) => items.iter_mut().for_each(adapt),
        _ => {}
    }
}

fn one_line_per_paragraph(text: &str) -> String {
    text.split("\n\n")
        .map(|paragraph| paragraph.replace('\n', " "))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paragraph_becomes_a_line() {
        assert_eq!(one_line_per_paragraph("a\nb\n\nc"), "a b\nc");
    }

    #[test]
    fn a_property_called_description_is_left_alone() {
        let mut schema = serde_json::json!({"properties": {"description": {"type": "string", "nullable": true}}});
        adapt(&mut schema);
        assert_eq!(
            schema,
            serde_json::json!({"properties": {"description": {"type": "string"}}})
        );
    }
}
