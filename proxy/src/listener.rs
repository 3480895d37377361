//! Sockets that accept, one a worker and listener, and what a worker keeps for each listener. A listener that is
//! removed, or a proxy that stops, goes through [`Phase`]s; connections read the phase whenever they are polled.

pub(crate) mod arrival;
pub(crate) mod chain;
pub(crate) mod connection;
pub(crate) mod frames;
pub(crate) mod guard;
mod http2_io;
pub(crate) mod inspect;
pub(crate) mod io;
pub(crate) mod original;
pub(crate) mod streams;
pub(crate) mod transport;

use std::cell::{Cell, RefCell};
use std::io as std_io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::Waker;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use self::chain::ChainsLocal;
use crate::config::listener::Listener;
use crate::telemetry::access_log::Entry;

use crate::telemetry::metrics::ListenerCells;
use crate::worker::local::Worker;

/// Connections the kernel completes before we accept them.
const BACKLOG: i32 = 4_096;
/// After an accept that failed for want of files or memory: neither comes back sooner for asking at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection that has asked for nothing is kept once its listener drains: what its client sent before it
/// knew arrives within that, on a busy machine too.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How far the end of a listener has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Serving.
    Running,
    /// Serving, but each HTTP/1.1 answer asks the client to close: new connections go elsewhere.
    LameDuck,
    /// Not accepting, for another process does. A connection without a request waits for the next one, and is told
    /// in its answer to close: closed now, a request already on its way would be lost.
    Handover,
    /// Still accepting, as probes and late callers come, and each answer asks the client to close; connections that have
    /// nothing end after a last call.
    Leaving,
    /// Not accepting; connections end with what they have in flight, those of HTTP/1.1 that have nothing after a
    /// last call: a request may be on its way.
    Draining,
    /// Connections end now.
    Closed,
}

impl Phase {
    fn accepts(self) -> bool {
        matches!(self, Phase::Running | Phase::LameDuck | Phase::Leaving)
    }
}

/// One worker's part of a listener.
pub(crate) struct ListenerLocal {
    pub(crate) listener: Arc<Listener>,
    pub(crate) worker: Rc<Worker>,
    pub(crate) cells: Arc<ListenerCells>,
    chains: RefCell<Rc<ChainsLocal>>,
    phase: Cell<Phase>,
    /// The phase has changed.
    changed: Notify,
    /// The last connection has gone.
    emptied: Notify,
    wakers: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
    open: Cell<usize>,
    /// Over all workers.
    open_everywhere: Arc<AtomicUsize>,
}

impl ListenerLocal {
    pub(crate) fn new(listener: Arc<Listener>, worker: Rc<Worker>) -> Rc<Self> {
        let cells = worker.shard.listener(&listener.name);
        let chains = ChainsLocal::new(listener.chains.load_full(), None, &worker);
        let open_everywhere = worker.admission.of_listener(&listener.name);
        Rc::new(Self {
            listener,
            worker,
            cells,
            chains: RefCell::new(chains),
            phase: Cell::new(Phase::Running),
            changed: Notify::new(),
            emptied: Notify::new(),
            wakers: RefCell::default(),
            free: RefCell::default(),
            open: Cell::new(0),
            open_everywhere,
        })
    }

    /// The chains in force.
    pub(crate) fn chains(&self) -> Rc<ChainsLocal> {
        let now = self.listener.chains.load();
        let mut kept = self.chains.borrow_mut();
        if !Arc::ptr_eq(&kept.chains, &now) {
            *kept = ChainsLocal::new(Arc::clone(&now), Some(&kept), &self.worker);
        }
        Rc::clone(&kept)
    }

    /// How long what is in flight may take when the listener goes.
    pub(crate) fn drain_limit(&self) -> Duration {
        let chains = self.chains();
        let limits = chains.iter().map(|chain| chain.drain_limit(&self.worker));
        limits.max().unwrap_or_default()
    }

    /// The most that any chain allows; a connection has none yet when it is counted. 0 is no limit.
    fn most_connections(&self) -> usize {
        let chains = self.chains();
        let limits = chains.iter().map(|chain| chain.max_connections(&self.worker));
        let mut most = 0;
        for limit in limits {
            match limit {
                0 => return 0,
                limit => most = limit.max(most),
            }
        }
        most
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Moves on to `phase`, never back, and tells everyone.
    pub(crate) fn advance(&self, phase: Phase) {
        if phase > self.phase.get() {
            self.set_phase(phase);
        }
    }

    /// Serves on as before, where it was only leaving.
    pub(crate) fn stay(&self) {
        if matches!(self.phase(), Phase::LameDuck | Phase::Leaving) {
            self.set_phase(Phase::Running);
        }
    }

    fn set_phase(&self, phase: Phase) {
        self.phase.set(phase);
        self.changed.notify_waiters();
        for waker in self.wakers.borrow().iter().flatten() {
            waker.wake_by_ref();
        }
    }

    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }

    async fn wait_for(&self, phase: Phase) {
        loop {
            let changed = self.changed.notified();
            if self.phase() >= phase {
                return;
            }
            changed.await;
        }
    }

    /// Waits until no connection is left.
    pub(crate) async fn empty(&self) {
        while self.open.get() > 0 {
            self.emptied.notified().await;
        }
    }

    fn register(&self) -> usize {
        self.open.set(self.open.get() + 1);
        self.cells.connections.add(1);
        self.cells.accepted.add(1);
        match self.free.borrow_mut().pop() {
            Some(slot) => slot,
            None => {
                let mut wakers = self.wakers.borrow_mut();
                wakers.push(None);
                wakers.len() - 1
            }
        }
    }

    fn set_waker(&self, slot: usize, waker: &Waker) {
        if let Some(kept) = self.wakers.borrow_mut().get_mut(slot)
            && !kept.as_ref().is_some_and(|kept| kept.will_wake(waker))
        {
            *kept = Some(waker.clone());
        }
    }

    fn deregister(&self, slot: usize) {
        if let Some(waker) = self.wakers.borrow_mut().get_mut(slot) {
            *waker = None;
        }
        self.free.borrow_mut().push(slot);
        self.cells.connections.sub(1);
        self.open.set(self.open.get() - 1);
        if self.open.get() == 0 {
            self.emptied.notify_waiters();
        }
    }
}

/// A listening socket that shares its address with the other workers'. Errors as the system has them.
pub(crate) fn bind(address: SocketAddr) -> std_io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts, once the `gate` is open, until the listener drains; what the kernel has accepted by then is still
/// served, unless another process accepts it.
pub(crate) async fn accept(local: Rc<ListenerLocal>, socket: TcpListener, mut gate: watch::Receiver<bool>) {
    tokio::select! {
        // Who could open it may be gone: then it is as open as it ever will be.
        _ = gate.wait_for(|open| *open) => {}
        () = local.wait_for(Phase::Handover) => return,
    }
    while local.phase().accepts() {
        let changed = local.changed.notified();
        if !local.phase().accepts() {
            break;
        }
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = changed => continue,
        };
        match accepted {
            Ok((stream, peer)) => start(&local, stream, peer),
            Err(error) if is_about_the_connection(&error) => {}
            Err(error) => {
                local.cells.accept_failures.add(1);
                tracing::warn!(listener = %local.listener.name, %error, "accept failed; is the limit of open files too low?");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    if local.phase() == Phase::Handover {
        return;
    }
    // Asked of the kernel: the runtime may not have heard of the last of them yet.
    let Ok(socket) = socket.into_std() else { return };
    while let Ok((stream, peer)) = socket.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            start(&local, stream, peer);
        }
    }
}

fn is_about_the_connection(error: &std_io::Error) -> bool {
    use std_io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Serves the connection where there is room for it; otherwise it is closed at once, which costs least.
fn start(local: &Rc<ListenerLocal>, stream: TcpStream, peer: SocketAddr) {
    if local.worker.admission.wants_room() && local.worker.idle.end_one() {
        local.cells.made_room.add(1);
    }
    let limit = local.most_connections();
    let admitted = match local.worker.overload() {
        None => local.worker.admission.admit(peer.ip(), &local.open_everywhere, limit),
        Some(overload) => Err(overload),
    };
    let permit = match admitted {
        Ok(permit) => permit,
        Err(error) => {
            local.cells.ended(0, Some(error));
            let entry = || Entry { status: 0, ..Entry::refused(&local.listener.name, peer.ip(), error) };
            if let Some(chain) = local.chains().iter().next() {
                chain.log(&local.worker, entry);
            }
            return;
        }
    };
    // Not worth a connection.
    let _ = stream.set_nodelay(true);
    local.chains().chains.keepalive.set(&stream);
    tokio::task::spawn_local(arrival::serve(Rc::clone(local), stream, peer, permit));
}
