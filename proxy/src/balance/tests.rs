use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::*;

fn endpoint(port: u16, weight: u32, health: EndpointHealth) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(SocketAddr::from(([127, 0, 0, 1], port)), weight, health))
}

fn set(endpoints: Vec<Arc<Endpoint>>) -> Arc<EndpointSet> {
    Arc::new(EndpointSet::new("".into(), endpoints))
}

fn healthy(weights: &[u32]) -> Arc<EndpointSet> {
    set(weights.iter().zip(1..).map(|(w, port)| endpoint(port, *w, EndpointHealth::Healthy)).collect())
}

fn counts(balancer: &mut Balancer, picks: usize, rng: &mut fastrand::Rng) -> HashMap<u16, usize> {
    let mut counts = HashMap::new();
    for _ in 0..picks {
        let random = rng.u64(..);
        *counts.entry(balancer.pick(1, &[], || random).unwrap().address().port()).or_default() += 1;
    }
    counts
}

#[test]
fn round_robin_is_exact_and_in_turn() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut equal = Balancer::new(healthy(&[2, 2, 2]), BalancePolicy::RoundRobin, 7);
    assert_eq!(counts(&mut equal, 300, &mut rng), HashMap::from([(1, 100), (2, 100), (3, 100)]));
    let mut weighted = Balancer::new(healthy(&[1, 3]), BalancePolicy::RoundRobin, 0);
    let shares = counts(&mut weighted, 400, &mut rng);
    assert!(shares[&1].abs_diff(100) <= 1 && shares[&2].abs_diff(300) <= 1, "{shares:?}");
}

#[test]
fn least_request_prefers_the_idle_one() {
    let set = healthy(&[1, 1]);
    set.endpoints[0].active.store(10, Relaxed);
    let mut rng = fastrand::Rng::with_seed(2);
    let mut balancer = Balancer::new(set, BalancePolicy::LeastRequest, 0);
    assert_eq!(counts(&mut balancer, 50, &mut rng), HashMap::from([(2, 50)]));
}

#[test]
fn draining_ones_are_the_last_resort_and_unhealthy_ones_never() {
    let up = endpoint(1, 1, EndpointHealth::Healthy);
    let draining = endpoint(2, 1, EndpointHealth::Draining);
    let down = endpoint(3, 1, EndpointHealth::Unhealthy);
    let pick = |endpoints: Vec<Arc<Endpoint>>| {
        let mut balancer = Balancer::new(set(endpoints), BalancePolicy::RoundRobin, 0);
        balancer.pick(1, &[], || 0).map(|endpoint| endpoint.address().port())
    };
    assert_eq!(pick(vec![down.clone(), draining.clone(), up]), Some(1));
    assert_eq!(pick(vec![down.clone(), draining]), Some(2));
    assert_eq!(pick(vec![down]), None);
    assert_eq!(pick(vec![]), None);
}

#[test]
fn a_retry_goes_elsewhere_where_it_can() {
    let set = healthy(&[1, 1]);
    let mut balancer = Balancer::new(set.clone(), BalancePolicy::RoundRobin, 0);
    for _ in 0..4 {
        let picked = balancer.pick(1, std::slice::from_ref(&set.endpoints[0]), || 0).unwrap();
        assert_eq!(picked.address().port(), 2);
    }
    assert!(balancer.pick(1, &set.endpoints, || 0).is_some(), "nothing else is left");
}

/// A seeded random life of a cluster: picks, completions, failed connects, time.
#[test]
fn simulated_lives_keep_their_invariants() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let health = [
            EndpointHealth::Healthy,
            EndpointHealth::Healthy,
            EndpointHealth::Draining,
            EndpointHealth::Unhealthy,
        ];
        let endpoints: Vec<_> =
            (0..rng.u16(1..12)).map(|port| endpoint(port, rng.u32(1..5), health[rng.usize(..4)])).collect();
        let any_healthy = endpoints.iter().any(|e| e.health == EndpointHealth::Healthy);
        let policy = if rng.bool() { BalancePolicy::RoundRobin } else { BalancePolicy::LeastRequest };
        let mut balancer = Balancer::new(set(endpoints.clone()), policy, rng.u32(..));
        let (mut now, mut in_flight) = (1, Vec::new());
        for step in 0..300 {
            now += rng.u64(0..200);
            if rng.bool() && !in_flight.is_empty() {
                let done: Arc<Endpoint> = in_flight.swap_remove(rng.usize(..in_flight.len()));
                assert!(done.active.fetch_sub(1, Relaxed) > 0, "seed {seed}: in flight below zero");
                continue;
            }
            let open =
                endpoints.iter().any(|e| e.health == EndpointHealth::Healthy && !e.outlier.is_ejected(now));
            let ejected: Vec<bool> = endpoints.iter().map(|e| e.outlier.is_ejected(now)).collect();
            let random = rng.u64(..);
            let Some(picked) = balancer.pick(now, &[], || random) else {
                assert!(
                    endpoints.iter().all(|e| e.health == EndpointHealth::Unhealthy),
                    "seed {seed} step {step}"
                );
                continue;
            };
            assert_ne!(picked.health, EndpointHealth::Unhealthy, "seed {seed} step {step}");
            assert!(!any_healthy || picked.health == EndpointHealth::Healthy, "seed {seed} step {step}");
            let position = endpoints.iter().position(|e| Arc::ptr_eq(e, &picked)).unwrap();
            assert!(!(open && ejected[position]), "seed {seed} step {step}: picked an ejected one");
            if rng.u8(..) < 60 {
                picked.outlier.connect_failed(now);
            } else {
                picked.outlier.connected();
                picked.active.fetch_add(1, Relaxed);
                in_flight.push(picked);
            }
        }
        drop(in_flight);
    }
}

#[test]
fn an_endpoint_is_had_by_name_where_its_health_allows_that() {
    let up = endpoint(1, 1, EndpointHealth::Healthy);
    let all =
        [up.clone(), endpoint(2, 1, EndpointHealth::Draining), endpoint(3, 1, EndpointHealth::Unhealthy)];
    let mut balancer = Balancer::new(set(all.into()), BalancePolicy::RoundRobin, 0);
    let mut named = |now_ms, nameable| {
        let of = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let had = (1..5).filter(|port| balancer.named(now_ms, of(*port), nameable).is_some());
        had.collect::<Vec<u16>>()
    };
    let usual = Nameable::default();
    let with_draining = Nameable { draining: true, ..usual };
    let any = Nameable { unhealthy: true, ..with_draining };
    assert_eq!(named(1, usual), [1]);
    assert_eq!(named(1, with_draining), [1, 2]);
    assert_eq!(named(1, any), [1, 2, 3]);
    up.outlier.connect_failed(10);
    assert_eq!(named(11, with_draining), [2], "it is ejected");
    assert_eq!(named(11, any), [1, 2, 3]);
    assert_eq!(named(1_000, usual), [1], "its time is served");
}
