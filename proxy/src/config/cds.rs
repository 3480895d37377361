//! `envoy.config.cluster.v3.Cluster`.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, DnsLookupFamily, LbPolicy,
};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster, UpstreamConnectionOptions};
use envoy_types::pb::envoy::config::core::v3::{
    HealthStatusSet, Http2ProtocolOptions, HttpProtocolOptions as CommonOptions, RoutingPriority,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::google::protobuf::UInt32Value;

use super::eds;
use super::hcm::{check_common, check_http1, check_http2, duration, limit, set};
use super::keepalive::{self, Keepalive};
use super::lds::unpack;
use super::problem::{Problem, Under, each, filled};
use super::support::{Message, from_ads, refuse, support};
use super::{proxy_protocol, tls_upstream};
use crate::proxy_protocol::Version;
use crate::resilience::breakers::{self, Breaker, Breakers, Load};
use crate::upstream::cluster::{
    BalancePolicy, ConnectionLimits, EndpointHealth, EndpointSource, LookupFamily, Nameable, Names,
    UpstreamProtocol,
};
use crate::upstream::http2::{MAX_STREAMS, PING_SECONDS};

pub(super) const MESSAGES: &[Message] =
    &[CLUSTER, CONNECTION_OPTIONS, UPSTREAM_OPTIONS, BREAKERS, THRESHOLDS, COMMON_LB];

support! {
    CLUSTER, cluster: Cluster = "envoy.config.cluster.v3.Cluster";
    read: name, eds_cluster_config, connect_timeout, lb_policy, load_assignment, transport_socket, typed_extension_protocol_options, dns_refresh_rate, max_requests_per_connection, upstream_connection_options, cluster_discovery_type, circuit_breakers, common_lb_config, dns_lookup_family;
    ignored:
        alt_stat_name => "it only names statistics",
        stats_matcher => "it only names statistics",
        track_cluster_stats => "it only names statistics",
        track_timeout_budgets => "it only names statistics",
        metadata => "no filter here reads it",
        ignore_health_on_host_removal => "a removed endpoint takes nothing new",
        dns_jitter => "look-ups are spread by themselves";
    differs:
        per_connection_buffer_limit_bytes => "64 KiB over HTTP/1.1, 256 KiB a stream over HTTP/2",
        respect_dns_ttl => "names are looked up each dns_refresh_rate: the system does not tell the TTL",
        cleanup_interval => "an original destination is forgotten after a minute without connections";
    refused: http2_protocol_options, transport_socket_matches, transport_socket_matcher, per_connection_buffer_high_watermark_timeout, health_checks, upstream_http_protocol_options, common_http_protocol_options, http_protocol_options, dns_resolvers, dns_resolution_config, typed_dns_resolver_config, outlier_detection, upstream_bind_config, lb_subset_config, protocol_selection, filters, load_balancing_policy, lrs_server, lrs_report_endpoint_metrics, upstream_config, preconnect_policy, connection_pool_per_downstream_connection, queuing_policies, lb_config, dns_failure_refresh_rate, wait_for_warm_on_init, close_connections_on_host_health_failure, use_tcp_for_dns_lookups;
}

support! {
    CONNECTION_OPTIONS, connection_options: UpstreamConnectionOptions = "envoy.config.cluster.v3.UpstreamConnectionOptions";
    read: tcp_keepalive;
    ignored:
        set_local_interface_name_on_upstream_connections => "no filter here reads it",
        happy_eyeballs_config => "an endpoint has one address";
    refused: ;
}

support! {
    UPSTREAM_OPTIONS, upstream_options: HttpProtocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    read: common_http_protocol_options, upstream_protocol_options;
    ignored:
        outlier_detection => "an endpoint that refuses connections is always ejected for a while";
    refused: upstream_http_protocol_options, http_filters, header_validation_config, request_mirror_policies, hash_policy, retry_policy;
}

support! {
    BREAKERS, circuit_breakers: CircuitBreakers = "envoy.config.cluster.v3.CircuitBreakers";
    read: thresholds;
    ignored:;
    refused: per_host_thresholds;
}

support! {
    THRESHOLDS, thresholds: Thresholds = "envoy.config.cluster.v3.CircuitBreakers.Thresholds";
    read: priority, max_connections, max_pending_requests, max_requests, max_retries;
    ignored:
        track_remaining => "it only changes statistics";
    refused: retry_budget, max_connection_pools;
}

support! {
    COMMON_LB, common_lb: CommonLbConfig = "envoy.config.cluster.v3.Cluster.CommonLbConfig";
    read: locality_config_specifier, healthy_panic_threshold, override_host_status;
    ignored:
        ignore_new_hosts_until_first_hc => "it is for active health checks, which are refused",
        consistent_hashing_lb_config => "it is for RING_HASH and MAGLEV, which are refused";
    refused: close_connections_on_host_set_change, update_merge_window;
}

/// Envoy's default.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Under the 60 s after which Tomcat and Netty close an idle connection.
const DEFAULT_IDLE: Duration = Duration::from_secs(55);
/// Envoy's default.
const DEFAULT_DNS_REFRESH: Duration = Duration::from_secs(5);
const PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A cluster without its handle.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) connect_timeout: Duration,
    pub(super) policy: BalancePolicy,
    pub(super) protocol: UpstreamProtocol,
    pub(super) proxy_protocol: Option<Version>,
    pub(super) idle_timeout: Duration,
    pub(super) connections: ConnectionLimits,
    pub(super) keepalive: Option<Keepalive>,
    /// TLS before its files and secrets are read.
    pub(super) tls: Option<tls_upstream::Upstream>,
    pub(super) source: EndpointSource,
    /// The endpoints of a static cluster.
    pub(super) endpoints: Option<Vec<eds::Compiled>>,
    pub(super) breakers: Limits,
    pub(super) nameable: Nameable,
}

/// The circuit breakers of default and of high priority.
#[derive(Debug, Default)]
pub(super) struct Limits([Option<breakers::Thresholds>; 2]);

impl Limits {
    /// With what is held already.
    pub(super) fn of(self, load: &OnceLock<[Arc<Load>; 2]>) -> Breakers {
        let breaker = |at: usize| {
            let thresholds = self.0[at]?;
            let load = Arc::clone(&load.get_or_init(Default::default)[at]);
            Some(Arc::new(Breaker { thresholds, load }))
        };
        Breakers { default: breaker(0), high: breaker(1) }
    }
}

pub(super) fn compile(message: &Cluster) -> Result<Compiled, Problem> {
    moved(message)?;
    cluster(message)?;
    filled("name", &message.name)?;
    let (source, endpoints) = source(message)?;
    let policy = match message.lb_policy() {
        // There is nothing to choose from.
        LbPolicy::ClusterProvided if source == EndpointSource::OriginalDst => BalancePolicy::RoundRobin,
        _ if source == EndpointSource::OriginalDst => {
            return Err(Problem::new("lb_policy", "must be CLUSTER_PROVIDED where the type is ORIGINAL_DST"));
        }
        LbPolicy::RoundRobin => BalancePolicy::RoundRobin,
        LbPolicy::LeastRequest => BalancePolicy::LeastRequest,
        other => {
            let reason =
                format!("is {}; this proxy supports ROUND_ROBIN and LEAST_REQUEST", other.as_str_name());
            return Err(Problem::new("lb_policy", reason));
        }
    };
    let Http { protocol, idle, mut connections } = protocol(message)?;
    #[allow(deprecated, reason = "still sent by control planes")]
    if let (0, Some(requests)) = (connections.requests, message.max_requests_per_connection) {
        connections.requests = requests.value;
    }
    let (proxy_protocol, socket) =
        proxy_protocol::upstream(message.transport_socket.as_ref()).under(|| "transport_socket".into())?;
    let at = if proxy_protocol.is_some() {
        "transport_socket.typed_config.transport_socket"
    } else {
        "transport_socket"
    };
    let tls = tls_upstream::compile(socket.as_ref(), protocol).under(|| at.into())?;
    let breakers = match &message.circuit_breakers {
        Some(given) => limits(given).under(|| "circuit_breakers".into())?,
        None => Limits::default(),
    };
    if let Some(common) = &message.common_lb_config {
        balancing(common).under(|| "common_lb_config".into())?;
    }
    let common = message.common_lb_config.as_ref();
    let nameable = common.and_then(|common| common.override_host_status.as_ref()).map(nameable);
    let connect_timeout = duration("connect_timeout", message.connect_timeout)?;
    let connect_timeout = connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT);
    if connect_timeout.is_zero() {
        return Err(Problem::new("connect_timeout", "is 0; must be greater than 0"));
    }
    Ok(Compiled {
        breakers,
        nameable: nameable.unwrap_or_default(),
        connect_timeout,
        policy,
        protocol,
        proxy_protocol,
        idle_timeout: idle,
        connections,
        keepalive: probes(message.upstream_connection_options.as_ref())
            .under(|| "upstream_connection_options".into())?,
        tls,
        source,
        endpoints,
    })
}

/// What older configurations say of HTTP at the cluster's top.
#[allow(deprecated, reason = "that is what is said of them")]
fn moved(message: &Cluster) -> Result<(), Problem> {
    let fields = [
        ("http2_protocol_options", message.http2_protocol_options.is_some()),
        ("http_protocol_options", message.http_protocol_options.is_some()),
        ("common_http_protocol_options", message.common_http_protocol_options.is_some()),
        ("upstream_http_protocol_options", message.upstream_http_protocol_options.is_some()),
    ];
    match fields.iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => {
            let reason =
                format!("is deprecated; say it in typed_extension_protocol_options[{PROTOCOL_OPTIONS:?}]");
            Err(Problem::new(*field, reason))
        }
        None => Ok(()),
    }
}

/// Of a priority that is there twice the first counts, as in Envoy.
fn limits(message: &CircuitBreakers) -> Result<Limits, Problem> {
    circuit_breakers(message)?;
    let mut limits = Limits::default();
    each("thresholds", &message.thresholds, |given| {
        thresholds(given)?;
        let [default, high] = &mut limits.0;
        let slot = match given.priority() {
            RoutingPriority::Default => default,
            RoutingPriority::High => high,
        };
        let usual = breakers::Thresholds::default();
        let said = |value: Option<UInt32Value>, usual: u32| value.map_or(usual, |n| n.value);
        slot.get_or_insert(breakers::Thresholds {
            connections: said(given.max_connections, usual.connections),
            pending: said(given.max_pending_requests, usual.pending),
            requests: said(given.max_requests, usual.requests),
            retries: said(given.max_retries, usual.retries),
        });
        Ok(())
    })?;
    Ok(limits)
}

/// Zones count only beside a cluster that is named as the proxy's own, which the bootstrap cannot do here.
fn balancing(message: &CommonLbConfig) -> Result<(), Problem> {
    common_lb(message)?;
    if let Some(percent) = message.healthy_panic_threshold.filter(|percent| percent.value != 0.0) {
        let reason =
            format!("is {}; must be 0: endpoints that are not healthy are never sent to", percent.value);
        return Err(Problem::new("healthy_panic_threshold", reason));
    }
    match &message.locality_config_specifier {
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
            let reason = "is set, but this proxy does not weigh localities";
            Err(Problem::new("locality_weighted_lb_config", reason))
        }
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) | None => Ok(()),
    }
}

/// Endpoints of unknown health and degraded ones are as healthy ones.
fn nameable(message: &HealthStatusSet) -> Nameable {
    let has = |health| message.statuses().any(|status| eds::health(status) == health);
    Nameable {
        healthy: has(EndpointHealth::Healthy),
        draining: has(EndpointHealth::Draining),
        unhealthy: has(EndpointHealth::Unhealthy),
    }
}

/// Without a word they are as they always are.
fn probes(message: Option<&UpstreamConnectionOptions>) -> Result<Option<Keepalive>, Problem> {
    if let Some(message) = message {
        connection_options(message)?;
    }
    match message.and_then(|message| message.tcp_keepalive.as_ref()) {
        Some(said) => keepalive::compile(said).under(|| "tcp_keepalive".into()),
        None => Ok(Some(Keepalive { time: Some(PING_SECONDS), ..Keepalive::default() })),
    }
}

/// How HTTP is spoken.
struct Http {
    protocol: UpstreamProtocol,
    idle: Duration,
    connections: ConnectionLimits,
}

fn protocol(message: &Cluster) -> Result<Http, Problem> {
    let mut found = Http {
        protocol: UpstreamProtocol::Http1,
        idle: DEFAULT_IDLE,
        connections: ConnectionLimits::default(),
    };
    for (name, any) in &message.typed_extension_protocol_options {
        let at = || format!("typed_extension_protocol_options[{name:?}]");
        if name != PROTOCOL_OPTIONS {
            return Err(Problem::new(at(), format!("is not supported; this proxy knows {PROTOCOL_OPTIONS}")));
        }
        found = unpack(any).and_then(|options| upstream(&options)).under(at)?;
    }
    Ok(found)
}

fn upstream(options: &HttpProtocolOptions) -> Result<Http, Problem> {
    upstream_options(options)?;
    let common = options.common_http_protocol_options.unwrap_or_default();
    let (idle, connections) = bounds(&common).under(|| "common_http_protocol_options".into())?;
    let Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) = &options.upstream_protocol_options
    else {
        return Err(Problem::new("upstream_protocol_options", "must be explicit_http_config"));
    };
    match &explicit.protocol_config {
        Some(ProtocolConfig::HttpProtocolOptions(options)) => {
            check_http1(options).under(|| "explicit_http_config.http_protocol_options".into())?;
            Ok(Http { protocol: UpstreamProtocol::Http1, idle, connections })
        }
        Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
            http2(options).under(|| "explicit_http_config.http2_protocol_options".into())?;
            Ok(Http { protocol: UpstreamProtocol::Http2, idle, connections })
        }
        _ => Err(Problem::new(
            "explicit_http_config",
            "must be http_protocol_options or http2_protocol_options",
        )),
    }
}

fn http2(options: &Http2ProtocolOptions) -> Result<(), Problem> {
    check_http2(options)?;
    let most = options.max_concurrent_streams.map_or(u32::MAX, |most| most.value);
    if usize::try_from(most).is_ok_and(|most| most < MAX_STREAMS) {
        let reason = format!("is {most}; a connection to an endpoint has up to {MAX_STREAMS} here");
        return Err(Problem::new("max_concurrent_streams", reason));
    }
    Ok(())
}

/// Towards endpoints there is less of it than towards clients.
fn bounds(common: &CommonOptions) -> Result<(Duration, ConnectionLimits), Problem> {
    check_common(common)?;
    refuse("max_headers_count", &common.max_headers_count)?;
    refuse("max_stream_duration", &common.max_stream_duration)?;
    refuse("headers_with_underscores_action", &common.headers_with_underscores_action)?;
    let connections = ConnectionLimits {
        requests: common.max_requests_per_connection.map_or(0, |number| number.value),
        longest: set("max_connection_duration", common.max_connection_duration)?,
    };
    let idle = limit("idle_timeout", common.idle_timeout, DEFAULT_IDLE)?.unwrap_or(Duration::MAX);
    Ok((idle, connections))
}

fn source(message: &Cluster) -> Result<(EndpointSource, Option<Vec<eds::Compiled>>), Problem> {
    let kind = match message.cluster_discovery_type {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(kind)
            .map_err(|_| Problem::new("type", format!("is {kind}, which is not known")))?,
        Some(ClusterDiscoveryType::ClusterType(_)) => {
            return Err(Problem::new("cluster_type", "is not supported"));
        }
    };
    match kind {
        DiscoveryType::Eds => {
            let eds = message.eds_cluster_config.as_ref();
            from_ads("eds_cluster_config.eds_config", eds.and_then(|eds| eds.eds_config.as_ref()))?;
            let name = eds.map(|eds| eds.service_name.as_str()).filter(|name| !name.is_empty());
            Ok((EndpointSource::Eds(name.unwrap_or(&message.name).into()), None))
        }
        DiscoveryType::Static => {
            let endpoints = message.load_assignment.as_ref().map(|all| eds::compile(all, None)).transpose();
            let endpoints = endpoints.under(|| "load_assignment".into())?;
            Ok((EndpointSource::Static, Some(endpoints.unwrap_or_default())))
        }
        DiscoveryType::StrictDns | DiscoveryType::LogicalDns => {
            #[allow(deprecated, reason = "what replaces it configures Envoy's own resolvers")]
            let refresh =
                duration("dns_refresh_rate", message.dns_refresh_rate)?.unwrap_or(DEFAULT_DNS_REFRESH);
            let targets = dns_targets(message).under(|| "load_assignment".into())?;
            let family = match message.dns_lookup_family() {
                // Envoy takes IPv6's alone where there are any; here the one that answers is found by trying.
                DnsLookupFamily::Auto | DnsLookupFamily::All => LookupFamily::All,
                DnsLookupFamily::V4Only => LookupFamily::V4Only,
                DnsLookupFamily::V6Only => LookupFamily::V6Only,
                DnsLookupFamily::V4Preferred => LookupFamily::V4Preferred,
            };
            Ok((EndpointSource::Dns(Box::new(Names { targets, refresh, family })), None))
        }
        DiscoveryType::OriginalDst => {
            if message.load_assignment.is_some() {
                return Err(Problem::new("load_assignment", "is set, but the type is ORIGINAL_DST"));
            }
            Ok((EndpointSource::OriginalDst, None))
        }
    }
}

fn dns_targets(message: &Cluster) -> Result<Vec<(Box<str>, u16)>, Problem> {
    let targets = message.load_assignment.as_ref().map(eds::names).transpose()?.unwrap_or_default();
    if targets.is_empty() {
        Err(Problem::new("endpoints", "is empty; a name is needed"))
    } else {
        Ok(targets)
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::HealthStatus::{self, Degraded, Draining, Timeout};

    use super::*;

    #[test]
    fn statuses_say_which_endpoints_may_be_named() {
        let of = |statuses: &[HealthStatus]| {
            let statuses = statuses.iter().map(|status| i32::from(*status)).collect();
            let Nameable { healthy, draining, unhealthy } = nameable(&HealthStatusSet { statuses });
            (healthy, draining, unhealthy)
        };
        assert_eq!(of(&[]), (false, false, false), "nobody");
        assert_eq!(of(&[Degraded, Draining]), (true, true, false));
        assert_eq!(of(&[Timeout]), (false, false, true));
    }
}
