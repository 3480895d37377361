//! How a connection came to a listener: as its client meant it, or by interception, and then where it was going to.

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::config::chains::OriginalDst;
use crate::config::listener::Listener;
use crate::upstream::original::Original;

/// How a connection came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Its client meant this port.
    Direct,
    /// The same, from this machine to its loopback address.
    Loopback,
    /// The kernel brought it here.
    Intercepted(Original),
}

impl Way {
    /// `original`: whether the listener asks.
    pub(super) fn of(
        socket: &TcpStream,
        listener: &Listener,
        original: Option<OriginalDst>,
        peer: SocketAddr,
    ) -> Way {
        let (Some(original), Ok(local)) = (original, socket.local_addr()) else { return Way::Direct };
        let local = canonical(local);
        let source = original.keep_source.then(|| peer.ip().to_canonical());
        let to = |destination| Way::Intercepted(Original { destination, source });
        match before_nat(socket, local) {
            Some(destination) if destination != local => to(destination),
            // By TPROXY a connection keeps its destination, which is not what the socket was bound to.
            _ if listener.transparent && local.port() != listener.address.port() => to(local),
            _ if local.ip().is_loopback() && peer.ip().to_canonical().is_loopback() => Way::Loopback,
            _ => Way::Direct,
        }
    }

    /// Where it was going to, where it was intercepted.
    pub(crate) fn original(self) -> Option<Original> {
        match self {
            Way::Intercepted(original) => Some(original),
            Way::Direct | Way::Loopback => None,
        }
    }
}

/// `SO_ORIGINAL_DST`. ENOENT, as for a connection that no rule has redirected, is `None`; so is a kernel that has
/// no connection tracking.
fn before_nat(socket: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    let socket = SockRef::from(socket);
    let found = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    found.ok()?.as_socket().map(canonical)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
