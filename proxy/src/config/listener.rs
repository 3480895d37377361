//! A listener and the HTTP settings of its chains, as compiled from `envoy.config.listener.v3.Listener` and
//! `HttpConnectionManager`. The handles live as long as the name does; what they hold is swapped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use ipnet::IpNet;

use super::chains::Chains;
use crate::discovery::on_demand::OnDemand;
use crate::route::filters::Buffer;
use crate::route::{RouteTable, authz, rate_limit, rbac, session};

/// A listening socket. The address never changes during the handle's life: a resource with another address
/// under the same name is a new handle, and the old one drains.
#[derive(Debug)]
pub struct Listener {
    /// The resource's name.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its sockets take connections to addresses that are not this machine's (`IP_TRANSPARENT`, for TPROXY).
    pub transparent: bool,
    /// The filter chains in force. A connection chooses one when it arrives and stays with it.
    pub chains: ArcSwap<Chains>,
}

impl Listener {
    /// The routes of all chains.
    pub fn route_handles(&self) -> Vec<Arc<RouteHandle>> {
        self.chains.load().iter().map(|chain| chain.serves.routes()).collect()
    }

    /// Whether routes and certificates of all chains have arrived.
    pub fn is_complete(&self) -> bool {
        self.chains.load().iter().all(|chain| {
            chain.serves.routes().table.load().is_some()
                && chain.tls.as_ref().is_none_or(|tls| tls.server.load().is_some())
        })
    }
}

/// What an `HttpConnectionManager` says.
#[derive(Debug)]
pub struct HttpSettings {
    /// The route configuration, by handle: it may be named (RDS) before it has arrived.
    pub routes: Arc<RouteHandle>,
    /// Sources whose `X-Forwarded-*` is believed, and how many hops of it.
    pub forwarded: ForwardedTrust,
    /// What upstreams are told of clients' certificates.
    pub client_certificates: ClientCertificates,
    /// Connections of the listener, over all workers; 0 is no limit.
    pub max_connections: usize,
    /// Request header and body limits.
    pub limits: Limits,
    /// Timeouts on the downstream side.
    pub timeouts: DownstreamTimeouts,
    /// How the path is normalised, once, before it is matched and sent on.
    pub path: PathOptions,
    /// What to do with a request that has a header name with an underscore.
    pub underscores: Underscores,
    /// Which versions of HTTP are spoken.
    pub codec: Codec,
    /// `http_protocol_options.accept_http_10`: clients of HTTP/1.0 are served; else they are answered 426.
    pub http10: bool,
    /// Upgrade types passed through (lower case), `websocket` being the usual one.
    pub upgrades: Vec<Box<str>>,
    /// `http2_protocol_options.allow_connect`: HTTP/2 clients may ask for upgrades too (RFC 8441).
    pub extended_connect: bool,
    /// gRPC-Web clients are served (the filter `envoy.filters.http.grpc_web`).
    pub grpc_web: bool,
    /// The names of the filters for CORS: what routes say of CORS counts under these.
    pub cors: Vec<Box<str>>,
    /// The filters that say who may ask.
    pub rbac: Vec<rbac::Filter>,
    /// The filters that limit bodies; [`Limits::max_body_bytes`] is what they say where a route says nothing of them.
    pub buffers: Vec<Buffer>,
    /// The filters for sessions with an endpoint.
    pub sessions: Vec<session::Filter>,
    /// The filters that limit how many requests are taken.
    pub rate_limits: Vec<rate_limit::Filter>,
    /// The filters that ask others whether a request may go on, in their order.
    pub authz: Vec<authz::Filter>,
    /// Whether `x-request-id` is made when absent.
    pub generate_request_id: bool,
    /// Whether an `x-request-id` from outside is kept.
    pub preserve_external_request_id: bool,
    /// One access log per configured sink.
    pub access_log: Vec<AccessLog>,
    /// The `server` header for answers of our own; upstream's own is passed through.
    pub server_name: Box<str>,
    /// A sidecar's own listener: routes are found by the name that a request asks for.
    pub on_demand: Option<ByName>,
}

/// What a `TcpProxy` says. The route configuration has one route, which all connections take.
#[derive(Debug)]
pub struct TcpSettings {
    /// Where connections go.
    pub routes: Arc<RouteHandle>,
    /// Nothing moves either way. Default 1 h (Envoy's); `None` is off.
    pub idle: Option<Duration>,
    /// A sidecar's own listener: a connection to a service's virtual address takes that one's routes.
    pub on_demand: Option<ByName>,
    /// A connection's longest life.
    pub longest: Option<Duration>,
    /// Connections of the listener, over all workers; 0 is no limit.
    pub max_connections: usize,
    /// One access log per configured sink; a line a connection.
    pub access_log: Vec<AccessLog>,
}

/// How a sidecar's own listener finds routes.
#[derive(Debug, Clone)]
pub struct ByName {
    /// The names.
    pub names: Arc<OnDemand>,
    /// Its connections come by interception; others are taken from this machine alone.
    pub intercepted: bool,
    /// An intercepted request for a name that nobody serves goes by the listener's own routes.
    pub pass_unknown: bool,
}

/// How the path is normalised. What is matched is what is sent upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathOptions {
    /// `normalize_path`: dot segments removed, needless percent-encodings undone (RFC 3986, 6.2.2).
    pub normalize: bool,
    /// `merge_slashes`.
    pub merge_slashes: bool,
    /// `path_with_escaped_slashes_action: REJECT_REQUEST`: `%2F` and `%5C` are answered 400; else kept as sent.
    pub reject_escaped_slashes: bool,
}

impl Default for PathOptions {
    /// Normalised, slashes kept: the edge's defaults of Envoy's best practices but for escaped slashes, which
    /// Spring applications do receive.
    fn default() -> Self {
        Self { normalize: true, merge_slashes: false, reject_escaped_slashes: false }
    }
}

/// `headers_with_underscores_action`. `X_Forwarded_Proto` reads like `X-Forwarded-Proto` to many servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Underscores {
    /// 400.
    #[default]
    Reject,
    /// The header is dropped.
    Drop,
    /// The header is passed on.
    Allow,
}

/// `codec_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    /// What ALPN agrees on, else what the first bytes are.
    #[default]
    Auto,
    /// HTTP/1 alone.
    Http1,
    /// HTTP/2 alone.
    Http2,
}

/// `forward_client_cert_details`: what upstreams are told of clients' certificates, in `X-Forwarded-Client-Cert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientCertificates {
    /// Nothing; what a client says is taken out.
    #[default]
    Sanitize,
    /// What a client says that has shown a certificate of its own.
    Forward,
    /// The same, and behind it what we have seen.
    AppendForward(CertificateDetails),
    /// What we have seen.
    SanitizeSet(CertificateDetails),
    /// Whatever any client says.
    AlwaysForward,
}

/// `set_current_client_cert_details`: what is said of a certificate beside its hash and our own URIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CertificateDetails {
    /// Its subject.
    pub subject: bool,
    /// All of it.
    pub cert: bool,
    /// It, and the authorities that came with it.
    pub chain: bool,
    /// Its names of kind DNS.
    pub dns: bool,
    /// Its names of kind URI.
    pub uri: bool,
    /// Who has signed it.
    pub issuer: bool,
}

/// Who may tell us about the client behind them.
#[derive(Debug, Clone, Default)]
pub struct ForwardedTrust {
    /// `use_remote_address`: the peer's address is appended to `X-Forwarded-For`, and `-Proto`, `-Host`
    /// from an untrusted peer are replaced.
    pub use_remote_address: bool,
    /// `xff_num_trusted_hops`.
    pub trusted_hops: u32,
    /// Peers whose headers are kept (from `InternalAddressConfig.cidr_ranges`).
    pub trusted_peers: Vec<IpNet>,
    /// `skip_xff_append`: `X-Forwarded-For` stays as it came.
    pub skip_append: bool,
}

/// Limits on one request. Zero means no limit only where said.
#[derive(Debug, Clone)]
pub struct Limits {
    /// All header bytes of a request, default 60 KiB (Envoy's). Above: 431.
    pub max_header_bytes: u32,
    /// Number of header fields, default 100 (Envoy's). Above: 431.
    pub max_headers: u32,
    /// Body bytes; 0 is unlimited. Above: 413.
    pub max_body_bytes: u64,
    /// Concurrent HTTP/2 streams on a connection, default 100.
    pub max_concurrent_streams: u32,
    /// `max_requests_per_connection`: after so many a client is told to open another; 0 is no limit.
    pub max_requests: u32,
}

/// Timeouts that bound a downstream peer.
#[derive(Debug, Clone)]
pub struct DownstreamTimeouts {
    /// To receive all headers of a request, default 10 s. 408 after it.
    pub request_headers: Duration,
    /// A keep-alive connection with nothing in flight, default 1 h (Envoy's).
    pub idle: Duration,
    /// A stream without progress in either direction, default 5 min (Envoy's); `None` is off.
    pub stream_idle: Option<Duration>,
    /// Between the start of draining and the close of what is left.
    pub drain: Duration,
    /// `request_timeout`: to receive a request to its end, unless its answer begins before. 408 after it.
    pub request: Option<Duration>,
    /// `max_stream_duration`: a whole exchange, its tunnel too; a route may say otherwise.
    pub longest_stream: Option<Duration>,
    /// `max_connection_duration`: a client's connection is told to end after it.
    pub longest_connection: Option<Duration>,
    /// `http1_safe_max_connection_duration`: an HTTP/1.1 connection ends with an answer that says so, and never
    /// between two requests.
    pub end_with_answer: bool,
}

/// Where an access log goes and in what form.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// `/dev/stdout`, `/dev/stderr` or a file.
    pub path: Box<str>,
    /// JSON object a line, or the text line.
    pub format: AccessLogFormat,
}

/// The two forms a line can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object a line.
    Json,
    /// One text line.
    Text,
}

/// A route configuration by name. Empty until it has arrived.
#[derive(Debug)]
pub struct RouteHandle {
    /// The `RouteConfiguration`'s name.
    pub name: Arc<str>,
    /// The compiled table; `None` until the first arrives, and then never again.
    pub table: ArcSwapOption<RouteTable>,
}
