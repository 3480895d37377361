//! Sends a request on: picks an endpoint, leases a connection, waits for the answer's head within the bounds,
//! and tries again elsewhere where the rules allow it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::SET_COOKIE;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, response};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::plan::ForwardPlan;
use crate::error::Error;
use crate::http::body::{Bounds, RequestBody, ResponseBody};
use crate::http::exchange::{Deadline, Exchange};
use crate::http::receiving::Receiving;
use crate::http::tunnel::{Far, Tunnel};
use crate::http::upgrade::Change;
use crate::http::{grpc_web, headers};
use crate::listener::transport::Rewound;
use crate::resilience::breakers::{Breaker, Held};
use crate::resilience::retry::{self, Failure, Repeatable};
use crate::tcp::copy;
use crate::upstream::cluster::Endpoint;
use crate::upstream::open::{self, Target};
use crate::upstream::pool::Lease;
use crate::worker::local::Timer;

/// A request's head, kept where it may have to be sent again.
struct Copy {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
}

/// An `async fn` would hold the request and the plan twice.
pub(super) fn forward(
    exchange: &Rc<Exchange>,
    request: Request<RequestBody>,
    mut plan: ForwardPlan,
) -> impl Future<Output = Result<Response<ResponseBody>, Error>> {
    let mut slot = Some(request);
    async move {
        if let Some(change) = plan.change.take_if(|change| change.is_connect()) {
            return Box::pin(connect(exchange, plan, change)).await;
        }
        let Some(action) = plan.action() else { return Err(Error::NoRoute) };
        let policy = action.retry.clone();
        let longest = plan.longest.map(|longest| (exchange.start + longest, Error::StreamTooLong));
        let mut now = exchange.start + Duration::from_millis(exchange.asked_ms.get().into());
        let timeout = action.timeout.map(|timeout| (now + timeout, Error::UpstreamTimeout));
        let total = sooner(timeout, longest);
        exchange.bounds.set((total, plan.idle));
        let mut bounds = Bounds {
            total: total.map(|(at, _)| at),
            over: total.map_or(Error::UpstreamTimeout, |(_, error)| error),
            idle: plan.idle,
            seen: exchange.progress.get(),
        };
        let mut timer = exchange.worker().timer(bounds.next(now));
        let mut receiving = Receiving::new(exchange, plan.change.is_some());
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        let mut tries = 0;
        // Counts as a retry for as long as there is one.
        let mut retrying: Option<Held> = None;
        let mut may_retry = |breaker: Option<&Arc<Breaker>>| {
            retrying = None;
            retrying = breaker.and_then(Breaker::retry);
            breaker.is_none() || retrying.is_some()
        };
        loop {
            let Some(request) = slot.as_ref() else { return Err(Error::UpstreamReset) };
            let repeatable = Repeatable {
                safe: retry::is_safe(request.method()),
                // What would follow is not sent again either.
                bodyless: request.body().is_end_stream() && plan.change.is_none(),
            };
            let copy = (tries < policy.max_retries
                && repeatable.bodyless
                && plan.change.is_none()
                && (policy.on_refused_stream
                    || policy.on_status.is_some()
                    || policy.on_broken_connection && repeatable.safe))
                .then(|| Copy::of(request));
            tries += 1;
            exchange.attempts.set(tries);
            let endpoint = pick(exchange, &plan, now, &tried)?;
            let try_by = policy.per_try_timeout.map(|limit| now + limit);
            let mut received = None;
            let result = {
                // Pinned here, and the answer left where it is wanted: what is handed on by value takes its room
                // and its copy at each step.
                let attempt = pin!(async {
                    let tried = try_once(exchange, &plan, &endpoint, &mut slot, tries > 1, now);
                    let answer = received.insert(tried.await?);
                    if copy.is_some() { answer.begin().await } else { Ok(()) }
                });
                bound(exchange, attempt, (&mut bounds, &mut timer), &mut receiving, try_by).await
            };
            let failure = match (result, received) {
                (Ok(()), Some(received)) => {
                    let status = received.response.status();
                    if copy.is_none()
                        || !retry::again_after(&policy, status, repeatable, tries)
                        || !may_retry(plan.breaker())
                    {
                        return answer(exchange, plan, received, bounds, timer);
                    }
                    // Its connection is not used again: the rest of the answer may be long.
                    drop(received);
                    slot = copy.map(Copy::into_request);
                    let pause = retry::pause(&policy, tries, fastrand::f64());
                    let waited = pin!(async {
                        tokio::time::sleep(pause).await;
                        Ok(())
                    });
                    bound(exchange, waited, (&mut bounds, &mut timer), &mut receiving, None).await?;
                    if let Some(cluster) = exchange.cluster.borrow().as_ref() {
                        cluster.cells.retries.add(1);
                    }
                    tried.push(endpoint);
                    now = Instant::now();
                    continue;
                }
                (result, _) => {
                    Failure { error: result.err().unwrap_or(Error::UpstreamReset), unsent: slot.is_some() }
                }
            };
            // An error of the client's, noted by its body, is the cause of what the upstream hop reports.
            if let Some(error) = exchange.error.get() {
                return Err(error);
            }
            if !retry::again(&policy, failure, repeatable, tries) || !may_retry(plan.breaker()) {
                return Err(failure.error);
            }
            if slot.is_none() {
                slot = copy.map(Copy::into_request);
            }
            if let Some(cluster) = exchange.cluster.borrow().as_ref() {
                cluster.cells.retries.add(1);
            }
            tried.push(endpoint);
            now = Instant::now();
        }
    }
}

/// An answer as it comes from the upstream, with its body in the lease.
struct Answer {
    response: Response<()>,
    /// What of the body was read already.
    first: Option<Bytes>,
    lease: Lease,
}

impl Answer {
    /// Waits for the first bytes of a body of known length. An upstream that dies between head and body has not
    /// answered, and as long as nothing was passed on the request can still go elsewhere. A body of unknown length
    /// may be a stream of events, whose head is an answer of its own.
    async fn begin(&mut self) -> Result<(), Error> {
        let body = &mut self.lease;
        if body.is_end_stream() || body.size_hint().exact().is_none_or(|length| length == 0) {
            return Ok(());
        }
        if let Some(frame) = body.frame().await.transpose()? {
            self.first = Some(frame.into_data().map_err(|_| Error::UpstreamProtocol)?);
        }
        Ok(())
    }
}

impl Copy {
    fn of(request: &Request<RequestBody>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
        }
    }

    fn into_request(self) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::empty());
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers;
        request
    }
}

fn pick(
    exchange: &Exchange,
    plan: &ForwardPlan,
    now: Instant,
    tried: &[Arc<Endpoint>],
) -> Result<Arc<Endpoint>, Error> {
    let local = exchange.cluster.borrow();
    let local = local.as_ref().ok_or(Error::NoCluster)?;
    // A further try is anybody's, and takes the session along.
    if let Some(session) = plan.session.as_ref().filter(|_| tried.is_empty())
        && let Some(address) = session.endpoint
    {
        let now_ms = exchange.worker().since_epoch_ms(now);
        match local.named(&plan.cluster, &plan.settings, now_ms, address) {
            Some(endpoint) => return Ok(endpoint),
            None if session.session.strict => return Err(Error::NoHealthyUpstream),
            None => {}
        }
    }
    let original = || exchange.conn.way.original().map(|original| exchange.conn.own.endpoint(original));
    open::pick(exchange.worker(), (&plan.cluster, local, &plan.settings), original, now, tried)
}

/// One try. Leaves the request in `slot` where none of it was sent.
async fn try_once(
    exchange: &Exchange,
    plan: &ForwardPlan,
    endpoint: &Arc<Endpoint>,
    slot: &mut Option<Request<RequestBody>>,
    fresh: bool,
    now: Instant,
) -> Result<Answer, Error> {
    exchange.note_endpoint(endpoint);
    let worker = exchange.worker();
    let breaker = plan.breaker();
    let leased = worker.pool(endpoint).lease(endpoint, &plan.settings, breaker, fresh, now).await;
    let mut lease = match leased {
        Ok(lease) => lease,
        Err(error) => {
            if error.is_connect() {
                endpoint.outlier.connect_failed(worker.since_epoch_ms(Instant::now()));
            }
            if let Some(cluster) =
                exchange.cluster.borrow().as_ref().filter(|_| error != Error::UpstreamOverflow)
            {
                cluster.cells.connect_failures.add(1);
            }
            return Err(error);
        }
    };
    if !lease.reused {
        endpoint.outlier.connected();
        if let Some(cluster) = exchange.cluster.borrow().as_ref() {
            cluster.cells.connects.add(1);
        }
    }
    let Some(request) = slot.take() else { return Err(Error::UpstreamReset) };
    match lease.send(request).await {
        Ok(response) => Ok(Answer { response, first: None, lease }),
        Err(failed) => {
            *slot = failed.request.map(|request| *request);
            Err(failed.error)
        }
    }
}

/// The one that comes first.
fn sooner(one: Option<Deadline>, other: Option<Deadline>) -> Option<Deadline> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.0 < one.0 { other } else { one }),
        (one, other) => one.or(other),
    }
}

/// Runs a try within the route's timeout, its own, what the client has to keep to, and the idle time.
async fn bound<F, T>(
    exchange: &Exchange,
    mut attempt: Pin<&mut F>,
    (bounds, timer): (&mut Bounds, &mut Timer),
    receiving: &mut Option<Receiving>,
    try_by: Option<Instant>,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut try_timer = try_by.map(|deadline| exchange.worker().timer(deadline));
    poll_fn(|cx| {
        if let Poll::Ready(result) = attempt.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        if let Some(sleep) = try_timer.as_mut().and_then(Timer::sleep)
            && sleep.poll(cx).is_ready()
        {
            return Poll::Ready(Err(Error::PerTryTimeout));
        }
        if let Some(Poll::Ready(error)) = receiving.as_mut().map(|receiving| receiving.poll(exchange, cx)) {
            return Poll::Ready(Err(error));
        }
        bounds.poll(timer, exchange, cx).map(Err)
    })
    .await
}

fn answer(
    exchange: &Rc<Exchange>,
    mut plan: ForwardPlan,
    received: Answer,
    bounds: Bounds,
    timer: Timer,
) -> Result<Response<ResponseBody>, Error> {
    exchange.progressed();
    exchange.note_first_byte();
    let Answer { response, first, mut lease } = received;
    let (mut parts, ()) = response.into_parts();
    if std::mem::replace(&mut parts.version, Version::HTTP_11) == Version::HTTP_2 {
        headers::trim_values(&mut parts.headers);
    }
    let granted = plan.change.as_mut().is_some_and(|change| change.is_granted(&parts));
    if parts.status == StatusCode::SWITCHING_PROTOCOLS && !granted {
        return Err(Error::UpstreamProtocol);
    }
    headers::remove_response_hop(&mut parts.headers)?;
    if parts.status == StatusCode::NO_CONTENT {
        headers::remove_length_of_nothing(&mut parts.headers)?;
    }
    if let Some(arm) = plan.arm() {
        headers::mutate(&mut parts.headers, &arm.response_headers);
    }
    headers::mutate(&mut parts.headers, &plan.route.response_headers);
    if let (Some(policy), Some(origin)) = (plan.route.cors.of_any(&exchange.settings.http.cors), plan.origin)
    {
        policy.answer(origin, &mut parts.headers);
    }
    if let Some(cookie) = plan.set_cookie {
        parts.headers.append(SET_COOKIE, cookie);
    }
    if let Some(session) = plan.session {
        session.answer(lease.endpoint().address(), &mut parts.headers);
    }
    if let Some(change) = plan.change {
        if granted {
            let far = match (lease.switched(), lease.tunnel()) {
                (Some((prefix, socket)), _) => Far::Switched(Rewound { prefix, socket }, lease),
                (None, Some(stream)) => Far::Stream(stream, lease),
                (None, None) => return Err(Error::UpstreamProtocol),
            };
            return Ok(grant(exchange, change, parts, far, (plan.idle, plan.longest)));
        }
        // To a client of HTTP/2 a 2xx would say that the protocol has changed (RFC 8441, 4).
        if change.near.is_some() && parts.status.is_success() {
            return Err(Error::UpstreamProtocol);
        }
        change.decline(&mut parts.headers);
    }
    let web = exchange.web.get().and_then(|web| grpc_web::translate_response(web, &mut parts.headers));
    let body = ResponseBody::upstream(Rc::clone(exchange), first, lease, timer, bounds);
    let body = body.in_web_form(web);
    Ok(Response::from_parts(parts, body))
}

/// Grants a change of protocol, and has the tunnel begin behind the answer.
fn grant(
    exchange: &Rc<Exchange>,
    mut change: Change,
    mut parts: response::Parts,
    far: Far,
    (idle, longest): (Option<Duration>, Option<Duration>),
) -> Response<ResponseBody> {
    change.grant(&mut parts);
    let until = longest.map(|longest| exchange.start + longest);
    let tunnel = Tunnel { far, exchange: Rc::clone(exchange), bounds: copy::Bounds { idle, until } };
    match change.near.take() {
        Some(near) => tunnel.spawn(near),
        None => drop(exchange.conn.tunnel.replace(Some(Box::new(tunnel)))),
    }
    Response::from_parts(parts, ResponseBody::local(exchange, Bytes::new()))
}

/// A CONNECT that ends here: a connection of its own to an endpoint of the route's cluster.
async fn connect(
    exchange: &Rc<Exchange>,
    plan: ForwardPlan,
    change: Change,
) -> Result<Response<ResponseBody>, Error> {
    let tries = plan.action().map_or(1, |action| action.retry.max_retries + 1);
    let local = exchange.cluster.borrow().clone().ok_or(Error::NoCluster)?;
    let target = Target {
        cluster: &plan.cluster,
        local: &local,
        settings: &plan.settings,
        tries,
        original: exchange.conn.way.original(),
        client: None,
    };
    let opened = open::open(exchange.worker(), target, |endpoint| {
        exchange.attempts.set(exchange.attempts.get() + 1);
        exchange.note_endpoint(endpoint);
    });
    let opened = opened.await?;
    exchange.note_first_byte();
    let (mut parts, ()) = Response::new(()).into_parts();
    headers::mutate(&mut parts.headers, &plan.route.response_headers);
    Ok(grant(exchange, change, parts, Far::Opened(opened), (plan.idle, plan.longest)))
}
