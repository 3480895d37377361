//! What one cluster may hold at a time, over all workers (`circuit_breakers`). Nothing is counted where a cluster has no
//! thresholds. As in Envoy they are limits, not walls: workers that open at the same moment may pass one by a few.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use crate::error::Error;

/// What is held at a time.
#[derive(Debug, Default)]
pub struct Load {
    /// Open connections, idle ones too.
    pub connections: AtomicU32,
    /// Requests that wait for a connection.
    pub pending: AtomicU32,
    /// Requests that have one.
    pub requests: AtomicU32,
    /// Second and later tries.
    pub retries: AtomicU32,
}

/// How much of it there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Open connections; one for each endpoint that has none on a worker is always allowed.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests that have one.
    pub requests: u32,
    /// Second and later tries.
    pub retries: u32,
}

impl Default for Thresholds {
    /// Envoy's, for what a `Thresholds` message does not say.
    fn default() -> Self {
        Self { connections: 1024, pending: 1024, requests: 1024, retries: 3 }
    }
}

/// The breaker of one cluster and priority.
#[derive(Debug)]
pub struct Breaker {
    /// The limits in force.
    pub thresholds: Thresholds,
    /// What is held, which stays when the limits change.
    pub load: Arc<Load>,
}

/// Of each priority, where it has thresholds.
#[derive(Debug, Clone, Default)]
pub struct Breakers {
    /// Of most routes.
    pub default: Option<Arc<Breaker>>,
    /// Of routes with `priority: HIGH`.
    pub high: Option<Arc<Breaker>>,
}

impl Breakers {
    /// The one for a route's requests.
    pub fn of(&self, high: bool) -> Option<&Arc<Breaker>> {
        if high { self.high.as_ref() } else { self.default.as_ref() }
    }
}

/// Something that is held, until this is dropped.
#[derive(Debug)]
pub struct Held {
    breaker: Arc<Breaker>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Connection,
    Pending,
    Request,
    Retry,
}

impl Breaker {
    /// A connection to be made; `None`: there are enough. `first`: the endpoint has none here, so one is allowed.
    pub fn connection(self: &Arc<Self>, first: bool) -> Option<Held> {
        let most = if first { u32::MAX } else { self.thresholds.connections };
        self.hold(Kind::Connection, most)
    }

    /// A request that has to wait for a connection.
    ///
    /// # Errors
    /// Where too many do.
    pub fn pending(self: &Arc<Self>) -> Result<Held, Error> {
        self.hold(Kind::Pending, self.thresholds.pending).ok_or(Error::UpstreamOverflow)
    }

    /// A request that has a connection.
    ///
    /// # Errors
    /// Where too many have.
    pub fn request(self: &Arc<Self>) -> Result<Held, Error> {
        self.hold(Kind::Request, self.thresholds.requests).ok_or(Error::UpstreamOverflow)
    }

    /// Another try; `None`: there are enough.
    pub fn retry(self: &Arc<Self>) -> Option<Held> {
        self.hold(Kind::Retry, self.thresholds.retries)
    }

    fn hold(self: &Arc<Self>, kind: Kind, most: u32) -> Option<Held> {
        let count = kind.of(&self.load);
        count.fetch_update(Relaxed, Relaxed, |held| (held < most).then(|| held + 1)).ok()?;
        Some(Held { breaker: Arc::clone(self), kind })
    }
}

impl Kind {
    fn of(self, load: &Load) -> &AtomicU32 {
        match self {
            Kind::Connection => &load.connections,
            Kind::Pending => &load.pending,
            Kind::Request => &load.requests,
            Kind::Retry => &load.retries,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.kind.of(&self.breaker.load).fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_until_it_is_dropped() {
        let thresholds = Thresholds { connections: 1, pending: 0, requests: 2, retries: 1 };
        let load = Arc::new(Load::default());
        let breaker = Arc::new(Breaker { thresholds, load: Arc::clone(&load) });
        let (one, two) = (breaker.request().unwrap(), breaker.request().unwrap());
        assert_eq!(breaker.request().unwrap_err(), Error::UpstreamOverflow);
        drop(one);
        let three = breaker.request().unwrap();
        assert!(breaker.pending().is_err());
        let connection = breaker.connection(false).unwrap();
        assert!(breaker.connection(false).is_none());
        let first = breaker.connection(true).unwrap();
        // Other limits find what was held before.
        let tighter = Thresholds { requests: 2, ..thresholds };
        let other = Arc::new(Breaker { thresholds: tighter, load: Arc::clone(&load) });
        assert!(other.request().is_err());
        drop((two, three, connection, first));
        assert_eq!(
            [&load.requests, &load.connections, &load.pending].map(|count| count.load(Relaxed)),
            [0; 3]
        );
    }
}
