//! The streams of an HTTP/2 connection that are being answered, each with the task that does it: hyper asks an answer's
//! body for nothing while the client's window is shut, so that its bounds are looked after from here, once a tick.

use std::cell::RefCell;
use std::future::Future;
use std::rc::{Rc, Weak};

use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::connection::ConnState;
use crate::http::exchange::Exchange;

/// Ended ones are looked for when there are so many entries, or twice as many as there were streams.
const FEW: usize = 256;

/// Those of one connection.
#[derive(Default)]
pub(crate) struct Streams {
    all: RefCell<Vec<Stream>>,
    /// The request that the next task answers.
    next: RefCell<Option<Weak<Exchange>>>,
}

struct Stream {
    exchange: Weak<Exchange>,
    task: AbortHandle,
    /// Its progress, as of the tick that saw it.
    seen: u32,
    since: Instant,
}

impl Streams {
    /// hyper calls the service, and then has its answer driven by a task.
    pub(crate) fn begins(&self, exchange: &Rc<Exchange>) {
        self.next.replace(Some(Rc::downgrade(exchange)));
    }

    fn drives(&self, task: AbortHandle, in_flight: usize) {
        let Some(exchange) = self.next.take() else { return };
        let mut all = self.all.borrow_mut();
        if all.len() >= FEW.max(2 * in_flight) {
            all.retain(|stream| !stream.task.is_finished());
        }
        all.push(Stream { exchange, task, seen: 0, since: Instant::now() });
    }

    /// Ends those that have broken their bounds.
    pub(super) fn tick(&self, now: Instant) {
        self.all.borrow_mut().retain_mut(|stream| {
            if stream.task.is_finished() {
                return false;
            }
            let Some(exchange) = stream.exchange.upgrade() else { return false };
            let progress = exchange.progress.get();
            if progress != stream.seen {
                (stream.seen, stream.since) = (progress, now);
            }
            let Some(error) = exchange.overdue(now, now.saturating_duration_since(stream.since)) else {
                return true;
            };
            exchange.fail(error);
            // The stream is reset (CANCEL) when its task has gone.
            stream.task.abort();
            false
        });
    }
}

/// Spawns the tasks of a connection's streams onto the worker's own thread.
#[derive(Clone)]
pub(super) struct StreamExec(pub(super) Rc<ConnState>);

impl<F: Future + 'static> hyper::rt::Executor<F> for StreamExec {
    fn execute(&self, future: F) {
        let task = tokio::task::spawn_local(future);
        self.0.streams.drives(task.abort_handle(), self.0.in_flight.get() as usize);
    }
}
