//! TLS on a listener: a filter chain for its hostname, which names its certificates. They travel as secrets (SDS),
//! so that a renewed one leaves the listener as it is. And TLS to endpoints, where a policy asks for it.

use envoy_types::pb::envoy::config::core::v3::{
    DataSource, TransportSocket, data_source::Specifier, transport_socket,
};
use envoy_types::pb::envoy::config::listener::v3::{
    FilterChain, FilterChainMatch, ListenerFilter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret,
    SubjectAltNameMatcher, TlsCertificate, UpstreamTlsContext,
    certificate_validation_context::TrustChainVerification, common_tls_context, secret,
    subject_alt_name_matcher::SanType,
};
use envoy_types::util::pack_any;

use super::hostname::Hostname;
use super::listener::{self, Certificate, ClientTrust, Served};
use super::wire::{self, Comparison};
use crate::model::upstream::{EndpointName, Tls};
use crate::objects::pool::Protocol;

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
    let alpn = &["h2", "http/1.1"];
    FilterChain {
        name: served.name.clone(),
        filter_chain_match: Some(asked_for(&served.hostname)),
        transport_socket: Some(terminate(served, alpn)),
        ..plain
    }
}

/// `plain`, which passes connections on, for those of one host of a listener.
pub(super) fn connection_chain(served: &Served, host: &Hostname, plain: FilterChain) -> FilterChain {
    let name = match host {
        Hostname::Any => served.name.clone(),
        host => format!("{}/{}", served.name, host.domain()),
    };
    match served.protocol {
        listener::Protocol::TlsTerminate => FilterChain {
            name,
            filter_chain_match: Some(asked_for(host)),
            transport_socket: Some(terminate(served, &[])),
            ..plain
        },
        listener::Protocol::TlsPassthrough => {
            let matched = FilterChainMatch { transport_protocol: "tls".to_owned(), ..asked_for(host) };
            FilterChain { name, filter_chain_match: Some(matched), ..plain }
        }
        _ => FilterChain { name, ..plain },
    }
}

fn asked_for(host: &Hostname) -> FilterChainMatch {
    let server_names = match host {
        Hostname::Any => Vec::new(),
        hostname => vec![hostname.domain()],
    };
    FilterChainMatch { server_names, ..FilterChainMatch::default() }
}

fn terminate(served: &Served, alpn: &[&str]) -> TransportSocket {
    let clients = served.clients.as_ref();
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_sds_secret_configs: served.certificates.iter().map(named).collect(),
            alpn_protocols: alpn.iter().map(|name| (*name).to_owned()).collect(),
            validation_context_type: clients
                .map(validation)
                .map(common_tls_context::ValidationContextType::ValidationContext),
            ..CommonTlsContext::default()
        }),
        require_client_certificate: clients.filter(|clients| !clients.insecure).and_then(|_| wire::yes()),
        ..DownstreamTlsContext::default()
    };
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack_any(context))),
    }
}

fn validation(clients: &ClientTrust) -> CertificateValidationContext {
    let verification = match clients.insecure {
        true => TrustChainVerification::AcceptUntrusted,
        false => TrustChainVerification::VerifyTrustChain,
    };
    CertificateValidationContext {
        trusted_ca: inline(clients.authorities.as_bytes()),
        trust_chain_verification: verification as i32,
        ..CertificateValidationContext::default()
    }
}

/// Under which name a gateway's own certificate, that endpoints ask for, travels: clusters are the same for all
/// gateways, and each gateway's proxies have another one.
pub(super) const CLIENT_CERTIFICATE: &str = "gateway-client-certificate";

/// A gateway's own certificate as it travels.
pub(super) fn client_secret(certificate: &Certificate) -> Option<Secret> {
    Some(Secret { name: CLIENT_CERTIFICATE.to_owned(), ..secret(certificate)? })
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

/// How endpoints are spoken to. `alpn` says which HTTP it is going to be.
pub(super) fn to_endpoints(tls: &Tls, protocol: Protocol, with_certificate: bool) -> TransportSocket {
    let names = tls.names.iter().map(|name| {
        let (san_type, text) = match name {
            EndpointName::Dns(text) => (SanType::Dns, text),
            EndpointName::Uri(text) => (SanType::Uri, text),
        };
        SubjectAltNameMatcher {
            san_type: san_type as i32,
            matcher: Some(wire::string(Comparison::Exact(text.clone()))),
            ..SubjectAltNameMatcher::default()
        }
    });
    let mut names: Vec<_> = names.collect();
    if names.is_empty() {
        names.push(SubjectAltNameMatcher {
            san_type: SanType::Dns as i32,
            matcher: Some(wire::string(Comparison::Exact(tls.hostname.clone()))),
            ..SubjectAltNameMatcher::default()
        });
    }
    let validation = CertificateValidationContext {
        trusted_ca: inline(tls.authorities.as_bytes()),
        match_typed_subject_alt_names: names,
        ..CertificateValidationContext::default()
    };
    let own = SdsSecretConfig { name: CLIENT_CERTIFICATE.to_owned(), sds_config: Some(wire::ads()) };
    let alpn = match protocol {
        Protocol::H2c => "h2",
        Protocol::Http1 => "http/1.1",
    };
    let context = UpstreamTlsContext {
        sni: tls.hostname.clone(),
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_sds_secret_configs: if with_certificate { vec![own] } else { Vec::new() },
            alpn_protocols: vec![alpn.to_owned()],
            validation_context_type: Some(common_tls_context::ValidationContextType::ValidationContext(
                validation,
            )),
            ..CommonTlsContext::default()
        }),
        ..UpstreamTlsContext::default()
    };
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack_any(context))),
    }
}

fn inline(bytes: &[u8]) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineBytes(bytes.to_vec())), ..DataSource::default() })
}
