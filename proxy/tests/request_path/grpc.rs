//! gRPC: trailers on every pair of protocols, and errors of ours in gRPC's own terms.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use pontoon_proxy::route::Action;

use crate::fixture::*;

/// A message of gRPC: not compressed, with its length.
fn message(text: &str) -> Bytes {
    [&[0], &(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat().into()
}

fn call() -> Request<Body> {
    let request = Request::post("/shop.Orders/Get").header("content-type", "application/grpc+proto");
    request.header("te", "trailers").body(full(message("hello"))).unwrap()
}

on_all_protocols! {
    async fn a_call_has_its_trailers(front, back) {
        let upstream = Upstream::answering(back, |seen| {
            assert_eq!(seen.headers["te"], "trailers");
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let frames = [Ok(Frame::data(seen.body.clone())), Ok(Frame::trailers(trailers))];
            let body = StreamBody::new(futures_util::stream::iter(frames));
            let response = Response::builder().header("content-type", "application/grpc+proto");
            response.header("trailer", "grpc-status").body(BodyExt::boxed_unsync(body)).unwrap()
        })
        .await;
        let setup = Setup { protocol: back.upstream(), ..Setup::default() };
        let proxy = Proxy::with(&[upstream.address], setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        let response = client.send(call()).await;
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), message("hello"));
    }

    async fn an_error_of_ours_is_a_grpc_status(front, back) {
        let setup = Setup { protocol: back.upstream(), ..Setup::default() };
        let proxy = Proxy::with(&[], setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        let response = client.send(call()).await;
        assert_eq!(response.status(), 200);
        let headers = response.headers();
        assert_eq!(headers["content-type"], "application/grpc");
        assert_eq!(headers["grpc-status"], "14", "503 is UNAVAILABLE");
        assert!(headers["grpc-message"].to_str().unwrap().starts_with("no_healthy_upstream: "));
        assert_eq!(headers["x-pontoon-reason"], "no_healthy_upstream");
        assert_eq!(text(response).await, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_and_direct_responses_are_grpc_statuses_too() {
    let upstream = Upstream::echo(Http::Two).await;
    let route = |route: &mut pontoon_proxy::route::Route| {
        route.action =
            Action::Direct { status: http::StatusCode::FORBIDDEN, body: Bytes::from_static(b"no 100%\n") };
    };
    let proxy = Proxy::with(&[upstream.address], Setup { route: Box::new(route), ..Setup::default() }).await;
    let mut client = Client::connect(proxy.address, Http::Two).await;
    let response = client.send(call()).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"]),
        (200, &"7".parse().unwrap())
    );
    assert_eq!(response.headers()["grpc-message"], "no 100%25");
    let mut refused = call();
    refused.headers_mut().insert("x_y", "1".parse().unwrap());
    let response = client.send(refused).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"]),
        (200, &"13".parse().unwrap())
    );
    let plain = client.send(Request::get("/").body(empty()).unwrap()).await;
    assert_eq!(plain.status(), 403);
}

/// The body of a gRPC-Web answer: messages, and the trailers behind them.
fn web_answer(text: &str, trailers: &str) -> Vec<u8> {
    [&message(text)[..], &[0x80], &(trailers.len() as u32).to_be_bytes()[..], trailers.as_bytes()].concat()
}

on_all_protocols! {
    async fn grpc_web_is_grpc_behind_the_proxy(front, back) {
        use base64::Engine as _;
        use base64::prelude::BASE64_STANDARD;
        let upstream = Upstream::answering(back, |seen| {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let frames = [Ok(Frame::data(seen.body.clone())), Ok(Frame::trailers(trailers))];
            let body = StreamBody::new(futures_util::stream::iter(frames));
            let response = Response::builder().header("content-type", "application/grpc+proto");
            response.header("trailer", "grpc-status").body(BodyExt::boxed_unsync(body)).unwrap()
        })
        .await;
        let setup = Setup { protocol: back.upstream(), ..Setup::default() };
        let proxy = Proxy::with(&[upstream.address], setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        for (form, text) in [("application/grpc-web+proto", false), ("application/grpc-web-text+proto", true)] {
            let sent = if text { BASE64_STANDARD.encode(message("hello")).into() } else { message("hello") };
            let call = Request::post("/shop.Orders/Get").header("content-type", form).body(full(sent)).unwrap();
            let response = client.send(call).await;
            assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (200, &form.parse().unwrap()));
            let body = response.into_body().collect().await.unwrap();
            assert!(body.trailers().is_none());
            let mut got = body.to_bytes().to_vec();
            if text {
                got = BASE64_STANDARD.decode(got).unwrap();
            }
            assert_eq!(got, web_answer("hello", "grpc-status: 0\r\n"), "{form}");
            let seen = upstream.last();
            assert_eq!((&seen.headers["content-type"], &seen.headers["te"]), (&"application/grpc+proto".parse().unwrap(), &"trailers".parse().unwrap()));
            assert_eq!(seen.body, message("hello"));
        }
        proxy.cluster.endpoints.store(endpoints(&[]));
        let call = Request::post("/x").header("content-type", "application/grpc-web").body(empty()).unwrap();
        let refused = client.send(call).await;
        assert_eq!(refused.headers()["content-type"], "application/grpc-web+proto");
        assert_eq!(refused.headers()["grpc-status"], "14");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_web_text_that_is_no_base64_is_refused() {
    let upstream = Upstream::echo(Http::Two).await;
    let setup = Setup { protocol: Http::Two.upstream(), ..Setup::default() };
    let proxy = Proxy::with(&[upstream.address], setup).await;
    let mut client = Client::connect(proxy.address, Http::One).await;
    for body in ["!!!!", "AAA", "AAAAA"] {
        let call =
            Request::post("/x").header("content-type", "application/grpc-web-text").body(full(body)).unwrap();
        let response = client.send(call).await;
        assert_eq!(response.headers()["x-pontoon-reason"], "bad_body", "{body}");
    }
    assert_eq!(upstream.requests(), 0);
}
