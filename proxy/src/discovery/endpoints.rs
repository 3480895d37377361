//! Clusters whose endpoints are looked up by name. Every address a name has is an endpoint; a look-up that
//! fails changes nothing: the last addresses stay.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Shared;
use crate::upstream::cluster::{Cluster, EndpointHealth, EndpointSource};

/// No name is asked for more often, whatever its TTL says.
const SHORTEST: Duration = Duration::from_secs(1);

/// Keeps one look-up task a cluster; they come and go with the clusters.
pub(super) async fn resolve(shared: Shared) {
    let resolver = match TokioResolver::builder_tokio().and_then(|builder| builder.build()) {
        Ok(resolver) => Arc::new(resolver),
        Err(error) => {
            tracing::error!(%error, "no DNS resolver: clusters by name stay without endpoints; see /etc/resolv.conf");
            return;
        }
    };
    let mut changes = shared.changes.subscribe();
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
            let follow = follow(shared.clone(), resolver.clone(), cluster, settings.source.clone());
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

async fn follow(shared: Shared, resolver: Arc<TokioResolver>, cluster: Arc<Cluster>, source: EndpointSource) {
    let EndpointSource::Dns { targets, refresh } = source else { return };
    loop {
        let mut next = refresh;
        let mut endpoints: Vec<(SocketAddr, u32, EndpointHealth)> = Vec::new();
        let mut failed = false;
        for (name, port) in &targets {
            match resolver.lookup_ip(&**name).await {
                Ok(found) => {
                    let ttl =
                        found.as_lookup().valid_until().saturating_duration_since(Instant::now().into_std());
                    next = next.min(ttl).max(SHORTEST);
                    endpoints.extend(
                        found.iter().map(|ip| (SocketAddr::new(ip, *port), 1, EndpointHealth::Healthy)),
                    );
                }
                Err(error) => {
                    failed = true;
                    tracing::warn!(cluster = %cluster.name, name, %error, "a name cannot be looked up; its last addresses stay");
                }
            }
        }
        endpoints.sort_by_key(|(address, ..)| *address);
        endpoints.dedup_by_key(|(address, ..)| *address);
        if failed && endpoints.is_empty() {
            endpoints = known(&cluster);
        }
        if shared.store().put_resolved(&cluster, &endpoints) {
            shared.follow(Instant::now());
        }
        tokio::time::sleep(next).await;
    }
}

fn known(cluster: &Cluster) -> Vec<(SocketAddr, u32, EndpointHealth)> {
    cluster.endpoints.load().endpoints.iter().map(|e| (e.address, e.weight, e.health)).collect()
}
