//! Files of workloads: which of their documents have a pod in them, and where.

use serde_json::{Map, Number, Value};

use super::{InvalidAnnotation, Left, Outcome, Settings, inject, warnings};
use crate::objects::yaml::{self, Node, SyntaxError};

/// Kinds whose pods are made from a template at this pointer.
const TEMPLATES: [(&str, &str); 7] = [
    ("Deployment", "/spec/template"),
    ("StatefulSet", "/spec/template"),
    ("DaemonSet", "/spec/template"),
    ("ReplicaSet", "/spec/template"),
    ("ReplicationController", "/spec/template"),
    ("Job", "/spec/template"),
    ("CronJob", "/spec/jobTemplate/spec/template"),
];

/// What is to be said of a document: that it was left as it is, or what in it has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// `Kind/name`.
    pub object: String,
    /// For people.
    pub said: String,
}

/// An object that cannot be given a sidecar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {source}")]
pub struct WorkloadError {
    /// `Kind/name`.
    pub object: String,
    /// Why not.
    pub source: InvalidAnnotation,
}

/// The objects of a YAML file, with all that they say.
///
/// # Errors
/// When the text is no YAML.
pub fn read(text: &str) -> Result<Vec<Value>, SyntaxError> {
    yaml::documents(text).into_iter().map(|document| document.map(json)).collect()
}

fn json(node: Node) -> Value {
    match node.value {
        yaml::Value::Null => Value::Null,
        yaml::Value::Bool(value) => Value::Bool(value),
        yaml::Value::Int(value) => Number::from_i128(value).map_or(Value::Null, Value::Number),
        yaml::Value::Float(value) => Number::from_f64(value).map_or(Value::Null, Value::Number),
        yaml::Value::String(value) => Value::String(value),
        yaml::Value::Seq(items) => items.into_iter().map(json).collect(),
        yaml::Value::Map(entries) => {
            let entries = entries.into_iter().map(|(key, value)| (key.text, json(value)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
    }
}

/// Gives every pod of an object its sidecar; of a `List`, of every object in it. Other kinds stay as they are, which
/// is said of those with a pod in them.
///
/// # Errors
/// When an annotation cannot be used.
pub fn inject_object(object: &mut Value, settings: &Settings) -> Result<Vec<Note>, WorkloadError> {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    if kind == "List" {
        let mut notes = Vec::new();
        for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
            notes.extend(inject_object(item, settings)?);
        }
        return Ok(notes);
    }
    let name = format!("{kind}/{}", object["metadata"]["name"].as_str().unwrap_or_default());
    let pod = match TEMPLATES.iter().find(|(of, _)| *of == kind) {
        Some((_, pointer)) => object.pointer_mut(pointer),
        None if kind == "Pod" => Some(object),
        None => {
            let unknown = has_pod(object).then(|| Left::UnknownKind.to_string());
            // The webhook heeds it.
            let label = if kind == "Namespace" { warnings::label(object) } else { None };
            let said = unknown.into_iter().chain(label);
            return Ok(said.map(|said| Note { object: name.clone(), said }).collect());
        }
    };
    let outcome = match pod.filter(|pod| pod["spec"].is_object()) {
        Some(pod) => inject(pod, settings),
        None => Ok(Outcome::Left(Left::NoPod)),
    };
    let said = match outcome {
        Ok(Outcome::Injected(warnings)) => warnings,
        Ok(Outcome::Left(left)) => vec![left.to_string()],
        Err(source) => return Err(WorkloadError { object: name, source }),
    };
    Ok(said.into_iter().map(|said| Note { object: name.clone(), said }).collect())
}

/// Whether there is a pod, or the template of one, anywhere in an object.
fn has_pod(object: &Value) -> bool {
    match object {
        Value::Object(fields) => object["spec"]["containers"].is_array() || fields.values().any(has_pod),
        Value::Array(items) => items.iter().any(has_pod),
        _ => false,
    }
}
