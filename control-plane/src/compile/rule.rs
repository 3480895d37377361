//! A rule of an `HTTPRoute` or `GRPCRoute` in one form. Filters and backends are written with types of their own for
//! each place, which say the same.

use gateway_api::experimental::httproutes::{self as http, HttpRouteRules};
use gateway_api::grpcroutes::{self as grpc, GrpcRouteRules};

use super::matching::{self, Matched};
use super::reference::Backend;
use crate::objects::problem::FieldError;

/// A rule.
#[derive(Debug)]
pub(super) struct Rule<'o> {
    pub(super) matches: Result<Vec<Matched>, FieldError>,
    pub(super) filters: Vec<Filter<'o>>,
    pub(super) backends: Vec<(Backend<'o>, Vec<Filter<'o>>)>,
    pub(super) timeouts: Option<&'o http::HttpRouteRulesTimeouts>,
    pub(super) retry: Option<&'o http::HttpRouteRulesRetry>,
    /// Where it says what is never served, and the field.
    pub(super) unsupported: Option<&'static str>,
}

/// A filter.
#[derive(Debug, Clone)]
pub(super) enum Filter<'o> {
    RequestHeaders(Changes<'o>),
    ResponseHeaders(Changes<'o>),
    Redirect(&'o http::HttpRouteRulesFiltersRequestRedirect),
    Rewrite(&'o http::HttpRouteRulesFiltersUrlRewrite),
    Mirror(Mirror<'o>),
    Cors(&'o http::HttpRouteRulesFiltersCors),
    /// Of a type that is not supported, or not there.
    Unsupported(&'static str),
    /// It lacks what its type needs.
    Lacks(&'static str),
}

/// Changes of headers.
#[derive(Debug, Clone)]
pub(super) struct Changes<'o> {
    pub(super) set: Vec<(&'o str, &'o str)>,
    pub(super) add: Vec<(&'o str, &'o str)>,
    pub(super) remove: &'o [String],
}

/// Where a copy of a request goes too.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mirror<'o> {
    pub(super) backend: Backend<'o>,
    pub(super) percent: Option<i32>,
    pub(super) fraction: Option<(i32, i32)>,
}

macro_rules! changes {
    ($modifier:expr, $variant:ident, $name:literal) => {
        match &$modifier {
            None => Filter::Lacks($name),
            Some(modifier) => Filter::$variant(Changes {
                set: modifier.set.iter().flatten().map(|h| (h.name.as_str(), h.value.as_str())).collect(),
                add: modifier.add.iter().flatten().map(|h| (h.name.as_str(), h.value.as_str())).collect(),
                remove: modifier.remove.as_deref().unwrap_or_default(),
            }),
        }
    };
}

macro_rules! mirror {
    ($mirror:expr) => {
        match &$mirror {
            None => Filter::Lacks("requestMirror"),
            Some(mirror) => Filter::Mirror(Mirror {
                backend: Backend::from(&mirror.backend_ref),
                percent: mirror.percent,
                fraction: mirror.fraction.as_ref().map(|f| (f.numerator, f.denominator.unwrap_or(100))),
            }),
        }
    };
}

macro_rules! or_lacks {
    ($written:expr, $variant:ident, $name:literal) => {
        $written.as_ref().map_or(Filter::Lacks($name), Filter::$variant)
    };
}

fn of_http_rule(filter: &http::HttpRouteRulesFilters) -> Filter<'_> {
    use http::HttpRouteRulesFiltersType as Type;
    match filter.r#type {
        Type::RequestHeaderModifier => {
            changes!(filter.request_header_modifier, RequestHeaders, "requestHeaderModifier")
        }
        Type::ResponseHeaderModifier => {
            changes!(filter.response_header_modifier, ResponseHeaders, "responseHeaderModifier")
        }
        Type::RequestRedirect => or_lacks!(filter.request_redirect, Redirect, "requestRedirect"),
        Type::UrlRewrite => or_lacks!(filter.url_rewrite, Rewrite, "urlRewrite"),
        Type::RequestMirror => mirror!(filter.request_mirror),
        Type::Cors => or_lacks!(filter.cors, Cors, "cors"),
        Type::ExtensionRef => Filter::Unsupported("ExtensionRef"),
        Type::ExternalAuth => Filter::Unsupported("ExternalAuth"),
    }
}

fn of_http_backend(filter: &http::HttpRouteRulesBackendRefsFilters) -> Filter<'_> {
    use http::HttpRouteRulesBackendRefsFiltersType as Type;
    match filter.r#type {
        Type::RequestHeaderModifier => {
            changes!(filter.request_header_modifier, RequestHeaders, "requestHeaderModifier")
        }
        Type::ResponseHeaderModifier => {
            changes!(filter.response_header_modifier, ResponseHeaders, "responseHeaderModifier")
        }
        Type::RequestRedirect => Filter::Unsupported("RequestRedirect on a backend"),
        Type::UrlRewrite => Filter::Unsupported("URLRewrite on a backend"),
        Type::RequestMirror => Filter::Unsupported("RequestMirror on a backend"),
        Type::Cors => Filter::Unsupported("CORS on a backend"),
        Type::ExtensionRef => Filter::Unsupported("ExtensionRef"),
        Type::ExternalAuth => Filter::Unsupported("ExternalAuth"),
    }
}

fn of_grpc_rule(filter: &grpc::GrpcRouteRulesFilters) -> Filter<'_> {
    use grpc::GrpcRouteRulesFiltersType as Type;
    match filter.r#type {
        Type::RequestHeaderModifier => {
            changes!(filter.request_header_modifier, RequestHeaders, "requestHeaderModifier")
        }
        Type::ResponseHeaderModifier => {
            changes!(filter.response_header_modifier, ResponseHeaders, "responseHeaderModifier")
        }
        Type::RequestMirror => mirror!(filter.request_mirror),
        Type::ExtensionRef => Filter::Unsupported("ExtensionRef"),
    }
}

fn of_grpc_backend(filter: &grpc::GrpcRouteRulesBackendRefsFilters) -> Filter<'_> {
    use grpc::GrpcRouteRulesBackendRefsFiltersType as Type;
    match filter.r#type {
        Type::RequestHeaderModifier => {
            changes!(filter.request_header_modifier, RequestHeaders, "requestHeaderModifier")
        }
        Type::ResponseHeaderModifier => {
            changes!(filter.response_header_modifier, ResponseHeaders, "responseHeaderModifier")
        }
        Type::RequestMirror => Filter::Unsupported("RequestMirror on a backend"),
        Type::ExtensionRef => Filter::Unsupported("ExtensionRef"),
    }
}

/// The rule of an `HTTPRoute` at `field`.
pub(super) fn of_http<'o>(rule: &'o HttpRouteRules, field: &str) -> Rule<'o> {
    let backends = rule.backend_refs.iter().flatten().map(|backend| {
        let filters = backend.filters.iter().flatten().map(of_http_backend).collect();
        (Backend::from(backend), filters)
    });
    Rule {
        matches: matches(rule.matches.as_deref(), field, matching::compile),
        filters: rule.filters.iter().flatten().map(of_http_rule).collect(),
        backends: backends.collect(),
        timeouts: rule.timeouts.as_ref(),
        retry: rule.retry.as_ref(),
        unsupported: rule.session_persistence.as_ref().map(|_| "sessionPersistence"),
    }
}

/// The rule of a `GRPCRoute` at `field`.
pub(super) fn of_grpc<'o>(rule: &'o GrpcRouteRules, field: &str) -> Rule<'o> {
    let backends = rule.backend_refs.iter().flatten().map(|backend| {
        let filters = backend.filters.iter().flatten().map(of_grpc_backend).collect();
        (Backend::from(backend), filters)
    });
    Rule {
        matches: matches(rule.matches.as_deref(), field, matching::compile_grpc),
        filters: rule.filters.iter().flatten().map(of_grpc_rule).collect(),
        backends: backends.collect(),
        timeouts: None,
        retry: None,
        unsupported: None,
    }
}

/// A rule without matches stands for every request.
fn matches<M>(
    written: Option<&[M]>,
    field: &str,
    compile: impl Fn(&M, &str) -> Result<Matched, FieldError>,
) -> Result<Vec<Matched>, FieldError> {
    let written = written.unwrap_or_default();
    if written.is_empty() {
        return Ok(vec![matching::everything()]);
    }
    let numbered = written.iter().enumerate();
    numbered.map(|(index, m)| compile(m, &format!("{field}.matches[{index}]"))).collect()
}
