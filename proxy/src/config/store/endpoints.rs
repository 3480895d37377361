//! Swapping a cluster's endpoints. One that stays keeps its object, and so its counters and its ejection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::Guard;

use crate::upstream::cluster::{Cluster, Endpoint, EndpointHealth, EndpointSet};

/// Address, weight and health of each.
type All<'a> = &'a [(SocketAddr, u32, EndpointHealth)];

pub(super) fn swap(cluster: &Cluster, version: Arc<str>, endpoints: All<'_>) {
    let mut before = cluster.endpoints.load_full();
    loop {
        let set = Arc::new(after(&before, version.clone(), endpoints));
        let in_force = Guard::into_inner(cluster.endpoints.compare_and_swap(&before, set));
        if Arc::ptr_eq(&in_force, &before) {
            return;
        }
        // Meanwhile a worker has made the objects of those before.
        before = in_force;
    }
}

fn after(before: &EndpointSet, version: Arc<str>, endpoints: All<'_>) -> EndpointSet {
    // Nothing has been sent to any, so none has anything to keep.
    if before.endpoints.is_empty() {
        return EndpointSet::told(version, endpoints);
    }
    let known: HashMap<SocketAddr, &Arc<Endpoint>> =
        before.endpoints.iter().map(|e| (e.address(), e)).collect();
    let endpoints = endpoints.iter().map(|&(address, weight, health)| match known.get(&address) {
        Some(same) if same.weight == weight && same.health == health => Arc::clone(same),
        _ => Arc::new(Endpoint::new(address, weight, health)),
    });
    EndpointSet::new(version, endpoints.collect())
}
