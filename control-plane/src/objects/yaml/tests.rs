use super::decode::decode;
use super::*;
use crate::objects::{HttpRoute, Migration, Pool};

fn tree(text: &str) -> Node {
    documents(text).remove(0).expect("YAML")
}

fn errors<T: serde::de::DeserializeOwned + std::fmt::Debug>(text: &str) -> Vec<String> {
    decode::<T>(&tree(text), &["apiVersion", "kind", "status"])
        .expect_err("an error")
        .into_iter()
        .map(|e| {
            format!("{}:{} {} {:?} {}: {}", e.at.line, e.at.column, e.field, e.value, e.reason, e.message)
        })
        .collect()
}

#[test]
fn documents_are_read_one_by_one_and_empty_ones_left_out() {
    let all = documents("---\n# nothing\n---\na: 1\n---\nb: 1\nb: 2\n---\nc: 3\n");
    let lines = all.iter().map(|d| d.as_ref().map(|n| n.at.line).map_err(|e| e.at.line)).collect::<Vec<_>>();
    assert_eq!(lines, [Ok(4), Err(7), Ok(9)]);
}

#[test]
fn a_syntax_error_says_where_and_what() {
    let all = documents("a: 1\n---\nb: [1, 2\n");
    let error = all.last().expect("a document").as_ref().expect_err("broken");
    assert_eq!(error.at, Position { line: 3, column: 4 });
    assert_eq!(error.message, "unclosed bracket '['");
}

#[test]
fn only_true_and_false_are_booleans_and_leading_zeros_are_text() {
    let root = tree("a: yes\nb: on\nc: 007\nd: true\ne: 1_000\n");
    let texts = ["a", "b", "c", "e"].map(|key| root.get(key).and_then(Node::as_str));
    assert_eq!(texts, [Some("yes"), Some("on"), Some("007"), Some("1_000")]);
    assert_eq!(root.get("d").map(|n| &n.value), Some(&Value::Bool(true)));
}

#[test]
fn an_alias_bomb_is_an_error() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for n in 1..10 {
        let item = format!("*a{}", n - 1);
        text.push_str(&format!("a{n}: &a{n} [{}]\n", vec![item; 9].join(", ")));
    }
    assert!(documents(&text).iter().any(Result::is_err));
}

#[test]
fn deep_nesting_is_an_error() {
    let text = format!("a: {}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(documents(&text).iter().any(Result::is_err));
}

#[test]
fn a_field_is_located_also_where_it_is_not_written() {
    let root = tree("spec:\n  rules:\n  - name: a\n  - name: b\n    x: [1, 2]\n");
    assert_eq!(root.locate("spec.rules[1].x[1]").0, Position { line: 5, column: 12 });
    assert_eq!(root.locate("spec.rules[1].matches[0].path").0, Position { line: 4, column: 5 });
    assert_eq!(root.locate("").0, Position { line: 1, column: 1 });
}

#[test]
fn unknown_fields_are_all_named_with_what_was_probably_meant() {
    assert_eq!(
        errors::<Pool>(
            "metadata: {name: a, nmespace: b}\nspec:\n  endpoint: []\n  conectTimeout: 1s\n  foo: {}\n"
        ),
        [
            r#"1:21 metadata.nmespace Some("\"b\"") unknown_field: there is no such field; did you mean namespace?"#,
            r#"3:3 spec.endpoint None unknown_field: there is no such field; did you mean endpoints?"#,
            r#"4:3 spec.conectTimeout Some("\"1s\"") unknown_field: there is no such field; did you mean connectTimeout?"#,
            "5:3 spec.foo None unknown_field: there is no such field; known here: endpoints, dns, eureka, service, protocol, connectTimeout, loadBalancer",
        ]
    );
}

#[test]
fn unknown_fields_of_gateway_api_types_are_refused_too() {
    assert_eq!(
        errors::<HttpRoute>(
            "metadata: {name: a}\nspec:\n  rules:\n  - backendRefs:\n    - name: x\n      wieght: 1\n"
        ),
        [
            r#"6:7 spec.rules[0].backendRefs[0].wieght Some("1") unknown_field: there is no such field; did you mean weight?"#
        ]
    );
}

#[test]
fn a_value_of_the_wrong_kind_says_what_would_be_right() {
    let of = |spec: &str| errors::<Pool>(&format!("metadata: {{name: a}}\nspec:\n  {spec}\n")).remove(0);
    assert_eq!(
        of("dns: {name: x, port: 70000}"),
        r#"3:24 spec.dns.port Some("70000") invalid_value: expected a whole number from 0 to 65535"#
    );
    assert_eq!(
        of("dns: {name: 5, port: 1}"),
        r#"3:15 spec.dns.name Some("5") wrong_type: expected a string; put it in quotes"#
    );
    assert_eq!(of("dns: {name: x}"), "3:8 spec.dns None missing_field: port is missing");
    assert_eq!(
        of("dns: x"),
        r#"3:8 spec.dns Some("\"x\"") wrong_type: expected a map of fields (name, port)"#
    );
    assert_eq!(
        of("protocol: htp1"),
        r#"3:13 spec.protocol Some("\"htp1\"") invalid_value: expected one of http1, h2c; did you mean http1?"#
    );
    assert_eq!(
        of("connectTimeout: 5"),
        r#"3:19 spec.connectTimeout Some("5") wrong_type: expected a string; put it in quotes"#
    );
    assert_eq!(
        of("connectTimeout: 5 sec"),
        r#"3:19 spec.connectTimeout Some("\"5 sec\"") invalid_value: "5 sec" is not a duration: write digits and units h, m, s, ms, as in 1m30s or 250ms"#
    );
    assert_eq!(of("endpoints: {a: 1}"), "3:14 spec.endpoints None wrong_type: expected a list");
}

#[test]
fn a_negative_weight_is_refused_and_a_whole_object_is_read() {
    let spec = "metadata: {name: a}\nspec:\n  service: s\n  legacy: {pool: a}\n  target: {pool: b}\n  key: {header: x}\n";
    assert_eq!(
        errors::<Migration>(&format!("{spec}  weight: -1\n")),
        [r#"7:11 spec.weight Some("-1") invalid_value: expected a whole number from 0 to 65535"#]
    );
    let read: Migration = decode(&tree(&format!("{spec}  stage: canary\n")), &[]).expect("a migration");
    assert_eq!(read.spec.stage, Some(crate::objects::migration::Stage::Canary));
}
