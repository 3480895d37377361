//! The virtual hosts of the listeners of one port, each kept as it is encoded: a change of a route costs the hosts that
//! it concerns, and of the others a copy of their bytes. They answer as the Gateway API's precedence says.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteConfiguration, RouteMatch, VirtualHost,
};
use pontoon_xds::Resource;
use prost::Message as _;

use super::attach::Attachment;
use super::hostname::Hostname;
use super::listener::{Parsed, Protocol};
use super::view::Routes;
use crate::objects::ObjectRef;

/// The number of `virtual_hosts` in a `RouteConfiguration`.
const VIRTUAL_HOSTS: u32 = 2;

/// The most specific host first.
type Rank = ((u8, Reverse<usize>), Hostname);

/// The hosts of one port.
#[derive(Debug)]
pub(super) struct Hosts {
    /// The listeners that share the port, into [`Parsed::listeners`].
    indices: Vec<usize>,
    /// The routes on each listener by the hosts that they have in common with it; of one order those of gRPC first.
    attached: BTreeMap<(usize, Hostname), BTreeSet<ObjectRef>>,
    /// All hosts, and how many listeners and attachments name them.
    named: BTreeMap<Rank, usize>,
    tables: Vec<Table>,
    /// Named otherwise than when it was encoded last.
    dirty: BTreeSet<Hostname>,
}

/// A route configuration.
#[derive(Debug)]
struct Table {
    name: String,
    /// That of one listener; hosts of the others are misdirected.
    only: Option<usize>,
    /// The field of each host.
    hosts: BTreeMap<Rank, Vec<u8>>,
}

fn rank(host: &Hostname) -> Rank {
    (host.specificity(), host.clone())
}

impl Hosts {
    /// Of these listeners, without routes.
    pub(super) fn new(indices: Vec<usize>, parsed: &Parsed) -> Self {
        let mut hosts = Self {
            indices,
            attached: BTreeMap::new(),
            named: BTreeMap::new(),
            tables: Vec::new(),
            dirty: BTreeSet::new(),
        };
        for index in hosts.indices.clone() {
            if let Some(served) = parsed.listeners.get(index) {
                hosts.name(&served.hostname);
            }
        }
        hosts
    }

    /// Adds the route configuration of one listener, or of all of them.
    pub(super) fn add_table(&mut self, name: String, only: Option<usize>) {
        self.tables.push(Table { name, only, hosts: BTreeMap::new() });
    }

    /// The route configurations that the routes of a listener are in.
    pub(super) fn tables_of(&self, listener: usize) -> impl Iterator<Item = &str> {
        let is_here = self.indices.contains(&listener);
        let of =
            self.tables.iter().filter(move |table| is_here && table.only.is_none_or(|only| only == listener));
        of.map(|table| table.name.as_str())
    }

    /// A route hangs on a listener, if that is one of these.
    pub(super) fn put(&mut self, attachment: &Attachment, parsed: &Parsed) {
        if !self.has(attachment, parsed) {
            return;
        }
        for host in &attachment.hostnames {
            let routes = self.attached.entry((attachment.listener, host.clone())).or_default();
            routes.insert(attachment.route.clone());
            self.name(host);
        }
    }

    /// It does not any more, or is another than before.
    pub(super) fn take(&mut self, attachment: &Attachment, parsed: &Parsed) {
        if !self.has(attachment, parsed) {
            return;
        }
        for host in &attachment.hostnames {
            let key = (attachment.listener, host.clone());
            if let Some(routes) = self.attached.get_mut(&key) {
                routes.remove(&attachment.route);
                if routes.is_empty() {
                    self.attached.remove(&key);
                }
            }
            let rank = rank(host);
            if let Some(count) = self.named.get_mut(&rank) {
                *count -= 1;
                if *count == 0 {
                    self.named.remove(&rank);
                }
            }
            self.dirty.insert(host.clone());
        }
    }

    fn name(&mut self, host: &Hostname) {
        *self.named.entry(rank(host)).or_insert(0) += 1;
        self.dirty.insert(host.clone());
    }

    fn has(&self, attachment: &Attachment, parsed: &Parsed) -> bool {
        let served = parsed.listeners.get(attachment.listener);
        self.indices.contains(&attachment.listener)
            && served.is_some_and(|served| matches!(served.protocol, Protocol::Http | Protocol::Https))
    }

    /// The route configurations, where something changed.
    pub(super) fn encode(&mut self, parsed: &Parsed, routes: &Routes) -> Vec<Resource> {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() {
            return Vec::new();
        }
        let mut tables = std::mem::take(&mut self.tables);
        for host in self.concerned(dirty) {
            let rank = rank(&host);
            if !self.named.contains_key(&rank) {
                tables.iter_mut().for_each(|table| drop(table.hosts.remove(&rank)));
                continue;
            }
            let owner = self.owner(&host, parsed);
            for table in &mut tables {
                let of_another = table.only.is_some() && owner != table.only;
                let routes = match of_another {
                    true => vec![misdirected()],
                    false => self.routes(&host, owner, parsed, routes),
                };
                let domain = host.domain();
                let message = VirtualHost {
                    name: domain.clone(),
                    domains: vec![domain],
                    routes,
                    ..VirtualHost::default()
                };
                let mut field = Vec::new();
                prost::encoding::message::encode(VIRTUAL_HOSTS, &message, &mut field);
                table.hosts.insert(rank.clone(), field);
            }
        }
        let resources = tables.iter().map(Table::resource).collect();
        self.tables = tables;
        resources
    }

    /// These, and where one is a wildcard all that it covers.
    fn concerned(&self, dirty: BTreeSet<Hostname>) -> BTreeSet<Hostname> {
        let is_exact = |host: &&Hostname| matches!(host, Hostname::Exact(_));
        let wildcards: Vec<Hostname> = dirty.iter().filter(|host| !is_exact(host)).cloned().collect();
        let mut all = dirty;
        if !wildcards.is_empty() {
            let covered = self.named.keys().map(|(_, host)| host);
            let covered = covered.filter(|host| wildcards.iter().any(|wildcard| wildcard.covers(host)));
            all.extend(covered.cloned());
        }
        all
    }

    /// The listener that a host belongs to: the most specific that covers it.
    fn owner(&self, host: &Hostname, parsed: &Parsed) -> Option<usize> {
        let served = self.indices.iter().filter_map(|index| Some((*index, parsed.listeners.get(*index)?)));
        served
            .filter(|(_, served)| served.hostname.covers(host))
            .min_by_key(|(_, served)| served.hostname.specificity())
            .map(|(index, _)| index)
    }

    /// The routes of a host: those of every hostname that covers it, the most specific hostname's first.
    fn routes(&self, host: &Hostname, owner: Option<usize>, parsed: &Parsed, routes: &Routes) -> Vec<Route> {
        let Some((owner, served)) = owner.and_then(|index| Some((index, parsed.listeners.get(index)?)))
        else {
            return Vec::new();
        };
        let mut included = BTreeSet::new();
        let mut ordered = Vec::new();
        for covering in host.covering() {
            let Some(attached) = self.attached.get(&(owner, covering)) else { continue };
            let mut entries: Vec<_> = attached
                .iter()
                .filter(|route| included.insert(*route))
                .filter_map(|route| routes.requests.get(route))
                .flat_map(|compiled| &compiled.entries)
                .collect();
            entries.sort_by(|a, b| a.order.cmp(&b.order));
            ordered.extend(entries.into_iter().flat_map(|entry| entry.routes.iter().cloned()));
        }
        let usual = if served.protocol == Protocol::Https { 443 } else { 80 };
        ordered.iter_mut().for_each(|route| keep_port(route, served.port, usual));
        ordered
    }
}

impl Table {
    /// As the message is encoded: field after field.
    fn resource(&self) -> Resource {
        let head = RouteConfiguration { name: self.name.clone(), ..RouteConfiguration::default() };
        let tail = RouteConfiguration { ignore_port_in_host_matching: true, ..RouteConfiguration::default() };
        let length: usize = self.hosts.values().map(Vec::len).sum();
        let mut body = Vec::with_capacity(head.encoded_len() + length + tail.encoded_len());
        body.extend_from_slice(&head.encode_to_vec());
        self.hosts.values().for_each(|field| body.extend_from_slice(field));
        body.extend_from_slice(&tail.encode_to_vec());
        Resource::of_body(self.name.as_str(), body)
    }
}

/// A redirect to another host that names neither scheme nor port is to the same port there, which is said unless it is
/// the `usual` one.
pub(super) fn keep_port(route: &mut Route, port: u16, usual: u16) {
    if let Some(Action::Redirect(redirect)) = &mut route.action
        && redirect.port_redirect == 0
        && !redirect.host_redirect.is_empty()
        && redirect.scheme_rewrite_specifier.is_none()
        && port != usual
    {
        redirect.port_redirect = port.into();
    }
}

/// What answers a request for a host of another listener than that whose name the client gave under TLS: another
/// connection is the right one (RFC 9110, 15.5.20).
fn misdirected() -> Route {
    Route {
        name: "misdirected".to_owned(),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(Action::DirectResponse(DirectResponseAction {
            status: 421,
            ..DirectResponseAction::default()
        })),
        ..Route::default()
    }
}
