//! An instance as a registry reports it, whatever the registry.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::objects::ObjectName;

/// All that a registry knows at one moment. Cheap to clone: it travels in a watch channel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RegistryView {
    /// By application name in upper case (Eureka compares names without case).
    pub applications: BTreeMap<Arc<str>, Arc<Application>>,
    /// The endpoints of Kubernetes Services.
    pub services: ServiceView,
}

/// The endpoints of Kubernetes Services at one moment. Cheap to clone; a Service that did not change keeps its `Arc`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServiceView {
    /// By the Service's name; one without slices is not there.
    pub services: OrdMap<ObjectName, Arc<ServiceEndpoints>>,
    /// Set while there are endpoints among these that the API server's last list does not have: too many at once, as
    /// after an outage, to be believed without asking again.
    pub held: bool,
}

/// The endpoints of one Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceEndpoints {
    /// By the port's name; empty where the only port has none.
    pub ports: BTreeMap<Arc<str>, Vec<PodEndpoint>>,
}

/// One pod, or whatever else stands behind a Service, at one of its ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEndpoint {
    /// Where it is by IPv4.
    pub v4: Option<SocketAddr>,
    /// Where it is by IPv6.
    pub v6: Option<SocketAddr>,
    /// Takes new connections.
    pub ready: bool,
    /// Answers, also while it ends.
    pub serving: bool,
    /// Is about to end.
    pub terminating: bool,
    /// Where it runs.
    pub zone: Option<Arc<str>>,
    /// The zones whose clients it is meant for, in order; empty: nothing is said.
    pub for_zones: Arc<[Arc<str>]>,
}

/// One application's instances.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Application {
    /// By instance id.
    pub instances: BTreeMap<Arc<str>, Arc<Instance>>,
    /// Set while nothing but expired leases is left: the instances above are the last that were known,
    /// kept because no client said that it went. Shown in statuses.
    pub held: bool,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Opaque, unique within the application.
    pub id: Arc<str>,
    /// Application name in upper case.
    pub application: Arc<str>,
    /// The name other applications call it by (Eureka's `vipAddress`; may hold several, comma-separated).
    pub vip: Arc<str>,
    /// Need not resolve.
    pub host_name: Arc<str>,
    /// An IP address, as text: what the client sent.
    pub ip: Arc<str>,
    /// The plain port, where enabled.
    pub port: Option<u16>,
    /// The TLS port, where enabled.
    pub secure_port: Option<u16>,
    /// The status in force, an override included.
    pub status: InstanceStatus,
    /// What the client attached.
    pub metadata: BTreeMap<String, String>,
}

impl Instance {
    /// The names in [`Instance::vip`], as they are written.
    pub fn vips(&self) -> impl Iterator<Item = &str> {
        self.vip.split(',').map(str::trim).filter(|name| !name.is_empty())
    }
}

/// Eureka's five statuses. Only `UP` takes traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InstanceStatus {
    /// Takes traffic.
    Up,
    /// Said that it is going, or failed its own health check.
    Down,
    /// Not ready yet.
    Starting,
    /// Taken out by an operator.
    OutOfService,
    /// Not said.
    Unknown,
}

impl InstanceStatus {
    /// In the order of their names, which is the order that Eureka's hash code goes by.
    pub const ALL: [InstanceStatus; 5] = [
        InstanceStatus::Down,
        InstanceStatus::OutOfService,
        InstanceStatus::Starting,
        InstanceStatus::Unknown,
        InstanceStatus::Up,
    ];

    /// As it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            InstanceStatus::Up => "UP",
            InstanceStatus::Down => "DOWN",
            InstanceStatus::Starting => "STARTING",
            InstanceStatus::OutOfService => "OUT_OF_SERVICE",
            InstanceStatus::Unknown => "UNKNOWN",
        }
    }

    /// The status of this name, in any case.
    pub fn from_word(word: &str) -> Option<InstanceStatus> {
        InstanceStatus::ALL.into_iter().find(|status| status.as_str().eq_ignore_ascii_case(word.trim()))
    }
}
