//! `Pool`: endpoints that no registry reports, or a Eureka application under a name and settings of one's own.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::Duration;

/// Where a service's requests can be sent. Exactly one of `endpoints`, `dns`, `eureka` and `service` is set.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "pontoon.dev", version = "v1alpha1", kind = "Pool", plural = "pools", namespaced)]
#[kube(derive = "PartialEq", derive = "Default")]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = [{"required": ["endpoints"]}, {"required": ["dns"]}, {"required": ["eureka"]}, {"required": ["service"]}]))]
pub struct PoolSpec {
    /// Addresses that are written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1000))]
    pub endpoints: Option<Vec<PoolEndpoint>>,
    /// A DNS name; every address it resolves to is an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<DnsName>,
    /// The instances of a Eureka application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eureka: Option<EurekaSource>,
    /// The pods of a Kubernetes Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceSource>,
    /// What is spoken to the endpoints. Default: `http1`.
    #[serde(default)]
    pub protocol: Protocol,
    /// The time to establish a connection. Default: `5s`.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Duration,
    /// How an endpoint is chosen. Default: `leastRequest`.
    #[serde(default)]
    pub load_balancer: LoadBalancer,
}

/// Envoy's own default.
pub(crate) const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

fn default_connect_timeout() -> Duration {
    Duration(CONNECT_TIMEOUT)
}

/// One written-down endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolEndpoint {
    /// An IPv4 or IPv6 address. For a name, use `dns`.
    pub address: String,
    /// The TCP port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Its share of the pool's requests, against the other endpoints' weights. Default: 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 10000))]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

/// A DNS name and the port to use with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DnsName {
    /// The name to look up, again and again, by the proxies.
    pub name: String,
    /// The TCP port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

/// The instances of a Eureka application, all or those with certain metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EurekaSource {
    /// The name it registers under; compared without case.
    pub application: String,
    /// Only instances whose metadata has all of these. Empty: all instances.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
}

/// A Kubernetes Service of the same namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceSource {
    /// Its name.
    pub name: String,
    /// One of its ports, by number. May be left out where it has one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
}

/// What is spoken to the endpoints of a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 over keep-alive connections.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge, without TLS.
    H2c,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LoadBalancer {
    /// In turn.
    RoundRobin,
    /// The less loaded of two taken at random.
    #[default]
    LeastRequest,
}
