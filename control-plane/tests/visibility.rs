//! What a client may be told of: the view of its own namespace, where its address may be told of that; all else is
//! answered as what does not exist.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pontoon_xds::ResourceType;
use pontoon_xds::client::{self, Config, Handler, Rejected, Status, Subscriptions, Update};
use pontoon_xds::pb::envoy::config::core::v3::Node;
use rig::{PATIENCE, Served};
use tokio::sync::watch;

#[path = "rig/served.rs"]
mod rig;

/// Two namespaces that have a pool of the same name.
const OBJECTS: &str = "
apiVersion: pontoon.dev/v1alpha1
kind: Pool
metadata: { name: orders, namespace: a }
spec: { endpoints: [{ address: 192.0.2.1, port: 80 }] }
---
apiVersion: pontoon.dev/v1alpha1
kind: Pool
metadata: { name: orders, namespace: b }
spec: { endpoints: [{ address: 192.0.2.2, port: 80 }] }
---
apiVersion: pontoon.dev/v1alpha1
kind: Pool
metadata: { name: vault, namespace: b }
spec: { endpoints: [{ address: 192.0.2.3, port: 80 }] }
";
const TENANTS: &str = "tenants: [{name: a, namespaces: [a], networks: [127.0.0.0/8]}]";

type Answers = BTreeMap<(ResourceType, Arc<str>), bool>;

/// Keeps of each name whether it exists.
struct Told(Arc<watch::Sender<Answers>>);

impl Handler for Told {
    fn apply(&mut self, update: Update) -> Vec<Rejected> {
        self.0.send_modify(|answers| {
            let there = update.changed.into_iter().map(|resource| (resource.name, true));
            let all = there.chain(update.removed.into_iter().map(|name| (name, false)));
            answers.extend(all.map(|(name, exists)| ((update.ty, name), exists)));
        });
        Vec::new()
    }
}

/// A client of a namespace that asks for these, and what it is told.
fn ask(
    served: &Served,
    namespace: &str,
    asked: &[(ResourceType, &str)],
) -> (watch::Receiver<Answers>, watch::Receiver<Status>) {
    let node = Node { id: "probe".into(), cluster: namespace.into(), ..Node::default() };
    let config = Config::new(format!("http://{}", served.xds).parse().unwrap(), node);
    let subscriptions = Subscriptions::default();
    for ty in ResourceType::ALL {
        let names: BTreeSet<Arc<str>> =
            asked.iter().filter(|(of, _)| *of == ty).map(|(_, name)| Arc::from(*name)).collect();
        if !names.is_empty() {
            subscriptions.set(ty, names);
        }
    }
    let (answers, status) = (Arc::new(watch::Sender::new(Answers::new())), watch::Sender::default());
    let (told, how) = (answers.subscribe(), status.subscribe());
    tokio::spawn(client::run(config, subscriptions, Told(answers), status));
    (told, how)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_to_be_seen_is_answered_as_what_is_not_there() {
    let served = Served::start(OBJECTS).await;
    let (listener, route) = (ResourceType::Listener, ResourceType::Route);
    let asked = [
        (listener, "orders"),
        (listener, "orders.a"),
        (route, "a/orders"),
        (listener, "orders.b"),
        (listener, "vault"),
        (listener, "nowhere"),
        (route, "b/vault"),
        (route, "b/nowhere"),
    ];
    let (mut told, _) = ask(&served, "a", &asked);
    let all = told.wait_for(|told| told.len() == asked.len());
    let all = tokio::time::timeout(PATIENCE, all).await.expect("not all is answered").unwrap().clone();
    for (position, (ty, name)) in asked.into_iter().enumerate() {
        assert_eq!(all[&(ty, name.into())], position < 3, "{ty:?} {name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_for_its_tenants_networks() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("objects")).unwrap();
    std::fs::write(dir.path().join("objects/shop.yaml"), OBJECTS).unwrap();
    std::fs::write(dir.path().join("tenants.yaml"), TENANTS).unwrap();
    let any = "127.0.0.1:0";
    let args = ["--eureka-listen", any, "--xds-listen", any, "--xds-tenants", "tenants.yaml"];
    let served = Served::with(dir, &args).await;
    let orders = [(ResourceType::Listener, "orders")];
    let (mut told, _) = ask(&served, "a", &orders);
    let own = told.wait_for(|told| told.get(&(ResourceType::Listener, "orders".into())) == Some(&true));
    tokio::time::timeout(PATIENCE, own).await.expect("its own is not given").unwrap();

    // Also where there is no such namespace: it is not told which there are.
    for namespace in ["b", "b/edge", "nowhere", ""] {
        let (told, mut status) = ask(&served, namespace, &orders);
        let refused = status.wait_for(|status| {
            let error = status.last_error.as_deref().unwrap_or_default();
            error.contains("PermissionDenied") && error.contains("--xds-tenants")
        });
        tokio::time::timeout(PATIENCE, refused).await.expect("it is not refused").unwrap();
        assert!(told.borrow().is_empty(), "{namespace}");
    }
}
