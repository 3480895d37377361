//! Our proxy is configured as in production, by xDS: a server in this process publishes the same routes that the
//! peers read from files.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, DataSource, Http2ProtocolOptions, SocketAddress, TransportSocket, address, transport_socket,
};
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
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, TlsCertificate,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions,
};
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use envoy_types::util::pack_any;
use pontoon_xds::Snapshot;
use pontoon_xds::server::{Options, Server, grpc_server};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

use super::{Front, Pair, Scenario};

/// Serves one proxy's configuration; gives where. It ends with the runtime.
pub(crate) async fn serve(scenario: &Scenario, port: u16, upstream: u16) -> anyhow::Result<SocketAddr> {
    let mut snapshot = Snapshot::default();
    snapshot.insert(&cluster(scenario, upstream));
    snapshot.insert(&listener(scenario, port));
    let server = Server::new(Options::new(|_| Ok(String::from("bench"))));
    server.publish("bench", snapshot);
    listen(&server).await
}

/// Serves what this server publishes; gives where. It ends with the runtime.
pub(super) async fn listen(server: &Server) -> anyhow::Result<SocketAddr> {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = socket.local_addr()?;
    // A proxy that is halted answers no ping, and is not to connect anew in its turn.
    let serving = grpc_server()
        .http2_keepalive_interval(None)
        .add_routes(server.routes())
        .serve_with_incoming(TcpListenerStream::new(socket));
    tokio::spawn(serving);
    Ok(address)
}

fn at(port: u16) -> Option<Address> {
    let port_specifier = Some(PortSpecifier::PortValue(port.into()));
    let socket = SocketAddress { address: "127.0.0.1".into(), port_specifier, ..SocketAddress::default() };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

/// Endpoints at these ports.
pub(super) fn assignment(upstreams: &[u16]) -> ClusterLoadAssignment {
    let endpoints = upstreams.iter().map(|port| {
        let endpoint = Endpoint { address: at(*port), ..Endpoint::default() };
        LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..LbEndpoint::default() }
    });
    let locality =
        LocalityLbEndpoints { lb_endpoints: endpoints.collect(), ..LocalityLbEndpoints::default() };
    ClusterLoadAssignment {
        cluster_name: "upstream".into(),
        endpoints: vec![locality],
        ..ClusterLoadAssignment::default()
    }
}

pub(super) fn cluster(scenario: &Scenario, upstream: u16) -> Cluster {
    let protocol = (scenario.front == Front::H2c).then(|| {
        let options = HttpProtocolOptions {
            upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
                ExplicitHttpConfig {
                    protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(
                        Http2ProtocolOptions::default(),
                    )),
                },
            )),
            ..HttpProtocolOptions::default()
        };
        (String::from("envoy.extensions.upstreams.http.v3.HttpProtocolOptions"), pack_any(options))
    });
    Cluster {
        name: "upstream".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        load_assignment: Some(assignment(&[upstream])),
        typed_extension_protocol_options: protocol.into_iter().collect(),
        ..Cluster::default()
    }
}

pub(super) fn listener(scenario: &Scenario, port: u16) -> Listener {
    let config = match scenario.front {
        Front::Tcp => pack_any(TcpProxy {
            stat_prefix: "front".into(),
            cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster("upstream".into())),
            ..TcpProxy::default()
        }),
        _ => pack_any(manager(scenario)),
    };
    let config_type = Some(filter::ConfigType::TypedConfig(config));
    Listener {
        name: "front".into(),
        address: at(port),
        filter_chains: vec![FilterChain {
            filters: vec![Filter { name: "front".into(), config_type }],
            transport_socket: scenario.pair.as_ref().map(tls),
            ..FilterChain::default()
        }],
        ..Listener::default()
    }
}

fn tls(pair: &Pair) -> TransportSocket {
    let file = |path: &Path| {
        Some(DataSource {
            specifier: Some(Specifier::Filename(path.display().to_string())),
            ..DataSource::default()
        })
    };
    let certificate = TlsCertificate {
        certificate_chain: file(&pair.certificate),
        private_key: file(&pair.key),
        ..TlsCertificate::default()
    };
    let common = CommonTlsContext { tls_certificates: vec![certificate], ..CommonTlsContext::default() };
    let context =
        DownstreamTlsContext { common_tls_context: Some(common), ..DownstreamTlsContext::default() };
    TransportSocket {
        name: "tls".into(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack_any(context))),
    }
}

fn manager(scenario: &Scenario) -> HttpConnectionManager {
    let routes = (0..scenario.routes).map(|i| Route {
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
    HttpConnectionManager {
        stat_prefix: "front".into(),
        use_remote_address: Some(BoolValue { value: true }),
        http2_protocol_options: Some(Http2ProtocolOptions {
            max_concurrent_streams: Some(UInt32Value { value: 256 }),
            ..Http2ProtocolOptions::default()
        }),
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            name: "all".into(),
            virtual_hosts: vec![host],
            ..RouteConfiguration::default()
        })),
        http_filters: vec![HttpFilter {
            name: "router".into(),
            config_type: Some(router),
            ..HttpFilter::default()
        }],
        ..HttpConnectionManager::default()
    }
}
