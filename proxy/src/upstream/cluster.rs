//! A cluster and its endpoints as the path reads them. A [`Cluster`] is a handle that lives as long as any
//! route names it; its settings and its endpoints are swapped apart, so churn costs what changed.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption, Guard};

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
    /// The endpoints in force. See [`Cluster::used`].
    pub endpoints: ArcSwap<EndpointSet>,
    /// What is held by requests of routes of default and of high priority, once there are circuit breakers.
    pub load: OnceLock<[Arc<Load>; 2]>,
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

    /// The endpoints in force, to be sent to: from the first time that this is asked on they have objects, which those that
    /// stay keep.
    pub fn used(&self) -> Arc<EndpointSet> {
        let mut set = self.endpoints.load_full();
        while !set.told.0.is_empty() {
            let made = Arc::new(set.made());
            let before = Guard::into_inner(self.endpoints.compare_and_swap(&set, Arc::clone(&made)));
            if Arc::ptr_eq(&before, &set) {
                return made;
            }
            // Another worker has made them, or there are others.
            set = before;
        }
        set
    }
}

/// What a `Cluster` resource says. There are thousands.
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
    /// Which endpoints a request may ask for by their address, as those of sessions do.
    pub nameable: Nameable,
}

/// Endpoints of which health are taken by name, whatever the balancer would take; by default healthy ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nameable {
    /// Those that take traffic.
    pub healthy: bool,
    /// Those that end.
    pub draining: bool,
    /// Those that are unhealthy, or ejected.
    pub unhealthy: bool,
}

impl Default for Nameable {
    fn default() -> Self {
        Self { healthy: true, draining: false, unhealthy: false }
    }
}

impl Nameable {
    /// Whether one of this health is taken.
    pub fn takes(self, health: EndpointHealth) -> bool {
        match health {
            EndpointHealth::Healthy => self.healthy,
            EndpointHealth::Draining => self.draining,
            EndpointHealth::Unhealthy => self.unhealthy,
        }
    }
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
    /// Names that are looked up again and again.
    Dns(Box<Names>),
}

/// Names that stand for endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// They and the ports.
    pub targets: Vec<(Box<str>, u16)>,
    /// Between look-ups.
    pub refresh: Duration,
    /// Which of their addresses count.
    pub family: LookupFamily,
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
    /// All of them, healthy or not, once one is sent to. An endpoint that stays keeps its object (and so its
    /// counters) over swaps.
    pub endpoints: Box<[Arc<Endpoint>]>,
    /// All of them before that, in a tenth of the room: of thousands of clusters not all are sent to.
    told: Told,
}

/// Address, weight and health of endpoints one after the other, seven bytes for nearly each.
#[derive(Debug, Default)]
struct Told(Box<[u8]>);

impl Told {
    /// Beside the health in an entry's first byte: its address is IPv6's, and its weight comes last as it is not 1.
    const V6: u8 = 4;
    const WEIGHTED: u8 = 8;

    fn of(all: &[(SocketAddr, u32, EndpointHealth)]) -> Told {
        let mut bytes = Vec::with_capacity(all.len() * 7);
        for &(address, weight, health) in all {
            let is_weighted = weight != 1;
            let flag = |is: bool, flag: u8| if is { flag } else { 0 };
            bytes.push(health as u8 | flag(address.is_ipv6(), Self::V6) | flag(is_weighted, Self::WEIGHTED));
            match address.ip() {
                IpAddr::V4(ip) => bytes.extend(ip.octets()),
                IpAddr::V6(ip) => bytes.extend(ip.octets()),
            }
            bytes.extend(address.port().to_ne_bytes());
            if is_weighted {
                bytes.extend(weight.to_ne_bytes());
            }
        }
        Told(bytes.into())
    }

    fn all(&self) -> impl Iterator<Item = (SocketAddr, u32, EndpointHealth)> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let [first] = *taken(&mut rest)?;
            let ip = if first & Self::V6 == 0 {
                IpAddr::from(*taken::<4>(&mut rest)?)
            } else {
                IpAddr::from(*taken::<16>(&mut rest)?)
            };
            let port = u16::from_ne_bytes(*taken(&mut rest)?);
            let weight = if first & Self::WEIGHTED == 0 { 1 } else { u32::from_ne_bytes(*taken(&mut rest)?) };
            let of_health = |health: &EndpointHealth| first & 3 == *health as u8;
            let health = EndpointHealth::ALL.into_iter().find(of_health)?;
            Some((SocketAddr::new(ip, port), weight, health))
        })
    }
}

fn taken<'b, const N: usize>(rest: &mut &'b [u8]) -> Option<&'b [u8; N]> {
    let (first, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(first)
}

impl EndpointSet {
    /// Of endpoints that have objects.
    pub fn new(version: Arc<str>, endpoints: Vec<Arc<Endpoint>>) -> Self {
        Self { version, endpoints: endpoints.into(), told: Told::default() }
    }

    /// Of the address, weight and health of each.
    pub(crate) fn told(version: Arc<str>, all: &[(SocketAddr, u32, EndpointHealth)]) -> Self {
        let is_special = |address: &SocketAddr| *address != SocketAddr::new(address.ip(), address.port());
        if all.iter().any(|(address, ..)| is_special(address)) {
            let made = all.iter().map(|&(address, weight, health)| Endpoint::new(address, weight, health));
            return Self::new(version, made.map(Arc::new).collect());
        }
        Self { version, endpoints: Box::default(), told: Told::of(all) }
    }

    /// Address, weight and health of each.
    pub fn all(&self) -> impl Iterator<Item = (SocketAddr, u32, EndpointHealth)> {
        let made = self.endpoints.iter().map(|e| (e.address(), e.weight, e.health));
        made.chain(self.told.all())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.told.0.is_empty()
    }

    /// The same with objects.
    fn made(&self) -> Self {
        let made = self.all().map(|(address, weight, health)| Endpoint::new(address, weight, health));
        Self::new(Arc::clone(&self.version), made.map(Arc::new).collect())
    }
}

/// One endpoint. Shared by all workers; what is global about it is atomic. There are tens of thousands: each takes 80
/// bytes, with its counts of references.
#[derive(Debug)]
pub struct Endpoint {
    ip: IpAddr,
    port: u16,
    special: Option<Box<Special>>,
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

/// What few endpoints have.
#[derive(Debug)]
struct Special {
    /// With an interface (of a link-local one) or a flow.
    address: SocketAddr,
    source: Option<IpAddr>,
}

impl Endpoint {
    /// A new endpoint with its counters at zero.
    pub fn new(address: SocketAddr, weight: u32, health: EndpointHealth) -> Self {
        Self::from_source(None, address, weight, health)
    }

    /// The same, to which connections are made from `source`, though it is not this machine's: an intercepted client's.
    pub(crate) fn from_source(
        source: Option<IpAddr>,
        address: SocketAddr,
        weight: u32,
        health: EndpointHealth,
    ) -> Self {
        let (ip, port) = (address.ip(), address.port());
        let is_special = source.is_some() || address != SocketAddr::new(ip, port);
        Self {
            ip,
            port,
            special: is_special.then(|| Box::new(Special { address, source })),
            weight: weight.max(1),
            health,
            active: AtomicU32::new(0),
            requests: AtomicU64::new(0),
            outlier: Outlier::default(),
        }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.special.as_ref().map_or_else(|| SocketAddr::new(self.ip, self.port), |special| special.address)
    }

    /// The address that connections to it are made from, where it is not this machine's.
    pub(crate) fn source(&self) -> Option<IpAddr> {
        self.special.as_ref()?.source
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

impl EndpointHealth {
    const ALL: [Self; 3] = [Self::Healthy, Self::Draining, Self::Unhealthy];
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

    #[test]
    fn what_is_told_of_endpoints_is_small_and_all_that_was_said() {
        let health = EndpointHealth::ALL.into_iter().cycle();
        let said = ["10.0.0.1:80", "[fd00::1]:8080", "10.0.0.2:65535", "10.0.0.3:1"].into_iter().zip([
            1,
            1,
            7,
            u32::MAX,
        ]);
        let said =
            said.zip(health).map(|((address, weight), health)| (address.parse().unwrap(), weight, health));
        let said: Vec<_> = said.collect();
        let told = Told::of(&said);
        assert!(told.all().eq(said), "{told:?}");
        assert_eq!(told.0.len(), 7 + 19 + 11 + 11);
    }

    #[test]
    fn settings_are_small() {
        assert!(size_of::<ClusterSettings>() <= 144, "{}", size_of::<ClusterSettings>());
    }

    #[test]
    fn an_endpoint_is_small_and_knows_the_whole_of_its_address() {
        assert!(size_of::<Endpoint>() <= 64, "{}", size_of::<Endpoint>());
        let linked = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 80, 0, 7);
        for address in ["10.0.0.1:1".parse().unwrap(), "[fd00::1]:2".parse().unwrap(), linked.into()] {
            assert_eq!(Endpoint::new(address, 1, EndpointHealth::Healthy).address(), address);
            let source = Some(IpAddr::from([10, 0, 0, 9]));
            let intercepted = Endpoint::from_source(source, address, 1, EndpointHealth::Healthy);
            assert_eq!((intercepted.address(), intercepted.source()), (address, source));
        }
    }
}
