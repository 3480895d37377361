//! One upstream to one cluster. Its endpoints travel apart (EDS), so that churn does not resend its settings;
//! a DNS pool is looked up by the proxies and has none to send.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy,
};
use envoy_types::pb::envoy::config::core::v3::{
    Address, HealthStatus, Http2ProtocolOptions, Locality, Metadata,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions,
};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value};
use envoy_types::util::pack_any;

use super::tls;
use super::wire;
use crate::model::upstream::{self, Source, Upstream};
use crate::objects::pool::{LoadBalancer, Protocol};

/// The key of what our proxies read of an endpoint's metadata.
const ZONES: &str = "pontoon.dev/zones";

/// The cluster's settings. To endpoints behind TLS, proxies that have a certificate show it.
pub(super) fn cluster(upstream: &Upstream, with_certificate: bool) -> Cluster {
    let mut cluster = Cluster {
        name: upstream.name.to_string(),
        connect_timeout: Some(wire::duration(upstream.connect_timeout)),
        lb_policy: match upstream.load_balancer {
            LoadBalancer::RoundRobin => LbPolicy::RoundRobin,
            LoadBalancer::LeastRequest => LbPolicy::LeastRequest,
        } as i32,
        typed_extension_protocol_options: protocol_options(upstream.protocol),
        transport_socket: upstream
            .tls
            .as_ref()
            .map(|of| tls::to_endpoints(of, upstream.protocol, with_certificate)),
        ..Cluster::default()
    };
    let discovery = match &upstream.source {
        Source::Eureka { .. } | Source::EurekaVip(_) | Source::Service { .. } | Source::Static(_) => {
            cluster.eds_cluster_config = Some(EdsClusterConfig {
                eds_config: Some(wire::ads()),
                service_name: upstream.name.to_string(),
            });
            DiscoveryType::Eds
        }
        Source::Dns { name, port } => {
            let endpoint = endpoint(wire::named_socket(name.clone(), *port), 1);
            cluster.load_assignment = Some(load_assignment(&upstream.name, [("", vec![endpoint])].into()));
            DiscoveryType::StrictDns
        }
    };
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(discovery as i32));
    cluster
}

/// The endpoints of a cluster that gets them by EDS.
pub(super) fn assignment(name: &str, endpoints: &[upstream::Endpoint]) -> ClusterLoadAssignment {
    let mut zones: BTreeMap<&str, Vec<LbEndpoint>> = BTreeMap::new();
    for e in endpoints {
        let zone = zones.entry(e.zone.as_deref().unwrap_or_default()).or_default();
        let metadata = (!e.for_zones.is_empty()).then(|| for_zones(&e.for_zones));
        zone.push(LbEndpoint { metadata, ..endpoint(wire::socket(e.address), e.weight) });
    }
    load_assignment(name, zones)
}

/// Of endpoints by zone; empty: it is not known.
fn load_assignment(name: &str, zones: BTreeMap<&str, Vec<LbEndpoint>>) -> ClusterLoadAssignment {
    // gRPC refuses a locality without an id, and sends to each by its weight: a zone's share is that of its endpoints.
    let only = zones.len() == 1;
    let endpoints = zones.into_iter().map(|(zone, lb_endpoints)| {
        let weights = lb_endpoints.iter().filter_map(|e| e.load_balancing_weight).map(|weight| weight.value);
        LocalityLbEndpoints {
            locality: Some(Locality { zone: zone.to_owned(), ..Locality::default() }),
            load_balancing_weight: wire::number(if only { 1 } else { weights.fold(0, u32::saturating_add) }),
            lb_endpoints,
            ..LocalityLbEndpoints::default()
        }
    });
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: endpoints.collect(),
        ..ClusterLoadAssignment::default()
    }
}

fn endpoint(address: Address, weight: u32) -> LbEndpoint {
    let endpoint = Endpoint { address: Some(address), ..Endpoint::default() };
    LbEndpoint {
        health_status: HealthStatus::Healthy as i32,
        load_balancing_weight: wire::number(weight),
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        ..LbEndpoint::default()
    }
}

/// The zones whose clients an endpoint is meant for. Proxies that know where they are choose by it; others pass it over.
fn for_zones(zones: &[Arc<str>]) -> Metadata {
    let text = |zone: &Arc<str>| Value { kind: Some(Kind::StringValue(zone.to_string())) };
    let list = Kind::ListValue(ListValue { values: zones.iter().map(text).collect() });
    // One key a map, as their order is another in each process.
    let fields = [("for".to_owned(), Value { kind: Some(list) })].into();
    Metadata { filter_metadata: [(ZONES.to_owned(), Struct { fields })].into(), ..Metadata::default() }
}

/// HTTP/1.1 is what a cluster speaks without being told.
fn protocol_options(protocol: Protocol) -> HashMap<String, envoy_types::pb::google::protobuf::Any> {
    match protocol {
        Protocol::Http1 => HashMap::new(),
        Protocol::H2c => {
            let http2 = ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default());
            let explicit = ExplicitHttpConfig { protocol_config: Some(http2) };
            let options = HttpProtocolOptions {
                upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)),
                ..HttpProtocolOptions::default()
            };
            let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
            HashMap::from([(name.to_owned(), pack_any(options))])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn localities_have_what_grpc_asks_for() {
        let address = ([127, 0, 0, 1], 1).into();
        let endpoint = upstream::Endpoint { address, weight: 1, zone: None, for_zones: Arc::default() };
        let assignment = assignment("a", &[endpoint]);
        let locality = assignment.endpoints.first().expect("a locality");
        assert_eq!(locality.locality, Some(Locality::default()));
        assert_eq!(locality.load_balancing_weight, wire::number(1));
    }

    #[test]
    fn an_endpoint_says_whose_it_is_where_that_is_known() {
        let of = |last: u8, zones: &[&str]| upstream::Endpoint {
            address: ([192, 0, 2, last], 80).into(),
            weight: 1,
            zone: Some("a".into()),
            for_zones: zones.iter().map(|zone| Arc::from(*zone)).collect(),
        };
        let assignment = assignment("a", &[of(1, &["a", "b"]), of(2, &[])]);
        let endpoints = assignment.endpoints.first().expect("a locality").lb_endpoints.iter();
        let said: Vec<_> = endpoints.map(|endpoint| endpoint.metadata.clone()).collect();
        assert_eq!(said, [Some(for_zones(&["a".into(), "b".into()])), None]);
        let json = format!("{:?}", said[0]);
        assert!(json.contains("pontoon.dev/zones") && json.contains("\"for\""), "{json}");
    }
}
