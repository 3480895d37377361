//! CPU time of the proxy per HTTP/1.1 request, over 64 keep-alive connections as fast as they go. All proxies
//! run at once and are loaded in turn, round after round, so that a slow moment of the machine meets all alike.

use anyhow::bail;

use crate::configuration::{Front, Scenario};
use crate::measure::{cpu_time, wrk};
use crate::peer::{Bench, Name};
use crate::report::Table;

pub(super) const TITLE: &str =
    "CPU time per HTTP/1.1 request (64 connections, 1 KiB, 100 routes, one worker)";

const CONNECTIONS: u32 = 64;
const WARM_SECONDS: u32 = 1;

pub(super) fn run(bench: &Bench, peers: &[Name]) -> anyhow::Result<Table> {
    let (rounds, seconds) = if bench.quick { (3, 4) } else { (7, 8) };
    let scenario = Scenario::of(Front::Http);
    let upstream = bench.upstream(Front::Http)?;
    let mut running = bench.proxies(peers, &scenario, upstream.port)?;
    for round in 0..rounds {
        for (row, proxy) in &mut running {
            let url = format!("http://127.0.0.1:{}{}", proxy.port, scenario.path());
            if round == 0 {
                wrk(&url, CONNECTIONS, WARM_SECONDS)?;
            }
            let before = cpu_time(proxy.pid())?;
            let load = wrk(&url, CONNECTIONS, seconds)?;
            let used = cpu_time(proxy.pid())?.saturating_sub(before);
            if load.errors > 0 || load.requests == 0 {
                bail!("{}: {} errors in {} requests", row.peer, load.errors, load.requests);
            }
            row.push("CPU µs/request", used.as_secs_f64() * 1e6 / load.requests as f64);
            row.push("requests/s", load.per_second);
        }
    }
    Ok(Table {
        phase: "http1".to_owned(),
        title: TITLE.to_owned(),
        ratio_of: "CPU µs/request".to_owned(),
        rows: running.into_iter().map(|(row, _)| row).collect(),
    })
}
