//! The worker threads: each a current-thread runtime that owns its sockets, pools and metric shard. Sockets are
//! bound here, in one place, so that an address in use is one error and port 0 is one port; a worker gets its
//! sockets, and word of what ends, through its queue. Sockets that another process or systemd has bound are taken
//! before one is bound anew.

pub(crate) mod clients;
pub(crate) mod idle;
pub(crate) mod local;
pub mod sockets;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::allocator;
use crate::config::listener::Listener;
use crate::config::sidecar::is_inbound;
use crate::listener::{ListenerLocal, Phase, accept};
use crate::overload::Admission;
use crate::telemetry::Metrics;
use crate::telemetry::access_log::Sinks;
use crate::telemetry::metrics::Shard;
use crate::upstream::dial::Dialer;
use local::Worker;
use sockets::Sockets;

/// Listener changes that may wait for a worker.
const QUEUE: usize = 256;
/// Between tries to bind an address that could not be had.
const BIND_RETRY: Duration = Duration::from_secs(1);
/// For connections to see that they are to end now.
const CLOSING: Duration = Duration::from_secs(1);
/// Between sweeps of what has gone or grown old.
const SWEEP: Duration = Duration::from_millis(500);

/// How many workers, and how they end.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads.
    pub workers: usize,
    /// On drain: how long connections are still accepted, with `Connection: close`, so that whoever sends them
    /// has time to learn that we are leaving.
    pub lame_duck: Duration,
    /// On drain: how long what is in flight may take after that.
    pub drain: Duration,
    /// How connections to endpoints are made.
    pub dialer: Dialer,
    /// What is let in.
    pub admission: Arc<Admission>,
    /// Where sockets come from that need not be bound.
    pub sockets: Arc<Sockets>,
    /// Accepting begins when it is true. A process that takes over from another is not ready from its start.
    pub gate: watch::Receiver<bool>,
}

/// A listener as the workers have it.
#[derive(Debug, Clone)]
pub struct Bound {
    /// The listener's name.
    pub name: Arc<str>,
    /// The address, with the real port; or why it could not be bound. It is tried again every second.
    pub address: Result<SocketAddr, Arc<str>>,
}

/// What a drain came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were closed with something in flight or not yet closed by their client.
    pub forced: usize,
}

enum Command {
    Add { id: u64, listener: Arc<Listener>, sockets: Vec<std::net::TcpListener> },
    Remove { id: u64 },
    LameDuck,
    EndInbound { phase: Phase, done: oneshot::Sender<()> },
    StayInbound,
    Handover { limit: Duration, done: oneshot::Sender<usize> },
    Drain { limit: Duration, done: oneshot::Sender<usize> },
}

/// The running workers.
#[derive(Debug)]
pub struct Workers {
    options: Options,
    metrics: Metrics,
    queues: Vec<mpsc::Sender<Command>>,
    bound: watch::Receiver<Vec<Bound>>,
    binder: tokio::task::JoinHandle<()>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    beats: Arc<[AtomicU64]>,
    epoch: Instant,
}

impl Workers {
    /// Starts the threads and follows `listeners`: what is new in it is bound, what has gone from it drains. Must
    /// be called in a tokio runtime, which runs no more than the binding. Fails where a thread cannot be had.
    pub fn start(options: Options, listeners: watch::Receiver<Vec<Arc<Listener>>>) -> io::Result<Self> {
        let count = options.workers.max(1);
        let shards: Arc<[Arc<Shard>]> = (0..count).map(|_| Arc::default()).collect();
        let sinks = Arc::new(Sinks::default());
        let epoch = Instant::now();
        let beats: Arc<[AtomicU64]> = (0..count).map(|_| AtomicU64::new(0)).collect();
        let mut queues = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for (number, shard) in shards.iter().enumerate() {
            let (queue, commands) = mpsc::channel(QUEUE);
            let (shard, sinks) = (Arc::clone(shard), Arc::clone(&sinks));
            let admission = Arc::clone(&options.admission);
            let dialer = options.dialer.clone();
            let (gate, beats) = (options.gate.clone(), Arc::clone(&beats));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            threads.push(std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                let worker = Rc::new(Worker::new(epoch, shard, sinks, admission, dialer));
                let heart = Heart { beats, number };
                LocalSet::new().block_on(&runtime, async move {
                    // A task of its own is polled when it has something to do, and this one at each turn. Its failure is
                    // the worker's end.
                    let _ = tokio::task::spawn_local(run(worker, commands, gate, heart)).await;
                });
            })?);
            queues.push(queue);
        }
        let (report, bound) = watch::channel(Vec::new());
        let binder = tokio::spawn(follow(listeners, queues.clone(), report, Arc::clone(&options.sockets)));
        let metrics = Metrics::new(shards, sinks.stats(), Arc::clone(&options.admission));
        Ok(Self { options, metrics, queues, bound, binder, threads: Mutex::new(threads), beats, epoch })
    }

    /// The request path's metrics.
    pub fn metrics(&self) -> Metrics {
        self.metrics.clone()
    }

    /// The listeners and the addresses they have, as they change.
    pub fn bound(&self) -> watch::Receiver<Vec<Bound>> {
        self.bound.clone()
    }

    /// How many workers have not answered for `limit`: they hang in something that should not take so long.
    pub fn stuck(&self, limit: Duration) -> usize {
        let now = beat(self.epoch, Instant::now());
        let limit = limit.as_millis() as u64;
        self.beats.iter().filter(|beat| now.saturating_sub(beat.load(Relaxed)) > limit).count()
    }

    /// Ends because another process has taken the sockets over: nothing is accepted any more from the moment at which
    /// this returns. The future that it gives ends when the last connection has, at the latest after the drain time.
    pub async fn hand_over(&self) -> impl Future<Output = Drained> + '_ {
        self.binder.abort();
        self.options.sockets.forget();
        let mut answers = Vec::new();
        for queue in &self.queues {
            let (done, answer) = oneshot::channel();
            let _ = queue.send(Command::Handover { limit: self.options.drain, done }).await;
            answers.push(answer);
        }
        self.ended(answers)
    }

    /// Ends: lame duck, then no more accepts, `GOAWAY` to HTTP/2 clients, then the close of what is left after the
    /// drain time. Calling it again does nothing.
    pub async fn drain(&self) -> Drained {
        self.binder.abort();
        self.options.sockets.forget();
        for queue in &self.queues {
            // A worker that has ended has nothing left to drain; so below.
            let _ = queue.send(Command::LameDuck).await;
        }
        tokio::time::sleep(self.options.lame_duck).await;
        let mut answers = Vec::new();
        for queue in &self.queues {
            let (done, answer) = oneshot::channel();
            let _ = queue.send(Command::Drain { limit: self.options.drain, done }).await;
            answers.push(answer);
        }
        self.ended(answers).await
    }

    /// The application is about to end: callers are served and told to go elsewhere, and after `linger`, when no more
    /// should come, those that ask for nothing are let go. Probes, and who comes late, are served all along. What the
    /// application itself sends is not touched. Ends with the last connection of a caller.
    pub(crate) async fn end_inbound(&self, linger: Duration) {
        let mut answers = Vec::new();
        for phase in [Phase::LameDuck, Phase::Leaving] {
            answers.clear();
            for queue in &self.queues {
                let (done, answer) = oneshot::channel();
                let _ = queue.send(Command::EndInbound { phase, done }).await;
                answers.push(answer);
            }
            if phase == Phase::LameDuck {
                tokio::time::sleep(linger).await;
            }
        }
        for answer in answers {
            // A worker that has ended has no callers.
            let _ = answer.await;
        }
    }

    /// The application goes on after all, or it is another in its place.
    pub(crate) async fn stay_inbound(&self) {
        for queue in &self.queues {
            let _ = queue.send(Command::StayInbound).await;
        }
    }

    async fn ended(&self, answers: Vec<oneshot::Receiver<usize>>) -> Drained {
        let mut forced = 0;
        for answer in answers {
            forced += answer.await.unwrap_or(0);
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker thread ended by a panic");
            }
        }
        Drained { forced }
    }
}

/// One listener that the workers have, or should have.
struct Entry {
    id: u64,
    listener: Arc<Listener>,
    address: Result<SocketAddr, Arc<str>>,
}

/// Binds and unbinds as the set changes.
async fn follow(
    mut listeners: watch::Receiver<Vec<Arc<Listener>>>,
    queues: Vec<mpsc::Sender<Command>>,
    report: watch::Sender<Vec<Bound>>,
    sockets: Arc<Sockets>,
) {
    let mut entries: Vec<Entry> = Vec::new();
    let mut next_id = 0;
    loop {
        let wanted = listeners.borrow_and_update().clone();
        let (kept, gone) = entries
            .into_iter()
            .partition(|entry: &Entry| wanted.iter().any(|listener| Arc::ptr_eq(listener, &entry.listener)));
        entries = kept;
        // New ones first: where an address moves from one handle to another, there is always someone listening.
        for listener in &wanted {
            let found = entries.iter().position(|entry| Arc::ptr_eq(&entry.listener, listener));
            if found.is_some_and(|at| entries[at].address.is_ok()) {
                continue;
            }
            next_id += 1;
            let address = add(listener, next_id, &queues, &sockets).await.map_err(|error| {
                tracing::warn!(listener = %listener.name, address = %listener.address, %error, "cannot listen");
                Arc::from(error.to_string())
            });
            let entry = Entry { id: next_id, listener: Arc::clone(listener), address };
            match found {
                Some(at) => entries[at] = entry,
                None => entries.push(entry),
            }
        }
        for entry in gone.iter().filter(|entry: &&Entry| entry.address.is_ok()) {
            let still = entries.iter().any(|kept| {
                kept.listener.name == entry.listener.name && kept.listener.address == entry.listener.address
            });
            if !still {
                sockets.remove(&entry.listener.name, entry.listener.address);
            }
            for queue in &queues {
                let _ = queue.send(Command::Remove { id: entry.id }).await;
            }
        }
        report.send_replace(
            entries
                .iter()
                .map(|entry| Bound { name: Arc::clone(&entry.listener.name), address: entry.address.clone() })
                .collect(),
        );
        let missing = entries.iter().any(|entry| entry.address.is_err());
        let retry = async {
            if missing { tokio::time::sleep(BIND_RETRY).await } else { std::future::pending().await }
        };
        tokio::select! {
            changed = listeners.changed() => {
                if changed.is_err() {
                    // Nobody will change it any more; the listeners go on.
                    return;
                }
            }
            () = retry => {}
        }
    }
}

/// Has sockets for each worker, all or none, and hands them over.
async fn add(
    listener: &Arc<Listener>,
    id: u64,
    queues: &[mpsc::Sender<Command>],
    sockets: &Sockets,
) -> io::Result<SocketAddr> {
    let shares = sockets.have(listener, queues.len()).await?;
    let address = match shares.iter().flatten().next() {
        Some(socket) => socket.local_addr()?,
        None => return Err(io::ErrorKind::AddrNotAvailable.into()),
    };
    for (queue, sockets) in queues.iter().zip(shares) {
        let _ = queue.send(Command::Add { id, listener: Arc::clone(listener), sockets }).await;
    }
    Ok(address)
}

/// One worker's life.
async fn run(
    worker: Rc<Worker>,
    mut commands: mpsc::Receiver<Command>,
    gate: watch::Receiver<bool>,
    heart: Heart,
) {
    let mut listeners: HashMap<u64, Rc<ListenerLocal>> = HashMap::new();
    // Those that were removed and still have connections.
    let mut leaving: Vec<Rc<ListenerLocal>> = Vec::new();
    let sweeper = tokio::task::spawn_local(sweep(Rc::clone(&worker)));
    let mut pulse = tokio::time::interval(SWEEP);
    pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            due = pulse.tick() => {
                let now = Instant::now();
                worker.note_lag(now.saturating_duration_since(due));
                heart.beat(worker.epoch(), now);
                continue;
            }
        };
        let Some(command) = command else { break };
        match command {
            Command::Add { id, listener, sockets } => {
                let local = ListenerLocal::new(listener, Rc::clone(&worker));
                for socket in sockets {
                    match TcpListener::from_std(socket) {
                        Ok(socket) => {
                            tokio::task::spawn_local(accept(Rc::clone(&local), socket, gate.clone()));
                        }
                        Err(error) => {
                            let name = &local.listener.name;
                            tracing::error!(listener = %name, %error, "the worker's runtime refuses the socket");
                        }
                    }
                }
                listeners.insert(id, local);
            }
            Command::Remove { id } => {
                leaving.retain(|local| local.open() > 0);
                if let Some(local) = listeners.remove(&id) {
                    let limit = local.drain_limit();
                    tokio::task::spawn_local(end(Rc::clone(&local), limit));
                    leaving.push(local);
                }
            }
            Command::LameDuck => listeners.values().for_each(|local| local.advance(Phase::LameDuck)),
            Command::EndInbound { phase, done } => {
                let inbound: Vec<_> = inbound(&listeners).cloned().collect();
                inbound.iter().for_each(|local| local.advance(phase));
                tokio::task::spawn_local(async move {
                    for local in inbound {
                        local.empty().await;
                    }
                    // Whoever asked may have gone.
                    let _ = done.send(());
                });
            }
            Command::StayInbound => inbound(&listeners).for_each(|local| local.stay()),
            Command::Handover { limit, done } => {
                let all: Vec<_> = listeners.into_values().chain(leaving).collect();
                all.iter().for_each(|local| local.advance(Phase::Handover));
                let empty = async {
                    for local in &all {
                        local.empty().await;
                    }
                };
                let limited = pulsing(tokio::time::timeout(limit, empty), &worker, &heart).await;
                let mut forced = 0;
                if limited.is_err() {
                    forced = all.iter().map(|local| local.open()).sum();
                    all.iter().for_each(|local| local.advance(Phase::Closed));
                    for local in &all {
                        local.empty().await;
                    }
                }
                // Whoever asked may have gone.
                let _ = done.send(forced);
                break;
            }
            Command::Drain { limit, done } => {
                let all = listeners.into_values().chain(leaving);
                let ends: Vec<_> = all.map(|local| tokio::task::spawn_local(end(local, limit))).collect();
                let mut forced = 0;
                for end in ends {
                    forced += pulsing(end, &worker, &heart).await.unwrap_or(0);
                }
                // Whoever asked may have gone.
                let _ = done.send(forced);
                break;
            }
        }
    }
    sweeper.abort();
}

fn inbound(listeners: &HashMap<u64, Rc<ListenerLocal>>) -> impl Iterator<Item = &Rc<ListenerLocal>> {
    listeners.values().filter(|local| is_inbound(&local.listener.name))
}

/// Where a worker shows that it lives.
struct Heart {
    beats: Arc<[AtomicU64]>,
    number: usize,
}

impl Heart {
    fn beat(&self, epoch: Instant, now: Instant) {
        self.beats[self.number].store(beat(epoch, now), Relaxed);
    }
}

/// What the heart shows at a moment: milliseconds.
fn beat(epoch: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(epoch).as_millis() as u64
}

/// Waits with a beating heart.
async fn pulsing<T>(what: impl Future<Output = T>, worker: &Worker, heart: &Heart) -> T {
    let mut what = pin!(what);
    loop {
        match tokio::time::timeout(SWEEP, what.as_mut()).await {
            Ok(done) => return done,
            Err(_) => heart.beat(worker.epoch(), Instant::now()),
        }
    }
}

/// Ends one listener; gives how many connections had to be closed.
async fn end(local: Rc<ListenerLocal>, limit: Duration) -> usize {
    local.advance(Phase::Draining);
    // The accept task must have seen it, or what it still accepts would be missed.
    tokio::task::yield_now().await;
    if tokio::time::timeout(limit, local.empty()).await.is_ok() {
        return 0;
    }
    let forced = local.open();
    local.advance(Phase::Closed);
    // What is still there then is dropped with the worker.
    let _ = tokio::time::timeout(CLOSING, local.empty()).await;
    forced
}

async fn sweep(worker: Rc<Worker>) {
    let mut interval = tokio::time::interval(SWEEP);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        worker.sweep();
        allocator::collect();
    }
}
