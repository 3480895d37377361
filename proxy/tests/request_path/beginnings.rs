//! How connections begin: drop by drop, until somebody's patience ends; and in the protocol that `codec_type` says.

use std::time::{Duration, SystemTime};

use pontoon_xds::pb::envoy::config::core::v3::CidrRange;
use pontoon_xds::pb::envoy::config::listener::v3::{FilterChain, FilterChainMatch, Listener, filter};
use pontoon_xds::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use pontoon_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use pontoon_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::CodecType;
use pontoon_xds::pb::google::protobuf::{Duration as ProtoDuration, UInt32Value};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::fixture::*;
use crate::tcp::filter;
use crate::tls::*;

const LIMIT: Duration = Duration::from_millis(800);

fn proto(duration: Duration) -> Option<ProtoDuration> {
    Some(ProtoDuration { seconds: duration.as_secs() as i64, nanos: duration.subsec_nanos() as i32 })
}

/// Changes what a chain's HTTP connection manager says.
pub(crate) fn managed(
    mut chain: FilterChain,
    change: impl FnOnce(&mut HttpConnectionManager),
) -> FilterChain {
    let Some(filter::ConfigType::TypedConfig(config)) = &mut chain.filters[0].config_type else {
        panic!("{chain:?}")
    };
    let mut manager = HttpConnectionManager::decode(&*config.value).unwrap();
    change(&mut manager);
    *config = any(&manager);
    chain
}

/// Sends these bytes one by one, with a pause after each, and gives how long the connection lasted.
async fn drip(edge: &Edge, bytes: &[u8]) -> Duration {
    let start = SystemTime::now();
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut read, mut write) = stream.split();
    let drops = async {
        for byte in bytes.iter().cycle() {
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let end = tokio::time::timeout(PATIENCE, read.read_to_end(&mut answer));
    tokio::select! {
        end = end => assert!(end.is_ok(), "never closed"),
        () = drops => {}
    }
    assert!(answer.is_empty() || answer[0] == 21, "an alert at most: {answer:?}");
    start.elapsed().unwrap()
}

/// A ClientHello that never ends, read by the handshake or by who looks for its name first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_tls_handshake() {
    let authority = Authority::new();
    // A record of 16 KiB with a hello of as much: long enough for 50 ms a byte.
    let mut hello = vec![22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb, 3, 3];
    hello.extend([7; 200]);
    for inspected in [false, true] {
        let pair = authority.sign(&["shop.test"]);
        let names: &[&str] = if inspected { &["shop.test"] } else { &[] };
        let mut one = chain("hello", names, Some(context(vec![certificate(&pair)])));
        one.transport_socket_connect_timeout = proto(LIMIT);
        let mut listener = listener(vec![one]);
        listener.listener_filters_timeout = proto(LIMIT);
        let edge = Edge::over(&[], &listener).await;
        let took = drip(&edge, &hello).await;
        assert!(took >= LIMIT && took < LIMIT * 4, "{inspected}: {took:?}");
    }
}

/// A PROXY protocol header that never ends, in either version; also where the listener would go on without having seen
/// what it looks for, as nobody knows who the client is then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_proxy_protocol_header() {
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x0f\xff";
    for proceed in [false, true] {
        for bytes in [&b"PROXY TCP4 192.0.2.1"[..], &v2[..]] {
            let mut listener = listener(vec![chain("hello", &[], None)]);
            listener.listener_filters = vec![filter(&ProxyProtocol::default())];
            listener.listener_filters_timeout = proto(LIMIT);
            listener.continue_on_listener_filters_timeout = proceed;
            let edge = Edge::over(&[], &listener).await;
            let mut long = bytes.to_vec();
            long.extend([b'1'; 200]);
            let took = drip(&edge, &long).await;
            // Version 1 is a line of 107 bytes at most.
            assert!(took < LIMIT * 8, "{took:?}");
            until("its end", || {
                edge.metrics().contains("pontoon_downstream_connections{listener=\"edge\"} 0\n")
            })
            .await;
        }
    }
}

/// Whoever writes a PROXY protocol header is believed where one is read. Who may write one is for the chains to say, by
/// the address that the peer itself has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_proxy_protocol() {
    let range = CidrRange { address_prefix: "127.0.0.2".into(), prefix_len: Some(UInt32Value { value: 32 }) };
    let mut trusting = chain("hello", &[], None);
    trusting.filter_chain_match =
        Some(FilterChainMatch { direct_source_prefix_ranges: vec![range], ..FilterChainMatch::default() });
    let mut listener = listener(vec![trusting]);
    listener.listener_filters = vec![filter(&ProxyProtocol::default())];
    let edge = Edge::over(&[], &listener).await;
    for (peer, named, served) in [
        ("127.0.0.2", "192.0.2.1", true),
        ("127.0.0.1", "192.0.2.1", false),
        ("127.0.0.1", "127.0.0.2", false),
    ] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{peer}:0").parse().unwrap()).unwrap();
        let mut stream = socket.connect(edge.address).await.unwrap();
        let announced = format!("PROXY TCP4 {named} 192.0.2.2 5 80\r\n");
        let request = "GET / HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n\r\n";
        stream.write_all([announced, request.into()].concat().as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // One that is closed with bytes unread ends by a reset.
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
        assert_eq!(answer.starts_with(b"HTTP/1.1 200 "), served, "{peer} says that it is {named}");
        assert!(served || answer.is_empty(), "{peer} says that it is {named}");
    }
    assert!(edge.metrics().contains("pontoon_no_filter_chain_total{listener=\"edge\"} 2\n"));
}

/// `AUTO` takes both versions; each of the others takes its own and ends a connection in the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_codec_type_is_what_the_listener_speaks() {
    let authority = Authority::new();
    let pair = authority.sign(&["shop.test"]);
    for (codec, one, two) in
        [(CodecType::Auto, true, true), (CodecType::Http1, true, false), (CodecType::Http2, false, true)]
    {
        let with = |tls| -> Listener {
            let chain = chain("hello", &[], tls);
            listener(vec![managed(chain, |manager| manager.codec_type = codec.into())])
        };
        let plain = Edge::over(&[], &with(None)).await;
        for (http, taken) in [(Http::One, one), (Http::Two, two)] {
            let mut client = Client::connect(plain.address, http).await;
            let asked = client.try_send(http::Request::get("/").body(empty()).unwrap());
            let answer = tokio::time::timeout(PATIENCE, asked).await.expect("an answer or an end");
            let served = matches!(&answer, Ok(answer) if answer.status() == 200);
            assert_eq!(served, taken, "{codec:?} {http:?}: {answer:?}");
        }
        // Through TLS, what is agreed on is what the listener offers.
        let mut tls = context(vec![certificate(&pair)]);
        let offered: &[&str] = match codec {
            CodecType::Http1 => &["http/1.1"],
            CodecType::Http2 => &["h2"],
            _ => &["h2", "http/1.1"],
        };
        tls.common_tls_context.as_mut().unwrap().alpn_protocols =
            offered.iter().map(ToString::to_string).collect();
        let edge = Edge::over(&[], &with(Some(tls))).await;
        let stream = connect(edge.address, &client(&authority, None, &["h2", "http/1.1"]), "shop.test").await;
        let stream = stream.unwrap();
        let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(agreed.as_deref(), Some(offered[0].as_bytes()), "{codec:?}");
        if codec == CodecType::Http1 {
            assert_eq!(ask(stream).await.unwrap(), "hello");
        } else {
            let io = hyper_util::rt::TokioIo::new(stream);
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
            tokio::spawn(connection);
            let request = http::Request::get("https://shop.test/").body(empty()).unwrap();
            assert_eq!(text(sender.send_request(request).await.unwrap()).await, "hello");
        }
    }
}
