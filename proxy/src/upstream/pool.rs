//! One worker's connections to one endpoint. HTTP/1.1: idle ones wait in a stack, so that the last used is the
//! next used and the rest grow old. HTTP/2: streams share connections, and one opening serves all who wait.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::cluster::{ClusterSettings, Endpoint, UpstreamProtocol};
use super::connect;
use super::dial::Dialer;
use super::http1::{Http1, Socket};
use super::http2::{Answer, Duplex, Http2};
use crate::error::Error;
use crate::http::body::RequestBody;
use crate::resilience::breakers::{Breaker, Held};
use crate::tls::client::ClientTls;

/// Until who waits for room looks by itself.
const LOOK: Duration = Duration::from_millis(100);
/// Idle HTTP/1.1 connections that a worker keeps to one endpoint.
const MAX_IDLE: usize = 512;

/// The pool of one endpoint. Lives as long as the endpoint is in force; requests in flight hold what they use.
#[derive(Debug)]
pub(crate) struct EndpointPool {
    endpoint: Weak<Endpoint>,
    dialer: Dialer,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    opening: Cell<bool>,
    opened: Notify,
    /// Why the last opening failed, for those who waited for it.
    failed: Cell<Option<Error>>,
    held: Rc<HeldOpen>,
}

/// What of the cluster's circuit breakers a pool has.
#[derive(Debug, Default)]
struct HeldOpen {
    connections: Cell<usize>,
    /// A connection has become free, or may be made.
    freed: Notify,
}

/// A connection that counts, until it is dropped.
#[derive(Debug)]
pub(super) struct Open {
    pool: Rc<HeldOpen>,
    _held: Held,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.pool.connections.set(self.pool.connections.get() - 1);
        self.pool.freed.notify_one();
    }
}

#[derive(Debug)]
struct Idle {
    connection: Box<Http1>,
    /// What the endpoint was verified by.
    tls: Option<Arc<ClientTls>>,
    since: Instant,
    timeout: Duration,
}

impl Idle {
    /// Whether it may take one more request.
    fn is_fresh(&self, now: Instant) -> bool {
        !self.connection.has_ended()
            && now.saturating_duration_since(self.since) < self.timeout
            && !self.connection.wear.is_out(now)
    }
}

/// An HTTP/2 connection and the streams this worker has on it.
#[derive(Debug)]
struct Shared {
    connection: Http2,
    tls: Option<Arc<ClientTls>>,
    idle_since: Cell<Instant>,
    timeout: Duration,
}

impl Shared {
    fn is_usable(&self, settings: &ClusterSettings, now: Instant) -> bool {
        same(self.tls.as_ref(), settings.tls.as_ref())
            && self.connection.has_room()
            && !self.connection.is_closed()
            && !self.connection.wear.get().is_out(now)
    }

    /// Whether it has ended, or carries nothing and takes nothing more.
    fn is_spent(&self, now: Instant) -> bool {
        self.connection.is_closed()
            || self.connection.streams() == 0 && self.connection.wear.get().is_out(now)
    }
}

/// A connection that other authorities or names vouched for is not used again once the cluster has changed.
fn same(one: Option<&Arc<ClientTls>>, other: Option<&Arc<ClientTls>>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        _ => false,
    }
}

enum Connection {
    Http1(Box<Http1>),
    /// With the answer, once its head has come.
    Http2(Rc<Shared>, Option<Answer>),
}

/// A request that was not answered.
pub(crate) struct Failed {
    pub(crate) error: Error,
    /// Nothing of it was sent.
    pub(crate) request: Option<Box<Request<RequestBody>>>,
}

impl EndpointPool {
    pub(crate) fn new(endpoint: &Arc<Endpoint>, dialer: Dialer) -> Self {
        Self {
            endpoint: Arc::downgrade(endpoint),
            dialer,
            idle: RefCell::default(),
            shared: RefCell::default(),
            opening: Cell::new(false),
            opened: Notify::new(),
            failed: Cell::new(None),
            held: Rc::default(),
        }
    }

    /// A connection for one request: a live one from the pool, or a new one.
    pub(crate) async fn lease(
        self: &Rc<Self>,
        endpoint: &Arc<Endpoint>,
        settings: &ClusterSettings,
        breaker: Option<&Arc<Breaker>>,
        fresh: bool,
        now: Instant,
    ) -> Result<Lease, Error> {
        let (connection, reused) = match settings.protocol {
            UpstreamProtocol::Http1 => {
                let idle = if fresh { None } else { self.take_idle(settings, now) };
                match idle {
                    Some(idle) => (Connection::Http1(idle), true),
                    // Boxed, here and below, so that requests that find a connection do not carry room for making one.
                    None => Box::pin(self.http1(endpoint, settings, breaker, fresh, now)).await?,
                }
            }
            UpstreamProtocol::Http2 => {
                let (shared, reused) = self.shared(endpoint, settings, breaker, now).await?;
                shared.connection.add_stream();
                (Connection::Http2(shared, None), reused)
            }
        };
        let mut lease = self.lend(endpoint, connection, reused, settings);
        if let Some(breaker) = breaker {
            match breaker.request() {
                Ok(held) => lease.held = Some(Box::new(held)),
                Err(error) => {
                    lease.give_back(now);
                    return Err(error);
                }
            }
        }
        Ok(lease)
    }

    /// A new connection, or one that others give back where no more may be made. `fresh`: a new one.
    async fn http1(
        &self,
        endpoint: &Arc<Endpoint>,
        settings: &ClusterSettings,
        breaker: Option<&Arc<Breaker>>,
        fresh: bool,
        now: Instant,
    ) -> Result<(Connection, bool), Error> {
        let _pending = breaker.map(Breaker::pending).transpose()?;
        let open = loop {
            match self.may_open(breaker) {
                Some(open) => break open,
                // One that rests makes room for a new one.
                None if fresh && self.idle.borrow_mut().pop().is_some() => continue,
                None => self.held.freed.notified().await,
            }
            if !fresh && let Some(idle) = self.take_idle(settings, now) {
                return Ok((Connection::Http1(idle), true));
            }
        };
        let mut new = connect::http1(&self.dialer, endpoint, settings).await?;
        new.open = open;
        Ok((Connection::Http1(new), false))
    }

    /// Whether a connection may be made, and what counts it. As in Envoy a pool without any may always make one: nobody
    /// would give it one back.
    fn may_open(&self, breaker: Option<&Arc<Breaker>>) -> Option<Option<Box<Open>>> {
        let Some(breaker) = breaker else { return Some(None) };
        let held = breaker.connection(self.held.connections.get() == 0)?;
        self.held.connections.set(self.held.connections.get() + 1);
        Some(Some(Box::new(Open { pool: Rc::clone(&self.held), _held: held })))
    }

    fn lend(
        self: &Rc<Self>,
        endpoint: &Arc<Endpoint>,
        mut connection: Connection,
        reused: bool,
        settings: &ClusterSettings,
    ) -> Lease {
        match &mut connection {
            Connection::Http1(one) => one.wear = one.wear.by_one(),
            Connection::Http2(shared, _) => shared.connection.wear.set(shared.connection.wear.get().by_one()),
        }
        endpoint.active.fetch_add(1, Relaxed);
        endpoint.requests.fetch_add(1, Relaxed);
        Lease {
            held: None,
            connection: Some(connection),
            endpoint: Arc::clone(endpoint),
            pool: Rc::clone(self),
            idle_timeout: settings.idle_timeout,
            tls: settings.tls.clone(),
            reused,
            answered: false,
        }
    }

    fn take_idle(&self, settings: &ClusterSettings, now: Instant) -> Option<Box<Http1>> {
        let mut idle = self.idle.borrow_mut();
        while let Some(last) = idle.pop() {
            if same(last.tls.as_ref(), settings.tls.as_ref()) && last.is_fresh(now) {
                return Some(last.connection);
            }
        }
        None
    }

    async fn shared(
        &self,
        endpoint: &Arc<Endpoint>,
        settings: &ClusterSettings,
        breaker: Option<&Arc<Breaker>>,
        now: Instant,
    ) -> Result<(Rc<Shared>, bool), Error> {
        let mut pending = None;
        let open = loop {
            // The oldest first: few connections with many streams have more to write in a turn, and the others grow old.
            let found =
                self.shared.borrow().iter().find(|shared| shared.is_usable(settings, now)).map(Rc::clone);
            if let Some(shared) = found {
                return Ok((shared, true));
            }
            if let (None, Some(breaker)) = (&pending, breaker) {
                pending = Some(breaker.pending()?);
            }
            if !self.opening.get() {
                self.drop_spent(now);
                if let Some(open) = self.may_open(breaker) {
                    break open;
                }
                // A stream that ends makes room for one, a new connection for many; and an endpoint that reads on, or takes
                // more, tells nobody.
                tokio::select! {
                    () = self.held.freed.notified() => {}
                    () = self.opened.notified() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
                continue;
            }
            self.opened.notified().await;
            let usable = self.shared.borrow().iter().any(|shared| shared.is_usable(settings, now));
            if let (false, Some(error)) = (usable, self.failed.get()) {
                return Err(error);
            }
        };
        let opening = Opening::new(self);
        let result = Box::pin(connect::http2(&self.dialer, endpoint, settings)).await;
        self.failed.set(result.as_ref().err().copied());
        let shared = result.map(|mut connection| {
            connection.open = open;
            Rc::new(Shared {
                connection,
                tls: settings.tls.clone(),
                idle_since: Cell::new(now),
                timeout: settings.idle_timeout,
            })
        });
        if let Ok(shared) = &shared {
            self.shared.borrow_mut().push(Rc::clone(shared));
        }
        drop(opening);
        shared.map(|shared| (shared, false))
    }

    /// Drops what has closed or idled too long. `false`: the endpoint has gone, drop the pool.
    pub(crate) fn sweep(&self, now: Instant) -> bool {
        self.idle.borrow_mut().retain(|idle| idle.is_fresh(now));
        self.drop_spent(now);
        self.shared.borrow_mut().retain(|shared| {
            shared.connection.streams() > 0
                || now.saturating_duration_since(shared.idle_since.get()) < shared.timeout
        });
        self.endpoint.strong_count() > 0
    }

    /// One on which a request was not answered is the last that is taken: it may be sick.
    fn put_behind(&self, sick: &Rc<Shared>) {
        let mut all = self.shared.borrow_mut();
        if let Some(at) = all.iter().position(|shared| Rc::ptr_eq(shared, sick)) {
            all[at..].rotate_left(1);
        }
    }

    /// Drops HTTP/2 connections that will carry nothing more.
    fn drop_spent(&self, now: Instant) {
        self.shared.borrow_mut().retain(|shared| !shared.is_spent(now));
    }
}

/// Lets the waiting go on, whatever becomes of the opening.
struct Opening<'a>(&'a EndpointPool);

impl<'a> Opening<'a> {
    fn new(pool: &'a EndpointPool) -> Self {
        pool.opening.set(true);
        pool.failed.set(None);
        Self(pool)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.opening.set(false);
        self.0.opened.notify_waiters();
    }
}

/// A connection on loan to one exchange, which counts as in flight at the endpoint until this is dropped.
pub(crate) struct Lease {
    connection: Option<Connection>,
    endpoint: Arc<Endpoint>,
    pool: Rc<EndpointPool>,
    idle_timeout: Duration,
    tls: Option<Arc<ClientTls>>,
    /// Counts the request, where the cluster has circuit breakers.
    held: Option<Box<Held>>,
    /// The connection has carried a request before.
    pub(crate) reused: bool,
    /// Over HTTP/2: the head of the answer has come.
    answered: bool,
}

impl Lease {
    /// Where the connection goes.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends the request, until the head of its answer has come. The body is the lease's own.
    pub(crate) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<()>, Failed>> {
        // An `async fn` would hold the request as well as what sends it.
        let begun = match &mut self.connection {
            // It may have been closed as soon as it was made. One that has rested was looked at when it was taken.
            Some(Connection::Http1(one)) if !self.reused && one.has_ended() => {
                Err(Failed { error: Error::UpstreamReset, request: Some(Box::new(request)) })
            }
            Some(Connection::Http1(one)) => {
                one.begin(request);
                Ok(None)
            }
            Some(Connection::Http2(shared, _)) => shared.connection.begin(request).map(Some),
            None => Err(Failed { error: Error::UpstreamReset, request: None }),
        };
        async move {
            let answered = match (&mut self.connection, begun?) {
                (Some(Connection::Http2(_, answer)), Some(mut begun)) => {
                    poll_fn(|cx| begun.poll_head(cx)).await.map(|(response, begins)| {
                        *answer = Some(begins);
                        self.answered = true;
                        response
                    })
                }
                (Some(Connection::Http1(one)), _) => poll_fn(|cx| one.poll_head(cx)).await,
                _ => Err(Error::UpstreamReset),
            };
            answered.map_err(|error| Failed { error, request: None })
        }
    }

    /// After a 101 of HTTP/1.1: what of the other protocol was read already, and what it is spoken on.
    pub(crate) fn switched(&mut self) -> Option<(Bytes, Socket)> {
        match &mut self.connection {
            Some(Connection::Http1(one)) => Some(one.switched()),
            _ => None,
        }
    }

    /// After a CONNECT of HTTP/2 that was granted: what follows.
    pub(crate) fn tunnel(&mut self) -> Option<Duplex> {
        match &mut self.connection {
            Some(Connection::Http2(_, answer)) => answer.take()?.into_tunnel(),
            _ => None,
        }
    }

    /// Gives the connection back after an exchange that both sides have completed.
    pub(crate) fn give_back(mut self, now: Instant) {
        if let Some(Connection::Http1(mut connection)) =
            self.connection.take_if(|c| matches!(c, Connection::Http1(_)))
            && connection.rest()
            && !connection.wear.is_out(now)
            && self.pool.endpoint.strong_count() > 1
        {
            let mut idle = self.pool.idle.borrow_mut();
            if idle.len() < MAX_IDLE {
                let (tls, timeout) = (self.tls.take(), self.idle_timeout);
                let counts = connection.open.is_some();
                idle.push(Idle { connection, tls, since: now, timeout });
                if counts {
                    self.pool.held.freed.notify_one();
                }
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.active.fetch_sub(1, Relaxed);
        match &self.connection {
            Some(Connection::Http2(shared, _)) => {
                shared.connection.remove_stream();
                if !self.answered {
                    self.pool.put_behind(shared);
                }
                if shared.connection.streams() > 0 && shared.connection.open.is_none() {
                    return;
                }
                let now = Instant::now();
                shared.idle_since.set(now);
                if shared.connection.open.is_some() {
                    if shared.is_spent(now) {
                        self.pool.drop_spent(now);
                    }
                    self.pool.held.freed.notify_one();
                }
            }
            // One of HTTP/1.1 that is not given back is closed.
            Some(Connection::Http1(_)) | None => {}
        }
    }
}

/// The answer's body.
impl Body for Lease {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.get_mut().connection {
            Some(Connection::Http1(one)) => one.poll_frame(cx),
            Some(Connection::Http2(_, Some(answer))) => answer.poll_frame(cx),
            Some(Connection::Http2(_, None)) | None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.connection {
            Some(Connection::Http1(one)) => one.is_end_stream(),
            Some(Connection::Http2(_, Some(answer))) => answer.is_end_stream(),
            Some(Connection::Http2(_, None)) | None => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.connection {
            Some(Connection::Http1(one)) => one.size_hint(),
            Some(Connection::Http2(_, Some(answer))) => answer.size_hint(),
            Some(Connection::Http2(_, None)) | None => SizeHint::with_exact(0),
        }
    }
}
