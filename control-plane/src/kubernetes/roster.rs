//! Which proxies the replica that leads next has to hear of: those that follow routes here are written on the Lease with
//! each renewal and when they change, and read from it by the one that takes it, before it leads. Until they have come to
//! it, or have stayed away for too long, no change is in force that they may not have. Gateways' pods that are ready are
//! known by the API server, too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use pontoon_xds::ResourceType;
use pontoon_xds::server::{Client, Server};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::gateways::Clients;
use crate::compile::is_gateway;

/// The annotation of the Lease: JSON (view to nodes), gzip, base64.
pub const PROXIES: &str = "pontoon.dev/proxies";
/// An object's annotations together may have 256 KiB.
const MAX_BYTES: usize = 128 * 1024;
/// What it may say when it is unpacked: who may write the Lease must not fill our memory.
const MAX_UNPACKED: u64 = 16 * 1024 * 1024;

/// Between two writes: proxies that come together are written together. One that comes alone is written at once, so that
/// a leader which is killed then has told of it.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two looks, and so many times what a look takes: with thousands of proxies acknowledgements come faster than
/// who sent them could be listed.
const LOOK: Duration = Duration::from_millis(10);
const RARELY: u32 = 20;

/// Who follows routes, and who is expected to.
#[derive(Debug, Clone)]
pub struct Roster {
    /// Where proxies come to.
    pub server: Server,
    /// Gateways' pods, where we make them.
    pub pods: Option<watch::Receiver<Clients>>,
}

impl Roster {
    /// What is to be written on the Lease.
    pub fn written(&self) -> String {
        let all = self.server.following(ResourceType::Route);
        let packed = pack(all.iter());
        if packed.len() <= MAX_BYTES {
            return packed;
        }
        let gateways = pack(all.iter().filter(|client| is_gateway(&client.view)));
        let (proxies, fits) = (all.len(), gateways.len() <= MAX_BYTES);
        tracing::warn!(
            proxies,
            "the Lease has no room for all proxies: whoever leads next may call a change in force before sidecars have it"
        );
        if fits { gateways } else { String::new() }
    }

    /// Waits until another text than `last` is to be written.
    pub async fn changed(&self, last: &str) {
        let mut changes = self.server.changes();
        tokio::time::sleep(SETTLE).await;
        loop {
            let begun = Instant::now();
            if self.written() != last {
                return;
            }
            let pause = (begun.elapsed() * RARELY).max(LOOK);
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Expects those who followed routes at the replica that led before, by what it has written, and Gateways' pods.
    pub fn take_over(&self, written: Option<&str>) {
        let mut expected = match written.map(unpack) {
            None => BTreeSet::new(),
            Some(Ok(clients)) => clients,
            Some(Err(error)) => {
                tracing::warn!(
                    %error,
                    "the Lease's annotation {PROXIES} cannot be read: changes do not wait for proxies that have not \
                     come yet"
                );
                BTreeSet::new()
            }
        };
        if let Some(pods) = &self.pods {
            expected
                .extend(pods.borrow().iter().filter(|(_, is_ready)| **is_ready).map(|(pod, _)| pod.clone()));
        }
        tracing::info!(proxies = expected.len(), "these are expected from the replica that led before");
        self.server.expect(expected);
    }

    /// Until `stop`: a Gateway's pod that has gone is not expected any more.
    pub async fn forget_pods(self, stop: CancellationToken) {
        let Some(mut pods) = self.pods else { return };
        let mut before = pods.borrow_and_update().clone();
        while let Some(Ok(())) = stop.run_until_cancelled(pods.changed()).await {
            let now = pods.borrow_and_update().clone();
            let gone: BTreeSet<Client> =
                before.keys().filter(|pod| !now.contains_key(*pod)).cloned().collect();
            if !gone.is_empty() {
                self.server.forget(&gone);
            }
            before = now;
        }
    }
}

fn pack<'c>(clients: impl Iterator<Item = &'c Client>) -> String {
    let mut views: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Client { view, node } in clients {
        views.entry(view).or_default().push(node);
    }
    let packed = || -> std::io::Result<Vec<u8>> {
        let mut packer = GzEncoder::new(Vec::new(), Compression::default());
        packer.write_all(&serde_json::to_vec(&views)?)?;
        packer.finish()
    };
    // Neither texts nor memory can refuse.
    packed().map(|bytes| STANDARD.encode(bytes)).unwrap_or_default()
}

fn unpack(text: &str) -> Result<BTreeSet<Client>, String> {
    if text.is_empty() {
        return Ok(BTreeSet::new());
    }
    let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
    let mut json = Vec::new();
    let read = GzDecoder::new(bytes.as_slice()).take(MAX_UNPACKED).read_to_end(&mut json);
    read.map_err(|error| error.to_string())?;
    let views: BTreeMap<String, Vec<String>> =
        serde_json::from_slice(&json).map_err(|error| error.to_string())?;
    let clients = views
        .into_iter()
        .flat_map(|(view, nodes)| nodes.into_iter().map(move |node| Client { view: view.clone(), node }));
    Ok(clients.collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pontoon_xds::server::Options;

    use super::*;

    fn client(view: &str, node: &str) -> Client {
        Client { view: view.into(), node: node.into() }
    }

    fn roster(pods: &[(&Client, bool)]) -> (Roster, watch::Sender<Clients>) {
        let pods = pods.iter().map(|(pod, is_ready)| ((*pod).clone(), *is_ready)).collect();
        let (sender, pods) = watch::channel(Arc::new(pods));
        let server = Server::new(Options::new(|node| Ok(node.cluster.clone())));
        (Roster { server, pods: Some(pods) }, sender)
    }

    #[test]
    fn the_next_leader_expects_whom_the_last_one_knew_and_pods_that_are_ready() {
        let (sidecar, edge) = (client("shop", "shop/orders-1"), client("shop/edge", "shop/edge-1"));
        let (last, _pods) = roster(&[]);
        last.server.expect([sidecar.clone(), edge.clone()]);
        let (new, starting) = (client("shop/edge", "shop/edge-2"), client("shop/edge", "shop/edge-3"));
        let (next, _pods) = roster(&[(&new, true), (&starting, false)]);
        next.take_over(Some(&last.written()));
        assert_eq!(next.server.known(), BTreeSet::from([sidecar, edge, new]));
        let away = |view: &str| next.server.acknowledged(view, ResourceType::Route, "any", "1").away;
        assert_eq!((away("shop"), away("shop/edge").len()), (vec!["shop/orders-1".to_owned()], 2));
        assert_eq!(unpack(&next.written()).unwrap(), next.server.known(), "and it hands them on");
    }

    #[test]
    fn what_cannot_be_read_keeps_nobody_from_leading() {
        for text in ["", "?", "aGVsbG8=", &STANDARD.encode([0x1f, 0x8b, 8])] {
            let (next, _pods) = roster(&[]);
            next.take_over(Some(text));
            assert!(next.server.known().is_empty(), "{text}");
        }
        // Far more than it looks like.
        let mut packer = GzEncoder::new(Vec::new(), Compression::best());
        packer.write_all(&vec![b' '; 64 * 1024 * 1024]).unwrap();
        assert!(unpack(&STANDARD.encode(packer.finish().unwrap())).is_err());
    }

    #[test]
    fn the_lease_has_room_for_thousands() {
        let (roster, _pods) = roster(&[]);
        let all = (0..10_000).map(|number| {
            let name = format!("shop/orders-{:x}-{number:05}", number * 2_654_435_761_u64 % 0xffff_ffff);
            client("shop", &name)
        });
        roster.server.expect(all);
        let written = roster.written();
        assert_eq!(unpack(&written).unwrap().len(), 10_000, "{} bytes", written.len());
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_alone_is_written_at_once() {
        let (roster, _pods) = roster(&[]);
        let (edge, other) = (client("shop/edge", "shop/edge-1"), client("shop/edge", "shop/edge-2"));
        roster.server.expect([edge, other.clone()]);
        let last = roster.written();
        let following = roster.clone();
        let told = tokio::spawn(async move { following.changed(&last).await });
        tokio::time::sleep(Duration::from_secs(60)).await;
        let since = Instant::now();
        roster.server.forget(&BTreeSet::from([other]));
        told.await.unwrap();
        assert!(since.elapsed() <= 2 * LOOK, "{:?}", since.elapsed());
    }

    #[tokio::test]
    async fn a_pod_that_has_gone_is_not_waited_for() {
        let (edge, other) = (client("shop/edge", "shop/edge-1"), client("shop/edge", "shop/edge-2"));
        let (roster, pods) = roster(&[(&edge, true), (&other, true)]);
        let server = roster.server.clone();
        roster.take_over(None);
        let mut members = server.members();
        members.borrow_and_update();
        let following = tokio::spawn(roster.forget_pods(CancellationToken::new()));
        tokio::task::yield_now().await;
        pods.send_replace(Arc::new(BTreeMap::from([(other.clone(), true)])));
        members.changed().await.unwrap();
        assert_eq!(server.known(), BTreeSet::from([other]));
        following.abort();
    }
}
