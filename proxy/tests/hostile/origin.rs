//! HTTP/2 upstreams of raw frames: what they refuse is sent again where nothing can have been done with it, once,
//! and never anything else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Method, Request};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::fixture::*;
use crate::frames::*;

const REFUSED_STREAM: u32 = 7;
const INTERNAL_ERROR: u32 = 2;
const NO_ERROR: u32 = 0;

/// What is done with a stream.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Answered 200.
    Answer,
    /// Answered 200 with a value that has white space around it.
    Padded,
    /// Reset with this code.
    Reset(u32),
    /// The connection ends, and no stream of it was looked at.
    GoAwayBefore,
    /// The connection ends once this stream is done, which is answered.
    GoAwayAfter,
    /// The connection is closed without a word.
    Close,
    /// Frames of this type and payload come without end.
    Flood(u8, &'static [u8]),
}

/// Does with its first stream what `first` says, and answers all others. Counts the streams it has seen.
async fn origin(first: Act) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let streams = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&streams);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut raw = Raw::accepted(stream).await;
                while let Some(frame) = raw.next().await {
                    if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                        raw.send(&crate::frames::frame(SETTINGS, ACK, 0, &[])).await;
                    }
                    if frame.kind != HEADERS {
                        continue;
                    }
                    let act = if count.fetch_add(1, Ordering::Relaxed) == 0 { first } else { Act::Answer };
                    let id = frame.stream;
                    let ok = crate::frames::frame(HEADERS, END_HEADERS | END_STREAM, id, &[0x88]);
                    let goaway = |last: u32| {
                        let payload = [last.to_be_bytes(), NO_ERROR.to_be_bytes()].concat();
                        crate::frames::frame(GOAWAY, 0, 0, &payload)
                    };
                    match act {
                        Act::Answer => raw.send(&ok).await,
                        Act::Padded => {
                            let head = [&[0x88], &literal(b"x-role", b" \tan admin ")[..]].concat();
                            raw.send(&crate::frames::frame(HEADERS, END_HEADERS | END_STREAM, id, &head))
                                .await
                        }
                        Act::Reset(code) => {
                            raw.send(&crate::frames::frame(RST_STREAM, 0, id, &code.to_be_bytes())).await
                        }
                        Act::GoAwayBefore => raw.send(&goaway(0)).await,
                        Act::GoAwayAfter => raw.send(&[goaway(id), ok].concat()).await,
                        Act::Close => return,
                        Act::Flood(kind, payload) => {
                            let stream = if matches!(kind, HEADERS | WINDOW_UPDATE) { id } else { 0 };
                            let some = crate::frames::frame(kind, END_HEADERS, stream, payload).repeat(500);
                            while raw.send(&some).await {}
                            return;
                        }
                    };
                }
            });
        }
    });
    (address, streams)
}

/// Sends one request through; gives its status and how many streams the origin saw.
async fn one(first: Act, method: Method, body: &'static str) -> (u16, usize) {
    let (address, streams) = origin(first).await;
    let setup = Setup { protocol: Http::Two.upstream(), ..Setup::default() };
    let proxy = Proxy::with(&[address], setup).await;
    let mut client = Client::connect(proxy.address, Http::One).await;
    let body = if body.is_empty() { empty() } else { full(body) };
    let request = Request::builder().method(method).uri("/").body(body).unwrap();
    let status = client.send(request).await.status().as_u16();
    (status, streams.load(Ordering::Relaxed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_stream_is_sent_again_once() {
    assert_eq!(one(Act::Reset(REFUSED_STREAM), Method::GET, "").await, (200, 2));
    assert_eq!(one(Act::Reset(REFUSED_STREAM), Method::POST, "").await, (200, 2), "nothing was done with it");
    // The body has gone with the first try.
    assert_eq!(one(Act::Reset(REFUSED_STREAM), Method::POST, "pay once").await, (503, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goaway_race() {
    assert_eq!(one(Act::GoAwayBefore, Method::GET, "").await, (200, 2));
    assert_eq!(one(Act::GoAwayBefore, Method::POST, "").await, (200, 2), "nothing was done with it");
    assert_eq!(one(Act::GoAwayAfter, Method::POST, "").await, (200, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_been_done_is_not_done_again() {
    assert_eq!(one(Act::Reset(INTERNAL_ERROR), Method::POST, "").await, (502, 1));
    assert_eq!(one(Act::Close, Method::POST, "").await, (502, 1));
    assert_eq!(one(Act::Close, Method::GET, "").await, (200, 2));
}

/// What carries nothing of an answer is not read for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_an_upstream_end_its_connection() {
    // `:status: 103`, by the name's index.
    let interim = Act::Flood(HEADERS, b"\x08\x03103");
    for flood in [interim, Act::Flood(WINDOW_UPDATE, &[0, 0, 0, 1]), Act::Flood(0xee, b"nothing")] {
        let (status, streams) = one(flood, Method::POST, "").await;
        assert_eq!((status, streams), (502, 1), "{flood:?}");
    }
}

/// Who trims a value and who does not read the same one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn white_space_around_an_answers_values_goes() {
    for http in [Http::One, Http::Two] {
        let (address, _) = origin(Act::Padded).await;
        let setup = Setup { protocol: Http::Two.upstream(), ..Setup::default() };
        let proxy = Proxy::with(&[address], setup).await;
        let answer = Client::connect(proxy.address, http).await.get("/").await;
        assert_eq!(answer.headers()["x-role"].as_bytes(), b"an admin");
    }
}

/// After a GOAWAY the next request takes a new connection, and none is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_after_a_goaway_take_a_new_connection() {
    let (address, streams) = origin(Act::GoAwayAfter).await;
    let setup = Setup { protocol: Http::Two.upstream(), ..Setup::default() };
    let proxy = Proxy::with(&[address], setup).await;
    let mut client = Client::connect(proxy.address, Http::Two).await;
    for _ in 0..20 {
        assert_eq!(client.send(Request::post("/").body(full("x")).unwrap()).await.status(), 200);
    }
    assert_eq!(streams.load(Ordering::Relaxed), 20);
}

impl Raw {
    /// The server's side, with the client's preface read and our settings sent.
    async fn accepted(stream: tokio::net::TcpStream) -> Raw {
        let mut raw = Raw::over(stream);
        let mut preface = [0; PREFACE.len()];
        raw.read.read_exact(&mut preface).await.unwrap();
        raw.send(&frame(SETTINGS, 0, 0, &[])).await;
        raw
    }
}
