//! One client connection: which protocol it speaks, its clock, its end. An HTTP/1.1 connection with nothing in
//! flight is parked after half a second: hyper's buffers are dropped and only the registered socket is kept.
//! The clock ticks every half second at most, so that no request pays for a timer of the connection's.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, timeout};

use super::arrival::Slot;
use super::chain::{Local, Settings};
use super::frames::Flood;
use super::http2_io::Http2Io;
use super::io::Io;
use super::original::Way;
use super::streams::{StreamExec, Streams};
use super::transport::Transport;
use super::{LAST_CALL, ListenerLocal, Phase};
use crate::config::listener::{Codec, DownstreamTimeouts, HttpSettings};
use crate::error::Error;
use crate::http::client_certificate::Shown;
use crate::http::service::ProxyService;
use crate::http::tunnel::Tunnel;
use crate::telemetry::access_log::Entry;
use crate::upstream::original::Own;
use crate::worker::idle::Place;

/// The connection's clock. Idle for one whole tick: parked.
pub(crate) const TICK: Duration = Duration::from_millis(500);
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// HTTP/2 flow control: the connection's window is what bounds memory, as in Envoy's edge settings; a stream may
/// use a quarter of it, so that one upload is not held to 64 KiB a round trip.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Bounds, with the header list, how many CONTINUATION frames a head may have: five at 60 KiB.
const MAX_FRAME: u32 = 16 * 1024;
/// Streams reset by the peer before we have looked at them (rapid reset), and by us for its errors (made you
/// reset): above it the connection ends with ENHANCE_YOUR_CALM.
const MAX_PENDING_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 100;
/// A connection with this many streams, most of which the client reset early in their lives, ends. Envoy's
/// numbers (`overload.premature_reset_total_stream_count`, `premature_reset_min_stream_lifetime_seconds`).
const RESETS_JUDGED_AFTER: u64 = 500;
const EARLY_RESET: Duration = Duration::from_secs(1);
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// hyper's smallest.
const MIN_HEADER_BUFFER: usize = 8_192;
/// What is still read after an answer that ends the connection, so that the client gets to read it: bytes and
/// time (RFC 9112, 9.6).
const LINGER_BYTES: usize = 64 * 1024;
const LINGER: Duration = Duration::from_secs(2);

/// A connection's state, shared by its driver, its socket and its exchanges.
pub(crate) struct ConnState {
    pub(crate) listener: Rc<ListenerLocal>,
    chain: Rc<Local<HttpSettings, Settings>>,
    /// `https` through TLS, else `http`.
    pub(crate) scheme: &'static str,
    pub(crate) peer: SocketAddr,
    /// The socket's peer, who may have told by the PROXY protocol of `peer`.
    pub(crate) direct: IpAddr,
    /// How the connection came here.
    pub(crate) way: Way,
    /// The peer's address as `X-Forwarded-For` has it, made when it is asked for and let go while the connection is
    /// parked: what is small and long-lived keeps pages that are full of what has gone.
    peer_value: Cell<Option<HeaderValue>>,
    /// The certificate that the client has shown.
    pub(crate) shown: Option<Rc<Shown>>,
    born: Instant,
    pub(crate) in_flight: Cell<u32>,
    pub(crate) started: Cell<u64>,
    /// A request was of HTTP/1.0: an answer of which the length is not known ends with the connection.
    pub(crate) old: Cell<bool>,
    /// Of the heads of requests in flight.
    pub(crate) head_bytes: Cell<u32>,
    /// The socket did not take all we had.
    pub(crate) write_blocked: Cell<bool>,
    progress: Cell<u64>,
    /// Body frames of all exchanges; unlike `progress` it does not count pings.
    pub(crate) frames: Cell<u64>,
    /// What the connection becomes once the 101 has been written.
    pub(crate) tunnel: RefCell<Option<Box<Tunnel>>>,
    /// Why the bytes that come next are not read as a request, and who waits for the one in flight to end.
    pub(crate) refused: Cell<Option<Error>>,
    pub(crate) refusal_waker: Cell<Option<Waker>>,
    /// Why the body of the request in flight breaks off.
    pub(crate) refused_body: Cell<Option<Error>>,
    /// An answer that may be hyper's own to a head that it cannot parse, and whether it is to be written.
    pub(crate) withheld: RefCell<Vec<u8>>,
    pub(crate) release: Cell<bool>,
    /// The longest time without progress that a route of what is in flight allows.
    allowed_idle: Cell<Duration>,
    /// Streams that the client gave up soon after it had opened them.
    early_resets: Cell<u64>,
    pub(super) flood: Flood,
    /// Of an intercepted one: the endpoint that it was going to.
    pub(crate) own: Own,
    pub(crate) streams: Streams,
    slot: Slot,
}

impl ConnState {
    pub(super) fn new(
        slot: Slot,
        listener: Rc<ListenerLocal>,
        chain: Rc<Local<HttpSettings, Settings>>,
        (peer, direct): (SocketAddr, IpAddr),
        way: Way,
        transport: &Transport,
        shown: Option<Rc<Shown>>,
    ) -> Rc<Self> {
        let ip = peer.ip().to_canonical();
        let scheme = if matches!(transport, Transport::Tls(_)) { "https" } else { "http" };
        Rc::new(Self {
            listener,
            chain,
            scheme,
            peer: SocketAddr::new(ip, peer.port()),
            direct,
            way,
            peer_value: Cell::new(None),
            shown,
            born: Instant::now(),
            in_flight: Cell::new(0),
            started: Cell::new(0),
            old: Cell::new(false),
            head_bytes: Cell::new(0),
            write_blocked: Cell::new(false),
            progress: Cell::new(0),
            frames: Cell::new(0),
            tunnel: RefCell::new(None),
            refused: Cell::new(None),
            refusal_waker: Cell::new(None),
            refused_body: Cell::new(None),
            withheld: RefCell::default(),
            release: Cell::new(false),
            allowed_idle: Cell::new(Duration::ZERO),
            early_resets: Cell::new(0),
            flood: Flood::default(),
            own: Own::default(),
            streams: Streams::default(),
            slot,
        })
    }

    /// Shows the peer's address as a header's value.
    pub(crate) fn with_peer_value<T>(&self, use_it: impl FnOnce(&HeaderValue) -> T) -> T {
        let made = || HeaderValue::try_from(self.peer.ip().to_string());
        let value =
            self.peer_value.take().or_else(|| made().ok()).unwrap_or(HeaderValue::from_static("unknown"));
        let used = use_it(&value);
        self.peer_value.set(Some(value));
        used
    }

    pub(crate) fn progressed(&self) {
        self.progress.set(self.progress.get().wrapping_add(1));
    }

    pub(crate) fn progress(&self) -> u64 {
        self.progress.get()
    }

    /// An exchange has ended, given up by the client or not, after `elapsed`.
    pub(crate) fn ended_one(&self, given_up: bool, elapsed: Duration) {
        if given_up && elapsed < EARLY_RESET {
            self.early_resets.set(self.early_resets.get() + 1);
        }
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 {
            self.allowed_idle.set(Duration::ZERO);
        }
        if let Some(waker) = self.refusal_waker.take() {
            waker.wake();
        }
    }

    /// A request's route lets it go without progress for so long; `None` is for ever.
    pub(crate) fn allow_idle(&self, idle: Option<Duration>) {
        self.allowed_idle.set(self.allowed_idle.get().max(idle.unwrap_or(Duration::MAX)));
    }

    /// How long a connection with requests in flight may be without progress.
    fn stalled_after(&self, timeouts: &DownstreamTimeouts) -> Duration {
        self.allowed_idle.get().max(timeouts.stream_idle.unwrap_or(timeouts.idle))
    }

    /// Whether it has had as many requests as it may, or lived as long.
    pub(crate) fn is_spent(&self, settings: &HttpSettings, now: Instant) -> bool {
        let (limits, timeouts) = (&settings.limits, &settings.timeouts);
        limits.max_requests > 0 && self.started.get() >= limits.max_requests.into()
            || timeouts.longest_connection.is_some_and(|longest| now >= self.born + longest)
    }

    /// How long it may wait for a request. One that has lived as long as it may is told so by its next answer, and
    /// that is waited for until the drain time is over.
    fn may_rest(&self, timeouts: &DownstreamTimeouts) -> Duration {
        match timeouts.longest_connection {
            Some(longest) if !timeouts.end_with_answer => {
                let left = longest.saturating_add(timeouts.drain).saturating_sub(self.born.elapsed());
                timeouts.idle.min(left)
            }
            _ => timeouts.idle,
        }
    }

    /// What an HTTP/2 client does that no client needs to do: streams opened only to be reset (CVE-2023-44487),
    /// or frames without end that carry nothing.
    pub(super) fn abuse(&self) -> Option<Error> {
        let started = self.started.get();
        if started >= RESETS_JUDGED_AFTER && self.early_resets.get() * 2 > started {
            return Some(Error::RapidReset);
        }
        self.flood.is_one(self.work()).then_some(Error::ControlFlood)
    }

    /// Requests and body frames so far.
    fn work(&self) -> u64 {
        self.started.get() + self.frames.get()
    }

    /// The settings in force.
    pub(crate) fn settings(&self) -> Rc<Settings> {
        self.chain.get(&self.listener.worker)
    }

    fn watch(&self, cx: &Context<'_>) {
        self.slot.watch(cx);
    }

    /// Ready when the listener has come to `phase`.
    pub(crate) fn poll_phase(&self, phase: Phase, cx: &Context<'_>) -> Poll<()> {
        self.slot.poll_phase(phase, cx)
    }
}

/// Serves a connection to its end: one of HTTP/1.1 in turns busy and parked. What a busy one needs is in boxes of its
/// own, so that a parked one is small.
pub(super) async fn serve(conn: Rc<ConnState>, mut io: Box<Io>) {
    let http2 = match (conn.settings().http.codec, &io.stream) {
        (Codec::Http1, _) => Some(false),
        (Codec::Http2, _) => Some(true),
        (Codec::Auto, Transport::Plain(_)) => None,
        (Codec::Auto, Transport::Tls(tls)) => {
            tls.get_ref().1.alpn_protocol().map(|protocol| protocol == b"h2")
        }
    };
    let is_silent = io.prefix.is_empty() && io.stream.has_nothing();
    if http2 != Some(true) && is_silent && !Parked::new(&conn, io.stream.socket()).await {
        return;
    }
    let http2 = match http2 {
        Some(http2) => http2,
        None => match Box::pin(detect(&conn, io)).await {
            Some((detected, http2)) => {
                io = detected;
                http2
            }
            None => return,
        },
    };
    if http2 {
        return Box::pin(serve_http2(&conn, io)).await;
    }
    while let Some(idle) = Box::pin(serve_http1(&conn, io)).await {
        io = match idle.unused() {
            Ok(stream) => {
                conn.peer_value.take();
                if !Parked::new(&conn, stream.socket()).await {
                    return;
                }
                Box::new(Io::new(stream, Bytes::new(), Rc::clone(&conn)))
            }
            Err(begun) => begun,
        };
    }
}

/// Tells HTTP/2 with prior knowledge by its preface. Bytes that differ from it are HTTP/1.1's at once; a start of
/// it that never goes on is given up with the header timeout.
async fn detect(conn: &Rc<ConnState>, mut io: Box<Io>) -> Option<(Box<Io>, bool)> {
    let headers_within = conn.settings().http.timeouts.request_headers;
    let mut start = [0; PREFACE.len()];
    let mut have = 0;
    let read = async {
        while have < start.len() && start[..have] == PREFACE[..have] {
            match io.read(&mut start[have..]).await {
                Ok(0) | Err(_) => return false,
                Ok(length) => have += length,
            }
        }
        true
    };
    let complete = timeout(headers_within, read).await;
    io.unread(Bytes::copy_from_slice(&start[..have]));
    match complete {
        Ok(true) => Some((io, start == *PREFACE)),
        Ok(false) => None,
        Err(_) => {
            Box::pin(refuse_slow(conn, io)).await;
            None
        }
    }
}

pin_project_lite::pin_project! {
    /// Waits for bytes without holding a buffer. `false`: the connection has ended instead.
    struct Parked<'c> {
        conn: &'c ConnState,
        socket: &'c TcpStream,
        place: Place<'c>,
        #[pin]
        sleep: Sleep,
        drains: bool,
    }
}

impl<'c> Parked<'c> {
    fn new(conn: &'c ConnState, socket: &'c TcpStream) -> Self {
        let idle = conn.may_rest(&conn.settings().http.timeouts);
        let place = conn.listener.worker.idle.wait();
        Self { conn, socket, place, sleep: tokio::time::sleep(idle), drains: false }
    }
}

impl Future for Parked<'_> {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let mut this = self.project();
        let conn = *this.conn;
        while this.socket.poll_read_ready(cx).is_ready() {
            // A new connection is taken for ready until somebody has looked.
            let looked = this.socket.try_io(Interest::READABLE, || peek(this.socket));
            if !looked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                return Poll::Ready(true);
            }
        }
        if !*this.drains && conn.poll_phase(Phase::Leaving, cx).is_ready() {
            *this.drains = true;
            let last = Instant::now() + LAST_CALL;
            if last < this.sleep.deadline() {
                this.sleep.as_mut().reset(last);
            }
        }
        let closed = *this.drains && conn.poll_phase(Phase::Closed, cx).is_ready();
        if closed || this.place.is_lost(cx) || this.sleep.poll(cx).is_ready() {
            return Poll::Ready(!closed && has_arrived(this.socket));
        }
        Poll::Pending
    }
}

/// Whether the kernel has bytes that the runtime has not heard of yet.
fn has_arrived(socket: &TcpStream) -> bool {
    peek(socket).is_ok_and(|length| length > 0)
}

fn peek(socket: &TcpStream) -> io::Result<usize> {
    SockRef::from(socket).peek(&mut [MaybeUninit::uninit()])
}

/// Why an HTTP/1.1 connection stopped being driven.
enum End {
    /// hyper is done with it.
    Done(hyper::Result<()>),
    /// Nothing was in flight for a whole tick, or, when it drains, nothing has come.
    Idle,
    /// The headers did not arrive in time.
    SlowHeaders,
    /// It is to end now: the drain time is over, or the client does not read.
    Closed,
}

/// Serves an HTTP/1.1 connection until it may be parked. `None`: to its end.
async fn serve_http1(conn: &Rc<ConnState>, mut io: Box<Io>) -> Option<Box<Io>> {
    io.guard();
    let settings = conn.settings();
    let end;
    (io, end) = drive_http1(conn, io, &settings).await;
    match end {
        End::Idle => return Some(io),
        End::Done(result) => match conn.tunnel.take() {
            Some(tunnel) => {
                io.unguard();
                Box::pin(tunnel.run(*io)).await;
            }
            None => Box::pin(finish(conn, io, result)).await,
        },
        End::SlowHeaders => Box::pin(refuse_slow(conn, io)).await,
        End::Closed => {}
    }
    None
}

/// Serves requests until there is a reason to stop.
async fn drive_http1(conn: &Rc<ConnState>, io: Box<Io>, settings: &Settings) -> (Box<Io>, End) {
    let silent = io.prefix.is_empty();
    let mut http = http1_builder(settings).serve_connection(TokioIo::new(io), ProxyService::new(conn));
    let mut clock = Clock::new(conn, settings, silent);
    let mut tick = pin!(tokio::time::sleep(TICK));
    let end = poll_fn(|cx| {
        conn.watch(cx);
        if conn.listener.phase() == Phase::Closed {
            return Poll::Ready(End::Closed);
        }
        // To its shutdown: without, it can be done with an answer of which the client has not taken all.
        let mut polled = Pin::new(&mut http).poll(cx);
        if polled.is_pending() && !conn.withheld.borrow().is_empty() {
            // Not hyper's last word, so an upstream's answer that looks like it.
            conn.release.set(true);
            polled = Pin::new(&mut http).poll(cx);
        }
        if let Poll::Ready(result) = polled {
            return Poll::Ready(End::Done(result));
        }
        clock.poll(tick.as_mut(), cx)
    })
    .await;
    let parts = http.into_parts();
    let mut io = parts.io.into_inner();
    io.unread(parts.read_buf);
    (io, end)
}

fn http1_builder(settings: &Settings) -> http1::Builder {
    let limits = &settings.http.limits;
    let mut builder = http1::Builder::new();
    // Ours are counted by the connection's clock: hyper's costs a timer a request, and counts idle time too.
    builder.header_read_timeout(None);
    builder.max_header_size((limits.max_header_bytes as usize).max(MIN_HEADER_BUFFER));
    if limits.max_headers as usize > 100 {
        builder.max_headers(limits.max_headers as usize);
    }
    builder
}

/// The connection's own timeouts.
struct Clock<'a> {
    conn: &'a ConnState,
    first: u64,
    /// Nothing of a request has come yet.
    silent: bool,
    headers_by: Instant,
    /// As of the last tick.
    started: u64,
    /// As of the last progress, and when that was.
    progress: (u64, Instant),
    timeouts: &'a DownstreamTimeouts,
}

impl<'a> Clock<'a> {
    fn new(conn: &'a ConnState, settings: &'a Settings, silent: bool) -> Self {
        let now = Instant::now();
        let timeouts = &settings.http.timeouts;
        Self {
            conn,
            first: conn.started.get(),
            silent,
            headers_by: now + timeouts.request_headers,
            started: conn.started.get(),
            progress: (conn.progress(), now),
            timeouts,
        }
    }

    fn poll(&mut self, mut tick: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<End> {
        while tick.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if let Some(end) = self.look(now) {
                return Poll::Ready(end);
            }
            tick.as_mut().reset(now + TICK);
        }
        Poll::Pending
    }

    fn look(&mut self, now: Instant) -> Option<End> {
        let conn = self.conn;
        if conn.progress() != self.progress.0 {
            self.progress = (conn.progress(), now);
            self.silent = false;
        }
        let started = std::mem::replace(&mut self.started, conn.started.get());
        if conn.write_blocked.get() {
            // A client that does not read holds its upstream no longer than a stream may idle.
            let stalled_after = conn.stalled_after(self.timeouts);
            return (now - self.progress.1 >= stalled_after).then_some(End::Closed);
        }
        if conn.in_flight.get() > 0 {
            return None;
        }
        if conn.started.get() == self.first {
            if self.silent && conn.listener.phase() >= Phase::Leaving {
                return Some(End::Idle);
            }
            return (now >= self.headers_by).then_some(End::SlowHeaders);
        }
        (started == conn.started.get()).then_some(End::Idle)
    }
}

/// Ends a connection after hyper.
async fn finish(conn: &ConnState, mut io: Box<Io>, result: hyper::Result<()>) {
    if conn.old.get() && result.as_ref().is_err_and(hyper::Error::is_user) {
        // What was cut off must not look complete.
        let _ = SockRef::from(io.stream.socket()).set_linger(Some(Duration::ZERO));
        return;
    }
    let mut answers = conn.withheld.take();
    let unparsed = result.as_ref().is_err_and(hyper::Error::is_parse);
    // Of a head that our own guard refuses hyper knows nothing.
    let own = if unparsed { answers.split_off(last_word(&answers)) } else { Vec::new() };
    let cause = match conn.refused.take() {
        Some(refused) => Some(refused),
        None if !unparsed => None,
        None if own.get(9..12) == Some(b"414") => Some(Error::UriTooLong),
        None if result.is_err_and(|error| error.is_parse_too_large()) => Some(Error::HeadersTooLarge),
        None => Some(Error::Malformed),
    };
    // Whether the client still takes it does not matter: the connection ends.
    let _ = timeout(LINGER, io.stream.write_all(&answers)).await;
    if let Some(cause) = cause {
        refuse(conn, &mut io, cause).await;
    }
    // Where we end it while the client still sends, an early close would reset the answer on its way: our side
    // is shut, and a little more is read. Through TLS, to shut is to write, which a client can hold up.
    if let Ok(Ok(())) = timeout(LINGER, io.stream.shutdown()).await {
        linger(&mut io).await;
    }
}

/// Where hyper's answer to what it cannot parse begins, behind those to the requests before: the last one, and it ends the
/// connection.
fn last_word(answers: &[u8]) -> usize {
    let begins = |start: &[u8]| answers.windows(start.len()).rposition(|window| window == start);
    let last = begins(b"HTTP/1.1 4").max(begins(b"HTTP/1.0 4")).unwrap_or(answers.len());
    let says = |word: &[u8]| answers[last..].windows(word.len()).any(|window| window == word);
    // Of HTTP/1.0 it goes without saying.
    let closes = match answers[last..].starts_with(b"HTTP/1.0") {
        true => !says(b"connection: keep-alive"),
        false => says(b"connection: close"),
    };
    if closes { last } else { answers.len() }
}

async fn linger(io: &mut Io) {
    let mut waste = [0; 2048];
    let mut left = LINGER_BYTES;
    let read = async {
        while left > 0 {
            match io.stream.read(&mut waste).await {
                Ok(0) | Err(_) => return,
                Ok(length) => left = left.saturating_sub(length),
            }
        }
    };
    // Whether it ran out of time or of bytes, the connection is dropped.
    let _ = timeout(LINGER, read).await;
}

/// 408 to a client that has sent a part of a request and no more; nothing to one that has sent nothing.
async fn refuse_slow(conn: &ConnState, mut io: Box<Io>) {
    if io.prefix.is_empty() {
        return;
    }
    refuse(conn, &mut io, Error::HeaderTimeout).await;
    // Nothing to do about a failure: the connection is dropped next.
    let _ = timeout(LINGER, io.stream.shutdown()).await;
}

/// Counts and logs what never became a request, or was no request that one could answer.
fn note_refused(conn: &ConnState, status: u16, error: Error) {
    conn.listener.cells.ended(status, Some(error));
    let name = &conn.listener.listener.name;
    conn.settings().logs.log(|| Entry { status, ..Entry::refused(name, conn.peer.ip(), error) });
}

/// Answers, counts and logs what never became a request.
async fn refuse(conn: &ConnState, io: &mut Io, error: Error) {
    let status = error.status();
    note_refused(conn, status.as_u16(), error);
    let (body, reason) = (error.body(), error.reason());
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\nx-pontoon-reason: {reason}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // Nothing to do about a failure: the connection is dropped next.
    let _ = timeout(LINGER, io.stream.write_all(answer.as_bytes())).await;
}

async fn serve_http2(conn: &Rc<ConnState>, io: Box<Io>) {
    let (io, sends) = Http2Io::new(*io, conn);
    let settings = conn.settings();
    let (limits, timeouts) = (&settings.http.limits, &settings.http.timeouts);
    let mut builder = http2::Builder::new(StreamExec(Rc::clone(conn)));
    if settings.http.extended_connect {
        builder.enable_connect_protocol();
    }
    let mut http = pin!(
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.max_concurrent_streams)
            .max_header_list_size(limits.max_header_bytes)
            .max_frame_size(MAX_FRAME)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(MAX_SEND_BUFFER)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(io), ProxyService::new(conn))
    );
    let mut tick = pin!(tokio::time::sleep(TICK));
    let mut busy = (conn.started.get(), Instant::now());
    let mut progress = (conn.work(), Instant::now());
    let mut moved = (conn.progress(), Instant::now());
    let mut sent = 0;
    let mut closing = None;
    let mut place = None;
    poll_fn(|cx| {
        conn.watch(cx);
        let phase = conn.listener.phase();
        if phase == Phase::Closed {
            return Poll::Ready(());
        }
        let silent = conn.started.get() == 0;
        let listener_leaves = match phase {
            Phase::Running => false,
            Phase::LameDuck => !silent,
            // Who comes late, such as a probe, is served before it is told; one that asks for nothing is waited for a
            // moment.
            Phase::Leaving => !silent || conn.born.elapsed() >= LAST_CALL,
            Phase::Handover | Phase::Draining | Phase::Closed => true,
        };
        let leaving = listener_leaves
            || limits.max_requests > 0 && conn.started.get() >= limits.max_requests.into()
            || place.as_ref().is_some_and(|place: &Place<'_>| place.is_lost(cx));
        if leaving && closing.is_none() {
            closing = Some(Instant::now());
            http.as_mut().graceful_shutdown();
        }
        let polled = http.as_mut().poll(cx);
        conn.write_blocked.set(sends.poll_send(cx).is_pending());
        if sends.sent() != sent {
            sent = sends.sent();
            conn.progressed();
        }
        if polled.is_ready() {
            if let Some(error) = conn.refused.take() {
                note_refused(conn, 0, error);
            }
            return Poll::Ready(());
        }
        while tick.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            tick.as_mut().reset(now + TICK);
            conn.flood.forget(conn.work());
            conn.streams.tick(now);
            if conn.work() != progress.0 {
                progress = (conn.work(), now);
            }
            if conn.progress() != moved.0 {
                moved = (conn.progress(), now);
            }
            // What a client does not read may be no answer, and nothing else ends then: not even by a GOAWAY.
            let patience = if closing.is_some() { LINGER } else { conn.stalled_after(timeouts) };
            if conn.in_flight.get() == 0 && conn.write_blocked.get() && now - moved.1 >= patience {
                return Poll::Ready(());
            }
            if conn.in_flight.get() > 0 || conn.started.get() != busy.0 {
                busy = (conn.started.get(), now);
                place = None;
                if now - progress.1 >= conn.stalled_after(timeouts) {
                    return Poll::Ready(());
                }
            } else {
                place.get_or_insert_with(|| conn.listener.worker.idle.wait());
            }
            let rested = conn.in_flight.get() == 0 && now - busy.1 >= timeouts.idle;
            let is_old = timeouts.longest_connection.is_some_and(|longest| now >= conn.born + longest);
            if (rested || is_old) && closing.is_none() {
                closing = Some(now);
                http.as_mut().graceful_shutdown();
                cx.waker().wake_by_ref();
            }
            // Without the client's preface hyper does not end.
            if closing.is_some_and(|since| conn.started.get() == 0 && now - since >= LINGER) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    })
    .await;
}
