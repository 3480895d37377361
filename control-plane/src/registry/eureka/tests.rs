use super::*;
use std::net::{IpAddr, SocketAddr};

use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::client::{Client, Registration};
use crate::model::instance::InstanceStatus;
use crate::serve::http::{Limits, serve};

/// A registry behind the listener that serves it in earnest.
struct Server {
    eureka: Eureka,
    address: SocketAddr,
    http: reqwest::Client,
    stop: CancellationToken,
    run: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(options: Options, database: Option<Arc<Database>>) -> Server {
        let eureka = Eureka::new(options, database).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, eureka.router(), Limits::EUREKA, stop.clone()));
        let run = tokio::spawn(eureka.clone().run(stop.clone()));
        let http = reqwest::Client::builder().no_gzip().build().unwrap();
        Server { eureka, address, http, stop, run }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn send(&self, method: &str, path: &str) -> reqwest::Response {
        let method = method.parse().unwrap();
        let request = self.http.request(method, self.url(path)).header("accept", "application/json");
        request.send().await.unwrap()
    }

    async fn status(&self, method: &str, path: &str) -> u16 {
        self.send(method, path).await.status().as_u16()
    }

    async fn json(&self, path: &str) -> Value {
        self.send("GET", path).await.json().await.unwrap()
    }

    async fn post(&self, path: &str, kind: &str, body: impl Into<reqwest::Body>) -> (u16, String) {
        let request = self.http.post(self.url(path)).header("content-type", kind).body(body);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn register(&self, app: &str, id: &str, status: &str) {
        let answer =
            self.post(&format!("/eureka/apps/{app}"), "application/json", body(app, id, status)).await;
        assert_eq!(answer, (204, String::new()));
    }
}

fn body(app: &str, id: &str, status: &str) -> String {
    json!({"instance": {
        "instanceId": id, "hostName": "localhost", "app": app.to_uppercase(), "ipAddr": "127.0.0.1",
        "status": status, "port": {"$": 8080, "@enabled": "true"}, "vipAddress": app.to_lowercase(),
    }})
    .to_string()
}

fn database(folder: &tempfile::TempDir) -> Arc<Database> {
    Arc::new(Database::create(folder.path().join("state.redb")).unwrap())
}

#[tokio::test]
async fn a_life_as_both_generations_live_it() {
    let server = Server::start(Options::default(), None).await;
    let empty = json!({"applications": {"versions__delta": "1", "apps__hashcode": "", "application": []}});
    assert_eq!(server.json("/eureka/apps/").await, empty);
    server.register("inventory", "127.0.0.1:inventory:8080", "UP").await;
    let all = server.json("/eureka/v2/apps").await;
    assert_eq!(all["applications"]["apps__hashcode"], "UP_1_", "no lag");
    assert_eq!(all["applications"]["application"][0]["name"], "INVENTORY");
    let one = "/eureka/apps/Inventory/127.0.0.1:inventory:8080";
    assert_eq!(server.status("PUT", &format!("{one}?status=UP&lastDirtyTimestamp=0")).await, 200);
    assert_eq!(server.status("PUT", &format!("{one}?lastDirtyTimestamp=5")).await, 404);
    assert_eq!(server.status("PUT", &format!("{one}/status?value=OUT_OF_SERVICE")).await, 200);
    assert_eq!(server.json(one).await["instance"]["overriddenStatus"], "OUT_OF_SERVICE");
    assert_eq!(server.status("PUT", &format!("{one}/status?value=NONSENSE")).await, 400);
    assert_eq!(server.status("DELETE", &format!("{one}/status?value=UP")).await, 200);
    assert_eq!(server.status("PUT", &format!("{one}/metadata?a.b=c%20d")).await, 200);
    let delta = server.json("/eureka/apps/delta").await;
    let instance = &delta["applications"]["application"][0]["instance"][0];
    assert_eq!((&instance["actionType"], &instance["metadata"]["a.b"]), (&json!("MODIFIED"), &json!("c d")));
    for path in
        ["/eureka/instances/127.0.0.1:inventory:8080", "/eureka/apps/INVENTORY", "/eureka/vips/inventory"]
    {
        assert_eq!(server.status("GET", path).await, 200, "{path}");
    }
    assert_eq!(server.json("/eureka/vips/nobody").await["applications"]["apps__hashcode"], "");
    assert_eq!(server.status("DELETE", one).await, 200);
    assert_eq!(server.status("DELETE", one).await, 404);
    assert_eq!(server.status("PUT", one).await, 404);
    assert_eq!(server.status("GET", "/eureka/apps/INVENTORY").await, 404);
    let delta = server.json("/eureka/apps/delta").await;
    assert_eq!(delta["applications"]["apps__hashcode"], "");
    assert_eq!(delta["applications"]["application"][0]["instance"][0]["actionType"], "DELETED");
}

#[tokio::test]
async fn a_chunked_body_is_taken_and_a_gzip_answer_given() {
    let server = Server::start(Options::default(), None).await;
    let body = body("probe", "1", "UP");
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let (first, second) = body.split_at(20);
    let request = format!(
        "POST /eureka/apps/PROBE HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\nconnection: close\r\n\r\n{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");

    for path in ["/eureka/apps/", "/eureka/apps/delta", "/eureka/apps/PROBE"] {
        let request = server.http.get(server.url(path)).header("accept", "application/json");
        let response = request.header("accept-encoding", "gzip").send().await.unwrap();
        assert_eq!(response.headers()["content-encoding"], "gzip", "{path}");
        let zipped = response.bytes().await.unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*zipped), &mut text).unwrap();
        assert!(text.contains("PROBE"), "{text}");
    }
}

#[tokio::test]
async fn xml_is_the_answer_to_who_asks_for_nothing() {
    let server = Server::start(Options::default(), None).await;
    let xml = "<instance><instanceId>i</instanceId><hostName>h</hostName><app>PROBE</app>\
               <ipAddr>192.0.2.1</ipAddr><port enabled=\"true\">9998</port></instance>";
    assert_eq!(server.post("/eureka/apps/probe", "application/xml", xml).await.0, 204);
    let response = server.http.get(server.url("/eureka/apps")).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/xml");
    assert!(response.text().await.unwrap().contains("<port enabled=\"true\">9998</port>"));
    let html =
        server.http.get(server.url("/eureka/apps")).header("accept", "text/html").send().await.unwrap();
    assert_eq!(html.status(), StatusCode::NOT_ACCEPTABLE);
}

#[tokio::test]
async fn bad_input_is_a_4xx_with_its_reason() {
    let options = Options { max_instances: 1, ..Options::default() };
    let server = Server::start(options, None).await;
    let json = "application/json";
    let (status, text) = server.post("/eureka/apps/A", json, vec![b'x'; 10 << 20]).await;
    assert_eq!(status, 413);
    assert!(text.contains("1048576"), "{text}");
    let frame = || hyper::body::Frame::data(bytes::Bytes::from(vec![b' '; 64 * 1024]));
    let frames: Vec<_> = (0..160).map(|_| Ok::<_, std::io::Error>(frame())).collect();
    let frames = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
    let endless = reqwest::Body::wrap(frames);
    assert_eq!(server.post("/eureka/apps/A", json, endless).await.0, 413);
    for (path, kind, text, status, word) in [
        ("/eureka/apps/A", json, "{".to_owned(), 400, "cannot parse request body"),
        ("/eureka/apps/A", json, r#"{"instance":{}}"#.to_owned(), 400, "cannot parse request body"),
        (
            "/eureka/apps/PROBE",
            json,
            body("other", "1", "UP"),
            400,
            "Mismatched appName, expecting PROBE but was OTHER",
        ),
        ("/eureka/apps/A", "text/plain", body("a", "1", "UP"), 415, "Content-Type"),
        ("/eureka/apps/%00", json, body("a", "1", "UP"), 400, "control character"),
        ("/eureka/apps/A", "application/xml", "<!DOCTYPE a><instance/>".to_owned(), 400, "document type"),
        ("/eureka/peerreplication/batch", json, "{}".to_owned(), 400, "replicationList"),
        ("/eureka/apps/A/1", json, String::new(), 405, "POST"),
        ("/eureka/nothing", json, String::new(), 404, "nothing"),
    ] {
        let (code, answer) = server.post(path, kind, text).await;
        assert_eq!(code, status, "{path} {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["error"].as_str().unwrap().contains(word), "{answer}");
        assert!(answer["reason"].is_string());
    }
    let zipped = server.http.post(server.url("/eureka/apps/A")).header("content-type", json);
    let zipped = zipped.header("content-encoding", "gzip").body("x").send().await.unwrap();
    assert_eq!(zipped.status(), StatusCode::BAD_REQUEST);
    server.register("a", "1", "UP").await;
    let (status, text) = server.post("/eureka/apps/A", json, body("a", "2", "UP")).await;
    assert_eq!(status, 503);
    assert!(text.contains("1 of 1 instances"), "{text}");
}

#[tokio::test]
async fn odd_names_go_through_unharmed() {
    let server = Server::start(Options::default(), None).await;
    for (id, escaped) in [
        ("a/b", "a%2Fb"),
        ("ä ö", "%C3%A4%20%C3%B6"),
        ("<script>", "%3Cscript%3E"),
        ("x;y=z@[1]", "x;y=z@[1]"),
        ("%", "%25"),
    ] {
        server.register("odd", id, "UP").await;
        let path = format!("/eureka/apps/odd/{escaped}");
        assert_eq!(server.json(&path).await["instance"]["instanceId"], id);
        assert_eq!(server.status("PUT", &path).await, 200);
    }
    let page = server.send("GET", "/").await.text().await.unwrap();
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"), "{page}");
    assert!(page.contains("Self-preservation is on, not active"));
    assert!(server.send("GET", "/lastn").await.text().await.unwrap().contains("registered"));
    assert_eq!(server.json("/eureka/status").await["applicationStats"]["instances"], 5);
    let metrics = server.eureka.metrics().unwrap();
    assert!(metrics.contains("pontoon_eureka_registrations_total 5"), "{metrics}");
    assert!(!metrics.contains("script"));
}

#[tokio::test]
async fn down_is_out_of_the_view_before_it_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Options::default(), Some(database(&folder))).await;
    server.register("inventory", "1", "UP").await;
    let mut views = server.eureka.views();
    views.mark_unchanged();
    let sent = Instant::now();
    let (path, down) = ("/eureka/apps/INVENTORY", body("inventory", "1", "DOWN"));
    let (_, changed) = tokio::join!(server.post(path, "application/json", down), async {
        views.changed().await.unwrap();
        sent.elapsed()
    });
    let status = views.borrow().applications["INVENTORY"].instances["1"].status;
    assert_eq!(status, InstanceStatus::Down);
    assert!(changed < Duration::from_millis(100), "{changed:?}");
}

#[tokio::test]
async fn what_was_answered_survives_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let database = database(&folder);
    let server = Server::start(Options::default(), Some(database.clone())).await;
    server.register("a", "stays", "UP").await;
    server.register("a", "goes", "UP").await;
    assert_eq!(server.status("PUT", "/eureka/apps/a/stays/status?value=OUT_OF_SERVICE").await, 200);
    assert_eq!(server.status("DELETE", "/eureka/apps/a/goes").await, 200);
    // No graceful end: only what is on disk counts.
    server.run.abort();
    let started = Eureka::new(Options::default(), Some(database)).unwrap();
    let view = started.views().borrow().clone();
    let instances = &view.applications["A"].instances;
    assert_eq!(instances.keys().map(|id| &**id).collect::<Vec<_>>(), ["stays"]);
    assert_eq!(instances["stays"].status, InstanceStatus::OutOfService);
    server.stop.cancel();
}

#[tokio::test]
async fn a_killed_instance_leaves_the_view_when_its_lease_ends() {
    let options = Options { check_interval: Duration::from_millis(20), ..Options::default() };
    let server = Server::start(options, None).await;
    server.register("a", "alive", "UP").await;
    let mut dying: Value = serde_json::from_str(&body("a", "dying", "UP")).unwrap();
    dying["instance"]["leaseInfo"] = json!({"durationInSecs": 1});
    let answer = server.post("/eureka/apps/A", "application/json", dying.to_string()).await;
    assert_eq!(answer.0, 204);
    let mut views = server.eureka.views();
    let gone = views.wait_for(|view| !view.applications["A"].instances.contains_key("dying"));
    let view = gone.await.unwrap().clone();
    assert!(!view.applications["A"].held);
    assert_eq!(server.status("GET", "/eureka/apps/A/dying").await, 404);
}

#[tokio::test]
async fn our_client_and_our_registry_agree() {
    let server = Server::start(Options::default(), None).await;
    let mut views = server.eureka.views();
    let client = Client::start(Registration {
        base_url: server.url("/eureka/"),
        app: "inventory".to_owned(),
        instance_id: "127.0.0.1:inventory:9".to_owned(),
        host: "localhost".to_owned(),
        ip: IpAddr::from([127, 0, 0, 1]),
        port: 9,
        vip: "inventory".to_owned(),
        metadata: [("lab".to_owned(), "legacy".to_owned())].into(),
        renewal_interval: Duration::from_millis(10),
        lease_duration: Duration::from_secs(90),
    })
    .unwrap();
    let view = views.wait_for(|view| view.applications.contains_key("INVENTORY")).await.unwrap().clone();
    let instance = &view.applications["INVENTORY"].instances["127.0.0.1:inventory:9"];
    assert_eq!((instance.port, instance.metadata["lab"].as_str()), (Some(9), "legacy"));
    client.stop().await;
    assert!(views.borrow().applications.is_empty());
}

#[tokio::test]
async fn a_peers_batch_is_applied_and_answered_item_by_item() {
    let server = Server::start(Options::default(), None).await;
    let info: Value = serde_json::from_str(&body("probe", "peer-probe", "UP")).unwrap();
    let mut info = info["instance"].clone();
    info["lastDirtyTimestamp"] = json!("1795407100000");
    let item = |action: &str, more: Value| {
        let mut item = json!({"appName": "PROBE", "id": "peer-probe", "action": action});
        item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        item
    };
    let beat = json!({"lastDirtyTimestamp": 1_795_407_100_000_u64, "status": "UP"});
    let list = json!({"replicationList": [
        item("Heartbeat", beat.clone()),
        item("Register", json!({"instanceInfo": info, "status": "UP"})),
        item("Heartbeat", beat.clone()),
        item("Heartbeat", json!({"lastDirtyTimestamp": 1_795_407_000_000_u64})),
        item("StatusUpdate", json!({"status": "OUT_OF_SERVICE"})),
        item("DeleteStatusOverride", json!({"status": "UP"})),
        item("Nonsense", json!({})),
        item("Cancel", json!({})),
        item("Cancel", json!({})),
    ]});
    let (status, text) =
        server.post("/eureka/peerreplication/batch/", "application/json", list.to_string()).await;
    assert_eq!(status, 200);
    let answer: Value = serde_json::from_str(&text).unwrap();
    let answers = answer["responseList"].as_array().unwrap();
    let codes: Vec<u64> = answers.iter().map(|one| one["statusCode"].as_u64().unwrap()).collect();
    assert_eq!(codes, [404, 200, 200, 409, 200, 200, 400, 200, 404]);
    assert_eq!(answers[3]["responseEntity"]["instanceId"], "peer-probe");

    server.register("probe", "1", "UP").await;
    let older = server.http.put(server.url("/eureka/apps/PROBE/1?lastDirtyTimestamp=-1"));
    let older = older.header("x-netflix-discovery-replication", "true").send().await.unwrap();
    assert_eq!(older.status(), StatusCode::OK, "equal clocks: both say nothing");
}
