//! Watches the API server for objects and publishes what they say, as [`DirectorySource`](super::DirectorySource) does
//! of a directory: the same decoding, the same checks. The thinking is in [`store`].

pub mod store;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1 as core;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::store::{Raw, Store};
use super::secret::TLS;
use super::{Controller, Kind, Loaded, ObjectName, Service};
use crate::kubernetes::mirror::Heard;
use crate::kubernetes::watch::{QUEUE, Relist, Said, follow};
pub use store::{Observation, Observations};

/// The objects of a cluster.
#[derive(Debug)]
pub struct ClusterSource {
    store: Store,
    heard: mpsc::Receiver<Message>,
    relist: Vec<(Option<Kind>, Relist)>,
    loaded: watch::Sender<Loaded>,
    observations: watch::Sender<Observations>,
    /// Who writes our statuses.
    manager: String,
}

/// What a watch says, and which.
#[derive(Debug)]
enum Message {
    Object(Kind, Box<Said<DynamicObject>>),
    Service(Box<Said<core::Service>>),
}

impl ClusterSource {
    /// Begins to watch all kinds in all namespaces, as the controller of this name.
    pub fn watch(client: &Client, controller: Controller) -> ClusterSource {
        let (hand_on, heard) = mpsc::channel(QUEUE);
        let mut relist = Vec::new();
        for kind in Kind::ALL {
            let asked = Relist::default();
            relist.push((Some(kind), asked.clone()));
            tokio::spawn(follow_kind(client.clone(), kind, asked, hand_on.clone()));
        }
        let asked = Relist::default();
        relist.push((None, asked.clone()));
        let services = Api::<core::Service>::all(client.clone());
        let message = |said| Message::Service(Box::new(said));
        tokio::spawn(follow(services, watcher::Config::default(), "Service", asked, hand_on, message));
        ClusterSource {
            manager: store::status_manager(&controller),
            store: Store::of(controller),
            heard,
            relist,
            loaded: watch::Sender::default(),
            observations: watch::Sender::default(),
        }
    }

    /// The objects in force; a new value as they change.
    pub fn loaded(&self) -> watch::Receiver<Loaded> {
        self.loaded.subscribe()
    }

    /// What the API server keeps beside what users wrote.
    pub fn observations(&self) -> watch::Receiver<Observations> {
        self.observations.subscribe()
    }

    /// Waits until everything was listed once.
    pub async fn complete(&mut self) {
        while !self.store.is_complete() && self.next().await {}
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        while self.next().await {}
    }

    /// Takes up what was said since; a burst is one change.
    async fn next(&mut self) -> bool {
        let mut messages = Vec::new();
        if self.heard.recv_many(&mut messages, QUEUE).await == 0 {
            return false;
        }
        let now = Instant::now();
        for message in messages {
            let doubted = match message {
                Message::Object(kind, said) => self
                    .store
                    .hear(kind, heard(*said, name, |object| Raw::of(kind, object, &self.manager)), now)
                    .map(|doubted| (Some(kind), doubted)),
                Message::Service(said) => {
                    let read = |service: core::Service| Service::of(&service).into();
                    self.store.hear_service(heard(*said, name, read), now).map(|doubted| (None, doubted))
                }
            };
            if let Some((which, objects)) = doubted {
                let kind = which.map_or("Service", Kind::as_str);
                tracing::warn!(
                    kind,
                    objects,
                    "the API server's list lacks so many that they are kept until lists have said so for a while"
                );
                self.relist.iter().filter(|(kind, _)| *kind == which).for_each(|(_, relist)| relist.ask());
            }
        }
        if self.store.is_complete() {
            // First what is known of the objects: who reads them looks there too.
            if let Some(observations) = self.store.take_observations() {
                self.observations.send_replace(observations);
            }
            if let Some(loaded) = self.store.take_loaded() {
                self.publish(loaded);
            }
        }
        true
    }
}

impl ClusterSource {
    fn publish(&self, loaded: Loaded) {
        let before = self.loaded.send_replace(loaded.clone());
        if !Arc::ptr_eq(&before.problems, &loaded.problems) {
            let known: BTreeSet<_> = before.problems.iter().collect();
            for problem in loaded.problems.iter().filter(|problem| !known.contains(problem)) {
                tracing::warn!(reason = problem.reason, "{problem}");
            }
        }
        tracing::debug!(objects = loaded.len(), problems = loaded.problems.len(), "objects read");
    }
}

fn follow_kind(
    client: Client,
    kind: Kind,
    relist: Relist,
    hand_on: mpsc::Sender<Message>,
) -> BoxFuture<'static, ()> {
    let (group, version) = kind.api_version().rsplit_once('/').unwrap_or(("", kind.api_version()));
    let gvk = GroupVersionKind::gvk(group, version, kind.as_str());
    let resource = ApiResource::from_gvk_with_plural(&gvk, &kind.plural());
    let api = Api::<DynamicObject>::all_with(client, &resource);
    let config = match kind {
        // The others are none of our business, and should not even be sent to us.
        Kind::Secret => watcher::Config::default().fields(&format!("type={TLS}")),
        _ => watcher::Config::default(),
    };
    let message = move |said| Message::Object(kind, Box::new(said));
    Box::pin(follow(api, config, kind.as_str(), relist, hand_on, message))
}

fn name(object: &impl kube::ResourceExt) -> ObjectName {
    ObjectName::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// `None`: the kind is not there.
fn heard<T, V>(
    said: Said<T>,
    name: impl Fn(&T) -> ObjectName,
    read: impl Fn(T) -> V,
) -> Option<Heard<ObjectName, V>> {
    Some(match said {
        Said::Event(Event::Init) => Heard::ListBegins,
        Said::Event(Event::InitApply(object)) => Heard::Listed(name(&object), read(object)),
        Said::Event(Event::InitDone) => Heard::ListEnds,
        Said::Event(Event::Apply(object)) => Heard::Applied(name(&object), read(object)),
        Said::Event(Event::Delete(object)) => Heard::Deleted(name(&object)),
        Said::Absent => return None,
    })
}
