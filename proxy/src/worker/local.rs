//! What one worker has for itself: its balancers, pools, metric rows and timers. Nothing here is shared between
//! threads; what is global sits in the cluster's and the endpoint's atomics.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::clients::Clients;
use super::idle::IdleConnections;
use crate::balance::Balancer;
use crate::error::Error;
use crate::overload::{Admission, Lag, Pressure};
use crate::telemetry::access_log::Sinks;
use crate::telemetry::metrics::{ClusterCells, Shard};
use crate::upstream::cluster::{BalancePolicy, Cluster, ClusterSettings, Endpoint};
use crate::upstream::dial::Dialer;
use crate::upstream::pool::EndpointPool;

/// Timers kept for the next request.
const MAX_SLEEPS: usize = 1_024;

/// One worker.
pub(crate) struct Worker {
    epoch: Instant,
    pub(crate) shard: Arc<Shard>,
    pub(crate) sinks: Arc<Sinks>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) dialer: Dialer,
    pub(crate) idle: IdleConnections,
    pub(crate) clients: Clients,
    clusters: RefCell<HashMap<usize, Rc<ClusterLocal>, ByAddress>>,
    pools: RefCell<HashMap<usize, Rc<EndpointPool>, ByAddress>>,
    /// Copies of requests in flight, counted by its clones, and the bytes of their bodies that wait.
    pub(crate) mirrors: Rc<Cell<usize>>,
    sleeps: RefCell<Vec<Pin<Box<Sleep>>>>,
    /// Set by the sweep: good enough for ages counted in seconds.
    coarse_now: Cell<Instant>,
    lag: RefCell<Lag>,
    is_late: Cell<bool>,
}

/// One worker's view of a cluster.
pub(crate) struct ClusterLocal {
    cluster: Weak<Cluster>,
    pub(crate) name: Arc<str>,
    pub(crate) cells: Arc<ClusterCells>,
    balancer: RefCell<Option<Balancer>>,
}

impl Worker {
    pub(crate) fn new(
        epoch: Instant,
        shard: Arc<Shard>,
        sinks: Arc<Sinks>,
        admission: Arc<Admission>,
        dialer: Dialer,
    ) -> Self {
        Self {
            epoch,
            shard,
            sinks,
            admission,
            dialer,
            idle: IdleConnections::default(),
            clients: Clients::default(),
            clusters: RefCell::default(),
            pools: RefCell::default(),
            mirrors: Rc::default(),
            sleeps: RefCell::default(),
            coarse_now: Cell::new(Instant::now()),
            lag: RefCell::default(),
            is_late: Cell::new(false),
        }
    }

    /// Takes note of how late a tick of the worker's own clock was.
    pub(crate) fn note_lag(&self, lateness: Duration) {
        self.shard.note_lag(lateness);
        let is_late = self.lag.borrow_mut().observe(lateness, self.admission.limits().lag);
        if self.is_late.replace(is_late) != is_late {
            tracing::warn!(?lateness, shedding = is_late, "the worker's work waits");
        }
    }

    /// Why nothing new is taken.
    pub(crate) fn overload(&self) -> Option<Error> {
        if self.is_late.get() {
            return Some(Error::OverloadQueue);
        }
        (self.admission.pressure() == Pressure::Shed).then_some(Error::Overload)
    }

    /// Whether connections are better not kept.
    pub(crate) fn is_scarce(&self) -> bool {
        self.is_late.get() || self.admission.pressure() >= Pressure::NoKeepAlive
    }

    /// When the clock that all workers share began.
    pub(crate) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Milliseconds on the clock that all workers share for ejections; never 0.
    pub(crate) fn since_epoch_ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_millis() as u64 + 1
    }

    pub(crate) fn coarse_now(&self) -> Instant {
        self.coarse_now.get()
    }

    /// This worker's view of `cluster`; made on first use.
    pub(crate) fn cluster(&self, cluster: &Arc<Cluster>) -> Rc<ClusterLocal> {
        // The weak reference held inside keeps the address from being given to another cluster.
        let key = Arc::as_ptr(cluster) as usize;
        if let Some(local) = self.clusters.borrow().get(&key) {
            return Rc::clone(local);
        }
        let local = Rc::new(ClusterLocal {
            cluster: Arc::downgrade(cluster),
            name: Arc::clone(&cluster.name),
            cells: self.shard.cluster(&cluster.name),
            balancer: RefCell::new(None),
        });
        self.clusters.borrow_mut().insert(key, Rc::clone(&local));
        local
    }

    /// This worker's pool for `endpoint`; made on first use.
    pub(crate) fn pool(&self, endpoint: &Arc<Endpoint>) -> Rc<EndpointPool> {
        let key = Arc::as_ptr(endpoint) as usize;
        if let Some(pool) = self.pools.borrow().get(&key) {
            return Rc::clone(pool);
        }
        let pool = Rc::new(EndpointPool::new(endpoint, self.dialer.clone()));
        self.pools.borrow_mut().insert(key, Rc::clone(&pool));
        pool
    }

    /// A timer set to `deadline`. Kept timers are moved rather than made: moving one to a later time is a store.
    pub(crate) fn timer(self: &Rc<Self>, deadline: Instant) -> Timer {
        let sleep = match self.sleeps.borrow_mut().pop() {
            Some(mut sleep) => {
                sleep.as_mut().reset(deadline);
                sleep
            }
            None => Box::pin(tokio::time::sleep_until(deadline)),
        };
        Timer { sleep: Some(sleep), worker: Rc::clone(self) }
    }

    /// Drops what has gone: idle connections, pools of endpoints and views of clusters no longer in force.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.coarse_now.set(now);
        self.clients.sweep();
        self.clusters.borrow_mut().retain(|_, local| local.cluster.strong_count() > 0);
        for local in self.clusters.borrow().values() {
            local.forget_old_set();
        }
        self.pools.borrow_mut().retain(|_, pool| pool.sweep(now));
    }
}

impl ClusterLocal {
    /// An endpoint for the next try.
    pub(crate) fn pick(
        &self,
        cluster: &Cluster,
        policy: BalancePolicy,
        now_ms: u64,
        avoid: &[Arc<Endpoint>],
    ) -> Option<Arc<Endpoint>> {
        self.with_balancer(cluster, policy, |balancer| balancer.pick(now_ms, avoid, || fastrand::u64(..)))
    }

    /// The endpoint that a request asks for.
    pub(crate) fn named(
        &self,
        cluster: &Cluster,
        settings: &ClusterSettings,
        now_ms: u64,
        address: SocketAddr,
    ) -> Option<Arc<Endpoint>> {
        self.with_balancer(cluster, settings.policy, |balancer| {
            balancer.named(now_ms, address, settings.nameable)
        })
    }

    fn with_balancer<T>(
        &self,
        cluster: &Cluster,
        policy: BalancePolicy,
        ask: impl FnOnce(&mut Balancer) -> T,
    ) -> T {
        let set = cluster.endpoints.load();
        let mut slot = self.balancer.borrow_mut();
        ask(match &mut *slot {
            Some(balancer) if balancer.serves(&set, policy) => balancer,
            other => other.insert(Balancer::new(cluster.used(), policy, fastrand::u32(..))),
        })
    }

    /// A cluster without requests would otherwise hold the endpoints of its last one.
    fn forget_old_set(&self) {
        if let Some(cluster) = self.cluster.upgrade() {
            let set = cluster.endpoints.load();
            self.balancer.borrow_mut().take_if(|balancer| !balancer.is_of(&set));
        }
    }
}

/// A timer on loan.
pub(crate) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    worker: Rc<Worker>,
}

impl Timer {
    /// The timer itself, to poll and to move.
    pub(crate) fn sleep(&mut self) -> Option<Pin<&mut Sleep>> {
        self.sleep.as_mut().map(Pin::as_mut)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(sleep) = self.sleep.take() {
            let mut kept = self.worker.sleeps.borrow_mut();
            if kept.len() < MAX_SLEEPS {
                kept.push(sleep);
            }
        }
    }
}

/// Hashes an address by one multiplication: the keys are our own pointers, nobody chooses them.
type ByAddress = BuildHasherDefault<AddressHasher>;

#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_usize(usize::from(*byte));
        }
    }

    fn write_usize(&mut self, address: usize) {
        self.0 = (self.0 ^ address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}
