//! The CustomResourceDefinitions of our own kinds, made from the types that read them: what the API server lets in is
//! what `pontoon validate` lets in, as far as a schema can say it.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};
use twox_hash::XxHash64;

use crate::migration::keeper::HISTORY;
use crate::migration::stage::State;
use crate::objects::kubernetes::store::STATE;
use crate::objects::{Migration, Pool};

/// Tells a definition from those of other versions of this program: a sum of its `spec`.
pub const DEFINITION: &str = "pontoon.dev/definition";
/// What is said of an object in its status; as the Gateway API has it.
const CONDITIONS: &str = "conditions";

/// Each definition under its file name, as YAML.
///
/// # Errors
/// When a type has a schema that is none: a fault of ours.
pub fn all() -> Result<Vec<(String, String)>, serde_json::Error> {
    let age = json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" });
    let accepted = condition_column("Accepted", 1);
    let migrations = [
        json!({ "name": "Service", "type": "string", "jsonPath": ".spec.service" }),
        json!({ "name": "Stage", "type": "string", "jsonPath": format!(".status.{STATE}.position.stage") }),
        json!({
            "name": "Weight", "type": "integer", "jsonPath": format!(".status.{STATE}.position.weight"),
            "description": "The target's share in stage split, in hundredths of a percent.",
        }),
        condition_column("InForce", 0),
        accepted.clone(),
        age.clone(),
    ];
    let state = json!({
        STATE: schema_of::<State>(),
        HISTORY: {
            "type": "array", "items": { "type": "string" }, "x-kubernetes-list-type": "atomic",
            "description": "The last changes, oldest first: JSON, each with the hash of the one before.",
        },
    });
    let rules = [
        (
            "!has(self.stage) || self.stage != 'split' || has(self.key)",
            "stage split needs key: what tells users apart",
        ),
        (
            "!has(self.legacy.pool) || !has(self.target.pool) || self.legacy.pool != self.target.pool",
            "legacy and target are the same pool",
        ),
    ];
    let endpoints = json!({ "endpoints": {
        "type": "integer", "format": "int64",
        "description": "How many take traffic; not said of a DNS name, which the proxies look up.",
    } });
    let pools =
        [json!({ "name": "Endpoints", "type": "integer", "jsonPath": ".status.endpoints" }), accepted, age];
    let definitions = [
        finish(Migration::crd(), &["mig"], &migrations, &rules, state)?,
        finish(Pool::crd(), &["pl"], &pools, &[], endpoints)?,
    ];
    let file = |definition: Value| {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        (format!("{name}.yaml"), yaml(&definition))
    };
    Ok(definitions.into_iter().map(file).collect())
}

fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).unwrap_or_default()
}

fn condition_column(condition: &str, priority: i64) -> Value {
    let path = format!(".status.{CONDITIONS}[?(@.type==\"{condition}\")].status");
    json!({ "name": condition, "type": "string", "jsonPath": path, "priority": priority })
}

/// Adds to the definition what the type does not say.
fn finish(
    definition: CustomResourceDefinition,
    short_names: &[&str],
    columns: &[Value],
    rules: &[(&str, &str)],
    status: Value,
) -> Result<Value, serde_json::Error> {
    let mut definition = serde_json::to_value(definition)?;
    definition["spec"]["names"]["shortNames"] = json!(short_names);
    definition["spec"]["names"]["categories"] = json!(["pontoon"]);
    let version = &mut definition["spec"]["versions"][0];
    version["subresources"] = json!({ "status": {} });
    version["additionalPrinterColumns"] = json!(columns);
    let properties = &mut version["schema"]["openAPIV3Schema"]["properties"];
    let mut spec = properties["spec"].take();
    structural(&mut spec);
    add_rules(&mut spec, rules.iter().map(|(rule, message)| ((*rule).to_owned(), (*message).to_owned())));
    properties["spec"] = spec;
    properties["status"] = status_schema(status);
    let sum = XxHash64::oneshot(0, definition["spec"].to_string().as_bytes());
    // Never a number, as YAML reads it.
    definition["metadata"]["annotations"] = json!({ DEFINITION: format!("x{sum:016x}") });
    Ok(definition)
}

fn status_schema(own: Value) -> Value {
    let time = json!({ "type": "string", "format": "date-time" });
    let mut properties = json!({
        "observedGeneration": { "type": "integer", "format": "int64" },
        CONDITIONS: {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "type": "object",
                "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                "properties": {
                    "type": { "type": "string" },
                    "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                    "observedGeneration": { "type": "integer", "format": "int64" },
                    "lastTransitionTime": time,
                    "reason": { "type": "string" },
                    "message": { "type": "string" },
                },
            },
        },
    });
    if let (Some(properties), Value::Object(own)) = (properties.as_object_mut(), own) {
        properties.extend(own);
    }
    json!({ "type": "object", "description": "Written by the control plane.", "properties": properties })
}

fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let settings = settings
        .with_transform(schemars::transform::AddNullable::default())
        .with_transform(kube::core::schema::StructuralSchemaRewriter);
    let mut schema = SchemaGenerator::new(settings).into_root_schema_for::<T>().to_value();
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("title");
    }
    structural(&mut schema);
    schema
}

/// "Exactly one of these" becomes a rule with a message that says so; formats that the API server does not know go.
fn structural(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(structural);
            if map.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                map.remove("format");
            }
            if let Some(choices) = map.get("oneOf").and_then(choices) {
                map.remove("oneOf");
                let set = choices.iter().map(|field| format!("has(self.{field})")).collect::<Vec<_>>();
                let rule = format!("[{}].filter(set, set).size() == 1", set.join(", "));
                let message = format!("expected exactly one of {}", choices.join(", "));
                add_rules(schema, [(rule, message)]);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(structural),
        _ => {}
    }
}

/// The fields of which exactly one is to be there.
fn choices(one_of: &Value) -> Option<Vec<String>> {
    let of_one = |branch: &Value| match branch.as_object()?.iter().collect::<Vec<_>>().as_slice() {
        [(key, Value::Array(fields))] if *key == "required" => match fields.as_slice() {
            [Value::String(field)] => Some(field.clone()),
            _ => None,
        },
        _ => None,
    };
    one_of.as_array()?.iter().map(of_one).collect()
}

fn add_rules(schema: &mut Value, rules: impl IntoIterator<Item = (String, String)>) {
    let Some(map): Option<&mut Map<String, Value>> = schema.as_object_mut() else { return };
    let all = map.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
    let Some(all) = all.as_array_mut() else { return };
    all.extend(rules.into_iter().map(|(rule, message)| json!({ "rule": rule, "message": message })));
    if all.is_empty() {
        map.remove("x-kubernetes-validations");
    }
}
