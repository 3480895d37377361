//! Resident memory: at start, and with idle keep-alive connections, plain or under TLS, that have each had one request.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::net::{RecvFlags, recv};

use crate::client::{self, Exchange};
use crate::configuration::{Front, Pair, Scenario};
use crate::measure::resident;
use crate::peer::{Bench, Name, pause};
use crate::report::{Row, Table};

pub(super) const TITLE: &str = "Resident memory (one worker, 100 routes)";
pub(super) const TITLE_TLS: &str = "Resident memory with connections under TLS 1.3 (one worker, 100 routes)";

/// The client's end of each is in this process, and twice as many is the most that one may have open.
const CONNECTIONS: usize = 10_000;
const AT_START: &str = "MiB at start";
const WARM: &str = "MiB after 1,000 requests";
const WARM_CONNECTIONS: usize = 1_000;
const WITH_THEM: &str = "MiB with 10,000 idle";
const PER_CONNECTION: &str = "KiB per idle connection, of 10,000";
/// For what a proxy does with a connection that has fallen idle; Pontoon's takes half a second.
const SETTLE: Duration = Duration::from_secs(3);

pub(super) fn run(bench: &Bench, peers: &[Name], front: Front) -> anyhow::Result<Table> {
    let (phase, title, pair) = match front {
        Front::Tls => ("idle-tls", TITLE_TLS, Some(Pair::generate(&bench.folder)?)),
        _ => ("idle", TITLE, None),
    };
    let scenario = Scenario { pair, ..Scenario::of(front) };
    let tls = client::config(None)?;
    let tls_config = (front == Front::Tls).then_some(&tls);
    let upstream = bench.upstream(front)?;
    let path = scenario.path();
    let exchange = Exchange { path: &path, upload: 0, answer: 1_024 };
    let mut rows: Vec<Row> = peers.iter().map(|peer| Row::new(peer.text())).collect();
    // Each round starts its proxy anew: memory once taken would stay for the next.
    for _ in 0..if bench.quick { 1 } else { 3 } {
        for (peer, row) in peers.iter().zip(&mut rows) {
            let proxy = bench.proxy(*peer, &scenario, upstream.port)?;
            pause(SETTLE);
            let at_start = resident(proxy.pid())?;
            // What comes with the first requests, whatever becomes of their connections, is no connection's.
            for _ in 0..WARM_CONNECTIONS {
                let warming = exchange.connect(proxy.port, tls_config);
                drop(warming.with_context(|| format!("through {}", row.peer))?);
            }
            pause(SETTLE);
            let warm = resident(proxy.pid())?;
            let mut held = Vec::new();
            while held.len() < CONNECTIONS {
                let connection = exchange.connect(proxy.port, tls_config);
                let what = || format!("{}: connection {}", row.peer, held.len());
                held.push(connection.with_context(what)?);
            }
            pause(SETTLE);
            let with = resident(proxy.pid())?;
            let closed = held.iter().filter(|connection| !is_open(connection)).count();
            ensure!(closed == 0, "{} has closed {closed} of the idle connections", row.peer);
            row.push(AT_START, at_start as f64 / 1_048_576.0);
            row.push(WARM, warm as f64 / 1_048_576.0);
            row.push(WITH_THEM, with as f64 / 1_048_576.0);
            row.push(PER_CONNECTION, with.saturating_sub(warm) as f64 / 1024.0 / CONNECTIONS as f64);
        }
    }
    Ok(Table::new(phase, title, PER_CONNECTION, rows))
}

/// Whether the peer has not closed it: there is nothing to read, and no end either. Through TLS, tickets may be there.
fn is_open(connection: &TcpStream) -> bool {
    let mut byte = [0];
    match recv(connection, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((length, _)) => length > 0,
        Err(error) => error == rustix::io::Errno::AGAIN,
    }
}
