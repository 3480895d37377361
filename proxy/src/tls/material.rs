//! Certificates, keys and authorities: where they come from, and what is wrong with them when they cannot be used.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::provider;
use crate::route::matching::ValueMatcher;

/// A certificate file is not larger; whatever is, is something else.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Where bytes come from. They may be a private key, so they are never shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// From the configuration itself.
    Inline(Arc<[u8]>),
    /// From a file, read again when it changes.
    File(PathBuf),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Inline(bytes) => write!(f, "Inline({} bytes)", bytes.len()),
            Source::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// What cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);

/// A certificate with its chain and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate first, then the intermediates; PEM.
    pub chain: Source,
    /// PKCS#8, PKCS#1 or SEC1; PEM.
    pub key: Source,
    /// The secret's name, where it came as one.
    pub secret: Option<Arc<str>>,
}

/// Whose certificates are accepted.
#[derive(Debug, Default)]
pub struct Trust {
    /// Authorities; PEM.
    pub authorities: Option<Source>,
    /// Revocation lists; PEM.
    pub revoked: Option<Source>,
    /// One of these must match a name in the certificate. Empty: any name will do.
    pub names: Vec<NameMatcher>,
    /// Whatever certificate is shown, and if none is, the connection goes on.
    pub accept_untrusted: bool,
}

/// A predicate on one kind of subject alternative name.
#[derive(Debug)]
pub struct NameMatcher {
    /// The kind.
    pub kind: NameKind,
    /// What it must be.
    pub value: ValueMatcher,
}

/// A kind of subject alternative name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameKind {
    /// `dNSName`.
    Dns,
    /// `uniformResourceIdentifier`, SPIFFE's.
    Uri,
    /// `rfc822Name`.
    Email,
    /// `iPAddress`.
    IpAddress,
}

/// What a person wants to know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Facts {
    /// The subject.
    pub subject: String,
    /// Its alternative names.
    pub names: Vec<String>,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// Where it comes from: `secret NAME`, a file's name, or `inline`.
    pub source: String,
    /// Seconds since 1970 until which it is valid.
    pub not_after: i64,
}

impl Source {
    /// The bytes as they are now.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self) -> Result<Vec<u8>, Unusable> {
        let path = match self {
            Source::Inline(bytes) => return Ok(bytes.to_vec()),
            Source::File(path) => path,
        };
        let wrong = |why: String| Unusable(format!("{} cannot be read: {why}", path.display()));
        let metadata = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
        if !metadata.is_file() {
            return Err(wrong("it is not a regular file".into()));
        }
        let length = metadata.len();
        if length > MAX_FILE_BYTES {
            return Err(wrong(format!("it has {length} bytes; the most is {MAX_FILE_BYTES}")));
        }
        std::fs::read(path).map_err(|error| wrong(error.to_string()))
    }

    /// The file, if it is one.
    pub fn file(&self) -> Option<&PathBuf> {
        match self {
            Source::Inline(_) => None,
            Source::File(path) => Some(path),
        }
    }
}

impl Identity {
    /// Reads both and holds them against each other.
    ///
    /// # Errors
    /// When one of them cannot be used, or they do not belong together.
    pub fn load(&self) -> Result<(Arc<CertifiedKey>, Facts), Unusable> {
        let chain = certificates(&self.chain.read()?)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key.read()?).map_err(|error| {
            Unusable(format!("the private key is not usable PEM: {}", pem_problem(&error)))
        })?;
        let leaf =
            chain.first().ok_or_else(|| Unusable("the certificate chain has no certificate".into()))?;
        let facts = facts(leaf, self.source())?;
        let certified = CertifiedKey::from_der(chain, key, &provider())
            .map_err(|error| Unusable(format!("certificate and private key cannot be used: {error}")))?;
        Ok((Arc::new(certified), facts))
    }

    fn source(&self) -> String {
        match (&self.secret, self.chain.file()) {
            (Some(name), _) => format!("secret {name}"),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => String::from("inline"),
        }
    }

    /// The files it is read from.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.chain, &self.key].into_iter().filter_map(Source::file)
    }
}

impl Trust {
    /// The authorities. None where there are none to check against.
    ///
    /// # Errors
    /// When one cannot be used.
    pub fn roots(&self) -> Result<Option<Arc<RootCertStore>>, Unusable> {
        let Some(source) = &self.authorities else { return Ok(None) };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&source.read()?)? {
            roots
                .add(certificate)
                .map_err(|error| Unusable(format!("an authority cannot be used: {error}")))?;
        }
        if roots.is_empty() {
            return Err(Unusable("there is no authority in it".into()));
        }
        Ok(Some(Arc::new(roots)))
    }

    /// The revocation lists.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn revocations(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, Unusable> {
        let Some(source) = &self.revoked else { return Ok(Vec::new()) };
        CertificateRevocationListDer::pem_slice_iter(&source.read()?).collect::<Result<_, _>>().map_err(
            |error| Unusable(format!("a revocation list is not usable PEM: {}", pem_problem(&error))),
        )
    }

    /// The files it is read from.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.authorities, &self.revoked].into_iter().flatten().filter_map(Source::file)
    }

    /// Whether a verified certificate has a name that is wanted.
    pub fn names_match(&self, certificate: &CertificateDer<'_>) -> bool {
        if self.names.is_empty() {
            return true;
        }
        let Ok(names) = names(certificate) else { return false };
        names.iter().any(|(kind, name)| {
            self.names.iter().any(|matcher| matcher.kind == *kind && matcher.value.matches(name))
        })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| Unusable(format!("a certificate is not usable PEM: {}", pem_problem(&error))))
}

/// In words; the crate's own show bytes as numbers.
fn pem_problem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a BEGIN line has no END line".into(),
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line is malformed".into(),
        pem::Error::NoItemsFound => "there is none in it".into(),
        other => other.to_string(),
    }
}

pub(super) fn parse<'c>(certificate: &'c CertificateDer<'_>) -> Result<X509Certificate<'c>, Unusable> {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| parsed)
        .map_err(|error| Unusable(format!("the certificate cannot be parsed: {error}")))
}

/// The subject alternative names of the kinds that can be matched.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Result<Vec<(NameKind, String)>, Unusable> {
    let parsed = parse(certificate)?;
    let extension = parsed
        .subject_alternative_name()
        .map_err(|error| Unusable(format!("the certificate's names cannot be parsed: {error}")))?;
    let names = extension.iter().flat_map(|extension| &extension.value.general_names);
    Ok(names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((NameKind::Dns, name.to_ascii_lowercase())),
            GeneralName::URI(uri) => Some((NameKind::Uri, (*uri).to_owned())),
            GeneralName::RFC822Name(name) => Some((NameKind::Email, (*name).to_owned())),
            GeneralName::IPAddress(bytes) => address(bytes).map(|ip| (NameKind::IpAddress, ip.to_string())),
            _ => None,
        })
        .collect())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn facts(certificate: &CertificateDer<'_>, source: String) -> Result<Facts, Unusable> {
    let parsed = parse(certificate)?;
    Ok(Facts {
        subject: parsed.subject().to_string(),
        names: names(certificate)?.into_iter().map(|(_, name)| name).collect(),
        serial: parsed.raw_serial_as_string(),
        source,
        not_after: parsed.validity().not_after.timestamp(),
    })
}

/// When a certificate ends, in seconds since 1970.
pub(crate) fn not_after(certificate: &CertificateDer<'_>) -> Result<i64, Unusable> {
    Ok(parse(certificate)?.validity().not_after.timestamp())
}

impl Facts {
    /// Days until it ends; negative where it has.
    pub fn days_left(&self, now: SystemTime) -> i64 {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        (self.not_after - i64::try_from(now).unwrap_or(i64::MAX)).div_euclid(24 * 3600)
    }
}
