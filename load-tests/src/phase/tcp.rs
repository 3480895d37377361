//! Bytes through the proxy: four connections as fast as they go. What is sent comes from a file in memory without a
//! copy, and what arrives is thrown away without one, so that the proxy is what limits.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::bail;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create, sendfile};
use rustix::net::{RecvFlags, recv};
use tokio::time::Instant;

use crate::configuration::{Front, Scenario};
use crate::peer::{Bench, Name};
use crate::report::Table;
use crate::turns::{contenders, round};

pub(super) const TITLE: &str = "TCP: bytes through (four connections, one worker)";

const CONNECTIONS: usize = 4;
const COST: &str = "CPU s/GiB";
/// Sent at once.
const CHUNK: usize = 256 * 1024;

pub(super) fn run(bench: &Bench, peers: &[Name]) -> anyhow::Result<Table> {
    let (rounds, seconds) = if bench.quick { (3, 1) } else { (5, 5) };
    let sink = Sink::start()?;
    let scenario = Scenario::of(Front::Tcp);
    let mut running = contenders(bench, peers, &scenario, 1, sink.port)?;
    for number in 0..rounds {
        round("tcp", number, &mut running, |_, peer| {
            let port = peer.port();
            let load = || load(&sink, port, Duration::from_secs(seconds));
            if let Some(done) = peer.measure(bench, "bytes", load)? {
                let bytes = done.seen as f64;
                peer.row.push_in(number, COST, done.cpu.as_secs_f64() / (bytes / f64::from(1 << 30)));
                let rate = bytes * 8.0 / done.elapsed.as_secs_f64() / 1e9;
                peer.row.push_in(number, "Gbit/s", rate);
            }
            Ok(())
        })?;
    }
    let rows = running.into_iter().map(|peer| peer.into_row()).collect();
    Ok(Table::new("tcp", TITLE, COST, rows))
}

/// Takes whatever is sent, and counts it.
struct Sink {
    port: u16,
    taken: Arc<AtomicU64>,
    /// Connections that have come to their end.
    ended: Arc<AtomicU64>,
}

impl Sink {
    fn start() -> anyhow::Result<Sink> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let sink = Sink { port: listener.local_addr()?.port(), taken: Arc::default(), ended: Arc::default() };
        let (taken, ended) = (Arc::clone(&sink.taken), Arc::clone(&sink.ended));
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (taken, ended) = (Arc::clone(&taken), Arc::clone(&ended));
                std::thread::spawn(move || {
                    let mut nothing = vec![0; CHUNK];
                    let mut any = false;
                    // A connection that breaks has been counted as far as it came.
                    while let Ok((_, length @ 1..)) = recv(&connection, &mut nothing[..], RecvFlags::TRUNC) {
                        taken.fetch_add(length as u64, Relaxed);
                        any = true;
                    }
                    // Not those that only asked whether a proxy listens.
                    ended.fetch_add(u64::from(any), Relaxed);
                });
            }
        });
        Ok(sink)
    }
}

/// Sends for a while; gives what arrived.
fn load(sink: &Sink, port: u16, length: Duration) -> anyhow::Result<u64> {
    let (taken, ended) = (sink.taken.load(Relaxed), sink.ended.load(Relaxed));
    let until = Instant::now() + length;
    let sent = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(|| send(port, until))).collect();
        let mut sent = 0;
        for thread in threads {
            match thread.join() {
                Ok(part) => sent += part?,
                Err(_) => bail!("a thread of the load ended by a panic"),
            }
        }
        Ok(sent)
    })?;
    // The proxy closes behind its last byte.
    while sink.ended.load(Relaxed) < ended + CONNECTIONS as u64 {
        if until.elapsed() > Duration::from_secs(10) {
            bail!("connections do not come to their end");
        }
        std::thread::yield_now();
    }
    let taken = sink.taken.load(Relaxed) - taken;
    if taken != sent {
        bail!("{sent} bytes were sent and {taken} arrived");
    }
    Ok(taken)
}

fn send(port: u16, until: Instant) -> io::Result<u64> {
    let file = File::from(memfd_create("bench", MemfdFlags::empty())?);
    ftruncate(&file, CHUNK as u64)?;
    let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let mut sent = 0;
    while Instant::now() < until {
        sent += sendfile(&connection, &file, Some(&mut 0), CHUNK)? as u64;
    }
    connection.shutdown(Shutdown::Write)?;
    // Until the other side has ended too.
    recv(&connection, &mut [0; 1][..], RecvFlags::empty())?;
    Ok(sent)
}
