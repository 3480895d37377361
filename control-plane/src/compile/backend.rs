//! What a rule's backendRefs stand for. A `Service` is the migration of that service in the route's namespace
//! where there is one, else the Kubernetes Service, else the Eureka application of that name: so a route need not
//! change when a migration is added.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::INVALID;
use super::filter::Headers;
use super::mesh;
use super::migration::Split;
use super::policy;
use super::reference::{Backend, permitted};
use crate::model::upstream::Upstream;
use crate::objects::pool::EurekaSource;
use crate::objects::problem::{FieldError, did_you_mean};
use crate::objects::{Kind, ObjectName, ObjectRef, Objects, in_namespace};

/// The Gateway API's own limit.
const MAX_WEIGHT: u32 = 1_000_000;

/// What a rule sends its requests to.
#[derive(Debug, Clone)]
pub(super) enum Destination<'s> {
    /// A migration's two sides.
    Migration(&'s ObjectName, Arc<Split>),
    /// One cluster or several by weight.
    Clusters(Vec<Arm>),
}

/// One cluster of several.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arm {
    pub(super) upstream: Upstream,
    pub(super) weight: u32,
    /// What is changed on requests to it, and on their answers.
    pub(super) headers: Headers,
}

impl Destination<'_> {
    /// All to one.
    pub(super) fn to(upstream: Upstream) -> Self {
        Destination::Clusters(vec![Arm { upstream, weight: 1, headers: Headers::default() }])
    }
}

/// What a name may stand for beside objects.
#[derive(Debug, Default)]
pub(super) struct Splits {
    /// All migrations, compiled, by name.
    pub(super) migrations: BTreeMap<ObjectName, Arc<Split>>,
    /// On Kubernetes: the applications that are registered with Eureka. There a name of none of them and of no Service
    /// is a mistake; elsewhere an application may be registered later.
    pub(super) registered: Option<BTreeSet<Arc<str>>>,
}

impl Splits {
    fn may_be_registered(&self, application: &str) -> bool {
        self.registered.is_none() || self.is_registered(application)
    }

    /// Of an application on Kubernetes.
    pub(super) fn is_registered(&self, application: &str) -> bool {
        let name = application.to_ascii_uppercase();
        self.registered.as_ref().is_some_and(|registered| registered.contains(name.as_str()))
    }
}

enum Found<'s> {
    Cluster(Upstream),
    Migration(&'s ObjectName, Arc<Split>),
}

/// Resolves the backends of the rule of `route` at `field`, each given with its place; errors are noted, and `None` is
/// a rule without any backend that could serve. For one that cannot be used, [`Upstream::unresolved`] stands in.
pub(super) fn resolve<'s>(
    objects: &'s Objects,
    splits: &'s Splits,
    route: &ObjectRef,
    backends: impl IntoIterator<Item = (usize, Backend<'s>)>,
    field: &str,
    errors: &mut Vec<FieldError>,
) -> Option<Destination<'s>> {
    let backends: Vec<_> = backends.into_iter().collect();
    let mut arms: Vec<Arm> = Vec::with_capacity(backends.len());
    let mut push = |upstream, weight| arms.push(Arm { upstream, weight, headers: Headers::default() });
    let mut usable = false;
    for (index, backend) in &backends {
        let field = format!("{field}.backendRefs[{index}]");
        let weight = match weight(backend.weight, &field) {
            Ok(weight) => weight,
            Err(error) => {
                errors.push(error);
                push(Upstream::unresolved(), 1);
                continue;
            }
        };
        match one(objects, splits, route, backend, &field) {
            Ok(Found::Migration(name, split)) => {
                let alone = backends.iter().all(|(i, b)| i == index || b.weight == Some(0));
                if alone && weight > 0 {
                    return Some(Destination::Migration(name, split));
                }
                if weight > 0 {
                    let message = "a service under migration has to be the only backend of its rule with a \
                                   weight: its own split would be mixed with the rule's";
                    errors.push(FieldError::new(&field, "UnsupportedValue", message));
                }
                // Kept even without a weight: arms and backends go side by side.
                push(Upstream::unresolved(), weight);
            }
            Ok(Found::Cluster(upstream)) => {
                usable |= weight > 0;
                push(upstream, weight);
            }
            Err(error) => {
                errors.push(error);
                push(Upstream::unresolved(), weight);
            }
        }
    }
    usable.then_some(Destination::Clusters(arms))
}

/// The one cluster that a reference outside of a rule's backends stands for, as that of a mirror.
pub(super) fn resolve_one(
    objects: &Objects,
    splits: &Splits,
    route: &ObjectRef,
    backend: &Backend<'_>,
    field: &str,
) -> Result<Upstream, FieldError> {
    match one(objects, splits, route, backend, field)? {
        Found::Cluster(upstream) => Ok(upstream),
        Found::Migration(name, _) => {
            let message = format!("Migration {name} has two sides; name one of them");
            Err(FieldError::new(field, "UnsupportedValue", message))
        }
    }
}

/// A backend's share against the others of its rule.
pub(super) fn weight(written: Option<i32>, field: &str) -> Result<u32, FieldError> {
    let weight = u32::try_from(written.unwrap_or(1)).ok().filter(|weight| *weight <= MAX_WEIGHT);
    weight.ok_or_else(|| {
        let message = format!("expected a weight from 0 to {MAX_WEIGHT}");
        FieldError::new(format!("{field}.weight"), INVALID, message)
    })
}

fn one<'s>(
    objects: &'s Objects,
    splits: &'s Splits,
    route: &ObjectRef,
    backend: &Backend<'_>,
    field: &str,
) -> Result<Found<'s>, FieldError> {
    let namespace = backend.namespace.unwrap_or(&route.name.namespace);
    let (group, kind) = (backend.group.unwrap_or_default(), backend.kind.unwrap_or("Service"));
    if !matches!((group, kind), ("", "Service") | ("pontoon.dev", "Pool" | "Migration")) {
        let message = format!(
            "a backend of kind {kind} in group {group:?} is not supported: use Service, or Pool or Migration \
             with group pontoon.dev"
        );
        return Err(FieldError::new(format!("{field}.kind"), "InvalidKind", message));
    }
    let name = ObjectName::new(namespace, backend.name);
    if !(kind == "Service" && mesh::is_for_sidecars(objects, route)) {
        permitted(objects, (route.kind, &route.name.namespace), (group, kind, &name), field)?;
    }
    let not_found = |kind: &str, known: Option<&str>| {
        // What there is in other namespaces is not told.
        let known = known.filter(|_| *namespace == *route.name.namespace);
        let hint = known.map_or(String::new(), |meant| format!("; did you mean {meant}?"));
        let message = format!("there is no {kind} {namespace}/{}{hint}", backend.name);
        FieldError::new(format!("{field}.name"), "BackendNotFound", message)
    };
    let upstream = match kind {
        "Service" => {
            if let Some((name, _)) = objects.migration_of(namespace, backend.name)
                && let Some((name, split)) = splits.migrations.get_key_value(name)
            {
                return Ok(Found::Migration(name, suited_split(route, split)));
            }
            if objects.services.contains_key(&name) {
                let port = backend.port.map(|port| u16::try_from(port).unwrap_or_default());
                let upstream = Upstream::of_service(objects, &name, port);
                upstream.map_err(|error| {
                    let reason =
                        if error.reason == "PortNotFound" { "BackendNotFound" } else { error.reason };
                    FieldError::new(format!("{field}.{}", error.field), reason, error.message)
                })?
            } else if !splits.may_be_registered(backend.name) {
                let known = in_namespace(&objects.services, namespace).map(|(name, _)| &*name.name);
                return Err(not_found("Service", did_you_mean(backend.name, known)));
            } else {
                let source = EurekaSource { application: backend.name.to_owned(), selector: BTreeMap::new() };
                Upstream::of_eureka(&source)
            }
        }
        "Pool" => {
            let known = || in_namespace(&objects.pools, namespace).map(|(name, _)| &*name.name);
            let pool = objects
                .pools
                .get(&name)
                .ok_or_else(|| not_found("Pool", did_you_mean(backend.name, known())))?;
            Upstream::of_pool(objects, &name, &pool.spec).map_err(|error| {
                let message = format!("Pool {name}: {}", error.message);
                FieldError::new(format!("{field}.name"), "BackendNotFound", message)
            })?
        }
        _ => {
            let known = || splits.migrations.keys().filter(|k| &*k.namespace == namespace).map(|k| &*k.name);
            let split = splits.migrations.get_key_value(&name);
            let (name, split) =
                split.ok_or_else(|| not_found("Migration", did_you_mean(backend.name, known())))?;
            return Ok(Found::Migration(name, suited_split(route, split)));
        }
    };
    let port = backend.port.and_then(|port| u16::try_from(port).ok());
    Ok(Found::Cluster(suited(objects, route, upstream, (kind, &name), port, field)?))
}

/// An upstream as a route of this kind needs it: gRPC is spoken over HTTP/2, and a policy may ask for TLS.
fn suited(
    objects: &Objects,
    route: &ObjectRef,
    mut upstream: Upstream,
    target: (&str, &ObjectName),
    port: Option<u16>,
    field: &str,
) -> Result<Upstream, FieldError> {
    if route.kind == Kind::GrpcRoute {
        upstream = upstream.in_http2();
    }
    // What passes connections on does not look into them; where their TLS ends, that is said of the route there.
    match route.kind {
        Kind::HttpRoute | Kind::GrpcRoute => policy::apply(objects, upstream, target, port)
            .map_err(|error| FieldError { field: format!("{field}.name"), ..error }),
        _ => Ok(upstream),
    }
}

/// The same of a migration's two sides, which are as their policies say already.
fn suited_split(route: &ObjectRef, split: &Arc<Split>) -> Arc<Split> {
    match route.kind {
        Kind::GrpcRoute => Arc::new((**split).clone().in_http2()),
        _ => split.clone(),
    }
}
