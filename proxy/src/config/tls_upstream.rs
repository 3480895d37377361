//! `UpstreamTlsContext`: whom a cluster's endpoints must prove to be. Unlike Envoy, a cluster that names no authority
//! or no name is refused: its traffic would go to whoever answers.

use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use rustls::pki_types::ServerName;

use super::lds::unpack;
use super::problem::{Problem, Under};
use super::secrets::{Material, References, Resolved, Secret};
use super::support::{Message, support};
use super::tls::{check, versions};
use crate::tls::Versions;
use crate::tls::client::{ClientTls, Plan};
use crate::tls::material::Trust;
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

/// A client's TLS before files and secrets are read.
#[derive(Debug)]
pub(super) struct Upstream {
    material: Material,
    name: Option<ServerName<'static>>,
    /// The certificate must be for the name that is asked for, whatever else the trust says.
    name_alone: bool,
    protocols: Vec<Vec<u8>>,
    versions: Versions,
    resume: bool,
}

impl Upstream {
    /// Reads what it names.
    pub(super) fn build<'s>(
        &self,
        secrets: &impl Fn(&str) -> Option<&'s Secret>,
    ) -> Result<Arc<ClientTls>, Problem> {
        let Resolved { mut identities, trust } = self.material.resolve(secrets).under(|| AT.into())?;
        let missing = || {
            let reason = "is missing: whose certificates count?";
            Problem::new(format!("{AT}.validation_context.trusted_ca"), reason)
        };
        let mut trust = trust.filter(|trust| trust.authorities.is_some()).ok_or_else(missing)?;
        if trust.accept_untrusted {
            let reason = "is ACCEPT_UNTRUSTED; endpoints are always verified";
            return Err(Problem::new(format!("{AT}.validation_context.trust_chain_verification"), reason));
        }
        if self.name_alone && !trust.names.is_empty() {
            let (authorities, revoked) = (trust.authorities.clone(), trust.revoked.clone());
            trust = Arc::new(Trust { authorities, revoked, ..Trust::default() });
        }
        if trust.names.is_empty() && self.name.is_none() {
            let reason =
                "is empty, and so is match_typed_subject_alt_names: one of them must say who may answer";
            return Err(Problem::new("transport_socket.typed_config.sni", reason));
        }
        let plan = Plan {
            identity: identities.pop(),
            trust,
            name: self.name.clone(),
            protocols: self.protocols.clone(),
            versions: self.versions,
            resume: self.resume,
        };
        ClientTls::new(&plan).map(Arc::new).map_err(|unusable| Problem::new(AT, unusable.0))
    }

    /// The files that it names itself.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.material.files()
    }

    /// The secrets that it names.
    pub(super) fn references(&self) -> References {
        self.material.references()
    }
}

/// Reads a cluster's transport socket. `None`: there is none, or it is `raw_buffer`.
pub(super) fn compile(
    socket: Option<&TransportSocket>,
    protocol: UpstreamProtocol,
) -> Result<Option<Upstream>, Problem> {
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

fn context(message: &UpstreamTlsContext, protocol: UpstreamProtocol) -> Result<Upstream, Problem> {
    upstream(message)?;
    let common = message.common_tls_context.clone().unwrap_or_default();
    let at = || String::from("common_tls_context");
    check(&common).under(at)?;
    let material = Material::read(&common).under(at)?;
    if material.certificates() > 1 {
        return Err(Problem::new("common_tls_context.tls_certificates", "has more than one certificate"));
    }
    Ok(Upstream {
        material,
        name: server_name(&message.sni)?,
        name_alone: message.auto_sni_san_validation,
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
