//! `affinity: cookie` and what is said of its cookie: the proxy's sessions, which name the endpoint itself.

use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::route::v3::FilterConfig;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession, StatefulSessionPerRoute, stateful_session_per_route::Override,
};
use envoy_types::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use envoy_types::pb::envoy::r#type::http::v3::{Cookie, CookieAttribute};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::util::pack_any;

use super::annotations::{host, path, seconds, truth};
use crate::compile::wire;

/// The sessions of an Ingress.
#[derive(Debug)]
pub(super) struct Affinity {
    /// Without a path it has that of the rule.
    cookie: Cookie,
    /// Where nothing is said, what came over TLS goes back over TLS only.
    secure: Option<bool>,
}

/// Whether an annotation beside `affinity: cookie` is read with it, or is as it is here anyway.
pub(super) fn takes(name: &str, value: &str) -> bool {
    match name {
        "session-cookie-name"
        | "session-cookie-path"
        | "session-cookie-max-age"
        | "session-cookie-expires"
        | "session-cookie-secure"
        | "session-cookie-domain"
        | "session-cookie-samesite" => true,
        "affinity-mode" => value == "persistent",
        "affinity-canary-behavior" => value == "legacy",
        "session-cookie-change-on-failure" => value == "true",
        _ => false,
    }
}

/// Reads `affinity: cookie` and all that is said beside it.
pub(super) fn read<'v>(of: &impl Fn(&str) -> Option<&'v str>) -> Result<Affinity, String> {
    let name = said(of, "session-cookie-name", cookie_name)?;
    // Browsers that know both go by the age.
    let (age, expires) =
        (said(of, "session-cookie-max-age", seconds)?, said(of, "session-cookie-expires", seconds)?);
    let domain = said(of, "session-cookie-domain", |value| host(value.strip_prefix('.').unwrap_or(value)))?;
    let same_site = said(of, "session-cookie-samesite", same_site)?;
    let attributes = [("Domain", domain), ("SameSite", same_site)];
    let attributes = attributes.into_iter().filter_map(|(name, value)| Some(attribute(name, value?)));
    let cookie = Cookie {
        name: name.unwrap_or_else(|| "INGRESSCOOKIE".to_owned()),
        ttl: age.or(expires).map(wire::duration),
        path: said(of, "session-cookie-path", cookie_path)?.unwrap_or_default(),
        attributes: attributes.collect(),
    };
    Ok(Affinity { cookie, secure: said(of, "session-cookie-secure", truth)? })
}

fn said<'v, T>(
    of: &impl Fn(&str) -> Option<&'v str>,
    name: &str,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, String> {
    of(name).map(|value| read(value).map_err(|message| format!("{message} as {name}"))).transpose()
}

fn attribute(name: &str, value: String) -> CookieAttribute {
    CookieAttribute { name: name.to_owned(), value }
}

fn cookie_name(value: &str) -> Result<String, String> {
    let is_name = http::HeaderName::from_bytes(value.as_bytes()).is_ok();
    if is_name { Ok(value.to_owned()) } else { Err("expected a cookie's name".to_owned()) }
}

/// No proxy would take another, nor the routes beside it.
fn cookie_path(value: &str) -> Result<String, String> {
    path(value).ok().filter(|path| !path.contains(';')).ok_or_else(|| "expected a path without ;".to_owned())
}

fn same_site(value: &str) -> Result<String, String> {
    let is_known = matches!(value, "None" | "Lax" | "Strict");
    if is_known { Ok(value.to_owned()) } else { Err("expected None, Lax or Strict".to_owned()) }
}

impl Affinity {
    /// What a route says of the filter; `under` is what its rule's paths begin with, where that is known.
    pub(super) fn of_route(&self, under: Option<&str>, is_tls: bool) -> Any {
        let mut cookie = self.cookie.clone();
        if cookie.path.is_empty() {
            cookie.path = under.and_then(|path| cookie_path(path).ok()).unwrap_or_else(|| "/".to_owned());
        }
        if self.secure.unwrap_or(is_tls) {
            cookie.attributes.push(attribute("Secure", String::new()));
        }
        let state = TypedExtensionConfig {
            // Envoy goes by it.
            name: "envoy.http.stateful_session.cookie".to_owned(),
            typed_config: Some(pack_any(CookieBasedSessionState { cookie: Some(cookie) })),
        };
        let session = StatefulSession { session_state: Some(state), ..StatefulSession::default() };
        let said = StatefulSessionPerRoute { r#override: Some(Override::StatefulSession(session)) };
        // Proxies older than it go without.
        pack_any(FilterConfig { config: Some(pack_any(said)), is_optional: true, ..FilterConfig::default() })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn read_from(pairs: &[(&str, &'static str)]) -> Result<Affinity, String> {
        read(&|name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| *value))
    }

    fn cookie(pairs: &[(&str, &'static str)], under: Option<&str>, is_tls: bool) -> (Cookie, String) {
        let any = read_from(pairs).expect("an affinity").of_route(under, is_tls);
        let wrapped = FilterConfig::decode(&*any.value).expect("a filter's");
        let said = wrapped.config.expect("a session").value;
        let said = StatefulSessionPerRoute::decode(&*said).expect("a session");
        let Some(Override::StatefulSession(session)) = said.r#override else { panic!("{said:?}") };
        let state = session.session_state.and_then(|state| state.typed_config).expect("a state").value;
        let cookie = CookieBasedSessionState::decode(&*state).expect("a cookie").cookie.expect("a cookie");
        let attributes = cookie.attributes.iter().map(|of| format!("{}={}", of.name, of.value));
        let attributes = attributes.collect::<Vec<_>>().join(" ");
        (cookie, attributes)
    }

    #[test]
    fn where_nothing_is_said_it_is_as_with_ingress_nginx() {
        let (plain, attributes) = cookie(&[], Some("/shop"), false);
        assert_eq!(
            (plain.name.as_str(), plain.path.as_str(), attributes.as_str()),
            ("INGRESSCOOKIE", "/shop", "")
        );
        assert_eq!(plain.ttl, None);
        let (tls, attributes) = cookie(&[], None, true);
        assert_eq!((tls.path.as_str(), attributes.as_str()), ("/", "Secure="));
        assert_eq!(cookie(&[], Some("/a;b"), false).0.path, "/", "no proxy would take it");
    }

    #[test]
    fn each_annotation_of_the_cookie_counts() {
        let (cookie, attributes) = cookie(
            &[
                ("session-cookie-name", "route"),
                ("session-cookie-path", "/all"),
                ("session-cookie-max-age", "60"),
                ("session-cookie-expires", "90"),
                ("session-cookie-secure", "false"),
                ("session-cookie-domain", ".example.com"),
                ("session-cookie-samesite", "Lax"),
            ],
            Some("/shop"),
            true,
        );
        assert_eq!((cookie.name.as_str(), cookie.path.as_str()), ("route", "/all"));
        assert_eq!(cookie.ttl.map(|ttl| ttl.seconds), Some(60));
        assert_eq!(attributes, "Domain=example.com SameSite=Lax");
    }

    #[test]
    fn what_cannot_be_read_says_where() {
        for (name, value) in [
            ("session-cookie-name", "a b"),
            ("session-cookie-path", "shop"),
            ("session-cookie-path", "/a;b"),
            ("session-cookie-max-age", "0"),
            ("session-cookie-expires", "1h"),
            ("session-cookie-secure", "yes"),
            ("session-cookie-domain", "*.example.com"),
            ("session-cookie-samesite", "lax"),
        ] {
            let message = read_from(&[(name, value)]).expect_err(value);
            assert!(message.ends_with(&format!(" as {name}")), "{message}");
        }
    }
}
