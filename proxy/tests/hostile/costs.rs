//! What floods cost: the processor time of a process in which only the proxy and its upstream are, and how long others
//! wait meanwhile. A process of its own, as the attacker and the others have theirs.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use crate::fixture::*;
use crate::frames::*;
use crate::limits::cpu_ticks;

/// Frames of one flood.
const FRAMES: usize = 100_000;
/// A core for a second, in the ticks of `/proc`.
const CORE_SECOND: u64 = 100;

/// Every flood, as often as it is let in, until so many of its frames were sent.
#[test]
fn what_floods_cost() {
    const CHILD: &str = "PONTOON_TEST_FLOODS";
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if std::env::var_os(CHILD).is_some() {
        return runtime.block_on(serve());
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["costs::what_floods_cost", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let address: SocketAddr =
        said.find_map(|line| Some(line.split_once("address ")?.1.parse().unwrap())).expect("an address");
    runtime.block_on(flood(address, child.id()));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

async fn serve() {
    let upstream = Upstream::named(Http::One, "ok").await;
    let proxy = Proxy::start(&[upstream.address]).await;
    println!("address {}", proxy.address);
    // Until the parent has seen enough.
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await.unwrap().unwrap();
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

async fn flood(address: SocketAddr, child: u32) {
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
        let before = cpu_ticks(child);
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
        let busy = cpu_ticks(child) - before;
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
