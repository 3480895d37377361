//! `DownstreamTlsContext` and what it holds: which certificates, whose clients, which protocols. Certificates are read
//! when the resource arrives, so that a bad one is refused with its path; files are read again when they change.

use std::path::PathBuf;

use envoy_types::pb::envoy::config::core::v3::{DataSource, TransportSocket, data_source, transport_socket};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SubjectAltNameMatcher,
    TlsCertificate, TlsParameters,
};

use super::lds::unpack;
use super::matching;
use super::problem::{Problem, Under, each};
use super::secrets::{Material, References, Resolved, Secret};
use super::support::{Message, support};
use crate::tls::Versions;
use crate::tls::material::{Identity, NameKind, NameMatcher, Source, Trust};
use crate::tls::server::{Plan, ServerTls};

pub(super) const MESSAGES: &[Message] = &[DOWNSTREAM, COMMON, PARAMETERS, CERTIFICATE, VALIDATION, SAN];

support! {
    DOWNSTREAM, downstream: DownstreamTlsContext = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    read: common_tls_context, require_client_certificate, require_sni;
    ignored:
        prefer_client_ciphers => "every cipher suite of ours is a good one",
        disable_stateful_session_resumption => "sessions are resumed by tickets alone: there are none to disable",
        full_scan_certs_on_sni_mismatch => "all certificates are always looked at";
    refused: ocsp_staple_policy, session_ticket_keys_type, session_timeout;
}

support! {
    COMMON, common: CommonTlsContext = "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext";
    read: tls_params, tls_certificates, tls_certificate_sds_secret_configs, alpn_protocols, validation_context_type;
    ignored:;
    refused: tls_certificate_provider_instance, custom_tls_certificate_selector, tls_certificate_certificate_provider, tls_certificate_certificate_provider_instance, custom_handshaker, key_log;
}

support! {
    PARAMETERS, parameters: TlsParameters = "envoy.extensions.transport_sockets.tls.v3.TlsParameters";
    read: tls_minimum_protocol_version, tls_maximum_protocol_version;
    ignored:;
    refused: cipher_suites, ecdh_curves, signature_algorithms, compliance_policies;
}

support! {
    CERTIFICATE, certificate: TlsCertificate = "envoy.extensions.transport_sockets.tls.v3.TlsCertificate";
    read: certificate_chain, private_key;
    ignored:
        watched_directory => "files are always watched";
    refused: pkcs12, private_key_provider, password, ocsp_staple, signed_certificate_timestamp, tls_params;
}

support! {
    VALIDATION, validation: CertificateValidationContext = "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext";
    read: trusted_ca, match_typed_subject_alt_names, crl, trust_chain_verification;
    ignored:
        watched_directory => "files are always watched";
    refused: ca_certificate_provider_instance, system_root_certs, verify_certificate_spki, verify_certificate_hash, match_subject_alt_names, require_signed_certificate_timestamp, allow_expired_certificate, custom_validator_config, only_verify_leaf_cert_crl, max_verify_depth, suppress_client_ca_list;
}

support! {
    SAN, san: SubjectAltNameMatcher = "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher";
    read: san_type, matcher;
    ignored:;
    refused: oid;
}

/// A server's TLS before files and secrets are read.
#[derive(Debug)]
pub(super) struct Downstream {
    material: Material,
    require_client_certificate: bool,
    require_server_name: bool,
    protocols: Vec<Vec<u8>>,
    versions: Versions,
}

impl Downstream {
    /// Reads what it names. With `earlier`, clients' tickets stay good.
    pub(super) fn build<'s>(
        &self,
        secrets: &impl Fn(&str) -> Option<&'s Secret>,
        earlier: Option<&ServerTls>,
    ) -> Result<ServerTls, Problem> {
        let Resolved { identities, trust } =
            self.material.resolve(secrets).under(|| "common_tls_context".into())?;
        let no_authority = trust.as_ref().is_none_or(|trust| trust.authorities.is_none());
        if self.require_client_certificate && no_authority {
            let reason = "needs common_tls_context.validation_context.trusted_ca: whose certificates count?";
            return Err(Problem::new("require_client_certificate", reason));
        }
        let plan = Plan {
            identities: identities.iter().collect(),
            trust,
            require_client_certificate: self.require_client_certificate,
            require_server_name: self.require_server_name,
            protocols: self.protocols.clone(),
            versions: self.versions,
        };
        ServerTls::new(plan, earlier).map_err(|unusable| Problem::new("common_tls_context", unusable.0))
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

/// Reads a chain's transport socket. `None`: there is none, or it is `raw_buffer`.
pub(super) fn compile(socket: Option<&TransportSocket>) -> Result<Option<Downstream>, Problem> {
    const RAW: &str = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    let Some(socket) = socket else { return Ok(None) };
    let Some(transport_socket::ConfigType::TypedConfig(config)) = &socket.config_type else {
        return Err(Problem::new("typed_config", "is missing"));
    };
    if config.type_url == RAW {
        return Ok(None);
    }
    let message: DownstreamTlsContext = unpack(config)?;
    context(&message).under(|| "typed_config".into()).map(Some)
}

/// Refuses what neither side reads.
pub(super) fn check(message: &CommonTlsContext) -> Result<(), Problem> {
    common(message)
}

fn context(message: &DownstreamTlsContext) -> Result<Downstream, Problem> {
    downstream(message)?;
    let common_context = message.common_tls_context.clone().unwrap_or_default();
    let at = || String::from("common_tls_context");
    common(&common_context).under(at)?;
    let material = Material::read(&common_context).under(at)?;
    if material.certificates() == 0 {
        return Err(Problem::new("common_tls_context.tls_certificates", "is empty"));
    }
    Ok(Downstream {
        material,
        require_client_certificate: message.require_client_certificate.is_some_and(|flag| flag.value),
        require_server_name: message.require_sni.is_some_and(|flag| flag.value),
        protocols: common_context.alpn_protocols.iter().map(|name| name.as_bytes().to_vec()).collect(),
        versions: versions(common_context.tls_params.as_ref())
            .under(|| "common_tls_context.tls_params".into())?,
    })
}

pub(super) fn versions(message: Option<&TlsParameters>) -> Result<Versions, Problem> {
    let Some(message) = message else { return Ok(Versions::default()) };
    parameters(message)?;
    let lowest = message.tls_minimum_protocol_version();
    let highest = message.tls_maximum_protocol_version();
    let versions = Versions {
        tls12: lowest != TlsProtocol::TlSv13
            && matches!(highest, TlsProtocol::TlsAuto | TlsProtocol::TlSv12 | TlsProtocol::TlSv13),
        tls13: matches!(highest, TlsProtocol::TlsAuto | TlsProtocol::TlSv13),
    };
    if !versions.tls12 && !versions.tls13 {
        return Err(Problem::new("", "leaves no version; this proxy speaks TLSv1_2 and TLSv1_3"));
    }
    Ok(versions)
}

pub(super) fn identity(message: &TlsCertificate) -> Result<Identity, Problem> {
    certificate(message)?;
    Ok(Identity {
        chain: source("certificate_chain", message.certificate_chain.as_ref())?,
        key: source("private_key", message.private_key.as_ref())?,
        secret: None,
    })
}

pub(super) fn validation_context(message: &CertificateValidationContext) -> Result<Trust, Problem> {
    validation(message)?;
    let optional = |field: &str, data: Option<&DataSource>| match data {
        None => Ok(None),
        data => source(field, data).map(Some),
    };
    let names = each("match_typed_subject_alt_names", &message.match_typed_subject_alt_names, name_matcher)?;
    Ok(Trust {
        authorities: optional("trusted_ca", message.trusted_ca.as_ref())?,
        revoked: optional("crl", message.crl.as_ref())?,
        names,
        accept_untrusted: message.trust_chain_verification() == TrustChainVerification::AcceptUntrusted,
    })
}

fn name_matcher(message: &SubjectAltNameMatcher) -> Result<NameMatcher, Problem> {
    san(message)?;
    let kind = match message.san_type() {
        SanType::Dns => NameKind::Dns,
        SanType::Uri => NameKind::Uri,
        SanType::Email => NameKind::Email,
        SanType::IpAddress => NameKind::IpAddress,
        other => {
            return Err(Problem::new(
                "san_type",
                format!("is {}; must be DNS, URI, EMAIL or IP_ADDRESS", other.as_str_name()),
            ));
        }
    };
    let matcher = message.matcher.as_ref().ok_or_else(|| Problem::new("matcher", "is missing"))?;
    Ok(NameMatcher { kind, value: matching::string(matcher).under(|| "matcher".into())? })
}

/// Bytes, or the name of a file with them.
fn source(field: &str, message: Option<&DataSource>) -> Result<Source, Problem> {
    use data_source::Specifier;
    let specifier = message.and_then(|message| message.specifier.as_ref());
    match specifier.ok_or_else(|| Problem::new(field, "is missing"))? {
        Specifier::Filename(path) => Ok(Source::File(path.into())),
        Specifier::InlineBytes(bytes) => Ok(Source::Inline(bytes.as_slice().into())),
        Specifier::InlineString(text) => Ok(Source::Inline(text.as_bytes().into())),
        Specifier::EnvironmentVariable(name) => match std::env::var(name) {
            Ok(text) => Ok(Source::Inline(text.as_bytes().into())),
            Err(_) => Err(Problem::new(
                format!("{field}.environment_variable"),
                format!("is {name:?}, which is not set"),
            )),
        },
    }
}
