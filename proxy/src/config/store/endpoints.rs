//! Swapping a cluster's endpoints. One that stays keeps its object, and so its counters and its ejection.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::upstream::cluster::{Cluster, Endpoint, EndpointHealth, EndpointSet};

pub(super) fn swap(cluster: &Cluster, version: Arc<str>, endpoints: &[(SocketAddr, u32, EndpointHealth)]) {
    let before = cluster.endpoints.load_full();
    let known: HashMap<SocketAddr, &Arc<Endpoint>> =
        before.endpoints.iter().map(|e| (e.address(), e)).collect();
    let endpoints = endpoints.iter().map(|&(address, weight, health)| match known.get(&address) {
        Some(same) if same.weight == weight && same.health == health => Arc::clone(same),
        _ => Arc::new(Endpoint::new(address, weight, health)),
    });
    cluster.endpoints.store(Arc::new(EndpointSet { version, endpoints: endpoints.collect() }));
}
