mod order;

use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::pb::envoy::config::cluster::v3::Cluster;
use crate::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints};
use crate::pb::envoy::config::listener::v3::Listener;
use crate::pb::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use crate::pb::google::rpc::Status;
use crate::server::Options;

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::Endpoint;
const LDS: ResourceType = ResourceType::Listener;
const RDS: ResourceType = ResourceType::Route;

fn cluster(name: &str, revision: u32) -> Cluster {
    Cluster { name: name.into(), alt_stat_name: revision.to_string(), ..Cluster::default() }
}

fn world() -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.insert(&cluster("a", 1));
    snapshot.insert(&cluster("b", 1));
    snapshot.insert(&ClusterLoadAssignment { cluster_name: "a".into(), ..Default::default() });
    snapshot.insert(&Listener { name: "l".into(), ..Default::default() });
    snapshot.insert(&RouteConfiguration { name: "r".into(), ..Default::default() });
    snapshot
}

/// A stream and a clock that moves only when told.
struct Peer {
    stream: Stream,
    now: Instant,
}

impl Peer {
    fn new(variant: Variant) -> Peer {
        let options = Options::new(|_| Ok(String::new()));
        Peer { stream: Stream::new(variant, None, &options), now: Instant::now() }
    }

    fn subscribe(&mut self, ty: ResourceType, names: &[&str]) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        match self.stream.variant {
            Variant::Sotw => {
                let request = DiscoveryRequest { resource_names: names, ..Default::default() };
                self.stream.on_sotw(ty, &request).unwrap();
            }
            Variant::Delta => {
                let request = DeltaDiscoveryRequest { resource_names_subscribe: names, ..Default::default() };
                self.stream.on_delta(ty, &request).unwrap();
            }
        }
    }

    fn next(&mut self, snapshot: &Snapshot) -> Option<Response> {
        self.stream.next(snapshot, self.now)
    }

    fn answer(&mut self, response: &Response, error: Option<&str>) -> Outcome {
        let error_detail =
            error.map(|message| Status { code: 3, message: message.into(), details: Vec::new() });
        let response_nonce = response.nonce.clone();
        match self.stream.variant {
            Variant::Sotw => {
                let names = self.stream.types[response.ty.index()].names();
                let resource_names = names.iter().map(ToString::to_string).collect();
                let request =
                    DiscoveryRequest { response_nonce, error_detail, resource_names, ..Default::default() };
                self.stream.on_sotw(response.ty, &request).unwrap()
            }
            Variant::Delta => {
                let request = DeltaDiscoveryRequest { response_nonce, error_detail, ..Default::default() };
                self.stream.on_delta(response.ty, &request).unwrap()
            }
        }
    }

    /// Takes and acknowledges everything there is.
    fn drain(&mut self, snapshot: &Snapshot) -> Vec<Response> {
        let mut all = Vec::new();
        while let Some(response) = self.next(snapshot) {
            assert_eq!(self.answer(&response, None), Outcome::Ack);
            all.push(response);
        }
        all
    }
}

fn names(response: &Response) -> Vec<&str> {
    response.resources.iter().map(|r| &*r.name).collect()
}

fn both(test: impl Fn(Peer)) {
    test(Peer::new(Variant::Sotw));
    test(Peer::new(Variant::Delta));
}

#[test]
fn an_empty_first_subscription_to_clusters_means_all() {
    both(|mut peer| {
        peer.subscribe(CDS, &[]);
        assert_eq!(names(&peer.next(&world()).unwrap()), ["a", "b"]);
    });
}

#[test]
fn an_empty_first_subscription_to_endpoints_means_none() {
    both(|mut peer| {
        peer.subscribe(EDS, &[]);
        assert_eq!(peer.next(&world()), None);
    });
}

#[test]
fn who_wants_everything_is_told_even_that_there_is_nothing() {
    both(|mut peer| {
        peer.subscribe(CDS, &[]);
        assert_eq!(names(&peer.next(&Snapshot::default()).unwrap()), [""; 0]);
        assert_eq!(peer.next(&Snapshot::default()), None);
    });
}

#[test]
fn nothing_is_sent_twice() {
    both(|mut peer| {
        peer.subscribe(CDS, &["*"]);
        assert_eq!(peer.drain(&world()).len(), 1);
        assert_eq!(peer.drain(&world()), []);
    });
}

#[test]
fn changes_while_a_response_is_under_way_are_coalesced() {
    let mut peer = Peer::new(Variant::Delta);
    peer.subscribe(CDS, &["*"]);
    let mut snapshot = world();
    let first = peer.next(&snapshot).unwrap();
    for revision in 2..1_000 {
        snapshot.insert(&cluster("a", revision));
        assert_eq!(peer.next(&snapshot), None);
    }
    peer.answer(&first, None);
    let second = peer.next(&snapshot).unwrap();
    assert!(second.resources.iter().eq([snapshot.get(CDS, "a").unwrap()]));
}

#[test]
fn a_stale_nonce_changes_nothing() {
    both(|mut peer| {
        peer.subscribe(CDS, &["*"]);
        let response = peer.next(&world()).unwrap();
        let stale = Response { nonce: "0".into(), ..response.clone() };
        assert_eq!(peer.answer(&stale, Some("old")), Outcome::None);
        assert_eq!(peer.answer(&response, None), Outcome::Ack);
        assert!(peer.stream.types[CDS.index()].status().unwrap().in_sync);
    });
}

#[test]
fn a_refused_version_is_not_sent_again_until_it_changes() {
    both(|mut peer| {
        peer.subscribe(RDS, &["r"]);
        let mut snapshot = world();
        let response = peer.next(&snapshot).unwrap();
        assert_eq!(peer.answer(&response, Some("virtual_hosts: none")), Outcome::Nack);
        assert_eq!(peer.next(&snapshot), None);
        let status = peer.stream.types[RDS.index()].status().unwrap();
        assert_eq!(status.nack.unwrap().message, "virtual_hosts: none");
        assert!(!status.in_sync);

        let fixed =
            RouteConfiguration { name: "r".into(), ignore_port_in_host_matching: true, ..Default::default() };
        snapshot.insert(&fixed);
        assert_eq!(peer.drain(&snapshot).len(), 1);
        assert_eq!(peer.stream.types[RDS.index()].status().unwrap().nack, None);
    });
}

#[test]
fn one_bad_resource_among_many_is_found_and_the_rest_acknowledged() {
    let mut peer = Peer::new(Variant::Delta);
    peer.subscribe(CDS, &["*"]);
    let mut snapshot = Snapshot::default();
    for i in 0..100 {
        snapshot.insert(&cluster(&format!("c{i:02}"), 1));
    }
    let mut responses = 0;
    while let Some(response) = peer.next(&snapshot) {
        responses += 1;
        let bad = names(&response).contains(&"c42");
        peer.answer(&response, bad.then_some("c42: no"));
    }
    let state = &peer.stream.types[CDS.index()];
    assert_eq!(state.acknowledged_version("c42"), None);
    assert_eq!((0..100).filter(|i| state.acknowledged_version(&format!("c{i:02}")).is_some()).count(), 99);
    assert!(responses < 20, "{responses} responses to find one in a hundred");
}

#[test]
fn a_name_that_does_not_exist_is_answered_once() {
    let mut peer = Peer::new(Variant::Delta);
    peer.subscribe(EDS, &["nobody"]);
    let response = peer.next(&world()).unwrap();
    assert_eq!((response.resources.len(), &*response.removed[0]), (0, "nobody"));
    peer.answer(&response, None);
    assert_eq!(peer.next(&world()), None);
}

#[test]
fn a_name_that_is_subscribed_again_is_sent_again() {
    let mut peer = Peer::new(Variant::Delta);
    peer.subscribe(RDS, &["r"]);
    peer.drain(&world());
    peer.subscribe(RDS, &["r"]);
    assert_eq!(names(&peer.next(&world()).unwrap()), ["r"]);
}

#[test]
fn a_refused_name_that_is_subscribed_again_is_sent_again() {
    let mut peer = Peer::new(Variant::Delta);
    peer.subscribe(RDS, &["r"]);
    let response = peer.next(&world()).unwrap();
    assert_eq!(peer.answer(&response, Some("no")), Outcome::Nack);
    assert_eq!(peer.next(&world()), None);
    peer.subscribe(RDS, &["r"]);
    assert_eq!(names(&peer.next(&world()).unwrap()), ["r"]);
}

#[test]
fn what_is_refused_after_it_was_dropped_is_not_held_against_the_name() {
    let mut peer = Peer::new(Variant::Delta);
    peer.subscribe(EDS, &["a"]);
    let response = peer.next(&world()).unwrap();
    let request =
        DeltaDiscoveryRequest { resource_names_unsubscribe: vec!["a".to_owned()], ..Default::default() };
    peer.stream.on_delta(EDS, &request).unwrap();
    assert_eq!(peer.answer(&response, Some("no")), Outcome::Nack);
    assert_eq!(peer.next(&world()), None);
    peer.subscribe(EDS, &["a"]);
    assert_eq!(names(&peer.next(&world()).unwrap()), ["a"]);

    let mut peer = Peer::new(Variant::Sotw);
    peer.subscribe(EDS, &["a"]);
    let response = peer.next(&world()).unwrap();
    peer.subscribe(EDS, &["nobody"]);
    assert_eq!(peer.answer(&response, Some("no")), Outcome::Nack);
    peer.subscribe(EDS, &["a"]);
    assert_eq!(names(&peer.next(&world()).unwrap()), ["a"]);
}

#[test]
fn what_a_client_says_that_it_has_is_bounded() {
    let mut peer = Peer::new(Variant::Delta);
    let having = |name: String, version: String| DeltaDiscoveryRequest {
        initial_resource_versions: [(name, version)].into(),
        ..Default::default()
    };
    for request in [having("n".repeat(1_025), "1".into()), having("n".into(), "1".repeat(1_025))] {
        assert!(matches!(peer.stream.on_delta(CDS, &request), Err(TooMuch::Name)));
    }
}

#[test]
fn what_a_client_still_has_is_not_sent_again() {
    let snapshot = world();
    let mut peer = Peer::new(Variant::Delta);
    let initial_resource_versions = [
        (String::from("a"), snapshot.get(CDS, "a").unwrap().version.to_string()),
        (String::from("b"), String::from("older")),
        (String::from("gone"), String::from("1")),
    ];
    let request = DeltaDiscoveryRequest {
        resource_names_subscribe: vec![String::from("*")],
        initial_resource_versions: initial_resource_versions.into(),
        ..Default::default()
    };
    peer.stream.on_delta(CDS, &request).unwrap();
    let responses = peer.drain(&snapshot);
    assert_eq!(responses.iter().flat_map(names).collect::<Vec<_>>(), ["b"]);
    assert_eq!(responses.iter().flat_map(|r| &r.removed).map(|n| &**n).collect::<Vec<_>>(), ["gone"]);
}

#[test]
fn in_state_of_the_world_names_may_change_with_the_acknowledgement() {
    let mut peer = Peer::new(Variant::Sotw);
    let mut snapshot = world();
    snapshot.insert(&RouteConfiguration { name: "s".into(), ..Default::default() });
    peer.subscribe(RDS, &["r"]);
    let response = peer.next(&snapshot).unwrap();
    let request = DiscoveryRequest {
        response_nonce: response.nonce,
        resource_names: vec!["r".into(), "s".into()],
        ..Default::default()
    };
    assert_eq!(peer.stream.on_sotw(RDS, &request).unwrap(), Outcome::Ack);
    assert_eq!(names(&peer.next(&snapshot).unwrap()), ["s"]);
}

#[test]
fn too_many_names_are_refused() {
    let options = Options { max_names: 3, ..Options::new(|_| Ok(String::new())) };
    let mut stream = Stream::new(Variant::Delta, None, &options);
    let request = |n: usize| DeltaDiscoveryRequest {
        resource_names_subscribe: (0..n).map(|i| i.to_string()).collect(),
        ..Default::default()
    };
    assert_eq!(stream.on_delta(EDS, &request(3)), Ok(Outcome::None));
    assert_eq!(stream.on_delta(EDS, &request(3)), Ok(Outcome::None), "the same names again");
    assert_eq!(stream.on_delta(EDS, &request(4)), Err(TooMuch::Names { max: 3 }));
    let long = |length: usize| DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["x".repeat(length)],
        ..Default::default()
    };
    assert_eq!(stream.on_delta(CDS, &long(MAX_NAME_BYTES + 1)), Err(TooMuch::Name));
    assert_eq!(stream.on_delta(CDS, &long(MAX_NAME_BYTES)), Ok(Outcome::None));
    assert_eq!(stream.on_delta(CDS, &long(MAX_NAME_BYTES - 1)), Err(TooMuch::NameBytes { max: 1024 }));
}

#[test]
fn in_state_of_the_world_a_bad_resource_does_not_take_the_good_ones_with_it() {
    let mut peer = Peer::new(Variant::Sotw);
    peer.subscribe(CDS, &[]);
    let mut snapshot = Snapshot::default();
    snapshot.insert(&cluster("good", 1));
    snapshot.insert(&cluster("bad", 1));
    let first = peer.next(&snapshot).unwrap();
    // More is published before the refusal comes. A client like Envoy has taken the good one.
    snapshot.insert(&cluster("more", 1));
    assert_eq!(peer.next(&snapshot), None);
    peer.answer(&first, Some("bad: no"));
    let second = peer.next(&snapshot).unwrap();
    assert_eq!(names(&second), ["bad", "good", "more"]);
    peer.answer(&second, Some("bad: no"));
    assert_eq!(peer.next(&snapshot), None, "nothing changed");
    snapshot.remove(CDS, "bad");
    let third = peer.next(&snapshot).unwrap();
    assert_eq!(names(&third), ["good", "more"]);
    peer.answer(&third, None);
    assert_eq!(peer.next(&snapshot), None);
    let status = peer.stream.types[CDS.index()].status().unwrap();
    assert!(status.in_sync && status.nack.is_none(), "{status:?}");
}

#[test]
fn a_refused_resource_that_is_withdrawn_is_no_longer_held_against_the_client() {
    let mut peer = Peer::new(Variant::Delta);
    peer.subscribe(CDS, &[]);
    let mut snapshot = Snapshot::default();
    snapshot.insert(&cluster("bad", 1));
    let response = peer.next(&snapshot).unwrap();
    peer.answer(&response, Some("no"));
    snapshot.remove(CDS, "bad");
    assert_eq!(peer.next(&snapshot), None, "the client never took it");
    assert!(peer.stream.types[CDS.index()].status().unwrap().in_sync);
}

#[test]
fn nor_one_that_is_withdrawn_before_it_is_refused() {
    both(|mut peer| {
        let mut snapshot = world();
        peer.subscribe(CDS, &[]);
        let all = peer.next(&snapshot).unwrap();
        peer.answer(&all, None);
        snapshot.insert(&cluster("bad", 1));
        let bad = peer.next(&snapshot).unwrap();
        assert!(names(&bad).contains(&"bad"));
        snapshot.remove(CDS, "bad");
        assert!(peer.next(&snapshot).is_none(), "one answer is awaited");
        peer.answer(&bad, Some("bad: no good"));
        let after = peer.next(&snapshot).expect("it is told that there is none");
        assert!(!names(&after).contains(&"bad"));
        peer.answer(&after, None);
        let status = peer.stream.types[CDS.index()].status().unwrap();
        assert!(status.in_sync && status.nack.is_none(), "{status:?}");
        assert!(peer.next(&snapshot).is_none());
    });
}

#[test]
fn in_state_of_the_world_a_cluster_name_that_does_not_exist_is_answered_without_it() {
    let mut peer = Peer::new(Variant::Sotw);
    peer.subscribe(CDS, &["a", "nowhere"]);
    let response = peer.next(&world()).unwrap();
    assert_eq!(names(&response), ["a"]);
    peer.answer(&response, None);
    assert_eq!(peer.next(&world()), None);
}

#[test]
fn a_changed_cluster_gets_its_endpoints_again() {
    both(|mut peer| {
        peer.subscribe(CDS, &[]);
        peer.subscribe(EDS, &["a"]);
        let mut snapshot = world();
        peer.drain(&snapshot);
        snapshot.insert(&cluster("a", 2));
        let sent: Vec<_> = peer.drain(&snapshot).iter().map(|response| response.ty).collect();
        assert_eq!(sent, [CDS, EDS], "the new cluster is not used before its endpoints come");
        snapshot.insert(&cluster("b", 2));
        let sent: Vec<_> = peer.drain(&snapshot).iter().map(|response| response.ty).collect();
        assert_eq!(sent, [CDS], "not subscribed to the endpoints of b");
    });
}

#[test]
fn one_that_changed_while_the_client_was_away_does_too() {
    let mut snapshot = world();
    let version = |snapshot: &Snapshot, ty, name: &str| snapshot.resources(ty)[name].version.to_string();
    let has = |ty, name: &str| {
        let initial = HashMap::from([(name.to_owned(), version(&world(), ty, name))]);
        let resource_names_subscribe = if ty == EDS { vec![name.to_owned()] } else { Vec::new() };
        DeltaDiscoveryRequest {
            initial_resource_versions: initial,
            resource_names_subscribe,
            ..Default::default()
        }
    };
    snapshot.insert(&cluster("a", 2));
    for is_withdrawn in [false, true] {
        let mut snapshot = snapshot.clone();
        let mut peer = Peer::new(Variant::Delta);
        peer.stream.on_delta(CDS, &has(CDS, "a")).unwrap();
        let clusters = peer.next(&snapshot).unwrap();
        assert_eq!((clusters.ty, names(&clusters)), (CDS, vec!["b", "a"]), "what is new goes first");
        // On its way before the clusters came.
        peer.stream.on_delta(EDS, &has(EDS, "a")).unwrap();
        if is_withdrawn {
            snapshot.remove(EDS, "a");
        }
        peer.answer(&clusters, None);
        let endpoints = peer.next(&snapshot).expect("the new cluster waits for them");
        assert_eq!(endpoints.ty, EDS);
        match is_withdrawn {
            false => assert_eq!(names(&endpoints), ["a"]),
            true => assert_eq!(endpoints.removed.iter().map(|name| &**name).collect::<Vec<_>>(), ["a"]),
        }
    }
    let mut peer = Peer::new(Variant::Delta);
    peer.stream.on_delta(CDS, &has(CDS, "a")).unwrap();
    peer.drain(&world());
    peer.stream.on_delta(EDS, &has(EDS, "a")).unwrap();
    assert_eq!(peer.next(&world()), None, "nothing changed");
}

#[test]
fn of_clusters_that_are_gone_nothing_is_kept_for_endpoints_that_nobody_asks_for() {
    let mut peer = Peer::new(Variant::Delta);
    peer.subscribe(CDS, &[]);
    let mut kept = Vec::new();
    for n in 100..200 {
        let mut snapshot = world();
        for revision in [1, 2] {
            snapshot.insert(&cluster(&format!("c{n}"), revision));
            peer.drain(&snapshot);
        }
        peer.drain(&world());
        kept.push(format!("{:?}", peer.stream.types[EDS.index()]).len());
    }
    assert!(kept.iter().all(|bytes| *bytes == kept[0]), "{kept:?}");
}

#[test]
fn names_on_top_of_an_implicit_wildcard_do_not_end_it_in_delta() {
    let mut peer = Peer::new(Variant::Delta);
    peer.subscribe(CDS, &[]);
    let mut snapshot = world();
    peer.drain(&snapshot);
    peer.subscribe(CDS, &["nowhere"]);
    let answer = peer.next(&snapshot).unwrap();
    assert_eq!(answer.removed.iter().map(|name| &**name).collect::<Vec<_>>(), ["nowhere"]);
    peer.answer(&answer, None);
    snapshot.insert(&cluster("c", 1));
    assert_eq!(names(&peer.next(&snapshot).unwrap()), ["c"]);
}

#[test]
fn a_set_by_name_only_answers_a_wildcard_with_nothing_and_names_with_themselves() {
    let mut snapshot = Snapshot::by_name_only();
    for name in ["orders", "stock"] {
        snapshot.insert(&Listener { name: name.into(), ..Default::default() });
    }
    let mut peer = Peer::new(Variant::Delta);
    peer.subscribe(LDS, &["*"]);
    let first = peer.next(&snapshot).unwrap();
    assert!(first.resources.is_empty() && first.removed.is_empty());
    peer.answer(&first, None);
    peer.subscribe(LDS, &["orders", "nobody"]);
    let named = peer.next(&snapshot).unwrap();
    assert_eq!(names(&named), ["orders"]);
    assert_eq!(named.removed.iter().map(|name| &**name).collect::<Vec<_>>(), ["nobody"]);
    peer.answer(&named, None);
    snapshot.insert(&Listener { name: "nobody".into(), ..Default::default() });
    snapshot.insert(&Listener { name: "stock".into(), stat_prefix: "new".into(), ..Default::default() });
    assert_eq!(names(&peer.next(&snapshot).unwrap()), ["nobody"]);
}
