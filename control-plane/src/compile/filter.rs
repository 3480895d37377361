//! A rule's filters: header changes, redirect and rewrite. What is not supported yet is refused by name.

use envoy_types::pb::envoy::config::core::v3::HeaderValueOption;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::route::v3::RedirectAction;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    RedirectResponseCode, SchemeRewriteSpecifier,
};
use gateway_api::httproutes::{
    HttpRouteRulesFilters, HttpRouteRulesFiltersRequestRedirect,
    HttpRouteRulesFiltersRequestRedirectPathType as RedirectPathType,
    HttpRouteRulesFiltersRequestRedirectScheme as RedirectScheme, HttpRouteRulesFiltersType as FilterType,
    HttpRouteRulesFiltersUrlRewritePathType as RewritePathType,
};

use crate::objects::problem::FieldError;

use super::INVALID;
use super::hostname::Hostname;
use super::wire;

/// What a rule does to a request besides sending it on.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Filters {
    pub(super) request_add: Vec<HeaderValueOption>,
    pub(super) request_remove: Vec<String>,
    pub(super) response_add: Vec<HeaderValueOption>,
    pub(super) response_remove: Vec<String>,
    /// But for its path.
    pub(super) redirect: Option<RedirectAction>,
    pub(super) redirect_path: Option<RewritePath>,
    pub(super) rewrite_host: Option<String>,
    pub(super) rewrite_path: Option<RewritePath>,
}

/// How a path is rewritten, for the upstream or in a redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RewritePath {
    /// The whole path becomes this.
    Full(String),
    /// The matched prefix becomes this; without a slash at the end, empty for `/`.
    Prefix(String),
}

/// Compiles the filters of the rule at `field`.
pub(super) fn compile(written: &[HttpRouteRulesFilters], field: &str) -> Result<Filters, FieldError> {
    let mut filters = Filters::default();
    for (index, filter) in written.iter().enumerate() {
        let field = format!("{field}.filters[{index}]");
        let missing =
            |name: &str| FieldError::new(&field, INVALID, format!("a filter of this type needs {name}"));
        match filter.r#type {
            FilterType::RequestHeaderModifier => {
                let modifier = filter
                    .request_header_modifier
                    .as_ref()
                    .ok_or_else(|| missing("requestHeaderModifier"))?;
                let set = modifier.set.iter().flatten().map(|h| (h.name.as_str(), h.value.as_str()));
                let add = modifier.add.iter().flatten().map(|h| (h.name.as_str(), h.value.as_str()));
                let at = format!("{field}.requestHeaderModifier");
                filters.request_add.extend(header_changes(set, add, &at)?);
                filters.request_remove.extend(removals(modifier.remove.as_deref(), &at)?);
            }
            FilterType::ResponseHeaderModifier => {
                let modifier = filter
                    .response_header_modifier
                    .as_ref()
                    .ok_or_else(|| missing("responseHeaderModifier"))?;
                let set = modifier.set.iter().flatten().map(|h| (h.name.as_str(), h.value.as_str()));
                let add = modifier.add.iter().flatten().map(|h| (h.name.as_str(), h.value.as_str()));
                let at = format!("{field}.responseHeaderModifier");
                filters.response_add.extend(header_changes(set, add, &at)?);
                filters.response_remove.extend(removals(modifier.remove.as_deref(), &at)?);
            }
            FilterType::RequestRedirect => {
                let written = filter.request_redirect.as_ref().ok_or_else(|| missing("requestRedirect"))?;
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
            FilterType::UrlRewrite => {
                let written = filter.url_rewrite.as_ref().ok_or_else(|| missing("urlRewrite"))?;
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
            FilterType::RequestMirror => return Err(unsupported(&field, "RequestMirror")),
            FilterType::ExtensionRef => return Err(unsupported(&field, "ExtensionRef")),
            FilterType::Cors => return Err(unsupported(&field, "CORS")),
        }
    }
    if filters.redirect.is_some() && (filters.rewrite_path.is_some() || filters.rewrite_host.is_some()) {
        let message = "a rule has either a RequestRedirect or a URLRewrite, not both";
        return Err(FieldError::new(format!("{field}.filters"), INVALID, message));
    }
    Ok(filters)
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

fn header_changes<'a>(
    set: impl Iterator<Item = (&'a str, &'a str)>,
    add: impl Iterator<Item = (&'a str, &'a str)>,
    field: &str,
) -> Result<Vec<HeaderValueOption>, FieldError> {
    let set = set.enumerate().map(|(index, h)| ("set", index, h, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = add.enumerate().map(|(index, h)| ("add", index, h, HeaderAppendAction::AppendIfExistsOrAdd));
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

fn removals(names: Option<&[String]>, field: &str) -> Result<Vec<String>, FieldError> {
    let names = names.unwrap_or_default().iter().enumerate();
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
