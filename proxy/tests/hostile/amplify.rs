//! Little from a client that would be much for a server: streams that the server has to reset, heads that grow as they
//! are read. Each connection comes to its end with the code that says why.

use crate::fixture::*;
use crate::frames::*;
use crate::recorder::{OK, Recorded, recorder};

/// What has come back when the connection has ended: resets, and the codes of GOAWAYs.
async fn end(client: &mut Raw) -> (usize, Vec<u32>) {
    let (mut resets, mut codes) = (0, Vec::new());
    while let Some(frame) = client.next().await {
        match frame.kind {
            RST_STREAM => resets += 1,
            GOAWAY => codes.extend(frame.code()),
            _ => {}
        }
    }
    (resets, codes)
}

/// An upstream that never answers, so that what is given up is seen to be.
async fn start() -> (Proxy, Recorded) {
    let (upstream, recorded) = recorder(b"").await;
    (Proxy::start(&[upstream]).await, recorded)
}

const ACTIVE: &str = r#"pontoon_downstream_requests_active{listener="edge"}"#;
const OPEN: &str = r#"pontoon_downstream_connections{listener="edge"}"#;

/// CVE-2023-44487, no more than it takes: the code is seen, as nothing unread turns the end into a reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_is_told_to_calm_down() {
    let (proxy, recorded) = start().await;
    let mut client = Raw::connect(proxy.address, &[]).await;
    // Settled, so that what follows is one read.
    client.find(|frame| frame.kind == SETTINGS && frame.flags & ACK != 0).await.unwrap();
    let block = request("GET", "/");
    let mut bytes = Vec::new();
    for stream in (1..80).step_by(2) {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
        bytes.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
    }
    client.send(&bytes).await;
    let (_, codes) = end(&mut client).await;
    assert_eq!(codes.last(), Some(&ENHANCE_YOUR_CALM), "{codes:?}");
    assert!(recorded.connections() <= 20, "{} requests sent on", recorded.connections());
    until("nothing is left of it", || proxy.metric(ACTIVE) == 0 && proxy.metric(OPEN) == 0).await;
}

/// CVE-2025-8671 in each of its forms: the server resets no more streams than it has said, and what was sent on for
/// them is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_you_reset_in_every_way() {
    const STREAM_CLOSED: u32 = 5;
    const FRAME_SIZE_ERROR: u32 = 6;
    type Offence = fn(u32) -> Vec<u8>;
    let offences: [(&str, Offence); 7] = [
        ("a window that overflows", |stream| {
            frame(WINDOW_UPDATE, 0, stream, &((1_u32 << 31) - 1).to_be_bytes())
        }),
        ("a window of nothing more", |stream| frame(WINDOW_UPDATE, 0, stream, &[0; 4])),
        ("data behind the end", |stream| frame(DATA, 0, stream, b"late")),
        ("a head behind the end", |stream| frame(HEADERS, END_HEADERS, stream, &request("GET", "/"))),
        ("a priority of the wrong length", |stream| frame(PRIORITY, 0, stream, &[0; 4])),
        ("a stream that depends on itself", |stream| {
            frame(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[1]].concat())
        }),
        ("a reset of the wrong length", |stream| frame(RST_STREAM, 0, stream, &[0; 3])),
    ];
    for (what, offence) in offences {
        let (proxy, recorded) = start().await;
        let mut client = Raw::connect(proxy.address, &[]).await;
        client.find(|frame| frame.kind == SETTINGS && frame.flags & ACK != 0).await.unwrap();
        let block = request("POST", "/");
        let mut bytes = Vec::new();
        for number in 0..400 {
            let stream = 2 * number + 1;
            bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
            bytes.extend(offence(stream));
        }
        client.send(&bytes).await;
        let (resets, codes) = end(&mut client).await;
        println!("{what}: {resets} resets, {codes:?}");
        assert!(resets <= 101, "{what}: {resets} resets, {codes:?}");
        assert!(
            codes.last().is_none_or(|code| [
                ENHANCE_YOUR_CALM,
                PROTOCOL_ERROR,
                FLOW_CONTROL_ERROR,
                STREAM_CLOSED,
                FRAME_SIZE_ERROR
            ]
            .contains(code)),
            "{what}: {codes:?}"
        );
        assert!(recorded.connections() <= 200, "{what}: {} requests sent on", recorded.connections());
        until("nothing is left of it", || proxy.metric(ACTIVE) == 0 && proxy.metric(OPEN) == 0).await;
    }
}

/// A field into the table by its name and value, or by the index of its name.
fn indexed(name: Option<&str>, value: &[u8]) -> Vec<u8> {
    // 32 is `cookie` in the static table.
    let mut bytes = match name {
        Some(name) => literal(name.as_bytes(), value),
        None => [&[0x60][..], &literal(b"", value)[2..]].concat(),
    };
    bytes[0] |= 0x40;
    bytes
}

/// CVE-2026-47774 and CVE-2026-49975: fields by references of one byte, large ones and small ones, and cookies that an
/// HTTP/1.1 upstream gets joined. What they become is counted, and how many there are, on every stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_bomb_in_every_way() {
    let forms = [
        ("large fields", indexed(Some("x"), &[b'y'; 3_900]), 16),
        ("small fields", indexed(Some("x"), b""), 101),
        ("thousands of small fields", indexed(Some("x"), b""), 12_000),
        ("crumbs", indexed(None, b"a=1"), 101),
        ("thousands of crumbs", indexed(None, b""), 12_000),
        ("large crumbs", indexed(None, &[b'c'; 3_900]), 16),
    ];
    for (what, field, times) in forms {
        let (upstream, recorded) = recorder(OK).await;
        let proxy = Proxy::start(&[upstream]).await;
        let mut client = Raw::connect(proxy.address, &[]).await;
        for number in 0..100 {
            let mut block = request("GET", "/");
            if number == 0 {
                block.extend(&field);
            }
            // The newest of the dynamic table.
            block.extend(vec![0xbe; times]);
            let stream = 2 * number + 1;
            if !client.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)).await {
                break;
            }
            match client.outcome(stream).await {
                // From the second answer on it is in HPACK's table.
                Outcome::Status(431 | 0) => {}
                Outcome::Closed | Outcome::GoAway(_) | Outcome::Reset(_) => break,
                other => panic!("{what}: {other:?}"),
            }
        }
        assert!(recorded.is_empty(), "{what}: {}", recorded.text());
        drop(client);
        until("it has gone", || proxy.metric(OPEN) == 0).await;
    }
}
