//! All routes, compiled and hung on their listeners, and what is said of each by each of its parents.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::attach::{self, Attachments, Candidate, Outcome};
use super::backend::Splits;
use super::connection;
use super::gateway::{self, Attached, Gateways};
use super::ingress;
use super::mesh;
use super::policy::{self, Target};
use super::reference::Parent;
use super::route;
use super::standing::{ParentStanding, Said, Standings};
use super::status::{ConditionType, Statuses};
use super::view::Routes;
use crate::objects::problem::FieldError;
use crate::objects::{HttpRoute, Kind, ObjectName, ObjectRef, Objects};

/// All routes, and where they hang.
pub(super) struct Hung {
    pub(super) routes: Routes,
    pub(super) attachments: Attachments,
    pub(super) of_services: mesh::Attached,
    pub(super) attached: Attached,
    /// The `HTTPRoute`s among them, one by one.
    pub(super) http: BTreeMap<ObjectName, HttpHung>,
}

/// An `HTTPRoute`, compiled and hung.
#[derive(Debug)]
pub(super) struct HttpHung {
    pub(super) compiled: Arc<route::Compiled>,
    pub(super) one: One,
}

/// Where a route hangs, and what is to be said of it.
#[derive(Debug)]
pub(super) struct One {
    pub(super) attachments: Attachments,
    /// It may hang on Services, too.
    pub(super) on_services: bool,
    standing: Arc<Vec<ParentStanding>>,
    pub(super) refused: Errors,
}

/// What is wrong with a route, and with which aspect of it.
type Errors = Vec<(ConditionType, FieldError)>;

/// How a route was read.
struct Read {
    /// So many rules it has.
    rules: usize,
    errors: Errors,
    /// Those that it has only where TLS ends, and what is in it is passed on.
    ended: Errors,
}

impl Read {
    fn new(rules: usize, errors: Errors) -> Self {
        Self { rules, errors, ended: Errors::new() }
    }
}

/// Compiles all routes and hangs them on their listeners.
pub(super) fn hang(
    objects: &Objects,
    splits: &Splits,
    gateways: &Gateways,
    statuses: &mut Statuses,
    standings: &mut Standings,
) -> Hung {
    let mut routes = Routes::default();
    let (mut attachments, mut attached) = (Attachments::new(), Attached::new());
    let mut of_services = mesh::Attached::new();
    let mut http = BTreeMap::new();
    let mut note = |kind: Kind, name: &ObjectName, one: &One| {
        let route = ObjectRef { kind, name: name.clone() };
        one.say(&route, statuses, standings);
        one.count(&mut attached, |count| count + 1);
        for (gateway, all) in &one.attachments {
            attachments.entry(gateway.clone()).or_default().extend(all.iter().cloned());
        }
        route
    };
    let mut hang = |kind, name: &ObjectName, parents, hostnames: &[String], read| {
        One::hang(objects, gateways, (kind, name), parents, hostnames, read, &mut of_services)
    };
    // Those of gRPC first: where a Service has some at a port, no others hold there.
    for (name, object) in &objects.grpc_routes {
        let mut compiled = route::grpc(objects, splits, name, object);
        let parents = object.spec.parent_refs.iter().flatten().map(Parent::from).collect();
        let hostnames = object.spec.hostnames.as_deref().unwrap_or_default();
        let rules = object.spec.rules.as_ref().map_or(0, Vec::len);
        let read = Read::new(rules, std::mem::take(&mut compiled.errors));
        let one = hang(Kind::GrpcRoute, name, parents, hostnames, read);
        routes.requests.insert(note(Kind::GrpcRoute, name, &one), Arc::new(compiled));
    }
    for (name, object) in &objects.routes {
        let (compiled, parents, hostnames, read) = http_parts(objects, splits, name, object);
        let one = hang(Kind::HttpRoute, name, parents, hostnames, read);
        routes.requests.insert(note(Kind::HttpRoute, name, &one), compiled.clone());
        http.insert(name.clone(), HttpHung { compiled, one });
    }
    for (name, object) in &objects.tls_routes {
        let mut compiled = connection::tls(objects, splits, name, object);
        let parents = object.spec.parent_refs.iter().flatten().map(Parent::from).collect();
        let mut ended = connection::ended(objects, &compiled, object);
        let errors = std::mem::take(&mut compiled.errors);
        let read = Read { rules: object.spec.rules.len(), errors, ended: std::mem::take(&mut ended.errors) };
        let mut one = hang(Kind::TlsRoute, name, parents, &object.spec.hostnames, read);
        // Where its TLS ends it is a route of its own, under a name that none has.
        let of_ended = ObjectName::new(name.namespace.clone(), format!("{}:ended", name.name));
        let of_ended = ObjectRef { kind: Kind::TlsRoute, name: of_ended };
        for (gateway, all) in &mut one.attachments {
            let Some(gateway) = gateways.get(gateway) else { continue };
            let there = all.iter_mut().filter(|attachment| attachment.ends_tls(gateway));
            there.for_each(|attachment| attachment.route = of_ended.clone());
        }
        routes.connections.insert(of_ended, ended);
        routes.connections.insert(note(Kind::TlsRoute, name, &one), compiled);
    }
    for (name, object) in &objects.tcp_routes {
        let mut compiled = connection::tcp(objects, splits, name, object);
        let parents = object.spec.parent_refs.iter().flatten().map(Parent::from).collect();
        let read = Read::new(object.spec.rules.len(), std::mem::take(&mut compiled.errors));
        let one = hang(Kind::TcpRoute, name, parents, &[], read);
        routes.connections.insert(note(Kind::TcpRoute, name, &one), compiled);
    }
    // Ingresses are no routes to the Gateway API: they are not counted.
    ingress::hang(objects, splits, gateways, (statuses, standings), (&mut routes, &mut attachments));
    gateway::stand(objects, gateways, &attached, standings);
    if !objects.backend_tls_policies.is_empty() {
        let mut used_by: BTreeMap<Target, BTreeSet<ObjectName>> = BTreeMap::new();
        for (gateway, all) in &attachments {
            let requests = all.iter().filter_map(|attachment| routes.requests.get(&attachment.route));
            let requests = requests.flat_map(|compiled| &compiled.targets);
            let connections = all.iter().filter_map(|attachment| routes.connections.get(&attachment.route));
            for target in requests.chain(connections.flat_map(|compiled| &compiled.targets)) {
                used_by.entry(target.clone()).or_default().insert(gateway.clone());
            }
        }
        policy::stand(objects, &used_by, statuses, standings);
    }
    Hung { routes, attachments, attached, http, of_services }
}

/// Compiles an `HTTPRoute` and hangs it on its listeners. `None`: it may hang on Services, and so in the way of others.
pub(super) fn http_route(
    objects: &Objects,
    splits: &Splits,
    gateways: &Gateways,
    name: &ObjectName,
    object: &HttpRoute,
) -> Option<HttpHung> {
    let (compiled, parents, hostnames, read) = http_parts(objects, splits, name, object);
    if parents.iter().any(mesh::is_service) {
        return None;
    }
    let none = &mut mesh::Attached::new();
    let one = One::hang(objects, gateways, (Kind::HttpRoute, name), parents, hostnames, read, none);
    Some(HttpHung { compiled, one })
}

type HttpParts<'o> = (Arc<route::Compiled>, Vec<Parent>, &'o [String], Read);

fn http_parts<'o>(
    objects: &Objects,
    splits: &Splits,
    name: &ObjectName,
    object: &'o HttpRoute,
) -> HttpParts<'o> {
    let mut compiled = route::http(objects, splits, name, object);
    let parents = object.spec.parent_refs.iter().flatten().map(Parent::from).collect();
    let hostnames = object.spec.hostnames.as_deref().unwrap_or_default();
    let rules = object.spec.rules.as_ref().map_or(0, Vec::len);
    let read = Read::new(rules, std::mem::take(&mut compiled.errors));
    (Arc::new(compiled), parents, hostnames, read)
}

impl One {
    fn hang(
        objects: &Objects,
        gateways: &Gateways,
        (kind, name): (Kind, &ObjectName),
        parents: Vec<Parent>,
        hostnames: &[String],
        Read { rules, mut errors, ended }: Read,
        of_services: &mut mesh::Attached,
    ) -> One {
        let (hostnames, wrong) = attach::hostnames(hostnames);
        errors.extend(wrong.into_iter().map(|error| (ConditionType::Accepted, error)));
        if parents.is_empty() {
            let message = "the route names no parent, so nothing uses it";
            let error = FieldError::new("spec.parentRefs", "NoParent", message);
            errors.push((ConditionType::Effective, error));
        }
        let on_services = parents.iter().any(mesh::is_service);
        let candidate = Candidate { route: ObjectRef { kind, name: name.clone() }, parents, hostnames };
        let mut attachments = Attachments::new();
        let outcomes = attach::attach(objects, gateways, &candidate, &mut attachments, of_services);
        let ours = outcomes.iter().filter(|outcome| outcome.is_ours);
        let none = &Errors::new();
        let of = |outcome: &Outcome| if outcome.ends_tls { &ended } else { none };
        let standing = ours.map(|outcome| standing(outcome, rules, &errors, of(outcome))).collect();
        if outcomes.iter().any(|outcome| outcome.ends_tls) {
            errors.extend(ended.iter().cloned());
        }
        let refused = outcomes.into_iter().filter_map(|outcome| outcome.result.err());
        let refused = refused.map(|error| (ConditionType::Accepted, error));
        let refused = refused.chain(errors).collect();
        One { attachments, on_services, standing: Arc::new(standing), refused }
    }

    /// Says what there is to say of it, but that all else is well.
    pub(super) fn say(&self, route: &ObjectRef, statuses: &mut Statuses, standings: &mut Standings) {
        if !self.standing.is_empty() {
            standings.routes.insert(route.clone(), self.standing.clone());
        }
        for (kind, error) in &self.refused {
            statuses.refuse(route, *kind, error.clone());
        }
    }

    /// Counts it once on each of its listeners, if it is accepted: others are not to be counted.
    pub(super) fn count(&self, attached: &mut Attached, count: impl Fn(usize) -> usize) {
        // What is wrong with one parent is no matter of the others', and where it hangs its parent has taken it.
        if !self.standing.iter().any(ParentStanding::is_accepted) {
            return;
        }
        for (gateway, all) in &self.attachments {
            // A route that names a listener twice is one.
            let listeners: BTreeSet<usize> = all.iter().map(|attachment| attachment.listener).collect();
            for listener in listeners {
                let counted = attached.entry((gateway.clone(), listener)).or_insert(0);
                *counted = count(*counted);
            }
        }
    }
}

/// What one parent says: of how the route hangs there, and of the route as a whole. One of which some rules are served
/// is accepted.
fn standing(outcome: &Outcome, rules: usize, errors: &Errors, there: &Errors) -> ParentStanding {
    let of = |kind: ConditionType| {
        errors.iter().chain(there).filter(move |(k, _)| *k == kind).map(|(_, error)| error)
    };
    let of_rules: Vec<Option<usize>> = of(ConditionType::Accepted).map(rule_of).collect();
    let dropped: BTreeSet<usize> = of_rules.iter().flatten().copied().collect();
    let is_partial = !dropped.is_empty() && dropped.len() < rules && of_rules.iter().all(Option::is_some);
    let whole = of(ConditionType::Accepted).filter(|_| !is_partial);
    let refused = outcome.result.as_ref().err().into_iter().chain(whole);
    let mut conditions = vec![
        Said::unless("Accepted", "Accepted", refused),
        Said::unless("ResolvedRefs", "ResolvedRefs", of(ConditionType::ResolvedRefs)),
    ];
    if is_partial && outcome.result.is_ok() {
        let numbers: Vec<String> = dropped.iter().map(ToString::to_string).collect();
        let words = of(ConditionType::Accepted).map(FieldError::words);
        conditions.push(Said {
            kind: "PartiallyInvalid",
            status: true,
            reason: "UnsupportedValue",
            // It has to begin so.
            message: format!(
                "Dropped Rule(s) {}: {}",
                numbers.join(", "),
                words.collect::<Vec<_>>().join("; ")
            ),
        });
    }
    ParentStanding { parent_ref: outcome.parent.clone(), conditions }
}

/// The place of the rule that an error is in.
fn rule_of(error: &FieldError) -> Option<usize> {
    let (place, _) = error.field.strip_prefix("spec.rules[")?.split_once(']')?;
    place.parse().ok()
}
