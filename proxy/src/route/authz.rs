//! Whom an ext_authz filter asks whether a request may go on, what it tells them, and what of their answer counts. Only
//! that: who asks is in `http`.

use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_LENGTH, EXPECT, HOST, LOCATION, SERVER, WWW_AUTHENTICATE};
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::HeaderMutation;
use super::filters::ByFilter;
use super::matching::ValueMatcher;
use crate::upstream::cluster::Cluster;

/// An ext_authz filter of a listener.
#[derive(Debug)]
pub struct Filter {
    /// Its name in the listener.
    pub name: Box<str>,
    /// It only works for routes that say something of it.
    pub disabled: bool,
    /// Whom it asks, where the route says nobody else.
    pub service: Arc<Service>,
    /// Which headers are told, beside `Authorization`.
    pub allowed: Box<[ValueMatcher]>,
    /// Which are not, whatever else is said.
    pub disallowed: Box<[ValueMatcher]>,
    /// Several values of a header are told as they came, and not as one.
    pub raw_headers: bool,
    /// Requests go on where nobody answers.
    pub failure_allows: bool,
    /// And the endpoint is told.
    pub failure_is_told: bool,
    /// The answer where nobody answers.
    pub failure_status: StatusCode,
    /// So much of a refusal's body goes to the client.
    pub most_body_bytes: usize,
}

/// Who is asked.
#[derive(Debug)]
pub struct Service {
    /// Where it is.
    pub cluster: Arc<Cluster>,
    /// For the whole of its answer.
    pub timeout: Duration,
    /// What it is asked for.
    pub path: CheckPath,
    /// Headers that it is told whatever the client says.
    pub headers: Box<[HeaderMutation]>,
    /// Of its answer, headers that the endpoint gets in place of the client's.
    pub upstream: Box<[ValueMatcher]>,
    /// And beside the client's.
    pub upstream_too: Box<[ValueMatcher]>,
    /// Headers that the client gets with a refusal. Empty: all of them.
    pub client: Box<[ValueMatcher]>,
    /// And with any answer to a request that went on.
    pub client_on_success: Box<[ValueMatcher]>,
    /// It is asked, and its answer taken, as nginx does it, where our control plane says so.
    pub nginx: Option<Box<Nginx>>,
}

/// A check as that of nginx's `auth_request`, with what ingress-nginx adds to it.
#[derive(Debug)]
pub struct Nginx {
    /// By which it is asked, whatever the request's is.
    pub method: Method,
    /// Its own, whatever the request's is.
    pub host: HeaderValue,
    /// Where a client goes in place of a 401, with variables.
    pub sign_in: Option<Box<str>>,
}

/// The path of a check.
#[derive(Debug)]
pub enum CheckPath {
    /// The request's, with this before it; may be empty.
    Prefix(Box<str>),
    /// This, and no other.
    Only(PathAndQuery),
}

/// What a route, and what is around it, says of a filter.
#[derive(Debug, Clone, Default)]
pub struct OfRoute {
    /// Nobody is asked.
    pub off: bool,
    /// Who is asked in place of whom the filter asks.
    pub service: Option<Arc<Service>>,
}

impl Filter {
    /// Who is asked about a request of such a route.
    pub fn service<'a>(&'a self, of_route: &'a ByFilter<OfRoute>) -> Option<&'a Arc<Service>> {
        match of_route.of(&self.name) {
            Some(said) if said.off => None,
            Some(said) => Some(said.service.as_ref().unwrap_or(&self.service)),
            None => (!self.disabled).then_some(&self.service),
        }
    }

    /// Whether a header of the request is told. What frames it is not: a check has no body.
    pub(crate) fn tells(&self, name: &HeaderName) -> bool {
        ![HOST, CONTENT_LENGTH, EXPECT].contains(name)
            && (*name == AUTHORIZATION || is_one(&self.allowed, name))
            && !is_one(&self.disallowed, name)
    }
}

impl Service {
    /// What is asked for, about a request for `uri`. `None`: it is nothing that can be.
    pub(crate) fn target(&self, uri: &Uri) -> Option<Uri> {
        let prefix = match &self.path {
            CheckPath::Only(path) => return Some(path.clone().into()),
            CheckPath::Prefix(prefix) => prefix,
        };
        let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        PathAndQuery::try_from(format!("{prefix}{path}")).ok().map(Uri::from)
    }

    /// Whether an answer of this status lets the request go on. To Envoy it is this one alone: more would let in whom
    /// others keep out.
    pub(crate) fn lets(&self, status: StatusCode) -> bool {
        if self.nginx.is_some() { status.is_success() } else { status == StatusCode::OK }
    }

    /// Whether an answer of this status says that it does not. Any other says nothing: who is asked is broken.
    pub(crate) fn refuses(&self, status: StatusCode) -> bool {
        match self.nginx {
            Some(_) => [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status),
            None => (200..500).contains(&status.as_u16()),
        }
    }

    /// Whether the client gets this header of a refusal.
    pub(crate) fn refuses_with(&self, name: &HeaderName) -> bool {
        let all = self.client.is_empty();
        is_passed_on(name)
            && (all || [WWW_AUTHENTICATE, LOCATION].contains(name) || is_one(&self.client, name))
    }
}

impl Nginx {
    /// Where the client of this request signs in.
    pub(crate) fn sign_in(&self, scheme: &str, host: &str, uri: &Uri) -> Option<HeaderValue> {
        let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let url = fill(self.sign_in.as_ref()?, |name| {
            let value = match name {
                "scheme" => scheme.to_owned(),
                "http_host" => host.to_owned(),
                "host" => match host.rsplit_once(':') {
                    Some((name, port)) if !port.contains(']') => name.to_owned(),
                    _ => host.to_owned(),
                },
                "request_uri" => path.to_owned(),
                "escaped_request_uri" => utf8_percent_encode(path, RESERVED).to_string(),
                _ => return None,
            };
            Some(value)
        });
        HeaderValue::try_from(url?).ok()
    }

    /// Whether all of its variables are known.
    pub(crate) fn is_good(&self) -> bool {
        self.sign_in.is_none() || self.sign_in("", "", &Uri::from_static("/")).is_some()
    }
}

/// `text` with the values of its variables, as `$name`.
fn fill(text: &str, value: impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut pieces = text.split('$');
    let mut filled = pieces.next()?.to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(piece.len());
        let (name, rest) = piece.split_at(end);
        filled.push_str(&value(name)?);
        filled.push_str(rest);
    }
    Some(filled)
}

/// What is escaped in a value of a query: all but what is unreserved (RFC 3986, 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Whether a header of the answer can go anywhere: not what frames or addresses a message, or says who answers.
pub(crate) fn is_passed_on(name: &HeaderName) -> bool {
    ![HOST, CONTENT_LENGTH, EXPECT, SERVER].contains(name)
}

/// Whether one of them takes the name.
pub(crate) fn is_one(matchers: &[ValueMatcher], name: &HeaderName) -> bool {
    matchers.iter().any(|matcher| matcher.matches(name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(name: &str) -> Box<[ValueMatcher]> {
        [ValueMatcher::Exact(name.into())].into()
    }

    fn service(cluster: &str, path: CheckPath) -> Arc<Service> {
        Arc::new(Service {
            cluster: Arc::new(Cluster::named(cluster.into())),
            timeout: Duration::from_secs(1),
            path,
            headers: Box::default(),
            upstream: Box::default(),
            upstream_too: Box::default(),
            client: exact("x-why"),
            client_on_success: Box::default(),
            nginx: None,
        })
    }

    fn filter(disabled: bool) -> Filter {
        Filter {
            name: "f".into(),
            disabled,
            service: service("own", CheckPath::Prefix("".into())),
            allowed: [ValueMatcher::Prefix("x-".into()), ValueMatcher::Prefix("content-".into())].into(),
            disallowed: exact("x-secret"),
            raw_headers: false,
            failure_allows: false,
            failure_is_told: false,
            failure_status: StatusCode::FORBIDDEN,
            most_body_bytes: 100,
        }
    }

    #[test]
    fn a_route_says_who_is_asked() {
        let other = || Some(service("other", CheckPath::Prefix("".into())));
        for (disabled, said, expected) in [
            (false, None, Some("own")),
            (true, None, None),
            (true, Some(OfRoute::default()), Some("own")),
            (false, Some(OfRoute { off: true, service: other() }), None),
            (true, Some(OfRoute { off: false, service: other() }), Some("other")),
        ] {
            let of_route = said.into_iter().map(|said| ("f".into(), said)).collect();
            let filter = filter(disabled);
            let asked = filter.service(&of_route).map(|service| &*service.cluster.name);
            assert_eq!(asked, expected, "{of_route:?}");
        }
        let elsewhere: ByFilter<OfRoute> = [("g".into(), OfRoute::default())].into_iter().collect();
        assert!(filter(true).service(&elsewhere).is_none());
    }

    #[test]
    fn what_frames_a_request_is_not_told() {
        let filter = filter(false);
        for (name, expected) in [
            ("authorization", true),
            ("x-user", true),
            ("x-secret", false),
            ("cookie", false),
            ("content-type", true),
            ("content-length", false),
        ] {
            assert_eq!(filter.tells(&HeaderName::from_static(name)), expected, "{name}");
        }
    }

    #[test]
    fn a_refusal_says_where_to_go_whatever_the_list_says() {
        let service = service("s", CheckPath::Prefix("".into()));
        for (name, expected) in
            [("x-why", true), ("location", true), ("x-other", false), ("content-length", false)]
        {
            assert_eq!(service.refuses_with(&HeaderName::from_static(name)), expected, "{name}");
        }
    }

    #[test]
    fn a_client_signs_in_where_it_comes_back_from() {
        let uri = Uri::from_static("/a/b?c=d&e=%20~");
        for (sign_in, expected) in [
            ("https://a.test/start", Some("https://a.test/start")),
            (
                "https://$host/start?rd=$scheme://$http_host$escaped_request_uri",
                Some("https://shop.test/start?rd=https://shop.test:8443%2Fa%2Fb%3Fc%3Dd%26e%3D%2520~"),
            ),
            ("/start?$request_uri&", Some("/start?/a/b?c=d&e=%20~&")),
            ("/$hosts", None),
            ("/$", None),
            ("/\n", None),
        ] {
            let host = HeaderValue::from_static("auth");
            let nginx = Nginx { method: Method::GET, host, sign_in: Some(sign_in.into()) };
            let place = nginx.sign_in("https", "shop.test:8443", &uri);
            assert_eq!(place.as_ref().map(|place| place.to_str().unwrap()), expected, "{sign_in}");
            assert_eq!(nginx.is_good(), expected.is_some(), "{sign_in}");
        }
    }

    #[test]
    fn the_path_is_the_request_s_or_one_of_its_own() {
        let uri = Uri::from_static("/a?b=c");
        let target = |path| service("s", path).target(&uri).map(|uri| uri.to_string());
        assert_eq!(target(CheckPath::Prefix("".into())).as_deref(), Some("/a?b=c"));
        assert_eq!(target(CheckPath::Prefix("/check".into())).as_deref(), Some("/check/a?b=c"));
        let only = CheckPath::Only(PathAndQuery::from_static("/check?d"));
        assert_eq!(target(only).as_deref(), Some("/check?d"));
    }
}
