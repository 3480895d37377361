//! DNS' sockets. Everything that a client can make more of is bounded: queries and connections at a time, bytes of a
//! query, how long a connection is idle.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::ReadHalf;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::metrics::Outcome;
use super::{Dns, Transport};

/// Queries by UDP at a time on one socket; more are dropped, and their clients ask again.
const MOST_QUERIES: usize = 1_024;
/// Connections at a time on one socket; more wait to be accepted.
const MOST_CONNECTIONS: usize = 128;
/// Queries at a time on one connection; the next is read when one has been answered.
const MOST_ON_CONNECTION: usize = 16;
/// A query with one question and EDNS has at most 300 bytes; room for options.
const MOST_BYTES: usize = 4_096;
/// For the next query on a connection, and for an answer to be taken (RFC 7766 says a few seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Connections that the kernel keeps for us.
const BACKLOG: i32 = 128;
/// After a failure that does not go away by itself, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Both sockets of an address.
#[derive(Debug)]
pub struct Sockets {
    pub(super) tcp: std::net::TcpListener,
    pub(super) udp: std::net::UdpSocket,
}

impl Sockets {
    /// Those that a process hands over, as [`for_successor`](Self::for_successor) gives them.
    pub(crate) fn passed(sockets: Vec<std::net::TcpListener>) -> Option<Sockets> {
        let [tcp, udp] = <[_; 2]>::try_from(sockets).ok()?;
        Some(Sockets { tcp, udp: OwnedFd::from(udp).into() })
    }

    /// TCP's, and UDP's as what sockets are handed over as: with it go the queries that wait in it.
    pub(crate) fn for_successor(&self) -> std::io::Result<Vec<std::net::TcpListener>> {
        Ok(vec![self.tcp.try_clone()?, OwnedFd::from(self.udp.try_clone()?).into()])
    }
}

/// Binds an address. `beside` another process that serves it, the sockets are shared.
pub(super) fn bind(address: SocketAddr, beside: bool) -> anyhow::Result<Sockets> {
    let hint = "is another resolver there? Say another address with --dns";
    if !beside {
        // Sockets that can be shared with the process that replaces this one can be shared with any, and would be
        // without a word.
        socket(address, Type::DGRAM, false)
            .with_context(|| format!("cannot answer DNS by UDP on {address}; {hint}"))?;
    }
    let tcp = socket(address, Type::STREAM, true)
        .with_context(|| format!("cannot answer DNS by TCP on {address}; {hint}"))?;
    // Port 0 is one port for both; of TCP first, as more of that's ports are in use.
    let address = tcp.local_addr()?.as_socket().unwrap_or(address);
    let udp = socket(address, Type::DGRAM, true)
        .with_context(|| format!("cannot answer DNS by UDP on {address}; {hint}"))?;
    Ok(Sockets { tcp: tcp.into(), udp: udp.into() })
}

fn socket(address: SocketAddr, ty: Type, shared: bool) -> std::io::Result<Socket> {
    let protocol = if ty == Type::DGRAM { Protocol::UDP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(address), ty, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if ty == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if ty == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}

/// Answers datagrams until it is told to stop; those that have come until then are answered.
pub(super) async fn udp(dns: Arc<Dns>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let permits = Arc::new(Semaphore::new(MOST_QUERIES));
    let mut stop = dns.stop.subscribe();
    let mut buffer = [0_u8; MOST_BYTES];
    let mut failures = 0_u32;
    // Of a socket that another process has, too, more may come for ever.
    let mut last = MOST_QUERIES;
    loop {
        let received = tokio::select! {
            // What is there goes before the end.
            biased;
            received = socket.recv_from(&mut buffer) => received,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let (length, client) = match received {
            Ok(received) => received,
            Err(error) => {
                // One may be about a client that was gone before its answer came, more in a row are about the socket.
                tracing::debug!(%error, "DNS by UDP");
                failures = failures.saturating_add(1);
                tokio::select! {
                    () = tokio::time::sleep(if failures > 1 { PAUSE } else { Duration::ZERO }) => continue,
                    _ = stop.wait_for(|stop| *stop) => break,
                }
            }
        };
        failures = 0;
        if *stop.borrow() {
            last -= 1;
            if last == 0 {
                break;
            }
        }
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            dns.counters.count(Outcome::Overload);
            continue;
        };
        // One that fills the buffer is cut off, and is no query.
        let query: Box<[u8]> = buffer.get(..length).unwrap_or_default().into();
        let (dns, socket) = (dns.clone(), socket.clone());
        tokio::spawn(async move {
            if let Some(answer) = dns.answer(&query, Transport::Udp).await
                && let Err(error) = socket.send_to(&answer, client).await
            {
                tracing::debug!(%client, %error, "a DNS answer cannot be sent");
            }
            drop(permit);
        });
    }
    // Until the last is answered; how long that takes is bounded.
    let all = u32::try_from(MOST_QUERIES).unwrap_or(u32::MAX);
    let _ = permits.acquire_many(all).await;
}

/// Takes connections until it is told to stop.
pub(super) async fn tcp(dns: Arc<Dns>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut stop = dns.stop.subscribe();
    loop {
        // Clients that keep all connections in use must not keep the process.
        let permit = tokio::select! {
            biased;
            permit = permits.clone().acquire_owned() => permit,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((connection, client)) => {
                let dns = dns.clone();
                tokio::spawn(async move {
                    if let Err(error) = connected(&dns, connection).await {
                        tracing::debug!(%client, %error, "a DNS connection ended early");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "DNS cannot accept a connection; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The queries of one connection, each answered when its answer is there (RFC 7766, 6.2.1.1).
async fn connected(dns: &Arc<Dns>, mut connection: TcpStream) -> std::io::Result<()> {
    let (mut from, mut to) = connection.split();
    let (answers, mut answered) = mpsc::channel(MOST_ON_CONNECTION);
    let asked = async move {
        // Until it is idle, or at its end.
        while let Ok(query) = timeout(IDLE, read(&mut from)).await {
            let Some(query) = query? else { break };
            let Ok(room) = answers.clone().reserve_owned().await else { break };
            let dns = dns.clone();
            tokio::spawn(async move { room.send(dns.answer(&query, Transport::Tcp).await) });
        }
        Ok(())
    };
    let told = async {
        while let Some(answer) = answered.recv().await {
            let answer = answer.ok_or_else(|| std::io::Error::other("what came is no query"))?;
            let length = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
            let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
            timeout(IDLE, to.write_all(&framed)).await??;
        }
        Ok(())
    };
    tokio::try_join!(asked, told).map(|_| ())
}

/// One query; none: the connection is at its end.
async fn read(from: &mut ReadHalf<'_>) -> std::io::Result<Option<Box<[u8]>>> {
    let length = match from.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MOST_BYTES {
        return Err(std::io::Error::other(format!("a query of {length} bytes; {MOST_BYTES} are the most")));
    }
    let mut query = vec![0; length].into_boxed_slice();
    from.read_exact(&mut query).await?;
    Ok(Some(query))
}
