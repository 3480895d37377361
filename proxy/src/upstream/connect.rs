//! A connection to an endpoint: TCP, TLS where the cluster has it, then the HTTP handshake. What fails here has sent nothing of a request.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use crate::error::Error;
use crate::gather::Wire;
use crate::proxy_protocol::{self, Addresses};
use crate::upstream::cluster::{ClusterSettings, ConnectionLimits, Endpoint};
use crate::upstream::dial::{Dialer, classify};
use crate::upstream::http1::Http1;
use crate::upstream::http2::Http2;

/// Header bytes of an answer (and of its trailers).
pub(super) const MAX_HEADER_BYTES: u32 = 60 * 1024;

/// What is spoken under HTTP, or under whatever else.
pub(crate) type Stream = Wire<TlsStream<TcpStream>>;

impl Stream {
    /// What carries it.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.get_ref().0,
        }
    }
}

/// A connection, for whatever is spoken on it; on behalf of a `client`, where it is that one's alone and the endpoint
/// wants to know. The cluster's connect timeout is for TCP and TLS together.
pub(crate) async fn stream(
    dialer: &Dialer,
    endpoint: &Endpoint,
    settings: &ClusterSettings,
    client: Option<Addresses>,
) -> Result<Stream, Error> {
    let address = endpoint.address();
    let opening = async {
        let mut stream = dialer.tcp(address, endpoint.source(), settings.keepalive).await?;
        if let Some(version) = settings.proxy_protocol {
            let header = proxy_protocol::header(version, client);
            stream.write_all(&header).await.map_err(|error| classify(&error))?;
        }
        match &settings.tls {
            None => Ok(Stream::Plain(stream)),
            // Boxed, so that requests on plain connections do not carry room for a handshake.
            Some(tls) => {
                Box::pin(tls.connect(address.ip(), stream)).await.map(|tls| Stream::Tls(Box::new(tls)))
            }
        }
    };
    timeout(settings.connect_timeout, opening).await.unwrap_or(Err(Error::ConnectTimeout))
}

/// How much longer a connection is used, by the settings that it was made under.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wear {
    ends: Option<Instant>,
    /// Requests that it may still take.
    left: u32,
}

impl Wear {
    pub(super) fn new(limits: ConnectionLimits) -> Wear {
        let ends = limits.longest.map(|longest| Instant::now() + longest);
        Wear { ends, left: if limits.requests == 0 { u32::MAX } else { limits.requests } }
    }

    /// One more request.
    pub(crate) fn by_one(self) -> Wear {
        let left = if self.left == u32::MAX { u32::MAX } else { self.left.saturating_sub(1) };
        Wear { left, ..self }
    }

    /// Whether it takes no more.
    pub(crate) fn is_out(self, now: Instant) -> bool {
        self.left == 0 || self.ends.is_some_and(|ends| now >= ends)
    }
}

/// An HTTP/1.1 connection.
pub(crate) async fn http1(
    dialer: &Dialer,
    endpoint: &Endpoint,
    settings: &ClusterSettings,
) -> Result<Box<Http1>, Error> {
    let stream = stream(dialer, endpoint, settings, None).await?;
    Ok(Http1::new(stream, Wear::new(settings.connections)))
}

/// An HTTP/2 connection: with prior knowledge, or as ALPN says.
pub(crate) async fn http2(
    dialer: &Dialer,
    endpoint: &Endpoint,
    settings: &ClusterSettings,
) -> Result<Http2, Error> {
    let stream = stream(dialer, endpoint, settings, None).await?;
    // RFC 9113, 3.2: under TLS it is agreed by ALPN.
    if let Stream::Tls(stream) = &stream
        && stream.get_ref().1.alpn_protocol() != Some(b"h2".as_slice())
    {
        return Err(Error::UpstreamTlsProtocol);
    }
    Http2::new(stream, Wear::new(settings.connections)).await
}
