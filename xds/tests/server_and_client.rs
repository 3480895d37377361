//! The server against the client, over loopback.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pontoon_xds::client::{Config, Handler, Rejected, Status, Subscriptions, Update};
use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;
use pontoon_xds::pb::envoy::config::core::v3::Node;
use pontoon_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use pontoon_xds::server::{Options, Server, grpc_server};
use pontoon_xds::{Resource, ResourceType, Snapshot};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::Endpoint;

type State = BTreeMap<(ResourceType, Arc<str>), Resource>;

/// Keeps what it is given, except names that begin with `bad`.
#[derive(Clone, Default)]
struct Kept {
    state: Arc<Mutex<State>>,
    received: Arc<Mutex<usize>>,
}

impl Handler for Kept {
    fn apply(&mut self, update: Update) -> Vec<Rejected> {
        let mut state = self.state.lock().unwrap();
        let mut rejected = Vec::new();
        *self.received.lock().unwrap() += update.changed.len();
        for resource in update.changed {
            if resource.name.starts_with("bad") {
                rejected.push(Rejected { name: resource.name, reason: "name: must not be bad".into() });
            } else {
                state.insert((update.ty, resource.name.clone()), resource);
            }
        }
        for name in update.removed {
            state.remove(&(update.ty, name));
        }
        rejected
    }
}

impl Kept {
    fn names(&self) -> Vec<String> {
        self.state.lock().unwrap().keys().map(|(_, name)| name.to_string()).collect()
    }
}

/// A server in a runtime of its own: when that goes, so do its connections.
struct Running {
    server: Server,
    port: u16,
    runtime: Option<Runtime>,
}

impl Running {
    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn serve(port: u16) -> Running {
    let server = Server::new(Options::new(|node| match node.cluster.as_str() {
        "" => Err(String::from("node.cluster names no view")),
        cluster => Ok(cluster.to_owned()),
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let service = server.service();
    let (bound, port_of) = tokio::sync::oneshot::channel();
    runtime.spawn(async move {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        bound.send(listener.local_addr().unwrap().port()).unwrap();
        let incoming = TcpListenerStream::new(listener);
        grpc_server().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    Running { server, port: port_of.await.unwrap(), runtime: Some(runtime) }
}

struct Connected {
    kept: Kept,
    subscriptions: Subscriptions,
    status: watch::Receiver<Status>,
    task: JoinHandle<()>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn connect(port: u16, cluster: &str) -> Connected {
    let node = Node { id: "n1".into(), cluster: cluster.into(), ..Node::default() };
    let server = format!("http://127.0.0.1:{port}").parse().unwrap();
    let config = Config { max_backoff: Duration::from_millis(50), ..Config::new(server, node) };
    let (kept, subscriptions) = (Kept::default(), Subscriptions::default());
    subscriptions.wildcard(CDS);
    let (sender, status) = watch::channel(Status::default());
    let task = tokio::spawn(pontoon_xds::client::run(config, subscriptions.clone(), kept.clone(), sender));
    Connected { kept, subscriptions, status, task }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn cluster(name: &str, revision: u32) -> Cluster {
    Cluster { name: name.into(), alt_stat_name: revision.to_string(), ..Cluster::default() }
}

fn clusters(names: &[&str]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for name in names {
        snapshot.insert(&cluster(name, 1));
    }
    snapshot
}

#[tokio::test]
async fn a_client_follows_what_is_published_for_its_view() {
    let running = serve(0).await;
    let client = connect(running.port, "edge");
    running.server.publish("other", clusters(&["x"]));
    running.server.publish("edge", clusters(&["a", "b"]));
    eventually("both are there", || client.kept.names() == ["a", "b"]).await;
    running.server.publish("edge", clusters(&["b", "c"]));
    eventually("a has gone, c has come", || client.kept.names() == ["b", "c"]).await;
}

#[tokio::test]
async fn names_are_subscribed_and_dropped_while_connected() {
    let running = serve(0).await;
    let client = connect(running.port, "edge");
    let mut snapshot = clusters(&[]);
    for cluster_name in ["a", "b"] {
        snapshot.insert(&ClusterLoadAssignment { cluster_name: cluster_name.into(), ..Default::default() });
    }
    running.server.publish("edge", snapshot.clone());
    client.subscriptions.set(EDS, BTreeSet::from(["a".into()]));
    eventually("a", || client.kept.names() == ["a"]).await;
    let version = snapshot.get(EDS, "a").unwrap().version.clone();
    eventually("acknowledged by one", || {
        running.server.acknowledged("edge", EDS, "a", &version).yes == ["n1"]
    })
    .await;
    client.subscriptions.set(EDS, BTreeSet::from(["b".into()]));
    eventually("b, and a is still known to the handler", || client.kept.names() == ["a", "b"]).await;
    let nobody = running.server.acknowledged("edge", EDS, "a", &version);
    assert!(nobody.yes.is_empty() && nobody.no.is_empty(), "{nobody:?}");
}

#[tokio::test]
async fn a_bad_resource_is_named_and_the_good_ones_are_acknowledged() {
    let running = serve(0).await;
    let client = connect(running.port, "edge");
    let snapshot = clusters(&["a", "bad", "c", "d"]);
    running.server.publish("edge", snapshot.clone());
    let version = |name: &str| snapshot.get(CDS, name).unwrap().version.clone();
    eventually("the good ones are acknowledged", || {
        ["a", "c", "d"]
            .iter()
            .all(|n| !running.server.acknowledged("edge", CDS, n, &version(n)).yes.is_empty())
    })
    .await;
    assert_eq!(running.server.acknowledged("edge", CDS, "bad", &version("bad")).no, ["n1"]);
    assert_eq!(client.kept.names(), ["a", "c", "d"]);
    let nodes = running.server.nodes();
    let nack = nodes[0].types[0].nack.clone().unwrap();
    assert!(nack.message.contains("bad: name: must not be bad"), "{}", nack.message);
}

#[tokio::test]
async fn after_a_break_only_what_changed_is_sent() {
    let mut running = serve(0).await;
    let client = connect(running.port, "edge");
    running.server.publish("edge", clusters(&["a", "b", "c"]));
    eventually("three", || client.kept.names().len() == 3).await;
    assert_eq!(*client.kept.received.lock().unwrap(), 3);
    running.kill();
    eventually("the break is noticed", || !client.status.borrow().connected).await;

    let again = serve(running.port).await;
    let mut snapshot = clusters(&["a", "c"]);
    snapshot.insert(&cluster("c", 2));
    again.server.publish("edge", snapshot);
    eventually("b has gone", || client.kept.names() == ["a", "c"]).await;
    assert_eq!(*client.kept.received.lock().unwrap(), 4);
    assert!(client.status.borrow().last_error.is_some());
}

#[tokio::test]
async fn a_client_waits_for_a_view_that_is_not_published_yet() {
    let running = serve(0).await;
    let client = connect(running.port, "edge");
    eventually("it is known", || running.server.nodes().len() == 1).await;
    assert_eq!(client.status.borrow().updates, 0);
    running.server.publish("edge", Snapshot::default());
    eventually("even nothing is an answer", || client.status.borrow().updates == 1).await;
}

#[tokio::test]
async fn a_client_without_a_view_is_refused_and_told_why() {
    let running = serve(0).await;
    let client = connect(running.port, "");
    eventually("the reason", || {
        client.status.borrow().last_error.as_ref().is_some_and(|e| e.contains("node.cluster names no view"))
    })
    .await;
}
