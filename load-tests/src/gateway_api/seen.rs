//! What a client of the API server sees of statuses: what they say, and how often they are written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use kube::core::DynamicObject;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::PATIENCE;
use super::store::{Kind, Store};

/// Follows the Gateways and routes of a namespace.
#[derive(Debug)]
pub(super) struct Seen {
    state: Arc<Mutex<State>>,
    changes: watch::Receiver<u64>,
    _tasks: JoinSet<()>,
}

/// What was seen.
#[derive(Debug, Default, Clone)]
pub(super) struct State {
    /// `attachedRoutes` of the one listener.
    pub(super) attached: Option<u64>,
    /// How often the Gateway was written.
    pub(super) gateway_writes: usize,
    /// Those that are there.
    pub(super) routes: BTreeMap<String, Route>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    /// When the API server first told of it.
    pub(super) since: Instant,
    /// It was made, and so often written since.
    pub(super) writes: usize,
    /// A parent says that it is accepted.
    pub(super) accepted: bool,
}

impl Seen {
    pub(super) fn follow(store: &Store) -> Seen {
        let state: Arc<Mutex<State>> = Arc::default();
        let (changed, changes) = watch::channel(0);
        let changed = Arc::new(changed);
        let mut tasks = JoinSet::new();
        for kind in [Kind::Gateway, Kind::Route] {
            tasks.spawn(look(kind, store.api(kind), state.clone(), changed.clone()));
        }
        Seen { state, changes, _tasks: tasks }
    }

    /// When the API server first told of a route.
    pub(super) async fn told_of(&mut self, name: &str) -> anyhow::Result<Instant> {
        self.until(name, |state| state.routes.contains_key(name)).await?;
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.routes.get(name).map(|route| route.since).context("a route that has gone")
    }

    pub(super) fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When it was first seen that this holds.
    pub(super) async fn until(
        &mut self,
        what: &str,
        holds: impl Fn(&State) -> bool,
    ) -> anyhow::Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.changes.borrow_and_update();
            {
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if holds(&state) {
                    return Ok(Instant::now());
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !matches!(timeout(left, self.changes.changed()).await, Ok(Ok(()))) {
                let state = self.state();
                bail!("waited for {what}: {:?} of {} routes", state.attached, state.routes.len());
            }
        }
    }
}

async fn look(
    kind: Kind,
    api: Api<DynamicObject>,
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
) {
    let mut events = std::pin::pin!(watcher(api, Config::default()));
    while let Some(event) = events.next().await {
        // A watch that breaks off is taken up again.
        let Ok(event) = event else { continue };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Apply(object) | Event::InitApply(object) if kind == Kind::Gateway => {
                state.gateway_writes += 1;
                state.attached = object.data["status"]["listeners"][0]["attachedRoutes"].as_u64();
            }
            Event::Apply(object) | Event::InitApply(object) => {
                let parents = object.data["status"]["parents"].as_array();
                let conditions =
                    parents.into_iter().flatten().flat_map(|parent| parent["conditions"].as_array());
                let accepted = conditions.flatten().any(|c| c["type"] == "Accepted" && c["status"] == "True");
                let name = object.name_any();
                match state.routes.get_mut(&name) {
                    Some(route) => *route = Route { writes: route.writes + 1, accepted, ..*route },
                    None => {
                        let since = Instant::now();
                        state.routes.insert(name, Route { since, writes: 0, accepted });
                    }
                }
            }
            Event::Delete(object) => drop(state.routes.remove(&object.name_any())),
            Event::Init | Event::InitDone => {}
        }
        drop(state);
        changed.send_modify(|n| *n += 1);
    }
}
