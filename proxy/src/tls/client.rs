//! The client's side: a server's certificate must come from a trusted authority and have a wanted name. There is no
//! way to accept any certificate: that would only look like TLS.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::material::{Identity, Trust, Unusable};
use super::{Versions, provider};
use crate::error::Error;

/// A cluster's TLS, ready for handshakes.
#[derive(Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

/// What a client's TLS is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Shown to servers that ask for a certificate.
    pub identity: Option<Identity>,
    /// Servers' certificates are checked against it. Without names, the server's name must be in the certificate.
    pub trust: Arc<Trust>,
    /// The name that is asked for (SNI).
    pub name: Option<ServerName<'static>>,
    /// ALPN, by preference.
    pub protocols: Vec<Vec<u8>>,
    /// TLS versions.
    pub versions: Versions,
    /// Whether sessions are resumed.
    pub resume: bool,
}

impl ClientTls {
    /// Reads files and puts it all together. Sessions begin anew: one must not outlive what it was verified against.
    ///
    /// # Errors
    /// When a part cannot be used.
    pub fn new(plan: &Plan) -> Result<ClientTls, Unusable> {
        let roots = plan.trust.roots()?.ok_or_else(|| Unusable("there is no authority".into()))?;
        let inner = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .with_crls(plan.trust.revocations()?)
            .build()
            .map_err(|error| Unusable(format!("servers' certificates cannot be verified: {error}")))?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&plan.versions.list())
            .map_err(|error| Unusable(format!("these TLS versions cannot be spoken: {error}")))?
            // "Dangerous" is rustls's word for any verifier but its own; ours asks that one first.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Named { inner, trust: Arc::clone(&plan.trust) }));
        let mut config = match &plan.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (key, _) = identity.load()?;
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
            }
        };
        config.alpn_protocols.clone_from(&plan.protocols);
        // A request in early data can be replayed.
        config.enable_early_data = false;
        if !plan.resume {
            config.resumption = Resumption::disabled();
        }
        Ok(ClientTls { config: Arc::new(config), name: plan.name.clone() })
    }

    /// The handshake. Without a name of its own the server is known by its address, and none is asked for.
    ///
    /// # Errors
    /// What is wrong with the server's certificate, or with its TLS.
    pub async fn connect(&self, address: IpAddr, stream: TcpStream) -> Result<TlsStream<TcpStream>, Error> {
        let name = self.name.clone().unwrap_or_else(|| ServerName::IpAddress(address.into()));
        let connector = TlsConnector::from(Arc::clone(&self.config));
        connector.connect(name, stream).await.map_err(|error| classify(&error))
    }
}

fn classify(error: &io::Error) -> Error {
    use rustls::Error as Tls;
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) {
        Some(Tls::InvalidCertificate(certificate)) if is_name(certificate) => Error::UpstreamTlsName,
        Some(Tls::InvalidCertificate(_) | Tls::NoCertificatesPresented) => Error::UpstreamTlsCertificate,
        Some(Tls::NoApplicationProtocol | Tls::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            Error::UpstreamTlsProtocol
        }
        Some(Tls::AlertReceived(_)) => Error::UpstreamTlsRefused,
        _ => Error::UpstreamTlsFailure,
    }
}

fn is_name(error: &CertificateError) -> bool {
    is_not_server_name(error) || *error == CertificateError::ApplicationVerificationFailure
}

fn is_not_server_name(error: &CertificateError) -> bool {
    matches!(error, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })
}

/// Accepts what webpki accepts and whose name is wanted.
#[derive(Debug)]
struct Named {
    inner: Arc<WebPkiServerVerifier>,
    trust: Arc<Trust>,
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if self.trust.names.is_empty() {
            return verified;
        }
        match verified {
            // rustls looks at the name last: the chain, the dates and the revocation lists have been accepted.
            Err(rustls::Error::InvalidCertificate(error)) if is_not_server_name(&error) => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        if self.trust.names_match(end_entity) {
            return Ok(ServerCertVerified::assertion());
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
