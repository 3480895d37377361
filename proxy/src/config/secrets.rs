//! `Secret` (SDS), and what TLS contexts take from it: a certificate or whom to trust, given in the context itself
//! or named there. A secret is read when it arrives, so that a bad one is refused by itself and the last good one
//! of its name goes on. Names come over the stream that the listener or cluster came on.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SdsSecretConfig, Secret as SecretMessage, secret,
};

use super::in_place;
use super::problem::{Problem, Under, each};
use super::support::{Message, support};
use super::tls;
use crate::tls::material::{Identity, Trust, Unusable};

pub(super) const MESSAGES: &[Message] = &[SECRET, SDS, COMBINED];

support! {
    SECRET, secret_fields: SecretMessage = "envoy.extensions.transport_sockets.tls.v3.Secret";
    read: name, r#type;
    ignored:;
    refused: ;
}

support! {
    SDS, sds: SdsSecretConfig = "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig";
    read: name, sds_config;
    ignored:;
    refused: ;
}

support! {
    COMBINED, combined: CombinedCertificateValidationContext = "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext";
    read: default_validation_context, validation_context_sds_secret_config;
    ignored:;
    refused: validation_context_certificate_provider, validation_context_certificate_provider_instance;
}

/// A secret, read and found to be usable.
#[derive(Debug)]
pub(super) enum Secret {
    /// A certificate with its key.
    Certificate(Identity),
    /// Whom to trust; a message still, as it may be laid over another.
    Validation(Box<CertificateValidationContext>),
}

/// As what a secret is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A certificate with its key.
    Certificate,
    /// Whom to trust.
    Validation,
}

/// Secrets that a resource names.
pub(super) type References = BTreeSet<(Arc<str>, Kind)>;

/// What a TLS context is made of, before secrets are looked up.
#[derive(Debug)]
pub(super) struct Material {
    certificates: Certificates,
    validation: Validation,
}

#[derive(Debug)]
enum Certificates {
    Given(Vec<Identity>),
    Named(Vec<Arc<str>>),
}

#[derive(Debug)]
enum Validation {
    Given(Option<Arc<Trust>>),
    /// What the secret says goes before what the context says; names of both count.
    Named(Arc<str>, Option<Box<CertificateValidationContext>>),
}

/// A context's material with secrets put in.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) identities: Vec<Identity>,
    pub(super) trust: Option<Arc<Trust>>,
}

impl Kind {
    pub(super) fn words(self) -> &'static str {
        match self {
            Kind::Certificate => "a tls_certificate",
            Kind::Validation => "a validation_context",
        }
    }
}

impl Secret {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Secret::Certificate(_) => Kind::Certificate,
            Secret::Validation(_) => Kind::Validation,
        }
    }

    /// The files it is read from.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        match self {
            Secret::Certificate(identity) => identity.files().cloned().collect(),
            // It was read once already.
            Secret::Validation(message) => tls::validation_context(message)
                .map(|trust| trust.files().cloned().collect())
                .unwrap_or_default(),
        }
    }
}

/// Reads a secret and tries it: a key must fit its certificate. A certificate that has expired is taken, as it may
/// be all there is; `/certs` shows it.
pub(super) fn compile(message: &SecretMessage) -> Result<Secret, Problem> {
    secret_fields(message)?;
    let unusable = |at: &'static str| move |error: Unusable| Problem::new(at, error.0);
    match &message.r#type {
        Some(secret::Type::TlsCertificate(certificate)) => {
            let at = "tls_certificate";
            let mut identity = tls::identity(certificate).under(|| at.into())?;
            identity.secret = Some(message.name.as_str().into());
            identity.load().map_err(unusable(at))?;
            Ok(Secret::Certificate(identity))
        }
        Some(secret::Type::ValidationContext(validation)) => {
            let at = "validation_context";
            let trust = tls::validation_context(validation).under(|| at.into())?;
            trust.roots().map_err(unusable(at))?;
            trust.revocations().map_err(unusable(at))?;
            Ok(Secret::Validation(Box::new(validation.clone())))
        }
        Some(secret::Type::SessionTicketKeys(_)) => {
            Err(Problem::new("session_ticket_keys", "is not supported; tickets have keys of their own"))
        }
        Some(secret::Type::GenericSecret(_)) => {
            Err(Problem::new("generic_secret", "is not supported; nothing here reads one"))
        }
        None => Err(Problem::new("type", "is missing: tls_certificate or validation_context")),
    }
}

impl Material {
    /// What a context says.
    pub(super) fn read(message: &CommonTlsContext) -> Result<Material, Problem> {
        let given = each("tls_certificates", &message.tls_certificates, tls::identity)?;
        let named =
            each("tls_certificate_sds_secret_configs", &message.tls_certificate_sds_secret_configs, name)?;
        if !given.is_empty() && !named.is_empty() {
            let reason = "is set beside tls_certificates; give one of them";
            return Err(Problem::new("tls_certificate_sds_secret_configs", reason));
        }
        let certificates =
            if named.is_empty() { Certificates::Given(given) } else { Certificates::Named(named) };
        Ok(Material { certificates, validation: validation(message)? })
    }

    /// How many certificates it will have.
    pub(super) fn certificates(&self) -> usize {
        match &self.certificates {
            Certificates::Given(given) => given.len(),
            Certificates::Named(names) => names.len(),
        }
    }

    /// The secrets that it names.
    pub(super) fn references(&self) -> References {
        let mut all = References::new();
        if let Certificates::Named(names) = &self.certificates {
            all.extend(names.iter().map(|name| (name.clone(), Kind::Certificate)));
        }
        if let Validation::Named(name, _) = &self.validation {
            all.insert((name.clone(), Kind::Validation));
        }
        all
    }

    /// The files that it names itself.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let identities = match &self.certificates {
            Certificates::Given(given) => given.as_slice(),
            Certificates::Named(_) => &[],
        };
        let trust = match &self.validation {
            Validation::Given(trust) => trust.as_deref(),
            Validation::Named(..) => None,
        };
        identities.iter().flat_map(Identity::files).chain(trust.into_iter().flat_map(Trust::files))
    }

    /// Puts secrets in.
    pub(super) fn resolve<'s>(
        &self,
        secrets: &impl Fn(&str) -> Option<&'s Secret>,
    ) -> Result<Resolved, Problem> {
        let identities = match &self.certificates {
            Certificates::Given(given) => given.clone(),
            Certificates::Named(names) => {
                each("tls_certificate_sds_secret_configs", names, |name| match secrets(name) {
                    Some(Secret::Certificate(identity)) => Ok(identity.clone()),
                    other => Err(unfit(name, Kind::Certificate, other)),
                })?
            }
        };
        let trust = match &self.validation {
            Validation::Given(trust) => trust.clone(),
            Validation::Named(name, default) => {
                let found = match secrets(name) {
                    Some(Secret::Validation(message)) => message,
                    other => {
                        let problem = unfit(name, Kind::Validation, other);
                        return Err(problem).under(|| "validation_context_sds_secret_config".into());
                    }
                };
                let merged = default.as_deref().map(|default| laid_over(default, found));
                let trust = tls::validation_context(merged.as_ref().unwrap_or(found));
                Some(Arc::new(trust.under(|| "validation_context_sds_secret_config".into())?))
            }
        };
        Ok(Resolved { identities, trust })
    }
}

fn unfit(name: &str, wanted: Kind, found: Option<&Secret>) -> Problem {
    let reason = match found {
        Some(found) => {
            format!("is {name:?}, which is {}; {} belongs here", found.kind().words(), wanted.words())
        }
        None => format!("is {name:?}, which has not arrived"),
    };
    Problem::new("name", reason)
}

fn validation(message: &CommonTlsContext) -> Result<Validation, Problem> {
    match &message.validation_context_type {
        None => Ok(Validation::Given(None)),
        Some(ValidationContextType::ValidationContext(context)) => {
            let trust = tls::validation_context(context).under(|| "validation_context".into())?;
            Ok(Validation::Given(Some(Arc::new(trust))))
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            let name = name(config).under(|| "validation_context_sds_secret_config".into())?;
            Ok(Validation::Named(name, None))
        }
        Some(ValidationContextType::CombinedValidationContext(message)) => {
            both(message).under(|| "combined_validation_context".into())
        }
        Some(_) => {
            let reason = "must be validation_context, validation_context_sds_secret_config or \
                          combined_validation_context";
            Err(Problem::new("validation_context_type", reason))
        }
    }
}

fn both(message: &CombinedCertificateValidationContext) -> Result<Validation, Problem> {
    combined(message)?;
    let default = message.default_validation_context.as_ref();
    if let Some(default) = default {
        tls::validation_context(default).under(|| "default_validation_context".into())?;
    }
    let config = message.validation_context_sds_secret_config.as_ref();
    let config = config.ok_or_else(|| Problem::new("validation_context_sds_secret_config", "is missing"))?;
    let name = name(config).under(|| "validation_context_sds_secret_config".into())?;
    Ok(Validation::Named(name, default.cloned().map(Box::new)))
}

/// As protobuf merges messages, and Envoy these two.
fn laid_over(
    default: &CertificateValidationContext,
    found: &CertificateValidationContext,
) -> CertificateValidationContext {
    let mut merged = default.clone();
    merged.match_typed_subject_alt_names.extend(found.match_typed_subject_alt_names.iter().cloned());
    if found.trusted_ca.is_some() {
        merged.trusted_ca.clone_from(&found.trusted_ca);
    }
    if found.crl.is_some() {
        merged.crl.clone_from(&found.crl);
    }
    merged
}

fn name(message: &SdsSecretConfig) -> Result<Arc<str>, Problem> {
    sds(message)?;
    if message.name.is_empty() {
        return Err(Problem::new("name", "is empty"));
    }
    message.sds_config.iter().for_each(in_place::note_config_source);
    let source = message.sds_config.as_ref().and_then(|source| source.config_source_specifier.as_ref());
    match source {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => {
            Ok(message.name.as_str().into())
        }
        Some(_) => Err(Problem::new("sds_config", "must be ads or self: secrets come on the stream of all")),
        None => Err(Problem::new("sds_config", "is missing, and there are no static secrets; give ads")),
    }
}
