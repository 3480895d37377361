//! The objects, as JSON. Routes have the shape of those that public comparisons use: a host of their own, a rule that
//! changes headers both ways, and a rule whose backend is not there.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// The Gateway.
pub(super) const GATEWAY: &str = "edge";
/// The name of the port of every Service: slices are told apart by it.
const PORT_NAME: &str = "http";
/// Its number; that of its endpoints is the slice's to say.
const SERVICE_PORT: u16 = 80;

/// With one listener.
pub(super) fn gateway(port: u16) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": { "name": GATEWAY },
        "spec": {
            "gatewayClassName": "pontoon",
            "listeners": [{ "name": "http", "port": port, "protocol": "HTTP" }],
        },
    })
}

pub(super) fn route_name(number: usize) -> String {
    format!("route-{number}")
}

pub(super) fn host(number: usize) -> String {
    format!("route-{number}.example.com")
}

pub(super) fn path(number: usize) -> String {
    format!("/{number}")
}

/// A route with these rules.
pub(super) fn route(number: usize, rules: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": route_name(number) },
        "spec": { "parentRefs": [{ "name": GATEWAY }], "hostnames": [host(number)], "rules": rules },
    })
}

/// The rules of a route that is probed.
pub(super) fn probed_rules(number: usize, service: &str) -> Value {
    let filters = json!([
        {
            "type": "RequestHeaderModifier",
            "requestHeaderModifier": { "add": [{ "name": "added-header", "value": "added-value" }] },
        },
        {
            "type": "ResponseHeaderModifier",
            "responseHeaderModifier": { "add": [{ "name": "added-response", "value": "added-value" }] },
        },
    ]);
    let rule = |prefix: &str, service: &str| {
        json!({
            "matches": [{ "path": { "type": "PathPrefix", "value": prefix } }],
            "filters": filters,
            "backendRefs": [{ "name": service, "port": SERVICE_PORT }],
        })
    };
    json!([rule(&path(number), service), rule("/", "not-there")])
}

/// One rule for everything, that adds a header to answers where `version` is one.
pub(super) fn plain_rules(service: &str, version: Option<&str>) -> Value {
    let filters = version.map(|version| {
        json!([{
            "type": "ResponseHeaderModifier",
            "responseHeaderModifier": { "set": [{ "name": VERSION, "value": version }] },
        }])
    });
    json!([{
        "filters": filters.unwrap_or_else(|| json!([])),
        "backendRefs": [{ "name": service, "port": SERVICE_PORT }],
    }])
}

/// The header that tells versions of a route apart.
pub(super) const VERSION: &str = "x-version";

/// A headless Service, whose endpoints are written by hand: kube-proxy has nothing to do for it.
pub(super) fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name },
        "spec": { "clusterIP": "None", "ports": [{ "name": PORT_NAME, "port": SERVICE_PORT }] },
    })
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) pod: String,
    pub(super) address: Ipv4Addr,
    pub(super) ready: bool,
}

/// A slice of a Service. Its label keeps it from kube-proxy, as a headless Service's own slices have it.
pub(super) fn slice(name: &str, service: &str, port: u16, endpoints: &[Endpoint]) -> Value {
    let endpoints = endpoints.iter().map(|Endpoint { pod, address, ready }| {
        json!({
            "addresses": [address],
            "conditions": { "ready": ready, "serving": ready, "terminating": false },
            "targetRef": { "kind": "Pod", "name": pod },
        })
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/service-name": service,
                "service.kubernetes.io/headless": "",
                "endpointslice.kubernetes.io/managed-by": "pontoon-bench",
            },
        },
        "addressType": "IPv4",
        "ports": [{ "name": PORT_NAME, "port": port, "protocol": "TCP" }],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}
