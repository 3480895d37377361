//! `restart.hot`: the same for HTTP/2 and for WebSockets beside HTTP/1.1, over twenty generations; and with the control
//! plane gone.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::rig::Served;
use super::{Chain, Load, Protocol, ended, head};

/// Streams at a time on a connection.
const STREAMS: usize = 4;
/// Words on a WebSocket, which is how long one lives: well within the time that a process has to finish.
const WORDS: usize = 100;
const GENERATIONS: usize = 20;

/// Grants the upgrade, and gives back what comes.
pub(super) async fn echo(mut stream: TcpStream) {
    let granted = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    if stream.write_all(granted).await.is_ok() {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    }
}

/// One connection, until it says that it takes no more. A request that was not sent is no failure: it is the next
/// connection's.
pub(super) async fn http2(address: SocketAddr, stop: &AtomicBool, done: &AtomicU64) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    let opened = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = opened.map_err(|error| format!("handshake: {error}"))?;
    let driver = tokio::spawn(connection);
    let streams = (0..STREAMS).map(|_| {
        let mut sender = sender.clone();
        async move {
            while !stop.load(Ordering::Relaxed) {
                if sender.ready().await.is_err() {
                    return Ok(());
                }
                let request = http::Request::get("http://shop/").body(Empty::<Bytes>::new()).unwrap();
                let answer = match sender.try_send_request(request).await {
                    Ok(answer) => answer,
                    Err(mut refused) => {
                        let unsent = refused.take_message().is_some();
                        let error = refused.into_error();
                        return if unsent || was_left_aside(&error) {
                            Ok(())
                        } else {
                            Err(format!("send: {error:?}"))
                        };
                    }
                };
                let status = answer.status();
                let body = answer.into_body().collect().await.map_err(|error| format!("body: {error}"))?;
                if status != 200 || body.to_bytes() != "ok" {
                    return Err(format!("answered {status}"));
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
    });
    let ends = futures_util::future::join_all(streams).await;
    driver.abort();
    ends.into_iter().collect()
}

/// Whether a request crossed the GOAWAY that does not count it among those taken: nothing was done with it, and it is to
/// be sent again (RFC 9113, 6.8). h2's client may answer the PING that comes with the first GOAWAY before it sends a head
/// that was ready by then, and what comes behind that answer is too late.
fn was_left_aside(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| {
        cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR)
    })
}

/// One WebSocket, word by word.
pub(super) async fn websocket(
    address: SocketAddr,
    stop: &AtomicBool,
    done: &AtomicU64,
) -> Result<(), String> {
    let say = |what: &'static str| move |error: std::io::Error| format!("WebSocket: {what}: {error}");
    let mut stream = TcpStream::connect(address).await.map_err(say("connect"))?;
    let ask = b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(ask).await.map_err(say("send"))?;
    let granted = head(&mut stream).await.map_err(say("receive"))?;
    if !granted.starts_with(b"HTTP/1.1 101 ") {
        return Err(format!("WebSocket: answered {:?}", String::from_utf8_lossy(&granted)));
    }
    for word in 0..WORDS as u64 {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        stream.write_all(&word.to_be_bytes()).await.map_err(say("send"))?;
        let mut back = [0; 8];
        stream.read_exact(&mut back).await.map_err(say("receive"))?;
        if back != word.to_be_bytes() {
            return Err("WebSocket: another word came back".into());
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// A load of each protocol.
fn loads(chain: &Chain) -> [Load; 3] {
    [(Protocol::Http1, 16), (Protocol::Http2, 8), (Protocol::WebSocket, 8)]
        .map(|(protocol, connections)| Load::by(protocol, chain.gateway, connections))
}

async fn go_on(loads: &[Load; 3]) {
    for load in loads {
        load.answered(50).await;
    }
}

/// Each request that came to the upstream was answered: none was sent on and lost, and none sent on twice.
async fn finish(chain: &Chain, loads: [Load; 3], what: &str) {
    let mut answered = Vec::new();
    for load in loads {
        answered.push(load.finish().await);
    }
    assert_eq!(chain.requests.load(Ordering::Relaxed), answered[0] + answered[1], "{what}: {answered:?}");
    println!("{what}: {answered:?} answered by HTTP/1.1, HTTP/2 and WebSocket, 0 failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_hot_loses_nothing_of_any_protocol() {
    let chain = Chain::start().await;
    let mut old = chain.proxy("default/edge", 2);
    chain.until_ready().await;
    let loads = loads(&chain);
    for generation in 0..GENERATIONS {
        go_on(&loads).await;
        let new = chain.proxy("default/edge", 1 + generation % 2);
        // Within its time to drain, or its status says so.
        ended(std::mem::replace(&mut old, new)).await;
    }
    go_on(&loads).await;
    finish(&chain, loads, "20 generations").await;
    drop(old);
}

/// Without a control plane a new process has nothing to serve by. It waits, the old one serves on, and takes nothing from
/// it before it is ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_hot_waits_for_a_control_plane_that_is_gone() {
    let mut chain = Chain::start().await;
    let mut old = chain.proxy("default/edge", 2);
    chain.until_ready().await;
    let loads = loads(&chain);
    go_on(&loads).await;
    let (_, dir) = chain.served.take().unwrap().stop().await;
    go_on(&loads).await;
    let mut new = chain.proxy("default/edge", 2);
    for _ in 0..10 {
        go_on(&loads).await;
    }
    assert!(chain.is_ready().await, "the old one says that it is ready");
    assert!(old.try_wait().unwrap().is_none() && new.try_wait().unwrap().is_none());
    chain.served = Some(Served::at(dir, "127.0.0.1:0", &chain.xds).await);
    ended(old).await;
    go_on(&loads).await;
    finish(&chain, loads, "the control plane gone").await;
    drop(new);
}
