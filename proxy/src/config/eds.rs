//! `envoy.config.endpoint.v3.ClusterLoadAssignment`.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use envoy_types::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};

use super::lds::{host_and_port, socket_address};
use super::problem::{Problem, Under, each, filled};
use super::support::{Message, support};
use super::zones::{self, Meant};
use crate::upstream::cluster::EndpointHealth;

pub(super) const MESSAGES: &[Message] = &[LOAD_ASSIGNMENT, POLICY, LOCALITY, LB_ENDPOINT, ENDPOINT];

support! {
    LOAD_ASSIGNMENT, load_assignment: ClusterLoadAssignment = "envoy.config.endpoint.v3.ClusterLoadAssignment";
    read: cluster_name, endpoints, policy;
    ignored:;
    refused: named_endpoints;
}

support! {
    POLICY, policy: Policy = "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy";
    read: ;
    ignored:
        overprovisioning_factor => "it is for several priorities, which are refused",
        weighted_priority_health => "it is for several priorities, which are refused";
    refused: drop_overloads, endpoint_stale_after;
}

support! {
    LOCALITY, locality: LocalityLbEndpoints = "envoy.config.endpoint.v3.LocalityLbEndpoints";
    read: lb_endpoints, priority;
    ignored:
        locality => "it is for zones and weights of localities, which a cluster cannot ask for here",
        metadata => "no filter here reads it",
        load_balancing_weight => "it counts where a cluster has locality_weighted_lb_config, which is refused",
        proximity => "it is for several priorities, which are refused";
    refused: lb_config;
}

support! {
    LB_ENDPOINT, lb_endpoint: LbEndpoint = "envoy.config.endpoint.v3.LbEndpoint";
    read: health_status, load_balancing_weight, host_identifier, metadata;
    ignored:;
    refused: ;
}

support! {
    ENDPOINT, endpoint: Endpoint = "envoy.config.endpoint.v3.Endpoint";
    read: address;
    ignored:
        hostname => "it is for active health checks and auto_host_rewrite, which are refused",
        health_check_config => "it is for active health checks, which are refused",
        observability_name => "it only names statistics";
    refused: additional_addresses;
}

/// Address, weight and health of an endpoint.
pub(super) type Compiled = (SocketAddr, u32, EndpointHealth);

/// The endpoints that a proxy in this zone, where it knows of one, sends to.
pub(super) fn compile(message: &ClusterLoadAssignment, zone: Option<&str>) -> Result<Vec<Compiled>, Problem> {
    let endpoints = each_of(message, |whole, host| {
        let address = host.address.as_ref().ok_or_else(|| Problem::new("endpoint.address", "is missing"))?;
        let address = socket_address(address).under(|| "endpoint.address".into())?;
        let weight = whole.load_balancing_weight.map_or(1, |n| n.value);
        let health = health(whole.health_status());
        let meant = zone.map_or(Ok(Meant::Unsaid), |zone| zones::read(whole.metadata.as_ref(), zone))?;
        Ok(((address, weight, health), meant))
    })?;
    Ok(zones::preferred(endpoints))
}

/// What a status means here.
pub(super) fn health(status: HealthStatus) -> EndpointHealth {
    match status {
        HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded => EndpointHealth::Healthy,
        HealthStatus::Draining => EndpointHealth::Draining,
        HealthStatus::Unhealthy | HealthStatus::Timeout => EndpointHealth::Unhealthy,
    }
}

/// The names that stand for endpoints, and their ports: every address that a name has is like every other.
pub(super) fn names(message: &ClusterLoadAssignment) -> Result<Vec<(Box<str>, u16)>, Problem> {
    each_of(message, |whole, host| {
        let address = host.address.as_ref().ok_or_else(|| Problem::new("endpoint.address", "is missing"))?;
        let (name, port) = host_and_port(address).under(|| "endpoint.address".into())?;
        if let Some(weight) = whole.load_balancing_weight.filter(|weight| weight.value > 1) {
            let reason = format!("is {}; this proxy supports 1 for a name", weight.value);
            return Err(Problem::new("load_balancing_weight", reason));
        }
        if !matches!(whole.health_status(), HealthStatus::Unknown | HealthStatus::Healthy) {
            let reason =
                format!("is {}; it is not supported for a name", whole.health_status().as_str_name());
            return Err(Problem::new("health_status", reason));
        }
        Ok((name.into(), port))
    })
}

/// Every endpoint, once it is known that nothing around it is refused.
fn each_of<T>(
    message: &ClusterLoadAssignment,
    read: impl Fn(&LbEndpoint, &Endpoint) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    load_assignment(message)?;
    filled("cluster_name", &message.cluster_name)?;
    message.policy.as_ref().map_or(Ok(()), policy).under(|| "policy".into())?;
    let localities = each("endpoints", &message.endpoints, |l| {
        locality(l)?;
        if l.priority != 0 {
            return Err(Problem::new("priority", format!("is {}; this proxy supports 0", l.priority)));
        }
        each("lb_endpoints", &l.lb_endpoints, |whole| {
            lb_endpoint(whole)?;
            if whole.load_balancing_weight.is_some_and(|weight| weight.value == 0) {
                return Err(Problem::new("load_balancing_weight", "is 0; must be at least 1"));
            }
            let Some(HostIdentifier::Endpoint(host)) = &whole.host_identifier else {
                return Err(Problem::new("endpoint", "is missing"));
            };
            endpoint(host).under(|| "endpoint".into())?;
            read(whole, host)
        })
    })?;
    Ok(localities.into_iter().flatten().collect())
}
