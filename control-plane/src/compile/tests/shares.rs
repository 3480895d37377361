//! The shares of backends that cannot be used, on Kubernetes: there a name that is nobody's is a mistake.

use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::{Route, RouteConfiguration};

use super::*;
use crate::objects::Service;
use crate::objects::service::ServicePort;

fn compiled(kind: Kind, backends: serde_json::Value) -> Compiled {
    let name = |name: &str| ObjectName::new("default", name);
    let gateway = serde_json::from_value(json!({
        "metadata": { "name": "edge" },
        "spec": { "gatewayClassName": "pontoon", "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }] }
    }));
    let port = ServicePort { name: "".into(), port: 80, app_protocol: None };
    let service = Arc::new(Service { ports: vec![port], ..Service::default() });
    let mut objects = Objects {
        gateways: OrdMap::unit(name("edge"), Arc::new(gateway.expect("a gateway"))),
        services: OrdMap::from_iter([
            (name("shop"), service.clone()),
            (ObjectName::new("other", "shop"), service),
        ]),
        ..Objects::default()
    };
    let route = json!({
        "metadata": { "name": "shop" },
        "spec": { "parentRefs": [{ "name": "edge" }], "rules": [{ "backendRefs": backends }] }
    });
    match kind {
        Kind::GrpcRoute => {
            let route = serde_json::from_value(route).expect("a route");
            objects.grpc_routes.insert(name("shop"), Arc::new(route));
        }
        _ => {
            let route = serde_json::from_value(route).expect("a route");
            objects.routes.insert(name("shop"), Arc::new(route));
        }
    }
    compile(&Model { objects: Arc::new(objects), ..Model::default() })
}

fn routes(compiled: &Compiled) -> Vec<Route> {
    let table = compiled.views["default/edge"].get(ResourceType::Route, "default/edge/http").expect("routes");
    let table: RouteConfiguration = table.decode().expect("a route configuration");
    table.virtual_hosts.into_iter().flat_map(|host| host.routes).collect()
}

/// So many in a million, and what they are answered.
fn lot(route: &Route) -> Option<(u32, u32)> {
    let fraction = route.r#match.as_ref()?.runtime_fraction.as_ref()?.default_value?.numerator;
    match &route.action {
        Some(Action::DirectResponse(answer)) => Some((fraction, answer.status)),
        _ => None,
    }
}

fn cluster_of(route: &Route) -> Option<&str> {
    match &route.action {
        Some(Action::Route(action)) => match action.cluster_specifier.as_ref()? {
            ClusterSpecifier::Cluster(name) => Some(name.as_str()),
            _ => None,
        },
        _ => None,
    }
}

fn reason(compiled: &Compiled, kind: Kind) -> &'static str {
    let route = ObjectRef { kind, name: ObjectName::new("default", "shop") };
    let said = &compiled.standings.routes[&route][0].conditions;
    said.iter().find(|said| said.kind == "ResolvedRefs").expect("a condition").reason
}

#[test]
fn the_share_of_what_cannot_be_used_is_answered_500() {
    for (backend, expected) in [
        (json!({ "name": "gone", "port": 80 }), "BackendNotFound"),
        (json!({ "name": "shop", "port": 81 }), "BackendNotFound"),
        (json!({ "name": "shop", "namespace": "other", "port": 80 }), "RefNotPermitted"),
        (json!({ "name": "shop", "kind": "Deployment", "group": "apps" }), "InvalidKind"),
    ] {
        let compiled =
            compiled(Kind::HttpRoute, json!([{ "name": "shop", "port": 80, "weight": 3 }, backend]));
        assert_eq!(reason(&compiled, Kind::HttpRoute), expected, "{backend}");
        let routes = routes(&compiled);
        assert_eq!(routes.iter().map(lot).collect::<Vec<_>>(), [Some((250_000, 500)), None], "{backend}");
        assert_eq!(cluster_of(&routes[1]), Some("service/default/shop/80"), "{backend}");
        assert_eq!(compiled.views["default/edge"].get(ResourceType::Cluster, "unresolved"), None);
    }
}

#[test]
fn what_has_no_weight_has_no_share() {
    let backends = json!([{ "name": "shop", "port": 80 }, { "name": "gone", "port": 80, "weight": 0 }]);
    let compiled = compiled(Kind::HttpRoute, backends);
    assert_eq!(reason(&compiled, Kind::HttpRoute), "BackendNotFound");
    let routes = routes(&compiled);
    assert_eq!(routes.iter().map(cluster_of).collect::<Vec<_>>(), [Some("service/default/shop/80")]);
}

#[test]
fn however_small_a_share_is_it_is_some() {
    for (weights, expected) in [((1_000_000, 1), 1), ((1, 1_000_000), 999_999)] {
        let backends = json!([
            { "name": "shop", "port": 80, "weight": weights.0 },
            { "name": "gone", "port": 80, "weight": weights.1 },
        ]);
        let routes = routes(&compiled(Kind::HttpRoute, backends));
        assert_eq!(lot(&routes[0]), Some((expected, 500)), "{weights:?}");
    }
}

#[test]
fn to_grpc_it_is_unavailable() {
    let gone = json!({ "name": "gone", "port": 80 });
    let some = compiled(Kind::GrpcRoute, json!([{ "name": "shop", "port": 80 }, gone]));
    assert_eq!(reason(&some, Kind::GrpcRoute), "BackendNotFound");
    // A cluster without endpoints answers 503.
    assert!(some.views["default/edge"].get(ResourceType::Cluster, "unresolved").is_some());
    assert_eq!(routes(&some).len(), 1);
    let none = routes(&compiled(Kind::GrpcRoute, json!([gone])));
    let answers = none.iter().map(|route| match &route.action {
        Some(Action::DirectResponse(answer)) => answer.status,
        _ => 0,
    });
    assert_eq!(answers.collect::<Vec<_>>(), [503]);
}

#[test]
fn of_a_route_that_is_served_in_part_it_is_said_which_rules_are_not() {
    let read = |rules: serde_json::Value| {
        let mut model = model();
        let mut objects = (*model.objects).clone();
        let route = json!({
            "metadata": { "name": "s1" }, "spec": { "parentRefs": [{ "name": "edge" }], "rules": rules }
        });
        let route = serde_json::from_value(route).expect("a route");
        objects.routes.insert(ObjectName::new("default", "s1"), Arc::new(route));
        model.objects = Arc::new(objects);
        let route = ObjectRef { kind: Kind::HttpRoute, name: ObjectName::new("default", "s1") };
        compile(&model).standings.routes[&route][0].conditions.clone()
    };
    let good = json!({ "backendRefs": [{ "name": "s1" }] });
    let bad = json!({ "backendRefs": [{ "name": "s1" }], "sessionPersistence": { "sessionName": "s" } });
    let said = read(json!([bad, good, bad]));
    let words = |said: &[standing::Said]| -> Vec<(&str, bool, &str)> {
        said.iter().map(|said| (said.kind, said.status, said.reason)).collect()
    };
    let partly = [
        ("Accepted", true, "Accepted"),
        ("ResolvedRefs", true, "ResolvedRefs"),
        ("PartiallyInvalid", true, "UnsupportedValue"),
    ];
    assert_eq!(words(&said), partly);
    let message = &said[2].message;
    assert!(message.starts_with("Dropped Rule(s) 0, 2: spec.rules[0].sessionPersistence: "), "{message}");
    assert!(message.contains("; spec.rules[2].sessionPersistence: "), "{message}");
    let wholly = [("Accepted", false, "UnsupportedValue"), ("ResolvedRefs", true, "ResolvedRefs")];
    assert_eq!(words(&read(json!([bad, bad]))), wholly);
    assert_eq!(words(&read(json!([good]))), partly[..2]);
}
