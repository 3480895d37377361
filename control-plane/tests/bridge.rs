//! The whole chain: objects in a folder, the control plane and the proxy as processes, requests through the
//! proxy, and the command line to move a migration. Given the key's hash, when a change is in force, then each
//! user is answered by the side that the split says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use rig::{PATIENCE, PONTOON, Served};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use twox_hash::XxHash64;

#[path = "rig/served.rs"]
mod rig;

const USERS: u32 = 300;
/// From the answer to `DOWN` to the last request that its sender gets.
const DOWN_IN_FORCE: Duration = Duration::from_millis(100);

fn objects(gateway: u16, target: SocketAddr) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: edge }}
spec:
  gatewayClassName: pontoon
  listeners: [{{ name: http, port: {gateway}, protocol: HTTP }}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: shop }}
spec:
  parentRefs: [{{ name: edge }}]
  rules: [{{ backendRefs: [{{ name: inventory, port: 80 }}] }}]
---
apiVersion: pontoon.dev/v1alpha1
kind: Migration
metadata: {{ name: inventory }}
spec:
  service: inventory
  legacy: {{ eureka: {{ application: inventory }} }}
  target: {{ pool: new }}
  key: {{ header: x-user-id }}
  canary: [{{ header: {{ name: x-group, value: staff }} }}]
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

/// An instance that answers with the name of its side.
async fn instance(side: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(any(move || async move { side }));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// Registers an instance of the legacy side, as a Eureka client does.
async fn register(served: &Served, id: &str, at: SocketAddr, status: &str) {
    let body = serde_json::json!({ "instance": {
        "instanceId": id, "app": "INVENTORY", "hostName": id, "ipAddr": at.ip(), "vipAddress": "inventory",
        "status": status, "port": { "$": at.port(), "@enabled": "true" },
        "dataCenterInfo": {
            "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn",
        },
    } });
    let url = format!("http://{}/eureka/apps/INVENTORY", served.eureka);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.post(url).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 204, "{:?}", answer.text().await);
}

/// A port that was free a moment ago, below those that the kernel gives away itself.
async fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(20_000..32_000);
        if TcpListener::bind(("0.0.0.0", port)).await.is_ok() {
            return port;
        }
    }
}

struct Chain {
    served: Served,
    proxy: Child,
    gateway: String,
    http: reqwest::Client,
}

impl Chain {
    async fn start() -> Chain {
        let gateway = free_port().await;
        let served = Served::start(&objects(gateway, instance("target").await)).await;
        register(&served, "legacy-1", instance("legacy").await, "UP").await;
        let proxy = Command::new(PONTOON)
            .args(["proxy", "--node-id", "edge-1", "--cluster", "default/edge", "--workers", "2"])
            .args(["--admin", "127.0.0.1:0", "--drain-seconds", "2"])
            .args(["--xds-server", &format!("http://{}", served.xds)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let chain = Chain { served, proxy, gateway: format!("http://127.0.0.1:{gateway}"), http };
        let answered = async {
            while chain.ask(0).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, answered).await.expect("the proxy never answered");
        chain
    }

    async fn ask(&self, user: u32) -> Result<String, String> {
        ask(&self.http, &self.gateway, user).await
    }

    async fn migration(&self, args: &[&str]) {
        let output = self.served.run(&[&["migration"], args].concat()).await;
        assert!(output.status.success(), "{args:?}: {output:?}");
    }

    /// Every user is where the weight says; asked once in force, without a grace period.
    async fn everybody_is_where(&self, weight: u64) {
        for user in 0..USERS {
            let bucket = XxHash64::oneshot(0, user_id(user).as_bytes()) % 10_000;
            let side = if bucket < weight { "target" } else { "legacy" };
            assert_eq!(self.ask(user).await.as_deref(), Ok(side), "user {user}, bucket {bucket} at {weight}");
        }
    }
}

fn user_id(user: u32) -> String {
    format!("user-{user}")
}

async fn ask(http: &reqwest::Client, gateway: &str, user: u32) -> Result<String, String> {
    let request = http.get(format!("{gateway}/stock/{user}")).header("x-user-id", user_id(user));
    let response = request.send().await.map_err(|error| format!("{error:?}"))?;
    let status = response.status();
    let text = response.text().await.map_err(|error| format!("{error:?}"))?;
    if status.is_success() { Ok(text) } else { Err(format!("{status}: {text}")) }
}

/// Requests without a pause until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    task: JoinHandle<Vec<String>>,
}

impl Load {
    fn start(chain: &Chain) -> Load {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (http, gateway) = (chain.http.clone(), chain.gateway.clone());
        let (stopped, counted) = (stop.clone(), sent.clone());
        let task = tokio::spawn(async move {
            let mut failed = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = ask(&http, &gateway, (number % u64::from(USERS)) as u32).await {
                    failed.push(error);
                }
            }
            failed
        });
        Load { stop, sent, task }
    }

    /// Waits for so many more requests.
    async fn send(&self, more: u64) {
        let until = self.sent.load(Ordering::Relaxed) + more;
        let sending = async {
            while self.sent.load(Ordering::Relaxed) < until {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, sending).await.expect("the load stands still");
    }

    async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.task.await.unwrap();
        assert!(failed.is_empty(), "{} requests failed, the first: {}", failed.len(), failed[0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_user_is_on_the_side_that_the_split_says_all_the_way_and_back() {
    let chain = Chain::start().await;
    let load = Load::start(&chain);
    chain.everybody_is_where(0).await;
    for (args, weight) in [
        (&["set", "inventory", "--weight", "20%"][..], 2000),
        (&["set", "inventory", "--weight", "50%"], 5000),
        (&["set", "inventory", "--stage", "cutover"], 10_000),
        (&["rollback", "inventory", "--to", "split"], 5000),
        (&["set", "inventory", "--weight", "0.25%"], 25),
        (&["rollback", "inventory"], 0),
    ] {
        chain.migration(args).await;
        chain.everybody_is_where(weight).await;
    }
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chosen_users_cross_first_and_the_command_says_when() {
    let chain = Chain::start().await;
    chain.migration(&["set", "inventory", "--stage", "canary"]).await;
    let staff = chain.http.get(&chain.gateway).header("x-group", "staff").send().await.unwrap();
    assert_eq!(staff.text().await.unwrap(), "target");
    chain.everybody_is_where(0).await;
    let shown = chain.served.json(&["migration", "show", "inventory"]).await;
    assert_eq!(shown["in_force"]["progress"], "in_force", "{shown}");
    assert!(shown["in_force"]["took_ms"].is_number(), "{shown}");
    assert_eq!(shown["in_force"]["routes"][0]["acknowledged"][0], "edge-1", "{shown}");
    let proxies = chain.served.json(&["proxies", "edge-1"]).await;
    assert_eq!(proxies[0]["types"]["RDS"]["in_sync"], true, "{proxies}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_control_plane_loses_no_request() {
    let mut chain = Chain::start().await;
    chain.migration(&["set", "inventory", "--weight", "50%"]).await;
    let load = Load::start(&chain);
    load.send(50).await;
    let (eureka, xds) = (chain.served.eureka.clone(), chain.served.xds.clone());
    let (status, dir) = chain.served.stop().await;
    assert!(status.success(), "{status}");
    load.send(200).await;
    chain.served = Served::at(dir, &eureka, &xds).await;
    load.send(50).await;
    chain.everybody_is_where(5000).await;
    // The proxy comes back by itself. A change is not in force before it has, though nobody is connected yet.
    chain.migration(&["rollback", "inventory"]).await;
    chain.everybody_is_where(0).await;
    load.finish().await;
    chain.proxy.start_kill().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_explanation_agrees_with_what_is_served() {
    let chain = Chain::start().await;
    chain.migration(&["set", "inventory", "--weight", "50%"]).await;
    for user in 0..20 {
        let header = format!("x-user-id: {}", user_id(user));
        let url = format!("{}/stock/{user}", chain.gateway);
        let told = chain.served.json(&["migration", "explain", "inventory", "-H", &header, &url]).await;
        let served = chain.ask(user).await.unwrap();
        assert_eq!(told["migrations"][0]["side"], *served, "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_says_down_is_out_of_the_balancing_at_once() {
    let chain = Chain::start().await;
    let leaving = instance("leaving").await;
    register(&chain.served, "legacy-2", leaving, "UP").await;
    let seen = async {
        while !sides(&chain).await.contains("leaving") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.expect("the new instance takes no traffic");

    register(&chain.served, "legacy-2", leaving, "DOWN").await;
    let said = Instant::now();
    let gone = async {
        let mut quiet_since = Instant::now();
        // Gone is: not seen in 50 requests one after the other.
        let mut unseen = 0;
        while unseen < 50 {
            match chain.ask(0).await.as_deref() {
                Ok("leaving") => (unseen, quiet_since) = (0, Instant::now()),
                Ok(_) => unseen += 1,
                Err(error) => panic!("{error}"),
            }
        }
        quiet_since.duration_since(said)
    };
    let took = tokio::time::timeout(PATIENCE, gone).await.expect("it still takes traffic");
    assert!(took < DOWN_IN_FORCE, "the last request reached it {took:?} after it had said DOWN");
}

async fn sides(chain: &Chain) -> BTreeSet<String> {
    let mut sides = BTreeSet::new();
    for user in 0..20 {
        sides.insert(chain.ask(user).await.unwrap());
    }
    sides
}
