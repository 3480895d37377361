use std::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::prelude::*;
use redb::Database;

use super::*;
use crate::addresses::store::Store;

fn services(names: impl IntoIterator<Item = usize>) -> BTreeSet<Arc<str>> {
    names.into_iter().map(|name| format!("default/s{name}").into()).collect()
}

fn day(number: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * number)
}

fn small(prefix: u8) -> Ranges {
    let v4 = ipnet::Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), prefix).unwrap();
    Ranges { v4: Some(v4), v6: None }
}

/// Plans and applies; says for how many there was no slot.
fn step(slots: &mut Slots, services: &BTreeSet<Arc<str>>, now: Timestamp) -> usize {
    let plan = slots.plan(services, now);
    slots.apply(&plan.changes);
    assert!(slots.plan(services, now).changes.is_empty(), "a plan that was carried out plans nothing");
    plan.without
}

#[test]
fn a_full_range_gives_the_slot_of_whoever_is_gone_longest_and_only_after_the_grace() {
    // Six slots.
    let mut slots = Slots::new(small(29), BTreeMap::new());
    assert_eq!(step(&mut slots, &services(0..6), day(0)), 0);
    let first = slots.rows["default/s0"].slot;
    assert_eq!(step(&mut slots, &services(1..6), day(1)), 0);
    assert_eq!(step(&mut slots, &services(2..6), day(2)), 0);
    assert_eq!(step(&mut slots, &services(2..7), day(30)), 1, "s0 is gone for 29 days");
    assert_eq!(step(&mut slots, &services(2..7), day(31)), 0);
    assert_eq!(slots.rows["default/s6"].slot, first);
    assert!(!slots.rows.contains_key("default/s0"), "and what it had is told to nobody");
    assert_eq!(step(&mut slots, &services(2..8), day(31)), 1, "s1 is gone for 29 days");
}

#[test]
fn a_service_that_comes_back_has_the_address_that_it_had() {
    let mut slots = Slots::new(Ranges::default(), BTreeMap::new());
    step(&mut slots, &services([1, 2]), day(0));
    let before = slots.in_model().of("default/s1");
    assert!(before.is_some());
    step(&mut slots, &services([2]), day(1));
    assert_eq!(slots.in_model().of("default/s1"), None);
    step(&mut slots, &services([1, 2]), day(1_000));
    assert_eq!(slots.in_model().of("default/s1"), before);
}

#[test]
fn control_planes_without_a_common_past_agree() {
    let mut names: Vec<usize> = (0..100).collect();
    let mut forth = Slots::new(Ranges::default(), BTreeMap::new());
    let mut back = forth.clone();
    for name in &names {
        step(&mut forth, &services(0..=*name), day(0));
    }
    names.reverse();
    for name in &names {
        step(&mut back, &services(*name..100), day(0));
    }
    assert_eq!(forth.in_model(), back.in_model());
}

/// Follows and plans, as a control plane does.
fn follow(slots: &mut Slots, theirs: &Aside, services: &BTreeSet<Arc<str>>, now: Timestamp) {
    let changes = slots.follow(theirs);
    slots.apply(&changes);
    step(slots, services, now);
}

#[test]
fn who_follows_another_has_the_same_whoever_came_first() {
    // So many in six slots that nearly all want another's.
    let all = services(0..6);
    let mut forth = Slots::new(small(29), BTreeMap::new());
    let mut back = forth.clone();
    for name in 0..6 {
        step(&mut forth, &services(0..=name), day(0));
        step(&mut back, &services(5 - name..6), day(0));
    }
    assert_ne!(forth.in_model(), back.in_model(), "they came in another order");
    follow(&mut back, &forth.aside(), &all, day(0));
    assert_eq!(forth.in_model(), back.in_model());
    assert_eq!(back.aside(), forth.aside(), "and it hands that on");
    assert!(back.follow(&forth.aside()).is_empty(), "there is nothing to be done any more");
}

#[test]
fn one_that_is_gone_here_is_in_nobodys_way_who_is_there() {
    let mut theirs = Slots::new(small(29), BTreeMap::new());
    step(&mut theirs, &services(3..6), day(0));
    let mut ours = Slots::new(small(29), BTreeMap::new());
    step(&mut ours, &services(0..3), day(0));
    step(&mut ours, &services(3..6), day(1));
    follow(&mut ours, &theirs.aside(), &services(3..6), day(1));
    assert_eq!(ours.in_model(), theirs.in_model());
}

#[test]
fn of_other_ranges_nothing_is_followed() {
    let mut theirs = Slots::new(small(28), BTreeMap::new());
    step(&mut theirs, &services(0..10), day(0));
    let mut ours = Slots::new(small(29), BTreeMap::new());
    step(&mut ours, &services(0..6), day(0));
    assert!(ours.follow(&theirs.aside()).is_empty());
    assert!(ours.follow(&Aside::default()).is_empty());
}

#[test]
fn nobody_is_told_the_same_slot_as_another_whatever_is_said() {
    let mut slots = Slots::new(small(29), BTreeMap::new());
    step(&mut slots, &services(0..3), day(0));
    let said = [("default/s0", 1), ("default/s1", 1), ("default/s2", 1_000), ("default/s9", 2)];
    let services_of = said.map(|(service, slot)| (service.to_owned(), slot));
    follow(&mut slots, &Aside { slots: 6, services: services_of.into() }, &services(0..3), day(0));
    let unique: BTreeSet<u32> = slots.rows.values().map(|row| row.slot).collect();
    assert_eq!((unique.len(), slots.rows["default/s0"].slot), (slots.rows.len(), 1));
    assert!(slots.rows.values().all(|row| row.slot < 6));
}

#[test]
fn a_smaller_range_moves_only_those_that_it_does_not_have() {
    let mut slots = Slots::new(small(24), BTreeMap::new());
    step(&mut slots, &services(0..50), day(0));
    let mut smaller = Slots::new(small(25), slots.rows.clone());
    assert_eq!(step(&mut smaller, &services(0..50), day(1)), 0);
    for (service, row) in slots.rows {
        let now = smaller.rows[&service].slot;
        assert!(now < 126 && (now == row.slot || row.slot >= 126), "{service}");
    }
}

#[test]
fn without_a_range_nobody_has_an_address() {
    let mut slots = Slots::new(Ranges { v4: None, v6: None }, BTreeMap::new());
    assert_eq!(step(&mut slots, &services(0..3), day(0)), 3);
    assert_eq!(slots.in_model().of("default/s0"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever two control planes have been through: when one follows the other, and both see the same services, their
    /// addresses are the same.
    #[test]
    fn who_follows_agrees(
        one in vec(vec(0_usize..40, 0..20), 1..8),
        other in vec(vec(0_usize..40, 0..20), 1..8),
        now in vec(0_usize..40, 0..20),
    ) {
        let past = |histories: Vec<Vec<usize>>| {
            let mut slots = Slots::new(small(27), BTreeMap::new());
            for names in histories {
                step(&mut slots, &services(names), day(0));
            }
            slots
        };
        let (mut leads, mut follows) = (past(one), past(other));
        let now = services(now);
        let without = step(&mut leads, &now, day(1)) + step(&mut follows, &now, day(1));
        follow(&mut follows, &leads.aside(), &now, day(1));
        let unique: BTreeSet<u32> = follows.rows.values().map(|row| row.slot).collect();
        prop_assert_eq!(unique.len(), follows.rows.len());
        if without == 0 {
            prop_assert_eq!(follows.in_model(), leads.in_model());
        }
    }

    /// Whatever comes and goes, and however often the control plane restarts: a service has one slot while it
    /// exists, the same one as before, and nobody else has it.
    #[test]
    fn slots_are_stable_and_unique(histories in vec((vec(0_usize..40, 0..20), any::<bool>(), 0_i64..40), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Arc::new(Database::create(dir.path().join("state.redb")).unwrap()));
        let ranges = small(27);
        let mut slots = Slots::new(ranges, store.load().unwrap());
        let mut now = 0;
        let mut before = BTreeMap::new();
        for (names, restart, days) in histories {
            now += days;
            let services = services(names);
            let plan = slots.plan(&services, day(now));
            store.write(&plan.changes).unwrap();
            slots.apply(&plan.changes);
            if restart {
                slots = Slots::new(ranges, store.load().unwrap());
            }
            let here: BTreeMap<_, _> = services.iter().filter_map(|s| Some((s.clone(), slots.rows.get(s)?.slot))).collect();
            prop_assert_eq!(here.len() + plan.without, services.len());
            let unique: BTreeSet<u32> = slots.rows.values().map(|row| row.slot).collect();
            prop_assert_eq!(unique.len(), slots.rows.len());
            for (service, slot) in &here {
                if let Some(earlier) = before.get(service) {
                    prop_assert_eq!(earlier, slot, "{} had another slot", service);
                }
            }
            before = here;
        }
    }
}
