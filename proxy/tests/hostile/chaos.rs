//! `chaos.matrix`: what breaks around the proxy, one thing at a time, under load. Whatever it is: nothing panics, no
//! request is answered by another's backend, no cut answer looks whole, and what was lost is what could not be had.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use pontoon_proxy::config::listener::{AccessLog, AccessLogFormat};
use pontoon_proxy::upstream::cluster::{Endpoint, EndpointHealth, EndpointSet};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::fixture::*;

const OPEN: &str = r#"pontoon_downstream_connections{listener="edge"}"#;

/// An answer that stops in its middle, for ever.
fn stuck() -> Body {
    let frames = futures_util::stream::unfold(0, |sent| async move {
        if sent == 4 {
            std::future::pending::<()>().await;
        }
        Some((Ok(Frame::data(bytes::Bytes::from_static(&[b'x'; 1_000]))), sent + 1))
    });
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

/// An upstream that is killed in the middle of its answers: each breaks off for its client too, and none looks whole.
/// The endpoint that is left serves all that comes after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_killed_in_the_middle_of_its_answers() {
    for (front, back) in
        [(Http::One, Http::One), (Http::One, Http::Two), (Http::Two, Http::One), (Http::Two, Http::Two)]
    {
        let upstream = Upstream::answering(back, |_| Response::new(stuck())).await;
        let setup = Setup { protocol: back.upstream(), ..Setup::default() };
        let proxy = Proxy::with(&[upstream.address], setup).await;
        let mut bodies = Vec::new();
        for _ in 0..8 {
            let mut client = Client::connect(proxy.address, front).await;
            let mut body = client.get("/").await.into_body();
            let first =
                tokio::time::timeout(PATIENCE, body.frame()).await.expect("a piece").unwrap().unwrap();
            assert!(first.is_data());
            bodies.push((client, body));
        }
        let left = Upstream::named(back, "left").await;
        proxy.cluster.endpoints.store(endpoints(&[left.address]));
        drop(upstream);
        for (client, body) in bodies {
            let whole = tokio::time::timeout(PATIENCE, body.collect()).await.expect("an end");
            assert!(whole.is_err(), "{front:?} to {back:?}: a cut answer looks whole");
            drop(client);
        }
        let mut client = Client::connect(proxy.address, front).await;
        for _ in 0..20 {
            assert_eq!(text(client.get("/").await).await, "left");
        }
        drop(client);
        until("all connections are back", || proxy.metric(OPEN) == 0).await;
    }
}

/// Endpoints that do not answer at all: one whose packets go nowhere, and one that takes connections and says nothing.
/// The first costs a connect timeout and is left alone then, the second the route's; others are served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blackhole_and_a_half_open_upstream() {
    // A queue of accepted connections that is full: the kernel answers no further SYN.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let hole = socket.listen(1).unwrap();
    let address = hole.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        held.push(stream);
        assert!(held.len() < 64, "the queue is never full");
    }
    let good = Upstream::named(Http::One, "good").await;
    let connect_timeout = Duration::from_millis(300);
    let proxy = Proxy::with(&[address, good.address], Setup { connect_timeout, ..Setup::default() }).await;
    let mut client = Client::connect(proxy.address, Http::One).await;
    for _ in 0..20 {
        assert_eq!(text(client.get("/").await).await, "good");
    }

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let timeout = Duration::from_millis(500);
    let setup =
        Setup { forward: Box::new(move |forward| forward.timeout = Some(timeout)), ..Setup::default() };
    let proxy = Proxy::with(&[silent.local_addr().unwrap()], setup).await;
    for front in [Http::One, Http::Two] {
        let mut client = Client::connect(proxy.address, front).await;
        assert_eq!(client.get("/").await.status(), StatusCode::GATEWAY_TIMEOUT);
    }
    until("all connections are back", || proxy.metric(OPEN) == 0).await;
}

/// A disk that is full takes no line of the access log; requests do not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_access_log() {
    let log = AccessLog { path: "/dev/full".into(), format: AccessLogFormat::Json };
    let upstream = Upstream::named(Http::One, "ok").await;
    let setup = Setup { http: Box::new(move |http| http.access_log = vec![log]), ..Setup::default() };
    let proxy = Proxy::with(&[upstream.address], setup).await;
    for http in [Http::One, Http::Two] {
        let mut client = Client::connect(proxy.address, http).await;
        for _ in 0..200 {
            assert_eq!(text(client.get("/").await).await, "ok");
        }
    }
}

/// Endpoints that come and go as fast as they are told of, ten thousand that cannot be used among them, and none at all
/// in between. Two services: nobody is ever answered by the other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_churn_of_endpoints() {
    let mut services = Vec::new();
    for name in ["a", "b"] {
        let upstream = Upstream::named(Http::One, name).await;
        let proxy = Proxy::start(&[upstream.address]).await;
        services.push((name, upstream, proxy));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = services
        .iter()
        .flat_map(|(name, _, proxy)| (0..4).map(move |_| (*name, proxy.address)))
        .map(|(name, address)| {
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut client = Client::connect(address, Http::Two).await;
                while !stop.load(Ordering::Relaxed) {
                    let response = client.send(Request::get("/").body(empty()).unwrap()).await;
                    let status = response.status();
                    let body = text(response).await;
                    match status {
                        StatusCode::OK => assert_eq!(body, name, "another's answer"),
                        // While there was nobody.
                        StatusCode::SERVICE_UNAVAILABLE => assert!(body.contains("no_healthy"), "{body}"),
                        other => panic!("{other}: {body}"),
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let crowd: Vec<Arc<Endpoint>> = (0..10_000_u32)
        .map(|number| {
            let [_, b, c, d] = number.to_be_bytes();
            let address = SocketAddr::from(([127, 1 + b, c, d], 9));
            Arc::new(Endpoint::new(address, 1, EndpointHealth::Unhealthy))
        })
        .collect();
    for round in 0..200_usize {
        for (_, upstream, proxy) in &services {
            let good = endpoint(upstream.address);
            let set: Vec<Arc<Endpoint>> = match round % 4 {
                0 => crowd.iter().cloned().chain([good]).collect(),
                1 => Vec::new(),
                2 => vec![good],
                _ => crowd.iter().skip(round).cloned().chain([good]).collect(),
            };
            let set = EndpointSet::new(round.to_string().into(), set);
            proxy.cluster.endpoints.store(Arc::new(set));
        }
        let before = answered.load(Ordering::Relaxed);
        until("requests go on", || answered.load(Ordering::Relaxed) > before + 4).await;
    }
    for (_, upstream, proxy) in &services {
        proxy.cluster.endpoints.store(endpoints(&[upstream.address]));
    }
    let now = answered.load(Ordering::Relaxed);
    until("all is well again", || answered.load(Ordering::Relaxed) > now + 100).await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    for (_, _, proxy) in &services {
        until("all connections are back", || proxy.metric(OPEN) == 0).await;
    }
}
