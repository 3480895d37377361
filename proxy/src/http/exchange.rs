//! What is known of one request, shared by its two bodies and written down once, when both have gone.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, SystemTime};

use http::{HeaderValue, Method, Uri, Version};
use tokio::time::Instant;

use crate::error::Error;
use crate::http::grpc_web::Web;
use crate::listener::chain::Settings;
use crate::listener::connection::ConnState;
use crate::listener::streams::Seat;
use crate::route::Route;
use crate::telemetry::access_log::{Entry, RequestLine};
use crate::upstream::cluster::Endpoint;
use crate::worker::local::{ClusterLocal, Worker};

/// Heads of one connection's requests in flight: twenty KiB for each of a hundred streams.
const HEAD_BYTES: u32 = 2 * 1024 * 1024;

/// An end, and what it is then said to be.
pub(crate) type Deadline = (Instant, Error);

/// One request. Dropped when its answer, and what of its body is still on the way, are done.
pub(crate) struct Exchange {
    pub(crate) conn: Rc<ConnState>,
    pub(crate) start: Instant,
    pub(crate) settings: Rc<Settings>,
    pub(crate) cluster: RefCell<Option<Rc<ClusterLocal>>>,
    pub(crate) error: Cell<Option<Error>>,
    pub(crate) status: Cell<u16>,
    pub(crate) attempts: Cell<u32>,
    /// How long others were asked whether it may go on: the route's times begin after that.
    pub(crate) asked_ms: Cell<u32>,
    pub(crate) received: Cell<u64>,
    pub(crate) sent: Cell<u64>,
    /// The request's body has been read to its end.
    pub(crate) request_done: Cell<bool>,
    /// The rest of its body, or of the gRPC message that it has begun, is wanted, and the client has not sent it.
    pub(crate) starved: Cell<bool>,
    /// The answer has been given to the connection to its end.
    pub(crate) response_done: Cell<bool>,
    /// The client speaks gRPC: what we answer ourselves is an answer of that.
    pub(crate) grpc: Cell<bool>,
    /// In gRPC-Web's form.
    pub(crate) web: Cell<Option<Web>>,
    /// Bytes of the head, which count for the connection's budget.
    head: Cell<u32>,
    /// Counts frames either way, so that a timer can tell progress from none.
    pub(crate) progress: Cell<u32>,
    /// The answer has ended without the rest of the request's body: nobody wants that any more.
    pub(crate) abandoned: Cell<bool>,
    /// When it ends whatever happens, and the time without progress, as far as there are such.
    pub(crate) bounds: Cell<(Option<Deadline>, Option<Duration>)>,
    /// Over HTTP/2, among the connection's streams.
    pub(crate) seat: Seat,
    /// Of whoever waits for the request's body.
    pub(crate) body_waker: RefCell<Option<Waker>>,
    log: RefCell<Option<Box<LogHead>>>,
}

/// What only the access log wants; kept only where there is one.
struct LogHead {
    time: SystemTime,
    method: Method,
    path: Uri,
    version: Version,
    host: Option<HeaderValue>,
    client: std::net::IpAddr,
    request_id: Option<HeaderValue>,
    route: Option<Arc<Route>>,
    endpoint: Option<Arc<Endpoint>>,
    first_byte: Option<Instant>,
}

/// Longer than a busy worker takes to come to a timer that has run out.
const LATE: Duration = Duration::from_millis(500);

impl Exchange {
    pub(crate) fn begin<B>(conn: Rc<ConnState>, request: &http::Request<B>) -> Rc<Self> {
        let settings = conn.settings();
        let idle = settings.http.timeouts.stream_idle;
        conn.started.set(conn.started.get() + 1);
        conn.in_flight.set(conn.in_flight.get() + 1);
        conn.listener.cells.active.add(1);
        let log = (!settings.logs.is_empty()).then(|| {
            Box::new(LogHead {
                time: SystemTime::now(),
                method: request.method().clone(),
                path: request.uri().clone(),
                version: request.version(),
                host: request.headers().get(http::header::HOST).cloned(),
                client: conn.peer.ip(),
                request_id: None,
                route: None,
                endpoint: None,
                first_byte: None,
            })
        });
        Rc::new(Self {
            conn,
            start: Instant::now(),
            settings,
            cluster: RefCell::new(None),
            error: Cell::new(None),
            status: Cell::new(0),
            attempts: Cell::new(0),
            asked_ms: Cell::new(0),
            received: Cell::new(0),
            sent: Cell::new(0),
            request_done: Cell::new(false),
            starved: Cell::new(false),
            response_done: Cell::new(false),
            grpc: Cell::new(false),
            web: Cell::new(None),
            head: Cell::new(0),
            progress: Cell::new(0),
            abandoned: Cell::new(false),
            bounds: Cell::new((None, idle)),
            seat: Seat::default(),
            body_waker: RefCell::new(None),
            log: RefCell::new(log),
        })
    }

    pub(crate) fn worker(&self) -> &Rc<Worker> {
        &self.conn.listener.worker
    }

    pub(crate) fn progressed(&self) {
        self.progress.set(self.progress.get().wrapping_add(1));
        self.conn.frames.set(self.conn.frames.get().wrapping_add(1));
    }

    /// Which of its bounds is broken, `rested` after its last progress. The exchange and its bodies see to it themselves
    /// while they are asked for, with an answer where that is still possible, and have [`LATE`] for it; a client that
    /// opens no window asks for nothing.
    pub(crate) fn overdue(&self, now: Instant, rested: Duration) -> Option<Error> {
        let (total, idle) = self.bounds.get();
        if let Some((_, error)) = total.filter(|(total, _)| now.saturating_duration_since(*total) >= LATE) {
            return Some(error);
        }
        idle.is_some_and(|idle| rested.saturating_sub(LATE) >= idle).then_some(Error::StreamIdle)
    }

    /// Takes the head's bytes from the connection's budget, until the exchange has ended. A head is held in several
    /// forms while it is sent on, and an HTTP/2 client can name a large one by a few bytes.
    pub(crate) fn hold_head(&self, bytes: u32) -> Result<(), Error> {
        let held = self.conn.head_bytes.get() + bytes;
        if held > HEAD_BYTES {
            return Err(Error::HeadersTooLarge);
        }
        self.conn.head_bytes.set(held);
        self.head.set(bytes);
        Ok(())
    }

    /// Ends the request's body where it is not done: without it, an upstream connection would wait for a client
    /// that has nothing more to say, and the client's for the upstream.
    pub(crate) fn abandon_request(&self) {
        if !self.request_done.get() {
            self.abandoned.set(true);
            if let Some(waker) = self.body_waker.take() {
                waker.wake();
            }
        }
    }

    /// Notes the error that ends the exchange; the first one counts.
    pub(crate) fn fail(&self, error: Error) -> Error {
        let first = self.error.get().unwrap_or(error);
        self.error.set(Some(first));
        first
    }

    pub(crate) fn note_head(
        &self,
        path: &Uri,
        host: &HeaderValue,
        client: std::net::IpAddr,
        id: Option<&HeaderValue>,
    ) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.path.clone_from(path);
            log.host = Some(host.clone());
            log.client = client;
            log.request_id = id.cloned();
        }
    }

    pub(crate) fn note_route(&self, route: &Arc<Route>) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.route = Some(Arc::clone(route));
        }
    }

    pub(crate) fn note_endpoint(&self, endpoint: &Arc<Endpoint>) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.endpoint = Some(Arc::clone(endpoint));
        }
    }

    pub(crate) fn note_first_byte(&self) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.first_byte = Some(Instant::now());
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.conn.head_bytes.set(self.conn.head_bytes.get() - self.head.get());
        if !self.response_done.get() && self.error.get().is_none() {
            self.error.set(Some(Error::ClientGone));
        }
        let (status, error) = (self.status.get(), self.error.get());
        let elapsed = self.start.elapsed();
        let listener = &self.conn.listener;
        listener.cells.active.sub(1);
        listener.cells.ended(status, error);
        let cluster = self.cluster.take();
        if let Some(cluster) = &cluster {
            cluster.cells.active.sub(1);
            cluster.cells.ended(status);
            cluster.cells.latency.observe(elapsed);
            if error.is_some_and(|error| error.fault() == crate::error::Fault::Upstream) {
                cluster.cells.failures.add(1);
            }
        }
        if let Some(log) = self.log.take() {
            self.settings.logs.log(|| Entry {
                time: log.time,
                listener: Arc::clone(&listener.listener.name),
                request: Some(RequestLine {
                    method: log.method,
                    path: log.path,
                    version: log.version,
                    host: log.host,
                    request_id: log.request_id,
                }),
                client: log.client,
                status,
                error,
                route: log.route,
                cluster: cluster.map(|cluster| Arc::clone(&cluster.name)),
                endpoint: log.endpoint.map(|endpoint| endpoint.address()),
                attempts: self.attempts.get(),
                received: self.received.get(),
                sent: self.sent.get(),
                duration: elapsed,
                first_byte: log.first_byte.map(|at| at - self.start),
            });
        }
        self.conn.streams.ends(&self.seat);
        self.conn.ended_one(error == Some(Error::ClientGone), elapsed);
    }
}
