//! The webhook's certificate and the authority that vouches for it, of which nothing is kept but the certificate: a
//! renewal makes both anew. The API server is told of the authority before and of the new one together, so that
//! replicas which still serve with the certificate before are believed too.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// How long a certificate is good. Short: it costs nothing to renew, and what is renewed seldom breaks.
pub const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// It is renewed when it is good for less than this: time for weeks of an API server or of us being down.
pub const RENEW_BEFORE: Duration = Duration::from_secs(20 * 24 * 3600);
/// Clocks differ.
const SKEW: Duration = Duration::from_secs(3600);

/// A certificate, as the Secret has it.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// Whom the API server believes, as PEM: the newest authority first, then the one before.
    pub authorities: String,
    /// The certificate, as PEM.
    pub certificate: String,
    /// Its key, as PEM.
    pub key: String,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Makes an authority and a certificate for DNS names, good from now on. `before` is what it replaces.
///
/// # Errors
/// When a name cannot stand in a certificate.
pub fn issue(names: &[String], before: Option<&Material>, now: SystemTime) -> Result<Material, rcgen::Error> {
    let named = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = (now - SKEW).into();
        params.not_after = (now + LIFETIME).into();
        params
    };
    let mut authority = named("pontoon webhook authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate()?;
    let newest = authority.self_signed(&key)?.pem();
    let issuer = Issuer::new(authority, key);
    let mut server = named("pontoon webhook");
    for name in names {
        server.subject_alt_names.push(rcgen::SanType::DnsName(name.as_str().try_into()?));
    }
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = server.signed_by(&key, &issuer)?.pem();
    let older = before.and_then(|before| first(&before.authorities)).unwrap_or_default();
    Ok(Material { authorities: format!("{newest}{older}"), certificate, key: key.serialize_pem() })
}

/// Whether it is due to be replaced: it cannot be read, has none of the names, or ends soon.
pub fn is_due(material: &Material, names: &[String], now: SystemTime) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(material.certificate.as_bytes()) else { return true };
    let Ok(certificate) = pem.parse_x509() else { return true };
    let seconds = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    };
    let ends = certificate.validity().not_after.timestamp();
    let starts = certificate.validity().not_before.timestamp();
    let has = |name: &String| {
        let Ok(Some(alternatives)) = certificate.subject_alternative_name() else { return false };
        let is_name = |one: &x509_parser::extensions::GeneralName<'_>| matches!(one, x509_parser::extensions::GeneralName::DNSName(dns) if dns == name);
        alternatives.value.general_names.iter().any(is_name)
    };
    ends < seconds(now + RENEW_BEFORE) || starts > seconds(now) || !names.iter().all(has)
}

/// The first certificate of several.
fn first(pem: &str) -> Option<&str> {
    const END: &str = "-----END CERTIFICATE-----\n";
    let normal = pem.find(END).map(|at| &pem[..at + END.len()]);
    normal.or_else(|| (!pem.trim().is_empty()).then_some(pem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        vec![String::from("hook.mesh.svc"), String::from("hook.mesh.svc.cluster.local")]
    }

    #[test]
    fn a_certificate_is_due_when_ten_days_have_passed() {
        let now = SystemTime::now();
        let made = issue(&names(), None, now).unwrap();
        let day = Duration::from_secs(24 * 3600);
        assert!(!is_due(&made, &names(), now));
        assert!(!is_due(&made, &names(), now + 9 * day));
        assert!(is_due(&made, &names(), now + 11 * day));
        // A clock that was wrong when it was made.
        assert!(is_due(&made, &names(), now - day));
        assert!(is_due(&made, &[String::from("other.mesh.svc")], now));
        assert!(is_due(&Material { certificate: String::from("none"), ..made }, &names(), now));
    }

    #[test]
    fn who_vouched_before_is_believed_on_and_no_longer() {
        let now = SystemTime::now();
        let count = |material: &Material| material.authorities.matches("BEGIN CERTIFICATE").count();
        let one = issue(&names(), None, now).unwrap();
        let two = issue(&names(), Some(&one), now).unwrap();
        let three = issue(&names(), Some(&two), now).unwrap();
        assert_eq!([count(&one), count(&two), count(&three)], [1, 2, 2]);
        assert!(two.authorities.contains(one.authorities.trim()));
        assert!(!three.authorities.contains(one.authorities.trim()));
    }

    #[test]
    fn what_is_shown_has_no_key() {
        let made = issue(&names(), None, SystemTime::now()).unwrap();
        assert!(!format!("{made:?}").contains("PRIVATE KEY"));
    }
}
