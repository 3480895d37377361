//! From an accepted socket to a connection with a filter chain: its first bytes are looked at where the listener
//! says so, a chain is chosen, and TLS is terminated. A connection that no chain takes is closed.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use rustls::HandshakeKind;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::chain::{ChainLocal, ServesLocal};
use super::connection::{self, ConnState};
use super::inspect::{Beginning, Inspector};
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

/// Serves an accepted socket to its end.
pub(super) async fn serve(listener: Rc<ListenerLocal>, socket: TcpStream, peer: SocketAddr, permit: Permit) {
    let slot = Slot::new(Rc::clone(&listener), permit);
    let chains = listener.chains();
    let (chain, arrived) = match chains.chains.only() {
        Some(chain) => (
            chains.of(chain),
            Arrived { socket, prefix: Bytes::new(), source: peer, destination: None, way: Way::Direct },
        ),
        None => match Box::pin(choose(&slot, &listener, socket, peer)).await {
            Some(chosen) => chosen,
            None => return,
        },
    };
    let Arrived { socket, prefix, source: peer, destination, way } = arrived;
    let Some(chain) = chain else {
        listener.cells.no_chain.add(1);
        tracing::debug!(listener = %listener.listener.name, %peer, "no filter chain takes this connection");
        return;
    };
    drop(chains);
    let (transport, prefix) = match &chain.chain.tls {
        None => (Transport::Plain(socket), prefix),
        Some(tls) => {
            let rewound = Rewound { prefix, socket };
            match Box::pin(handshake(&slot, &listener, tls, rewound, peer)).await {
                Some(transport) => (transport, Bytes::new()),
                None => return,
            }
        }
    };
    let worker = Rc::clone(&listener.worker);
    let shown = shown(&transport, &chain);
    let client = match &shown {
        None => None,
        Some(shown) => {
            let Some(client) = worker.clients.add(&chain, &shown.certificates, is_resumed(&transport)) else {
                return;
            };
            Some(client)
        }
    };
    // Pinned where it is: what is awaited in two places by value has its room twice.
    let mut serving = pin!(async {
        match &chain.serves {
            ServesLocal::Http(chain) => {
                let conn =
                    ConnState::new(slot, listener, Rc::clone(chain), peer, way, &transport, shown.clone());
                connection::serve(conn, transport, prefix).await;
            }
            ServesLocal::Tcp(tcp) => {
                let local = || transport.socket().local_addr().ok();
                let Some(destination) = destination.or_else(local) else { return };
                let addresses = Addresses { source: peer, destination };
                let original = way.original();
                let connection =
                    tcp::Connection { slot, listener, chain: Rc::clone(tcp), addresses, original };
                Box::pin(tcp::serve(connection, transport, prefix)).await;
            }
        }
    });
    match client {
        None => serving.await,
        Some(client) => {
            tokio::select! {
                () = &mut serving => {}
                () = client.lost() => {}
            }
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
    socket: TcpStream,
    /// Read of it already.
    prefix: Bytes,
    /// The client, for whom the peer may stand.
    source: SocketAddr,
    /// Where it wanted to go, where that is known to be elsewhere than here.
    destination: Option<SocketAddr>,
    /// How it came here.
    way: Way,
}

/// Looks at the first bytes and chooses a chain. `None`: the client has gone, or said nothing in time.
async fn choose(
    slot: &Slot,
    listener: &ListenerLocal,
    mut socket: TcpStream,
    peer: SocketAddr,
) -> Option<(Option<Rc<ChainLocal>>, Arrived)> {
    let local = socket.local_addr().ok()?;
    let (inspect, original) = {
        let chains = listener.chains();
        (chains.chains.inspect, chains.chains.original)
    };
    let way = Way::of(&socket, &listener.listener, original, peer);
    let (beginning, told, prefix) = if inspect.reads() {
        look(slot, listener, &mut socket, inspect, peer).await?
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
    // The chains in force now: they may have changed while bytes were waited for.
    let chains = listener.chains();
    let chain = chains.chains.select(&seen).and_then(|chain| chains.of(chain));
    Some((chain, Arrived { socket, prefix, source, destination, way }))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn look(
    slot: &Slot,
    listener: &ListenerLocal,
    socket: &mut TcpStream,
    inspect: Inspect,
    peer: SocketAddr,
) -> Option<(Beginning, Option<Addresses>, Bytes)> {
    let mut inspector = Inspector::new(inspect);
    let looking = async {
        loop {
            // Nothing is held for a client that says nothing.
            socket.readable().await.ok()?;
            let mut chunk = [0; CHUNK];
            match socket.read(&mut chunk).await {
                Ok(0) | Err(_) => return None,
                Ok(length) => match inspector.feed(&chunk[..length]) {
                    Ok(None) => {}
                    Ok(found) => return found,
                    Err(refused) => {
                        listener.cells.ended_connection(Some(refused.error()));
                        tracing::debug!(listener = %listener.listener.name, %peer, reason = %refused, "a connection is refused");
                        return None;
                    }
                },
            }
        }
    };
    let found = match slot.until_last_call(timeout(inspect.timeout, looking)).await.and_then(Result::ok) {
        Some(found) => found?,
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
