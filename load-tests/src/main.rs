//! Measures Pontoon's proxy and its peers side by side in one run. Every figure is read as a ratio: this may run
//! on a shared machine, and CPU time per request is what noise touches least. Started by `cargo xtask bench`.

mod client;
mod configuration;
mod control_plane;
mod gateway_api;
mod grpc;
mod measure;
mod peer;
mod phase;
mod report;
mod sink;
mod turns;

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::Instant;

use crate::peer::{Bench, Name};
use crate::phase::Phase;

/// Measures Pontoon's proxy and its peers.
#[derive(Debug, Parser)]
struct Arguments {
    /// Shorter runs.
    #[arg(long)]
    quick: bool,
    /// Only these phases.
    #[arg(long = "phase", value_enum)]
    phases: Vec<Phase>,
    /// Only these peers beside ourselves.
    #[arg(long = "peer", value_enum)]
    peers: Vec<Name>,
    /// The JSON of an earlier run: what has become worse since by more than the spread is printed.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Where the results go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Our proxy.
    #[arg(long, env = "PONTOON_BENCH_PROXY")]
    proxy: PathBuf,
    /// Our control plane.
    #[arg(long, env = "PONTOON_BENCH_PONTOON")]
    pontoon: PathBuf,
    /// The Spring applications.
    #[arg(long, env = "PONTOON_E2E_SPRING")]
    spring: Option<PathBuf>,
    /// Envoy.
    #[arg(long, env = "PONTOON_BENCH_ENVOY")]
    envoy: PathBuf,
    /// The proxy on Pingora.
    #[arg(long, env = "PONTOON_BENCH_PINGORA")]
    pingora: PathBuf,
    /// Caddy.
    #[arg(long, env = "PONTOON_BENCH_CADDY")]
    caddy: PathBuf,
    /// For configurations, logs and results.
    #[arg(long, env = "PONTOON_BENCH_ARTIFACTS")]
    artifacts: PathBuf,
}

/// As many open files as there may be: ten thousand idle connections have one each.
fn raise_limits() -> anyhow::Result<()> {
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, maximum: limits.maximum })?;
    Ok(())
}

fn main() -> anyhow::Result<()> {
    // Other benchmarks, with arguments of their own.
    let mut words = std::env::args_os().skip(1).peekable();
    if words.next_if(|word| word == control_plane::PHASE).is_some() {
        let arguments = std::iter::once(control_plane::PHASE.into()).chain(words);
        return control_plane::run(&control_plane::Arguments::parse_from(arguments));
    }
    if words.next_if(|word| word == gateway_api::PHASE).is_some() {
        let arguments = std::iter::once(gateway_api::PHASE.into()).chain(words);
        return gateway_api::run(&gateway_api::Arguments::parse_from(arguments));
    }
    if words.next_if(|word| word == report::PAGE).is_some() {
        return report::write_book_page();
    }
    // What stands behind the proxies.
    if let Some(server) = words.next_if(|word| word == grpc::SERVICE || word == sink::SERVER) {
        let port = words.next().and_then(|word| word.to_str()?.parse().ok()).context("expected a port")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return match server == sink::SERVER {
            true => runtime.block_on(sink::serve(port)),
            false => runtime.block_on(grpc::serve(port)),
        };
    }
    let arguments = Arguments::parse();
    raise_limits()?;
    let mut peers = vec![Name::Pontoon];
    // A JVM takes longer to start and to warm than a short run has.
    let chosen = |p: &Name| match arguments.peers.as_slice() {
        [] => !(arguments.quick && p.is_on_jvm()),
        some => some.contains(p),
    };
    peers.extend(Name::OTHERS.into_iter().filter(chosen));
    // Before this process leaves a processor to the proxies.
    let mut results = report::Results::begin(&peers, arguments.quick);
    let earlier = results.earlier(arguments.against.as_deref())?;
    // Before there are threads.
    let last = peer::leave_one()?;
    if last.is_none() {
        println!("there is one processor, which the proxies share with the load and what stands behind them");
    }
    std::fs::create_dir_all(&arguments.artifacts)
        .with_context(|| format!("cannot make {}", arguments.artifacts.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.spawn(peer::end_when_asked());
    let bench = Bench {
        folder: arguments.artifacts.clone(),
        proxy: arguments.proxy,
        envoy: arguments.envoy,
        pingora: arguments.pingora,
        caddy: arguments.caddy,
        pontoon: arguments.pontoon,
        spring: arguments.spring,
        runtime: runtime.handle().clone(),
        quick: arguments.quick,
        last,
    };
    let phases = match (arguments.phases.is_empty(), arguments.quick) {
        (false, _) => arguments.phases,
        (true, true) => Phase::QUICK.to_vec(),
        (true, false) => Phase::ALL.to_vec(),
    };

    let mut failed = Vec::new();
    let started = Instant::now();
    for phase in phases {
        println!("{}", phase.title());
        let began = Instant::now();
        let able: Vec<Name> = peers.iter().copied().filter(|peer| phase.takes(*peer)).collect();
        match phase.run(&bench, &able) {
            Ok(table) => {
                println!("{}\n({:.0} s)\n", table.markdown(), began.elapsed().as_secs_f64());
                results.add(table);
            }
            // What others have measured for an hour is not to be lost.
            Err(error) => {
                eprintln!("phase {}: {error:#}", phase.name());
                failed.push(phase.name());
            }
        }
    }
    // The book shows full runs only, and not those of a few peers.
    let is_for_book = !arguments.quick && arguments.peers.is_empty();
    results.publish(is_for_book, &arguments.artifacts, earlier.as_ref(), arguments.json.as_deref())?;
    println!("all of it took {:.0} s", started.elapsed().as_secs_f64());
    anyhow::ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}
