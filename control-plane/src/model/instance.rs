//! An instance as a registry reports it, whatever the registry.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// All that a registry knows at one moment. Cheap to clone: it travels in a watch channel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RegistryView {
    /// By application name in upper case (Eureka compares names without case).
    pub applications: BTreeMap<Arc<str>, Arc<Application>>,
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
