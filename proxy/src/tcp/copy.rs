//! Bytes both ways between two streams, each direction ending by itself (half-close). What is read goes through one
//! buffer of the thread's; only what the other side does not take at once is kept, so that a connection that waits
//! costs no buffer at all and a busy one moves 64 KiB at a time. Where much flows between two sockets, the kernel
//! moves it alone.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client;

use super::splice::Pipe;
use crate::listener::io::Io;
use crate::listener::transport::{Rewound, Transport};
use crate::upstream::http2::Duplex;
use crate::worker::local::{Timer, Worker};

/// Read at once, and so the most that is kept for a reader that is slow.
const CHUNK: usize = 64 * 1024;
/// What the kernel moves at once, at the least, for that to go on.
const FLOW: usize = 16 * 1024;
/// Chunks of one direction in a row, so that one fast connection does not hold up the others of its worker.
const TURNS: usize = 16;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// What bytes come from and go to.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// The socket, where the bytes are its own: not under TLS, and not a stream of HTTP/2's.
    fn bare(&self) -> Option<&TcpStream> {
        None
    }
}

impl Stream for TcpStream {
    fn bare(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Stream for Transport {
    fn bare(&self) -> Option<&TcpStream> {
        match self {
            Transport::Plain(socket) => Some(socket),
            Transport::Tls(_) => None,
        }
    }
}

impl<S: Stream + ?Sized> Stream for &mut S {
    fn bare(&self) -> Option<&TcpStream> {
        (**self).bare()
    }
}

impl Stream for Io {}
impl Stream for Duplex {}
impl<S> Stream for Rewound<S> where Rewound<S>: AsyncRead + AsyncWrite + Unpin {}
impl<T> Stream for TokioIo<T> where TokioIo<T>: AsyncRead + AsyncWrite + Unpin {}
impl<T> Stream for Box<client::TlsStream<T>> where client::TlsStream<T>: AsyncRead + AsyncWrite + Unpin {}

/// One end of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The client's.
    Near,
    /// The endpoint's.
    Far,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Both directions came to their end.
    Complete,
    /// This side broke.
    Broken(Side, io::Error),
    /// Nothing moved for the idle time.
    Idle,
    /// It has lived as long as it may.
    TooLong,
    /// It is to end now.
    Closed,
}

/// What bounds a copy.
pub(crate) struct Bounds {
    /// Nothing moves either way.
    pub(crate) idle: Option<Duration>,
    /// The longest life.
    pub(crate) until: Option<Instant>,
}

/// Copies until both directions have ended, or one of the bounds has come. `moved` is told each chunk, by the side
/// that it came from; `closed` is ready when it is to end at once.
pub(crate) async fn between<N, F>(
    worker: &Rc<Worker>,
    near: N,
    far: F,
    bounds: &Bounds,
    mut moved: impl FnMut(Side, usize),
    mut closed: impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> End
where
    N: Stream,
    F: Stream,
{
    let (mut near, mut far) = (near, far);
    let (mut up, mut down) = (Half::default(), Half::default());
    let mut count = 0_u64;
    let mut clock = Clock::new(worker, bounds);
    poll_fn(|cx| {
        let mut note = |side, length| {
            count += 1;
            moved(side, length);
        };
        let sent = up.poll(cx, &mut near, &mut far, |length| note(Side::Near, length));
        if let Poll::Ready(Err(fault)) = sent {
            return Poll::Ready(fault.seen_from(Side::Near));
        }
        let received = down.poll(cx, &mut far, &mut near, |length| note(Side::Far, length));
        if let Poll::Ready(Err(fault)) = received {
            return Poll::Ready(fault.seen_from(Side::Far));
        }
        if sent.is_ready() && received.is_ready() {
            return Poll::Ready(End::Complete);
        }
        if closed(cx).is_ready() {
            return Poll::Ready(End::Closed);
        }
        clock.poll(count, cx)
    })
    .await
}

/// One direction.
#[derive(Default)]
struct Half {
    /// What was read and not yet taken.
    kept: Vec<u8>,
    taken: usize,
    /// The same, where the kernel has it.
    pipe: Option<Pipe>,
    /// The last chunk was as long as one can be.
    flows: bool,
    /// Written without a flush.
    unflushed: bool,
    state: State,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Its reader has ended; the writer has to be told.
    Ending,
    Done,
}

enum Fault {
    Read(io::Error),
    Write(io::Error),
}

impl Fault {
    fn seen_from(self, reader: Side) -> End {
        match (self, reader) {
            (Fault::Read(error), side) => End::Broken(side, error),
            (Fault::Write(error), Side::Near) => End::Broken(Side::Far, error),
            (Fault::Write(error), Side::Far) => End::Broken(Side::Near, error),
        }
    }
}

impl Half {
    fn poll<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        mut moved: impl FnMut(usize),
    ) -> Poll<Result<(), Fault>> {
        for _ in 0..TURNS {
            ready!(self.poll_kept(cx, to)).map_err(Fault::Write)?;
            match self.state {
                State::Open => {}
                State::Ending => {
                    ready!(Pin::new(to).poll_shutdown(cx)).map_err(Fault::Write)?;
                    self.state = State::Done;
                    return Poll::Ready(Ok(()));
                }
                State::Done => return Poll::Ready(Ok(())),
            }
            match self.poll_next(cx, from, to) {
                Poll::Ready(Ok(0)) => self.state = State::Ending,
                Poll::Ready(Ok(length)) => moved(length),
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                Poll::Pending => {
                    if self.unflushed && Pin::new(to).poll_flush(cx).map_err(Fault::Write)?.is_ready() {
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Has more of it on its way; gives how much, or 0 at the end.
    fn poll_next<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<Result<usize, Fault>> {
        if self.flows
            && let (Some(from), Some(_)) = (from.bare(), to.bare())
            && let Some(pipe) = self.pipe.take().or_else(Pipe::borrow)
        {
            let pipe = self.pipe.insert(pipe);
            let filled = pipe.poll_fill(cx, from).map_err(Fault::Read);
            if !matches!(filled, Poll::Ready(Ok(FLOW..))) {
                // What trickles is copied, and the pipe is another's.
                self.flows = false;
                self.pipe.take_if(|pipe| pipe.is_empty());
            }
            return filled;
        }
        let polled = BUFFER.with_borrow_mut(|buffer| self.poll_chunk(cx, from, to, buffer));
        self.flows = matches!(polled, Poll::Ready(Ok(CHUNK..)));
        polled
    }

    fn poll_kept<W: Stream>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>> {
        if let (Some(pipe), Some(to)) = (&mut self.pipe, to.bare()) {
            ready!(pipe.poll_drain(cx, to))?;
            if !self.flows {
                self.pipe = None;
            }
        }
        while self.taken < self.kept.len() {
            self.taken += ready!(write(cx, to, &self.kept[self.taken..]))?;
        }
        if self.taken > 0 {
            (self.kept, self.taken) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes what of it is taken; keeps the rest.
    fn poll_chunk<R: Stream, W: Stream>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        buffer: &mut [u8],
    ) -> Poll<Result<usize, Fault>> {
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(from).poll_read(cx, &mut read)).map_err(Fault::Read)?;
        let chunk = read.filled();
        let mut taken = 0;
        while taken < chunk.len() {
            match write(cx, to, &chunk[taken..]) {
                Poll::Ready(Ok(length)) => taken += length,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Fault::Write(error))),
                Poll::Pending => {
                    self.kept = chunk[taken..].to_vec();
                    break;
                }
            }
        }
        self.unflushed |= taken > 0;
        Poll::Ready(Ok(chunk.len()))
    }
}

fn write<W: Stream>(cx: &mut Context<'_>, to: &mut W, bytes: &[u8]) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(to).poll_write(cx, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        length => Poll::Ready(Ok(length)),
    }
}

/// Looks at the bounds. Nothing is done a chunk: the timer looks back when it fires.
struct Clock<'a> {
    bounds: &'a Bounds,
    timer: Option<Timer>,
    /// As of the last time the timer fired.
    seen: u64,
}

impl<'a> Clock<'a> {
    fn new(worker: &Rc<Worker>, bounds: &'a Bounds) -> Self {
        let timer = next(bounds, Instant::now()).map(|at| worker.timer(at));
        Self { bounds, timer, seen: 0 }
    }

    fn poll(&mut self, count: u64, cx: &mut Context<'_>) -> Poll<End> {
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        while let Some(mut sleep) = timer.sleep()
            && sleep.as_mut().poll(cx).is_ready()
        {
            let now = Instant::now();
            if self.bounds.until.is_some_and(|until| now >= until) {
                return Poll::Ready(End::TooLong);
            }
            if std::mem::replace(&mut self.seen, count) == count && self.bounds.idle.is_some() {
                return Poll::Ready(End::Idle);
            }
            match next(self.bounds, now) {
                Some(at) => sleep.as_mut().reset(at),
                None => return Poll::Pending,
            }
        }
        Poll::Pending
    }
}

fn next(bounds: &Bounds, now: Instant) -> Option<Instant> {
    let idle = bounds.idle.map(|idle| now + idle);
    idle.into_iter().chain(bounds.until).min()
}
