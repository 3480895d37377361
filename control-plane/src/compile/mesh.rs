//! Routes of Services (GAMMA). A request of an application's is for a Service where it goes to one of its cluster IPs at
//! one of its ports, whatever host it names: sidecars know such a frontend by a listener called `IP:PORT`, and those to
//! which nothing says where a request was going by `NAME:PORT`. Routes in the Service's own namespace, its producer's,
//! hold for sidecars everywhere. Those in another, a consumer's, hold for that namespace's sidecars alone, and there in
//! place of the producer's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};
use pontoon_xds::Resource;

use super::reference::Parent;
use super::status::{ConditionType, Statuses};
use super::{hosts, is_on_kubernetes, route, sidecar};
use crate::model::upstream::Upstream;
use crate::objects::problem::{FieldError, did_you_mean};
use crate::objects::service::ServicePort;
use crate::objects::{Kind, ObjectName, ObjectRef, Objects};

/// Over plain HTTP a port that need not be said.
pub(super) const HTTP: u16 = 80;

/// A Service and one of its ports.
type Port = (ObjectName, u16);

/// The routes that hang on each port.
pub(super) type Attached = BTreeMap<Port, BTreeSet<ObjectRef>>;

/// A Service's ports, each with its routes where it has some.
pub(super) type Ports<'f> = BTreeMap<u16, Option<&'f Frontend>>;

/// Whether a parent is a Service.
pub(super) fn is_service(parent: &Parent) -> bool {
    parent.group.as_deref() == Some("") && parent.kind.as_deref() == Some("Service")
}

/// Whether it is for us to say something of a route to a Service.
pub(super) fn is_ours(objects: &Objects, route: &ObjectRef) -> bool {
    is_on_kubernetes(objects) && is_request(route.kind)
}

fn is_request(kind: Kind) -> bool {
    matches!(kind, Kind::HttpRoute | Kind::GrpcRoute)
}

/// Says of our meshes that have parameters that they are not accepted: there is nothing to say by them.
pub(super) fn refuse_parameters(objects: &Objects, statuses: &mut Statuses) {
    let ours = objects.meshes.iter().filter(|(_, mesh)| objects.controller.is(&mesh.spec.controller_name));
    for (name, _) in ours.filter(|(_, mesh)| mesh.spec.parameters_ref.is_some()) {
        let message = "a mesh has no parameters here; pods' annotations tune their sidecars";
        let error = FieldError::new("spec.parametersRef", "InvalidParameters", message);
        let object = ObjectRef { kind: Kind::Mesh, name: name.clone() };
        statuses.refuse(&object, ConditionType::Accepted, error);
    }
}

/// Hangs a route on those ports of a Service that its parent at `field` names.
pub(super) fn attach(
    objects: &Objects,
    route: &ObjectRef,
    parent: &Parent,
    field: &str,
    attached: &mut Attached,
) -> Result<(), FieldError> {
    if !is_request(route.kind) {
        let message = format!(
            "a {} of a Service is not supported; expected a Gateway or a ListenerSet as its parent",
            route.kind
        );
        return Err(FieldError::new(format!("{field}.kind"), "InvalidKind", message));
    }
    let namespace = parent.namespace.as_deref().unwrap_or(&route.name.namespace);
    let name = ObjectName::new(namespace, parent.name.as_str());
    let at_name = format!("{field}.name");
    // What there is in other namespaces is not told.
    let is_own = name.namespace == route.name.namespace;
    let Some(service) = objects.services.get(&name) else {
        let known = objects.services.keys().filter(|known| is_own && known.namespace == name.namespace);
        let hint = match did_you_mean(&parent.name, known.map(|known| &*known.name)) {
            Some(meant) => format!("; did you mean {meant}?"),
            None if is_on_kubernetes(objects) => String::new(),
            None => "; they are known on Kubernetes only".to_owned(),
        };
        return Err(FieldError::new(
            at_name,
            "NoMatchingParent",
            format!("there is no Service {name}{hint}"),
        ));
    };
    if service.cluster_ips.is_empty() {
        let message =
            format!("Service {name} has no cluster IP, by which requests to it could be told from others");
        return Err(FieldError::new(at_name, "UnsupportedValue", message));
    }
    let is_meant = |port: &&ServicePort| {
        parent.section_name.as_deref().is_none_or(|name| *name == *port.name)
            && parent.port.is_none_or(|number| number == i32::from(port.port))
    };
    let mut meant = service.ports.iter().filter(is_meant).peekable();
    if meant.peek().is_none() {
        let ports = service.ports.iter().map(|port| format!("{}:{}", port.name, port.port));
        let hint = match is_own {
            true => format!("; it has {}", ports.collect::<Vec<_>>().join(", ")),
            false => String::new(),
        };
        let message = format!("Service {name} has no TCP port with that sectionName and port{hint}");
        return Err(FieldError::new(field, "NoMatchingParent", message));
    }
    // The API's rule where kinds meet at a port. They were hung before.
    let has_calls = |port: &&ServicePort| {
        let own =
            |other: &ObjectRef| other.kind == Kind::GrpcRoute && other.name.namespace == route.name.namespace;
        attached.get(&(name.clone(), port.port)).is_some_and(|routes| routes.iter().any(own))
    };
    let free: Vec<_> = meant.filter(|port| route.kind == Kind::GrpcRoute || !has_calls(port)).collect();
    if free.is_empty() {
        let message =
            format!("GRPCRoutes of this namespace hold for requests to Service {name}, so no others do");
        return Err(FieldError::new(at_name, "Conflicted", message));
    }
    for port in free {
        attached.entry((name.clone(), port.port)).or_default().insert(route.clone());
    }
    Ok(())
}

/// Whether a route holds for sidecars alone. To a Service such a one may send without a grant: its clients reach that by
/// themselves, unlike those of a gateway (GEP-1294).
pub(super) fn is_for_sidecars(objects: &Objects, route: &ObjectRef) -> bool {
    fn all<'p, P: 'p>(parents: Option<&'p Vec<P>>) -> bool
    where
        Parent: From<&'p P>,
    {
        parents.is_some_and(|parents| {
            !parents.is_empty() && parents.iter().all(|parent| is_service(&Parent::from(parent)))
        })
    }
    match route.kind {
        Kind::HttpRoute => {
            all(objects.routes.get(&route.name).and_then(|route| route.spec.parent_refs.as_ref()))
        }
        Kind::GrpcRoute => {
            all(objects.grpc_routes.get(&route.name).and_then(|route| route.spec.parent_refs.as_ref()))
        }
        _ => false,
    }
}

/// A port with routes, as the sidecars of some namespaces are told of it.
#[derive(Debug)]
pub(super) struct Frontend {
    service: ObjectName,
    /// One a cluster IP, and one a name.
    listeners: Vec<Resource>,
    /// The same for the name that only those in the Service's own namespace may use.
    short: Resource,
    pub(super) routes: Resource,
    /// The clusters that they send to.
    pub(super) upstreams: Vec<Upstream>,
    /// The migrations that they are split by.
    pub(super) migrations: BTreeSet<ObjectName>,
}

/// All ports with routes.
#[derive(Debug, Default)]
pub(super) struct Frontends {
    /// By their producers' routes.
    everywhere: BTreeMap<Port, Frontend>,
    /// By the consumers' of a namespace.
    own: BTreeMap<Arc<str>, BTreeMap<Port, Frontend>>,
}

impl Frontends {
    pub(super) fn new(
        objects: &Objects,
        attached: &Attached,
        requests: &BTreeMap<ObjectRef, Arc<route::Compiled>>,
    ) -> Self {
        let mut frontends = Self::default();
        for (port, routes) in attached {
            let mut by_namespace: BTreeMap<&Arc<str>, Vec<&route::Compiled>> = BTreeMap::new();
            for route in routes {
                by_namespace
                    .entry(&route.name.namespace)
                    .or_default()
                    .extend(requests.get(route).map(|compiled| &**compiled));
            }
            for (namespace, routes) in by_namespace {
                let frontend = Frontend::new(objects, port, &routes);
                let of = match *namespace == port.0.namespace {
                    true => &mut frontends.everywhere,
                    false => frontends.own.entry(namespace.clone()).or_default(),
                };
                of.insert(port.clone(), frontend);
            }
        }
        frontends
    }

    /// All of them, whoever is told.
    pub(super) fn all(&self) -> impl Iterator<Item = &Frontend> {
        self.everywhere.values().chain(self.own.values().flat_map(BTreeMap::values))
    }

    /// Those that the sidecars of a namespace are told of.
    pub(super) fn of(&self, namespace: &str) -> impl Iterator<Item = &Frontend> {
        let own = self.own.get(namespace);
        let others =
            self.everywhere.iter().filter(move |(port, _)| own.is_none_or(|own| !own.contains_key(*port)));
        others.map(|(_, frontend)| frontend).chain(own.into_iter().flat_map(BTreeMap::values))
    }

    /// The namespaces whose sidecars are told something else than all others'.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.everywhere.keys().map(|(service, _)| &service.namespace).chain(self.own.keys())
    }

    /// The ports of a Service as the sidecars of its own namespace are told of them; empty where none has routes.
    pub(super) fn ports(&self, objects: &Objects, service: &ObjectName) -> Ports<'_> {
        let of = |port: &ServicePort| (port.port, self.everywhere.get(&(service.clone(), port.port)));
        let ports: Ports<'_> =
            objects.services.get(service).into_iter().flat_map(|service| &service.ports).map(of).collect();
        if ports.values().any(Option::is_some) { ports } else { Ports::new() }
    }
}

impl Frontend {
    fn new(objects: &Objects, (service, port): &Port, routes: &[&route::Compiled]) -> Self {
        let name = format!("{service}:{port}");
        let mut entries: Vec<&route::Entry> = routes.iter().flat_map(|compiled| &compiled.entries).collect();
        entries.sort_by(|a, b| a.order.cmp(&b.order));
        let mut ordered: Vec<Route> = entries.into_iter().flat_map(|entry| entry.routes.clone()).collect();
        ordered.iter_mut().for_each(|route| hosts::keep_port(route, *port, HTTP));
        let upstreams: BTreeMap<_, _> = routes.iter().flat_map(|compiled| &compiled.upstreams).collect();
        let addresses = objects.services.get(service).into_iter().flat_map(|service| &service.cluster_ips);
        let listener = |called: String| Resource::encode(&sidecar::api_listener(&called, &name));
        let by_address = addresses.map(|ip| SocketAddr::new(*ip, *port).to_string());
        let long = ["", ".svc", ".svc.cluster.local"];
        let by_name = long.map(|end| format!("{}.{}{end}:{port}", service.name, service.namespace));
        Self {
            service: service.clone(),
            listeners: by_address.chain(by_name).map(listener).collect(),
            short: listener(format!("{}:{port}", service.name)),
            routes: Resource::encode(&RouteConfiguration {
                name: name.clone(),
                // The host that a request names is not asked.
                virtual_hosts: vec![VirtualHost {
                    name: name.clone(),
                    domains: vec!["*".to_owned()],
                    routes: ordered,
                    ..VirtualHost::default()
                }],
                ..RouteConfiguration::default()
            }),
            upstreams: upstreams.into_values().cloned().collect(),
            migrations: routes.iter().flat_map(|compiled| &compiled.migrations).cloned().collect(),
        }
    }

    /// Those that the sidecars of a namespace may ask for.
    pub(super) fn listeners(&self, namespace: &str) -> impl Iterator<Item = &Resource> {
        self.listeners.iter().chain((*self.service.namespace == *namespace).then_some(&self.short))
    }

    /// Its rules, in order.
    pub(super) fn rules(&self) -> Vec<Route> {
        let hosts = self.routes.decode::<RouteConfiguration>().map(|routes| routes.virtual_hosts);
        hosts.unwrap_or_default().into_iter().flat_map(|host| host.routes).collect()
    }
}

#[cfg(test)]
mod tests;
