//! Matching: routes of any form, with path templates, expressions, header predicates and hash policies, over any
//! request. The decision that is explained is made, and made the same way twice.
#![no_main]

use arbitrary::Arbitrary;
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_action::HashPolicy;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{Cookie, Header, PolicySpecifier};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::{ClusterWeight, RandomValueSpecifier};
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, route,
};
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use libfuzzer_sys::fuzz_target;
use pontoon_fuzz::{any, serving};
use pontoon_proxy::explain;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    routes: Vec<(u8, &'a str, u8, &'a str)>,
    domain: &'a str,
    host: &'a str,
    path: &'a str,
    headers: Vec<(u8, &'a str)>,
}

const NAMES: [&str; 5] = ["cookie", "x-user", "x-forwarded-for", ":path", ":authority"];

fuzz_target!(|input: Input<'_>| {
    let routes = input.routes.iter().take(8).map(|(path, text, header, value)| Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(specifier(*path, text)),
            case_sensitive: Some(BoolValue { value: path & 64 == 0 }),
            headers: header_matcher(*header, value).into_iter().collect(),
            ..Default::default()
        }),
        action: Some(route::Action::Route(action(value))),
        ..Default::default()
    });
    let host = VirtualHost {
        name: "v".into(),
        domains: vec![input.domain.to_owned(), "*".into()],
        routes: routes.collect(),
        ..Default::default()
    };
    let table = RouteConfiguration { name: "r".into(), virtual_hosts: vec![host], ..Default::default() };
    let Some(store) = serving(&table) else { return };
    let Ok(uri) = format!("http://{}{}", input.host, input.path).parse::<http::Uri>() else { return };
    let mut request =
        explain::Request { method: http::Method::GET, uri, headers: Default::default(), client: None };
    for (name, value) in &input.headers {
        let name = NAMES[usize::from(*name) % 3];
        if let Ok(value) = http::HeaderValue::from_str(value) {
            request.headers.append(name, value);
        }
    }
    let first = explain::over(&store, &request);
    if !first.random {
        assert_eq!(explain::over(&store, &request), first);
    }
});

fn specifier(kind: u8, text: &str) -> PathSpecifier {
    match kind % 6 {
        0 => PathSpecifier::Path(text.into()),
        1 => PathSpecifier::Prefix(text.into()),
        2 => PathSpecifier::PathSeparatedPrefix(text.into()),
        3 => PathSpecifier::SafeRegex(RegexMatcher { regex: text.into(), ..Default::default() }),
        4 => PathSpecifier::PathMatchPolicy(TypedExtensionConfig {
            name: "x".into(),
            typed_config: Some(any(&UriTemplateMatchConfig { path_template: text.into() })),
        }),
        _ => PathSpecifier::ConnectMatcher(Default::default()),
    }
}

fn header_matcher(kind: u8, value: &str) -> Option<HeaderMatcher> {
    let pattern = match kind % 6 {
        0 => return None,
        1 => MatchPattern::Exact(value.into()),
        2 => MatchPattern::Prefix(value.into()),
        3 => MatchPattern::Suffix(value.into()),
        4 => MatchPattern::Contains(value.into()),
        _ => MatchPattern::SafeRegex(RegexMatcher { regex: value.into(), ..Default::default() }),
    };
    let matcher = StringMatcher { match_pattern: Some(pattern), ignore_case: kind & 32 != 0 };
    Some(HeaderMatcher {
        name: NAMES[usize::from(kind) % NAMES.len()].into(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher)),
        invert_match: kind & 64 != 0,
        treat_missing_header_as_empty: kind & 128 != 0,
    })
}

/// A split of two, by the hash of what `name` names.
fn action(name: &str) -> RouteAction {
    let arm = |name: &str, value| ClusterWeight {
        name: name.into(),
        weight: Some(UInt32Value { value }),
        ..Default::default()
    };
    let policy = |specifier| HashPolicy { policy_specifier: Some(specifier), ..Default::default() };
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: vec![arm("a", 3), arm("b", 5)],
            random_value_specifier: Some(RandomValueSpecifier::UseHashPolicy(BoolValue { value: true })),
            ..Default::default()
        })),
        hash_policy: vec![
            policy(PolicySpecifier::Cookie(Cookie { name: name.into(), ..Default::default() })),
            policy(PolicySpecifier::Header(Header { header_name: "x-user".into(), ..Default::default() })),
        ],
        ..Default::default()
    }
}
