//! Every cluster with its endpoints, as text in Envoy's `name::address::key::value` form or as JSON.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use crate::config::Store;
use crate::upstream::cluster::{Cluster, Endpoint, EndpointHealth};

pub(super) fn text(store: &Store) -> String {
    let mut out = String::new();
    for cluster in store.all_clusters() {
        let name = &cluster.name;
        let endpoints = cluster.endpoints.load();
        let known = cluster.settings.load().is_some();
        let _ = writeln!(out, "{name}::known::{known}\n{name}::endpoints_version::{}", endpoints.version);
        for endpoint in &endpoints.endpoints {
            let at = endpoint.address();
            let _ = writeln!(
                out,
                "{name}::{at}::health::{}\n{name}::{at}::weight::{}\n{name}::{at}::rq_active::{}\n{name}::{at}::rq_total::{}",
                health(endpoint),
                endpoint.weight,
                endpoint.active.load(Relaxed),
                endpoint.requests.load(Relaxed),
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
    let endpoints: Vec<Value> = set
        .endpoints
        .iter()
        .map(|e| {
            json!({
                "address": e.address().to_string(),
                "health": health(e),
                "weight": e.weight,
                "active": e.active.load(Relaxed),
                "requests": e.requests.load(Relaxed),
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

fn health(endpoint: &Endpoint) -> &'static str {
    match endpoint.health {
        EndpointHealth::Healthy => "healthy",
        EndpointHealth::Draining => "draining",
        EndpointHealth::Unhealthy => "unhealthy",
    }
}
