//! What hostile and slow clients cost in memory. A process of its own with one test, as resident memory is measured;
//! clients and upstreams in it hold next to nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // clippy.toml exempts #[test] functions, not their helpers

#[path = "../request_path/fixture.rs"]
#[allow(dead_code, reason = "shared with the request path's tests")]
mod fixture;
#[path = "../hostile/frames.rs"]
#[allow(dead_code, reason = "shared with the hostile clients' tests")]
mod frames;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Frame as BodyFrame;
use http_body_util::{BodyExt as _, StreamBody};
use pontoon_proxy::overload::resident_memory;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use fixture::*;
use frames::*;

/// The bound of issue and design: what a hostile connection may cost.
const MOST: u64 = 10 << 20;
/// Connections of one attack, so that what one costs stands out.
const CONNECTIONS: usize = 10;
const GIB: usize = 1 << 30;

/// Which attack a child process runs.
const CHILD: &str = "PONTOON_TEST_ATTACK";

const ATTACKS: [(&str, &str); 9] = [
    ("bomb", "headers by reference, streams held open"),
    ("crumbs", "cookies by reference, joined for the upstream, streams held open"),
    ("unread", "answers to frames that carry nothing, never read"),
    ("stalled", "answers that no window takes"),
    ("uploads", "bodies that the upstream does not read"),
    ("heads", "heads that never end"),
    ("pipelined", "requests that are never read"),
    ("tunnels", "a changed protocol, sent into and not read, both ways"),
    ("slow reader", "a slow reader of 1 GiB, all pairings"),
];

/// Each in a process of its own: what one has had and given back would hide what the next takes.
#[test]
fn what_clients_cost() {
    if let Some(name) = std::env::var_os(CHILD) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(child(name.to_str().unwrap()));
    }
    for (name, meaning) in ATTACKS {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["what_clients_cost", "--exact", "--nocapture"])
            .env(CHILD, name)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{name}: {said}{}", String::from_utf8_lossy(&output.stderr));
        let cost = said.lines().find_map(|line| line.split_once("cost ")?.1.parse::<u64>().ok()).unwrap();
        println!("{meaning}: {} KiB a connection", cost / 1024);
        assert!(cost <= MOST, "{meaning}: {cost} bytes a connection");
    }
}

async fn child(name: &str) {
    let cost = match name {
        "bomb" => attack(silent().await, bomb, 30, None).await,
        "crumbs" => attack(silent().await, crumbs, 30, None).await,
        "unread" => attack(silent().await, unread, 100, None).await,
        "stalled" => attack(endless().await, stalled, 100, None).await,
        "uploads" => attack(deaf().await, uploads, 100, None).await,
        "heads" => attack(silent().await, heads, 0, None).await,
        // hyper does not look whether a client has gone while it has a request of its in hand that came behind another:
        // the route's timeout bounds that.
        "pipelined" => attack(silent().await, pipelined, 1, Some(Duration::from_secs(5))).await,
        "tunnels" => attack(switching().await, tunnels, 1, None).await,
        _ => {
            let mut most = 0;
            for front in [Http::One, Http::Two] {
                for back in [Http::One, Http::Two] {
                    most = most.max(slow_reader(front, back).await);
                }
            }
            most
        }
    };
    println!("cost {cost}");
}

/// What one connection of an attack costs while it lasts. Each has at least so many requests in flight then.
async fn attack<F>(
    upstream: SocketAddr,
    one: fn(SocketAddr) -> F,
    requests: u64,
    timeout: Option<Duration>,
) -> u64
where
    F: Future<Output = Box<dyn Send>> + Send + 'static,
{
    let setup = Setup { forward: Box::new(move |forward| forward.timeout = timeout), ..Setup::default() };
    let proxy = Proxy::with(&[upstream], setup).await;
    // Code that runs for the first time, and the threads.
    drop(one(proxy.address).await);
    let open = r#"pontoon_downstream_connections{listener="edge"}"#;
    until("the first has gone", || proxy.metric(open) == 0).await;
    let before = resident_memory().unwrap();
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        held.push(one(proxy.address).await);
    }
    let most = settled().await;
    let active = proxy.metric(r#"pontoon_downstream_requests_active{listener="edge"}"#);
    assert!(active >= requests * CONNECTIONS as u64, "{active}: the attack does not do what it should");
    drop(held);
    most.saturating_sub(before) / CONNECTIONS as u64
}

/// The most memory in use until it no longer grows.
async fn settled() -> u64 {
    let (mut most, mut calm) = (0, 0);
    while calm < 5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = resident_memory().unwrap();
        calm = if now > most + (64 << 10) { 0 } else { calm + 1 };
        most = most.max(now);
    }
    most
}

/// Reads and never answers.
async fn silent() -> SocketAddr {
    serve(|mut stream| async move {
        let mut waste = vec![0; 4096];
        while stream.read(&mut waste).await.is_ok_and(|length| length > 0) {}
    })
    .await
}

/// Reads a head's worth and no more.
async fn deaf() -> SocketAddr {
    serve(|mut stream| async move {
        let _ = stream.read(&mut [0; 256]).await;
        std::future::pending::<()>().await;
    })
    .await
}

/// Answers without end as soon as it has read a head.
async fn endless() -> SocketAddr {
    serve(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
        let body = Bytes::from_static(&[b'x'; 65_536]);
        let mut sent = stream.write_all(head).await;
        while sent.is_ok() {
            sent = stream.write_all(&body).await;
        }
    })
    .await
}

/// Changes the protocol, sends without end and does not read.
async fn switching() -> SocketAddr {
    serve(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let head = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        let bytes = vec![b'x'; 65_536];
        let mut sent = stream.write_all(head).await;
        while sent.is_ok() {
            sent = stream.write_all(&bytes).await;
        }
    })
    .await
}

async fn serve<F: Future<Output = ()> + Send + 'static>(
    one: impl Fn(TcpStream) -> F + Clone + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(one(stream));
        }
    });
    address
}

/// As many streams as there may be, each with as many and as large headers as there may be, told by one byte each.
async fn bomb(address: SocketAddr) -> Box<dyn Send> {
    by_reference(address, b"x").await
}

/// The same of cookies.
async fn crumbs(address: SocketAddr) -> Box<dyn Send> {
    by_reference(address, b"cookie").await
}

async fn by_reference(address: SocketAddr, name: &[u8]) -> Box<dyn Send> {
    let mut client = Raw::connect(address, &[]).await;
    let mut field = literal(name, &[b'y'; 585]);
    field[0] = 0x40;
    for number in 0..100_u32 {
        let mut block = request("GET", "/");
        if number == 0 {
            block.extend(&field);
        }
        block.extend(vec![0xbe; 95]);
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &block)).await;
    }
    Box::new(client)
}

/// As many requests as may be open, as many PINGs and SETTINGS as may come at once, and nothing read.
async fn unread(address: SocketAddr) -> Box<dyn Send> {
    let mut client = Raw::connect(address, &[]).await;
    for number in 0..100_u32 {
        let mut bytes = frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &request("GET", "/"));
        bytes.extend(frame(PING, 0, 0, &[7; 8]).repeat(4));
        bytes.extend(frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]).repeat(4));
        client.send(&bytes).await;
    }
    Box::new(client)
}

/// As many answers as there may be, and no window for them.
async fn stalled(address: SocketAddr) -> Box<dyn Send> {
    let mut client = Raw::connect(address, &[(4, 0)]).await;
    for number in 0..100_u32 {
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &request("GET", "/"))).await;
    }
    Box::new(client)
}

/// All of the connection's window, over all streams.
async fn uploads(address: SocketAddr) -> Box<dyn Send> {
    let mut client = Raw::connect(address, &[]).await;
    client.find(|frame| frame.kind == WINDOW_UPDATE).await.expect("the connection's window");
    for number in 0..100_u32 {
        let stream = 2 * number + 1;
        let mut bytes = frame(HEADERS, END_HEADERS, stream, &request("POST", "/"));
        bytes.extend(frame(DATA, 0, stream, &[0; 10_000]));
        client.send(&bytes).await;
    }
    Box::new(client)
}

/// A head in as many pieces as it may have, and not the last.
async fn heads(address: SocketAddr) -> Box<dyn Send> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "y".repeat(59 * 1024));
    stream.write_all(head.as_bytes()).await.unwrap();
    Box::new(stream)
}

/// Requests as fast as they are taken.
async fn pipelined(address: SocketAddr) -> Box<dyn Send> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let requests = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(10_000);
    for _ in 0..10 {
        let write = stream.write_all(requests.as_bytes());
        if tokio::time::timeout(Duration::from_millis(100), write).await.is_err() {
            break;
        }
    }
    Box::new(stream)
}

/// Sends as much as is taken, and reads the answer's head alone.
async fn tunnels(address: SocketAddr) -> Box<dyn Send> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 101");
    let bytes = vec![b'y'; 65_536];
    while let Ok(sent) = tokio::time::timeout(Duration::from_millis(500), stream.write_all(&bytes)).await {
        sent.unwrap();
    }
    Box::new(stream)
}

/// Reads a little, waits until nothing moves, and reads the rest. Gives the most memory on the way.
async fn slow_reader(front: Http, back: Http) -> u64 {
    const CHUNK: usize = 256 << 10;
    let upstream = Upstream::answering(back, |_| {
        let chunk = Bytes::from_static(&[7; CHUNK]);
        let frames = std::iter::repeat_n(chunk, GIB / CHUNK).map(|chunk| Ok(BodyFrame::data(chunk)));
        Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())
    })
    .await;
    let setup = Setup {
        protocol: back.upstream(),
        forward: Box::new(|forward| forward.timeout = None),
        ..Setup::default()
    };
    let proxy = Proxy::with(&[upstream.address], setup).await;
    let mut client = Client::connect(proxy.address, front).await;
    let before = resident_memory().unwrap();
    let mut body = client.get("/").await.into_body();
    let mut most = settled().await;
    let mut received = 0;
    let mut looked = 0;
    while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await.expect("flow") {
        received += frame.unwrap().into_data().map_or(0, |data| data.len());
        if received >= looked {
            looked = received + (16 << 20);
            most = most.max(resident_memory().unwrap());
        }
    }
    assert_eq!(received, GIB);
    most.saturating_sub(before)
}
