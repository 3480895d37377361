//! The open loop while one of two endpoints is taken away and put back, a hundred changes a second: our proxy and
//! Envoy are told by the same xDS server, HAProxy at its runtime socket. Both endpoints answer all the time, so
//! every failure is the proxy's own. The second endpoint's answers are marked, which shows that changes arrive.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::Instant;

use super::open;
use crate::configuration::{self, Discovery, Front, Scenario};
use crate::measure::cpu_time;
use crate::peer::{Bench, Name, Running, free_port, pause};
use crate::report::{Row, Table};

pub(super) const TITLE: &str = "Endpoints that change 100 times a second (open loop, 2,000 requests/s, 32 connections, 1 KiB, one worker)";
pub(super) const NOTE: &str = "One of two endpoints is taken away and put back all the time; both answer all the \
time. Pontoon and Envoy are told by one xDS server, HAProxy by `disable server` and `enable server` at its runtime \
socket. nginx and Caddy learn of endpoints by a reload of their configuration, and Pingora by one's own code: they \
are left out. Beside each figure the same without changes, in the same round; the share of answers from the endpoint \
that comes and goes shows that changes arrive (a quarter, where it is there half of the time).\n\n";

const BETWEEN_CHANGES: Duration = Duration::from_millis(10);
const RATIO: &str = "p99 µs, changing";
/// A runtime command is answered at once.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(5);

/// How a proxy learns of its endpoints.
enum Source {
    Xds(Discovery),
    Socket(PathBuf),
}

struct Peer {
    row: Row,
    proxy: Running,
    source: Source,
}

pub(super) fn run(bench: &Bench, peers: &[Name]) -> anyhow::Result<Table> {
    let (rounds, seconds) = if bench.quick { (1, 3) } else { (3, 6) };
    let length = Duration::from_secs(seconds);
    let stays = bench.upstream(Front::Http)?;
    let moves = bench.marked_upstream(open::MARK)?;
    let upstreams = [stays.port, moves.port];
    let scenario = Scenario::of(Front::Http);
    let mut running = peers
        .iter()
        .map(|name| start(bench, *name, &scenario, upstreams))
        .collect::<anyhow::Result<Vec<Peer>>>()?;
    for _ in 0..rounds {
        for peer in &mut running {
            peer.measure(&scenario.path(), length, upstreams)
                .with_context(|| format!("through {}", peer.row.peer))?;
        }
    }
    let rows = running.into_iter().map(|peer| peer.row).collect();
    Ok(Table::new("churn", TITLE, RATIO, rows))
}

fn start(bench: &Bench, name: Name, scenario: &Scenario, upstreams: [u16; 2]) -> anyhow::Result<Peer> {
    let port = free_port()?;
    let (command, source) = match name {
        Name::Haproxy => {
            let socket = bench.folder.join("haproxy.sock");
            bench.write("haproxy.map", configuration::haproxy_map(scenario))?;
            let text = configuration::haproxy_changing(&bench.folder, scenario, port, upstreams, &socket);
            let mut command = Command::new("haproxy");
            command.arg("-db").arg("-f").arg(bench.write("haproxy-churn.cfg", text)?);
            (command, Source::Socket(socket))
        }
        _ => {
            let discovery = bench.runtime.block_on(Discovery::serve(scenario, port, &upstreams))?;
            let command = match name {
                Name::Envoy => {
                    let bootstrap = configuration::envoy_dynamic(discovery.address);
                    bench.envoy(&bench.write("envoy-churn.yaml", bootstrap)?)
                }
                _ => bench.ours(discovery.address),
            };
            (command, Source::Xds(discovery))
        }
    };
    Ok(Peer { row: Row::new(name.text()), proxy: bench.start(name.text(), command, port)?, source })
}

impl Peer {
    /// One round: with endpoints as they are, then while they change.
    fn measure(&mut self, path: &str, length: Duration, upstreams: [u16; 2]) -> anyhow::Result<()> {
        let still = open::MIDDLE.load(self.proxy.port, path, length)?;
        let before = cpu_time(self.proxy.pid())?;
        let ended = AtomicBool::new(false);
        let (seen, changes) = std::thread::scope(|scope| {
            let changing = scope.spawn(|| self.source.change(upstreams, &ended));
            let seen = open::MIDDLE.load(self.proxy.port, path, length);
            ended.store(true, Ordering::Relaxed);
            (seen, changing.join())
        });
        let used = cpu_time(self.proxy.pid())?.saturating_sub(before);
        let Ok(changes) = changes else { bail!("what changes the endpoints ended by a panic") };
        let (seen, changes) = (seen?, changes?);
        let answers = seen.latencies.len() as f64;
        if let Some(error) = still.error {
            return Err(error.context("without changes"));
        }
        if seen.marked == 0 || seen.marked as f64 > answers * 0.45 {
            bail!("{} of {answers} answers are of the endpoint that comes and goes", seen.marked);
        }
        if let Some(error) = &seen.error {
            println!("{}: {} failed, the first: {error:#}", self.row.peer, seen.failed);
        }
        self.row.push("p50 µs", still.at(0.5));
        self.row.push("p50 µs, changing", seen.at(0.5));
        self.row.push("p99 µs", still.at(0.99));
        self.row.push(RATIO, seen.at(0.99));
        self.row.push("p99.9 µs", still.at(0.999));
        self.row.push("p99.9 µs, changing", seen.at(0.999));
        self.row.push("failed", seen.failed as f64);
        self.row.push("CPU µs/request, changing", used.as_secs_f64() * 1e6 / answers);
        self.row.push("changes a second", changes as f64 / length.as_secs_f64());
        self.row.push("% of the endpoint that comes and goes", seen.marked as f64 * 100.0 / answers);
        Ok(())
    }
}

impl Source {
    /// Takes the second endpoint away and puts it back until the load has ended, and leaves it there; gives how
    /// often.
    fn change(&self, [stays, moves]: [u16; 2], ended: &AtomicBool) -> anyhow::Result<u32> {
        let mut due = Instant::now();
        let (mut there, mut changes) = (true, 0);
        while !ended.load(Ordering::Relaxed) || !there {
            pause(due.saturating_duration_since(Instant::now()));
            there = !there;
            match self {
                Source::Xds(discovery) if there => discovery.publish(&[stays, moves]),
                Source::Xds(discovery) => discovery.publish(&[stays]),
                Source::Socket(path) => {
                    let word = if there { "enable" } else { "disable" };
                    command(path, &format!("{word} server upstream/two\n"))?;
                }
            }
            changes += 1;
            due += BETWEEN_CHANGES;
        }
        Ok(changes)
    }
}

/// One command at HAProxy's runtime socket, which says something only where it failed.
fn command(socket: &Path, line: &str) -> anyhow::Result<()> {
    let mut connection =
        UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    connection.set_read_timeout(Some(SOCKET_TIMEOUT))?;
    connection.write_all(line.as_bytes())?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    if !answer.trim().is_empty() {
        bail!("HAProxy says to {line:?}: {}", answer.trim());
    }
    Ok(())
}
