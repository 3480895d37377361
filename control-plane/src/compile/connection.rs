//! A `TCPRoute` or `TLSRoute`: where the connections of a listener, or of a host on it, go.

use std::collections::BTreeSet;

use super::INVALID;
use super::backend::{self, Splits};
use super::policy::{self, Target};
use super::reference::Backend;
use super::status::ConditionType;
use crate::model::upstream::Upstream;
use crate::objects::problem::FieldError;
use crate::objects::{Kind, ObjectName, ObjectRef, Objects, TcpRoute, TlsRoute};

/// A route of connections.
#[derive(Debug, Clone)]
pub(super) struct Compiled {
    /// Of two routes for the same connections the lesser counts: the older, then the first by name.
    pub(super) order: (jiff::Timestamp, ObjectName),
    /// Clusters by weight; `None`: there is no such route.
    pub(super) destination: Option<Vec<(Upstream, u32)>>,
    /// What policies hold for here.
    pub(super) targets: BTreeSet<Target>,
    pub(super) errors: Vec<(ConditionType, FieldError)>,
}

/// Compiles a `TCPRoute`.
pub(super) fn tcp(objects: &Objects, splits: &Splits, name: &ObjectName, object: &TcpRoute) -> Compiled {
    let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let rules = object.spec.rules.iter().map(|rule| rule.backend_refs.iter().map(Backend::from).collect());
    compile(objects, splits, (Kind::TcpRoute, name), created, rules.collect())
}

/// A `TLSRoute` where its clients' TLS ends: the endpoints are spoken to as their policies say, for what is passed on is
/// in plain text otherwise. Its errors are those that it has there only.
pub(super) fn ended(objects: &Objects, passed: &Compiled, object: &TlsRoute) -> Compiled {
    let mut compiled = Compiled { errors: Vec::new(), ..passed.clone() };
    let backends = object.spec.rules.iter().flat_map(|rule| &rule.backend_refs).map(Backend::from);
    // They go side by side.
    for (index, ((upstream, _), backend)) in
        compiled.destination.iter_mut().flatten().zip(backends).enumerate()
    {
        if upstream.is_unresolved() {
            continue;
        }
        let namespace = backend.namespace.unwrap_or(&compiled.order.1.namespace);
        let name = ObjectName::new(namespace, backend.name);
        let kind = backend.kind.unwrap_or("Service");
        let port = backend.port.and_then(|port| u16::try_from(port).ok());
        match policy::apply(objects, upstream.clone(), (kind, &name), port) {
            Ok(suited) => *upstream = suited,
            Err(error) => {
                *upstream = Upstream::unresolved();
                let field = format!("spec.rules[0].backendRefs[{index}].name");
                compiled.errors.push((ConditionType::ResolvedRefs, FieldError { field, ..error }));
            }
        }
        compiled.targets.insert(Target::new(kind, name));
    }
    compiled
}

/// Compiles a `TLSRoute`.
pub(super) fn tls(objects: &Objects, splits: &Splits, name: &ObjectName, object: &TlsRoute) -> Compiled {
    let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let rules = object.spec.rules.iter().map(|rule| rule.backend_refs.iter().map(Backend::from).collect());
    compile(objects, splits, (Kind::TlsRoute, name), created, rules.collect())
}

fn compile(
    objects: &Objects,
    splits: &Splits,
    (kind, name): (Kind, &ObjectName),
    created: Option<jiff::Timestamp>,
    rules: Vec<Vec<Backend<'_>>>,
) -> Compiled {
    let mut compiled = Compiled {
        order: (created.unwrap_or(jiff::Timestamp::MAX), name.clone()),
        destination: None,
        targets: BTreeSet::new(),
        errors: Vec::new(),
    };
    let [backends] = rules.as_slice() else {
        let message = format!("a {kind} has one rule");
        compiled.errors.push((ConditionType::Accepted, FieldError::new("spec.rules", INVALID, message)));
        return compiled;
    };
    let route = ObjectRef { kind, name: name.clone() };
    let mut errors = Vec::new();
    let numbered = backends.iter().enumerate().map(|(index, backend)| (index, *backend));
    match backend::resolve(objects, splits, &route, numbered, "spec.rules[0]", &mut errors) {
        Some(backend::Destination::Clusters(clusters)) => {
            compiled.destination = Some(clusters.into_iter().map(|arm| (arm.upstream, arm.weight)).collect());
        }
        Some(backend::Destination::Migration(migration, _)) => {
            let message = format!(
                "Migration {migration} splits requests by their headers, which connections do not have; name one of \
                 its sides"
            );
            errors.push(FieldError::new("spec.rules[0].backendRefs", "UnsupportedValue", message));
        }
        None => {}
    }
    // It is taken and closed again: a client sees that somebody is there.
    compiled.destination.get_or_insert_with(|| vec![(Upstream::unresolved(), 1)]);
    compiled.errors.extend(errors.into_iter().map(|error| (ConditionType::ResolvedRefs, error)));
    compiled
}
