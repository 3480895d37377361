//! What is served of gateways whose proxies run in pods of their own, with what is not as it should be.

use prost::Message as _;

use super::*;
use crate::model::addresses::{Addresses, Ranges};

/// The objects of a manifest.
fn objects_of(manifest: &str) -> Objects {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("objects.yaml");
    std::fs::write(&file, manifest).expect("a file");
    let loaded = crate::objects::load(&file).expect("the file");
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    (*loaded.objects).clone()
}

fn compiled(manifest: &str) -> Compiled {
    compile(&Model { objects: Arc::new(objects_of(manifest)), in_pods: true, ..Model::default() })
}

/// Of each condition its type, its status and its reason.
fn said(conditions: &[standing::Said]) -> Vec<(&str, bool, &str)> {
    conditions.iter().map(|said| (said.kind, said.status, said.reason)).collect()
}

#[test]
fn each_installation_has_its_own_classes() {
    let manifest = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: theirs}
spec: {controllerName: example.com/gateways}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: ours}
spec: {controllerName: pontoon.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: one}
spec:
  gatewayClassName: ours
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: other}
spec:
  gatewayClassName: theirs
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: unclassed}
spec:
  gatewayClassName: pontoon
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop}
spec:
  parentRefs: [{name: one}, {name: other}]
  rules: [{backendRefs: [{name: shop}]}]
";
    let of = |controller: &str| {
        let mut objects = objects_of(manifest);
        objects.controller = controller.parse().expect("a name");
        let compiled = compile(&Model { objects: Arc::new(objects), ..Model::default() });
        let standings = &compiled.standings;
        let route = ObjectRef { kind: Kind::HttpRoute, name: ObjectName::new("default", "shop") };
        let parents: Vec<String> =
            standings.routes[&route].iter().map(|of| of.parent_ref.name.clone()).collect();
        let classes: Vec<String> = standings.classes.keys().map(ToString::to_string).collect();
        let gateways: Vec<String> = standings.gateways.keys().map(ToString::to_string).collect();
        (classes, gateways, parents)
    };
    let text = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    let ours = (text(&["ours"]), text(&["default/one", "default/unclassed"]), text(&["one"]));
    assert_eq!(of("pontoon.dev/gateway-controller"), ours);
    assert_eq!(of("example.com/gateways"), (text(&["theirs"]), text(&["default/other"]), text(&["other"])));
}

#[test]
fn what_its_pods_are_made_with_does_not_stop_those_that_serve() {
    let edge = ObjectName::new("default", "edge");
    let of = |infrastructure: &str| {
        compiled(&format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: default}}
spec:
  gatewayClassName: pontoon
  listeners: [{{name: http, port: 80, protocol: HTTP}}]
  {infrastructure}
"
        ))
    };
    let well = of("");
    let served = |compiled: &Compiled| {
        compiled.views["default/edge"].get(ResourceType::Listener, "default/edge/http").cloned()
    };
    let listener = served(&well).expect("a listener");
    let listener = EnvoyListener::decode(&*listener.body).expect("a listener");
    let address = listener.address.and_then(|address| address.address);
    assert!(format!("{address:?}").contains("\"::\""), "its Service may have both families: {address:?}");
    assert_eq!(well.standings.ports[&edge], BTreeSet::from([80]));
    let gone = "infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: gone}}";
    let named = "addresses: [{type: Hostname, value: edge.example}]";
    for (infrastructure, reason) in [(gone, "InvalidParameters"), (named, "UnsupportedAddress")] {
        let compiled = of(infrastructure);
        assert_eq!(served(&compiled), served(&well), "{infrastructure}");
        let refused = [("Accepted", false, reason), ("Programmed", false, reason)];
        assert_eq!(said(&compiled.standings.gateways[&edge].conditions), refused);
        // Nothing is made, and nothing that is there is changed.
        assert_eq!(compiled.standings.ports.get(&edge), None);
    }
}

/// A Service of one port, as the API server has it.
fn service(name: &str, port: u16) -> (ObjectName, Arc<crate::objects::Service>) {
    let service = serde_json::from_value(json!({ "spec": { "ports": [{ "name": "main", "port": port }] } }));
    let service = crate::objects::Service::of(&service.expect("a Service"));
    (ObjectName::new("default", name), Arc::new(service))
}

/// A ConfigMap `authority` with the certificate that a host shows.
fn authority(host: &str) -> String {
    let signed = rcgen::generate_simple_self_signed([host.to_owned()]).expect("a certificate");
    let pem = signed.cert.pem().replace('\n', "\n    ");
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: authority, namespace: default}}
data:
  ca.crt: |
    {pem}"
    )
}

#[test]
fn a_migrations_sides_are_spoken_to_as_the_route_and_their_policy_say() {
    let authority = authority("orders.test");
    let mut objects = objects_of(&format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: default}}
spec: {{gatewayClassName: pontoon, listeners: [{{name: http, port: 80, protocol: HTTP}}]}}
---
{authority}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{name: tls, namespace: default}}
spec:
  targetRefs: [{{group: '', kind: Service, name: orders-new}}]
  validation:
    hostname: orders.test
    caCertificateRefs: [{{group: '', kind: ConfigMap, name: authority}}]
---
apiVersion: pontoon.dev/v1alpha1
kind: Migration
metadata: {{name: orders, namespace: default}}
spec:
  service: orders
  legacy: {{eureka: {{application: ORDERS}}}}
  target: {{service: {{name: orders-new}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: orders, namespace: default}}
spec:
  parentRefs: [{{name: edge}}]
  rules: [{{backendRefs: [{{name: orders, port: 80}}]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {{name: orders, namespace: default}}
spec:
  parentRefs: [{{name: edge}}]
  hostnames: [grpc.test]
  rules: [{{backendRefs: [{{name: orders, port: 80}}]}}]
"
    ));
    objects.services.extend([service("orders", 80), service("orders-new", 443)]);
    let compiled = compile(&Model { objects: Arc::new(objects), in_pods: true, ..Model::default() });
    let view = &compiled.views["default/edge"];
    let clusters: Vec<&str> = view.resources(ResourceType::Cluster).keys().map(|name| &**name).collect();
    let target = "service/default/orders-new/443/tls/default/tls";
    assert_eq!(clusters, ["eureka/ORDERS", "eureka/ORDERS/h2", target, &format!("{target}/h2")]);
    let migration = &compiled.migrations[&ObjectName::new("default", "orders")];
    assert_eq!(migration.target.as_deref(), Some(target));
    // Its sidecars do the same.
    assert!(compiled.views["default"].get(ResourceType::Cluster, target).is_some());
    // And the policy says where it is in force.
    let policies = &compiled.standings.policies[&ObjectName::new("default", "tls")];
    let wanted = [("Accepted", true, "Accepted"), ("ResolvedRefs", true, "ResolvedRefs")];
    assert_eq!(policies.iter().map(|of| said(&of.conditions)).collect::<Vec<_>>(), [wanted]);
}

#[test]
fn of_listeners_that_a_route_may_not_hang_on_it_is_not_told() {
    let of = |namespace: &str, gateway: &str| {
        let compiled = compiled(&format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: default}}
spec:
  gatewayClassName: pontoon
  listeners:
  - {{name: own, port: 80, protocol: HTTP}}
  - {{name: all, port: 81, protocol: HTTP, allowedRoutes: {{namespaces: {{from: All}}}}}}
  - {{name: tcp, port: 82, protocol: TCP, allowedRoutes: {{namespaces: {{from: All}}}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: shop, namespace: {namespace}}}
spec:
  parentRefs: [{{name: {gateway}, namespace: default, sectionName: nowhere}}]
  rules: [{{backendRefs: [{{name: shop}}]}}]
"
        ));
        let route = ObjectRef { kind: Kind::HttpRoute, name: ObjectName::new(namespace, "shop") };
        let said = compiled.statuses.of(&route).iter().find(|condition| !condition.status);
        said.expect("a condition").message.clone()
    };
    let begin = "Gateway default/edge serves no listener with that sectionName and port; it serves";
    assert_eq!(of("default", "edge"), format!("{begin} own:80, all:81"));
    assert_eq!(of("other", "edge"), format!("{begin} all:81"));
    assert_eq!(of("default", "edg"), "there is no Gateway default/edg; did you mean edge?");
    assert_eq!(of("other", "edg"), "there is no Gateway default/edg");
}

#[test]
fn endpoints_that_expect_tls_are_spoken_to_by_a_policy_or_passed_connections() {
    let authority = authority("vault.test");
    let manifest = format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: default}}
spec:
  gatewayClassName: pontoon
  listeners:
  - {{name: http, port: 80, protocol: HTTP}}
  - {{name: tls, port: 443, protocol: TLS, tls: {{mode: Passthrough}}}}
---
{authority}
---
apiVersion: pontoon.dev/v1alpha1
kind: Pool
metadata: {{name: pool, namespace: default}}
spec: {{service: {{name: vault}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: vault, namespace: default}}
spec:
  parentRefs: [{{name: edge, sectionName: http}}]
  rules: [{{backendRefs: [{{name: vault, port: 8443}}]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: {{name: vault, namespace: default}}
spec:
  parentRefs: [{{name: edge, sectionName: tls}}]
  hostnames: [vault.test]
  rules: [{{backendRefs: [{{name: vault, port: 8443}}]}}]
"
    );
    let policy = "
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: tls, namespace: default}
spec:
  targetRefs:
  - {group: '', kind: Service, name: vault}
  - {group: pontoon.dev, kind: Pool, name: pool}
  validation: {hostname: vault.test, caCertificateRefs: [{group: '', kind: ConfigMap, name: authority}]}
";
    let of = |manifest: &str, protocol: &str| {
        let mut objects = objects_of(manifest);
        let (name, service) = service("vault", 8443);
        let mut service = (*service).clone();
        service.ports.iter_mut().for_each(|port| port.app_protocol = Some(protocol.into()));
        objects.services.insert(name, Arc::new(service));
        compile(&Model { objects: Arc::new(objects), in_pods: true, ..Model::default() })
    };
    let clusters = |compiled: &Compiled, view: &str| -> Vec<String> {
        let clusters = compiled.views[view].resources(ResourceType::Cluster);
        clusters.keys().map(ToString::to_string).collect()
    };
    let wrong = |compiled: &Compiled, kind: Kind| -> Vec<String> {
        let route = ObjectRef { kind, name: ObjectName::new("default", "vault") };
        let said = compiled.statuses.of(&route).iter().filter(|condition| !condition.status);
        said.map(|condition| format!("{}: {}: {}", condition.field, condition.reason, condition.message))
            .collect()
    };
    for protocol in ["https", "kubernetes.io/wss"] {
        let compiled = of(&manifest, protocol);
        assert_eq!(clusters(&compiled, "default/edge"), ["service/default/vault/8443"], "connections pass");
        assert_eq!(wrong(&compiled, Kind::TlsRoute), Vec::<String>::new());
        let message = format!(
            "spec.rules[0].backendRefs[0].name: UnsupportedProtocol: Service default/vault is of appProtocol {protocol}: it \
             needs a BackendTLSPolicy, which says whose certificates count"
        );
        assert_eq!(wrong(&compiled, Kind::HttpRoute), [message]);
        assert_eq!(clusters(&compiled, "default"), Vec::<String>::new(), "nor by sidecars");

        let compiled = of(&format!("{manifest}{policy}"), protocol);
        let over_tls = "service/default/vault/8443/tls/default/tls";
        assert_eq!(clusters(&compiled, "default/edge"), ["service/default/vault/8443", over_tls]);
        assert_eq!(wrong(&compiled, Kind::HttpRoute), Vec::<String>::new());
        assert_eq!(clusters(&compiled, "default"), ["pool/default/pool/tls/default/tls"]);
    }
    assert_eq!(wrong(&of(&manifest, "example.com/any"), Kind::HttpRoute), Vec::<String>::new());
}

#[test]
fn after_a_migration_its_name_is_the_services_in_sidecars_too() {
    let migration = "
apiVersion: pontoon.dev/v1alpha1
kind: Migration
metadata: {name: s1, namespace: default}
spec:
  service: s1
  legacy: {eureka: {application: S1}}
  target: {service: {name: s1}}
";
    let mut objects = objects_of(migration);
    objects.services.extend([service("s1", 80), service("s2", 80)]);
    objects.services.extend([service("other", 80)]);
    let under_way =
        Model { objects: Arc::new(objects), registry: Arc::new(registry(None)), ..Model::default() };
    let without = |model: &Model| {
        let mut objects = (*model.objects).clone();
        objects.migrations.clear();
        Model { objects: Arc::new(objects), ..model.clone() }
    };
    let mut compiler = Compiler::default();
    let before = compiler.compile(&under_way);
    let view = &before.views["default"];
    assert!(view.get(ResourceType::Cluster, "eureka/S1").is_some());
    assert!(view.get(ResourceType::Cluster, "eureka/S2").is_none(), "routes mean the Service");
    // The application is registered still, and routes mean the Service.
    let after = compiler.compile(&without(&under_way));
    let view = &after.views["default"];
    assert!(view.get(ResourceType::Cluster, "service/default/s1/80").is_some());
    assert!(view.get(ResourceType::Cluster, "eureka/S1").is_none());
    assert!(view.get(ResourceType::Listener, "other").is_none(), "what was never called so is not");

    // It has gone, and somebody has kept the address.
    let slots = BTreeMap::from([("default/s1".into(), 7)]);
    let addresses = Arc::new(Addresses::new(Ranges::default(), slots));
    let kept_v4 = addresses.of("default/s1").and_then(|address| address.v4).expect("an address").to_string();
    let gone = Model { registry: Arc::default(), addresses, ..without(&under_way) };
    let kept = compiler.compile(&gone);
    let view = &kept.views["default"];
    assert!(view.get(ResourceType::Listener, &kept_v4).is_some());
    assert!(view.get(ResourceType::Cluster, "service/default/s1/80").is_some());
    assert!(view.get(ResourceType::Listener, "s2").is_none());

    // A Service that comes, with all else as it is.
    let mut objects = (*gone.objects).clone();
    objects.services.remove(&ObjectName::new("default", "s1"));
    let lacking = Model { objects: Arc::new(objects), ..gone.clone() };
    assert!(compiler.compile(&lacking).views["default"].get(ResourceType::Listener, "s1").is_none());
    assert!(compiler.compile(&gone).views["default"].get(ResourceType::Listener, "s1").is_some());
}

#[test]
fn keys_go_to_proxies_for_listeners_that_are_served_only() {
    let signed = rcgen::generate_simple_self_signed(["shop.test".to_owned()]).expect("a certificate");
    let indented = |pem: String| pem.replace('\n', "\n    ");
    let of = |kind: &str, port: u16| {
        compiled(&format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, namespace: default}}
spec:
  gatewayClassName: pontoon
  listeners:
  - {{name: http, port: 80, protocol: HTTP}}
  - name: https
    port: {port}
    protocol: HTTPS
    tls: {{certificateRefs: [{{group: '', kind: {kind}, name: shop}}]}}
---
apiVersion: v1
kind: Secret
metadata: {{name: shop, namespace: default}}
type: kubernetes.io/tls
stringData:
  tls.crt: |
    {}
  tls.key: |
    {}
",
            indented(signed.cert.pem()),
            indented(signed.signing_key.serialize_pem())
        ))
    };
    let secrets = |compiled: &Compiled| compiled.views["default/edge"].resources(ResourceType::Secret).len();
    assert_eq!(secrets(&of("Secret", 443)), 1);
    assert_eq!(secrets(&of("Secret", 80)), 0, "port 80 is of another protocol");
    // A Secret of the name of something else is not meant.
    let other = of("ConfigMap", 443);
    assert_eq!(secrets(&other), 0);
    let standing = &other.standings.gateways[&ObjectName::new("default", "edge")];
    let https = said(&standing.listeners[1].conditions);
    assert!(https.contains(&("Programmed", false, "Invalid")), "{https:?}");
    assert!(https.contains(&("ResolvedRefs", false, "InvalidCertificateRef")), "{https:?}");
}
