use super::*;

fn said(kind: &'static str, status: bool, reason: &str) -> Said {
    Said { kind, status, reason: reason.to_owned(), message: String::new() }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn gateway(status: bool) -> Wanted {
    let conditions = vec![said("Accepted", status, "Accepted")];
    let listeners = vec![(
        json!({ "name": "http", "attachedRoutes": 1 }),
        vec![said("Programmed", status, "Programmed")],
    )];
    Wanted { conditions, listeners, ..Wanted::default() }
}

#[test]
fn what_is_said_already_is_not_said_again() {
    let first = to_apply(&gateway(true), 1, &Json::Null, at(10)).unwrap();
    assert_eq!(first["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:10Z");
    assert_eq!(first["listeners"][0]["conditions"][0]["observedGeneration"], 1);
    assert_eq!(to_apply(&gateway(true), 1, &first, at(99)), None);
}

#[test]
fn the_time_is_that_of_the_last_change_of_a_condition() {
    let first = to_apply(&gateway(true), 1, &Json::Null, at(10)).unwrap();
    let second = to_apply(&gateway(true), 2, &first, at(20)).unwrap();
    assert_eq!(
        second["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:10Z",
        "only the generation changed"
    );
    let third = to_apply(&gateway(false), 2, &second, at(30)).unwrap();
    assert_eq!(third["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:30Z");
}

#[test]
fn conditions_of_others_are_no_difference() {
    let mut status = to_apply(&gateway(true), 1, &Json::Null, at(10)).unwrap();
    status["conditions"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "example.com/Paid", "status": "True" }));
    assert_eq!(to_apply(&gateway(true), 1, &status, at(20)), None);
}

#[test]
fn a_listener_that_has_gone_is_a_difference() {
    let mut status = to_apply(&gateway(true), 1, &Json::Null, at(10)).unwrap();
    let gone = json!({ "name": "old", "attachedRoutes": 0, "conditions": [] });
    status["listeners"].as_array_mut().unwrap().push(gone);
    let applied = to_apply(&gateway(true), 1, &status, at(20)).unwrap();
    assert_eq!(applied["listeners"].as_array().unwrap().len(), 1);
}

#[test]
fn another_controllers_parents_go_back_as_they_were() {
    let theirs =
        json!({ "parentRef": { "name": "other" }, "controllerName": "example.com/c", "conditions": [] });
    let parents = vec![(json!({ "name": "edge" }), vec![said("Accepted", true, "Accepted")])];
    let wanted = Wanted { parents: Some(parents), ..Wanted::default() };
    let first = to_apply(&wanted, 1, &json!({ "parents": [theirs] }), at(10)).unwrap();
    assert_eq!(first["parents"][0], theirs);
    assert_eq!(first["parents"][1]["controllerName"], CONTROLLER);
    assert_eq!(to_apply(&wanted, 1, &first, at(20)), None);
    // A route that leaves us takes our entry with it, and only that.
    let none = Wanted { parents: Some(Vec::new()), ..Wanted::default() };
    assert_eq!(to_apply(&none, 2, &first, at(30)).unwrap(), json!({ "parents": [theirs] }));
    assert_eq!(to_apply(&none, 2, &json!({ "parents": [theirs] }), at(30)), None);
    assert_eq!(to_apply(&none, 2, &Json::Null, at(30)), None);
}
