//! An ADS client, in delta or in state of the world. It stays connected to one server, resubscribes with what it
//! already has after a break, and acknowledges or refuses what its [`Handler`] makes of each response. Nothing that a
//! server does ends it. Bookkeeping is in `session`, without I/O; `wire` feeds it.

mod connection;
mod offer;
mod session;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Uri;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::pb::envoy::config::core::v3::Node;
use crate::resource::{Resource, ResourceType};
use crate::variant::Variant;

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
    /// Which variant of the protocol is spoken. Default delta.
    pub variant: Variant,
    /// What the connection is marked with (`SO_MARK`); needs CAP_NET_ADMIN or CAP_NET_RAW. Default none.
    pub mark: Option<u32>,
    /// For one attempt to connect. Default 5 s.
    pub connect_timeout: Duration,
    /// The first wait after a break, doubled each time up to `max_backoff`; each wait is random between
    /// nothing and that. Default 200 ms.
    pub base_backoff: Duration,
    /// Default 10 s.
    pub max_backoff: Duration,
    /// Pings on a quiet connection; a server that does not answer one for as long again is left. Doubled each time
    /// that a server says that it is too often. Default 10 s.
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
            variant: Variant::Delta,
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

/// Of one type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    wildcard: bool,
    /// Each with the turn at which it was taken up: one that is dropped and taken up again is asked for anew. Thousands
    /// are in memory once: what is wanted, held and told is mostly the same.
    names: Arc<BTreeMap<Arc<str>, u64>>,
    turn: u64,
}

impl Wanted {
    fn takes(&self, name: &str) -> bool {
        self.wildcard || self.names.contains_key(name)
    }

    fn is_empty(&self) -> bool {
        !self.wildcard && self.names.is_empty()
    }
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
        self.update(ty, |wanted| !std::mem::replace(&mut wanted.wildcard, true));
    }

    /// Subscribes to exactly these names of a type.
    pub fn set(&self, ty: ResourceType, names: BTreeSet<Arc<str>>) {
        self.update(ty, |wanted| {
            if names.iter().eq(wanted.names.keys()) {
                return false;
            }
            wanted.turn += 1;
            let since = |name: &Arc<str>| wanted.names.get(name).copied().unwrap_or(wanted.turn);
            let names: BTreeMap<_, _> = names
                .into_iter()
                .map(|name| {
                    let since = since(&name);
                    (name, since)
                })
                .collect();
            wanted.names = Arc::new(names);
            true
        });
    }

    /// The names of a type that are subscribed to one by one.
    pub fn names(&self, ty: ResourceType) -> BTreeSet<Arc<str>> {
        let all = self.wanted.borrow();
        all.get(&ty).map(|wanted| wanted.names.keys().cloned().collect()).unwrap_or_default()
    }

    /// Ends the stream as one does who will not come back; [`run`] returns when the server has taken note.
    pub fn leave(&self) {
        self.leaving.send_replace(true);
    }

    async fn left(&self) {
        // The sender is in `self`.
        let _ = self.leaving.subscribe().wait_for(|leaving| *leaving).await;
    }

    /// `change` says whether it was one.
    fn update(&self, ty: ResourceType, change: impl FnOnce(&mut Wanted) -> bool) {
        self.wanted.send_if_modified(|all| change(all.entry(ty).or_default()));
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
    /// When something was refused last, and why.
    pub last_refusal: Option<(SystemTime, String)>,
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
            last_refusal: None,
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
    let mut keepalive = config.keepalive;
    let mut known = session::Known::default();
    let mut failures: u32 = 0;
    loop {
        let (started, updates_before) = (Instant::now(), status.borrow().updates);
        let words = connection::LastWords::default();
        let stream = wire::Link { config: &config, keepalive, subscriptions: &subscriptions, words: &words };
        let mut reason = match config.variant {
            Variant::Sotw => stream.run::<wire::Sotw>(&mut handler, &mut known, &status).await,
            Variant::Delta => stream.run::<wire::Delta>(&mut handler, &mut known, &status).await,
        };
        let unanswered = (keepalive + config.keepalive).mul_f64(MOST);
        if let Some(silent) = words.silent_for().filter(|silent| *silent >= unanswered) {
            let seconds = silent.as_secs_f64();
            reason = format!("the server has said nothing for {seconds:.1} s, nor answered a ping: {reason}");
        }
        if words.are_of_pings() {
            // As gRPC's clients do it (gRFC A8).
            keepalive = keepalive.saturating_mul(2).min(MAX_KEEPALIVE);
            tracing::info!(?keepalive, "the server wants fewer pings");
        }
        status.send_modify(|s| {
            if s.connected {
                s.since = SystemTime::now();
            }
            s.connected = false;
            s.last_error = Some(reason.clone());
        });
        if *subscriptions.leaving.borrow() {
            return;
        }
        // A stream that brings one response and ends, again and again, is no healthy one.
        let healthy = started.elapsed() >= config.max_backoff && status.borrow().updates > updates_before;
        failures = if healthy { 0 } else { failures.saturating_add(1) };
        let wait = backoff(&config, failures, fastrand::f64());
        tracing::warn!(server = %config.server, reason, ?wait, "no xDS stream; serving what is in force");
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = subscriptions.left() => return,
        }
    }
}

/// Of a ping's turn and its answer's: timers are not exact.
const MOST: f64 = 0.9;
/// grpc-go by default takes a ping every five minutes.
const MAX_KEEPALIVE: Duration = Duration::from_secs(600);

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
