use super::*;
use crate::objects::controller::CONTROLLER;

fn to_apply(wanted: &Wanted, generation: i64, status: &Json, now: Timestamp) -> Option<Json> {
    super::to_apply(&Controller::default(), wanted, generation, status, now)
}

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

#[test]
fn another_installation_of_ours_is_another_controller() {
    let other: Controller = "example.com/gateways".parse().unwrap();
    let parents = vec![(json!({ "name": "edge" }), vec![said("Accepted", true, "Accepted")])];
    let wanted = Wanted { parents: Some(parents), ..Wanted::default() };
    let first = to_apply(&wanted, 2, &Json::Null, at(10)).unwrap();
    // What it has seen of a newer version is none of the other's business.
    let both = super::to_apply(&other, &wanted, 1, &first, at(20)).unwrap();
    let names: Vec<&str> =
        both["parents"].as_array().unwrap().iter().map(|of| of["controllerName"].as_str().unwrap()).collect();
    assert_eq!(names, [CONTROLLER, "example.com/gateways"]);
    assert_eq!(both["parents"][0], first["parents"][0]);
    assert_eq!(to_apply(&wanted, 2, &both, at(30)), None);
    assert_eq!(super::to_apply(&other, &wanted, 1, &both, at(30)), None);
}

#[test]
fn what_holds_no_more_goes_from_the_status() {
    let mut more = gateway(true);
    more.conditions.push(said("InsecureFrontendValidationMode", true, "ConfigurationChanged"));
    more.listeners[0].1.push(said("OverlappingTLSConfig", true, "OverlappingHostnames"));
    let first = to_apply(&more, 1, &Json::Null, at(10)).unwrap();
    assert_eq!(to_apply(&more, 1, &first, at(20)), None);
    let mut less = gateway(true);
    less.listeners[0].1.push(said("OverlappingTLSConfig", true, "OverlappingHostnames"));
    let second = to_apply(&less, 1, &first, at(20)).unwrap();
    assert_eq!(second["conditions"].as_array().unwrap().len(), 1);
    let third = to_apply(&gateway(true), 1, &second, at(30)).unwrap();
    assert_eq!(third["listeners"][0]["conditions"].as_array().unwrap().len(), 1);
    assert_eq!(third["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:10Z");
    // And the last of its listeners.
    let none = Wanted { listeners: Vec::new(), ..gateway(true) };
    assert_eq!(to_apply(&none, 1, &third, at(40)).unwrap()["listeners"], json!([]));
}

#[test]
fn what_was_said_of_a_newer_version_stays() {
    let newer = to_apply(&gateway(true), 3, &Json::Null, at(10)).unwrap();
    assert_eq!(to_apply(&gateway(false), 2, &newer, at(20)), None);
    assert!(to_apply(&gateway(false), 3, &newer, at(20)).is_some());
    let parents = |status| {
        let parents = vec![(json!({ "name": "edge" }), vec![said("Accepted", status, "Accepted")])];
        Wanted { parents: Some(parents), ..Wanted::default() }
    };
    let newer = to_apply(&parents(true), 3, &Json::Null, at(10)).unwrap();
    assert_eq!(to_apply(&parents(false), 2, &newer, at(20)), None);
    // Another's is nothing to us.
    let mut theirs = newer;
    theirs["parents"][0]["controllerName"] = json!("example.com/c");
    assert!(to_apply(&parents(false), 2, &theirs, at(20)).is_some());
}

#[test]
fn a_long_message_is_cut_whoever_says_it_and_written_once() {
    let long = Said { message: "ä".repeat(40_000), ..said("Programmed", false, "Invalid") };
    let wanted = Wanted { conditions: vec![long], ..Wanted::default() };
    let status = to_apply(&wanted, 1, &Json::Null, at(10)).unwrap();
    let message = status["conditions"][0]["message"].as_str().unwrap();
    assert!(message.len() <= MESSAGE_BYTES + 3 && message.ends_with("ä..."), "{} bytes", message.len());
    assert_eq!(to_apply(&wanted, 1, &status, at(20)), None);
}

#[test]
fn what_was_refused_at_first_sight_is_told_so() {
    let mut compiled = crate::compile::Compiled::default();
    let mut standings = standing::Standings::default();
    standings.gateways.insert(ObjectName::new("shop", "edge"), standing::GatewayStanding::default());
    compiled.standings = standings.into();
    let world = World { compiled: compiled.into(), ..World::default() };
    let problem = Problem {
        file: "cluster".into(),
        at: None,
        object: None,
        field: "spec.rules[0]".to_owned(),
        value: None,
        reason: "unknown_value",
        message: "expected another".to_owned(),
        severity: Severity::Error,
    };
    let about = |kind: Kind, observation: Observation, with: &dyn Fn(&About<'_>) -> Option<Wanted>| {
        let object = ObjectRef { kind, name: ObjectName::new("shop", "new") };
        let problems = [&problem];
        with(&About {
            world: &world,
            object: &object,
            conditions: &[],
            problems: &problems,
            observation: &observation,
        })
    };
    let refused = |kind: &'static str, reason: &str| Said {
        message: "spec.rules[0]: expected another".to_owned(),
        ..said(kind, false, reason)
    };
    let (accepted, programmed) = (refused("Accepted", "unknown_value"), refused("Programmed", "Invalid"));

    let ours = json!({ "group": GATEWAY_GROUP, "kind": "Gateway", "name": "edge" });
    let parents = json!([ours, { "name": "other" }, { "name": "edge", "namespace": "bank" }]);
    let observation = Observation { parent_refs: parents, ..Observation::default() };
    let route = about(Kind::HttpRoute, observation.clone(), &|about| Some(about.route())).unwrap();
    assert_eq!(route.parents, Some(vec![(ours, vec![accepted.clone()])]));
    let set = about(Kind::ListenerSet, observation, &|about| about.refused_set()).unwrap();
    assert_eq!(set.conditions, [accepted.clone(), programmed.clone()]);

    let of = |class: &str| Observation { gateway_class: Some(class.to_owned()), ..Observation::default() };
    let gateway = about(Kind::Gateway, of("pontoon"), &|about| about.refused_gateway()).unwrap();
    assert_eq!(gateway.conditions, [accepted.clone(), programmed]);
    assert_eq!(about(Kind::Gateway, of("other"), &|about| about.refused_gateway()), None);

    let of = |name: &str| Observation { controller: Some(name.to_owned()), ..Observation::default() };
    let class = about(Kind::GatewayClass, of(CONTROLLER), &|about| about.class(false)).unwrap();
    assert_eq!(class.conditions, [accepted]);
    assert_eq!(about(Kind::GatewayClass, of("example.com/c"), &|about| about.class(false)), None);
}

#[test]
fn a_policy_of_many_gateways_says_as_much_as_it_may() {
    let theirs =
        json!({ "ancestorRef": { "name": "x" }, "controllerName": "example.com/c", "conditions": [] });
    let ancestors =
        (0..40).map(|n| (json!({ "name": format!("edge-{n}") }), vec![said("Accepted", true, "Accepted")]));
    let wanted = Wanted { ancestors: Some(ancestors.collect()), ..Wanted::default() };
    let applied = to_apply(&wanted, 1, &json!({ "ancestors": [theirs] }), at(10)).unwrap();
    assert_eq!(applied["ancestors"].as_array().unwrap().len(), MOST_ANCESTORS);
    assert_eq!(applied["ancestors"][0], theirs);
    assert_eq!(to_apply(&wanted, 1, &applied, at(20)), None);
}
