use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;

use super::*;

/// What an API server has, by path, and what it was asked to change: method, path with query, body.
#[derive(Default)]
struct Script {
    objects: BTreeMap<String, Value>,
    asked: Vec<(Method, String, Value)>,
    /// Somebody makes this once it was asked for, and was not there.
    comes_between: Option<(String, Value)>,
}

fn server(objects: &[(&str, Value)]) -> (Client, Arc<Mutex<Script>>) {
    let objects = objects.iter().map(|(path, object)| ((*path).to_owned(), object.clone())).collect();
    let script = Arc::new(Mutex::new(Script { objects, ..Script::default() }));
    let shared = script.clone();
    let answer = tower::service_fn(move |request: Request<Body>| {
        let script = shared.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let mut script = script.lock().unwrap();
            let path = parts.uri.path().to_owned();
            if parts.method != Method::GET {
                script.asked.push((parts.method.clone(), parts.uri.to_string(), body.clone()));
            }
            let made = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap_or_default());
            let object = match parts.method {
                Method::DELETE => script.objects.remove(&path).ok_or(404),
                Method::GET => script.objects.get(&path).cloned().ok_or(404),
                Method::POST if script.objects.contains_key(&made) => Err(409),
                _ => Ok(body),
            };
            if let Some((path, object)) = script.comes_between.take_if(|_| parts.method == Method::GET) {
                script.objects.insert(path, object);
            }
            let code: u16 = object.as_ref().map_or_else(|code| *code, |_| 200);
            let failure = |code| {
                let reason = if code == 404 { "NotFound" } else { "AlreadyExists" };
                json!({ "kind": "Status", "status": "Failure", "code": code, "reason": reason })
            };
            let bytes = object.unwrap_or_else(failure).to_string().into_bytes();
            Ok::<_, Infallible>(Response::builder().status(code).body(Body::from(bytes)).unwrap())
        }
    });
    (Client::new(answer, "default"), script)
}

fn object(kind: &str, uid: &str, owner: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": kind,
        "metadata": { "name": "edge", "namespace": "shop", "uid": uid, "ownerReferences": [
            { "apiVersion": "v1", "kind": "Gateway", "name": "edge", "uid": owner },
        ] },
    })
}

#[tokio::test]
async fn only_what_belongs_to_the_gateway_is_taken_away() {
    let path = |kind: &str| format!("/api/v1/namespaces/shop/{kind}/edge");
    let (own, others) = (path("services"), path("serviceaccounts"));
    let (client, script) = server(&[
        (&own, object("Service", "s-1", "gateway-1")),
        (&others, object("ServiceAccount", "a-1", "somebody")),
    ]);
    let name = ObjectName::new("shop", "edge");
    for kind in ["Service", "ServiceAccount", "Secret"] {
        take_away(&client, &name, "gateway-1", ("v1", kind)).await.unwrap();
    }
    let script = script.lock().unwrap();
    assert_eq!(script.objects.keys().collect::<Vec<_>>(), [&others]);
    let [(_, _, asked)] = script.asked.as_slice() else { panic!("{:?}", script.asked) };
    assert_eq!(asked["preconditions"]["uid"], "s-1");
}

#[tokio::test]
async fn the_pods_that_there_are_stay_when_nobody_says_any_more_how_many() {
    let path = "/apis/apps/v1/namespaces/shop/deployments/edge";
    let owned_by = |manager: &str| {
        let mut there = object("Deployment", "d-1", "gateway-1");
        there["spec"] = json!({ "replicas": 5 });
        there["metadata"]["managedFields"] = json!([{ "manager": manager, "operation": "Apply", "fieldsV1": { "f:spec": { "f:replicas": {} } } }]);
        there
    };
    let mut wanted = object("Deployment", "d-1", "gateway-1");
    wanted["apiVersion"] = json!("apps/v1");
    wanted["spec"] = json!({ "paused": false });
    let wanted = Wanted {
        gateway: ObjectName::new("shop", "edge"),
        uid: "gateway-1".to_owned(),
        objects: vec![wanted],
    };
    for (manager, handed_over) in [(MANAGER, true), ("kubectl", false)] {
        let (client, script) = server(&[(path, owned_by(manager))]);
        apply_one(&client, &wanted, &wanted.objects[0]).await.unwrap();
        let script = script.lock().unwrap();
        let first = script.asked.iter().find(|(_, uri, _)| uri.contains(FIRST_MANAGER));
        assert_eq!(
            first.map(|(_, _, body)| &body["spec"]),
            handed_over.then(|| json!({ "replicas": 5 })).as_ref()
        );
        assert_eq!(script.asked.last().unwrap().2, wanted.objects[0]);
    }
}

#[tokio::test]
async fn what_is_not_there_is_made_and_not_taken_over() {
    let path = "/api/v1/namespaces/shop/serviceaccounts/edge";
    let wanted = Wanted {
        gateway: ObjectName::new("shop", "edge"),
        uid: "gateway-1".to_owned(),
        objects: vec![object("ServiceAccount", "a-1", "gateway-1")],
    };
    let (client, script) = server(&[]);
    apply_one(&client, &wanted, &wanted.objects[0]).await.unwrap();
    let asked: Vec<Method> = script.lock().unwrap().asked.iter().map(|(method, ..)| method.clone()).collect();
    assert_eq!(asked, [Method::POST, Method::PATCH]);
    let (client, script) = server(&[]);
    script.lock().unwrap().comes_between =
        Some((path.to_owned(), object("ServiceAccount", "a-2", "somebody")));
    let refused = apply_one(&client, &wanted, &wanted.objects[0]).await.unwrap_err();
    assert!(matches!(refused, ApplyError::Refused { .. }), "{refused}");
    let taken = apply_one(&client, &wanted, &wanted.objects[0]).await.unwrap_err();
    assert!(matches!(taken, ApplyError::Taken { .. }), "{taken}");
    assert_eq!(script.lock().unwrap().asked.len(), 1, "nothing but the attempt to make it");
}

#[test]
fn who_makes_it_keeps_no_field_that_is_applied() {
    let mut there = object("Deployment", "d-1", "gateway-1");
    let owner = json!({ ".": {}, "k:{\"uid\":\"gateway-1\"}": {} });
    let made = json!({
        "f:metadata": { "f:labels": { ".": {}, "f:a": {} }, "f:ownerReferences": owner },
        "f:spec": { "f:replicas": {}, "f:paused": {} },
    });
    let applied = json!({ "f:spec": { "f:paused": {} } });
    there["metadata"]["managedFields"] = json!([
        { "manager": MANAGER, "operation": "Apply", "fieldsV1": applied },
        { "manager": FIRST_MANAGER, "operation": "Update", "fieldsV1": made },
    ]);
    let read = |there: &Value| let_go(&serde_json::from_value(there.clone()).unwrap());
    let less = read(&there).unwrap();
    let fields = |of: usize| less["metadata"]["managedFields"][of]["fieldsV1"].clone();
    assert_eq!(fields(0), applied);
    let rest = json!({ "f:metadata": { "f:ownerReferences": owner }, "f:spec": { "f:replicas": {} } });
    assert_eq!(fields(1), rest);
    there["metadata"]["managedFields"] = less["metadata"]["managedFields"].clone();
    assert_eq!(read(&there), None);
}
