//! Who is asked whether a request may go on, what they are told, and what comes of their answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use pontoon_proxy::route::authz::{CheckPath, Filter, Nginx, OfRoute, Service};
use pontoon_proxy::route::matching::ValueMatcher;
use pontoon_proxy::route::{Action, HeaderMutation, Mirror};

use crate::fixture::*;

const NAME: &str = "envoy.filters.http.ext_authz";

fn exact(names: &[&str]) -> Box<[ValueMatcher]> {
    names.iter().map(|name| ValueMatcher::Exact((*name).into())).collect()
}

/// Somebody who can be asked at these addresses.
fn at(addresses: &[SocketAddr], http: Http) -> Service {
    Service {
        cluster: Arc::new(cluster("auth", addresses, http)),
        timeout: PATIENCE,
        path: CheckPath::Prefix("/check".into()),
        headers: Box::default(),
        upstream: exact(&["x-user"]),
        upstream_too: exact(&["x-group"]),
        client: Box::default(),
        client_on_success: exact(&["x-seen"]),
        nginx: None,
    }
}

fn filter(service: Service) -> Filter {
    Filter {
        name: NAME.into(),
        disabled: false,
        service: Arc::new(service),
        allowed: exact(&["x-in", "cookie"]),
        disallowed: Box::default(),
        raw_headers: false,
        failure_allows: false,
        failure_is_told: false,
        failure_status: StatusCode::FORBIDDEN,
        most_body_bytes: 64,
    }
}

fn setup(http: Http, filter: Filter) -> Setup {
    Setup { protocol: http.upstream(), http: Box::new(|http| http.authz = vec![filter]), ..Setup::default() }
}

/// Lets in who says `x-in: yes`, and says to others where to go.
async fn guard(http: Http) -> Upstream {
    Upstream::answering(http, |seen| {
        if seen.headers.get_all("x-in").iter().any(|value| value == "yes") {
            let response = Response::builder().header("x-user", "somebody").header("x-group", "staff");
            let response =
                response.header("x-seen", "1").header("x-envoy-auth-headers-to-remove", "x-in, host");
            return response.body(full("go on")).unwrap();
        }
        let response = Response::builder().status(401).header("www-authenticate", "Basic");
        response.header("content-type", "text/html").body(full("<p>who?</p>")).unwrap()
    })
    .await
}

/// Answers with the status that the request asks for, and says `x-user: somebody` where it asks for that, too.
async fn obedient(http: Http) -> Upstream {
    Upstream::answering(http, |seen| {
        let status =
            seen.headers.get("x-status").map_or(200, |status| status.to_str().unwrap().parse().unwrap());
        let mut response =
            Response::builder().status(status).header("set-cookie", "a=1").header("set-cookie", "b=2");
        if seen.headers.contains_key("x-known") {
            response = response.header("x-user", "somebody").header("x-user", "else");
        }
        let response = response.header("www-authenticate", "Basic").header("location", "/theirs");
        response.body(if status == 204 { empty() } else { full("theirs") }).unwrap()
    })
    .await
}

/// Asks as an Ingress has it, and answers 500 where nobody answers.
fn as_nginx(address: SocketAddr, http: Http, sign_in: Option<&str>) -> Filter {
    let nginx = Nginx {
        method: Method::GET,
        host: HeaderValue::from_static("auth.test"),
        sign_in: sign_in.map(Into::into),
    };
    let service = Service {
        path: CheckPath::Only(PathAndQuery::from_static("/check?a")),
        upstream_too: Box::default(),
        client_on_success: exact(&["set-cookie"]),
        nginx: Some(Box::new(nginx)),
        ..at(&[address], http)
    };
    Filter { failure_status: StatusCode::INTERNAL_SERVER_ERROR, ..filter(service) }
}

on_all_protocols! {
    async fn a_check_of_nginx_is_a_get_with_all_that_the_client_says(front, back) {
        let (auth, upstream) = (obedient(back).await, Upstream::echo(back).await);
        let proxy = Proxy::with(&[upstream.address], setup(back, as_nginx(auth.address, back, None))).await;
        let mut client = Client::connect(proxy.address, front).await;
        let request = Request::post("/orders?b=c").header("x-other", "1").header("cookie", "d=e");
        let request = request.header("x-real-ip", "192.0.2.1").header("x-original-url", "http://mine/");
        let request = request.header("x-forwarded-for", "192.0.2.1").header("content-type", "text/csv");
        let response = client.send(request.body(full("pay")).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        let cookies: Vec<_> = response.headers().get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1", "b=2"]);
        assert_eq!(text(response).await, "pay");
        let check = auth.last();
        assert_eq!((check.method.as_str(), check.target.as_str(), check.body.len()), ("GET", "/check?a", 0));
        for (name, expected) in [
            ("x-original-url", "http://shop.test/orders?b=c"),
            ("x-original-method", "POST"),
            ("x-original-uri", "/orders?b=c"),
            ("x-auth-request-redirect", "/orders?b=c"),
            ("x-real-ip", "127.0.0.1"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-other", "1"),
            ("cookie", "d=e"),
            ("content-type", "text/csv"),
        ] {
            assert_eq!(check.headers[name], expected, "{name}");
            assert_eq!(check.headers.get_all(name).iter().count(), 1, "{name}");
        }
        assert!(!check.headers.contains_key("content-length") && !check.headers.contains_key("transfer-encoding"));
        if matches!(back, Http::One) {
            assert_eq!(check.headers["host"], "auth.test");
        }
        let seen = upstream.last();
        assert_eq!((seen.method.as_str(), seen.headers.get("x-original-method")), ("POST", None));
    }

    /// Any 2xx lets in, 401 and 403 are the client's, and of all else nobody is let in.
    async fn a_check_of_nginx_is_answered_as_there(front, back) {
        let (auth, upstream) = (obedient(back).await, Upstream::echo(back).await);
        let proxy = Proxy::with(&[upstream.address], setup(back, as_nginx(auth.address, back, None))).await;
        let mut client = Client::connect(proxy.address, front).await;
        for (status, expected) in [
            (200, 200), (201, 200), (202, 200), (204, 200), (299, 200), (401, 401), (403, 403),
            (300, 500), (302, 500), (304, 500), (400, 500), (404, 500), (429, 500), (500, 500), (503, 500),
        ] {
            let before = upstream.requests();
            let request = Request::get("/").header("x-status", status).header("x-user", "root");
            let response = client.send(request.body(empty()).unwrap()).await;
            assert_eq!(response.status(), expected, "{status}");
            let has = |name| response.headers().contains_key(name);
            let refused = expected == 401 || expected == 403;
            assert_eq!((has("www-authenticate"), has("location"), has("set-cookie")), (refused, false, expected != 500));
            let body = text(response).await;
            assert_eq!((body.is_empty(), body.contains("theirs")), (expected == 200, false), "{body}");
            assert_eq!(upstream.requests() - before, usize::from(expected == 200));
        }
        assert!(!upstream.last().headers.contains_key("x-user"), "the client's own");
        let request = Request::get("/").header("x-known", "1").header("x-user", "root").header("x-user", "toor");
        text(client.send(request.body(empty()).unwrap()).await).await;
        let seen = upstream.last();
        assert_eq!(seen.headers.get_all("x-user").iter().collect::<Vec<_>>(), ["somebody", "else"]);
    }

    async fn who_is_not_known_is_sent_to_sign_in(front, back) {
        let (auth, upstream) = (obedient(back).await, Upstream::echo(back).await);
        let sign_in = Some("https://$host/start?rd=$escaped_request_uri");
        let proxy = Proxy::with(&[upstream.address], setup(back, as_nginx(auth.address, back, sign_in))).await;
        let mut client = Client::connect(proxy.address, front).await;
        for (status, expected, place) in
            [(401, 302, Some("https://shop.test/start?rd=%2Fa%3Fb")), (403, 403, None), (202, 200, None)]
        {
            let request = Request::get("/a?b").header("x-status", status);
            let response = client.send(request.body(empty()).unwrap()).await;
            assert_eq!(response.status(), expected, "{status}");
            assert_eq!(response.headers().get("location").map(|place| place.to_str().unwrap()), place);
            assert_eq!(response.headers()["set-cookie"], "a=1");
            text(response).await;
        }
    }

    /// However often a request is sent, and to how many.
    async fn a_request_is_asked_about_once(front, back) {
        let auth = obedient(back).await;
        let failing = Upstream::answering(back, |_| Response::builder().status(503).body(empty()).unwrap()).await;
        let copies = Upstream::echo(back).await;
        let mirror = Mirror { cluster: Arc::new(cluster("copies", &[copies.address], back)), millionths: 1_000_000, shadow_host: false };
        let mut setup = setup(back, as_nginx(auth.address, back, None));
        setup.forward = Box::new(move |forward| {
            forward.mirrors = [mirror].into();
            forward.retry.max_retries = 2;
            forward.retry.on_status = Some([StatusCode::SERVICE_UNAVAILABLE].into());
        });
        let proxy = Proxy::with(&[failing.address], setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        let request = |status| Request::get("/").header("x-status", status).body(empty()).unwrap();
        assert_eq!(client.send(request(401)).await.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(client.send(request(202)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        until("the copy", || copies.requests() == 1).await;
        assert_eq!((auth.requests(), failing.requests(), copies.requests()), (2, 3, 1));
    }

    async fn who_has_gone_is_asked_about_no_longer(front, back) {
        let upstream = Upstream::echo(back).await;
        let silent = Upstream::serving(back, Arc::default(), |_| std::future::pending()).await;
        let filter = as_nginx(silent.address, back, None);
        let endpoint = Arc::clone(&filter.service.cluster.endpoints.load().endpoints[0]);
        let proxy = Proxy::with(&[upstream.address], setup(back, filter)).await;
        let address = proxy.address;
        let asking = tokio::spawn(async move { Client::connect(address, front).await.get("/").await });
        let active = || endpoint.active.load(std::sync::atomic::Ordering::Relaxed);
        until("the check", || active() == 1).await;
        asking.abort();
        until("the end of it", || active() == 0).await;
        assert_eq!(upstream.requests(), 0);
    }

    async fn who_is_let_in_goes_on_with_what_was_said_of_it(front, back) {
        let (auth, upstream) = (guard(back).await, Upstream::echo(back).await);
        let proxy = Proxy::with(&[upstream.address], setup(back, filter(at(&[auth.address], back)))).await;
        let mut client = Client::connect(proxy.address, front).await;
        for round in 1..=2 {
            let request = Request::post("/orders?a=b").header("x-in", "yes").header("x-user", "root");
            let request = request.header("x-group", "mine").header("x-other", "1");
            let request = request.header("authorization", "Basic eA==").body(full("pay")).unwrap();
            let response = client.send(request).await;
            assert_eq!((response.status(), &response.headers()["x-seen"]), (StatusCode::OK, &HeaderValue::from_static("1")));
            assert_eq!(text(response).await, "pay", "the body waited");
            let check = auth.last();
            assert_eq!((check.method.as_str(), check.target.as_str()), ("POST", "/check/orders?a=b"));
            assert_eq!(check.headers["content-length"], "0");
            assert_eq!((check.body.len(), &check.headers["authorization"]), (0, &HeaderValue::from_static("Basic eA==")));
            assert!(!check.headers.contains_key("x-other"));
            let seen = upstream.last();
            assert_eq!((seen.target.as_str(), &seen.headers["x-user"]), ("/orders?a=b", &HeaderValue::from_static("somebody")));
            assert_eq!(seen.headers.get_all("x-user").iter().count(), 1);
            assert_eq!(seen.headers.get_all("x-group").iter().count(), 2);
            assert!(!seen.headers.contains_key("x-in"), "it was to be removed");
            assert_eq!((auth.requests(), upstream.requests()), (round, round));
        }
        assert_eq!(auth.connections.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    async fn a_refusal_is_in_the_words_of_who_was_asked(front, back) {
        let (auth, upstream) = (guard(back).await, Upstream::echo(back).await);
        let proxy = Proxy::with(&[upstream.address], setup(back, filter(at(&[auth.address], back)))).await;
        let mut client = Client::connect(proxy.address, front).await;
        let response = client.get("/").await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        let headers = response.headers();
        assert_eq!((&headers["www-authenticate"], &headers["content-type"]), (&HeaderValue::from_static("Basic"), &HeaderValue::from_static("text/html")));
        assert_eq!(headers["x-pontoon-reason"], "ext_authz_denied");
        assert_eq!(text(response).await, "<p>who?</p>");
        assert_eq!(upstream.requests(), 0);
        until("the metric", || proxy.metric(
            r#"pontoon_downstream_requests_total{listener="edge",class="4xx",flag="UAEX",reason="ext_authz_denied"}"#,
        ) == 1).await;
        let call = Request::post("/shop.Orders/Get").header("content-type", "application/grpc");
        let response = client.send(call.body(empty()).unwrap()).await;
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.headers()["grpc-status"], "16", "UNAUTHENTICATED");
    }

    async fn headers_are_told_as_one_and_over_them_what_is_set(front, back) {
        let (auth, upstream) = (guard(back).await, Upstream::echo(back).await);
        let mut service = at(&[auth.address], back);
        service.path = CheckPath::Only(PathAndQuery::from_static("/only?this"));
        service.headers = [HeaderMutation::Set(HeaderName::from_static("x-set"), HeaderValue::from_static("1"))].into();
        let proxy = Proxy::with(&[upstream.address], setup(back, filter(service))).await;
        let mut client = Client::connect(proxy.address, front).await;
        let request = Request::get("/a").header("x-in", "no").header("x-in", "never");
        let request = request.header("cookie", "a=1").header("cookie", "b=2");
        text(client.send(request.body(empty()).unwrap()).await).await;
        let check = auth.last();
        assert_eq!(check.target, "/only?this");
        assert_eq!((&check.headers["x-in"], &check.headers["x-set"]), (&HeaderValue::from_static("no,never"), &HeaderValue::from_static("1")));
        assert_eq!(check.headers["cookie"], "a=1; b=2");
    }

    async fn who_cannot_be_asked_lets_nobody_in(front, back) {
        let upstream = Upstream::echo(back).await;
        let broken = Upstream::answering(back, |_| Response::builder().status(503).body(full("down")).unwrap()).await;
        let gone = {
            let gone = Upstream::echo(back).await;
            gone.address
        };
        for (address, status) in [(broken.address, 403), (broken.address, 503), (gone, 403)] {
            let mut filter = filter(at(&[address], back));
            filter.failure_status = StatusCode::from_u16(status).unwrap();
            let proxy = Proxy::with(&[upstream.address], setup(back, filter)).await;
            let mut client = Client::connect(proxy.address, front).await;
            let response = client.get("/").await;
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()["x-pontoon-reason"], "ext_authz_failed");
            text(response).await;
        }
        assert_eq!(upstream.requests(), 0);
        let mut filter = filter(at(&[broken.address], back));
        (filter.failure_allows, filter.failure_is_told) = (true, true);
        let proxy = Proxy::with(&[upstream.address], setup(back, filter)).await;
        let mut client = Client::connect(proxy.address, front).await;
        let response = client.get("/").await;
        assert_eq!(response.status(), StatusCode::OK);
        text(response).await;
        assert_eq!(upstream.last().headers["x-envoy-auth-failure-mode-allowed"], "true");
    }

    async fn an_answer_is_bounded_in_time_and_size(front, back) {
        let upstream = Upstream::echo(back).await;
        let silent = Upstream::serving(back, Arc::default(), |_| std::future::pending()).await;
        let mut service = at(&[silent.address], back);
        service.timeout = Duration::from_millis(100);
        let proxy = Proxy::with(&[upstream.address], setup(back, filter(service))).await;
        let mut client = Client::connect(proxy.address, front).await;
        let response = client.get("/").await;
        assert_eq!((response.status().as_u16(), &response.headers()["x-pontoon-reason"]), (403, &HeaderValue::from_static("ext_authz_failed")));
        text(response).await;
        let long = Upstream::answering(back, |_| Response::builder().status(403).body(full("x".repeat(1_000_000))).unwrap()).await;
        let proxy = Proxy::with(&[upstream.address], setup(back, filter(at(&[long.address], back)))).await;
        let mut client = Client::connect(proxy.address, front).await;
        let response = client.get("/").await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert_eq!(text(response).await, "x".repeat(64));
        assert_eq!(upstream.requests(), 0);
    }

    async fn a_route_asks_somebody_else_or_nobody(front, back) {
        let (auth, upstream) = (guard(back).await, Upstream::echo(back).await);
        let nice = Upstream::echo(back).await;
        let other = || OfRoute { off: false, service: Some(Arc::new(at(&[nice.address], back))) };
        for (disabled, said, expected) in [
            (false, None, 401),
            (true, None, 200),
            (true, Some(OfRoute::default()), 401),
            (false, Some(OfRoute { off: true, service: None }), 200),
            (true, Some(other()), 200),
        ] {
            let mut filter = filter(at(&[auth.address], back));
            filter.disabled = disabled;
            let mut setup = setup(back, filter);
            setup.route = Box::new(move |route| {
                route.authz = said.into_iter().map(|said| (NAME.into(), said)).collect();
            });
            let proxy = Proxy::with(&[upstream.address], setup).await;
            let mut client = Client::connect(proxy.address, front).await;
            let response = client.get("/").await;
            assert_eq!(response.status(), expected);
            text(response).await;
        }
        assert_eq!(nice.requests(), 1);
    }
}

/// Filters are asked in their order, and what is answered here is asked about as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_refusal_counts() {
    let (auth, upstream) = (guard(Http::One).await, Upstream::echo(Http::One).await);
    let nice = Upstream::named(Http::One, "yes").await;
    let filters = vec![filter(at(&[nice.address], Http::One)), filter(at(&[auth.address], Http::One))];
    let setup = Setup {
        http: Box::new(|http| http.authz = filters),
        route: Box::new(|route| {
            route.action = Action::Direct { status: StatusCode::OK, body: "secret".into() };
        }),
        ..Setup::default()
    };
    let proxy = Proxy::with(&[upstream.address], setup).await;
    let mut client = Client::connect(proxy.address, Http::One).await;
    let response = client.get("/").await;
    assert_eq!((response.status(), text(response).await.as_str()), (StatusCode::UNAUTHORIZED, "<p>who?</p>"));
    let request = Request::get("/").header("x-in", "yes").body(empty()).unwrap();
    assert_eq!(text(client.send(request).await).await, "secret");
    assert_eq!((nice.requests(), auth.requests()), (2, 2));
}
