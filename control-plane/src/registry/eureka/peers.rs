//! What clients tell this registry goes on to its peers, in Eureka's own words (`peerreplication/batch`): the other
//! replicas, or Eureka servers that some clients still register with. Each then knows all instances, and a client may
//! speak with any. What a peer tells is not told on.
//!
//! At the start the first peer that answers is copied. After that nothing has to be agreed on: a peer that does not
//! know an instance says so at its next renewal, and is told all of it; where both know it, the newer word of the
//! client counts.

mod queue;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Response, StatusCode, Url};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub(super) use self::queue::Deed;
use self::queue::Queue;
use super::refusal::Refusal;
use super::state::Key;
use super::wire::incoming::Incoming;
use super::wire::json;
use super::wire::telling::{self, Telling};
use super::{Eureka, now};

/// Says which replica an answer is from, so that one that finds itself among its peers sees it.
pub(super) const REPLICA: &str = "x-pontoon-replica";
/// For one call: longer than a pause of a JVM, shorter than a lease.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at what the peers' names resolve to.
const LOOK: Duration = Duration::from_secs(5);
/// What happens within it is told at once.
const GATHER: Duration = Duration::from_millis(20);
/// After a failure; doubled with each more.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(15);
/// In one batch, as Netflix' server has it; and bytes, of the 4 MiB that are taken.
const BATCH: usize = 250;
const BATCH_BYTES: usize = 1 << 20;
/// An answer to a batch holds our own instances at most.
const REPLY_BYTES: usize = 16 << 20;
/// A whole registry.
const COPY_BYTES: usize = 256 << 20;
/// An instance that has not renewed for longer is not vouched for: two of the usual intervals.
const ALIVE_MS: u64 = 60_000;
/// A start waits so long for a peer's copy.
pub const JOIN: Duration = Duration::from_secs(10);

/// A peer, or a name of several: `http://HOST:PORT/eureka/`. Each address of a name is a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerUrl(Url);

impl std::str::FromStr for PeerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<PeerUrl, String> {
        let wrong =
            || format!("{text:?} is not a Eureka server's URL; it looks like http://HOST:8761/eureka/");
        let mut url = Url::parse(text).map_err(|_| wrong())?;
        if url.scheme() != "http" || !url.has_host() {
            return Err(wrong());
        }
        url.path_segments_mut().map_err(|()| wrong())?.pop_if_empty().push("");
        Ok(PeerUrl(url))
    }
}

/// All peers that are known now.
#[derive(Debug)]
pub(super) struct Peers {
    /// This replica's, and nobody else's.
    pub(super) replica: HeaderValue,
    known: Mutex<HashMap<Url, Arc<Peer>>>,
    joined: watch::Sender<bool>,
}

#[derive(Debug)]
struct Peer {
    url: Url,
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    #[error("answers {0}")]
    Status(StatusCode),
    #[error("its answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("its answer cannot be read: {0}")]
    Unreadable(String),
}

/// What a call came to, beside failure.
enum Heard<T> {
    Answer(T),
    /// The peer is this replica.
    Itself,
}

impl Default for Peers {
    fn default() -> Peers {
        Peers {
            // A number is always one.
            replica: HeaderValue::from(fastrand::u64(..)),
            known: Mutex::default(),
            joined: watch::Sender::new(true),
        }
    }
}

impl Peers {
    fn known(&self) -> MutexGuard<'_, HashMap<Url, Arc<Peer>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Instances of which some peer has still to be told something.
    pub(super) fn untold(&self) -> usize {
        self.known().values().map(|peer| peer.queue().len()).sum()
    }

    /// Peers.
    pub(super) fn count(&self) -> usize {
        self.known().len()
    }
}

impl Peer {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, key: Key, deed: Deed) {
        self.queue().push(key, deed);
        self.filled.notify_one();
    }
}

impl Eureka {
    /// A client did this here.
    pub(super) fn tell(&self, app: &str, id: &str, deed: Deed) {
        let peers = self.shared.peers.known();
        if peers.is_empty() {
            return;
        }
        let key: Key = (app.to_uppercase().into(), id.into());
        peers.values().for_each(|peer| peer.push(key.clone(), deed));
    }

    /// Waits until a peer has been copied, or there is none; at most for [`JOIN`].
    pub async fn joined(&self) {
        let joined = &self.shared.peers.joined;
        let mut changes = joined.subscribe();
        let waiting = changes.wait_for(|joined| *joined);
        if tokio::time::timeout(JOIN, waiting).await.is_err() {
            tracing::warn!("no Eureka peer has answered; what only they know comes with its next renewal");
            joined.send_replace(true);
        }
    }

    pub(super) fn has_joined(&self) -> bool {
        *self.shared.peers.joined.borrow()
    }

    /// Finds the peers, copies the first that answers, and tells all of them what happens here, until `stop`.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn with_peers(
        &self,
        seeds: Vec<PeerUrl>,
        stop: CancellationToken,
    ) -> Result<impl Future<Output = ()> + use<>, reqwest::Error> {
        let http = reqwest::Client::builder().timeout(CALL_TIMEOUT).build()?;
        let eureka = self.clone();
        self.shared.peers.joined.send_replace(seeds.is_empty());
        Ok(async move {
            tokio::select! {
                () = stop.cancelled() => (),
                () = follow(&eureka, &http, &seeds) => (),
            }
        })
    }

    /// Takes what a peer has; gives how many instances.
    async fn copy(&self, http: &reqwest::Client, peer: &Url) -> Result<Heard<usize>, CallError> {
        let request = http.get(under(peer, "apps/")).header(ACCEPT, "application/json");
        let response = request.header(REPLICA, self.shared.peers.replica.clone()).send().await?;
        if self.is_own(&response) {
            return Ok(Heard::Itself);
        }
        let body = body(response, COPY_BYTES).await?;
        let all = json::read_applications(&body).map_err(|e| CallError::Unreadable(e.to_string()))?;
        let taken = all.into_iter().map(|one| self.take_over(one));
        Ok(Heard::Answer(taken.filter(Result::is_ok).count()))
    }

    fn take_over(&self, theirs: Incoming) -> Result<(), Refusal> {
        let theirs = theirs.check()?;
        self.change(|registry, now| registry.register(theirs, true, now)).map(drop)
    }

    /// Tells a new peer of all that lives here; it asks for what it does not know.
    fn introduce(&self, peer: &Peer) {
        let since = now().unix_ms.saturating_sub(ALIVE_MS);
        let listed = self.registry().full().applications.into_iter().flat_map(|of| of.instances);
        for one in listed.filter(|one| one.last_renewal_ms >= since) {
            peer.push((one.info.app.clone(), one.info.id.clone()), Deed::Renew);
        }
    }

    fn is_own(&self, response: &Response) -> bool {
        response.headers().get(REPLICA) == Some(&self.shared.peers.replica)
    }

    /// Tells a peer of these; what it does not know of is put into its queue once more.
    async fn tell_all(
        &self,
        http: &reqwest::Client,
        peer: &Peer,
        deeds: &[(Key, Deed)],
    ) -> Result<Heard<()>, CallError> {
        let tellings: Vec<Telling> = {
            let registry = self.registry();
            let telling = |((app, id), deed): &(Key, Deed)| {
                Telling::new(app.clone(), id.clone(), *deed, registry.instance(app, id))
            };
            deeds.iter().filter_map(telling).collect()
        };
        let mut rest = &tellings[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|telling| {
                bytes += telling.size_bytes();
                bytes <= BATCH_BYTES
            });
            // One alone is always sent: it was taken as a registration once.
            let (batch, left) = rest.split_at(fits.count().max(1));
            rest = left;
            let body = telling::batch(batch).map_err(|e| CallError::Unreadable(e.to_string()))?;
            let request = http.post(under(&peer.url, "peerreplication/batch/"));
            let response = request.header(CONTENT_TYPE, "application/json").body(body).send().await?;
            if self.is_own(&response) {
                return Ok(Heard::Itself);
            }
            self.hear(peer, batch, &self::body(response, REPLY_BYTES).await?)?;
        }
        Ok(Heard::Answer(()))
    }

    fn hear(&self, peer: &Peer, batch: &[Telling], body: &[u8]) -> Result<(), CallError> {
        let replies = telling::replies(body).map_err(|e| CallError::Unreadable(e.to_string()))?;
        for (telling, reply) in batch.iter().zip(replies) {
            self.counters().told();
            match (reply.status_code, telling.deed) {
                // It does not know the instance, or not as it is now.
                (404, Deed::Renew) => peer.push((telling.app.clone(), telling.id.clone()), Deed::Register),
                (409, _) => {
                    if let Some(theirs) = reply.theirs()
                        && let Err(refusal) = self.take_over(theirs)
                    {
                        tracing::debug!(peer = %peer.url, %refusal, "a peer's newer instance cannot be taken");
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Peers come and go with the addresses of their names.
async fn follow(eureka: &Eureka, http: &reqwest::Client, seeds: &[PeerUrl]) {
    let peers = &eureka.shared.peers;
    let mut speaking: HashMap<Url, AbortOnDropHandle<()>> = HashMap::new();
    let mut itself: HashSet<Url> = HashSet::new();
    let mut last: Vec<Vec<Url>> = vec![Vec::new(); seeds.len()];
    loop {
        let found = join_all(seeds.iter().map(resolve)).await;
        for (last, found) in last.iter_mut().zip(found) {
            match found {
                Ok(found) => *last = found,
                Err(error) => {
                    tracing::warn!(%error, "a peer's name cannot be looked up; its last addresses stay")
                }
            }
        }
        let now: HashSet<Url> = last.iter().flatten().cloned().collect();
        // Who speaks ends by itself only where it finds itself.
        itself.extend(speaking.iter().filter(|(_, task)| task.is_finished()).map(|(url, _)| url.clone()));
        itself.retain(|url| now.contains(url));
        speaking.retain(|url, _| now.contains(url) && !itself.contains(url));
        peers.known().retain(|url, _| now.contains(url) && !itself.contains(url));
        for url in now.iter().filter(|url| !itself.contains(*url)) {
            if speaking.contains_key(url) {
                continue;
            }
            let queue = Mutex::default();
            let peer = Arc::new(Peer { url: url.clone(), queue, filled: Notify::new() });
            peers.known().insert(url.clone(), Arc::clone(&peer));
            eureka.introduce(&peer);
            let task = tokio::spawn(speak(eureka.clone(), http.clone(), peer));
            speaking.insert(url.clone(), AbortOnDropHandle::new(task));
        }
        if !eureka.has_joined() {
            join(eureka, http, &mut itself).await;
            peers.known().retain(|url, _| !itself.contains(url));
            speaking.retain(|url, _| !itself.contains(url));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Copies the first peer that answers. With no others than itself there is nothing to wait for.
async fn join(eureka: &Eureka, http: &reqwest::Client, itself: &mut HashSet<Url>) {
    let peers = &eureka.shared.peers;
    let mut copies = JoinSet::new();
    for url in peers.known().keys().cloned() {
        let (eureka, http) = (eureka.clone(), http.clone());
        copies.spawn(async move { (eureka.copy(&http, &url).await, url) });
    }
    let mut failed = false;
    while let Some(Ok((copied, url))) = copies.join_next().await {
        match copied {
            Ok(Heard::Answer(instances)) => {
                tracing::info!(peer = %url, instances, "a Eureka peer is copied");
                peers.joined.send_replace(true);
                return;
            }
            Ok(Heard::Itself) => drop(itself.insert(url)),
            Err(error) => {
                failed = true;
                tracing::info!(peer = %url, %error, "a Eureka peer cannot be copied");
            }
        }
    }
    if !failed {
        peers.joined.send_replace(true);
    }
}

async fn resolve(seed: &PeerUrl) -> std::io::Result<Vec<Url>> {
    let PeerUrl(url) = seed;
    let (Some(name), Some(port)) = (url.domain(), url.port_or_known_default()) else {
        return Ok(vec![url.clone()]);
    };
    let addresses = tokio::net::lookup_host((name, port)).await?;
    let with = |address: SocketAddr| {
        let mut url = url.clone();
        url.set_ip_host(address.ip()).ok()?;
        Some(url)
    };
    Ok(addresses.filter_map(with).collect())
}

/// Tells one peer what there is to tell, for as long as it is one.
async fn speak(eureka: Eureka, http: reqwest::Client, peer: Arc<Peer>) {
    let mut failures = 0_u32;
    loop {
        peer.filled.notified().await;
        tokio::time::sleep(GATHER).await;
        while !peer.queue().is_empty() {
            let deeds = peer.queue().take(BATCH);
            match eureka.tell_all(&http, &peer, &deeds).await {
                Ok(Heard::Answer(())) => {
                    if failures > 0 {
                        tracing::info!(peer = %peer.url, "a Eureka peer is back");
                    }
                    failures = 0;
                }
                Ok(Heard::Itself) => return,
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(peer = %peer.url, %error, "a Eureka peer cannot be told; it is tried again");
                    }
                    peer.queue().give_back(deeds);
                    let wait = RETRY.saturating_mul(1 << failures.min(4)).min(LONGEST_RETRY);
                    failures = failures.saturating_add(1);
                    // Not all replicas at once.
                    tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                }
            }
        }
    }
}

fn under(peer: &Url, path: &str) -> Url {
    let mut url = peer.clone();
    url.set_path(&format!("{}{path}", peer.path()));
    url
}

async fn body(mut response: Response, most: usize) -> Result<Vec<u8>, CallError> {
    if response.status() != StatusCode::OK {
        return Err(CallError::Status(response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > most {
            return Err(CallError::TooLong(most));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
