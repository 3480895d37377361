//! `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`. Where its connections go is told as a route
//! configuration of one route, so that weights, hashes, warming and retries are those of requests.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier as RouteTarget;
use envoy_types::pb::envoy::config::route::v3::route_action::HashPolicy as RouteHash;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{
    ConnectionProperties, PolicySpecifier as RouteHashBy,
};
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::{ClusterWeight, RandomValueSpecifier};
use envoy_types::pb::envoy::config::route::v3::{
    RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, route,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::WeightedCluster as Weighted;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight as Weight;
use envoy_types::pb::envoy::r#type::v3::HashPolicy;
use envoy_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};

use super::hcm::{access_log, duration, limit};
use super::listener::AccessLog;
use super::problem::{Problem, each};
use super::support::{Message, support};

pub(super) const MESSAGES: &[Message] = &[TCP_PROXY, WEIGHT];

support! {
    TCP_PROXY, tcp_proxy: TcpProxy = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    read: cluster_specifier, idle_timeout, access_log, max_connect_attempts, hash_policy, max_downstream_connection_duration;
    ignored:
        stat_prefix => "it only names statistics",
        max_early_data_bytes => "what comes early waits in the socket";
    refused: on_demand, metadata_match, downstream_idle_timeout, upstream_idle_timeout, tunneling_config, max_downstream_connection_duration_jitter_percentage, proxy_protocol_tlvs, proxy_protocol_tlv_merge_policy, access_log_flush_interval, flush_access_log_on_connected, access_log_options, backoff_options, check_drain_close, upstream_connect_mode;
}

support! {
    WEIGHT, weight: Weight = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy.WeightedCluster.ClusterWeight";
    read: name, weight;
    ignored:;
    refused: metadata_match;
}

/// Envoy's default.
const DEFAULT_IDLE: Duration = Duration::from_secs(3600);

/// A TCP proxy, before its clusters are looked up.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) routes: Box<RouteConfiguration>,
    pub(super) idle: Option<Duration>,
    pub(super) longest: Option<Duration>,
    /// From the filter before it.
    pub(super) max_connections: usize,
    pub(super) access_log: Vec<AccessLog>,
}

pub(super) fn compile(message: &TcpProxy) -> Result<Proxy, Problem> {
    tcp_proxy(message)?;
    let hash = each("hash_policy", &message.hash_policy, hash_policy)?;
    let target = match &message.cluster_specifier {
        None => return Err(Problem::new("cluster", "is missing; give cluster or weighted_clusters")),
        Some(ClusterSpecifier::Cluster(name)) if name.is_empty() => {
            return Err(Problem::new("cluster", "is empty"));
        }
        Some(ClusterSpecifier::Cluster(name)) => RouteTarget::Cluster(name.clone()),
        Some(ClusterSpecifier::WeightedClusters(all)) => {
            RouteTarget::WeightedClusters(weighted(all, !hash.is_empty())?)
        }
    };
    let attempts = message.max_connect_attempts.map_or(1, |n| n.value);
    if attempts == 0 {
        return Err(Problem::new("max_connect_attempts", "is 0; must be at least 1"));
    }
    let action = RouteAction {
        cluster_specifier: Some(target),
        hash_policy: hash,
        retry_policy: Some(RetryPolicy {
            retry_on: String::from("connect-failure"),
            num_retries: Some(UInt32Value { value: attempts - 1 }),
            ..RetryPolicy::default()
        }),
        ..RouteAction::default()
    };
    let everything =
        RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..RouteMatch::default() };
    let routes = RouteConfiguration {
        virtual_hosts: vec![VirtualHost {
            name: String::from("tcp"),
            domains: vec!["*".to_owned()],
            routes: vec![Route {
                name: String::from("tcp"),
                r#match: Some(everything),
                action: Some(route::Action::Route(action)),
                ..Route::default()
            }],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    };
    let longest = duration("max_downstream_connection_duration", message.max_downstream_connection_duration)?;
    Ok(Proxy {
        routes: Box::new(routes),
        idle: limit("idle_timeout", message.idle_timeout, DEFAULT_IDLE)?,
        longest: longest.filter(|longest| !longest.is_zero()),
        max_connections: 0,
        access_log: each("access_log", &message.access_log, access_log)?,
    })
}

/// With a hash the choice is the same for all connections of a client; Envoy, which hashes for the balancing alone,
/// chooses at random.
fn weighted(message: &Weighted, by_hash: bool) -> Result<WeightedCluster, Problem> {
    let clusters = each("weighted_clusters.clusters", &message.clusters, |arm| {
        weight(arm)?;
        if arm.name.is_empty() {
            return Err(Problem::new("name", "is empty"));
        }
        let weight = Some(UInt32Value { value: arm.weight });
        Ok(ClusterWeight { name: arm.name.clone(), weight, ..ClusterWeight::default() })
    })?;
    if clusters.iter().all(|arm| arm.weight.is_none_or(|weight| weight.value == 0)) {
        return Err(Problem::new("weighted_clusters.clusters", "have no weight above 0"));
    }
    let by_hash = by_hash.then_some(RandomValueSpecifier::UseHashPolicy(BoolValue { value: true }));
    Ok(WeightedCluster { clusters, random_value_specifier: by_hash, ..WeightedCluster::default() })
}

fn hash_policy(message: &HashPolicy) -> Result<RouteHash, Problem> {
    match &message.policy_specifier {
        Some(PolicySpecifier::SourceIp(_)) => Ok(RouteHash {
            policy_specifier: Some(RouteHashBy::ConnectionProperties(ConnectionProperties {
                source_ip: true,
            })),
            ..RouteHash::default()
        }),
        _ => Err(Problem::new("", "is not supported; give source_ip")),
    }
}
