use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::matching::{HeaderMatcher, HeaderSource, PathMatcher, QueryMatcher, RouteMatcher, ValueMatcher};
use super::*;

const TARGET: &str = "target";
const LEGACY: &str = "legacy";

fn cluster(name: &str) -> Arc<Cluster> {
    Arc::new(Cluster::named(name.into()))
}

fn on_path(path: PathMatcher) -> RouteMatcher {
    RouteMatcher { path, headers: Box::default(), query: Box::default(), fraction: None }
}

fn forward(targets: Targets, hash: Vec<HashPolicy>) -> Action {
    Action::Forward(Forward {
        targets,
        hash: hash.into(),
        timeout: None,
        idle_timeout: None,
        longest_stream: None,
        retry: RetryPolicy {
            max_retries: 1,
            per_try_timeout: None,
            on_connect_failure: true,
            on_refused_stream: true,
            on_broken_connection: true,
            on_status: None,
            back_off: None,
        },
        prefix_rewrite: None,
        regex_rewrite: None,
        host_rewrite: None,
        connect: false,
        max_body_bytes: Default::default(),
        sessions: Default::default(),
        mirrors: Box::default(),
        high_priority: false,
    })
}

fn route(name: &str, matcher: RouteMatcher) -> Route {
    let action = forward(Targets::One(cluster(name)), Vec::new());
    Route {
        name: name.into(),
        matcher,
        action,
        request_headers: Box::default(),
        response_headers: Box::default(),
        cors: Default::default(),
        rbac: Default::default(),
        rate_limits: Default::default(),
        authz: Default::default(),
    }
}

fn table(hosts: Vec<(&[&str], Vec<Route>)>) -> RouteTable {
    let hosts = hosts.into_iter().map(|(domains, routes)| {
        let name = domains.first().copied().unwrap_or_default();
        (domains.iter().map(ToString::to_string).collect(), VirtualHost::new(name.into(), routes))
    });
    RouteTable::new("r".into(), "1".into(), true, hosts.collect()).unwrap()
}

/// Two arms, the target first, split by the header `x-user`.
fn split(target: u32) -> RouteTable {
    let arm = |name: &str, weight| WeightedCluster {
        cluster: cluster(name),
        weight,
        request_headers: Box::default(),
        response_headers: Box::default(),
    };
    let targets = Targets::Weighted {
        clusters: vec![arm(TARGET, target), arm(LEGACY, 10_000 - target)],
        total: 10_000,
        by: WeightedBy::Hash,
    };
    let policy = HashPolicy::Header { name: HeaderName::from_static("x-user"), terminal: false };
    let action = forward(targets, vec![policy]);
    let matcher = on_path(PathMatcher::Prefix("/".into()));
    let route = Route {
        name: "split".into(),
        matcher,
        action,
        request_headers: Box::default(),
        response_headers: Box::default(),
        cors: Default::default(),
        rbac: Default::default(),
        rate_limits: Default::default(),
        authz: Default::default(),
    };
    table(vec![(&["*"], vec![route])])
}

struct Request {
    method: Method,
    uri: Uri,
    host: String,
    headers: HeaderMap,
    random: u64,
}

impl Request {
    fn get(host: &str, uri: &str) -> Request {
        let uri = uri.parse().unwrap();
        Request { method: Method::GET, uri, host: host.into(), headers: HeaderMap::new(), random: 0 }
    }

    fn with(mut self, name: &'static str, value: &str) -> Request {
        self.headers.append(name, value.parse().unwrap());
        self
    }

    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.method,
            uri: &self.uri,
            host: &self.host,
            headers: &self.headers,
            client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            random: self.random,
        }
    }
}

fn decided(table: &RouteTable, request: &Request) -> Result<String, NoRoute> {
    let head = request.head();
    let served = table.decide(&head, &mut ()).map(|d| d.target.unwrap().cluster.name.to_string());
    let explained =
        table.decide(&head, &mut Recorded::default()).map(|d| d.target.unwrap().cluster.name.to_string());
    assert_eq!(served, explained, "explain must say what serving does");
    served
}

fn side_of(table: &RouteTable, user: &str) -> String {
    decided(table, &Request::get("h", "/").with("x-user", user)).unwrap()
}

#[test]
fn the_most_specific_domain_wins_whatever_the_order() {
    let to = |name: &str| vec![route(name, on_path(PathMatcher::Prefix("/".into())))];
    let table = table(vec![
        (&["*"], to("any")),
        (&["*.example.com"], to("suffix")),
        (&["*.shop.example.com"], to("longer suffix")),
        (&["www.*"], to("prefix")),
        (&["Shop.Example.com"], to("exact")),
    ]);
    for (host, expected) in [
        ("shop.example.com", "exact"),
        ("SHOP.example.COM:8080", "exact"),
        ("a.example.com", "suffix"),
        ("a.shop.example.com", "longer suffix"),
        ("www.example.org", "prefix"),
        ("example.org", "any"),
        (".example.com", "any"),
    ] {
        assert_eq!(decided(&table, &Request::get(host, "/")).as_deref(), Ok(expected), "{host}");
    }
}

#[test]
fn a_domain_that_is_given_twice_is_refused() {
    let host = || VirtualHost::new("v".into(), Vec::new());
    let hosts = vec![(vec!["a".into()], host()), (vec!["A".into()], host())];
    let error = RouteTable::new("r".into(), "1".into(), false, hosts).unwrap_err();
    assert_eq!(error.domain, "A");
}

#[test]
fn a_repeated_header_counts_by_value_and_a_missing_one_meets_nothing() {
    for (invert, missing_is_empty, values, expected) in [
        (false, false, &["v"][..], true),
        (false, false, &["w", "v"], true),
        (false, false, &["v,w"], false),
        (false, false, &[], false),
        (true, false, &["w"], true),
        (true, false, &["w", "v"], false),
        (true, false, &[], false),
        (true, true, &[], true),
    ] {
        let matcher = HeaderMatcher {
            source: HeaderSource::Named(HeaderName::from_static("x")),
            value: Some(ValueMatcher::Exact("v".into())),
            invert,
            missing_is_empty,
        };
        let only = RouteMatcher { headers: [matcher].into(), ..on_path(PathMatcher::Prefix("/".into())) };
        let table = table(vec![(&["*"], vec![route("r", only)])]);
        let request = values.iter().fold(Request::get("h", "/"), |request, value| request.with("x", value));
        assert_eq!(decided(&table, &request).is_ok(), expected, "{invert} {missing_is_empty} {values:?}");
    }
}

#[test]
fn the_first_route_that_matches_wins() {
    let header = |value: &str| HeaderMatcher {
        source: HeaderSource::Named(HeaderName::from_static("x-group")),
        value: Some(ValueMatcher::Exact(value.into())),
        invert: false,
        missing_is_empty: false,
    };
    let staff =
        RouteMatcher { headers: [header("staff")].into(), ..on_path(PathMatcher::Prefix("/".into())) };
    let query = QueryMatcher { name: "debug".into(), value: None };
    let debug = RouteMatcher { query: [query].into(), ..on_path(PathMatcher::Exact("/a".into())) };
    let method = HeaderMatcher {
        source: HeaderSource::Method,
        value: Some(ValueMatcher::Exact("POST".into())),
        invert: false,
        missing_is_empty: false,
    };
    let post = RouteMatcher { headers: [method].into(), ..on_path(PathMatcher::Exact("/a".into())) };
    let table = table(vec![(
        &["*"],
        vec![
            route("staff", staff),
            route("post", post),
            route("debug", debug),
            route("a", on_path(PathMatcher::SeparatedPrefix("/a".into()))),
        ],
    )]);
    let get = |uri| Request::get("h", uri);
    assert_eq!(decided(&table, &get("/a?debug").with("x-group", "staff")).unwrap(), "staff");
    assert_eq!(decided(&table, &get("/a?x=1&debug=")).unwrap(), "debug");
    assert_eq!(decided(&table, &Request { method: Method::POST, ..get("/a") }).unwrap(), "post");
    assert_eq!(decided(&table, &get("/a/b")).unwrap(), "a");
    assert_eq!(decided(&table, &get("/ab")), Err(NoRoute::Route));
}

#[test]
fn a_route_with_a_fraction_takes_that_share_and_leaves_the_rest() {
    const QUARTER: u32 = 250_000;
    let lot = RouteMatcher { fraction: Some(QUARTER), ..on_path(PathMatcher::Prefix("/".into())) };
    let mut rest = route("rest", on_path(PathMatcher::Prefix("/".into())));
    let arm = |name: &str| WeightedCluster {
        cluster: cluster(name),
        weight: 1,
        request_headers: Box::default(),
        response_headers: Box::default(),
    };
    let targets =
        Targets::Weighted { clusters: vec![arm("one"), arm("other")], total: 2, by: WeightedBy::Random };
    rest.action = forward(targets, Vec::new());
    let table = table(vec![(&["*"], vec![route("lot", lot), rest])]);
    let mut random = fastrand::Rng::with_seed(7);
    let (mut drawn, mut one) = (0, 0);
    for _ in 0..20_000 {
        let request = Request { random: random.u64(..), ..Request::get("h", "/") };
        match decided(&table, &request).unwrap().as_str() {
            "lot" => drawn += 1,
            "one" => one += 1,
            _ => {}
        }
    }
    assert!((4_700..5_300).contains(&drawn), "{drawn} of 20000");
    assert!((7_200..7_800).contains(&one), "{one} of 20000: the choice behind it hangs on the lot");
}

#[test]
fn a_cookie_that_is_missing_is_made_and_then_keeps_its_user() {
    let mut table = split(5_000);
    let policy = HashPolicy::Cookie {
        name: "uid".into(),
        ttl: Some(Duration::from_secs(60)),
        path: "/".into(),
        terminal: false,
    };
    let host = Arc::get_mut(&mut table.virtual_hosts[0]).unwrap();
    let route = Arc::get_mut(&mut host.routes[0]).unwrap();
    let Action::Forward(forward) = &mut route.action else { panic!("a forward") };
    forward.hash = [policy].into();

    for random in 0..200_u64 {
        let first = Request { random: random.wrapping_mul(0x9E37_79B9_7F4A_7C15), ..Request::get("h", "/") };
        let head = first.head();
        let decision = table.decide(&head, &mut ()).unwrap();
        let cookie = decision.set_cookie.unwrap().to_str().unwrap().to_owned();
        assert!(cookie.ends_with("; Max-Age=60; Path=/; HttpOnly"), "{cookie}");
        let pair = cookie.split(';').next().unwrap();
        let second = Request { random: 7, ..Request::get("h", "/") }.with("cookie", &format!("a=b; {pair}"));
        let head = second.head();
        let again = table.decide(&head, &mut ()).unwrap();
        assert_eq!(again.target.unwrap().bucket, decision.target.unwrap().bucket);
        assert!(again.set_cookie.is_none());
    }
}

#[test]
fn a_hundred_thousand_users_move_only_where_the_weight_says() {
    let weights = [0, 1, 500, 2_000, 5_000, 9_999, 10_000];
    let tables: Vec<RouteTable> = weights.iter().map(|w| split(*w)).collect();
    let mut on_target = [0_u32; 7];
    for user in 0..100_000 {
        let user = format!("user-{user}");
        let sides: Vec<String> = tables.iter().map(|t| side_of(t, &user)).collect();
        // Once on the target, a user stays there for every higher weight.
        assert!(sides.windows(2).all(|w| w[0] == LEGACY || w[1] == TARGET), "{user}: {sides:?}");
        for (count, side) in on_target.iter_mut().zip(&sides) {
            *count += u32::from(side == TARGET);
        }
    }
    for (weight, count) in weights.iter().zip(on_target) {
        let expected = f64::from(*weight) * 10.0;
        // Five standard deviations of a binomial share.
        let tolerance = 5.0 * (expected * (1.0 - expected / 100_000.0)).sqrt();
        assert!((f64::from(count) - expected).abs() <= tolerance, "{weight}: {count} of 100,000");
    }
}

proptest! {
    #[test]
    fn a_users_side_depends_on_nothing_but_key_and_weight(
        user in "[ -~]{1,40}", weight in 0_u32..=10_000, random: u64, path in "/[a-z]{0,10}",
    ) {
        let table = split(weight);
        let user = user.trim();
        prop_assume!(!user.is_empty());
        let request = Request { random, ..Request::get("elsewhere", &path) }.with("x-user", user);
        let expected = if twox_hash::XxHash64::oneshot(0, user.as_bytes()) % 10_000 < u64::from(weight) {
            TARGET
        } else {
            LEGACY
        };
        prop_assert_eq!(decided(&table, &request).unwrap(), expected);
    }

    #[test]
    fn the_index_finds_what_a_plain_scan_finds(
        routes in prop::collection::vec(("/[ab/]{0,4}", 0_u8..4), 0..40), path in "/[ab/]{0,6}",
    ) {
        let matcher = |(text, kind): &(String, u8)| match kind {
            0 => PathMatcher::Exact(text.as_str().into()),
            1 => PathMatcher::Prefix(text.as_str().into()),
            2 => PathMatcher::SeparatedPrefix(text.as_str().into()),
            _ => PathMatcher::Regex(Expression::whole(&format!("{text}.")).unwrap()),
        };
        let made = routes.iter().enumerate().map(|(i, r)| route(&i.to_string(), on_path(matcher(r))));
        let table = table(vec![(&["*"], made.collect())]);
        let scanned = routes.iter().position(|r| matcher(r).matches(&path)).map(|i| i.to_string());
        prop_assert_eq!(decided(&table, &Request::get("h", &path)).ok(), scanned);
    }
}

/// A gateway has thousands of them, each with a host and one or two routes.
#[test]
fn a_route_and_its_host_are_small() {
    assert!(size_of::<Route>() <= 376, "{}", size_of::<Route>());
    assert!(size_of::<VirtualHost>() <= 64, "{}", size_of::<VirtualHost>());
    let of = |count| (0..count).map(|_| route("a", on_path(PathMatcher::Prefix("/".into())))).collect();
    let host = VirtualHost::new("h".into(), of(2)).with_domains(&["h".to_owned(), "g".to_owned()]);
    assert_eq!(host.routes.capacity(), 2);
    assert!(host.paths.is_none(), "two are looked through");
    assert!(std::sync::Arc::ptr_eq(&host.domains[0], &host.name));
    assert!(VirtualHost::new("h".into(), of(20)).paths.is_some());
}
