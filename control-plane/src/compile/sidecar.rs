//! What sidecars are told: for each service that a namespace can name an API listener, as proxyless gRPC asks for
//! it, and one route configuration. Everything is served by name only, so a sidecar costs what it uses.
//!
//! A name is the migration of that service where there is one, else the `Pool` of that name, else the Eureka
//! application, else whatever instances go by it (`vipAddress`). What a user wrote goes before what registered itself:
//! of an application that has a Kubernetes Service of its name, that is meant, as it is in routes.
//!
//! Each listener carries the service's virtual address as metadata, which DNS in the sidecar answers with; and one
//! more is named by each address, for connections to it of which the sidecar does not know the name (any more).
//!
//! A port of a Service that has routes of its own (`mesh`) is a name too: `IP:PORT`.
//!
//! A namespace without an object of its own has no view of its own: its sidecars share one, [`NO_NAMESPACE`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::listener::v3::{ApiListener, Listener};
use envoy_types::pb::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value};
use envoy_types::util::pack_any;
use pontoon_xds::Resource;

use super::backend::{Destination, Splits};
use super::mesh::{Frontend, Frontends, HTTP, Ports};
use super::{policy, route, wire};
use crate::model::addresses::{Addresses, VirtualAddress};
use crate::model::instance::RegistryView;
use crate::model::upstream::Upstream;
use crate::objects::pool::EurekaSource;
use crate::objects::{ObjectName, Objects};

/// The namespace that sidecars are of unless they say another: it is there without any object.
const DEFAULT_NAMESPACE: &str = "default";

/// What the sidecars of every namespace without an object may ask for: the applications of Eureka, which are of no
/// namespace. No namespace has this name.
pub const NO_NAMESPACE: &str = "";

/// The key of the virtual addresses in a listener's metadata.
const METADATA: &str = "pontoon.dev/addresses";

/// A service under all its names.
#[derive(Debug, Clone)]
pub(super) struct Service {
    /// One API listener a name and address; made when the address is [known](Sidecars::assign).
    pub(super) listeners: Vec<Resource>,
    names: Vec<String>,
    address: Option<VirtualAddress>,
    /// `None`: a user wrote it.
    registered: Option<Registered>,
    /// Its route configuration.
    pub(super) routes: Resource,
    /// The clusters that it sends to.
    pub(super) upstreams: Vec<Upstream>,
    /// The migrations that rules of its own are split by.
    pub(super) migrations: BTreeSet<ObjectName>,
}

/// The services of each namespace by short name, kept from one compilation to the next.
#[derive(Debug, Default)]
pub(super) struct Sidecars {
    pub(super) namespaces: BTreeMap<Arc<str>, Namespace>,
    pub(super) frontends: Frontends,
}

/// The services that one namespace's sidecars can name.
#[derive(Debug, Default)]
pub(super) struct Namespace {
    pub(super) services: BTreeMap<Arc<str>, Service>,
    /// Those that a user wrote: the same until an object or a migration changes.
    written: BTreeSet<Arc<str>>,
}

impl Sidecars {
    /// Of objects and migrations; applications are to be [followed](Sidecars::follow).
    pub(super) fn new(
        objects: &Objects,
        splits: &Splits,
        addresses: &Addresses,
        frontends: Frontends,
    ) -> Self {
        let mut sidecars = Self { frontends, ..Self::default() };
        for namespace in [DEFAULT_NAMESPACE, NO_NAMESPACE] {
            sidecars.namespaces.insert(namespace.into(), Namespace::default());
        }
        let all = objects.gateways.keys().chain(objects.pools.keys()).chain(objects.migrations.keys());
        let all = all.map(|name| &name.namespace).chain(sidecars.frontends.namespaces());
        for namespace in all.cloned().collect::<BTreeSet<_>>() {
            sidecars.namespaces.entry(namespace).or_default();
        }
        for name in objects.services.keys().filter(|name| is_called(splits, addresses, name)) {
            // An address has no ports, so a Service of several is not reached by it.
            if let Ok(upstream) = Upstream::of_service(objects, name, None) {
                let Some(upstream) = suited(objects, upstream, ("Service", name)) else { continue };
                let namespace = sidecars.namespaces.entry((&*name.namespace).into()).or_default();
                let ports = sidecars.frontends.ports(objects, name);
                namespace.write(&name.namespace, &name.name, Destination::to(upstream), &ports);
            }
        }
        for (name, object) in &objects.pools {
            if let Ok(upstream) = Upstream::of_pool(objects, name, &object.spec) {
                let Some(upstream) = suited(objects, upstream, ("Pool", name)) else { continue };
                let namespace = sidecars.namespaces.entry((&*name.namespace).into()).or_default();
                let ports = sidecars.frontends.ports(objects, name);
                namespace.write(&name.namespace, &name.name, Destination::to(upstream), &ports);
            }
        }
        for (name, split) in &splits.migrations {
            if let Some(service) = service_of(objects, name) {
                let namespace = sidecars.namespaces.entry((&*name.namespace).into()).or_default();
                let ports = ObjectName::new(name.namespace.clone(), service.to_ascii_lowercase());
                let ports = sidecars.frontends.ports(objects, &ports);
                namespace.write(
                    &name.namespace,
                    service,
                    Destination::Migration(name, split.clone()),
                    &ports,
                );
            }
        }
        sidecars
    }

    /// Takes up the applications that are registered, and drops those that are not; says whether any did change.
    pub(super) fn follow(&mut self, registry: &RegistryView) -> bool {
        let mut changed = false;
        for (name, namespace) in &mut self.namespaces {
            changed |= namespace.follow(name, registry);
        }
        changed
    }

    /// Makes the listeners of services that are new or have another address than before; says whether there are
    /// such.
    pub(super) fn assign(&mut self, addresses: &Addresses) -> bool {
        let mut changed = false;
        for service in self.namespaces.values_mut().flat_map(|namespace| namespace.services.values_mut()) {
            let address = addresses.of(&service.routes.name);
            if service.listeners.is_empty() || service.address != address {
                service.list(address);
                changed = true;
            }
        }
        changed
    }

    /// The migrations that routes of Services are split by, each with a view and a route configuration that it is in.
    pub(super) fn split_by_routes(&self) -> impl Iterator<Item = (&ObjectName, &Arc<str>, &Arc<str>)> {
        self.namespaces.iter().flat_map(|(view, namespace)| {
            let of_names = namespace.services.values().map(|service| (&service.migrations, &service.routes));
            let of_ports = self.frontends.of(view).map(|frontend| (&frontend.migrations, &frontend.routes));
            of_names.chain(of_ports).flat_map(move |(migrations, routes)| {
                migrations.iter().map(move |migration| (migration, view, &routes.name))
            })
        })
    }

    /// Whether any service sends to a cluster.
    pub(super) fn uses(&self, cluster: &str) -> bool {
        let services = self.namespaces.values().flat_map(|namespace| namespace.services.values());
        let of_services = services.flat_map(|service| &service.upstreams);
        let of_ports = self.frontends.all().flat_map(|frontend| &frontend.upstreams);
        of_services.chain(of_ports).any(|upstream| *upstream.name == *cluster)
    }

    /// Every service, by `namespace/service`.
    pub(super) fn names(&self) -> BTreeSet<Arc<str>> {
        let services = self.namespaces.values().flat_map(|namespace| namespace.services.values());
        services.map(|service| service.routes.name.clone()).collect()
    }
}

impl Namespace {
    fn write(&mut self, namespace: &str, service: &str, destination: Destination<'_>, ports: &Ports<'_>) {
        let service: Arc<str> = service.to_ascii_lowercase().into();
        self.services.insert(service.clone(), Service::new(namespace, &service, destination, ports));
        self.written.insert(service);
    }

    fn follow(&mut self, namespace: &str, registry: &RegistryView) -> bool {
        let mut registered: BTreeMap<Arc<str>, Registered> = BTreeMap::new();
        for (application, of) in &registry.applications {
            let vips = of.instances.values().flat_map(|instance| instance.vips());
            // Most go by their application's name.
            let others = vips.filter(|vip| !vip.eq_ignore_ascii_case(application) && is_name(vip));
            registered.extend(others.map(|vip| (vip.to_ascii_lowercase().into(), Registered::Vip)));
        }
        // An application's own name goes before what others call themselves.
        for name in registry.applications.keys() {
            registered.insert(name.to_ascii_lowercase().into(), Registered::Application);
        }
        let before = self.services.len();
        self.services.retain(|name, _| self.written.contains(name) || registered.contains_key(name));
        let mut changed = self.services.len() != before;
        for (name, registered) in registered {
            let as_it_was =
                |kept: &Service| self.written.contains(&name) || kept.registered == Some(registered);
            if self.services.get(&name).is_some_and(as_it_was) {
                continue;
            }
            let upstream = match registered {
                Registered::Application => {
                    let source = EurekaSource { application: name.to_string(), selector: BTreeMap::new() };
                    Upstream::of_eureka(&source)
                }
                Registered::Vip => Upstream::of_vip(&name),
            };
            let service = Service::new(namespace, &name, Destination::to(upstream), &Ports::new());
            self.services.insert(name, Service { registered: Some(registered), ..service });
            changed = true;
        }
        changed
    }
}

/// Whether sidecars call a Service by its name: where an application has it, too, and where something had it to which
/// they were told an address. Such a migration has ended, and applications keep the address for as long as they like.
pub(super) fn is_called(splits: &Splits, addresses: &Addresses, service: &ObjectName) -> bool {
    let had = || addresses.of(&route_configuration(&service.namespace, &service.name)).is_some();
    splits.registered.is_some() && (splits.is_registered(&service.name) || had())
}

/// An upstream as its policy says. Whose policy cannot be met is spoken to by nobody; the policy says so itself. One
/// whose TLS only its callers know has no name here, and their connections pass.
fn suited(objects: &Objects, upstream: Upstream, target: (&str, &ObjectName)) -> Option<Upstream> {
    match policy::apply(objects, upstream, target, None) {
        Ok(upstream) => Some(upstream),
        Err(error) => (error.reason != policy::NO_POLICY).then(Upstream::unresolved),
    }
}

/// As what a name stands in Eureka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registered {
    Application,
    Vip,
}

/// Whether applications can call it by that: names that were never filled in (`${...}`) are registered too.
fn is_name(vip: &str) -> bool {
    vip.len() <= 253 && vip.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// The service that a migration is in force for: of two migrations of one service, the first is.
pub(super) fn service_of<'o>(objects: &'o Objects, name: &ObjectName) -> Option<&'o str> {
    let service = &objects.migrations.get(name)?.spec.service;
    let (first, _) = objects.migration_of(&name.namespace, service)?;
    (first == name).then_some(service)
}

/// The name of a service's route configuration.
pub(super) fn route_configuration(namespace: &str, service: &str) -> String {
    format!("{namespace}/{}", service.to_ascii_lowercase())
}

impl Service {
    /// `ports`: those of the Kubernetes Service of that name, where one of them has routes.
    fn new(namespace: &str, service: &str, destination: Destination<'_>, ports: &Ports<'_>) -> Self {
        let routes = route_configuration(namespace, service);
        let mut names = vec![service.to_owned()];
        if namespace != NO_NAMESPACE {
            names.extend(["", ".svc", ".svc.cluster.local"].map(|end| format!("{service}.{namespace}{end}")));
        }
        let mut upstreams: Vec<Upstream> = match &destination {
            Destination::Migration(_, split) => split.upstreams().cloned().collect(),
            Destination::Clusters(arms) => arms.iter().map(|arm| arm.upstream.clone()).collect(),
        };
        let ruled = || ports.values().flatten();
        upstreams.extend(ruled().flat_map(|frontend| &frontend.upstreams).cloned());
        let virtual_hosts = hosts(service, &route::to_service(&routes, destination), ports);
        Self {
            listeners: Vec::new(),
            names,
            address: None,
            registered: None,
            routes: Resource::encode(&RouteConfiguration {
                name: routes,
                virtual_hosts,
                ..RouteConfiguration::default()
            }),
            upstreams,
            migrations: ruled().flat_map(|frontend| &frontend.migrations).cloned().collect(),
        }
    }

    fn list(&mut self, address: Option<VirtualAddress>) {
        let metadata = address.zip(self.names.first()).map(|(address, name)| metadata(address, name));
        let listener = |name: &str| {
            let listener = api_listener(name, &self.routes.name);
            Resource::encode(&Listener { metadata: metadata.clone(), ..listener })
        };
        let mut listeners: Vec<Resource> = self.names.iter().map(|name| listener(name)).collect();
        if let Some(VirtualAddress { v4, v6 }) = address {
            listeners.extend(v4.map(|address| listener(&address.to_string())));
            listeners.extend(v6.map(|address| listener(&address.to_string())));
        }
        self.listeners = listeners;
        self.address = address;
    }
}

/// One host for all requests; where ports of the service have routes, one each. A request says its port with its host,
/// unless it is HTTP's own. Where there is but one it is meant whatever is said.
fn hosts(service: &str, everything: &[Route], ports: &Ports<'_>) -> Vec<VirtualHost> {
    let host = |name: String, domain: String, rules: Option<&Frontend>| VirtualHost {
        name,
        domains: vec![domain],
        routes: rules.map_or_else(|| everything.to_vec(), Frontend::rules),
        ..VirtualHost::default()
    };
    let only = ports.values().next().filter(|_| ports.len() == 1);
    let usual = only.or_else(|| ports.get(&HTTP)).copied().flatten();
    let others = ports.iter().filter(|(port, _)| **port != HTTP && only.is_none());
    let others = others.map(|(port, rules)| host(format!("{service}:{port}"), format!("*:{port}"), *rules));
    std::iter::once(host(service.to_owned(), "*".to_owned(), usual)).chain(others).collect()
}

/// The addresses by the name that they belong to. Clients that do not know it pass it over, as metadata is. One
/// key a map: the order of several is not the same in each process, and a version is a hash of the bytes.
fn metadata(address: VirtualAddress, name: &str) -> Metadata {
    let text = |text: String| Value { kind: Some(Kind::StringValue(text)) };
    let v4 = address.v4.map(|address| text(address.to_string()));
    let v6 = address.v6.map(|address| text(address.to_string()));
    let list = Kind::ListValue(ListValue { values: v4.into_iter().chain(v6).collect() });
    let fields = [(name.to_owned(), Value { kind: Some(list) })].into();
    Metadata { filter_metadata: [(METADATA.to_owned(), Struct { fields })].into(), ..Metadata::default() }
}

/// It says where the routes are, and nothing about sockets: the sidecar's own listener does that.
pub(super) fn api_listener(name: &str, routes: &str) -> Listener {
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(wire::ads()),
            route_config_name: routes.to_owned(),
        })),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(Router::default()))),
            ..HttpFilter::default()
        }],
        ..HttpConnectionManager::default()
    };
    Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(pack_any(manager)) }),
        ..Listener::default()
    }
}
