//! The API server's question about a pod, and the answer: a JSON patch.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Outcome, Settings, inject};

/// Answers an `AdmissionReview` of `admission.k8s.io/v1`. None: it is not one.
pub fn answer(review: &Value, settings: &Settings) -> Option<Value> {
    let request = review.get("request")?;
    let uid = request["uid"].as_str()?;
    let pod = request.get("object")?;
    let mut response = json!({ "uid": uid, "allowed": true });
    // The rules of the webhook name pods alone; what else comes is let pass.
    if request["kind"]["kind"] == "Pod" && pod["spec"].is_object() {
        let mut injected = pod.clone();
        match inject(&mut injected, settings) {
            Ok(Outcome::Injected(warnings)) => {
                response["patchType"] = json!("JSONPatch");
                response["patch"] = json!(STANDARD.encode(Value::Array(patch(pod, &injected)).to_string()));
                if !warnings.is_empty() {
                    response["warnings"] = json!(warnings);
                }
            }
            Ok(Outcome::Left(left)) => response["warnings"] = json!([left.to_string()]),
            Err(error) => {
                response["allowed"] = json!(false);
                let message = format!("pontoon: {error}");
                response["status"] = json!({ "message": message, "reason": "Invalid", "code": 422 });
            }
        }
    }
    Some(reviewed(response))
}

/// A whole answer.
pub(crate) fn reviewed(response: Value) -> Value {
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
}

/// What has changed: fields of `metadata` and `spec`, each as a whole. There is but one writer between the question
/// and the answer, so nothing finer is needed.
fn patch(before: &Value, after: &Value) -> Vec<Value> {
    let mut patch = Vec::new();
    for part in ["metadata", "spec"] {
        let Some(fields) = after[part].as_object() else { continue };
        if !before[part].is_object() {
            patch.push(json!({ "op": "add", "path": format!("/{part}"), "value": after[part] }));
            continue;
        }
        for (name, value) in fields.iter().filter(|(name, value)| before[part].get(name) != Some(value)) {
            // "add" replaces what is there.
            patch.push(json!({ "op": "add", "path": format!("/{part}/{name}"), "value": value }));
        }
    }
    patch
}
