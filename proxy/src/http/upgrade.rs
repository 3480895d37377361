//! A change of protocol on its way through. HTTP/1.1 asks for it by `Upgrade` and grants it by 101, HTTP/2 by an
//! extended CONNECT and 200 (RFC 8441); each is turned into the other where the two hops differ. Inside it is a
//! GET with a protocol, as Envoy has it, so routes match it alike.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::header::{CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, request, response};
use hyper::upgrade::OnUpgrade;
use sha1::{Digest as _, Sha1};

use super::headers;
use crate::error::Error;
use crate::upstream::cluster::UpstreamProtocol;

/// The token of plain CONNECT among a listener's upgrade types, as Envoy has it.
pub(crate) const CONNECT: &str = "connect";
/// RFC 6455, 1.3.
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a client asks for beside its request.
pub(crate) enum Asked {
    /// Nothing.
    No,
    /// HTTP/2's way.
    Extended(HeaderValue),
    /// A tunnel to the authority.
    Connect,
}

impl Asked {
    /// Makes a GET of an extended CONNECT; refuses what is not on the listener's list.
    pub(crate) fn of(parts: &mut request::Parts, allowed: &[Box<str>]) -> Result<Asked, Error> {
        if parts.method != Method::CONNECT {
            return Ok(Asked::No);
        }
        let Some(protocol) = parts.extensions.remove::<hyper::ext::Protocol>() else {
            return if is_allowed(CONNECT.as_bytes(), allowed) {
                Ok(Asked::Connect)
            } else {
                Err(Error::ConnectRefused)
            };
        };
        if !is_allowed(protocol.as_str().as_bytes(), allowed) || protocol.as_str() == CONNECT {
            return Err(Error::UpgradeRefused);
        }
        parts.method = Method::GET;
        HeaderValue::from_str(protocol.as_str()).map(Asked::Extended).map_err(|_| Error::UpgradeRefused)
    }
}

/// Whether a listener passes this protocol on.
pub(crate) fn is_allowed(protocol: &[u8], allowed: &[Box<str>]) -> bool {
    allowed.iter().any(|name| protocol.eq_ignore_ascii_case(name.as_bytes()))
}

/// Whether HTTP/2 is among what is asked for, as Java's client does with its first request. It is not granted: requests
/// would go on where no route sees them, and a server may pass over the wish (RFC 9110, 7.8).
pub(crate) fn is_http2(asked: &HeaderValue) -> bool {
    headers::has_token(asked, "h2c") || headers::has_token(asked, "h2")
}

/// A change of protocol that is sent on.
pub(crate) struct Change {
    kind: Kind,
    /// The client's stream, where it is HTTP/2's; otherwise the tunnel is the whole connection.
    pub(crate) near: Option<OnUpgrade>,
}

enum Kind {
    /// To this protocol. The client's WebSocket key where we must answer it, as the upstream will not.
    Upgrade { protocol: HeaderValue, key: Option<HeaderValue>, upstream: UpstreamProtocol },
    /// To whatever the two ends speak.
    Connect,
}

impl Change {
    /// A tunnel for a CONNECT that ends here.
    pub(crate) fn connect(near: Option<OnUpgrade>) -> Self {
        Self { kind: Kind::Connect, near }
    }

    pub(crate) fn is_connect(&self) -> bool {
        matches!(self.kind, Kind::Connect)
    }

    /// Writes the wish into the upstream's request, whose hop-by-hop headers have gone.
    pub(crate) fn ask(
        parts: &mut request::Parts,
        protocol: HeaderValue,
        near: Option<OnUpgrade>,
        upstream: UpstreamProtocol,
    ) -> Self {
        let websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
        let mut key = None;
        match upstream {
            UpstreamProtocol::Http1 => {
                parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                parts.headers.insert(UPGRADE, protocol.clone());
                if websocket && near.is_some() && !parts.headers.contains_key(SEC_WEBSOCKET_KEY) {
                    let nonce = BASE64_STANDARD.encode(fastrand::u128(..).to_ne_bytes());
                    if let Ok(nonce) = HeaderValue::try_from(nonce) {
                        parts.headers.insert(SEC_WEBSOCKET_KEY, nonce);
                    }
                }
            }
            UpstreamProtocol::Http2 => {
                parts.method = Method::CONNECT;
                // It would be the length of a body, which a tunnel has not (RFC 9113, 8.5).
                parts.headers.remove(CONTENT_LENGTH);
                if let Ok(text) = protocol.to_str() {
                    // As it is registered: who compares bytes does not know `WebSocket`.
                    parts.extensions.insert(h2::ext::Protocol::from(text.to_ascii_lowercase().as_str()));
                }
                if websocket {
                    key = parts.headers.remove(SEC_WEBSOCKET_KEY);
                }
            }
        }
        Self { kind: Kind::Upgrade { protocol, key, upstream }, near }
    }

    /// Whether the upstream has granted it, and no other protocol. Of several that were asked for, it is the granted one from
    /// then on.
    pub(crate) fn is_granted(&mut self, parts: &response::Parts) -> bool {
        match &mut self.kind {
            Kind::Upgrade { protocol, upstream: UpstreamProtocol::Http1, .. } => {
                let granted = parts.headers.get_all(UPGRADE);
                let is_asked =
                    |one: &HeaderValue| one.to_str().is_ok_and(|one| headers::has_token(protocol, one));
                if parts.status != StatusCode::SWITCHING_PROTOCOLS || !granted.iter().all(is_asked) {
                    return false;
                }
                if let Some(one) = granted.iter().next() {
                    protocol.clone_from(one);
                }
                true
            }
            Kind::Upgrade { upstream: UpstreamProtocol::Http2, .. } | Kind::Connect => {
                parts.status.is_success()
            }
        }
    }

    /// Makes the answer that grants it to the client. Its hop-by-hop headers have gone.
    pub(crate) fn grant(&self, parts: &mut response::Parts) {
        let headers = &mut parts.headers;
        headers.remove(CONTENT_LENGTH);
        parts.version = Version::HTTP_11;
        parts.status = StatusCode::OK;
        let Kind::Upgrade { protocol, key, .. } = &self.kind else { return };
        if self.near.is_some() {
            headers.remove(SEC_WEBSOCKET_ACCEPT);
            return;
        }
        parts.status = StatusCode::SWITCHING_PROTOCOLS;
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
        if let Some(accept) = key.as_ref().and_then(accept) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
    }

    /// Marks an answer that does not grant it. What follows an upgrade that was declined may be meant for the other
    /// protocol: it is not read as a request.
    pub(crate) fn decline(&self, headers: &mut HeaderMap) {
        if self.near.is_none() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// RFC 6455, 4.2.2.
fn accept(key: &HeaderValue) -> Option<HeaderValue> {
    let digest = Sha1::new().chain_update(key.as_bytes()).chain_update(WEBSOCKET_GUID).finalize();
    HeaderValue::try_from(BASE64_STANDARD.encode(digest)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_protocols_one_is_granted() {
        let granted = |asked: &'static str, granted: &[&'static str]| {
            let (mut parts, ()) = http::Request::new(()).into_parts();
            let asked = HeaderValue::from_static(asked);
            let mut change = Change::ask(&mut parts, asked, None, UpstreamProtocol::Http1);
            let mut answer = http::Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            for protocol in granted {
                answer = answer.header(UPGRADE, *protocol);
            }
            let (mut parts, ()) = answer.body(()).unwrap().into_parts();
            let is_granted = change.is_granted(&parts);
            change.grant(&mut parts);
            is_granted.then(|| parts.headers[UPGRADE].to_str().unwrap().to_owned())
        };
        assert_eq!(granted("websocket, spdy/3", &["WebSocket"]).as_deref(), Some("WebSocket"));
        assert_eq!(granted("websocket", &[]).as_deref(), Some("websocket"));
        assert_eq!(granted("websocket, spdy/3", &["smtp"]), None);
        assert_eq!(granted("websocket", &["websocket", "smtp"]), None);
    }

    #[test]
    fn the_example_of_rfc_6455() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
