//! From slices to the endpoints of each Service: watch events in, views out, no I/O. A change costs what the slices of
//! its Service cost, whatever else there is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use tokio::time::Instant;

use super::HeardSlice;
use super::slice::{self, Slice};
use crate::kubernetes::mirror::{Heard, Mirror};
use crate::model::instance::{PodEndpoint, ServiceEndpoints, ServiceView};
use crate::objects::ObjectName;

/// All slices, by what they belong to.
#[derive(Debug, Default)]
pub struct Index {
    slices: Mirror<slice::Key, Arc<Slice>>,
    by_service: BTreeMap<ObjectName, BTreeSet<slice::Key>>,
    /// To which Service a slice belonged when it was last looked at.
    of: BTreeMap<slice::Key, ObjectName>,
    changed: BTreeSet<ObjectName>,
    view: OrdMap<ObjectName, Arc<ServiceEndpoints>>,
    doubted: bool,
    dirty: bool,
}

impl Index {
    /// Whether all slices were listed once.
    pub fn is_complete(&self) -> bool {
        self.slices.is_complete()
    }

    /// Takes up what was heard. More than 0: so many slices are kept though the API server's last list does not have
    /// them, and it is to be asked for another.
    pub fn hear(&mut self, heard: HeardSlice, now: Instant) -> usize {
        let listed = matches!(heard, Heard::ListEnds);
        let change = self.slices.hear(heard, now);
        for key in change.keys {
            if let Some(service) = self.of.remove(&key) {
                if let Some(slices) = self.by_service.get_mut(&service) {
                    slices.remove(&key);
                }
                self.changed.insert(service);
            }
            if let Some(slice) = self.slices.get(&key) {
                let service = slice.service.clone();
                self.by_service.entry(service.clone()).or_default().insert(key.clone());
                self.changed.insert(service.clone());
                self.of.insert(key, service);
            }
        }
        let doubted = change.doubted > 0;
        self.dirty |= std::mem::replace(&mut self.doubted, doubted) != doubted;
        if listed { change.doubted } else { 0 }
    }

    /// The endpoints, where they are not what they were when this was last asked.
    pub fn take_view(&mut self) -> Option<ServiceView> {
        let mut dirty = std::mem::take(&mut self.dirty);
        for service in std::mem::take(&mut self.changed) {
            let keys = self.by_service.get(&service).filter(|keys| !keys.is_empty());
            let Some(keys) = keys else {
                self.by_service.remove(&service);
                dirty |= self.view.remove(&service).is_some();
                continue;
            };
            let endpoints = merged(keys.iter().filter_map(|key| self.slices.get(key)));
            if self.view.get(&service).is_none_or(|before| **before != endpoints) {
                self.view.insert(service, Arc::new(endpoints));
                dirty = true;
            }
        }
        dirty.then(|| ServiceView { services: self.view.clone(), held: self.doubted })
    }
}

/// One endpoint a pod and port. What is in two slices, as while the controller moves it, is ready where one says so.
fn merged<'s>(slices: impl Iterator<Item = &'s Arc<Slice>>) -> ServiceEndpoints {
    let mut ports: BTreeMap<Arc<str>, BTreeMap<Arc<str>, PodEndpoint>> = BTreeMap::new();
    for slice in slices {
        for (name, number) in &slice.ports {
            let pods = ports.entry(name.clone()).or_default();
            for endpoint in &slice.endpoints {
                let pod = pods.entry(endpoint.target.clone()).or_insert_with(|| PodEndpoint {
                    v4: None,
                    v6: None,
                    ready: false,
                    serving: false,
                    terminating: false,
                    zone: endpoint.zone.clone(),
                    for_zones: endpoint.for_zones.clone(),
                });
                let address = Some((endpoint.ip, *number).into());
                match endpoint.ip.is_ipv4() {
                    true => pod.v4 = address,
                    false => pod.v6 = address,
                }
                pod.ready |= endpoint.ready;
                pod.serving |= endpoint.serving;
                pod.terminating |= endpoint.terminating;
            }
        }
    }
    let ports = ports.into_iter().map(|(name, pods)| (name, pods.into_values().collect()));
    ServiceEndpoints { ports: ports.collect() }
}

#[cfg(test)]
mod tests;
