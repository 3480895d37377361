//! Doors into rooms that are otherwise closed, for the fuzz targets alone (feature `fuzzing`).

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;

pub use crate::bootstrap::fuzzing::bootstrap;
use crate::config::chains::{Announced, Inspect};
use crate::config::listener::{ForwardedTrust, Limits, Underscores};
pub use crate::dns::fuzzing::{Resolver, kept};
use crate::error::Error;
use crate::http::{forwarded as trust, grpc_web, headers};
use crate::listener::frames::Frames;
use crate::listener::guard::Guard;
use crate::listener::inspect::Inspector;
use crate::tls::material;
pub use crate::upgrade::fuzzing::lines;
pub use crate::upstream::http1::reading::fuzzing::answer;

/// Reads a connection's bytes in these pieces. Gives where, counted over all of them, and why they are refused.
pub fn guard(pieces: &[&[u8]]) -> Option<(usize, Error)> {
    let mut guard = Guard::new();
    let mut before = 0;
    for piece in pieces {
        if let Err(refusal) = guard.read(piece) {
            return Some((before + refusal.at, refusal.error));
        }
        before += piece.len();
    }
    None
}

/// What became of a request's headers.
pub struct Seen {
    /// Who counts as the client.
    pub client: IpAddr,
    /// As they are sent on.
    pub headers: HeaderMap,
}

/// Takes a request for the host `shop` from 192.0.2.1, trusted or not, with these headers: a number that chooses
/// the name, and the value.
pub fn forwarded(trusted: bool, hops: u32, lines: &[(u8, &str)]) -> Option<Seen> {
    const NAMES: [&str; 12] = [
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-prefix",
        "connection",
        "te",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "cookie",
        "x-other",
        "transfer-encoding",
    ];
    let peer = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let settings = ForwardedTrust {
        use_remote_address: true,
        trusted_hops: hops,
        trusted_peers: if trusted { vec![peer.into()] } else { Vec::new() },
        skip_append: false,
    };
    let mut map = HeaderMap::new();
    map.insert(http::header::HOST, HeaderValue::from_static("shop"));
    for (name, value) in lines.iter().take(64) {
        let name = HeaderName::from_static(NAMES[usize::from(*name) % NAMES.len()]);
        map.append(name, HeaderValue::from_str(value).ok()?);
    }
    let limits = Limits {
        max_header_bytes: 65_536,
        max_headers: 100,
        max_body_bytes: 0,
        max_concurrent_streams: 1,
        max_requests: 0,
    };
    let found = headers::scan(&map, &limits, Underscores::Reject, http::Version::HTTP_2).ok()?;
    let origin = trust::origin(&settings, peer, found.forwarded, &map);
    headers::remove_hop(&mut map, &found, Underscores::Reject);
    let (own, host) = (HeaderValue::from_static("192.0.2.1"), HeaderValue::from_static("shop"));
    trust::set(&mut map, &settings, origin.trusted, found.forwarded, &own, "http", &host);
    if found.cookies > 1 {
        headers::join_cookies(&mut map);
    }
    Some(Seen { client: origin.client, headers: map })
}

/// What a connection's first bytes are taken for, and what is left of them for whoever reads them next; read in these
/// pieces by a listener that may be told of the client by the PROXY protocol, and that takes TLS and HTTP.
pub fn beginning(pieces: &[&[u8]]) -> (String, Vec<u8>) {
    let inspect = Inspect {
        announced: Some(Announced { optional: true, v1: true, v2: true }),
        tls: true,
        http: true,
        origin_form: false,
        timeout: Duration::from_secs(1),
        proceed: false,
    };
    let mut inspector = Inspector::new(inspect);
    let mut found = Ok(None);
    let mut pieces = pieces.iter();
    for piece in pieces.by_ref() {
        found = inspector.feed(piece);
        if !matches!(found, Ok(None)) {
            break;
        }
    }
    let said = format!("{found:?} {:?}", inspector.addresses());
    let mut rest = inspector.into_bytes();
    pieces.for_each(|piece| rest.extend_from_slice(piece));
    (said, rest)
}

/// How many frames of an HTTP/2 client, from its preface on, carry nothing of a request; read in these pieces.
pub fn frames(pieces: &[&[u8]]) -> u32 {
    let mut frames = Frames::of_client();
    pieces.iter().map(|piece| frames.read(piece)).sum()
}

/// A gRPC-Web request's body in base64, read in these pieces: what is decoded of it, and whether that is all. `None`:
/// it is no base64.
pub fn web_request(pieces: &[&[u8]]) -> Option<(Vec<u8>, bool)> {
    let mut decoder = grpc_web::Decoder::default();
    let mut decoded = Vec::new();
    for piece in pieces {
        decoded.extend_from_slice(&decoder.data(piece)?);
    }
    Some((decoded, decoder.is_whole()))
}

/// A gRPC request's or answer's content type, and a body with these trailers, as a gRPC-Web client gets them; `None`
/// where it asked for something else.
pub fn web_answer(
    asked: &str,
    accepted: &str,
    answered: &str,
    pieces: &[&[u8]],
    trailers: &[(u8, &str)],
) -> Option<(bool, Vec<u8>)> {
    const NAMES: [&str; 3] = ["grpc-status", "grpc-message", "x-other-bin"];
    let headers = |accepted: Option<&str>, content_type: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_str(content_type).ok()?);
        if let Some(accepted) = accepted {
            headers.insert(http::header::ACCEPT, HeaderValue::from_str(accepted).ok()?);
        }
        Some(headers)
    };
    let mut request = headers(Some(accepted), asked)?;
    let web = grpc_web::translate_request(&http::Method::POST, &mut request)?;
    let mut encoder = grpc_web::translate_response(web, &mut headers(None, answered)?)?;
    let mut encoded = Vec::new();
    for piece in pieces {
        encoded.extend_from_slice(&encoder.data(Bytes::copy_from_slice(piece)));
    }
    let mut map = HeaderMap::new();
    for (name, value) in trailers.iter().take(16) {
        map.append(NAMES[usize::from(*name) % NAMES.len()], HeaderValue::from_str(value).ok()?);
    }
    encoded.extend_from_slice(&encoder.end(Some(&map)));
    Some((web.text_out, encoded))
}

/// The names and the end of a certificate, where it is one.
pub fn certificate(der: &[u8]) -> Option<(Vec<String>, i64)> {
    let der = CertificateDer::from(der);
    let names = material::names(&der).ok()?;
    Some((names.into_iter().map(|(_, name)| name).collect(), material::not_after(&der).ok()?))
}
