//! The API server's question about one of our objects, and the answer in the words of `pontoon validate`. It is about what
//! the object says by itself: what it refers to may come after it, and stands in its status. Only a `spec` that is new is
//! refused, so that what was let in before can still be labelled, and ended.

use kube::core::DynamicObject;
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::inject::review::reviewed;
use crate::objects::Kind;
use crate::objects::kubernetes::store::own_problems;
use crate::objects::problem::{Problem, UNKNOWN_FIELD};

const GROUP: &str = "pontoon.dev";
const KINDS: [Kind; 2] = [Kind::Migration, Kind::Pool];

/// Answers an `AdmissionReview` of `admission.k8s.io/v1`. None: it is not one.
pub(super) fn answer(review: &Value) -> Option<Value> {
    let request = review.get("request")?;
    let uid = request["uid"].as_str()?;
    let is_old = request["operation"] == "UPDATE"
        && request.pointer("/object/spec") == request.pointer("/oldObject/spec");
    // A field that is not known here is of a newer version, whose definition lets it in.
    let (warned, refused): (Vec<Problem>, Vec<Problem>) =
        problems(request).into_iter().partition(|problem| is_old || problem.reason == UNKNOWN_FIELD);
    let words = |problems: &[Problem]| problems.iter().map(Problem::words).collect::<Vec<_>>();
    let mut response = json!({ "uid": uid, "allowed": refused.is_empty() });
    if !warned.is_empty() {
        response["warnings"] = json!(words(&warned));
    }
    if !refused.is_empty() {
        let message = words(&refused).join("\n");
        response["status"] = json!({ "message": message, "reason": "Invalid", "code": 422 });
    }
    Some(reviewed(response))
}

fn problems(request: &Value) -> Vec<Problem> {
    let of = &request["kind"];
    let kind = KINDS.into_iter().find(|kind| of["group"] == GROUP && of["kind"] == kind.as_str());
    // The rules of the webhook name these alone, and a deletion has no object; what else comes is let pass.
    let object = DynamicObject::deserialize(&request["object"]);
    let (Some(kind), Ok(object)) = (kind, object) else { return Vec::new() };
    // What does not say whose it is, such as an object of a version that is not known here, cannot be judged.
    own_problems(kind, object).into_iter().filter(|problem| problem.object.is_some()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(pool: &str) -> Value {
        json!({
            "apiVersion": "pontoon.dev/v1alpha1", "kind": "Migration",
            "metadata": {
                "name": "orders", "namespace": "shop", "uid": "u", "generation": 1,
                "managedFields": [{ "manager": "kubectl", "operation": "Apply", "fieldsV1": { "f:spec": {} } }],
            },
            "spec": {
                "service": "orders", "legacy": { "eureka": { "application": "orders" } },
                "target": { "pool": pool }, "canary": [{ "header": { "name": "x-user", "regex": "a(" } }],
            },
            "status": { "state": 3 },
        })
    }

    fn good() -> Value {
        let mut migration = migration("new");
        migration["spec"]["canary"] = json!([]);
        migration
    }

    fn asked(operation: &str, object: &Value, old: &Value) -> Value {
        let kind = json!({ "group": "pontoon.dev", "version": "v1alpha1", "kind": object["kind"] });
        let request = json!({
            "uid": "1-2", "kind": kind, "operation": operation, "object": object, "oldObject": old,
        });
        let mut answer = answer(&json!({ "request": request })).unwrap();
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["uid"], "1-2");
        answer["response"].take()
    }

    /// What `pontoon validate` prints about it, without file and place.
    fn printed(object: &Value) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("orders.yaml");
        std::fs::write(&file, serde_saphyr::to_string(object).unwrap()).unwrap();
        let report = crate::objects::validate(&file);
        let lines = report.problems.iter().map(ToString::to_string);
        lines.map(|line| line[line.find("Migration").unwrap()..].to_owned()).collect()
    }

    #[test]
    fn what_is_wrong_is_refused_in_the_words_of_validate() {
        let bad = migration("New Orders");
        let response = asked("CREATE", &bad, &Value::Null);
        assert_eq!(response["allowed"], false);
        let message = response["status"]["message"].as_str().unwrap();
        assert_eq!(
            message.lines().collect::<Vec<_>>(),
            [
                "Migration shop/orders: spec.target.pool: \"New Orders\": expected lower-case letters, digits, - and ., at most \
                 253 characters (invalid_value)",
                "Migration shop/orders: spec.canary[0].header.regex: \"a(\": expected a regular expression in RE2 syntax: \
                 unclosed group (invalid_value)",
            ]
        );
        let mut said: Vec<String> = message.lines().map(str::to_owned).collect();
        let mut printed = printed(&bad);
        said.sort();
        printed.sort();
        assert_eq!(said, printed);
    }

    #[test]
    fn what_is_good_passes_without_a_word() {
        for operation in ["CREATE", "UPDATE"] {
            let response = asked(operation, &good(), &migration("New Orders"));
            assert_eq!(response, json!({ "uid": "1-2", "allowed": true }));
        }
        let pool = json!({
            "apiVersion": "pontoon.dev/v1alpha1", "kind": "Pool",
            "metadata": { "name": "orders", "namespace": "shop" },
            "spec": { "endpoints": [{ "address": "192.0.2.1", "port": 80 }], "connectTimeout": "5s" },
        });
        assert_eq!(asked("CREATE", &pool, &Value::Null)["allowed"], true);
        let mut bad = pool.clone();
        bad["spec"]["endpoints"][0]["address"] = json!("orders.example");
        let response = asked("CREATE", &bad, &Value::Null);
        assert!(response["status"]["message"].as_str().unwrap().contains("a name goes into spec.dns"));
    }

    #[test]
    fn what_was_let_in_before_is_refused_only_when_its_spec_changes() {
        let bad = migration("New Orders");
        let mut labelled = bad.clone();
        labelled["metadata"]["labels"] = json!({ "team": "orders" });
        let response = asked("UPDATE", &labelled, &bad);
        assert_eq!(response["allowed"], true);
        assert_eq!(response["warnings"].as_array().unwrap().len(), 2);
        assert_eq!(asked("UPDATE", &bad, &good())["allowed"], false);
    }

    #[test]
    fn a_field_of_a_newer_version_is_a_warning() {
        let mut newer = good();
        newer["spec"]["gates"] = json!([{ "errors": 1 }]);
        let response = asked("CREATE", &newer, &Value::Null);
        assert_eq!(response["allowed"], true);
        let warning = response["warnings"][0].as_str().unwrap();
        assert!(
            warning.starts_with("Migration shop/orders: spec.gates: there is no such field"),
            "{warning}"
        );
    }

    #[test]
    fn what_cannot_be_judged_is_let_pass() {
        assert!(answer(&json!({})).is_none());
        assert!(answer(&json!({ "request": { "uid": 7 } })).is_none());
        let mut later = migration("New Orders");
        later["apiVersion"] = json!("pontoon.dev/v1");
        let mut nameless = migration("New Orders");
        nameless["metadata"] = json!({ "generateName": "orders-" });
        let mut other = migration("New Orders");
        other["kind"] = json!("Deployment");
        let odd = json!({ "kind": "Migration", "metadata": "x", "spec": 3 });
        for object in [later, nameless, other, odd, json!({ "kind": "Pool" })] {
            assert_eq!(asked("CREATE", &object, &Value::Null), json!({ "uid": "1-2", "allowed": true }));
        }
        let of = json!({ "group": "pontoon.dev", "version": "v1alpha1", "kind": "Migration" });
        for object in [json!(null), json!(3), json!([]), json!("pool")] {
            let request = json!({ "uid": "1", "kind": of, "operation": "DELETE", "object": object });
            let answer = answer(&json!({ "request": request })).unwrap();
            assert_eq!(answer["response"], json!({ "uid": "1", "allowed": true }));
        }
    }
}
