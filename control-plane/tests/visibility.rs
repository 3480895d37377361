//! What a client may be told of: the view of its own namespace, where its address may be told of that; all else is
//! answered as what does not exist.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pontoon_xds::client::{self, Config, Handler, Rejected, Status, Subscriptions, Update};
use pontoon_xds::pb::envoy::config::core::v3::Node;
use pontoon_xds::{ResourceType, Variant};
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
/// A gateway of `a`; that of `default`, with secrets, is another folder's.
const GATEWAY: &str = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: edge, namespace: a }
spec: { gatewayClassName: pontoon, listeners: [{ name: http, port: 8080, protocol: HTTP }] }
---
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
    variant: Variant,
    asked: &[(ResourceType, &str)],
) -> (watch::Receiver<Answers>, watch::Receiver<Status>) {
    let node = Node { id: "probe".into(), cluster: namespace.into(), ..Node::default() };
    let mut config = Config::new(format!("http://{}", served.xds).parse().unwrap(), node);
    config.variant = variant;
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
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/https/objects.yaml");
    let secrets = std::fs::read_to_string(golden).unwrap();
    let served = Served::start(&format!("{OBJECTS}{GATEWAY}{secrets}")).await;
    use ResourceType::{Cluster, Endpoint, Listener, Route, Secret};
    // For whom, what is there and what is not: another's, nobody's.
    type Names<'n> = &'n [(ResourceType, &'n str)];
    let all: [(&str, Names<'_>, Names<'_>); 3] = [
        (
            "a",
            &[
                (Listener, "orders"),
                (Listener, "orders.a"),
                (Route, "a/orders"),
                (Cluster, "pool/a/orders"),
                (Endpoint, "pool/a/orders"),
            ],
            &[
                (Listener, "orders.b"),
                (Listener, "vault"),
                (Listener, "nowhere"),
                (Listener, "a/edge/http"),
                (Route, "b/vault"),
                (Route, "b/nowhere"),
                (Cluster, "pool/b/vault"),
                (Cluster, "pool/b/nowhere"),
                (Endpoint, "pool/b/vault"),
                (Endpoint, "pool/b/nowhere"),
                (Secret, "default/shop"),
            ],
        ),
        (
            "a/edge",
            &[(Listener, "a/edge/http"), (Route, "a/edge/http")],
            &[
                (Listener, "default/edge/shop"),
                (Route, "default/edge/shop"),
                (Cluster, "pool/default/shop"),
                (Endpoint, "pool/default/shop"),
                (Secret, "default/shop"),
                (Secret, "default/nowhere"),
            ],
        ),
        (
            "default/edge",
            &[
                (Listener, "default/edge/shop"),
                (Route, "default/edge/shop"),
                (Cluster, "pool/default/shop"),
                (Endpoint, "pool/default/shop"),
                (Secret, "default/shop"),
            ],
            &[(Listener, "a/edge/http"), (Cluster, "pool/a/orders"), (Secret, "b/shop")],
        ),
    ];
    for (node, there, absent) in all {
        let asked: Vec<_> = there.iter().chain(absent).copied().collect();
        for variant in [Variant::Delta, Variant::Sotw] {
            let (mut told, _) = ask(&served, node, variant, &asked);
            // In state of the world what does not exist is left out of the response that brings what does.
            let answered = match variant {
                Variant::Delta => asked.as_slice(),
                Variant::Sotw => there,
            };
            let is_answered = |told: &Answers| {
                answered.iter().all(|(ty, name)| told.contains_key(&(*ty, Arc::from(*name))))
            };
            let waited = tokio::time::timeout(PATIENCE, told.wait_for(is_answered)).await;
            let waited = waited.map(|answers| answers.map(drop));
            let said = told.borrow().clone();
            waited.unwrap_or_else(|_| panic!("{node} in {variant:?} is told only {said:?}")).unwrap();
            for (ty, name) in &asked {
                let is_there = said.get(&(*ty, Arc::from(*name))).copied().unwrap_or_default();
                assert_eq!(is_there, there.contains(&(*ty, name)), "{node}, {variant:?}: {ty:?} {name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_can_be_no_view_is_refused_with_what_would_be_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("objects")).unwrap();
    std::fs::write(dir.path().join("objects/shop.yaml"), OBJECTS).unwrap();
    let any = "127.0.0.1:0";
    let served = Served::with(dir, &["--eureka-listen", any, "--xds-listen", any]).await;
    for cluster in ["/", "a/", "/edge", "a/edge/b"] {
        let (_, mut status) = ask(&served, cluster, Variant::Delta, &[(ResourceType::Listener, "orders")]);
        let refused = status.wait_for(|status| {
            let error = status.last_error.as_deref().unwrap_or_default();
            error.contains("PermissionDenied") && error.contains("expected NAMESPACE/NAME of a Gateway")
        });
        tokio::time::timeout(PATIENCE, refused).await.expect(cluster).unwrap();
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
    let (mut told, _) = ask(&served, "a", Variant::Delta, &orders);
    let own = told.wait_for(|told| told.get(&(ResourceType::Listener, "orders".into())) == Some(&true));
    tokio::time::timeout(PATIENCE, own).await.expect("its own is not given").unwrap();

    // Also where there is no such namespace: it is not told which there are.
    for namespace in ["b", "b/edge", "nowhere", ""] {
        let (told, mut status) = ask(&served, namespace, Variant::Delta, &orders);
        let refused = status.wait_for(|status| {
            let error = status.last_error.as_deref().unwrap_or_default();
            error.contains("PermissionDenied") && error.contains("--xds-tenants")
        });
        tokio::time::timeout(PATIENCE, refused).await.expect("it is not refused").unwrap();
        assert!(told.borrow().is_empty(), "{namespace}");
    }
}
