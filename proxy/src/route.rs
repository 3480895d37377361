//! Which route a request takes, and which cluster of it. The one decision code: serving and `explain` both
//! call [`RouteTable::decide`], with and without a recording [`Trace`].

pub mod authz;
pub mod cors;
mod decide;
pub mod expression;
pub mod filters;
mod hash;
pub mod matching;
pub mod rate_limit;
pub mod rbac;
pub mod session;
mod table;
pub mod trace;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

use self::expression::Expression;
pub use self::table::DuplicateDomain;
pub use self::trace::{Recorded, Step, Trace};
use crate::upstream::cluster::Cluster;

/// A compiled `RouteConfiguration`.
#[derive(Debug)]
pub struct RouteTable {
    /// The resource's name.
    pub name: Arc<str>,
    /// The resource's version as the control plane gave it.
    pub version: Arc<str>,
    /// In resource order. One that did not change is that of the version before.
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// `ignore_port_in_host_matching`.
    pub(crate) ignore_port: bool,
    pub(crate) hosts: table::HostIndex,
}

/// A compiled `VirtualHost`.
#[derive(Debug)]
pub struct VirtualHost {
    /// The resource's name.
    pub name: Arc<str>,
    /// What hosts it is for, as they are written.
    pub(crate) domains: Box<[Arc<str>]>,
    /// In order: the first match wins.
    pub routes: Vec<Arc<Route>>,
    /// Where there are so many that it is worth having.
    pub(crate) paths: Option<Box<table::PathIndex>>,
}

/// A compiled `Route`. There are thousands: what is rare in one is apart, and lists are as long as what they hold.
#[derive(Debug)]
pub struct Route {
    /// For logs and `explain`; made from the position where the resource gives none.
    pub name: Arc<str>,
    /// Which requests it takes.
    pub matcher: matching::RouteMatcher,
    /// What to do with a request that matches.
    pub action: Action,
    /// Applied to the request before it is sent.
    pub request_headers: Box<[HeaderMutation]>,
    /// Applied to the response before it is returned.
    pub response_headers: Box<[HeaderMutation]>,
    /// Which other sites' pages may ask.
    pub cors: filters::ByFilter<Arc<cors::Cors>>,
    /// Who may ask, where it says other than the listener.
    pub rbac: filters::ByFilter<rbac::Override>,
    /// How many requests are taken, where it says other than the listener; nothing: as many as come.
    pub rate_limits: filters::ByFilter<Option<Arc<rate_limit::RateLimit>>>,
    /// Who is asked whether a request may go on, where it says other than the listener.
    pub authz: filters::ByFilter<authz::OfRoute>,
}

/// What a route does.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all routes are of the large one")]
pub enum Action {
    /// Send it on.
    Forward(Forward),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer from here.
    Direct {
        /// The status.
        status: StatusCode,
        /// The body, possibly empty.
        body: bytes::Bytes,
    },
}

/// A compiled `RouteAction`.
#[derive(Debug)]
pub struct Forward {
    /// One cluster or a weighted choice.
    pub targets: Targets,
    /// Feeds the weighted choice (and hash-based balancing); combined in order as Envoy does.
    pub hash: Box<[HashPolicy]>,
    /// The whole exchange; default 15 s (Envoy's); `None` is off.
    pub timeout: Option<Duration>,
    /// No bytes either way; overrides the listener's `stream_idle`. Zero is none at all.
    pub idle_timeout: Option<Duration>,
    /// `max_stream_duration`; overrides the listener's. Zero is none at all.
    pub longest_stream: Option<Duration>,
    /// When and how often to try again.
    pub retry: RetryPolicy,
    /// Replaces the matched prefix.
    pub prefix_rewrite: Option<Box<str>>,
    /// Replaces what it matches of the path; not together with `prefix_rewrite`.
    pub regex_rewrite: Option<Box<RegexRewrite>>,
    /// Replaces `Host`/`:authority`.
    pub host_rewrite: Option<Box<HeaderValue>>,
    /// It takes CONNECT, and nothing else: bytes both ways over a connection of its own.
    pub connect: bool,
    /// What it says of the listener's buffer filters; see [`filters::longest_body`].
    pub max_body_bytes: filters::ByFilter<Option<u64>>,
    /// What it says of the listener's sessions; see [`session::of`].
    pub sessions: filters::ByFilter<Option<Arc<session::Session>>>,
    /// Where copies go, whose answers nobody reads.
    pub mirrors: Box<[Mirror]>,
    /// Its requests count against the cluster's circuit breakers of high priority.
    pub high_priority: bool,
}

/// A path in place of what an expression matches.
#[derive(Debug)]
pub struct RegexRewrite {
    /// What is replaced, wherever it is.
    pub pattern: Expression,
    /// By what; `$1` stands for the first group.
    pub substitution: Box<str>,
}

/// A copy of requests.
#[derive(Debug)]
pub struct Mirror {
    /// Where it goes.
    pub cluster: Arc<Cluster>,
    /// Of so many requests in a million.
    pub millionths: u32,
    /// The host says that it is one: `-shadow` is added to its name, as Envoy does.
    pub shadow_host: bool,
}

/// Where a request may go.
#[derive(Debug)]
pub enum Targets {
    /// All to one.
    One(Arc<Cluster>),
    /// By weight: the request's number modulo `total` falls into the running sum, in this order.
    Weighted {
        /// In resource order, with each one's own weight.
        clusters: Vec<WeightedCluster>,
        /// The sum of the weights; never 0.
        total: u32,
        /// Where the number comes from.
        by: WeightedBy,
    },
}

/// One arm of a weighted choice.
#[derive(Debug)]
pub struct WeightedCluster {
    /// Its cluster.
    pub cluster: Arc<Cluster>,
    /// Its share of the total.
    pub weight: u32,
    /// Applied to the request when this arm is taken.
    pub request_headers: Box<[HeaderMutation]>,
    /// Applied to the response when this arm is taken.
    pub response_headers: Box<[HeaderMutation]>,
}

/// Where the number for a weighted choice comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightedBy {
    /// A random number a request.
    Random,
    /// `use_hash_policy`: the hash of [`Forward::hash`]; random where no policy yields one (as Envoy).
    Hash,
    /// `header_name`: the header's decimal value.
    Header(Box<HeaderName>),
}

/// One `HashPolicy`.
#[derive(Debug, Clone)]
pub enum HashPolicy {
    /// xxHash64 of the header's value.
    Header {
        /// The header.
        name: HeaderName,
        /// Stop here when this one yielded a hash.
        terminal: bool,
    },
    /// xxHash64 of the cookie's value. With a `ttl` a missing cookie is made and set.
    Cookie {
        /// The cookie's name.
        name: Box<str>,
        /// `Some(0)` is a session cookie; `None`: never made here.
        ttl: Option<Duration>,
        /// The `Path` attribute of a cookie that is made here.
        path: Box<str>,
        /// Stop here when this one yielded a hash.
        terminal: bool,
    },
    /// xxHash64 of the client's address without port, after the trust rules.
    SourceIp {
        /// Stop here when this one yielded a hash.
        terminal: bool,
    },
}

/// When to try again. Never after bytes of a request that is not safe have gone out.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Further tries after the first; default 1, for `connect-failure` and `refused-stream` only.
    pub max_retries: u32,
    /// Each try; `None`: only the whole timeout bounds it.
    pub per_try_timeout: Option<Duration>,
    /// `connect-failure`.
    pub on_connect_failure: bool,
    /// `refused-stream`.
    pub on_refused_stream: bool,
    /// `reset-before-request`, and a connection that broke before the answer had begun.
    pub on_broken_connection: bool,
    /// `retriable-status-codes`: answers that are not the last word, of requests without a body.
    pub on_status: Option<Arc<[StatusCode]>>,
    /// What is waited for before a try after such an answer: at random, up to the first at first, twice as long each
    /// time, up to the second. `None`: Envoy's default.
    pub back_off: Option<Arc<(Duration, Duration)>>,
}

/// Envoy's default for what is waited for before a further try.
pub(crate) const BACK_OFF: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(250));

/// A `RedirectAction`.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// Replaces the scheme.
    pub scheme: Option<Box<str>>,
    /// Replaces the host.
    pub host: Option<Box<str>>,
    /// Replaces the port.
    pub port: Option<u16>,
    /// Replaces the path.
    pub path: Option<RedirectPath>,
    /// Drops the query.
    pub strip_query: bool,
}

impl Redirect {
    /// One that changes nothing.
    pub(crate) fn to_itself(status: StatusCode) -> Redirect {
        Redirect { status, scheme: None, host: None, port: None, path: None, strip_query: false }
    }
}

/// How a redirect changes the path.
#[derive(Debug, Clone)]
pub enum RedirectPath {
    /// The whole path.
    Full(Box<str>),
    /// The matched prefix.
    Prefix(Box<str>),
}

/// One change to a header map.
#[derive(Debug, Clone)]
pub enum HeaderMutation {
    /// Replace or add.
    Set(HeaderName, HeaderValue),
    /// Add beside what is there.
    Append(HeaderName, HeaderValue),
    /// Only where absent.
    SetIfAbsent(HeaderName, HeaderValue),
    /// Take away.
    Remove(HeaderName),
}

/// What a decision looks at: the request's head after the trust rules and the normalisation of its path.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path and query (the authority is taken from `host`).
    pub uri: &'a Uri,
    /// `Host` or `:authority`, as sent.
    pub host: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// The client as the trust rules see it.
    pub client: std::net::IpAddr,
    /// Fed to random choices; taken once a request.
    pub random: u64,
}

/// What was decided.
#[derive(Debug)]
pub struct Decision<'t> {
    /// The virtual host.
    pub virtual_host: &'t VirtualHost,
    /// The route.
    pub route: &'t Arc<Route>,
    /// For [`Action::Forward`]: the cluster, and the arm's own header changes.
    pub target: Option<Chosen<'t>>,
    /// A cookie that was made for the hash policy and must be set on the response.
    pub set_cookie: Option<HeaderValue>,
    /// The matched prefix's length in the path, for rewrites.
    pub matched_prefix: usize,
}

/// The cluster chosen, and how.
#[derive(Debug, Clone, Copy)]
pub struct Chosen<'t> {
    /// The cluster.
    pub cluster: &'t Arc<Cluster>,
    /// The arm, where the choice was weighted.
    pub arm: Option<&'t WeightedCluster>,
    /// The request's number modulo the total weight, where the choice was weighted.
    pub bucket: Option<u32>,
    /// The combined hash, where a policy yielded one.
    pub hash: Option<u64>,
}

/// Why no route was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoute {
    /// No virtual host for this host.
    VirtualHost,
    /// The virtual host has no route that matches.
    Route,
}
