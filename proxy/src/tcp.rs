//! A connection whose bytes are passed on as they are (`TcpProxy`): a cluster is chosen, an endpoint connected to,
//! and then bytes go both ways until both sides have ended. A side that breaks breaks the other: what was cut off
//! does not look like an end.

pub(crate) mod copy;
mod splice;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use socket2::SockRef;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use self::copy::{Bounds, End, Side};
use crate::config::listener::TcpSettings;
use crate::error::Error;
use crate::listener::arrival::{Slot, Undecided};
use crate::listener::chain::{ChainLocal, Local, ServesLocal, TcpLocal};
use crate::listener::transport::Transport;
use crate::listener::{ListenerLocal, Phase};
use crate::proxy_protocol::Addresses;
use crate::route::{Action, Forward, RequestHead, Route, RouteTable};
use crate::telemetry::access_log::Entry;
use crate::upstream::connect::Stream;
use crate::upstream::open::{self, Target};
use crate::upstream::original::Original;
use crate::worker::local::{ClusterLocal, Worker};

/// An accepted connection.
pub(crate) struct Connection {
    pub(crate) slot: Slot,
    pub(crate) listener: Rc<ListenerLocal>,
    pub(crate) chain: Rc<Local<TcpSettings, TcpLocal>>,
    /// The client, and where it wanted to go.
    pub(crate) addresses: Addresses,
    /// Where it was going to, where it was intercepted.
    pub(crate) original: Option<Original>,
}

/// A connection that is none of a chain's after all, once its client has spoken.
pub(crate) struct Others {
    pub(crate) slot: Slot,
    /// Whose it is.
    pub(crate) chain: Option<Rc<ChainLocal>>,
    pub(crate) socket: TcpStream,
    /// What was read of it.
    pub(crate) prefix: Bytes,
}

/// What becomes of it, as it becomes known.
struct Course {
    start: Instant,
    error: Option<Error>,
    route: Option<Arc<Route>>,
    cluster: Option<Rc<ClusterLocal>>,
    endpoint: Option<SocketAddr>,
    attempts: u32,
    connected: Option<Duration>,
    received: u64,
    sent: u64,
}

/// Serves a connection to its end, unless it turns out to be another chain's. `prefix` was read of it already.
pub(crate) async fn serve(
    connection: Connection,
    transport: Transport,
    prefix: Bytes,
    undecided: Option<Box<Undecided>>,
) -> Option<Box<Others>> {
    let local = connection.chain.get(&connection.listener.worker);
    let time = SystemTime::now();
    let mut course = Course {
        start: Instant::now(),
        error: None,
        route: None,
        cluster: None,
        endpoint: None,
        attempts: 0,
        connected: None,
        received: 0,
        sent: 0,
    };
    match carry(&connection, &local.tcp, &mut course, transport, prefix, undecided).await {
        // Whoever it is given to counts it.
        Ok(Some((chain, socket, prefix))) => {
            return Some(Box::new(Others { slot: connection.slot, chain, socket, prefix }));
        }
        Ok(None) => {}
        Err(error) => course.error = Some(error),
    }
    if let Some(cluster) = &course.cluster {
        cluster.cells.ended_connection(course.received, course.sent);
    }
    let listener = &connection.listener;
    listener.cells.ended_connection(course.error);
    local.logs.log(|| Entry {
        time,
        listener: Arc::clone(&listener.listener.name),
        request: None,
        client: connection.addresses.source.ip(),
        status: 0,
        error: course.error,
        route: course.route,
        cluster: course.cluster.map(|cluster| Arc::clone(&cluster.name)),
        endpoint: course.endpoint,
        attempts: course.attempts,
        received: course.received,
        sent: course.sent,
        duration: course.start.elapsed(),
        first_byte: course.connected,
    });
    None
}

/// What it gives is another chain's, with what was read.
async fn carry(
    connection: &Connection,
    settings: &TcpSettings,
    course: &mut Course,
    transport: Transport,
    mut prefix: Bytes,
    undecided: Option<Box<Undecided>>,
) -> Result<Option<(Option<Rc<ChainLocal>>, TcpStream, Bytes)>, Error> {
    let worker = &connection.listener.worker;
    let table = table(connection, settings, course.start);
    let table = connection.slot.until(table, Phase::Closed).await.ok_or(Error::Drained)??;
    let head = RequestHead {
        method: &Method::GET,
        uri: &Uri::from_static("/"),
        host: "",
        headers: &HeaderMap::new(),
        client: connection.addresses.source.ip(),
        random: fastrand::u64(..),
    };
    let decision = table.decide(&head, &mut ()).map_err(|_| Error::NoRoute)?;
    course.route = Some(Arc::clone(decision.route));
    let cluster = decision.target.as_ref().map(|target| target.cluster).ok_or(Error::NoCluster)?;
    let local = worker.cluster(cluster);
    let _active = Active::new(&local);
    course.cluster = Some(Rc::clone(&local));
    let cluster_settings = cluster.settings.load_full().ok_or(Error::NoCluster)?;
    let target = Target {
        cluster,
        local: &local,
        settings: &cluster_settings,
        tries: tries(decision.route),
        original: connection.original,
        client: Some(connection.addresses),
    };
    let opened = open::open(worker, target, |endpoint| {
        course.attempts += 1;
        course.endpoint = Some(endpoint.address());
    });
    // A client that waits is not read; its listener may end all the same.
    let opened = connection.slot.until(opened, Phase::Closed).await.ok_or(Error::Drained)?;
    let mut opened = opened.inspect_err(|_| reset(transport.socket()))?;
    course.connected = Some(course.start.elapsed());
    let bounds =
        Bounds { idle: settings.idle, until: settings.longest.map(|longest| course.start + longest) };
    let mut others = None;
    if let Some(undecided) = undecided
        && let (Transport::Plain(near), Stream::Plain(far)) = (&transport, &opened.stream)
    {
        let heard = bounded(connection, &bounds, undecided.hear(near, far)).await.and_then(|heard| heard);
        let (found, said) = heard.inspect_err(|error| {
            if matches!(error, Error::ClientGone | Error::Drained) {
                [near, far].into_iter().for_each(reset);
            }
        })?;
        prefix = said;
        others = found
            .map(|found| undecided.chain(&connection.listener, found))
            .filter(|chain| !chain.as_ref().is_some_and(|chain| is_of(connection, chain)));
    }
    let transport = match (others, transport) {
        // The endpoint has heard nothing of it.
        (Some(chain), Transport::Plain(socket)) => return Ok(Some((chain, socket, prefix))),
        (_, transport) => transport,
    };
    if !prefix.is_empty() {
        course.received = prefix.len() as u64;
        let writing = async {
            match &mut opened.stream {
                Stream::Plain(stream) => stream.write_all(&prefix).await,
                Stream::Tls(stream) => write_and_flush(stream, &prefix).await,
            }
        };
        let written = bounded(connection, &bounds, writing).await;
        let written = written.and_then(|written| written.map_err(|_| Error::UpstreamReset));
        written.inspect_err(|_| reset(transport.socket()))?;
        drop(prefix);
    }
    pass(connection, &bounds, course, transport, opened.stream, worker).await.map(|()| None)
}

/// Whether a connection is already served by a chain.
fn is_of(connection: &Connection, chain: &ChainLocal) -> bool {
    matches!(&chain.serves, ServesLocal::Tcp(tcp) if Rc::ptr_eq(tcp, &connection.chain))
}

/// Runs a step within a connection's bounds.
async fn bounded<T>(
    connection: &Connection,
    bounds: &Bounds,
    step: impl Future<Output = T>,
) -> Result<T, Error> {
    let idle = bounds.idle.map(|idle| (Instant::now() + idle, Error::StreamIdle));
    let old = bounds.until.map(|until| (until, Error::ConnectionTooOld));
    let mut step = pin!(connection.slot.until(step, Phase::Closed));
    let done = match idle.into_iter().chain(old).min_by_key(|(at, _)| *at) {
        Some((at, error)) => timeout_at(at, step.as_mut()).await.map_err(|_| error)?,
        None => step.await,
    };
    done.ok_or(Error::Drained)
}

/// The listener's own routes; on a sidecar's those of the service that has the address where the connection was going.
async fn table(
    connection: &Connection,
    settings: &TcpSettings,
    now: Instant,
) -> Result<Arc<RouteTable>, Error> {
    if let Some(by_name) = &settings.on_demand
        && let Some(original) = connection.original
    {
        let address = original.destination.ip().to_canonical();
        if by_name.names.is_virtual(address) {
            // Nobody else has it, so there is nowhere to pass it on to.
            let found = by_name.names.table_at(address, now).await;
            return found.inspect_err(|_| tracing::debug!(%address, "nobody has this virtual address"));
        }
        if !by_name.pass_unknown {
            return Err(Error::UnknownName);
        }
    }
    settings.routes.table.load_full().ok_or(Error::NoRouteTable)
}

/// Bytes both ways, to the end.
async fn pass(
    connection: &Connection,
    bounds: &Bounds,
    course: &mut Course,
    mut near: Transport,
    mut far: Stream,
    worker: &Rc<Worker>,
) -> Result<(), Error> {
    let moved = |from, length| match from {
        Side::Near => course.received += length as u64,
        Side::Far => course.sent += length as u64,
    };
    let closed = |cx: &mut std::task::Context<'_>| connection.slot.poll_phase(Phase::Closed, cx);
    let end = match &mut far {
        Stream::Plain(far) => copy::between(worker, &mut near, far, bounds, moved, closed).await,
        Stream::Tls(far) => copy::between(worker, &mut near, far, bounds, moved, closed).await,
    };
    match end {
        End::Complete => Ok(()),
        End::TooLong => Err(Error::ConnectionTooOld),
        End::Idle => Err(Error::StreamIdle),
        End::Broken(Side::Near, error) => {
            tracing::debug!(client = %connection.addresses.source, %error, "the client broke off");
            reset(far.socket());
            Err(Error::ClientGone)
        }
        End::Broken(Side::Far, error) => {
            tracing::debug!(endpoint = ?course.endpoint, %error, "the endpoint broke off");
            reset(near.socket());
            Err(Error::UpstreamReset)
        }
        End::Closed => {
            reset(near.socket());
            reset(far.socket());
            Err(Error::Drained)
        }
    }
}

async fn write_and_flush<W: AsyncWrite + Unpin>(to: &mut W, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

fn tries(route: &Route) -> u32 {
    match &route.action {
        Action::Forward(Forward { retry, .. }) => retry.max_retries.saturating_add(1),
        _ => 1,
    }
}

/// Has the socket end by a reset when it is closed.
fn reset(socket: &TcpStream) {
    // It may have gone already.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Counts a connection as open at its cluster.
struct Active<'a>(&'a ClusterLocal);

impl<'a> Active<'a> {
    fn new(cluster: &'a ClusterLocal) -> Self {
        cluster.cells.connections.add(1);
        Self(cluster)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.cells.connections.sub(1);
    }
}
