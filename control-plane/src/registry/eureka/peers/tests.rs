use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::super::Options;
use super::*;
use crate::serve::http::{Limits, serve};

/// A replica that is served in earnest.
struct Replica {
    eureka: Eureka,
    url: String,
    http: reqwest::Client,
    stop: CancellationToken,
}

impl Replica {
    async fn start() -> Replica {
        Self::at(TcpListener::bind("127.0.0.1:0").await.unwrap()).await
    }

    async fn at(listener: TcpListener) -> Replica {
        let eureka = Eureka::new(Options::default(), None).unwrap();
        let url = format!("http://{}/eureka", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, eureka.router(), Limits::EUREKA, stop.clone()));
        tokio::spawn(eureka.clone().run(stop.clone()));
        Replica { eureka, url, http: reqwest::Client::new(), stop }
    }

    fn peer_of(&self, others: &[&Replica]) {
        let seeds = others.iter().map(|other| other.url.parse().unwrap()).collect();
        tokio::spawn(self.eureka.with_peers(seeds, self.stop.clone()).unwrap());
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> u16 {
        let request = self.http.request(method.parse().unwrap(), format!("{}/{path}", self.url));
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        request.send().await.unwrap().status().as_u16()
    }

    async fn register(&self, id: &str) {
        let instance = json!({"instanceId": id, "hostName": "h", "app": "SHOP", "ipAddr": "127.0.0.1",
            "status": "UP", "port": {"$": 80, "@enabled": "true"}, "vipAddress": "shop",
            "metadata": {"zone": "a"}, "lastDirtyTimestamp": "100"});
        assert_eq!(self.call("POST", "apps/SHOP", Some(json!({ "instance": instance }))).await, 204);
    }

    /// `STATUS/OVERRIDE zone`, or nothing where it is not known.
    fn shows(&self, id: &str) -> Option<String> {
        let listed = self.eureka.registry().instance("SHOP", id)?;
        let info = &listed.info;
        let zone = info.metadata.get("zone").map_or("", String::as_str);
        Some(format!("{}/{} {zone}", info.status.as_str(), info.overridden.as_str()))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), waiting).await.is_ok(), "never: {what}");
}

#[tokio::test]
async fn what_a_client_does_at_one_all_know() {
    let [a, b, c] = [Replica::start().await, Replica::start().await, Replica::start().await];
    // Each has itself among its peers, as a name of all replicas would have it.
    for replica in [&a, &b, &c] {
        replica.peer_of(&[&a, &b, &c]);
        replica.eureka.joined().await;
    }
    a.register("1").await;
    let all = |id: &str, shows: Option<&str>| {
        [&a, &b, &c].iter().all(|replica| replica.shows(id).as_deref() == shows)
    };
    until("the registration", || all("1", Some("UP/UNKNOWN a"))).await;
    assert_eq!(b.call("PUT", "apps/SHOP/1/status?value=OUT_OF_SERVICE", None).await, 200);
    until("the override", || all("1", Some("OUT_OF_SERVICE/OUT_OF_SERVICE a"))).await;
    assert_eq!(c.call("DELETE", "apps/SHOP/1/status?value=UP", None).await, 200);
    until("the end of the override", || all("1", Some("UP/UNKNOWN a"))).await;
    assert_eq!(a.call("PUT", "apps/SHOP/1/metadata?zone=b", None).await, 200);
    until("the metadata", || all("1", Some("UP/UNKNOWN b"))).await;
    assert_eq!(b.call("DELETE", "apps/SHOP/1", None).await, 200);
    until("the cancellation", || all("1", None)).await;
    until("nothing to be left", || {
        [&a, &b, &c].iter().all(|replica| replica.eureka.shared.peers.untold() == 0)
    })
    .await;
}

#[tokio::test]
async fn who_comes_back_hears_what_it_missed() {
    let a = Replica::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (place, b) = (listener.local_addr().unwrap(), Replica::at(listener).await);
    a.peer_of(&[&b]);
    a.register("1").await;
    until("the first", || b.shows("1").is_some()).await;
    let url = b.url.clone();
    drop(b);
    until("it to be gone", || std::net::TcpStream::connect(place).is_err()).await;
    a.register("2").await;
    assert_eq!(a.call("DELETE", "apps/SHOP/1", None).await, 200);
    // Another in its place, which asks nobody: what it missed is told, and what it does not know it asks for.
    let b = Replica::at(TcpListener::bind(place).await.unwrap()).await;
    assert_eq!(b.url, url);
    until("the second", || b.shows("2").is_some()).await;
    assert_eq!(b.shows("1"), None);
    a.register("3").await;
    until("the third", || b.shows("3").is_some()).await;
    b.call("DELETE", "apps/SHOP/3", None).await;
    assert_eq!(a.call("PUT", "apps/SHOP/3?lastDirtyTimestamp=100", None).await, 200);
    until("the renewed one", || b.shows("3").is_some()).await;
}

#[tokio::test]
async fn who_starts_copies_a_peer_before_it_answers_clients() {
    let (a, b) = (Replica::start().await, Replica::start().await);
    a.register("1").await;
    b.eureka.shared.peers.joined.send_replace(false);
    assert_eq!(b.call("GET", "apps", None).await, 503);
    assert_eq!(a.call("GET", "apps", None).await, 200);
    b.peer_of(&[&b, &a]);
    b.eureka.joined().await;
    assert_eq!((b.shows("1").as_deref(), b.call("GET", "apps", None).await), (Some("UP/UNKNOWN a"), 200));
    // It finds itself by what it tells itself, if not before.
    b.register("2").await;
    until("itself to be known", || b.eureka.shared.peers.count() == 1).await;
}

#[test]
fn a_peers_url_is_that_of_a_eureka_server() {
    let url = |text: &str| text.parse::<PeerUrl>().map(|PeerUrl(url)| url.to_string());
    assert_eq!(url("http://peers:8761/eureka").as_deref(), Ok("http://peers:8761/eureka/"));
    for wrong in ["peers:8761", "https://peers/eureka/", "mailto:a@b", ""] {
        assert!(url(wrong).unwrap_err().contains("http://HOST:8761/eureka/"), "{wrong}");
    }
}
