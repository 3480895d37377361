//! What a connection begins with: a PROXY protocol header; then a TLS `ClientHello` and what it says, HTTP/1, HTTP/2's
//! preface, or something else. It is fed the bytes as they come and holds no more than a limit of them; it reads nothing itself.

use std::io::Cursor;

use rustls::server::Acceptor;

use crate::config::chains::{Announced, Inspect, Transport};
use crate::error::Error;
use crate::proxy_protocol::{self, Addresses, Version};

/// Larger than any `ClientHello` or request line of an honest client; Envoy's limit for the former.
pub(crate) const MOST_BYTES: usize = 16 * 1024;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How a TLS handshake record begins: its type, and the first half of its version (RFC 8446, 5.1).
const HANDSHAKE: [u8; 2] = [22, 3];

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Beginning {
    pub(crate) transport: Transport,
    /// In lower case.
    pub(crate) server_name: Option<Box<str>>,
    pub(crate) protocols: Vec<Box<[u8]>>,
}

/// Not what the listener takes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it does not begin with a PROXY protocol header")]
    Unannounced,
    #[error("its PROXY protocol header is of a version that the listener does not take")]
    Version,
    #[error(transparent)]
    Malformed(#[from] proxy_protocol::Malformed),
    #[error("its ClientHello is malformed, or larger than {MOST_BYTES} bytes")]
    Hello,
}

impl Refused {
    pub(crate) fn error(&self) -> Error {
        match self {
            Refused::Unannounced | Refused::Version | Refused::Malformed(_) => Error::ProxyProtocol,
            Refused::Hello => Error::ClientHello,
        }
    }
}

impl Beginning {
    /// Nothing that is known here.
    pub(crate) fn unknown() -> Beginning {
        Beginning { transport: Transport::RawBuffer, server_name: None, protocols: Vec::new() }
    }

    fn http(protocol: &[u8]) -> Beginning {
        Beginning { protocols: vec![protocol.into()], ..Beginning::unknown() }
    }
}

/// Reads along until it knows.
pub(crate) struct Inspector {
    inspect: Inspect,
    bytes: Vec<u8>,
    /// A header that has yet to come.
    announced: Option<Announced>,
    addresses: Option<Addresses>,
    /// While it may be TLS.
    hello: Option<Acceptor>,
}

impl Inspector {
    pub(crate) fn new(inspect: Inspect) -> Inspector {
        Inspector {
            inspect,
            bytes: Vec::new(),
            announced: inspect.announced,
            addresses: None,
            hello: inspect.tls.then(Acceptor::default),
        }
    }

    /// All bytes so far, but for the PROXY protocol's.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// What the PROXY protocol's header said.
    pub(crate) fn addresses(&self) -> Option<Addresses> {
        self.addresses
    }

    /// Whether a header has yet to come without which nothing goes on.
    pub(crate) fn is_unannounced(&self) -> bool {
        self.announced.is_some_and(|announced| !announced.optional)
    }

    /// Takes the next bytes. `None`: more are needed.
    pub(crate) fn feed(&mut self, next: &[u8]) -> Result<Option<Beginning>, Refused> {
        let Some(announced) = self.announced else { return self.look(next) };
        self.bytes.extend_from_slice(next);
        match proxy_protocol::read(&self.bytes)? {
            proxy_protocol::Beginning::Unfinished => return Ok(None),
            proxy_protocol::Beginning::Absent if !announced.optional => return Err(Refused::Unannounced),
            proxy_protocol::Beginning::Absent => {}
            proxy_protocol::Beginning::Header { version, length, addresses } => {
                let taken = match version {
                    Version::V1 => announced.v1,
                    Version::V2 => announced.v2,
                };
                if !taken {
                    return Err(Refused::Version);
                }
                self.bytes.drain(..length);
                self.addresses = addresses;
            }
        }
        self.announced = None;
        let rest = std::mem::take(&mut self.bytes);
        self.look(&rest)
    }

    /// Whether it has begun as TLS does, so that it must not be taken for something else.
    pub(crate) fn is_mid_hello(&self) -> bool {
        self.hello.is_some() && !self.bytes.is_empty()
    }

    fn look(&mut self, next: &[u8]) -> Result<Option<Beginning>, Refused> {
        self.bytes.extend_from_slice(next);
        if !self.inspect.tls && !self.inspect.http {
            return Ok(Some(Beginning::unknown()));
        }
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let start = self.bytes.len().min(HANDSHAKE.len());
        if self.bytes[..start] != HANDSHAKE[..start] {
            self.hello = None;
        }
        if let Some(acceptor) = &mut self.hello {
            // What begins as TLS and cannot be read may be TLS to whoever stands behind: by the rules for plain bytes it
            // would get past those for its name.
            return match hello(acceptor, next) {
                Ok(None) if self.is_full() => Err(Refused::Hello),
                Ok(found) => Ok(found),
                Err(NotTls) => Err(Refused::Hello),
            };
        }
        if !self.inspect.http {
            return Ok(Some(Beginning::unknown()));
        }
        let found = http(&self.bytes, self.inspect.origin_form);
        Ok(found.or_else(|| self.is_full().then(Beginning::unknown)))
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= MOST_BYTES
    }
}

/// It looked like TLS and is not.
struct NotTls;

fn hello(acceptor: &mut Acceptor, next: &[u8]) -> Result<Option<Beginning>, NotTls> {
    let mut next = Cursor::new(next);
    while (next.position() as usize) < next.get_ref().len() {
        if acceptor.read_tls(&mut next).map_err(|_| NotTls)? == 0 {
            break;
        }
        if let Some(accepted) = acceptor.accept().map_err(|_| NotTls)? {
            let hello = accepted.client_hello();
            return Ok(Some(Beginning {
                transport: Transport::Tls,
                server_name: hello.server_name().map(|name| name.to_ascii_lowercase().into()),
                protocols: hello.alpn().into_iter().flatten().map(Into::into).collect(),
            }));
        }
    }
    Ok(None)
}

/// `None`: it may become either. With `origin_form`, what is asked of a proxy is none of ours.
fn http(bytes: &[u8], origin_form: bool) -> Option<Beginning> {
    if bytes.starts_with(PREFACE) {
        return Some(Beginning::http(b"h2c"));
    }
    if PREFACE.starts_with(bytes) {
        return None;
    }
    let line = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => &bytes[..end],
        None if looks_like_method(bytes) => return None,
        None => return Some(Beginning::unknown()),
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.rsplit(|byte| *byte == b' ');
    let (version, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let protocol = match version {
        b"HTTP/1.1" => b"http/1.1",
        b"HTTP/1.0" => b"http/1.0",
        _ => return Some(Beginning::unknown()),
    };
    let ours = looks_like_method(line) && (!origin_form || matches!(target, [b'/', ..] | b"*"));
    Some(if ours { Beginning::http(protocol) } else { Beginning::unknown() })
}

/// A token (RFC 9110, 5.6.2) and, if it has come, a space after it. Methods are not longer than 32 bytes.
fn looks_like_method(bytes: &[u8]) -> bool {
    let end = bytes.iter().position(|byte| *byte == b' ').unwrap_or(bytes.len());
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    (1..=32).contains(&end) && bytes[..end].iter().all(is_token)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BOTH: Inspect = Inspect {
        announced: None,
        tls: true,
        http: true,
        origin_form: false,
        timeout: Duration::from_secs(1),
        proceed: false,
    };

    /// Fed whole, and byte by byte: the same must be found.
    fn try_look(bytes: &[u8], inspect: Inspect) -> Result<Option<Beginning>, Refused> {
        let whole = Inspector::new(inspect).feed(bytes);
        let mut slow = Inspector::new(inspect);
        let mut found = Ok(None);
        for byte in bytes {
            found = slow.feed(&[*byte]);
            if found != Ok(None) {
                break;
            }
        }
        assert_eq!(whole, found);
        whole
    }

    fn look(bytes: &[u8], inspect: Inspect) -> Option<Beginning> {
        try_look(bytes, inspect).unwrap()
    }

    fn client_hello() -> Vec<u8> {
        let mut config = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = "Shop.Example".to_owned().try_into().unwrap();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_client_hello_tells_name_and_protocols() {
        let hello = client_hello();
        let found = look(&hello, BOTH).unwrap();
        let expected = Beginning {
            transport: Transport::Tls,
            server_name: Some("shop.example".into()),
            protocols: vec![b"h2".as_slice().into()],
        };
        assert_eq!(found, expected);
        assert_eq!(look(&hello[..100], BOTH), None);
        let blind = Inspect { tls: false, http: false, ..BOTH };
        assert_eq!(look(&hello, blind), Some(Beginning::unknown()));
    }

    #[test]
    fn http_is_told_by_its_first_line() {
        assert_eq!(look(b"GET / HTTP/1.1\r\n", BOTH), Some(Beginning::http(b"http/1.1")));
        assert_eq!(look(b"BREW /pot HTTP/1.0\n", BOTH), Some(Beginning::http(b"http/1.0")));
        assert_eq!(look(PREFACE, BOTH), Some(Beginning::http(b"h2c")));
        for more in [b"PRI * HTTP".as_slice(), b"GET /", b"G"] {
            assert_eq!(look(more, BOTH), None, "{more:?}");
        }
        for other in
            [b"\x00".as_slice(), b"\x16\x04", b"GET /\r\n", b" GET", b"EHLO there\r\n", b"GET / HTTP/2.0\r\n"]
        {
            assert_eq!(look(other, BOTH), Some(Beginning::unknown()), "{other:?}");
        }
        for proxied in [b"CONNECT shop:443 HTTP/1.1\r\n".as_slice(), b"GET http://shop/ HTTP/1.1\r\n"] {
            assert_eq!(look(proxied, BOTH), Some(Beginning::http(b"http/1.1")));
            assert_eq!(look(proxied, Inspect { origin_form: true, ..BOTH }), Some(Beginning::unknown()));
        }
        let options = b"OPTIONS * HTTP/1.1\r\n";
        assert_eq!(look(options, Inspect { origin_form: true, ..BOTH }), Some(Beginning::http(b"http/1.1")));
    }

    #[test]
    fn what_begins_as_tls_is_never_taken_for_something_else() {
        assert_eq!(try_look(b"\x16\x03\x01\xff\xff\xff", BOTH), Err(Refused::Hello));
        let mut hello = client_hello();
        // Not of a kind that there is.
        hello[5] = 99;
        assert_eq!(try_look(&hello, BOTH), Err(Refused::Hello));
        // A handshake message of 60,000 bytes, in records of 4,000.
        let mut large = Vec::new();
        for number in 0..15 {
            large.extend_from_slice(&[22, 3, 1, 0x0f, 0xa0]);
            large.extend_from_slice(&[0; 4_000]);
            if number == 0 {
                large[5..9].copy_from_slice(&[1, 0, 0xea, 0x60]);
            }
        }
        assert_eq!(Inspector::new(BOTH).feed(&large), Err(Refused::Hello));
        let mut inspector = Inspector::new(BOTH);
        assert_eq!((inspector.feed(&hello[..1]), inspector.is_mid_hello()), (Ok(None), true));
    }

    #[test]
    fn no_more_than_the_limit_is_held() {
        let mut inspector = Inspector::new(BOTH);
        assert_eq!(inspector.feed(b"GET /"), Ok(None));
        assert_eq!(inspector.feed(&[b'a'; MOST_BYTES]), Ok(Some(Beginning::unknown())));
    }

    #[test]
    fn a_header_of_the_proxy_protocol_goes_before_all_else() {
        const HEADER: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n";
        let strict = Announced { optional: false, v1: true, v2: false };
        let fed = |announced, inspect: Inspect, parts: &[&[u8]]| {
            let mut inspector = Inspector::new(Inspect { announced: Some(announced), ..inspect });
            let mut found = Ok(None);
            for part in parts {
                found = inspector.feed(part);
            }
            let source = inspector.addresses().map(|addresses| addresses.source.to_string());
            (found, source, inspector.into_bytes())
        };
        let (source, request) = (Some("192.0.2.1:56324".to_owned()), b"GET / HTTP/1.1\r\n".to_vec());
        let http = Ok(Some(Beginning::http(b"http/1.1")));
        for parts in [&[HEADER, &request].concat()[..]]
            .map(|whole| vec![whole])
            .into_iter()
            .chain([vec![HEADER, &request], vec![&HEADER[..10], &HEADER[10..], &request[..3], &request[3..]]])
        {
            assert_eq!(fed(strict, BOTH, &parts), (http.clone(), source.clone(), request.clone()));
        }
        let blind = Inspect { tls: false, http: false, ..BOTH };
        assert_eq!(fed(strict, blind, &[HEADER]), (Ok(Some(Beginning::unknown())), source, Vec::new()));
        assert_eq!(fed(strict, BOTH, &[&request]).0, Err(Refused::Unannounced));
        let other = Announced { v1: false, v2: true, ..strict };
        assert_eq!(fed(other, BOTH, &[HEADER]).0, Err(Refused::Version));
        let either = Announced { optional: true, ..strict };
        assert_eq!(fed(either, BOTH, &[&request]), (http, None, request));
        assert_eq!(fed(strict, BOTH, &[b"PROXY TCP4"]).0, Ok(None));
    }

    proptest::proptest! {
        #[test]
        fn nothing_from_outside_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = try_look(&bytes, BOTH);
            let mut hello = client_hello();
            for (place, byte) in bytes.chunks_exact(3).map(|c| (usize::from(c[0]) << 8 | usize::from(c[1]), c[2])) {
                let length = hello.len();
                hello[place % length] = byte;
            }
            let _ = try_look(&hello, BOTH);
        }
    }
}
