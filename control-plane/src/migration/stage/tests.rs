use proptest::prelude::*;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn order(change: Change) -> Order {
    Order { change, actor: "jo".into(), reason: None, expected_revision: None, force: false }
}

fn set(stage: Stage, weight: Option<u32>) -> Order {
    order(Change::Set { stage, weight: weight.map(|w| Weight::try_from(w).unwrap()) })
}

fn rollback(to: Option<Stage>) -> Order {
    order(Change::Rollback { to })
}

fn fresh() -> State {
    first(Position::START, "file:inventory.yaml".into(), at(0))
}

fn healthy() -> Circumstances {
    Circumstances { legacy: Some(2), target: Some(2), keyed: true, canary: true }
}

fn target_down() -> Circumstances {
    Circumstances { target: Some(0), ..healthy() }
}

fn position(stage: Stage, weight: u32) -> Position {
    Position { stage, weight: Weight::try_from(weight).unwrap() }
}

#[test]
fn weights_are_read_as_percentages_or_hundredths() {
    for (text, hundredths) in
        [("5%", 500), ("0.25%", 25), ("0.5%", 50), ("500", 500), ("100%", 10_000), ("0", 0), (" 20 % ", 2000)]
    {
        assert_eq!(text.parse::<Weight>().map(Weight::hundredths), Ok(hundredths), "{text}");
    }
    for text in ["", "%", "5.%", ".5%", "101%", "10001", "-1", "+5", "5.123%", "1e3", "５", "99999999999%"] {
        assert!(text.parse::<Weight>().is_err(), "{text}");
    }
}

#[test]
fn a_weight_out_of_range_is_refused_in_json() {
    let wrong = serde_json::from_str::<Weight>("10001").unwrap_err().to_string();
    assert!(wrong.contains("hundredths"), "{wrong}");
    assert!(serde_json::from_str::<Weight>("70000").is_err());
}

#[test]
fn a_split_needs_a_weight_the_first_time_and_keeps_it_afterwards() {
    assert_eq!(step(&fresh(), set(Stage::Split, None), healthy(), at(1)), Err(Refusal::WeightMissing));
    let split = step(&fresh(), set(Stage::Split, Some(500)), healthy(), at(1)).unwrap().state;
    let back = step(&split, rollback(None), healthy(), at(2)).unwrap().state;
    assert_eq!(back.position, position(Stage::Observe, 500));
    let again = step(&back, set(Stage::Split, None), healthy(), at(3)).unwrap().state;
    assert_eq!(again.position, position(Stage::Split, 500));
    assert_eq!(
        step(&fresh(), set(Stage::Canary, Some(5)), healthy(), at(1)),
        Err(Refusal::WeightUnused(Stage::Canary))
    );
}

#[test]
fn a_step_onto_a_dead_target_is_refused_unless_forced() {
    let refused = step(&fresh(), set(Stage::Canary, None), target_down(), at(1));
    assert_eq!(refused, Err(Refusal::TargetUnhealthy { to: position(Stage::Canary, 0) }));
    let forced = Order { force: true, ..set(Stage::Canary, None) };
    let forced = step(&fresh(), forced, target_down(), at(1)).unwrap();
    assert!(forced.forced && forced.moved);
    assert_eq!(forced.warnings.len(), 1);
    // Force that was not needed is not recorded as such.
    let needless = Order { force: true, ..set(Stage::Canary, None) };
    assert!(!step(&fresh(), needless, healthy(), at(1)).unwrap().forced);
}

#[test]
fn less_traffic_for_a_dead_target_is_never_refused() {
    let state = State { position: position(Stage::Split, 5000), ..fresh() };
    let less = step(&state, set(Stage::Split, Some(100)), target_down(), at(1)).unwrap();
    assert!(less.moved && !less.forced);
    assert!(step(&state, rollback(Some(Stage::Canary)), target_down(), at(1)).is_ok());
}

#[test]
fn a_pool_of_unknown_health_passes() {
    let unknown = Circumstances { legacy: None, target: None, ..healthy() };
    assert!(step(&fresh(), set(Stage::Cutover, None), unknown, at(1)).unwrap().warnings.is_empty());
}

#[test]
fn a_split_without_a_key_is_refused_and_a_canary_of_nobody_said() {
    let world = Circumstances { keyed: false, canary: false, ..healthy() };
    let refusal = step(&fresh(), set(Stage::Split, Some(500)), world, at(1)).unwrap_err();
    assert_eq!(refusal, Refusal::KeyMissing);
    let canary = step(&fresh(), set(Stage::Canary, None), world, at(1)).unwrap();
    assert!(canary.moved && canary.warnings[0].contains("spec.canary"));
}

#[test]
fn going_back_to_a_dead_legacy_pool_is_done_and_said() {
    let state = State { position: position(Stage::Cutover, 0), ..fresh() };
    let back = step(&state, rollback(None), Circumstances { legacy: Some(0), ..healthy() }, at(1)).unwrap();
    assert!(back.moved);
    assert!(back.warnings[0].contains("legacy"), "{:?}", back.warnings);
}

#[test]
fn a_stale_revision_conflicts_before_anything_else() {
    let stale = Order { expected_revision: Some(7), ..set(Stage::Split, None) };
    let refusal = step(&fresh(), stale, healthy(), at(1)).unwrap_err();
    assert_eq!(refusal, Refusal::Conflict { expected: 7, current: 1, position: Position::START });
}

#[test]
fn the_same_position_again_is_no_change() {
    let step = step(&fresh(), set(Stage::Observe, None), healthy(), at(9)).unwrap();
    assert!(!step.moved);
    assert_eq!(step.state, fresh());
}

#[test]
fn a_rollback_does_not_go_forward() {
    let state = State { position: position(Stage::Canary, 0), ..fresh() };
    let refusal = step(&state, rollback(Some(Stage::Split)), healthy(), at(1)).unwrap_err();
    assert_eq!(refusal.reason(), "not_earlier");
}

#[test]
fn a_command_does_not_change_what_the_file_was_seen_to_say() {
    let moved = step(&fresh(), set(Stage::Cutover, None), healthy(), at(1)).unwrap().state;
    assert_eq!(moved.declared, Position::START);
    let declared = order(Change::Declared(position(Stage::Split, 2000)));
    let state = step(&moved, declared, healthy(), at(2)).unwrap().state;
    assert_eq!(
        (state.position, state.declared),
        (position(Stage::Split, 2000), position(Stage::Split, 2000))
    );
}

fn any_position() -> impl Strategy<Value = Position> {
    (0..4_usize, 0..=10_000_u32).prop_map(|(stage, weight)| position(Stage::ALL[stage], weight))
}

fn any_order() -> impl Strategy<Value = Order> {
    let stage = (0..4_usize).prop_map(|i| Stage::ALL[i]);
    let weight = prop::option::of((0..=10_000_u32).prop_map(|w| Weight::try_from(w).unwrap()));
    let change = prop_oneof![
        (stage.clone(), weight).prop_map(|(stage, weight)| Change::Set { stage, weight }),
        prop::option::of(stage).prop_map(|to| Change::Rollback { to }),
        any_position().prop_map(Change::Declared),
    ];
    (change, any::<bool>(), prop::option::of(0..20_u64))
        .prop_map(|(change, force, expected_revision)| Order { force, expected_revision, ..order(change) })
}

fn any_health() -> impl Strategy<Value = Circumstances> {
    (prop::option::of(0..2_usize), prop::option::of(0..2_usize)).prop_map(|(legacy, target)| Circumstances {
        legacy,
        target,
        ..healthy()
    })
}

proptest! {
    #[test]
    fn every_sequence_keeps_the_invariants(
        orders in prop::collection::vec((any_order(), any_health()), 1..40),
    ) {
        let mut state = fresh();
        for (second, (order, health)) in orders.into_iter().enumerate() {
            let second = second as i64 + 1;
            match step(&state, order.clone(), health, at(second)) {
                Err(_) => {}
                Ok(step) => {
                    // The revision counts the changes, and each change says where it came from.
                    prop_assert_eq!(step.state.revision, state.revision + u64::from(step.moved));
                    prop_assert_eq!(step.moved, step.state.position != state.position);
                    if step.moved {
                        prop_assert_eq!(step.state.previous, Some(state.position));
                        prop_assert_eq!(step.state.at, at(second));
                    }
                    // More traffic never goes to a target known to be dead, but by force and on record.
                    if step.state.position.exposes_more_than(state.position) && health.target == Some(0) {
                        prop_assert!(order.force && step.forced);
                    }
                    let back = matches!(order.change, Change::Rollback { .. });
                    prop_assert!(!back || step.state.position.stage <= state.position.stage);
                    state = step.state;
                }
            }
            // From anywhere, whatever the health, every earlier stage is one command away.
            for stage in Stage::ALL.into_iter().filter(|stage| *stage <= state.position.stage) {
                let back = step(&state, rollback(Some(stage)), target_down(), at(99)).unwrap();
                prop_assert_eq!(back.state.position.stage, stage);
                prop_assert!(!back.state.position.exposes_more_than(state.position));
            }
        }
    }

    #[test]
    fn a_later_position_never_sends_fewer_keys(a in any_position(), b in any_position()) {
        if a.exposes_more_than(b) {
            prop_assert!(a.target_share() >= b.target_share());
        }
    }

    #[test]
    fn a_weight_survives_its_own_words(hundredths in 0..=10_000_u32) {
        let weight = Weight::try_from(hundredths).unwrap();
        prop_assert_eq!(weight.to_string().parse::<Weight>(), Ok(weight));
        prop_assert_eq!(hundredths.to_string().parse::<Weight>(), Ok(weight));
    }
}
