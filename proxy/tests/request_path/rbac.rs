//! Who may ask: what the RBAC filters of a listener, and what routes say of them, keep out.

use std::sync::Arc;

use http::{HeaderName, Request, StatusCode};
use pontoon_proxy::route::Action;
use pontoon_proxy::route::cors::Cors;
use pontoon_proxy::route::matching::{HeaderMatcher, HeaderSource, ValueMatcher};
use pontoon_proxy::route::rbac::{Condition, Filter, Override, Policy, Rules};
use pontoon_xds::pb::envoy::config::core::v3::CidrRange;
use pontoon_xds::pb::envoy::config::rbac::v3 as messages;
use pontoon_xds::pb::envoy::config::rbac::v3::principal::Identifier;
use pontoon_xds::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use pontoon_xds::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use pontoon_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter,
};
use pontoon_xds::pb::google::protobuf::UInt32Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::beginnings::managed;
use crate::fixture::*;
use crate::tls::*;

const NAME: &str = "envoy.filters.http.rbac";

fn rules(allow: bool, condition: Condition) -> Arc<Rules> {
    Arc::new(Rules { allow, policies: [Policy { name: "p".into(), condition }].into() })
}

/// Keeps out what has the header `x-bad`.
fn against_bad() -> Arc<Rules> {
    let source = HeaderSource::Named(HeaderName::from_static("x-bad"));
    rules(
        false,
        Condition::Header(HeaderMatcher { source, value: None, invert: false, missing_is_empty: false }),
    )
}

fn setup(http: Http, own: Arc<Rules>, of_route: Option<Override>) -> Setup {
    let filter = Filter { name: NAME.into(), rules: own, disabled: false, behind_cors: false };
    Setup {
        protocol: http.upstream(),
        http: Box::new(|http| http.rbac = vec![filter]),
        route: Box::new(|route| {
            route.rbac = of_route.into_iter().map(|said| (NAME.into(), said)).collect();
        }),
        ..Setup::default()
    }
}

fn with(name: &str, value: &str) -> Request<Body> {
    Request::get("/").header(name, value).body(empty()).unwrap()
}

on_all_protocols! {
    async fn what_may_not_be_asked_is_answered_as_by_envoy(front, back) {
        let upstream = Upstream::echo(back).await;
        let proxy = Proxy::with(&[upstream.address], setup(back, against_bad(), None)).await;
        let mut client = Client::connect(proxy.address, front).await;
        let response = client.send(with("x-bad", "1")).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert_eq!(response.headers()["x-pontoon-reason"], "rbac_access_denied");
        assert_eq!(text(response).await, "RBAC: access denied");
        assert_eq!(upstream.requests(), 0);
        let response = client.get("/").await;
        assert_eq!(response.status(), StatusCode::OK);
        text(response).await;
        until("the metric", || proxy.metric(
            r#"pontoon_downstream_requests_total{listener="edge",class="4xx",flag="-",reason="rbac_access_denied"}"#,
        ) == 1).await;
    }

    async fn a_route_has_rules_of_its_own(front, back) {
        let upstream = Upstream::echo(back).await;
        for (own, of_route, expected) in [
            (against_bad(), None, [200, 403]),
            (against_bad(), Some(None), [200, 403]),
            (against_bad(), Some(Some(Arc::default())), [200, 200]),
            (Arc::default(), Some(Some(against_bad())), [200, 403]),
            (against_bad(), Some(Some(rules(false, Condition::Any))), [403, 403]),
        ] {
            let what = format!("{own:?} {of_route:?}");
            let proxy = Proxy::with(&[upstream.address], setup(back, own, of_route)).await;
            let mut client = Client::connect(proxy.address, front).await;
            for (request, expected) in [with("x-good", "1"), with("x-bad", "1")].into_iter().zip(expected) {
                let response = client.send(request).await;
                assert_eq!(response.status(), expected, "{what}");
                text(response).await;
            }
        }
    }

    async fn the_client_is_whom_a_trusted_hop_names(front, back) {
        let upstream = Upstream::echo(back).await;
        for (hops, list, expected) in [
            (1, "198.51.100.1, 192.0.2.7", 200),
            (1, "::ffff:192.0.2.7", 200),
            (1, "192.0.2.7, 198.51.100.1", 403),
            (1, "", 403),
            (0, "192.0.2.7", 403),
        ] {
            let allowed = rules(true, Condition::Client("192.0.2.0/24".parse().unwrap()));
            let http = setup(back, allowed, None).http;
            let http = Box::new(move |settings: &mut pontoon_proxy::config::listener::HttpSettings| {
                http(settings);
                settings.forwarded.trusted_hops = hops;
            });
            let setup = Setup { protocol: back.upstream(), http, ..Setup::default() };
            let proxy = Proxy::with(&[upstream.address], setup).await;
            let mut client = Client::connect(proxy.address, front).await;
            let response = client.send(with("x-forwarded-for", list)).await;
            assert_eq!(response.status(), expected, "{hops} {list:?}");
            text(response).await;
        }
    }

    async fn a_call_is_told_in_its_own_terms(front, back) {
        let proxy = Proxy::with(&[], setup(back, against_bad(), None)).await;
        let mut client = Client::connect(proxy.address, front).await;
        let call = Request::post("/shop.Orders/Get").header("content-type", "application/grpc");
        let response = client.send(call.header("x-bad", "1").body(empty()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "7", "PERMISSION_DENIED");
        assert_eq!(response.headers()["grpc-message"], "RBAC: access denied");
    }
}

/// What the router answers comes after it, and what a CORS filter does as the listener has them in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_before_what_is_answered_here() {
    for (behind_cors, preflight) in [(false, 403), (true, 200)] {
        let setup = Setup {
            http: Box::new(move |http| {
                let rules = rules(false, Condition::Any);
                http.rbac = vec![Filter { name: NAME.into(), rules, disabled: false, behind_cors }];
            }),
            route: Box::new(|route| {
                let policy = Cors {
                    origins: vec![ValueMatcher::Exact("https://shop.test".into())],
                    methods: None,
                    headers: None,
                    expose: None,
                    max_age: None,
                    credentials: false,
                    forward_others: true,
                };
                route.cors = [("envoy.filters.http.cors".into(), Arc::new(policy))].into_iter().collect();
                route.action = Action::Direct { status: StatusCode::OK, body: "secret".into() };
            }),
            ..Setup::default()
        };
        let proxy = Proxy::with(&[], setup).await;
        let mut client = Client::connect(proxy.address, Http::One).await;
        let response = client.send(with("origin", "https://shop.test")).await;
        // The page may see why, where it is one of those that may ask.
        assert_eq!(response.headers().contains_key("access-control-allow-origin"), behind_cors);
        assert_eq!((response.status().as_u16(), text(response).await.as_str()), (403, "RBAC: access denied"));
        let asks = Request::options("/").header("access-control-request-method", "PUT");
        let response = client.send(asks.header("origin", "https://shop.test").body(empty()).unwrap()).await;
        assert_eq!(response.status(), preflight);
    }
}

/// Behind a proxy that speaks the PROXY protocol, for a client that is named in `X-Forwarded-For`: three addresses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_address_of_a_request_is_its_own() {
    let addresses @ [_, source, client] = ["127.0.0.1", "192.0.2.1", "198.51.100.1"];
    #[allow(deprecated, reason = "still sent by control planes")]
    let kinds: [fn(CidrRange) -> Identifier; 3] =
        [Identifier::DirectRemoteIp, Identifier::SourceIp, Identifier::RemoteIp];
    for (kind, is) in kinds.into_iter().zip(addresses) {
        for address in addresses {
            let prefix_len = Some(UInt32Value { value: 32 });
            let identifier = kind(CidrRange { address_prefix: address.into(), prefix_len });
            let policy = messages::Policy {
                permissions: vec![messages::Permission { rule: Some(messages::permission::Rule::Any(true)) }],
                principals: vec![messages::Principal { identifier: Some(identifier) }],
                ..Default::default()
            };
            let rules = messages::Rbac { policies: [("p".to_owned(), policy)].into(), ..Default::default() };
            let config = any(&Rbac { rules: Some(rules), ..Rbac::default() });
            let filter = HttpFilter {
                name: NAME.into(),
                config_type: Some(http_filter::ConfigType::TypedConfig(config)),
                ..HttpFilter::default()
            };
            let chain = managed(chain("hello", &[], None), |manager| manager.http_filters.insert(0, filter));
            let mut listener = listener(vec![chain]);
            listener.listener_filters = vec![crate::tcp::filter(&ProxyProtocol::default())];
            let edge = Edge::over(&[], &listener).await;
            let mut stream = TcpStream::connect(edge.address).await.unwrap();
            let request = format!(
                "PROXY TCP4 {source} 192.0.2.2 5 80\r\nGET / HTTP/1.1\r\nhost: shop.test\r\n\
                 x-forwarded-for: {client}\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let reading = stream.read_to_string(&mut answer);
            tokio::time::timeout(PATIENCE, reading).await.expect("an end").unwrap();
            let status = if address == is { "200" } else { "403" };
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{address} {is}: {answer}");
        }
    }
}
