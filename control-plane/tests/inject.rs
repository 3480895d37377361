//! Golden tests of injection: a folder a case under `inject/`, with what goes in (`in.yaml`) and what comes out
//! (`out.yaml`, and `notes.txt` where something is left as it is). `UPDATE=1 cargo test -p pontoon --test inject`
//! writes what comes out anew; read the difference. Each pod is asked about as the API server does, too: the webhook
//! must give the same.
#![allow(clippy::expect_used, clippy::panic, reason = "a broken helper is a failed test")]

use std::path::Path;

use base64::Engine as _;
use pontoon::infrastructure::provision::PullPolicy;
use pontoon::inject::{Interception, Settings, review, workload};
use serde_json::{Value, json};

fn settings() -> Settings {
    Settings {
        image: String::from("pontoon.dev/pontoon-proxy:VERSION"),
        pull_policy: None,
        xds_server: String::from("http://pontoon.pontoon-system.svc:18000"),
        interception: Interception::Redirect,
    }
}

fn compare(path: &Path, text: &str) {
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, text).expect("written");
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(kept == text, "{}: expected\n{kept}\nnot\n{text}", path.display());
}

#[test]
fn files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inject");
    let mut cases = 0;
    for case in std::fs::read_dir(folder).expect("the folder") {
        let case = case.expect("a case").path();
        let text = std::fs::read_to_string(case.join("in.yaml")).expect("in.yaml");
        let (mut out, mut notes) = (Vec::new(), String::new());
        for mut object in workload::read(&text).expect("YAML") {
            let before = object.clone();
            for note in workload::inject_object(&mut object, &settings()).expect("injected") {
                notes += &format!("{}: {}\n", note.object, note.said);
            }
            if before["kind"] == "Pod" {
                assert_eq!(by_webhook(&before), object, "{}", case.display());
            }
            let mut again = object.clone();
            workload::inject_object(&mut again, &settings()).expect("injected again");
            assert_eq!(again, object, "{}: twice is not once", case.display());
            out.push(serde_saphyr::to_string(&object).expect("YAML"));
        }
        let version = env!("CARGO_PKG_VERSION");
        compare(
            &case.join("out.yaml"),
            &out.join("---\n").replace(&format!("injected: \"{version}\""), "injected: VERSION"),
        );
        if !notes.is_empty() || case.join("notes.txt").exists() {
            compare(&case.join("notes.txt"), &notes);
        }
        cases += 1;
    }
    assert!(cases > 4, "{cases} cases");
}

/// The pod as it is after the webhook's patch.
fn by_webhook(pod: &Value) -> Value {
    let question = json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "1-2", "kind": { "group": "", "version": "v1", "kind": "Pod" }, "object": pod,
    } });
    let answer = review::answer(&question, &settings()).expect("an answer");
    assert_eq!(answer["response"]["uid"], "1-2");
    assert_eq!(answer["response"]["allowed"], true);
    let patch = answer["response"]["patch"].as_str().expect("a patch");
    let patch = base64::engine::general_purpose::STANDARD.decode(patch).expect("base64");
    let patch: Vec<Value> = serde_json::from_slice(&patch).expect("JSON");
    let mut pod = pod.clone();
    for step in patch {
        assert_eq!(step["op"], "add");
        let path = step["path"].as_str().expect("a path").to_owned();
        let (parent, name) = path.rsplit_once('/').expect("a path");
        let parent = pod.pointer_mut(parent).and_then(Value::as_object_mut).expect("what it is added to");
        parent.insert(name.to_owned(), step["value"].clone());
    }
    pod
}

#[test]
fn both_containers_are_fetched_as_is_said() {
    let mut pod = json!({ "kind": "Pod", "spec": { "containers": [{ "name": "orders" }] } });
    let settings = Settings { pull_policy: Some(PullPolicy::Always), ..settings() };
    workload::inject_object(&mut pod, &settings).expect("injected");
    for container in [&pod["spec"]["initContainers"][0], &pod["spec"]["initContainers"][1]] {
        assert_eq!(container["imagePullPolicy"], "Always", "{container}");
    }
    assert!(pod["spec"]["containers"][0]["imagePullPolicy"].is_null());
}

/// What is said of a pod that is injected, the same by file and by the webhook.
fn warnings(pod: Value) -> Vec<String> {
    let question = json!({ "request": { "uid": "1", "kind": { "kind": "Pod" }, "object": pod } });
    let response = review::answer(&question, &settings()).expect("an answer")["response"].clone();
    assert_eq!(response["patchType"], "JSONPatch", "{response}");
    let mut file = pod;
    file["kind"] = json!("Pod");
    let notes = workload::inject_object(&mut file, &settings()).expect("injected");
    let said: Vec<String> = notes.into_iter().map(|note| note.said).collect();
    assert_eq!(response["warnings"].as_array().map_or(0, Vec::len), said.len());
    for (said, by_webhook) in said.iter().zip(response["warnings"].as_array().into_iter().flatten()) {
        assert_eq!(by_webhook, said);
        assert!(said.len() <= 256, "the API server cuts {said}");
    }
    said
}

#[test]
fn variables_that_replace_others_or_do_not_are_warned_of() {
    let pod = |annotations: Value| {
        let metadata = json!({ "name": "a", "annotations": annotations });
        json!({ "metadata": metadata, "spec": {
            "initContainers": [{ "name": "schema", "env": [{ "name": "NO_PROXY", "value": "db" }] }],
            "containers": [
                { "name": "orders", "envFrom": [{ "configMapRef": { "name": "java" } }],
                    "env": [{ "name": "NO_PROXY", "value": "db" }] },
                { "name": "cache", "env": [{ "name": "JAVA_TOOL_OPTIONS",
                    "valueFrom": { "configMapKeyRef": { "name": "java", "key": "options" } } }] },
            ],
        } })
    };
    let said = warnings(pod(json!({ "pontoon.dev/interception": "none" })));
    assert_eq!(
        said,
        [
            "container orders: what is injected replaces what envFrom may say of HTTP_PROXY, http_proxy, no_proxy, \
             JAVA_TOOL_OPTIONS (pontoon.dev/environment: disabled leaves it out)",
            "container cache: JAVA_TOOL_OPTIONS is left as its valueFrom says, and may not tell of the sidecar",
        ]
    );
    assert!(warnings(pod(json!({}))).is_empty());
    let out = pod(json!({ "pontoon.dev/interception": "none", "pontoon.dev/environment": "disabled" }));
    assert!(warnings(out.clone()).is_empty());
    let injected = by_webhook(&out);
    assert_eq!(injected["spec"]["containers"][0]["env"], out["spec"]["containers"][0]["env"]);
    assert_eq!(injected["spec"]["containers"][1]["env"], out["spec"]["containers"][1]["env"]);
}

#[test]
fn own_hooks_that_keep_the_drain_from_being_begun_are_warned_of() {
    let own = json!({ "preStop": { "exec": { "command": ["/bin/sleep", "5"] } } });
    let asking = json!({ "preStop": { "exec": { "command": ["curl", "http://localhost:15021/end"] } } });
    let pod = |lifecycle: &Value| {
        json!({ "metadata": { "name": "a" }, "spec": {
            "initContainers": [{ "name": "schema", "lifecycle": &own }],
            "containers": [{ "name": "orders", "lifecycle": &own }, { "name": "cache", "lifecycle": lifecycle }],
        } })
    };
    let can = "it can ask for that: GET /end at port 15021";
    let alone = |name: &str| {
        format!("container {name}: its own preStop hook stays, and none begins the drain; {can}")
    };
    assert_eq!(warnings(pod(&own)), [alone("orders"), alone("cache")]);
    for others in [json!({ "preStop": null }), json!(null), asking] {
        let said = warnings(pod(&others));
        let waits =
            format!("container orders: its own preStop hook stays, and does not wait for its callers; {can}");
        assert_eq!(said, [waits], "{others}");
    }
    let mut at_once = pod(&own);
    at_once["metadata"]["annotations"] = json!({ "pontoon.dev/drain-seconds": "0" });
    assert!(warnings(at_once).is_empty());
    let injected = by_webhook(&pod(&json!({ "preStop": null })));
    assert_eq!(injected["spec"]["containers"][1]["lifecycle"]["preStop"]["httpGet"]["path"], "/end");
}

#[test]
fn ports_and_a_user_that_are_the_sidecar_s_are_warned_of() {
    let pod = |annotations: Value, user: Value| {
        let ports: Vec<Value> = [8080, 15000, 15001, 15006, 15021, 15053]
            .iter()
            .map(|port| json!({ "containerPort": port }))
            .collect();
        json!({ "metadata": { "name": "a", "annotations": annotations }, "spec": {
            "securityContext": { "runAsUser": user },
            "containers": [
                { "name": "orders", "ports": ports },
                { "name": "cache", "securityContext": { "runAsUser": 1000 } },
            ],
        } })
    };
    let port = |port: u16| format!("container orders: its port {port} is one that the sidecar listens at");
    let said = warnings(pod(json!({}), json!(1000)));
    assert_eq!(said, [port(15000), port(15001), port(15006), port(15021), port(15053)]);
    let said = warnings(pod(json!({ "pontoon.dev/dns": "disabled" }), json!(15001)));
    let user = "container orders: its user is the sidecar's, 15001: what it sends is not intercepted";
    assert_eq!(said, [port(15000), port(15001), port(15006), port(15021), user.to_owned()]);
    let said = warnings(pod(json!({ "pontoon.dev/interception": "none" }), json!(15001)));
    assert_eq!(said, [port(15000), port(15001), port(15021)]);
}

#[test]
fn a_label_that_means_nothing_is_warned_of() {
    for (value, is_warned) in [("enabled", false), ("disable", true), ("true", true)] {
        let labels = json!({ "pontoon.dev/inject": value });
        let pod = json!({ "metadata": { "name": "a", "labels": labels }, "spec": { "containers": [] } });
        let said = format!(
            "label pontoon.dev/inject is \"{value}\", which means nothing: it can be enabled or disabled"
        );
        assert_eq!(warnings(pod), if is_warned { vec![said] } else { Vec::new() });
    }
}

fn refused(annotations: Value) -> String {
    let pod =
        json!({ "metadata": { "name": "a", "annotations": annotations }, "spec": { "containers": [] } });
    let question = json!({ "request": { "uid": "1", "kind": { "kind": "Pod" }, "object": pod } });
    let answer = review::answer(&question, &settings()).expect("an answer");
    assert_eq!(answer["response"]["allowed"], false);
    answer["response"]["status"]["message"].as_str().expect("a message").to_owned()
}

#[test]
fn an_annotation_that_cannot_be_used_is_named() {
    for (name, value) in [
        ("pontoon.dev/interception", "tproxy"),
        ("pontoon.dev/drain-seconds", "10s"),
        ("pontoon.dev/exclude-outbound-ports", "5432,0"),
        ("pontoon.dev/exclude-inbound-ports", "9-8"),
        ("pontoon.dev/exclude-outbound-cidrs", "10.0.0.0/33"),
        ("pontoon.dev/proxy-workers", "0"),
        ("pontoon.dev/proxy-memory-limit", "lots"),
        ("pontoon.dev/dns", "yes"),
        ("pontoon.dev/environment", "enabled"),
        ("pontoon.dev/proxy-image", "bad image!!"),
    ] {
        let message = refused(json!({ name: value }));
        assert!(message.contains(name) && message.contains(value), "{name}: {message}");
    }
}

#[test]
fn an_annotation_that_is_no_string_is_named() {
    let mut pod = workload::read(
        "{kind: Pod, metadata: {name: a, annotations: {pontoon.dev/proxy-workers: 3}}, spec: {containers: []}}",
    )
    .expect("YAML");
    let error = workload::inject_object(&mut pod[0], &settings()).expect_err("refused").to_string();
    assert_eq!(
        error,
        "Pod/a: metadata.annotations[pontoon.dev/proxy-workers] is 3: expected a string, which has quotes in YAML"
    );
    refused(json!({ "pontoon.dev/dns": true }));
}

#[test]
fn no_request_is_above_its_limit() {
    for (resource, said, request, limit) in [
        ("memory", [None, None], "32Mi", json!("256Mi")),
        ("memory", [Some("512Mi"), None], "512Mi", json!("512Mi")),
        ("memory", [None, Some("16Mi")], "16Mi", json!("16Mi")),
        ("memory", [Some("1G"), Some("1Gi")], "1G", json!("1Gi")),
        ("memory", [Some("0.5Gi"), Some("512Mi")], "0.5Gi", json!("512Mi")),
        ("cpu", [Some("2"), None], "2", json!(null)),
        ("cpu", [None, Some("5m")], "5m", json!("5m")),
        ("cpu", [None, Some("1")], "10m", json!("1")),
        ("cpu", [Some("0.7"), Some("700m")], "0.7", json!("700m")),
        ("cpu", [Some("700m"), Some("0.7")], "700m", json!("0.7")),
    ] {
        let mut annotations = json!({});
        for (what, said) in ["request", "limit"].iter().zip(said) {
            if let Some(said) = said {
                annotations[format!("pontoon.dev/proxy-{resource}-{what}")] = json!(said);
            }
        }
        let pod =
            json!({ "metadata": { "name": "a", "annotations": annotations }, "spec": { "containers": [] } });
        let injected = by_webhook(&pod);
        for container in injected["spec"]["initContainers"].as_array().expect("containers") {
            let resources = &container["resources"];
            assert_eq!(resources["requests"][resource], request, "{annotations}");
            assert_eq!(resources["limits"][resource], limit, "{annotations}");
        }
    }
    for (resource, request, limit) in [("memory", "257Mi", "256Mi"), ("cpu", "2", "1999m")] {
        let (asked, most) =
            (format!("pontoon.dev/proxy-{resource}-request"), format!("pontoon.dev/proxy-{resource}-limit"));
        let message = refused(json!({ &asked: request, &most: limit }));
        assert!(
            message.contains(&asked) && message.contains(request) && message.contains(&most),
            "{message}"
        );
    }
}

#[test]
fn what_is_no_pod_is_let_pass_or_refused_without_a_patch() {
    assert!(review::answer(&json!({}), &settings()).is_none());
    assert!(review::answer(&json!({ "request": { "uid": 7 } }), &settings()).is_none());
    for object in [json!(null), json!({}), json!({ "spec": 3 }), json!({ "spec": [] }), json!("pod")] {
        let question = json!({ "request": { "uid": "1", "kind": { "kind": "Pod" }, "object": object } });
        let answer = review::answer(&question, &settings()).expect("an answer");
        assert_eq!(answer["response"], json!({ "uid": "1", "allowed": true }));
    }
    // Types that the API server would not let through.
    let odd = json!({ "metadata": "x", "spec": { "initContainers": 3, "containers": [null, 1, { "env": 5,
        "lifecycle": "x", "ports": "y", "livenessProbe": { "tcpSocket": { "port": "http" } } }] } });
    let question = json!({ "request": { "uid": "1", "kind": { "kind": "Pod" }, "object": odd } });
    assert_eq!(review::answer(&question, &settings()).expect("an answer")["response"]["allowed"], true);
}

#[test]
fn an_annotation_that_is_not_known_keeps_no_pod_from_running() {
    let pod = json!({
        "metadata": { "name": "a", "annotations": { "pontoon.dev/exclude-outbound-port": "5432" } },
        "spec": { "containers": [] },
    });
    let question = json!({ "request": { "uid": "1", "kind": { "kind": "Pod" }, "object": pod } });
    let response = review::answer(&question, &settings()).expect("an answer")["response"].clone();
    assert_eq!(response["allowed"], true);
    assert_eq!(response["patchType"], "JSONPatch");
    let warning = response["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("pontoon.dev/exclude-outbound-port"), "{warning}");
}

#[test]
fn a_drain_that_outlasts_the_pod_is_warned_of() {
    for (drain, grace, is_warned) in [
        ("3600", json!(null), true),
        ("30", json!(30), true),
        ("29", json!(30), false),
        ("60", json!(90), false),
        ("0", json!(0), false),
    ] {
        let pod = json!({
            "metadata": { "name": "a", "annotations": { "pontoon.dev/drain-seconds": drain } },
            "spec": { "containers": [], "terminationGracePeriodSeconds": grace },
        });
        let question = json!({ "request": { "uid": "1", "kind": { "kind": "Pod" }, "object": pod } });
        let response = review::answer(&question, &settings()).expect("an answer")["response"].clone();
        assert_eq!(response["allowed"], true);
        let warning = response["warnings"][0].as_str().unwrap_or_default();
        assert_eq!(
            warning.contains("terminationGracePeriodSeconds"),
            is_warned,
            "{drain} {grace}: {warning}"
        );
    }
}

#[test]
fn a_pod_of_windows_is_left_as_it_is() {
    for how in
        [json!({ "os": { "name": "windows" } }), json!({ "nodeSelector": { "kubernetes.io/os": "windows" } })]
    {
        let pod = json!({ "metadata": { "name": "a" }, "spec": how });
        let question = json!({ "request": { "uid": "1", "kind": { "kind": "Pod" }, "object": pod } });
        let response = review::answer(&question, &settings()).expect("an answer")["response"].clone();
        assert_eq!((&response["allowed"], &response["patch"]), (&json!(true), &json!(null)));
        assert!(response["warnings"][0].as_str().expect("a warning").contains("Windows"));
    }
}

#[test]
fn a_file_without_objects_is_named() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("empty.yaml");
    std::fs::write(&file, "# nothing\n---\n").expect("written");
    let mut pontoon = std::process::Command::new(env!("CARGO_BIN_EXE_pontoon"));
    let output = pontoon.args(["inject", "-f"]).arg(&file).output().expect("run");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("{}: no objects in it\n", file.display()));
}
