//! The PROXY protocol's two messages: the listener filter that reads it, and the transport socket that writes it.

use envoy_types::pb::envoy::config::core::v3::proxy_protocol_config::Version as Form;
use envoy_types::pb::envoy::config::core::v3::{ProxyProtocolConfig, TransportSocket, transport_socket};
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use prost::Name as _;

use super::chains::Announced;
use super::lds::unpack;
use super::problem::{Problem, Under, each};
use super::support::{Message, support};
use crate::proxy_protocol::Version;

pub(super) const MESSAGES: &[Message] = &[PROXY_PROTOCOL, UPSTREAM, CONFIG];

support! {
    PROXY_PROTOCOL, listener_filter: ProxyProtocol = "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";
    read: allow_requests_without_proxy_protocol, disallowed_versions;
    ignored:
        tlv_location => "extensions are not kept",
        stat_prefix => "it only names statistics";
    refused: rules, pass_through_tlvs;
}

support! {
    UPSTREAM, transport: ProxyProtocolUpstreamTransport = "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";
    read: config, transport_socket;
    ignored:
        allow_unspecified_address => "a connection of our own always says so",
        tlv_as_pool_key => "extensions are not sent";
    refused: ;
}

support! {
    CONFIG, protocol_config: ProxyProtocolConfig = "envoy.config.core.v3.ProxyProtocolConfig";
    read: version;
    ignored:;
    refused: pass_through_tlvs, added_tlvs;
}

/// What the listener filter says.
pub(super) fn listener(message: &ProxyProtocol) -> Result<Announced, Problem> {
    listener_filter(message)?;
    let mut announced =
        Announced { optional: message.allow_requests_without_proxy_protocol, v1: true, v2: true };
    each("disallowed_versions", &message.disallowed_versions, |form| {
        match version(*form)? {
            Version::V1 => announced.v1 = false,
            Version::V2 => announced.v2 = false,
        }
        Ok(())
    })?;
    if !announced.v1 && !announced.v2 {
        return Err(Problem::new("disallowed_versions", "leaves no version"));
    }
    Ok(announced)
}

/// The form in which a cluster's connections begin, and the transport socket under it.
pub(super) fn upstream(
    socket: Option<&TransportSocket>,
) -> Result<(Option<Version>, Option<TransportSocket>), Problem> {
    let Some(transport_socket::ConfigType::TypedConfig(config)) =
        socket.and_then(|socket| socket.config_type.as_ref())
    else {
        return Ok((None, socket.cloned()));
    };
    if config.type_url != ProxyProtocolUpstreamTransport::type_url() {
        return Ok((None, socket.cloned()));
    }
    let message: ProxyProtocolUpstreamTransport = unpack(config)?;
    let form = || -> Result<Version, Problem> {
        transport(&message)?;
        let config = message.config.clone().unwrap_or_default();
        protocol_config(&config).and_then(|()| version(config.version)).under(|| "config".into())
    };
    let form = form().under(|| "typed_config".into())?;
    Ok((Some(form), message.transport_socket))
}

fn version(form: i32) -> Result<Version, Problem> {
    match Form::try_from(form) {
        Ok(Form::V1) => Ok(Version::V1),
        Ok(Form::V2) => Ok(Version::V2),
        Err(_) => Err(Problem::new("version", format!("is {form}; must be V1 or V2"))),
    }
}
