use imbl::OrdMap;
use serde_json::json;

use super::*;
use crate::compile::{Compiled, compile};
use crate::model::Model;
use crate::objects::service::Service;
use crate::objects::{GrpcRoute, HttpRoute};

fn name(namespace: &str, name: &str) -> ObjectName {
    ObjectName::new(namespace, name)
}

fn service(addresses: &[&str], ports: &[(&str, u16)]) -> Arc<Service> {
    let port =
        |(name, port): &(&str, u16)| ServicePort { name: (*name).into(), port: *port, app_protocol: None };
    Arc::new(Service {
        ports: ports.iter().map(port).collect(),
        cluster_ips: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ..Service::default()
    })
}

/// Services `shop/orders` at two ports and two addresses, and `shop/stock`.
fn objects() -> Objects {
    let services = [
        (name("shop", "orders"), service(&["10.96.0.1", "fd00::1"], &[("http", 80), ("admin", 8080)])),
        (name("shop", "stock"), service(&["10.96.0.2"], &[("", 80)])),
        (name("shop", "headless"), service(&[], &[("", 80)])),
    ];
    Objects { services: services.into_iter().collect(), ..Objects::default() }
}

fn with(routes: &[serde_json::Value]) -> Objects {
    let read = |route: &serde_json::Value| {
        let route: HttpRoute = serde_json::from_value(route.clone()).unwrap();
        let metadata = &route.metadata;
        let key = name(metadata.namespace.as_deref().unwrap(), metadata.name.as_deref().unwrap());
        (key, Arc::new(route))
    };
    Objects { routes: routes.iter().map(read).collect(), ..objects() }
}

fn route(namespace: &str, called: &str, parent: serde_json::Value, backend: &str) -> serde_json::Value {
    let mut parent = parent;
    (parent["group"], parent["kind"]) = (json!(""), json!("Service"));
    json!({
        "metadata": { "name": called, "namespace": namespace },
        "spec": {
            "parentRefs": [parent],
            "rules": [{ "backendRefs": [{ "name": backend, "namespace": "shop", "port": 80 }] }],
        },
    })
}

fn compiled(objects: Objects) -> Compiled {
    compile(&Model { objects: Arc::new(objects), ..Model::default() })
}

/// What a namespace's sidecars are told that they may ask for by destination or port: the names of listeners.
fn frontends(compiled: &Compiled, namespace: &str) -> Vec<String> {
    let view = compiled.views.get(namespace).unwrap_or(&compiled.views[""]);
    view.resources(pontoon_xds::ResourceType::Listener).keys().map(ToString::to_string).collect()
}

/// The names of the routes of a port, and whether their clusters are there too.
fn rules(compiled: &Compiled, namespace: &str, port: &str) -> Vec<String> {
    let view = compiled.views.get(namespace).unwrap_or(&compiled.views[""]);
    let routes = view.get(pontoon_xds::ResourceType::Route, port).expect(port);
    let routes: RouteConfiguration = routes.decode().unwrap();
    assert_eq!(routes.virtual_hosts.len(), 1, "{port}");
    routes.virtual_hosts[0].routes.iter().map(|route| route.name.clone()).collect()
}

fn said(compiled: &Compiled, kind: Kind, route: &ObjectName) -> Vec<(&'static str, bool, &'static str)> {
    let object = ObjectRef { kind, name: route.clone() };
    let Some([parent]) = compiled.standings.routes.get(&object).map(|said| said.as_slice()) else {
        return Vec::new();
    };
    parent.conditions.iter().map(|said| (said.kind, said.status, said.reason)).collect()
}

const GOOD: [(&str, bool, &str); 2] =
    [("Accepted", true, "Accepted"), ("ResolvedRefs", true, "ResolvedRefs")];

#[test]
fn a_producers_route_holds_everywhere_at_each_address_of_the_ports_that_it_names() {
    let compiled = compiled(with(&[route("shop", "all", json!({ "name": "orders", "port": 80 }), "stock")]));
    assert_eq!(said(&compiled, Kind::HttpRoute, &name("shop", "all")), GOOD);
    let long = ["orders.shop.svc.cluster.local:80", "orders.shop.svc:80", "orders.shop:80"];
    let mut expected = vec!["10.96.0.1:80", "[fd00::1]:80"];
    expected.extend(long);
    assert_eq!(frontends(&compiled, "bank"), expected);
    expected.insert(2, "orders:80");
    let mut own = frontends(&compiled, "shop");
    own.sort();
    expected.sort_unstable();
    assert_eq!(own, expected, "the short name is for its own namespace");
    assert_eq!(rules(&compiled, "bank", "shop/orders:80"), ["shop/all/0/0"]);
    let clusters = compiled.views[""].resources(pontoon_xds::ResourceType::Cluster);
    assert!(clusters.contains_key("service/shop/stock/80"), "{clusters:?}");
}

#[test]
fn of_another_namespaces_services_nothing_is_told() {
    let of = |namespace: &str, parent: serde_json::Value| {
        let compiled = compiled(with(&[route(namespace, "r", parent, "orders")]));
        let object = ObjectRef { kind: Kind::HttpRoute, name: name(namespace, "r") };
        compiled.standings.routes[&object][0].conditions[0].message.clone()
    };
    let nearly = || json!({ "name": "order", "namespace": "shop" });
    let begin = "spec.parentRefs[0].name: there is no Service shop/order";
    assert_eq!(of("shop", nearly()), format!("{begin}; did you mean orders?"));
    assert_eq!(of("bank", nearly()), begin);
    let other_port = || json!({ "name": "orders", "namespace": "shop", "port": 81 });
    let begin = "spec.parentRefs[0]: Service shop/orders has no TCP port with that sectionName and port";
    assert_eq!(of("shop", other_port()), format!("{begin}; it has http:80, admin:8080"));
    assert_eq!(of("bank", other_port()), begin);
}

#[test]
fn a_parent_without_port_is_all_ports_and_a_section_is_one_by_name() {
    let all = compiled(with(&[route("shop", "all", json!({ "name": "orders" }), "orders")]));
    for port in ["10.96.0.1:80", "10.96.0.1:8080"] {
        assert!(frontends(&all, "bank").iter().any(|name| name == port), "{port}");
    }
    let one = json!({ "name": "orders", "sectionName": "admin" });
    let one = compiled(with(&[route("shop", "one", one, "orders")]));
    assert!(frontends(&one, "bank").iter().all(|name| name.ends_with(":8080")));
    assert!(!frontends(&one, "bank").is_empty());
}

#[test]
fn a_consumers_route_holds_in_its_namespace_alone_and_there_in_place_of_the_producers() {
    let to = json!({ "name": "orders", "namespace": "shop" });
    let all = compiled(with(&[
        route("shop", "theirs", json!({ "name": "orders", "port": 80 }), "orders"),
        route("bank", "ours", to, "orders"),
    ]));
    assert_eq!(said(&all, Kind::HttpRoute, &name("bank", "ours")), GOOD);
    assert_eq!(rules(&all, "shop", "shop/orders:80"), ["shop/theirs/0/0"]);
    assert_eq!(rules(&all, "other", "shop/orders:80"), ["shop/theirs/0/0"]);
    assert_eq!(rules(&all, "bank", "shop/orders:80"), ["bank/ours/0/0"]);
    assert_eq!(rules(&all, "bank", "shop/orders:8080"), ["bank/ours/0/0"]);
    assert!(!frontends(&all, "other").iter().any(|name| name.ends_with(":8080")));
}

#[test]
fn to_services_of_others_sidecars_need_no_grant_but_to_all_else_and_gateways_do() {
    let to = || json!({ "name": "orders", "namespace": "shop" });
    let key = name("bank", "ours");
    let sent = route("bank", "ours", to(), "stock");
    assert_eq!(said(&compiled(with(std::slice::from_ref(&sent))), Kind::HttpRoute, &key), GOOD);
    let refused = [GOOD[0], ("ResolvedRefs", false, "RefNotPermitted")];
    let mut pool = sent.clone();
    pool["spec"]["rules"][0]["backendRefs"][0]["group"] = json!("pontoon.dev");
    pool["spec"]["rules"][0]["backendRefs"][0]["kind"] = json!("Pool");
    assert_eq!(said(&compiled(with(&[pool])), Kind::HttpRoute, &key), refused);
    let mut both = sent;
    both["spec"]["parentRefs"].as_array_mut().unwrap().push(json!({ "name": "edge" }));
    assert_eq!(said(&compiled(with(&[both])), Kind::HttpRoute, &key), refused);
}

#[test]
fn the_older_route_goes_first_and_exact_paths_before_others() {
    let mut exact = route("shop", "exact", json!({ "name": "orders", "port": 80 }), "stock");
    exact["spec"]["rules"][0]["matches"] = json!([{ "path": { "type": "Exact", "value": "/v1" } }]);
    let mut old = route("shop", "old", json!({ "name": "orders" }), "orders");
    old["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    let young = route("shop", "a-young", json!({ "name": "orders" }), "orders");
    let all = compiled(with(&[exact, old, young]));
    let expected = ["shop/exact/0/0", "shop/old/0/0", "shop/a-young/0/0"];
    assert_eq!(rules(&all, "shop", "shop/orders:80"), expected);
    assert_eq!(rules(&all, "shop", "shop/orders:8080"), &expected[1..]);
}

#[test]
fn what_is_no_parent_is_said() {
    for (parent, reason, words) in [
        (
            json!({ "name": "order" }),
            "NoMatchingParent",
            "there is no Service shop/order; did you mean orders?",
        ),
        (json!({ "name": "orders", "port": 81 }), "NoMatchingParent", "it has http:80, admin:8080"),
        (json!({ "name": "orders", "port": 80, "sectionName": "admin" }), "NoMatchingParent", "no TCP port"),
        (json!({ "name": "headless" }), "UnsupportedValue", "has no cluster IP"),
    ] {
        let wrong = compiled(with(&[route("shop", "wrong", parent.clone(), "orders")]));
        let [accepted, _] = said(&wrong, Kind::HttpRoute, &name("shop", "wrong")).try_into().unwrap();
        assert_eq!(accepted, ("Accepted", false, reason), "{parent}");
        let object = ObjectRef { kind: Kind::HttpRoute, name: name("shop", "wrong") };
        let messages: Vec<_> = wrong.statuses.of(&object).iter().map(|said| said.message.as_str()).collect();
        assert!(messages.iter().any(|message| message.contains(words)), "{messages:?}");
        assert_eq!(frontends(&wrong, "shop"), Vec::<String>::new(), "{parent}");
    }
}

#[test]
fn grpc_routes_speak_http2_and_hold_alone_at_their_ports() {
    let calls = route("shop", "calls", json!({ "name": "orders", "port": 8080 }), "stock");
    let calls: GrpcRoute = serde_json::from_value(calls).unwrap();
    let grpc_routes = OrdMap::unit(name("shop", "calls"), Arc::new(calls));
    let at =
        |port: u16| route("shop", &format!("at-{port}"), json!({ "name": "orders", "port": port }), "orders");
    let all = route("shop", "all", json!({ "name": "orders" }), "orders");
    let compiled = compiled(Objects { grpc_routes, ..with(&[at(80), at(8080), all]) });
    assert_eq!(said(&compiled, Kind::GrpcRoute, &name("shop", "calls")), GOOD);
    assert_eq!(rules(&compiled, "shop", "shop/orders:8080"), ["GRPCRoute/shop/calls/0/0"]);
    assert!(compiled.clusters.contains_key("service/shop/stock/80/h2"));
    // Where they hold no others do.
    assert_eq!(
        said(&compiled, Kind::HttpRoute, &name("shop", "at-8080"))[0],
        ("Accepted", false, "Conflicted")
    );
    assert_eq!(said(&compiled, Kind::HttpRoute, &name("shop", "all")), GOOD);
    assert_eq!(rules(&compiled, "shop", "shop/orders:80"), ["shop/all/0/0", "shop/at-80/0/0"]);
}

#[test]
fn a_name_that_stands_for_a_pool_has_the_rules_of_the_service_of_that_name() {
    let pool = serde_json::from_value(json!({
        "metadata": { "name": "orders", "namespace": "shop" },
        "spec": { "endpoints": [{ "address": "10.0.0.1", "port": 8080 }] },
    }));
    let mut objects = with(&[route("shop", "all", json!({ "name": "orders", "port": 8080 }), "stock")]);
    objects.pools = OrdMap::unit(name("shop", "orders"), Arc::new(pool.unwrap()));
    let compiled = compiled(objects);
    let routes = compiled.views["shop"].get(pontoon_xds::ResourceType::Route, "shop/orders").unwrap();
    let routes: RouteConfiguration = routes.decode().unwrap();
    let hosts: Vec<(&str, &str)> = routes
        .virtual_hosts
        .iter()
        .map(|host| (host.domains[0].as_str(), host.routes[0].name.as_str()))
        .collect();
    assert_eq!(hosts, [("*", "shop/orders"), ("*:8080", "shop/all/0/0")]);
    let clusters = compiled.views["shop"].resources(pontoon_xds::ResourceType::Cluster);
    assert!(clusters.contains_key("service/shop/stock/80") && clusters.contains_key("pool/shop/orders"));
}

#[test]
fn a_mesh_of_ours_has_no_parameters() {
    let mesh = |parameters: serde_json::Value| {
        let spec =
            json!({ "controllerName": crate::objects::controller::CONTROLLER, "parametersRef": parameters });
        let mesh = serde_json::from_value(json!({ "metadata": { "name": "mesh" }, "spec": spec })).unwrap();
        compiled(Objects { meshes: OrdMap::unit(name("", "mesh"), Arc::new(mesh)), ..Objects::default() })
    };
    let object = ObjectRef { kind: Kind::Mesh, name: name("", "mesh") };
    let refused = |compiled: &Compiled| {
        compiled.statuses.of(&object).iter().find(|said| !said.status).map(|said| said.reason)
    };
    assert_eq!(refused(&mesh(json!(null))), None);
    let parameters = json!({ "group": "", "kind": "ConfigMap", "name": "mesh", "namespace": "default" });
    assert_eq!(refused(&mesh(parameters)), Some("InvalidParameters"));
}
