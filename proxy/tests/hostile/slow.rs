//! Clients that take their time: each wait has its end, and the end has a name.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::*;
use crate::frames::*;
use crate::recorder::{OK, recorder};

/// Short enough to wait for.
const LIMIT: Duration = Duration::from_millis(1_200);

fn impatient() -> Setup {
    Setup {
        http: Box::new(|http| {
            http.timeouts.request_headers = LIMIT;
            http.timeouts.stream_idle = Some(LIMIT);
        }),
        ..Setup::default()
    }
}

/// The time that a connection had nothing to do is none of the next request's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_rested_serves_a_slow_answer() {
    let seen = std::sync::Arc::default();
    let upstream = Upstream::serving(Http::One, seen, |_| async {
        // For longer than the connection's clock takes to look.
        tokio::time::sleep(LIMIT * 3 / 4).await;
        Ok(http::Response::new(full("at last")))
    })
    .await;
    let proxy = Proxy::with(&[upstream.address], impatient()).await;
    let mut client = Client::connect(proxy.address, Http::Two).await;
    assert_eq!(client.get("/").await.status(), 200);
    tokio::time::sleep(LIMIT * 2).await;
    assert_eq!(text(client.get("/").await).await, "at last");
}

/// All that comes back until the proxy closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    assert!(read.is_ok(), "never closed: {}", String::from_utf8_lossy(&bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Slowloris: a head byte by byte. Each byte is progress, and the head still has to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_headers() {
    for start in ["", "P", "PRI", "GET / HTTP/1.1\r\nHost: a\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2"]
    {
        let (upstream, _) = recorder(OK).await;
        let proxy = Proxy::with(&[upstream], impatient()).await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let drip = async {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                if write.write_all(b"x").await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let mut answer = Vec::new();
        let ended = async {
            // The drip after the close may turn the end into a reset.
            let _ = read.read_to_end(&mut answer).await;
        };
        tokio::select! {
            ended = tokio::time::timeout(PATIENCE, ended) => assert!(ended.is_ok(), "{start:?}: never closed"),
            () = drip => {}
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let last = answer.rfind("HTTP/1.1").map_or("", |at| &answer[at..]);
        assert!(last.starts_with("HTTP/1.1 408 "), "{start:?}: {answer}");
        assert!(last.contains("x-pontoon-reason: request_header_timeout\r\n"), "{start:?}: {answer}");
    }
}

/// A body that stops coming.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_body() {
    let (upstream, _) = recorder(OK).await;
    let proxy = Proxy::with(&[upstream], impatient()).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("stream_idle_timeout"), "{answer}");

    let mut client = Raw::connect(proxy.address, &[]).await;
    client.send(&frame(HEADERS, END_HEADERS, 1, &request("POST", "/"))).await;
    assert_eq!(client.outcome(1).await, Outcome::Status(504));
}

/// A client that never reads its answer does not hold it, nor the upstream, for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_reader() {
    let upstream = Upstream::answering(Http::One, |_| http::Response::new(full(vec![7; 32 << 20]))).await;
    let proxy = Proxy::with(&[upstream.address], impatient()).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    // Windows of nothing: HTTP/2's way not to read.
    let mut client = Raw::connect(proxy.address, &[(4, 0)]).await;
    client.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/"))).await;
    assert_eq!(client.outcome(1).await, Outcome::Status(200));
    let connections = r#"pontoon_downstream_connections{listener="edge"}"#;
    let mut seen = false;
    for name in [connections, r#"pontoon_listener_connections{listener="edge"}"#] {
        if proxy.metrics().contains(name) {
            seen = true;
            until("both connections end", || proxy.metric(name) == 0).await;
        }
    }
    assert!(seen, "{}", proxy.metrics());
}

/// A client that asks for answers to frames which carry nothing, few enough at a time, and reads none of them: once the
/// kernel takes no more, the connection ends as if it were idle, and so it does for others to have its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_reader_of_frames_that_carry_nothing() {
    let (upstream, _) = recorder(OK).await;
    let proxy = Proxy::with(&[upstream], impatient()).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // Small windows and segments, so that the kernel takes little.
    socket.set_recv_buffer_size(4_096).unwrap();
    socket2::SockRef::from(&socket).set_tcp_mss(536).unwrap();
    let mut client = Raw::over(socket.connect(proxy.address).await.unwrap());
    client.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    let open = r#"pontoon_downstream_connections{listener="edge"}"#;
    until("it is there", || proxy.metric(open) == 1).await;
    // More than the kernel takes on the way back, and not so many at a time that they are a flood.
    let pings = frame(PING, 0, 0, &[7; 8]).repeat(200);
    for _ in 0..80 {
        if proxy.metric(open) == 0 || !client.push(&pings, Duration::from_millis(100)).await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    until("its end", || proxy.metric(open) == 0).await;
    assert!(!proxy.metrics().contains(r#"reason="control_flood""#), "{}", proxy.metrics());
}

/// An endpoint that does not read holds a request no longer than its route says, and nothing of it is left then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deaf_endpoints_keep_nothing() {
    for back in [Http::One, Http::Two] {
        let deaf = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = deaf.local_addr().unwrap();
        let held = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = deaf.accept().await {
                held.push(stream);
            }
        });
        let setup = Setup {
            protocol: back.upstream(),
            forward: Box::new(|forward| forward.timeout = Some(LIMIT)),
            ..Setup::default()
        };
        let proxy = Proxy::with(&[address], setup).await;
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 1 << 30);
        let mut clients = Vec::new();
        for waits in [true, false] {
            let mut stream = TcpStream::connect(proxy.address).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            // As much as anybody takes.
            let part = [b'x'; 64 * 1024];
            while let Ok(Ok(_)) = tokio::time::timeout(LIMIT / 4, stream.write_all(&part)).await {}
            if waits {
                clients.push(stream);
            }
        }
        for mut stream in clients {
            let answer = rest(&mut stream).await;
            assert!(answer.starts_with("HTTP/1.1 504 "), "{back:?}: {answer}");
        }
        let open = r#"pontoon_downstream_connections{listener="edge"}"#;
        until("nothing is left", || proxy.metric(open) == 0).await;
        held.abort();
    }
}
