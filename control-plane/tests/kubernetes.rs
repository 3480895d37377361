//! The watches against a scripted API server: a stream that breaks, a gap in it, an outage, and a server that comes
//! back with nothing.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a broken helper is a failed test"
)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::response::Response;
use futures_util::stream;
use pontoon::kubernetes::mirror::CONFIRM;
use pontoon::kubernetes::pods::Pods;
use pontoon::objects::{ClusterSource, Controller, Loaded, ObjectName};
use pontoon::registry::kubernetes::Endpoints;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(30);
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/httproutes";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const PODS: &str = "/api/v1/pods";

/// What the server has, and what it was asked.
#[derive(Default)]
struct Script {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    /// Version, collection, what happened, the object.
    log: Vec<(u64, String, &'static str, Value)>,
    /// Watches from before this version are told that it is gone.
    oldest: u64,
    down: bool,
    lists: BTreeMap<String, usize>,
}

#[derive(Clone)]
struct Api {
    script: Arc<Mutex<Script>>,
    /// The version; watches end when the second changes.
    news: watch::Sender<(u64, u64)>,
}

impl Api {
    async fn start() -> (Api, kube::Client) {
        let api = Api { script: Arc::default(), news: watch::Sender::new((0, 0)) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (api, kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap())
    }

    fn change(&self, collection: &str, name: &str, object: Option<Value>) {
        let mut script = self.script.lock().unwrap();
        script.version += 1;
        let version = script.version;
        let key = (collection.to_owned(), name.to_owned());
        let (what, object) = match object {
            Some(mut object) => {
                object["metadata"]["resourceVersion"] = json!(version.to_string());
                let before = script.objects.insert(key, object.clone());
                (if before.is_some() { "MODIFIED" } else { "ADDED" }, object)
            }
            None => ("DELETED", script.objects.remove(&key).unwrap()),
        };
        script.log.push((version, collection.to_owned(), what, object));
        drop(script);
        self.news.send_modify(|news| news.0 = version);
    }

    /// Ends all watches; with `gap`, they cannot be taken up where they ended.
    fn cut(&self, gap: bool) {
        let mut script = self.script.lock().unwrap();
        if gap {
            script.version += 1;
            script.oldest = script.version;
        }
        drop(script);
        self.news.send_modify(|news| news.1 += 1);
    }

    fn down(&self, down: bool) {
        self.script.lock().unwrap().down = down;
        self.cut(false);
    }

    fn lists(&self, collection: &str) -> usize {
        self.script.lock().unwrap().lists.get(collection).copied().unwrap_or_default()
    }
}

async fn answer(
    State(api): State<Api>,
    Query(query): Query<BTreeMap<String, String>>,
    request: Request,
) -> Response {
    let collection = request.uri().path().to_owned();
    let mut script = api.script.lock().unwrap();
    let of = |code: u16, body: Value| {
        let body = Body::from(body.to_string());
        Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
    };
    let status = |code: u16, reason: &str| json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code });
    if script.down {
        return of(503, status(503, "ServiceUnavailable"));
    }
    if query.get("watch").is_none_or(|watch| watch != "true") {
        *script.lists.entry(collection.clone()).or_default() += 1;
        let items: Vec<&Value> = script
            .objects
            .iter()
            .filter(|((of, _), _)| *of == collection)
            .map(|(_, object)| object)
            .collect();
        let metadata = json!({ "resourceVersion": script.version.to_string() });
        return of(200, json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items }));
    }
    let from: u64 = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or_default();
    if from < script.oldest {
        let event = json!({ "type": "ERROR", "object": status(410, "Expired") });
        return of(200, event);
    }
    let mut news = api.news.subscribe();
    let end = news.borrow_and_update().1;
    drop(script);
    let events = stream::unfold((api.clone(), news, from), move |(api, mut news, from)| {
        let collection = collection.clone();
        async move {
            loop {
                if news.borrow_and_update().1 != end {
                    return None;
                }
                let found = {
                    let script = api.script.lock().unwrap();
                    script.log.iter().find(|(v, of, ..)| *v > from && *of == collection).cloned()
                };
                if let Some((version, _, what, object)) = found {
                    let line = format!("{}\n", json!({ "type": what, "object": object }));
                    return Some((Ok::<_, Infallible>(Bytes::from(line)), (api, news, version)));
                }
                news.changed().await.ok()?;
            }
        }
    });
    Response::builder().header("content-type", "application/json").body(Body::from_stream(events)).unwrap()
}

fn route(host: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": host, "namespace": "shop", "uid": host, "generation": 1 },
        "spec": { "hostnames": [host] },
    })
}

fn slice(service: &str, ready: bool) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": service, "namespace": "shop", "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4", "ports": [{ "name": "", "port": 80, "protocol": "TCP" }],
        "endpoints": [{ "addresses": ["10.0.0.1"], "conditions": { "ready": ready } }],
    })
}

fn hosts(loaded: &Loaded) -> Vec<String> {
    loaded.objects.routes.keys().map(|name| name.name.to_string()).collect()
}

async fn until(loaded: &mut watch::Receiver<Loaded>, expected: &[&str]) {
    let waited = loaded.wait_for(|loaded| hosts(loaded) == expected);
    if tokio::time::timeout(PATIENCE, waited).await.is_err() {
        panic!("{:?} instead of {expected:?}", hosts(&loaded.borrow()));
    }
}

/// Waits until the server was asked for so many lists.
async fn listed(api: &Api, collection: &str, lists: usize) {
    let waited = async {
        while api.lists(collection) < lists {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.expect("a list");
}

async fn objects(api: &Api, client: &kube::Client) -> watch::Receiver<Loaded> {
    for host in ["a", "b", "c"] {
        api.change(ROUTES, host, Some(route(host)));
    }
    let mut source = ClusterSource::watch(client, Controller::default());
    tokio::time::timeout(PATIENCE, source.complete()).await.unwrap();
    let mut loaded = source.loaded();
    tokio::spawn(source.run());
    until(&mut loaded, &["a", "b", "c"]).await;
    loaded
}

#[tokio::test]
async fn a_watch_that_breaks_is_taken_up_where_it_ended() {
    let (api, client) = Api::start().await;
    let mut loaded = objects(&api, &client).await;
    api.change(ROUTES, "d", Some(route("d")));
    until(&mut loaded, &["a", "b", "c", "d"]).await;
    api.cut(false);
    api.change(ROUTES, "a", None);
    until(&mut loaded, &["b", "c", "d"]).await;
    assert_eq!(api.lists(ROUTES), 1, "nothing was listed again");
}

#[tokio::test]
async fn what_happened_in_a_gap_is_found_by_a_list() {
    let (api, client) = Api::start().await;
    let mut loaded = objects(&api, &client).await;
    api.down(true);
    api.change(ROUTES, "a", None);
    api.change(ROUTES, "d", Some(route("d")));
    api.cut(true);
    api.down(false);
    until(&mut loaded, &["b", "c", "d"]).await;
    assert!(api.lists(ROUTES) > 1);
}

#[tokio::test]
async fn nothing_changes_while_the_server_is_down_nor_when_it_is_back() {
    let (api, client) = Api::start().await;
    api.change(SLICES, "orders", Some(slice("orders", true)));
    let mut endpoints = Endpoints::watch(client.clone());
    tokio::time::timeout(PATIENCE, endpoints.complete()).await.unwrap();
    let mut views = endpoints.views();
    tokio::spawn(endpoints.run());
    let mut loaded = objects(&api, &client).await;
    loaded.mark_unchanged();
    views.mark_unchanged();
    api.down(true);
    api.cut(true);
    let (routes, slices) = (api.lists(ROUTES), api.lists(SLICES));
    api.down(false);
    listed(&api, ROUTES, routes + 1).await;
    listed(&api, SLICES, slices + 1).await;
    // What comes after the list shows that the list was taken up.
    api.change(SLICES, "orders", Some(slice("orders", false)));
    tokio::time::timeout(PATIENCE, views.changed()).await.unwrap().unwrap();
    let view = views.borrow_and_update().clone();
    assert!(
        !view.services[&ObjectName::new("shop", "orders")].ports[""][0].ready,
        "the first change is the new one"
    );
    api.change(ROUTES, "d", Some(route("d")));
    tokio::time::timeout(PATIENCE, loaded.changed()).await.unwrap().unwrap();
    assert_eq!(hosts(&loaded.borrow()), ["a", "b", "c", "d"]);
}

#[tokio::test]
async fn a_server_that_comes_back_with_nothing_deletes_nothing() {
    let (api, client) = Api::start().await;
    let mut loaded = objects(&api, &client).await;
    api.down(true);
    api.script.lock().unwrap().objects.clear();
    api.cut(true);
    api.down(false);
    // It is alive, and what it says from now on counts.
    listed(&api, ROUTES, 2).await;
    api.change(ROUTES, "d", Some(route("d")));
    until(&mut loaded, &["a", "b", "c", "d"]).await;
    const { assert!(CONFIRM.as_secs() >= 60, "longer than this test") };
}

#[tokio::test]
async fn whose_an_address_is_follows_the_pods() {
    let (api, client) = Api::start().await;
    let pod = |name: &str, ip: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "shop" },
            "spec": { "containers": [{ "name": "a", "image": "b" }] },
            "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] },
        })
    };
    api.change(PODS, "a", Some(pod("a", "10.1.0.1")));
    let (pods, following) = Pods::watch(client);
    tokio::spawn(following);
    tokio::time::timeout(PATIENCE, pods.complete()).await.expect("a list");
    let is_of_shop = |address: [u8; 4]| pods.namespaces_of(address.into()).contains("shop");
    assert!(is_of_shop([10, 1, 0, 1]) && !is_of_shop([10, 1, 0, 2]));
    api.change(PODS, "b", Some(pod("b", "10.1.0.2")));
    api.change(PODS, "a", None);
    let followed = async {
        while is_of_shop([10, 1, 0, 1]) || !is_of_shop([10, 1, 0, 2]) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, followed).await.expect("what the watch says");
}
