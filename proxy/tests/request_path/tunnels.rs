//! Protocols that change on the way: WebSocket by `Upgrade` and by extended CONNECT (RFC 8441) in any pairing, and
//! CONNECT that ends here.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pontoon_proxy::route::matching::PathMatcher;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Takes every change of protocol and echoes; others get 404. Tells what it was asked.
pub(crate) async fn echo(http: Http) -> (SocketAddr, tokio::sync::mpsc::Receiver<http::request::Parts>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, tell) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let told = told.clone();
            let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
                let told = told.clone();
                async move {
                    let asked = request.headers().contains_key("upgrade")
                        || request.extensions().get::<Protocol>().is_some();
                    let declined = request.uri().path() == "/declined";
                    let ignored = request.uri().path() == "/ignored";
                    let upgraded = hyper::upgrade::on(&mut request);
                    told.send(request.into_parts().0).await.unwrap();
                    let response = Response::builder();
                    if ignored {
                        return Ok(response.body(full("an ordinary answer")).unwrap());
                    }
                    if !asked || declined {
                        return Ok(response.status(404).body(full("no")).unwrap());
                    }
                    tokio::spawn(async move {
                        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded.await.unwrap()));
                        drop(tokio::io::copy(&mut read, &mut write).await);
                        drop(write.shutdown().await);
                    });
                    let response = match http {
                        Http::One => response
                            .status(101)
                            .header("upgrade", "websocket")
                            .header("connection", "upgrade"),
                        Http::Two => response.status(200),
                    };
                    Ok::<_, hyper::Error>(response.header("x-own", "1").body(empty()).unwrap())
                }
            });
            let io = TokioIo::new(stream);
            tokio::spawn(async move {
                match http {
                    Http::One => {
                        let serving =
                            hyper::server::conn::http1::Builder::new().serve_connection(io, service);
                        drop(serving.with_upgrades().await);
                    }
                    Http::Two => {
                        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        drop(builder.enable_connect_protocol().serve_connection(io, service).await);
                    }
                }
            });
        }
    });
    (address, tell)
}

/// Asks for WebSocket as the protocol has it.
async fn ask(client: &mut Client, path: &str) -> Response<Incoming> {
    let request = Request::builder().uri(path).header("sec-websocket-version", "13");
    let request = match client {
        Client::One(_) => request
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-key", KEY)
            // As some clients send.
            .header("content-length", "0")
            .body(empty()),
        Client::Two(_) => {
            request.method(Method::CONNECT).extension(Protocol::from_static("websocket")).body(empty())
        }
    };
    client.send(request.unwrap()).await
}

async fn upgraded(mut response: Response<Incoming>) -> TokioIo<Upgraded> {
    let upgrade = hyper::upgrade::on(&mut response);
    TokioIo::new(tokio::time::timeout(PATIENCE, upgrade).await.expect("in time").unwrap())
}

async fn assert_echoes<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(stream: &mut S) {
    for text in ["ping", "pong"] {
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut back = [0; 4];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("an echo").unwrap();
        assert_eq!(back, text.as_bytes());
    }
    // One end says that it has no more, and gets the other's end.
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("an end").unwrap();
    assert!(rest.is_empty());
}

on_all_protocols! {
    async fn a_websocket_passes(front, back) {
        let (address, mut asked) = echo(back).await;
        let setup = Setup { protocol: back.upstream(), ..Setup::default() };
        let proxy = Proxy::with(&[address], setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        let response = ask(&mut client, "/chat?room=1").await;
        match front {
            Http::One => {
                assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
                assert_eq!(response.headers()["upgrade"], "websocket");
                if back == Http::Two {
                    assert_eq!(response.headers()["sec-websocket-accept"], ACCEPT);
                }
            }
            Http::Two => {
                assert_eq!(response.status(), StatusCode::OK);
                assert!(!response.headers().contains_key("sec-websocket-accept"));
            }
        }
        assert_eq!(response.headers()["x-own"], "1");
        let seen = asked.recv().await.unwrap();
        assert_eq!(seen.uri.path_and_query().unwrap(), "/chat?room=1");
        assert_eq!(seen.headers["sec-websocket-version"], "13");
        match back {
            Http::One => {
                assert_eq!((seen.method, &seen.headers["upgrade"]), (Method::GET, &"websocket".parse().unwrap()));
                assert!(!seen.headers["sec-websocket-key"].is_empty());
            }
            Http::Two => {
                assert_eq!(seen.method, Method::CONNECT);
                assert_eq!(seen.extensions.get::<Protocol>().unwrap().as_str(), "websocket");
                assert!(!seen.headers.contains_key("sec-websocket-key"));
                assert!(!seen.headers.contains_key("content-length"), "a tunnel has no body");
            }
        }
        assert_echoes(&mut upgraded(response).await).await;
        let active = r#"pontoon_listener_requests_active{listener="edge"}"#;
        until("the exchange ends", || proxy.metric(active) == 0).await;
    }

    async fn a_websocket_that_is_declined_is_a_plain_answer(front, back) {
        let (address, _asked) = echo(back).await;
        let setup = Setup { protocol: back.upstream(), ..Setup::default() };
        let proxy = Proxy::with(&[address], setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        let response = ask(&mut client, "/declined").await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(text(response).await, "no");
    }

    async fn a_websocket_that_says_nothing_ends_with_the_idle_time(front, back) {
        let (address, _asked) = echo(back).await;
        let http = |http: &mut pontoon_proxy::config::listener::HttpSettings| {
            http.timeouts.stream_idle = Some(Duration::from_millis(300));
        };
        let setup = Setup { protocol: back.upstream(), http: Box::new(http), ..Setup::default() };
        let proxy = Proxy::with(&[address], setup).await;
        let mut client = Client::connect(proxy.address, front).await;
        let mut stream = upgraded(ask(&mut client, "/").await).await;
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok() && rest.is_empty());
    }

    async fn connect_opens_a_tunnel_to_the_cluster(front, _back) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
            }
        });
        let setup = Setup {
            http: Box::new(|http| http.upgrades.push("connect".into())),
            route: Box::new(|route| route.matcher.path = PathMatcher::Connect),
            forward: Box::new(|forward| forward.connect = true),
            ..Setup::default()
        };
        let proxy = Proxy::with(&[address], setup).await;
        let mut stream = match front {
            Http::One => {
                let mut stream = TcpStream::connect(proxy.address).await.unwrap();
                stream.write_all(b"CONNECT db.test:5432 HTTP/1.1\r\nhost: db.test:5432\r\n\r\n").await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("content-length"), "{head}");
                Either::Tcp(stream)
            }
            Http::Two => {
                let stream = TcpStream::connect(proxy.address).await.unwrap();
                let (mut sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
                tokio::spawn(connection);
                let request = Request::connect("db.test:5432").body(empty()).unwrap();
                let response = sender.send_request(request).await.unwrap();
                assert_eq!(response.status(), 200);
                Either::Stream(upgraded(response).await, sender)
            }
        };
        match &mut stream {
            Either::Tcp(stream) => assert_echoes(stream).await,
            Either::Stream(stream, _) => assert_echoes(stream).await,
        }
        let mut client = Client::connect(proxy.address, front).await;
        assert_eq!(client.get("/").await.status(), 404, "the route takes CONNECT only");
    }
}

enum Either {
    Tcp(TcpStream),
    /// With the sender, without which the connection would end.
    Stream(
        TokioIo<Upgraded>,
        #[allow(dead_code, reason = "held, not used")] hyper::client::conn::http2::SendRequest<Body>,
    ),
}

/// A protocol that the listener does not list: HTTP/2 has no way to ignore the wish.
/// Over HTTP/2 it would read as if the protocol had changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_200_to_an_extended_connect_is_no_grant() {
    let (address, _asked) = echo(Http::One).await;
    let proxy = Proxy::start(&[address]).await;
    for (front, expected) in [(Http::One, StatusCode::OK), (Http::Two, StatusCode::BAD_GATEWAY)] {
        let mut client = Client::connect(proxy.address, front).await;
        assert_eq!(ask(&mut client, "/ignored").await.status(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extended_connect_that_is_not_on_the_list_is_refused() {
    let (address, _asked) = echo(Http::One).await;
    let proxy = Proxy::start(&[address]).await;
    let mut client = Client::connect(proxy.address, Http::Two).await;
    for protocol in [Protocol::from_static("connect-udp"), Protocol::from_static("connect")] {
        let request = Request::builder().method(Method::CONNECT).uri("/").extension(protocol);
        let response = client.send(request.body(empty()).unwrap()).await;
        assert_eq!(response.status(), 501);
        assert_eq!(response.headers()["x-pontoon-reason"], "upgrade_refused");
    }
}

/// CONNECT is off unless both the listener and a route say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_is_refused_where_no_route_ends_it() {
    let (address, _asked) = echo(Http::One).await;
    let setup = Setup { http: Box::new(|http| http.upgrades.push("connect".into())), ..Setup::default() };
    let proxy = Proxy::with(&[address], setup).await;
    let (answer, _) = raw(proxy.address, b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let body = b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\ncontent-length: 3\r\n\r\nabc";
    let (answer, _) = raw(proxy.address, body).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}
