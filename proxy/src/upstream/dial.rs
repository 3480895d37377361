//! How connections to endpoints are made: marked, so that interception leaves them alone, and remembered for a moment
//! where they may be intercepted all the same, so that the proxy knows its own when they come back to it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use crate::config::keepalive::Keepalive;
use crate::error::Error;

/// How connections are made.
#[derive(Debug, Clone, Default)]
pub struct Dialer {
    /// What packets are marked with (`SO_MARK`), so that rules of interception leave them alone.
    mark: Option<u32>,
    /// Where connections come by interception: those that are this process's own.
    own: Option<Arc<OwnConnections>>,
    /// Endpoints that are this machine itself, or link-local, are not for who writes routes.
    refuses_local: bool,
}

impl Dialer {
    /// One that marks its connections, where there is a mark, and knows them again where `intercepted`.
    ///
    /// # Errors
    /// When this process may not mark.
    pub fn new(mark: Option<u32>, intercepted: bool) -> io::Result<Dialer> {
        if let Some(mark) = mark {
            // Once at the start rather than at each connection.
            Socket::new(Domain::IPV4, Type::STREAM, None)?.set_mark(mark)?;
        }
        Ok(Dialer { mark, own: intercepted.then(Arc::default), refuses_local: false })
    }

    /// The same, but no connection goes to this machine itself or to link-local addresses, where admin ports and the
    /// cloud's metadata are.
    pub fn refusing_local(self) -> Dialer {
        Dialer { refuses_local: true, ..self }
    }

    /// Whether a connection from `client` that was going to `destination` is one that was made here.
    pub(crate) fn is_own(&self, client: SocketAddr, destination: SocketAddr) -> bool {
        self.own.as_ref().is_some_and(|own| own.has(client, destination))
    }

    pub(super) async fn tcp(
        &self,
        address: SocketAddr,
        source: Option<IpAddr>,
        keepalive: Option<Keepalive>,
    ) -> Result<TcpStream, Error> {
        if self.refuses_local && is_local(address.ip()) {
            return Err(Error::LocalEndpoint);
        }
        let connected = match (self.mark, source) {
            (None, None) => TcpStream::connect(address).await,
            (mark, source) => connect_as(address, mark, source).await,
        };
        let stream = connected.map_err(|error| classify(&error))?;
        if let (Some(own), Ok(local)) = (&self.own, stream.local_addr()) {
            own.note(local, address, Instant::now());
        }
        // Not worth failing a request for.
        let _ = stream.set_nodelay(true);
        if let Some(keepalive) = keepalive {
            keepalive.set(&stream);
        }
        Ok(stream)
    }
}

fn is_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_unspecified() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local(),
    }
}

async fn connect_as(address: SocketAddr, mark: Option<u32>, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    // An address of the other family cannot be borrowed.
    if let Some(source) = source.filter(|source| source.is_ipv4() == address.is_ipv4()) {
        set_transparent(&socket, address)?;
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(address).await
}

/// Lets a socket have addresses that are not this machine's.
pub(crate) fn set_transparent<'s, S>(socket: &'s S, address: SocketAddr) -> io::Result<()>
where
    SockRef<'s>: From<&'s S>,
{
    let socket = SockRef::from(socket);
    if address.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

/// Tells what is wrong with this machine from what is wrong with the endpoint.
pub(super) fn classify(error: &io::Error) -> Error {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const EADDRNOTAVAIL: i32 = 99;
    const ENOBUFS: i32 = 105;
    match error.raw_os_error() {
        Some(ENFILE | EMFILE | EADDRNOTAVAIL | ENOBUFS) => Error::NoSocket,
        _ => Error::ConnectFailure,
    }
}

/// Connections that were made a moment ago, by both of their ends. One that comes back is seen within the time in which
/// a listener waits for first bytes, and by then it has been noted: nothing is sent before. One that NAT has given another
/// port, as it does where its own is one of a connection redirected lately, is not known, and passed on as a client's: by a
/// connection of its own, which is known, or comes round again in its turn. The rules' marks are what keeps loops out;
/// this ends those that wrong marks let in.
#[derive(Debug, Default)]
struct OwnConnections(Mutex<HashMap<(SocketAddr, SocketAddr), Instant>>);

/// Longer than an intercepted listener waits for first bytes.
const REMEMBERED: Duration = Duration::from_secs(5);
/// 96 bytes each. One above it is not known again, and neither are its followers until there is room.
const MOST: usize = 16_384;

impl OwnConnections {
    fn note(&self, local: SocketAddr, remote: SocketAddr, now: Instant) {
        let mut all = self.all();
        if all.len() >= MOST {
            all.retain(|_, noted| now.saturating_duration_since(*noted) < REMEMBERED);
        }
        if all.len() < MOST {
            all.insert((local, remote), now);
        }
    }

    fn has(&self, client: SocketAddr, destination: SocketAddr) -> bool {
        self.all().get(&(client, destination)).is_some_and(|noted| noted.elapsed() < REMEMBERED)
    }

    fn all(&self) -> MutexGuard<'_, HashMap<(SocketAddr, SocketAddr), Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_made_here_is_known_again_for_a_moment() {
        let (dialer, other) = (Dialer::new(None, true).unwrap(), Dialer::new(None, false).unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = dialer.tcp(address, None, None).await.unwrap();
        let local = stream.local_addr().unwrap();
        assert!(dialer.is_own(local, address));
        assert!(!dialer.is_own(address, local) && !other.is_own(local, address));
        tokio::time::advance(REMEMBERED).await;
        assert!(!dialer.is_own(local, address));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (own, now) = (OwnConnections::default(), Instant::now());
        let at = |port: usize| SocketAddr::from(([127, 0, 0, 1], port as u16));
        for port in 0..MOST + 10 {
            own.note(at(port), at(1), now);
        }
        assert_eq!(own.all().len(), MOST);
        own.note(at(2), at(2), now + REMEMBERED);
        assert_eq!(own.all().len(), 1);
    }

    #[tokio::test]
    async fn a_gateways_endpoints_are_elsewhere() {
        let dialer = Dialer::default().refusing_local();
        for local in [
            "127.0.0.1:1",
            "[::1]:1",
            "0.0.0.0:1",
            "[::ffff:127.0.0.9]:1",
            "169.254.169.254:80",
            "[fe80::1]:1",
        ] {
            let refused = dialer.tcp(local.parse().unwrap(), None, None).await;
            assert_eq!(refused.unwrap_err(), Error::LocalEndpoint, "{local}");
        }
        assert!(!is_local("10.0.0.1".parse().unwrap()) && !is_local("fd00::1".parse().unwrap()));
    }
}
