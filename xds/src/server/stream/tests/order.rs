//! Which types wait for which, and for how long.

use std::collections::VecDeque;

use super::*;

/// Between a response and its answer.
const AT_ONCE: Duration = Duration::ZERO;

fn routes(revision: u32) -> RouteConfiguration {
    let internal_only_headers = vec![revision.to_string()];
    RouteConfiguration { name: "r".into(), internal_only_headers, ..Default::default() }
}

fn in_parts() -> Options {
    Options { max_response_bytes: 4096, ..Options::new(|_| Ok(String::new())) }
}

/// A client of everything in `snapshot`, as Envoy is one.
fn following(variant: Variant, options: &Options, snapshot: &Snapshot) -> Peer {
    let mut peer = Peer { stream: Stream::new(variant, None, options), now: Instant::now() };
    for (ty, names) in [(CDS, &[][..]), (EDS, &["a"]), (LDS, &[]), (RDS, &["r"])] {
        peer.subscribe(ty, names);
    }
    peer.pump(snapshot, AT_ONCE, |_| false);
    peer
}

fn in_both(test: impl Fn(Peer, Snapshot)) {
    for variant in [Variant::Sotw, Variant::Delta] {
        test(following(variant, &Options::new(|_| Ok(String::new())), &world()), world());
    }
}

/// As `CDS new -gone`.
fn said(response: &Response) -> String {
    let changed = response.resources.iter().map(|resource| format!(" {}", resource.name));
    let removed = response.removed.iter().map(|name| format!(" -{name}"));
    response.ty.short_name().to_owned() + &changed.chain(removed).collect::<String>()
}

impl Peer {
    /// Before each answer it is sent all that may be sent. Gives what was sent and answered, in that order.
    fn pump(
        &mut self,
        snapshot: &Snapshot,
        takes: Duration,
        refuses: impl Fn(&Response) -> bool,
    ) -> Vec<String> {
        let (mut log, mut wire) = (Vec::new(), VecDeque::new());
        loop {
            while let Some(response) = self.next(snapshot) {
                log.push(said(&response));
                wire.push_back(response);
            }
            let Some(oldest) = wire.pop_front() else { return log };
            self.now += takes;
            let refusal = refuses(&oldest).then_some("no");
            let outcome = self.answer(&oldest, refusal);
            log.push(format!("{outcome:?} {}", oldest.ty.short_name()));
        }
    }
}

#[test]
fn listeners_and_routes_wait_for_clusters_and_endpoints() {
    both(|mut peer| {
        for (ty, names) in [(RDS, &["r"][..]), (LDS, &[]), (EDS, &["a"]), (CDS, &[])] {
            peer.subscribe(ty, names);
        }
        let snapshot = world();
        let (clusters, endpoints) = (peer.next(&snapshot).unwrap(), peer.next(&snapshot).unwrap());
        assert_eq!((clusters.ty, endpoints.ty), (CDS, EDS));
        assert_eq!(peer.next(&snapshot), None);
        peer.answer(&clusters, None);
        assert_eq!(peer.next(&snapshot), None);
        peer.answer(&endpoints, None);
        assert_eq!(peer.next(&snapshot).unwrap().ty, LDS);
        assert_eq!(peer.next(&snapshot).unwrap().ty, RDS);
    });
}

#[test]
fn a_peer_that_does_not_answer_delays_the_order_but_does_not_stop_it() {
    both(|mut peer| {
        peer.subscribe(CDS, &[]);
        peer.subscribe(LDS, &[]);
        let snapshot = world();
        assert_eq!(peer.next(&snapshot).unwrap().ty, CDS);
        assert_eq!(peer.next(&snapshot), None);
        peer.now = peer.stream.deadline().unwrap();
        assert_eq!(peer.next(&snapshot).unwrap().ty, LDS);
        assert!(peer.now.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn removals_come_last_and_referrers_first() {
    let mut peer = Peer::new(Variant::Delta);
    for (ty, names) in [(CDS, &["*"][..]), (EDS, &["a"]), (LDS, &["*"]), (RDS, &["r"])] {
        peer.subscribe(ty, names);
    }
    peer.drain(&world());
    let mut after = Snapshot::default();
    after.insert(&cluster("c", 1));
    let order: Vec<(ResourceType, usize, usize)> =
        peer.drain(&after).iter().map(|r| (r.ty, r.resources.len(), r.removed.len())).collect();
    assert_eq!(order, [(CDS, 1, 0), (LDS, 0, 1), (RDS, 0, 1), (EDS, 0, 1), (CDS, 0, 2)]);
}

#[test]
fn in_state_of_the_world_what_is_missing_is_removed_in_a_second_step() {
    let mut peer = Peer::new(Variant::Sotw);
    peer.subscribe(CDS, &[]);
    peer.drain(&world());
    let mut after = Snapshot::default();
    after.insert(&cluster("c", 1));
    let steps = peer.drain(&after);
    assert_eq!(steps.iter().map(names).collect::<Vec<_>>(), [vec!["a", "b", "c"], vec!["c"]]);
}

#[test]
fn endpoints_that_change_all_the_time_hold_up_no_route() {
    both(|mut peer| {
        for (ty, names) in [(RDS, &["r"][..]), (EDS, &["a"]), (CDS, &[])] {
            peer.subscribe(ty, names);
        }
        let snapshot = world();
        peer.drain(&snapshot);
        let mut changed = snapshot.clone();
        let endpoints = vec![LocalityLbEndpoints::default()];
        changed.insert(&ClusterLoadAssignment { cluster_name: "a".into(), endpoints, ..Default::default() });
        let virtual_hosts = vec![VirtualHost::default()];
        changed.insert(&RouteConfiguration { name: "r".into(), virtual_hosts, ..Default::default() });
        assert_eq!(peer.next(&changed).unwrap().ty, EDS);
        assert_eq!(peer.next(&changed).unwrap().ty, RDS);
    });
}

#[test]
fn a_large_answer_comes_in_parts_and_routes_wait_for_the_last() {
    let options = Options { max_response_bytes: 4096, ..Options::new(|_| Ok(String::new())) };
    let mut peer = Peer { stream: Stream::new(Variant::Delta, None, &options), now: Instant::now() };
    let mut snapshot = world();
    for n in 0..1000 {
        snapshot.insert(&cluster(&format!("cluster-{n}"), 1));
    }
    peer.subscribe(RDS, &["r"]);
    peer.subscribe(CDS, &[]);
    let sent = peer.drain(&snapshot);
    assert!(sent.len() > 10, "{} responses", sent.len());
    assert_eq!(sent.last().map(|response| response.ty), Some(RDS));
    assert_eq!(sent.iter().map(|response| response.resources.len()).sum::<usize>(), 1003);
    let gone = peer.drain(&Snapshot::default());
    assert_eq!(gone.iter().map(|response| response.removed.len()).sum::<usize>(), 1003);
    assert!(gone.len() > 3 && gone[0].ty == RDS, "{} responses", gone.len());
}

#[test]
fn endpoints_wait_for_nothing_but_endpoints() {
    both(|mut peer| {
        peer.subscribe(CDS, &[]);
        peer.subscribe(LDS, &[]);
        peer.subscribe(EDS, &["a"]);
        peer.subscribe(RDS, &["r"]);
        let mut snapshot = world();
        peer.drain(&snapshot);
        // Clusters, listeners and routes are under way, and nobody answers.
        snapshot.insert(&Listener { name: "l".into(), stat_prefix: "2".into(), ..Default::default() });
        snapshot.insert(&RouteConfiguration {
            name: "r".into(),
            ignore_port_in_host_matching: true,
            ..Default::default()
        });
        assert_eq!(peer.next(&snapshot).map(|response| response.ty), Some(LDS));
        assert_eq!(peer.next(&snapshot).map(|response| response.ty), Some(RDS));
        snapshot.insert(&cluster("b", 2));
        assert_eq!(peer.next(&snapshot).map(|response| response.ty), Some(CDS));
        assert_eq!(peer.next(&snapshot), None);
        let policy = crate::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy::default();
        snapshot.insert(&ClusterLoadAssignment {
            cluster_name: "a".into(),
            policy: Some(policy),
            ..Default::default()
        });
        assert_eq!(peer.next(&snapshot).map(|response| response.ty), Some(EDS));
    });
}

#[test]
fn what_is_new_goes_before_a_thousand_changes_and_routes_wait_for_it_alone() {
    let mut snapshot = world();
    let thousand = |snapshot: &mut Snapshot, revision| {
        for n in 0..1000 {
            snapshot.insert(&cluster(&format!("cluster-{n}"), revision));
        }
    };
    thousand(&mut snapshot, 1);
    let mut peer = following(Variant::Delta, &in_parts(), &snapshot);
    thousand(&mut snapshot, 2);
    snapshot.insert(&cluster("z", 1));
    snapshot.insert(&routes(2));
    let log = peer.pump(&snapshot, AT_ONCE, |_| false);
    let parts = log.iter().filter(|line| line.starts_with("CDS")).count();
    assert!(parts > 10, "{parts} parts");
    let new = log.iter().position(|line| line.starts_with("CDS") && line.contains(" z")).unwrap();
    let routes = log.iter().position(|line| line == "RDS r").unwrap();
    assert!(log[new..routes].contains(&"Ack CDS".to_owned()), "{log:#?}");
    assert!(routes < 5, "they wait for changes of what is there: {log:#?}");
}

#[test]
fn a_new_cluster_that_waits_behind_a_change_holds_up_routes_too() {
    in_both(|mut peer, mut snapshot| {
        snapshot.insert(&cluster("a", 2));
        let changed = peer.next(&snapshot).unwrap();
        let again = peer.next(&snapshot).unwrap();
        assert_eq!((changed.ty, said(&again)), (CDS, "EDS a".to_owned()));
        snapshot.insert(&cluster("c", 1));
        snapshot.insert(&routes(2));
        assert_eq!(peer.next(&snapshot), None);
        assert_eq!(peer.answer(&again, None), Outcome::Ack);
        assert_eq!(peer.next(&snapshot), None);
        let before = peer.now;
        peer.answer(&changed, None);
        let log = peer.pump(&snapshot, AT_ONCE, |_| false);
        assert!(log[0].ends_with(" c"), "{log:?}");
        assert_eq!(log[1..], ["Ack CDS", "RDS r", "Ack RDS"]);
        assert_eq!((peer.now, peer.stream.deadline()), (before, None));
    });
}

#[test]
fn nor_for_ever_where_nobody_answers() {
    in_both(|mut peer, mut snapshot| {
        snapshot.insert(&cluster("b", 2));
        assert_eq!(peer.next(&snapshot).unwrap().ty, CDS);
        snapshot.insert(&cluster("c", 1));
        snapshot.insert(&routes(2));
        assert_eq!(peer.next(&snapshot), None);
        assert_eq!(peer.stream.deadline(), Some(peer.now + Duration::from_secs(5)));
        peer.now += Duration::from_secs(5);
        assert_eq!(peer.next(&snapshot).unwrap().ty, RDS);
    });
}

#[test]
fn new_clusters_of_a_refused_response_come_before_the_routes() {
    let mut snapshot = world();
    let mut peer = following(Variant::Delta, &Options::new(|_| Ok(String::new())), &snapshot);
    snapshot.insert(&cluster("b", 2));
    snapshot.insert(&cluster("new", 1));
    snapshot.insert(&cluster("spoiled", 1));
    snapshot.insert(&routes(2));
    let log = peer.pump(&snapshot, AT_ONCE, |response| names(response).contains(&"spoiled"));
    let expected = [
        "CDS new spoiled b",
        "Nack CDS",
        "CDS new",
        "Ack CDS",
        "CDS spoiled b",
        "Nack CDS",
        "CDS spoiled",
        "Nack CDS",
        // What is refused holds up nobody.
        "CDS b",
        "RDS r",
        "Ack CDS",
        "Ack RDS",
    ];
    assert_eq!(log, expected);
}

#[test]
fn what_is_refused_for_good_holds_up_nobody() {
    in_both(|mut peer, mut snapshot| {
        snapshot.insert(&cluster("spoiled", 1));
        snapshot.insert(&routes(2));
        let log = peer.pump(&snapshot, AT_ONCE, |response| names(response).contains(&"spoiled"));
        assert_eq!(log[1..], ["Nack CDS", "RDS r", "Ack RDS"], "{}", log[0]);
        snapshot.insert(&routes(3));
        assert_eq!(peer.pump(&snapshot, AT_ONCE, |_| false), ["RDS r", "Ack RDS"]);
    });
}

#[test]
fn one_that_comes_back_while_its_removal_is_under_way_is_new() {
    in_both(|mut peer, mut snapshot| {
        let b = snapshot.remove(CDS, "b").unwrap();
        let removal = peer.next(&snapshot).unwrap();
        assert_eq!(removal.ty, CDS);
        snapshot.insert_encoded(CDS, b);
        snapshot.insert(&routes(2));
        assert_eq!(peer.next(&snapshot), None);
        peer.answer(&removal, None);
        let log = peer.pump(&snapshot, AT_ONCE, |_| false);
        assert!(log[0].starts_with("CDS") && log[0].ends_with(" b"), "{log:?}");
        assert_eq!(log[1..], ["Ack CDS", "RDS r", "Ack RDS"]);
    });
}

#[test]
fn a_type_that_nobody_asked_for_holds_up_nothing() {
    both(|mut peer| {
        peer.subscribe(LDS, &[]);
        peer.subscribe(RDS, &["r"]);
        assert_eq!(peer.pump(&world(), AT_ONCE, |_| false), ["LDS l", "RDS r", "Ack LDS", "Ack RDS"]);
    });
}

#[test]
fn each_answer_to_a_part_of_a_large_world_gives_the_client_time_for_the_next() {
    let mut snapshot = world();
    for n in 0..400 {
        snapshot.insert(&cluster(&format!("cluster-{n}"), 1));
    }
    let mut peer = Peer { stream: Stream::new(Variant::Delta, None, &in_parts()), now: Instant::now() };
    peer.subscribe(RDS, &["r"]);
    peer.subscribe(CDS, &[]);
    let log = peer.pump(&snapshot, Duration::from_secs(4), |_| false);
    assert!(log.iter().filter(|line| line.starts_with("CDS")).count() > 3);
    assert_eq!(log[log.len() - 3..], ["Ack CDS", "RDS r", "Ack RDS"], "{log:#?}");
}

#[test]
fn but_not_where_there_is_always_something_new() {
    in_both(|mut peer, mut snapshot| {
        snapshot.insert(&routes(2));
        let start = peer.now;
        for n in 0.. {
            snapshot.insert(&cluster(&format!("new-{n}"), 1));
            let new = peer.next(&snapshot).unwrap();
            assert_eq!(new.ty, CDS);
            if let Some(response) = peer.next(&snapshot) {
                assert_eq!(response.ty, RDS);
                break;
            }
            peer.now += Duration::from_secs(1);
            assert!(peer.now - start <= Duration::from_secs(60), "they wait for ever");
            peer.answer(&new, None);
        }
        assert!(peer.now - start > Duration::from_secs(5));
    });
}

#[test]
fn while_routes_are_refused_what_the_old_ones_lead_to_stays() {
    in_both(|mut peer, mut snapshot| {
        let is_delta = peer.stream.variant == Variant::Delta;
        snapshot.remove(CDS, "a");
        snapshot.remove(EDS, "a");
        snapshot.insert(&cluster("c", 1));
        snapshot.insert(&routes(2));
        let log = peer.pump(&snapshot, AT_ONCE, |response| response.ty == RDS);
        assert_eq!(log[1..], ["Ack CDS", "RDS r", "Nack RDS"], "{}", log[0]);
        assert_eq!(peer.stream.deadline(), None, "nothing is to be done");
        peer.now += Duration::from_secs(3600);
        assert_eq!(peer.next(&snapshot), None);

        // All else goes on.
        snapshot.insert(&cluster("b", 2));
        snapshot.insert(&Listener { name: "l".into(), stat_prefix: "2".into(), ..Default::default() });
        let log = peer.pump(&snapshot, AT_ONCE, |_| false);
        let clusters = if is_delta { "CDS b" } else { "CDS a b c" };
        assert_eq!(log, [clusters, "LDS l", "Ack CDS", "Ack LDS"]);

        // Nor with the next version, until that is taken.
        snapshot.insert(&routes(3));
        assert_eq!(peer.pump(&snapshot, AT_ONCE, |response| response.ty == RDS), ["RDS r", "Nack RDS"]);
        snapshot.insert(&routes(4));
        let log = peer.pump(&snapshot, AT_ONCE, |_| false);
        let expected: &[&str] = match is_delta {
            true => &["RDS r", "Ack RDS", "EDS -a", "Ack EDS", "CDS -a", "Ack CDS"],
            false => &["RDS r", "Ack RDS", "CDS b c", "Ack CDS"],
        };
        assert_eq!(log, expected);
    });
}

#[test]
fn refused_listeners_keep_their_routes_too_until_they_are_withdrawn() {
    let mut snapshot = world();
    let mut peer = following(Variant::Delta, &Options::new(|_| Ok(String::new())), &snapshot);
    snapshot.remove(RDS, "r");
    snapshot.remove(CDS, "b");
    snapshot.insert(&Listener { name: "bad".into(), ..Default::default() });
    assert_eq!(peer.pump(&snapshot, AT_ONCE, |_| true), ["LDS bad", "Nack LDS"]);
    snapshot.remove(LDS, "bad");
    assert_eq!(peer.pump(&snapshot, AT_ONCE, |_| false), ["RDS -r", "Ack RDS", "CDS -b", "Ack CDS"]);
}

#[test]
fn halves_that_nobody_asks_for_any_more_withhold_nothing() {
    let mut snapshot = world();
    snapshot.insert(&RouteConfiguration { name: "s".into(), ..Default::default() });
    let mut peer = following(Variant::Delta, &Options::new(|_| Ok(String::new())), &snapshot);
    peer.subscribe(RDS, &["s"]);
    peer.pump(&snapshot, AT_ONCE, |_| false);
    snapshot.insert(&routes(2));
    snapshot.insert(&RouteConfiguration { name: "s".into(), ..routes(2) });
    snapshot.remove(CDS, "b");
    let both = peer.next(&snapshot).unwrap();
    assert_eq!(said(&both), "RDS r s");
    let unsubscribed = ["r", "s"].map(str::to_owned).into();
    let request = DeltaDiscoveryRequest {
        response_nonce: both.nonce,
        error_detail: Some(Status { code: 3, message: "no".into(), details: Vec::new() }),
        ..Default::default()
    };
    peer.stream.on_delta(RDS, &request).unwrap();
    let request = DeltaDiscoveryRequest { resource_names_unsubscribe: unsubscribed, ..Default::default() };
    peer.stream.on_delta(RDS, &request).unwrap();
    assert_eq!(peer.pump(&snapshot, AT_ONCE, |_| false), ["CDS -b", "Ack CDS"]);
}

#[test]
fn what_is_kept_for_refused_routes_is_bounded() {
    let options = Options { max_names: 10, ..in_parts() };
    let mut snapshot = world();
    let mut peer = following(Variant::Delta, &options, &snapshot);
    snapshot.insert(&routes(2));
    assert_eq!(peer.pump(&snapshot, AT_ONCE, |_| true), ["RDS r", "Nack RDS"]);
    for n in 0..100 {
        snapshot.insert(&cluster(&n.to_string(), 1));
        peer.pump(&snapshot, AT_ONCE, |_| false);
        snapshot.remove(CDS, &n.to_string());
        peer.pump(&snapshot, AT_ONCE, |_| false);
        let kept = peer.stream.types[CDS.index()].waiting();
        assert!(kept <= 10, "{kept} names");
    }
}
