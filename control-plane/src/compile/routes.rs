//! All routes, compiled and hung on their listeners, and what is said of each by each of its parents.

use std::collections::{BTreeMap, BTreeSet};

use super::attach::{self, Attachments, Candidate, Outcome};
use super::backend::Splits;
use super::connection;
use super::gateway::{self, Gateways};
use super::ingress;
use super::mesh;
use super::policy::{self, Target};
use super::reference::Parent;
use super::route;
use super::standing::{ParentStanding, Said, Standings};
use super::status::{ConditionType, Statuses};
use super::view::Routes;
use crate::objects::problem::FieldError;
use crate::objects::{Kind, ObjectName, ObjectRef, Objects};

/// All routes, and where they hang.
pub(super) struct Hung {
    pub(super) routes: Routes,
    pub(super) attachments: Attachments,
    pub(super) of_services: mesh::Attached,
}

/// What is wrong with a route, and with which aspect of it.
type Errors = Vec<(ConditionType, FieldError)>;

/// Compiles all routes and hangs them on their listeners.
pub(super) fn hang(
    objects: &Objects,
    splits: &Splits,
    gateways: &Gateways,
    statuses: &mut Statuses,
    standings: &mut Standings,
) -> Hung {
    let (attachments, of_services) = (Attachments::new(), mesh::Attached::new());
    let mut hanging = Hanging { objects, gateways, statuses, standings, attachments, of_services };
    let mut routes = Routes::default();
    // Those of gRPC first: where a Service has some at a port, no others hold there.
    for (name, object) in &objects.grpc_routes {
        let mut compiled = route::grpc(objects, splits, name, object);
        let parents = object.spec.parent_refs.iter().flatten().map(Parent::from).collect();
        let hostnames = object.spec.hostnames.as_deref().unwrap_or_default();
        let errors = std::mem::take(&mut compiled.errors);
        let reference = hanging.hang(Kind::GrpcRoute, name, parents, hostnames, errors);
        routes.requests.insert(reference, compiled);
    }
    for (name, object) in &objects.routes {
        let mut compiled = route::http(objects, splits, name, object);
        let parents = object.spec.parent_refs.iter().flatten().map(Parent::from).collect();
        let hostnames = object.spec.hostnames.as_deref().unwrap_or_default();
        let errors = std::mem::take(&mut compiled.errors);
        let reference = hanging.hang(Kind::HttpRoute, name, parents, hostnames, errors);
        routes.requests.insert(reference, compiled);
    }
    for (name, object) in &objects.tls_routes {
        let mut compiled = connection::tls(objects, splits, name, object);
        let parents = object.spec.parent_refs.iter().flatten().map(Parent::from).collect();
        let errors = std::mem::take(&mut compiled.errors);
        let reference = hanging.hang(Kind::TlsRoute, name, parents, &object.spec.hostnames, errors);
        routes.connections.insert(reference, compiled);
    }
    for (name, object) in &objects.tcp_routes {
        let mut compiled = connection::tcp(objects, splits, name, object);
        let parents = object.spec.parent_refs.iter().flatten().map(Parent::from).collect();
        let errors = std::mem::take(&mut compiled.errors);
        let reference = hanging.hang(Kind::TcpRoute, name, parents, &[], errors);
        routes.connections.insert(reference, compiled);
    }
    let Hanging { mut attachments, of_services, .. } = hanging;
    ingress::hang(objects, splits, gateways, (statuses, standings), (&mut routes, &mut attachments));
    let mut attached = BTreeMap::new();
    let mut used_by: BTreeMap<Target, BTreeSet<ObjectName>> = BTreeMap::new();
    for (gateway, all) in &attachments {
        // A route that names a listener twice is one.
        let once: BTreeSet<_> =
            all.iter().map(|attachment| (attachment.listener, &attachment.route)).collect();
        for (listener, route) in once {
            // Ingresses are no routes to the Gateway API.
            if route.kind != Kind::Ingress {
                *attached.entry((gateway, listener)).or_insert(0) += 1;
            }
            let targets = routes.requests.get(route).into_iter().flat_map(|compiled| &compiled.targets);
            for target in targets {
                used_by.entry(target.clone()).or_default().insert(gateway.clone());
            }
        }
    }
    gateway::stand(objects, gateways, &attached, standings);
    policy::stand(objects, &used_by, statuses, standings);
    Hung { routes, attachments, of_services }
}

struct Hanging<'o> {
    objects: &'o Objects,
    gateways: &'o Gateways,
    statuses: &'o mut Statuses,
    standings: &'o mut Standings,
    attachments: Attachments,
    of_services: mesh::Attached,
}

impl Hanging<'_> {
    fn hang(
        &mut self,
        kind: Kind,
        name: &ObjectName,
        parents: Vec<Parent>,
        hostnames: &[String],
        mut errors: Errors,
    ) -> ObjectRef {
        let route = ObjectRef { kind, name: name.clone() };
        let (hostnames, wrong) = attach::hostnames(hostnames);
        errors.extend(wrong.into_iter().map(|error| (ConditionType::Accepted, error)));
        if parents.is_empty() {
            let message = "the route names no parent, so nothing uses it";
            let error = FieldError::new("spec.parentRefs", "NoParent", message);
            errors.push((ConditionType::Effective, error));
        }
        let candidate = Candidate { route: route.clone(), parents, hostnames };
        let (attachments, of_services) = (&mut self.attachments, &mut self.of_services);
        let outcomes = attach::attach(self.objects, self.gateways, &candidate, attachments, of_services);
        let ours: Vec<_> = outcomes
            .iter()
            .filter(|outcome| outcome.is_ours)
            .map(|outcome| standing(outcome, &errors))
            .collect();
        if !ours.is_empty() {
            self.standings.routes.insert(route.clone(), ours);
        }
        let refused = outcomes.into_iter().filter_map(|outcome| outcome.result.err());
        let refused = refused.map(|error| (ConditionType::Accepted, error));
        for (kind, error) in refused.chain(errors) {
            self.statuses.refuse(&route, kind, error);
        }
        route
    }
}

/// What one parent says: of how the route hangs there, and of the route as a whole.
fn standing(outcome: &Outcome, errors: &Errors) -> ParentStanding {
    let of = |kind: ConditionType| errors.iter().filter(move |(k, _)| *k == kind).map(|(_, error)| error);
    let refused = outcome.result.as_ref().err().into_iter().chain(of(ConditionType::Accepted));
    ParentStanding {
        parent_ref: outcome.parent.clone(),
        conditions: vec![
            Said::unless("Accepted", "Accepted", refused),
            Said::unless("ResolvedRefs", "ResolvedRefs", of(ConditionType::ResolvedRefs)),
        ],
    }
}
