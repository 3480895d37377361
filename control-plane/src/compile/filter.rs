//! A rule's filters: header changes, redirect, rewrite, mirrors and CORS. What is not supported is refused by name.

use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderValueOption, RuntimeFractionalPercent};
use envoy_types::pb::envoy::config::route::v3::RedirectAction;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::google::protobuf::BoolValue;
use gateway_api::experimental::httproutes::{
    HttpRouteRulesFiltersCors, HttpRouteRulesFiltersRequestRedirect,
    HttpRouteRulesFiltersRequestRedirectPathType as RedirectPathType,
    HttpRouteRulesFiltersRequestRedirectScheme as RedirectScheme,
    HttpRouteRulesFiltersUrlRewritePathType as RewritePathType,
};

use crate::objects::problem::FieldError;

use super::INVALID;
use super::hostname::Hostname;
use super::rule::{Changes, Filter, Mirror};
use super::wire::{self, Comparison};

/// Envoy counts fractions in these.
pub(super) const MILLION: u64 = 1_000_000;
/// The Gateway API's default for how long a preflight's answer holds, in seconds.
const CORS_MAX_AGE: i32 = 5;

/// What a rule does to a request besides sending it on.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Filters {
    pub(super) headers: Headers,
    /// But for its path.
    pub(super) redirect: Option<RedirectAction>,
    pub(super) redirect_path: Option<RewritePath>,
    pub(super) rewrite_host: Option<String>,
    pub(super) rewrite_path: Option<RewritePath>,
    pub(super) cors: Option<CorsPolicy>,
}

/// Changes of headers, of a request and of its answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Headers {
    pub(super) request_add: Vec<HeaderValueOption>,
    pub(super) request_remove: Vec<String>,
    pub(super) response_add: Vec<HeaderValueOption>,
    pub(super) response_remove: Vec<String>,
}

impl Headers {
    /// Whether nothing is changed.
    pub(super) fn is_empty(&self) -> bool {
        *self == Headers::default()
    }
}

/// How a path is rewritten, for the upstream or in a redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RewritePath {
    /// The whole path becomes this.
    Full(String),
    /// The matched prefix becomes this; without a slash at the end, empty for `/`.
    Prefix(String),
}

/// Compiles the filters of the rule at `field`; mirrors are given back with the fields that they are written in, as
/// they name backends.
pub(super) fn compile<'o>(
    written: &[Filter<'o>],
    field: &str,
) -> Result<(Filters, Vec<(String, Mirror<'o>)>), FieldError> {
    let mut filters = Filters::default();
    let mut mirrors = Vec::new();
    for (index, filter) in written.iter().enumerate() {
        let field = format!("{field}.filters[{index}]");
        match filter {
            Filter::RequestHeaders(_) | Filter::ResponseHeaders(_) => {
                change(&mut filters.headers, filter, &field)?;
            }
            Filter::Redirect(written) => {
                let at = format!("{field}.requestRedirect");
                filters.redirect = Some(redirect(written, &at)?);
                filters.redirect_path = match &written.path {
                    None => None,
                    Some(path) => Some(match path.r#type {
                        RedirectPathType::ReplaceFullPath => full(path.replace_full_path.as_deref(), &at)?,
                        RedirectPathType::ReplacePrefixMatch => {
                            prefix(path.replace_prefix_match.as_deref(), &at)?
                        }
                    }),
                };
            }
            Filter::Rewrite(written) => {
                let at = format!("{field}.urlRewrite");
                filters.rewrite_host = host(written.hostname.as_deref(), &at)?;
                filters.rewrite_path = match &written.path {
                    None => None,
                    Some(path) => Some(match path.r#type {
                        RewritePathType::ReplaceFullPath => full(path.replace_full_path.as_deref(), &at)?,
                        RewritePathType::ReplacePrefixMatch => {
                            prefix(path.replace_prefix_match.as_deref(), &at)?
                        }
                    }),
                };
            }
            Filter::Mirror(mirror) => {
                fraction(mirror, &field)?;
                mirrors.push((format!("{field}.requestMirror.backendRef"), *mirror));
            }
            Filter::Cors(written) => filters.cors = Some(cors(written, &format!("{field}.cors"))?),
            Filter::Unsupported(name) => return Err(unsupported(&field, name)),
            Filter::Lacks(name) => return Err(lacks(&field, name)),
        }
    }
    if filters.redirect.is_some() && (filters.rewrite_path.is_some() || filters.rewrite_host.is_some()) {
        let message = "a rule has either a RequestRedirect or a URLRewrite, not both";
        return Err(FieldError::new(format!("{field}.filters"), INVALID, message));
    }
    Ok((filters, mirrors))
}

/// Compiles the filters of the backend at `field`: they change headers, and nothing else.
pub(super) fn of_backend(written: &[Filter<'_>], field: &str) -> Result<Headers, FieldError> {
    let mut headers = Headers::default();
    for (index, filter) in written.iter().enumerate() {
        let field = format!("{field}.filters[{index}]");
        match filter {
            Filter::RequestHeaders(_) | Filter::ResponseHeaders(_) => change(&mut headers, filter, &field)?,
            Filter::Lacks(name) => return Err(lacks(&field, name)),
            Filter::Unsupported(name) => return Err(unsupported(&field, name)),
            _ => return Err(unsupported(&field, "of this type on a backend")),
        }
    }
    Ok(headers)
}

fn change(headers: &mut Headers, filter: &Filter<'_>, field: &str) -> Result<(), FieldError> {
    let (changes, at, add, remove) = match filter {
        Filter::RequestHeaders(changes) => {
            let at = format!("{field}.requestHeaderModifier");
            (changes, at, &mut headers.request_add, &mut headers.request_remove)
        }
        Filter::ResponseHeaders(changes) => {
            let at = format!("{field}.responseHeaderModifier");
            (changes, at, &mut headers.response_add, &mut headers.response_remove)
        }
        _ => return Ok(()),
    };
    add.extend(header_changes(changes, &at)?);
    remove.extend(removals(changes.remove, &at)?);
    Ok(())
}

/// How many requests in a million are mirrored; `None` is all.
pub(super) fn fraction(
    mirror: &Mirror<'_>,
    field: &str,
) -> Result<Option<RuntimeFractionalPercent>, FieldError> {
    let wrong = |name: &str, message: &str| {
        Err(FieldError::new(format!("{field}.requestMirror.{name}"), INVALID, message))
    };
    let part = match (mirror.percent, mirror.fraction) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return wrong("percent", "expected either percent or fraction, not both"),
        (Some(percent), None) if (0..=100).contains(&percent) => {
            u64::try_from(percent).unwrap_or_default() * (MILLION / 100)
        }
        (Some(_), None) => return wrong("percent", "expected a percentage, 0 to 100"),
        (None, Some((numerator, denominator)))
            if denominator > 0 && (0..=denominator).contains(&numerator) =>
        {
            let of = |value: i32| u64::try_from(value).unwrap_or_default();
            of(numerator) * MILLION / of(denominator).max(1)
        }
        (None, Some(_)) => return wrong("fraction", "expected a numerator of 0 up to the denominator"),
    };
    Ok(Some(millionths(part)))
}

/// A fraction in millionths.
pub(super) fn millionths(part: u64) -> RuntimeFractionalPercent {
    let value = FractionalPercent {
        numerator: u32::try_from(part).unwrap_or_default(),
        denominator: DenominatorType::Million as i32,
    };
    RuntimeFractionalPercent { default_value: Some(value), ..RuntimeFractionalPercent::default() }
}

fn cors(written: &HttpRouteRulesFiltersCors, field: &str) -> Result<CorsPolicy, FieldError> {
    let list = |of: &Option<Vec<String>>| of.iter().flatten().cloned().collect::<Vec<_>>().join(", ");
    let mut origins = Vec::new();
    for (index, origin) in written.allow_origins.iter().flatten().enumerate() {
        let comparison = match origin.as_str() {
            "*" => Comparison::Regex(".*".to_owned()),
            // A star stands for one label or more.
            text if text.contains('*') => {
                let parts = text.split('*').map(regex::escape).collect::<Vec<_>>();
                Comparison::Regex(parts.join("[^/:]+"))
            }
            text if http::HeaderValue::from_str(text).is_ok() && text.contains("://") => {
                Comparison::Exact(text.to_owned())
            }
            _ => {
                let message =
                    "expected an origin such as https://shop.example.com or https://*.example.com, or *";
                return Err(FieldError::new(format!("{field}.allowOrigins[{index}]"), INVALID, message));
            }
        };
        origins.push(wire::string(comparison));
    }
    for (name, names) in
        [("allowHeaders", &written.allow_headers), ("exposeHeaders", &written.expose_headers)]
    {
        for (index, header) in names.iter().flatten().enumerate() {
            if header != "*" && http::HeaderName::from_bytes(header.as_bytes()).is_err() {
                let at = format!("{field}.{name}[{index}]");
                return Err(FieldError::new(at, INVALID, "expected a header name, or *"));
            }
        }
    }
    Ok(CorsPolicy {
        allow_origin_string_match: origins,
        allow_methods: list(&written.allow_methods),
        allow_headers: list(&written.allow_headers),
        expose_headers: list(&written.expose_headers),
        max_age: written.max_age.unwrap_or(CORS_MAX_AGE).to_string(),
        allow_credentials: Some(BoolValue { value: written.allow_credentials.unwrap_or(false) }),
        // A preflight is answered here, whichever the answer is.
        forward_not_matching_preflights: Some(BoolValue { value: false }),
        ..CorsPolicy::default()
    })
}

fn lacks(field: &str, name: &str) -> FieldError {
    FieldError::new(field, INVALID, format!("a filter of this type needs {name}"))
}

fn host(written: Option<&str>, field: &str) -> Result<Option<String>, FieldError> {
    let Some(text) = written else { return Ok(None) };
    match Hostname::parse(Some(text)) {
        Ok(Hostname::Exact(name)) => Ok(Some(name)),
        _ => {
            let message = "expected a hostname such as shop.example.com";
            Err(FieldError::new(format!("{field}.hostname"), INVALID, message))
        }
    }
}

fn full(written: Option<&str>, field: &str) -> Result<RewritePath, FieldError> {
    path(written, &format!("{field}.path.replaceFullPath")).map(|path| RewritePath::Full(path.to_owned()))
}

fn prefix(written: Option<&str>, field: &str) -> Result<RewritePath, FieldError> {
    let path = match written {
        Some("") => "",
        _ => path(written, &format!("{field}.path.replacePrefixMatch"))?,
    };
    Ok(RewritePath::Prefix(path.trim_end_matches('/').to_owned()))
}

fn path<'w>(written: Option<&'w str>, field: &str) -> Result<&'w str, FieldError> {
    let fits = |path: &&str| path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    written.filter(fits).ok_or_else(|| {
        let message = "expected a path that starts with /, anything odd in it percent-encoded";
        FieldError::new(field, INVALID, message)
    })
}

fn unsupported(field: &str, name: &str) -> FieldError {
    let message = format!("the filter {name} is not supported by this version; the rule answers 500");
    FieldError::new(format!("{field}.type"), "UnsupportedValue", message)
}

fn header_changes(changes: &Changes<'_>, field: &str) -> Result<Vec<HeaderValueOption>, FieldError> {
    let set = changes.set.iter().enumerate();
    let set = set.map(|(index, h)| ("set", index, h, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = changes.add.iter().enumerate();
    let add = add.map(|(index, h)| ("add", index, h, HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add)
        .map(|(list, index, (name, value), action)| {
            let at = |part: &str| format!("{field}.{list}[{index}].{part}");
            check_header_name(name, &at("name"))?;
            if http::HeaderValue::from_str(value).is_err() {
                return Err(FieldError::new(at("value"), INVALID, "expected a header value"));
            }
            Ok(wire::header_value(name, value, action))
        })
        .collect()
}

fn removals(names: &[String], field: &str) -> Result<Vec<String>, FieldError> {
    let names = names.iter().enumerate();
    names
        .map(|(index, name)| {
            check_header_name(name, &format!("{field}.remove[{index}]"))?;
            Ok(name.to_ascii_lowercase())
        })
        .collect()
}

/// `Host` is the rewrite's to change, and what frames the message is nobody's.
fn check_header_name(name: &str, field: &str) -> Result<(), FieldError> {
    let lower = name.to_ascii_lowercase();
    if http::HeaderName::from_bytes(lower.as_bytes()).is_err() {
        return Err(FieldError::new(field, INVALID, "expected a header name"));
    }
    match lower.as_str() {
        "host" => Err(FieldError::new(
            field,
            "UnsupportedValue",
            "use a URLRewrite filter with hostname to change Host",
        )),
        "connection" | "content-length" | "transfer-encoding" | "upgrade" | "te" | "trailer" => {
            Err(FieldError::new(field, "UnsupportedValue", "this header belongs to the connection"))
        }
        _ => Ok(()),
    }
}

fn redirect(
    written: &HttpRouteRulesFiltersRequestRedirect,
    field: &str,
) -> Result<RedirectAction, FieldError> {
    let code = match written.status_code.unwrap_or(302) {
        301 => RedirectResponseCode::MovedPermanently,
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => {
            let at = format!("{field}.statusCode");
            return Err(FieldError::new(at, INVALID, "expected 301, 302, 303, 307 or 308"));
        }
    };
    let scheme = written.scheme.as_ref().map(|scheme| match scheme {
        RedirectScheme::Http => ("http", 80),
        RedirectScheme::Https => ("https", 443),
    });
    // Without a port the Gateway API means the scheme's own; a new host has no port to lose.
    let port = match (written.port, scheme, &written.hostname) {
        (Some(port), _, _) => u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| {
            FieldError::new(format!("{field}.port"), INVALID, "expected a port, 1 to 65535")
        })?,
        (None, Some((_, port)), None) => port,
        _ => 0,
    };
    Ok(RedirectAction {
        host_redirect: host(written.hostname.as_deref(), field)?.unwrap_or_default(),
        port_redirect: port.into(),
        response_code: code as i32,
        strip_query: false,
        scheme_rewrite_specifier: scheme
            .map(|(name, _)| SchemeRewriteSpecifier::SchemeRedirect(name.to_owned())),
        path_rewrite_specifier: None,
    })
}
