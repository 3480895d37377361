//! The compiler: from what exists to what proxies get, a pure function. What cannot be served as written is
//! refused with a condition that says why; everything else goes on.
//!
//! A view holds what the proxies of one `Gateway` are told: its listeners, its routes, and only those clusters
//! that its routes send to; or what the sidecars of one namespace may ask for, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use pontoon_xds::{Resource, ResourceType, Snapshot};

mod attach;
mod backend;
mod chain;
mod cluster;
mod conflict;
mod connection;
mod filter;
mod follow;
mod gateway;
mod hostname;
mod hosts;
mod ingress;
mod listener;
mod log_format;
mod matching;
mod mesh;
mod migration;
mod policy;
pub mod reference;
mod route;
mod routes;
mod rule;
mod selector;
mod sidecar;
pub mod standing;
pub mod status;
mod tls;
mod tries;
mod trust;
mod view;
mod wire;

pub use gateway::is_ours as is_our_class;
pub use ingress::INGRESS_CONTROLLER;
pub use listener::GATEWAY_CLASS;
pub use reference::GATEWAY_GROUP;
pub use sidecar::NO_NAMESPACE;

use crate::model::Model;
use crate::model::addresses::Addresses;
use crate::model::instance::{Application, RegistryView};
use crate::model::migration::MigrationState;
use crate::model::upstream::{Resolved, Source, SourceStatus, Upstream};
use crate::objects::problem::FieldError;
use crate::objects::{Gateway, GrpcRoute, HttpRoute, Kind, ObjectName, ObjectRef, Objects};
use standing::Standings;
use status::{ConditionType, Statuses};

/// The reason of an error that no version could serve: what an API server would not have let in.
const INVALID: &str = "invalid_value";

/// What is wrong with a gateway by itself, so that it cannot take the place of its last good version.
pub fn invalid_gateway(gateway: &Gateway) -> Vec<FieldError> {
    gateway::invalid(gateway)
}

/// What is wrong with a route by itself, so that it cannot take the place of its last good version.
pub fn invalid_http_route(route: &HttpRoute) -> Vec<FieldError> {
    let mut errors = attach::hostnames(route.spec.hostnames.as_deref().unwrap_or_default()).1;
    errors.extend(route::invalid_http(route));
    errors.retain(|error| error.reason == INVALID);
    errors
}

/// As [`invalid_http_route`].
pub fn invalid_grpc_route(route: &GrpcRoute) -> Vec<FieldError> {
    let mut errors = attach::hostnames(route.spec.hostnames.as_deref().unwrap_or_default()).1;
    errors.extend(route::invalid_grpc(route));
    errors.retain(|error| error.reason == INVALID);
    errors
}

/// What a model becomes.
#[derive(Debug, Clone, Default)]
pub struct Compiled {
    /// What each gateway's proxies get, by `namespace/name`, and what a namespace's sidecars may ask for, by
    /// `namespace`. Snapshots of one [`Compiler`] share what did not change.
    pub views: BTreeMap<Arc<str>, Snapshot>,
    /// What is to be said about each object.
    pub statuses: Arc<Statuses>,
    /// What is to be said in the `status` of the Gateway API's objects.
    pub standings: Arc<Standings>,
    /// What is to be said about the endpoints of each cluster in use, by the cluster's name.
    pub clusters: OrdMap<Arc<str>, SourceStatus>,
    /// What each migration is on the wire.
    pub migrations: Arc<BTreeMap<ObjectName, OnTheWire>>,
    /// Every service that sidecars can name, by `namespace/service`: the same `Arc` while they are the same.
    pub services: Arc<BTreeSet<Arc<str>>>,
}

/// The resources that a migration's state is in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnTheWire {
    /// The target's cluster; `None` where its pool does not exist.
    pub target: Option<Arc<str>>,
    /// The legacy cluster; `None` where its pool does not exist.
    pub legacy: Option<Arc<str>>,
    /// The view and name of each route configuration that splits by it.
    pub routes: BTreeSet<(Arc<str>, Arc<str>)>,
}

/// Whether a view is a gateway's, and not the sidecars'.
pub fn is_gateway(view: &str) -> bool {
    view.contains('/')
}

/// Whether there can be a view of this name: `NAMESPACE` of sidecars (none: of names that are in no namespace), or
/// `NAMESPACE/NAME` of a gateway.
pub fn is_view(name: &str) -> bool {
    let is_one = |part: &str| !part.is_empty() && !part.contains('/');
    name.split_once('/').is_none_or(|(namespace, name)| is_one(namespace) && is_one(name))
}

/// Compiles a model from nothing.
pub fn compile(model: &Model) -> Compiled {
    Compiler::default().compile(model)
}

/// Compiles one model after another, and does again only what changed: a route when it did, all of them when another
/// object or a migration did, a cluster's endpoints when they did. The result is that of [`compile`].
#[derive(Debug, Default)]
pub struct Compiler {
    plan: Option<Plan>,
    /// As it was compiled last: an application that is the same `Arc` has not changed.
    registry: Arc<RegistryView>,
    built: BTreeMap<Arc<str>, Built>,
    /// Those of them whose endpoints are a Service's, by it; and the others.
    of_services: BTreeMap<ObjectName, BTreeSet<Arc<str>>>,
    of_others: BTreeSet<Arc<str>>,
    clusters: OrdMap<Arc<str>, SourceStatus>,
    snapshots: BTreeMap<Arc<str>, Snapshot>,
    sidecars: sidecar::Sidecars,
    services: Arc<BTreeSet<Arc<str>>>,
    addresses: Arc<Addresses>,
}

/// What depends on objects and migrations only.
#[derive(Debug)]
struct Plan {
    objects: Arc<Objects>,
    migrations: Arc<BTreeMap<ObjectName, MigrationState>>,
    in_pods: bool,
    splits: backend::Splits,
    gateways: gateway::Gateways,
    routes: view::Routes,
    attached: gateway::Attached,
    http: BTreeMap<ObjectName, routes::HttpHung>,
    /// Routes hang on Services.
    has_frontends: bool,
    referrers: follow::Referrers,
    conflicts: conflict::Conflicts,
    views: BTreeMap<Arc<str>, PlannedView>,
    /// Every cluster in use, by name.
    upstreams: BTreeMap<Arc<str>, Used>,
    statuses: Arc<Statuses>,
    standings: Arc<Standings>,
    on_the_wire: Arc<BTreeMap<ObjectName, OnTheWire>>,
}

#[derive(Debug)]
struct PlannedView {
    /// By how many routes of how many route configurations.
    clusters: BTreeMap<Arc<str>, usize>,
    /// Its proxies show endpoints a certificate.
    with_certificate: bool,
    secrets: Vec<Resource>,
    listeners: Vec<Resource>,
    routes: Vec<Resource>,
    /// What these were encoded of.
    ports: Vec<hosts::Hosts>,
}

/// A cluster in use.
#[derive(Debug)]
struct Used {
    /// By so many, as in [`PlannedView::clusters`], and migrations.
    times: usize,
    upstream: Upstream,
}

impl Used {
    fn of(upstream: &Upstream) -> Used {
        Used { times: 0, upstream: upstream.clone() }
    }
}

/// What became of the plan.
enum Planned {
    /// It is that of last time.
    Same,
    /// Some of it was changed.
    Touched(follow::Touched),
    /// It was made anew.
    Anew,
}

/// A cluster as it was built last, with what it was built from.
#[derive(Debug)]
struct Built {
    upstream: Upstream,
    resolved: Resolved,
    cluster: Resource,
    /// The same, for proxies that have a certificate to show; where that is not the same anyway.
    with_certificate: Option<Resource>,
    endpoints: Option<Resource>,
}

impl Built {
    /// As a gateway's proxies get the cluster.
    fn for_view(&self, view: &PlannedView) -> &Resource {
        match &self.with_certificate {
            Some(with) if view.with_certificate => with,
            _ => &self.cluster,
        }
    }
}

/// A cluster always has Services, and nothing else does.
fn is_on_kubernetes(objects: &Objects) -> bool {
    !objects.services.is_empty()
}

/// Whether applications came or went, or instances go by other names than before.
fn names_differ(before: &RegistryView, now: &RegistryView) -> bool {
    let vips = |application: &Application| -> BTreeSet<String> {
        let vips = application.instances.values().flat_map(|instance| instance.vips());
        vips.map(str::to_ascii_lowercase).collect()
    };
    before.applications.len() != now.applications.len()
        || before
            .applications
            .iter()
            .zip(&now.applications)
            .any(|((a, before), (b, now))| a != b || !Arc::ptr_eq(before, now) && vips(before) != vips(now))
}

/// Whether what a source says of endpoints is what it said.
fn is_same_source(source: &Source, before: &RegistryView, now: &RegistryView) -> bool {
    fn is_same<T>(before: Option<&Arc<T>>, now: Option<&Arc<T>>) -> bool {
        match (before, now) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (before, now) => before.is_none() && now.is_none(),
        }
    }
    match source {
        Source::Eureka { application, .. } => {
            is_same(before.applications.get(application), now.applications.get(application))
        }
        Source::Service { name, .. } => {
            before.services.held == now.services.held
                && is_same(before.services.services.get(name), now.services.services.get(name))
        }
        // Of whatever application, so looked at with each change; there are few of them.
        Source::EurekaVip(_) => false,
        Source::Static(_) | Source::Dns { .. } => true,
    }
}

impl Compiler {
    /// Compiles a model.
    pub fn compile(&mut self, model: &Model) -> Compiled {
        let (plan, planned) = self.plan(model);
        let mut services_changed = matches!(planned, Planned::Anew);
        if services_changed || names_differ(&self.registry, &model.registry) {
            services_changed |= self.sidecars.follow(&model.registry);
        }
        if services_changed {
            let services = self.sidecars.names();
            if services != *self.services {
                self.services = Arc::new(services);
            }
        }
        if services_changed || !Arc::ptr_eq(&self.addresses, &model.addresses) {
            services_changed |= self.sidecars.assign(&model.addresses);
            self.addresses = model.addresses.clone();
        }
        if services_changed {
            self.put_all(&plan, model);
        } else {
            // What follows from objects and names is there. This is what happens all day, and it costs what changes.
            self.put_endpoints(&model.registry);
            if let Planned::Touched(touched) = planned {
                self.put_touched(&plan, touched, model);
            }
        }
        self.registry = model.registry.clone();
        let plan = self.plan.insert(plan);
        Compiled {
            views: self.snapshots.clone(),
            statuses: plan.statuses.clone(),
            standings: plan.standings.clone(),
            clusters: self.clusters.clone(),
            migrations: plan.on_the_wire.clone(),
            services: self.services.clone(),
        }
    }

    fn plan(&mut self, model: &Model) -> (Plan, Planned) {
        if let Some(mut plan) = self.plan.take() {
            if plan.is_of(model) {
                return (plan, Planned::Same);
            }
            if plan.can_follow(model)
                && let Some(touched) = plan.follow(model)
            {
                return (plan, Planned::Touched(touched));
            }
        }
        let (plan, sidecars) = Plan::new(model);
        self.sidecars = sidecars;
        (plan, Planned::Anew)
    }

    fn put_all(&mut self, plan: &Plan, model: &Model) {
        self.build(plan, model);
        self.clusters =
            self.built.iter().map(|(name, b)| (name.clone(), b.resolved.status.clone())).collect();
        self.snapshots
            .retain(|view, _| plan.views.contains_key(view) || self.sidecars.namespaces.contains_key(view));
        for (name, view) in &plan.views {
            let built = || view.clusters.keys().filter_map(|name| self.built.get(name));
            let snapshot = self.snapshots.entry(name.clone()).or_default();
            put(snapshot, ResourceType::Secret, &view.secrets);
            put(snapshot, ResourceType::Cluster, built().map(|built| built.for_view(view)));
            put(snapshot, ResourceType::Endpoint, built().filter_map(|built| built.endpoints.as_ref()));
            put(snapshot, ResourceType::Listener, &view.listeners);
            put(snapshot, ResourceType::Route, &view.routes);
        }
        self.put_sidecars();
    }

    /// The endpoints of those clusters whose application is not the one that it was.
    fn put_endpoints(&mut self, registry: &RegistryView) {
        for name in self.concerned(registry) {
            let Some(built) = self.built.get_mut(&name) else { continue };
            if is_same_source(&built.upstream.source, &self.registry, registry) {
                continue;
            }
            let resolved = built.upstream.source.resolve(registry);
            if resolved == built.resolved {
                continue;
            }
            let endpoints = Resource::encode(&cluster::assignment(&name, &resolved.endpoints));
            for snapshot in self.snapshots.values_mut() {
                if snapshot.get(ResourceType::Endpoint, &name).is_some_and(|before| *before != endpoints) {
                    snapshot.insert_encoded(ResourceType::Endpoint, endpoints.clone());
                }
            }
            self.clusters.insert(name, resolved.status.clone());
            (built.endpoints, built.resolved) = (Some(endpoints), resolved);
        }
    }

    /// The clusters that may have other endpoints than before: not all of a cluster's Services are looked at.
    fn concerned(&self, registry: &RegistryView) -> Vec<Arc<str>> {
        let (before, now) = (&self.registry.services, &registry.services);
        if before.held != now.held {
            return self.built.keys().cloned().collect();
        }
        let changed = before.services.diff(&now.services).map(|item| match item {
            DiffItem::Add(name, _) | DiffItem::Remove(name, _) => name,
            DiffItem::Update { new: (name, _), .. } => name,
        });
        let of_services = changed.filter_map(|name| self.of_services.get(name)).flatten();
        of_services.chain(&self.of_others).cloned().collect()
    }

    fn insert(&mut self, name: &Arc<str>, built: Built) {
        self.forget(name);
        match &built.upstream.source {
            Source::Service { name: service, .. } => {
                self.of_services.entry(service.clone()).or_default().insert(name.clone());
            }
            _ => drop(self.of_others.insert(name.clone())),
        }
        self.built.insert(name.clone(), built);
    }

    fn forget(&mut self, name: &str) {
        let Some(built) = self.built.remove(name) else { return };
        self.of_others.remove(name);
        if let Source::Service { name: service, .. } = &built.upstream.source
            && let Some(clusters) = self.of_services.get_mut(service)
        {
            clusters.remove(name);
            if clusters.is_empty() {
                self.of_services.remove(service);
            }
        }
    }

    fn put_sidecars(&mut self) {
        for (name, namespace) in &self.sidecars.namespaces {
            let snapshot = self.snapshots.entry(name.clone()).or_insert_with(Snapshot::by_name_only);
            let services = || namespace.services.values();
            let frontends = || self.sidecars.frontends.of(name);
            let upstreams = services().flat_map(|service| &service.upstreams);
            let upstreams = upstreams.chain(frontends().flat_map(|frontend| &frontend.upstreams));
            let clusters: BTreeSet<&Arc<str>> = upstreams.map(|upstream| &upstream.name).collect();
            let built = || clusters.iter().filter_map(|name| self.built.get(*name));
            put(snapshot, ResourceType::Cluster, built().map(|built| &built.cluster));
            put(snapshot, ResourceType::Endpoint, built().filter_map(|built| built.endpoints.as_ref()));
            let listeners = services().flat_map(|service| &service.listeners);
            let of_ports = frontends().flat_map(|frontend| frontend.listeners(name));
            put(snapshot, ResourceType::Listener, listeners.chain(of_ports));
            let routes = services().map(|service| &service.routes);
            put(snapshot, ResourceType::Route, routes.chain(frontends().map(|frontend| &frontend.routes)));
        }
    }

    fn build(&mut self, plan: &Plan, model: &Model) {
        let planned = plan.upstreams.iter().map(|(name, used)| (name, &used.upstream));
        let mut upstreams: BTreeMap<&Arc<str>, &Upstream> = planned.collect();
        let sidecars = std::mem::take(&mut self.sidecars);
        let services = sidecars.namespaces.values().flat_map(|namespace| namespace.services.values());
        let of_services = services.flat_map(|service| &service.upstreams);
        let of_ports = sidecars.frontends.all().flat_map(|frontend| &frontend.upstreams);
        upstreams.extend(of_services.chain(of_ports).map(|upstream| (&upstream.name, upstream)));
        let gone: Vec<_> = self.built.keys().filter(|name| !upstreams.contains_key(*name)).cloned().collect();
        gone.iter().for_each(|name| self.forget(name));
        for (name, upstream) in upstreams {
            self.build_one(name, upstream, &model.registry);
        }
        self.sidecars = sidecars;
    }

    /// Builds a cluster, as far as it is another than it was.
    fn build_one(&mut self, name: &Arc<str>, upstream: &Upstream, registry: &RegistryView) {
        let before = self.built.get(name).filter(|built| built.upstream == *upstream);
        if before.is_some() && is_same_source(&upstream.source, &self.registry, registry) {
            return;
        }
        let resolved = upstream.source.resolve(registry);
        if before.is_some_and(|built| built.resolved == resolved) {
            return;
        }
        let (cluster, with_certificate) = match before {
            Some(built) => (built.cluster.clone(), built.with_certificate.clone()),
            None => {
                let with = upstream.tls.as_ref().map(|_| Resource::encode(&cluster::cluster(upstream, true)));
                (Resource::encode(&cluster::cluster(upstream, false)), with)
            }
        };
        let endpoints = match upstream.source {
            Source::Dns { .. } => None,
            _ => Some(Resource::encode(&cluster::assignment(name, &resolved.endpoints))),
        };
        let built = Built { upstream: upstream.clone(), resolved, cluster, with_certificate, endpoints };
        self.insert(name, built);
    }
}

/// Makes the resources of one type these, and touches only those that differ.
fn put<'r>(snapshot: &mut Snapshot, ty: ResourceType, wanted: impl IntoIterator<Item = &'r Resource>) {
    let mut gone = snapshot.resources(ty).keys().cloned().collect::<BTreeSet<_>>();
    for resource in wanted {
        gone.remove(&resource.name);
        if snapshot.get(ty, &resource.name) != Some(resource) {
            snapshot.insert_encoded(ty, resource.clone());
        }
    }
    for name in gone {
        snapshot.remove(ty, &name);
    }
}

impl Plan {
    fn is_of(&self, model: &Model) -> bool {
        Arc::ptr_eq(&self.objects, &model.objects)
            && self.migrations == model.migrations
            && self.in_pods == model.in_pods
            && self.has_same_names(model)
    }

    /// Whether the same applications are registered, where that matters.
    fn has_same_names(&self, model: &Model) -> bool {
        let registered = self.splits.registered.as_ref();
        registered.is_none_or(|all| all.iter().eq(model.registry.applications.keys()))
    }

    fn new(model: &Model) -> (Self, sidecar::Sidecars) {
        let objects = &model.objects;
        let mut statuses = Statuses::default();
        let mut upstreams: BTreeMap<Arc<str>, Used> = BTreeMap::new();
        let mut on_the_wire: BTreeMap<ObjectName, OnTheWire> = BTreeMap::new();
        let mut uses = |upstream: &Upstream| {
            let used = upstreams.entry(upstream.name.clone()).or_insert_with(|| Used::of(upstream));
            used.times += 1;
        };

        let splits = Self::splits(model, &mut statuses);
        for (name, split) in &splits.migrations {
            split.upstreams().for_each(&mut uses);
            let [target, legacy] = split.names();
            on_the_wire.insert(name.clone(), OnTheWire { target, legacy, routes: BTreeSet::new() });
        }

        let gateways = gateway::parse_all(objects, model.in_pods, &mut statuses);
        let mut standings = Standings::default();
        let routes::Hung { routes, attachments, attached, http, of_services } =
            routes::hang(objects, &splits, &gateways, &mut statuses, &mut standings);
        mesh::refuse_parameters(objects, &mut statuses);

        let mut views = BTreeMap::new();
        let mut conflicts = conflict::Conflicts::default();
        for (name, parsed) in &gateways {
            let attachments = attachments.get(name).map_or(&[][..], Vec::as_slice);
            let output = view::build(name, parsed, attachments, &routes);
            let view_name: Arc<str> = name.to_string().into();
            let mut clusters: BTreeMap<Arc<str>, usize> = BTreeMap::new();
            for (resource, members) in &output.members {
                for upstream in members.iter().flat_map(|member| routes.upstreams(member)) {
                    *clusters.entry(upstream.name.clone()).or_insert(0) += 1;
                    uses(upstream);
                }
                let compiled = members.iter().filter_map(|member| routes.requests.get(member));
                for migration in compiled.flat_map(|compiled| &compiled.migrations) {
                    if let Some(wire) = on_the_wire.get_mut(migration) {
                        wire.routes.insert((view_name.clone(), resource.as_str().into()));
                    }
                }
            }
            for port in &output.ports {
                for (place, route) in follow::places(name, parsed, port, attachments) {
                    if let Some(compiled) = routes.requests.get(route) {
                        conflicts.put(&place, route, compiled);
                    }
                }
            }
            for (place, route, winner) in output.lost {
                conflicts.lose(place, &route, winner);
            }
            let view = PlannedView {
                clusters,
                with_certificate: parsed.backend_certificate.is_some(),
                secrets: output.secrets.values().map(Resource::encode).collect(),
                listeners: output.listeners.iter().map(Resource::encode).collect(),
                routes: output.routes,
                ports: output.ports,
            };
            views.insert(view_name, view);
        }
        conflicts.say([], &routes, &gateways, &mut statuses, &mut standings);
        Self::settle(objects, &on_the_wire, &mut statuses);
        for (name, wire) in &mut on_the_wire {
            if let Some(service) = sidecar::service_of(objects, name) {
                let routes = sidecar::route_configuration(&name.namespace, service);
                wire.routes.insert(((&*name.namespace).into(), routes.into()));
            }
        }
        let frontends = mesh::Frontends::new(objects, &of_services, &routes.requests);
        let sidecars = sidecar::Sidecars::new(objects, &splits, &model.addresses, frontends);
        for (migration, view, routes) in sidecars.split_by_routes() {
            if let Some(wire) = on_the_wire.get_mut(migration) {
                wire.routes.insert((view.clone(), routes.clone()));
            }
        }
        let mut referrers = follow::Referrers::default();
        http.iter().for_each(|(name, hung)| referrers.add(name, hung));
        let plan = Self {
            objects: objects.clone(),
            migrations: model.migrations.clone(),
            in_pods: model.in_pods,
            splits,
            gateways,
            routes,
            attached,
            http,
            has_frontends: !of_services.is_empty(),
            referrers,
            conflicts,
            views,
            upstreams,
            statuses: Arc::new(statuses),
            standings: Arc::new(standings),
            on_the_wire: Arc::new(on_the_wire),
        };
        (plan, sidecars)
    }

    fn splits(model: &Model, statuses: &mut Statuses) -> backend::Splits {
        let registered =
            is_on_kubernetes(&model.objects).then(|| model.registry.applications.keys().cloned().collect());
        let mut splits = backend::Splits { registered, ..backend::Splits::default() };
        for (name, object) in &model.objects.migrations {
            let status = ObjectRef { kind: Kind::Migration, name: name.clone() };
            let Some(state) = model.state_of(name) else { continue };
            match migration::compile(&model.objects, name, &object.spec, &state) {
                Ok((split, errors)) => {
                    for error in errors {
                        statuses.refuse(&status, ConditionType::ResolvedRefs, error);
                    }
                    splits.migrations.insert(name.clone(), Arc::new(split));
                }
                Err(error) => statuses.refuse(&status, ConditionType::Accepted, error),
            }
            if let Some((first, _)) = model.objects.migration_of(&name.namespace, &object.spec.service)
                && first != name
            {
                let message = format!(
                    "service {} is already under Migration {first}, which is the one in force",
                    object.spec.service
                );
                let error = FieldError::new("spec.service", "Conflicted", message);
                statuses.refuse(&status, ConditionType::Accepted, error);
            }
        }
        splits
    }

    fn settle(objects: &Objects, on_the_wire: &BTreeMap<ObjectName, OnTheWire>, statuses: &mut Statuses) {
        for (name, wire) in on_the_wire {
            if wire.routes.is_empty() {
                let message = "no route of a gateway sends to this service, so the migration moves only what \
                               sidecars send";
                let error = FieldError::new("spec.service", "Unused", message);
                let object = ObjectRef { kind: Kind::Migration, name: name.clone() };
                statuses.refuse(&object, ConditionType::Effective, error);
            }
        }
        for kind in Kind::ALL {
            for name in objects.names(kind) {
                statuses.settle(ObjectRef { kind, name: name.clone() });
            }
        }
    }
}

#[cfg(test)]
mod tests;
