//! The virtual hosts of the listeners of one port, each kept as it is encoded: a change of a route costs the hosts that
//! it concerns, and of the others a copy of their bytes. They answer as the Gateway API's precedence says.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteConfiguration, RouteMatch, VirtualHost,
};
use pontoon_xds::{Resource, ResourceType};
use prost::Message as _;

use super::attach::Attachment;
use super::hostname::Hostname;
use super::listener::{Parsed, Protocol};
use super::view::Routes;
use crate::objects::ObjectRef;

/// The number of `virtual_hosts` in a `RouteConfiguration`.
const VIRTUAL_HOSTS: u32 = 2;

/// With more listeners on one port, each does not name all the others' hosts: that would be their number squared.
const NAMED: usize = 64;

/// The most specific host first.
type Rank = ((u8, Reverse<usize>), Hostname);

/// The hosts of one port.
#[derive(Debug)]
pub(super) struct Hosts {
    /// The listeners that share the port, into [`Parsed::listeners`]; in order.
    indices: Vec<usize>,
    /// The same by their hostnames.
    listeners: BTreeMap<Hostname, usize>,
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
    /// The field of each host that is the listener's.
    hosts: BTreeMap<Rank, Vec<u8>>,
    /// The field of all those that are not; empty where there are none.
    misdirected: Vec<u8>,
    /// It is another than when it was encoded last.
    is_dirty: bool,
}

fn rank(host: &Hostname) -> Rank {
    (host.specificity(), host.clone())
}

impl Hosts {
    /// Of these listeners, without routes.
    pub(super) fn new(indices: Vec<usize>, parsed: &Parsed) -> Self {
        let mut hosts = Self {
            indices,
            listeners: BTreeMap::new(),
            attached: BTreeMap::new(),
            named: BTreeMap::new(),
            tables: Vec::new(),
            dirty: BTreeSet::new(),
        };
        for index in hosts.indices.clone() {
            if let Some(served) = parsed.listeners.get(index) {
                hosts.name(&served.hostname);
                hosts.listeners.entry(served.hostname.clone()).or_insert(index);
            }
        }
        hosts
    }

    /// Adds the route configuration of one listener, or of all of them.
    pub(super) fn add_table(&mut self, name: String, only: Option<usize>, parsed: &Parsed) {
        let served = only.and_then(|only| parsed.listeners.get(only));
        let domains = served.map(|served| self.of_others(&served.hostname)).unwrap_or_default();
        let misdirected = if domains.is_empty() {
            Vec::new()
        } else {
            field("misdirected".to_owned(), domains, vec![misdirected()])
        };
        self.tables.push(Table { name, only, hosts: BTreeMap::new(), misdirected, is_dirty: true });
    }

    /// The domains of the hosts that belong to other listeners than this, for a table in which its own hosts are named:
    /// the most specific one that covers a host decides.
    fn of_others(&self, own: &Hostname) -> Vec<String> {
        let others = self.listeners.keys().filter(|host| *host != own);
        // Whatever is none of its own is another's, or too many others would have to be named.
        let all = *own != Hostname::Any
            && (self.listeners.contains_key(&Hostname::Any) || self.listeners.len() > NAMED);
        if !all {
            return others.map(Hostname::domain).collect();
        }
        // An exact name covers no other.
        let within = others.filter(|host| !matches!(own, Hostname::Exact(_)) && own.covers(host));
        within.map(Hostname::domain).chain([Hostname::Any.domain()]).collect()
    }

    /// The route configurations that the routes of a listener are in.
    pub(super) fn tables_of(&self, listener: usize) -> impl Iterator<Item = &str> {
        let is_here = self.is_here(listener);
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

    fn is_here(&self, listener: usize) -> bool {
        self.indices.binary_search(&listener).is_ok()
    }

    fn has(&self, attachment: &Attachment, parsed: &Parsed) -> bool {
        self.is_of_requests(attachment.listener, parsed)
    }

    fn is_of_requests(&self, listener: usize, parsed: &Parsed) -> bool {
        let served = parsed.listeners.get(listener);
        self.is_here(listener)
            && served.is_some_and(|served| matches!(served.protocol, Protocol::Http | Protocol::Https))
    }

    /// Whether requests for a host come to the routes of a listener.
    pub(super) fn serves(&self, listener: usize, host: &Hostname, parsed: &Parsed) -> bool {
        self.is_of_requests(listener, parsed) && self.owner(host) == Some(listener)
    }

    /// The route configurations in which something changed.
    pub(super) fn encode(&mut self, parsed: &Parsed, routes: &Routes) -> Vec<Resource> {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() {
            return Vec::new();
        }
        let mut tables = std::mem::take(&mut self.tables);
        let places: BTreeMap<Option<usize>, usize> =
            tables.iter().enumerate().map(|(place, table)| (table.only, place)).collect();
        for host in self.concerned(dirty) {
            let owner = self.owner(&host);
            // In plain text there is one for all of them.
            let place = places.get(&None).or_else(|| places.get(&Some(owner?)));
            let Some(table) = place.and_then(|place| tables.get_mut(*place)) else { continue };
            let rank = rank(&host);
            table.is_dirty = true;
            if !self.named.contains_key(&rank) {
                table.hosts.remove(&rank);
                continue;
            }
            let domain = host.domain();
            let routes = self.routes(&host, owner, parsed, routes);
            table.hosts.insert(rank, field(domain.clone(), vec![domain], routes));
        }
        let mut resources = Vec::new();
        for table in &mut tables {
            if std::mem::take(&mut table.is_dirty) {
                resources.push(table.resource());
            }
        }
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
    pub(super) fn owner(&self, host: &Hostname) -> Option<usize> {
        host.covering().find_map(|covering| self.listeners.get(&covering).copied())
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
        let fields = || self.hosts.values().chain([&self.misdirected]);
        let length: usize = fields().map(Vec::len).sum();
        let mut body = Vec::with_capacity(head.encoded_len() + length + tail.encoded_len());
        body.extend_from_slice(&head.encode_to_vec());
        fields().for_each(|field| body.extend_from_slice(field));
        body.extend_from_slice(&tail.encode_to_vec());
        Resource::of_body(self.name.as_str(), body)
    }
}

/// A virtual host as the field that it is of a route configuration.
fn field(name: String, domains: Vec<String>, routes: Vec<Route>) -> Vec<u8> {
    let message = VirtualHost { name, domains, routes, ..VirtualHost::default() };
    let mut field = Vec::new();
    prost::encoding::message::encode(VIRTUAL_HOSTS, &message, &mut field);
    ResourceType::Route.sort_maps(&mut field);
    field
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
