//! What a type alone cannot say about one object of ours. What concerns several objects is the compiler's to
//! find; Gateway API kinds are checked there too, part by part.

use std::net::IpAddr;

use super::duration::Duration;
use super::expression;
use super::migration::{CanaryMatch, Key, MigrationSpec, Side, Stage, WHOLE};
use super::pool::{EurekaSource, PoolSpec, ServiceSource};
use super::problem::FieldError;

/// A connect timeout above this is a mistake in the unit.
const MAX_CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(300);

/// A name as Kubernetes allows it (RFC 1123 subdomain).
pub(super) fn name(text: &str) -> Result<(), &'static str> {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    match text.len() <= 253 && text.split('.').all(label) {
        true => Ok(()),
        false => Err("expected lower-case letters, digits, - and ., at most 253 characters"),
    }
}

/// What is wrong with a pool.
pub(super) fn pool(spec: &PoolSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    exactly_one(
        "spec",
        &[
            ("endpoints", spec.endpoints.is_some()),
            ("dns", spec.dns.is_some()),
            ("eureka", spec.eureka.is_some()),
            ("service", spec.service.is_some()),
        ],
        &mut errors,
    );
    let endpoints = spec.endpoints.as_deref().unwrap_or_default();
    if spec.endpoints.is_some() && !(1..=1000).contains(&endpoints.len()) {
        errors.push(FieldError::new("spec.endpoints", "invalid_value", "expected 1 to 1000 endpoints"));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let at = |name: &str| format!("spec.endpoints[{index}].{name}");
        if endpoint.address.parse::<IpAddr>().is_err() {
            let message = "expected an IPv4 or IPv6 address; a name goes into spec.dns";
            errors.push(FieldError::new(at("address"), "invalid_value", message));
        }
        port(endpoint.port, at("port"), &mut errors);
        if !(1..=10_000).contains(&endpoint.weight) {
            errors.push(FieldError::new(at("weight"), "invalid_value", "expected a weight from 1 to 10000"));
        }
        let same = |other: &&super::pool::PoolEndpoint| {
            (&other.address, other.port) == (&endpoint.address, endpoint.port)
        };
        if endpoints.iter().take(index).any(|other| same(&other)) {
            errors.push(FieldError::new(at("address"), "duplicate", "this endpoint is already in the list"));
        }
    }
    if let Some(dns) = &spec.dns {
        if dns.name.parse::<IpAddr>().is_ok() {
            let message = "expected a DNS name; an address goes into spec.endpoints";
            errors.push(FieldError::new("spec.dns.name", "invalid_value", message));
        } else if dns.name.is_empty()
            || dns.name.len() > 253
            || !dns.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        {
            errors.push(FieldError::new("spec.dns.name", "invalid_value", "expected a DNS name"));
        }
        port(dns.port, "spec.dns.port".into(), &mut errors);
    }
    if let Some(source) = &spec.eureka {
        eureka(source, "spec.eureka", &mut errors);
    }
    if let Some(source) = &spec.service {
        service(source, "spec.service", &mut errors);
    }
    let Duration(timeout) = spec.connect_timeout;
    if timeout.is_zero() || timeout > MAX_CONNECT_TIMEOUT {
        errors.push(FieldError::new(
            "spec.connectTimeout",
            "invalid_value",
            "expected more than 0s, at most 5m",
        ));
    }
    errors
}

/// What is wrong with a migration.
pub(super) fn migration(spec: &MigrationSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if spec.service.is_empty() || spec.service.contains('/') || spec.service.chars().any(char::is_control) {
        errors.push(FieldError::new("spec.service", "invalid_value", "expected the name of a service"));
    }
    side(&spec.legacy, "spec.legacy", &mut errors);
    side(&spec.target, "spec.target", &mut errors);
    if same_side(&spec.legacy, &spec.target) {
        let message =
            "expected other instances than legacy's: name another pool, or tell them apart with a selector";
        errors.push(FieldError::new("spec.target", "same_as_legacy", message));
    }
    match &spec.key {
        Some(key) => check_key(key, &mut errors),
        None if spec.stage == Some(Stage::Split) => {
            let message = "stage split needs a key that tells users apart: a header or a cookie";
            errors.push(FieldError::new("spec.key", "missing_field", message));
        }
        None => {}
    }
    if spec.canary.len() > 64 {
        errors.push(FieldError::new("spec.canary", "invalid_value", "expected at most 64 matches"));
    }
    for (index, canary) in spec.canary.iter().enumerate() {
        check_canary(canary, &format!("spec.canary[{index}]"), &mut errors);
    }
    if spec.weight.is_some_and(|weight| weight > WHOLE) {
        let message = "expected hundredths of a percent, 0 to 10000: 500 is 5 %";
        errors.push(FieldError::new("spec.weight", "invalid_value", message));
    }
    errors
}

fn same_side(legacy: &Side, target: &Side) -> bool {
    match (&legacy.eureka, &target.eureka) {
        (Some(a), Some(b)) => {
            a.application.eq_ignore_ascii_case(&b.application)
                && (a.selector == b.selector || a.selector.is_empty() || b.selector.is_empty())
        }
        _ => {
            legacy.pool.is_some() && legacy.pool == target.pool
                || legacy.service.is_some() && legacy.service == target.service
        }
    }
}

fn side(side: &Side, field: &str, errors: &mut Vec<FieldError>) {
    let choices = [
        ("eureka", side.eureka.is_some()),
        ("pool", side.pool.is_some()),
        ("service", side.service.is_some()),
    ];
    exactly_one(field, &choices, errors);
    if let Some(source) = &side.eureka {
        eureka(source, &format!("{field}.eureka"), errors);
    }
    if let Some(source) = &side.service {
        service(source, &format!("{field}.service"), errors);
    }
    if let Some(Err(message)) = side.pool.as_deref().map(name) {
        errors.push(FieldError::new(format!("{field}.pool"), "invalid_value", message));
    }
}

fn eureka(source: &EurekaSource, field: &str, errors: &mut Vec<FieldError>) {
    let odd = |c: char| c.is_control() || c.is_whitespace() || c == '/';
    if source.application.is_empty() || source.application.len() > 255 || source.application.contains(odd) {
        let message =
            "expected the name that the application registers under, such as its spring.application.name";
        errors.push(FieldError::new(format!("{field}.application"), "invalid_value", message));
    }
    if source.selector.len() > 16 {
        errors.push(FieldError::new(
            format!("{field}.selector"),
            "invalid_value",
            "expected at most 16 entries",
        ));
    }
}

fn service(source: &ServiceSource, field: &str, errors: &mut Vec<FieldError>) {
    if let Err(message) = name(&source.name) {
        errors.push(FieldError::new(format!("{field}.name"), "invalid_value", message));
    }
    if let Some(number) = source.port {
        port(number, format!("{field}.port"), errors);
    }
}

fn check_key(key: &Key, errors: &mut Vec<FieldError>) {
    exactly_one("spec.key", &[("header", key.header.is_some()), ("cookie", key.cookie.is_some())], errors);
    if let Some(header) = &key.header {
        header_name(header, "spec.key.header".into(), errors);
    }
    if let Some(cookie) = &key.cookie {
        cookie_name(&cookie.name, "spec.key.cookie.name".into(), errors);
    }
}

fn check_canary(canary: &CanaryMatch, field: &str, errors: &mut Vec<FieldError>) {
    exactly_one(field, &[("header", canary.header.is_some()), ("cookie", canary.cookie.is_some())], errors);
    if let Some(header) = &canary.header {
        let at = format!("{field}.header");
        header_name(&header.name, format!("{at}.name"), errors);
        exactly_one(&at, &[("value", header.value.is_some()), ("regex", header.regex.is_some())], errors);
        if let Some(Err(message)) = header.regex.as_deref().map(expression::check) {
            errors.push(FieldError::new(format!("{at}.regex"), "invalid_value", message));
        }
    }
    if let Some(cookie) = &canary.cookie {
        cookie_name(&cookie.name, format!("{field}.cookie.name"), errors);
        if cookie.value.contains([';', ',', '"', ' ']) || cookie.value.chars().any(char::is_control) {
            let message = "expected a cookie's value, without spaces, quotes, commas and semicolons";
            errors.push(FieldError::new(format!("{field}.cookie.value"), "invalid_value", message));
        }
    }
}

fn exactly_one(field: &str, choices: &[(&str, bool)], errors: &mut Vec<FieldError>) {
    let names = |wanted: bool| {
        let chosen = choices.iter().filter(|(_, set)| !wanted || *set).map(|(name, _)| *name);
        chosen.collect::<Vec<_>>()
    };
    let set = names(true);
    if set.len() == 1 {
        return;
    }
    let found = if set.is_empty() { "none is".to_owned() } else { format!("{} are", set.join(" and ")) };
    let message = format!("expected exactly one of {}; {found} set", names(false).join(", "));
    errors.push(FieldError::new(field, "one_of", message));
}

fn port(port: u16, field: String, errors: &mut Vec<FieldError>) {
    if port == 0 {
        errors.push(FieldError::new(field, "invalid_value", "expected a port, 1 to 65535"));
    }
}

fn header_name(name: &str, field: String, errors: &mut Vec<FieldError>) {
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        errors.push(FieldError::new(field, "invalid_value", "expected a header name"));
    }
}

/// A cookie's name is a token (RFC 6265), as a header's name is.
fn cookie_name(name: &str, field: String, errors: &mut Vec<FieldError>) {
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        errors.push(FieldError::new(field, "invalid_value", "expected a cookie's name"));
    }
}
