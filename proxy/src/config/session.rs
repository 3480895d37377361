//! The filter for sessions that are with an endpoint: of a listener, and what routes say of it.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::{
    StatefulSession, StatefulSessionPerRoute, stateful_session_per_route,
};
use envoy_types::pb::envoy::extensions::http::stateful_session::cookie::v3::CookieBasedSessionState;
use envoy_types::pb::envoy::extensions::http::stateful_session::header::v3::HeaderBasedSessionState;
use envoy_types::pb::envoy::r#type::http::v3::{Cookie as CookieMessage, CookieAttribute};
use envoy_types::pb::google::protobuf::Any;
use http::HeaderValue;
use pontoon_xds::json::type_of;
use prost::Name as _;

use super::hcm::duration;
use super::lds::unpack;
use super::matching::header_name;
use super::problem::{Problem, Under, each};
use super::rds::is_cookie_name;
use super::support::{Message, support};
use crate::route::session::{Cookie, Session, State};

pub(super) const MESSAGES: &[Message] = &[SESSION, PER_ROUTE, COOKIE_STATE, HEADER_STATE, COOKIE, ATTRIBUTE];

support! {
    SESSION, session: StatefulSession = "envoy.extensions.filters.http.stateful_session.v3.StatefulSession";
    read: session_state, strict;
    ignored:
        stat_prefix => "it only names statistics";
    refused: status_on_strict_destination_not_found;
}

support! {
    PER_ROUTE, per_route: StatefulSessionPerRoute = "envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute";
    read: r#override;
    ignored:;
    refused: ;
}

support! {
    COOKIE_STATE, cookie_state: CookieBasedSessionState = "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState";
    read: cookie;
    ignored:;
    refused: ;
}

support! {
    HEADER_STATE, header_state: HeaderBasedSessionState = "envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState";
    read: name;
    ignored:;
    refused: ;
}

support! {
    COOKIE, cookie_fields: CookieMessage = "envoy.type.http.v3.Cookie";
    read: name, ttl, path, attributes;
    ignored:;
    refused: ;
}

support! {
    ATTRIBUTE, attribute: CookieAttribute = "envoy.type.http.v3.CookieAttribute";
    read: name, value;
    ignored:;
    refused: ;
}

/// The filter's name, under which routes can say that it is on.
pub(super) const NAME: &str = "envoy.filters.http.stateful_session";

/// Reads what a listener says.
pub(super) fn of_listener(any: &Any) -> Result<Arc<Session>, Problem> {
    compile(&unpack(any)?).map(Arc::new)
}

/// Reads what a route says.
pub(super) fn of_route(any: &Any) -> Result<Arc<Session>, Problem> {
    let message: StatefulSessionPerRoute = unpack(any)?;
    per_route(&message)?;
    match &message.r#override {
        Some(stateful_session_per_route::Override::Disabled(true)) => {
            Ok(Arc::new(Session { state: State::None, strict: false }))
        }
        Some(stateful_session_per_route::Override::StatefulSession(own)) => {
            compile(own).map(Arc::new).under(|| "stateful_session".into())
        }
        _ => Err(Problem::new("override", "is missing; give stateful_session, or disabled: true")),
    }
}

fn compile(message: &StatefulSession) -> Result<Session, Problem> {
    session(message)?;
    let state = match &message.session_state {
        None => State::None,
        Some(extension) => {
            let any = extension.typed_config.as_ref();
            let any = any.ok_or_else(|| Problem::new("typed_config", "is missing"));
            any.and_then(state).under(|| "session_state".into())?
        }
    };
    Ok(Session { state, strict: message.strict })
}

fn state(any: &Any) -> Result<State, Problem> {
    let at = || "typed_config".into();
    if any.type_url == CookieBasedSessionState::type_url() {
        let message: CookieBasedSessionState = unpack(any)?;
        cookie_state(&message)?;
        return cookie(&message.cookie.unwrap_or_default())
            .map(State::Cookie)
            .under(|| "cookie".into())
            .under(at);
    }
    if any.type_url == HeaderBasedSessionState::type_url() {
        let message: HeaderBasedSessionState = unpack(any)?;
        header_state(&message)?;
        return header_name("name", &message.name).map(State::Header).under(at);
    }
    let reason = format!("is a {}; this proxy supports cookies and headers here", type_of(any));
    Err(Problem::new("typed_config", reason))
}

fn cookie(message: &CookieMessage) -> Result<Cookie, Problem> {
    cookie_fields(message)?;
    if !is_cookie_name(&message.name) {
        return Err(Problem::new("name", format!("is {:?}, which is not a cookie name", message.name)));
    }
    let part =
        |field: &'static str, text: &str| match text.contains(';') || HeaderValue::from_str(text).is_err() {
            true => Err(Problem::new(field, format!("is {text:?}, which no cookie can hold"))),
            false => Ok(()),
        };
    part("path", &message.path)?;
    let ttl = Duration::from_secs(duration("ttl", message.ttl)?.unwrap_or_default().as_secs());
    let mut attributes = String::new();
    let mut add = |name: &str, value: &str| {
        let is = if value.is_empty() { "" } else { "=" };
        attributes.extend(["; ", name, is, value]);
    };
    if !ttl.is_zero() {
        add("Max-Age", &ttl.as_secs().to_string());
    }
    if !message.path.is_empty() {
        add("Path", &message.path);
    }
    each("attributes", &message.attributes, |of| {
        attribute(of)?;
        header_name("name", &of.name)?;
        part("value", &of.value)?;
        add(&of.name, &of.value);
        Ok(())
    })?;
    add("HttpOnly", "");
    Ok(Cookie {
        name: message.name.as_str().into(),
        ttl,
        path: message.path.as_str().into(),
        attributes: attributes.into(),
    })
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
    use envoy_types::pb::google::protobuf;
    use pontoon_xds::messages::pack;

    use super::*;

    fn by(state: Any) -> StatefulSession {
        let session_state = Some(TypedExtensionConfig { name: "state".into(), typed_config: Some(state) });
        StatefulSession { session_state, ..StatefulSession::default() }
    }

    fn of_cookie(cookie: CookieMessage) -> Result<Arc<Session>, Problem> {
        of_listener(&pack(&by(pack(&CookieBasedSessionState { cookie: Some(cookie) }))))
    }

    fn named(name: &str) -> CookieMessage {
        CookieMessage { name: name.into(), ..CookieMessage::default() }
    }

    #[test]
    fn a_cookie_is_written_as_envoy_writes_it() {
        let of = |name: &str, value: &str| CookieAttribute { name: name.into(), value: value.into() };
        let session = of_cookie(CookieMessage {
            ttl: Some(protobuf::Duration { seconds: 60, nanos: 5 }),
            path: "/a".into(),
            attributes: vec![of("SameSite", "Lax"), of("Secure", "")],
            ..named("s")
        })
        .unwrap();
        let State::Cookie(cookie) = &session.state else { panic!("{session:?}") };
        assert_eq!(&*cookie.attributes, "; Max-Age=60; Path=/a; SameSite=Lax; Secure; HttpOnly");
        assert_eq!((cookie.ttl, &*cookie.path), (Duration::from_secs(60), "/a"));
        let session = of_cookie(named("s")).unwrap();
        let State::Cookie(cookie) = &session.state else { panic!("{session:?}") };
        assert_eq!((&*cookie.attributes, cookie.ttl), ("; HttpOnly", Duration::ZERO));
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let path = |session: Result<Arc<Session>, Problem>| session.unwrap_err().path;
        let cookie = "session_state.typed_config.cookie";
        assert_eq!(path(of_cookie(named(""))), format!("{cookie}.name"));
        assert_eq!(path(of_cookie(named("a=b"))), format!("{cookie}.name"));
        assert_eq!(
            path(of_cookie(CookieMessage { path: "/;a".into(), ..named("s") })),
            format!("{cookie}.path")
        );
        let ttl = Some(protobuf::Duration { seconds: -1, nanos: 0 });
        assert_eq!(path(of_cookie(CookieMessage { ttl, ..named("s") })), format!("{cookie}.ttl"));
        for (name, value, at) in
            [("a b", "", "name"), ("", "", "name"), ("a", "b\nc", "value"), ("a", "b; c", "value")]
        {
            let attributes = vec![CookieAttribute { name: name.into(), value: value.into() }];
            let session = of_cookie(CookieMessage { attributes, ..named("s") });
            assert_eq!(path(session), format!("{cookie}.attributes[0].{at}"));
        }
        assert_eq!(
            path(of_listener(&pack(&by(pack(&StatefulSession::default()))))),
            "session_state.typed_config"
        );
        let header = HeaderBasedSessionState { name: "a b".into() };
        assert_eq!(path(of_listener(&pack(&by(pack(&header))))), "session_state.typed_config.name");
    }

    #[test]
    fn a_route_has_its_own_or_none() {
        let of = |r#override| of_route(&pack(&StatefulSessionPerRoute { r#override }));
        let header = by(pack(&HeaderBasedSessionState { name: "X-Session".into() }));
        let own = StatefulSession { strict: true, ..header };
        let own = of(Some(stateful_session_per_route::Override::StatefulSession(own))).unwrap();
        assert!(own.strict && matches!(&own.state, State::Header(name) if name == "x-session"));
        let off = of(Some(stateful_session_per_route::Override::Disabled(true))).unwrap();
        assert!(matches!(off.state, State::None));
        assert_eq!(of(None).unwrap_err().path, "override");
        assert!(matches!(of_listener(&pack(&StatefulSession::default())).unwrap().state, State::None));
    }
}
