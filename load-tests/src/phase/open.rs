//! Latency at a fixed rate, whatever the proxy does: each of some connections sends at its own fixed times, and a
//! request's latency counts from when it should have been sent, so that a stall is felt by all whom it would have
//! held up (what is called coordinated omission is left out otherwise). The same without a proxy is the floor.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use crate::configuration::{Front, Scenario};
use crate::measure::{TRACE_HEADER, wrk};
use crate::peer::{Bench, Name, pause, warm};
use crate::report::{Row, Table};
use crate::turns::{contenders, round};

/// A rate, and its table.
pub(super) struct Rate {
    pub(super) phase: &'static str,
    pub(super) title: &'static str,
    per_second: u32,
}

pub(super) const LOW: Rate = Rate {
    phase: "open-500",
    title: "Latency at 500 requests/s (open loop, 32 connections, 1 KiB, 100 routes, one worker)",
    per_second: 500,
};
pub(super) const MIDDLE: Rate = Rate {
    phase: "open",
    title: "Latency at 2,000 requests/s (open loop, 32 connections, 1 KiB, 100 routes, one worker)",
    per_second: 2_000,
};
pub(super) const HIGH: Rate = Rate {
    phase: "open-4000",
    title: "Latency at 4,000 requests/s (open loop, 32 connections, 1 KiB, 100 routes, one worker)",
    per_second: 4_000,
};
pub(super) const NOTE: &str = "Requests are sent at their fixed times, whatever became of those before, and a latency \
counts from the time at which a request was due (corrected for coordinated omission). *Added* is what a proxy has more \
than no proxy in the same round; the spread of a busy machine can make it less than nothing, and then there is no \
ratio. Above p99.9 are a dozen requests of a round: it shows what may happen, and ranks nobody.\n\n";

pub(super) const CONNECTIONS: u32 = 32;
const RATIO: &str = "added p99 µs";
const QUANTILES: [(f64, &str, &str); 3] =
    [(0.5, "p50 µs", "added p50 µs"), (0.99, "p99 µs", RATIO), (0.999, "p99.9 µs", "added p99.9 µs")];
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn run(bench: &Bench, peers: &[Name], rate: &Rate) -> anyhow::Result<Table> {
    let (rounds, seconds) = if bench.quick { (3, 2) } else { (3, 6) };
    let length = Duration::from_secs(seconds);
    let upstream = bench.upstream(Front::Http)?;
    let scenario = Scenario::of(Front::Http);
    let path = scenario.path();
    let mut running = contenders(bench, peers, &scenario, 1, upstream.port)?;
    for peer in &mut running {
        peer.turn(|peer| {
            let url = format!("http://127.0.0.1:{}{path}", peer.port());
            warm(peer.name, || peer.cpu_time(), |seconds| wrk(&url, None, CONNECTIONS, seconds))
        })?;
    }
    let mut direct = Row::new("no proxy");
    direct.note(String::from(
        "what the others are compared with; nothing is added, and no proxy takes CPU time",
    ));
    // A floor before and after each round: what the machine does meanwhile is in both.
    let floor = || rate.load(upstream.port, &path, length)?.all_answered();
    let mut before = floor()?;
    for number in 0..rounds {
        let mut seen_by: Vec<(usize, Seen)> = Vec::new();
        round(rate.phase, number, &mut running, |at, peer| {
            let port = peer.port();
            let load = || rate.load(port, &path, length)?.all_answered();
            if let Some(done) = peer.measure(bench, "requests", load)? {
                let each = done.micros_per(done.seen.latencies.len() as f64);
                peer.row.push_in(number, "CPU µs/request", each);
                seen_by.push((at, done.seen));
            }
            Ok(())
        })?;
        let after = floor()?;
        for (quantile, figure, added) in QUANTILES {
            let floor = f64::midpoint(before.at(quantile), after.at(quantile));
            direct.push(figure, floor);
            for (at, seen) in &seen_by {
                let row = &mut running[*at].row;
                row.push_in(number, added, seen.at(quantile) - floor);
                row.push_in(number, figure, seen.at(quantile));
            }
        }
        before = after;
    }
    let mut rows: Vec<Row> = running.into_iter().map(|peer| peer.into_row()).collect();
    rows.push(direct);
    Ok(Table::new(rate.phase, rate.title, RATIO, rows))
}

/// What a load saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Of good answers, in microseconds, in order.
    pub(super) latencies: Vec<f64>,
    /// Good answers of the endpoint whose answers are marked.
    pub(super) marked: u64,
    /// Requests without a good answer.
    pub(super) failed: u64,
    /// Why the first of them failed.
    pub(super) error: Option<anyhow::Error>,
}

impl Seen {
    pub(super) fn at(&self, quantile: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * quantile).round() as usize).copied().unwrap_or(f64::NAN)
    }

    /// Fails where a request did.
    pub(super) fn all_answered(self) -> anyhow::Result<Seen> {
        match self.error {
            Some(error) => Err(error.context(format!("{} requests failed", self.failed))),
            None => Ok(self),
        }
    }

    fn add(&mut self, other: Seen) {
        self.latencies.extend(other.latencies);
        self.marked += other.marked;
        self.failed += other.failed;
        self.error = self.error.take().or(other.error);
    }
}

/// The letter of which a marked answer is made.
pub(super) const MARK: char = 'y';

impl Rate {
    /// So many requests at their times, failed ones among them.
    pub(super) fn load(&self, port: u16, path: &str, length: Duration) -> anyhow::Result<Seen> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{TRACE_HEADER}\r\n\r\n");
        let each = Duration::from_secs(1) * CONNECTIONS / self.per_second;
        let begin = Instant::now() + Duration::from_millis(100);
        let mut all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..CONNECTIONS)
                .map(|number| {
                    let (request, first) = (request.as_bytes(), begin + each * number / CONNECTIONS);
                    scope.spawn(move || one(port, request, first, each, begin + length))
                })
                .collect();
            let mut all = Seen::default();
            for thread in threads {
                match thread.join() {
                    Ok(seen) => all.add(seen?),
                    Err(_) => bail!("a thread of the load ended by a panic"),
                }
            }
            Ok(all)
        })?;
        all.latencies.sort_by(f64::total_cmp);
        Ok(all)
    }
}

/// One connection's requests; a failed one takes the connection with it.
fn one(port: u16, request: &[u8], first: Instant, each: Duration, until: Instant) -> anyhow::Result<Seen> {
    let mut connection = connect(port)?;
    let mut answer = vec![0; 8 * 1024];
    let mut seen = Seen::default();
    let mut due = first;
    while due < until {
        pause(due.saturating_duration_since(Instant::now()));
        match exchange(&mut connection, request, &mut answer) {
            Ok(letter) => {
                seen.latencies.push(due.elapsed().as_secs_f64() * 1e6);
                seen.marked += u64::from(char::from(letter) == MARK);
            }
            Err(error) => {
                seen.failed += 1;
                seen.error.get_or_insert(error);
                connection = connect(port)?;
            }
        }
        due += each;
    }
    Ok(seen)
}

fn connect(port: u16) -> anyhow::Result<TcpStream> {
    let connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    Ok(connection)
}

/// A request and its answer of 1 KiB; gives the last letter.
fn exchange(connection: &mut TcpStream, request: &[u8], answer: &mut [u8]) -> anyhow::Result<u8> {
    connection.write_all(request)?;
    let mut have = 0;
    loop {
        let length = connection.read(&mut answer[have..])?;
        if length == 0 {
            bail!("closed after {have} bytes");
        }
        have += length;
        let got = &answer[..have];
        let Some(head) = got.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        if !got.starts_with(b"HTTP/1.1 200") {
            bail!("answered {:?}", String::from_utf8_lossy(&got[..have.min(200)]));
        }
        if have >= head + 4 + 1024 {
            return Ok(got[have - 1]);
        }
    }
}
