//! Upstreams and clients that fail: what is tried again, what is not, and what each failure is called.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::*;

/// What a scripted upstream does with the next connection.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Reads a request's head, then closes.
    ReadAndClose,
    /// Answers one request and closes at the second, without a word about it.
    AnswerThenDie,
    /// Reads and never answers.
    Silence,
    /// Sends the bytes as its answer.
    Say(&'static str),
    /// And closes.
    SayAndClose(&'static str),
}

/// An upstream of raw bytes; counts the requests it has read.
async fn scripted(act: Act) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                if !read_head(&mut stream).await {
                    return;
                }
                count.fetch_add(1, Ordering::Relaxed);
                match act {
                    Act::ReadAndClose => {}
                    Act::AnswerThenDie => {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                        if read_head(&mut stream).await {
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Act::SayAndClose(bytes) => stream.write_all(bytes.as_bytes()).await.unwrap(),
                    Act::Silence => std::future::pending().await,
                    Act::Say(bytes) => {
                        stream.write_all(bytes.as_bytes()).await.unwrap();
                        // Stays open: what is done with it is the proxy's decision.
                        let _ = stream.read(&mut [0; 1]).await;
                    }
                }
            });
        }
    });
    (address, requests)
}

async fn read_head(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return false,
            Ok(length) => head.extend_from_slice(&chunk[..length]),
        }
    }
    true
}

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn reason(client: &mut Client, request: Request<Body>) -> (StatusCode, String) {
    let response = client.send(request).await;
    let reason = response.headers().get("x-pontoon-reason").map(|v| v.to_str().unwrap().to_owned());
    let status = response.status();
    // A body that is dropped unread costs the client its connection.
    text(response).await;
    (status, reason.unwrap_or_default())
}

fn get() -> Request<Body> {
    Request::get("/").body(empty()).unwrap()
}

fn post() -> Request<Body> {
    Request::post("/").body(full("pay once")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connect_is_tried_elsewhere_and_the_endpoint_is_left_alone_for_a_while() {
    for protocol in [Http::One, Http::Two] {
        let upstream = Upstream::named(protocol, "ok").await;
        let setup = Setup { protocol: protocol.upstream(), ..Setup::default() };
        let proxy = Proxy::with(&[nobody().await, upstream.address], setup).await;
        let mut client = Client::connect(proxy.address, Http::One).await;
        for number in 0..40 {
            let request = if number % 2 == 0 { get() } else { post() };
            assert_eq!(reason(&mut client, request).await.0, 200);
        }
        let retries = proxy.metric(r#"pontoon_upstream_retries_total{cluster="pool/default/shop"}"#);
        assert!((1..=4).contains(&retries), "{retries}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_dies_before_the_answer_is_tried_again_for_get_only() {
    let (dying, seen) = scripted(Act::ReadAndClose).await;
    let upstream = Upstream::named(Http::One, "ok").await;
    let proxy = Proxy::start(&[dying, upstream.address]).await;
    let mut client = Client::connect(proxy.address, Http::One).await;
    for _ in 0..10 {
        assert_eq!(reason(&mut client, get()).await.0, 200);
    }
    assert_eq!(upstream.requests(), 10);
    let before = seen.load(Ordering::Relaxed) + upstream.requests();
    let mut failed = 0;
    for _ in 0..10 {
        let (status, reason) = reason(&mut client, post()).await;
        if status != 200 {
            assert_eq!((status.as_u16(), reason.as_str()), (502, "upstream_reset"));
            failed += 1;
        }
    }
    assert_eq!(seen.load(Ordering::Relaxed) + upstream.requests(), before + 10, "no POST twice");
    assert!((4..=6).contains(&failed), "{failed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reused_connection_that_dies_costs_no_get() {
    let (dying, _) = scripted(Act::AnswerThenDie).await;
    let proxy = Proxy::start(&[dying]).await;
    let mut client = Client::connect(proxy.address, Http::One).await;
    for _ in 0..10 {
        assert_eq!(text(client.send(get()).await).await, "ok");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_told_apart() {
    let short = || Setup {
        forward: Box::new(|forward| forward.timeout = Some(Duration::from_millis(200))),
        ..Setup::default()
    };
    let (silent, _) = scripted(Act::Silence).await;
    let (closing, _) = scripted(Act::ReadAndClose).await;
    let (babbling, _) = scripted(Act::Say("SSH-2.0-OpenSSH_9.2\r\n\r\n")).await;
    let (switching, _) =
        scripted(Act::Say("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"))
            .await;
    let per_try = || Setup {
        forward: Box::new(|forward| forward.retry.per_try_timeout = Some(Duration::from_millis(100))),
        ..Setup::default()
    };
    for (upstream, setup, expected) in [
        (nobody().await, Setup::default(), (503, "connect_failure")),
        (silent, short(), (504, "upstream_timeout")),
        (silent, per_try(), (504, "per_try_timeout")),
        (closing, Setup::default(), (502, "upstream_reset")),
        (babbling, Setup::default(), (502, "upstream_protocol")),
        (switching, Setup::default(), (502, "upstream_protocol")),
    ] {
        let proxy = Proxy::with(&[upstream], setup).await;
        let mut client = Client::connect(proxy.address, Http::One).await;
        let (status, reason) = reason(&mut client, post()).await;
        assert_eq!((status.as_u16(), reason.as_str()), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_configured_is_told_apart() {
    let proxy = Proxy::start(&[]).await;
    proxy.cluster.settings.store(None);
    let mut client = Client::connect(proxy.address, Http::One).await;
    assert_eq!(reason(&mut client, get()).await, (StatusCode::SERVICE_UNAVAILABLE, "no_cluster".into()));
    proxy.listener.route_handles()[0].table.store(None);
    assert_eq!(reason(&mut client, get()).await.1, "no_route_configuration");
}

/// Answers that two readers could read differently: refused, and their connection never used again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_response_framing() {
    for (bytes, expected) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc", 502),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 200),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            502,
        ),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc", 502),
        ("HTTP/1.1 204 No Content\r\ncontent-length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n\r\n", 502),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
            200,
        ),
    ] {
        let (upstream, seen) = scripted(Act::Say(bytes)).await;
        let proxy = Proxy::start(&[upstream]).await;
        for number in 1..=2 {
            let (answer, _) =
                raw(proxy.address, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            // A body that breaks at once may take the head with it.
            let cut = answer.is_empty() && bytes.ends_with("zz\r\n");
            assert!(cut || answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{bytes:?}: {answer}");
            assert!(!answer.contains("evil"), "{answer}");
            assert!(seen.load(Ordering::Relaxed) >= number, "{bytes:?}: a connection was used again");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_headers() {
    let upstream = Upstream::echo(Http::One).await;
    let setup = || Setup {
        http: Box::new(|http| http.timeouts.request_headers = Duration::from_millis(700)),
        ..Setup::default()
    };
    let proxy = Proxy::with(&[upstream.address], setup()).await;
    for start in [
        "G",
        "PRI * HT",
        "GET / HTTP/1.1\r\nHost: a\r\nX-Slow",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /again HTT",
    ] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
        read.expect("closed in time").unwrap();
        let last = answer.rfind("HTTP/1.1 ").unwrap_or_else(|| panic!("{start:?}: no answer"));
        assert!(answer[last..].starts_with("HTTP/1.1 408 "), "{start:?}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_limit_is_413_also_when_its_length_is_not_told() {
    for back in [Http::One, Http::Two] {
        let upstream = Upstream::echo(back).await;
        let setup = Setup {
            protocol: back.upstream(),
            http: Box::new(|http| http.limits.max_body_bytes = 1000),
            ..Setup::default()
        };
        let proxy = Proxy::with(&[upstream.address], setup).await;
        let chunk = format!("3e8\r\n{}\r\n", "x".repeat(1000));
        let ok = format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n");
        assert!(raw(proxy.address, ok.as_bytes()).await.0.starts_with("HTTP/1.1 200 "));
        let over = format!(
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"
        );
        let (answer, _) = raw(proxy.address, over.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert_eq!(upstream.requests(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_is_noted_and_its_upstream_let_go() {
    let (silent, seen) = scripted(Act::Silence).await;
    let proxy = Proxy::start(&[silent]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    until("the request upstream", || seen.load(Ordering::Relaxed) == 1).await;
    let endpoint = Arc::clone(&proxy.cluster.endpoints.load().endpoints[0]);
    assert_eq!(endpoint.active.load(Ordering::Relaxed), 1);
    drop(stream);
    until("the endpoint is free", || endpoint.active.load(Ordering::Relaxed) == 0).await;
    let series =
        r#"pontoon_downstream_requests_total{listener="edge",class="none",flag="DC",reason="client_gone"}"#;
    until("the metric", || proxy.metric(series) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_progress_ends() {
    let (stalling, _) = scripted(Act::Say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")).await;
    let setup = Setup {
        forward: Box::new(|forward| forward.idle_timeout = Some(Duration::from_millis(50))),
        ..Setup::default()
    };
    let proxy = Proxy::with(&[stalling], setup).await;
    let (answer, closed) = raw(proxy.address, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(answer.ends_with("half"), "{answer}");
    let series = r#"pontoon_downstream_requests_total{listener="edge",class="2xx",flag="SI",reason="stream_idle_timeout"}"#;
    until("the metric", || proxy.metric(series) == 1).await;
    let _ = closed;
}

on_all_protocols! {
    /// Where a route has no idle time, or its listener and so no route: the latter is how a sidecar passes on.
    async fn a_long_poll_outlasts_every_idle_time_but_its_own(front, back) {
        let service = |_| async {
            // Some ticks of a connection's clock longer than the listener allows.
            tokio::time::sleep(Duration::from_millis(1_300)).await;
            Ok(Response::new(full("late")))
        };
        let late = Upstream::serving(back, Arc::default(), service).await;
        for of_route in [true, false] {
            let short = Some(Duration::from_millis(50));
            let setup = Setup {
                protocol: back.upstream(),
                http: Box::new(move |http| http.timeouts.stream_idle = short.filter(|_| of_route)),
                forward: Box::new(move |forward| {
                    forward.idle_timeout = of_route.then_some(Duration::ZERO);
                }),
                ..Setup::default()
            };
            let proxy = Proxy::with(&[late.address], setup).await;
            let mut client = Client::connect(proxy.address, front).await;
            assert_eq!(text(client.get("/").await).await, "late");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_before_its_body_is_asked_for_elsewhere() {
    let (breaking, seen) = scripted(Act::SayAndClose("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")).await;
    let upstream = Upstream::named(Http::One, "ok").await;
    let proxy = Proxy::start(&[breaking, upstream.address]).await;
    let mut client = Client::connect(proxy.address, Http::One).await;
    for _ in 0..20 {
        let response = client.get("/").await;
        assert_eq!(text(response).await, "ok");
    }
    assert!(seen.load(Ordering::Relaxed) > 0);
}

/// Two instances under load, of which one is killed: its connections break in the middle of whatever they do.
async fn killed_under_load(back: Http) {
    let kept = Upstream::named(back, "ok").await;
    let killed = Upstream::named(back, "ok").await;
    let setup = Setup { protocol: back.upstream(), ..Setup::default() };
    let proxy = Proxy::with(&[kept.address, killed.address], setup).await;
    let (answered, stop) = (Arc::new(AtomicUsize::new(0)), tokio::sync::watch::channel(false));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (answered, stop, address) = (Arc::clone(&answered), stop.1.clone(), proxy.address);
            tokio::spawn(async move {
                let mut client = Client::connect(address, Http::One).await;
                let mut failures = Vec::new();
                while !*stop.borrow() {
                    let response = client.send(get()).await;
                    let status = response.status();
                    let body = text(response).await;
                    if (status, &*body) != (StatusCode::OK, "ok") {
                        failures.push((status, body));
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                failures
            })
        })
        .collect();
    until("load", || answered.load(Ordering::Relaxed) > 300).await;
    drop(killed);
    let at_kill = answered.load(Ordering::Relaxed);
    until("load after the kill", || answered.load(Ordering::Relaxed) > at_kill + 500).await;
    stop.0.send(true).unwrap();
    for client in clients {
        assert_eq!(client.await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_killed_under_load_costs_no_get_h1() {
    killed_under_load(Http::One).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_killed_under_load_costs_no_get_h2() {
    killed_under_load(Http::Two).await;
}
