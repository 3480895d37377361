//! The end of a proxy, and of a listener, under load: nobody's request fails for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pontoon_proxy::worker::Options;

use crate::fixture::*;

/// Clients that reconnect when they are told to, and count what fails otherwise.
async fn drained_under_load(http: Http, clients: usize) {
    let upstream = Upstream::named(Http::One, "ok").await;
    let options = Options { workers: 2, lame_duck: Duration::from_millis(300), ..Setup::default().options };
    let proxy = Proxy::with(&[upstream.address], Setup { options, ..Setup::default() }).await;
    let (answered, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let leaving = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..clients)
        .map(|_| {
            let (answered, failed, leaving) =
                (Arc::clone(&answered), Arc::clone(&failed), Arc::clone(&leaving));
            let address = proxy.address;
            tokio::spawn(async move {
                // Ends when told to close: in the lame duck phase a real client would go elsewhere.
                let mut client = Client::connect(address, http).await;
                while let Ok(response) = client.try_send(http::Request::get("/").body(empty()).unwrap()).await
                {
                    let close = response.headers().contains_key("connection");
                    if text(response).await != "ok" {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                    if close {
                        return;
                    }
                }
                // A refusal to take another request is none of ours once we are leaving.
                if !leaving.load(Ordering::Relaxed) {
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    until("load", || answered.load(Ordering::Relaxed) > 200).await;
    leaving.store(true, Ordering::Relaxed);
    let drained = proxy.drain().await;
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(drained.forced, 0);
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    assert_eq!(upstream.requests(), answered.load(Ordering::Relaxed), "each request sent on was answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_fails_no_request_of_http1_clients() {
    drained_under_load(Http::One, 16).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_fails_no_request_of_one_client() {
    drained_under_load(Http::One, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_fails_no_request_of_a_thousand_clients() {
    drained_under_load(Http::One, 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_fails_no_request_of_http2_clients() {
    drained_under_load(Http::Two, 16).await;
}

/// A request that was on its way when the drain began: on a connection that was waiting for its next one, on one
/// that had been used a moment before, on one that never had any.
#[tokio::test]
async fn what_is_on_its_way_at_a_drain_is_answered() {
    for (settled, requests) in [(true, 1), (false, 1), (false, 0)] {
        let upstream = Upstream::named(Http::One, "ok").await;
        let options = Options { workers: 1, ..Setup::default().options };
        let proxy = Proxy::with(&[upstream.address], Setup { options, ..Setup::default() }).await;
        let address = proxy.address;
        let mut client = Client::connect(address, Http::One).await;
        for _ in 0..requests {
            text(client.get("/").await).await;
        }
        if settled {
            // Twice the connection's tick.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let drain = tokio::spawn(async move { proxy.drain().await });
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        let response = client.get("/").await;
        assert_eq!(response.headers()["connection"], "close", "{settled} {requests}");
        assert_eq!(text(response).await, "ok");
        assert_eq!(drain.await.unwrap().forced, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_flight_at_a_drain_is_finished() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let upstream = Upstream::serving(Http::One, Default::default(), move |_| {
        let mut gate = gate.clone();
        async move {
            gate.wait_for(|go| *go).await.unwrap();
            Ok(http::Response::new(full("late")))
        }
    })
    .await;
    let proxy = Arc::new(Proxy::start(&[upstream.address]).await);
    let mut client = Client::connect(proxy.address, Http::One).await;
    let waiting = tokio::spawn(async move { text(client.get("/").await).await });
    until("the request in flight", || upstream.connections.load(Ordering::Relaxed) == 1).await;
    let draining = tokio::spawn({
        let proxy = Arc::clone(&proxy);
        async move { proxy.drain().await }
    });
    let refused = async { while tokio::net::TcpStream::connect(proxy.address).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, refused).await.expect("no more accepts");
    go.send(true).unwrap();
    assert_eq!(waiting.await.unwrap(), "late");
    assert_eq!(draining.await.unwrap().forced, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_come_and_go() {
    let upstream = Upstream::named(Http::One, "ok").await;
    let proxy = Proxy::start(&[upstream.address]).await;
    let mut kept = Client::connect(proxy.address, Http::One).await;
    assert_eq!(text(kept.get("/").await).await, "ok");
    let second = Arc::new(pontoon_proxy::config::listener::Listener {
        name: "second".into(),
        transparent: false,
        address: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
        chains: arc_swap::ArcSwap::new(proxy.listener.chains.load_full()),
    });
    proxy.listeners.send(vec![second]).unwrap();
    let mut bound = proxy.workers.bound();
    let bound =
        bound.wait_for(|bound| bound.len() == 1 && &*bound[0].name == "second").await.unwrap().clone();
    let mut client = Client::connect(*bound[0].address.as_ref().unwrap(), Http::One).await;
    assert_eq!(text(client.get("/").await).await, "ok");
    let refused = async { while tokio::net::TcpStream::connect(proxy.address).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, refused).await.expect("the first is closed");
}
