//! What every request needs, on each pair of protocols: one macro, four tests a feature.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use crate::fixture::*;

async fn proxy_to(upstream: &Upstream, back: Http) -> Proxy {
    Proxy::with(&[upstream.address], Setup { protocol: back.upstream(), ..Setup::default() }).await
}

on_all_protocols! {
    async fn a_request_and_its_answer_pass(front, back) {
        let upstream = Upstream::echo(back).await;
        let proxy = proxy_to(&upstream, back).await;
        let mut client = Client::connect(proxy.address, front).await;
        let request = Request::post("/a/../b?c=d").header("x-own", "1").body(full("hello")).unwrap();
        let response = client.send(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(text(response).await, "hello");
        let seen = upstream.last();
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/b?c=d"));
        assert_eq!(seen.headers["x-own"], "1");
        assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(seen.headers["x-forwarded-proto"], "http");
        assert_eq!(seen.headers["x-forwarded-host"], "shop.test");
        assert_eq!(seen.headers["x-request-id"].len(), 36);
    }

    async fn connections_are_reused(front, back) {
        let upstream = Upstream::echo(back).await;
        let proxy = proxy_to(&upstream, back).await;
        let mut client = Client::connect(proxy.address, front).await;
        for _ in 0..20 {
            assert_eq!(text(client.send(Request::post("/").body(full("x")).unwrap()).await).await, "x");
        }
        assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    async fn answers_without_a_body_keep_their_framing(front, back) {
        let upstream = Upstream::answering(back, |seen| {
            let status: u16 = seen.target[1..].parse().unwrap();
            let response = Response::builder().status(status);
            if seen.method == "HEAD" {
                response.header("content-length", "5").body(empty()).unwrap()
            } else {
                response.body(empty()).unwrap()
            }
        })
        .await;
        let proxy = proxy_to(&upstream, back).await;
        let mut client = Client::connect(proxy.address, front).await;
        for status in [204, 304, 200] {
            let response = client.get(&format!("/{status}")).await;
            assert_eq!(response.status(), status);
            assert_eq!(text(response).await, "");
            let response = client.send(Request::head("/200").body(empty()).unwrap()).await;
            assert_eq!(response.headers()["content-length"], "5");
            assert_eq!(text(response).await, "");
        }
    }

    async fn trailers_pass_both_ways(front, back) {
        let trailers = || HeaderMap::from_iter([("x-sum".parse().unwrap(), "7".parse().unwrap())]);
        let upstream = Upstream::answering(back, move |_| {
            let frames = vec![Ok(Frame::data(Bytes::from("body"))), Ok(Frame::trailers(trailers()))];
            let body = StreamBody::new(futures_util::stream::iter(frames));
            Response::builder().header("trailer", "x-sum").body(BodyExt::boxed_unsync(body)).unwrap()
        })
        .await;
        let proxy = proxy_to(&upstream, back).await;
        let mut client = Client::connect(proxy.address, front).await;
        let frames = vec![Ok(Frame::data(Bytes::from("sent"))), Ok(Frame::trailers(trailers()))];
        let body = BodyExt::boxed_unsync(StreamBody::new(futures_util::stream::iter(frames)));
        let request = Request::post("/").header("te", "trailers").header("trailer", "x-sum").body(body).unwrap();
        let collected = client.send(request).await.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers()));
        assert_eq!(collected.to_bytes(), "body");
        let seen = upstream.last();
        assert_eq!(seen.body, "sent");
        assert_eq!(seen.trailers, Some(trailers()));
    }

    async fn an_endpoint_swap_leaves_what_is_in_flight(front, back) {
        let (go, gate) = tokio::sync::watch::channel(false);
        let old = Upstream::serving(back, Default::default(), move |_| {
            let mut gate = gate.clone();
            async move {
                gate.wait_for(|go| *go).await.unwrap();
                Ok(Response::new(full("old")))
            }
        })
        .await;
        let new = Upstream::named(back, "new").await;
        let proxy = proxy_to(&old, back).await;
        let mut first = Client::connect(proxy.address, front).await;
        let waiting = tokio::spawn(async move { text(first.get("/").await).await });
        until("the request in flight", || old.connections.load(std::sync::atomic::Ordering::Relaxed) == 1).await;
        proxy.cluster.endpoints.store(endpoints(&[new.address]));
        let mut second = Client::connect(proxy.address, front).await;
        assert_eq!(text(second.get("/").await).await, "new");
        go.send(true).unwrap();
        assert_eq!(waiting.await.unwrap(), "old");
    }

    async fn our_own_answers_name_their_reason(front, back) {
        let upstream = Upstream::echo(back).await;
        let proxy = proxy_to(&upstream, back).await;
        proxy.cluster.endpoints.store(endpoints(&[]));
        let mut client = Client::connect(proxy.address, front).await;
        let response = client.get("/").await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["x-pontoon-reason"], "no_healthy_upstream");
        assert!(text(response).await.starts_with("no_healthy_upstream: "));
        until("the metric", || proxy.metric(
            r#"pontoon_downstream_requests_total{listener="edge",class="5xx",flag="UH",reason="no_healthy_upstream"}"#,
        ) == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_after_an_empty_body_pass() {
    let trailers = || HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    let upstream = Upstream::answering(Http::Two, move |_| {
        let frames = vec![Ok(Frame::trailers(trailers()))];
        let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
        Response::builder().header("content-length", "0").body(body).unwrap()
    })
    .await;
    let setup = Setup { protocol: Http::Two.upstream(), ..Setup::default() };
    let proxy = Proxy::with(&[upstream.address], setup).await;
    let response = Client::connect(proxy.address, Http::Two).await.get("/").await;
    assert_eq!(response.status(), 200);
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers(), Some(&trailers()));
}

/// More streams than a server takes on one connection go by another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_servers_with_few_streams_get_more_connections() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let held = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&held);
    let serving = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (gate, counted) = (gate.clone(), std::sync::Arc::clone(&counted));
            let service = hyper::service::service_fn(move |_| {
                let mut gate = gate.clone();
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                async move {
                    gate.wait_for(|go| *go).await.unwrap();
                    Ok::<_, std::convert::Infallible>(Response::new(full("done")))
                }
            });
            connections.spawn(async move {
                let mut builder =
                    hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                builder.max_concurrent_streams(2);
                drop(builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await);
            });
        }
    });
    let proxy = Proxy::with(&[address], Setup { protocol: Http::Two.upstream(), ..Setup::default() }).await;
    let mut waiting = tokio::task::JoinSet::new();
    for number in 1..=5 {
        let mut client = Client::connect(proxy.address, Http::One).await;
        waiting.spawn(async move { text(client.get("/").await).await });
        until("it is with the server", || held.load(std::sync::atomic::Ordering::Relaxed) == number).await;
    }
    go.send(true).unwrap();
    assert_eq!(waiting.join_all().await, ["done"; 5]);
    serving.abort();
}

/// A connection on which a request was not answered may be sick: others go before it from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2_connections_that_do_not_answer_are_taken_last() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (hung, mut hangs) = tokio::sync::watch::channel(false);
    let serving = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let hung = hung.clone();
            let service = hyper::service::service_fn(move |request: http::Request<_>| {
                let _: &hyper::body::Incoming = request.body();
                let hung = hung.clone();
                async move {
                    if request.uri().path() == "/hang" {
                        hung.send_replace(true);
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, std::convert::Infallible>(Response::new(full(number.to_string())))
                }
            });
            connections.spawn(async move {
                let mut builder =
                    hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                builder.max_concurrent_streams(1);
                drop(builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await);
            });
        }
    });
    let setup = Setup {
        protocol: Http::Two.upstream(),
        forward: Box::new(|forward| forward.timeout = Some(std::time::Duration::from_millis(500))),
        ..Setup::default()
    };
    let proxy = Proxy::with(&[address], setup).await;
    let mut stuck = Client::connect(proxy.address, Http::One).await;
    let stuck = tokio::spawn(async move { stuck.get("/hang").await.status() });
    hangs.wait_for(|hangs| *hangs).await.unwrap();
    let mut client = Client::connect(proxy.address, Http::One).await;
    assert_eq!(text(client.get("/").await).await, "1");
    assert_eq!(stuck.await.unwrap(), 504);
    assert_eq!(text(client.get("/").await).await, "1");
    serving.abort();
}
