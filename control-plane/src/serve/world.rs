//! What the control plane serves at one moment, for those who only look: the API and the metrics. Made anew by
//! the [`bridge`](super::bridge) after each change, never altered.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use jiff::Timestamp;
use pontoon_xds::server::{NodeStatus, Refusal, Server, Standing, TypeStatus};
use pontoon_xds::{ResourceType, Snapshot};
use tokio::time::Instant;

use super::api::types::{
    ApplicationSummary, Difference, InForce, MigrationView, NackView, ObjectView, ObjectsView, Pending,
    PoolView, Progress, ProxyType, ProxyView, RegistrySummary, RouteVersion, Straggler,
};
use super::in_force::{Tracker, judge, version};
use crate::compile::{Compiled, is_gateway};
use crate::migration::book::Book;
use crate::migration::sides;
use crate::migration::stage::State;
use crate::model::Model;
use crate::objects::migration::Side;
use crate::objects::{Kind, Loaded, ObjectName, semantic_problems};

/// What is served.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// What it was compiled from.
    pub model: Model,
    /// What the proxies are told.
    pub compiled: Arc<Compiled>,
    /// Where the migrations stand.
    pub book: Arc<Book>,
    /// The folder that the objects are from, and what is wrong in it.
    pub folder: Loaded,
}

/// What proxies have made of it. Clones share the tracker.
#[derive(Clone)]
pub struct Proxies {
    /// The running xDS server.
    pub server: Server,
    /// How long changes took.
    pub tracker: Arc<Mutex<Tracker>>,
}

impl Proxies {
    /// Around a server.
    pub fn new(server: Server) -> Proxies {
        Proxies { server, tracker: Arc::default() }
    }

    /// All connected streams.
    pub fn views(&self) -> Vec<ProxyView> {
        let view = |status: NodeStatus| {
            let published = self.server.snapshot(&status.view);
            proxy_view(status, published.as_ref())
        };
        self.server.nodes().into_iter().map(view).collect()
    }

    /// What connected proxies refuse, by view: who, what of which type, and their reason.
    pub fn refusals(&self) -> BTreeMap<String, Vec<String>> {
        let mut refusals: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for refusal in self.server.refusals(None) {
            let said = refused(&refusal);
            refusals.entry(refusal.client.view).or_default().push(said);
        }
        refusals
    }

    /// Runs `with` on the tracker.
    pub fn track<T>(&self, with: impl FnOnce(&mut Tracker) -> T) -> T {
        with(&mut self.tracker.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Who, what of which type, and the reason.
pub fn refused(refusal: &Refusal) -> String {
    let names: Vec<&str> = refusal.nack.resources.iter().map(|(name, _)| &**name).collect();
    let what = format!("{} {}", refusal.ty.short_name(), names.join(", "));
    format!("proxy {} refuses {}: {}", refusal.client.node, what.trim_end(), refusal.nack.message.trim_end())
}

/// Reasons, by node.
fn refused_routes(server: &Server, view: &str) -> HashMap<String, String> {
    let refusals = server.refusals(Some(view)).into_iter();
    let of_routes = refusals.filter(|refusal| refusal.ty == ResourceType::Route);
    of_routes.map(|refusal| (refusal.client.node, refusal.nack.message)).collect()
}

impl World {
    /// One migration, or none of that name.
    pub fn migration(&self, name: &ObjectName, proxies: &Proxies) -> Option<MigrationView> {
        let state = self.book.state(name)?;
        let spec = self.model.objects.migrations.get(name).map(|object| &object.spec);
        let pool = |side: &Side| {
            let view = sides::side(&self.model, &name.namespace, side);
            PoolView {
                name: view.name,
                healthy: view.endpoints.map(|endpoints| endpoints.healthy),
                known: view.endpoints.map(|endpoints| endpoints.known),
            }
        };
        let pending = self
            .book
            .pending(name)
            .map(|(position, refusal)| Pending { position: *position, refusal: refusal.to_string() });
        Some(MigrationView {
            name: name.to_string(),
            service: spec.map(|spec| spec.service.clone()),
            stage: state.position.stage,
            weight: state.position.weight,
            target_share: state.position.target_share(),
            revision: state.revision,
            previous: state.previous,
            actor: state.actor.clone(),
            reason: state.reason.clone(),
            at: state.at,
            object: spec.is_some(),
            pending,
            legacy: spec.map(|spec| pool(&spec.legacy)),
            target: spec.map(|spec| pool(&spec.target)),
            in_force: self.in_force(name, state, proxies),
        })
    }

    /// All migrations, by name.
    pub fn migrations(&self, proxies: &Proxies) -> Vec<MigrationView> {
        self.book.states().keys().filter_map(|name| self.migration(name, proxies)).collect()
    }

    /// Whether proxies do what `state` says.
    pub fn in_force(&self, name: &ObjectName, state: &State, proxies: &Proxies) -> InForce {
        let routes: Vec<RouteVersion> = carriers(&self.compiled, name)
            .filter_map(|(view, route, version)| {
                let mut who = proxies.server.acknowledged(view, ResourceType::Route, route, version);
                who.yes.sort_unstable();
                who.no.sort_unstable();
                who.away.sort_unstable();
                let follows_it = !(who.yes.is_empty() && who.no.is_empty() && who.away.is_empty());
                if !is_gateway(view) && !follows_it {
                    return None;
                }
                let mut refusals = match who.no.is_empty() {
                    true => HashMap::new(),
                    false => refused_routes(&proxies.server, view),
                };
                let here = who.no.into_iter().map(|node| Straggler {
                    refused: refusals.remove(&node),
                    node,
                    connected: true,
                });
                let away =
                    who.away.into_iter().map(|node| Straggler { node, refused: None, connected: false });
                Some(RouteVersion {
                    view: view.to_owned(),
                    name: route.to_owned(),
                    version: version.to_owned(),
                    waiting: here.chain(away).collect(),
                    acknowledged: who.yes,
                    lost: proxies.server.lost(view),
                })
            })
            .collect();
        let now = Instant::now();
        let progress = judge(routes.clone(), None).progress;
        let took = proxies.track(|tracker| tracker.note(name, state.revision, progress, now));
        InForce { version: version_of(&self.compiled, name), ..judge(routes, took) }
    }

    /// Stops the clock of a change that is in force by now. Asked with each acknowledgement, so it names nobody.
    pub fn note(&self, name: &ObjectName, state: &State, proxies: &Proxies) {
        let (mut is_followed, mut everybody) = (false, false);
        for (view, route, version) in carriers(&self.compiled, name) {
            match proxies.server.standing(view, ResourceType::Route, route, version) {
                Standing::Waiting => return,
                Standing::Everybody => (is_followed, everybody) = (true, true),
                Standing::Nobody => is_followed |= is_gateway(view),
            }
        }
        let progress = match (is_followed, everybody) {
            (_, true) => Progress::InForce,
            (true, false) => Progress::NoProxies,
            (false, false) => Progress::NoRoute,
        };
        proxies.track(|tracker| tracker.note(name, state.revision, progress, Instant::now()));
    }

    /// The objects and what is to be said of them, also by the proxies.
    pub fn objects(&self, proxies: &Proxies) -> ObjectsView {
        let mut problems = self.folder.problems.to_vec();
        problems.extend(semantic_problems(&self.folder, &self.compiled.statuses));
        problems.sort();
        problems.dedup();
        let mut problems: Vec<String> = problems.iter().map(|problem| problem.to_string()).collect();
        let mut refusals = proxies.refusals();
        let mut objects = Vec::new();
        for (object, conditions) in self.compiled.statuses.iter() {
            let wrong = conditions.iter().filter(|condition| !condition.status);
            let mut messages: Vec<String> = wrong
                .map(|c| match c.field.as_str() {
                    "" => format!("{} ({})", c.message, c.reason),
                    field => format!("{field}: {} ({})", c.message, c.reason),
                })
                .collect();
            // A view is a gateway's by its name.
            let refused = match object.kind {
                Kind::Gateway => refusals.remove(&object.name.to_string()).unwrap_or_default(),
                _ => Vec::new(),
            };
            problems.extend(refused.iter().map(|said| format!("{} {}: {said}", object.kind, object.name)));
            let ok = refused.is_empty() && conditions.iter().all(|condition| condition.status);
            messages.extend(refused.into_iter().map(|said| format!("{said} (Refused)")));
            objects.push(ObjectView {
                kind: object.kind.to_string(),
                name: object.name.to_string(),
                file: self.folder.file_of(object).map(|file| file.to_string()),
                ok,
                messages,
            });
        }
        ObjectsView { objects, problems }
    }

    /// What is registered.
    pub fn registry(&self) -> RegistrySummary {
        let summary = self.model.registry.applications.iter().map(|(name, application)| {
            let mut instances = BTreeMap::new();
            for instance in application.instances.values() {
                *instances.entry(status_word(instance.status).to_owned()).or_insert(0) += 1;
            }
            (name.to_string(), ApplicationSummary { instances, held: application.held })
        });
        RegistrySummary { applications: summary.collect() }
    }
}

/// As Eureka spells it.
pub fn status_word(status: crate::model::instance::InstanceStatus) -> &'static str {
    use crate::model::instance::InstanceStatus::{Down, OutOfService, Starting, Unknown, Up};
    match status {
        Up => "UP",
        Down => "DOWN",
        Starting => "STARTING",
        OutOfService => "OUT_OF_SERVICE",
        Unknown => "UNKNOWN",
    }
}

/// One version for all that carries a migration: that of its gateways' routes, and where it has none of its
/// sidecars'. Both are made of the same state.
pub fn version_of(compiled: &Compiled, name: &ObjectName) -> Option<String> {
    let of = |gateways: bool| {
        let all = carriers(compiled, name).filter(move |(view, ..)| is_gateway(view) == gateways);
        version(all.map(|(_, name, version)| (name, version)))
    };
    of(true).or_else(|| of(false))
}

/// The route configurations that carry a migration: view, name, version.
fn carriers<'a>(
    compiled: &'a Compiled,
    name: &ObjectName,
) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
    let carriers = compiled.migrations.get(name).map(|on_the_wire| &on_the_wire.routes);
    carriers.into_iter().flatten().filter_map(|(view, route)| {
        let resource = compiled.views.get(view)?.get(ResourceType::Route, route)?;
        Some((&**view, &**route, &*resource.version))
    })
}

/// What a client should have of a type and what it has, where these are not the same. A view that is gone changes
/// nothing about what its clients have.
fn differences(of_type: &TypeStatus, published: Option<&Snapshot>) -> Vec<Difference> {
    let Some(published) = published else { return Vec::new() };
    let all = published.resources(of_type.ty);
    let has: BTreeMap<&Arc<str>, &Arc<str>> =
        of_type.acknowledged.iter().map(|(name, version)| (name, version)).collect();
    let by_wildcard = of_type.wildcard && !published.is_by_name_only();
    let named = of_type.names.iter().filter_map(|name| all.get(name));
    let wanted: BTreeMap<&Arc<str>, &Arc<str>> = named
        .chain(all.values().filter(|_| by_wildcard))
        .map(|resource| (&resource.name, &resource.version))
        .collect();
    let names: BTreeSet<&Arc<str>> = has.keys().chain(wanted.keys()).copied().collect();
    let differs = names.into_iter().filter(|name| has.get(name) != wanted.get(name));
    let text = |version: Option<&&Arc<str>>| version.map(ToString::to_string);
    differs
        .map(|name| Difference {
            resource: name.to_string(),
            published: text(wanted.get(name)),
            acknowledged: text(has.get(name)),
        })
        .collect()
}

fn proxy_view(status: NodeStatus, published: Option<&Snapshot>) -> ProxyView {
    let types = status.types.into_iter().map(|of_type| {
        let differs = differences(&of_type, published);
        let last_nack = of_type.nack.map(|nack| NackView {
            at: timestamp(nack.at),
            message: nack.message.trim_end().to_owned(),
            resources: nack.resources.iter().map(|(name, _)| name.to_string()).collect(),
        });
        let view = ProxyType {
            wildcard: of_type.wildcard,
            names: of_type.names.iter().map(|name| name.to_string()).collect(),
            in_sync: of_type.in_sync,
            acknowledged: of_type
                .acknowledged
                .iter()
                .map(|(name, version)| (name.to_string(), version.to_string()))
                .collect(),
            differs,
            last_nack,
        };
        (of_type.ty.short_name().to_owned(), view)
    });
    ProxyView {
        node: status.id,
        cluster: status.cluster,
        user_agent: status.user_agent,
        connected_at: timestamp(status.connected_at),
        unknown_gateway: published.is_none(),
        types: types.collect(),
    }
}

/// A clock before 1970 or far off is shown as 1970.
fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;

    use super::*;

    fn of_clusters(names: &[&str], acknowledged: &[(&str, &str)]) -> TypeStatus {
        TypeStatus {
            ty: ResourceType::Cluster,
            wildcard: names.is_empty(),
            names: names.iter().map(|name| Arc::from(*name)).collect(),
            acknowledged_version: String::new(),
            sent_version: String::new(),
            in_sync: false,
            acknowledged: acknowledged.iter().map(|(n, v)| (Arc::from(*n), Arc::from(*v))).collect(),
            nack: None,
        }
    }

    #[test]
    fn what_should_be_is_held_against_what_is() {
        let mut published = Snapshot::default();
        let mut version = |name: &str| {
            let version = published.insert(&Cluster { name: name.into(), ..Cluster::default() });
            version.to_string()
        };
        let [a, b, c] = ["a", "b", "c"].map(&mut version);
        let found =
            |status: &TypeStatus, published: &Snapshot| -> Vec<(String, Option<String>, Option<String>)> {
                let all = differences(status, Some(published));
                all.into_iter().map(|d| (d.resource, d.published, d.acknowledged)).collect()
            };
        let has = [("a", &*a), ("b", "old"), ("gone", "1")];
        let (stale, old) = (("b".to_owned(), Some(b), Some("old".to_owned())), "1".to_owned());
        let wildcard = of_clusters(&[], &has);
        let gone = ("gone".to_owned(), None, Some(old));
        let missing = ("c".to_owned(), Some(c), None);
        assert_eq!(found(&wildcard, &published), [stale.clone(), missing, gone.clone()]);
        let named = of_clusters(&["a", "b", "nobody"], &has);
        assert_eq!(found(&named, &published), [stale, gone]);
        assert_eq!(differences(&named, None), []);
        assert_eq!(found(&of_clusters(&[], &[]), &Snapshot::by_name_only()), []);
    }
}
