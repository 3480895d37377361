//! What a sidecar adds: listeners and clusters of its own, and API listeners by name, of which only what their
//! routes lead to is kept.

use std::collections::BTreeSet;
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3::Listener as ListenerMessage;
use pontoon_xds::{Resource, ResourceType};
use tokio::time::Instant;

use super::warming::clusters_of;
use super::{Entry, Problem, Store, inline_name};
use crate::config::api_listener;
use crate::config::differing::Met;
use crate::config::listener::{ByName, HttpSettings, RouteHandle, Underscores};
use crate::config::problem::Under;
use crate::config::sidecar::{OUTBOUND, is_own};
use crate::config::virtual_address::VirtualAddress;
use crate::discovery::names::Lookup;
use crate::discovery::on_demand::OnDemand;

/// What an API listener says.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) routes: Arc<RouteHandle>,
    address: Option<Arc<VirtualAddress>>,
}

/// Set where the process is a sidecar.
#[derive(Debug)]
pub(super) struct Sidecar {
    on_demand: Option<Arc<OnDemand>>,
    pass_unknown: bool,
}

impl Sidecar {
    fn by_name(&self, listener: &str, intercepted: bool) -> Option<ByName> {
        let names = self.on_demand.clone().filter(|_| listener == OUTBOUND)?;
        Some(ByName { names, intercepted, pass_unknown: intercepted && self.pass_unknown })
    }
}

impl Store {
    /// The store of a sidecar, with what its bootstrap says: clusters before listeners. `pass_unknown`: intercepted
    /// requests for names that nobody serves go where they were going to.
    ///
    /// # Errors
    /// When a resource of the bootstrap's cannot be used.
    pub fn sidecar(
        on_demand: Option<Arc<OnDemand>>,
        pass_unknown: bool,
        own: Vec<(ResourceType, Resource)>,
        now: Instant,
    ) -> Result<Store, Problem> {
        let mut store = Store { sidecar: Some(Sidecar { on_demand, pass_unknown }), ..Store::default() };
        for (ty, resource) in own {
            store.put(ty, resource, now)?;
        }
        store.settle(now);
        Ok(store)
    }

    pub(super) fn is_sidecar(&self) -> bool {
        self.sidecar.is_some()
    }

    /// Whether a resource is the bootstrap's, which the control plane cannot change.
    pub(super) fn is_own(&self, ty: ResourceType, name: &str) -> bool {
        let of_sidecar = || matches!(ty, ResourceType::Cluster | ResourceType::Listener) && is_own(name);
        (self.is_sidecar() && of_sidecar())
            || (!self.fixed.is_empty() && self.fixed.contains(&(ty, name.into())))
    }

    /// The types of which an answer has to be there before the process is ready. A sidecar asks for clusters by
    /// name, and at first for none.
    pub(super) fn awaited(&self) -> &'static [ResourceType] {
        match self.sidecar {
            None if self.alone => &[],
            Some(_) => &[ResourceType::Listener],
            None => &[ResourceType::Cluster, ResourceType::Listener],
        }
    }

    /// The sidecar's listeners pass on what the application sends: the rules for strangers are not for it.
    pub(super) fn sidecar_settings(&self, listener: &str, intercepted: bool, settings: &mut HttpSettings) {
        let Some(sidecar) = self.sidecar.as_ref().filter(|_| is_own(listener)) else { return };
        settings.underscores = Underscores::Allow;
        settings.on_demand = sidecar.by_name(listener, intercepted);
    }

    /// How the sidecar's outbound listener finds routes for what is not HTTP.
    pub(super) fn tcp_by_name(&self, listener: &str, intercepted: bool) -> Option<ByName> {
        self.sidecar.as_ref()?.by_name(listener, intercepted)
    }

    pub(super) fn put_api_listener(
        &mut self,
        resource: Resource,
        message: &ListenerMessage,
        now: Instant,
    ) -> Result<(), Problem> {
        let (routes, address) = api_listener::compile(message)?;
        let inline = inline_name(&resource.name, 0);
        let routes = self
            .routes_of(&routes, false, &inline, &resource.version, now)
            .under(|| "api_listener.api_listener.route_config".into())?;
        // The same handle while it is the same, by which others see that nothing changed.
        let earlier = self.apis.get(&resource.name).and_then(|entry| entry.value.address.clone());
        let same = earlier.filter(|earlier| address.as_ref() == Some(&**earlier));
        let api = Api { routes, address: same.or_else(|| address.map(Arc::new)) };
        self.apis.insert(resource.name.clone(), Entry::new(resource, api));
        Ok(())
    }

    /// What is here of a name on demand.
    pub(crate) fn lookup(&self, name: &str) -> Lookup {
        match self.apis.get(name) {
            Some(Entry { value: Api { routes, address }, .. }) => match routes.table.load().is_some() {
                true => Lookup::Routes(routes.clone(), address.clone()),
                false => Lookup::Arriving(address.clone()),
            },
            None if self.refused.contains_key(&(ResourceType::Listener, name.into())) => Lookup::Refused,
            None => Lookup::Pending,
        }
    }

    /// Drops names on demand, and with the next [settling](Store::settle) what only they led to.
    pub(crate) fn forget(&mut self, names: &[Arc<str>]) {
        self.touched = true;
        for name in names {
            self.apis.remove(name);
            self.refused.remove(&(ResourceType::Listener, name.clone()));
            self.differing.put(ResourceType::Listener, name, Met::new());
        }
    }

    /// The clusters to subscribe to by name: on a sidecar those that a table names. A gateway takes all.
    pub(super) fn named_clusters(&self) -> BTreeSet<Arc<str>> {
        if !self.is_sidecar() {
            return BTreeSet::new();
        }
        let mut named = BTreeSet::new();
        self.each_table(|table| named.extend(clusters_of(table).map(|cluster| cluster.name.clone())));
        named.retain(|name| !is_own(name));
        named
    }

    pub(super) fn drop_unnamed_clusters(&mut self) {
        if !self.is_sidecar() {
            return;
        }
        let named = self.named_clusters();
        let keep = |name: &Arc<str>| named.contains(name) || is_own(name);
        let gone: Vec<Arc<str>> = self.clusters.keys().filter(|name| !keep(name)).cloned().collect();
        for name in gone {
            self.forget_alias(&name);
            self.clusters.remove(&name);
            if let Some(handle) = self.handles.get(&name) {
                handle.settings.store(None);
            }
        }
        self.refused.retain(|(ty, name), _| *ty != ResourceType::Cluster || keep(name));
        self.waiting.retain(|(ty, name), _| *ty != ResourceType::Cluster || keep(name));
    }
}
