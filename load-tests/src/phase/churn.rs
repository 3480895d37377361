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

use super::open::{self, Seen};
use crate::configuration::{self, Discovery, Front, Scenario};
use crate::peer::{Bench, Name, free_port, pause};
use crate::report::Table;
use crate::turns::{Contender, round};

pub(super) const TITLE: &str = "Endpoints that change 100 times a second (open loop, 2,000 requests/s, 32 connections, 1 KiB, one worker)";
pub(super) const NOTE: &str = "One of two endpoints is taken away and put back all the time; both answer all the \
time. Pontoon and Envoy are told by one xDS server, HAProxy by `disable server` and `enable server` at its runtime \
socket. nginx and Caddy learn of endpoints by a reload of their configuration, and Pingora by one's own code: they \
are left out. Beside each figure the same without changes, in the same round; the share of answers from the endpoint \
that comes and goes shows that changes arrive (a quarter, where it is there half of the time). Envoy's \
share is a third of that, why was not found, so it has less to do than the others.\n\n";

const BETWEEN_CHANGES: Duration = Duration::from_millis(10);
const RATIO: &str = "p99 µs, changing";
const QUANTILES: [(f64, &str, &str); 3] =
    [(0.5, "p50 µs", "p50 µs, changing"), (0.99, "p99 µs", RATIO), (0.999, "p99.9 µs", "p99.9 µs, changing")];
/// A runtime command is answered at once.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(5);

/// How a proxy learns of its endpoints.
enum Source {
    Xds(Discovery),
    Socket(PathBuf),
}

pub(super) fn run(bench: &Bench, peers: &[Name]) -> anyhow::Result<Table> {
    let (rounds, seconds) = if bench.quick { (1, 3) } else { (3, 6) };
    let length = Duration::from_secs(seconds);
    let stays = bench.upstream(Front::Http)?;
    let moves = bench.marked_upstream(open::MARK)?;
    let upstreams = [stays.port, moves.port];
    let scenario = Scenario::of(Front::Http);
    let path = scenario.path();
    let (mut running, mut sources) = (Vec::new(), Vec::new());
    for name in peers {
        let (peer, source) = start(bench, *name, &scenario, upstreams)?;
        running.push(peer);
        sources.push(source);
    }
    for number in 0..rounds {
        round("churn", number, &mut running, |at, peer| {
            let port = peer.port();
            let still = || open::MIDDLE.load(port, &path, length)?.all_answered();
            let still = peer.measure(bench, "without changes", still)?;
            let changing = || sources[at].load(port, &path, length, upstreams);
            let changing = peer.measure(bench, "changing", changing)?;
            for (quantile, figure, changed) in QUANTILES {
                if let Some(still) = &still {
                    peer.row.push_in(number, figure, still.seen.at(quantile));
                }
                if let Some(changing) = &changing {
                    peer.row.push_in(number, changed, changing.seen.0.at(quantile));
                }
            }
            if let Some(changing) = changing {
                let (seen, changes) = &changing.seen;
                if let Some(error) = &seen.error {
                    println!("{}: {} failed, the first: {error:#}", peer.row.peer, seen.failed);
                }
                let answers = seen.latencies.len() as f64;
                peer.row.push_in(number, "failed", seen.failed as f64);
                peer.row.push_in(number, "CPU µs/request, changing", changing.micros_per(answers));
                let each_second = f64::from(*changes) / length.as_secs_f64();
                peer.row.push_in(number, "changes a second", each_second);
                let share = seen.marked as f64 * 100.0 / answers;
                peer.row.push_in(number, "% of the endpoint that comes and goes", share);
            }
            Ok(())
        })?;
    }
    let rows = running.into_iter().map(|peer| peer.into_row()).collect();
    Ok(Table::new("churn", TITLE, RATIO, rows))
}

fn start(
    bench: &Bench,
    name: Name,
    scenario: &Scenario,
    upstreams: [u16; 2],
) -> anyhow::Result<(Contender, Source)> {
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
    let proxy = bench.start_proxy(name.text(), command, port)?;
    Ok((Contender::new(name, vec![proxy])?, source))
}

impl Source {
    /// What a load sees while endpoints change, and how often they did.
    fn load(
        &self,
        port: u16,
        path: &str,
        length: Duration,
        upstreams: [u16; 2],
    ) -> anyhow::Result<(Seen, u32)> {
        let ended = AtomicBool::new(false);
        let (seen, changes) = std::thread::scope(|scope| {
            let changing = scope.spawn(|| self.change(upstreams, &ended));
            let seen = open::MIDDLE.load(port, path, length);
            ended.store(true, Ordering::Relaxed);
            (seen, changing.join())
        });
        let Ok(changes) = changes else { bail!("what changes the endpoints ended by a panic") };
        let (seen, changes) = (seen?, changes?);
        let answers = seen.latencies.len() as f64;
        if seen.marked == 0 || seen.marked as f64 > answers * 0.45 {
            bail!("{} of {answers} answers are of the endpoint that comes and goes", seen.marked);
        }
        Ok((seen, changes))
    }

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
