//! TLS as a listener terminates it, from Envoy's messages to bytes on a socket.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pontoon_proxy::config::Store;
use pontoon_proxy::overload::{Admission, Limits};
use pontoon_proxy::worker::{Options, Workers};
use pontoon_xds::client::{Rejected, Update};
use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;
use pontoon_xds::pb::envoy::config::core::v3::address::Address as AddressKind;
use pontoon_xds::pb::envoy::config::core::v3::data_source::Specifier;
use pontoon_xds::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use pontoon_xds::pb::envoy::config::core::v3::{
    Address, DataSource, SocketAddress, TransportSocket, transport_socket,
};
use pontoon_xds::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener, filter};
use pontoon_xds::pb::envoy::config::route::v3::{
    DirectResponseAction, Route, RouteConfiguration, RouteMatch, VirtualHost, route, route_match,
};
use pontoon_xds::pb::envoy::extensions::filters::http::router::v3::Router;
use pontoon_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager, http_filter,
};
use pontoon_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SubjectAltNameMatcher,
    TlsCertificate, common_tls_context,
};
use pontoon_xds::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};
use pontoon_xds::pb::google::protobuf::{Any, BoolValue, Duration as ProtoDuration};
use pontoon_xds::{Resource, ResourceType};
use prost::{Message, Name};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::fixture::*;

/// An authority, and what it signs.
pub(crate) struct Authority(pub(crate) CertifiedIssuer<'static, KeyPair>);

/// PEM of a certificate and its key.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn sign(&self, names: &[&str]) -> Pair {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.0).unwrap();
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Signs through so many authorities below this one, and has their certificates behind the one signed.
    fn sign_below(&self, depth: usize, names: &[&str]) -> Pair {
        if depth == 0 {
            return self.sign(names);
        }
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("authority {depth}"));
        let below = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.0).unwrap();
        let below = Authority(below);
        let mut pair = below.sign_below(depth - 1, names);
        pair.certificate += &below.pem();
        pair
    }
}

pub(crate) fn inline(text: &str) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineString(text.into())), ..DataSource::default() })
}

pub(crate) fn file(path: &Path) -> Option<DataSource> {
    let name = path.to_str().unwrap().to_owned();
    Some(DataSource { specifier: Some(Specifier::Filename(name)), ..DataSource::default() })
}

pub(crate) fn certificate(pair: &Pair) -> TlsCertificate {
    TlsCertificate {
        certificate_chain: inline(&pair.certificate),
        private_key: inline(&pair.key),
        ..TlsCertificate::default()
    }
}

pub(crate) fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(crate) fn context(certificates: Vec<TlsCertificate>) -> DownstreamTlsContext {
    let common_tls_context = Some(CommonTlsContext {
        tls_certificates: certificates,
        alpn_protocols: vec!["h2".into(), "http/1.1".into()],
        ..CommonTlsContext::default()
    });
    DownstreamTlsContext { common_tls_context, ..DownstreamTlsContext::default() }
}

/// A chain that answers with `says`, and the scheme that a redirect would know.
pub(crate) fn chain(says: &str, server_names: &[&str], tls: Option<DownstreamTlsContext>) -> FilterChain {
    let answer = DirectResponseAction { status: 200, body: inline(says), ..DirectResponseAction::default() };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())),
            ..RouteMatch::default()
        }),
        action: Some(route::Action::DirectResponse(answer)),
        ..Route::default()
    };
    let routes = RouteConfiguration {
        name: says.into(),
        virtual_hosts: vec![VirtualHost {
            name: says.into(),
            domains: vec!["*".into()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: "edge".into(),
        route_specifier: Some(http_connection_manager::RouteSpecifier::RouteConfig(routes)),
        http_filters: vec![HttpFilter {
            name: "router".into(),
            config_type: Some(http_filter::ConfigType::TypedConfig(any(&Router::default()))),
            ..HttpFilter::default()
        }],
        ..HttpConnectionManager::default()
    };
    let matches = FilterChainMatch {
        server_names: server_names.iter().map(ToString::to_string).collect(),
        transport_protocol: if server_names == ["plain"] { "raw_buffer".into() } else { String::new() },
        ..FilterChainMatch::default()
    };
    let matches = if server_names == ["plain"] {
        FilterChainMatch { server_names: Vec::new(), ..matches }
    } else {
        matches
    };
    FilterChain {
        filter_chain_match: Some(matches),
        filters: vec![Filter {
            name: "http".into(),
            config_type: Some(filter::ConfigType::TypedConfig(any(&manager))),
        }],
        transport_socket: tls.map(|tls| TransportSocket {
            name: "tls".into(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(any(&tls))),
        }),
        transport_socket_connect_timeout: Some(ProtoDuration { seconds: 5, nanos: 0 }),
        ..FilterChain::default()
    }
}

pub(crate) fn listener(chains: Vec<FilterChain>) -> Listener {
    let address = SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..SocketAddress::default()
    };
    Listener {
        name: "edge".into(),
        address: Some(Address { address: Some(AddressKind::SocketAddress(address)) }),
        filter_chains: chains,
        ..Listener::default()
    }
}

/// The store and the workers, as the process has them; the control plane's part is played by the test.
pub(crate) struct Edge {
    pub(crate) store: Store,
    listeners: watch::Sender<Vec<Arc<pontoon_proxy::config::listener::Listener>>>,
    pub(crate) workers: Workers,
    pub(crate) address: SocketAddr,
}

impl Edge {
    async fn start(listener: &Listener) -> Self {
        Self::over(&[], listener).await
    }

    pub(crate) async fn over(clusters: &[Cluster], listener: &Listener) -> Self {
        Self::with(Setup::default().options, clusters, listener).await
    }

    async fn with(options: Options, clusters: &[Cluster], listener: &Listener) -> Self {
        let (listeners, watched) = watch::channel(Vec::new());
        let workers = Workers::start(options, watched).unwrap();
        let unset = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut edge = Self { store: Store::default(), listeners, workers, address: unset };
        let update = Update {
            ty: ResourceType::Cluster,
            changed: clusters.iter().map(Resource::encode).collect(),
            removed: Vec::new(),
        };
        assert_eq!(edge.store.apply(update, tokio::time::Instant::now()), []);
        assert_eq!(edge.apply(listener), []);
        let mut bound = edge.workers.bound();
        let bound = bound.wait_for(|bound| !bound.is_empty()).await.unwrap();
        edge.address = *bound[0].address.as_ref().unwrap();
        drop(bound);
        edge
    }

    pub(crate) fn apply(&mut self, listener: &Listener) -> Vec<Rejected> {
        let update = Update {
            ty: ResourceType::Listener,
            changed: vec![Resource::encode(listener)],
            removed: Vec::new(),
        };
        let rejected = self.store.apply(update, tokio::time::Instant::now());
        self.listeners.send_replace(self.store.live_listeners());
        rejected
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        self.workers.metrics().render(&mut text);
        text
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.metrics();
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

/// A client that trusts one authority.
pub(crate) fn client(authority: &Authority, own: Option<&Pair>, protocols: &[&str]) -> Arc<ClientConfig> {
    client_speaking(authority, own, protocols, rustls::DEFAULT_VERSIONS)
}

/// The same, with these versions of TLS.
pub(crate) fn client_speaking(
    authority: &Authority,
    own: Option<&Pair>,
    protocols: &[&str],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            use rustls::pki_types::pem::PemObject;
            let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes());
            let chain = chain.collect::<Result<_, _>>().unwrap();
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

pub(crate) async fn connect(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::clone(config)).connect(name, socket).await
}

pub(crate) async fn ask<S>(mut stream: S) -> std::io::Result<String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    stream.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer).unwrap();
    Ok(answer.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_protocols_are_negotiated() {
    let authority = Authority::new();
    let tls = context(vec![certificate(&authority.sign(&["shop.test"]))]);
    let edge = Edge::start(&listener(vec![chain("hello", &[], Some(tls))])).await;

    let stream = connect(edge.address, &client(&authority, None, &["http/1.1"]), "shop.test").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"http/1.1".as_slice()));
    assert_eq!(ask(stream).await.unwrap(), "hello");
    // Without ALPN it is HTTP/1.1.
    let stream = connect(edge.address, &client(&authority, None, &[]), "shop.test").await.unwrap();
    assert_eq!(ask(stream).await.unwrap(), "hello");

    let stream = connect(edge.address, &client(&authority, None, &["h2"]), "shop.test").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://shop.test/").body(empty()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(text(response).await, "hello");
    until("all are counted", || edge.metric("pontoon_tls_handshakes_total") == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_has_its_certificate_and_its_chain() {
    let authority = Authority::new();
    let two = context(vec![
        certificate(&authority.sign(&["shop.test"])),
        certificate(&authority.sign(&["*.inner.test"])),
    ]);
    let other = context(vec![certificate(&authority.sign(&["other.test"]))]);
    let chains =
        vec![chain("two", &["shop.test", "*.inner.test"], Some(two)), chain("other", &[], Some(other))];
    let edge = Edge::start(&listener(chains)).await;
    let config = client(&authority, None, &["http/1.1"]);
    for (name, expected) in [("shop.test", "two"), ("a.inner.test", "two"), ("other.test", "other")] {
        let stream = connect(edge.address, &config, name).await.unwrap();
        assert_eq!(ask(stream).await.unwrap(), expected, "{name}");
    }
    let error = connect(edge.address, &config, "stranger.test").await.unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
}

/// A ClientHello that comes byte by byte has its name read all the same: it does not fall to the chain for others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_in_pieces_finds_its_chain() {
    let authority = Authority::new();
    let own = context(vec![certificate(&authority.sign(&["shop.test"]))]);
    let other = context(vec![certificate(&authority.sign(&["other.test", "shop.test"]))]);
    let chains = vec![chain("own", &["shop.test"], Some(own)), chain("other", &[], Some(other))];
    let edge = Edge::start(&listener(chains)).await;
    // Between the client and the proxy: passes each byte by itself.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (between, address) = (listener.local_addr().unwrap(), edge.address);
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let proxy = TcpStream::connect(address).await.unwrap();
        proxy.set_nodelay(true).unwrap();
        let ((mut from_client, mut to_client), (mut from_proxy, mut to_proxy)) =
            (client.into_split(), proxy.into_split());
        tokio::spawn(async move { tokio::io::copy(&mut from_proxy, &mut to_client).await });
        let mut byte = [0];
        while from_client.read_exact(&mut byte).await.is_ok() && to_proxy.write_all(&byte).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    let stream = connect(between, &client(&authority, None, &["http/1.1"]), "shop.test").await.unwrap();
    assert_eq!(ask(stream).await.unwrap(), "own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_takes_tls_and_plain_text() {
    let authority = Authority::new();
    let tls = context(vec![certificate(&authority.sign(&["shop.test"]))]);
    let mut both = listener(vec![chain("tls", &[], Some(tls)), chain("plain", &["plain"], None)]);
    both.listener_filters_timeout = Some(ProtoDuration { seconds: 0, nanos: 50_000_000 });
    let edge = Edge::start(&both).await;
    let stream = connect(edge.address, &client(&authority, None, &[]), "shop.test").await.unwrap();
    assert_eq!(ask(stream).await.unwrap(), "tls");
    assert_eq!(ask(TcpStream::connect(edge.address).await.unwrap()).await.unwrap(), "plain");
    // Whoever says nothing is not waited for.
    let mut silent = TcpStream::connect(edge.address).await.unwrap();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    until("it is counted", || edge.metric("pontoon_inspect_timeouts_total") == 1).await;
}

/// What a client shows costs a verification each, so how many it may show has a bound: webpki's six.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_authorities_has_a_bound() {
    let authority = Authority::new();
    let mut tls = context(vec![certificate(&authority.sign(&["shop.test"]))]);
    tls.require_client_certificate = Some(BoolValue { value: true });
    let trust = CertificateValidationContext {
        trusted_ca: inline(&authority.pem()),
        ..CertificateValidationContext::default()
    };
    let with = common_tls_context::ValidationContextType::ValidationContext(trust);
    tls.common_tls_context.as_mut().unwrap().validation_context_type = Some(with);
    let edge = Edge::start(&listener(vec![chain("hello", &[], Some(tls))])).await;
    for (depth, accepted) in [(0, true), (3, true), (6, true), (7, false), (40, false)] {
        let own = authority.sign_below(depth, &["orders.test"]);
        let asked = async {
            let stream = connect(edge.address, &client(&authority, Some(&own), &[]), "shop.test").await?;
            ask(stream).await
        };
        let asked = asked.await;
        assert_eq!(asked.is_ok(), accepted, "{depth}: {asked:?}");
    }
}

/// A handshake vouches for as long as the listener trusts who vouched: `mtls.revoke_live`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_no_longer_trusted_loses_its_connection() {
    let (first, second) = (Authority::new(), Authority::new());
    let pair = first.sign(&["shop.test"]);
    let trusting = |authorities: &str| {
        let mut tls = context(vec![certificate(&pair)]);
        tls.require_client_certificate = Some(BoolValue { value: true });
        let trust = CertificateValidationContext {
            trusted_ca: inline(authorities),
            ..CertificateValidationContext::default()
        };
        let with = common_tls_context::ValidationContextType::ValidationContext(trust);
        tls.common_tls_context.as_mut().unwrap().validation_context_type = Some(with);
        listener(vec![chain("hello", &[], Some(tls))])
    };
    let mut edge = Edge::start(&trusting(&(first.pem() + &second.pem()))).await;
    let as_client = async |authority: &Authority| {
        let own = authority.sign(&["orders.test"]);
        connect(edge.address, &client(&first, Some(&own), &[]), "shop.test").await.unwrap()
    };
    let (mut loses, keeps) = (as_client(&first).await, as_client(&second).await);
    assert_eq!(edge.apply(&trusting(&second.pem())), []);
    let ended = tokio::time::timeout(PATIENCE, loses.read(&mut [0; 1])).await.expect("an end");
    assert_eq!(ended.unwrap_or(0), 0);
    assert_eq!(ask(keeps).await.unwrap(), "hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_needs_the_right_certificate() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let mut tls = context(vec![certificate(&authority.sign(&["shop.test"]))]);
    tls.require_client_certificate = Some(BoolValue { value: true });
    let matcher = StringMatcher {
        match_pattern: Some(string_matcher::MatchPattern::Exact("orders.test".into())),
        ..StringMatcher::default()
    };
    let trust = CertificateValidationContext {
        trusted_ca: inline(&authority.pem()),
        match_typed_subject_alt_names: vec![SubjectAltNameMatcher {
            san_type: 2,
            matcher: Some(matcher),
            ..SubjectAltNameMatcher::default()
        }],
        ..CertificateValidationContext::default()
    };
    let with = common_tls_context::ValidationContextType::ValidationContext(trust);
    tls.common_tls_context.as_mut().unwrap().validation_context_type = Some(with);
    let edge = Edge::start(&listener(vec![chain("hello", &[], Some(tls))])).await;
    let try_with = async |own: Option<&Pair>| {
        let stream = connect(edge.address, &client(&authority, own, &[]), "shop.test").await?;
        ask(stream).await
    };
    let right = authority.sign(&["orders.test"]);
    assert_eq!(try_with(Some(&right)).await.unwrap(), "hello");
    assert!(try_with(None).await.is_err());
    assert!(try_with(Some(&authority.sign(&["stock.test"]))).await.is_err());
    assert!(try_with(Some(&stranger.sign(&["orders.test"]))).await.is_err());
    until("all are counted", || edge.metric("pontoon_tls_handshake_failures_total") == 3).await;
}

/// As the Gateway API's `AllowInsecureFallback` has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_is_let_in_where_that_is_said() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let mut tls = context(vec![certificate(&authority.sign(&["shop.test"]))]);
    let trust = CertificateValidationContext {
        trusted_ca: inline(&authority.pem()),
        trust_chain_verification: 1,
        ..CertificateValidationContext::default()
    };
    let with = common_tls_context::ValidationContextType::ValidationContext(trust);
    tls.common_tls_context.as_mut().unwrap().validation_context_type = Some(with);
    let edge = Edge::start(&listener(vec![chain("hello", &[], Some(tls))])).await;
    for own in [None, Some(authority.sign(&["orders.test"])), Some(stranger.sign(&["orders.test"]))] {
        let stream =
            connect(edge.address, &client(&authority, own.as_ref(), &[]), "shop.test").await.unwrap();
        assert_eq!(ask(stream).await.unwrap(), "hello");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_resumed_also_after_a_new_certificate() {
    let authority = Authority::new();
    let tls = |pair: &Pair| context(vec![certificate(pair)]);
    let mut edge =
        Edge::start(&listener(vec![chain("one", &[], Some(tls(&authority.sign(&["shop.test"]))))])).await;
    let config = client(&authority, None, &[]);
    let kind = async |edge: &Edge| {
        let stream = connect(edge.address, &config, "shop.test").await.unwrap();
        let kind = stream.get_ref().1.handshake_kind();
        ask(stream).await.unwrap();
        kind
    };
    assert_eq!(kind(&edge).await, Some(HandshakeKind::Full));
    assert_eq!(kind(&edge).await, Some(HandshakeKind::Resumed));
    assert_eq!(
        edge.apply(&listener(vec![chain("one", &[], Some(tls(&authority.sign(&["shop.test"]))))])),
        []
    );
    assert_eq!(kind(&edge).await, Some(HandshakeKind::Resumed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_file_is_read_and_no_connection_dropped() {
    let (old, new) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let (chain_file, key_file) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let write = |pair: &Pair| {
        std::fs::write(&chain_file, &pair.certificate).unwrap();
        std::fs::write(&key_file, &pair.key).unwrap();
    };
    write(&old.sign(&["shop.test"]));
    let from_files = TlsCertificate {
        certificate_chain: file(&chain_file),
        private_key: file(&key_file),
        ..TlsCertificate::default()
    };
    let mut edge = Edge::start(&listener(vec![chain("hello", &[], Some(context(vec![from_files])))])).await;
    assert_eq!(edge.store.tls_files().len(), 2);
    let kept = connect(edge.address, &client(&old, None, &[]), "shop.test").await.unwrap();

    // A half-written renewal is told and changes nothing.
    std::fs::write(&key_file, "rubbish").unwrap();
    let problems = edge.store.reload_tls();
    assert!(problems.len() == 1 && problems[0].to_string().contains("private key"), "{problems:?}");
    connect(edge.address, &client(&old, None, &[]), "shop.test").await.unwrap();

    write(&new.sign(&["shop.test"]));
    assert_eq!(edge.store.reload_tls(), []);
    let renewed = connect(edge.address, &client(&new, None, &[]), "shop.test").await.unwrap();
    assert_eq!(ask(renewed).await.unwrap(), "hello");
    assert_eq!(ask(kept).await.unwrap(), "hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_used_is_refused_with_its_path() {
    let authority = Authority::new();
    let good = authority.sign(&["shop.test"]);
    let mut edge =
        Edge::start(&listener(vec![chain("good", &[], Some(context(vec![certificate(&good)])))])).await;
    let mixed = Pair { key: authority.sign(&["shop.test"]).key, ..good.clone() };
    let missing = TlsCertificate { private_key: file(Path::new("/nowhere/tls.key")), ..certificate(&good) };
    let mut requiring = context(vec![certificate(&good)]);
    requiring.require_client_certificate = Some(BoolValue { value: true });
    let twice = listener(vec![
        chain("a", &["a.test"], Some(context(vec![certificate(&good)]))),
        chain("b", &["a.test"], Some(context(vec![certificate(&good)]))),
    ]);
    let one = |tls| listener(vec![chain("bad", &[], Some(tls))]);
    for (bad, expected) in [
        (
            one(context(vec![certificate(&mixed)])),
            "filter_chains[0].transport_socket.typed_config.common_tls_context",
        ),
        (one(context(vec![missing])), "/nowhere/tls.key cannot be read"),
        (one(context(Vec::new())), "common_tls_context.tls_certificates: is empty"),
        (one(requiring), "require_client_certificate: needs"),
        (twice, "filter_chains[1].filter_chain_match: is the same as that of filter_chains[0]"),
    ] {
        let rejected = edge.apply(&bad);
        assert!(rejected.len() == 1 && rejected[0].reason.contains(expected), "{rejected:?}");
    }
    // The last good one goes on.
    let stream = connect(edge.address, &client(&authority, None, &[]), "shop.test").await.unwrap();
    assert_eq!(ask(stream).await.unwrap(), "good");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_silence_end_a_handshake() {
    let authority = Authority::new();
    let mut tls = chain("hello", &[], Some(context(vec![certificate(&authority.sign(&["shop.test"]))])));
    tls.transport_socket_connect_timeout = Some(ProtoDuration { seconds: 0, nanos: 100_000_000 });
    let edge = Edge::start(&listener(vec![tls])).await;
    let mut garbage = TcpStream::connect(edge.address).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = garbage.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let mut silent = TcpStream::connect(edge.address).await.unwrap();
    silent.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    assert_eq!(silent.read(&mut [0; 64]).await.unwrap_or(0), 0);
    until("both are counted", || edge.metric("pontoon_tls_handshake_failures_total") == 2).await;
    until("both have gone", || edge.metric("pontoon_downstream_connections") == 0).await;
}

/// Who has shaken hands and says nothing is idle: not closed for it, and the first to make room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_make_room() {
    let authority = Authority::new();
    let tls = context(vec![certificate(&authority.sign(&["shop.test"]))]);
    let mut chain = chain("here", &[], Some(tls));
    let Some(filter::ConfigType::TypedConfig(http)) = &mut chain.filters[0].config_type else {
        unreachable!()
    };
    let mut manager = HttpConnectionManager::decode(&http.value[..]).unwrap();
    manager.request_headers_timeout = Some(ProtoDuration { seconds: 0, nanos: 50_000_000 });
    *http = any(&manager);
    let listener = listener(vec![chain]);
    let admission = Admission::new(Limits { connections: 4, ..Limits::default() });
    let options = Options { workers: 1, admission, ..Setup::default().options };
    let edge = Edge::with(options, &[], &listener).await;
    for protocols in [&["http/1.1"][..], &[]] {
        let config = client(&authority, None, protocols);
        let closed = || edge.metric("pontoon_idle_connections_closed_total");
        let before = closed();
        let mut silent = Vec::new();
        for _ in 0..4 {
            silent.push(connect(edge.address, &config, "shop.test").await.unwrap());
        }
        // Who ends another comes before there is room.
        let served = async {
            loop {
                if let Ok(stream) = connect(edge.address, &config, "shop.test").await {
                    return ask(stream).await;
                }
                let open = || edge.metric("pontoon_downstream_connections");
                until("room", || closed() == before || open() < 4).await;
            }
        };
        let served = tokio::time::timeout(PATIENCE, served).await.expect("room");
        assert_eq!(served.unwrap(), "here");
        assert!(closed() > before, "{}", edge.metrics());
        let last = silent.pop().unwrap();
        assert_eq!(ask(last).await.expect("the last is not the first to go"), "here");
        drop(silent);
        until("all have gone", || edge.metric("pontoon_downstream_connections") == 0).await;
    }
}

/// TLS takes bytes that the socket does not: a connection whose last answer is there is not idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_an_answer_reaches_a_slow_reader() {
    const BODY: usize = 60_000;
    let authority = Authority::new();
    let tls = context(vec![certificate(&authority.sign(&["shop.test"]))]);
    let edge = Edge::start(&listener(vec![chain(&"~".repeat(BODY), &[], Some(tls))])).await;
    let config = client(&authority, None, &["http/1.1"]);
    // Small windows and segments, so that the kernel takes little; how little is its affair, so many numbers of answers.
    let mut slow = Vec::new();
    for answers in 1..24 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket2::SockRef::from(&socket).set_tcp_mss(536).unwrap();
        let socket = socket.connect(edge.address).await.unwrap();
        let name = ServerName::try_from("shop.test").unwrap();
        let mut stream = TlsConnector::from(Arc::clone(&config)).connect(name, socket).await.unwrap();
        let requests = "GET / HTTP/1.1\r\nhost: shop\r\n\r\n".repeat(answers);
        stream.write_all(requests.as_bytes()).await.unwrap();
        slow.push((stream, answers));
    }
    // Longer than a connection takes to be parked.
    tokio::time::sleep(Duration::from_millis(1_600)).await;
    for (mut stream, answers) in slow {
        let mut bodies = 0;
        let mut part = [0; 16_384];
        while bodies < answers * BODY {
            let read = tokio::time::timeout(PATIENCE, stream.read(&mut part)).await;
            let length = read.unwrap_or_else(|_| panic!("{bodies} bytes of {answers} answers")).unwrap();
            assert!(length > 0, "closed after {bodies} bytes of {answers} answers");
            bodies += part[..length].iter().filter(|byte| **byte == b'~').count();
        }
    }
}
