//! HTTP/1.1 towards an endpoint (RFC 9112). The request's own task writes and reads: no driver stands between, nothing is
//! handed over, and a connection that rests is its socket. Only what of a request has not gone when its answer begins
//! is sent by a task of its own, as long as the answer lasts.

mod answer;
mod chunks;
pub(crate) mod reading;
mod sending;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;

use self::reading::Reading;
use self::sending::{Sending, Stopped};
use super::connect::{Stream, Wear};
use super::pool::Open;
use crate::error::Error;
use crate::http::body::{Gate, RequestBody};

/// What is read at once, into room that the worker's connections share.
const READ: usize = 16 * 1024;
/// The least room that is worth a call.
const LEAST: usize = 4 * 1024;
/// What is read at once of a long body, once reads have been full.
const MOST: usize = 64 * 1024;
/// So many full reads, and others have their turn.
const TURN: u32 = 16;

thread_local! {
    static ROOM: RefCell<BytesMut> = RefCell::default();
}

/// A connection's socket, for its two directions.
#[derive(Clone)]
pub(crate) struct Socket(Rc<RefCell<Stream>>);

/// A connection, and what of an exchange is under way on it.
pub(crate) struct Http1 {
    socket: Socket,
    pub(super) wear: Wear,
    /// Counts while it lives, where the cluster has circuit breakers.
    pub(super) open: Option<Box<Open>>,
    asked: Method,
    /// Opened by `100 Continue`.
    gate: Option<Arc<Gate>>,
    sending: Option<Sending>,
    rest: Option<Rest>,
    /// The endpoint does not take all of the request.
    broken: bool,
    reading: Reading,
    /// Another request may follow.
    persists: bool,
    /// What is read at once.
    at_once: usize,
    /// Full reads, one after the other.
    full: u32,
}

/// Sends the rest of a request, until it is dropped.
struct Rest {
    task: AbortHandle,
    told: Rc<Told>,
}

/// What the task of a [`Rest`] tells who reads the answer.
#[derive(Default)]
struct Told {
    end: RefCell<Option<Result<(), Stopped>>>,
    reader: Cell<Option<Waker>>,
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Http1 {
    pub(super) fn new(stream: Stream, wear: Wear) -> Box<Http1> {
        Box::new(Http1 {
            socket: Socket(Rc::new(RefCell::new(stream))),
            wear,
            open: None,
            asked: Method::GET,
            gate: None,
            sending: None,
            rest: None,
            broken: false,
            reading: Reading::new(HeaderMap::new()),
            persists: true,
            at_once: READ,
            full: 0,
        })
    }

    /// Whether the endpoint has closed it, or said something that nobody has asked for.
    pub(super) fn has_ended(&self) -> bool {
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        let look = poll_fn(|cx| Pin::new(&mut *self.socket.0.borrow_mut()).poll_read(cx, &mut byte));
        // Without a budget, which the end of many others may have used up, it would look alive.
        pin!(tokio::task::unconstrained(look)).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Begins to send a request, on a connection that carries none.
    pub(super) fn begin(&mut self, mut request: Request<RequestBody>) {
        self.asked.clone_from(request.method());
        self.gate = request.extensions_mut().remove();
        let (sending, headers) = Sending::new(request);
        self.reading = Reading::new(headers);
        self.sending = Some(sending);
    }

    /// Sends, until the head of the answer has come.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Error>> {
        self.poll_sending(cx)?;
        loop {
            let interim = |status| {
                if let Some(gate) = self.gate.take_if(|_| status == StatusCode::CONTINUE) {
                    gate.open();
                }
            };
            if let Some((response, persists)) = self.reading.head(&self.asked, interim)? {
                return Poll::Ready(self.begun(response.status(), persists).map(|()| response));
            }
            match ready!(self.poll_read(cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(Err(Error::UpstreamReset)),
            }
        }
    }

    /// An answer has begun.
    fn begun(&mut self, status: StatusCode, persists: bool) -> Result<(), Error> {
        let switches = status == StatusCode::SWITCHING_PROTOCOLS;
        // What has not gone would be the first of the other protocol's bytes.
        if switches && self.sending.is_some() {
            return Err(Error::UpstreamProtocol);
        }
        self.persists = persists && !switches;
        self.rest = self.sending.take().map(|sending| Rest::of(sending, self.socket.clone()));
        Ok(())
    }

    /// Gives as much of the request to the socket as that takes.
    fn poll_sending(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let Some(sending) = &mut self.sending else { return Ok(()) };
        match sending.poll(&mut self.socket, cx) {
            Poll::Pending => return Ok(()),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(Stopped::Body(error))) => return Err(error),
            Poll::Ready(Err(Stopped::Socket)) => self.broken = true,
        }
        self.sending = None;
        Ok(())
    }

    /// The next frame of the answer's body.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            match self.reading.frame() {
                Ok(None) if self.reading.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                known => return Poll::Ready(known.transpose()),
            }
            // An endpoint that waits for the rest of a request which will not come has nothing more to say.
            if self.rest.as_ref().is_some_and(|rest| rest.has_failed(cx)) {
                return Poll::Ready(Some(Err(Error::UpstreamReset)));
            }
            if self.full >= TURN {
                self.full = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match ready!(self.poll_read(cx)) {
                Ok(1..) => {}
                Ok(0) if self.reading.close() => {}
                Ok(0) | Err(_) => return Poll::Ready(Some(Err(Error::UpstreamReset))),
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.reading.is_done()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.reading.size_hint()
    }

    /// Makes it ready for another request; `false` where it may carry none.
    pub(super) fn rest(&mut self) -> bool {
        let sent = self.sending.is_none() && self.rest.take().is_none_or(|rest| rest.has_gone());
        self.gate = None;
        self.at_once = READ;
        sent && self.persists && !self.broken && self.reading.is_done() && self.reading.bytes.is_empty()
    }

    /// What is spoken after a 101: what of it was read already, and the socket.
    pub(super) fn switched(&mut self) -> (Bytes, Socket) {
        (std::mem::take(&mut self.reading.bytes).freeze(), self.socket.clone())
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // The start of what is not whole: what follows has to come behind it.
        if !self.reading.bytes.is_empty() {
            self.reading.bytes.reserve(LEAST);
            return pin!(self.socket.read_buf(&mut self.reading.bytes)).poll(cx);
        }
        let (room, read);
        if self.at_once > READ {
            let left = self
                .reading
                .size_hint()
                .exact()
                .map_or(self.at_once, |left| left.min(self.at_once as u64) as usize);
            let mut own = BytesMut::with_capacity(left.max(LEAST));
            room = own.capacity();
            read = ready!(pin!(self.socket.read_buf(&mut own)).poll(cx))?;
            self.reading.bytes = own;
        } else {
            (room, read, self.reading.bytes) = ready!(ROOM.with_borrow_mut(|shared| {
                if shared.capacity() < LEAST {
                    shared.reserve(READ);
                }
                let room = shared.capacity();
                let socket = &mut self.socket;
                pin!(socket.read_buf(shared)).poll(cx).map_ok(|read| (room, read, shared.split()))
            }))?;
        }
        // A long body is read in large pieces, once it is seen to come in such.
        self.full = if read == room { self.full + 1 } else { 0 };
        self.at_once = match read {
            read if read == room => (self.at_once * 2).min(MOST),
            read if read < self.at_once / 4 => (self.at_once / 2).max(READ),
            _ => self.at_once,
        };
        Poll::Ready(Ok(read))
    }
}

impl Rest {
    fn of(mut sending: Sending, mut socket: Socket) -> Rest {
        let told = Rc::<Told>::default();
        let tells = Rc::clone(&told);
        let task = tokio::task::spawn_local(async move {
            let end = poll_fn(|cx| sending.poll(&mut socket, cx)).await;
            tells.end.replace(Some(end));
            if let Some(reader) = tells.reader.take() {
                reader.wake();
            }
        });
        Rest { task: task.abort_handle(), told }
    }

    /// All of it.
    fn has_gone(&self) -> bool {
        matches!(*self.told.end.borrow(), Some(Ok(())))
    }

    /// Whether the request has no end. Who asks is told when that is so.
    fn has_failed(&self, cx: &Context<'_>) -> bool {
        self.told.reader.set(Some(cx.waker().clone()));
        matches!(*self.told.end.borrow(), Some(Err(Stopped::Body(_))))
    }
}

impl Drop for Http1 {
    /// Under TLS an end that nobody announces may be somebody else's.
    fn drop(&mut self) {
        let rests = self.sending.is_none() && self.rest.is_none() && self.reading.is_done();
        if let (true, Stream::Tls(stream)) = (rests, &mut *self.socket.0.borrow_mut()) {
            let _ = Pin::new(&mut **stream).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }
}

impl fmt::Debug for Http1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1").finish_non_exhaustive()
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::upstream::cluster::ConnectionLimits;

    #[tokio::test]
    async fn more_closed_connections_than_a_turn_may_look_at_are_all_known() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut all = Vec::new();
        for _ in 0..300 {
            let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            drop(listener.accept().await.unwrap());
            near.readable().await.unwrap();
            all.push(Http1::new(Stream::Plain(near), Wear::new(ConnectionLimits::default())));
        }
        let known = poll_fn(|_| Poll::Ready(all.iter().filter(|one| one.has_ended()).count()));
        assert_eq!(known.await, all.len());
    }
}
