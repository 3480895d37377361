//! How long a change takes until the last of many proxies has acknowledged it, and what that costs the control plane:
//! the real `pontoon serve` and a server on go-control-plane's snapshot cache, each with the same services, endpoints
//! and proxies, one after the other. Started by `cargo xtask bench control-plane`.

mod change;
mod fleet;
mod server;
mod wire;
mod world;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use tokio::time::Instant;

use self::change::{Change, Changer};
use self::fleet::{Fleet, Goal, Role};
use self::server::{Addresses, Kind, Site};
use self::world::{ENDPOINTS, World};
use crate::report::{Results, Row, Table};

/// How the results name these tables, with the point after it.
pub(crate) const PHASE: &str = "control-plane";
/// What a reader must know of the figures.
pub(crate) const NOTE: &str = concat!(
    "Simulated proxies, all in one process, each with a connection and a delta ADS stream of its own, acknowledge what ",
    "they get. A time runs from just before a change is made until the last of them has sent its acknowledgement, in ms; ",
    "of fewer than a hundred repetitions p99 is the longest. *registration*: an instance registers over Eureka's HTTP ",
    "interface with another port; *1 %*: so many services change at once, in one batch; *weight*: a migration's weight is ",
    "set through the API; *file*: an endpoint in the file of a pool, of which 80 ms are the wait for the file to come to ",
    "rest. *cold*: from the start of the process until the last proxy has everything. A tenth of the services is ",
    "registered in Eureka, the others are pools in files. A gateway takes everything; a sidecar asks for ten services by ",
    "name, among them those that change. The peer is a small server on go-control-plane's snapshot cache ",
    "(`load-tests/go-control-plane`), one snapshot for all proxies; it is told of changes over HTTP, keeps nothing, and ",
    "serves one of the two views where Pontoon serves both. Processors are shared by server, proxies and whatever else ",
    "the machine does.\n\n",
);

/// As `load-tests/go-control-plane/go.mod` says.
const GO_CONTROL_PLANE: &str = "0.14.0";
/// For one goal: a server that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between a change and the next.
const PAUSE: Duration = Duration::from_millis(20);
/// So that what a start leaves behind is done.
const SETTLE: Duration = Duration::from_secs(1);
/// The least that a p50 is taken of.
const FEWEST: usize = 5;
const MIB: f64 = 1024.0 * 1024.0;

/// Measures control planes.
#[derive(Debug, Parser)]
#[command(name = "pontoon-load-tests control-plane")]
pub(crate) struct Arguments {
    /// A thousand services, 10 and 200 proxies; under three minutes.
    #[arg(long)]
    quick: bool,
    /// Only points whose name has this in it, as in `10000-services-1000-sidecars`.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only Pontoon.
    #[arg(long)]
    alone: bool,
    /// The JSON of an earlier run: what has become worse since by more than the spread is printed.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Where the results go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Our control plane.
    #[arg(long, env = "PONTOON_BENCH_PONTOON")]
    pontoon: PathBuf,
    /// The peer.
    #[arg(long, env = "PONTOON_BENCH_GO_CONTROL_PLANE")]
    go_control_plane: PathBuf,
    /// For objects, data, logs and results.
    #[arg(long, env = "PONTOON_BENCH_ARTIFACTS")]
    artifacts: PathBuf,
}

/// One table.
#[derive(Debug, Clone, Copy)]
struct Point {
    services: usize,
    proxies: usize,
    role: Role,
}

const fn point(services: usize, proxies: usize, role: Role) -> Point {
    Point { services, proxies, role }
}

const QUICK: [Point; 2] = [point(1_000, 10, Role::Gateways), point(1_000, 200, Role::Sidecars)];
const ALL: [Point; 8] = [
    point(1_000, 10, Role::Gateways),
    point(1_000, 200, Role::Gateways),
    point(1_000, 1_000, Role::Sidecars),
    point(10_000, 10, Role::Gateways),
    point(10_000, 200, Role::Gateways),
    point(10_000, 200, Role::Sidecars),
    point(10_000, 1_000, Role::Sidecars),
    point(10_000, 1_000, Role::Gateways),
];

impl Point {
    fn phase(self) -> String {
        let Point { services, proxies, role } = self;
        format!("{PHASE}-{services}-services-{proxies}-{}", role.text())
    }

    fn title(self) -> String {
        let Point { services, proxies, role } = self;
        format!(
            "Control plane: {services} services, {} endpoints, {proxies} {}",
            services * ENDPOINTS,
            role.text()
        )
    }
}

/// Where a table stands among the others of the control plane.
pub(crate) fn place(phase: &str) -> usize {
    QUICK.iter().chain(&ALL).position(|point| point.phase() == phase).unwrap_or(0)
}

/// Measures, prints and writes.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let points: &[Point] = if arguments.quick { &QUICK } else { &ALL };
    let chosen = |point: &&Point| arguments.only.as_ref().is_none_or(|only| point.phase().contains(only));
    let mut results = Results::begin(&[], arguments.quick);
    let earlier = results.earlier(arguments.against.as_deref())?;
    let mut failed = Vec::new();
    results.about("go-control-plane", String::from(GO_CONTROL_PLANE));
    for point in points.iter().filter(chosen) {
        println!("{}", point.title());
        match runtime.block_on(measure(arguments, *point)) {
            Ok(table) => {
                println!("{}", table.markdown());
                results.add(table);
            }
            Err(error) => {
                eprintln!("{}: {error:#}", point.phase());
                failed.push(point.phase());
            }
        }
    }
    // The book shows full runs only, and not those without the peer.
    let is_for_book = !arguments.quick && !arguments.alone;
    results.publish(is_for_book, &arguments.artifacts, earlier.as_ref(), arguments.json.as_deref())?;
    anyhow::ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

async fn measure(arguments: &Arguments, point: Point) -> anyhow::Result<Table> {
    let site = Site {
        pontoon: arguments.pontoon.clone(),
        go_control_plane: arguments.go_control_plane.clone(),
        folder: arguments.artifacts.join(PHASE),
        world: World { services: point.services },
    };
    site.clear()?;
    let mut table = Table::new(&point.phase(), &point.title(), "registration p99", Vec::new());
    for kind in Kind::ALL.into_iter().take(if arguments.alone { 1 } else { Kind::ALL.len() }) {
        let row = measure_one(&site, kind, point, arguments.quick).await;
        table
            .rows
            .push(row.with_context(|| format!("{}; its log is in {}", kind.text(), log_folder(&site)))?);
    }
    Ok(table)
}

fn log_folder(site: &Site) -> String {
    Path::display(&site.folder).to_string()
}

async fn measure_one(site: &Site, kind: Kind, point: Point, quick: bool) -> anyhow::Result<Row> {
    let addresses = Addresses::free()?;
    let alone = alone(site, kind, point.role, addresses).await?;

    let mut fleet = Fleet::start(site.world, point.role, point.proxies, addresses.xds);
    fleet.begin(Goal::Everything);
    let started = Instant::now();
    let mut server = site.start(kind, point.role, addresses)?;
    let cold = fleet.reached(PATIENCE).await;
    server.is_alive()?;
    let cold = cold.context("cold start")?.duration_since(started);
    server.is_ready().await?;
    tokio::time::sleep(SETTLE).await;
    let (resident, _) = server.resident()?;

    let mut changer = Changer::new(site, kind, addresses)?;
    let mut row = Row::new(kind.text());
    let mut cpu_ms = None;
    for change in Change::ALL.into_iter().filter(|change| change.is_for(kind)) {
        let cpu = server.cpu_time()?;
        let times = repeat(&mut fleet, &mut changer, change, quick).await;
        server.is_alive()?;
        let mut times = times.with_context(|| change.text())?;
        let spent = server.cpu_time()?.saturating_sub(cpu);
        cpu_ms.get_or_insert(milliseconds(spent) / times.len() as f64);
        times.sort_unstable();
        row.push(&format!("{} p50", change.text()), milliseconds(percentile(&times, 50)));
        row.push(&format!("{} p99", change.text()), milliseconds(percentile(&times, 99)));
    }
    for change in Change::ALL.into_iter().filter(|change| !change.is_for(kind)) {
        row.note(format!("{}: it reads none", change.text()));
    }
    let (after, peak) = server.resident()?;
    fleet.stop().await;
    // All in bytes of at most some GiB: a float has room for them.
    let cpu_ms = cpu_ms.unwrap_or_default();
    row.push("CPU ms per registration", cpu_ms);
    row.push("CPU µs per registration and proxy", cpu_ms * 1_000.0 / point.proxies as f64);
    row.push("MiB without proxies", alone as f64 / MIB);
    row.push("MiB", after as f64 / MIB);
    row.push("MiB at most", peak as f64 / MIB);
    row.push("KiB per proxy", resident.saturating_sub(alone) as f64 / 1024.0 / point.proxies as f64);
    row.push("cold, s", cold.as_secs_f64());
    Ok(row)
}

/// Fills the registry and leaves; gives the resident memory without proxies.
async fn alone(site: &Site, kind: Kind, role: Role, addresses: Addresses) -> anyhow::Result<u64> {
    let mut server = site.start(kind, role, addresses)?;
    server.is_ready().await?;
    if server.kind == Kind::Pontoon {
        Changer::new(site, kind, addresses)?.register_all().await?;
        drop(server);
        // What it holds after a start, not after the batches.
        server = site.start(kind, role, addresses)?;
        server.is_ready().await?;
    }
    tokio::time::sleep(SETTLE).await;
    Ok(server.resident()?.0)
}

async fn repeat(
    fleet: &mut Fleet,
    changer: &mut Changer<'_>,
    change: Change,
    quick: bool,
) -> anyhow::Result<Vec<Duration>> {
    let (repetitions, at_most) = match (change, quick) {
        (_, true) => (30, Duration::from_secs(6)),
        (Change::Registration, false) => (200, Duration::from_secs(30)),
        (_, false) => (100, Duration::from_secs(20)),
    };
    let began = Instant::now();
    let mut times: Vec<Duration> = Vec::with_capacity(repetitions);
    while times.len() < FEWEST || (times.len() < repetitions && began.elapsed() < at_most) {
        fleet.begin(change.goal());
        let start = Instant::now();
        changer.make(change).await?;
        times.push(fleet.reached(PATIENCE).await?.duration_since(start));
        tokio::time::sleep(PAUSE).await;
    }
    Ok(times)
}

/// Of sorted ones.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(rank).copied().unwrap_or_default()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_value_at_its_rank() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(100));
        assert_eq!(percentile(&times, 99), Duration::from_millis(198));
        assert_eq!(percentile(&times[..30], 99), Duration::from_millis(30));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}
