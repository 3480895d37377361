//! The configuration's way in: the ADS client feeds the [`Store`], the store says what to subscribe to, and the
//! listeners that are ready go to the workers. All of it runs on the control runtime.

mod endpoints;
mod files;
pub(crate) mod names;
pub mod naming;
pub mod on_demand;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pontoon_xds::client::{self, Config, Handler, Rejected, Status, Subscriptions, Update};
use pontoon_xds::{Resource, ResourceType};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::config::listener::Listener;
use crate::config::problem::Problem;
use crate::config::store::Changed;
use crate::config::{Store, sidecar};
use crate::dns;
use names::Names;
use naming::Naming;
use on_demand::{Ask, Limits, OnDemand};

/// For the control plane to take note of our end.
const LEAVE: Duration = Duration::from_secs(1);
/// Questions that are taken up together.
const ASKS: usize = 64;

/// What makes a process a sidecar: listeners of its own, whatever the control plane says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sidecar {
    /// Where the application sends its requests.
    pub outbound: Option<Outbound>,
    /// Where callers send theirs, and where they go on to.
    pub inbound: Vec<(SocketAddr, To)>,
    /// How names are written.
    pub naming: Naming,
    /// Where DNS is answered, and how.
    pub dns: Option<dns::Settings>,
}

impl Sidecar {
    /// Whether connections come by interception to any of its listeners.
    pub fn is_intercepted(&self) -> bool {
        self.outbound.is_some_and(|outbound| outbound.intercepted)
            || self.inbound.iter().any(|(_, to)| to.is_intercepted())
    }
}

/// The listener for what the application sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outbound {
    /// Where it listens.
    pub address: SocketAddr,
    /// What names may cost.
    pub limits: Limits,
    /// Connections come by interception.
    pub intercepted: bool,
    /// Of those, what is for no name that is served.
    pub unknown: Unknown,
}

/// What becomes of an intercepted connection or request that is for no service of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Unknown {
    /// It goes where it was going to.
    #[default]
    Pass,
    /// It is refused.
    Refuse,
}

/// Where what an inbound listener takes goes on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// The application, there.
    Application(SocketAddr),
    /// Where it was going to when it was redirected here.
    Original,
    /// The same, brought here by TPROXY; the application sees its caller's address.
    Transparent,
}

impl To {
    /// Whether connections come by interception.
    pub fn is_intercepted(self) -> bool {
        !matches!(self, To::Application(_))
    }
}

/// The store as the control side shares it, with what follows from it.
#[derive(Debug, Clone)]
pub struct Shared {
    store: Arc<Mutex<Store>>,
    subscriptions: Subscriptions,
    listeners: Arc<watch::Sender<Vec<Arc<Listener>>>>,
    changes: Arc<watch::Sender<u64>>,
    /// Changes where a cluster or listener may have come, gone or become another.
    shape: Arc<watch::Sender<u64>>,
    status: watch::Receiver<Status>,
    /// Of a sidecar. Locked after the store where both are.
    names: Option<Arc<Mutex<Names>>>,
    on_demand: Option<Arc<OnDemand>>,
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

    /// Changes with every update.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A sidecar's names, for who asks for them.
    pub(crate) fn on_demand(&self) -> Option<&Arc<OnDemand>> {
        self.on_demand.as_ref()
    }

    /// Whether there is a control plane to ask.
    pub(crate) fn is_connected(&self) -> bool {
        self.status.borrow().connected
    }

    /// The names of a type that are asked for, each with whether the control plane says that there is none.
    pub fn asked(&self, ty: ResourceType) -> Vec<(Arc<str>, bool)> {
        let asked = self.subscriptions.names(ty);
        let names = (ty == ResourceType::Listener).then(|| self.names()).flatten();
        let is_absent = |name: &str| names.as_ref().is_some_and(|names| names.is_absent(name));
        asked.into_iter().map(|name| (name.clone(), is_absent(&name))).collect()
    }

    /// How many names a sidecar keeps.
    pub fn names_kept(&self) -> usize {
        self.names().map_or(0, |names| names.len())
    }

    /// Says goodbye to the control plane, so that it does not wait for us.
    pub async fn leave(&self) {
        self.subscriptions.leave();
        let mut status = self.status.clone();
        let gone = status.wait_for(|status| !status.connected);
        // A control plane that does not answer waits in vain for a while.
        let _ = tokio::time::timeout(LEAVE, gone).await;
    }

    /// Puts the resources of the bootstrap in force as it has them now.
    ///
    /// # Errors
    /// When one of them cannot be used. Then nothing has changed.
    pub(crate) fn refix(&self, own: Vec<(ResourceType, Resource)>) -> Result<Changed, Problem> {
        let now = Instant::now();
        let changed = self.store().refix(own, now)?;
        self.follow(now);
        Ok(changed)
    }

    fn names(&self) -> Option<MutexGuard<'_, Names>> {
        self.names.as_ref().map(|names| names.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets the store settle, then subscribes to what it names and hands out its listeners.
    fn follow(&self, now: Instant) {
        let (listeners, wanted) = {
            let mut store = self.store();
            store.settle(now);
            if let Some(mut names) = self.names() {
                names.settle(now, |name| store.lookup(name));
                self.subscriptions.set(ResourceType::Listener, names.wanted());
            }
            let named =
                [ResourceType::Secret, ResourceType::Cluster, ResourceType::Endpoint, ResourceType::Route];
            // A gateway takes all clusters.
            let named = named.into_iter().filter(|ty| *ty != ResourceType::Cluster || self.names.is_some());
            let wanted: Vec<_> = match store.take_renamed() {
                true => named.map(|ty| (ty, store.wanted(ty))).collect(),
                false => Vec::new(),
            };
            (store.live_listeners(), wanted)
        };
        if !wanted.is_empty() {
            self.shape.send_modify(|n| *n = n.wrapping_add(1));
        }
        for (ty, names) in wanted {
            self.subscriptions.set(ty, names);
        }
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
        let gone = match update.ty {
            ResourceType::Listener if self.names.is_some() => update.removed.clone(),
            _ => Vec::new(),
        };
        let rejected = self.store().apply(update, now);
        if let Some(mut names) = self.names() {
            names.removed(&gone, now);
        }
        self.follow(now);
        rejected
    }
}

/// Starts the client and what goes with it on the current runtime. Without a `config` there is no client: only what
/// is `fixed` is served.
///
/// # Errors
/// When what is fixed or a listener of the sidecar's cannot be had as it is written.
pub fn start(
    config: Option<Config>,
    options: Option<Sidecar>,
    fixed: Vec<(ResourceType, Resource)>,
) -> Result<Shared, Problem> {
    let (sender, status) = watch::channel(Status::default());
    let locality = config.as_ref().and_then(|config| config.node.locality.as_ref());
    let zone = locality.map(|locality| Arc::from(locality.zone.as_str()));
    let mut store = Store::fixed(fixed, config.is_none(), Instant::now())?;
    let mut asked = None;
    if let Some(Sidecar { outbound, inbound, naming, dns: _ }) = options {
        let mut own: Vec<_> = inbound.into_iter().flat_map(|(at, to)| sidecar::inbound(at, to)).collect();
        own.extend(outbound.iter().flat_map(sidecar::outbound));
        let pass_unknown = outbound.is_some_and(|outbound| outbound.unknown == Unknown::Pass);
        let limits = outbound.map(|outbound| outbound.limits).unwrap_or_default();
        let (on_demand, asks) = OnDemand::new(limits, naming, status.clone());
        store = Store::sidecar(Some(on_demand.clone()), pass_unknown, own, Instant::now())?;
        asked = Some((on_demand, asks));
    }
    let (on_demand, asks) = asked.unzip();
    let names = on_demand.clone().map(|on_demand| Arc::new(Mutex::new(Names::new(on_demand))));
    let shared = Shared {
        store: Arc::new(Mutex::new(store.in_zone(zone))),
        subscriptions: Subscriptions::default(),
        listeners: Arc::new(watch::Sender::new(Vec::new())),
        changes: Arc::new(watch::Sender::new(0)),
        shape: Arc::new(watch::Sender::new(0)),
        status,
        names,
        on_demand,
    };
    if shared.names.is_none() {
        shared.subscriptions.wildcard(ResourceType::Cluster);
    }
    shared.subscriptions.wildcard(ResourceType::Listener);
    shared.follow(Instant::now());
    if let Some(config) = config {
        tokio::spawn(client::run(config, shared.subscriptions.clone(), shared.clone(), sender));
    }
    tokio::spawn(settle_in_time(shared.clone()));
    tokio::spawn(endpoints::resolve(shared.clone()));
    tokio::spawn(files::follow(shared.clone()));
    if let Some(asks) = asks {
        tokio::spawn(answer(shared.clone(), asks));
    }
    Ok(shared)
}

/// Takes up the names that requests ask for, and drops those that none asks for any more.
async fn answer(shared: Shared, mut asks: mpsc::Receiver<Ask>) {
    let Some(limits) = shared.names().map(|names| names.limits()) else { return };
    // Often enough that none is kept much longer than it should be.
    let period =
        (limits.idle.min(limits.absent) / 4).clamp(Duration::from_millis(100), Duration::from_secs(15));
    let mut sweep = tokio::time::interval(period);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(ASKS);
    loop {
        let now = tokio::select! {
            taken = asks.recv_many(&mut batch, ASKS) => {
                if taken == 0 {
                    return;
                }
                let now = Instant::now();
                let Some(mut names) = shared.names() else { return };
                let mut new = false;
                for ask in batch.drain(..) {
                    new |= names.ask(ask, now);
                }
                if !new {
                    continue;
                }
                now
            }
            _ = sweep.tick() => {
                let now = Instant::now();
                let gone = shared.names().map(|mut names| names.sweep(now)).unwrap_or_default();
                if gone.is_empty() {
                    continue;
                }
                shared.store().forget(&gone);
                now
            }
        };
        shared.follow(now);
    }
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
