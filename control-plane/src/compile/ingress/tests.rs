use std::fmt::Write as _;
use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::route_action::{ClusterSpecifier, HostRewriteSpecifier};
use envoy_types::pb::envoy::config::route::v3::{Route, RouteConfiguration, redirect_action, route};
use http::{HeaderMap, HeaderName, HeaderValue};
use imbl::OrdMap;
use pontoon_proxy::explain::{Request, explain};
use pontoon_proxy::route::Step;
use pontoon_xds::ResourceType;
use prost::Message as _;
use serde_json::{Value as Json, json};

use super::*;
use crate::compile::{Compiled, compile};
use crate::model::Model;
use crate::objects::service::ServicePort;
use crate::objects::{Gateway, Service};

fn parse<T: serde::de::DeserializeOwned>(json: Json) -> Arc<T> {
    Arc::new(serde_json::from_value(json).expect("an object"))
}

fn named(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

/// A Gateway, a class that names it, three Services, and these Ingresses.
fn objects(ingresses: &[Json]) -> Objects {
    let gateway: Arc<Gateway> = parse(json!({
        "metadata": { "name": "edge" },
        "spec": { "gatewayClassName": "pontoon", "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }] },
    }));
    let parameters = json!({
        "apiGroup": GATEWAY_GROUP, "kind": "Gateway", "scope": "Namespace", "namespace": "default", "name": "edge",
    });
    let class = parse(json!({
        "metadata": { "name": "edge", "annotations": { (IS_DEFAULT): "true" } },
        "spec": { "controller": INGRESS_CONTROLLER, "parameters": parameters },
    }));
    let port = |name: &str, port: u16| ServicePort { name: name.into(), port, app_protocol: None };
    let service = Service { ports: vec![port("http", 80), port("admin", 81)], ..Service::default() };
    let ingresses = ingresses.iter().map(|ingress| {
        let ingress: Arc<Ingress> = parse(ingress.clone());
        (named(ingress.metadata.name.as_deref().expect("a name")), ingress)
    });
    Objects {
        gateways: OrdMap::unit(named("edge"), gateway),
        ingress_classes: OrdMap::unit(ObjectName::new("", "edge"), class),
        ingresses: ingresses.collect(),
        services: ["shop", "new", "rest"]
            .iter()
            .map(|name| (named(name), Arc::new(service.clone())))
            .collect(),
        ..Objects::default()
    }
}

fn compiled(ingresses: &[Json]) -> Compiled {
    compile(&Model { objects: Arc::new(objects(ingresses)), ..Model::default() })
}

fn backend(service: &str) -> Json {
    json!({ "service": { "name": service, "port": { "name": "http" } } })
}

/// An Ingress with one path of `shop.example.com`.
fn ingress(name: &str, annotations: &[(&str, &str)], path: (&str, &str), service: &str) -> Json {
    let annotations =
        annotations.iter().map(|(name, value)| (format!("nginx.ingress.kubernetes.io/{name}"), json!(value)));
    let path = json!({ "pathType": path.0, "path": path.1, "backend": backend(service) });
    json!({
        "metadata": { "name": name, "namespace": "default", "annotations": annotations.collect::<serde_json::Map<_, _>>() },
        "spec": { "rules": [{ "host": "shop.example.com", "http": { "paths": [path] } }] },
    })
}

/// What becomes of a request: `-` is no route.
fn outcome(compiled: &Compiled, url: &str, headers: &[(&'static str, &'static str)]) -> String {
    let snapshot = &compiled.views["default/edge"];
    let pairs =
        headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let request = Request {
        method: http::Method::GET,
        uri: url.parse().expect("a URL"),
        headers: pairs.collect::<HeaderMap>(),
        client: None,
    };
    let Some(name) = explain(snapshot, &request).route else { return "-".to_owned() };
    let configurations = snapshot.resources(ResourceType::Route).values();
    let configurations = configurations.map(|r| RouteConfiguration::decode(&*r.body).expect("routes"));
    let routes = configurations.flat_map(|c| c.virtual_hosts).flat_map(|host| host.routes);
    routes
        .into_iter()
        .find(|route| route.name == name)
        .map_or_else(|| "lost".to_owned(), |route| said(&route))
}

/// A route in short.
fn said(route: &Route) -> String {
    let mut text = String::new();
    match &route.action {
        Some(route::Action::Route(action)) => {
            match &action.cluster_specifier {
                Some(ClusterSpecifier::Cluster(name)) => text.push_str(name),
                Some(ClusterSpecifier::WeightedClusters(all)) => {
                    for arm in &all.clusters {
                        let weight = arm.weight.map_or(0, |weight| weight.value);
                        write!(text, "{}={weight} ", arm.name).expect("text");
                    }
                }
                _ => {}
            }
            if let Some(rewrite) = &action.regex_rewrite {
                let pattern = rewrite.pattern.as_ref().map_or("", |pattern| &pattern.regex);
                write!(text, " {pattern} -> {}", rewrite.substitution).expect("text");
            }
            if let Some(HostRewriteSpecifier::HostRewriteLiteral(host)) = &action.host_rewrite_specifier {
                write!(text, " host {host}").expect("text");
            }
            if let Some(idle) = &action.idle_timeout {
                write!(text, " idle {}", idle.seconds).expect("text");
            }
            let retries = action.retry_policy.as_ref().and_then(|retry| retry.num_retries);
            if let Some(retries) = retries.filter(|retries| retries.value != 1) {
                write!(text, " retries {}", retries.value).expect("text");
            }
        }
        Some(route::Action::Redirect(to)) => {
            let scheme = match &to.scheme_rewrite_specifier {
                Some(redirect_action::SchemeRewriteSpecifier::SchemeRedirect(scheme)) => scheme,
                _ => "-",
            };
            let path = match &to.path_rewrite_specifier {
                Some(redirect_action::PathRewriteSpecifier::PathRedirect(path)) => path,
                _ => "-",
            };
            let (code, host) = (to.response_code().as_str_name(), &to.host_redirect);
            write!(text, "{code} {scheme} {host} {path}").expect("text");
        }
        Some(route::Action::DirectResponse(answer)) => write!(text, "{}", answer.status).expect("text"),
        _ => {}
    }
    for header in route.request_headers_to_add.iter().filter_map(|option| option.header.as_ref()) {
        write!(text, " {}: {}", header.key, header.value).expect("text");
    }
    let mut filters: Vec<&String> = route.typed_per_filter_config.keys().collect();
    filters.sort();
    filters.iter().for_each(|filter| write!(text, " +{filter}").expect("text"));
    text
}

#[test]
fn routes_that_set_two_filters_have_one_version() {
    let annotations = [("enable-cors", "true"), ("proxy-body-size", "1m")];
    let versions = || {
        let compiled = compiled(&[ingress("shop", &annotations, ("Prefix", "/"), "shop")]);
        let routes = compiled.views["default/edge"].resources(ResourceType::Route).values();
        routes.map(|resource| resource.version.clone()).collect::<Vec<_>>()
    };
    let first = versions();
    // The entries of a map have an order of their own each time: of two, ten agree once in 512 times.
    for _ in 1..10 {
        assert_eq!(versions(), first);
    }
}

const SHOP: &str = "service/default/shop/80";

/// Annotations, the path's type and text, what is asked for, and what becomes of it.
type Row =
    (&'static [(&'static str, &'static str)], (&'static str, &'static str), &'static str, &'static str);

#[test]
fn each_annotation_does_what_the_table_says() {
    const ANY: (&str, &str) = ("Prefix", "/");
    let rows: &[Row] = &[
        (&[], ANY, "/", SHOP),
        (
            &[("rewrite-target", "/$2"), ("use-regex", "true")],
            ("ImplementationSpecific", "/api(/|$)(.*)"),
            "/api/x",
            "service/default/shop/80 ^(?i:/api(/|$)(.*)).*$ -> /\\2",
        ),
        (
            &[("rewrite-target", "/a/$3")],
            ("Prefix", "/api"),
            "/API/x",
            "service/default/shop/80 ^(?i:/api).*$ -> /a/",
        ),
        (&[("rewrite-target", "/a")], ("Exact", "/api"), "/api", "service/default/shop/80 ^.*$ -> /a"),
        (&[("rewrite-target", "/a")], ("Exact", "/api"), "/API", "-"),
        (&[("use-regex", "true")], ("ImplementationSpecific", "/u[a-z]"), "/Uuid", SHOP),
        (&[("use-regex", "true")], ("ImplementationSpecific", "/u[a-z]"), "/1", "-"),
        (&[("force-ssl-redirect", "true")], ANY, "/x", "PERMANENT_REDIRECT https  -"),
        (&[("ssl-redirect", "true")], ANY, "/x", SHOP),
        (
            &[("permanent-redirect", "https://a.example.com/b?c=d")],
            ANY,
            "/x",
            "MOVED_PERMANENTLY https a.example.com /b?c=d",
        ),
        (
            &[("permanent-redirect", "/b"), ("permanent-redirect-code", "308")],
            ANY,
            "/x",
            "PERMANENT_REDIRECT -  /b",
        ),
        (
            &[("temporal-redirect", "http://a.example.com$request_uri")],
            ANY,
            "/x",
            "FOUND http a.example.com -",
        ),
        (&[("app-root", "/app")], ANY, "/", "FOUND -  /app"),
        (&[("app-root", "/app")], ANY, "/app", SHOP),
        (&[("proxy-read-timeout", "7")], ANY, "/", "service/default/shop/80 idle 7"),
        (&[("proxy-send-timeout", "9")], ANY, "/", "service/default/shop/80 idle 9"),
        (&[("proxy-body-size", "8m")], ANY, "/", "service/default/shop/80 +envoy.filters.http.buffer"),
        (&[("enable-cors", "true")], ANY, "/", "service/default/shop/80 +envoy.filters.http.cors"),
        (&[("enable-cors", "false")], ANY, "/", SHOP),
        (
            &[("allowlist-source-range", "10.0.0.0/8")],
            ANY,
            "/",
            "service/default/shop/80 +envoy.filters.http.rbac",
        ),
        (&[("whitelist-source-range", "10.0.0.0/8,")], ANY, "/", "500"),
        (&[("affinity", "cookie")], ANY, "/", "service/default/shop/80 +envoy.filters.http.stateful_session"),
        (&[("affinity", "ip")], ANY, "/", SHOP),
        (&[("backend-protocol", "HTTP")], ANY, "/", SHOP),
        (&[("backend-protocol", "GRPC")], ANY, "/", "service/default/shop/80/h2"),
        (&[("backend-protocol", "HTTPS")], ANY, "/", "500"),
        (&[("upstream-vhost", "in.example.com")], ANY, "/", "service/default/shop/80 host in.example.com"),
        (&[("server-alias", "alias.example.com")], ANY, "alias", SHOP),
        (
            &[("x-forwarded-prefix", "/p"), ("rewrite-target", "/a")],
            ("Exact", "/p"),
            "/p",
            "service/default/shop/80 ^.*$ -> /a x-forwarded-prefix: /p",
        ),
        (&[("x-forwarded-prefix", "/p")], ANY, "/", SHOP),
        (&[("proxy-next-upstream", "off")], ANY, "/", "service/default/shop/80 retries 0"),
        (&[("proxy-next-upstream-tries", "4")], ANY, "/", "service/default/shop/80 retries 3"),
        (&[("proxy-request-buffering", "off"), ("proxy-http-version", "1.1")], ANY, "/", SHOP),
        (&[("auth-url", "http://auth")], ANY, "/", "500"),
        (
            &[
                ("auth-url", "http://rest.default.svc/check"),
                ("auth-method", "HEAD"),
                ("auth-signin", "http://a.example.com/"),
            ],
            ANY,
            "/",
            "service/default/shop/80 +envoy.filters.http.ext_authz",
        ),
        (
            &[("auth-url", "http://rest.default.svc/"), ("permanent-redirect", "/b")],
            ANY,
            "/x",
            "MOVED_PERMANENTLY -  /b",
        ),
        (&[("auth-url", "http://rest.default.svc/"), ("auth-method", "post")], ANY, "/", "500"),
        (&[("auth-url", "http://rest.default.svc/"), ("auth-signin", "$arg_a")], ANY, "/", "500"),
        (&[("auth-url", "http://rest.default.svc/"), ("auth-snippet", "")], ANY, "/", "500"),
        (&[("auth-url", "http://rest.default.svc/"), ("auth-cache-key", "a")], ANY, "/", "500"),
        (&[("auth-url", "http://rest.elsewhere.svc/")], ANY, "/", "500"),
        (&[("auth-url", "http://rest.default.svc:82/")], ANY, "/", "500"),
        (&[("auth-response-headers", "x-user")], ANY, "/", "500"),
        (&[("auth-signin", "http://a.example.com/")], ANY, "/", "500"),
        (&[("limit-rps", "5")], ANY, "/", "service/default/shop/80 +envoy.filters.http.local_ratelimit"),
        (&[("limit-connections", "5")], ANY, "/", SHOP),
    ];
    for (annotations, path, request, expected) in rows {
        let compiled = compiled(&[ingress("shop", annotations, *path, "shop")]);
        let url = match *request {
            "alias" => "http://alias.example.com/".to_owned(),
            path => format!("http://shop.example.com{path}"),
        };
        assert_eq!(outcome(&compiled, &url, &[]), *expected, "{annotations:?} {path:?} {request}");
    }
}

/// What a client is told, in short.
fn told(compiled: &Compiled, client: &str, headers: &[(&'static str, &'static str)]) -> &'static str {
    let pairs =
        headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let request = Request {
        method: http::Method::GET,
        uri: "http://shop.example.com/".parse().expect("a URL"),
        headers: pairs.collect::<HeaderMap>(),
        client: Some(client.parse().expect("an address")),
    };
    match explain(&compiled.views["default/edge"], &request) {
        said if said.outcome.starts_with("403 rbac_access_denied") && said.cluster.is_none() => "403",
        said if said.cluster.as_deref() == Some(SHOP) => "shop",
        _ => "else",
    }
}

#[test]
fn clients_are_let_in_by_their_addresses() {
    const PATH: (&str, &str) = ("Prefix", "/");
    let both = ("allowlist-source-range", "192.0.2.0/24, 10.0.0.1");
    for (annotations, client, expected) in [
        (&[("whitelist-source-range", "10.0.0.0/8, 192.0.2.7")][..], "10.1.2.3", "shop"),
        (&[("whitelist-source-range", "10.0.0.0/8, 192.0.2.7")], "192.0.2.7", "shop"),
        (&[("whitelist-source-range", "10.0.0.0/8, 192.0.2.7")], "192.0.2.8", "403"),
        (&[("whitelist-source-range", "10.0.0.0/8, 192.0.2.7")], "::ffff:10.1.2.3", "shop"),
        (&[("whitelist-source-range", "::ffff:10.0.0.0/104")], "10.1.2.3", "shop"),
        (&[("whitelist-source-range", "2001:db8::/32")], "2001:db8::1", "shop"),
        (&[("whitelist-source-range", "2001:db8::/32")], "10.1.2.3", "403"),
        (&[("denylist-source-range", "192.0.2.0/24")], "192.0.2.7", "403"),
        (&[("denylist-source-range", "192.0.2.0/24")], "10.1.2.3", "shop"),
        (&[both, ("denylist-source-range", "192.0.2.7")], "192.0.2.8", "shop"),
        (&[both, ("denylist-source-range", "192.0.2.7")], "192.0.2.7", "403"),
        (&[both, ("denylist-source-range", "192.0.2.7")], "198.51.100.1", "403"),
        (&[both, ("whitelist-source-range", "198.51.100.1")], "198.51.100.1", "403"),
        (&[both, ("whitelist-source-range", "198.51.100.1")], "10.0.0.1", "shop"),
        // Before everything that the route does.
        (&[both, ("force-ssl-redirect", "true")], "198.51.100.1", "403"),
        (&[both, ("force-ssl-redirect", "true")], "10.0.0.1", "else"),
    ] {
        let compiled = compiled(&[ingress("shop", annotations, PATH, "shop")]);
        assert_eq!(told(&compiled, client, &[]), expected, "{annotations:?} {client}");
    }
    // Of a canary those of what it is one of count.
    let main = ingress("shop", &[("whitelist-source-range", "10.0.0.0/8")], PATH, "shop");
    let annotations = [("canary", "true"), ("canary-by-header", "x"), ("denylist-source-range", "10.0.0.1")];
    let compiled = compiled(&[main, ingress("new", &annotations, PATH, "new")]);
    let always = [("x", "always")];
    assert_eq!(told(&compiled, "10.0.0.1", &[]), "shop");
    assert_eq!(told(&compiled, "10.0.0.1", &always), "else");
    assert_eq!(told(&compiled, "192.0.2.1", &always), "403");
}

#[test]
fn an_affinity_is_the_proxys_session() {
    let compiled = compiled(&[ingress("shop", &[("affinity", "cookie")], ("Prefix", "/shop/"), "shop")]);
    let request = Request {
        method: http::Method::GET,
        uri: "http://shop.example.com/shop".parse().expect("a URL"),
        // 10.0.0.1:80, as the proxy writes it.
        headers: HeaderMap::from_iter([(
            http::header::COOKIE,
            HeaderValue::from_static("INGRESSCOOKIE=\"CgsxMC4wLjAuMTo4MA==\""),
        )]),
        client: None,
    };
    let steps = explain(&compiled.views["default/edge"], &request).steps.steps;
    let session = Step::Session {
        by: "cookie INGRESSCOOKIE".to_owned(),
        endpoint: Some(([10, 0, 0, 1], 80).into()),
        is_there: false,
    };
    assert_eq!(steps.last(), Some(&session));
}

#[test]
fn canaries_go_by_header_then_cookie_then_weight() {
    let path = ("Prefix", "/");
    let main = ingress("shop", &[("ssl-redirect", "false")], path, "shop");
    let of = |annotations: &[(&str, &str)]| {
        let all = [&[("canary", "true")], annotations].concat();
        compiled(&[main.clone(), ingress("new", &all, path, "new")])
    };
    const NEW: &str = "service/default/new/80";
    const URL: &str = "http://shop.example.com/";
    let all = [("canary-by-header", "x-new"), ("canary-by-cookie", "new"), ("canary-weight", "20")];
    let weighted = "service/default/shop/80=80 service/default/new/80=20 ";
    let canary = of(&all);
    for (headers, expected) in [
        (&[][..], weighted),
        (&[("x-new", "always")], NEW),
        (&[("x-new", "never"), ("cookie", "new=always")], SHOP),
        (&[("x-new", "else"), ("cookie", "a=b; new=always")], NEW),
        (&[("cookie", "new=never; a=b")], SHOP),
        (&[("cookie", "xnew=always")], weighted),
    ] {
        assert_eq!(outcome(&canary, URL, headers), expected, "{headers:?}");
    }
    let value = of(&[("canary-by-header", "x-new"), ("canary-by-header-value", "beta")]);
    assert_eq!(outcome(&value, URL, &[("x-new", "beta")]), NEW);
    assert_eq!(outcome(&value, URL, &[("x-new", "always")]), SHOP);
    let pattern = of(&[("canary-by-header", "x-new"), ("canary-by-header-pattern", "^v[0-9]")]);
    assert_eq!(outcome(&pattern, URL, &[("x-new", "v2-beta")]), NEW);
    assert_eq!(outcome(&pattern, URL, &[("x-new", "beta-v2")]), SHOP);
    assert_eq!(outcome(&of(&[("canary-weight", "3"), ("canary-weight-total", "3")]), URL, &[]), NEW);
    // Alone it is canary of nothing.
    let alone = compiled(&[ingress("new", &[("canary", "true"), ("canary-weight", "20")], path, "new")]);
    assert_eq!(outcome(&alone, URL, &[]), "-");
    assert_eq!(reasons(&alone, "new"), ["NoMainIngress"]);
}

#[test]
fn a_canary_that_cannot_be_read_is_not_served() {
    let path = ("Prefix", "/");
    const URL: &str = "http://shop.example.com/";
    for (annotations, named) in [
        (&[("canary", "yes")][..], ("canary", "yes")),
        (&[("canary", "True"), ("canary-weight", "20")], ("canary", "True")),
        (&[("canary", "true"), ("canary-weight", "150")], ("canary-weight", "150")),
        (&[("canary", "true"), ("canary-weight", "a few")], ("canary-weight", "a few")),
        (&[("canary", "true"), ("canary-weight-total", "0")], ("canary-weight-total", "0")),
        (&[("canary", "true"), ("canary-by-header", "a b")], ("canary-by-header", "a b")),
        (
            &[("canary", "true"), ("canary-by-header", "x"), ("canary-by-header-pattern", "(a")],
            ("canary-by-header-pattern", "(a"),
        ),
        (&[("canary", "true"), ("canary-by-cookie", "a;b")], ("canary-by-cookie", "a;b")),
    ] {
        let canary = ingress("new", annotations, path, "new");
        let main = ingress("shop", &[], path, "shop");
        assert_eq!(outcome(&compiled(&[main, canary.clone()]), URL, &[]), SHOP, "{annotations:?}");
        let alone = compiled(&[canary]);
        assert_eq!(outcome(&alone, URL, &[]), "-", "{annotations:?}");
        let said =
            alone.statuses.of(&ObjectRef { kind: Kind::Ingress, name: ObjectName::new("default", "new") });
        let wrong: Vec<_> = said.iter().filter(|condition| !condition.status).collect();
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert_eq!(wrong[0].reason, crate::compile::INVALID);
        let begin = format!("nginx.ingress.kubernetes.io/{} is {:?}: ", named.0, named.1);
        assert!(wrong[0].message.starts_with(&begin), "{}", wrong[0].message);
        assert!(wrong[0].message.ends_with("; the canary is not served"), "{}", wrong[0].message);
    }
    let none = [("canary", "false")];
    assert_eq!(outcome(&compiled(&[ingress("shop", &none, path, "shop")]), URL, &[]), SHOP);
}

fn reasons(compiled: &Compiled, name: &str) -> Vec<&'static str> {
    let object = ObjectRef { kind: Kind::Ingress, name: named(name) };
    compiled
        .statuses
        .of(&object)
        .iter()
        .filter(|condition| !condition.status)
        .map(|condition| condition.reason)
        .collect()
}

#[test]
fn paths_and_hosts_are_those_of_the_api() {
    let path = |kind: &str, path: &str, service: &str| json!({ "pathType": kind, "path": path, "backend": backend(service) });
    let of = |host: Json, paths: Json| {
        compiled(&[json!({
            "metadata": { "name": "shop", "namespace": "default" },
            "spec": {
                "defaultBackend": { "service": { "name": "rest", "port": { "number": 81 } } },
                "rules": [{ "host": host, "http": { "paths": paths } }],
            },
        })])
    };
    let shop = of(
        json!("shop.example.com"),
        json!([
            path("Prefix", "/a", "shop"),
            path("Exact", "/a", "new"),
            path("Prefix", "/a/b/", "new"),
            path("ImplementationSpecific", "/c", "shop")
        ]),
    );
    const NEW: &str = "service/default/new/80";
    const REST: &str = "service/default/rest/81";
    for (path, expected) in [
        ("/a", NEW),
        ("/a/", SHOP),
        ("/a/x", SHOP),
        ("/ab", REST),
        ("/a/b", NEW),
        ("/a/b/c", NEW),
        ("/a/bc", SHOP),
        ("/cd", SHOP),
        ("/", REST),
    ] {
        assert_eq!(outcome(&shop, &format!("http://shop.example.com{path}"), &[]), expected, "{path}");
    }
    assert_eq!(outcome(&shop, "http://other.example.com/a", &[]), REST, "no rule has it");
    let wild = of(json!("*.example.com"), json!([path("Prefix", "/a", "shop")]));
    assert_eq!(outcome(&wild, "http://any.example.com/a", &[]), SHOP);
    assert_eq!(outcome(&wild, "http://one.more.example.com/a", &[]), REST);
    assert_eq!(outcome(&wild, "http://example.com/a", &[]), REST);
    let mut aliased = ingress("shop", &[("server-alias", "alias.example.org")], ("Prefix", "/"), "shop");
    aliased["spec"]["rules"][0]["host"] = json!("*.example.com");
    let aliased = compiled(&[aliased]);
    assert_eq!(outcome(&aliased, "http://alias.example.org/", &[]), SHOP);
    assert_eq!(outcome(&aliased, "http://a.b.example.com/", &[]), "-");
}

#[test]
fn what_cannot_be_served_says_why() {
    let resource = json!({ "resource": { "kind": "Bucket", "name": "files" } });
    let mut of = ingress("shop", &[], ("Prefix", "/"), "shop");
    of["spec"]["rules"][0]["http"]["paths"][0]["backend"] = resource;
    let refused = compiled(&[of.clone()]);
    assert_eq!(outcome(&refused, "http://shop.example.com/", &[]), "500");
    assert_eq!(reasons(&refused, "shop"), ["InvalidKind"]);
    for (backend, reason) in [
        (json!({ "service": { "name": "nobody", "port": { "number": 80 } } }), "BackendNotFound"),
        (json!({ "service": { "name": "shop", "port": { "name": "nothing" } } }), "BackendNotFound"),
        (json!({ "service": { "name": "shop", "port": { "number": 99 } } }), "BackendNotFound"),
    ] {
        of["spec"]["rules"][0]["http"]["paths"][0]["backend"] = backend;
        let refused = compiled(&[of.clone()]);
        assert_eq!(reasons(&refused, "shop"), [reason]);
        assert_eq!(outcome(&refused, "http://shop.example.com/", &[]), "500");
    }
    let mut other = ingress("shop", &[], ("Prefix", "/"), "shop");
    other["spec"]["ingressClassName"] = json!("nginx");
    let foreign = compiled(&[other]);
    assert_eq!(reasons(&foreign, "shop"), ["OtherClass"]);
    assert!(foreign.standings.ingresses.is_empty());
    // A path that is no regular expression is left out; others go on.
    let odd = ingress("odd", &[("use-regex", "true")], ("ImplementationSpecific", "/a("), "shop");
    let odd = compiled(&[odd, ingress("shop", &[], ("Prefix", "/"), "shop")]);
    assert_eq!(reasons(&odd, "odd"), [crate::compile::INVALID]);
    assert_eq!(outcome(&odd, "http://shop.example.com/a", &[]), SHOP);
    let lost =
        Objects { gateways: OrdMap::new(), ..objects(&[ingress("shop", &[], ("Prefix", "/"), "shop")]) };
    let lost = compile(&Model { objects: Arc::new(lost), ..Model::default() });
    assert_eq!(reasons(&lost, "shop"), ["NoGateway"]);
    let class = ObjectRef { kind: Kind::IngressClass, name: ObjectName::new("", "edge") };
    assert!(lost.statuses.of(&class).iter().any(|condition| condition.reason == "NoGateway"));
    // Whose namespace the Gateway does not let in.
    let mut objects = objects(&[]);
    let stranger = ingress("shop", &[], ("Prefix", "/"), "shop");
    let name = ObjectName::new("elsewhere", "shop");
    objects.ingresses.insert(name.clone(), parse(stranger));
    let refused = compile(&Model { objects: Arc::new(objects), ..Model::default() });
    let said = refused.statuses.of(&ObjectRef { kind: Kind::Ingress, name });
    assert!(said.iter().any(|condition| condition.reason == "NotAllowedByListeners"), "{said:?}");
}

fn secret_of_shop() -> Arc<crate::objects::Secret> {
    let certified =
        rcgen::generate_simple_self_signed(vec!["shop.example.com".to_owned()]).expect("a certificate");
    parse(json!({
        "metadata": { "name": "shop" },
        "type": "kubernetes.io/tls",
        "stringData": { "tls.crt": certified.cert.pem(), "tls.key": certified.signing_key.serialize_pem() },
    }))
}

/// `shop.example.com/shop`, with a certificate of its own.
fn with_certificate() -> Json {
    let path = json!({ "pathType": "Prefix", "path": "/shop", "backend": backend("shop") });
    json!({
        "metadata": { "name": "shop" },
        "spec": {
            "rules": [{ "host": "shop.example.com", "http": { "paths": [path] } }],
            "tls": [{ "hosts": ["shop.example.com"], "secretName": "shop" }],
        },
    })
}

#[test]
fn a_host_with_a_certificate_takes_none_from_the_gateways_listeners() {
    let ingress = with_certificate();
    let of = |from: &str| {
        let mut objects = objects(std::slice::from_ref(&ingress));
        objects.secrets.insert(named("shop"), secret_of_shop());
        let from =
            json!({ "namespaces": { "from": "Selector", "selector": { "matchLabels": { "team": from } } } });
        objects.gateways.insert(
            named("edge"),
            parse(json!({
                "metadata": { "name": "edge" },
                "spec": { "gatewayClassName": "pontoon", "listeners": [
                    { "name": "http", "port": 80, "protocol": "HTTP" },
                    {
                        "name": "https", "port": 443, "protocol": "HTTPS", "hostname": "*.example.com",
                        "tls": { "certificateRefs": [{ "name": "shop" }] }, "allowedRoutes": from,
                    },
                ] },
            })),
        );
        for namespace in ["default", "other"] {
            objects.namespaces.insert(
                ObjectName::new("", namespace),
                parse(json!({
                    "metadata": { "name": namespace, "labels": { "team": namespace, "both": "yes" } },
                })),
            );
        }
        compile(&Model { objects: Arc::new(objects), ..Model::default() })
    };
    let listeners = |compiled: &Compiled| {
        let routes = compiled.views["default/edge"].resources(ResourceType::Route);
        routes.keys().filter(|name| name.contains("https")).map(ToString::to_string).collect::<Vec<_>>()
    };
    let refused = of("other");
    assert_eq!(listeners(&refused), ["default/edge/https"]);
    assert!(reasons(&refused, "shop").contains(&"NotAllowedByListeners"), "{:?}", reasons(&refused, "shop"));
    assert_eq!(listeners(&of("default")).len(), 2);
}

/// A Gateway with these listeners, Ingresses by namespace, `a` and `b` with Services and certificates of their own.
fn of_two_teams(listeners: &Json, ingresses: &[(&str, Json)]) -> Compiled {
    let mut objects = objects(&[]);
    objects.gateways.insert(
        named("edge"),
        parse(json!({
            "metadata": { "name": "edge" },
            "spec": { "gatewayClassName": "pontoon", "listeners": listeners },
        })),
    );
    let shop = objects.services[&named("shop")].clone();
    for team in ["a", "b"] {
        let namespace = parse(json!({ "metadata": { "name": team, "labels": { "team": team } } }));
        objects.namespaces.insert(ObjectName::new("", team), namespace);
        objects.services.insert(ObjectName::new(team, "shop"), shop.clone());
        objects.secrets.insert(ObjectName::new(team, "shop"), secret_of_shop());
    }
    for (namespace, ingress) in ingresses {
        let ingress: Arc<Ingress> = parse(ingress.clone());
        let name = ObjectName::new(*namespace, ingress.metadata.name.as_deref().expect("a name"));
        objects.ingresses.insert(name, ingress);
    }
    compile(&Model { objects: Arc::new(objects), ..Model::default() })
}

fn reasons_in(compiled: &Compiled, namespace: &str, name: &str) -> Vec<&'static str> {
    let object = ObjectRef { kind: Kind::Ingress, name: ObjectName::new(namespace, name) };
    let wrong = compiled.statuses.of(&object).iter().filter(|condition| !condition.status);
    wrong.map(|condition| condition.reason).collect()
}

/// For one team alone.
fn of_team(team: &str) -> Json {
    json!({ "namespaces": { "from": "Selector", "selector": { "matchLabels": { "team": team } } } })
}

/// `HOST/PATH`, with a certificate or without one, older by its age.
fn at(host: Option<&str>, path: &str, certificate: Option<&str>, created: &str) -> Json {
    let path = json!({ "pathType": "Prefix", "path": path, "backend": backend("shop") });
    let mut rule = json!({ "http": { "paths": [path] } });
    if let Some(host) = host {
        rule["host"] = json!(host);
    }
    let mut ingress = json!({
        "metadata": { "name": "shop", "creationTimestamp": created }, "spec": { "rules": [rule] },
    });
    if let Some(certificate) = certificate {
        ingress["spec"]["tls"] = json!([{ "hosts": [certificate], "secretName": "shop" }]);
    }
    ingress
}

const EARLY: &str = "2026-01-01T00:00:00Z";
const LATE: &str = "2026-01-02T00:00:00Z";
const A: &str = "service/a/shop/80";
const B: &str = "service/b/shop/80";

#[test]
fn an_ingresss_listener_is_for_whom_the_gateway_lets_have_the_host() {
    let listener = |name: &str, host: &str, allowed: Json| json!({ "name": name, "port": 80, "protocol": "HTTP", "hostname": host, "allowedRoutes": allowed });
    let own = json!([listener("a", "a.test", of_team("a")), listener("b", "b.test", of_team("b"))]);
    let of_a = at(Some("a.test"), "/", Some("a.test"), LATE);
    // Under the certificate of another, by its name and by none.
    for host in [Some("a.test"), None] {
        let compiled = of_two_teams(&own, &[("a", of_a.clone()), ("b", at(host, "/login", None, EARLY))]);
        assert_eq!(outcome(&compiled, "https://a.test:443/login", &[]), A, "{host:?}");
        match host {
            Some(_) => assert_eq!(reasons_in(&compiled, "b", "shop"), ["NotAllowedByListeners"]),
            None => assert_eq!(outcome(&compiled, "http://b.test/login", &[]), B),
        }
    }
    // With a certificate of its own for the other's host, and the first to have one.
    let first = at(Some("b.test"), "/", Some("a.test"), EARLY);
    let compiled = of_two_teams(&own, &[("a", of_a.clone()), ("b", first)]);
    assert_eq!(outcome(&compiled, "https://a.test:443/", &[]), A);
    assert_eq!(reasons_in(&compiled, "b", "shop"), ["NotAllowedByListeners"]);
    let secrets = compiled.views["default/edge"].resources(ResourceType::Secret);
    assert_eq!(secrets.keys().map(|name| &**name).collect::<Vec<_>>(), ["a/shop"]);
    // And for one that is nobody's.
    let nobodys = at(Some("b.test"), "/", Some("c.test"), EARLY);
    assert_eq!(reasons_in(&of_two_teams(&own, &[("b", nobodys)]), "b", "shop"), ["NotAllowedByListeners"]);
    // The one for fewer hosts says so, and not the one for all.
    let all = json!({ "name": "all", "port": 8080, "protocol": "HTTP", "allowedRoutes": { "namespaces": { "from": "All" } } });
    let own = json!([all, listener("a", "*.test", of_team("a"))]);
    let of_b = at(Some("a.test"), "/login", None, EARLY);
    let compiled = of_two_teams(&own, &[("a", of_a), ("b", of_b)]);
    assert_eq!(outcome(&compiled, "https://a.test:443/login", &[]), A);
    assert_eq!(outcome(&compiled, "http://a.test:8080/login", &[]), B);
}

#[test]
fn what_an_https_listener_keeps_out_an_ingresss_for_one_of_its_hosts_does_too() {
    let own = json!([
        { "name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": { "namespaces": { "from": "All" } } },
        {
            "name": "https", "port": 443, "protocol": "HTTPS", "hostname": "*.test",
            "tls": { "certificateRefs": [{ "name": "nowhere" }] }, "allowedRoutes": of_team("a"),
        },
    ]);
    let ingresses = [
        ("a", at(Some("a.test"), "/", Some("a.test"), LATE)),
        ("b", at(Some("a.test"), "/login", None, EARLY)),
    ];
    let compiled = of_two_teams(&own, &ingresses);
    assert_eq!(outcome(&compiled, "https://a.test:443/login", &[]), A);
    assert_eq!(outcome(&compiled, "http://a.test/login", &[]), B, "there everybody is let in");
}

#[test]
fn what_no_rule_has_goes_to_the_default_backend() {
    let path = json!({ "pathType": "Prefix", "path": "/shop", "backend": backend("shop") });
    let compiled = compiled(&[json!({
        "metadata": { "name": "shop" },
        "spec": {
            "defaultBackend": backend("rest"),
            "rules": [{ "host": "shop.example.com", "http": { "paths": [path] } }],
        },
    })]);
    assert_eq!(outcome(&compiled, "http://shop.example.com/shop", &[]), SHOP);
    let rest = SHOP.replace("shop", "rest");
    for url in ["http://shop.example.com/", "http://other.example.com/shop"] {
        assert_eq!(outcome(&compiled, url, &[]), rest, "{url}");
    }
}

#[test]
fn routes_of_a_host_are_served_beside_an_ingress_with_its_certificate() {
    let ingress = with_certificate();
    let mut objects = objects(&[ingress]);
    objects.secrets.insert(named("shop"), secret_of_shop());
    objects.gateways.insert(
        named("edge"),
        parse(json!({
            "metadata": { "name": "edge" },
            "spec": { "gatewayClassName": "pontoon", "listeners": [
                { "name": "http", "port": 80, "protocol": "HTTP" },
                {
                    "name": "https", "port": 443, "protocol": "HTTPS", "hostname": "*.example.com",
                    "tls": { "certificateRefs": [{ "name": "shop" }] },
                },
            ] },
        })),
    );
    objects.routes.insert(
        named("rest"),
        parse(json!({
            "metadata": { "name": "rest" },
            "spec": {
                "parentRefs": [{ "name": "edge", "sectionName": "https" }], "hostnames": ["shop.example.com"],
                "rules": [{ "backendRefs": [{ "name": "rest", "port": 80 }] }],
            },
        })),
    );
    let compiled = compile(&Model { objects: Arc::new(objects), ..Model::default() });
    assert_eq!(outcome(&compiled, "https://shop.example.com:443/shop", &[]), SHOP);
    assert_eq!(outcome(&compiled, "https://shop.example.com:443/other", &[]), SHOP.replace("shop", "rest"));
}

#[test]
fn a_certificate_that_cannot_be_used_is_said_of_its_ingress() {
    let of = |secret: Option<Arc<crate::objects::Secret>>| {
        let mut objects = objects(&[with_certificate()]);
        objects.secrets.extend(secret.map(|secret| (named("shop"), secret)));
        let object = ObjectRef { kind: Kind::Secret, name: named("shop") };
        objects.refused.insert(object, "data: it is no certificate".into());
        let compiled = compile(&Model { objects: Arc::new(objects), ..Model::default() });
        let said = compiled.statuses.of(&ObjectRef { kind: Kind::Ingress, name: named("shop") });
        let said = said.iter().filter(|condition| !condition.status);
        said.map(|said| (said.reason, said.field.clone(), said.message.clone())).collect::<Vec<_>>()
    };
    let field = "spec.tls[0].secretName".to_owned();
    let message = "Secret default/shop cannot be used: data: it is no certificate".to_owned();
    assert_eq!(of(None), [("InvalidCertificateRef", field.clone(), message)]);
    let kept = of(Some(secret_of_shop()));
    assert!(matches!(kept.as_slice(), [("Outdated", at, _)] if *at == field), "{kept:?}");
}

#[test]
fn the_younger_of_two_ingresses_with_one_path_is_told_of_the_other() {
    let of = |name: &str, year: u32, written: &str| {
        let path = |path: &str| json!({ "pathType": "Prefix", "path": path, "backend": backend(name) });
        json!({
            "metadata": { "name": name, "creationTimestamp": format!("{year}-01-01T00:00:00Z") },
            "spec": {
                "defaultBackend": backend(name),
                "rules": [{ "host": "shop.example.com", "http": { "paths": [path("/"), path(written)] } }],
            },
        })
    };
    let compiled = compiled(&[of("young", 2025, "/shop"), of("old", 2024, "/shop/")]);
    let said = |name: &str| {
        let said = compiled.statuses.of(&ObjectRef { kind: Kind::Ingress, name: named(name) });
        let said = said.iter().filter(|condition| condition.reason == "NeverTaken");
        said.map(|said| format!("{}: {}", said.field, said.message)).collect::<Vec<_>>()
    };
    assert_eq!(said("old"), [""; 0]);
    let young = said("young");
    assert_eq!(young.len(), 2, "{young:?}");
    assert!(
        young[1].starts_with("spec.rules[0].http.paths[1]: no requests for shop.example.com on"),
        "{young:?}"
    );
    assert!(young[1].contains("Ingress default/old has the same match and is older"), "{young:?}");
}

#[test]
fn a_host_with_a_certificate_is_for_https() {
    let secret = secret_of_shop();
    let of = |annotations: &[(&str, &str)]| {
        let mut ingress = ingress("shop", annotations, ("Prefix", "/"), "shop");
        ingress["spec"]["tls"] = json!([{ "hosts": ["shop.example.com"], "secretName": "shop" }]);
        let mut objects = objects(&[ingress]);
        objects.secrets.insert(named("shop"), Arc::clone(&secret));
        compile(&Model { objects: Arc::new(objects), ..Model::default() })
    };
    let shop = of(&[]);
    assert_eq!(outcome(&shop, "http://shop.example.com/x", &[]), "PERMANENT_REDIRECT https  -");
    assert_eq!(outcome(&shop, "https://shop.example.com:443/x", &[]), SHOP);
    assert_eq!(shop.views["default/edge"].resources(ResourceType::Secret).len(), 1);
    let both = of(&[("ssl-redirect", "false")]);
    assert_eq!(outcome(&both, "http://shop.example.com/x", &[]), SHOP);
}
