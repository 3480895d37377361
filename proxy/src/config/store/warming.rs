//! When what has arrived is put in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pontoon_xds::ResourceType;
use tokio::time::Instant;

use super::secrets::Waiting;
use super::{RouteEntry, Store, is_inline};
use crate::config::chains::Serves;
use crate::config::differing::Met;
use crate::config::listener::Listener;
use crate::route::{Action, RouteTable, Targets};
use crate::upstream::cluster::{Cluster, EndpointSource};

/// So often is looked whether the last request that held a cluster has ended.
const LEAVING: Duration = Duration::from_secs(1);

/// So long the first table of its name waits for a cluster: without one nobody is served. Then it is put in force all the
/// same, and a cluster that is still cold answers 503.
const FIRST_WARM_TIMEOUT: Duration = Duration::from_secs(5);
/// So long another serves on in the place of one that waits. It is Envoy's initial fetch timeout; for ever would let one
/// pool whose name does not resolve hold up every later change of a gateway's routes.
pub(super) const WARM_TIMEOUT: Duration = Duration::from_secs(15);

/// And so long it serves on at most, where what waits names one new cluster after another.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A table that waits for its clusters.
#[derive(Debug)]
pub(super) struct Pending {
    table: Arc<RouteTable>,
    /// Since when each is waited for, by this table or those that it took the place of: routes that change all the time
    /// come into force all the same.
    awaited: BTreeMap<Arc<str>, Instant>,
    /// Since when this table or one that it took the place of waits.
    since: Instant,
    /// Of all of them.
    deadline: Instant,
}

impl Store {
    /// Puts in force what can be, and drops what nothing refers to any more.
    pub fn settle(&mut self, now: Instant) {
        let mut touched = std::mem::take(&mut self.touched);
        for entry in self.routes.values_mut() {
            touched |= entry.settle(now);
        }
        self.waiting.values_mut().for_each(|waiting| waiting.settle(now));
        // Who changes endpoints all day does not pay for looking at everything.
        let is_over = |until: &Instant| now >= *until;
        if touched || self.leaving.as_ref().is_some_and(is_over) || self.outgoing.values().any(is_over) {
            self.take_away(now);
            self.drop_unused();
            self.leaving = self.is_any_leaving().then(|| now + LEAVING);
        }
        let complete = self.awaited().iter().all(|ty| self.seen.contains(ty))
            // A name that is asked for later makes nobody wait but those who ask.
            && (self.is_sidecar() || self.routes.values().all(|entry| entry.pending.is_none()))
            && self.waiting.values().all(|waiting| waiting.deadline().is_none())
            && self.listeners.values().all(|e| e.value.handle.is_complete());
        self.was_ready |= complete;
    }

    /// Takes what the control plane has taken away out of use, once nothing in force leads to it or what leads elsewhere
    /// has not come in time: on a new stream in state of the world, clusters go before routes are told of. While routes or
    /// listeners stand refused those before go on, with what they lead to.
    fn take_away(&mut self, now: Instant) {
        let stand_refused = |(ty, _): &(_, _)| matches!(ty, ResourceType::Route | ResourceType::Listener);
        if !self.outgoing.is_empty() && self.refused.keys().any(stand_refused) {
            self.outgoing.values_mut().for_each(|until| *until = now + WARM_TIMEOUT);
        }
        let handles = &self.handles;
        self.outgoing.retain(|name, until| {
            let Some(handle) = handles.get(name) else { return false };
            let is_kept = Arc::strong_count(handle) > 1 && now < *until;
            if !is_kept {
                handle.settings.store(None);
            }
            is_kept
        });
    }

    fn drop_unused(&mut self) {
        let used: BTreeSet<Arc<str>> = self.route_names().collect();
        let unused = self.routes.keys().filter(|name| !used.contains(*name));
        unused.for_each(|name| self.differing.put(ResourceType::Route, name, Met::new()));
        self.routes.retain(|name, _| used.contains(name));
        self.drop_unnamed_clusters();
        // Elsewhere no cluster goes with a table.
        if self.renamed || self.is_sidecar() {
            let wanted = self.wanted(ResourceType::Endpoint);
            self.assignments.retain(|name, _| wanted.contains(name));
        }
        if !self.secrets.is_empty() {
            let named = self.named_secrets();
            // What names one of the bootstrap's may come later.
            let fixed = &self.fixed;
            let is_fixed = |name: &Arc<str>| fixed.contains(&(ResourceType::Secret, name.clone()));
            self.secrets.retain(|name, _| named.contains(name) || is_fixed(name));
        }
        self.handles.retain(|name, handle| Arc::strong_count(handle) > 1 || self.clusters.contains_key(name));
        self.drop_unnamed_refusals();
    }

    /// Nobody tells the end of what is subscribed to by name: what was refused of it goes with the last that names it.
    fn drop_unnamed_refusals(&mut self) {
        for by_name in [ResourceType::Secret, ResourceType::Endpoint, ResourceType::Route] {
            if self.refused.keys().any(|(ty, _)| *ty == by_name) {
                let wanted = self.wanted(by_name);
                self.refused.retain(|(ty, name), _| *ty != by_name || wanted.contains(name));
            }
        }
    }

    /// When [`Store::settle`] should be called again although nothing arrived.
    pub fn deadline(&self) -> Option<Instant> {
        let of_routes = self.routes.values().filter_map(|entry| Some(entry.pending.as_ref()?.deadline));
        let of_secrets = self.waiting.values().filter_map(Waiting::deadline);
        of_routes.chain(of_secrets).chain(self.outgoing.values().copied()).chain(self.leaving).min()
    }

    /// Whether a cluster is held only by requests: nothing tells when the last of them ends.
    fn is_any_leaving(&self) -> bool {
        // Each cluster has a handle.
        if self.handles.len() <= self.clusters.len() {
            return false;
        }
        let mut left: BTreeSet<&str> = self
            .handles
            .keys()
            .filter(|name| !self.clusters.contains_key(*name))
            .map(|name| &**name)
            .collect();
        // As it nearly always is: the tables are long.
        if left.is_empty() {
            return false;
        }
        self.each_table(|table| {
            clusters_of(table).for_each(|cluster| {
                left.remove(&*cluster.name);
            })
        });
        // Nor does a listener let go of whom its filters ask.
        for listener in self.listeners.values() {
            for chain in listener.value.handle.chains.load().iter() {
                if let Serves::Http(http) = &chain.serves {
                    for filter in &http.load().authz {
                        left.remove(&*filter.service.cluster.name);
                    }
                }
            }
        }
        !left.is_empty()
    }

    /// Every route table that is in force or waits.
    pub(super) fn each_table(&self, mut look: impl FnMut(&RouteTable)) {
        for entry in self.routes.values() {
            if let Some(table) = entry.handle.table.load().as_ref() {
                look(table);
            }
            if let Some(pending) = &entry.pending {
                look(&pending.table);
            }
        }
    }

    /// Whether the first full configuration has been put in force. It stays so.
    pub fn is_ready(&self) -> bool {
        self.was_ready
    }

    /// The listeners that have routes and certificates.
    pub fn live_listeners(&self) -> Vec<Arc<Listener>> {
        let handles = self.listeners.values().map(|entry| &entry.value.handle);
        handles.filter(|listener| listener.is_complete()).cloned().collect()
    }

    /// What is not in force yet, in words.
    pub fn waiting_for(&self) -> Vec<String> {
        let mut waiting: Vec<String> = self
            .awaited()
            .iter()
            .filter(|ty| !self.seen.contains(ty))
            .map(|ty| format!("no {} answer yet", ty.short_name()))
            .collect();
        for (name, entry) in &self.routes {
            let shown = if is_inline(name) { "inline routes" } else { name };
            match &entry.pending {
                Some(pending) => waiting.extend(
                    cold_clusters(&pending.table)
                        .into_iter()
                        .map(|c| format!("{shown}: cluster {c} is not warm")),
                ),
                None if entry.handle.table.load().is_none() => {
                    waiting.push(format!("{shown}: not received"));
                }
                None => {}
            }
        }
        waiting.extend(self.missing_secrets());
        waiting
    }
}

impl RouteEntry {
    /// Takes a table that is to be put in force as soon as it can.
    pub(super) fn pend(&mut self, table: RouteTable, now: Instant) {
        let earlier = self.pending.take().map(|earlier| (earlier.awaited, earlier.since));
        let (awaited, since) = earlier.unwrap_or((BTreeMap::new(), now));
        self.pending = Some(Pending { table: Arc::new(table), awaited, since, deadline: now });
    }

    /// True: another table is in force.
    fn settle(&mut self, now: Instant) -> bool {
        let Some(pending) = &mut self.pending else { return false };
        let mut cold = cold_clusters(&pending.table);
        let mut timeout = FIRST_WARM_TIMEOUT;
        if !cold.is_empty()
            && let Some(serving) = self.handle.table.load().as_ref()
        {
            timeout = WARM_TIMEOUT;
            // What requests meet already is no reason to hold up what else is new.
            let already = cold_clusters(serving);
            cold.retain(|cluster| !already.contains(cluster));
        }
        pending.awaited.retain(|cluster, _| cold.contains(cluster));
        for cluster in &cold {
            pending.awaited.entry(cluster.clone()).or_insert(now);
        }
        if let Some(last) = pending.awaited.values().max() {
            pending.deadline = (*last + timeout).min(pending.since + LONGEST_WAIT);
            if now < pending.deadline {
                return false;
            }
            tracing::warn!(routes = %self.handle.name, ?cold, "put in force although clusters are not warm");
        }
        self.handle.table.store(Some(pending.table.clone()));
        self.pending = None;
        true
    }
}

/// Every cluster that a table names.
pub(super) fn clusters_of(table: &RouteTable) -> impl Iterator<Item = &Arc<Cluster>> {
    let routes = table.virtual_hosts.iter().flat_map(|host| &host.routes);
    routes.flat_map(|route| {
        let forward = if let Action::Forward(forward) = &route.action { Some(forward) } else { None };
        let (one, many) = match forward.map(|forward| &forward.targets) {
            Some(Targets::One(cluster)) => (Some(cluster), None),
            Some(Targets::Weighted { clusters, .. }) => (None, Some(clusters)),
            None => (None, None),
        };
        let mirrors = forward.into_iter().flat_map(|forward| &forward.mirrors).map(|mirror| &mirror.cluster);
        let asked =
            route.authz.iter().filter_map(|said| said.service.as_ref()).map(|service| &service.cluster);
        let sent = one.into_iter().chain(many.into_iter().flatten().map(|arm| &arm.cluster));
        sent.chain(mirrors).chain(asked)
    })
}

/// Clusters that a table can send to and that cannot take a request yet.
fn cold_clusters(table: &RouteTable) -> BTreeSet<Arc<str>> {
    let mut cold = BTreeSet::new();
    let mut look = |cluster: &Arc<Cluster>| {
        if !is_warm(cluster) {
            cold.insert(cluster.name.clone());
        }
    };
    for route in table.virtual_hosts.iter().flat_map(|host| &host.routes) {
        if let Action::Forward(forward) = &route.action {
            match &forward.targets {
                Targets::One(cluster) => look(cluster),
                Targets::Weighted { clusters, .. } => {
                    clusters.iter().filter(|arm| arm.weight > 0).for_each(|arm| look(&arm.cluster));
                }
            }
        }
        let asked = route.authz.iter().filter(|said| !said.off);
        asked.filter_map(|said| said.service.as_ref()).for_each(|service| look(&service.cluster));
    }
    cold
}

/// Its settings are there and, where they come apart, its first endpoints, be they none.
fn is_warm(cluster: &Cluster) -> bool {
    match cluster.settings.load().as_ref().map(|s| &s.source) {
        None => false,
        Some(EndpointSource::Static | EndpointSource::OriginalDst) => true,
        Some(EndpointSource::Eds(_) | EndpointSource::Dns(_)) => !cluster.endpoints.load().version.is_empty(),
    }
}
