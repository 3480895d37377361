//! The handles by name, and what the newest accepted resources put into them. A bad resource is refused alone;
//! the last good one of its name goes on serving. A route table is put in force once the clusters it names are
//! warm, and a listener once it has a table: make before break, also when the control plane sends too early.

mod dump;
mod endpoints;
mod fixed;
mod secrets;
mod sidecar;
mod warming;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterMessage;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener as ListenerMessage;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use pontoon_xds::client::{Rejected, Update};
use pontoon_xds::resource::ResourceMessage;
use pontoon_xds::{Resource, ResourceType, json};
use tokio::time::Instant;

use super::chains::{Chain, ChainTls, Chains, OriginalDst, Serves};
use super::differing::{Differing, Met, noting};
use super::hcm::{Manager, Routes};
use super::lds::{CompiledChain, Reader};
use super::listener::{HttpSettings, Listener, RouteHandle, TcpSettings};
use super::problem::{Problem, Under};
use super::secrets::{References, Secret};
use super::tls::Downstream;
use super::tls_upstream::Upstream;
use super::{cds, eds, lds, rds, tcp_proxy};
use crate::route::RouteTable;
use crate::upstream::cluster::{Cluster, ClusterSettings, EndpointHealth, EndpointSource};
pub use dump::OwnEndpoints;
pub use fixed::Changed;
use secrets::Waiting;
use warming::{Pending, WARM_TIMEOUT};

/// All configuration of the process. It lives on the control side; the path sees only the handles.
#[derive(Debug, Default)]
pub struct Store {
    handles: HashMap<Arc<str>, Arc<Cluster>>,
    /// Clusters whose endpoints go by another name than theirs: that name, and theirs.
    aliases: BTreeSet<(Arc<str>, Arc<str>)>,
    /// In boxes, as there are thousands, and a map has room for half as many again.
    clusters: BTreeMap<Arc<str>, Box<ClusterEntry>>,
    /// What is compiled of them is in the clusters.
    assignments: BTreeMap<Arc<str>, Box<Entry<()>>>,
    /// Where this proxy is: endpoints that are meant for it go first.
    zone: Option<Arc<str>>,
    routes: BTreeMap<Arc<str>, RouteEntry>,
    listeners: BTreeMap<Arc<str>, Entry<ListenerEntry>>,
    /// API listeners, with what they say.
    apis: BTreeMap<Arc<str>, Entry<sidecar::Api>>,
    sidecar: Option<sidecar::Sidecar>,
    /// What the bootstrap says that the control plane cannot change.
    fixed: BTreeSet<(ResourceType, Arc<str>)>,
    /// There is no control plane: nothing is waited for.
    alone: bool,
    secrets: BTreeMap<Arc<str>, Entry<Secret>>,
    /// Listeners and clusters that wait for secrets.
    waiting: BTreeMap<(ResourceType, Arc<str>), Waiting>,
    refused: BTreeMap<(ResourceType, Arc<str>), Refused>,
    differing: Differing,
    seen: BTreeSet<ResourceType>,
    /// Clusters that the control plane has taken away while something in force leads to them, and until when they are
    /// kept.
    outgoing: BTreeMap<Arc<str>, Instant>,
    /// A cluster that went is still held; then is looked again.
    leaving: Option<Instant>,
    /// Something else than endpoints changed since it was last settled.
    touched: bool,
    /// What is subscribed to may have changed since that was last asked.
    renamed: bool,
    was_ready: bool,
    emptied: u64,
}

#[derive(Debug)]
struct Entry<T> {
    resource: Resource,
    since: SystemTime,
    value: T,
}

/// With what its connections are made by, where that is TLS.
type ClusterEntry = Entry<Option<Box<Upstream>>>;

#[derive(Debug)]
struct RouteEntry {
    handle: Arc<RouteHandle>,
    /// What is in force or pending; `None`: named by a listener, not arrived.
    current: Option<Entry<()>>,
    pending: Option<Pending>,
    /// What the next version need not compile again.
    earlier: Option<Arc<rds::Earlier>>,
}

#[derive(Debug)]
struct ListenerEntry {
    handle: Arc<Listener>,
    /// Of each chain in their order, to be read again when a file or a secret changes.
    downstream: Vec<Option<Downstream>>,
}

/// A resource that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The version that was refused.
    pub resource: Resource,
    /// Path and reason.
    pub reason: String,
    /// When.
    pub at: SystemTime,
}

/// A resource for the admin port.
#[derive(Debug, Clone)]
pub struct Dumped {
    /// Its type.
    pub ty: ResourceType,
    /// Its name.
    pub name: Arc<str>,
    /// What is in force, and since when; `None`: only refused versions came.
    pub in_force: Option<(Resource, SystemTime)>,
    /// A later version that was refused.
    pub refused: Option<Refused>,
    /// A version that waits for what it names.
    pub warming: Option<Resource>,
    /// It is the bootstrap's, or a sidecar's own.
    pub is_static: bool,
}

impl Store {
    /// The same of a proxy that is in this zone. Endpoints that are there already stay as they are.
    #[must_use]
    pub fn in_zone(self, zone: Option<Arc<str>>) -> Store {
        Store { zone, ..self }
    }

    /// Takes an update; gives what is refused.
    pub fn apply(&mut self, update: Update, now: Instant) -> Vec<Rejected> {
        let ty = update.ty;
        self.renamed |= self.seen.insert(ty);
        let mut rejected = Vec::new();
        for resource in update.changed {
            if self.is_own(ty, &resource.name) {
                let reason = String::from("is the name of a resource of the bootstrap's");
                rejected.push(Rejected { name: resource.name, reason });
                continue;
            }
            let name = resource.name.clone();
            match self.put(ty, resource.clone(), now) {
                Ok(()) => {
                    self.refused.remove(&(ty, name));
                }
                Err(problem) => {
                    let reason = problem.to_string();
                    rejected.push(Rejected { name: name.clone(), reason: reason.clone() });
                    let refused = Refused { resource, reason, at: SystemTime::now() };
                    self.refused.insert((ty, name), refused);
                }
            }
        }
        for name in update.removed {
            if self.is_own(ty, &name) {
                continue;
            }
            self.refused.remove(&(ty, name.clone()));
            self.differing.put(ty, &name, Met::new());
            self.remove(ty, &name, now);
        }
        self.settle(now);
        rejected
    }

    fn put(&mut self, ty: ResourceType, resource: Resource, now: Instant) -> Result<(), Problem> {
        self.note(ty);
        let name = resource.name.clone();
        let (put, met) = noting(|| match ty {
            ResourceType::Secret => self.put_secret(resource, now),
            ResourceType::Cluster => self.put_cluster(resource, now),
            ResourceType::Endpoint => self.put_assignment(resource),
            ResourceType::Listener => self.put_listener(resource, now),
            ResourceType::Route => self.put_routes(resource, now),
        });
        put?;
        self.differing.put(ty, &name, met);
        Ok(())
    }

    /// Endpoints change most often, and nothing but their clusters with them; routes name no resources but clusters.
    fn note(&mut self, ty: ResourceType) {
        self.touched |= ty != ResourceType::Endpoint;
        self.renamed |= !matches!(ty, ResourceType::Endpoint | ResourceType::Route);
    }

    /// Whether what is [wanted](Store::wanted) may be other names than when this was last asked.
    pub fn take_renamed(&mut self) -> bool {
        std::mem::take(&mut self.renamed) || self.is_sidecar()
    }

    fn put_cluster(&mut self, resource: Resource, now: Instant) -> Result<(), Problem> {
        let message: ClusterMessage = decode(&resource)?;
        named(&resource, &message.name)?;
        let mut compiled = cds::compile(&message)?;
        // Of thousands of clusters nearly all call their endpoints so.
        if let EndpointSource::Eds(service) = &mut compiled.source
            && *service == resource.name
        {
            service.clone_from(&resource.name);
        }
        self.outgoing.remove(&resource.name);
        let references = compiled.tls.as_ref().map(Upstream::references).unwrap_or_default();
        if self.waits(ResourceType::Cluster, &resource, references, now) {
            return Ok(());
        }
        let secrets = |name: &str| self.secret(name);
        let tls = compiled.tls.as_ref().map(|upstream| upstream.build(&secrets)).transpose()?;
        let handle = self.handle(&resource.name);
        let settings = ClusterSettings {
            version: resource.version.clone(),
            connect_timeout: compiled.connect_timeout,
            policy: compiled.policy,
            tls,
            proxy_protocol: compiled.proxy_protocol,
            protocol: compiled.protocol,
            idle_timeout: compiled.idle_timeout,
            connections: compiled.connections,
            keepalive: compiled.keepalive,
            source: compiled.source,
            breakers: compiled.breakers.of(&handle.load),
            nameable: compiled.nameable,
        };
        if let Some(endpoints) = compiled.endpoints {
            endpoints::swap(&handle, resource.version.clone(), &endpoints);
        } else if let EndpointSource::Eds(service) = &settings.source
            && let Some(entry) = self.assignments.get(service)
        {
            let endpoints = self.endpoints_of(&entry.resource)?;
            endpoints::swap(&handle, entry.resource.version.clone(), &endpoints);
        }
        self.forget_alias(&resource.name);
        if let EndpointSource::Eds(service) = &settings.source
            && *service != resource.name
        {
            self.aliases.insert((service.clone(), resource.name.clone()));
        }
        handle.settings.store(Some(Arc::new(settings)));
        self.waiting.remove(&(ResourceType::Cluster, resource.name.clone()));
        let entry = Entry::new(apart(resource), compiled.tls.map(Box::new));
        self.clusters.insert(entry.resource.name.clone(), Box::new(entry));
        Ok(())
    }

    fn put_assignment(&mut self, resource: Resource) -> Result<(), Problem> {
        let compiled = self.endpoints_of(&resource)?;
        for handle in self.clusters_of(&resource.name) {
            if compiled.is_empty() && !handle.endpoints.load().is_empty() {
                tracing::warn!(cluster = %handle.name, "the control plane took the last endpoint of a cluster");
                self.emptied += 1;
            }
            endpoints::swap(&handle, resource.version.clone(), &compiled);
        }
        self.assignments.insert(resource.name.clone(), Box::new(Entry::new(apart(resource), ())));
        Ok(())
    }

    fn endpoints_of(&self, resource: &Resource) -> Result<Vec<eds::Compiled>, Problem> {
        let message: ClusterLoadAssignment = decode(resource)?;
        named(resource, &message.cluster_name)?;
        eds::compile(&message, self.zone.as_deref())
    }

    fn clusters_of(&self, service: &Arc<str>) -> Vec<Arc<Cluster>> {
        let aliases = self.aliases.range((service.clone(), Arc::from(""))..);
        let others = aliases.take_while(|(of, _)| of == service).map(|(_, cluster)| cluster);
        let named = [service].into_iter().chain(others).filter(|name| self.clusters.contains_key(*name));
        let uses = |handle: &&Arc<Cluster>| {
            let settings = handle.settings.load();
            settings
                .as_ref()
                .is_some_and(|s| matches!(&s.source, EndpointSource::Eds(name) if name == service))
        };
        named.filter_map(|name| self.handles.get(name)).filter(uses).cloned().collect()
    }

    fn forget_alias(&mut self, cluster: &Arc<str>) {
        let settings = self.handles.get(cluster).and_then(|handle| handle.settings.load_full());
        if let Some(EndpointSource::Eds(service)) = settings.as_ref().map(|settings| &settings.source) {
            self.aliases.remove(&(service.clone(), cluster.clone()));
        }
    }

    fn put_routes(&mut self, resource: Resource, now: Instant) -> Result<(), Problem> {
        let parts = match unfolded::<RouteConfiguration>(&resource)? {
            Some(bytes) => rds::Parts::of(&bytes.into())?,
            None => rds::Parts::of(&resource.body)?,
        };
        named(&resource, &parts.message.name)?;
        let validated = self.is_validated(&parts.message, false);
        let earlier = self.routes.get(&resource.name).and_then(|entry| entry.earlier.clone());
        // Whether its clusters are there is asked of each version anew.
        let earlier = earlier.filter(|_| !validated);
        let version = resource.version.clone();
        let (table, earlier) =
            self.with_clusters(validated, |clusters| parts.compile(version, earlier.as_deref(), clusters))?;
        let entry = self.route_entry(&resource.name);
        entry.pend(table, now);
        entry.earlier = Some(Arc::new(earlier));
        entry.current = Some(Entry::new(resource, ()));
        Ok(())
    }

    /// `validated`: the clusters must be there, where the message says nothing of it. A sidecar asks for clusters
    /// when a route names them, so there they cannot be.
    fn is_validated(&self, message: &RouteConfiguration, validated: bool) -> bool {
        message.validate_clusters.map_or(validated, |said| said.value) && !self.is_sidecar()
    }

    fn compile_routes(
        &mut self,
        message: &RouteConfiguration,
        validated: bool,
        version: Arc<str>,
    ) -> Result<RouteTable, Problem> {
        let validated = self.is_validated(message, validated);
        self.with_clusters(validated, |clusters| rds::compile(message, version, clusters))
    }

    /// Compiles with the handles that there are, and makes those that are missing.
    fn with_clusters<T>(
        &mut self,
        validated: bool,
        compile: impl FnOnce(&rds::Clusters<'_>) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        // Handles that a refused table named are dropped when nothing holds them.
        let handles = std::cell::RefCell::new(std::mem::take(&mut self.handles));
        let compiled = compile(&|name| {
            let waiting = || self.waiting.contains_key(&(ResourceType::Cluster, name.into()));
            if validated && !self.clusters.contains_key(name) && !waiting() {
                let reason = format!("is {name:?}, and there is no such cluster; see validate_clusters");
                return Err(Problem::new("", reason));
            }
            let mut handles = handles.borrow_mut();
            let handle =
                handles.entry(name.into()).or_insert_with_key(|n| Arc::new(Cluster::named(n.clone())));
            Ok(handle.clone())
        });
        self.handles = handles.into_inner();
        compiled
    }

    fn put_listener(&mut self, resource: Resource, now: Instant) -> Result<(), Problem> {
        let message: ListenerMessage = decode(&resource)?;
        named(&resource, &message.name)?;
        if message.api_listener.is_some() {
            return self.put_api_listener(resource, &message, now);
        }
        let compiled = lds::compile(&message)?;
        let contexts = compiled.chains.iter().filter_map(|(_, chain)| chain.tls.as_ref());
        let references: References = contexts.flat_map(Downstream::references).collect();
        if self.waits(ResourceType::Listener, &resource, references, now) {
            return Ok(());
        }
        let secrets = |name: &str| self.secret(name);
        let earlier = self.listeners.get(&resource.name).map(|entry| entry.value.handle.clone());
        let earlier = earlier.filter(|listener| {
            listener.address == compiled.address && listener.transparent == compiled.transparent
        });
        let earlier_chains = earlier.as_ref().map(|listener| listener.chains.load_full());

        let mut drafts = Vec::with_capacity(compiled.chains.len());
        let last = compiled.chains.len() - 1;
        for (position, (path, chain)) in compiled.chains.into_iter().enumerate() {
            let is_default = compiled.has_default && position == last;
            let kept = earlier_chains.as_ref().and_then(|chains| same_chain(chains, &chain, is_default));
            let before = kept.as_ref().and_then(|chain| chain.tls.as_ref()?.server.load_full());
            let server = chain.tls.as_ref().map(|downstream| downstream.build(&secrets, before.as_deref()));
            let server =
                server.transpose().under(|| format!("{path}.transport_socket.typed_config"))?.map(Arc::new);
            drafts.push((path, chain, kept, server));
        }
        // As Envoy, for which the clusters of a bootstrap are there before its listeners. Of the control plane's, a
        // cluster may come later: a table waits for it.
        let validated = self.fixed.contains(&(ResourceType::Listener, resource.name.clone()));
        let (mut all, mut downstream) = (Vec::with_capacity(drafts.len()), Vec::with_capacity(drafts.len()));
        for (position, (path, chain, kept, server)) in drafts.into_iter().enumerate() {
            let inline = inline_name(&resource.name, position);
            let serves = match chain.reader {
                Reader::Http(mut manager) => {
                    for filter in &mut manager.authz {
                        if let Some(service) = Arc::get_mut(&mut filter.service) {
                            service.cluster = self.handle(&service.cluster.name.clone());
                        }
                    }
                    let routes = self
                        .routes_of(&manager.routes, validated, &inline, &resource.version, now)
                        .under(|| format!("{path}.filters[0].typed_config.route_config"))?;
                    let mut http = http_settings(*manager, routes);
                    self.sidecar_settings(&resource.name, compiled.original.is_some(), &mut http);
                    Serves::Http(Arc::new(ArcSwap::from_pointee(http)))
                }
                Reader::Tcp(proxy) => {
                    let mut tcp = self
                        .tcp_settings(proxy, &inline, &resource.version, now)
                        .under(|| format!("{path}.filters[0].typed_config"))?;
                    tcp.on_demand = self.tcp_by_name(&resource.name, compiled.original.is_some());
                    Serves::Tcp(Arc::new(ArcSwap::from_pointee(tcp)))
                }
            };
            let handle = match kept {
                Some(kept) => {
                    kept.serves.take(serves);
                    if let Some(tls) = &kept.tls {
                        tls.server.store(server);
                    }
                    kept
                }
                None => Arc::new(Chain {
                    name: chain.name,
                    matches: chain.matches,
                    tls: server.map(|server| ChainTls {
                        server: ArcSwapOption::from(Some(server)),
                        handshake_timeout: chain.handshake_timeout,
                    }),
                    serves,
                }),
            };
            all.push(handle);
            downstream.push(chain.tls);
        }
        let default = if compiled.has_default { all.pop() } else { None };
        // Envoy says this by a filter that holds for all clusters; here only a sidecar's own listener has it.
        let keep_source = compiled.transparent && self.is_own(ResourceType::Listener, &resource.name);
        let original = compiled.original.map(|_| OriginalDst { keep_source });
        let chains =
            Chains { inspect: compiled.inspect, original, keepalive: compiled.keepalive, all, default };
        let handle = match earlier {
            Some(listener) => {
                listener.chains.store(Arc::new(chains));
                listener
            }
            None => Arc::new(Listener {
                name: resource.name.clone(),
                address: compiled.address,
                transparent: compiled.transparent,
                chains: ArcSwap::from_pointee(chains),
            }),
        };
        let entry = ListenerEntry { handle, downstream };
        self.waiting.remove(&(ResourceType::Listener, resource.name.clone()));
        self.listeners.insert(resource.name.clone(), Entry::new(resource, entry));
        Ok(())
    }

    fn tcp_settings(
        &mut self,
        proxy: tcp_proxy::Proxy,
        inline: &Arc<str>,
        version: &Arc<str>,
        now: Instant,
    ) -> Result<TcpSettings, Problem> {
        Ok(TcpSettings {
            routes: self.routes_of(&Routes::Inline(proxy.routes), false, inline, version, now)?,
            idle: proxy.idle,
            longest: proxy.longest,
            max_connections: proxy.max_connections,
            access_log: proxy.access_log,
            on_demand: None,
        })
    }

    fn routes_of(
        &mut self,
        routes: &Routes,
        validated: bool,
        inline: &Arc<str>,
        version: &Arc<str>,
        now: Instant,
    ) -> Result<Arc<RouteHandle>, Problem> {
        match routes {
            Routes::Named(name) => Ok(self.route_entry(&name.as_str().into()).handle.clone()),
            Routes::Inline(message) => {
                let table = self.compile_routes(message, validated, version.clone())?;
                let entry = self.route_entry(inline);
                entry.pend(table, now);
                Ok(entry.handle.clone())
            }
        }
    }

    fn remove(&mut self, ty: ResourceType, name: &str, now: Instant) {
        self.note(ty);
        self.waiting.remove(&(ty, name.into()));
        match ty {
            // Who uses it goes on with the last that was there; who does not lets it go.
            ResourceType::Secret => {}
            ResourceType::Cluster => {
                self.forget_alias(&name.into());
                if let Some((name, _)) = self.clusters.remove_entry(name) {
                    self.outgoing.insert(name, now + WARM_TIMEOUT);
                }
            }
            ResourceType::Endpoint => {
                // The cluster keeps its last endpoints: a set without any is told by an empty assignment.
                self.assignments.remove(name);
            }
            ResourceType::Listener => {
                self.listeners.remove(name);
                self.apis.remove(name);
            }
            // The handle keeps its table while a listener uses it.
            ResourceType::Route => {
                if let Some(entry) = self.routes.get_mut(name) {
                    entry.current = None;
                    entry.earlier = None;
                }
            }
        }
    }

    fn handle(&mut self, name: &Arc<str>) -> Arc<Cluster> {
        self.handles.entry(name.clone()).or_insert_with_key(|n| Arc::new(Cluster::named(n.clone()))).clone()
    }

    fn route_entry(&mut self, name: &Arc<str>) -> &mut RouteEntry {
        self.routes.entry(name.clone()).or_insert_with_key(|name| RouteEntry {
            handle: Arc::new(RouteHandle { name: name.clone(), table: Default::default() }),
            current: None,
            pending: None,
            earlier: None,
        })
    }

    fn route_names(&self) -> impl Iterator<Item = Arc<str>> {
        let of_sockets = self.listeners.values().flat_map(|entry| entry.value.handle.route_handles());
        let of_names = self.apis.values().map(|entry| entry.value.routes.name.clone());
        of_sockets.map(|routes| routes.name.clone()).chain(of_names)
    }

    /// The names of `ty` that what is here refers to.
    pub fn wanted(&self, ty: ResourceType) -> BTreeSet<Arc<str>> {
        match ty {
            ResourceType::Secret => self.named_secrets(),
            ResourceType::Endpoint => self
                .clusters
                .keys()
                .filter_map(|name| match &self.handles.get(name)?.settings.load().as_ref()?.source {
                    EndpointSource::Eds(service) => Some(service.clone()),
                    EndpointSource::Static | EndpointSource::Dns(_) | EndpointSource::OriginalDst => None,
                })
                .collect(),
            ResourceType::Route => self.route_names().filter(|name| !is_inline(name)).collect(),
            ResourceType::Cluster => self.named_clusters(),
            ResourceType::Listener => BTreeSet::new(),
        }
    }

    /// Clusters whose endpoints are looked up by name.
    pub fn dns_clusters(&self) -> Vec<Arc<Cluster>> {
        let is_dns = |handle: &&Arc<Cluster>| {
            handle.settings.load().as_ref().is_some_and(|s| matches!(s.source, EndpointSource::Dns(_)))
        };
        self.clusters.keys().filter_map(|name| self.handles.get(name)).filter(is_dns).cloned().collect()
    }

    /// Puts in force what the names of a cluster resolve to; says whether that changed anything.
    pub fn put_resolved(&mut self, cluster: &Arc<Cluster>, found: &BTreeSet<SocketAddr>) -> bool {
        let before = cluster.endpoints.load();
        let same = before.all().map(|(address, ..)| address).eq(found.iter().copied());
        if same && !before.version.is_empty() {
            return false;
        }
        let found: Vec<_> = found.iter().map(|address| (*address, 1, EndpointHealth::Healthy)).collect();
        endpoints::swap(cluster, "resolved".into(), &found);
        true
    }

    /// Every cluster that is given or named.
    pub fn all_clusters(&self) -> Vec<Arc<Cluster>> {
        let mut all: Vec<Arc<Cluster>> = self.handles.values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Fields that are set and ignored though Envoy obeys them, a line each.
    pub fn differing(&self) -> Vec<String> {
        self.differing.lines().collect()
    }

    /// How often the last endpoint of a cluster was taken away.
    pub fn emptied(&self) -> u64 {
        self.emptied
    }
}

impl<T> Entry<T> {
    fn new(resource: Resource, value: T) -> Entry<T> {
        Entry { resource, since: SystemTime::now(), value }
    }
}

/// The same with its bytes for itself. Who has been shared keeps its counter, 32 bytes apart from it, and there are
/// thousands of those that are short.
fn apart(resource: Resource) -> Resource {
    Resource { body: Bytes::copy_from_slice(&resource.body), ..resource }
}

/// The chain of an earlier version that takes the same connections in the same way.
fn same_chain(chains: &Chains, new: &CompiledChain, is_default: bool) -> Option<Arc<Chain>> {
    let candidates = if is_default { chains.default.as_slice() } else { &chains.all };
    let found = candidates.iter().find(|chain| {
        let same_tls = match (&chain.tls, &new.tls) {
            (None, None) => true,
            (Some(tls), Some(_)) => tls.handshake_timeout == new.handshake_timeout,
            _ => false,
        };
        let same_reader = matches!(
            (&chain.serves, &new.reader),
            (Serves::Http(_), Reader::Http(_)) | (Serves::Tcp(_), Reader::Tcp(_))
        );
        same_tls && same_reader && chain.matches == new.matches && chain.name == new.name
    });
    found.cloned()
}

fn http_settings(manager: Manager, routes: Arc<RouteHandle>) -> HttpSettings {
    HttpSettings {
        routes,
        forwarded: manager.forwarded,
        client_certificates: manager.client_certificates,
        limits: manager.limits,
        timeouts: manager.timeouts,
        path: manager.path,
        underscores: manager.underscores,
        max_connections: manager.max_connections,
        upgrades: manager.upgrades,
        grpc_web: manager.grpc_web,
        codec: manager.codec,
        http10: manager.http10,
        cors: manager.cors,
        rbac: manager.rbac,
        buffers: manager.buffers,
        sessions: manager.sessions,
        rate_limits: manager.rate_limits,
        authz: manager.authz,
        extended_connect: manager.extended_connect,
        generate_request_id: manager.generate_request_id,
        preserve_external_request_id: manager.preserve_external_request_id,
        access_log: manager.access_log,
        server_name: manager.server_name,
        on_demand: None,
    }
}

fn decode<M: ResourceMessage>(resource: &Resource) -> Result<M, Problem> {
    let message = match unfolded::<M>(resource)? {
        Some(bytes) => M::decoded(&bytes),
        None => resource.decode(),
    };
    message.map_err(|e| Problem::new("", format!("cannot be decoded: {e}")))
}

/// The message where extensions in it are told by their fields: with them as messages of their types.
fn unfolded<M: ResourceMessage>(resource: &Resource) -> Result<Option<Vec<u8>>, Problem> {
    let unfolded = json::unfold(M::TYPE.type_url(), &resource.body);
    let unfolded = unfolded.map_err(|mistake| Problem::new(mistake.path, mistake.reason))?;
    if unfolded.is_some() {
        json::forget();
    }
    Ok(unfolded)
}

fn named(resource: &Resource, name: &str) -> Result<(), Problem> {
    if name == &*resource.name {
        return Ok(());
    }
    Err(Problem::new("name", format!("is {name:?}, but the resource was sent as {:?}", resource.name)))
}

/// Route names cannot begin so on the wire by accident: the prefix is not valid in any naming scheme of ours.
const INLINE: &str = "\u{0}inline:";

fn inline_name(listener: &str, position: usize) -> Arc<str> {
    format!("{INLINE}{listener}/{position}").into()
}

fn is_inline(name: &str) -> bool {
    name.starts_with(INLINE)
}
