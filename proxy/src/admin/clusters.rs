//! Every cluster with its endpoints, as text in Envoy's `name::address::key::value` form or as JSON.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use crate::config::Store;
use crate::upstream::cluster::{Cluster, EndpointHealth, EndpointSet};

pub(super) fn text(store: &Store) -> String {
    let mut out = String::new();
    for cluster in store.all_clusters() {
        let name = &cluster.name;
        let endpoints = cluster.endpoints.load();
        let known = cluster.settings.load().is_some();
        let _ = writeln!(out, "{name}::known::{known}\n{name}::endpoints_version::{}", endpoints.version);
        for Seen { address: at, health, weight, active, requests } in seen(&endpoints) {
            let _ = writeln!(
                out,
                "{name}::{at}::health::{health}\n{name}::{at}::weight::{weight}\n{name}::{at}::rq_active::{active}\n{name}::{at}::rq_total::{requests}",
            );
        }
    }
    out
}

pub(super) fn json(store: &Store) -> Value {
    let clusters: Vec<Value> = store.all_clusters().iter().map(|cluster| one(cluster)).collect();
    json!({ "clusters": clusters })
}

fn one(cluster: &Cluster) -> Value {
    let set = cluster.endpoints.load();
    let endpoints: Vec<Value> = seen(&set)
        .map(|Seen { address, health, weight, active, requests }| {
            json!({
                "address": address.to_string(),
                "health": health,
                "weight": weight,
                "active": active,
                "requests": requests,
            })
        })
        .collect();
    let settings = cluster.settings.load();
    json!({
        "name": *cluster.name,
        "known": settings.is_some(),
        "version": settings.as_ref().map(|s| s.version.to_string()),
        "endpoints_version": *set.version,
        "endpoints": endpoints,
    })
}

/// What is shown of an endpoint.
struct Seen {
    address: SocketAddr,
    health: &'static str,
    weight: u32,
    active: u32,
    requests: u64,
}

/// One that nothing has been sent to has no counters yet.
fn seen(set: &EndpointSet) -> impl Iterator<Item = Seen> {
    set.all().enumerate().map(move |(at, (address, weight, health))| {
        let counters = set.endpoints.get(at).map(|e| (e.active.load(Relaxed), e.requests.load(Relaxed)));
        let (active, requests) = counters.unwrap_or_default();
        let health = match health {
            EndpointHealth::Healthy => "healthy",
            EndpointHealth::Draining => "draining",
            EndpointHealth::Unhealthy => "unhealthy",
        };
        Seen { address, health, weight, active, requests }
    })
}
