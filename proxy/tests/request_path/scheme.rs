//! Which scheme an upstream is told: that of the client's connection, or what a trusted peer says of it; never what a
//! client says of itself, and not that of the connection to the upstream.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use pontoon_xds::pb::envoy::config::cluster::v3::Cluster;
use pontoon_xds::pb::envoy::config::route::v3::{RouteAction, route, route_action::ClusterSpecifier};
use pontoon_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use pontoon_xds::pb::google::protobuf::BoolValue;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::beginnings::managed;
use crate::fixture::*;
use crate::tcp::DB;
use crate::tls::*;
use crate::upstream_tls::{cluster as by_tls, context as trusting, server, speak_http2};

/// `:scheme`, where there is one, and `x-forwarded-proto`.
type Told = (Option<String>, String);

/// An upstream, plain or not, that takes down what it is told.
async fn upstream(http: Http, tls: Option<TlsAcceptor>) -> (SocketAddr, Arc<Mutex<Vec<Told>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let told = Arc::<Mutex<Vec<Told>>>::default();
    let record = Arc::clone(&told);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, record) = (tls.clone(), Arc::clone(&record));
            tokio::spawn(async move {
                match tls {
                    None => answer(http, stream, record).await,
                    Some(tls) => answer(http, tls.accept(stream).await.unwrap(), record).await,
                }
            });
        }
    });
    (address, told)
}

async fn answer<S>(http: Http, stream: S, record: Arc<Mutex<Vec<Told>>>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| {
        let scheme = request.uri().scheme_str().map(str::to_owned);
        let forwarded = request.headers()["x-forwarded-proto"].to_str().unwrap().to_owned();
        record.lock().unwrap().push((scheme, forwarded));
        async { Ok::<_, hyper::Error>(Response::new(full("ok"))) }
    });
    let io = TokioIo::new(stream);
    match http {
        Http::One => drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await),
        Http::Two => {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(builder.serve_connection(io, service).await);
        }
    }
}

async fn send<S>(http: Http, stream: S, said: &[(&str, &str)])
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let io = TokioIo::new(stream);
    let mut request = Request::get("/");
    for (name, value) in said {
        request = request.header(*name, *value);
    }
    let answered = match http {
        Http::One => {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request.header("host", "shop.test").body(empty()).unwrap()).await
        }
        Http::Two => {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            // What the client says is the other scheme than its connection's.
            let scheme =
                said.iter().find(|(name, _)| *name == "x-forwarded-proto").map_or("http", |(_, said)| said);
            let request = request.uri(format!("{scheme}://shop.test/"));
            sender.send_request(request.body(empty()).unwrap()).await
        }
    };
    assert_eq!(answered.unwrap().status(), 200);
}

on_all_protocols! {
    /// Through TLS or not, to an upstream with TLS or without.
    async fn an_upstream_is_told_the_clients_scheme(front, back) {
        let authority = Authority::new();
        let pair = authority.sign(&["shop.test"]);
        for behind in [false, true] {
            let tls = behind.then(|| TlsAcceptor::from(Arc::new(server(back, &pair, None))));
            let (address, told) = upstream(back, tls).await;
            let mut to: Cluster = crate::tcp::cluster(&[address]);
            if behind {
                to.transport_socket = by_tls(Http::One, &trusting(&authority, "shop.test")).transport_socket;
            }
            if back == Http::Two {
                speak_http2(&mut to);
            }
            for before in [false, true] {
                let tls = before.then(|| context(vec![certificate(&pair)]));
                let chain = managed(chain("shop", &[], tls), |manager| {
                    manager.use_remote_address = Some(BoolValue { value: true });
                    let Some(RouteSpecifier::RouteConfig(routes)) = &mut manager.route_specifier else {
                        panic!("no routes")
                    };
                    routes.virtual_hosts[0].routes[0].action = Some(route::Action::Route(RouteAction {
                        cluster_specifier: Some(ClusterSpecifier::Cluster(DB.into())),
                        ..RouteAction::default()
                    }));
                });
                let edge = Edge::over(std::slice::from_ref(&to), &listener(vec![chain])).await;
                let (scheme, other) = if before { ("https", "http") } else { ("http", "https") };
                for said in [&[][..], &[("x-forwarded-proto", other)]] {
                    if before {
                        let offered: &[&str] = if front == Http::One { &["http/1.1"] } else { &["h2"] };
                        let config = client(&authority, None, offered);
                        let stream = connect(edge.address, &config, "shop.test").await.unwrap();
                        send(front, stream, said).await;
                    } else {
                        send(front, TcpStream::connect(edge.address).await.unwrap(), said).await;
                    }
                    let (pseudo, forwarded) = told.lock().unwrap().pop().unwrap();
                    assert_eq!(forwarded, scheme, "{before} {behind} {said:?}");
                    let expected = (back == Http::Two).then_some(scheme);
                    assert_eq!(pseudo.as_deref(), expected, "{before} {behind} {said:?}");
                }
            }
        }
    }

    /// A peer that is trusted knows better than we do: TLS ended there.
    async fn a_trusted_peer_says_the_scheme(front, back) {
        let (address, told) = upstream(back, None).await;
        let setup = Setup {
            protocol: back.upstream(),
            http: Box::new(|http| http.forwarded.trusted_peers = vec!["127.0.0.0/8".parse().unwrap()]),
            ..Setup::default()
        };
        let proxy = Proxy::with(&[address], setup).await;
        let said = [("x-forwarded-proto", "https")];
        send(front, TcpStream::connect(proxy.address).await.unwrap(), &said).await;
        let (pseudo, forwarded) = told.lock().unwrap().pop().unwrap();
        assert_eq!(forwarded, "https");
        assert_eq!(pseudo.as_deref(), (back == Http::Two).then_some("https"));
    }
}
