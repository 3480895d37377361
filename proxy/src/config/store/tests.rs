use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, address, socket_address::PortSpecifier};
use envoy_types::pb::envoy::config::core::v3::{HttpUri, http_uri};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{Endpoint, LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, filter};
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{Route, RouteAction, RouteMatch, VirtualHost, route};
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{
    CheckSettings, ExtAuthz, ExtAuthzPerRoute, HttpService, check_settings, ext_authz, ext_authz_per_route,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use envoy_types::pb::google::protobuf::{Any, BoolValue};
use envoy_types::util::pack_any;
use pontoon_xds::resource::ResourceMessage;

use super::*;

fn address(port: u32) -> Option<Address> {
    let port_specifier = Some(PortSpecifier::PortValue(port));
    let socket = SocketAddress { address: "127.0.0.1".into(), port_specifier, ..Default::default() };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

fn listener(port: u32) -> ListenerMessage {
    listening(port, None)
}

/// A listener with a filter before the router.
fn listening(port: u32, before: Option<Any>) -> ListenerMessage {
    let configs = before.into_iter().chain([pack_any(Router::default())]);
    let http_filters = configs.map(|config| HttpFilter {
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    });
    let manager = HttpConnectionManager {
        stat_prefix: "l".into(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            route_config_name: "r".into(),
            ..Default::default()
        })),
        http_filters: http_filters.collect(),
        ..Default::default()
    };
    let filter = Filter {
        config_type: Some(filter::ConfigType::TypedConfig(pack_any(manager))),
        ..Default::default()
    };
    ListenerMessage {
        name: "l".into(),
        address: address(port),
        filter_chains: vec![FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    }
}

fn routes(cluster: &str) -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".into())),
            ..Default::default()
        }),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    let host = VirtualHost {
        name: "v".into(),
        domains: vec!["*".into()],
        routes: vec![route],
        ..Default::default()
    };
    RouteConfiguration { name: "r".into(), virtual_hosts: vec![host], ..Default::default() }
}

fn cluster(name: &str) -> ClusterMessage {
    ClusterMessage {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        ..Default::default()
    }
}

fn assignment(name: &str, ports: &[u32]) -> ClusterLoadAssignment {
    let endpoint = |port: &u32| LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: address(*port),
            ..Default::default()
        })),
        ..Default::default()
    };
    let locality =
        LocalityLbEndpoints { lb_endpoints: ports.iter().map(endpoint).collect(), ..Default::default() };
    ClusterLoadAssignment { cluster_name: name.into(), endpoints: vec![locality], ..Default::default() }
}

struct Given {
    store: Store,
    now: Instant,
}

impl Given {
    fn nothing() -> Given {
        Given { store: Store::default(), now: Instant::now() }
    }

    /// A store in which everything is in force.
    fn serving() -> Given {
        let mut given = Given::nothing();
        given.put(&cluster("a")).put(&assignment("a", &[1, 2])).put(&listener(8080)).put(&routes("a"));
        assert!(given.store.is_ready());
        given
    }

    fn put<M: ResourceMessage>(&mut self, message: &M) -> &mut Given {
        assert_eq!(self.try_put(message), []);
        self
    }

    fn try_put<M: ResourceMessage>(&mut self, message: &M) -> Vec<Rejected> {
        let update = Update { ty: M::TYPE, changed: vec![Resource::encode(message)], removed: Vec::new() };
        self.store.apply(update, self.now)
    }

    fn remove(&mut self, ty: ResourceType, name: &str) {
        let update = Update { ty, changed: Vec::new(), removed: vec![name.into()] };
        assert_eq!(self.store.apply(update, self.now), []);
    }

    /// So many seconds pass.
    fn later(&mut self, seconds: u64) {
        self.now += std::time::Duration::from_secs(seconds);
        self.store.settle(self.now);
    }

    fn table(&self) -> Option<Arc<crate::route::RouteTable>> {
        self.store.listeners.get("l")?.value.handle.route_handles()[0].table.load_full()
    }

    fn cluster(&self, name: &str) -> Arc<Cluster> {
        self.store.handles.get(name).unwrap().clone()
    }
}

#[test]
fn a_listener_goes_live_once_its_routes_are_there_and_warm() {
    let mut given = Given::nothing();
    given.put(&listener(8080));
    assert_eq!(given.store.wanted(ResourceType::Route), BTreeSet::from(["r".into()]));
    given.put(&routes("a"));
    assert!(given.store.live_listeners().is_empty() && !given.store.is_ready());
    given.put(&cluster("a"));
    assert_eq!(given.store.wanted(ResourceType::Endpoint), BTreeSet::from(["a".into()]));
    assert_eq!(given.store.waiting_for(), ["r: cluster a is not warm"]);
    given.put(&assignment("a", &[]));
    assert_eq!(given.store.live_listeners().len(), 1);
    assert!(given.store.is_ready());
}

#[test]
fn a_table_does_not_wait_for_ever() {
    let mut given = Given::nothing();
    given.put(&listener(8080)).put(&routes("missing"));
    assert!(given.store.live_listeners().is_empty());
    given.now = given.store.deadline().unwrap();
    given.store.settle(given.now);
    assert_eq!(given.store.live_listeners().len(), 1);
}

#[test]
fn a_new_table_is_put_in_force_when_its_new_cluster_is_warm() {
    let mut given = Given::serving();
    let before = given.table().unwrap();
    given.put(&routes("b"));
    assert!(Arc::ptr_eq(&before, &given.table().unwrap()), "the old table serves on");
    given.put(&cluster("b"));
    given.put(&assignment("b", &[3]));
    assert!(!Arc::ptr_eq(&before, &given.table().unwrap()));
}

#[test]
fn a_table_that_serves_is_replaced_by_one_with_a_cold_cluster_after_15_s() {
    let mut given = Given::serving();
    let (before, start) = (given.table().unwrap(), given.now);
    let after = |seconds| start + std::time::Duration::from_secs(seconds);
    let is_old = |given: &Given| Arc::ptr_eq(&before, &given.table().unwrap());
    given.put(&cluster("b")).put(&routes("b"));
    // Versions that follow do not prolong it.
    given.now = after(7);
    let mut again = routes("b");
    again.virtual_hosts[0].name = "w".into();
    given.put(&again);
    given.now = after(14);
    given.store.settle(given.now);
    assert!(is_old(&given));
    assert_eq!(given.store.deadline(), Some(after(15)));
    given.now = after(15);
    given.store.settle(given.now);
    assert!(!is_old(&given));

    // It is in force with it now, and later ones are not held up by that.
    let before = given.table().unwrap();
    given.put(&routes("b"));
    assert!(!Arc::ptr_eq(&before, &given.table().unwrap()));
}

#[test]
fn each_new_cluster_is_waited_for_in_full() {
    let mut given = Given::serving();
    let (before, start) = (given.table().unwrap(), given.now);
    let after = |seconds| start + std::time::Duration::from_secs(seconds);
    given.put(&cluster("b")).put(&cluster("c")).put(&routes("b"));
    given.now = after(14);
    given.put(&routes("c"));
    given.now = after(28);
    given.store.settle(given.now);
    assert!(Arc::ptr_eq(&before, &given.table().unwrap()));
    given.put(&assignment("c", &[3]));
    assert!(!Arc::ptr_eq(&before, &given.table().unwrap()), "warm");
}

#[test]
fn one_new_cluster_after_another_holds_routes_up_for_a_minute() {
    let mut given = Given::serving();
    let before = given.table().unwrap();
    let is_old = |given: &Given| Arc::ptr_eq(&before, &given.table().unwrap());
    for number in 0..6 {
        given.put(&routes(&format!("new-{number}")));
        assert!(is_old(&given));
        given.later(10);
    }
    assert!(!is_old(&given));
}

#[test]
fn what_is_ignored_unlike_in_envoy_is_told_while_it_is_set() {
    use envoy_types::pb::envoy::config::route::v3::Decorator;
    use envoy_types::pb::google::protobuf::UInt32Value;

    let mut given = Given::serving();
    assert_eq!(given.store.differing(), [""; 0]);
    let mut limited = cluster("a");
    limited.per_connection_buffer_limit_bytes = Some(UInt32Value { value: 32_768 });
    given.put(&limited);
    let said = given.store.differing();
    assert!(
        said.len() == 1 && said[0].starts_with("CDS a: envoy.config.cluster.v3.Cluster.per_connection_"),
        "{said:?}"
    );
    given.put(&cluster("a"));
    assert_eq!(given.store.differing(), [""; 0]);

    // A host that is taken over from the version before has it still.
    let mut decorated = routes("a");
    decorated.virtual_hosts[0].routes[0].decorator =
        Some(Decorator { operation: "o".into(), ..Default::default() });
    given.put(&decorated);
    let mut another = routes("a").virtual_hosts.remove(0);
    another.name = "w".into();
    another.domains = vec!["w.example".into()];
    decorated.virtual_hosts.push(another);
    given.put(&decorated);
    let wanted =
        "RDS r: envoy.config.route.v3.Route.decorator is ignored, unlike in Envoy: spans are not reported";
    assert_eq!(given.store.differing(), [wanted]);
    // One that is refused changes nothing.
    let mut bad = routes("a");
    bad.virtual_hosts[0].routes[0].r#match.as_mut().unwrap().grpc = Some(Default::default());
    assert_eq!(given.try_put(&bad).len(), 1);
    assert_eq!(given.store.differing(), [wanted]);
    given.put(&routes("a"));
    assert_eq!(given.store.differing(), [""; 0]);
    given.put(&decorated);
    given.remove(ResourceType::Route, "r");
    assert_eq!(given.store.differing(), [""; 0]);
}

#[test]
fn a_bad_resource_is_refused_alone_and_the_last_good_one_stays() {
    let mut given = Given::serving();
    let before = given.table().unwrap();
    let mut bad = routes("a");
    bad.virtual_hosts[0].routes[0].r#match.as_mut().unwrap().grpc = Some(Default::default());
    let rejected = given.try_put(&bad);
    assert_eq!(&*rejected[0].name, "r");
    assert_eq!(
        rejected[0].reason,
        "virtual_hosts[0].routes[0].match.grpc: is set, but this proxy does not support it"
    );
    assert!(Arc::ptr_eq(&before, &given.table().unwrap()));
    let refused = given.store.dump().iter().find(|d| d.ty == ResourceType::Route).unwrap().refused.clone();
    assert!(refused.unwrap().reason.contains("grpc"));

    given.put(&routes("a"));
    assert!(given.store.dump().iter().all(|d| d.refused.is_none()));
}

#[test]
fn a_refusal_goes_with_the_last_that_names_what_was_refused() {
    let mut given = Given::serving();
    let mut bad_routes = routes("a");
    bad_routes.virtual_hosts[0].routes[0].r#match.as_mut().unwrap().grpc = Some(Default::default());
    let mut bad_assignment = assignment("a", &[1]);
    bad_assignment.named_endpoints.insert("one".into(), Default::default());
    let of = |given: &Given| given.store.refused.keys().map(|(ty, _)| *ty).collect::<Vec<_>>();
    assert_eq!((given.try_put(&bad_routes).len(), given.try_put(&bad_assignment).len()), (1, 1));
    given.put(&cluster("b"));
    assert_eq!(of(&given), [ResourceType::Endpoint, ResourceType::Route]);
    given.remove(ResourceType::Cluster, "a");
    assert_eq!(of(&given), [ResourceType::Route]);
    given.remove(ResourceType::Listener, "l");
    assert_eq!(of(&given), []);
}

#[test]
fn endpoints_that_stay_keep_their_object() {
    let mut given = Given::serving();
    let told = given.cluster("a").endpoints.load_full();
    assert!(told.endpoints.is_empty(), "nothing has been sent there");
    let before = given.cluster("a").used();
    assert!(told.all().eq(before.all()) && Arc::ptr_eq(&before, &given.cluster("a").used()));
    given.put(&assignment("a", &[2, 3]));
    let after = given.cluster("a").endpoints.load_full();
    assert!(Arc::ptr_eq(&before.endpoints[1], &after.endpoints[0]));
    assert_eq!(after.endpoints.len(), 2);
}

#[test]
fn an_emptied_cluster_is_counted() {
    let mut given = Given::serving();
    given.put(&assignment("a", &[]));
    assert!(given.cluster("a").endpoints.load().is_empty());
    assert_eq!(given.store.emptied(), 1);
}

#[test]
fn a_cluster_that_only_a_request_holds_leaves_with_it() {
    let mut given = Given::serving();
    let held = given.table().unwrap();
    given.put(&cluster("b")).put(&assignment("b", &[3])).put(&routes("b"));
    given.remove(ResourceType::Cluster, "a");
    let names =
        |given: &Given| given.store.all_clusters().iter().map(|c| c.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&given), ["a", "b"]);
    drop(held);
    given.now = given.store.deadline().expect("it is looked again");
    given.store.settle(given.now);
    assert_eq!(names(&given), ["b"]);
    assert_eq!(given.store.deadline(), None);
}

#[test]
fn a_cluster_that_is_gone_keeps_its_handle_while_a_route_names_it() {
    let mut given = Given::serving();
    given.remove(ResourceType::Cluster, "a");
    given.later(15);
    assert!(given.cluster("a").settings.load().is_none());
    given.put(&cluster("a"));
    assert!(given.cluster("a").settings.load().is_some(), "the same handle, in the table in force");
    given.put(&cluster("b")).put(&assignment("b", &[1])).put(&routes("b"));
    given.remove(ResourceType::Cluster, "a");
    assert!(!given.store.handles.contains_key("a"));
}

#[test]
fn a_cluster_that_is_gone_serves_on_until_routes_lead_elsewhere() {
    let mut given = Given::serving();
    let serves = |given: &Given| given.cluster("a").settings.load().is_some();
    given.remove(ResourceType::Cluster, "a");
    given.put(&cluster("b")).put(&routes("b"));
    assert!(serves(&given), "routes that lead elsewhere wait for its endpoints");
    given.put(&assignment("b", &[3]));
    assert!(!given.store.handles.contains_key("a"));

    // One that comes again in time has not gone.
    let mut given = Given::serving();
    given.remove(ResourceType::Cluster, "a");
    given.later(14);
    given.put(&cluster("a"));
    given.later(14);
    assert!(serves(&given));
    assert_eq!(given.store.deadline(), None);
}

#[test]
fn what_earlier_routes_lead_to_serves_on_while_later_ones_stand_refused() {
    let mut given = Given::serving();
    let serves = |given: &Given| given.cluster("a").settings.load().is_some();
    given.remove(ResourceType::Cluster, "a");
    let mut bad = routes("b");
    bad.virtual_hosts[0].routes[0].r#match.as_mut().unwrap().grpc = Some(Default::default());
    assert_eq!(given.try_put(&bad).len(), 1);
    given.later(60);
    assert!(serves(&given));
    given.put(&routes("a"));
    assert!(serves(&given), "who takes it away may put it right");
    given.later(15);
    assert!(!serves(&given));
}

#[test]
fn a_listener_at_another_address_is_another_listener() {
    let mut given = Given::serving();
    let before = given.store.live_listeners();
    given.put(&listener(8080));
    assert!(Arc::ptr_eq(&before[0], &given.store.live_listeners()[0]));
    given.put(&listener(9090));
    assert!(!Arc::ptr_eq(&before[0], &given.store.live_listeners()[0]));
    given.remove(ResourceType::Listener, "l");
    assert!(given.store.live_listeners().is_empty());
}

#[test]
fn routes_of_the_control_plane_need_their_clusters_only_where_they_say_so() {
    let mut given = Given::serving();
    given.put(&routes("later"));
    let mut strict = routes("never");
    strict.validate_clusters = Some(BoolValue { value: true });
    let reason = given.try_put(&strict).remove(0).reason;
    assert!(reason.starts_with("virtual_hosts[0].routes[0].route.cluster: is \"never\""), "{reason}");
    given.put(&cluster("never")).put(&strict);
}

#[test]
fn what_is_not_a_resource_at_all_is_refused() {
    let mut given = Given::serving();
    let resource = Resource { name: "x".into(), version: "1".into(), body: vec![0xff, 0xff].into() };
    let update = Update { ty: ResourceType::Cluster, changed: vec![resource], removed: Vec::new() };
    let rejected = given.store.apply(update, given.now);
    assert!(rejected[0].reason.contains("cannot be decoded"), "{}", rejected[0].reason);
    let alone = given.store.dump().into_iter().find(|d| &*d.name == "x").unwrap();
    assert!(alone.in_force.is_none() && alone.refused.is_some());
}

#[test]
fn an_original_destination_is_nothing_to_choose_or_to_wait_for() {
    use envoy_types::pb::envoy::config::cluster::v3::cluster::LbPolicy;
    let mut given = Given::nothing();
    let mut original = cluster("c");
    original.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32));
    assert!(given.try_put(&original)[0].reason.starts_with("lb_policy"));
    original.lb_policy = LbPolicy::ClusterProvided as i32;
    let with_endpoints = ClusterMessage { load_assignment: Some(assignment("c", &[1])), ..original.clone() };
    assert!(given.try_put(&with_endpoints)[0].reason.starts_with("load_assignment"));
    given.put(&original).put(&listener(1)).put(&routes("c"));
    assert!(given.table().is_some(), "the table waits for endpoints that never come");
    let chosen = ClusterMessage { lb_policy: LbPolicy::ClusterProvided as i32, ..cluster("d") };
    assert!(given.try_put(&chosen)[0].reason.starts_with("lb_policy"));
}

#[test]
fn a_transparent_listener_has_sockets_of_its_own() {
    use envoy_types::pb::google::protobuf::BoolValue;
    let mut given = Given::serving();
    let before = given.store.live_listeners();
    let on = Some(BoolValue { value: true });
    given.put(&ListenerMessage { transparent: on, use_original_dst: on, ..listener(1) });
    let after = given.store.live_listeners();
    assert!(!Arc::ptr_eq(&before[0], &after[0]));
    assert!(after[0].transparent && after[0].chains.load().original.is_some());
    let original = after[0].chains.load().original;
    assert_eq!(original, Some(OriginalDst { keep_source: false }), "only a sidecar's own borrows addresses");
}

#[test]
fn endpoints_that_are_meant_for_its_zone_go_first() {
    let meant = |zones: &[&str]| {
        let all = serde_json::json!({
            "cluster_name": "a",
            "endpoints": [{ "lb_endpoints": zones.iter().zip(1..).map(|(zone, port)| serde_json::json!({
                "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } } },
                "metadata": { "filter_metadata": { "pontoon.dev/zones": { "for": [zone] } } },
            })).collect::<Vec<_>>() }],
        });
        let bytes = json::from_json(ResourceType::Endpoint.type_url(), &all).unwrap();
        Resource::of_body("a", bytes).decode::<ClusterLoadAssignment>().unwrap()
    };
    let ports = |given: &Given| -> Vec<u16> {
        given.cluster("a").endpoints.load().all().map(|(address, ..)| address.port()).collect()
    };
    let in_zone = |zone: Option<&str>| {
        let mut given = Given::nothing();
        given.store = std::mem::take(&mut given.store).in_zone(zone.map(Arc::from));
        given.put(&cluster("a"));
        given
    };
    let mut given = in_zone(Some("x"));
    given.put(&meant(&["x", "y", "x"]));
    assert_eq!(ports(&given), [1, 3]);
    given.put(&meant(&["y", "y"]));
    assert_eq!(ports(&given), [1, 2], "none is meant for it");
    let mut given = in_zone(None);
    given.put(&meant(&["x", "y", "x"]));
    assert_eq!(ports(&given), [1, 2, 3], "it does not know where it is");
}

/// Somebody who can be asked, in this cluster.
fn asked(cluster: &str) -> HttpService {
    let server_uri = HttpUri {
        timeout: Some(envoy_types::pb::google::protobuf::Duration { seconds: 1, nanos: 0 }),
        http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(cluster.into())),
        ..Default::default()
    };
    HttpService { server_uri: Some(server_uri), ..Default::default() }
}

#[test]
fn who_is_asked_is_a_cluster_as_others_are() {
    let mut given = Given::serving();
    let filter =
        ExtAuthz { services: Some(ext_authz::Services::HttpService(asked("auth"))), ..Default::default() };
    given.put(&listening(8080, Some(pack_any(filter))));
    let chains = given.store.listeners["l"].value.handle.chains.load_full();
    let Serves::Http(http) = &chains.all[0].serves else { panic!("{chains:?}") };
    assert!(Arc::ptr_eq(&http.load().authz[0].service.cluster, &given.cluster("auth")));
    // A table waits for whom its routes ask.
    let settings = CheckSettings {
        service_override: Some(check_settings::ServiceOverride::HttpService(asked("b"))),
        ..Default::default()
    };
    let said = ExtAuthzPerRoute { r#override: Some(ext_authz_per_route::Override::CheckSettings(settings)) };
    let mut routes = routes("a");
    let route = &mut routes.virtual_hosts[0].routes[0];
    route.typed_per_filter_config = [("envoy.filters.http.ext_authz".to_owned(), pack_any(said))].into();
    given.put(&routes);
    assert!(given.store.routes["r"].pending.is_some());
    given.put(&cluster("b")).put(&assignment("b", &[3]));
    assert!(given.store.routes["r"].pending.is_none());
}
