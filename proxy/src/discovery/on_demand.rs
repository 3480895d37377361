//! Names on demand, as the request path has them: a lookup without a lock for a name that is known, and a bounded
//! wait for one that is not. A name that nobody serves is remembered as such; what is kept of names is bounded by
//! [`Limits`], whatever hosts clients ask for.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::config::listener::RouteHandle;
use crate::error::Error;
use crate::route::RouteTable;

/// No DNS name is longer.
const MAX_NAME_BYTES: usize = 253;

/// What names may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Names that are kept at a time, those included that nobody serves. Default 1,024.
    pub max_names: usize,
    /// Requests that wait for a name at a time. Default 1,024.
    pub max_waiting: usize,
    /// How long a request waits. Default 5 s, in which a control plane restarts.
    pub resolve: Duration,
    /// A name without a request for so long is dropped. Default 10 min.
    pub idle: Duration,
    /// The same for a name that nobody serves. Default 30 s.
    pub absent: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_names: 1_024,
            max_waiting: 1_024,
            resolve: Duration::from_secs(5),
            idle: Duration::from_secs(600),
            absent: Duration::from_secs(30),
        }
    }
}

/// The names of a sidecar, shared by its workers.
#[derive(Debug)]
pub struct OnDemand {
    known: ArcSwap<HashMap<Arc<str>, Arc<Name>>>,
    asks: mpsc::Sender<Ask>,
    waiting: AtomicUsize,
    epoch: Instant,
    limits: Limits,
}

/// A name whose state is known.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) state: State,
    /// The second of the last request, on [`OnDemand`]'s clock.
    used: AtomicU32,
}

/// What is known of a name.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// It has routes.
    Routes(Arc<RouteHandle>),
    /// It has none, and this is why.
    None(Error),
}

/// A request that waits for a name.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) name: Arc<str>,
    pub(super) reply: oneshot::Sender<Result<Arc<RouteTable>, Error>>,
}

impl OnDemand {
    pub(super) fn new(limits: Limits) -> (Arc<Self>, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(limits.max_waiting.max(1));
        let (known, waiting) = (ArcSwap::default(), AtomicUsize::new(0));
        (Arc::new(Self { known, asks, waiting, epoch: Instant::now(), limits }), asked)
    }

    /// The routes of `host`, as a request has it. Waits where the name is new.
    ///
    /// # Errors
    /// When nobody serves the name, when the answer takes too long, or when there are too many names or requests
    /// that wait.
    pub(crate) async fn table(&self, host: &str, now: Instant) -> Result<Arc<RouteTable>, Error> {
        let name = canonical(host).ok_or(Error::UnknownName)?;
        if let Some(found) = self.known.load().get(&*name) {
            found.use_at(self.second(now));
            match &found.state {
                State::Routes(handle) => {
                    if let Some(table) = handle.table.load_full() {
                        return Ok(table);
                    }
                }
                State::None(error) => return Err(*error),
            }
        }
        // Boxed, so that a request for a known name carries none of it.
        Box::pin(self.wait((*name).into())).await
    }

    async fn wait(&self, name: Arc<str>) -> Result<Arc<RouteTable>, Error> {
        let _waiting = Waiting::begin(self)?;
        let (reply, answer) = oneshot::channel();
        self.asks.try_send(Ask { name, reply }).map_err(|_| Error::TooManyNames)?;
        match tokio::time::timeout(self.limits.resolve, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(Error::NameTimeout),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// The second that `now` is in.
    pub(super) fn second(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.epoch).as_secs()).unwrap_or(u32::MAX)
    }

    pub(super) fn put(&self, known: HashMap<Arc<str>, Arc<Name>>) {
        self.known.store(Arc::new(known));
    }
}

impl Name {
    pub(super) fn new(state: State, second: u32) -> Arc<Self> {
        Arc::new(Self { state, used: AtomicU32::new(second) })
    }

    pub(super) fn used(&self) -> u32 {
        self.used.load(Relaxed)
    }

    /// Written once a second at most, so that workers do not fight for the cache line.
    fn use_at(&self, second: u32) {
        if self.used.load(Relaxed) != second {
            self.used.store(second, Relaxed);
        }
    }
}

/// One of the requests that wait.
struct Waiting<'d>(&'d OnDemand);

impl<'d> Waiting<'d> {
    fn begin(names: &'d OnDemand) -> Result<Self, Error> {
        let waiting = Self(names);
        // Counted first, so that dropping it always takes one off.
        if names.waiting.fetch_add(1, Relaxed) >= names.limits.max_waiting {
            return Err(Error::TooManyNames);
        }
        Ok(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// A host as a name to subscribe to: without port and final dot, in lower case. `None` is no name: an address,
/// or longer than any.
fn canonical(host: &str) -> Option<Cow<'_, str>> {
    if host.starts_with('[') {
        return None;
    }
    let name = host.split_once(':').map_or(host, |(name, _)| name);
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.parse::<std::net::Ipv4Addr>().is_ok() {
        return None;
    }
    Some(if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_without_port_dot_and_case() {
        for (host, name) in [
            ("orders", Some("orders")),
            ("Orders:8080", Some("orders")),
            ("orders.default.svc.cluster.local.", Some("orders.default.svc.cluster.local")),
            ("10.0.0.1:80", None),
            ("[::1]:80", None),
            ("", None),
        ] {
            assert_eq!(canonical(host).as_deref(), name, "{host}");
        }
        assert_eq!(canonical(&"a".repeat(254)), None);
    }
}
