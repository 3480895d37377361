//! One YAML document to one object, or to what is wrong with it.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;

use super::problem::{FieldError, Position, Problem, Severity, did_you_mean};
use super::yaml::decode::{DecodeError, decode};
use super::yaml::{self, Node};
use super::{
    BackendTlsPolicy, ConfigMap, DEFAULT_NAMESPACE, Gateway, GatewayClass, GrpcRoute, HttpRoute, Ingress,
    IngressClass, Kind, ListenerSet, Mesh, Migration, Namespace, ObjectName, ObjectRef, Pool, ReferenceGrant,
    Secret, TcpRoute, TlsRoute, check,
};
use crate::compile;

/// An object of any kind, read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Object {
    BackendTlsPolicy(Arc<BackendTlsPolicy>),
    ConfigMap(Arc<ConfigMap>),
    Gateway(Arc<Gateway>),
    GatewayClass(Arc<GatewayClass>),
    GrpcRoute(Arc<GrpcRoute>),
    HttpRoute(Arc<HttpRoute>),
    Ingress(Arc<Ingress>),
    IngressClass(Arc<IngressClass>),
    ListenerSet(Arc<ListenerSet>),
    Mesh(Arc<Mesh>),
    Migration(Arc<Migration>),
    Namespace(Arc<Namespace>),
    Pool(Arc<Pool>),
    ReferenceGrant(Arc<ReferenceGrant>),
    Secret(Arc<Secret>),
    TcpRoute(Arc<TcpRoute>),
    TlsRoute(Arc<TlsRoute>),
}

/// Whose document it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity {
    /// An object of a kind that is read.
    Known(ObjectRef),
    /// An object of a kind that has nothing to do with us.
    Foreign,
    /// It cannot be told.
    Unknown,
}

/// A document of a file.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) identity: Identity,
    pub(super) at: Position,
    pub(super) outcome: Result<Object, Vec<Problem>>,
    /// For what is found later; empty where the text is no YAML.
    pub(super) tree: Option<Arc<Node>>,
}

/// Reads all documents of a file.
pub(super) fn read(file: &Arc<str>, text: &str) -> Vec<Document> {
    yaml::documents(text)
        .into_iter()
        .map(|document| match document {
            Ok(tree) => read_one(file, tree),
            Err(error) => {
                let problem = Problem {
                    file: file.clone(),
                    at: Some(error.at),
                    object: None,
                    field: String::new(),
                    value: None,
                    reason: "syntax",
                    message: format!("not YAML: {}", error.message),
                    severity: Severity::Error,
                };
                let outcome = Err(vec![problem]);
                Document { identity: Identity::Unknown, at: error.at, outcome, tree: None }
            }
        })
        .collect()
}

/// Reads one document.
pub(super) fn read_one(file: &Arc<str>, tree: Node) -> Document {
    let at = tree.at;
    let (identity, kind) = match identify(&tree) {
        Ok(object) => (Identity::Known(object.clone()), Ok(object)),
        Err((identity, error)) => (identity, Err(error)),
    };
    let outcome = match kind {
        Ok(object) => read_object(file, &tree, &object),
        Err(error) => Err(vec![located(file, &tree, None, error)]),
    };
    Document { identity, at, outcome, tree: Some(Arc::new(tree)) }
}

/// A field's error with the place where the field is written.
pub(super) fn located(
    file: &Arc<str>,
    tree: &Node,
    object: Option<&ObjectRef>,
    FieldError { field, reason, message }: FieldError,
) -> Problem {
    let (at, node) = tree.locate(&field);
    let value = if field.is_empty() { None } else { node.and_then(Node::shown) };
    Problem {
        file: file.clone(),
        // What came from an API server has no lines.
        at: (at != Position::default()).then_some(at),
        object: object.cloned(),
        field,
        value,
        reason,
        message,
        severity: Severity::Error,
    }
}

fn identify(tree: &Node) -> Result<ObjectRef, (Identity, FieldError)> {
    let unknown = |error| (Identity::Unknown, error);
    if !matches!(tree.value, yaml::Value::Map(_)) {
        let message = "expected an object with apiVersion, kind, metadata and spec";
        return Err(unknown(FieldError::new("", "wrong_type", message)));
    }
    let text = |key: &str| match tree.get(key) {
        None => Err(unknown(FieldError::new(key, "missing_field", format!("{key} is missing")))),
        Some(node) => node.as_str().ok_or_else(|| {
            unknown(FieldError::new(key, "wrong_type", "expected a string; put it in quotes"))
        }),
    };
    let kind_text = text("kind")?;
    let api_version = text("apiVersion")?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == kind_text);
    let kind = match kind {
        Some(kind) if kind.is_read_as(api_version) => kind,
        _ => return Err(other_kind(kind, kind_text, api_version)),
    };
    let metadata = |key: &str| tree.get("metadata").and_then(|metadata| metadata.get(key));
    let checked = |key: &str| match metadata(key) {
        None => Ok(None),
        Some(node) => {
            let field = format!("metadata.{key}");
            let text = node.as_str().ok_or_else(|| {
                unknown(FieldError::new(&field, "wrong_type", "expected a string; put it in quotes"))
            })?;
            check::name(text)
                .map_err(|message| unknown(FieldError::new(&field, "invalid_value", message)))?;
            Ok(Some(text))
        }
    };
    let name = checked("name")?.ok_or_else(|| {
        unknown(FieldError::new("metadata.name", "missing_field", "metadata.name is missing"))
    })?;
    let namespace = checked("namespace")?.unwrap_or(DEFAULT_NAMESPACE);
    let namespace = if kind.is_namespaced() { namespace } else { "" };
    Ok(ObjectRef { kind, name: ObjectName::new(namespace, name) })
}

fn other_kind(kind: Option<Kind>, text: &str, api_version: &str) -> (Identity, FieldError) {
    if let Some(kind) = kind {
        let message = format!("expected {} for a {kind}", kind.api_version());
        return (Identity::Unknown, FieldError::new("apiVersion", "unsupported_version", message));
    }
    let group = api_version.split('/').next().unwrap_or_default();
    let ours = matches!(group, "pontoon.dev" | "gateway.networking.k8s.io");
    let known = Kind::ALL.map(Kind::as_str);
    let hint = match did_you_mean(text, known) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("known kinds: {}", known.join(", ")),
    };
    let identity = if ours { Identity::Unknown } else { Identity::Foreign };
    let message = format!("objects of kind {text} ({api_version}) are not read here; {hint}");
    (identity, FieldError::new("kind", "unsupported_kind", message))
}

fn read_object(file: &Arc<str>, tree: &Node, object: &ObjectRef) -> Result<Object, Vec<Problem>> {
    let problems = |errors: Vec<FieldError>| {
        errors.into_iter().map(|error| located(file, tree, Some(object), error)).collect::<Vec<_>>()
    };
    let (read, errors) = match object.kind {
        Kind::BackendTlsPolicy => {
            let policy = typed(file, tree, object, |o: &mut BackendTlsPolicy| &mut o.metadata)?;
            (Object::BackendTlsPolicy(Arc::new(policy)), Vec::new())
        }
        Kind::ConfigMap => {
            let map = typed(file, tree, object, |o: &mut ConfigMap| &mut o.metadata)?;
            (Object::ConfigMap(Arc::new(map)), Vec::new())
        }
        Kind::GatewayClass => {
            let class = typed(file, tree, object, |o: &mut GatewayClass| &mut o.metadata)?;
            (Object::GatewayClass(Arc::new(class)), Vec::new())
        }
        Kind::GrpcRoute => {
            let route = typed(file, tree, object, |o: &mut GrpcRoute| &mut o.metadata)?;
            let errors = compile::invalid_grpc_route(&route);
            (Object::GrpcRoute(Arc::new(route)), errors)
        }
        Kind::Ingress => {
            let ingress = typed(file, tree, object, |o: &mut Ingress| &mut o.metadata)?;
            (Object::Ingress(Arc::new(ingress)), Vec::new())
        }
        Kind::IngressClass => {
            let class = typed(file, tree, object, |o: &mut IngressClass| &mut o.metadata)?;
            (Object::IngressClass(Arc::new(class)), Vec::new())
        }
        Kind::ListenerSet => {
            let set = typed(file, tree, object, |o: &mut ListenerSet| &mut o.metadata)?;
            (Object::ListenerSet(Arc::new(set)), Vec::new())
        }
        Kind::Mesh => {
            let mesh = typed(file, tree, object, |o: &mut Mesh| &mut o.metadata)?;
            (Object::Mesh(Arc::new(mesh)), Vec::new())
        }
        Kind::Namespace => {
            let namespace = typed(file, tree, object, |o: &mut Namespace| &mut o.metadata)?;
            (Object::Namespace(Arc::new(namespace)), Vec::new())
        }
        Kind::ReferenceGrant => {
            let grant = typed(file, tree, object, |o: &mut ReferenceGrant| &mut o.metadata)?;
            (Object::ReferenceGrant(Arc::new(grant)), Vec::new())
        }
        Kind::TcpRoute => {
            let route = typed(file, tree, object, |o: &mut TcpRoute| &mut o.metadata)?;
            (Object::TcpRoute(Arc::new(route)), Vec::new())
        }
        Kind::TlsRoute => {
            let route = typed(file, tree, object, |o: &mut TlsRoute| &mut o.metadata)?;
            (Object::TlsRoute(Arc::new(route)), Vec::new())
        }
        Kind::Gateway => {
            let gateway = typed(file, tree, object, |o: &mut Gateway| &mut o.metadata)?;
            let errors = compile::invalid_gateway(&gateway);
            (Object::Gateway(Arc::new(gateway)), errors)
        }
        Kind::HttpRoute => {
            let route = typed(file, tree, object, |o: &mut HttpRoute| &mut o.metadata)?;
            let errors = compile::invalid_http_route(&route);
            (Object::HttpRoute(Arc::new(route)), errors)
        }
        Kind::Migration => {
            let migration = typed(file, tree, object, |o: &mut Migration| &mut o.metadata)?;
            let errors = check::migration(&migration.spec);
            (Object::Migration(Arc::new(migration)), errors)
        }
        Kind::Pool => {
            let pool = typed(file, tree, object, |o: &mut Pool| &mut o.metadata)?;
            let errors = check::pool(&pool.spec);
            (Object::Pool(Arc::new(pool)), errors)
        }
        Kind::Secret => {
            let secret = typed(file, tree, object, |o: &mut Secret| &mut o.metadata);
            let secret = secret.map_err(|problems| {
                // What is wrong may be the secret itself.
                problems.into_iter().map(|problem| Problem { value: None, ..problem }).collect::<Vec<_>>()
            })?;
            let errors = super::secret::check(&secret);
            (Object::Secret(Arc::new(secret)), errors)
        }
    };
    if errors.is_empty() { Ok(read) } else { Err(problems(errors)) }
}

/// Reads the type; a `status` that came along from a cluster is none of the user's writing and not read.
fn typed<T: DeserializeOwned>(
    file: &Arc<str>,
    tree: &Node,
    object: &ObjectRef,
    metadata: impl Fn(&mut T) -> &mut ObjectMeta,
) -> Result<T, Vec<Problem>> {
    let mut read: T = decode(tree, &["apiVersion", "kind", "status"]).map_err(|errors| {
        let problem = |error: DecodeError| Problem {
            file: file.clone(),
            at: Some(error.at),
            object: Some(object.clone()),
            field: error.field,
            value: error.value,
            reason: error.reason,
            message: error.message,
            severity: Severity::Error,
        };
        errors.into_iter().map(problem).collect::<Vec<_>>()
    })?;
    if object.kind.is_namespaced() {
        metadata(&mut read).namespace.get_or_insert_with(|| object.name.namespace.to_string());
    }
    Ok(read)
}
