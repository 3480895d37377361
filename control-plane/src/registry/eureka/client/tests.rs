use super::*;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use tokio::sync::Notify;

/// A server that writes down what it is asked and forgets the instance once.
#[derive(Default)]
struct Peer {
    seen: Mutex<Vec<String>>,
    more: Notify,
}

impl Peer {
    async fn answer(self: Arc<Peer>, request: Request) -> StatusCode {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 64 * 1024).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let status = body["instance"]["status"].as_str().unwrap_or("-").to_owned();
        let mut seen = self.seen.lock().unwrap();
        seen.push(format!("{} {} {status}", head.method, head.uri.path()));
        self.more.notify_one();
        match head.method {
            Method::PUT if seen.len() == 2 => StatusCode::NOT_FOUND,
            Method::POST => StatusCode::NO_CONTENT,
            _ => StatusCode::OK,
        }
    }

    async fn until(&self, count: usize) {
        while self.seen.lock().unwrap().len() < count {
            self.more.notified().await;
        }
    }
}

#[tokio::test]
async fn it_registers_renews_registers_again_and_leaves_in_two_steps() {
    let peer = Arc::new(Peer::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = peer.clone();
    let router = Router::new().fallback(move |request: Request| serving.clone().answer(request));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let client = Client::start(Registration {
        base_url: format!("http://{address}/eureka/"),
        app: "inventory".to_owned(),
        instance_id: "127.0.0.1:inventory:1/ä".to_owned(),
        host: "localhost".to_owned(),
        ip: IpAddr::from([127, 0, 0, 1]),
        port: 1,
        vip: "inventory".to_owned(),
        metadata: BTreeMap::new(),
        renewal_interval: Duration::from_millis(5),
        lease_duration: Duration::from_secs(90),
    })
    .unwrap();
    peer.until(4).await;
    client.stop().await;
    let seen = peer.seen.lock().unwrap().clone();
    let instance = "/eureka/apps/INVENTORY/127.0.0.1:inventory:1%2F%C3%A4";
    assert_eq!(seen[0], "POST /eureka/apps/INVENTORY UP");
    assert_eq!(seen[1], format!("PUT {instance} -"), "answered 404");
    assert_eq!(seen[2], "POST /eureka/apps/INVENTORY UP");
    assert_eq!(seen[3], format!("PUT {instance} -"));
    assert_eq!(seen[seen.len() - 2], "POST /eureka/apps/INVENTORY DOWN");
    assert_eq!(seen[seen.len() - 1], format!("DELETE {instance} -"));
}

#[tokio::test]
async fn a_base_url_that_is_none_is_refused() {
    let registration = Registration {
        base_url: "localhost:8761".to_owned(),
        app: "a".to_owned(),
        instance_id: "i".to_owned(),
        host: "h".to_owned(),
        ip: IpAddr::from([127, 0, 0, 1]),
        port: 1,
        vip: "a".to_owned(),
        metadata: BTreeMap::new(),
        renewal_interval: Duration::from_secs(30),
        lease_duration: Duration::from_secs(90),
    };
    assert!(Client::start(registration).unwrap_err().to_string().contains("localhost:8761"));
}
