//! CPU time of the proxy per HTTP/1.1 request, over keep-alive connections as fast as they go: by connections, by
//! routes, by the size of the answer and of the request, and through two proxies in a row. All proxies run at once and are loaded in
//! turn, round after round, so that a slow moment of the machine meets all alike.

use crate::client::Exchange;
use crate::configuration::{Front, Scenario};
use crate::measure::wrk;
use crate::peer::{Bench, Name, warm};
use crate::report::{Row, Table};
use crate::sink;
use crate::turns::{contenders, round};

/// What is varied.
pub(super) struct Series {
    pub(super) phase: &'static str,
    pub(super) title: &'static str,
    loads: &'static [Load],
}

/// One way to load the proxies.
struct Load {
    label: &'static str,
    connections: u32,
    routes: usize,
    /// Proxies in a row.
    hops: usize,
    /// Of the answer, in bytes.
    body: usize,
    /// Of the request, in bytes.
    upload: usize,
}

const PLAIN: Load =
    Load { label: "64 connections", connections: 64, routes: 100, hops: 1, body: 1_024, upload: 0 };
const UPLOAD: Load = Load { body: 0, ..PLAIN };

pub(super) const CONNECTIONS: Series = Series {
    phase: "http1",
    title: "CPU time per HTTP/1.1 request (1 KiB, 100 routes, one worker)",
    loads: &[
        PLAIN,
        Load { label: "1 connection", connections: 1, ..PLAIN },
        Load { label: "512 connections", connections: 512, ..PLAIN },
    ],
};

pub(super) const ROUTES: Series = Series {
    phase: "routes",
    title: "The same by routes (64 connections, 1 KiB, one worker)",
    loads: &[
        Load { label: "10,000 routes", routes: 10_000, ..PLAIN },
        Load { label: "100 routes", ..PLAIN },
        Load { label: "1 route", routes: 1, ..PLAIN },
    ],
};

pub(super) const BODIES: Series = Series {
    phase: "bodies",
    title: "The same by the size of the answer, and of the request (64 connections, of 10 MiB 16, 100 routes, one worker)",
    loads: &[
        Load { label: "64 KiB", body: 64 * 1_024, ..PLAIN },
        Load { label: "nothing", body: 0, ..PLAIN },
        Load { label: "10 MiB", body: 10 * 1_024 * 1_024, connections: 16, ..PLAIN },
        Load { label: "1 KiB up", upload: 1_024, ..UPLOAD },
        Load { label: "64 KiB up", upload: 64 * 1_024, ..UPLOAD },
        Load { label: "10 MiB up", upload: 10 * 1_024 * 1_024, connections: 16, ..UPLOAD },
    ],
};

pub(super) const PAIR: Series = Series {
    phase: "pair",
    title: "The same through two proxies in a row, as between sidecars (64 connections, 1 KiB, 100 routes, one worker each, both on one processor)",
    loads: &[Load { label: "both together", hops: 2, ..PLAIN }],
};

pub(super) fn run(bench: &Bench, peers: &[Name], series: &Series) -> anyhow::Result<Table> {
    let (rounds, seconds) = if bench.quick { (3, 2) } else { (3, 4) };
    // The first is what is compared; the rest is for a full run.
    let loads = if bench.quick { &series.loads[..1] } else { series.loads };
    let upstream = bench.upstream(Front::Http)?;
    let sink = bench.own_upstream(sink::SERVER)?;
    let mut rows: Vec<Row> = peers.iter().map(|peer| Row::new(peer.text())).collect();
    for (peer, row) in peers.iter().zip(&mut rows) {
        if peer.is_on_jvm() && loads.len() > 1 {
            row.note(format!("{} alone: each load costs minutes of warming", loads[0].label));
        }
    }
    let cost = |load: &Load| format!("CPU µs/request, {}", load.label);
    for (at, load) in loads.iter().enumerate() {
        let scenario = Scenario { routes: load.routes, ..Scenario::of(Front::Http) };
        let upstream = if load.upload > 0 { &sink } else { &upstream };
        let able: Vec<Name> = peers.iter().copied().filter(|peer| at == 0 || !peer.is_on_jvm()).collect();
        let mut running = contenders(bench, &able, &scenario, load.hops, upstream.port)?;
        let script = (load.upload > 0).then(|| {
            let text = format!("wrk.method = 'POST'\nwrk.body = string.rep('x', {})\n", load.upload);
            bench.write("upload.lua", text)
        });
        let script = script.transpose()?;
        let path = scenario.path_to(load.body);
        for number in 0..rounds {
            round(load.label, number, &mut running, |_, peer| {
                let url = format!("http://127.0.0.1:{}{path}", peer.port());
                let wrk = |seconds| wrk(&url, script.as_deref(), load.connections, seconds);
                if number == 0 {
                    let exchange = Exchange { path: &path, upload: load.upload, answer: load.body };
                    exchange.connect(peer.port(), None)?;
                    warm(peer.name, || peer.cpu_time(), wrk)?;
                }
                let done = peer.measure(bench, load.label, || wrk(seconds)?.all_answered())?;
                if let Some(done) = done {
                    let each = done.micros_per(done.seen.requests as f64);
                    peer.row.push_in(number, &cost(load), each);
                    peer.row.push_in(number, &format!("requests/s, {}", load.label), done.seen.per_second);
                }
                Ok(())
            })?;
        }
        for of_load in running.into_iter().map(|peer| peer.into_row()) {
            if let Some(row) = rows.iter_mut().find(|row| row.peer == of_load.peer) {
                row.add(of_load);
            }
        }
    }
    Ok(Table::new(series.phase, series.title, &cost(&loads[0]), rows))
}
