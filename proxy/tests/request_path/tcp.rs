//! Connections without HTTP, from Envoy's messages to bytes on sockets: both ends, what becomes of an end that
//! breaks, who is told of whom, and how one port takes several protocols.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;
use pontoon_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use pontoon_xds::pb::envoy::config::core::v3::proxy_protocol_config::Version;
use pontoon_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use pontoon_xds::pb::envoy::config::core::v3::{
    Address, ProxyProtocolConfig, SocketAddress, TcpKeepalive, TransportSocket, transport_socket,
};
use pontoon_xds::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use pontoon_xds::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use pontoon_xds::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter,
};
use pontoon_xds::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use pontoon_xds::pb::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use pontoon_xds::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use pontoon_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use pontoon_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use pontoon_xds::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use pontoon_xds::pb::google::protobuf::{Duration as ProtoDuration, UInt32Value};
use prost::{Message, Name};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::fixture::*;
use crate::tls::{Authority, Edge, any, ask, chain, client, connect, context, listener};

pub(crate) const DB: &str = "pool/default/db";

pub(crate) fn cluster(endpoints: &[SocketAddr]) -> Cluster {
    let endpoint = |address: &SocketAddr| {
        let socket = SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
            ..SocketAddress::default()
        };
        let address = Some(Address { address: Some(AddressKind::SocketAddress(socket)) });
        let endpoint = Endpoint { address, ..Endpoint::default() };
        LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..LbEndpoint::default() }
    };
    Cluster {
        name: DB.into(),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: DB.into(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: endpoints.iter().map(endpoint).collect(),
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        ..Cluster::default()
    }
}

/// A cluster whose connections begin with a PROXY protocol header.
fn announced(endpoints: &[SocketAddr], version: Version) -> Cluster {
    let config = ProxyProtocolConfig { version: version.into(), ..ProxyProtocolConfig::default() };
    let transport =
        ProxyProtocolUpstreamTransport { config: Some(config), ..ProxyProtocolUpstreamTransport::default() };
    Cluster {
        transport_socket: Some(TransportSocket {
            name: "proxy".into(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(any(&transport))),
        }),
        ..cluster(endpoints)
    }
}

fn to_db() -> TcpProxy {
    TcpProxy {
        stat_prefix: "db".into(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(DB.into())),
        ..TcpProxy::default()
    }
}

fn tcp(proxy: &TcpProxy, matches: FilterChainMatch) -> FilterChain {
    FilterChain {
        filter_chain_match: Some(matches),
        filters: vec![Filter {
            name: "tcp".into(),
            config_type: Some(filter::ConfigType::TypedConfig(any(proxy))),
        }],
        ..FilterChain::default()
    }
}

pub(crate) fn filter<M: Message + Name>(message: &M) -> ListenerFilter {
    ListenerFilter {
        name: M::NAME.into(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(any(message))),
        ..ListenerFilter::default()
    }
}

async fn edge(clusters: &[Cluster], proxy: &TcpProxy) -> Edge {
    Edge::over(clusters, &listener(vec![tcp(proxy, FilterChainMatch::default())])).await
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn both(edge: &Edge, upstream: &TcpListener) -> (TcpStream, TcpStream) {
    let near = TcpStream::connect(edge.address).await.unwrap();
    (near, within(upstream.accept()).await.unwrap().0)
}

async fn within<F: Future>(step: F) -> F::Output {
    tokio::time::timeout(PATIENCE, step).await.expect("it happens in time")
}

async fn counted(edge: &Edge, series: &str) {
    let series = format!("{series} 1\n");
    until(&series, || edge.metrics().contains(&series)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_direction_ends_by_itself() {
    let (upstream, address) = bind().await;
    let edge = edge(&[cluster(&[address])], &to_db()).await;
    let (mut near, mut far) = both(&edge, &upstream).await;
    near.write_all(b"select 1").await.unwrap();
    near.shutdown().await.unwrap();
    let mut asked = String::new();
    within(far.read_to_string(&mut asked)).await.unwrap();
    assert_eq!(asked, "select 1");
    // The other direction is still open.
    let answer: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let expected = answer.clone();
    let writing = tokio::spawn(async move {
        far.write_all(&answer).await.unwrap();
    });
    let mut got = Vec::new();
    within(near.read_to_end(&mut got)).await.unwrap();
    writing.await.unwrap();
    assert!(got == expected, "{} bytes came", got.len());
    counted(&edge, r#"pontoon_tcp_connections_total{listener="edge",flag="-",reason=""}"#).await;
    let metrics = edge.metrics();
    for series in [
        "sent_bytes_total{cluster=\"pool/default/db\"} 8\n",
        "received_bytes_total{cluster=\"pool/default/db\"} 3000000\n",
    ] {
        assert!(metrics.contains(&format!("pontoon_upstream_tcp_{series}")), "{metrics}");
    }
    assert!(
        metrics.contains("pontoon_upstream_tcp_connections{cluster=\"pool/default/db\"} 0\n"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_side_that_breaks_breaks_the_other() {
    let (upstream, address) = bind().await;
    let edge = edge(&[cluster(&[address])], &to_db()).await;
    for far_breaks in [true, false] {
        let (near, far) = both(&edge, &upstream).await;
        let (mut breaking, mut told) = if far_breaks { (far, near) } else { (near, far) };
        breaking.write_all(b"a part").await.unwrap();
        let mut part = [0; 6];
        within(told.read_exact(&mut part)).await.unwrap();
        SockRef::from(&breaking).set_linger(Some(Duration::ZERO)).unwrap();
        drop(breaking);
        let end = within(told.read(&mut part)).await.map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "far breaks: {far_breaks}");
    }
    for (flag, reason) in [("UC", "upstream_reset"), ("DC", "client_gone")] {
        counted(
            &edge,
            &format!(r#"pontoon_tcp_connections_total{{listener="edge",flag="{flag}",reason="{reason}"}}"#),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_endpoint_is_tried_where_one_refuses() {
    let (upstream, address) = bind().await;
    let (gone, refusing) = bind().await;
    drop(gone);
    let twice = TcpProxy { max_connect_attempts: Some(UInt32Value { value: 2 }), ..to_db() };
    let edge = edge(&[cluster(&[refusing, address])], &twice).await;
    for _ in 0..4 {
        let (mut near, mut far) = both(&edge, &upstream).await;
        near.write_all(b"x").await.unwrap();
        assert_eq!(within(far.read_u8()).await.unwrap(), b'x');
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_to_go_to_is_a_reset_with_a_reason() {
    let (gone, refusing) = bind().await;
    drop(gone);
    let edge = edge(&[cluster(&[refusing])], &to_db()).await;
    // The reset may be there before the client knows that it is connected.
    let end = match TcpStream::connect(edge.address).await {
        Ok(mut near) => within(near.read(&mut [0; 1])).await,
        Err(error) => Err(error),
    };
    assert_eq!(end.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    counted(&edge, r#"pontoon_tcp_connections_total{listener="edge",flag="UF",reason="connect_failure"}"#)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_and_old_connections_end() {
    let (upstream, address) = bind().await;
    let short = Some(ProtoDuration { seconds: 0, nanos: 100_000_000 });
    let idle = TcpProxy { idle_timeout: short, ..to_db() };
    let old = TcpProxy { max_downstream_connection_duration: short, ..to_db() };
    for (proxy, flag, reason) in [(idle, "SI", "stream_idle_timeout"), (old, "DT", "connection_too_old")] {
        let edge = edge(&[cluster(&[address])], &proxy).await;
        let (mut near, mut far) = both(&edge, &upstream).await;
        assert_eq!(within(near.read(&mut [0; 1])).await.unwrap(), 0);
        assert_eq!(within(far.read(&mut [0; 1])).await.unwrap(), 0);
        counted(
            &edge,
            &format!(r#"pontoon_tcp_connections_total{{listener="edge",flag="{flag}",reason="{reason}"}}"#),
        )
        .await;
    }
}

/// The timer of a socket of this process, as `/proc/net/tcp` has it: its kind, 2 is that of probes, and the time left.
fn timer(local: SocketAddr, remote: SocketAddr) -> Option<(u8, Duration)> {
    let text = |address: SocketAddr| match address.ip() {
        std::net::IpAddr::V4(ip) => format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port()),
        std::net::IpAddr::V6(_) => panic!("{address}"),
    };
    let (local, remote) = (text(local), text(remote));
    let all = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let mut rows = all.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row[1] == local && row[2] == remote)?;
    let (kind, left) = row[5].split_once(':').unwrap();
    let hundredths = u64::from_str_radix(left, 16).unwrap();
    Some((kind.parse().unwrap(), Duration::from_millis(hundredths * 10)))
}

/// Who is gone without a word is found, whatever idle time there is or is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_probed() {
    let (upstream, address) = bind().await;
    let after = |seconds| TcpKeepalive {
        keepalive_time: Some(UInt32Value { value: seconds }),
        ..TcpKeepalive::default()
    };
    for (said, expected) in [(None, Some(300)), (Some(after(0)), None), (Some(after(60)), Some(60))] {
        let mut listener = listener(vec![tcp(&to_db(), FilterChainMatch::default())]);
        listener.tcp_keepalive = said;
        let edge = Edge::over(&[cluster(&[address])], &listener).await;
        let (near, _far) = both(&edge, &upstream).await;
        let client = near.local_addr().unwrap();
        until(&format!("probes after {expected:?} s"), || {
            let found = timer(edge.address, client);
            match expected {
                None => matches!(found, Some((0, _))),
                Some(seconds) => found.is_some_and(|(kind, left)| {
                    kind == 2 && left.as_secs() <= seconds && left.as_secs() > seconds / 2
                }),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_what_does_not_end_by_itself() {
    let (upstream, address) = bind().await;
    let edge = edge(&[cluster(&[address])], &to_db()).await;
    let (mut near, _far) = both(&edge, &upstream).await;
    assert_eq!(within(edge.workers.drain()).await.forced, 1);
    let end = within(near.read(&mut [0; 1])).await.map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
}

/// TLS, HTTP/1.1 and whatever else, be it that the server speaks first, on one port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_takes_every_protocol() {
    let authority = Authority::new();
    let (upstream, address) = bind().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = upstream.accept().await {
            stream.write_all(b"220 mail.test\r\n").await.unwrap();
        }
    });
    let pair = authority.sign(&["shop.test"]);
    let tls = chain("tls", &["shop.test"], Some(context(vec![crate::tls::certificate(&pair)])));
    let edge = Edge::over(&[cluster(&[address])], &any_protocol(tls)).await;

    let stream = connect(edge.address, &client(&authority, None, &[]), "shop.test").await.unwrap();
    assert_eq!(within(ask(stream)).await.unwrap(), "tls");
    assert_eq!(within(ask(TcpStream::connect(edge.address).await.unwrap())).await.unwrap(), "http");
    for says in [b"".as_slice(), b"HELO there\r\n", b"G", b"\x16\x04"] {
        let mut stream = TcpStream::connect(edge.address).await.unwrap();
        stream.write_all(says).await.unwrap();
        let mut greeting = [0; 15];
        within(stream.read_exact(&mut greeting)).await.unwrap();
        assert_eq!(&greeting, b"220 mail.test\r\n", "{says:?}");
    }
    // The start of a ClientHello is not for who takes anything.
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream.write_all(b"\x16\x03\x01").await.unwrap();
    assert_eq!(within(stream.read(&mut [0; 1])).await.unwrap(), 0);
}

/// A port for every protocol, whose clients may be silent for a moment.
fn any_protocol(tls: FilterChain) -> Listener {
    let mut http = chain("http", &[], None);
    http.filter_chain_match = Some(FilterChainMatch {
        application_protocols: vec!["http/1.1".into(), "h2c".into()],
        transport_protocol: "raw_buffer".into(),
        ..FilterChainMatch::default()
    });
    let mut all = listener(vec![tls, http]);
    all.default_filter_chain = Some(tcp(&to_db(), FilterChainMatch::default()));
    all.listener_filters = vec![filter(&TlsInspector::default()), filter(&HttpInspector {})];
    all.listener_filters_timeout = Some(ProtoDuration { seconds: 0, nanos: 50_000_000 });
    all.continue_on_listener_filters_timeout = true;
    all
}

/// As pools of connections do: opened first, and used when it has been passed on for long. While the server has said
/// nothing, what the client says tells whose it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_speaks_late_has_its_protocol_all_the_same() {
    let authority = Authority::new();
    let (upstream, address) = bind().await;
    let pair = authority.sign(&["shop.test"]);
    let tls = chain("tls", &["shop.test"], Some(context(vec![crate::tls::certificate(&pair)])));
    let edge = Edge::over(&[cluster(&[address])], &any_protocol(tls)).await;

    let (mut near, mut far) = both(&edge, &upstream).await;
    near.write_all(b"GE").await.unwrap();
    near.write_all(b"T / HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within(near.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("http"), "{answer}");
    let mut nothing = Vec::new();
    within(far.read_to_end(&mut nothing)).await.unwrap();
    assert!(nothing.is_empty(), "{nothing:?}");

    let (near, mut far) = both(&edge, &upstream).await;
    let connector = tokio_rustls::TlsConnector::from(client(&authority, None, &[]));
    let stream = within(connector.connect("shop.test".try_into().unwrap(), near)).await.unwrap();
    assert_eq!(within(ask(stream)).await.unwrap(), "tls");
    within(far.read_to_end(&mut nothing)).await.unwrap();
    assert!(nothing.is_empty(), "{nothing:?}");

    // What is neither goes on to where it has been connected to; so does a part of a line that does not go on.
    for says in ["HELO there\r\n", "GE"] {
        let (mut near, mut far) = both(&edge, &upstream).await;
        near.write_all(says.as_bytes()).await.unwrap();
        let mut heard = vec![0; says.len()];
        within(far.read_exact(&mut heard)).await.unwrap();
        assert_eq!(heard, says.as_bytes());
        far.write_all(b"250 you").await.unwrap();
        drop(far);
        let mut answer = String::new();
        within(near.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, "250 you");
    }
    let (mut near, _far) = both(&edge, &upstream).await;
    near.write_all(b"\x16\x03\x01").await.unwrap();
    assert!(matches!(within(near.read(&mut [0; 1])).await, Ok(0) | Err(_)), "the start of a ClientHello");
    let series = "pontoon_upstream_tcp_connections{cluster=\"pool/default/db\"} 0\n";
    until("all have ended", || edge.metrics().contains(series)).await;
}

/// Whatever a client says after that, the protocol is the server's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_first_is_not_waited_for() {
    let authority = Authority::new();
    let (upstream, address) = bind().await;
    let pair = authority.sign(&["shop.test"]);
    let tls = chain("tls", &["shop.test"], Some(context(vec![crate::tls::certificate(&pair)])));
    let edge = Edge::over(&[cluster(&[address])], &any_protocol(tls)).await;
    for begun in ["", "GE"] {
        let (mut near, mut far) = both(&edge, &upstream).await;
        near.write_all(begun.as_bytes()).await.unwrap();
        far.write_all(b"220 mail.test\r\n").await.unwrap();
        let mut greeting = [0; 15];
        within(near.read_exact(&mut greeting)).await.unwrap();
        let says = "GET / HTTP/1.1\r\n";
        near.write_all(&says.as_bytes()[begun.len()..]).await.unwrap();
        near.shutdown().await.unwrap();
        let mut heard = String::new();
        within(far.read_to_string(&mut heard)).await.unwrap();
        assert_eq!(heard, says);
    }
    // One that nobody has said anything on ends as others do: by its client, or by a drain.
    let (mut near, mut far) = both(&edge, &upstream).await;
    near.shutdown().await.unwrap();
    assert_eq!(within(far.read(&mut [0; 1])).await.unwrap(), 0);
    far.write_all(b"and yet").await.unwrap();
    drop(far);
    let mut heard = String::new();
    within(near.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "and yet");
    let (mut near, _far) = both(&edge, &upstream).await;
    assert_eq!(within(edge.workers.drain()).await.forced, 1);
    let end = within(near.read(&mut [0; 1])).await.map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
}

/// The handshake is the endpoint's own: the name in it is all that is read here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_passed_through_by_its_name() {
    let authority = Authority::new();
    let (upstream, address) = bind().await;
    let pair = authority.sign(&["a.db.test"]);
    tokio::spawn(async move {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = upstream.accept().await {
            let mut stream = acceptor.accept(stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nthe endpoint's own").await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    let names = FilterChainMatch { server_names: vec!["*.db.test".into()], ..FilterChainMatch::default() };
    let edge = Edge::over(&[cluster(&[address])], &listener(vec![tcp(&to_db(), names)])).await;
    let stream = connect(edge.address, &client(&authority, None, &[]), "a.db.test").await.unwrap();
    assert_eq!(within(ask(stream)).await.unwrap(), "the endpoint's own");
    assert!(connect(edge.address, &client(&authority, None, &[]), "other.test").await.is_err());
}

/// The client that a balancer in front names is the one that the endpoint is told of, in either form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_is_told_of_from_hop_to_hop() {
    let line = b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n";
    let binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\xdc\x04\x01\xbb";
    for (version, expected) in [(Version::V1, line.as_slice()), (Version::V2, binary)] {
        let (upstream, address) = bind().await;
        let mut told = listener(vec![tcp(&to_db(), FilterChainMatch::default())]);
        told.listener_filters = vec![filter(&ProxyProtocol::default())];
        let edge = Edge::over(&[announced(&[address], version)], &told).await;
        for header in [line.as_slice(), binary] {
            let mut near = TcpStream::connect(edge.address).await.unwrap();
            near.write_all(&[header, b"hello"].concat()).await.unwrap();
            let (mut far, _) = within(upstream.accept()).await.unwrap();
            let mut got = vec![0; expected.len() + 5];
            within(far.read_exact(&mut got)).await.unwrap();
            assert_eq!(got, [expected, b"hello"].concat());
        }
        // Whoever does not say for whom it speaks is not listened to.
        let mut near = TcpStream::connect(edge.address).await.unwrap();
        near.write_all(b"hello").await.unwrap();
        let end = within(near.read(&mut [0; 1])).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        counted(
            &edge,
            r#"pontoon_tcp_connections_total{listener="edge",flag="DPE",reason="proxy_protocol"}"#,
        )
        .await;
    }
}
