//! A connection of its own to some endpoint of a cluster, for what is not a request: where one endpoint cannot be
//! had, another is tried.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::time::Instant;

use super::cluster::{Cluster, ClusterSettings, Endpoint, EndpointSource};
use super::connect::{self, Stream};
use super::original::Original;
use crate::error::Error;
use crate::proxy_protocol::Addresses;
use crate::resilience::breakers::Held;
use crate::worker::local::{ClusterLocal, Worker};

/// An open connection.
pub(crate) struct Opened {
    pub(crate) stream: Stream,
    /// Counts as in flight at the endpoint until it is dropped.
    pub(crate) endpoint: InUse,
}

/// An endpoint that has a connection of ours, and what counts it against the cluster's circuit breakers.
pub(crate) struct InUse(Arc<Endpoint>, #[allow(dead_code, reason = "for its end")] Option<Held>);

impl InUse {
    fn new(endpoint: &Arc<Endpoint>, held: Option<Held>) -> Self {
        endpoint.active.fetch_add(1, Relaxed);
        endpoint.requests.fetch_add(1, Relaxed);
        Self(Arc::clone(endpoint), held)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// What is connected to, and how often it is tried.
pub(crate) struct Target<'a> {
    pub(crate) cluster: &'a Arc<Cluster>,
    pub(crate) local: &'a ClusterLocal,
    pub(crate) settings: &'a ClusterSettings,
    pub(crate) tries: u32,
    /// Where the connection was going to, where it was intercepted.
    pub(crate) original: Option<Original>,
    /// Told to an endpoint that wants the PROXY protocol.
    pub(crate) client: Option<Addresses>,
}

/// An endpoint for the next try: one of the cluster's, or where the connection was going to.
pub(crate) fn pick(
    worker: &Worker,
    (cluster, local, settings): (&Arc<Cluster>, &ClusterLocal, &ClusterSettings),
    original: impl FnOnce() -> Option<Arc<Endpoint>>,
    now: Instant,
    tried: &[Arc<Endpoint>],
) -> Result<Arc<Endpoint>, Error> {
    if settings.source == EndpointSource::OriginalDst {
        // Whoever came to our own port would be sent back to it.
        return original().ok_or(Error::NotIntercepted);
    }
    let now_ms = worker.since_epoch_ms(now);
    local.pick(cluster, settings.policy, now_ms, tried).ok_or(Error::NoHealthyUpstream)
}

/// Opens a connection. `note` is told each endpoint before it is tried.
pub(crate) async fn open(
    worker: &Worker,
    target: Target<'_>,
    mut note: impl FnMut(&Arc<Endpoint>),
) -> Result<Opened, Error> {
    let Target { cluster, local, settings, tries, original, client } = target;
    let mut tried: Vec<Arc<Endpoint>> = Vec::new();
    let mut last = Error::NoHealthyUpstream;
    for number in 0..tries.max(1) {
        let original = || original.map(Original::endpoint);
        let endpoint = pick(worker, (cluster, local, settings), original, Instant::now(), &tried)?;
        let breaker = settings.breakers.of(false);
        let held =
            breaker.map(|breaker| breaker.connection(false).ok_or(Error::UpstreamOverflow)).transpose()?;
        note(&endpoint);
        if number > 0 {
            local.cells.retries.add(1);
        }
        let in_use = InUse::new(&endpoint, held);
        match connect::stream(&worker.dialer, &endpoint, settings, client).await {
            Ok(stream) => {
                endpoint.outlier.connected();
                local.cells.connects.add(1);
                return Ok(Opened { stream, endpoint: in_use });
            }
            Err(error) => {
                local.cells.connect_failures.add(1);
                if error.is_connect() {
                    endpoint.outlier.connect_failed(worker.since_epoch_ms(Instant::now()));
                }
                last = error;
            }
        }
        tried.push(endpoint);
    }
    Err(last)
}
