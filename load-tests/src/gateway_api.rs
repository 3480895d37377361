//! What many routes cost, and how soon a change of one of them is in force: the tests of public comparisons of Gateway
//! API implementations, against a real API server, `pontoon serve --kubernetes` and a gateway. Started by
//! `cargo xtask bench gateway-api`, inside of the cluster's namespaces.

mod attached;
mod backend;
mod client;
mod failover;
mod objects;
mod page;
mod probe;
mod rig;
mod scale;
mod seen;
mod store;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use tokio::time::Instant;

use self::rig::Site;
use crate::report::{Results, Row, Table};

pub(crate) use self::page::place;

/// The first argument that asks for these tests, and what the names of their tables begin with.
pub(crate) const PHASE: &str = "gateway-api";

/// For anything that has to come to hold: whoever takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(180);
const MIB: f64 = 1024.0 * 1024.0;

/// Measures what routes cost.
#[derive(Debug, Parser)]
#[command(name = "pontoon-load-tests gateway-api")]
pub(crate) struct Arguments {
    /// A tenth of the routes; about a minute.
    #[arg(long)]
    quick: bool,
    /// Only tests whose name has this in it, as in `route-probe`.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// The JSON of an earlier run: what has become worse since by more than the spread is printed.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Where the results go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Our control plane.
    #[arg(long, env = "PONTOON_BENCH_PONTOON")]
    pontoon: PathBuf,
    /// Our proxy.
    #[arg(long, env = "PONTOON_BENCH_PROXY")]
    proxy: PathBuf,
    /// For logs and results.
    #[arg(long, env = "PONTOON_BENCH_ARTIFACTS")]
    artifacts: PathBuf,
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Added and removed at once.
    attached: usize,
    /// Added one by one.
    probed: usize,
    /// Edits of one route.
    edits: usize,
    /// Services, each with a route.
    services: usize,
    /// Of each Service.
    endpoints: usize,
    /// How long endpoints come and go.
    churn: Duration,
    /// How often an endpoint flips, each way.
    flips: usize,
    /// How long it stays away, and back.
    flip: Duration,
}

const FULL: Sizes = Sizes {
    attached: 1_000,
    probed: 3_000,
    edits: 300,
    services: 5_000,
    endpoints: 10,
    churn: Duration::from_secs(60),
    flips: 5,
    flip: Duration::from_secs(5),
};
const QUICK: Sizes = Sizes {
    attached: 100,
    probed: 300,
    edits: 50,
    services: 500,
    endpoints: 10,
    churn: Duration::from_secs(10),
    flips: 2,
    flip: Duration::from_secs(2),
};

/// One test; its place here is its table's on the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    AttachedRoutes,
    RouteProbe,
    BackendFailover,
    RouteScale,
}

impl Test {
    /// The largest comes last: nothing has to be cleared away after it.
    const ALL: [Test; 4] = [Test::AttachedRoutes, Test::RouteProbe, Test::BackendFailover, Test::RouteScale];

    fn name(self) -> &'static str {
        match self {
            Test::AttachedRoutes => "attached-routes",
            // The second begins with the routes of the first.
            Test::RouteProbe => "route-probe-and-change",
            Test::BackendFailover => "backend-failover",
            Test::RouteScale => "route-scale",
        }
    }

    async fn run(self, site: &Site, sizes: Sizes) -> anyhow::Result<Vec<Table>> {
        match self {
            Test::AttachedRoutes => attached::run(site, sizes).await.map(|table| vec![table]),
            Test::RouteProbe => probe::run(site, sizes).await,
            Test::BackendFailover => failover::run(site, sizes).await.map(|table| vec![table]),
            Test::RouteScale => scale::run(site, sizes).await.map(|table| vec![table]),
        }
    }
}

/// Measures, prints and writes.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let sizes = if arguments.quick { QUICK } else { FULL };
    let mut results = Results::begin(&[], arguments.quick);
    let earlier = results.earlier(arguments.against.as_deref())?;
    let measured = runtime.block_on(measure(arguments, sizes, &mut results));
    let json = arguments.artifacts.join(results.file());
    results.save(&json, earlier.as_ref(), arguments.json.as_deref())?;
    // The book shows full runs only.
    let page = match arguments.quick {
        true => arguments.artifacts.join("benchmarks-gateway-api.md"),
        false => PathBuf::from("docs/benchmarks-gateway-api.md"),
    };
    page::write(&results, &page)?;
    println!("{}, from {}", page.display(), json.display());
    measured
}

async fn measure(arguments: &Arguments, sizes: Sizes, results: &mut Results) -> anyhow::Result<()> {
    let site = Site::prepare(&arguments.pontoon, &arguments.proxy, &arguments.artifacts).await?;
    results.about("Kubernetes", site.version().await?);
    let chosen = |test: &Test| arguments.only.as_ref().is_none_or(|only| test.name().contains(only));
    let mut failed = Vec::new();
    for test in Test::ALL.into_iter().filter(chosen) {
        let began = Instant::now();
        match test.run(&site, sizes).await.with_context(|| test.name()) {
            Ok(tables) => {
                for table in tables {
                    println!("{}\n\n{}\n", table.title, table.list());
                    results.add(table);
                }
                println!("({:.0} s)\n", began.elapsed().as_secs_f64());
            }
            // What the others have measured is not to be lost.
            Err(error) => {
                eprintln!("{error:#}; logs are in {}", arguments.artifacts.display());
                failed.push(test.name());
            }
        }
    }
    anyhow::ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// A table of one row: there is nobody else to be had.
fn table(name: &str, title: String, ratio_of: &str, row: Row) -> Table {
    Table::new(&format!("{PHASE}-{name}"), &title, ratio_of, vec![row])
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Times, in any order, as their median and two of the longest.
fn push_times(row: &mut Row, what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let of = |percent| milliseconds(crate::control_plane::percentile(&times, percent));
    row.push(&format!("{what} p50, ms"), of(50));
    row.push(&format!("{what} p99, ms"), of(99));
    row.push(&format!("{what} longest, ms"), of(100));
}
