//! Envoy as the server's client, in both variants. Needs an Envoy: `cargo xtask e2e envoy` fetches one and runs
//! this; by hand, name its program in PONTOON_E2E_ENVOY.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;
use pontoon_xds::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use pontoon_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use pontoon_xds::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use pontoon_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use pontoon_xds::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress,
};
use pontoon_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use pontoon_xds::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use pontoon_xds::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use pontoon_xds::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use pontoon_xds::pb::envoy::extensions::filters::http::router::v3::Router;
use pontoon_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager, http_filter,
};
use pontoon_xds::pb::envoy::r#type::matcher::v3::RegexMatcher;
use pontoon_xds::pb::google::protobuf::{Any, Duration as ProtoDuration};
use pontoon_xds::server::{Options, Server, TypeStatus, grpc_server};
use pontoon_xds::{ResourceType, Snapshot};
use prost::{Message, Name};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_stream::wrappers::TcpListenerStream;

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::Endpoint;
const RDS: ResourceType = ResourceType::Route;
/// Past it, what waits for an answer waits no longer.
const ORDER_TIMEOUT: Duration = Duration::from_secs(1);
/// Small, so that a change of many clusters comes in several responses.
const RESPONSE_BYTES: usize = 16 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn envoy_follows_in_delta() {
    Bridge::lay("delta", "DELTA_GRPC").await.crossed().await;
}

#[tokio::test]
async fn envoy_follows_in_state_of_the_world() {
    Bridge::lay("sotw", "GRPC").await.crossed().await;
}

#[tokio::test]
async fn a_route_to_a_new_cluster_among_many_changes_fails_nobody_in_delta() {
    Bridge::lay("new-delta", "DELTA_GRPC").await.joined().await;
}

#[tokio::test]
async fn a_route_to_a_new_cluster_among_many_changes_fails_nobody_in_state_of_the_world() {
    Bridge::lay("new-sotw", "GRPC").await.joined().await;
}

#[tokio::test]
async fn while_routes_are_refused_the_old_ones_are_served_in_delta() {
    Bridge::lay("old-delta", "DELTA_GRPC").await.kept().await;
}

#[tokio::test]
async fn while_routes_are_refused_the_old_ones_are_served_in_state_of_the_world() {
    Bridge::lay("old-sotw", "GRPC").await.kept().await;
}

/// Our server, an Envoy that it configures, and two backends.
struct Bridge {
    id: &'static str,
    server: Server,
    snapshot: Snapshot,
    edge: u16,
    backends: [SocketAddr; 2],
    envoy: Child,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.envoy.kill();
        let _ = self.envoy.wait();
    }
}

impl Bridge {
    async fn lay(id: &'static str, api_type: &str) -> Bridge {
        let Ok(program) = std::env::var("PONTOON_E2E_ENVOY") else {
            panic!("PONTOON_E2E_ENVOY names no Envoy: run `cargo xtask e2e envoy`");
        };
        let options = Options::new(|node| Ok(node.cluster.clone()));
        let server = Server::new(Options {
            max_response_bytes: RESPONSE_BYTES,
            order_timeout: ORDER_TIMEOUT,
            ..options
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let bootstrap = bootstrap(id, api_type, listener.local_addr().unwrap().port());
        let serving = grpc_server().add_routes(server.routes());
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));

        let backends = [backend("one").await, backend("two").await];
        let edge = free_port().await;
        let mut snapshot = Snapshot::default();
        snapshot.insert(&cluster("shop", 1));
        snapshot.insert(&endpoints("shop", backends[0]));
        snapshot.insert(&edge_listener(edge));
        snapshot.insert(&routes("shop"));
        server.publish("lab", snapshot.clone());

        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let file = folder.join(format!("envoy-{id}.json"));
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let log = std::fs::File::create(folder.join(format!("envoy-{id}.log"))).unwrap();
        // It ends with the thread that started it: this one, which the test runs on.
        let mut command = Command::new(program);
        command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "info", "-c"]).arg(&file);
        let envoy = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Bridge { id, server, snapshot, edge, backends, envoy }
    }

    async fn crossed(mut self) {
        self.until("a first answer", async |b| get(b.edge).await == Ok((200, "one".into()))).await;
        self.until_in_force(EDS, "shop").await;

        self.snapshot.insert(&endpoints("shop", self.backends[1]));
        self.publish();
        self.until("the change of endpoints", async |b| get(b.edge).await == Ok((200, "two".into()))).await;
        self.until_in_force(EDS, "shop").await;

        // A changed cluster waits for endpoints. They come at once: nobody gets a 503, and it is soon in use.
        self.snapshot.insert(&cluster("shop", 2));
        self.publish();
        self.until_in_force(CDS, "shop").await;
        for _ in 0..50 {
            assert_eq!(get(self.edge).await, Ok((200, "two".into())));
        }

        // One is refused. Traffic goes on, and the reason is known here.
        let mut refused = cluster("refused", 1);
        refused.eds_cluster_config = None;
        self.snapshot.insert(&refused);
        self.snapshot.insert(&cluster("other", 1));
        self.publish();
        self.until("the refusal", async |b| b.clusters().is_some_and(|t| t.nack.is_some())).await;
        let nack = self.clusters().unwrap().nack.unwrap();
        assert!(nack.message.contains("refused") && nack.message.contains("EDS"), "{}", nack.message);
        assert!(nack.resources.iter().any(|(name, _)| &**name == "refused"), "{:?}", nack.resources);
        assert_eq!(get(self.edge).await, Ok((200, "two".into())));
        let version = self.version(CDS, "refused");
        assert_eq!(self.server.acknowledged("lab", CDS, "refused", &version).no, [self.id]);
        if self.id == "delta" {
            self.until_in_force(CDS, "other").await;
        }

        self.snapshot.remove(CDS, "refused");
        self.publish();
        self.until("agreement", async |b| {
            b.clusters().is_some_and(|clusters| clusters.in_sync && clusters.nack.is_none())
        })
        .await;
        self.until_in_force(CDS, "other").await;
        assert_eq!(get(self.edge).await, Ok((200, "two".into())));
    }

    /// All clusters change, and with them comes one that sorts last and to which the traffic moves.
    async fn joined(mut self) {
        self.until("a first answer", async |b| get(b.edge).await == Ok((200, "one".into()))).await;
        for seconds in [1, 2] {
            for n in 0..400 {
                let mut other = cluster(&format!("other-{n}"), seconds);
                other.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into()));
                other.eds_cluster_config = None;
                self.snapshot.insert(&other);
            }
            if seconds == 1 {
                self.publish();
                self.until_in_force(CDS, "other-399").await;
            }
        }
        self.snapshot.insert(&cluster("zeta", 1));
        self.snapshot.insert(&endpoints("zeta", self.backends[1]));
        self.snapshot.insert(&routes("zeta"));
        self.publish();
        self.moves().await;
        self.until_in_force(CDS, "other-399").await;
    }

    /// A cluster goes, and the traffic moves to another, with a route beside that Envoy does not take.
    async fn kept(mut self) {
        self.until("a first answer", async |b| get(b.edge).await == Ok((200, "one".into()))).await;
        self.snapshot.remove(CDS, "shop");
        self.snapshot.remove(EDS, "shop");
        self.snapshot.insert(&cluster("zeta", 1));
        self.snapshot.insert(&endpoints("zeta", self.backends[1]));
        let mut refused = routes("zeta");
        let regex = RegexMatcher { regex: "(".into(), ..Default::default() };
        refused.virtual_hosts[0].routes[0].r#match = Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::SafeRegex(regex)),
            ..Default::default()
        });
        self.snapshot.insert(&refused);
        self.publish();
        self.until_in_force(CDS, "zeta").await;
        self.until("the refusal", async |b| b.status(RDS).is_some_and(|status| status.nack.is_some())).await;
        let refused = Instant::now();
        while refused.elapsed() < 2 * ORDER_TIMEOUT {
            assert_eq!(get(self.edge).await, Ok((200, "one".into())));
        }
        self.snapshot.insert(&routes("zeta"));
        self.publish();
        self.moves().await;
        self.until("the old cluster's end", async |b| {
            b.clusters().is_some_and(|clusters| {
                clusters.in_sync && clusters.acknowledged.iter().all(|(name, _)| &**name == "zeta")
            })
        })
        .await;
        assert_eq!(get(self.edge).await, Ok((200, "two".into())));
    }

    /// Requests go to the one backend and then to the other, and none fails.
    async fn moves(&self) {
        self.until("the move", async |bridge| {
            let (status, body) = get(bridge.edge).await.unwrap();
            assert_eq!(status, 200, "{body}");
            body == "two"
        })
        .await;
    }

    fn publish(&self) {
        self.server.publish("lab", self.snapshot.clone());
    }

    fn version(&self, ty: ResourceType, name: &str) -> String {
        self.snapshot.get(ty, name).unwrap().version.to_string()
    }

    fn clusters(&self) -> Option<TypeStatus> {
        self.status(CDS)
    }

    fn status(&self, ty: ResourceType) -> Option<TypeStatus> {
        let node = self.server.nodes().into_iter().next()?;
        node.types.into_iter().find(|status| status.ty == ty)
    }

    async fn until_in_force(&self, ty: ResourceType, name: &str) {
        let version = self.version(ty, name);
        self.until(&format!("{ty:?} {name} in force"), async |bridge| {
            bridge.server.acknowledged("lab", ty, name, &version).yes == [bridge.id]
        })
        .await;
    }

    async fn until(&self, what: &str, holds: impl AsyncFn(&Bridge) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self).await {
            assert!(Instant::now() < deadline, "never: {what}; {:#?}", self.server.nodes());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn bootstrap(id: &str, api_type: &str, port: u16) -> serde_json::Value {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let endpoints = json!([{ "lb_endpoints": [{ "endpoint": { "address": address } }] }]);
    json!({
        "node": { "id": id, "cluster": "lab" },
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type,
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }],
            },
            "cds_config": { "resource_api_version": "V3", "ads": {} },
            "lds_config": { "resource_api_version": "V3", "ads": {} },
        },
        "static_resources": { "clusters": [{
            "name": "xds",
            "type": "STATIC",
            "typed_extension_protocol_options": { options: {
                "@type": format!("type.googleapis.com/{options}"),
                "explicit_http_config": { "http2_protocol_options": {} },
            } },
            "load_assignment": { "cluster_name": "xds", "endpoints": endpoints },
        }] },
    })
}

fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource::default())),
        ..Default::default()
    })
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: message.encode_to_vec() }
}

fn address(at: SocketAddr) -> Option<Address> {
    let socket = SocketAddress {
        address: at.ip().to_string(),
        port_specifier: Some(PortSpecifier::PortValue(at.port().into())),
        ..Default::default()
    };
    Some(Address { address: Some(AddressKind::SocketAddress(socket)) })
}

fn cluster(name: &str, connect_timeout_seconds: i64) -> Cluster {
    Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), ..Default::default() }),
        connect_timeout: Some(ProtoDuration { seconds: connect_timeout_seconds, nanos: 0 }),
        ..Default::default()
    }
}

fn endpoints(name: &str, at: SocketAddr) -> ClusterLoadAssignment {
    let endpoint = Endpoint { address: address(at), ..Default::default() };
    let endpoint =
        LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..Default::default() };
    let locality = LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() };
    ClusterLoadAssignment { cluster_name: name.into(), endpoints: vec![locality], ..Default::default() }
}

fn edge_listener(port: u16) -> Listener {
    let rds = Rds { route_config_name: "routes".into(), config_source: ads() };
    let router = http_filter::ConfigType::TypedConfig(any(&Router::default()));
    let manager = HttpConnectionManager {
        stat_prefix: "edge".into(),
        route_specifier: Some(http_connection_manager::RouteSpecifier::Rds(rds)),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".into(),
            config_type: Some(router),
            ..Default::default()
        }],
        ..Default::default()
    };
    let filter = Filter {
        name: "envoy.filters.network.http_connection_manager".into(),
        config_type: Some(filter::ConfigType::TypedConfig(any(&manager))),
    };
    Listener {
        name: "edge".into(),
        address: address((Ipv4Addr::LOCALHOST, port).into()),
        filter_chains: vec![FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    }
}

/// Everything goes to this cluster.
fn routes(cluster: &str) -> RouteConfiguration {
    let everything = RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())),
        ..Default::default()
    };
    let to_cluster = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    };
    let route = Route {
        r#match: Some(everything),
        action: Some(route::Action::Route(to_cluster)),
        ..Default::default()
    };
    let host = VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes: vec![route],
        ..Default::default()
    };
    RouteConfiguration { name: "routes".into(), virtual_hosts: vec![host], ..Default::default() }
}

/// Answers every request with its name.
async fn backend(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|n| n > 0) {}
                let length = name.len();
                let answer =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{name}");
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    at
}

/// Envoy is told its port, so one is chosen, outside of those that the kernel gives to connections.
async fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(20_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.is_ok() {
            return port;
        }
    }
}

/// Status and body.
async fn get(port: u16) -> Result<(u16, String), String> {
    let exchange = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), exchange).await;
    let answer = answer.map_err(|_| "no answer in 5 s")?.map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no end of the head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("no status")?;
    Ok((status, body.to_owned()))
}
