//! TLS on a listener: a filter chain for its hostname, with its certificates.

use envoy_types::pb::envoy::config::core::v3::{
    DataSource, TransportSocket, data_source::Specifier, transport_socket,
};
use envoy_types::pb::envoy::config::listener::v3::{
    FilterChain, FilterChainMatch, ListenerFilter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, TlsCertificate,
};
use envoy_types::util::pack_any;

use super::hostname::Hostname;
use super::listener::Served;

/// Reads the name that a client asks for; Envoy needs to be told.
pub(super) fn inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack_any(TlsInspector::default()))),
        ..ListenerFilter::default()
    }
}

/// `plain` behind the listener's TLS.
pub(super) fn filter_chain(served: &Served, plain: FilterChain) -> FilterChain {
    let server_names = match &served.hostname {
        Hostname::Any => Vec::new(),
        hostname => vec![hostname.domain()],
    };
    let pairs = served.certificates.iter().filter_map(|certificate| certificate.pair.as_ref());
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificates: pairs
                .map(|pair| TlsCertificate {
                    certificate_chain: inline(&pair.certificate),
                    private_key: inline(&pair.key),
                    ..TlsCertificate::default()
                })
                .collect(),
            alpn_protocols: vec!["h2".to_owned(), "http/1.1".to_owned()],
            ..CommonTlsContext::default()
        }),
        ..DownstreamTlsContext::default()
    };
    FilterChain {
        name: served.name.clone(),
        filter_chain_match: Some(FilterChainMatch { server_names, ..FilterChainMatch::default() }),
        transport_socket: Some(TransportSocket {
            name: "envoy.transport_sockets.tls".to_owned(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(pack_any(context))),
        }),
        ..plain
    }
}

fn inline(bytes: &[u8]) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec())), ..DataSource::default() })
}
