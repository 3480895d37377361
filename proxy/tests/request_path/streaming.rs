//! Bodies in pieces, protocols that change, and what a connection costs while nothing moves.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::*;

const CHUNK: usize = 64 * 1024;
const CHUNKS: usize = 1024;

/// 64 MiB, counted as they are taken from it.
fn large(taken: std::sync::Arc<std::sync::atomic::AtomicUsize>) -> Body {
    let chunk = Bytes::from(vec![7; CHUNK]);
    let frames = futures_util::stream::iter(0..CHUNKS).map_frames(move |_| {
        taken.fetch_add(1, Ordering::Relaxed);
        Ok(Frame::data(chunk.clone()))
    });
    BodyExt::boxed_unsync(StreamBody::new(frames))
}

trait MapFrames: futures_util::Stream<Item = usize> + Sized {
    fn map_frames<F>(self, f: F) -> futures_util::stream::Map<Self, F>
    where
        F: FnMut(usize) -> Result<Frame<Bytes>, std::io::Error>,
    {
        futures_util::StreamExt::map(self, f)
    }
}

impl<S: futures_util::Stream<Item = usize>> MapFrames for S {}

/// A client that does not read holds the upstream back: no more is taken from it than sockets and windows hold.
async fn slow_reader(front: Http, back: Http) {
    let taken = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let count = std::sync::Arc::clone(&taken);
    let upstream =
        Upstream::answering(back, move |_| Response::new(large(std::sync::Arc::clone(&count)))).await;
    let proxy =
        Proxy::with(&[upstream.address], Setup { protocol: back.upstream(), ..Setup::default() }).await;
    let mut client = Client::connect(proxy.address, front).await;
    let response = client.get("/").await;
    let mut last = usize::MAX;
    let settled = async {
        while std::mem::replace(&mut last, taken.load(Ordering::Relaxed)) != taken.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.expect("the flow stops");
    // Loopback sockets alone hold some 20 MiB over the two hops.
    assert!(last < CHUNKS * 3 / 4, "{last} of {CHUNKS} chunks were taken for a client that reads none");
    let mut body = response.into_body();
    let mut received = 0;
    while let Some(frame) = tokio::time::timeout(PATIENCE, body.frame()).await.expect("flow") {
        received += frame.unwrap().into_data().map_or(0, |data| data.len());
    }
    assert_eq!(received, CHUNK * CHUNKS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_read_h1_to_h1() {
    slow_reader(Http::One, Http::One).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_read_h2_to_h2() {
    slow_reader(Http::Two, Http::Two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_passes_upstream_in_pieces() {
    for (front, back) in [(Http::One, Http::Two), (Http::Two, Http::One)] {
        let upstream =
            Upstream::answering(back, |seen| Response::new(full(seen.body.len().to_string()))).await;
        let setup = Setup { protocol: back.upstream(), ..Setup::default() };
        let proxy = Proxy::with(&[upstream.address], setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        let request = Request::put("/").body(large(Default::default())).unwrap();
        assert_eq!(text(client.send(request).await).await, (CHUNK * CHUNKS).to_string());
    }
}

/// The upstream decides about `Expect: 100-continue`, not the proxy.
/// An upstream that takes an expectation for another than we do would wait for what nobody sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expectation_that_is_not_known_is_not_sent_on() {
    let upstream = Upstream::echo(Http::One).await;
    let proxy = Proxy::start(&[upstream.address]).await;
    for expectation in ["200-ok", "100-continue, 200-ok", "100-continue\r\nexpect: 200-ok"] {
        let head =
            format!("POST / HTTP/1.1\r\nhost: a\r\nexpect: {expectation}\r\ncontent-length: 5\r\n\r\nhello");
        let (answer, _) = raw(proxy.address, head.as_bytes()).await;
        assert!(answer.contains("HTTP/1.1 200") && answer.ends_with("hello"), "{expectation}: {answer}");
        assert!(!upstream.last().headers.contains_key("expect"), "{expectation}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_expect_100() {
    for agree in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = tokio::spawn(async move {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                stream.read_line(&mut head).await.unwrap();
            }
            assert!(head.to_ascii_lowercase().contains("expect: 100-continue"), "{head}");
            let mut early = [0; 5];
            let quiet = tokio::time::timeout(Duration::from_millis(300), stream.read_exact(&mut early)).await;
            assert!(quiet.is_err(), "the body came before it was asked for");
            if agree {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
                stream.read_exact(&mut early).await.unwrap();
                assert_eq!(&early, b"hello");
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            } else {
                stream.write_all(b"HTTP/1.1 417 No\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                assert_eq!(stream.read(&mut early).await.unwrap_or(0), 0, "no body was wanted");
            }
        });
        let proxy = Proxy::start(&[address]).await;
        let mut stream = BufReader::new(TcpStream::connect(proxy.address).await.unwrap());
        let head = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, stream.read_line(&mut line)).await.expect("an answer").unwrap();
        if agree {
            assert!(line.starts_with("HTTP/1.1 100 "), "{line}");
            stream.write_all(b"hello").await.unwrap();
            stream.read_line(&mut line).await.unwrap();
            line.clear();
            stream.read_line(&mut line).await.unwrap();
            assert!(line.starts_with("HTTP/1.1 200 "), "{line}");
        } else {
            assert!(line.starts_with("HTTP/1.1 417 "), "{line}");
        }
        upstream.await.unwrap();
    }
}

/// Answers an upgrade with 101 and echoes, or with `status`.
async fn websocket(status: u16) -> (std::net::SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut stream = BufReader::new(listener.accept().await.unwrap().0);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            stream.read_line(&mut head).await.unwrap();
        }
        if status == 101 {
            let answer =
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nfirst";
            stream.write_all(answer).await.unwrap();
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        } else {
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_millis(500), stream.read_to_end(&mut rest)).await;
        head + &String::from_utf8_lossy(&rest)
    });
    (address, task)
}

const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_passes_after_101_and_carries_bytes_both_ways() {
    let (address, upstream) = websocket(101).await;
    let proxy = Proxy::start(&[address]).await;
    let (answer, _) = raw(proxy.address, format!("{UPGRADE}ping").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("upgrade: websocket"), "{answer}");
    assert!(answer.ends_with("firstping"), "{answer}");
    assert!(upstream.await.unwrap().contains("upgrade: websocket"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h1_upgrade_no_101() {
    for status in [200, 400] {
        let (address, upstream) = websocket(status).await;
        let proxy = Proxy::start(&[address]).await;
        let bytes = format!("{UPGRADE}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
        let (answer, closed) = raw(proxy.address, bytes.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && closed, "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert!(!upstream.await.unwrap().contains("smuggled"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_that_is_not_on_the_list_is_a_plain_request() {
    let upstream = Upstream::echo(Http::One).await;
    let proxy = Proxy::start(&[upstream.address]).await;
    let (answer, _) = raw(proxy.address, UPGRADE.replace("websocket", "h2c").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(!upstream.last().headers.contains_key("upgrade"));
}

/// Longer than the tick after which an idle connection is parked, with and without a half-read request in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_connection_is_taken_up_again() {
    let upstream = Upstream::named(Http::One, "ok").await;
    let proxy = Proxy::start(&[upstream.address]).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    for cut in [request.len(), 0, 3, 20] {
        stream.write_all(&request[..cut]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1300)).await;
        stream.write_all(&request[cut..]).await.unwrap();
        let mut answer = vec![0; 4096];
        let mut have = 0;
        while !answer[..have].ends_with(b"ok") {
            let read = tokio::time::timeout(PATIENCE, stream.read(&mut answer[have..])).await;
            have += read.expect("an answer").unwrap();
            assert!(have > 0);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_access_log_has_a_line_a_request() {
    use pontoon_proxy::config::listener::{AccessLog, AccessLogFormat};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let upstream = Upstream::echo(Http::One).await;
    let log = AccessLog { path: path.to_str().unwrap().into(), format: AccessLogFormat::Json };
    let setup = Setup { http: Box::new(move |http| http.access_log = vec![log]), ..Setup::default() };
    let proxy = Proxy::with(&[upstream.address], setup).await;
    let mut client = Client::connect(proxy.address, Http::Two).await;
    let request = Request::post("/x?y=z").body(full("hello")).unwrap();
    assert_eq!(client.send(request).await.status(), StatusCode::OK);
    proxy.cluster.endpoints.store(endpoints(&[]));
    client.get("/none").await;
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    until("two lines", || lines().lines().count() == 2).await;
    let values: Vec<serde_json::Value> =
        lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = values.iter().find(|value| value["path"] == "/x?y=z").unwrap();
    assert_eq!(
        (&first["status"], &first["bytes_received"], &first["bytes_sent"]),
        (&200.into(), &5.into(), &5.into())
    );
    assert_eq!((&first["protocol"], &first["host"]), (&"HTTP/2".into(), &"shop.test".into()));
    assert_eq!((&first["route"], &first["cluster"]), (&"all".into(), &"pool/default/shop".into()));
    assert_eq!(first["endpoint"], upstream.address.to_string());
    assert_eq!(first["attempts"], 1);
    let second = values.iter().find(|value| value["path"] == "/none").unwrap();
    assert_eq!((&second["flags"], &second["reason"]), (&"UH".into(), &"no_healthy_upstream".into()));
}

on_all_protocols! {
    /// Each event comes through as soon as it is sent, and the idle time runs from the last one. Without a timeout of
    /// the route, which is meant for the whole answer, nothing cuts them.
    async fn server_sent_events(front, back) {
        let upstream = Upstream::answering(back, |_| {
            let events = futures_util::stream::unfold(0, |number| async move {
                if number == 8 {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
                Some((Ok(Frame::data(Bytes::from(format!("data: {number}\n\n")))), number + 1))
            });
            let response = Response::builder().header("content-type", "text/event-stream");
            response.body(BodyExt::boxed_unsync(StreamBody::new(events))).unwrap()
        })
        .await;
        let setup = Setup {
            protocol: back.upstream(),
            forward: Box::new(|forward| forward.timeout = None),
            // Shorter than the whole, longer than the silence between two events.
            http: Box::new(|http| http.timeouts.stream_idle = Some(Duration::from_millis(1_000))),
            ..Setup::default()
        };
        let proxy = Proxy::with(&[upstream.address], setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        let mut body = client.get("/events").await.into_body();
        for number in 0..8 {
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await.expect("an event").unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), format!("data: {number}\n\n"));
        }
        assert!(body.collect().await.unwrap().to_bytes().is_empty());
    }
}

/// An answer that begins before its request has ended, to a client that reads nothing before it has sent all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_goes_on_while_nobody_reads_its_answer() {
    // More than sockets hold.
    const BYTES: usize = 32 * 1024 * 1024;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let upstream = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut read, mut write) = stream.into_split();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(read.read_u8().await.unwrap());
        }
        let answer = async {
            write.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {BYTES}\r\n\r\n").as_bytes()).await?;
            write.write_all(&vec![b'a'; BYTES]).await
        };
        let mut body = vec![0; BYTES];
        let (answered, read) = tokio::join!(answer, read.read_exact(&mut body));
        answered.unwrap();
        assert_eq!(read.unwrap(), BYTES);
        body.iter().all(|byte| *byte == b'q')
    });
    let proxy = Proxy::start(&[address]).await;
    let mut client = TcpStream::connect(proxy.address).await.unwrap();
    let exchange = async {
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {BYTES}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&vec![b'q'; BYTES]).await.unwrap();
        let mut answer = vec![0; BYTES];
        client.read_exact(&mut answer).await.expect("all of the answer");
        assert!(upstream.await.unwrap(), "another body");
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("one waits for the other");
}

/// An endpoint that answers at the head, and closes with most of the body unread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_to_half_a_request_reaches_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            stream.write_all(b"HTTP/1.1 413 Too Much\r\ncontent-length: 4\r\n\r\nmuch").await.unwrap();
        }
    });
    let proxy = Proxy::start(&[address]).await;
    for _ in 0..20 {
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 33554432\r\n\r\n").await.unwrap();
        let (mut read, mut write) = client.into_split();
        let sending = tokio::spawn(async move { write.write_all(&vec![b'q'; 33_554_432]).await });
        let mut answer = vec![0; 4096];
        let read = tokio::time::timeout(PATIENCE, read.read(&mut answer)).await.expect("an answer");
        let answer = String::from_utf8_lossy(&answer[..read.unwrap()]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 413 Too Much\r\n"), "{answer}");
        sending.abort();
    }
}

/// A body that cannot be read to its end ends an answer that has begun: the endpoint waits for the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_ends_with_a_request_that_breaks_off() {
    for no_chunk in [&b"world\r\nno chunk\r\n"[..], b""] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(&[listener.local_addr().unwrap()]).await;
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        let request = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\n";
        client.write_all(request).await.unwrap();
        let (mut upstream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"hello\r\n") {
            assert!(upstream.read_buf(&mut bytes).await.unwrap() > 0);
        }
        let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nyes\r\n";
        upstream.write_all(answer).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"yes\r\n") {
            assert!(client.read_buf(&mut answer).await.unwrap() > 0, "{answer:?}");
        }
        // It stays, or goes.
        let stays = !no_chunk.is_empty();
        client.write_all(no_chunk).await.unwrap();
        let _client = stays.then_some(client);
        // Before it would be a body that comes too slowly.
        let ended = tokio::time::timeout(Duration::from_secs(20), async {
            let mut rest = [0; 1024];
            while upstream.read(&mut rest).await.is_ok_and(|length| length > 0) {}
        });
        ended.await.unwrap_or_else(|_| panic!("it waits for the rest; the client stays: {stays}"));
    }
}
