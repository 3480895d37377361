//! The configuration's way in: the ADS client feeds the [`Store`], the store says what to subscribe to, and the
//! listeners that are ready go to the workers. All of it runs on the control runtime.

mod dns;
mod files;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pontoon_xds::ResourceType;
use pontoon_xds::client::{self, Config, Handler, Rejected, Status, Subscriptions, Update};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Store;
use crate::config::listener::Listener;

/// For the control plane to take note of our end.
const LEAVE: Duration = Duration::from_secs(1);

/// The store as the control side shares it, with what follows from it.
#[derive(Debug, Clone)]
pub struct Shared {
    store: Arc<Mutex<Store>>,
    subscriptions: Subscriptions,
    listeners: Arc<watch::Sender<Vec<Arc<Listener>>>>,
    changes: Arc<watch::Sender<u64>>,
    status: watch::Receiver<Status>,
}

impl Shared {
    /// Looks at the store; not to be held over an await.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The listeners that are ready for requests, as they come and go.
    pub fn listeners(&self) -> watch::Receiver<Vec<Arc<Listener>>> {
        self.listeners.subscribe()
    }

    /// How the connection to the control plane does.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Says goodbye to the control plane, so that it does not wait for us.
    pub async fn leave(&self) {
        self.subscriptions.leave();
        let mut status = self.status.clone();
        let gone = status.wait_for(|status| !status.connected);
        // A control plane that does not answer waits in vain for a while.
        let _ = tokio::time::timeout(LEAVE, gone).await;
    }

    /// Lets the store settle, then subscribes to what it names and hands out its listeners.
    fn follow(&self, now: Instant) {
        let (listeners, endpoints, routes) = {
            let mut store = self.store();
            store.settle(now);
            (store.live_listeners(), store.wanted(ResourceType::Endpoint), store.wanted(ResourceType::Route))
        };
        self.subscriptions.set(ResourceType::Endpoint, endpoints);
        self.subscriptions.set(ResourceType::Route, routes);
        self.listeners.send_if_modified(|current| {
            let same = current.len() == listeners.len()
                && current.iter().zip(&listeners).all(|(a, b)| Arc::ptr_eq(a, b));
            if !same {
                *current = listeners;
            }
            !same
        });
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }
}

impl Handler for Shared {
    fn apply(&mut self, update: Update) -> Vec<Rejected> {
        let now = Instant::now();
        let rejected = self.store().apply(update, now);
        self.follow(now);
        rejected
    }
}

/// Starts the client and what goes with it on the current runtime.
pub fn start(config: Config) -> Shared {
    let (sender, status) = watch::channel(Status::default());
    let shared = Shared {
        store: Arc::default(),
        subscriptions: Subscriptions::default(),
        listeners: Arc::new(watch::Sender::new(Vec::new())),
        changes: Arc::new(watch::Sender::new(0)),
        status,
    };
    shared.subscriptions.wildcard(ResourceType::Cluster);
    shared.subscriptions.wildcard(ResourceType::Listener);
    tokio::spawn(client::run(config, shared.subscriptions.clone(), shared.clone(), sender));
    tokio::spawn(settle_in_time(shared.clone()));
    tokio::spawn(dns::resolve(shared.clone()));
    tokio::spawn(files::follow(shared.clone()));
    shared
}

/// A table that waits for its clusters is put in force at its deadline although nothing arrives.
async fn settle_in_time(shared: Shared) {
    let mut changes = shared.changes.subscribe();
    loop {
        let deadline = shared.store().deadline();
        let overdue = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = overdue => shared.follow(Instant::now()),
        }
    }
}
