//! What floods cost: the processor time of a process in which only the proxy and its upstream are, and how long others
//! wait meanwhile. A process of its own, as the attacker and the others have theirs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use crate::apart::{self, Apart};
use crate::fixture::*;
use crate::frames::*;

/// Frames of one flood.
const FRAMES: usize = 100_000;
/// A core for a second, in the ticks of `/proc`.
const CORE_SECOND: u64 = 100;

/// Every flood, as often as it is let in, until so many of its frames were sent.
#[test]
fn what_floods_cost() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if apart::serves() {
        return runtime.block_on(async {
            let upstream = Upstream::named(Http::One, "ok").await;
            apart::serve(&Proxy::start(&[upstream.address]).await).await;
        });
    }
    let proxy = Apart::start("costs::what_floods_cost");
    runtime.block_on(flood(&proxy));
    proxy.end();
}

/// A honest client, and the time that each of its requests took, until it is told to stop.
async fn honest(address: SocketAddr, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut client = Client::connect(address, Http::Two).await;
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) || took.len() < 200 {
        let start = SystemTime::now();
        assert_eq!(text(client.get("/").await).await, "ok");
        took.push(start.elapsed().unwrap_or_default());
    }
    took.sort_unstable();
    took
}

fn p99(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() * 99 / 100]
}

async fn flood(proxy: &Apart) {
    let address = proxy.address;
    type Pieces = fn(u32) -> Vec<u8>;
    let floods: [(&str, Pieces); 7] = [
        ("rapid_reset", |stream| {
            let reset = frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
            [frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/")), reset].concat()
        }),
        ("made_you_reset", |stream| {
            let nothing = frame(WINDOW_UPDATE, 0, stream, &[0; 4]);
            [frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/")), nothing].concat()
        }),
        ("ping_flood", |_| frame(PING, 0, 0, &[7; 8])),
        ("settings_flood", |_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("priority_flood", |stream| frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 16])),
        ("window_update_flood", |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("continuation_flood", |stream| match stream {
            1 => frame(HEADERS, END_STREAM, 1, &request("GET", "/")),
            _ => frame(CONTINUATION, 0, 1, &literal(b"x", b"y")),
        }),
    ];
    let stopped = Arc::new(AtomicBool::new(true));
    let calm = honest(address, stopped).await;
    for (name, pieces) in floods {
        let all: Vec<Vec<u8>> = (0..FRAMES as u32).map(|number| pieces(2 * number + 1)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let others = tokio::spawn(honest(address, Arc::clone(&stop)));
        let before = proxy.cpu_ticks();
        let (mut sent, mut connections) = (0, 0);
        // At 2,000 at a time, most of which comes too late for its connection.
        while sent < FRAMES {
            connections += 1;
            let mut client = Raw::connect(address, &[]).await;
            let batch = all[..2_000].concat();
            client.push(&batch, Duration::from_secs(2)).await;
            sent += 2_000;
            client.goaway().await;
        }
        let busy = proxy.cpu_ticks() - before;
        stop.store(true, Ordering::Relaxed);
        let took = others.await.unwrap();
        println!(
            "{name}: {FRAMES} frames on {connections} connections, {busy} ticks, {} requests of others: p99 {:?} (calm {:?}), longest {:?}",
            took.len(),
            p99(&took),
            p99(&calm),
            took.last().unwrap()
        );
        // The honest client's own requests are in it: so many a tick as in calm.
        let own = took.len() as u64 / 10;
        assert!(busy <= CORE_SECOND + own, "{name}: {busy} ticks");
        // Twice as long as in calm, and what a busy machine adds to that.
        assert!(p99(&took) <= p99(&calm) * 2 + Duration::from_millis(100), "{name}: {:?}", p99(&took));
    }
}
