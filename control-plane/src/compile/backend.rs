//! What a rule's backendRefs stand for. A `Service` is the migration of that service in the route's namespace
//! where there is one, else the Kubernetes Service, else the Eureka application of that name: so a route need not
//! change when a migration is added.

use std::collections::BTreeMap;

use gateway_api::httproutes::HttpRouteRulesBackendRefs;

use super::INVALID;
use super::migration::Split;
use crate::model::upstream::Upstream;
use crate::objects::pool::EurekaSource;
use crate::objects::problem::{FieldError, did_you_mean};
use crate::objects::{ObjectName, Objects};

/// The Gateway API's own limit.
const MAX_WEIGHT: u32 = 1_000_000;

/// What a rule sends its requests to.
#[derive(Debug, Clone)]
pub(super) enum Destination<'s> {
    /// A migration's two sides.
    Migration(&'s ObjectName, &'s Split),
    /// One cluster or several by weight.
    Clusters(Vec<(Upstream, u32)>),
}

/// All migrations, compiled, by name.
pub(super) type Splits = BTreeMap<ObjectName, Split>;

enum Backend<'s> {
    Cluster(Upstream),
    Migration(&'s ObjectName, &'s Split),
}

/// Resolves the backends of the rule at `field`; errors are noted, and `None` is a rule without any backend
/// that could serve.
pub(super) fn resolve<'s>(
    objects: &'s Objects,
    splits: &'s Splits,
    namespace: &str,
    refs: &[HttpRouteRulesBackendRefs],
    field: &str,
    errors: &mut Vec<FieldError>,
) -> Option<Destination<'s>> {
    let mut clusters = Vec::with_capacity(refs.len());
    let mut usable = false;
    for (index, backend) in refs.iter().enumerate() {
        let field = format!("{field}.backendRefs[{index}]");
        let weight = match weight(backend, &field) {
            Ok(weight) => weight,
            Err(error) => {
                errors.push(error);
                clusters.push((Upstream::unresolved(), 1));
                continue;
            }
        };
        match one(objects, splits, namespace, backend, &field) {
            Ok(Backend::Migration(name, split)) => {
                let alone = refs.iter().enumerate().all(|(i, b)| i == index || b.weight == Some(0));
                if alone && weight > 0 {
                    return Some(Destination::Migration(name, split));
                }
                if weight > 0 {
                    let message = "a service under migration has to be the only backend of its rule with a \
                                   weight: its own split would be mixed with the rule's";
                    errors.push(FieldError::new(&field, "UnsupportedValue", message));
                    clusters.push((Upstream::unresolved(), weight));
                }
            }
            Ok(Backend::Cluster(upstream)) => {
                usable |= weight > 0;
                clusters.push((upstream, weight));
            }
            Err(error) => {
                errors.push(error);
                clusters.push((Upstream::unresolved(), weight));
            }
        }
    }
    usable.then_some(Destination::Clusters(clusters))
}

/// A backend's share against the others of its rule.
pub(super) fn weight(backend: &HttpRouteRulesBackendRefs, field: &str) -> Result<u32, FieldError> {
    let weight = u32::try_from(backend.weight.unwrap_or(1)).ok().filter(|weight| *weight <= MAX_WEIGHT);
    weight.ok_or_else(|| {
        let message = format!("expected a weight from 0 to {MAX_WEIGHT}");
        FieldError::new(format!("{field}.weight"), INVALID, message)
    })
}

fn one<'s>(
    objects: &'s Objects,
    splits: &'s Splits,
    namespace: &str,
    backend: &HttpRouteRulesBackendRefs,
    field: &str,
) -> Result<Backend<'s>, FieldError> {
    if backend.filters.as_ref().is_some_and(|filters| !filters.is_empty()) {
        let message = "filters on a backend are not supported by this version; use the rule's filters";
        return Err(FieldError::new(format!("{field}.filters"), "UnsupportedValue", message));
    }
    if backend.namespace.as_deref().is_some_and(|other| other != namespace) {
        let message =
            "a backend in another namespace needs a ReferenceGrant, which this version does not read";
        return Err(FieldError::new(format!("{field}.namespace"), "RefNotPermitted", message));
    }
    let kind = backend.kind.as_deref().unwrap_or("Service");
    let not_found = |kind: &str, known: Option<&str>| {
        let hint = known.map_or(String::new(), |meant| format!("; did you mean {meant}?"));
        let message = format!("there is no {kind} {namespace}/{}{hint}", backend.name);
        FieldError::new(format!("{field}.name"), "BackendNotFound", message)
    };
    let name = ObjectName::new(namespace, backend.name.as_str());
    match (backend.group.as_deref().unwrap_or_default(), kind) {
        ("", "Service") => {
            if let Some((name, _)) = objects.migration_of(namespace, &backend.name)
                && let Some((name, split)) = splits.get_key_value(name)
            {
                return Ok(Backend::Migration(name, split));
            }
            if objects.services.contains_key(&name) {
                let port = backend.port.map(|port| u16::try_from(port).unwrap_or_default());
                let upstream = Upstream::of_service(objects, &name, port);
                return upstream.map(Backend::Cluster).map_err(|error| {
                    let reason =
                        if error.reason == "PortNotFound" { "BackendNotFound" } else { error.reason };
                    FieldError::new(format!("{field}.{}", error.field), reason, error.message)
                });
            }
            let source = EurekaSource { application: backend.name.clone(), selector: BTreeMap::new() };
            Ok(Backend::Cluster(Upstream::of_eureka(&source)))
        }
        ("pontoon.dev", "Pool") => {
            let known = || objects.pools.keys().filter(|k| &*k.namespace == namespace).map(|k| &*k.name);
            let pool = objects
                .pools
                .get(&name)
                .ok_or_else(|| not_found("Pool", did_you_mean(&backend.name, known())))?;
            Upstream::of_pool(objects, &name, &pool.spec).map(Backend::Cluster).map_err(|error| {
                FieldError::new(
                    format!("{field}.name"),
                    "BackendNotFound",
                    format!("Pool {name}: {}", error.message),
                )
            })
        }
        ("pontoon.dev", "Migration") => {
            let known = || splits.keys().filter(|k| &*k.namespace == namespace).map(|k| &*k.name);
            match splits.get_key_value(&name) {
                Some((name, split)) => Ok(Backend::Migration(name, split)),
                None => Err(not_found("Migration", did_you_mean(&backend.name, known()))),
            }
        }
        (group, kind) => {
            let message = format!(
                "a backend of kind {kind} in group {group:?} is not supported: use Service, or Pool or Migration \
                 with group pontoon.dev"
            );
            Err(FieldError::new(format!("{field}.kind"), "InvalidKind", message))
        }
    }
}
