//! Clusters whose endpoints are looked up by name, as the system does it (`getaddrinfo`: hosts file, search
//! domains, nsswitch). Every address a name has is an endpoint; a look-up that fails changes nothing: the name's
//! last addresses stay.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Shared;
use crate::upstream::cluster::{Cluster, EndpointSource, Names};

/// No name is asked for more often.
const SHORTEST: Duration = Duration::from_secs(1);
/// Each look-up holds a thread until it is answered.
const AT_ONCE: usize = 16;

/// Keeps one look-up task a cluster; they come and go with the clusters.
pub(super) async fn resolve(shared: Shared) {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut changes = shared.shape.subscribe();
    let mut tasks: HashMap<Arc<str>, (EndpointSource, AbortHandle)> = HashMap::new();
    loop {
        let clusters = shared.store().dns_clusters();
        tasks.retain(|name, (_, task)| {
            let stays = clusters.iter().any(|cluster| cluster.name == *name);
            if !stays {
                task.abort();
            }
            stays
        });
        for cluster in clusters {
            let Some(settings) = cluster.settings.load_full() else { continue };
            if tasks.get(&cluster.name).is_some_and(|(source, _)| *source == settings.source) {
                continue;
            }
            let name = cluster.name.clone();
            let follow = follow(shared.clone(), turns.clone(), cluster, settings.source.clone());
            let task = tokio::spawn(follow).abort_handle();
            if let Some((_, earlier)) = tasks.insert(name, (settings.source.clone(), task)) {
                earlier.abort();
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

async fn follow(shared: Shared, turns: Arc<Semaphore>, cluster: Arc<Cluster>, source: EndpointSource) {
    let EndpointSource::Dns(names) = source else { return };
    let Names { targets, refresh, family } = *names;
    let mut found: Vec<Vec<SocketAddr>> = vec![Vec::new(); targets.len()];
    loop {
        for (at, (name, port)) in targets.iter().enumerate() {
            match look_up(&turns, name, *port).await {
                Ok(addresses) => found[at] = family.of(addresses),
                Err(error) => {
                    tracing::warn!(cluster = %cluster.name, name, %error, "a name cannot be looked up; its last addresses stay");
                }
            }
            // One name does not wait for another.
            let mut all: BTreeSet<SocketAddr> = found.iter().flatten().copied().collect();
            if all.is_empty() {
                // What was known before stays; and who waits for the cluster has its answer.
                all = cluster.endpoints.load().all().map(|(address, ..)| address).collect();
            }
            if shared.store().put_resolved(&cluster, &all) {
                shared.follow(Instant::now());
            }
        }
        tokio::time::sleep(refresh.max(SHORTEST)).await;
    }
}

async fn look_up(turns: &Semaphore, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let _turn = turns.acquire().await.map_err(io::Error::other)?;
    Ok(lookup_host((name, port)).await?.collect())
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3 as pb;
    use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
    use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
    use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, address};
    use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
    use envoy_types::pb::envoy::config::endpoint::v3::{
        ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
    };
    use pontoon_xds::client::{Handler as _, Update};
    use pontoon_xds::{Resource, ResourceType};

    use super::super::start;

    fn target(name: &str, port: u32) -> LbEndpoint {
        let address = address::Address::SocketAddress(SocketAddress {
            address: name.into(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..SocketAddress::default()
        });
        let endpoint = Endpoint { address: Some(Address { address: Some(address) }), ..Endpoint::default() };
        LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..LbEndpoint::default() }
    }

    #[tokio::test]
    async fn a_name_that_is_found_is_used_beside_one_that_is_not() {
        let mut shared = start(None, None, Vec::new()).unwrap();
        let lb_endpoints = vec![target("no..name", 81), target("localhost", 80)];
        let cluster = pb::Cluster {
            name: "by-name".into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns as i32)),
            load_assignment: Some(ClusterLoadAssignment {
                cluster_name: "by-name".into(),
                endpoints: vec![LocalityLbEndpoints { lb_endpoints, ..LocalityLbEndpoints::default() }],
                ..ClusterLoadAssignment::default()
            }),
            ..pb::Cluster::default()
        };
        let changed = vec![Resource::encode(&cluster)];
        let update = Update { ty: ResourceType::Cluster, changed, removed: Vec::new() };
        assert_eq!(shared.apply(update), []);
        let handle = shared.store().all_clusters().remove(0);
        let mut changes = shared.changes();
        while handle.endpoints.load().is_empty() {
            changes.changed().await.unwrap();
        }
        for (address, ..) in handle.endpoints.load().all() {
            assert!(address.ip().is_loopback() && address.port() == 80);
        }
    }
}
