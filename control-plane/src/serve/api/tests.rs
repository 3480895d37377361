//! The API over a real socket, with a real bridge and real xDS clients behind it.

use std::net::SocketAddr;

use pontoon_xds::ResourceType;
use pontoon_xds::client::{self, Handler, Rejected, Subscriptions, Update};
use pontoon_xds::pb::envoy::config::core::v3::Node;
use pontoon_xds::server::{Options, Server, grpc_server};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::addresses::plan::Slots;
use crate::addresses::store::Store;
use crate::migration::audit::{Head, verify};
use crate::migration::book::Book;
use crate::migration::keeper::Keeper;
use crate::migration::ledger::Ledger;
use crate::model::instance::RegistryView;
use crate::objects::{Loaded, ObjectName, Objects};
use crate::serve::bridge::{Assigner, Bridge, QUEUE, Sources};
use crate::serve::http::{Limits, serve};

const TOKEN: &str = "0123456789abcdef";

struct Rig {
    api: SocketAddr,
    /// Health and metrics alone.
    open: SocketAddr,
    xds: SocketAddr,
    folder: watch::Sender<Loaded>,
    _registry: watch::Sender<Arc<RegistryView>>,
    ready: watch::Sender<bool>,
    http: reqwest::Client,
    _stop: DropGuard,
    _dir: tempfile::TempDir,
}

fn objects(target_endpoints: usize, stage: &str) -> Objects {
    let one = |value: Value| serde_json::from_value(value).unwrap();
    let gateway = json!({
        "metadata": { "name": "edge", "namespace": "default" },
        "spec": { "gatewayClassName": "pontoon",
            "listeners": [{ "name": "http", "port": 18080, "protocol": "HTTP" }] },
    });
    let route = json!({
        "metadata": { "name": "shop", "namespace": "default" },
        "spec": { "parentRefs": [{ "name": "edge" }],
            "rules": [{ "backendRefs": [{ "name": "inventory", "port": 80 }] }] },
    });
    let pool = |count: usize| {
        let endpoints: Vec<Value> =
            (1..=count).map(|i| json!({ "address": format!("127.0.0.{i}"), "port": 9000 })).collect();
        json!({ "metadata": { "name": "p" }, "spec": { "endpoints": endpoints } })
    };
    let migration = json!({
        "metadata": { "name": "inventory", "namespace": "default" },
        "spec": { "service": "inventory", "legacy": { "pool": "old" }, "target": { "pool": "new" },
            "key": { "header": "x-user-id" }, "stage": stage,
            "canary": [{ "header": { "name": "x-group", "value": "staff" } }] },
    });
    let name = |name: &str| ObjectName::new("default", name);
    Objects {
        gateways: [(name("edge"), Arc::new(one(gateway)))].into_iter().collect(),
        routes: [(name("shop"), Arc::new(serde_json::from_value(route).unwrap()))].into_iter().collect(),
        migrations: [(name("inventory"), Arc::new(serde_json::from_value(migration).unwrap()))]
            .into_iter()
            .collect(),
        pools: [
            (name("old"), Arc::new(serde_json::from_value(pool(2)).unwrap())),
            (name("new"), Arc::new(serde_json::from_value(pool(target_endpoints)).unwrap())),
        ]
        .into_iter()
        .collect(),
        ..Objects::default()
    }
}

fn folder(target_endpoints: usize, stage: &str) -> Loaded {
    let mut loaded = Loaded::default();
    loaded.objects = Arc::new(objects(target_endpoints, stage));
    loaded
}

impl Rig {
    async fn start() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let database = Arc::new(redb::Database::create(dir.path().join("state.redb")).unwrap());
        let ledger = Ledger::new(database.clone());
        let assigner = Assigner::new(Slots::default(), Store::new(database));
        ledger.load().unwrap();
        let token_file = dir.path().join("token");
        std::fs::write(&token_file, format!("ci:{TOKEN}\n")).unwrap();

        let server = Server::new(Options::new(|node| Ok(node.cluster.clone())));
        let proxies = Proxies::new(server.clone());
        let (folder, folder_in) = watch::channel(folder(1, "observe"));
        let (registry, registry_in) = watch::channel(Arc::default());
        let (commands, commands_in) = mpsc::channel(QUEUE);
        let (world, world_out) = watch::channel(Arc::default());
        let (ready, ready_out) = watch::channel(false);
        let stop = CancellationToken::new();

        let (services, leads) = (None, None);
        let sources = Sources {
            registry: registry_in,
            services,
            leads,
            aside: None,
            folder: folder_in,
            in_pods: false,
            commands: commands_in,
        };
        let keeper = Keeper::Database(ledger);
        let mut bridge =
            Bridge::new(sources, keeper.clone(), Book::default(), assigner, proxies.clone(), world);
        bridge.refresh().await;
        tokio::spawn(bridge.run(stop.clone()));

        let tokens = Tokens::read(&token_file).unwrap();
        let api = Api::new(world_out, ready_out, commands, proxies, keeper, tokens, None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api_address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, api.clone().router(), Limits::API, stop.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, api.health_router(), Limits::API, stop.clone()));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let xds = listener.local_addr().unwrap();
        let router = grpc_server().add_routes(server.routes());
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));

        ready.send_replace(true);
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Rig {
            api: api_address,
            open,
            xds,
            folder,
            _registry: registry,
            ready,
            http,
            _stop: stop.drop_guard(),
            _dir: dir,
        }
    }

    fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let url = format!("http://{}{path}", self.api);
        self.http.request(method.parse().unwrap(), url).bearer_auth(TOKEN)
    }

    async fn get(&self, path: &str) -> Value {
        self.request("GET", path).send().await.unwrap().json().await.unwrap()
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let response =
            self.request(method, path).header(auth::ACTOR_HEADER, "jo").json(&body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// Connects a proxy that takes everything, or refuses all routes.
    fn proxy(&self, node: &str, refuses: bool) -> tokio::task::JoinHandle<()> {
        self.proxy_of("default/edge", node, refuses)
    }

    fn proxy_of(&self, gateway: &str, node: &str, refuses: bool) -> tokio::task::JoinHandle<()> {
        let node = Node { id: node.into(), cluster: gateway.into(), ..Node::default() };
        let config = client::Config::new(format!("http://{}", self.xds).parse().unwrap(), node);
        let subscriptions = Subscriptions::default();
        subscriptions.wildcard(ResourceType::Cluster);
        subscriptions.wildcard(ResourceType::Listener);
        let wanted = subscriptions.clone();
        let handler = Follower { wanted, refuses };
        tokio::spawn(client::run(config, subscriptions, handler, watch::Sender::default()))
    }

    /// Asks again until `holds`.
    async fn look_until(&self, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let looking = async {
            loop {
                let seen = self.get(path).await;
                if holds(&seen) {
                    return seen;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.expect("the condition never held")
    }

    /// Waits for the migration to come to this progress, without a look at the clock.
    async fn until(&self, progress: &str) -> Value {
        let path = format!("{MIGRATION}?wait_ms=1000");
        self.look_until(&path, |view| view["in_force"]["progress"] == progress).await
    }
}

/// A condition that does not hold by then never will.
const PATIENCE: Duration = Duration::from_secs(30);
const MIGRATION: &str = "/api/v1/migrations/default/inventory";
const STAGE: &str = "/api/v1/migrations/default/inventory/stage";
const ROLLBACK: &str = "/api/v1/migrations/default/inventory/rollback";

struct Follower {
    wanted: Subscriptions,
    refuses: bool,
}

impl Handler for Follower {
    fn apply(&mut self, update: Update) -> Vec<Rejected> {
        let names = || update.changed.iter().map(|resource| resource.name.clone());
        match update.ty {
            ResourceType::Cluster => self.wanted.set(ResourceType::Endpoint, names().collect()),
            // A gateway's listener and its route configuration have one name.
            ResourceType::Listener => self.wanted.set(ResourceType::Route, names().collect()),
            ResourceType::Route if self.refuses => {
                return names()
                    .map(|name| Rejected { name, reason: "routes[0]: not today".into() })
                    .collect();
            }
            ResourceType::Secret | ResourceType::Endpoint | ResourceType::Route => {}
        }
        Vec::new()
    }
}

#[tokio::test]
async fn who_has_no_token_learns_only_that() {
    let rig = Rig::start().await;
    for path in ["/api/v1/migrations", "/api/v1/proxies", "/api/v1/audit"] {
        let response = rig.http.get(format!("http://{}{path}", rig.api)).send().await.unwrap();
        assert_eq!(response.status(), 401, "{path}");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
    }
    let metrics = rig.http.get(format!("http://{}/metrics", rig.api)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(
        metrics.contains("pontoon_migration_stage{migration=\"default/inventory\",stage=\"observe\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn where_no_token_is_asked_for_there_is_no_api() {
    let rig = Rig::start().await;
    for (path, status) in [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/metrics", 200),
        ("/api/v1/objects", 404),
        ("/openapi.json", 404),
    ] {
        let answer =
            rig.http.get(format!("http://{}{path}", rig.open)).bearer_auth(TOKEN).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
    }
}

#[tokio::test]
async fn a_bad_request_says_what_would_be_right() {
    let rig = Rig::start().await;
    let cases = [
        (rig.call("PUT", STAGE, json!({})).await, 400, "bad_request"),
        (rig.call("PUT", STAGE, json!({ "stage": "canery" })).await, 422, "bad_body"),
        (rig.call("PUT", STAGE, json!({ "weight": 10001 })).await, 422, "bad_body"),
        (rig.call("PUT", STAGE, json!({ "weight": 1, "wait": 1 })).await, 422, "bad_body"),
        (rig.call("PUT", STAGE, json!({ "stage": "split" })).await, 400, "weight_missing"),
        (rig.call("PUT", STAGE, json!({ "stage": "canary", "weight": 5 })).await, 400, "weight_unused"),
        (
            rig.call("PUT", "/api/v1/migrations/default/x/stage", json!({ "weight": 5 })).await,
            404,
            "no_such_migration",
        ),
        (rig.call("DELETE", STAGE, json!({})).await, 405, "no_such_method"),
        (rig.call("PUT", "/api/v1/nothing", json!({})).await, 404, "no_such_path"),
        (rig.call("GET", "/api/v1/audit?limit=x", json!({})).await, 400, "bad_query"),
        (
            rig.call("PUT", STAGE, json!({ "stage": "canary", "reason": "x".repeat(2000) })).await,
            400,
            "bad_request",
        ),
    ];
    for ((status, problem), wanted, reason) in cases {
        assert_eq!((status, problem["reason"].as_str()), (wanted, Some(reason)), "{problem}");
        assert_eq!(problem["status"], status);
    }
    let huge =
        rig.request("PUT", STAGE).body("x".repeat(BODY_BYTES + 1)).header("content-type", "application/json");
    assert_eq!(huge.send().await.unwrap().status(), 413);
    assert_eq!(rig.get(MIGRATION).await["revision"], 1);
}

#[tokio::test]
async fn a_proxy_of_a_gateway_that_does_not_exist_is_shown() {
    let rig = Rig::start().await;
    let _right = rig.proxy("p1", false);
    let _wrong = rig.proxy_of("default/edgee", "p2", false);
    let both = |seen: &Value| seen.as_array().is_some_and(|proxies| proxies.len() == 2);
    let seen = rig.look_until("/api/v1/proxies", both).await;
    assert_eq!(seen[0]["unknown_gateway"], false, "{seen}");
    assert_eq!(seen[1]["unknown_gateway"], true, "{seen}");
}

#[tokio::test]
async fn a_change_is_in_force_when_every_proxy_has_it() {
    let rig = Rig::start().await;
    let (status, changed) = rig.call("PUT", STAGE, json!({ "stage": "canary", "reason": "first" })).await;
    assert_eq!((status, &changed["changed"]), (200, &json!(true)), "{changed}");
    assert_eq!(changed["migration"]["in_force"]["progress"], "no_proxies");

    let first = rig.proxy("edge-1", false);
    let second = rig.proxy("edge-2", false);
    let both = |view: &Value| view["in_force"]["routes"][0]["acknowledged"] == json!(["edge-1", "edge-2"]);
    rig.look_until(MIGRATION, both).await;
    let (_, changed) = rig.call("PUT", STAGE, json!({ "weight": 500, "expected_revision": 2 })).await;
    assert_eq!(changed["migration"]["revision"], 3);
    let view = rig.until("in_force").await;
    assert!(both(&view), "{view}");
    assert!(view["in_force"]["took_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{view}");
    assert_eq!(
        (&view["stage"], &view["weight"], &view["actor"]),
        (&json!("split"), &json!(500), &json!("jo"))
    );

    let proxies = rig.get("/api/v1/proxies").await;
    assert_eq!(proxies[0]["types"]["RDS"]["in_sync"], true, "{proxies}");

    let (_, back) = rig.call("POST", ROLLBACK, json!({})).await;
    assert_eq!((&back["migration"]["stage"], &back["migration"]["weight"]), (&json!("observe"), &json!(500)));
    rig.until("in_force").await;
    first.abort();
    second.abort();
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_with_its_words() {
    let rig = Rig::start().await;
    let good = rig.proxy("edge-1", false);
    rig.until("in_force").await;
    let bad = rig.proxy("edge-2", true);
    let refused = |view: &Value| view["in_force"]["routes"][0]["waiting"][0]["refused"].is_string();
    let view = rig.look_until(MIGRATION, refused).await;
    let waiting = &view["in_force"]["routes"][0]["waiting"];
    assert_eq!(waiting[0]["node"], "edge-2");
    assert!(waiting[0]["refused"].as_str().unwrap().contains("not today"), "{waiting}");
    let view = rig.get("/api/v1/objects").await;
    let objects = view["objects"].as_array().unwrap();
    let gateway = objects.iter().find(|object| object["kind"] == "Gateway").unwrap();
    let said = gateway["messages"][0].as_str().unwrap();
    assert!(said.starts_with("proxy edge-2 refuses RDS default/edge/http: "), "{gateway}");
    assert!(said.contains("not today") && gateway["ok"] == false, "{gateway}");
    assert!(view["problems"].to_string().contains(said.trim_end_matches(" (Refused)")), "{view}");
    good.abort();
    bad.abort();
}

#[tokio::test]
async fn stale_revisions_and_dead_targets_are_refused_with_409() {
    let rig = Rig::start().await;
    let stale = json!({ "stage": "canary", "expected_revision": 7 });
    let (status, problem) = rig.call("PUT", STAGE, stale).await;
    assert_eq!((status, problem["reason"].as_str()), (409, Some("revision_conflict")));

    let mut dead = folder(1, "observe");
    Arc::make_mut(&mut dead.objects).pools.remove(&ObjectName::new("default", "new"));
    rig.folder.send_replace(dead);
    rig.look_until(MIGRATION, |view| view["target"]["healthy"] == 0).await;
    let (status, problem) = rig.call("PUT", STAGE, json!({ "stage": "cutover" })).await;
    assert_eq!((status, problem["reason"].as_str()), (409, Some("target_unhealthy")), "{problem}");
    let (status, changed) = rig.call("PUT", STAGE, json!({ "stage": "cutover", "force": true })).await;
    assert_eq!((status, changed["warnings"].as_array().map(Vec::len)), (200, Some(1)), "{changed}");
    let log = rig.get("/api/v1/audit").await;
    assert_eq!(log["entries"][1]["forced"], true, "{log}");
}

#[tokio::test]
async fn the_audit_log_can_be_read_in_parts_and_checked() {
    let rig = Rig::start().await;
    rig.call("PUT", STAGE, json!({ "stage": "canary", "reason": "why not" })).await;
    rig.call("POST", ROLLBACK, json!({ "reason": "that is why" })).await;
    let page = rig.get("/api/v1/audit?after=1&limit=1").await;
    assert_eq!((&page["next"], &page["entries"][0]["reason"]), (&json!(2), &json!("why not")), "{page}");
    let entry = &rig.get("/api/v1/audit?after=2").await["entries"][0];
    assert_eq!(
        (&entry["action"], &entry["actor"], &entry["token"]),
        (&json!("rollback"), &json!("jo"), &json!("ci"))
    );
    assert_eq!(entry["config"], rig.get(MIGRATION).await["in_force"]["version"]);
    assert_eq!(rig.get("/api/v1/audit?migration=default/other").await["entries"], json!([]));

    let lines = rig.request("GET", "/api/v1/audit").header("accept", "application/x-ndjson");
    let lines = lines.send().await.unwrap().text().await.unwrap();
    let head = lines.lines().try_fold(Head::default(), |head, line| verify(&head, line)).unwrap();
    assert_eq!(head.seq, 3);
}

#[tokio::test]
async fn a_changed_file_acts_as_a_command_of_its_own() {
    let rig = Rig::start().await;
    rig.call("PUT", STAGE, json!({ "stage": "cutover" })).await;
    rig.folder.send_replace(folder(1, "canary"));
    let view = rig.look_until(MIGRATION, |view| view["stage"] == "canary").await;
    assert_eq!(view["actor"], "file:default/inventory");
}

#[tokio::test]
async fn an_explanation_is_the_serving_codes_own() {
    let rig = Rig::start().await;
    rig.call("PUT", STAGE, json!({ "weight": 5000 })).await;
    let mut sides = std::collections::BTreeSet::new();
    for user in 0..20 {
        let body = json!({
            "url": "http://shop:18080/stock/1", "headers": [["x-user-id", user.to_string()]],
            "migration": "default/inventory",
        });
        let (status, answer) = rig.call("POST", "/api/v1/explain", body).await;
        assert_eq!(status, 200, "{answer}");
        let explanation = &answer["explanation"];
        let below = explanation["bucket"].as_u64().unwrap() < 5000;
        let (side, cluster) =
            if below { ("target", "pool/default/new") } else { ("legacy", "pool/default/old") };
        assert_eq!(explanation["cluster"], cluster, "{answer}");
        assert_eq!(answer["migrations"][0]["side"], side, "{answer}");
        assert_eq!(explanation["version"], answer["migrations"][0]["migration"]["in_force"]["version"]);
        sides.insert(side);
    }
    assert_eq!(sides.len(), 2);

    let staff = json!({ "url": "http://shop:18080/", "headers": [["x-group", "staff"]] });
    let (_, staff) = rig.call("POST", "/api/v1/explain", staff).await;
    assert_eq!(staff["explanation"]["cluster"], "pool/default/new", "{staff}");

    for (body, status) in [
        (json!({ "url": "/stock" }), 400),
        (json!({ "url": "http://shop/", "headers": [["bad name", "x"]] }), 400),
        (json!({ "url": "http://shop/", "gateway": "default/none" }), 404),
        (json!({ "url": "http://shop/", "migration": "default/none" }), 404),
    ] {
        let (got, problem) = rig.call("POST", "/api/v1/explain", body).await;
        assert_eq!(got, status, "{problem}");
    }
}

#[tokio::test]
async fn before_everything_is_loaded_nothing_is_changed_or_said_not_to_be_there() {
    let rig = Rig::start().await;
    rig.ready.send_replace(false);
    assert_eq!(rig.request("GET", "/readyz").send().await.unwrap().status(), 503);
    let (status, problem) = rig.call("PUT", STAGE, json!({ "stage": "canary" })).await;
    assert_eq!((status, problem["reason"].as_str()), (503, Some("busy")));
    for path in ["/api/v1/migrations/default/other", "/api/v1/objects", "/api/v1/proxies"] {
        assert_eq!(rig.request("GET", path).send().await.unwrap().status(), 503, "{path}");
    }
    assert_eq!(rig.request("GET", "/api/v1/registry").send().await.unwrap().status(), 200);
    assert_eq!(rig.request("GET", "/healthz").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn every_documented_path_is_served() {
    let rig = Rig::start().await;
    let document = rig.get("/openapi.json").await;
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 11, "{paths:?}");
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{namespace}", "default").replace("{name}", "inventory");
            let response = rig.request(&method.to_uppercase(), &path).send().await.unwrap();
            assert!(response.status() != 404 && response.status() != 405, "{method} {path}: {response:?}");
        }
    }
}
