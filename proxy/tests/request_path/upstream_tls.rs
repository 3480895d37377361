//! TLS to endpoints, from a `Cluster` of Envoy's to bytes on a socket.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Response;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pontoon_proxy::config::Store;
use pontoon_proxy::error::Error;
use pontoon_proxy::route::matching::PathMatcher;
use pontoon_xds::client::{Rejected, Update};
use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;
use pontoon_xds::pb::envoy::config::core::v3::{Http2ProtocolOptions, TransportSocket, transport_socket};
use pontoon_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SubjectAltNameMatcher, UpstreamTlsContext,
    common_tls_context,
};
use pontoon_xds::pb::envoy::extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options};
use pontoon_xds::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher};
use pontoon_xds::pb::google::protobuf::Duration as ProtoDuration;
use pontoon_xds::{Resource, ResourceType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::fixture::*;
use crate::tls::{Authority, Pair, any, certificate, file, inline};

const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// What an endpoint saw of a handshake.
#[derive(Debug, Clone)]
struct Shaken {
    kind: Option<HandshakeKind>,
    name: Option<String>,
    protocol: Option<Vec<u8>>,
    with_certificate: bool,
}

/// The TLS of an endpoint.
pub(crate) fn server(http: Http, pair: &Pair, clients: Option<&Authority>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.0.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = match http {
        Http::One => vec![b"http/1.1".to_vec()],
        Http::Two => vec![b"h2".to_vec()],
    };
    config
}

/// An endpoint that speaks TLS and answers "hello".
async fn serve(
    http: Http,
    pair: &Pair,
    clients: Option<&Authority>,
) -> (SocketAddr, Arc<Mutex<Vec<Shaken>>>) {
    let acceptor = TlsAcceptor::from(Arc::new(server(http, pair, clients)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::<Mutex<Vec<Shaken>>>::default();
    let record = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, record) = (acceptor.clone(), Arc::clone(&record));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let session = stream.get_ref().1;
                record.lock().unwrap().push(Shaken {
                    kind: session.handshake_kind(),
                    name: session.server_name().map(str::to_owned),
                    protocol: session.alpn_protocol().map(<[u8]>::to_vec),
                    with_certificate: session.peer_certificates().is_some(),
                });
                let service = hyper::service::service_fn(|_| async {
                    Ok::<_, hyper::Error>(Response::new(full("hello")))
                });
                let io = TokioIo::new(stream);
                match http {
                    Http::One => {
                        drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
                    }
                    Http::Two => {
                        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        drop(builder.serve_connection(io, service).await);
                    }
                }
            });
        }
    });
    (address, seen)
}

pub(crate) fn context(authority: &Authority, sni: &str) -> UpstreamTlsContext {
    let trust = CertificateValidationContext {
        trusted_ca: inline(&authority.pem()),
        ..CertificateValidationContext::default()
    };
    let common = CommonTlsContext {
        validation_context_type: Some(common_tls_context::ValidationContextType::ValidationContext(trust)),
        ..CommonTlsContext::default()
    };
    UpstreamTlsContext { common_tls_context: Some(common), sni: sni.into(), ..UpstreamTlsContext::default() }
}

fn trust(context: &mut UpstreamTlsContext) -> &mut CertificateValidationContext {
    match &mut context.common_tls_context.as_mut().unwrap().validation_context_type {
        Some(common_tls_context::ValidationContextType::ValidationContext(trust)) => trust,
        other => panic!("{other:?}"),
    }
}

fn uri(value: &str) -> SubjectAltNameMatcher {
    let exact = string_matcher::MatchPattern::Exact(value.into());
    SubjectAltNameMatcher {
        san_type: 3,
        matcher: Some(StringMatcher { match_pattern: Some(exact), ..StringMatcher::default() }),
        ..SubjectAltNameMatcher::default()
    }
}

pub(crate) fn cluster(http: Http, tls: &UpstreamTlsContext) -> Cluster {
    let mut cluster = Cluster {
        name: "shop".into(),
        transport_socket: Some(TransportSocket {
            name: "tls".into(),
            config_type: Some(transport_socket::ConfigType::TypedConfig(any(tls))),
        }),
        ..Cluster::default()
    };
    if http == Http::Two {
        speak_http2(&mut cluster);
    }
    cluster
}

pub(crate) fn speak_http2(cluster: &mut Cluster) {
    use http_protocol_options::explicit_http_config::ProtocolConfig;
    use http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions};
    let config = ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default());
    let explicit = ExplicitHttpConfig { protocol_config: Some(config) };
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)),
        ..HttpProtocolOptions::default()
    };
    cluster.typed_extension_protocol_options.insert(OPTIONS.into(), any(&options));
}

fn apply(store: &mut Store, cluster: &Cluster) -> Vec<Rejected> {
    let update =
        Update { ty: ResourceType::Cluster, changed: vec![Resource::encode(cluster)], removed: Vec::new() };
    store.apply(update, tokio::time::Instant::now())
}

/// Puts what the store makes of a cluster in force at the proxy, whose endpoints stay.
fn put(proxy: &Proxy, store: &Store) {
    let settings = store.all_clusters()[0].settings.load_full();
    proxy.cluster.settings.store(settings);
}

async fn proxy_to(address: SocketAddr, http: Http, tls: &UpstreamTlsContext) -> Proxy {
    let mut store = Store::default();
    assert_eq!(apply(&mut store, &cluster(http, tls)), []);
    let proxy = Proxy::start(&[address]).await;
    put(&proxy, &store);
    proxy
}

async fn get(proxy: &Proxy) -> (u16, String) {
    let response = Client::connect(proxy.address, Http::One).await.get("/").await;
    (response.status().as_u16(), text(response).await)
}

on_all_protocols! {
    async fn an_endpoint_is_verified_and_its_connection_kept(front, back) {
        let authority = Authority::new();
        let (address, seen) = serve(back, &authority.sign(&["shop.test"]), None).await;
        let proxy = proxy_to(address, back, &context(&authority, "shop.test")).await;
        let mut client = Client::connect(proxy.address, front).await;
        for _ in 0..3 {
            assert_eq!(text(client.get("/").await).await, "hello");
        }
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].name.as_deref(), Some("shop.test"));
        let protocol: &[u8] = if back == Http::Two { b"h2" } else { b"http/1.1" };
        assert_eq!(seen[0].protocol.as_deref(), Some(protocol));
    }

    async fn who_cannot_prove_it_gets_nothing(_front, back) {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let (address, seen) = serve(back, &authority.sign(&["shop.test"]), None).await;
        let mut by_uri = context(&authority, "shop.test");
        trust(&mut by_uri).match_typed_subject_alt_names = vec![uri("spiffe://mesh/shop")];
        for (tls, error) in [
            (context(&stranger, "shop.test"), Error::UpstreamTlsCertificate),
            (context(&authority, "other.test"), Error::UpstreamTlsName),
            (by_uri, Error::UpstreamTlsName),
        ] {
            let proxy = proxy_to(address, back, &tls).await;
            let (status, body) = get(&proxy).await;
            assert_eq!((status, body.as_str()), (503, error.body()));
            let reason = error.reason();
            let series = format!(
                r#"pontoon_downstream_requests_total{{listener="edge",class="5xx",flag="UF",reason="{reason}"}}"#
            );
            until("the metric", || proxy.metric(&series) == 1).await;
        }
        assert!(seen.lock().unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_of_the_right_kind_is_enough() {
    let authority = Authority::new();
    let (address, seen) = serve(Http::One, &authority.sign(&["127.0.0.1"]), None).await;
    let mut tls = context(&authority, "");
    let mut ip = uri("127.0.0.1");
    ip.san_type = 4;
    trust(&mut tls).match_typed_subject_alt_names = vec![uri("spiffe://mesh/shop"), ip];
    let proxy = proxy_to(address, Http::One, &tls).await;
    assert_eq!(get(&proxy).await, (200, "hello".into()));
    assert_eq!(seen.lock().unwrap()[0].name, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_without_the_clusters_protocol_is_told() {
    let authority = Authority::new();
    let (address, _) = serve(Http::One, &authority.sign(&["shop.test"]), None).await;
    let proxy = proxy_to(address, Http::Two, &context(&authority, "shop.test")).await;
    assert_eq!(get(&proxy).await, (503, Error::UpstreamTlsProtocol.body().into()));

    let plain = Upstream::echo(Http::One).await;
    let proxy = proxy_to(plain.address, Http::One, &context(&authority, "shop.test")).await;
    assert_eq!(get(&proxy).await, (503, Error::UpstreamTlsFailure.body().into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_endpoint_has_the_connect_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut tls = cluster(Http::One, &context(&Authority::new(), "shop.test"));
    tls.connect_timeout = Some(ProtoDuration { seconds: 0, nanos: 100_000_000 });
    let mut store = Store::default();
    assert_eq!(apply(&mut store, &tls), []);
    let proxy = Proxy::start(&[silent.local_addr().unwrap()]).await;
    put(&proxy, &store);
    assert_eq!(get(&proxy).await, (503, Error::ConnectTimeout.body().into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_certificate_is_shown_and_a_session_resumed() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let (address, seen) = serve(Http::One, &authority.sign(&["shop.test"]), Some(&clients)).await;
    let mut tls = context(&authority, "shop.test");
    tls.common_tls_context.as_mut().unwrap().tls_certificates =
        vec![certificate(&clients.sign(&["edge.test"]))];
    let proxy = proxy_to(address, Http::One, &tls).await;
    assert_eq!(get(&proxy).await.0, 200);
    // Connections that are no longer kept: the next begins with the session of the one before.
    let mut settings = (*proxy.cluster.settings.load_full().unwrap()).clone();
    settings.idle_timeout = Duration::ZERO;
    proxy.cluster.settings.store(Some(Arc::new(settings)));
    assert_eq!(get(&proxy).await.0, 200);
    assert_eq!(get(&proxy).await.0, 200);
    let seen = seen.lock().unwrap().clone();
    assert!(seen.iter().all(|shaken| shaken.with_certificate), "{seen:?}");
    assert_eq!(seen[0].kind, Some(HandshakeKind::Full));
    assert_eq!(seen.last().unwrap().kind, Some(HandshakeKind::Resumed), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_whom_we_trust_is_not_outlived_by_a_connection() {
    let (old, new) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.crt");
    std::fs::write(&path, old.pem()).unwrap();
    let (address, _) = serve(Http::One, &old.sign(&["shop.test"]), None).await;
    let mut tls = context(&old, "shop.test");
    trust(&mut tls).trusted_ca = file(&path);
    let mut store = Store::default();
    assert_eq!(apply(&mut store, &cluster(Http::One, &tls)), []);
    assert_eq!(store.tls_files().len(), 1);
    let proxy = Proxy::start(&[address]).await;
    put(&proxy, &store);
    assert_eq!(get(&proxy).await.0, 200);

    std::fs::write(&path, "rubbish").unwrap();
    let problems = store.reload_tls();
    assert!(problems.len() == 1 && problems[0].to_string().contains("authority"), "{problems:?}");
    put(&proxy, &store);
    assert_eq!(get(&proxy).await.0, 200);

    std::fs::write(&path, new.pem()).unwrap();
    assert_eq!(store.reload_tls(), []);
    put(&proxy, &store);
    assert_eq!(get(&proxy).await, (503, Error::UpstreamTlsCertificate.body().into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_of_connect_is_under_tls_too() {
    let authority = Authority::new();
    let (address, seen) = serve(Http::One, &authority.sign(&["shop.test"]), None).await;
    let mut store = Store::default();
    assert_eq!(apply(&mut store, &cluster(Http::One, &context(&authority, "shop.test"))), []);
    let setup = Setup {
        http: Box::new(|http| http.upgrades.push("connect".into())),
        route: Box::new(|route| route.matcher.path = PathMatcher::Connect),
        forward: Box::new(|forward| forward.connect = true),
        ..Setup::default()
    };
    let proxy = Proxy::with(&[address], setup).await;
    put(&proxy, &store);
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(b"CONNECT shop.test:443 HTTP/1.1\r\nhost: shop.test:443\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "));
    stream.write_all(b"GET / HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with(b"\r\n\r\nhello"), "{answer:?}");
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[test]
fn what_cannot_be_used_is_refused_with_its_path() {
    let authority = Authority::new();
    let mut untrusting = context(&authority, "shop.test");
    trust(&mut untrusting).trusted_ca = None;
    let mut rubbish = context(&authority, "shop.test");
    trust(&mut rubbish).trusted_ca = inline("rubbish");
    let mut h2 = context(&authority, "shop.test");
    h2.common_tls_context.as_mut().unwrap().alpn_protocols = vec!["h2".into()];
    for (tls, expected) in [
        (untrusting, "common_tls_context.validation_context.trusted_ca: is missing"),
        (rubbish, "common_tls_context: there is no authority in it"),
        (context(&authority, ""), "sni: is empty, and so is match_typed_subject_alt_names"),
        (context(&authority, "10.0.0.1"), "sni: is \"10.0.0.1\"; must be a DNS name"),
        (h2, "common_tls_context.alpn_protocols: has \"h2\""),
    ] {
        let rejected = apply(&mut Store::default(), &cluster(Http::One, &tls));
        let expected = format!("transport_socket.typed_config.{expected}");
        assert!(rejected.len() == 1 && rejected[0].reason.contains(&expected), "{rejected:?}");
    }
}
