use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;
use crate::model::instance::RegistryView;
use crate::model::upstream::{Source, SourceStatus};

/// `address` is one of the pod's, `state` is `ready`, `unready`, `draining` (ends, and still answers), `gone`, `silent`
/// (says nothing).
fn slice(
    name: &str,
    service: &str,
    family: &str,
    ports: &[(&str, i32)],
    pods: &[(&str, &str, &str)],
) -> api::EndpointSlice {
    let conditions = |state: &str| {
        let of = |ready, serving, terminating| api::EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        };
        match state {
            "ready" => Some(of(true, true, false)),
            "unready" => Some(of(false, false, false)),
            "draining" => Some(of(false, true, true)),
            "gone" => Some(of(false, false, true)),
            _ => None,
        }
    };
    api::EndpointSlice {
        metadata: ObjectMeta {
            namespace: Some("shop".into()),
            name: Some(name.into()),
            labels: Some([("kubernetes.io/service-name".to_owned(), service.to_owned())].into()),
            ..ObjectMeta::default()
        },
        address_type: family.into(),
        ports: Some(
            ports
                .iter()
                .map(|(name, port)| api::EndpointPort {
                    name: Some((*name).to_owned()),
                    port: Some(*port),
                    protocol: Some("TCP".into()),
                    ..api::EndpointPort::default()
                })
                .collect(),
        ),
        endpoints: pods
            .iter()
            .map(|(pod, address, state)| api::Endpoint {
                addresses: vec![(*address).to_owned()],
                conditions: conditions(state),
                target_ref: Some(ObjectReference {
                    uid: Some((*pod).to_owned()),
                    ..ObjectReference::default()
                }),
                zone: Some("a".into()),
                ..api::Endpoint::default()
            })
            .collect(),
    }
}

#[derive(Default)]
struct Case {
    index: Index,
    view: ServiceView,
    views: usize,
}

impl Case {
    fn listed(slices: &[api::EndpointSlice]) -> Case {
        let mut case = Case::default();
        case.list(slices);
        case
    }

    fn hear(&mut self, heard: HeardSlice) -> usize {
        let doubted = self.index.hear(heard, Instant::now());
        if let Some(view) = self.index.take_view() {
            self.view = view;
            self.views += 1;
        }
        doubted
    }

    fn list(&mut self, slices: &[api::EndpointSlice]) -> usize {
        self.hear(Heard::ListBegins);
        for slice in slices {
            let (key, slice) = slice::read(slice).unwrap();
            self.hear(Heard::Listed(key, Arc::new(slice)));
        }
        self.hear(Heard::ListEnds)
    }

    fn apply(&mut self, slice: &api::EndpointSlice) -> &mut Case {
        let (key, slice) = slice::read(slice).unwrap();
        self.hear(Heard::Applied(key, Arc::new(slice)));
        self
    }

    fn delete(&mut self, name: &str) -> &mut Case {
        self.hear(Heard::Deleted(ObjectName::new("shop", name)));
        self
    }

    fn resolved(&self, service: &str, port: &str, prefers_v6: bool) -> (Vec<String>, SourceStatus) {
        let name = ObjectName::new("shop", service);
        let source = Source::Service { name, port: port.into(), prefers_v6 };
        let view = RegistryView { services: self.view.clone(), ..RegistryView::default() };
        let resolved = source.resolve(&view);
        (resolved.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect(), resolved.status)
    }

    fn endpoints(&self, service: &str, port: &str) -> Vec<String> {
        self.resolved(service, port, false).0
    }
}

#[test]
fn an_endpoint_is_for_the_zones_that_its_hints_name() {
    let pods = [("p1", "10.0.0.1", "ready"), ("p2", "10.0.0.2", "ready"), ("p3", "10.0.0.3", "draining")];
    let hinted = |pods: &[(&str, &str, &str)]| {
        let mut slice = slice("a-1", "a", "IPv4", &[("http", 8080)], pods);
        for (endpoint, zones) in slice.endpoints.iter_mut().zip([&["b", "a"][..], &[], &["a"]]) {
            let for_zones = zones.iter().map(|name| api::ForZone { name: (*name).to_owned() }).collect();
            endpoint.hints = Some(api::EndpointHints { for_zones: Some(for_zones) });
        }
        slice
    };
    let zones_of = |case: &Case| -> Vec<String> {
        let source =
            Source::Service { name: ObjectName::new("shop", "a"), port: "http".into(), prefers_v6: false };
        let view = RegistryView { services: case.view.clone(), ..RegistryView::default() };
        source.resolve(&view).endpoints.iter().map(|endpoint| endpoint.for_zones.join(",")).collect()
    };
    assert_eq!(zones_of(&Case::listed(&[hinted(&pods)])), ["a,b", ""]);
    let ending = [pods[1], pods[0], pods[2]].map(|(pod, address, _)| (pod, address, "draining"));
    assert_eq!(zones_of(&Case::listed(&[hinted(&ending)])), ["", "", ""], "of those that end all are taken");
}

#[test]
fn each_port_has_its_own_number_at_the_pods() {
    let case = Case::listed(&[slice(
        "a-1",
        "a",
        "IPv4",
        &[("http", 8080), ("admin", 9090)],
        &[("p1", "10.0.0.1", "ready"), ("p2", "10.0.0.2", "ready")],
    )]);
    assert_eq!(case.endpoints("a", "http"), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(case.endpoints("a", "admin"), ["10.0.0.1:9090", "10.0.0.2:9090"]);
    let (none, status) = case.resolved("a", "other", false);
    assert_eq!(none, [""; 0]);
    assert!(status.unknown);
}

#[test]
fn those_that_end_are_used_only_where_none_is_ready() {
    let pods = |first: &str, second: &str| {
        slice(
            "a-1",
            "a",
            "IPv4",
            &[("", 80)],
            &[("p1", "10.0.0.1", first), ("p2", "10.0.0.2", second), ("p3", "10.0.0.3", "unready")],
        )
    };
    let mut case = Case::listed(&[pods("ready", "draining")]);
    assert_eq!(case.endpoints("a", ""), ["10.0.0.1:80"]);
    case.apply(&pods("draining", "draining"));
    assert_eq!(case.endpoints("a", ""), ["10.0.0.1:80", "10.0.0.2:80"]);
    case.apply(&pods("gone", "draining"));
    assert_eq!(case.endpoints("a", ""), ["10.0.0.2:80"]);
    case.apply(&pods("gone", "gone"));
    assert_eq!(case.endpoints("a", ""), [""; 0]);
    case.apply(&pods("silent", "gone"));
    assert_eq!(case.endpoints("a", ""), ["10.0.0.1:80"], "nothing said is ready");
}

#[test]
fn a_pod_of_both_families_is_one_endpoint() {
    let case = Case::listed(&[
        slice("a-4", "a", "IPv4", &[("", 80)], &[("p1", "10.0.0.1", "ready"), ("p2", "10.0.0.2", "ready")]),
        slice("a-6", "a", "IPv6", &[("", 80)], &[("p1", "fd00::1", "ready"), ("p3", "fd00::3", "ready")]),
    ]);
    assert_eq!(case.endpoints("a", ""), ["10.0.0.1:80", "10.0.0.2:80", "[fd00::3]:80"]);
    assert_eq!(case.resolved("a", "", true).0, ["10.0.0.2:80", "[fd00::1]:80", "[fd00::3]:80"]);
}

#[test]
fn a_pod_that_moves_from_one_slice_to_another_is_never_missing_nor_twice() {
    let with = |name, pods: &[_]| slice(name, "a", "IPv4", &[("", 80)], pods);
    let (p1, p2) = (("p1", "10.0.0.1", "ready"), ("p2", "10.0.0.2", "ready"));
    let mut case = Case::listed(&[with("a-1", &[p1]), with("a-2", &[p2])]);
    let all = ["10.0.0.1:80", "10.0.0.2:80"];
    assert_eq!(case.apply(&with("a-2", &[p1, p2])).endpoints("a", ""), all);
    assert_eq!(case.apply(&with("a-1", &[])).endpoints("a", ""), all);
    assert_eq!(case.delete("a-1").endpoints("a", ""), all);
    assert_eq!(case.delete("a-2").endpoints("a", ""), [""; 0]);
    assert!(case.view.services.is_empty());
}

#[test]
fn a_slice_that_changes_its_service_leaves_the_old_one() {
    let of = |service| slice("x", service, "IPv4", &[("", 80)], &[("p1", "10.0.0.1", "ready")]);
    let mut case = Case::listed(&[of("a")]);
    case.apply(&of("b"));
    assert_eq!((case.endpoints("a", "").len(), case.endpoints("b", "").len()), (0, 1));
}

#[test]
fn what_changes_nothing_makes_no_new_view_and_others_keep_their_identity() {
    let of =
        |service: &str, address| slice(service, service, "IPv4", &[("", 80)], &[("p", address, "ready")]);
    let mut case = Case::listed(&[of("a", "10.0.0.1"), of("b", "10.0.0.2")]);
    assert_eq!(case.views, 1, "a list is one change");
    case.apply(&of("a", "10.0.0.1"));
    assert_eq!(case.list(&[of("a", "10.0.0.1"), of("b", "10.0.0.2")]), 0);
    assert_eq!(case.views, 1);
    let b = |case: &Case| case.view.services.get(&ObjectName::new("shop", "b")).unwrap().clone();
    let before = b(&case);
    case.apply(&of("a", "10.0.0.9"));
    assert_eq!(case.views, 2);
    assert!(Arc::ptr_eq(&before, &b(&case)));
}

#[test]
fn an_empty_list_takes_no_endpoints_and_says_that_they_are_held() {
    let of = |service: &str| slice(service, service, "IPv4", &[("", 80)], &[("p", "10.0.0.1", "ready")]);
    let mut case = Case::listed(&[of("a"), of("b")]);
    assert_eq!(case.list(&[]), 2, "ask again");
    assert_eq!(case.endpoints("a", ""), ["10.0.0.1:80"]);
    assert!(case.resolved("a", "", false).1.held);
    assert_eq!(case.list(&[of("a"), of("b")]), 0);
    assert!(!case.resolved("a", "", false).1.held);
}

#[test]
fn what_is_no_address_or_of_no_service_is_not_read() {
    let mut fqdn = slice("a", "a", "FQDN", &[("", 80)], &[("p", "example.com", "ready")]);
    assert_eq!(slice::read(&fqdn), None);
    fqdn.address_type = "IPv4".into();
    assert_eq!(slice::read(&fqdn).unwrap().1.endpoints, []);
    fqdn.metadata.labels = None;
    assert_eq!(slice::read(&fqdn), None);
    let udp = |protocol: &str| {
        let mut slice = slice("a", "a", "IPv4", &[("dns", 53)], &[]);
        slice.ports.as_mut().unwrap()[0].protocol = Some(protocol.to_owned());
        slice
    };
    assert_eq!(slice::read(&udp("UDP")).unwrap().1.ports, []);
    assert_eq!(
        slice::read(&slice("a", "a", "IPv4", &[("x", 70_000), ("y", 0), ("z", 1)], &[]))
            .unwrap()
            .1
            .ports
            .len(),
        1
    );
}

/// Any order of events ends where a list of what is there would.
#[test]
fn any_sequence_ends_where_a_list_would() {
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut truth: BTreeMap<u8, api::EndpointSlice> = BTreeMap::new();
        let mut case = Case::listed(&[]);
        for _ in 0..100 {
            let which = random.u8(0..8);
            let name = format!("s{which}");
            if random.u8(0..4) == 0 {
                truth.remove(&which);
                case.delete(&name);
            } else {
                let service = ["a", "b", "c"][random.usize(0..3)];
                let states = ["ready", "unready", "draining", "gone"];
                let pods: Vec<(String, String)> = (0..random.u8(0..4))
                    .map(|_| random.u8(1..9))
                    .map(|pod| (format!("p{pod}"), format!("10.0.0.{pod}")))
                    .collect();
                let state = states[random.usize(0..4)];
                let pods: Vec<(&str, &str, &str)> = pods.iter().map(|(p, a)| (&**p, &**a, state)).collect();
                let slice = slice(&name, service, "IPv4", &[("", 80)], &pods);
                case.apply(&slice);
                truth.insert(which, slice);
            }
        }
        let fresh = Case::listed(&truth.into_values().collect::<Vec<_>>());
        assert_eq!(case.view, fresh.view, "seed {seed}");
    }
}
