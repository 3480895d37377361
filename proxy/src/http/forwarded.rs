//! Who the client is, and what the upstream is told about it: `X-Forwarded-For`, `-Proto`, `-Host`. Only what a
//! trusted peer says is believed; what we say ourselves is set after the hop's headers are gone.

use std::net::IpAddr;

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::client_certificate;
use crate::config::listener::ForwardedTrust;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Whether by this header a proxy says on whose behalf it asks: ours, RFC 7239's, which Spring reads first, and nginx's.
pub(crate) fn speaks_of_client(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-forwarded") && *name != client_certificate::HEADER
        || *name == FORWARDED
        || *name == REAL_IP
}

/// The client, and whether the peer may speak for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) client: IpAddr,
    pub(crate) trusted: bool,
}

/// Reads the headers as they came. A trusted peer's `X-Forwarded-For` is walked from its right end, past the
/// proxies we trust; `xff_num_trusted_hops` counts as Envoy counts it.
pub(crate) fn origin(trust: &ForwardedTrust, peer: IpAddr, present: bool, headers: &HeaderMap) -> Origin {
    let trusted_peer = !trust.trusted_peers.is_empty() && is_trusted(trust, peer);
    let trusted = trusted_peer || trust.trusted_hops > 0 || !trust.use_remote_address;
    if !trusted || !present {
        return Origin { client: peer, trusted };
    }
    let mut hops = trust.trusted_hops as usize;
    if trust.use_remote_address && hops > 0 {
        // The peer itself is the first of them.
        hops -= 1;
    }
    let mut client = None;
    for address in addresses(headers) {
        let Some(address) = address else { break };
        if hops > 0 {
            hops -= 1;
            continue;
        }
        client = Some(address);
        if !(trusted_peer && is_trusted(trust, address)) {
            return Origin { client: address, trusted };
        }
    }
    Origin { client: client.unwrap_or(peer), trusted }
}

fn is_trusted(trust: &ForwardedTrust, address: IpAddr) -> bool {
    trust.trusted_peers.iter().any(|net| net.contains(&address))
}

/// From right to left; `None` for what is no address.
fn addresses(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let mut values: Vec<&HeaderValue> = headers.get_all(FOR).iter().collect();
    values.reverse();
    values.into_iter().flat_map(|value| {
        value
            .as_bytes()
            .rsplit(|byte| *byte == b',')
            .map(|part| std::str::from_utf8(part.trim_ascii()).ok().and_then(|text| text.parse().ok()))
    })
}

/// Sets what the upstream is told. `peer` is the peer's address as a header value, made once a connection.
pub(crate) fn set(
    headers: &mut HeaderMap,
    trust: &ForwardedTrust,
    trusted: bool,
    present: bool,
    peer: &HeaderValue,
    scheme: &'static str,
    host: &HeaderValue,
) {
    if !present {
        if trust.use_remote_address && !trust.skip_append {
            headers.insert(FOR, peer.clone());
        }
        headers.insert(PROTO, HeaderValue::from_static(scheme));
        headers.insert(HOST, host.clone());
        return;
    }
    if trust.use_remote_address && !trust.skip_append {
        append_for(headers, peer);
    }
    if trusted {
        headers.entry(PROTO).or_insert(HeaderValue::from_static(scheme));
        headers.entry(HOST).or_insert_with(|| host.clone());
    } else {
        headers.insert(PROTO, HeaderValue::from_static(scheme));
        headers.insert(HOST, host.clone());
        let others: Vec<HeaderName> = headers
            .keys()
            .filter(|name| speaks_of_client(name) && ![FOR, PROTO, HOST].contains(*name))
            .cloned()
            .collect();
        for name in others {
            headers.remove(name);
        }
    }
}

fn append_for(headers: &mut HeaderMap, peer: &HeaderValue) {
    let mut list = Vec::new();
    for value in headers.get_all(FOR) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(peer.as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(list)) {
        headers.insert(FOR, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xff(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(FOR, HeaderValue::try_from(value).unwrap());
        headers
    }

    fn client(trust: &ForwardedTrust, peer: &str, list: &str) -> String {
        origin(trust, peer.parse().unwrap(), true, &xff(list)).client.to_string()
    }

    #[test]
    fn whose_word_is_taken() {
        let edge = ForwardedTrust { use_remote_address: true, ..Default::default() };
        assert_eq!(client(&edge, "9.9.9.9", "1.1.1.1"), "9.9.9.9", "nobody's");
        let behind = ForwardedTrust { trusted_peers: vec!["10.0.0.0/8".parse().unwrap()], ..edge.clone() };
        assert_eq!(client(&behind, "10.0.0.1", "1.1.1.1, 2.2.2.2, 10.0.0.7"), "2.2.2.2", "a trusted peer's");
        assert_eq!(client(&behind, "9.9.9.9", "1.1.1.1"), "9.9.9.9", "not a stranger's");
        assert_eq!(client(&behind, "10.0.0.1", "1.1.1.1, nonsense"), "10.0.0.1", "not nonsense");
        let hops = ForwardedTrust { trusted_hops: 1, ..edge };
        assert_eq!(client(&hops, "9.9.9.9", "1.1.1.1, 2.2.2.2"), "2.2.2.2");
        let two = ForwardedTrust { trusted_hops: 2, ..hops };
        assert_eq!(client(&two, "9.9.9.9", "1.1.1.1, 2.2.2.2"), "1.1.1.1");
        assert_eq!(client(&two, "9.9.9.9", "1.1.1.1"), "9.9.9.9", "the list is shorter than the hops");
    }

    #[test]
    fn an_untrusted_peer_cannot_say_who_asks() {
        let trust = ForwardedTrust { use_remote_address: true, ..Default::default() };
        let mut headers = xff("1.1.1.1");
        headers.insert(PROTO, HeaderValue::from_static("https"));
        headers.insert(HOST, HeaderValue::from_static("evil"));
        let others = ["x-forwarded-prefix", "x-forwarded", "forwarded", "x-real-ip"];
        for name in others {
            headers.insert(name, HeaderValue::from_static("for=10.0.0.1;host=evil"));
        }
        let (peer, host) = (HeaderValue::from_static("9.9.9.9"), HeaderValue::from_static("shop"));
        set(&mut headers, &trust, false, true, &peer, "http", &host);
        assert_eq!(headers[FOR], "1.1.1.1, 9.9.9.9");
        assert_eq!(headers[PROTO], "http");
        assert_eq!(headers[HOST], "shop");
        assert_eq!(others.map(|name| headers.contains_key(name)), [false; 4]);
        headers.insert(PROTO, HeaderValue::from_static("https"));
        set(&mut headers, &trust, true, true, &peer, "http", &host);
        assert_eq!(headers[PROTO], "https", "a trusted peer can");
    }

    #[test]
    fn the_list_stays_as_it_came_where_that_is_said() {
        let trust =
            ForwardedTrust { use_remote_address: true, skip_append: true, ..ForwardedTrust::default() };
        let (peer, host) = (HeaderValue::from_static("9.9.9.9"), HeaderValue::from_static("shop"));
        let mut headers = xff("1.1.1.1");
        set(&mut headers, &trust, false, true, &peer, "http", &host);
        assert_eq!(headers[FOR], "1.1.1.1");
        let mut headers = HeaderMap::new();
        set(&mut headers, &trust, false, false, &peer, "http", &host);
        assert!(!headers.contains_key(FOR));
    }
}
