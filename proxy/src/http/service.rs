//! One request: checked and routed without waiting, then sent on and, where the rules allow it, sent on again.

mod authz;
mod forward;
mod plan;

use std::convert::Infallible;
use std::future::{self, Future};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::FutureExt as _;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;

use self::plan::Plan;
pub(in crate::http) use self::plan::address;
use super::body::ResponseBody;
use super::exchange::Exchange;
use super::respond;
use crate::error::Error;
use crate::listener::Phase;
use crate::listener::connection::ConnState;
use crate::route::RouteTable;

/// Serves the requests of one connection.
pub(crate) struct ProxyService {
    conn: Rc<ConnState>,
}

impl ProxyService {
    pub(crate) fn new(conn: &Rc<ConnState>) -> Self {
        Self { conn: Rc::clone(conn) }
    }
}

impl hyper::service::Service<Request<Incoming>> for ProxyService {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<ResponseBody>, Infallible>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let exchange = Exchange::begin(Rc::clone(&self.conn), &request);
        if request.version() == Version::HTTP_2 {
            self.conn.streams.begins(&exchange);
        }
        Box::pin(serve(exchange, request))
    }
}

#[expect(clippy::manual_async_fn, reason = "an async fn would hold the request twice")]
fn serve(
    exchange: Rc<Exchange>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> {
    async move {
        let table = plan::on_demand(&exchange, &request).await;
        let mut response = answer(&exchange, request, table).await;
        exchange.status.set(response.status().as_u16());
        let conn = &exchange.conn;
        let leaving = conn.listener.phase() >= Phase::LameDuck
            || conn.is_spent(&exchange.settings.http, exchange.start);
        let scarce = exchange.worker().is_scarce();
        if (leaving || scarce) && exchange.conn.tunnel.borrow().is_none() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// Plans the request, and answers it or sends it on.
fn answer(
    exchange: &Rc<Exchange>,
    request: Request<Incoming>,
    table: Result<Option<Arc<RouteTable>>, Error>,
) -> impl Future<Output = Response<ResponseBody>> {
    let response = match table.and_then(|table| plan::plan(exchange, request, table)) {
        Ok(Plan::Forward(request, plan)) => {
            let answered = forward::forward(exchange, request, plan);
            return answered
                .map(|answer| answer.unwrap_or_else(|error| respond::error(exchange, error)))
                .left_future();
        }
        // Boxed, as most requests need no room for it.
        Ok(Plan::Ask(ready)) => {
            return Box::pin(authz::answer(exchange, ready)).left_future().right_future();
        }
        Ok(Plan::Answer(response)) => response,
        Err(error) => respond::error(exchange, error),
    };
    future::ready(response).right_future().right_future()
}
