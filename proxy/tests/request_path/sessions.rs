//! Sessions that are with an endpoint: who has been answered by one comes back to it, as long as it is there.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, StatusCode};
use pontoon_proxy::route::session::{Cookie, Filter, Session, State};
use pontoon_proxy::upstream::cluster::{ClusterSettings, Endpoint, EndpointHealth, EndpointSet, Nameable};

use crate::fixture::*;

const FILTER: &str = "envoy.filters.http.stateful_session";

fn by_cookie(strict: bool) -> Arc<Session> {
    let cookie = Cookie {
        name: "s".into(),
        ttl: Duration::ZERO,
        path: "/shop".into(),
        attributes: "; Path=/shop".into(),
    };
    Arc::new(Session { state: State::Cookie(cookie), strict })
}

fn with(session: Arc<Session>, back: Http) -> Setup {
    let filter = Filter { name: FILTER.into(), session, disabled: false };
    Setup {
        protocol: back.upstream(),
        http: Box::new(|http| http.sessions = vec![filter]),
        ..Setup::default()
    }
}

/// A request of a client that has this cookie: status, answer, and what it is to keep.
async fn ask(client: &mut Client, path: &str, cookie: Option<&str>) -> (StatusCode, String, Option<String>) {
    let mut request = Request::get(path);
    if let Some(cookie) = cookie {
        request = request.header("cookie", cookie);
    }
    let response = client.send(request.body(empty()).unwrap()).await;
    let kept = |headers: &HeaderMap| {
        let line = headers.get("set-cookie")?.to_str().unwrap();
        Some(line.strip_suffix("; Path=/shop").expect("the attributes").to_owned())
    };
    let (status, kept) = (response.status(), kept(response.headers()));
    (status, text(response).await, kept)
}

fn is_at(upstream: &Upstream, health: EndpointHealth) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(upstream.address, 1, health))
}

async fn three(back: Http) -> [Upstream; 3] {
    [Upstream::named(back, "a").await, Upstream::named(back, "b").await, Upstream::named(back, "c").await]
}

fn addresses(upstreams: &[Upstream]) -> Vec<std::net::SocketAddr> {
    upstreams.iter().map(|upstream| upstream.address).collect()
}

on_all_protocols! {
    async fn a_session_stays_with_its_endpoint(front, back) {
        let upstreams = three(back).await;
        let proxy = Proxy::with(&addresses(&upstreams), with(by_cookie(false), back)).await;
        let mut client = Client::connect(proxy.address, front).await;
        let (_, first, kept) = ask(&mut client, "/shop", None).await;
        let cookie = kept.expect("a cookie");
        for _ in 0..10 {
            let again = ask(&mut client, "/shop/cart?a=b", Some(&cookie)).await;
            assert_eq!(again, (StatusCode::OK, first.clone(), None));
            // Others are sent in turn.
            assert!(ask(&mut client, "/shop", None).await.2.is_some());
        }
        assert!(upstreams.iter().all(|upstream| upstream.requests() >= 3), "others go to all of them");
        // Of another path, and by another name, it is none.
        assert_eq!(ask(&mut client, "/shopping", Some(&cookie)).await.2, None);
        assert!(ask(&mut client, "/shop", Some("s=x; t=y")).await.2.is_some());

        // It ends: what is there no more is another's, and so is the cookie.
        let mut rest = addresses(&upstreams);
        rest.remove(["a", "b", "c"].iter().position(|name| *name == first).unwrap());
        proxy.cluster.endpoints.store(endpoints(&rest));
        let (status, second, kept) = ask(&mut client, "/shop", Some(&cookie)).await;
        let cookie = kept.expect("a new cookie");
        assert_eq!(status, StatusCode::OK);
        assert_ne!(second, first);
        for _ in 0..5 {
            assert_eq!(ask(&mut client, "/shop", Some(&cookie)).await, (StatusCode::OK, second.clone(), None));
        }
    }

    async fn a_strict_session_has_no_other_endpoint(front, back) {
        let upstreams = three(back).await;
        let proxy = Proxy::with(&addresses(&upstreams), with(by_cookie(true), back)).await;
        let mut client = Client::connect(proxy.address, front).await;
        let cookie = ask(&mut client, "/shop", None).await.2.unwrap();
        proxy.cluster.endpoints.store(endpoints(&[]));
        let (status, body, kept) = ask(&mut client, "/shop", Some(&cookie)).await;
        assert_eq!((status, kept), (StatusCode::SERVICE_UNAVAILABLE, None));
        assert!(body.starts_with("no_healthy_upstream"), "{body}");
        let other = Upstream::named(back, "other").await;
        proxy.cluster.endpoints.store(endpoints(&[other.address]));
        assert_eq!(ask(&mut client, "/shop", Some(&cookie)).await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask(&mut client, "/shop", None).await.1, "other");
    }

    async fn an_endpoint_that_drains_keeps_its_sessions_where_the_cluster_says_so(front, back) {
        let [old, new, _] = three(back).await;
        let proxy = Proxy::with(&[old.address], with(by_cookie(false), back)).await;
        let mut client = Client::connect(proxy.address, front).await;
        let cookie = ask(&mut client, "/shop", None).await.2.unwrap();
        let all = vec![is_at(&old, EndpointHealth::Draining), is_at(&new, EndpointHealth::Healthy)];
        proxy.cluster.endpoints.store(Arc::new(EndpointSet::new("2".into(), all)));
        assert_eq!(ask(&mut client, "/shop", Some(&cookie)).await.1, "b");
        let settings = proxy.cluster.settings.load_full().unwrap();
        let nameable = Nameable { draining: true, ..Nameable::default() };
        proxy.cluster.settings.store(Some(Arc::new(ClusterSettings { nameable, ..(*settings).clone() })));
        assert_eq!(ask(&mut client, "/shop", Some(&cookie)).await, (StatusCode::OK, "a".into(), None));
        assert_eq!(ask(&mut client, "/shop", None).await.1, "b", "it gets no new ones");
    }

    async fn a_route_has_no_sessions_where_it_says_so(front, back) {
        let upstreams = three(back).await;
        let none = Arc::new(Session { state: State::None, strict: false });
        let setup = Setup {
            forward: Box::new(|forward| forward.sessions = [(FILTER.into(), Some(none))].into_iter().collect()),
            ..with(by_cookie(false), back)
        };
        let proxy = Proxy::with(&addresses(&upstreams), setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        assert_eq!(ask(&mut client, "/shop", None).await.2, None);
    }

    async fn a_session_leaves_an_endpoint_that_fails(front, back) {
        let [alive, ending, _] = three(back).await;
        let proxy = Proxy::with(&[ending.address], with(by_cookie(true), back)).await;
        let mut client = Client::connect(proxy.address, front).await;
        let cookie = ask(&mut client, "/shop", None).await.2.unwrap();
        proxy.cluster.endpoints.store(endpoints(&[ending.address, alive.address]));
        assert_eq!(ask(&mut client, "/shop", Some(&cookie)).await.1, "b");
        drop(ending);
        // The first try is its own, the second anybody's.
        let (_, answer, kept) = ask(&mut client, "/shop", Some(&cookie)).await;
        assert_eq!((answer.as_str(), kept.is_some()), ("a", true));
    }
}
