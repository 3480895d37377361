//! Sessions: which endpoint a request asks to go to again, and what its answer says of the one that it went to. Envoy's
//! stateful session filter, cookies and all: what one of the two proxies has set the other can read. Whether the endpoint
//! is to be had is the balancer's to say.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;

use super::filters::ByFilter;
use super::hash::cookie_value;

/// In 2001. What is before it is no time of day: until 2026 Envoy wrote an expiry by the clock of its machine, which begins
/// when that starts (its issue 44111).
const LONG_AGO: u64 = 1_000_000_000;

/// A `StatefulSession`.
#[derive(Debug)]
pub struct Session {
    /// What says which endpoint it is.
    pub state: State,
    /// Where that endpoint is not to be had there is no other.
    pub strict: bool,
}

/// What says which endpoint a session is with.
#[derive(Debug)]
pub enum State {
    /// Nothing: there are no sessions.
    None,
    /// A cookie.
    Cookie(Cookie),
    /// A header of requests and answers.
    Header(HeaderName),
}

/// A cookie that is set here.
#[derive(Debug)]
pub struct Cookie {
    /// Its name.
    pub name: Box<str>,
    /// How long it is good for; zero: until the browser forgets it.
    pub ttl: Duration,
    /// Which requests it is for.
    pub path: Box<str>,
    /// What is written behind its value.
    pub attributes: Box<str>,
}

/// A stateful session filter of a listener.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Its name in the listener.
    pub name: Box<str>,
    /// What it does where a route says nothing else.
    pub session: Arc<Session>,
    /// It only works for routes that say something of it.
    pub disabled: bool,
}

/// The sessions of a route's requests, by the first of these filters that keeps any there. A route says how, or only that
/// the filter is on.
pub fn of<'s>(
    filters: &'s [Filter],
    of_route: &'s ByFilter<Option<Arc<Session>>>,
) -> Option<&'s Arc<Session>> {
    let sessions = filters.iter().filter_map(|filter| match of_route.of(&filter.name) {
        Some(said) => Some(said.as_ref().unwrap_or(&filter.session)),
        None => (!filter.disabled).then_some(&filter.session),
    });
    sessions.into_iter().find(|session| !matches!(session.state, State::None))
}

/// A request's session.
#[derive(Debug)]
pub struct Asked {
    /// The endpoint that it is with, where the request names one.
    pub endpoint: Option<SocketAddr>,
    /// What it is one of.
    pub session: Arc<Session>,
}

impl Asked {
    /// Reads it from a request. `None`: such a request has none.
    pub fn of(session: &Arc<Session>, path: &str, headers: &HeaderMap) -> Option<Self> {
        let endpoint = match &session.state {
            State::None => return None,
            State::Cookie(cookie) if !is_for(&cookie.path, path) => return None,
            State::Cookie(cookie) => cookie_value(headers, &cookie.name).and_then(|value| {
                let value = STANDARD.decode(value).ok()?;
                // Earlier Envoys had nothing but the address.
                address(&value).or_else(|| Value::decode(&*value).ok()?.endpoint(now()))
            }),
            State::Header(name) => headers.get(name).and_then(|value| address(&STANDARD.decode(value).ok()?)),
        };
        Some(Self { endpoint, session: Arc::clone(session) })
    }

    /// Says in the answer which endpoint it came from, where the client does not know.
    pub fn answer(&self, endpoint: SocketAddr, headers: &mut HeaderMap) {
        if self.endpoint == Some(endpoint) {
            return;
        }
        let address = endpoint.to_string();
        match &self.session.state {
            State::None => {}
            State::Cookie(cookie) => {
                let expires = if cookie.ttl.is_zero() { 0 } else { now() + cookie.ttl.as_secs() };
                let value = STANDARD.encode(Value { address, expires }.encode_to_vec());
                let cookie = format!("{}=\"{value}\"{}", cookie.name, cookie.attributes);
                if let Ok(cookie) = HeaderValue::try_from(cookie) {
                    headers.append(SET_COOKIE, cookie);
                }
            }
            State::Header(name) => {
                if let Ok(value) = HeaderValue::try_from(STANDARD.encode(address)) {
                    headers.insert(name, value);
                }
            }
        }
    }
}

/// What is in a cookie, as Envoy has it.
#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, tag = "1")]
    address: String,
    /// In seconds since 1970; 0 is never.
    #[prost(uint64, tag = "2")]
    expires: u64,
}

impl Value {
    fn endpoint(&self, now: u64) -> Option<SocketAddr> {
        let is_over = (LONG_AGO..now).contains(&self.expires);
        if is_over { None } else { self.address.parse().ok() }
    }
}

fn address(value: &[u8]) -> Option<SocketAddr> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
}

/// Whether a browser sends a cookie of this path with a request for that one (RFC 6265, 5.1.4).
fn is_for(cookie: &str, path: &str) -> bool {
    path.strip_prefix(cookie).is_some_and(|rest| {
        rest.is_empty() || cookie.is_empty() || cookie.ends_with('/') || rest.starts_with('/')
    })
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;

    use super::*;

    const ENDPOINT: &str = "10.0.0.1:8080";

    fn session(path: &str, ttl: u64, attributes: &str) -> Arc<Session> {
        let cookie = Cookie {
            name: "s".into(),
            ttl: Duration::from_secs(ttl),
            path: path.into(),
            attributes: attributes.into(),
        };
        Arc::new(Session { state: State::Cookie(cookie), strict: false })
    }

    fn asked(session: &Arc<Session>, value: &[u8]) -> Option<SocketAddr> {
        let cookie = format!("a=b; s=\"{}\"", STANDARD.encode(value));
        let headers = HeaderMap::from_iter([(COOKIE, HeaderValue::try_from(cookie).unwrap())]);
        Asked::of(session, "/", &headers).unwrap().endpoint
    }

    fn answered(asked: &Asked, endpoint: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        asked.answer(endpoint.parse().unwrap(), &mut headers);
        headers
    }

    #[test]
    fn an_answer_names_the_endpoint_and_the_next_request_goes_there() {
        let session = session("", 0, "; Path=/; HttpOnly");
        let none = Asked::of(&session, "/", &HeaderMap::new()).unwrap();
        assert_eq!(none.endpoint, None);
        let headers = answered(&none, ENDPOINT);
        // The bytes that Envoy writes: field 1, 13 bytes.
        let value = STANDARD.encode(format!("\n\r{ENDPOINT}"));
        assert_eq!(headers[SET_COOKIE], format!("s=\"{value}\"; Path=/; HttpOnly"));
        let again =
            HeaderMap::from_iter([(COOKIE, HeaderValue::try_from(format!("s=\"{value}\"")).unwrap())]);
        let again = Asked::of(&session, "/", &again).unwrap();
        assert_eq!(again.endpoint, Some(ENDPOINT.parse().unwrap()));
        assert!(answered(&again, ENDPOINT).is_empty(), "the client knows");
        assert!(answered(&again, "[fd00::1]:1").contains_key(SET_COOKIE));
    }

    #[test]
    fn what_an_envoy_has_set_is_read() {
        let session = session("/", 60, "");
        let known = Some(ENDPOINT.parse().unwrap());
        let value = |expires| Value { address: ENDPOINT.into(), expires }.encode_to_vec();
        assert_eq!(asked(&session, &value(0)), known);
        assert_eq!(asked(&session, &value(now() + 5)), known);
        assert_eq!(asked(&session, &value(now() - 5)), None, "it is over");
        assert_eq!(asked(&session, &value(5_000)), known, "by a clock of its own");
        assert_eq!(asked(&session, ENDPOINT.as_bytes()), known, "as it was at first");
        for junk in [&b""[..], b"\n\r10.0.0.1", b"shop:80", b"\xff\xff", b"\n\x04shop"] {
            assert_eq!(asked(&session, junk), None, "{junk:?}");
        }
        let headers = answered(&Asked { endpoint: None, session }, ENDPOINT);
        let value = headers[SET_COOKIE].to_str().unwrap().split('"').nth(1).unwrap().to_owned();
        let value = Value::decode(&*STANDARD.decode(value).unwrap()).unwrap();
        assert!((now() + 58..=now() + 60).contains(&value.expires));
    }

    #[test]
    fn a_cookie_is_for_its_path() {
        for (cookie, path, wanted) in [
            ("", "/x", true),
            ("/", "/x", true),
            ("/foo", "/foo", true),
            ("/foo", "/foo/bar", true),
            ("/foo", "/foobar", false),
            ("/foo/", "/foo/bar", true),
            ("/foo/", "/foo", false),
            ("/foo", "/", false),
        ] {
            assert_eq!(
                Asked::of(&session(cookie, 0, ""), path, &HeaderMap::new()).is_some(),
                wanted,
                "{cookie} {path}"
            );
        }
    }

    #[test]
    fn a_header_has_the_address_alone() {
        let name = HeaderName::from_static("x-session");
        let session = Arc::new(Session { state: State::Header(name.clone()), strict: false });
        let none = Asked::of(&session, "/", &HeaderMap::new()).unwrap();
        let headers = answered(&none, ENDPOINT);
        assert_eq!(headers[&name], STANDARD.encode(ENDPOINT));
        assert_eq!(Asked::of(&session, "/", &headers).unwrap().endpoint, Some(ENDPOINT.parse().unwrap()));
    }

    #[test]
    fn a_route_says_which_sessions_it_has() {
        let none = || Arc::new(Session { state: State::None, strict: false });
        let (one, two) = (session("", 0, ""), session("", 0, ""));
        let filter = |name: &str, session: &Arc<Session>, disabled| Filter {
            name: name.into(),
            session: Arc::clone(session),
            disabled,
        };
        let filters = [filter("off", &two, true), filter("empty", &none(), false), filter("on", &one, false)];
        let found = |said: &[(&str, Option<Arc<Session>>)]| {
            let said = said.iter().map(|(name, session)| (Box::from(*name), session.clone())).collect();
            of(&filters, &said).map(|session| Arc::ptr_eq(session, &one))
        };
        assert_eq!(found(&[]), Some(true));
        assert_eq!(found(&[("off", None)]), Some(false), "it is on here");
        assert_eq!(found(&[("on", Some(none()))]), None, "it is off here");
        assert_eq!(found(&[("empty", Some(Arc::clone(&two)))]), Some(false));
        assert_eq!(found(&[("nobody", Some(two.clone()))]), Some(true));
    }
}
