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
