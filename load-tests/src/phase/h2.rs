//! HTTP/2 on both sides: a hundred streams on each connection as fast as they go, by h2load. Plain requests, or calls
//! of a gRPC service.

use std::process::Command;

use anyhow::Context as _;

use crate::configuration::{Front, Scenario};
use crate::grpc;
use crate::measure::{Load, TRACE_HEADER};
use crate::peer::{Bench, Name};
use crate::report::Table;
use crate::turns::{contenders, round};

/// What is asked for.
pub(super) struct Kind {
    pub(super) phase: &'static str,
    pub(super) title: &'static str,
    is_grpc: bool,
}

impl Kind {
    /// Of each answer; an error that says 200 has fewer.
    fn answer_bytes(&self) -> u64 {
        if self.is_grpc { grpc::message().len() as u64 } else { 1_024 }
    }
}

pub(super) const PLAIN: Kind = Kind {
    phase: "h2",
    title: "HTTP/2 with prior knowledge on both sides (100 streams a connection, 1 KiB, 100 routes, one worker)",
    is_grpc: false,
};

pub(super) const GRPC: Kind = Kind {
    phase: "grpc",
    title: "gRPC calls (100 streams a connection, messages of 1 KiB each way, 100 routes, one worker)",
    is_grpc: true,
};

/// Of each connection.
const STREAMS: u32 = 100;
const CONNECTIONS: [(u32, &str, &str); 2] = [
    (1, "CPU µs/request, 1 connection", "requests/s, 1 connection"),
    (16, "CPU µs/request, 16", "requests/s, 16"),
];

pub(super) fn run(bench: &Bench, peers: &[Name], kind: &Kind) -> anyhow::Result<Table> {
    let (rounds, seconds) = if bench.quick { (2, 2) } else { (3, 6) };
    let upstream =
        if kind.is_grpc { bench.own_upstream(grpc::SERVICE)? } else { bench.upstream(Front::H2c)? };
    let scenario = Scenario::of(Front::H2c);
    let mut request = Vec::new();
    if kind.is_grpc {
        let message = bench.write("grpc-message", grpc::message())?.display().to_string();
        let words = ["-d", &message, "-H", "content-type: application/grpc", "-H", "te: trailers"];
        request.extend(words.map(String::from));
    }
    let path = scenario.path();
    let mut running = contenders(bench, peers, &scenario, 1, upstream.port)?;
    for number in 0..rounds {
        round(kind.phase, number, &mut running, |_, peer| {
            let port = peer.port();
            let url = format!("http://127.0.0.1:{port}{path}");
            if number == 0 {
                let check = async {
                    match kind.is_grpc {
                        true => grpc::check(port, &path).await,
                        false => grpc::check_plain(port, &path, 1_024).await,
                    }
                };
                bench.runtime.block_on(check)?;
                h2load(&url, &request, 1, 1)?;
            }
            for (connections, cost, rate) in CONNECTIONS {
                let streams = u64::from(connections * STREAMS);
                let load = || {
                    let seen = h2load(&url, &request, connections, seconds)?;
                    seen.whole(kind.answer_bytes(), streams).all_answered()
                };
                if let Some(done) = peer.measure(bench, rate, load)? {
                    peer.row.push_in(number, cost, done.micros_per(done.seen.requests as f64));
                    peer.row.push_in(number, rate, done.seen.per_second);
                }
            }
            Ok(())
        })?;
    }
    let rows = running.into_iter().map(|peer| peer.into_row()).collect();
    Ok(Table::new(kind.phase, kind.title, CONNECTIONS[1].1, rows))
}

/// What h2load saw.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    load: Load,
    /// Of bodies.
    data_bytes: u64,
}

impl Seen {
    /// With an error for each answer that is not whole, as a gRPC error is, which says 200. The last ones were still on
    /// their way when the time was over: as many as there are streams.
    fn whole(self, answer_bytes: u64, streams: u64) -> Load {
        let whole = self.data_bytes / answer_bytes.max(1);
        let short = self.load.requests.saturating_sub(whole + streams);
        Load { errors: self.load.errors + short, ..self.load }
    }
}

fn h2load(url: &str, request: &[String], connections: u32, seconds: u32) -> anyhow::Result<Seen> {
    let output = Command::new("h2load")
        .args(["-t1", &format!("-c{connections}"), "-m", &STREAMS.to_string(), "-D", &seconds.to_string()])
        .args(["-H", TRACE_HEADER])
        .args(request)
        .arg(url)
        .output()
        .context("cannot start h2load")?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// `finished in 3.00s, 13200.33 req/s, ...`, `requests: 100 total, ..., 99 succeeded, 1 failed, 0 errored, 0 timeout` and
/// `traffic: 1.21MB (1268780) total, 20.00KB (20480) headers (space savings 90.0%), 1.00MB (1048576) data`.
fn parse(text: &str) -> anyhow::Result<Seen> {
    let line = |mark: &str| {
        let line = text.lines().find(|line| line.starts_with(mark));
        line.with_context(|| format!("h2load says nothing useful:\n{text}"))
    };
    let number = |line: &str, unit: &str| {
        let part = line.split(',').find(|part| part.trim_end().ends_with(unit));
        part.and_then(|part| part.split_whitespace().find_map(|word| word.parse::<f64>().ok())).unwrap_or(0.0)
    };
    let requests = line("requests:")?;
    let errors: f64 = ["failed", "errored", "timeout"].iter().map(|unit| number(requests, unit)).sum();
    let data = line("traffic:")?.rsplit(',').next().and_then(|part| part.split(['(', ')']).nth(1));
    let load = Load {
        requests: number(line("status codes:")?, "2xx") as u64,
        errors: errors as u64,
        per_second: number(line("finished in")?, "req/s"),
    };
    Ok(Seen { load, data_bytes: data.and_then(|bytes| bytes.parse().ok()).unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_h2load_prints_is_read() {
        let text = "finished in 3.00s, 13200.33 req/s, 13.21MB/s\n\
                    requests: 39700 total, 39800 started, 39700 done, 39601 succeeded, 1 failed, 2 errored, 3 timeout\n\
                    status codes: 39601 2xx, 0 3xx, 0 4xx, 0 5xx\n\
                    traffic: 39.56MB (41478136) total, 826.02KB (845852) headers (space savings 92.30%), 38.67MB (40550400) data\n";
        let load = Load { requests: 39_601, errors: 6, per_second: 13_200.33 };
        let seen = parse(text).unwrap();
        assert_eq!(seen, Seen { load, data_bytes: 40_550_400 });
        // One answer of 1 KiB was none, and may have been on its way.
        assert_eq!(seen.whole(1_024, 0), Load { errors: 7, ..load });
        assert_eq!(seen.whole(1_024, 1), load);
    }
}
