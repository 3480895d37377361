//! The server against the client, over loopback.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use pontoon_xds::client::{Config, Handler, Rejected, Status, Subscriptions, Update};
use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;
use pontoon_xds::pb::envoy::config::core::v3::Node;
use pontoon_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use pontoon_xds::pb::envoy::service::discovery::v3::DiscoveryRequest;
use pontoon_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use pontoon_xds::server::{NodeStatus, Options, Server, grpc_server};
use pontoon_xds::{Resource, ResourceType, Snapshot, Variant};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};

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
    let routes = server.routes();
    let (bound, port_of) = tokio::sync::oneshot::channel();
    runtime.spawn(async move {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        bound.send(listener.local_addr().unwrap().port()).unwrap();
        let incoming = TcpListenerStream::new(listener);
        grpc_server().add_routes(routes).serve_with_incoming(incoming).await.unwrap();
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

const BOTH: [Variant; 2] = [Variant::Delta, Variant::Sotw];

fn connect(port: u16, cluster: &str) -> Connected {
    connect_in(Variant::Delta, port, cluster)
}

fn connect_in(variant: Variant, port: u16, cluster: &str) -> Connected {
    connect_with(variant, port, cluster, Duration::from_secs(10))
}

fn connect_with(variant: Variant, port: u16, cluster: &str, keepalive: Duration) -> Connected {
    let node = Node { id: "n1".into(), cluster: cluster.into(), ..Node::default() };
    let server = format!("http://127.0.0.1:{port}").parse().unwrap();
    let max_backoff = Duration::from_millis(50);
    let config = Config { variant, keepalive, max_backoff, ..Config::new(server, node) };
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
    for variant in BOTH {
        let running = serve(0).await;
        let client = connect_in(variant, running.port, "edge");
        running.server.publish("other", clusters(&["x"]));
        running.server.publish("edge", clusters(&["a", "b"]));
        eventually("both are there", || client.kept.names() == ["a", "b"]).await;
        running.server.publish("edge", clusters(&["b", "c"]));
        eventually("a has gone, c has come", || client.kept.names() == ["b", "c"]).await;
    }
}

#[tokio::test]
async fn names_are_subscribed_and_dropped_while_connected() {
    for variant in BOTH {
        let running = serve(0).await;
        let client = connect_in(variant, running.port, "edge");
        let mut snapshot = clusters(&[]);
        for cluster_name in ["a", "b"] {
            snapshot
                .insert(&ClusterLoadAssignment { cluster_name: cluster_name.into(), ..Default::default() });
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
async fn after_a_break_only_what_changed_is_taken() {
    for variant in BOTH {
        let mut running = serve(0).await;
        let client = connect_in(variant, running.port, "edge");
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
}

#[tokio::test]
async fn a_client_waits_for_a_view_that_is_not_published_yet() {
    for variant in BOTH {
        let running = serve(0).await;
        let client = connect_in(variant, running.port, "edge");
        eventually("it is known", || running.server.nodes().len() == 1).await;
        assert_eq!(client.status.borrow().updates, 0);
        running.server.publish("edge", Snapshot::default());
        eventually("even nothing is an answer", || client.status.borrow().updates == 1).await;
    }
}

#[tokio::test]
async fn a_client_without_a_view_is_refused_and_told_why() {
    for variant in BOTH {
        let running = serve(0).await;
        let client = connect_in(variant, running.port, "");
        eventually("the reason", || {
            client
                .status
                .borrow()
                .last_error
                .as_ref()
                .is_some_and(|e| e.contains("node.cluster names no view"))
        })
        .await;
    }
}

/// Publishes `count` revisions of three clusters while nobody reads.
fn churn(server: &Server, count: u32) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for revision in 0..count {
        for name in ["a", "b", "c"] {
            snapshot.insert(&cluster(name, revision));
        }
        server.publish("edge", snapshot.clone());
    }
    snapshot
}

#[tokio::test]
async fn a_slow_reader_in_state_of_the_world_gets_the_newest_state_and_little_else() {
    let running = serve(0).await;
    running.server.publish("edge", clusters(&["a"]));
    let address = format!("http://127.0.0.1:{}", running.port);
    let mut client = AggregatedDiscoveryServiceClient::connect(address).await.unwrap();
    let (requests, outbound) = tokio::sync::mpsc::channel(4);
    let node = Some(Node { id: "slow".into(), cluster: "edge".into(), ..Node::default() });
    let type_url = CDS.type_url().to_owned();
    let first = DiscoveryRequest { node, type_url: type_url.clone(), ..Default::default() };
    requests.send(first).await.unwrap();
    let answer = client.stream_aggregated_resources(ReceiverStream::new(outbound)).await.unwrap();
    let mut responses = answer.into_inner();
    let newest = churn(&running.server, 5_000);

    let mut received = 0;
    loop {
        let response = responses.message().await.unwrap().unwrap();
        received += 1;
        assert!(received < 10, "updates are not coalesced");
        let sent: Vec<Cluster> =
            response.resources.iter().map(|any| Cluster::decode(&*any.value).unwrap()).collect();
        let acknowledge = DiscoveryRequest {
            type_url: type_url.clone(),
            version_info: response.version_info,
            response_nonce: response.nonce,
            ..Default::default()
        };
        requests.send(acknowledge).await.unwrap();
        if sent.iter().all(|c| c.alt_stat_name == "4999") {
            break;
        }
    }
    let version = newest.get(CDS, "b").unwrap().version.clone();
    eventually("acknowledged", || running.server.acknowledged("edge", CDS, "b", &version).yes == ["slow"])
        .await;
}

#[tokio::test]
async fn a_client_follows_thousands_of_updates_to_the_last() {
    for variant in BOTH {
        let running = serve(0).await;
        let client = connect_in(variant, running.port, "edge");
        let newest = churn(&running.server, 5_000);
        let wanted: Vec<&Bytes> = newest.resources(CDS).values().map(|resource| &resource.body).collect();
        eventually("the newest of each", || {
            let state = client.kept.state.lock().unwrap();
            state.values().map(|resource| &resource.body).eq(wanted.iter().copied())
        })
        .await;
    }
}

#[tokio::test]
async fn a_server_that_sends_garbage_or_nothing_is_left_and_the_next_one_found() {
    for variant in BOTH {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = connect_with(variant, port, "edge", Duration::from_millis(100));
        let (mut garbled, _) = listener.accept().await.unwrap();
        garbled.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
        eventually("the garbage is noticed", || client.status.borrow().last_error.is_some()).await;
        let (silent, _) = listener.accept().await.unwrap();
        // Only a client that gives the silent one up comes back, and it says why.
        let (third, _) = listener.accept().await.unwrap();
        let error = client.status.borrow().last_error.clone().unwrap();
        assert!(error.contains("nor answered a ping"), "{error}");
        drop((listener, silent, third, garbled));
        let running = serve(port).await;
        running.server.publish("edge", clusters(&["a"]));
        eventually("the next server is followed", || client.kept.names() == ["a"]).await;
        assert!(client.status.borrow().connected);
    }
}

#[tokio::test]
async fn a_subscription_changes_while_the_server_has_not_answered_the_call_yet() {
    for variant in BOTH {
        let running = serve(0).await;
        let client = connect_in(variant, running.port, "edge");
        let mut snapshot = Snapshot::default();
        snapshot.insert(&ClusterLoadAssignment { cluster_name: "a".into(), ..Default::default() });
        eventually("it is known", || running.server.nodes().len() == 1).await;
        client.subscriptions.set(EDS, BTreeSet::from(["a".into()]));
        eventually("the server has been asked", || running.server.nodes()[0].types.len() == 2).await;
        running.server.publish("edge", snapshot);
        eventually("a", || client.kept.names() == ["a"]).await;
    }
}

#[tokio::test]
async fn a_stream_that_does_not_say_who_it_is_is_refused() {
    let running = serve(0).await;
    let address = format!("http://127.0.0.1:{}", running.port);
    let mut client = AggregatedDiscoveryServiceClient::connect(address).await.unwrap();
    let ids = [String::new(), "x".repeat(2_000)];
    let nodes = ids.map(|id| Some(Node { id, cluster: "edge".into(), ..Node::default() }));
    for node in nodes.into_iter().chain([None]) {
        let request = DiscoveryRequest { node, type_url: CDS.type_url().into(), ..Default::default() };
        let answer = client.stream_aggregated_resources(tokio_stream::iter([request])).await.unwrap();
        let status = answer.into_inner().message().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    }
    assert!(running.server.nodes().is_empty());
}

#[tokio::test]
async fn whoever_breaks_off_is_waited_for_and_whoever_leaves_is_not() {
    let running = serve(0).await;
    let mut members = running.server.members();
    running.server.publish("edge", clusters(&["a"]));
    let version = clusters(&["a"]).get(CDS, "a").unwrap().version.clone();
    let acknowledged = || running.server.acknowledged("edge", CDS, "a", &version);
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = {
        let _entered = process.enter();
        connect(running.port, "edge")
    };
    eventually("the client has it", || acknowledged().yes == ["n1"]).await;
    assert_eq!(running.server.overdue_at(), None);
    let following =
        |ty| running.server.following(ty).into_iter().map(|client| client.node).collect::<Vec<_>>();
    assert_eq!((following(CDS), following(ResourceType::Route)), (vec!["n1".to_owned()], vec![]));

    process.shutdown_background();
    eventually("it is missed", || acknowledged().away == ["n1"]).await;
    assert_eq!(running.server.known().len(), 1);
    assert_eq!((following(CDS), following(ResourceType::Route)), (vec!["n1".to_owned()], vec![]));
    assert!(running.server.overdue_at().is_some());
    assert_eq!(running.server.give_up(), []);
    assert_eq!(running.server.acknowledged("other", CDS, "a", &version), Default::default());
    drop(client);

    let client = connect(running.port, "edge");
    eventually("it is back", || acknowledged().yes == ["n1"] && acknowledged().away.is_empty()).await;
    // It is not given up when its time is over.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(running.server.give_up(), []);
    assert_eq!(running.server.overdue_at(), None);
    tokio::time::resume();
    client.subscriptions.leave();
    eventually("it has left", || running.server.known().is_empty()).await;
    assert_eq!(acknowledged(), Default::default());
    assert!(members.has_changed().unwrap());
    members.borrow_and_update();
}

#[tokio::test]
async fn who_is_sent_elsewhere_comes_by_a_new_connection_and_keeps_what_it_has() {
    for variant in BOTH {
        let running = serve(0).await;
        running.server.publish("edge", clusters(&["a"]));
        let client = connect_in(variant, running.port, "edge");
        eventually("it is there", || client.kept.names() == ["a"]).await;
        let before = running.server.nodes()[0].connected_at;
        running.server.dismiss();
        let is_back = |nodes: &[NodeStatus]| nodes.iter().any(|node| node.connected_at > before);
        eventually("it has come again", || is_back(&running.server.nodes())).await;
        assert_eq!(client.kept.names(), ["a"]);
        running.server.publish("edge", clusters(&["b"]));
        eventually("it follows", || client.kept.names() == ["b"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_known_before_is_expected_for_a_time_and_then_given_up() {
    let server = Server::new(Options::new(|_| Ok(String::new())));
    let client = pontoon_xds::server::Client { view: "edge".into(), node: "n1".into() };
    server.expect([client.clone()]);
    assert_eq!(server.acknowledged("edge", CDS, "a", "1").away, ["n1"]);
    assert_eq!(server.give_up(), []);
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(server.give_up(), [client]);
    assert_eq!(server.overdue_at(), None);
    assert_eq!(
        (server.lost("edge"), server.lost("other")),
        (vec!["n1".to_owned()], vec![]),
        "it is named for a time"
    );
}

#[tokio::test(start_paused = true)]
async fn who_is_known_to_have_gone_is_neither_waited_for_nor_named() {
    let server = Server::new(Options::new(|_| Ok(String::new())));
    let client = pontoon_xds::server::Client { view: "edge".into(), node: "n1".into() };
    server.expect([client.clone()]);
    assert_eq!(server.following(CDS), BTreeSet::from([client.clone()]), "it may");
    let gone = BTreeSet::from([client.clone()]);
    server.forget(&gone);
    assert_eq!(server.acknowledged("edge", CDS, "a", "1").away, [""; 0]);
    server.expect([client.clone()]);
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(server.give_up(), [client]);
    server.forget(&gone);
    assert_eq!(server.lost("edge"), [""; 0]);
}
