//! From a request's head to what is done with it. Nothing here waits but for a name on demand, and the order is the point: refuse what is
//! malformed, normalise, learn the client, drop the hop's headers, set our own, and only then match.

use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, COOKIE, EXPECT, HOST, InvalidHeaderValue, TE};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, Version, request};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::authz;
use crate::config::listener::{ByName, HttpSettings};
use crate::error::Error;
use crate::http::body::{Gate, RequestBody, ResponseBody};
use crate::http::exchange::Exchange;
use crate::http::headers::{self, Found, Hop};
use crate::http::upgrade::{self, Asked as Wanted, Change};
use crate::http::{forwarded, grpc, grpc_web, mirror, path, respond};
use crate::listener::original::Way;
use crate::resilience::breakers::Breaker;
use crate::route::cors::Asked;
use crate::route::filters::longest_body;
use crate::route::session;
use crate::route::{
    Action, Forward, NoRoute, RegexRewrite, RequestHead, Route, RouteTable, Targets, WeightedCluster,
    rate_limit, rbac,
};
use crate::upstream::cluster::{Cluster, ClusterSettings, UpstreamProtocol};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Their values differ from request to request.
const UNIQUE: [HeaderName; 6] = [
    REQUEST_ID,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("b3"),
    HeaderName::from_static("x-b3-traceid"),
    HeaderName::from_static("x-b3-spanid"),
    HeaderName::from_static("x-b3-parentspanid"),
];
/// The longest request target. Above: 414. nginx allows 8 KiB, Tomcat 8 KiB for all of the head.
const MAX_TARGET_BYTES: usize = 16 * 1024;

/// What is done with a request.
#[allow(clippy::large_enum_variant, reason = "taken apart at once: a box would be an allocation a request")]
pub(super) enum Plan {
    /// Answered from here.
    Answer(Response<ResponseBody>),
    /// Sent on.
    Forward(Request<RequestBody>, ForwardPlan),
    /// Others are asked first.
    Ask(Box<Ready>),
}

/// A request that has its route, and may take it as far as is decided here.
pub(super) struct Ready {
    pub(super) parts: request::Parts,
    body: Incoming,
    /// The client's stream, where that may become a tunnel.
    near: Option<OnUpgrade>,
    asked: Wanted,
    pub(super) host: HeaderValue,
    /// Who asks.
    pub(super) client: IpAddr,
    hop: Hop,
    found: Found,
    pub(super) route: Arc<Route>,
    /// The matched prefix's length in the path.
    matched: usize,
    /// Where the route leads to, and the arm's position where the choice was weighted.
    target: Option<(Arc<Cluster>, Option<usize>)>,
    set_cookie: Option<HeaderValue>,
    /// The page that asks, where another site's may.
    pub(super) origin: Option<HeaderValue>,
    /// It asks for no path, but for the server.
    whole_server: bool,
}

/// A request ready to be sent, and what governs it.
pub(super) struct ForwardPlan {
    pub(super) route: Arc<Route>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) settings: Arc<ClusterSettings>,
    /// The arm's position, where the choice was weighted.
    pub(super) arm: Option<usize>,
    pub(super) set_cookie: Option<HeaderValue>,
    /// Which endpoint it asks for, where it has a session.
    pub(super) session: Option<Box<session::Asked>>,
    /// The client wants to switch protocols.
    pub(super) change: Option<Change>,
    pub(super) idle: Option<Duration>,
    /// How long it may last in all.
    pub(super) longest: Option<Duration>,
    /// The page that asks, where another site's may.
    pub(super) origin: Option<HeaderValue>,
}

impl ForwardPlan {
    pub(super) fn action(&self) -> Option<&Forward> {
        match &self.route.action {
            Action::Forward(forward) => Some(forward),
            _ => None,
        }
    }

    /// Where the cluster has one for the route's priority.
    pub(super) fn breaker(&self) -> Option<&Arc<Breaker>> {
        self.settings.breakers.of(self.action().is_some_and(|action| action.high_priority))
    }

    pub(super) fn arm(&self) -> Option<&WeightedCluster> {
        arm_at(self.action()?, self.arm)
    }
}

/// The routes of a request on a sidecar's own listener. The only thing that is waited for, and only for a name
/// that is new; a host that is none is refused by [`plan`], in its order.
pub(super) async fn on_demand(
    exchange: &Exchange,
    request: &Request<Incoming>,
) -> Result<Option<Arc<RouteTable>>, Error> {
    let Some(by_name) = &exchange.settings.http.on_demand else { return Ok(None) };
    let way = exchange.conn.way;
    if by_name.intercepted && way == (Way::Direct) {
        exchange.grpc.set(grpc::asks(request.headers()));
        return Err(Error::NotIntercepted);
    }
    let host = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => match request.headers().get(HOST).map(HeaderValue::to_str) {
            Some(Ok(host)) if is_host(host.as_bytes()) => host,
            _ => return Ok(None),
        },
    };
    let now = exchange.start;
    match to_service(by_name, way, now).await {
        Ok(Some(table)) => return Ok(Some(table)),
        Ok(None) => {}
        Err(error) => {
            exchange.grpc.set(grpc::asks(request.headers()));
            return Err(error);
        }
    }
    let found = match by_name.names.table(host, now).await {
        Err(Error::UnknownName) if way.original().is_none() => by_name.names.table_of_port(host, now).await,
        found => found,
    };
    let refused = match found {
        Ok(table) => return Ok(Some(table)),
        Err(error) => match virtual_destination(by_name, way) {
            // It was going to a service, whatever it calls that; and nobody else has the address.
            Some(address) => match by_name.names.table_at(address, now).await {
                Ok(table) => return Ok(Some(table)),
                Err(error) => error,
            },
            // The application would have reached it without us.
            None if by_name.pass_unknown && error != Error::NameRefused && way.original().is_some() => {
                return Ok(None);
            }
            None => error,
        },
    };
    exchange.grpc.set(grpc::asks(request.headers()));
    Err(refused)
}

/// The routes of a Kubernetes Service's own, where the connection was going to a port of it that has some: whatever host
/// the request names.
async fn to_service(by_name: &ByName, way: Way, now: Instant) -> Result<Option<Arc<RouteTable>>, Error> {
    let Some(original) = way.original() else { return Ok(None) };
    // These are no Service's.
    if by_name.names.is_virtual(original.destination.ip()) {
        return Ok(None);
    }
    match by_name.names.table_to(original.destination, now).await {
        Ok(table) => Ok(Some(table)),
        Err(Error::NameRefused) => Err(Error::NameRefused),
        // It has none, or it is not known: it goes by its name, or where it was going.
        Err(_) => Ok(None),
    }
}

/// The service's address that a connection was going to.
fn virtual_destination(by_name: &ByName, way: Way) -> Option<IpAddr> {
    let address = way.original()?.destination.ip().to_canonical();
    by_name.names.is_virtual(address).then_some(address)
}

/// `table` is the name's, where the listener is a sidecar's own.
pub(super) fn plan(
    exchange: &Rc<Exchange>,
    mut request: Request<Incoming>,
    table: Option<Arc<RouteTable>>,
) -> Result<Plan, Error> {
    let settings = Rc::clone(&exchange.settings);
    let settings = &*settings.http;
    if let Some(overload) = exchange.worker().overload() {
        exchange.grpc.set(grpc::asks(request.headers()));
        return Err(overload);
    }
    if request.version() == Version::HTTP_10 {
        if !settings.http10 {
            return Err(Error::OldVersion);
        }
        exchange.conn.old.set(true);
    }
    let conn = &exchange.conn;
    let intercepted = conn.way.original().is_some();
    // For nobody in the mesh: it goes to where it was going, as its sender wrote it.
    let passes = settings.on_demand.is_some() && table.is_none();
    let tunnel = request.method() == Method::CONNECT && request.version() == Version::HTTP_2;
    let near = tunnel.then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    let found = headers::scan(&parts.headers, &settings.limits, settings.underscores, parts.version)
        .inspect_err(|_| exchange.grpc.set(grpc::asks(&parts.headers)))?;
    exchange.grpc.set(found.grpc);
    exchange.hold_head(found.bytes)?;
    if found.grpc_web && settings.grpc_web {
        let web = grpc_web::translate_request(&parts.method, &mut parts.headers);
        exchange.web.set(web);
        exchange.grpc.set(web.is_some());
    }
    let asked = Wanted::of(&mut parts, &settings.upgrades)?;
    let connect = matches!(asked, Wanted::Connect);
    let host = host(&parts, found.has_host()?, exchange.conn.way)?;
    // RFC 9113, 8.3.1. Another is for a gateway to another protocol.
    if parts.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err(Error::BadScheme);
    }
    let whole_server = intercepted && is_whole_server(&parts);
    if whole_server {
        parts.uri = Uri::from_static("*");
    } else if !connect {
        normalise(&mut parts, settings)?;
    } else if !body.is_end_stream() || parts.uri.path_and_query().is_some() {
        return Err(Error::BadPath);
    }
    let origin = forwarded::origin(&settings.forwarded, conn.peer.ip(), found.forwarded, &parts.headers);
    let mut hop = headers::remove_hop(&mut parts.headers, &found, settings.underscores);
    if found.envoy && !passes {
        let certificates = settings.client_certificates.keeps(conn.shown.as_ref());
        headers::remove_envoys(&mut parts.headers, origin.trusted, certificates);
    }
    // What a gRPC server wants to see before it sends trailers.
    hop.trailers |= exchange.web.get().is_some();
    if !passes {
        conn.with_peer_value(|peer| {
            forwarded::set(
                &mut parts.headers,
                &settings.forwarded,
                origin.trusted,
                found.forwarded,
                peer,
                conn.scheme,
                &host,
            );
        });
        settings.client_certificates.tell(conn.shown.as_ref(), &mut parts.headers);
        request_id(&mut parts.headers, settings, origin.trusted);
    }
    exchange.note_head(&parts.uri, &host, origin.client, parts.headers.get(REQUEST_ID));

    let routes = settings.routes.table.load();
    let table = table.as_ref().or(routes.as_ref()).ok_or(Error::NoRouteTable)?;
    let host_text = host.to_str().map_err(|_| Error::BadHost)?;
    // Routes know paths: what is for a whole server is matched as its root.
    let root = whole_server.then(|| Uri::from_static("/"));
    let head = RequestHead {
        method: &parts.method,
        uri: root.as_ref().unwrap_or(&parts.uri),
        host: host_text,
        headers: &parts.headers,
        client: origin.client,
        random: fastrand::u64(..),
    };
    let decided = table.decide(&head, &mut ());
    let of_route = decided.as_ref().ok().map(|decision| &decision.route.rbac);
    let from = rbac::Asked { head: &head, source: conn.peer.ip(), peer: conn.direct };
    let denied = rbac::denied(&settings.rbac, of_route, from);
    let decision = decided.map_err(|none| match none {
        _ if denied.is_some() => Error::RbacDenied,
        NoRoute::VirtualHost => Error::NoVirtualHost,
        NoRoute::Route => Error::NoRoute,
    })?;
    exchange.note_route(decision.route);
    if denied.is_some_and(|denied| !denied.filter.behind_cors) {
        return Err(Error::RbacDenied);
    }
    let route = Arc::clone(decision.route);
    let matched = decision.matched_prefix;
    let policy = route.cors.of_any(&settings.cors).filter(|_| !connect);
    let origin = match policy.map_or(Asked::Other, |policy| policy.asked(&parts.method, &parts.headers)) {
        Asked::Other => None,
        Asked::Request(origin) => Some(origin),
        asked => {
            let mut response = respond::direct(exchange, http::StatusCode::OK, bytes::Bytes::new());
            if let (Some(policy), Asked::Preflight(origin)) = (policy, asked) {
                policy.answer_preflight(origin, &parts.headers, response.headers_mut());
            }
            return Ok(Plan::Answer(response));
        }
    };
    // Behind CORS, so that the page that asks gets to see it.
    let refused = if denied.is_some() {
        Some(Error::RbacDenied)
    } else {
        let takes = rate_limit::take(&settings.rate_limits, &route.rate_limits, head.client, exchange.start);
        (!takes).then_some(Error::RateLimited)
    };
    if let Some(refused) = refused {
        let mut response = respond::error(exchange, refused);
        answer_origin(settings, &route, origin.as_ref(), &mut response);
        return Ok(Plan::Answer(response));
    }
    let target = decision.target.map(|target| {
        let arm = match (&route.action, target.arm) {
            (Action::Forward(action), Some(arm)) => position(action, arm),
            _ => None,
        };
        (Arc::clone(target.cluster), arm)
    });
    let (set_cookie, client) = (decision.set_cookie, head.client);
    let ready = Ready {
        parts,
        body,
        near,
        asked,
        client,
        host,
        hop,
        found,
        route,
        matched,
        target,
        set_cookie,
        origin,
        whole_server,
    };
    match authz::is_asked(&settings.authz, &ready.route.authz) {
        true => Ok(Plan::Ask(Box::new(ready))),
        false => act(exchange, ready),
    }
}

/// Has the page that asks see the answer, where it may.
pub(super) fn answer_origin(
    settings: &HttpSettings,
    route: &Route,
    origin: Option<&HeaderValue>,
    response: &mut Response<ResponseBody>,
) {
    if let Some(origin) = origin
        && let Some(policy) = route.cors.of_any(&settings.cors)
    {
        policy.answer(origin.clone(), response.headers_mut());
    }
}

/// Does what the route says.
pub(super) fn act(exchange: &Rc<Exchange>, ready: Ready) -> Result<Plan, Error> {
    let settings = Rc::clone(&exchange.settings);
    let settings = &*settings.http;
    let conn = &exchange.conn;
    let Ready {
        mut parts,
        body,
        near,
        asked,
        host,
        hop,
        found,
        route,
        matched,
        target,
        set_cookie,
        origin,
        whole_server,
        client: _,
    } = ready;
    let (connect, tunnel) = (matches!(asked, Wanted::Connect), near.is_some());
    let host_text = host.to_str().map_err(|_| Error::BadHost)?;
    match &route.action {
        Action::Forward(action) if action.connect != connect => Err(Error::ConnectRefused),
        Action::Redirect(_) if connect => Err(Error::ConnectRefused),
        Action::Direct { status, body } => {
            let mut response = respond::direct(exchange, *status, body.clone());
            headers::mutate(response.headers_mut(), &route.response_headers);
            respond::place(&mut response, scheme(&parts.headers), host_text, &parts.uri);
            answer_origin(settings, &route, origin.as_ref(), &mut response);
            Ok(Plan::Answer(response))
        }
        Action::Redirect(redirect) => {
            let scheme = scheme(&parts.headers);
            let mut response = respond::redirect(exchange, redirect, scheme, host_text, &parts.uri, matched);
            headers::mutate(response.headers_mut(), &route.response_headers);
            answer_origin(settings, &route, origin.as_ref(), &mut response);
            Ok(Plan::Answer(response))
        }
        Action::Forward(action) => {
            let limit = match action.max_body_bytes.is_empty() {
                true => settings.limits.max_body_bytes,
                false => longest_body(&settings.buffers, &action.max_body_bytes),
            };
            if limit > 0 && body.size_hint().lower() > limit {
                return Err(Error::BodyTooLarge);
            }
            let (cluster, arm) = target.ok_or(Error::NoCluster)?;
            // Routes know paths: what is for a whole server is matched as its root.
            let path = if whole_server { "/" } else { parts.uri.path() };
            let session = session::of(&settings.sessions, &action.sessions)
                .and_then(|session| session::Asked::of(session, path, &parts.headers))
                .map(Box::new);
            let local = exchange.worker().cluster(&cluster);
            local.cells.active.add(1);
            exchange.cluster.replace(Some(local));
            let cluster_settings = cluster.settings.load_full().ok_or(Error::NoCluster)?;
            let wanted = match asked {
                Wanted::Extended(protocol) => Some(protocol),
                Wanted::No => {
                    let intercepted = conn.way.original().is_some();
                    upgrade(&parts, &hop, settings, intercepted, cluster_settings.protocol)
                }
                Wanted::Connect => None,
            };
            if let Some(arm) = arm_at(action, arm) {
                headers::mutate(&mut parts.headers, &arm.request_headers);
            }
            headers::mutate(&mut parts.headers, &route.request_headers);
            if !whole_server {
                rewrite(&mut parts, action, matched, settings.path.normalize)?;
            }
            let host = action.host_rewrite.as_deref().unwrap_or(&host);
            let mirrors = match connect || wanted.is_some() || action.mirrors.is_empty() {
                true => Vec::new(),
                false => mirror::heads(exchange, &action.mirrors, &parts, host, &hop, found.cookies > 1),
            };
            let change = if connect {
                Some(Change::connect(near))
            } else {
                address(&mut parts, host, &cluster_settings, &hop, found.cookies > 1)?;
                // Its body would be the first of the tunnel's bytes.
                if !tunnel
                    && wanted.is_some()
                    && !body.is_end_stream()
                    && cluster_settings.protocol == UpstreamProtocol::Http2
                {
                    return Err(Error::Malformed);
                }
                wanted.map(|protocol| Change::ask(&mut parts, protocol, near, cluster_settings.protocol))
            };
            let gate = gate(&mut parts, &body, found.expect, &cluster_settings);
            let mut body = RequestBody::new(body, exchange, limit, gate.clone());
            mirror::send(exchange, mirrors, &mut body, action.timeout);
            let mut request = Request::from_parts(parts, body);
            // For who reads the endpoint's answers.
            if let Some(gate) = gate {
                request.extensions_mut().insert(gate);
            }
            let idle = match action.idle_timeout {
                Some(Duration::ZERO) => None,
                own => own.or(settings.timeouts.stream_idle),
            };
            conn.allow_idle(idle);
            let longest = match action.longest_stream {
                Some(Duration::ZERO) => None,
                own => own.or(settings.timeouts.longest_stream),
            };
            let plan = ForwardPlan {
                route,
                cluster,
                settings: cluster_settings,
                arm,
                set_cookie,
                session,
                change,
                idle,
                longest,
                origin,
            };
            Ok(Plan::Forward(request, plan))
        }
    }
}

/// What the client spoke, as it has just been written down for the upstream.
pub(super) fn scheme(headers: &http::HeaderMap) -> &str {
    headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok()).unwrap_or("http")
}

fn position(action: &Forward, arm: &WeightedCluster) -> Option<usize> {
    match &action.targets {
        Targets::Weighted { clusters, .. } => clusters.iter().position(|other| std::ptr::eq(other, arm)),
        Targets::One(_) => None,
    }
}

fn arm_at(action: &Forward, position: Option<usize>) -> Option<&WeightedCluster> {
    match &action.targets {
        Targets::Weighted { clusters, .. } => clusters.get(position?),
        Targets::One(_) => None,
    }
}

/// The one host of a request. An absolute target's wins over `Host` (RFC 9112, 3.2.2); in HTTP/2 the two must
/// not differ.
fn host(parts: &request::Parts, has_header: bool, way: Way) -> Result<HeaderValue, Error> {
    let header = if has_header { parts.headers.get(HOST) } else { None };
    let host = match parts.uri.authority() {
        Some(authority) => {
            let http2 = parts.version == Version::HTTP_2;
            let differs =
                |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
            if http2 && header.is_some_and(differs)
                || !http2 && header.is_none() && parts.version != Version::HTTP_10
            {
                return Err(Error::BadHost);
            }
            HeaderValue::from_str(authority.as_str()).map_err(|_| Error::BadHost)?
        }
        None => match (header, way.original()) {
            (Some(header), _) => header.clone(),
            // HTTP/1.0 knows no host: what the client connected to is meant.
            (None, Some(original)) if parts.version == Version::HTTP_10 => {
                HeaderValue::try_from(original.destination.to_string()).map_err(|_| Error::BadHost)?
            }
            (None, _) => return Err(Error::BadHost),
        },
    };
    if !is_host(host.as_bytes()) {
        return Err(Error::BadHost);
    }
    without_root(&host).map_or(Ok(host), |plain| plain.map_err(|_| Error::BadHost))
}

/// A name that ends with the root's dot is the same as one that does not, for whoever matches it.
fn without_root(host: &HeaderValue) -> Option<Result<HeaderValue, InvalidHeaderValue>> {
    let bytes = host.as_bytes();
    let (name, port) = bytes.split_at(memchr::memchr(b':', bytes).unwrap_or(bytes.len()));
    let name = name.strip_suffix(b".").filter(|name| !name.is_empty())?;
    Some(HeaderValue::from_bytes(&[name, port].concat()))
}

/// `uri-host [":" port]` (RFC 9110, 7.2) without what no name or address has.
fn is_host(host: &[u8]) -> bool {
    let (name, port) = match host {
        [b'[', ..] => match host.iter().position(|byte| *byte == b']') {
            Some(end) => host.split_at(end + 1),
            None => return false,
        },
        _ => host.split_at(host.iter().position(|byte| *byte == b':').unwrap_or(host.len())),
    };
    let name_ok = match name {
        [] => false,
        [b'[', address @ .., b']'] => {
            std::str::from_utf8(address).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok())
        }
        name => {
            name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'))
        }
    };
    let port_ok = match port {
        [] | [b':'] => true,
        [b':', digits @ ..] => {
            digits.iter().all(u8::is_ascii_digit)
                && std::str::from_utf8(digits).is_ok_and(|text| text.parse::<u16>().is_ok())
        }
        _ => false,
    };
    name_ok && port_ok
}

/// Leaves path and query in normal form and nothing else in the target.
fn normalise(parts: &mut request::Parts, settings: &HttpSettings) -> Result<(), Error> {
    let target = parts.uri.path_and_query().ok_or(Error::BadPath)?;
    if target.as_str().len() > MAX_TARGET_BYTES {
        return Err(Error::UriTooLong);
    }
    let changed = path::normalise(target.path(), settings.path)?;
    if let Some(path) = changed {
        parts.uri = origin_form(&path, target.query())?;
    } else if !target.as_str().starts_with('/') {
        // Behind an authority a path may be left out (RFC 9112, 3.2.2); `:path` begins with it (RFC 9113, 8.3.1).
        if parts.version == Version::HTTP_2 {
            return Err(Error::BadPath);
        }
        parts.uri = origin_form("/", target.query())?;
    } else if parts.uri.authority().is_some() {
        // A path that is left out reads as `/` only behind an authority.
        let left_out = target.as_str() == "/";
        parts.uri = Uri::from(if left_out { PathAndQuery::from_static("/") } else { target.clone() });
    }
    Ok(())
}

fn origin_form(path: &str, query: Option<&str>) -> Result<Uri, Error> {
    let target = match query {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    target.map(Uri::from).map_err(|_| Error::BadPath)
}

fn request_id(headers: &mut http::HeaderMap, settings: &HttpSettings, trusted: bool) {
    let keep = settings.preserve_external_request_id || trusted;
    if headers.contains_key(REQUEST_ID) {
        if keep {
            return;
        }
        headers.remove(REQUEST_ID);
    }
    if settings.generate_request_id {
        let bytes = fastrand::u128(..).to_ne_bytes();
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        let id = uuid::Builder::from_random_bytes(bytes).into_uuid();
        if let Ok(value) = HeaderValue::from_bytes(id.hyphenated().encode_lower(&mut text).as_bytes()) {
            headers.insert(REQUEST_ID, value);
        }
    }
}

/// `OPTIONS *`: it asks for no path, but for the server (RFC 9110, 9.3.7).
fn is_whole_server(parts: &request::Parts) -> bool {
    parts.method == Method::OPTIONS && parts.uri.path() == "*"
}

/// The protocol that an HTTP/1.1 client asks for, where the listener passes it on. What is intercepted may ask for any:
/// its sender does not know that somebody listens.
fn upgrade(
    parts: &request::Parts,
    hop: &Hop,
    settings: &HttpSettings,
    intercepted: bool,
    upstream: UpstreamProtocol,
) -> Option<HeaderValue> {
    let asked = hop.upgrade.as_ref()?;
    let passes = parts.version == Version::HTTP_11
        && !asked.as_bytes().eq_ignore_ascii_case(upgrade::CONNECT.as_bytes())
        && (upgrade::is_allowed(asked.as_bytes(), &settings.upgrades)
            || intercepted && upstream == UpstreamProtocol::Http1 && !upgrade::is_http2(asked));
    passes.then(|| asked.clone())
}

/// What comes of a normal path must have no dot segment either: `/api../admin` without its `/api` has one.
fn rewrite(
    parts: &mut request::Parts,
    action: &Forward,
    matched: usize,
    normalize: bool,
) -> Result<(), Error> {
    let path: Cow<'_, str> = if let Some(prefix) = &action.prefix_rewrite {
        respond::replace_prefix(parts.uri.path(), matched, prefix).into()
    } else if let Some(RegexRewrite { pattern, substitution }) = action.regex_rewrite.as_deref() {
        pattern.replaced(parts.uri.path(), substitution)
    } else {
        return Ok(());
    };
    if !path.starts_with('/') || normalize && path::has_dot_segment(&path) {
        return Err(Error::BadPath);
    }
    parts.uri = origin_form(&path, parts.uri.query())?;
    Ok(())
}

/// Puts the host where the upstream's protocol wants it, and what else differs between the two.
pub(in crate::http) fn address(
    parts: &mut request::Parts,
    host: &HeaderValue,
    cluster: &ClusterSettings,
    hop: &Hop,
    split_cookies: bool,
) -> Result<(), Error> {
    match cluster.protocol {
        UpstreamProtocol::Http1 => {
            parts.version = Version::HTTP_11;
            parts.headers.insert(HOST, host.clone());
            if hop.trailers {
                parts.headers.insert(TE, HeaderValue::from_static("trailers"));
                parts.headers.insert(CONNECTION, HeaderValue::from_static("te"));
            }
            if split_cookies && parts.headers.contains_key(COOKIE) {
                headers::join_cookies(&mut parts.headers);
            }
        }
        UpstreamProtocol::Http2 => {
            parts.version = Version::HTTP_2;
            parts.headers.remove(HOST);
            if hop.trailers {
                parts.headers.insert(TE, HeaderValue::from_static("trailers"));
            }
            for (name, value) in &mut parts.headers {
                if matches!(name.as_str().as_bytes()[0], b'b' | b't' | b'x') && UNIQUE.contains(name) {
                    // HPACK's word for what is not to be indexed: these would push all else out of the connection's
                    // table, and each would be compared with all that are there.
                    value.set_sensitive(true);
                }
            }
            let is_https = scheme(&parts.headers) == "https";
            let uri = std::mem::take(&mut parts.uri);
            let mut target = uri.into_parts();
            target.scheme = Some(if is_https { Scheme::HTTPS } else { Scheme::HTTP });
            target.authority = Some(host.as_bytes().try_into().map_err(|_| Error::BadHost)?);
            parts.uri = Uri::from_parts(target).map_err(|_| Error::BadPath)?;
        }
    }
    Ok(())
}

/// `Expect` goes end to end where the upstream can say 100. Elsewhere we say it ourselves, by reading the body.
fn gate(
    parts: &mut request::Parts,
    body: &Incoming,
    expect: bool,
    cluster: &ClusterSettings,
) -> Option<Arc<Gate>> {
    if !expect {
        return None;
    }
    // Another expectation nobody here can meet (RFC 9110, 10.1.1).
    let mut expected = parts.headers.get_all(EXPECT).iter();
    let known = expected.all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if !known || cluster.protocol == UpstreamProtocol::Http2 || body.is_end_stream() {
        parts.headers.remove(EXPECT);
        return None;
    }
    Some(Arc::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for host in ["shop", "shop:80", "shop:", "10.0.0.1:8080", "[::1]", "[::1]:80", "a_b.c-d.", "xn--a"] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            "", ":80", "a@b", "a b", "a,b", "a/b", "[::1", "[x]:80", "a:b", "a:99999", "a:1:2", "[::1]x", "ä",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }
}
