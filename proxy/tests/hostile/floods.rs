//! Frames in numbers. A flood ends its connection, or costs no more than what the kernel's buffers hold; and the
//! proxy goes on serving others.

use std::time::Duration;

use crate::fixture::*;
use crate::frames::*;
use crate::recorder::{OK, Recorded, recorder};

async fn start() -> (Proxy, Recorded) {
    let (upstream, recorded) = recorder(OK).await;
    (Proxy::start(&[upstream]).await, recorded)
}

/// Others are served.
async fn assert_serves(proxy: &Proxy) {
    let mut client = Client::connect(proxy.address, Http::Two).await;
    assert_eq!(client.get("/").await.status(), 200);
}

/// Open and reset, CVE-2023-44487.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset() {
    let (proxy, recorded) = start().await;
    let mut client = Raw::connect(proxy.address, &[]).await;
    let block = request("GET", "/");
    let mut bytes = Vec::new();
    for stream in (1..20_000).step_by(2) {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
        bytes.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
    }
    client.send(&bytes).await;
    assert!(matches!(client.goaway().await, Some(ENHANCE_YOUR_CALM) | None));
    assert!(recorded.connections() <= 600, "{} connections upstream", recorded.connections());
    assert_serves(&proxy).await;
}

/// The same, slowly enough that each request is sent on before its reset comes: no more work upstream than a
/// client could ask for honestly, and then the connection ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_one_by_one() {
    // Never answers.
    let (proxy, recorded) = {
        let (upstream, recorded) = recorder(b"").await;
        (Proxy::start(&[upstream]).await, recorded)
    };
    let mut client = Raw::connect(proxy.address, &[]).await;
    let block = request("GET", "/");
    let mut reset = 0;
    for stream in (1..4_000).step_by(2) {
        let before = recorded.connections();
        if !client.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)).await {
            break;
        }
        let seen = async {
            while recorded.connections() == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(1), seen).await.is_err() {
            break;
        }
        client.send(&frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())).await;
        reset += 1;
    }
    assert!((400..=520).contains(&reset), "the connection ended after {reset} resets");
    assert!(client.find(|frame| frame.kind == HEADERS).await.is_none());
}

/// Streams that the server itself must reset, CVE-2025-8671.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_you_reset() {
    let (proxy, _) = start().await;
    let mut client = Raw::connect(proxy.address, &[]).await;
    let block = request("POST", "/");
    let mut bytes = Vec::new();
    for stream in (1..4_000).step_by(2) {
        bytes.extend(frame(HEADERS, END_HEADERS, stream, &block));
        // More than a window can hold.
        bytes.extend(frame(WINDOW_UPDATE, 0, stream, &((1_u32 << 31) - 1).to_be_bytes()));
    }
    client.send(&bytes).await;
    let code = client.goaway().await;
    assert!(matches!(code, Some(ENHANCE_YOUR_CALM) | None), "{code:?}");
    assert_serves(&proxy).await;
}

/// A head that never ends, RUSTSEC-2024-0332.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn continuation_flood() {
    for piece in [literal(b"x", &[b'y'; 1000]), Vec::new()] {
        let (proxy, recorded) = start().await;
        let mut client = Raw::connect(proxy.address, &[]).await;
        let mut bytes = frame(HEADERS, END_STREAM, 1, &request("GET", "/"));
        for _ in 0..10_000 {
            bytes.extend(frame(CONTINUATION, 0, 1, &piece));
        }
        client.send(&bytes).await;
        let code = client.goaway().await;
        assert!(
            matches!(code, Some(ENHANCE_YOUR_CALM | PROTOCOL_ERROR | COMPRESSION_ERROR) | None),
            "{code:?}"
        );
        assert!(recorded.is_empty());
        assert_serves(&proxy).await;
    }
}

/// DATA frames with nothing in them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_data_flood() {
    let (proxy, _) = start().await;
    let mut client = Raw::connect(proxy.address, &[]).await;
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &request("POST", "/"));
    for _ in 0..20_000 {
        bytes.extend(frame(DATA, 0, 1, &[]));
    }
    client.send(&bytes).await;
    assert!(matches!(client.goaway().await, Some(ENHANCE_YOUR_CALM) | None));
    assert_serves(&proxy).await;
}

/// What h2 answers or forgets for as long as it comes: SETTINGS, PING, PRIORITY, WINDOW_UPDATE, resets of a stream
/// long closed, and a type that nobody knows.
fn idle_frames() -> [Vec<u8>; 6] {
    const UNKNOWN: u8 = 0x42;
    [
        frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]),
        frame(PING, 0, 0, &[7; 8]),
        frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes()),
        frame(UNKNOWN, 0, 0, b"what?"),
    ]
}

/// A connection that sends them without end is told so, and ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_ping_priority_window_and_reset_floods() {
    for piece in idle_frames() {
        let (proxy, _) = start().await;
        let mut client = Raw::connect(proxy.address, &[]).await;
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/"))).await;
        assert_eq!(client.outcome(1).await, Outcome::Status(200));
        client.send(&piece.repeat(20_000)).await;
        let code = client.goaway().await;
        // An end before all was read may reset the connection, and with it what was said.
        assert!(matches!(code, Some(ENHANCE_YOUR_CALM) | None), "{code:?}");
        until("the count", || proxy.metrics().contains(r#"reason="control_flood"} 1"#)).await;
        assert_serves(&proxy).await;
    }
}

/// Nor does a client that reads nothing hold answers to them, or its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_ping_and_window_floods_of_one_that_does_not_read() {
    for piece in idle_frames() {
        let (proxy, _) = start().await;
        let mut client = Raw::connect(proxy.address, &[]).await;
        let flood = piece.repeat(100_000);
        for _ in 0..10 {
            if !client.push(&flood, Duration::from_millis(500)).await {
                break;
            }
        }
        // A reset of a stream that never was is an error before it is a flood.
        if piece[3] != RST_STREAM {
            until("the count", || proxy.metrics().contains(r#"reason="control_flood"} 1"#)).await;
        }
        let open = r#"pontoon_downstream_connections{listener="edge"}"#;
        until("its end", || proxy.metric(open) == 0).await;
        assert_serves(&proxy).await;
        drop(client);
    }
}

/// A body in pieces of one byte, CPU for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_data_frames() {
    let (proxy, _) = start().await;
    let mut client = Raw::connect(proxy.address, &[]).await;
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &request("POST", "/"));
    for _ in 0..100_000 {
        bytes.extend(frame(DATA, 0, 1, b"x"));
    }
    client.send(&bytes).await;
    let code = client.goaway().await;
    assert!(matches!(code, Some(ENHANCE_YOUR_CALM | FLOW_CONTROL_ERROR) | None), "{code:?}");
    assert_serves(&proxy).await;
}

/// Every answer is ready and no window takes it: what is held for such a client is bounded (see the test `memory`), and
/// so is for how long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zero_window_stall() {
    let (upstream, _) = recorder(OK).await;
    let idle = Duration::from_millis(700);
    let setup =
        Setup { http: Box::new(move |http| http.timeouts.stream_idle = Some(idle)), ..Setup::default() };
    let proxy = Proxy::with(&[upstream], setup).await;
    const INITIAL_WINDOW_SIZE: [u8; 6] = [0, 4, 0, 0, 0, 0];
    let mut client = Raw::connect(proxy.address, &[]).await;
    client.send(&frame(SETTINGS, 0, 0, &INITIAL_WINDOW_SIZE)).await;
    let block = request("GET", "/");
    for stream in (1..200).step_by(2) {
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)).await;
    }
    let active = || proxy.metric(r#"pontoon_downstream_requests_active{listener="edge"}"#);
    until("all wait for a window", || active() == 100).await;
    until("none waits for ever", || active() == 0).await;
    assert_serves(&proxy).await;
}

/// The same, while other streams of the connection do well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zero_window_stall_beside_streams_that_work() {
    let (upstream, _) = recorder(OK).await;
    let idle = Duration::from_millis(1_500);
    let setup =
        Setup { http: Box::new(move |http| http.timeouts.stream_idle = Some(idle)), ..Setup::default() };
    let proxy = Proxy::with(&[upstream], setup).await;
    const INITIAL_WINDOW_SIZE: [u8; 6] = [0, 4, 0, 0, 0, 0];
    let mut client = Raw::connect(proxy.address, &[]).await;
    client.send(&frame(SETTINGS, 0, 0, &INITIAL_WINDOW_SIZE)).await;
    let stalled = [1, 3, 5];
    for stream in stalled {
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", "/"))).await;
    }
    let mut reset = Vec::new();
    for stream in (7..2_000).step_by(2) {
        // Its answer has no body that would need a window.
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("HEAD", "/"))).await;
        let mut answered = false;
        while !answered {
            let frame = client.next().await.expect("the connection goes on");
            answered = frame.stream == stream && frame.status() == Some(200);
            if frame.kind == RST_STREAM {
                reset.push((frame.stream, frame.code()));
            }
        }
        if reset.len() == stalled.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    reset.sort_unstable();
    assert_eq!(reset, stalled.map(|stream| (stream, Some(CANCEL))));
    until("the count", || proxy.metrics().contains(r#"reason="stream_idle_timeout"} 3"#)).await;
}

/// Each field goes into the table and pushes another out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hpack_table_churn() {
    let (proxy, _) = start().await;
    let mut client = Raw::connect(proxy.address, &[]).await;
    for number in 0..400_u32 {
        let mut block = request("GET", "/");
        for field in 0..50 {
            let mut one = literal(b"x-churn", format!("{number}-{field}").as_bytes());
            one[0] = 0x40;
            block.extend(one);
        }
        let stream = 2 * number + 1;
        client.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)).await;
        assert_eq!(client.outcome(stream).await, Outcome::Status(200));
    }
    // A table larger than we have said that ours may be.
    let mut block = Vec::new();
    integer(&mut block, 5, 1 << 20);
    block[0] |= 0x20;
    block.extend(request("GET", "/"));
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1_001, &block)).await;
    let code = client.goaway().await;
    assert!(matches!(code, Some(COMPRESSION_ERROR | PROTOCOL_ERROR)), "{code:?}");
    assert_serves(&proxy).await;
}

/// Windows that overflow, by a setting and by increments, and settings out of range.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn window_games() {
    let most = (1_u32 << 31) - 1;
    let cases = [
        // h2 says PROTOCOL_ERROR where RFC 9113, 6.5.2 has FLOW_CONTROL_ERROR; it ends the connection all the same.
        (frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), PROTOCOL_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, &most.to_be_bytes()).repeat(2), FLOW_CONTROL_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, &[0; 4]), PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]), PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 7]), PROTOCOL_ERROR),
    ];
    for (bytes, code) in cases {
        let (proxy, _) = start().await;
        let mut client = Raw::connect(proxy.address, &[]).await;
        client.send(&bytes).await;
        assert_eq!(client.goaway().await, Some(code), "{bytes:?}");
        assert_serves(&proxy).await;
    }
}

/// More body than the window allows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn window_overrun() {
    let (proxy, _) = start().await;
    let mut client = Raw::connect(proxy.address, &[]).await;
    // Not read by the upstream until it is whole, so that no window is given back in time.
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &request("POST", "/"));
    for _ in 0..400 {
        bytes.extend(frame(DATA, 0, 1, &[0; 16_384]));
    }
    client.send(&bytes).await;
    let outcome = client.outcome(1).await;
    assert!(
        matches!(
            outcome,
            Outcome::GoAway(FLOW_CONTROL_ERROR) | Outcome::Reset(FLOW_CONTROL_ERROR) | Outcome::Closed
        ),
        "{outcome:?}"
    );
    assert_serves(&proxy).await;
}

/// A field of the table, named a thousand times by one byte each: counted by what it becomes, CVE-2026-47774.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_bomb() {
    let (proxy, recorded) = start().await;
    let mut client = Raw::connect(proxy.address, &[]).await;
    // Indexed: it is the first of the dynamic table from here on.
    let mut block = request("GET", "/");
    let mut field = literal(b"x", &[b'y'; 3_900]);
    field[0] = 0x40;
    block.extend(&field);
    block.extend(vec![0xbe; 12_000]);
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await;
    let outcome = client.outcome(1).await;
    assert!(
        matches!(outcome, Outcome::Status(431) | Outcome::Closed | Outcome::GoAway(_) | Outcome::Reset(_)),
        "{outcome:?}"
    );
    assert!(recorded.is_empty());
    assert_serves(&proxy).await;
}

/// One stream more than was allowed is refused, and may be sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_streams() {
    let (upstream, _) = recorder(b"").await;
    let proxy = Proxy::start(&[upstream]).await;
    let mut client = Raw::connect(proxy.address, &[]).await;
    let block = request("GET", "/");
    let bytes: Vec<u8> = (0..101)
        .flat_map(|number| frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &block))
        .collect();
    client.send(&bytes).await;
    const REFUSED_STREAM: u32 = 7;
    assert_eq!(client.outcome(201).await, Outcome::Reset(REFUSED_STREAM));
}
