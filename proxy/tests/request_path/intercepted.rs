//! What is intercepted works as it would without us. Here the kernel is played by a listener that takes connections to
//! any address for brought to it; `cargo xtask e2e network` has the kernel itself, and what is for nobody in the mesh.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use pontoon_proxy::config::chains::{Chains, OriginalDst};
use pontoon_proxy::config::keepalive::Clients;
use pontoon_proxy::config::listener::Listener;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::*;

/// A proxy whose connections have all been brought to it.
async fn intercepting(upstream: SocketAddr) -> (Proxy, SocketAddr) {
    let proxy = Proxy::start(&[upstream]).await;
    let chains = proxy.listener.chains.load_full();
    let chains = Chains {
        inspect: chains.inspect,
        original: Some(OriginalDst { keep_source: false }),
        keepalive: Clients::Usual,
        all: chains.all.clone(),
        default: None,
    };
    let brought = Arc::new(Listener {
        name: "brought".into(),
        transparent: true,
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        chains: ArcSwap::from_pointee(chains),
    });
    proxy.listeners.send(vec![brought]).unwrap();
    let mut bound = proxy.workers.bound();
    let found =
        |bound: &Vec<pontoon_proxy::worker::Bound>| bound.iter().any(|bound| &*bound.name == "brought");
    let bound = bound.wait_for(found).await.unwrap().clone();
    let address = *bound.iter().find(|bound| &*bound.name == "brought").unwrap().address.as_ref().unwrap();
    (proxy, address)
}

/// Answers each head that comes with what it is given, and then echoes.
async fn scripted(answer: &'static str) -> (SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, tell) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let told = told.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                told.send(String::from_utf8(head).unwrap()).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            });
        }
    });
    (address, tell)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_protocol_that_nobody_here_knows_is_changed_to() {
    let granted = "HTTP/1.1 101 Switching Protocols\r\nupgrade: foo/2\r\nconnection: upgrade\r\n\r\n";
    let (upstream, mut asked) = scripted(granted).await;
    let ask = b"GET / HTTP/1.1\r\nhost: shop.test\r\nconnection: upgrade\r\nupgrade: foo/2\r\n\r\n";
    let (_proxy, address) = intercepting(upstream).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(ask).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    assert!(asked.recv().await.unwrap().to_lowercase().contains("upgrade: foo/2\r\n"));
    stream.write_all(b"\0foo").await.unwrap();
    let mut word = [0; 4];
    stream.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"\0foo");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_is_not_changed_to_past_the_routes() {
    let (upstream, mut asked) = scripted("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let (_proxy, address) = intercepting(upstream).await;
    let ask = b"GET / HTTP/1.1\r\nhost: shop.test\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n";
    let (answer, closed) = raw(address, ask).await;
    assert!(answer.starts_with("HTTP/1.1 200") && !closed, "{answer}");
    let asked = asked.recv().await.unwrap();
    assert!(!asked.contains("h2c") && !asked.contains("http2-settings"), "{asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_server_is_asked_only_where_it_is_intercepted() {
    let (upstream, mut asked) = scripted("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let (proxy, address) = intercepting(upstream).await;
    let (answer, _) = raw(address, b"OPTIONS * HTTP/1.1\r\nhost: shop.test\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(asked.recv().await.unwrap().starts_with("OPTIONS * HTTP/1.1\r\n"));
    let (answer, _) = raw(address, b"GET * HTTP/1.1\r\nhost: shop.test\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    drop(proxy);
    let edge = Proxy::start(&[upstream]).await;
    let (answer, _) = raw(edge.address, b"OPTIONS * HTTP/1.1\r\nhost: shop.test\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}
