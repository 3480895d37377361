//! What a cluster may hold at a time, and what becomes of more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Response, StatusCode};
use pontoon_proxy::resilience::breakers::{Breaker, Breakers, Load, Thresholds};
use pontoon_proxy::upstream::cluster::ConnectionLimits;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::fixture::*;

/// A proxy whose cluster has these thresholds, before an upstream that answers when it is told.
struct Held {
    proxy: Proxy,
    load: Arc<Load>,
    upstream: Upstream,
    go: watch::Sender<bool>,
    front: Http,
}

impl Held {
    async fn behind(front: Http, back: Http, thresholds: Thresholds) -> Held {
        let (go, gate) = watch::channel(false);
        let upstream = Upstream::serving(back, Arc::default(), move |_| {
            let mut gate = gate.clone();
            async move {
                gate.wait_for(|go| *go).await.unwrap();
                Ok(Response::new(full("late")))
            }
        })
        .await;
        let load = Arc::new(Load::default());
        let breaker = Breaker { thresholds, load: Arc::clone(&load) };
        let setup = Setup {
            protocol: back.upstream(),
            breakers: Breakers { default: Some(Arc::new(breaker)), high: None },
            ..Setup::default()
        };
        let proxy = Proxy::with(&[upstream.address], setup).await;
        Held { proxy, load, upstream, go, front }
    }

    /// A request on a connection of its own.
    fn ask(&self) -> JoinHandle<(StatusCode, String)> {
        let (address, front) = (self.proxy.address, self.front);
        tokio::spawn(async move {
            let response = Client::connect(address, front).await.get("/").await;
            (response.status(), text(response).await)
        })
    }

    async fn until_in_flight(&self, requests: u32) {
        until("requests in flight", || self.load.requests.load(Ordering::Relaxed) == requests).await;
    }

    fn metric(&self) -> bool {
        self.proxy.metrics().contains(r#"class="5xx",flag="UO",reason="upstream_overflow"} 1"#)
    }
}

const LATE: (StatusCode, &str) = (StatusCode::OK, "late");

fn same(answer: (StatusCode, String), (status, body): (StatusCode, &str)) {
    assert_eq!((answer.0, answer.1.as_str()), (status, body));
}

on_all_protocols! {
    async fn more_requests_than_allowed_are_refused(front, back) {
        let held = Held::behind(front, back, Thresholds { requests: 2, ..Thresholds::default() }).await;
        let (one, two) = (held.ask(), held.ask());
        held.until_in_flight(2).await;
        let (status, body) = held.ask().await.unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.starts_with("upstream_overflow"), "{body}");
        held.go.send(true).unwrap();
        same(one.await.unwrap(), LATE);
        same(two.await.unwrap(), LATE);
        held.until_in_flight(0).await;
        same(held.ask().await.unwrap(), LATE);
        assert!(held.metric(), "{}", held.proxy.metrics());
    }
}

async fn waits_for_a_connection(front: Http) {
    let thresholds = Thresholds { connections: 1, pending: 1, ..Thresholds::default() };
    let held = Held::behind(front, Http::One, thresholds).await;
    let one = held.ask();
    held.until_in_flight(1).await;
    let two = held.ask();
    until("a request that waits", || held.load.pending.load(Ordering::Relaxed) == 1).await;
    assert_eq!(held.ask().await.unwrap().0, StatusCode::SERVICE_UNAVAILABLE);
    held.go.send(true).unwrap();
    same(one.await.unwrap(), LATE);
    same(two.await.unwrap(), LATE);
    assert_eq!(held.upstream.connections.load(Ordering::Relaxed), 1);
    assert_eq!(held.load.pending.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_waits_for_a_connection_where_no_more_may_be_made() {
    waits_for_a_connection(Http::One).await;
    waits_for_a_connection(Http::Two).await;
}

/// A connection that has carried all that it may makes way at once, and the next one serves all who wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_connection_serves_as_many_as_it_has_room_for() {
    const ROOM: usize = 10;
    let gate = Arc::new(Semaphore::new(0));
    let arrived = Arc::new(AtomicUsize::new(0));
    let at_gate = (Arc::clone(&gate), Arc::clone(&arrived));
    let upstream = Upstream::serving(Http::Two, Arc::default(), move |_| {
        let (gate, arrived) = at_gate.clone();
        async move {
            arrived.fetch_add(1, Ordering::Relaxed);
            gate.acquire().await.unwrap().forget();
            Ok(Response::new(full("late")))
        }
    })
    .await;
    let thresholds = Thresholds { connections: 1, ..Thresholds::default() };
    let breaker = Breaker { thresholds, load: Arc::default() };
    let setup = Setup {
        protocol: Http::Two.upstream(),
        connections: ConnectionLimits { requests: ROOM as u32, ..ConnectionLimits::default() },
        breakers: Breakers { default: Some(Arc::new(breaker)), high: None },
        ..Setup::default()
    };
    let proxy = Proxy::with(&[upstream.address], setup).await;
    let asked: Vec<_> = (0..2 * ROOM)
        .map(|_| {
            let address = proxy.address;
            tokio::spawn(async move { Client::connect(address, Http::Two).await.get("/").await.status() })
        })
        .collect();
    for round in 1..=2 {
        until("a full connection", || arrived.load(Ordering::Relaxed) == round * ROOM).await;
        gate.add_permits(ROOM);
    }
    for status in asked {
        assert_eq!(status.await.unwrap(), StatusCode::OK);
    }
    assert_eq!(upstream.connections.load(Ordering::Relaxed), 2);
}

/// One that gives up while it waits leaves its place, and the next in line is not forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_waiting_leaves_its_place() {
    let thresholds = Thresholds { connections: 1, pending: 2, ..Thresholds::default() };
    let held = Held::behind(Http::One, Http::One, thresholds).await;
    let one = held.ask();
    held.until_in_flight(1).await;
    let gone = held.ask();
    let pending = |count| move |load: &Load| load.pending.load(Ordering::Relaxed) == count;
    until("the first that waits", || pending(1)(&held.load)).await;
    let two = held.ask();
    until("the second", || pending(2)(&held.load)).await;
    gone.abort();
    until("the first to have gone", || pending(1)(&held.load)).await;
    held.go.send(true).unwrap();
    same(one.await.unwrap(), LATE);
    same(two.await.unwrap(), LATE);
}

/// Connections that close make room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_counts_until_it_is_closed() {
    let load = Arc::new(Load::default());
    let breaker = Breaker { thresholds: Thresholds::default(), load: Arc::clone(&load) };
    let setup = Setup {
        idle_timeout: Duration::from_millis(1),
        breakers: Breakers { default: Some(Arc::new(breaker)), high: None },
        ..Setup::default()
    };
    let upstream = Upstream::named(Http::One, "served").await;
    let proxy = Proxy::with(&[upstream.address], setup).await;
    let response = Client::connect(proxy.address, Http::One).await.get("/").await;
    same((response.status(), text(response).await), (StatusCode::OK, "served"));
    until("the idle connection to go", || load.connections.load(Ordering::Relaxed) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_are_counted_too() {
    for (retries, status) in [(0, StatusCode::SERVICE_UNAVAILABLE), (1, StatusCode::OK)] {
        let load = Arc::new(Load::default());
        let breaker = Breaker { thresholds: Thresholds { retries, ..Thresholds::default() }, load };
        let setup =
            Setup { breakers: Breakers { default: Some(Arc::new(breaker)), high: None }, ..Setup::default() };
        let upstream = Upstream::named(Http::One, "served").await;
        let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let proxy = Proxy::with(&[dead, upstream.address], setup).await;
        let mut worst = StatusCode::OK;
        for _ in 0..2 {
            worst = worst.max(Client::connect(proxy.address, Http::One).await.get("/").await.status());
        }
        assert_eq!(worst, status, "{retries} retries");
    }
}
