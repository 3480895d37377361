//! A cluster and its endpoints as the path reads them. A [`Cluster`] is a handle that lives as long as any
//! route names it; its settings and its endpoints are swapped apart, so churn costs what changed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::config::keepalive::Keepalive;
use crate::proxy_protocol::Version;
use crate::resilience::breakers::{Breakers, Load};
use crate::resilience::outlier::Outlier;
use crate::tls::client::ClientTls;

/// A cluster by name.
#[derive(Debug)]
pub struct Cluster {
    /// The resource's name.
    pub name: Arc<str>,
    /// `None`: named by a route, but not (or no longer) given by the control plane: answered 503, `no_cluster`.
    pub settings: ArcSwapOption<ClusterSettings>,
    /// The endpoints in force.
    pub endpoints: ArcSwap<EndpointSet>,
    /// What is held by requests of routes of default and of high priority, where there are circuit breakers.
    pub load: [Arc<Load>; 2],
}

impl Cluster {
    /// A handle without settings: what a route can name before the resource is there.
    pub fn named(name: Arc<str>) -> Cluster {
        Cluster {
            name,
            settings: ArcSwapOption::empty(),
            endpoints: ArcSwap::default(),
            load: Default::default(),
        }
    }
}

/// What a `Cluster` resource says.
#[derive(Debug, Clone)]
pub struct ClusterSettings {
    /// The resource's version as the control plane gave it.
    pub version: Arc<str>,
    /// To establish a connection; default 5 s (Envoy's).
    pub connect_timeout: Duration,
    /// How to choose.
    pub policy: BalancePolicy,
    /// Spoken under HTTP, where the cluster has a TLS transport socket.
    pub tls: Option<Arc<ClientTls>>,
    /// Whether a connection begins with a PROXY protocol header, and of which form. One that is shared by requests
    /// names no client.
    pub proxy_protocol: Option<Version>,
    /// HTTP/1.1 or HTTP/2.
    pub protocol: UpstreamProtocol,
    /// A pooled connection without a request is closed after this; default 55 s, under the 60 s that
    /// Tomcat and Netty close theirs after.
    pub idle_timeout: Duration,
    /// How long a connection is used.
    pub connections: ConnectionLimits,
    /// Whether and when endpoints are probed; by default every 30 s.
    pub keepalive: Option<Keepalive>,
    /// Where the endpoints come from.
    pub source: EndpointSource,
    /// What it may hold at a time.
    pub breakers: Breakers,
}

/// When a connection has been used enough: it finishes what it has and takes nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionLimits {
    /// `max_requests_per_connection`; 0 is no limit.
    pub requests: u32,
    /// `max_connection_duration`.
    pub longest: Option<Duration>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BalancePolicy {
    /// In turn.
    RoundRobin,
    /// The less loaded of two taken at random (P2C).
    LeastRequest,
}

/// What is spoken to the endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1 over a keep-alive pool.
    Http1,
    /// HTTP/2: with prior knowledge in the clear, by ALPN under TLS.
    Http2,
}

/// Where a cluster's endpoints come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointSource {
    /// EDS, under this service name.
    Eds(Arc<str>),
    /// In the cluster itself.
    Static,
    /// Nowhere: a connection goes on to where it was going to when it was intercepted.
    OriginalDst,
    /// A name that is looked up again and again.
    Dns {
        /// The names and ports to resolve.
        targets: Vec<(Box<str>, u16)>,
        /// Between look-ups.
        refresh: Duration,
        /// Which of their addresses count.
        family: LookupFamily,
    },
}

/// Which of a name's addresses count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupFamily {
    /// Those of both families.
    All,
    /// IPv4's.
    V4Only,
    /// IPv6's.
    V6Only,
    /// IPv4's, or, where there is none, IPv6's.
    V4Preferred,
}

impl LookupFamily {
    pub(crate) fn of(self, mut found: Vec<SocketAddr>) -> Vec<SocketAddr> {
        match self {
            Self::V4Only => found.retain(SocketAddr::is_ipv4),
            Self::V6Only => found.retain(SocketAddr::is_ipv6),
            Self::V4Preferred if found.iter().any(SocketAddr::is_ipv4) => found.retain(SocketAddr::is_ipv4),
            Self::All | Self::V4Preferred => {}
        }
        found
    }
}

/// The endpoints of a cluster, as one version of them.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// The `ClusterLoadAssignment`'s version; empty before the first.
    pub version: Arc<str>,
    /// All of them, healthy or not. An endpoint that stays keeps its object (and so its counters) over swaps.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// One endpoint. Shared by all workers; what is global about it is atomic.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is.
    pub address: SocketAddr,
    /// The address that connections to it are made from, though it is not this machine's: an intercepted client's.
    pub source: Option<IpAddr>,
    /// Its weight, at least 1.
    pub weight: u32,
    /// `HEALTHY`, `UNKNOWN` and `DEGRADED` take traffic; `DRAINING` finishes what it has; others get none.
    pub health: EndpointHealth,
    /// Requests in flight from all workers.
    pub active: AtomicU32,
    /// Requests sent since it appeared.
    pub requests: AtomicU64,
    /// What failed connects say about it.
    pub outlier: Outlier,
}

impl Endpoint {
    /// A new endpoint with its counters at zero.
    pub fn new(address: SocketAddr, weight: u32, health: EndpointHealth) -> Self {
        Self {
            address,
            source: None,
            weight: weight.max(1),
            health,
            active: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            outlier: Outlier::default(),
        }
    }
}

/// The health that EDS gave an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointHealth {
    /// Takes traffic.
    Healthy,
    /// Takes no new requests.
    Draining,
    /// Takes no requests.
    Unhealthy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_names_addresses_those_of_its_family_count() {
        let (v4, v6): (SocketAddr, SocketAddr) =
            ("10.0.0.1:1".parse().unwrap(), "[fd00::1]:1".parse().unwrap());
        let both = || vec![v6, v4];
        assert_eq!(LookupFamily::All.of(both()), both());
        assert_eq!(LookupFamily::V4Only.of(both()), [v4]);
        assert_eq!(LookupFamily::V6Only.of(both()), [v6]);
        assert_eq!(LookupFamily::V4Preferred.of(both()), [v4]);
        assert_eq!(LookupFamily::V4Preferred.of(vec![v6]), [v6]);
        assert!(LookupFamily::V4Only.of(vec![v6]).is_empty());
    }
}
