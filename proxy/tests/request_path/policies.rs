//! What a route says besides where requests go: copies for others, other sites' pages, answers that are tried again,
//! paths that are written anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode};
use pontoon_proxy::route::cors::Cors;
use pontoon_proxy::route::expression::Expression;
use pontoon_proxy::route::matching::ValueMatcher;
use pontoon_proxy::route::rate_limit::{Filter, Rate, RateLimit};
use pontoon_proxy::route::{Mirror, RegexRewrite};

use crate::fixture::*;

/// A mirror to an upstream.
fn mirror(upstream: &Upstream, http: Http, millionths: u32, shadow_host: bool) -> Mirror {
    Mirror { cluster: Arc::new(cluster("mirror", &[upstream.address], http)), millionths, shadow_host }
}

on_all_protocols! {
    async fn a_mirror_gets_the_request_and_the_client_the_other_answer(front, back) {
        let (served, copied) = (Upstream::named(back, "served").await, Upstream::named(back, "copied").await);
        let (never, whole) = (mirror(&copied, back, 0, false), mirror(&copied, back, 1_000_000, false));
        let setup = Setup {
            protocol: back.upstream(),
            forward: Box::new(move |forward| forward.mirrors = [never, whole].into()),
            ..Setup::default()
        };
        let proxy = Proxy::with(&[served.address], setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        let body = "x".repeat(100_000);
        let response = client.send(Request::post("/orders?a=b").body(full(body.clone())).unwrap()).await;
        assert_eq!(text(response).await, "served");
        until("the copy", || copied.requests() == 1).await;
        let (original, copy) = (served.last(), copied.last());
        assert_eq!((&copy.method, &copy.target, &copy.body), (&original.method, &original.target, &original.body));
        assert_eq!(copy.body.len(), body.len());
        assert_eq!(copy.headers.get("x-request-id"), original.headers.get("x-request-id"));
        let response = client.get("/").await;
        assert_eq!(text(response).await, "served");
        until("the second copy", || copied.requests() == 2).await;
    }

    async fn an_answer_that_the_route_names_is_tried_again(front, back) {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let upstream = Upstream::answering(back, move |_| {
            let status = match counted.fetch_add(1, Ordering::Relaxed) {
                2 => StatusCode::OK,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            Response::builder().status(status).body(full("said")).unwrap()
        }).await;
        let setup = Setup {
            protocol: back.upstream(),
            forward: Box::new(|forward| {
                forward.retry.max_retries = 2;
                forward.retry.on_status = Some([StatusCode::SERVICE_UNAVAILABLE].into());
                forward.retry.back_off = Some(Arc::new((Duration::from_millis(1), Duration::from_millis(1))));
            }),
            ..Setup::default()
        };
        let proxy = Proxy::with(&[upstream.address], setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        let response = client.get("/").await;
        assert_eq!((response.status(), text(response).await.as_str()), (StatusCode::OK, "said"));
        assert_eq!(count.load(Ordering::Relaxed), 3);
        // The last of all tries is the answer.
        let response = client.get("/").await;
        assert_eq!((response.status(), text(response).await.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "said"));
        assert_eq!(count.load(Ordering::Relaxed), 6);
        // A body is not kept for it.
        let response = client.send(Request::post("/").body(full("pay")).unwrap()).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(count.load(Ordering::Relaxed), 7);
    }

    async fn more_requests_than_a_limit_allows_are_refused(front, back) {
        let upstream = Upstream::echo(back).await;
        let hourly = |most| Some(Arc::new(RateLimit::new(Rate::new(most, 1, Duration::from_secs(3600)))));
        for (of_route, taken) in [(None, 2), (Some(hourly(3)), 3), (Some(None), 5)] {
            let limit = Filter { name: "limit".into(), limit: hourly(2) };
            let setup = Setup {
                protocol: back.upstream(),
                http: Box::new(move |http| http.rate_limits = vec![limit]),
                route: Box::new(move |route| {
                    route.rate_limits = of_route.map(|limit| ("limit".into(), limit)).into_iter().collect();
                }),
                ..Setup::default()
            };
            let proxy = Proxy::with(&[upstream.address], setup).await;
            let mut client = Client::connect(proxy.address, front).await;
            for number in 0..5 {
                let answer = client.get("/").await;
                if number < taken {
                    assert_eq!(answer.status(), 200, "{number} of {taken}");
                    continue;
                }
                assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS, "{number} of {taken}");
                assert_eq!(answer.headers()["x-pontoon-reason"], "rate_limited");
            }
        }
    }

    async fn pages_of_other_sites_are_let_in_by_name(front, back) {
        let upstream = Upstream::echo(back).await;
        let setup = Setup {
            protocol: back.upstream(),
            route: Box::new(|route| {
                let policy = Cors {
                    origins: vec![ValueMatcher::Exact("https://shop.test".into())],
                    methods: Some(HeaderValue::from_static("GET, PUT")),
                    headers: None,
                    expose: Some(HeaderValue::from_static("x-total")),
                    max_age: Some(HeaderValue::from_static("60")),
                    credentials: false,
                    forward_others: false,
                };
                route.cors = [("envoy.filters.http.cors".into(), Arc::new(policy))].into_iter().collect();
            }),
            ..Setup::default()
        };
        let proxy = Proxy::with(&[upstream.address], setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        let preflight = |origin: &str| {
            let request = Request::options("/").header("origin", origin);
            request.header("access-control-request-method", "PUT").body(empty()).unwrap()
        };
        let allowed = |response: &Response<_>| response.headers().get("access-control-allow-origin").cloned();
        let response = client.send(preflight("https://shop.test")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(allowed(&response).unwrap(), "https://shop.test");
        assert_eq!(response.headers().get("access-control-allow-methods").unwrap(), "GET, PUT");
        text(response).await;
        let response = client.send(preflight("https://other.test")).await;
        assert_eq!((response.status(), allowed(&response)), (StatusCode::OK, None));
        text(response).await;
        assert_eq!(upstream.requests(), 0, "preflights are answered here");
        let get = |origin: &str| Request::get("/").header("origin", origin).body(empty()).unwrap();
        let response = client.send(get("https://shop.test")).await;
        assert_eq!(allowed(&response).unwrap(), "https://shop.test");
        assert_eq!(response.headers().get("access-control-expose-headers").unwrap(), "x-total");
        text(response).await;
        let response = client.send(get("https://other.test")).await;
        assert_eq!(allowed(&response), None);
        assert_eq!(upstream.requests(), 2);
    }

    async fn a_path_is_written_anew_by_an_expression(front, back) {
        let upstream = Upstream::echo(back).await;
        let setup = Setup {
            protocol: back.upstream(),
            forward: Box::new(|forward| forward.regex_rewrite = Some(Box::new(RegexRewrite {
                pattern: Expression::part("^/shop/([^/]+)/.*$").unwrap(),
                substitution: "/v2/${1}".into(),
            }))),
            ..Setup::default()
        };
        let proxy = Proxy::with(&[upstream.address], setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        text(client.get("/shop/cart/items?a=b").await).await;
        assert_eq!(upstream.last().target, "/v2/cart?a=b");
    }
}

/// One that takes no more is not waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_hangs_costs_nothing() {
    let served = Upstream::echo(Http::One).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut hanging = mirror(&served, Http::One, 1_000_000, true);
    let address = listener.local_addr().unwrap();
    Arc::get_mut(&mut hanging.cluster).unwrap().endpoints.store(endpoints(&[address]));
    let setup =
        Setup { forward: Box::new(move |forward| forward.mirrors = [hanging].into()), ..Setup::default() };
    let proxy = Proxy::with(&[served.address], setup).await;
    let mut client = Client::connect(proxy.address, Http::One).await;
    let body = "x".repeat(4_000_000);
    let response = client.send(Request::post("/").body(full(body.clone())).unwrap()).await;
    assert_eq!(text(response).await.len(), body.len());
}
