//! Latency at a fixed rate, whatever the proxy does: each of some connections sends at its own fixed times, and a
//! request's latency counts from when it should have been sent, so that a stall is felt by all whom it would have
//! held up (what is called coordinated omission is left out otherwise). The same without a proxy is the floor.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::Instant;

use crate::configuration::{Front, Scenario};
use crate::measure::cpu_time;
use crate::peer::{Bench, Name, pause};
use crate::report::{Row, Table};

pub(super) const TITLE: &str = "Latency at 2,000 requests/s (open loop, 32 connections, 1 KiB, one worker)";

const RATE: u32 = 2_000;
const CONNECTIONS: u32 = 32;
const RATIO: &str = "added p99 µs";
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn run(bench: &Bench, peers: &[Name]) -> anyhow::Result<Table> {
    let (rounds, seconds) = if bench.quick { (3, 3) } else { (7, 8) };
    let length = Duration::from_secs(seconds);
    let upstream = bench.upstream(Front::Http)?;
    let scenario = Scenario::of(Front::Http);
    let mut running = bench.proxies(peers, &scenario, upstream.port)?;
    let mut direct = Row::new("no proxy");
    for _ in 0..rounds {
        let floor = load(upstream.port, &scenario.path(), length)?;
        direct.push("p50 µs", floor.at(0.5));
        direct.push("p99 µs", floor.at(0.99));
        direct.push("p99.9 µs", floor.at(0.999));
        for (row, proxy) in &mut running {
            let before = cpu_time(proxy.pid())?;
            let seen = load(proxy.port, &scenario.path(), length)
                .with_context(|| format!("through {}", row.peer))?;
            let used = cpu_time(proxy.pid())?.saturating_sub(before);
            row.push("p50 µs", seen.at(0.5));
            row.push("p99 µs", seen.at(0.99));
            row.push("p99.9 µs", seen.at(0.999));
            row.push("added p50 µs", seen.at(0.5) - floor.at(0.5));
            row.push(RATIO, seen.at(0.99) - floor.at(0.99));
            row.push("CPU µs/request", used.as_secs_f64() * 1e6 / seen.0.len() as f64);
        }
    }
    let mut rows: Vec<Row> = running.into_iter().map(|(row, _)| row).collect();
    rows.push(direct);
    Ok(Table { phase: "open".to_owned(), title: TITLE.to_owned(), ratio_of: RATIO.to_owned(), rows })
}

/// Latencies in microseconds, in order.
struct Latencies(Vec<f64>);

impl Latencies {
    fn at(&self, quantile: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        self.0.get((last as f64 * quantile).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

fn load(port: u16, path: &str, length: Duration) -> anyhow::Result<Latencies> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let each = Duration::from_secs(1) * CONNECTIONS / RATE;
    let begin = Instant::now() + Duration::from_millis(100);
    let mut all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let (request, first) = (request.as_bytes(), begin + each * number / CONNECTIONS);
                scope.spawn(move || one(port, request, first, each, begin + length))
            })
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            match thread.join() {
                Ok(seen) => all.extend(seen?),
                Err(_) => bail!("a thread of the load ended by a panic"),
            }
        }
        Ok(all)
    })?;
    all.sort_by(f64::total_cmp);
    Ok(Latencies(all))
}

/// One connection's requests.
fn one(
    port: u16,
    request: &[u8],
    first: Instant,
    each: Duration,
    until: Instant,
) -> anyhow::Result<Vec<f64>> {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    let mut answer = vec![0; 8 * 1024];
    let mut seen = Vec::new();
    let mut due = first;
    while due < until {
        pause(due.saturating_duration_since(Instant::now()));
        connection.write_all(request)?;
        let mut have = 0;
        loop {
            let length = connection.read(&mut answer[have..])?;
            if length == 0 {
                bail!("closed after {have} bytes");
            }
            have += length;
            let head = answer[..have].windows(4).position(|w| w == b"\r\n\r\n");
            if head.is_some_and(|head| have >= head + 4 + 1024) {
                break;
            }
        }
        if !answer.starts_with(b"HTTP/1.1 200") {
            bail!("answered {:?}", String::from_utf8_lossy(&answer[..have.min(200)]));
        }
        seen.push(due.elapsed().as_secs_f64() * 1e6);
        due += each;
    }
    Ok(seen)
}
