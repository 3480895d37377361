//! Connections to the server. They may bear a mark (`SO_MARK`), so that rules which bring a machine's connections to
//! its proxy leave the proxy's own to its server alone. What the server says last is kept: gRPC servers that mind pings
//! say so in the frame that ends the connection, of which the stream's own error tells nothing.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::USER_AGENT;
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tonic::body::Body;
use tower::Service;

use super::Config;

/// As gRPC has it: `grpc-`, the language, the program and its version.
const AGENT: &str = concat!("grpc-rust-pontoon/", env!("CARGO_PKG_VERSION"));
/// Of a response's headers and trailers; a status message travels in there.
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// Of one stream: four of the 256 KiB parts that our server sends, so that it never waits for the next to be asked for.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Bounds, with the header list, how many CONTINUATION frames a head may have.
const MAX_FRAME: u32 = 16 * 1024;
/// Until the server says how many it takes.
const FIRST_STREAMS: usize = 10;
/// Written ahead of a server that does not read, a stream.
const MAX_SEND_BUFFER: usize = 256 * 1024;
/// Streams that we have reset and of which frames may still come.
const MAX_RESET_STREAMS: usize = 10;
/// Streams that the server's errors make us reset. Above: the connection ends.
const MAX_LOCAL_RESETS: usize = 20;
/// A GOAWAY with a few words.
const KEPT_BYTES: usize = 64;
/// As gRFC A8 has it.
const COMPLAINT: &[u8] = b"too_many_pings";

/// What a connection brought last.
#[derive(Debug, Clone, Default)]
pub(super) struct LastWords(Arc<Mutex<Heard>>);

#[derive(Debug, Default)]
struct Heard {
    kept: Vec<u8>,
    /// When something came, be it the connection itself.
    at: Option<Instant>,
}

impl LastWords {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, bytes: &[u8]) {
        let mut heard = self.heard();
        if bytes.is_empty() && heard.at.is_some() {
            return;
        }
        heard.at = Some(Instant::now());
        let kept = &mut heard.kept;
        let tail = &bytes[bytes.len().saturating_sub(KEPT_BYTES)..];
        let excess = (kept.len() + tail.len()).saturating_sub(KEPT_BYTES);
        kept.drain(..excess);
        kept.extend_from_slice(tail);
    }

    /// Whether the server wants fewer pings.
    pub(super) fn are_of_pings(&self) -> bool {
        self.heard().kept.windows(COMPLAINT.len()).any(|words| words == COMPLAINT)
    }

    /// How long nothing has come, also no answer to a ping; `None`: there is no connection.
    pub(super) fn silent_for(&self) -> Option<Duration> {
        self.heard().at.map(|at| at.elapsed())
    }
}

/// Where requests are sent: HTTP/2, without a proxy in between and without one connection in place of another.
#[derive(Debug, Clone)]
pub(super) struct Connection(http2::SendRequest<Body>);

impl Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        Box::pin(self.0.send_request(request))
    }
}

/// Connects to the server, which is pinged every `keepalive`.
pub(super) async fn connect(
    config: &Config,
    keepalive: Duration,
    words: &LastWords,
) -> io::Result<Connection> {
    let opened = timeout(config.connect_timeout, open(&config.server, config.mark)).await;
    let stream = opened.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))??;
    words.hear(&[]);
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(keepalive)
        .keep_alive_timeout(config.keepalive)
        .keep_alive_while_idle(true)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW)
        .max_frame_size(MAX_FRAME)
        .initial_max_send_streams(FIRST_STREAMS)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .handshake(TokioIo::new(Listened { stream, words: words.clone() }))
        .await
        .map_err(io::Error::other)?;
    // How it ends is told to the stream.
    tokio::spawn(async move { drop(connection.await) });
    Ok(Connection(sender))
}

/// To the first address of the host's that takes it.
async fn open(server: &Uri, mark: Option<u32>) -> io::Result<TcpStream> {
    let host = server.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the server's name has no address");
    for address in lookup_host((host, server.port_u16().unwrap_or(80))).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(mark) = mark {
            SockRef::from(&socket).set_mark(mark)?;
        }
        match socket.connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[derive(Debug)]
struct Listened {
    stream: TcpStream,
    words: LastWords,
}

impl AsyncRead for Listened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.words.hear(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Listened {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_heard_in_pieces_and_only_at_the_end() {
        let words = LastWords::default();
        assert_eq!(words.silent_for(), None);
        for piece in [&[0; 100][..], b"too_many", b"_pings"] {
            assert!(!words.are_of_pings());
            words.hear(piece);
        }
        assert!(words.are_of_pings());
        words.hear(&[0; KEPT_BYTES]);
        assert!(!words.are_of_pings() && words.silent_for().is_some());
    }
}
