//! What is in force, what waits and what was refused, for those who look.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use pontoon_xds::ResourceType;

use super::{Dumped, Entry, Store};
use crate::upstream::cluster::{Cluster, EndpointHealth, EndpointSource};

/// Endpoints that came with their cluster, or were looked up by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnEndpoints {
    /// The cluster.
    pub cluster: Arc<str>,
    /// Address, weight and health of each.
    pub endpoints: Vec<(SocketAddr, u32, EndpointHealth)>,
}

impl Store {
    /// Every resource in force, and every name of which there is only what waits or was refused; by type and name.
    pub fn dump(&self) -> Vec<Dumped> {
        let mut all = All { store: self, found: BTreeMap::new() };
        all.put(ResourceType::Secret, self.secrets.values());
        all.put(ResourceType::Cluster, self.clusters.values().map(|entry| &**entry));
        all.put(ResourceType::Endpoint, self.assignments.values().map(|entry| &**entry));
        all.put(ResourceType::Listener, self.listeners.values());
        all.put(ResourceType::Listener, self.apis.values());
        all.put(ResourceType::Route, self.routes.values().filter_map(|entry| entry.current.as_ref()));
        for ((ty, name), refused) in &self.refused {
            all.of(*ty, name).refused = Some(refused.clone());
        }
        for ((ty, name), waiting) in &self.waiting {
            all.of(*ty, name).warming = Some(waiting.resource.clone());
        }
        all.found.into_values().collect()
    }

    /// Of every cluster whose endpoints are no resource of their own.
    pub fn own_endpoints(&self) -> Vec<OwnEndpoints> {
        let of = |handle: &Arc<Cluster>| {
            let settings = handle.settings.load();
            if matches!(settings.as_ref()?.source, EndpointSource::Eds(_) | EndpointSource::OriginalDst) {
                return None;
            }
            let endpoints = handle.endpoints.load().all().collect();
            Some(OwnEndpoints { cluster: handle.name.clone(), endpoints })
        };
        self.clusters.keys().filter_map(|name| of(self.handles.get(name)?)).collect()
    }
}

impl Dumped {
    /// A name of which nothing is here.
    pub fn of(ty: ResourceType, name: &str) -> Dumped {
        Dumped { ty, name: name.into(), in_force: None, refused: None, warming: None, is_static: false }
    }
}

struct All<'s> {
    store: &'s Store,
    found: BTreeMap<(ResourceType, Arc<str>), Dumped>,
}

impl All<'_> {
    fn of(&mut self, ty: ResourceType, name: &Arc<str>) -> &mut Dumped {
        let is_static = self.store.is_own(ty, name);
        let found = self.found.entry((ty, name.clone()));
        found.or_insert_with(|| Dumped { is_static, ..Dumped::of(ty, name.as_ref()) })
    }

    fn put<'e, T: 'e>(&mut self, ty: ResourceType, entries: impl Iterator<Item = &'e Entry<T>>) {
        for Entry { resource, since, .. } in entries {
            self.of(ty, &resource.name).in_force = Some((resource.clone(), *since));
        }
    }
}
