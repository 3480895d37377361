//! Kubernetes as a registry: the endpoints of Services, from EndpointSlices. The thinking is in [`index`], which does
//! no I/O; here is what feeds it.

pub mod index;
pub mod slice;

use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::index::Index;
use crate::kubernetes::mirror::Heard;
use crate::kubernetes::watch::{QUEUE, Relist, Said, follow};
use crate::model::instance::ServiceView;

/// Slices without the label belong to no Service, and to nobody that could be asked for.
const OF_SERVICES: &str = "kubernetes.io/service-name";

/// What is known of endpoints, and changes as they do.
#[derive(Debug)]
pub struct Endpoints {
    index: Index,
    heard: mpsc::Receiver<Said<EndpointSlice>>,
    relist: Relist,
    views: watch::Sender<ServiceView>,
}

impl Endpoints {
    /// Begins to watch all namespaces.
    pub fn watch(client: Client) -> Endpoints {
        let (hand_on, heard) = mpsc::channel(QUEUE);
        let relist = Relist::default();
        let config = watcher::Config::default().labels(OF_SERVICES);
        let watching = follow(
            Api::<EndpointSlice>::all(client),
            config,
            "EndpointSlice",
            relist.clone(),
            hand_on,
            |said| said,
        );
        // It ends when nobody listens to it any more.
        tokio::spawn(watching);
        Endpoints { index: Index::default(), heard, relist, views: watch::Sender::default() }
    }

    /// The endpoints of all Services; a new value for each change.
    pub fn views(&self) -> watch::Receiver<ServiceView> {
        self.views.subscribe()
    }

    /// Waits until all endpoints were listed once.
    pub async fn complete(&mut self) {
        while !self.index.is_complete() && self.next().await {}
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        while self.next().await {}
    }

    /// Takes up what was said since; a burst is one change.
    async fn next(&mut self) -> bool {
        let mut said = Vec::new();
        if self.heard.recv_many(&mut said, QUEUE).await == 0 {
            return false;
        }
        let now = Instant::now();
        for said in said {
            let doubted = heard(said).map_or(0, |heard| self.index.hear(heard, now));
            if doubted > 0 {
                tracing::warn!(
                    slices = doubted,
                    "the API server's list lacks so many that they are kept until lists have said so for a while"
                );
                self.relist.ask();
            }
        }
        if self.index.is_complete()
            && let Some(view) = self.index.take_view()
        {
            self.views.send_replace(view);
        }
        true
    }
}

type HeardSlice = Heard<slice::Key, Arc<slice::Slice>>;

fn heard(said: Said<EndpointSlice>) -> Option<HeardSlice> {
    let read = |slice: &EndpointSlice| slice::read(slice).map(|(key, slice)| (key, Arc::new(slice)));
    match said {
        Said::Event(Event::Init) => Some(Heard::ListBegins),
        Said::Event(Event::InitApply(slice)) => read(&slice).map(|(key, slice)| Heard::Listed(key, slice)),
        Said::Event(Event::InitDone) => Some(Heard::ListEnds),
        Said::Event(Event::Apply(slice)) => match read(&slice) {
            Some((key, slice)) => Some(Heard::Applied(key, slice)),
            None => slice::key(&slice).map(Heard::Deleted),
        },
        Said::Event(Event::Delete(slice)) => slice::key(&slice).map(Heard::Deleted),
        // It is a part of every Kubernetes.
        Said::Absent => None,
    }
}
