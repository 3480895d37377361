//! HTTP/2's attacks on the port that xDS is served on, in frames written by hand (RFC 9113).

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::*;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// As many as a connection may have at once (docs/reference/limits.md).
const STREAMS: u32 = 10;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The beginning of an ADS stream; its client says no more.
fn open(stream: u32) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "server"),
        (":path", "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        // A literal that is not indexed (RFC 7541, 6.2.2); each is shorter than 127 bytes.
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| 1 + 2 * number)
}

struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    async fn connect(port: u16) -> Raw {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut raw = Raw { stream, buffer: Vec::new() };
        let settings = [frame(SETTINGS, 0, 0, &[]), frame(SETTINGS, ACK, 0, &[])].concat();
        raw.send(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", settings.as_slice()].concat()).await;
        raw
    }

    /// Writes what the server still takes.
    async fn send(&mut self, bytes: &[u8]) {
        let _ = soon(self.stream.write_all(bytes)).await;
    }

    /// The next RST_STREAM (its stream and code), or GOAWAY (0 and its code); `None`: the connection has ended.
    async fn end(&mut self) -> Option<(u32, u32)> {
        loop {
            let length = match self.buffer.first_chunk::<4>() {
                Some(head) => 9 + usize::try_from(u32::from_be_bytes(*head) >> 8).unwrap(),
                None => usize::MAX,
            };
            if self.buffer.len() < length {
                let mut chunk = [0; 4096];
                match soon(self.stream.read(&mut chunk)).await {
                    Ok(0) | Err(_) => return None,
                    Ok(length) => self.buffer.extend(&chunk[..length]),
                }
                continue;
            }
            let whole: Vec<u8> = self.buffer.drain(..length).collect();
            let number = |at: usize| u32::from_be_bytes(whole[at..at + 4].try_into().unwrap());
            match whole[3] {
                RST_STREAM => return Some((number(5), number(9))),
                GOAWAY => return Some((0, number(13))),
                _ => {}
            }
        }
    }

    /// The code of the GOAWAY that ends the connection; `None` where it ends without one, as a reset may overtake it.
    async fn goaway(&mut self) -> Option<u32> {
        loop {
            if let (0, code) = self.end().await? {
                return Some(code);
            }
        }
    }
}

#[tokio::test]
async fn a_connection_has_no_more_streams_than_it_may() {
    let running = Running::start(0).await;
    let mut client = Raw::connect(running.port).await;
    client.send(&streams(STREAMS + 1).flat_map(open).collect::<Vec<u8>>()).await;
    assert_eq!(client.end().await, Some((1 + 2 * STREAMS, REFUSED_STREAM)));
}

/// CVE-2023-44487: opened and reset.
#[tokio::test]
async fn rapid_reset_ends_the_connection() {
    let running = Running::start(0).await;
    let mut client = Raw::connect(running.port).await;
    let flood = |stream| [open(stream), frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat();
    client.send(&streams(10_000).flat_map(flood).collect::<Vec<u8>>()).await;
    assert!(matches!(client.goaway().await, Some(ENHANCE_YOUR_CALM) | None));
    others_are_served(&running).await;
}

/// CVE-2025-8671: streams whose client has the server reset them, by windows larger than there can be. No more are sent
/// than the server may get to look at, so that nothing but its word ends the connection.
#[tokio::test]
async fn made_you_reset_ends_the_connection() {
    let running = Running::start(0).await;
    let mut client = Raw::connect(running.port).await;
    let most = i32::MAX.to_be_bytes();
    let flood = |stream| [open(stream), frame(WINDOW_UPDATE, 0, stream, &most)].concat();
    client.send(&streams(150).flat_map(flood).collect::<Vec<u8>>()).await;
    assert!(matches!(client.goaway().await, Some(ENHANCE_YOUR_CALM) | None));
    others_are_served(&running).await;
}

async fn others_are_served(running: &Running) {
    let snapshot = world(1, 100);
    running.server.publish(VIEW, snapshot.clone());
    let healthy = Follower::start(running.port, "healthy");
    healthy.until_it_has(&snapshot, "cluster-00000").await;
}
