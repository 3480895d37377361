use std::sync::Arc;

use imbl::OrdMap;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Compiled, Compiler, compile};
use crate::model::Model;
use crate::model::instance::{PodEndpoint, RegistryView, ServiceEndpoints, ServiceView};
use crate::objects::service::ServicePort;
use crate::objects::{ObjectName, Objects, Service};

const ROUTES: usize = 6;
const SERVICES: usize = 4;
/// Exact ones, wildcards that cover some of them and each other, and all hosts.
const HOSTS: [&str; 6] = ["a.test", "b.a.test", "*.a.test", "*.test", "c.b.a.test", ""];

/// What is done to a model.
#[derive(Debug, Clone)]
enum Step {
    Route {
        number: usize,
        hosts: Vec<usize>,
        service: usize,
        listener: Option<usize>,
        mirror: Option<usize>,
        /// With what is not supported, so that the route is not accepted.
        refused: bool,
    },
    NoRoute(usize),
    Service {
        number: usize,
        port: u16,
    },
    NoService(usize),
    Endpoint {
        service: usize,
        last: u8,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let route = (
        0..ROUTES,
        proptest::collection::vec(0..HOSTS.len(), 1..4),
        0..SERVICES + 1,
        proptest::option::of(0..3_usize),
        proptest::option::of(0..SERVICES),
        proptest::bool::weighted(0.2),
    );
    let step = prop_oneof![
        6 => route.prop_map(|(number, hosts, service, listener, mirror, refused)| {
            Step::Route { number, hosts, service, listener, mirror, refused }
        }),
        2 => (0..ROUTES).prop_map(Step::NoRoute),
        2 => (0..SERVICES, 80..82_u16).prop_map(|(number, port)| Step::Service { number, port }),
        1 => (0..SERVICES).prop_map(Step::NoService),
        1 => (0..SERVICES, 1..4_u8).prop_map(|(service, last)| Step::Endpoint { service, last }),
    ];
    proptest::collection::vec(step, 1..24)
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).expect("an object"))
}

/// Two listeners share a port, one is for some hosts only; another gateway is not named by any route at first.
fn begin() -> Model {
    let gateway = |gateway: &str, port: u16| {
        let listener = |name: &str, port: u16, host: Option<&str>| {
            let mut listener = json!({ "name": name, "port": port, "protocol": "HTTP" });
            if let Some(host) = host {
                listener["hostname"] = json!(host);
            }
            listener
        };
        read(json!({
            "metadata": { "name": gateway },
            "spec": { "gatewayClassName": "pontoon", "listeners": [
                listener("all", port, None),
                listener("some", port, Some("*.a.test")),
                listener("other", port + 1, None),
            ] }
        }))
    };
    let gateways = ["edge", "inner"].into_iter().zip([8080, 9090]);
    let gateways = gateways.map(|(of, port)| (name(of), gateway(of, port))).collect();
    // A cluster is never without Services.
    let services = OrdMap::unit(name("kubernetes"), Arc::new(Service::default()));
    let objects = Objects { gateways, services, ..Objects::default() };
    Model { objects: Arc::new(objects), ..Model::default() }
}

fn service(number: usize) -> String {
    format!("s{number}")
}

impl Step {
    fn take(&self, model: &mut Model) {
        let objects = Arc::make_mut(&mut model.objects);
        match self {
            Step::Route { number, hosts, service: of, listener, mirror, refused } => {
                let gateway = if number % 2 == 0 { "edge" } else { "inner" };
                let mut parent = json!({ "name": gateway });
                if let Some(listener) = listener {
                    parent["sectionName"] = json!(["all", "some", "other"][*listener]);
                }
                let hosts: Vec<&str> = hosts.iter().map(|host| HOSTS[*host]).collect();
                let hosts = if hosts.contains(&"") { Vec::new() } else { hosts };
                let mirror = mirror.map(|mirror| {
                    json!([{
                        "type": "RequestMirror",
                        "requestMirror": { "backendRef": { "name": service(mirror), "port": 80 } },
                    }])
                });
                // The younger the number, but for those that do not say it.
                let mut metadata = json!({ "name": format!("r{number}") });
                if number % 3 != 0 {
                    metadata["creationTimestamp"] = json!(format!("2026-01-0{}T00:00:00Z", 9 - number));
                }
                let mut route = json!({
                    "metadata": metadata,
                    "spec": { "parentRefs": [parent, { "name": "edge" }], "hostnames": hosts, "rules": [{
                        "matches": [{ "path": { "value": format!("/{of}") } }, { "path": { "value": "/0" } }],
                        "filters": mirror.unwrap_or_else(|| json!([])),
                        "backendRefs": [{ "name": service(*of), "port": 80 }],
                    }] }
                });
                if *refused {
                    route["spec"]["rules"][0]["sessionPersistence"] = json!({ "sessionName": "s" });
                }
                objects.routes.insert(name(&format!("r{number}")), read(route));
            }
            Step::NoRoute(number) => drop(objects.routes.remove(&name(&format!("r{number}")))),
            Step::Service { number, port } => {
                let ports = vec![ServicePort { name: "http".into(), port: *port, app_protocol: None }];
                let of = Service { ports, ..Service::default() };
                objects.services.insert(name(&service(*number)), Arc::new(of));
            }
            Step::NoService(number) => drop(objects.services.remove(&name(&service(*number)))),
            Step::Endpoint { service: of, last } => {
                let pod = PodEndpoint {
                    v4: Some(([10, 0, 0, *last], 8080).into()),
                    v6: None,
                    ready: true,
                    serving: true,
                    terminating: false,
                    zone: None,
                    for_zones: Arc::default(),
                };
                let endpoints = ServiceEndpoints { ports: [("http".into(), vec![pod])].into() };
                let mut services = model.registry.services.services.clone();
                services.insert(name(&service(*of)), Arc::new(endpoints));
                let services = ServiceView { services, held: false };
                model.registry = Arc::new(RegistryView { services, ..RegistryView::default() });
            }
        }
    }
}

fn resources(compiled: &Compiled) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for (view, snapshot) in &compiled.views {
        for ty in pontoon_xds::ResourceType::ALL {
            let of = snapshot.resources(ty).values();
            let named = of.map(|resource| {
                (
                    format!("{view} {}", ty.short_name()),
                    resource.name.to_string(),
                    resource.version.to_string(),
                )
            });
            all.extend(named);
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is done in whatever order, what is followed is what is compiled from nothing.
    #[test]
    fn what_is_followed_is_as_if_compiled_from_nothing(steps in steps(), at_once in 1..4_usize) {
        let mut model = begin();
        let mut compiler = Compiler::default();
        compiler.compile(&model);
        for some in steps.chunks(at_once) {
            some.iter().for_each(|step| step.take(&mut model));
            let (warm, fresh) = (compiler.compile(&model), compile(&model));
            prop_assert_eq!(resources(&warm), resources(&fresh));
            prop_assert_eq!(&warm.statuses, &fresh.statuses);
            prop_assert_eq!(&warm.standings, &fresh.standings);
            prop_assert_eq!(&warm.clusters, &fresh.clusters);
        }
    }
}

#[test]
fn routes_are_counted_on_a_listener_while_they_are_accepted() {
    let mut model = begin();
    let route = |refused| Step::Route {
        number: 0,
        hosts: vec![0],
        service: 0,
        listener: None,
        mirror: None,
        refused,
    };
    let mut compiler = Compiler::default();
    for refused in [false, true, false] {
        route(refused).take(&mut model);
        let counted = compiler.compile(&model).standings.gateways[&name("edge")].listeners[0].attached_routes;
        assert_eq!(counted, usize::from(!refused));
    }
}

#[test]
fn a_change_of_one_route_leaves_the_others_as_they_are() {
    let mut model = begin();
    let route = |number| Step::Route {
        number,
        hosts: vec![0],
        service: number,
        listener: None,
        mirror: None,
        refused: false,
    };
    (0..ROUTES).for_each(|number| route(number).take(&mut model));
    let mut compiler = Compiler::default();
    compiler.compile(&model);
    Step::NoRoute(1).take(&mut model);
    compiler.compile(&model);
    let compiled = |compiler: &Compiler| {
        let plan = compiler.plan.as_ref().expect("a plan");
        (plan.http.len(), plan.http[&name("r2")].compiled.clone())
    };
    let (left, before) = compiled(&compiler);
    assert_eq!(left, ROUTES - 1);
    route(1).take(&mut model);
    compiler.compile(&model);
    let (all, after) = compiled(&compiler);
    assert!(all == ROUTES && Arc::ptr_eq(&before, &after));
}
