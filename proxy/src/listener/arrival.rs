//! From an accepted socket to a connection with a filter chain: its first bytes are looked at where the listener
//! says so, a chain is chosen, and TLS is terminated. A connection that no chain takes is closed.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use rustls::HandshakeKind;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::chain::{ChainLocal, ServesLocal};
use super::connection::{self, ConnState};
use super::inspect::{Beginning, Inspector, Refused};
use super::io::Io;
use super::original::Way;
use super::transport::{Rewound, Transport};
use super::{LAST_CALL, ListenerLocal, Phase};
use crate::config::chains::{ChainTls, Inspect, Seen};
use crate::error::Error;
use crate::http::client_certificate::Shown;
use crate::overload::Permit;
use crate::proxy_protocol::Addresses;
use crate::tcp;

/// Read at once of a connection whose beginning is looked at.
const CHUNK: usize = 2_048;

/// A connection's place among those of its listener: counted, and woken when the listener's phase changes.
pub(crate) struct Slot {
    listener: Rc<ListenerLocal>,
    index: usize,
    _permit: Permit,
}

impl Slot {
    fn new(listener: Rc<ListenerLocal>, permit: Permit) -> Slot {
        let index = listener.register();
        Slot { listener, index, _permit: permit }
    }

    pub(crate) fn watch(&self, cx: &Context<'_>) {
        self.listener.set_waker(self.index, cx.waker());
    }

    /// Ready when the listener has come to `phase`.
    pub(crate) fn poll_phase(&self, phase: Phase, cx: &Context<'_>) -> Poll<()> {
        self.watch(cx);
        if self.listener.phase() >= phase { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Runs `step`, but not for longer than `limit`, nor beyond the listener's `phase`.
    async fn bounded<T>(&self, step: impl Future<Output = T>, limit: Duration, phase: Phase) -> Option<T> {
        self.until(timeout(limit, step), phase).await?.ok()
    }

    /// Runs `step`, but not beyond the listener's `phase`.
    pub(crate) async fn until<T>(&self, step: impl Future<Output = T>, phase: Phase) -> Option<T> {
        let mut step = pin!(step);
        poll_fn(|cx| match step.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => self.poll_phase(phase, cx).map(|()| None),
        })
        .await
    }

    /// Runs `step`, but not beyond the last call of a listener that drains.
    async fn until_last_call<T>(&self, step: impl Future<Output = T>) -> Option<T> {
        let mut step = pin!(step);
        match self.until(step.as_mut(), Phase::Draining).await {
            Some(done) => Some(done),
            None => self.bounded(step, LAST_CALL, Phase::Closed).await,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.listener.deregister(self.index);
    }
}

/// Serves an accepted socket to its end. The task of a connection has room for all that it may await, as long as it
/// lives: what is only of the beginning, or of few connections, is in boxes that go.
pub(super) fn serve(
    listener: Rc<ListenerLocal>,
    socket: TcpStream,
    peer: SocketAddr,
    permit: Permit,
) -> impl Future<Output = ()> {
    let chains = listener.chains();
    let only = chains.chains.only();
    let arrived = Box::new(Arrived {
        slot: Slot::new(Rc::clone(&listener), permit),
        chain: only.and_then(|chain| chains.of(chain)),
        socket,
        prefix: Bytes::new(),
        source: peer,
        direct: peer.ip(),
        destination: None,
        way: Way::Direct,
        undecided: None,
    });
    let is_chosen = only.is_some();
    async move {
        let mut next = if is_chosen { Some(arrived) } else { Box::pin(choose(&listener, arrived)).await };
        while let Some(arrived) = next.take() {
            let begun = match arrived.is_secure() {
                true => Box::pin(begin(&listener, arrived)).await,
                // There is nothing to wait for.
                false => begin(&listener, arrived).now_or_never().flatten(),
            };
            next = match begun {
                Some(Begun::Http(conn, io)) => {
                    connection::serve(conn, io).await;
                    None
                }
                Some(Begun::Other(serving)) => serving.await,
                None => None,
            };
        }
    }
}

/// A connection that is served by its chain.
enum Begun {
    /// Most are.
    Http(Rc<ConnState>, Box<Io>),
    /// Of those that have more to wait for.
    Other(Serving),
}

/// Ends with the connection, or gives it back where it is another chain's after all.
type Serving = Pin<Box<dyn Future<Output = Option<Box<Arrived>>>>>;

/// Terminates TLS and chooses who serves the connection. `None`: it has ended.
async fn begin(listener: &Rc<ListenerLocal>, arrived: Box<Arrived>) -> Option<Begun> {
    let Arrived { slot, chain, socket, prefix, source: peer, direct, destination, way, undecided } =
        arrived.unboxed();
    let Some(chain) = chain else {
        listener.cells.no_chain.add(1);
        tracing::debug!(listener = %listener.listener.name, %peer, "no filter chain takes this connection");
        return None;
    };
    let (transport, prefix) = match &chain.chain.tls {
        None => (Transport::Plain(socket), prefix),
        Some(tls) => {
            let rewound = Rewound { prefix, socket };
            (handshake(&slot, listener, tls, rewound, peer).await?, Bytes::new())
        }
    };
    let shown = shown(&transport, &chain);
    let is_resumed = is_resumed(&transport);
    let begun = match &chain.serves {
        ServesLocal::Http(http) => {
            let (listener, http) = (Rc::clone(listener), Rc::clone(http));
            let conn = ConnState::new(slot, listener, http, (peer, direct), way, &transport, shown.clone());
            let io = Box::new(Io::new(transport, prefix, Rc::clone(&conn)));
            Begun::Http(conn, io)
        }
        ServesLocal::Tcp(tcp) => {
            let local = || transport.socket().local_addr().ok();
            let destination = destination.or_else(local)?;
            let addresses = Addresses { source: peer, destination };
            let (listener, chain) = (Rc::clone(listener), Rc::clone(tcp));
            let original = way.original();
            let connection = tcp::Connection { slot, listener, chain, addresses, original };
            Begun::Other(Box::pin(async move {
                let others = tcp::serve(connection, transport, prefix, undecided).await?;
                let tcp::Others { slot, chain, socket, prefix } = *others;
                let (source, destination) = (peer, Some(destination));
                let undecided = None;
                Some(Box::new(Arrived {
                    slot,
                    chain,
                    socket,
                    prefix,
                    source,
                    direct,
                    destination,
                    way,
                    undecided,
                }))
            }))
        }
    };
    let Some(shown) = shown else { return Some(begun) };
    let worker = Rc::clone(&listener.worker);
    Some(Begun::Other(Box::pin(async move {
        let client = worker.clients.add(&chain, &shown.certificates, is_resumed)?;
        tokio::select! {
            given_back = begun.served() => given_back,
            () = client.lost() => None,
        }
    })))
}

impl Begun {
    async fn served(self) -> Option<Box<Arrived>> {
        match self {
            Begun::Http(conn, io) => {
                connection::serve(conn, io).await;
                None
            }
            Begun::Other(serving) => serving.await,
        }
    }
}

/// The certificate that a client has shown, if it has.
fn shown(transport: &Transport, chain: &ChainLocal) -> Option<Rc<Shown>> {
    let Transport::Tls(tls) = transport else { return None };
    let (_, session) = tls.get_ref();
    let certificates = session.peer_certificates()?;
    let server = chain.chain.tls.as_ref().and_then(|tls| tls.server.load_full());
    let by = server.map(|server| server.uris(session.server_name())).unwrap_or_default();
    Some(Shown::new(certificates.into(), by))
}

/// Whether its handshake took a ticket's or a session's word for who the client is.
fn is_resumed(transport: &Transport) -> bool {
    match transport {
        Transport::Tls(tls) => tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed),
        Transport::Plain(_) => false,
    }
}

/// A connection of which it is known who takes it.
struct Arrived {
    slot: Slot,
    /// `None`: nobody does.
    chain: Option<Rc<ChainLocal>>,
    socket: TcpStream,
    /// Read of it already.
    prefix: Bytes,
    /// The client, for whom the peer may stand.
    source: SocketAddr,
    /// The peer itself.
    direct: IpAddr,
    /// Where it wanted to go, where that is known to be elsewhere than here.
    destination: Option<SocketAddr>,
    /// How it came here.
    way: Way,
    /// Its client has said nothing so far.
    undecided: Option<Box<Undecided>>,
}

impl Arrived {
    /// Whether its chain has it begin with a handshake.
    fn is_secure(&self) -> bool {
        self.chain.as_ref().is_some_and(|chain| chain.chain.tls.is_some())
    }

    /// Out of the box, which goes now and not with what was in it.
    fn unboxed(self: Box<Self>) -> Arrived {
        *self
    }
}

/// Looks at the first bytes and chooses a chain. `None`: the client has gone, or said nothing in time.
async fn choose(listener: &ListenerLocal, mut arrived: Box<Arrived>) -> Option<Box<Arrived>> {
    let Arrived { slot, socket, source: peer, .. } = &*arrived;
    let peer = *peer;
    let local = socket.local_addr().ok()?;
    let (inspect, original) = {
        let chains = listener.chains();
        (chains.chains.inspect, chains.chains.original)
    };
    let way = Way::of(socket, &listener.listener, original, peer);
    let (beginning, told, prefix) = if inspect.reads() {
        look(slot, listener, socket, inspect, peer).await?
    } else {
        (Beginning::unknown(), None, Bytes::new())
    };
    if let Some(original) = way.original()
        && listener.worker.dialer.is_own(canonical(peer), original.destination)
    {
        let error = Error::OwnConnection;
        listener.cells.ended_connection(Some(error));
        tracing::warn!(listener = %listener.listener.name, destination = %original.destination, "{error}");
        return None;
    }
    let source = told.map_or(peer, |told| told.source);
    let going = way.original().map(|original| original.destination);
    let destination = told.map(|told| told.destination).or(going);
    let seen = Seen {
        destination: canonical(destination.unwrap_or(local)),
        source: canonical(source),
        direct_source: peer.ip().to_canonical(),
        transport: beginning.transport,
        server_name: beginning.server_name,
        protocols: beginning.protocols,
    };
    arrived.chain = select(listener, &seen);
    let is_silent = prefix.is_empty() && (inspect.tls || inspect.http);
    arrived.undecided = is_silent.then(|| Box::new(Undecided { inspect, seen }));
    (arrived.prefix, arrived.source) = (prefix, source);
    (arrived.destination, arrived.way) = (destination, way);
    Some(arrived)
}

/// Of the chains in force now: they may have changed while bytes were waited for.
fn select(listener: &ListenerLocal, seen: &Seen) -> Option<Rc<ChainLocal>> {
    let chains = listener.chains();
    chains.chains.select(seen).and_then(|chain| chains.of(chain))
}

/// A connection that was given to a chain since nothing came of it in time, as of those whose server speaks first. While
/// the server does not, it may as well be one that was opened before there was something to ask, as pools do.
pub(crate) struct Undecided {
    inspect: Inspect,
    seen: Seen,
}

impl Undecided {
    /// Waits until either side speaks. Of a client that does so first: what it begins with, where that is known, and
    /// its bytes.
    pub(crate) async fn hear(
        &self,
        near: &TcpStream,
        far: &TcpStream,
    ) -> Result<(Option<Beginning>, Bytes), Error> {
        let mut inspector = Inspector::new(Inspect { announced: None, ..self.inspect });
        let client = async {
            near.readable().await?;
            // As long as for any other.
            match timeout(self.inspect.timeout, beginning(near, &mut inspector)).await {
                Ok(heard) => heard.map(Some),
                Err(_) => Ok(None),
            }
        };
        let heard = tokio::select! {
            biased;
            _ = far.readable() => return Ok((None, inspector.into_bytes().into())),
            heard = client => heard,
        };
        let found = match heard.map_err(|_| Error::ClientGone)? {
            Some(found) => found.map_err(|refused| refused.error())?,
            None if inspector.is_mid_hello() => return Err(Error::ClientHello),
            None => None,
        };
        Ok((found, inspector.into_bytes().into()))
    }

    /// The chain that takes what begins so.
    pub(crate) fn chain(&self, listener: &ListenerLocal, found: Beginning) -> Option<Rc<ChainLocal>> {
        let Beginning { transport, server_name, protocols } = found;
        select(listener, &Seen { transport, server_name, protocols, ..self.seen.clone() })
    }
}

/// Reads until it is known what a connection begins with. `None`: its client has ended before that.
async fn beginning(
    socket: &TcpStream,
    inspector: &mut Inspector,
) -> io::Result<Result<Option<Beginning>, Refused>> {
    loop {
        // Nothing is held for a client that says nothing.
        socket.readable().await?;
        let mut chunk = [0; CHUNK];
        match socket.try_read(&mut chunk) {
            Ok(0) => return Ok(Ok(None)),
            Ok(length) => match inspector.feed(&chunk[..length]) {
                Ok(None) => {}
                known => return Ok(known),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn look(
    slot: &Slot,
    listener: &ListenerLocal,
    socket: &TcpStream,
    inspect: Inspect,
    peer: SocketAddr,
) -> Option<(Beginning, Option<Addresses>, Bytes)> {
    let mut inspector = Inspector::new(inspect);
    let looking = timeout(inspect.timeout, beginning(socket, &mut inspector));
    let found = match slot.until_last_call(looking).await.and_then(Result::ok) {
        Some(Ok(Ok(found))) => found?,
        Some(Ok(Err(refused))) => {
            listener.cells.ended_connection(Some(refused.error()));
            tracing::debug!(listener = %listener.listener.name, %peer, reason = %refused, "a connection is refused");
            return None;
        }
        Some(Err(_)) => return None,
        None if inspector.is_mid_hello() => {
            listener.cells.ended_connection(Some(Error::ClientHello));
            return None;
        }
        None if inspect.proceed && !inspector.is_unannounced() && listener.phase() < Phase::Draining => {
            Beginning::unknown()
        }
        None => {
            listener.cells.inspect_timeouts.add(1);
            return None;
        }
    };
    let told = inspector.addresses();
    Some((found, told, inspector.into_bytes().into()))
}

/// `None`: it failed, and the client has been told why as far as TLS has words for it.
async fn handshake(
    slot: &Slot,
    listener: &ListenerLocal,
    tls: &ChainTls,
    rewound: Rewound,
    peer: SocketAddr,
) -> Option<Transport> {
    let failed = |why: &dyn std::fmt::Display| {
        listener.cells.handshake_failures.add(1);
        tracing::debug!(listener = %listener.listener.name, %peer, reason = %why, "a TLS handshake failed");
    };
    let Some(server) = tls.server.load_full() else {
        failed(&"the listener's certificate has not arrived");
        return None;
    };
    let Some(turn) = listener.worker.admission.handshake(Instant::now(), tls.handshake_timeout) else {
        failed(&"more handshakes wait for their turn than --max-handshakes-per-second allows in their time");
        return None;
    };
    let accept = async {
        if !turn.is_zero() {
            tokio::time::sleep(turn).await;
        }
        TlsAcceptor::from(server.config.clone()).accept(rewound).await
    };
    match slot.bounded(accept, tls.handshake_timeout, Phase::Closed).await {
        Some(Ok(stream)) => {
            listener.cells.handshakes.add(1);
            Some(Transport::Tls(Box::new(stream)))
        }
        Some(Err(error)) => {
            failed(&error);
            None
        }
        None => {
            failed(&"it took longer than transport_socket_connect_timeout");
            None
        }
    }
}
