//! One request: checked and routed without waiting, then sent on and, where the rules allow it, sent on again.

mod forward;
mod plan;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;

use super::body::ResponseBody;
use super::exchange::Exchange;
use super::respond;
use crate::listener::Phase;
use crate::listener::connection::ConnState;

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
        Box::pin(serve(exchange, request))
    }
}

async fn serve(
    exchange: Rc<Exchange>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let planned = match plan::on_demand(&exchange, &request).await {
        Ok(table) => plan::plan(&exchange, request, table),
        Err(error) => Err(error),
    };
    let mut response = match planned {
        Ok(plan::Plan::Answer(response)) => response,
        Ok(plan::Plan::Forward(forward)) => forward::forward(&exchange, forward)
            .await
            .unwrap_or_else(|error| respond::error(&exchange, error)),
        Err(error) => respond::error(&exchange, error),
    };
    exchange.status.set(response.status().as_u16());
    let leaving = exchange.conn.listener.phase() >= Phase::LameDuck;
    let scarce = exchange.worker().is_scarce();
    if (leaving || scarce) && exchange.conn.tunnel.borrow().is_none() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}
