//! What bounds a request, its exchange and its connection in time and number, where a listener says so.

use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use pontoon_proxy::config::listener::HttpSettings;
use pontoon_proxy::overload::{Admission, BodyRate, Limits};
use pontoon_proxy::upstream::cluster::{ConnectionLimits, UpstreamProtocol};
use pontoon_proxy::worker::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::fixture::*;

const SHORT: Duration = Duration::from_millis(300);

fn listening(change: impl FnOnce(&mut HttpSettings) + 'static) -> Setup {
    Setup { http: Box::new(change), ..Setup::default() }
}

/// A body that has begun and does not go on.
fn unending() -> Body {
    let (sender, frames) = tokio::sync::mpsc::channel::<Result<Frame<bytes::Bytes>, std::io::Error>>(1);
    sender.try_send(Ok(Frame::data("begun".into()))).unwrap();
    let frames = futures_util::stream::unfold((frames, sender), |(mut frames, sender)| async {
        frames.recv().await.map(|frame| (frame, (frames, sender)))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn reason(response: &Response<hyper::body::Incoming>) -> &str {
    response.headers().get("x-pontoon-reason").map_or("", |reason| reason.to_str().unwrap())
}

on_all_protocols! {
    async fn a_request_that_does_not_come_whole_is_answered_408(front, back) {
        let upstream = Upstream::echo(back).await;
        let setup = listening(|http| http.timeouts.request = Some(SHORT));
        let proxy = Proxy::with(&[upstream.address], Setup { protocol: back.upstream(), ..setup }).await;
        let mut client = Client::connect(proxy.address, front).await;
        let response = client.send(Request::post("/").body(unending()).unwrap()).await;
        assert_eq!((response.status(), reason(&response)), (StatusCode::REQUEST_TIMEOUT, "request_timeout"));
        let mut client = Client::connect(proxy.address, front).await;
        let response = client.send(Request::post("/").body(full("whole")).unwrap()).await;
        assert_eq!(text(response).await, "whole");
    }

    async fn an_answer_that_has_begun_ends_the_request_timeout(front, back) {
        let upstream = Upstream::serving(back, Default::default(), |_| async {
            Ok(Response::new(StreamBody::new(futures_util::stream::once(async {
                tokio::time::sleep(2 * SHORT).await;
                Ok::<_, std::io::Error>(Frame::data("late".into()))
            })).boxed_unsync()))
        }).await;
        let setup = listening(|http| http.timeouts.request = Some(SHORT));
        let proxy = Proxy::with(&[upstream.address], Setup { protocol: back.upstream(), ..setup }).await;
        let mut client = Client::connect(proxy.address, front).await;
        let response = client.send(Request::post("/").body(unending()).unwrap()).await;
        assert_eq!(text(response).await, "late");
    }

    async fn an_exchange_ends_with_its_longest_duration_and_a_route_says_otherwise(front, back) {
        let upstream = Upstream::serving(back, Default::default(), |_| async {
            tokio::time::sleep(2 * SHORT).await;
            Ok(Response::new(full("late")))
        }).await;
        for (route, status) in [(None, 408), (Some(Duration::ZERO), 200), (Some(10 * SHORT), 200)] {
            let setup = Setup {
                protocol: back.upstream(),
                forward: Box::new(move |forward| forward.longest_stream = route),
                ..listening(|http| http.timeouts.longest_stream = Some(SHORT))
            };
            let proxy = Proxy::with(&[upstream.address], setup).await;
            let mut client = Client::connect(proxy.address, front).await;
            let response = client.get("/").await;
            assert_eq!(response.status().as_u16(), status, "{route:?}");
            let grpc = Request::post("/").header("content-type", "application/grpc").body(empty()).unwrap();
            let response = client.send(grpc).await;
            let code = if status == 408 { Some("4") } else { None };
            assert_eq!(response.headers().get("grpc-status").map(|code| code.to_str().unwrap()), code);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_ends_with_its_longest_duration() {
    let (upstream, _asked) = crate::tunnels::echo(Http::One).await;
    let proxy = Proxy::with(&[upstream], listening(|http| http.timeouts.longest_stream = Some(SHORT))).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let ask = "GET / HTTP/1.1\r\nhost: shop.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let begun = Instant::now();
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("an end");
    assert!(all.starts_with(b"HTTP/1.1 101"), "{read:?} {}", String::from_utf8_lossy(&all));
    assert!(begun.elapsed() >= SHORT);
    until("it is counted", || proxy.metrics().contains(r#"reason="max_stream_duration"} 1"#)).await;
}

/// The answers to requests one after the other, until the proxy closes; whether each said that it would.
async fn until_closed(stream: &mut TcpStream, mut pause: Duration, most: usize) -> Vec<bool> {
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while said.len() < most {
        if stream.write_all(b"GET / HTTP/1.1\r\nhost: shop.test\r\n\r\n").await.is_err() {
            break;
        }
        match tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.expect("an answer or an end") {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                let answer = String::from_utf8_lossy(&buffer[..length]).to_lowercase();
                assert!(answer.starts_with("http/1.1 200"), "{answer}");
                said.push(answer.contains("connection: close"));
            }
        }
        tokio::time::sleep(std::mem::take(&mut pause)).await;
    }
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http1_connection_ends_with_its_last_request() {
    let upstream = Upstream::named(Http::One, "ok").await;
    let proxy = Proxy::with(&[upstream.address], listening(|http| http.limits.max_requests = 3)).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    assert_eq!(until_closed(&mut stream, Duration::ZERO, 9).await, [false, false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_connection_ends_with_its_last_request() {
    let upstream = Upstream::named(Http::One, "ok").await;
    let proxy = Proxy::with(&[upstream.address], listening(|http| http.limits.max_requests = 3)).await;
    let mut client = Client::connect(proxy.address, Http::Two).await;
    let mut answered = 0;
    while let Ok(response) = client.try_send(Request::get("/").body(empty()).unwrap()).await {
        assert_eq!(text(response).await, "ok", "what was taken is answered");
        answered += 1;
        assert!(answered < 50, "GOAWAY never came");
    }
    assert!(answered >= 3);
    until("it is closed", || proxy.metric("pontoon_downstream_connections{listener=\"edge\"}") == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http1_connection_is_told_that_it_is_old_and_closed_if_it_does_not_ask() {
    let upstream = Upstream::named(Http::One, "ok").await;
    let setup = listening(|http| {
        http.timeouts.longest_connection = Some(SHORT);
        http.timeouts.drain = SHORT;
    });
    let proxy = Proxy::with(&[upstream.address], setup).await;
    let (mut busy, mut idle) =
        (TcpStream::connect(proxy.address).await.unwrap(), TcpStream::connect(proxy.address).await.unwrap());
    assert_eq!(until_closed(&mut busy, SHORT, 9).await, [false, true]);
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, idle.read_to_end(&mut rest))
        .await
        .expect("closed without a request")
        .unwrap();
    assert!(rest.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_http1_connection_ends_with_an_answer_alone_where_that_is_asked() {
    let upstream = Upstream::named(Http::One, "ok").await;
    let setup = listening(|http| {
        http.timeouts.longest_connection = Some(SHORT);
        http.timeouts.drain = SHORT;
        http.timeouts.end_with_answer = true;
    });
    let proxy = Proxy::with(&[upstream.address], setup).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    assert_eq!(until_closed(&mut stream, 5 * SHORT, 9).await, [false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_http2_connection_finishes_what_it_has() {
    let upstream = Upstream::serving(Http::One, Default::default(), |_| async {
        tokio::time::sleep(4 * SHORT).await;
        Ok(Response::new(full("late")))
    })
    .await;
    let proxy =
        Proxy::with(&[upstream.address], listening(|http| http.timeouts.longest_connection = Some(SHORT)))
            .await;
    let mut client = Client::connect(proxy.address, Http::Two).await;
    assert_eq!(text(client.get("/").await).await, "late");
    until("it is closed", || proxy.metric("pontoon_downstream_connections{listener=\"edge\"}") == 0).await;
}

/// A body of so many pieces, each after a pause.
fn dripping(piece: &'static [u8], pieces: usize, pause: Duration) -> Body {
    let frames = futures_util::stream::unfold(0, move |sent| async move {
        tokio::time::sleep(pause).await;
        (sent < pieces).then(|| (Ok::<_, std::io::Error>(Frame::data(piece.into())), sent + 1))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn minded() -> Setup {
    let setup = Setup::default();
    let body_rate = BodyRate { bytes_per_second: 500, grace: SHORT };
    let admission = Admission::new(Limits { body_rate, ..Limits::default() });
    Setup { options: Options { admission, ..setup.options }, ..setup }
}

on_all_protocols! {
    async fn a_body_drop_by_drop_ends(front, back) {
        let upstream = Upstream::echo(back).await;
        let proxy = Proxy::with(&[upstream.address], Setup { protocol: back.upstream(), ..minded() }).await;
        let drop = SHORT / 10;
        let mut client = Client::connect(proxy.address, front).await;
        let response = client.send(Request::post("/").body(dripping(b"x", 1_000, drop)).unwrap()).await;
        assert_eq!((response.status(), reason(&response)), (StatusCode::REQUEST_TIMEOUT, "slow_body"));
        let mut client = Client::connect(proxy.address, front).await;
        let large = vec![b'x'; 1 << 20];
        let response = client.send(Request::post("/").body(full(large)).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_does_not_read_is_not_the_clients_fault() {
    let upstream = Upstream::serving(Http::One, Default::default(), |request| async {
        tokio::time::sleep(4 * SHORT).await;
        let length = request.into_body().collect().await?.to_bytes().len();
        Ok(Response::new(full(length.to_string())))
    })
    .await;
    let proxy = Proxy::with(&[upstream.address], minded()).await;
    let mut client = Client::connect(proxy.address, Http::One).await;
    // More than the sockets between hold.
    let large = vec![b'x'; 32 << 20];
    let response = client.send(Request::post("/").body(full(large)).unwrap()).await;
    assert_eq!(text(response).await, (32 << 20).to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_may_send_as_slowly_as_it_likes() {
    let upstream = Upstream::echo(Http::One).await;
    let own = Setup { http: Box::new(|http| http.forwarded.use_remote_address = false), ..minded() };
    let proxy = Proxy::with(&[upstream.address], own).await;
    let mut client = Client::connect(proxy.address, Http::One).await;
    let response = client.send(Request::post("/").body(dripping(b"x", 40, SHORT / 10)).unwrap()).await;
    assert_eq!(text(response).await.len(), 40);
}

/// Whoever streams sends a message when there is one; but a message that has begun is to come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_message_drop_by_drop_ends_and_a_slow_stream_does_not() {
    const MESSAGE: &[u8] = &[0, 0, 0, 0, 1, b'x'];
    // One that is never done.
    const PART: &[u8] = &[1; 1];
    let drop = SHORT / 10;
    let upstream = Upstream::echo(Http::Two).await;
    let setup = Setup { protocol: UpstreamProtocol::Http2, ..minded() };
    let proxy = Proxy::with(&[upstream.address], setup).await;
    for (content_type, piece, passes) in [
        ("application/grpc", MESSAGE, true),
        ("application/grpc+proto", PART, false),
        ("application/grpc-web+proto", MESSAGE, false),
        ("application/json", MESSAGE, false),
    ] {
        let mut client = Client::connect(proxy.address, Http::Two).await;
        let pieces = if passes { 40 } else { 1_000 };
        let request = Request::post("/").header("content-type", content_type);
        let response = client.send(request.body(dripping(piece, pieces, drop)).unwrap()).await;
        assert_eq!(reason(&response), if passes { "" } else { "slow_body" }, "{content_type}");
        if passes {
            assert_eq!(text(response).await.len(), MESSAGE.len() * pieces);
        }
    }
}

/// What upstream connections a sequence of requests takes.
async fn upstream_connections(back: Http, connections: ConnectionLimits, pause: Duration) -> usize {
    let upstream = Upstream::named(back, "ok").await;
    let setup = Setup { protocol: back.upstream(), connections, ..Setup::default() };
    let proxy = Proxy::with(&[upstream.address], setup).await;
    let mut client = Client::connect(proxy.address, Http::One).await;
    for _ in 0..6 {
        assert_eq!(text(client.get("/").await).await, "ok");
        tokio::time::sleep(pause).await;
    }
    upstream.connections.load(std::sync::atomic::Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_connection_is_used_for_so_many_requests_and_so_long() {
    for back in [Http::One, Http::Two] {
        let limits = ConnectionLimits::default();
        assert_eq!(upstream_connections(back, limits, Duration::ZERO).await, 1, "{back:?}");
        let two = ConnectionLimits { requests: 2, ..limits };
        assert_eq!(upstream_connections(back, two, Duration::ZERO).await, 3, "{back:?}");
        let short = ConnectionLimits { longest: Some(Duration::from_millis(1)), ..limits };
        assert_eq!(upstream_connections(back, short, Duration::from_millis(5)).await, 6, "{back:?}");
    }
}
