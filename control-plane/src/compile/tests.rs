use std::collections::BTreeMap;

use envoy_types::pb::envoy::config::listener::v3::Listener as EnvoyListener;
use envoy_types::pb::google::protobuf::value::Kind as ProtoKind;
use envoy_types::pb::google::protobuf::{ListValue, Value};
use imbl::OrdMap;
use serde_json::json;

use super::*;
use crate::model::instance::{
    Application, Instance, InstanceStatus, PodEndpoint, RegistryView, ServiceEndpoints, ServiceView,
};
use crate::model::migration::Stage;
use crate::objects::Migration;
use crate::objects::migration::{Key, MigrationSpec, Side};
use crate::objects::pool::EurekaSource;
use crate::objects::secret::Secret;

mod in_pods;
mod misdirected;
mod shares;

const SERVICES: usize = 50;

/// A gateway with a route to each of many services, the first of which is under migration.
fn objects() -> Objects {
    let name = |name: &str| ObjectName::new("default", name);
    let gateway: Gateway = serde_json::from_value(json!({
        "metadata": { "name": "edge" },
        "spec": { "gatewayClassName": "pontoon", "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }] }
    }))
    .expect("a gateway");
    let route = |service: usize| -> HttpRoute {
        serde_json::from_value(json!({
            "metadata": { "name": format!("s{service}") },
            "spec": {
                "parentRefs": [{ "name": "edge" }],
                "rules": [{
                    "matches": [{ "path": { "value": format!("/s{service}") } }],
                    "backendRefs": [{ "name": format!("s{service}") }],
                }],
            }
        }))
        .expect("a route")
    };
    let side = |application: &str| Side {
        eureka: Some(EurekaSource { application: application.into(), selector: BTreeMap::new() }),
        ..Side::default()
    };
    let spec = MigrationSpec {
        service: "s0".into(),
        legacy: side("s0"),
        target: side("s0-new"),
        key: Some(Key { header: Some("x-user".into()), cookie: None }),
        ..MigrationSpec::default()
    };
    Objects {
        gateways: OrdMap::unit(name("edge"), Arc::new(gateway)),
        routes: (0..SERVICES).map(|s| (name(&format!("s{s}")), Arc::new(route(s)))).collect(),
        migrations: OrdMap::unit(name("s0"), Arc::new(Migration::new("s0", spec))),
        ..Objects::default()
    }
}

fn registry(moved: Option<usize>) -> RegistryView {
    let application = |service: usize| {
        let name: Arc<str> = format!("S{service}").into();
        let instance = Instance {
            id: "a".into(),
            application: name.clone(),
            vip: name.clone(),
            host_name: name.clone(),
            ip: if moved == Some(service) { "10.0.0.2".into() } else { "10.0.0.1".into() },
            port: Some(8080),
            secure_port: None,
            status: InstanceStatus::Up,
            metadata: BTreeMap::new(),
        };
        (name, Application { instances: BTreeMap::from([("a".into(), Arc::new(instance))]), held: false })
    };
    RegistryView {
        applications: (0..SERVICES).map(application).map(|(name, of)| (name, Arc::new(of))).collect(),
        ..RegistryView::default()
    }
}

fn model() -> Model {
    let (objects, registry) = (Arc::new(objects()), Arc::new(registry(None)));
    Model { objects, registry, ..Model::default() }
}

/// Type and name of every resource that is not the same in both, whoever encoded it.
fn different(before: &Compiled, after: &Compiled) -> Vec<(ResourceType, String)> {
    let (before, after) = (&before.views["default/edge"], &after.views["default/edge"]);
    let mut found = Vec::new();
    for ty in ResourceType::ALL {
        let (before, after) = (before.resources(ty), after.resources(ty));
        let names = before.keys().chain(after.keys()).collect::<BTreeSet<_>>();
        let changed = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
        found.extend(changed.map(|name| (ty, name.to_string())));
    }
    found
}

#[test]
fn a_gateway_stays_ours_without_its_class_until_that_is_anothers() {
    let name = ObjectName::new("default", "edge");
    let compiled = |claimed: Option<&str>, controller: Option<&str>| {
        let mut objects = objects();
        let mut gateway = (*objects.gateways[&name]).clone();
        gateway.spec.gateway_class_name = "fast".into();
        objects.gateways.insert(name.clone(), Arc::new(gateway));
        if let Some(class) = claimed {
            objects.claimed.insert(name.clone(), class.into());
        }
        if let Some(controller) = controller {
            let class = json!({ "metadata": { "name": "fast" }, "spec": { "controllerName": controller } });
            let class = serde_json::from_value(class).expect("a class");
            objects.gateway_classes.insert(ObjectName::new("", "fast"), Arc::new(class));
        }
        let compiled = compile(&Model { objects: Arc::new(objects), ..model() });
        let standing = compiled.standings.gateways.get(&name);
        assert_eq!(compiled.views.contains_key("default/edge"), standing.is_some());
        standing.map(|standing| standing.conditions[0].message.clone())
    };
    assert_eq!(compiled(Some("fast"), Some("pontoon.dev/gateway-controller")).as_deref(), Some(""));
    let without = compiled(Some("fast"), None).expect("it is served");
    assert!(without.contains("no GatewayClass fast"), "{without}");
    assert_eq!(compiled(Some("slow"), None), None, "it was claimed when it had another");
    assert_eq!(compiled(Some("fast"), Some("example.com/gateways")), None);
    assert_eq!(compiled(None, None), None);
}

#[test]
fn a_renewed_certificate_changes_its_secret_and_nothing_else() {
    let name = ObjectName::new("default", "edge");
    let gateway: Gateway = serde_json::from_value(json!({
        "metadata": { "name": "edge" },
        "spec": { "gatewayClassName": "pontoon", "listeners": [{
            "name": "https", "port": 443, "protocol": "HTTPS", "tls": { "certificateRefs": [{ "name": "shop" }] },
        }] }
    }))
    .expect("a gateway");
    let model = || {
        let signed = rcgen::generate_simple_self_signed(["shop.test".to_owned()]).expect("a certificate");
        let secret = serde_json::from_value(json!({
            "metadata": { "name": "shop" },
            "type": "kubernetes.io/tls",
            "stringData": { "tls.crt": signed.cert.pem(), "tls.key": signed.signing_key.serialize_pem() },
        }));
        let secret: Secret = secret.expect("a secret");
        let gateways = OrdMap::unit(name.clone(), Arc::new(gateway.clone()));
        let secrets = OrdMap::unit(ObjectName::new("default", "shop"), Arc::new(secret));
        Model { objects: Arc::new(Objects { gateways, secrets, ..Objects::default() }), ..Model::default() }
    };
    let mut compiler = Compiler::default();
    let (before, after) = (compiler.compile(&model()), compiler.compile(&model()));
    assert_eq!(different(&before, &after), [(ResourceType::Secret, "default/shop".to_owned())]);
}

#[test]
fn a_secret_that_cannot_be_used_is_said_by_those_that_refer_to_it() {
    let name = ObjectName::new("shop", "edge");
    let gateway: Gateway = serde_json::from_value(json!({
        "metadata": { "name": "edge", "namespace": "shop" },
        "spec": {
            "gatewayClassName": "pontoon",
            "listeners": [{
                "name": "https", "port": 443, "protocol": "HTTPS", "tls": { "certificateRefs": [{ "name": "cert" }] },
            }],
            "tls": { "backend": { "clientCertificateRef": { "name": "cert" } } },
        }
    }))
    .expect("a gateway");
    let secret = ObjectName::new("shop", "cert");
    let refused = OrdMap::unit(
        ObjectRef { kind: Kind::Secret, name: secret.clone() },
        "data: it is no certificate".into(),
    );
    let signed = rcgen::generate_simple_self_signed(["shop.test".to_owned()]).expect("a certificate");
    let good: Secret = serde_json::from_value(json!({
        "metadata": { "name": "cert", "namespace": "shop" },
        "type": "kubernetes.io/tls",
        "stringData": { "tls.crt": signed.cert.pem(), "tls.key": signed.signing_key.serialize_pem() },
    }))
    .expect("a secret");
    let mut compiler = Compiler::default();
    let mut compiled = |secrets: OrdMap<_, _>, refused: OrdMap<_, _>| {
        let gateways = OrdMap::unit(name.clone(), Arc::new(gateway.clone()));
        let objects = Objects { gateways, secrets, refused, ..Objects::default() };
        let compiled = compiler.compile(&Model { objects: Arc::new(objects), ..Model::default() });
        let standing = compiled.standings.gateways[&name].clone();
        let resolved = |conditions: &[standing::Said]| {
            let said = conditions.iter().find(|said| said.kind == "ResolvedRefs").expect("it is said");
            (said.status, said.reason, said.message.clone())
        };
        let object = ObjectRef { kind: Kind::Gateway, name: name.clone() };
        let wrong = compiled.statuses.of(&object).iter().filter(|condition| !condition.status);
        let wrong: Vec<_> = wrong.map(|condition| (condition.kind, condition.reason)).collect();
        let served = compiled.views["shop/edge"].resources(ResourceType::Secret).len();
        (served, resolved(&standing.conditions), resolved(&standing.listeners[0].conditions), wrong)
    };
    let of_listener = "spec.listeners[0].tls.certificateRefs[0]";
    let of_gateway = "spec.tls.backend.clientCertificateRef";
    let secrets = OrdMap::unit(secret, Arc::new(good));

    let none = "there is no Secret shop/cert of type kubernetes.io/tls";
    let (_, gateway, listener, _) = compiled(OrdMap::new(), OrdMap::new());
    assert_eq!(gateway, (false, "InvalidClientCertificateRef", format!("{of_gateway}: {none}")));
    assert_eq!(listener, (false, "InvalidCertificateRef", format!("{of_listener}: {none}")));

    let bad = "Secret shop/cert cannot be used: data: it is no certificate";
    let (served, gateway, listener, _) = compiled(OrdMap::new(), refused.clone());
    assert_eq!(served, 0);
    assert_eq!(gateway, (false, "InvalidClientCertificateRef", format!("{of_gateway}: {bad}")));
    assert_eq!(listener, (false, "InvalidCertificateRef", format!("{of_listener}: {bad}")));

    let kept = "Secret shop/cert cannot be used as it is now (data: it is no certificate); the last good version is served";
    let (served, gateway, listener, wrong) = compiled(secrets.clone(), refused);
    assert_eq!(served, 2);
    assert_eq!(gateway, (true, "ResolvedRefs", format!("{of_gateway}: {kept}")));
    assert_eq!(listener, (true, "ResolvedRefs", format!("{of_listener}: {kept}")));
    assert_eq!(wrong, [(ConditionType::Effective, "Outdated"); 2]);

    let (_, gateway, listener, wrong) = compiled(secrets, OrdMap::new());
    assert_eq!([gateway, listener], [(); 2].map(|()| (true, "ResolvedRefs", String::new())));
    assert_eq!(wrong, []);
}

#[test]
fn a_change_of_endpoints_changes_these_and_nothing_else() {
    let mut compiler = Compiler::default();
    let before = compiler.compile(&model());
    let changed = Model { registry: Arc::new(registry(Some(7))), ..model() };
    let after = compiler.compile(&changed);
    assert_eq!(different(&before, &after), [(ResourceType::Endpoint, "eureka/S7".to_owned())]);
}

#[test]
fn a_name_that_instances_go_by_is_a_service_until_an_application_has_it() {
    let mut registry = registry(None);
    let of = registry.applications["S1"].instances["a"].clone();
    let go_by = |vip: &str| {
        let instance = Instance { vip: vip.into(), ..Instance::clone(&of) };
        Arc::new(Application { instances: BTreeMap::from([("a".into(), Arc::new(instance))]), held: false })
    };
    registry.applications.insert("S1".into(), go_by("s1,Stock,${name}"));
    let mut compiler = Compiler::default();
    let mut services = |registry: &RegistryView| {
        let model = Model { registry: Arc::new(registry.clone()), ..Model::default() };
        let view = &compiler.compile(&model).views["default"];
        let is_short = |name: &&Arc<str>| !name.contains('.') && !name.contains(':');
        let names =
            view.resources(ResourceType::Listener).keys().filter(is_short).map(|name| name.to_string());
        let names: Vec<String> = names.filter(|name| !name.starts_with('s') || name == "stock").collect();
        let clusters =
            view.resources(ResourceType::Cluster).keys().filter(|name| name.to_lowercase().contains("stock"));
        (names, clusters.map(|name| name.to_string()).collect::<Vec<_>>())
    };
    let (names, clusters) = services(&registry);
    assert_eq!((names, clusters), (vec!["stock".to_owned()], vec!["eureka-vip/stock".to_owned()]));
    registry.applications.insert("S1".into(), go_by("s1"));
    assert_eq!(services(&registry).0, Vec::<String>::new());
    registry.applications.insert("S1".into(), go_by("stock"));
    assert_eq!(services(&registry).0, ["stock"]);
    let own = registry.applications["S2"].clone();
    registry.applications.insert("STOCK".into(), own);
    let (names, clusters) = services(&registry);
    assert_eq!((names, clusters), (vec!["stock".to_owned()], vec!["eureka/STOCK".to_owned()]));
}

#[test]
fn a_change_of_weight_changes_one_route_configuration() {
    let mut compiler = Compiler::default();
    let model = model();
    let before = compiler.compile(&model);
    let name = ObjectName::new("default", "s0");
    let state =
        MigrationState { stage: Stage::Split, weight: 1, ..model.state_of(&name).expect("a migration") };
    let migrations = Arc::new(BTreeMap::from([(name.clone(), state)]));
    let after = compiler.compile(&Model { migrations, ..model });
    assert_eq!(different(&before, &after), [(ResourceType::Route, "default/edge/http".to_owned())]);
    let carriers = &after.migrations[&name].routes;
    assert_eq!(
        carriers.iter().map(|(v, r)| (&**v, &**r)).collect::<Vec<_>>(),
        [("default", "default/s0"), ("default/edge", "default/edge/http")]
    );
    // Each of a thousand streams compares what it has with what there is: parts that are shared cost it nothing.
    for ty in ResourceType::ALL.into_iter().filter(|ty| *ty != ResourceType::Route) {
        let (before, after) = (&before.views["default"], &after.views["default"]);
        assert!(before.resources(ty).ptr_eq(after.resources(ty)), "{ty:?}");
    }
}

#[test]
fn both_sides_are_there_before_anything_is_sent_to_the_target() {
    let compiled = compile(&model());
    let snapshot = &compiled.views["default/edge"];
    assert!(snapshot.get(ResourceType::Cluster, "eureka/S0-NEW").is_some());
    assert!(snapshot.get(ResourceType::Endpoint, "eureka/S0-NEW").is_some());
}

#[test]
fn what_is_the_same_is_shared_and_not_encoded_again() {
    let mut compiler = Compiler::default();
    let model = model();
    let (first, second) = (compiler.compile(&model), compiler.compile(&model));
    for ty in ResourceType::ALL {
        let (first, second) = (&first.views["default/edge"], &second.views["default/edge"]);
        assert!(first.resources(ty).ptr_eq(second.resources(ty)), "{ty:?}");
    }
}

#[test]
fn a_gateway_that_goes_takes_its_view_along() {
    let mut compiler = Compiler::default();
    compiler.compile(&model());
    let objects = Arc::new(Objects { gateways: OrdMap::new(), ..objects() });
    let left = compiler.compile(&Model { objects, ..model() }).views;
    assert_eq!(
        left.keys().map(|view| &**view).collect::<Vec<_>>(),
        ["", "default"],
        "but for the sidecars' own"
    );
}

#[test]
fn a_service_carries_its_address_and_is_found_by_it() {
    let model = model();
    let mut compiler = Compiler::default();
    let before = compiler.compile(&model);
    let service: Arc<str> = "default/s3".into();
    assert!(before.services.contains(&service));

    let slots = [(service, 6)].into_iter().collect();
    let addresses = Arc::new(Addresses::new(Default::default(), slots));
    let with = Model { addresses, ..model.clone() };
    let after = compiler.compile(&with);
    assert!(Arc::ptr_eq(&before.services, &after.services));
    let listeners = |compiled: &Compiled| compiled.views["default"].resources(ResourceType::Listener).clone();
    assert_eq!(listeners(&after), listeners(&compile(&with)));
    let sidecars = &after.views["default"];
    for name in ["s3", "s3.default.svc.cluster.local", "240.0.0.7", "fd70:6f6e:746f:6f6e::7"] {
        let resource = sidecars.get(ResourceType::Listener, name).expect(name);
        let listener: EnvoyListener = resource.decode().unwrap();
        let ours = &listener.metadata.unwrap().filter_metadata["pontoon.dev/addresses"].fields["s3"];
        let text = |text: &str| Value { kind: Some(ProtoKind::StringValue(text.into())) };
        let values = vec![text("240.0.0.7"), text("fd70:6f6e:746f:6f6e::7")];
        assert_eq!(ours.kind, Some(ProtoKind::ListValue(ListValue { values })));
    }
    let untouched =
        |compiled: &Compiled| compiled.views["default"].get(ResourceType::Listener, "s4").cloned();
    assert_eq!(untouched(&before), untouched(&after));
    assert_eq!(listeners(&compiler.compile(&model)), listeners(&before));
}

/// The Kubernetes Service `default/s1`, or what else has its name, at port 80 with these pods.
fn with_service(addresses: &[&str]) -> Model {
    let name = ObjectName::new("default", "s1");
    let service = crate::objects::Service {
        ports: vec![crate::objects::service::ServicePort {
            name: "http".into(),
            port: 80,
            app_protocol: Some("kubernetes.io/h2c".into()),
        }],
        ..crate::objects::Service::default()
    };
    let pods = addresses.iter().map(|address| PodEndpoint {
        v4: Some(address.parse().expect("an address")),
        v6: None,
        ready: true,
        serving: true,
        terminating: false,
        zone: None,
        for_zones: Arc::default(),
    });
    let endpoints = ServiceEndpoints { ports: [("http".into(), pods.collect())].into() };
    let services = ServiceView { services: OrdMap::unit(name.clone(), Arc::new(endpoints)), held: false };
    let mut objects = objects();
    objects.services.insert(name, Arc::new(service));
    Model {
        objects: Arc::new(objects),
        registry: Arc::new(RegistryView { services, ..registry(None) }),
        ..Model::default()
    }
}

#[test]
fn a_service_of_kubernetes_goes_before_the_application_of_its_name() {
    let compiled = compile(&with_service(&["10.0.0.1:8080"]));
    let view = &compiled.views["default/edge"];
    let clusters: Vec<&str> = view.resources(ResourceType::Cluster).keys().map(|name| &**name).collect();
    assert!(clusters.contains(&"service/default/s1/80") && !clusters.contains(&"eureka/S1"), "{clusters:?}");
    assert_eq!(compiled.clusters["service/default/s1/80"].endpoints, Some(1));
    // And a migration before both.
    let mut model = with_service(&["10.0.0.1:8080"]);
    let mut objects = (*model.objects).clone();
    let service = objects.services.values().next().expect("a Service").clone();
    objects.services.insert(ObjectName::new("default", "s0"), service);
    model.objects = Arc::new(objects);
    assert!(!compile(&model).clusters.contains_key("service/default/s0/80"));
}

#[test]
fn pods_that_come_and_go_change_endpoints_and_nothing_else() {
    let mut compiler = Compiler::default();
    let model = with_service(&["10.0.0.1:8080"]);
    let before = compiler.compile(&model);
    let moved = with_service(&["10.0.0.2:8080", "10.0.0.3:8080"]);
    let after = compiler.compile(&Model { registry: moved.registry, ..model });
    assert_eq!(different(&before, &after), [(ResourceType::Endpoint, "service/default/s1/80".to_owned())]);
}

#[test]
fn a_port_that_the_service_does_not_have_is_a_condition() {
    let mut model = with_service(&["10.0.0.1:8080"]);
    let mut objects = (*model.objects).clone();
    let name = ObjectName::new("default", "s1");
    let mut route = (*objects.routes[&name]).clone();
    for rule in route.spec.rules.iter_mut().flatten() {
        rule.backend_refs.iter_mut().flatten().for_each(|backend| backend.port = Some(81));
    }
    objects.routes.insert(name.clone(), Arc::new(route));
    model.objects = Arc::new(objects);
    let compiled = compile(&model);
    let said = compiled.statuses.of(&ObjectRef { kind: Kind::HttpRoute, name });
    let wrong = said.iter().find(|condition| !condition.status).expect("a condition");
    assert_eq!(
        (wrong.reason, wrong.field.as_str()),
        ("BackendNotFound", "spec.rules[0].backendRefs[0].port")
    );
    assert_eq!(wrong.message, "the Service has no port 81; it has 80");
}

#[test]
fn on_kubernetes_a_name_of_no_service_and_no_application_is_a_mistake_until_one_registers() {
    let mut compiler = Compiler::default();
    let registered = with_service(&["10.0.0.1:8080"]);
    let mut view = (*registered.registry).clone();
    view.applications.remove("S2");
    let unregistered = Model { registry: Arc::new(view), ..registered.clone() };
    let object = ObjectRef { kind: Kind::HttpRoute, name: ObjectName::new("default", "s2") };
    for (model, expected) in [
        (&unregistered, Some("BackendNotFound")),
        (&registered, None),
        (&unregistered, Some("BackendNotFound")),
    ] {
        let compiled = compiler.compile(model);
        let wrong = compiled.statuses.of(&object).iter().find(|condition| !condition.status);
        assert_eq!(wrong.map(|condition| condition.reason), expected);
        assert_eq!(compiled.clusters.contains_key("eureka/S2"), expected.is_none());
    }
    // Without Kubernetes an application may be registered later.
    let elsewhere = Model { registry: unregistered.registry, ..model() };
    assert!(compile(&elsewhere).statuses.of(&object).iter().all(|condition| condition.status));
}

/// The gateway `edge` with one listener of TLS that is passed through, in a cluster.
fn passing_through(route: serde_json::Value) -> Compiled {
    let name = |name: &str| ObjectName::new("default", name);
    let gateway: Gateway = serde_json::from_value(json!({
        "metadata": { "name": "edge" },
        "spec": {
            "gatewayClassName": "pontoon", "allowedListeners": { "namespaces": { "from": "Same" } },
            "listeners": [{ "name": "tls", "port": 443, "protocol": "TLS", "tls": { "mode": "Passthrough" } }],
        }
    }))
    .expect("a gateway");
    let mut objects = (*with_service(&[]).objects).clone();
    objects.gateways.insert(name("edge"), Arc::new(gateway));
    let route = serde_json::from_value(route).expect("a route");
    objects.tls_routes.insert(name("tls"), Arc::new(route));
    let set = serde_json::from_value(json!({
        "metadata": { "name": "set" },
        "spec": {
            "parentRef": { "name": "edge" },
            "listeners": [{
                "name": "https", "port": 8443, "protocol": "HTTPS",
                "tls": { "certificateRefs": [{ "name": "nowhere" }] },
            }],
        }
    }));
    objects.listener_sets.insert(name("set"), Arc::new(set.expect("a set")));
    compile(&Model { objects: Arc::new(objects), ..Model::default() })
}

#[test]
fn a_connection_that_has_nowhere_to_go_is_taken_and_closed() {
    let compiled = passing_through(json!({
        "metadata": { "name": "tls" },
        "spec": {
            "parentRefs": [{ "name": "edge" }], "hostnames": ["a.test"],
            "rules": [{ "backendRefs": [{ "name": "nowhere", "port": 443 }] }],
        }
    }));
    let view = &compiled.views["default/edge"];
    assert!(view.get(ResourceType::Listener, "default/edge/tls").is_some());
    assert!(view.get(ResourceType::Cluster, "unresolved").is_some());
}

#[test]
fn a_set_of_which_no_listener_can_be_served_is_not_accepted() {
    let compiled = passing_through(json!({
        "metadata": { "name": "tls" },
        "spec": { "parentRefs": [{ "name": "edge" }], "hostnames": ["a.test"], "rules": [{ "backendRefs": [] }] }
    }));
    let standings = &compiled.standings;
    let said = |conditions: &[standing::Said]| -> Vec<(&str, bool, &str)> {
        conditions.iter().map(|said| (said.kind, said.status, said.reason)).collect()
    };
    let set = &standings.listener_sets[&ObjectName::new("default", "set")];
    let refused = [("Accepted", false, "ListenersNotValid"), ("Programmed", false, "ListenersNotValid")];
    assert_eq!(said(&set.conditions), refused);
    let edge = ObjectName::new("default", "edge");
    assert_eq!(standings.gateways[&edge].attached_listener_sets, Some(0));
    assert_eq!(standings.ports[&edge], BTreeSet::from([443, 8443]), "its certificate may come yet");
}
