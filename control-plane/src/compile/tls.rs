//! TLS on a listener: a filter chain for its hostname, which names its certificates. They travel as secrets (SDS),
//! so that a renewed one leaves the listener as it is.

use envoy_types::pb::envoy::config::core::v3::{
    DataSource, TransportSocket, data_source::Specifier, transport_socket,
};
use envoy_types::pb::envoy::config::listener::v3::{
    FilterChain, FilterChainMatch, ListenerFilter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret, TlsCertificate, secret,
};
use envoy_types::util::pack_any;

use super::hostname::Hostname;
use super::listener::{Certificate, Served};
use super::wire;

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
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_sds_secret_configs: served.certificates.iter().map(named).collect(),
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

fn named(certificate: &Certificate) -> SdsSecretConfig {
    SdsSecretConfig { name: certificate.secret.to_string(), sds_config: Some(wire::ads()) }
}

/// A certificate as it travels, under the name of its object. `None`: it was not found.
pub(super) fn secret(certificate: &Certificate) -> Option<Secret> {
    let pair = certificate.pair.as_ref()?;
    let message = TlsCertificate {
        certificate_chain: inline(&pair.certificate),
        private_key: inline(&pair.key),
        ..TlsCertificate::default()
    };
    Some(Secret { name: certificate.secret.to_string(), r#type: Some(secret::Type::TlsCertificate(message)) })
}

fn inline(bytes: &[u8]) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec())), ..DataSource::default() })
}
