//! DNS: queries of applications and answers of upstreams. A query that can be read has one answer, to the same question
//! and within what its transport takes; a name is compared in one form; no answer holds for longer than its upstream said.
#![no_main]

use std::cell::LazyCell;

use arbitrary::Arbitrary;
use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::listener::v3::{ApiListener, Listener};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_filter,
};
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};
use libfuzzer_sys::fuzz_target;
use pontoon_fuzz::any;
use pontoon_proxy::fuzzing::{Resolver, kept};
use pontoon_xds::Resource;

/// Of an answer that has run out.
const STALE_TTL: u32 = 30;
const SERVICE: &str = "orders";
const SUFFIXES: [&str; 5] = ["", ".", ".mesh.internal", ".corp.example.", ".in-addr.arpa"];

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    Query(bool, &'a [u8]),
    Name { ours: bool, name: &'a str, suffix: u8, ty: u16 },
    Answer(u16, u32, &'a [u8]),
}

thread_local! {
    static RESOLVER: LazyCell<Resolver> = LazyCell::new(|| Resolver::new(SERVICE, Resource::encode(&listener())));
}

fuzz_target!(|input: Input<'_>| match input {
    Input::Query(tcp, query) => {
        let Some(answer) = RESOLVER.with(|resolver| resolver.answer(query, tcp)) else { return };
        assert!(query.len() >= 12 && answer.len() >= 12);
        assert_eq!(answer[..2], query[..2]);
        assert!(answer[2] & 0x80 != 0, "it is a response");
        assert!(tcp || answer.len() <= 4_096);
    }
    Input::Name { ours, name, suffix, ty } => {
        let suffix = SUFFIXES[usize::from(suffix) % SUFFIXES.len()];
        let name = if ours { format!("{SERVICE}{name}{suffix}") } else { format!("{name}{suffix}") };
        let Some((compared, answer)) = RESOLVER.with(|resolver| resolver.ask(&name, ty)) else { return };
        assert!(answer[2] & 0x80 != 0, "it is a response");
        if let Some(compared) = compared {
            assert!(!compared.chars().any(|c| c.is_ascii_uppercase() || c == '\\'), "{compared:?}");
            assert!(compared.len() <= 1_024);
        }
    }
    Input::Answer(ty, later, answer) => {
        if let Some((said, told)) = kept(ty, answer, later) {
            assert!(told <= said.max(STALE_TTL));
        }
    }
});

/// A service of the mesh with an address of each family.
fn listener() -> Listener {
    let manager = HttpConnectionManager {
        http_filters: vec![HttpFilter {
            name: "router".into(),
            config_type: Some(http_filter::ConfigType::TypedConfig(any(&Router::default()))),
            ..Default::default()
        }],
        route_specifier: Some(RouteSpecifier::RouteConfig(RouteConfiguration {
            name: SERVICE.into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let value = |kind| Value { kind: Some(kind) };
    let addresses = ["240.240.0.7", "fd70:6f6e:746f:6f6e::7"];
    let values = addresses.iter().map(|address| value(Kind::StringValue((*address).to_owned()))).collect();
    let fields = [(SERVICE.to_owned(), value(Kind::ListValue(ListValue { values })))].into();
    let filter_metadata = [("pontoon.dev/addresses".to_owned(), Struct { fields })].into();
    Listener {
        name: SERVICE.into(),
        metadata: Some(Metadata { filter_metadata, ..Metadata::default() }),
        api_listener: Some(ApiListener { api_listener: Some(any(&manager)) }),
        ..Listener::default()
    }
}
