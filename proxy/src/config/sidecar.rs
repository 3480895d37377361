//! A sidecar's own listeners and cluster, from its bootstrap: written as the xDS resources that they could have
//! come as, so that they go the same way as all others.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, Http1ProtocolOptions, SocketAddress, TrafficDirection, address,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter,
};
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route,
};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    RouteSpecifier, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier as TcpTarget;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions,
};
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration};
use pontoon_xds::messages::pack;
use prost::Name as _;
use pontoon_xds::{Resource, ResourceType};

use crate::discovery::{Outbound, To, Unknown};

/// The listener for what the application sends.
pub(crate) const OUTBOUND: &str = "bootstrap/outbound";
/// The listeners and clusters for what the application receives, by the listener's port.
const INBOUND: &str = "bootstrap/inbound/";

/// How long a client may keep silent before its connection is taken for one whose server speaks first. Clients of
/// HTTP and TLS speak at once.
const DETECTION: Duration = Duration { seconds: 1, nanos: 0 };

/// As there is no end to how long an answer, an event or a pool's next query may be waited for without a sidecar.
/// Who has gone without a word is found by TCP's probes, and over HTTP/2 by its pings.
const NEVER: Duration = Duration { seconds: 0, nanos: 0 };

/// Whether a name is one of a bootstrap's resource.
pub(crate) fn is_own(name: &str) -> bool {
    name.starts_with("bootstrap/")
}

/// Whether a listener is for what an application receives.
pub(crate) fn is_inbound(name: &str) -> bool {
    name.starts_with(INBOUND)
}

/// The listener for what the application sends, whose routes are found on demand. Of what is intercepted and for
/// nobody in the mesh, its own routes say that it goes where it was going to.
pub(crate) fn outbound(outbound: &Outbound) -> Vec<(ResourceType, Resource)> {
    let direction = TrafficDirection::Outbound;
    if !outbound.intercepted {
        let chain = FilterChain { filters: vec![http(OUTBOUND, Vec::new())], ..FilterChain::default() };
        let listener = listener(OUTBOUND, outbound.address, direction, vec![chain]);
        return vec![(ResourceType::Listener, Resource::encode(&listener))];
    }
    let passes = outbound.unknown == Unknown::Pass;
    intercepted(OUTBOUND, outbound.address, direction, false, passes)
}

/// The listener at `address`, and what leads on to the application.
pub(crate) fn inbound(address: SocketAddr, to: To) -> Vec<(ResourceType, Resource)> {
    let name = format!("{INBOUND}{}", address.port());
    let direction = TrafficDirection::Inbound;
    let application = match to {
        To::Application(application) => application,
        To::Original | To::Transparent => {
            return intercepted(&name, address, direction, to == To::Transparent, true);
        }
    };
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(socket(application)),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    let cluster = Cluster {
        name: name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.clone(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        ..Cluster::default()
    };
    let chain = FilterChain { filters: vec![http(&name, everything_to(&name))], ..FilterChain::default() };
    let listener = listener(&name, address, direction, vec![chain]);
    vec![
        (ResourceType::Cluster, Resource::encode(&cluster)),
        (ResourceType::Listener, Resource::encode(&listener)),
    ]
}

/// A listener of which it is not known what comes: HTTP of either version is found by its first bytes, and the rest
/// is passed on as it is, as is what says nothing because its server speaks first.
fn intercepted(
    name: &str,
    address: SocketAddr,
    direction: TrafficDirection,
    transparent: bool,
    passes: bool,
) -> Vec<(ResourceType, Resource)> {
    let http2_name = format!("{name}/h2c");
    let mut own = Vec::new();
    // Of what is not HTTP the outbound listener decides itself where it may go, once it knows where it was going.
    let decides = name == OUTBOUND;
    if passes || decides {
        own.extend(
            [(name, false), (&http2_name, true)]
                .map(|(name, http2)| (ResourceType::Cluster, Resource::encode(&original(name, http2)))),
        );
    }
    let routes = |cluster: &str| if passes { everything_to(cluster) } else { Vec::new() };
    let chain = |protocols: &[&str], cluster: &str| FilterChain {
        filters: vec![http(cluster, routes(cluster))],
        filter_chain_match: Some(FilterChainMatch {
            transport_protocol: "raw_buffer".to_owned(),
            application_protocols: protocols.iter().map(|&protocol| protocol.to_owned()).collect(),
            ..FilterChainMatch::default()
        }),
        ..FilterChain::default()
    };
    // Clients of HTTP/1.0 need name no host (health checks do not), so to the application they are passed on as they are.
    let http1: &[&str] = if decides { &["http/1.0", "http/1.1"] } else { &["http/1.1"] };
    let bytes = TcpProxy {
        stat_prefix: name.to_owned(),
        cluster_specifier: Some(TcpTarget::Cluster(name.to_owned())),
        idle_timeout: Some(NEVER),
        ..TcpProxy::default()
    };
    let bytes = Filter {
        name: "envoy.filters.network.tcp_proxy".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&bytes))),
    };
    let filter = |name: &str, config| ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..ListenerFilter::default()
    };
    let listener = Listener {
        listener_filters: vec![
            filter("envoy.filters.listener.original_dst", pack(&OriginalDst {})),
            filter("envoy.filters.listener.tls_inspector", pack(&TlsInspector::default())),
            filter("envoy.filters.listener.http_inspector", pack(&HttpInspector {})),
        ],
        listener_filters_timeout: Some(DETECTION),
        continue_on_listener_filters_timeout: true,
        transparent: transparent.then_some(BoolValue { value: true }),
        default_filter_chain: (passes || decides)
            .then(|| FilterChain { filters: vec![bytes], ..FilterChain::default() }),
        ..listener(name, address, direction, vec![chain(http1, name), chain(&["h2c"], &http2_name)])
    };
    own.push((ResourceType::Listener, Resource::encode(&listener)));
    own
}

/// A cluster of wherever connections were going to.
fn original(name: &str, http2: bool) -> Cluster {
    let mut cluster = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32)),
        lb_policy: LbPolicy::ClusterProvided as i32,
        ..Cluster::default()
    };
    if http2 {
        let options = HttpProtocolOptions {
            upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
                ExplicitHttpConfig {
                    protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Default::default())),
                },
            )),
            ..HttpProtocolOptions::default()
        };
        let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
        cluster.typed_extension_protocol_options.insert(name, pack(&options));
    }
    cluster
}

fn everything_to(cluster: &str) -> Vec<VirtualHost> {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        // The caller's own timeout is the one that counts.
        timeout: Some(NEVER),
        ..RouteAction::default()
    };
    let everything =
        RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..RouteMatch::default() };
    vec![VirtualHost {
        name: cluster.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![Route {
            name: cluster.to_owned(),
            r#match: Some(everything),
            action: Some(route::Action::Route(action)),
            ..Route::default()
        }],
        ..VirtualHost::default()
    }]
}

fn http(name: &str, hosts: Vec<VirtualHost>) -> Filter {
    let manager = HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            name: name.to_owned(),
            virtual_hosts: hosts,
            ..RouteConfiguration::default()
        })),
        // Routes of services may say something of CORS.
        http_filters: [
            // It has no fields.
            ("envoy.filters.http.cors", Any { type_url: Cors::type_url(), ..Any::default() }),
            ("envoy.filters.http.router", pack(&Router::default())),
        ]
        .map(|(name, config)| HttpFilter {
            name: name.to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(config)),
            ..HttpFilter::default()
        })
        .into(),
        stream_idle_timeout: Some(NEVER),
        // As without a sidecar.
        http_protocol_options: Some(Http1ProtocolOptions {
            accept_http_10: true,
            ..Http1ProtocolOptions::default()
        }),
        // The application gets the path as its caller wrote it.
        normalize_path: Some(BoolValue { value: false }),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..UpgradeConfig::default()
        }],
        ..HttpConnectionManager::default()
    };
    Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack(&manager))),
    }
}

fn listener(
    name: &str,
    address: SocketAddr,
    direction: TrafficDirection,
    filter_chains: Vec<FilterChain>,
) -> Listener {
    Listener {
        name: name.to_owned(),
        address: Some(socket(address)),
        traffic_direction: direction as i32,
        filter_chains,
        ..Listener::default()
    }
}

fn socket(address: SocketAddr) -> Address {
    let socket = SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
        ..SocketAddress::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pontoon_xds::messages::Coded as _;

    use crate::config::lds::{self, Reader};

    /// A long poll, an event stream, a WebSocket without pings, a pool's connection over lunch: nobody asked for an end.
    #[test]
    fn no_idle_time_ends_what_passes_a_sidecar() {
        let address = SocketAddr::from(([127, 0, 0, 1], 15_001));
        let mut own = Vec::new();
        for intercepted in [false, true] {
            let unknown = Unknown::Pass;
            own.extend(outbound(&Outbound { address, limits: Default::default(), intercepted, unknown }));
        }
        for to in [To::Application(address), To::Original, To::Transparent] {
            own.extend(inbound(address, to));
        }
        let mut readers = 0;
        for (ty, resource) in own {
            if ty != ResourceType::Listener {
                continue;
            }
            let listener = lds::compile(&Listener::decoded(&resource.body).unwrap()).unwrap();
            for (path, chain) in listener.chains {
                let idle = match chain.reader {
                    Reader::Http(manager) => manager.timeouts.stream_idle,
                    Reader::Tcp(proxy) => proxy.idle,
                };
                assert_eq!(idle, None, "{} {path}", resource.name);
                readers += 1;
            }
        }
        assert_eq!(readers, 1 + 3 + 1 + 3 + 3);
    }
}
