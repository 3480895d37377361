//! The whole program: control runtime, workers, admin port, signals. It ends when it has drained.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pontoon_xds::client::Config;
use pontoon_xds::pb::envoy::config::core::v3::Node;
use pontoon_xds::pb::envoy::config::core::v3::node::UserAgentVersionType;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, reload};

use crate::admin::{Admin, Phase};
use crate::bootstrap::Bootstrap;
use crate::worker::{Options, Workers};
use crate::{admin, discovery, overload};

/// Long enough for a caller's next keep-alive request to see `Connection: close`.
const LAME_DUCK: Duration = Duration::from_millis(500);

/// Between looks at the memory in use.
const MEMORY_TICK: Duration = Duration::from_millis(250);

/// Changes what is logged while the process runs.
pub type LogFilter = reload::Handle<EnvFilter, tracing_subscriber::Registry>;

/// Logs to standard error, by `PONTOON_LOG` (as `RUST_LOG` elsewhere); without it, `info`.
pub fn start_logging() -> LogFilter {
    let filter = EnvFilter::try_from_env("PONTOON_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    // A second call in one process (tests) keeps the first subscriber.
    let _installed = tracing_subscriber::registry().with(filter).with(lines).try_init();
    handle
}

/// Runs until SIGTERM or SIGINT (or the admin port) ends it and what was in flight is done. A second signal ends
/// it at once.
///
/// # Errors
/// When the admin port or a thread cannot be had.
pub fn run(bootstrap: Bootstrap, logging: LogFilter) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control runtime")?
        .block_on(serve(bootstrap, logging))
}

async fn serve(bootstrap: Bootstrap, logging: LogFilter) -> anyhow::Result<()> {
    let config = Config::new(bootstrap.xds_server.clone(), node(&bootstrap));
    let discovery = discovery::start(config, bootstrap.sidecar.clone())
        .map_err(|problem| anyhow::anyhow!("a listener of the sidecar's: {problem}"))?;
    let admission = overload::Admission::new(limits(&bootstrap));
    let options = Options {
        workers: bootstrap.workers,
        lame_duck: LAME_DUCK,
        drain: bootstrap.drain,
        admission: admission.clone(),
    };
    tokio::spawn(watch_memory(admission));
    let workers =
        Arc::new(Workers::start(options, discovery.listeners()).context("cannot start the workers")?);
    let socket = TcpListener::bind(bootstrap.admin)
        .await
        .with_context(|| format!("cannot listen on the admin address {}", bootstrap.admin))?;
    let address = socket.local_addr()?;
    tracing::info!(
        node = bootstrap.node_id,
        cluster = bootstrap.cluster,
        xds = %bootstrap.xds_server,
        admin = %address,
        workers = bootstrap.workers,
        "pontoon-proxy {} starts",
        env!("CARGO_PKG_VERSION"),
    );
    let phase = Arc::new(watch::Sender::new(Phase::Serving));
    let admin = Arc::new(Admin {
        bootstrap,
        discovery,
        metrics: workers.metrics(),
        bound: workers.bound(),
        phase: phase.clone(),
        logging,
    });
    tokio::spawn(admin::serve(admin.clone(), socket));

    let mut asked = phase.subscribe();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = asked.wait_for(|phase| *phase != Phase::Serving) => {}
    }
    phase.send_replace(Phase::Draining);
    tracing::info!("draining");
    tokio::select! {
        drained = workers.drain() => tracing::info!(closed_in_flight = drained.forced, "drained"),
        _ = terminate.recv() => tracing::warn!("told to end twice: ending at once"),
        _ = interrupt.recv() => tracing::warn!("told to end twice: ending at once"),
        _ = asked.wait_for(|phase| *phase == Phase::Quit) => tracing::warn!("told to quit: ending at once"),
    }
    admin.discovery.leave().await;
    Ok(())
}

/// What is let in: as the bootstrap says, else what the system allows.
fn limits(bootstrap: &Bootstrap) -> overload::Limits {
    let files = overload::raise_open_files();
    let memory = match bootstrap.max_memory_mib {
        Some(mib) => mib.saturating_mul(1024 * 1024),
        None => overload::memory_allowed().unwrap_or(0),
    };
    overload::Limits {
        // A connection and its upstream's are two.
        connections: bootstrap.max_connections.unwrap_or(files / 2),
        connections_per_source: bootstrap.max_connections_per_source,
        memory,
    }
}

/// Looks how much memory there is left, and says when that changes what is taken.
async fn watch_memory(admission: Arc<overload::Admission>) {
    let mut interval = tokio::time::interval(MEMORY_TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(used) = overload::resident_memory() else {
            tracing::warn!("the system does not say how much memory is used; there is no limit of it");
            return;
        };
        let limit = admission.limits().memory;
        match admission.observe(used) {
            Some(overload::Pressure::None) => tracing::info!(used, limit, "memory is no longer scarce"),
            Some(pressure) => tracing::warn!(used, limit, ?pressure, "memory is scarce"),
            None => {}
        }
    }
}

fn node(bootstrap: &Bootstrap) -> Node {
    Node {
        id: bootstrap.node_id.clone(),
        cluster: bootstrap.cluster.clone(),
        user_agent_name: String::from("pontoon-proxy"),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").into(),
        )),
        ..Node::default()
    }
}
