//! One match of an HTTPRoute's rule to a `RouteMatch`, and its place among all others.

use std::cmp::Reverse;

use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{QueryParameterMatcher, RouteMatch, query_parameter_matcher};
use gateway_api::experimental::httproutes::{
    HttpRouteRulesMatches, HttpRouteRulesMatchesHeaders, HttpRouteRulesMatchesHeadersType,
    HttpRouteRulesMatchesMethod, HttpRouteRulesMatchesPathType, HttpRouteRulesMatchesQueryParamsType,
};
use gateway_api::grpcroutes::{
    GrpcRouteRulesMatches, GrpcRouteRulesMatchesHeaders, GrpcRouteRulesMatchesHeadersType,
    GrpcRouteRulesMatchesMethodType,
};

use super::INVALID;
use super::wire::{self, Comparison};
use crate::objects::expression;
use crate::objects::problem::FieldError;

/// Which of two matches that a request fits is asked first, as the Gateway API orders them: exact path, then
/// the longest prefix, then method, number of headers, number of query parameters. Regular expressions, for
/// which it has no rule, stand between exact paths and prefixes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    path: u8,
    length: Reverse<usize>,
    without_method: bool,
    headers: Reverse<usize>,
    query: Reverse<usize>,
}

impl Rank {
    /// Gives the path another place.
    pub(super) fn put_path(&mut self, class: u8, length: usize) {
        (self.path, self.length) = (class, Reverse(length));
    }
}

/// A path as an HTTPRoute compares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole elements from the start, without a slash at the end; empty: every path.
    Prefix(String),
    /// The whole path.
    Regex(String),
}

/// A match, compiled but for its path, which a rewrite may need to split.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Matched {
    pub(super) rank: Rank,
    pub(super) path: PathMatch,
    rest: RouteMatch,
}

impl Matched {
    /// The match on the wire.
    pub(super) fn route_match(&self) -> RouteMatch {
        let specifier = match &self.path {
            PathMatch::Exact(path) => PathSpecifier::Path(path.clone()),
            PathMatch::Prefix(prefix) if prefix.is_empty() => PathSpecifier::Prefix("/".to_owned()),
            PathMatch::Prefix(prefix) => PathSpecifier::PathSeparatedPrefix(prefix.clone()),
            PathMatch::Regex(text) => PathSpecifier::SafeRegex(wire::regex(text.clone())),
        };
        self.with_path(specifier)
    }

    /// The match on the wire with another path.
    pub(super) fn with_path(&self, specifier: PathSpecifier) -> RouteMatch {
        RouteMatch { path_specifier: Some(specifier), ..self.rest.clone() }
    }
}

/// A rule without matches stands for every request.
pub(super) fn everything() -> Matched {
    let path = PathMatch::Prefix(String::new());
    Matched { rank: rank(&path, false, 0, 0), path, rest: RouteMatch::default() }
}

/// Compiles one match; `field` is where it is written.
pub(super) fn compile(written: &HttpRouteRulesMatches, field: &str) -> Result<Matched, FieldError> {
    let path = path(written, field)?;
    let mut rest = RouteMatch::default();
    if let Some(method) = &written.method {
        rest.headers.push(wire::header(":method", Comparison::Exact(method_name(method).to_owned())));
    }
    let regular = Some(HttpRouteRulesMatchesHeadersType::RegularExpression);
    let of = |h: &HttpRouteRulesMatchesHeaders| (h.name.clone(), h.value.clone(), h.r#type == regular);
    let headers = headers(written.headers.iter().flatten().map(of), field, &mut rest)?;
    let mut parameters: Vec<&str> = Vec::new();
    for (index, parameter) in written.query_params.iter().flatten().enumerate() {
        if parameters.contains(&parameter.name.as_str()) {
            continue;
        }
        let field = format!("{field}.queryParams[{index}]");
        let comparison = match parameter.r#type {
            None | Some(HttpRouteRulesMatchesQueryParamsType::Exact) => {
                Comparison::Exact(parameter.value.clone())
            }
            Some(HttpRouteRulesMatchesQueryParamsType::RegularExpression) => {
                Comparison::Regex(checked_regex(&parameter.value, &field)?)
            }
        };
        let specifier =
            query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch(wire::string(comparison));
        rest.query_parameters.push(QueryParameterMatcher {
            name: parameter.name.clone(),
            query_parameter_match_specifier: Some(specifier),
        });
        parameters.push(&parameter.name);
    }
    let rank = rank(&path, written.method.is_some(), headers, parameters.len());
    Ok(Matched { rank, path, rest })
}

/// Adds matchers of headers, each given with its name, its value and whether that is a regular expression; says how
/// many there are. Of two entries for one name the Gateway API says: the first counts.
fn headers(
    written: impl Iterator<Item = (String, String, bool)>,
    field: &str,
    rest: &mut RouteMatch,
) -> Result<usize, FieldError> {
    let mut names: Vec<String> = Vec::new();
    for (index, (name, value, is_regex)) in written.enumerate() {
        let field = format!("{field}.headers[{index}]");
        let name = name.to_ascii_lowercase();
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(FieldError::new(format!("{field}.name"), INVALID, "expected a header name"));
        }
        if names.contains(&name) {
            continue;
        }
        let comparison = match is_regex {
            false => Comparison::Exact(value),
            true => Comparison::Regex(checked_regex(&value, &field)?),
        };
        rest.headers.push(wire::header(&name, comparison));
        names.push(name);
    }
    Ok(names.len())
}

/// What stands for any service or method of gRPC.
const ANY: &str = "[^/]+";

/// Compiles one match of a `GRPCRoute`. Service and method are a request's path; of two matches the one with more of
/// the service's name goes first, then of the method's, then with more headers.
pub(super) fn compile_grpc(written: &GrpcRouteRulesMatches, field: &str) -> Result<Matched, FieldError> {
    let mut rest = RouteMatch::default();
    let regular = Some(GrpcRouteRulesMatchesHeadersType::RegularExpression);
    let of = |h: &GrpcRouteRulesMatchesHeaders| (h.name.clone(), h.value.clone(), h.r#type == regular);
    let headers = headers(written.headers.iter().flatten().map(of), field, &mut rest)?;
    let method = written.method.as_ref();
    let part = |of: Option<&String>| of.filter(|text| !text.is_empty()).cloned();
    let service = part(method.and_then(|method| method.service.as_ref()));
    let name = part(method.and_then(|method| method.method.as_ref()));
    let is_regex = method.and_then(|method| method.r#type.clone())
        == Some(GrpcRouteRulesMatchesMethodType::RegularExpression);
    let lengths = [&service, &name].map(|part| part.as_ref().map_or(0, String::len));
    for (part, at) in [(&service, "service"), (&name, "method")] {
        let Some(text) = part else { continue };
        let at = format!("{field}.method.{at}");
        if is_regex {
            expression::check(text).map_err(|message| FieldError::new(&at, INVALID, message))?;
        } else if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_')) {
            return Err(FieldError::new(
                at,
                INVALID,
                "expected a name such as shop.v1.Orders, without slashes",
            ));
        }
    }
    let path = match (service, name, is_regex) {
        (None, None, _) => PathMatch::Prefix(String::new()),
        (Some(service), Some(name), false) => PathMatch::Exact(format!("/{service}/{name}")),
        (Some(service), None, false) => PathMatch::Prefix(format!("/{service}")),
        (None, Some(name), false) => PathMatch::Regex(format!("/{ANY}/{name}")),
        (service, name, true) => {
            let part = |part: Option<String>| part.map_or(ANY.to_owned(), |text| format!("(?:{text})"));
            PathMatch::Regex(format!("/{}/{}", part(service), part(name)))
        }
    };
    // As of HTTP's ranks: exact ones before others, then by length, the service's first.
    let rank = Rank {
        path: if matches!(path, PathMatch::Exact(_)) { 0 } else { 2 },
        length: Reverse(lengths[0]),
        without_method: false,
        headers: Reverse(lengths[1]),
        query: Reverse(headers),
    };
    Ok(Matched { rank, path, rest })
}

fn rank(path: &PathMatch, method: bool, headers: usize, query: usize) -> Rank {
    let (path, length) = match path {
        PathMatch::Exact(text) => (0, text.len()),
        PathMatch::Regex(text) => (1, text.len()),
        PathMatch::Prefix(text) => (2, text.len()),
    };
    Rank {
        path,
        length: Reverse(length),
        without_method: !method,
        headers: Reverse(headers),
        query: Reverse(query),
    }
}

fn path(written: &HttpRouteRulesMatches, field: &str) -> Result<PathMatch, FieldError> {
    let Some(path) = &written.path else { return Ok(PathMatch::Prefix(String::new())) };
    let value = path.value.as_deref().unwrap_or("/");
    let wrong =
        |message: &str| Err(FieldError::new(format!("{field}.path.value"), INVALID, message.to_owned()));
    match path.r#type {
        Some(HttpRouteRulesMatchesPathType::RegularExpression) => {
            checked_regex(value, &format!("{field}.path")).map(PathMatch::Regex)
        }
        _ if !value.starts_with('/') => wrong("expected a path that starts with /"),
        _ if value.contains(['?', '#']) => wrong("expected a path without ? and #; use queryParams"),
        _ if value.contains("//") || value.contains("/./") || value.contains("/../") => {
            wrong("expected a path without //, /./ and /../: requests are matched after these are resolved")
        }
        Some(HttpRouteRulesMatchesPathType::Exact) => Ok(PathMatch::Exact(value.to_owned())),
        _ => Ok(PathMatch::Prefix(value.trim_end_matches('/').to_owned())),
    }
}

/// A regular expression that the proxies will understand; `field` is the parent of its `value`.
pub(super) fn checked_regex(text: &str, field: &str) -> Result<String, FieldError> {
    match expression::check(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(message) => Err(FieldError::new(format!("{field}.value"), INVALID, message)),
    }
}

fn method_name(method: &HttpRouteRulesMatchesMethod) -> &'static str {
    use HttpRouteRulesMatchesMethod as M;
    match method {
        M::Get => "GET",
        M::Head => "HEAD",
        M::Post => "POST",
        M::Put => "PUT",
        M::Delete => "DELETE",
        M::Connect => "CONNECT",
        M::Options => "OPTIONS",
        M::Trace => "TRACE",
        M::Patch => "PATCH",
    }
}
