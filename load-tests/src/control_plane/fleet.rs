//! Many simulated proxies in one process: real connections and real delta streams. Each acknowledges what it gets and
//! counts it; a goal is reached when the last of them has acknowledged what the goal says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use pontoon_xds::ResourceType;
use prost::bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::wire::{Scanner, Stream, acknowledgement, subscription};
use super::world::{World, name};

/// Between two attempts to connect, until the server listens.
const RETRY: Duration = Duration::from_millis(10);
const TYPES: usize = ResourceType::ALL.len();

/// What the proxies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Each takes everything.
    Gateways,
    /// Each asks for a few services by name, all for those that change.
    Sidecars,
}

impl Role {
    pub(super) fn text(self) -> &'static str {
        match self {
            Role::Gateways => "gateways",
            Role::Sidecars => "sidecars",
        }
    }

    /// `node.cluster`, which chooses the view.
    pub(super) fn view(self) -> &'static str {
        match self {
            Role::Gateways => "default/edge",
            Role::Sidecars => "default",
        }
    }
}

/// What all proxies are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// Everything that they subscribe to.
    Everything,
    /// One endpoint assignment.
    Endpoint,
    /// Those of one service in a hundred, of which a sidecar has a few.
    Hundredth,
    /// One route configuration.
    Route,
}

const GOALS: [Goal; 4] = [Goal::Everything, Goal::Endpoint, Goal::Hundredth, Goal::Route];

/// The proxies. They end when it is dropped.
#[derive(Debug)]
pub(super) struct Fleet {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    clients: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    proxies: usize,
    /// Counts the goals; the last digits say which it is.
    round: AtomicU64,
    done: AtomicUsize,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Clone)]
enum Progress {
    Under,
    Reached(Instant),
    Failed(String),
}

/// What one proxy asks for, and what it is to get.
struct Plan {
    first: Vec<Bytes>,
    /// Asked for when something of a type has come: routes once there is a listener.
    after: [Option<Bytes>; TYPES],
    everything: [u32; TYPES],
    hundredth: u32,
}

impl Fleet {
    /// Starts proxies that connect as soon as somebody listens; the goal is everything.
    pub(super) fn start(world: World, role: Role, proxies: usize, server: SocketAddr) -> Fleet {
        let (sender, progress) = watch::channel(Progress::Under);
        let shared = Arc::new(Shared {
            proxies,
            round: AtomicU64::new(0),
            done: AtomicUsize::new(0),
            progress: sender,
        });
        let (up, listening) = watch::channel(false);
        let mut clients = JoinSet::new();
        clients.spawn(async move {
            while TcpStream::connect(server).await.is_err() {
                tokio::time::sleep(RETRY).await;
            }
            up.send_replace(true);
        });
        let mut gateway = Plan::of_gateway(world);
        for number in 0..proxies {
            let id = format!("{}-{number}", role.text());
            let plan = match role {
                Role::Gateways => gateway.of(&id),
                Role::Sidecars => Plan::of_sidecar(world, number, &id),
            };
            let (shared, mut listening) = (shared.clone(), listening.clone());
            clients.spawn(async move {
                // The sender goes only after it has said so, or with all of us.
                let _up = listening.wait_for(|up| *up).await.is_ok();
                let Err(error) = client(plan, &shared, server).await;
                shared.progress.send_replace(Progress::Failed(format!("{id}: {error:#}")));
            });
        }
        Fleet { shared, progress, clients }
    }

    /// Sets the next goal. What comes from now on counts.
    pub(super) fn begin(&mut self, goal: Goal) {
        self.shared.done.store(0, Ordering::Release);
        self.shared.progress.send_if_modified(|progress| {
            let reached = matches!(progress, Progress::Reached(_));
            if reached {
                *progress = Progress::Under;
            }
            reached
        });
        let round = self.shared.round.load(Ordering::Acquire) / GOALS.len() as u64 + 1;
        self.shared.round.store(round * GOALS.len() as u64 + goal as u64, Ordering::Release);
    }

    /// When the last proxy acknowledged what the goal says.
    pub(super) async fn reached(&mut self, patience: Duration) -> anyhow::Result<Instant> {
        let reached = self.progress.wait_for(|progress| !matches!(progress, Progress::Under));
        let progress = match tokio::time::timeout(patience, reached).await {
            Ok(progress) => progress?.clone(),
            Err(_) => {
                let (done, all) = (self.shared.done.load(Ordering::Acquire), self.shared.proxies);
                bail!("after {patience:?} only {done} of {all} proxies have acknowledged");
            }
        };
        match progress {
            Progress::Reached(at) => Ok(at),
            Progress::Failed(error) => bail!(error),
            Progress::Under => bail!("not reached"),
        }
    }

    /// Ends them all.
    pub(super) async fn stop(mut self) {
        self.clients.shutdown().await;
    }
}

impl Shared {
    fn tell(&self) {
        if self.done.fetch_add(1, Ordering::AcqRel) + 1 == self.proxies {
            self.progress.send_replace(Progress::Reached(Instant::now()));
        }
    }
}

impl Plan {
    /// Encoded once for all of them, but for the node.
    fn of_gateway(world: World) -> Plan {
        let clusters = world.clusters();
        let count = u32::try_from(clusters.len()).unwrap_or(u32::MAX);
        let all = [String::from("*")];
        let mut after = [const { None }; TYPES];
        after[ResourceType::Cluster as usize] = Some(subscription(None, ResourceType::Endpoint, &clusters));
        let routes = [String::from("default/edge/http")];
        after[ResourceType::Listener as usize] = Some(subscription(None, ResourceType::Route, &routes));
        Plan {
            first: vec![subscription(None, ResourceType::Listener, &all)],
            after,
            everything: counts(count, 1),
            hundredth: u32::try_from(world.hundredth()).unwrap_or(u32::MAX),
        }
    }

    fn of(&mut self, id: &str) -> Plan {
        let node = Some((id, Role::Gateways.view()));
        let clusters = subscription(node, ResourceType::Cluster, &[String::from("*")]);
        let first = std::iter::once(clusters).chain(self.first.iter().cloned()).collect();
        Plan { first, after: self.after.clone(), everything: self.everything, hundredth: self.hundredth }
    }

    /// A listener by the service's name leads to routes, those to clusters, and those to endpoints.
    fn of_sidecar(world: World, number: usize, id: &str) -> Plan {
        let services = world.of_sidecar(number);
        let clusters = world.clusters_of(&services);
        let listeners: Vec<String> = services.iter().map(|service| name(*service)).collect();
        let routes: Vec<String> = listeners.iter().map(|name| format!("default/{name}")).collect();
        let mut after = [const { None }; TYPES];
        after[ResourceType::Listener as usize] = Some(subscription(None, ResourceType::Route, &routes));
        after[ResourceType::Route as usize] = Some(subscription(None, ResourceType::Cluster, &clusters));
        after[ResourceType::Cluster as usize] = Some(subscription(None, ResourceType::Endpoint, &clusters));
        let node = Some((id, Role::Sidecars.view()));
        let moved = world.changing(world.hundredth());
        let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
        Plan {
            first: vec![subscription(node, ResourceType::Listener, &listeners)],
            after,
            everything: counts(count(clusters.len()), count(services.len())),
            hundredth: count(services.iter().filter(|service| moved.contains(service)).count()),
        }
    }

    fn is_reached(&self, goal: Goal, counts: &[u32; TYPES]) -> bool {
        let endpoints = counts[ResourceType::Endpoint as usize];
        match goal {
            Goal::Everything => counts.iter().zip(&self.everything).all(|(got, wanted)| got >= wanted),
            Goal::Endpoint => endpoints >= 1,
            Goal::Hundredth => endpoints >= self.hundredth,
            Goal::Route => counts[ResourceType::Route as usize] >= 1,
        }
    }
}

/// So many clusters with endpoints, so many listeners with routes.
fn counts(clusters: u32, listeners: u32) -> [u32; TYPES] {
    let mut counts = [0; TYPES];
    for (ty, count) in [
        (ResourceType::Listener, listeners),
        (ResourceType::Route, listeners),
        (ResourceType::Cluster, clusters),
        (ResourceType::Endpoint, clusters),
    ] {
        counts[ty as usize] = count;
    }
    counts
}

/// One proxy, until something breaks.
async fn client(
    mut plan: Plan,
    shared: &Shared,
    server: SocketAddr,
) -> anyhow::Result<std::convert::Infallible> {
    let mut stream = Stream::open(TcpStream::connect(server).await.context("cannot connect")?).await?;
    for request in plan.first.drain(..) {
        stream.send(request)?;
    }
    let mut scanner = Scanner::default();
    let (mut round, mut counts, mut told) = (0, [0; TYPES], false);
    loop {
        let bytes = stream.receive().await?;
        scanner.feed(&bytes, |response| {
            stream.send(acknowledgement(&response))?;
            let ty = response.ty as usize;
            if let Some(request) = plan.after.get_mut(ty).and_then(Option::take) {
                stream.send(request)?;
            }
            let now = shared.round.load(Ordering::Acquire);
            if now != round {
                (round, counts, told) = (now, [0; TYPES], false);
            }
            if let Some(count) = counts.get_mut(ty) {
                *count += response.resources;
            }
            let goal = GOALS.get((now % GOALS.len() as u64) as usize).copied().unwrap_or(Goal::Everything);
            if !told && plan.is_reached(goal, &counts) {
                told = true;
                shared.tell();
            }
            Ok(())
        })?;
    }
}
