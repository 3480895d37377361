//! The server's side: several certificates chosen by name, clients' certificates, tickets. A new certificate takes
//! the place of the old one between two handshakes; tickets made before it stay good.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use twox_hash::XxHash64;

use super::material::{Facts, Identity, NameKind, Trust, Unusable};
use super::{Versions, provider};

/// Sessions of TLS 1.2 clients that know no tickets.
const SESSIONS: usize = 1_024;

/// A server's TLS, ready for handshakes.
#[derive(Debug)]
pub struct ServerTls {
    /// For rustls.
    pub config: Arc<ServerConfig>,
    /// Its certificates.
    pub certificates: Vec<Facts>,
    tickets: Arc<dyn ProducesTickets>,
    /// Of what clients' certificates are checked against.
    pub(crate) trust: u64,
    choice: Arc<Choice>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// What a server's TLS is made of.
#[derive(Debug)]
pub struct Plan<'p> {
    /// At least one. The first is for clients that name none of them.
    pub identities: Vec<&'p Identity>,
    /// Clients' certificates are checked against it, where it has authorities.
    pub trust: Option<Arc<Trust>>,
    /// Clients without a certificate are refused.
    pub require_client_certificate: bool,
    /// Clients that name no server are refused.
    pub require_server_name: bool,
    /// ALPN, by preference.
    pub protocols: Vec<Vec<u8>>,
    /// TLS versions.
    pub versions: Versions,
}

impl ServerTls {
    /// Reads files and puts it all together. The tickets of `earlier` stay good where it trusts the same clients:
    /// else one could come back whose certificate is no longer accepted.
    ///
    /// # Errors
    /// When a part cannot be used.
    pub fn new(plan: Plan<'_>, earlier: Option<&ServerTls>) -> Result<ServerTls, Unusable> {
        let mut keys = Vec::new();
        let mut certificates = Vec::new();
        for identity in plan.identities {
            let (key, facts) = identity.load()?;
            let all = super::material::names(&key.cert[0])?;
            let uris = all.iter().filter(|(kind, _)| *kind == NameKind::Uri);
            let uris = uris.map(|(_, uri)| uri.as_str().into()).collect();
            let names = all.into_iter().map(|(_, name)| name).collect();
            keys.push(Own { names, uris, key });
            certificates.push(facts);
        }
        if keys.is_empty() {
            return Err(Unusable("there is no certificate".into()));
        }
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&plan.versions.list())
            .map_err(|error| Unusable(format!("these TLS versions cannot be spoken: {error}")))?;
        let trust = fingerprint(plan.trust.as_deref(), plan.require_client_certificate)?;
        let verifier = verifier(plan.trust, plan.require_client_certificate)?;
        let clients = verifier.clone();
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let choice = Arc::new(Choice { keys, require_server_name: plan.require_server_name });
        let mut config = builder.with_cert_resolver(Arc::clone(&choice) as Arc<dyn ResolvesServerCert>);
        let tickets = match earlier.filter(|earlier| earlier.trust == trust) {
            Some(earlier) => Arc::clone(&earlier.tickets),
            None => rustls::crypto::aws_lc_rs::Ticketer::new()
                .map_err(|error| Unusable(format!("no ticket keys can be made: {error}")))?,
        };
        config.alpn_protocols = plan.protocols;
        config.ticketer = Arc::clone(&tickets);
        config.session_storage = rustls::server::ServerSessionMemoryCache::new(SESSIONS);
        // A request in early data can be replayed.
        config.max_early_data_size = 0;
        Ok(ServerTls { config: Arc::new(config), certificates, tickets, trust, choice, clients })
    }
}

impl ServerTls {
    /// Whether a client whose certificate was accepted once would be accepted now.
    pub(crate) fn accepts(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), rustls::Error> {
        match (&self.clients, chain) {
            (Some(clients), [certificate, rest @ ..]) => {
                clients.verify_client_cert(certificate, rest, now).map(drop)
            }
            _ => Ok(()),
        }
    }
}

impl ServerTls {
    /// The URIs in the certificate that a client is shown who asks for `name`.
    pub(crate) fn uris(&self, name: Option<&str>) -> Arc<[Box<str>]> {
        self.choice.candidates(name).next().map(|own| Arc::clone(&own.uris)).unwrap_or_default()
    }
}

fn fingerprint(trust: Option<&Trust>, required: bool) -> Result<u64, Unusable> {
    let Some(trust) = trust else { return Ok(0) };
    let mut text = format!("{required} {} {:?}", trust.accept_untrusted, trust.names).into_bytes();
    for source in [&trust.authorities, &trust.revoked] {
        text.push(0);
        if let Some(source) = source {
            text.extend(source.read()?);
        }
    }
    Ok(XxHash64::oneshot(0, &text))
}

fn verifier(
    trust: Option<Arc<Trust>>,
    required: bool,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, Unusable> {
    let Some(trust) = trust else { return Ok(None) };
    let Some(roots) = trust.roots()? else { return Ok(None) };
    let builder =
        WebPkiClientVerifier::builder_with_provider(roots, provider()).with_crls(trust.revocations()?);
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    let inner = builder
        .build()
        .map_err(|error| Unusable(format!("clients' certificates cannot be verified: {error}")))?;
    Ok(Some(Arc::new(Named { inner, trust })))
}

/// Chooses a certificate: one for the name that the client asks for, else the first; of several, one whose key the
/// client can verify.
#[derive(Debug)]
struct Choice {
    keys: Vec<Own>,
    require_server_name: bool,
}

/// One of our certificates.
#[derive(Debug)]
struct Own {
    names: Vec<String>,
    uris: Arc<[Box<str>]>,
    key: Arc<CertifiedKey>,
}

impl Choice {
    /// Those for `name` first.
    fn candidates<'c>(&'c self, name: Option<&'c str>) -> impl Iterator<Item = &'c Own> {
        let covers =
            move |own: &&Own| name.is_some_and(|name| own.names.iter().any(|pattern| covers(pattern, name)));
        self.keys.iter().filter(covers).chain(&self.keys)
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        if name.is_none() && self.require_server_name {
            return None;
        }
        let signs = |key: &CertifiedKey| key.key.choose_scheme(hello.signature_schemes()).is_some();
        let found = self.candidates(name).map(|own| &own.key).find(|key| signs(key));
        found.or(self.keys.first().map(|own| &own.key)).cloned()
    }
}

/// RFC 6125, 6.4.3: a star stands for one label.
fn covers(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(suffix) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(suffix)),
        None => pattern.eq_ignore_ascii_case(name),
    }
}

/// Accepts what webpki accepts and whose name is wanted.
#[derive(Debug)]
struct Named {
    inner: Arc<dyn ClientCertVerifier>,
    trust: Arc<Trust>,
}

impl ClientCertVerifier for Named {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if self.trust.accept_untrusted {
            return Ok(ClientCertVerified::assertion());
        }
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if self.trust.names_match(end_entity) {
            return Ok(verified);
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_label() {
        for (pattern, name, expected) in [
            ("shop.example", "SHOP.example", true),
            ("*.example", "shop.example", true),
            ("*.example", "a.shop.example", false),
            ("*.example", "example", false),
            ("shop.example", "a.shop.example", false),
        ] {
            assert_eq!(covers(pattern, name), expected, "{pattern} {name}");
        }
    }
}
