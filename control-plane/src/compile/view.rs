//! What a gateway's proxies get: per socket one listener, and the route configurations of the hosts on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use pontoon_xds::Resource;

use super::attach::Attachment;
use super::chain;
use super::conflict::{Place, Winner};
use super::connection;
use super::hostname::Hostname;
use super::hosts::Hosts;
use super::listener::{Parsed, Protocol, Served};
use super::route;
use super::tls;
use crate::model::upstream::Upstream;
use crate::objects::{Kind, ObjectName, ObjectRef};

/// What a gateway's proxies get, but for clusters.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) listeners: Vec<Listener>,
    /// By name: listeners may share one.
    pub(super) secrets: BTreeMap<String, Secret>,
    pub(super) routes: Vec<Resource>,
    /// What they were encoded of, by port.
    pub(super) ports: Vec<Hosts>,
    /// By route configuration, or by listener where there is none: the routes in it.
    pub(super) members: BTreeMap<String, BTreeSet<ObjectRef>>,
    /// Routes of connections that get none somewhere.
    pub(super) lost: Vec<(Place, ObjectRef, Winner)>,
}

/// All routes, compiled.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Of requests.
    pub(super) requests: BTreeMap<ObjectRef, Arc<route::Compiled>>,
    /// Of connections.
    pub(super) connections: BTreeMap<ObjectRef, connection::Compiled>,
}

impl Routes {
    /// The clusters that a route sends to.
    pub(super) fn upstreams(&self, route: &ObjectRef) -> impl Iterator<Item = &Upstream> {
        let requests = self.requests.get(route).into_iter().flat_map(|compiled| compiled.upstreams.values());
        let connections = self.connections.get(route).and_then(|compiled| compiled.destination.as_ref());
        requests.chain(connections.into_iter().flatten().map(|(upstream, _)| upstream))
    }
}

/// Builds a gateway's listeners and route configurations.
pub(super) fn build(
    name: &ObjectName,
    parsed: &Parsed,
    attachments: &[Attachment],
    routes: &Routes,
) -> Output {
    let mut output = Output::default();
    let Some(ip) = parsed.ip.filter(|_| parsed.errors.is_empty()) else { return output };
    let mut ports: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
    for (index, served) in parsed.listeners.iter().enumerate().filter(|(_, served)| served.is_programmed()) {
        ports.entry(served.port).or_default().push(index);
    }
    // Keys go to no proxy that does not need them.
    let served = parsed.listeners.iter().filter(|served| served.is_programmed());
    let certificates = served.flat_map(|served| &served.certificates);
    let secrets = certificates.filter_map(tls::secret);
    output.secrets.extend(secrets.map(|secret| (secret.name.clone(), secret)));
    output.secrets.extend(
        parsed
            .backend_certificate
            .as_ref()
            .and_then(tls::client_secret)
            .map(|secret| (secret.name.clone(), secret)),
    );
    let mut attached: BTreeMap<usize, Vec<&Attachment>> = BTreeMap::new();
    for attachment in attachments {
        attached.entry(attachment.listener).or_default().push(attachment);
    }
    for indices in ports.into_values() {
        let port = Port { gateway: name, parsed, indices, attached: &attached, routes };
        // Listeners of one port share its socket, under the name of the first.
        let Some(first) = port.served().next() else { continue };
        let resource = port.resource(first.1);
        let mut hosts = Hosts::new(port.indices.clone(), parsed);
        let mut chains: Vec<FilterChain> = Vec::new();
        for (index, served) in port.served() {
            match served.protocol {
                // In plain text they share the routes too.
                Protocol::Http if index != first.0 => {}
                Protocol::Http => {
                    chains.push(chain::http(&resource, &resource));
                    port.add_table(resource.clone(), None, &mut hosts, &mut output);
                }
                Protocol::Https => {
                    let own = port.resource(served);
                    chains.push(tls::filter_chain(served, chain::http(&resource, &own)));
                    port.add_table(own, Some(index), &mut hosts, &mut output);
                }
                Protocol::TlsTerminate | Protocol::TlsPassthrough | Protocol::Tcp => {
                    chains.extend(port.connections(&resource, index, &hosts, &mut output));
                }
            }
        }
        for attachment in port.indices.iter().flat_map(|index| port.attached(*index)) {
            hosts.put(attachment, parsed);
        }
        output.routes.extend(hosts.encode(parsed, routes));
        output.ports.push(hosts);
        // Envoy takes no listener that does nothing with its connections.
        if !chains.is_empty() {
            let inspect = first.1.protocol.is_tls();
            let address = SocketAddr::new(ip, first.1.port);
            output.listeners.push(chain::listener(&resource, address, chains, inspect));
        }
    }
    output
}

/// The listeners that share a port, and all that hangs on them.
struct Port<'g> {
    gateway: &'g ObjectName,
    parsed: &'g Parsed,
    indices: Vec<usize>,
    /// By listener.
    attached: &'g BTreeMap<usize, Vec<&'g Attachment>>,
    routes: &'g Routes,
}

impl Port<'_> {
    fn served(&self) -> impl Iterator<Item = (usize, &Served)> {
        self.indices.iter().filter_map(|index| Some((*index, self.parsed.listeners.get(*index)?)))
    }

    /// A listener's name among the resources. A set's, or an Ingress's, is told apart by signs that no name has: each may be
    /// called as its Gateway, or as the other.
    fn resource(&self, served: &Served) -> String {
        let (gateway, parent) = (self.gateway, &served.parent.name);
        match served.parent.kind {
            Kind::Gateway => format!("{gateway}/{}", served.name),
            Kind::Ingress => format!("{gateway}/{parent}::{}", served.name),
            _ => format!("{gateway}/{parent}:{}", served.name),
        }
    }

    fn attached(&self, index: usize) -> impl Iterator<Item = &Attachment> {
        self.attached.get(&index).into_iter().flatten().copied()
    }

    /// Adds the route configuration of one listener, or of all of them.
    fn add_table(&self, resource: String, only: Option<usize>, hosts: &mut Hosts, output: &mut Output) {
        let indices = only.as_ref().map_or(self.indices.as_slice(), std::slice::from_ref);
        let own = indices.iter().flat_map(|index| self.attached(*index));
        let own = own.map(|attachment| attachment.route.clone());
        output.members.entry(resource.clone()).or_default().extend(own);
        hosts.add_table(resource, only, self.parsed);
    }

    /// A listener's chains for its routes of connections: one a hostname. Of several routes for one the oldest counts.
    fn connections(
        &self,
        resource: &str,
        index: usize,
        all: &Hosts,
        output: &mut Output,
    ) -> Vec<FilterChain> {
        let mut hosts: BTreeMap<Hostname, BTreeMap<_, (&connection::Compiled, &ObjectRef)>> = BTreeMap::new();
        for attachment in self.attached(index) {
            let Some(compiled) = self.routes.connections.get(&attachment.route) else { continue };
            for host in attachment.hostnames.iter().filter(|host| all.owner(host) == Some(index)) {
                let claims = hosts.entry(host.clone()).or_default();
                claims.insert(&compiled.order, (compiled, &attachment.route));
            }
        }
        let Some(served) = self.parsed.listeners.get(index) else { return Vec::new() };
        for (host, claims) in &hosts {
            for ((before, (_, winner)), (order, (_, route))) in claims.iter().zip(claims.iter().skip(1)) {
                let why = if before.0 < order.0 { "is older" } else { "is the first by name" };
                let winner = Winner { object: (*winner).clone(), why };
                let place = Place { gateway: self.gateway.clone(), listener: index, host: host.clone() };
                output.lost.push((place, (*route).clone(), winner));
            }
        }
        let first = |(host, claims): (Hostname, BTreeMap<_, _>)| Some((host, claims.into_values().next()?));
        let hosts: BTreeMap<Hostname, (&connection::Compiled, &ObjectRef)> =
            hosts.into_iter().filter_map(first).collect();
        let used = hosts.values().map(|(_, route)| (*route).clone());
        output.members.entry(resource.to_owned()).or_default().extend(used);
        let chains = hosts.iter().filter_map(|(host, (compiled, _))| {
            let plain = chain::connections(resource, compiled.destination.as_deref()?);
            Some(tls::connection_chain(served, host, plain))
        });
        chains.collect()
    }
}
