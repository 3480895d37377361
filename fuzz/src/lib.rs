//! What the targets share: resources around those that are made up.

use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, address, socket_address::PortSpecifier};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use envoy_types::pb::google::protobuf::Any;
use pontoon_proxy::config::Store;
use pontoon_xds::client::Update;
use pontoon_xds::resource::ResourceMessage;
use pontoon_xds::Resource;
use tokio::time::{Duration, Instant};

/// A message in an envelope.
pub fn any<M: prost::Message + prost::Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Gives a resource to the store; the reason where it is refused. What is taken must be taken again.
pub fn put<M: ResourceMessage>(store: &mut Store, message: &M) -> Result<(), String> {
    let mut apply = || {
        let update = Update { ty: M::TYPE, changed: vec![Resource::encode(message)], removed: Vec::new() };
        store.apply(update, Instant::now()).pop().map_or(Ok(()), |rejected| Err(rejected.reason))
    };
    let first = apply();
    assert_eq!(first, apply());
    first
}

/// The same bytes in pieces.
pub fn cut<'b>(mut bytes: &'b [u8], cuts: &[u8]) -> Vec<&'b [u8]> {
    let mut pieces = Vec::new();
    for cut in cuts {
        let (now, later) = bytes.split_at(usize::from(*cut).min(bytes.len()));
        pieces.push(now);
        bytes = later;
    }
    pieces.push(bytes);
    pieces
}

/// A listener on port 80 whose routes are `r`'s.
pub fn listener() -> Listener {
    let router = http_filter::ConfigType::TypedConfig(any(&Router::default()));
    let manager = HttpConnectionManager {
        stat_prefix: "l".into(),
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            name: "r".into(),
            ..Default::default()
        })),
        http_filters: vec![HttpFilter { config_type: Some(router), ..Default::default() }],
        ..Default::default()
    };
    let config = filter::ConfigType::TypedConfig(any(&manager));
    let filter = Filter { config_type: Some(config), ..Default::default() };
    let socket = SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(PortSpecifier::PortValue(80)),
        ..Default::default()
    };
    Listener {
        name: "l".into(),
        address: Some(Address { address: Some(address::Address::SocketAddress(socket)) }),
        filter_chains: vec![FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    }
}

/// A store in which these routes are in force; `None` where they are refused.
pub fn serving(routes: &RouteConfiguration) -> Option<Store> {
    let mut listener = listener();
    let router = http_filter::ConfigType::TypedConfig(any(&Router::default()));
    let manager = HttpConnectionManager {
        stat_prefix: "l".into(),
        route_specifier: Some(RouteSpecifier::RouteConfig(routes.clone())),
        http_filters: vec![HttpFilter { config_type: Some(router), ..Default::default() }],
        ..Default::default()
    };
    listener.filter_chains[0].filters[0].config_type = Some(filter::ConfigType::TypedConfig(any(&manager)));
    let mut store = Store::default();
    put(&mut store, &listener).ok()?;
    // What waits for a cluster waits no longer.
    store.settle(Instant::now() + Duration::from_secs(3600));
    Some(store)
}
