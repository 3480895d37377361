//! A worker's connections that wait for a request. Where the proxy is nearly full, those that have waited longest make
//! room for new ones: clients that hold connections and ask for nothing do not keep the others out.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::task::{Context, Waker};

/// In the order in which they began to wait.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections {
    next: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waker>>,
}

/// A connection's place, as long as it waits.
#[derive(Debug)]
pub(crate) struct Place<'i> {
    of: &'i IdleConnections,
    number: u64,
}

impl IdleConnections {
    /// One more waits.
    pub(crate) fn wait(&self) -> Place<'_> {
        let number = self.next.replace(self.next.get() + 1);
        self.waiting.borrow_mut().insert(number, Waker::noop().clone());
        Place { of: self, number }
    }

    /// Has the one that has waited longest end. `false`: none waits.
    pub(crate) fn end_one(&self) -> bool {
        let first = self.waiting.borrow_mut().pop_first();
        first.map(|(_, waker)| waker.wake()).is_some()
    }
}

impl Place<'_> {
    /// Whether the connection is to end. It is woken when it comes to that.
    pub(crate) fn is_lost(&self, cx: &Context<'_>) -> bool {
        match self.of.waiting.borrow_mut().get_mut(&self.number) {
            Some(waker) => {
                waker.clone_from(cx.waker());
                false
            }
            None => true,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.of.waiting.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_waited_longest_goes_first() {
        let idle = IdleConnections::default();
        let cx = Context::from_waker(Waker::noop());
        let [first, second, third] = [idle.wait(), idle.wait(), idle.wait()];
        drop(first);
        assert!(idle.end_one());
        assert_eq!((second.is_lost(&cx), third.is_lost(&cx)), (true, false));
        assert!(idle.end_one());
        assert!(third.is_lost(&cx) && !idle.end_one());
    }
}
