use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::compile::{Compiled, compile};
use crate::model::Model;
use crate::objects::{Kind, ObjectName, ObjectRef, Objects};

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn read<T: DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).expect("an object"))
}

fn objects() -> Objects {
    let mut objects = Objects::default();
    let gateway = json!({
        "metadata": { "name": "edge" },
        "spec": { "gatewayClassName": "pontoon", "listeners": [
            { "name": "http", "port": 80, "protocol": "HTTP" },
            { "name": "other", "port": 81, "protocol": "HTTP" },
            { "name": "tcp", "port": 82, "protocol": "TCP" },
        ] },
    });
    objects.gateways.insert(name("edge"), read(gateway));
    objects
}

fn metadata(name: &str, year: u32) -> Value {
    json!({ "name": name, "creationTimestamp": format!("{year}-01-01T00:00:00Z") })
}

fn route(of: &str, year: u32, listener: &str, hosts: &[&str], matches: Value) -> Value {
    json!({
        "metadata": metadata(of, year),
        "spec": {
            "parentRefs": [{ "name": "edge", "sectionName": listener }], "hostnames": hosts,
            "rules": [{ "matches": matches, "backendRefs": [{ "name": of, "port": 80 }] }],
        },
    })
}

fn with_routes(all: impl IntoIterator<Item = Value>) -> Compiled {
    let mut objects = objects();
    for route in all {
        let of = route["metadata"]["name"].as_str().expect("a name").to_owned();
        objects.routes.insert(name(&of), read(route));
    }
    compile(&Model { objects: Arc::new(objects), ..Model::default() })
}

fn hints(compiled: &Compiled, kind: Kind, of: &str) -> Vec<String> {
    let conditions = compiled.statuses.of(&ObjectRef { kind, name: name(of) });
    let hints = conditions.iter().filter(|condition| condition.reason == super::NEVER_TAKEN);
    hints.map(|hint| format!("{}: {}", hint.field, hint.message)).collect()
}

fn of_route(compiled: &Compiled, of: &str) -> Vec<String> {
    hints(compiled, Kind::HttpRoute, of)
}

#[test]
fn the_younger_of_two_routes_is_told_of_the_other() {
    let matches = || json!([{ "path": { "value": "/a" } }, { "path": { "value": "/b" } }]);
    let other = json!([{ "path": { "value": "/b" } }, { "path": { "value": "/b/c" } }]);
    let older = || route("old", 2024, "http", &["a.test", "b.test", "c.test"], matches());
    let younger = || route("young", 2025, "http", &["b.test", "c.test", "d.test"], other.clone());
    let compiled = with_routes([older(), younger()]);
    assert_eq!(of_route(&compiled, "old"), [""; 0]);
    let hint = "spec.rules[0].matches[0]: no requests for b.test on listener http of Gateway default/edge come here: \
                HTTPRoute default/old has the same match and is older; nor in one more place";
    assert_eq!(of_route(&compiled, "young"), [hint]);
    let standing = &compiled.standings.routes[&ObjectRef { kind: Kind::HttpRoute, name: name("young") }];
    let accepted = &standing[0].conditions[0];
    assert_eq!((accepted.kind, accepted.status, accepted.message.as_str()), ("Accepted", true, hint));
    // Another listener, host or path is no conflict.
    for matches in [matches(), json!([{ "path": { "type": "Exact", "value": "/a" } }])] {
        let there = if matches[1].is_null() { ("http", "a.test") } else { ("other", "a.test") };
        let compiled = with_routes([older(), route("young", 2025, there.0, &[there.1], matches)]);
        assert_eq!(of_route(&compiled, "young"), [""; 0]);
    }
}

#[test]
fn each_is_told_of_the_one_before_it() {
    let of = |of: &str, year| route(of, year, "http", &[], json!([{ "path": { "value": "/" } }]));
    let compiled = with_routes([of("c", 2024), of("a", 2025), of("b", 2025)]);
    let why = |of: &str| of_route(&compiled, of).concat();
    assert_eq!(why("c"), "");
    assert!(why("a").ends_with("HTTPRoute default/c has the same match and is older"), "{}", why("a"));
    assert!(
        why("b").ends_with("HTTPRoute default/a has the same match and is the first by name"),
        "{}",
        why("b")
    );
    assert!(why("b").contains(": no requests on listener http of"), "{}", why("b"));
}

#[test]
fn all_parts_of_a_match_are_compared_and_their_order_is_not() {
    let headers = |names: [&str; 2]| names.map(|name| json!({ "name": name, "value": "1" }));
    let of = |rest: Value| {
        let mut matched = json!({ "path": { "value": "/" }, "headers": headers(["x-one", "x-two"]) });
        matched.as_object_mut().expect("a match").extend(rest.as_object().expect("more").clone());
        json!([matched])
    };
    let is_taken = |matches: Value| {
        let all = [route("a", 2024, "http", &[], of(json!({}))), route("b", 2025, "http", &[], matches)];
        of_route(&with_routes(all), "b").is_empty()
    };
    assert!(!is_taken(of(json!({ "headers": headers(["X-Two", "x-one"]) }))));
    assert!(is_taken(of(json!({ "headers": headers(["x-one", "x-three"]) }))));
    assert!(is_taken(of(json!({ "method": "GET" }))));
    assert!(is_taken(of(json!({ "queryParams": [{ "name": "q", "value": "1" }] }))));
    // What its own earlier match has.
    let twice = json!([{ "path": { "value": "/a" } }, { "path": { "value": "/a/" } }]);
    let own = of_route(&with_routes([route("a", 2024, "http", &[], twice)]), "a");
    assert!(own[0].starts_with("spec.rules[0].matches[1]: ") && own[0].contains("an earlier one"), "{own:?}");
}

#[test]
fn the_younger_of_two_routes_of_connections_is_told_of_the_other() {
    let mut objects = objects();
    for (of, year) in [("young", 2025), ("old", 2024)] {
        let route = json!({
            "metadata": metadata(of, year),
            "spec": {
                "parentRefs": [{ "name": "edge", "sectionName": "tcp" }, { "name": "edge", "port": 82 }],
                "rules": [{ "backendRefs": [{ "name": of, "port": 80 }] }],
            },
        });
        objects.tcp_routes.insert(name(of), read(route));
    }
    let compiled = compile(&Model { objects: Arc::new(objects), ..Model::default() });
    assert_eq!(hints(&compiled, Kind::TcpRoute, "old"), [""; 0]);
    assert_eq!(
        hints(&compiled, Kind::TcpRoute, "young"),
        [
            "spec.rules[0]: no connections on listener tcp of Gateway default/edge come here: they are those of TCPRoute \
          default/old, which is older"
        ]
    );
    let standing = &compiled.standings.routes[&ObjectRef { kind: Kind::TcpRoute, name: name("young") }];
    assert!(standing.iter().all(|parent| parent.conditions[0].status));
}
