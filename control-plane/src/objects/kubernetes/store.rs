//! Which version of each object is in force, given what the API server says: watch events in, objects out, no I/O. As
//! with a directory, a version that is wrong leaves the last good one in force. What the API server adds to what users
//! wrote (statuses above all) changes nothing here, but is kept for those who write it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicObject;
use serde_json::Value as Json;
use tokio::time::Instant;

use crate::kubernetes::mirror::{Heard, Mirror};
use crate::migration::stage::State;
use crate::objects::catalogue::Loaded;
use crate::objects::config_map;
use crate::objects::document::{self, Document, Identity, Object};
use crate::objects::problem::{Position, Problem, Severity};
use crate::objects::yaml::{Key, Node, Value};
use crate::objects::{Controller, Kind, ObjectName, ObjectRef, Service};

/// Where a problem is that has no file.
const ORIGIN: &str = "kubernetes";
/// Deeper nesting is cut off: no kind needs so much, and the tree is walked by recursion.
const MAX_DEPTH: usize = 64;
/// The field of a `Migration`'s status that says where it stands.
pub const STATE: &str = "state";

/// Who writes statuses, as server-side apply names it; [of this installation](Controller::own).
const STATUS_MANAGER: &str = "pontoon";

/// Who writes our statuses.
pub fn status_manager(controller: &Controller) -> String {
    controller.own(STATUS_MANAGER)
}

/// An object as the API server says it.
#[derive(Debug, Clone, PartialEq)]
pub struct Raw {
    tree: Arc<Node>,
    observation: Arc<Observation>,
}

/// What the API server keeps beside what users wrote.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observation {
    /// Tells an object from a later one of its name.
    pub uid: Arc<str>,
    /// Counts the changes of its `spec`.
    pub generation: i64,
    /// The version that the status below is of.
    pub resource_version: String,
    /// Its status; `Null` where it has none.
    pub status: Json,
    /// Whether there is something in its status that was written as [`status_manager`].
    pub has_our_status: bool,
    /// `spec.gatewayClassName`, also of a version that is refused.
    pub gateway_class: Option<String>,
    /// `spec.controllerName`, likewise.
    pub controller: Option<String>,
    /// `spec.parentRefs`, or the one `spec.parentRef`, as they are written.
    pub parent_refs: Json,
}

impl Observation {
    /// Whether the status was written of the object as it is now.
    fn is_said_of_all(&self) -> bool {
        let conditions = self.status.get("conditions").and_then(Json::as_array).into_iter().flatten();
        let mut generations =
            conditions.map(|condition| condition.get("observedGeneration").and_then(Json::as_i64));
        generations.any(|generation| generation == Some(self.generation))
    }
}

/// All observations.
pub type Observations = OrdMap<ObjectRef, Arc<Observation>>;

impl Raw {
    /// Takes an object apart. Those of a list say neither kind nor version where they are Kubernetes's own. `manager`
    /// is who writes our statuses.
    pub fn of(of: Kind, object: DynamicObject, manager: &str) -> Raw {
        let DynamicObject { types, mut metadata, data } = object;
        let (mut rest, mut status) = (serde_json::Map::new(), Json::Null);
        let (api_version, kind) = match types {
            Some(types) => (types.api_version, types.kind),
            None => (of.api_version().to_owned(), of.as_str().to_owned()),
        };
        rest.insert("apiVersion".into(), api_version.into());
        rest.insert("kind".into(), kind.into());
        let managed = metadata.managed_fields.take();
        let has_our_status = managed.iter().flatten().any(|entry| {
            entry.manager.as_deref() == Some(manager) && entry.subresource.as_deref() == Some("status")
        });
        let spec = |field: &str| data.get("spec").and_then(|spec| spec.get(field));
        let text = |field: &str| spec(field).and_then(Json::as_str).map(str::to_owned);
        let (gateway_class, controller) = (text("gatewayClassName"), text("controllerName"));
        let only = || spec("parentRef").map(|parent| Json::Array(vec![parent.clone()]));
        let parent_refs = spec("parentRefs").cloned().or_else(only).unwrap_or_default();
        let observation_of = |status| Observation {
            uid: metadata.uid.as_deref().unwrap_or_default().into(),
            generation: metadata.generation.unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            status,
            has_our_status,
            gateway_class,
            controller,
            parent_refs,
        };
        let kept = match of {
            // Those of a whole cluster, and some change all the time: leases of others, logs, dashboards.
            Kind::ConfigMap | Kind::Secret => ObjectMeta {
                name: metadata.name.clone(),
                namespace: metadata.namespace.clone(),
                ..ObjectMeta::default()
            },
            // The version changes with each status that is written.
            _ => ObjectMeta { resource_version: None, ..metadata.clone() },
        };
        rest.insert("metadata".into(), serde_json::to_value(kept).unwrap_or_default());
        if let Json::Object(fields) = data {
            for (key, value) in fields {
                match key.as_str() {
                    "status" => status = value,
                    "binaryData" if of == Kind::ConfigMap => {}
                    "data" if of == Kind::ConfigMap => drop(rest.insert(key, used(value))),
                    _ => drop(rest.insert(key, value)),
                }
            }
        }
        Raw { tree: Arc::new(tree(Json::Object(rest), 0)), observation: Arc::new(observation_of(status)) }
    }
}

/// A ConfigMap's data without the values that nothing here reads. Their keys stay: one that is misspelt is named.
fn used(mut data: Json) -> Json {
    let fields = data.as_object_mut().into_iter().flatten();
    fields.filter(|(key, _)| !config_map::is_read(key)).for_each(|(_, value)| *value = "".into());
    data
}

/// Whether anybody asks what the API server keeps of such an object: who has no status of ours and no Event is only read.
fn is_observed(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::ConfigMap | Kind::IngressClass | Kind::Namespace | Kind::ReferenceGrant | Kind::Secret
    )
}

fn tree(json: Json, depth: usize) -> Node {
    let value = match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number.into()),
            (None, Some(number)) => Value::Int(number.into()),
            (None, None) => Value::Float(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::String(text),
        Json::Array(_) | Json::Object(_) if depth >= MAX_DEPTH => Value::Null,
        Json::Array(items) => Value::Seq(items.into_iter().map(|item| tree(item, depth + 1)).collect()),
        Json::Object(fields) => {
            let field = |(text, value)| (Key { at: Position::default(), text }, tree(value, depth + 1));
            Value::Map(fields.into_iter().map(field).collect())
        }
    };
    Node { at: Position::default(), value }
}

/// The memory of it all.
#[derive(Debug)]
pub struct Store {
    kinds: BTreeMap<Kind, Mirror<ObjectName, Raw>>,
    services: Mirror<ObjectName, Arc<Service>>,
    /// The trees that are read, good or not.
    read: BTreeMap<ObjectRef, Arc<Node>>,
    good: BTreeMap<ObjectRef, Object>,
    problems: BTreeMap<ObjectRef, Vec<Problem>>,
    /// Kinds that the API server does not know.
    absent: BTreeSet<Kind>,
    states: OrdMap<ObjectName, (Arc<str>, State)>,
    loaded: Loaded,
    observations: Observations,
    loaded_changed: bool,
    problems_changed: bool,
    observations_changed: bool,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            kinds: Kind::ALL.into_iter().map(|kind| (kind, Mirror::default())).collect(),
            services: Mirror::default(),
            read: BTreeMap::new(),
            good: BTreeMap::new(),
            problems: BTreeMap::new(),
            absent: BTreeSet::new(),
            states: OrdMap::new(),
            loaded: Loaded::default(),
            observations: Observations::new(),
            // Also nothing is said once.
            loaded_changed: true,
            problems_changed: false,
            observations_changed: true,
        }
    }
}

impl Store {
    /// Of an installation of this name.
    pub fn of(controller: Controller) -> Store {
        let mut store = Store::default();
        Arc::make_mut(&mut store.loaded.objects).controller = controller;
        store
    }

    /// Whether everything that there is to be listed was, once.
    pub fn is_complete(&self) -> bool {
        let listed =
            |(kind, mirror): (&Kind, &Mirror<_, _>)| mirror.is_complete() || self.absent.contains(kind);
        self.kinds.iter().all(listed) && self.services.is_complete()
    }

    /// Takes up what was heard of a kind; `None`: the API server does not know it. What is given back are those that
    /// are kept though the list that ended now does not have them: it is to be asked for another.
    pub fn hear(&mut self, kind: Kind, heard: Option<Heard<ObjectName, Raw>>, now: Instant) -> Option<usize> {
        let Some(heard) = heard else {
            self.absent.insert(kind);
            return None;
        };
        let ends = matches!(heard, Heard::ListEnds);
        let change = self.kinds.get_mut(&kind)?.hear(heard, now);
        for name in change.keys {
            self.look_at(ObjectRef { kind, name });
        }
        (ends && change.doubted > 0).then_some(change.doubted)
    }

    /// The same for Services.
    pub fn hear_service(
        &mut self,
        heard: Option<Heard<ObjectName, Arc<Service>>>,
        now: Instant,
    ) -> Option<usize> {
        let heard = heard?;
        let ends = matches!(heard, Heard::ListEnds);
        let change = self.services.hear(heard, now);
        for name in change.keys {
            self.loaded_changed = true;
            let services = &mut Arc::make_mut(&mut self.loaded.objects).services;
            match self.services.get(&name) {
                Some(service) => drop(services.insert(name, service.clone())),
                None => drop(services.remove(&name)),
            }
        }
        (ends && change.doubted > 0).then_some(change.doubted)
    }

    fn look_at(&mut self, object: ObjectRef) {
        let raw = self.kinds.get(&object.kind).and_then(|mirror| mirror.get(&object.name));
        let Some(Raw { tree, observation }) = raw.cloned() else {
            self.forget(&object);
            return;
        };
        let before = self.observations.get(&object);
        if is_observed(object.kind) && before.is_none_or(|before| **before != *observation) {
            self.observations.insert(object.clone(), observation.clone());
            self.observations_changed = true;
        }
        if object.kind == Kind::Gateway {
            self.follow_claim(&object.name, &observation);
        }
        if self.loaded.generations.get(&object) != Some(&observation.generation) {
            self.loaded.generations.insert(object.clone(), observation.generation);
            self.loaded_changed = true;
        }
        let mut problems = Vec::new();
        if object.kind == Kind::Migration && !self.follow_state(&object, &observation, &mut problems) {
            // Without knowing where it stands it would go back to where it began.
            if !self.good.contains_key(&object) {
                self.note(object, problems);
                return;
            }
        }
        if self.read.get(&object).is_some_and(|before| **before == *tree) && problems.is_empty() {
            let kept =
                self.problems.get(&object).is_some_and(|all| all.iter().any(|p| p.reason == UNREADABLE));
            if !kept {
                return;
            }
        }
        self.read.insert(object.clone(), tree.clone());
        let document = read(&tree);
        let mut refused = None;
        match document.outcome {
            Ok(read) if document.identity == Identity::Known(object.clone()) => {
                if self.good.get(&object) != Some(&read) {
                    self.loaded.put(object.clone(), &read, &ORIGIN.into(), &tree);
                    self.good.insert(object.clone(), read);
                    self.loaded_changed = true;
                }
            }
            Ok(_) => {}
            Err(found) => {
                refused = found.first().cloned();
                problems.extend(
                    found.into_iter().map(|problem| Problem { object: Some(object.clone()), ..problem }),
                );
                if self.good.contains_key(&object) {
                    let message = "the last good version stays in force".to_owned();
                    problems
                        .push(Problem { severity: Severity::Warning, ..problem(&object, "kept", message) });
                }
            }
        }
        self.loaded_changed |= self.loaded.note_refused(&object, refused.as_ref());
        self.note(object, problems);
    }

    /// Takes up whether a gateway's status says that it is ours. One that has changed since stays so if its class has not.
    fn follow_claim(&mut self, name: &ObjectName, observation: &Observation) {
        let claimed = &self.loaded.objects.claimed;
        let class = observation.gateway_class.as_deref().filter(|class| {
            let is_known = || claimed.get(name).is_some_and(|at| **at == **class);
            observation.has_our_status && (observation.is_said_of_all() || is_known())
        });
        self.claim(name, class);
    }

    fn claim(&mut self, name: &ObjectName, class: Option<&str>) {
        if self.loaded.objects.claimed.get(name).map(|at| &**at) == class {
            return;
        }
        let claimed = &mut Arc::make_mut(&mut self.loaded.objects).claimed;
        match class {
            Some(class) => drop(claimed.insert(name.clone(), class.into())),
            None => drop(claimed.remove(name)),
        }
        self.loaded_changed = true;
    }

    /// Takes up where a migration stands. False: its status says so in a way that this version cannot read.
    fn follow_state(
        &mut self,
        object: &ObjectRef,
        observation: &Observation,
        problems: &mut Vec<Problem>,
    ) -> bool {
        let written = observation.status.get(STATE);
        let state = match written.map(|state| serde_json::from_value::<State>(state.clone())) {
            None => None,
            Some(Ok(state)) => Some((observation.uid.clone(), state)),
            Some(Err(error)) => {
                let message = format!(
                    "status.{STATE} cannot be read ({error}), so the migration stays where it was; was it written \
                     by a newer version?"
                );
                problems.push(problem(object, UNREADABLE, message));
                return false;
            }
        };
        if self.states.get(&object.name) != state.as_ref() {
            self.loaded_changed = true;
            match state {
                Some(state) => drop(self.states.insert(object.name.clone(), state)),
                None => drop(self.states.remove(&object.name)),
            }
        }
        true
    }

    fn note(&mut self, object: ObjectRef, problems: Vec<Problem>) {
        let before = match problems.is_empty() {
            true => self.problems.remove(&object),
            false => self.problems.insert(object.clone(), problems.clone()),
        };
        self.problems_changed |= before.unwrap_or_default() != problems;
    }

    fn forget(&mut self, object: &ObjectRef) {
        self.read.remove(object);
        self.loaded_changed |= self.loaded.generations.remove(object).is_some();
        self.observations_changed |= self.observations.remove(object).is_some();
        self.problems_changed |= self.problems.remove(object).is_some();
        self.loaded_changed |= self.loaded.note_refused(object, None);
        if self.good.remove(object).is_some() {
            self.loaded.take(object);
            self.loaded_changed = true;
        }
        if object.kind == Kind::Migration {
            self.loaded_changed |= self.states.remove(&object.name).is_some();
        }
        if object.kind == Kind::Gateway {
            self.claim(&object.name, None);
        }
    }

    /// The objects in force and what is wrong, where they are not what they were when this was last asked.
    pub fn take_loaded(&mut self) -> Option<Loaded> {
        if std::mem::take(&mut self.problems_changed) {
            self.loaded.problems = Arc::new(self.problems.values().flatten().cloned().collect());
            self.loaded_changed = true;
        }
        if !std::mem::take(&mut self.loaded_changed) {
            return None;
        }
        self.loaded.states = Some(self.states.clone());
        Some(self.loaded.clone())
    }

    /// What is kept of the objects, where it changed since.
    pub fn take_observations(&mut self) -> Option<Observations> {
        std::mem::take(&mut self.observations_changed).then(|| self.observations.clone())
    }
}

/// What is wrong with an object by itself, whatever else there is.
pub fn own_problems(of: Kind, object: DynamicObject) -> Vec<Problem> {
    read(&Raw::of(of, object, "").tree).outcome.err().unwrap_or_default()
}

/// What came from an API server has no lines.
fn read(tree: &Node) -> Document {
    let document = document::read_one(&ORIGIN.into(), tree.clone());
    let placeless = |problems: Vec<Problem>| {
        problems.into_iter().map(|problem| Problem { at: None, ..problem }).collect()
    };
    Document { outcome: document.outcome.map_err(placeless), ..document }
}

/// The reason of a state that cannot be read.
const UNREADABLE: &str = "unreadable_state";

fn problem(object: &ObjectRef, reason: &'static str, message: String) -> Problem {
    Problem {
        file: ORIGIN.into(),
        at: None,
        object: Some(object.clone()),
        field: String::new(),
        value: None,
        reason,
        message,
        severity: Severity::Error,
    }
}

#[cfg(test)]
mod tests;
