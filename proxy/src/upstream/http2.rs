//! HTTP/2 towards an endpoint (RFC 9113). h2 has the frames, and a task for each connection; streams are opened, written and
//! read by the tasks of their requests, and nothing is handed over but what h2 itself keeps. Only what of a request has
//! not gone when its answer begins is sent by a task of its own, as long as the answer lasts.

mod alive;
mod answer;
mod sending;
mod tunnel;
mod watched;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};

use self::alive::Alive;
pub(crate) use self::alive::PING_SECONDS;
pub(super) use self::answer::Answer;
use self::answer::Rest;
use self::sending::{Sending, Stopped};
pub(crate) use self::tunnel::Duplex;
use self::watched::{FLOOD, Watched};
use super::connect::{MAX_HEADER_BYTES, Wear};
use super::pool::{Failed, Open};
use crate::batch::Batched;
use crate::error::Error;
use crate::http::body::RequestBody;

/// Streams on one connection, as Envoy's edge settings have it.
pub(crate) const MAX_STREAMS: usize = 100;
const STREAM_WINDOW: u32 = 256 * 1024;
/// So many streams' windows: who does not read its answer stops nobody else's, until as many do so.
const CONNECTION_WINDOW: u32 = 32 * STREAM_WINDOW;
/// What small pieces of answers that wait to be read may cost, of which each counts as 256 bytes: some 32,000. By h2's own
/// 2,000 a client that reads slowly, of small messages, would end the connection for all others.
const SMALL_FRAMES: usize = CONNECTION_WINDOW as usize;
/// What is written ahead of a slow endpoint, a stream.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Bounds, with the header list, how many CONTINUATION frames a head may have.
const MAX_FRAME: u32 = 16 * 1024;
/// Streams that we have reset and that are remembered for a second, as frames of them may still come. Of those above, such
/// frames count as errors of the endpoint's, of which h2 takes 1,024.
const MAX_RESET_STREAMS: usize = 100;

/// A connection, on which requests are streams.
#[derive(Debug)]
pub(crate) struct Http2 {
    /// Each request has a copy of its own: h2 keeps in the one that has sent a stream which waits for its turn.
    sender: RefCell<SendRequest<Bytes>>,
    known: Rc<Known>,
    pub(super) wear: Cell<Wear>,
    /// Counts while it lives, where the cluster has circuit breakers.
    pub(super) open: Option<Box<Open>>,
}

/// What of a connection is known by who drives it and by who has streams on it.
#[derive(Debug, Default)]
struct Known {
    /// Streams that somebody waits for.
    streams: Cell<usize>,
    /// The last stream that was begun, and the last whose head has gone. What is between waits in h2, and does so also where
    /// nobody waits for it any more.
    begun: Cell<u32>,
    written: Cell<u32>,
    /// Something has come since this was last looked at.
    heard: Cell<bool>,
    /// Nobody will use it again.
    forgotten: Cell<bool>,
}

/// A request that is under way, and what is still to go of it.
pub(super) struct Begun {
    answer: ResponseFuture,
    left: Left,
    known: Rc<Known>,
}

enum Left {
    Nothing,
    Body(Sending),
    /// It has asked for a tunnel, whose bytes follow once that is granted.
    Tunnel(SendStream<Bytes>),
}

impl Http2 {
    pub(super) async fn new<S>(stream: S, wear: Wear) -> Result<Http2, Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let stream = Batched::new(stream);
        let known = Rc::<Known>::default();
        let opening = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .initial_max_send_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .max_frame_size(MAX_FRAME)
            .max_send_buffer_size(MAX_SEND_BUFFER)
            .max_concurrent_reset_streams(MAX_RESET_STREAMS)
            .data_frame_budget(SMALL_FRAMES)
            .enable_push(false)
            .handshake(Watched::new(stream.clone(), Rc::clone(&known)));
        let (sender, mut connection) = opening.await.map_err(|_| Error::ConnectFailure)?;
        let pings = connection.ping_pong().ok_or(Error::ConnectFailure)?;
        tokio::task::spawn_local(drive(connection, stream, Alive::new(pings, Rc::clone(&known))));
        Ok(Http2 { sender: RefCell::new(sender), known, wear: Cell::new(wear), open: None })
    }

    /// Whether it takes no more requests: it has ended, or the endpoint has said that it will (GOAWAY).
    pub(super) fn is_closed(&self) -> bool {
        // Who has sent nothing does not wait for a turn either.
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.sender.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// How many streams somebody waits for.
    pub(super) fn streams(&self) -> usize {
        self.known.streams.get()
    }

    /// One more stream is waited for, or one less.
    pub(super) fn add_stream(&self) {
        self.known.streams.set(self.known.streams.get() + 1);
    }

    pub(super) fn remove_stream(&self) {
        self.known.streams.set(self.known.streams.get() - 1);
    }

    /// Whether another stream would have its turn at once, by what the endpoint takes now and we do.
    pub(super) fn has_room(&self) -> bool {
        // With none at all there would be no use in another connection either.
        let limit = self.sender.borrow().current_max_send_streams().clamp(1, MAX_STREAMS);
        // Two from one to the next.
        let waiting = self.known.begun.get().saturating_sub(self.known.written.get()) / 2;
        self.streams() < limit && (waiting as usize) < limit
    }

    /// Begins a request. It comes back where the connection takes no more.
    pub(super) fn begin(&self, request: Request<RequestBody>) -> Result<Begun, Failed> {
        if self.is_closed() {
            return Err(Failed { error: Error::UpstreamReset, request: Some(Box::new(request)) });
        }
        let (mut parts, body) = request.into_parts();
        remove_hop(&mut parts.headers);
        if let Some(length) = body.size_hint().exact()
            && (length > 0 || tells_empty(&parts.method))
        {
            parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
        }
        let is_tunnel = parts.method == Method::CONNECT;
        let whole = !is_tunnel && body.is_end_stream();
        let mut sender = self.sender.borrow().clone();
        let (answer, stream) = sender
            .send_request(Request::from_parts(parts, ()), whole)
            .map_err(|error| Failed { error: classify(&error), request: None })?;
        let left = match (is_tunnel, whole) {
            (true, _) => Left::Tunnel(stream),
            (false, true) => Left::Nothing,
            (false, false) => Left::Body(Sending::new(stream, body)),
        };
        self.known.begun.set(answer.stream_id().as_u32());
        Ok(Begun { answer, left, known: Rc::clone(&self.known) })
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        // It ends when the last stream has, which an endpoint that does not read could put off for ever.
        self.known.forgotten.set(true);
    }
}

/// A connection's own task: ends with it, or when the endpoint is found to be gone.
fn drive<S>(
    mut connection: Connection<Watched<Batched<S>>, Bytes>,
    batched: Batched<S>,
    mut alive: Alive,
) -> impl Future<Output = ()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(move |cx| {
        let ended = Pin::new(&mut connection).poll(cx);
        // Of a failure the connection hears in its next turn.
        let written = batched.poll_send(cx).is_ready();
        if ended.is_ready() { Poll::Ready(()) } else { alive.poll(cx, written) }
    })
}

impl Begun {
    /// Sends, until the head of the answer has come. What has come before it (1xx) is passed over.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Response<()>, Answer), Error>> {
        if let Left::Body(sending) = &mut self.left
            && let Poll::Ready(sent) = sending.poll(cx)
        {
            self.left = Left::Nothing;
            // What the endpoint does not take it may have answered none the less.
            if let Err(Stopped::Body(error)) = sent {
                return Poll::Ready(Err(error));
            }
        }
        let answer = ready!(Pin::new(&mut self.answer).poll(cx)).map_err(|error| self.failed(&error))?;
        let (parts, body) = answer.into_parts();
        // h2 has seen to it that there is one, and that it is a number.
        let length = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let rest = match std::mem::replace(&mut self.left, Left::Nothing) {
            Left::Tunnel(_) if parts.status.is_success() && length.is_some_and(|length: u64| length > 0) => {
                return Poll::Ready(Err(Error::UpstreamProtocol));
            }
            Left::Tunnel(stream) if parts.status.is_success() => Rest::Tunnel(stream),
            Left::Tunnel(_) | Left::Nothing => Rest::Nothing,
            Left::Body(sending) => Rest::body(sending),
        };
        Poll::Ready(Ok((Response::from_parts(parts, ()), Answer::new(body, length, rest))))
    }

    /// Of a request whose head has not gone the endpoint knows nothing, however its connection has ended.
    fn failed(&self, error: &h2::Error) -> Error {
        let sent = self.known.written.get() >= self.answer.stream_id().as_u32();
        if sent { classify(error) } else { Error::RefusedStream }
    }
}

/// Whether a request of this method says so where it has no body (RFC 9110, 8.6).
fn tells_empty(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT)
}

/// Removes what HTTP/2 has no place for (RFC 9113, 8.2.2): the client's own have gone, but a route may set some.
fn remove_hop(headers: &mut HeaderMap) {
    let is_hop = |name: &HeaderName| {
        *name == CONNECTION
            || *name == TRANSFER_ENCODING
            || *name == UPGRADE
            || matches!(name.as_str(), "keep-alive" | "proxy-connection")
    };
    let is_odd =
        |(name, value): (&HeaderName, &HeaderValue)| is_hop(name) || *name == TE && value != "trailers";
    if !headers.iter().any(is_odd) {
        return;
    }
    let listed = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let listed = listed.flat_map(|value| value.split(','));
    let mut names: Vec<_> = listed.filter_map(|name| HeaderName::try_from(name.trim()).ok()).collect();
    names.extend(headers.keys().filter(|name| is_hop(name)).cloned());
    for name in names {
        headers.remove(name);
    }
    if headers.get_all(TE).iter().any(|value| value != "trailers") {
        headers.remove(TE);
    }
}

/// What h2 says of a stream or a connection, in our words.
fn classify(error: &h2::Error) -> Error {
    if error.reason() == Some(Reason::REFUSED_STREAM) || error.is_go_away() && error.is_remote() {
        Error::RefusedStream
    } else if error.get_io().is_some_and(|error| error.kind() != FLOOD) || error.is_reset() {
        Error::UpstreamReset
    } else {
        Error::UpstreamProtocol
    }
}

#[cfg(test)]
mod tests;
