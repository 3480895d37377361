//! What the compiler puts on the wire for a migration keeps its promises, whoever reads it: the split is
//! sticky, exact and monotone. One reader here is Envoy's rule in a few lines: `xxHash64(key) % total` falls
//! into the running sum of the weights. The other is the proxy's own code, which has to say the same.
#![allow(clippy::expect_used, clippy::panic, reason = "a broken helper is a failed test")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use http::{HeaderMap, Method};
use imbl::OrdMap;
use pontoon::compile;
use pontoon::model::Model;
use pontoon::model::migration::{MigrationState, Stage};
use pontoon::objects::migration::{CanaryMatch, HeaderMatch, Key, MigrationSpec, Side};
use pontoon::objects::pool::EurekaSource;
use pontoon::objects::{Gateway, HttpRoute, Migration, ObjectName, Objects};
use pontoon_proxy::config::Store;
use pontoon_proxy::route::RequestHead;
use pontoon_xds::ResourceType;
use pontoon_xds::client::Update;
use pontoon_xds::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use pontoon_xds::pb::envoy::config::route::v3::weighted_cluster::RandomValueSpecifier;
use pontoon_xds::pb::envoy::config::route::v3::{RouteConfiguration, WeightedCluster, route};
use proptest::prelude::*;
use tokio::time::Instant;
use twox_hash::XxHash64;

const TARGET: &str = "eureka/INVENTORY-NEW";
const LEGACY: &str = "eureka/INVENTORY";

fn side(application: &str) -> Side {
    let eureka = EurekaSource { application: application.into(), selector: BTreeMap::new() };
    Side { eureka: Some(eureka), ..Side::default() }
}

fn objects() -> Arc<Objects> {
    let name = ObjectName::new("default", "inventory");
    let gateway = serde_json::json!({
        "metadata": { "name": "inventory" },
        "spec": { "gatewayClassName": "pontoon", "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }] }
    });
    let route = serde_json::json!({
        "metadata": { "name": "inventory" },
        "spec": { "parentRefs": [{ "name": "inventory" }], "rules": [{ "backendRefs": [{ "name": "inventory" }] }] }
    });
    let gateway: Gateway = serde_json::from_value(gateway).expect("a gateway");
    let route: HttpRoute = serde_json::from_value(route).expect("a route");
    let header = HeaderMatch { name: "x-canary".into(), value: Some("yes".into()), regex: None };
    let spec = MigrationSpec {
        service: "inventory".into(),
        legacy: side("inventory"),
        target: side("inventory-new"),
        key: Some(Key { header: Some("x-user".into()), cookie: None }),
        canary: vec![CanaryMatch { header: Some(header), cookie: None }],
        ..MigrationSpec::default()
    };
    let migration = Migration::new("inventory", spec);
    Arc::new(Objects {
        gateways: OrdMap::unit(name.clone(), Arc::new(gateway)),
        routes: OrdMap::unit(name.clone(), Arc::new(route)),
        migrations: OrdMap::unit(name, Arc::new(migration)),
        ..Objects::default()
    })
}

fn model(objects: &Arc<Objects>, stage: Stage, weight: u16) -> Model {
    let state = MigrationState { stage, weight, ..MigrationState::initial(&MigrationSpec::default()) };
    let migrations = BTreeMap::from([(ObjectName::new("default", "inventory"), state)]);
    Model { objects: objects.clone(), migrations: Arc::new(migrations), ..Model::default() }
}

fn routes(objects: &Arc<Objects>, stage: Stage, weight: u16) -> RouteConfiguration {
    let compiled = compile::compile(&model(objects, stage, weight));
    let snapshot = &compiled.views["default/inventory"];
    let resource = snapshot.get(ResourceType::Route, "default/inventory/http").expect("the routes");
    resource.decode().expect("a route configuration")
}

fn choice(objects: &Arc<Objects>, stage: Stage, weight: u16) -> WeightedCluster {
    let configuration = routes(objects, stage, weight);
    let last = configuration.virtual_hosts[0].routes.last().expect("a route").clone();
    let Some(route::Action::Route(action)) = last.action else { panic!("no route action") };
    assert_eq!(action.hash_policy.len(), 1);
    let Some(ClusterSpecifier::WeightedClusters(choice)) = action.cluster_specifier else {
        panic!("no weights")
    };
    assert!(
        matches!(&choice.random_value_specifier, Some(RandomValueSpecifier::UseHashPolicy(yes)) if yes.value)
    );
    choice
}

fn decide<'c>(choice: &'c WeightedCluster, key: &str) -> &'c str {
    let weight =
        |index: usize| choice.clusters[index].weight.as_ref().map_or(0, |weight| u64::from(weight.value));
    let total: u64 = (0..choice.clusters.len()).map(weight).sum();
    let bucket = XxHash64::oneshot(0, key.as_bytes()) % total;
    let mut sum = 0;
    let index = (0..choice.clusters.len()).find(|index| {
        sum += weight(*index);
        bucket < sum
    });
    &choice.clusters[index.expect("a bucket")].name
}

fn keys() -> impl Iterator<Item = String> {
    (0..100_000).map(|user| format!("user-{user}"))
}

/// 100,000 users through a whole migration and back: at each step only those move that the step names.
#[test]
fn raising_the_weight_moves_users_to_the_target_only_and_lowering_brings_the_same_ones_back() {
    let objects = objects();
    let at = |weight| {
        let choice = choice(&objects, Stage::Split, weight);
        keys().map(|key| decide(&choice, &key) == TARGET).collect::<Vec<_>>()
    };
    let mut before = at(0);
    assert!(before.iter().all(|target| !target));
    for weight in [1, 50, 500, 2_000, 5_000, 5_001, 9_999, 10_000] {
        let now = at(weight);
        assert!(
            before.iter().zip(&now).all(|(before, now)| !before || *now),
            "someone went back at {weight}"
        );
        let share = now.iter().filter(|target| **target).count() as f64 / now.len() as f64;
        assert!((share - f64::from(weight) / 10_000.0).abs() < 0.01, "{weight}: {share}");
        before = now;
    }
    assert_eq!(at(500), at(500));
}

/// What the proxy decides for each key.
fn by_the_proxy(objects: &Arc<Objects>, weight: u16) -> Vec<bool> {
    let compiled = compile::compile(&model(objects, Stage::Split, weight));
    let mut store = Store::default();
    for ty in ResourceType::ALL {
        let changed = compiled.views["default/inventory"].resources(ty).values().cloned().collect();
        let rejected = store.apply(Update { ty, changed, removed: Vec::new() }, Instant::now());
        assert_eq!(rejected, []);
    }
    let listeners = store.live_listeners();
    let table = listeners[0].route_handles()[0].table.load_full().expect("a table");
    let uri = "/".parse().expect("a path");
    let target = |key: String| {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", key.parse().expect("a value"));
        let head = RequestHead {
            method: &Method::GET,
            uri: &uri,
            host: "localhost",
            headers: &headers,
            client: Ipv4Addr::LOCALHOST.into(),
            random: 0,
        };
        let decision = table.decide(&head, &mut ()).expect("a route");
        &*decision.target.expect("a cluster").cluster.name == TARGET
    };
    keys().map(target).collect()
}

#[test]
fn the_proxy_splits_as_envoys_rule_says() {
    let objects = objects();
    for weight in [0, 1, 500, 5_000, 10_000] {
        let choice = choice(&objects, Stage::Split, weight);
        let expected = keys().map(|key| decide(&choice, &key) == TARGET).collect::<Vec<_>>();
        assert!(by_the_proxy(&objects, weight) == expected, "at {weight}");
    }
}

#[test]
fn every_stage_has_both_sides_and_a_total_of_10000_target_first() {
    let objects = objects();
    for (stage, target) in
        [(Stage::Observe, 0), (Stage::Canary, 0), (Stage::Split, 700), (Stage::Cutover, 10_000)]
    {
        let choice = choice(&objects, stage, 700);
        let arms = choice.clusters.iter().map(|arm| (arm.name.as_str(), arm.weight.map_or(0, |w| w.value)));
        assert_eq!(arms.collect::<Vec<_>>(), [(TARGET, target), (LEGACY, 10_000 - target)], "{stage}");
    }
}

#[test]
fn canaries_are_asked_first_and_only_while_they_say_something() {
    let objects = objects();
    for (stage, canaries) in [(Stage::Observe, 0), (Stage::Canary, 1), (Stage::Split, 1), (Stage::Cutover, 0)]
    {
        let configuration = routes(&objects, stage, 700);
        assert_eq!(configuration.virtual_hosts[0].routes.len(), canaries + 1, "{stage}");
    }
}

proptest! {
    #[test]
    fn the_split_is_monotone_for_any_key_and_any_two_weights(
        key in ".{0,40}",
        low in 0_u16..=10_000,
        high in 0_u16..=10_000,
    ) {
        let (low, high) = (low.min(high), low.max(high));
        let objects = objects();
        let (below, above) = (choice(&objects, Stage::Split, low), choice(&objects, Stage::Split, high));
        prop_assert!(decide(&below, &key) == LEGACY || decide(&above, &key) == TARGET);
    }

    #[test]
    fn the_same_model_gives_the_same_bytes(weight in 0_u16..=10_000) {
        let first = prost::Message::encode_to_vec(&routes(&objects(), Stage::Split, weight));
        let second = prost::Message::encode_to_vec(&routes(&objects(), Stage::Split, weight));
        prop_assert_eq!(first, second);
    }
}
