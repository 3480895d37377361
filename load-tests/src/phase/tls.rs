//! TLS handshakes: new connections one after the other on each of some threads, each with a whole handshake or a
//! resumed one, closed without a request. The client is in this process and does not verify, which would cost more
//! than the server's own part.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};
use tokio::time::Instant;

use crate::client::{self, Exchange};
use crate::configuration::{Front, Pair, Scenario};
use crate::measure::cpu_time;
use crate::peer::{Bench, Name};
use crate::report::Table;

pub(super) const TITLE: &str = "TLS 1.3 handshakes (P-256 certificate, X25519, one worker)";

const THREADS: usize = 4;
const FULL: &str = "CPU µs/full handshake";
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn run(bench: &Bench, peers: &[Name]) -> anyhow::Result<Table> {
    let (rounds, length) = if bench.quick { (2, 1) } else { (5, 5) };
    let length = Duration::from_secs(length);
    let upstream = bench.upstream(Front::Tls)?;
    let pair = Pair::generate(&bench.folder)?;
    let scenario = Scenario { pair: Some(pair), ..Scenario::of(Front::Tls) };
    let mut running = bench.proxies(peers, &scenario, upstream.port)?;
    let exchange = Exchange { path: &scenario.path(), upload: 0, answer: 1_024 };
    let config = client::config(false)?;
    for (row, proxy) in &running {
        exchange.connect(proxy.port, Some(&config)).with_context(|| format!("through {}", row.peer))?;
    }
    let kinds = [(false, FULL, "full/s"), (true, "CPU µs/resumed", "resumed/s")];
    for _ in 0..rounds {
        for (row, proxy) in &mut running {
            for (resume, cost, rate) in kinds {
                let config = client::config(resume)?;
                let path = scenario.path();
                // The first ones fetch the tickets that the others resume with.
                load(&config, resume, proxy.port, &path, Duration::from_millis(200))?;
                let before = cpu_time(proxy.pid())?;
                let count = load(&config, resume, proxy.port, &path, length)
                    .with_context(|| format!("{}, resumed: {resume}", row.peer))?;
                let used = cpu_time(proxy.pid())?.saturating_sub(before);
                row.push(cost, used.as_secs_f64() * 1e6 / count as f64);
                row.push(rate, count as f64 / length.as_secs_f64());
            }
        }
    }
    Ok(Table {
        phase: "tls".to_owned(),
        title: TITLE.to_owned(),
        ratio_of: FULL.to_owned(),
        rows: running.into_iter().map(|(row, _)| row).collect(),
    })
}

/// Handshakes until the time is over; gives how many there were. All must be of the kind that is wanted, but for
/// some at the start of each thread.
fn load(
    config: &Arc<ClientConfig>,
    resume: bool,
    port: u16,
    path: &str,
    length: Duration,
) -> anyhow::Result<u64> {
    let (count, wrong) = (AtomicU64::new(0), AtomicU64::new(0));
    let until = Instant::now() + length;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    while Instant::now() < until {
                        let kind = shake(config, port, path, resume)?;
                        let resumed = kind == Some(HandshakeKind::Resumed);
                        if resumed != resume {
                            wrong.fetch_add(1, Relaxed);
                        }
                        count.fetch_add(1, Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a thread of the load ended by a panic"),
            }
        }
        Ok(())
    })?;
    let (count, wrong) = (count.into_inner(), wrong.into_inner());
    if count == 0 || (length >= Duration::from_secs(1) && wrong * 50 > count) {
        bail!("{wrong} of {count} handshakes were of the other kind");
    }
    Ok(count)
}

/// One connection. Tickets come after the handshake: a client that wants them asks for something.
fn shake(
    config: &Arc<ClientConfig>,
    port: u16,
    path: &str,
    resume: bool,
) -> anyhow::Result<Option<HandshakeKind>> {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from("localhost")?;
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name)?, socket);
    if resume {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        // Some end without a close_notify.
        let _read = stream.read(&mut [0; 4096]);
    } else {
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
    }
    let kind = stream.conn.handshake_kind();
    stream.conn.send_close_notify();
    let _written = stream.conn.complete_io(&mut stream.sock);
    Ok(kind)
}
