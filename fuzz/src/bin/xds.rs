//! Resources from a control plane that sends anything: each is taken or refused with a path and a reason, and what
//! was taken is taken again. The outer messages are kept whole for a part of the inputs, so that the inner ones are
//! reached.
#![no_main]

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::{Filter, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::google::protobuf::Any;
use libfuzzer_sys::fuzz_target;
use pontoon_fuzz::{listener, put};
use pontoon_proxy::config::Store;
use prost::{Message as _, Name as _};

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    let mut store = Store::default();
    let again = match kind % 7 {
        0 => Listener::decode(bytes).ok().map(|m| put(&mut store, &Listener { name: "l".into(), ..m })),
        1 => Cluster::decode(bytes).ok().map(|m| put(&mut store, &Cluster { name: "c".into(), ..m })),
        2 => ClusterLoadAssignment::decode(bytes)
            .ok()
            .map(|m| put(&mut store, &ClusterLoadAssignment { cluster_name: "c".into(), ..m })),
        3 => RouteConfiguration::decode(bytes)
            .ok()
            .map(|m| put(&mut store, &RouteConfiguration { name: "r".into(), ..m })),
        4 => Route::decode(bytes).ok().map(|route| {
            let host = VirtualHost {
                name: "v".into(),
                domains: vec!["*".into()],
                routes: vec![route],
                ..Default::default()
            };
            put(
                &mut store,
                &RouteConfiguration { name: "r".into(), virtual_hosts: vec![host], ..Default::default() },
            )
        }),
        kind => {
            let mut listener = listener();
            let type_url = if kind == 5 {
                HttpConnectionManager::type_url()
            } else {
                // The rest begins with the name of a type.
                let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                String::from_utf8_lossy(&bytes[..end]).into_owned()
            };
            let any = Any { type_url, value: bytes.to_vec() };
            let config = Filter { name: "x".into(), config_type: Some(filter::ConfigType::TypedConfig(any)) };
            listener.filter_chains[0].filters = vec![config];
            Some(put(&mut store, &listener))
        }
    };
    if let Some(Err(reason)) = again {
        assert!(reason.contains(": "), "no path in {reason:?}");
    }
});
