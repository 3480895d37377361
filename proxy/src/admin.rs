//! What an operator sees and may do: health, metrics, the configuration in force, the reason for a decision.
//! It runs on the control runtime and has no access control, so it listens on loopback unless told otherwise.

mod certificates;
mod client_status;
mod clusters;
mod config_dump;
pub(crate) mod health;

use std::convert::Infallible;
use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use pontoon_xds::Variant;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tonic::codegen::Service as _;

use crate::bootstrap::Bootstrap;
use crate::config::listener::Listener;
use crate::discovery::Shared;
use crate::dns::Dns;
use crate::explain;
use crate::overload::{Admission, Pressure};
use crate::run::LogFilter;
use crate::run::systemd::STUCK;
use crate::telemetry::metrics::Metrics;
use crate::worker::{Bound, Workers};
use client_status::ClientStatus;
use config_dump::{Shown, Unusable, Wanted};

/// Connections to the admin port at once; more wait.
const CONNECTIONS: usize = 64;
/// For the headers of a request, and for an answer to a ping.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// For a client to take what it is sent, before its place is another's.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of one HTTP/2 connection at once.
const STREAMS: u32 = 10;
/// Of a request, in either version.
const MAX_HEAD_BYTES: u32 = 16 * 1024;
const MAX_HEADERS: usize = 100;
/// What is asked is short, be it by gRPC.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Bounds, with the head, how many CONTINUATION frames it may have.
const MAX_FRAME: u32 = 16 * 1024;
/// Written ahead of a slow reader, a stream.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// As those of the listeners: of streams reset before we looked at them, and by us for the client's errors.
const MAX_PENDING_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 100;

/// Where the process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Taking requests.
    Serving,
    /// Finishing what is in flight.
    Draining,
    /// The same, and another process takes what is new.
    Replaced,
    /// Ending at once.
    Quit,
}

/// What the admin port shows.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) bootstrap: Bootstrap,
    /// Who we say that we are.
    pub(crate) node: Node,
    pub(crate) started: SystemTime,
    pub(crate) discovery: Shared,
    pub(crate) dns: Option<Arc<Dns>>,
    pub(crate) metrics: Metrics,
    pub(crate) bound: watch::Receiver<Vec<Bound>>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) phase: Arc<watch::Sender<Phase>>,
    pub(crate) logging: LogFilter,
    pub(crate) admission: Arc<Admission>,
    /// When the file was read again last, and what was wrong with it.
    pub(crate) reread: watch::Sender<Option<(SystemTime, Result<(), String>)>>,
}

type Answer = Response<Full<Bytes>>;

/// Serves until the process ends.
pub(crate) async fn serve(admin: Arc<Admin>, socket: TcpListener) {
    accept(socket, "admin", move |connection| {
        let admin = Arc::clone(&admin);
        async move {
            if let Err(error) = connected(&admin, connection).await {
                tracing::debug!(%error, "an admin connection ended early");
            }
        }
    })
    .await;
}

/// Has each connection of a port served until the process ends, so many of them at a time.
async fn accept<F>(socket: TcpListener, port: &str, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match socket.accept().await {
            Ok((connection, _)) => {
                // The system does that for us, also for one whose window is shut. It is not worth a connection.
                let _ = SockRef::from(&connection).set_tcp_user_timeout(Some(WRITE_TIMEOUT));
                let serving = serve(connection);
                tokio::spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the {port} port cannot accept; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves one connection: HTTP/1.1, and HTTP/2 without an upgrade, as gRPC comes.
async fn connected(admin: &Arc<Admin>, connection: TcpStream) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut start = [0; 3];
    let read = tokio::time::timeout(HEADER_TIMEOUT, connection.peek(&mut start)).await??;
    let status = ClientStatus::service(admin);
    let service = service_fn(|request: Request<Incoming>| {
        let (admin, mut status) = (Arc::clone(admin), status.clone());
        async move {
            if request.uri().path().starts_with(client_status::PATH) {
                return status.call(request).await;
            }
            Ok::<_, Infallible>(admin.answer(&request).map(tonic::body::Body::new))
        }
    });
    let io = TokioIo::new(connection);
    // No method begins so: it is HTTP/2's preface.
    if start[..read] == *b"PRI" {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(MAX_HEAD_BYTES)
            .max_frame_size(MAX_FRAME)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(MAX_SEND_BUFFER)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS)
            .keep_alive_interval(HEADER_TIMEOUT)
            .keep_alive_timeout(HEADER_TIMEOUT)
            .serve_connection(io, service)
            .await?;
    } else {
        http1().serve_connection(io, service).await?;
    }
    Ok(())
}

fn http1() -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.max_header_size(MAX_HEAD_BYTES as usize).max_headers(MAX_HEADERS);
    builder
}

impl Admin {
    fn answer(&self, request: &Request<Incoming>) -> Answer {
        let query = Query::of(request.uri());
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/") => text(StatusCode::OK, HELP),
            (&Method::GET, "/ready") => self.ready(query.has("verbose")),
            (&Method::GET, "/live") => self.live(),
            (&Method::GET, "/metrics") => self.metrics(),
            (&Method::GET, "/config_dump") => self.config_dump(&query),
            (&Method::GET, "/clusters") if query.get("format").as_deref() == Some("json") => {
                json(&clusters::json(&self.discovery.store()))
            }
            (&Method::GET, "/clusters") => text(StatusCode::OK, clusters::text(&self.discovery.store())),
            (&Method::GET, "/certs") => json(&certificates::json(&self.discovery.store())),
            (&Method::GET, "/listeners") => self.listeners(),
            (&Method::GET, "/dns") => match &self.dns {
                Some(dns) => text(StatusCode::OK, dns.describe()),
                None => text(StatusCode::NOT_FOUND, "DNS is not served: see --dns\n"),
            },
            (&Method::GET, "/explain") => self.explain(&query),
            (&Method::POST, "/drain") => {
                self.phase.send_if_modified(|phase| {
                    let starts = *phase == Phase::Serving;
                    if starts {
                        *phase = Phase::Draining;
                    }
                    starts
                });
                text(StatusCode::OK, "draining\n")
            }
            (&Method::POST, "/quitquitquit") => {
                self.phase.send_replace(Phase::Quit);
                text(StatusCode::OK, "ending\n")
            }
            (&Method::POST, "/logging") => self.log(&query),
            (_, path) => {
                text(StatusCode::NOT_FOUND, format!("no {} {path} here\n\n{HELP}", request.method()))
            }
        }
    }

    /// The first full configuration is in force, and every listener that has routes listens.
    fn is_ready(&self) -> bool {
        let (ready, live) = {
            let store = self.discovery.store();
            (store.is_ready(), store.live_listeners())
        };
        let bound = self.bound.borrow();
        let listens = |listener: &Arc<Listener>| {
            bound.iter().any(|bound| bound.name == listener.name && bound.address.is_ok())
        };
        ready && live.iter().all(listens)
    }

    /// Waits until it is ready.
    pub(crate) async fn until_ready(&self) {
        let (mut changes, mut bound) = (self.discovery.changes(), self.bound.clone());
        while !self.is_ready() {
            // Who could change them is in this process, and goes with it.
            tokio::select! {
                _ = changes.changed() => {}
                _ = bound.changed() => {}
            }
        }
    }

    /// What is not in force yet, in words.
    pub(crate) fn waiting(&self) -> Vec<String> {
        let mut waiting = self.discovery.store().waiting_for();
        let bound = self.bound.borrow();
        let failed = bound.iter().filter_map(|bound| Some((&bound.name, bound.address.as_ref().err()?)));
        waiting.extend(failed.map(|(name, error)| format!("listener {name}: {error}")));
        waiting
    }

    fn live(&self) -> Answer {
        match self.workers.stuck(STUCK) {
            0 => text(StatusCode::OK, "LIVE\n"),
            stuck => text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("NOT LIVE\n{stuck} workers have not answered for {STUCK:?}\n"),
            ),
        }
    }

    /// Ready means: the first full configuration is in force, and the process is not on its way out.
    fn ready(&self, verbose: bool) -> Answer {
        let (emptied, differing) = {
            let store = self.discovery.store();
            (store.emptied(), if verbose { store.differing() } else { Vec::new() })
        };
        let waiting = self.waiting();
        let phase = *self.phase.borrow();
        let serving = self.is_ready();
        let overloaded = self.admission.pressure() == Pressure::Shed;
        let (status, word) = match (phase, serving) {
            (Phase::Serving, true) if overloaded => (StatusCode::SERVICE_UNAVAILABLE, "OVERLOADED"),
            (Phase::Serving, true) => (StatusCode::OK, "READY"),
            (Phase::Serving, false) => (StatusCode::SERVICE_UNAVAILABLE, "NOT READY"),
            (Phase::Draining | Phase::Replaced | Phase::Quit, _) => {
                (StatusCode::SERVICE_UNAVAILABLE, "DRAINING")
            }
        };
        let mut body = format!("{word}\n");
        if verbose {
            let xds = self.discovery.status();
            let state = if xds.connected { "connected" } else { "not connected: serving what is in force" };
            let Bootstrap { node_id, cluster, xds_server, .. } = &self.bootstrap;
            let _ = writeln!(body, "node: {node_id}, configured as {cluster}");
            let _ = match xds_server {
                Some(server) => {
                    let variant = match self.bootstrap.xds_variant {
                        Variant::Sotw => "state of the world",
                        Variant::Delta => "delta",
                    };
                    writeln!(body, "control plane {server}, in {variant}: {state}, for {}", age(xds.since))
                }
                None => writeln!(body, "control plane: none, all is in the bootstrap"),
            };
            if let Some(last) = xds.last_update {
                let _ = writeln!(body, "last update: {} ago", age(last));
            }
            if let Some(error) = xds.last_error.filter(|_| !xds.connected) {
                let _ = writeln!(body, "last error: {error}");
            }
            let _ = writeln!(body, "updates refused: {}", xds.nacks);
            if let Some((at, reason)) = xds.last_refusal {
                let _ = writeln!(body, "last refused: {} ago, {reason}", age(at));
            }
            if let Some((at, result)) = &*self.reread.borrow() {
                let _ = match result {
                    Ok(()) => writeln!(body, "file read again: {} ago", age(*at)),
                    Err(error) => writeln!(body, "file refused: {} ago, {error}", age(*at)),
                };
            }
            let _ = writeln!(body, "clusters emptied: {emptied}");
            let (pressure, mib) = (self.admission.pressure(), self.admission.memory() >> 20);
            if pressure > Pressure::None {
                let limit = self.admission.limits().memory >> 20;
                let _ =
                    writeln!(body, "memory is scarce: {mib} of {limit} MiB are used, {}", pressure.means());
            }
            for line in waiting {
                let _ = writeln!(body, "waiting: {line}");
            }
            for line in differing {
                let _ = writeln!(body, "warning: {line}");
            }
        }
        text(status, body)
    }

    fn metrics(&self) -> Answer {
        let mut out = String::new();
        self.metrics.render(&mut out);
        let xds = self.discovery.status();
        let (ready, emptied) = {
            let store = self.discovery.store();
            (store.is_ready(), store.emptied())
        };
        let since_update =
            xds.last_update.and_then(|at| at.elapsed().ok()).map_or(f64::NAN, |age| age.as_secs_f64());
        let rows: [(&str, &str, &str, f64); 8] = [
            (
                "pontoon_xds_connected",
                "gauge",
                "Whether a stream to the control plane is open.",
                flag(xds.connected),
            ),
            ("pontoon_xds_streams_total", "counter", "Streams opened.", xds.streams as f64),
            ("pontoon_xds_updates_total", "counter", "Responses taken.", xds.updates as f64),
            (
                "pontoon_xds_nacks_total",
                "counter",
                "Responses refused in whole or in part.",
                xds.nacks as f64,
            ),
            ("pontoon_xds_last_update_age_seconds", "gauge", "Since the last response.", since_update),
            (
                "pontoon_names",
                "gauge",
                "Names on demand that are kept, those included that nobody serves.",
                self.discovery.names_kept() as f64,
            ),
            ("pontoon_ready", "gauge", "Whether the first full configuration is in force.", flag(ready)),
            (
                "pontoon_clusters_emptied_total",
                "counter",
                "Clusters that lost their last endpoint.",
                emptied as f64,
            ),
        ];
        for (name, kind, help, value) in rows {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        if let Some(dns) = &self.dns {
            dns.render_metrics(&mut out);
        }
        typed("text/plain; version=0.0.4; charset=utf-8", out)
    }

    fn config_dump(&self, query: &Query) -> Answer {
        let (mask, name) = (query.get("mask"), query.get("name_regex"));
        let include_eds = query.has("include_eds");
        let wanted = Wanted::new(query.get("resource"), mask.as_deref(), name.as_deref(), include_eds);
        let rendered = wanted.and_then(|wanted| self.shown().render(&wanted));
        pontoon_xds::json::forget();
        match rendered {
            Ok(dump) => json(&dump),
            Err(error @ Unusable::Resource(_)) => text(StatusCode::NOT_FOUND, format!("{error}\n")),
            Err(error @ (Unusable::Mask | Unusable::Regex(_))) => {
                text(StatusCode::BAD_REQUEST, format!("{error}\n"))
            }
        }
    }

    fn shown(&self) -> Shown<'_> {
        let store = self.discovery.store();
        Shown {
            bootstrap: &self.bootstrap,
            node: self.node.clone(),
            started: self.started,
            resources: store.dump(),
            endpoints: store.own_endpoints(),
        }
    }

    fn listeners(&self) -> Answer {
        let mut out = String::new();
        for bound in self.bound.borrow().iter() {
            let _ = match &bound.address {
                Ok(address) => writeln!(out, "{}::{address}", bound.name),
                Err(error) => writeln!(out, "{}::not bound: {error}", bound.name),
            };
        }
        text(StatusCode::OK, out)
    }

    fn explain(&self, query: &Query) -> Answer {
        match explain_request(query) {
            Ok(request) => {
                let explanation = explain::over(&self.discovery.store(), &request);
                json(&serde_json::to_value(&explanation).unwrap_or_default())
            }
            Err(reason) => text(StatusCode::BAD_REQUEST, format!("{reason}\n")),
        }
    }

    fn log(&self, query: &Query) -> Answer {
        let level = query.get("level").unwrap_or_default();
        let filter = level.parse::<tracing_subscriber::filter::Targets>();
        match filter.map(|filter| self.logging.reload(filter)) {
            Ok(Ok(())) if !level.is_empty() => text(StatusCode::OK, format!("logging {level}\n")),
            _ => text(
                StatusCode::BAD_REQUEST,
                "expected ?level=debug, or any filter such as info,hyper=warn\n",
            ),
        }
    }
}

const HELP: &str = "\
GET  /ready[?verbose]     200 once the first full configuration is in force, 503 while draining
GET  /live                200 while the process runs
GET  /metrics             Prometheus
GET  /config_dump[?resource=LIST][&mask=FIELDS][&name_regex=REGEX][&include_eds]
                          every resource in force, and what was refused, as Envoy says it
gRPC envoy.service.status.v3.ClientStatusDiscoveryService (HTTP/2 in plain text)
GET  /clusters[?format=json]
GET  /listeners
GET  /dns                 names with their virtual addresses, and how the upstreams do
GET  /certs               certificates in force, and the days they have left
GET  /explain?url=http://HOST/PATH[&method=GET][&header=NAME:VALUE]...
POST /drain               finish what is in flight and end
POST /quitquitquit        end at once
POST /logging?level=FILTER
";

fn explain_request(query: &Query) -> Result<explain::Request, String> {
    let url = query.get("url").ok_or("expected ?url=http://HOST/PATH")?;
    let uri: Uri = url.parse().map_err(|e| format!("url is {url:?}: {e}"))?;
    if uri.authority().is_none() {
        return Err(format!("url is {url:?}: expected http://HOST/PATH"));
    }
    let method = query.get("method").unwrap_or_else(|| "GET".into());
    let mut headers = HeaderMap::new();
    for line in query.all("header") {
        let pair = line.split_once(':').and_then(|(name, value)| {
            let name = name.trim().parse::<HeaderName>().ok()?;
            Some((name, HeaderValue::from_str(value.trim()).ok()?))
        });
        let (name, value) = pair.ok_or_else(|| format!("header is {line:?}: expected NAME:VALUE"))?;
        headers.append(name, value);
    }
    let method = method.parse().map_err(|_| format!("method is {method:?}"))?;
    Ok(explain::Request { method, uri, headers, client: None })
}

/// A query string, decoded.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(uri: &Uri) -> Query {
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decoded(name), decoded(value))
                })
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Option<String> {
        self.all(name).next().map(ToOwned::to_owned)
    }

    fn all<'q>(&'q self, name: &'q str) -> impl Iterator<Item = &'q str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }
}

fn decoded(text: &str) -> String {
    let spaced = text.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

fn flag(value: bool) -> f64 {
    if value { 1.0 } else { 0.0 }
}

fn age(since: SystemTime) -> String {
    format!("{:.1} s", since.elapsed().unwrap_or_default().as_secs_f64())
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = typed("text/plain; charset=utf-8", body);
    *answer.status_mut() = status;
    answer
}

fn json(value: &serde_json::Value) -> Answer {
    typed("application/json", format!("{value:#}\n"))
}

fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
