//! `RouteMatch` and what it is made of.

use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, QueryParameterMatcher, RouteMatch};
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use http::HeaderName;

use super::lds::unpack;
use super::problem::{Problem, Under, each};
use super::rds;
use super::support::{Message, support};
use crate::route::expression::Expression;
use crate::route::matching as compiled;

pub(super) const MESSAGES: &[Message] =
    &[ROUTE_MATCH, HEADER_MATCHER, QUERY_MATCHER, STRING_MATCHER, REGEX_MATCHER, URI_TEMPLATE];

support! {
    ROUTE_MATCH, route_match: RouteMatch = "envoy.config.route.v3.RouteMatch";
    read: case_sensitive, headers, query_parameters, path_specifier, runtime_fraction;
    ignored:;
    refused: cookies, grpc, tls_context, dynamic_metadata, filter_state;
}

support! {
    URI_TEMPLATE, uri_template: UriTemplateMatchConfig = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
    read: path_template;
    ignored:;
    refused: ;
}

support! {
    HEADER_MATCHER, header_matcher: HeaderMatcher = "envoy.config.route.v3.HeaderMatcher";
    read: name, invert_match, treat_missing_header_as_empty, header_match_specifier;
    ignored:;
    refused: ;
}

support! {
    QUERY_MATCHER, query_matcher: QueryParameterMatcher = "envoy.config.route.v3.QueryParameterMatcher";
    read: name, query_parameter_match_specifier;
    ignored:;
    refused: ;
}

support! {
    STRING_MATCHER, string_matcher: StringMatcher = "envoy.type.matcher.v3.StringMatcher";
    read: ignore_case, match_pattern;
    ignored:;
    refused: ;
}

support! {
    REGEX_MATCHER, regex_matcher: RegexMatcher = "envoy.type.matcher.v3.RegexMatcher";
    read: regex;
    ignored:
        engine_type => "there is one engine, with RE2’s syntax";
    refused: ;
}

pub(super) fn compile(message: &RouteMatch) -> Result<compiled::RouteMatcher, Problem> {
    route_match(message)?;
    let fraction = message.runtime_fraction.as_ref();
    let fraction = fraction.map(|of| rds::millionths(of).under(|| "runtime_fraction".into()));
    Ok(compiled::RouteMatcher {
        path: path(message)?,
        headers: each("headers", &message.headers, header)?.into(),
        query: each("query_parameters", &message.query_parameters, query)?.into(),
        fraction: fraction.transpose()?,
    })
}

fn path(message: &RouteMatch) -> Result<compiled::PathMatcher, Problem> {
    use compiled::PathMatcher;
    let ignore_case = message.case_sensitive.is_some_and(|b| !b.value);
    let specifier = message.path_specifier.as_ref();
    match specifier
        .ok_or_else(|| Problem::new("path_specifier", "is missing; give prefix, path or another"))?
    {
        PathSpecifier::Prefix(prefix) if ignore_case => {
            Ok(PathMatcher::PrefixIgnoreCase(prefix.as_str().into()))
        }
        PathSpecifier::Prefix(prefix) => Ok(PathMatcher::Prefix(prefix.as_str().into())),
        PathSpecifier::Path(path) if ignore_case => Ok(PathMatcher::ExactIgnoreCase(path.as_str().into())),
        PathSpecifier::Path(path) => Ok(PathMatcher::Exact(path.as_str().into())),
        PathSpecifier::SafeRegex(matcher) => {
            Ok(PathMatcher::Regex(regex(matcher).under(|| "safe_regex".into())?))
        }
        PathSpecifier::PathSeparatedPrefix(prefix) => {
            let odd = !prefix.starts_with('/') || prefix.ends_with('/') || prefix.contains(['?', '#']);
            if odd || ignore_case {
                let reason =
                    format!("is {prefix:?}; must begin with a slash, not end with one, and match case");
                return Err(Problem::new("path_separated_prefix", reason));
            }
            Ok(PathMatcher::SeparatedPrefix(prefix.as_str().into()))
        }
        PathSpecifier::PathMatchPolicy(policy) => {
            let any = policy.typed_config.as_ref();
            let any = any.ok_or_else(|| Problem::new("path_match_policy.typed_config", "is missing"))?;
            let config: UriTemplateMatchConfig = unpack(any).under(|| "path_match_policy".into())?;
            uri_template(&config).under(|| "path_match_policy.typed_config".into())?;
            template(&config.path_template).under(|| "path_match_policy.typed_config.path_template".into())
        }
        PathSpecifier::ConnectMatcher(_) => Ok(PathMatcher::Connect),
    }
}

/// Envoy's URI templates: `*` is one segment, `**` any number of them at the end, `{name}` and `{name=*}` capture.
fn template(text: &str) -> Result<compiled::PathMatcher, Problem> {
    let wrong = |what: &str| Problem::new("", format!("is {text:?}: {what}"));
    let mut pattern = String::new();
    let segments: Vec<&str> =
        text.strip_prefix('/').ok_or_else(|| wrong("must begin with a slash"))?.split('/').collect();
    for (position, segment) in segments.iter().enumerate() {
        let inner = segment.strip_prefix('{').and_then(|s| s.strip_suffix('}'));
        let segment =
            inner.map_or(*segment, |inner| inner.split_once('=').map_or("*", |(_, pattern)| pattern));
        pattern.push('/');
        match segment {
            "*" => pattern.push_str("[^/]+"),
            "**" if position + 1 == segments.len() => pattern.push_str(".*"),
            "**" => return Err(wrong("`**` must be the last segment")),
            literal if literal.contains(['*', '{', '}']) => {
                return Err(wrong("a segment is a literal, `*`, `**` or `{name}`"));
            }
            literal => pattern.push_str(&regex::escape(literal)),
        }
    }
    Expression::whole(&pattern).map(compiled::PathMatcher::Regex).map_err(|e| wrong(&e))
}

/// Compiles a predicate on a header.
pub(super) fn header(message: &HeaderMatcher) -> Result<compiled::HeaderMatcher, Problem> {
    header_matcher(message)?;
    use compiled::{HeaderSource, ValueMatcher};
    let source = match message.name.as_str() {
        ":method" => HeaderSource::Method,
        ":authority" => HeaderSource::Authority,
        // As in Envoy: HTTP/2 has none beside it, and what an absolute target says goes before it.
        name if name.eq_ignore_ascii_case("host") => HeaderSource::Authority,
        ":path" => HeaderSource::Path,
        name => HeaderSource::Named(header_name("name", name)?),
    };
    let mut invert = message.invert_match;
    let part = |field: &str, text: &str| -> Result<Box<str>, Problem> {
        some_text(field, text).map(|()| text.into())
    };
    #[allow(deprecated, reason = "still sent by control planes")]
    let value = match &message.header_match_specifier {
        None | Some(HeaderMatchSpecifier::PresentMatch(true)) => None,
        Some(HeaderMatchSpecifier::PresentMatch(false)) => {
            invert = !invert;
            None
        }
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => {
            Some(string(matcher).under(|| "string_match".into())?)
        }
        Some(HeaderMatchSpecifier::ExactMatch(text)) => Some(ValueMatcher::Exact(text.as_str().into())),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => {
            Some(ValueMatcher::Prefix(part("prefix_match", text)?))
        }
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => {
            Some(ValueMatcher::Suffix(part("suffix_match", text)?))
        }
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => {
            Some(ValueMatcher::Contains(part("contains_match", text)?))
        }
        Some(HeaderMatchSpecifier::SafeRegexMatch(matcher)) => {
            Some(ValueMatcher::Regex(regex(matcher).under(|| "safe_regex_match".into())?))
        }
        Some(HeaderMatchSpecifier::RangeMatch(range)) => Some(ValueMatcher::Range(range.start, range.end)),
    };
    Ok(compiled::HeaderMatcher {
        source,
        value,
        invert,
        missing_is_empty: message.treat_missing_header_as_empty,
    })
}

fn query(message: &QueryParameterMatcher) -> Result<compiled::QueryMatcher, Problem> {
    query_matcher(message)?;
    let value = match &message.query_parameter_match_specifier {
        None | Some(QueryParameterMatchSpecifier::PresentMatch(true)) => None,
        Some(QueryParameterMatchSpecifier::PresentMatch(false)) => {
            return Err(Problem::new("present_match", "must be true"));
        }
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
            Some(string(matcher).under(|| "string_match".into())?)
        }
    };
    Ok(compiled::QueryMatcher { name: message.name.as_str().into(), value })
}

/// A part that every text has is no predicate.
fn some_text(field: &str, text: &str) -> Result<(), Problem> {
    if text.is_empty() {
        return Err(Problem::new(field, "is empty, which is a part of every text; must have a character"));
    }
    Ok(())
}

/// Compiles a predicate on a text.
pub(super) fn string(message: &StringMatcher) -> Result<compiled::ValueMatcher, Problem> {
    string_matcher(message)?;
    use compiled::ValueMatcher;
    let fold = |text: &str| -> Box<str> {
        if message.ignore_case { text.to_ascii_lowercase().into() } else { text.into() }
    };
    let part = |field: &str, text: &str| some_text(field, text).map(|()| fold(text));
    let pattern = message.match_pattern.as_ref();
    let matcher = match pattern.ok_or_else(|| Problem::new("match_pattern", "is missing"))? {
        MatchPattern::Exact(text) => ValueMatcher::Exact(fold(text)),
        MatchPattern::Prefix(text) => ValueMatcher::Prefix(part("prefix", text)?),
        MatchPattern::Suffix(text) => ValueMatcher::Suffix(part("suffix", text)?),
        MatchPattern::Contains(text) => ValueMatcher::Contains(part("contains", text)?),
        MatchPattern::SafeRegex(_) if message.ignore_case => {
            return Err(Problem::new(
                "ignore_case",
                "does not go with safe_regex; use (?i) in the expression",
            ));
        }
        MatchPattern::SafeRegex(matcher) => {
            ValueMatcher::Regex(regex(matcher).under(|| "safe_regex".into())?)
        }
        MatchPattern::Custom(_) => return Err(Problem::new("custom", "is not supported")),
    };
    Ok(if message.ignore_case { ValueMatcher::IgnoreCase(Box::new(matcher)) } else { matcher })
}

fn regex(message: &RegexMatcher) -> Result<Expression, Problem> {
    built(message, Expression::whole)
}

/// An expression that may match any part of a text.
pub(super) fn part(message: &RegexMatcher) -> Result<Expression, Problem> {
    built(message, Expression::part)
}

fn built(
    message: &RegexMatcher,
    build: fn(&str) -> Result<Expression, String>,
) -> Result<Expression, Problem> {
    regex_matcher(message)?;
    build(&message.regex).map_err(|error| Problem::new("regex", format!("is {:?}: {error}", message.regex)))
}

/// A header's name.
pub(super) fn header_name(field: &str, name: &str) -> Result<HeaderName, Problem> {
    name.parse().map_err(|_| Problem::new(field, format!("is {name:?}, which is not a header name")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_one_in_all_versions_of_http() {
        for (name, expected) in [
            (":authority", compiled::HeaderSource::Authority),
            ("Host", compiled::HeaderSource::Authority),
            ("hosts", compiled::HeaderSource::Named(HeaderName::from_static("hosts"))),
        ] {
            let message = HeaderMatcher { name: name.into(), ..HeaderMatcher::default() };
            assert_eq!(header(&message).unwrap().source, expected);
        }
    }
}
