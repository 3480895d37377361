//! A registry that Spring Cloud's clients take for Eureka. The thinking is in [`state`], which does no I/O; here
//! is what feeds it: the clock, HTTP, and the database. A registration is answered when it is on disk; the
//! balancer's view goes out before that.

pub mod answers;
pub mod client;
pub mod http;
pub mod instance;
pub mod metrics;
pub mod page;
pub mod peers;
pub mod refusal;
pub mod state;
pub mod store;
pub mod wire;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use redb::Database;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::answers::Answers;
use self::metrics::Counters;
use self::peers::Peers;
use self::state::{Now, Registry, Settings};
use self::store::{Store, StoreError};
use crate::model::instance::RegistryView;

/// How long an answer waits for the disk. A disk slower than that is broken; serving goes on without it.
const DISK_WAIT: Duration = Duration::from_secs(2);

/// What an operator can set.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Instances; beyond them a registration is refused with 503.
    pub max_instances: usize,
    /// What their descriptions may take in memory, roughly.
    pub max_bytes: usize,
    /// Bytes of a registration's body.
    pub body_bytes: usize,
    /// Bytes of a peer's batch.
    pub batch_bytes: usize,
    /// Between checks for leases that have run out.
    pub check_interval: Duration,
    /// How long a change stays in the delta. Clients ask every 30 s.
    pub delta_retention: Duration,
    /// Whether eviction stops when many leases run out at once. See [`state::PRESERVE_PERCENT`].
    pub self_preservation: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_instances: 20_000,
            max_bytes: 256 << 20,
            body_bytes: 1 << 20,
            batch_bytes: 4 << 20,
            check_interval: Duration::from_secs(2),
            delta_retention: Duration::from_secs(180),
            self_preservation: true,
        }
    }
}

/// The registry as a whole. Clones share it.
#[derive(Debug, Clone)]
pub struct Eureka {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    registry: Mutex<Registry>,
    views: watch::Sender<Arc<RegistryView>>,
    answers: Answers,
    counters: Counters,
    store: Option<Store>,
    /// The revision that is on disk.
    written: watch::Sender<u64>,
    changed: Notify,
    started: Instant,
    large_bodies: Semaphore,
    peers: Peers,
}

impl Eureka {
    /// Loads what the database has. Without a database nothing outlives the process. Blocks on the disk.
    pub fn new(options: Options, database: Option<Arc<Database>>) -> Result<Eureka, StoreError> {
        let now = now();
        let settings = Settings {
            max_instances: options.max_instances,
            max_bytes: options.max_bytes,
            delta_retention: options.delta_retention,
            self_preservation: options.self_preservation,
            durable: database.is_some(),
        };
        let store = database.map(Store::new);
        let mut registry = Registry::new(settings, now);
        if let Some(store) = &store {
            let stored = store.load()?;
            tracing::info!(instances = stored.len(), "the registry is loaded");
            registry.restore(stored, now);
        }
        let (views, _) = watch::channel(registry.take_view().unwrap_or_default());
        let (written, _) = watch::channel(registry.revision());
        Ok(Eureka {
            shared: Arc::new(Shared {
                options,
                registry: Mutex::new(registry),
                views,
                answers: Answers::default(),
                counters: Counters::default(),
                store,
                written,
                changed: Notify::new(),
                started: now.instant,
                large_bodies: Semaphore::new(http::body::LARGE_AT_ONCE),
                peers: Peers::default(),
            }),
        })
    }

    /// What takes traffic; a new value for each change, at once.
    pub fn views(&self) -> watch::Receiver<Arc<RegistryView>> {
        self.shared.views.subscribe()
    }

    /// `/eureka/...`, `/eureka/v2/...`, `/lastn` and the page at `/`.
    pub fn router(&self) -> Router {
        http::router(self.clone())
    }

    /// Evicts and stores until `stop`; then stores what is left. Registrations wait for the storing, so stop the
    /// listener first.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.shared.options.check_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => self.check(),
                () = self.shared.changed.notified() => (),
            }
            self.store().await;
        }
        self.store().await;
    }

    fn check(&self) {
        let checked = self.change(|registry, now| registry.check(now));
        self.shared.counters.evicted(checked.evicted);
        if checked.evicted > 0 {
            tracing::info!(instances = checked.evicted, "leases have run out");
        }
        if checked.preserved > 0 {
            tracing::warn!(
                instances = checked.preserved,
                "so many leases have run out that none is evicted; are clients cut off from the registry?"
            );
        }
    }

    async fn store(&self) {
        let Some(store) = self.shared.store.clone() else { return };
        let (batch, revision) = {
            let mut registry = self.registry();
            (registry.take_batch(), registry.revision())
        };
        let Some(batch) = batch else {
            self.shared.written.send_replace(revision);
            return;
        };
        let written = tokio::task::spawn_blocking(move || store.write(&batch)).await;
        let error = match written {
            Ok(Ok(())) => {
                self.shared.counters.store_failing(false);
                self.shared.written.send_replace(revision);
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(error, "the registry cannot be stored; it goes on in memory and is tried again");
        self.shared.counters.store_failing(true);
        self.registry().batch_failed();
    }

    /// Changes the registry; the view is out before the lock is.
    fn change<T>(&self, change: impl FnOnce(&mut Registry, Now) -> T) -> T {
        let mut registry = self.registry();
        let result = change(&mut registry, now());
        if let Some(view) = registry.take_view() {
            self.shared.views.send_replace(view);
        }
        result
    }

    /// Waits until `revision` is on disk.
    async fn durable(&self, revision: u64) {
        if self.shared.store.is_none() {
            return;
        }
        // A disk that is known to refuse is not waited for.
        if self.shared.counters.is_store_failing() {
            return;
        }
        self.shared.changed.notify_one();
        let mut written = self.shared.written.subscribe();
        let written = async move { written.wait_for(|written| *written >= revision).await.is_ok() };
        if tokio::time::timeout(DISK_WAIT, written).await.is_err() {
            self.shared.counters.stored_late();
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { instant: Instant::now(), unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests;
