use super::*;

fn record(revision: u64) -> Record {
    Record {
        at: Timestamp::from_second(1_700_000_000 + revision as i64).unwrap(),
        actor: "jo".into(),
        token: Some("admin".into()),
        action: Action::Set,
        migration: "default/inventory".into(),
        revision,
        from: Some(Position::START),
        to: Position::START,
        reason: Some(r#"a "quoted" reason,"hash":"x"#.into()),
        forced: false,
        config: None,
    }
}

fn log(entries: u64) -> Vec<String> {
    let mut head = Head::default();
    (1..=entries)
        .map(|revision| {
            let (line, entry) = append(&head, record(revision)).unwrap();
            head = Head { seq: entry.seq, hash: entry.hash };
            line
        })
        .collect()
}

fn check(lines: &[String]) -> Result<Head, Broken> {
    lines.iter().try_fold(Head::default(), |head, line| verify(&head, line))
}

#[test]
fn a_log_verifies() {
    assert_eq!(check(&log(5)).unwrap().seq, 5);
}

#[test]
fn a_line_changed_shows() {
    let mut lines = log(5);
    lines[2] = lines[2].replace("\"jo\"", "\"al\"");
    let broken = check(&lines).unwrap_err();
    assert_eq!((broken.seq, broken.problem), (3, "its text is not what was hashed"));
}

#[test]
fn a_line_rehashed_shows_in_the_next() {
    let mut lines = log(5);
    let head = lines[..2].iter().try_fold(Head::default(), |head, line| verify(&head, line)).unwrap();
    lines[2] = append(&head, Record { actor: "al".into(), ..record(3) }).unwrap().0;
    assert_eq!(check(&lines).unwrap_err().seq, 4);
}

#[test]
fn a_line_removed_or_swapped_shows() {
    let mut lines = log(5);
    lines.remove(1);
    assert_eq!(check(&lines).unwrap_err().problem, "an entry before it is missing");
    let mut lines = log(5);
    lines.swap(1, 2);
    assert!(check(&lines).is_err());
}

#[test]
fn what_is_not_an_entry_is_said_to_be_none() {
    for line in ["", "{}", r#"{"seq":1,"hash":""}"#] {
        assert!(verify(&Head::default(), line).is_err());
    }
}
