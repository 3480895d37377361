//! Clients that do harm, meant or not, and many at once: what they cost the server, and that the others do not notice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod floods;
mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut};
use pontoon_xds::messages::Coded;
use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;
use pontoon_xds::resource::ResourceMessage;
use pontoon_xds::server::Limits;
use pontoon_xds::{ResourceType, Snapshot};
use prost::encoding::{DecodeContext, WireType};
use prost::{DecodeError, Message, Name};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use rig::*;

const MIB: usize = 1 << 20;

#[test]
fn clients_that_are_stuck_cost_little_and_hold_up_nobody() {
    alone("clients_that_are_stuck_cost_little_and_hold_up_nobody", async {
        let running = Running::start(0).await;
        let mut snapshot = world(4_000, 2_000);
        running.server.publish(VIEW, snapshot.clone());
        let healthy = Follower::start(running.port, "healthy");
        healthy.until_it_has(&snapshot, "cluster-03999").await;

        let (mut stuck, mut revision) = (Vec::new(), 0);
        // State of the world has one response for all clusters, which is written out as it is read.
        for (kind, sotw, reads, count, most) in [
            ("does not read", false, 0, 50, 2 * MIB),
            ("does not acknowledge", false, 200_000, 50, 2 * MIB),
            ("does not read, state of the world", true, 0, 50, 2 * MIB),
            ("does not acknowledge, state of the world", true, 4_000 * 2_000, 5, 2 * MIB),
        ] {
            let (before, known) = (resident_memory(), running.server.nodes().len());
            for number in 0..count {
                let mut one = Reader::open(running.port, &format!("{kind}-{number}"), sotw).await;
                one.read(reads).await;
                stuck.push(one);
            }
            eventually("they are known", || running.server.nodes().len() == known + count).await;
            for _ in 0..100 {
                revision += 1;
                snapshot.insert(&cluster("cluster-00000", revision, 2_000));
                running.server.publish(VIEW, snapshot.clone());
            }
            healthy.until_it_has(&snapshot, "cluster-00000").await;
            let cost = resident_memory().saturating_sub(before) / count;
            println!("{kind}: {} KiB", cost / 1024);
            assert!(cost < most, "{kind}: {cost} bytes each");
        }
        drop(stuck);
        eventually("they have gone", || running.server.nodes().len() == 1).await;
    });
}

#[test]
fn clients_that_refuse_everything_come_to_rest_and_hold_up_nobody() {
    alone("clients_that_refuse_everything_come_to_rest_and_hold_up_nobody", async {
        const REFUSERS: usize = 20;
        const RESOURCES: usize = 64;
        const REVISIONS: usize = 20;
        let running = Running::start(0).await;
        let mut snapshot = world(RESOURCES, 100);
        running.server.publish(VIEW, snapshot.clone());
        let healthy = Follower::start(running.port, "healthy");
        healthy.until_it_has(&snapshot, "cluster-00063").await;

        let before = resident_memory();
        let (delta, sotw): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
        let refuses = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..REFUSERS {
            let (port, delta, sotw, refuses) = (running.port, delta.clone(), sotw.clone(), refuses.clone());
            let said = "no ".repeat(MIB / 3);
            tasks.spawn(async move {
                let error = || refuses.load(Ordering::SeqCst).then_some(said.as_str());
                if number % 2 == 0 {
                    let mut peer = Peer::open(port, &format!("refuser-{number}"), CDS, &[]).await;
                    while let Some(response) = peer.response().await {
                        delta.fetch_add(1, Ordering::SeqCst);
                        peer.answer(&response, error()).await;
                    }
                } else {
                    let mut peer = SotwPeer::open(port, &format!("refuser-{number}"), CDS).await;
                    while let Some(response) = peer.response().await {
                        sotw.fetch_add(1, Ordering::SeqCst);
                        peer.answer(&response, error()).await;
                    }
                }
            });
        }
        for revision in 1..=REVISIONS {
            snapshot.insert(&cluster("cluster-00000", u32::try_from(revision).unwrap(), 100));
            running.server.publish(VIEW, snapshot.clone());
            healthy.until_it_has(&snapshot, "cluster-00000").await;
        }
        let refused = |node: &pontoon_xds::server::NodeStatus| {
            node.id == "healthy"
                || node.types.iter().any(|ty| ty.nack.as_ref().is_some_and(|nack| nack.message.len() <= 8192))
        };
        eventually("each refusal is known, and its message cut", || {
            let nodes = running.server.nodes();
            nodes.len() == REFUSERS + 1 && nodes.iter().all(refused)
        })
        .await;
        let cost = resident_memory().saturating_sub(before) / REFUSERS;
        println!("a client that refuses everything: {} KiB", cost / 1024);
        assert!(cost < 8 * MIB, "{cost} bytes for each client that refuses everything");

        // What is refused is not offered again and again: halves are tried, down to each resource, once a revision.
        let (delta, sotw) = (delta.load(Ordering::SeqCst), sotw.load(Ordering::SeqCst));
        let most = (2 * RESOURCES + 2 * REVISIONS) * REFUSERS / 2;
        assert!(delta <= most, "{delta} responses to those in delta");
        assert!(
            sotw <= 2 * (REVISIONS + 1) * REFUSERS / 2,
            "{sotw} responses to those in state of the world"
        );

        // They come to their senses.
        refuses.store(false, Ordering::SeqCst);
        for number in 0..RESOURCES {
            snapshot.insert(&cluster(&format!("cluster-{number:05}"), 1_000, 100));
        }
        running.server.publish(VIEW, snapshot.clone());
        let version = snapshot.get(CDS, "cluster-00063").unwrap().version.clone();
        eventually("all have it", || {
            let acknowledged = running.server.acknowledged(VIEW, CDS, "cluster-00063", &version);
            acknowledged.yes.len() == REFUSERS + 1
        })
        .await;
    });
}

#[test]
fn clients_that_reconnect_all_the_time_cost_little_and_hold_up_nobody() {
    alone("clients_that_reconnect_all_the_time_cost_little_and_hold_up_nobody", async {
        const TASKS: usize = 8;
        const EACH: usize = 100;
        let running = Running::start(0).await;
        let mut snapshot = world(10, 100);
        running.server.publish(VIEW, snapshot.clone());
        let healthy = Follower::start(running.port, "healthy");
        healthy.until_it_has(&snapshot, "cluster-00009").await;

        let before = resident_memory();
        let names: Arc<Vec<String>> = Arc::new((0..1_000).map(|n| format!("{n:0500}")).collect());
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..TASKS {
            let (port, names) = (running.port, names.clone());
            tasks.spawn(async move {
                for number in 0..EACH {
                    // Every other time as somebody else: such a one is expected back under each name.
                    let id = if number % 2 == 0 { number } else { 0 };
                    flash(port, &format!("restless-{task}-{id}"), EDS, &names).await;
                }
            });
        }
        let mut revision = 0;
        while tasks.try_join_next().is_none_or(|ended| ended.is_ok()) && !tasks.is_empty() {
            revision += 1;
            snapshot.insert(&cluster("cluster-00000", revision, 100));
            running.server.publish(VIEW, snapshot.clone());
            healthy.until_it_has(&snapshot, "cluster-00000").await;
        }
        eventually("the last has gone", || running.server.nodes().len() == 1).await;
        let most = resident_memory().saturating_sub(before);
        println!("{} reconnects: {} KiB; {revision} changes meanwhile", TASKS * EACH, most / 1024);
        assert!(running.server.known().len() > TASKS * EACH / 2, "they are not expected back");
        assert!(most < 128 * MIB, "{most} bytes after {} reconnects", TASKS * EACH);
    });
}

/// How often a [`Counted`] was encoded.
static ENCODED: AtomicUsize = AtomicUsize::new(0);

/// A cluster that counts.
#[derive(Debug, Clone, Default, PartialEq)]
struct Counted(Cluster);

impl Message for Counted {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        ENCODED.fetch_add(1, Ordering::SeqCst);
        self.0.encode_raw(buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        self.0.merge_field(tag, wire_type, buffer, context)
    }

    fn encoded_len(&self) -> usize {
        self.0.encoded_len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

impl Name for Counted {
    const NAME: &'static str = Cluster::NAME;
    const PACKAGE: &'static str = Cluster::PACKAGE;
}

impl Coded for Counted {
    fn decoded(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::decode(bytes)
    }

    fn encoded(&self) -> Vec<u8> {
        self.encode_to_vec()
    }
}

impl ResourceMessage for Counted {
    const TYPE: ResourceType = CDS;

    fn resource_name(&self) -> &str {
        self.0.resource_name()
    }
}

#[test]
fn a_thousand_clients_that_return_at_once_are_sent_nothing_and_nothing_is_encoded_for_them() {
    alone("a_thousand_clients_that_return_at_once_are_sent_nothing_and_nothing_is_encoded_for_them", async {
        const CLIENTS: usize = 1_000;
        const RESOURCES: usize = 200;
        let counted = |revision| {
            let mut snapshot = Snapshot::default();
            for number in 0..RESOURCES {
                snapshot.insert(&Counted(cluster(&format!("cluster-{number:05}"), revision, 200)));
            }
            snapshot
        };
        let mut running = Running::start(0).await;
        running.server.publish(VIEW, counted(1));
        let clients: Vec<Follower> =
            (0..CLIENTS).map(|n| Follower::start(running.port, &format!("client-{n}"))).collect();
        let received = || clients.iter().map(|c| c.received.load(Ordering::Relaxed)).sum::<usize>();
        eventually("all have everything", || received() == CLIENTS * RESOURCES).await;
        assert_eq!(ENCODED.load(Ordering::SeqCst), RESOURCES);

        running.kill();
        eventually("all notice", || clients.iter().all(|c| !c.status.borrow().connected)).await;
        let before = resident_memory();
        let again = Running::start(running.port).await;
        let mut snapshot = counted(1);
        again.server.publish(VIEW, snapshot.clone());
        let in_sync = |server: &pontoon_xds::server::Server| {
            let nodes = server.nodes();
            nodes.len() == CLIENTS
                && nodes.iter().all(|n| n.types.first().is_some_and(|ty| ty.acknowledged.len() == RESOURCES))
        };
        eventually("all are back", || in_sync(&again.server)).await;
        let cost = resident_memory().saturating_sub(before) / CLIENTS;
        println!("a client that returns: {} KiB", cost / 1024);
        assert!(cost < 512 * 1024, "{cost} bytes for each client that returns");
        assert_eq!(ENCODED.load(Ordering::SeqCst), 2 * RESOURCES);

        snapshot.insert(&Counted(cluster("cluster-00000", 2, 200)));
        again.server.publish(VIEW, snapshot.clone());
        eventually("all have the change", || clients.iter().all(|c| c.has(&snapshot, "cluster-00000"))).await;
        assert_eq!(received(), CLIENTS * RESOURCES + CLIENTS, "nothing but the change was sent");
        assert_eq!(ENCODED.load(Ordering::SeqCst), 2 * RESOURCES + 1);
    });
}

#[test]
fn many_clients_in_state_of_the_world_share_it_while_it_is_sent() {
    alone("many_clients_in_state_of_the_world_share_it_while_it_is_sent", async {
        const CLIENTS: usize = 200;
        const WORLD: usize = 1_000 * 4_000;
        let running = Running::start(0).await;
        let mut snapshot = world(1_000, 4_000);
        running.server.publish(VIEW, snapshot.clone());
        let healthy = Follower::start(running.port, "healthy");
        healthy.until_it_has(&snapshot, "cluster-00999").await;

        let before = resident_memory();
        let mut all = tokio::task::JoinSet::new();
        for number in 0..CLIENTS {
            let port = running.port;
            all.spawn(async move { Reader::open(port, &format!("client-{number}"), true).await });
        }
        let readers = soon(all.join_all()).await;
        eventually("all are known", || running.server.nodes().len() == 1 + CLIENTS).await;
        // All at once, and each has some of it before any has all.
        let (ahead, all_begun) = (WORLD / 10, Arc::new(tokio::sync::Barrier::new(CLIENTS)));
        let mut reading = tokio::task::JoinSet::new();
        for mut reader in readers {
            let all_begun = all_begun.clone();
            reading.spawn(async move {
                reader.read(ahead).await;
                all_begun.wait().await;
                reader.read(WORLD - ahead).await;
                reader
            });
        }
        let (mut most, mut revision) = (0, 0);
        let mut kept = Vec::new();
        while !reading.is_empty() {
            most = most.max(resident_memory());
            revision += 1;
            snapshot.insert(&cluster("cluster-00000", revision, 4_000));
            running.server.publish(VIEW, snapshot.clone());
            healthy.until_it_has(&snapshot, "cluster-00000").await;
            while let Some(read) = reading.try_join_next() {
                kept.push(read.unwrap());
            }
        }
        let cost = most.saturating_sub(before) / CLIENTS;
        println!("{} KiB each of {} KiB; {revision} changes meanwhile", cost / 1024, WORLD / 1024);
        assert!(cost < MIB, "{cost} bytes for each client, of {WORLD}");
    });
}

/// What is behind a port scan, a health check that stays, or somebody who means harm.
#[tokio::test]
async fn connections_without_a_stream_are_closed_and_there_are_only_so_many() {
    let limits = Limits { connections: 9, of_address: 5, unused: Duration::from_millis(300) };
    let running = Running::within(0, limits).await;
    running.server.publish(VIEW, world(1, 10));
    async fn ended(mut stream: TcpStream) {
        let mut left = Vec::new();
        // The end, or a reset.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut left)).await.expect("it was closed");
    }
    let healthy = Follower::start(running.port, "healthy");
    healthy.until_it_has(&world(1, 10), "cluster-00000").await;

    let silent = TcpStream::connect(("127.0.0.1", running.port)).await.unwrap();
    let mut polite = TcpStream::connect(("127.0.0.1", running.port)).await.unwrap();
    // It speaks HTTP/2, and says no more.
    polite.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    tokio::join!(ended(silent), ended(polite));

    let peers = [
        Peer::open(running.port, "one", CDS, &[]).await,
        Peer::open(running.port, "two", CDS, &[]).await,
        Peer::open(running.port, "three", CDS, &[]).await,
    ];
    eventually("all are known", || running.server.nodes().len() == 4).await;
    // The fifth of the address may say nothing for a while; the sixth is closed at once.
    let fifth = TcpStream::connect(("127.0.0.1", running.port)).await.unwrap();
    let mut fifth = tokio::spawn(ended(fifth));
    tokio::select! {
        () = ended(TcpStream::connect(("127.0.0.1", running.port)).await.unwrap()) => {}
        _ = &mut fifth => panic!("the fifth was closed first"),
    }
    fifth.await.unwrap();
    // Streams outlive that time.
    assert_eq!(running.server.nodes().len(), 4);
    // With one that goes comes room for another.
    drop(peers);
    eventually("they have gone", || running.server.nodes().len() == 1).await;
    Peer::open(running.port, "four", CDS, &[]).await.next().await;
}

/// Replicas that came to the same state by different ways are one to a client.
#[tokio::test]
async fn a_client_that_moves_to_another_replica_is_sent_nothing() {
    let (first, second) = (Running::start(0).await, Running::start(0).await);
    let mut long_way = world(50, 10);
    long_way.insert(&cluster("passing", 1, 10));
    long_way.insert(&cluster("cluster-00003", 7, 10));
    first.server.publish(VIEW, long_way.clone());
    let mut peer = Peer::open(first.port, "moving", CDS, &[]).await;
    let mut has = BTreeMap::new();
    let mut note = |response: &pontoon_xds::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse| {
        for resource in &response.resources {
            has.insert(resource.name.clone(), resource.version.clone());
        }
        for name in &response.removed_resources {
            has.remove(name);
        }
    };
    let response = peer.next().await;
    note(&response);
    peer.answer(&response, None).await;
    long_way.remove(CDS, "passing");
    long_way.insert(&cluster("cluster-00003", 0, 10));
    first.server.publish(VIEW, long_way.clone());
    let mut version = String::new();
    for _ in 0..2 {
        let response = peer.next().await;
        note(&response);
        peer.answer(&response, None).await;
        version = response.system_version_info;
    }
    drop(peer);

    let mut elsewhere = Snapshot::default();
    for number in (0..50).rev() {
        elsewhere.insert(&cluster(&format!("cluster-{number:05}"), 0, 10));
    }
    second.server.publish(VIEW, elsewhere.clone());
    assert_eq!(has.len(), 50);
    let everything = [String::from("*")];
    let mut again = Peer::again(second.port, "moving", CDS, &everything, &has).await;
    let mut sotw = BTreeSet::new();
    for port in [first.port, second.port] {
        sotw.insert(SotwPeer::open(port, "sotw", CDS).await.next().await.version_info);
    }
    assert_eq!(sotw, BTreeSet::from([version]), "one version, in both variants, on both");
    elsewhere.insert(&cluster("new", 1, 10));
    second.server.publish(VIEW, elsewhere);
    // It may be told that this is all.
    let mut sent = Vec::new();
    while sent.is_empty() {
        let response = again.next().await;
        assert_eq!(response.removed_resources, [""; 0]);
        sent.extend(response.resources.iter().map(|resource| resource.name.clone()));
        again.answer(&response, None).await;
    }
    assert_eq!(sent, ["new"], "the first that it is sent");
}
