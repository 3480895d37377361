//! The proxy as a sidecar, as processes: names are resolved when they are first asked for, a migration's split
//! holds, and what nobody asks for is neither kept nor paid for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;

use axum::Router;
use axum::routing::any;
use pontoon::compile;
use pontoon::model::Model;
use pontoon::model::instance::{
    Application, Instance, InstanceStatus, PodEndpoint, RegistryView, ServiceEndpoints, ServiceView,
};
use pontoon::objects::service::ServicePort;
use pontoon::objects::{ObjectName, Objects, Service};
use pontoon_xds::ResourceType;
use pontoon_xds::pb::envoy::admin::v3::ClientResourceStatus;
use pontoon_xds::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use pontoon_xds::pb::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use pontoon_xds::pb::envoy::service::status::v3::{ClientStatusRequest, ClientStatusResponse};
use pontoon_xds::pb::envoy::r#type::matcher::v3::NodeMatcher;
use pontoon_xds::server::{Options, Server, grpc_server};
use rig::{PATIENCE, PONTOON, Served};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio_stream::wrappers::TcpListenerStream;
use twox_hash::XxHash64;

#[path = "rig/served.rs"]
mod rig;

async fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            return port;
        }
    }
}

/// An application that answers with its name.
async fn application(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(any(move || async move { name }));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

async fn register(served: &Served, app: &str, at: SocketAddr) {
    let body = serde_json::json!({ "instance": {
        "instanceId": app, "app": app.to_uppercase(), "hostName": app, "ipAddr": at.ip(), "vipAddress": app,
        "status": "UP", "port": { "$": at.port(), "@enabled": "true" },
        "dataCenterInfo": {
            "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn",
        },
    } });
    let url = format!("http://{}/eureka/apps/{}", served.eureka, app.to_uppercase());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    assert_eq!(client.post(url).json(&body).send().await.unwrap().status(), 204);
}

/// A sidecar as a process.
struct Sidecar {
    child: Child,
    outbound: String,
    inbound: String,
    admin: String,
    http: reqwest::Client,
    _dir: tempfile::TempDir,
}

impl Sidecar {
    async fn start(xds: &str, namespace: &str, application: SocketAddr, limits: &str) -> Sidecar {
        Sidecar::start_in("delta", xds, namespace, application, limits).await
    }

    async fn start_in(
        variant: &str,
        xds: &str,
        namespace: &str,
        application: SocketAddr,
        limits: &str,
    ) -> Sidecar {
        let dir = tempfile::tempdir().unwrap();
        let [outbound, inbound, admin] = [free_port().await, free_port().await, free_port().await];
        let file = dir.path().join("proxy.yaml");
        let text = format!(
            "xdsServer: http://{xds}\nnodeId: sidecar-1\ncluster: {namespace}\nworkers: 2\nadmin: 127.0.0.1:{admin}\ndrainSeconds: 1\n\
             outbound: {{ address: 127.0.0.1:{outbound}{limits} }}\n\
             inbound: [{{ address: 127.0.0.1:{inbound}, application: {application} }}]\n"
        );
        std::fs::write(&file, text).unwrap();
        let child = Command::new(PONTOON)
            .args(["proxy", "--config"])
            .arg(file)
            .env_clear()
            .env("PONTOON_PROXY_XDS_VARIANT", variant)
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let local = |port: u16| format!("http://127.0.0.1:{port}");
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let sidecar = Sidecar {
            child,
            outbound: local(outbound),
            inbound: local(inbound),
            admin: local(admin),
            http,
            _dir: dir,
        };
        let ready = async {
            let url = format!("{}/ready", sidecar.admin);
            while !sidecar.http.get(&url).send().await.is_ok_and(|answer| answer.status() == 200) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.expect("the sidecar is never ready");
        sidecar
    }

    /// Status, reason and body of the answer to a request for a host.
    async fn ask(&self, host: &str, user: &str) -> (u16, String, String) {
        let request = self.http.get(&self.outbound).header("host", host).header("x-user-id", user);
        let answer = request.send().await.unwrap();
        let reason =
            answer.headers().get("x-pontoon-reason").map(|reason| reason.to_str().unwrap().to_owned());
        (answer.status().as_u16(), reason.unwrap_or_default(), answer.text().await.unwrap())
    }

    /// Asks until somebody answers who may have registered only just now.
    async fn finds(&self, host: &str, whose: &str) {
        let found = async {
            while self.ask(host, "1").await.2 != whose {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{host} is never found"));
    }

    async fn metric(&self, name: &str) -> u64 {
        let text =
            self.http.get(format!("{}/metrics", self.admin)).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find(|line| line.split(' ').next() == Some(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

fn objects(target: SocketAddr) -> String {
    format!(
        "apiVersion: pontoon.dev/v1alpha1
kind: Migration
metadata: {{ name: inventory }}
spec:
  service: inventory
  legacy: {{ eureka: {{ application: inventory }} }}
  target: {{ pool: new }}
  key: {{ header: x-user-id }}
---
apiVersion: pontoon.dev/v1alpha1
kind: Pool
metadata: {{ name: new }}
spec: {{ endpoints: [{{ address: {}, port: {} }}] }}
",
        target.ip(),
        target.port()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_resolved_when_they_are_asked_for_and_a_migration_splits_them() {
    let served = Served::start(&objects(application("target").await)).await;
    register(&served, "orders", application("orders").await).await;
    register(&served, "inventory", application("legacy").await).await;
    let sidecar = Sidecar::start(&served.xds, "default", application("mine").await, "").await;
    assert_eq!(sidecar.metric("pontoon_names").await, 0);

    sidecar.finds("orders", "orders").await;
    assert_eq!(sidecar.metric("pontoon_names").await, 1);
    sidecar.finds("inventory", "legacy").await;
    for host in ["inventory", "INVENTORY:8080", "inventory.default", "inventory.default.svc.cluster.local."] {
        assert_eq!(sidecar.ask(host, "1").await.2, "legacy", "{host}");
    }
    let inbound = sidecar.http.get(&sidecar.inbound).send().await.unwrap();
    assert_eq!(inbound.text().await.unwrap(), "mine");

    let moved = served.run(&["migration", "set", "inventory", "--weight", "30%"]).await;
    assert!(moved.status.success(), "{moved:?}");
    for user in 0..200 {
        let user = format!("user-{user}");
        let below = XxHash64::oneshot(0, user.as_bytes()) % 10_000 < 3_000;
        let side = if below { "target" } else { "legacy" };
        assert_eq!(sidecar.ask("inventory", &user).await.2, side, "{user}");
    }
    let shown = served.json(&["migration", "show", "inventory"]).await;
    assert_eq!(shown["in_force"]["progress"], "in_force", "{shown}");

    // An application that registers later is there at once for those who asked in vain.
    assert_eq!(sidecar.ask("late", "1").await.1, "unknown_name");
    register(&served, "late", application("late").await).await;
    sidecar.finds("late", "late").await;
}

/// Eureka knows no namespaces, so a team's first sidecar reaches what is registered before anything is written down for
/// its namespace; and no more of other namespaces than before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_without_an_object_has_the_applications_of_eureka() {
    let pool = |name: &str, namespace: &str, at: SocketAddr| {
        format!(
            "apiVersion: pontoon.dev/v1alpha1\nkind: Pool\nmetadata: {{ name: {name}, namespace: {namespace} }}\n\
             spec: {{ endpoints: [{{ address: {}, port: {} }}] }}\n",
            at.ip(),
            at.port()
        )
    };
    let target = application("target").await;
    let served = Served::start(&pool("vault", "default", target)).await;
    register(&served, "orders", application("orders").await).await;
    let sidecar = Sidecar::start(&served.xds, "bank", application("mine").await, "").await;
    sidecar.finds("orders", "orders").await;
    for other in ["vault", "vault.default", "orders.default", "orders.bank"] {
        assert_eq!(sidecar.ask(other, "1").await.1, "unknown_name", "{other}");
    }

    // Its first object gives it a view of its own, without a new connection.
    std::fs::write(served.dir.path().join("objects/bank.yaml"), pool("ledger", "bank", target)).unwrap();
    sidecar.finds("ledger", "target").await;
    assert_eq!(sidecar.ask("orders.bank", "1").await.2, "orders");
    assert_eq!(sidecar.ask("orders", "1").await.2, "orders");
}

/// Status and version of a listener, as CSDS says it.
fn listener<'c>(answer: &'c ClientStatusResponse, name: &str) -> Option<&'c GenericXdsConfig> {
    let configs = &answer.config[0].generic_xds_configs;
    configs.iter().find(|config| config.name == name && config.type_url == ResourceType::Listener.type_url())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_sidecar_has_and_asks_for_is_told_as_envoys_tools_expect() {
    let served = Served::start(&objects(application("target").await)).await;
    register(&served, "orders", application("orders").await).await;
    let sidecar = Sidecar::start(&served.xds, "default", application("mine").await, "").await;
    sidecar.finds("orders", "orders").await;
    assert_eq!(sidecar.ask("nobody", "1").await.1, "unknown_name");

    let mut csds = ClientStatusDiscoveryServiceClient::connect(sidecar.admin.clone()).await.unwrap();
    let answer = csds.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.config[0].node.as_ref().unwrap().id, "sidecar-1");
    let orders = listener(&answer, "orders").unwrap();
    assert_eq!(orders.client_status(), ClientResourceStatus::Acked);
    assert!(!orders.version_info.is_empty() && orders.xds_config.is_some() && !orders.is_static_resource);
    assert_eq!(listener(&answer, "nobody").unwrap().client_status(), ClientResourceStatus::DoesNotExist);
    assert!(answer.config[0].generic_xds_configs.iter().any(|config| config.is_static_resource));

    let requests = [
        ClientStatusRequest { exclude_resource_contents: true, ..Default::default() },
        ClientStatusRequest { node_matchers: vec![NodeMatcher::default()], ..Default::default() },
    ];
    let mut answers = csds.stream_client_status(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let without = answers.message().await.unwrap().unwrap();
    assert_eq!(listener(&without, "orders").unwrap().version_info, orders.version_info);
    assert_eq!(listener(&without, "orders").unwrap().xds_config, None);
    assert!(answers.message().await.is_err());

    let shown = served.run(&["proxies", "sidecar-1"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    let line =
        |name: &str| shown.lines().find(|line| line.starts_with("LDS") && line.contains(name)).unwrap();
    assert!(line("orders").contains(&orders.version_info) && line("orders").ends_with("the same"), "{shown}");
    assert!(line("nobody").ends_with("there is none"), "{shown}");

    let url = format!("{}/config_dump?resource=dynamic_listeners&mask=name", sidecar.admin);
    let dump: serde_json::Value = sidecar.http.get(url).send().await.unwrap().json().await.unwrap();
    let of = "type.googleapis.com/envoy.admin.v3.ListenersConfigDump.DynamicListener";
    assert_eq!(dump, serde_json::json!({ "configs": [{ "@type": of, "name": "orders" }] }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_hosts_cost_nothing_that_lasts_and_idle_names_go() {
    let served = Served::start(&objects(application("target").await)).await;
    register(&served, "orders", application("orders").await).await;
    let limits = ", maxNames: 20, idleSeconds: 2, absentSeconds: 1";
    let sidecar = Sidecar::start(&served.xds, "default", application("mine").await, limits).await;
    sidecar.finds("orders", "orders").await;
    for host in 0..500 {
        let (status, reason, _) = sidecar.ask(&format!("hostile-{host}.example"), "1").await;
        assert_eq!((status, &*reason), (503, "unknown_name"), "{host}");
    }
    assert!(sidecar.metric("pontoon_names").await <= 20);
    assert_eq!(sidecar.ask("orders", "1").await.2, "orders");

    let empty = async {
        while sidecar.metric("pontoon_names").await > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, empty).await.expect("idle names are never dropped");
    let subscribed = served.json(&["proxies", "sidecar-1"]).await;
    for ty in ["LDS", "RDS", "CDS", "EDS"] {
        let names = &subscribed[0]["types"][ty]["names"];
        let own_only = names.as_array().is_none_or(|names| names.is_empty());
        assert!(own_only, "{ty}: {names}");
    }
    assert_eq!(sidecar.ask("orders", "1").await.2, "orders");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_state_of_the_world_names_come_and_go_and_come_again() {
    let served = Served::start(&objects(application("target").await)).await;
    register(&served, "orders", application("orders").await).await;
    let (mine, limits) =
        (application("mine").await, ", idleSeconds: 1, absentSeconds: 1, resolveTimeoutMs: 500");
    let sidecar = Sidecar::start_in("sotw", &served.xds, "default", mine, limits).await;
    sidecar.finds("orders", "orders").await;
    for _ in 0..2 {
        assert_eq!(sidecar.ask("orders", "1").await.2, "orders");
        // Nothing on the wire says that a name does not exist.
        assert_eq!(sidecar.ask("nobody", "1").await.1, "name_timeout");
        let empty = async {
            while sidecar.metric("pontoon_names").await > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, empty).await.expect("idle names are never dropped");
    }
    register(&served, "nobody", application("somebody").await).await;
    sidecar.finds("nobody", "somebody").await;
    let url = format!("{}/ready?verbose", sidecar.admin);
    let said = sidecar.http.get(url).send().await.unwrap().text().await.unwrap();
    assert!(said.contains("in state of the world: connected"), "{said}");
}

/// A mesh of so many applications, of which each has one instance at `at`.
fn mesh(services: usize, at: SocketAddr) -> Model {
    let application = |service: usize| {
        let name: Arc<str> = format!("S{service}").into();
        let instance = Instance {
            id: "a".into(),
            application: name.clone(),
            vip: name.to_lowercase().into(),
            host_name: "localhost".into(),
            ip: at.ip().to_string().into(),
            port: Some(at.port()),
            secure_port: None,
            status: InstanceStatus::Up,
            metadata: BTreeMap::new(),
        };
        let mut application = Application::default();
        application.instances.insert("a".into(), Arc::new(instance));
        (name, Arc::new(application))
    };
    let applications = (0..services).map(application).collect();
    Model { registry: Arc::new(RegistryView { applications, ..RegistryView::default() }), ..Model::default() }
}

/// A control plane that publishes what a model becomes for the sidecars of a namespace, and where it is.
async fn publish(model: &Model, namespace: &str) -> (String, tokio::task::JoinHandle<()>) {
    let compiled = compile::compile(model);
    let server = Server::new(Options::new(|node| Ok(node.cluster.clone())));
    server.publish(namespace, compiled.views[namespace].clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = TcpListenerStream::new(listener);
    let serving = grpc_server().add_routes(server.routes()).serve_with_incoming(incoming);
    (address, tokio::spawn(async move { serving.await.unwrap() }))
}

async fn resident_in_a_mesh_of(services: usize, at: SocketAddr) -> u64 {
    let (address, serving) = publish(&mesh(services, at), "default").await;
    let sidecar = Sidecar::start(&address, "default", at, "").await;
    for _ in 0..20 {
        for service in 0..10 {
            assert_eq!(sidecar.ask(&format!("s{service}"), "1").await.0, 200, "s{service} of {services}");
        }
    }
    let resident = sidecar.resident_kib();
    serving.abort();
    resident
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_of_ten_thousand_costs_what_one_of_ten_costs() {
    let at = application("one").await;
    let small = resident_in_a_mesh_of(10, at).await;
    let large = resident_in_a_mesh_of(10_000, at).await;
    println!("resident with 10 names in use: {small} KiB in a mesh of 10, {large} KiB in one of 10,000");
    assert!(large <= small + 1_024, "{small} KiB, {large} KiB");
}

/// The Services `shop/orders` at two ports and `shop/new`, and a route that sends what is for the first port of the one
/// to the other.
fn routed_service(old: SocketAddr, new: SocketAddr) -> Model {
    let name = |name: &str| ObjectName::new("shop", name);
    let service = |address: &str| {
        let port = |name: &str, port| ServicePort { name: name.into(), port, app_protocol: None };
        let cluster_ips = [address.parse().unwrap()].into();
        Arc::new(Service {
            ports: vec![port("http", 80), port("admin", 8080)],
            cluster_ips,
            ..Service::default()
        })
    };
    let pods = |at: SocketAddr| {
        let pod = PodEndpoint {
            v4: Some(at),
            v6: None,
            ready: true,
            serving: true,
            terminating: false,
            zone: None,
            for_zones: Arc::default(),
        };
        let ports = ["http", "admin"].map(|port| (port.into(), vec![pod.clone()])).into();
        Arc::new(ServiceEndpoints { ports })
    };
    let route = serde_json::from_value(serde_json::json!({
        "metadata": { "name": "orders", "namespace": "shop" },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "orders", "port": 80 }],
            "rules": [{ "backendRefs": [{ "name": "new", "port": 80 }] }],
        },
    }));
    let objects = Objects {
        services: [(name("orders"), service("10.96.0.1")), (name("new"), service("10.96.0.2"))]
            .into_iter()
            .collect(),
        routes: std::iter::once((name("orders"), Arc::new(route.unwrap()))).collect(),
        ..Objects::default()
    };
    let services = [(name("orders"), pods(old)), (name("new"), pods(new))].into_iter().collect();
    let services = ServiceView { services, held: false };
    Model {
        objects: Arc::new(objects),
        registry: Arc::new(RegistryView { services, ..RegistryView::default() }),
        ..Model::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nothing_is_intercepted_routes_of_a_service_are_found_by_name_and_port() {
    let (old, new) = (application("old").await, application("new").await);
    let (address, _serving) = publish(&routed_service(old, new), "shop").await;
    let sidecar = Sidecar::start(&address, "shop", old, "").await;
    for host in ["orders", "Orders:80", "orders.shop", "orders.shop.svc.cluster.local:80", "10.96.0.1"] {
        assert_eq!(sidecar.ask(host, "1").await.2, "new", "{host}");
    }
    // Without routes they are not known by name, and there is nowhere else to pass them on to.
    for host in ["orders:8080", "new", "10.96.0.1:8080"] {
        assert_eq!(sidecar.ask(host, "1").await.1, "unknown_name", "{host}");
    }
}
