//! The two bodies on their way through. Frames are passed on one at a time, as the receiver asks for them: what
//! is not asked for stays in the sender's socket. They count bytes, bound them, and see to it that a stalled
//! stream ends.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::exchange::Exchange;
use super::grpc::Messages;
use super::grpc_web::{Decoder, Encoder};
use super::headers;
use crate::error::Error;
use crate::upstream::pool::Lease;
use crate::worker::local::Timer;

/// How long a client's `Expect: 100-continue` is held back for an upstream that does not answer it: clients
/// themselves wait about that long (RFC 9110, 10.1.1, knows no number).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// Held shut until the upstream says `100 Continue`.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    open: AtomicBool,
    waker: AtomicWaker,
}

impl Gate {
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// The client's body on its way to the upstream.
pub(crate) struct RequestBody {
    kind: Request,
}

enum Request {
    Empty,
    Client(Box<Stream>),
    /// What of the client's body was handed to a mirror.
    Copied(Box<Copied>),
}

/// A mirror's end of a body.
struct Copied {
    frames: mpsc::Receiver<(Frame<Bytes>, Waiting)>,
    /// Set when the whole body was handed over; else it broke off, and so does the copy.
    whole: Rc<Cell<bool>>,
}

/// The client's end: what passes is handed to a mirror that keeps up. One that does not gets no more.
struct Tee {
    frames: mpsc::Sender<(Frame<Bytes>, Waiting)>,
    whole: Rc<Cell<bool>>,
    /// What waits on this worker for all mirrors.
    waiting: Rc<Cell<usize>>,
}

/// Bytes that wait for a mirror, counted as long as they do.
struct Waiting {
    bytes: usize,
    of: Rc<Cell<usize>>,
}

/// Frames that wait for a mirror, and bytes that wait on one worker for all of them. Whoever does not keep up loses the
/// rest of its copy.
const MIRROR_FRAMES: usize = 64;
const MIRROR_BYTES: usize = 8 * 1024 * 1024;

struct Stream {
    incoming: Incoming,
    exchange: Rc<Exchange>,
    left: u64,
    gate: Option<(Arc<Gate>, Timer)>,
    /// It comes in base64.
    text: Option<Decoder>,
    /// It may be a stream of gRPC's.
    messages: Option<Messages>,
    mirrors: Vec<Tee>,
}

impl Tee {
    /// Whether the mirror keeps up.
    fn hand(&self, frame: &Frame<Bytes>) -> bool {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        if self.waiting.get() + bytes > MIRROR_BYTES {
            return false;
        }
        let copy = match (frame.data_ref(), frame.trailers_ref()) {
            // A piece of what was read would keep all that was read with it.
            (Some(data), _) => Frame::data(Bytes::copy_from_slice(data)),
            (None, Some(trailers)) => Frame::trailers(trailers.clone()),
            (None, None) => return true,
        };
        self.frames.try_send((copy, Waiting::new(bytes, &self.waiting))).is_ok()
    }
}

impl Waiting {
    fn new(bytes: usize, of: &Rc<Cell<usize>>) -> Self {
        of.set(of.get() + bytes);
        Self { bytes, of: Rc::clone(of) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.of.set(self.of.get() - self.bytes);
    }
}

impl RequestBody {
    pub(crate) fn empty() -> Self {
        Self { kind: Request::Empty }
    }

    /// A body for a mirror, of what passes through this one. `waiting` counts what waits for all mirrors.
    pub(crate) fn copy(&mut self, waiting: &Rc<Cell<usize>>) -> Self {
        let Request::Client(stream) = &mut self.kind else { return Self::empty() };
        let (sender, frames) = mpsc::channel(MIRROR_FRAMES);
        let whole = Rc::new(Cell::new(false));
        stream.mirrors.push(Tee { frames: sender, whole: Rc::clone(&whole), waiting: Rc::clone(waiting) });
        Self { kind: Request::Copied(Box::new(Copied { frames, whole })) }
    }

    /// These frames; `whole`: and no more.
    #[cfg(test)]
    pub(crate) fn of(given: Vec<Frame<Bytes>>, whole: bool) -> Self {
        let (sender, frames) = mpsc::channel(given.len().max(1));
        for frame in given {
            assert!(sender.try_send((frame, Waiting::new(0, &Rc::default()))).is_ok());
        }
        Self { kind: Request::Copied(Box::new(Copied { frames, whole: Rc::new(Cell::new(whole)) })) }
    }

    /// `limit` 0 is none. With a gate, nothing is read before it opens.
    pub(crate) fn new(
        incoming: Incoming,
        exchange: &Rc<Exchange>,
        limit: u64,
        gate: Option<Arc<Gate>>,
    ) -> Self {
        if incoming.is_end_stream() {
            exchange.request_done.set(true);
            return Self::empty();
        }
        let gate = gate.map(|gate| (gate, exchange.worker().timer(Instant::now() + CONTINUE_WAIT)));
        let left = if limit == 0 { u64::MAX } else { limit };
        let web = exchange.web.get();
        let text = web.is_some_and(|web| web.text_in).then(Decoder::default);
        // gRPC-Web sends one message, and whose length is told is no stream either.
        let streams = exchange.grpc.get() && web.is_none() && incoming.size_hint().exact().is_none();
        let messages = streams.then(Messages::default);
        let mirrors = Vec::new();
        let exchange = Rc::clone(exchange);
        let stream = Stream { incoming, exchange, left, gate, text, messages, mirrors };
        Self { kind: Request::Client(Box::new(stream)) }
    }
}

impl Stream {
    fn poll_gate(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((gate, timer)) = &mut self.gate else { return Poll::Ready(()) };
        gate.waker.register(cx.waker());
        let waited = timer.sleep().is_none_or(|sleep| sleep.poll(cx).is_ready());
        if waited || gate.open.load(Ordering::Acquire) {
            self.gate = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.exchange.abandoned.get() {
            return Poll::Ready(Some(Err(Error::ClientGone)));
        }
        let polled = match self.poll_gate(cx) {
            Poll::Ready(()) => Pin::new(&mut self.incoming).poll_frame(cx),
            Poll::Pending => Poll::Pending,
        };
        let exchange = &self.exchange;
        // Between two messages it is the client's to speak when it will.
        let owes = self.messages.as_ref().is_none_or(|messages| !messages.are_whole());
        exchange.starved.set(polled.is_pending() && self.gate.is_none() && owes);
        if polled.is_pending() {
            exchange.body_waker.replace(Some(cx.waker().clone()));
        }
        match ready!(polled) {
            Some(Ok(mut frame)) => {
                exchange.progressed();
                let underscores = exchange.settings.http.underscores;
                if let Some(trailers) = frame.trailers_mut()
                    && let Err(error) = headers::clean_trailers(trailers, underscores)
                {
                    return Poll::Ready(Some(Err(exchange.fail(error))));
                }
                if let Some(data) = frame.data_ref() {
                    let length = data.len() as u64;
                    exchange.received.set(exchange.received.get() + length);
                    if let Some(messages) = &mut self.messages {
                        messages.read(data);
                    }
                    match self.left.checked_sub(length) {
                        Some(left) => self.left = left,
                        None => return Poll::Ready(Some(Err(exchange.fail(Error::BodyTooLarge)))),
                    }
                }
                let ended = self.incoming.is_end_stream();
                if ended {
                    exchange.request_done.set(true);
                }
                let frame = match &mut self.text {
                    Some(decoder) => decoded(decoder, frame, ended),
                    None => Some(frame),
                };
                if let Some(frame) = &frame {
                    self.mirrors.retain(|mirror| mirror.hand(frame));
                }
                if ended {
                    self.end_mirrors();
                }
                let exchange = &self.exchange;
                Poll::Ready(Some(frame.ok_or_else(|| exchange.fail(Error::BadBody))))
            }
            Some(Err(error)) => {
                let cause = exchange.conn.refused_body.get().unwrap_or_else(|| cause(&error));
                Poll::Ready(Some(Err(exchange.fail(cause))))
            }
            None => {
                exchange.request_done.set(true);
                if self.text.as_ref().is_some_and(|decoder| !decoder.is_whole()) {
                    return Poll::Ready(Some(Err(exchange.fail(Error::BadBody))));
                }
                self.end_mirrors();
                Poll::Ready(None)
            }
        }
    }

    fn end_mirrors(&mut self) {
        for mirror in self.mirrors.drain(..) {
            mirror.whole.set(true);
        }
    }
}

/// Why a body did not come whole. hyper says so of chunks that it cannot read.
fn cause(error: &hyper::Error) -> Error {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    match source.map(io::Error::kind) {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => Error::Malformed,
        _ => Error::ClientGone,
    }
}

impl Copied {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match ready!(self.frames.poll_recv(cx)) {
            Some((frame, _)) => Poll::Ready(Some(Ok(frame))),
            None if self.whole.get() => Poll::Ready(None),
            None => Poll::Ready(Some(Err(Error::ClientGone))),
        }
    }
}

/// A frame with its base64 undone; `None` where it is none, or where the last is not whole.
fn decoded(decoder: &mut Decoder, frame: Frame<Bytes>, ended: bool) -> Option<Frame<Bytes>> {
    let frame = match frame.into_data() {
        Ok(data) => Frame::data(decoder.data(&data)?),
        Err(trailers) => trailers,
    };
    (!ended || decoder.is_whole()).then_some(frame)
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.get_mut().kind {
            Request::Client(stream) => stream.poll_frame(cx),
            Request::Copied(copied) => copied.poll_frame(cx),
            Request::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Request::Client(stream) => stream.incoming.is_end_stream(),
            Request::Copied(_) => false,
            Request::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Request::Empty => SizeHint::with_exact(0),
            Request::Client(stream) if stream.text.is_none() => stream.incoming.size_hint(),
            Request::Client(_) | Request::Copied(_) => SizeHint::default(),
        }
    }
}

/// The answer on its way to the client.
pub(crate) struct ResponseBody {
    kind: Kind,
    exchange: Rc<Exchange>,
    /// The client reads gRPC-Web.
    web: Option<Box<Encoder>>,
}

#[allow(
    clippy::large_enum_variant,
    reason = "the usual answer is the large one: a box would be an allocation a request"
)]
enum Kind {
    /// All of it is here: our own words, or an upstream's answer that came in one piece.
    Whole(Option<Bytes>),
    /// The upstream's, of which `first` was read already. The lease goes back to its pool with the last frame.
    Upstream { lease: Lease, first: Option<Bytes>, timer: Timer, bounds: Bounds },
    /// Nothing more.
    Done,
}

/// What bounds an answer in time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Whatever happens.
    pub(crate) total: Option<Instant>,
    /// What it is then said to be.
    pub(crate) over: Error,
    /// Without progress either way.
    pub(crate) idle: Option<Duration>,
    /// The progress seen when the timer was set.
    pub(crate) seen: u32,
}

/// Where nothing bounds a stream, the timer is set this far off.
pub(crate) const FAR: Duration = Duration::from_secs(24 * 3600);

impl ResponseBody {
    pub(crate) fn local(exchange: &Rc<Exchange>, body: Bytes) -> Self {
        if body.is_empty() {
            exchange.response_done.set(true);
        }
        let kind = Kind::Whole((!body.is_empty()).then_some(body));
        Self { kind, exchange: Rc::clone(exchange), web: None }
    }

    pub(crate) fn upstream(
        exchange: Rc<Exchange>,
        first: Option<Bytes>,
        lease: Lease,
        timer: Timer,
        bounds: Bounds,
    ) -> Self {
        let kind = Kind::Upstream { lease, first, timer, bounds };
        let mut this = Self { kind, exchange, web: None };
        this.finish_if_ended();
        this
    }

    /// Has it encoded on its way, where there is anything of it.
    pub(crate) fn in_web_form(mut self, web: Option<Encoder>) -> Self {
        self.web = web.filter(|_| !self.is_end_stream()).map(Box::new);
        self
    }

    fn poll_web(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            let polled = ready!(self.poll_plain(cx));
            let Some(web) = &mut self.web else { return Poll::Ready(polled) };
            let out = match polled {
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => web.data(data),
                    Err(frame) => web.end(frame.trailers_ref()),
                },
                None if web.is_done() => return Poll::Ready(None),
                None => {
                    let rest = web.end(None);
                    return Poll::Ready((!rest.is_empty()).then_some(Ok(Frame::data(rest))));
                }
            };
            // A piece too small to be encoded by itself waits for the next.
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
        }
    }

    /// Gives the connection back as soon as the last frame is known, rather than when the body is dropped.
    fn finish_if_ended(&mut self) {
        if let Kind::Upstream { lease, first, .. } = &mut self.kind
            && lease.is_end_stream()
        {
            let left = first.take().map_or(Kind::Done, |first| Kind::Whole(Some(first)));
            self.finish(left);
        }
    }

    /// The upstream is done; `left` is what the client has not had yet.
    fn finish(&mut self, left: Kind) {
        self.exchange.response_done.set(matches!(left, Kind::Done));
        let kind = std::mem::replace(&mut self.kind, left);
        // An upstream that answered before it had read the request: what is left of that would be in the way of
        // the next.
        if !self.exchange.request_done.get() {
            self.exchange.abandon_request();
        } else if let Kind::Upstream { lease, .. } = kind {
            lease.give_back(self.exchange.worker().coarse_now());
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.exchange.abandon_request();
    }
}

impl ResponseBody {
    fn poll_plain(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self;
        let exchange = &this.exchange;
        match &mut this.kind {
            Kind::Done => Poll::Ready(None),
            Kind::Whole(body) => {
                exchange.response_done.set(true);
                let body = body.take();
                exchange.sent.set(body.as_ref().map_or(0, |body| body.len() as u64));
                this.kind = Kind::Done;
                Poll::Ready(body.map(|body| Ok(Frame::data(body))))
            }
            Kind::Upstream { lease, first, timer, bounds } => match poll_next(lease, first, cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    exchange.progressed();
                    if let Some(data) = frame.data_ref() {
                        exchange.sent.set(exchange.sent.get() + data.len() as u64);
                    }
                    this.finish_if_ended();
                    Poll::Ready(Some(Ok(frame)))
                }
                Poll::Ready(Some(Err(_))) => {
                    let error = exchange.fail(Error::UpstreamReset);
                    this.kind = Kind::Done;
                    Poll::Ready(Some(Err(error)))
                }
                Poll::Ready(None) => {
                    this.finish(Kind::Done);
                    Poll::Ready(None)
                }
                Poll::Pending => {
                    let error = ready!(bounds.poll(timer, exchange, cx));
                    let error = exchange.fail(error);
                    this.kind = Kind::Done;
                    Poll::Ready(Some(Err(error)))
                }
            },
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if this.web.is_some() { this.poll_web(cx) } else { this.poll_plain(cx) }
    }

    fn is_end_stream(&self) -> bool {
        if self.web.as_ref().is_some_and(|web| !web.is_done()) {
            return false;
        }
        match &self.kind {
            Kind::Whole(body) => body.is_none(),
            Kind::Upstream { lease, .. } => lease.is_end_stream(),
            Kind::Done => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.web.is_some() {
            return SizeHint::default();
        }
        match &self.kind {
            Kind::Whole(body) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            // Only a body of known length has bytes that were read already.
            Kind::Upstream { lease, first, .. } => match (first, lease.size_hint().exact()) {
                (Some(first), Some(rest)) => SizeHint::with_exact(first.len() as u64 + rest),
                _ => lease.size_hint(),
            },
            Kind::Done => SizeHint::with_exact(0),
        }
    }
}

fn poll_next(
    lease: &mut Lease,
    first: &mut Option<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
    match first.take() {
        Some(first) => Poll::Ready(Some(Ok(Frame::data(first)))),
        None => Pin::new(lease).poll_frame(cx),
    }
}

impl Bounds {
    /// Ready with the bound that was broken. The timer stands at the earliest of them or before it.
    pub(crate) fn poll(
        &mut self,
        timer: &mut Timer,
        exchange: &Exchange,
        cx: &mut Context<'_>,
    ) -> Poll<Error> {
        loop {
            let Some(mut sleep) = timer.sleep() else { return Poll::Pending };
            ready!(sleep.as_mut().poll(cx));
            let now = Instant::now();
            if self.total.is_some_and(|total| now >= total) {
                return Poll::Ready(self.over);
            }
            let progress = exchange.progress.get();
            if self.idle.is_some()
                && progress == self.seen
                && sleep.deadline() <= now
                && self.armed_idle(sleep.deadline())
            {
                return Poll::Ready(Error::StreamIdle);
            }
            self.seen = progress;
            sleep.as_mut().reset(self.next(now));
        }
    }

    /// Whether the timer that has fired had been set for the idle time.
    fn armed_idle(&self, deadline: Instant) -> bool {
        self.total.is_none_or(|total| deadline < total)
    }

    /// When to look again.
    pub(crate) fn next(&self, now: Instant) -> Instant {
        let idle = now + self.idle.unwrap_or(FAR);
        self.total.map_or(idle, |total| total.min(idle))
    }
}
