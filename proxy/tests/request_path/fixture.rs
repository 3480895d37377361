//! A proxy with one listener and one cluster, and the peers around it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pontoon_proxy::config::chains::{Chain, ChainMatch, Chains, Inspect, Serves};
use pontoon_proxy::config::keepalive::Clients;
use pontoon_proxy::config::listener::*;
use pontoon_proxy::overload::Admission;
use pontoon_proxy::resilience::breakers::Breakers;
use pontoon_proxy::route::filters::Buffer;
use pontoon_proxy::route::matching::{PathMatcher, RouteMatcher};
use pontoon_proxy::route::*;
use pontoon_proxy::upstream::cluster::*;
use pontoon_proxy::worker::{Drained, Options, Workers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// No single step of a test takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// What a test changes of the usual proxy.
pub(crate) struct Setup {
    pub(crate) protocol: UpstreamProtocol,
    pub(crate) policy: BalancePolicy,
    pub(crate) connect_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) connections: ConnectionLimits,
    pub(crate) breakers: Breakers,
    pub(crate) forward: Box<dyn FnOnce(&mut Forward)>,
    pub(crate) route: Box<dyn FnOnce(&mut Route)>,
    pub(crate) http: Box<dyn FnOnce(&mut HttpSettings)>,
    pub(crate) options: Options,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            protocol: UpstreamProtocol::Http1,
            policy: BalancePolicy::RoundRobin,
            connect_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(55),
            connections: ConnectionLimits::default(),
            breakers: Breakers::default(),
            forward: Box::new(|_| {}),
            route: Box::new(|_| {}),
            http: Box::new(|_| {}),
            options: Options {
                workers: 1,
                lame_duck: Duration::ZERO,
                drain: Duration::from_secs(5),
                admission: Admission::new(Default::default()),
                dialer: Default::default(),
                sockets: Arc::default(),
                gate: watch::Sender::new(true).subscribe(),
            },
        }
    }
}

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) workers: Workers,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) listener: Arc<Listener>,
    pub(crate) listeners: watch::Sender<Vec<Arc<Listener>>>,
}

pub(crate) fn endpoint(address: SocketAddr) -> Arc<Endpoint> {
    Arc::new(Endpoint::new(address, 1, EndpointHealth::Healthy))
}

pub(crate) fn endpoints(addresses: &[SocketAddr]) -> Arc<EndpointSet> {
    let endpoints = addresses.iter().map(|address| endpoint(*address)).collect();
    Arc::new(EndpointSet::new("1".into(), endpoints))
}

/// A cluster beside the usual one.
pub(crate) fn cluster(name: &str, addresses: &[SocketAddr], http: Http) -> Cluster {
    let settings = ClusterSettings {
        version: "1".into(),
        connect_timeout: Duration::from_secs(5),
        policy: BalancePolicy::RoundRobin,
        tls: None,
        proxy_protocol: None,
        protocol: http.upstream(),
        idle_timeout: Duration::from_secs(55),
        connections: ConnectionLimits::default(),
        keepalive: None,
        source: EndpointSource::Static,
        breakers: Breakers::default(),
        nameable: Default::default(),
    };
    Cluster {
        name: name.into(),
        settings: ArcSwapOption::from_pointee(settings),
        endpoints: ArcSwap::new(endpoints(addresses)),
        load: Default::default(),
    }
}

/// A plain listener's only chain.
pub(crate) fn one_chain(http: HttpSettings) -> Chains {
    let inspect = Inspect {
        announced: None,
        tls: false,
        http: false,
        origin_form: false,
        timeout: Duration::from_secs(15),
        proceed: false,
    };
    let serves = Serves::Http(Arc::new(ArcSwap::from_pointee(http)));
    let chain = Chain { name: "".into(), matches: ChainMatch::default(), tls: None, serves };
    Chains { inspect, original: None, keepalive: Clients::Usual, all: vec![Arc::new(chain)], default: None }
}

impl Proxy {
    pub(crate) async fn start(upstreams: &[SocketAddr]) -> Self {
        Self::with(upstreams, Setup::default()).await
    }

    pub(crate) async fn with(upstreams: &[SocketAddr], setup: Setup) -> Self {
        let cluster = Arc::new(Cluster {
            name: "pool/default/shop".into(),
            settings: ArcSwapOption::from_pointee(ClusterSettings {
                version: "1".into(),
                connect_timeout: setup.connect_timeout,
                policy: setup.policy,
                tls: None,
                proxy_protocol: None,
                protocol: setup.protocol,
                idle_timeout: setup.idle_timeout,
                connections: setup.connections,
                keepalive: None,
                source: EndpointSource::Static,
                breakers: setup.breakers,
                nameable: Default::default(),
            }),
            endpoints: ArcSwap::new(endpoints(upstreams)),
            load: Default::default(),
        });
        let mut forward = Forward {
            targets: Targets::One(Arc::clone(&cluster)),
            hash: Box::default(),
            timeout: Some(Duration::from_secs(15)),
            idle_timeout: None,
            longest_stream: None,
            retry: RetryPolicy {
                max_retries: 1,
                per_try_timeout: None,
                on_connect_failure: true,
                on_refused_stream: true,
                on_broken_connection: true,
                on_status: None,
                back_off: None,
            },
            prefix_rewrite: None,
            regex_rewrite: None,
            host_rewrite: None,
            connect: false,
            max_body_bytes: Default::default(),
            sessions: Default::default(),
            mirrors: Box::default(),
            high_priority: false,
        };
        (setup.forward)(&mut forward);
        let mut route = Route {
            name: "all".into(),
            matcher: RouteMatcher {
                path: PathMatcher::Prefix("/".into()),
                headers: Box::default(),
                query: Box::default(),
                fraction: None,
            },
            action: Action::Forward(forward),
            request_headers: Box::default(),
            response_headers: Box::default(),
            cors: Default::default(),
            rbac: Default::default(),
            rate_limits: Default::default(),
            authz: Default::default(),
        };
        (setup.route)(&mut route);
        let host = (vec!["*".to_owned()], VirtualHost::new("all".into(), vec![route]));
        let table = RouteTable::new("r".into(), "1".into(), true, vec![host]).unwrap();
        let mut http = HttpSettings {
            routes: Arc::new(RouteHandle { name: "r".into(), table: ArcSwapOption::from_pointee(table) }),
            forwarded: ForwardedTrust { use_remote_address: true, ..Default::default() },
            limits: Limits {
                max_header_bytes: 60 * 1024,
                max_headers: 100,
                max_body_bytes: 0,
                max_concurrent_streams: 100,
                max_requests: 0,
            },
            timeouts: DownstreamTimeouts {
                request_headers: Duration::from_secs(10),
                idle: Duration::from_secs(3600),
                stream_idle: Some(Duration::from_secs(300)),
                drain: Duration::from_secs(5),
                request: None,
                longest_stream: None,
                longest_connection: None,
                end_with_answer: false,
            },
            path: PathOptions::default(),
            underscores: Underscores::Reject,
            client_certificates: Default::default(),
            upgrades: vec!["websocket".into()],
            grpc_web: true,
            codec: Codec::Auto,
            http10: true,
            cors: vec!["envoy.filters.http.cors".into()],
            rbac: Vec::new(),
            buffers: vec![Buffer { name: "envoy.filters.http.buffer".into(), most: 1, disabled: true }],
            sessions: Vec::new(),
            rate_limits: Vec::new(),
            authz: Vec::new(),
            extended_connect: true,
            max_connections: 0,
            generate_request_id: true,
            preserve_external_request_id: false,
            access_log: Vec::new(),
            server_name: "pontoon".into(),
            on_demand: None,
        };
        (setup.http)(&mut http);
        let listener = Arc::new(Listener {
            name: "edge".into(),
            transparent: false,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            chains: ArcSwap::from_pointee(one_chain(http)),
        });
        let (listeners, watched) = watch::channel(vec![Arc::clone(&listener)]);
        let workers = Workers::start(setup.options, watched).unwrap();
        let mut bound = workers.bound();
        let bound = bound.wait_for(|bound| !bound.is_empty()).await.unwrap();
        let address = *bound[0].address.as_ref().unwrap();
        drop(bound);
        Self { address, workers, cluster, listener, listeners }
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        self.workers.metrics().render(&mut text);
        text
    }

    /// The value of one series.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        let text = self.metrics();
        let line =
            text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    pub(crate) async fn drain(&self) -> Drained {
        self.workers.drain().await
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "never came: {what}");
}

/// Version of the protocol on one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Http {
    One,
    Two,
}

impl Http {
    pub(crate) fn upstream(self) -> UpstreamProtocol {
        match self {
            Http::One => UpstreamProtocol::Http1,
            Http::Two => UpstreamProtocol::Http2,
        }
    }
}

/// A client on one connection.
pub(crate) enum Client {
    One(hyper::client::conn::http1::SendRequest<Body>),
    Two(hyper::client::conn::http2::SendRequest<Body>),
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, http: Http) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let io = TokioIo::new(stream);
        match http {
            Http::One => {
                let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
                tokio::spawn(connection.with_upgrades());
                Self::One(sender)
            }
            Http::Two => {
                let (sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(connection);
                Self::Two(sender)
            }
        }
    }

    pub(crate) async fn try_send(&mut self, mut request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::One(sender) => {
                if !request.headers().contains_key("host") {
                    request.headers_mut().insert("host", "shop.test".parse().unwrap());
                }
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Two(sender) => {
                let uri = format!("http://shop.test{}", request.uri());
                *request.uri_mut() = uri.parse().unwrap();
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    pub(crate) async fn send(&mut self, request: Request<Body>) -> Response<Incoming> {
        tokio::time::timeout(PATIENCE, self.try_send(request)).await.expect("an answer in time").unwrap()
    }

    pub(crate) async fn get(&mut self, path: &str) -> Response<Incoming> {
        self.send(Request::get(path).body(empty()).unwrap()).await
    }
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    let body = tokio::time::timeout(PATIENCE, response.into_body().collect()).await.expect("a body in time");
    String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap()
}

/// What the upstream saw of a request.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

/// An upstream that reads a request whole, records it and answers by the given function.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    pub(crate) async fn echo(http: Http) -> Self {
        Self::answering(http, |seen| Response::new(full(seen.body.clone()))).await
    }

    pub(crate) async fn named(http: Http, name: &'static str) -> Self {
        Self::answering(http, move |_| Response::new(full(name))).await
    }

    pub(crate) async fn answering(
        http: Http,
        answer: impl Fn(&Seen) -> Response<Body> + Clone + Send + Sync + 'static,
    ) -> Self {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let record = Arc::clone(&seen);
        Self::serving(http, seen, move |request: Request<Incoming>| {
            let (record, answer) = (Arc::clone(&record), answer.clone());
            async move {
                let (parts, body) = request.into_parts();
                let collected = body.collect().await?;
                let trailers = collected.trailers().cloned();
                let seen = Seen {
                    method: parts.method.to_string(),
                    target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
                    headers: parts.headers,
                    body: collected.to_bytes(),
                    trailers,
                };
                let response = answer(&seen);
                record.lock().unwrap().push(seen);
                Ok(response)
            }
        })
        .await
    }

    pub(crate) async fn serving<S, F>(http: Http, seen: Arc<Mutex<Vec<Seen>>>, service: S) -> Self
    where
        S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response<Body>, hyper::Error>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let service = hyper::service::service_fn(service.clone());
                connections.spawn(async move {
                    let io = TokioIo::new(stream);
                    match http {
                        Http::One => {
                            let serving =
                                hyper::server::conn::http1::Builder::new().serve_connection(io, service);
                            drop(serving.with_upgrades().await);
                        }
                        Http::Two => {
                            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                            drop(builder.serve_connection(io, service).await);
                        }
                    }
                });
            }
        });
        Self { address, seen, connections, task }
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().expect("a request").clone()
    }
}

/// Sends bytes on one connection and gives all that comes back until the proxy closes or nothing comes for a while.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> (String, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match tokio::time::timeout(Duration::from_millis(400), stream.read(&mut chunk)).await {
            Ok(Ok(0) | Err(_)) => return (String::from_utf8_lossy(&answer).into_owned(), true),
            Ok(Ok(length)) => answer.extend_from_slice(&chunk[..length]),
            Err(_) => return (String::from_utf8_lossy(&answer).into_owned(), false),
        }
    }
}
