//! JSON Schemas of the kinds, made from the types that read them, for editors and for people. As the reader
//! does, they allow no field that the type does not have.

use gateway_api::experimental;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::Kind;
use super::migration::MigrationSpec;
use super::pool::PoolSpec;

/// Each kind's schema under its file name.
pub fn all() -> Vec<(String, Value)> {
    Kind::ALL
        .into_iter()
        .map(|kind| {
            let spec = match kind {
                Kind::Secret => return ("secret.json".to_owned(), secret_schema()),
                Kind::ConfigMap => return ("configmap.json".to_owned(), config_map_schema()),
                Kind::Namespace => return ("namespace.json".to_owned(), namespace_schema()),
                Kind::BackendTlsPolicy => {
                    spec_schema::<gateway_api::backendtlspolicies::BackendTlsPolicySpec>()
                }
                Kind::Gateway => spec_schema::<gateway_api::gateways::GatewaySpec>(),
                Kind::GatewayClass => spec_schema::<gateway_api::gatewayclasses::GatewayClassSpec>(),
                Kind::GrpcRoute => spec_schema::<gateway_api::grpcroutes::GrpcRouteSpec>(),
                Kind::HttpRoute => spec_schema::<experimental::httproutes::HttpRouteSpec>(),
                Kind::Ingress => spec_schema::<k8s_openapi::api::networking::v1::IngressSpec>(),
                Kind::IngressClass => spec_schema::<k8s_openapi::api::networking::v1::IngressClassSpec>(),
                Kind::ListenerSet => spec_schema::<gateway_api::listenersets::ListenerSetSpec>(),
                Kind::Mesh => spec_schema::<experimental::xmeshes::XMeshSpec>(),
                Kind::ReferenceGrant => spec_schema::<gateway_api::referencegrants::ReferenceGrantSpec>(),
                Kind::TcpRoute => spec_schema::<experimental::tcproutes::TcpRouteSpec>(),
                Kind::TlsRoute => spec_schema::<gateway_api::tlsroutes::TlsRouteSpec>(),
                Kind::Migration => spec_schema::<MigrationSpec>(),
                Kind::Pool => spec_schema::<PoolSpec>(),
            };
            (format!("{}.json", kind.as_str().to_lowercase()), object_schema(kind, spec))
        })
        .collect()
}

fn spec_schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = SchemaGenerator::new(settings).into_root_schema_for::<T>().to_value();
    close(&mut schema);
    schema
}

/// Refuses unknown fields at every level that names its fields.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(close);
            let fields = map.get("properties").is_some_and(Value::is_object);
            if fields && map.contains_key("type") && !map.contains_key("additionalProperties") {
                map.insert("additionalProperties".into(), Value::Bool(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// A `ConfigMap` has no `spec`.
fn config_map_schema() -> Value {
    let mut schema = object_schema(Kind::ConfigMap, json!({}));
    let texts = |description: &str| json!({ "type": "object", "additionalProperties": { "type": "string" }, "description": description });
    let fields = [
        ("data", texts("ca.crt: the certificates of authorities, as PEM.")),
        ("binaryData", texts("Not read.")),
        ("immutable", json!({ "type": "boolean", "description": "Not read." })),
    ];
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.remove("spec");
        properties.extend(fields.map(|(name, field)| (name.to_owned(), field)));
    }
    schema["required"] = json!(["apiVersion", "kind", "metadata"]);
    schema
}

/// Of a `Namespace` only the labels count.
fn namespace_schema() -> Value {
    let mut schema = object_schema(Kind::Namespace, json!({ "description": "Not read." }));
    schema["required"] = json!(["apiVersion", "kind", "metadata"]);
    schema
}

/// A `Secret` has no `spec`.
fn secret_schema() -> Value {
    let mut schema = object_schema(Kind::Secret, json!({}));
    let texts = |description: &str| json!({ "type": "object", "additionalProperties": { "type": "string" }, "description": description });
    let fields = [
        (
            "type",
            json!({ "type": "string", "description": "kubernetes.io/tls for a listener's certificate." }),
        ),
        ("data", texts("tls.crt and tls.key as PEM, in base64.")),
        ("stringData", texts("tls.crt and tls.key as PEM. Goes before data.")),
        ("immutable", json!({ "type": "boolean", "description": "Not read." })),
    ];
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.remove("spec");
        properties.extend(fields.map(|(name, field)| (name.to_owned(), field)));
    }
    schema["required"] = json!(["apiVersion", "kind", "metadata", "type"]);
    schema
}

fn object_schema(kind: Kind, mut spec: Value) -> Value {
    let description = spec.as_object_mut().and_then(|spec| spec.remove("description"));
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("title");
    }
    let name = json!({ "type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253 });
    let texts = json!({ "type": "object", "additionalProperties": { "type": "string" } });
    let mut schema = Map::new();
    schema.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".into(), json!(kind.as_str()));
    if let Some(description) = description {
        schema.insert("description".into(), description);
    }
    schema.insert("type".into(), json!("object"));
    schema.insert("required".into(), json!(["apiVersion", "kind", "metadata", "spec"]));
    schema.insert("additionalProperties".into(), json!(false));
    let properties = json!({
        "apiVersion": { "const": kind.api_version() },
        "kind": { "const": kind.as_str() },
        "metadata": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": name,
                "namespace": name,
                "labels": texts,
                "annotations": texts,
            },
        },
        "spec": spec,
        "status": { "description": "Not read." },
    });
    schema.insert("properties".into(), properties);
    Value::Object(schema)
}
