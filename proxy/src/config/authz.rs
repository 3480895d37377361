//! The filter that asks others whether a request may go on: in the listener, and what a route says of it. They are asked
//! by HTTP, and without the request's body.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{HttpUri, http_uri};
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::{
    AuthorizationRequest, AuthorizationResponse, CheckSettings, ExtAuthz, ExtAuthzPerRoute, HttpService,
    check_settings, ext_authz, ext_authz_per_route,
};
use envoy_types::pb::envoy::r#type::matcher::v3::ListStringMatcher;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode};

use super::hcm::duration;
use super::matching;
use super::problem::{Problem, Under, each, filled};
use super::rds::{self, Clusters};
use super::support::{Message, support};
use crate::route::HeaderMutation;
use crate::route::authz::{CheckPath, Filter, Nginx, OfRoute, Service};
use crate::route::matching::ValueMatcher;
use crate::upstream::cluster::Cluster;

/// As everybody calls it.
pub(super) const NAME: &str = "envoy.filters.http.ext_authz";
/// The context extension that is our control plane's: the route's service is asked as nginx's `auth_request` does.
/// Its value is a method, a host and, mostly, where to sign in, with spaces between them.
const NGINX: &str = "pontoon.dev/auth-request";

pub(super) const MESSAGES: &[Message] =
    &[FILTER, SERVICE, SERVER_URI, CHECK_REQUEST, CHECK_RESPONSE, PER_ROUTE, CHECK_SETTINGS];

support! {
    FILTER, filter: ExtAuthz = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
    read: failure_mode_allow, failure_mode_allow_header_add, status_on_error, allowed_headers, disallowed_headers, encode_raw_headers, max_denied_response_body_bytes, services;
    ignored:
        transport_api_version => "it is for services that speak gRPC",
        metadata_context_namespaces => "it is for services that speak gRPC",
        typed_metadata_context_namespaces => "it is for services that speak gRPC",
        route_metadata_context_namespaces => "it is for services that speak gRPC",
        route_typed_metadata_context_namespaces => "it is for services that speak gRPC",
        include_peer_certificate => "it is for services that speak gRPC",
        include_tls_session => "it is for services that speak gRPC",
        bootstrap_metadata_labels_key => "it is for services that speak gRPC",
        enable_dynamic_metadata_ingestion => "no filter here reads metadata",
        filter_metadata => "no filter here reads metadata",
        stat_prefix => "it only names statistics",
        charge_cluster_response_stats => "it only adds statistics",
        emit_filter_state_stats => "it only adds statistics",
        emit_client_span => "spans are not reported",
        validate_mutations => "an answer whose headers are not valid is none";
    refused: with_request_body, clear_route_cache, filter_enabled, filter_enabled_metadata, deny_at_disable, decoder_header_mutation_rules, enforce_response_header_limits, shadow_mode;
}

support! {
    SERVICE, service_fields: HttpService = "envoy.extensions.filters.http.ext_authz.v3.HttpService";
    read: server_uri, path_prefix, path_override, authorization_request, authorization_response;
    ignored:;
    refused: retry_policy;
}

support! {
    SERVER_URI, server_uri: HttpUri = "envoy.config.core.v3.HttpUri";
    read: timeout, http_upstream_type;
    ignored:
        uri => "the cluster says where it is";
    refused: ;
}

support! {
    CHECK_REQUEST, check_request: AuthorizationRequest = "envoy.extensions.filters.http.ext_authz.v3.AuthorizationRequest";
    read: allowed_headers, headers_to_add;
    ignored:;
    refused: ;
}

support! {
    CHECK_RESPONSE, check_response: AuthorizationResponse = "envoy.extensions.filters.http.ext_authz.v3.AuthorizationResponse";
    read: allowed_upstream_headers, allowed_upstream_headers_to_append, allowed_client_headers, allowed_client_headers_on_success;
    ignored:;
    refused: dynamic_metadata_from_headers;
}

support! {
    PER_ROUTE, per_route: ExtAuthzPerRoute = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";
    read: r#override;
    ignored:;
    refused: ;
}

support! {
    CHECK_SETTINGS, check_settings_fields: CheckSettings = "envoy.extensions.filters.http.ext_authz.v3.CheckSettings";
    read: service_override, context_extensions;
    ignored:
        disable_request_body_buffering => "no body is buffered",
        emit_client_span => "spans are not reported";
    refused: with_request_body;
}

/// Of a refusal's body, whatever is said: it is held in memory.
const MOST_BODY_BYTES: usize = 64 * 1024;

/// A listener's filter. Its cluster is only named: the handle is the store's to give.
pub(super) fn compile(name: &str, disabled: bool, message: &ExtAuthz) -> Result<Filter, Problem> {
    filter(message)?;
    let Some(ext_authz::Services::HttpService(asked)) = &message.services else {
        return Err(Problem::new("http_service", "is missing; this proxy asks by HTTP, not by gRPC"));
    };
    let named = |name: &str| Ok(Arc::new(Cluster::named(name.into())));
    let service = service(asked, &named).under(|| "http_service".into())?;
    #[allow(deprecated, reason = "still sent by control planes")]
    let older = asked.authorization_request.as_ref().and_then(|request| request.allowed_headers.as_ref());
    if older.is_some() && message.allowed_headers.is_some() {
        return Err(Problem::new("allowed_headers", "is also in http_service; give one of them"));
    }
    let most = usize::try_from(message.max_denied_response_body_bytes).unwrap_or(usize::MAX);
    Ok(Filter {
        name: name.into(),
        disabled,
        service: Arc::new(service),
        allowed: patterns("allowed_headers", message.allowed_headers.as_ref().or(older))?,
        disallowed: patterns("disallowed_headers", message.disallowed_headers.as_ref())?,
        raw_headers: message.encode_raw_headers,
        failure_allows: message.failure_mode_allow,
        failure_is_told: message.failure_mode_allow_header_add,
        failure_status: match &message.status_on_error {
            None => StatusCode::FORBIDDEN,
            Some(status) => failure_status(status.code)?,
        },
        most_body_bytes: if most == 0 { MOST_BODY_BYTES } else { most.min(MOST_BODY_BYTES) },
    })
}

/// One that ends the request: as if nothing had been wrong would be worse than nothing.
fn failure_status(code: i32) -> Result<StatusCode, Problem> {
    let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.filter(|status| status.is_client_error() || status.is_server_error());
    status.ok_or_else(|| Problem::new("status_on_error.code", format!("is {code}; must be 400 to 599")))
}

/// What a route says, with what is said around it, as Envoy merges them: whom to ask stays unless it is said again.
pub(super) fn of_route(
    message: &ExtAuthzPerRoute,
    around: Option<&OfRoute>,
    clusters: &Clusters<'_>,
) -> Result<OfRoute, Problem> {
    per_route(message)?;
    let mut said = around.cloned().unwrap_or_default();
    let settings = match &message.r#override {
        Some(ext_authz_per_route::Override::Disabled(off)) => {
            said.off = *off;
            return Ok(said);
        }
        Some(ext_authz_per_route::Override::CheckSettings(settings)) => settings,
        None => {
            return Err(Problem::new("override", "is missing; give check_settings, or disabled: true"));
        }
    };
    let at = || "check_settings".into();
    check_settings_fields(settings).under(at)?;
    said.off = false;
    let nginx = settings.context_extensions.get(NGINX);
    let nginx = nginx.map(|value| nginx_check(value).under(|| format!("context_extensions[{NGINX}]")));
    let nginx = nginx.transpose().under(at)?;
    match &settings.service_override {
        None if nginx.is_some() => return Err(Problem::new("http_service", "is missing")).under(at),
        None => {}
        Some(check_settings::ServiceOverride::HttpService(asked)) => {
            let service = route_service(asked, clusters).under(|| "http_service".into()).under(at)?;
            let service = Service { nginx, ..service };
            said.service = Some(Arc::new(service));
        }
        Some(check_settings::ServiceOverride::GrpcService(_)) => {
            let reason = "is set, but this proxy asks by HTTP, not by gRPC";
            return Err(Problem::new("grpc_service", reason)).under(at);
        }
    }
    Ok(said)
}

fn nginx_check(value: &str) -> Result<Box<Nginx>, Problem> {
    let mut words = value.split(' ');
    let method = words.next().and_then(|word| Method::from_bytes(word.as_bytes()).ok());
    let host = words.next().and_then(|word| HeaderValue::try_from(word).ok());
    let sign_in = words.next().map(Into::into);
    match (method, host, words.next()) {
        (Some(method), Some(host), None) if method != Method::CONNECT => {
            Some(Nginx { method, host, sign_in })
        }
        _ => None,
    }
    .filter(Nginx::is_good)
    .map(Box::new)
    .ok_or_else(|| Problem::new("", format!("is {value:?}; must be \"METHOD HOST [SIGN-IN]\"")))
}

fn route_service(message: &HttpService, clusters: &Clusters<'_>) -> Result<Service, Problem> {
    #[allow(deprecated, reason = "still sent by control planes")]
    let allowed = message.authorization_request.as_ref().and_then(|request| request.allowed_headers.as_ref());
    if allowed.is_some() {
        let reason = "is set; which headers are told is the listener's filter's to say, in Envoy too";
        return Err(Problem::new("authorization_request.allowed_headers", reason));
    }
    service(message, clusters)
}

fn service(message: &HttpService, clusters: &Clusters<'_>) -> Result<Service, Problem> {
    service_fields(message)?;
    let uri = message.server_uri.as_ref().ok_or_else(|| Problem::new("server_uri", "is missing"))?;
    let at = || "server_uri".into();
    server_uri(uri).under(at)?;
    let cluster = match &uri.http_upstream_type {
        Some(http_uri::HttpUpstreamType::Cluster(name)) => name.as_str(),
        None => "",
    };
    filled("cluster", cluster).under(at)?;
    let timeout = duration("timeout", uri.timeout).under(at)?.filter(|timeout| !timeout.is_zero());
    let timeout = timeout.ok_or_else(|| {
        Problem::new("timeout", "is missing or 0; must be greater than 0: requests wait for it")
    });
    let request = message.authorization_request.clone().unwrap_or_default();
    let in_request = || "authorization_request".into();
    check_request(&request).under(in_request)?;
    let headers = each("headers_to_add", &request.headers_to_add, |given| {
        rds::named_value(given).map(|(name, value)| HeaderMutation::Set(name, value))
    });
    let response = message.authorization_response.clone().unwrap_or_default();
    let in_response = || "authorization_response".into();
    check_response(&response).under(in_response)?;
    let list =
        |field: &str, list: &Option<ListStringMatcher>| patterns(field, list.as_ref()).under(in_response);
    Ok(Service {
        cluster: clusters(cluster).under(|| "cluster".into()).under(at)?,
        timeout: timeout.under(at)?,
        path: path(message)?,
        headers: headers.under(in_request)?.into(),
        upstream: list("allowed_upstream_headers", &response.allowed_upstream_headers)?,
        upstream_too: list(
            "allowed_upstream_headers_to_append",
            &response.allowed_upstream_headers_to_append,
        )?,
        client: list("allowed_client_headers", &response.allowed_client_headers)?,
        client_on_success: list(
            "allowed_client_headers_on_success",
            &response.allowed_client_headers_on_success,
        )?,
        nginx: None,
    })
}

fn path(message: &HttpService) -> Result<CheckPath, Problem> {
    let (prefix, only) = (message.path_prefix.as_str(), message.path_override.as_str());
    let read = |field: &str, path: &str| match PathAndQuery::try_from(path) {
        Ok(read) if path.starts_with('/') => Ok(read),
        _ => Err(Problem::new(field, format!("is {path:?}; must be a path, which begins with a slash"))),
    };
    match (prefix, only) {
        ("", "") => Ok(CheckPath::Prefix(Box::default())),
        (prefix, "") => read("path_prefix", prefix).map(|_| CheckPath::Prefix(prefix.into())),
        ("", only) => read("path_override", only).map(CheckPath::Only),
        _ => Err(Problem::new("path_override", "is set beside path_prefix; give one of them")),
    }
}

fn patterns(field: &str, list: Option<&ListStringMatcher>) -> Result<Box<[ValueMatcher]>, Problem> {
    let patterns = list.map_or(&[][..], |list| &list.patterns);
    each("patterns", patterns, matching::string).under(|| field.into()).map(Into::into)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use envoy_types::pb::envoy::config::core::v3::HeaderValue;
    use envoy_types::pb::envoy::r#type::matcher::v3::StringMatcher;
    use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
    use envoy_types::pb::envoy::r#type::v3::HttpStatus;
    use envoy_types::pb::google::protobuf;

    use super::*;

    fn asked(cluster: &str) -> HttpService {
        HttpService {
            server_uri: Some(HttpUri {
                uri: "http://auth".into(),
                timeout: Some(protobuf::Duration { seconds: 2, nanos: 0 }),
                http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(cluster.into())),
            }),
            ..HttpService::default()
        }
    }

    fn by(service: HttpService) -> ExtAuthz {
        ExtAuthz { services: Some(ext_authz::Services::HttpService(service)), ..ExtAuthz::default() }
    }

    fn list(name: &str) -> Option<ListStringMatcher> {
        let exact = StringMatcher {
            match_pattern: Some(MatchPattern::Exact(name.into())),
            ..StringMatcher::default()
        };
        Some(ListStringMatcher { patterns: vec![exact] })
    }

    #[test]
    fn what_is_wrong_is_told_by_its_path() {
        let at = |message: &ExtAuthz| compile("f", false, message).unwrap_err().path;
        assert_eq!(at(&ExtAuthz::default()), "http_service");
        assert_eq!(at(&ExtAuthz { clear_route_cache: true, ..by(asked("a")) }), "clear_route_cache");
        assert_eq!(at(&by(asked(""))), "http_service.server_uri.cluster");
        let mut endless = asked("a");
        endless.server_uri.as_mut().unwrap().timeout = None;
        assert_eq!(at(&by(endless)), "http_service.server_uri.timeout");
        let of_path = |prefix: &str, only: &str| HttpService {
            path_prefix: prefix.into(),
            path_override: only.into(),
            ..asked("a")
        };
        assert_eq!(at(&by(of_path("auth", ""))), "http_service.path_prefix");
        assert_eq!(at(&by(of_path("", "a b"))), "http_service.path_override");
        assert_eq!(at(&by(of_path("/a", "/b"))), "http_service.path_override");
        let added = |key: &str, value: &str| {
            let header = HeaderValue { key: key.into(), value: value.into(), ..HeaderValue::default() };
            let request = AuthorizationRequest { headers_to_add: vec![header], ..Default::default() };
            by(HttpService { authorization_request: Some(request), ..asked("a") })
        };
        let headers = "http_service.authorization_request.headers_to_add[0]";
        assert_eq!(at(&added("host", "a")), format!("{headers}.key"));
        assert_eq!(at(&added("x-a", "%REQ(a)%")), format!("{headers}.value"));
        for code in [0, 200, 302, 600] {
            let message = ExtAuthz { status_on_error: Some(HttpStatus { code }), ..by(asked("a")) };
            assert_eq!(at(&message), "status_on_error.code");
        }
        let pattern = Some(ListStringMatcher { patterns: vec![StringMatcher::default()] });
        let message = ExtAuthz { disallowed_headers: pattern, ..by(asked("a")) };
        assert_eq!(at(&message), "disallowed_headers.patterns[0].match_pattern");
    }

    #[test]
    fn what_is_not_said_is_as_in_envoy() {
        let filter = compile("f", false, &by(asked("a"))).unwrap();
        assert_eq!((filter.failure_status, filter.failure_allows), (StatusCode::FORBIDDEN, false));
        assert_eq!((filter.service.timeout, &*filter.service.cluster.name), (Duration::from_secs(2), "a"));
        assert_eq!(filter.most_body_bytes, MOST_BODY_BYTES);
        assert!(filter.allowed.is_empty());
        let small = ExtAuthz { max_denied_response_body_bytes: 10, ..by(asked("a")) };
        assert_eq!(compile("f", false, &small).unwrap().most_body_bytes, 10);
    }

    #[test]
    #[allow(deprecated, reason = "still sent by control planes")]
    fn headers_are_listed_in_one_of_two_places() {
        let request = AuthorizationRequest { allowed_headers: list("x-a"), ..Default::default() };
        let older = HttpService { authorization_request: Some(request), ..asked("a") };
        assert_eq!(compile("f", false, &by(older.clone())).unwrap().allowed.len(), 1);
        let both = ExtAuthz { allowed_headers: list("x-b"), ..by(older.clone()) };
        assert_eq!(compile("f", false, &both).unwrap_err().path, "allowed_headers");
        let clusters = |name: &str| Ok(Arc::new(Cluster::named(name.into())));
        let problem = of_route(&with(Some(older)), None, &clusters).unwrap_err();
        assert_eq!(problem.path, "check_settings.http_service.authorization_request.allowed_headers");
    }

    fn with(service: Option<HttpService>) -> ExtAuthzPerRoute {
        let service_override = service.map(check_settings::ServiceOverride::HttpService);
        let settings = CheckSettings { service_override, ..CheckSettings::default() };
        ExtAuthzPerRoute { r#override: Some(ext_authz_per_route::Override::CheckSettings(settings)) }
    }

    #[test]
    fn a_route_goes_on_with_whom_the_host_asks() {
        let clusters = |name: &str| Ok(Arc::new(Cluster::named(name.into())));
        let of = |message: &ExtAuthzPerRoute, around| of_route(message, around, &clusters).unwrap();
        let who = |said: &OfRoute| said.service.as_ref().map(|service| service.cluster.name.to_string());
        let off = |off| ExtAuthzPerRoute { r#override: Some(ext_authz_per_route::Override::Disabled(off)) };
        let host = of(&with(Some(asked("a"))), None);
        assert_eq!((host.off, who(&host).as_deref()), (false, Some("a")));
        let route = of(&off(true), Some(&host));
        assert!(route.off);
        let again = of(&with(None), Some(&route));
        assert_eq!((again.off, who(&again).as_deref()), (false, Some("a")));
        let other = of(&with(Some(asked("b"))), Some(&again));
        assert_eq!(who(&other).as_deref(), Some("b"));
        assert_eq!(who(&of(&off(false), None)), None);
        assert!(other.service.is_some_and(|service| service.nginx.is_none()));
        let nothing = of_route(&ExtAuthzPerRoute::default(), None, &clusters);
        assert_eq!(nothing.unwrap_err().path, "override");
    }
    #[test]
    fn only_what_is_ours_is_asked_as_nginx_does() {
        let clusters = |name: &str| Ok(Arc::new(Cluster::named(name.into())));
        let of = |key: &str, value: &str, service| {
            let mut said = with(service);
            let Some(ext_authz_per_route::Override::CheckSettings(settings)) = &mut said.r#override else {
                unreachable!()
            };
            settings.context_extensions = [(key.to_owned(), value.to_owned())].into();
            of_route(&said, None, &clusters)
        };
        let said = of(NGINX, "GET auth.test https://$host/", Some(asked("a"))).unwrap().service.unwrap();
        let nginx = said.nginx.as_ref().unwrap();
        assert_eq!((&nginx.method, nginx.host.to_str().unwrap()), (&Method::GET, "auth.test"));
        assert_eq!(nginx.sign_in.as_deref(), Some("https://$host/"));
        assert!(said.lets(StatusCode::ACCEPTED) && !said.lets(StatusCode::FOUND));
        let said = of("x", "GET auth.test", Some(asked("a"))).unwrap().service.unwrap();
        assert!(said.nginx.is_none() && said.lets(StatusCode::OK) && !said.lets(StatusCode::ACCEPTED));
        for value in ["", "GET", "CONNECT a", "GET a /b c", "GET a $b", "G\nT a"] {
            let problem = of(NGINX, value, Some(asked("a"))).unwrap_err();
            assert_eq!(problem.path, format!("check_settings.context_extensions[{NGINX}]"), "{value}");
        }
        assert_eq!(of(NGINX, "GET auth.test", None).unwrap_err().path, "check_settings.http_service");
    }
}
