//! The streams of an HTTP/2 connection that are being answered, each with the task that does it: hyper asks an answer's
//! body for nothing while the client's window is shut, so that its bounds are looked after from here, once a tick.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::{Rc, Weak};

use slab::Slab;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::connection::ConnState;
use crate::http::exchange::Exchange;

/// Those of one connection. An exchange that ends leaves at once: what points to it and to its task keeps their memory.
#[derive(Default)]
pub(crate) struct Streams {
    all: RefCell<Slab<Stream>>,
    /// The request that the next task answers.
    next: RefCell<Option<Weak<Exchange>>>,
}

/// An exchange's place among them.
#[derive(Debug, Default)]
pub(crate) struct Seat(Cell<Option<usize>>);

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

    /// The exchange in this place has ended.
    pub(crate) fn ends(&self, seat: &Seat) {
        if let Some(seat) = seat.0.take() {
            self.all.borrow_mut().try_remove(seat);
        }
    }

    fn drives(&self, task: AbortHandle) {
        let Some(weak) = self.next.take() else { return };
        let Some(exchange) = weak.upgrade() else { return };
        let stream = Stream { exchange: weak, task, seen: 0, since: exchange.start };
        exchange.seat.0.set(Some(self.all.borrow_mut().insert(stream)));
    }

    /// Ends those that have broken their bounds.
    pub(super) fn tick(&self, now: Instant) {
        self.all.borrow_mut().retain(|_, stream| {
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
            exchange.seat.0.take();
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
        self.0.streams.drives(task.abort_handle());
    }
}
