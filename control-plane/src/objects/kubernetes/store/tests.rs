use serde_json::json;

use super::*;

struct Case {
    store: Store,
    loaded: Loaded,
}

fn raw(json: Json) -> (Kind, ObjectName, Raw) {
    let object: DynamicObject = serde_json::from_value(json).unwrap();
    let kind = object.types.as_ref().unwrap().kind.clone();
    let kind = Kind::ALL.into_iter().find(|k| k.as_str() == kind).unwrap();
    let name = ObjectName::new(
        object.metadata.namespace.clone().unwrap_or_default(),
        object.metadata.name.clone().unwrap(),
    );
    let raw = Raw::of(kind, object, STATUS_MANAGER);
    (kind, name, raw)
}

fn route(generation: i64, spec: Json) -> Json {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {
            "name": "r", "namespace": "shop", "uid": "u1", "generation": generation,
            "resourceVersion": format!("{generation}00"),
            "managedFields": [{ "manager": "kubectl", "operation": "Apply" }],
        },
        "spec": spec,
    })
}

fn migration(uid: &str, status: Json) -> Json {
    json!({
        "apiVersion": "pontoon.dev/v1alpha1", "kind": "Migration",
        "metadata": { "name": "m", "namespace": "shop", "uid": uid, "generation": 1 },
        "spec": {
            "service": "orders", "legacy": { "eureka": { "application": "orders" } },
            "target": { "service": { "name": "orders", "port": 80 } },
        },
        "status": status,
    })
}

impl Case {
    fn new(objects: &[Json]) -> Case {
        let mut case = Case { store: Store::default(), loaded: Loaded::default() };
        let now = Instant::now();
        for kind in Kind::ALL {
            assert!(!case.store.is_complete());
            case.store.hear(kind, Some(Heard::ListBegins), now);
            for (of, name, raw) in objects.iter().cloned().map(raw).filter(|(of, ..)| *of == kind) {
                case.store.hear(of, Some(Heard::Listed(name, raw)), now);
            }
            case.store.hear(kind, Some(Heard::ListEnds), now);
        }
        case.store.hear_service(Some(Heard::ListBegins), now);
        case.store.hear_service(Some(Heard::ListEnds), now);
        assert!(case.store.is_complete());
        assert!(case.take(), "the first is always new");
        case
    }

    fn take(&mut self) -> bool {
        match self.store.take_loaded() {
            Some(loaded) => {
                self.loaded = loaded;
                true
            }
            None => false,
        }
    }

    /// Whether it changed anything.
    fn apply(&mut self, json: Json) -> bool {
        let (kind, name, raw) = raw(json);
        self.store.hear(kind, Some(Heard::Applied(name, raw)), Instant::now());
        self.take()
    }

    fn problems(&self) -> Vec<String> {
        self.loaded.problems.iter().map(ToString::to_string).collect()
    }
}

#[test]
fn a_status_is_not_a_change_of_the_object() {
    let mut case = Case::new(&[route(1, json!({ "hostnames": ["a.example"] }))]);
    let before = case.loaded.objects.clone();
    assert_eq!(before.routes.len(), 1);
    case.store.take_observations().unwrap();
    let mut with_status = route(1, json!({ "hostnames": ["a.example"] }));
    with_status["status"] = json!({ "parents": [] });
    with_status["metadata"]["resourceVersion"] = json!("101");
    assert!(!case.apply(with_status));
    let observations = case.store.take_observations().unwrap();
    let object = ObjectRef { kind: Kind::HttpRoute, name: ObjectName::new("shop", "r") };
    assert_eq!(observations.get(&object).unwrap().resource_version, "101");
    assert!(case.apply(route(2, json!({ "hostnames": ["b.example"] }))));
    assert!(!Arc::ptr_eq(&before, &case.loaded.objects));
}

#[test]
fn a_field_of_a_newer_version_keeps_the_last_good_one_and_the_rest_goes_on() {
    let mut case = Case::new(&[route(1, json!({ "hostnames": ["a.example"] })), migration("u", Json::Null)]);
    assert!(case.apply(route(2, json!({ "hostnames": ["b.example"], "sorcery": true }))));
    let name = ObjectName::new("shop", "r");
    assert_eq!(case.loaded.objects.routes[&name].spec.hostnames, Some(vec!["a.example".to_owned()]));
    assert_eq!(case.loaded.objects.migrations.len(), 1);
    assert_eq!(
        case.problems(),
        [
            "kubernetes: HTTPRoute shop/r: spec.sorcery: true: there is no such field; known here: hostnames, parentRefs, rules, useDefaultGateways (unknown_field)",
            "kubernetes: warning: HTTPRoute shop/r: the last good version stays in force (kept)",
        ]
    );
    assert!(case.apply(route(3, json!({ "hostnames": ["b.example"] }))));
    assert_eq!(case.problems(), [""; 0]);
}

#[test]
fn a_kind_that_is_not_there_is_not_waited_for_and_may_come() {
    let mut store = Store::default();
    let now = Instant::now();
    for kind in Kind::ALL {
        store.hear(kind, None, now);
    }
    assert!(!store.is_complete(), "Services are in every cluster");
    store.hear_service(Some(Heard::ListEnds), now);
    assert!(store.is_complete());
    let (kind, name, raw) = raw(route(1, json!({})));
    store.hear(kind, Some(Heard::ListBegins), now);
    store.hear(kind, Some(Heard::Listed(name, raw)), now);
    store.hear(kind, Some(Heard::ListEnds), now);
    assert_eq!(store.take_loaded().unwrap().objects.routes.len(), 1);
}

#[test]
fn an_empty_list_takes_no_objects() {
    let mut case = Case::new(&[route(1, json!({}))]);
    let now = Instant::now();
    case.store.hear(Kind::HttpRoute, Some(Heard::ListBegins), now);
    assert_eq!(case.store.hear(Kind::HttpRoute, Some(Heard::ListEnds), now), Some(1));
    assert!(!case.take());
    let name = ObjectName::new("shop", "r");
    case.store.hear(Kind::HttpRoute, Some(Heard::Deleted(name)), now);
    assert!(case.take());
    assert!(case.loaded.objects.routes.is_empty());
}

#[test]
fn where_a_migration_stands_comes_with_it_and_goes_with_it() {
    let state = json!({ "state": {
        "revision": 3, "position": { "stage": "split", "weight": 500 }, "previous": null, "actor": "jo",
        "reason": null, "at": "2026-01-01T00:00:00Z", "declared": { "stage": "observe", "weight": 0 },
    } });
    let mut case = Case::new(&[migration("u1", state.clone())]);
    let name = ObjectName::new("shop", "m");
    let kept = |case: &Case| case.loaded.states.as_ref().unwrap().get(&name).cloned();
    let (uid, first) = kept(&case).unwrap();
    assert_eq!((&*uid, first.revision, first.position.weight.hundredths()), ("u1", 3, 500));
    // Another of its name.
    assert!(case.apply(migration("u2", Json::Null)));
    assert_eq!(kept(&case), None);
    // What a newer version wrote is not taken for nothing.
    assert!(case.apply(migration("u2", state)));
    assert!(case.apply(migration("u2", json!({ "state": { "revision": "four" } }))));
    assert_eq!(kept(&case).unwrap().1.revision, 3);
    assert!(case.problems()[0].contains("unreadable_state"), "{:?}", case.problems());
}

#[test]
fn a_migration_whose_state_cannot_be_read_is_not_begun_anew() {
    let mut case = Case::new(&[migration("u1", json!({ "state": { "revision": "four" } }))]);
    assert!(case.loaded.objects.migrations.is_empty());
    assert!(case.problems()[0].contains("unreadable_state"), "{:?}", case.problems());
    assert!(case.apply(migration("u1", Json::Null)));
    assert_eq!((case.loaded.objects.migrations.len(), case.problems().len()), (1, 0));
}

#[test]
fn a_class_is_of_no_namespace() {
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": { "name": "edge", "uid": "u", "generation": 1 },
        "spec": { "controllerName": "pontoon.dev/gateway-controller" },
    });
    let case = Case::new(&[class]);
    assert!(case.loaded.objects.gateway_classes.contains_key(&ObjectName::new("", "edge")));
}

#[test]
fn a_gateway_is_claimed_by_our_status_until_it_names_another_class() {
    let gateway = |class: &str, generation: i64, status: Option<(&str, i64)>| {
        let mut json = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": { "name": "edge", "namespace": "shop", "uid": "u", "generation": generation },
            "spec": { "gatewayClassName": class, "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }] },
        });
        if let Some((manager, observed)) = status {
            json["metadata"]["managedFields"] =
                json!([{ "manager": manager, "operation": "Apply", "subresource": "status" }]);
            json["status"] =
                json!({ "conditions": [{ "type": "Accepted", "observedGeneration": observed }] });
        }
        json
    };
    let claimed = |case: &Case| {
        case.loaded.objects.claimed.get(&ObjectName::new("shop", "edge")).map(|at| at.to_string())
    };
    let mut case = Case::new(&[gateway("fast", 1, None)]);
    assert_eq!(claimed(&case), None);
    assert!(!case.apply(gateway("fast", 1, Some(("another", 1)))));
    assert!(case.apply(gateway("fast", 1, Some((STATUS_MANAGER, 1)))));
    assert_eq!(claimed(&case).as_deref(), Some("fast"));
    assert!(!case.apply(gateway("fast", 1, Some((STATUS_MANAGER, 1)))));
    case.apply(gateway("fast", 2, Some((STATUS_MANAGER, 1))));
    assert_eq!(claimed(&case).as_deref(), Some("fast"), "it was edited, and has its class");
    case.apply(gateway("slow", 3, Some((STATUS_MANAGER, 2))));
    assert_eq!(claimed(&case), None);
    // Who starts now knows only of what was said of it as it is.
    let mut case = Case::new(&[gateway("slow", 3, Some((STATUS_MANAGER, 2)))]);
    assert_eq!(claimed(&case), None);
    case.apply(gateway("slow", 3, Some((STATUS_MANAGER, 3))));
    assert_eq!(claimed(&case).as_deref(), Some("slow"));
    case.store.hear(Kind::Gateway, Some(Heard::Deleted(ObjectName::new("shop", "edge"))), Instant::now());
    assert!(case.take());
    assert_eq!(claimed(&case), None);
}

#[test]
fn why_a_secret_cannot_be_used_is_known_to_those_that_refer_to_it() {
    let signed = rcgen::generate_simple_self_signed(["shop.test".to_owned()]).expect("a certificate");
    let secret = |crt: &str, labels: Json| {
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": "cert", "namespace": "shop", "labels": labels },
            "type": "kubernetes.io/tls",
            "stringData": { "tls.crt": crt, "tls.key": signed.signing_key.serialize_pem() },
        })
    };
    let (good, bad) = (secret(&signed.cert.pem(), json!({})), secret("not a certificate", json!({})));
    let name = ObjectName::new("shop", "cert");
    let why = |case: &Case| {
        let objects = &case.loaded.objects;
        (objects.secrets.contains_key(&name), objects.why_refused(Kind::Secret, &name).map(str::to_owned))
    };
    let mut case = Case::new(std::slice::from_ref(&bad));
    let refused = (false, Some("data: the certificate chain has no certificate".to_owned()));
    assert_eq!(why(&case), refused);
    assert!(!case.apply(secret("not a certificate", json!({ "a": "b" }))), "no news");
    assert!(case.apply(good.clone()));
    assert_eq!(why(&case), (true, None));
    assert!(case.apply(bad.clone()));
    assert_eq!(why(&case), (true, refused.1));
    // What says so in its own status is not among these.
    let objects = case.loaded.objects.clone();
    case.apply(route(1, json!({ "sorcery": true })));
    assert!(Arc::ptr_eq(&objects, &case.loaded.objects));
    case.store.hear(Kind::Secret, Some(Heard::Deleted(name.clone())), Instant::now());
    assert!(case.take());
    assert_eq!(why(&case), (false, None));
}

#[test]
fn what_nobody_reads_of_a_config_map_is_no_change() {
    let config_map = |version: u64, leader: &str, data: Json| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": "c", "namespace": "shop", "uid": "u", "resourceVersion": version.to_string(),
                "annotations": { "leader": leader },
            },
            "data": data,
        })
    };
    let mut case = Case::new(&[config_map(1, "a", json!({ "ca.crt": "x", "log": "1" }))]);
    case.store.take_observations().unwrap();
    assert!(!case.apply(config_map(2, "b", json!({ "ca.crt": "x", "log": "2" }))));
    assert_eq!(case.store.take_observations(), None);
    let name = ObjectName::new("shop", "c");
    let data = |case: &Case| serde_json::to_value(&case.loaded.objects.config_maps[&name].data).unwrap();
    // The key of a parameter that is misspelt can be named.
    assert_eq!(data(&case), json!({ "ca.crt": "x", "log": "" }));
    for (version, key) in [(3, "ca.crt"), (4, "deployment"), (5, "podDisruptionBudget")] {
        assert!(case.apply(config_map(version, "b", json!({ key: "y" }))), "{key}");
        assert_eq!(data(&case), json!({ key: "y" }));
    }
}

#[test]
fn kinds_are_asked_for_as_the_api_server_spells_them() {
    let plurals = Kind::ALL.map(Kind::plural);
    assert!(
        plurals.contains(&"gateways".to_owned()) && plurals.contains(&"gatewayclasses".to_owned()),
        "{plurals:?}"
    );
}

/// Of a ConfigMap and a Namespace as they are in a list.
#[test]
fn kubernetes_own_kinds_are_read_from_a_list() {
    let mut case = Case::new(&[]);
    let now = Instant::now();
    let metadata =
        |name: &str| json!({ "name": name, "namespace": "shop", "uid": "u1", "resourceVersion": "1" });
    for (kind, object) in [
        (Kind::ConfigMap, json!({ "metadata": metadata("ca"), "data": { "ca.crt": "x" } })),
        (
            Kind::Namespace,
            json!({
                "metadata": { "name": "shop" }, "spec": { "finalizers": ["kubernetes"] },
                "status": { "phase": "Active" },
            }),
        ),
    ] {
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let name = ObjectName::new(
            object.metadata.namespace.clone().unwrap_or_default(),
            object.metadata.name.clone().unwrap(),
        );
        case.store.hear(kind, Some(Heard::Applied(name, Raw::of(kind, object, STATUS_MANAGER))), now);
    }
    assert!(case.take());
    assert!(case.loaded.problems.is_empty(), "{:?}", case.loaded.problems);
    assert_eq!((case.loaded.objects.config_maps.len(), case.loaded.objects.namespaces.len()), (1, 1));
}
