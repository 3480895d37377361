use super::*;
use crate::migration::audit::Action;
use crate::migration::stage::{Position, first};
use jiff::Timestamp;

const NAME: &str = "default/inventory";

fn state(revision: u64) -> State {
    State { revision, ..first(Position::START, "file:a.yaml".into(), Timestamp::UNIX_EPOCH) }
}

fn record(revision: u64) -> Record {
    Record {
        at: Timestamp::UNIX_EPOCH,
        actor: "jo".into(),
        token: None,
        action: Action::Set,
        migration: NAME.into(),
        revision,
        from: None,
        to: Position::START,
        reason: None,
        forced: false,
        config: Some("abc".into()),
    }
}

#[test]
fn states_and_log_are_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state.redb");
    {
        let ledger = Ledger::new(Arc::new(Database::create(&file).unwrap()));
        assert!(ledger.load().unwrap().states.is_empty());
        for revision in 1..=3 {
            let entry = ledger.commit(NAME, &state(revision), record(revision)).unwrap();
            assert_eq!(entry.seq, revision);
        }
    }
    let ledger = Ledger::new(Arc::new(Database::create(&file).unwrap()));
    let loaded = ledger.load().unwrap();
    assert_eq!(loaded.states[NAME], state(3));
    assert_eq!((loaded.entries, loaded.broken), (3, None));
    assert_eq!(ledger.commit(NAME, &state(4), record(4)).unwrap().seq, 4);
    assert_eq!(ledger.lines(2..=u64::MAX, 2).unwrap().len(), 2);
    assert_eq!(ledger.last().unwrap(), 4);
}

#[test]
fn a_log_that_was_tampered_with_is_reported_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let database = Arc::new(Database::create(dir.path().join("state.redb")).unwrap());
    let ledger = Ledger::new(database.clone());
    ledger.load().unwrap();
    for revision in 1..=3 {
        ledger.commit(NAME, &state(revision), record(revision)).unwrap();
    }
    let write = database.begin_write().unwrap();
    {
        let mut log = write.open_table(AUDIT).unwrap();
        let line = log.get(2).unwrap().unwrap().value().replace("\"jo\"", "\"al\"");
        log.insert(2, line.as_str()).unwrap();
    }
    write.commit().unwrap();
    let loaded = ledger.load().unwrap();
    assert_eq!(loaded.broken.map(|b| b.seq), Some(2));
    assert_eq!(loaded.states.len(), 1);
    assert!(ledger.commit(NAME, &state(4), record(4)).is_ok());
}
