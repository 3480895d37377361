//! `UpstreamTlsContext`: whom a cluster's endpoints must prove to be. Unlike Envoy, a cluster that names no authority
//! or no name is refused: its traffic would go to whoever answers.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use rustls::pki_types::ServerName;

use super::lds::unpack;
use super::problem::{Problem, Under, each};
use super::support::{Message, support};
use super::tls::{check, identity, trust, versions};
use crate::tls::client::{ClientTls, Plan};
use crate::upstream::cluster::UpstreamProtocol;

pub(super) const MESSAGES: &[Message] = &[UPSTREAM];

support! {
    UPSTREAM, upstream: UpstreamTlsContext = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
    read: common_tls_context, sni, auto_sni_san_validation, max_session_keys;
    ignored:;
    refused: auto_host_sni, allow_renegotiation, enforce_rsa_key_usage;
}

/// Where a problem with what a file or an inline source holds is told.
const AT: &str = "transport_socket.typed_config.common_tls_context";

/// Reads what the plan names.
pub(super) fn build(plan: &Plan) -> Result<Arc<ClientTls>, Problem> {
    ClientTls::new(plan).map(Arc::new).map_err(|unusable| Problem::new(AT, unusable.0))
}

/// Reads a cluster's transport socket. `None`: there is none, or it is `raw_buffer`.
pub(super) fn compile(
    socket: Option<&TransportSocket>,
    protocol: UpstreamProtocol,
) -> Result<Option<Plan>, Problem> {
    const RAW: &str = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    let Some(socket) = socket else { return Ok(None) };
    let Some(transport_socket::ConfigType::TypedConfig(config)) = &socket.config_type else {
        return Err(Problem::new("typed_config", "is missing"));
    };
    if config.type_url == RAW {
        return Ok(None);
    }
    let message: UpstreamTlsContext = unpack(config)?;
    context(&message, protocol).under(|| "typed_config".into()).map(Some)
}

fn context(message: &UpstreamTlsContext, protocol: UpstreamProtocol) -> Result<Plan, Problem> {
    upstream(message)?;
    let common = message.common_tls_context.clone().unwrap_or_default();
    let at = || String::from("common_tls_context");
    check(&common).under(at)?;
    let mut trust = trust(&common).under(at)?.unwrap_or_default();
    if trust.authorities.is_none() {
        let reason = "is missing: whose certificates count?";
        return Err(Problem::new("common_tls_context.validation_context.trusted_ca", reason));
    }
    let name = server_name(&message.sni)?;
    if message.auto_sni_san_validation {
        trust.names.clear();
    }
    if trust.names.is_empty() && name.is_none() {
        let reason = "is empty, and so is match_typed_subject_alt_names: one of them must say who may answer";
        return Err(Problem::new("sni", reason));
    }
    let mut identities = each("tls_certificates", &common.tls_certificates, identity).under(at)?;
    if identities.len() > 1 {
        return Err(Problem::new("common_tls_context.tls_certificates", "has more than one certificate"));
    }
    Ok(Plan {
        identity: identities.pop(),
        trust: Arc::new(trust),
        name,
        protocols: protocols(&common.alpn_protocols, protocol).under(at)?,
        versions: versions(common.tls_params.as_ref()).under(|| "common_tls_context.tls_params".into())?,
        resume: message.max_session_keys.is_none_or(|most| most.value > 0),
    })
}

fn server_name(sni: &str) -> Result<Option<ServerName<'static>>, Problem> {
    if sni.is_empty() {
        return Ok(None);
    }
    match ServerName::try_from(sni.to_owned()) {
        Ok(name @ ServerName::DnsName(_)) => Ok(Some(name)),
        _ => Err(Problem::new("sni", format!("is {sni:?}; must be a DNS name"))),
    }
}

/// What is offered: as Envoy does it, the cluster's HTTP version where nothing is said.
fn protocols(offered: &[String], protocol: UpstreamProtocol) -> Result<Vec<Vec<u8>>, Problem> {
    let (own, other) = match protocol {
        UpstreamProtocol::Http1 => ("http/1.1", "h2"),
        UpstreamProtocol::Http2 => ("h2", "http/1.1"),
    };
    if offered.is_empty() {
        return Ok(vec![own.as_bytes().to_vec()]);
    }
    if offered.iter().any(|name| name == other) {
        let reason = format!("has {other:?}, but the cluster's HttpProtocolOptions speak {own:?}");
        return Err(Problem::new("alpn_protocols", reason));
    }
    if !offered.iter().any(|name| name == own) {
        return Err(Problem::new("alpn_protocols", format!("lacks {own:?}, which the cluster speaks")));
    }
    Ok(offered.iter().map(|name| name.as_bytes().to_vec()).collect())
}
