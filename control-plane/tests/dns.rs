//! DNS in sidecars, as processes: names have the same address on every sidecar and after restarts, and what is not the
//! mesh's is asked of a real resolver.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use rig::{PATIENCE, PONTOON, Served};
use tokio::net::{TcpListener, UdpSocket};
use tokio::process::{Child, Command};

#[path = "rig/served.rs"]
mod rig;

/// A port that is free for UDP and TCP.
async fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).await.is_ok()
            && UdpSocket::bind(("127.0.0.1", port)).await.is_ok()
        {
            return port;
        }
    }
}

fn pools(names: &[&str]) -> String {
    let pool = |name: &&str| {
        format!(
            "---\napiVersion: pontoon.dev/v1alpha1\nkind: Pool\nmetadata: {{ name: {name} }}\n\
             spec: {{ endpoints: [{{ address: 127.0.0.1, port: 9 }}] }}\n"
        )
    };
    names.iter().map(pool).collect()
}

/// A sidecar that answers DNS, as a process.
struct Sidecar {
    _child: Child,
    dns: SocketAddr,
    admin: String,
    http: reqwest::Client,
    _dir: tempfile::TempDir,
}

impl Sidecar {
    async fn start(xds: &str, settings: &str) -> Sidecar {
        let dir = tempfile::tempdir().unwrap();
        let [dns, admin] = [free_port().await, free_port().await];
        let file = dir.path().join("proxy.yaml");
        let text = format!(
            "xdsServer: http://{xds}\nworkers: 1\nadmin: 127.0.0.1:{admin}\n\
             dns: {{ addresses: [\"127.0.0.1:{dns}\", \"[::1]:{dns}\"], {settings} }}\n"
        );
        std::fs::write(&file, text).unwrap();
        let child = Command::new(PONTOON)
            .args(["proxy", "--config"])
            .arg(file)
            .env_clear()
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let dns = SocketAddr::from(([127, 0, 0, 1], dns));
        let sidecar =
            Sidecar { _child: child, dns, admin: format!("http://127.0.0.1:{admin}"), http, _dir: dir };
        let ready = async {
            let url = format!("{}/ready", sidecar.admin);
            while !sidecar.http.get(&url).send().await.is_ok_and(|answer| answer.status() == 200) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.expect("the sidecar is never ready");
        sidecar
    }

    async fn text(&self, path: &str) -> String {
        self.http.get(format!("{}{path}", self.admin)).send().await.unwrap().text().await.unwrap()
    }

    async fn ask(&self, name: &str, ty: RecordType) -> Message {
        by_udp(self.dns, &query(name, ty)).await
    }

    async fn address(&self, name: &str) -> Vec<IpAddr> {
        let mut all = addresses(&self.ask(name, RecordType::A).await);
        all.extend(addresses(&self.ask(name, RecordType::AAAA).await));
        all
    }
}

fn query(name: &str, ty: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), ty));
    query
}

fn addresses(answer: &Message) -> Vec<IpAddr> {
    answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

async fn by_udp(server: SocketAddr, query: &Message) -> Message {
    let socket = UdpSocket::bind((if server.is_ipv6() { "::1" } else { "127.0.0.1" }, 0)).await.unwrap();
    socket.connect(server).await.unwrap();
    socket.send(&query.to_vec().unwrap()).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let received =
        tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("no answer").unwrap();
    let answer = Message::from_vec(&buffer[..received]).unwrap();
    assert_eq!((answer.metadata.id, &answer.queries), (query.metadata.id, &query.queries));
    answer
}

const SETTINGS: &str = "upstreams: [], search: [default.svc.cluster.local, corp.example]";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_has_one_address_on_every_sidecar_and_after_restarts() {
    let served = Served::start(&pools(&["orders", "inventory"])).await;
    let (one, two) =
        (Sidecar::start(&served.xds, SETTINGS).await, Sidecar::start(&served.xds, SETTINGS).await);
    let orders = one.address("orders.").await;
    assert_eq!(orders.len(), 2, "{orders:?}");
    assert!(orders[0].to_string().starts_with("240.") && orders[1].to_string().starts_with("fd70:"));
    assert_eq!(two.address("ORDERS.").await, orders);
    assert_ne!(one.address("inventory.").await, orders);
    for name in [
        "orders.default.",
        "orders.default.svc.",
        "orders.default.svc.cluster.local.",
        "orders.mesh.internal.",
        "orders.default.mesh.internal.",
    ] {
        assert_eq!(one.address(name).await, orders, "{name}");
    }

    // The name is there before "orders" is, and would have its slot if addresses were given in order.
    let (_, dir) = served.stop().await;
    std::fs::write(dir.path().join("objects/shop.yaml"), pools(&["aaa", "orders"])).unwrap();
    let served = Served::in_dir(dir).await;
    let three = Sidecar::start(&served.xds, SETTINGS).await;
    assert_eq!(three.address("orders.").await, orders);
    assert_eq!(
        two.address("orders.").await,
        orders,
        "without a control plane, what is known goes on being told"
    );

    // A restarted sidecar that is asked for the address before it has heard of the name.
    let four = Sidecar::start(&served.xds, SETTINGS).await;
    let reverse = four.ask(&Name::from(orders[0]).to_ascii(), RecordType::PTR).await;
    let RData::PTR(name) = &reverse.answers[0].data else { panic!("{reverse:?}") };
    assert_eq!(name.to_ascii(), "orders.");
    assert!(four.text("/dns").await.contains(&orders[0].to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_the_meshs_is_never_anybody_elses() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("objects")).unwrap();
    std::fs::write(dir.path().join("objects/shop.yaml"), pools(&["orders"])).unwrap();
    let local = ["--eureka-listen", "127.0.0.1:0", "--xds-listen", "127.0.0.1:0"];
    let ranges = ["--virtual-range", "10.96.0.0/24", "--virtual-range6", "none"];
    let served = Served::with(dir, &[&local[..], &ranges].concat()).await;
    let settings = format!("{SETTINGS}, virtualRanges: [10.96.0.0/24], zone: shop.test, ttlSeconds: 7");
    let sidecar = Sidecar::start(&served.xds, &settings).await;

    // What a client with `ndots:5` asks first: one answer is enough.
    let answer = sidecar.ask("orders.corp.example.", RecordType::A).await;
    let RData::CNAME(target) = &answer.answers[0].data else { panic!("{answer:?}") };
    assert_eq!((target.to_ascii(), addresses(&answer).len()), ("orders.".to_owned(), 1));
    assert!(addresses(&answer)[0].to_string().starts_with("10.96.0."));
    assert!(answer.answers.iter().all(|record| record.ttl == 7));
    let empty = sidecar.ask("orders.corp.example.", RecordType::AAAA).await;
    assert_eq!(empty.metadata.response_code, ResponseCode::NoError);
    assert!(addresses(&empty).is_empty() && !empty.authorities.is_empty(), "{empty:?}");

    let code = |answer: Message| answer.metadata.response_code;
    assert_eq!(addresses(&sidecar.ask("orders.shop.test.", RecordType::A).await).len(), 1);
    assert_eq!(code(sidecar.ask("absent.shop.test.", RecordType::A).await), ResponseCode::NXDomain);
    assert_eq!(code(sidecar.ask("250.0.96.10.in-addr.arpa.", RecordType::PTR).await), ResponseCode::NXDomain);
    // There is no upstream.
    assert_eq!(code(sidecar.ask("absent.", RecordType::A).await), ResponseCode::ServFail);
    let metrics = sidecar.text("/metrics").await;
    assert!(metrics.contains("pontoon_dns_queries_total{result=\"failed\"} 1\n"), "{metrics}");

    // It is one of the mesh from the moment at which it is, and not before.
    std::fs::write(served.dir.path().join("objects/more.yaml"), pools(&["absent"])).unwrap();
    let seen = async { while sidecar.address("absent.").await.is_empty() {} };
    tokio::time::timeout(PATIENCE, seen).await.expect("the new name never appears");
}
