use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Mutex;

use http::{Method, Request, Response};
use k8s_openapi::api::apps::v1::Deployment;
use kube::client::Body;
use serde_json::json;
use tokio::sync::Notify;

use super::*;
use crate::compile::Compiled;
use crate::compile::standing::Standings as CompiledStandings;
use crate::infrastructure::provision::{GATEWAY, ServiceType};
use crate::model::Model;
use crate::objects::GatewayClass;

fn settings() -> Settings {
    Settings {
        image: "pontoon-proxy:1".to_owned(),
        pull_policy: None,
        xds_server: "http://pontoon:18000".to_owned(),
        service_type: ServiceType::LoadBalancer,
        controller: Controller::default(),
    }
}

/// With the Gateway shop/edge of our class `fast`.
fn world() -> Arc<World> {
    let mut objects = Objects::default();
    let class = json!({ "metadata": { "name": "fast" }, "spec": { "controllerName": CONTROLLER } });
    let class: GatewayClass = serde_json::from_value(class).unwrap();
    objects.gateway_classes.insert(ObjectName::new("", "fast"), Arc::new(class));
    let gateway = json!({
        "metadata": { "name": "edge", "namespace": "shop", "uid": "u-1" },
        "spec": { "gatewayClassName": "fast", "listeners": [] },
    });
    let (name, gateway) = (ObjectName::new("shop", "edge"), serde_json::from_value(gateway).unwrap());
    objects.gateways.insert(name.clone(), Arc::new(gateway));
    let ports = BTreeMap::from([(name, BTreeSet::from([80]))]);
    let standings = Arc::new(CompiledStandings { ports, ..CompiledStandings::default() });
    Arc::new(World {
        model: Model { objects: Arc::new(objects), ..Model::default() },
        compiled: Arc::new(Compiled { standings, ..Compiled::default() }),
        ..World::default()
    })
}

#[tokio::test(start_paused = true)]
async fn pods_are_heard_of_while_gateways_are_applied() {
    let asked = Arc::new(Notify::new());
    let was_asked = asked.clone();
    let silent = tower::service_fn(move |_: Request<Body>| {
        was_asked.notify_one();
        std::future::pending::<Result<Response<Body>, Infallible>>()
    });
    let (hand_on, news) = mpsc::channel(QUEUE);
    let client = Client::new(silent, "default");
    let provisioner = Provisioner::new(&client, settings(), news, Default::default());
    let (proxies, mut clients) = (provisioner.proxies(), provisioner.clients());
    let (world_in, world_out) = watch::channel(Arc::default());
    let (_leads, leads) = watch::channel(true);
    let running = tokio::spawn(provisioner.run(world_out, leads, CancellationToken::new()));
    world_in.send_replace(world());
    asked.notified().await;

    let since = Instant::now();
    let (name, address) = (ObjectName::new("shop", "edge-1"), IpAddr::from([10, 1, 0, 1]));
    let pod = json!({
        "metadata": { "name": "edge-1", "namespace": "shop", "annotations": { GATEWAY: "edge" } },
        "status": { "podIP": "10.1.0.1" },
    });
    let pod = seen::proxy(&serde_json::from_value(pod).unwrap());
    hand_on.send(Some(News::Pod(Heard::Applied(name.clone(), pod)))).await.unwrap();
    clients.changed().await.unwrap();
    assert!(proxies.load().contains_key(&address));
    hand_on.send(Some(News::Pod(Heard::Deleted(name)))).await.unwrap();
    clients.changed().await.unwrap();
    assert!(proxies.load().is_empty(), "the address may be another's by now");
    assert!(since.elapsed() < PATIENCE, "the API server is still waited for");
    running.abort();
}

#[tokio::test]
async fn what_a_class_before_has_made_serves_until_what_is_to_come_is_there() {
    let owner = json!([{
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": "edge", "uid": "u-1",
        "controller": true,
    }]);
    let before = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "edge-slow", "namespace": "shop", "annotations": { GATEWAY: "edge" }, "ownerReferences": owner,
        },
    });
    for (refuses, is_deleted) in [(true, false), (false, true)] {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (asking, there) = (asked.clone(), before.clone());
        let server = tower::service_fn(move |request: Request<Body>| {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let status = |code: u16, reason: &str| {
                let body = json!({ "kind": "Status", "status": "Failure", "code": code, "reason": reason });
                (code, body)
            };
            let (code, body) = match method {
                Method::GET if !path.ends_with("/edge-slow") => status(404, "NotFound"),
                Method::POST | Method::PATCH if refuses => status(422, "Invalid"),
                _ => (200, there.clone()),
            };
            asking.lock().unwrap().push((method, path));
            let answer = Response::builder().status(code).body(Body::from(body.to_string().into_bytes()));
            std::future::ready(Ok::<_, Infallible>(answer.unwrap()))
        });
        let (_hand_on, news) = mpsc::channel(QUEUE);
        let client = Client::new(server, "default");
        let mut provisioner = Provisioner::new(&client, settings(), news, Default::default());
        let made = Made::service(&serde_json::from_value(before.clone()).unwrap());
        let heard = Heard::Applied(ObjectName::new("shop", "edge-slow"), made);
        provisioner.seen.hear(News::Service(heard), Instant::now());
        let (_leads, leads) = watch::channel(true);
        let again = provisioner.make(&world(), &leads).await;
        assert_eq!(again.is_some(), refuses);
        let asked = asked.lock().unwrap();
        assert!(asked.iter().any(|(_, path)| path.ends_with("/edge-fast")), "{asked:?}");
        let deleted = asked.iter().filter(|(method, _)| method == Method::DELETE);
        assert_eq!(deleted.count() > 0, is_deleted, "{asked:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_undone_each_time_is_left_for_longer_and_longer() {
    let (mut undone, mut waited) = (None, Vec::new());
    let mut now = Instant::now();
    for _ in 0..8 {
        let next = Undone::after(undone.as_ref(), now);
        waited.push(next.waited.as_secs());
        now = next.rests_until + Duration::from_secs(1);
        undone = Some(next);
    }
    assert_eq!(waited, [2, 4, 8, 16, 32, 64, 120, 120]);
    assert_eq!(Undone::after(undone.as_ref(), now + MAX_RETRY).waited, RETRY, "that was another time");
}

#[test]
fn what_was_made_stays_until_the_class_is_known_to_be_anothers() {
    let of = |class: &str, controller: Option<&str>| {
        let mut objects = Objects::default();
        let gateway = serde_json::json!({
            "metadata": { "name": "edge", "namespace": "shop", "uid": "u-1" },
            "spec": { "gatewayClassName": class, "listeners": [] },
        });
        let gateway: Gateway = serde_json::from_value(gateway).unwrap();
        objects.gateways.insert(ObjectName::new("shop", "edge"), Arc::new(gateway));
        if let Some(controller) = controller {
            let class_object = serde_json::json!({
                "metadata": { "name": class }, "spec": { "controllerName": controller },
            });
            let class_object: GatewayClass = serde_json::from_value(class_object).unwrap();
            objects.gateway_classes.insert(ObjectName::new("", class), Arc::new(class_object));
        }
        objects
    };
    let made = |owner: &str| {
        let deployment = serde_json::json!({ "metadata": {
            "name": "edge-fast", "namespace": "shop", "annotations": { GATEWAY: "edge" },
            "ownerReferences": [{
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "name": "edge", "uid": owner,
                "controller": true,
            }],
        } });
        Made::deployment(&serde_json::from_value(deployment).unwrap()).unwrap()
    };
    let is_left = |objects: &Objects| is_left(objects, &ObjectName::new("shop", "edge-fast"), &made("u-1"));
    assert!(!is_left(&of("fast", Some(CONTROLLER))));
    assert!(!is_left(&of("fast", None)), "the class was deleted, or cannot be read");
    assert!(is_left(&of("fast", Some("example.com/gateways"))), "it is another's");
    assert!(is_left(&of("slow", None)), "the Gateway names another class");
    assert!(!is_left(&Objects::default()), "it goes with its Gateway");
    let other = made("u-0");
    let objects = of("fast", Some("example.com/gateways"));
    assert!(!super::is_left(&objects, &ObjectName::new("shop", "edge-fast"), &other), "not this Gateway's");
}

#[test]
fn what_another_installation_has_made_is_nobodys_here() {
    let made = |annotations: serde_json::Value| -> Deployment {
        let metadata = serde_json::json!({ "name": "edge-pontoon", "annotations": annotations });
        serde_json::from_value(serde_json::json!({ "metadata": metadata })).unwrap()
    };
    let (usual, other) = (Controller::default(), "example.com/gateways".parse::<Controller>().unwrap());
    let unmarked = made(serde_json::json!({}));
    assert!(is_by(&usual, &unmarked) && !is_by(&other, &unmarked));
    let marked = made(serde_json::json!({ CONTROLLER_NAME: "example.com/gateways" }));
    assert!(!is_by(&usual, &marked) && is_by(&other, &marked));
}

#[tokio::test(start_paused = true)]
async fn what_fails_as_it_was_is_tried_less_and_less() {
    let now = |wanted| Applied { wanted, ..Applied::default() };
    let mut failed = Failed::after(None, now(1));
    assert_eq!(failed.again_at.saturating_duration_since(Instant::now()), RETRY);
    for _ in 0..9 {
        failed = Failed::after(Some(&failed), now(1));
    }
    assert_eq!(failed.again_at.saturating_duration_since(Instant::now()), MAX_RETRY);
    assert_eq!(Failed::after(Some(&failed), now(2)).waited, RETRY, "another was tried");
}
