//! A `TCPRoute` or `TLSRoute`: where the connections of a listener, or of a host on it, go.

use super::INVALID;
use super::backend::{self, Splits};
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
    pub(super) errors: Vec<(ConditionType, FieldError)>,
}

/// Compiles a `TCPRoute`.
pub(super) fn tcp(objects: &Objects, splits: &Splits, name: &ObjectName, object: &TcpRoute) -> Compiled {
    let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let rules = object.spec.rules.iter().map(|rule| rule.backend_refs.iter().map(Backend::from).collect());
    compile(objects, splits, (Kind::TcpRoute, name), created, rules.collect())
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
