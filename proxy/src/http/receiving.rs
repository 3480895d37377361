//! How long a request may take to arrive, from its head to the end of its body. It counts no more once the answer has
//! begun: the two ends are then in talk, and the stream's own bounds hold.

use std::task::{Context, Poll, ready};

use super::exchange::Exchange;
use crate::error::Error;
use crate::worker::local::Timer;

/// The bound on one request that has not arrived whole.
pub(crate) struct Receiving {
    timer: Timer,
}

impl Receiving {
    /// `None`: it is here, or nothing bounds it.
    pub(crate) fn new(exchange: &Exchange) -> Option<Self> {
        let limit = exchange.settings.http.timeouts.request?;
        if exchange.request_done.get() {
            return None;
        }
        Some(Self { timer: exchange.worker().timer(exchange.start + limit) })
    }

    /// Ready when the client has not kept to it.
    pub(crate) fn poll(&mut self, exchange: &Exchange, cx: &mut Context<'_>) -> Poll<Error> {
        let Some(sleep) = self.timer.sleep() else { return Poll::Pending };
        ready!(sleep.poll(cx));
        if exchange.request_done.get() { Poll::Pending } else { Poll::Ready(Error::RequestTimeout) }
    }
}
