//! The name that TLS was agreed for, and the host that a request then asks for.

use envoy_types::pb::envoy::config::listener::v3::{FilterChain, filter};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, common_tls_context,
};
use envoy_types::pb::google::protobuf::BoolValue;
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::tls::*;

/// A chain that takes `name`, and whose routes know that host alone.
fn own(name: &str, authority: &Authority, mutual: bool) -> FilterChain {
    let mut tls = context(vec![certificate(&authority.sign(&[name]))]);
    if mutual {
        let trust =
            CertificateValidationContext { trusted_ca: inline(&authority.pem()), ..Default::default() };
        tls.common_tls_context.as_mut().unwrap().validation_context_type =
            Some(common_tls_context::ValidationContextType::ValidationContext(trust));
        tls.require_client_certificate = Some(BoolValue { value: true });
    }
    let mut chain = chain(name, &[name], Some(tls));
    let Some(filter::ConfigType::TypedConfig(config)) = &mut chain.filters[0].config_type else {
        panic!("a typed config")
    };
    let mut manager = HttpConnectionManager::decode(&*config.value).unwrap();
    let Some(RouteSpecifier::RouteConfig(routes)) = &mut manager.route_specifier else { panic!("routes") };
    routes.virtual_hosts[0].domains = vec![name.to_owned()];
    *config = any(&manager);
    chain
}

/// The attack: TLS for the host that asks for no certificate, and then a request for the one that does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_not_reached_through_the_chain_of_another_name() {
    let authority = Authority::new();
    let chains = vec![own("open.test", &authority, false), own("closed.test", &authority, true)];
    let edge = Edge::over(&[], &listener(chains)).await;
    for (host, answer) in [("open.test", "open.test"), ("closed.test", "no_virtual_host")] {
        let mut stream =
            connect(edge.address, &client(&authority, None, &["http/1.1"]), "open.test").await.unwrap();
        let ask = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut all = String::new();
        drop(stream.read_to_string(&mut all).await);
        let body = all.split_once("\r\n\r\n").unwrap().1;
        assert!(body.starts_with(answer), "{host}: {all}");
    }
}
