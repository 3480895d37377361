//! A delta ADS client. It stays connected to one server, resubscribes with what it already has after a
//! break, and acknowledges or refuses what its [`Handler`] makes of each response. Nothing that a server
//! does ends it.

mod marked;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::{Endpoint, Uri};

use crate::pb::envoy::config::core::v3::Node;
use crate::resource::{Resource, ResourceType};

/// What one response brings.
#[derive(Debug)]
pub struct Update {
    /// The type of all of it.
    pub ty: ResourceType,
    /// New and changed.
    pub changed: Vec<Resource>,
    /// Gone, or never existed.
    pub removed: Vec<Arc<str>>,
}

/// A resource that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its name.
    pub name: Arc<str>,
    /// The path of the field and what is wrong with it.
    pub reason: String,
}

/// What becomes of the resources.
pub trait Handler {
    /// Takes an update. What is returned is refused (NACK); the rest of the update is in force.
    fn apply(&mut self, update: Update) -> Vec<Rejected>;
}

/// How to reach a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// `http://HOST:PORT`.
    pub server: Uri,
    /// Who we are.
    pub node: Node,
    /// What the connection is marked with (`SO_MARK`); needs CAP_NET_ADMIN or CAP_NET_RAW. Default none.
    pub mark: Option<u32>,
    /// For one attempt to connect. Default 5 s.
    pub connect_timeout: Duration,
    /// The first wait after a break, doubled each time up to `max_backoff`; each wait is random between
    /// nothing and that. Default 200 ms.
    pub base_backoff: Duration,
    /// Default 10 s.
    pub max_backoff: Duration,
    /// Pings on a quiet connection; a server that does not answer one for as long again is left. Default 10 s.
    pub keepalive: Duration,
    /// A larger response breaks the connection. Default 64 MiB.
    pub max_message_bytes: usize,
}

impl Config {
    /// The defaults for this server and node.
    pub fn new(server: Uri, node: Node) -> Config {
        Config {
            server,
            node,
            mark: None,
            connect_timeout: Duration::from_secs(5),
            base_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(10),
            keepalive: Duration::from_secs(10),
            max_message_bytes: 64 * 1024 * 1024,
        }
    }
}

/// What is subscribed to. Clones share it; it may be changed at any time, also by the [`Handler`].
#[derive(Debug, Clone)]
pub struct Subscriptions {
    wanted: Arc<watch::Sender<BTreeMap<ResourceType, Wanted>>>,
    leaving: Arc<watch::Sender<bool>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) wildcard: bool,
    pub(crate) names: BTreeSet<Arc<str>>,
}

impl Default for Subscriptions {
    fn default() -> Subscriptions {
        Subscriptions {
            wanted: Arc::new(watch::Sender::new(BTreeMap::new())),
            leaving: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl Subscriptions {
    /// Subscribes to all of a type.
    pub fn wildcard(&self, ty: ResourceType) {
        self.update(ty, |wanted| wanted.wildcard = true);
    }

    /// Subscribes to exactly these names of a type.
    pub fn set(&self, ty: ResourceType, names: BTreeSet<Arc<str>>) {
        self.update(ty, |wanted| wanted.names = names);
    }

    /// The names of a type that are subscribed to one by one.
    pub fn names(&self, ty: ResourceType) -> BTreeSet<Arc<str>> {
        self.wanted.borrow().get(&ty).map(|wanted| wanted.names.clone()).unwrap_or_default()
    }

    /// Ends the stream as one does who will not come back; [`run`] returns when the server has taken note.
    pub fn leave(&self) {
        self.leaving.send_replace(true);
    }

    async fn left(&self) {
        // The sender is in `self`.
        let _ = self.leaving.subscribe().wait_for(|leaving| *leaving).await;
    }

    fn update(&self, ty: ResourceType, change: impl FnOnce(&mut Wanted)) {
        self.wanted.send_if_modified(|all| {
            let wanted = all.entry(ty).or_default();
            let before = wanted.clone();
            change(wanted);
            *wanted != before
        });
    }
}

/// How the connection does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// A stream is open.
    pub connected: bool,
    /// Since when it has been as `connected` says.
    pub since: SystemTime,
    /// Why the last attempt or stream ended.
    pub last_error: Option<String>,
    /// Streams opened.
    pub streams: u64,
    /// Responses taken.
    pub updates: u64,
    /// Responses refused, in whole or in part.
    pub nacks: u64,
    /// When the last response came.
    pub last_update: Option<SystemTime>,
}

impl Default for Status {
    fn default() -> Status {
        Status {
            connected: false,
            since: SystemTime::now(),
            last_error: None,
            streams: 0,
            updates: 0,
            nacks: 0,
            last_update: None,
        }
    }
}

/// Stays connected until dropped or told to [leave](Subscriptions::leave); `status` follows it.
pub async fn run(
    config: Config,
    subscriptions: Subscriptions,
    mut handler: impl Handler,
    status: watch::Sender<Status>,
) {
    let endpoint = Endpoint::from(config.server.clone())
        .connect_timeout(config.connect_timeout)
        .http2_keep_alive_interval(config.keepalive)
        .keep_alive_timeout(config.keepalive)
        .keep_alive_while_idle(true)
        .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW)
        .tcp_nodelay(true);
    let mut known = session::Known::default();
    let mut failures: u32 = 0;
    loop {
        let (started, updates_before) = (Instant::now(), status.borrow().updates);
        let ended = session::run(&config, &endpoint, &subscriptions, &mut handler, &mut known, &status).await;
        status.send_modify(|s| {
            if s.connected {
                s.since = SystemTime::now();
            }
            s.connected = false;
            s.last_error = Some(ended.clone());
        });
        if *subscriptions.leaving.borrow() {
            return;
        }
        // A stream that brings one response and ends, again and again, is no healthy one.
        let healthy = started.elapsed() >= config.max_backoff && status.borrow().updates > updates_before;
        failures = if healthy { 0 } else { failures.saturating_add(1) };
        let wait = backoff(&config, failures, fastrand::f64());
        tracing::warn!(server = %config.server, reason = ended, ?wait, "no xDS stream; serving what is in force");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = subscriptions.left() => return,
        }
    }
}

/// Of a response's headers and trailers; a status message travels in there.
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// One stream, whose responses come in pieces of 2 MiB.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// Full jitter: between nothing and the doubled base, so that a thousand clients do not return at once.
fn backoff(config: &Config, failures: u32, random: f64) -> Duration {
    let ceiling = config.base_backoff.saturating_mul(1 << failures.min(16)).min(config.max_backoff);
    ceiling.mul_f64(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_limit_and_is_spread() {
        let config = Config::new(Uri::from_static("http://127.0.0.1:1"), Node::default());
        assert_eq!(backoff(&config, 0, 1.0), Duration::from_millis(200));
        assert_eq!(backoff(&config, 3, 1.0), Duration::from_millis(1600));
        assert_eq!(backoff(&config, 60, 1.0), config.max_backoff);
        assert_eq!(backoff(&config, 60, 0.0), Duration::ZERO);
    }
}
