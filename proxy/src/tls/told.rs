//! A client's certificate in the words of `X-Forwarded-Client-Cert`, as Envoy writes them: `;` between what is said, and
//! names of the subject as RFC 2253 has them.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use x509_parser::asn1_rs::{Any, Tag, ToDer as _};
use x509_parser::extensions::GeneralName;
use x509_parser::x509::X509Name;

use super::material::parse;
use crate::config::listener::CertificateDetails;

/// What stands for an attribute's number. Others are written by number, and their value as it is encoded.
const SHORT_NAMES: [(&str, &str); 21] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.65", "pseudonym"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
];
/// Characters of PEM, by line.
const PEM_LINE: usize = 64;

/// One element of the header: of the client that showed `certificates`, its own first, to us, whom `by` names.
pub(crate) fn element(
    certificates: &[CertificateDer<'_>],
    by: &[Box<str>],
    details: CertificateDetails,
) -> String {
    let mut parts: Vec<String> = by.iter().map(|uri| format!("By={}", plain(uri))).collect();
    let Some(own) = certificates.first() else { return String::new() };
    let hash = Sha256::digest(own);
    parts.push(hash.iter().fold(String::from("Hash="), |mut text, byte| {
        // Nothing fails that writes to a string.
        let _ = write!(text, "{byte:02x}");
        text
    }));
    if details.cert {
        parts.push(format!("Cert=\"{}\"", escaped_pem(own)));
    }
    if details.chain {
        let chain: String = certificates.iter().map(|certificate| escaped_pem(certificate)).collect();
        parts.push(format!("Chain=\"{chain}\""));
    }
    // rustls has read it, so that it can be read.
    let parsed = parse(own).ok();
    let name = |name: Option<&X509Name<'_>>| name.map(distinguished).unwrap_or_default();
    if details.subject {
        parts.push(format!("Subject=\"{}\"", name(parsed.as_ref().map(|parsed| parsed.subject()))));
    }
    let names = parsed.as_ref().and_then(|parsed| parsed.subject_alternative_name().ok().flatten());
    let names = names.as_ref().map(|names| &names.value.general_names[..]).unwrap_or_default();
    if details.uri {
        let before = parts.len();
        parts.extend(names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(format!("URI={}", plain(uri))),
            _ => None,
        }));
        if parts.len() == before {
            parts.push("URI=".into());
        }
    }
    if details.dns {
        parts.extend(names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(format!("DNS={}", plain(name))),
            _ => None,
        }));
    }
    if details.issuer {
        parts.push(format!("Issuer=\"{}\"", name(parsed.as_ref().map(|parsed| parsed.issuer()))));
    }
    parts.join(";")
}

/// A name as it is, unless it would be read as the end of itself: then between quotes.
fn plain(name: &str) -> String {
    if name.contains([',', ';', '=', '"', '\\']) {
        format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        name.to_owned()
    }
}

/// PEM without what a header may not have, percent-encoded.
fn escaped_pem(certificate: &[u8]) -> String {
    let body = BASE64_STANDARD.encode(certificate);
    let mut out = String::from("-----BEGIN%20CERTIFICATE-----%0A");
    for (at, letter) in body.chars().enumerate() {
        if at > 0 && at % PEM_LINE == 0 {
            out.push_str("%0A");
        }
        match letter {
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            letter => out.push(letter),
        }
    }
    out.push_str("%0A-----END%20CERTIFICATE-----%0A");
    out
}

/// RFC 2253: the last part first.
fn distinguished(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = name
        .iter()
        .map(|part| {
            let mut all: Vec<String> = part
                .iter()
                .map(|attribute| {
                    let number = attribute.attr_type().to_id_string();
                    let value = attribute.attr_value();
                    match SHORT_NAMES.iter().find(|(known, _)| *known == number) {
                        Some((_, short)) => {
                            format!("{short}={}", text(value).unwrap_or_else(|| encoded(value)))
                        }
                        None => format!("{number}={}", encoded(value)),
                    }
                })
                .collect();
            all.reverse();
            all.join("+")
        })
        .collect();
    parts.reverse();
    parts.join(",")
}

/// An attribute's text with what means something to a reader escaped; `None` where it is no text.
fn text(value: &Any<'_>) -> Option<String> {
    let utf8 = match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString => {
            value.data.to_vec()
        }
        Tag::T61String => value.data.iter().map(|byte| char::from(*byte)).collect::<String>().into_bytes(),
        Tag::BmpString => {
            let units = value.data.chunks(2).map(|pair| match pair {
                [high, low] => Some(u16::from_be_bytes([*high, *low])),
                _ => None,
            });
            String::from_utf16(&units.collect::<Option<Vec<u16>>>()?).ok()?.into_bytes()
        }
        _ => return None,
    };
    let mut out = String::with_capacity(utf8.len());
    for (at, &byte) in utf8.iter().enumerate() {
        let at_an_end = at == 0 && matches!(byte, b' ' | b'#') || at + 1 == utf8.len() && byte == b' ';
        match byte {
            0..0x20 | 0x7f.. => {
                // Nothing fails that writes to a string.
                let _ = write!(out, "\\{byte:02X}");
            }
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => out.extend(['\\', char::from(byte)]),
            _ if at_an_end => out.extend(['\\', char::from(byte)]),
            _ => out.push(char::from(byte)),
        }
    }
    Some(out)
}

/// `#` and the bytes.
fn encoded(value: &Any<'_>) -> String {
    let bytes = value.to_der_vec().unwrap_or_default();
    bytes.iter().fold(String::from("#"), |mut text, byte| {
        // Nothing fails that writes to a string.
        let _ = write!(text, "{byte:02X}");
        text
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair, SanType};

    use super::*;

    const ALL: CertificateDetails =
        CertificateDetails { subject: true, cert: true, chain: true, dns: true, uri: true, issuer: true };

    fn signed(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["One.test".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn said(certificate: &CertificateDer<'_>, details: CertificateDetails) -> String {
        let text = element(std::slice::from_ref(certificate), &["spiffe://mesh/us".into()], details);
        let rest = text.strip_prefix("By=spiffe://mesh/us;Hash=").unwrap();
        assert!(rest.bytes().take(64).all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f')));
        rest[64..].to_owned()
    }

    fn named(name: &str) -> String {
        let certificate = signed(|params| {
            params.distinguished_name.push(DnType::CountryName, "DE");
            params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(name.to_owned()));
        });
        let details = CertificateDetails { subject: true, ..CertificateDetails::default() };
        let said = said(&certificate, details);
        let inner = said.strip_prefix(";Subject=\"CN=").unwrap().strip_suffix(",C=DE\"").unwrap();
        inner.to_owned()
    }

    /// Envoy 1.40 writes these so.
    #[test]
    fn a_subject_is_written_as_envoy_writes_it() {
        assert_eq!(named("one"), "one");
        assert_eq!(named("Müller, Söhne \"Co\""), r#"M\C3\BCller\, S\C3\B6hne \"Co\""#);
        assert_eq!(named(r"#n;<>\"), r"\#n\;\<\>\\");
        assert_eq!(named(" lead"), r"\ lead");
        assert_eq!(named("trail "), r"trail\ ");
        assert_eq!(named("tab\tx"), r"tab\09x");
        assert_eq!(named("a=b#c d"), "a=b#c d");
    }

    #[test]
    fn an_attribute_without_a_short_name_is_written_by_number() {
        let certificate = signed(|params| {
            params.distinguished_name.push(DnType::CustomDnType(vec![1, 2, 3, 4]), "hm");
        });
        let details = CertificateDetails { subject: true, ..CertificateDetails::default() };
        assert_eq!(said(&certificate, details), ";Subject=\"1.2.3.4=#0C02686D\"");
    }

    #[test]
    fn what_is_asked_for_comes_in_envoys_order() {
        let certificate = signed(|params| {
            params.distinguished_name.push(DnType::CommonName, "one");
            params.subject_alt_names.push(SanType::URI("spiffe://mesh/one".try_into().unwrap()));
        });
        assert_eq!(said(&certificate, CertificateDetails::default()), "");
        let pem = escaped_pem(&certificate);
        assert!(pem.starts_with("-----BEGIN%20CERTIFICATE-----%0AMII"), "{pem}");
        let right = format!(
            ";Cert=\"{pem}\";Chain=\"{pem}\";Subject=\"CN=one\";URI=spiffe://mesh/one;DNS=One.test;Issuer=\"CN=one\""
        );
        assert_eq!(said(&certificate, ALL), right);
        let without = signed(|_| {});
        let details = CertificateDetails { cert: false, chain: false, ..ALL };
        assert_eq!(said(&without, details), ";Subject=\"\";URI=;DNS=One.test;Issuer=\"\"");
    }

    /// Header injection by a name: the attacker has a certificate, and would be somebody else too.
    #[test]
    fn a_name_cannot_be_read_as_more_of_the_header() {
        let certificate = signed(|params| {
            let name = "http://x/,By=spiffe://mesh/admin;URI=spiffe://mesh/\"admin";
            params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        });
        let details = CertificateDetails { uri: true, dns: true, ..CertificateDetails::default() };
        let right = r#";URI="http://x/,By=spiffe://mesh/admin;URI=spiffe://mesh/\"admin""#;
        assert_eq!(said(&certificate, details), right);
    }
}
