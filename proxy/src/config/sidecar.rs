//! A sidecar's own listeners and cluster, from its bootstrap: written as the xDS resources that they could have
//! come as, so that they go the same way as all others.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, TrafficDirection, address};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    RouteSpecifier, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use envoy_types::pb::google::protobuf::{BoolValue, Duration};
use envoy_types::util::pack_any;
use pontoon_xds::{Resource, ResourceType};

/// The listener for what the application sends.
pub(crate) const OUTBOUND: &str = "bootstrap/outbound";
/// The listeners and clusters for what the application receives, by the listener's port.
const INBOUND: &str = "bootstrap/inbound/";

/// Whether a name is one of a bootstrap's resource.
pub(crate) fn is_own(name: &str) -> bool {
    name.starts_with("bootstrap/")
}

/// The listener at `address` whose routes are found on demand.
pub(crate) fn outbound(address: SocketAddr) -> Vec<(ResourceType, Resource)> {
    vec![(
        ResourceType::Listener,
        Resource::encode(&listener(OUTBOUND, address, TrafficDirection::Outbound, Vec::new())),
    )]
}

/// The listener at `address` and the cluster of the `application` behind it.
pub(crate) fn inbound(address: SocketAddr, application: SocketAddr) -> Vec<(ResourceType, Resource)> {
    let name = format!("{INBOUND}{}", address.port());
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
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(name.clone())),
        // The caller's own timeout is the one that counts.
        timeout: Some(Duration { seconds: 0, nanos: 0 }),
        ..RouteAction::default()
    };
    let everything =
        RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..RouteMatch::default() };
    let host = VirtualHost {
        name: name.clone(),
        domains: vec!["*".to_owned()],
        routes: vec![Route {
            name: name.clone(),
            r#match: Some(everything),
            action: Some(route::Action::Route(action)),
            ..Route::default()
        }],
        ..VirtualHost::default()
    };
    let listener = listener(&name, address, TrafficDirection::Inbound, vec![host]);
    vec![
        (ResourceType::Cluster, Resource::encode(&cluster)),
        (ResourceType::Listener, Resource::encode(&listener)),
    ]
}

fn listener(
    name: &str,
    address: SocketAddr,
    direction: TrafficDirection,
    hosts: Vec<VirtualHost>,
) -> Listener {
    let manager = HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            name: name.to_owned(),
            virtual_hosts: hosts,
            ..RouteConfiguration::default()
        })),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(Router::default()))),
            ..HttpFilter::default()
        }],
        // The application gets the path as its caller wrote it.
        normalize_path: Some(BoolValue { value: false }),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..UpgradeConfig::default()
        }],
        ..HttpConnectionManager::default()
    };
    let filter = Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack_any(manager))),
    };
    Listener {
        name: name.to_owned(),
        address: Some(socket(address)),
        traffic_direction: direction as i32,
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
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
