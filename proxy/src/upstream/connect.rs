//! A connection to an endpoint: TCP, TLS where the cluster has it, then the HTTP handshake. What fails here has sent nothing of a request.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use crate::batch::{Batched, Driven};
use crate::error::Error;
use crate::gather::Wire;
use crate::http::body::RequestBody;
use crate::proxy_protocol::{self, Addresses};
use crate::upstream::announced::{Announced, StreamLimit};
use crate::upstream::cluster::{ClusterSettings, ConnectionLimits, Endpoint};
use crate::upstream::dial::{Dialer, classify};
use crate::upstream::http1::Http1;
use crate::upstream::pool::Open;

/// HTTP/2 upstreams: streams on one connection, as Envoy's edge settings have it.
pub(crate) const MAX_STREAMS: usize = 100;
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Header bytes of an answer (and of its trailers).
pub(super) const MAX_HEADER_BYTES: u32 = 60 * 1024;
/// What is written ahead of a slow endpoint, a stream.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Bounds, with the header list, how many CONTINUATION frames a head may have.
const MAX_FRAME: u32 = 16 * 1024;
/// Streams that we have reset and of which frames may still come. Above: the connection ends.
const MAX_RESET_STREAMS: usize = 100;
/// A peer that is gone without a word is found within the sum of the two.
pub(crate) const PING_SECONDS: u16 = 30;
const PING_INTERVAL: Duration = Duration::from_secs(PING_SECONDS as u64);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Spawns a connection's tasks onto the worker's own thread. One of them, which hyper does not tell from the others, drives it.
#[derive(Clone)]
struct LocalExec(Batched<Stream>);

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(Driven::new(future, self.0.clone()));
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

/// What streams are opened on, over HTTP/2.
#[derive(Debug)]
pub(crate) struct Http2 {
    pub(crate) sender: http2::SendRequest<RequestBody>,
    pub(crate) limit: StreamLimit,
    pub(crate) wear: Cell<Wear>,
    /// Counts while it lives, where the cluster has circuit breakers.
    pub(super) open: Option<Box<Open>>,
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
    let stream = Batched::new(stream);
    let exec = LocalExec(stream.clone());
    let (stream, limit) = Announced::new(stream);
    let (sender, connection) = http2::Builder::new(exec)
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .max_frame_size(MAX_FRAME)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Error::ConnectFailure)?;
    tokio::task::spawn_local(async move { drop(connection.await) });
    Ok(Http2 { sender, limit, wear: Cell::new(Wear::new(settings.connections)), open: None })
}
