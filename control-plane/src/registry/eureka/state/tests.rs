use super::*;
use proptest::prelude::*;

use crate::registry::eureka::wire::{Listing, json};

const UP: InstanceStatus = InstanceStatus::Up;
const DOWN: InstanceStatus = InstanceStatus::Down;
const OUT: InstanceStatus = InstanceStatus::OutOfService;

/// A registry and a clock that stands until it is moved.
struct Bench {
    registry: Registry,
    now: Now,
}

fn settings() -> Settings {
    Settings {
        max_instances: 1000,
        max_bytes: 16 << 20,
        delta_retention: Duration::from_secs(180),
        self_preservation: true,
        durable: true,
    }
}

fn info(app: &str, id: &str, status: InstanceStatus, dirty_ms: u64) -> InstanceInfo {
    let body = serde_json::json!({"instance": {
        "app": app, "instanceId": id, "hostName": "h", "ipAddr": "192.0.2.1", "status": status.as_str(),
        "port": {"$": 80, "@enabled": "true"}, "vipAddress": format!("{app},other"),
        "leaseInfo": {"durationInSecs": 90}, "lastDirtyTimestamp": dirty_ms,
    }});
    json::read_instance(body.to_string().as_bytes()).unwrap()
}

impl Bench {
    fn new(settings: Settings) -> Bench {
        let now = Now { instant: Instant::now(), unix_ms: 1_000_000_000 };
        Bench { registry: Registry::new(settings, now), now }
    }

    fn pass(&mut self, seconds: u64) -> &mut Bench {
        self.now.instant += Duration::from_secs(seconds);
        self.now.unix_ms += seconds * 1000;
        self
    }

    fn register(&mut self, app: &str, id: &str, status: InstanceStatus, dirty_ms: u64) -> &mut Bench {
        self.registry.register(info(app, id, status, dirty_ms), false, self.now).unwrap();
        self
    }

    fn renew(&mut self, app: &str, id: &str) -> bool {
        self.registry.renew(app, id, None, false, self.now).is_ok()
    }

    fn check(&mut self) -> Checked {
        self.registry.check(self.now)
    }

    fn balanced(&self, app: &str) -> Vec<(&str, InstanceStatus)> {
        let Some(of) = self.registry.view().applications.get(app) else { return Vec::new() };
        of.instances.iter().map(|(id, instance)| (&**id, instance.status)).collect()
    }

    fn held(&self, app: &str) -> bool {
        self.registry.view().applications.get(app).is_some_and(|of| of.held)
    }

    fn status(&self, app: &str, id: &str) -> (InstanceStatus, InstanceStatus) {
        let listed = self.registry.instance(app, id).unwrap();
        (listed.info.status, listed.info.overridden)
    }

    fn delta(&self) -> Vec<(String, Action, InstanceStatus)> {
        let delta = self.registry.delta(self.now).unwrap();
        let all = delta.applications.iter().flat_map(|of| &of.instances);
        all.map(|of| (of.info.id.to_string(), of.info.action, of.info.status)).collect()
    }
}

#[test]
fn a_lease_lasts_as_long_as_it_says_after_its_last_renewal() {
    let mut bench = Bench::new(settings());
    bench.register("A", "1", UP, 1).register("A", "2", UP, 1);
    assert!(bench.pass(60).renew("A", "1"));
    assert_eq!(bench.pass(29).check().evicted, 0);
    assert_eq!(bench.pass(1).check().evicted, 1, "2 never renewed: 90 s");
    assert_eq!(bench.pass(59).check().evicted, 0);
    assert_eq!(bench.balanced("A"), [("1", UP)]);
    assert_eq!(bench.pass(1).check().evicted, 1, "1 renewed at 60 s: 150 s and not 240 s");
    assert!(!bench.renew("A", "1"));
    assert!(bench.registry.application("a").is_none());
}

#[test]
fn clients_clocks_decide_nothing() {
    let mut bench = Bench::new(settings());
    bench.register("A", "far", UP, u64::MAX / 2).register("A", "past", UP, 0);
    assert_eq!(bench.pass(89).check().evicted, 0);
    assert_eq!(bench.pass(1).check().evicted, 2);
}

#[test]
fn an_application_whose_leases_all_ran_out_is_held_until_somebody_speaks() {
    let mut bench = Bench::new(settings());
    bench.register("A", "1", UP, 1).pass(10).register("A", "2", UP, 1);
    bench.pass(85).check();
    assert_eq!(bench.balanced("A"), [("2", UP)]);
    assert!(!bench.held("A"));
    bench.pass(10).check();
    assert_eq!(bench.balanced("A"), [("1", UP), ("2", UP)], "lost together, though seconds apart");
    assert!(bench.held("A"));
    assert!(bench.registry.full().applications.is_empty(), "Eureka's clients see what Eureka would show");
    bench.pass(100_000).check();
    assert!(bench.held("A"));
    bench.register("A", "3", UP, 1);
    assert_eq!(bench.balanced("A"), [("3", UP)]);
    assert!(!bench.held("A"));
    bench.pass(1).check();
    assert!(bench.registry.cancel("A", "1", bench.now).is_err(), "forgotten by now");
}

#[test]
fn one_that_died_long_before_its_siblings_is_not_held_with_them() {
    let mut bench = Bench::new(settings());
    bench.register("A", "old", UP, 1).register("A", "new", UP, 1);
    for _ in 0..10 {
        bench.pass(30).renew("A", "new");
        bench.check();
    }
    bench.pass(90).check();
    assert_eq!(bench.balanced("A"), [("new", UP)]);
    assert!(bench.held("A"));
}

#[test]
fn what_a_client_says_of_its_end_is_applied_at_once_and_never_held() {
    let mut bench = Bench::new(settings());
    bench.register("A", "1", UP, 1).register("A", "1", DOWN, 2);
    assert_eq!(bench.balanced("A"), [("1", DOWN)]);
    bench.pass(90).check();
    assert_eq!(bench.balanced("A"), []);
    bench.register("B", "1", UP, 1);
    bench.registry.cancel("b", "1", bench.now).unwrap();
    assert_eq!(bench.balanced("B"), []);
    assert_eq!(bench.registry.cancel("B", "1", bench.now).unwrap_err().status().as_u16(), 404);
    bench.register("C", "1", UP, 1).pass(90).check();
    assert!(bench.held("C"));
    bench.registry.cancel("C", "1", bench.now).unwrap();
    assert_eq!(bench.balanced("C"), [], "a held one can be let go");
}

#[test]
fn a_late_up_does_not_undo_a_down_but_a_clock_set_back_is_believed() {
    let mut bench = Bench::new(settings());
    bench.register("A", "1", DOWN, 10_000_000).register("A", "1", UP, 9_999_000);
    assert_eq!(bench.status("A", "1").0, DOWN);
    bench.register("A", "1", UP, 9_000_000);
    assert_eq!(bench.status("A", "1").0, UP);
    bench.registry.register(info("A", "1", OUT, 1), true, bench.now).unwrap();
    assert_eq!(bench.status("A", "1").0, UP, "a peer's copy that is older is never newer");
}

#[test]
fn self_preservation_needs_three_and_more_than_15_percent() {
    for (all, dead, evicted) in [
        (1, 1, 1),
        (2, 2, 2),
        (3, 2, 2),
        (3, 3, 0),
        (12, 3, 0),
        (13, 12, 0),
        (20, 3, 3),
        (21, 4, 0),
        (100, 15, 15),
    ] {
        let mut bench = Bench::new(settings());
        for n in 0..all {
            bench.register("A", &n.to_string(), UP, 1);
        }
        bench.pass(60);
        for n in dead..all {
            bench.renew("A", &n.to_string());
        }
        let checked = bench.pass(30).check();
        assert_eq!((checked.evicted, checked.preserved), (evicted, dead - evicted), "{dead} of {all}");
        let summary = bench.registry.summary(bench.now);
        assert_eq!(summary.preserving, evicted == 0);
        assert_eq!(summary.instances, all - evicted, "preserved ones stay listed");
        if all > dead {
            assert_eq!(bench.balanced("A").len(), all - dead, "but take no traffic");
        }
    }
    let mut bench = Bench::new(Settings { self_preservation: false, ..settings() });
    for n in 0..10 {
        bench.register("A", &n.to_string(), UP, 1);
    }
    assert_eq!(bench.pass(90).check().evicted, 10);
}

#[test]
fn a_preserved_lease_comes_back_with_its_renewal() {
    let mut bench = Bench::new(settings());
    for id in ["1", "2", "3"] {
        bench.register("A", id, UP, 1);
    }
    assert_eq!(bench.pass(90).check().preserved, 3);
    assert!(bench.held("A"));
    assert!(bench.renew("A", "2"), "no 404: the lease was never taken out");
    assert_eq!(bench.balanced("A"), [("2", UP)]);
    assert!(!bench.held("A"));
}

#[test]
fn an_override_survives_renewals_registrations_and_eviction() {
    let mut bench = Bench::new(settings());
    bench.register("A", "1", UP, 1).register("A", "2", UP, 1);
    bench.registry.set_override("a", "1", OUT, Some(5), bench.now).unwrap();
    assert_eq!(bench.status("A", "1"), (OUT, OUT));
    assert!(bench.renew("A", "1"));
    bench.register("A", "1", UP, 6);
    assert_eq!(bench.status("A", "1"), (OUT, OUT));
    bench.register("A", "1", DOWN, 7);
    assert_eq!(bench.status("A", "1"), (DOWN, OUT), "its own end goes first");
    bench.register("A", "1", UP, 8).pass(90).check();
    bench.register("A", "1", UP, 9);
    assert_eq!(bench.status("A", "1"), (OUT, OUT), "evicted and back");
    bench.registry.cancel("A", "1", bench.now).unwrap();
    bench.register("A", "1", UP, 10);
    assert_eq!(bench.status("A", "1"), (UP, InstanceStatus::Unknown));
}

#[test]
fn deleting_an_override_leaves_unknown_which_a_renewal_heals() {
    let mut bench = Bench::new(settings());
    bench.register("A", "1", UP, 1);
    bench.registry.delete_override("A", "1", None, None, bench.now).unwrap();
    assert_eq!(bench.status("A", "1").0, UP, "there was none");
    bench.registry.set_override("A", "1", OUT, None, bench.now).unwrap();
    bench.registry.delete_override("A", "1", None, None, bench.now).unwrap();
    assert_eq!(bench.status("A", "1"), (InstanceStatus::Unknown, InstanceStatus::Unknown));
    assert!(!bench.renew("A", "1"), "404, upon which clients register");
    bench.register("A", "1", UP, 2);
    assert!(bench.renew("A", "1"));
    assert_eq!(bench.status("A", "1").0, UP);
    bench.registry.set_override("A", "1", OUT, None, bench.now).unwrap();
    bench.registry.delete_override("A", "1", Some(UP), None, bench.now).unwrap();
    assert_eq!(bench.status("A", "1").0, UP);
    assert!(bench.renew("A", "1"));
    let unknown = bench.registry.set_override("A", "2", OUT, None, bench.now).unwrap_err();
    assert_eq!(unknown.status().as_u16(), 404);
}

#[test]
fn renewals_compare_the_clients_clock_as_recorded() {
    let mut bench = Bench::new(settings());
    bench.register("A", "1", UP, 100);
    let mut renew = |dirty, peer| bench.registry.renew("A", "1", Some(dirty), peer, bench.now);
    assert_eq!(renew(100, false), Ok(()));
    assert_eq!(renew(101, false), Err(NotRenewed::Unknown));
    assert_eq!(renew(99, false), Ok(()));
    assert!(matches!(renew(99, true), Err(NotRenewed::Conflict(_))));
    assert_eq!(renew(101, true), Err(NotRenewed::Unknown));
    assert_eq!(bench.registry.summary(bench.now).renewals_per_minute, 5, "each counted");
}

#[test]
fn the_delta_has_each_instance_once_with_its_newest_action_for_3_min() {
    let mut bench = Bench::new(settings());
    bench.register("A", "1", UP, 1).register("A", "2", UP, 1);
    bench.registry.merge_metadata("A", "1", vec![("a.b".into(), "c".into())], bench.now).unwrap();
    bench.registry.cancel("A", "2", bench.now).unwrap();
    let expected = [("1".to_owned(), Action::Modified, UP), ("2".to_owned(), Action::Deleted, DOWN)];
    assert_eq!(bench.delta(), expected);
    let delta = bench.registry.delta(bench.now).unwrap();
    assert_eq!(delta.hash, "UP_1_", "of the whole registry");
    assert!(delta.applications[0].instances[1].info.lease.eviction_ms > 0);
    bench.register("A", "2", UP, 2);
    assert_eq!(bench.delta()[1], ("2".to_owned(), Action::Added, UP));
    for _ in 0..6 {
        bench.pass(30).renew("A", "1");
        bench.renew("A", "2");
        bench.check();
    }
    assert_eq!(bench.delta(), []);
    assert_eq!(bench.registry.delta(bench.now).unwrap().hash, "UP_2_");
}

#[test]
fn a_flood_of_changes_ends_in_no_delta_rather_than_a_wrong_one() {
    let mut bench = Bench::new(settings());
    for n in 0..=log::CAPACITY {
        let id = n.to_string();
        bench.register("A", &id, UP, 1);
        bench.registry.cancel("A", &id, bench.now).unwrap();
    }
    assert!(bench.registry.delta(bench.now).is_none());
    bench.pass(180).check();
    assert_eq!(bench.delta(), []);
}

#[test]
fn the_hash_names_statuses_alphabetically() {
    let mut bench = Bench::new(settings());
    assert_eq!(bench.registry.hash(), "");
    for (n, status) in InstanceStatus::ALL.into_iter().rev().enumerate() {
        bench.register("A", &n.to_string(), status, 1);
    }
    bench.register("B", "1", UP, 1);
    assert_eq!(bench.registry.hash(), "DOWN_1_OUT_OF_SERVICE_1_STARTING_1_UNKNOWN_1_UP_2_");
}

#[test]
fn vips_and_ids_are_found() {
    let mut bench = Bench::new(settings());
    bench.register("A", "1", UP, 1).register("B", "2", DOWN, 1);
    assert_eq!(bench.registry.by_vip("a", false).hash, "UP_1_");
    assert_eq!(bench.registry.by_vip("other", false).hash, "DOWN_1_UP_1_");
    let none = bench.registry.by_vip("nobody", false);
    assert_eq!((none.version.as_str(), none.hash.as_str(), none.applications.len()), ("-1", "", 0));
    assert_eq!(bench.registry.by_vip("a", true).applications.len(), 0);
    assert_eq!(&*bench.registry.by_id("2").unwrap().info.app, "B");
    assert!(bench.registry.by_id("3").is_none());
}

#[test]
fn the_registry_is_full_when_it_says_so() {
    let mut bench = Bench::new(Settings { max_instances: 2, ..settings() });
    bench.register("A", "1", UP, 1).register("A", "2", UP, 1).register("A", "2", UP, 2);
    let refusal = bench.registry.register(info("A", "3", UP, 1), false, bench.now).unwrap_err();
    assert_eq!((refusal.status().as_u16(), refusal.reason()), (503, "registry_full"));
    bench.pass(90).check();
    assert!(bench.registry.register(info("A", "3", UP, 1), false, bench.now).is_err(), "held ones count");
    bench.registry.cancel("A", "1", bench.now).unwrap();
    bench.register("A", "3", UP, 1);
    let mut bench = Bench::new(Settings { max_bytes: 1000, ..settings() });
    let mut large = info("A", "1", UP, 1);
    large.metadata.insert("k".into(), "v".repeat(2000));
    assert_eq!(bench.registry.register(large, false, bench.now).unwrap_err().reason(), "registry_full");
}

#[test]
fn a_flood_of_100_000_registrations_is_bounded() {
    let mut bench = Bench::new(settings());
    let template = info("A", "0", UP, 1);
    let refused = (0..100_000).filter(|n| {
        let mut of = template.clone();
        (of.app, of.id) = (format!("A{}", n % 100).into(), n.to_string().into());
        bench.registry.register(of, false, bench.now).is_err()
    });
    assert_eq!(refused.count(), 99_000);
    let summary = bench.registry.summary(bench.now);
    assert_eq!((summary.instances, summary.applications), (1000, 100));
    assert!(summary.bytes < settings().max_bytes);
}

/// Applies batches as a store does.
#[derive(Default)]
struct Disk(BTreeMap<Key, Stored>);

impl Disk {
    fn write(&mut self, registry: &mut Registry) {
        let Some(batch) = registry.take_batch() else { return };
        if batch.rewrite {
            self.0.clear();
        }
        for (key, stored) in batch.writes {
            match stored {
                Some(stored) => drop(self.0.insert(key, stored)),
                None => drop(self.0.remove(&key)),
            }
        }
    }

    fn start(&self, now: Now) -> Registry {
        let mut registry = Registry::new(settings(), now);
        registry.restore(self.0.values().cloned().collect(), now);
        registry
    }
}

#[test]
fn after_a_start_nobody_is_dropped_for_the_length_of_a_lease() {
    let mut bench = Bench::new(settings());
    let mut disk = Disk::default();
    bench.register("A", "1", UP, 1).register("B", "1", UP, 1).register("C", "1", UP, 1).pass(50);
    bench.registry.set_override("C", "1", OUT, None, bench.now).unwrap();
    bench.renew("C", "1");
    bench.pass(40).check();
    assert!(bench.held("A"));
    disk.write(&mut bench.registry);
    bench.pass(100_000);
    bench.registry = disk.start(bench.now);
    assert!(bench.held("A") && bench.held("B"), "held stays held");
    assert_eq!(bench.balanced("C"), [("1", OUT)]);
    assert_eq!(bench.delta().len(), 1);
    assert_eq!(bench.pass(89).check().evicted, 0);
    assert!(bench.renew("C", "1"));
    bench.register("C", "1", UP, 2);
    assert_eq!(bench.status("C", "1"), (OUT, OUT));
}

#[derive(Debug, Clone)]
enum Step {
    Register(u8, InstanceStatus),
    Renew(u8),
    Cancel(u8),
    Override(u8, InstanceStatus),
    Restore(u8, Option<InstanceStatus>),
    Metadata(u8),
    Pass(u64),
    Fetch,
    Write,
}

fn step() -> impl Strategy<Value = Step> {
    let status = || proptest::sample::select(InstanceStatus::ALL.to_vec());
    prop_oneof![
        4 => (0..8_u8, status()).prop_map(|(n, status)| Step::Register(n, status)),
        6 => (0..8_u8).prop_map(Step::Renew),
        2 => (0..8_u8).prop_map(Step::Cancel),
        1 => (0..8_u8, status()).prop_map(|(n, status)| Step::Override(n, status)),
        1 => (0..8_u8, proptest::option::of(status())).prop_map(|(n, status)| Step::Restore(n, status)),
        1 => (0..8_u8).prop_map(Step::Metadata),
        3 => (1..60_u64).prop_map(Step::Pass),
        2 => Just(Step::Fetch),
        1 => Just(Step::Write),
    ]
}

type Fetched = BTreeMap<Key, Arc<InstanceInfo>>;

fn everything(listing: &Listing) -> Fetched {
    let all = listing.applications.iter().flat_map(|of| &of.instances);
    all.map(|of| ((of.info.app.clone(), of.info.id.clone()), of.info.clone())).collect()
}

/// As Eureka's clients do it.
fn apply(copy: &mut Fetched, delta: &Listing) {
    for (key, info) in everything(delta) {
        match info.action {
            Action::Deleted => drop(copy.remove(&key)),
            _ => drop(copy.insert(key, info)),
        }
    }
}

fn recount(copy: &Fetched) -> String {
    let mut statuses = [0; 5];
    copy.values().for_each(|info| statuses[slot(info.status)] += 1);
    hash_of(statuses)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_happens_the_books_agree(steps in proptest::collection::vec(step(), 1..60), preserve in any::<bool>()) {
        let mut bench = Bench::new(Settings { self_preservation: preserve, ..settings() });
        let (mut client, mut disk, mut fetched) = (Fetched::new(), Disk::default(), bench.now.instant);
        for (n, step) in steps.into_iter().enumerate() {
            let name = |n: u8| (["A", "B", "C"][usize::from(n % 3)], (n / 3).to_string());
            match step {
                Step::Register(of, status) => {
                    let (app, id) = name(of);
                    bench.register(app, &id, status, n as u64);
                }
                Step::Renew(of) => { let (app, id) = name(of); bench.renew(app, &id); }
                Step::Cancel(of) => {
                    let (app, id) = name(of);
                    let _ = bench.registry.cancel(app, &id, bench.now);
                    let view = bench.registry.view();
                    prop_assert!(view.applications.get(app).is_none_or(|of| !of.instances.contains_key(id.as_str())));
                }
                Step::Override(of, status) => {
                    let (app, id) = name(of);
                    let _ = bench.registry.set_override(app, &id, status, None, bench.now);
                }
                Step::Restore(of, status) => {
                    let (app, id) = name(of);
                    let _ = bench.registry.delete_override(app, &id, status, None, bench.now);
                }
                Step::Metadata(of) => {
                    let (app, id) = name(of);
                    let _ = bench.registry.merge_metadata(app, &id, vec![("n".into(), n.to_string())], bench.now);
                }
                Step::Pass(seconds) => { bench.pass(seconds).check(); }
                Step::Fetch => {
                    if bench.now.instant - fetched < Duration::from_secs(170) {
                        apply(&mut client, &bench.registry.delta(bench.now).unwrap());
                    } else {
                        client = everything(&bench.registry.full());
                    }
                    fetched = bench.now.instant;
                    let (full, delta) = (bench.registry.full(), bench.registry.delta(bench.now).unwrap());
                    prop_assert_eq!(&client, &everything(&full));
                    prop_assert_eq!(recount(&client), full.hash);
                    prop_assert_eq!(recount(&client), delta.hash);
                }
                Step::Write => disk.write(&mut bench.registry),
            }
            // The sizes are what is there, and the view never has an empty application.
            let summary = bench.registry.summary(bench.now);
            let of_all: usize = bench.registry.applications.values()
                .flat_map(|of| of.leases.values().map(|l| &l.info).chain(of.departed.values().map(|d| &d.info)))
                .map(|info| info.size_bytes()).sum();
            prop_assert_eq!(summary.bytes, of_all);
            prop_assert!(bench.registry.view().applications.values().all(|of| !of.instances.is_empty()));
        }
        // What is on disk is what is known.
        disk.write(&mut bench.registry);
        let started = disk.start(bench.now);
        prop_assert_eq!(everything(&started.full()), everything(&bench.registry.full()));
        let held = |registry: &Registry| -> usize { registry.applications.values().map(|of| of.departed.len()).sum() };
        prop_assert_eq!(held(&started), held(&bench.registry));
    }
}
