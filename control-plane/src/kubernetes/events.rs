//! Events on Ingresses: they have no conditions, so this is where `kubectl describe` says what is wrong with one. An
//! Event's name is made of what it says, so that the same words are one Event, whoever leads.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value as Json, json};
use twox_hash::XxHash64;

use crate::objects::problem::Severity;
use crate::objects::{Kind, ObjectName, ObjectRef, Observations};
use crate::serve::world::World;

/// For one Event.
const PATIENCE: Duration = Duration::from_secs(10);
/// The API server's own limit is 1024 bytes.
const MESSAGE_BYTES: usize = 1000;
/// Of an Ingress's name in its Events': with the sum it must not be longer than a name may be.
const LONGEST_START: usize = 200;
/// Written at a time. Statuses wait for them.
const AT_ONCE: usize = 8;
/// At a time of one object: more is not read by anybody.
const MOST: usize = 20;

/// One thing to say of an Ingress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    reason: String,
    message: String,
}

impl Said {
    fn new(reason: &str, field: &str, message: &str) -> Said {
        let mut message = if field.is_empty() { message.to_owned() } else { format!("{field}: {message}") };
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
        Said { reason: reason.to_owned(), message }
    }
}

/// What is wrong with the Ingresses of our classes, by Ingress.
pub fn wanted(world: &World) -> BTreeMap<ObjectName, Vec<Said>> {
    let mut all: BTreeMap<ObjectName, Vec<Said>> = BTreeMap::new();
    for name in world.compiled.standings.ingresses.keys() {
        let object = ObjectRef { kind: Kind::Ingress, name: name.clone() };
        let wrong = world.compiled.statuses.of(&object).iter().filter(|condition| !condition.status);
        let said = wrong.map(|wrong| Said::new(wrong.reason, &wrong.field, &wrong.message));
        all.insert(name.clone(), said.take(MOST).collect());
    }
    // A version that cannot be read is of a class that is not known.
    for problem in world.folder.problems.iter().filter(|problem| problem.severity == Severity::Error) {
        if let Some(ObjectRef { kind: Kind::Ingress, name }) = &problem.object
            && let Some(said) = all.get_mut(name)
        {
            said.push(Said::new(problem.reason, &problem.field, &problem.message));
        }
    }
    all
}

/// What has been said already.
#[derive(Debug, Default)]
pub struct Teller {
    told: BTreeMap<ObjectName, Vec<Said>>,
}

impl Teller {
    /// Says what was not said yet. False: some of it is to be tried again.
    pub async fn tell(&mut self, client: &Client, world: &World, observations: &Observations) -> bool {
        let wanted = wanted(world);
        self.told.retain(|name, _| wanted.contains_key(name));
        let mut due = Vec::new();
        for (name, said) in wanted {
            let object = ObjectRef { kind: Kind::Ingress, name };
            let Some(uid) = observations.get(&object).map(|observation| observation.uid.clone()) else {
                continue;
            };
            let told = self.told.entry(object.name.clone()).or_default();
            told.retain(|before| said.contains(before));
            for said in said.into_iter().filter(|said| !told.contains(said)) {
                let event = event(&object.name, &uid, &said, Timestamp::now());
                due.push(tell_one(client.clone(), object.clone(), said, event).boxed());
            }
        }
        let mut all_well = true;
        let mut telling = stream::iter(due).buffer_unordered(AT_ONCE);
        while let Some((name, told)) = telling.next().await {
            match told {
                Some(said) => self.told.entry(name).or_default().push(said),
                None => all_well = false,
            }
        }
        all_well
    }

    /// Another leads: what it says is not known here.
    pub fn forget(&mut self) {
        self.told.clear();
    }
}

/// `None`: it is to be tried again.
async fn tell_one(client: Client, object: ObjectRef, said: Said, event: Json) -> (ObjectName, Option<Said>) {
    let applying = tokio::time::timeout(PATIENCE, apply(&client, &object.name, &event));
    let told = match applying.await {
        Ok(Ok(())) => Some(said),
        // The namespace is about to go.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {
            tracing::warn!(%object, message = said.message, "an Event cannot be written");
            Some(said)
        }
        Ok(Err(error)) => {
            tracing::warn!(%object, %error, "an Event cannot be written; it is tried again");
            None
        }
        Err(_) => None,
    };
    (object.name, told)
}

fn event(name: &ObjectName, uid: &str, said: &Said, now: Timestamp) -> Json {
    let sum = XxHash64::oneshot(0, format!("{uid}{}{}", said.reason, said.message).as_bytes());
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let start: String = name.name.chars().take(LONGEST_START).collect();
    // Each part of a name ends as it begins, with a letter or a digit.
    let start = start.trim_end_matches(['-', '.']);
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": format!("{start}.{sum:016x}"), "namespace": &*name.namespace },
        "involvedObject": {
            "apiVersion": Kind::Ingress.api_version(),
            "kind": Kind::Ingress.as_str(),
            "name": &*name.name,
            "namespace": &*name.namespace,
            "uid": uid,
        },
        "reason": said.reason,
        "message": said.message,
        "type": "Warning",
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": { "component": "pontoon" },
        "reportingComponent": "pontoon.dev/ingress-controller",
        "reportingInstance": "pontoon",
    })
}

async fn apply(client: &Client, name: &ObjectName, event: &Json) -> Result<(), kube::Error> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Event"));
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), &name.namespace, &resource);
    let called = event["metadata"]["name"].as_str().unwrap_or_default();
    api.patch(called, &PatchParams::apply("pontoon").force(), &Patch::Apply(event)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_words_are_one_event() {
        let name = ObjectName::new("default", "shop");
        let said = |message: &str| Said::new("UnsupportedAnnotation", "metadata.annotations", message);
        let of = |uid: &str, message: &str, second: i64| {
            let now = Timestamp::from_second(second).expect("a time");
            event(&name, uid, &said(message), now)["metadata"]["name"].clone()
        };
        assert_eq!(of("1", "a", 0), of("1", "a", 60));
        assert_ne!(of("1", "a", 0), of("1", "b", 0));
        assert_ne!(of("1", "a", 0), of("2", "a", 0), "of another object of the name");
        assert!(said(&"ä".repeat(4000)).message.len() <= MESSAGE_BYTES);
        for cut in ["-shop", ".shop", "--.shop"] {
            let name = ObjectName::new("default", format!("{}{cut}", "a".repeat(LONGEST_START - 1)));
            let event = event(&name, "1", &said("a"), Timestamp::UNIX_EPOCH);
            let called = event["metadata"]["name"].as_str().unwrap();
            let parts = called.split_once('.').unwrap();
            assert_eq!((parts.0.len(), parts.1.len()), (LONGEST_START - 1, 16), "{called}");
        }
    }
}
