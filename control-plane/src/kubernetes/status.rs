//! What the status of each object should say, from what is served: no I/O. Conditions are those of the compiler, in the
//! places where the Gateway API and Kubernetes look for them. What others wrote is left as it is.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use pontoon_xds::ResourceType;
use serde_json::{Map, Value as Json, json};

use crate::compile::status::{Condition, ConditionType};
use crate::compile::{GATEWAY_GROUP, is_our_class, standing};
use crate::infrastructure::provision::asked;
use crate::infrastructure::{Address, Standing, Standings};
use crate::objects::problem::{Problem, Severity, at_field};
use crate::objects::{Controller, Kind, ObjectName, ObjectRef, Observation};
use crate::serve::api::types::Progress;
use crate::serve::world::{Proxies, World, refused};

/// The Gateway API's own limit is 32768; a status is read by people.
const MESSAGE_BYTES: usize = 2048;

/// The Gateway API's limit for the ancestors in a policy's status, whoever wrote them.
const MOST_ANCESTORS: usize = 16;

/// The types of conditions that are ours to say. One that is written and not said any more has to go.
const TYPES: [&str; 9] = [
    "Accepted",
    "Conflicted",
    "Declared",
    "InForce",
    "InsecureFrontendValidationMode",
    "OverlappingTLSConfig",
    "PartiallyInvalid",
    "Programmed",
    "ResolvedRefs",
];

/// One condition as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    kind: &'static str,
    status: bool,
    reason: String,
    message: String,
}

/// What the status of an object should say, but for times.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    /// Of the object as a whole.
    conditions: Vec<Said>,
    /// By listener, with its other fields.
    listeners: Vec<(Json, Vec<Said>)>,
    /// By the reference to the parent, as it is written.
    parents: Option<Vec<(Json, Vec<Said>)>>,
    /// By the gateway that a policy concerns.
    ancestors: Option<Vec<(Json, Vec<Said>)>>,
    /// Other fields.
    fields: Map<String, Json>,
    /// Whether its kind has an `observedGeneration` beside its conditions' own.
    is_counted: bool,
    /// It is ours no more: what was written goes, and what others wrote stays.
    is_withdrawn: bool,
}

/// What is to be said of certain objects, as far as they are ours to speak of.
pub fn wanted(
    world: &World,
    proxies: &Proxies,
    infrastructure: Option<&Standings>,
    is_asked: impl Fn(&ObjectRef) -> bool,
    observed: impl Fn(&ObjectRef) -> Option<std::sync::Arc<Observation>>,
) -> BTreeMap<ObjectRef, (i64, Wanted)> {
    let mut problems: BTreeMap<&ObjectRef, Vec<&Problem>> = BTreeMap::new();
    for problem in world.folder.problems.iter().filter(|problem| problem.severity == Severity::Error) {
        if let Some(object) = &problem.object {
            problems.entry(object).or_default().push(problem);
        }
    }
    let mut all = BTreeMap::new();
    for (object, generation) in world.folder.generations.iter().filter(|(object, _)| is_asked(object)) {
        let Some(observation) = observed(object) else { continue };
        let about = About {
            world,
            object,
            conditions: world.compiled.statuses.of(object),
            problems: problems.get(object).map_or(&[][..], Vec::as_slice),
            observation: &observation,
        };
        let wanted = match object.kind {
            Kind::GatewayClass => about.class(infrastructure.is_some()),
            Kind::Mesh => about.mesh(),
            Kind::Gateway => {
                let standing = world.compiled.standings.gateways.get(&object.name);
                let served =
                    standing.map(|standing| about.gateway(standing)).map(|wanted| match infrastructure {
                        Some(all) => about.in_pods(wanted, all.get(&object.name), proxies),
                        None => programmed(wanted, || about.is_taken(proxies)),
                    });
                served.or_else(|| about.refused_gateway())
            }
            Kind::ListenerSet => {
                let standing = world.compiled.standings.listener_sets.get(&object.name);
                standing.map(|standing| about.gateway(standing)).or_else(|| about.refused_set())
            }
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => Some(about.route()),
            Kind::BackendTlsPolicy => Some(about.policy()),
            Kind::Migration => Some(about.migration(proxies)),
            Kind::Pool => Some(about.pool()),
            Kind::Ingress => about.ingress(infrastructure),
            Kind::ConfigMap | Kind::IngressClass | Kind::Namespace | Kind::ReferenceGrant | Kind::Secret => {
                None
            }
        };
        let withdrawn = || Wanted { is_withdrawn: true, ..Wanted::default() };
        let wanted = wanted.or_else(|| observation.has_our_status.then(withdrawn));
        all.extend(wanted.map(|wanted| (object.clone(), (*generation, wanted))));
    }
    all
}

struct About<'w> {
    world: &'w World,
    object: &'w ObjectRef,
    conditions: &'w [Condition],
    problems: &'w [&'w Problem],
    observation: &'w Observation,
}

impl About<'_> {
    /// One condition of those that `of` picks; a document that is refused is the first thing to say.
    fn say(&self, kind: ConditionType, name: &'static str, of: impl Fn(&Condition) -> bool) -> Said {
        let mut messages = Vec::new();
        let mut reason = None;
        if kind == ConditionType::Accepted {
            for problem in self.problems {
                reason.get_or_insert(problem.reason);
                messages.push(problem.why());
            }
        }
        for condition in self.conditions.iter().filter(|c| c.kind == kind && !c.status && of(c)) {
            reason.get_or_insert(condition.reason);
            messages.push(at_field(&condition.field, &condition.message));
        }
        let (status, reason) = (reason.is_none(), reason.unwrap_or(name).to_owned());
        Said { kind: name, status, reason, message: messages.join("; ") }
    }

    fn usual(&self) -> Vec<Said> {
        vec![
            self.say(ConditionType::Accepted, "Accepted", |_| true),
            self.say(ConditionType::ResolvedRefs, "ResolvedRefs", |_| true),
        ]
    }

    fn class(&self, in_pods: bool) -> Option<Wanted> {
        let class = self.world.model.objects.gateway_classes.get(&self.object.name);
        let controller = class.map(|class| class.spec.controller_name.as_str());
        let controller = controller.or(self.observation.controller.as_deref())?;
        if !self.world.model.objects.controller.is(controller) {
            return None;
        }
        let of_pods = if in_pods { standing::FEATURES_OF_PODS } else { &[] };
        Some(self.able(standing::FEATURES.iter().chain(of_pods).copied().collect()))
    }

    fn mesh(&self) -> Option<Wanted> {
        let objects = &self.world.model.objects;
        let mesh = objects.meshes.get(&self.object.name)?;
        let is_ours = objects.controller.is(&mesh.spec.controller_name);
        is_ours.then(|| self.able(standing::FEATURES_OF_MESH.iter().copied().collect()))
    }

    /// Whether it is accepted, and what features it has.
    fn able(&self, features: BTreeSet<&str>) -> Wanted {
        let conditions = vec![self.say(ConditionType::Accepted, "Accepted", |_| true)];
        let features: Vec<Json> = features.into_iter().map(|name| json!({ "name": name })).collect();
        let fields = Map::from_iter([("supportedFeatures".to_owned(), json!(features))]);
        Wanted { conditions, fields, ..Wanted::default() }
    }

    /// Adds where a Gateway is reached; and it is programmed when one of its pods serves what it says by now.
    fn in_pods(&self, mut wanted: Wanted, standing: Option<&Standing>, proxies: &Proxies) -> Wanted {
        let addresses = standing.map_or(&[][..], |standing| &standing.addresses);
        wanted.fields.insert("addresses".to_owned(), json!(addresses));
        programmed(wanted, || self.is_served(standing, proxies))
    }

    /// No proxy of the Gateway refuses anything of it.
    fn is_taken(&self, proxies: &Proxies) -> Result<(), Fault> {
        let view = self.object.name.to_string();
        match proxies.server.refusals(Some(&view)).first() {
            Some(refusal) => Err(("Invalid", refused(refusal))),
            None => Ok(()),
        }
    }

    fn is_served(&self, standing: Option<&Standing>, proxies: &Proxies) -> Result<(), Fault> {
        let Some(standing) = standing else {
            return Err(("Pending", "its Deployment and Service are not there yet".to_owned()));
        };
        if let Some((reason, message)) = &standing.problem {
            return Err((reason, message.clone()));
        }
        if standing.addresses.is_empty() {
            return Err(("AddressNotAssigned", "its Service has no address yet".to_owned()));
        }
        let gateway = self.world.model.objects.gateways.get(&self.object.name);
        let asked = gateway.map(|gateway| asked(gateway)).unwrap_or_default();
        let has = |address: &IpAddr| {
            standing.addresses.iter().any(|has| has.value.parse().is_ok_and(|has: IpAddr| has == *address))
        };
        if let Some(missing) = asked.iter().find(|address| !has(address)) {
            return Err(("AddressNotUsable", format!("its Service does not have the address {missing}")));
        }
        self.is_taken(proxies)?;
        let view = self.object.name.to_string();
        let listeners = self.world.compiled.views.get(view.as_str());
        let listeners =
            listeners.into_iter().flat_map(|view| view.resources(ResourceType::Listener).values());
        let mut listeners = listeners.map(|listener| {
            proxies.server.acknowledged(&view, ResourceType::Listener, &listener.name, &listener.version)
        });
        if !standing.is_available || !listeners.all(|by| !by.yes.is_empty()) {
            return Err(("Pending", "none of its pods serves it yet".to_owned()));
        }
        Ok(())
    }

    /// What the compiler says; a document that is refused goes before it.
    fn said(&self, conditions: &[standing::Said]) -> Vec<Said> {
        // To the API a route is either refused or served in part.
        let is_meant = |said: &&standing::Said| self.problems.is_empty() || said.kind != "PartiallyInvalid";
        let said = conditions.iter().filter(is_meant).map(|said| match (said.kind, self.problems.first()) {
            ("Accepted", Some(problem)) => Said {
                kind: "Accepted",
                status: false,
                reason: problem.reason.to_owned(),
                message: problem.why(),
            },
            _ => Said {
                kind: said.kind,
                status: said.status,
                reason: said.reason.to_owned(),
                message: said.message.clone(),
            },
        });
        said.collect()
    }

    /// Of a version that could not be read, when no other was before: it is not in force at all. What is known of such an
    /// object is whose it is.
    fn refused(&self) -> Option<Said> {
        let problem = self.problems.first()?;
        let (reason, message) = (problem.reason.to_owned(), problem.why());
        Some(Said { kind: "Accepted", status: false, reason, message })
    }

    fn refused_gateway(&self) -> Option<Wanted> {
        let class = self.observation.gateway_class.as_deref()?;
        let accepted = self.refused().filter(|_| is_our_class(&self.world.model.objects, class))?;
        Some(Wanted { conditions: not_programmed(accepted), ..Wanted::default() })
    }

    fn refused_set(&self) -> Option<Wanted> {
        let accepted = self.refused()?;
        self.own_parents().next()?;
        Some(Wanted { conditions: not_programmed(accepted), ..Wanted::default() })
    }

    /// What is written as a parent and is a Gateway or a set of listeners that is served here.
    fn own_parents(&self) -> impl Iterator<Item = &Json> {
        let standings = &self.world.compiled.standings;
        let is_ours = |parent: &&Json| {
            let field = |name: &str| parent.get(name).and_then(Json::as_str);
            let namespace = field("namespace").unwrap_or(&self.object.name.namespace);
            let name = ObjectName::new(namespace, field("name").unwrap_or_default());
            match (field("group").unwrap_or(GATEWAY_GROUP), field("kind").unwrap_or("Gateway")) {
                (GATEWAY_GROUP, "Gateway") => standings.gateways.contains_key(&name),
                (GATEWAY_GROUP, "ListenerSet") => standings.listener_sets.contains_key(&name),
                _ => false,
            }
        };
        self.observation.parent_refs.as_array().into_iter().flatten().filter(is_ours)
    }

    fn gateway(&self, standing: &standing::GatewayStanding) -> Wanted {
        let listeners = standing.listeners.iter().map(|listener| {
            let fields = json!({
                "name": listener.name,
                "attachedRoutes": listener.attached_routes,
                "supportedKinds": listener.supported_kinds,
            });
            (fields, self.said(&listener.conditions))
        });
        let sets =
            standing.attached_listener_sets.map(|sets| ("attachedListenerSets".to_owned(), json!(sets)));
        Wanted {
            conditions: self.said(&standing.conditions),
            listeners: listeners.collect(),
            fields: sets.into_iter().collect(),
            ..Wanted::default()
        }
    }

    /// An Ingress has no conditions; where it is reached is all that its status says.
    fn ingress(&self, infrastructure: Option<&Standings>) -> Option<Wanted> {
        let gateway = self.world.compiled.standings.ingresses.get(&self.object.name)?;
        let standing = gateway.as_ref().and_then(|gateway| infrastructure?.get(gateway));
        let addresses = standing.map_or(&[][..], |standing| &standing.addresses);
        let of = |address: &Address| match address.kind {
            "IPAddress" => json!({ "ip": address.value }),
            _ => json!({ "hostname": address.value }),
        };
        let balancer = match addresses {
            [] => json!({}),
            all => json!({ "ingress": all.iter().map(of).collect::<Vec<_>>() }),
        };
        let fields = Map::from_iter([("loadBalancer".to_owned(), balancer)]);
        Some(Wanted { fields, ..Wanted::default() }).filter(|_| infrastructure.is_some())
    }

    fn route(&self) -> Wanted {
        let parents: Vec<_> = match (self.world.compiled.standings.routes.get(self.object), self.refused()) {
            (None, Some(accepted)) => {
                self.own_parents().map(|parent| (parent.clone(), vec![accepted.clone()])).collect()
            }
            (standings, _) => {
                let parents = standings.into_iter().flat_map(|parents| parents.iter());
                parents.map(|parent| (json!(parent.parent_ref), self.said(&parent.conditions))).collect()
            }
        };
        Wanted { parents: Some(parents), ..Wanted::default() }
    }

    fn policy(&self) -> Wanted {
        let standings = self.world.compiled.standings.policies.get(&self.object.name);
        let ancestors = standings.into_iter().flatten();
        let ancestors = ancestors.map(|of| (json!(of.ancestor_ref), self.said(&of.conditions)));
        Wanted { ancestors: Some(ancestors.collect()), ..Wanted::default() }
    }

    fn pool(&self) -> Wanted {
        let cluster = format!("pool/{}", self.object.name);
        let endpoints =
            self.world.compiled.clusters.get(cluster.as_str()).and_then(|status| status.endpoints);
        let fields = endpoints.map(|endpoints| ("endpoints".to_owned(), json!(endpoints)));
        let is_counted = fields.is_some();
        Wanted {
            conditions: self.usual(),
            fields: fields.into_iter().collect(),
            is_counted,
            ..Wanted::default()
        }
    }

    fn migration(&self, proxies: &Proxies) -> Wanted {
        let mut conditions = self.usual();
        if let Some(state) = self.world.book.state(&self.object.name) {
            let in_force = self.world.in_force(&self.object.name, state, proxies);
            let waiting: Vec<String> = in_force
                .routes
                .iter()
                .flat_map(|route| &route.waiting)
                .map(|straggler| match &straggler.refused {
                    Some(reason) => format!("{} (refuses: {})", straggler.node, reason.trim_end()),
                    None => straggler.node.clone(),
                })
                .collect();
            let lost: BTreeSet<&str> =
                in_force.routes.iter().flat_map(|route| &route.lost).map(String::as_str).collect();
            let lost: Vec<&str> = lost.into_iter().collect();
            let without = match lost.as_slice() {
                [] => String::new(),
                lost => format!("not waited for, as they have not come back: {}", lost.join(", ")),
            };
            let (status, reason, message) = match in_force.progress {
                Progress::InForce => (true, "InForce", without),
                Progress::NoProxies => (false, "NoProxies", "no proxy follows its routes".to_owned()),
                Progress::NoRoute => (false, "NoRoute", "no route sends to this service".to_owned()),
                _ => (false, "Waiting", format!("not acknowledged yet by {}", waiting.join(", "))),
            };
            conditions.push(Said { kind: "InForce", status, reason: reason.to_owned(), message });
        }
        if let Some((position, refusal)) = self.world.book.pending(&self.object.name) {
            let message = format!("{position} is asked for and waits: {refusal}");
            conditions.push(Said { kind: "Declared", status: false, reason: "Refused".to_owned(), message });
        }
        Wanted { conditions, ..Wanted::default() }
    }
}

/// Reason and message.
type Fault = (&'static str, String);

/// A Gateway is programmed unless there is a fault.
fn programmed(mut wanted: Wanted, look: impl FnOnce() -> Result<(), Fault>) -> Wanted {
    let programmed = wanted.conditions.iter_mut().find(|said| said.kind == "Programmed");
    if let Some(programmed) = programmed.filter(|said| said.status)
        && let Err((reason, message)) = look()
    {
        (programmed.status, programmed.reason, programmed.message) = (false, reason.to_owned(), message);
    }
    wanted
}

fn not_programmed(accepted: Said) -> Vec<Said> {
    let programmed = Said { kind: "Programmed", reason: "Invalid".to_owned(), ..accepted.clone() };
    vec![accepted, programmed]
}

/// The fields of the status to apply; `None`: it says all that already, or is of a newer version of the object than was
/// looked at here.
pub fn to_apply(
    controller: &Controller,
    wanted: &Wanted,
    generation: i64,
    status: &Json,
    now: Timestamp,
) -> Option<Json> {
    if wanted.is_withdrawn {
        return Some(json!({}));
    }
    if observed_by_us(controller, status) > generation {
        return None;
    }
    let mut fields = Map::new();
    let mut same = true;
    let mut put = |key: &str, value: Json, observed: Option<&Json>| {
        same &= observed == Some(&value);
        fields.insert(key.to_owned(), value);
    };
    let find = |list: &str, key: &str, wanted: &Json| {
        let all = status.get(list).and_then(Json::as_array);
        all.into_iter().flatten().find(|item| item.get(key) == Some(wanted)).cloned().unwrap_or_default()
    };
    for (list, key, of) in
        [("parents", "parentRef", &wanted.parents), ("ancestors", "ancestorRef", &wanted.ancestors)]
    {
        let Some(of) = of else { continue };
        let is_ours = |entry: &&Json| is_by(controller, entry);
        let written = || status.get(list).and_then(Json::as_array).into_iter().flatten();
        let others = written().filter(|entry| !is_ours(entry)).count();
        // A list that is too long would be refused as a whole.
        let room = if list == "ancestors" { MOST_ANCESTORS.saturating_sub(others) } else { usize::MAX };
        let ours: Vec<Json> = of
            .iter()
            .take(room)
            .map(|(reference, said)| {
                let before = written().filter(is_ours).find(|entry| entry.get(key) == Some(reference));
                let conditions = before.and_then(|entry| entry.get("conditions"));
                json!({
                    key: reference,
                    "controllerName": controller.as_str(),
                    "conditions": self::conditions(said, generation, conditions, now).0,
                })
            })
            .collect();
        let before: Vec<Json> = written().filter(is_ours).cloned().collect();
        // The list is one value to the API server: others' entries go back as they are.
        let mut all: Vec<Json> = written().filter(|entry| !is_ours(entry)).cloned().collect();
        let unchanged = before == ours;
        all.extend(ours);
        let all = Json::Array(all);
        put(list, all.clone(), unchanged.then_some(&all));
    }
    if !wanted.conditions.is_empty() {
        let (list, observed) = conditions(&wanted.conditions, generation, status.get("conditions"), now);
        put("conditions", list, Some(&observed));
    }
    let listeners_before = status.get("listeners").and_then(Json::as_array).map_or(0, Vec::len);
    if !wanted.listeners.is_empty() || listeners_before > 0 {
        let mut observed_all = Vec::new();
        let list = wanted.listeners.iter().map(|(fields, said)| {
            let observed = find("listeners", "name", fields.get("name").unwrap_or(&Json::Null));
            let (conditions, before) = conditions(said, generation, observed.get("conditions"), now);
            let mut observed_here = observed.clone();
            if let Some(observed) = observed_here.as_object_mut() {
                observed.insert("conditions".to_owned(), before);
            }
            observed_all.push(observed_here);
            let mut fields = fields.clone();
            fields["conditions"] = conditions;
            fields
        });
        let list = Json::Array(list.collect());
        // One that has gone has to go from the status, too.
        let observed = Json::Array(observed_all);
        put("listeners", list, (listeners_before == wanted.listeners.len()).then_some(&observed));
    }
    for (key, value) in &wanted.fields {
        put(key, value.clone(), status.get(key));
    }
    if wanted.is_counted {
        put("observedGeneration", json!(generation), status.get("observedGeneration"));
    }
    (!same).then_some(Json::Object(fields))
}

/// Whether an entry of a list that several controllers write is ours.
fn is_by(controller: &Controller, entry: &Json) -> bool {
    entry.get("controllerName").and_then(Json::as_str) == Some(controller.as_str())
}

/// The newest version that our conditions in a status are of.
fn observed_by_us(controller: &Controller, status: &Json) -> i64 {
    let list = |of: &'_ Json, name: &str| of.get(name).and_then(Json::as_array).cloned().unwrap_or_default();
    let of_type = |condition: &Json| {
        let kind = condition.get("type").and_then(Json::as_str).unwrap_or_default();
        TYPES.contains(&kind).then(|| condition.get("observedGeneration").and_then(Json::as_i64)).flatten()
    };
    let newest = |of: &Json| list(of, "conditions").iter().filter_map(of_type).max();
    let mut entries = list(status, "parents");
    entries.extend(list(status, "ancestors"));
    entries.retain(|entry| is_by(controller, entry));
    entries.iter().chain([status]).filter_map(newest).max().unwrap_or_default()
}

/// As much of a message as a status has room for: proxies' words, and the names of what they refuse, may be long.
fn shortened(message: &str) -> Cow<'_, str> {
    match message.len() > MESSAGE_BYTES {
        true => format!("{}...", &message[..message.floor_char_boundary(MESSAGE_BYTES)]).into(),
        false => message.into(),
    }
}

/// Conditions with their times, and those of our types as they are written now: of the types that are said in the same
/// order, and then what is to go. The time is that of the last change of the status, not of the words.
fn conditions(said: &[Said], generation: i64, written: Option<&Json>, now: Timestamp) -> (Json, Json) {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let all = || written.and_then(Json::as_array).into_iter().flatten();
    let kind_of = |condition: &'_ Json| {
        condition.get("type").and_then(Json::as_str).map(str::to_owned).unwrap_or_default()
    };
    let mut before = Vec::new();
    let list = said.iter().map(|Said { kind, status, reason, message }| {
        let status = if *status { "True" } else { "False" };
        let found = all().find(|condition| kind_of(condition) == *kind);
        before.extend(found.cloned());
        let same = found.filter(|found| found.get("status").and_then(Json::as_str) == Some(status));
        let time = same.and_then(|found| found.get("lastTransitionTime")).and_then(Json::as_str);
        json!({
            "type": kind,
            "status": status,
            "observedGeneration": generation,
            "lastTransitionTime": time.unwrap_or(&now),
            "reason": reason,
            "message": shortened(message),
        })
    });
    let list = Json::Array(list.collect());
    let is_past = |condition: &&Json| {
        let kind = kind_of(condition);
        TYPES.contains(&kind.as_str()) && said.iter().all(|said| said.kind != kind)
    };
    before.extend(all().filter(is_past).cloned());
    (list, Json::Array(before))
}

#[cfg(test)]
mod tests;
