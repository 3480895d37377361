//! Endpoints that no resource names: where intercepted connections were going to. They are made when they are asked
//! for and forgotten when nobody has for a while, so that connections to them are pooled like others.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::cluster::{Cluster, Endpoint, EndpointHealth};

/// Where an intercepted connection was going to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Original {
    pub(crate) destination: SocketAddr,
    /// The client, where its address is to be kept.
    pub(crate) source: Option<IpAddr>,
}

/// Those that are kept, of one worker. One above it serves its own connection alone.
const MOST: usize = 4_096;
/// Without a connection for so long, one is forgotten.
const IDLE: Duration = Duration::from_secs(60);

/// One worker's.
#[derive(Debug, Default)]
pub(crate) struct Originals {
    /// By the cluster's address, which the weak reference keeps from being given to another.
    kept: RefCell<HashMap<(usize, Original), Kept>>,
}

#[derive(Debug)]
struct Kept {
    cluster: Weak<Cluster>,
    endpoint: Arc<Endpoint>,
    used: Instant,
}

impl Originals {
    pub(crate) fn endpoint(&self, cluster: &Arc<Cluster>, original: Original, now: Instant) -> Arc<Endpoint> {
        let mut kept = self.kept.borrow_mut();
        let key = (Arc::as_ptr(cluster) as usize, original);
        if let Some(found) = kept.get_mut(&key) {
            found.used = now;
            return Arc::clone(&found.endpoint);
        }
        let endpoint = Arc::new(Endpoint {
            source: original.source,
            ..Endpoint::new(original.destination, 1, EndpointHealth::Healthy)
        });
        if kept.len() < MOST {
            let of = Kept { cluster: Arc::downgrade(cluster), endpoint: Arc::clone(&endpoint), used: now };
            kept.insert(key, of);
        }
        endpoint
    }

    /// Forgets those that nobody has asked for. Connections that are open hold theirs.
    pub(crate) fn sweep(&self, now: Instant) {
        self.kept.borrow_mut().retain(|_, kept| {
            kept.cluster.strong_count() > 0 && now.saturating_duration_since(kept.used) < IDLE
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(port: u16) -> Original {
        Original { destination: SocketAddr::from(([192, 0, 2, 1], port)), source: None }
    }

    #[test]
    fn a_destination_has_one_endpoint_until_nobody_asks_for_it() {
        let (originals, now) = (Originals::default(), Instant::now());
        let clusters = ["one", "other"].map(|name| Arc::new(Cluster::named(name.into())));
        let first = originals.endpoint(&clusters[0], to(1), now);
        assert!(Arc::ptr_eq(&first, &originals.endpoint(&clusters[0], to(1), now + IDLE / 2)));
        assert!(!Arc::ptr_eq(&first, &originals.endpoint(&clusters[1], to(1), now)));
        let client = Original { source: Some([192, 0, 2, 9].into()), ..to(1) };
        assert_eq!(originals.endpoint(&clusters[0], client, now).source, client.source);
        originals.sweep(now + IDLE);
        assert!(Arc::ptr_eq(&first, &originals.endpoint(&clusters[0], to(1), now + IDLE)));
        originals.sweep(now + IDLE * 3);
        assert!(!Arc::ptr_eq(&first, &originals.endpoint(&clusters[0], to(1), now + IDLE * 3)));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (originals, now) = (Originals::default(), Instant::now());
        let cluster = Arc::new(Cluster::named("one".into()));
        for port in 1..=u16::MAX {
            originals.endpoint(&cluster, to(port), now);
        }
        assert_eq!(originals.kept.borrow().len(), MOST);
    }
}
