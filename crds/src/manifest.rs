//! The `CustomResourceDefinition` as it is installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::DebugSession;

/// The `CustomResourceDefinition` of `debugsessions.sidewinder.dev` as JSON, ready to be applied.
///
/// It is what the types say, except that nothing is `nullable`: the API server then drops an explicit `null` before
/// its rules look at the object, so `stacks: null` is an absent action and not a present one.
pub fn debug_sessions() -> Value {
    let crd: CustomResourceDefinition = DebugSession::crd();
    let mut value = serde_json::to_value(crd).unwrap_or_default();
    remove_nullable(&mut value);
    value
}

fn remove_nullable(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("nullable") == Some(&Value::Bool(true)) {
                map.remove("nullable");
            }
            map.values_mut().for_each(remove_nullable);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nullable),
        _ => {}
    }
}
