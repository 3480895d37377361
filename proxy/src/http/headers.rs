//! The request's and the answer's headers on their way through: one pass that finds what must be refused or
//! removed, the removal of what belongs to one hop (RFC 9110, 7.6.1), and the route's changes.

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, COOKIE,
    FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Version};

use crate::config::listener::{Limits, Underscores};
use crate::error::Error;
use crate::http::{client_certificate, forwarded, grpc, grpc_web};
use crate::route::HeaderMutation;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// By these a client tells Envoy's router how to try, and Envoy sends none of them on. The route alone says it here.
const ENVOY_ORDERS: [HeaderName; 10] = [
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
];

/// What one pass over the headers found.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Found {
    connection: bool,
    keep_alive: bool,
    proxy_connection: bool,
    proxy_authenticate: bool,
    proxy_authorization: bool,
    te: bool,
    transfer_encoding: bool,
    upgrade: bool,
    underscore: bool,
    /// `Content-Length` is there more than once, as a list, or with a zero in front.
    odd_length: bool,
    /// A header that [`remove_envoys`] is about.
    pub(crate) envoy: bool,
    /// `Expect` is there.
    pub(crate) expect: bool,
    /// A header by which a proxy speaks of its client is there.
    pub(crate) forwarded: bool,
    /// `Content-Type` is gRPC's.
    pub(crate) grpc: bool,
    /// It may be gRPC-Web's.
    pub(crate) grpc_web: bool,
    /// More than one `Cookie` line.
    pub(crate) cookies: u8,
    hosts: u8,
    /// Bytes of all names and values.
    pub(crate) bytes: u32,
}

/// Looks at each header once. Refuses too many, too large, and (as the listener says) underscores.
///
/// What HTTP/2 forbids in values (RFC 9113, 8.2.1) h2 lets pass, and it is refused here; of HTTP/1 no value comes so.
pub(crate) fn scan(
    headers: &HeaderMap,
    limits: &Limits,
    underscores: Underscores,
    version: Version,
) -> Result<Found, Error> {
    if headers.len() > limits.max_headers as usize {
        return Err(Error::HeadersTooLarge);
    }
    let mut found = Found::default();
    let (mut bytes, mut padded) = (0, false);
    let may_be_padded = version == Version::HTTP_2;
    for (name, value) in headers {
        let text = name.as_str();
        bytes += text.len() + value.len() + 4;
        padded |= may_be_padded && is_padded(value);
        match text.as_bytes()[0] {
            b'c' if *name == CONTENT_LENGTH => found.odd_length = is_odd_length(headers),
            b'c' if *name == CONNECTION => found.connection = true,
            b'c' if *name == CONTENT_TYPE => {
                found.grpc = grpc::is_grpc(value);
                found.grpc_web = grpc_web::is_web(value);
            }
            b'c' if *name == COOKIE => found.cookies = found.cookies.saturating_add(1),
            b'e' if *name == http::header::EXPECT => found.expect = true,
            b'f' if *name == FORWARDED => found.forwarded = true,
            b'h' if *name == HOST => found.hosts = found.hosts.saturating_add(1),
            b'k' if *name == KEEP_ALIVE => found.keep_alive = true,
            b'p' if *name == PROXY_CONNECTION => found.proxy_connection = true,
            b'p' if *name == PROXY_AUTHENTICATE => found.proxy_authenticate = true,
            b'p' if *name == PROXY_AUTHORIZATION => found.proxy_authorization = true,
            b't' if *name == TE => found.te = true,
            b't' if *name == TRANSFER_ENCODING => found.transfer_encoding = true,
            b'u' if *name == UPGRADE => found.upgrade = true,
            b'x' if is_envoys(name) => found.envoy = true,
            b'x' if forwarded::speaks_of_client(name) => found.forwarded = true,
            _ => {}
        }
        if text.as_bytes().contains(&b'_') {
            found.underscore = true;
        }
    }
    if bytes > limits.max_header_bytes as usize {
        return Err(Error::HeadersTooLarge);
    }
    if padded {
        return Err(Error::BadHeader);
    }
    found.bytes = bytes as u32;
    if found.transfer_encoding && !is_chunked(headers) {
        return Err(Error::TransferCoding);
    }
    if found.underscore && underscores == Underscores::Reject {
        return Err(Error::UnderscoreHeader);
    }
    Ok(found)
}

/// White space at an end of a value: who trims it reads another value than who does not (` chunked`, `trusted `).
fn is_padded(value: &HeaderValue) -> bool {
    let is_white = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let bytes = value.as_bytes();
    is_white(bytes.first()) || is_white(bytes.last())
}

/// Whether `chunked` is the only coding. hyper undoes it where it stands last, and would hand on a body that is still
/// coded otherwise.
fn is_chunked(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings.next().is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

impl Found {
    /// Whether there is exactly one `Host`, none, or (an error) more.
    pub(crate) fn has_host(&self) -> Result<bool, Error> {
        if self.hosts > 1 { Err(Error::BadHost) } else { Ok(self.hosts == 1) }
    }
}

fn is_envoys(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-envoy-") || *name == client_certificate::HEADER
}

/// Removes what a client may not tell the proxies behind: from one that is not trusted, all of Envoy's headers, as an
/// Envoy at the edge does; whose certificate somebody has seen, unless the listener lets it say so.
pub(crate) fn remove_envoys(headers: &mut HeaderMap, trusted: bool, certificates: bool) {
    let unwanted = |name: &HeaderName| match *name == client_certificate::HEADER {
        true => !certificates,
        false => is_envoys(name) && (!trusted || ENVOY_ORDERS.contains(name)),
    };
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// What of a hop's headers has a meaning for the next.
#[derive(Debug, Default)]
pub(crate) struct Hop {
    /// `TE` had `trailers`.
    pub(crate) trailers: bool,
    /// `Connection: upgrade` with this protocol.
    pub(crate) upgrade: Option<HeaderValue>,
}

/// Removes what belongs to this hop. Must come before any header of our own is set, so that a client cannot
/// have those removed by naming them in `Connection`.
pub(crate) fn remove_hop(headers: &mut HeaderMap, found: &Found, underscores: Underscores) -> Hop {
    let mut hop = Hop::default();
    if found.te {
        hop.trailers = headers.get_all(TE).iter().any(|value| has_token(value, "trailers"));
        headers.remove(TE);
    }
    let upgrade = if found.upgrade { headers.remove(UPGRADE) } else { None };
    if found.connection {
        remove_listed(headers, &mut hop, upgrade);
    }
    if found.keep_alive {
        headers.remove(KEEP_ALIVE);
    }
    if found.proxy_connection {
        headers.remove(PROXY_CONNECTION);
    }
    if found.proxy_authenticate {
        headers.remove(PROXY_AUTHENTICATE);
    }
    if found.proxy_authorization {
        headers.remove(PROXY_AUTHORIZATION);
    }
    if found.transfer_encoding {
        headers.remove(TRANSFER_ENCODING);
    }
    if found.odd_length {
        write_length_once(headers);
    }
    if found.underscore && underscores == Underscores::Drop {
        let names: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
    hop
}

fn is_odd_length(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let is_odd =
        |length: &[u8]| length.len() > 1 && length[0] == b'0' || !length.iter().all(u8::is_ascii_digit);
    lengths.next().is_some_and(|length| is_odd(length.as_bytes())) || lengths.next().is_some()
}

/// RFC 9110, 8.6: lengths that agree become one, as the number that it is. hyper and h2 have compared numbers, and the next
/// reader may compare texts, or take `010` for eight.
fn write_length_once(headers: &mut HeaderMap) {
    let first = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.split(',').next());
    match first.and_then(|length| length.trim().parse::<u64>().ok()) {
        Some(length) => drop(headers.insert(CONTENT_LENGTH, length.into())),
        None => drop(headers.remove(CONTENT_LENGTH)),
    }
}

fn remove_listed(headers: &mut HeaderMap, hop: &mut Hop, upgrade: Option<HeaderValue>) {
    // The usual values list nothing, and are not worth a copy.
    if headers.get_all(CONNECTION).iter().all(|value| value == "keep-alive" || value == "close") {
        headers.remove(CONNECTION);
        return;
    }
    let listed: Vec<HeaderValue> = headers.get_all(CONNECTION).iter().cloned().collect();
    headers.remove(CONNECTION);
    for value in &listed {
        for token in tokens(value) {
            if token.eq_ignore_ascii_case(b"upgrade") {
                hop.upgrade.clone_from(&upgrade);
            } else if token.eq_ignore_ascii_case(b"close") || token.eq_ignore_ascii_case(b"keep-alive") {
                // Handled by the connection.
            } else if let Ok(name) = HeaderName::from_bytes(token)
                // They frame or address the message: no sender may have them taken away.
                && name != HOST
                && name != CONTENT_LENGTH
            {
                headers.remove(name);
            }
        }
    }
}

/// What may not come behind a request's body, where nobody has looked at the head with it: what frames or addresses the
/// message, says who asks, or belongs to a hop (RFC 9110, 6.5.1).
pub(crate) fn clean_trailers(trailers: &mut HeaderMap, underscores: Underscores) -> Result<(), Error> {
    if trailers.values().any(is_padded) {
        return Err(Error::BadHeader);
    }
    const FORBIDDEN: [HeaderName; 13] = [
        AUTHORIZATION,
        CONNECTION,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        COOKIE,
        HOST,
        KEEP_ALIVE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    let forbidden = |name: &HeaderName| {
        forwarded::speaks_of_client(name)
            || is_envoys(name)
            || name.as_str().starts_with("proxy-")
            || underscores != Underscores::Allow && name.as_str().contains('_')
            || FORBIDDEN.contains(name)
    };
    let names: Vec<HeaderName> = trailers.keys().filter(|name| forbidden(name)).cloned().collect();
    for name in names {
        trailers.remove(name);
    }
    Ok(())
}

/// As [`remove_hop`], for an answer. One whose end could be read in two ways is none.
pub(crate) fn remove_response_hop(headers: &mut HeaderMap) -> Result<(), Error> {
    let mut found = Found::default();
    for name in headers.keys() {
        match name.as_str().as_bytes()[0] {
            b'c' if *name == CONTENT_LENGTH => found.odd_length = is_odd_length(headers),
            b'c' if *name == CONNECTION => found.connection = true,
            b'k' if *name == KEEP_ALIVE => found.keep_alive = true,
            b'p' if *name == PROXY_CONNECTION => found.proxy_connection = true,
            b't' if *name == TE => found.te = true,
            b't' if *name == TRANSFER_ENCODING => found.transfer_encoding = true,
            b'u' if *name == UPGRADE => found.upgrade = true,
            _ => {}
        }
    }
    if found.connection
        || found.odd_length
        || found.keep_alive
        || found.proxy_connection
        || found.te
        || found.transfer_encoding
        || found.upgrade
    {
        if found.transfer_encoding && (headers.contains_key(CONTENT_LENGTH) || !is_chunked(headers)) {
            return Err(Error::UpstreamProtocol);
        }
        remove_hop(headers, &found, Underscores::Allow);
    }
    Ok(())
}

/// Takes the white space off values' ends, as who reads them over HTTP/1.1 does. HTTP/2 forbids it, and h2 lets it pass.
pub(crate) fn trim_values(headers: &mut HeaderMap) {
    for value in headers.values_mut().filter(|value| is_padded(value)) {
        if let Ok(trimmed) = HeaderValue::from_bytes(value.as_bytes().trim_ascii()) {
            *value = trimmed;
        }
    }
}

/// A 204 has no body, and says nothing of one (RFC 9110, 8.6): a length that is not 0 may be that of a body which comes
/// none the less, and over HTTP/2 it makes the answer malformed.
pub(crate) fn remove_length_of_nothing(headers: &mut HeaderMap) -> Result<(), Error> {
    match headers.remove(CONTENT_LENGTH) {
        Some(length) if length != "0" => Err(Error::UpstreamProtocol),
        _ => Ok(()),
    }
}

pub(crate) fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Whether a comma-separated header has `token`, in any case, with or without parameters.
pub(crate) fn has_token(value: &HeaderValue, token: &str) -> bool {
    tokens(value).any(|found| {
        let name = found.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        name.eq_ignore_ascii_case(token.as_bytes())
    })
}

/// Joins the `Cookie` lines that HTTP/2 allows apart (RFC 9113, 8.2.3) for an HTTP/1.1 hop.
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let mut joined = Vec::new();
    for value in headers.get_all(COOKIE) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(value.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(COOKIE, value);
    }
}

/// Applies a route's changes, in order.
pub(crate) fn mutate(headers: &mut HeaderMap, mutations: &[HeaderMutation]) {
    for mutation in mutations {
        match mutation {
            HeaderMutation::Set(name, value) => {
                headers.insert(name.clone(), value.clone());
            }
            HeaderMutation::Append(name, value) => {
                headers.append(name.clone(), value.clone());
            }
            HeaderMutation::SetIfAbsent(name, value) => {
                headers.entry(name.clone()).or_insert_with(|| value.clone());
            }
            HeaderMutation::Remove(name) => {
                headers.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            max_header_bytes: 1024,
            max_headers: 10,
            max_body_bytes: 0,
            max_concurrent_streams: 100,
            max_requests: 0,
        }
    }

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn what_connection_lists_goes_but_never_host_or_length() {
        let mut headers = map(&[
            ("connection", "X-Auth, close, host"),
            ("connection", "content-length,upgrade"),
            ("x-auth", "1"),
            ("host", "shop"),
            ("content-length", "3"),
            ("keep-alive", "5"),
            ("te", "gzip, trailers;q=1"),
            ("proxy-authorization", "x"),
            ("upgrade", "websocket"),
            ("x-kept", "1"),
        ]);
        let found = scan(&headers, &limits(), Underscores::Reject, Version::HTTP_2).unwrap();
        let hop = remove_hop(&mut headers, &found, Underscores::Reject);
        assert!(hop.trailers);
        assert_eq!(hop.upgrade.unwrap(), "websocket");
        assert_eq!(headers, map(&[("host", "shop"), ("content-length", "3"), ("x-kept", "1")]));
    }

    #[test]
    fn an_upgrade_that_connection_does_not_list_is_none() {
        let mut headers = map(&[("upgrade", "websocket")]);
        let found = scan(&headers, &limits(), Underscores::Reject, Version::HTTP_2).unwrap();
        assert!(remove_hop(&mut headers, &found, Underscores::Reject).upgrade.is_none());
        assert!(headers.is_empty());
    }

    #[test]
    fn limits_and_underscores() {
        let many: HeaderMap = (0..11)
            .map(|n| (HeaderName::try_from(format!("x-{n}")).unwrap(), HeaderValue::from(n)))
            .collect();
        assert_eq!(
            scan(&many, &limits(), Underscores::Reject, Version::HTTP_2).unwrap_err(),
            Error::HeadersTooLarge
        );
        let mut long = HeaderMap::new();
        long.insert("x-long", HeaderValue::try_from("a".repeat(1024)).unwrap());
        assert_eq!(
            scan(&long, &limits(), Underscores::Reject, Version::HTTP_2).unwrap_err(),
            Error::HeadersTooLarge
        );
        let mut odd = map(&[("x_forwarded_proto", "https"), ("x-a", "1")]);
        assert_eq!(
            scan(&odd, &limits(), Underscores::Reject, Version::HTTP_2).unwrap_err(),
            Error::UnderscoreHeader
        );
        let found = scan(&odd, &limits(), Underscores::Drop, Version::HTTP_2).unwrap();
        remove_hop(&mut odd, &found, Underscores::Drop);
        assert_eq!(odd, map(&[("x-a", "1")]));
    }

    #[test]
    fn a_client_gives_no_orders_to_envoys_behind_and_shows_no_certificate_by_a_header() {
        let made_up = ("x-forwarded-client-cert", "By=me");
        let sent = map(&[("x-envoy-max-retries", "9"), ("x-envoy-peer", "a"), ("x-env", "b"), made_up]);
        assert!(scan(&sent, &limits(), Underscores::Allow, Version::HTTP_2).unwrap().envoy);
        for (trusted, left) in
            [(true, map(&[("x-envoy-peer", "a"), ("x-env", "b")])), (false, map(&[("x-env", "b")]))]
        {
            let mut headers = sent.clone();
            remove_envoys(&mut headers, trusted, false);
            assert_eq!(headers, left, "{trusted}");
            let mut headers = sent.clone();
            remove_envoys(&mut headers, trusted, true);
            assert!(headers.contains_key(client_certificate::HEADER));
        }
    }

    #[test]
    fn trailers_neither_frame_nor_address_nor_say_who_asks() {
        let mut trailers = map(&[
            ("content-length", "5"),
            ("host", "evil"),
            ("authorization", "Bearer x"),
            ("x-forwarded-for", "1.2.3.4"),
            ("proxy-authorization", "x"),
            ("x_u", "1"),
            ("grpc-status", "0"),
            ("x-checksum", "abc"),
        ]);
        clean_trailers(&mut trailers, Underscores::Reject).unwrap();
        assert_eq!(trailers, map(&[("grpc-status", "0"), ("x-checksum", "abc")]));
    }

    #[test]
    fn a_value_with_white_space_around_it_is_refused() {
        for value in [" chunked", "chunked ", "\ta", "a\t", " "] {
            let padded = map(&[("x-role", value)]);
            assert_eq!(
                scan(&padded, &limits(), Underscores::Allow, Version::HTTP_2).unwrap_err(),
                Error::BadHeader,
                "{value:?}"
            );
            assert_eq!(clean_trailers(&mut padded.clone(), Underscores::Allow), Err(Error::BadHeader));
        }
        assert!(
            scan(
                &map(&[("x-role", "a b\tc"), ("x-empty", "")]),
                &limits(),
                Underscores::Allow,
                Version::HTTP_2
            )
            .is_ok()
        );
    }

    #[test]
    fn cookies_are_joined() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2")]));
    }
}
