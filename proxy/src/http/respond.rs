//! Answers of our own: errors, redirects, direct responses. An error's body and its `x-pontoon-reason` header
//! name the same reason as the access log and the metrics.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER, SERVER};
use http::{HeaderName, HeaderValue, Response, StatusCode, Uri};

use super::body::ResponseBody;
use super::exchange::Exchange;
use super::{grpc, grpc_web};
use crate::error::Error;
use crate::route::{Redirect, RedirectPath};

const REASON: HeaderName = HeaderName::from_static("x-pontoon-reason");

/// The answer to a request that an error has ended.
pub(crate) fn error(exchange: &Rc<Exchange>, error: Error) -> Response<ResponseBody> {
    let error = exchange.fail(error);
    let body = Bytes::from_static(error.body().as_bytes());
    let mut response = as_said(exchange, error, error.status(), body);
    let headers = response.headers_mut();
    if error == Error::StreamTooLong && exchange.grpc.get() {
        headers.insert(grpc::GRPC_STATUS, grpc::DEADLINE_EXCEEDED.into());
    }
    if matches!(error, Error::Overload | Error::OverloadQueue) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// The answer to a request that an error has ended, where others say how it is answered.
pub(crate) fn as_said(
    exchange: &Rc<Exchange>,
    error: Error,
    status: StatusCode,
    body: Bytes,
) -> Response<ResponseBody> {
    let error = exchange.fail(error);
    let mut response = direct(exchange, status, body);
    response.headers_mut().insert(REASON, HeaderValue::from_static(error.reason()));
    response
}

/// A status and a body; for a gRPC client, what these are in gRPC.
pub(crate) fn direct(exchange: &Rc<Exchange>, status: StatusCode, body: Bytes) -> Response<ResponseBody> {
    if exchange.grpc.get() {
        let mut response = Response::new(ResponseBody::local(exchange, Bytes::new()));
        let headers = response.headers_mut();
        headers.insert(SERVER, exchange.settings.server.clone());
        headers.insert(CONTENT_TYPE, grpc::GRPC);
        if let Some(web) = exchange.web.get() {
            // There is no body, so nothing that it would encode.
            let _ = grpc_web::translate_response(web, headers);
        }
        headers.insert(grpc::GRPC_STATUS, grpc::code(status).into());
        headers.insert(grpc::GRPC_MESSAGE, grpc::message(&body));
        return response;
    }
    let has_body = !body.is_empty();
    let mut response = Response::new(ResponseBody::local(exchange, body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(SERVER, exchange.settings.server.clone());
    if has_body {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

/// Where a direct response that has to name a place says none: the request's own, as Envoy. A `201` has created what
/// was asked for.
pub(crate) fn place(response: &mut Response<ResponseBody>, scheme: &str, host: &str, uri: &Uri) {
    let status = response.status();
    if (status == StatusCode::CREATED || status.is_redirection())
        && !response.headers().contains_key(LOCATION)
        && let Ok(here) = HeaderValue::try_from(location(&Redirect::to_itself(status), scheme, host, uri, 0))
    {
        response.headers_mut().insert(LOCATION, here);
    }
}

/// A redirect of a request for `uri` at `host`, whose first `matched` bytes of the path the route matched.
pub(crate) fn redirect(
    exchange: &Rc<Exchange>,
    redirect: &Redirect,
    scheme: &str,
    host: &str,
    uri: &Uri,
    matched: usize,
) -> Response<ResponseBody> {
    let location = location(redirect, scheme, host, uri, matched);
    let Ok(location) = HeaderValue::try_from(location) else {
        return error(exchange, Error::BadHost);
    };
    let mut response = direct(exchange, redirect.status, Bytes::new());
    response.headers_mut().insert(LOCATION, location);
    response
}

fn location(redirect: &Redirect, scheme: &str, host: &str, uri: &Uri, matched: usize) -> String {
    let new_scheme = redirect.scheme.as_deref().unwrap_or(scheme);
    let (name, old_port) = split_port(host);
    let name = redirect.host.as_deref().unwrap_or(name);
    // As Envoy: the port goes with a change of scheme or host, unless the route names one.
    let port = match redirect.port {
        Some(port) => Some(port),
        None if redirect.scheme.is_some() || redirect.host.is_some() => None,
        None => old_port,
    };
    let default = if new_scheme == "https" { 443 } else { 80 };
    let mut out = format!("{new_scheme}://{name}");
    if let Some(port) = port.filter(|port| *port != default) {
        out.push(':');
        out.push_str(itoa::Buffer::new().format(port));
    }
    match &redirect.path {
        Some(RedirectPath::Full(path)) => out.push_str(path),
        Some(RedirectPath::Prefix(prefix)) => {
            out.push_str(&replace_prefix(uri.path(), matched, prefix));
        }
        None => out.push_str(uri.path()),
    }
    // As Envoy: a query of the new path's own stands in for the request's.
    let has_own = matches!(&redirect.path, Some(RedirectPath::Full(path)) if path.contains('?'));
    if let (false, false, Some(query)) = (redirect.strip_query, has_own, uri.query()) {
        out.push('?');
        out.push_str(query);
    }
    out
}

/// `path` with its first `matched` bytes replaced, without doubling or losing the slash between.
pub(crate) fn replace_prefix(path: &str, matched: usize, prefix: &str) -> String {
    let rest = path.get(matched..).unwrap_or_default();
    let mut out = String::with_capacity(prefix.len() + rest.len() + 1);
    out.push_str(prefix);
    if out.ends_with('/') && rest.starts_with('/') {
        out.pop();
    }
    out.push_str(rest);
    if !out.starts_with('/') {
        out.insert(0, '/');
    }
    out
}

/// `host[:port]`, minding the brackets of an IPv6 literal.
fn split_port(host: &str) -> (&str, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port.parse().ok()),
        _ => (host, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(change: impl FnOnce(&mut Redirect)) -> String {
        let mut redirect = Redirect::to_itself(StatusCode::MOVED_PERMANENTLY);
        change(&mut redirect);
        location(&redirect, "http", "shop:8080", &Uri::from_static("/a/b?c=d"), 2)
    }

    #[test]
    fn redirects_change_what_they_name() {
        assert_eq!(to(|_| {}), "http://shop:8080/a/b?c=d");
        assert_eq!(to(|r| r.scheme = Some("https".into())), "https://shop/a/b?c=d");
        assert_eq!(to(|r| r.host = Some("new".into())), "http://new/a/b?c=d");
        assert_eq!(to(|r| r.port = Some(80)), "http://shop/a/b?c=d");
        assert_eq!(to(|r| r.path = Some(RedirectPath::Full("/x".into()))), "http://shop:8080/x?c=d");
        assert_eq!(to(|r| r.path = Some(RedirectPath::Full("/x?own".into()))), "http://shop:8080/x?own");
        assert_eq!(to(|r| r.path = Some(RedirectPath::Prefix("/x".into()))), "http://shop:8080/x/b?c=d");
        assert_eq!(to(|r| r.strip_query = true), "http://shop:8080/a/b");
    }

    #[test]
    fn a_prefix_is_replaced_without_doubling_slashes() {
        for (path, matched, prefix, expected) in [
            ("/api/x", 4, "/", "/x"),
            ("/api/x", 5, "/", "/x"),
            ("/api", 4, "/", "/"),
            ("/api", 4, "", "/"),
            ("/api/x", 4, "/v2/", "/v2/x"),
            ("/apix", 4, "/v2", "/v2x"),
        ] {
            assert_eq!(replace_prefix(path, matched, prefix), expected);
        }
    }
}
