//! What upstreams are told of a client's certificate (`X-Forwarded-Client-Cert`), in each of the five ways.

use envoy_types::pb::envoy::config::listener::v3::filter;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::{RouteAction, route};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, common_tls_context,
};
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::*;
use crate::tcp::{DB, cluster};
use crate::tls::*;

/// What a client says beside its certificate: it may be no other.
const MADE_UP: &str = "By=spiffe://mesh/admin;URI=spiffe://mesh/admin";

/// Clients may show a certificate, and the listener does `mode` with it.
async fn told(mode: ForwardClientCertDetails) -> [Vec<String>; 2] {
    let authority = Authority::new();
    let upstream = Upstream::named(Http::One, "ok").await;
    let mut tls: DownstreamTlsContext = context(vec![certificate(&authority.sign(&["shop.test"]))]);
    let trust = CertificateValidationContext { trusted_ca: inline(&authority.pem()), ..Default::default() };
    tls.common_tls_context.as_mut().unwrap().validation_context_type =
        Some(common_tls_context::ValidationContextType::ValidationContext(trust));
    let mut chain = chain("one", &[], Some(tls));
    let Some(filter::ConfigType::TypedConfig(config)) = &mut chain.filters[0].config_type else {
        panic!("a typed config")
    };
    let mut manager = HttpConnectionManager::decode(&*config.value).unwrap();
    manager.set_forward_client_cert_details(mode);
    manager.set_current_client_cert_details =
        Some(SetCurrentClientCertDetails { dns: true, uri: true, ..Default::default() });
    let Some(RouteSpecifier::RouteConfig(routes)) = &mut manager.route_specifier else { panic!("routes") };
    let to = ClusterSpecifier::Cluster(DB.into());
    let to = RouteAction { cluster_specifier: Some(to), ..RouteAction::default() };
    routes.virtual_hosts[0].routes[0].action = Some(route::Action::Route(to));
    *config = any(&manager);
    let edge = Edge::over(&[cluster(&[upstream.address])], &listener(vec![chain])).await;
    let own = authority.sign(&["client.test"]);
    let mut all = [Vec::new(), Vec::new()];
    for (own, told) in [Some(&own), None].into_iter().zip(&mut all) {
        let mut stream =
            connect(edge.address, &client(&authority, own, &["http/1.1"]), "shop.test").await.unwrap();
        // The second is of a connection that has told already.
        for end in ["keep-alive", "close"] {
            let ask = format!(
                "GET / HTTP/1.1\r\nhost: shop\r\nx-forwarded-for: 1.2.3.4\r\nX-Forwarded-Client-Cert: {MADE_UP}\r\nconnection: {end}\r\n\r\n"
            );
            stream.write_all(ask.as_bytes()).await.unwrap();
            let mut answer = [0; 1024];
            assert!(stream.read(&mut answer).await.unwrap() > 0);
            let seen = upstream.last().headers;
            let values: Vec<&str> =
                seen.get_all("x-forwarded-client-cert").iter().map(|value| value.to_str().unwrap()).collect();
            told.push(values.join("|"));
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_says_of_certificates_goes_where_the_listener_lets_it() {
    use ForwardClientCertDetails as Mode;
    for (mode, with, without) in [
        (Mode::Sanitize, "", ""),
        (Mode::ForwardOnly, MADE_UP, ""),
        (Mode::AlwaysForwardOnly, MADE_UP, MADE_UP),
    ] {
        assert_eq!(told(mode).await, [[with, with], [without, without]], "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_proxy_has_seen_is_told_and_only_of_who_showed_it() {
    use ForwardClientCertDetails as Mode;
    for (mode, before) in [(Mode::SanitizeSet, String::new()), (Mode::AppendForward, format!("{MADE_UP},"))] {
        let [with, without] = told(mode).await;
        for said in with {
            let own = said.strip_prefix(&before).unwrap_or_else(|| panic!("{mode:?}: {said}"));
            let rest = own.strip_prefix("Hash=").unwrap();
            assert_eq!(&rest[64..], ";URI=;DNS=client.test", "{mode:?}");
        }
        assert_eq!(without, ["", ""], "{mode:?}");
    }
}
