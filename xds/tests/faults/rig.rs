//! What the tests of faults are made of: a server in a runtime of its own, clients that do only what they are told to,
//! and a healthy client beside them.
#![allow(unreachable_pub, reason = "it is a module of a test")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use hyper_util::rt::TokioIo;
use pontoon_xds::client::{Config, Handler, Rejected, Status, Subscriptions, Update};
use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;
use pontoon_xds::pb::envoy::config::core::v3::Node;
use pontoon_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use pontoon_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use pontoon_xds::pb::google::rpc::Status as RpcStatus;
use pontoon_xds::server::{Limits, Options, Server, grpc_server, within};
use pontoon_xds::{ResourceType, Snapshot};
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::codegen::http;
use tonic::transport::{Channel, Endpoint, Uri};

pub const CDS: ResourceType = ResourceType::Cluster;
pub const EDS: ResourceType = ResourceType::Endpoint;
/// The view of all clients here.
pub const VIEW: &str = "edge";
pub const PATIENCE: Duration = Duration::from_secs(60);
/// In a process that is measured, this names the test that it runs.
const CHILD: &str = "PONTOON_TEST_ALONE";

/// Runs a test in a process of its own, as it measures memory: what another has had and given back would hide what
/// this one takes.
pub fn alone(name: &str, test: impl Future<Output = ()>) {
    if std::env::var_os(CHILD).is_some() {
        return tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(test);
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, name)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    print!("{said}");
}

/// A server whose connections go with its runtime.
pub struct Running {
    pub server: Server,
    pub port: u16,
    runtime: Option<Runtime>,
}

impl Running {
    pub async fn start(port: u16) -> Running {
        Running::within(port, Limits::default()).await
    }

    pub async fn within(port: u16, limits: Limits) -> Running {
        let server = Server::new(Options::new(|node| Ok(node.cluster.clone())));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let routes = server.routes();
        let (bound, port_of) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
            bound.send(listener.local_addr().unwrap().port()).unwrap();
            let served = grpc_server().add_routes(routes).serve_with_incoming(within(listener, limits));
            served.await.unwrap();
        });
        Running { server, port: port_of.await.unwrap(), runtime: Some(runtime) }
    }

    pub fn kill(&mut self) {
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

/// By type and name.
type Versions = BTreeMap<(ResourceType, Arc<str>), Arc<str>>;

/// A healthy client: our own.
pub struct Follower {
    pub versions: Arc<Mutex<Versions>>,
    pub received: Arc<AtomicUsize>,
    pub status: watch::Receiver<Status>,
    task: JoinHandle<()>,
}

struct Keep {
    versions: Arc<Mutex<Versions>>,
    received: Arc<AtomicUsize>,
}

impl Handler for Keep {
    fn apply(&mut self, update: Update) -> Vec<Rejected> {
        self.received.fetch_add(update.changed.len(), Ordering::Relaxed);
        let mut versions = self.versions.lock().unwrap();
        for resource in update.changed {
            versions.insert((update.ty, resource.name), resource.version);
        }
        for name in update.removed {
            versions.remove(&(update.ty, name));
        }
        Vec::new()
    }
}

impl Follower {
    pub fn start(port: u16, id: &str) -> Follower {
        let server = format!("http://127.0.0.1:{port}").parse().unwrap();
        let config = Config { max_backoff: Duration::from_secs(1), ..Config::new(server, node(id).unwrap()) };
        let (versions, received) = (Arc::default(), Arc::default());
        let keep = Keep { versions: Arc::clone(&versions), received: Arc::clone(&received) };
        let subscriptions = Subscriptions::default();
        subscriptions.wildcard(CDS);
        let (sender, status) = watch::channel(Status::default());
        let task = tokio::spawn(pontoon_xds::client::run(config, subscriptions, keep, sender));
        Follower { versions, received, status, task }
    }

    pub fn has(&self, snapshot: &Snapshot, name: &str) -> bool {
        let wanted = &snapshot.get(CDS, name).unwrap().version;
        self.versions.lock().unwrap().get(&(CDS, name.into())) == Some(wanted)
    }

    pub async fn until_it_has(&self, snapshot: &Snapshot, name: &str) {
        eventually(&format!("the healthy client has the newest {name}"), || self.has(snapshot, name)).await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client in delta that does only what it is told to.
pub struct Peer {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Peer {
    pub async fn open(port: u16, id: &str, ty: ResourceType, names: &[String]) -> Peer {
        Peer::again(port, id, ty, names, &BTreeMap::new()).await
    }

    /// One that says what it has.
    pub async fn again(
        port: u16,
        id: &str,
        ty: ResourceType,
        names: &[String],
        has: &BTreeMap<String, String>,
    ) -> Peer {
        let (requests, outbound) = mpsc::channel(4);
        let first = DeltaDiscoveryRequest {
            node: node(id),
            type_url: ty.type_url().to_owned(),
            resource_names_subscribe: names.to_vec(),
            initial_resource_versions: has.clone().into_iter().collect(),
            ..Default::default()
        };
        requests.send(first).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel(port).await);
        let answer = client.delta_aggregated_resources(ReceiverStream::new(outbound)).await.unwrap();
        Peer { requests, responses: answer.into_inner() }
    }

    pub async fn next(&mut self) -> DeltaDiscoveryResponse {
        soon(self.response()).await.unwrap()
    }

    /// None: the server ended the stream.
    pub async fn response(&mut self) -> Option<DeltaDiscoveryResponse> {
        self.responses.message().await.ok().flatten()
    }

    pub async fn answer(&mut self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(refusal),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

/// Opens a stream, asks, takes one answer, and is gone without a word.
pub async fn flash(port: u16, id: &str, ty: ResourceType, names: &[String]) {
    let first = DeltaDiscoveryRequest {
        node: node(id),
        type_url: ty.type_url().to_owned(),
        resource_names_subscribe: names.to_vec(),
        ..Default::default()
    };
    // One that ended would be a goodbye.
    let requests = tokio_stream::iter([first]).chain(tokio_stream::pending());
    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap().into_std().unwrap();
    socket.set_nodelay(true).unwrap();
    let plug = socket.try_clone().unwrap();
    let mut socket = Some(TokioIo::new(TcpStream::from_std(socket).unwrap()));
    let connector = tower::service_fn(move |_: Uri| {
        std::future::ready(socket.take().ok_or(std::io::Error::other("there is one socket")))
    });
    let channel = Endpoint::from_static("http://server").connect_with_connector(connector).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let answer = client.delta_aggregated_resources(requests).await.unwrap();
    assert!(soon(answer.into_inner().message()).await.unwrap().is_some());
    plug.shutdown(std::net::Shutdown::Both).unwrap();
}

/// A client that keeps next to nothing of what it reads, so that what is measured is the server's.
pub struct Reader {
    body: RecvStream,
    _requests: (SendRequest<Bytes>, SendStream<Bytes>),
}

impl Reader {
    pub async fn open(port: u16, id: &str, sotw: bool) -> Reader {
        let (node, type_url) = (node(id), CDS.type_url().to_owned());
        let (method, message) = match sotw {
            true => {
                let first = DiscoveryRequest { node, type_url, ..Default::default() };
                ("StreamAggregatedResources", first.encode_to_vec())
            }
            false => {
                let first = DeltaDiscoveryRequest { node, type_url, ..Default::default() };
                ("DeltaAggregatedResources", first.encode_to_vec())
            }
        };
        let mut framed = vec![0];
        framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend(message);
        let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let (mut requests, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::spawn(connection);
        let service = "envoy.service.discovery.v3.AggregatedDiscoveryService";
        let head = http::Request::post(format!("http://server/{service}/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (answer, mut out) = requests.send_request(head, false).unwrap();
        out.send_data(framed.into(), false).unwrap();
        Reader { body: soon(answer).await.unwrap().into_body(), _requests: (requests, out) }
    }

    /// Reads so much and forgets it.
    pub async fn read(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let length = soon(self.body.data()).await.unwrap().unwrap().len();
            self.body.flow_control().release_capacity(length).unwrap();
            bytes = bytes.saturating_sub(length);
        }
    }
}

/// The same in state of the world.
pub struct SotwPeer {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl SotwPeer {
    pub async fn open(port: u16, id: &str, ty: ResourceType) -> SotwPeer {
        let (requests, outbound) = mpsc::channel(4);
        let first =
            DiscoveryRequest { node: node(id), type_url: ty.type_url().to_owned(), ..Default::default() };
        requests.send(first).await.unwrap();
        let client = AggregatedDiscoveryServiceClient::new(channel(port).await);
        let mut client = client.max_decoding_message_size(64 << 20);
        let answer = client.stream_aggregated_resources(ReceiverStream::new(outbound)).await.unwrap();
        SotwPeer { requests, responses: answer.into_inner() }
    }

    pub async fn next(&mut self) -> DiscoveryResponse {
        soon(self.response()).await.unwrap()
    }

    /// None: the server ended the stream.
    pub async fn response(&mut self) -> Option<DiscoveryResponse> {
        self.responses.message().await.ok().flatten()
    }

    pub async fn answer(&mut self, response: &DiscoveryResponse, error: Option<&str>) {
        let request = DiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            version_info: if error.is_none() { response.version_info.clone() } else { String::new() },
            error_detail: error.map(refusal),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

fn refusal(message: &str) -> RpcStatus {
    RpcStatus { code: 3, message: message.to_owned(), details: Vec::new() }
}

fn node(id: &str) -> Option<Node> {
    Some(Node { id: id.to_owned(), cluster: VIEW.to_owned(), ..Node::default() })
}

async fn channel(port: u16) -> Channel {
    Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await.unwrap()
}

/// A cluster of about so many bytes, which differs in each revision.
pub fn cluster(name: &str, revision: u32, bytes: usize) -> Cluster {
    let text = format!("{revision}{}", "x".repeat(bytes));
    Cluster { name: name.to_owned(), alt_stat_name: text, ..Cluster::default() }
}

/// So many clusters.
pub fn world(count: usize, bytes: usize) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for number in 0..count {
        snapshot.insert(&cluster(&format!("cluster-{number:05}"), 0, bytes));
    }
    snapshot
}

pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// This process's, in bytes.
pub fn resident_memory() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
