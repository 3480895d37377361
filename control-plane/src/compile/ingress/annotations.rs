//! The annotations of ingress-nginx that are read. What each means here, and where that is not what it meant there, is in
//! docs/reference/ingress.md. Whatever else has their prefix is named, and what keeps somebody out is not passed over:
//! an Ingress that has such a one is not served.

use std::time::Duration;

use k8s_openapi::api::networking::v1::Ingress;
use serde_json::{Value as Json, json};

use super::affinity::{self, Affinity};
use super::auth::{self, Auth};
use super::rate::Rate;
use super::sources::Sources;
use crate::compile::INVALID;
use crate::compile::hostname::Hostname;
use crate::compile::status::ConditionType;
use crate::objects::expression;
use crate::objects::problem::FieldError;

/// What all of them begin with.
const PREFIX: &str = "nginx.ingress.kubernetes.io/";
/// Without these somebody is let in whom the user keeps out.
const GUARDS: &[&str] = &[
    "auth-",
    "configuration-snippet",
    "enable-modsecurity",
    "enable-owasp-core-rules",
    "modsecurity-",
    "satisfy",
    "server-snippet",
];
/// What ingress-nginx answers to CORS where nothing else is said.
const CORS_METHODS: &str = "GET, PUT, POST, DELETE, PATCH, OPTIONS";
const CORS_HEADERS: &str = "DNT,Keep-Alive,User-Agent,X-Requested-With,If-Modified-Since,Cache-Control,Content-Type,Range,\
                            Authorization";
const CORS_MAX_AGE: i32 = 1_728_000;
const CANARY_TOTAL: u32 = 100;
/// More tries only add to an outage.
const MAX_TRIES: u32 = 21;

/// ingress-nginx's, where nothing else is said.
const BURST: u32 = 5;
/// What an Ingress's annotations ask for.
#[derive(Debug, Default)]
pub(super) struct Annotations {
    pub(super) rewrite: Option<String>,
    pub(super) use_regex: bool,
    /// Unless it says otherwise, hosts with a certificate are for HTTPS.
    pub(super) keep_http: bool,
    pub(super) force_https: bool,
    pub(super) redirect: Option<Redirect>,
    pub(super) app_root: Option<String>,
    pub(super) canary: Option<Canary>,
    /// It is to be a canary, and it cannot be read of what.
    pub(super) is_lost_canary: bool,
    /// Without a byte either way for so long, a request ends.
    pub(super) idle: Option<Duration>,
    /// 0: no limit.
    pub(super) body_bytes: Option<u32>,
    /// A `cors` filter of the Gateway API.
    pub(super) cors: Option<Json>,
    pub(super) sources: Sources,
    /// Of each client.
    pub(super) rate: Option<Rate>,
    pub(super) affinity: Option<Affinity>,
    /// Who is asked before a request goes on.
    pub(super) auth: Option<Auth>,
    pub(super) protocol: Protocol,
    pub(super) host: Option<String>,
    pub(super) aliases: Vec<String>,
    pub(super) forwarded_prefix: Option<String>,
    /// Further tries.
    pub(super) retries: Option<u32>,
    /// It is not served: what keeps somebody out is not supported, or cannot be read.
    pub(super) is_closed: bool,
    pub(super) errors: Vec<(ConditionType, FieldError)>,
}

/// What is spoken to endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Protocol {
    pub(super) is_http2: bool,
    pub(super) is_tls: bool,
}

/// Where requests are sent instead, with which status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Redirect {
    pub(super) to: String,
    pub(super) status: u32,
}

/// When requests go to a canary instead of to what it is one of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Canary {
    pub(super) header: Option<String>,
    pub(super) header_is: Option<HeaderIs>,
    pub(super) cookie: Option<String>,
    pub(super) weight: u32,
    pub(super) total: u32,
}

/// What a header says that means the canary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HeaderIs {
    Value(String),
    Pattern(String),
}

/// Reads them.
pub(super) fn read(ingress: &Ingress) -> Annotations {
    let mut read = Annotations::default();
    let all = ingress.metadata.annotations.iter().flatten();
    let ours: Vec<(&str, &str)> =
        all.filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value.as_str()))).collect();
    let of = |name: &str| ours.iter().find(|(key, _)| *key == name).map(|(_, value)| value.trim());
    for (name, value) in &ours {
        if let Err(message) = read.take(name, value.trim(), of) {
            let message = format!("{PREFIX}{name} is passed over: {message}");
            read.say(ConditionType::Accepted, INVALID, message);
        }
    }
    if let Some(canary) = &read.canary
        && canary.header.is_none()
        && canary.header_is.is_some()
    {
        let message = format!("{PREFIX}canary-by-header-value needs {PREFIX}canary-by-header");
        read.say(ConditionType::Accepted, INVALID, message);
    }
    read
}

impl Annotations {
    fn say(&mut self, kind: ConditionType, reason: &'static str, message: String) {
        self.errors.push((kind, FieldError::new("metadata.annotations", reason, message)));
    }

    /// What keeps somebody out cannot be read.
    fn close(&mut self, name: &str, message: &str) {
        self.is_closed = true;
        let message = format!("{PREFIX}{name}: {message}; the Ingress answers 500");
        self.say(ConditionType::Accepted, INVALID, message);
    }

    fn take<'v>(
        &mut self,
        name: &str,
        value: &'v str,
        of: impl Fn(&str) -> Option<&'v str>,
    ) -> Result<(), String> {
        let is_true = |name: &str| of(name) == Some("true");
        match name {
            "rewrite-target" => self.rewrite = Some(rewrite(value)?),
            "use-regex" => self.use_regex = truth(value)?,
            "ssl-redirect" => self.keep_http = !truth(value)?,
            "force-ssl-redirect" => self.force_https = truth(value)?,
            "permanent-redirect" => {
                let status = of("permanent-redirect-code").unwrap_or("301").parse().unwrap_or_default();
                if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                    return Err("expected a permanent-redirect-code of 301, 302, 303, 307 or 308".to_owned());
                }
                self.redirect = Some(Redirect { to: target(value)?, status });
            }
            // In ingress-nginx the temporal one goes first, too.
            "temporal-redirect" => self.redirect = Some(Redirect { to: target(value)?, status: 302 }),
            "app-root" => self.app_root = Some(path(value)?),
            "canary" if value == "false" => {}
            // Without what it says it would have all requests.
            "canary" => match canary(&of) {
                Ok(canary) => self.canary = Some(canary),
                Err(message) => {
                    self.is_lost_canary = true;
                    self.say(
                        ConditionType::Accepted,
                        INVALID,
                        format!("{message}; the canary is not served"),
                    );
                }
            },
            "proxy-read-timeout" => self.idle = self.idle.max(Some(seconds(value)?)),
            "proxy-send-timeout" => self.idle = self.idle.max(Some(seconds(value)?)),
            "proxy-body-size" => self.body_bytes = Some(size(value)?),
            "limit-rps" => self.rate = Some(rate(value, Duration::from_secs(1), &of)?),
            "limit-rpm" if of("limit-rps").is_some() => return Err("limit-rps counts".to_owned()),
            "limit-rpm" => self.rate = Some(rate(value, Duration::from_secs(60), &of)?),
            "enable-cors" => self.cors = truth(value)?.then(|| cors(&of)).transpose()?,
            "allowlist-source-range" | "whitelist-source-range" | "denylist-source-range" => {
                if let Err(message) = self.sources.take(name, value) {
                    self.close(name, &message);
                }
            }
            "auth-url" => match auth::read(value, &of) {
                Ok(auth) => self.auth = Some(auth),
                Err(message) => self.close(name, &message),
            },
            "affinity" if value == "cookie" => self.affinity = Some(affinity::read(&of)?),
            "backend-protocol" => self.protocol = protocol(value)?,
            "upstream-vhost" => self.host = Some(host(value)?),
            "server-alias" => {
                let names = value.split(',').map(str::trim).filter(|name| !name.is_empty());
                self.aliases = names.map(host).collect::<Result<_, _>>()?;
            }
            "x-forwarded-prefix" => {
                http::HeaderValue::from_str(value).map_err(|_| "expected a header's value")?;
                self.forwarded_prefix = Some(value.to_owned());
            }
            "proxy-next-upstream" => {
                let words: Vec<&str> = value.split_whitespace().collect();
                match words.as_slice() {
                    ["off"] => self.retries = Some(0),
                    words if words.iter().all(|word| matches!(*word, "error" | "timeout")) => {}
                    _ => return Err("expected off, or of error and timeout".to_owned()),
                }
            }
            "proxy-next-upstream-tries" => {
                let tries = value.parse::<u32>().ok().filter(|tries| (1..=MAX_TRIES).contains(tries));
                let tries =
                    tries.ok_or_else(|| format!("expected 1 to {MAX_TRIES}; there is no endless trying"))?;
                self.retries = Some(self.retries.map_or(tries - 1, |before| before.min(tries - 1)));
            }
            // Read by the one that they belong to, and without that of no effect there either.
            "limit-burst-multiplier" if of("limit-rps").or(of("limit-rpm")).is_some() => {}
            "permanent-redirect-code" if of("permanent-redirect").is_some() => {}
            "cors-allow-origin"
            | "cors-allow-methods"
            | "cors-allow-headers"
            | "cors-expose-headers"
            | "cors-allow-credentials"
            | "cors-max-age"
                if is_true("enable-cors") => {}
            "canary-weight"
            | "canary-weight-total"
            | "canary-by-header"
            | "canary-by-header-value"
            | "canary-by-header-pattern"
            | "canary-by-cookie"
                if of("canary").is_some_and(|canary| canary != "false") => {}
            _ if affinity::takes(name, value) && of("affinity") == Some("cookie") => {}
            _ if auth::takes(name) && of("auth-url").is_some() => {}
            // As it is here anyway.
            "proxy-buffering" | "proxy-request-buffering" if value == "off" => {}
            "proxy-http-version" if value == "1.1" => {}
            _ if GUARDS.iter().any(|guard| name.starts_with(guard)) => {
                self.is_closed = true;
                let message = format!(
                    "not supported here: {PREFIX}{name}; as it may keep somebody out, the Ingress answers 500"
                );
                self.say(ConditionType::Accepted, "UnsupportedAnnotation", message);
            }
            _ => {
                let message = format!("not supported here: {PREFIX}{name}; the Ingress is served without it");
                self.say(ConditionType::Effective, "UnsupportedAnnotation", message);
            }
        }
        Ok(())
    }
}

pub(super) fn truth(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "expected \"true\" or \"false\"".to_owned())
}

pub(super) fn path(value: &str) -> Result<String, String> {
    let fits = value.starts_with('/') && value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if fits { Ok(value.to_owned()) } else { Err("expected a path that begins with /".to_owned()) }
}

/// A path whose only variables are groups of the path's regular expression.
fn rewrite(value: &str) -> Result<String, String> {
    let mut after = value.split('$').skip(1);
    if value.contains('?') || after.any(|text| !text.starts_with(|first: char| matches!(first, '1'..='9'))) {
        return Err("expected a path, with $1 to $9 for groups of the rule's path, and no query".to_owned());
    }
    path(value)
}

/// An absolute address or a path; of nginx's variables, `$request_uri` at the end.
fn target(value: &str) -> Result<String, String> {
    let fixed = value.strip_suffix("$request_uri").unwrap_or(value);
    let is_usable = match fixed.parse::<http::Uri>() {
        Ok(uri) => match (uri.scheme_str(), uri.authority()) {
            (Some("http" | "https"), Some(authority)) => {
                !authority.as_str().contains('@')
                    && (fixed == value || uri.path() == "/" && !fixed.ends_with('/'))
            }
            (None, None) => fixed == value && fixed.starts_with('/') && !fixed.starts_with("//"),
            _ => false,
        },
        Err(_) => false,
    };
    if is_usable && !fixed.contains(['$', '#']) {
        return Ok(value.to_owned());
    }
    Err("expected http(s)://HOST[:PORT][/PATH] or a path; of variables, HOST$request_uri is known".to_owned())
}

pub(super) fn host(value: &str) -> Result<String, String> {
    match Hostname::parse(Some(value))? {
        Hostname::Exact(name) => Ok(name),
        _ => Err("expected a hostname such as shop.example.com".to_owned()),
    }
}

/// A number of seconds, with or without an s.
pub(super) fn seconds(value: &str) -> Result<Duration, String> {
    let number = value.strip_suffix('s').unwrap_or(value).parse::<u32>().ok().filter(|seconds| *seconds > 0);
    number
        .map(|seconds| Duration::from_secs(seconds.into()))
        .ok_or_else(|| "expected seconds, above 0".to_owned())
}

/// nginx's sizes: bytes, or with k, m or g.
fn size(value: &str) -> Result<u32, String> {
    let wrong = || "expected bytes, or a number with k, m or g, below 4 GiB; 0 is no limit".to_owned();
    let (number, unit) = match value.to_ascii_lowercase() {
        lower if lower.ends_with('k') => (lower.trim_end_matches('k').to_owned(), 1 << 10),
        lower if lower.ends_with('m') => (lower.trim_end_matches('m').to_owned(), 1 << 20),
        lower if lower.ends_with('g') => (lower.trim_end_matches('g').to_owned(), 1 << 30),
        lower => (lower, 1),
    };
    let bytes = number.parse::<u64>().map_err(|_| wrong())?.checked_mul(unit).ok_or_else(wrong)?;
    u32::try_from(bytes).map_err(|_| wrong())
}

fn rate<'v>(value: &str, interval: Duration, of: &impl Fn(&str) -> Option<&'v str>) -> Result<Rate, String> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number > 0);
    let requests = number(value).ok_or("expected a number of requests, above 0")?;
    let multiplier = of("limit-burst-multiplier").map_or(Some(BURST), number);
    let burst = multiplier.and_then(|multiplier| requests.checked_mul(multiplier));
    let burst = burst.ok_or("expected a limit-burst-multiplier above 0, which is not too large")?;
    Ok(Rate { requests, burst, interval })
}

fn protocol(value: &str) -> Result<Protocol, String> {
    match value.to_ascii_uppercase().as_str() {
        "HTTP" => Ok(Protocol::default()),
        "HTTPS" => Ok(Protocol { is_http2: false, is_tls: true }),
        "GRPC" => Ok(Protocol { is_http2: true, is_tls: false }),
        "GRPCS" => Ok(Protocol { is_http2: true, is_tls: true }),
        _ => Err("expected HTTP, HTTPS, GRPC or GRPCS".to_owned()),
    }
}

fn cors<'v>(of: &impl Fn(&str) -> Option<&'v str>) -> Result<Json, String> {
    let list = |name: &str, otherwise: &str| -> Vec<String> {
        let items = of(name).unwrap_or(otherwise).split(',');
        items.map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
    };
    let max_age = of("cors-max-age").map_or(Ok(CORS_MAX_AGE), str::parse::<i32>);
    let max_age =
        max_age.ok().filter(|seconds| *seconds > 0).ok_or("expected a cors-max-age in seconds, above 0")?;
    let credentials = of("cors-allow-credentials").map_or(Ok(true), truth)?;
    let origins = list("cors-allow-origin", "*");
    if let Some(origin) = origins.iter().find(|origin| *origin != "*" && !origin.contains("://")) {
        return Err(format!("{origin:?} in cors-allow-origin is no origin such as https://shop.example.com"));
    }
    Ok(json!({
        "allowOrigins": origins,
        "allowMethods": list("cors-allow-methods", CORS_METHODS),
        "allowHeaders": list("cors-allow-headers", CORS_HEADERS),
        "exposeHeaders": list("cors-expose-headers", ""),
        "allowCredentials": credentials,
        "maxAge": max_age,
    }))
}

/// What a canary says; or which of it cannot be read.
fn canary<'v>(of: &impl Fn(&str) -> Option<&'v str>) -> Result<Canary, String> {
    let wrong = |name: &str, expected: &str| {
        format!("{PREFIX}{name} is {:?}: {expected}", of(name).unwrap_or_default())
    };
    let number = |name: &str, otherwise: u32| {
        of(name).map_or(Ok(otherwise), |text| text.parse().map_err(|_| wrong(name, "expected a number")))
    };
    let is_name = |text: &str| http::HeaderName::from_bytes(text.as_bytes()).is_ok();
    let named = |name: &str, expected: &str| match of(name) {
        Some(text) if !is_name(text) => Err(wrong(name, expected)),
        found => Ok(found.map(str::to_owned)),
    };
    truth(of("canary").unwrap_or_default()).map_err(|expected| wrong("canary", &expected))?;
    let total = number("canary-weight-total", CANARY_TOTAL)?;
    if total == 0 || total > 1_000_000 {
        return Err(wrong("canary-weight-total", "expected 1 to 1000000"));
    }
    let weight = number("canary-weight", 0)?;
    if weight > total {
        return Err(wrong("canary-weight", &format!("expected 0 to the canary-weight-total, {total}")));
    }
    let header = named("canary-by-header", "expected a header's name")?;
    let value = of("canary-by-header-value").filter(|value| !value.is_empty());
    let header_is = match (value, of("canary-by-header-pattern")) {
        (Some(value), _) => Some(HeaderIs::Value(value.to_owned())),
        (None, Some(pattern)) => {
            expression::check(pattern).map_err(|message| wrong("canary-by-header-pattern", &message))?;
            Some(HeaderIs::Pattern(pattern.to_owned()))
        }
        (None, None) => None,
    };
    let cookie = named("canary-by-cookie", "expected a cookie's name")?;
    Ok(Canary { header, header_is, cookie, weight, total })
}

#[cfg(test)]
mod tests;
