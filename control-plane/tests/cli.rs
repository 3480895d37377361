//! The command line, by the binary that ships: a control plane as a process, and commands against it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use rig::{Served, pontoon, text};
use serde_json::Value;

#[path = "rig/served.rs"]
mod rig;

const OBJECTS: &str = r"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: edge }
spec:
  gatewayClassName: pontoon
  listeners: [{ name: http, port: 18080, protocol: HTTP }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: shop }
spec:
  parentRefs: [{ name: edge }]
  rules: [{ backendRefs: [{ name: inventory, port: 80 }] }]
---
apiVersion: pontoon.dev/v1alpha1
kind: Pool
metadata: { name: new }
spec: { endpoints: [{ address: 127.0.0.1, port: 9000 }] }
---
apiVersion: pontoon.dev/v1alpha1
kind: Migration
metadata: { name: inventory }
spec:
  service: inventory
  legacy: { eureka: { application: inventory } }
  target: { pool: new }
  key: { header: x-user-id }
";

#[tokio::test]
async fn a_migration_is_moved_looked_at_and_taken_back() {
    let served = Served::start(OBJECTS).await;
    let set =
        served.run(&["migration", "set", "inventory", "--weight", "5%", "--reason", "first users"]).await;
    assert_eq!(set.status.code(), Some(0), "{set:?}");
    assert_eq!(
        text(&set.stdout),
        "default/inventory: observe -> split 5% (revision 2)\nin force: no proxy is connected\n"
    );
    let list = served.run(&["migration", "list"]).await;
    assert!(text(&list.stdout).contains("default/inventory  inventory  split 5%  5%"), "{list:?}");
    let show = served.run(&["migration", "show", "default/inventory"]).await;
    assert!(text(&show.stdout).contains("revision    2, by jo"), "{show:?}");

    let explain = ["migration", "explain", "inventory", "-H", "x-user-id: 42", "http://shop:18080/stock/1"];
    let explain = served.run(&explain).await;
    assert!(text(&explain.stdout).contains("of default/inventory, which is at split 5%"), "{explain:?}");
    assert!(text(&explain.stdout).contains("pool/default/new 0 to 499"), "{explain:?}");

    let stale = served.run(&["migration", "set", "inventory", "--stage", "cutover", "--revision", "1"]).await;
    assert_eq!(stale.status.code(), Some(1));
    assert!(text(&stale.stderr).contains("at revision 2"), "{stale:?}");

    let back = served.run(&["migration", "rollback", "inventory", "--reason", "just in case"]).await;
    assert_eq!(back.status.code(), Some(0), "{back:?}");
    assert!(text(&back.stderr).contains("no endpoint of the legacy pool"), "{back:?}");
    let log = served.json(&["audit"]).await;
    let steps: Vec<&str> = log.as_array().unwrap().iter().map(|e| e["action"].as_str().unwrap()).collect();
    assert_eq!(steps, ["created", "set", "rollback"]);
    assert_eq!(log[2]["reason"], "just in case");
    let lines = served.run(&["audit", "--lines"]).await;
    let last = text(&lines.stdout).lines().next_back().unwrap();
    assert!(last.ends_with(&format!(r#","hash":{}}}"#, log[2]["hash"])), "{last}");
}

#[tokio::test]
async fn a_restart_finds_everything_as_it_was() {
    let served = Served::start(OBJECTS).await;
    served.run(&["migration", "set", "inventory", "--weight", "0.25%"]).await;
    let before = served.json(&["migration", "show", "inventory"]).await;
    let (status, dir) = served.stop().await;
    assert!(status.success(), "{status}");
    let served = Served::in_dir(dir).await;
    let after = served.json(&["migration", "show", "inventory"]).await;
    assert_eq!(before, after);
    assert_eq!(served.json(&["audit"]).await.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn two_control_planes_do_not_share_a_data_folder() {
    let served = Served::start(OBJECTS).await;
    let second = pontoon(served.dir.path())
        .args(["serve", "--api-listen", "127.0.0.1:0", "--xds-listen", "127.0.0.1:0"])
        .args(["--eureka-listen", "127.0.0.1:0"])
        .output()
        .await
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another pontoon"), "{second:?}");
}

#[tokio::test]
async fn errors_say_where_and_which_flag() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &'static [&'static str]| pontoon(dir.path()).args(args).output();

    let no_token = run(&["migration", "list"]).await.unwrap();
    assert_eq!(no_token.status.code(), Some(1));
    assert!(text(&no_token.stderr).contains("--token-file"), "{no_token:?}");

    std::fs::write(dir.path().join("t"), "0123456789abcdef").unwrap();
    let away = ["migration", "list", "--api", "http://127.0.0.1:1", "--token-file", "t"];
    let away = pontoon(dir.path()).args(away).output().await.unwrap();
    assert_eq!(away.status.code(), Some(3));
    assert!(text(&away.stderr).contains("http://127.0.0.1:1"), "{away:?}");

    let usage = run(&["migration", "set", "inventory", "--weight", "5 per cent"]).await.unwrap();
    assert_eq!(usage.status.code(), Some(2));
    assert!(text(&usage.stderr).contains("0.25%"), "{usage:?}");
    assert_eq!(run(&["migration", "set", "inventory"]).await.unwrap().status.code(), Some(2));
}

#[tokio::test]
async fn a_wrong_token_is_told_apart_from_no_server() {
    let served = Served::start(OBJECTS).await;
    std::fs::write(served.dir.path().join("t"), "0123456789abcdef").unwrap();
    let other = served.run(&["migration", "list", "--token-file", "t"]).await;
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("another server"), "{other:?}");
    let unknown = served.run(&["migration", "show", "inventry"]).await;
    assert!(text(&unknown.stderr).contains("pontoon migration list"), "{unknown:?}");
}

#[tokio::test]
async fn a_folder_is_checked_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("shop.yaml"), OBJECTS).unwrap();
    let good = pontoon(dir.path()).args(["validate", "."]).output().await.unwrap();
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    std::fs::write(dir.path().join("shop.yaml"), OBJECTS.replace("x-user-id", "[]")).unwrap();
    let bad = pontoon(dir.path()).args(["validate", ".", "-o", "json"]).output().await.unwrap();
    assert_eq!(bad.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_eq!(report["problems"][0]["file"], "shop.yaml", "{report}");
}

#[tokio::test]
async fn the_openapi_document_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let output = pontoon(dir.path()).arg("openapi").output().await.unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(document["paths"]["/api/v1/migrations"].is_object());
}
