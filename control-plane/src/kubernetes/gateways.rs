//! Makes what Gateways run in, while this replica leads, by server-side apply: a Deployment and a Service each, with
//! what belongs to them. What is made is [`provision`]'s to say; what has become of it is watched, and told in the
//! Gateways' status and to the xDS server, which tells each pod of its own Gateway only.

mod apply;
mod seen;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::{FutureExt, StreamExt, stream};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use pontoon_xds::server as xds;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use twox_hash::XxHash64;

use self::apply::{apply, take_away};
use self::seen::{Made, News, Seen};
use super::mirror::Heard;
use super::watch::{QUEUE, Relist, Said, follow};
use crate::compile::is_our_class;
use crate::infrastructure::parameters::{of_class, of_gateway};
use crate::infrastructure::provision::{
    CONTROLLER_NAME, GATEWAY_NAME, MANAGED_BY, Settings, asked, name_of, provision,
};
use crate::infrastructure::{Standings, parameters::Parameters};
use crate::news::tell;
use crate::objects::controller::CONTROLLER;
use crate::objects::{Controller, Gateway, ObjectName, Objects};
use crate::serve::world::World;

/// A burst of changes is one.
const SETTLE: Duration = Duration::from_millis(100);
/// After what failed; and twice as long each time that it fails as it was, up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_secs(2);
const MAX_RETRY: Duration = Duration::from_secs(120);
/// Gateways at a time.
const AT_ONCE: usize = 8;
/// For one request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which Gateway each pod serves, by its address.
pub type Proxies = Arc<ArcSwap<HashMap<IpAddr, Having>>>;

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Having {
    /// A pod of this Gateway, and nobody else.
    Own(ObjectName),
    /// A node, on whose network are pods of these Gateways, and others.
    Node(BTreeSet<ObjectName>),
}

/// As who each of the pods comes to the xDS server, and whether it is ready.
pub type Clients = Arc<BTreeMap<xds::Client, bool>>;

/// The task.
pub struct Provisioner {
    client: Client,
    settings: Settings,
    news: mpsc::Receiver<Option<News>>,
    relist: [Relist; 5],
    seen: Seen,
    proxies: Proxies,
    clients: watch::Sender<Clients>,
    standings: watch::Sender<Arc<Standings>>,
    /// Somebody has changed what was made since it was looked at.
    is_due: bool,
    applied: BTreeMap<ObjectName, Applied>,
    problems: BTreeMap<ObjectName, (&'static str, String)>,
    failed: BTreeMap<ObjectName, Failed>,
    undone: BTreeMap<ObjectName, Undone>,
}

/// Somebody else changes what was applied for a Gateway, and it was applied again. From time to time anybody may; where
/// it goes on, the other gets his way for longer and longer.
#[derive(Debug, Clone, Copy)]
struct Undone {
    rests_until: Instant,
    waited: Duration,
}

impl Undone {
    fn after(before: Option<&Undone>, now: Instant) -> Undone {
        let before = before.filter(|before| now < before.rests_until + MAX_RETRY);
        let waited = before.map_or(RETRY, |before| (before.waited * 2).min(MAX_RETRY));
        Undone { rests_until: now + waited, waited }
    }
}

/// What could not be applied for a Gateway, and when it is tried again if nothing is another by then.
#[derive(Debug, Clone)]
struct Failed {
    now: Applied,
    again_at: Instant,
    waited: Duration,
}

impl Failed {
    fn after(before: Option<&Failed>, now: Applied) -> Failed {
        let before = before.filter(|before| before.now == now);
        let waited = before.map_or(RETRY, |before| (before.waited * 2).min(MAX_RETRY));
        Failed { now, again_at: Instant::now() + waited, waited }
    }
}

/// What was applied last for a Gateway, and what the API server had then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Applied {
    wanted: u64,
    deployment: Option<u64>,
    service: Option<u64>,
    account: Option<u64>,
    budget: Option<u64>,
}

/// What one Gateway should have.
#[derive(Debug)]
struct Wanted {
    gateway: ObjectName,
    uid: String,
    objects: Vec<Value>,
}

impl Provisioner {
    /// Begins to watch.
    pub fn watch(client: &Client, settings: Settings) -> Provisioner {
        let (hand_on, news) = mpsc::channel(QUEUE);
        let relist: [Relist; 5] = Default::default();
        let from = Follow { client, controller: &settings.controller, hand_on };
        // They end when nobody listens to them any more.
        from.all(&relist[0], Made::deployment, News::Deployment);
        from.all(&relist[1], Made::service, News::Service);
        from.all(&relist[2], seen::proxy, News::Pod);
        from.all(&relist[3], Made::account, News::Account);
        from.all(&relist[4], Made::budget, News::Budget);
        Provisioner::new(client, settings, news, relist)
    }

    fn new(
        client: &Client,
        settings: Settings,
        news: mpsc::Receiver<Option<News>>,
        relist: [Relist; 5],
    ) -> Provisioner {
        Provisioner {
            client: client.clone(),
            settings,
            news,
            relist,
            seen: Seen::default(),
            proxies: Proxies::default(),
            clients: watch::Sender::default(),
            standings: watch::Sender::default(),
            is_due: true,
            applied: BTreeMap::new(),
            problems: BTreeMap::new(),
            failed: BTreeMap::new(),
            undone: BTreeMap::new(),
        }
    }

    /// How what was made stands; a new value as that changes.
    pub fn standings(&self) -> watch::Receiver<Arc<Standings>> {
        self.standings.subscribe()
    }

    /// The pods; always the newest.
    pub fn proxies(&self) -> Proxies {
        self.proxies.clone()
    }

    /// The same pods, as who they come to the xDS server.
    pub fn clients(&self) -> watch::Receiver<Clients> {
        self.clients.subscribe()
    }

    /// Waits until everything was listed once.
    pub async fn complete(&mut self) {
        while !self.seen.is_complete() && self.listen().await {}
        self.say();
    }

    /// Makes and watches until `stop`.
    pub async fn run(
        mut self,
        mut world: watch::Receiver<Arc<World>>,
        mut leads: watch::Receiver<bool>,
        stop: CancellationToken,
    ) {
        let mut again: Option<Instant> = None;
        let mut made_of = None;
        loop {
            let goes_on = tokio::select! {
                () = stop.cancelled() => false,
                changed = world.changed() => changed.is_ok(),
                changed = leads.changed() => changed.is_ok(),
                heard = self.listen() => heard,
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => true,
            };
            if !goes_on {
                return;
            }
            self.say();
            self.meanwhile(tokio::time::sleep(SETTLE)).await;
            if *leads.borrow_and_update() {
                let world = world.borrow_and_update().clone();
                let of = (world.model.objects.clone(), world.compiled.standings.clone());
                // Endpoints come and go all day, and are no part of this.
                let is_same = made_of.as_ref().is_some_and(|(objects, standings)| {
                    Arc::ptr_eq(objects, &of.0) && Arc::ptr_eq(standings, &of.1)
                });
                let is_late = again.is_some_and(|at| at <= Instant::now());
                if is_late || !is_same || std::mem::take(&mut self.is_due) {
                    self.is_due = false;
                    again = self.make(&world, &leads).await;
                    if self.is_due {
                        again = Some(Instant::now());
                    }
                    made_of = Some(of);
                    self.say();
                }
            } else {
                // Another's work; what it has done is not known here.
                (again, made_of) = (None, None);
                self.failed.clear();
                self.undone.clear();
                self.applied.clear();
                self.problems.clear();
            }
        }
    }

    /// Does something that takes its time. Which pods there are is heard and said all the same: who has the address of one
    /// that has gone must not be taken for it until hundreds of Gateways are applied, and a new one not be refused.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let mut listens = true;
        loop {
            tokio::select! {
                done = &mut work => return done,
                heard = self.listen(), if listens => {
                    listens = heard;
                    self.say();
                }
            }
        }
    }

    /// Takes up what was said since.
    async fn listen(&mut self) -> bool {
        let mut news = Vec::new();
        if self.news.recv_many(&mut news, QUEUE).await == 0 {
            return false;
        }
        let now = Instant::now();
        for news in news.into_iter().flatten() {
            let (relist, ends) = match &news {
                News::Deployment(heard) => (&self.relist[0], matches!(heard, Heard::ListEnds)),
                News::Service(heard) => (&self.relist[1], matches!(heard, Heard::ListEnds)),
                News::Pod(heard) => (&self.relist[2], matches!(heard, Heard::ListEnds)),
                News::Account(heard) => (&self.relist[3], matches!(heard, Heard::ListEnds)),
                News::Budget(heard) => (&self.relist[4], matches!(heard, Heard::ListEnds)),
            };
            // Which pods there are changes nothing about what is to be made.
            let matters = !matches!(news, News::Pod(_));
            let change = self.seen.hear(news, now);
            self.is_due |= matters && !change.keys.is_empty();
            if change.doubted > 0 && ends {
                relist.ask();
            }
        }
        true
    }

    fn say(&self) {
        let mut standings = self.seen.standings();
        for (gateway, problem) in &self.problems {
            standings.entry(gateway.clone()).or_default().problem = Some(problem.clone());
        }
        tell(&self.standings, standings);
        let proxies = self.seen.proxies();
        if **self.proxies.load() != proxies {
            self.proxies.store(Arc::new(proxies));
        }
        tell(&self.clients, self.seen.clients());
    }

    /// Gives when something is to be tried again.
    async fn make(&mut self, world: &World, leads: &watch::Receiver<bool>) -> Option<Instant> {
        let objects = &world.model.objects;
        let ours = objects.gateways.iter().filter(|(_, g)| is_our_class(objects, &g.spec.gateway_class_name));
        let ours: BTreeMap<&ObjectName, &Arc<Gateway>> = ours.collect();
        self.applied.retain(|name, _| ours.contains_key(name));
        self.problems.retain(|name, _| ours.contains_key(name));
        self.failed.retain(|name, _| ours.contains_key(name));
        self.undone.retain(|name, _| ours.contains_key(name));
        let mut wanted = Vec::new();
        // One that is about to go waits for what belongs to it to go first, so nothing of that is made again.
        let stays = |gateway: &Gateway| gateway.metadata.deletion_timestamp.is_none();
        for (name, gateway) in ours.iter().filter(|(_, gateway)| stays(gateway)) {
            // One that is not accepted, or has nothing to serve, stays as it is.
            let ports = world.compiled.standings.ports.get(*name).filter(|ports| !ports.is_empty());
            let (Some(ports), Ok(parameters)) = (ports, parameters(objects, gateway)) else { continue };
            wanted.push(Wanted {
                gateway: (*name).clone(),
                uid: gateway.metadata.uid.clone().unwrap_or_default(),
                objects: provision(gateway, ports, &self.settings, &parameters),
            });
        }
        let all: BTreeSet<ObjectName> = wanted.iter().map(|wanted| wanted.gateway.clone()).collect();
        let mut tried = BTreeMap::new();
        let due: Vec<_> = wanted
            .into_iter()
            .filter_map(|wanted| {
                let now = self.now(&wanted);
                let failed = self.failed.get(&wanted.gateway);
                let rests = failed.is_some_and(|f| f.now == now && Instant::now() < f.again_at);
                let applied = self.applied.get(&wanted.gateway);
                let undone =
                    self.undone.get(&wanted.gateway).filter(|undone| Instant::now() < undone.rests_until);
                let yields = undone.is_some() && applied.is_some_and(|applied| applied.wanted == now.wanted);
                let due = !rests && !yields && applied != Some(&now);
                if due {
                    tried.insert(wanted.gateway.clone(), now.clone());
                }
                due.then(|| apply(self.client.clone(), leads.clone(), wanted, now.wanted).boxed())
            })
            .collect();
        let applying = stream::iter(due).buffer_unordered(AT_ONCE).collect();
        let outcomes: Vec<_> = self.meanwhile(applying).await;
        for (gateway, outcome) in outcomes {
            match outcome {
                Ok(applied) => {
                    self.problems.remove(&gateway);
                    self.failed.remove(&gateway);
                    let before = self.applied.insert(gateway.clone(), applied.clone());
                    if let Some(now) = tried.remove(&gateway)
                        && before.is_some_and(|before| before.wanted == now.wanted)
                        && now != applied
                    {
                        self.note_undone(gateway);
                    }
                }
                Err(error) => {
                    if let Some(now) = tried.remove(&gateway) {
                        let failed = Failed::after(self.failed.get(&gateway), now);
                        self.failed.insert(gateway.clone(), failed);
                    }
                    let has_asked = ours.get(&gateway).is_some_and(|gateway| !asked(gateway).is_empty());
                    let problem = error.problem(has_asked);
                    if self.problems.get(&gateway) != Some(&problem) {
                        tracing::warn!(%gateway, reason = problem.0, "{}", problem.1);
                    }
                    self.problems.insert(gateway, problem);
                }
            }
        }
        // What a Gateway's class before has made serves until what is to come in its place is there.
        let is_applied = |name: &ObjectName| all.contains(name) && !self.failed.contains_key(name);
        let left = self.left(objects, |gateway| !ours.contains_key(gateway) || is_applied(gateway));
        let clearing = clear(self.client.clone(), left);
        let is_cleared = !*leads.borrow() || self.meanwhile(clearing).await;
        let clearing = (!is_cleared).then(|| Instant::now() + RETRY);
        let yielding = self.undone.values().map(|undone| undone.rests_until);
        let yielding = yielding.filter(|until| Instant::now() < *until);
        self.failed.values().map(|failed| failed.again_at).chain(clearing).chain(yielding).min()
    }

    /// It was applied again, and that was a change.
    fn note_undone(&mut self, gateway: ObjectName) {
        let undone = Undone::after(self.undone.get(&gateway), Instant::now());
        if undone.waited >= RETRY * 4 {
            let controller = &self.settings.controller;
            tracing::warn!(
                %gateway, %controller, rests = ?undone.waited,
                "somebody else changes what this Gateway runs in again and again: is there another installation with \
                 this controllerName? `pontoon check` says so"
            );
        }
        self.undone.insert(gateway, undone);
    }

    /// What would be applied, and what there is.
    fn now(&self, wanted: &Wanted) -> Applied {
        let bytes = serde_json::to_vec(&wanted.objects).unwrap_or_default();
        let name = |kind: &str| {
            let object = wanted.objects.iter().find(|object| object["kind"] == kind)?;
            Some(ObjectName::new(&*wanted.gateway.namespace, object["metadata"]["name"].as_str()?))
        };
        let sum = |made: Option<&Option<Made>>| made.and_then(|made| made.as_ref()).map(|made| made.sum);
        Applied {
            wanted: XxHash64::oneshot(0, &bytes),
            deployment: name("Deployment").and_then(|name| sum(self.seen.deployments.get(&name))),
            service: name("Service").and_then(|name| sum(self.seen.services.get(&name))),
            account: name("ServiceAccount").and_then(|name| sum(self.seen.accounts.get(&name))),
            budget: name("PodDisruptionBudget").and_then(|name| sum(self.seen.budgets.get(&name))),
        }
    }

    /// What was made for Gateways that are of another class by now, with its owner. What belongs to one that is deleted goes
    /// with it.
    fn left(&self, objects: &Objects, may_go: impl Fn(&ObjectName) -> bool) -> BTreeMap<ObjectName, String> {
        let made = self.seen.deployments.iter().chain(self.seen.services.iter());
        let made = made.filter_map(|(name, made)| Some((name, made.as_ref()?)));
        let left = made.filter(|(name, made)| may_go(&made.gateway) && is_left(objects, name, made));
        left.map(|(name, made)| (name.clone(), made.owner.clone())).collect()
    }
}

/// Takes it away; says whether all is gone.
async fn clear(client: Client, left: BTreeMap<ObjectName, String>) -> bool {
    let mut all_well = true;
    for (name, owner) in left {
        for (version, kind) in [
            ("apps/v1", "Deployment"),
            ("v1", "Service"),
            ("policy/v1", "PodDisruptionBudget"),
            ("v1", "ServiceAccount"),
        ] {
            let taking = take_away(&client, &name, &owner, (version, kind));
            match tokio::time::timeout(PATIENCE, taking).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%name, kind, %error, "what no Gateway needs any more cannot be deleted");
                    all_well = false;
                }
                Err(_) => all_well = false,
            }
        }
    }
    all_well
}

/// Whether a Gateway has no use for what was made for it by this name. Of a class that is not there, or cannot be read,
/// nobody knows whose it is: a Service that is taken away takes its address with it, which may never come back.
fn is_left(objects: &Objects, name: &ObjectName, made: &Made) -> bool {
    let Some(gateway) = objects.gateways.get(&made.gateway) else { return false };
    let class = gateway.spec.gateway_class_name.as_str();
    let is_its = gateway.metadata.uid.as_deref() == Some(made.owner.as_str());
    let is_maybe_ours = is_our_class(objects, class) || !objects.has_class(class);
    let is_kept = *name.name == *name_of(&made.gateway.name, class) && is_maybe_ours;
    is_its && !is_kept
}

/// A class's first: what a Gateway says goes before it.
fn parameters(objects: &Objects, gateway: &Gateway) -> Result<Vec<Parameters>, String> {
    let class = objects.gateway_classes.get(&ObjectName::new("", gateway.spec.gateway_class_name.as_str()));
    let class = class.map(|class| of_class(objects, class)).transpose()?.flatten();
    Ok(class.into_iter().chain(of_gateway(objects, gateway)?).collect())
}

/// Who follows what is made, and whom it is told.
struct Follow<'f> {
    client: &'f Client,
    controller: &'f Controller,
    hand_on: mpsc::Sender<Option<News>>,
}

impl Follow<'_> {
    /// Begins with one kind.
    fn all<K, V>(
        &self,
        relist: &Relist,
        read: fn(&K) -> Option<V>,
        news: fn(Heard<ObjectName, Option<V>>) -> News,
    ) where
        K: k8s_openapi::Resource
            + kube::Resource<DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
        V: 'static,
    {
        let (key, value) = MANAGED_BY;
        let config = watcher::Config::default().labels(&format!("{key}={value},{GATEWAY_NAME}"));
        let controller = self.controller.clone();
        let message = move |said| heard(said, &controller, read).map(news);
        let api = Api::<K>::all(self.client.clone());
        tokio::spawn(follow(api, config, K::KIND, relist.clone(), self.hand_on.clone(), message));
    }
}

/// What another installation has made is nothing to this one.
fn heard<T: ResourceExt, V>(
    said: Said<T>,
    controller: &Controller,
    read: impl Fn(&T) -> Option<V>,
) -> Option<Heard<ObjectName, Option<V>>> {
    let read = |object: &T| read(object).filter(|_| is_by(controller, object));
    let name = |object: &T| ObjectName::new(object.namespace().unwrap_or_default(), object.name_any());
    Some(match said {
        Said::Event(Event::Init) => Heard::ListBegins,
        Said::Event(Event::InitApply(object)) => Heard::Listed(name(&object), read(&object)),
        Said::Event(Event::InitDone) => Heard::ListEnds,
        Said::Event(Event::Apply(object)) => Heard::Applied(name(&object), read(&object)),
        Said::Event(Event::Delete(object)) => Heard::Deleted(name(&object)),
        // They are a part of every Kubernetes.
        Said::Absent => return None,
    })
}

fn is_by(controller: &Controller, object: &impl ResourceExt) -> bool {
    controller.is(object.annotations().get(CONTROLLER_NAME).map_or(CONTROLLER, String::as_str))
}

#[cfg(test)]
mod tests;
