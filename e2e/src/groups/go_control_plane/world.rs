//! What a proxy is given: a few clusters, the routes to them, and the listeners. Tests change it and publish it.

use std::collections::{BTreeMap, BTreeSet};

use rcgen::{CertifiedKey, KeyPair};
use serde_json::{Value, json};

pub(super) const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";

#[derive(Debug, Clone)]
pub(super) struct World {
    /// Clusters with the ports of their endpoints.
    pub(super) clusters: BTreeMap<&'static str, Vec<u16>>,
    /// Those whose endpoints are not sent.
    pub(super) cold: BTreeSet<&'static str>,
    /// Those with a field that the proxy refuses.
    pub(super) refused: BTreeSet<&'static str>,
    /// Path prefixes and the clusters that they lead to.
    pub(super) routes: Vec<(&'static str, &'static str)>,
    /// Plain listeners by their ports.
    pub(super) listeners: BTreeMap<&'static str, u16>,
    pub(super) https: u16,
    /// Of the listener for HTTPS; with it, that listener comes and goes.
    pub(super) certificate: Option<(String, String)>,
}

impl World {
    pub(super) fn certified(&mut self, certified: &CertifiedKey<KeyPair>) {
        self.certificate = Some((certified.cert.pem(), certified.signing_key.serialize_pem()));
    }

    /// Each as a JSON `Any`.
    pub(super) fn resources(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for (name, ports) in &self.clusters {
            let mut cluster = json!({"@type": CLUSTER, "name": name, "type": "EDS", "connect_timeout": "1s",
                "eds_cluster_config": {"eds_config": ads()}});
            if self.refused.contains(name) {
                cluster["outlier_detection"] = json!({"consecutive_5xx": 3});
            }
            all.push(cluster);
            if !self.cold.contains(name) {
                let endpoints: Vec<Value> =
                    ports.iter().map(|port| json!({"endpoint": {"address": at(*port)}})).collect();
                all.push(json!({"@type": ENDPOINTS, "cluster_name": name,
                    "endpoints": [{"lb_endpoints": endpoints}]}));
            }
        }
        let route = |(prefix, cluster): &(&str, &str)| json!({"match": {"prefix": prefix}, "route": {"cluster": cluster}});
        let routes: Vec<Value> = self.routes.iter().map(route).collect();
        all.push(json!({"@type": ROUTES, "name": "routes",
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}));
        for (name, port) in &self.listeners {
            all.push(listener(name, *port, &json!({})));
        }
        if let Some((certificate, key)) = &self.certificate {
            let secret = json!({"certificate_chain": {"inline_string": certificate},
                "private_key": {"inline_string": key}});
            all.push(json!({"@type": SECRET, "name": "certificate", "tls_certificate": secret}));
            let named = json!([{"name": "certificate", "sds_config": ads()}]);
            let context =
                json!({"@type": TLS, "common_tls_context": {"tls_certificate_sds_secret_configs": named}});
            let socket = json!({"transport_socket":
                {"name": "envoy.transport_sockets.tls", "typed_config": context}});
            all.push(listener("https", self.https, &socket));
        }
        all
    }
}

fn listener(name: &str, port: u16, chain: &Value) -> Value {
    let router = json!({"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}});
    let manager = json!({"@type": MANAGER, "stat_prefix": name, "http_filters": [router],
        "rds": {"route_config_name": "routes", "config_source": ads()}});
    let mut chain = chain.clone();
    chain["filters"] =
        json!([{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]);
    json!({"@type": LISTENER, "name": name, "address": at(port), "filter_chains": [chain]})
}

fn ads() -> Value {
    json!({"ads": {}, "resource_api_version": "V3"})
}

fn at(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}
