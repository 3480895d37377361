//! Our proxy is configured as in production, by xDS: a server in this process publishes the same routes that the
//! peers read from files.

use std::net::{Ipv4Addr, SocketAddr};

use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, address, socket_address::PortSpecifier};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use envoy_types::pb::google::protobuf::BoolValue;
use envoy_types::util::pack_any;
use pontoon_xds::Snapshot;
use pontoon_xds::server::{Options, Server, grpc_server};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

use crate::configuration::ROUTES;

/// Serves one proxy's configuration; gives where. It ends with the runtime.
pub(crate) async fn serve(port: u16, upstream: u16) -> anyhow::Result<SocketAddr> {
    let mut snapshot = Snapshot::default();
    snapshot.insert(&cluster(upstream));
    snapshot.insert(&listener(port));
    let server = Server::new(Options::new(|_| Ok(String::from("bench"))));
    server.publish("bench", snapshot);
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = socket.local_addr()?;
    let serving =
        grpc_server().add_service(server.service()).serve_with_incoming(TcpListenerStream::new(socket));
    tokio::spawn(serving);
    Ok(address)
}

fn at(port: u16) -> Option<Address> {
    let port_specifier = Some(PortSpecifier::PortValue(port.into()));
    let socket = SocketAddress { address: "127.0.0.1".into(), port_specifier, ..SocketAddress::default() };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

fn cluster(upstream: u16) -> Cluster {
    let endpoint = Endpoint { address: at(upstream), ..Endpoint::default() };
    let lb_endpoint =
        LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..LbEndpoint::default() };
    let locality = LocalityLbEndpoints { lb_endpoints: vec![lb_endpoint], ..LocalityLbEndpoints::default() };
    Cluster {
        name: "upstream".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: "upstream".into(),
            endpoints: vec![locality],
            ..ClusterLoadAssignment::default()
        }),
        ..Cluster::default()
    }
}

fn listener(port: u16) -> Listener {
    let routes = (0..ROUTES).map(|i| Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(format!("/route-{i}/"))),
            ..RouteMatch::default()
        }),
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster("upstream".into())),
            ..RouteAction::default()
        })),
        ..Route::default()
    });
    let host = VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes: routes.collect(),
        ..VirtualHost::default()
    };
    let router = http_filter::ConfigType::TypedConfig(pack_any(Router::default()));
    let manager = HttpConnectionManager {
        use_remote_address: Some(BoolValue { value: true }),
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            name: "all".into(),
            virtual_hosts: vec![host],
            ..RouteConfiguration::default()
        })),
        http_filters: vec![HttpFilter { config_type: Some(router), ..HttpFilter::default() }],
        ..HttpConnectionManager::default()
    };
    let config_type = Some(filter::ConfigType::TypedConfig(pack_any(manager)));
    Listener {
        name: "front".into(),
        address: at(port),
        filter_chains: vec![FilterChain {
            filters: vec![Filter { config_type, ..Filter::default() }],
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}
