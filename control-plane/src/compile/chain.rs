//! A socket and what is done with a connection on it: the Envoy side of a `Gateway`'s listeners.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, access_log};
use envoy_types::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use envoy_types::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions, HttpUri, http_uri,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::extensions::filters::http::buffer::v3::Buffer;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::Cors;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::ext_authz::Services;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{ExtAuthz, HttpService};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::StatefulSession;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    RouteSpecifier, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::util::pack_any;

use super::log_format;
use super::tls;
use super::wire;
use crate::model::upstream::Upstream;

/// The filter's name, under which routes say what is theirs.
pub(super) const CORS: &str = "envoy.filters.http.cors";
/// As [`CORS`].
pub(super) const RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";
/// As [`CORS`].
pub(super) const EXT_AUTHZ: &str = "envoy.filters.http.ext_authz";
/// As [`CORS`].
pub(super) const BUFFER: &str = "envoy.filters.http.buffer";
/// As [`CORS`].
pub(super) const RBAC: &str = "envoy.filters.http.rbac";
/// As [`CORS`].
pub(super) const SESSION: &str = "envoy.filters.http.stateful_session";
/// For a connection that is passed on: an endpoint that cannot be reached is not the last word.
const CONNECT_ATTEMPTS: u32 = 3;
/// A keep-alive connection without a request is closed after this.
const IDLE: std::time::Duration = std::time::Duration::from_secs(3600);
/// A request without a byte either way is ended after this.
const STREAM_IDLE: std::time::Duration = std::time::Duration::from_secs(300);
/// HTTP/2 streams of one connection, as Envoy advises for the edge.
const MAX_STREAMS: u32 = 100;
/// For all headers of a request: bounds a client that sends them byte by byte.
const REQUEST_HEADERS: std::time::Duration = std::time::Duration::from_secs(10);

/// The socket. Which of the chains takes a connection is told by the name that the client asks for under TLS, where
/// it is to be `inspected`.
pub(super) fn listener(
    name: &str,
    address: SocketAddr,
    filter_chains: Vec<FilterChain>,
    inspected: bool,
) -> Listener {
    Listener {
        name: name.to_owned(),
        address: Some(wire::socket(address)),
        filter_chains,
        listener_filters: if inspected { vec![tls::inspector()] } else { Vec::new() },
        ..Listener::default()
    }
}

/// HTTP. Its routes come by RDS, so that a change of routes leaves the socket untouched.
pub(super) fn http(listener: &str, routes: &str) -> FilterChain {
    let manager = HttpConnectionManager {
        stat_prefix: listener.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(wire::ads()),
            route_config_name: routes.to_owned(),
        })),
        http_filters: vec![cors(), rbac(), rate_limit(), ext_authz(), session(), buffer(), router()],
        access_log: vec![access_log()],
        common_http_protocol_options: Some(HttpProtocolOptions {
            idle_timeout: Some(wire::duration(IDLE)),
            // Behind it `X_Forwarded_Proto` may be read as `X-Forwarded-Proto`. Envoy lets it pass where nothing is said.
            headers_with_underscores_action: HeadersWithUnderscoresAction::RejectRequest.into(),
            ..HttpProtocolOptions::default()
        }),
        // Probes of load balancers, and nginx as it comes, speak HTTP/1.0.
        http_protocol_options: Some(Http1ProtocolOptions {
            accept_http_10: true,
            ..Http1ProtocolOptions::default()
        }),
        http2_protocol_options: Some(Http2ProtocolOptions {
            allow_connect: true,
            max_concurrent_streams: wire::number(MAX_STREAMS),
            ..Http2ProtocolOptions::default()
        }),
        stream_idle_timeout: Some(wire::duration(STREAM_IDLE)),
        request_headers_timeout: Some(wire::duration(REQUEST_HEADERS)),
        use_remote_address: wire::yes(),
        normalize_path: wire::yes(),
        merge_slashes: true,
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..UpgradeConfig::default()
        }],
        ..HttpConnectionManager::default()
    };
    filter_chain("envoy.filters.network.http_connection_manager", pack_any(manager))
}

/// What routes say of CORS is done by this. Proxies older than it go without.
fn cors() -> HttpFilter {
    HttpFilter { is_optional: true, ..filter(CORS, pack_any(Cors::default())) }
}

/// Who may ask is for routes to say, too. A proxy older than it refuses the routes that do.
fn rbac() -> HttpFilter {
    HttpFilter { disabled: true, ..filter(RBAC, pack_any(Rbac::default())) }
}

/// Which sessions there are is for routes to say, too.
fn session() -> HttpFilter {
    HttpFilter { disabled: true, ..filter(SESSION, pack_any(StatefulSession::default())) }
}

/// It limits nothing of itself. Proxies older than it go without.
fn rate_limit() -> HttpFilter {
    let none = LocalRateLimit { stat_prefix: "routes".to_owned(), ..LocalRateLimit::default() };
    HttpFilter { is_optional: true, ..filter(RATE_LIMIT, pack_any(none)) }
}

/// Who is asked, and how, is for routes to say, too.
fn ext_authz() -> HttpFilter {
    let nobody = HttpUri {
        uri: "http://nobody".to_owned(),
        timeout: Some(wire::duration(IDLE)),
        http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster("nobody".to_owned())),
    };
    let service = HttpService { server_uri: Some(nobody), ..HttpService::default() };
    let asking = ExtAuthz {
        services: Some(Services::HttpService(service)),
        status_on_error: Some(HttpStatus { code: 500 }),
        ..ExtAuthz::default()
    };
    HttpFilter { disabled: true, ..filter(EXT_AUTHZ, pack_any(asking)) }
}

/// How long bodies may be is for routes to say; without a word of theirs it is off.
fn buffer() -> HttpFilter {
    let most = Buffer { max_request_bytes: wire::number(u32::MAX) };
    HttpFilter { disabled: true, ..filter(BUFFER, pack_any(most)) }
}

fn router() -> HttpFilter {
    filter("envoy.filters.http.router", pack_any(Router::default()))
}

fn filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

fn access_log() -> AccessLog {
    AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(log_format::json_to_stdout())),
        ..AccessLog::default()
    }
}

/// Bytes, passed on as they are to one of these clusters by weight.
pub(super) fn connections(listener: &str, to: &[(Upstream, u32)]) -> FilterChain {
    let specifier = match to {
        [(upstream, _)] => ClusterSpecifier::Cluster(upstream.name.to_string()),
        several => {
            // Envoy takes no arm of weight 0 here.
            let arms = several.iter().filter(|(_, weight)| *weight > 0);
            let clusters = arms.map(|(upstream, weight)| ClusterWeight {
                name: upstream.name.to_string(),
                weight: *weight,
                ..ClusterWeight::default()
            });
            ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.collect() })
        }
    };
    let proxy = TcpProxy {
        stat_prefix: listener.to_owned(),
        cluster_specifier: Some(specifier),
        idle_timeout: Some(wire::duration(IDLE)),
        max_connect_attempts: wire::number(CONNECT_ATTEMPTS),
        access_log: vec![access_log()],
        ..TcpProxy::default()
    };
    filter_chain("envoy.filters.network.tcp_proxy", pack_any(proxy))
}

fn filter_chain(name: &str, config: Any) -> FilterChain {
    let filter = Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) };
    FilterChain { filters: vec![filter], ..FilterChain::default() }
}
