//! The whole program: control runtime, workers, admin port, signals. It ends when it has drained.

mod renew;
pub(crate) mod systemd;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use pontoon_xds::client::Config;
use pontoon_xds::pb::envoy::config::core::v3::node::UserAgentVersionType;
use pontoon_xds::pb::envoy::config::core::v3::{Locality, Node};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::admin::{Admin, Phase};
use crate::bootstrap::{Bootstrap, placed};
use crate::discovery::Sidecar;
use crate::dns::{self, Dns, Serving};
use crate::upgrade::{Predecessor, Takeover};
use crate::upstream::dial::Dialer;
use crate::worker::sockets::{DNS, HEALTH, Sockets};
use crate::worker::{Options, Workers};
use crate::{admin, allocator, discovery, overload, upgrade};

/// Long enough for a caller's next keep-alive request to see `Connection: close`.
const LAME_DUCK: Duration = Duration::from_millis(500);

/// Between looks at the memory in use.
const MEMORY_TICK: Duration = Duration::from_millis(250);
/// Before the rate of a request's body counts: Apache's (mod_reqtimeout).
const BODY_GRACE: Duration = Duration::from_secs(20);

/// The variable that says what is logged, before the file does.
const LOG: &str = "PONTOON_LOG";
const DEFAULT_LOG: &str = "info";

/// Changes what is logged while the process runs.
pub type LogFilter = reload::Handle<Targets, tracing_subscriber::Registry>;

/// Logs to standard error, by `PONTOON_LOG` (as `RUST_LOG` elsewhere); without it, `info`.
pub fn start_logging() -> LogFilter {
    let said = std::env::var(LOG).unwrap_or_else(|_| DEFAULT_LOG.into());
    let (filter, unusable) = match said.parse() {
        Ok(filter) => (filter, None),
        Err(error) => (Targets::new().with_default(LevelFilter::INFO), Some(error)),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    // A second call in one process (tests) keeps the first subscriber.
    let _installed = tracing_subscriber::registry().with(filter).with(lines).try_init();
    if let Some(error) = unusable {
        tracing::warn!(PONTOON_LOG = said, %error, "expected a level, or TARGET=LEVEL,...; logging info");
    }
    handle
}

/// Runs until SIGTERM or SIGINT (or the admin port) ends it and what was in flight is done. A second signal ends
/// it at once.
///
/// # Errors
/// When the admin port or a thread cannot be had.
pub fn run(bootstrap: Bootstrap, logging: LogFilter) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control runtime")?;
    let ended = runtime.block_on(serve(bootstrap, logging));
    // Not held up by a look-up that nobody answers.
    runtime.shutdown_background();
    ended
}

async fn serve(bootstrap: Bootstrap, logging: LogFilter) -> anyhow::Result<()> {
    if std::env::var_os(LOG).is_none()
        && let Some(log) = &bootstrap.log
    {
        renew::set_log(&logging, log);
    }
    // As it is now: an upgrade puts another file in its place.
    let program = std::env::current_exe().context("cannot say which program this is")?;
    let predecessor = match &bootstrap.upgrade_socket {
        Some(path) => {
            Predecessor::find(path).with_context(|| format!("cannot take over at {}", path.display()))?
        }
        None => None,
    };
    let dialer = dialer(&bootstrap)?;
    let (mark, variant) = (bootstrap.mark, bootstrap.xds_variant);
    let config = bootstrap.xds_server.clone().map(|server| Config {
        mark,
        variant,
        ..Config::new(server, node(&bootstrap))
    });
    let discovery = discovery::start(config, bootstrap.sidecar.clone(), bootstrap.resources.clone())
        .map_err(|problem| anyhow::anyhow!(placed(bootstrap.file.as_deref(), &problem)))?;
    let dns_settings = bootstrap.sidecar.as_ref().and_then(|sidecar| sidecar.dns.clone());
    let dns_settings = dns_settings.map(|settings| dns::Settings { mark: bootstrap.mark, ..settings });
    let dns = dns_settings.as_ref().and_then(|settings| Dns::new(settings, &discovery));
    let dns_at = dns_settings.map(|settings| settings.addresses).unwrap_or_default();
    let admission = overload::Admission::new(limits(&bootstrap));
    let sockets = Arc::new(Sockets::new(predecessor.clone(), systemd::activated()));
    let gate = watch::Sender::new(predecessor.is_none());
    let options = Options {
        workers: bootstrap.workers,
        lame_duck: LAME_DUCK,
        drain: bootstrap.drain,
        dialer,
        admission: admission.clone(),
        sockets: sockets.clone(),
        gate: gate.subscribe(),
    };
    tokio::spawn(watch_memory(admission.clone()));
    let workers =
        Arc::new(Workers::start(options, discovery.listeners()).context("cannot start the workers")?);
    let admin_socket = Arc::new(admin_socket(&bootstrap, predecessor.as_ref(), &sockets).await?);
    let address = admin_socket.local_addr()?;
    tracing::info!(
        node = bootstrap.node_id,
        cluster = bootstrap.cluster,
        xds = bootstrap.xds_server.as_ref().map(tracing::field::display),
        admin = %address,
        workers = bootstrap.workers,
        "pontoon-proxy {} starts",
        env!("CARGO_PKG_VERSION"),
    );
    let replaces = predecessor.is_some();
    // Beside a process that still serves not before this one knows as much.
    let mut serving_dns = match &dns {
        Some(dns) if !replaces => Some(dns.serve(dns_sockets(&dns_at, None, &sockets).await?)?),
        _ => None,
    };
    let phase = Arc::new(watch::Sender::new(Phase::Serving));
    let admin = Arc::new(Admin {
        node: node(&bootstrap),
        started: SystemTime::now(),
        bootstrap,
        discovery,
        dns: dns.clone(),
        metrics: workers.metrics(),
        bound: workers.bound(),
        workers: workers.clone(),
        phase: phase.clone(),
        logging,
        admission,
        reread: watch::Sender::new(None),
    });
    let mut signals = Signals::new()?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut upgrades = signal(SignalKind::user_defined2())?;
    let mut passed_health = None;
    if let Some(predecessor) = predecessor {
        if let Some(address) = admin.bootstrap.health {
            passed_health = predecessor.sockets(HEALTH, address).await.pop();
        }
        let ready = tokio::time::timeout(upgrade::LIMIT, admin.until_ready());
        tokio::select! {
            ready = ready => ready.map_err(|_| {
                anyhow::anyhow!("not ready within {:?}, so the process before serves on: {}", upgrade::LIMIT, admin.waiting().join("; "))
            })?,
            () = signals.end() => anyhow::bail!("told to end before it was ready; the process before serves on"),
        }
        if let Some(dns) = &dns {
            serving_dns = Some(dns.serve(dns_sockets(&dns_at, Some(&predecessor), &sockets).await?)?);
        }
        if !predecessor.ready().await {
            tracing::warn!("the process before has ended by itself");
        }
        gate.send_replace(true);
        tracing::info!("taken over");
    }
    let admin_task =
        tokio::spawn(admin::serve(admin.clone(), TcpListener::from_std(admin_socket.try_clone()?)?));
    let health_task = match admin.bootstrap.health {
        Some(address) => {
            // Not before: a process that does not pass its socket on goes on taking probes until then.
            let socket = sockets
                .health(address, passed_health)
                .with_context(|| format!("cannot listen on the health address {address}"))?;
            Some(tokio::spawn(admin::health::serve(admin.clone(), TcpListener::from_std(socket)?)))
        }
        None => None,
    };
    let (takeovers, mut taken) = mpsc::channel(1);
    if let Some(path) = &admin.bootstrap.upgrade_socket {
        let listener =
            upgrade::listen(path).with_context(|| format!("cannot listen at {}", path.display()))?;
        tokio::spawn(upgrade::serve(listener, sockets, admin_socket, takeovers));
    }
    tokio::spawn(say_ready(admin.clone()));
    tokio::spawn(systemd::feed_watchdog(workers.clone()));

    let mut asked = phase.subscribe();
    loop {
        tokio::select! {
            () = signals.end() => break,
            _ = asked.wait_for(|phase| *phase != Phase::Serving) => break,
            Some(takeover) = taken.recv() => {
                admin_task.abort();
                health_task.iter().for_each(JoinHandle::abort);
                return replaced(takeover, &admin, &workers, serving_dns, &mut signals).await;
            }
            _ = hangup.recv() => renew::reload(&admin),
            _ = upgrades.recv() => renew::upgrade(&admin, &program),
        }
    }
    phase.send_replace(Phase::Draining);
    systemd::stopping();
    if let Some(path) = &admin.bootstrap.upgrade_socket {
        upgrade::withdraw(path);
    }
    tracing::info!("draining");
    tokio::select! {
        drained = workers.drain() => tracing::info!(closed_in_flight = drained.forced, "drained"),
        () = signals.end() => tracing::warn!("told to end twice: ending at once"),
        _ = asked.wait_for(|phase| *phase == Phase::Quit) => tracing::warn!("told to quit: ending at once"),
    }
    admin.discovery.leave().await;
    Ok(())
}

/// Those of the process before, else new ones; both are the next process's to ask for.
async fn dns_sockets(
    addresses: &[SocketAddr],
    predecessor: Option<&Predecessor>,
    sockets: &Sockets,
) -> anyhow::Result<Vec<dns::Sockets>> {
    let mut bound = Vec::new();
    for address in addresses {
        let passed = match predecessor {
            Some(predecessor) => dns::Sockets::passed(predecessor.sockets(DNS, *address).await),
            None => None,
        };
        match passed {
            Some(passed) => bound.push(passed),
            None => bound.extend(dns::bind(&[*address], predecessor.is_some())?),
        }
    }
    for (address, of_address) in addresses.iter().zip(&bound) {
        sockets.keep_dns(*address, of_address.for_successor()?);
    }
    Ok(bound)
}

/// Another process has taken over: this one finishes what it has.
async fn replaced(
    takeover: Takeover,
    admin: &Admin,
    workers: &Workers,
    dns: Option<Serving>,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    tracing::info!("replaced; finishing what is in flight");
    admin.phase.send_replace(Phase::Replaced);
    let dns = dns.map(|dns| tokio::spawn(dns.stop()));
    let ended = workers.hand_over().await;
    // It may have gone since: then nobody accepts, which is as bad as its having gone a moment later.
    let _ = takeover.stopped.send(());
    tokio::select! {
        drained = ended => tracing::info!(closed_in_flight = drained.forced, "drained"),
        () = signals.end() => tracing::warn!("told to end: ending at once"),
    }
    if let Some(dns) = dns {
        // How long a query takes is bounded.
        let _ = dns.await;
    }
    admin.discovery.leave().await;
    Ok(())
}

/// Marks are refused to who may not set them at the start, where it can be read, and not at each connection.
fn dialer(bootstrap: &Bootstrap) -> anyhow::Result<Dialer> {
    let intercepted = bootstrap.sidecar.as_ref().is_some_and(Sidecar::is_intercepted);
    let dialer = Dialer::new(bootstrap.mark, intercepted).context(
        "cannot mark connections, which needs CAP_NET_ADMIN or CAP_NET_RAW; without it set --mark 0, run as a user of its \
         own and exclude that one: pontoon-proxy intercept up --exclude-uid UID",
    )?;
    Ok(if bootstrap.refuse_local_endpoints { dialer.refusing_local() } else { dialer })
}

/// The admin port: the replaced process's, systemd's or a new one.
async fn admin_socket(
    bootstrap: &Bootstrap,
    predecessor: Option<&Predecessor>,
    sockets: &Sockets,
) -> anyhow::Result<std::net::TcpListener> {
    let mut socket = match predecessor {
        Some(predecessor) => predecessor.admin().await,
        None => None,
    };
    let is_right = |socket: &std::net::TcpListener| {
        bootstrap.admin.port() == 0 || socket.local_addr().is_ok_and(|address| address == bootstrap.admin)
    };
    socket = socket.filter(is_right);
    if socket.is_none() {
        socket = sockets.activated(bootstrap.admin)?.pop();
    }
    let socket = match socket {
        Some(socket) => socket,
        None => TcpListener::bind(bootstrap.admin)
            .await
            .with_context(|| format!("cannot listen on the admin address {}", bootstrap.admin))?
            .into_std()?,
    };
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Says it once: readiness stays.
async fn say_ready(admin: Arc<Admin>) {
    admin.until_ready().await;
    tracing::info!("ready");
    systemd::ready();
    if let Err(error) = allocator::forget_start() {
        tracing::debug!(%error, "what the start has touched stays in memory");
    }
}

/// What ends the process from outside.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits to be told to end.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
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
        shares: bootstrap.memory_shares,
        lag: bootstrap.max_lag,
        body_rate: overload::BodyRate { bytes_per_second: bootstrap.min_body_rate, grace: BODY_GRACE },
        handshakes: bootstrap.max_handshakes,
    }
}

/// Looks how much memory there is left, and says when that changes what is taken.
async fn watch_memory(admission: Arc<overload::Admission>) {
    let mut interval = tokio::time::interval(MEMORY_TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        // What a large configuration took while it was read; workers do it for themselves.
        allocator::collect();
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
        locality: bootstrap.zone.clone().map(|zone| Locality { zone, ..Locality::default() }),
        ..Node::default()
    }
}
