//! TLS handshakes: new connections one after the other on each of some threads, each with a whole handshake or a
//! resumed one, closed without a request. The client is in this process and does not verify, which would cost more
//! than the server's own part.

use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{bail, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};
use tokio::time::Instant;

use crate::client::{self, Exchange, Tickets};
use crate::configuration::{Front, Pair, Scenario};
use crate::peer::{Bench, Name};
use crate::report::Table;
use crate::turns::{contenders, round};

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
    let mut running = contenders(bench, peers, &scenario, 1, upstream.port)?;
    let exchange = Exchange { path: &scenario.path(), upload: 0, answer: 1_024 };
    let config = client::config(None)?;
    for number in 0..rounds {
        round("tls", number, &mut running, |_, peer| {
            let port = peer.port();
            if number == 0 {
                exchange.connect(port, Some(&config))?;
            }
            let full = || load(&config, port, HandshakeKind::Full, Until::Time(length));
            let full = peer.measure(bench, "full handshakes", full)?;
            let gather = || {
                let tickets = Arc::<Tickets>::default();
                let resuming = client::config(Some(&tickets))?;
                while tickets.len() < resumed {
                    let before = tickets.len();
                    // Tickets come after the handshake, for some with the first answer.
                    exchange.connect(port, Some(&resuming))?;
                    ensure!(tickets.len() > before, "no ticket came");
                }
                tickets.show();
                Ok(resuming)
            };
            let until = Until::Count(resumed as u64);
            let resume = |resuming: Arc<ClientConfig>| load(&resuming, port, HandshakeKind::Resumed, until);
            let resumed = peer.measure_after(bench, "resumed handshakes", gather, resume)?;
            for (done, cost, rate) in [(full, FULL, "full/s"), (resumed, "CPU µs/resumed", "resumed/s")] {
                let Some(done) = done else { continue };
                let count = done.seen as f64;
                peer.row.push_in(number, cost, done.micros_per(count));
                peer.row.push_in(number, rate, count / done.elapsed.as_secs_f64());
            }
            Ok(())
        })?;
    }
    let rows = running.into_iter().map(|peer| peer.into_row()).collect();
    Ok(Table::new("tls", TITLE, FULL, rows))
}

/// How long handshakes go on.
#[derive(Debug, Clone, Copy)]
enum Until {
    Time(Duration),
    /// So many have been begun.
    Count(u64),
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
