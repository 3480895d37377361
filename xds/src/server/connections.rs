//! The connections that xDS is served on: how many there may be, in all and of one peer's address, and how long one may be
//! without a stream. HTTP/2's own pings find a peer that is gone; these limits are for one that is there and does nothing.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

use super::lock;

/// One in so many of all connections is for addresses that have few. There is no stream for these any more, but in the place
/// of another.
const KEPT_FREE: usize = 10;
/// Few is less than one in so many.
const FEW: usize = 100;
/// For file descriptors to become free, where there was none for a new connection.
const PAUSE: Duration = Duration::from_millis(100);

/// How many connections there may be, and how long one may do nothing.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; the last tenth is for addresses that have less than a hundredth. Above: closed. Default 12,000: one a stream, and some for those who come back before the server
    /// has noticed that they had gone.
    pub connections: usize,
    /// Of one address (an IPv6 /64). Above: closed. Default 4,000: proxies of a whole cluster may come from behind one.
    pub of_address: usize,
    /// Without a stream, from the start or after the last one. Default 15 s.
    pub unused: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 12_000, of_address: 4_000, unused: Duration::from_secs(15) }
    }
}

/// The connections of a listener, within the limits. What is written goes at once: without that each response that is
/// longer than a packet waits for the 40 ms of a delayed ACK.
pub fn within(
    listener: TcpListener,
    limits: Limits,
) -> impl Stream<Item = io::Result<Connection>> + Send + 'static {
    let counts = Arc::new(Mutex::new(Counts::default()));
    futures_util::stream::unfold((listener, counts), move |(listener, counts)| async move {
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                // The next may do better; an error told to tonic could end the server.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an xDS connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Some(slot) = Slot::take(&counts, address.ip(), &limits) else { continue };
            // Not worth refusing a client for.
            let _ = stream.set_nodelay(true);
            let peer = Peer { address, streams: Arc::default() };
            let since = Box::pin(tokio::time::sleep(limits.unused));
            let connection =
                Connection { stream, peer, unused: limits.unused, was_used: false, since, _slot: slot };
            return Some((Ok(connection), (listener, counts)));
        }
    })
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    of: HashMap<IpAddr, usize>,
    /// That there are too many has been said.
    told: bool,
}

/// One connection's place; free again when it is dropped.
#[derive(Debug)]
struct Slot {
    counts: Arc<Mutex<Counts>>,
    address: IpAddr,
}

impl Slot {
    fn take(counts: &Arc<Mutex<Counts>>, address: IpAddr, limits: &Limits) -> Option<Slot> {
        let address = network(address);
        let mut counted = lock(counts);
        let of_address = counted.of.get(&address).copied().unwrap_or_default();
        let is_scarce = counted.all >= limits.connections - limits.connections / KEPT_FREE;
        let few = (limits.connections / FEW).max(1);
        let most = if is_scarce { limits.of_address.min(few) } else { limits.of_address };
        if counted.all >= limits.connections || of_address >= most {
            if !std::mem::replace(&mut counted.told, true) {
                let all = counted.all;
                tracing::warn!(%address, of_address, all, "too many xDS connections; more are closed");
            }
            return None;
        }
        counted.all += 1;
        *counted.of.entry(address).or_default() += 1;
        counted.told &= is_scarce;
        Some(Slot { counts: Arc::clone(counts), address })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counted = lock(&self.counts);
        counted.all -= 1;
        if let Some(left) = counted.of.get_mut(&self.address) {
            *left -= 1;
            if *left == 0 {
                counted.of.remove(&self.address);
            }
        }
    }
}

/// Who has one address of an IPv6 /64 has them all.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

/// Who is at the other end of a request's connection.
#[derive(Debug, Clone)]
pub struct Peer {
    pub(super) address: SocketAddr,
    streams: Arc<AtomicUsize>,
}

impl Peer {
    /// Keeps the connection for as long as this is held.
    pub(super) fn stream(&self) -> InUse {
        self.streams.fetch_add(1, Ordering::Relaxed);
        InUse(Arc::clone(&self.streams))
    }
}

/// A connection has a stream.
#[derive(Debug)]
pub(super) struct InUse(Arc<AtomicUsize>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection, which breaks by itself where it is not used.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    peer: Peer,
    unused: Duration,
    was_used: bool,
    since: Pin<Box<Sleep>>,
    _slot: Slot,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // That the last stream has ended is seen at the next read; with pings there is one every few seconds.
        if this.peer.streams.load(Ordering::Relaxed) > 0 {
            this.was_used = true;
        } else {
            if std::mem::take(&mut this.was_used) {
                this.since.as_mut().reset(Instant::now() + this.unused);
            }
            if this.since.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no stream was opened")));
            }
        }
        Pin::new(&mut this.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_addresses_do_not_have_all_connections() {
        let counts = Arc::default();
        let limits = Limits { connections: 40, of_address: 20, ..Limits::default() };
        let take = |last: u8| Slot::take(&counts, IpAddr::from([10, 0, 0, last]), &limits);
        let _first: Vec<Slot> = (0..30).filter_map(|_| take(1)).collect();
        let _second: Vec<Slot> = (0..30).filter_map(|_| take(2)).collect();
        assert_eq!(lock(&counts).all, 36, "the last tenth is for those that have less");
        assert!(take(1).is_none() && take(2).is_none());
        let others: Vec<Slot> = (3..10).filter_map(take).collect();
        assert_eq!(others.len(), 4);
    }

    #[test]
    fn places_are_counted_in_all_and_by_address() {
        let counts = Arc::default();
        let limits = Limits { connections: 3, of_address: 2, ..Limits::default() };
        let take = |address: &str| Slot::take(&counts, address.parse().unwrap(), &limits);
        let (one, two) = (take("10.0.0.1").unwrap(), take("::ffff:10.0.0.1").unwrap());
        assert!(take("10.0.0.1").is_none(), "two of one address");
        let three = take("2001:db8::1").unwrap();
        assert!(take("10.0.0.2").is_none(), "three in all");
        drop(one);
        let four = take("2001:db8::ffff").unwrap();
        drop(two);
        assert!(take("2001:db8::2").is_none(), "two of one network");
        drop((three, four));
        assert!(lock(&counts).of.is_empty());
    }
}
