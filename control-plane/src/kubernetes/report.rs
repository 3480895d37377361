//! Writes statuses while this replica leads: what [`status`](super::status) wants said and is not said yet, by
//! server-side apply.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value as Json, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::events::Teller;
use super::status::{to_apply, wanted};
use crate::compile::standing::Standings as CompiledStandings;
use crate::compile::status::Statuses;
use crate::infrastructure::Standings;
use crate::objects::kubernetes::store::status_manager;
use crate::objects::problem::Problem;
use crate::objects::{Kind, ObjectRef, Observation, Observations};
use crate::serve::world::{Proxies, World};

/// A burst of changes is one status.
const SETTLE: Duration = Duration::from_millis(200);
/// Proxies' acknowledgements come one by one, and none of them is news by itself.
const PROXIES: Duration = Duration::from_secs(1);
/// After writes that failed; and twice as long each time that one fails, up to [`MAX_RETRY`].
const RETRY: Duration = Duration::from_secs(2);
const MAX_RETRY: Duration = Duration::from_secs(120);
/// Writes at a time, where many wait. The API server limits us beyond.
const AT_ONCE: usize = 8;
/// So many wait for each that is written at a time: a few are written one after another. Eight at once are milliseconds
/// of work for the API server, behind which the routes wait that somebody is making, and the news of them.
const FOR_EACH: usize = 25;
/// For one write.
const PATIENCE: Duration = Duration::from_secs(10);

/// What statuses are made of.
pub struct Reporter {
    /// Of the API server.
    pub client: Client,
    /// Whether this replica is the one that writes.
    pub leads: watch::Receiver<bool>,
    /// What is served.
    pub world: watch::Receiver<Arc<World>>,
    /// What the API server has.
    pub observations: watch::Receiver<Observations>,
    /// What proxies have made of it.
    pub proxies: Proxies,
    /// What Gateways run in; `None`: that is not made here.
    pub infrastructure: Option<watch::Receiver<Arc<Standings>>>,
}

impl Reporter {
    /// Writes until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut proxies = self.proxies.server.changes();
        let (mut retry, mut last) = (None::<Retry>, None::<MadeOf>);
        let mut teller = Teller::default();
        loop {
            let woken = async {
                tokio::select! {
                    changed = self.leads.changed() => changed.is_ok(),
                    changed = self.world.changed() => changed.is_ok(),
                    changed = self.observations.changed() => changed.is_ok(),
                    changed = next(&mut self.infrastructure) => changed.is_ok(),
                    changed = proxies.changed() => {
                        tokio::time::sleep(PROXIES).await;
                        changed.is_ok()
                    }
                    () = reached(retry) => true,
                }
            };
            let goes_on = tokio::select! {
                () = stop.cancelled() => false,
                woken = woken => woken,
            };
            if !goes_on {
                return;
            }
            tokio::time::sleep(SETTLE).await;
            let leads = *self.leads.borrow_and_update();
            if leads {
                let made_of = MadeOf::of(&self.world.borrow(), &self.observations.borrow());
                let in_pods = self.infrastructure.is_some();
                let is_late = retry.is_some_and(|(at, _)| at <= Instant::now());
                let unchanged = !is_late && last.as_ref().is_some_and(|last| last.is_same(&made_of));
                let changed = last.as_ref().filter(|_| !is_late).map(|last| made_of.changed(last));
                // Routes are many, and what is said of one is made of nothing else.
                let is_due = |object: &ObjectRef| match &changed {
                    Some(changed) if is_route(object.kind) => changed.contains(object),
                    _ => !unchanged || moves(object.kind, in_pods),
                };
                let mut failed = self.write(is_due).await > 0;
                if !unchanged {
                    let (world, observations) =
                        (self.world.borrow().clone(), self.observations.borrow().clone());
                    failed |= !teller.tell(&self.client, &world, &observations).await;
                }
                if is_late || retry.is_none() {
                    retry = failed.then(|| after(retry));
                }
                last = Some(made_of);
            } else {
                (retry, last) = (None, None);
                teller.forget();
            }
        }
    }

    /// Writes what is not said yet; gives how many could not be written.
    async fn write(&mut self, is_due: impl Fn(&ObjectRef) -> bool) -> usize {
        let world = self.world.borrow_and_update().clone();
        let observations = self.observations.borrow_and_update().clone();
        let infrastructure = self.infrastructure.as_mut().map(|of| of.borrow_and_update().clone());
        let now = Timestamp::now();
        let all = wanted(&world, &self.proxies, infrastructure.as_deref(), is_due, |object| {
            observations.get(object).cloned()
        });
        let controller = &world.model.objects.controller;
        let manager = status_manager(controller);
        let patches: Vec<(ObjectRef, Arc<Observation>, Json)> = all
            .into_iter()
            .filter_map(|(object, (generation, wanted))| {
                let observation = observations.get(&object)?.clone();
                let status = to_apply(controller, &wanted, generation, &observation.status, now)?;
                Some((object, observation, status))
            })
            .collect();
        let writes: Vec<BoxFuture<'static, bool>> = patches
            .into_iter()
            .map(|(object, observation, status)| {
                let writer = Writer { client: self.client.clone(), manager: manager.clone() };
                write(writer, self.leads.clone(), object, observation, status).boxed()
            })
            .collect();
        let at_once = at_once(writes.len());
        let written: Vec<bool> = stream::iter(writes).buffer_unordered(at_once).collect().await;
        written.iter().filter(|written| !**written).count()
    }
}

fn at_once(waiting: usize) -> usize {
    (waiting / FOR_EACH).clamp(1, AT_ONCE)
}

/// When what failed is tried again, and how long that was waited for.
pub(crate) type Retry = (Instant, Duration);

/// After one more failure.
fn after(before: Option<Retry>) -> Retry {
    let waited = before.map_or(RETRY, |(_, waited)| (waited * 2).min(MAX_RETRY));
    (Instant::now() + waited, waited)
}

/// Waits until something is to be tried again.
pub(crate) async fn reached(retry: Option<Retry>) {
    match retry {
        Some((at, _)) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Waits for the next value of what there may not be.
pub(crate) async fn next<T>(of: &mut Option<watch::Receiver<T>>) -> Result<(), watch::error::RecvError> {
    match of {
        Some(of) => of.changed().await,
        None => std::future::pending().await,
    }
}

/// Whether what is said of such an object changes by itself: endpoints come and go all day, and are said of two kinds
/// only; so do proxies, and what they refuse of a Gateway, wherever they run. An Ingress has the addresses of pods'.
fn moves(kind: Kind, in_pods: bool) -> bool {
    matches!(kind, Kind::Migration | Kind::Pool | Kind::Gateway) || in_pods && kind == Kind::Ingress
}

fn is_route(kind: Kind) -> bool {
    matches!(kind, Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute)
}

/// The keys of what is not the same in both. Parts that both share are not looked at.
fn differing<K: Ord + Clone, V: PartialEq + Clone>(before: &OrdMap<K, V>, now: &OrdMap<K, V>) -> Vec<K> {
    let keys = before.diff(now).map(|item| match item {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) => key,
        DiffItem::Update { new: (key, _), .. } => key,
    });
    keys.cloned().collect()
}

/// What nearly all statuses are made of.
struct MadeOf {
    statuses: Arc<Statuses>,
    standings: Arc<CompiledStandings>,
    problems: Arc<Vec<Problem>>,
    generations: OrdMap<ObjectRef, i64>,
    observations: Observations,
}

impl MadeOf {
    fn of(world: &World, observations: &Observations) -> MadeOf {
        MadeOf {
            statuses: world.compiled.statuses.clone(),
            standings: world.compiled.standings.clone(),
            problems: world.folder.problems.clone(),
            generations: world.folder.generations.clone(),
            observations: observations.clone(),
        }
    }

    fn is_same(&self, other: &MadeOf) -> bool {
        Arc::ptr_eq(&self.statuses, &other.statuses)
            && Arc::ptr_eq(&self.problems, &other.problems)
            && self.generations.ptr_eq(&other.generations)
            && self.observations.ptr_eq(&other.observations)
    }

    /// The routes, and maybe others, of which something else may have to be said than when it was made of `last`.
    fn changed(&self, last: &MadeOf) -> BTreeSet<ObjectRef> {
        let mut changed: BTreeSet<ObjectRef> = self.statuses.changed(&last.statuses).cloned().collect();
        changed.extend(differing(&last.standings.routes, &self.standings.routes));
        changed.extend(differing(&last.generations, &self.generations));
        changed.extend(differing(&last.observations, &self.observations));
        if !Arc::ptr_eq(&self.problems, &last.problems) {
            let problems = self.problems.iter().chain(last.problems.iter());
            changed.extend(problems.filter_map(|problem| problem.object.clone()));
        }
        changed
    }
}

/// Who writes, and where.
struct Writer {
    client: Client,
    manager: String,
}

/// False: it is to be tried again.
async fn write(
    writer: Writer,
    leads: watch::Receiver<bool>,
    object: ObjectRef,
    observation: Arc<Observation>,
    status: Json,
) -> bool {
    // Of many writes the last ones may be another's to make by now; or this one's anew, where the Lease comes back at once.
    if !*leads.borrow() {
        return false;
    }
    match tokio::time::timeout(PATIENCE, apply(&writer, &object, &observation, &status)).await {
        Ok(Ok(())) => true,
        // Somebody was there before us, or it is gone: the watch will say so.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => true,
        Ok(Err(error)) => {
            tracing::warn!(%object, %error, "a status cannot be written; it is tried again");
            false
        }
        Err(_) => false,
    }
}

async fn apply(
    Writer { client, manager }: &Writer,
    object: &ObjectRef,
    observation: &Observation,
    status: &Json,
) -> Result<(), kube::Error> {
    let kind = object.kind;
    let (group, version) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
    let gvk = GroupVersionKind::gvk(group, version, kind.as_str());
    let resource = ApiResource::from_gvk_with_plural(&gvk, &kind.plural());
    let api = match kind.is_namespaced() {
        true => Api::<DynamicObject>::namespaced_with(client.clone(), &object.name.namespace, &resource),
        false => Api::<DynamicObject>::all_with(client.clone(), &resource),
    };
    let mut metadata = json!({ "name": &*object.name.name, "uid": &*observation.uid });
    if kind.is_namespaced() {
        metadata["namespace"] = json!(&*object.name.namespace);
    }
    if kind.has_shared_status() {
        // The list of parents is one value that several controllers write: it must be the one that was read.
        metadata["resourceVersion"] = json!(observation.resource_version);
    }
    let patch = json!({
        "apiVersion": kind.api_version(), "kind": kind.as_str(), "metadata": metadata, "status": status,
    });
    let parameters = PatchParams::apply(manager).force();
    api.patch_status(&object.name.name, &parameters, &Patch::Apply(patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use kube::client::Body;

    use super::*;
    use crate::objects::ObjectName;

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_written_is_tried_less_and_less() {
        let (mut retry, mut waited) = (None, Vec::new());
        for _ in 0..8 {
            let before = Instant::now();
            retry = Some(after(retry));
            reached(retry).await;
            waited.push(before.elapsed().as_secs());
        }
        assert_eq!(waited, [2, 4, 8, 16, 32, 64, 120, 120]);
    }

    #[tokio::test]
    async fn what_was_not_written_as_another_led_is_not_written() {
        let object = ObjectRef { kind: Kind::HttpRoute, name: ObjectName::new("shop", "orders") };
        let (_leads, leads_out) = watch::channel(false);
        let server = tower::service_fn(|_: Request<Body>| async {
            Ok::<_, Infallible>(Response::new(Body::from(b"{}".to_vec())))
        });
        let writer = Writer { client: Client::new(server, "default"), manager: "m".to_owned() };
        let observation = Arc::new(Observation::default());
        assert!(!write(writer, leads_out, object, observation, json!({})).await, "it is to be tried again");
    }

    #[test]
    fn what_proxies_make_of_a_gateway_is_said_wherever_they_run() {
        for in_pods in [true, false] {
            assert!(moves(Kind::Gateway, in_pods) && moves(Kind::Migration, in_pods));
            assert_eq!(moves(Kind::Ingress, in_pods), in_pods);
            assert!(!moves(Kind::HttpRoute, in_pods) && !moves(Kind::GatewayClass, in_pods));
        }
    }

    #[test]
    fn only_of_many_are_several_written_at_once() {
        assert_eq!([0, 1, 10, 49, 50, 199, 200, 5_000].map(at_once), [1, 1, 1, 1, 2, 7, 8, 8]);
    }
}
