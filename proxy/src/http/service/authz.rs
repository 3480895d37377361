//! Asks others whether a request may go on, and sends it on or gives their refusal. An answer is waited for no longer
//! than its service's timeout, and of its body no more is held than the filter says; the request's own body waits unread.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, LOCATION, SET_COOKIE, WWW_AUTHENTICATE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, request, response};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::forward;
use super::plan::{self, Plan, Ready};
use crate::error::Error;
use crate::http::body::{RequestBody, ResponseBody};
use crate::http::exchange::Exchange;
use crate::http::headers::{self, Hop};
use crate::http::{mirror, respond};
use crate::route::authz::{Filter, Nginx, OfRoute, Service, is_one, is_passed_on};
use crate::route::filters::ByFilter;
use crate::upstream::cluster::ClusterSettings;
use crate::worker::local::Worker;

/// Where the first try reached nobody, or was over a connection that had been closed meanwhile.
const TRIES: usize = 2;
/// Of a refusal, to a client of gRPC: there it goes into a header.
const MOST_MESSAGE_BYTES: usize = 1024;
/// By this who is asked names headers that the endpoint is not to get, as with Envoy.
const TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";
/// Tells the endpoint that nobody was there to be asked, as Envoy does.
const FAILURE_ALLOWED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");

/// Whether anybody is asked about a request of such a route.
pub(super) fn is_asked(filters: &[Filter], of_route: &ByFilter<OfRoute>) -> bool {
    filters.iter().any(|filter| filter.service(of_route).is_some())
}

/// Asks all who are to be, and answers the request by what they say.
pub(super) async fn answer(exchange: &Rc<Exchange>, mut ready: Box<Ready>) -> Response<ResponseBody> {
    let mut shown = HeaderMap::new();
    let refused = ask(exchange, &mut ready, &mut shown).await;
    exchange.asked_ms.set(exchange.start.elapsed().as_millis() as u32);
    let planned = match refused {
        Some(response) => Ok(Plan::Answer(response)),
        None => plan::act(exchange, *ready),
    };
    let mut response = match planned {
        Ok(Plan::Forward(request, plan)) => {
            let answered = forward::forward(exchange, request, plan).await;
            answered.unwrap_or_else(|error| respond::error(exchange, error))
        }
        Ok(Plan::Answer(response)) => response,
        // Nobody is asked twice.
        Ok(Plan::Ask(_)) => respond::error(exchange, Error::AuthzFailed),
        Err(error) => respond::error(exchange, error),
    };
    for (name, value) in &shown {
        response.headers_mut().append(name, value.clone());
    }
    response
}

/// The refusal, if there is one. What is for the endpoint goes into the request, and what is for the client to `shown`.
async fn ask(
    exchange: &Rc<Exchange>,
    ready: &mut Ready,
    shown: &mut HeaderMap,
) -> Option<Response<ResponseBody>> {
    let settings = Rc::clone(&exchange.settings);
    let route = Arc::clone(&ready.route);
    for filter in &settings.http.authz {
        let Some(service) = filter.service(&route.authz) else { continue };
        let mut response = match check(exchange, filter, service, ready).await {
            Some((answer, _)) if service.lets(answer.status) => {
                let_on(service, answer.headers, &mut ready.parts.headers, shown);
                continue;
            }
            Some((answer, body)) => {
                let (answer, body) = match &service.nginx {
                    Some(nginx) => nginx_refusal(nginx, answer, ready),
                    None => (answer, body),
                };
                refuse(exchange, service, answer, body)
            }
            None if filter.failure_allows && service.nginx.is_none() => {
                if filter.failure_is_told {
                    ready.parts.headers.insert(FAILURE_ALLOWED, HeaderValue::from_static("true"));
                }
                continue;
            }
            None => {
                let words = Bytes::from_static(Error::AuthzFailed.body().as_bytes());
                respond::as_said(exchange, Error::AuthzFailed, filter.failure_status, words)
            }
        };
        plan::answer_origin(&settings.http, &route, ready.origin.as_ref(), &mut response);
        return Some(response);
    }
    None
}

/// `None`: there is no answer, or none that can be used.
async fn check(
    exchange: &Exchange,
    filter: &Filter,
    service: &Service,
    ready: &Ready,
) -> Option<(response::Parts, Bytes)> {
    let cluster = &service.cluster;
    let settings = cluster.settings.load_full()?;
    let head = head(filter, service, ready, &settings)?;
    let answered = answered(exchange.worker(), (service, &settings), head, filter.most_body_bytes);
    let answer = tokio::time::timeout(service.timeout, answered).await.ok().flatten();
    if answer.is_none() {
        tracing::debug!(cluster = %cluster.name, "nobody answers who is asked by ext_authz");
    }
    answer
}

/// The request's method, host and path, and what else is told of it.
fn head(
    filter: &Filter,
    service: &Service,
    ready: &Ready,
    settings: &ClusterSettings,
) -> Option<request::Parts> {
    let about = &ready.parts;
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.uri = service.target(&about.uri)?;
    if let Some(nginx) = &service.nginx {
        parts.method = nginx.method.clone();
        parts.headers = about.headers.clone();
        tell_as_nginx(&mut parts.headers, ready)?;
        plan::address(&mut parts, &nginx.host, settings, &Hop::default(), true).ok()?;
        return Some(parts);
    }
    // It would open a tunnel to who is asked.
    if about.method == Method::CONNECT {
        return None;
    }
    parts.method = about.method.clone();
    for name in about.headers.keys().filter(|name| filter.tells(name)) {
        if filter.raw_headers {
            for value in about.headers.get_all(name) {
                parts.headers.append(name.clone(), value.clone());
            }
        } else {
            parts.headers.insert(name.clone(), joined(&about.headers, name)?);
        }
    }
    headers::mutate(&mut parts.headers, &service.headers);
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    plan::address(&mut parts, &ready.host, settings, &Hop::default(), true).ok()?;
    Some(parts)
}

/// What ingress-nginx tells, whatever the client says of it.
fn tell_as_nginx(headers: &mut HeaderMap, ready: &Ready) -> Option<()> {
    headers.remove(CONTENT_LENGTH);
    headers.remove(EXPECT);
    let (scheme, host) = (plan::scheme(&ready.parts.headers), ready.host.to_str().ok()?);
    let path = ready.parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let mut tell = |name, value: &str| {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).ok()?);
        Some(())
    };
    let client = ready.client.to_string();
    tell("x-original-url", &format!("{scheme}://{host}{path}"))?;
    tell("x-original-method", ready.parts.method.as_str())?;
    tell("x-original-uri", path)?;
    tell("x-auth-request-redirect", path)?;
    tell("x-real-ip", &client)?;
    tell("x-forwarded-for", &client)?;
    tell("x-sent-from", "nginx-ingress-controller")
}

/// All values of a header as one.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let separator: &[u8] = if *name == COOKIE { b"; " } else { b"," };
    let values: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&values.join(separator)).ok()
}

/// An answer that came whole, or as much of its body as is held. Errors of who is asked are no answer.
async fn answered(
    worker: &Worker,
    (service, settings): (&Service, &ClusterSettings),
    head: request::Parts,
    most_bytes: usize,
) -> Option<(response::Parts, Bytes)> {
    let mut tried = Vec::new();
    let (response, mut lease) = loop {
        let request = Request::from_parts(head.clone(), RequestBody::empty());
        match mirror::sent(worker, (&service.cluster, settings), &mut tried, request).await {
            Ok(sent) => break sent,
            Err(true) if tried.len() < TRIES => {}
            Err(_) => return None,
        }
    };
    let (mut parts, ()) = response.into_parts();
    if !service.lets(parts.status) && !service.refuses(parts.status) {
        return None;
    }
    headers::trim_values(&mut parts.headers);
    headers::remove_response_hop(&mut parts.headers).ok()?;
    let mut held: Vec<u8> = Vec::new();
    while let Some(frame) = lease.frame().await {
        let Ok(data) = frame.ok()?.into_data() else { continue };
        let room = most_bytes.saturating_sub(held.len());
        held.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            // Its connection is not used again: the rest may be long.
            return Some((parts, held.into()));
        }
    }
    lease.give_back(Instant::now());
    Some((parts, held.into()))
}

/// Takes from the answer what goes with the request, and with what comes of it.
fn let_on(service: &Service, mut answer: HeaderMap, request: &mut HeaderMap, shown: &mut HeaderMap) {
    let unwanted: Vec<HeaderName> = answer
        .get_all(TO_REMOVE)
        .iter()
        .flat_map(headers::tokens)
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect();
    answer.remove(TO_REMOVE);
    let (mut set, mut added) = (&*service.upstream, &*service.upstream_too);
    if service.nginx.is_some() {
        // An answer without one of them says that there is none, whatever the client says.
        let theirs = request.keys().filter(|name| is_one(set, name));
        for name in theirs.cloned().collect::<Vec<_>>() {
            request.remove(name);
        }
        (set, added) = (&[], set);
    }
    for name in answer.keys().filter(|name| is_passed_on(name)) {
        let values = || answer.get_all(name).iter();
        if is_one(set, name)
            && let Some(last) = values().next_back()
        {
            request.insert(name.clone(), last.clone());
        }
        for (wanted, into) in [(added, &mut *request), (&service.client_on_success, &mut *shown)] {
            for value in values().filter(|_| is_one(wanted, name)) {
                into.append(name.clone(), value.clone());
            }
        }
    }
    for name in unwanted.iter().filter(|name| is_passed_on(name)) {
        request.remove(name);
    }
}

/// What of a refusal nginx gives, in our words; or where to sign in.
fn nginx_refusal(nginx: &Nginx, mut answer: response::Parts, ready: &Ready) -> (response::Parts, Bytes) {
    let mut given = HeaderMap::new();
    for name in [WWW_AUTHENTICATE, SET_COOKIE] {
        for value in answer.headers.get_all(&name) {
            given.append(name.clone(), value.clone());
        }
    }
    answer.headers = given;
    let (scheme, host) = (plan::scheme(&ready.parts.headers), ready.host.to_str().unwrap_or_default());
    if answer.status == StatusCode::UNAUTHORIZED
        && let Some(place) = nginx.sign_in(scheme, host, &ready.parts.uri)
    {
        answer.status = StatusCode::FOUND;
        answer.headers.insert(LOCATION, place);
    }
    (answer, Bytes::from_static(Error::AuthzDenied.body().as_bytes()))
}

/// The refusal, in the words of who was asked.
fn refuse(
    exchange: &Rc<Exchange>,
    service: &Service,
    mut answer: response::Parts,
    mut body: Bytes,
) -> Response<ResponseBody> {
    answer.headers.remove(TO_REMOVE);
    let is_call = exchange.grpc.get();
    if is_call {
        body.truncate(MOST_MESSAGE_BYTES);
    }
    let has_type = !is_call && !body.is_empty();
    // A call that is refused has not succeeded, whatever the status says.
    let status = match is_call && answer.status.is_success() {
        true => StatusCode::INTERNAL_SERVER_ERROR,
        false => answer.status,
    };
    let mut response = respond::as_said(exchange, Error::AuthzDenied, status, body);
    let headers = response.headers_mut();
    for name in answer.headers.keys() {
        if !service.refuses_with(name) || *name == CONTENT_TYPE && !has_type {
            continue;
        }
        headers.remove(name);
        for value in answer.headers.get_all(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::route::authz::CheckPath;
    use crate::route::matching::ValueMatcher;
    use crate::upstream::cluster::Cluster;

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn of_an_answer_what_is_listed_goes_on_and_nothing_that_frames_a_request() {
        let prefix = |text: &str| -> Box<[ValueMatcher]> { [ValueMatcher::Prefix(text.into())].into() };
        let service = Service {
            cluster: Arc::new(Cluster::named("auth".into())),
            timeout: Duration::from_secs(1),
            path: CheckPath::Prefix("".into()),
            headers: Box::default(),
            upstream: [ValueMatcher::Prefix("x-set".into()), ValueMatcher::Prefix("content-".into())].into(),
            upstream_too: prefix("x-add"),
            client: Box::default(),
            client_on_success: prefix("set-cookie"),
            nginx: None,
        };
        let answer = map(&[
            ("x-set", "1"),
            ("x-set", "2"),
            ("x-add", "3"),
            ("x-add", "4"),
            ("content-length", "9"),
            ("content-language", "en"),
            ("set-cookie", "a=b"),
            ("set-cookie", "c=d"),
            (TO_REMOVE, "x-secret, host"),
            (TO_REMOVE, "X-Other, ,"),
        ]);
        let mut request = map(&[
            ("host", "shop"),
            ("content-length", "3"),
            ("x-set", "0"),
            ("x-add", "0"),
            ("x-secret", "s"),
            ("x-other", "o"),
        ]);
        let mut shown = HeaderMap::new();
        let_on(&service, answer, &mut request, &mut shown);
        let expected = map(&[
            ("host", "shop"),
            ("content-length", "3"),
            ("x-set", "2"),
            ("x-add", "0"),
            ("x-add", "3"),
            ("x-add", "4"),
            ("content-language", "en"),
        ]);
        assert_eq!(request, expected);
        assert_eq!(shown, map(&[("set-cookie", "a=b"), ("set-cookie", "c=d")]));
    }

    #[test]
    fn values_of_a_header_are_told_as_one() {
        let headers = map(&[("x-a", "1"), ("x-a", "2"), ("cookie", "a=1"), ("cookie", "b=2"), ("x-b", "3")]);
        for (name, expected) in [("x-a", "1,2"), ("cookie", "a=1; b=2"), ("x-b", "3")] {
            assert_eq!(joined(&headers, &HeaderName::from_static(name)).unwrap(), expected);
        }
    }
}
