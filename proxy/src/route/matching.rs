//! Whether one route takes a request: path, headers (with the pseudo-headers), query, lot. All of it is built when
//! the resource arrives; matching allocates only where a header is not text.

use std::borrow::Cow;

use super::expression::Expression;
use http::HeaderName;

use super::RequestHead;

/// The match of a route. All parts must hold.
#[derive(Debug)]
pub struct RouteMatcher {
    /// The path without its query.
    pub path: PathMatcher,
    /// Headers and pseudo-headers.
    pub headers: Box<[HeaderMatcher]>,
    /// Query parameters.
    pub query: Box<[QueryMatcher]>,
    /// Of the requests that fit, so many in a million, at random. `None`: all.
    pub fraction: Option<u32>,
}

/// How the path is matched.
#[derive(Debug)]
pub enum PathMatcher {
    /// Equal.
    Exact(Box<str>),
    /// Equal but for ASCII case.
    ExactIgnoreCase(Box<str>),
    /// Begins with it.
    Prefix(Box<str>),
    /// Begins with it but for ASCII case.
    PrefixIgnoreCase(Box<str>),
    /// Equal, or begins with it and a slash.
    SeparatedPrefix(Box<str>),
    /// The expression matches the whole path.
    Regex(Expression),
    /// A CONNECT, which has no path.
    Connect,
}

/// One header predicate.
#[derive(Debug)]
pub struct HeaderMatcher {
    /// What is looked at.
    pub source: HeaderSource,
    /// What it must be; `None`: it must be there.
    pub value: Option<ValueMatcher>,
    /// The predicate is turned round.
    pub invert: bool,
    /// A header that is missing counts as empty.
    pub missing_is_empty: bool,
}

/// A header or a pseudo-header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderSource {
    /// `:method`.
    Method,
    /// `:authority`, or `Host`.
    Authority,
    /// `:path`, with the query.
    Path,
    /// A header. Of repeated ones, each counts.
    Named(HeaderName),
}

/// One query parameter predicate.
#[derive(Debug)]
pub struct QueryMatcher {
    /// The parameter's name, as sent.
    pub name: Box<str>,
    /// What its first value must be; `None`: it must be there.
    pub value: Option<ValueMatcher>,
}

/// What a text must be.
#[derive(Debug)]
pub enum ValueMatcher {
    /// Equal.
    Exact(Box<str>),
    /// Begins with it.
    Prefix(Box<str>),
    /// Ends with it.
    Suffix(Box<str>),
    /// Holds it.
    Contains(Box<str>),
    /// The expression matches all of it.
    Regex(Expression),
    /// A decimal number from the first to before the second.
    Range(i64, i64),
    /// One of the first four, without regard to ASCII case. What is inside is in lower case.
    IgnoreCase(Box<ValueMatcher>),
}

/// Which part of a match failed; for `explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch<'m> {
    /// The path.
    Path,
    /// This header.
    Header(&'m HeaderSource),
    /// This query parameter.
    Query(&'m str),
    /// It is none of those that are taken at random.
    Fraction,
}

impl RouteMatcher {
    /// The first part that does not hold.
    pub fn mismatch(&self, head: &RequestHead<'_>) -> Option<Mismatch<'_>> {
        if !self.path.matches(head.uri.path()) {
            return Some(Mismatch::Path);
        }
        if let Some(header) = self.headers.iter().find(|h| !h.matches(head)) {
            return Some(Mismatch::Header(&header.source));
        }
        let query = head.uri.query().unwrap_or_default();
        if let Some(parameter) = self.query.iter().find(|q| !q.matches(query)) {
            return Some(Mismatch::Query(&parameter.name));
        }
        let drawn = self.fraction.is_none_or(|millionths| is_drawn(millionths, head.random));
        (!drawn).then_some(Mismatch::Fraction)
    }
}

/// Turned round: a weighted choice behind it takes the same number, and must not hang on what was drawn here.
fn is_drawn(millionths: u32, random: u64) -> bool {
    random.rotate_left(32) % 1_000_000 < u64::from(millionths)
}

impl PathMatcher {
    /// Whether the path (without query) is taken.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            PathMatcher::Exact(value) => path == &**value,
            PathMatcher::ExactIgnoreCase(value) => path.eq_ignore_ascii_case(value),
            PathMatcher::Prefix(prefix) => path.starts_with(&**prefix),
            PathMatcher::PrefixIgnoreCase(prefix) => {
                path.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            }
            PathMatcher::SeparatedPrefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            PathMatcher::Regex(regex) => regex.is_match(path),
            PathMatcher::Connect => path.is_empty(),
        }
    }

    /// How many bytes of a path that matches are the prefix that a rewrite replaces.
    pub fn matched_prefix(&self, path: &str) -> usize {
        match self {
            PathMatcher::Prefix(p) | PathMatcher::PrefixIgnoreCase(p) | PathMatcher::SeparatedPrefix(p) => {
                p.len()
            }
            PathMatcher::Exact(_)
            | PathMatcher::ExactIgnoreCase(_)
            | PathMatcher::Regex(_)
            | PathMatcher::Connect => path.len(),
        }
    }
}

impl HeaderMatcher {
    /// As Envoy: of a header that is repeated, each value counts alone, so that none can hide behind another; one that
    /// is missing meets no predicate on its value, inverted or not.
    pub(super) fn matches(&self, head: &RequestHead<'_>) -> bool {
        let mut values = self.source.values(head).peekable();
        match &self.value {
            None => (values.peek().is_some() || self.missing_is_empty) != self.invert,
            Some(matcher) if values.peek().is_none() => {
                self.missing_is_empty && matcher.matches("") != self.invert
            }
            Some(matcher) => values.any(|value| matcher.matches(&value)) != self.invert,
        }
    }
}

impl HeaderSource {
    fn values<'h>(&self, head: &RequestHead<'h>) -> impl Iterator<Item = Cow<'h, str>> {
        let (pseudo, named) = match self {
            HeaderSource::Method => (Some(head.method.as_str()), None),
            HeaderSource::Authority => (Some(head.host), None),
            HeaderSource::Path => (head.uri.path_and_query().map(|path| path.as_str()), None),
            HeaderSource::Named(name) => (None, Some(head.headers.get_all(name))),
        };
        let named = named.into_iter().flatten().map(|value| String::from_utf8_lossy(value.as_bytes()));
        pseudo.map(Cow::Borrowed).into_iter().chain(named)
    }
}

impl std::fmt::Display for HeaderSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            HeaderSource::Method => ":method",
            HeaderSource::Authority => ":authority",
            HeaderSource::Path => ":path",
            HeaderSource::Named(name) => name.as_str(),
        })
    }
}

impl QueryMatcher {
    fn matches(&self, query: &str) -> bool {
        let value = query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == &*self.name).then_some(value)
        });
        match (&self.value, value) {
            (None, value) => value.is_some(),
            (Some(matcher), Some(value)) => matcher.matches(value),
            (Some(_), None) => false,
        }
    }
}

impl ValueMatcher {
    /// Whether the text is so.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            ValueMatcher::Exact(value) => text == &**value,
            ValueMatcher::Prefix(value) => text.starts_with(&**value),
            ValueMatcher::Suffix(value) => text.ends_with(&**value),
            ValueMatcher::Contains(value) => text.contains(&**value),
            ValueMatcher::Regex(regex) => regex.is_match(text),
            ValueMatcher::Range(start, end) => text.parse::<i64>().is_ok_and(|n| n >= *start && n < *end),
            ValueMatcher::IgnoreCase(inner) => inner.matches(&text.to_ascii_lowercase()),
        }
    }
}
