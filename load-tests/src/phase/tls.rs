//! TLS handshakes: new connections one after the other on each of some threads, each with a whole handshake or a
//! resumed one, closed without a request. The client is in this process and does not verify, which would cost more
//! than the server's own part.

use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};
use tokio::time::Instant;

use crate::client::{self, Exchange, Tickets};
use crate::configuration::{Front, Pair, Scenario};
use crate::measure::cpu_time;
use crate::peer::{Bench, Name, Running, turns};
use crate::report::Table;

pub(super) const TITLE: &str = "TLS 1.3 handshakes (P-256 certificate, X25519, one worker)";

const THREADS: usize = 4;
const FULL: &str = "CPU µs/full handshake";
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn run(bench: &Bench, peers: &[Name]) -> anyhow::Result<Table> {
    let (rounds, length, resumed) = if bench.quick { (2, 1, 500) } else { (3, 5, 3_000) };
    let length = Duration::from_secs(length);
    let upstream = bench.upstream(Front::Tls)?;
    let pair = Pair::generate(&bench.folder)?;
    let scenario = Scenario { pair: Some(pair), ..Scenario::of(Front::Tls) };
    let mut running = bench.proxies(peers, &scenario, upstream.port)?;
    let exchange = Exchange { path: &scenario.path(), upload: 0, answer: 1_024 };
    let config = client::config(None)?;
    for (row, proxy) in &running {
        exchange.connect(proxy.port, Some(&config)).with_context(|| format!("through {}", row.peer))?;
    }
    for round in 0..rounds {
        for at in turns(round, running.len()) {
            let (row, proxy) = &mut running[at];
            let through = || format!("through {}", row.peer);
            let full = timed(proxy, || load(&config, proxy.port, HandshakeKind::Full, Until::Time(length)))
                .with_context(through)?;
            let tickets = Arc::<Tickets>::default();
            let resuming = client::config(Some(&tickets))?;
            while tickets.len() < resumed {
                let before = tickets.len();
                // Tickets come after the handshake, for some with the first answer.
                exchange.connect(proxy.port, Some(&resuming)).with_context(through)?;
                ensure!(tickets.len() > before, "no ticket came {}", through());
            }
            tickets.show();
            let resumed = timed(proxy, || {
                load(&resuming, proxy.port, HandshakeKind::Resumed, Until::Count(resumed as u64))
            });
            let resumed = resumed.with_context(through)?;
            for (Timed { count, cpu, elapsed }, cost, rate) in
                [(full, FULL, "full/s"), (resumed, "CPU µs/resumed", "resumed/s")]
            {
                row.push(cost, cpu.as_secs_f64() * 1e6 / count as f64);
                row.push(rate, count as f64 / elapsed.as_secs_f64());
            }
        }
    }
    let rows = running.into_iter().map(|(row, _)| row).collect();
    Ok(Table::new("tls", TITLE, FULL, rows))
}

/// How long handshakes go on.
#[derive(Debug, Clone, Copy)]
enum Until {
    Time(Duration),
    /// So many have been begun.
    Count(u64),
}

struct Timed {
    count: u64,
    cpu: Duration,
    elapsed: Duration,
}

fn timed(proxy: &Running, load: impl FnOnce() -> anyhow::Result<u64>) -> anyhow::Result<Timed> {
    let (start, before) = (Instant::now(), cpu_time(proxy.pid())?);
    let count = load()?;
    Ok(Timed { count, cpu: cpu_time(proxy.pid())?.saturating_sub(before), elapsed: start.elapsed() })
}

/// Handshakes on some threads; gives how many there were. All must be of the kind that is wanted.
fn load(config: &Arc<ClientConfig>, port: u16, wanted: HandshakeKind, until: Until) -> anyhow::Result<u64> {
    let (begun, count, wrong) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    let goes_on = || match until {
        Until::Time(length) => start.elapsed() < length,
        Until::Count(most) => begun.fetch_add(1, Relaxed) < most,
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    while goes_on() {
                        if shake(config, port)? != Some(wanted) {
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
    if count == 0 || wrong > 0 {
        bail!("{wrong} of {count} handshakes were of another kind than {wanted:?}");
    }
    Ok(count)
}

/// One connection, closed after the handshake.
fn shake(config: &Arc<ClientConfig>, port: u16) -> anyhow::Result<Option<HandshakeKind>> {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from("localhost")?;
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name)?, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    let kind = stream.conn.handshake_kind();
    stream.conn.send_close_notify();
    let _written = stream.conn.complete_io(&mut stream.sock);
    Ok(kind)
}
