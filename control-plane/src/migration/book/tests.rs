use std::sync::Arc;

use super::*;
use crate::migration::stage::{Stage, Weight};
use crate::objects::Migration;

const HEALTHY: Circumstances = Circumstances { legacy: Some(1), target: Some(1), keyed: true, canary: true };
const TARGET_DOWN: Circumstances = Circumstances { target: Some(0), ..HEALTHY };

fn name() -> ObjectName {
    ObjectName::new("default", "inventory")
}

fn objects(stage: Stage, weight: u16) -> Objects {
    let mut migration = Migration::default();
    migration.spec.stage = Some(stage);
    migration.spec.weight = Some(weight);
    Objects { migrations: [(name(), Arc::new(migration))].into_iter().collect(), ..Objects::default() }
}

fn declare(book: &mut Book, objects: &Objects, world: Circumstances) -> usize {
    let drafts = book.declarations(objects, |name| format!("file:{name}"), |_| world, Timestamp::UNIX_EPOCH);
    drafts.iter().for_each(|draft| book.apply(draft));
    drafts.len()
}

fn command(book: &mut Book, objects: &Objects, change: Change) {
    let order = Order { change, actor: "jo".into(), reason: None, expected_revision: None, force: false };
    let draft = book.order(&name(), order, None, objects, HEALTHY, Timestamp::UNIX_EPOCH).unwrap();
    book.apply(&draft);
}

fn stage(book: &Book) -> Stage {
    book.state(&name()).unwrap().position.stage
}

#[test]
fn a_file_acts_when_first_seen_and_when_it_changes() {
    let mut book = Book::default();
    // Even onto a dead target: there is nothing to go on serving instead.
    assert_eq!(declare(&mut book, &objects(Stage::Split, 500), TARGET_DOWN), 1);
    assert_eq!(book.state(&name()).unwrap().position.weight, Weight::saturating(500));
    assert_eq!(declare(&mut book, &objects(Stage::Split, 500), HEALTHY), 0);
    command(&mut book, &objects(Stage::Split, 500), Change::Rollback { to: None });
    // The file still says split, but it did before: the rollback stands.
    assert_eq!(declare(&mut book, &objects(Stage::Split, 500), HEALTHY), 0);
    assert_eq!(stage(&book), Stage::Observe);
    assert_eq!(declare(&mut book, &objects(Stage::Split, 600), HEALTHY), 1);
    assert_eq!(stage(&book), Stage::Split);
}

#[test]
fn a_refused_change_of_the_file_waits_until_nothing_speaks_against_it() {
    let mut book = Book::default();
    declare(&mut book, &objects(Stage::Observe, 0), HEALTHY);
    assert_eq!(declare(&mut book, &objects(Stage::Cutover, 0), TARGET_DOWN), 0);
    assert_eq!(book.pending(&name()).unwrap().1.reason(), "target_unhealthy");
    assert_eq!(declare(&mut book, &objects(Stage::Cutover, 0), HEALTHY), 1);
    assert_eq!(stage(&book), Stage::Cutover);
    assert!(book.pending(&name()).is_none());
}

#[test]
fn a_command_settles_a_change_that_was_waiting() {
    let mut book = Book::default();
    declare(&mut book, &objects(Stage::Canary, 0), HEALTHY);
    declare(&mut book, &objects(Stage::Cutover, 0), TARGET_DOWN);
    command(&mut book, &objects(Stage::Cutover, 0), Change::Rollback { to: None });
    assert_eq!(declare(&mut book, &objects(Stage::Cutover, 0), HEALTHY), 0);
    assert_eq!(stage(&book), Stage::Observe);
}

#[test]
fn a_file_put_back_as_it_was_asks_for_nothing() {
    let mut book = Book::default();
    declare(&mut book, &objects(Stage::Canary, 0), HEALTHY);
    declare(&mut book, &objects(Stage::Cutover, 0), TARGET_DOWN);
    declare(&mut book, &objects(Stage::Canary, 0), TARGET_DOWN);
    assert!(book.pending(&name()).is_none());
}

#[test]
fn a_state_outlives_its_object() {
    let mut book = Book::default();
    declare(&mut book, &objects(Stage::Split, 500), HEALTHY);
    command(&mut book, &objects(Stage::Split, 500), Change::Set { stage: Stage::Cutover, weight: None });
    assert_eq!(declare(&mut book, &Objects::default(), HEALTHY), 0);
    let order = Order {
        change: Change::Rollback { to: None },
        actor: "jo".into(),
        reason: None,
        expected_revision: None,
        force: false,
    };
    let refused =
        book.order(&name(), order, None, &Objects::default(), HEALTHY, Timestamp::UNIX_EPOCH).unwrap_err();
    assert_eq!(refused, OrderError::ObjectGone(name()));
    assert_eq!(declare(&mut book, &objects(Stage::Split, 500), HEALTHY), 0);
    assert_eq!(stage(&book), Stage::Cutover);
}

#[test]
fn what_is_asked_for_and_so_already_leaves_no_record() {
    let mut book = Book::default();
    let objects = objects(Stage::Canary, 0);
    declare(&mut book, &objects, HEALTHY);
    let order = Order {
        change: Change::Set { stage: Stage::Canary, weight: None },
        actor: "jo".into(),
        reason: None,
        expected_revision: Some(1),
        force: false,
    };
    let draft = book.order(&name(), order, None, &objects, HEALTHY, Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!((draft.record, draft.state.revision), (None, 1));
}

/// The object as the API server has it, and where it says that the migration stands.
fn kept(uid: &str, revision: u64) -> (Objects, OrdMap<ObjectName, (Arc<str>, State)>) {
    let mut migration = Migration::default();
    migration.metadata.uid = Some(uid.to_owned());
    let objects = Objects { migrations: OrdMap::unit(name(), Arc::new(migration)), ..Objects::default() };
    let position = Position { stage: Stage::Canary, weight: Weight::ZERO };
    let state = State { revision, ..first(position, String::new(), Timestamp::UNIX_EPOCH) };
    (objects, OrdMap::unit(name(), (uid.into(), state)))
}

#[test]
fn what_another_replica_did_is_followed_and_what_was_just_written_counts_until_it_is_seen() {
    let mut book = Book::default();
    let (objects, first) = kept("a", 4);
    book.follow(&objects, &first);
    assert_eq!(book.state(&name()).unwrap().revision, 4);
    command(&mut book, &objects, Change::Rollback { to: None });
    // The watch is behind.
    book.follow(&objects, &first);
    assert_eq!((book.state(&name()).unwrap().revision, stage(&book)), (5, Stage::Observe));
    book.follow(&objects, &kept("a", 6).1);
    assert_eq!((book.state(&name()).unwrap().revision, stage(&book)), (6, Stage::Canary));
}

#[test]
fn a_state_goes_with_its_object() {
    let mut book = Book::default();
    let (objects, states) = kept("a", 4);
    book.follow(&objects, &states);
    // Deleted and made anew: the old one's state is not the new one's.
    book.follow(&kept("b", 1).0, &states);
    assert_eq!(book.state(&name()), None);
    book.follow(&objects, &states);
    book.follow(&Objects::default(), &OrdMap::new());
    assert_eq!(book.state(&name()), None);
}
